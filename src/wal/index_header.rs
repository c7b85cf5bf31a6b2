//! The header of the wal-index (shared memory): which frames are committed. The only truth about commits
//! (I-WAL-1).
//!
//! Source: `WalIndexHdr` and `WalCkptInfo` in SQLite's `wal.c`,
//! <https://sqlite.org/walformat.html#the_wal_index_file_format>. Native byte order, but for the salts,
//! which are copied as bytes out of the WAL header.

use super::checksum::{Endian, FrameChecksum, checksum};
use super::header::{Salt, VERSION, WalPos};
use crate::base::PageSize;

/// Bytes at the start of the wal-index that [`IndexHeader::decode`] wants: two copies of the header, then
/// checkpoint information.
pub const INDEX_HEADER_LEN: usize = 136;

/// A read mark that no reader uses.
pub const READ_MARK_NOT_USED: u32 = 0xffff_ffff;

const COPY_LEN: usize = 48;
/// The part of a copy that its checksum covers.
const SUMMED_LEN: usize = 40;

/// A consistent view of the wal-index header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexHeader {
    /// Counts every transaction, also across resets.
    pub change: u32,
    /// Byte order of the WAL's checksums.
    pub endian: Endian,
    /// Bytes in a page; `None` (0) while the WAL has had no commit since recovery.
    pub page_size: Option<PageSize>,
    /// Last committed frame; 0 = none. (`mxFrame`)
    pub max_frame: u32,
    /// Size of the database in pages. (`nPage`)
    pub pages: u32,
    /// Running checksum at `max_frame`; of an older generation while that is 0. (`aFrameCksum`)
    pub frame_checksum: FrameChecksum,
    /// The generation. (`aSalt`)
    pub salt: Salt,
    /// Frames already copied into the database file. (`nBackfill`)
    pub backfilled: u32,
    /// Up to which frame each of the five reader slots may read. (`aReadMark`)
    pub read_marks: [u32; 5],
    /// Frames that a checkpointer may have begun to copy. (`nBackfillAttempted`)
    pub backfill_attempted: u32,
}

impl IndexHeader {
    /// Of a database whose WAL is empty or does not exist: names no generation.
    pub const EMPTY: IndexHeader = IndexHeader {
        change: 0,
        endian: Endian::NATIVE,
        page_size: None,
        max_frame: 0,
        pages: 0,
        frame_checksum: FrameChecksum(0, 0),
        salt: Salt { salt1: 0, salt2: 0 },
        backfilled: 0,
        read_marks: [READ_MARK_NOT_USED; 5],
        backfill_attempted: 0,
    };

    /// Reads the header out of the first [`INDEX_HEADER_LEN`] bytes of the wal-index. `None` if it is not
    /// initialised, is being written right now (the two copies differ or the checksum is wrong), or is of
    /// an unknown version: SQLite itself would lock and recover then.
    pub fn decode(bytes: &[u8]) -> Option<IndexHeader> {
        let (copy, rest) = bytes.split_first_chunk::<COPY_LEN>()?;
        let (second, rest) = rest.split_first_chunk::<COPY_LEN>()?;
        let info = rest.first_chunk::<{ INDEX_HEADER_LEN - 2 * COPY_LEN }>()?;
        let [_, _, _, flags, max_frame, pages, sum1, sum2, salt1, salt2, own1, own2] = words(copy);
        let [is_init, big_endian, size0, size1] = flags.to_ne_bytes();
        let summed = copy.first_chunk::<SUMMED_LEN>()?;
        if copy != second
            || is_init == 0
            || checksum(summed, FrameChecksum(0, 0), Endian::NATIVE) != FrameChecksum(own1, own2)
        {
            return None;
        }
        let [version, _, change, ..] = words::<COPY_LEN, 12>(copy);
        if version != VERSION {
            return None;
        }
        let page_size = match u32::from(u16::from_ne_bytes([size0, size1])) {
            0 => None,
            1 => Some(PageSize::new(65536).ok()?),
            n => Some(PageSize::new(n).ok()?),
        };
        let [backfilled, m0, m1, m2, m3, m4, _, _, backfill_attempted, _] = words(info);
        Some(IndexHeader {
            change,
            endian: if big_endian == 0 { Endian::Little } else { Endian::Big },
            page_size,
            max_frame,
            pages,
            frame_checksum: FrameChecksum(sum1, sum2),
            salt: Salt {
                salt1: u32::from_be_bytes(salt1.to_ne_bytes()),
                salt2: u32::from_be_bytes(salt2.to_ne_bytes()),
            },
            backfilled,
            read_marks: [m0, m1, m2, m3, m4],
            backfill_attempted,
        })
    }

    /// The place right behind the last commit.
    pub fn position(&self) -> WalPos {
        WalPos { salt: self.salt, frame: self.max_frame, checksum: self.frame_checksum }
    }
}

/// Native words out of bytes; `M` is 4 times `N`.
fn words<const M: usize, const N: usize>(bytes: &[u8; M]) -> [u32; N] {
    const { assert!(M == 4 * N) };
    let mut out = [0; N];
    for (word, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    out
}
