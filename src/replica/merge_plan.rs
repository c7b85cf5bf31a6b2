//! Which small files to merge into larger ones, so that a restore fetches few. Pure; the shipper carries it out from local copies.
//!
//! Rules
//! * I-MRG-1 Level n is made of level n-1 alone, from where level n ends, one file per interval that is over (aligned to the clock, as
//!   Litestream does), so each machine and each run comes to the same files.
//! * I-MRG-2 A merge never spans a gap or two histories: its inputs follow one another by TXID and, where attested, by checksum.
//! * I-MRG-3 Inputs stay; retention removes them later.
//!
//! Refused: merging by count (a burst then makes one level-1 file per second, and a quiet day none at all).

use super::inventory::FileInfo;
use super::layout::FileId;
use crate::base::{Timestamp, TxId};
use crate::ltx::Level;
use std::time::Duration;

/// Most inputs of one merge: each is an open file.
pub const MAX_INPUTS: usize = 200;

/// One merge to carry out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    /// The file that comes of it: level, first and last TXID.
    pub output: FileId,
    /// Oldest first, all of the level below.
    pub inputs: Vec<FileId>,
    /// Bytes of all inputs.
    pub bytes: u64,
}

/// The merges that are due. `intervals[0]` is that of level 1, and so on up to level 8; a zero interval ends the levels. What a merge makes is an
/// input for the next level in a later call.
pub fn merge_plan(files: &[FileInfo], intervals: &[Duration], now: Timestamp) -> Vec<Merge> {
    let mut out = Vec::new();
    for (n, interval) in (1u8..9).zip(intervals) {
        let (Some(level), Some(below)) = (Level::new(n), Level::new(n - 1)) else { break };
        let Ok(ms @ 1..) = i64::try_from(interval.as_millis()) else { break };
        merges_into(level, below, files, ms, now, &mut out);
    }
    out
}

fn merges_into(
    level: Level,
    below: Level,
    files: &[FileInfo],
    ms: i64,
    now: Timestamp,
    out: &mut Vec<Merge>,
) {
    let done = files.iter().filter(|f| f.level == level).map(|f| f.max).max().unwrap_or_default();
    let mut inputs: Vec<&FileInfo> =
        files.iter().filter(|f| f.level == below && f.max > done && f.min > TxId(1)).collect();
    inputs.sort_by_key(|f| (f.min, f.max));
    let mut group: Vec<&FileInfo> = Vec::new();
    for f in inputs {
        let bucket = f.time.0.div_euclid(ms);
        if bucket.saturating_add(1).saturating_mul(ms) > now.0 {
            // Its interval is not over, and what follows is newer.
            break;
        }
        if let Some(last) = group.last() {
            if f.max <= last.max {
                continue;
            }
            if !follows(f, last) || last.time.0.div_euclid(ms) != bucket || group.len() >= MAX_INPUTS {
                out.extend(merge_of(level, &group));
                group.clear();
            }
        }
        group.push(f);
    }
    out.extend(merge_of(level, &group));
}

/// I-MRG-2.
fn follows(f: &FileInfo, last: &FileInfo) -> bool {
    let joined = f.min <= last.max.next();
    match (f.attest_before, last.attest_after) {
        (Some(before), Some(after)) if f.min == last.max.next() => joined && before == after,
        _ => joined,
    }
}

fn merge_of(level: Level, group: &[&FileInfo]) -> Option<Merge> {
    let (first, last) = (group.first()?, group.last()?);
    Some(Merge {
        output: FileId { level, min: first.min, max: last.max },
        inputs: group.iter().map(|f| f.id()).collect(),
        bytes: group.iter().map(|f| f.bytes).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DbChecksum;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn file(level: u8, min: u64, max: u64, ms: i64) -> FileInfo {
        let id = FileId::new(Level::new(level).unwrap(), TxId(min), TxId(max)).unwrap();
        FileInfo::listed(id, 10, Timestamp(ms))
    }

    fn l0(n: u64) -> FileInfo {
        file(0, n, n, n as i64 * 1000)
    }

    fn shape(m: &[Merge]) -> Vec<(u8, u64, u64, usize)> {
        m.iter().map(|m| (m.output.level.get(), m.output.min.0, m.output.max.0, m.inputs.len())).collect()
    }

    fn due(files: &[FileInfo], now_s: i64) -> Vec<(u8, u64, u64, usize)> {
        shape(&merge_plan(files, &[30 * S, 300 * S, 3600 * S], Timestamp(now_s * 1000)))
    }

    #[test]
    fn one_file_per_interval_that_is_over() {
        let mut files = vec![file(9, 1, 1, 1000)];
        files.extend((2..=70).map(l0));
        assert_eq!(due(&files, 29), []);
        assert_eq!(due(&files, 70), [(1, 2, 29, 28), (1, 30, 59, 30)]);
        files.push(file(1, 2, 29, 29_000));
        assert_eq!(due(&files, 89), [(1, 30, 59, 30)]);
        assert_eq!(due(&files, 90), [(1, 30, 59, 30), (1, 60, 70, 11)]);
    }

    #[test]
    fn levels_are_made_of_the_level_below() {
        let files: Vec<_> =
            (0..12).map(|i| file(1, 2 + i * 30, 31 + i * 30, i as i64 * 30_000 + 29_000)).collect();
        assert_eq!(due(&files, 299), []);
        assert_eq!(due(&files, 301), [(2, 2, 301, 10)]);
        assert_eq!(shape(&merge_plan(&files, &[30 * S], Timestamp(i64::MAX))), []);
        assert_eq!(shape(&merge_plan(&files, &[30 * S, Duration::ZERO], Timestamp(i64::MAX))), []);
        assert_eq!(shape(&merge_plan(&files, &[], Timestamp(i64::MAX))), []);
    }

    #[test]
    fn gaps_histories_and_full_copies_are_not_merged_over() {
        let sum = |n| Some(DbChecksum(DbChecksum::FLAG | n));
        let mut files: Vec<_> = [1, 2, 3, 5, 6, 7].map(l0).to_vec();
        (files[4].attest_after, files[5].attest_before) = (sum(6), sum(66));
        assert_eq!(due(&files, 30), [(1, 2, 3, 2), (1, 5, 6, 2), (1, 7, 7, 1)]);
    }

    #[test]
    fn a_burst_is_merged_in_pieces() {
        let files: Vec<_> = (2..=500).map(|n| file(0, n, n, 5000)).collect();
        assert_eq!(due(&files, 30), [(1, 2, 201, 200), (1, 202, 401, 200), (1, 402, 500, 99)]);
    }

    proptest! {
        /// Carried out again and again, the levels stay gap-free and lose nothing.
        #[test]
        fn merging_keeps_every_state_restorable(holes in proptest::collection::btree_set(3u64..80, 0..4), n in 10u64..90) {
            let mut files = vec![file(9, 1, 1, 1000)];
            for t in 2..=n {
                files.push(if holes.contains(&t) { file(9, 1, t, t as i64 * 1000) } else { l0(t) });
                for m in merge_plan(&files, &[5 * S, 20 * S], Timestamp(t as i64 * 1000)) {
                    let id = m.output;
                    prop_assert!(!holes.range(id.min.0..=id.max.0).any(|_| true));
                    let time = m.inputs.last().map(|l| files.iter().find(|f| f.id() == *l).unwrap().time).unwrap();
                    files.push(FileInfo::listed(id, m.bytes, time));
                }
            }
            // Without level 0 (but its last file of each history), the newest state before each hole is still there.
            let upper: Vec<FileInfo> = files.iter().filter(|f| f.level != Level::L0).cloned().collect();
            let states = crate::replica::plan::restorable(&upper);
            prop_assert!(states.len() > 1 || n < 12);
            for f in upper.iter() {
                prop_assert!(states.contains_key(&f.max), "{:?} {:?}", f.id(), holes);
            }
        }
    }
}
