//! What the sealer, the shipper and the app's threads tell one another about one database.

use super::lend::Desk;
use crate::base::{Error, Kind, Result, Timestamp, TxId, clock};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What `walrust_status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Commits leave as they come.
    Streaming,
    /// There is a backlog.
    CatchingUp,
    /// The database is being read whole.
    Snapshotting,
    /// The circuit breaker is open.
    Paused,
    /// Another process of this machine ships.
    Standby,
    /// Another machine owns the replica.
    Fenced,
    /// Stopped by an error that waiting does not cure.
    Failed,
}

impl State {
    /// As `walrust_status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Streaming => "streaming",
            State::CatchingUp => "catching up",
            State::Snapshotting => "snapshotting",
            State::Paused => "paused",
            State::Standby => "standby",
            State::Fenced => "fenced",
            State::Failed => "failed",
        }
    }
}

/// A copy of what is known at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Set by the shipper; the session overlays standby and snapshotting.
    pub state: State,
    /// Everything up to here is durable in the replica.
    pub replicated: TxId,
    /// The newest snapshot there.
    pub snapshot: TxId,
    /// When the last upload was acknowledged.
    pub last_upload: Option<Timestamp>,
    /// The newest error not followed by a success.
    pub last_error: Option<(Kind, String)>,
    /// How many tries have failed.
    pub failures: u64,
    /// Breaker state in words.
    pub breaker: &'static str,
    /// An upload is under way.
    pub uploading: bool,
    /// Uptime at which the last upload started.
    pub last_start: Option<Duration>,
    /// What the app committed first and is not yet durable: for the lag.
    pub oldest_waiting: Option<Timestamp>,
}

/// The meeting point.
pub struct Link {
    status: Mutex<Status>,
    changed: Condvar,
    /// Wakes the shipper.
    pub work: Notify,
    stop: AtomicBool,
    /// How many threads of the app wait for a TXID to be durable.
    waiting: AtomicUsize,
    /// Who writes the manifest at the moment.
    pub(super) desk: Desk,
    lease: Mutex<LeaseWish>,
}

/// What the app's side wants of the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LeaseWish {
    /// To hold it.
    #[default]
    Hold,
    /// To give it back once all is shipped.
    GiveBack,
    /// That was done.
    GivenBack,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            status: Mutex::new(Status {
                state: State::CatchingUp,
                replicated: TxId::ZERO,
                snapshot: TxId::ZERO,
                last_upload: None,
                last_error: None,
                failures: 0,
                breaker: "closed",
                uploading: false,
                last_start: None,
                oldest_waiting: None,
            }),
            changed: Condvar::new(),
            work: Notify::new(),
            stop: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            lease: Mutex::new(LeaseWish::Hold),
            desk: Desk::default(),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Link {
    /// A copy of the status.
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Changes the status and wakes whoever waits for it.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Asks the shipper to end after the file it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.work.notify_one();
        self.changed.notify_all();
    }

    /// Whether it was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The app has closed the database: gives the lease back, and waits for that up to `timeout`.
    pub fn give_lease_back(&self, timeout: Duration) {
        *self.wish() = LeaseWish::GiveBack;
        self.work.notify_one();
        let end = clock::uptime() + timeout;
        while *self.wish() == LeaseWish::GiveBack && clock::uptime() < end {
            clock::sleep(Duration::from_millis(1));
        }
    }

    /// The app has opened it again.
    pub fn want_lease(&self) {
        *self.wish() = LeaseWish::Hold;
    }

    pub(super) fn is_lease_unwanted(&self) -> bool {
        *self.wish() != LeaseWish::Hold
    }

    pub(super) fn lease_released(&self) {
        let mut wish = self.wish();
        if *wish == LeaseWish::GiveBack {
            *wish = LeaseWish::GivenBack;
        }
    }

    fn wish(&self) -> MutexGuard<'_, LeaseWish> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next upload may start: none is under way and `interval` has passed since the last began.
    pub fn slot_open(&self, interval: Duration) -> bool {
        let s = self.lock();
        !s.uploading && s.last_start.is_none_or(|t| clock::uptime().saturating_sub(t) >= interval)
    }

    /// When the slot opens, if it is not open: for the sealer's timer.
    pub fn slot_in(&self, interval: Duration) -> Duration {
        let s = self.lock();
        match s.last_start {
            Some(t) => interval.saturating_sub(clock::uptime().saturating_sub(t)),
            None => Duration::ZERO,
        }
    }

    /// Whether a thread of the app waits for the replica at this moment: worth a try while uploads pause.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until everything up to `txid` is durable. Errors at once when replication has stopped, with
    /// [`Kind::Timeout`] after `timeout`. Uploads that pause are tried meanwhile.
    pub fn wait_for(&self, txid: TxId, timeout: Duration) -> Result<()> {
        if self.lock().replicated >= txid {
            return Ok(());
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.work.notify_one();
        let waited = self.wait_until_durable(txid, timeout);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        waited
    }

    /// An error when another writer has the replica: nothing of ours counts there any more, whatever it has.
    pub fn refuse_fenced(&self) -> Result<()> {
        let s = self.lock();
        if s.state == State::Fenced { Err(stopped(&s)) } else { Ok(()) }
    }

    fn wait_until_durable(&self, txid: TxId, timeout: Duration) -> Result<()> {
        let end = clock::uptime() + timeout;
        let mut s = self.lock();
        let before = s.failures;
        loop {
            if s.replicated >= txid {
                return Ok(());
            }
            if let State::Fenced | State::Failed = s.state {
                return Err(stopped(&s));
            }
            if self.is_stopped() {
                return Err(Error::new(
                    Kind::Config,
                    format!(
                        "replication was stopped before TXID {txid} was in the replica, which has {}",
                        s.replicated
                    ),
                ));
            }
            // While uploads pause the error is an old one: this wait has them tried.
            if let Some((Kind::Denied, _)) = s.last_error
                && (s.state != State::Paused || s.failures != before)
            {
                return Err(stopped(&s));
            }
            let now = clock::uptime();
            if now >= end {
                let why =
                    s.last_error.as_ref().map(|(_, e)| format!(" (last error: {e})")).unwrap_or_default();
                return Err(Error::new(
                    Kind::Timeout,
                    format!(
                        "TXID {txid} is not in the replica after {}, which has {}{why}",
                        humantime::format_duration(round(timeout)),
                        s.replicated
                    ),
                ));
            }
            #[cfg(feature = "sim")]
            if let Some(w) = crate::base::sim::world() {
                drop(s);
                w.sleep((end - now).min(Duration::from_millis(10)));
                s = self.lock();
                continue;
            }
            s = self
                .changed
                .wait_timeout(s, (end - now).min(Duration::from_millis(200)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopped(s: &Status) -> Error {
    match &s.last_error {
        Some((kind, e)) => Error::new(*kind, format!("replication is {}: {e}", s.state.as_str())),
        None => Error::new(Kind::Fenced, format!("replication is {}", s.state.as_str())),
    }
}

fn round(d: Duration) -> Duration {
    Duration::from_millis(d.as_millis().min(u128::from(u64::MAX)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_replication_is_stopped() {
        let link = Link::default();
        let began = clock::uptime();
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| link.wait_for(TxId(1), Duration::from_secs(60)));
            while !link.is_waited_for() {
                std::thread::yield_now();
            }
            link.stop();
            let e = waits.join().unwrap().unwrap_err();
            assert!(e.to_string().contains("stopped before TXID"), "{e}");
        });
        assert!(clock::uptime() - began < Duration::from_secs(10));
        link.update(|s| s.replicated = TxId(1));
        link.wait_for(TxId(1), Duration::ZERO).unwrap();
    }
}
