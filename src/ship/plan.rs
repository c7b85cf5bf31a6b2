//! What goes to the replica next, and in which lane. Pure; what lies in the spool is handed in.
//!
//! The stream is the lane that everything else makes way for: level-0 files, oldest first, and the snapshot that a lineage begins
//! with, which goes before what follows it (I-SHIP-8). A snapshot whose TXID the stream has passed goes up beside it.

use crate::base::TxId;
use crate::spool::Queued;

/// What the stream does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Uploads the snapshot with which a lineage begins.
    Base(Queued),
    /// Uploads a level-0 file.
    Level0(Queued),
    /// Nothing: this TXID is neither in the replica nor in the spool, so that what follows is no history.
    Gap(TxId),
    /// Nothing: all is there.
    Nothing,
}

/// Decides that. `pending` and `snapshots` are ascending; `replicated`: up to there everything is in the replica.
pub(super) fn stream(pending: &[Queued], snapshots: &[Queued], replicated: TxId) -> Next {
    let oldest = pending.first();
    let base =
        snapshots.iter().find(|s| s.txid > replicated).filter(|s| oldest.is_none_or(|p| p.txid > s.txid));
    match (base, oldest) {
        (Some(s), _) => Next::Base(s.clone()),
        (None, None) => Next::Nothing,
        // (A power cut took it from the directory.)
        (None, Some(p)) if p.txid > replicated.next() => Next::Gap(replicated.next()),
        (None, Some(p)) => Next::Level0(p.clone()),
    }
}

/// The snapshot that may go up beside the stream (I-SHIP-9): the oldest that the stream has passed.
pub(super) fn beside(snapshots: &[Queued], replicated: TxId) -> Option<&Queued> {
    snapshots.iter().find(|s| s.txid <= replicated)
}

/// What a look at the replica finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct There {
    /// The newest TXID.
    pub(super) newest: TxId,
    /// The newest snapshot.
    pub(super) snapshot: TxId,
}

/// Why what was shipped, everything up to `replicated` and a snapshot of `snapshot`, is not in the replica any more; `None` if it is.
/// (Retention removes snapshots, and never the newest.)
pub(super) fn lost(there: There, replicated: TxId, snapshot: TxId) -> Option<String> {
    if there.newest < replicated {
        return Some(format!(
            "the replica had everything up to TXID {replicated} and now ends at {}",
            there.newest
        ));
    }
    (there.snapshot < snapshot)
        .then(|| format!("the replica had a snapshot of TXID {snapshot} and has none so new any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(txids: &[u64]) -> Vec<Queued> {
        txids.iter().map(|n| Queued { txid: TxId(*n), path: format!("{n}").into(), bytes: 1 }).collect()
    }

    fn next(pending: &[u64], snapshots: &[u64], replicated: u64) -> String {
        match stream(&files(pending), &files(snapshots), TxId(replicated)) {
            Next::Base(q) => format!("base {}", q.txid.0),
            Next::Level0(q) => format!("level 0 {}", q.txid.0),
            Next::Gap(t) => format!("gap {}", t.0),
            Next::Nothing => "nothing".into(),
        }
    }

    #[test]
    fn what_the_stream_does_next() {
        for (pending, snapshots, replicated, want) in [
            (&[][..], &[][..], 0, "nothing"),
            (&[], &[], 9, "nothing"),
            // A first lineage: the snapshot, then what follows it.
            (&[2, 3], &[1], 0, "base 1"),
            (&[2, 3], &[], 1, "level 0 2"),
            (&[], &[1], 0, "base 1"),
            // A new lineage: what is left of the old one, then the snapshot, then what follows.
            (&[7, 8, 10], &[9], 6, "level 0 7"),
            (&[8, 10], &[9], 7, "level 0 8"),
            (&[10], &[9], 8, "base 9"),
            // Its TXIDs may be far above.
            (&[70_001], &[70_000], 8, "base 70000"),
            // A snapshot of a TXID that has a level-0 file starts nothing: the stream passes it first.
            (&[5, 6], &[6], 4, "level 0 5"),
            (&[6], &[6], 5, "level 0 6"),
            (&[7], &[6], 6, "level 0 7"),
            (&[], &[6], 6, "nothing"),
            // Two lineages wait.
            (&[10, 12], &[9, 11], 8, "base 9"),
            (&[10, 12], &[11], 9, "level 0 10"),
            (&[12], &[11], 10, "base 11"),
            // A file is missing.
            (&[5], &[], 3, "gap 4"),
            (&[5], &[3], 3, "gap 4"),
            (&[4], &[], 3, "level 0 4"),
            // Put again after a crash before the record.
            (&[3], &[], 3, "level 0 3"),
        ] {
            assert_eq!(next(pending, snapshots, replicated), want, "{pending:?} {snapshots:?} {replicated}");
        }
    }

    #[test]
    fn a_snapshot_goes_beside_the_stream_once_that_has_passed_it() {
        let of =
            |snapshots: &[u64], replicated| beside(&files(snapshots), TxId(replicated)).map(|q| q.txid.0);
        assert_eq!(of(&[], 9), None);
        assert_eq!(of(&[6], 5), None);
        assert_eq!(of(&[6], 6), Some(6));
        assert_eq!(of(&[6, 8], 9), Some(6));
        assert_eq!(of(&[8], 0), None);
    }

    #[test]
    fn no_snapshot_is_in_both_lanes_and_none_is_left() {
        // Every small queue: each snapshot is the stream's, or beside it, or behind what the stream does first.
        for bits in 0u32..1 << 10 {
            let pick = |shift: u32| -> Vec<u64> {
                (1..=5u64).filter(|n| bits >> (shift + *n as u32 - 1) & 1 == 1).collect()
            };
            let (pending, snapshots) = (files(&pick(0)), files(&pick(5)));
            for replicated in 0..=5 {
                let replicated = TxId(replicated);
                let next = stream(&pending, &snapshots, replicated);
                let side = beside(&snapshots, replicated);
                if let (Next::Base(b), Some(s)) = (&next, side) {
                    assert!(b.txid > s.txid);
                }
                if next == Next::Nothing {
                    assert!(pending.is_empty());
                    assert!(snapshots.is_empty() || side.is_some(), "{snapshots:?} {replicated}");
                }
                if let Next::Level0(q) = &next {
                    assert!(q.txid <= replicated.next(), "contiguous (I-SHIP-1)");
                }
            }
        }
    }

    #[test]
    fn what_was_shipped_is_looked_for() {
        let there = |newest, snapshot| There { newest: TxId(newest), snapshot: TxId(snapshot) };
        for (found, replicated, snapshot, is_lost) in [
            (there(9, 5), 9, 5, false),
            (there(12, 7), 9, 5, false),
            (there(0, 0), 9, 5, true),
            (there(8, 5), 9, 5, true),
            // What was shipped after it was emptied.
            (there(9, 0), 9, 5, true),
            (there(9, 0), 9, 0, false),
        ] {
            let lost = lost(found, TxId(replicated), TxId(snapshot));
            assert_eq!(lost.is_some(), is_lost, "{found:?} of {replicated} {snapshot}");
        }
    }
}
