//! Reading the whole database at one moment: to prove that it is what the newest TXID says, or to make a
//! snapshot of it.
//!
//! The view is a read mark held through SQLite's own locks ([`Pinned`]): the database file plus the WAL
//! frames up to the mark. While it is held no checkpoint writes past it and nobody restarts the WAL, except
//! when all of the WAL was in the database file already (mark 0): then the file alone is the view.
//!
//! A scan fills the page sums; a snapshot recomputes every page sum while it encodes and refuses to end in a
//! file that disagrees with the checksum it attests: a capture that went wrong is found here at the latest.

use super::database::{Database, Pinned};
use super::pages;
use crate::base::{DbChecksum, Error, Kind, Lineage, PageSize, Pgno, Result, Timestamp, TxId};
use crate::ltx::{self, Attest, Encoder, Header, Summary, WalRange};
use crate::spool::{FileStamp, Handoff, PageSums, Position, Spool, WalPoint};
use crate::wal::{self, IndexHeader, ReadAt, WalPos};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

/// What a file says of the database: its state at a TXID of a history, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The TXID.
    pub txid: TxId,
    /// The history.
    pub lineage: Lineage,
    /// The database's checksum then.
    pub checksum: DbChecksum,
    /// When.
    pub time: Timestamp,
}

impl From<&Position> for Attested {
    fn from(p: &Position) -> Attested {
        Attested { txid: p.txid, lineage: p.lineage, checksum: p.checksum, time: p.timestamp }
    }
}

/// A pinned view with its WAL frames looked up.
pub struct View {
    pinned: Box<dyn Pinned>,
    page_size: PageSize,
    /// Size of the database in pages.
    pages: u32,
    wal: Option<File>,
    /// Newest frame of each page, up to the mark.
    frames: HashMap<Pgno, u32>,
}

/// A state that the database went on from, by what is in its WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Its size in pages.
    pub commit: u32,
    /// The last frame that belongs to it.
    pub wal: WalPoint,
}

/// From one state to the next, by the checksums of pages.
struct Walk {
    /// Of each page; 0 for the lock page.
    sums: Vec<u64>,
    checksum: DbChecksum,
    wanted: DbChecksum,
    /// Pages of the transaction that is not at its end.
    open: Vec<(Pgno, u64)>,
    /// The last frame of the state that is wanted, and its size in pages.
    found: Option<(u32, u32)>,
}

impl Walk {
    fn put(&mut self, pgno: Pgno, sum: u64) {
        let at = pgno.get() as usize - 1;
        if self.sums.len() <= at {
            self.sums.resize(at + 1, 0);
        }
        if let Some(old) = self.sums.get_mut(at) {
            self.checksum = self.checksum.toggle(*old).toggle(sum);
            *old = sum;
        }
    }

    /// A transaction ends with `frame` and leaves so many pages.
    fn commit(&mut self, frame: u32, pages: u32) {
        for (pgno, sum) in std::mem::take(&mut self.open) {
            self.put(pgno, sum);
        }
        for gone in self.sums.split_off((pages as usize).min(self.sums.len())) {
            self.checksum = self.checksum.toggle(gone);
        }
        self.ends(frame, pages);
    }

    /// (A page that is in no frame and not in the file has no checksum here: such a state is not the one.)
    fn ends(&mut self, frame: u32, pages: u32) {
        if self.checksum == self.wanted && self.sums.len() == pages as usize {
            self.found = Some((frame, pages));
        }
    }
}

/// A WAL that is read no further once the view must be given back.
struct Walked<'a> {
    wal: &'a File,
    pinned: &'a dyn Pinned,
}

impl ReadAt for Walked<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.pinned.go_on().map_err(io::Error::other)?;
        ReadAt::read_exact_at(self.wal, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        ReadAt::size(self.wal)
    }
}

/// The newest frame of each page up to frame `last`, as the wal-index has it: all that a reader of SQLite's goes by. It does
/// not look at the checksums, and SQLite (3.40, for one) itself breaks their chain when a transaction that spilled its cache
/// is rolled back to a savepoint. `None` unless each of the frames says it holds that page.
fn as_indexed(db: &dyn Database, wal: &File, size: PageSize, last: u32) -> Option<HashMap<Pgno, u32>> {
    let mut newest = HashMap::new();
    for (page, n) in db.frame_pages(0, last)?.into_iter().zip(1..) {
        newest.insert(Pgno::new(page)?, n);
    }
    let says = |n: u32| wal::frame_page(wal, size, n).ok().flatten();
    newest.iter().all(|(page, n)| says(*n) == Some(*page)).then_some(newest)
}

impl View {
    /// Pins the database and walks the WAL up to the mark, checking its chain.
    pub fn open(db: &dyn Database, wal_path: &Path) -> Result<View> {
        let pinned = db.pin()?;
        let h = pinned.header();
        let (page_size, pages) = match h.page_size {
            Some(size) if h.max_frame > 0 => (size, h.pages),
            // A WAL without frames says neither: the database file does.
            _ => size_from_file(pinned.as_ref())?,
        };
        if h.max_frame == 0 || pinned.is_db_only() {
            return Ok(View { pinned, page_size, pages, wal: None, frames: HashMap::new() });
        }
        let file = File::open(wal_path).map_err(|e| Error::io("open", wal_path, e))?;
        let start = WalPos { frame: 0, ..h.position() };
        let walked = Walked { wal: &file, pinned: pinned.as_ref() };
        let frames = match wal::read_frames(&walked, start, h.position(), |_| {}) {
            Ok(proved) => proved.pages.into_iter().collect(),
            // Restarted between the two: look again.
            Err(e @ wal::ReadError::Reset(_)) => return Err(Error::new(Kind::Retry, e.to_string())),
            Err(e @ wal::ReadError::Corrupt(_)) => {
                let frames = as_indexed(db, &file, page_size, h.max_frame).ok_or_else(|| Error::from(e))?;
                log::warn!(
                    "walrust: {}: its checksums are broken; read as SQLite reads it",
                    wal_path.display()
                );
                frames
            }
            Err(e) => {
                pinned.go_on()?;
                return Err(e.into());
            }
        };
        Ok(View { pinned, page_size, pages, wal: Some(file), frames })
    }

    /// The wal-index header of the view.
    pub fn header(&self) -> &IndexHeader {
        self.pinned.header()
    }

    /// An error when the view had to be given back: what was read is a state of the database, which others may have gone on from.
    pub fn is_held(&self) -> Result<()> {
        self.pinned.go_on()
    }

    /// Size of the database in pages.
    pub fn commit(&self) -> u32 {
        self.pages
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Where the WAL goes on from here.
    pub fn wal_point(&self) -> WalPoint {
        let h = self.header();
        WalPoint {
            salt1: h.salt.salt1,
            salt2: h.salt.salt2,
            frame: h.max_frame,
            checksum: (h.max_frame > 0).then_some((h.frame_checksum.0, h.frame_checksum.1)),
        }
    }

    /// What the next writer is to expect: of a WAL that nobody has written to, that the database file at `path` still
    /// looks as it does under this view, which keeps checkpoints from changing it.
    pub fn handoff(&self, path: &Path) -> Result<Handoff> {
        if self.header().salt != crate::wal::Salt::default() {
            return Ok(Handoff::Live);
        }
        FileStamp::of(path).map(Handoff::Closed).map_err(|e| Error::io("look at", path, e))
    }

    /// Reads one page.
    pub fn page(&self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        let size = self.page_size;
        if let (Some(frame), Some(wal)) = (self.frames.get(&pgno), &self.wal) {
            self.pinned.go_on()?;
            return pages::read_frame(wal, size, *frame, page);
        }
        self.pinned.read_db(page, pgno.offset(size))
    }

    /// Reads every page, fills `sums`, and returns the database checksum. `tick(done, all)` after each page.
    pub fn scan(&self, sums: &PageSums, mut tick: impl FnMut(u32, u32)) -> Result<DbChecksum> {
        let mut page = vec![0; self.page_size.len()];
        let mut checksum = DbChecksum::EMPTY;
        let mut batch = Vec::with_capacity(1024);
        for pgno in self.pages() {
            self.page(pgno, &mut page)?;
            let sum = ltx::page_checksum(pgno, &page);
            checksum = checksum.toggle(sum);
            batch.push((pgno, sum));
            if batch.len() == 1024 {
                sums.store(&batch)?;
                batch.clear();
            }
            tick(pgno.get(), self.pages);
        }
        sums.store(&batch)?;
        Ok(checksum)
    }

    /// What the database file adds up to without its WAL. `None` where its page size is not the view's. Errors as reading does.
    pub fn file_alone(&self) -> Result<Option<DbChecksum>> {
        Ok(self.walk_file(DbChecksum::EMPTY)?.map(|walk| walk.checksum))
    }

    fn walk_file(&self, wanted: DbChecksum) -> Result<Option<Walk>> {
        let size = self.page_size;
        let (file_size, pages) = size_from_file(self.pinned.as_ref())?;
        if file_size != size {
            return Ok(None);
        }
        let mut walk =
            Walk { sums: Vec::new(), checksum: DbChecksum::EMPTY, wanted, open: Vec::new(), found: None };
        let mut page = vec![0; size.len()];
        for pgno in (1..=pages).filter_map(Pgno::new) {
            self.pinned.read_db(&mut page, pgno.offset(size))?;
            let is_counted = pgno != size.lock_page();
            walk.put(pgno, if is_counted { ltx::page_checksum(pgno, &page) } else { 0 });
        }
        walk.ends(0, pages);
        Ok(Some(walk))
    }

    /// The state with the checksum `wanted` among those that the WAL begins with, fills `sums` for it: the database file alone, or with
    /// the transactions up to one of the WAL. That is how a database is known that went on before anybody asked whose it was. `None`
    /// where there is none: it never was in that state, or a checkpoint has written newer pages into the file since. Takes 8 bytes of
    /// memory for each page.
    ///
    /// Errors as reading the view and writing the sums do.
    pub fn earlier(&self, wanted: DbChecksum, sums: &PageSums) -> Result<Option<Earlier>> {
        let Some(wal) = &self.wal else { return Ok(None) };
        let Some(mut walk) = self.walk_file(wanted)? else { return Ok(None) };
        let h = self.header();
        let walked = Walked { wal, pinned: self.pinned.as_ref() };
        let start = WalPos { frame: 0, ..h.position() };
        let read = wal::read_frames(&walked, start, h.position(), |f| {
            if walk.found.is_none() {
                walk.open.push((f.pgno, ltx::page_checksum(f.pgno, f.page)));
                if f.commit != 0 {
                    walk.commit(f.number, f.commit);
                }
            }
        });
        if let Err(e) = read {
            self.pinned.go_on()?;
            return Err(e.into());
        }
        let Some((frame, commit)) = walk.found else { return Ok(None) };
        let all: Vec<(Pgno, u64)> =
            (1..=commit).filter_map(Pgno::new).zip(walk.sums.iter().copied()).collect();
        sums.store(&all)?;
        let checksum = match frame {
            0 => None,
            n => Some(wal::checksum_at(wal, h.salt, n).map(|c| (c.0, c.1))?),
        };
        let wal = WalPoint { salt1: h.salt.salt1, salt2: h.salt.salt2, frame, checksum };
        Ok(Some(Earlier { commit, wal }))
    }

    /// Encodes the view as a snapshot `1-txid` into the spool. Errors with [`Kind::Corrupt`], leaving no file,
    /// when its pages do not add up to the checksum.
    pub fn snapshot(&self, spool: &Spool, at: &Attested, tick: impl FnMut(u32, u32)) -> Result<Summary> {
        let summary = self.snapshot_at(&spool.snapshot_path(at.txid), spool, at, tick)?;
        spool.make_snapshot_durable(at.txid)?;
        Ok(summary)
    }

    /// [`View::snapshot`] into a file that is not queued.
    pub fn snapshot_at(
        &self,
        path: &Path,
        spool: &Spool,
        at: &Attested,
        mut tick: impl FnMut(u32, u32),
    ) -> Result<Summary> {
        let Attested { txid, lineage, checksum, time } = *at;
        let h = self.header();
        let mut header = Header::new(self.page_size, self.pages, TxId(1), txid, time);
        header.lineage = lineage;
        header.attest = Some(Attest { before: DbChecksum::EMPTY, after: checksum });
        let last = h.max_frame;
        header.wal = (last > 0)
            .then(|| WalRange::of_frames(self.page_size, last - 1, last, (h.salt.salt1, h.salt.salt2)));
        let mut page = vec![0; self.page_size.len()];
        spool.write_file(path, |w| {
            let mut e = Encoder::new(w, header)?;
            let mut found = DbChecksum::EMPTY;
            for pgno in self.pages() {
                self.page(pgno, &mut page)?;
                found = found.toggle(ltx::page_checksum(pgno, &page));
                e.page(pgno, &page)?;
                tick(pgno.get(), self.pages);
            }
            if found != checksum {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("the database adds up to {found}, its history to {checksum} at TXID {txid}"),
                ));
            }
            e.finish().map(|(summary, _)| summary)
        })
    }

    fn pages(&self) -> impl Iterator<Item = Pgno> + use<> {
        let lock_page = self.page_size.lock_page();
        (1..=self.pages).filter_map(Pgno::new).filter(move |p| *p != lock_page)
    }
}

/// Page size and number of pages by the database file's own header
/// (<https://sqlite.org/fileformat2.html#the_database_header>) and size.
fn size_from_file(pinned: &dyn Pinned) -> Result<(PageSize, u32)> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let bytes = pinned.db_size()?;
    if bytes == 0 {
        return Err(Error::new(Kind::Retry, "the database is empty"));
    }
    let mut head = [0; 18];
    pinned.read_db(&mut head, 0)?;
    let [magic @ .., hi, lo] = head;
    if &magic != MAGIC {
        return Err(Error::new(Kind::Retry, "the database file is encrypted: waiting for its first commit"));
    }
    let page_size = match u16::from_be_bytes([hi, lo]) {
        1 => PageSize::new(65536)?,
        n => PageSize::new(n.into())?,
    };
    // (As `pagerPagecount` does: part of a page is one, the rest of which is zero.)
    let pages = u32::try_from(bytes.div_ceil(page_size.get().into()))
        .map_err(|_| Error::corrupt(format!("{bytes} bytes are too many for a database")))?;
    Ok((page_size, pages))
}

/// The small level-0 file that follows a lineage's first snapshot: page 1 as it is. It gives Litestream, which
/// continues a replica from its newest level-0 file, something to continue.
///
/// Errors as reading the view and writing the spool do.
pub fn anchor(view: &View, spool: &Spool, at: &Attested) -> Result<()> {
    let Attested { txid, lineage, checksum, time } = *at;
    let h = view.header();
    let mut page = vec![0; view.page_size.len()];
    view.page(Pgno::ONE, &mut page)?;
    let mut header = Header::new(view.page_size, view.pages, txid, txid, time);
    header.lineage = lineage;
    header.attest = Some(Attest { before: checksum, after: checksum });
    header.wal = Some(WalRange::of_frames(view.page_size, 0, 0, (h.salt.salt1, h.salt.salt2)));
    spool.write_file(&spool.pending_path(txid), |w| {
        let mut e = Encoder::new(w, header)?;
        e.page(Pgno::ONE, &page)?;
        e.finish().map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of a database whose pages have these sums.
    fn checksum(sums: &[u64]) -> DbChecksum {
        sums.iter().fold(DbChecksum::EMPTY, |c, s| c.toggle(*s))
    }

    /// What is found when `wanted` is looked for in a file of three pages and the transactions on top of it: one that changes a page,
    /// one that grows the database, one that takes the same page twice, and one that cuts it to two pages.
    fn walked(wanted: DbChecksum) -> Option<(u32, u32)> {
        let mut walk =
            Walk { sums: Vec::new(), checksum: DbChecksum::EMPTY, wanted, open: Vec::new(), found: None };
        let page = |n: u32| Pgno::new(n).unwrap();
        for (n, sum) in [(1, 11), (2, 12), (3, 13)] {
            walk.put(page(n), sum);
        }
        walk.ends(0, 3);
        let frames = [(2, 22, 3), (4, 14, 0), (1, 21, 4), (3, 33, 0), (3, 43, 4), (1, 31, 2)];
        for (number, (pgno, sum, commit)) in (1..).zip(frames) {
            if walk.found.is_none() {
                walk.open.push((page(pgno), sum));
                if commit != 0 {
                    walk.commit(number, commit);
                }
            }
        }
        walk.found
    }

    #[test]
    fn a_state_is_found_at_the_end_of_a_transaction_and_nowhere_else() {
        for (sums, found) in [
            (&[11, 12, 13][..], Some((0, 3))),
            (&[11, 22, 13], Some((1, 3))),
            (&[21, 22, 13, 14], Some((3, 4))),
            (&[21, 22, 43, 14], Some((5, 4))),
            (&[31, 22], Some((6, 2))),
            // In the middle of one, and never.
            (&[11, 22, 13, 14], None),
            (&[21, 22, 33, 14], None),
            (&[11, 12], None),
        ] {
            assert_eq!(walked(checksum(sums)), found, "{sums:?}");
        }
    }
}
