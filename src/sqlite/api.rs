//! The host's SQLite, reached through the table of function pointers it hands to extensions.
//!
//! Rules:
//! * I-SQLITE-1: one process, one SQLite library. The first table wins; a second one is refused, because
//!   a `sqlite3*` of one library must never be given to the code of another.
//! * I-SQLITE-2: no slot is called unless the version that introduced it is the host's or older, and
//!   it was seen non-null at load.
//!
//! The table is append-only ("sqlite3ext.h": new entries go to the end), so a slot number never changes.
//! Ready-made bindings were refused: rusqlite's abort the host on SQLite older than its own floor.

use super::ffi::*;
use std::ffi::{CStr, c_char, c_double, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The oldest SQLite we run in, as `sqlite3_libversion_number` counts.
pub(super) const FLOOR: c_int = 3_024_000;

static TABLE: AtomicPtr<ApiRoutines> = AtomicPtr::new(std::ptr::null_mut());

/// Slot `n` as a function of type `F`.
///
/// # Safety
/// `table` is a live `sqlite3_api_routines` with more than `n` slots, slot `n` is not null and holds a
/// function of type `F`.
unsafe fn slot_of<F: Copy>(table: *const ApiRoutines, n: usize) -> F {
    const { assert!(size_of::<F>() == size_of::<*const c_void>()) };
    // SAFETY: the table is an array of function pointers, all of pointer size (sqlite3ext.h).
    unsafe { table.cast::<F>().add(n).read() }
}

macro_rules! slots {
    ($($since:literal $slot:literal $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)?;)*) => {
        $(
            /// The function of the same name in <https://sqlite.org/c3ref/funclist.html>.
            ///
            /// # Safety
            /// As the SQLite function demands; the table must be set.
            #[allow(clippy::too_many_arguments)]
            pub(super) unsafe fn $name($($a: $t),*) $(-> $r)? {
                // SAFETY: `adopt` stored the table and checked this slot (I-SQLITE-2); the type is that of
                // sqlite3ext.h, whose offsets a test compares.
                unsafe {
                    let f: unsafe extern "C" fn($($t),*) $(-> $r)? = slot_of(TABLE.load(Ordering::Acquire), $slot);
                    f($($a),*)
                }
            }
        )*
        /// (name, slot, version that has it) of every function used.
        pub(super) const USED: &[(&str, usize, c_int)] = &[
            $((stringify!($name), $slot, $since),)*
            ("db_config", DB_CONFIG, FLOOR), ("log", LOG, FLOOR), ("vtab_config", VTAB_CONFIG, FLOOR),
            ("malloc", MALLOC, FLOOR), ("mutex_alloc", MUTEX_ALLOC, FLOOR), ("mutex_free", MUTEX_FREE, FLOOR),
        ];
    };
}

/// `void (*xFunc)(sqlite3_context*, int, sqlite3_value**)`
pub(super) type ScalarFn = unsafe extern "C" fn(*mut Context, c_int, *mut *mut RawValue);
/// What `sqlite3_auto_extension` takes.
pub(super) type InitFn = unsafe extern "C" fn(*mut Sqlite3, *mut *mut c_char, *const ApiRoutines) -> c_int;
type ExecCallback =
    Option<unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int>;

slots! {
    3_024_000 14  busy_timeout(db: *mut Sqlite3, ms: c_int) -> c_int;
    3_024_000 19  column_blob(s: *mut Stmt, col: c_int) -> *const c_void;
    3_024_000 20  column_bytes(s: *mut Stmt, col: c_int) -> c_int;
    3_024_000 22  column_count(s: *mut Stmt) -> c_int;
    3_024_000 27  column_double(s: *mut Stmt, col: c_int) -> c_double;
    3_024_000 29  column_int64(s: *mut Stmt, col: c_int) -> i64;
    3_024_000 36  column_text(s: *mut Stmt, col: c_int) -> *const c_void;
    3_024_000 38  column_type(s: *mut Stmt, col: c_int) -> c_int;
    3_024_000 50  declare_vtab(db: *mut Sqlite3, sql: *const c_char) -> c_int;
    3_024_000 53  errmsg(db: *mut Sqlite3) -> *const c_char;
    3_024_000 55  exec(db: *mut Sqlite3, sql: *const c_char, f: ExecCallback, p: *mut c_void, e: *mut *mut c_char) -> c_int;
    3_024_000 57  finalize(s: *mut Stmt) -> c_int;
    3_024_000 58  free(p: *mut c_void);
    3_024_000 60  get_autocommit(db: *mut Sqlite3) -> c_int;
    3_024_000 64  interruptx(db: *mut Sqlite3);
    3_024_000 66  libversion() -> *const c_char;
    3_024_000 67  libversion_number() -> c_int;
    3_024_000 79  result_double(c: *mut Context, v: c_double);
    3_024_000 80  result_error(c: *mut Context, text: *const c_char, len: c_int);
    3_024_000 83  result_int64(c: *mut Context, v: i64);
    3_024_000 84  result_null(c: *mut Context);
    3_024_000 94  step(s: *mut Stmt) -> c_int;
    3_024_000 101 user_data(c: *mut Context) -> *mut c_void;
    3_024_000 102 value_blob(v: *mut RawValue) -> *const c_void;
    3_024_000 103 value_bytes(v: *mut RawValue) -> c_int;
    3_024_000 105 value_double(v: *mut RawValue) -> c_double;
    3_024_000 107 value_int64(v: *mut RawValue) -> i64;
    3_024_000 109 value_text(v: *mut RawValue) -> *const c_void;
    3_024_000 113 value_type(v: *mut RawValue) -> c_int;
    3_024_000 116 prepare_v2(db: *mut Sqlite3, sql: *const c_char, n: c_int, s: *mut *mut Stmt, tail: *mut *const c_char) -> c_int;
    3_024_000 119 create_module_v2(db: *mut Sqlite3, name: *const c_char, m: *const Module, aux: *mut c_void, d: Destructor) -> c_int;
    3_024_000 127 file_control(db: *mut Sqlite3, name: *const c_char, op: c_int, arg: *mut c_void) -> c_int;
    3_024_000 135 open_v2(path: *const c_char, db: *mut *mut Sqlite3, flags: c_int, vfs: *const c_char) -> c_int;
    3_024_000 141 vfs_find(name: *const c_char) -> *mut Vfs;
    3_024_000 142 vfs_register(vfs: *mut Vfs, make_default: c_int) -> c_int;
    3_024_000 149 context_db_handle(c: *mut Context) -> *mut Sqlite3;
    3_024_000 155 backup_finish(b: *mut Backup) -> c_int;
    3_024_000 156 backup_init(to: *mut Sqlite3, to_name: *const c_char, from: *mut Sqlite3, from_name: *const c_char) -> *mut Backup;
    3_024_000 159 backup_step(b: *mut Backup, pages: c_int) -> c_int;
    3_024_000 162 create_function_v2(db: *mut Sqlite3, name: *const c_char, n: c_int, flags: c_int, user: *mut c_void,
                      func: Option<ScalarFn>, step: AnyFn, last: AnyFn, d: Destructor) -> c_int;
    3_024_000 166 extended_errcode(db: *mut Sqlite3) -> c_int;
    3_024_000 173 wal_autocheckpoint(db: *mut Sqlite3, frames: c_int) -> c_int;
    3_024_000 179 close_v2(db: *mut Sqlite3) -> c_int;
    3_024_000 180 db_filename(db: *mut Sqlite3, name: *const c_char) -> *const c_char;
    3_024_000 181 db_readonly(db: *mut Sqlite3, name: *const c_char) -> c_int;
    3_024_000 189 uri_parameter(name: *const c_char, key: *const c_char) -> *const c_char;
    3_024_000 192 auto_extension(f: InitFn) -> c_int;
    3_024_000 197 malloc64(n: u64) -> *mut c_void;
    3_024_000 201 result_blob64(c: *mut Context, p: *const c_void, n: u64, d: Destructor);
    3_024_000 202 result_text64(c: *mut Context, p: *const c_char, n: u64, d: Destructor, encoding: u8);
    3_031_000 245 uri_key(name: *const c_char, n: c_int) -> *const c_char;
    3_031_000 248 filename_wal(name: *const c_char) -> *const c_char;
    3_032_000 249 create_filename(db: *const c_char, journal: *const c_char, wal: *const c_char, n: c_int, kv: *const *const c_char) -> *const c_char;
    3_032_000 250 free_filename(name: *const c_char);
    3_039_000 264 db_name(db: *mut Sqlite3, n: c_int) -> *const c_char;
}

// Variadic ones, and those called before the table is adopted.
const MALLOC: usize = 68;
const LIBVERSION: usize = 66;
const LIBVERSION_NUMBER: usize = 67;
const MUTEX_ALLOC: usize = 130;
const MUTEX_FREE: usize = 132;
const DB_CONFIG: usize = 163;
// Those that a SQLite may lack.
const BLOB_CLOSE: usize = 122;
const BLOB_OPEN: usize = 123;
const COMPILEOPTION_USED: usize = 161;
const LOG: usize = 167;
const VTAB_CONFIG: usize = 177;

/// `sqlite3_log(code, "%s", text)`.
///
/// # Safety
/// The table must be set.
pub(super) unsafe fn log(code: c_int, text: &CStr) {
    // SAFETY: as in `slots!`; the format has one %s and one string follows.
    unsafe {
        let f: unsafe extern "C" fn(c_int, *const c_char, ...) = slot_of(TABLE.load(Ordering::Acquire), LOG);
        f(code, c"%s".as_ptr(), text.as_ptr());
    }
}

/// Reads the first row of a database's schema without a statement that a trace shows: `sqlite3_blob_open`, closed at once. `None` where
/// SQLite was built without it (`SQLITE_OMIT_INCRBLOB`).
///
/// # Safety
/// `db` is an open connection.
pub(super) unsafe fn read_schema(db: *mut Sqlite3, name: &CStr) -> Option<c_int> {
    type Open = unsafe extern "C" fn(
        *mut Sqlite3,
        *const c_char,
        *const c_char,
        *const c_char,
        i64,
        c_int,
        *mut *mut c_void,
    ) -> c_int;
    type Close = unsafe extern "C" fn(*mut c_void) -> c_int;
    let table = TABLE.load(Ordering::Acquire);
    // SAFETY: as in `slots!`; a slot that is empty is `None`. "This function is a no-op if called with a NULL pointer."
    unsafe {
        let (open, close): (Option<Open>, Option<Close>) =
            (slot_of(table, BLOB_OPEN), slot_of(table, BLOB_CLOSE));
        let (open, close) = (open?, close?);
        let mut blob = std::ptr::null_mut();
        let rc = open(db, name.as_ptr(), c"sqlite_master".as_ptr(), c"type".as_ptr(), 1, 0, &raw mut blob);
        close(blob);
        Some(rc)
    }
}

/// Whether SQLite was built with an option, if it tells.
pub(super) fn was_built_with(option: &CStr) -> Option<bool> {
    // SAFETY: as in `slots!`; a slot that is empty is `None`, and the text ends in 0.
    unsafe {
        let used: Option<unsafe extern "C" fn(*const c_char) -> c_int> =
            slot_of(TABLE.load(Ordering::Acquire), COMPILEOPTION_USED);
        used.map(|used| used(option.as_ptr()) != 0)
    }
}

/// `sqlite3_vtab_config(db, op)` for an `op` without further arguments.
///
/// # Safety
/// Called inside `xConnect` on the `db` given there.
pub(super) unsafe fn vtab_config(db: *mut Sqlite3, op: c_int) -> c_int {
    // SAFETY: as in `slots!`.
    unsafe {
        let f: unsafe extern "C" fn(*mut Sqlite3, c_int, ...) -> c_int =
            slot_of(TABLE.load(Ordering::Acquire), VTAB_CONFIG);
        f(db, op)
    }
}

/// `sqlite3_db_config(db, op, on, NULL)` for a boolean `op`.
///
/// # Safety
/// `db` is an open connection; `op` takes an int and an int pointer.
pub(super) unsafe fn db_config_on(db: *mut Sqlite3, op: c_int) -> c_int {
    // SAFETY: as in `slots!`; boolean options take (int, int*), and NULL is allowed for the pointer.
    unsafe {
        let f: unsafe extern "C" fn(*mut Sqlite3, c_int, ...) -> c_int =
            slot_of(TABLE.load(Ordering::Acquire), DB_CONFIG);
        f(db, op, 1 as c_int, std::ptr::null_mut::<c_int>())
    }
}

/// Whether the table is set: nothing else here may be called before.
pub(super) fn is_set() -> bool {
    !TABLE.load(Ordering::Acquire).is_null()
}

/// The table itself, which stands in the SQLite library; null before it is set.
pub(super) fn table() -> *const ApiRoutines {
    TABLE.load(Ordering::Acquire)
}

/// Whether the host is this version or newer (`3_032_000` = 3.32.0).
pub(super) fn at_least(version: c_int) -> bool {
    // SAFETY: takes no argument; `is_set` says the table is there.
    is_set() && unsafe { libversion_number() } >= version
}

/// Makes `table` the process's SQLite, or says in one line why it cannot be.
///
/// # Safety
/// `table` is what SQLite passed to an extension's entry point.
pub(super) unsafe fn adopt(table: *const ApiRoutines) -> Result<(), String> {
    if table.is_null() {
        return Err("walrust needs SQLite's API table and was given none".into());
    }
    let known = TABLE.load(Ordering::Acquire);
    if std::ptr::eq(known, table) {
        return Ok(());
    }
    if !known.is_null() {
        return Err("walrust is already loaded in this process by another SQLite library".into());
    }
    // SAFETY: slots 66 and 67 exist since 3.3; the text is static in SQLite.
    let (number, text) = unsafe {
        let number: unsafe extern "C" fn() -> c_int = slot_of(table, LIBVERSION_NUMBER);
        let text: unsafe extern "C" fn() -> *const c_char = slot_of(table, LIBVERSION);
        (number(), CStr::from_ptr(text()).to_string_lossy())
    };
    if number < FLOOR {
        return Err(format!("walrust needs SQLite 3.24.0 or newer, this is {text}"));
    }
    for &(name, n, since) in USED {
        // SAFETY: a library of version `since` or newer has slot n (append-only).
        if number >= since && unsafe { slot_of::<*const c_void>(table, n) }.is_null() {
            return Err(format!(
                "walrust needs sqlite3_{name}(), which this SQLite {text} was built without"
            ));
        }
    }
    // SAFETY: both slots were just seen non-null.
    if !unsafe { has_mutexes(table) } {
        return Err("walrust needs a thread-safe SQLite, this one is configured single-threaded".into());
    }
    match TABLE.compare_exchange(std::ptr::null_mut(), table.cast_mut(), Ordering::AcqRel, Ordering::Acquire)
    {
        Ok(_) => Ok(()),
        Err(other) if std::ptr::eq(other, table) => Ok(()),
        Err(_) => Err("walrust is already loaded in this process by another SQLite library".into()),
    }
}

/// Whether the library works with mutexes: we call it from threads of our own.
///
/// # Safety
/// `table` has both mutex slots.
unsafe fn has_mutexes(table: *const ApiRoutines) -> bool {
    const MUTEX_FAST: c_int = 0;
    // SAFETY: "SQLITE_CONFIG_SINGLETHREAD": sqlite3_mutex_alloc gives null; else it is freed at once.
    unsafe {
        let alloc: unsafe extern "C" fn(c_int) -> *mut c_void = slot_of(table, MUTEX_ALLOC);
        let free: unsafe extern "C" fn(*mut c_void) = slot_of(table, MUTEX_FREE);
        let mutex = alloc(MUTEX_FAST);
        if !mutex.is_null() {
            free(mutex);
        }
        !mutex.is_null()
    }
}

/// Puts an error text where the loader of an extension looks for it, in memory of *its* library.
///
/// # Safety
/// `table` as given to the entry point (may be null); `out` null or writable.
pub(super) unsafe fn report_load_error(table: *const ApiRoutines, out: *mut *mut c_char, text: &str) {
    if table.is_null() || out.is_null() {
        return;
    }
    // SAFETY: slot 68 is `void *malloc(int)` in every version; "the error message ... obtained from
    // sqlite3_mprintf()", i.e. from this library's allocator (https://sqlite.org/loadext.html).
    unsafe {
        let malloc: unsafe extern "C" fn(c_int) -> *mut c_void = slot_of(table, MALLOC);
        *out = copy_c_string(text, |n| malloc(c_int::try_from(n).unwrap_or(0)));
    }
}

/// `text` as a NUL-ended string from SQLite's allocator; null when out of memory.
pub(super) fn sqlite_string(text: &str) -> *mut c_char {
    // SAFETY: any size may be asked for.
    copy_c_string(text, |n| unsafe { malloc64(n as u64) })
}

fn copy_c_string(text: &str, alloc: impl FnOnce(usize) -> *mut c_void) -> *mut c_char {
    let p = alloc(text.len() + 1).cast::<u8>();
    if !p.is_null() {
        // SAFETY: `p` has room for the text and its NUL.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), p, text.len());
            p.add(text.len()).write(0);
        }
    }
    p.cast()
}

/// Version of the SQLite library we run in: `3.40.1`; empty before it is known.
pub fn version() -> &'static str {
    if !is_set() {
        return "";
    }
    // SAFETY: a static string of SQLite.
    unsafe { CStr::from_ptr(libversion()) }.to_str().unwrap_or("")
}
