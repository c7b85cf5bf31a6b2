//! Drills ([`crate::replica::drill`]) with what this process has: a look at the database itself, SQLite for the restored file, the spool for the
//! history, webhooks and metrics. By call, and for a watched database each `drill_interval` on a thread of their own (`walrust-drill`),
//! the newest state and one drawn by chance in turn.
//!
//! The history is kept where the database is, in its spool (`drills`): the replica is only read, so that a reader's rights are enough. Of a
//! replica whose database is not here, the process remembers its own drills.

use super::job::Job;
use super::reread::at_a_txid;
use super::watched::Watched;
use super::work::Work;
use crate::base::event::EventKind;
use crate::base::{Error, ForkSafe, Kind, Result, Timestamp, clock, lock};
use crate::replica::drill::{About, Aim, DrillOptions, Drilled, Live, Part, Reads, drill};
use crate::replica::encrypted::is_encrypted;
use crate::replica::{Check, Point};
use crate::spool::{DrillNote, PageSums, Spool, remove_if_there};
use crate::sqlite::{SqlConnection, SqlMode, Value, despite_forks};
use crate::store::{Store, block_on};
use serde_json::json;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Drills of replicas whose database is not here that a process remembers.
const REMEMBERED: usize = 64;
/// How long a drill waits for whoever reads the database, before it goes without a comparison.
const READING_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at what seems to be wrong with a replica that is written meanwhile.
const SECOND_LOOK: Duration = Duration::from_secs(1);

static ELSEWHERE: ForkSafe<Mutex<VecDeque<DrillNote>>> = ForkSafe::new(Mutex::default);

/// What is asked of a drill.
#[derive(Clone, Debug)]
pub struct DrillRequest {
    /// Which state.
    pub aim: Aim,
    /// How much is read.
    pub reads: Reads,
    /// Statements that must each give one true row.
    pub assertions: Vec<String>,
}

/// One row of the history.
#[derive(Clone, Debug)]
pub struct DrillRow {
    /// The database, if it is here.
    pub database: Option<PathBuf>,
    /// What was noted.
    pub note: DrillNote,
}

/// Drills the replica in `store`; `watched`: the database that this process streams there; `spool_dir`: where the spool of the database lies, if
/// that is here and not watched. What came of it is noted, and told where the database is watched. Errors as [`drill`] does.
pub fn run(
    store: &Store,
    watched: Option<&Arc<Watched>>,
    spool_dir: Option<&Path>,
    request: &DrillRequest,
) -> Result<Drilled> {
    let (aim, live) = match (watched, request.aim) {
        (Some(w), Aim::At(Point::Latest)) => live(w),
        (Some(w), aim) => {
            w.have_named();
            (aim, Live::Unknown)
        }
        (None, aim) => (aim, Live::Unknown),
    };
    let opened;
    let spool = match (watched, spool_dir.filter(|dir| dir.is_dir())) {
        (Some(w), _) => Some(w.spool.as_ref()),
        (None, Some(dir)) => {
            opened = Spool::open(dir)?;
            Some(&opened)
        }
        (None, None) => None,
    };
    // Beside the database there is room for a copy of it; a system's temporary directory may be memory.
    let work_dir = spool.map_or_else(std::env::temp_dir, |s| s.dir().to_path_buf());
    let inspect = |path: &Path| inspect(path, &request.assertions);
    let options = DrillOptions {
        aim,
        reads: request.reads,
        work_dir,
        inspect: &inspect,
        integrity: &check_file,
        live,
        pause: SECOND_LOOK,
    };
    let done = block_on(drill(store, &options)).and_then(|done| done);
    note(spool, &note_of(store, &done));
    if let (Some(w), Ok(drilled)) = (watched, &done) {
        tell(w, drilled);
    }
    done
}

fn note_of(store: &Store, done: &Result<Drilled>) -> DrillNote {
    let replica = store.url().to_string();
    match done {
        Ok(d) => DrillNote {
            replica,
            time: d.began.0,
            txid: d.state.map(|(txid, _)| txid.0),
            seconds: d.took.as_secs_f64(),
            bytes: d.bytes,
            result: if d.has_passed() { "passed" } else { "failed" }.to_string(),
            message: d.message(),
        },
        Err(e) => DrillNote {
            replica,
            time: clock::now().0,
            txid: None,
            seconds: 0.0,
            bytes: 0,
            result: "error".to_string(),
            message: e.to_string(),
        },
    }
}

fn note(spool: Option<&Spool>, note: &DrillNote) {
    let Some(spool) = spool else {
        let mut all = ELSEWHERE.lock();
        if all.len() >= REMEMBERED {
            all.pop_front();
        }
        all.push_back(note.clone());
        return;
    };
    if let Err(e) = spool.note_drill(note) {
        log::warn!("walrust: a drill could not be noted: {e}");
    }
}

fn tell(w: &Watched, drilled: &Drilled) {
    let context = json!({
        "replica": drilled.replica,
        "txid": drilled.state.map(|(txid, _)| txid.0),
        "seconds": drilled.took.as_secs_f64(),
        "bytes": drilled.bytes,
    });
    w.metrics.drilled(drilled.has_passed(), drilled.took);
    if drilled.has_passed() {
        if lock(&w.drill_finding).take().is_some() {
            w.tell(EventKind::Recovered, "a drill passes again".to_string(), context);
        }
        return;
    }
    let message = format!("a drill of the replica failed: {}", drilled.message());
    log::error!("walrust: {}: {message}", w.path().display());
    *lock(&w.drill_finding) = Some(message.clone());
    w.tell(EventKind::DrillFailed, message, context);
}

/// The history of drills: of watched databases, of the database at `path` whose spool is `dir`, and this process's own of other replicas.
pub fn history(watched: &[Arc<Watched>], other: Option<(&Path, &Path)>) -> Result<Vec<DrillRow>> {
    let mut rows = Vec::new();
    let mut add = |database: Option<&Path>, notes: Vec<DrillNote>| {
        let database = database.map(Path::to_path_buf);
        rows.extend(notes.into_iter().map(|note| DrillRow { database: database.clone(), note }));
    };
    for w in watched {
        add(Some(w.path()), w.spool.drills()?);
    }
    if let Some((path, dir)) = other
        && dir.is_dir()
        && !watched.iter().any(|w| w.path() == path)
    {
        add(Some(path), Spool::open(dir)?.drills()?);
    }
    add(None, ELSEWHERE.lock().iter().cloned().collect());
    rows.sort_by_key(|r| r.note.time);
    Ok(rows)
}

/// What the database is at a TXID that the replica has, and that TXID; the newest state, and nothing to compare, where that cannot be had.
fn live(w: &Arc<Watched>) -> (Aim, Live) {
    let read = || -> Result<Live> {
        let live = read_live(w)?;
        w.sync(w.settings().sync_timeout)?;
        Ok(live)
    };
    let found = if w.ships() { read() } else { Ok(Live::Unknown) };
    w.have_named();
    match found {
        Ok(Live::Is(txid, sum)) => (Aim::At(Point::TxId(txid)), Live::Is(txid, sum)),
        Ok(Live::Unknown) => (Aim::At(Point::Latest), Live::Unknown),
        Err(e) => {
            log::info!("walrust: {}: the drill goes without a comparison: {e}", w.path().display());
            (Aim::At(Point::Latest), Live::Unknown)
        }
    }
}

/// Reads the database whole, at a TXID.
fn read_live(w: &Arc<Watched>) -> Result<Live> {
    let Some(_ticket) = Work::take_within(w, Job::Reading, READING_PATIENCE) else {
        return Err(Error::new(Kind::Retry, "somebody else reads the database at this moment"));
    };
    let beside = w.spool.dir().join(format!(".tmp-{}-drill.sum", std::process::id()));
    remove_if_there(&beside)?;
    let read = at_a_txid(w, |view, p| {
        let checksum = view.scan(&PageSums::open(&beside)?, |_, _| {})?;
        Ok(Live::Is(p.txid, checksum))
    });
    remove_if_there(&beside)?;
    read
}

/// `PRAGMA quick_check` or `integrity_check` of a file that nobody else uses. Errors with [`Kind::Corrupt`] and SQLite's first findings, and
/// where SQLite cannot be asked.
pub fn check_file(path: &Path, check: Check) -> Result<()> {
    despite_forks(|| {
        let conn = SqlConnection::open(path, SqlMode::Owner)?;
        match check {
            Check::None => Ok(()),
            Check::Quick => conn.quick_check(),
            Check::Full => conn.integrity_check(),
        }
    })
}

/// What SQLite says of a restored file. Errors where it could not be asked.
fn inspect(path: &Path, assertions: &[String]) -> Result<Vec<Part>> {
    if is_encrypted(path)? {
        let text = "not checked: the database is encrypted, or none of SQLite's; its checksums are right";
        let mut parts = vec![Part::untried(About::Integrity, text)];
        let unasked = || Err("it cannot be asked of an encrypted database".to_string());
        parts.extend(assertions.iter().map(|sql| Part::assertion(sql, unasked())));
        return Ok(parts);
    }
    despite_forks(|| {
        let conn = SqlConnection::open(path, SqlMode::Owner)?;
        let mut parts = vec![match conn.integrity_check() {
            Ok(()) => Part::well(About::Integrity, "PRAGMA integrity_check: ok"),
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Sqlite) => {
                Part::wrong(About::Integrity, e.to_string())
            }
            Err(e) => return Err(e),
        }];
        conn.exec("PRAGMA query_only=ON")?;
        for sql in assertions {
            parts.push(Part::assertion(sql, ask(&conn, sql)?));
        }
        Ok(parts)
    })
}

/// Whether a statement gives one true row; why it cannot be told. Errors where SQLite could not be asked.
fn ask(conn: &SqlConnection, sql: &str) -> Result<std::result::Result<bool, String>> {
    let statement = sql.trim().trim_end_matches(';');
    // (Two rows are enough to know that there is not one; and what is in parentheses is one SELECT.)
    match conn.query(&format!("SELECT * FROM (\n{statement}\n) LIMIT 2")) {
        Ok(rows) => Ok(match rows.as_slice() {
            [row] => Ok(row.first().is_some_and(is_true)),
            [] => Err("it gives no row; one is wanted".to_string()),
            _ => Err("it gives more than one row; one is wanted".to_string()),
        }),
        Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Sqlite | Kind::Config) => Ok(Err(e.to_string())),
        Err(e) => Err(e),
    }
}

/// As SQLite takes a value in WHERE.
fn is_true(v: &Value) -> bool {
    match v {
        Value::Integer(n) => *n != 0,
        Value::Real(r) => *r != 0.0,
        Value::Text(t) => t.trim().parse::<f64>().is_ok_and(|r| r != 0.0),
        Value::Null | Value::Blob(_) => false,
    }
}

/// How long ago the replica was last drilled, by whatever process: a program may live for a second. The first look begins the count.
pub(super) fn last_drilled(w: &Watched) -> Option<Timestamp> {
    let noted = w.spool.last_drill(w.replica()).ok().flatten();
    if noted.is_none() {
        let begun = DrillNote::begun(w.replica(), clock::now());
        if let Err(e) = w.spool.note_drill(&begun) {
            log::debug!("walrust: {}: {e}", w.path().display());
        }
    }
    noted
}

/// One that is due by the clock.
pub(super) fn scheduled(w: &Arc<Watched>) {
    let turn = w.spool.drills().map_or(0, |d| d.len());
    let aim = if turn.is_multiple_of(2) { Aim::At(Point::Latest) } else { Aim::Drawn(clock::random_u64()) };
    let request = DrillRequest { aim, reads: Reads::BySize, assertions: Vec::new() };
    if let Err(e) = run(&w.store, Some(w), None, &request) {
        // Not the replica's fault: the uploads' own state says what is wrong with the store.
        log::warn!("walrust: {}: a drill could not be done: {e}", w.path().display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_true_in_sql_is_true() {
        for (v, want) in [
            (Value::Integer(1), true),
            (Value::Integer(-7), true),
            (Value::Integer(0), false),
            (Value::Real(0.5), true),
            (Value::Real(0.0), false),
            (Value::Text("1".into()), true),
            (Value::Text("yes".into()), false),
            (Value::Null, false),
            (Value::Blob(vec![1]), false),
        ] {
            assert_eq!(is_true(&v), want, "{v:?}");
        }
    }
}
