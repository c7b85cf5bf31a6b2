//! SQLite result codes as our error.

use super::ffi;
use crate::base::{Error, Kind, Result};
use std::ffi::c_int;

/// The caller's next move for a result code (<https://sqlite.org/rescode.html>).
pub(super) fn kind_of(rc: c_int) -> Kind {
    match rc & 0xff {
        ffi::BUSY | ffi::LOCKED => Kind::Retry,
        ffi::CORRUPT | ffi::NOTADB => Kind::Corrupt,
        ffi::IOERR | ffi::FULL | ffi::CANTOPEN | ffi::READONLY => Kind::Io,
        _ => Kind::Sqlite,
    }
}

/// `what` and what SQLite said.
pub(super) fn from_code(rc: c_int, what: &str) -> Error {
    let said = match rc & 0xff {
        ffi::BUSY => "database is locked",
        ffi::LOCKED => "table is locked",
        ffi::NOMEM => "out of memory",
        ffi::READONLY => "read-only",
        ffi::IOERR => "disk I/O error",
        ffi::CORRUPT => "database disk image is malformed",
        ffi::FULL => "disk is full",
        ffi::CANTOPEN => "unable to open database file",
        ffi::NOTADB => "file is not a database",
        _ => "error",
    };
    Error::new(kind_of(rc), format!("{what}: {said} (SQLite code {rc})"))
}

/// `Ok` for `SQLITE_OK`.
pub(super) fn check(rc: c_int, what: impl FnOnce() -> String) -> Result<()> {
    if rc == ffi::OK { Ok(()) } else { Err(from_code(rc, &what())) }
}
