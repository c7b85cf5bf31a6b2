//! The writer.

use super::checksum::{Crc, page_checksum};
use super::frame::{block_bound, block_header, literal_prefix};
use super::header::{Header, Tracking};
use super::index::IndexLog;
use super::sequence::{Sequence, Shape};
use super::source::carried;
use crate::base::{DbChecksum, Error, Kind, Pgno, Result};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use std::io::Write;

/// Bytes gathered before they go to the writer below.
const BUFFER: usize = 64 * 1024;

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The header as written.
    pub header: Header,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// The file checksum.
    pub checksum: u64,
    /// Number of pages in it.
    pub pages: u32,
}

/// How the pages of a file are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// Compressed.
    Lz4,
    /// As they are, in LZ4 blocks that are all literals: valid LTX, cheap to write, as large as the database. For
    /// pieces that [`super::fold`] packs before they leave.
    Literal,
}

/// Writes one LTX file: header, pages in ascending order, then [`Encoder::finish`]. Without the last step
/// what was written is no LTX file, and no reader takes it for one.
pub struct Encoder<W> {
    writer: W,
    header: Header,
    sequence: Sequence,
    index: IndexLog,
    crc: Crc,
    /// In front of every page that is stored as it is; `None`: pages are compressed.
    literal: Option<Vec<u8>>,
    /// Of the pages so far; kept where it can be compared: in an attested snapshot.
    database: Option<DbChecksum>,
    table: CompressTable,
    payload: Vec<u8>,
    out: Vec<u8>,
    bytes: u64,
}

impl<W: Write> Encoder<W> {
    /// Starts a file. Errors with `Kind::Bug` if the header is not one we write: it must track no checksums
    /// of LTX's own.
    pub fn new(writer: W, header: Header) -> Result<Encoder<W>> {
        Encoder::with_shape(writer, header, Shape::Whole, Packing::Lz4)
    }

    /// Starts one part of a TXID, to be joined with others by [`super::fold`]: as [`Encoder::new`], but
    /// with min TXID 1, too, it may hold any subset of pages. Such a part is not to leave this machine.
    pub fn piece(writer: W, header: Header, packing: Packing) -> Result<Encoder<W>> {
        Encoder::with_shape(writer, header, Shape::Piece, packing)
    }

    fn with_shape(writer: W, header: Header, shape: Shape, packing: Packing) -> Result<Encoder<W>> {
        if header.tracking != Tracking::NoChecksum {
            return Err(Error::new(Kind::Bug, "only LTX files without LTX's own checksums are written"));
        }
        let bytes = header.encode().map_err(|e| Error::new(Kind::Bug, e.to_string()))?;
        let sequence = Sequence::new(&header, shape);
        let database = (sequence.is_snapshot() && header.attest.is_some()).then_some(DbChecksum::EMPTY);
        let mut encoder = Encoder {
            writer,
            sequence,
            index: IndexLog::default(),
            crc: Crc::new(),
            literal: (packing == Packing::Literal).then(|| literal_prefix(header.page_size.len())),
            database,
            table: CompressTable::default(),
            payload: vec![0; get_maximum_output_size(header.page_size.len())],
            out: Vec::with_capacity(BUFFER + block_bound(header.page_size)),
            bytes: 0,
            header,
        };
        encoder.crc.update(&bytes);
        encoder.put(&bytes)?;
        Ok(encoder)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Appends a page. Errors with `Kind::Bug` if it is out of order, above `commit`, the lock page or of
    /// the wrong length, with `Kind::Corrupt` if a snapshot misses one in between, with `Kind::Io` if the
    /// writer fails.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.admit(pgno, page)?;
        if let Some(prefix) = self.literal.take() {
            let put = self.put_page(pgno, page, &prefix, page);
            self.literal = Some(prefix);
            return put;
        }
        let mut payload = std::mem::take(&mut self.payload);
        let put = match compress_into_with_table(page, &mut payload, &mut self.table) {
            Ok(len) => self.put_page(pgno, page, &[], payload.get(..len).unwrap_or_default()),
            Err(e) => {
                Err(Error::new(Kind::Bug, format!("page {pgno} did not fit into an LZ4 block")).because(e))
            }
        };
        self.payload = payload;
        put
    }

    /// [`Encoder::page`] for a page whose LZ4 block is at hand, because `page` was just unpacked from it.
    pub(super) fn packed_page(&mut self, pgno: Pgno, page: &[u8], block: &[u8]) -> Result<()> {
        self.admit(pgno, page)?;
        self.put_page(pgno, page, &[], block)
    }

    fn admit(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let len = self.header.page_size.len();
        if page.len() != len {
            return Err(Error::new(Kind::Bug, format!("page {pgno} has {} bytes, not {len}", page.len())));
        }
        let kind = if self.sequence.is_snapshot() { Kind::Corrupt } else { Kind::Bug };
        self.sequence.accept(pgno).map_err(|why| Error::new(kind, why))?;
        if let Some(database) = &mut self.database {
            *database = database.toggle(page_checksum(pgno, page));
        }
        Ok(())
    }

    /// Puts a page whose LZ4 block is `prefix` and `rest`.
    fn put_page(&mut self, pgno: Pgno, page: &[u8], prefix: &[u8], rest: &[u8]) -> Result<()> {
        let len = prefix.len() + rest.len();
        if len > block_bound(self.header.page_size) {
            return Err(Error::new(Kind::Bug, format!("page {pgno} grew to {len} bytes by packing")));
        }
        let head = block_header(pgno, len as u32);
        self.crc.update(&head);
        self.crc.update(page);
        self.index.add(pgno, (head.len() + len) as u32);
        self.put(&head)?;
        self.put(prefix)?;
        self.put(rest)
    }

    /// Writes index and trailer, and gives the writer back, flushed. Errors with `Kind::Corrupt` if a
    /// snapshot is incomplete or its pages do not have the attested database checksum.
    pub fn finish(mut self) -> Result<(Summary, W)> {
        self.sequence.end().map_err(Error::corrupt)?;
        if let (Some(database), Some(attest)) = (self.database, self.header.attest)
            && database != attest.after
        {
            return Err(Error::corrupt(format!(
                "the snapshot's pages have database checksum {database}, not {} as attested",
                attest.after
            )));
        }
        self.put_hashed(&[0; 6])?;
        let before = self.bytes;
        let index = std::mem::take(&mut self.index);
        index.write(|chunk| self.put_hashed(chunk))?;
        let index_len = self.bytes - before;
        self.put_hashed(&index_len.to_be_bytes())?;
        self.put_hashed(&[0; 8])?; // post-apply checksum
        let checksum = self.crc.flagged();
        self.put(&checksum.to_be_bytes())?;
        self.spill()?;
        self.writer.flush().map_err(|e| carried(e, "cannot write an LTX file"))?;
        let summary =
            Summary { header: self.header, bytes: self.bytes, checksum, pages: self.sequence.pages() };
        Ok((summary, self.writer))
    }

    fn put_hashed(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc.update(bytes);
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        if self.out.len() >= BUFFER { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        self.writer.write_all(&self.out).map_err(|e| carried(e, "cannot write an LTX file"))?;
        self.out.clear();
        Ok(())
    }
}
