//! The page index at the end of a file: where each page's frame lies. Read by Litestream's VFS, and by us for
//! verification without download and for page-wise reading.
//!
//! Per page, ascending, three LEB128 varints: page number, file offset of the frame, length of the frame;
//! then a zero byte; then a u64, the length of all that. 24 bytes before the end of the file stands that
//! u64.

use super::checksum::Crc;
use super::frame::{BLOCK_HEADER_LEN, PAGE_HEADER_LEN, frame_bound};
use super::header::{HEADER_LEN, Header};
use super::sequence::{Sequence, Shape};
use crate::base::{DbChecksum, Error, PageSize, Pgno, Result};
use std::ops::Range;

/// Bytes behind the page index: its length, post-apply checksum, file checksum.
pub const TAIL_LEN: usize = 24;

/// Where one page's frame lies in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The page.
    pub pgno: Pgno,
    /// File offset of the frame's first byte.
    pub offset: u64,
    /// Length of the frame in bytes, page header included.
    pub len: u32,
}

impl IndexEntry {
    /// The frame's bytes in the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }
}

/// The last 24 bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// Length of the page index in bytes, its closing zero byte included.
    pub index_len: u64,
    /// LTX's own database checksum after the file; `None` in files that track none.
    pub post_apply: Option<DbChecksum>,
    /// The file checksum.
    pub checksum: u64,
}

impl Tail {
    /// Reads the tail from the last bytes of a file: 24 at the least, more do no harm. Errors with
    /// `Kind::Corrupt`.
    pub fn parse(last: &[u8]) -> Result<Tail> {
        let Some((_, tail)) = last.split_last_chunk::<TAIL_LEN>() else {
            return Err(Error::corrupt(format!(
                "{} bytes are too few for the end of an LTX file",
                last.len()
            )));
        };
        let (index_len, rest) = split_u64(tail);
        let (post_apply, rest) = split_u64(rest);
        let (checksum, _) = split_u64(rest);
        if checksum & DbChecksum::FLAG == 0 {
            return Err(Error::corrupt("the file checksum lacks its flag bit"));
        }
        if post_apply != 0 && post_apply & DbChecksum::FLAG == 0 {
            return Err(Error::corrupt("the post-apply checksum lacks its flag bit"));
        }
        let post_apply = (post_apply != 0).then_some(DbChecksum(post_apply));
        Ok(Tail { index_len, post_apply, checksum })
    }

    /// Where the page index lies in a file of `file_len` bytes, closing zero byte included.
    pub fn index_range(&self, file_len: u64) -> Result<Range<u64>> {
        let end = file_len.saturating_sub(TAIL_LEN as u64);
        match end.checked_sub(self.index_len) {
            Some(start) if self.index_len >= 1 && start >= (HEADER_LEN + PAGE_HEADER_LEN) as u64 => {
                Ok(start..end)
            }
            _ => Err(Error::corrupt(format!(
                "a page index of {} bytes does not fit into a file of {file_len}",
                self.index_len
            ))),
        }
    }

    /// The page index, if the last bytes of the file that are at hand contain all of it.
    pub fn index_in<'a>(&self, last: &'a [u8]) -> Option<&'a [u8]> {
        let end = last.len().checked_sub(TAIL_LEN)?;
        let start = end.checked_sub(usize::try_from(self.index_len).ok()?)?;
        last.get(start..end)
    }
}

fn split_u64(bytes: &[u8]) -> (u64, &[u8]) {
    match bytes.split_first_chunk::<8>() {
        Some((head, rest)) => (u64::from_be_bytes(*head), rest),
        None => (0, &[]),
    }
}

/// A file's page index, checked. 16 bytes of memory a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageIndex {
    entries: Vec<IndexEntry>,
}

impl PageIndex {
    /// Reads an index out of its exact bytes (closing zero byte included). Strict: pages ascend, none above
    /// `commit`, no lock page, frames lie end to end from the header to the end of the page block of a file
    /// of `file_len` bytes, every frame has a possible length. Errors with `Kind::Corrupt`.
    pub fn parse(bytes: &[u8], file_len: u64, commit: u32, page_size: PageSize) -> Result<PageIndex> {
        let lock = page_size.lock_page();
        let mut rest = bytes;
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut next = HEADER_LEN as u64;
        let mut last = 0;
        loop {
            let n = take_varint(&mut rest)?;
            if n == 0 {
                break;
            }
            let pgno = u32::try_from(n).ok().filter(|n| *n > last && *n <= commit).and_then(Pgno::new);
            let Some(pgno) = pgno.filter(|p| *p != lock) else {
                return Err(Error::corrupt(format!(
                    "page {n} cannot stand in the page index after page {last}"
                )));
            };
            let (offset, len) = (take_varint(&mut rest)?, take_varint(&mut rest)?);
            let len = u32::try_from(len).ok().filter(|len| {
                (PAGE_HEADER_LEN + 1..=frame_bound(page_size).max(BLOCK_HEADER_LEN + 1))
                    .contains(&(*len as usize))
            });
            let Some(len) = len.filter(|_| offset == next) else {
                return Err(Error::corrupt(format!("the page index is wrong about page {pgno}")));
            };
            last = pgno.get();
            next += u64::from(len);
            entries.push(IndexEntry { pgno, offset, len });
        }
        if !rest.is_empty() {
            return Err(Error::corrupt("bytes follow the page index"));
        }
        let end = next + (PAGE_HEADER_LEN + bytes.len() + TAIL_LEN) as u64;
        if end != file_len {
            return Err(Error::corrupt(format!(
                "the page index describes a file of {end} bytes, not {file_len}"
            )));
        }
        Ok(PageIndex { entries })
    }

    /// [`PageIndex::parse`] for a file whose header is known: a snapshot must hold every page.
    pub fn parse_for(bytes: &[u8], file_len: u64, header: &Header) -> Result<PageIndex> {
        let index = PageIndex::parse(bytes, file_len, header.commit, header.page_size)?;
        let mut sequence = Sequence::new(header, Shape::Whole);
        index
            .entries
            .iter()
            .try_for_each(|e| sequence.accept(e.pgno))
            .and_then(|()| sequence.end())
            .map_err(Error::corrupt)?;
        Ok(index)
    }

    /// All entries, pages ascending.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Where `pgno` lies; `None` if the file does not hold it.
    pub fn get(&self, pgno: Pgno) -> Option<IndexEntry> {
        let at = self.entries.binary_search_by_key(&pgno, |e| e.pgno).ok()?;
        self.entries.get(at).copied()
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the file holds no page.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Appends a LEB128 varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Takes a LEB128 varint off the front: at most 10 bytes, 64 bits, and in its shortest form.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else {
            return Err(Error::corrupt("the page index ends within an entry"));
        };
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits || (*byte == 0 && shift > 0) {
            return Err(Error::corrupt("the page index holds a malformed number"));
        }
        n |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(n);
        }
    }
    Err(Error::corrupt("the page index holds a number of more than 10 bytes"))
}

/// Appends one index entry as stored.
fn put_entry(out: &mut Vec<u8>, entry: &IndexEntry) {
    put_varint(out, u64::from(entry.pgno.get()));
    put_varint(out, entry.offset);
    put_varint(out, u64::from(entry.len));
}

/// A reader's idea of the index that must follow the pages it has seen: length and CRC, not the bytes.
#[derive(Debug, Default)]
pub(super) struct ExpectedIndex {
    crc: Crc,
    len: u64,
    entry: Vec<u8>,
}

impl ExpectedIndex {
    pub(super) fn add(&mut self, entry: &IndexEntry) {
        self.entry.clear();
        put_entry(&mut self.entry, entry);
        self.crc.update(&self.entry);
        self.len += self.entry.len() as u64;
    }

    /// Length and CRC of the whole index, closing zero byte included.
    pub(super) fn end(mut self) -> (u64, u64) {
        self.crc.update(&[0]);
        (self.len + 1, self.crc.flagged())
    }
}

/// A writer's memory of the frames it wrote: two bytes for each page of 4 KiB in a snapshot, three or so
/// elsewhere, since frames lie end to end and page numbers mostly follow one another.
#[derive(Debug, Default)]
pub(super) struct IndexLog {
    bytes: Vec<u8>,
    last: u32,
}

impl IndexLog {
    pub(super) fn add(&mut self, pgno: Pgno, len: u32) {
        let step = pgno.get().saturating_sub(self.last);
        self.last = pgno.get();
        put_varint(&mut self.bytes, u64::from(len) << 1 | u64::from(step != 1));
        if step != 1 {
            put_varint(&mut self.bytes, u64::from(step));
        }
    }

    /// The stored index in chunks of a bounded size, closing zero byte included.
    pub(super) fn write(&self, mut chunk: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (mut rest, mut out) = (self.bytes.as_slice(), Vec::new());
        let (mut offset, mut n) = (HEADER_LEN as u64, 0u32);
        while !rest.is_empty() {
            let word = take_varint(&mut rest)?;
            let step = if word & 1 == 0 { 1 } else { take_varint(&mut rest)? };
            n = n.saturating_add(u32::try_from(step).unwrap_or(u32::MAX));
            let len = u32::try_from(word >> 1).unwrap_or(u32::MAX);
            if let Some(pgno) = Pgno::new(n) {
                put_entry(&mut out, &IndexEntry { pgno, offset, len });
            }
            offset += u64::from(len);
            if out.len() >= 16 * 1024 {
                chunk(&out)?;
                out.clear();
            }
        }
        out.push(0);
        chunk(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writers_memory_is_two_bytes_a_page() {
        let (mut log, mut expected, mut offset) = (IndexLog::default(), ExpectedIndex::default(), 100);
        for n in 1..=100_000u32 {
            let (pgno, len) = (Pgno::new(n).unwrap(), 10 + 1 + n % 4108);
            log.add(pgno, len);
            expected.add(&IndexEntry { pgno, offset, len });
            offset += u64::from(len);
        }
        assert!(log.bytes.len() <= 200_000, "{} bytes", log.bytes.len());
        // And yet it is the index that a reader expects.
        let (mut crc, mut len, mut largest) = (Crc::new(), 0, 0);
        log.write(|chunk| {
            crc.update(chunk);
            len += chunk.len() as u64;
            largest = largest.max(chunk.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(expected.end(), (len, crc.flagged()));
        assert!(largest < 17 * 1024, "{largest} bytes at once");
    }
}
