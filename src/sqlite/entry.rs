//! What happens when the extension is loaded (<https://sqlite.org/loadext.html>).
//!
//! * The entry for `load_extension` answers `SQLITE_OK_LOAD_PERMANENTLY`: our VFS, hooks and atfork
//!   handlers point into the library for the life of the process.
//! * The entry for `sqlite3_auto_extension` answers `SQLITE_OK`, always: anything else makes
//!   `sqlite3_open_v2` fail on connections with extended result codes, and an app that could not open its
//!   database because of us would be worse off than without us.
//! * Loading again, on this or another connection, does again only what is undone.
//!
//! Entries are thin `extern "C"` functions in `lib.rs`, since the wiring is known there alone.

use super::attach::Hooked;
use super::connection::Connection;
use super::elsewhere::{self, Elsewhere};
use super::ffi::{self, ApiRoutines, Sqlite3};
use super::function::{self, ScalarFunction};
use super::guard::{caught, guard, report_panics_to_log};
use super::host::{Host, add_host, hosts};
use super::table::{self, TableFunction};
use super::unseen::is_unseen;
use super::{api, fork, loader, log as to_sqlite, vfs};
use crate::base::ForkSafe;
use std::ffi::{c_char, c_int};
use std::sync::{Arc, Mutex, OnceLock};

/// What the rooms above bring.
#[derive(Default)]
pub struct Wiring {
    /// Scalar functions of every connection.
    pub functions: Vec<&'static ScalarFunction>,
    /// Table-valued functions of every connection.
    pub tables: Vec<&'static TableFunction>,
    /// Who observes files; the first that wants a file has it. None: files are left alone.
    pub hosts: Vec<Arc<dyn Host>>,
    /// Who knows databases that are no files of this machine.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
}

static WIRING: OnceLock<Wiring> = OnceLock::new();
static LOADING: ForkSafe<Mutex<()>> = ForkSafe::new(Mutex::default);

/// How an entry was reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Loaded,
    Auto,
}

/// Body of the entry for `load_extension`.
///
/// # Safety
/// The arguments are those SQLite gives to an extension's entry point.
pub unsafe fn load(
    db: *mut Sqlite3,
    error: *mut *mut c_char,
    table: *const ApiRoutines,
    wiring: fn() -> Wiring,
) -> c_int {
    // SAFETY: caller.
    match caught(|| unsafe { start(table, wiring, Route::Loaded).map(|()| connect(db, Route::Loaded)) }) {
        Ok(Ok(())) => ffi::OK_LOAD_PERMANENTLY,
        Ok(Err(why)) => {
            // SAFETY: caller.
            unsafe { api::report_load_error(table, error, &why) };
            ffi::ERROR
        }
        Err(what) => {
            let text = format!("walrust could not start: internal error: {what}");
            // SAFETY: caller.
            unsafe { api::report_load_error(table, error, &text) };
            ffi::ERROR
        }
    }
}

/// Body of the entry a program gives to `sqlite3_auto_extension` itself, instead of loading a file.
///
/// # Safety
/// As [`load`].
pub unsafe fn auto_load(db: *mut Sqlite3, table: *const ApiRoutines, wiring: fn() -> Wiring) -> c_int {
    if !is_unseen() {
        guard((), || {
            // SAFETY: caller.
            match unsafe { start(table, wiring, Route::Auto) } {
                Ok(()) => connect(db, Route::Auto),
                Err(why) => log::error!("{why}"),
            }
        });
    }
    ffi::OK
}

/// Body of the entry that [`super::program`] puts on the list: as [`auto_load`], and says why walrust is not there.
///
/// # Safety
/// As [`load`].
#[cfg(feature = "install")]
pub(super) unsafe fn start_for_program(
    db: *mut Sqlite3,
    table: *const ApiRoutines,
    wiring: fn() -> Wiring,
) -> Result<(), String> {
    if is_unseen() {
        return Ok(());
    }
    // SAFETY: caller.
    caught(|| unsafe { start(table, wiring, Route::Auto).map(|()| connect(db, Route::Auto)) })
        .unwrap_or_else(|what| Err(format!("walrust could not start: internal error: {what}")))
}

/// Once per process, and harmless again.
///
/// # Safety
/// As [`load`].
unsafe fn start(table: *const ApiRoutines, wiring: fn() -> Wiring, route: Route) -> Result<(), String> {
    let _one_at_a_time = LOADING.lock();
    // SAFETY: caller.
    unsafe { api::adopt(table)? };
    if WIRING.get().is_none() {
        loader::pin(api::table().cast());
        to_sqlite::install();
        if cfg!(not(any(test, feature = "cli", feature = "install"))) {
            report_panics_to_log();
        }
    }
    vfs::register()?;
    if WIRING.get().is_none() {
        let w = wiring();
        w.hosts.iter().cloned().for_each(add_host);
        w.elsewhere.iter().cloned().for_each(elsewhere::set);
        let _ = WIRING.set(w);
        fork::register();
    }
    if route == Route::Auto {
        // The program has put our entry on the list itself.
        return Ok(());
    }
    // SAFETY: the table is set; "calling this routine with an entry point that is already on the list is a
    // harmless no-op".
    match unsafe { api::auto_extension(auto) } {
        ffi::OK => Ok(()),
        rc => Err(format!("walrust could not register for later connections (SQLite code {rc})")),
    }
}

/// End of every later `sqlite3_open`.
unsafe extern "C" fn auto(db: *mut Sqlite3, _: *mut *mut c_char, _: *const ApiRoutines) -> c_int {
    if !is_unseen() {
        guard((), || connect(db, Route::Auto));
    }
    ffi::OK
}

/// Functions on this connection, hooks on its files, word to the hosts. Trouble is logged: it must not fail
/// the app's open.
fn connect(db: *mut Sqlite3, route: Route) {
    // SAFETY: SQLite gave an open connection to the entry, for the time of the entry.
    let conn = unsafe { Connection::borrowed(db) };
    if let Some(w) = WIRING.get() {
        register_functions(&conn, w, route);
    }
    let names = match route {
        // Opening knows only main; a query for each open would be waste.
        Route::Auto => vec!["main".to_string()],
        Route::Loaded => conn.db_names().unwrap_or_else(|_| vec!["main".into()]),
    };
    for name in names {
        match conn.hook(&name) {
            Ok(Hooked::Now | Hooked::Already | Hooked::Declined | Hooked::NoFile | Hooked::LeftAlone) => {}
            Err(e) => log::warn!("walrust: cannot take in database {name}: {e}"),
        }
    }
    for host in hosts() {
        match route {
            Route::Loaded => host.connection_loaded(&conn),
            Route::Auto => host.connection_opened(&conn),
        }
    }
    forget_errors(&conn);
}

/// `sqlite3_open` takes the connection's last error for its own result after an auto-extension ran, so a
/// statement of ours that failed would fail the app's open.
fn forget_errors(conn: &Connection) {
    // An empty script "sets the error code of the connection to SQLITE_OK" and does nothing else.
    let _ = conn.exec("");
}

/// Registers functions and tables, again if they are there. A function in use by a running statement
/// (`SELECT load_extension(…)` run twice) cannot be registered again and need not be. (Looking a name up by
/// preparing a statement would leave an error in the host's log.)
fn register_functions(conn: &Connection, w: &'static Wiring, route: Route) {
    for f in &w.functions {
        // SAFETY: an open connection of the adopted library.
        match unsafe { function::register(conn.raw(), f) } {
            Ok(()) => {}
            Err(e) if e.is_retry() && route == Route::Loaded => return,
            Err(e) => log::warn!("walrust: {e}"),
        }
    }
    for t in &w.tables {
        // SAFETY: as above.
        if let Err(e) = unsafe { table::register(conn.raw(), t) } {
            log::warn!("walrust: {e}");
        }
    }
}
