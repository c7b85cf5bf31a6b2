//! When commits that are not durable yet were noticed. Pure.

use crate::base::{Timestamp, TxId};
use std::collections::VecDeque;

/// When commits that are not durable yet were noticed.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The first of each TXID that is cut, oldest first.
    cut: VecDeque<(TxId, Timestamp)>,
    /// The first since the last cut.
    open: Option<Timestamp>,
    /// A standby's: the newest TXID at its last look.
    pub(super) looked: TxId,
}

impl Waiting {
    pub(super) fn commit(&mut self, now: Timestamp) {
        self.open.get_or_insert(now);
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
}
