//! A file's table of methods, read with respect for its version, and the calls that need no more than it.

use super::error;
use super::ffi::{self, File, IoMethods, IoMethods1, IoMethods2};
use crate::base::{Error, Kind, Result};
use std::ffi::{c_int, c_void};
use std::path::Path;

/// How much of a read lay inside the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadExtent {
    /// All of it.
    Full,
    /// The file ended before; the rest of the buffer is zero.
    Short,
}

/// Size of a wal-index region (`WALINDEX_PGSZ`).
pub(super) const REGION: c_int = 32768;

/// A table of methods, read with respect for its version.
#[derive(Clone, Copy)]
pub(super) struct Methods(*const IoMethods);

impl Methods {
    /// The methods an open file has.
    ///
    /// # Safety
    /// `file` is open. A method table lives as long as its VFS, which is for good.
    pub(super) unsafe fn of(file: *const File) -> Methods {
        // SAFETY: caller.
        Methods(unsafe { (*file).methods })
    }

    /// The table itself, to be put back.
    pub(super) fn as_ptr(self) -> *const IoMethods {
        self.0
    }

    /// A copy with everything past the version empty, and a version of 3 at most.
    pub(super) fn copy(self) -> IoMethods {
        let p = self.0;
        // SAFETY: all-zero is a valid IoMethods (null pointers, version 0).
        let mut all: IoMethods = unsafe { std::mem::zeroed() };
        // SAFETY: the source has at least the struct of its version; the destination is the largest; both
        // start with the same fields.
        unsafe {
            let version = p.cast::<c_int>().read();
            let to = &raw mut all;
            match version {
                i32::MIN..=1 => to.cast::<IoMethods1>().write(p.cast::<IoMethods1>().read()),
                2 => to.cast::<IoMethods2>().write(p.cast::<IoMethods2>().read()),
                _ => to.write(p.read()),
            }
        }
        all.i_version = all.i_version.min(3);
        all
    }
}

/// Whether the file is open with a table whose `xClose` is `close`: each kind of hook has one of its own.
///
/// # Safety
/// `file` points to a `sqlite3_file`.
pub(super) unsafe fn is_closed_by(
    file: *const File,
    close: unsafe extern "C" fn(*mut File) -> c_int,
) -> bool {
    // SAFETY: caller; a non-null table has version-1 fields.
    unsafe {
        let methods = (*file).methods;
        !methods.is_null() && (*methods).x_close.is_some_and(|f| std::ptr::fn_addr_eq(f, close))
    }
}

macro_rules! view {
    ($($name:ident: fn($($t:ty),*) $(-> $r:ty)?, $since:literal;)*) => {
        impl Methods {
            $(pub(super) fn $name(self) -> Option<unsafe extern "C" fn($($t),*) $(-> $r)?> {
                let p = self.0;
                // SAFETY: the field exists from version $since on, which is checked first.
                unsafe { if (&raw const (*p).i_version).read() < $since { None } else { (&raw const (*p).$name).read() } }
            })*
        }
    };
}

view! {
    x_close: fn(*mut File) -> c_int, 1;
    x_read: fn(*mut File, *mut c_void, c_int, i64) -> c_int, 1;
    x_write: fn(*mut File, *const c_void, c_int, i64) -> c_int, 1;
    x_truncate: fn(*mut File, i64) -> c_int, 1;
    x_sync: fn(*mut File, c_int) -> c_int, 1;
    x_file_size: fn(*mut File, *mut i64) -> c_int, 1;
    x_lock: fn(*mut File, c_int) -> c_int, 1;
    x_unlock: fn(*mut File, c_int) -> c_int, 1;
    x_file_control: fn(*mut File, c_int, *mut c_void) -> c_int, 1;
    x_shm_map: fn(*mut File, c_int, c_int, c_int, *mut *mut c_void) -> c_int, 2;
    x_shm_lock: fn(*mut File, c_int, c_int, c_int) -> c_int, 2;
    x_shm_unmap: fn(*mut File, c_int) -> c_int, 2;
}

/// Reads through a table of methods.
///
/// # Safety
/// `file` is open with `methods`, and no other thread uses it.
pub(super) unsafe fn read_file(
    file: *mut File,
    methods: Methods,
    buf: &mut [u8],
    offset: u64,
    path: &Path,
) -> Result<ReadExtent> {
    let (Some(read), Ok(len), Ok(at)) = (methods.x_read(), c_int::try_from(buf.len()), i64::try_from(offset))
    else {
        return Err(Error::new(Kind::Bug, format!("cannot read {} at {offset}", path.display())));
    };
    // SAFETY: caller; the buffer has `len` bytes.
    match unsafe { read(file, buf.as_mut_ptr().cast(), len, at) } {
        ffi::OK => Ok(ReadExtent::Full),
        // "it must fill the unread portion with zeros" (https://sqlite.org/c3ref/io_methods.html)
        ffi::IOERR_SHORT_READ => Ok(ReadExtent::Short),
        rc => Err(error::from_code(rc, &format!("cannot read {} at {offset}", path.display()))),
    }
}

/// Size through a table of methods.
///
/// # Safety
/// As [`read_file`].
pub(super) unsafe fn file_size(file: *mut File, methods: Methods, path: &Path) -> Result<u64> {
    let mut size = 0i64;
    let rc = match methods.x_file_size() {
        // SAFETY: caller.
        Some(f) => unsafe { f(file, &raw mut size) },
        None => ffi::IOERR,
    };
    if rc != ffi::OK {
        return Err(error::from_code(rc, &format!("cannot get the size of {}", path.display())));
    }
    Ok(u64::try_from(size).unwrap_or(0))
}
