//! The hook on a WAL file's handle, set only when the database's observer asks for it (synchronous
//! durability). Same swap as in [`super::hook`]; I-HOOK-1 and I-HOOK-2 hold here too.
//!
//! I-HOOK-4: a panic in a [`WalObserver`] fails the call it was asked about. Letting it pass could leave a
//! frame without its header in the WAL, or acknowledge a commit that nobody decided on.
//!
//! SQLite writes one frame as two writes, (24 bytes) and (page), but a header or page may also be split at
//! a sector boundary (padding): an observer must go by offsets, not by lengths.

use super::error;
use super::ffi::{self, File, IoMethods};
use super::guard::caught;
use super::hook::next_id;
use super::host::{WalObserver, WalVerdict};
use super::methods::{Methods, ReadExtent, file_size, is_closed_by, read_file};
use crate::base::{Error, Kind, Result};
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A hooked handle of a WAL file. Exists only inside callbacks, on the app's thread.
pub struct WalFile {
    file: *mut File,
    original: Methods,
    id: u64,
    db_path: PathBuf,
    wal_path: PathBuf,
    observer: Arc<dyn WalObserver>,
}

#[repr(C)]
struct Table {
    methods: IoMethods,
    wal: WalFile,
}

impl WalFile {
    /// Path of the database this WAL belongs to.
    pub fn db_path(&self) -> &Path {
        &self.db_path
    }

    /// Path of the WAL file.
    pub fn path(&self) -> &Path {
        &self.wal_path
    }

    /// Number of this handle, unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Writes through the lower VFS: how withheld bytes get into the file.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let (Some(write), Ok(len), Ok(at)) =
            (self.lower().x_write(), c_int::try_from(data.len()), i64::try_from(offset))
        else {
            return Err(Error::new(
                Kind::Bug,
                format!("cannot write {} at {offset}", self.wal_path.display()),
            ));
        };
        // SAFETY: inside a callback of this handle; the buffer has `len` bytes.
        let rc = unsafe { write(self.file, data.as_ptr().cast(), len, at) };
        error::check(rc, || format!("cannot write {} at {offset}", self.wal_path.display()))
    }

    /// Reads through the lower VFS.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        // SAFETY: as above.
        unsafe { read_file(self.file, self.original, buf, offset, &self.wal_path) }
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: as above.
        let rc = unsafe { self.lower().x_sync().map_or(ffi::OK, |f| f(self.file, ffi::SYNC_NORMAL)) };
        error::check(rc, || format!("cannot sync {}", self.wal_path.display()))
    }

    /// Size in bytes.
    pub fn file_size(&self) -> Result<u64> {
        // SAFETY: as above.
        unsafe { file_size(self.file, self.original, &self.wal_path) }
    }

    fn lower(&self) -> Methods {
        self.original
    }

    fn ask(&self, on_panic: c_int, f: impl FnOnce(&dyn WalObserver, &WalFile) -> WalVerdict) -> WalVerdict {
        if super::hook::is_dead() {
            return WalVerdict::Fail(on_panic);
        }
        caught(|| f(&*self.observer, self)).unwrap_or_else(|what| {
            let _ = caught(|| log::error!("walrust: {}: internal error: {what}", self.wal_path.display()));
            WalVerdict::Fail(on_panic)
        })
    }
}

/// Whether the file is hooked by us.
///
/// # Safety
/// `file` points to a `sqlite3_file`.
pub(super) unsafe fn is_hooked(file: *const File) -> bool {
    // SAFETY: caller.
    unsafe { is_closed_by(file, x_close) }
}

/// Sets the hook.
///
/// # Safety
/// `file` is an open WAL file that is not hooked; the caller is inside `xOpen`, or holds the mutex of its
/// connection.
pub(super) unsafe fn install(
    file: *mut File,
    db_path: PathBuf,
    wal_path: PathBuf,
    observer: Arc<dyn WalObserver>,
) {
    // SAFETY: caller: open, so its methods are set.
    let original = unsafe { Methods::of(file) };
    let mut methods = original.copy();
    methods.x_close = Some(x_close);
    methods.x_write = methods.x_write.and(Some(x_write));
    methods.x_truncate = methods.x_truncate.and(Some(x_truncate));
    methods.x_sync = methods.x_sync.and(Some(x_sync));
    let wal = WalFile { file, original, id: next_id(), db_path, wal_path, observer };
    // SAFETY: the table starts with its methods (repr C) and lives until xClose.
    unsafe { (*file).methods = Box::into_raw(Box::new(Table { methods, wal })).cast::<IoMethods>() };
}

/// # Safety
/// `file` is hooked, and this is one of its methods.
unsafe fn hooked<'a>(file: *mut File) -> &'a WalFile {
    // SAFETY: caller; `install` put a Table there.
    unsafe { &(*(*file).methods.cast::<Table>()).wal }
}

unsafe extern "C" fn x_close(file: *mut File) -> c_int {
    // SAFETY: SQLite calls xClose once, on the hooked file; nothing uses the table after it.
    unsafe {
        let table = Box::from_raw((*file).methods.cast_mut().cast::<Table>());
        let w = &table.wal;
        let _ = caught(|| w.observer.closing(w));
        (*file).methods = w.original.as_ptr();
        let rc = w.lower().x_close().map_or(ffi::OK, |f| f(file));
        let _ = caught(move || drop(table));
        rc
    }
}

/// What to do once the observer has spoken.
fn act(verdict: WalVerdict, pass: impl FnOnce() -> c_int) -> c_int {
    match verdict {
        WalVerdict::Pass => pass(),
        WalVerdict::Withhold => ffi::OK,
        WalVerdict::Fail(rc) => rc,
    }
}

unsafe extern "C" fn x_write(file: *mut File, data: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: a method of a hooked file; SQLite gives `len` readable bytes.
    unsafe {
        let w = hooked(file);
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(len).unwrap_or(0));
        let at = u64::try_from(offset).unwrap_or(0);
        let verdict = w.ask(ffi::IOERR_WRITE, |o, w| o.before_write(w, bytes, at));
        act(verdict, || w.lower().x_write().map_or(ffi::IOERR, |f| f(file, data, len, offset)))
    }
}

unsafe extern "C" fn x_truncate(file: *mut File, size: i64) -> c_int {
    // SAFETY: as above.
    unsafe {
        let w = hooked(file);
        let to = u64::try_from(size).unwrap_or(0);
        let verdict = w.ask(ffi::IOERR_TRUNCATE, |o, w| o.before_truncate(w, to));
        act(verdict, || w.lower().x_truncate().map_or(ffi::IOERR, |f| f(file, size)))
    }
}

unsafe extern "C" fn x_sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let w = hooked(file);
        let verdict = w.ask(ffi::IOERR_FSYNC, |o, w| o.before_sync(w));
        act(verdict, || w.lower().x_sync().map_or(ffi::OK, |f| f(file, flags)))
    }
}
