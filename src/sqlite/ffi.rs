//! The part of `sqlite3.h` this room needs, as `repr(C)` (<https://sqlite.org/c3ref/intro.html>).
//!
//! Names are SQLite's without the `sqlite3_` prefix. Structs that SQLite versions by `iVersion` are
//! written out up to version 3; whoever copies one looks at the version of the original first.

use std::ffi::{c_char, c_double, c_int, c_void};

/// `sqlite3`, opaque.
#[repr(C)]
pub struct Sqlite3 {
    _opaque: [u8; 0],
}

/// `sqlite3_api_routines`: an append-only table of function pointers.
#[repr(C)]
pub struct ApiRoutines {
    _opaque: [u8; 0],
}

/// `sqlite3_stmt`, opaque.
#[repr(C)]
pub(super) struct Stmt {
    _opaque: [u8; 0],
}

/// `sqlite3_backup`, opaque.
#[repr(C)]
pub(super) struct Backup {
    _opaque: [u8; 0],
}

/// `sqlite3_context`, opaque.
#[repr(C)]
pub(super) struct Context {
    _opaque: [u8; 0],
}

/// `sqlite3_value`, opaque.
#[repr(C)]
pub(super) struct RawValue {
    _opaque: [u8; 0],
}

/// `sqlite3_file`: subclassed by each VFS.
#[repr(C)]
pub(super) struct File {
    pub methods: *const IoMethods,
}

type FileFn<T> = Option<T>;

/// `sqlite3_io_methods` up to version 3 (<https://sqlite.org/c3ref/io_methods.html>).
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IoMethods {
    pub i_version: c_int,
    pub x_close: FileFn<unsafe extern "C" fn(*mut File) -> c_int>,
    pub x_read: FileFn<unsafe extern "C" fn(*mut File, *mut c_void, c_int, i64) -> c_int>,
    pub x_write: FileFn<unsafe extern "C" fn(*mut File, *const c_void, c_int, i64) -> c_int>,
    pub x_truncate: FileFn<unsafe extern "C" fn(*mut File, i64) -> c_int>,
    pub x_sync: FileFn<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    pub x_file_size: FileFn<unsafe extern "C" fn(*mut File, *mut i64) -> c_int>,
    pub x_lock: FileFn<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    pub x_unlock: FileFn<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    pub x_check_reserved_lock: FileFn<unsafe extern "C" fn(*mut File, *mut c_int) -> c_int>,
    pub x_file_control: FileFn<unsafe extern "C" fn(*mut File, c_int, *mut c_void) -> c_int>,
    pub x_sector_size: FileFn<unsafe extern "C" fn(*mut File) -> c_int>,
    pub x_device_characteristics: FileFn<unsafe extern "C" fn(*mut File) -> c_int>,
    // version 2
    pub x_shm_map: FileFn<unsafe extern "C" fn(*mut File, c_int, c_int, c_int, *mut *mut c_void) -> c_int>,
    pub x_shm_lock: FileFn<unsafe extern "C" fn(*mut File, c_int, c_int, c_int) -> c_int>,
    pub x_shm_barrier: FileFn<unsafe extern "C" fn(*mut File)>,
    pub x_shm_unmap: FileFn<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    // version 3
    pub x_fetch: FileFn<unsafe extern "C" fn(*mut File, i64, c_int, *mut *mut c_void) -> c_int>,
    pub x_unfetch: FileFn<unsafe extern "C" fn(*mut File, i64, *mut c_void) -> c_int>,
}

/// The part of `sqlite3_io_methods` every version has.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IoMethods1 {
    pub i_version: c_int,
    pub methods: [*const c_void; 12],
}

/// The part of `sqlite3_io_methods` version 2 has.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IoMethods2 {
    pub v1: IoMethods1,
    pub methods: [*const c_void; 4],
}

/// A function of unknown type, as `xDlSym` and system calls hand them over.
pub(super) type AnyFn = Option<unsafe extern "C" fn()>;

/// `sqlite3_vfs` up to version 3 (<https://sqlite.org/c3ref/vfs.html>).
#[repr(C)]
pub(super) struct Vfs {
    pub i_version: c_int,
    pub sz_os_file: c_int,
    pub mx_pathname: c_int,
    pub next: *mut Vfs,
    pub name: *const c_char,
    pub app_data: *mut c_void,
    pub x_open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, *mut File, c_int, *mut c_int) -> c_int>,
    pub x_delete: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int) -> c_int>,
    pub x_access: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_int) -> c_int>,
    pub x_full_pathname: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_char) -> c_int>,
    pub x_dl_open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *mut c_void>,
    pub x_dl_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char)>,
    pub x_dl_sym: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void, *const c_char) -> AnyFn>,
    pub x_dl_close: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void)>,
    pub x_randomness: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    pub x_sleep: Option<unsafe extern "C" fn(*mut Vfs, c_int) -> c_int>,
    pub x_current_time: Option<unsafe extern "C" fn(*mut Vfs, *mut c_double) -> c_int>,
    pub x_get_last_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    // version 2
    pub x_current_time_int64: Option<unsafe extern "C" fn(*mut Vfs, *mut i64) -> c_int>,
    // version 3
    pub x_set_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, AnyFn) -> c_int>,
    pub x_get_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> AnyFn>,
    pub x_next_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *const c_char>,
}

/// `sqlite3_vtab`.
#[repr(C)]
pub(super) struct Vtab {
    pub module: *const Module,
    pub n_ref: c_int,
    pub err_msg: *mut c_char,
}

/// `sqlite3_vtab_cursor`.
#[repr(C)]
pub(super) struct VtabCursor {
    pub vtab: *mut Vtab,
}

/// `sqlite3_index_constraint`.
#[repr(C)]
pub(super) struct IndexConstraint {
    pub column: c_int,
    pub op: u8,
    pub usable: u8,
    pub term_offset: c_int,
}

/// `sqlite3_index_constraint_usage`.
#[repr(C)]
pub(super) struct IndexConstraintUsage {
    pub argv_index: c_int,
    pub omit: u8,
}

/// `sqlite3_index_info` up to the fields of SQLite 3.8.2.
#[repr(C)]
pub(super) struct IndexInfo {
    pub n_constraint: c_int,
    pub constraint: *mut IndexConstraint,
    pub n_order_by: c_int,
    pub order_by: *mut c_void,
    pub constraint_usage: *mut IndexConstraintUsage,
    pub idx_num: c_int,
    pub idx_str: *mut c_char,
    pub need_to_free_idx_str: c_int,
    pub order_by_consumed: c_int,
    pub estimated_cost: c_double,
    pub estimated_rows: i64,
}

type Connect = unsafe extern "C" fn(
    *mut Sqlite3,
    *mut c_void,
    c_int,
    *const *const c_char,
    *mut *mut Vtab,
    *mut *mut c_char,
) -> c_int;

/// `sqlite3_module` version 1 (<https://sqlite.org/c3ref/module.html>).
#[repr(C)]
pub(super) struct Module {
    pub i_version: c_int,
    pub x_create: Option<Connect>,
    pub x_connect: Option<Connect>,
    pub x_best_index: Option<unsafe extern "C" fn(*mut Vtab, *mut IndexInfo) -> c_int>,
    pub x_disconnect: Option<unsafe extern "C" fn(*mut Vtab) -> c_int>,
    pub x_destroy: Option<unsafe extern "C" fn(*mut Vtab) -> c_int>,
    pub x_open: Option<unsafe extern "C" fn(*mut Vtab, *mut *mut VtabCursor) -> c_int>,
    pub x_close: Option<unsafe extern "C" fn(*mut VtabCursor) -> c_int>,
    pub x_filter: Option<
        unsafe extern "C" fn(*mut VtabCursor, c_int, *const c_char, c_int, *mut *mut RawValue) -> c_int,
    >,
    pub x_next: Option<unsafe extern "C" fn(*mut VtabCursor) -> c_int>,
    pub x_eof: Option<unsafe extern "C" fn(*mut VtabCursor) -> c_int>,
    pub x_column: Option<unsafe extern "C" fn(*mut VtabCursor, *mut Context, c_int) -> c_int>,
    pub x_rowid: Option<unsafe extern "C" fn(*mut VtabCursor, *mut i64) -> c_int>,
    pub x_update: AnyFn,
    pub x_begin: AnyFn,
    pub x_sync: AnyFn,
    pub x_commit: AnyFn,
    pub x_rollback: AnyFn,
    pub x_find_function: AnyFn,
    pub x_rename: AnyFn,
}

/// `void (*)(void*)`, and SQLite's two special values of it.
pub(super) type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;

/// `SQLITE_TRANSIENT`: SQLite makes its own copy.
pub(super) fn transient() -> Destructor {
    // SAFETY: "SQLITE_TRANSIENT is ((sqlite3_destructor_type)-1)": SQLite compares it and never calls it
    // (https://sqlite.org/c3ref/c_static.html). A function pointer may hold any non-null bits.
    Some(unsafe { std::mem::transmute::<isize, unsafe extern "C" fn(*mut c_void)>(-1) })
}

pub(super) const OK: c_int = 0;
pub(super) const ERROR: c_int = 1;
pub(super) const BUSY: c_int = 5;
pub(super) const LOCKED: c_int = 6;
pub(super) const NOMEM: c_int = 7;
pub(super) const READONLY: c_int = 8;
pub(super) const IOERR: c_int = 10;
pub(super) const CORRUPT: c_int = 11;
pub(super) const NOTFOUND: c_int = 12;
pub(super) const FULL: c_int = 13;
pub(super) const CANTOPEN: c_int = 14;
pub(super) const CONSTRAINT: c_int = 19;
pub(super) const NOTADB: c_int = 26;
pub(super) const NOTICE: c_int = 27;
pub(super) const WARNING: c_int = 28;
pub(super) const ROW: c_int = 100;
pub(super) const DONE: c_int = 101;
pub(super) const OK_LOAD_PERMANENTLY: c_int = 256;
/// `SQLITE_IOERR_SHORT_READ`
pub(super) const IOERR_SHORT_READ: c_int = IOERR | (2 << 8);
/// `SQLITE_IOERR_READ`
pub(super) const IOERR_READ: c_int = IOERR | (1 << 8);
/// `SQLITE_IOERR_WRITE`: what the app sees when a commit is refused.
pub const IOERR_WRITE: c_int = IOERR | (3 << 8);

pub(super) const OPEN_READONLY: c_int = 0x1;
pub(super) const OPEN_READWRITE: c_int = 0x2;
pub(super) const OPEN_CREATE: c_int = 0x4;
pub(super) const OPEN_MAIN_DB: c_int = 0x100;
pub(super) const OPEN_FULLMUTEX: c_int = 0x10000;
pub(super) const OPEN_PRIVATECACHE: c_int = 0x40000;
pub(super) const OPEN_WAL: c_int = 0x80000;

pub(super) const FCNTL_FILE_POINTER: c_int = 7;
pub(super) const FCNTL_PERSIST_WAL: c_int = 10;
pub(super) const FCNTL_VFSNAME: c_int = 12;
pub(super) const FCNTL_PRAGMA: c_int = 14;
pub(super) const FCNTL_HAS_MOVED: c_int = 20;
pub(super) const FCNTL_COMMIT_PHASETWO: c_int = 22;
pub(super) const FCNTL_VFS_POINTER: c_int = 27;
pub(super) const FCNTL_JOURNAL_POINTER: c_int = 28;
pub(super) const FCNTL_RESERVE_BYTES: c_int = 38;

pub(super) const LOCK_SHARED: c_int = 1;

pub(super) const SHM_UNLOCK: c_int = 1;
pub(super) const SHM_LOCK: c_int = 2;
pub(super) const SHM_SHARED: c_int = 4;
pub(super) const SHM_EXCLUSIVE: c_int = 8;

pub(super) const SYNC_NORMAL: c_int = 2;
pub(super) const ACCESS_EXISTS: c_int = 0;

pub(super) const UTF8: c_int = 1;
pub(super) const DIRECTONLY: c_int = 0x80000;
pub(super) const VTAB_DIRECTONLY: c_int = 3;
pub(super) const INDEX_CONSTRAINT_EQ: u8 = 2;
pub(super) const DBCONFIG_NO_CKPT_ON_CLOSE: c_int = 1006;

pub(super) const INTEGER: c_int = 1;
pub(super) const FLOAT: c_int = 2;
pub(super) const TEXT: c_int = 3;
pub(super) const BLOB: c_int = 4;
