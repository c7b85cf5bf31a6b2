//! An app's connection, borrowed for the time of a call.

use super::error;
use super::ffi::{self, File, Sqlite3, Vfs};
use super::value::Value;
use super::{api, lower};
use crate::base::{Error, Kind, Result};
use std::ffi::{CStr, CString, c_int, c_void};
use std::path::PathBuf;

/// A connection, valid only during the call it was handed to, on that thread.
pub struct Connection {
    db: *mut Sqlite3,
}

impl Connection {
    /// # Safety
    /// `db` is open for as long as the value lives, and this thread may use it.
    pub(super) unsafe fn borrowed(db: *mut Sqlite3) -> Connection {
        Connection { db }
    }

    pub(super) fn raw(&self) -> *mut Sqlite3 {
        self.db
    }

    /// Version of the SQLite library: `3.40.1`.
    pub fn libversion(&self) -> &'static str {
        api::version()
    }

    /// Runs statements, ignoring rows.
    pub fn exec(&self, sql: &str) -> Result<()> {
        let text = c_text(sql)?;
        // SAFETY: the connection is open; no callback.
        let rc =
            unsafe { api::exec(self.db, text.as_ptr(), None, std::ptr::null_mut(), std::ptr::null_mut()) };
        if rc == ffi::OK { Ok(()) } else { Err(self.error(rc, sql)) }
    }

    /// First column of the first row; NULL when there is no row.
    pub fn query_value(&self, sql: &str) -> Result<Value> {
        let mut first = Value::Null;
        self.each_row(sql, |row| {
            if let Some(v) = row.into_iter().next() {
                first = v;
            }
            Ok(More::No)
        })?;
        Ok(first)
    }

    /// All rows of one statement.
    pub fn query(&self, sql: &str) -> Result<Vec<Vec<Value>>> {
        let mut rows = Vec::new();
        self.each_row(sql, |row| {
            rows.push(row);
            Ok(More::Yes)
        })?;
        Ok(rows)
    }

    fn each_row(&self, sql: &str, mut f: impl FnMut(Vec<Value>) -> Result<More>) -> Result<()> {
        let text = c_text(sql)?;
        let mut stmt = std::ptr::null_mut();
        // SAFETY: the connection is open; the statement is finalized below.
        unsafe {
            let rc = api::prepare_v2(self.db, text.as_ptr(), -1, &raw mut stmt, std::ptr::null_mut());
            if rc != ffi::OK {
                return Err(self.error(rc, sql));
            }
        }
        let result = loop {
            // SAFETY: a live statement; step and columns as SQLite demands.
            match unsafe { api::step(stmt) } {
                ffi::ROW => {
                    let columns = unsafe { api::column_count(stmt) };
                    let row: Result<Vec<Value>> =
                        (0..columns).map(|c| unsafe { Value::from_column(stmt, c) }).collect();
                    match row.and_then(&mut f) {
                        Ok(More::Yes) => {}
                        Ok(More::No) => break Ok(()),
                        Err(e) => break Err(e),
                    }
                }
                ffi::DONE => break Ok(()),
                rc => break Err(self.error(rc, sql)),
            }
        };
        // SAFETY: finalized once.
        unsafe { api::finalize(stmt) };
        result
    }

    pub(super) fn error(&self, rc: c_int, sql: &str) -> Error {
        // SAFETY: the connection is open; the text is copied at once.
        let (code, text) = unsafe {
            (
                api::extended_errcode(self.db),
                CStr::from_ptr(api::errmsg(self.db)).to_string_lossy().into_owned(),
            )
        };
        let code = if code == ffi::OK { rc } else { code };
        let short: String = sql.chars().take(80).collect();
        Error::new(error::kind_of(code), format!("{text} (SQLite code {code}, in {short})"))
    }

    /// Whether the connection is outside of `BEGIN … COMMIT`.
    pub fn autocommit(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { api::get_autocommit(self.db) != 0 }
    }

    /// Names of the attached databases: `main`, perhaps `temp`, then the `ATTACH`ed.
    pub fn db_names(&self) -> Result<Vec<String>> {
        if api::at_least(3_039_000) {
            // SAFETY: the connection is open; the text is copied at once.
            let name = |n| unsafe {
                let name = api::db_name(self.db, n);
                (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
            };
            return Ok((0..).map_while(name).collect());
        }
        let rows = self.query("PRAGMA database_list")?;
        Ok(rows.iter().filter_map(|r| r.get(1)?.as_text().map(str::to_string)).collect())
    }

    /// File of database `name`; `None` for in-memory and temporary ones, and for unknown names.
    pub fn filename(&self, name: &str) -> Option<PathBuf> {
        let name = CString::new(name).ok()?;
        // SAFETY: the connection is open; the text is copied.
        unsafe {
            let p = api::db_filename(self.db, name.as_ptr());
            if p.is_null() || *p == 0 { None } else { Some(lower::path_of(p).to_path_buf()) }
        }
    }

    /// File of `main`.
    pub fn main_db_path(&self) -> Option<PathBuf> {
        self.filename("main")
    }

    /// Turns WAL mode on for `main` by a statement. Errors when SQLite would not.
    pub(super) fn wal_by_statement(&self) -> Result<()> {
        match self.query_value("PRAGMA main.journal_mode=WAL")? {
            Value::Text(mode) if mode.eq_ignore_ascii_case("wal") => {
                // SQLite opens WAL and wal-index with the next read only; whoever waits for a snapshot waits for them.
                let _ = self.query_value("PRAGMA main.schema_version");
                Ok(())
            }
            other => Err(Error::new(
                Kind::Sqlite,
                format!(
                    "cannot turn WAL mode on: journal mode stays {}",
                    other.as_text().unwrap_or("unknown")
                ),
            )),
        }
    }

    /// Whether the main database was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: an open connection (this type's promise), and a name that ends in 0.
        unsafe { api::db_readonly(self.db, c"main".as_ptr()) == 1 }
    }

    /// Whether the file at the path of `main` is another than the one this connection has open, or there is none.
    pub fn has_moved(&self) -> bool {
        let mut moved: c_int = 0;
        // SAFETY: the connection is open; the control stores one int.
        let rc = unsafe {
            let arg = (&raw mut moved).cast::<c_void>();
            api::file_control(self.db, c"main".as_ptr(), ffi::FCNTL_HAS_MOVED, arg)
        };
        rc == ffi::OK && moved != 0
    }

    /// The open file of database `name`, if it has one.
    pub(super) fn file(&self, name: &str) -> Option<*mut File> {
        let file = self.pointer::<File>(name, ffi::FCNTL_FILE_POINTER)?;
        // SAFETY: the pager's sqlite3_file; its methods are null when it has no file open.
        if unsafe { (*file).methods.is_null() } { None } else { Some(file) }
    }

    /// Name of the VFS that holds database `name`, below ours.
    pub(super) fn vfs_of(&self, name: &str) -> String {
        match self.pointer::<Vfs>(name, ffi::FCNTL_VFS_POINTER) {
            // SAFETY: a registered VFS.
            Some(v) => match unsafe { lower::vfs_name(v) } {
                n if n.as_bytes() == lower::NAME.to_bytes() => lower::lower_vfs_name(),
                n => n,
            },
            None => String::new(),
        }
    }

    pub(super) fn pointer<T>(&self, name: &str, op: c_int) -> Option<*mut T> {
        let name = CString::new(name).ok()?;
        let mut p: *mut T = std::ptr::null_mut();
        // SAFETY: the three *_POINTER controls store one pointer (c3ref/c_fcntl_begin_atomic_write.html).
        let rc = unsafe { api::file_control(self.db, name.as_ptr(), op, (&raw mut p).cast::<c_void>()) };
        if rc == ffi::OK && !p.is_null() { Some(p) } else { None }
    }
}

enum More {
    Yes,
    No,
}

/// `name` as an SQL identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text for SQLite. Errors when it holds a NUL.
pub(super) fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::config("the text holds a NUL character"))
}
