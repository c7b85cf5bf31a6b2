//! When the sealer looks at which database: who called, and whose time has come. A round costs what is in it, not what is watched.
//!
//! * I-AGENDA-1: a database that is watched is on the agenda from its first call on ([`super::registry::Engine::adopt`] calls for it), and
//!   always with a time: what no hook tells and nobody calls for is seen by then.
//! * I-AGENDA-2: who leaves something for the sealer calls after it has left it, and the sealer hears the call before it looks. So nothing
//!   that is left after a look waits for the database's time.
//!
//! Refused: a look at each database every couple of milliseconds while any has commits, which grows with what is watched; a thread for each.

use crate::base::lock;
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

/// What tells one watched database of this process from the others.
pub(super) type Number = u64;

/// Those that have called since the sealer's last round, in their order.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<Vec<Number>>);

impl Calls {
    /// One more. Whoever calls again before it was heard need not be told twice; the caller sees to that.
    pub(super) fn push(&self, number: Number) {
        lock(&self.0).push(number);
    }

    /// Hears all of them.
    pub(super) fn take(&self) -> Vec<Number> {
        std::mem::take(&mut *lock(&self.0))
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

/// Each database's next time.
#[derive(Debug)]
pub(super) struct Agenda<T> {
    all: HashMap<Number, (T, Duration)>,
    due: BTreeSet<(Duration, Number)>,
}

impl<T: Clone> Agenda<T> {
    pub(super) fn new() -> Agenda<T> {
        Agenda { all: HashMap::new(), due: BTreeSet::new() }
    }

    /// How many are on it.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn has(&self, number: Number) -> bool {
        self.all.contains_key(&number)
    }

    /// `what` is looked at from uptime `at` on: at that time only, whatever was said before.
    pub(super) fn put(&mut self, number: Number, what: T, at: Duration) {
        self.remove(number);
        self.due.insert((at, number));
        self.all.insert(number, (what, at));
    }

    /// It is not looked at any more.
    pub(super) fn remove(&mut self, number: Number) {
        if let Some((_, at)) = self.all.remove(&number) {
            self.due.remove(&(at, number));
        }
    }

    /// The time of those that called is now.
    pub(super) fn hear(&mut self, called: &[Number], now: Duration) {
        for number in called {
            if let Some((_, at)) = self.all.get_mut(number) {
                self.due.remove(&(*at, *number));
                *at = (*at).min(now);
                self.due.insert((*at, *number));
            }
        }
    }

    /// Those whose time has come, the longest overdue first. They stay on it.
    pub(super) fn due(&self, now: Duration) -> Vec<(Number, T)> {
        let due = self.due.iter().take_while(|(at, _)| *at <= now);
        due.filter_map(|(_, number)| Some((*number, self.all.get(number)?.0.clone()))).collect()
    }

    /// The earliest time of all.
    pub(super) fn soonest(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn due(agenda: &Agenda<&'static str>, now: u64) -> Vec<&'static str> {
        agenda.due(ms(now)).into_iter().map(|(_, what)| what).collect()
    }

    #[test]
    fn each_has_one_time() {
        let mut agenda = Agenda::new();
        assert_eq!((agenda.soonest(), due(&agenda, 9)), (None, vec![]));
        agenda.put(1, "a", ms(10));
        agenda.put(2, "b", ms(5));
        agenda.put(3, "c", ms(5));
        assert_eq!((agenda.len(), agenda.soonest()), (3, Some(ms(5))));
        assert_eq!(due(&agenda, 4), [""; 0]);
        assert_eq!(due(&agenda, 5), ["b", "c"]);
        assert_eq!(due(&agenda, 10), ["b", "c", "a"], "the longest overdue first");
        agenda.put(2, "b", ms(20));
        assert_eq!(due(&agenda, 10), ["c", "a"], "not at its old time, too");
        agenda.remove(3);
        agenda.remove(7);
        assert_eq!((agenda.len(), agenda.has(3), due(&agenda, 30)), (2, false, vec!["a", "b"]));
    }

    #[test]
    fn who_calls_is_due_at_once_and_never_later_than_it_was() {
        let mut agenda = Agenda::new();
        agenda.put(1, "a", ms(100));
        agenda.put(2, "b", ms(3));
        agenda.hear(&[1, 2, 1, 9], ms(5));
        assert_eq!(due(&agenda, 5), ["b", "a"]);
        assert_eq!(agenda.soonest(), Some(ms(3)), "it was overdue before it called");
        agenda.put(1, "a", ms(100));
        assert_eq!(due(&agenda, 5), ["b"]);
    }

    #[test]
    fn calls_are_heard_once_in_their_order() {
        let calls = Calls::default();
        assert!(calls.is_empty());
        calls.push(4);
        calls.push(2);
        assert!(!calls.is_empty());
        assert_eq!((calls.take(), calls.take()), (vec![4, 2], vec![]));
    }
}
