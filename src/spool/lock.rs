//! A lock between processes that dies with its holder.
//!
//! fcntl (POSIX record) locks, not flock: flock belongs to the open file, so a forked child would keep it
//! alive after its holder died. POSIX locks belong to the process and vanish when *any* descriptor of the
//! file is closed in it, so a lock file that was opened stays open until it is deleted, and opening it
//! again gives the same one.

use crate::base::{Error, ForkSafe, Result};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// A lock file. Excludes threads of this process by a mutex and other processes by fcntl.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    file: File,
    thread: Mutex<()>,
}

/// What a holder leaves in the file for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Clean = 0,
    /// It is between two steps that belong together: if it is gone, it died or failed there.
    Changing = 1,
    /// The next TXID is made, for a COMMIT that waits for the replica and is not here yet.
    Ahead = 2,
}

/// Process, device, inode, and the lock file opened on them.
type Opened = (u32, u64, u64, Arc<LockFile>);

static OPEN: ForkSafe<Mutex<Vec<Opened>>> = ForkSafe::new(Mutex::default);

/// The processes of a simulated world are gone, and their lock files with them.
#[cfg(feature = "sim")]
pub fn forget_all() {
    OPEN.lock().clear();
}

/// Held until dropped.
#[derive(Debug)]
pub struct Held<'a> {
    file: &'a File,
    _thread: MutexGuard<'a, ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.holds(-1);
            return;
        }
        let _ = rustix::fs::fcntl_lock(self.file, rustix::fs::FlockOperation::Unlock);
    }
}

impl LockFile {
    /// Opens the file, creating it; takes no lock.
    pub fn open(path: &Path) -> Result<Arc<LockFile>> {
        let mut open = OPEN.lock();
        // Of a spool that is deleted nobody asks for the lock any more: a watch that is tried again and again makes one each time.
        open.retain(|(_, _, _, l)| {
            Arc::strong_count(l) > 1 || l.file.metadata().is_ok_and(|m| m.nlink() > 0)
        });
        // A forked child opens its own: the mutex in its parent's may be held by a thread it does not have.
        let pid = std::process::id();
        if let Ok(m) = std::fs::metadata(path)
            && let Some((_, _, _, l)) =
                open.iter().find(|(p, d, i, _)| (*p, *d, *i) == (pid, m.dev(), m.ino()))
        {
            return Ok(l.clone());
        }
        let l = Arc::new(Self::create(path)?);
        let m = l.file.metadata().map_err(|e| Error::io("look at lock file", path, e))?;
        open.push((pid, m.dev(), m.ino(), l.clone()));
        Ok(l)
    }

    fn create(path: &Path) -> Result<LockFile> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io("open lock file", path, e))?;
        Ok(LockFile { path: path.to_path_buf(), file, thread: Mutex::new(()) })
    }

    /// Whether another file lies at its path: whoever opens that locks something else.
    pub fn is_replaced(&self) -> bool {
        let (Ok(here), Ok(ours)) = (std::fs::metadata(&self.path), self.file.metadata()) else {
            return false;
        };
        (here.dev(), here.ino()) != (ours.dev(), ours.ino())
    }

    /// Waits for the lock. Errors with [`crate::base::Kind::Missing`] when another one lies in its place: two locks
    /// exclude nobody.
    pub fn hold(&self) -> Result<Held<'_>> {
        if self.is_replaced() {
            return Err(Error::new(
                crate::base::Kind::Missing,
                format!("{} was replaced: the spool is another one", self.path.display()),
            ));
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.holds(1);
            return Ok(Held { file: &self.file, _thread: thread });
        }
        rustix::fs::fcntl_lock(&self.file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| Error::io("lock", &self.path, e.into()))?;
        Ok(Held { file: &self.file, _thread: thread })
    }

    /// The lock, or `None` if another thread or process has it now.
    pub fn try_hold(&self) -> Result<Option<Held<'_>>> {
        let thread = match self.thread.try_lock() {
            Ok(t) => t,
            Err(TryLockError::Poisoned(p)) => p.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        Ok(self.try_process()?.then_some(Held { file: &self.file, _thread: thread }))
    }

    /// Takes the lock for the rest of this process's life (or until [`LockFile::release`]): false if another
    /// process has it.
    pub fn try_process(&self) -> Result<bool> {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            return Ok(w.own(&self.path));
        }
        use rustix::io::Errno;
        match rustix::fs::fcntl_lock(&self.file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(e) => Err(Error::io("lock", &self.path, e.into())),
        }
    }

    /// Leaves a note for whoever holds the lock next. Caller holds it.
    pub(super) fn set_mark(&self, mark: Mark) -> Result<()> {
        self.file.write_all_at(&[mark as u8], 0).map_err(|e| Error::io("write", &self.path, e))
    }

    /// The note that was left. Caller holds the lock.
    pub(super) fn mark(&self) -> Result<Mark> {
        let mut byte = [0];
        match self.file.read_at(&mut byte, 0) {
            Ok(0) => Ok(Mark::Clean),
            Ok(_) => Ok(match byte {
                [0] => Mark::Clean,
                [2] => Mark::Ahead,
                _ => Mark::Changing,
            }),
            Err(e) => Err(Error::io("read", &self.path, e)),
        }
    }

    /// The process that holds the lock, unless it is this one. Takes nothing.
    pub fn holder(&self) -> Result<Option<i32>> {
        use rustix::process::{Flock, FlockType, fcntl_getlk};
        let asked = Flock::from(FlockType::WriteLock);
        let found =
            fcntl_getlk(&self.file, &asked).map_err(|e| Error::io("ask for lock", &self.path, e.into()))?;
        Ok(found.map(|l| l.pid.map_or(0, |p| p.as_raw_nonzero().get())))
    }

    /// Gives back what [`LockFile::try_process`] took.
    pub fn release(&self) {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            return w.disown(&self.path);
        }
        let _ = rustix::fs::fcntl_lock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}
