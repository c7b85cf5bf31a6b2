//! The 100-byte header.

use super::names::FileName;
use crate::base::{DbChecksum, Error, Lineage, PageSize, Result, Timestamp, TxId, sealed};

/// Bytes in a header.
pub const HEADER_LEN: usize = 100;

const MAGIC: [u8; 4] = *b"LTX1";
const FLAG_NO_CHECKSUM: u32 = 2;
/// Marks the reserved bytes as ours: "walrust attestation, form 1".
const ATTEST_TAG: [u8; 4] = *b"WRA2";

/// Whether the file carries LTX's own pre- and post-apply checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tracking {
    /// Flags = 2: both are 0. What we and Litestream write.
    #[default]
    NoChecksum,
    /// Flags = 0: both are database checksums. Read only; `litestream restore` refuses such a file at a
    /// chain's end.
    Checksummed,
}

/// The part of a WAL file that an L0 file covers, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalRange {
    /// Offset of the first byte, 32 (the WAL header's length) or more.
    pub offset: u64,
    /// Length.
    pub size: u64,
    /// First salt of the WAL header.
    pub salt1: u32,
    /// Second salt of the WAL header.
    pub salt2: u32,
}

/// Sizes of the WAL's header and of a frame's (<https://sqlite.org/fileformat2.html#walformat>).
const WAL_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

impl WalRange {
    /// Frames `after + 1 ..= last` of a WAL with these salts.
    pub fn of_frames(page_size: PageSize, after: u32, last: u32, (salt1, salt2): (u32, u32)) -> WalRange {
        let frame_bytes = u64::from(page_size.get()) + FRAME_HEADER_BYTES;
        WalRange {
            offset: WAL_HEADER_BYTES + u64::from(after) * frame_bytes,
            size: u64::from(last.saturating_sub(after)) * frame_bytes,
            salt1,
            salt2,
        }
    }

    /// The last frame of the range; 0 if it ends in the WAL's header.
    pub fn last_frame(&self, page_size: PageSize) -> u32 {
        let frame_bytes = u64::from(page_size.get()) + FRAME_HEADER_BYTES;
        let end = self.offset.saturating_add(self.size).saturating_sub(WAL_HEADER_BYTES);
        u32::try_from(end / frame_bytes).unwrap_or(u32::MAX)
    }
}

/// The database checksum on both sides of a file, ours alone (I-LTX-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attest {
    /// Of the database this file is applied to; [`DbChecksum::EMPTY`] if it needs none (I-LTX-6).
    pub before: DbChecksum,
    /// Of the database after it.
    pub after: DbChecksum,
}

/// What an LTX file says of itself in its first 100 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Size of the database in pages after this file.
    pub commit: u32,
    /// First TXID. 1 = a snapshot.
    pub min: TxId,
    /// Last TXID.
    pub max: TxId,
    /// When the last commit in it was captured.
    pub timestamp: Timestamp,
    /// The WAL bytes covered, if known.
    pub wal: Option<WalRange>,
    /// The history this belongs to; `Lineage(0)` in foreign files.
    pub lineage: Lineage,
    /// Our attestation; `None` in foreign files.
    pub attest: Option<Attest>,
    /// LTX's own checksum before the file; only in checksummed files that are not snapshots.
    pub pre_apply: Option<DbChecksum>,
    /// Whether the file is checksummed in LTX's own way.
    pub tracking: Tracking,
}

impl Header {
    /// A header as we write them, without WAL range, lineage and attestation.
    pub fn new(page_size: PageSize, commit: u32, min: TxId, max: TxId, timestamp: Timestamp) -> Header {
        Header {
            page_size,
            commit,
            min,
            max,
            timestamp,
            wal: None,
            lineage: Lineage(0),
            attest: None,
            pre_apply: None,
            tracking: Tracking::NoChecksum,
        }
    }

    /// Whether the file is a full snapshot: it starts at TXID 1.
    pub fn is_snapshot(&self) -> bool {
        self.min.0 == 1
    }

    /// The name this file must have.
    pub fn file_name(&self) -> FileName {
        FileName { min: self.min, max: self.max }
    }

    /// How many pages a file that holds the whole database has: `commit`, less the lock page if that is
    /// within.
    pub fn full_pages(&self) -> u32 {
        self.commit - u32::from(self.commit >= self.page_size.lock_page().get())
    }

    /// Reads a header. Errors with `Kind::Corrupt`; with `Kind::Config` where an age file begins.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        if sealed::is_sealed(bytes) {
            return Err(sealed::no_identity("it"));
        }
        let mut cut = Cut(bytes);
        if cut.take::<4>() != MAGIC {
            return Err(bad("the file does not start with LTX1"));
        }
        let flags = cut.u32();
        let tracking = match flags {
            0 => Tracking::Checksummed,
            FLAG_NO_CHECKSUM => Tracking::NoChecksum,
            _ => return Err(bad(format!("header flags {flags:#x} are unknown (0 and 2 are known)"))),
        };
        let page_size = PageSize::new(cut.u32())?;
        let commit = cut.u32();
        let (min, max) = (TxId(cut.u64()), TxId(cut.u64()));
        let timestamp = Timestamp(i64::from_be_bytes(cut.take()));
        let pre_apply = cut.u64();
        let wal = WalRange { offset: cut.u64(), size: cut.u64(), salt1: cut.u32(), salt2: cut.u32() };
        let none = WalRange { offset: 0, size: 0, salt1: 0, salt2: 0 };
        let wal = match wal.offset {
            0 if wal != none => return Err(bad("the header has a WAL size or salt but no WAL offset")),
            0 => None,
            _ => Some(wal),
        };
        let lineage = Lineage(cut.u64());
        let ours = cut.take::<4>() == ATTEST_TAG;
        let attest = Attest { before: DbChecksum(cut.u64()), after: DbChecksum(cut.u64()) };
        let attest = (ours && is_flagged(attest.before) && is_flagged(attest.after)).then_some(attest);
        let pre_apply = (pre_apply != 0).then_some(DbChecksum(pre_apply));
        let header =
            Header { page_size, commit, min, max, timestamp, wal, lineage, attest, pre_apply, tracking };
        header.check()?;
        Ok(header)
    }

    /// Writes the header. Errors with `Kind::Corrupt` if its fields contradict one another.
    pub fn encode(&self) -> Result<[u8; HEADER_LEN]> {
        self.check()?;
        let flags = match self.tracking {
            Tracking::NoChecksum => FLAG_NO_CHECKSUM,
            Tracking::Checksummed => 0,
        };
        let wal = self.wal.unwrap_or(WalRange { offset: 0, size: 0, salt1: 0, salt2: 0 });
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&self.page_size.get().to_be_bytes());
        out.extend_from_slice(&self.commit.to_be_bytes());
        out.extend_from_slice(&self.min.0.to_be_bytes());
        out.extend_from_slice(&self.max.0.to_be_bytes());
        out.extend_from_slice(&self.timestamp.0.to_be_bytes());
        out.extend_from_slice(&self.pre_apply.map_or(0, |c| c.0).to_be_bytes());
        out.extend_from_slice(&wal.offset.to_be_bytes());
        out.extend_from_slice(&wal.size.to_be_bytes());
        out.extend_from_slice(&wal.salt1.to_be_bytes());
        out.extend_from_slice(&wal.salt2.to_be_bytes());
        out.extend_from_slice(&self.lineage.0.to_be_bytes());
        if let Some(attest) = self.attest {
            out.extend_from_slice(&ATTEST_TAG);
            out.extend_from_slice(&attest.before.0.to_be_bytes());
            out.extend_from_slice(&attest.after.0.to_be_bytes());
        }
        out.resize(HEADER_LEN, 0);
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&out);
        Ok(bytes)
    }

    /// The rules between the fields.
    fn check(&self) -> Result<()> {
        if self.min.0 < 1 || self.max < self.min {
            return Err(bad(format!("TXID range {}-{} is not 1 <= min <= max", self.min, self.max)));
        }
        if self.commit == 0 && self.tracking == Tracking::NoChecksum {
            return Err(bad("a database of 0 pages cannot be written without checksums"));
        }
        if let Some(wal) = self.wal {
            let limit = i64::MAX.unsigned_abs();
            if wal.offset == 0 || wal.offset > limit || wal.size > limit {
                return Err(bad(format!("WAL range {}+{} is out of bounds", wal.offset, wal.size)));
            }
        }
        if let Some(attest) = self.attest
            && !(is_flagged(attest.before) && is_flagged(attest.after))
        {
            return Err(bad("an attested database checksum lacks its flag bit"));
        }
        match (self.tracking, self.pre_apply) {
            (Tracking::NoChecksum, Some(_)) => {
                Err(bad("the header has a pre-apply checksum and says that it has none"))
            }
            (Tracking::Checksummed, Some(_)) if self.is_snapshot() => {
                Err(bad("a snapshot has a pre-apply checksum"))
            }
            (Tracking::Checksummed, None) if !self.is_snapshot() => {
                Err(bad("the header lacks its pre-apply checksum"))
            }
            (Tracking::Checksummed, Some(c)) if !is_flagged(c) => {
                Err(bad("the pre-apply checksum lacks its flag bit"))
            }
            _ => Ok(()),
        }
    }
}

fn is_flagged(c: DbChecksum) -> bool {
    c.0 & DbChecksum::FLAG != 0
}

fn bad(why: impl Into<String>) -> Error {
    Error::corrupt(why)
}

/// Takes fields off the front of a header; what is missing reads as zeros (never: the length is in the type).
struct Cut<'a>(&'a [u8]);

impl Cut<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}
