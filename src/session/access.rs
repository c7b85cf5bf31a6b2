//! How capture reads a database file without SQL: own handles through SQLite's lower VFS.

use super::handles::{Handles, OwnPermit};
use crate::base::{Error, Kind, Result};
use crate::capture::{Database, Pinned};
use crate::sqlite::{Pins, RawDb, ReadMark, Revocable, SqlConnection, SqlMode, read_aside};
use crate::wal::IndexHeader;
use std::path::Path;
use std::sync::Arc;

/// Where the database file says whether it is in WAL mode, 2 and 2
/// (<https://sqlite.org/fileformat2.html#file_format_version_numbers>).
pub(super) const FORMAT_VERSIONS: u64 = 18;

/// The database at a path.
#[derive(Debug)]
pub(super) struct Access {
    handles: Arc<Handles>,
}

/// The database while a connection of this process has it for itself, on that connection's thread: there is no lock to
/// take, and nothing changes until the thread goes on.
pub(super) struct Held {
    handles: Arc<Handles>,
    header: IndexHeader,
    file: u64,
}

struct HeldView {
    db: Revocable<RawDb>,
    header: IndexHeader,
}

impl Held {
    /// `file`: number of the file that the connection has open.
    pub(super) fn new(handles: &Arc<Handles>, header: IndexHeader, file: u64) -> Held {
        Held { handles: handles.clone(), header, file }
    }

    /// Number of the file that the connection has open: what lies at the path by now may be another, and is then read once more.
    pub(super) fn file(&self) -> u64 {
        self.file
    }
}

impl Database for Held {
    fn pin(&self) -> Result<Box<dyn Pinned>> {
        let db = Revocable::new(RawDb::open(self.handles.path())?);
        Ok(Box::new(HeldView { db, header: self.header }))
    }

    fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        self.handles.frame_pages(from, to)
    }

    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        RawDb::open(self.handles.path())?.read_at(buf, offset).map(drop)
    }
}

impl Pinned for HeldView {
    fn header(&self) -> &IndexHeader {
        &self.header
    }

    fn is_db_only(&self) -> bool {
        self.header.max_frame == 0
    }

    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.db.with(|db| db.read_at(buf, offset).map(drop))
    }

    fn go_on(&self) -> Result<()> {
        self.db.with(|_| Ok(()))
    }

    fn db_size(&self) -> Result<u64> {
        self.db.with(RawDb::size)
    }
}

/// Bytes of the largest database that is read without a handle on it.
const LARGEST_ASIDE: u64 = 4 << 20;

/// A small database read into memory: no handle of ours, and so no descriptor that SQLite would keep until the app closes. What
/// is not in memory, the frames of the WAL, nobody holds: [`Pinned::go_on`] tells whether they were there to the end.
pub(super) struct Aside {
    handles: Arc<Handles>,
    header: IndexHeader,
}

struct AsideView {
    handles: Arc<Handles>,
    bytes: Vec<u8>,
    header: IndexHeader,
}

impl Aside {
    /// `None` where nobody has the wal-index mapped, or it tells that the file is being changed.
    pub(super) fn new(handles: &Arc<Handles>) -> Option<Aside> {
        let header = handles.header().filter(is_settled)?;
        let small = std::fs::metadata(handles.path()).is_ok_and(|m| m.len() <= LARGEST_ASIDE);
        small.then(|| Aside { handles: handles.clone(), header })
    }

    /// An error when a checkpoint or reset came since it was made.
    pub(super) fn still(&self) -> Result<()> {
        still(&self.handles, &self.header)
    }
}

/// No checkpoint is under way, as its writer tells before the first page (see `Watched::is_written_past_wal`).
fn is_settled(h: &IndexHeader) -> bool {
    h.backfilled == h.backfill_attempted
}

/// An error ([`Kind::Retry`]) when a checkpoint or a reset came since `then`: file and frames are not what they were.
fn still(handles: &Handles, then: &IndexHeader) -> Result<()> {
    let same = |h: IndexHeader| is_settled(&h) && (h.salt, h.backfilled) == (then.salt, then.backfilled);
    if !handles.is_exclusive() && handles.header().is_some_and(same) {
        return Ok(());
    }
    Err(Error::new(Kind::Retry, "the database file was changed while it was read"))
}

impl Database for Aside {
    fn pin(&self) -> Result<Box<dyn Pinned>> {
        let path = self.handles.path();
        let read = read_aside(path, LARGEST_ASIDE).map_err(|e| Error::io("read", path, e))?;
        if !self.handles.is_at(&read) {
            return Err(Error::new(Kind::Retry, "the database file was replaced while it was read"));
        }
        self.still()?;
        Ok(Box::new(AsideView { handles: self.handles.clone(), bytes: read.bytes, header: self.header }))
    }

    fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        self.handles.frame_pages(from, to)
    }

    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Access::new(&self.handles).read_db(buf, offset)
    }
}

impl Pinned for AsideView {
    fn header(&self) -> &IndexHeader {
        &self.header
    }

    fn is_db_only(&self) -> bool {
        self.header.max_frame == self.header.backfilled
    }

    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.fill(0);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in buf.iter_mut().zip(self.bytes.get(at..).unwrap_or_default()) {
            *to = *from;
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        still(&self.handles, &self.header)
    }

    fn db_size(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// A read mark with the permission to hold it.
struct Mark {
    // Declared first: dropped first.
    mark: Revocable<ReadMark>,
    /// What keeps the wal-index there while no connection of the app has it mapped.
    _wal: Option<Revocable<SqlConnection>>,
    pins: Pins,
    header: IndexHeader,
    permit: OwnPermit,
}

/// Whether the database, which the app has open, has left WAL mode: bytes 18 and 19 of its header are 1
/// (<https://www.sqlite.org/fileformat2.html>).
pub(super) fn is_in_rollback_mode(handles: &Arc<Handles>) -> bool {
    let mut versions = [0; 2];
    let Ok(_permit) = handles.permit_own() else { return false };
    let read = RawDb::open(handles.path()).and_then(|db| db.read_at(&mut versions, FORMAT_VERSIONS));
    read.is_ok() && versions == [1, 1]
}

impl Access {
    pub(super) fn new(handles: &Arc<Handles>) -> Access {
        Access { handles: handles.clone() }
    }
}

impl Database for Access {
    fn pin(&self) -> Result<Box<dyn Pinned>> {
        let permit = self.handles.permit_own()?;
        let path = self.handles.path();
        let (mark, wal) = match ReadMark::begin(path) {
            // In WAL mode, and nobody has read it since it was opened.
            Err(e) if e.is_missing() => {
                let wal = Revocable::new(recover_wal_index(path)?);
                (ReadMark::begin(path).map_err(|_| e)?, Some(wal))
            }
            mark => (mark?, None),
        };
        let header = IndexHeader::decode(mark.header())
            .ok_or_else(|| Error::new(Kind::Retry, "the wal-index is being changed"))?;
        let pins = mark.pins();
        Ok(Box::new(Mark { mark: Revocable::new(mark), _wal: wal, pins, header, permit }))
    }

    fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        self.handles.frame_pages(from, to)
    }

    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        // (Past the end is the usual case, and needs no handle.)
        if std::fs::metadata(self.handles.path()).is_ok_and(|m| m.len() <= offset) {
            buf.fill(0);
            return Ok(());
        }
        RawDb::open(self.handles.path())?.read_at(buf, offset).map(drop)
    }
}

/// A connection of our own that has read the database, if it can: that makes the wal-index. (Of an encrypted file it cannot read the
/// first page, but by then SQLite has opened the WAL that it found.)
pub(super) fn recover_wal_index(path: &Path) -> Result<SqlConnection> {
    let own = SqlConnection::open(path, SqlMode::Guest)?;
    own.give_up_at_once();
    drop(own.query_value("PRAGMA schema_version"));
    Ok(own)
}

impl Mark {
    fn is_wanted(&self) -> Result<()> {
        if self.permit.is_recalled() {
            return Err(Error::new(Kind::Retry, "the database is being closed"));
        }
        Ok(())
    }
}

impl Pinned for Mark {
    fn header(&self) -> &IndexHeader {
        &self.header
    }

    fn is_db_only(&self) -> bool {
        self.pins == Pins::DbOnly
    }

    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.is_wanted()?;
        self.mark.with(|m| m.read_at(buf, offset).map(drop))
    }

    fn go_on(&self) -> Result<()> {
        self.is_wanted()?;
        self.mark.with(|_| Ok(()))
    }

    fn db_size(&self) -> Result<u64> {
        self.mark.with(ReadMark::file_size)
    }
}
