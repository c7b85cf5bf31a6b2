//! What one LTX file holds, as far as single pages are read out of it: header, page index, and of small files all of it.
//!
//! Rules
//! * I-CONT-1 A file of [`WHOLE`] bytes at most is fetched whole and proved whole: its file checksum, and the checksum and SHA-256
//!   of the manifest. Of a larger one header, page index and trailer are fetched and held against the checksum of them in the manifest
//!   (`edge`); what is wrong in them is an error before any page is read.
//! * I-CONT-2 A page of a larger file is proved as far as the file allows: its frame lies where the proved index says, has the length
//!   that the index says, bears that page's number, and unpacks to one whole page; of frames with a checksum of their own (Litestream
//!   up to 0.5.15) that is checked. LTX has no checksum for a single block, so a changed byte that unpacks to one page all the same is
//!   seen by `walrust_verify(…, 'deep')` and by a restore only.
//!
//! Refused: to fetch a large file whole to prove one page.

use super::apply::agrees_with_manifest;
use super::edge::{END_OF_PAGES, SMALLEST, edge};
use super::inventory::FileInfo;
use super::layout::FileId;
use super::manifest::ManifestEntry;
use super::probe::tail_bound;
use crate::base::{Error, Result};
use crate::ltx::{Decoder, HEADER_LEN, Header, IndexEntry, PackedIndex, PageIndex, Tail, decode_frame};
use crate::store::Store;
use bytes::Bytes;

/// Files up to this size are fetched whole.
pub const WHOLE: u64 = 64 * 1024;
/// Of a larger file that begins with page 1, so much is fetched with its header: page 1 and what follows it are wanted next.
const HEAD: u64 = 32 * 1024;

/// One file, ready for its pages to be read.
#[derive(Debug)]
pub struct Contents {
    /// Level and TXIDs.
    pub id: FileId,
    /// Its header, which agrees with its name.
    pub header: Header,
    /// Its size.
    pub bytes: u64,
    /// The file checksum in its trailer.
    pub crc: u64,
    /// Where its pages lie.
    pub index: PackedIndex,
    /// All of it, where it is small.
    pub whole: Option<Bytes>,
    /// Its first bytes, as far as they were fetched with the header.
    pub head: Bytes,
}

impl Contents {
    /// Reads what `file` holds. `entry` is what the manifest says of it.
    ///
    /// Errors: `Corrupt`, with its name, if it is not what its name or the manifest says; `Missing` if it is gone; the store's.
    pub async fn read(store: &Store, file: &FileInfo, entry: Option<&ManifestEntry>) -> Result<Contents> {
        let read = async {
            if file.bytes < SMALLEST {
                return Err(Error::corrupt(format!("{} bytes are too few for an LTX file", file.bytes)));
            }
            if let Some(e) = entry
                && e.bytes != file.bytes
            {
                return Err(Error::corrupt(format!("it has {} bytes, the manifest says {}", file.bytes, e.bytes)));
            }
            if file.bytes <= WHOLE { small(store, file, entry).await } else { large(store, file, entry).await }
        };
        read.await.map_err(|e| e.context(file.id()))
    }

    /// The bytes of `range` that are in memory already.
    pub fn at_hand(&self, entry: &IndexEntry) -> Option<&[u8]> {
        let range = usize::try_from(entry.range().start).ok()?..usize::try_from(entry.range().end).ok()?;
        self.whole.as_ref().unwrap_or(&self.head).get(range)
    }

    /// The page of `frame`, which are the bytes at `entry` (I-CONT-2). Errors with `Corrupt` and the file's name.
    pub fn page(&self, entry: &IndexEntry, frame: &[u8]) -> Result<Vec<u8>> {
        let mut page = vec![0; self.header.page_size.len()];
        let found = decode_frame(frame, self.header.page_size, &mut page)
            .map_err(|e| e.context(format!("{}: page {}", self.id, entry.pgno)))?;
        if found != entry.pgno {
            return Err(Error::corrupt(format!(
                "{}: page {found} lies where the page index has page {}",
                self.id, entry.pgno
            )));
        }
        Ok(page)
    }
}

/// I-CONT-1, a small file.
async fn small(store: &Store, file: &FileInfo, entry: Option<&ManifestEntry>) -> Result<Contents> {
    let bytes = store.get(&file.id().key(store.layout())).await?;
    whole(file.id(), bytes, entry)
}

/// A whole file that was fetched, proved. Errors with `Corrupt`.
pub fn whole(id: FileId, bytes: Bytes, entry: Option<&ManifestEntry>) -> Result<Contents> {
    let decoder = Decoder::with_sha256(bytes.as_ref())?;
    let header = decoder.header().clone();
    is_named(&header, id)?;
    let trailer = decoder.finish()?;
    agrees_with_manifest(&trailer, entry)?;
    let size = bytes.len() as u64;
    let tail = Tail::parse(&bytes)?;
    let index = tail.index_in(&bytes).ok_or_else(|| Error::corrupt("its page index is not whole"))?;
    let index = PackedIndex::of(&PageIndex::parse_for(index, size, &header)?);
    Ok(Contents { id, header, bytes: size, crc: trailer.checksum, index, whole: Some(bytes), head: Bytes::new() })
}

/// I-CONT-1, a large file.
async fn large(store: &Store, file: &FileInfo, entry: Option<&ManifestEntry>) -> Result<Contents> {
    let (id, size) = (file.id(), file.bytes);
    let key = id.key(store.layout());
    let head_len = if id.name().is_snapshot() { HEAD } else { HEADER_LEN as u64 };
    let from = size.saturating_sub(tail_bound(entry)).max(head_len);
    let (head, tail) = (store.get_range(&key, 0..head_len), store.get_range(&key, from..size));
    let (head, mut tail) = futures_util::future::try_join(head, tail).await?;
    let short = || Error::corrupt("it is shorter than the store's listing says");
    if head.len() as u64 != head_len || tail.len() as u64 != size - from {
        return Err(short());
    }
    let start: &[u8; HEADER_LEN] = head.first_chunk().ok_or_else(short)?;
    let header = Header::decode(start)?;
    is_named(&header, id)?;
    let parsed = Tail::parse(&tail)?;
    let begins = parsed.index_range(size)?.start - END_OF_PAGES;
    if begins < from {
        // The first guess was too short, or the frames end within what was fetched as the head.
        let more = store.get_range(&key, begins..from).await?;
        if more.len() as u64 != from - begins {
            return Err(short());
        }
        tail = [more.as_ref(), tail.as_ref()].concat().into();
    }
    let skip = tail.len().saturating_sub(usize::try_from(size - begins).unwrap_or(usize::MAX));
    let edges = tail.get(skip..).unwrap_or_default();
    if !edges.starts_with(&[0; END_OF_PAGES as usize]) {
        return Err(Error::corrupt("its pages do not end where its page index starts"));
    }
    if let Some(e) = entry {
        let found = edge(start, edges);
        if found != e.edge || parsed.checksum != e.crc {
            return Err(Error::corrupt("its header, page index or trailer is not what the manifest says"));
        }
    }
    let index = parsed.index_in(edges).ok_or_else(|| Error::corrupt("its page index is not whole"))?;
    let index = PackedIndex::of(&PageIndex::parse_for(index, size, &header)?);
    let head = if id.name().is_snapshot() { head } else { Bytes::new() };
    Ok(Contents { id, header, bytes: size, crc: parsed.checksum, index, whole: None, head })
}

fn is_named(header: &Header, id: FileId) -> Result<()> {
    if header.file_name() == id.name() {
        return Ok(());
    }
    Err(Error::corrupt(format!("its header says {}: a renamed or swapped file", header.file_name())))
}
