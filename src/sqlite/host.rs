//! What this room offers upward: safe traits through which the rooms above see, and have a say in, what
//! SQLite does to a database file.
//!
//! Threads: every method is called on the app's thread, inside SQLite, with the connection's mutex held;
//! calls for one file handle never overlap, calls for different handles do. A method must therefore be
//! quick, must not use the same connection (except the two `connection_*` ones), and must not block in
//! ways that depend on the app. A panic is caught, reported to [`DbObserver::panicked`], and that handle is
//! not observed any further (its WAL handle, if observed, refuses writes instead: see [`WalObserver`]).

use super::connection::Connection;
use super::hook::HookedFile;
use super::wal_hook::WalFile;
use super::{api, registry};
use once_cell::race::OnceBox;
use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::Arc;

/// What `xShmLock` is asked to do (<https://sqlite.org/c3ref/io_methods.html>).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockOp {
    /// `SQLITE_SHM_LOCK | SQLITE_SHM_SHARED`
    LockShared,
    /// `SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE`
    LockExclusive,
    /// `SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED`
    UnlockShared,
    /// `SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE`
    UnlockExclusive,
}

/// Slots `first .. first + count` of the eight wal-index locks
/// (<https://sqlite.org/walformat.html#wal_locks>).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotRange {
    /// First slot, 0 to 7.
    pub first: u8,
    /// Number of slots, 1 or more.
    pub count: u8,
}

impl SlotRange {
    /// `WAL_WRITE_LOCK`
    pub const WRITE: SlotRange = SlotRange::one(0);
    /// `WAL_CKPT_LOCK`
    pub const CHECKPOINT: SlotRange = SlotRange::one(1);
    /// `WAL_RECOVER_LOCK`
    pub const RECOVER: SlotRange = SlotRange::one(2);
    /// `WAL_READ_LOCK(1)` to `(4)` together: asked EXCLUSIVE by whoever wants to reset the WAL.
    pub const READ_MARKS: SlotRange = SlotRange { first: 4, count: 4 };

    /// A single slot.
    pub const fn one(slot: u8) -> SlotRange {
        SlotRange { first: slot, count: 1 }
    }

    /// `WAL_READ_LOCK(mark)`, `mark` from 0 to 4.
    pub const fn read(mark: u8) -> SlotRange {
        SlotRange { first: 3 + mark, count: 1 }
    }

    /// Whether a reader's lock, `WAL_READ_LOCK` of any mark, is among them.
    pub fn has_read_marks(self) -> bool {
        self.first.saturating_add(self.count) > Self::read(0).first
    }

    /// Whether `slot` is one of them.
    pub fn contains(self, slot: u8) -> bool {
        slot >= self.first && slot - self.first < self.count
    }
}

/// The answer to a request for a wal-index lock. Ignored for unlocks, which always pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Ask the file system.
    Pass,
    /// `SQLITE_BUSY`, as if another connection held the lock.
    Busy,
    /// Fail with this (extended) result code.
    Fail(i32),
}

/// A level of the database file's own lock (<https://sqlite.org/c3ref/c_lock_exclusive.html>).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FileLock {
    /// `SQLITE_LOCK_NONE`
    None,
    /// `SQLITE_LOCK_SHARED`: held by every connection in WAL mode.
    Shared,
    /// `SQLITE_LOCK_RESERVED`: a rollback-mode writer.
    Reserved,
    /// `SQLITE_LOCK_PENDING`
    Pending,
    /// `SQLITE_LOCK_EXCLUSIVE`: rollback-mode commit, last close, change of journal mode.
    Exclusive,
}

impl FileLock {
    pub(super) fn from_raw(level: i32) -> FileLock {
        match level {
            i32::MIN..=0 => FileLock::None,
            1 => FileLock::Shared,
            2 => FileLock::Reserved,
            3 => FileLock::Pending,
            _ => FileLock::Exclusive,
        }
    }
}

/// The answer to a PRAGMA (<https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html#sqlitefcntlpragma>).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PragmaVerdict {
    /// SQLite handles it.
    Pass,
    /// The statement fails with this text.
    Refuse(String),
    /// The statement succeeds, with one row of one text or with no row; SQLite does not see it.
    Answer(Option<String>),
}

/// The answer to something about to happen to a WAL file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalVerdict {
    /// Do it.
    Pass,
    /// Do not do it, but report success: the observer keeps the bytes and writes them later, through
    /// [`WalFile::write_at`].
    Withhold,
    /// Do not do it; report this (extended) result code.
    Fail(i32),
}

/// What is done with the handle of a WAL file.
pub enum WalHook {
    /// It is left alone.
    None,
    /// Header and page of a frame are written in one call.
    JoinWrites,
    /// Writes are told first, and may be withheld.
    Observe(Arc<dyn WalObserver>),
}

/// How this room came to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Opened through our `xOpen`.
    VfsOpen,
    /// Found open on a connection, and taken in.
    HotAttach,
}

/// Whether a file can be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Opened for reading and writing.
    ReadWrite,
    /// Opened read-only.
    ReadOnly,
}

/// A main database file at the moment it is met.
pub struct FileInfo<'a> {
    /// Path as SQLite uses it: absolute, exact bytes.
    pub path: &'a Path,
    /// Read-write or read-only.
    pub access: Access,
    /// The way it was met.
    pub how: How,
    /// Name of the VFS that holds the file (`unix`, `unix-excl`, …), below ours.
    pub vfs: &'a str,
    /// The `sqlite3_filename`, for URI parameters.
    pub(super) filename: *const c_char,
}

impl FileInfo<'_> {
    /// The value of a URI parameter (`file:app.db?name=value`); `None` when absent or not UTF-8.
    pub fn uri_parameter(&self, name: &str) -> Option<String> {
        let key = CString::new(name).ok()?;
        // SAFETY: `filename` is the name given to xOpen for a main database or by sqlite3_db_filename, the
        // two kinds https://sqlite.org/c3ref/uri_boolean.html allows; the answer lives as long as it.
        unsafe {
            let value = api::uri_parameter(self.filename, key.as_ptr());
            if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok().map(str::to_string) }
        }
    }

    /// Names of the URI parameters, as far as SQLite can tell them (from 3.31 on) and they are UTF-8.
    pub fn uri_keys(&self) -> Vec<String> {
        if !api::at_least(3_031_000) {
            return Vec::new();
        }
        // SAFETY: as in `uri_parameter`; "sqlite3_uri_key(F,N) returns a pointer to the name (not the value) of the N-th query
        // parameter […] or NULL if N is […] greater than the number of query parameters minus 1".
        let key = |n| unsafe {
            let key = api::uri_key(self.filename, n);
            (!key.is_null()).then(|| CStr::from_ptr(key).to_str().ok().map(str::to_string))
        };
        (0..).map_while(key).flatten().collect()
    }
}

/// Decides who observes a main database file. Process-wide.
pub trait Host: Send + Sync {
    /// A main database file was opened, or found open. `Some`: its handle is hooked and observed from now
    /// on. `None`: it is left alone for good, unless [`Connection::hook`] asks again. A host that may want a
    /// file later should answer with an observer that is idle: that costs a nanosecond a call.
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>>;

    /// A main database file was found open that may not be hooked, since its VFS is not one of SQLite's own.
    fn left_alone(&self, file: &FileInfo<'_>) {
        let _ = file;
    }

    /// End of `sqlite3_open()`, and the functions are registered. May run SQL.
    fn connection_opened(&self, conn: &Connection) {
        let _ = conn;
    }

    /// The extension was loaded on this connection, its functions are registered and its database files
    /// are hooked. May run SQL (which makes SQLite map the wal-index, so that it can be read).
    fn connection_loaded(&self, conn: &Connection) {
        let _ = conn;
    }
}

/// Whether something that failed is to be tried once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No: what it failed of stays as it is for now.
    No,
    /// Yes.
    Yes,
}

/// Sees the events of one database file handle. See the module's text for threads.
#[allow(unused_variables)]
pub trait DbObserver: Any + Send + Sync {
    /// Whether `before_shm_lock` and `after_shm_lock` are to be called for SHARED locks, too: every statement takes
    /// and gives back one. Asked once a handle.
    fn observes_shared_locks(&self) -> bool {
        true
    }
    /// The handle is hooked. The first call for it.
    fn hooked(&self, file: &HookedFile) {}
    /// The handle's wal-index is mapped (again), and can be read.
    fn mapped(&self, file: &HookedFile) {}
    /// A wal-index lock is about to be taken or given back. `UnlockExclusive` of slot 0 is where a commit
    /// is noticed: the wal-index header is final and the WRITE lock still held.
    fn before_shm_lock(&self, file: &HookedFile, slots: SlotRange, op: LockOp) -> Verdict {
        Verdict::Pass
    }
    /// A wal-index lock was taken or given back.
    fn after_shm_lock(&self, file: &HookedFile, slots: SlotRange, op: LockOp) {}
    /// Somebody has a lock that is in the way of this EXCLUSIVE one. Whether it is worth another try before SQLite hears of it.
    fn shm_lock_failed(&self, file: &HookedFile, slots: SlotRange) -> Again {
        Again::No
    }
    /// The file's own lock is about to be raised to `level`. RESERVED and above outside of
    /// WAL mode announce a rollback-mode writer.
    fn before_file_lock(&self, file: &HookedFile, level: FileLock) {}
    /// The file's own lock was raised to `level`. In WAL mode EXCLUSIVE means that SQLite takes no wal-index locks from
    /// now on: `locking_mode=EXCLUSIVE`, the last close, or a change of journal mode.
    fn after_file_lock(&self, file: &HookedFile, level: FileLock) {}
    /// Somebody else has the file, and its own lock was not raised to `level`.
    fn file_lock_failed(&self, file: &HookedFile, level: FileLock) {}
    /// A transaction was committed while this handle has the file's EXCLUSIVE lock, which is still held.
    fn committed_exclusive(&self, file: &HookedFile) {}
    /// The file's own lock is about to be lowered to `level`.
    fn before_file_unlock(&self, file: &HookedFile, level: FileLock) {}
    /// The file's own lock was lowered to `level`.
    fn after_file_unlock(&self, file: &HookedFile, level: FileLock) {}
    /// Bytes of the main file were written (checkpoint, rollback-mode writer), or a write of them failed.
    fn wrote_db(&self, file: &HookedFile, offset: u64, len: usize) {}
    /// The main file's size was set, or that failed.
    fn truncated_db(&self, file: &HookedFile, size: u64) {}
    /// A PRAGMA for this file, before SQLite acts on it. Not called for text that is not UTF-8.
    fn pragma(&self, file: &HookedFile, name: &str, arg: Option<&str>) -> PragmaVerdict {
        PragmaVerdict::Pass
    }
    /// The last connection is closing, or journal mode is leaving WAL: the WAL has been checkpointed and is
    /// about to be deleted (or, when the app asked to persist it, truncated). EXCLUSIVE lock is held.
    fn last_close(&self, file: &HookedFile) {}
    /// The handle is about to be closed. The last call for this handle.
    fn closing(&self, file: &HookedFile) {}
    /// A method of this observer panicked on some handle; that handle is not observed any further.
    fn panicked(&self, what: &str) {}
    /// What is done with the handle of the WAL file, whenever SQLite opens it.
    fn wal_hook(&self) -> WalHook {
        WalHook::None
    }
}

/// Sees what is about to happen to a WAL file, on the writer's thread. A panic counts as
/// `Fail` of that call: in this mode a commit that could not be decided must not go through.
#[allow(unused_variables)]
pub trait WalObserver: Send + Sync {
    /// `data` is about to be written at `offset`.
    fn before_write(&self, file: &WalFile, data: &[u8], offset: u64) -> WalVerdict {
        WalVerdict::Pass
    }
    /// The WAL is about to be truncated to `size` bytes.
    fn before_truncate(&self, file: &WalFile, size: u64) -> WalVerdict {
        WalVerdict::Pass
    }
    /// The WAL is about to be synced.
    fn before_sync(&self, file: &WalFile) -> WalVerdict {
        WalVerdict::Pass
    }
    /// The handle is about to be closed. The last call for this handle.
    fn closing(&self, file: &WalFile) {}
}

/// A host, and those added after it: a list that is only ever added to, and read without a lock, since a forked child goes on
/// with its parent's.
struct Listed {
    host: Arc<dyn Host>,
    next: OnceBox<Listed>,
}

static HOSTS: OnceBox<Listed> = OnceBox::new();

/// Adds a host, behind those already there. The first that wants a file has it. A process has one; tests
/// add more.
pub fn add_host(host: Arc<dyn Host>) {
    let mut new = Box::new(Listed { host, next: OnceBox::new() });
    let mut end = &HOSTS;
    while let Err(back) = end.set(new) {
        new = back;
        match end.get() {
            Some(there) => end = &there.next,
            None => return,
        }
    }
}

/// Asks the hosts in turn.
pub(super) fn observer_for(file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
    hosts().find_map(|h| h.opened(file))
}

/// The hosts, in the order in which they were added.
pub(super) fn hosts() -> impl Iterator<Item = &'static Arc<dyn Host>> {
    std::iter::successors(HOSTS.get(), |h| h.next.get()).map(|h| &h.host)
}

/// Number of hooked handles on this path in this process.
pub fn hooked_handles(path: &Path) -> usize {
    registry::lock().count(path)
}
