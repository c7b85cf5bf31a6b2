//! When a configured database comes to be watched: with its first use, after the program's own first words.
//!
//! A program may say things of a new file before it writes to it that hold for good (`PRAGMA page_size`, `auto_vacuum`, `encoding`, a
//! cipher's key), and a connection may be opened long before it is used. So opening a file that is empty, or that cannot be read
//! without a key, changes nothing: a wish is noted ([`super::wish`]). At each [`Moment`] after that, [`decide`] tells from what the file has become
//! what to do. An existing database that can be read has nothing left to say: its watch begins as it is opened. Of one that is attached
//! nobody tells but the opening of its file ([`met`]); one that comes to be that way may be what `VACUUM INTO` writes, and is left alone. A
//! file that took the place of a watched one is wished for anew beside its watch.
//!
//! Rules:
//! * I-BEG-1: before the program's first commit to a new file nothing is written to that file, nor beside it.
//! * I-BEG-2: a journal mode that the program asked for stays; the status says that WAL is needed.
//! * I-BEG-3: nothing here waits for a store ([`Engine::watch_configured`]), and nothing fails the program's call.
//! * I-BEG-4: as long as a configured database that is open here is not watched, `walrust_status` has a row that says why.
//!
//! WAL mode is turned on through a connection of our own, on the program's thread, while the handle that it is about to use holds no
//! lock: SQLite then finds the file in WAL mode, as if another process had done it. An encrypted file cannot be changed without its
//! key. But SQLite also uses a WAL that it finds beside a database (`pagerOpenWalIfPresent` in its pager.c), so an empty one is put
//! there, under the file's EXCLUSIVE lock, once this process has shown that it can write the file.
//!
//! A crash leaves a file in rollback or in WAL mode, perhaps with an empty `-wal`: SQLite opens each.
//!
//! Refused: turning WAL mode on inside `sqlite3_open` for every file (page size, auto-vacuum and key come too late then); SQL on the
//! program's connection from inside a callback (SQLite is in the middle of a statement); a thread of our own that does it at some
//! moment (a program with one thread and no busy timeout would meet `SQLITE_BUSY`).

use super::access::FORMAT_VERSIONS;
use super::entry::Entry;
use super::registry::Engine;
use super::start::WatchRequest;
use super::watched::{Origin, Watched};
use super::wish::{FileKind, Inherited, Moment, Said, Step, Wanted, Why, decide};
use crate::base::{Error, Result, clock, lock, panics};
use crate::config::{Durability, Resolved, Settings, default_spool, embedded_replica};
use crate::spool::Spool;
use crate::sqlite::{Connection, HookedFile, RawDb, SqlConnection, SqlMode, put_empty_wal};
use crate::store::ReplicaUrl;
use std::path::Path;
use std::sync::Arc;

/// How a SQLite database file begins (<https://sqlite.org/fileformat2.html#magic_header_string>).
const MAGIC: &[u8] = b"SQLite format 3\0";
/// A watch request out of resolved settings. Errors when the replica's URL is none.
pub fn request<'a>(path: &'a Path, resolved: &Resolved, takeover: bool) -> Result<WatchRequest<'a>> {
    let replica = match &resolved.settings.replica {
        Some(r) => ReplicaUrl::parse(r)?,
        None => {
            let dir = embedded_replica(path);
            let dir = dir
                .to_str()
                .ok_or_else(|| Error::config("the database's path is not UTF-8; name a replica"))?;
            ReplicaUrl::parse(dir)?
        }
    };
    Ok(WatchRequest { path, settings: resolved.settings.clone(), replica, takeover })
}

/// A connection was opened, or loaded the extension: begins, or notes the wish. Never fails the program's call.
pub(super) fn opened(engine: &'static Engine, conn: &Connection) {
    let Some(path) = conn.main_db_path() else { return };
    // One that cannot write has nothing to tell, and its first read makes a WAL that it cannot remove.
    if conn.is_read_only() || super::follow::is_follower(&path) {
        return;
    }
    let entry = engine.entry(&path);
    let wanted = match engine.find(&path) {
        Some(w) => {
            note_other_uri(engine, &w, &path);
            wanted_again(&entry, &w)
        }
        None => wanted(engine, &path).filter(|_| match may_watch(conn) {
            Ok(()) => {
                engine.clear_failure(&path);
                true
            }
            Err(e) => {
                engine.note_failure(&path, &e);
                false
            }
        }),
    };
    let Some(wanted) = wanted else { return };
    entry.wish.set(Some(wanted));
    let Ok(kind) = kind_at(&path) else { return };
    if kind == FileKind::Opaque && was_streamed(engine, &path) {
        entry.wish.note(|wanted| wanted.wrote = true);
    }
    let said = Said { other_mode: entry.asked_for_other_mode(), ..Said::default() };
    match decide(Moment::Opened, kind, said) {
        // On the connection itself, which then has the wal-index mapped from the start: else one that asks for
        // locking_mode=EXCLUSIVE before its first read would keep it to itself.
        Step::SwitchBySql | Step::Start => {
            if let Err(e) = conn.set_wal_mode() {
                entry.wish.failed(entry.path(), e);
                return;
            }
            at(engine, &entry, Moment::Mapped, || Ok(FileKind::Wal));
            if let Err(e) = conn.hook("main") {
                log::warn!("walrust: {}: {e}", path.display());
            }
        }
        step => entry.wish.waits(step),
    }
}

/// What the configuration, or the parent's watch, wishes for the database at `path`. What is wrong with it is told.
fn wanted(engine: &Engine, path: &Path) -> Option<Wanted> {
    let inherited = lock(&engine.inherited).iter().find(|i| i.path == path).cloned();
    if inherited.is_some() {
        return Some(Wanted::new(inherited));
    }
    match engine.resolve(path, None) {
        Ok(r) => r.is_chosen().then(|| Wanted::new(None)),
        Err(e) => {
            log::error!("walrust: {} is not replicated: {e}", path.display());
            engine.note_failure(path, &e);
            None
        }
    }
}

/// A database file was opened, by a connection of its own, of which [`opened`] tells next, or by `ATTACH`, of which nothing else tells.
pub(super) fn met(engine: &'static Engine, entry: &Entry) {
    let path = entry.path();
    if entry.wish.is_open() || engine.find(path).is_some() || super::follow::is_follower(path) {
        return;
    }
    let Some(mut wanted) = wanted(engine, path) else { return };
    wanted.made_aside = std::fs::metadata(path).map_or(true, |m| m.len() == 0);
    if wanted.made_aside {
        wanted.waits(Why::MadeAside);
    }
    entry.wish.set(Some(wanted));
}

/// What the watch that there is wishes for the file at its path: where that is another than before, made anew, or copied there, it is to
/// be put into WAL mode as the first was.
fn wanted_again(entry: &Entry, w: &Watched) -> Option<Wanted> {
    match kind_at(w.path()).ok()? {
        FileKind::Wal => return None,
        FileKind::Opaque => {
            keep_in_wal_mode(w.path());
            return None;
        }
        FileKind::Empty | FileKind::Rollback => {}
    }
    if entry.asked_for_other_mode() || w.handles.is_exclusive() {
        return None;
    }
    let (settings, replica) = ((**w.settings()).clone(), w.replica().to_string());
    Some(Wanted::new(Some(Inherited { path: w.path().to_path_buf(), settings, replica })))
}

/// Errors when this connection's main database cannot be watched through it.
fn may_watch(conn: &Connection) -> Result<()> {
    conn.check_vfs("main")?;
    if conn.has_moved() {
        let moved =
            "the file was replaced or deleted since a connection of this program opened it: open it again";
        return Err(Error::config(moved));
    }
    Ok(())
}

/// A connection was opened whose URI names another replica than the configured one to which its database is streamed: that it
/// is not heeded is told. (What a call says goes before any URI.)
fn note_other_uri(engine: &Engine, w: &Watched, path: &Path) {
    if w.origin == Origin::Call {
        return;
    }
    let said = || -> Result<Option<String>> {
        match engine.entry(path).uri()? {
            Some(uri) if uri.names_replica() => {
                let resolved = engine.resolve(path, None)?;
                let Some(replica) = &resolved.settings.replica else { return Ok(None) };
                Ok(Some(ReplicaUrl::parse(replica)?.to_string()))
            }
            _ => Ok(None),
        }
    };
    match said() {
        Ok(Some(other)) if !w.ships_to(&other) => {
            let e = Error::config(format!(
                "a connection names the replica {other}, and the database is streamed to {} already; give all connections \
                 the same replica, or call walrust_unwatch() first",
                w.replica()
            ));
            log::error!("walrust: {}: {e}", path.display());
            engine.note_failure(path, &e);
        }
        Ok(_) => {}
        Err(e) => log::warn!("walrust: {}: {e}", path.display()),
    }
}

/// A file was opened that belongs to a VFS which is not SQLite's: if it is configured, that is told.
pub(super) fn left_alone(engine: &Engine, path: &Path, vfs: &str) {
    if engine.resolve(path, None).is_ok_and(|r| r.is_chosen()) {
        let why = crate::sqlite::left_alone(&path.display().to_string(), vfs);
        engine.note_failure(path, &Error::config(why));
    }
}

/// An encrypted file is in rollback mode again after each last close.
fn keep_in_wal_mode(path: &Path) {
    if let Err(e) = put_empty_wal(path) {
        log::info!("walrust: {}: not in WAL mode yet: {e}", path.display());
    }
}

/// Whether this machine has streamed the database before, so that its program is known to have the key.
fn was_streamed(engine: &Engine, path: &Path) -> bool {
    let dir = engine.resolve(path, None).ok().and_then(|r| r.settings.spool_dir);
    let dir = dir.unwrap_or_else(|| default_spool(path));
    dir.exists() && Spool::open(&dir).and_then(|s| s.position()).is_ok_and(|p| p.is_some())
}

fn kind_at(path: &Path) -> Result<FileKind> {
    let db = RawDb::open(path)?;
    kind_of(|buf, at| db.read_at(buf, at).map(drop), db.size()?)
}

impl Engine {
    /// Begins the watch that is configured for this connection's database, where a function needs it. `None` when nothing is
    /// configured. Errors with what is in the way.
    pub fn begin_now(&'static self, conn: &Connection, path: &Path) -> Result<Option<Arc<Watched>>> {
        let entry = self.entry(path);
        if !entry.wish.is_open() {
            return Ok(None);
        }
        if !conn.autocommit() {
            let why = entry.wish.row(path).map_or_else(String::new, |r| format!(" ({})", r.why));
            return Err(Error::config(format!("{}: not watched yet{why}; COMMIT first", path.display())));
        }
        conn.set_wal_mode()?;
        at(self, &entry, Moment::Mapped, || Ok(FileKind::Wal));
        conn.hook("main")?;
        match (self.find(path), entry.wish.row(path)) {
            (Some(w), _) => Ok(Some(w)),
            (None, Some(row)) => Err(Error::config(format!("{}: not watched: {}", path.display(), row.why))),
            (None, None) => Ok(None),
        }
    }
}

/// Something happened to a handle of a database that may be wished for. App's thread, inside SQLite.
pub(super) fn happened(engine: &'static Engine, entry: &Arc<Entry>, f: &HookedFile, moment: Moment) {
    at(engine, entry, moment, || kind_of(|buf, at| f.read_main_at(buf, at).map(drop), f.file_size()?));
}

fn kind_of(read: impl Fn(&mut [u8], u64) -> Result<()>, size: u64) -> Result<FileKind> {
    if size == 0 {
        return Ok(FileKind::Empty);
    }
    let mut magic = [0; 16];
    let mut versions = [0; 2];
    read(&mut magic, 0)?;
    read(&mut versions, FORMAT_VERSIONS)?;
    Ok(match versions {
        _ if magic != MAGIC => FileKind::Opaque,
        [2, 2] => FileKind::Wal,
        _ => FileKind::Rollback,
    })
}

/// One look. The program's threads take turns: who comes second waits until WAL mode is on, milliseconds, where it would meet a lock.
fn at(engine: &'static Engine, entry: &Arc<Entry>, moment: Moment, kind: impl FnOnce() -> Result<FileKind>) {
    let Some(mut turn) = entry.wish.turn(moment == Moment::BeforeLock) else { return };
    let Some(wanted) = turn.wanted() else { return };
    if entry.handles.is_exclusive() || moment != Moment::Mapped && !wanted.may_try(clock::uptime()) {
        return;
    }
    let Ok(kind) = kind() else { return };
    let path = entry.path();
    let said =
        Said { wrote: wanted.wrote, other_mode: entry.asked_for_other_mode(), made_aside: wanted.made_aside };
    let begun = match decide(moment, kind, said) {
        Step::Wait(why) => return wanted.waits(why),
        Step::SwitchBySql => caught(|| wal_by_sql(path).and_then(|()| start(engine, entry, wanted))),
        Step::SwitchByWal => caught(|| put_empty_wal(path).and_then(|()| start(engine, entry, wanted))),
        Step::Start => caught(|| start(engine, entry, wanted)),
    };
    match begun {
        Ok(w) => {
            turn.fulfilled();
            // (One that was there before has perhaps met the file in another mode.)
            w.look_again();
            if moment == Moment::AfterUnlock && w.settings().durability == Durability::Sync {
                first_commit_in_sync(&w);
            }
        }
        Err(e) => wanted.fails(path, e),
    }
}

/// A panic of ours is an error, and so a row of the status.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::caught(f).unwrap_or_else(|said| Err(panics::error(&said)))
}

/// Turns WAL mode on through a connection of our own. Errors with [`Kind::Retry`] while somebody else uses the file.
fn wal_by_sql(path: &Path) -> Result<()> {
    let own = SqlConnection::open(path, SqlMode::Guest)?;
    own.give_up_at_once();
    own.turn_wal_on()
}

fn start(engine: &'static Engine, entry: &Arc<Entry>, wanted: &Wanted) -> Result<Arc<Watched>> {
    let path = entry.path();
    let w = match &wanted.inherited {
        Some(Inherited { settings, replica, .. }) => {
            let (settings, replica): (Settings, _) = (settings.clone(), ReplicaUrl::parse(replica)?);
            engine.watch_configured(WatchRequest { path, settings, replica, takeover: false })?
        }
        None => {
            let resolved = engine.resolve(path, None)?;
            let w = engine.watch_configured(request(path, &resolved, false)?)?;
            engine.use_process_settings()?;
            w
        }
    };
    log::info!("walrust: {} -> {}", path.display(), w.replica());
    Ok(w)
}

/// The first transaction of a new file is written before there is a WAL, so under `durability = "sync"` it cannot be refused; but its
/// COMMIT returns only when the replica has it, or `sync_timeout` is over.
fn first_commit_in_sync(w: &Watched) {
    if let Err(e) = w.sync(w.settings().sync_timeout) {
        log::error!("walrust: {}: the first transaction is not in the replica: {e}", w.path().display());
    }
}
