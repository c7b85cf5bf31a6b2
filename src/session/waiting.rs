//! When commits that are not durable yet were noticed. Pure.

use crate::base::{Timestamp, TxId};
use std::collections::VecDeque;
use std::time::Duration;

/// When commits that are not durable yet were noticed.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The first of each TXID that is cut, oldest first.
    cut: VecDeque<(TxId, Timestamp)>,
    /// The first since the last cut.
    open: Option<Timestamp>,
    /// A standby's: the newest TXID at its last look.
    pub(super) looked: TxId,
    /// The last look, which has noticed all that was there.
    looked_at: Option<Timestamp>,
}

/// Between two looks of a sealer that is not kept from them, and some: what is noticed within that was committed just now.
const SOON: Duration = Duration::from_millis(400);

impl Waiting {
    /// One was noticed now. If the last look is long ago (a busy machine, a database that is closed here), it may have been made right
    /// after that: the lag is never said to be less than it is.
    pub(super) fn commit(&mut self, now: Timestamp) {
        let at = self.looked_at.filter(|t| now.since(*t) > SOON).unwrap_or(now);
        self.open.get_or_insert(at);
    }

    /// Whether this is the first look.
    pub(super) fn is_new(&self) -> bool {
        self.looked_at.is_none()
    }

    /// What lay there before the first look, by the files' times: what is cut, in order, and what is not.
    pub(super) fn begin(&mut self, cut: Vec<(TxId, Timestamp)>, open: Option<Timestamp>, now: Timestamp) {
        self.looked = cut.last().map_or(self.looked, |(t, _)| self.looked.max(*t));
        self.cut = cut.into();
        self.open = open;
        self.looked_at = Some(now);
    }

    /// What there was to notice up to `now` has been.
    pub(super) fn has_looked(&mut self, now: Timestamp) {
        self.looked_at = Some(now);
    }

    /// Nothing waits.
    pub(super) fn clear(&mut self) {
        *self = Waiting { looked_at: self.looked_at, ..Waiting::default() };
    }

    pub(super) fn cut(&mut self, txid: TxId) {
        if let Some(t) = self.open.take() {
            self.cut.push_back((txid, t));
        }
    }

    /// The oldest that is not in the replica, which has everything up to `replicated`.
    pub(super) fn since(&mut self, replicated: TxId) -> Option<Timestamp> {
        while self.cut.front().is_some_and(|(t, _)| *t <= replicated) {
            self.cut.pop_front();
        }
        self.cut.front().map(|(_, t)| *t).or(self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_commit_that_is_missing() {
        let (t, at) = (TxId, Timestamp);
        let mut waiting = Waiting::default();
        assert_eq!(waiting.since(t(0)), None);
        waiting.commit(at(10));
        waiting.commit(at(11));
        assert_eq!(waiting.since(t(0)), Some(at(10)), "the first of those not cut");
        waiting.cut(t(1));
        waiting.cut(t(2));
        waiting.commit(at(20));
        waiting.cut(t(3));
        waiting.commit(at(30));
        assert_eq!(waiting.since(t(0)), Some(at(10)));
        assert_eq!(waiting.since(t(2)), Some(at(20)));
        assert_eq!(waiting.since(t(3)), Some(at(30)), "the open one is never known to be there");
        waiting.cut(t(4));
        assert_eq!(waiting.since(t(4)), None);
    }

    #[test]
    fn what_lay_there_is_as_old_as_its_files() {
        let (t, at) = (TxId, Timestamp);
        let mut waiting = Waiting::default();
        assert!(waiting.is_new());
        waiting.begin(vec![(t(4), at(10)), (t(5), at(20))], Some(at(30)), at(1_000));
        assert!(!waiting.is_new());
        waiting.commit(at(1_001));
        for (replicated, since) in [(3, 10), (4, 20), (5, 30)] {
            assert_eq!(waiting.since(t(replicated)), Some(at(since)));
        }
    }

    #[test]
    fn what_a_late_look_notices_counts_from_the_look_before() {
        let (t, at) = (TxId, Timestamp);
        let mut waiting = Waiting::default();
        waiting.has_looked(at(1_000));
        waiting.commit(at(1_250));
        assert_eq!(waiting.since(t(0)), Some(at(1_250)));
        waiting.clear();
        waiting.has_looked(at(2_000));
        waiting.commit(at(9_000));
        assert_eq!(waiting.since(t(0)), Some(at(2_000)));
    }
}
