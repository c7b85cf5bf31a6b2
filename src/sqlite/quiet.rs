//! What is done on the program's connection without a statement: programs trace theirs, and ours are none of them.
//!
//! SQLite calls a trace at the start of each statement that runs, and does not tell who asked for a trace, so it cannot be taken away for
//! a moment. What reads (`sqlite3_blob_open` makes a program without a text), what is only compiled (EXPLAIN), and what is run on a
//! connection of our own is not shown. Where neither will do, a statement is run after all.

use super::connection::Connection;
use super::methods::Methods;
use super::own::{SqlConnection, SqlMode};
use super::value::Value;
use super::{api, ffi, hook};
use crate::base::{Error, Result};
use std::ffi::{c_int, c_void};

const SCHEMA: &str = "SELECT count(*) FROM main.sqlite_master";

/// What a database file is, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Empty,
    Wal,
    Rollback,
    /// Encrypted, no database, or not to be read.
    Opaque,
}

impl Connection {
    /// Reads from `main`, so that its header is known and its wal-index mapped. The program's trace does not show it.
    pub fn touch(&self) -> Result<()> {
        // SAFETY: the connection is open (this type's promise).
        match unsafe { api::read_schema(self.raw(), c"main") } {
            Some(ffi::OK) => Ok(()),
            Some(ffi::ERROR) => match self.error(ffi::ERROR, "reading the schema") {
                // It was looked for, in a database without a table.
                e if e.to_string().contains("no such row") => Ok(()),
                // (What is wrong with the file, this call does not tell by its code.)
                _ => self.query_value(SCHEMA).map(drop),
            },
            Some(rc) => Err(self.error(rc, "reading the schema")),
            None => self.query_value(SCHEMA).map(drop),
        }
    }

    /// `normal` or `exclusive`: the locking mode of `main`.
    pub fn locking_mode(&self) -> Result<String> {
        if let Some(mode) = self.explained("PRAGMA main.locking_mode") {
            return Ok(mode);
        }
        let mode = self.query_value("PRAGMA main.locking_mode")?;
        Ok(mode.as_text().unwrap_or_default().to_string())
    }

    /// Whether the program forbids this connection to write. Looks quietly, and says no where that cannot be told so.
    pub(super) fn is_query_only(&self) -> bool {
        self.explained("PRAGMA query_only").is_some_and(|on| on != "0")
    }

    /// The answer to a PRAGMA that SQLite finds as it compiles it: it stands in the program, which need not run.
    fn explained(&self, pragma: &str) -> Option<String> {
        let rows = self.query(&format!("EXPLAIN {pragma}")).ok()?;
        let holds = |r: &&Vec<Value>| matches!(r.get(1).and_then(Value::as_text), Some("String8" | "Int64"));
        Some(rows.iter().find(holds)?.get(5)?.as_text()?.to_string())
    }

    /// Whether `main` is in WAL mode.
    pub fn is_wal(&self) -> Result<bool> {
        match self.form("main") {
            _ if self.is_mapped("main") => Ok(true),
            Form::Wal => Ok(true),
            Form::Empty | Form::Rollback => Ok(false),
            Form::Opaque => {
                let mode = self.query_value("PRAGMA main.journal_mode")?;
                Ok(mode.as_text().is_some_and(|m| m.eq_ignore_ascii_case("wal")))
            }
        }
    }

    /// What the file of database `name` is, by its first bytes.
    fn form(&self, name: &str) -> Form {
        const MAGIC: &[u8; 16] = b"SQLite format 3\0";
        let Some(file) = self.file(name) else { return Form::Opaque };
        let mut head = [0u8; 20];
        // SAFETY: this connection's open file; its methods write at most as many bytes as they are told, and one size.
        let (size, rc) = unsafe {
            let methods = Methods::of(file);
            let mut size = 0i64;
            let sized = methods.x_file_size().map_or(ffi::IOERR, |f| f(file, &raw mut size));
            let read = methods.x_read().map_or(ffi::IOERR, |f| f(file, head.as_mut_ptr().cast(), 20, 0));
            (if sized == ffi::OK { Some(size) } else { None }, read)
        };
        match (size, rc) {
            (Some(0), _) => Form::Empty,
            (Some(_), ffi::OK) if head.starts_with(MAGIC) && head.get(18..) == Some(&[2, 2]) => Form::Wal,
            (Some(_), ffi::OK) if head.starts_with(MAGIC) && head.get(18..) == Some(&[1, 1]) => {
                Form::Rollback
            }
            _ => Form::Opaque,
        }
    }

    /// Whether database `name` is in rollback mode or empty, where no WAL was found beside it.
    pub(super) fn is_surely_no_wal(&self, name: &str) -> bool {
        matches!(self.form(name), Form::Empty | Form::Rollback)
    }

    /// Whether the hooked handle of database `name` has its wal-index mapped.
    pub(super) fn is_mapped(&self, name: &str) -> bool {
        // SAFETY: this connection's file.
        self.file(name).is_some_and(|f| unsafe { hook::is_mapped(f) })
    }

    /// Turns WAL mode on for `main` and maps its wal-index. What is done for that is not in the program's trace where that can be: it is
    /// turned on through a connection of our own, unless only the program's has what that takes (a key, an open transaction). Errors
    /// when SQLite would not.
    pub fn set_wal_mode(&self) -> Result<()> {
        let form = self.form("main");
        let quiet = match form {
            Form::Wal => true,
            Form::Empty | Form::Rollback => self.autocommit() && self.wal_beside(form).is_ok(),
            Form::Opaque => false,
        };
        if quiet && self.touch().is_ok() && self.is_mapped("main") {
            return Ok(());
        }
        self.wal_by_statement()
    }

    /// By a connection of our own. Errors with [`crate::base::Kind::Retry`] while somebody uses the file.
    fn wal_beside(&self, form: Form) -> Result<()> {
        let Some(path) = self.main_db_path() else { return Err(Error::config("no file")) };
        let said = match form {
            Form::Empty => Some(self.said_of_a_new_file()?),
            _ => None,
        };
        let own = SqlConnection::open(&path, SqlMode::Guest)?;
        own.give_up_at_once();
        if let Some(said) = said {
            own.exec(&said)?;
        }
        own.wal_by_statement()
    }

    /// What the program has said of a file that holds nothing yet, as statements. Errors where that cannot be known: it may have a key.
    fn said_of_a_new_file(&self) -> Result<String> {
        let unknown = || Error::config("what holds for the new file is not known");
        let mut reserved: c_int = -1;
        // SAFETY: the connection is open; the control takes and stores one int.
        unsafe {
            let arg = (&raw mut reserved).cast::<c_void>();
            api::file_control(self.raw(), c"main".as_ptr(), ffi::FCNTL_RESERVE_BYTES, arg);
        }
        if api::was_built_with(c"HAS_CODEC") != Some(false) || reserved > 0 {
            return Err(unknown());
        }
        ["page_size", "auto_vacuum", "encoding"]
            .iter()
            .map(|name| {
                let value = self.explained(&format!("PRAGMA main.{name}")).ok_or_else(unknown)?;
                Ok(format!("PRAGMA {name}='{}';", value.replace('\'', "''")))
            })
            .collect()
    }
}
