//! `walrust_rewind`

use super::common::{self, point};
use super::once::Done;
use crate::base::{Error, Kind, Result, TxId};
use crate::reader;
use crate::replica::{Named, Point};
use crate::session::near;
use crate::sqlite::{Connection, Value};
use crate::store::ReplicaUrl;

/// A rewind of this process.
#[derive(Clone, Copy)]
struct Rewound {
    to: TxId,
    /// The number of the transaction that it was ([`crate::session::Watched::transactions`]).
    transaction: u32,
    before: TxId,
}

/// What a driver that steps a statement twice is answered: a second rewind would change nothing, and its answer would undo nothing.
static REWOUND: Done<Rewound> = Done::new();

/// Brings this connection's database, which is watched, back to a point: one transaction, streamed as any other. Returns the TXID that
/// undoes it: that of the state before, which is in the replica before anything is changed.
pub(super) fn rewind(conn: &Connection, args: &[Value]) -> Result<Value> {
    let named = point(args.first())?;
    if named == Named::Point(Point::Latest) {
        return Err(Error::config(
            "the point is NULL or 'latest', which is where the database is; give a TXID, a time or a label",
        ));
    }
    let w = common::watched(conn)?;
    if conn.is_read_only() {
        return Err(Error::config(format!(
            "{}: this connection has opened it read-only",
            w.path().display()
        )));
    }
    let point = reader::point_of(&ReplicaUrl::parse(w.store.url())?, named)?;
    let txid = reader::point_at(near(&w).as_ref(), point)?;
    if let (Some(done), Some(now)) = (REWOUND.known(w.path()), w.transactions())
        && (done.to, done.transaction) == (txid, now)
    {
        return Ok(Value::Integer(done.before.as_i64()));
    }
    let timeout = w.settings().sync_timeout;
    // What waits for the replica goes there before writers have to wait for this.
    w.sync(timeout)?;
    let name = reader::past_name_of(w.path(), txid);
    let page_size =
        w.page_size().ok_or_else(|| Error::new(Kind::Retry, "the database is being read anew; try again"))?;
    let before = conn
        .overwrite(&name, page_size, || w.sync(timeout))
        .map_err(|e| e.context("the rewind is refused"))?;
    if let Some(transaction) = w.transactions() {
        REWOUND.note(w.path(), Rewound { to: txid, transaction, before });
    }
    Ok(Value::Integer(before.as_i64()))
}
