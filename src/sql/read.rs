//! `walrust_url`, `walrust_past`, `walrust_points`, `walrust_changes`, `walrust_last_error`

use super::common::{self, int, point, time};
use crate::base::{Error, Result, clock, quoted};
use crate::reader;
use crate::replica::{Point, list::points as points_of};
use crate::session::{engine, near};
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
    let point = reader::point_of(&url, point(args.get(1))?)?;
    let txid = reader::txid_at(&url, point)?;
    let at = (point != Point::Latest).then(|| txid.0.to_string());
    reader::name_of(&url, at.as_deref(), clock::now()).map(Value::Text)
}

/// The name under which SQLite attaches the past of this connection's database, which is watched: what was not changed since then comes
/// from its own file. The point is looked up: what is wrong is this call's error.
pub(super) fn past(conn: &Connection, args: &[Value]) -> Result<Value> {
    let w = common::watched(conn)?;
    let point = reader::point_of(&ReplicaUrl::parse(w.store.url())?, point(args.first())?)?;
    let txid = reader::point_at(near(&w).as_ref(), point)?;
    Ok(Value::Text(reader::past_name_of(w.path(), txid)))
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
            (!p.labels.is_empty()).then(|| p.labels.join(", ")).map_or(Value::Null, Value::Text),
            count(p.commit_pages),
        ])
    })))
}

/// One row per table and index of which something was changed between two points.
pub(super) fn changes(conn: &Connection, args: &[Option<Value>]) -> Result<Rows> {
    let args = common::plain(args);
    let url = common::replica_url(conn, common::text(&args, 0, "the replica URL")?)?;
    if matches!(args.get(1), None | Some(Value::Null)) {
        return Err(Error::config(
            "the first point is NULL; give two points: walrust_changes(url, from [, to])",
        ));
    }
    let here = engine().find_by_replica(&url.to_string()).map(|w| near(&w));
    let (from, to) = (point(args.get(1))?, point(args.get(2))?);
    let (from, to) = (reader::point_of(&url, from)?, reader::point_of(&url, to)?);
    let found = reader::changes(&url, here, from, to)?;
    let text = |t: Option<String>| t.map_or(Value::Null, Value::Text);
    Ok(Box::new(found.into_iter().map(move |c| {
        let rows = |f: fn(reader::RowChanges) -> u64| c.rows.map_or(Value::Null, |r| int(f(r)));
        let (inserted, deleted, updated) = (rows(|r| r.inserted), rows(|r| r.deleted), rows(|r| r.updated));
        Ok(vec![text(c.kind), text(c.name), int(c.pages), inserted, deleted, updated])
    })))
}

/// Why SQLite gave the last bare error of a replica that this thread read; NULL if there was none since the last call.
pub(super) fn last_error(_conn: &Connection, _args: &[Value]) -> Result<Value> {
    Ok(take_last_error().map_or(Value::Null, Value::Text))
}
