//! The main database of a connection written over with another one, as one transaction of that connection: SQLite's own backup
//! (<https://sqlite.org/c3ref/backup_finish.html>), so that capture, readers, other processes and a crash meet an ordinary commit.
//!
//! * I-OVER-1: nothing is written unless all of it can be: not inside a transaction, not beside a statement of the connection that
//!   reads the database, not to another page size. What fails later is rolled back by SQLite.
//!
//! The source is opened by its name through our VFS ([`super::elsewhere`]): no descriptor, so no lock of the program's is at stake.
//!
//! Nothing of it is a statement of the program's connection, so nothing shows in the program's trace.
//!
//! Refused: a second connection for the writing (a handle of ours that would be open across a fork for as long as all of it takes);
//! to write the pages that differ alone (SQLite has no door for them but its own pager, and a writer of WAL frames of our own is
//! what a commit must not depend on).

use super::connection::Connection;
use super::unseen::unseen;
use super::value::Value;
use super::{api, error, ffi, lower};
use crate::base::{Error, Kind, PageSize, Result};
use std::ffi::{CString, c_int};

/// Pages that are written between two looks at whether to go on.
const STEP: c_int = 1024;

/// The source, closed when dropped.
struct Source(Connection);

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: open, and not used after; every statement was finalized.
        unsafe { api::close_v2(self.0.raw()) };
    }
}

/// A backup under way, ended when dropped.
struct Backup(*mut ffi::Backup);

impl Backup {
    fn step(&self, pages: c_int) -> c_int {
        // SAFETY: made by `backup_init`, and not ended.
        unsafe { api::backup_step(self.0, pages) }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // SAFETY: as above; what is not complete is rolled back.
        unsafe { api::backup_finish(self.0) };
    }
}

impl Connection {
    /// Writes the database `name`, one of [`super::Elsewhere`]'s, over `main`, whose pages have `page_size` bytes. `locked` is asked when
    /// nobody else can write any more and before anything is changed.
    ///
    /// Errors: `Config` where it cannot be done as one transaction; `Retry` where somebody else writes; with that of `locked`; with what
    /// SQLite says. Then nothing has changed.
    pub fn overwrite<T>(
        &self,
        name: &str,
        page_size: PageSize,
        locked: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.is_query_only() {
            return Err(Error::config("this connection has query_only on; PRAGMA query_only=0 first"));
        }
        if !self.autocommit() {
            return Err(Error::config("it is one transaction of its own; COMMIT or ROLLBACK first"));
        }
        let source = Source::open(name)?;
        let (is, was) = (i64::from(page_size.get()), source.0.query_value("PRAGMA main.page_size")?);
        if let Value::Integer(was) = was
            && was != is
        {
            return Err(Error::config(format!(
                "the page size is {is} now and was {was} then, which one transaction cannot change; restore to another file"
            )));
        }
        // SAFETY: two open connections, of which this thread may use each.
        let made =
            unsafe { api::backup_init(self.raw(), c"main".as_ptr(), source.0.raw(), c"main".as_ptr()) };
        if made.is_null() {
            let e = self.error(ffi::ERROR, "the writing");
            let what = "a statement of this connection reads the database; end it first (finish, reset or close its cursor)";
            return Err(Error::config(what).because(e));
        }
        let backup = Backup(made);
        // Locks, and copies nothing yet.
        self.stepped(backup.step(0))?;
        let told = locked()?;
        loop {
            match backup.step(STEP) {
                ffi::DONE => break,
                rc => self.stepped(rc)?,
            }
        }
        // SAFETY: made by `backup_init`; it is ended here and nowhere else.
        let rc = unsafe { api::backup_finish(backup.0) };
        std::mem::forget(backup);
        error::check(rc, || "cannot write the database over".into())?;
        Ok(told)
    }

    fn stepped(&self, rc: c_int) -> Result<()> {
        match rc & 0xff {
            ffi::OK => Ok(()),
            ffi::BUSY | ffi::LOCKED => {
                Err(Error::new(Kind::Retry, "somebody else writes to the database; try again"))
            }
            _ => {
                let e = error::from_code(rc, "cannot write the database over");
                Err(match super::take_last_error() {
                    Some(why) => e.because(why),
                    None => e,
                })
            }
        }
    }
}

impl Source {
    fn open(name: &str) -> Result<Source> {
        let c_name = CString::new(name).map_err(|_| Error::config("the name holds a NUL"))?;
        let mut db = std::ptr::null_mut();
        // SAFETY: our VFS is registered; `db` is closed in any case, by the drop of what it becomes.
        let rc = unseen(|| unsafe {
            let flags = ffi::OPEN_READONLY | ffi::OPEN_FULLMUTEX | ffi::OPEN_PRIVATECACHE;
            api::open_v2(c_name.as_ptr(), &raw mut db, flags, lower::NAME.as_ptr())
        });
        if db.is_null() {
            return Err(error::from_code(ffi::NOMEM, "cannot open the past"));
        }
        // SAFETY: a handle to close, at the least.
        let source = Source(unsafe { Connection::borrowed(db) });
        let opened = error::check(rc, || "cannot open the past".into());
        opened.map_err(|e| match super::take_last_error() {
            Some(why) => e.because(why),
            None => e,
        })?;
        Ok(source)
    }
}
