//! `walrust_verify`: the report, and its findings as rows.

use super::common::{self, int};
use crate::base::{Error, Result, quoted};
use crate::replica::{Check, Mode, Report, VerifyOptions, verify};
use crate::session::{self, engine};
use crate::sqlite::{Connection, Rows, Value};
use crate::store::{Store, block_on};
use std::path::Path;
use std::time::Duration;

/// Between two looks at what seems wrong: long enough for a merge or a removal under way to end.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// The report as one text.
pub(super) fn report(conn: &Connection, args: &[Value]) -> Result<Value> {
    Ok(Value::Text(run(conn, args)?.text().trim_end().to_string()))
}

/// One row per file, and per rule over all of them.
pub(super) fn findings(conn: &Connection, args: &[Option<Value>]) -> Result<Rows> {
    let report = run(conn, &common::plain(args))?;
    let txid = |t: Option<crate::base::TxId>| t.map_or(Value::Null, |t| Value::Integer(t.as_i64()));
    Ok(Box::new(report.findings.into_iter().map(move |f| {
        Ok(vec![
            Value::Text(f.severity.as_str().to_string()),
            Value::Text(f.check.as_str().to_string()),
            f.file.map_or(Value::Null, |id| Value::Text(id.to_string())),
            txid(f.txids.map(|(min, _)| min)),
            txid(f.txids.map(|(_, max)| max)),
            f.bytes.map_or(Value::Null, int),
            Value::Text(f.message),
        ])
    })))
}

fn run(conn: &Connection, args: &[Value]) -> Result<Report> {
    let mode = match common::text(args, 1, "the mode")? {
        None => Mode::Quick,
        Some(m) => Mode::parse(m).ok_or_else(|| {
            Error::config(format!(
                "the mode {} is not known; allowed: quick, sample (or 'sample 5%'), deep, fix",
                quoted(m)
            ))
        })?,
    };
    let store = common::store(conn, common::text(args, 0, "the replica URL")?)?;
    let report = match mode {
        Mode::Quick | Mode::Sample(_) | Mode::Deep => look(&store, mode)?,
        Mode::Fix => fix(&store, conn.main_db_path().as_deref())?,
    };
    // A place where nothing lies is a mistyped URL or a replica to be; damage needs something to be damaged.
    if report.exit_code() > 0 && report.findings.iter().any(|f| f.file.is_some()) {
        engine().tell_damage(store.url(), &session::damage(&report), session::details(&report));
    }
    Ok(report)
}

/// The manifest is changed only if there is reason to, and then by nobody else.
fn fix(store: &Store, of: Option<&Path>) -> Result<Report> {
    let first = look(store, Mode::Quick)?;
    if first.exit_code() == 0 {
        return Ok(first);
    }
    let _alone = engine().alone(store, of)?;
    look(store, Mode::Fix)
}

fn look(store: &Store, mode: Mode) -> Result<Report> {
    let store = &common::named(store.clone());
    let watched = engine().find_by_replica(store.url());
    // Beside the database there is room for a copy of it; a system's temporary directory may be memory.
    let work_dir = watched.map_or_else(std::env::temp_dir, |w| w.spool.dir().to_path_buf());
    let integrity = |p: &Path, c: Check| session::check_file(p, c);
    let options = VerifyOptions {
        mode,
        work_dir: Some(work_dir),
        integrity: Some(&integrity),
        pause: SECOND_LOOK,
        ..Default::default()
    };
    block_on(verify(store, &options))?
}
