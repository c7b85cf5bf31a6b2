//! `walrust_label`

use super::common::{self, point};
use super::once::Done;
use crate::base::{Error, Result, TxId, clock};
use crate::replica::label::By;
use crate::replica::{LabelName, Named, Point, labels};
use crate::sqlite::{Connection, Value};
use crate::store::{Store, block_on};
use std::path::PathBuf;

/// Labels that were dropped here.
static DROPPED: Done<TxId> = Done::new();

/// Whether a label is made or dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Make,
    Drop,
}

/// Names a point and keeps it until the label is dropped: `walrust_label(name [, keep [, url [, point]]])`. Without a URL: of this
/// connection's database, which is watched, after what was committed before is in the replica.
pub(super) fn label(conn: &Connection, args: &[Value]) -> Result<Value> {
    let name = Named::label(common::needed(args, 0, "the label's name")?, clock::now())?;
    let wish = match args.get(1) {
        None | Some(Value::Null | Value::Integer(1)) => Wish::Make,
        Some(Value::Integer(0)) => Wish::Drop,
        Some(_) => {
            return Err(Error::config(
                "the second argument, keep, must be 1 or NULL (make the label) or 0 (drop it)",
            ));
        }
    };
    let url = common::text(args, 2, "the replica URL")?;
    let at = point(args.get(3))?;
    match wish {
        Wish::Make => make(conn, &name, url, &at),
        Wish::Drop if matches!(args.get(3), None | Some(Value::Null)) => {
            let store = match url {
                Some(_) => Store::open(&common::replica_url(conn, url)?)?,
                None => common::store(conn, None)?,
            };
            drop_label(&store, &name)
        }
        Wish::Drop => Err(Error::config("a label is dropped by its name alone; leave the point out")),
    }
}

fn make(conn: &Connection, name: &LabelName, url: Option<&str>, at: &Named) -> Result<Value> {
    let (store, at) = match (url, at) {
        (Some(_), at) => (Store::open(&common::replica_url(conn, url)?)?, at.clone()),
        (None, Named::Point(Point::Latest)) => {
            let w = common::watched(conn)?;
            // Makes the wal-index known on a connection that has read nothing yet; what is wrong with it shows elsewhere.
            drop(conn.touch());
            let txid = w.sync(w.settings().sync_timeout)?;
            (w.store.clone(), Named::Point(Point::TxId(txid)))
        }
        (None, at) => (common::store(conn, None)?, at.clone()),
    };
    let store = common::named(store);
    let made = block_on(async {
        let point = labels::point_of(&store, &at).await?;
        labels::make(&store, name, point, By::Person).await
    })??;
    DROPPED.forget(&spot(store.url(), name));
    Ok(Value::Integer(made.txid.as_i64()))
}

fn drop_label(store: &Store, name: &LabelName) -> Result<Value> {
    let spot = spot(store.url(), name);
    let txid = match block_on(labels::forget(store, name))? {
        Ok(label) => label.map(|l| l.txid),
        // (A driver that steps a statement twice is answered as the first time.)
        Err(e) if e.is_missing() => Some(DROPPED.known(&spot).ok_or(e)?),
        Err(e) => return Err(e),
    };
    if let Some(txid) = txid {
        DROPPED.note(&spot, txid);
    }
    Ok(txid.map_or(Value::Null, |t| Value::Integer(t.as_i64())))
}

/// Where [`Done`] remembers a label.
fn spot(url: &str, name: &LabelName) -> PathBuf {
    PathBuf::from(format!("{url}#{name}"))
}
