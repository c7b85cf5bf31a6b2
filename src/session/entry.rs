//! One database file that is open in this process: where SQLite's calls on its handles end.
//!
//! App's threads, inside SQLite. Without a watched database every call is one load of a flag.

use super::engine::{generation, lock};
use super::gate::Gate;
use super::resync::LARGEST_HELD;
use super::watched::Watched;
use crate::base::{Error, Kind};
use crate::capture::Permit;
use crate::config::{Durability, Layer};
use crate::sqlite::{
    DbObserver, FileLock, HookedFile, LockOp, PragmaVerdict, ShmPeek, SlotRange, Verdict, WalHook,
};
use crate::wal::{self, IndexHeader};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

const WRITE: SlotRange = SlotRange::WRITE;
/// Where the database file says whether it is in WAL mode, 2 and 2
/// (<https://sqlite.org/fileformat2.html#file_format_version_numbers>).
const FORMAT_VERSIONS: u64 = 18;
const CKPT: SlotRange = SlotRange::CHECKPOINT;
/// Taken together by whoever resets the WAL.
const RESET: SlotRange = SlotRange::READ_MARKS;

/// How long `PRAGMA locking_mode=EXCLUSIVE` waits for what must be read of the database first. Small databases are read in
/// milliseconds; that something came between is known to the sealer within a second or two.
const EXCLUSIVE_PATIENCE: Duration = Duration::from_secs(5);

/// One path.
pub struct Entry {
    path: PathBuf,
    /// On the WAL's handles, for synchronous durability.
    gate: Arc<Gate>,
    /// Of the engine it belongs to: in a forked child it is dead, and its locks are not to be touched.
    generation: usize,
    /// Inode of the file at `path` when it was last looked at. A handle on another inode holds a file that was
    /// replaced, and says nothing about this one.
    inode: AtomicU64,
    /// Whether that has ever happened.
    was_replaced: AtomicBool,
    is_watched: AtomicBool,
    watched: RwLock<Option<Arc<Watched>>>,
    /// What the URI of an open said of it, or why that can't be read.
    uri: Mutex<Option<Result<Layer, String>>>,
    /// Handles open in this process, with the inode each was opened on.
    open: Mutex<HashMap<u64, u64>>,
    /// Those of them that have the wal-index mapped, to look at it through, and whether each holds CKPT.
    handles: Mutex<HashMap<u64, Handle>>,
    /// How many of them hold CKPT: nearly always none, and then nobody has to ask which.
    checkpointers: AtomicU64,
    /// The handle that has the file for itself, without locks in the wal-index; 0 if none has.
    exclusive: AtomicU64,
    /// What that one's wal-index says, where it keeps it to itself (`locking_mode=EXCLUSIVE` before its first read).
    private: Mutex<Option<Private>>,
    /// Whether a write or sync of the WAL failed since the last commit of such a one.
    wal_failed: Arc<AtomicBool>,
    own: Mutex<Own>,
    own_changed: Condvar,
    /// Held by the thread that begins to watch.
    starting: Mutex<()>,
}

/// Handles of ours on the file: they exist only while the app has it open, too. Otherwise a file that the app
/// closes, deletes and makes again would have two wal-indexes in one process.
#[derive(Default)]
struct Own {
    count: usize,
    barred: bool,
}

/// A permission to have a handle of our own open, until dropped.
pub(super) struct OwnPermit(Arc<Entry>);

impl OwnPermit {
    /// Whether the app wants to close the file: let go.
    pub(super) fn is_recalled(&self) -> bool {
        lock(&self.0.own).barred
    }
}

impl Drop for OwnPermit {
    fn drop(&mut self) {
        lock(&self.0.own).count -= 1;
        self.0.own_changed.notify_all();
    }
}

/// The wal-index of a connection that keeps it to itself, made from the WAL. A VFS above ours may have a wal-index of its own,
/// too, and shows us its EXCLUSIVE lock at the last close: so what is made is believed from the first commit under that lock on.
#[derive(Clone, Copy)]
struct Private {
    header: IndexHeader,
    has_committed: bool,
    /// What a scan finds of a transaction whose write or sync failed, and which did not count, if the commit that came after
    /// it was empty. The next that is not overwrites it.
    doubt: Option<IndexHeader>,
}

impl Private {
    fn known(&self) -> Option<IndexHeader> {
        self.has_committed.then_some(self.header)
    }
}

struct Handle {
    peek: ShmPeek,
    inode: u64,
    has_ckpt: bool,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Entry {
    pub(super) fn new(path: &Path, generation: usize) -> Arc<Entry> {
        Arc::new_cyclic(|me| Entry {
            gate: Arc::new(Gate::new(me.clone(), generation)),
            path: path.to_path_buf(),
            generation,
            inode: AtomicU64::new(inode_of(path)),
            was_replaced: AtomicBool::new(false),
            is_watched: AtomicBool::new(false),
            watched: RwLock::new(None),
            uri: Mutex::new(None),
            open: Mutex::new(HashMap::new()),
            handles: Mutex::new(HashMap::new()),
            checkpointers: AtomicU64::new(0),
            exclusive: AtomicU64::new(0),
            private: Mutex::new(None),
            wal_failed: Arc::default(),
            own: Mutex::new(Own::default()),
            own_changed: Condvar::new(),
            starting: Mutex::new(()),
        })
    }

    /// The path, as SQLite names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nobody else of this process begins to watch it. (In a simulation, where threads take turns on one stack, one
    /// that waits for another would wait for ever.)
    pub(super) fn start_alone(&self) -> Option<MutexGuard<'_, ()>> {
        #[cfg(feature = "sim")]
        if crate::base::sim::world().is_some() {
            return None;
        }
        Some(lock(&self.starting))
    }

    pub(super) fn set(&self, w: Option<Arc<Watched>>) {
        self.unbar_own();
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
    pub(super) fn set_uri(&self, said: crate::base::Result<Layer>) {
        *lock(&self.uri) = Some(said.map_err(|e| e.to_string()));
    }

    /// What an open's URI said.
    pub(super) fn uri(&self) -> crate::base::Result<Option<Layer>> {
        match lock(&self.uri).as_ref() {
            None => Ok(None),
            Some(Ok(l)) => Ok(Some(l.clone())),
            Some(Err(e)) => Err(crate::base::Error::config(e.clone())),
        }
    }

    /// The wal-index header, through any handle that has it mapped.
    pub(super) fn header(&self) -> Option<IndexHeader> {
        let shared = self.peeks().iter().find_map(|p| p.header().and_then(|b| IndexHeader::decode(&b)));
        shared.or_else(|| lock(&self.private).as_ref().and_then(Private::known))
    }

    /// The wal-index header as handle `f` has it, in shared memory or, if it has the file for itself, out of the WAL.
    fn header_through(&self, f: &HookedFile) -> Option<IndexHeader> {
        let of_private = || {
            let private = lock(&self.private);
            private
                .as_ref()
                .filter(|_| self.exclusive.load(Ordering::Relaxed) == f.id())
                .and_then(Private::known)
        };
        header(f).or_else(of_private)
    }

    /// The pages of WAL frames `from + 1 ..= to`, through any handle that has that part of the wal-index mapped.
    pub(super) fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        self.peeks().iter().find_map(|p| p.frame_pages(from, to))
    }

    fn peeks(&self) -> Vec<ShmPeek> {
        let inode = self.inode.load(Ordering::Relaxed);
        lock(&self.handles).values().filter(|h| h.inode == inode).map(|h| h.peek.clone()).collect()
    }

    /// Looks whether another file lies at the path now.
    pub(super) fn is_replaced(&self) -> bool {
        let now = inode_of(&self.path);
        let replaced = now != 0 && self.inode.swap(now, Ordering::Relaxed) != now;
        if replaced {
            self.was_replaced.store(true, Ordering::Relaxed);
        }
        replaced
    }

    /// Whether the app has the file that lies at the path now open. Otherwise it can neither be read nor snapshot by this process.
    pub(super) fn can_read(&self) -> bool {
        let inode = inode_of(&self.path);
        lock(&self.open).values().any(|i| *i == inode)
    }

    /// Whether the file that the handle was opened on is still the one at the path, which is what others of ours read.
    fn is_at_path(&self, f: &HookedFile) -> bool {
        lock(&self.open).get(&f.id()).is_some_and(|i| *i == inode_of(&self.path))
    }

    fn is_stale(&self, f: &HookedFile) -> bool {
        if !self.was_replaced.load(Ordering::Relaxed) {
            return false;
        }
        let inode = self.inode.load(Ordering::Relaxed);
        lock(&self.handles).get(&f.id()).is_some_and(|h| h.inode != inode)
    }

    /// Asks to open a handle of our own. [`Kind::Retry`] when the app has none open on the file that lies there now.
    /// (A handle on a file that was deleted or replaced is not enough: ours would be the only one on the new file, and SQLite's
    /// first step would be to cut the `-shm` of that name short, which the old handle may still have mapped: a SIGBUS at its
    /// next read.)
    pub(super) fn permit_own(self: &Arc<Self>) -> crate::base::Result<OwnPermit> {
        let mut own = lock(&self.own);
        if self.is_exclusive() {
            let why = "a connection with locking_mode=EXCLUSIVE has the database for itself; set it to NORMAL and read once";
            return Err(Error::new(Kind::Retry, why));
        }
        if own.barred || !self.can_read() {
            return Err(Error::new(Kind::Retry, "the database is not open in this process"));
        }
        own.count += 1;
        Ok(OwnPermit(self.clone()))
    }

    /// Whether the app is closing its last handle, or rather: whether no handle of ours may be opened.
    pub(super) fn is_closing(&self) -> bool {
        lock(&self.own).barred
    }

    /// The app's last handle is about to close: ours go first. They notice at their next page.
    fn recall_own(&self) {
        let mut own = lock(&self.own);
        own.barred = true;
        while own.count > 0 {
            own = self.own_changed.wait(own).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn unbar_own(&self) {
        lock(&self.own).barred = false;
    }

    /// How many handles have the wal-index mapped in this process.
    pub(super) fn handles(&self) -> usize {
        lock(&self.handles).len()
    }

    /// Whether a handle of this process has the file for itself: nothing of ours can read the database then.
    pub(super) fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Relaxed) != 0
    }

    fn exclusive_ends(&self, f: &HookedFile) {
        if self.exclusive.load(Ordering::Relaxed) != f.id() {
            return;
        }
        let h = self.header_through(f);
        *lock(&self.private) = None;
        self.exclusive.store(0, Ordering::Relaxed);
        if let Some(w) = self.watched_through(f) {
            w.noticed(w.tracker.write_ends(h));
        }
    }

    /// The handle has got the file for itself and has no wal-index mapped. If the database is in WAL mode, what it keeps
    /// to itself is what it recovers from the WAL in a moment.
    fn make_private(&self, f: &HookedFile, w: &Watched) {
        if !is_in_wal_mode(f) {
            return;
        }
        self.wal_failed.store(false, Ordering::Relaxed);
        let read = |wal: Option<File>| wal.map_or(Ok(IndexHeader::EMPTY), |f| wal::recovered(&f));
        match open_wal(w).and_then(|f| Ok(read(f)?)) {
            Ok(header) => *lock(&self.private) = Some(Private { header, has_committed: false, doubt: None }),
            Err(e) => w.tracker.lose(e.to_string()),
        }
    }

    /// A transaction was committed by the handle that has the file for itself: the wal-index header after it, or `None` if that
    /// is not known, or it is not in WAL mode.
    fn header_of_commit(&self, f: &HookedFile, w: &Watched) -> Option<IndexHeader> {
        if let Some(h) = header(f) {
            return Some(h);
        }
        if !is_in_wal_mode(f) {
            *lock(&self.private) = None;
            return None;
        }
        // Only this thread changes it.
        let Some(mut p) = *lock(&self.private) else {
            // This commit turned WAL mode on; the next ones go to the WAL.
            self.make_private(f, w);
            return None;
        };
        if !p.has_committed {
            w.tracker.exclusive_begins(p.header);
            p.has_committed = true;
        }
        let read = |wal: Option<File>| wal.map_or(Ok(p.header), |f| wal::committed_since(&f, &p.header));
        let found = open_wal(w).and_then(|f| Ok(read(f)?)).map_err(|e| w.tracker.lose(e.to_string())).ok()?;
        if self.wal_failed.swap(false, Ordering::Relaxed) {
            w.tracker
                .lose("a write to the WAL failed, and what of it counts is known only to the connection");
            p.doubt = Some(found);
        }
        let is_known = p.doubt != Some(found);
        if is_known {
            (p.header, p.doubt) = (found, None);
        }
        *lock(&self.private) = Some(p);
        is_known.then_some(found)
    }

    /// The watched database, if its hooks have work to do and the handle is on the file that lies at the path.
    fn watched_through(&self, f: &HookedFile) -> Option<Arc<Watched>> {
        if self.generation != generation() {
            return None;
        }
        self.watched().filter(|w| w.tracker.is_active() && !self.is_stale(f))
    }

    /// Why a connection may not have the database for itself, one line, or `None` if it may. Its commits can be followed
    /// if nothing is missing before them: while nobody else can read the file, we can't either.
    fn why_not_exclusive(&self, f: &HookedFile, w: &Watched) -> Option<String> {
        if !is_in_wal_mode(f) || w.is_over() || self.exclusive.load(Ordering::Relaxed) == f.id() {
            return None;
        }
        if w.settings.durability == Durability::Sync {
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

    fn set_ckpt(&self, f: &HookedFile, has: bool) {
        if let Some(h) = lock(&self.handles).get_mut(&f.id())
            && std::mem::replace(&mut h.has_ckpt, has) != has
        {
            if has {
                self.checkpointers.fetch_add(1, Ordering::Relaxed);
            } else {
                self.checkpointers.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn has_ckpt(&self, f: &HookedFile) -> bool {
        self.checkpointers.load(Ordering::Relaxed) > 0
            && lock(&self.handles).get(&f.id()).is_some_and(|h| h.has_ckpt)
    }
}

/// 0 when there is no file.
fn inode_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| m.ino()).unwrap_or(0)
}

/// The WAL file; `None` if there is none.
fn open_wal(w: &Watched) -> Result<Option<File>, Error> {
    match File::open(w.tracker.wal_path()) {
        Ok(f) => Ok(Some(f)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", w.tracker.wal_path(), e)),
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
        if self.generation == generation() {
            lock(&self.open).insert(f.id(), inode_of(&self.path));
        }
    }

    /// SQLite maps the wal-index before anything matters.
    fn mapped(&self, f: &HookedFile) {
        if self.generation != generation() {
            return;
        }
        if let Some(w) = self.watched() {
            w.link.want_lease();
        }
        lock(&self.handles).entry(f.id()).or_insert_with(|| Handle {
            peek: f.peek(),
            inode: inode_of(&self.path),
            has_ckpt: false,
        });
    }

    fn before_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) -> Verdict {
        if self.generation != generation() {
            return Verdict::Pass;
        }
        // The lock that every commit takes is of interest to a checkpointer's alone.
        let plain = op == LockOp::LockExclusive && slots == WRITE && !self.has_ckpt(f);
        if plain || !self.is_watched.load(Ordering::Acquire) {
            return Verdict::Pass;
        }
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        let Some(w) = watched.as_ref() else { return Verdict::Pass };
        if !w.tracker.is_active() || self.is_stale(f) {
            return Verdict::Pass;
        }
        let permit = match op {
            LockOp::UnlockExclusive if slots == WRITE => {
                let noticed = w.tracker.write_ends(header(f));
                if w.settings.durability == Durability::Sync {
                    self.gate.reset();
                }
                w.noticed(noticed);
                Permit::Granted
            }
            LockOp::LockExclusive if slots == RESET => {
                let permit = w.tracker.reset_wanted(header(f).as_ref(), || w.wal_bytes());
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

    fn after_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) {
        let of_interest = match op {
            LockOp::LockExclusive => slots == WRITE || slots == CKPT,
            LockOp::UnlockExclusive => slots == CKPT,
            LockOp::LockShared | LockOp::UnlockShared => false,
        };
        if !of_interest || self.generation != generation() {
            return;
        }
        if !self.is_watched.load(Ordering::Acquire) {
            return;
        }
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        let Some(w) = watched.as_ref() else { return };
        if !w.tracker.is_active() || self.is_stale(f) {
            return;
        }
        match op {
            LockOp::LockExclusive if slots == WRITE => w.tracker.write_begins(header(f)),
            LockOp::LockExclusive if slots == CKPT => self.set_ckpt(f, true),
            LockOp::UnlockExclusive if slots == CKPT => {
                self.set_ckpt(f, false);
                w.checkpointed();
            }
            _ => {}
        }
    }

    fn pragma(&self, f: &HookedFile, name: &str, arg: Option<&str>) -> PragmaVerdict {
        let exclusive = name.eq_ignore_ascii_case("locking_mode")
            && arg.is_some_and(|a| a.trim_matches(['\'', '"', ' ']).eq_ignore_ascii_case("exclusive"));
        if exclusive
            && self.generation == generation()
            && let Some(w) = self.watched()
            && let Some(why) = self.why_not_exclusive(f, &w)
        {
            return PragmaVerdict::Refuse(format!("locking_mode=EXCLUSIVE: {why}"));
        }
        if name.eq_ignore_ascii_case("journal_mode")
            && arg.is_some()
            && super::follow::is_followed(&self.path)
        {
            // Many programs ask for WAL whenever they open a database: a followed file stays as it is.
            return PragmaVerdict::Answer(Some("delete".to_string()));
        }
        PragmaVerdict::Pass
    }

    fn before_file_lock(&self, _f: &HookedFile, level: FileLock) {
        // In WAL mode EXCLUSIVE is wanted by the last close and by a change of journal mode.
        let ours = self.generation == generation() && self.is_watched.load(Ordering::Acquire);
        if level == FileLock::Exclusive && ours && self.handles() <= 1 {
            self.recall_own();
        }
    }

    fn after_file_lock(&self, f: &HookedFile, level: FileLock) {
        if level == FileLock::Exclusive
            && self.exclusive.load(Ordering::Relaxed) != f.id()
            && let Some(w) = self.watched_through(f)
            && self.is_at_path(f)
        {
            self.exclusive.store(f.id(), Ordering::Relaxed);
            w.link.want_lease();
            match header(f) {
                Some(h) => w.begins_exclusive(&h),
                None => self.make_private(f, &w),
            }
        }
    }

    fn committed_exclusive(&self, f: &HookedFile) {
        if self.exclusive.load(Ordering::Relaxed) == f.id()
            && let Some(w) = self.watched_through(f)
            && self.is_at_path(f)
        {
            w.commits_exclusive(self.header_of_commit(f, &w));
        }
    }

    fn wrote_db(&self, f: &HookedFile, _offset: u64, _len: usize) {
        if self.exclusive.load(Ordering::Relaxed) == f.id()
            && let Some(w) = self.watched_through(f)
            && let Some(h) = self.header_through(f)
        {
            w.tracker.exclusive_checkpoint(&h);
        }
    }

    fn before_file_unlock(&self, f: &HookedFile, _level: FileLock) {
        if self.generation != generation() {
            return;
        }
        self.exclusive_ends(f);
        if self.is_watched.load(Ordering::Acquire) && !self.is_exclusive() {
            self.unbar_own();
        }
    }

    fn last_close(&self, f: &HookedFile) {
        if self.generation == generation()
            && let Some(w) = self.watched()
            && w.tracker.is_active()
        {
            let noticed = w.tracker.last_close(self.header_through(f).as_ref());
            w.noticed(noticed);
        }
    }

    fn closing(&self, f: &HookedFile) {
        if self.generation != generation() {
            return;
        }
        if self.handles() <= 1 {
            self.recall_own();
        }
        self.exclusive_ends(f);
        lock(&self.open).remove(&f.id());
        let last = {
            self.set_ckpt(f, false);
            let mut handles = lock(&self.handles);
            handles.remove(&f.id());
            handles.is_empty()
        };
        if last && let Some(w) = self.watched() {
            w.drain_at_close();
        }
        self.unbar_own();
    }

    fn wal_hook(&self) -> WalHook {
        if self.generation != generation() {
            return WalHook::None;
        }
        match self.watched().map(|w| w.settings.durability) {
            None => WalHook::None,
            Some(Durability::Async) => WalHook::JoinWrites(self.wal_failed.clone()),
            Some(Durability::Sync) => WalHook::Observe(self.gate.clone()),
        }
    }

    fn panicked(&self, what: &str) {
        if let Some(w) = self.watched() {
            w.tracker.stop();
            w.fail(format!("an internal error stopped replication: {what}"));
        }
    }
}
