//! One followed file: what the poll of it decides, and what its status shows.

use super::names::{Begun, Here, IMAGE, PART, load, millis, sync_dir};
use crate::base::{Error, Result, Timestamp, TxId, beside, clock, lock, panics};
use crate::replica::follow::{self, Feed, Look, Next, Place, Record};
use crate::replica::{self, Overwrite, Point, RestoreOptions, Restored};
use crate::ship::State;
use crate::spool::LockFile;
use crate::store::{Store, block_on};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Quiet or single-step polls between two looks at the whole replica, and the least time between them.
const POLLS_PER_LOOK: u32 = 12;
const LEAST_LOOK: Duration = Duration::from_secs(1);
/// Single steps after which a merged file may lead further at once.
const MANY_STEPS: u32 = 16;
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a poll may take until the store is said to hang.
const POLL_TAKES: Duration = Duration::from_secs(2);
/// How long the status shows that the file was rebuilt.
const SHOW_NOTE: Duration = Duration::from_secs(3600);

/// A row of `walrust_status`.
#[derive(Clone, Debug)]
pub struct FollowerRow {
    /// The file.
    pub path: PathBuf,
    /// URL of the replica.
    pub replica: String,
    /// `streaming`, `catching up` or `failed`.
    pub state: State,
    /// TXID in the file.
    pub txid: TxId,
    /// Newest TXID known to be in the replica.
    pub newest: TxId,
    /// Time since the file was known to be even with the replica.
    pub lag: Duration,
    /// Bytes of files known to be missing here.
    pub pending_bytes: u64,
    /// When the commit that the file shows was captured at the source.
    pub time: Option<Timestamp>,
    /// What went wrong last; what was rebuilt and why.
    pub last_error: Option<String>,
}

/// One followed file.
pub struct Follower {
    pub(super) path: PathBuf,
    pub(super) replica: String,
    pub(super) store: Store,
    pub(super) lock: Arc<LockFile>,
    pub(super) interval_ms: AtomicU64,
    pub(super) view: Mutex<View>,
    pub(super) record: Mutex<Option<Record>>,
    pub(super) at_work: AtomicBool,
    pub(super) stopped: AtomicBool,
    /// Tells that the replica holds damaged bytes.
    on_corrupt: fn(&str, &Error),
}

pub(super) struct View {
    pub(super) at: Option<Place>,
    pub(super) newest: TxId,
    pub(super) pending: u64,
    pub(super) state: State,
    pub(super) is_even: bool,
    pub(super) even_at: Timestamp,
    pub(super) error: Option<String>,
    /// What was rebuilt and why, and until which uptime it is shown.
    pub(super) note: Option<(String, Duration)>,
    pub(super) failures: u32,
    /// Uptime of the next poll.
    pub(super) due: Duration,
    /// Uptime from which on the next poll looks at the whole replica.
    pub(super) look_at: Duration,
}

/// What a look at the whole replica came to.
enum Looked {
    /// What leads on was applied, if there is anything.
    WentOn,
    /// Nothing there leads on from the file: why.
    NothingLeadsOn(String),
    /// A file is listed, and is not there.
    Missing(Error),
}

impl Follower {
    pub(super) fn new(
        path: PathBuf,
        replica: String,
        store: Store,
        lock: Arc<LockFile>,
        (interval, on_corrupt): (Duration, fn(&str, &Error)),
    ) -> Follower {
        let record = load(&path).filter(|r| r.replica == replica);
        let view = View {
            at: None,
            newest: TxId::ZERO,
            pending: 0,
            state: State::CatchingUp,
            is_even: false,
            even_at: clock::now(),
            error: None,
            note: None,
            failures: 0,
            due: Duration::ZERO,
            look_at: Duration::ZERO,
        };
        Follower {
            path,
            replica,
            store,
            lock,
            interval_ms: AtomicU64::new(millis(interval)),
            view: Mutex::new(view),
            record: Mutex::new(record),
            at_work: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            on_corrupt,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// URL of the replica.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// The TXID in the file.
    pub fn txid(&self) -> TxId {
        lock(&self.view).at.as_ref().map(|p| p.txid).unwrap_or_default()
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Ordering::Relaxed))
    }

    pub(super) fn row(&self) -> FollowerRow {
        let v = lock(&self.view);
        let lag = lag(v.is_even, clock::now().since(v.even_at), self.interval());
        FollowerRow {
            path: self.path.clone(),
            replica: self.replica.clone(),
            // (Nothing failed yet, and nothing is known any more.)
            state: if v.state == State::Streaming && !lag.is_zero() { State::CatchingUp } else { v.state },
            txid: v.at.as_ref().map(|p| p.txid).unwrap_or_default(),
            newest: v.newest,
            lag,
            pending_bytes: v.pending,
            time: v.at.as_ref().map(|p| p.time),
            last_error: v
                .error
                .clone()
                .or_else(|| v.note.as_ref().filter(|n| n.1 > clock::uptime()).map(|n| n.0.clone())),
        }
    }

    /// On the caller's thread, before the first poll: where the file stands, or a first copy.
    pub(super) fn begin(&self, overwrite: Overwrite) -> Result<Begun> {
        match self.here(overwrite)? {
            Here::At(place) => {
                // A first copy whose last step failed, the sync of its name, is found here by the next try.
                sync_dir(&self.path)?;
                let mut v = lock(&self.view);
                (v.even_at, v.newest) = (place.time, place.txid);
                v.at = Some(place);
                Ok(Begun::Continued)
            }
            Here::Absent | Here::Foreign(_) => {
                let new = beside(&self.path, IMAGE);
                let options = rebuild_options();
                let restored = block_on(replica::restore(&self.store, Point::Latest, &new, &options))?;
                self.put(&new, &self.told(restored)?)?;
                Ok(Begun::Copied)
            }
        }
    }

    /// One poll and what follows from it. Never fails: the status tells.
    pub(super) async fn turn(self: Arc<Self>) {
        self.at_work.store(true, Ordering::SeqCst);
        if !self.is_stopped() {
            match panics::caught_async(self.poll()).await {
                Ok(Ok(())) => self.succeeded(),
                Ok(Err(e)) => self.failed(&e),
                Err(said) => self.failed(&panics::error(&said)),
            }
        }
        self.at_work.store(false, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn succeeded(&self) {
        let mut v = lock(&self.view);
        let newest = v.newest;
        v.is_even = v.at.as_ref().is_some_and(|p| p.txid >= newest);
        v.state = if v.is_even { State::Streaming } else { State::CatchingUp };
        if v.is_even {
            (v.even_at, v.pending) = (clock::now(), 0);
        }
        (v.error, v.failures) = (None, 0);
        v.due = clock::uptime() + self.interval();
    }

    pub(super) fn failed(&self, e: &Error) {
        log::warn!("walrust: {}: {e}", self.path.display());
        let mut v = lock(&self.view);
        v.failures = v.failures.saturating_add(1);
        v.is_even = false;
        v.state = if e.is_retry() { State::CatchingUp } else { State::Failed };
        v.error = Some(e.to_string());
        let wait = self.interval().saturating_mul(1 << v.failures.min(10)) / 2;
        v.due = clock::uptime() + wait.min(LONGEST_WAIT.max(self.interval()));
        // After an outage a merged file may lead further at once.
        v.look_at = Duration::ZERO;
    }

    /// Brings the file up to the replica.
    async fn poll(&self) -> Result<()> {
        let (mut steps, mut missed_at) = (0, None);
        loop {
            let at = match self.here(Overwrite::Refuse)? {
                Here::At(place) => place,
                Here::Absent => return self.rebuild(format!("{} was removed", self.path.display())).await,
                Here::Foreign(why) => return self.rebuild(why).await,
            };
            lock(&self.view).at = Some(at.clone());
            let look_due = steps >= MANY_STEPS || lock(&self.view).look_at <= clock::uptime();
            let went_on = if look_due {
                steps = 0;
                match self.look(&at).await? {
                    Looked::NothingLeadsOn(why) => return self.rebuild(why).await,
                    Looked::WentOn => true,
                    // It was merged away meanwhile, or the store is not what it says: a second look tells.
                    Looked::Missing(e) if missed_at == Some(at.txid) => return Err(e),
                    Looked::Missing(_) => {
                        missed_at = Some(at.txid);
                        true
                    }
                }
            } else {
                steps += 1;
                let part = beside(&self.path, PART);
                match follow::fetch_next(&self.store, at.txid, part).await? {
                    Some(file) => match self.apply(&file, &at)? {
                        Ok(()) => true,
                        Err(why) => return self.rebuild(why).await,
                    },
                    None => false,
                }
            };
            if !went_on || self.is_stopped() {
                return Ok(());
            }
        }
    }

    /// Looks at the whole replica and applies what leads on. Errors with the store's, and those of writing the file.
    async fn look(&self, at: &Place) -> Result<Looked> {
        let look: Look = follow::look(&self.store, at).await?;
        let every = self.interval().saturating_mul(POLLS_PER_LOOK).max(LEAST_LOOK);
        {
            let mut v = lock(&self.view);
            (v.newest, v.pending, v.look_at) = (look.newest, look.bytes, clock::uptime() + every);
        }
        if let Next::Rebuild(why) = &look.next {
            return Ok(Looked::NothingLeadsOn(why.clone()));
        }
        let mut feed = Feed::new(look, beside(&self.path, PART));
        let mut at = at.clone();
        while let Some(file) = feed.next().await {
            let file = match file {
                Ok(f) => f,
                Err(e) if e.is_missing() => {
                    lock(&self.view).look_at = Duration::ZERO;
                    return Ok(Looked::Missing(e));
                }
                Err(e) => return Err(e),
            };
            if let Err(why) = self.apply(&file, &at)? {
                return Ok(Looked::NothingLeadsOn(why));
            }
            match lock(&self.view).at.clone() {
                Some(next) if next.txid > at.txid && !self.is_stopped() => at = next,
                _ => return Ok(Looked::WentOn),
            }
        }
        Ok(Looked::WentOn)
    }

    /// Takes a full copy and makes the file equal to it.
    async fn rebuild(&self, why: String) -> Result<()> {
        log::warn!("walrust: {}: {why}; taking a full copy", self.path.display());
        {
            let mut v = lock(&self.view);
            (v.state, v.is_even) = (State::CatchingUp, false);
            let text = format!("{why}; the file was rebuilt from a full copy");
            v.note = Some((text, clock::uptime() + SHOW_NOTE));
        }
        let new = beside(&self.path, IMAGE);
        let restored = replica::restore(&self.store, Point::Latest, &new, &rebuild_options()).await;
        let restored = self.told(restored).map_err(|e| e.context(&why))?;
        self.put(&new, &restored)
    }

    /// A damaged replica is told to the webhooks.
    fn told(&self, restored: Result<Restored>) -> Result<Restored> {
        if let Err(e) = &restored
            && e.is_corrupt()
        {
            (self.on_corrupt)(&self.replica, e);
        }
        restored
    }
}

/// How far the file is known to be behind: not at all if it was even with the replica at the last poll, unless the next one is long
/// overdue. `even_ago`: since it was known to be even; `interval`: between polls.
fn lag(is_even: bool, even_ago: Duration, interval: Duration) -> Duration {
    let is_overdue = even_ago > interval * 2 + POLL_TAKES;
    if is_even && !is_overdue { Duration::ZERO } else { even_ago }
}

fn rebuild_options() -> RestoreOptions<'static> {
    RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_grows_while_a_poll_hangs() {
        let s = Duration::from_secs;
        for (is_even, even_ago, interval, is) in
            [(true, 0, 5, 0), (true, 12, 5, 0), (true, 13, 5, 13), (false, 1, 5, 1), (true, 3, 0, 3)]
        {
            assert_eq!(lag(is_even, s(even_ago), s(interval)), s(is), "{is_even} {even_ago} s");
        }
    }
}
