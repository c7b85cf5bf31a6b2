//! Pages of a database file changed in one transaction, by SQLite's own rules for rollback mode, without SQL.
//!
//! SHARED → RESERVED → original pages into `<path>-journal` → sync → EXCLUSIVE → pages into the file → sync → journal
//! removed → unlocked (<https://sqlite.org/fileformat2.html#the_rollback_journal>, <https://sqlite.org/lockingv3.html>). So
//! every connection of any process sees the state before or the state after, and nothing else.
//!
//! Rules
//! * I-RW-1: no byte of the file changes before its original is durable in the journal, nor while anybody reads.
//! * I-RW-2: the number of records goes into the journal's header only after the records are durable, so a torn journal plays
//!   back nothing. The header has 4,096 bytes to itself: writing it again cannot tear a record.
//! * I-RW-3: the journal exists only while RESERVED or more is held; whoever finds one without that lock rolls it back.
//! * I-RW-4: a transaction begins on a file without a hot journal and out of WAL mode; SQLite itself sees to both.
//!
//! A crash leaves a hot journal, which the next SQLite connection to read the file rolls back, extension loaded or not. A
//! transaction that fails between its first write and its end is left as by a crash and rolled back at once.
//!
//! Refused: `sqlite3_backup` (its cost is the size of the database, and it takes pages only from an SQLite connection);
//! `sqlite_dbpage` (most builds of SQLite leave it out); frames appended to a WAL by hand (the wal-index would have to be kept by
//! hand too, in shared memory that others map); a rename (readers keep the old file, for ever).

use super::fork::{self, despite_forks};
use super::own::{SqlConnection, SqlMode};
use super::raw::RawDb;
use super::vocab::{Access, FileLock};
use crate::base::{Error, Kind, Manners, Pgno, Result, beside, clock, crash, durable};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a database header.
const HEADER: usize = 100;
/// Offset of the file format write and read versions: 1 rollback, 2 WAL.
const FORMAT: std::ops::Range<usize> = 18..20;
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// What the journal calls a sector: its header's length.
const SECTOR: u32 = 4096;
/// Offset of the number of records in the journal's header.
const COUNT_AT: u64 = 8;
/// How often a leftover (hot journal, WAL mode) is seen to before giving up.
const TRIES: usize = 3;
const DEFAULT_PAGE: u32 = 4096;
/// How long a fork waits for the writes of a transaction.
const GRACE: Duration = Duration::from_millis(100);

/// Header and size of a database file at rest, for a look that costs one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The first 100 bytes; zero past the file's end.
    pub header: [u8; HEADER],
    /// Bytes in the file.
    pub size: u64,
}

/// Reads the header of the database at `path` under SHARED, after any rollback that is due.
/// Errors: [`Kind::Missing`] if there is no such file; [`Kind::Retry`] while somebody writes.
pub fn peek(path: &Path) -> Result<Peek> {
    let journal = beside(path, "-journal");
    for _ in 0..TRIES {
        let mut db = RawDb::open(path)?;
        db.lock(FileLock::Shared)?;
        if !is_hot(&journal)? {
            return look(&db);
        }
        drop(db);
        settle(path)?;
        if is_hot(&journal)? {
            return Err(Error::new(Kind::Retry, format!("{} is being written by another", path.display())));
        }
    }
    Err(Error::new(Kind::Retry, format!("{} keeps being written by another", path.display())))
}

fn look(db: &RawDb) -> Result<Peek> {
    let mut header = [0; HEADER];
    db.read_at(&mut header, 0)?;
    Ok(Peek { header, size: db.size()? })
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    /// RESERVED: originals go into the journal.
    Keeping,
    /// The journal is durable and complete.
    Sealed,
    /// EXCLUSIVE: pages go into the file.
    Writing,
    /// Over, one way or the other.
    Done,
}

/// A transaction under way. Dropping it undoes what it did.
pub struct Rewrite {
    /// `None` once unlocked.
    db: Option<RawDb>,
    path: PathBuf,
    journal_path: PathBuf,
    journal: BufWriter<File>,
    nonce: u32,
    records: u32,
    before: Peek,
    page_size: u32,
    stage: Stage,
}

impl Rewrite {
    /// Begins a transaction on an existing file: takes RESERVED, starts the journal. Readers are not disturbed yet.
    ///
    /// Errors: [`Kind::Missing`]; [`Kind::Retry`] while another writes, or keeps the file in WAL mode; `Io`.
    pub fn begin(path: &Path) -> Result<Rewrite> {
        let journal_path = beside(path, "-journal");
        for _ in 0..TRIES {
            let mut db = RawDb::open(path)?;
            if db.access() == Access::ReadOnly {
                return Err(Error::new(Kind::Io, format!("{} cannot be written", path.display())));
            }
            db.lock(FileLock::Reserved)?;
            let before = look(&db)?;
            if is_hot(&journal_path)? {
                drop(db);
                settle(path)?;
                continue;
            }
            if before.header.get(FORMAT).is_some_and(|v| v.contains(&2)) {
                drop(db);
                leave_wal(path)?;
                continue;
            }
            let page_size = page_size_of(&before.header).unwrap_or(DEFAULT_PAGE);
            if before.size % u64::from(page_size) != 0 {
                let shown = path.display();
                return Err(Error::corrupt(format!("{shown} is not a whole number of database pages long")));
            }
            let nonce = (clock::random_u64() & 0xffff_ffff) as u32;
            let journal = start_journal(&journal_path, path, nonce, before.size, page_size);
            let (path, db) = (path.to_path_buf(), Some(db));
            let journal = match journal {
                Ok(j) => j,
                Err(e) => {
                    let _ = fs::remove_file(&journal_path);
                    return Err(e);
                }
            };
            let stage = Stage::Keeping;
            return Ok(Rewrite {
                db,
                path,
                journal_path,
                journal,
                nonce,
                records: 0,
                before,
                page_size,
                stage,
            });
        }
        Err(Error::new(Kind::Retry, format!("{} keeps being written by another", path.display())))
    }

    /// Header and size as they were when the transaction began.
    pub fn before(&self) -> &Peek {
        &self.before
    }

    /// Page size of the file as it was; 4096 for an empty one.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// Pages in the file as it was.
    pub fn pages(&self) -> u32 {
        u32::try_from(self.before.size / u64::from(self.page_size)).unwrap_or(u32::MAX)
    }

    /// Reads from the file. What lies past its end reads as zero.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.recalled()?;
        self.db()?.read_at(buf, offset).map(drop)
    }

    /// Keeps the original of a page, which is `page`, in the journal. Each page that is going to be written, or cut off, must
    /// be kept, once; what lies past the old end need not.
    pub fn keep(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.expect(Stage::Keeping)?;
        if page.len() as u64 != u64::from(self.page_size) || pgno.get() > self.pages() {
            return Err(Error::new(Kind::Bug, format!("page {pgno} cannot be kept")));
        }
        let sum = checksum(self.nonce, page);
        let written = self
            .journal
            .write_all(&pgno.get().to_be_bytes())
            .and_then(|()| self.journal.write_all(page))
            .and_then(|()| self.journal.write_all(&sum.to_be_bytes()));
        written.map_err(|e| Error::io("write", &self.journal_path, e))?;
        self.records += 1;
        Ok(())
    }

    /// Makes the journal durable (I-RW-2). Readers are still not disturbed.
    pub fn seal(&mut self) -> Result<()> {
        self.expect(Stage::Keeping)?;
        let io = |e| Error::io("write", &self.journal_path, e);
        self.journal.flush().map_err(io)?;
        let file = self.journal.get_mut();
        file.sync_all().map_err(io)?;
        crash::point("rewrite.records");
        file.seek(SeekFrom::Start(COUNT_AT))
            .and_then(|_| file.write_all(&self.records.to_be_bytes()))
            .and_then(|()| file.sync_all())
            .map_err(io)?;
        sync_dir(&self.journal_path)?;
        self.stage = Stage::Sealed;
        crash::point("rewrite.sealed");
        Ok(())
    }

    /// Keeps readers out, waiting up to `patience` for those that are there. Errors with [`Kind::Retry`] when they stay.
    pub fn exclude(&mut self, patience: Duration) -> Result<()> {
        self.expect(Stage::Sealed)?;
        self.db_mut()?.wait_exclusive(patience)?;
        self.stage = Stage::Writing;
        crash::point("rewrite.exclusive");
        Ok(())
    }

    /// Writes into the file.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.expect(Stage::Writing)?;
        self.recalled()?;
        self.db_mut()?.write_at(data, offset)?;
        crash::point("rewrite.page");
        Ok(())
    }

    /// Cuts the file to `size`, if it is longer.
    pub fn cut(&mut self, size: u64) -> Result<()> {
        self.expect(Stage::Writing)?;
        let db = self.db_mut()?;
        if db.size()? > size {
            db.truncate(size)?;
        }
        Ok(())
    }

    /// Makes the new state durable and the only one: removing the journal is the commit.
    pub fn commit(mut self) -> Result<()> {
        self.expect(Stage::Writing)?;
        self.db_mut()?.sync()?;
        crash::point("rewrite.synced");
        fs::remove_file(&self.journal_path).map_err(|e| Error::io("remove", &self.journal_path, e))?;
        self.stage = Stage::Done;
        crash::point("rewrite.committed");
        let durable = sync_dir(&self.journal_path);
        self.db = None;
        durable
    }

    /// A fork ends the transaction: before its first write nothing has happened, and after it SQLite rolls it back (in this
    /// process or the child, whoever reads first). One that is nearly done is not given up.
    fn recalled(&self) -> Result<()> {
        let grace = if self.stage == Stage::Writing { GRACE } else { Duration::ZERO };
        fork::recalled_for(grace)
    }

    fn db(&self) -> Result<&RawDb> {
        self.db.as_ref().ok_or_else(|| Error::new(Kind::Bug, "a transaction is used after its end"))
    }

    fn db_mut(&mut self) -> Result<&mut RawDb> {
        self.db.as_mut().ok_or_else(|| Error::new(Kind::Bug, "a transaction is used after its end"))
    }

    fn expect(&self, stage: Stage) -> Result<()> {
        if self.stage == stage {
            return Ok(());
        }
        Err(Error::new(Kind::Bug, format!("a transaction is {:?}, not {stage:?}", self.stage)))
    }
}

impl Drop for Rewrite {
    fn drop(&mut self) {
        match self.stage {
            Stage::Done => {}
            Stage::Keeping | Stage::Sealed => {
                // I-RW-3: before the lock goes.
                if let Err(e) = fs::remove_file(&self.journal_path) {
                    log::warn!("walrust: cannot remove {}: {e}", self.journal_path.display());
                }
            }
            Stage::Writing => {
                self.db = None;
                if let Err(e) = settle(&self.path) {
                    log::warn!(
                        "walrust: {}: a failed change is not rolled back yet: {e}",
                        self.path.display()
                    );
                }
            }
        }
    }
}

/// The journal with its header; zero records (I-RW-2).
fn start_journal(at: &Path, db: &Path, nonce: u32, size: u64, page_size: u32) -> Result<BufWriter<File>> {
    let io = |e| Error::io("write", at, e);
    let mut file = File::options().write(true).create(true).truncate(true).open(at).map_err(io)?;
    // Whoever may write the database must be able to roll it back.
    if let Some(manners) = Manners::of(db) {
        manners.dress(&file);
    }
    let pages = u32::try_from(size / u64::from(page_size)).unwrap_or(u32::MAX);
    let mut header = JOURNAL_MAGIC.to_vec();
    for word in [0, nonce, pages, SECTOR, page_size] {
        header.extend_from_slice(&word.to_be_bytes());
    }
    header.resize(SECTOR as usize, 0);
    file.write_all(&header).map_err(io)?;
    Ok(BufWriter::with_capacity(128 * 1024, file))
}

/// `pager_cksum`: every 200th byte from the end, the last 200 and the first ones left out.
fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut at = page.len().saturating_sub(200);
    while at > 0 {
        sum = sum.wrapping_add(page.get(at).copied().unwrap_or(0).into());
        at = at.saturating_sub(200);
    }
    sum
}

/// Page size in a database header; `None` if it is none.
fn page_size_of(header: &[u8; HEADER]) -> Option<u32> {
    if !header.starts_with(b"SQLite format 3\0") {
        return None;
    }
    let n = u32::from(u16::from_be_bytes([*header.get(16)?, *header.get(17)?]));
    let n = if n == 1 { 65536 } else { n };
    (n.is_power_of_two() && n >= 512).then_some(n)
}

/// Whether a journal is there that holds something. A file of SQLite's other journal modes, emptied or with its header wiped,
/// is none. Asked with a lock held under which no new one can come.
fn is_hot(journal: &Path) -> Result<bool> {
    let mut first = [0];
    match File::open(journal).and_then(|mut f| f.read(&mut first)) {
        Ok(n) => Ok(n == 1 && first != [0]),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("read", journal, e)),
    }
}

/// Lets SQLite read the file, which rolls a hot journal back.
fn settle(path: &Path) -> Result<()> {
    despite_forks(|| {
        let conn = SqlConnection::open(path, SqlMode::Owner)?;
        conn.query_value("SELECT count(*) FROM sqlite_master")
            .map(drop)
            .map_err(|e| e.context(path.display()))
    })
}

/// Lets SQLite take the file out of WAL mode.
fn leave_wal(path: &Path) -> Result<()> {
    let mode = despite_forks(|| {
        SqlConnection::open(path, SqlMode::Owner)?.query_value("PRAGMA journal_mode=DELETE")
    })?;
    if mode.as_text() == Some("delete") {
        return Ok(());
    }
    let text =
        format!("{} was put into WAL mode and is open in another program; close it there", path.display());
    Err(Error::new(Kind::Retry, text))
}

/// Makes the directory entry of `file` durable.
fn sync_dir(file: &Path) -> Result<()> {
    let dir = match file.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    durable::sync_dir(dir).map_err(|e| Error::io("sync the directory", dir, e))
}

#[cfg(test)]
mod tests;
