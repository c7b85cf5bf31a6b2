//! The VFS `walrust` and the one below it, as far as others need to know them: pointers and names.

use super::ffi::{File, Vfs};
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Name of the VFS.
pub(super) const NAME: &CStr = c"walrust";

/// A VFS's `xOpen`.
pub(super) type OpenFn = unsafe extern "C" fn(*mut Vfs, *const c_char, *mut File, c_int, *mut c_int) -> c_int;

/// A VFS's `xFullPathname`.
pub(super) type FullPathnameFn = unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_char) -> c_int;

static OURS: AtomicPtr<Vfs> = AtomicPtr::new(std::ptr::null_mut());
static LOWER: AtomicPtr<Vfs> = AtomicPtr::new(std::ptr::null_mut());
/// The lower VFS's own `xOpen`.
static LOWER_OPEN: OnceLock<Option<OpenFn>> = OnceLock::new();
/// And its own `xFullPathname`.
static LOWER_FULL_PATHNAME: OnceLock<Option<FullPathnameFn>> = OnceLock::new();

/// The VFS below, and its own `xOpen`, from now on.
///
/// # Safety
/// `lower` is a registered VFS, which lives for good.
pub(super) unsafe fn set_lower(lower: *mut Vfs) {
    // SAFETY: caller.
    LOWER_OPEN.get_or_init(|| unsafe { (*lower).x_open });
    // SAFETY: caller.
    LOWER_FULL_PATHNAME.get_or_init(|| unsafe { (*lower).x_full_pathname });
    LOWER.store(lower, Ordering::Release);
}

/// The VFS `walrust` is this struct from now on.
pub(super) fn set_ours(ours: *mut Vfs) {
    OURS.store(ours, Ordering::Release);
}

/// The VFS `walrust`; null before it is registered.
pub(super) fn ours() -> *mut Vfs {
    OURS.load(Ordering::Acquire)
}

/// The VFS below; null before the extension is loaded.
pub(super) fn lower() -> *mut Vfs {
    LOWER.load(Ordering::Acquire)
}

/// How the VFS below opens files, without us.
pub(super) fn lower_open() -> Option<OpenFn> {
    LOWER_OPEN.get().copied().flatten()
}

/// How the VFS below completes names, without us.
pub(super) fn lower_full_pathname() -> Option<FullPathnameFn> {
    LOWER_FULL_PATHNAME.get().copied().flatten()
}

/// Whether this is the VFS `walrust`.
pub(super) fn is_ours(vfs: *const Vfs) -> bool {
    !vfs.is_null() && std::ptr::eq(vfs, ours())
}

/// Name of the VFS below (`unix`); empty before the extension is loaded.
pub(super) fn lower_vfs_name() -> String {
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

/// The path SQLite means by `name`.
///
/// # Safety
/// `name` is a NUL-ended string that outlives the result.
pub(super) unsafe fn path_of<'a>(name: *const c_char) -> &'a Path {
    // SAFETY: caller.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}
