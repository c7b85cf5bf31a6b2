//! What tells a reader where the pages of a large file lie, in one request and little of it: the third line of the object beside the file
//! that holds the sums of its blocks ([`super::blocks`]).
//!
//! ```text
//! "walrust guide 1." | length of what follows u32 | LTX header 100 | kind u8 | … | SHA-256 of the check of the first line and of all this
//!   kind 0, a file that holds some pages: length u32 of all that follows the pages in the file (page index, trailer), that, and the frames of
//!           page 1 and of interior pages
//!   kind 1, a full copy: where the pages end u64 | for each block of 64 KiB: the first page whose frame begins in it u32, where u16 (0xffff: in
//!           none) | the frames of page 1, of the schema and of the uppermost pages of the b-trees
//! ```
//!
//! A full copy holds every page in order, and a frame tells its own length: so the beginning of the first frame in each block is enough, 6 bytes
//! for 64 KiB instead of 9 for each page. (Blocks are what is fetched and proved at once; to know more of what lies in one saves nothing.)
//!
//! Rules
//! * I-GUIDE-1 As I-BLOCK-1: a help, and optional. Without it, or where it is damaged, header and page index are read out of the file.
//! * I-GUIDE-2 A page is taken from its block only if the block's frames bear page numbers that follow each other, from the first frame on,
//!   and the last frame ends where the guide says. What kind 0 holds is held against the checksum of it in the manifest; the first line's check binds kind 1
//!   to the file.
//! * I-GUIDE-3 Frames beside their file are [`MOST_FIRST`] bytes at most, however large the database is; [`MOST_CHANGED`] beside one that is no full copy.
//!
//! Pure, but for [`Upper::of`], which reads the file. Refused: an index of every 64th page (of pages that pack well
//! 64 lie in one block, of others in five); all interior pages (of a database of 1 GB some megabytes, of which a query needs a few pages).

use super::btree::{Node, schema_row, varint};
use super::edge::{END_OF_PAGES, edge};
use super::layout::BLOCK;
use super::manifest::ManifestEntry;
use crate::base::{Error, PageSize, Pgno, Result};
use crate::ltx::{HEADER_LEN, Header, IndexEntry, PackedIndex, PageIndex, Tail, decode_frame, frame_head};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 16] = b"walrust guide 1.";
const CHECK: usize = 32;
/// All that stands before what the length counts.
const HEAD: usize = MAGIC.len() + 4;
/// Bytes of frames beside a full copy at most.
pub const MOST_FIRST: usize = 256 << 10;
/// The same, beside a file that holds some pages.
pub const MOST_CHANGED: usize = 32 << 10;
/// Bytes for each block.
const MARK: usize = 6;
const NONE: u16 = u16::MAX;
/// A file with a larger page index has no guide: it would be in memory while it is put.
pub const MOST_INDEX: u64 = 8 << 20;
/// The kinds.
const EACH: u8 = 0;
const BLOCKS: u8 = 1;

/// Where the pages of a file lie.
#[derive(Debug)]
pub enum Index {
    /// Each one.
    Each(PackedIndex),
    /// Of a full copy, the first one in each block.
    Blocks(BlockIndex),
}

/// Of a full copy, the first frame in each of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIndex {
    /// For each block the first page whose frame begins there, or after it.
    first: Vec<u32>,
    /// Where in the block; [`NONE`] where none begins there.
    start: Vec<u16>,
    /// Where the pages end.
    end: u64,
    pages: u32,
    page_size: PageSize,
}

/// The frames from the first one in a block on, up to the first one in a later block.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    first: u32,
    last: u32,
    bytes: Range<u64>,
}

impl BlockIndex {
    /// Of a full copy of `header`, by where its frames begin, in order; they end at `end`. `None` where they do not hold each page.
    pub fn of(
        header: &Header,
        starts: impl IntoIterator<Item = (Pgno, u64)>,
        end: u64,
    ) -> Option<BlockIndex> {
        let (mut first, mut start) = (Vec::new(), Vec::new());
        for (pgno, offset) in starts {
            let block = usize::try_from(offset / BLOCK).ok()?;
            while first.len() < block {
                first.push(pgno.get());
                start.push(NONE);
            }
            if first.len() == block {
                first.push(pgno.get());
                start.push((offset % BLOCK) as u16);
            }
        }
        BlockIndex { first, start, end, pages: header.commit, page_size: header.page_size }.checked()
    }

    /// Whether each page is in exactly one group, and no group is empty.
    fn checked(self) -> Option<BlockIndex> {
        let begins = self.first.first() == Some(&1) && self.start.first() == Some(&(HEADER_LEN as u16));
        let rise = self.first.windows(2).zip(self.start.windows(2)).all(|(p, s)| match (p, s) {
            ([a, b], [NONE, _]) => a == b,
            ([a, b], [_, NONE]) => a <= b,
            ([a, b], _) => a < b,
            _ => false,
        });
        let last = self.start.last().filter(|s| **s != NONE);
        let fits = self.first.last().is_some_and(|p| *p <= self.pages)
            && last.is_some_and(|s| self.end > (self.first.len() as u64 - 1) * BLOCK + u64::from(*s));
        let lock = self.page_size.lock_page().get();
        (begins && rise && fits && !self.first.contains(&lock)).then_some(self)
    }

    fn group(&self, pgno: Pgno) -> Option<Group> {
        if pgno.get() > self.pages || pgno == self.page_size.lock_page() {
            return None;
        }
        let block = self.first.partition_point(|p| *p <= pgno.get()).checked_sub(1)?;
        let at = |block: usize| {
            let start = *self.start.get(block).filter(|s| **s != NONE)?;
            Some((*self.first.get(block)?, block as u64 * BLOCK + u64::from(start)))
        };
        let (first, from) = at(block)?;
        let next = (block + 1..self.first.len()).find_map(at);
        let (beyond, to) = next.unwrap_or((self.pages.saturating_add(1), self.end));
        let last = beyond.saturating_sub(1);
        let last = if last == self.page_size.lock_page().get() { last.saturating_sub(1) } else { last };
        Some(Group { first, last, bytes: from..to })
    }

    /// The bytes from the first frame of its block on in which the frame of `pgno` lies; `None` if the file does not hold it.
    fn span(&self, pgno: Pgno) -> Option<Range<u64>> {
        let Group { last, bytes, .. } = self.group(pgno)?;
        // Only the last frame that begins in a block may go beyond it.
        let end = if last == pgno.get() { bytes.end } else { (bytes.start / BLOCK + 1) * BLOCK };
        Some(bytes.start..end.min(bytes.end))
    }

    /// The frame of `pgno` out of `bytes`, which are those of the file from `at` on (I-GUIDE-2). Errors with `Corrupt`.
    fn frame<'a>(&self, pgno: Pgno, at: u64, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let wrong = || Error::corrupt(format!("page {pgno} does not lie where its file's guide says"));
        let Group { first, last, bytes: range } = self.group(pgno).ok_or_else(wrong)?;
        let begin = range.start.checked_sub(at).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
        let mut rest = bytes.get(begin..).ok_or_else(wrong)?;
        let (mut expected, mut offset) = (first, range.start);
        loop {
            let (found, len) = frame_head(rest, self.page_size)?;
            let frame = rest.get(..len).ok_or_else(wrong)?;
            offset += len as u64;
            if found.get() != expected || (expected == last && offset != range.end) {
                return Err(wrong());
            }
            if found == pgno {
                return Ok(frame);
            }
            rest = rest.get(len..).unwrap_or_default();
            expected += 1;
            if expected == self.page_size.lock_page().get() {
                expected += 1;
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.end.to_be_bytes());
        for (first, start) in self.first.iter().zip(&self.start) {
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&start.to_be_bytes());
        }
    }

    /// Reads what [`BlockIndex::encode`] wrote, and gives what follows. `None` for anything else.
    fn decode<'a>(header: &Header, bytes: u64, said: &'a [u8]) -> Option<(BlockIndex, &'a [u8])> {
        let (end, rest) = said.split_first_chunk::<8>()?;
        let end = u64::from_be_bytes(*end);
        if end > bytes {
            return None;
        }
        let blocks = rest.get(..usize::try_from(blocks_before(end).checked_mul(MARK as u64)?).ok()?)?;
        let (mut first, mut start) = (Vec::new(), Vec::new());
        for mark in blocks.as_chunks::<MARK>().0 {
            let [a, b, c, d, e, f] = *mark;
            first.push(u32::from_be_bytes([a, b, c, d]));
            start.push(u16::from_be_bytes([e, f]));
        }
        // (The last blocks may hold the end of a frame and no beginning.)
        while start.last() == Some(&NONE) {
            start.pop();
            first.pop();
        }
        let index = BlockIndex { first, start, end, pages: header.commit, page_size: header.page_size };
        Some((index.checked()?, rest.get(blocks.len()..)?))
    }

    /// With marks for the last blocks too, in which no frame begins.
    fn padded(mut self) -> BlockIndex {
        let blocks = usize::try_from(blocks_before(self.end)).unwrap_or(0);
        self.first.resize(blocks, self.pages.saturating_add(1));
        self.start.resize(blocks, NONE);
        self
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.first.capacity() * size_of::<u32>() + self.start.capacity() * size_of::<u16>()
    }
}

fn blocks_before(end: u64) -> u64 {
    end.div_ceil(BLOCK)
}

impl Index {
    /// Whether the file holds the page.
    pub fn has(&self, pgno: Pgno) -> bool {
        match self {
            Index::Each(index) => index.get(pgno).is_some(),
            Index::Blocks(index) => pgno.get() <= index.pages && pgno != index.page_size.lock_page(),
        }
    }

    /// Bytes of the file in which the page's frame lies; `None` if the file does not hold it.
    pub fn span(&self, pgno: Pgno) -> Option<Range<u64>> {
        match self {
            Index::Each(index) => index.get(pgno).map(|e| e.range()),
            Index::Blocks(index) => index.span(pgno),
        }
    }

    /// The frame of a page out of `bytes`, which are those of the file from `at` on. Errors with `Corrupt` where it is not there.
    pub fn frame<'a>(&self, pgno: Pgno, at: u64, bytes: &'a [u8]) -> Result<&'a [u8]> {
        match self {
            Index::Blocks(index) => index.frame(pgno, at, bytes),
            Index::Each(index) => {
                let slice = |e: IndexEntry| {
                    let from = usize::try_from(e.offset.checked_sub(at)?).ok()?;
                    bytes.get(from..from.checked_add(e.len as usize)?)
                };
                let found = index.get(pgno).and_then(slice);
                found.ok_or_else(|| Error::corrupt(format!("page {pgno} is not where its file has it")))
            }
        }
    }

    /// The pages that the file holds, ascending.
    pub fn pages(&self) -> Box<dyn Iterator<Item = Pgno> + '_> {
        match self {
            Index::Each(index) => Box::new(index.from(Pgno::ONE).map(|e| e.pgno)),
            Index::Blocks(index) => {
                let lock = index.page_size.lock_page();
                Box::new((1..=index.pages).filter_map(Pgno::new).filter(move |p| *p != lock))
            }
        }
    }

    /// How many of them are greater than `last`.
    pub fn beyond(&self, last: u32) -> usize {
        match self {
            Index::Each(index) => {
                Pgno::new(last.saturating_add(1)).map_or(0, |first| index.from(first).count())
            }
            Index::Blocks(index) => {
                let lock = index.page_size.lock_page().get();
                let all = index.pages.saturating_sub(last) as usize;
                all.saturating_sub(usize::from((last.saturating_add(1)..=index.pages).contains(&lock)))
            }
        }
    }

    /// Where each page lies, if that is known.
    pub fn each(&self) -> Option<&PackedIndex> {
        match self {
            Index::Each(index) => Some(index),
            Index::Blocks(_) => None,
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        match self {
            Index::Each(index) => index.memory(),
            Index::Blocks(index) => index.memory(),
        }
    }
}

/// Frames of some pages, proved.
#[derive(Debug, Default)]
pub struct Firsts {
    bytes: Bytes,
    /// Page and where its frame begins, ascending by page.
    at: Vec<(Pgno, u32)>,
}

impl Firsts {
    /// Of frames that lie end to end. `None` where they do not.
    fn of(bytes: Bytes, page_size: PageSize) -> Option<Firsts> {
        let (mut at, mut from) = (Vec::new(), 0usize);
        while from < bytes.len() {
            let (pgno, len) = frame_head(bytes.get(from..)?, page_size).ok()?;
            at.push((pgno, u32::try_from(from).ok()?));
            from = from.checked_add(len).filter(|end| *end <= bytes.len())?;
        }
        at.sort_unstable();
        Some(Firsts { bytes, at })
    }

    /// The frame of a page, if it is here.
    pub fn frame(&self, pgno: Pgno, page_size: PageSize) -> Option<&[u8]> {
        let n = self.at.binary_search_by_key(&pgno, |(p, _)| *p).ok()?;
        let rest = self.bytes.get(self.at.get(n)?.1 as usize..)?;
        rest.get(..frame_head(rest, page_size).ok()?.1)
    }
}

/// What a guide tells.
#[derive(Debug)]
pub struct Guide {
    /// The file's header.
    pub header: Header,
    /// Where its pages lie.
    pub index: Index,
    /// Some of its frames.
    pub firsts: Firsts,
}

/// What is gathered of a file while it is read.
#[derive(Debug, Default)]
pub struct Gathered {
    starts: Vec<(Pgno, u64)>,
    last_block: Option<u64>,
    end: u64,
    other_form: bool,
    /// Of a file that holds some pages, the frames that are put beside it.
    beside: Vec<Range<u64>>,
    beside_bytes: u64,
}

impl Gathered {
    /// The next frame: where it lies, whether it tells its own length, and its page.
    pub fn add(&mut self, pgno: Pgno, range: Range<u64>, tells_its_length: bool, page: &[u8]) {
        self.end = range.end;
        let is_first = pgno == Pgno::ONE || Node::of(page, pgno).is_ok_and(|n| !n.is_leaf());
        let bytes = self.beside_bytes + (range.end - range.start);
        if is_first && bytes <= MOST_CHANGED as u64 {
            self.beside_bytes = bytes;
            self.beside.push(range.clone());
        }
        self.other_form |= !tells_its_length;
        if self.last_block != Some(range.start / BLOCK) {
            self.last_block = Some(range.start / BLOCK);
            self.starts.push((pgno, range.start));
        }
    }

    /// The guide of the file, of which the manifest will say `entry`, as it is put behind what ends with `bound_to`. `None` where it has none.
    /// Errors with `Io` where the file cannot be read.
    pub fn encode(
        self,
        file: &File,
        header: &Header,
        entry: &ManifestEntry,
        bound_to: &[u8; CHECK],
    ) -> Result<Option<Vec<u8>>> {
        let mut said = header.encode()?.to_vec();
        if !header.is_snapshot() {
            let edges = entry.bytes.saturating_sub(self.end);
            if edges > MOST_INDEX {
                return Ok(None);
            }
            said.push(EACH);
            said.extend_from_slice(&u32::try_from(edges).unwrap_or(u32::MAX).to_be_bytes());
            let beside = if self.other_form { Vec::new() } else { self.beside };
            for range in std::iter::once(self.end..entry.bytes).chain(beside) {
                let mut part = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
                read_at(file, &mut part, range.start)?;
                said.extend(part);
            }
            return Ok(Some(close(&said, bound_to)));
        }
        let index = BlockIndex::of(header, self.starts, self.end).filter(|_| !self.other_form);
        let Some(index) = index else { return Ok(None) };
        let frames = Upper { file, index: &index }.frames();
        said.push(BLOCKS);
        index.padded().encode(&mut said);
        said.extend(frames);
        Ok(Some(close(&said, bound_to)))
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> Result<()> {
    let io = |e| Error::new(crate::base::Kind::Io, "cannot read an LTX file").because(e);
    file.read_exact_at(buffer, at).map_err(io)
}

fn close(said: &[u8], bound_to: &[u8; CHECK]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&u32::try_from(said.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(said);
    let check: [u8; CHECK] = Sha256::new().chain_update(bound_to).chain_update(&out).finalize().into();
    out.extend_from_slice(&check);
    out
}

/// The most bytes that the guide of a file has of which the manifest says `entry`.
pub fn most_bytes(entry: &ManifestEntry, is_snapshot: bool) -> u64 {
    if is_snapshot {
        return most_of_full(entry.bytes);
    }
    FRAME + 4 + super::probe::tail_bound(Some(entry)) + MOST_CHANGED as u64
}

/// The most bytes that the guide of a full copy of `bytes` bytes has.
pub fn most_of_full(bytes: u64) -> u64 {
    FRAME + 8 + blocks_before(bytes) * MARK as u64 + MOST_FIRST as u64
}

/// What each guide has.
const FRAME: u64 = (HEAD + HEADER_LEN + 1 + CHECK) as u64;

impl Guide {
    /// Reads the guide at the beginning of `section`, which is bound to the first line that ends with `bound_to`. `None` if there is none, if
    /// it is damaged, or if it is not that of the file of which the manifest says `entry`.
    pub fn decode(section: &Bytes, entry: &ManifestEntry, bound_to: &[u8; CHECK]) -> Option<Guide> {
        let (len, _) = section.strip_prefix(MAGIC.as_slice())?.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        let (all, rest) = section.split_at_checked(HEAD.checked_add(len)?)?;
        let check: [u8; CHECK] = Sha256::new().chain_update(bound_to).chain_update(all).finalize().into();
        if rest.first_chunk::<CHECK>() != Some(&check) {
            return None;
        }
        let (head, said) = all.get(HEAD..)?.split_first_chunk::<HEADER_LEN>()?;
        let header = Header::decode(head).ok()?;
        if header.file_name() != entry.id.name() || header.commit != entry.commit {
            return None;
        }
        match said.split_first()? {
            (&EACH, said) => {
                let (len, rest) = said.split_first_chunk::<4>()?;
                let (edges, frames) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
                // As it is read out of the file itself.
                let tail = Tail::parse(edges).ok()?;
                let index = tail.index_in(edges)?;
                let is_whole = edges.starts_with(&[0; END_OF_PAGES as usize])
                    && edges.len() as u64
                        == entry.bytes.checked_sub(tail.index_range(entry.bytes).ok()?.start)? + END_OF_PAGES;
                if !is_whole || edge(head, edges) != entry.edge || tail.checksum != entry.crc {
                    return None;
                }
                let index = PageIndex::parse_for(index, entry.bytes, &header).ok()?;
                let firsts = Firsts::of(Bytes::copy_from_slice(frames), header.page_size)?;
                Some(Guide { header, index: Index::Each(PackedIndex::of(&index)), firsts })
            }
            (&BLOCKS, said) if header.is_snapshot() && header.full_pages() == entry.pages => {
                let (index, frames) = BlockIndex::decode(&header, entry.bytes, said)?;
                let firsts = Firsts::of(Bytes::copy_from_slice(frames), header.page_size)?;
                Some(Guide { header, index: Index::Blocks(index), firsts })
            }
            _ => None,
        }
    }
}

/// The uppermost pages of the b-trees of a full copy.
struct Upper<'a> {
    file: &'a File,
    index: &'a BlockIndex,
}

impl Upper<'_> {
    /// Their frames, the most wanted first, [`MOST_FIRST`] bytes at most: page 1, the schema, the roots, and what lies below them but
    /// leaves, level by level. What cannot be read as pages of a b-tree (the database may be encrypted) is left out.
    fn frames(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut taken = std::collections::BTreeSet::new();
        let mut take = |pgno: Pgno, frame: &[u8]| {
            let fits = out.len() + frame.len() <= MOST_FIRST && taken.insert(pgno);
            if fits {
                out.extend_from_slice(frame);
            }
            fits
        };
        let mut schema = VecDeque::from([Pgno::ONE]);
        let mut below = VecDeque::new();
        while let Some(pgno) = schema.pop_front() {
            let Some((frame, page)) = self.page(pgno) else { continue };
            if !take(pgno, &frame) {
                break;
            }
            if pgno == Pgno::ONE && !page.starts_with(b"SQLite format 3\0") {
                break;
            }
            let Ok(node) = Node::of(&page, pgno) else { continue };
            schema.extend(node.children(&page, pgno).unwrap_or_default());
            if node.is_leaf() {
                let cells = node.cells(&page, pgno).unwrap_or_default();
                below.extend(cells.into_iter().filter_map(|cell| root_in(&page, cell)));
            }
        }
        while let Some(pgno) = below.pop_front() {
            let Some((frame, page)) = self.page(pgno) else { continue };
            if !take(pgno, &frame) {
                break;
            }
            let Ok(children) = Node::of(&page, pgno).and_then(|n| n.children(&page, pgno)) else { continue };
            // All children are leaves, or none is.
            let is_above_leaves = children.first().and_then(|c| Some((*c, self.page(*c)?.1)));
            if is_above_leaves.is_some_and(|(c, page)| Node::of(&page, c).is_ok_and(|n| !n.is_leaf())) {
                below.extend(children);
            }
        }
        out
    }

    fn page(&self, pgno: Pgno) -> Option<(Vec<u8>, Vec<u8>)> {
        let span = self.index.span(pgno)?;
        let mut bytes = vec![0; usize::try_from(span.end - span.start).ok()?];
        read_at(self.file, &mut bytes, span.start).ok()?;
        let frame = self.index.frame(pgno, span.start, &bytes).ok()?.to_vec();
        let mut page = vec![0; self.index.page_size.len()];
        (decode_frame(&frame, self.index.page_size, &mut page).ok()? == pgno).then_some((frame, page))
    }
}

/// The root page that a cell of a leaf of the schema names. (Its first columns lie in the leaf, but for very long names.)
fn root_in(page: &[u8], cell: usize) -> Option<Pgno> {
    let mut rest = page.get(cell..)?;
    varint(&mut rest)?;
    varint(&mut rest)?;
    Some(schema_row(rest)?.root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::random_u64;
    use crate::base::{Timestamp, TxId};
    use crate::ltx::{Decoder, Encoder, Level};
    use crate::replica::blocks::{self, Blocks};

    /// A file of `pages` pages of `size` bytes, every `noisy`-th of which cannot be packed; of a full copy all pages, else every third.
    struct Made {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
        data: Vec<u8>,
        entry: ManifestEntry,
    }

    fn made(size: u32, pages: u32, noisy: u32, is_snapshot: bool) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let (min, level) = if is_snapshot { (1, Level::SNAPSHOT) } else { (5, Level::L0) };
        let header = Header::new(PageSize::new(size).unwrap(), pages, TxId(min), TxId(9), Timestamp(0));
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for n in (1..=pages).filter(|n| is_snapshot || n % 3 == 1) {
            let mut page = vec![n as u8; size as usize];
            if n % noisy == 0 {
                page.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&random_u64().to_be_bytes()));
            }
            encoder.page(Pgno::new(n).unwrap(), &page).unwrap();
        }
        let data = encoder.finish().unwrap().1;
        let path = dir.path().join("x.ltx");
        std::fs::write(&path, &data).unwrap();
        let entry = ManifestEntry::of_file(level, &path).unwrap();
        Made { _dir: dir, path, data, entry }
    }

    /// The guide's section in the object beside the file, and the check that it is bound to.
    fn section(m: &Made) -> (Bytes, [u8; CHECK]) {
        let all = Bytes::from(blocks::of_file(&m.path, &m.entry).unwrap());
        let first = &all[..blocks::blocks_end(m.entry.bytes) as usize];
        let sums = Blocks::decode(first, m.entry.id, m.entry.bytes, Some(&m.entry)).unwrap();
        (all.slice(blocks::guide_begins(&m.entry) as usize..), *sums.check())
    }

    #[test]
    fn each_page_is_found_in_its_blocks() {
        for (size, pages, noisy, is_snapshot) in [
            (512, 3000, 1, true),
            (4096, 2000, 3, true),
            (4096, 90, 1, true),
            (4096, 40_000, 50, true),
            (65_536, 40, 1, true),
            (65_536, 40, 2, true),
            (4096, 900, 1, false),
            (512, 9000, 2, false),
        ] {
            let m = made(size, pages, noisy, is_snapshot);
            let what = format!("page size {size}, {pages} pages, full copy: {is_snapshot}");
            let (section, check) = section(&m);
            let most = most_bytes(&m.entry, is_snapshot);
            assert!(section.len() as u64 <= most, "{what}: {} of {most}", section.len());
            let guide = Guide::decode(&section, &m.entry, &check).expect(&what);
            assert_eq!(guide.index.each().is_none(), is_snapshot);
            let mut decoder = Decoder::new(m.data.as_slice()).unwrap();
            let (mut page, mut got, mut held) = (vec![0; size as usize], vec![0; size as usize], Vec::new());
            while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
                held.push(pgno);
                let span = guide.index.span(pgno).expect(&what);
                let blocks =
                    span.start / BLOCK * BLOCK..(span.end.div_ceil(BLOCK) * BLOCK).min(m.entry.bytes);
                let bytes = &m.data[blocks.start as usize..blocks.end as usize];
                let frame = guide.index.frame(pgno, blocks.start, bytes).unwrap();
                assert_eq!(decode_frame(frame, guide.header.page_size, &mut got).unwrap(), pgno);
                assert!(got == page, "{what}: page {pgno}");
                if is_snapshot && size == 4096 {
                    let straddles = span.end / BLOCK > span.start / BLOCK && !span.end.is_multiple_of(BLOCK);
                    assert!(span.end - span.start <= BLOCK || straddles, "{what}: {span:?}");
                }
            }
            assert!(guide.index.pages().eq(held.iter().copied()), "{what}");
            for last in [0, 1, 7, pages / 2, pages - 1, pages] {
                let expected = held.iter().filter(|p| p.get() > last).count();
                assert_eq!(guide.index.beyond(last), expected, "{what}: beyond {last}");
            }
            let outside = Pgno::new(pages + 1).unwrap();
            assert!(!guide.index.has(outside) && guide.index.span(outside).is_none());
            if is_snapshot {
                let per_block = guide.index.memory() as u64 / m.entry.bytes.div_ceil(BLOCK);
                assert!(per_block <= 16, "{what}: {per_block} bytes of memory for a block");
            }
        }
    }

    #[test]
    fn a_damaged_guide_or_another_file_s_is_none() {
        for is_snapshot in [true, false] {
            let m = made(4096, 300, 1, is_snapshot);
            let (section, check) = section(&m);
            assert!(Guide::decode(&section, &m.entry, &check).is_some());
            for at in (0..section.len()).step_by(if is_snapshot { 1 } else { 3 }) {
                let mut broken = section.to_vec();
                broken[at] ^= 0x41;
                assert!(Guide::decode(&broken.into(), &m.entry, &check).is_none(), "byte {at}");
                assert!(Guide::decode(&section.slice(..at), &m.entry, &check).is_none(), "cut at {at}");
            }
            assert!(Guide::decode(&section, &m.entry, &[0; CHECK]).is_none(), "of another file");
            let other = ManifestEntry { commit: m.entry.commit + 1, ..m.entry };
            assert!(Guide::decode(&section, &other, &check).is_none());
        }
    }

    /// Whoever can write there can write a right checksum, too.
    #[test]
    fn a_guide_that_lies_leads_to_no_panic_and_nowhere_outside_the_file() {
        let mut told = 0;
        for is_snapshot in [true, false] {
            let m = made(4096, 300, 1, is_snapshot);
            let (section, check) = section(&m);
            let said = &section[HEAD..section.len() - CHECK];
            let mut numbers = 7u64;
            let mut below = |n: usize| {
                numbers =
                    numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (numbers >> 33) as usize % n
            };
            for _ in 0..3000 {
                let mut lie = said.to_vec();
                for _ in 0..=below(3) {
                    let at = HEADER_LEN + below((lie.len() - HEADER_LEN).min(200));
                    lie[at] = [0, 1, 0xff, lie[at] ^ 1, lie[at] ^ 0x80, below(256) as u8][below(6)];
                }
                let Some(guide) = Guide::decode(&close(&lie, &check).into(), &m.entry, &check) else {
                    continue;
                };
                told += 1;
                for pgno in (1..=300).filter_map(Pgno::new) {
                    let _ = guide.firsts.frame(pgno, guide.header.page_size);
                    let Some(span) = guide.index.span(pgno) else { continue };
                    assert!(span.start < span.end && span.end <= m.entry.bytes, "{span:?}");
                    let bytes = &m.data[span.start as usize..span.end as usize];
                    let mut page = vec![0; 4096];
                    if let Ok(frame) = guide.index.frame(pgno, span.start, bytes) {
                        let _ = decode_frame(frame, guide.header.page_size, &mut page);
                    }
                }
            }
        }
        assert!(told > 100, "{told}");
    }

    #[test]
    fn a_page_that_is_not_where_the_guide_says_is_an_error() {
        let m = made(4096, 300, 1, true);
        let (section, check) = section(&m);
        let guide = Guide::decode(&section, &m.entry, &check).unwrap();
        let pgno = Pgno::new(100).unwrap();
        let span = guide.index.span(pgno).unwrap();
        let mut bytes = m.data[span.start as usize..span.end as usize].to_vec();
        assert!(guide.index.frame(pgno, span.start, &bytes).is_ok());
        for (what, at) in [("number", 3), ("form", 5), ("length", 8)] {
            let good = bytes[at];
            bytes[at] ^= 1;
            assert!(guide.index.frame(pgno, span.start, &bytes).unwrap_err().is_corrupt(), "{what}");
            bytes[at] = good;
        }
        assert!(guide.index.frame(pgno, span.start + 1, &bytes).is_err());
        assert!(guide.index.frame(pgno, span.start, &bytes[..9]).unwrap_err().is_corrupt(), "cut short");
    }

    #[test]
    fn the_uppermost_pages_of_a_database_lie_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("x.db");
        let conn = rusqlite::Connection::open(&db).unwrap();
        conn.execute_batch(
            "PRAGMA page_size=512; CREATE TABLE a(id INTEGER PRIMARY KEY, v); CREATE INDEX av ON a(v); CREATE TABLE b(v);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<30000) INSERT INTO a SELECT i, hex(randomblob(20)) FROM n;",
        )
        .unwrap();
        let image = std::fs::read(&db).unwrap();
        let pages = (image.len() / 512) as u32;
        let header = Header::new(PageSize::new(512).unwrap(), pages, TxId(1), TxId(2), Timestamp(0));
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (n, page) in (1..).zip(image.chunks(512)) {
            encoder.page(Pgno::new(n).unwrap(), page).unwrap();
        }
        let path = dir.path().join("x.ltx");
        std::fs::write(&path, encoder.finish().unwrap().1).unwrap();
        let entry = ManifestEntry::of_file(Level::SNAPSHOT, &path).unwrap();
        let (section, check) =
            section(&Made { _dir: tempfile::tempdir().unwrap(), path, data: vec![], entry });
        let guide = Guide::decode(&section, &entry, &check).unwrap();
        let mut page = vec![0; 512];
        let (mut leaves, mut interior, mut bytes) = (0, 0, 0);
        for (pgno, _) in &guide.firsts.at {
            let frame = guide.firsts.frame(*pgno, guide.header.page_size).unwrap();
            bytes += frame.len();
            assert_eq!(decode_frame(frame, guide.header.page_size, &mut page).unwrap(), *pgno);
            let at = (pgno.get() as usize - 1) * 512;
            assert!(page == image[at..at + 512], "page {pgno}");
            let node = Node::of(&page, *pgno).unwrap();
            if node.is_leaf() { leaves += 1 } else { interior += 1 }
        }
        let roots: Vec<u32> = conn
            .prepare("SELECT rootpage FROM sqlite_schema")
            .unwrap()
            .query_map((), |r| r.get(0))
            .unwrap()
            .map(|r| r.unwrap())
            .collect();
        for root in roots.into_iter().chain([1]) {
            assert!(
                guide.firsts.frame(Pgno::new(root).unwrap(), guide.header.page_size).is_some(),
                "root {root}"
            );
        }
        assert!(
            interior > 50 && leaves <= 2 && bytes <= MOST_FIRST,
            "{interior} interior pages, {leaves} leaves, {bytes} bytes"
        );
    }
}
