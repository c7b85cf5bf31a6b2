//! The VFS `walrust`: the default VFS of the host, wrapped, made the default.
//!
//! Rules:
//! * I-VFS-1: each method calls the lower VFS's with the lower VFS's own pointer and the same arguments;
//!   methods the lower VFS has not, we have not; `iVersion`, `szOsFile` and `mxPathname` are the lower's.
//! * I-VFS-2: `xOpen` lets the lower VFS open SQLite's own `sqlite3_file`; only then may a main database
//!   file or its WAL be hooked ([`super::hook`]).
//!
//! The struct is never freed: SQLite keeps a pointer to it for the life of the process.

use super::ffi::{self, AnyFn, File, Vfs};
use super::guard::{caught, guard};
use super::host::{Access, FileInfo, How, WalHook, observer_for};
use super::{api, fork, hook, registry, wal_hook, wal_join};
use std::ffi::{CStr, OsStr, c_char, c_double, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Name of the VFS.
pub(super) const NAME: &CStr = c"walrust";

static OURS: AtomicPtr<Vfs> = AtomicPtr::new(std::ptr::null_mut());
static LOWER: AtomicPtr<Vfs> = AtomicPtr::new(std::ptr::null_mut());

/// The wrapped VFS; null before [`register`].
pub(super) fn lower() -> *mut Vfs {
    LOWER.load(Ordering::Acquire)
}

/// Name of the wrapped VFS (`unix`); empty before the extension is loaded.
pub fn lower_vfs_name() -> String {
    let vfs = lower();
    // SAFETY: a registered VFS and its name live for good.
    if vfs.is_null() { String::new() } else { unsafe { vfs_name(vfs) } }
}

/// # Safety
/// `vfs` is a registered VFS.
pub(super) unsafe fn vfs_name(vfs: *const Vfs) -> String {
    // SAFETY: caller.
    unsafe { CStr::from_ptr((*vfs).name).to_string_lossy().into_owned() }
}

/// Registers the VFS and makes it the default, unless SQLite has it already.
pub(super) fn register() -> Result<(), String> {
    // SAFETY: the table is set; the VFS structs involved live for good.
    unsafe {
        let registered = api::vfs_find(NAME.as_ptr());
        let ours = OURS.load(Ordering::Acquire);
        if !registered.is_null() {
            if !std::ptr::eq(registered, ours) {
                return Err("walrust is already loaded in this process from another file".into());
            }
            // Default again after sqlite3_shutdown and a new start, but not against the app's own choice.
            if std::ptr::eq(api::vfs_find(std::ptr::null()), lower()) {
                api::vfs_register(ours, 1);
            }
            return Ok(());
        }
        let ours = if ours.is_null() {
            let lower = api::vfs_find(std::ptr::null());
            if lower.is_null() {
                return Err("walrust needs a default VFS, and this SQLite has none".into());
            }
            LOWER.store(lower, Ordering::Release);
            let new = Box::into_raw(Box::new(wrap(lower)));
            OURS.store(new, Ordering::Release);
            new
        } else {
            // Unregistered by sqlite3_shutdown or by hand: once more.
            ours
        };
        match api::vfs_register(ours, 1) {
            ffi::OK => Ok(()),
            rc => Err(format!("walrust could not register its VFS (SQLite code {rc})")),
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
    x_full_pathname(name: *const c_char, n: c_int, out: *mut c_char) -> c_int, ffi::CANTOPEN;
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

unsafe extern "C" fn x_open(
    _: *mut Vfs,
    name: *const c_char,
    file: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let lower = lower();
    super::log::deliver();
    // SAFETY: I-VFS-1; SQLite gave a buffer of szOsFile bytes, which is the lower's size.
    unsafe {
        let Some(open) = (*lower).x_open else { return ffi::CANTOPEN };
        if flags & ffi::OPEN_MAIN_DB != 0 && !name.is_null() && fork::is_spoiled(path_of(name)) {
            return ffi::CANTOPEN;
        }
        let mut granted = flags;
        let rc = open(lower, name, file, flags, &raw mut granted);
        if !out_flags.is_null() {
            *out_flags = granted;
        }
        if rc == ffi::OK && !name.is_null() && !(*file).methods.is_null() {
            if flags & ffi::OPEN_MAIN_DB != 0 {
                guard((), || opened_main(name, file, granted));
            } else if flags & ffi::OPEN_WAL != 0 {
                guard((), || opened_wal(name, file));
            }
        }
        rc
    }
}

/// The path SQLite means by `name`.
///
/// # Safety
/// `name` is a NUL-ended string that outlives the result.
pub(super) unsafe fn path_of<'a>(name: *const c_char) -> &'a Path {
    // SAFETY: caller.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

/// # Safety
/// As in `x_open`, after the lower VFS opened the file with success.
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
    let observer = registry::lock().observer(&db_path);
    let wanted = observer.and_then(|o| caught(|| o.wal_hook()).ok()).unwrap_or(WalHook::None);
    // SAFETY: freshly opened by the lower VFS, so not hooked.
    unsafe { hook_wal(file, db_path, wal_path.to_path_buf(), wanted, &lower_vfs_name()) };
}

/// Sets the hook that is wanted on a WAL file of the VFS `vfs`.
///
/// # Safety
/// `file` is an open WAL file that is not hooked; the caller is inside `xOpen`, or holds the mutex of its connection.
pub(super) unsafe fn hook_wal(file: *mut File, db: PathBuf, wal: PathBuf, wanted: WalHook, vfs: &str) {
    // SAFETY: caller.
    unsafe {
        match wanted {
            WalHook::JoinWrites if wal_join::is_for(vfs) => wal_join::install(file),
            WalHook::Observe(observer) => wal_hook::install(file, db, wal, observer),
            WalHook::None | WalHook::JoinWrites => {}
        }
    }
}

/// `app.db` for `app.db-wal`.
pub(super) fn database_of(wal: &Path) -> Option<PathBuf> {
    let bytes = wal.as_os_str().as_bytes().strip_suffix(b"-wal")?;
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}
