//! How the rooms above see, and have a say in, what SQLite does to one file: safe traits.
//!
//! Threads: every method is called on the app's thread, inside SQLite, with the connection's mutex held;
//! calls for one file handle never overlap, calls for different handles do. A method must therefore be
//! quick, must not use the same connection (except the two `connection_*` ones), and must not block in
//! ways that depend on the app. A panic is caught, reported to [`DbObserver::panicked`], and that handle is
//! not observed any further (its WAL handle, if observed, refuses writes instead: see [`WalObserver`]).

use super::file::{HookedFile, WalFile};
use super::vocab::{Again, FileLock, LockOp, PragmaVerdict, SlotRange, Verdict, WalVerdict};
use std::any::Any;
use std::sync::Arc;

/// What is done with the handle of a WAL file.
pub enum WalHook {
    /// It is left alone.
    None,
    /// Header and page of a frame are written in one call.
    JoinWrites,
    /// Writes are told first, and may be withheld.
    Observe(Arc<dyn WalObserver>),
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
    /// The handle is about to be closed. The last call for this handle.
    fn closing(&self, file: &WalFile) {}
}
