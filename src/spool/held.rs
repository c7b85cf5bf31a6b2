//! The seal lock as a proof, and what its holder says to the next one.

use super::dir::Spool;
use super::lock::{Held, LockFile, Mark};
use crate::base::{Error, Kind, Result};
use std::sync::atomic::Ordering;

/// Where `lock.seal` says how much is on disk, and in how many bytes.
pub(super) const MARK_AT: u64 = 32;
pub(super) const MARK_BYTES: usize = 40;

/// Proof that the seal lock is held, for what may be done under it only (I-SPOOL-3). Until dropped.
#[derive(Debug)]
pub struct SealHeld<'a> {
    pub(super) lock: Held<'a>,
}

/// Several files change that belong together. Dropped without [`Change::done`], it leaves the mark by which the next holder of
/// the seal lock settles them (I-SPOOL-6).
#[derive(Debug)]
#[must_use = "without done() the next holder of the lock settles the change"]
pub struct Change<'a> {
    lock: &'a LockFile,
    held: &'a SealHeld<'a>,
}

impl Change<'_> {
    /// They have changed.
    pub fn done(self) -> Result<()> {
        self.lock.set_mark(&self.held.lock, Mark::Clean)
    }
}

impl Spool {
    /// Waits for the lock of whoever seals, one thread of one process at a time, and leaves to [`Spool::recover`] what its last
    /// holder left undone.
    pub fn hold_unsettled(&self) -> Result<SealHeld<'_>> {
        Ok(SealHeld { lock: self.seal_lock.hold()? })
    }

    /// Several files change from here to [`Change::done`]; when something fails in between, the next holder looks.
    pub fn begin_change<'a>(&'a self, held: &'a SealHeld<'a>) -> Result<Change<'a>> {
        self.seal_lock.set_mark(&held.lock, Mark::Changing)?;
        Ok(Change { lock: &self.seal_lock, held })
    }

    /// Nothing is left undone, nor made ahead of a COMMIT.
    pub fn end_change(&self, held: &SealHeld<'_>) -> Result<()> {
        self.seal_lock.set_mark(&held.lock, Mark::Clean)
    }

    /// The next TXID is made before its COMMIT (sync durability): nobody else may make it, until [`Spool::end_change`] or [`Change::done`].
    /// [`Spool::no_longer_ahead`] says when that is over, or the death of this process does.
    pub fn set_ahead(&self, held: &SealHeld<'_>) -> Result<()> {
        if !self.ahead_lock()?.try_process()? {
            return Err(Error::new(Kind::Retry, "another process has a COMMIT under way"));
        }
        self.ahead_here.store(true, Ordering::Release);
        self.seal_lock.set_mark(&held.lock, Mark::Ahead)
    }

    /// The COMMIT of this process is here, or is given up.
    pub fn no_longer_ahead(&self) {
        if self.ahead_here.swap(false, Ordering::AcqRel)
            && let Ok(l) = self.ahead_lock()
        {
            l.release();
        }
    }

    fn ahead_lock(&self) -> Result<&LockFile> {
        if let Some(l) = self.ahead_lock.get() {
            return Ok(l);
        }
        let opened = LockFile::open(&self.dir.join("lock.ahead"))?;
        Ok(self.ahead_lock.get_or_init(|| opened))
    }

    /// Whether the next TXID is made before its COMMIT.
    pub fn is_ahead(&self, _held: &SealHeld<'_>) -> Result<bool> {
        Ok(self.seal_lock.mark()? == Mark::Ahead)
    }

    /// Whether a process that lives has such a COMMIT under way.
    pub fn is_ahead_alive(&self) -> Result<bool> {
        Ok(self.ahead_here.load(Ordering::Acquire) || self.ahead_lock()?.is_held_elsewhere()?)
    }

    /// Nothing is known to be on disk any more: another file is about to bear a name that was. (See the file `durable.rs`.)
    pub(super) fn forget_durable(&self, held: &SealHeld<'_>) -> Result<()> {
        self.seal_lock.write_at(&held.lock, &[0; MARK_BYTES], MARK_AT)
    }
}
