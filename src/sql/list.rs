//! `walrust_list`, `walrust_files`

use super::common::{self, int, time};
use crate::base::{Error, Result, TxId};
use crate::replica::list::{files as files_of, list as databases_under};
use crate::sqlite::{Connection, Rows, Value};
use crate::store::{ReplicaUrl, Store, block_on};
use std::path::Path;

/// One row per database at or below a URL.
pub(super) fn list(_conn: &Connection, args: &[Option<Value>]) -> Result<Rows> {
    let args = common::plain(args);
    let said = common::needed(&args, 0, "the URL")?;
    let url = ReplicaUrl::parse(said)?;
    if url.dir().is_some_and(Path::is_file) {
        return Err(Error::config(format!(
            "{said} is a file; give the directory or the URL that replicas lie below"
        )));
    }
    let store = Store::open(&url)?;
    let found = block_on(databases_under(&store, &url))??;
    let txid = |t: Option<TxId>| t.map_or(Value::Null, |t| Value::Integer(t.as_i64()));
    Ok(Box::new(found.into_iter().map(move |d| {
        Ok(vec![
            Value::Text(d.name),
            Value::Text(d.replica),
            int(d.snapshots),
            int(d.files),
            int(d.bytes),
            txid(d.min_txid),
            txid(d.max_txid),
            time(d.first_time),
            time(d.last_time),
        ])
    })))
}

/// One row per LTX file of a replica, by level and TXID.
pub(super) fn files(conn: &Connection, args: &[Option<Value>]) -> Result<Rows> {
    let store =
        common::named(common::store(conn, common::text(&common::plain(args), 0, "the replica URL")?)?);
    let found = block_on(files_of(&store))??;
    let count = |n: Option<u32>| n.map_or(Value::Null, |n| Value::Integer(n.into()));
    Ok(Box::new(found.into_iter().map(move |f| {
        Ok(vec![
            Value::Integer(f.id.level.get().into()),
            Value::Integer(f.id.min.as_i64()),
            Value::Integer(f.id.max.as_i64()),
            int(f.bytes),
            time(Some(f.time)),
            count(f.pages),
            count(f.commit_pages),
            f.sha256.map_or(Value::Null, Value::Text),
            Value::Text(f.key),
        ])
    })))
}
