//! Newtypes for the numbers that must not be mixed up.

use super::error::{Error, Kind, Result};
use std::fmt;

/// A 1-based page number, as SQLite counts pages. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pgno(std::num::NonZeroU32);

impl Pgno {
    /// Page 1, which holds the database header.
    pub const ONE: Pgno = Pgno(std::num::NonZeroU32::MIN);

    /// `None` for 0.
    pub fn new(n: u32) -> Option<Pgno> {
        std::num::NonZeroU32::new(n).map(Pgno)
    }

    /// The number, 1 or more.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Byte offset of this page in a database file.
    pub fn offset(self, size: PageSize) -> u64 {
        u64::from(self.get() - 1) * u64::from(size.get())
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page size in bytes: a power of two, 512 to 65536 (<https://sqlite.org/fileformat2.html#page_size>).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageSize(u32);

impl PageSize {
    /// Errors with [`Kind::Corrupt`] unless `n` is a power of two from 512 to 65536.
    pub fn new(n: u32) -> Result<PageSize> {
        if n.is_power_of_two() && (512..=65536).contains(&n) {
            Ok(PageSize(n))
        } else {
            Err(Error::new(Kind::Corrupt, format!("page size {n} is not a power of two from 512 to 65536")))
        }
    }

    /// Bytes in a page.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Bytes in a page, as a length.
    pub fn len(self) -> usize {
        self.0 as usize
    }

    /// Never true; here because `len` is.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The page that holds SQLite's locking bytes at 1 GiB. It is never stored in an LTX file and
    /// takes no part in the database checksum.
    pub fn lock_page(self) -> Pgno {
        Pgno::new(0x4000_0000 / self.0 + 1).unwrap_or(Pgno::ONE)
    }
}

/// A transaction id: one captured batch, one level-0 LTX file. 0 stands for "before the first".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TxId(pub u64);

impl TxId {
    /// Before any transaction.
    pub const ZERO: TxId = TxId(0);

    /// The one that follows.
    pub fn next(self) -> TxId {
        TxId(self.0.saturating_add(1))
    }

    /// As SQL shows it: an INTEGER.
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

/// 16 lower-case hex digits, as Litestream writes TXIDs.
impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<u64> for TxId {
    fn from(n: u64) -> TxId {
        TxId(n)
    }
}

/// One unbroken history of one database. A gap or a takeover starts a new one. Travels as the LTX
/// node id, which Litestream ignores. 0 = not ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Lineage(pub u64);

impl Lineage {
    /// A fresh, never zero one.
    pub fn fresh() -> Lineage {
        Lineage(super::clock::random_u64() | 1)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<u64> for Lineage {
    fn from(n: u64) -> Lineage {
        Lineage(n)
    }
}

/// Checksum of a whole database, out of the CRC-64 page checksums of pages 1..commit without the lock page; bit 63 set.
///
/// It is the XOR of the page checksums, each scrambled first. Not of the checksums as they are, which is LTX's own "rolling
/// checksum" ([`DbChecksum::roll`]): a CRC is linear, so that what one change does to it depends neither on the page's other
/// bytes nor on its number, and a change made to two pages alike (a row put into two tables of one form) takes itself out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DbChecksum(pub u64);

impl DbChecksum {
    /// The flag bit that every stored checksum carries.
    pub const FLAG: u64 = 1 << 63;
    /// A database of no pages.
    pub const EMPTY: DbChecksum = DbChecksum(Self::FLAG);

    /// Adds or removes one page checksum: XOR is its own inverse.
    #[must_use]
    pub fn toggle(self, page_checksum: u64) -> DbChecksum {
        self.toggle_all(Self::scramble(page_checksum))
    }

    /// Adds or removes many: the XOR of their [`DbChecksum::scramble`].
    #[must_use]
    pub fn toggle_all(self, scrambled: u64) -> DbChecksum {
        DbChecksum((self.0 ^ scrambled) | Self::FLAG)
    }

    /// What is XORed for a page checksum: no linear function of it, and 0 for 0, which is no page. (The finalizer of
    /// SplitMix64, <https://doi.org/10.1145/2714064.2660195>.)
    #[must_use]
    pub fn scramble(page_checksum: u64) -> u64 {
        let x = (page_checksum ^ (page_checksum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Adds or removes one page checksum of LTX's own rolling checksum, which files of others may bear.
    #[must_use]
    pub fn roll(self, page_checksum: u64) -> DbChecksum {
        DbChecksum((self.0 ^ page_checksum) | Self::FLAG)
    }
}

impl fmt::Display for DbChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<u64> for DbChecksum {
    fn from(n: u64) -> DbChecksum {
        DbChecksum(n)
    }
}
