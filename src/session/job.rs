//! The place of the one thread that may work at a database: reading it whole, or beginning anew.

use crate::base::{clock, lock};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What somebody is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// It ends the watch and begins a new one, or clears the queue.
    Renewing,
    /// It reads the database whole.
    Reading,
    /// It has read it, and rests, or sends what it read.
    Done,
}

/// One place.
#[derive(Debug, Default)]
pub(super) struct JobPlace {
    at: Mutex<Option<Job>>,
    freed: Condvar,
}

impl JobPlace {
    /// Takes the place. Whether it was free.
    pub(super) fn take(&self, job: Job) -> bool {
        let mut at = lock(&self.at);
        let is_free = at.is_none();
        if is_free {
            *at = Some(job);
        }
        is_free
    }

    /// What is being done, if anything is.
    pub(super) fn job(&self) -> Option<Job> {
        *lock(&self.at)
    }

    /// Whoever has the place is at something else now.
    pub(super) fn becomes(&self, job: Job) {
        *lock(&self.at) = Some(job);
    }

    pub(super) fn free(&self) {
        *lock(&self.at) = None;
        self.freed.notify_all();
    }

    /// Waits until the place is free, `longest` at most.
    pub(super) fn wait_free(&self, longest: Duration) {
        let end = clock::uptime() + longest;
        let mut at = lock(&self.at);
        while at.is_some() {
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() {
                return;
            }
            #[cfg(feature = "sim")]
            if let Some(w) = crate::base::sim::world() {
                drop(at);
                w.sleep(left.min(Duration::from_millis(1)));
                at = lock(&self.at);
                continue;
            }
            at = self.freed.wait_timeout(at, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_place() {
        let place = JobPlace::default();
        assert!(place.take(Job::Reading) && !place.take(Job::Renewing));
        place.becomes(Job::Done);
        assert_eq!(place.job(), Some(Job::Done));
        place.wait_free(Duration::from_millis(1));
        assert_eq!(place.job(), Some(Job::Done), "the wait was over");
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| place.wait_free(Duration::from_secs(60)));
            place.free();
            waits.join().unwrap();
        });
        assert!(place.take(Job::Renewing));
    }
}
