//! What threads of the app wait for while a thread of ours finds out whose replica it is ([`super::watched::Role::Joining`]).
//!
//! The joining thread tells the outcome of each try; whoever waits has the first outcome after the wait began. A wait makes the
//! next try come at once.

use super::engine::lock;
use super::start::Identity;
use crate::base::{Error, Kind, Result, clock};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The meeting point of one database.
#[derive(Debug, Default)]
pub(super) struct Joined {
    at: Mutex<At>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct At {
    /// How many tries have ended.
    tries: u64,
    /// How the last one ended, if one has.
    last: Option<Result<Identity, (Kind, String)>>,
    /// Somebody waits: the pause between two tries ends.
    is_hurried: bool,
}

impl Joined {
    /// It is known.
    pub(super) fn tell(&self, identity: Identity) {
        self.end_try(Ok(identity));
    }

    /// A try ended with `e`.
    pub(super) fn refuse(&self, e: Error) {
        self.end_try(Err((e.kind(), e.to_string())));
    }

    fn end_try(&self, outcome: Result<Identity, (Kind, String)>) {
        let mut at = lock(&self.at);
        at.tries += 1;
        at.last = Some(outcome);
        drop(at);
        self.changed.notify_all();
    }

    /// How many tries have ended.
    pub(super) fn tries(&self) -> u64 {
        lock(&self.at).tries
    }

    /// Ends the pause between two tries.
    pub(super) fn hurry(&self) {
        lock(&self.at).is_hurried = true;
        self.changed.notify_all();
    }

    /// Waits for the outcome of a try that ends after the call. Errors with that of the try; with the last one's, or
    /// [`Kind::Timeout`], when none ends within `patience`.
    pub(super) fn wait(&self, patience: Duration) -> Result<Identity> {
        let end = clock::uptime() + patience;
        let before = lock(&self.at).tries;
        loop {
            let at = lock(&self.at);
            let is_over = clock::uptime() >= end;
            match &at.last {
                Some(Ok(identity)) => return Ok(*identity),
                Some(Err((kind, why))) if at.tries > before || is_over => {
                    return Err(Error::new(*kind, why.clone()));
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

    /// The joining thread's pause between two tries.
    pub(super) fn pause(&self, longest: Duration) {
        let end = clock::uptime() + longest;
        loop {
            let mut at = lock(&self.at);
            if std::mem::take(&mut at.is_hurried) || clock::uptime() >= end {
                return;
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
