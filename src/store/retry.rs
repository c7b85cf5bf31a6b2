//! How long to wait before trying again. Pure, but for [`Retry::run`].
//!
//! Full jitter ([`backoff::within`]): uniform between nothing and `min(max, base · 2ⁿ)`. A `Retry-After` is a floor
//! under that. object_store's own retries are off: it does not read `Retry-After`, and two policies on top of each
//! other multiply.

use crate::base::{Result, backoff, clock};
use std::future::Future;
use std::time::Duration;

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
}

impl Retry {
    /// One try: for callers with a policy of their own.
    pub const NONE: Retry = Retry { attempts: 1, base: Duration::ZERO, max: Duration::ZERO };

    /// Three tries within about two seconds: for a person who waits, and for reads.
    pub const BRIEF: Retry =
        Retry { attempts: 3, base: Duration::from_millis(200), max: Duration::from_secs(2) };

    /// How long to wait after failed try number `failed` (the first is 0). `random` is any random
    /// number; `retry_after` is what the store asked for and is honoured up to five minutes.
    pub fn delay(&self, failed: u32, random: u64, retry_after: Option<Duration>) -> Duration {
        let jitter = backoff::within(backoff::bound(failed, self.base, self.max), random);
        jitter.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
    }

    /// Calls `operation` with the number of the try until it succeeds, fails with something that a
    /// later try will not cure, or the tries are used up. A store that asks for a longer wait than
    /// `max` ends it at once: the error says how long ([`crate::base::Error::retry_after`]).
    pub async fn run<T, F, Fut>(&self, mut operation: F) -> Result<T>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut failed = 0;
        loop {
            let e = match operation(failed).await {
                Ok(v) => return Ok(v),
                Err(e) => e,
            };
            let too_long = e.retry_after().is_some_and(|wait| wait > self.max);
            if !e.is_retry() || failed + 1 >= self.attempts || too_long {
                return Err(e);
            }
            tokio::time::sleep(self.delay(failed, clock::random_u64(), e.retry_after())).await;
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
            let r = Retry { attempts: 5, base: Duration::from_millis(base), max: Duration::from_millis(max) };
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
        let r = Retry { attempts: 9, base: Duration::from_millis(100), max: Duration::from_secs(30) };
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
        let p = Retry { attempts: 4, base: Duration::from_millis(1), max: Duration::from_millis(2) };
        assert_eq!(tries(p, || Error::new(Kind::Retry, "x")), 4);
        for kind in [Kind::Denied, Kind::Missing, Kind::Exists, Kind::Config, Kind::Fenced, Kind::Corrupt] {
            assert_eq!(tries(p, || Error::new(kind, "x")), 1);
        }
        assert_eq!(tries(Retry::NONE, || Error::new(Kind::Retry, "x")), 1);
        let asked = || Error::new(Kind::Retry, "x").with_retry_after(Some(Duration::from_secs(7)));
        assert_eq!(tries(p, asked), 1);
    }
}
