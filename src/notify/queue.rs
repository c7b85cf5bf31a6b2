//! What waits for one endpoint: folding, pacing, and the bound. Pure: time is passed in.

use super::event::Event;
use crate::base::{EventKind, Timestamp};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// Entries that wait for one endpoint, at most. More than twice the number of event kinds, so that a full
/// queue always has two entries of one kind to fold.
pub(super) const MOST_WAITING: usize = 64;

/// Names of databases listed in one folded entry, at most.
const MOST_NAMES: usize = 50;

/// Paces remembered, at most: one per event and database.
const MOST_PACES: usize = 4096;

/// How fast one event of one database may be told to one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// This many at once...
    pub burst: u32,
    /// ...then one in this time; what happens meanwhile is folded into it.
    pub window: Duration,
}

/// An event, or several folded into one.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// The newest.
    pub event: Event,
    /// How many it stands for, 1 or more.
    pub count: u64,
    /// When the oldest happened.
    pub first: Timestamp,
    /// The databases concerned, if more than one.
    pub databases: BTreeSet<String>,
    due: Duration,
}

impl Pending {
    pub(super) fn one(event: Event) -> Pending {
        Pending { count: 1, first: event.at, databases: BTreeSet::new(), due: Duration::ZERO, event }
    }

    fn key(&self) -> (EventKind, &str) {
        (self.event.kind, &self.event.database)
    }

    /// Takes a later one in.
    fn fold(&mut self, later: Pending) {
        if !later.databases.is_empty() || later.event.database != self.event.database {
            let names = [self.event.database.clone(), later.event.database.clone()];
            self.databases.extend(names.into_iter().chain(later.databases));
            while self.databases.len() > MOST_NAMES {
                self.databases.pop_last();
            }
        }
        self.count = self.count.saturating_add(later.count);
        self.first = self.first.min(later.first);
        self.due = self.due.min(later.due);
        self.event = later.event;
    }
}

/// The queue of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Pending>,
    /// Per event and database: when, at one per window, the next would be due ("theoretical arrival time"
    /// of the generic cell rate algorithm).
    paces: HashMap<(EventKind, String), Duration>,
}

impl Queue {
    /// Entries waiting.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds an event that happened at `now` (uptime), folding where one of its kind and database waits, or
    /// where the queue is full.
    pub(super) fn push(&mut self, event: Event, now: Duration, pace: Pace) {
        let mut new = Pending::one(event);
        if let Some(same) = self.waiting.iter_mut().find(|p| p.key() == new.key()) {
            new.due = same.due;
            return same.fold(new);
        }
        let ahead = pace.window * pace.burst.saturating_sub(1);
        let arrival = self.paces.get(&(new.event.kind, new.event.database.clone()));
        new.due = arrival.map_or(now, |t| t.saturating_sub(ahead).max(now));
        if self.waiting.len() >= MOST_WAITING {
            self.make_room();
        }
        self.waiting.push_back(new);
    }

    /// Folds the newest two entries of the most frequent kind into one.
    fn make_room(&mut self) {
        let mut counts: HashMap<EventKind, usize> = HashMap::new();
        for p in &self.waiting {
            *counts.entry(p.event.kind).or_default() += 1;
        }
        let Some((kind, _)) = counts.into_iter().max_by_key(|(kind, n)| (*n, *kind)) else { return };
        let Some(last) = self.waiting.iter().rposition(|p| p.event.kind == kind) else { return };
        let Some(later) = self.waiting.remove(last) else { return };
        match self.waiting.iter_mut().rev().find(|p| p.event.kind == kind) {
            Some(earlier) => earlier.fold(later),
            None => self.waiting.push_back(later),
        }
    }

    /// The oldest entry that is due; with [`Hurry::Yes`], the oldest.
    pub(super) fn take(&mut self, now: Duration, pace: Pace, hurry: Hurry) -> Option<Pending> {
        let at = self.waiting.iter().position(|p| p.due <= now || hurry == Hurry::Yes)?;
        let taken = self.waiting.remove(at)?;
        if self.paces.len() >= MOST_PACES {
            self.paces.retain(|_, t| *t > now);
            if self.paces.len() >= MOST_PACES {
                self.paces.clear();
            }
        }
        let arrival = self.paces.entry((taken.event.kind, taken.event.database.clone())).or_default();
        *arrival = (*arrival).max(now) + pace.window;
        Some(taken)
    }

    /// When the next entry is due (uptime).
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.waiting.iter().map(|p| p.due).min()
    }
}

/// Whether entries that are held back leave at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hurry {
    /// They do: somebody waits for the queue to empty.
    Yes,
    /// They keep their pace.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace { burst: 3, window: Duration::from_secs(5) };

    fn event(kind: EventKind, database: &str, at: i64) -> Event {
        Event { at: Timestamp(at), ..Event::new(kind, database, format!("at {at}")) }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_few_leave_at_once_then_a_flood_is_folded() {
        let mut q = Queue::default();
        let mut sent = Vec::new();
        for ms in 0..20_000 {
            q.push(event(EventKind::UploadError, "a", ms), at(ms as u64), PACE);
            sent.extend(
                q.take(at(ms as u64), PACE, Hurry::No).map(|p| (ms, p.count, p.first.0, p.event.at.0)),
            );
        }
        sent.extend(q.take(at(20_000), PACE, Hurry::Yes).map(|p| (20_000, p.count, p.first.0, p.event.at.0)));
        assert_eq!(sent.iter().take(3).map(|s| s.1).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(sent.iter().map(|s| s.1).sum::<u64>(), 20_000, "each is counted once: {sent:?}");
        assert_eq!(sent.len(), 3 + 3 + 1, "three at once, one per 5 s, the rest at the end: {sent:?}");
        let (_, _, first, last) = sent[3];
        assert_eq!((first, last), (3, 5000), "the fold tells when it began and ended");
    }

    #[test]
    fn another_database_or_event_is_not_held_back() {
        let mut q = Queue::default();
        for _ in 0..10 {
            q.push(event(EventKind::UploadError, "a", 0), at(0), PACE);
            q.take(at(0), PACE, Hurry::No);
        }
        q.push(event(EventKind::UploadError, "b", 0), at(0), PACE);
        q.push(event(EventKind::Fenced, "a", 0), at(0), PACE);
        let mut now: Vec<(EventKind, String)> = Vec::new();
        while let Some(p) = q.take(at(0), PACE, Hurry::No) {
            now.push((p.event.kind, p.event.database));
        }
        assert_eq!(now, [(EventKind::UploadError, "b".into()), (EventKind::Fenced, "a".into())]);
        assert_eq!(q.len(), 1);
    }

    #[test]
    fn a_thousand_databases_at_once_fold_over_databases_and_keep_the_rare_event() {
        let mut q = Queue::default();
        for i in 0..1000 {
            q.push(event(EventKind::UploadError, &format!("db{i}"), i), at(0), PACE);
        }
        q.push(event(EventKind::Fenced, "x", 1), at(0), PACE);
        assert_eq!(q.len(), MOST_WAITING);
        let (mut total, mut fenced, mut most) = (0, 0, 0);
        while let Some(p) = q.take(at(0), PACE, Hurry::No) {
            total += p.count;
            fenced += u64::from(p.event.kind == EventKind::Fenced);
            most = most.max(p.databases.len());
        }
        assert_eq!((total, fenced, most), (1001, 1, MOST_NAMES));
    }

    proptest! {
        /// Whatever comes in whatever order: the bound holds and every event is in exactly one entry.
        #[test]
        fn nothing_is_lost_and_the_queue_stays_bounded(
            steps in prop::collection::vec((0usize..8, 0u8..100, 0u64..2000, any::<bool>()), 0..600)
        ) {
            let (mut q, mut now, mut told) = (Queue::default(), 0, 0);
            for (kind, db, pause, take) in &steps {
                now += pause;
                q.push(event(EventKind::ALL[*kind], &format!("{db}"), now as i64), at(now), PACE);
                prop_assert!(q.len() <= MOST_WAITING);
                if *take {
                    told += q.take(at(now), PACE, Hurry::No).map_or(0, |p| p.count);
                }
            }
            while let Some(p) = q.take(at(now), PACE, Hurry::Yes) {
                prop_assert!(p.count >= 1 && p.first <= p.event.at);
                told += p.count;
            }
            prop_assert_eq!(told, steps.len() as u64);
            prop_assert_eq!(q.next_due(), None);
        }
    }
}
