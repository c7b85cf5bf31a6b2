//! Which files may go: grandfather, father, son. Pure; `compact` carries it out.
//!
//! Rules
//! * I-RET-1 Snapshots: the newest of each of the newest N hours, days, ISO weeks and months (UTC) that have one; two at the least; the newest
//!   always. Of those of the newest N hours, days, ... with a snapshot or a merged file that have no snapshot: the newest state that a merged
//!   file leads to. (A snapshot is made when it is worth it, and the points that are promised do not depend on that.)
//! * I-RET-2 Level 0 within `pitr_window` stays, so each upload there stays separately restorable, and the newest level-0 file
//!   always (`litestream replicate` needs one to take over). Levels 1..8 stay while they are within the window or newer than the
//!   newest snapshot.
//! * I-RET-3 Whatever the plan of a kept state needs stays, too. The result is proved, not believed: every state kept is planned on what
//!   remains, or nothing is removed at all.
//! * I-RET-4 Files go newest first, so a crash in between leaves no file that cannot be reached from the ones before it.
//! * I-RET-5 The points that are labelled ([`super::label`]) stay restorable, each by the files of its plan: a full copy, and the way from it.
//!   So the labelled TXID stays the end of a file, though merged files across it have been put beside that. One that nothing leads to any
//!   more (somebody else removed it) keeps nothing.
//!
//! Refused: age by the store's modification time (a bucket that was copied is then all new); deleting snapshots only (the
//! increments are most of the objects).

use super::inventory::FileInfo;
use super::layout::FileId;
use super::plan::{Plan, plan, restorable};
use super::point::Point;
use crate::base::{Error, Kind, Result, Timestamp, TxId};
use crate::ltx::Level;
use crate::store::LockMode;
use chrono::{DateTime, Datelike, Utc};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How many snapshots of each kind to keep, and how long every upload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Newest hours with a snapshot.
    pub hourly: u32,
    /// Newest days with a snapshot.
    pub daily: u32,
    /// Newest ISO weeks with a snapshot.
    pub weekly: u32,
    /// Newest months with a snapshot.
    pub monthly: u32,
    /// How far back every upload stays separately restorable.
    pub pitr_window: Duration,
    /// How long what stays is kept from removal by the store, and how; `None`: it is not.
    pub retain: Option<(Duration, LockMode)>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            hourly: 24,
            daily: 7,
            weekly: 12,
            monthly: 12,
            pitr_window: Duration::from_secs(24 * 3600),
            retain: None,
        }
    }
}

/// Fewest snapshots that stay.
const FLOOR: usize = 2;

/// Why a file stays or goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    /// The newest snapshot of one of the hours kept.
    Hourly,
    /// Of one of the days.
    Daily,
    /// Of one of the weeks.
    Weekly,
    /// Of one of the months.
    Monthly,
    /// One of the two newest snapshots.
    Newest,
    /// Within `pitr_window`, or the newest level-0 file.
    Window,
    /// A labelled point is rebuilt with it.
    Label,
    /// A kept state is rebuilt with it.
    Needed,
    /// Goes: a snapshot no tier keeps.
    NoTier,
    /// Goes: older than the window, and a later snapshot holds what it holds.
    Superseded,
}

impl Why {
    /// For the table of `walrust_compact`.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Hourly => "hourly",
            Why::Daily => "daily",
            Why::Weekly => "weekly",
            Why::Monthly => "monthly",
            Why::Newest => "newest two",
            Why::Window => "within pitr_window",
            Why::Label => "labelled",
            Why::Needed => "needed by a kept state",
            Why::NoTier => "no tier keeps it",
            Why::Superseded => "older than pitr_window",
        }
    }
}

/// The decision over all files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// What stays, and why.
    pub keep: BTreeMap<FileId, Why>,
    /// What goes, and why, in the order of removal (I-RET-4).
    pub remove: Vec<(FileInfo, Why)>,
    /// The states that stay restorable.
    pub states: BTreeMap<TxId, Timestamp>,
}

/// Decides. `labelled`: the points that stay whatever the policy says (I-RET-5). Errors: `Corrupt` if the newest state cannot be rebuilt as it
/// is: a damaged replica is not thinned out.
pub fn retention(
    files: &[FileInfo],
    policy: &Policy,
    labelled: &BTreeSet<TxId>,
    now: Timestamp,
) -> Result<Retention> {
    if files.is_empty() {
        return Ok(Retention::default());
    }
    let newest = plan(files, Point::Latest, now.max(newest_time(files)))
        .map_err(|e| e.context("nothing is removed from a replica whose newest state cannot be rebuilt"))?;
    let mut keep: BTreeMap<FileId, Why> = snapshots_kept(files, policy);
    merged_kept(files, policy, &mut keep);
    let window =
        Timestamp(now.0.saturating_sub(i64::try_from(policy.pitr_window.as_millis()).unwrap_or(i64::MAX)));
    let last_snapshot = files.iter().filter(|f| f.min == TxId(1)).map(|f| f.max).max().unwrap_or_default();
    let last_l0 = files.iter().filter(|f| f.level == Level::L0).map(|f| f.max).max();
    for f in files.iter().filter(|f| f.min > TxId(1)) {
        let stays = f.time >= window
            || (f.level == Level::L0 && Some(f.max) == last_l0)
            || (f.level > Level::L0 && f.max > last_snapshot);
        if stays {
            keep.insert(f.id(), Why::Window);
        }
    }
    for f in &newest.files {
        keep.entry(f.id()).or_insert(Why::Needed);
    }
    let ways = labelled.iter().filter_map(|txid| plan(files, Point::TxId(*txid), now).ok());
    let ways: Vec<Plan> = ways.collect();
    for f in ways.iter().flat_map(|way| &way.files) {
        keep.entry(f.id()).or_insert(Why::Label);
    }
    keep_what_they_need(files, &mut keep, now)?;
    let kept: Vec<FileInfo> = files.iter().filter(|f| keep.contains_key(&f.id())).cloned().collect();
    let states = restorable(&kept);
    prove(files, &kept, &keep, &states, newest.txid)?;
    if let Some(way) = ways.iter().find(|way| plan(&kept, Point::TxId(way.txid), now).is_err()) {
        return Err(would_lose(way.txid));
    }
    let mut remove: Vec<(FileInfo, Why)> = files
        .iter()
        .filter(|f| !keep.contains_key(&f.id()))
        .map(|f| (f.clone(), if f.min == TxId(1) { Why::NoTier } else { Why::Superseded }))
        .collect();
    remove.sort_by_key(|(f, _)| (Reverse(f.max), f.level));
    Ok(Retention { keep, remove, states })
}

fn newest_time(files: &[FileInfo]) -> Timestamp {
    files.iter().map(|f| f.time).max().unwrap_or_default()
}

/// I-RET-1.
fn snapshots_kept(files: &[FileInfo], policy: &Policy) -> BTreeMap<FileId, Why> {
    let mut full: Vec<&FileInfo> = files.iter().filter(|f| f.min == TxId(1)).collect();
    full.sort_by_key(|f| (Reverse(f.max), Reverse(f.level)));
    let mut keep: BTreeMap<FileId, Why> = full.iter().take(FLOOR).map(|f| (f.id(), Why::Newest)).collect();
    for (why, count) in tiers(policy) {
        let mut seen = BTreeSet::new();
        for f in &full {
            let bucket = bucket(why, f.time);
            if seen.contains(&bucket) {
                continue;
            }
            if seen.len() >= count as usize {
                break;
            }
            seen.insert(bucket);
            keep.insert(f.id(), why);
        }
    }
    keep
}

/// The tiers, the longest first: a file is said to be kept by the shortest that keeps it.
fn tiers(policy: &Policy) -> [(Why, u32); 4] {
    [
        (Why::Monthly, policy.monthly),
        (Why::Weekly, policy.weekly),
        (Why::Daily, policy.daily),
        (Why::Hourly, policy.hourly),
    ]
}

/// I-RET-1, of periods without a snapshot: of the merged files of the highest level, the newest. (Those of a low level would need all of
/// their kind since the last snapshot.)
fn merged_kept(files: &[FileInfo], policy: &Policy, keep: &mut BTreeMap<FileId, Why>) {
    for (why, count) in tiers(policy) {
        let mut periods: BTreeMap<Reverse<i64>, Vec<&FileInfo>> = BTreeMap::new();
        for f in files.iter().filter(|f| f.level > Level::L0 || f.min == TxId(1)) {
            periods.entry(Reverse(bucket(why, f.time))).or_default().push(f);
        }
        for period in periods.values().take(count as usize) {
            if period.iter().any(|f| f.min == TxId(1)) {
                continue;
            }
            if let Some(newest) = period.iter().max_by_key(|f| (f.level, f.max)) {
                keep.entry(newest.id()).or_insert(why);
            }
        }
    }
}

/// The hour, day, ISO week or month of a time, as a number that grows.
fn bucket(why: Why, time: Timestamp) -> i64 {
    let date = DateTime::<Utc>::from_timestamp_millis(time.0).unwrap_or_default();
    match why {
        Why::Hourly => time.0.div_euclid(3_600_000),
        Why::Daily => time.0.div_euclid(86_400_000),
        Why::Weekly => {
            let week = date.iso_week();
            i64::from(week.year()) * 100 + i64::from(week.week())
        }
        _ => i64::from(date.year()) * 12 + i64::from(date.month0()),
    }
}

/// I-RET-3: each kept increment must be reachable by what is kept; if not, what its plan uses is kept, too.
fn keep_what_they_need(files: &[FileInfo], keep: &mut BTreeMap<FileId, Why>, now: Timestamp) -> Result<()> {
    let possible = restorable(files);
    loop {
        let kept: Vec<FileInfo> = files.iter().filter(|f| keep.contains_key(&f.id())).cloned().collect();
        let reached = restorable(&kept);
        let next =
            kept.iter().map(|f| f.max).filter(|m| possible.contains_key(m) && !reached.contains_key(m)).min();
        let Some(txid) = next else { return Ok(()) };
        let before = keep.len();
        for f in plan(files, Point::TxId(txid), now)?.files {
            keep.entry(f.id()).or_insert(Why::Needed);
        }
        if keep.len() == before {
            return Err(Error::new(Kind::Bug, format!("TXID {txid} is kept and yet cannot be reached")));
        }
    }
}

/// I-RET-3, once more and from the result.
fn prove(
    files: &[FileInfo],
    kept: &[FileInfo],
    keep: &BTreeMap<FileId, Why>,
    states: &BTreeMap<TxId, Timestamp>,
    newest: TxId,
) -> Result<()> {
    let possible = restorable(files);
    let lost = kept.iter().map(|f| f.max).find(|m| possible.contains_key(m) && !states.contains_key(m));
    let snapshots = kept.iter().filter(|f| f.min == TxId(1)).count();
    let had = files.iter().filter(|f| f.min == TxId(1)).count();
    let sound = lost.is_none()
        && states.contains_key(&newest)
        && snapshots >= had.min(FLOOR)
        && files
            .iter()
            .filter(|f| f.level == Level::L0)
            .max_by_key(|f| f.max)
            .is_none_or(|f| keep.contains_key(&f.id()));
    if sound {
        return Ok(());
    }
    Err(would_lose(lost.unwrap_or(newest)))
}

fn would_lose(txid: TxId) -> Error {
    Error::new(Kind::Bug, format!("retention would lose TXID {txid}; nothing is removed"))
}

#[cfg(test)]
mod tests;
