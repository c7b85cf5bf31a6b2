//! An app's connection, borrowed for the time of a call.

use super::error;
use super::ffi::{self, File, Sqlite3, Vfs};
use super::host::{Access, DbObserver, FileInfo, How, WalHook, hosts, observer_for};
use super::judge::{self, Judgement};
use super::value::Value;
use super::{api, hook, vfs, wal_hook, wal_join};
use crate::base::{Error, Kind, Result};
use std::ffi::{CStr, CString, c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;

/// A connection, valid only during the call it was handed to, on that thread.
pub struct Connection {
    db: *mut Sqlite3,
}

/// What became of [`Connection::hook`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hooked {
    /// The handle is hooked since now.
    Now,
    /// It was hooked before.
    Already,
    /// The host does not want it.
    Declined,
    /// In-memory or temporary: there is no file.
    NoFile,
    /// It is not SQLite's own VFS that holds the file ([`Connection::check_vfs`]).
    LeftAlone,
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

    /// A number that tells open connections apart; may come again after a close.
    pub fn handle_id(&self) -> usize {
        self.db as usize
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

    fn error(&self, rc: c_int, sql: &str) -> Error {
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
        let rows = self.query("PRAGMA database_list")?;
        Ok(rows.iter().filter_map(|r| r.get(1)?.as_text().map(str::to_string)).collect())
    }

    /// File of database `name`; `None` for in-memory and temporary ones, and for unknown names.
    pub fn filename(&self, name: &str) -> Option<PathBuf> {
        let name = CString::new(name).ok()?;
        // SAFETY: the connection is open; the text is copied.
        unsafe {
            let p = api::db_filename(self.db, name.as_ptr());
            if p.is_null() || *p == 0 { None } else { Some(vfs::path_of(p).to_path_buf()) }
        }
    }

    /// File of `main`.
    pub fn main_db_path(&self) -> Option<PathBuf> {
        self.filename("main")
    }

    /// Turns WAL mode on for `main`. Errors when SQLite would not.
    pub fn set_wal_mode(&self) -> Result<()> {
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

    /// The observer of the handle that this connection has on database `name`.
    pub fn observer_of(&self, name: &str) -> Option<Arc<dyn DbObserver>> {
        let file = self.file(name)?;
        // SAFETY: `file` is this connection's, which the caller of us holds.
        unsafe { hook::observer_of(file) }
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

    /// Takes in the handle of database `name`, and its WAL's if the observer asks for that (which may read
    /// from the database). Harmless to repeat.
    pub fn hook(&self, name: &str) -> Result<Hooked> {
        let (Some(file), Some(path)) = (self.file(name), self.filename(name)) else {
            return Ok(Hooked::NoFile);
        };
        let done = self.hook_db(name, file, &path)?;
        if let Hooked::Now | Hooked::Already = done {
            self.hook_wal(name, path)?;
        }
        Ok(done)
    }

    /// Whether the file of database `name` may be hooked, and so watched. Errors with [`Kind::Config`] when its VFS, or its table
    /// of methods, is not SQLite's own. One without a file passes.
    pub fn check_vfs(&self, name: &str) -> Result<()> {
        let (Some(file), Some(path)) = (self.file(name), self.filename(name)) else { return Ok(()) };
        if self.is_in_memory(name) || self.judge(name, file) == Judgement::Hook {
            return Ok(());
        }
        Err(Error::config(judge::left_alone(&path.display().to_string(), &self.vfs_of(name))))
    }

    /// Whether database `name` is one of SQLite's VFS `memdb`: a file that is none.
    fn is_in_memory(&self, name: &str) -> bool {
        self.pointer::<Vfs>(name, ffi::FCNTL_VFS_POINTER).is_some_and(|v| judge::is_memdb(v))
    }

    /// I-VFS-3 for a file that was found open.
    fn judge(&self, name: &str, file: *mut File) -> Judgement {
        let vfs = self.pointer::<Vfs>(name, ffi::FCNTL_VFS_POINTER).unwrap_or(std::ptr::null_mut());
        // SAFETY: `file` is this connection's, which the caller of us holds.
        if unsafe { hook::is_hooked(file) } {
            return Judgement::Hook;
        }
        // SAFETY: as above.
        judge::judge(judge::owner_of(vfs), judge::table_of(unsafe { (*file).methods }))
    }

    fn hook_db(&self, name: &str, file: *mut File, path: &std::path::Path) -> Result<Hooked> {
        let vfs_name = self.vfs_of(name);
        if self.is_in_memory(name) {
            return Ok(Hooked::NoFile);
        }
        let c_name = c_text(name)?;
        // SAFETY: `file` is this connection's; sqlite3_db_filename gives a sqlite3_filename for `name`.
        unsafe {
            if hook::is_hooked(file) {
                return Ok(Hooked::Already);
            }
            let info = FileInfo {
                path,
                access: match api::db_readonly(self.db, c_name.as_ptr()) {
                    0 => Access::ReadWrite,
                    _ => Access::ReadOnly,
                },
                how: How::HotAttach,
                vfs: &vfs_name,
                filename: api::db_filename(self.db, c_name.as_ptr()),
            };
            if self.judge(name, file) != Judgement::Hook {
                hosts().for_each(|h| h.left_alone(&info));
                return Ok(Hooked::LeftAlone);
            }
            let Some(observer) = observer_for(&info) else { return Ok(Hooked::Declined) };
            hook::install(file, &info, observer);
        }
        Ok(Hooked::Now)
    }

    fn hook_wal(&self, name: &str, db_path: PathBuf) -> Result<()> {
        let wanted = self.observer_of(name).map_or(WalHook::None, |o| o.wal_hook());
        if matches!(wanted, WalHook::None) {
            return Ok(());
        }
        // Loads the schema, which opens the WAL if there is one.
        let mode = self.query_value(&format!("PRAGMA {}.journal_mode", quote(name)))?;
        if mode.as_text() != Some("wal") {
            return Ok(());
        }
        if let Some(file) = self.pointer::<File>(name, ffi::FCNTL_JOURNAL_POINTER) {
            // SAFETY: in WAL mode "JOURNAL_POINTER" is the WAL file of this connection; not yet opened, its
            // methods are null.
            unsafe {
                let is_open = !(*file).methods.is_null();
                if is_open && matches!(wanted, WalHook::Observe(_)) {
                    wal_join::remove(file);
                }
                if is_open
                    && !wal_hook::is_hooked(file)
                    && !wal_join::is_joined(file)
                    && self.judge(name, file) == Judgement::Hook
                {
                    let mut wal_path = db_path.clone().into_os_string();
                    wal_path.push("-wal");
                    vfs::hook_wal(file, db_path, wal_path.into(), wanted);
                }
            }
        }
        Ok(())
    }

    /// The open file of database `name`, if it has one.
    fn file(&self, name: &str) -> Option<*mut File> {
        let file = self.pointer::<File>(name, ffi::FCNTL_FILE_POINTER)?;
        // SAFETY: the pager's sqlite3_file; its methods are null when it has no file open.
        if unsafe { (*file).methods.is_null() } { None } else { Some(file) }
    }

    /// Name of the VFS that holds database `name`, below ours.
    fn vfs_of(&self, name: &str) -> String {
        match self.pointer::<Vfs>(name, ffi::FCNTL_VFS_POINTER) {
            // SAFETY: a registered VFS.
            Some(v) => match unsafe { vfs::vfs_name(v) } {
                n if n.as_bytes() == vfs::NAME.to_bytes() => vfs::lower_vfs_name(),
                n => n,
            },
            None => String::new(),
        }
    }

    fn pointer<T>(&self, name: &str, op: c_int) -> Option<*mut T> {
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
