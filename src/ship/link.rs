//! What the sealer, the shipper and the app's threads tell one another about one database.

use super::desk::Desk;
use super::duty::{Course, Duty};
use super::status::{State, Status};
use crate::base::{Error, Kind, Result, TxId, clock};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Wakes the shipper. Each of its lanes has a bell of its own, so that none of them misses a call.
#[derive(Debug, Default)]
pub struct Bells {
    pub(super) stream: Notify,
    pub(super) snapshots: Notify,
    pub(super) upkeep: Notify,
    pub(super) keeper: Notify,
    pub(super) clerk: Notify,
    pub(super) all: Notify,
}

impl Bells {
    /// There may be something to do. A call while nobody listens is heard later.
    pub fn notify_one(&self) {
        for bell in [&self.stream, &self.snapshots, &self.upkeep, &self.keeper, &self.clerk, &self.all] {
            bell.notify_one();
        }
    }
}

/// Whether a shipper works for this link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shipper {
    /// None was started.
    #[default]
    Never,
    /// It works.
    AtWork,
    /// It works, and who started it waits no longer: it cleans up behind itself.
    LeftBehind,
    /// It has ended, and nothing of it is under way.
    Ended,
}

/// The meeting point.
pub struct Link {
    status: Mutex<Status>,
    changed: Condvar,
    /// Wakes the shipper.
    pub work: Bells,
    stop: AtomicBool,
    /// Somebody waits for the entries that the manifest lacks.
    entries_wanted: AtomicBool,
    /// How many threads of the app wait for a TXID to be durable.
    waiting: AtomicUsize,
    /// How many have ever begun to: each of them is worth a try at once.
    calls: AtomicU64,
    /// How many wait for a snapshot.
    waiting_for_snapshot: AtomicUsize,
    /// Who may remove files from the replica at the moment.
    pub(super) desk: Desk,
    lease: Mutex<LeaseWish>,
    shipper: Mutex<Shipper>,
    shipper_changed: Condvar,
}

/// What the app's side wants of the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LeaseWish {
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
            status: Mutex::default(),
            changed: Condvar::new(),
            work: Bells::default(),
            stop: AtomicBool::new(false),
            entries_wanted: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            waiting_for_snapshot: AtomicUsize::new(0),
            desk: Desk::default(),
            lease: Mutex::new(LeaseWish::Hold),
            shipper: Mutex::default(),
            shipper_changed: Condvar::new(),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// A wait that looks at the status by itself.
#[derive(Debug)]
#[must_use = "the wait is over when this is dropped"]
pub struct WaitElsewhere(Arc<Link>);

impl Drop for WaitElsewhere {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a wait for a TXID has to say at one moment.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is durable.
    Durable,
    /// It will not be, as far as this wait can tell.
    Over,
    /// Replication was stopped.
    Stopped,
    /// It may come yet.
    Wait,
}

/// Whether a wait for `txid` is over. `failures_before`: how many tries had failed when the wait began, because an error that
/// is older than the wait says nothing of the try that the wait causes.
fn verdict(s: &Status, txid: TxId, failures_before: u64, is_stopped: bool) -> Verdict {
    if s.replicated >= txid {
        return Verdict::Durable;
    }
    if is_stopped {
        return Verdict::Stopped;
    }
    let has_failed_since = s.failures != failures_before;
    match (s.state, &s.last_error) {
        (State::Fenced, _) => Verdict::Over,
        (State::Failed, _) | (_, Some((Kind::Denied, _))) if has_failed_since => Verdict::Over,
        _ => Verdict::Wait,
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

    /// How `duty` fares.
    pub fn course(&self, duty: Duty) -> Course {
        self.lock().duties.of(duty)
    }

    /// Notes how `duty` fares now, for the status and for its next try.
    pub fn set_course(&self, duty: Duty, course: Course) {
        self.update(|s| s.duties.set(duty, course));
    }

    /// Asks the shipper to end. An upload that is under way is given a moment, and then given up.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.work.notify_one();
        self.changed.notify_all();
    }

    /// Whether it was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The app has closed the database: gives the lease back, unless it was, and waits for that up to `timeout`.
    pub fn give_lease_back(&self, timeout: Duration) {
        {
            let mut wish = self.wish();
            if *wish != LeaseWish::Hold {
                return;
            }
            *wish = LeaseWish::GiveBack;
        }
        self.work.notify_one();
        let end = clock::uptime() + timeout;
        let mut s = self.lock();
        while *self.wish() == LeaseWish::GiveBack && clock::uptime() < end {
            s = self.sleep(s, end.saturating_sub(clock::uptime()));
        }
    }

    /// The app has opened it again.
    pub fn want_lease(&self) {
        let was = std::mem::replace(&mut *self.wish(), LeaseWish::Hold);
        if was == LeaseWish::GivenBack {
            self.work.keeper.notify_one();
            self.work.clerk.notify_one();
        }
    }

    pub(super) fn lease_wish(&self) -> LeaseWish {
        *self.wish()
    }

    /// Whether the app has closed the database, and the lease is, or is about to be, given back.
    pub fn is_lease_unwanted(&self) -> bool {
        self.lease_wish() != LeaseWish::Hold
    }

    pub(super) fn lease_released(&self) {
        let mut wish = self.wish();
        if *wish == LeaseWish::GiveBack {
            *wish = LeaseWish::GivenBack;
        }
        drop(wish);
        self.changed.notify_all();
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

    /// How many waits have begun: a number that has grown is worth a try at once.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Acquire)
    }

    /// Whether somebody waits for a snapshot.
    pub(super) fn is_snapshot_waited_for(&self) -> bool {
        self.waiting_for_snapshot.load(Ordering::Acquire) > 0
    }

    /// Somebody waits elsewhere for what this shipper does, until the guard is dropped: that causes a try at once, whatever pause there is,
    /// as [`Link::wait_for`] does.
    pub fn wait_elsewhere(self: &Arc<Link>) -> WaitElsewhere {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.work.notify_one();
        WaitElsewhere(self.clone())
    }

    /// Waits until everything up to `txid` is durable; the wait causes a try at once, whatever pause there is. Errors with what
    /// ended replication ([`Kind::Fenced`], [`Kind::Config`] when it was stopped), with what the store refused since the call
    /// ([`Kind::Denied`] and others that waiting does not cure), and with [`Kind::Timeout`] after `timeout`.
    pub fn wait_for(&self, txid: TxId, timeout: Duration) -> Result<()> {
        let before = {
            let s = self.lock();
            if s.replicated >= txid {
                return Ok(());
            }
            s.failures
        };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.work.notify_one();
        let waited = self.wait_until_durable(txid, before, timeout);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        waited
    }

    /// An error ([`Kind::Fenced`]) when another writer has the replica: nothing of ours counts there any more, whatever it has.
    pub fn refuse_fenced(&self) -> Result<()> {
        let s = self.lock();
        if s.state == State::Fenced { Err(stopped(&s)) } else { Ok(()) }
    }

    fn wait_until_durable(&self, txid: TxId, before: u64, timeout: Duration) -> Result<()> {
        let end = clock::uptime() + timeout;
        let mut s = self.lock();
        loop {
            match verdict(&s, txid, before, self.is_stopped()) {
                Verdict::Durable => return Ok(()),
                Verdict::Over => return Err(stopped(&s)),
                Verdict::Stopped => {
                    return Err(Error::new(
                        Kind::Config,
                        format!(
                            "replication was stopped before TXID {txid} was in the replica, which has {}",
                            s.replicated
                        ),
                    ));
                }
                Verdict::Wait => {}
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
            s = self.sleep(s, end - now);
        }
    }

    /// Whether somebody wants the entries that the manifest lacks at once.
    pub(super) fn are_entries_wanted(&self) -> bool {
        self.entries_wanted.load(Ordering::Acquire)
    }

    /// Has the manifest name what was uploaded, now and not later, and waits for that, `patience` at most. Whether it names all.
    pub fn have_all_named(&self, patience: Duration) -> bool {
        let end = clock::uptime() + patience;
        let mut s = self.lock();
        while s.unnamed > 0 && !self.is_stopped() && !self.is_lease_unwanted() && s.state != State::Fenced {
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() {
                break;
            }
            self.entries_wanted.store(true, Ordering::Release);
            self.work.clerk.notify_one();
            s = self.sleep(s, left);
        }
        self.entries_wanted.store(false, Ordering::Release);
        s.unnamed == 0
    }

    /// Waits until a snapshot of `txid` or later is in the replica; the wait causes a try at once. Errors with [`Kind::Config`]
    /// when replication was stopped, with [`Kind::Fenced`], with what the store refused since the call ([`Kind::Denied`] and
    /// others that waiting does not cure), and with [`Kind::Timeout`] after `timeout`.
    pub fn wait_for_snapshot(&self, txid: TxId, timeout: Duration) -> Result<()> {
        let end = clock::uptime() + timeout;
        self.waiting_for_snapshot.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.work.notify_one();
        let mut s = self.lock();
        let before = (s.failures, s.duties.of(Duty::Snapshot).failures());
        let waited = loop {
            if s.snapshot >= txid {
                break Ok(());
            }
            if self.is_stopped() {
                break Err(Error::new(Kind::Config, "the database is not watched any more"));
            }
            let passes = |k: Kind| matches!(k, Kind::Retry | Kind::Timeout);
            match (&s.last_error, s.duties.of(Duty::Snapshot)) {
                _ if s.state == State::Fenced => break Err(stopped(&s)),
                (Some((Kind::Denied, e)), _) if s.failures != before.0 => {
                    break Err(Error::new(Kind::Denied, e.clone()));
                }
                (_, Course::Resting { failures, kind, error, .. })
                    if failures != before.1 && !passes(kind) =>
                {
                    break Err(Error::new(kind, error));
                }
                _ => {}
            }
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() {
                let why = s.trouble().map(|e| format!(" (last error: {e})")).unwrap_or_default();
                break Err(Error::new(
                    Kind::Timeout,
                    format!("the snapshot of TXID {txid} is not in the replica yet{why}"),
                ));
            }
            s = self.sleep(s, left);
        };
        drop(s);
        self.waiting_for_snapshot.fetch_sub(1, Ordering::AcqRel);
        waited
    }

    /// Sleeps until something changes, `longest` at most.
    fn sleep<'a>(&'a self, s: MutexGuard<'a, Status>, longest: Duration) -> MutexGuard<'a, Status> {
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            drop(s);
            w.sleep(longest.min(Duration::from_millis(10)));
            return self.lock();
        }
        // (What is changed beside the status, without its lock, is seen by the next look.)
        let look = longest.min(Duration::from_millis(200));
        self.changed.wait_timeout(s, look).unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shipper(&self) -> MutexGuard<'_, Shipper> {
        self.shipper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shipper begins.
    pub(super) fn begins(&self) {
        *self.shipper() = Shipper::AtWork;
    }

    /// It has ended, and nothing of it is under way. Whether nobody waits for that any more, so that the shipper has to give
    /// away what it was lent.
    pub(super) fn ends(&self) -> bool {
        let was = std::mem::replace(&mut *self.shipper(), Shipper::Ended);
        self.shipper_changed.notify_all();
        was == Shipper::LeftBehind
    }

    /// Whether no shipper works for this link, or none any more.
    pub fn has_ended(&self) -> bool {
        matches!(*self.shipper(), Shipper::Never | Shipper::Ended)
    }

    /// Waits until the shipper, which was stopped, has ended, `patience` at most. Whether it has. If not, it is on its own from
    /// then on: it does at its end what its `Plan::on_end` says.
    pub fn join_or_leave(&self, patience: Duration) -> bool {
        let end = clock::uptime() + patience;
        let mut at = self.shipper();
        loop {
            match *at {
                Shipper::Never | Shipper::Ended => return true,
                Shipper::LeftBehind => return false,
                Shipper::AtWork => {}
            }
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() {
                *at = Shipper::LeftBehind;
                return false;
            }
            #[cfg(feature = "sim")]
            if let Some(w) = crate::base::sim::world() {
                drop(at);
                w.sleep(left.min(Duration::from_millis(1)));
                at = self.shipper();
                continue;
            }
            at = self.shipper_changed.wait_timeout(at, left).unwrap_or_else(PoisonError::into_inner).0;
        }
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
            let snapshots = threads.spawn(|| link.wait_for_snapshot(TxId(1), Duration::from_secs(60)));
            while !link.is_waited_for() || !link.is_snapshot_waited_for() {
                std::thread::yield_now();
            }
            link.stop();
            let e = waits.join().unwrap().unwrap_err();
            assert!(e.to_string().contains("stopped before TXID"), "{e}");
            assert_eq!(snapshots.join().unwrap().unwrap_err().kind(), Kind::Config);
        });
        assert!(clock::uptime() - began < Duration::from_secs(10));
        link.update(|s| s.replicated = TxId(1));
        link.wait_for(TxId(1), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_wait_hears_of_what_happens_after_it_began() {
        let status = |state, failures, error: Option<Kind>| Status {
            state,
            failures,
            replicated: TxId(4),
            last_error: error.map(|k| (k, "x".to_string())),
            ..Status::default()
        };
        let denied = Some(Kind::Denied);
        for (state, failures, error, is_stopped, want) in [
            (State::Streaming, 3, None, false, Verdict::Wait),
            (State::Fenced, 3, Some(Kind::Fenced), false, Verdict::Over),
            (State::Fenced, 3, None, true, Verdict::Stopped),
            // An error from before the wait is not the answer to it, in whatever state.
            (State::Failed, 3, denied, false, Verdict::Wait),
            (State::Paused, 3, denied, false, Verdict::Wait),
            (State::Failed, 4, denied, false, Verdict::Over),
            (State::Failed, 4, Some(Kind::Io), false, Verdict::Over),
            (State::Paused, 4, denied, false, Verdict::Over),
            (State::Paused, 4, Some(Kind::Retry), false, Verdict::Wait),
            (State::CatchingUp, 9, Some(Kind::Retry), false, Verdict::Wait),
        ] {
            let s = status(state, failures, error);
            assert_eq!(verdict(&s, TxId(5), 3, is_stopped), want, "{s:?}");
            assert_eq!(verdict(&s, TxId(4), 3, is_stopped), Verdict::Durable, "{s:?}");
        }
    }

    #[test]
    fn a_wait_for_a_snapshot_ends_with_its_refusal_and_not_with_the_streams_old_error() {
        let link = Link::default();
        let retry = crate::store::Retry::BRIEF;
        link.update(|s| s.last_error = Some((Kind::Denied, "long ago".into())));
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| link.wait_for_snapshot(TxId(3), Duration::from_secs(60)));
            while !link.is_snapshot_waited_for() {
                std::thread::yield_now();
            }
            clock::sleep(Duration::from_millis(20));
            let passing = Error::new(Kind::Retry, "in a moment");
            link.set_course(Duty::Snapshot, Course::Well.failed(&passing, Duration::ZERO, &retry, 0));
            clock::sleep(Duration::from_millis(20));
            let refused = Error::new(Kind::Denied, "no snapshots here");
            link.set_course(Duty::Snapshot, Course::Well.failed(&refused, Duration::ZERO, &retry, 0));
            let e = waits.join().unwrap().unwrap_err();
            assert_eq!((e.kind(), e.to_string()), (Kind::Denied, "no snapshots here".into()));
        });
        link.update(|s| s.snapshot = TxId(3));
        link.wait_for_snapshot(TxId(3), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_shipper_that_is_left_behind_learns_of_it_at_its_end() {
        let link = Link::default();
        assert!(link.has_ended() && link.join_or_leave(Duration::ZERO), "none was started");
        link.begins();
        assert!(!link.has_ended());
        std::thread::scope(|threads| {
            let joins = threads.spawn(|| link.join_or_leave(Duration::from_secs(60)));
            assert!(!link.ends(), "somebody waits for it");
            assert!(joins.join().unwrap());
        });
        link.begins();
        assert!(!link.join_or_leave(Duration::from_millis(5)));
        assert!(!link.has_ended());
        assert!(link.ends(), "nobody waits any more");
        assert!(link.join_or_leave(Duration::ZERO));
    }
}
