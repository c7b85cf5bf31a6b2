//! Databases that are no files of this machine: SQLite is given a name, and who knows such names gives the pages.
//!
//! Rules:
//! * I-ELSE-1: a name is taken from the lower VFS only if the one [`Elsewhere`] of this process says that it is one of his; all
//!   other names and files are the lower VFS's, unseen.
//! * I-ELSE-2: such a database is read-only, and says so at its open, so that SQLite itself refuses to write, with its own words.
//! * I-ELSE-3: what SQLite reads between a SHARED lock and its unlock is of one state.
//! * I-ELSE-4: an error is never a row: whatever cannot be read is a result code, its reason goes to the log and can be asked for.
//!
//! The methods are of version 1: no wal-index and no mapping, so SQLite looks for no WAL. Refused: a VFS of our own for such names
//! (drivers without URI mode cannot name one; `ATTACH` takes that of its connection).

use super::ffi::{self, File, IoMethods, Vfs};
use super::guard::caught;
use super::methods::{ReadExtent, is_closed_by};
use super::{api, pager};
use crate::base::{Error, Kind, Result};
use once_cell::race::OnceBox;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;

/// Who knows databases that are no files.
pub trait Elsewhere: Send + Sync {
    /// The full name of the database that `name` means, if it means one of these. Asked for each file that SQLite opens, so it has
    /// to be quick for the names that are none.
    fn full_name(&self, name: &str) -> Option<String>;

    /// Opens the database of a full name. `parameter` gives those of the URI, if the program opened it by one. Errors with whatever
    /// speaks against that.
    fn open(&self, name: &str, parameter: &dyn Fn(&str) -> Option<String>) -> Result<Box<dyn Image>>;
}

/// One open database of [`Elsewhere`], used by one thread at a time.
pub trait Image: Send {
    /// A transaction begins: from here to [`Image::end`] all is of one state. Errors where no state can be had.
    fn begin(&mut self) -> Result<()>;

    /// The transaction has ended.
    fn end(&mut self);

    /// Size in bytes. Errors as [`Image::read`] does.
    fn size(&mut self) -> Result<u64>;

    /// Fills `buf` from `offset` on. Errors with [`Kind::Corrupt`] where what lies there cannot be believed, and with whatever
    /// speaks against reading it.
    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<ReadExtent>;
}

static ELSEWHERE: OnceBox<Arc<dyn Elsewhere>> = OnceBox::new();

thread_local! {
    static LAST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The last error of this thread that SQLite has shown as a bare result code. It is taken: the next call gives none.
pub fn take_last_error() -> Option<String> {
    LAST_ERROR.take()
}

/// From now on names are shown to `who`. The first call counts.
pub(super) fn set(who: Arc<dyn Elsewhere>) {
    let _ = ELSEWHERE.set(Box::new(who));
}

/// What `sqlite3_file` is for such a database.
#[repr(C)]
struct OpenImage {
    methods: *const IoMethods,
    state: *mut State,
}

struct State {
    name: String,
    image: Box<dyn Image>,
    lock: c_int,
}

static METHODS: IoMethods = IoMethods {
    i_version: 1,
    x_close: Some(x_close),
    x_read: Some(x_read),
    x_write: Some(x_write),
    x_truncate: Some(x_truncate),
    x_sync: Some(x_sync),
    x_file_size: Some(x_file_size),
    x_lock: Some(x_lock),
    x_unlock: Some(x_unlock),
    x_check_reserved_lock: Some(x_check_reserved_lock),
    x_file_control: Some(x_file_control),
    x_sector_size: Some(x_sector_size),
    x_device_characteristics: Some(x_device_characteristics),
    x_shm_map: None,
    x_shm_lock: None,
    x_shm_barrier: None,
    x_shm_unmap: None,
    x_fetch: None,
    x_unfetch: None,
};

/// The full name that `name` stands for, if it is one of [`Elsewhere`]'s.
///
/// # Safety
/// `name` is a NUL-ended string.
pub(super) unsafe fn full_name(name: *const c_char) -> Option<String> {
    let who = ELSEWHERE.get()?;
    // SAFETY: caller.
    let name = unsafe { CStr::from_ptr(name) }.to_str().ok()?;
    caught(|| who.full_name(name)).ok().flatten()
}

/// Whether the file is one of [`Elsewhere`]'s.
///
/// # Safety
/// `file` points to a `sqlite3_file`.
pub(super) unsafe fn is_one(file: *const File) -> bool {
    // SAFETY: caller.
    unsafe { is_closed_by(file, x_close) }
}

/// Answers an `xFullPathname` whose name is one of [`Elsewhere`]'s.
///
/// # Safety
/// The arguments are those of an `xFullPathname`: `out` has room for `n` bytes.
pub(super) unsafe fn put_full_name(full: &str, n: c_int, out: *mut c_char) -> c_int {
    let Ok(text) = CString::new(full) else { return ffi::CANTOPEN };
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > usize::try_from(n).unwrap_or(0) {
        let e = Error::config(format!(
            "the name of a replica that is opened has {} bytes, and SQLite takes {n} at most",
            bytes.len()
        ));
        return failed("the replica", &e, ffi::CANTOPEN);
    }
    // SAFETY: caller; the length was compared.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast::<u8>(), bytes.len()) };
    ffi::OK
}

/// Opens the database of `name`, a full name of [`Elsewhere`]'s.
///
/// # Safety
/// The arguments are those of an `xOpen` of a main database.
pub(super) unsafe fn open(
    vfs: *const Vfs,
    full: &str,
    name: *const c_char,
    file: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: caller; nothing to close if it cannot be opened.
    unsafe { (*file).methods = std::ptr::null() };
    // SAFETY: caller; a registered VFS. Only a pager's name has parameters behind it.
    let (room, is_pagers) = unsafe { ((*vfs).sz_os_file, pager::is_pagers(vfs, name, file)) };
    if usize::try_from(room).unwrap_or(0) < size_of::<OpenImage>() {
        return ffi::CANTOPEN;
    }
    let parameter = |key: &str| {
        let key = CString::new(key).ok().filter(|_| is_pagers)?;
        // SAFETY: a pager's own name; the answer lives as long as it, and is copied.
        unsafe {
            let value = api::uri_parameter(name, key.as_ptr());
            if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok().map(str::to_string) }
        }
    };
    let Some(who) = ELSEWHERE.get() else { return ffi::CANTOPEN };
    let opened = caught(|| who.open(full, &parameter));
    let image = match opened.unwrap_or_else(|what| Err(bug(&what))) {
        Ok(image) => image,
        Err(e) => return failed(full, &e, ffi::CANTOPEN),
    };
    let state = State { name: shown(full), image, lock: 0 };
    // SAFETY: the buffer has room for it; SQLite hands it to the methods alone.
    unsafe {
        file.cast::<OpenImage>()
            .write(OpenImage { methods: &raw const METHODS, state: Box::into_raw(Box::new(state)) });
        if !out_flags.is_null() {
            *out_flags = (flags & !(ffi::OPEN_READWRITE | ffi::OPEN_CREATE)) | ffi::OPEN_READONLY;
        }
    }
    ffi::OK
}

/// A name without what may be secret in its parameters.
fn shown(name: &str) -> String {
    name.split('?').next().unwrap_or_default().to_string()
}

fn bug(what: &str) -> Error {
    Error::new(Kind::Bug, format!("internal error (panic): {what}"))
}

/// Tells the log, and whoever asks, why SQLite is given `code`.
fn failed(name: &str, e: &Error, code: c_int) -> c_int {
    let text = format!("{}: {e}", shown(name));
    log::error!("walrust: {text}");
    LAST_ERROR.set(Some(text));
    code
}

/// What SQLite is told of an error while it reads.
fn code_of(e: &Error) -> c_int {
    match e.kind() {
        Kind::Corrupt => ffi::CORRUPT,
        _ => ffi::IOERR_READ,
    }
}

/// Runs `f` on what the file holds; an error, or a panic, becomes SQLite's code for it.
///
/// # Safety
/// `file` was opened by [`open`] and is used by this thread alone.
unsafe fn with(file: *mut File, f: impl FnOnce(&mut State) -> Result<c_int>) -> c_int {
    // SAFETY: caller.
    let state = unsafe { &mut *(*file.cast::<OpenImage>()).state };
    let done = caught(|| f(state)).unwrap_or_else(|what| Err(bug(&what)));
    done.unwrap_or_else(|e| failed(&state.name, &e, code_of(&e)))
}

unsafe extern "C" fn x_close(file: *mut File) -> c_int {
    // SAFETY: SQLite calls xClose once; nothing uses the file after it.
    unsafe {
        let state = (*file.cast::<OpenImage>()).state;
        (*file).methods = std::ptr::null();
        let _ = caught(|| drop(Box::from_raw(state)));
    }
    ffi::OK
}

unsafe extern "C" fn x_read(file: *mut File, buf: *mut c_void, len: c_int, offset: i64) -> c_int {
    let (Ok(len), Ok(offset)) = (usize::try_from(len), u64::try_from(offset)) else { return ffi::IOERR_READ };
    // SAFETY: one of our files; "xRead(file, buffer, iAmt, iOfst)": the buffer has iAmt bytes.
    unsafe {
        with(file, |s| {
            let buf = std::slice::from_raw_parts_mut(buf.cast::<u8>(), len);
            buf.fill(0);
            Ok(match s.image.read(buf, offset)? {
                ReadExtent::Full => ffi::OK,
                ReadExtent::Short => ffi::IOERR_SHORT_READ,
            })
        })
    }
}

unsafe extern "C" fn x_write(_: *mut File, _: *const c_void, _: c_int, _: i64) -> c_int {
    ffi::READONLY
}

unsafe extern "C" fn x_truncate(_: *mut File, _: i64) -> c_int {
    ffi::READONLY
}

unsafe extern "C" fn x_sync(_: *mut File, _: c_int) -> c_int {
    ffi::OK
}

unsafe extern "C" fn x_file_size(file: *mut File, out: *mut i64) -> c_int {
    // SAFETY: one of our files; `out` is SQLite's.
    unsafe {
        with(file, |s| {
            *out = i64::try_from(s.image.size()?).unwrap_or(i64::MAX);
            Ok(ffi::OK)
        })
    }
}

unsafe extern "C" fn x_lock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: one of our files.
    unsafe {
        super::log::deliver();
        with(file, |s| {
            if level > ffi::LOCK_SHARED {
                return Ok(ffi::READONLY);
            }
            if s.lock < level {
                s.image.begin()?;
                s.lock = level;
            }
            Ok(ffi::OK)
        })
    }
}

unsafe extern "C" fn x_unlock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: one of our files.
    unsafe {
        with(file, |s| {
            if level < ffi::LOCK_SHARED && s.lock >= ffi::LOCK_SHARED {
                s.image.end();
            }
            s.lock = s.lock.min(level);
            Ok(ffi::OK)
        })
    }
}

unsafe extern "C" fn x_check_reserved_lock(_: *mut File, out: *mut c_int) -> c_int {
    // SAFETY: `out` is SQLite's.
    unsafe { *out = 0 };
    ffi::OK
}

unsafe extern "C" fn x_file_control(_: *mut File, op: c_int, arg: *mut c_void) -> c_int {
    match op {
        // SAFETY: "it writes a pointer to a string from sqlite3_malloc() into the char* that the fourth parameter points to".
        ffi::FCNTL_VFSNAME if !arg.is_null() => unsafe {
            *arg.cast::<*mut c_char>() = api::sqlite_string("walrust");
            ffi::OK
        },
        // SAFETY: this control stores one int.
        ffi::FCNTL_HAS_MOVED if !arg.is_null() => unsafe {
            *arg.cast::<c_int>() = 0;
            ffi::OK
        },
        _ => ffi::NOTFOUND,
    }
}

unsafe extern "C" fn x_sector_size(_: *mut File) -> c_int {
    4096
}

unsafe extern "C" fn x_device_characteristics(_: *mut File) -> c_int {
    0
}
