//! The strict reader (I-LTX-3).

use super::checksum::{Crc, page_checksum};
use super::frame::{PAGE_HEADER_LEN, Stored, page_header, read_payload};
use super::header::{HEADER_LEN, Header, Tracking};
use super::index::{ExpectedIndex, IndexEntry};
use super::sequence::{Sequence, Shape};
use super::source::Source;
use crate::base::{DbChecksum, Error, Kind, Pgno, Result};
use sha2::{Digest, Sha256};
use std::io::Read;

/// What stands at the end of a file, proved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// LTX's own database checksum after the file; `None` in files that track none (ours, Litestream's).
    pub post_apply: Option<DbChecksum>,
    /// The file checksum.
    pub checksum: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Number of pages in it.
    pub pages: u32,
    /// SHA-256 of the file, if the decoder was made to compute it.
    pub sha256: Option<[u8; 32]>,
}

/// Reads one LTX file: header at once, pages one by one, the rest in [`Decoder::finish`]. Nothing read is
/// to be trusted before that.
///
/// LZ4 payloads are covered by the file checksum only as what they unpack to. A damaged payload that
/// unpacks to the same page passes here; SHA-256 tells it apart.
pub struct Decoder<R> {
    source: Source<R>,
    header: Header,
    sequence: Sequence,
    crc: Crc,
    index: ExpectedIndex,
    /// Of the pages so far, ours and LTX's own: in snapshots that say what one of them must be in the end.
    database: Option<(DbChecksum, DbChecksum)>,
    scratch: Vec<u8>,
    stored: Stored,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Pages,
    PagesDone,
    Failed,
}

impl<R: Read> Decoder<R> {
    /// Reads the header. Errors: `Kind::Corrupt` for bytes that are no LTX file, `Kind::Io` for a failing
    /// reader, or the crate error that the reader carries in its `io::Error`.
    pub fn new(reader: R) -> Result<Decoder<R>> {
        Decoder::open(Source::new(reader, None), Shape::Whole)
    }

    /// As [`Decoder::new`], computing SHA-256 of the file on the way.
    pub fn with_sha256(reader: R) -> Result<Decoder<R>> {
        Decoder::open(Source::new(reader, Some(Sha256::new())), Shape::Whole)
    }

    /// Reads what [`super::Encoder::piece`] wrote.
    pub fn piece(reader: R) -> Result<Decoder<R>> {
        Decoder::open(Source::new(reader, None), Shape::Piece)
    }

    pub(super) fn with_shape(reader: R, shape: Shape) -> Result<Decoder<R>> {
        Decoder::open(Source::new(reader, None), shape)
    }

    fn open(mut source: Source<R>, shape: Shape) -> Result<Decoder<R>> {
        let bytes: [u8; HEADER_LEN] = source.array("its header")?;
        let header = Header::decode(&bytes)?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        let sequence = Sequence::new(&header, shape);
        let known = header.attest.is_some() || header.tracking == Tracking::Checksummed;
        let database = (sequence.is_snapshot() && known).then_some((DbChecksum::EMPTY, DbChecksum::EMPTY));
        let (index, scratch) = (ExpectedIndex::default(), Vec::new());
        let (stored, state) = (Stored::Otherwise, State::Pages);
        Ok(Decoder { source, header, sequence, crc, index, database, scratch, stored, state })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page`, which is one page long; `None` after the last. After an error only
    /// errors follow.
    pub fn next_page(&mut self, page: &mut [u8]) -> Result<Option<Pgno>> {
        match self.state {
            State::PagesDone => return Ok(None),
            State::Failed => return Err(Error::corrupt("this LTX file was found damaged before")),
            State::Pages if page.len() != self.header.page_size.len() => {
                return Err(Error::new(Kind::Bug, "a page buffer is not one page long"));
            }
            State::Pages => {}
        }
        self.state = State::Failed;
        let next = self.read_page(page)?;
        self.state = if next.is_some() { State::Pages } else { State::PagesDone };
        Ok(next)
    }

    /// Where in the file that ends which was read so far: the frame of the page last returned ends there.
    pub fn offset(&self) -> u64 {
        self.source.taken()
    }

    /// Whether the page last returned was stored as an LZ4 block, which tells its own length ([`super::frame_head`]).
    pub fn is_block(&self) -> bool {
        matches!(self.stored, Stored::Block(_))
    }

    /// The LZ4 block that the page last returned was stored as, if it was.
    pub(super) fn block(&self) -> Option<&[u8]> {
        match self.stored {
            Stored::Block(n) => self.source.recent(n),
            Stored::Otherwise => None,
        }
    }

    fn read_page(&mut self, page: &mut [u8]) -> Result<Option<Pgno>> {
        let offset = self.source.taken();
        let head: [u8; PAGE_HEADER_LEN] = self.source.array("its pages")?;
        self.crc.update(&head);
        let Some((pgno, form)) = page_header(head)? else {
            self.sequence.end().map_err(Error::corrupt)?;
            return Ok(None);
        };
        self.sequence.accept(pgno).map_err(Error::corrupt)?;
        let (source, crc) = (&mut self.source, &mut self.crc);
        let size = self.header.page_size;
        self.stored = read_payload(source, form, page, size, &mut self.scratch, |b| crc.update(b))
            .map_err(|e| e.context(format!("page {pgno}")))?;
        crc.update(page);
        if let Some((ours, ltx)) = &mut self.database {
            let sum = page_checksum(pgno, page);
            (*ours, *ltx) = (ours.toggle(sum), ltx.roll(sum));
        }
        let len = u32::try_from(self.source.taken() - offset).unwrap_or(u32::MAX);
        self.index.add(&IndexEntry { pgno, offset, len });
        Ok(Some(pgno))
    }

    /// Reads what is left and proves the file: pages, index, file checksum, database checksum where one is
    /// claimed for a snapshot, and that nothing follows. Errors as [`Decoder::new`].
    pub fn finish(mut self) -> Result<Trailer> {
        let mut page = vec![0; self.header.page_size.len()];
        while self.next_page(&mut page)?.is_some() {}

        self.check_index()?;
        let post: [u8; 8] = self.source.array("its trailer")?;
        self.crc.update(&post);
        let post = u64::from_be_bytes(post);
        let checksum = u64::from_be_bytes(self.source.array("its trailer")?);
        let post_apply = judge_trailer(&self.header, post, checksum, self.crc.flagged(), self.database)?;
        if !self.source.is_at_end()? {
            return Err(Error::corrupt("bytes follow the end of the file"));
        }
        Ok(Trailer {
            post_apply,
            checksum,
            bytes: self.source.taken(),
            pages: self.sequence.pages(),
            sha256: self.source.sha256(),
        })
    }

    /// The index must be the one that the pages seen imply. Streamed: neither index is held.
    fn check_index(&mut self) -> Result<()> {
        let (expected, expected_crc) = std::mem::take(&mut self.index).end();
        let mut seen = Crc::new();
        let mut left = expected;
        while left > 0 {
            let n = left.min(4096) as usize;
            let bytes = self.source.take(n, "its page index")?;
            seen.update(bytes);
            self.crc.update(bytes);
            left -= n as u64;
        }
        let size: [u8; 8] = self.source.array("its page index")?;
        self.crc.update(&size);
        if seen.flagged() != expected_crc || u64::from_be_bytes(size) != expected {
            return Err(Error::corrupt("the page index does not agree with the pages"));
        }
        Ok(())
    }
}

/// Holds what stands at the end of a file, `post` and `checksum`, against what its bytes gave: the file checksum, and `database`, the
/// checksums of a snapshot's pages, ours and LTX's own. Gives LTX's own one. Errors with `Kind::Corrupt`.
pub(super) fn judge_trailer(
    header: &Header,
    post: u64,
    checksum: u64,
    computed: u64,
    database: Option<(DbChecksum, DbChecksum)>,
) -> Result<Option<DbChecksum>> {
    if checksum != computed {
        return Err(Error::corrupt(format!(
            "file checksum is {computed:016x}, not {checksum:016x} as stored"
        )));
    }
    let post_apply = match (header.tracking, post) {
        (Tracking::NoChecksum, 0) => None,
        (Tracking::Checksummed, c) if c & DbChecksum::FLAG != 0 => Some(DbChecksum(c)),
        _ => {
            return Err(Error::corrupt("the post-apply checksum does not agree with the header's flags"));
        }
    };
    if let Some((ours, ltx)) = database {
        for (claimed, found) in [(post_apply, ltx), (header.attest.map(|a| a.after), ours)] {
            if let Some(claimed) = claimed.filter(|c| *c != found) {
                return Err(Error::corrupt(format!(
                    "the snapshot's pages have database checksum {found}, not {claimed} as stored"
                )));
            }
        }
    }
    Ok(post_apply)
}

/// A file found good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// Number of pages in it.
    pub pages: u32,
    /// SHA-256 of it.
    pub sha256: [u8; 32],
}

/// Reads a whole file and proves it. Errors as [`Decoder`].
pub fn verify<R: Read>(reader: R) -> Result<Verified> {
    let decoder = Decoder::with_sha256(reader)?;
    let header = decoder.header().clone();
    let trailer = decoder.finish()?;
    let sha256 = trailer.sha256.unwrap_or_default();
    Ok(Verified { header, pages: trailer.pages, sha256, trailer })
}
