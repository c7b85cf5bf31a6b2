//! A database file opened by ourselves, through the lower VFS, as SQLite opens it.
//!
//! POSIX drops all of a process's locks on a file when any descriptor of it is closed; SQLite's unix VFS
//! defers its closes for that reason, and a plain `open()` + `close()` beside it corrupts databases
//! (measured on five versions, <https://sqlite.org/howtocorrupt.html#posix_close_bug>). So every access of
//! ours to a database file or its wal-index inside the app's process goes through here. The `-wal` file is
//! never locked and may be opened plainly.
//!
//! I-RAW-1: a [`RawDb`] gives back, when dropped, every lock it took, in the order SQLite does.

use super::error;
use super::ffi::{self, File, IoMethods, Vfs};
use super::fork::{OwnHandle, recalled};
use super::methods::{Methods, REGION, ReadExtent, file_size, read_file};
use super::own::c_path;
use super::shm::{WAL_INDEX_HEADER, try_header};
use super::vocab::{Access, FileLock, LockOp, SlotRange};
use super::{api, lower};
use crate::base::{Error, Kind, Result, clock};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Between two tries to get a lock.
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// An open main database file of ours. May move between threads, is used by one at a time. While it lives a
/// fork waits for it: whoever keeps it for long asks [`super::recalled`] at each step (I-FORK-1). Do not open a second one while
/// holding one.
pub struct RawDb {
    /// `szOsFile` bytes, aligned; holds the `sqlite3_file`.
    body: Box<[u64]>,
    /// Kept because the unix VFS keeps a pointer to the name.
    _name: Filename,
    path: PathBuf,
    access: Access,
    level: FileLock,
    shm: Option<ShmMap>,
    /// Bit per slot held SHARED, and held EXCLUSIVE.
    held: (u8, u8),
    _own: OwnHandle,
}

// SAFETY: a sqlite3_file may be used from any thread, by one at a time; SQLite moves connections between
// threads in the same way.
unsafe impl Send for RawDb {}

#[derive(Clone, Copy)]
struct ShmMap {
    region: *mut c_void,
    writable: bool,
}

impl RawDb {
    /// Opens an existing database file, read-only if it cannot be written. Takes no lock.
    /// Errors with [`Kind::Missing`] when there is no such file.
    pub fn open(path: &Path) -> Result<RawDb> {
        let lower = lower::lower();
        if lower.is_null() {
            return Err(Error::new(
                Kind::Bug,
                "the extension is not loaded, there is no SQLite to open with",
            ));
        }
        let own = OwnHandle::new(path);
        let name = Filename::new(path)?;
        // SAFETY: the lower VFS is registered and lives for good.
        let (size, access) = unsafe { ((*lower).sz_os_file, (*lower).x_access) };
        let Some(open) = lower::lower_open() else {
            return Err(error::from_code(ffi::CANTOPEN, "cannot open files"));
        };
        if let Some(access) = access
            && !exists(lower, access, name.as_ptr())
            // SQLite's unix VFS calls an empty file absent.
            && !path.exists()
        {
            return Err(Error::new(Kind::Missing, format!("there is no file {}", path.display())));
        }
        let mut body = vec![0u64; usize::try_from(size).unwrap_or(0).div_ceil(8)].into_boxed_slice();
        let file = body.as_mut_ptr().cast::<File>();
        let mut rc = ffi::CANTOPEN;
        let mut granted = 0;
        for mode in [ffi::OPEN_READWRITE, ffi::OPEN_READONLY] {
            let flags = mode | ffi::OPEN_MAIN_DB;
            granted = flags;
            // SAFETY: a zeroed body of szOsFile bytes; `name` is a sqlite3_filename that outlives the file.
            rc = unsafe { open(lower, name.as_ptr(), file, flags, &raw mut granted) };
            if rc == ffi::OK {
                break;
            }
            // SAFETY: "xClose is called if pMethods is not NULL, even if xOpen failed" (c3ref/io_methods.html).
            unsafe { close(file) };
        }
        error::check(rc, || format!("cannot open {}", path.display()))?;
        Ok(RawDb {
            body,
            _name: name,
            path: path.to_path_buf(),
            access: if granted & ffi::OPEN_READONLY != 0 { Access::ReadOnly } else { Access::ReadWrite },
            level: FileLock::None,
            shm: None,
            held: (0, 0),
            _own: own,
        })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Read-write or read-only.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Level of the file's own lock now.
    pub fn file_lock(&self) -> FileLock {
        self.level
    }

    fn file(&self) -> *mut File {
        self.body.as_ptr().cast_mut().cast()
    }

    fn methods(&self) -> Methods {
        // SAFETY: open until dropped.
        unsafe { Methods::of(self.file()) }
    }

    /// Reads `buf.len()` bytes at `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        // SAFETY: open; `&self` is on one thread (not Sync).
        unsafe { read_file(self.file(), self.methods(), buf, offset, &self.path) }
    }

    /// Size in bytes.
    pub fn size(&self) -> Result<u64> {
        // SAFETY: as above.
        unsafe { file_size(self.file(), self.methods(), &self.path) }
    }

    /// Writes `data` at `offset`. The caller holds the locks that SQLite's rules demand.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let (Some(write), Ok(len), Ok(at)) =
            (self.methods().x_write(), c_int::try_from(data.len()), i64::try_from(offset))
        else {
            return Err(Error::new(Kind::Bug, format!("cannot write {} at {offset}", self.path.display())));
        };
        // SAFETY: open; the buffer has `len` bytes.
        let rc = unsafe { write(self.file(), data.as_ptr().cast(), len, at) };
        error::check(rc, || format!("cannot write {} at {offset}", self.path.display()))
    }

    /// Sets the size.
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        let to = i64::try_from(size).unwrap_or(i64::MAX);
        // SAFETY: open.
        let rc = unsafe { self.methods().x_truncate().map_or(ffi::IOERR, |f| f(self.file(), to)) };
        error::check(rc, || format!("cannot truncate {} to {size}", self.path.display()))
    }

    /// Makes what was written durable.
    pub fn sync(&mut self) -> Result<()> {
        // SAFETY: open.
        let rc = unsafe { self.methods().x_sync().map_or(ffi::OK, |f| f(self.file(), ffi::SYNC_NORMAL)) };
        error::check(rc, || format!("cannot sync {}", self.path.display()))
    }

    /// Raises the file's own lock to SHARED, RESERVED or EXCLUSIVE, by SQLite's steps. Errors with
    /// [`Kind::Retry`] when another holds it; then the level is what it was.
    pub fn lock(&mut self, level: FileLock) -> Result<()> {
        let before = self.level;
        for step in [FileLock::Shared, FileLock::Reserved, FileLock::Exclusive] {
            if step > level || step <= self.level {
                continue;
            }
            let raw = raw_level(step);
            // SAFETY: open; levels go up in the order xLock allows.
            let rc = unsafe { self.methods().x_lock().map_or(ffi::IOERR, |f| f(self.file(), raw)) };
            if rc != ffi::OK {
                // A failed EXCLUSIVE leaves PENDING behind.
                self.level = FileLock::Exclusive.min(FileLock::Pending.max(self.level));
                let back = self.unlock(before);
                let failed = error::from_code(rc, &format!("cannot lock {}", self.path.display()));
                return back.and(Err(failed));
            }
            self.level = step;
        }
        Ok(())
    }

    /// Raises RESERVED to EXCLUSIVE, and waits up to `patience` for readers to finish; meanwhile no new one comes in.
    /// Errors with [`Kind::Retry`] when some are still there; then PENDING stays held until [`RawDb::unlock`].
    pub fn wait_exclusive(&mut self, patience: Duration) -> Result<()> {
        if self.level < FileLock::Reserved {
            return Err(Error::new(Kind::Bug, format!("{} is not locked RESERVED", self.path.display())));
        }
        let end = clock::uptime() + patience;
        loop {
            // SAFETY: open, with RESERVED or PENDING held, from where EXCLUSIVE may be asked for.
            let rc = unsafe {
                self.methods().x_lock().map_or(ffi::IOERR, |f| f(self.file(), raw_level(FileLock::Exclusive)))
            };
            if rc == ffi::OK {
                self.level = FileLock::Exclusive;
                return Ok(());
            }
            self.level = FileLock::Pending;
            let failed = error::from_code(rc, &format!("cannot lock {}", self.path.display()));
            if !failed.is_retry() || clock::uptime() >= end {
                return Err(failed);
            }
            recalled()?;
            clock::sleep(BETWEEN_TRIES);
        }
    }

    /// Lowers the file's own lock to SHARED or NONE.
    pub fn unlock(&mut self, level: FileLock) -> Result<()> {
        if level >= self.level {
            return Ok(());
        }
        // xUnlock takes SHARED or NONE only.
        let to = if level >= FileLock::Shared { FileLock::Shared } else { FileLock::None };
        // SAFETY: open.
        let rc = unsafe { self.methods().x_unlock().map_or(ffi::IOERR, |f| f(self.file(), raw_level(to))) };
        self.level = to;
        error::check(rc, || format!("cannot unlock {}", self.path.display()))
    }

    /// Maps the wal-index header, which must be there. Errors with [`Kind::Missing`] when the database has
    /// no wal-index (not in WAL mode, or nobody has read it since it was last closed), and with
    /// [`Kind::Retry`] while another process is just making it. The caller holds SHARED.
    pub fn open_wal_index(&mut self) -> Result<()> {
        if self.shm.is_some() {
            return Ok(());
        }
        let missing = || Error::new(Kind::Missing, format!("{} has no wal-index", self.path.display()));
        let map = self.methods().x_shm_map().ok_or_else(missing)?;
        if !self.sibling_exists("-shm")? {
            return Err(missing());
        }
        let mut region = std::ptr::null_mut();
        // SAFETY: open; bExtend 0 neither grows nor writes.
        let rc = unsafe { map(self.file(), 0, REGION, 0, &raw mut region) };
        if rc == ffi::OK || rc == ffi::READONLY {
            // Whatever comes, the lower VFS now has a wal-index open for this file: drop must unmap.
            self.shm = Some(ShmMap { region, writable: rc == ffi::OK });
        } else {
            return Err(error::from_code(
                rc,
                &format!("cannot map the wal-index of {}", self.path.display()),
            ));
        }
        if region.is_null() { Err(missing()) } else { Ok(()) }
    }

    /// A copy of the wal-index header; `None` before [`RawDb::open_wal_index`], and when its file was cut meanwhile.
    pub fn wal_index_header(&self) -> Option<[u8; WAL_INDEX_HEADER]> {
        let region = self.shm?.region;
        // SAFETY: mapped until this value is dropped.
        if region.is_null() { None } else { unsafe { try_header(region) } }
    }

    /// Takes or gives back wal-index locks. Errors with [`Kind::Retry`] when another holds them.
    pub fn shm_lock(&mut self, slots: SlotRange, op: LockOp) -> Result<()> {
        let flags = match op {
            LockOp::LockShared => ffi::SHM_LOCK | ffi::SHM_SHARED,
            LockOp::LockExclusive => ffi::SHM_LOCK | ffi::SHM_EXCLUSIVE,
            LockOp::UnlockShared => ffi::SHM_UNLOCK | ffi::SHM_SHARED,
            LockOp::UnlockExclusive => ffi::SHM_UNLOCK | ffi::SHM_EXCLUSIVE,
        };
        if self.shm.is_none() || slots.count == 0 || u32::from(slots.first) + u32::from(slots.count) > 8 {
            return Err(Error::new(Kind::Bug, format!("no wal-index lock {slots:?} to take")));
        }
        // SAFETY: the wal-index is open; slots are within 0..8.
        let rc = unsafe {
            self.methods()
                .x_shm_lock()
                .map_or(ffi::IOERR, |f| f(self.file(), slots.first.into(), slots.count.into(), flags))
        };
        error::check(rc, || format!("cannot lock the wal-index of {}", self.path.display()))?;
        let mask = slot_mask(slots);
        match op {
            LockOp::LockShared => self.held.0 |= mask,
            LockOp::LockExclusive => self.held.1 |= mask,
            LockOp::UnlockShared => self.held.0 &= !mask,
            LockOp::UnlockExclusive => self.held.1 &= !mask,
        }
        Ok(())
    }

    /// Whether the wal-index may be written.
    pub fn wal_index_writable(&self) -> bool {
        self.shm.is_some_and(|s| s.writable && !s.region.is_null())
    }

    /// Stores read mark `mark` (1 to 4). Errors unless the caller holds its slot EXCLUSIVE.
    pub fn set_read_mark(&mut self, mark: u8, frame: u32) -> Result<()> {
        const FIRST_MARK: usize = 25;
        let slot = slot_mask(SlotRange::read(mark.min(4)));
        if !(1..=4).contains(&mark) || self.held.1 & slot == 0 || !self.wal_index_writable() {
            return Err(Error::new(Kind::Bug, format!("read mark {mark} may not be written now")));
        }
        if let Some(shm) = self.shm.filter(|_| self.wal_index_header().is_some()) {
            // SAFETY: aReadMark[5] starts at word 25 of the mapped region; others read it atomically.
            unsafe {
                let at = shm.region.cast::<u32>().add(FIRST_MARK + usize::from(mark));
                AtomicU32::from_ptr(at).store(frame, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// Whether `<path><suffix>` exists.
    pub fn sibling_exists(&self, suffix: &str) -> Result<bool> {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        let name = c_path(Path::new(&name))?;
        let lower = lower::lower();
        // SAFETY: the lower VFS lives for good.
        Ok(match unsafe { (*lower).x_access } {
            Some(access) => exists(lower, access, name.as_ptr()),
            None => false,
        })
    }
}

impl Drop for RawDb {
    fn drop(&mut self) {
        // I-RAW-1. Nothing here can be reported to anybody; the process's end frees what fails.
        for slot in 0..8 {
            let (shared, exclusive) = self.held;
            if exclusive & (1 << slot) != 0 {
                let _ = self.shm_lock(SlotRange::one(slot), LockOp::UnlockExclusive);
            }
            if shared & (1 << slot) != 0 {
                let _ = self.shm_lock(SlotRange::one(slot), LockOp::UnlockShared);
            }
        }
        if self.shm.take().is_some() {
            // SAFETY: mapped once; deleteFlag 0 keeps the file.
            unsafe { self.methods().x_shm_unmap().map(|f| f(self.file(), 0)) };
        }
        let _ = self.unlock(FileLock::None);
        // SAFETY: open; not used after.
        unsafe { close(self.file()) };
    }
}

/// # Safety
/// `file` is a `sqlite3_file` whose methods are null or valid.
pub(super) unsafe fn close(file: *mut File) {
    // SAFETY: caller.
    unsafe {
        if !(*file).methods.is_null() {
            if let Some(f) = Methods::of(file).x_close() {
                f(file);
            }
            (*file).methods = std::ptr::null::<IoMethods>();
        }
    }
}

type AccessFn = unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_int) -> c_int;

fn exists(lower: *mut Vfs, access: AccessFn, name: *const c_char) -> bool {
    let mut there = 0;
    // SAFETY: the lower VFS with its own method; `name` is NUL-ended.
    let rc = unsafe { access(lower, name, ffi::ACCESS_EXISTS, &raw mut there) };
    rc == ffi::OK && there != 0
}

fn slot_mask(slots: SlotRange) -> u8 {
    (0..8).filter(|s| slots.contains(*s)).fold(0, |m, s| m | 1 << s)
}

fn raw_level(level: FileLock) -> c_int {
    match level {
        FileLock::None => 0,
        FileLock::Shared => 1,
        FileLock::Reserved => 2,
        FileLock::Pending => 3,
        FileLock::Exclusive => 4,
    }
}

/// A `sqlite3_filename`: the path with what SQLite keeps around it, without which
/// `sqlite3_uri_parameter` in the VFS would read wild memory (<https://sqlite.org/c3ref/filename.html>).
pub(super) enum Filename {
    /// From `sqlite3_create_filename` (3.32 and newer).
    Sqlite(*const c_char),
    /// The older layout, by hand: four zeros, path, empty parameter list.
    Own(Vec<u8>),
}

impl Filename {
    const LEAD: usize = 4;

    pub(super) fn new(path: &Path) -> Result<Filename> {
        let name = c_path(path)?;
        if api::at_least(3_032_000) {
            let with = |suffix: &str| CString::new([name.as_bytes(), suffix.as_bytes()].concat());
            let (Ok(journal), Ok(wal)) = (with("-journal"), with("-wal")) else {
                return Err(Error::new(Kind::Bug, "a path with a NUL"));
            };
            // SAFETY: three strings and no parameter; null means out of memory.
            let p = unsafe {
                api::create_filename(name.as_ptr(), journal.as_ptr(), wal.as_ptr(), 0, std::ptr::null())
            };
            if p.is_null() {
                return Err(error::from_code(ffi::NOMEM, &format!("cannot open {}", path.display())));
            }
            return Ok(Filename::Sqlite(p));
        }
        let mut bytes = vec![0; Self::LEAD];
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        Ok(Filename::Own(bytes))
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        match self {
            Filename::Sqlite(p) => *p,
            Filename::Own(bytes) => bytes.as_ptr().wrapping_add(Self::LEAD).cast(),
        }
    }
}

impl Drop for Filename {
    fn drop(&mut self) {
        if let Filename::Sqlite(p) = self {
            // SAFETY: from sqlite3_create_filename, freed once.
            unsafe { api::free_filename(*p) };
        }
    }
}
