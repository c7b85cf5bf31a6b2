//! `walrust_status` for databases that other processes stream: what their spools tell.
//!
//! Reads small records and asks who holds the ship lock; takes no lock. What only the shipping process knows
//! (breaker, last error) is NULL. `state` is `streaming` or `catching up` while a process ships, else `stopped`; it is `failed`
//! where the spool is another database's. Where the configuration names a replica, the numbers are of that one.

use crate::failure::Failure;
use crate::show::Table;
use rusqlite::types::Value;
use std::path::{Path, PathBuf};
use walrust::session::{engine, request, same_replica};
use walrust::spool::{FileStamp, Handoff, Owner, Position, Spool};

const COLUMNS: [&str; 12] = [
    "database",
    "replica",
    "state",
    "txid",
    "replicated_txid",
    "lag_seconds",
    "pending_bytes",
    "wal_bytes",
    "spool_bytes",
    "breaker",
    "last_upload",
    "last_error",
];

/// Rows, and what to say if there are none.
pub struct Found {
    /// Like `walrust_status`.
    pub table: Table,
    /// One line.
    pub without: String,
}

/// Of one database, else of all that the configuration names.
pub fn status(database: Option<&Path>) -> Result<Found, Failure> {
    let (paths, without) = match database {
        Some(path) => {
            let real = path.canonicalize().map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
            let without = format!(
                "{}: not streamed from here: {} is not there",
                path.display(),
                engine().spool_dir(&real)?.display()
            );
            (vec![real], without)
        }
        None => {
            let paths: Vec<PathBuf> =
                engine().config()?.present()?.into_iter().map(|(path, _)| path).collect();
            (
                paths,
                "no database of walrust.toml is streamed from here; name one: walrust status DB".to_string(),
            )
        }
    };
    let mut rows = Vec::new();
    for path in paths {
        rows.extend(row(&path)?);
    }
    let columns = COLUMNS.iter().map(ToString::to_string).collect();
    Ok(Found { table: Table { columns, rows }, without })
}

fn row(path: &Path) -> Result<Option<Vec<Value>>, Failure> {
    let dir = engine().spool_dir(path)?;
    if !dir.is_dir() {
        return Ok(None);
    }
    if let Err(e) = Owner::of(path).check(&dir) {
        let text = Value::Text;
        let none = || Value::Integer(0);
        return Ok(Some(vec![
            text(path.display().to_string()),
            Value::Null,
            text("failed".to_string()),
            none(),
            none(),
            Value::Null,
            none(),
            none(),
            none(),
            Value::Null,
            Value::Null,
            text(e.to_string()),
        ]));
    }
    let spool = Spool::open(&dir)?;
    let position = spool.position()?;
    let wanted = wanted(path)?;
    let is_wanted = |replica: &str| wanted.as_ref().is_none_or(|w| same_replica(w, replica));
    let shipped = spool.shipped()?.filter(|s| is_wanted(&s.replica));
    let elsewhere = spool.shipping()?.filter(|s| !is_wanted(&s.replica));
    let txid = position.as_ref().map(|p| p.txid).unwrap_or_default();
    let replicated = shipped.as_ref().map(|s| s.txid).unwrap_or_default();
    let waits = txid > replicated || position.as_ref().is_some_and(|p| p.pieces > 0);
    let shipper = spool.ship_lock().holder()?.filter(|_| elsewhere.is_none());
    let state = match (shipper, waits) {
        (None, _) => "stopped".to_string(),
        (Some(_), true) => "catching up".to_string(),
        (Some(_), false) => "streaming".to_string(),
    };
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let is_as_left = position.as_ref().is_some_and(|p| is_as_closed(p, path, Path::new(&wal)));
    // Who does not stream it knows of no commit that is in no file of the spool yet.
    let is_even = !waits && (shipper.is_some() || is_as_left);
    let note = match elsewhere {
        Some(s) => Some(format!("{} of this machine ships this database to {}", s.process(), s.replica)),
        None if shipper.is_none() && !is_as_left => Some(
            "nobody streams it, and it was changed since it last was, or its last program did not close it: what the replica lacks is \
             known when it is streamed again"
                .to_string(),
        ),
        None => None,
    };
    let bytes = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    let text = |t: Option<String>| t.map_or(Value::Null, Value::Text);
    Ok(Some(vec![
        Value::Text(path.display().to_string()),
        text(shipped.as_ref().map(|s| s.replica.clone()).or(wanted)),
        Value::Text(state),
        Value::Integer(txid.as_i64()),
        Value::Integer(replicated.as_i64()),
        if is_even { Value::Real(0.0) } else { Value::Null },
        bytes(spool.bytes_waiting()),
        bytes(std::fs::metadata(&wal).map(|m| m.len()).unwrap_or(0)),
        bytes(spool.bytes()),
        Value::Null,
        text(shipped.map(|s| s.time.rfc3339())),
        text(note),
    ]))
}

/// Whether the database is as the last close of a program with walrust left it: everything in the file, and that unchanged.
fn is_as_closed(p: &Position, path: &Path, wal: &Path) -> bool {
    let Handoff::Closed(stamp) = p.handoff else { return false };
    std::fs::metadata(wal).map_or(true, |m| m.len() == 0) && FileStamp::of(path).is_ok_and(|now| now == stamp)
}

/// The replica that the configuration names for the database, in its canonical form.
fn wanted(path: &Path) -> Result<Option<String>, Failure> {
    let resolved = engine().resolve(path, None)?;
    if resolved.settings.replica.is_none() {
        return Ok(None);
    }
    Ok(Some(request(path, &resolved, false)?.replica.to_string()))
}
