//! What one file says of itself without its pages: header, end of the page block, page index, trailer, by ranged reads.
//!
//! Rule I-PROBE-1: no byte is fetched twice, and of the page frames at most a few at their end: the first guess at the length of
//! the tail comes from what the manifest tells of the file, and is the most that its page index can take; a wrong guess costs
//! one more read. Refused: one read of the whole small file, which would be fewer requests but is page data; the index's length
//! in the manifest, which would save a byte or two a file and cost three.

use super::edge::{END_OF_PAGES, SMALLEST, edge};
use super::inventory::FileInfo;
use super::manifest::ManifestEntry;
use crate::base::{Error, Kind, Result};
use crate::ltx::{HEADER_LEN, Header, PageIndex, TAIL_LEN, Tail};
use crate::store::Store;
use bytes::Bytes;

/// What a tail is taken to be where no manifest tells more: four pages, whose entries are three varints each.
const UNKNOWN_INDEX: u64 = 40;

/// What a file's edges say.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its header, which agrees with its name.
    pub header: Header,
    /// The file checksum stored in its trailer.
    pub crc: u64,
    /// Pages in it.
    pub pages: u32,
    /// Checksum of what was read; see [`edge_of`].
    pub edge: u32,
    /// SHA-256 that the store keeps beside the object, if asked for and kept.
    pub stored_sha256: Option<[u8; 32]>,
    /// It is an age file, and was opened.
    pub is_sealed: bool,
}

/// What came of looking at one file.
#[derive(Clone, Debug)]
pub enum Probed {
    /// It is an LTX file of its name.
    Sound(Box<Probe>),
    /// It is an age file, and there is no identity to open it with: what its metadata says, if asked for.
    Sealed(Option<[u8; 32]>),
    /// It is no longer there.
    Vanished,
    /// It cannot be what its name says.
    Damaged(String),
}

impl Probed {
    /// The SHA-256 that the store keeps beside it, as far as it was asked for.
    pub fn stored_sha256(&self) -> Option<[u8; 32]> {
        match self {
            Probed::Sound(p) => p.stored_sha256,
            Probed::Sealed(stored) => *stored,
            Probed::Vanished | Probed::Damaged(_) => None,
        }
    }
}

/// Whether the object's metadata is asked for too: one more request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AskMetadata {
    /// For the SHA-256 kept there.
    Yes,
    /// Header, index and trailer only.
    No,
}

/// Looks at `file`. `entry` is what the manifest says of it. Errors are the store's: then nothing is known of the file.
pub async fn probe(
    store: &Store,
    file: &FileInfo,
    entry: Option<&ManifestEntry>,
    ask: AskMetadata,
) -> Result<Probed> {
    if !store.can_open() && entry.is_some_and(ManifestEntry::is_sealed) {
        return sealed(store, file, ask).await;
    }
    match look(store, file, entry, ask).await {
        Ok(p) => Ok(Probed::Sound(Box::new(p))),
        Err(e) if e.is_missing() => Ok(Probed::Vanished),
        Err(e) if e.is_corrupt() => {
            // (A short age file ends before the tail of what it was made of is looked for.)
            match !store.can_open() && store.is_sealed(&file.id().key(store.layout())).await.unwrap_or(false)
            {
                true => sealed(store, file, ask).await,
                false => Ok(Probed::Damaged(e.to_string())),
            }
        }
        Err(e) if e.kind() == Kind::Config && !store.can_open() => sealed(store, file, ask).await,
        Err(e) => Err(e),
    }
}

/// What can be said of an age file without an identity: that it begins as one.
async fn sealed(store: &Store, file: &FileInfo, ask: AskMetadata) -> Result<Probed> {
    let key = file.id().key(store.layout());
    let seen = async {
        if !store.is_sealed(&key).await? {
            return Ok(Probed::Damaged("it is not encrypted, the manifest says that it is".into()));
        }
        let stored = if ask == AskMetadata::Yes { store.head(&key).await?.sha256 } else { None };
        Ok(Probed::Sealed(stored))
    };
    match seen.await {
        Err(e) if Error::is_missing(&e) => Ok(Probed::Vanished),
        Err(e) if Error::is_corrupt(&e) => Ok(Probed::Damaged(e.to_string())),
        seen => seen,
    }
}

/// The most bytes that follow the pages of a file of which the manifest says `entry`.
pub(super) fn tail_bound(entry: Option<&ManifestEntry>) -> u64 {
    let index = entry.map_or(UNKNOWN_INDEX, |e| {
        let pages = u64::from(e.pages);
        // A page's number, its frame's offset, its frame's length: twice the mean stands for the longest.
        let frame = (2 * e.bytes).checked_div(pages).unwrap_or(0);
        pages * (varint_len(e.commit.into()) + varint_len(e.bytes) + varint_len(frame))
    });
    END_OF_PAGES + index + 1 + TAIL_LEN as u64
}

/// Bytes of `n` as a varint of a page index.
fn varint_len(n: u64) -> u64 {
    u64::from((64 - (n | 1).leading_zeros()).div_ceil(7))
}

/// The header's bytes and those from `from` to the end, `from` lying behind the header.
async fn edges_from(store: &Store, key: &str, from: u64, size: u64) -> Result<(Bytes, Bytes)> {
    const HEAD: u64 = HEADER_LEN as u64;
    if from > HEAD {
        let (head, tail) = (store.get_range(key, 0..HEAD), store.get_range(key, from..size));
        return futures_util::future::try_join(head, tail).await;
    }
    // They touch: one request.
    let mut head = store.get_range(key, 0..size).await?;
    let tail = head.split_off(HEADER_LEN.min(head.len()));
    Ok((head, tail))
}

async fn look(
    store: &Store,
    file: &FileInfo,
    entry: Option<&ManifestEntry>,
    ask: AskMetadata,
) -> Result<Probe> {
    let key = file.id().key(store.layout());
    let clear = if store.can_open() { store.clear_len(&key, file.bytes).await? } else { None };
    let size = clear.unwrap_or(file.bytes);
    if size < SMALLEST {
        return Err(Error::corrupt(format!("{size} bytes are too few for an LTX file")));
    }
    let from = size.saturating_sub(tail_bound(entry)).max(HEADER_LEN as u64);
    let metadata = async {
        match ask {
            AskMetadata::Yes => store.head(&key).await.map(Some),
            AskMetadata::No => Ok(None),
        }
    };
    let ((head, mut tail), metadata) =
        futures_util::future::try_join(edges_from(store, &key, from, size), metadata).await?;
    let head: &[u8; HEADER_LEN] = head
        .as_ref()
        .try_into()
        .map_err(|_| Error::corrupt("it is shorter than the store's listing says"))?;
    let header = Header::decode(head)?;
    if header.file_name() != file.id().name() {
        return Err(Error::corrupt(format!(
            "its header says {}: a renamed or swapped file",
            header.file_name()
        )));
    }
    let parsed = Tail::parse(&tail)?;
    let index = parsed.index_range(size)?;
    let start = index.start - END_OF_PAGES;
    if start < from {
        let more = store.get_range(&key, start..from).await?;
        tail = [more.as_ref(), tail.as_ref()].concat().into();
    }
    let edges = tail.get(tail.len().saturating_sub(usize::try_from(size - start).unwrap_or(usize::MAX))..);
    let edges = edges.unwrap_or_default();
    if !edges.starts_with(&[0; END_OF_PAGES as usize]) {
        return Err(Error::corrupt("its pages do not end where its page index starts"));
    }
    let entries = parsed.index_in(edges).ok_or_else(|| Error::corrupt("its page index is not whole"))?;
    let pages = PageIndex::parse_for(entries, size, &header)?.len();
    if parsed.post_apply.is_some() && header.tracking == crate::ltx::Tracking::NoChecksum {
        return Err(Error::corrupt("the post-apply checksum does not agree with the header's flags"));
    }
    Ok(Probe {
        edge: edge(head, edges),
        header,
        crc: parsed.checksum,
        pages: u32::try_from(pages).unwrap_or(u32::MAX),
        stored_sha256: metadata.and_then(|m| m.sha256),
        is_sealed: clear.is_some(),
    })
}
