//! Queues of mirrors: replicas that get the same files as the replica does, each at its own pace.
//!
//! ```text
//! mirror/<id>/            one a mirror; <id> is made of its URL
//!   mirror.json           whose queue it is, from which TXID on it has all files, and how many bytes it may hold
//!   pending/ snapshot/    links to the files that are still to reach this mirror
//!   merge/                links to files that it has, kept until they are merged upward
//!   shipped.json          its cursor: the newest TXID that is durable there
//!   owed care.json lock.ship    as those of the spool, of this mirror
//! ```
//!
//! A queue is a [`Spool`] whose files are its own, and whose position, locks and lineages are those of the spool that it lies in: the
//! shipper serves it as it serves the replica's. A file is on disk once, and leaves it when the last queue has let it go.
//!
//! # Rules
//!
//! * I-MIRROR-1: only history is handed on: a file that the position counts, and of whose COMMIT it is known that it came to be.
//! * I-MIRROR-2: a queue holds every file after its `from` that the mirror does not have, or it is behind: it holds nothing then, and a
//!   snapshot comes first. One that grows beyond its bound, or that a file could not be handed on to, falls behind.
//! * I-MIRROR-3: what goes wrong at a mirror's queue fails nothing of the replica's.
//! * I-MIRROR-4: a file is handed on before it leaves the replica's queue; and a mirror takes up by itself what still waits there, so that
//!   a replica that is away holds no mirror up.
//!
//! # After a crash
//!
//! A file that was handed on and whose removal from the replica's queue was lost is handed on twice: the store answers that it is
//! there, and it is ours. Power that takes a link and leaves the cursor shows as a gap, and the queue falls behind.
//!
//! # Refused
//!
//! One queue with a cursor for each reader: the file that the slowest needs would be found among all those that others wait for, and
//! every look of the replica's stream would walk past them. Copying from the replica to the mirror: it would be away when the replica
//! is, and every byte would be paid for twice.

use super::dir::{Spool, create_dir};
use super::files::{dir_bytes, is_missing, list_files, read_json, remove_if_there, replace_json};
use super::lock::LockFile;
use super::queue::{Queued, Shippable};
use crate::base::hex::digits;
use crate::base::{Error, Result, Timestamp, TxId, clock, manners};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const RECORD: &str = "mirror.json";
/// How long the queue of a mirror that is not configured is kept.
const UNSERVED: Duration = Duration::from_secs(24 * 3600);

/// Whose queue a directory is, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The mirror, in its canonical form.
    replica: String,
    /// Every file after this TXID was handed on; `None`: it is behind.
    from: Option<u64>,
    /// Bytes it may hold.
    limit: u64,
}

/// Whether a file is to be handed on to a queue that has everything after `from`, and whose mirror has everything up to `cursor`.
fn is_wanted(txid: TxId, from: Option<TxId>, cursor: TxId) -> bool {
    from.is_some_and(|from| txid > from.max(cursor))
}

impl Spool {
    /// The queue of a mirror, made if need be; `limit`: bytes that it may hold. A new one is behind. Errors as the file system does.
    pub fn mirror(self: &Arc<Spool>, replica: &str, limit: u64) -> Result<Spool> {
        let dir = self.dir.join("mirror").join(id_of(replica));
        for sub in ["", "pending", "merge", "snapshot"] {
            let d = dir.join(sub);
            create_dir(&d, None).map_err(|e| Error::io("create the queue of a mirror", &d, e))?;
        }
        let queue = Spool {
            real_dir: super::dir::real_dir(&dir),
            file_id: super::dir::dir_id(&dir)?,
            seal_lock: self.seal_lock.clone(),
            ship_lock: LockFile::open(&dir.join("lock.ship"))?,
            ahead_lock: std::sync::OnceLock::new(),
            ahead_here: std::sync::atomic::AtomicBool::new(false),
            sums: self.sums.clone(),
            identity_on_disk: std::sync::Mutex::new(None),
            dir,
            source: Some(self.clone()),
        };
        let known = record_in(&queue.dir)?.filter(|r| r.replica == replica);
        let from = known.as_ref().and_then(|r| r.from);
        if known.as_ref().is_none_or(|r| r.limit != limit) {
            queue.set_record(&Record { replica: replica.to_string(), from, limit })?;
        }
        Ok(queue)
    }

    /// Of a mirror's queue: from which TXID on it has every file; `None`: it is behind. Errors as the file system does.
    pub fn follows_from(&self) -> Result<Option<TxId>> {
        Ok(record_in(&self.dir)?.and_then(|r| r.from).map(TxId))
    }

    /// A mirror's queue holds every file after `from` from now on, and none before. Errors as the file system does.
    pub fn follow_from(&self, from: TxId) -> Result<()> {
        if let Some(r) = record_in(&self.dir)? {
            self.set_record(&Record { from: Some(from.0), ..r })?;
        }
        self.pending()?.iter().filter(|q| q.txid <= from).try_for_each(|q| remove_if_there(&q.path))
    }

    /// A mirror's queue is behind: what it holds is of no use, and a snapshot is to come first (I-MIRROR-2). Errors as the file system
    /// does.
    pub fn fall_behind(&self) -> Result<()> {
        falls_behind(&self.dir)
    }

    fn set_record(&self, r: &Record) -> Result<()> {
        replace_json(&self.dir.join(RECORD), r, |_| Ok(()))
    }

    /// A file is about to leave the replica's queue: hands it on to every mirror that follows (I-MIRROR-4). What goes wrong is that
    /// mirror's (I-MIRROR-3).
    pub fn hand_on(&self, q: &Queued) {
        if self.source.is_some() || self.is_asked(q.txid) {
            return;
        }
        self.hand_on_from(q.txid, &q.path);
    }

    /// The COMMIT that asked for `txid` has come to be: it is history, and is handed on (I-MIRROR-1). Errors as
    /// [`Spool::forget_asked`] does.
    pub fn has_come_to_be(&self, txid: TxId) -> Result<()> {
        self.hand_on_from(txid, &self.asked_path(txid));
        self.forget_asked(txid)
    }

    fn hand_on_from(&self, txid: TxId, path: &Path) {
        for dir in queues_in(&self.dir) {
            if let Err(e) = give(&dir, txid, path) {
                log::warn!("walrust: {}: a file could not be handed on to this mirror: {e}", dir.display());
                // (It is behind once that can be written; until then its stream meets the gap.)
                drop(falls_behind(&dir));
            }
        }
    }

    /// No mirror goes on from what its queue holds: the history is given up.
    pub(super) fn mirrors_fall_behind(&self) {
        for dir in queues_in(&self.dir) {
            if let Err(e) = falls_behind(&dir) {
                log::warn!("walrust: {}: {e}", dir.display());
            }
        }
    }

    /// The newest TXID that any mirror has (I-SPOOL-12). Errors as the file system does.
    pub fn newest_in_mirrors(&self) -> Result<TxId> {
        let mut cursors = queues_in(&self.dir).into_iter().map(|dir| cursor_in(&dir));
        cursors.try_fold(TxId::ZERO, |newest, cursor| Ok(newest.max(cursor?)))
    }

    /// Of a mirror's queue: takes up what waits in the replica's, and is history (I-MIRROR-4). Errors as the file system does.
    pub(super) fn take_up(&self) -> Result<()> {
        let Some(source) = &self.source else { return Ok(()) };
        if self.follows_from()?.is_none() {
            return Ok(());
        }
        let Shippable::Files(pending, snapshots) = source.shippable()? else { return Ok(()) };
        let counted = source.position()?.map(|p| p.txid).unwrap_or_default();
        for q in pending.iter().chain(&snapshots).filter(|q| q.txid <= counted && !source.is_asked(q.txid)) {
            give(&self.dir, q.txid, &q.path)?;
        }
        Ok(())
    }

    /// What is recorded as being durable in a mirror, by whatever process serves it. Errors as the file system does.
    pub fn mirror_cursor(&self, replica: &str) -> Result<Option<super::Shipped>> {
        read_json(&self.dir.join("mirror").join(id_of(replica)).join("shipped.json"))
    }

    /// Since when the oldest file of this queue has waited; `None` where none waits.
    pub fn oldest_waits_since(&self) -> Option<Timestamp> {
        let oldest = self.pending().ok()?.into_iter().next()?;
        fs::metadata(&oldest.path).and_then(|m| m.modified()).ok().map(Timestamp::from)
    }

    /// Queues of mirrors that are not among `wanted`, and that nothing has left for a day, go. (A program beside the one that serves them
    /// may know nothing of them.) Errors as the file system does.
    pub fn keep_mirrors(&self, wanted: &[&str]) -> Result<()> {
        let ids: Vec<String> = wanted.iter().map(|url| id_of(url)).collect();
        for dir in queues_in(&self.dir) {
            let is_wanted = dir.file_name().is_some_and(|n| ids.iter().any(|id| n == id.as_str()));
            if !is_wanted && !is_served(&dir) {
                fs::remove_dir_all(&dir).map_err(|e| Error::io("remove", &dir, e))?;
            }
        }
        Ok(())
    }
}

/// Whether its cursor, or its record, was written within the last day.
fn is_served(dir: &Path) -> bool {
    let written = |name: &str| fs::metadata(dir.join(name)).and_then(|m| m.modified()).ok();
    let newest = written(RECORD).into_iter().chain(written("shipped.json")).max();
    newest.is_some_and(|at| clock::now().since(Timestamp::from(at)) < UNSERVED)
}

/// The name of a mirror's queue: the same for each spelling that is the same URL.
fn id_of(replica: &str) -> String {
    use sha2::{Digest, Sha256};
    let sum = Sha256::digest(replica.as_bytes());
    digits(sum.get(..8).unwrap_or_default())
}

fn queues_in(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir.join("mirror")).map(|all| all.flatten().map(|e| e.path()));
    listed.map(|all| all.filter(|p| p.join(RECORD).exists()).collect()).unwrap_or_default()
}

fn record_in(dir: &Path) -> Result<Option<Record>> {
    read_json(&dir.join(RECORD))
}

fn cursor_in(dir: &Path) -> Result<TxId> {
    let shipped: Option<super::position::Shipped> = read_json(&dir.join("shipped.json"))?;
    Ok(shipped.map(|s| s.txid).unwrap_or_default())
}

fn falls_behind(dir: &Path) -> Result<()> {
    if let Some(r) = record_in(dir)? {
        replace_json(&dir.join(RECORD), &Record { from: None, ..r }, |_| Ok(()))?;
    }
    empty(dir)
}

fn empty(dir: &Path) -> Result<()> {
    for sub in ["pending", "snapshot"] {
        list_files(&dir.join(sub)).iter().try_for_each(|f| remove_if_there(f))?;
    }
    drop(fs::remove_dir_all(dir.join("merge")));
    Ok(())
}

/// Puts a file into a mirror's queue, if that wants it: level 0 by its TXID, a snapshot by its name.
fn give(dir: &Path, txid: TxId, path: &Path) -> Result<()> {
    let Some(r) = record_in(dir)? else { return Ok(()) };
    if !is_wanted(txid, r.from.map(TxId), cursor_in(dir)?) {
        return Ok(());
    }
    let is_snapshot = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.contains('-'));
    let to = match (is_snapshot, path.file_name()) {
        (true, Some(name)) => dir.join("snapshot").join(name),
        _ => dir.join("pending").join(format!("{txid}.ltx")),
    };
    if to.exists() {
        return Ok(());
    }
    let bytes = fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io("look at", path, e));
    let bytes = match bytes {
        // It has left the replica's queue meanwhile, and was handed on before that.
        Err(e) if e.is_missing() => return Ok(()),
        bytes => bytes?,
    };
    let held = dir_bytes(&dir.join("pending")) + dir_bytes(&dir.join("snapshot"));
    if held > 0 && held + bytes > r.limit {
        return falls_behind(dir);
    }
    link(path, &to)
}

/// (Not every file system has hard links. A copy appears whole, as every file of a queue does.)
fn link(from: &Path, to: &Path) -> Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists || is_missing(&e) => return Ok(()),
        Err(_) => {}
    }
    let tmp = super::files::temp_beside(to);
    let copied = manners::create(&tmp)
        .and_then(|mut w| std::io::copy(&mut fs::File::open(from)?, &mut w))
        .and_then(|_| fs::rename(&tmp, to));
    copied.map_err(|e| {
        drop(fs::remove_file(&tmp));
        Error::io("hand on", from, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_queue_wants() {
        let t = TxId;
        for (txid, from, cursor, want) in [
            (5, None, 0, false),
            (5, None, 9, false),
            (5, Some(4), 0, true),
            (5, Some(5), 0, false),
            (5, Some(4), 5, false),
            (6, Some(4), 5, true),
        ] {
            assert_eq!(is_wanted(t(txid), from.map(TxId), t(cursor)), want, "{txid} {from:?} {cursor}");
        }
    }
}
