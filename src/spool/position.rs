//! The records of a spool: where it is, what is in the replica, and whose both are.

use crate::base::{DbChecksum, Lineage, PageSize, Timestamp, TxId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How far the WAL is sealed, and what the database is at that point.
///
/// The frames up to `wal` are in pieces 0..`pieces` of TXID `txid + 1`, or in files up to `txid`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The history this belongs to.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_lineage")]
    pub lineage: Lineage,
    /// The newest TXID that is cut.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_txid")]
    pub txid: TxId,
    /// How many pieces of the next TXID exist.
    pub pieces: u32,
    /// Whether one of them holds its pages unpacked: they are packed when the TXID is cut.
    #[serde(default)]
    pub literal: bool,
    /// Page size of the database.
    #[serde(serialize_with = "page_size_out", deserialize_with = "page_size_in")]
    pub page_size: PageSize,
    /// Size of the database in pages.
    pub commit: u32,
    /// Checksum of the database.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_checksum")]
    pub checksum: DbChecksum,
    /// Timestamp of the newest file or piece: LTX timestamps never go back.
    #[serde(serialize_with = "ts_out", deserialize_with = "ts_in")]
    pub timestamp: Timestamp,
    /// The place in the WAL up to which everything is sealed.
    pub wal: WalPlace,
    /// What the next writer is to expect of the WAL.
    pub handoff: Handoff,
}

/// A place in the WAL, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<WalPoint>", into = "Option<WalPoint>")]
pub enum WalPlace {
    /// A frame of a generation.
    Known(WalPoint),
    /// No generation is begun: all is in the database file, and [`Handoff::Closed`] says how that looks.
    InFile,
    /// Nobody knows it any more: only the database's content tells where the WAL goes on.
    GivenUp,
}

impl WalPlace {
    /// Whether only the database's content tells where the WAL goes on.
    pub fn is_given_up(self) -> bool {
        self == WalPlace::GivenUp
    }

    /// The place as a point: before any generation, one with salts of zero.
    pub fn point(self) -> Option<WalPoint> {
        match self {
            WalPlace::Known(p) => Some(p),
            WalPlace::InFile => Some(WalPoint { salt1: 0, salt2: 0, frame: 0, checksum: None }),
            WalPlace::GivenUp => None,
        }
    }
}

/// (A wal-index that no writer has used yet has salts of zero: they name no generation.)
impl From<WalPoint> for WalPlace {
    fn from(p: WalPoint) -> WalPlace {
        if (p.salt1, p.salt2) == (0, 0) { WalPlace::InFile } else { WalPlace::Known(p) }
    }
}

/// As it stands in the record: nothing for a place that was given up.
impl From<Option<WalPoint>> for WalPlace {
    fn from(p: Option<WalPoint>) -> WalPlace {
        p.map_or(WalPlace::GivenUp, WalPlace::from)
    }
}

impl From<WalPlace> for Option<WalPoint> {
    fn from(p: WalPlace) -> Option<WalPoint> {
        p.point()
    }
}

/// A frame of a WAL generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalPoint {
    /// First salt of the WAL header.
    pub salt1: u32,
    /// Second salt.
    pub salt2: u32,
    /// Frames sealed, 0 = only the header.
    pub frame: u32,
    /// Running checksum at that frame; `None`: read it from the frame's header.
    pub checksum: Option<(u32, u32)>,
}

/// What may have happened to the WAL since the position was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handoff {
    /// The WAL goes on from `wal`.
    Live,
    /// The last connection closed with everything in the database file, which then looked like this.
    Closed(FileStamp),
}

/// What tells a changed file from an unchanged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Device and inode.
    pub dev_ino: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// Modification time, ns.
    pub mtime: i128,
    /// Growth time, ns: nothing short of setting the clock forges it.
    pub ctime: i128,
}

impl FileStamp {
    /// Of the file at `path`, without opening it (closing a database file would drop SQLite's locks).
    pub fn of(path: &std::path::Path) -> std::io::Result<FileStamp> {
        use std::os::unix::fs::MetadataExt;
        let m = std::fs::metadata(path)?;
        let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
        Ok(FileStamp {
            dev_ino: (m.dev(), m.ino()),
            size: m.size(),
            mtime: ns(m.mtime(), m.mtime_nsec()),
            ctime: ns(m.ctime(), m.ctime_nsec()),
        })
    }
}

/// What is durable in the replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shipped {
    /// The replica, in its canonical form.
    pub replica: String,
    /// The history.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_lineage")]
    pub lineage: Lineage,
    /// The newest TXID up to which nothing is missing there.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_txid")]
    pub txid: TxId,
    /// The newest snapshot there.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_txid")]
    pub snapshot: TxId,
    /// When that was put there: what is due by the clock is due whatever process looks. `None`: an older version wrote this.
    #[serde(default, serialize_with = "maybe_ts_out", deserialize_with = "maybe_ts_in")]
    pub snapshot_time: Option<Timestamp>,
    /// When the last upload was acknowledged.
    #[serde(serialize_with = "ts_out", deserialize_with = "ts_in")]
    pub time: Timestamp,
    /// How much has come since the newest snapshot.
    #[serde(default)]
    pub change: Growth,
}

/// How much a replica has changed since its newest snapshot, as far as this machine has seen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// Size of that snapshot; 0 if it is not known.
    pub snapshot_bytes: u64,
    /// Bytes of the level-0 files that came after it.
    pub since_bytes: u64,
}

/// What may be in the replica although no position says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ventured {
    /// The newest TXID used: not to be used again for other content.
    #[serde(serialize_with = "hex", deserialize_with = "unhex_txid")]
    pub txid: TxId,
}

/// Whose spool this is: what a power cut must not take, for without it the replica looks like a stranger's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The replica, in its canonical form.
    pub replica: String,
    /// The newest lineages that were begun or taken up here, oldest first, as hex. The last may not have reached the
    /// replica.
    pub lineages: Vec<String>,
}

fn hex<T: std::fmt::Display, S: Serializer>(v: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(v)
}

fn unhex<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let s = String::deserialize(d)?;
    u64::from_str_radix(&s, 16).map_err(serde::de::Error::custom)
}

fn unhex_lineage<'de, D: Deserializer<'de>>(d: D) -> Result<Lineage, D::Error> {
    unhex(d).map(Lineage)
}

fn unhex_txid<'de, D: Deserializer<'de>>(d: D) -> Result<TxId, D::Error> {
    unhex(d).map(TxId)
}

fn unhex_checksum<'de, D: Deserializer<'de>>(d: D) -> Result<DbChecksum, D::Error> {
    unhex(d).map(DbChecksum)
}

fn page_size_out<S: Serializer>(v: &PageSize, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u32(v.get())
}

fn page_size_in<'de, D: Deserializer<'de>>(d: D) -> Result<PageSize, D::Error> {
    PageSize::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn ts_out<S: Serializer>(v: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_i64(v.0)
}

fn maybe_ts_out<S: Serializer>(v: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
    v.map(|t| t.0).serialize(s)
}

fn maybe_ts_in<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<i64>::deserialize(d)?.map(Timestamp))
}

fn ts_in<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
    i64::deserialize(d).map(Timestamp)
}
