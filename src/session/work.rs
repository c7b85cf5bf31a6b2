//! Work at one watched database that excludes other such work (reading it whole, beginning anew, a snapshot): a ticket of which
//! there is one.
//!
//! * I-WORK-1: the ticket goes back however the work ends: done, failed, by a panic, or because no thread could be started for it.
//! * I-WORK-2: a panic of the work shows as the database's state, in its `last_error` and to its webhooks.

use super::job::Job;
use super::watched::Watched;
use crate::base::{Error, Kind, clock, panics, thread};
use std::sync::Arc;
use std::time::Duration;

/// Stack of the threads that work.
const STACK: usize = 512 << 10;

/// The permission to work at a database, until dropped.
pub(super) struct Work(Arc<Watched>);

impl Work {
    /// The ticket, unless somebody is at work.
    pub(super) fn take(w: &Arc<Watched>, job: Job) -> Option<Work> {
        w.job.take(job).then(|| Work(w.clone()))
    }

    /// The same, waiting up to `patience` for whoever is.
    pub(super) fn take_within(w: &Arc<Watched>, job: Job, patience: Duration) -> Option<Work> {
        let end = clock::uptime() + patience;
        loop {
            if let Some(ticket) = Work::take(w, job) {
                return Some(ticket);
            }
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() {
                return None;
            }
            w.job.wait_free(left);
        }
    }

    /// It goes on with something else.
    pub(super) fn becomes(&self, job: Job) {
        self.0.job.becomes(job);
    }

    /// The database.
    pub(super) fn of(&self) -> &Arc<Watched> {
        &self.0
    }

    /// Does `work` on a thread of its own. Whether that could be started; if not, that shows in the status.
    pub(super) fn start(self, name: &str, work: impl FnOnce(Work) + Send + 'static) -> bool {
        let w = self.0.clone();
        let mine = self.0.clone();
        let started = thread::spawn(name, STACK, move || {
            if let Err(said) = panics::caught(|| work(self)) {
                mine.panicked(&said);
            }
            mine.call();
        });
        match started {
            Ok(()) => true,
            Err(e) => {
                let e = Error::new(Kind::Retry, format!("cannot start the thread {name}")).because(e);
                log::warn!("walrust: {}: {e}", w.path().display());
                w.link.update(|s| s.last_error = Some((e.kind(), e.to_string())));
                false
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.job.free();
    }
}
