//! Following a replica: which files come next after a place in its history, and what they make of a database file that others
//! read meanwhile.
//!
//! The follower's file is the source's database but for a few bytes of page 1 ([`Place::localize`]): rollback mode instead of
//! WAL, so that a reader needs no `-wal`, and a change counter of its own, so that readers notice each change. How pages get into
//! the file under readers is the caller's affair ([`Disk`]); here is what they are, and that they are right.
//!
//! Rules
//! * I-FOL-1 A file is applied in two passes: the first proves it (its checksum, what it attests, and the checksum of the whole
//!   database after it) and lets originals be kept, the second writes. Nothing is written before all is proved.
//! * I-FOL-2 The whole-database checksum is carried from step to step, as in `apply`: a page that goes out is read back and taken
//!   off. So the cost is that of the change, and still a file of another history cannot pass.
//! * I-FOL-3 A place is known by all 100 bytes of its file's header and the file's size. A file that has others was written by
//!   somebody else.
//! * I-FOL-4 Steps go forward only. What no step continues is rebuilt from a full copy, compared page by page, so that only pages
//!   that differ are written; its schema cookie is shifted by chance, so that no reader takes an old schema for the new one.
//! * I-FOL-5 A quiet poll is one request: the next level-0 file has a name that is known beforehand.
//!
//! A crash leaves a [`Record`] that names the place before and the place after; the file's header says which of them holds.
//! May be called on any thread, in a tokio runtime. Refused: applying many files as one merged change (fewer syncs, but the states
//! in between, which readers may want, never exist, and one more copy of every page would); a place recorded inside the database
//! (a follower's file is the source's, nothing else).

use super::apply::{added_pages, agrees_with_manifest};
use super::inventory::{FileInfo, Inventory};
use super::layout::FileId;
use super::manifest::{Manifest, ManifestEntry};
use super::plan::walk;
use super::restore::{Ahead, Fetched, Restored};
use crate::base::{DbChecksum, Error, Kind, PageSize, Pgno, Result, TxId, clock};
use crate::ltx::{Decoder, Header, Level, page_checksum};
use crate::store::Store;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

mod record;

pub use record::{Place, Record};

/// Downloads ahead of the file being applied.
const AHEAD: usize = 4;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The follower's file inside a transaction.
pub trait Disk {
    /// Reads a page of the new page size as it lies in the file.
    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()>;
    /// Keeps the original of a page, before it is written or cut off; once for each.
    fn keep(&mut self, pgno: Pgno, page: &[u8]) -> Result<()>;
    /// Writes a page.
    fn write(&mut self, pgno: Pgno, page: &[u8]) -> Result<()>;
    /// Sets the size of the database in pages.
    fn resize(&mut self, pages: u32) -> Result<()>;
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The replica holds nothing newer.
    Nothing,
    /// These files, in this order.
    Apply(Vec<FileInfo>),
    /// No file continues: start from a full copy. Says why.
    Rebuild(String),
    /// The replica ends before the place; its newest file tells whether it is another history.
    Behind(FileId),
}

/// Decides, from all files of the replica. Pure. Errors with `Missing` if it holds none.
pub fn next(files: &[FileInfo], at: &Place) -> Result<Next> {
    let Some(newest) = files.iter().max_by_key(|f| (f.max, f.level)) else {
        return Err(Error::new(Kind::Missing, "the replica holds no LTX file"));
    };
    if newest.max < at.txid {
        return Ok(Next::Behind(newest.id()));
    }
    let here = files.iter().filter(|f| f.max == at.txid).find_map(|f| f.attest_after);
    if here.is_some_and(|sum| sum != at.checksum) {
        let text = format!("TXID {} in the replica is of another history", at.txid.0);
        return Ok(Next::Rebuild(text));
    }
    if newest.max == at.txid {
        return Ok(Next::Nothing);
    }
    let base = FileInfo {
        attest_after: Some(at.checksum),
        ..FileInfo::listed(FileId { level: Level::SNAPSHOT, min: TxId(1), max: at.txid }, 0, at.time)
    };
    let mut steps: Vec<&FileInfo> = files.iter().filter(|f| f.min > TxId(1) && f.max > at.txid).collect();
    steps.sort_by_key(|f| f.min);
    Ok(match walk(&base, &steps, newest.max) {
        Some(way) => Next::Apply(way.into_iter().skip(1).collect()),
        None => Next::Rebuild(format!("no files lead from TXID {} to {}", at.txid.0, newest.max.0)),
    })
}

/// What came of a look at the whole replica.
#[derive(Clone, Debug)]
pub struct Look {
    /// What is to be done.
    pub next: Next,
    /// Newest TXID there.
    pub newest: TxId,
    /// Bytes of the files to apply.
    pub bytes: u64,
    manifest: Manifest,
}

/// Looks at all of the replica. A gap counts only if it is seen twice: files are merged away while a listing runs.
pub async fn look(store: &Store, at: &Place) -> Result<Look> {
    let mut seen = look_once(store, at).await?;
    if matches!(seen.next, Next::Rebuild(_)) {
        seen = look_once(store, at).await?;
    }
    if let Next::Behind(id) = seen.next {
        let header = super::inventory::read_header(store, id).await?;
        if header.lineage == at.lineage {
            return Err(Error::corrupt(format!(
                "the replica ends at TXID {}, before TXID {} that was applied here: its newest files are gone",
                id.max.0, at.txid.0
            )));
        }
        seen.next = Next::Rebuild(format!("the replica holds another history, up to TXID {}", id.max.0));
    }
    Ok(seen)
}

async fn look_once(store: &Store, at: &Place) -> Result<Look> {
    let (inventory, manifest) = Inventory::read_with_manifest(store).await?;
    let (next, newest) = (next(&inventory.files, at)?, inventory.newest());
    let bytes = match &next {
        Next::Apply(files) => files.iter().map(|f| f.bytes).sum(),
        _ => 0,
    };
    Ok(Look { next, newest, bytes, manifest })
}

/// One file of the replica on this machine, on its way into the follower's.
pub struct Incoming {
    id: FileId,
    bytes: u64,
    known: Option<ManifestEntry>,
    fetched: Fetched,
}

/// Fetches the level-0 file after `txid`, if it is there (I-FOL-5). A large one goes to `part` meanwhile.
pub async fn fetch_next(store: &Store, txid: TxId, part: PathBuf) -> Result<Option<Incoming>> {
    let id = FileId { level: Level::L0, min: txid.next(), max: txid.next() };
    let object = match store.head(&id.key(store.layout())).await {
        Ok(o) => o,
        Err(e) if e.is_missing() => return Ok(None),
        Err(e) => return Err(e),
    };
    let file = FileInfo::listed(id, object.size, object.modified);
    match Fetched::get(store, &file, part).await {
        Ok(fetched) => Ok(Some(Incoming { id, bytes: object.size, known: None, fetched })),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
    }
}

/// The files of a [`Look`], fetched ahead, in order.
pub struct Feed {
    ahead: Ahead,
    manifest: Manifest,
}

impl Feed {
    /// Large files go to `<part>.<n>` meanwhile.
    pub fn new(store: &Store, look: Look, part: PathBuf) -> Feed {
        let files = match look.next {
            Next::Apply(files) => files,
            _ => Vec::new(),
        };
        Feed { ahead: Ahead::beside(store, files, part, AHEAD), manifest: look.manifest }
    }

    /// The next one; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Incoming>> {
        let (file, fetched) = self.ahead.next().await?;
        let (id, known) = (file.id(), self.manifest.get(file.id()).copied());
        Some(fetched.map(|fetched| Incoming { id, bytes: file.bytes, known, fetched }))
    }
}

impl Incoming {
    /// The TXID it leads to.
    pub fn txid(&self) -> TxId {
        self.id.max
    }

    /// Size of the object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn decoder(&self) -> Result<Decoder<Box<dyn Read + '_>>> {
        let reader: Box<dyn Read + '_> = match &self.fetched {
            Fetched::Bytes(b) => Box::new(b.as_ref()),
            Fetched::File(part) => {
                let file = File::open(&part.0).map_err(|e| Error::io("open", &part.0, e))?;
                Box::new(std::io::BufReader::with_capacity(128 * 1024, file))
            }
        };
        Decoder::with_sha256(reader)
    }

    /// The first pass: proves the file, keeps the originals of what it changes, and tells the place it leads to.
    /// Errors with `Corrupt` and the file's name if it is damaged or of another history.
    pub fn judge(&self, at: &Place, disk: &mut dyn Disk) -> Result<Place> {
        self.judge_inner(at, disk).map_err(|e| if e.is_corrupt() { e.context(self.id) } else { e })
    }

    fn judge_inner(&self, at: &Place, disk: &mut dyn Disk) -> Result<Place> {
        let mut decoder = self.decoder()?;
        let header = decoder.header().clone();
        self.fits(&header, at)?;
        let size = header.page_size;
        let (mut page, mut old) = (vec![0; size.len()], vec![0; size.len()]);
        let mut out = Outgoing { at, disk, sum: at.checksum };
        let (mut source, mut grown, mut has_first) = (at.source, 0u32, false);
        while let Some(pgno) = decoder.next_page(&mut page)? {
            if pgno.get() <= at.pages {
                out.take(pgno, &mut old)?;
            } else {
                grown += 1;
            }
            if pgno == Pgno::ONE {
                has_first = true;
                source = header_of(&page)?;
            }
            out.sum = out.sum.toggle(page_checksum(pgno, &page));
        }
        if !has_first {
            // Its counter changes; what counts of it, for the checksum, does not.
            out.disk.read(Pgno::ONE, &mut old)?;
            out.disk.keep(Pgno::ONE, &old)?;
        }
        if grown < added_pages(at.pages, header.commit, size) {
            return Err(Error::corrupt(format!(
                "it grows the database from {} to {} pages without holding all of them",
                at.pages, header.commit
            )));
        }
        for pgno in data_pages(header.commit.saturating_add(1), at.pages, size) {
            out.take(pgno, &mut old)?;
        }
        let checksum = out.sum;
        agrees_with_manifest(&decoder.finish()?, self.known.as_ref())?;
        if let Some(attest) = header.attest
            && attest.after != checksum
        {
            return Err(Error::corrupt(format!(
                "the database after it has checksum {checksum}, not {} as the file attests: a file of another history",
                attest.after
            )));
        }
        Ok(Place {
            txid: header.max,
            time: header.timestamp,
            lineage: header.lineage,
            checksum,
            page_size: size,
            pages: header.commit,
            counter: fresh_counter(at.counter),
            cookie_shift: at.cookie_shift,
            source,
        })
    }

    /// Whether a file with this header may come after `at`.
    fn fits(&self, header: &Header, at: &Place) -> Result<()> {
        if header.file_name() != self.id.name() {
            let text = format!("its header says {}: a renamed or swapped file", header.file_name());
            return Err(Error::corrupt(text));
        }
        if header.page_size != at.page_size {
            let (was, is) = (at.page_size.get(), header.page_size.get());
            return Err(Error::corrupt(format!("page size {is} after {was}: a file of another history")));
        }
        if header.commit == 0 {
            return Err(Error::corrupt("it leaves a database without a page"));
        }
        if header.min > at.txid.next() || header.max <= at.txid {
            return Err(Error::corrupt(format!("it does not continue TXID {}", at.txid)));
        }
        match header.attest {
            Some(a)
                if header.min == at.txid.next()
                    && a.before != DbChecksum::EMPTY
                    && a.before != at.checksum =>
            {
                Err(Error::corrupt(format!(
                    "it continues a database with checksum {}, not {}: a file of another history",
                    a.before, at.checksum
                )))
            }
            _ => Ok(()),
        }
    }

    /// The second pass: writes what the first has proved. `to` is what that gave.
    pub fn write(&self, to: &Place, disk: &mut dyn Disk) -> Result<()> {
        let mut decoder = self.decoder()?;
        let mut page = vec![0; to.page_size.len()];
        let mut has_first = false;
        while let Some(pgno) = decoder.next_page(&mut page)? {
            if pgno == Pgno::ONE {
                has_first = true;
                to.localize(&mut page);
            }
            disk.write(pgno, &page)?;
        }
        if !has_first {
            disk.read(Pgno::ONE, &mut page)?;
            to.localize(&mut page);
            disk.write(Pgno::ONE, &page)?;
        }
        disk.resize(to.pages)
    }
}

/// Takes pages off the checksum, keeping them.
struct Outgoing<'a> {
    at: &'a Place,
    disk: &'a mut dyn Disk,
    sum: DbChecksum,
}

impl Outgoing<'_> {
    fn take(&mut self, pgno: Pgno, old: &mut [u8]) -> Result<()> {
        self.disk.read(pgno, old)?;
        self.disk.keep(pgno, old)?;
        if pgno == Pgno::ONE {
            self.at.original(old);
        }
        self.sum = self.sum.toggle(page_checksum(pgno, old));
        Ok(())
    }
}

/// A restored database beside the follower's file, to take its place (I-FOL-4). The file is removed when this is dropped.
pub struct Image {
    path: PathBuf,
    file: File,
    place: Place,
    /// Bit per page: differs.
    differs: Vec<u64>,
}

impl Image {
    /// Takes over what was restored to `path`, which nobody else has open.
    /// Errors with `Config` if the database is encrypted: its header cannot be changed then.
    pub fn open(path: &Path, restored: &Restored) -> Result<Image> {
        let io = |e| Error::io("read", path, e);
        let mut file = File::options().read(true).write(true).open(path).map_err(io)?;
        let mut page = vec![0; restored.page_size.len()];
        file.read_exact(&mut page).map_err(io)?;
        let place = Place {
            txid: restored.txid,
            time: restored.time,
            lineage: restored.lineage,
            checksum: restored.checksum,
            page_size: restored.page_size,
            pages: restored.pages,
            counter: fresh_counter(0),
            cookie_shift: 0,
            source: header_of(&page)?,
        };
        Ok(Image { path: path.to_path_buf(), file, place, differs: Vec::new() })
    }

    /// The place it holds.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Makes of it a follower's file that can be put where none is.
    pub fn localize(&mut self) -> Result<()> {
        use std::io::Write;
        let io = |e| Error::io("write", &self.path, e);
        let header = self.place.header();
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.sync_all())
            .map_err(io)
    }

    /// The first pass over a follower's file of the same page size, now with `header` and `pages`: keeps what differs.
    pub fn compare(&mut self, header: &[u8; 100], pages: u32, disk: &mut dyn Disk) -> Result<()> {
        self.shift(header, pages);
        let size = self.place.page_size;
        let (mut page, mut old) = (vec![0; size.len()], vec![0; size.len()]);
        for pgno in data_pages(1, pages.max(self.place.pages), size) {
            let has_new = pgno.get() <= self.place.pages;
            let has_old = pgno.get() <= pages;
            if has_old {
                disk.read(pgno, &mut old)?;
            }
            if has_new {
                self.page(pgno, &mut page)?;
            }
            let differs = pgno == Pgno::ONE || !has_old || !has_new || page != old;
            if differs && has_old {
                disk.keep(pgno, &old)?;
            }
            if differs && has_new {
                self.mark(pgno);
            }
        }
        Ok(())
    }

    /// The first pass over a file of another page size, whose originals were kept: everything is new.
    pub fn replaces_all(&mut self, header: &[u8; 100]) {
        self.shift(header, 1);
        for pgno in data_pages(1, self.place.pages, self.place.page_size) {
            self.mark(pgno);
        }
    }

    /// Counter and schema cookie that no reader of the old content has seen.
    fn shift(&mut self, header: &[u8; 100], pages: u32) {
        if pages > 0 {
            self.place.counter = fresh_counter(record::word(header, record::COUNTER));
            self.place.cookie_shift = (clock::random_u64() & 0x7fff_ffff) as u32 | 1;
        }
    }

    /// The second pass.
    pub fn write(&mut self, disk: &mut dyn Disk) -> Result<()> {
        let mut page = vec![0; self.place.page_size.len()];
        for pgno in data_pages(1, self.place.pages, self.place.page_size) {
            let n = pgno.get() as usize;
            if self.differs.get(n / 64).is_some_and(|w| w & (1 << (n % 64)) != 0) {
                self.page(pgno, &mut page)?;
                if pgno == Pgno::ONE {
                    self.place.localize(&mut page);
                }
                disk.write(pgno, &page)?;
            }
        }
        disk.resize(self.place.pages)
    }

    fn page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(pgno.offset(self.place.page_size)))
            .and_then(|_| self.file.read_exact(page))
            .map_err(|e| Error::io("read", &self.path, e))
    }

    fn mark(&mut self, pgno: Pgno) {
        let n = pgno.get() as usize;
        if self.differs.len() <= n / 64 {
            self.differs.resize(n / 64 + 1, 0);
        }
        if let Some(w) = self.differs.get_mut(n / 64) {
            *w |= 1 << (n % 64);
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Pages from `first` to `last` but the lock page.
fn data_pages(first: u32, last: u32, size: PageSize) -> impl Iterator<Item = Pgno> {
    (first..=last).filter_map(Pgno::new).filter(move |p| *p != size.lock_page())
}

/// A counter after `counter`, at a distance that somebody else's increments do not meet.
fn fresh_counter(counter: u32) -> u32 {
    counter.wrapping_add(2).wrapping_add((clock::random_u64() & 0xffff) as u32)
}

/// The first 100 bytes of the source's page 1.
fn header_of(page: &[u8]) -> Result<[u8; 100]> {
    match page.first_chunk::<100>() {
        Some(h) if h.starts_with(MAGIC) => Ok(*h),
        _ => Err(Error::config(
            "the source is encrypted, or no SQLite database: walrust_replicate cannot keep a file that others read; \
             use walrust_restore",
        )),
    }
}

#[cfg(test)]
mod tests;
