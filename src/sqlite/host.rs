//! Who decides which files are observed: the hosts, and what they are told of a file.

use super::api;
use super::connection::Connection;
use super::observer::DbObserver;
use super::vocab::{Access, How};
use once_cell::race::OnceBox;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::Arc;

/// A main database file at the moment it is met.
pub struct FileInfo<'a> {
    /// Path as SQLite uses it: absolute, exact bytes.
    pub path: &'a Path,
    /// Read-write or read-only.
    pub access: Access,
    /// The way it was met.
    pub how: How,
    /// Name of the VFS that holds the file (`unix`, `unix-excl`, …), below ours.
    pub vfs: &'a str,
    /// The `sqlite3_filename`, for URI parameters.
    pub(super) filename: *const c_char,
}

impl FileInfo<'_> {
    /// The value of a URI parameter (`file:app.db?name=value`); `None` when absent or not UTF-8.
    pub fn uri_parameter(&self, name: &str) -> Option<String> {
        let key = CString::new(name).ok()?;
        // SAFETY: `filename` is the name given to xOpen for a main database or by sqlite3_db_filename, the
        // two kinds https://sqlite.org/c3ref/uri_boolean.html allows; the answer lives as long as it.
        unsafe {
            let value = api::uri_parameter(self.filename, key.as_ptr());
            if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok().map(str::to_string) }
        }
    }

    /// Names of the URI parameters, as far as SQLite can tell them (from 3.31 on) and they are UTF-8.
    pub fn uri_keys(&self) -> Vec<String> {
        if !api::at_least(3_031_000) {
            return Vec::new();
        }
        // SAFETY: as in `uri_parameter`; "sqlite3_uri_key(F,N) returns a pointer to the name (not the value) of the N-th query
        // parameter […] or NULL if N is […] greater than the number of query parameters minus 1".
        let key = |n| unsafe {
            let key = api::uri_key(self.filename, n);
            (!key.is_null()).then(|| CStr::from_ptr(key).to_str().ok().map(str::to_string))
        };
        (0..).map_while(key).flatten().collect()
    }
}

/// Decides who observes a main database file. Process-wide.
pub trait Host: Send + Sync {
    /// A main database file was opened, or found open. `Some`: its handle is hooked and observed from now
    /// on. `None`: it is left alone for good, unless [`Connection::hook`] asks again. A host that may want a
    /// file later should answer with an observer that is idle: that costs a nanosecond a call.
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>>;

    /// A main database file was found open that may not be hooked, since its VFS is not one of SQLite's own.
    fn left_alone(&self, file: &FileInfo<'_>) {
        let _ = file;
    }

    /// End of `sqlite3_open()`, and the functions are registered. May run SQL.
    fn connection_opened(&self, conn: &Connection) {
        let _ = conn;
    }

    /// The extension was loaded on this connection, its functions are registered and its database files
    /// are hooked. May run SQL (which makes SQLite map the wal-index, so that it can be read).
    fn connection_loaded(&self, conn: &Connection) {
        let _ = conn;
    }
}

/// A host, and those added after it: a list that is only ever added to, and read without a lock, since a forked child goes on
/// with its parent's.
struct Listed {
    host: Arc<dyn Host>,
    next: OnceBox<Listed>,
}

static HOSTS: OnceBox<Listed> = OnceBox::new();

/// Adds a host, behind those already there. The first that wants a file has it. A process has one; tests
/// add more.
pub fn add_host(host: Arc<dyn Host>) {
    let mut new = Box::new(Listed { host, next: OnceBox::new() });
    let mut end = &HOSTS;
    while let Err(back) = end.set(new) {
        new = back;
        match end.get() {
            Some(there) => end = &there.next,
            None => return,
        }
    }
}

/// Asks the hosts in turn.
pub(super) fn observer_for(file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
    hosts().find_map(|h| h.opened(file))
}

/// The hosts, in the order in which they were added.
pub(super) fn hosts() -> impl Iterator<Item = &'static Arc<dyn Host>> {
    std::iter::successors(HOSTS.get(), |h| h.next.get()).map(|h| &h.host)
}
