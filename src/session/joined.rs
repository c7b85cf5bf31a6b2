//! What threads of the app wait for while a thread of ours finds out whose replica it is ([`super::phase::Part::Joining`]).
//!
//! The joining thread tells the outcome of each try; whoever waits has the first outcome after the wait began. A wait makes the
//! next try come at once.

use super::identity::Identity;
use crate::base::{Error, ForkSafe, Kind, Result, clock, lock};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The meeting point of one database.
#[derive(Debug, Default)]
pub(super) struct Joined {
    at: Mutex<At>,
    changed: Condvar,
}

/// Uptime at which a last close began to wait for a store that has said nothing since.
static WAITED: ForkSafe<Mutex<Option<Duration>>> = ForkSafe::new(Mutex::default);
/// How long no other close waits after that.
const VAIN_FOR: Duration = Duration::from_secs(60);

/// The first pause between two tries: doubled after each.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct At {
    /// How many tries have ended.
    tries: u64,
    /// How many had ended when it was last begun to find it out.
    before: u64,
    /// How the last one ended, if one has.
    last: Option<Result<Identity, Failed>>,
    next: Next,
    /// Uptime at which the try that is under way began.
    asked: Option<Duration>,
    /// After the next failure.
    pause: Duration,
    /// The store has said something since it was last begun to find it out.
    is_answered: bool,
}

/// Why a try failed.
#[derive(Clone, Debug)]
struct Failed {
    kind: Kind,
    why: String,
    /// What was in its way here passes in a moment: a lock, another reading.
    passes: bool,
}

impl Failed {
    fn error(&self) -> Error {
        Error::new(self.kind, self.why.clone())
    }
}

/// When there is a next try.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// From this uptime on.
    At(Duration),
    /// When the one that is under way has ended.
    UnderWay,
    /// The same, and at once if that fails: somebody asked after it had begun.
    AtOnceAfter,
    /// No more.
    Never,
}

impl Default for At {
    fn default() -> At {
        At {
            tries: 0,
            before: 0,
            last: None,
            next: Next::At(Duration::ZERO),
            asked: None,
            pause: PAUSE,
            is_answered: false,
        }
    }
}

impl Joined {
    /// It is begun to find it out, once more: the next try is due at once.
    pub(super) fn begins(&self) {
        let mut at = lock(&self.at);
        at.before = at.tries;
        at.pause = PAUSE;
        at.last = None;
        at.is_answered = false;
        if at.next != Next::UnderWay {
            at.next = Next::At(Duration::ZERO);
        }
    }

    /// Whether a try is due; if so it is under way from now on.
    pub(super) fn begin_try(&self) -> bool {
        let mut at = lock(&self.at);
        let is_due = matches!(at.next, Next::At(t) if clock::uptime() >= t);
        if is_due {
            at.next = Next::UnderWay;
            at.asked = Some(clock::uptime());
        }
        is_due
    }

    /// The try could not be made; another one is due soon.
    pub(super) fn postpone(&self) {
        let mut at = lock(&self.at);
        at.next = Next::At(clock::uptime() + PAUSE);
        at.asked = None;
    }

    /// It is known.
    pub(super) fn tell(&self, identity: Identity) {
        self.end_try(Ok(identity), |_| Next::Never);
    }

    /// A try ended with `e`; the next comes after a pause of `longest` at most. `passes`: what was in its way here passes in a moment, so
    /// that whoever waits goes on.
    pub(super) fn refuse(&self, e: &Error, passes: bool, longest: Duration) {
        self.end_try(Err(Failed { kind: e.kind(), why: e.to_string(), passes }), |at| {
            let pause = at.pause.min(longest);
            if !longest.is_zero() {
                at.pause = (at.pause * 2).min(longest);
            }
            let now = clock::uptime();
            Next::At(if at.next == Next::AtOnceAfter { now } else { now + pause })
        });
    }

    fn end_try(&self, outcome: Result<Identity, Failed>, next: impl FnOnce(&mut At) -> Next) {
        let mut at = lock(&self.at);
        at.tries += 1;
        at.last = Some(outcome);
        at.next = next(&mut at);
        at.asked = None;
        drop(at);
        self.changed.notify_all();
    }

    /// How many tries have ended.
    pub(super) fn tries(&self) -> u64 {
        lock(&self.at).tries
    }

    /// The next try comes at once. (The caller wakes the sealer, which makes it.)
    pub(super) fn hurry(&self) {
        let mut at = lock(&self.at);
        at.next = match at.next {
            Next::At(_) => Next::At(Duration::ZERO),
            Next::UnderWay | Next::AtOnceAfter => Next::AtOnceAfter,
            Next::Never => Next::Never,
        };
    }

    /// Whether a last close may wait for the first try: none has ended, and, where the store may be away, no close of this process
    /// waits, or has lately waited in vain, for one that says nothing.
    pub(super) fn is_worth_a_close(&self, may_be_away: bool) -> bool {
        let at = lock(&self.at);
        if at.tries != at.before {
            return false;
        }
        if !may_be_away {
            return true;
        }
        let now = clock::uptime();
        let mut waited = WAITED.lock();
        let is_worth = at.is_answered || waited.is_none_or(|at| now.saturating_sub(at) >= VAIN_FOR);
        if is_worth && !at.is_answered {
            *waited = Some(now);
        }
        is_worth
    }

    /// The store has answered a question of the try that is under way: the outcome is near.
    pub(super) fn answers(&self) {
        lock(&self.at).is_answered = true;
        *WAITED.lock() = None;
        self.changed.notify_all();
    }

    /// Waits for the outcome of a try that ends after the call, through failures that pass. Errors with that of the try; with the last
    /// one's, or [`Kind::Timeout`], when none ends within `patience`.
    pub(super) fn wait(&self, patience: Duration) -> Result<Identity> {
        self.wait_while(patience, |_, begun| begun + patience)
    }

    /// The same, no longer than `for_life` where the store does not answer at all.
    pub(super) fn wait_while_answered(&self, for_life: Duration, patience: Duration) -> Result<Identity> {
        self.wait_while(patience, |at, begun| begun + if at.is_answered { patience } else { for_life })
    }

    /// The same, and a store that has said nothing `for_life` after it was asked is not waited for: the time that has passed before the
    /// call counts.
    pub(super) fn wait_unless_silent(&self, for_life: Duration, patience: Duration) -> Result<Identity> {
        self.wait_while(patience, |at, begun| match at.is_answered {
            true => begun + patience,
            false => at.asked.unwrap_or(begun).min(begun) + for_life,
        })
    }

    fn wait_while(&self, patience: Duration, until: impl Fn(&At, Duration) -> Duration) -> Result<Identity> {
        let begun = clock::uptime();
        let before = lock(&self.at).tries;
        loop {
            let at = lock(&self.at);
            let end = until(&at, begun).min(begun + patience);
            let is_over = clock::uptime() >= end;
            match &at.last {
                Some(Ok(identity)) => return Ok(*identity),
                Some(Err(failed)) if at.tries > before && !failed.passes || is_over => {
                    return Err(failed.error());
                }
                _ if is_over => {
                    let why = "the replica has not answered yet; commits are kept in the spool and leave when it does";
                    return Err(Error::new(Kind::Timeout, why));
                }
                _ => {}
            }
            self.sleep(at, end.saturating_sub(clock::uptime()));
        }
    }

    /// Sleeps until something changes, `longest` at most.
    fn sleep(&self, at: std::sync::MutexGuard<'_, At>, longest: Duration) {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            drop(at);
            w.sleep(longest.min(Duration::from_millis(10)));
            return;
        }
        drop(self.changed.wait_timeout(at, longest).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_before_a_close_counts_where_the_store_is_silent() {
        let (hour, moment) = (Duration::from_secs(3600), Duration::from_millis(5));
        let joined = Joined::default();
        assert!(joined.begin_try());
        clock::sleep(moment);
        // (It would last an hour.)
        assert_eq!(joined.wait_unless_silent(moment, hour).unwrap_err().kind(), Kind::Timeout);
        joined.answers();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| joined.wait_unless_silent(moment, hour));
            clock::sleep(moment);
            assert!(!waits.is_finished(), "it answers");
            joined.tell(Identity::Unanswered);
            assert_eq!(waits.join().unwrap().unwrap(), Identity::Unanswered);
        });
    }

    #[test]
    fn what_passes_in_a_moment_ends_no_wait() {
        let s = Duration::from_secs;
        let busy = Error::new(Kind::Retry, "another thread reads the database");
        let wrong = Error::config("another database's");
        let joined = Joined::default();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| joined.wait(s(60)));
            for _ in 0..20 {
                clock::sleep(Duration::from_millis(1));
                joined.refuse(&busy, true, Duration::ZERO);
            }
            assert!(!waits.is_finished());
            joined.tell(Identity::Unanswered);
            assert_eq!(waits.join().unwrap().unwrap(), Identity::Unanswered);
        });
        joined.begins();
        joined.refuse(&busy, true, Duration::ZERO);
        assert_eq!(joined.wait(Duration::ZERO).unwrap_err().to_string(), busy.to_string());
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| joined.wait(s(60)).unwrap_err());
            while !refused.is_finished() {
                joined.refuse(&wrong, false, Duration::ZERO);
                clock::sleep(Duration::from_millis(1));
            }
            assert_eq!(refused.join().unwrap().to_string(), wrong.to_string());
        });
    }
}
