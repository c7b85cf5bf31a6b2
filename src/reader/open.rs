//! The door: opens a name for SQLite, and looks points up for SQL.

use super::image::ReplicaImage;
use super::name::{self, Name};
use super::replica;
use crate::address::ReplicaUrl;
use crate::base::{Result, TxId, clock};
use crate::replica::Point;
use crate::sqlite::{Elsewhere, Image};

/// The names of replicas, as SQLite is given them.
#[derive(Debug, Default)]
pub struct Replicas;

impl Elsewhere for Replicas {
    fn full_name(&self, name: &str) -> Option<String> {
        name::full_name(name)
    }

    fn open(&self, name: &str, parameter: &dyn Fn(&str) -> Option<String>) -> Result<Box<dyn Image>> {
        let name = Name::parse(name, parameter)?;
        let point = name.point(clock::now())?;
        let replica = replica::of(&name.url)?;
        Ok(Box::new(ReplicaImage::open(replica, point)?))
    }
}

/// The TXID that `point` of the replica at `url` means now. What was found out for it is remembered: an open at that TXID asks for
/// nothing again. Errors where the replica does not hold the point.
pub fn txid_at(url: &ReplicaUrl, point: Point) -> Result<TxId> {
    Ok(replica::of(url)?.view(point)?.map.txid())
}
