//! `walrust_watch`, `walrust_unwatch`, `walrust_sync`, `walrust_snapshot`

use super::common;
use super::once::Done;
use crate::base::{Error, Result, TxId, clock, quoted};
use crate::config::{OptionSpec, Options, WithSettings};
use crate::session::{Identity, Replicas, engine, request};
use crate::sqlite::{Connection, Value};
use crate::store::ReplicaUrl;
use std::time::Duration;

/// A snapshot may be large: how long its function waits for it to be in the replica.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How long the change to WAL mode is tried while others use the file, beyond the connection's own busy timeout; and between two tries.
const MODE_PATIENCE: Duration = Duration::from_secs(2);
const MODE_PAUSE: Duration = Duration::from_millis(20);

/// Databases that were unwatched, and up to which TXID they are in their replica.
static UNWATCHED: Done<TxId> = Done::new();

/// Starts streaming this connection's main database.
pub(super) fn watch(conn: &Connection, args: &[Value]) -> Result<Value> {
    let url = common::text(args, 0, "the replica URL")?;
    let options = Options::parse(
        "options",
        common::text(args, 1, "options")?,
        &[OptionSpec::flag("takeover")],
        WithSettings::Yes,
    )?;
    let path = common::main_path(conn)?;
    conn.check_vfs("main")?;
    let mut layer = options.settings.clone();
    if let Some(url) = url {
        if url.trim().is_empty() {
            return Err(Error::config(
                "the replica URL is empty; give s3://, gs://, az://, file:// or a directory",
            ));
        }
        if layer.names_replica() {
            return Err(Error::config(
                "the replica is given twice, as the first argument and as option \"replica\"; give one",
            ));
        }
        // A plain path given in SQL is relative to where the process is, as in SQL's other file arguments.
        ReplicaUrl::parse(url)?;
        layer = layer.with_replica(url);
    }
    if let Some(said) = engine().said_by_calls(&path) {
        // Of what this call says nothing, a call before has said it: that stays in force.
        layer = layer.over(said);
    }
    let mut resolved = engine().resolve(&path, Some(&layer))?;
    if resolved.settings.replica.is_none()
        && let Some(w) = engine().find(&path)
    {
        // Named nowhere, and watched already: that replica is meant, not the embedded default.
        resolved = engine().resolve(&path, Some(&layer.clone().with_replica(w.replica())))?;
    }
    conn.hook("main")?;
    let req = request(&path, &resolved, options.flag("takeover"))?;
    let same = engine().find(&path).is_some_and(|w| w.replica() == req.replica.to_string() && !req.takeover);
    if conn.has_moved() {
        return Err(Error::config(format!(
            "{}: the file was replaced or deleted since this connection opened it; close the connection and open the database again",
            path.display()
        )));
    }
    if !same && !conn.autocommit() && !conn.is_wal()? {
        return Err(Error::config(format!(
            "{}: WAL mode must be turned on, and cannot be inside a transaction; COMMIT first, or run PRAGMA journal_mode=WAL once",
            path.display()
        )));
    }
    if !same && conn.locking_mode()?.eq_ignore_ascii_case("exclusive") {
        return Err(Error::config(
            "locking_mode is EXCLUSIVE, in which walrust cannot read the database; set PRAGMA locking_mode=NORMAL, read once, then watch",
        ));
    }
    // A first read makes the file's header and the wal-index known.
    conn.touch()?;
    UNWATCHED.forget(&path);
    let (w, identity) = engine().watch(req, &|| {
        wal_mode(conn)?;
        conn.touch()
    })?;
    // Synchronous durability wants the WAL's handle, too, and that is open only now.
    conn.hook("main")?;
    engine().use_settings(&path, resolved, layer)?;
    let how = match identity {
        Identity::Already => "already streaming",
        Identity::New => "streaming from a first snapshot",
        Identity::Continued(_) => "continuing",
        Identity::Standby if w.ships_elsewhere().is_some() => {
            "standby, another process ships to another replica"
        }
        Identity::Standby => "standby, another process ships",
        Identity::Unanswered => "the replica has not answered yet; commits are kept, and leave when it does",
    };
    let at = match identity {
        Identity::Continued(txid) => format!(" at TXID {txid}"),
        _ => String::new(),
    };
    Ok(Value::Text(format!("{} -> {} ({how}{at})", path.display(), w.replica())))
}

/// Ships what is pending and stops.
pub(super) fn unwatch(conn: &Connection, _args: &[Value]) -> Result<Value> {
    if let Some(path) = conn.main_db_path()
        && engine().find(&path).is_none()
        && engine().cancel_renewal(&path)
    {
        return Ok(Value::Integer(0));
    }
    let path = conn.main_db_path().unwrap_or_default();
    if let (None, Some(txid)) = (engine().find(&path), UNWATCHED.known(&path)) {
        return Ok(Value::Integer(txid.as_i64()));
    }
    let w = common::watched(conn)?;
    let txid = engine().unwatch(&w, w.settings().sync_timeout)?;
    UNWATCHED.note(w.path(), txid);
    Ok(Value::Integer(txid.as_i64()))
}

/// Returns when every commit made before the call is durable in the replica.
pub(super) fn sync(conn: &Connection, args: &[Value]) -> Result<Value> {
    let w = common::watched(conn)?;
    let timeout = match args.first() {
        None | Some(Value::Null) => w.settings().sync_timeout,
        Some(v) => common::timeout(v)?,
    };
    // Makes the wal-index known on a connection that has read nothing yet; what is wrong with it shows elsewhere.
    drop(conn.touch());
    Ok(Value::Integer(w.sync_to(timeout, replicas(args.get(1))?)?.as_i64()))
}

/// In how many of its replicas what is committed is to be.
fn replicas(said: Option<&Value>) -> Result<Replicas> {
    let wrong = |given: &str| {
        let allowed = "'any', 'all', or how many of the replica and its mirrors";
        Err(Error::config(format!("walrust_sync: the replicas to wait for are {given}; allowed: {allowed}")))
    };
    match said {
        None | Some(Value::Null) => Ok(Replicas::Own),
        Some(Value::Text(t)) if t == "all" => Ok(Replicas::All),
        Some(Value::Text(t)) if t == "any" => Ok(Replicas::Any),
        Some(Value::Text(t)) => wrong(&quoted(t)),
        Some(v) => match common::whole_number(v).map(usize::try_from) {
            Some(Ok(n)) => Ok(Replicas::AtLeast(n)),
            _ => wrong(v.type_name()),
        },
    }
}

/// Turns WAL mode on, however many others do so at this moment: SQLite asks no busy handler then. Errors with what SQLite says, once
/// [`MODE_PATIENCE`] is over.
fn wal_mode(conn: &Connection) -> Result<()> {
    let end = clock::uptime() + MODE_PATIENCE;
    loop {
        match conn.set_wal_mode() {
            Err(e) if e.is_retry() && clock::uptime() < end => clock::sleep(MODE_PAUSE),
            done => return done,
        }
    }
}

/// A full snapshot now: in the replica, or as a copy at another URL.
pub(super) fn snapshot(conn: &Connection, args: &[Value]) -> Result<Value> {
    let w = common::watched(conn)?;
    let to = common::text(args, 0, "the replica URL")?.map(ReplicaUrl::parse).transpose()?;
    Ok(Value::Integer(engine().snapshot(&w, to.as_ref(), SNAPSHOT_TIMEOUT)?.as_i64()))
}
