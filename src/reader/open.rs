//! The door: opens a name for SQLite, and looks points up for SQL.

use super::disk;
use super::image::ReplicaImage;
use super::name::{self, Name};
use super::nearby::{Nearby, Vicinity};
use super::past::PastImage;
use super::replica;
use crate::address::ReplicaUrl;
use crate::base::{Result, TxId, clock};
use crate::replica::{Named, Point};
use crate::sqlite::{Elsewhere, Image};
use std::sync::Arc;

/// The names of replicas, and of the pasts of watched databases, as SQLite is given them.
pub struct Replicas {
    /// Who knows the databases that are watched here.
    pub vicinity: Arc<dyn Vicinity>,
}

impl Elsewhere for Replicas {
    fn full_name(&self, name: &str) -> Option<String> {
        name::full_name(name)
    }

    fn open(&self, name: &str, parameter: &dyn Fn(&str) -> Option<String>) -> Result<Box<dyn Image>> {
        disk::begin(|| self.vicinity.cache());
        if let Some(past) = name::past(name)? {
            let near = self.vicinity.find(&past.path)?;
            let replica = replica::of(&near.replica()?)?;
            return Ok(Box::new(PastImage::open(replica, near, Point::TxId(past.txid))?));
        }
        let name = Name::parse(name, parameter)?;
        let named = name.point(clock::now())?;
        let replica = replica::of(&name.url)?;
        let point = replica.point(named)?;
        Ok(Box::new(ReplicaImage::open(replica, point)?))
    }
}

/// The point of the replica at `url` that was said: a label is looked up. Errors where the replica has no such label.
pub fn point_of(url: &ReplicaUrl, named: Named) -> Result<Point> {
    replica::of(url)?.point(named)
}

/// The TXID that `point` of the replica of `near` means now. Nothing but what lies there is asked for, and remembered for the open.
/// Errors where the replica does not hold the point.
pub fn point_at(near: &dyn Nearby, point: Point) -> Result<TxId> {
    Ok(replica::of(&near.replica()?)?.way(point)?.plan.txid)
}

/// The schema cookie of the database in the replica at `url` at `txid`. Errors as an open there does.
pub fn schema_cookie(url: &ReplicaUrl, txid: TxId) -> Result<u32> {
    let mut image = ReplicaImage::open(replica::of(url)?, Point::TxId(txid))?;
    let mut cookie = [0; 4];
    image.begin()?;
    let read = image.read(&mut cookie, 40).map(|_| u32::from_be_bytes(cookie));
    image.end();
    read
}

/// The TXID that `point` of the replica at `url` means now. What was found out for it is remembered: an open at that TXID asks for
/// nothing again. Errors where the replica does not hold the point.
pub fn txid_at(url: &ReplicaUrl, point: Point) -> Result<TxId> {
    Ok(replica::of(url)?.view(point)?.map.txid())
}
