//! How far the replica is behind: when commits were noticed that are not durable yet, and how many bytes they are.

use super::bell::Note;
use super::phase::Role;
use super::watched::Watched;
use crate::base::{Timestamp, TxId, clock, lock};
use crate::spool::Position;
use std::time::Duration;

/// Whether the replica, which has everything up to `replicated`, has all that is sealed.
pub(super) fn is_shipped(position: Option<&Position>, replicated: TxId) -> bool {
    position.is_some_and(|p| p.pieces == 0 && p.txid <= replicated)
}

impl Watched {
    /// What the replica is known to have.
    pub(super) fn replicated(&self) -> TxId {
        match self.role() {
            Role::Shipper => self.link.status().replicated,
            Role::Joining | Role::Standby => {
                self.shipped().ok().flatten().map(|s| s.txid).unwrap_or_default()
            }
        }
    }

    /// Bytes of the WAL that are not sealed yet.
    pub(super) fn unsealed_bytes(&self) -> u64 {
        match self.handles.header() {
            Some(h) => {
                let page = h.page_size.map_or(4096, |p| p.get());
                let frame = u64::from(page) + crate::wal::FRAME_HEADER_LEN as u64;
                u64::from(self.tracker.unsealed_frames(&h)) * frame
            }
            // Committed or not: nobody in this process reads it at the moment.
            None if self.tracker.wal_goes_on() => self.wal_bytes(),
            None => 0,
        }
    }

    /// Whether the database must be read anew, and this process, which does not ship it, cannot.
    fn waits_for_a_reader(&self) -> bool {
        self.role() == Role::Standby && self.is_unreadable()
    }

    /// The age of the oldest commit that the replica, which has everything up to `replicated`, lacks. What the sealer has not noticed yet
    /// is noticed now.
    pub(super) fn lag(&self, replicated: TxId, all_there: bool) -> Duration {
        self.learn_waiting();
        let now = clock::now();
        let mut waiting = lock(&self.waiting);
        if !all_there && waiting.since(replicated).is_none() {
            waiting.commit(now);
        }
        waiting.since(replicated).map_or(Duration::ZERO, |t| now.since(t))
    }

    /// At the first look of this process: what others have left in the spool and the WAL waits since then, not since now.
    pub(super) fn learn_waiting(&self) {
        if !lock(&self.waiting).is_new() {
            return;
        }
        let replicated = self.replicated();
        let left = self.spool.pending().unwrap_or_default();
        let left = left.into_iter().filter(|q| q.txid > replicated);
        let cut = left.filter_map(|q| Some((q.txid, self.spool.waits_since(q.txid)?))).collect();
        let pieces = self.tracker.position().filter(|p| p.pieces > 0);
        let pieces = pieces.and_then(|p| self.spool.waits_since(p.txid.next()));
        // (Of what is in the WAL alone the last write is known, the first is not.)
        let wal = || std::fs::metadata(self.tracker.wal_path()).and_then(|m| m.modified()).ok();
        let unsealed = if self.unsealed_bytes() > 0 { wal().map(Timestamp::from) } else { None };
        lock(&self.waiting).begin(cut, pieces.or(unsealed), clock::now());
    }

    /// A look of the process that ships: whether there is something that is not sealed.
    pub(super) fn note_look(&self, is_unsealed: bool) {
        self.learn_waiting();
        let mut waiting = lock(&self.waiting);
        if is_unsealed {
            waiting.commit(clock::now());
        }
        waiting.has_looked(clock::now());
    }

    /// Takes what has arrived off the list; if nothing waits any more, the lag is zero.
    pub(super) fn caught_up(&self) {
        let replicated = self.replicated();
        // (What has arrived is not waited for, also while there is always more.)
        lock(&self.waiting).since(replicated);
        let done = is_shipped(self.tracker.position().as_ref(), replicated);
        if done && self.unsealed_bytes() == 0 && !self.news.has(Note::Commit) && !self.waits_for_a_reader() {
            lock(&self.waiting).clear();
        }
    }

    /// A look of a process that does not ship at what the one that does has not done yet: its lag, too, is that of the replica.
    pub(super) fn note_waiting(&self) {
        self.news.take(Note::Commit);
        self.tracker.refresh();
        self.learn_waiting();
        if self.waits_for_a_reader() {
            // What was changed since is in no file yet.
            lock(&self.waiting).commit(clock::now());
            return;
        }
        let unsealed = self.unsealed_bytes() > 0;
        let Some(p) = self.tracker.position() else {
            if self.role() == Role::Joining {
                // Nothing of it is known to be in the replica: not what lay there before, either.
                lock(&self.waiting).commit(clock::now());
            }
            return;
        };
        let replicated = self.replicated();
        let mut waiting = lock(&self.waiting);
        if !unsealed && is_shipped(Some(&p), replicated) {
            waiting.clear();
        }
        if p.txid > waiting.looked {
            // Cut by the process that ships, since the last look.
            waiting.looked = p.txid;
            if p.txid > replicated {
                waiting.commit(clock::now());
            }
            waiting.cut(p.txid);
        }
        if unsealed || p.pieces > 0 {
            waiting.commit(clock::now());
        }
        waiting.has_looked(clock::now());
    }
}
