//! The entries that the manifest is owed. Pure; when, and at which store, is said by the caller.
//!
//! An upload of level 0 is acknowledged when its object is there: created, by a name that says its TXID, with an attestation of the
//! database before and after it. Its entry in the manifest comes later, with others (I-OWE-3, [`MOST_WAITING`]).
//!
//! Rules
//! * I-OWE-1 An entry waits only while the lease is held and says so ([`is_ahead`](crate::replica::manifest::is_ahead)). Where there is no lease each
//!   entry is made at once: nothing could tell a reader that some are to come.
//! * I-OWE-2 What waits is on record in the spool before the upload counts as shipped there; where that fails, the entry is made at once.
//! * I-OWE-3 All that wait are named after [`ENTRIES_WITHIN`](crate::replica::manifest::ENTRIES_WITHIN), of a writer that only creates after
//!   [`CLAIMS_WITHIN`](crate::replica::manifest::CLAIMS_WITHIN); when there are [`MOST_WAITING`]; before a snapshot is put, and with each entry of
//!   another level; before the right to remove files is lent; before the lease is given back, or when it is found to be another's; and
//!   when somebody asks.
//! * I-OWE-4 What an earlier process, or another machine, left is named before the next file is put. The record is believed where it is
//!   unbroken up to the newest file, and of each of its lines it is seen that the object is there: another machine may have held the lease meanwhile, and removed it.
//!   Else the replica is looked at, and what lies behind the manifest is read (I-ADOPT-1 of `replica`).
//!
//! Crash after the PUT and before the record: the file is put again, found to be ours, and put on record. After the record: the next start names
//! it. After the manifest and before the record is emptied: the same entries once more, which changes nothing. The machine is lost: who
//! takes the replica over reads the objects. Until then `verify` says how many files are not named yet, and that it could not notice the loss of
//! one behind them.
//!
//! Refused: entries in the lease (a takeover would have to carry them); in the metadata of the next object (the last one has none); a time after which a
//! reader takes what is not named for lost (two machines' clocks would be compared, and a machine that is off has all the time in the world).

use crate::base::TxId;
use crate::replica::FileId;
use crate::replica::manifest::{MOST_WAITING, ManifestEntry};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is known of what earlier processes left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing for certain: it is looked at before the next file is put.
    Unknown,
    /// It is among what waits, or named.
    Settled,
}

/// What waits.
#[derive(Debug)]
pub(super) struct Owed {
    waiting: BTreeMap<FileId, ManifestEntry>,
    /// Uptime at which the oldest of them is due.
    due: Option<Duration>,
    left: Left,
    /// The longest that they wait.
    within: Duration,
}

impl Owed {
    /// At the start of a shipper. `recorded`: what the spool has on record for this replica, if it has a record.
    pub(super) fn new(recorded: Option<&[String]>, within: Duration) -> Owed {
        let due = if recorded.is_some_and(<[String]>::is_empty) { None } else { Some(Duration::ZERO) };
        Owed { waiting: BTreeMap::new(), due, left: Left::Unknown, within }
    }

    /// One more, at that uptime.
    pub(super) fn add(&mut self, entry: ManifestEntry, uptime: Duration) {
        self.waiting.insert(entry.id, entry);
        self.due.get_or_insert(uptime + self.within);
    }

    /// How long until they have to be named.
    pub(super) fn due_in(&self, uptime: Duration) -> Option<Duration> {
        self.due.map(|t| t.saturating_sub(uptime))
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST_WAITING
    }

    /// Whether nothing is owed, for all that is known.
    pub(super) fn is_clear(&self) -> bool {
        self.waiting.is_empty() && self.left == Left::Settled
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn all(&self) -> Vec<ManifestEntry> {
        self.waiting.values().copied().collect()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.left == Left::Settled
    }

    /// What earlier processes left is known: these.
    pub(super) fn settle(&mut self, left: Vec<ManifestEntry>) {
        self.waiting.extend(left.into_iter().map(|e| (e.id, e)));
        self.left = Left::Settled;
    }

    /// These are named, or are not to be. What is left was added at `uptime` at the earliest.
    pub(super) fn remove(&mut self, named: &[FileId], uptime: Duration) {
        self.waiting.retain(|id, _| !named.contains(id));
        self.due = (!self.waiting.is_empty()).then_some(uptime + self.within);
    }

    /// The lease is given back, or may be another's: what waits is looked at anew when it is ours again.
    pub(super) fn doubt(&mut self) {
        if !self.waiting.is_empty() {
            self.due = Some(Duration::ZERO);
        }
        self.waiting.clear();
        self.left = Left::Unknown;
    }
}

/// What of the record is to be named, or `None` where the record does not tell all: `named` is the newest TXID of the manifest, `there`
/// the newest one in the replica.
pub(super) fn told(recorded: Option<&[String]>, named: TxId, there: TxId) -> Option<Vec<ManifestEntry>> {
    let entries: Vec<ManifestEntry> = recorded?.iter().filter_map(|l| ManifestEntry::of_line(l)).collect();
    if there == TxId::ZERO {
        return Some(Vec::new());
    }
    if named == TxId::ZERO {
        return None;
    }
    let left: BTreeMap<TxId, ManifestEntry> =
        entries.into_iter().filter(|e| e.id.max > named).map(|e| (e.id.max, e)).collect();
    let span = there.0.saturating_sub(named.0);
    let is_whole = span <= left.len() as u64 && (named.0 + 1..=there.0).all(|t| left.contains_key(&TxId(t)));
    is_whole.then(|| left.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
    use crate::ltx::Level;
    use crate::replica::manifest::ENTRIES_WITHIN;

    fn entry(txid: u64) -> ManifestEntry {
        let id = FileId { level: Level::L0, min: TxId(txid), max: TxId(txid) };
        let (sha256, time) = ([7; 32], Timestamp(5));
        ManifestEntry { id, bytes: 9, pages: 1, commit: 2, crc: 3, edge: 4, sha256, time, after: None }
    }

    fn lines(txids: &[u64]) -> Vec<String> {
        txids.iter().map(|t| entry(*t).line()).collect()
    }

    #[test]
    fn what_the_record_tells() {
        for (what, recorded, named, there, want) in [
            ("nothing is recorded", None, 5, 5, None),
            ("nothing waits", Some(&[][..]), 5, 5, Some(&[][..])),
            ("nothing is there", Some(&[]), 0, 0, Some(&[])),
            ("all that is not named", Some(&[6, 7]), 5, 7, Some(&[6, 7])),
            ("some are named already", Some(&[4, 5, 6]), 5, 6, Some(&[6])),
            ("the newest was not recorded", Some(&[6]), 5, 7, None),
            ("one was lost", Some(&[6, 8]), 5, 8, None),
            ("the record was lost", Some(&[]), 5, 7, None),
            ("the manifest names nothing", Some(&[1]), 0, 1, None),
            ("put, and not known to be there", Some(&[6, 7]), 5, 6, Some(&[6, 7])),
            ("another machine went far ahead", Some(&[6]), 5, u64::MAX - 1, None),
        ] {
            let recorded = recorded.map(lines);
            let told = told(recorded.as_deref(), TxId(named), TxId(there));
            let told = told.map(|t| t.iter().map(|e| e.id.max.0).collect::<Vec<_>>());
            assert_eq!(told.as_deref(), want, "{what}");
        }
        let torn = vec![lines(&[6])[0].clone(), lines(&[7])[0][..40].to_string()];
        assert_eq!(told(Some(&torn), TxId(5), TxId(7)), None, "half a line");
    }

    #[test]
    fn entries_wait_so_long_and_no_longer() {
        let s = Duration::from_secs;
        let mut owed = Owed::new(Some(&[]), ENTRIES_WITHIN);
        assert_eq!((owed.due_in(s(0)), owed.is_clear(), owed.is_settled()), (None, false, false));
        owed.settle(vec![]);
        assert!(owed.is_clear());
        owed.add(entry(1), s(100));
        owed.add(entry(2), s(101));
        owed.add(entry(1), s(102));
        assert_eq!((owed.len(), owed.due_in(s(100)), owed.is_clear()), (2, Some(ENTRIES_WITHIN), false));
        assert_eq!(owed.due_in(s(1000)), Some(s(0)));
        owed.remove(&[entry(1).id], s(200));
        assert_eq!((owed.len(), owed.due_in(s(200))), (1, Some(ENTRIES_WITHIN)));
        owed.remove(&[entry(2).id, entry(9).id], s(300));
        assert_eq!((owed.len(), owed.due_in(s(300)), owed.is_clear()), (0, None, true));
        for n in 0..MOST_WAITING as u64 {
            assert!(!owed.is_full());
            owed.add(entry(n), s(1));
        }
        assert!(owed.is_full());
        owed.doubt();
        assert_eq!((owed.len(), owed.is_settled()), (0, false));
        assert!(owed.due_in(s(1)).is_some(), "it is looked at");
        // What an earlier process left is due at once.
        assert_eq!(Owed::new(None, ENTRIES_WITHIN).due_in(s(1)), Some(s(0)));
        assert_eq!(Owed::new(Some(&lines(&[1])), ENTRIES_WITHIN).due_in(s(1)), Some(s(0)));
    }
}
