//! A page index as it is held in memory by whoever reads single pages: two or three bytes a page instead of sixteen.

use super::header::HEADER_LEN;
use super::index::{IndexEntry, PageIndex, put_varint, take_varint};
use crate::base::Pgno;

/// Entries from one that can be found at once to the next.
const STEP: usize = 64;

/// Every 64th entry.
#[derive(Clone, Copy, Debug)]
struct Mark {
    pgno: u32,
    offset: u64,
    /// Where its word lies in the bytes.
    at: usize,
}

/// A page index, packed. Frames lie end to end, so a length is all that an entry needs, and a page number where it is not the
/// next one.
#[derive(Clone, Debug, Default)]
pub struct PackedIndex {
    marks: Vec<Mark>,
    bytes: Vec<u8>,
    pages: usize,
}

impl PackedIndex {
    /// Of an index that was read and checked.
    pub fn of(index: &PageIndex) -> PackedIndex {
        let mut packed = PackedIndex { pages: index.len(), ..PackedIndex::default() };
        let mut last = 0;
        for (n, e) in index.entries().iter().enumerate() {
            if n.is_multiple_of(STEP) {
                packed.marks.push(Mark { pgno: e.pgno.get(), offset: e.offset, at: packed.bytes.len() });
                last = e.pgno.get() - 1;
            }
            let step = e.pgno.get() - last;
            last = e.pgno.get();
            put_varint(&mut packed.bytes, u64::from(e.len) << 1 | u64::from(step != 1));
            if step != 1 {
                put_varint(&mut packed.bytes, u64::from(step));
            }
        }
        packed.bytes.shrink_to_fit();
        packed
    }

    /// Where `pgno` lies; `None` if the file does not hold it.
    pub fn get(&self, pgno: Pgno) -> Option<IndexEntry> {
        self.from(pgno).next().filter(|e| e.pgno == pgno)
    }

    /// The entries from page `pgno` on, ascending.
    pub fn from(&self, pgno: Pgno) -> impl Iterator<Item = IndexEntry> + '_ {
        let after = self.marks.partition_point(|m| m.pgno <= pgno.get());
        let first = after.saturating_sub(1);
        self.marks.get(first..).unwrap_or_default().iter().flat_map(|m| self.block(*m)).skip_while(
            move |e| e.pgno < pgno,
        )
    }

    /// The entries from a mark to the next.
    fn block(&self, mark: Mark) -> impl Iterator<Item = IndexEntry> + '_ {
        let mut rest = self.bytes.get(mark.at..).unwrap_or_default();
        let (mut last, mut offset) = (mark.pgno - 1, mark.offset);
        (0..STEP).map_while(move |_| {
            let word = take_varint(&mut rest).ok()?;
            let step = if word & 1 == 0 { 1 } else { take_varint(&mut rest).ok()? };
            last = last.saturating_add(u32::try_from(step).ok()?);
            let entry = IndexEntry { pgno: Pgno::new(last)?, offset, len: u32::try_from(word >> 1).ok()? };
            offset += u64::from(entry.len);
            Some(entry)
        })
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages
    }

    /// Whether the file holds no page.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Where the frames end.
    pub fn end(&self) -> u64 {
        let last = self.marks.last().and_then(|m| self.block(*m).last());
        last.map_or(HEADER_LEN as u64, |e| e.range().end)
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.marks.capacity() * size_of::<Mark>()
    }
}
