//! The lanes beside the stream: later snapshots; upkeep (merges, what a refused COMMIT left, lending); and the lease.
//!
//! Whatever fails here rests by itself and is told by itself (I-SHIP-7); only another writer's content, or lease, ends the stream,
//! too.

use super::duty::Duty;
use super::merge::{Job, Merged, Now};
use super::plan;
use super::sealed;
use super::shipper::{Did, Event, Halt, LONGEST_REST, Right, Shipper, Step, blocking, check};
use crate::base::{Result, TxId, clock, crash};
use crate::ltx::Level;
use crate::replica::{FileId, Inventory};
use crate::spool::{Queued, Shippable, Vouched, remove_if_there};
use crate::store::Holds;
use std::path::Path;
use std::time::Duration;

/// Between two looks while the right to remove files is lent.
const LENT_LOOK: Duration = Duration::from_secs(1);
/// How long after it was begun a request may still be carried out: S3 refuses signatures older than 15 minutes.
const LONGEST_REQUEST: Duration = Duration::from_secs(16 * 60);
/// Between two looks for files of refused COMMITs that arrived late.
const LOOK_FOR_LATE: Duration = Duration::from_secs(60);
/// The shortest rest of a lane, lest a clock that stands still makes it spin.
const SHORTEST_REST: Duration = Duration::from_millis(20);

/// Uploads snapshots that the stream has passed, one after the other. Errors with [`crate::base::Kind::Fenced`].
pub(super) async fn snapshots(s: &Shipper) -> Result<()> {
    let link = &s.plan.link;
    while !s.is_stopped() {
        let mut rest = s.rest_of(Duty::Snapshot, link.is_snapshot_waited_for());
        if rest.is_zero() {
            rest = match snapshot(s).await {
                Ok(Did::Work) => {
                    s.fares_well(Duty::Snapshot);
                    continue;
                }
                Ok(Did::Nothing) => LONGEST_REST,
                Err(halt) => ill(s, Duty::Snapshot, halt)?,
            };
        }
        s.rest(&link.work.snapshots, rest.max(SHORTEST_REST)).await;
    }
    Ok(())
}

async fn snapshot(s: &Shipper) -> Step<Did> {
    // (What is just being changed is the stream's to settle; that rings the bell.)
    let Shippable::Files(_, snapshots) = s.plan.spool.shippable()? else { return Ok(Did::Nothing) };
    let replicated = s.plan.link.status().replicated;
    let Some(q) = plan::beside(&snapshots, replicated) else { return Ok(Did::Nothing) };
    let right = s.right().await?;
    let file = s.vouch(q)?;
    let entry = s.put(&right, &file, Level::SNAPSHOT).await?;
    crash::point("ship.after-manifest");
    let shipped = s.record(&file, Level::SNAPSHOT)?;
    s.plan.link.update(|at| {
        at.snapshot = shipped.snapshot;
        at.note_snapshot_time(shipped.snapshot_time);
        at.change = shipped.change;
        at.last_upload = Some(shipped.time);
    });
    crash::point("ship.after-record");
    s.conclude(&file, &entry)?;
    Ok(Did::Work)
}

/// Keeps the lease, or gives it back, beside whatever is uploaded. Errors with [`crate::base::Kind::Fenced`].
pub(super) async fn keeper(s: &Shipper) -> Result<()> {
    while !s.is_stopped() {
        let rest = match s.keep_at_rest().await {
            Ok(rest) => rest,
            Err(Halt::Barred(e)) => s.barred(&e),
            Err(halt) => ill(s, Duty::Lease, halt)?,
        };
        s.rest(&s.plan.link.work.keeper, rest.max(SHORTEST_REST)).await;
    }
    Ok(())
}

/// Merges, takes back, and lends. Errors with [`crate::base::Kind::Fenced`].
pub(super) async fn upkeep(s: &Shipper) -> Result<()> {
    let mut take_back_at = Duration::ZERO;
    sealed::sweep(&s.plan.spool, s.plan.link.status().replicated);
    for dir in ["snapshot", "pending", "merge", sealed::DIR] {
        s.plan.store.abort_abandoned(&s.plan.spool.dir().join(dir)).await;
    }
    while !s.is_stopped() {
        s.lend(LENT_LOOK).await;
        let mut rest = LONGEST_REST;
        let late = s.rest_of(Duty::TakeBack, false).max(take_back_at.saturating_sub(clock::uptime()));
        if late.is_zero() && !s.plan.link.is_lease_unwanted() {
            match take_back(s).await {
                Ok(again) => {
                    s.fares_well(Duty::TakeBack);
                    take_back_at = clock::uptime() + again.unwrap_or(Duration::ZERO);
                    rest = rest.min(again.unwrap_or(LONGEST_REST));
                }
                Err(halt) => rest = rest.min(ill(s, Duty::TakeBack, halt)?),
            }
        } else if late > Duration::ZERO {
            rest = rest.min(late);
        }
        let due = s.rest_of(Duty::Merge, false);
        if due.is_zero() {
            match merge(s).await {
                Ok(Did::Work) => {
                    s.fares_well(Duty::Merge);
                    continue;
                }
                Ok(Did::Nothing) => rest = rest.min(s.merger().due_in(clock::uptime())),
                Err(halt) => rest = rest.min(ill(s, Duty::Merge, halt)?),
            }
        } else {
            rest = rest.min(due);
        }
        s.rest(&s.plan.link.work.upkeep, rest.max(SHORTEST_REST)).await;
    }
    Ok(())
}

/// A duty did not get on. How long it rests; errors with [`crate::base::Kind::Fenced`] when nothing may go on.
pub(super) fn ill(s: &Shipper, duty: Duty, halt: Halt) -> Result<Duration> {
    match halt {
        Halt::Fenced(e) => Err(e),
        // (The stream, or the keeper, tells it.)
        Halt::Barred(e) => Ok(e.retry_after().unwrap_or(LENT_LOOK)),
        Halt::Failed(e) => {
            s.fares_ill(duty, &e);
            Ok(s.rest_of(duty, false))
        }
    }
}

async fn merge(s: &Shipper) -> Step<Did> {
    let now = Now { wall: clock::now(), uptime: clock::uptime() };
    let Some(job) = s.merger().due(&s.plan.spool, now) else { return Ok(Did::Nothing) };
    let to = job.to();
    let done = merge_job(s, job).await;
    if done.is_err() {
        s.merger().failed(to);
    }
    done
}

async fn merge_job(s: &Shipper, job: Job) -> Step<Did> {
    let right = s.right().await?;
    if is_past_retention(s, &job).await? {
        job.drop_inputs()?;
        return Ok(Did::Work);
    }
    let spool = s.plan.spool.clone();
    let merged = blocking(move || job.merge(&spool)).await;
    let vouched = merged.and_then(|merged| {
        let queued = Queued { txid: merged.name.max, path: merged.path.clone(), bytes: merged.bytes };
        Ok((s.plan.spool.vouch(&queued, &s.plan.replica)?, merged))
    });
    let (file, merged) = match vouched {
        // The replica has them whole; what cannot be merged any more is dropped.
        Err(e) if e.is_corrupt() => {
            drop(std::fs::remove_dir_all(s.plan.spool.dir().join("merge")));
            return Ok(Did::Work);
        }
        vouched => vouched?,
    };
    upload_merged(s, &right, &file, &merged).await?;
    Ok(Did::Work)
}

async fn upload_merged(s: &Shipper, right: &Right<'_>, file: &Vouched, merged: &Merged) -> Step<()> {
    let entry = s.put(right, file, merged.level).await?;
    crash::point("merge.after-manifest");
    s.merger().done(&s.plan.spool, merged, clock::uptime())?;
    if entry.is_sealed() {
        sealed::done(&s.plan.spool, &s.plan.replica, entry.id);
    }
    let inputs = merged.inputs.len();
    (s.plan.on_event)(Event::Merged { level: merged.level, name: merged.name, inputs });
    Ok(())
}

/// Whether retention has removed from the replica what the merge would put together: alone, behind a gap, it is no use. Newest
/// first is what it removes (I-CMP-2), only what a newer snapshot made superfluous, and never while this lane is at the replica.
async fn is_past_retention(s: &Shipper, job: &Job) -> Result<bool> {
    let superfluous = |id: &FileId| id.max <= s.plan.link.status().snapshot;
    let newest = job.newest();
    if !newest.iter().all(superfluous) {
        return Ok(false);
    }
    for id in newest {
        match s.plan.store.head(&id.key(s.plan.store.layout())).await {
            Ok(_) => return Ok(false),
            Err(e) if e.is_missing() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// A COMMIT under sync durability failed, but its file may be in the replica, or arrive there yet: a state that never was.
/// When a snapshot of what came instead is there, it is removed. Gives when to look again, if something is still looked for.
async fn take_back(s: &Shipper) -> Step<Option<Duration>> {
    let base = s.plan.link.status().snapshot;
    let mut again = None;
    for q in s.plan.spool.refused()?.into_iter().filter(|q| q.txid < base) {
        if take_back_one(s, &q).await? == Found::NotYet {
            again = Some(LOOK_FOR_LATE);
        }
    }
    Ok(again)
}

/// What was found of a refused COMMIT's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing is left to look for.
    Settled,
    /// It is not there, and may be on its way.
    NotYet,
}

async fn take_back_one(s: &Shipper, q: &Queued) -> Step<Found> {
    let entry = match check(q, Level::L0).await {
        Err(e) if e.is_corrupt() => {
            s.plan.spool.forget_asked(q.txid)?;
            return Ok(Found::Settled);
        }
        entry => entry?,
    };
    let _right = s.right().await?;
    // (Without the age file that was put nobody can tell it from another's, and what is not there needs no more.)
    let entry = match s.plan.store.recipients() {
        None => entry,
        Some(recipients) => s.sealed(recipients, q, &entry).await?.1,
    };
    let key = entry.id.key(s.plan.store.layout());
    let held = s.plan.store.compare(&key, entry.bytes, entry.sha256).await?;
    if held == Holds::This && !is_built_upon(s, q.txid).await? {
        s.strike(&entry).await?;
        s.plan.store.delete(std::slice::from_ref(&key)).await?;
        remove_if_there(&s.plan.spool.merge_path(Level::L0, &entry.id.name()))?;
    }
    if held != Holds::Nothing || is_older(&q.path, LONGEST_REQUEST) {
        s.plan.spool.forget_asked(q.txid)?;
        return Ok(Found::Settled);
    }
    Ok(Found::NotYet)
}

/// Whether the replica goes on from `txid`, or has it in a merged file: it came to be, though this disk, which was put back
/// to an earlier time, says otherwise. (What follows a refused one is a snapshot of the next TXID.)
async fn is_built_upon(s: &Shipper, txid: TxId) -> Result<bool> {
    let files = Inventory::read(&s.plan.store).await?.files;
    let own = (Level::L0, txid, txid);
    Ok(files.iter().any(|f| {
        f.level != Level::SNAPSHOT && (f.level, f.min, f.max) != own && f.min <= txid.next() && f.max >= txid
    }))
}

fn is_older(path: &Path, age: Duration) -> bool {
    let made = std::fs::metadata(path).and_then(|m| m.modified());
    made.is_ok_and(|t| t.elapsed().is_ok_and(|d| d > age))
}
