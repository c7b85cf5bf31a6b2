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
//! For one thread; does blocking file I/O. After an error the file is to be thrown away. Refused: keeping a page checksum
//! per page in memory (8 bytes a page is 2 GB for a database of 1 TB); the old page is in the page cache anyway.

use super::layout::FileId;
use super::manifest::ManifestEntry;
use crate::base::{DbChecksum, Error, PageSize, Pgno, Result, TxId, manners};
use crate::ltx::{Decoder, Header, Trailer, page_checksum};
use crate::store::hex;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Neighbouring pages are written together up to this many bytes.
const RUN: usize = 256 * 1024;

/// A database file being rebuilt.
#[derive(Debug)]
pub struct Applier {
    file: File,
    path: PathBuf,
    state: State,
    run: Vec<u8>,
    run_at: u64,
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
        let state = State { page_size: None, commit: 0, txid: TxId::ZERO, sum: DbChecksum::EMPTY };
        Ok(Applier { file, path: path.to_path_buf(), state, run: Vec::new(), run_at: 0 })
    }

    /// Goes on with a file that holds the database as it was after `txid`.
    pub fn resume(path: &Path, page_size: PageSize, txid: TxId) -> Result<Applier> {
        let (commit, sum) = checksum_of_file(path, page_size)?;
        let file =
            File::options().read(true).write(true).open(path).map_err(|e| Error::io("open", path, e))?;
        let state = State { page_size: Some(page_size), commit, txid, sum };
        Ok(Applier { file, path: path.to_path_buf(), state, run: Vec::new(), run_at: 0 })
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
        self.fits(id, &header)?;
        let before = self.state;
        let (size, mut sum, mut grown) = (header.page_size, before.sum, 0u32);
        let (mut page, mut old) = (vec![0; size.len()], vec![0; size.len()]);
        while let Some(pgno) = decoder.next_page(&mut page)? {
            if pgno.get() <= before.commit {
                self.read_page(pgno, size, &mut old)?;
                sum = sum.toggle(page_checksum(pgno, &old));
            } else {
                grown += 1;
            }
            sum = sum.toggle(page_checksum(pgno, &page));
            self.write_page(pgno, size, &page)?;
        }
        self.flush_run()?;
        if grown < added_pages(before.commit, header.commit, size) {
            return Err(Error::corrupt(format!(
                "it grows the database from {} to {} pages without holding all of them",
                before.commit, header.commit
            )));
        }
        for n in header.commit.saturating_add(1)..=before.commit {
            if let Some(pgno) = Pgno::new(n).filter(|p| *p != size.lock_page()) {
                self.read_page(pgno, size, &mut old)?;
                sum = sum.toggle(page_checksum(pgno, &old));
            }
        }
        let bytes = u64::from(header.commit) * u64::from(size.get());
        self.file.set_len(bytes).map_err(|e| Error::io("resize", &self.path, e))?;
        let trailer = decoder.finish()?;
        agrees_with_manifest(&trailer, known)?;
        if let Some(attest) = header.attest
            && attest.after != sum
        {
            return Err(Error::corrupt(format!(
                "the database after it has checksum {sum}, not {} as the file attests: a file of another history",
                attest.after
            )));
        }
        self.state = State { page_size: Some(size), commit: header.commit, txid: header.max, sum };
        Ok(Applied { header, trailer, sum })
    }

    /// Whether a file with this header may come next.
    fn fits(&self, id: FileId, header: &Header) -> Result<()> {
        if header.file_name() != id.name() {
            return Err(Error::corrupt(format!(
                "its header says {}: a renamed or swapped file",
                header.file_name()
            )));
        }
        let s = &self.state;
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

    fn read_page(&mut self, pgno: Pgno, size: PageSize, page: &mut [u8]) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(pgno.offset(size)))
            .and_then(|_| self.file.read_exact(page))
            .map_err(|e| Error::io("read", &self.path, e))
    }

    fn write_page(&mut self, pgno: Pgno, size: PageSize, page: &[u8]) -> Result<()> {
        let offset = pgno.offset(size);
        if self.run_at + self.run.len() as u64 != offset || self.run.len() >= RUN {
            self.flush_run()?;
            self.run_at = offset;
        }
        self.run.extend_from_slice(page);
        Ok(())
    }

    fn flush_run(&mut self) -> Result<()> {
        if !self.run.is_empty() {
            self.file
                .seek(SeekFrom::Start(self.run_at))
                .and_then(|_| self.file.write_all(&self.run))
                .map_err(|e| Error::io("write", &self.path, e))?;
            self.run.clear();
        }
        Ok(())
    }

    /// Makes the file durable and proves it once more by reading it back: what was written is what was meant.
    /// Gives its checksum.
    pub fn finish(self) -> Result<DbChecksum> {
        let State { page_size, commit, sum, .. } = self.state;
        let Some(size) = page_size else { return Err(Error::corrupt("nothing was restored")) };
        self.file.sync_all().map_err(|e| Error::io("sync", &self.path, e))?;
        let (pages, seen) = checksum_of_file(&self.path, size)?;
        if (pages, seen) != (commit, sum) {
            return Err(Error::new(
                crate::base::Kind::Io,
                format!("{} reads back with checksum {seen}, not {sum} as written", self.path.display()),
            ));
        }
        Ok(seen)
    }
}

/// Pages in (`from`, `to`] without the lock page.
pub(super) fn added_pages(from: u32, to: u32, size: PageSize) -> u32 {
    let lock = size.lock_page().get();
    to.saturating_sub(from) - u32::from(from < lock && lock <= to)
}

pub(super) fn agrees_with_manifest(trailer: &Trailer, known: Option<&ManifestEntry>) -> Result<()> {
    let Some(known) = known else { return Ok(()) };
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
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let pages = u32::try_from(bytes / u64::from(size.get())).unwrap_or(u32::MAX);
    let mut sum = DbChecksum::EMPTY;
    let mut buffer = vec![0; RUN.max(size.len())];
    let mut n = 0u32;
    while n < pages {
        let count = (buffer.len() / size.len()).min((pages - n) as usize);
        let part = buffer.get_mut(..count * size.len()).unwrap_or_default();
        file.read_exact(part).map_err(|e| Error::io("read", path, e))?;
        for page in part.chunks_exact(size.len()) {
            n += 1;
            if let Some(pgno) = Pgno::new(n).filter(|p| *p != size.lock_page()) {
                sum = sum.toggle(page_checksum(pgno, page));
            }
        }
    }
    Ok((pages, sum))
}
