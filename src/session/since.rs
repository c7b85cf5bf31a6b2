//! Since when something has been so.

use crate::base::lock;
use std::sync::Mutex;
use std::time::Duration;

/// Uptime since which something has been so without a break, if it is.
#[derive(Debug, Default)]
pub(super) struct Since(Mutex<Option<Duration>>);

impl Since {
    /// It is so at uptime `now`: for how long it has been.
    pub(super) fn goes_on(&self, now: Duration) -> Duration {
        now.saturating_sub(*lock(&self.0).get_or_insert(now))
    }

    /// It begins at uptime `now`, whether or not it was so before.
    pub(super) fn begins(&self, now: Duration) {
        *lock(&self.0) = Some(now);
    }

    /// It is not so.
    pub(super) fn ends(&self) {
        *lock(&self.0) = None;
    }

    /// For how long it has been so at uptime `now`; `None` if it is not.
    pub(super) fn elapsed(&self, now: Duration) -> Option<Duration> {
        lock(&self.0).map(|since| now.saturating_sub(since))
    }
}

/// Uptime since which the same thing has been so, seen at look after look: another thing begins anew.
#[derive(Debug)]
pub(super) struct SinceSame<T>(Mutex<Option<(T, Duration)>>);

impl<T> Default for SinceSame<T> {
    fn default() -> SinceSame<T> {
        SinceSame(Mutex::new(None))
    }
}

impl<T: PartialEq> SinceSame<T> {
    /// `what` is so at uptime `now`: for how long it has been.
    pub(super) fn goes_on(&self, what: T, now: Duration) -> Duration {
        let mut at = lock(&self.0);
        match &*at {
            Some((same, since)) if *same == what => now.saturating_sub(*since),
            _ => {
                *at = Some((what, now));
                Duration::ZERO
            }
        }
    }

    /// Nothing is so.
    pub(super) fn ends(&self) {
        *lock(&self.0) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_the_first_time() {
        let s = |n| Duration::from_secs(n);
        let since = Since::default();
        assert_eq!(since.elapsed(s(5)), None);
        assert_eq!(since.goes_on(s(5)), s(0));
        assert_eq!(since.goes_on(s(8)), s(3));
        assert_eq!(since.elapsed(s(9)), Some(s(4)));
        since.begins(s(9));
        assert_eq!(since.elapsed(s(9)), Some(s(0)));
        since.ends();
        assert_eq!(since.goes_on(s(20)), s(0));
    }

    #[test]
    fn another_thing_counts_anew() {
        let s = |n| Duration::from_secs(n);
        let since = SinceSame::default();
        assert_eq!(since.goes_on('a', s(5)), s(0));
        assert_eq!(since.goes_on('a', s(7)), s(2));
        assert_eq!(since.goes_on('b', s(8)), s(0));
        assert_eq!(since.goes_on('a', s(9)), s(0), "it was not so in between");
        since.ends();
        assert_eq!(since.goes_on('a', s(20)), s(0));
    }
}
