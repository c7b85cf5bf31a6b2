//! Sums of the blocks of a large LTX file, so that a part of it can be proved without the rest: LTX has one checksum for all of a file.
//!
//! One object beside the files, `walrust/blocks-<level>-<min>-<max>`, put after its file:
//!
//! ```text
//! "walrust blocks 1" | level u8 | min, max, bytes u64 | SHA-256 of the file | first 8 bytes of SHA-256 of each block | SHA-256 of all this
//! ```
//!
//! Rules
//! * I-BLOCK-1 It is a help and nothing else: a file without one, or with a damaged one, is read another way. It is never the reason why
//!   an upload fails.
//! * I-BLOCK-2 It counts only for the file that it names: level, TXIDs, size, and the SHA-256 that the manifest has.
//!
//! Pure, but for [`of_file`]. Refused: a sum for each page (hundreds of times as many); sums in the manifest (each reader of it would
//! fetch them all).

use super::layout::FileId;
use super::manifest::ManifestEntry;
use crate::base::{Error, Result};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;

/// Files up to this size are fetched whole, into memory, and need no sums.
pub const WHOLE: u64 = 256 * 1024;
/// Bytes of a block; the last one of a file may be shorter.
pub const BLOCK: u64 = 64 * 1024;

const MAGIC: &[u8; 16] = b"walrust blocks 1";
const SUM: usize = 8;
/// All that stands before the sums.
const HEAD: usize = MAGIC.len() + 1 + 3 * 8 + 32;
const CHECK: usize = 32;

/// The sums of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    bytes: u64,
    sums: Vec<[u8; SUM]>,
}

/// Whether a file of this size has them.
pub fn are_wanted(bytes: u64) -> bool {
    bytes > WHOLE
}

fn sum(block: &[u8]) -> [u8; SUM] {
    Sha256::digest(block).first_chunk().copied().unwrap_or_default()
}

/// The sums of a local LTX file of which the manifest will say `entry`, as they are put beside it. Errors with `Io` where the file cannot be
/// read.
pub fn of_file(path: &Path, entry: &ManifestEntry) -> Result<Vec<u8>> {
    use std::io::Read;
    let io = |e| Error::io("read", path, e);
    let mut file = std::fs::File::open(path).map_err(io)?;
    let (mut sums, mut block) = (Vec::new(), Vec::new());
    loop {
        block.clear();
        (&mut file).take(BLOCK).read_to_end(&mut block).map_err(io)?;
        if block.is_empty() {
            break;
        }
        sums.push(sum(&block));
    }
    Ok(encode(entry, &sums))
}

fn encode(entry: &ManifestEntry, sums: &[[u8; SUM]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + sums.len() * SUM + CHECK);
    out.extend_from_slice(MAGIC);
    out.push(entry.id.level.get());
    for n in [entry.id.min.0, entry.id.max.0, entry.bytes] {
        out.extend_from_slice(&n.to_be_bytes());
    }
    out.extend_from_slice(&entry.sha256);
    sums.iter().for_each(|s| out.extend_from_slice(s));
    let check = Sha256::digest(&out);
    out.extend_from_slice(&check);
    out
}

impl Blocks {
    /// Reads what was put beside the file `id` of `bytes` bytes, of which the manifest says `entry` (I-BLOCK-2). `None` if it is damaged
    /// or of another file.
    pub fn decode(object: &[u8], id: FileId, bytes: u64, entry: Option<&ManifestEntry>) -> Option<Blocks> {
        let (said, check) = object.split_last_chunk::<CHECK>()?;
        if <[u8; CHECK]>::from(Sha256::digest(said)) != *check {
            return None;
        }
        let (head, sums) = said.split_at_checked(HEAD)?;
        let mut expected = MAGIC.to_vec();
        expected.push(id.level.get());
        for n in [id.min.0, id.max.0, bytes] {
            expected.extend_from_slice(&n.to_be_bytes());
        }
        let sha256 = head.strip_prefix(expected.as_slice())?;
        if entry.is_some_and(|e| e.sha256 != *sha256) {
            return None;
        }
        let (sums, rest) = sums.as_chunks::<SUM>();
        let whole = rest.is_empty() && sums.len() as u64 == bytes.div_ceil(BLOCK);
        whole.then(|| Blocks { bytes, sums: sums.to_vec() })
    }

    /// The smallest range of whole blocks around `range`.
    pub fn around(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start / BLOCK * BLOCK;
        start..range.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(self.bytes)
    }

    /// Proves the bytes of the file from `start`, the beginning of a block, on. Errors with `Corrupt`.
    pub fn prove(&self, start: u64, bytes: &[u8]) -> Result<()> {
        let first = usize::try_from(start / BLOCK).unwrap_or(usize::MAX);
        for (n, block) in bytes.chunks(BLOCK as usize).enumerate() {
            if self.sums.get(first.saturating_add(n)) != Some(&sum(block)) {
                let at = start + n as u64 * BLOCK;
                return Err(Error::corrupt(format!(
                    "the bytes from {at} on are not those that were uploaded (checksum mismatch)"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Timestamp, TxId};
    use crate::ltx::Level;

    #[test]
    fn each_changed_byte_is_found_and_only_its_own_file_counts() {
        let data: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ltx");
        std::fs::write(&path, &data).unwrap();
        let entry = ManifestEntry {
            id: FileId { level: Level::SNAPSHOT, min: TxId(1), max: TxId(9) },
            bytes: data.len() as u64,
            pages: 1,
            commit: 1,
            crc: 0,
            edge: 0,
            sha256: Sha256::digest(&data).into(),
            time: Timestamp(0),
            after: None,
        };
        let object = of_file(&path, &entry).unwrap();
        let decode = |o: &[u8], e: &ManifestEntry| Blocks::decode(o, e.id, e.bytes, Some(e));
        let blocks = decode(&object, &entry).unwrap();
        assert_eq!(blocks.sums.len(), 5);
        for range in [0..1, 65_535..65_537, 200_000..200_010, 299_999..300_000, 0..300_000] {
            let around = blocks.around(&range);
            assert!(
                around.start <= range.start && around.end >= range.end && around.start.is_multiple_of(BLOCK)
            );
            let mut part = data[around.start as usize..around.end as usize].to_vec();
            blocks.prove(around.start, &part).unwrap();
            part[(range.start - around.start) as usize] ^= 1;
            assert!(blocks.prove(around.start, &part).unwrap_err().is_corrupt());
            assert!(blocks.prove(around.start, &part[1..]).is_err());
        }
        for at in (0..object.len()).step_by(7) {
            let mut broken = object.clone();
            broken[at] ^= 1;
            assert_eq!(decode(&broken, &entry), None, "byte {at}");
        }
        assert_eq!(decode(&object[..object.len() - 1], &entry), None);
        for other in [
            ManifestEntry { bytes: entry.bytes + 1, ..entry },
            ManifestEntry { sha256: [0; 32], ..entry },
            ManifestEntry { id: FileId { max: TxId(8), ..entry.id }, ..entry },
            ManifestEntry { id: FileId { level: Level::L0, ..entry.id }, ..entry },
        ] {
            assert_eq!(decode(&object, &other), None);
        }
        assert!(Blocks::decode(&object, entry.id, entry.bytes, None).is_some());
    }
}
