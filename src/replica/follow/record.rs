//! Where a follower's file stands, and the record of it beside the file.

use crate::base::{DbChecksum, Lineage, PageSize, Timestamp, TxId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of page 1 that are the follower's own
/// (<https://sqlite.org/fileformat2.html#the_database_header>).
const WRITE_FORMAT: usize = 18;
const READ_FORMAT: usize = 19;
pub(super) const COUNTER: usize = 24;
const PAGES: usize = 28;
const COOKIE: usize = 40;
const COUNTER_VALID_FOR: usize = 92;

/// A state of the source in a follower's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The TXID.
    #[serde(serialize_with = "hex", deserialize_with = "txid")]
    pub txid: TxId,
    /// When the source's commit was captured, in milliseconds since 1970.
    #[serde(serialize_with = "millis", deserialize_with = "timestamp")]
    pub time: Timestamp,
    /// The history.
    #[serde(serialize_with = "hex", deserialize_with = "lineage")]
    pub lineage: Lineage,
    /// Checksum of the source's database.
    #[serde(serialize_with = "hex", deserialize_with = "checksum")]
    pub checksum: DbChecksum,
    /// Page size.
    #[serde(serialize_with = "bytes", deserialize_with = "page_size")]
    pub page_size: PageSize,
    /// Size of the database in pages.
    pub pages: u32,
    /// Change counter in the follower's file.
    pub counter: u32,
    /// What is added to the source's schema cookie (I-FOL-4); 0 until the file was rebuilt under readers.
    pub cookie_shift: u32,
    /// The first 100 bytes of the source's page 1.
    #[serde(serialize_with = "header_out", deserialize_with = "header_in")]
    pub source: [u8; 100],
}

impl Place {
    /// Turns the source's page 1 into the follower's.
    pub fn localize(&self, page: &mut [u8]) {
        if let Some(start) = page.first_chunk_mut::<100>() {
            *start = self.header();
        }
    }

    /// Turns the follower's page 1 into the source's.
    pub fn original(&self, page: &mut [u8]) {
        if let Some(start) = page.first_chunk_mut::<100>() {
            *start = self.source;
        }
    }

    /// The first 100 bytes of the follower's file.
    pub fn header(&self) -> [u8; 100] {
        let mut h = self.source;
        h[WRITE_FORMAT] = 1;
        h[READ_FORMAT] = 1;
        let cookie = word(&h, COOKIE).wrapping_add(self.cookie_shift);
        for (at, value) in [
            (COUNTER, self.counter),
            (PAGES, self.pages),
            (COOKIE, cookie),
            (COUNTER_VALID_FOR, self.counter),
        ] {
            if let Some(to) = h.get_mut(at..at + 4) {
                to.copy_from_slice(&value.to_be_bytes());
            }
        }
        h
    }

    /// Whether a file with this header and of `size` bytes stands here (I-FOL-3).
    pub fn is(&self, header: &[u8; 100], size: u64) -> bool {
        *header == self.header() && size == u64::from(self.pages) * u64::from(self.page_size.get())
    }
}

/// Big-endian word of a header.
pub(super) fn word(header: &[u8; 100], at: usize) -> u32 {
    header.get(at..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_be_bytes(*b))
}

/// What lies beside a follower's file as `<file>-walrust-follow.json`: written before each change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// URL of the replica in its canonical form.
    pub replica: String,
    /// Inode of the follower's file: tells a file that was written to from one that was put in its place.
    pub inode: u64,
    /// Where the file stands.
    pub now: Option<Place>,
    /// Where it stands if the change that was under way came through.
    pub next: Option<Place>,
}

impl Record {
    /// Which of the two places a file with this header and size stands at.
    pub fn place(&self, header: &[u8; 100], size: u64) -> Option<&Place> {
        self.now.iter().chain(&self.next).find(|p| p.is(header, size))
    }
}

fn hex<T: std::fmt::Display, S: Serializer>(v: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(v)
}

fn unhex<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let s = String::deserialize(d)?;
    u64::from_str_radix(&s, 16).map_err(serde::de::Error::custom)
}

fn txid<'de, D: Deserializer<'de>>(d: D) -> Result<TxId, D::Error> {
    unhex(d).map(TxId)
}

fn lineage<'de, D: Deserializer<'de>>(d: D) -> Result<Lineage, D::Error> {
    unhex(d).map(Lineage)
}

fn checksum<'de, D: Deserializer<'de>>(d: D) -> Result<DbChecksum, D::Error> {
    unhex(d).map(DbChecksum)
}

fn millis<S: Serializer>(v: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_i64(v.0)
}

fn timestamp<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
    i64::deserialize(d).map(Timestamp)
}

fn bytes<S: Serializer>(v: &PageSize, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u32(v.get())
}

fn page_size<'de, D: Deserializer<'de>>(d: D) -> Result<PageSize, D::Error> {
    PageSize::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn header_out<S: Serializer>(v: &[u8; 100], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&v.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn header_in<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 100], D::Error> {
    let s = String::deserialize(d)?;
    let digit = |c: u8| char::from(c).to_digit(16);
    let bytes: Option<Vec<u8>> = s
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [a, b] => Some((digit(*a)? * 16 + digit(*b)?) as u8),
            _ => None,
        })
        .collect();
    bytes
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| serde::de::Error::custom("a header is 100 bytes in hex"))
}
