//! Which files of an append-only replica retention may count on. Whoever has the writer's keys can put files of any name: what they say of
//! themselves is held against what was there before them, by the store's own time. Pure.
//!
//! Rules
//! * I-BELIEF-1 What a janitor vouched for ([`Manifest::vouches_for`](super::manifest::Manifest)) is believed. Everything else is looked at in the
//!   order in which the store took it.
//! * I-BELIEF-2 A file is believed if it ends where an earlier one ended, in the same state; or if it goes on from the newest state then known: by the next
//!   TXID, from that state, or by a full copy of a later one. So of a TXID that was there the first file that the store took decides what it
//!   is, and a file with a new TXID changes nothing that lies before it.
//! * I-BELIEF-3 A file's time is at most the store's own: retention counts hours, days and months, and a time to come would use up those that
//!   are promised.
//! * I-BELIEF-4 What is not believed is neither counted nor removed: it may be somebody's mistake, and costs what it weighs.
//!
//! What is inside a file is another question ([`super::vouch`]). Refused: to believe in names or claims (anybody who may create can make them); to
//! remove what is not believed (a janitor that errs would remove a history).

use super::inventory::FileInfo;
use super::layout::FileId;
use super::manifest::Manifest;
use super::plan::plan;
use super::point::Point;
use crate::base::{DbChecksum, Timestamp, TxId};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of the history: the state at each TXID at which a file ends or begins.
#[derive(Clone, Debug, Default)]
struct History {
    states: BTreeMap<TxId, DbChecksum>,
    newest: TxId,
}

impl History {
    fn take(&mut self, f: &FileInfo) {
        if let Some(after) = f.attest_after {
            self.states.entry(f.max).or_insert(after);
        }
        if let (Some(before), true) = (f.attest_before, f.min > TxId(1)) {
            self.states.entry(TxId(f.min.0 - 1)).or_insert(before);
        }
        self.newest = self.newest.max(f.max);
    }

    /// I-BELIEF-2.
    fn allows(&self, f: &FileInfo) -> bool {
        let Some(after) = f.attest_after else { return false };
        let base = TxId(f.min.0.saturating_sub(1));
        let starts = match (f.min, self.states.get(&base)) {
            (TxId(1), _) => true,
            (_, Some(state)) => f.attest_before == Some(*state),
            (_, None) => false,
        };
        match self.states.get(&f.max) {
            Some(state) => *state == after && (starts || !self.states.contains_key(&base)),
            None => f.max > self.newest && starts && (f.min == TxId(1) || base == self.newest),
        }
    }
}

/// Splits `files` into those that are believed, with the times that hold for them, and the others. `vouched`: whether a janitor stands for it.
pub fn believed(files: &[FileInfo], vouched: impl Fn(FileId) -> bool) -> (Vec<FileInfo>, Vec<FileInfo>) {
    let mut history = History::default();
    let (mut good, mut rest): (Vec<FileInfo>, Vec<FileInfo>) =
        files.iter().cloned().partition(|f| vouched(f.id()));
    for f in &good {
        history.take(f);
    }
    // (Of one moment, as far as the store tells: what others go on from first.)
    rest.sort_by_key(|f| (f.put, f.max, f.level, f.min));
    let mut doubted = Vec::new();
    for f in rest {
        if history.allows(&f) {
            history.take(&f);
            good.push(FileInfo { time: no_later(f.time, f.put), ..f });
        } else {
            doubted.push(f);
        }
    }
    good.sort_by_key(FileInfo::id);
    doubted.sort_by_key(FileInfo::id);
    (good, doubted)
}

/// What a way to `txid` is looked for among when one has failed over what somebody put (I-RES-7 of `restore`): what was vouched for, and what the store
/// had taken when the TXID could first be reached. `None` where that leads nowhere, or the replica is no append-only one.
pub(super) fn as_it_was(files: &[FileInfo], manifest: &Manifest, txid: TxId) -> Option<Vec<FileInfo>> {
    if !manifest.is_append_only() {
        return None;
    }
    let until = |t: Timestamp| -> Vec<FileInfo> {
        files.iter().filter(|f| f.put <= t || manifest.vouches_for(f.id())).cloned().collect()
    };
    let leads = |t: &Timestamp| plan(&until(*t), Point::TxId(txid), Timestamp(i64::MAX)).is_ok();
    let times: Vec<Timestamp> = files.iter().map(|f| f.put).collect::<BTreeSet<_>>().into_iter().collect();
    let first = times.partition_point(|t| !leads(t));
    times.get(first).map(|t| until(*t))
}

/// I-BELIEF-3.
fn no_later(said: Timestamp, put: Timestamp) -> Timestamp {
    said.min(put)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::Level;

    /// Level, first and last TXID, the states before and after it, when it was put.
    fn file(level: u8, min: u64, max: u64, states: (u64, u64), put: i64) -> FileInfo {
        let id = FileId::new(Level::new(level).unwrap(), TxId(min), TxId(max)).unwrap();
        let mut f = FileInfo::listed(id, 100, Timestamp(put));
        f.attest_before = Some(DbChecksum(states.0));
        f.attest_after = Some(DbChecksum(states.1));
        f
    }

    /// A snapshot, commits 2 to 6, of which the state is its TXID, merged 2-5.
    fn history() -> Vec<FileInfo> {
        let mut files = vec![file(9, 1, 1, (0, 1), 10)];
        files.extend((2..=6).map(|n| file(0, n, n, (n - 1, n), 10 * n as i64)));
        files.push(file(1, 2, 5, (1, 5), 55));
        files.push(file(9, 1, 6, (0, 6), 70));
        files
    }

    fn doubts(files: &[FileInfo], vouched: &[FileId]) -> Vec<(u8, u64, u64)> {
        let (_, doubted) = believed(files, |id| vouched.contains(&id));
        doubted.iter().map(|f| (f.level.get(), f.min.0, f.max.0)).collect()
    }

    #[test]
    fn a_history_as_a_writer_puts_it_is_believed() {
        let files = history();
        assert_eq!(doubts(&files, &[]), []);
        // Also all of one second, which is all that S3 tells.
        let at_once: Vec<FileInfo> =
            files.iter().map(|f| FileInfo { put: Timestamp(5), ..f.clone() }).collect();
        assert_eq!(doubts(&at_once, &[]), []);
        // A gap, and a new lineage: its snapshot, then the file that Litestream goes on from.
        let mut files = files;
        files.push(file(9, 1, 80, (0, 80), 100));
        files.push(file(0, 81, 81, (80, 81), 101));
        assert_eq!(doubts(&files, &[]), []);
        // Retention has removed what lay between; merged files come late.
        let vouched = [files[0].id(), files[5].id()];
        let left =
            [files[0].clone(), files[5].clone(), file(2, 2, 6, (1, 6), 200), file(9, 1, 6, (0, 6), 300)];
        assert_eq!(doubts(&left, &vouched), []);
    }

    #[test]
    fn what_a_thief_puts_is_not() {
        for (what, junk) in [
            ("a snapshot of a state that was", file(9, 1, 5, (0, 99), 1000)),
            ("a file that merges what was", file(3, 2, 6, (1, 99), 1000)),
            ("one that begins elsewhere", file(3, 2, 6, (98, 6), 1000)),
            ("a TXID in the past that nothing ends at", file(9, 1, 3, (0, 3), 35)),
            ("a commit that goes on from nowhere", file(0, 9, 9, (8, 9), 1000)),
            ("a commit that goes on from another state", file(0, 7, 7, (99, 7), 1000)),
            ("a merged file of what never was alone", file(1, 6, 8, (5, 8), 1000)),
        ] {
            let mut files = history();
            files.retain(|f| f.id() != junk.id() && !(what.contains("in the past") && f.max == TxId(3)));
            if what.contains("in the past") {
                // The commit itself was merged and removed, and what is there was vouched for.
                files = vec![file(9, 1, 1, (0, 1), 10), file(1, 2, 5, (1, 5), 20), file(9, 1, 5, (0, 5), 30)];
                let vouched: Vec<FileId> = files.iter().map(FileInfo::id).collect();
                files.push(junk.clone());
                assert_eq!(doubts(&files, &vouched), [(9, 1, 3)], "{what}");
                continue;
            }
            files.push(junk.clone());
            let id = (junk.level.get(), junk.min.0, junk.max.0);
            assert_eq!(doubts(&files, &[]), [id], "{what}");
        }
        // Nothing of what says nothing of itself.
        let mut files = history();
        let mut mute = file(9, 1, 9, (0, 9), 1000);
        mute.attest_after = None;
        files.push(mute);
        assert_eq!(doubts(&files, &[]), [(9, 1, 9)]);
    }

    #[test]
    fn a_time_to_come_is_the_stores() {
        let mut files = history();
        files[1].time = Timestamp(999_999);
        let (good, _) = believed(&files, |_| false);
        let of = |id: FileId| good.iter().find(|f| f.id() == id).unwrap().time;
        assert_eq!(of(files[1].id()), files[1].put);
        let (good, _) = believed(&files, |id| id == files[1].id());
        assert_eq!(good.iter().find(|f| f.id() == files[1].id()).unwrap().time, Timestamp(999_999));
    }
}
