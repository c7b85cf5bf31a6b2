//! An empty WAL beside a database in rollback mode: what makes SQLite use it in WAL mode without a change of the file.
//!
//! Each connection looks for a `-wal` whenever it takes its first lock, and opens what it finds (`pagerOpenWalIfPresent` in SQLite's
//! pager.c); the version bytes of page 1 are not asked. So this works for a file whose bytes only its program can read. When the last
//! connection closes, SQLite deletes the WAL, and the file is in rollback mode again. SQLite's unix VFS takes a file of no bytes for
//! none, so this one has a byte: less than a WAL's header, and so no frame (`walIndexRecover` in wal.c).
//!
//! I-EWAL-1: the WAL is made under the file's EXCLUSIVE lock and where no rollback journal is, so nobody is reading or writing in
//! rollback mode at that moment.

use super::ffi::{self, File};
use super::methods::Methods;
use super::raw::{Filename, RawDb, close};
use super::vocab::FileLock;
use super::{error, lower};
use crate::base::{Error, Kind, Result};
use std::path::Path;

/// Puts an empty WAL beside the database at `path`, with the rights that SQLite gives a WAL, unless one is there. Errors with
/// [`Kind::Retry`] while somebody uses the file.
pub fn put_empty_wal(path: &Path) -> Result<()> {
    let mut db = RawDb::open(path)?;
    db.lock(FileLock::Exclusive)?;
    if db.sibling_exists("-journal")? {
        return Err(Error::new(Kind::Retry, format!("{} has a rollback journal", path.display())));
    }
    if db.size()? == 0 || db.sibling_exists("-wal")? {
        return Ok(());
    }
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    let name = Filename::new(Path::new(&name))?;
    let lower = lower::lower();
    // SAFETY: `RawDb::open` found the lower VFS registered; it lives for good.
    let (open, size) = unsafe { ((*lower).x_open, (*lower).sz_os_file) };
    let Some(open) = open else { return Err(error::from_code(ffi::CANTOPEN, "cannot open files")) };
    let mut body = vec![0u64; usize::try_from(size).unwrap_or(0).div_ceil(8)].into_boxed_slice();
    let file = body.as_mut_ptr().cast::<File>();
    let flags = ffi::OPEN_READWRITE | ffi::OPEN_CREATE | ffi::OPEN_WAL;
    let mut granted = 0;
    // SAFETY: a zeroed body of szOsFile bytes; `name` is a sqlite3_filename that outlives the file, which is closed in any case.
    let rc = unsafe {
        let mut rc = open(lower, name.as_ptr(), file, flags, &raw mut granted);
        if rc == ffi::OK {
            let write = Methods::of(file).x_write();
            rc = write.map_or(ffi::IOERR, |f| f(file, [0u8].as_ptr().cast(), 1, 0));
        }
        close(file);
        rc
    };
    error::check(rc, || format!("cannot make {}-wal", path.display()))
}
