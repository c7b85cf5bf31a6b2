//! Which files, in which order, rebuild the database at a point. Pure: file infos in, a plan out.
//!
//! Rules
//! * I-PLAN-1 A plan starts at a file with min TXID 1 (a full copy, at whatever level) and each later file
//!   starts at or before the TXID after the one reached so far and reaches further: the rule Litestream uses
//!   (<https://github.com/benbjohnson/litestream>, `CalcRestorePlan`), so both tools restore the same states.
//! * I-PLAN-2 A plan ends exactly at the TXID asked for. A point that no plan reaches is an error that says
//!   which range exists; a newer state that cannot be rebuilt is never silently replaced by an older one.
//! * I-PLAN-3 Where two neighbouring files both attest their database checksums, and these differ, the later
//!   file belongs to another history and is not used after the earlier one.
//! * I-PLAN-4 A time means the newest state whose file time is at or before it. (Litestream takes strictly
//!   before, and so loses the file whose time was copied from its own listing.) A time in the future is outside.
//! * I-PLAN-5 A time is not certain where what follows the state that it means was stamped later than now: a clock was ahead, and everything
//!   that came since bears that clock's time. That is an error; an older state is never given for it silently.
//!
//! The greedy choice (furthest reach first) is complete: whatever follows a shorter step also follows the
//! longer one, as only the start of a file is compared. Refused: searching all paths, which for a day of
//! one-second files is 86,400 nodes with as many edges each.

use super::inventory::FileInfo;
use super::point::Point;
use crate::base::{DbChecksum, Error, Kind, Result, Timestamp, TxId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// The files to apply, oldest first, and the state they give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order of application; the first has min TXID 1.
    pub files: Vec<FileInfo>,
    /// The TXID reached.
    pub txid: TxId,
    /// The time of the last file.
    pub time: Timestamp,
}

impl Plan {
    /// Bytes to fetch.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

/// The states a set of files can rebuild, with the time of each, ascending.
pub fn restorable(files: &[FileInfo]) -> BTreeMap<TxId, Timestamp> {
    let mut by_max: Vec<&FileInfo> = files.iter().collect();
    by_max.sort_by_key(|f| (f.max, f.level));
    let mut reached: BTreeMap<TxId, Timestamp> = BTreeMap::new();
    for f in by_max {
        let base = TxId(f.min.0.saturating_sub(1));
        if f.min == TxId(1) || (base < f.max && reached.range(base..f.max).next_back().is_some()) {
            // The lowest level comes first: it carries the time of the upload itself.
            reached.entry(f.max).or_insert(f.time);
        }
    }
    reached
}

/// The plan for `point`. `now` tells the future from the past.
///
/// Errors: `Missing` when the replica holds nothing restorable or the point is outside its history or no
/// longer separately restorable; `Corrupt` when files that should lead to the point are missing.
pub fn plan(files: &[FileInfo], point: Point, now: Timestamp) -> Result<Plan> {
    let target = target(files, point, now)?;
    match reach(files, target) {
        Some(chain) => {
            let time = chain.last().map_or(Timestamp(0), |f| f.time);
            Ok(Plan { files: chain, txid: target, time })
        }
        None => Err(unreachable_error(files, target)),
    }
}

/// The TXID that `point` means, whether or not it can be rebuilt.
fn target(files: &[FileInfo], point: Point, now: Timestamp) -> Result<TxId> {
    let states = restorable(files);
    let (Some((first, first_time)), Some((_, last_time))) =
        (states.first_key_value(), states.last_key_value())
    else {
        let what = if files.is_empty() { "it holds no LTX file" } else { "it holds no snapshot" };
        return Err(Error::new(Kind::Missing, format!("the replica cannot be restored: {what}")));
    };
    let newest = files.iter().map(|f| f.max).max().unwrap_or_default();
    let range = || format!("{first}..{newest} ({first_time} to {last_time})");
    match point {
        Point::Latest => Ok(newest),
        Point::TxId(t) if t < *first || t > newest => {
            Err(Error::new(Kind::Missing, format!("TXID {t} is outside the history {}", range())))
        }
        Point::TxId(t) => Ok(t),
        Point::Time(t) => {
            let at = files.iter().filter(|f| f.time <= t).map(|f| f.max).max();
            match at {
                Some(at) if t <= now && at >= *first => certain(files, t, at, now),
                _ => Err(Error::new(Kind::Missing, format!("time {t} is outside the history {}", range()))),
            }
        }
    }
}

/// How far the clock of another machine may be ahead without a word.
const AHEAD: Duration = Duration::from_secs(60);

/// I-PLAN-5.
fn certain(files: &[FileInfo], t: Timestamp, at: TxId, now: Timestamp) -> Result<TxId> {
    let next = files.iter().filter(|f| f.max > at).min_by_key(|f| (f.max, f.level));
    match next {
        Some(next) if next.time.since(now) > AHEAD => {
            let newest = files.iter().map(|f| f.max).max().unwrap_or_default();
            Err(Error::new(
                Kind::Missing,
                format!(
                    "which state was there at {t} is not certain: TXID {} and what follows bear times later than now ({}), as a clock \
                     was ahead; name a TXID from {} to {}, or no point for the newest state",
                    next.max, next.time, at, newest
                ),
            ))
        }
        _ => Ok(at),
    }
}

/// I-PLAN-1 and I-PLAN-3: from the newest full copy at or before `target` forward; if the checksums of its
/// history forbid that, from the one before.
fn reach(files: &[FileInfo], target: TxId) -> Option<Vec<FileInfo>> {
    let mut bases: Vec<&FileInfo> = files.iter().filter(|f| f.min == TxId(1) && f.max <= target).collect();
    bases.sort_by_key(|f| (Reverse(f.max), Reverse(f.level)));
    let mut steps: Vec<&FileInfo> = files.iter().filter(|f| f.min > TxId(1) && f.max <= target).collect();
    steps.sort_by_key(|f| f.min);
    bases.into_iter().take(MAX_BASES).find_map(|base| walk(base, &steps, target))
}

/// How many full copies are tried as the start. More than one is needed only where a file of another history
/// lies in the replica.
const MAX_BASES: usize = 64;

pub(super) fn walk(base: &FileInfo, steps: &[&FileInfo], target: TxId) -> Option<Vec<FileInfo>> {
    let mut chain = vec![base.clone()];
    let (mut at, mut sum) = (base.max, base.attest_after);
    let mut rest = steps.iter().copied();
    let mut next = rest.next();
    let mut reachable = BinaryHeap::new();
    while at < target {
        while let Some(f) = next
            && f.min <= at.next()
        {
            reachable.push(Candidate(f));
            next = rest.next();
        }
        let Candidate(f) = reachable.pop()?;
        if f.max > at && continues(f, at, sum) {
            (at, sum) = (f.max, f.attest_after);
            chain.push(f.clone());
        }
    }
    Some(chain)
}

/// I-PLAN-3. A file that starts earlier than the state it is applied to cannot be judged by its `before`.
fn continues(f: &FileInfo, at: TxId, sum: Option<DbChecksum>) -> bool {
    match (f.attest_before, sum) {
        (Some(before), Some(sum)) if f.min == at.next() => before == sum,
        _ => true,
    }
}

/// Furthest reach first, then the earlier start, then the higher level, as Litestream breaks ties.
struct Candidate<'a>(&'a FileInfo);

impl Candidate<'_> {
    fn rank(&self) -> (TxId, Reverse<TxId>, crate::ltx::Level) {
        (self.0.max, Reverse(self.0.min), self.0.level)
    }
}
impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}
impl Eq for Candidate<'_> {}
impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// I-PLAN-2: says what is in the way, and what can be had instead.
fn unreachable_error(files: &[FileInfo], target: TxId) -> Error {
    let states = restorable(files);
    let before = states.range(..target).next_back();
    let after = states.range(target.next()..).next();
    let near = match (before, after) {
        (Some((b, bt)), Some((a, at))) => format!("the nearest are {b} ({bt}) and {a} ({at})"),
        (Some((b, bt)), None) => format!("the newest before it is {b} ({bt})"),
        (None, Some((a, at))) => format!("the oldest after it is {a} ({at})"),
        (None, None) => "no other can be either".to_string(),
    };
    let names_it = files.iter().any(|f| f.max == target);
    if !names_it {
        let text = format!("TXID {target} is not separately restorable any more; {near}");
        return Error::new(Kind::Missing, text);
    }
    if states.contains_key(&target) {
        let text =
            format!("TXID {target} cannot be rebuilt: a file on the way belongs to another history; {near}");
        return Error::corrupt(text);
    }
    let hole = before.map_or(TxId(1), |(b, _)| b.next());
    Error::corrupt(format!(
        "TXID {} cannot be rebuilt: no file continues at TXID {} (a gap in the replica); {near}",
        target, hole
    ))
}

#[cfg(test)]
mod tests;
