//! Writing LTX files over a database file that is being rebuilt, with every page accounted for.
//!
//! Rules
//! * I-APP-1 The database checksum is carried along page by page (the page that goes out is read back and taken off,
//!   the page that comes in is added), so after each file the content itself, not what headers say of one another,
//!   is held against what the file attests. A file of another history is found here even if its header was made to fit.
//! * I-APP-2 A file that grows the database holds all pages it adds; one that shrinks it takes the rest away at once,
//!   so no page of an earlier size comes back (Litestream's merge lets it).
//! * I-APP-3 Nothing here is proved before the last file's `apply` returned: the file written to is a temporary one.
//!
//! A small file is applied by one thread ([`Applier::apply`]). The pages of a large one are put in place by several, in any order
//! ([`Applier::placing`], [`super::large`]): each page stands once in a file, and which page it takes the place of is that of the state
//! before it, so the order makes no difference. Does blocking file I/O. After an error the file is to be thrown away. Refused: keeping a
//! page checksum per page in memory (8 bytes a page is 2 GB for a database of 1 TB); the old page is in the page cache anyway.

use super::large::{Done, Work};
use super::layout::FileId;
use super::manifest::ManifestEntry;
use crate::base::{DbChecksum, Error, Kind, PageSize, Pgno, Result, TxId, manners, thread};
use crate::ltx::{Batch, Decoder, Header, Sink, Trailer, page_checksum};
use crate::store::hex;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Neighbouring pages are written together up to this many bytes.
const RUN: usize = 256 * 1024;
/// A file of more bytes is read back by two threads.
const SHARED_READ: u64 = 16 * 1024 * 1024;

/// A database file being rebuilt.
#[derive(Debug)]
pub struct Applier {
    out: Out,
    state: State,
}

/// The file that is written. Cheap to clone.
#[derive(Clone, Debug)]
struct Out {
    file: Arc<File>,
    path: Arc<Path>,
}

/// The state reached so far.
#[derive(Clone, Copy, Debug)]
struct State {
    page_size: Option<PageSize>,
    commit: u32,
    txid: TxId,
    sum: DbChecksum,
}

/// What one applied file was.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its header.
    pub header: Header,
    /// Its proved trailer.
    pub trailer: Trailer,
    /// Database checksum after it, computed from the content.
    pub sum: DbChecksum,
}

impl Applier {
    /// Starts with a new, empty file. Errors with `Io` if `path` exists.
    pub fn create(path: &Path) -> Result<Applier> {
        let file = manners::create_private(path).map_err(|e| Error::io("create", path, e))?;
        // (Where a file system has no locks, nobody is kept away from it, and it is not taken up either.)
        drop(file.try_lock());
        let state = State { page_size: None, commit: 0, txid: TxId::ZERO, sum: DbChecksum::EMPTY };
        Ok(Applier { out: Out { file: Arc::new(file), path: path.into() }, state })
    }

    /// One whose content is there: the state after the file of `header`, with that checksum. That it is, [`Applier::read_back`] says.
    pub(super) fn of_content(file: Arc<File>, path: &Path, header: &Header, sum: DbChecksum) -> Applier {
        let page_size = Some(header.page_size);
        let state = State { page_size, commit: header.commit, txid: header.max, sum };
        Applier { out: Out { file, path: path.into() }, state }
    }

    /// The TXID reached.
    pub fn txid(&self) -> TxId {
        self.state.txid
    }

    /// The checksum of the content reached.
    pub fn sum(&self) -> DbChecksum {
        self.state.sum
    }

    /// Applies one file. `known` is what the manifest says of it.
    ///
    /// Errors: `Corrupt` with the file's name if it is damaged, not the one the manifest names, of another history or does
    /// not fit here; `Io` on trouble with the file being written.
    pub fn apply<R: Read>(
        &mut self,
        id: FileId,
        reader: R,
        known: Option<&ManifestEntry>,
    ) -> Result<Applied> {
        self.apply_inner(id, reader, known).map_err(|e| e.context(id))
    }

    fn apply_inner<R: Read>(
        &mut self,
        id: FileId,
        reader: R,
        known: Option<&ManifestEntry>,
    ) -> Result<Applied> {
        let mut decoder = Decoder::with_sha256(reader)?;
        let header = decoder.header().clone();
        self.state.fits(id, &header)?;
        let size = header.page_size;
        let mut page = vec![0; size.len()];
        let mut places = Places::new(&self.out, self.state.commit, size);
        let mut placed = 0;
        while let Some(pgno) = decoder.next_page(&mut page)? {
            placed ^= DbChecksum::scramble(page_checksum(pgno, &page));
            places.place(pgno)?.copy_from_slice(&page);
            places.placed(pgno)?;
        }
        let (replaced, grown) = places.finish()?;
        self.end(&header, placed ^ replaced, grown)?;
        let trailer = decoder.finish()?;
        self.accept(header, trailer, known)
    }

    /// Puts the pages of the next file in place, for [`super::large::Large`]; then [`Applier::placed`].
    pub fn placing(&self, id: FileId) -> Placing {
        Placing { out: self.out.clone(), id, before: self.state }
    }

    /// All pages of a file were put in place by [`Applier::placing`], and the file was proved. Errors as [`Applier::apply`].
    pub fn placed(
        &mut self,
        id: FileId,
        (header, trailer, done): (Header, Trailer, Done),
        known: Option<&ManifestEntry>,
    ) -> Result<Applied> {
        self.end(&header, done.unpacked.scrambled ^ done.replaced, done.grown)
            .and_then(|()| self.accept(header, trailer, known))
            .map_err(|e| e.context(id))
    }

    /// The pages of a file are in place: takes away those that it cuts off. `changed` is what they made of the checksum, and `grown` the
    /// number of those that took no other's place.
    fn end(&mut self, header: &Header, changed: u64, grown: u32) -> Result<()> {
        let (before, size) = (self.state, header.page_size);
        let mut sum = before.sum.toggle_all(changed);
        if grown < added_pages(before.commit, header.commit, size) {
            return Err(Error::corrupt(format!(
                "it grows the database from {} to {} pages without holding all of them",
                before.commit, header.commit
            )));
        }
        let mut old = vec![0; size.len()];
        for n in header.commit.saturating_add(1)..=before.commit {
            if let Some(pgno) = Pgno::new(n).filter(|p| *p != size.lock_page()) {
                self.out.read(pgno.offset(size), &mut old)?;
                sum = sum.toggle(page_checksum(pgno, &old));
            }
        }
        let bytes = u64::from(header.commit) * u64::from(size.get());
        self.out.file.set_len(bytes).map_err(|e| Error::io("resize", &self.out.path, e))?;
        self.state.sum = sum;
        Ok(())
    }

    /// The file was proved: holds it against the manifest and the content against what it attests.
    fn accept(&mut self, header: Header, trailer: Trailer, known: Option<&ManifestEntry>) -> Result<Applied> {
        let sum = self.state.sum;
        agrees_with_manifest(&trailer, known)?;
        if let Some(attest) = header.attest
            && attest.after != sum
        {
            return Err(Error::corrupt(format!(
                "the database after it has checksum {sum}, not {} as the file attests: a file of another history",
                attest.after
            )));
        }
        let page_size = Some(header.page_size);
        self.state = State { page_size, commit: header.commit, txid: header.max, sum };
        Ok(Applied { header, trailer, sum })
    }

    /// Makes the file durable.
    pub fn sync(&self) -> Result<()> {
        self.out.file.sync_all().map_err(|e| Error::io("sync", &self.out.path, e))
    }

    /// Proves the file once more by reading it back: what was written is what was meant. Gives its checksum. Errors with `Io`.
    pub fn read_back(&self) -> Result<DbChecksum> {
        let State { page_size, commit, sum, .. } = self.state;
        let Some(size) = page_size else { return Err(Error::corrupt("nothing was restored")) };
        let (pages, seen) = checksum_of(&self.out.file, &self.out.path, size)?;
        if (pages, seen) != (commit, sum) {
            return Err(Error::new(
                Kind::Io,
                format!("{} reads back with checksum {seen}, not {sum} as written", self.out.path.display()),
            ));
        }
        Ok(seen)
    }
}

impl State {
    /// Whether a file with this header may come next.
    fn fits(&self, id: FileId, header: &Header) -> Result<()> {
        if header.file_name() != id.name() {
            return Err(Error::corrupt(format!(
                "its header says {}: a renamed or swapped file",
                header.file_name()
            )));
        }
        let s = self;
        match s.page_size {
            None if !header.is_snapshot() => {
                return Err(Error::corrupt("a restore cannot start with a file that is no full copy"));
            }
            Some(size) if size != header.page_size => {
                let (was, is) = (size.get(), header.page_size.get());
                return Err(Error::corrupt(format!("page size {is} after {was}: a file of another history")));
            }
            _ => {}
        }
        if header.min > s.txid.next() || header.max <= s.txid {
            return Err(Error::corrupt(format!("it does not continue TXID {}", s.txid)));
        }
        let whole = |c: DbChecksum| c == DbChecksum::EMPTY;
        match header.attest {
            Some(a) if header.min == s.txid.next() && !whole(a.before) && a.before != s.sum => {
                Err(Error::corrupt(format!(
                    "it continues a database with checksum {}, not {}: a file of another history",
                    a.before, s.sum
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Out {
    fn read(&self, offset: u64, page: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(page, offset).map_err(|e| Error::io("read", &self.path, e))
    }
}

/// The pages of one file on their way to their places.
pub struct Placing {
    out: Out,
    id: FileId,
    before: State,
}

impl Work for Placing {
    fn begins(&self, header: &Header) -> Result<()> {
        self.before.fits(self.id, header)
    }

    fn unpack(&self, batch: &Batch) -> Result<Done> {
        let mut places = Places::new(&self.out, self.before.commit, batch.page_size());
        let unpacked = batch.unpack(&mut places)?;
        let (replaced, grown) = places.finish()?;
        Ok(Done { unpacked, replaced, grown })
    }
}

/// Where pages go that come one after the other: neighbours are written together.
struct Places<'a> {
    out: &'a Out,
    /// Pages of the database before.
    before: u32,
    size: PageSize,
    run: Vec<u8>,
    run_at: u64,
    filled: usize,
    old: Vec<u8>,
    replaced: u64,
    grown: u32,
}

impl<'a> Places<'a> {
    fn new(out: &'a Out, before: u32, size: PageSize) -> Places<'a> {
        let (run, old) = (vec![0; RUN.max(size.len())], vec![0; size.len()]);
        Places { out, before, size, run, run_at: 0, filled: 0, old, replaced: 0, grown: 0 }
    }

    fn flush(&mut self) -> Result<()> {
        let full = self.run.get(..self.filled).unwrap_or_default();
        self.out.file.write_all_at(full, self.run_at).map_err(|e| Error::io("write", &self.out.path, e))?;
        self.filled = 0;
        Ok(())
    }

    /// Everything is written. What went out of the checksum, and how many pages took no other's place.
    fn finish(mut self) -> Result<(u64, u32)> {
        self.flush()?;
        Ok((self.replaced, self.grown))
    }
}

impl Sink for Places<'_> {
    fn place(&mut self, pgno: Pgno) -> Result<&mut [u8]> {
        let offset = pgno.offset(self.size);
        if self.run_at + self.filled as u64 != offset || self.filled + self.size.len() > self.run.len() {
            self.flush()?;
            self.run_at = offset;
        }
        if pgno.get() <= self.before {
            self.out.read(offset, &mut self.old)?;
            self.replaced ^= DbChecksum::scramble(page_checksum(pgno, &self.old));
        } else {
            self.grown += 1;
        }
        let end = self.filled + self.size.len();
        self.run.get_mut(self.filled..end).ok_or_else(|| Error::new(Kind::Bug, "a page has no place"))
    }

    fn placed(&mut self, _: Pgno) -> Result<()> {
        self.filled += self.size.len();
        Ok(())
    }
}

/// Pages in (`from`, `to`] without the lock page.
pub(super) fn added_pages(from: u32, to: u32, size: PageSize) -> u32 {
    let lock = size.lock_page().get();
    to.saturating_sub(from) - u32::from(from < lock && lock <= to)
}

pub(super) fn agrees_with_manifest(trailer: &Trailer, known: Option<&ManifestEntry>) -> Result<()> {
    let Some(known) = known else { return Ok(()) };
    // (Each chunk of it was proved as it was opened; what the manifest says is of the object as it is stored.)
    if known.is_sealed() {
        return Ok(());
    }
    if trailer.checksum != known.crc || trailer.bytes != known.bytes {
        return Err(Error::corrupt(format!(
            "checksum mismatch: {:016x} in {} bytes, the manifest says {:016x} in {}",
            trailer.checksum, trailer.bytes, known.crc, known.bytes
        )));
    }
    match trailer.sha256 {
        Some(sha) if sha != known.sha256 => Err(Error::corrupt(format!(
            "checksum mismatch: SHA-256 is {}, the manifest says {}",
            hex(&sha),
            hex(&known.sha256)
        ))),
        _ => Ok(()),
    }
}

/// Size in pages and database checksum of a database file at rest. Reads all of it, in bounded memory. Not for a database that
/// this process has open: closing the file drops SQLite's locks
/// (<https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).
pub fn checksum_of_file(path: &Path, size: PageSize) -> Result<(u32, DbChecksum)> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    checksum_of(&file, path, size)
}

/// The same of an open file; a large one is read by two threads.
fn checksum_of(file: &File, path: &Path, size: PageSize) -> Result<(u32, DbChecksum)> {
    let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let pages = u32::try_from(bytes / u64::from(size.get())).unwrap_or(u32::MAX);
    let part = |pages: Range<u32>| checksum_of_pages(file, path, size, pages);
    let middle = if bytes > SHARED_READ { pages / 2 } else { pages };
    let (first, second) = std::thread::scope(|s| {
        let second = match middle < pages {
            true => thread::spawn_scoped(s, "walrust-prove", || part(middle..pages)).ok(),
            false => None,
        };
        let first = part(0..middle);
        (
            first,
            second.map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a panic while reading")))),
        )
    });
    // (Where the system refuses another thread, this one reads all.)
    let second = second.unwrap_or_else(|| part(middle..pages))?;
    Ok((pages, DbChecksum::EMPTY.toggle_all(first? ^ second)))
}

/// XOR of [`DbChecksum::scramble`] of the pages behind `after.start`, up to `after.end`.
fn checksum_of_pages(file: &File, path: &Path, size: PageSize, after: Range<u32>) -> Result<u64> {
    let mut sum = 0;
    let mut buffer = vec![0; RUN.max(size.len())];
    let mut n = after.start;
    while n < after.end {
        let count = (buffer.len() / size.len()).min((after.end - n) as usize);
        let part = buffer.get_mut(..count * size.len()).unwrap_or_default();
        file.read_exact_at(part, u64::from(n) * u64::from(size.get()))
            .map_err(|e| Error::io("read", path, e))?;
        for page in part.chunks_exact(size.len()) {
            n += 1;
            if let Some(pgno) = Pgno::new(n).filter(|p| *p != size.lock_page()) {
                sum ^= DbChecksum::scramble(page_checksum(pgno, page));
            }
        }
    }
    Ok(sum)
}
