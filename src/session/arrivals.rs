//! Tells whoever waits for more than one replica that something has arrived in one of them.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The meeting point of one database.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    seen: Mutex<u64>,
    changed: Condvar,
}

impl Arrivals {
    /// Something has arrived.
    pub(super) fn tell(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// How often something has.
    pub(super) fn seen(&self) -> u64 {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that is more than `seen`, `longest` at most.
    pub(super) fn wait(&self, seen: u64, longest: Duration) {
        let at = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_timeout_while(at, longest, |now| *now == seen)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_an_arrival_that_came_before_it() {
        let arrivals = Arrivals::default();
        let seen = arrivals.seen();
        arrivals.tell();
        arrivals.wait(seen, Duration::from_secs(60));
        arrivals.wait(arrivals.seen(), Duration::from_millis(1));
    }
}
