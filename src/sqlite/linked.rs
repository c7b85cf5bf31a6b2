//! walrust inside a program that brings its own SQLite (the command line, tests): instead of a library being
//! loaded, the entry is put on SQLite's list of auto-extensions.

use super::entry::{Wiring, auto_load};
use super::ffi::{ApiRoutines, Sqlite3};
use rusqlite::ffi as host;
use std::ffi::{c_char, c_int};
use std::sync::OnceLock;

static WIRING: OnceLock<fn() -> Wiring> = OnceLock::new();

unsafe extern "C" fn entry(
    db: *mut host::sqlite3,
    _: *mut *mut c_char,
    api: *const host::sqlite3_api_routines,
) -> c_int {
    let wiring = WIRING.get().copied().unwrap_or(Wiring::default);
    // SAFETY: SQLite calls auto-extensions with the arguments of an extension entry; the opaque types are
    // those of the same library under another name.
    unsafe { auto_load(db.cast::<Sqlite3>(), api.cast::<ApiRoutines>(), wiring) }
}

/// Makes SQLite's own random numbers (the salts of a WAL) the same in every run. Zero: random again.
#[cfg(feature = "sim")]
pub fn seed_randomness(seed: u32) {
    // SAFETY: "sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, int, sqlite3*)"; no connection is given.
    unsafe {
        host::sqlite3_test_control(28, seed as std::ffi::c_int, std::ptr::null_mut::<host::sqlite3>());
    }
}

/// From the next connection on, this program's own SQLite has walrust in it. The first caller's wiring
/// counts; a test that needs a host of its own adds it with [`super::add_host`].
pub fn install(wiring: fn() -> Wiring) -> rusqlite::Result<()> {
    let _ = WIRING.set(wiring);
    // SAFETY: `entry` has the signature of an extension entry; putting it on the list again is a no-op.
    let rc = unsafe { host::sqlite3_auto_extension(Some(entry)) };
    if rc != host::SQLITE_OK {
        return Err(rusqlite::Error::SqliteFailure(host::Error::new(rc), None));
    }
    // The first connection is where the API table arrives.
    rusqlite::Connection::open_in_memory().map(drop)
}
