//! The words in which this room and those above it speak of what SQLite does to a file: locks, answers, ways of access.

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
    /// [`super::WalFile::write_at`].
    Withhold,
    /// Do not do it; report this (extended) result code.
    Fail(i32),
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

/// Whether something that failed is to be tried once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Whatever blocked the lock will not go away soon: SQLite hears of the failure.
    No,
    /// Yes.
    Yes,
}
