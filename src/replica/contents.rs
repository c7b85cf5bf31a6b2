//! What one LTX file holds, as far as single pages are read out of it, and how these are proved.
//!
//! Rules
//! * I-CONT-1 No byte of a page is given out that was not proved by a checksum over it: of the whole file, or of its block.
//!   - A file of [`WHOLE`] bytes at most is fetched whole, and proved as a restore does: its file checksum, and the checksum and SHA-256 in
//!     the manifest. What is more than [`AT_ONCE`] of it comes when a page is wanted: until then its header, page index and trailer will do, held
//!     against the checksum of them in the manifest. Of what was proved once the sums of its blocks are remembered, and prove what comes again.
//!   - A larger one with sums of its blocks beside it ([`super::blocks`]) is fetched block by block. Where its pages lie the guide beside it says
//!     ([`super::guide`]); without one, its header, page index and trailer are fetched, and held against the checksum of them in the manifest.
//!   - A larger one without (Litestream's, or of an older version of walrust) is fetched whole into a file without a name in the
//!     directory for temporary files, and proved as a small one. One of more than [`MOST_LOCAL`] bytes is an error that says so.
//!   - An age file of more than [`WHOLE`] bytes is fetched by its chunks, each of which proves itself and its place (I-AGE-4).
//! * I-CONT-2 What was fetched before it was known what the manifest says ([`Early`]) is proved by that as if it came after.
//! * I-CONT-3 A frame has to lie where the page index says, to bear that page's number, and to unpack to one whole page.
//!
//! Refused: to believe a frame because it unpacks (a changed byte in what LZ4 copies does not show).

use super::apply::agrees_with_manifest;
use super::blocks::{Blocks, MOST_PAGES, PageSums, WHOLE, blocks_end, guide_begins};
use super::edge::{END_OF_PAGES, SMALLEST, edge};
use super::guide::{self, Firsts, Guide, Index};
use super::inventory::FileInfo;
use super::layout::{BLOCK, FileId, blocks_key};
use super::manifest::ManifestEntry;
use super::probe::tail_bound;
use crate::base::sealed::no_identity;
use crate::base::{Error, Kind, Pgno, Result, clock};
use crate::ltx::{
    Decoder, HEADER_LEN, Header, IndexEntry, PackedIndex, PageIndex, TAIL_LEN, Tail, Trailer, decode_frame,
};
use crate::store::Store;
use bytes::Bytes;
use futures_util::future::{join, try_join, try_join3};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Files without sums of their blocks are fetched whole up to this size.
pub const MOST_LOCAL: u64 = 4 << 30;

/// A small file comes whole at once up to this size.
pub const AT_ONCE: u64 = 16 << 10;
/// Bytes at the end of a small file that are fetched while it is not known how long its page index is.
const EARLY_TAIL: u64 = 4 << 10;
/// What lies beside a large file is fetched in one request up to this size.
const EARLY_BESIDE: u64 = 128 << 10;

/// One file, ready for its pages to be read.
#[derive(Debug)]
pub struct Contents {
    /// Level and TXIDs.
    pub id: FileId,
    /// Its header, which agrees with its name.
    pub header: Header,
    /// Its size.
    pub bytes: u64,
    /// The size of its object, which differs where it is encrypted.
    pub stored: u64,
    /// The file checksum in its trailer.
    pub crc: u64,
    /// The SHA-256 of all of it, if the manifest tells it, or all of it was read.
    pub sha256: Option<[u8; 32]>,
    /// Where its pages lie.
    pub index: Index,
    body: Body,
}

/// What is kept of a file, for the next who reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it, where it is small.
    Whole,
    /// The sums of its blocks.
    Sums,
    /// The guide beside it.
    Guide,
    /// Header, page index and trailer of a small one.
    Edges,
}

/// Who keeps parts of files, by the SHA-256 of the file. Nothing of it is believed: each part is proved as if it came from the store.
pub trait Keep: Send + Sync {
    /// The part, if it is here.
    fn get(&self, of: &[u8; 32], part: Part) -> Option<Bytes>;
    /// Keeps it.
    fn put(&self, of: &[u8; 32], part: Part, bytes: &[u8]);
    /// It was found damaged.
    fn forget(&self, of: &[u8; 32], part: Part);
}

/// Where its frames come from.
#[derive(Debug)]
enum Body {
    /// Here, proved.
    Memory(Bytes),
    /// In a file of our own that has no name, proved.
    Local(File),
    /// In the store, block by block; a few frames are here. Of a small file that was not fetched yet the sums of its blocks are not known.
    Remote { blocks: OnceLock<Blocks>, firsts: Firsts },
}

/// What was fetched of a file while it was not known what the manifest says of it. Nothing of it is believed.
#[derive(Clone, Debug)]
pub enum Early {
    /// All of it.
    Whole(Bytes),
    /// Its header, and its last bytes.
    Edges {
        /// The header.
        head: Bytes,
        /// The last bytes, trailer included.
        tail: Bytes,
    },
    /// The sums of its blocks, and what lies beside it from `at` on.
    Beside {
        /// The sums of its blocks.
        sums: Bytes,
        /// What follows in the object beside it.
        rest: Bytes,
        /// Where in that object `rest` begins.
        at: u64,
    },
}

impl Early {
    /// How many requests at once [`Early::fetch`] makes, given the same.
    pub fn requests_of(file: &FileInfo, beside: Option<u64>) -> u32 {
        let is_one = match file.bytes {
            size if size <= WHOLE => is_early_whole(file),
            size => beside.is_none_or(|b| b.saturating_sub(blocks_end(size)) <= EARLY_BESIDE),
        };
        if is_one { 1 } else { 2 }
    }

    /// Fetches what will be needed of `file`, as far as its size, and that of the object beside it if there is one, tell where it lies.
    /// `None` where they do not, and after any error: then it is asked for when the manifest is known.
    pub async fn fetch(store: &Store, file: &FileInfo, beside: Option<u64>) -> Option<Early> {
        let (id, size) = (file.id(), file.bytes);
        let key = id.key(store.layout());
        if size < SMALLEST {
            return None;
        }
        if is_early_whole(file) {
            return store.get_range(&key, 0..size).await.ok().map(Early::Whole);
        }
        if size <= WHOLE {
            let (head, tail) = (0..HEADER_LEN as u64, size - EARLY_TAIL..size);
            let (head, tail) = join(store.get_range(&key, head), store.get_range(&key, tail)).await;
            return Some(Early::Edges { head: head.ok()?, tail: tail.ok()? });
        }
        let (key, beside, sums_end) = (blocks_key(id), beside?, blocks_end(size));
        if beside <= sums_end {
            return None;
        }
        if beside - sums_end <= EARLY_BESIDE {
            let all = store.get_range(&key, 0..beside).await.ok()?;
            let at = usize::try_from(sums_end).ok().filter(|at| *at <= all.len())?;
            return Some(Early::Beside { sums: all.slice(..at), rest: all.slice(at..), at: sums_end });
        }
        // Of what is no full copy only the manifest tells how long the guide may be.
        let at =
            id.name().is_snapshot().then(|| beside.saturating_sub(guide::most_of_full(size)))?.max(sums_end);
        let (sums, rest) = join(store.get_range(&key, 0..sums_end), store.get_range(&key, at..beside)).await;
        Some(Early::Beside { sums: sums.ok()?, rest: rest.ok()?, at })
    }
}

impl Contents {
    /// Reads what `file` holds, out of what `keep` has of it, else out of the store. `entry` is what the manifest says of it.
    ///
    /// Errors: `Corrupt`, with its name, if it is not what its name or the manifest says; `Missing` if it is gone; `Config` if it is too
    /// large to be proved; the store's.
    pub async fn read(
        store: &Store,
        file: &FileInfo,
        entry: Option<&ManifestEntry>,
        keep: Option<&dyn Keep>,
    ) -> Result<Contents> {
        if let Some(found) = sealed(store, file, entry).await.map_err(|e| e.context(file.id()))? {
            return Ok(found);
        }
        let keep = entry.filter(|e| e.bytes == file.bytes).zip(keep);
        if let Some((entry, keep)) = keep
            && let Some(found) = kept(file, entry, keep)
        {
            return Ok(found);
        }
        read(store, file, entry, keep).await.map_err(|e| e.context(file.id()))
    }

    /// What `file` holds, by what was fetched of it before. `None` where that does not tell it, or is not what the manifest says.
    pub fn of_early(
        file: &FileInfo,
        entry: Option<&ManifestEntry>,
        early: &Early,
        keep: Option<&dyn Keep>,
    ) -> Option<Contents> {
        if entry.is_some_and(|e| e.bytes != file.bytes || e.is_sealed()) {
            return None;
        }
        let keep = entry.zip(keep);
        match early {
            Early::Whole(all) => {
                let found = whole(file.id(), all.clone(), entry).ok()?;
                if let Some((entry, keep)) = keep {
                    keep.put(&entry.sha256, Part::Whole, all);
                }
                Some(found)
            }
            Early::Edges { head, tail } => of_edges(file, entry?, head, tail, keep.map(|k| k.1)).ok(),
            Early::Beside { sums, rest, at } => {
                let begin = usize::try_from(guide_begins(entry?).checked_sub(*at)?).ok()?;
                let section = rest.slice(begin.min(rest.len())..);
                match of_beside(file, entry?, sums, &section) {
                    Beside::Guide(found) => {
                        if let Some((entry, keep)) = keep {
                            keep.put(&entry.sha256, Part::Sums, sums);
                            keep.put(&entry.sha256, Part::Guide, &section);
                        }
                        Some(*found)
                    }
                    _ => None,
                }
            }
        }
    }

    /// The same without what of it is in memory, which is given to the caller: it can be fetched again, and is proved then by the sums of its
    /// blocks. `None` where nothing of it is.
    pub fn without_body(mut self) -> (Contents, Option<Bytes>) {
        match self.body {
            Body::Memory(all) => {
                let blocks = OnceLock::from(Blocks::of_proved(&all));
                self.body = Body::Remote { blocks, firsts: Firsts::default() };
                (self, Some(all))
            }
            _ => (self, None),
        }
    }

    /// The sums of its blocks, as [`Part::Sums`], if they are known.
    pub fn sums(&self) -> Option<Vec<u8>> {
        let Body::Remote { blocks, .. } = &self.body else { return None };
        Some(blocks.get()?.encode(self.id, self.sha256.as_ref()?))
    }

    /// Whether a block of it can be proved by itself.
    pub fn can_prove_blocks(&self) -> bool {
        matches!(&self.body, Body::Remote { blocks, .. } if blocks.get().is_some())
    }

    /// What `file` holds, if single pages of it can be read and told from others: a large one with sums of its blocks and pages beside it.
    /// Errors as [`Contents::read`].
    pub async fn in_place(
        store: &Store,
        file: &FileInfo,
        entry: Option<&ManifestEntry>,
    ) -> Result<Option<(Contents, PageSums)>> {
        let (id, size) = (file.id(), file.bytes);
        if size <= WHOLE || entry.is_none_or(|e| e.bytes != size || e.pages > MOST_PAGES || e.is_sealed()) {
            return Ok(None);
        }
        let Some(found) = by_blocks(store, file, entry, None).await.map_err(|e| e.context(id))? else {
            return Ok(None);
        };
        let Body::Remote { blocks, .. } = &found.body else { return Ok(None) };
        let Some(blocks) = blocks.get() else { return Ok(None) };
        let pages = u32::try_from(found.pages_known()).unwrap_or(u32::MAX);
        let section = match store.get_range(&blocks_key(id), blocks.pages_range(pages)).await {
            Ok(section) => section,
            // (An object of before ends where they would begin.)
            Err(e) if e.is_missing() || e.is_corrupt() => return Ok(None),
            Err(e) => return Err(e),
        };
        let sums = blocks.decode_pages(&section, pages);
        Ok(sums.map(|sums| (found, sums)))
    }

    /// Reads what a copy of `file` on this machine holds, all of it proved as a restore does. Errors with `Corrupt` where it is not that
    /// file, and as reading a file does.
    pub async fn of_copy(file: &FileInfo, copy: File, entry: Option<&ManifestEntry>) -> Result<Contents> {
        let size =
            copy.metadata().map_err(|e| Error::new(Kind::Io, "cannot look at a copy").because(e))?.len();
        let is_sealed = entry.is_some_and(ManifestEntry::is_sealed);
        if is_sealed && size <= WHOLE {
            // (The spool's is what the age file was made of.)
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            copy.read_exact_at(&mut bytes, 0)
                .map_err(|e| Error::new(Kind::Io, "cannot read a copy").because(e))?;
            let found = whole(file.id(), bytes.into(), None)?;
            return Ok(Contents { stored: file.bytes, sha256: None, ..found });
        }
        if is_sealed {
            let found = in_file(file.id(), copy, size, None).await?;
            return Ok(Contents { stored: file.bytes, ..found });
        }
        if size != file.bytes {
            return Err(Error::corrupt(format!(
                "a copy of {} has {size} bytes, not {}",
                file.id(),
                file.bytes
            )));
        }
        if size <= WHOLE {
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            let read = copy.read_exact_at(&mut bytes, 0);
            read.map_err(|e| {
                Error::new(Kind::Io, format!("cannot read a copy of {}", file.id())).because(e)
            })?;
            return whole(file.id(), bytes.into(), entry);
        }
        in_file(file.id(), copy, size, entry).await
    }

    /// Where its pages lie, in the order of the file, counted from 0, if that is known of each.
    pub fn pages(&self) -> impl Iterator<Item = (usize, IndexEntry)> + '_ {
        self.index.each().into_iter().flat_map(|index| index.from(Pgno::ONE)).enumerate()
    }

    /// Of how many pages it is known where each lies.
    pub fn pages_known(&self) -> usize {
        self.index.each().map_or(0, PackedIndex::len)
    }

    /// The pages whose frames lie wholly in `range`, if it is known where each lies.
    pub fn within<'a>(&'a self, range: &'a Range<u64>) -> impl Iterator<Item = IndexEntry> + 'a {
        self.index.each().into_iter().flat_map(move |index| index.within(range))
    }

    /// The page, if it need not be fetched. Errors with `Io` where the local copy cannot be read, with `Corrupt` and the file's name where
    /// its frame is none.
    pub fn at_hand(&self, pgno: Pgno) -> Result<Option<Vec<u8>>> {
        let named = |e: Error| e.context(self.id);
        match &self.body {
            Body::Memory(all) => {
                self.unpacked(pgno, self.index.frame(pgno, 0, all).map_err(named)?).map(Some)
            }
            Body::Remote { firsts, .. } => {
                firsts.frame(pgno, self.header.page_size).map(|frame| self.unpacked(pgno, frame)).transpose()
            }
            Body::Local(file) => {
                let span =
                    self.index.span(pgno).ok_or_else(|| Error::new(Kind::Bug, "a page that is not there"))?;
                let mut frame = vec![0; usize::try_from(span.end - span.start).unwrap_or(0)];
                file.read_exact_at(&mut frame, span.start).map_err(|e| {
                    Error::new(Kind::Io, format!("cannot read the copy of {}", self.id)).because(e)
                })?;
                let frame = self.index.frame(pgno, span.start, &frame).map_err(named)?;
                self.unpacked(pgno, frame).map(Some)
            }
        }
    }

    /// The blocks in which the page lies, or which have to be fetched for it; `None` where it need not be fetched, or is not in the file.
    pub fn blocks_of(&self, pgno: Pgno) -> Option<Range<u64>> {
        let Body::Remote { blocks, firsts } = &self.body else { return None };
        if firsts.frame(pgno, self.header.page_size).is_some() {
            return None;
        }
        if blocks.get().is_none() {
            return Some(0..self.bytes.div_ceil(BLOCK));
        }
        let span = self.index.span(pgno)?;
        Some(span.start / BLOCK..span.end.div_ceil(BLOCK))
    }

    /// The page out of its blocks, of which `bytes` are all, proved, from block `first` on. Errors with `Corrupt` and the file's name.
    pub fn page_of(&self, pgno: Pgno, first: u64, bytes: &[u8]) -> Result<Vec<u8>> {
        let frame = self.index.frame(pgno, first * BLOCK, bytes).map_err(|e| e.context(self.id))?;
        self.unpacked(pgno, frame)
    }

    /// Whether `bytes` are that block of the file.
    pub fn is_block(&self, block: u64, bytes: &[u8]) -> bool {
        let Body::Remote { blocks, .. } = &self.body else { return false };
        blocks.get().is_some_and(|b| b.prove_one(block, bytes).is_ok())
    }

    /// Fetches blocks of the file, each proved; all of a small one at its first fetch. Errors: `Corrupt`, with the file's name; `Missing` if the file is gone; the store's.
    pub async fn fetch(&self, store: &Store, wanted: Range<u64>) -> Result<Vec<(u64, Arc<[u8]>)>> {
        let Body::Remote { blocks, .. } = &self.body else { return Ok(Vec::new()) };
        let Some(known) = blocks.get() else { return self.fetch_whole(store, blocks).await };
        let range = wanted.start * BLOCK..(wanted.end * BLOCK).min(self.bytes);
        let key = self.id.key(store.layout());
        // Each by itself: one that stays in memory does not keep the others there.
        let blocks = store.get_range_in(&key, range.clone(), BLOCK as usize).await?;
        if blocks.iter().map(|b| b.len() as u64).sum::<u64>() != range.end.saturating_sub(range.start) {
            return Err(Error::corrupt(format!("{}: {SHORT}", self.id)));
        }
        let blocks: Vec<_> = (wanted.start..).zip(blocks).collect();
        for (n, block) in &blocks {
            known.prove_one(*n, block).map_err(|e| e.context(self.id))?;
        }
        Ok(blocks)
    }

    /// All of a small file of which the edges are known.
    async fn fetch_whole(&self, store: &Store, blocks: &OnceLock<Blocks>) -> Result<Vec<(u64, Arc<[u8]>)>> {
        let bytes = store.get_range(&self.id.key(store.layout()), 0..self.bytes).await?;
        let is_it = self.sha256.is_some_and(|sum| sum == <[u8; 32]>::from(Sha256::digest(&bytes)));
        let trailer = proved(self.id, bytes.as_ref(), None).map_err(|e| e.context(self.id))?.1;
        if !is_it || trailer.checksum != self.crc {
            return Err(Error::corrupt(format!(
                "{}: it is not what the manifest says (checksum mismatch)",
                self.id
            )));
        }
        // (Who came first has put the same.)
        drop(blocks.set(Blocks::of_proved(&bytes)));
        Ok(in_blocks(0, &bytes))
    }

    fn unpacked(&self, pgno: Pgno, frame: &[u8]) -> Result<Vec<u8>> {
        let mut page = vec![0; self.header.page_size.len()];
        let found = decode_frame(frame, self.header.page_size, &mut page)
            .map_err(|e| e.context(format!("{}: page {pgno}", self.id)))?;
        if found != pgno {
            return Err(Error::corrupt(format!(
                "{}: page {found} lies where the page index has page {pgno}",
                self.id
            )));
        }
        Ok(page)
    }

    /// The page of `frame`, which are the bytes at `entry` (I-CONT-3). Errors with `Corrupt` and the file's name.
    pub fn page(&self, entry: &IndexEntry, frame: &[u8]) -> Result<Vec<u8>> {
        self.unpacked(entry.pgno, frame)
    }
}

/// The blocks from `first` on, each by itself.
pub fn in_blocks(first: u64, bytes: &[u8]) -> Vec<(u64, Arc<[u8]>)> {
    (first..).zip(bytes.chunks(BLOCK as usize).map(Arc::from)).collect()
}

/// What `keep` has of the file, if it holds.
fn kept(file: &FileInfo, entry: &ManifestEntry, keep: &dyn Keep) -> Option<Contents> {
    let sha256 = &entry.sha256;
    if file.bytes <= WHOLE {
        if let Some(all) = keep.get(sha256, Part::Whole) {
            let found = whole(file.id(), all, Some(entry));
            return found.inspect_err(|_| keep.forget(sha256, Part::Whole)).ok();
        }
        let edges = keep.get(sha256, Part::Edges)?;
        let (head, tail) = edges.split_at_checked(HEADER_LEN)?;
        let found = of_edges(file, entry, head, tail, None);
        let found = found.inspect_err(|_| keep.forget(sha256, Part::Edges)).ok()?;
        let sums = keep.get(sha256, Part::Sums);
        let sums = sums.and_then(|s| Blocks::decode(&s, file.id(), file.bytes, Some(entry)));
        if let (Body::Remote { blocks, .. }, Some(sums)) = (&found.body, sums) {
            drop(blocks.set(sums));
        }
        return Some(found);
    }
    let (sums, section) = (keep.get(sha256, Part::Sums)?, keep.get(sha256, Part::Guide)?);
    let found = of_beside(file, entry, &sums, &section);
    if !matches!(found, Beside::Guide(_)) {
        keep.forget(sha256, Part::Sums);
        keep.forget(sha256, Part::Guide);
    }
    if let Beside::Guide(found) = found { Some(*found) } else { None }
}

async fn read(
    store: &Store,
    file: &FileInfo,
    entry: Option<&ManifestEntry>,
    keep: Option<(&ManifestEntry, &dyn Keep)>,
) -> Result<Contents> {
    let (id, size) = (file.id(), file.bytes);
    if size < SMALLEST {
        return Err(Error::corrupt(format!("{size} bytes are too few for an LTX file")));
    }
    if let Some(e) = entry
        && e.bytes != size
    {
        return Err(Error::corrupt(format!("it has {size} bytes, the manifest says {}", e.bytes)));
    }
    if let Some(entry) = entry.filter(|e| is_by_edges(file, e)) {
        return by_edges(store, file, entry, keep.map(|k| k.1)).await;
    }
    if size <= WHOLE {
        let bytes = store.get(&id.key(store.layout())).await?;
        let found = whole(id, bytes.clone(), entry)?;
        if let Some((entry, keep)) = keep {
            keep.put(&entry.sha256, Part::Whole, &bytes);
        }
        return Ok(found);
    }
    let sums = match by_guide(store, file, entry, keep).await? {
        Beside::Guide(found) => return Ok(*found),
        Beside::Sums(sums) => Some(sums),
        Beside::Nothing => None,
    };
    if sums.is_some()
        && let Some(found) = by_blocks(store, file, entry, sums).await?
    {
        return Ok(found);
    }
    if size > MOST_LOCAL {
        return Err(Error::config(format!(
            "it has {size} bytes and no sums of its blocks, by which a part of it could be proved; restore it, or have a snapshot \
             taken by this version of walrust"
        )));
    }
    local(store, id, entry).await
}

/// What an age file holds; `None` where it is none, or the manifest says so. Errors as [`Contents::read`].
async fn sealed(store: &Store, file: &FileInfo, entry: Option<&ManifestEntry>) -> Result<Option<Contents>> {
    let (id, stored) = (file.id(), file.bytes);
    if entry.is_some_and(|e| !e.is_sealed()) || (entry.is_none() && !store.can_open()) {
        return Ok(None);
    }
    if !store.can_open() {
        return Err(no_identity("it"));
    }
    if let Some(e) = entry
        && e.bytes != stored
    {
        return Err(Error::corrupt(format!("it has {stored} bytes, the manifest says {}", e.bytes)));
    }
    let key = id.key(store.layout());
    if stored <= WHOLE {
        let found = whole(id, store.get(&key).await?, None)?;
        return Ok(Some(Contents { stored, sha256: None, ..found }));
    }
    let Some(bytes) = store.clear_len(&key, stored).await? else { return Ok(None) };
    let head_len = HEADER_LEN as u64;
    if bytes < SMALLEST {
        return Err(Error::corrupt(format!("{bytes} bytes are too few for an LTX file")));
    }
    let from = bytes.saturating_sub(tail_bound(entry)).max(head_len);
    let (head, tail) =
        try_join(store.get_range(&key, 0..head_len), store.get_range(&key, from..bytes)).await?;
    if tail.len() as u64 != bytes - from {
        return Err(Error::corrupt(SHORT));
    }
    let head: &[u8; HEADER_LEN] = head.as_ref().try_into().map_err(|_| Error::corrupt(SHORT))?;
    let tail = with_all_of_the_index(store, &key, bytes, from, tail).await?;
    let (header, index, tail) = edges_of(id, bytes, head, &tail)?;
    let crc = Tail::parse(tail)?.checksum;
    let body = Body::Remote { blocks: Blocks::of_sealed(bytes).into(), firsts: Firsts::default() };
    Ok(Some(Contents { id, header, bytes, stored, crc, sha256: None, index, body }))
}

/// Whether all of a file is fetched while it is not known what the manifest says of it.
fn is_early_whole(file: &FileInfo) -> bool {
    file.bytes <= AT_ONCE || (file.bytes <= WHOLE && file.id().name().is_snapshot())
}

/// Whether of a small file first the edges alone are fetched.
fn is_by_edges(file: &FileInfo, entry: &ManifestEntry) -> bool {
    // (Of a full copy the first page and the schema are wanted at once.)
    let is_full = file.id().name().is_snapshot();
    !is_full && (AT_ONCE + 1..=WHOLE).contains(&file.bytes) && tail_bound(Some(entry)) <= file.bytes / 2
}

/// The edges of a small file.
async fn by_edges(
    store: &Store,
    file: &FileInfo,
    entry: &ManifestEntry,
    keep: Option<&dyn Keep>,
) -> Result<Contents> {
    let (key, size, head_len) = (file.id().key(store.layout()), file.bytes, HEADER_LEN as u64);
    let from = size.saturating_sub(tail_bound(Some(entry))).max(head_len);
    let (head, tail) = (store.get_range(&key, 0..head_len), store.get_range(&key, from..size));
    let (head, tail) = try_join(head, tail).await?;
    if tail.len() as u64 != size - from {
        return Err(Error::corrupt(SHORT));
    }
    let tail = with_all_of_the_index(store, &key, size, from, tail).await?;
    of_edges(file, entry, &head, &tail, keep)
}

/// A small file by its edges: `tail` are its last bytes, from the end of its pages on or from before it. Errors with `Corrupt` where they
/// are not those of which the manifest tells.
fn of_edges(
    file: &FileInfo,
    entry: &ManifestEntry,
    head: &[u8],
    tail: &[u8],
    keep: Option<&dyn Keep>,
) -> Result<Contents> {
    let (id, bytes) = (file.id(), file.bytes);
    let head =
        head.first_chunk().filter(|_| head.len() == HEADER_LEN).ok_or_else(|| Error::corrupt(SHORT))?;
    let (header, index, tail) = proved_edges(id, bytes, head, tail, entry)?;
    if let Some(keep) = keep {
        keep.put(&entry.sha256, Part::Edges, &[head, tail].concat());
    }
    let (body, sha256) =
        (Body::Remote { blocks: OnceLock::new(), firsts: Firsts::default() }, Some(entry.sha256));
    Ok(Contents { id, header, bytes, stored: bytes, crc: entry.crc, sha256, index, body })
}

/// A whole file in memory, proved. Errors with `Corrupt`.
pub fn whole(id: FileId, bytes: Bytes, entry: Option<&ManifestEntry>) -> Result<Contents> {
    let (header, trailer) = proved(id, bytes.as_ref(), entry)?;
    let size = bytes.len() as u64;
    let tail = Tail::parse(&bytes)?;
    let index = tail.index_in(&bytes).ok_or_else(|| Error::corrupt("its page index is not whole"))?;
    let index = Index::Each(PackedIndex::of(&PageIndex::parse_for(index, size, &header)?));
    // (What the manifest says was compared with it.)
    let sha256 = trailer.sha256;
    let (crc, body) = (trailer.checksum, Body::Memory(bytes));
    Ok(Contents { id, header, bytes: size, stored: size, crc, sha256, index, body })
}

/// Reads all of a file, and proves it as a restore does.
fn proved<R: std::io::Read>(
    id: FileId,
    reader: R,
    entry: Option<&ManifestEntry>,
) -> Result<(Header, Trailer)> {
    let decoder = Decoder::with_sha256(reader)?;
    let header = decoder.header().clone();
    is_named(&header, id)?;
    let trailer = decoder.finish()?;
    agrees_with_manifest(&trailer, entry)?;
    Ok((header, trailer))
}

/// A whole file in one of our own, proved.
async fn local(store: &Store, id: FileId, entry: Option<&ManifestEntry>) -> Result<Contents> {
    let name = format!(".walrust-read-{:016x}", clock::random_u64());
    let path = std::env::temp_dir().join(name);
    let unnamed = |path: &Path| {
        let opened = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        opened.map_err(|e| Error::io("create", path, e))
    };
    let file = unnamed(&path)?;
    let fetched = store.get_to_file(&id.key(store.layout()), &path).await;
    let removed = std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e));
    let size = fetched?.0;
    removed?;
    in_file(id, file, size, entry).await
}

/// A whole file of this machine, proved.
async fn in_file(id: FileId, file: File, size: u64, entry: Option<&ManifestEntry>) -> Result<Contents> {
    let entry = entry.copied();
    crate::base::panics::blocking(move || {
        let io = |e| Error::new(Kind::Io, "cannot read the copy").because(e);
        let (header, trailer) =
            proved(id, std::io::BufReader::with_capacity(128 * 1024, &file), entry.as_ref())?;
        let mut last = [0; TAIL_LEN];
        file.read_exact_at(&mut last, size.saturating_sub(TAIL_LEN as u64)).map_err(io)?;
        let range = Tail::parse(&last)?.index_range(size)?;
        let mut index = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        file.read_exact_at(&mut index, range.start).map_err(io)?;
        let index = Index::Each(PackedIndex::of(&PageIndex::parse_for(&index, size, &header)?));
        let sha256 = entry.map(|e| e.sha256);
        Ok(Contents {
            id,
            header,
            bytes: size,
            stored: size,
            crc: trailer.checksum,
            sha256,
            index,
            body: Body::Local(file),
        })
    })
    .await?
}

/// What lies beside a large file.
enum Beside {
    /// All that is needed to read pages of it.
    Guide(Box<Contents>),
    /// The sums of its blocks.
    Sums(Blocks),
    Nothing,
}

/// Whether what is asked for of a file at once is one request, never two.
pub fn is_in_one(file: &FileInfo, entry: &ManifestEntry) -> bool {
    if file.bytes <= WHOLE {
        return !is_by_edges(file, entry);
    }
    guide_begins(entry).saturating_sub(blocks_end(entry.bytes)) <= BLOCK
}

/// A large file by what lies beside it: in one request, or in two at once where the sums of its pages lie between the sums of its blocks and the
/// guide.
async fn by_guide(
    store: &Store,
    file: &FileInfo,
    entry: Option<&ManifestEntry>,
    keep: Option<(&ManifestEntry, &dyn Keep)>,
) -> Result<Beside> {
    let (id, size) = (file.id(), file.bytes);
    // What no manifest names was put by somebody who puts no sums, or is so new that its sums are not there.
    let Some(entry) = entry else { return Ok(Beside::Nothing) };
    let (key, sums_end, begins) = (blocks_key(id), blocks_end(size), guide_begins(entry));
    let end = begins + guide::most_bytes(entry, id.name().is_snapshot());
    let some = async |range: Range<u64>| match store.get_range(&key, range).await {
        // (An object of before ends where a guide would begin.)
        Err(e) if e.is_missing() || e.is_corrupt() => Ok(Bytes::new()),
        other => other,
    };
    let (sums, section) = if is_in_one(file, entry) {
        let all = some(0..end).await?;
        let until = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(all.len());
        (all.slice(..until(sums_end)), all.slice(until(begins)..))
    } else {
        try_join(some(0..sums_end), some(begins..end)).await?
    };
    let found = of_beside(file, entry, &sums, &section);
    if let (Beside::Guide(_), Some((entry, keep))) = (&found, keep) {
        keep.put(&entry.sha256, Part::Sums, &sums);
        keep.put(&entry.sha256, Part::Guide, &section);
    }
    Ok(found)
}

/// What the sums of its blocks and what stands behind them say of a large file. Pure.
fn of_beside(file: &FileInfo, entry: &ManifestEntry, sums: &[u8], section: &Bytes) -> Beside {
    let (id, bytes) = (file.id(), file.bytes);
    let Some(blocks) = Blocks::decode(sums, id, bytes, Some(entry)) else { return Beside::Nothing };
    let Some(guide) = Guide::decode(section, entry, blocks.check()) else { return Beside::Sums(blocks) };
    let Guide { header, index, firsts } = guide;
    let (body, sha256) = (Body::Remote { blocks: blocks.into(), firsts }, Some(entry.sha256));
    Beside::Guide(Box::new(Contents {
        id,
        header,
        bytes,
        stored: bytes,
        crc: entry.crc,
        sha256,
        index,
        body,
    }))
}

/// The edges of a large file, and the sums of its blocks, which may be known; `None` if it has none.
async fn by_blocks(
    store: &Store,
    file: &FileInfo,
    entry: Option<&ManifestEntry>,
    known: Option<Blocks>,
) -> Result<Option<Contents>> {
    let (id, size) = (file.id(), file.bytes);
    let Some(entry) = entry else { return Ok(None) };
    let key = id.key(store.layout());
    let head_len = HEADER_LEN as u64;
    let from = size.saturating_sub(tail_bound(Some(entry))).max(head_len);
    let sums = async {
        if let Some(known) = known {
            return Ok(Some(known));
        }
        match store.get_range(&blocks_key(id), 0..blocks_end(size)).await {
            Ok(object) => Ok(Blocks::decode(&object, id, size, Some(entry))),
            Err(e) if e.is_missing() || e.is_corrupt() => Ok(None),
            Err(e) => Err(e),
        }
    };
    let (head, tail) = (store.get_range(&key, 0..head_len), store.get_range(&key, from..size));
    let (blocks, head, tail) = match is_in_one(file, entry) {
        true => (sums.await?, head.await?, tail.await?),
        false => try_join3(sums, head, tail).await?,
    };
    let Some(blocks) = blocks else { return Ok(None) };
    if tail.len() as u64 != size - from {
        return Err(Error::corrupt(SHORT));
    }
    let start: &[u8; HEADER_LEN] = head.as_ref().try_into().map_err(|_| Error::corrupt(SHORT))?;
    let tail = with_all_of_the_index(store, &key, size, from, tail).await?;
    let (header, index, _) = proved_edges(id, size, start, &tail, entry)?;
    Ok(Some(Contents {
        id,
        header,
        bytes: size,
        stored: size,
        crc: entry.crc,
        sha256: Some(entry.sha256),
        index,
        body: Body::Remote { blocks: blocks.into(), firsts: Firsts::default() },
    }))
}

const SHORT: &str = "it is shorter than the store's listing says";

/// The bytes of a file from `from` on to its end, which are `tail`, and those before that belong to its page index: the first guess may have been
/// too short.
async fn with_all_of_the_index(store: &Store, key: &str, size: u64, from: u64, tail: Bytes) -> Result<Bytes> {
    let begins = Tail::parse(&tail)?.index_range(size)?.start - END_OF_PAGES;
    if begins >= from {
        return Ok(tail);
    }
    let more = store.get_range(key, begins..from).await?;
    if more.len() as u64 != from - begins {
        return Err(Error::corrupt(SHORT));
    }
    Ok([more.as_ref(), tail.as_ref()].concat().into())
}

/// Header and page index of the file `id` of `size` bytes, and what follows its pages, out of its header and its last bytes. Errors with
/// `Corrupt` where they are not what the manifest says (I-CONT-1).
fn proved_edges<'a>(
    id: FileId,
    size: u64,
    head: &[u8; HEADER_LEN],
    tail: &'a [u8],
    entry: &ManifestEntry,
) -> Result<(Header, Index, &'a [u8])> {
    let (header, index, edges) = edges_of(id, size, head, tail)?;
    if edge(head, edges) != entry.edge || Tail::parse(edges)?.checksum != entry.crc {
        return Err(Error::corrupt(
            "its header, page index or trailer is not what the manifest says (checksum mismatch)",
        ));
    }
    Ok((header, index, edges))
}

/// The same, without what the manifest says.
fn edges_of<'a>(
    id: FileId,
    size: u64,
    head: &[u8; HEADER_LEN],
    tail: &'a [u8],
) -> Result<(Header, Index, &'a [u8])> {
    let header = Header::decode(head)?;
    is_named(&header, id)?;
    let parsed = Tail::parse(tail)?;
    let begins = parsed.index_range(size)?.start - END_OF_PAGES;
    let len = usize::try_from(size - begins).unwrap_or(usize::MAX);
    let edges = tail.len().checked_sub(len).and_then(|skip| tail.get(skip..)).unwrap_or_default();
    if !edges.starts_with(&[0; END_OF_PAGES as usize]) {
        return Err(Error::corrupt("its pages do not end where its page index starts"));
    }
    let index = parsed.index_in(edges).ok_or_else(|| Error::corrupt("its page index is not whole"))?;
    let index = Index::Each(PackedIndex::of(&PageIndex::parse_for(index, size, &header)?));
    Ok((header, index, edges))
}

fn is_named(header: &Header, id: FileId) -> Result<()> {
    if header.file_name() == id.name() {
        return Ok(());
    }
    Err(Error::corrupt(format!("its header says {}: a renamed or swapped file", header.file_name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::random_u64;
    use crate::base::{PageSize, Timestamp, TxId};
    use crate::ltx::Level;
    use crate::replica::testkit::{LtxFile, block, encode, put};
    use std::collections::HashMap;
    use std::sync::Mutex;

    /// Every third page of a database of some, none of which can be packed.
    fn noise(pages: u32, of: u32) -> (LtxFile, HashMap<Pgno, Vec<u8>>) {
        let size = PageSize::new(4096).unwrap();
        let header = Header::new(size, of, TxId(5), TxId(9), Timestamp(7));
        let noise = || (0..512).flat_map(|_| random_u64().to_be_bytes()).collect::<Vec<u8>>();
        let all: Vec<(Pgno, Vec<u8>)> =
            (0..pages).map(|n| (Pgno::new(2 + 3 * n).unwrap(), noise())).collect();
        let borrowed: Vec<(Pgno, &[u8])> = all.iter().map(|(n, p)| (*n, p.as_slice())).collect();
        (encode(Level::L0, header, &borrowed), all.into_iter().collect())
    }

    fn stored(file: &LtxFile) -> (Store, FileInfo) {
        let store = Store::in_memory();
        block(put(&store, std::slice::from_ref(file)));
        (store, FileInfo::listed(file.id, file.bytes.len() as u64, Timestamp(0)))
    }

    #[derive(Default)]
    struct Kept(Mutex<HashMap<([u8; 32], u8), Bytes>>);

    impl Keep for Kept {
        fn get(&self, of: &[u8; 32], part: Part) -> Option<Bytes> {
            self.0.lock().unwrap().get(&(*of, part as u8)).cloned()
        }
        fn put(&self, of: &[u8; 32], part: Part, bytes: &[u8]) {
            self.0.lock().unwrap().insert((*of, part as u8), Bytes::copy_from_slice(bytes));
        }
        fn forget(&self, of: &[u8; 32], part: Part) {
            self.0.lock().unwrap().remove(&(*of, part as u8));
        }
    }

    /// All pages as they are read. Errors as reading them does.
    fn pages(store: &Store, contents: &Contents) -> Result<HashMap<Pgno, Vec<u8>>> {
        let mut out = HashMap::new();
        for (_, e) in contents.pages() {
            let range = contents.blocks_of(e.pgno).unwrap();
            let fetched = block(contents.fetch(store, range.clone()))?;
            assert!(fetched.iter().all(|(n, bytes)| contents.is_block(*n, bytes)));
            let all: Vec<u8> = fetched.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
            out.insert(e.pgno, contents.page_of(e.pgno, range.start, &all)?);
        }
        Ok(out)
    }

    #[test]
    fn of_a_small_file_the_edges_come_first_and_each_changed_byte_is_found() {
        let (file, expected) = noise(40, 200);
        let (store, info) = stored(&file);
        let (entry, size) = (Some(&file.entry), file.bytes.len());
        let contents = block(Contents::read(&store, &info, entry, None)).unwrap();
        assert!(!contents.can_prove_blocks() && contents.sums().is_none());
        assert_eq!(contents.blocks_of(Pgno::new(5).unwrap()), Some(0..3), "all of it, which proves itself");
        assert_eq!(pages(&store, &contents).unwrap(), expected);
        assert!(contents.can_prove_blocks());
        assert_eq!(contents.blocks_of(Pgno::new(5).unwrap()), Some(0..1));
        let begins = size - 40 * 9;
        let tail = (begins..size).chain(0..HEADER_LEN);
        for at in tail.chain((HEADER_LEN..begins).step_by(997)) {
            let mut broken = file.clone();
            broken.bytes[at] ^= 1;
            let (store, info) = stored(&broken);
            // Each byte is the index's, or a page's, and found when that is wanted.
            let found = block(Contents::read(&store, &info, entry, None)).and_then(|c| pages(&store, &c));
            assert!(found.unwrap_err().is_corrupt(), "byte {at}");
        }
        // What was proved once proves what comes again.
        let mut broken = file.clone();
        broken.bytes[70_000] ^= 1;
        let (store, _) = stored(&broken);
        assert!(block(contents.fetch(&store, 0..1)).is_ok());
        assert!(block(contents.fetch(&store, 1..2)).unwrap_err().is_corrupt());
    }

    #[test]
    fn what_came_before_the_manifest_is_proved_by_it() {
        for (n, of) in [(3, 200), (40, 200)] {
            let (file, expected) = noise(n, of);
            let (store, info) = stored(&file);
            let early = block(Early::fetch(&store, &info, None)).unwrap();
            assert_eq!(matches!(early, Early::Whole(_)), n == 3);
            let read = |early: &Early| Contents::of_early(&info, Some(&file.entry), early, None);
            let (contents, body) = read(&early).unwrap().without_body();
            assert_eq!(body.is_some(), n == 3);
            assert_eq!(pages(&store, &contents).unwrap(), expected);
            // Another file's manifest, or another size: it is not this file.
            let (other, _) = noise(n, of);
            assert!(Contents::of_early(&info, Some(&other.entry), &early, None).is_none());
            let shorter = ManifestEntry { bytes: file.entry.bytes - 1, ..file.entry };
            assert!(Contents::of_early(&info, Some(&shorter), &early, None).is_none());
            let size = file.bytes.len();
            for at in (0..HEADER_LEN).chain(size - TAIL_LEN..size) {
                let mut broken = file.clone();
                broken.bytes[at] ^= 1;
                let (store, info) = stored(&broken);
                let early = block(Early::fetch(&store, &info, None)).unwrap();
                assert!(read(&early).is_none(), "byte {at}");
            }
        }
        // What no manifest names is proved by itself, or comes later.
        let (file, _) = noise(3, 200);
        let (store, info) = stored(&file);
        let early = block(Early::fetch(&store, &info, None)).unwrap();
        assert!(Contents::of_early(&info, None, &early, None).is_some());
        let (file, _) = noise(40, 200);
        let (store, info) = stored(&file);
        let early = block(Early::fetch(&store, &info, None)).unwrap();
        assert!(Contents::of_early(&info, None, &early, None).is_none());
    }

    #[test]
    fn what_lies_beside_a_large_file_will_do_without_the_manifest_s_word_where_it_lies() {
        use crate::replica::blocks;
        for (pages, cut) in [(90, false), (90, true), (40_000, false)] {
            let dir = tempfile::tempdir().unwrap();
            let size = PageSize::new(512).unwrap();
            let is_full = pages > 100;
            let min = if is_full { TxId(1) } else { TxId(5) };
            let header = Header::new(size, if is_full { pages } else { 9000 }, min, TxId(9), Timestamp(7));
            let noise: Vec<u8> = (0..64).flat_map(|_| random_u64().to_be_bytes()).collect();
            let step = if is_full { 1 } else { 7 };
            let count = if is_full { pages } else { 900 };
            let made: Vec<(Pgno, &[u8])> =
                (0..count).map(|n| (Pgno::new(1 + step * n).unwrap(), noise.as_slice())).collect();
            let file = encode(if is_full { Level::SNAPSHOT } else { Level::L0 }, header, &made);
            let path = dir.path().join("x.ltx");
            std::fs::write(&path, &file.bytes).unwrap();
            let mut object = blocks::of_file(&path, &file.entry).unwrap();
            let (store, info) = stored(&file);
            let len = object.len() as u64;
            if cut {
                object.truncate(blocks_end(info.bytes) as usize + 20);
            }
            let key = blocks_key(file.id);
            block(store.put_over(&key, object.clone())).unwrap();
            let early = block(Early::fetch(&store, &info, Some(object.len() as u64)));
            let read = |e: &Early| Contents::of_early(&info, Some(&file.entry), e, None);
            let found = early.as_ref().and_then(read);
            assert_eq!(found.is_some(), !cut, "{pages} pages, {len} bytes beside");
            if let Some(found) = found {
                assert!(
                    found.can_prove_blocks()
                        && found.header
                            == block(Contents::read(&store, &info, Some(&file.entry), None)).unwrap().header
                );
                for at in (0..object.len()).step_by(501) {
                    let mut broken = object.clone();
                    broken[at] ^= 1;
                    block(store.put_over(&key, broken)).unwrap();
                    let early = block(Early::fetch(&store, &info, Some(len)));
                    let is_of_pages =
                        (blocks_end(info.bytes)..guide_begins(&file.entry)).contains(&(at as u64));
                    let found = early.as_ref().and_then(read);
                    assert_eq!(found.is_some(), is_of_pages, "byte {at}");
                }
            }
            // Nothing lies there, or it is not known that something does.
            assert!(block(Early::fetch(&store, &info, None)).is_none());
        }
    }

    #[test]
    fn what_is_kept_of_a_small_file_is_proved_again() {
        let (file, expected) = noise(40, 200);
        let (store, info) = stored(&file);
        let (entry, keep) = (Some(&file.entry), Kept::default());
        let first = block(Contents::read(&store, &info, entry, Some(&keep))).unwrap();
        pages(&store, &first).unwrap();
        keep.put(&file.entry.sha256, Part::Sums, &first.sums().unwrap());
        // Without a request for the edges.
        let nothing = Store::in_memory();
        let again = block(Contents::read(&nothing, &info, entry, Some(&keep))).unwrap();
        assert!(again.can_prove_blocks() && again.header == first.header);
        assert_eq!(pages(&store, &again).unwrap(), expected);
        for (part, last) in [(Part::Edges, true), (Part::Sums, false)] {
            let good = keep.get(&file.entry.sha256, part).unwrap();
            for at in 0..good.len() {
                let mut broken = good.to_vec();
                broken[at] ^= 1;
                keep.put(&file.entry.sha256, part, &broken);
                let found = block(Contents::read(&nothing, &info, entry, Some(&keep)));
                match last {
                    true => assert!(found.is_err(), "byte {at}: asked for in the store, where it is not"),
                    false => assert!(!found.unwrap().can_prove_blocks(), "byte {at}"),
                }
            }
            keep.put(&file.entry.sha256, part, &good);
        }
    }
}
