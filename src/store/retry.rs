//! How long to wait before trying again. Pure, but for [`Retry::run`].
//!
//! Full jitter ([`backoff::within`]): uniform between nothing and `min(max, base · 2ⁿ)`. A `Retry-After` is a floor
//! under that. object_store's own retries are off: it does not read `Retry-After`, and two policies on top of each
//! other multiply.

use crate::base::{Result, backoff, clock};
use std::future::Future;
use std::time::Duration;

/// Tries that are made however long each takes.
const FEW: u32 = 3;

/// The longest `Retry-After` that is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A retry policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all, the first included; at least one is made.
    pub attempts: u32,
    /// The bound on the first wait; it doubles with each further one.
    pub base: Duration,
    /// The bound on every wait.
    pub max: Duration,
    /// A try after the third begins within this after the first one, or is not made: what fails at once is tried often,
    /// what fails by a timeout or in the middle of a long answer is tried three times.
    pub lasts: Duration,
}

impl Retry {
    /// One try: for callers with a policy of their own.
    pub const NONE: Retry = Retry::without_end(Duration::ZERO, Duration::ZERO).at_most(1);

    /// Three tries, and up to eight while they begin within four seconds: for a person who waits, and for reads. A restore makes hundreds of
    /// requests, so a line that loses each fourth of them must not end it: eight losses in a row are one in 65,000.
    pub const BRIEF: Retry = Retry {
        attempts: 8,
        base: Duration::from_millis(100),
        max: Duration::from_secs(1),
        lasts: Duration::from_secs(4),
    };

    /// Tries until one succeeds.
    pub const fn without_end(base: Duration, max: Duration) -> Retry {
        Retry { attempts: u32::MAX, base, max, lasts: Duration::MAX }
    }

    /// The same policy with at most `attempts` tries in all.
    pub const fn at_most(self, attempts: u32) -> Retry {
        Retry { attempts, ..self }
    }

    /// How long to wait after failed try number `failed` (the first is 0). `random` is any random
    /// number; `retry_after` is what the store asked for and is honoured up to five minutes.
    pub fn delay(&self, failed: u32, random: u64, retry_after: Option<Duration>) -> Duration {
        let jitter = backoff::within(backoff::bound(failed, self.base, self.max), random);
        jitter.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
    }

    /// Calls `operation` with the number of the try until it succeeds, fails with something that a
    /// later try will not cure, or the tries or the time are used up. A store that asks for a longer wait than
    /// `max` ends it at once: the error says how long ([`crate::base::Error::retry_after`]).
    pub async fn run<T, F, Fut>(&self, mut operation: F) -> Result<T>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut failed = 0;
        let begun = clock::uptime();
        loop {
            let e = match operation(failed).await {
                Ok(v) => return Ok(v),
                Err(e) => e,
            };
            let too_long = e.retry_after().is_some_and(|wait| wait > self.max);
            let wait = self.delay(failed, clock::random_u64(), e.retry_after());
            let too_late = clock::uptime().saturating_sub(begun).saturating_add(wait) > self.lasts;
            let enough = failed + 1 >= self.attempts || (failed + 1 >= FEW && too_late);
            if !e.is_retry() || enough || too_long {
                return Err(e);
            }
            tokio::time::sleep(wait).await;
            failed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Error, Kind};
    use crate::store::block_on;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delay_stays_within_its_bounds(
            base in 0u64..5_000, max in 0u64..60_000, failed in 0u32..200, random: u64, asked in proptest::option::of(0u64..1_000)
        ) {
            let r = Retry::without_end(Duration::from_millis(base), Duration::from_millis(max));
            let d = r.delay(failed, random, asked.map(Duration::from_secs));
            let floor = Duration::from_secs(asked.unwrap_or(0)).min(LONGEST_RETRY_AFTER);
            prop_assert!(d >= floor);
            prop_assert!(d <= r.max.max(floor));
            if failed < 8 {
                prop_assert!(d <= (r.base * (1 << failed)).max(floor));
            }
        }
    }

    #[test]
    fn jitter_covers_the_range() {
        let r = Retry::without_end(Duration::from_millis(100), Duration::from_secs(30));
        let delays: Vec<u128> =
            (0..2000).map(|_| r.delay(3, clock::random_u64(), None).as_millis()).collect();
        assert!(delays.iter().any(|d| *d < 100) && delays.iter().any(|d| *d > 700));
        assert!(delays.iter().all(|d| *d <= 800));
    }

    fn tries(policy: Retry, error: impl Fn() -> Error + Sync) -> u32 {
        let mut n = 0;
        let r: Result<()> = block_on(async {
            policy
                .run(|_| {
                    n += 1;
                    let e = error();
                    async { Err(e) }
                })
                .await
        })
        .unwrap();
        assert!(r.is_err());
        n
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let p = Retry::without_end(Duration::from_millis(1), Duration::from_millis(2)).at_most(4);
        assert_eq!(tries(p, || Error::new(Kind::Retry, "x")), 4);
        for kind in [Kind::Denied, Kind::Missing, Kind::Exists, Kind::Config, Kind::Fenced, Kind::Corrupt] {
            assert_eq!(tries(p, || Error::new(kind, "x")), 1);
        }
        assert_eq!(tries(Retry::NONE, || Error::new(Kind::Retry, "x")), 1);
        let asked = || Error::new(Kind::Retry, "x").with_retry_after(Some(Duration::from_secs(7)));
        assert_eq!(tries(p, asked), 1);
        let late = Retry { lasts: Duration::ZERO, ..p };
        assert_eq!(tries(late, || Error::new(Kind::Retry, "x").with_retry_after(Some(p.max))), FEW);
    }
}
