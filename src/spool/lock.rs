//! A lock between processes that dies with its holder, and that costs a descriptor only while something is done under it.
//!
//! fcntl (POSIX record) locks, not flock: flock belongs to the open file, so a forked child would keep it
//! alive after its holder died. POSIX locks belong to the process and vanish when *any* descriptor of the
//! file is closed in it (<https://sqlite.org/howtocorrupt.html>, section 2.2).
//!
//! A program with a thousand databases has descriptors for its own files, not for ours. So:
//!
//! * I-LOCK-1: a lock file is open only while this process uses it ([`Use`]). Every use of one inode shares what is open, and
//!   the last one closes it, under the registry's mutex: no close takes away a lock that somebody holds.
//! * I-LOCK-2: a lock that is taken for long ([`LockFile::try_process`]) is kept by a [`Keeper`] without a descriptor. Where the
//!   system cannot do that, it is a use like any other until it is released.
//! * I-LOCK-3: a lock file is known by device, inode and time of birth. What lies at its path later and differs is another
//!   one ([`LockFile::is_replaced`]): two locks exclude nobody.
//! * I-LOCK-4: a thread that serves many databases waits for a lock of one of them no longer than it said ([`wait_at_most`]): a process
//!   that stands still (stopped, on a dead disk) holds up its own database and no other.

use crate::base::{Error, ForkSafe, Kind, Result, clock, manners};
use std::cell::Cell;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, SystemTime};

/// A lock file. Excludes threads of this process by a mutex and other processes by fcntl.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    id: FileId,
    thread: Mutex<()>,
    /// What [`LockFile::try_process`] took.
    taken: Mutex<Option<Taken>>,
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

/// A lock that is held as long as this lives, without a descriptor.
pub trait Kept: Send + Sync {}

/// Where a lock file names its holder; what is before that is the seal lock's mark.
const SIGNATURE: u64 = 16;

/// A kept lock; `None` when another has it.
pub type KeptOrNot = Option<Box<dyn Kept>>;

/// Keeps locks without a descriptor, where the system can. Offered by the room that may ask it for such.
#[derive(Clone, Copy)]
pub struct Keeper {
    /// Takes the lock of a file: `None` when another has it. Errors with `Unsupported` where it cannot be kept so.
    pub keep: fn(&Path) -> std::io::Result<KeptOrNot>,
    /// Whether somebody, this process included, keeps or holds it.
    pub is_held: fn(&File) -> std::io::Result<bool>,
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();

thread_local! {
    /// How long this thread waits for a lock; `None`: as long as its holder lives.
    static PATIENCE: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Between two tries of a thread that does not wait for ever.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// "process 17", or that there is one.
pub fn process(pid: i32) -> String {
    if pid > 0 { format!("process {pid}") } else { "another process".to_string() }
}

/// This thread waits for no lock longer than `patience` from now on (I-LOCK-4).
pub fn wait_at_most(patience: Duration) {
    PATIENCE.set(Some(patience));
}

/// Has locks that are taken for long kept by `keeper`. The first one counts.
pub fn keep_with(keeper: Keeper) {
    let _ = KEEPER.set(keeper);
}

enum Taken {
    /// Held for its drop.
    Kept {
        _lock: Box<dyn Kept>,
    },
    Used(Use),
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Taken::Kept { .. } => "Kept",
            Taken::Used(_) => "Used",
        })
    }
}

/// Which file it is, as long as it exists. (An inode number is given again to a new file; with its time of birth, where the
/// file system has one, it is not the same.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    dev: u64,
    ino: u64,
    born: Option<SystemTime>,
}

impl FileId {
    fn of(m: &Metadata) -> FileId {
        FileId { dev: m.dev(), ino: m.ino(), born: m.created().ok() }
    }
}

/// What this process has of lock files.
#[derive(Default)]
struct Registry {
    known: Vec<(u32, FileId, Weak<LockFile>)>,
    open: Vec<Open>,
}

/// An inode that is open, and by how many uses.
struct Open {
    pid: u32,
    id: FileId,
    /// More than one if two uses opened it at once: none of them is closed before the last use ends.
    files: Vec<Arc<File>>,
    uses: usize,
}

static REGISTRY: ForkSafe<Mutex<Registry>> = ForkSafe::new(Mutex::default);

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock()
}

impl Registry {
    /// Notes one more use of an open inode.
    fn again(&mut self, id: &FileId) -> Option<Use> {
        let open = self.open.iter_mut().find(|o| o.id == *id)?;
        let file = open.files.first()?.clone();
        open.uses += 1;
        Some(Use { id: *id, pid: open.pid, file: Some(file) })
    }

    fn first(&mut self, file: File, id: FileId) -> Use {
        let file = Arc::new(file);
        let pid = std::process::id();
        match self.open.iter_mut().find(|o| o.id == id) {
            Some(open) => {
                open.files.push(file.clone());
                open.uses += 1;
            }
            None => self.open.push(Open { pid, id, files: vec![file.clone()], uses: 1 }),
        }
        Use { id, pid, file: Some(file) }
    }

    fn end(&mut self, mut ended: Use) {
        drop(ended.file.take());
        if let Some(open) = self.open.iter_mut().find(|o| o.id == ended.id && o.pid == ended.pid) {
            open.uses -= 1;
        }
        self.open.retain(|o| o.uses > 0);
    }
}

/// A lock file is open as long as this lives.
#[derive(Debug)]
struct Use {
    id: FileId,
    pid: u32,
    /// There until it is dropped.
    file: Option<Arc<File>>,
}

impl Use {
    fn file(&self) -> Result<&File> {
        self.file.as_deref().ok_or_else(|| Error::new(Kind::Bug, "a lock file was closed while it was used"))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            registry().end(Use { id: self.id, pid: self.pid, file: Some(file) });
        }
    }
}

/// The processes of a simulated world are gone, and their lock files with them.
#[cfg(feature = "sim")]
pub fn forget_all() {
    registry().known.clear();
}

/// Held until dropped.
#[derive(Debug)]
pub struct Held<'a> {
    // In this order: the file may be closed while no other thread of this process can have the lock.
    used: Use,
    _thread: MutexGuard<'a, ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.holds(-1);
            return;
        }
        if let Ok(file) = self.used.file() {
            let _ = rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::Unlock);
        }
    }
}

impl LockFile {
    /// Finds the file, creating it; takes no lock and leaves nothing open. All who open the same file share one.
    pub fn open(path: &Path) -> Result<Arc<LockFile>> {
        let failed = |e| Error::io("open lock file", path, e);
        let mut r = registry();
        r.known.retain(|(_, _, l)| l.strong_count() > 0);
        // A forked child has its own: the mutex in its parent's may be held by a thread it does not have.
        let pid = std::process::id();
        let find = |r: &Registry, id: FileId| {
            r.known.iter().find(|(p, i, _)| (*p, *i) == (pid, id)).and_then(|(_, _, l)| l.upgrade())
        };
        if let Ok(m) = std::fs::metadata(path)
            && let Some(l) = find(&r, FileId::of(&m))
        {
            return Ok(l);
        }
        let file = manners::open_or_create(path).map_err(failed)?;
        let id = file.metadata().map(|m| FileId::of(&m)).map_err(failed)?;
        let used = r.first(file, id);
        r.end(used);
        if let Some(l) = find(&r, id) {
            return Ok(l);
        }
        let l = LockFile { path: path.to_path_buf(), id, thread: Mutex::new(()), taken: Mutex::new(None) };
        let l = Arc::new(l);
        r.known.push((pid, id, Arc::downgrade(&l)));
        Ok(l)
    }

    /// Opens it, if this process has not. Errors with [`Kind::Missing`] when it, or another, is not where it was.
    fn attach(&self) -> Result<Use> {
        let mut r = registry();
        if let Some(used) = r.again(&self.id) {
            return Ok(used);
        }
        let failed = |e| Error::io("open lock file", &self.path, e);
        let file = File::options().read(true).write(true).open(&self.path).map_err(failed)?;
        let id = file.metadata().map(|m| FileId::of(&m)).map_err(failed)?;
        let used = r.first(file, id);
        if id != self.id {
            r.end(used);
            return Err(self.replaced());
        }
        Ok(used)
    }

    fn replaced(&self) -> Error {
        let text = format!("{} was replaced: the spool is another one", self.path.display());
        Error::new(Kind::Missing, text)
    }

    /// Whether another file lies at its path: whoever opens that locks something else.
    pub fn is_replaced(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|m| FileId::of(&m) != self.id)
    }

    /// Whether no file lies at its path.
    pub(super) fn is_missing(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }

    /// Waits for the lock. Errors with [`Kind::Missing`] when another one lies in its place: two locks exclude nobody; and with
    /// [`Kind::Retry`] on a thread that waits no longer ([`wait_at_most`]).
    pub fn hold(&self) -> Result<Held<'_>> {
        if self.is_replaced() {
            return Err(self.replaced());
        }
        if let Some(patience) = PATIENCE.get() {
            return self.hold_within(patience);
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let used = self.attach()?;
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.holds(1);
            return Ok(Held { used, _thread: thread });
        }
        rustix::fs::fcntl_lock(used.file()?, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| Error::io("lock", &self.path, e.into()))?;
        Ok(Held { used, _thread: thread })
    }

    fn hold_within(&self, patience: Duration) -> Result<Held<'_>> {
        let end = clock::uptime() + patience;
        loop {
            if let Some(held) = self.try_hold()? {
                return Ok(held);
            }
            if clock::uptime() >= end {
                let who = self.holder()?.map_or("another thread of this process".to_string(), process);
                let text = format!("{} is held by {who}, which does not let go of it", self.path.display());
                return Err(Error::new(Kind::Retry, text));
            }
            clock::sleep(TRY_AGAIN);
        }
    }

    /// The lock, or `None` if another thread or process has it now. Errors with [`Kind::Missing`] when another one lies in its
    /// place, and as the file system does.
    pub fn try_hold(&self) -> Result<Option<Held<'_>>> {
        let thread = match self.thread.try_lock() {
            Ok(t) => t,
            Err(TryLockError::Poisoned(p)) => p.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        let used = self.attach()?;
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.holds(1);
            return Ok(Some(Held { used, _thread: thread }));
        }
        Ok(self.try_lock(&used)?.then_some(Held { used, _thread: thread }))
    }

    /// Takes the lock for the rest of this process's life (or until [`LockFile::release`]): false if another
    /// process has it.
    pub fn try_process(&self) -> Result<bool> {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            return Ok(w.own(&self.path));
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.is_some() {
            return Ok(true);
        }
        if let Some(keeper) = KEEPER.get() {
            match (keeper.keep)(&self.path) {
                Ok(None) => return Ok(false),
                Ok(Some(_)) if self.is_replaced() => return Err(self.replaced()),
                Ok(Some(lock)) => {
                    *taken = Some(Taken::Kept { _lock: lock });
                    self.sign();
                    return Ok(true);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {}
                Err(e) => return Err(Error::io("lock", &self.path, e)),
            }
        }
        let used = self.attach()?;
        let is_ours = self.try_lock(&used)?;
        if is_ours {
            *taken = Some(Taken::Used(used));
        }
        Ok(is_ours)
    }

    fn try_lock(&self, used: &Use) -> Result<bool> {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            return Ok(w.own(&self.path));
        }
        use rustix::io::Errno;
        match rustix::fs::fcntl_lock(used.file()?, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(e) => Err(Error::io("lock", &self.path, e.into())),
        }
    }

    /// Leaves a note for whoever holds the lock next. Errors as [`LockFile::write_at`].
    pub(super) fn set_mark(&self, held: &Held<'_>, mark: Mark) -> Result<()> {
        self.write_at(held, &[mark as u8], 0)
    }

    /// The note that was left; of a lock that another holds, what it is at. Errors as [`LockFile::read_at`].
    pub(super) fn mark(&self) -> Result<Mark> {
        let mut byte = [0];
        let is_there = self.read_at(&mut byte, 0)?;
        Ok(match byte {
            [0] if is_there => Mark::Clean,
            [2] => Mark::Ahead,
            _ if is_there => Mark::Changing,
            _ => Mark::Clean,
        })
    }

    /// Writes into the lock file, under the lock. Errors with [`Kind::Io`], or [`Kind::Missing`] when it was replaced.
    pub(super) fn write_at(&self, held: &Held<'_>, bytes: &[u8], offset: u64) -> Result<()> {
        debug_assert!(held.used.id == self.id, "I-LOCK-3");
        let file = held.used.file()?;
        file.write_all_at(bytes, offset).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Reads from it; `false` where it is shorter. Errors as [`LockFile::write_at`].
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<bool> {
        match self.attach()?.file()?.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(Error::io("read", &self.path, e)),
        }
    }

    /// Whether another process holds the lock. Takes nothing.
    pub fn is_held_elsewhere(&self) -> Result<bool> {
        use rustix::process::{Flock, FlockType, fcntl_getlk};
        if self.taken.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(false);
        }
        let failed = |e| Error::io("ask for lock", &self.path, e);
        let used = self.attach()?;
        if let Some(keeper) = KEEPER.get() {
            match (keeper.is_held)(used.file()?) {
                Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {}
                held => return held.map_err(failed),
            }
        }
        let asked = Flock::from(FlockType::WriteLock);
        Ok(fcntl_getlk(used.file()?, &asked).map_err(|e| failed(e.into()))?.is_some())
    }

    /// The process that holds the lock, unless it is this one: by the number that it wrote into the file ([`LockFile::sign`]), which is
    /// that of its own container; 0 where it wrote none. Takes nothing.
    pub fn holder(&self) -> Result<Option<i32>> {
        use rustix::process::{Flock, FlockType, fcntl_getlk};
        if self.taken.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(None);
        }
        let used = self.attach()?;
        let asked = Flock::from(FlockType::WriteLock);
        let found =
            fcntl_getlk(used.file()?, &asked).map_err(|e| Error::io("ask for lock", &self.path, e.into()))?;
        let signed = || {
            let mut pid = [0; 4];
            let read = used.file().is_ok_and(|f| f.read_exact_at(&mut pid, SIGNATURE).is_ok());
            if read { i32::from_le_bytes(pid).max(0) } else { 0 }
        };
        // (The system tells no number of a lock that is kept without a descriptor.)
        let told = |l: Flock| l.pid.map_or(0, |p| p.as_raw_nonzero().get());
        Ok(found.map(|l| Some(told(l)).filter(|p| *p > 0).unwrap_or_else(signed)))
    }

    /// Writes down which process has taken the lock for long: for messages only.
    fn sign(&self) {
        let Ok(used) = self.attach() else { return };
        if let Ok(file) = used.file() {
            let pid = std::process::id().to_le_bytes();
            drop(file.write_all_at(&pid, SIGNATURE));
        }
    }

    /// Gives back what [`LockFile::try_process`] took.
    pub fn release(&self) {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            return w.disown(&self.path);
        }
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Taken::Used(used)) = &taken
            && let Ok(file) = used.file()
        {
            let _ = rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::Unlock);
        }
    }
}
