//! walrust: a SQLite loadable extension that streams every commit to a replica.
//!
//! The map of rooms is in ARCHITECTURE.md; imports run one way, downward in the list below.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod address;
pub mod base;
pub mod capture;
pub mod config;
pub mod ltx;
pub mod metrics;
pub mod notify;
pub mod reader;
pub mod replica;
pub mod session;
pub mod ship;
pub mod spool;
pub mod sql;
#[allow(unsafe_code)]
pub mod sqlite;
pub mod store;
pub mod wal;

/// What SQLite is given when the extension starts: functions, tables, and who observes files.
fn wiring() -> sqlite::Wiring {
    if let Err(e) = sqlite::on_fork(session::fork_hooks()) {
        log::warn!("walrust: {e}");
    }
    session::keep_locks();
    sqlite::on_exit(session::at_exit);
    let which = config::Config::functions();
    let (functions, tables) = sql::chosen(which);
    #[cfg_attr(not(feature = "crash-points"), allow(unused_mut))]
    let mut wiring = sqlite::Wiring {
        functions,
        tables,
        hosts: vec![std::sync::Arc::new(session::EngineHost)],
        elsewhere: match which {
            config::Functions::All => {
                let vicinity = std::sync::Arc::new(session::Neighbourhood);
                Some(std::sync::Arc::new(reader::Replicas { vicinity }))
            }
            // A stranger's ATTACH must not reach the network, either.
            config::Functions::Read => None,
        },
    };
    #[cfg(feature = "crash-points")]
    sqlite::debug::add_to(&mut wiring);
    wiring
}

/// Puts walrust into the SQLite that this program links, by whatever crate: every connection that is opened from now on has its
/// functions, and streams what `walrust.toml`, `WALRUST_REPLICA` or a call of `walrust_watch()` names. Once is enough, before the
/// program opens its databases; again does no harm.
///
/// ```toml
/// walrust = { git = "…", default-features = false, features = ["install"] }
/// ```
///
/// Errors: `Config`, in one line, where this SQLite cannot have it: it is too old, or was built without what walrust needs, or another
/// SQLite of this process has walrust.
#[cfg(feature = "install")]
pub fn install() -> base::Result<()> {
    sqlite::program::install(wiring)
}

/// The entry points SQLite calls (<https://sqlite.org/loadext.html#programming_loadable_extensions>).
#[cfg(feature = "entry-points")]
#[allow(unsafe_code)]
mod entry {
    use crate::sqlite::{ApiRoutines, Sqlite3, auto_load, load};
    use std::ffi::{c_char, c_int};

    /// Entry of `.load walrust` and `load_extension('walrust')`.
    ///
    /// # Safety
    /// To be called by SQLite only.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn sqlite3_walrust_init(
        db: *mut Sqlite3,
        error: *mut *mut c_char,
        api: *const ApiRoutines,
    ) -> c_int {
        // SAFETY: SQLite's arguments, handed on.
        unsafe { load(db, error, api, super::wiring) }
    }

    /// The entry SQLite tries when the file is not named walrust.
    ///
    /// # Safety
    /// To be called by SQLite only.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn sqlite3_extension_init(
        db: *mut Sqlite3,
        error: *mut *mut c_char,
        api: *const ApiRoutines,
    ) -> c_int {
        // SAFETY: SQLite's arguments, handed on.
        unsafe { load(db, error, api, super::wiring) }
    }

    /// Entry for programs that cannot load extensions: to be given to `sqlite3_auto_extension()`.
    ///
    /// # Safety
    /// To be called by SQLite only.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn sqlite3_walrust_auto_init(
        db: *mut Sqlite3,
        _: *mut *mut c_char,
        api: *const ApiRoutines,
    ) -> c_int {
        // SAFETY: SQLite's arguments, handed on.
        unsafe { auto_load(db, api, super::wiring) }
    }
}
