//! `walrust_url`, `walrust_points`, `walrust_last_error`

use super::common::{self, int, time};
use super::restore::point;
use crate::base::{Error, Result, clock, quoted};
use crate::reader;
use crate::replica::{Point, list::points as points_of};
use crate::sqlite::{Connection, Rows, Value, take_last_error};
use crate::store::{ReplicaUrl, block_on};

/// The name under which SQLite opens, or attaches, a replica at a point. The point is looked up: what is wrong is this call's error.
pub(super) fn url(conn: &Connection, args: &[Value]) -> Result<Value> {
    let given = common::text(args, 0, "the replica URL")?;
    let url = match given {
        Some("") => return Err(Error::config("the replica URL is empty")),
        Some(text)
            if text.split_once('?').is_some_and(|(_, q)| q.split('&').any(|p| p.starts_with("at="))) =>
        {
            return Err(Error::config(format!(
                "the replica URL {} holds a point ('at='); give it as the second argument",
                quoted(text)
            )));
        }
        Some(text) => ReplicaUrl::parse(text)?,
        None => ReplicaUrl::parse(common::store(conn, None)?.url())?,
    };
    let point = point(args.get(1))?;
    let txid = reader::txid_at(&url, point)?;
    let at = (point != Point::Latest).then(|| txid.0.to_string());
    reader::name_of(&url, at.as_deref(), clock::now()).map(Value::Text)
}

/// One row per point that can be restored, or read, separately; the oldest first.
pub(super) fn points(conn: &Connection, args: &[Option<Value>]) -> Result<Rows> {
    let store =
        common::named(common::store(conn, common::text(&common::plain(args), 0, "the replica URL")?)?);
    let found = block_on(points_of(&store))??;
    let count = |n: Option<u32>| n.map_or(Value::Null, |n| Value::Integer(n.into()));
    Ok(Box::new(found.into_iter().map(move |p| {
        Ok(vec![
            Value::Integer(p.txid.as_i64()),
            time(Some(p.time)),
            Value::Integer(p.id.level.get().into()),
            int(p.bytes),
            count(p.pages),
            count(p.commit_pages),
        ])
    })))
}

/// Why SQLite gave the last bare error of a replica that this thread read; NULL if there was none since the last call.
pub(super) fn last_error(_conn: &Connection, _args: &[Value]) -> Result<Value> {
    Ok(take_last_error().map_or(Value::Null, Value::Text))
}
