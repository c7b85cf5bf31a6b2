//! Where the objects of one replica lie, relative to its URL: Litestream 0.5's layout, and our own corner.
//!
//! | what | S3 | file, GCS, Azure |
//! |---|---|---|
//! | LTX file | `0000/<min>-<max>.ltx` (level as 4 hex digits) | `ltx/0/<min>-<max>.ltx` (level decimal) |
//! | manifest | `walrust/manifest-<segment>.json` | the same |
//! | manifest of a writer that only creates | `walrust/entries/<TXID>-<number>.json` | the same |
//! | sums of a file's blocks | `walrust/blocks-<level>-<min>-<max>` | the same |
//! | lease | `walrust/lease.json` | the same |
//! | label | `walrust/labels/<name>.json` | the same |
//!
//! Rule I-LAY-1: parsing accepts exactly what formatting produces; no other spelling of a number, no other
//! directory, nothing with `..` or an empty component. Pure. (Source: Litestream's `LTXFilePath` and its S3 client.)

use crate::base::TxId;
use crate::ltx::{FileName, Level};
use crate::store::LayoutKind;
use std::fmt;

/// Under this prefix lies what Litestream has no place for.
pub const OWN_PREFIX: &str = "walrust/";
/// Bytes of a block, in which a large file is fetched and proved piece by piece; the last one of a file may be shorter.
pub const BLOCK: u64 = 64 * 1024;
/// Manifest segments that are only ever created lie here.
pub const ENTRIES_PREFIX: &str = "walrust/entries/";
/// Labels lie here ([`super::label`]).
pub const LABELS_PREFIX: &str = "walrust/labels/";
/// The lease object.
pub const LEASE_KEY: &str = "walrust/lease.json";

/// One LTX file of a replica: level and first and last TXID. Orders by level, then first, then last TXID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId {
    /// Level, 0 to 9.
    pub level: Level,
    /// First TXID.
    pub min: TxId,
    /// Last TXID.
    pub max: TxId,
}

impl FileId {
    /// `None` unless 1 ≤ `min` ≤ `max`.
    pub fn new(level: Level, min: TxId, max: TxId) -> Option<FileId> {
        (min.0 >= 1 && min <= max).then_some(FileId { level, min, max })
    }

    /// Its bare file name.
    pub fn name(self) -> FileName {
        FileName { min: self.min, max: self.max }
    }

    /// Its key under the replica's URL.
    pub fn key(self, kind: LayoutKind) -> String {
        format!("{}{}", level_prefix(kind, self.level), self.name())
    }

    /// Reads a key back (I-LAY-1).
    pub fn parse(kind: LayoutKind, key: &str) -> Option<FileId> {
        let (dir, name) = key.rsplit_once('/')?;
        let level = Level::all().find(|l| level_prefix(kind, *l).strip_suffix('/') == Some(dir))?;
        let name = FileName::parse(name)?;
        Some(FileId { level, min: name.min, max: name.max })
    }

    /// TXIDs in it.
    pub fn txids(self) -> u64 {
        (self.max.0 - self.min.0).saturating_add(1)
    }
}

/// The bare file name; the level is told by the context.
impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

/// The prefix to list for a level; ends in `/`.
pub fn level_prefix(kind: LayoutKind, level: Level) -> String {
    match kind {
        LayoutKind::LevelHex => format!("{:04x}/", level.get()),
        LayoutKind::LevelDecimal => format!("ltx/{}/", level.get()),
    }
}

/// The key of a manifest segment.
pub fn manifest_key(segment: u64) -> String {
    format!("{OWN_PREFIX}manifest-{segment:016x}.json")
}

/// The key of the sums of a file's blocks ([`super::blocks`]).
pub fn blocks_key(id: FileId) -> String {
    format!("{OWN_PREFIX}blocks-{}-{}-{}", id.level.get(), id.min, id.max)
}

/// The segment number in a key, if it is exactly that of a manifest segment.
pub fn manifest_number(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(OWN_PREFIX)?.strip_prefix("manifest-")?.strip_suffix(".json")?;
    let n = u64::from_str_radix(digits, 16).ok()?;
    (manifest_key(n) == key).then_some(n)
}

/// The key of a manifest segment that is only ever created ([`super::manifest`]): the newest TXID that it names, and a number of its own.
pub fn appended_key(newest: TxId, number: u64) -> String {
    format!("{ENTRIES_PREFIX}{newest}-{number:016x}.json")
}

/// The newest TXID and the number in a key, if it is exactly that of such a segment.
pub fn appended_of(key: &str) -> Option<(TxId, u64)> {
    let (newest, number) = key.strip_prefix(ENTRIES_PREFIX)?.strip_suffix(".json")?.split_once('-')?;
    let newest = TxId(u64::from_str_radix(newest, 16).ok()?);
    let number = u64::from_str_radix(number, 16).ok()?;
    (appended_key(newest, number) == key).then_some((newest, number))
}

/// Splits the key of any object below some directory into the replica's root and the file, for finding the
/// databases below a URL: `tenants/a/ltx/0/….ltx` → (`tenants/a`, file). An empty root is the directory itself.
pub fn split_root(kind: LayoutKind, key: &str) -> Option<(&str, FileId)> {
    let depth = match kind {
        LayoutKind::LevelHex => 2,
        LayoutKind::LevelDecimal => 3,
    };
    let cut = key.rmatch_indices('/').nth(depth - 1);
    let (root, rest) = match cut {
        Some((i, _)) => (key.get(..i)?, key.get(i + 1..)?),
        None => ("", key),
    };
    FileId::parse(kind, rest).map(|id| (root, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [LayoutKind; 2] = [LayoutKind::LevelHex, LayoutKind::LevelDecimal];

    #[test]
    fn keys_are_litestreams() {
        let id = FileId::new(Level::L0, TxId(1), TxId(0xab)).unwrap();
        assert_eq!(id.key(LayoutKind::LevelHex), "0000/0000000000000001-00000000000000ab.ltx");
        assert_eq!(id.key(LayoutKind::LevelDecimal), "ltx/0/0000000000000001-00000000000000ab.ltx");
        let id = FileId { level: Level::SNAPSHOT, ..id };
        assert_eq!(id.key(LayoutKind::LevelHex), "0009/0000000000000001-00000000000000ab.ltx");
        assert_eq!(id.key(LayoutKind::LevelDecimal), "ltx/9/0000000000000001-00000000000000ab.ltx");
    }

    #[test]
    fn foreign_and_hostile_keys_are_refused() {
        let n = "0000000000000001-00000000000000ab.ltx";
        for key in [
            n.to_string(),
            format!("/{n}"),
            format!("00/{n}"),
            format!("10/{n}"),
            format!("+1/{n}"),
            format!("000A/{n}"),
            format!("000a/{n}"),
            format!("0000/x/{n}"),
            format!("../0000/{n}"),
            format!("0000/../0000/{n}"),
            format!("0000//{n}"),
            format!("0000/{n}.tmp"),
            "0000/0000000000000002-0000000000000001.ltx".into(),
            "0000/0000000000000000-0000000000000001.ltx".into(),
            "0000/000000000000000A-00000000000000AB.ltx".into(),
            "0000/1-2.ltx".into(),
        ] {
            assert_eq!(FileId::parse(LayoutKind::LevelHex, &key), None, "{key}");
            assert_eq!(FileId::parse(LayoutKind::LevelDecimal, &format!("ltx/{key}")), None, "{key}");
        }
    }

    #[test]
    fn manifest_keys() {
        assert_eq!(manifest_number(&manifest_key(0x1f)), Some(0x1f));
        for key in
            ["walrust/manifest-1f.json", "walrust/manifest-000000000000001F.json", "walrust/lease.json", "x"]
        {
            assert_eq!(manifest_number(key), None, "{key}");
        }
        let key = appended_key(TxId(0x1f), 0xab);
        assert_eq!(key, "walrust/entries/000000000000001f-00000000000000ab.json");
        assert_eq!(appended_of(&key), Some((TxId(0x1f), 0xab)));
        for key in [
            "walrust/entries/000000000000001f-00000000000000AB.json",
            "walrust/entries/1f-ab.json",
            "walrust/entries/000000000000001f.json",
            "walrust/manifest-0000000000000001.json",
        ] {
            assert_eq!(appended_of(key), None, "{key}");
        }
    }

    #[test]
    fn roots_of_databases() {
        let n = "0000000000000001-00000000000000ab.ltx";
        for (kind, dir) in [(LayoutKind::LevelHex, "0009"), (LayoutKind::LevelDecimal, "ltx/9")] {
            for root in ["", "a", "tenants/a b"] {
                let key = if root.is_empty() { format!("{dir}/{n}") } else { format!("{root}/{dir}/{n}") };
                let (found, id) = split_root(kind, &key).unwrap();
                assert_eq!((found, id.level), (root, Level::SNAPSHOT));
            }
        }
        assert_eq!(split_root(LayoutKind::LevelDecimal, n), None);
    }

    proptest! {
        #[test]
        fn keys_come_back(level in 0u8..10, min in 1u64.., more in 0u64..1000) {
            let id = FileId::new(Level::new(level).unwrap(), TxId(min), TxId(min.saturating_add(more))).unwrap();
            for kind in KINDS {
                prop_assert_eq!(FileId::parse(kind, &id.key(kind)), Some(id));
            }
        }

        #[test]
        fn parse_accepts_only_what_key_makes(key in "[0-9a-f/.ltx-]{0,60}") {
            for kind in KINDS {
                if let Some(id) = FileId::parse(kind, &key) {
                    prop_assert_eq!(id.key(kind), key.clone());
                }
            }
        }
    }
}
