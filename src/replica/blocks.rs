//! Sums of the blocks of a large LTX file, so that a part of it can be proved without the rest: LTX has one checksum for all of a file.
//!
//! One object beside the files, `walrust/blocks-<level>-<min>-<max>`, put after its file:
//!
//! ```text
//! "walrust blocks 1" | level u8 | min, max, bytes u64 | SHA-256 of the file | first 8 bytes of SHA-256 of each block | SHA-256 of all this
//! "walrust pages 1." | number of pages u32 | 4 bytes of each page's checksum | SHA-256 of the SHA-256 above and of this line
//! "walrust guide 1." | … where the pages lie ([`super::guide`])
//! ```
//!
//! The second line is for who has pages already and asks which of them are those of the file ([`super::reuse`]). Who reads blocks fetches the
//! first line and the last; older objects have no guide, and the oldest no other line than the first.
//!
//! Rules
//! * I-BLOCK-1 It is a help and nothing else: a file without one, or with a damaged one, is read another way. It is never the reason why
//!   an upload fails.
//! * I-BLOCK-2 It counts only for the file that it names: level, TXIDs, size, and the SHA-256 that the manifest has.
//!
//! * I-BLOCK-3 The sum of a page finds pages that differ; it proves none. A file of more than [`MOST_PAGES`] pages has no sums of them:
//!   they are in memory while they are put, and while they are read.
//!
//! Pure, but for [`of_file`]. Refused: sums in the manifest (each reader of it would fetch them all); the sums of pages in an object of
//! their own (one more PUT for each large file); to pack a page again and compare it with its block (that holds only while the packer stays
//! the same, and one changed page hides fifteen others).

use super::guide::Gathered;
use super::layout::{BLOCK, FileId};
use super::manifest::ManifestEntry;
use crate::base::{DbChecksum, Error, Kind, Pgno, Result};
use crate::ltx::{Decoder, page_checksum};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// Files up to this size are fetched whole, into memory, and need no sums.
pub const WHOLE: u64 = 256 * 1024;

const MAGIC: &[u8; 16] = b"walrust blocks 1";
const SUM: usize = 8;
/// All that stands before the sums.
const HEAD: usize = MAGIC.len() + 1 + 3 * 8 + 32;
const CHECK: usize = 32;

const PAGES_MAGIC: &[u8; 16] = b"walrust pages 1.";
/// All that stands before the sums of pages.
const PAGES_HEAD: usize = PAGES_MAGIC.len() + 4;
const PAGE_SUM: usize = 4;
/// A file of more pages has no sums of them: 8 MiB of sums.
pub const MOST_PAGES: u32 = 2 << 20;

/// The sums of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    bytes: u64,
    sums: Vec<[u8; SUM]>,
    /// What stands behind them: the sums of pages are bound to it.
    check: [u8; CHECK],
}

/// The sums of the pages of one file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSums(Vec<[u8; PAGE_SUM]>);

/// Whether a file of this size has them.
pub fn are_wanted(bytes: u64) -> bool {
    bytes > WHOLE
}

fn sum(block: &[u8]) -> [u8; SUM] {
    Sha256::digest(block).first_chunk().copied().unwrap_or_default()
}

/// The sums of a local LTX file of which the manifest will say `entry`, as they are put beside it. Errors with `Io` where the file cannot be
/// read.
pub fn of_file(path: &Path, entry: &ManifestEntry) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut summed = Summed { file, block: Sha256::new(), filled: 0, sums: Vec::new() };
    let (mut pages, mut gathered) = (Vec::new(), Gathered::default());
    let header;
    {
        let mut decoder = Decoder::new(std::io::BufReader::with_capacity(128 * 1024, &mut summed))?;
        header = decoder.header().clone();
        let mut page = vec![0; header.page_size.len()];
        let mut begin = decoder.offset();
        while let Some(pgno) = decoder.next_page(&mut page)? {
            if entry.pages <= MOST_PAGES {
                pages.push(page_sum(pgno, &page));
            }
            gathered.add(pgno, begin..decoder.offset(), decoder.is_block(), &page);
            begin = decoder.offset();
        }
        decoder.finish()?;
    }
    let file = summed.file.try_clone().map_err(|e| Error::io("open", path, e))?;
    let mut object = encode(entry.id, entry.bytes, &entry.sha256, &summed.finish());
    let bound_to = object.last_chunk::<CHECK>().copied().unwrap_or_default();
    if entry.pages <= MOST_PAGES {
        encode_pages(&mut object, &pages);
    }
    object.extend(gathered.encode(&file, &header, entry, &bound_to)?.unwrap_or_default());
    Ok(object)
}

/// A file whose blocks are summed as it is read.
struct Summed {
    file: std::fs::File,
    block: Sha256,
    filled: u64,
    sums: Vec<[u8; SUM]>,
}

impl Summed {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(BLOCK - self.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.update(now);
            self.filled += now.len() as u64;
            bytes = later;
            if self.filled == BLOCK {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let digest = std::mem::take(&mut self.block).finalize();
        self.sums.push(digest.first_chunk().copied().unwrap_or_default());
        self.filled = 0;
    }

    fn finish(mut self) -> Vec<[u8; SUM]> {
        if self.filled > 0 {
            self.end_block();
        }
        self.sums
    }
}

impl Read for Summed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.take(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// The sum of one page.
pub fn page_sum(pgno: Pgno, page: &[u8]) -> [u8; PAGE_SUM] {
    let spread = DbChecksum::scramble(page_checksum(pgno, page)).to_be_bytes();
    spread.first_chunk().copied().unwrap_or_default()
}

/// Adds the sums of pages to those of blocks.
fn encode_pages(object: &mut Vec<u8>, pages: &[[u8; PAGE_SUM]]) {
    let bound_to = object.last_chunk::<CHECK>().copied().unwrap_or_default();
    let begin = object.len();
    object.extend_from_slice(PAGES_MAGIC);
    object.extend_from_slice(&u32::try_from(pages.len()).unwrap_or(u32::MAX).to_be_bytes());
    pages.iter().for_each(|s| object.extend_from_slice(s));
    let check = check_of_pages(&bound_to, object.get(begin..).unwrap_or_default());
    object.extend_from_slice(&check);
}

fn check_of_pages(bound_to: &[u8; CHECK], said: &[u8]) -> [u8; CHECK] {
    Sha256::new().chain_update(bound_to).chain_update(said).finalize().into()
}

/// Where the sums of the blocks of a file of `bytes` bytes end in their object; those of its pages follow.
pub fn blocks_end(bytes: u64) -> u64 {
    (HEAD + CHECK) as u64 + bytes.div_ceil(BLOCK) * SUM as u64
}

/// Where the guide begins in the object of a file of which the manifest says `entry`.
pub fn guide_begins(entry: &ManifestEntry) -> u64 {
    let pages = if entry.pages <= MOST_PAGES { pages_bytes(entry.pages) } else { 0 };
    blocks_end(entry.bytes) + pages
}

fn pages_bytes(pages: u32) -> u64 {
    (PAGES_HEAD + CHECK) as u64 + u64::from(pages) * PAGE_SUM as u64
}

fn encode(id: FileId, bytes: u64, sha256: &[u8; 32], sums: &[[u8; SUM]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + sums.len() * SUM + CHECK);
    out.extend_from_slice(MAGIC);
    out.push(id.level.get());
    for n in [id.min.0, id.max.0, bytes] {
        out.extend_from_slice(&n.to_be_bytes());
    }
    out.extend_from_slice(sha256);
    sums.iter().for_each(|s| out.extend_from_slice(s));
    let check = Sha256::digest(&out);
    out.extend_from_slice(&check);
    out
}

impl Blocks {
    /// Of a file that is here and was proved.
    pub fn of_proved(all: &[u8]) -> Blocks {
        let sums = all.chunks(BLOCK as usize).map(sum).collect();
        Blocks { bytes: all.len() as u64, sums, check: [0; CHECK] }
    }

    /// Of an age file with so many bytes in the clear: each of its chunks, which are as long as a block, proves itself and its place.
    pub fn of_sealed(bytes: u64) -> Blocks {
        Blocks { bytes, sums: Vec::new(), check: [0; CHECK] }
    }

    /// As what is put beside a file, of the file `id` whose SHA-256 is `sha256`. [`Blocks::decode`] reads it.
    pub fn encode(&self, id: FileId, sha256: &[u8; 32]) -> Vec<u8> {
        encode(id, self.bytes, sha256, &self.sums)
    }

    /// Reads what was put beside the file `id` of `bytes` bytes, of which the manifest says `entry` (I-BLOCK-2). `None` if it is damaged
    /// or of another file.
    pub fn decode(object: &[u8], id: FileId, bytes: u64, entry: Option<&ManifestEntry>) -> Option<Blocks> {
        let (said, check) = object.split_last_chunk::<CHECK>()?;
        if <[u8; CHECK]>::from(Sha256::digest(said)) != *check {
            return None;
        }
        let (head, sums) = said.split_at_checked(HEAD)?;
        let mut expected = MAGIC.to_vec();
        expected.push(id.level.get());
        for n in [id.min.0, id.max.0, bytes] {
            expected.extend_from_slice(&n.to_be_bytes());
        }
        let sha256 = head.strip_prefix(expected.as_slice())?;
        if entry.is_some_and(|e| e.sha256 != *sha256) {
            return None;
        }
        let (sums, rest) = sums.as_chunks::<SUM>();
        let whole = rest.is_empty() && sums.len() as u64 == bytes.div_ceil(BLOCK);
        whole.then(|| Blocks { bytes, sums: sums.to_vec(), check: *check })
    }

    /// Where the sums of the file's pages, of which there are so many, lie in the object.
    pub fn pages_range(&self, pages: u32) -> Range<u64> {
        let begin = blocks_end(self.bytes);
        begin..begin + pages_bytes(pages)
    }

    /// Reads what lies there. `None` if it is damaged, of another file, or of another number of pages.
    pub fn decode_pages(&self, section: &[u8], pages: u32) -> Option<PageSums> {
        let (said, check) = section.split_last_chunk::<CHECK>()?;
        let sums = said.strip_prefix(PAGES_MAGIC)?.strip_prefix(&pages.to_be_bytes())?;
        let (sums, rest) = sums.as_chunks::<PAGE_SUM>();
        let whole = rest.is_empty() && sums.len() as u64 == u64::from(pages);
        (whole && check_of_pages(&self.check, said) == *check).then(|| PageSums(sums.to_vec()))
    }

    /// What stands behind them: the other lines of the object are bound to it.
    pub fn check(&self) -> &[u8; CHECK] {
        &self.check
    }

    /// Proves one block of the file. Errors with `Corrupt`.
    pub fn prove_one(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let expected = self.block_range(block);
        if bytes.len() as u64 != expected.end - expected.start {
            return Err(Error::corrupt("a block is cut short"));
        }
        if self.sums.is_empty() {
            return Ok(());
        }
        self.prove(expected.start, bytes)
    }

    /// Where a block lies in the file.
    pub fn block_range(&self, block: u64) -> Range<u64> {
        let start = block.saturating_mul(BLOCK).min(self.bytes);
        start..start.saturating_add(BLOCK).min(self.bytes)
    }

    /// The smallest range of whole blocks around `range`.
    pub fn around(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start / BLOCK * BLOCK;
        start..range.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(self.bytes)
    }

    /// Proves the bytes of the file from `start`, the beginning of a block, on. Errors with `Corrupt`.
    pub fn prove(&self, start: u64, bytes: &[u8]) -> Result<()> {
        let first = usize::try_from(start / BLOCK).unwrap_or(usize::MAX);
        for (n, block) in bytes.chunks(BLOCK as usize).enumerate() {
            if self.sums.get(first.saturating_add(n)) != Some(&sum(block)) {
                let at = start + n as u64 * BLOCK;
                return Err(Error::corrupt(format!(
                    "the bytes from {at} on are not those that were uploaded (checksum mismatch)"
                )));
            }
        }
        Ok(())
    }
}

impl PageSums {
    /// Whether the `n`-th page of the file (the first is 0) may be this one; if not, it is another.
    pub fn may_be(&self, n: usize, pgno: Pgno, page: &[u8]) -> bool {
        self.0.get(n) == Some(&page_sum(pgno, page))
    }

    /// The same, of a page that was fetched. Errors with `Corrupt`.
    pub fn hold(&self, n: usize, pgno: Pgno, page: &[u8]) -> Result<()> {
        match self.0.get(n) {
            None => Err(Error::new(Kind::Bug, format!("page {pgno} has no sum"))),
            Some(_) if self.may_be(n, pgno, page) => Ok(()),
            Some(_) => Err(Error::corrupt(format!(
                "page {pgno} is not the one that was uploaded (checksum mismatch)"
            ))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::clock::random_u64;
    use crate::base::{PageSize, Timestamp, TxId};
    use crate::ltx::{Encoder, Header, Level};

    /// A snapshot of 70 pages that cannot be packed, as a file, its bytes, and what the manifest would say of it.
    fn noise() -> (tempfile::TempDir, Vec<u8>, ManifestEntry) {
        let dir = tempfile::tempdir().unwrap();
        let header = Header::new(PageSize::new(4096).unwrap(), 70, TxId(1), TxId(9), Timestamp(0));
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for n in 1..=70 {
            let page: Vec<u8> = (0..512).flat_map(|_| random_u64().to_be_bytes()).collect();
            encoder.page(Pgno::new(n).unwrap(), &page).unwrap();
        }
        let data = encoder.finish().unwrap().1;
        let path = dir.path().join("x.ltx");
        std::fs::write(&path, &data).unwrap();
        let entry = ManifestEntry::of_file(Level::SNAPSHOT, &path).unwrap();
        (dir, data, entry)
    }

    /// The object of a file with another sum of its `n`-th page.
    pub(in crate::replica) fn with_page_sum(
        object: &[u8],
        entry: &ManifestEntry,
        n: usize,
        sum: [u8; PAGE_SUM],
    ) -> Vec<u8> {
        let (first, rest) = object.split_at(blocks_end(entry.bytes) as usize);
        let (section, guide) = rest.split_at((guide_begins(entry) - blocks_end(entry.bytes)) as usize);
        let blocks = Blocks::decode(first, entry.id, entry.bytes, Some(entry)).unwrap();
        let mut sums = blocks.decode_pages(section, entry.pages).unwrap().0;
        sums[n] = sum;
        let mut out = first.to_vec();
        encode_pages(&mut out, &sums);
        out.extend_from_slice(guide);
        out
    }

    #[test]
    fn each_page_has_its_sum_and_each_changed_byte_of_the_sums_is_found() {
        let (dir, data, entry) = noise();
        let all = of_file(&dir.path().join("x.ltx"), &entry).unwrap();
        let blocks =
            Blocks::decode(&all[..blocks_end(entry.bytes) as usize], entry.id, entry.bytes, Some(&entry));
        let blocks = blocks.unwrap();
        let range = blocks.pages_range(70);
        assert_eq!(range.end, guide_begins(&entry));
        let section = &all[range.start as usize..range.end as usize];
        let sums = blocks.decode_pages(section, 70).unwrap();
        let mut decoder = Decoder::new(data.as_slice()).unwrap();
        let (mut page, mut n) = (vec![0; 4096], 0);
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            assert!(sums.may_be(n, pgno, &page) && sums.hold(n, pgno, &page).is_ok());
            assert!(!sums.may_be((n + 1) % 70, pgno, &page) && !sums.may_be(70, pgno, &page));
            page[n * 50] ^= 1;
            assert!(!sums.may_be(n, pgno, &page) && sums.hold(n, pgno, &page).unwrap_err().is_corrupt());
            n += 1;
        }
        assert_eq!(n, 70);
        for at in 0..section.len() {
            let mut broken = section.to_vec();
            broken[at] ^= 1;
            assert_eq!(blocks.decode_pages(&broken, 70), None, "byte {at}");
        }
        assert_eq!(blocks.decode_pages(section, 69), None);
        assert_eq!(blocks.decode_pages(&section[1..], 70), None);
        // They are this file's alone.
        let (dir, _, other) = noise();
        let others = of_file(&dir.path().join("x.ltx"), &other).unwrap();
        assert_eq!(blocks.decode_pages(&others[range.start as usize..range.end as usize], 70), None);
    }

    #[test]
    fn each_changed_byte_is_found_and_only_its_own_file_counts() {
        let (dir, data, entry) = noise();
        let path = dir.path().join("x.ltx");
        let all = of_file(&path, &entry).unwrap();
        let object = all[..blocks_end(entry.bytes) as usize].to_vec();
        let decode = |o: &[u8], e: &ManifestEntry| Blocks::decode(o, e.id, e.bytes, Some(e));
        let blocks = decode(&object, &entry).unwrap();
        assert_eq!(blocks.sums.len(), 5);
        let end = data.len() as u64;
        for range in [0..1, 65_535..65_537, 200_000..200_010, end - 1..end, 0..end] {
            let around = blocks.around(&range);
            assert!(
                around.start <= range.start && around.end >= range.end && around.start.is_multiple_of(BLOCK)
            );
            let mut part = data[around.start as usize..around.end as usize].to_vec();
            blocks.prove(around.start, &part).unwrap();
            part[(range.start - around.start) as usize] ^= 1;
            assert!(blocks.prove(around.start, &part).unwrap_err().is_corrupt());
            assert!(blocks.prove(around.start, &part[1..]).is_err());
        }
        for at in (0..object.len()).step_by(7) {
            let mut broken = object.clone();
            broken[at] ^= 1;
            assert_eq!(decode(&broken, &entry), None, "byte {at}");
        }
        assert_eq!(decode(&object[..object.len() - 1], &entry), None);
        for other in [
            ManifestEntry { bytes: entry.bytes + 1, ..entry },
            ManifestEntry { sha256: [0; 32], ..entry },
            ManifestEntry { id: FileId { max: TxId(8), ..entry.id }, ..entry },
            ManifestEntry { id: FileId { level: Level::L0, ..entry.id }, ..entry },
        ] {
            assert_eq!(decode(&object, &other), None);
        }
        assert!(Blocks::decode(&object, entry.id, entry.bytes, None).is_some());
    }
}
