//! When a configured database comes to be watched: with its first use, after the program's own first words.
//!
//! A program may say things of a new file before it writes to it that hold for good (`PRAGMA page_size`, `auto_vacuum`, `encoding`, a
//! cipher's key), and a connection may be opened long before it is used. So opening a file that is empty, or that cannot be read
//! without a key, changes nothing: a [`Wish`] is noted. At each [`Moment`] after that, [`decide`] tells from what the file has become
//! what to do. An existing database that can be read has nothing left to say: its watch begins as it is opened.
//!
//! Rules:
//! * I-BEG-1: before the program's first commit to a new file nothing is written to that file, nor beside it.
//! * I-BEG-2: a journal mode that the program asked for stays; the status says that WAL is needed.
//! * I-BEG-3: nothing here waits for a store ([`Watched::start_configured`]), and nothing fails the program's call.
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

use super::engine::{Inherited, engine, generation, lock};
use super::entry::{Entry, FORMAT_VERSIONS};
use super::host::request;
use super::joined::Joined;
use super::start::{WatchRequest, default_spool};
use super::watched::{Role, Watched};
use crate::base::{Error, Result, clock, panics};
use crate::config::{Durability, Settings};
use crate::spool::Spool;
use crate::sqlite::{Connection, FileLock, HookedFile, RawDb, SqlConnection, SqlMode, put_empty_wal};
use crate::store::ReplicaUrl;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a SQLite database file begins (<https://sqlite.org/fileformat2.html#magic_header_string>).
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Between two tries of what failed: doubled after each, up to the second.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long the last close waits for a watch that has just begun.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// It holds nothing yet.
    Empty,
    /// A database in WAL mode.
    Wal,
    /// A database in rollback mode.
    Rollback,
    /// It does not begin as SQLite's files do: encrypted, or no database.
    Opaque,
}

/// When something may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A connection was opened or loaded the extension; SQL may be run on it.
    Opened,
    /// A handle that holds no lock is about to take one.
    BeforeLock,
    /// A handle has given its last lock back.
    AfterUnlock,
    /// A handle has the wal-index mapped: the file is in WAL mode, whatever its bytes say.
    Mapped,
}

/// What the program has done and said, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It has written to the file in rollback mode, or was streamed from this machine before.
    pub(super) wrote: bool,
    /// It has asked for a journal mode other than WAL.
    pub(super) other_mode: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    Wait(Why),
    /// Turn WAL mode on by SQL, then start.
    SwitchBySql,
    /// Put an empty WAL beside the file, then start.
    SwitchByWal,
    /// Start.
    Start,
}

/// Why nothing is begun yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing is in it.
    Empty,
    /// No key is known to us, and the program has not written yet.
    Opaque,
    /// The program wants another journal mode.
    OtherMode,
}

impl Why {
    /// One line for the status.
    pub(super) fn text(self) -> &'static str {
        match self {
            Why::Empty => "the database is empty: it is watched from its first commit on",
            Why::Opaque => {
                "the database is encrypted, or no SQLite database: it is watched once this program reads it in WAL mode, or has written \
                 to it"
            }
            Why::OtherMode => {
                "the program set another journal mode, and only what is committed in WAL mode can be replicated: set PRAGMA \
                 journal_mode=WAL"
            }
        }
    }
}

/// The decision. Reads nothing, changes nothing.
pub(super) fn decide(moment: Moment, kind: FileKind, said: Said) -> Step {
    match (moment, kind) {
        (Moment::Mapped, _) | (_, FileKind::Wal) => Step::Start,
        (_, FileKind::Empty) => Step::Wait(Why::Empty),
        (_, FileKind::Rollback | FileKind::Opaque) if said.other_mode => Step::Wait(Why::OtherMode),
        (_, FileKind::Rollback) => Step::SwitchBySql,
        (Moment::Opened, FileKind::Opaque) => Step::Wait(Why::Opaque),
        (_, FileKind::Opaque) if said.wrote => Step::SwitchByWal,
        (_, FileKind::Opaque) => Step::Wait(Why::Opaque),
    }
}

/// A configured database that is open here and not watched yet.
#[derive(Debug, Default)]
pub(super) struct Wish {
    /// Whether there is one: what the program's threads look at first.
    is_open: AtomicBool,
    at: Mutex<Option<Wanted>>,
}

/// A wish while something else is tried in its place.
#[derive(Debug)]
pub(super) struct SetAside(Option<Wanted>);

#[derive(Debug)]
struct Wanted {
    /// Watched by the parent when it forked, with these settings; else the configuration tells.
    inherited: Option<Inherited>,
    said: Said,
    last: Last,
    /// Uptime before which nothing is tried again, and how long the next pause is.
    not_before: Duration,
    pause: Duration,
}

/// What came of the last look.
#[derive(Debug)]
enum Last {
    Waits(Why),
    Failed(Error),
}

/// A row of `walrust_status` for a database that is not watched yet.
#[derive(Debug)]
pub struct WishRow {
    /// Path of the database.
    pub database: PathBuf,
    /// Whether something is wrong: else it is waited for.
    pub is_failed: bool,
    /// What is wrong, or waited for.
    pub why: String,
}

impl Wish {
    /// Whether there is a wish: cheap.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    fn set(&self, wanted: Option<Wanted>) {
        let mut at = lock(&self.at);
        self.is_open.store(wanted.is_some(), Ordering::Release);
        *at = wanted;
    }

    /// It is watched, or nobody has it open any more.
    pub(super) fn close(&self) {
        if self.is_open() {
            self.set(None);
        }
    }

    /// Sets it aside.
    pub(super) fn take(&self) -> SetAside {
        let mut at = lock(&self.at);
        self.is_open.store(false, Ordering::Release);
        SetAside(at.take())
    }

    /// What took its place did not come to be.
    pub(super) fn put_back(&self, SetAside(wanted): SetAside) {
        if wanted.is_some() {
            self.set(wanted);
        }
    }

    /// Takes note of what the program does.
    pub(super) fn note(&self, f: impl FnOnce(&mut Said)) {
        if let Some(wanted) = lock(&self.at).as_mut() {
            f(&mut wanted.said);
        }
    }

    /// What the status says.
    pub(super) fn row(&self, path: &Path) -> Option<WishRow> {
        let at = lock(&self.at);
        let (is_failed, why) = match &at.as_ref()?.last {
            Last::Waits(Why::OtherMode) => (true, Why::OtherMode.text().to_string()),
            Last::Waits(why) => (false, why.text().to_string()),
            // Somebody else uses the file at this moment.
            Last::Failed(e) if e.is_retry() => (false, format!("{e}; tried again at the next use")),
            Last::Failed(e) => (true, e.to_string()),
        };
        Some(WishRow { database: path.to_path_buf(), is_failed, why })
    }
}

/// A connection was opened, or loaded the extension: begins, or notes the wish. Never fails the program's call.
pub(super) fn opened(conn: &Connection) {
    let Some(path) = conn.main_db_path() else { return };
    // One that cannot write has nothing to tell, and its first read makes a WAL that it cannot remove.
    if conn.is_read_only() || super::follow::is_follower(&path) {
        return;
    }
    if let Some(w) = engine().find(&path) {
        keep_in_wal_mode(&path);
        super::whose::note_other_uri(&w, &path);
        return;
    }
    let entry = engine().entry(&path);
    let inherited = lock(&engine().inherited).iter().find(|i| i.path == path).cloned();
    if inherited.is_none() {
        match engine().resolve(&path, None) {
            Ok(r) if r.is_chosen() => {}
            Ok(_) => return,
            Err(e) => {
                log::error!("walrust: {} is not replicated: {e}", path.display());
                engine().note_failure(&path, &e);
                return;
            }
        }
    }
    if let Err(e) = conn.check_vfs("main") {
        engine().note_failure(&path, &e);
        return;
    }
    engine().clear_failure(&path);
    if conn.has_moved() {
        let moved =
            "the file was replaced or deleted since a connection of this program opened it: open it again";
        engine().note_failure(&path, &Error::config(moved));
        return;
    }
    entry.wish.set(Some(Wanted {
        inherited,
        said: Said::default(),
        last: Last::Waits(Why::Empty),
        not_before: Duration::ZERO,
        pause: PAUSE,
    }));
    let Ok(kind) = kind_at(&path) else { return };
    if kind == FileKind::Opaque && was_streamed(&path) {
        entry.wish.note(|said| said.wrote = true);
    }
    match decide(Moment::Opened, kind, Said::default()) {
        // On the connection itself, which then has the wal-index mapped from the start: else one that asks for
        // locking_mode=EXCLUSIVE before its first read would keep it to itself.
        Step::SwitchBySql | Step::Start => {
            if let Err(e) = conn.set_wal_mode() {
                entry.wish.failed(&entry, e);
                return;
            }
            at(&entry, Moment::Mapped, || Ok(FileKind::Wal));
            if let Err(e) = conn.hook("main") {
                log::warn!("walrust: {}: {e}", path.display());
            }
        }
        step => entry.wish.waits(step),
    }
}

/// A file was opened that belongs to a VFS which is not SQLite's: if it is configured, that is told.
pub(super) fn left_alone(path: &Path, vfs: &str) {
    if engine().resolve(path, None).is_ok_and(|r| r.is_chosen()) {
        let why = crate::sqlite::left_alone(&path.display().to_string(), vfs);
        engine().note_failure(path, &Error::config(why));
    }
}

/// An encrypted file is in rollback mode again after each last close.
fn keep_in_wal_mode(path: &Path) {
    if kind_at(path).is_ok_and(|kind| kind == FileKind::Opaque)
        && let Err(e) = put_empty_wal(path)
    {
        log::info!("walrust: {}: not in WAL mode yet: {e}", path.display());
    }
}

/// Whether this machine has streamed the database before, so that its program is known to have the key.
fn was_streamed(path: &Path) -> bool {
    let dir = engine().resolve(path, None).ok().and_then(|r| r.settings.spool_dir);
    let dir = dir.unwrap_or_else(|| default_spool(path));
    dir.exists() && Spool::open(&dir).and_then(|s| s.position()).is_ok_and(|p| p.is_some())
}

fn kind_at(path: &Path) -> Result<FileKind> {
    let db = RawDb::open(path)?;
    kind_of(|buf, at| db.read_at(buf, at).map(drop), db.size()?)
}

/// Begins the watch that is configured for this connection's database, where a function needs it, and waits for the store's answer.
/// `None` when nothing is configured. Errors with what is in the way.
pub fn begin_now(conn: &Connection, path: &Path) -> Result<Option<Arc<Watched>>> {
    let entry = engine().entry(path);
    if !entry.wish.is_open() {
        return Ok(None);
    }
    if !conn.autocommit() {
        let why = entry.wish.row(path).map_or_else(String::new, |r| format!(" ({})", r.why));
        return Err(Error::config(format!("{}: not watched yet{why}; COMMIT first", path.display())));
    }
    conn.set_wal_mode()?;
    at(&entry, Moment::Mapped, || Ok(FileKind::Wal));
    conn.hook("main")?;
    match (engine().find(path), entry.wish.row(path)) {
        (Some(w), _) => Ok(Some(w)),
        (None, Some(row)) => Err(Error::config(format!("{}: not watched: {}", path.display(), row.why))),
        (None, None) => Ok(None),
    }
}

/// Something happened to a handle of a database that may be wished for. App's thread, inside SQLite.
pub(super) fn happened(entry: &Arc<Entry>, f: &HookedFile, moment: Moment) {
    at(entry, moment, || kind_of(|buf, at| f.read_main_at(buf, at).map(drop), f.file_size()?));
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
fn at(entry: &Arc<Entry>, moment: Moment, kind: impl FnOnce() -> Result<FileKind>) {
    let mut turn = match moment {
        Moment::BeforeLock => lock(&entry.wish.at),
        _ => match entry.wish.at.try_lock() {
            Ok(turn) => turn,
            Err(_) => return,
        },
    };
    let Some(wanted) = turn.as_mut() else { return };
    if entry.is_exclusive() || moment != Moment::Mapped && clock::uptime() < wanted.not_before {
        return;
    }
    let step = match kind() {
        Ok(kind) => decide(moment, kind, wanted.said),
        Err(_) => return,
    };
    let begun = match step {
        Step::Wait(why) => {
            wanted.last = Last::Waits(why);
            return;
        }
        Step::SwitchBySql => caught(|| wal_by_sql(entry.path()).and_then(|()| start(entry, wanted))),
        Step::SwitchByWal => caught(|| put_empty_wal(entry.path()).and_then(|()| start(entry, wanted))),
        Step::Start => caught(|| start(entry, wanted)),
    };
    match begun {
        Ok(w) => {
            entry.wish.is_open.store(false, Ordering::Release);
            *turn = None;
            drop(turn);
            if moment == Moment::AfterUnlock && w.settings.durability == Durability::Sync {
                first_commit_in_sync(&w);
            }
        }
        Err(e) => wanted.fails(entry, e),
    }
}

/// A panic of ours is an error, and so a row of the status.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::caught(f).unwrap_or_else(|said| Err(panics::error(&said)))
}

impl Wish {
    fn failed(&self, entry: &Entry, e: Error) {
        if let Some(wanted) = lock(&self.at).as_mut() {
            wanted.fails(entry, e);
        }
    }

    fn waits(&self, step: Step) {
        if let (Some(wanted), Step::Wait(why)) = (lock(&self.at).as_mut(), step) {
            wanted.last = Last::Waits(why);
        }
    }
}

impl Wanted {
    fn fails(&mut self, entry: &Entry, e: Error) {
        // What is busy now is tried again in a moment, and no news.
        let level = if e.is_retry() { log::Level::Debug } else { log::Level::Error };
        log::log!(level, "walrust: {} is not replicated yet: {e}", entry.path().display());
        self.not_before = clock::uptime() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.last = Last::Failed(e);
    }
}

/// Turns WAL mode on through a connection of our own. Errors with [`Kind::Retry`] while somebody else uses the file.
fn wal_by_sql(path: &Path) -> Result<()> {
    let own = SqlConnection::open(path, SqlMode::Guest)?;
    own.give_up_at_once();
    own.set_wal_mode()
}

/// Our reading may have made a WAL after the program's last close removed its own: ours removes it as that did.
fn remove_unused_wal(path: &Path) -> Result<()> {
    let own = SqlConnection::open(path, SqlMode::Owner)?;
    own.give_up_at_once();
    own.query_value("PRAGMA schema_version").map(drop)
}

fn start(entry: &Arc<Entry>, wanted: &Wanted) -> Result<Arc<Watched>> {
    let path = entry.path();
    let w = match &wanted.inherited {
        Some(Inherited { settings, replica, .. }) => {
            let (settings, replica): (Settings, _) = (settings.clone(), ReplicaUrl::parse(replica)?);
            Watched::start_configured(WatchRequest { path, settings, replica, takeover: false })?
        }
        None => {
            let resolved = engine().resolve(path, None)?;
            let w = Watched::start_configured(request(path, &resolved, false)?)?;
            engine().use_process_settings()?;
            w
        }
    };
    log::info!("walrust: {} → {}", path.display(), w.replica());
    Ok(w)
}

/// The first transaction of a new file is written before there is a WAL, so under `durability = "sync"` it cannot be refused; but its
/// COMMIT returns only when the replica has it, or `sync_timeout` is over.
fn first_commit_in_sync(w: &Arc<Watched>) {
    if let Err(e) = w.sync(w.settings.sync_timeout) {
        log::error!("walrust: {}: the first transaction is not in the replica: {e}", w.path().display());
    }
}

/// Whether a lock that is asked for is the first that the handle takes.
pub(super) fn is_first_lock(f: &HookedFile) -> bool {
    f.file_lock() == FileLock::None
}

impl Entry {
    /// Whether somebody wishes to have it watched. Always `false` in a forked child's dead entries.
    pub(super) fn is_wished(&self) -> bool {
        self.wish.is_open() && self.generation() == generation()
    }
}

impl Watched {
    /// The last connection closes soon after the watch began: gives it the time it needs to be in the replica, if that answers.
    /// After the close nobody here could read the database.
    pub(super) fn finish_beginning(self: &Arc<Self>) {
        let is_beginning = self.role() == Role::Joining && self.joined.is_worth_a_close();
        if !is_beginning {
            return;
        }
        let patience = self.settings.sync_timeout.min(CLOSE_PATIENCE);
        let end = clock::uptime() + patience;
        let done = self.wait_joined(patience).and_then(|_| self.sync(end.saturating_sub(clock::uptime())));
        if let Err(e) = done {
            if self.role() == Role::Joining {
                Joined::closed_in_vain();
            }
            log::warn!("walrust: {}: closed before it was in the replica: {e}", self.path().display());
        }
        if self.entry.handles() == 0 {
            drop(remove_unused_wal(self.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: what the program did and said, what the file is, and the steps at Opened, BeforeLock, AfterUnlock, Mapped.
    #[test]
    fn a_watch_begins_after_the_programs_own_words() {
        use FileKind::{Empty, Opaque, Rollback, Wal};
        use Step::{Start, SwitchBySql, SwitchByWal, Wait};
        let moments = [Moment::Opened, Moment::BeforeLock, Moment::AfterUnlock, Moment::Mapped];
        let nothing = Said::default();
        let wrote = Said { wrote: true, ..nothing };
        let mode = Said { other_mode: true, ..nothing };
        let both = Said { wrote: true, other_mode: true };
        let (empty, opaque, other) = (Wait(Why::Empty), Wait(Why::Opaque), Wait(Why::OtherMode));
        for (said, kind, steps) in [
            (nothing, Empty, [empty, empty, empty, Start]),
            (mode, Empty, [empty, empty, empty, Start]),
            (nothing, Wal, [Start, Start, Start, Start]),
            (mode, Wal, [Start, Start, Start, Start]),
            (nothing, Rollback, [SwitchBySql, SwitchBySql, SwitchBySql, Start]),
            (wrote, Rollback, [SwitchBySql, SwitchBySql, SwitchBySql, Start]),
            (mode, Rollback, [other, other, other, Start]),
            (both, Rollback, [other, other, other, Start]),
            (nothing, Opaque, [opaque, opaque, opaque, Start]),
            (wrote, Opaque, [opaque, SwitchByWal, SwitchByWal, Start]),
            (both, Opaque, [other, other, other, Start]),
        ] {
            for (moment, step) in moments.into_iter().zip(steps) {
                assert_eq!(decide(moment, kind, said), step, "{moment:?} {kind:?} {said:?}");
            }
        }
    }
}
