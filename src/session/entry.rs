//! One database file that is open in this process: where SQLite's calls on its handles end.
//!
//! App's threads, inside SQLite. Without a watched database every call is one load of a flag.

use super::access::{FORMAT_VERSIONS, Held};
use super::gate::{Gate, WatchedHere};
use super::handles::Handles;
use super::prove;
use super::reread::LARGEST_HELD;
use super::watched::Watched;
use super::wish::{Moment, Wish};
use crate::base::{Error, Kind, Result, fork, lock};
use crate::capture::{Continuity, Permit, Resetter};
use crate::config::{Durability, Layer};
use crate::sqlite::{
    Again, DbObserver, FileLock, HookedFile, LockOp, PragmaVerdict, SlotRange, Verdict, WalHook,
};
use crate::wal::IndexHeader;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const WRITE: SlotRange = SlotRange::WRITE;
const CKPT: SlotRange = SlotRange::CHECKPOINT;
/// Taken together by whoever resets the WAL.
const RESET: SlotRange = SlotRange::READ_MARKS;

/// How long `PRAGMA locking_mode=EXCLUSIVE` waits for what must be read of the database first. Small databases are read in
/// milliseconds; that something came between is known to the sealer within a second or two.
const EXCLUSIVE_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the largest database, and WAL, whose reading an app's thread waits for.
const SOON_READ_BYTES: u64 = 4 << 20;

/// What an entry asks of the rooms above it.
pub(super) trait Above: Send + std::marker::Sync {
    /// A handle of a database that is configured and not watched yet is used.
    fn used(&self, entry: &Arc<Entry>, f: &HookedFile, moment: Moment);
    /// The app's last handle is about to close.
    fn closing(&self, w: &Arc<Watched>);
    /// Whether some process keeps the file at `path` up to date from a replica.
    fn is_followed(&self, path: &Path) -> bool;
}

/// One path.
pub struct Entry {
    pub(super) handles: Arc<Handles>,
    /// On the WAL's handles, for synchronous durability.
    gate: Arc<Gate>,
    /// Of the engine it belongs to: in a forked child it is dead, and its locks are not to be touched.
    generation: usize,
    is_watched: AtomicBool,
    watched: Arc<WatchedHere>,
    /// What the URI of an open said of it, or why that can't be read.
    uri: Mutex<Option<Result<Layer, String>>>,
    /// Whether the tracker follows the handle that has the file for itself.
    is_followed: AtomicBool,
    /// Held by the thread that begins to watch.
    starting: Mutex<()>,
    /// Configured, and not watched yet.
    pub(super) wish: Wish,
    /// The program asked for a journal mode other than WAL, and not for WAL since, as long as it has the file open.
    other_mode: AtomicBool,
    above: &'static dyn Above,
    me: Weak<Entry>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Entry {
    pub(super) fn new(path: &Path, generation: usize, above: &'static dyn Above) -> Arc<Entry> {
        let watched = Arc::new(WatchedHere::default());
        Arc::new_cyclic(|me| Entry {
            handles: Arc::new(Handles::new(path)),
            gate: Arc::new(Gate::new(watched.clone(), generation)),
            generation,
            is_watched: AtomicBool::new(false),
            watched,
            uri: Mutex::new(None),
            is_followed: AtomicBool::new(false),
            starting: Mutex::new(()),
            wish: Wish::default(),
            other_mode: AtomicBool::new(false),
            above,
            me: me.clone(),
        })
    }

    /// The path, as SQLite names it.
    pub fn path(&self) -> &Path {
        self.handles.path()
    }

    /// Whether it belongs to this process, and not to the parent that this one was forked from.
    fn is_alive(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Whether somebody wishes to have it watched. Always `false` in a forked child's dead entries.
    fn is_wished(&self) -> bool {
        self.wish.is_open() && self.is_alive()
    }

    /// Whether the program, which has the file open, wants another journal mode than WAL.
    pub(super) fn asked_for_other_mode(&self) -> bool {
        self.other_mode.load(Ordering::Relaxed)
    }

    /// The app's last handle is about to close the database, or to take it for itself.
    fn last_moment(&self, w: &Arc<Watched>) {
        self.above.closing(w);
        w.finish_beginning();
        prove::note_met(w, &Held::new(&self.handles, IndexHeader::EMPTY, 0));
    }

    fn wish_at(&self, f: &HookedFile, moment: Moment) {
        if self.is_wished()
            && let Some(me) = self.me.upgrade()
        {
            self.above.used(&me, f, moment);
        }
    }

    /// The right to begin to watch it, which one thread of the process has at a time. Whoever must not wait has an error
    /// ([`Kind::Retry`]) where another thread has it. (In a simulation, where threads take turns on one stack, one that waits for
    /// another would wait for ever.)
    pub(super) fn start_alone(&self, may_wait: bool) -> Result<Option<MutexGuard<'_, ()>>> {
        #[cfg(feature = "sim")]
        if crate::base::sim::world().is_some() {
            return Ok(None);
        }
        if may_wait {
            return Ok(Some(lock(&self.starting)));
        }
        let busy = || Error::new(Kind::Retry, "another thread begins to watch it");
        self.starting.try_lock().map(Some).map_err(|_| busy())
    }

    pub(super) fn set(&self, w: Option<Arc<Watched>>) {
        self.handles.unbar_all();
        self.is_followed.store(false, Ordering::Relaxed);
        self.is_watched.store(w.is_some(), Ordering::Release);
        *self.watched.write().unwrap_or_else(PoisonError::into_inner) = w;
    }

    /// The watched database, if it is watched.
    pub fn watched(&self) -> Option<Arc<Watched>> {
        if !self.is_watched.load(Ordering::Acquire) {
            return None;
        }
        self.watched.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what an open's URI said; the newest open that says anything wins.
    pub(super) fn set_uri(&self, said: Result<Layer>) {
        *lock(&self.uri) = Some(said.map_err(|e| e.to_string()));
    }

    /// The database was opened again without a URI that cannot be used.
    pub(super) fn forget_bad_uri(&self) {
        let mut uri = lock(&self.uri);
        if matches!(*uri, Some(Err(_))) {
            *uri = None;
        }
    }

    /// What an open's URI said. Errors with what is wrong with it.
    pub(super) fn uri(&self) -> Result<Option<Layer>> {
        match lock(&self.uri).as_ref() {
            None => Ok(None),
            Some(Ok(l)) => Ok(Some(l.clone())),
            Some(Err(e)) => Err(Error::config(e.clone())),
        }
    }

    /// Waits for our reading of a small database. (A reset is refused while a reading needs the WAL as it is: not if that is nearly
    /// over.)
    fn wait_for_reading(&self, f: &HookedFile, w: &Watched) {
        let is_small = || f.file_size().is_ok_and(|n| n.max(w.wal_bytes()) <= SOON_READ_BYTES);
        let is_reading = || self.handles.has_own() || w.tracker.sync_state() == Continuity::Resyncing;
        self.handles.wait_for_reading(|| is_reading() && is_small());
    }

    fn wait_for_resync(&self, f: &HookedFile) {
        if let Some(w) = self.watched_through(f)
            && w.tracker.sync_state() == Continuity::Resyncing
        {
            self.wait_for_reading(f, &w);
        }
    }

    /// The handle has the file for itself: from now on the tracker is told of its commits. That takes a wal-index in shared
    /// memory; a connection that set the mode before its first read keeps it to itself.
    fn follow_exclusive(&self, f: &HookedFile) {
        if let Some(w) = self.watched_through(f)
            && self.handles.is_at_path(f)
            && let Some(h) = header(f)
        {
            self.is_followed.store(true, Ordering::Relaxed);
            w.begins_exclusive(&h, self.handles.file_under(f));
        }
    }

    fn exclusive_ends(&self, f: &HookedFile) {
        if self.handles.exclusive_ends(f)
            && self.is_followed.swap(false, Ordering::Relaxed)
            && let Some(w) = self.watched_through(f)
        {
            w.noticed(w.tracker.write_ends(header(f)));
        }
    }

    /// The watched database, if its hooks have work to do and the handle is on the file that lies at the path.
    fn watched_through(&self, f: &HookedFile) -> Option<Arc<Watched>> {
        if !self.is_alive() {
            return None;
        }
        self.watched().filter(|w| w.tracker.is_active() && !self.handles.is_stale(f))
    }

    /// Why a connection may not have the database for itself, one line, or `None` if it may. Its commits can be followed
    /// if nothing is missing before them: while nobody else can read the file, we can't either.
    fn why_not_exclusive(&self, f: &HookedFile, w: &Watched) -> Option<String> {
        if !is_in_wal_mode(f) || w.is_over() || self.handles.is_exclusive_of(f) {
            return None;
        }
        if w.settings().durability == Durability::Sync {
            return Some(
                "durability is sync, which needs SQLite's locks; keep NORMAL, or watch with durability async"
                    .into(),
            );
        }
        // What is missing of a small one is read when it has it for itself.
        if f.file_size().is_ok_and(|n| n <= LARGEST_HELD) || w.wait_until_whole(EXCLUSIVE_PATIENCE) {
            return None;
        }
        Some(format!(
            "walrust must read the database first, and could not then; set it when walrust_status says streaming \
             (it says {})",
            w.state().as_str()
        ))
    }
}

fn is_in_wal_mode(f: &HookedFile) -> bool {
    let mut version = [0u8; 2];
    f.read_main_at(&mut version, FORMAT_VERSIONS).is_ok() && version == [2, 2]
}

fn header(f: &HookedFile) -> Option<IndexHeader> {
    f.wal_index_header().and_then(|b| IndexHeader::decode(&b))
}

impl DbObserver for Entry {
    fn observes_shared_locks(&self) -> bool {
        false
    }

    fn hooked(&self, f: &HookedFile) {
        if self.is_alive() {
            self.handles.opened(f);
        }
    }

    /// SQLite maps the wal-index before anything matters.
    fn mapped(&self, f: &HookedFile) {
        if !self.is_alive() {
            return;
        }
        self.handles.mapped(f);
        self.wish_at(f, Moment::Mapped);
        if let Some(w) = self.watched() {
            w.opened();
        }
    }

    fn before_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) -> Verdict {
        if !self.is_alive() {
            return Verdict::Pass;
        }
        // The lock that every commit takes is of interest to a checkpointer's alone.
        let plain = op == LockOp::LockExclusive && slots == WRITE && !self.handles.has_ckpt(f);
        if plain || !self.is_watched.load(Ordering::Acquire) {
            return Verdict::Pass;
        }
        if op == LockOp::LockExclusive && (slots == RESET || slots == WRITE) {
            self.wait_for_resync(f);
        }
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        let Some(w) = watched.as_ref() else { return Verdict::Pass };
        // (Whoever ships may have found the place a moment ago: what is announced to it, and to the others, follows from that.)
        let is_told = match op {
            LockOp::LockExclusive => slots == RESET || slots == CKPT,
            LockOp::UnlockExclusive => slots == WRITE,
            LockOp::LockShared | LockOp::UnlockShared => false,
        };
        if is_told {
            w.follow_as_standby();
        }
        if !w.tracker.is_active() || self.handles.is_stale(f) {
            return Verdict::Pass;
        }
        let permit = match op {
            LockOp::UnlockExclusive if slots == WRITE => {
                let noticed = w.tracker.write_ends(header(f));
                if w.settings().durability == Durability::Sync {
                    self.gate.reset();
                }
                w.noticed(noticed);
                Permit::Granted
            }
            LockOp::LockExclusive if slots == RESET => {
                let by = if self.handles.has_ckpt(f) { Resetter::Checkpoint } else { Resetter::Commit };
                let permit = w.tracker.reset_wanted(header(f).as_ref(), by, || w.wal_bytes());
                if permit == Permit::Refused {
                    w.metrics.vetoes.inc();
                    w.hurry();
                }
                permit
            }
            LockOp::LockExclusive if slots == CKPT => {
                let permit = w.tracker.checkpoint_wanted(header(f).as_ref());
                if permit == Permit::Granted {
                    // A reset usually follows a checkpoint: the sealer can be done by then.
                    w.hurry();
                }
                permit
            }
            LockOp::LockExclusive if slots == WRITE => w.tracker.checkpointer_wants_write(header(f).as_ref()),
            _ => Permit::Granted,
        };
        match permit {
            Permit::Granted => Verdict::Pass,
            Permit::Refused => Verdict::Busy,
        }
    }

    fn shm_lock_failed(&self, f: &HookedFile, slots: SlotRange) -> Again {
        // Of the others, none is ever ours.
        let Some(w) = self.watched_through(f).filter(|_| slots.has_read_marks()) else { return Again::No };
        self.wait_for_reading(f, &w);
        // (Even if there was none: it may have ended just now.)
        Again::Yes
    }

    fn after_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) {
        let of_interest = match op {
            LockOp::LockExclusive => slots == WRITE || slots == CKPT,
            LockOp::UnlockExclusive => slots == CKPT,
            LockOp::LockShared | LockOp::UnlockShared => false,
        };
        if !of_interest || !self.is_alive() {
            return;
        }
        if !self.is_watched.load(Ordering::Acquire) {
            return;
        }
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        let Some(w) = watched.as_ref() else { return };
        // (Where nothing is followed yet, too: the first place may be found before the transaction ends.)
        let begins = slots == WRITE && op == LockOp::LockExclusive;
        if self.handles.is_stale(f) || !w.tracker.is_active() && !begins {
            return;
        }
        match op {
            LockOp::LockExclusive if begins => {
                w.follow_as_standby();
                w.tracker.write_begins(header(f));
            }
            LockOp::LockExclusive if slots == CKPT => self.handles.set_ckpt(f, true),
            LockOp::UnlockExclusive if slots == CKPT => {
                self.handles.set_ckpt(f, false);
                w.metrics.checkpoints.inc();
            }
            _ => {}
        }
    }

    fn pragma(&self, f: &HookedFile, name: &str, arg: Option<&str>) -> PragmaVerdict {
        let exclusive = name.eq_ignore_ascii_case("locking_mode")
            && arg.is_some_and(|a| a.trim_matches(['\'', '"', ' ']).eq_ignore_ascii_case("exclusive"));
        if exclusive
            && self.is_alive()
            && let Some(w) = self.watched()
            && let Some(why) = self.why_not_exclusive(f, &w)
        {
            return PragmaVerdict::Refuse(format!("locking_mode=EXCLUSIVE: {why}"));
        }
        if name.eq_ignore_ascii_case("journal_mode")
            && let Some(mode) = arg
            && self.is_alive()
        {
            let is_wal = mode.trim_matches(['\'', '"', ' ']).eq_ignore_ascii_case("wal");
            self.other_mode.store(!is_wal, Ordering::Relaxed);
        }
        if name.eq_ignore_ascii_case("journal_mode") && arg.is_some() && self.above.is_followed(self.path()) {
            // Many programs ask for WAL whenever they open a database: a followed file stays as it is.
            return PragmaVerdict::Answer(Some("delete".to_string()));
        }
        PragmaVerdict::Pass
    }

    fn before_file_lock(&self, f: &HookedFile, level: FileLock) {
        if f.file_lock() == FileLock::None {
            self.wish_at(f, Moment::BeforeLock);
        }
        // In WAL mode EXCLUSIVE is wanted by the last close and by a change of journal mode.
        let ours = self.is_alive() && self.is_watched.load(Ordering::Acquire);
        if level == FileLock::Exclusive && ours {
            // (What the WAL holds is about to go into the file: nothing of ours reads it after that.)
            if self.handles.is_last_with_wal_index(f)
                && let Some(w) = self.watched()
            {
                self.last_moment(&w);
            }
            self.handles.recall(f);
            if let Some(w) = self.watched() {
                w.follow_as_standby();
            }
        }
    }

    fn after_file_lock(&self, f: &HookedFile, level: FileLock) {
        // Also of a database that is not watched: it may be in a moment.
        if level == FileLock::Exclusive && self.handles.exclusive_begins(f) {
            self.is_followed.store(false, Ordering::Relaxed);
            self.follow_exclusive(f);
        }
    }

    fn file_lock_failed(&self, f: &HookedFile, level: FileLock) {
        if level == FileLock::Exclusive && self.is_alive() && !self.handles.is_exclusive_of(f) {
            self.handles.unbar(f);
        }
    }

    fn committed_exclusive(&self, f: &HookedFile) {
        let Some(w) = self.watched_through(f).filter(|_| self.handles.is_at_path(f)) else { return };
        match header(f) {
            Some(h) if self.is_followed.load(Ordering::Relaxed) => {
                w.commits_exclusive(h, self.handles.file_under(f))
            }
            // It had the file for itself before it was watched.
            Some(_) => self.follow_exclusive(f),
            None => w.commits_unseen(),
        }
        if w.settings().durability == Durability::Sync {
            self.gate.reset();
        }
    }

    fn after_file_unlock(&self, f: &HookedFile, level: FileLock) {
        if level == FileLock::None {
            self.wish_at(f, Moment::AfterUnlock);
        }
    }

    fn wrote_db(&self, f: &HookedFile, _offset: u64, _len: usize) {
        if self.is_wished() {
            self.wish.note(|wanted| wanted.wrote = true);
        }
        if self.is_followed.load(Ordering::Relaxed)
            && self.handles.is_exclusive_of(f)
            && let Some(w) = self.watched_through(f)
            && let Some(h) = header(f)
        {
            w.tracker.exclusive_checkpoint(&h);
        }
    }

    fn before_file_unlock(&self, f: &HookedFile, _level: FileLock) {
        if !self.is_alive() {
            return;
        }
        self.exclusive_ends(f);
        if self.is_watched.load(Ordering::Acquire) && !self.handles.is_exclusive() {
            self.handles.unbar(f);
        }
    }

    fn last_close(&self, f: &HookedFile) {
        let watched = if self.is_alive() { self.watched() } else { None };
        let Some(w) = watched else { return };
        // The process that ships may have found the place since this one last looked for it.
        w.follow_as_standby();
        if w.tracker.is_active() {
            let noticed = w.tracker.last_close(header(f).as_ref());
            w.sync_soon();
            w.noticed(noticed);
        }
        if self.handles.is_at_path(f) {
            w.closes(self.handles.file_under(f));
        }
    }

    fn closing(&self, f: &HookedFile) {
        if !self.is_alive() {
            return;
        }
        if self.handles.is_last_open(f) {
            self.wish.close();
            self.other_mode.store(false, Ordering::Relaxed);
            if let Some(w) = self.watched()
                && !self.handles.bars(f)
            {
                self.last_moment(&w);
            }
        }
        self.handles.recall(f);
        self.exclusive_ends(f);
        if self.handles.closed(f)
            && let Some(w) = self.watched()
        {
            w.drain_at_close();
        }
        self.handles.unbar(f);
    }

    fn wal_hook(&self) -> WalHook {
        if !self.is_alive() {
            return WalHook::None;
        }
        match self.watched().map(|w| w.settings().durability) {
            None => WalHook::None,
            Some(Durability::Async) => WalHook::JoinWrites,
            Some(Durability::Sync) => WalHook::Observe(self.gate.clone()),
        }
    }

    fn panicked(&self, what: &str) {
        if let Some(w) = self.watched() {
            w.panicked(what);
        }
    }
}
