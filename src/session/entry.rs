//! One database file that is open in this process: where SQLite's calls on its handles end.
//!
//! App's threads, inside SQLite. Without a watched database every call is one load of a flag.

use super::begin::{self, Moment, Wish};
use super::engine::{engine, generation, lock};
use super::gate::Gate;
use super::resync::LARGEST_HELD;
use super::watched::Watched;
use crate::base::{Error, Kind, clock};
use crate::capture::{Permit, Resetter, Sync};
use crate::config::{Durability, Layer};
use crate::sqlite::{
    Again, DbObserver, FileLock, HookedFile, LockOp, PragmaVerdict, ShmPeek, SlotRange, Verdict, WalHook,
};
use crate::wal::IndexHeader;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

const WRITE: SlotRange = SlotRange::WRITE;
const CKPT: SlotRange = SlotRange::CHECKPOINT;
/// Taken together by whoever resets the WAL.
const RESET: SlotRange = SlotRange::READ_MARKS;

/// Where the database file says whether it is in WAL mode, 2 and 2
/// (<https://sqlite.org/fileformat2.html#file_format_version_numbers>).
pub(super) const FORMAT_VERSIONS: u64 = 18;

/// How long `PRAGMA locking_mode=EXCLUSIVE` waits for what must be read of the database first. Small databases are read in
/// milliseconds; that something came between is known to the sealer within a second or two.
const EXCLUSIVE_PATIENCE: Duration = Duration::from_secs(5);

/// How long from its beginning our own reading of a small database is waited for by what asks for a lock in the wal-index, when that
/// has the lock or needs the WAL as it is. It takes milliseconds, and most programs do not expect to find somebody else at their
/// database.
const READING_PATIENCE: Duration = Duration::from_millis(50);
/// Bytes of the largest database, and WAL, of which that is so.
const SOON_READ: u64 = 4 << 20;

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
    /// Whether the tracker follows that one.
    is_followed: AtomicBool,
    own: Mutex<Own>,
    own_changed: Condvar,
    /// Uptime in ms until which our reading is waited for.
    patient_until: AtomicU64,
    /// Held by the thread that begins to watch.
    starting: Mutex<()>,
    /// Configured, and not watched yet.
    pub(super) wish: Wish,
    me: Weak<Entry>,
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

/// Nobody has the file open through us, nor watches it: a program that opens a million files has no trace of them here.
impl Drop for Entry {
    fn drop(&mut self) {
        if self.generation == generation() {
            engine().forget(self);
        }
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
            is_followed: AtomicBool::new(false),
            own: Mutex::new(Own::default()),
            own_changed: Condvar::new(),
            patient_until: AtomicU64::new(0),
            starting: Mutex::new(()),
            wish: Wish::default(),
            me: me.clone(),
        })
    }

    /// The path, as SQLite names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of the engine that it belongs to.
    pub(super) fn generation(&self) -> usize {
        self.generation
    }

    fn wish_at(&self, f: &HookedFile, moment: Moment) {
        if self.is_wished()
            && let Some(me) = self.me.upgrade()
        {
            begin::happened(&me, f, moment);
        }
    }

    /// The right to begin to watch it, which one thread of the process has at a time. Whoever must not wait has an error
    /// ([`Kind::Retry`]) where another thread has it. (In a simulation, where threads take turns on one stack, one that waits for
    /// another would wait for ever.)
    pub(super) fn start_alone(&self, may_wait: bool) -> crate::base::Result<Option<MutexGuard<'_, ()>>> {
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
        self.unbar_own();
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
    pub(super) fn set_uri(&self, said: crate::base::Result<Layer>) {
        *lock(&self.uri) = Some(said.map_err(|e| e.to_string()));
    }

    /// The database was opened again without a URI that cannot be used.
    pub(super) fn forget_bad_uri(&self) {
        let mut uri = lock(&self.uri);
        if matches!(*uri, Some(Err(_))) {
            *uri = None;
        }
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
        self.peeks().iter().find_map(|p| p.header().and_then(|b| IndexHeader::decode(&b)))
    }

    /// The pages of WAL frames `from + 1 ..= to`, through any handle that has that part of the wal-index mapped.
    pub(super) fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        self.peeks().iter().find_map(|p| p.frame_pages(from, to))
    }

    fn peeks(&self) -> Vec<ShmPeek> {
        let inode = self.inode.load(Ordering::Relaxed);
        lock(&self.handles).values().filter(|h| h.inode == inode).map(|h| h.peek.clone()).collect()
    }

    /// Takes note of the file that lies at the path now. Whether it is another than that before.
    pub(super) fn note_file(&self) -> bool {
        self.note_inode(inode_of(&self.path))
    }

    /// The database is about to be read whole: if that is another file than before, no second read is due for it.
    pub(super) fn note_inode(&self, inode: u64) -> bool {
        let replaced = inode != 0 && self.inode.swap(inode, Ordering::Relaxed) != inode;
        if replaced {
            self.was_replaced.store(true, Ordering::Relaxed);
        }
        replaced
    }

    /// Inode of the file that the handle has open, as it is met; [`MOVED`] if that is not the one at the path any more: the
    /// handle may have been open for hours when the extension is loaded.
    fn inode_now_under(&self, f: &HookedFile) -> u64 {
        if f.has_moved() {
            self.was_replaced.store(true, Ordering::Relaxed);
            return MOVED;
        }
        inode_of(&self.path)
    }

    /// Inode of the file that the handle was opened on.
    fn inode_under(&self, f: &HookedFile) -> u64 {
        lock(&self.open).get(&f.id()).copied().unwrap_or_default()
    }

    /// Whether the app has the file that lies at the path now open. Otherwise it can neither be read nor snapshot by this process.
    pub(super) fn can_read(&self) -> bool {
        let inode = inode_of(&self.path);
        inode != 0 && lock(&self.open).values().any(|i| *i == inode)
    }

    /// Whether no handle of the app's is open on it.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.open).is_empty()
    }

    /// Whether that is the file which was at the path at the last look.
    pub(super) fn is_at(&self, read: &crate::sqlite::Aside) -> bool {
        self.inode.load(Ordering::Relaxed) == number_of(read.inode, read.device)
    }

    /// Whether the app has a file open that was at the path, and only such: the one there now it has not.
    pub(super) fn has_only_replaced(&self) -> bool {
        !self.can_read() && !lock(&self.open).is_empty()
    }

    /// Whether the file that the handle was opened on is still the one at the path, which is what others of ours read.
    fn is_at_path(&self, f: &HookedFile) -> bool {
        let inode = self.inode_under(f);
        inode != 0 && inode != MOVED && inode == inode_of(&self.path)
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

    /// Whether a thread of ours reads the database, or is about to, and has it done soon.
    fn is_soon_read(&self, f: &HookedFile, w: &Watched) -> bool {
        let is_reading = || lock(&self.own).count > 0 || w.tracker.sync_state() == Sync::Resyncing;
        is_reading() && f.file_size().is_ok_and(|n| n.max(w.wal_bytes()) <= SOON_READ)
    }

    /// A thread of ours begins to read the database whole.
    pub(super) fn reading_begins(&self) {
        let end = clock::uptime() + READING_PATIENCE;
        self.patient_until.store(end.as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until no thread of ours reads the database any more, if that is a matter of milliseconds: all that wait for one reading
    /// together no longer than [`READING_PATIENCE`]. App's thread.
    fn wait_for_reading(&self, f: &HookedFile, w: &Watched) {
        let end = Duration::from_millis(self.patient_until.load(Ordering::Relaxed));
        while clock::uptime() < end && self.is_soon_read(f, w) {
            clock::sleep(Duration::from_micros(200));
        }
    }

    /// A reset is refused while a resync needs the WAL as it is: not if that is nearly over.
    fn wait_for_resync(&self, f: &HookedFile) {
        if let Some(w) = self.watched_through(f)
            && w.tracker.sync_state() == Sync::Resyncing
        {
            self.wait_for_reading(f, &w);
        }
    }

    /// The handle has the file for itself: from now on the tracker is told of its commits. That takes a wal-index in shared
    /// memory; a connection that set the mode before its first read keeps it to itself.
    fn follow_exclusive(&self, f: &HookedFile) {
        if let Some(w) = self.watched_through(f)
            && self.is_at_path(f)
            && let Some(h) = header(f)
        {
            self.is_followed.store(true, Ordering::Relaxed);
            w.begins_exclusive(&h, self.inode_under(f));
        }
    }

    fn exclusive_ends(&self, f: &HookedFile) {
        if self.exclusive.compare_exchange(f.id(), 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && self.is_followed.swap(false, Ordering::Relaxed)
            && let Some(w) = self.watched_through(f)
        {
            w.noticed(w.tracker.write_ends(header(f)));
        }
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

/// Stands for the inode of a file that has no name any more, or another one.
const MOVED: u64 = u64::MAX;

/// A number for the file at `path`, of its inode and device; 0 when there is no file.
fn inode_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| number_of(m.ino(), m.dev())).unwrap_or(0)
}

fn number_of(inode: u64, device: u64) -> u64 {
    inode ^ device.rotate_left(48)
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
            lock(&self.open).insert(f.id(), self.inode_now_under(f));
        }
    }

    /// SQLite maps the wal-index before anything matters.
    fn mapped(&self, f: &HookedFile) {
        if self.generation != generation() {
            return;
        }
        lock(&self.handles).entry(f.id()).or_insert_with(|| Handle {
            peek: f.peek(),
            inode: self.inode_now_under(f),
            has_ckpt: false,
        });
        self.wish_at(f, Moment::Mapped);
        if let Some(w) = self.watched() {
            w.link.want_lease();
            w.opened();
        }
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
        if op == LockOp::LockExclusive && (slots == RESET || slots == WRITE) {
            self.wait_for_resync(f);
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
                let by = if self.has_ckpt(f) { Resetter::Checkpoint } else { Resetter::Commit };
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
            && let Some(mode) = arg
            && self.is_wished()
        {
            let is_wal = mode.trim_matches(['\'', '"', ' ']).eq_ignore_ascii_case("wal");
            self.wish.note(|said| said.other_mode = !is_wal);
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

    fn before_file_lock(&self, f: &HookedFile, level: FileLock) {
        if begin::is_first_lock(f) {
            self.wish_at(f, Moment::BeforeLock);
        }
        // In WAL mode EXCLUSIVE is wanted by the last close and by a change of journal mode.
        let ours = self.generation == generation() && self.is_watched.load(Ordering::Acquire);
        if level == FileLock::Exclusive && ours && self.handles() <= 1 {
            self.recall_own();
        }
    }

    fn after_file_lock(&self, f: &HookedFile, level: FileLock) {
        // Also of a database that is not watched: it may be in a moment.
        if level == FileLock::Exclusive && self.exclusive.swap(f.id(), Ordering::Relaxed) != f.id() {
            self.is_followed.store(false, Ordering::Relaxed);
            self.follow_exclusive(f);
        }
    }

    fn file_lock_failed(&self, _f: &HookedFile, level: FileLock) {
        if level == FileLock::Exclusive && self.generation == generation() && !self.is_exclusive() {
            self.unbar_own();
        }
    }

    fn committed_exclusive(&self, f: &HookedFile) {
        let Some(w) = self.watched_through(f).filter(|_| self.is_at_path(f)) else { return };
        match header(f) {
            Some(h) if self.is_followed.load(Ordering::Relaxed) => {
                w.commits_exclusive(h, self.inode_under(f))
            }
            // It had the file for itself before it was watched.
            Some(_) => self.follow_exclusive(f),
            None => w.commits_unseen(),
        }
        if w.settings.durability == Durability::Sync {
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
            self.wish.note(|said| said.wrote = true);
        }
        if self.is_followed.load(Ordering::Relaxed)
            && self.exclusive.load(Ordering::Relaxed) == f.id()
            && let Some(w) = self.watched_through(f)
            && let Some(h) = header(f)
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
            let noticed = w.tracker.last_close(header(f).as_ref());
            w.noticed(noticed);
            if self.is_at_path(f) {
                w.closes(self.inode_under(f));
            }
        }
    }

    fn closing(&self, f: &HookedFile) {
        if self.generation != generation() {
            return;
        }
        let is_last_open = lock(&self.open).len() == 1;
        if is_last_open {
            self.wish.close();
            if let Some(w) = self.watched() {
                w.finish_beginning();
            }
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
            Some(Durability::Async) => WalHook::JoinWrites,
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
