//! The circuit breaker: stops hammering a store that keeps failing. Pure; time is handed in.
//!
//! ```text
//!           `threshold` failures in a row              `cooldown` later, one trial
//!  Closed ───────────────────────────────▶ Open ───────────────────────────────▶ HalfOpen
//!    ▲                                      ▲                                      │ │
//!    │                                      └────────────── trial failed ──────────┘ │
//!    └───────────────────────────────────────────────────── trial succeeded ─────────┘
//! ```
//!
//! I-BREAKER-1: while open, nothing is permitted before `cooldown` has passed since the last failure, unless
//! someone waits for the answer ([`Breaker::permit_waited_for`]).
//! I-BREAKER-2: while half open, one trial is out; a trial that is never reported back counts as failed
//! after another `cooldown`. I-BREAKER-3: a success closes it, whatever its state.

use crate::base::Kind;
use std::time::Duration;

/// What [`Breaker::permit`] answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permit {
    /// Go on.
    Go,
    /// Go on with one request: it decides.
    Trial,
    /// Wait this long, then ask again.
    Wait(Duration),
}

/// The state, as `walrust_status.breaker` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BreakerState {
    /// Normal.
    Closed,
    /// Paused.
    Open,
    /// One trial is out.
    HalfOpen,
}

impl BreakerState {
    /// `closed`, `open` or `half-open`.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        }
    }
}

/// What a reported outcome changed: each is an event to notify about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing.
    None,
    /// It has just opened.
    Opened,
    /// It has just closed.
    Closed,
}

/// One per database.
#[derive(Clone, Debug)]
pub struct Breaker {
    threshold: u32,
    cooldown: Duration,
    failures: u32,
    state: BreakerState,
    /// Uptime of the last failure (open) or of the trial's start (half open).
    since: Duration,
}

impl Breaker {
    /// Opens after `threshold` failures in a row (0: never) for `cooldown`.
    pub fn new(threshold: u32, cooldown: Duration) -> Breaker {
        Breaker { threshold, cooldown, failures: 0, state: BreakerState::Closed, since: Duration::ZERO }
    }

    /// Whether an error of this kind says something about the store's health. An answer such as
    /// "not there" or "already there" shows that it works.
    pub fn counts(kind: Kind) -> bool {
        matches!(kind, Kind::Retry | Kind::Denied | Kind::Timeout | Kind::Config | Kind::Io)
    }

    /// The state.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// May a request be made now? `uptime` never goes back ([`crate::base::Clock::uptime`]).
    pub fn permit(&mut self, uptime: Duration) -> Permit {
        let waited = uptime.saturating_sub(self.since);
        match self.state {
            BreakerState::Closed => Permit::Go,
            _ if waited < self.cooldown => Permit::Wait(self.cooldown - waited),
            _ => {
                self.state = BreakerState::HalfOpen;
                self.since = uptime;
                Permit::Trial
            }
        }
    }

    /// [`Breaker::permit`] for a caller whose answer someone waits for, and who has waited between two tries:
    /// an open breaker permits a trial before the cooldown has passed.
    pub fn permit_waited_for(&mut self, uptime: Duration) -> Permit {
        if self.state != BreakerState::Open {
            return self.permit(uptime);
        }
        self.state = BreakerState::HalfOpen;
        self.since = uptime;
        Permit::Trial
    }

    /// A request succeeded.
    pub fn success(&mut self) -> Change {
        self.failures = 0;
        if self.state == BreakerState::Closed {
            return Change::None;
        }
        self.state = BreakerState::Closed;
        Change::Closed
    }

    /// A request failed in a way that [counts](Breaker::counts).
    pub fn failure(&mut self, uptime: Duration) -> Change {
        self.failures = self.failures.saturating_add(1);
        match self.state {
            BreakerState::Closed if self.threshold == 0 || self.failures < self.threshold => Change::None,
            BreakerState::Closed => {
                self.state = BreakerState::Open;
                self.since = uptime;
                Change::Opened
            }
            BreakerState::Open | BreakerState::HalfOpen => {
                self.state = BreakerState::Open;
                self.since = uptime;
                Change::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn the_whole_circle() {
        let mut b = Breaker::new(3, S(60));
        assert_eq!(b.permit(S(0)), Permit::Go);
        assert_eq!([b.failure(S(1)), b.failure(S(2))], [Change::None, Change::None]);
        assert_eq!(b.permit(S(3)), Permit::Go);
        assert_eq!(b.failure(S(4)), Change::Opened);
        assert_eq!((b.state().as_str(), b.failures()), ("open", 3));
        assert_eq!(b.permit(S(5)), Permit::Wait(S(59)));
        assert_eq!(b.permit(S(64)), Permit::Trial);
        assert_eq!(b.permit(S(65)), Permit::Wait(S(59)), "one trial at a time");
        assert_eq!(b.failure(S(66)), Change::None, "still open: no second event");
        assert_eq!(b.permit(S(67)), Permit::Wait(S(59)));
        assert_eq!(b.permit(S(126)), Permit::Trial);
        assert_eq!(b.success(), Change::Closed);
        assert_eq!(b.permit(S(127)), Permit::Go);
        assert_eq!(b.success(), Change::None);
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut b = Breaker::new(2, S(1));
        for t in 0..100 {
            assert_eq!(b.failure(S(t)), Change::None);
            assert_eq!(b.success(), Change::None);
        }
    }

    #[test]
    fn a_forgotten_trial_is_replaced() {
        let mut b = Breaker::new(1, S(10));
        b.failure(S(0));
        assert_eq!(b.permit(S(10)), Permit::Trial);
        assert_eq!(b.permit(S(19)), Permit::Wait(S(1)));
        assert_eq!(b.permit(S(20)), Permit::Trial);
    }

    #[test]
    fn who_waits_gets_a_trial_at_once_and_no_second_one_meanwhile() {
        let mut b = Breaker::new(1, S(60));
        assert_eq!(b.permit_waited_for(S(0)), Permit::Go);
        assert_eq!(b.failure(S(1)), Change::Opened);
        assert_eq!(b.permit(S(2)), Permit::Wait(S(59)));
        assert_eq!(b.permit_waited_for(S(2)), Permit::Trial);
        assert_eq!(b.permit_waited_for(S(3)), Permit::Wait(S(59)));
        assert_eq!(b.failure(S(4)), Change::None);
        assert_eq!(b.permit(S(5)), Permit::Wait(S(59)), "nobody waits any more: the pause begins anew");
        assert_eq!(b.permit_waited_for(S(5)), Permit::Trial);
        assert_eq!(b.success(), Change::Closed);
    }

    #[test]
    fn threshold_zero_never_opens() {
        let mut b = Breaker::new(0, S(10));
        for t in 0..1000 {
            assert_eq!(b.failure(S(t)), Change::None);
            assert_eq!(b.permit(S(t)), Permit::Go);
        }
    }

    proptest! {
        /// Against a model: the list of events that have happened.
        #[test]
        fn invariants_hold(
            threshold in 1u32..6, cooldown in 1u64..50, steps in proptest::collection::vec((0u8..3, 0u64..20), 1..200)
        ) {
            let mut b = Breaker::new(threshold, S(cooldown));
            let (mut now, mut row, mut opened, mut last_trial) = (0u64, 0u32, false, None::<u64>);
            let mut last_failure = 0u64;
            for (step, dt) in steps {
                now += dt;
                match step {
                    0 => {
                        let change = b.failure(S(now));
                        row += 1;
                        let opens = !opened && row >= threshold;
                        prop_assert_eq!(change == Change::Opened, opens);
                        prop_assert!(change != Change::Closed);
                        opened |= opens;
                        last_failure = now;
                        last_trial = None;
                    }
                    1 => {
                        prop_assert_eq!(b.success() == Change::Closed, opened);
                        row = 0;
                        opened = false;
                        last_trial = None;
                    }
                    _ => match b.permit(S(now)) {
                        Permit::Go => prop_assert!(!opened),
                        Permit::Trial => {
                            prop_assert!(opened && now >= last_failure + cooldown);            // I-BREAKER-1
                            prop_assert!(last_trial.is_none_or(|t| now >= t + cooldown));      // I-BREAKER-2
                            last_trial = Some(now);
                        }
                        Permit::Wait(d) => {
                            prop_assert!(opened && d <= S(cooldown) && d > Duration::ZERO);
                            let mut later = b.clone();
                            prop_assert_eq!(later.permit(S(now) + d), Permit::Trial);
                        }
                    },
                }
                prop_assert_eq!(b.state() == BreakerState::Closed, !opened);                   // I-BREAKER-3
            }
        }
    }
}
