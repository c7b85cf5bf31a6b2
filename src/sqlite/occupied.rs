//! Whether anybody has a database file open, and keeping everybody out of it while it is replaced.
//!
//! A file that is replaced under a connection ruins what that connection does next: it goes on with a file that has no name, or
//! puts its WAL, by name, to the new one. Three things tell of a connection:
//!
//! * descriptors of this process, whoever opened them (`/proc/self/fd`): SQLite with or without our hooks, any VFS, a child's
//!   inheritance;
//! * descriptors of other processes (`/proc/<pid>/fd`, Linux), as far as this user may look: those of the same user, and for root
//!   all in sight;
//! * SQLite's own lock: EXCLUSIVE on the file is not to be had while anybody holds SHARED, as every connection in WAL mode does
//!   from its first read on, and every one in rollback mode inside a transaction.
//!
//! What none of them tells: a connection of another user's process, of another container or machine, that is at rest in rollback
//! mode or has not read yet.
//!
//! The file is opened through SQLite's VFS ([`RawDb`]) and only after this process was seen not to have it open: closing any other
//! descriptor would drop the process's locks on it (<https://sqlite.org/howtocorrupt.html>, 2.2).

use super::lower;
use super::raw::RawDb;
use super::vocab::{Access, FileLock};
use crate::base::{Error, Kind, Result, clock};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Offset of the file format write and read versions: 1 rollback, 2 WAL.
const FORMAT: u64 = 18;
/// How often somebody may be met there, such as a program that only looked.
const TRIES: usize = 4;
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// A file that nobody has open, and that nobody can begin to read until this is dropped.
pub struct Occupied {
    path: PathBuf,
    db: Option<RawDb>,
    id: Id,
}

/// A file, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Id {
    device: (u32, u32),
    inode: u64,
}

impl Occupied {
    /// Keeps others out of the file at `path`; `None` if there is none. Errors with [`Kind::Config`] if somebody has it open, and not just
    /// for a moment.
    pub fn take(path: &Path) -> Result<Option<Occupied>> {
        for _ in 1..TRIES {
            match Self::take_once(path) {
                Err(e) if e.kind() == Kind::Config => {}
                done => return done,
            }
            // Two restores that look at the same moment see each other: by chance one comes first.
            let pause = SHORTEST_PAUSE + Duration::from_millis(clock::random_u64() % 100);
            clock::sleep(pause);
        }
        Self::take_once(path)
    }

    fn take_once(path: &Path) -> Result<Option<Occupied>> {
        let Some(id) = Id::of(path) else { return Ok(None) };
        refuse(path, id, 0)?;
        if lower::lower().is_null() {
            return Ok(Some(Occupied { path: path.to_path_buf(), db: None, id }));
        }
        let mut db = match RawDb::open(path) {
            Ok(db) => db,
            Err(e) if e.is_missing() => return Ok(None),
            Err(e) => return Err(e.context("whether somebody uses the file cannot be seen")),
        };
        if db.access() == Access::ReadOnly {
            // An EXCLUSIVE lock needs a file that can be written; asking who holds one does not.
            drop(db);
            ask(path)?;
            refuse(path, id, 0)?;
            return Ok(Some(Occupied { path: path.to_path_buf(), db: None, id }));
        }
        match db.lock(FileLock::Exclusive) {
            Ok(()) => {}
            Err(e) if e.is_retry() => return Err(in_use(path, "locked by another program")),
            // A file system without locks tells nothing by them.
            Err(e) => log::debug!("walrust: {}: no lock: {e}", path.display()),
        }
        // Whoever came between the two looks is seen now; later ones wait for the lock.
        refuse(path, id, 1)?;
        Ok(Some(Occupied { path: path.to_path_buf(), db: Some(db), id }))
    }

    /// To be asked right after another file took the path. Who opened this one after it was taken waits for its lock still, and its
    /// next step would be one with the new file's WAL or journal, which it knows by name. Errors with [`Kind::Config`] if there is one.
    pub fn stayed_alone(&self) -> Result<()> {
        refuse(&self.path, self.id, usize::from(self.db.is_some()))
    }

    /// To be called once another file is at the path for good. Whoever could not be seen and waits for the old file's lock must not find it
    /// in WAL mode; in rollback mode SQLite finds out by itself, at its next write (`SQLITE_READONLY_DBMOVED`).
    pub fn replaced(&mut self) {
        let Some(db) = self.db.as_mut().filter(|db| db.file_lock() == FileLock::Exclusive) else { return };
        let nameless =
            own_descriptors(self.id).iter().all(|fd| fs::metadata(fd).is_ok_and(|m| m.nlink() == 0));
        let mut head = [0; 20];
        if nameless
            && db.read_at(&mut head, 0).is_ok()
            && head.starts_with(MAGIC)
            && head.ends_with(&[2, 2])
            && let Err(e) = db.write_at(&[1, 1], FORMAT)
        {
            log::debug!("walrust: {e}");
        }
    }
}

impl Id {
    /// Without asking a file server that may be away, where the system can do that.
    fn of(path: &Path) -> Option<Id> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
            if let Ok(s) = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO) {
                return Some(Id { device: (s.stx_dev_major, s.stx_dev_minor), inode: s.stx_ino });
            }
        }
        let m = fs::metadata(path).ok()?;
        let device = m.dev() as rustix::fs::Dev;
        Some(Id { device: (rustix::fs::major(device), rustix::fs::minor(device)), inode: m.ino() })
    }
}

/// Errors if the file is open here with more than `ours` descriptors, or in another process.
fn refuse(path: &Path, id: Id, ours: usize) -> Result<()> {
    if own_descriptors(id).len() > ours {
        return Err(in_use(path, "open in this process"));
    }
    match other_process(id) {
        Some(who) => Err(in_use(path, &format!("open in {who}"))),
        None => Ok(()),
    }
}

fn in_use(path: &Path, how: &str) -> Error {
    let text = format!("{} is {how}; close it there, or restore to another path", path.display());
    Error::new(Kind::Config, text)
}

/// Errors if another process holds a lock on the file. This one has it not open.
fn ask(path: &Path) -> Result<()> {
    use rustix::process::{Flock, FlockType, fcntl_getlk};
    let Ok(file) = File::open(path) else { return Ok(()) };
    match fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)) {
        Ok(Some(_)) => Err(in_use(path, "locked by another program")),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// The descriptors of this process on the file.
fn own_descriptors(id: Id) -> Vec<PathBuf> {
    let table = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    on_file(Path::new(table), id).collect()
}

/// The entries of a table of descriptors that are the file.
fn on_file(table: &Path, id: Id) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(table).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(move |fd| is_named(fd) && Id::of(fd) == Some(id))
}

/// Whether a descriptor may be a file's: pipes, sockets and the like have no path.
fn is_named(fd: &Path) -> bool {
    !cfg!(target_os = "linux") || fs::read_link(fd).is_ok_and(|to| to.is_absolute())
}

/// Another process that has the file open, by number and name, as far as can be seen.
fn other_process(id: Id) -> Option<String> {
    let me = std::process::id().to_string();
    let me = fs::read_link("/proc/self").ok().and_then(|p| p.to_str().map(str::to_string)).unwrap_or(me);
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(number) = process.file_name().to_str().map(str::to_string) else { continue };
        if !number.bytes().all(|b| b.is_ascii_digit()) || number == me {
            continue;
        }
        if on_file(&process.path().join("fd"), id).next().is_some() {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
            return Some(format!("process {number} ({name})"));
        }
    }
    None
}
