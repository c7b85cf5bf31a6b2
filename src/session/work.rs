//! Work at one watched database that excludes other such work (reading it whole, beginning anew, a snapshot): a ticket of which
//! there is one.
//!
//! * I-WORK-1: the ticket goes back however the work ends: done, failed, by a panic, or because no thread could be started for it.
//! * I-WORK-2: a panic of the work shows as the database's state, in its `last_error` and to its webhooks.

use super::engine::engine;
use super::watched::Watched;
use crate::base::event::EventKind;
use crate::base::{Error, Kind, clock, panics, thread};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Stack of the threads that work.
const STACK: usize = 512 << 10;

/// The permission to work at a database, until dropped.
pub(super) struct Work(Arc<Watched>);

impl Work {
    /// The ticket, unless somebody is at work.
    pub(super) fn take(w: &Arc<Watched>) -> Option<Work> {
        (!w.busy.swap(true, Ordering::AcqRel)).then(|| Work(w.clone()))
    }

    /// The same, waiting up to `patience` for whoever is.
    pub(super) fn take_within(w: &Arc<Watched>, patience: Duration) -> Option<Work> {
        let end = clock::uptime() + patience;
        loop {
            match Work::take(w) {
                Some(ticket) => return Some(ticket),
                None if clock::uptime() >= end => return None,
                None => clock::sleep(Duration::from_millis(2)),
            }
        }
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
            engine().sealer.wake();
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
        self.0.snapshotting.store(false, Ordering::Release);
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Watched {
    /// Replication of this database ends by a panic of ours (I-SES-2).
    pub(super) fn panicked(&self, said: &str) {
        self.tracker.stop();
        let why = format!("an internal error stopped replication: {said}");
        self.fail(why.clone());
        self.tell(EventKind::UploadError, why, json!({}));
    }
}
