//! walrust inside a Rust program that links its own SQLite, by any crate that does so: nothing is loaded from a file.
//!
//! * I-PROGRAM-1: the only functions called by name are those below, which every SQLite has had since 3.8.7. Everything else comes from the
//!   API table, as in a loaded extension: so there is no second set of bindings that could be of another SQLite (no `links`).
//!
//! Refused: to depend on libsqlite3-sys, of which a program can have one version alone.

use super::entry::{Wiring, start_for_program};
use super::ffi::{self, ApiRoutines, Sqlite3};
use crate::base::{Error, ForkSafe, Result};
use std::ffi::{c_char, c_int};
use std::sync::{Mutex, OnceLock};

type Entry = unsafe extern "C" fn(*mut Sqlite3, *mut *mut c_char, *const ApiRoutines) -> c_int;

unsafe extern "C" {
    fn sqlite3_auto_extension(entry: Option<Entry>) -> c_int;
    fn sqlite3_open(name: *const c_char, db: *mut *mut Sqlite3) -> c_int;
    fn sqlite3_close(db: *mut Sqlite3) -> c_int;
}

static WIRING: OnceLock<fn() -> Wiring> = OnceLock::new();
/// What the entry answered last: SQLite itself is always told that all is well.
static OUTCOME: ForkSafe<Mutex<Option<std::result::Result<(), String>>>> = ForkSafe::new(Mutex::default);

unsafe extern "C" fn entry(db: *mut Sqlite3, _: *mut *mut c_char, api: *const ApiRoutines) -> c_int {
    if let Some(wiring) = WIRING.get() {
        // SAFETY: SQLite calls auto-extensions with the arguments of an extension entry.
        let outcome = unsafe { start_for_program(db, api, *wiring) };
        *OUTCOME.lock() = Some(outcome);
    }
    ffi::OK
}

/// Every connection that this program's SQLite opens from now on has walrust in it. Again does no harm.
///
/// Errors: `Config` where this SQLite cannot have it (too old, built without what is needed, another SQLite of this process has it).
pub(crate) fn install(wiring: fn() -> Wiring) -> Result<()> {
    let _ = WIRING.set(wiring);
    let failed = |what: &str, rc: c_int| {
        Error::config(format!("walrust cannot be installed: {what} (SQLite code {rc})"))
    };
    // SAFETY: `entry` has the signature of an extension entry, and stays; being on the list already is harmless.
    let rc = unsafe { sqlite3_auto_extension(Some(entry)) };
    if rc != ffi::OK {
        return Err(failed("SQLite takes no extension", rc));
    }
    // The first connection is where the API table arrives.
    let mut db = std::ptr::null_mut();
    // SAFETY: the name ends in a zero, the connection is closed whatever the open said, as SQLite wants it.
    let rc = unsafe {
        let rc = sqlite3_open(c":memory:".as_ptr(), &raw mut db);
        sqlite3_close(db);
        rc
    };
    if rc != ffi::OK {
        return Err(failed("a database in memory could not be opened", rc));
    }
    match OUTCOME.lock().clone() {
        Some(outcome) => outcome.map_err(Error::config),
        None => Err(Error::config("walrust cannot be installed: this SQLite was built without extensions")),
    }
}
