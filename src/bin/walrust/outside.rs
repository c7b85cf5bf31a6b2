//! `walrust_status` for databases that other processes stream: what the process says of itself, else what the spool tells.
//!
//! Of the spool, small records are read, and it is asked who holds the ship lock; no lock is taken. What only the shipping process knows
//! (breaker, last error) is NULL then. `state` is `streaming` or `catching up` while a process ships, else `stopped`; it is `failed`
//! where the spool is another database's. Where the configuration names a replica, the numbers are of that one.

use crate::ask::{self, Said};
use crate::failure::Failure;
use crate::show::Table;
use rusqlite::types::Value;
use std::path::{Path, PathBuf};
use walrust::base::Timestamp;
use walrust::session::{SpoolState, engine};

const COLUMNS: [&str; 15] = [
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
    "health",
    "told_by",
    "as_of",
];

/// Who tells where no process was asked.
const BY_SPOOL: &str = "the spool";

/// Rows, and what is to be said of databases that have none.
pub struct Found {
    /// Like `walrust_status`; and whether it is well, who says so, and when that was so.
    pub table: Table,
    /// One line each.
    pub without: Vec<String>,
    /// Bytes that its process has uploaded so far, for each row; `None` where no process was asked.
    pub uploaded: Vec<Option<i64>>,
}

/// Of these databases, else of all that the configuration names.
pub fn status(databases: &[PathBuf]) -> Result<Found, Failure> {
    let mut paths = Vec::new();
    for path in databases {
        paths.push(path.canonicalize().map_err(|e| Failure::new(format!("{}: {e}", path.display())))?);
    }
    if databases.is_empty() {
        paths = engine().config()?.present()?.into_iter().map(|(path, _)| path).collect();
    }
    let said = if paths.is_empty() { None } else { ask::process() };
    let (mut rows, mut without, mut uploaded) = (Vec::new(), Vec::new(), Vec::new());
    for path in &paths {
        match said.as_ref().and_then(|s| told(s, path)) {
            Some((row, bytes)) => {
                rows.push(row);
                uploaded.push(bytes);
            }
            None => match row(path)? {
                Some(row) => {
                    rows.push(row);
                    uploaded.push(None);
                }
                None if databases.is_empty() => {}
                None => without.push(format!(
                    "{}: not streamed from here: {} is not there",
                    path.display(),
                    engine().spool_dir(path)?.display()
                )),
            },
        }
    }
    if rows.is_empty() && databases.is_empty() {
        without.push(
            "no database of walrust.toml is streamed from here; name one: walrust status DB".to_string(),
        );
    }
    let columns = COLUMNS.iter().map(ToString::to_string).collect();
    Ok(Found { table: Table { columns, rows }, without, uploaded })
}

/// What a process says of a database that it streams.
fn told(said: &Said, path: &Path) -> Option<(Vec<Value>, Option<i64>)> {
    let d = said.of(path.to_str()?)?;
    let teller = match d["told_by"].as_str() {
        None => format!("process {} at {}", said.pid, said.address),
        // (What the spool says can be read here.)
        Some(BY_SPOOL) => return None,
        Some(other) => format!("{other}, by way of process {} at {}", said.pid, said.address),
    };
    let value = |column: &&str| match *column {
        "told_by" => Value::Text(teller.clone()),
        "as_of" => Value::Text(said.now.clone()),
        name => match &d[name] {
            serde_json::Value::String(t) => Value::Text(t.clone()),
            serde_json::Value::Number(n) => {
                n.as_i64().map_or(Value::Real(n.as_f64().unwrap_or(0.0)), Value::Integer)
            }
            _ => Value::Null,
        },
    };
    Some((COLUMNS.iter().map(value).collect(), d["uploaded_bytes"].as_i64()))
}

/// What is wrong with a row, in one line; `None` where it is well.
pub fn complaint(row: &[Value], max_lag_s: Option<f64>) -> Option<String> {
    let at = |name: &str| COLUMNS.iter().position(|c| *c == name).and_then(|i| row.get(i));
    let text = |name: &str| match at(name) {
        Some(Value::Text(t)) => Some(t.as_str()),
        _ => None,
    };
    let lag_s = match at("lag_seconds") {
        Some(Value::Real(r)) => Some(*r),
        Some(Value::Integer(n)) => Some(*n as f64),
        _ => None,
    };
    let database = text("database")?;
    let why = || text("last_error").map(|e| format!(": {e}")).unwrap_or_default();
    match (text("health"), max_lag_s) {
        (Some("healthy"), None) => None,
        (Some("healthy"), Some(most)) => match lag_s {
            Some(lag) if lag <= most => None,
            Some(lag) => {
                Some(format!("{database}: the replica is {lag:.1} s behind, and --max-lag allows {most} s"))
            }
            None => Some(format!(
                "{database}: how far the replica is behind is not known (told by {}); set metrics_listen, so that the process can be asked",
                text("told_by").unwrap_or("nobody")
            )),
        },
        _ => Some(format!("{database}: {}{}", text("state").unwrap_or("not known"), why())),
    }
}

fn row(path: &Path) -> Result<Option<Vec<Value>>, Failure> {
    let Some(s) = engine().spooled(path)? else { return Ok(None) };
    let is_ours = s.state != SpoolState::Failed;
    let bytes = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    let text = |t: Option<String>| t.map_or(Value::Null, Value::Text);
    Ok(Some(vec![
        Value::Text(path.display().to_string()),
        text(s.replica),
        Value::Text(s.state.as_str().to_string()),
        Value::Integer(s.txid.as_i64()),
        Value::Integer(s.replicated.as_i64()),
        if s.is_even && is_ours { Value::Real(0.0) } else { Value::Null },
        bytes(s.pending_bytes),
        bytes(s.wal_bytes),
        bytes(s.spool_bytes),
        Value::Null,
        text(s.last_upload.map(Timestamp::rfc3339)),
        text(s.why),
        Value::Text(if s.is_well { "healthy" } else { "unhealthy" }.to_string()),
        Value::Text(BY_SPOOL.to_string()),
        text(s.changed.map(Timestamp::rfc3339)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_complained_of_where_it_is_not_well_or_too_late() {
        let row = |state: &str, health: &str, lag: Value, error: Value| {
            let value = |c: &&str| match *c {
                "database" => Value::Text("/x.db".into()),
                "state" => Value::Text(state.into()),
                "health" => Value::Text(health.into()),
                "lag_seconds" => lag.clone(),
                "last_error" => error.clone(),
                "told_by" => Value::Text(BY_SPOOL.into()),
                _ => Value::Null,
            };
            COLUMNS.iter().map(value).collect::<Vec<_>>()
        };
        let (none, some) = (Value::Null, |s: f64| Value::Real(s));
        for (row, max_lag_s, said) in [
            (row("streaming", "healthy", some(0.0), none.clone()), None, None),
            (row("streaming", "healthy", Value::Integer(0), none.clone()), Some(0.0), None),
            (row("catching up", "healthy", some(61.0), none.clone()), None, None),
            (row("catching up", "healthy", some(61.0), none.clone()), Some(60.0), Some("61.0 s behind")),
            (row("catching up", "healthy", none.clone(), none.clone()), None, None),
            (
                row("catching up", "healthy", none.clone(), none.clone()),
                Some(60.0),
                Some("told by the spool"),
            ),
            (row("stopped", "unhealthy", some(0.0), none.clone()), None, Some("/x.db: stopped")),
            (
                row("paused", "unhealthy", some(0.0), Value::Text("no store".into())),
                None,
                Some("paused: no store"),
            ),
            (row("streaming", "degraded", some(0.0), none.clone()), Some(9.0), Some("streaming")),
        ] {
            let got = complaint(&row, max_lag_s);
            assert_eq!(got.is_some(), said.is_some(), "{row:?}: {got:?}");
            assert!(got.unwrap_or_default().contains(said.unwrap_or_default()));
        }
    }
}
