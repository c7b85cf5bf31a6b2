//! A replica read in place: SQLite opens, or attaches, a replica's URL, and reads its pages out of the replica's files as they are
//! wanted, at any point in time.
//!
//! | file | what |
//! |---|---|
//! | `name` | which names are replicas, and of which point |
//! | `replica` | what processes' connections share of one replica: its files as far as they are known, the newest state |
//! | `view` | a state: from a listing and a point to the files that make it, and their page indexes |
//! | `fetch` | which ranges to fetch for a page, and what SQLite will want after it; pure |
//! | `cache` | pages that were fetched |
//! | `image` | one connection's open file |
//! | `runtime` | the thread that all requests are made on |
//!
//! Rules
//! * I-READ-1 All that SQLite reads in one transaction is of one TXID. One that was opened without a point moves on to the newest
//!   between transactions; one that was opened with a point stays there.
//! * I-READ-2 Nothing is fetched while nobody reads, no more than [`PARALLEL`] requests are made at once for one read, and whether
//!   there is something newer is asked once a second at most ([`FRESH_FOR`]), by the next TXID's name.
//! * I-READ-3 A file that is gone (merged, out of retention) or damaged is gone around if other files make the same TXID. A TXID that
//!   nothing makes any more is an error, never another TXID.
//! * I-READ-4 The replica is read only: nothing here puts or deletes.
//! * I-READ-5 No thread of the shipper's has a part in it: reading works while shipping does not.
//!
//! A crash leaves nothing behind. Refused: one request a page (a scan of 8 MB would be 2,000); the whole page index in memory
//! for each connection (it is shared, and two or three bytes a page); a listing at each transaction.

mod cache;
mod fetch;
mod image;
mod name;
mod replica;
mod runtime;
mod view;

pub use name::{Name, name_of};

use crate::address::ReplicaUrl;
use crate::base::{Result, TxId, clock};
use crate::replica::Point;
use crate::sqlite::{Elsewhere, Image};
use std::time::Duration;

/// Requests under way at once for one read.
const PARALLEL: usize = 8;
/// How long what is the newest state counts as that.
const FRESH_FOR: Duration = Duration::from_secs(1);

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
        Ok(Box::new(image::ReplicaImage::open(replica, point)?))
    }
}

/// The TXID that `point` of the replica at `url` means now. What was found out for it is remembered: an open at that TXID asks for
/// nothing again. Errors where the replica does not hold the point.
pub fn txid_at(url: &ReplicaUrl, point: Point) -> Result<TxId> {
    Ok(replica::of(url)?.view(point)?.map.txid())
}
