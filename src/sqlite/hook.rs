//! The hook on a database file: SQLite's `sqlite3_file` keeps its lower VFS's body, and only its table of
//! methods is replaced by a copy with ours where we take an interest.
//!
//! Rules:
//! * I-HOOK-1: a method we do not override is the lower VFS's own pointer; null stays null; `iVersion` is
//!   never raised. What we override calls the lower method with the same arguments and gives back its
//!   result, unless the observer said otherwise.
//! * I-HOOK-2: a handle is hooked once at most; `xClose` puts the original table back and frees ours.
//! * I-HOOK-3: no observer is called after it panicked on the handle, except for `closing`.
//!
//! The same swap serves files opened through our VFS and files found open (hot attach). Refused: a
//! `sqlite3_file` of our own around the lower one, which cannot take in a file that is already open, and
//! which copies SQLite's rules about which methods exist.
//!
//! Assumption: the one who calls a method of ours does so with `file->pMethods` pointing to our table. A
//! second library that swaps tables in the same way and calls down with its own table would break it; a
//! second copy of walrust is refused at load.

use super::ffi::{self, File, IoMethods};
use super::file::{HookedFile, next_id};
use super::guard::caught;
use super::host::FileInfo;
use super::methods::{Methods, REGION, is_closed_by};
use super::observer::DbObserver;
use super::vocab::{Again, FileLock, LockOp, PragmaVerdict, SlotRange, Verdict};
use super::{api, mutex, pager, registry};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// A hooked file and who observes it.
struct Hook {
    file: HookedFile,
    observer: Arc<dyn DbObserver>,
    /// See [`DbObserver::observes_shared_locks`].
    shared_locks: bool,
    silenced: AtomicBool,
}

/// What `pMethods` of a hooked file points to: methods first, our state behind.
#[repr(C)]
struct Table {
    methods: IoMethods,
    hook: Hook,
}

impl Hook {
    fn lower(&self) -> Methods {
        self.file.lower()
    }

    /// Calls the observer unless it panicked before; a panic silences it and gives `otherwise`.
    fn tell<T>(&self, otherwise: T, f: impl FnOnce(&dyn DbObserver, &HookedFile) -> T) -> T {
        if self.silenced.load(Ordering::Relaxed) || is_dead() {
            return otherwise;
        }
        caught(|| f(&*self.observer, &self.file)).unwrap_or_else(|what| {
            self.silenced.store(true, Ordering::Relaxed);
            self.report_panic(&what);
            otherwise
        })
    }

    fn report_panic(&self, what: &str) {
        let _ = caught(|| {
            log::error!("walrust: {}: internal error: {what}", self.file.path.display());
            self.observer.panicked(what);
        });
    }

    /// Hot attach may come when SQLite mapped the wal-index long ago: ask for the mapping once more. Legal
    /// only where SQLite uses wal-index locks, that is with the wal-index open.
    fn ensure_mapped(&self) {
        if self.file.shm.is_mapped() {
            return;
        }
        if let Some(map) = self.lower().x_shm_map() {
            let mut region = std::ptr::null_mut();
            // SAFETY: "xShmMap(file, iPg, pgsz, bExtend, pp)" of the lower VFS on its own open file;
            // bExtend 0 changes nothing.
            let rc = unsafe { map(self.file.file, 0, REGION, 0, &raw mut region) };
            if (rc == ffi::OK || rc == ffi::READONLY) && self.file.shm.set(0, region) {
                self.tell((), |o, h| o.mapped(h));
            }
        }
    }
}

/// Whether the process was killed, as far as a simulation goes: SQLite cannot be unwound, so it is stopped at its next step.
pub(super) fn is_dead() -> bool {
    #[cfg(feature = "sim")]
    return crate::base::sim::is_dead();
    #[cfg(not(feature = "sim"))]
    false
}

/// Whether the file is open and hooked by us.
///
/// # Safety
/// `file` points to a `sqlite3_file`.
pub(super) unsafe fn is_hooked(file: *const File) -> bool {
    // SAFETY: caller.
    unsafe { is_closed_by(file, x_close) }
}

/// Whether a hooked file has its wal-index mapped.
///
/// # Safety
/// `file` is open, and used by this thread alone.
pub(super) unsafe fn is_mapped(file: *mut File) -> bool {
    // SAFETY: caller; what is hooked has its record in our table.
    unsafe { is_hooked(file) && hooked(file).file.shm.is_mapped() }
}

/// The observer of a hooked file.
///
/// # Safety
/// `file` points to a `sqlite3_file`, and the caller holds its connection.
pub(super) unsafe fn observer_of(file: *mut File) -> Option<Arc<dyn DbObserver>> {
    // SAFETY: caller; a hooked file's methods are ours.
    unsafe { if is_hooked(file) { Some(hooked(file).observer.clone()) } else { None } }
}

/// Sets the hook.
///
/// # Safety
/// `file` is an open main database file that is not hooked, and that may be ([`super::judge`]); the caller is inside `xOpen`,
/// or holds the mutex of its connection.
pub(super) unsafe fn install(file: *mut File, info: &FileInfo<'_>, observer: Arc<dyn DbObserver>) {
    // SAFETY: caller: open, so its methods are set.
    let original = unsafe { Methods::of(file) };
    let mut methods = original.copy();
    methods.x_close = Some(x_close);
    methods.x_write = methods.x_write.and(Some(x_write));
    methods.x_lock = methods.x_lock.and(Some(x_lock));
    methods.x_unlock = methods.x_unlock.and(Some(x_unlock));
    methods.x_file_control = methods.x_file_control.and(Some(x_file_control));
    methods.x_shm_map = methods.x_shm_map.and(Some(x_shm_map));
    methods.x_shm_lock = methods.x_shm_lock.and(Some(x_shm_lock));
    methods.x_shm_unmap = methods.x_shm_unmap.and(Some(x_shm_unmap));
    let id = next_id();
    let shared_locks = observer.observes_shared_locks();
    // SAFETY: `info` has the name that SQLite gave for this file.
    let wal_name = unsafe { pager::wal_name(info.filename) } as usize;
    registry::add(&mutex::lock(), info.path, id, observer.clone(), wal_name);
    let table = Box::new(Table {
        methods,
        hook: Hook {
            file: HookedFile {
                file,
                original,
                id,
                path: info.path.to_path_buf(),
                access: info.access,
                shm: Arc::default(),
                lock_level: AtomicI32::new(0),
            },
            observer,
            shared_locks,
            silenced: AtomicBool::new(false),
        },
    });
    // SAFETY: the table starts with its methods (repr C) and lives until xClose.
    unsafe {
        (*file).methods = Box::into_raw(table).cast::<IoMethods>();
        hooked(file).tell((), |o, h| o.hooked(h));
    }
}

/// The state of a hooked file.
///
/// # Safety
/// `file` is hooked, and this is one of its methods or the caller holds its connection.
unsafe fn hooked<'a>(file: *mut File) -> &'a Hook {
    // SAFETY: caller; `install` put a Table there.
    unsafe { &(*(*file).methods.cast::<Table>()).hook }
}

unsafe extern "C" fn x_close(file: *mut File) -> c_int {
    // SAFETY: SQLite calls xClose once, on the hooked file; nothing uses the table after it.
    unsafe {
        super::log::deliver();
        let table = Box::from_raw((*file).methods.cast_mut().cast::<Table>());
        let h = &table.hook;
        if let Err(what) = caught(|| h.observer.closing(&h.file)) {
            h.report_panic(&what);
        }
        h.file.shm.forget();
        (*file).methods = h.lower().as_ptr();
        let rc = h.lower().x_close().map_or(ffi::OK, |f| f(file));
        let observer = registry::remove(&mutex::lock(), &h.file.path, h.file.id);
        // An observer's destructor is code of the rooms above.
        let _ = caught(move || drop((observer, table)));
        rc
    }
}

unsafe extern "C" fn x_write(file: *mut File, data: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: a method of a hooked file; arguments are passed on as they came.
    unsafe {
        let h = hooked(file);
        let rc = h.lower().x_write().map_or(ffi::IOERR, |f| f(file, data, len, offset));
        let (at, n) = (u64::try_from(offset).unwrap_or(0), usize::try_from(len).unwrap_or(0));
        h.tell((), |o, h| o.wrote_db(h, at, n));
        rc
    }
}

unsafe extern "C" fn x_lock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let h = hooked(file);
        h.tell((), |o, h| o.before_file_lock(h, FileLock::from_raw(level)));
        let rc = h.lower().x_lock().map_or(ffi::IOERR, |f| f(file, level));
        if rc == ffi::OK {
            h.file.lock_level.fetch_max(level, Ordering::Relaxed);
            h.tell((), |o, h| o.after_file_lock(h, FileLock::from_raw(level)));
        } else {
            h.tell((), |o, h| o.file_lock_failed(h, FileLock::from_raw(level)));
        }
        rc
    }
}

unsafe extern "C" fn x_unlock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let h = hooked(file);
        h.tell((), |o, h| o.before_file_unlock(h, FileLock::from_raw(level)));
        let rc = h.lower().x_unlock().map_or(ffi::IOERR, |f| f(file, level));
        h.file.lock_level.fetch_min(level, Ordering::Relaxed);
        h.tell((), |o, h| o.after_file_unlock(h, FileLock::from_raw(level)));
        rc
    }
}

unsafe extern "C" fn x_shm_map(
    file: *mut File,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: as above. `extend` is 0, 1 or (3.54) 2 and means something to the lower VFS only.
    unsafe {
        let h = hooked(file);
        let rc = h.lower().x_shm_map().map_or(ffi::IOERR, |f| f(file, region, size, extend, out));
        if size == REGION
            && (rc == ffi::OK || rc == ffi::READONLY)
            && !out.is_null()
            && !(*out).is_null()
            && let Ok(region) = usize::try_from(region)
            && h.file.shm.set(region, *out)
        {
            h.tell((), |o, h| o.mapped(h));
        }
        rc
    }
}

unsafe extern "C" fn x_shm_lock(file: *mut File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let h = hooked(file);
        let op = match (flags & ffi::SHM_UNLOCK != 0, flags & ffi::SHM_EXCLUSIVE != 0) {
            (false, false) => LockOp::LockShared,
            (false, true) => LockOp::LockExclusive,
            (true, false) => LockOp::UnlockShared,
            (true, true) => LockOp::UnlockExclusive,
        };
        h.ensure_mapped();
        if !h.shared_locks && flags & ffi::SHM_SHARED != 0 {
            return h.lower().x_shm_lock().map_or(ffi::IOERR, |f| f(file, offset, n, flags));
        }
        let slots =
            SlotRange { first: u8::try_from(offset).unwrap_or(u8::MAX), count: u8::try_from(n).unwrap_or(0) };
        super::log::deliver();
        let verdict = h.tell(Verdict::Pass, |o, h| o.before_shm_lock(h, slots, op));
        if matches!(op, LockOp::LockShared | LockOp::LockExclusive) {
            if is_dead() {
                return ffi::IOERR;
            }
            match verdict {
                Verdict::Pass => {}
                Verdict::Busy => return ffi::BUSY,
                Verdict::Fail(rc) => return rc,
            }
        }
        let lower = || h.lower().x_shm_lock().map_or(ffi::IOERR, |f| f(file, offset, n, flags));
        let mut rc = lower();
        if rc == ffi::BUSY
            && op == LockOp::LockExclusive
            && h.tell(Again::No, |o, h| o.shm_lock_failed(h, slots)) == Again::Yes
        {
            // What was asked before the wait may be otherwise now.
            rc = match h.tell(Verdict::Pass, |o, h| o.before_shm_lock(h, slots, op)) {
                Verdict::Pass => lower(),
                Verdict::Busy => ffi::BUSY,
                Verdict::Fail(rc) => rc,
            };
        }
        if rc == ffi::OK {
            h.tell((), |o, h| o.after_shm_lock(h, slots, op));
        }
        rc
    }
}

unsafe extern "C" fn x_shm_unmap(file: *mut File, delete: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let h = hooked(file);
        h.file.shm.forget();
        h.lower().x_shm_unmap().map_or(ffi::OK, |f| f(file, delete))
    }
}

unsafe extern "C" fn x_file_control(file: *mut File, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: as above; the meaning of `arg` is that of the opcode
    // (https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html).
    unsafe {
        let h = hooked(file);
        match op {
            ffi::FCNTL_PRAGMA => {
                if let Some(rc) = pragma(h, arg.cast()) {
                    return rc;
                }
            }
            // A query (-1) under an EXCLUSIVE lock comes from sqlite3WalClose alone.
            ffi::FCNTL_PERSIST_WAL
                if !arg.is_null()
                    && *arg.cast::<c_int>() < 0
                    && h.file.file_lock() == FileLock::Exclusive =>
            {
                h.tell((), |o, h| o.last_close(h));
                if is_dead() {
                    *arg.cast::<c_int>() = 1;
                    return ffi::OK;
                }
            }
            _ => {}
        }
        let rc = h.lower().x_file_control().map_or(ffi::NOTFOUND, |f| f(file, op, arg));
        // "Sent after the transaction has been committed, before the database is unlocked."
        if op == ffi::FCNTL_COMMIT_PHASETWO && h.file.file_lock() == FileLock::Exclusive {
            h.tell((), |o, h| o.committed_exclusive(h));
        }
        if op == ffi::FCNTL_VFSNAME && rc == ffi::OK {
            name_ourselves(arg.cast());
        }
        rc
    }
}

/// Puts `walrust/` in front of the VFS name, as "names of all VFS shims" are given.
///
/// # Safety
/// `out` is the argument of `SQLITE_FCNTL_VFSNAME`: points to a string from SQLite's allocator, or null.
unsafe fn name_ourselves(out: *mut *mut c_char) {
    // SAFETY: caller.
    unsafe {
        if out.is_null() || (*out).is_null() {
            return;
        }
        let ours = api::sqlite_string(&format!("walrust/{}", CStr::from_ptr(*out).to_string_lossy()));
        if !ours.is_null() {
            api::free((*out).cast());
            *out = ours;
        }
    }
}

/// Offers a PRAGMA to the observer; `None`: go on.
///
/// # Safety
/// `args` is the argument of `SQLITE_FCNTL_PRAGMA`: result, name, argument or null.
unsafe fn pragma(h: &Hook, args: *mut *mut c_char) -> Option<c_int> {
    // SAFETY: caller.
    let (name, arg) = unsafe {
        let text = |p: *mut c_char| if p.is_null() { None } else { Some(CStr::from_ptr(p).to_str()) };
        (text(*args.add(1))?.ok()?, text(*args.add(2)).transpose().ok()?)
    };
    let (rc, answer) = match h.tell(PragmaVerdict::Pass, |o, h| o.pragma(h, name, arg)) {
        PragmaVerdict::Pass => return None,
        PragmaVerdict::Refuse(why) => (ffi::ERROR, Some(why)),
        PragmaVerdict::Answer(text) => (ffi::OK, text),
    };
    if let Some(text) = answer {
        // SAFETY: "the result ... a string obtained from sqlite3_mprintf()" goes to element 0.
        unsafe { *args = api::sqlite_string(&text) };
    }
    Some(rc)
}
