//! SQL connections of our own: short-lived, opened through the lower VFS, unseen by the host's observers (its `xOpen` is ours,
//! and lets them pass; a WAL is hooked for a hooked database alone), without our functions.

use super::connection::Connection;
use super::ffi;
use super::fork::OwnHandle;
use super::{api, error, lower, unseen};
use crate::base::{Error, Kind, Result};
use std::ffi::CString;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whose file a connection of ours opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SqlMode {
    /// A file of ours that nobody else uses (just restored): closed as SQLite does, with a checkpoint.
    Owner,
    /// A file the app uses: this connection never checkpoints, not even as the last one to close.
    Guest,
}

/// Which check of a database's structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// `PRAGMA quick_check`
    Quick,
    /// `PRAGMA integrity_check`
    Full,
}

/// An SQL connection of our own. One at a time in a thread. A fork interrupts its statement and waits until it is closed: what runs
/// for long runs in [`super::despite_forks`] (I-FORK-1).
pub struct SqlConnection {
    conn: Connection,
    own: OwnHandle,
}

// SAFETY: opened with SQLITE_OPEN_FULLMUTEX, so any thread may use it; not shared between two (no Sync).
unsafe impl Send for SqlConnection {}

impl SqlConnection {
    /// Opens an existing database for reading and writing.
    pub fn open(path: &Path, mode: SqlMode) -> Result<SqlConnection> {
        let lower = lower::lower();
        if lower.is_null() {
            return Err(Error::new(
                Kind::Bug,
                "the extension is not loaded, there is no SQLite to open with",
            ));
        }
        let name = c_path(path)?;
        let own = OwnHandle::new(path);
        let mut db = std::ptr::null_mut();
        // SAFETY: the lower VFS is registered and lives for good; `db` is closed in any case
        // ("whether or not an error occurs … should be passed to sqlite3_close()").
        let rc = unseen::unseen(|| unsafe {
            // (The app's shared cache, if it has one on, is not ours to be in.)
            let flags = ffi::OPEN_READWRITE | ffi::OPEN_FULLMUTEX | ffi::OPEN_PRIVATECACHE;
            api::open_v2(name.as_ptr(), &raw mut db, flags, (*lower).name)
        });
        if db.is_null() {
            return Err(error::from_code(ffi::NOMEM, &format!("cannot open {}", path.display())));
        }
        // SAFETY: a handle to close, at the least.
        let own = SqlConnection { conn: unsafe { Connection::borrowed(db) }, own };
        error::check(rc, || format!("cannot open {}", path.display()))?;
        // SAFETY: an open connection, until this value's drop, which spares it before.
        unsafe {
            own.own.interrupt(db);
            api::busy_timeout(db, 5000);
            if mode == SqlMode::Guest {
                api::wal_autocheckpoint(db, 0);
                api::db_config_on(db, ffi::DBCONFIG_NO_CKPT_ON_CLOSE);
            }
        }
        Ok(own)
    }

    /// Turns WAL mode on. Errors when SQLite would not.
    pub fn turn_wal_on(&self) -> Result<()> {
        self.conn.wal_by_statement()
    }

    /// From now on, a lock that somebody else holds is an error ([`Kind::Retry`]) at once.
    pub fn give_up_at_once(&self) {
        // SAFETY: an open connection.
        unsafe { api::busy_timeout(self.conn.raw(), 0) };
    }

    /// Checks the structure of the database. Errors with [`Kind::Corrupt`] and SQLite's first findings.
    pub fn check(&self, check: Check) -> Result<()> {
        let sql = match check {
            Check::Quick => "PRAGMA quick_check(3)",
            Check::Full => "PRAGMA integrity_check(3)",
        };
        let rows = self.conn.query(sql)?;
        let lines: Vec<&str> = rows.iter().filter_map(|r| r.first()?.as_text()).collect();
        if lines == ["ok"] { Ok(()) } else { Err(Error::corrupt(lines.join("; ").replace('\n', " "))) }
    }

    /// `PRAGMA integrity_check`
    pub fn integrity_check(&self) -> Result<()> {
        self.check(Check::Full)
    }

    /// `PRAGMA quick_check`
    pub fn quick_check(&self) -> Result<()> {
        self.check(Check::Quick)
    }
}

impl Deref for SqlConnection {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.conn
    }
}

impl Drop for SqlConnection {
    fn drop(&mut self) {
        self.own.spare();
        // SAFETY: open, and not used after; every statement was finalized.
        unsafe { api::close_v2(self.conn.raw()) };
    }
}

/// A path as SQLite takes it; one that looks like a URI or is empty is made plain.
pub(super) fn c_path(path: &Path) -> Result<CString> {
    let bytes = path.as_os_str().as_bytes();
    let plain = if bytes.starts_with(b"/") { bytes.to_vec() } else { [b"./", bytes].concat() };
    CString::new(plain).map_err(|_| Error::config(format!("the path {} holds a NUL", path.display())))
}
