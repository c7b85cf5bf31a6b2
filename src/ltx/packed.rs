//! A page index as it is held in memory by whoever reads single pages: two or three bytes a page instead of sixteen.

use super::index::{IndexEntry, PageIndex, put_varint, take_varint};
use crate::base::Pgno;
use std::ops::Range;

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
        self.marks
            .get(first..)
            .unwrap_or_default()
            .iter()
            .flat_map(|m| self.block(*m))
            .skip_while(move |e| e.pgno < pgno)
    }

    /// The entries whose frames lie wholly in `range`, ascending.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = IndexEntry> + '_ {
        let first = self.marks.partition_point(|m| m.offset <= range.start).saturating_sub(1);
        let (start, end) = (range.start, range.end);
        let all = self.marks.get(first..).unwrap_or_default().iter().flat_map(|m| self.block(*m));
        all.skip_while(move |e| e.offset < start).take_while(move |e| e.range().end <= end)
    }

    /// The entries from a mark to the next.
    fn block(&self, mark: Mark) -> impl Iterator<Item = IndexEntry> + '_ {
        let mut rest = self.bytes.get(mark.at..).unwrap_or_default();
        let (mut last, mut offset) = (mark.pgno - 1, mark.offset);
        // (The last block may have fewer: there the bytes end.)
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

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.marks.capacity() * size_of::<Mark>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::PageSize;
    use crate::base::{Timestamp, TxId};
    use crate::ltx::{Encoder, Header, Tail};

    #[test]
    fn what_is_packed_is_found() {
        let size = PageSize::new(512).unwrap();
        for step in [1u32, 2, 7] {
            let numbers: Vec<u32> = (1..=1000).filter(|n| n % step == 0 || *n > 900).collect();
            let header = Header::new(size, 1000, TxId(2), TxId(2), Timestamp(0));
            let mut file = Vec::new();
            let mut encoder = Encoder::new(&mut file, header.clone()).unwrap();
            for n in &numbers {
                let page: Vec<u8> = (0..512u32).map(|i| (i * n % 253) as u8).collect();
                encoder.page(Pgno::new(*n).unwrap(), &page).unwrap();
            }
            encoder.finish().unwrap();
            let tail = Tail::parse(&file).unwrap();
            let index =
                PageIndex::parse_for(tail.index_in(&file).unwrap(), file.len() as u64, &header).unwrap();
            let packed = PackedIndex::of(&index);
            assert_eq!((packed.len(), index.len()), (numbers.len(), numbers.len()));
            for n in 1..=1001 {
                let pgno = Pgno::new(n).unwrap();
                assert_eq!(packed.get(pgno), index.get(pgno), "{n}");
                let after: Vec<IndexEntry> =
                    index.entries().iter().copied().filter(|e| e.pgno >= pgno).collect();
                assert_eq!(packed.from(pgno).collect::<Vec<_>>(), after);
            }
            for range in [0..file.len() as u64, 1000..5000, 5000..5001, 200_000..900_000] {
                let inside = |e: &IndexEntry| e.offset >= range.start && e.range().end <= range.end;
                let expected: Vec<IndexEntry> = index.entries().iter().copied().filter(inside).collect();
                assert_eq!(packed.within(&range).collect::<Vec<_>>(), expected, "{range:?}");
            }
            assert!(packed.memory() < numbers.len() * 4 + 1000);
        }
    }
}
