//! Names of LTX files and of the levels they lie in, as Litestream lays them out.

use crate::base::TxId;
use std::fmt;

/// A compaction level: 0 as captured, 1 to 8 merged, 9 snapshots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Level(u8);

impl Level {
    /// Files as captured, one TXID each.
    pub const L0: Level = Level(0);
    /// Full snapshots.
    pub const SNAPSHOT: Level = Level(9);

    /// `None` above 9.
    pub fn new(n: u8) -> Option<Level> {
        (n <= 9).then_some(Level(n))
    }

    /// The number, 0 to 9.
    pub fn get(self) -> u8 {
        self.0
    }

    /// All ten, ascending.
    pub fn all() -> impl DoubleEndedIterator<Item = Level> {
        (0..=9).map(Level)
    }
}

/// Decimal.
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of an LTX file: `%016x-%016x.ltx`, first and last TXID. Orders by first, then last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileName {
    /// First TXID in the file, 1 or more.
    pub min: TxId,
    /// Last TXID in the file, `min` or more.
    pub max: TxId,
}

impl FileName {
    /// Reads a bare file name. `None` unless it is exactly what [`fmt::Display`] would write for valid TXIDs:
    /// listings contain other people's files, and those are none of our business.
    pub fn parse(name: &str) -> Option<FileName> {
        let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
        let (min, max) = (hex16(min)?, hex16(max)?);
        (1 <= min && min <= max).then_some(FileName { min: TxId(min), max: TxId(max) })
    }

    /// Whether the file is a full snapshot: it starts at TXID 1.
    pub fn is_snapshot(self) -> bool {
        self.min.0 == 1
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.ltx", self.min, self.max)
    }
}

fn hex16(s: &str) -> Option<u64> {
    let strict = s.len() == 16 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if strict { u64::from_str_radix(s, 16).ok() } else { None }
}
