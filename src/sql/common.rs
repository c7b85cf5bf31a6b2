//! Arguments and results that several functions share.

use crate::base::{Error, Result, Timestamp, clock, quoted};
use crate::config::{Resolved, Settings, whole};
use crate::replica::{Named, Point};
use crate::session::{Watched, engine};
use crate::sqlite::{Connection, Value};
use crate::store::{ReplicaUrl, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Linux's.
const PATH_MAX: usize = 4096;

/// Argument `i` as text; `None` when absent or NULL.
pub(super) fn text<'a>(args: &'a [Value], i: usize, what: &str) -> Result<Option<&'a str>> {
    match args.get(i) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(t)) => Ok(Some(t)),
        Some(other) => Err(Error::config(format!("{what} must be TEXT, not {}", other.type_name()))),
    }
}

/// Like [`text`], but it must be there and not be empty.
pub(super) fn needed<'a>(args: &'a [Value], i: usize, what: &str) -> Result<&'a str> {
    match text(args, i, what)? {
        Some("") => Err(Error::config(format!("{what} is empty"))),
        Some(t) => Ok(t),
        None => Err(Error::config(format!("{what} is NULL; it must be given"))),
    }
}

/// Like [`needed`]: the path of a file on this machine.
pub(super) fn file<'a>(args: &'a [Value], i: usize, what: &str) -> Result<&'a Path> {
    let path = needed(args, i, what)?;
    if path.contains("://") {
        return Err(Error::config(format!("{what} is a URL; give the path of a file on this machine")));
    }
    if path.len() >= PATH_MAX {
        let n = path.len();
        return Err(Error::config(format!("{what} has {n} bytes; a path has fewer than {PATH_MAX}")));
    }
    Ok(Path::new(path))
}

/// Arguments of a table-valued function as those of a scalar one: absent is NULL.
pub(super) fn plain(args: &[Option<Value>]) -> Vec<Value> {
    args.iter().map(|a| a.clone().unwrap_or(Value::Null)).collect()
}

/// Path of this connection's main database, as SQLite names it.
pub(super) fn main_path(conn: &Connection) -> Result<PathBuf> {
    conn.main_db_path().ok_or_else(|| {
        Error::config("this connection's main database is in memory or temporary; open a database file")
    })
}

/// How long a call waits for a watch that begins again by itself.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);

/// The watched database of this connection, if it is watched; nothing is begun.
fn found(conn: &Connection) -> Option<Arc<Watched>> {
    match conn.main_db_path() {
        Some(path) => engine().find(&path),
        None => engine().only().ok(),
    }
}

/// The watched database of this connection, or the one that is configured for it and begins now. Of one whose own database is no file: the only one there is.
pub(super) fn watched(conn: &Connection) -> Result<Arc<Watched>> {
    let Some(path) = conn.main_db_path() else { return engine().only() };
    if let Some(w) = engine().find_or_await(&path, RENEWAL_PATIENCE)? {
        return Ok(w);
    }
    // One that is configured and waits for its first use: this is one.
    engine().begin_now(conn, &path)?.ok_or_else(|| {
        let which =
            if engine().watched().is_empty() { "no database is watched" } else { "it is not watched" };
        Error::config(format!("{}: {which}; call walrust_watch() first", path.display()))
    })
}

/// The replica that a URL names, or without one that of this connection's database: watched, else configured.
pub(super) fn store(conn: &Connection, url: Option<&str>) -> Result<Store> {
    if let Some(url) = url {
        if url.is_empty() {
            return Err(Error::config("the replica URL is empty"));
        }
        return Store::open(&ReplicaUrl::parse(url)?);
    }
    if let Some(w) = found(conn) {
        return Ok(w.store.clone());
    }
    let path = main_path(conn).map_err(|_| Error::config("name a replica URL: no database is watched"))?;
    Store::open(&configured(&path, &engine().resolve(&path, None)?)?)
}

/// The replica that the settings name for the database at `path`. Where they name none, and none lies beside it, the one that its spool was
/// last shipped to: a call named it, and whoever looks now need not say it again.
pub(super) fn configured(path: &Path, resolved: &Resolved) -> Result<ReplicaUrl> {
    let replica = crate::session::request(path, resolved, false)?.replica;
    if resolved.settings.replica.is_some() || replica.dir().is_some_and(Path::exists) {
        return Ok(replica);
    }
    match engine().spooled(path).ok().flatten().and_then(|s| s.replica) {
        Some(shipped_to) => ReplicaUrl::parse(&shipped_to),
        None => Ok(replica),
    }
}

/// The URL of the replica that a URL names, or a database file: its own then, watched or configured. Without one it is that of this
/// connection's database.
pub(super) fn replica_url(conn: &Connection, named: Option<&str>) -> Result<ReplicaUrl> {
    match named {
        Some(text) if !text.contains("://") && Path::new(text).is_file() => {
            let path = std::path::absolute(text).map_err(|e| Error::io("resolve", Path::new(text), e))?;
            match engine().find(&path) {
                Some(w) => ReplicaUrl::parse(w.store.url()),
                None => configured(&path, &engine().resolve(&path, None)?),
            }
        }
        Some("") => Err(Error::config("the replica URL is empty")),
        Some(text) => ReplicaUrl::parse(text),
        None => ReplicaUrl::parse(store(conn, None)?.url()),
    }
}

/// The URL of the replica of the database file at `path`, as the functions find it that are given none. Errors where that cannot be told.
pub fn replica_of(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))?;
    match engine().find(&path) {
        Some(w) => Ok(w.store.url().to_string()),
        None => Ok(configured(&path, &engine().resolve(&path, None)?)?.to_string()),
    }
}

/// If this process streams to the replica of `store`, what it has put there is named in the manifest first: what is not named yet tells
/// less of itself, and would not be missed.
pub(super) fn named(store: Store) -> Store {
    if let Some(w) = engine().find_by_replica(store.url()) {
        w.have_named();
    }
    store
}

/// The settings that hold for this connection's database: those it is watched with, else what is configured for it,
/// else the process's.
pub(super) fn settings(conn: &Connection) -> Result<Settings> {
    match (found(conn), conn.main_db_path()) {
        (Some(w), _) => Ok((**w.settings()).clone()),
        (None, Some(path)) => Ok(engine().resolve(&path, None)?.settings),
        (None, None) => Ok(engine().config()?.process()?.settings),
    }
}

/// The settings of the database that is streamed to `replica` here, else [`settings`].
pub(super) fn settings_of_replica(conn: &Connection, replica: &str) -> Result<Settings> {
    match engine().find_by_replica(replica) {
        Some(w) => Ok((**w.settings()).clone()),
        None => settings(conn),
    }
}

/// A point as it was said: a TXID, a time, a label, or NULL for the newest.
pub(super) fn point(v: Option<&Value>) -> Result<Named> {
    match v {
        None | Some(Value::Null) => Ok(Named::Point(Point::Latest)),
        Some(Value::Integer(n)) => Point::from_integer(*n).map(Named::Point),
        Some(Value::Text(t)) => Named::parse(t, clock::now()),
        Some(Value::Real(r)) => match whole(*r) {
            Some(n) => Point::from_integer(n).map(Named::Point),
            None => Err(Error::config(format!("the point {r:?} is no whole number, so no TXID"))),
        },
        Some(other) => Err(Error::config(format!(
            "the point must be an INTEGER (TXID), a TEXT (time, '5 minutes ago', or a label) or NULL (newest), not {}",
            other.type_name()
        ))),
    }
}

/// A whole number: an INTEGER, or a REAL that is one.
pub(super) fn whole_number(v: &Value) -> Option<i64> {
    match v {
        Value::Integer(n) => Some(*n),
        Value::Real(r) => whole(*r),
        _ => None,
    }
}

/// Seconds as INTEGER or REAL, or a duration as TEXT.
pub(super) fn timeout(v: &Value) -> Result<Duration> {
    let seconds = match v {
        Value::Integer(n) => *n as f64,
        Value::Real(r) => *r,
        Value::Text(t) => {
            return crate::config::parse_duration(t)
                .map_err(|e| Error::config(format!("timeout {}: {e}", quoted(t))));
        }
        other => {
            return Err(Error::config(format!(
                "timeout must be seconds from 0 to 86400, not {}",
                other.type_name()
            )));
        }
    };
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Error::config(format!("timeout {seconds:?} is not from 0 to 86400 seconds")))
    }
}

/// A time, or NULL.
pub(super) fn time(t: Option<Timestamp>) -> Value {
    t.map_or(Value::Null, |t| Value::Text(t.rfc3339()))
}

/// A count as INTEGER.
pub(super) fn int(n: u64) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}
