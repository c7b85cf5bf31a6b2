//! The WAL header and the frame header.

use super::checksum::{Endian, FrameChecksum, checksum};
use crate::base::{Error, PageSize, Pgno, Result};
use std::fmt;

/// Bytes in a WAL header.
pub const WAL_HEADER_LEN: usize = 32;
/// Bytes in a frame header.
pub const FRAME_HEADER_LEN: usize = 24;

const MAGIC: u32 = 0x377f_0682;
pub(super) const VERSION: u32 = 3_007_000;

/// Byte offset of frame `n`'s header in the WAL; frames count from 1.
pub fn frame_offset(n: u32, size: PageSize) -> u64 {
    WAL_HEADER_LEN as u64 + u64::from(n.saturating_sub(1)) * (FRAME_HEADER_LEN as u64 + u64::from(size.get()))
}

/// Byte offset of frame `n`'s page in the WAL.
pub fn page_offset(n: u32, size: PageSize) -> u64 {
    frame_offset(n, size) + FRAME_HEADER_LEN as u64
}

/// What tells one generation of a WAL from the next. A reset counts the first up by one (or, by a process
/// that has never checkpointed, sets it at random) and chooses the second at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Salt {
    /// First salt of the WAL header.
    pub salt1: u32,
    /// Second salt of the WAL header.
    pub salt2: u32,
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.salt1, self.salt2)
    }
}

/// A place in the life of a WAL: after some frame of one generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalPos {
    /// The generation.
    pub salt: Salt,
    /// The last frame before this place; 0 = none, right behind the WAL header.
    pub frame: u32,
    /// The running checksum there. Not looked at when `frame` is 0: the wal-index keeps the sum of the
    /// generation before until the first frame is written.
    pub checksum: FrameChecksum,
}

/// The first 32 bytes of a WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Byte order of the checksums.
    pub endian: Endian,
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Checkpoint sequence number.
    pub sequence: u32,
    /// The generation.
    pub salt: Salt,
    /// Checksum of the header: where the chain of frames starts.
    pub checksum: FrameChecksum,
}

impl WalHeader {
    /// Reads and proves a header. Errors with `Kind::Corrupt`, for SQLite: "this WAL has no content".
    pub fn decode(bytes: &[u8; WAL_HEADER_LEN]) -> Result<WalHeader> {
        let [magic, version, page_size, sequence, salt1, salt2, sum1, sum2] = words(bytes);
        let endian = match magic {
            MAGIC => Endian::Little,
            n if n == MAGIC | 1 => Endian::Big,
            _ => return Err(Error::corrupt(format!("a WAL does not start with {magic:#010x}"))),
        };
        let page_size = PageSize::new(page_size)?;
        let own = checksum(bytes.first_chunk::<24>().map_or(&[], |b| b), FrameChecksum(0, 0), endian);
        if own != FrameChecksum(sum1, sum2) {
            return Err(Error::corrupt("the WAL header's checksum is wrong"));
        }
        if version != VERSION {
            return Err(Error::corrupt(format!("WAL format {version} is unknown ({VERSION} is known)")));
        }
        Ok(WalHeader { endian, page_size, sequence, salt: Salt { salt1, salt2 }, checksum: own })
    }

    /// Writes a header, computing its checksum (`self.checksum` is not looked at).
    pub fn encode(&self) -> [u8; WAL_HEADER_LEN] {
        let magic = match self.endian {
            Endian::Little => MAGIC,
            Endian::Big => MAGIC | 1,
        };
        let size = self.page_size.get();
        let mut out = join([magic, VERSION, size, self.sequence, self.salt.salt1, self.salt.salt2, 0, 0]);
        let sum = checksum(out.first_chunk::<24>().map_or(&[], |b| b), FrameChecksum(0, 0), self.endian);
        if let Some(place) = out.last_chunk_mut::<8>() {
            *place = join([sum.0, sum.1]);
        }
        out
    }

    /// Where the first frame begins.
    pub fn start(&self) -> WalPos {
        WalPos { salt: self.salt, frame: 0, checksum: self.checksum }
    }
}

/// The 24 bytes in front of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// The page; `None` (0) makes a frame invalid.
    pub pgno: Option<Pgno>,
    /// In a commit frame the size of the database in pages after it, else 0.
    pub commit: u32,
    /// The generation this was written for.
    pub salt: Salt,
    /// The running checksum up to and including this frame.
    pub checksum: FrameChecksum,
}

impl FrameHeader {
    /// Splits the fields; proves nothing.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> FrameHeader {
        let [pgno, commit, salt1, salt2, sum1, sum2] = words(bytes);
        FrameHeader {
            pgno: Pgno::new(pgno),
            commit,
            salt: Salt { salt1, salt2 },
            checksum: FrameChecksum(sum1, sum2),
        }
    }

    /// Joins the fields.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let pgno = self.pgno.map_or(0, Pgno::get);
        join([pgno, self.commit, self.salt.salt1, self.salt.salt2, self.checksum.0, self.checksum.1])
    }

    /// The running checksum after a frame of this header and `page`, continuing `seed`: over the first 8
    /// bytes of the header and the page.
    pub fn chain(&self, page: &[u8], seed: FrameChecksum, endian: Endian) -> FrameChecksum {
        let head: [u8; 8] = join([self.pgno.map_or(0, Pgno::get), self.commit]);
        checksum(page, checksum(&head, seed, endian), endian)
    }
}

/// Big-endian words out of bytes; `M` is 4 times `N`.
fn words<const M: usize, const N: usize>(bytes: &[u8; M]) -> [u32; N] {
    const { assert!(M == 4 * N) };
    let mut out = [0; N];
    for (word, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    out
}

/// Bytes out of big-endian words; `M` is 4 times `N`.
fn join<const M: usize, const N: usize>(words: [u32; N]) -> [u8; M] {
    const { assert!(M == 4 * N) };
    let mut out = [0; M];
    for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *bytes = word.to_be_bytes();
    }
    out
}
