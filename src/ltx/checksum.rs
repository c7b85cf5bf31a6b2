//! CRC-64/GO-ISO, the one checksum of LTX. Every stored value has bit 63 set ([`DbChecksum::FLAG`]).

use crate::base::{DbChecksum, Pgno};
use crc_fast::{CrcAlgorithm, Digest};

/// A running CRC-64/GO-ISO.
#[derive(Clone, Debug)]
pub struct Crc(Digest);

impl Crc {
    /// Nothing hashed yet.
    pub fn new() -> Crc {
        Crc(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    /// Hashes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Goes on with bytes that another one hashed from its beginning on.
    pub fn append(&mut self, next: &Crc) {
        self.0.combine(&next.0);
    }

    /// The CRC as it is stored: bit 63 set.
    pub fn flagged(&self) -> u64 {
        self.0.finalize() | DbChecksum::FLAG
    }
}

impl Default for Crc {
    fn default() -> Crc {
        Crc::new()
    }
}

/// Checksum of one page: its number as four big-endian bytes, then its content; bit 63 set.
/// Over all pages but the lock page it makes the [`DbChecksum`].
pub fn page_checksum(pgno: Pgno, page: &[u8]) -> u64 {
    let mut crc = Crc::new();
    crc.update(&pgno.get().to_be_bytes());
    crc.update(page);
    crc.flagged()
}
