//! The VFS `walrust`, and the two methods of SQLite's own VFS that are exchanged.
//!
//! Rules:
//! * I-VFS-1: each method of `walrust` calls the lower VFS's with the lower VFS's own pointer and the same arguments (for the names
//!   of I-ELSE-1, `xFullPathname` and `xOpen` answer themselves);
//!   methods the lower VFS has not, we have not; `iVersion`, `szOsFile` and `mxPathname` are the lower's.
//! * I-VFS-2: `xOpen` lets the lower VFS open SQLite's own `sqlite3_file`; only then may a main database
//!   file or its WAL be hooked ([`super::hook`]), and only if I-VFS-3 allows it ([`super::judge`]).
//! * I-VFS-6: the default VFS stays the default, and the same object. If it is one of SQLite's own, its `xOpen` and its
//!   `xFullPathname` are ours from the load on, for the life of the process; nothing else of it changes. The latter lets names of
//!   replicas ([`super::elsewhere`]) pass as they are, and hands all others down.
//!
//! The lower VFS is the default, if it is one of SQLite's own, else SQLite's `unix`, else the default: then `walrust` is a name
//! for it, and its files are not hooked.
//!
//! The object stays because SQLite knows more by its address than files: a named in-memory database and a shared cache are
//! found by name *and* VFS, so a new default made a second, empty database of one that was open. `ATTACH` looks for the VFS of
//! its connection by name, and a pager keeps the pointer for all its life: of a connection that was open at the load, both come
//! through here as well. "The application should never modify anything within the sqlite3_vfs object once registered"
//! (<https://sqlite.org/c3ref/vfs.html>) is said of objects that the application made: SQLite's are in writable memory, since
//! registering writes `pNext`, SQLite only ever calls `xOpen`, and one aligned word changes from one right answer to another.
//! Another's VFS is not SQLite's to promise that for, and is not touched.
//!
//! Refused: a new default (see above); to rename the default and register its name anew (then `vfs=unix` is another pointer);
//! to leave the VFS alone and take files in at the end of `sqlite3_open` (`ATTACH` has no such end).
//!
//! The struct is never freed: SQLite keeps a pointer to it for the life of the process.

use super::ffi::{self, AnyFn, File, Vfs};
use super::guard::{caught, guard};
use super::host::{FileInfo, observer_for};
use super::judge::{self, Judgement};
use super::lower::{
    FullPathnameFn, NAME, OpenFn, is_ours, lower, lower_full_pathname, lower_open, ours, path_of, set_lower,
    set_ours, vfs_name,
};
use super::observer::WalHook;
use super::vocab::{Access, How};
use super::{api, elsewhere, fork, hook, mutex, pager, registry, unseen, wal_hook, wal_join};
use std::ffi::{OsStr, c_char, c_double, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Registers the VFS, unless SQLite has it already, and puts our `xOpen` into the lower one.
pub(super) fn register() -> Result<(), String> {
    // SAFETY: the table is set; the VFS structs involved live for good.
    unsafe {
        let registered = api::vfs_find(NAME.as_ptr());
        let ours = ours();
        if !registered.is_null() && !std::ptr::eq(registered, ours) {
            return Err("walrust is already loaded in this process from another file".into());
        }
        let ours = if ours.is_null() {
            let default = api::vfs_find(std::ptr::null());
            if default.is_null() {
                return Err("walrust needs a default VFS, and this SQLite has none".into());
            }
            judge::learn();
            let lower = match judge::plain() {
                _ if judge::is_sqlites(default) => default,
                Some(plain) => plain,
                None => default,
            };
            set_lower(lower);
            let new = Box::into_raw(Box::new(wrap(lower)));
            set_ours(new);
            if !judge::is_sqlites(default) {
                log::warn!(
                    "walrust: the default VFS is {}, which is not one of SQLite's own: databases opened through it are left alone",
                    vfs_name(default)
                );
            }
            new
        } else {
            ours
        };
        if registered.is_null() {
            // Anew, or unregistered by hand: once more.
            match api::vfs_register(ours, 0) {
                ffi::OK => {}
                rc => return Err(format!("walrust could not register its VFS (SQLite code {rc})")),
            }
        }
        pager::learn(NAME);
        step_in();
        Ok(())
    }
}

/// Puts our `xOpen` and `xFullPathname` into the lower VFS, if that is one of SQLite's own and has its own there.
fn step_in() {
    let (lower, Some(theirs)) = (lower(), lower_open()) else { return };
    if judge::is_sqlites(lower) {
        // SAFETY: SQLite's own VFS is static and writable; the field is one aligned word, which other threads may be reading.
        unsafe {
            let field = AtomicPtr::from_ptr((&raw mut (*lower).x_open).cast::<*mut c_void>());
            let (from, to) = (theirs as *mut c_void, x_open as OpenFn as *mut c_void);
            let _ = field.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
            if let Some(theirs) = lower_full_pathname() {
                let field = AtomicPtr::from_ptr((&raw mut (*lower).x_full_pathname).cast::<*mut c_void>());
                let (from, to) = (theirs as *mut c_void, x_full_pathname as FullPathnameFn as *mut c_void);
                let _ = field.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

/// # Safety
/// `lower` is a registered VFS.
unsafe fn wrap(lower: *mut Vfs) -> Vfs {
    // SAFETY: caller; fields past the lower's version are not read.
    unsafe {
        let l = lower;
        let v2 = (*l).i_version >= 2;
        let v3 = (*l).i_version >= 3;
        Vfs {
            i_version: (*l).i_version.min(3),
            sz_os_file: (*l).sz_os_file,
            mx_pathname: (*l).mx_pathname,
            next: std::ptr::null_mut(),
            name: NAME.as_ptr(),
            app_data: l.cast(),
            x_open: (*l).x_open.and(Some(x_open)),
            x_delete: (*l).x_delete.and(Some(x_delete)),
            x_access: (*l).x_access.and(Some(x_access)),
            x_full_pathname: (*l).x_full_pathname.and(Some(x_full_pathname)),
            x_dl_open: (*l).x_dl_open.and(Some(x_dl_open)),
            x_dl_error: (*l).x_dl_error.and(Some(x_dl_error)),
            x_dl_sym: (*l).x_dl_sym.and(Some(x_dl_sym)),
            x_dl_close: (*l).x_dl_close.and(Some(x_dl_close)),
            x_randomness: (*l).x_randomness.and(Some(x_randomness)),
            x_sleep: (*l).x_sleep.and(Some(x_sleep)),
            x_current_time: (*l).x_current_time.and(Some(x_current_time)),
            x_get_last_error: (*l).x_get_last_error.and(Some(x_get_last_error)),
            x_current_time_int64: if v2 {
                (*l).x_current_time_int64.and(Some(x_current_time_int64))
            } else {
                None
            },
            x_set_system_call: if v3 { (*l).x_set_system_call.and(Some(x_set_system_call)) } else { None },
            x_get_system_call: if v3 { (*l).x_get_system_call.and(Some(x_get_system_call)) } else { None },
            x_next_system_call: if v3 { (*l).x_next_system_call.and(Some(x_next_system_call)) } else { None },
        }
    }
}

macro_rules! forward {
    ($($name:ident($($a:ident: $t:ty),*) -> $r:ty, $none:expr;)*) => {
        $(unsafe extern "C" fn $name(_: *mut Vfs $(, $a: $t)*) -> $r {
            let lower = lower();
            // SAFETY: `wrap` offered this method because the lower VFS has it; I-VFS-1.
            unsafe { match (*lower).$name { Some(f) => f(lower $(, $a)*), None => $none } }
        })*
    };
}

forward! {
    x_delete(name: *const c_char, sync_dir: c_int) -> c_int, ffi::IOERR;
    x_access(name: *const c_char, flags: c_int, out: *mut c_int) -> c_int, ffi::IOERR;
    x_dl_open(name: *const c_char) -> *mut c_void, std::ptr::null_mut();
    x_dl_error(n: c_int, out: *mut c_char) -> (), ();
    x_dl_sym(lib: *mut c_void, name: *const c_char) -> AnyFn, None;
    x_dl_close(lib: *mut c_void) -> (), ();
    x_randomness(n: c_int, out: *mut c_char) -> c_int, 0;
    x_sleep(us: c_int) -> c_int, 0;
    x_current_time(out: *mut c_double) -> c_int, ffi::ERROR;
    x_get_last_error(n: c_int, out: *mut c_char) -> c_int, 0;
    x_current_time_int64(out: *mut i64) -> c_int, ffi::ERROR;
    x_set_system_call(name: *const c_char, f: AnyFn) -> c_int, ffi::NOTFOUND;
    x_get_system_call(name: *const c_char) -> AnyFn, None;
    x_next_system_call(name: *const c_char) -> *const c_char, std::ptr::null();
}

unsafe extern "C" fn x_full_pathname(
    vfs: *mut Vfs,
    name: *const c_char,
    n: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: I-VFS-1; the arguments are those of an xFullPathname. As in `x_open`, a copy of the lower VFS calls with itself.
    unsafe {
        if let Some(full) = elsewhere::full_name(name) {
            return elsewhere::put_full_name(&full, n, out);
        }
        let vfs = if is_ours(vfs) { lower() } else { vfs };
        lower_full_pathname().map_or(ffi::CANTOPEN, |f| f(vfs, name, n, out))
    }
}

unsafe extern "C" fn x_open(
    vfs: *mut Vfs,
    name: *const c_char,
    file: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: I-VFS-1; SQLite gave a buffer of szOsFile bytes, which is the lower's size. Whoever copied the lower VFS's struct
    // calls with a pointer of its own, and gets what it would have got.
    unsafe {
        if pager::is_trial(vfs, name, file) {
            // As the lower VFS leaves a file that it cannot open.
            (*file).methods = std::ptr::null();
            return ffi::CANTOPEN;
        }
        super::log::deliver();
        let Some(open) = lower_open() else { return ffi::CANTOPEN };
        if flags & ffi::OPEN_MAIN_DB != 0
            && !name.is_null()
            && let Some(full) = elsewhere::full_name(name)
        {
            return elsewhere::open(vfs, &full, name, file, flags, out_flags);
        }
        if flags & ffi::OPEN_MAIN_DB != 0 && !name.is_null() && fork::is_spoiled(path_of(name)) {
            (*file).methods = std::ptr::null();
            return ffi::CANTOPEN;
        }
        let mut granted = flags;
        let rc = open(if is_ours(vfs) { lower() } else { vfs }, name, file, flags, &raw mut granted);
        if !out_flags.is_null() {
            *out_flags = granted;
        }
        let is_open = rc == ffi::OK && !name.is_null() && !(*file).methods.is_null();
        if is_open && flags & (ffi::OPEN_MAIN_DB | ffi::OPEN_WAL) != 0 && !unseen::is_unseen() {
            guard((), || opened(vfs, name, file, flags, granted));
        }
        rc
    }
}

/// # Safety
/// As in `x_open`, after the lower VFS opened the file with success.
unsafe fn opened(vfs: *const Vfs, name: *const c_char, file: *mut File, flags: c_int, granted: c_int) {
    // SAFETY: caller.
    unsafe {
        if judge::judge(judge::owner_of(vfs), judge::table_of((*file).methods)) != Judgement::Hook {
            return;
        }
        if flags & ffi::OPEN_WAL != 0 {
            opened_wal(name, file);
        } else if pager::is_pagers(vfs, name, file) {
            opened_main(name, file, granted);
        }
    }
}

/// # Safety
/// As [`opened`], of a main database, and I-VFS-3 allows to hook it.
unsafe fn opened_main(name: *const c_char, file: *mut File, granted: c_int) {
    // SAFETY: caller; `name` is the sqlite3_filename of a main database.
    unsafe {
        let info = FileInfo {
            path: path_of(name),
            access: if granted & ffi::OPEN_READONLY != 0 { Access::ReadOnly } else { Access::ReadWrite },
            how: How::VfsOpen,
            vfs: &vfs_name(lower()),
            filename: name,
        };
        if let Some(observer) = observer_for(&info) {
            hook::install(file, &info, observer);
        }
    }
}

/// # Safety
/// As [`opened_main`], for a WAL file.
unsafe fn opened_wal(name: *const c_char, file: *mut File) {
    // SAFETY: caller.
    let wal_path = unsafe { path_of(name) };
    let Some(db_path) = database_of(wal_path) else { return };
    let observer = registry::observer(&mutex::lock(), &db_path, name as usize);
    let wanted = observer.and_then(|o| caught(|| o.wal_hook()).ok()).unwrap_or(WalHook::None);
    // SAFETY: freshly opened by the lower VFS, so not hooked.
    unsafe { hook_wal(file, db_path, wal_path.to_path_buf(), wanted) };
}

/// Sets the hook that is wanted on a WAL file.
///
/// # Safety
/// `file` is an open WAL file that is not hooked, and that may be (I-VFS-3); the caller is inside `xOpen`, or holds the mutex
/// of its connection.
pub(super) unsafe fn hook_wal(file: *mut File, db: PathBuf, wal: PathBuf, wanted: WalHook) {
    // SAFETY: caller.
    unsafe {
        match wanted {
            WalHook::None => {}
            WalHook::JoinWrites => wal_join::install(file),
            WalHook::Observe(observer) => wal_hook::install(file, db, wal, observer),
        }
    }
}

/// `app.db` for `app.db-wal`.
pub(super) fn database_of(wal: &Path) -> Option<PathBuf> {
    let bytes = wal.as_os_str().as_bytes().strip_suffix(b"-wal")?;
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}
