//! Hot attach: files that a connection has open already are taken in.

use super::connection::{Connection, c_text, quote};
use super::ffi::{self, File, Vfs};
use super::host::{FileInfo, hosts, observer_for};
use super::judge::{self, Judgement};
use super::observer::{DbObserver, WalHook};
use super::vocab::{Access, How};
use super::{api, elsewhere, hook, vfs, wal_hook, wal_join};
use crate::base::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// The observer of the handle that this connection has on database `name`.
    pub fn observer_of(&self, name: &str) -> Option<Arc<dyn DbObserver>> {
        let file = self.file(name)?;
        // SAFETY: `file` is this connection's, which the caller of us holds.
        unsafe { hook::observer_of(file) }
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
        // SAFETY: `file` is this connection's.
        if unsafe { elsewhere::is_one(file) } {
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
                access: match api::db_readonly(self.raw(), c_name.as_ptr()) {
                    0 => Access::ReadWrite,
                    _ => Access::ReadOnly,
                },
                how: How::HotAttach,
                vfs: &vfs_name,
                filename: api::db_filename(self.raw(), c_name.as_ptr()),
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
        // A read opens the WAL if there is one, whatever the file's header says.
        let is_read = name == "main" && self.touch().is_ok();
        if !(is_read && self.is_mapped(name)) {
            if is_read && self.is_surely_no_wal(name) {
                return Ok(());
            }
            let mode = self.query_value(&format!("PRAGMA {}.journal_mode", quote(name)))?;
            if mode.as_text() != Some("wal") {
                return Ok(());
            }
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
}
