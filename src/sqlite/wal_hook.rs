//! The hook on a WAL file's handle, set only when the database's observer asks for it (synchronous
//! durability). Same swap as in [`super::hook`]; I-HOOK-1 and I-HOOK-2 hold here too.
//!
//! I-HOOK-4: a panic in a [`WalObserver`] fails the call it was asked about. Letting it pass could leave a
//! frame without its header in the WAL, or acknowledge a commit that nobody decided on.
//!
//! SQLite writes one frame as two writes, (24 bytes) and (page), but a header or page may also be split at
//! a sector boundary (padding): an observer must go by offsets, not by lengths.

use super::ffi::{self, File, IoMethods};
use super::file::{WalFile, next_id};
use super::guard::caught;
use super::methods::{Methods, is_closed_by};
use super::observer::WalObserver;
use super::vocab::WalVerdict;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;

/// A hooked WAL file and who observes it.
struct Hook {
    file: WalFile,
    observer: Arc<dyn WalObserver>,
}

#[repr(C)]
struct Table {
    methods: IoMethods,
    hook: Hook,
}

impl Hook {
    fn ask(&self, on_panic: c_int, f: impl FnOnce(&dyn WalObserver, &WalFile) -> WalVerdict) -> WalVerdict {
        if super::hook::is_dead() {
            return WalVerdict::Fail(on_panic);
        }
        caught(|| f(&*self.observer, &self.file)).unwrap_or_else(|what| {
            let _ =
                caught(|| log::error!("walrust: {}: internal error: {what}", self.file.wal_path.display()));
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
    let file_of = WalFile { file, original, id: next_id(), db_path, wal_path };
    let hook = Hook { file: file_of, observer };
    // SAFETY: the table starts with its methods (repr C) and lives until xClose.
    unsafe { (*file).methods = Box::into_raw(Box::new(Table { methods, hook })).cast::<IoMethods>() };
}

/// # Safety
/// `file` is hooked, and this is one of its methods.
unsafe fn hooked<'a>(file: *mut File) -> &'a Hook {
    // SAFETY: caller; `install` put a Table there.
    unsafe { &(*(*file).methods.cast::<Table>()).hook }
}

unsafe extern "C" fn x_close(file: *mut File) -> c_int {
    // SAFETY: SQLite calls xClose once, on the hooked file; nothing uses the table after it.
    unsafe {
        let table = Box::from_raw((*file).methods.cast_mut().cast::<Table>());
        let w = &table.hook;
        let _ = caught(|| w.observer.closing(&w.file));
        (*file).methods = w.file.lower().as_ptr();
        let rc = w.file.lower().x_close().map_or(ffi::OK, |f| f(file));
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
        act(verdict, || w.file.lower().x_write().map_or(ffi::IOERR, |f| f(file, data, len, offset)))
    }
}
