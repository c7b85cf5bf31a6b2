//! One watched database.

use super::access::{Access, Held, is_in_rollback_mode};
use super::care::Care;
use super::engine::{Engine, engine, lock};
use super::entry::Entry;
use super::joined::Joined;
use super::observe;
use crate::base::event::EventKind;
use crate::base::{Error, Kind, Lineage, Result, Timestamp, TxId, clock};
use crate::capture::{Database, Noticed, SealError, Sync, Tracker};
use crate::config::{Settings, replica_key};
use crate::ltx::Packing;
use crate::metrics::DatabaseMetrics;
use crate::notify::Notifier;
use crate::ship::{self, Link, State};
use crate::spool::{FileStamp, Position, Spool};
use crate::store::{BreakerState, Store};
use crate::wal::{IndexHeader, Salt};
use serde_json::json;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How old a file's time must be, in ms, to tell a write from an earlier one: the kernel's clock of files ticks every 1 to
/// 10 ms.
const COARSE: i64 = 100;

/// How long sealing may fail before that is the database's state.
const SPOOL_PATIENCE: Duration = Duration::from_secs(1);

/// What this process does for the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has the right to ship among the processes of this machine, and finds out whose replica it is. Commits are followed
    /// meanwhile if the spool knows the place.
    Joining,
    /// It ships.
    Shipper,
    /// Another process of this machine ships.
    Standby,
}

/// How long a sync may wait for a database to be read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// As long as its caller has time.
    Deadline,
    /// Not past the app's last close: nobody reads it then.
    Closed,
}

/// One watched database in this process.
pub struct Watched {
    path: PathBuf,
    replica: String,
    /// What [`super::whose::same_replica`] compares: finding it out costs a look at the file system.
    pub(super) replica_key: String,
    /// The settings in force.
    pub settings: Settings,
    /// The replica.
    pub store: Store,
    /// The local queue.
    pub spool: Arc<Spool>,
    /// Capture.
    pub tracker: Tracker,
    /// The shipper's side.
    pub link: Arc<Link>,
    pub(super) entry: Arc<Entry>,
    pub(super) role: Mutex<Role>,
    /// What waits while the role is [`Role::Joining`].
    pub(super) joined: Joined,
    /// Something was noticed since the sealer last looked.
    pub(super) dirty: AtomicBool,
    /// Something waits for the upload slot.
    pub(super) waits: AtomicBool,
    /// `spool_limit` was reached: nothing is sealed until what the spool holds has left, and then all begins anew.
    pub(super) full: AtomicBool,
    /// Seal now, whatever the interval: a reset or checkpoint waits.
    pub(super) hurried: AtomicBool,
    /// A resync or snapshot thread is at work.
    pub(super) busy: AtomicBool,
    /// What is being read whole, for the state.
    pub(super) snapshotting: AtomicBool,
    /// What keeps commits from being sealed into the spool, since which uptime, and whether that was told.
    spool_failure: Mutex<Option<SpoolFailure>>,
    /// What the file was, between two checkpoints, at the last look.
    at_rest: Mutex<Option<((Salt, u32), FileStamp)>>,
    /// The app has left WAL mode: what it commits is not followed.
    pub(super) not_wal: AtomicBool,
    /// Uptime in ms of the last look at things that are not looked at on every commit.
    pub(super) looked: AtomicU64,
    /// How many looks at it, closed, have found nothing.
    pub(super) vain: AtomicU32,
    /// The next look is to be a full one, however short ago the last was.
    pub(super) look_fully: AtomicBool,
    pub(super) waiting: Mutex<Waiting>,
    pub(super) failure: Mutex<Option<String>>,
    /// Uptime in ms of the last scheduled snapshot attempt, or of the watch's start.
    pub(super) snapshot_at: AtomicU64,
    /// Whether there was such an attempt.
    pub(super) snapshot_tried: AtomicBool,
    /// Since when the WAL has not gone on from the position (uptime in ms, 0 = it does).
    pub(super) astray_since: AtomicU64,
    /// Counters and gauges.
    pub metrics: DatabaseMetrics,
    /// Its webhooks; `None` without any.
    pub(super) notifier: Option<Notifier>,
    /// Validation and retention.
    pub(super) care: Care,
    /// Configured, not asked for by an SQL call, which goes before it.
    pub(super) automatic: AtomicBool,
    /// What this process shipped is in the replica, and the spool was lost: it may begin anew over that.
    pub(super) reclaims: AtomicBool,
    /// Since when the spool has been gone (uptime in ms, 0 = it is there).
    pub(super) gone_since: AtomicU64,
    /// When it could not be read anew for a connection that has it for itself, in milliseconds of uptime; or 0.
    held_failed: AtomicU64,
    /// What the last look through a handle of our own found, and of which WAL file.
    own_look: Mutex<Option<(FileStamp, Timestamp, IndexHeader)>>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("path", &self.path)
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct SpoolFailure {
    why: String,
    since: Duration,
    told: bool,
    /// The process is short of something: nothing is wrong with the spool.
    is_shortage: bool,
}

/// When commits that are not durable yet were noticed: for the lag.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The first of each TXID that is cut, oldest first.
    cut: VecDeque<(TxId, Timestamp)>,
    /// The first since the last cut.
    open: Option<Timestamp>,
    /// A standby's: the newest TXID at its last look.
    looked: TxId,
}

impl Waiting {
    pub(super) fn commit(&mut self, now: Timestamp) {
        self.open.get_or_insert(now);
    }

    pub(super) fn cut(&mut self, txid: TxId) {
        if let Some(t) = self.open.take() {
            self.cut.push_back((txid, t));
        }
    }

    /// The oldest that is not in the replica, which has everything up to `replicated`.
    fn since(&mut self, replicated: TxId) -> Option<Timestamp> {
        while self.cut.front().is_some_and(|(t, _)| *t <= replicated) {
            self.cut.pop_front();
        }
        self.cut.front().map(|(_, t)| *t).or(self.open)
    }
}

/// A row of `walrust_status`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Path of the database.
    pub database: PathBuf,
    /// URL of the replica.
    pub replica: String,
    /// See surface.
    pub state: State,
    /// Newest TXID cut.
    pub txid: TxId,
    /// Newest TXID up to which all is durable.
    pub replicated: TxId,
    /// Age of the oldest commit that is not durable.
    pub lag: Duration,
    /// Bytes sealed or in the WAL and not yet durable.
    pub pending_bytes: u64,
    /// Size of the WAL file.
    pub wal_bytes: u64,
    /// Size of the spool.
    pub spool_bytes: u64,
    /// The breaker's state.
    pub breaker: BreakerState,
    /// When the last upload was acknowledged.
    pub last_upload: Option<Timestamp>,
    /// The newest error not followed by a success.
    pub last_error: Option<String>,
}

/// Whether the replica, which has everything up to `replicated`, has all that is sealed.
fn is_shipped(position: Option<&Position>, replicated: TxId) -> bool {
    position.is_some_and(|p| p.pieces == 0 && p.txid <= replicated)
}

/// How long the end of a watch waits for its shipper's.
const SHIPPER_ENDS: Duration = Duration::from_secs(3);

const NOT_WAL: &str =
    "the database has left WAL mode, so what is committed is not replicated: set PRAGMA journal_mode=WAL";
pub(super) const REPLACED: &str = "the database file was replaced or deleted, and the connections of this process have the old one: open it again";

pub(super) fn ended() -> Error {
    Error::new(Kind::Config, "the database is not watched any more")
}

impl Watched {
    pub(super) fn new(
        path: &Path,
        settings: Settings,
        store: Store,
        spool: Arc<Spool>,
        role: Role,
    ) -> Arc<Watched> {
        let entry = engine().entry(path);
        // The file that this watch begins with: a restore over it, between two watches, is no replacement under it.
        entry.note_file();
        let db = Arc::new(Access::new(path));
        let tracker = Tracker::new(path, spool.clone(), db, settings.spool_limit.0);
        let hooks = settings.webhooks.clone();
        let notifier = (!hooks.is_empty()).then(|| Notifier::new(hooks));
        Arc::new(Watched {
            path: path.to_path_buf(),
            replica: store.url().to_string(),
            replica_key: replica_key(&store.url().to_string()),
            settings,
            store,
            spool,
            tracker,
            link: Arc::new(Link::default()),
            entry,
            role: Mutex::new(role),
            joined: Joined::default(),
            dirty: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            full: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            snapshotting: AtomicBool::new(false),
            spool_failure: Mutex::new(None),
            at_rest: Mutex::new(None),
            not_wal: AtomicBool::new(false),
            looked: AtomicU64::new(0),
            vain: AtomicU32::new(0),
            look_fully: AtomicBool::new(true),
            waiting: Mutex::new(Waiting::default()),
            failure: Mutex::new(None),
            snapshot_at: AtomicU64::new(clock::uptime().as_millis() as u64),
            snapshot_tried: AtomicBool::new(false),
            astray_since: AtomicU64::new(0),
            metrics: engine().metrics().database(&observe::series(path)),
            notifier,
            care: Care::default(),
            automatic: AtomicBool::new(false),
            reclaims: AtomicBool::new(false),
            gone_since: AtomicU64::new(0),
            held_failed: AtomicU64::new(0),
            own_look: Mutex::new(None),
        })
    }

    /// Path of the database, as SQLite names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// URL of the replica, canonical and without secrets.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// What this process does for it.
    pub fn role(&self) -> Role {
        *lock(&self.role)
    }

    /// The wal-index header: through a handle of the app's that has it mapped, or, where none has and the WAL holds more than
    /// is sealed, through one of our own. (An app that has opened a database and not yet read it has mapped nothing, and
    /// what a process that was killed left in the WAL waits to be noticed.)
    pub(super) fn header(&self) -> Option<IndexHeader> {
        self.entry.header().or_else(|| self.header_of_own())
    }

    fn header_of_own(&self) -> Option<IndexHeader> {
        let stamp = FileStamp::of(self.tracker.wal_path()).ok().filter(|_| self.tracker.wal_goes_on())?;
        let mut last = lock(&self.own_look);
        // Frames that no commit ends stay until somebody writes: not looked at again, unless the file's time, which is
        // coarse, may hide a write.
        if let Some((at, when, h)) = *last
            && at == stamp
            && when.0 > i64::try_from(stamp.mtime / 1_000_000).unwrap_or(i64::MAX).saturating_add(COARSE)
        {
            return Some(h);
        }
        let h = *Access::new(&self.path).pin().ok()?.header();
        *last = Some((stamp, clock::now(), h));
        Some(h)
    }

    /// SQLite told something: wake the sealer if it is news.
    pub(super) fn noticed(self: &Arc<Self>, n: Noticed) {
        match n {
            Noticed::Nothing => {}
            Noticed::Commit => {
                self.metrics.commits.inc();
                // Only the first since the last look has anything to tell.
                if !self.dirty.load(Ordering::Acquire) && !self.dirty.swap(true, Ordering::AcqRel) {
                    lock(&self.waiting).commit(clock::now());
                    engine().sealer.wake();
                }
            }
            Noticed::Lost => {
                self.dirty.store(true, Ordering::Release);
                engine().sealer.wake();
            }
        }
    }

    /// A connection of the app reads the database: where nobody ships it because nobody here had it open, this process can
    /// now, and had better before much is written that must be read anew.
    pub(super) fn opened(&self) {
        if self.role() == Role::Standby && self.tracker.sync_state() != Sync::Kept {
            self.look_fully.store(true, Ordering::Release);
            engine().sealer.hurry();
        }
    }

    /// A checkpoint or reset is about to want everything sealed.
    pub(super) fn hurry(self: &Arc<Self>) {
        if !self.hurried.swap(true, Ordering::AcqRel) {
            engine().sealer.hurry();
        }
    }

    pub(super) fn checkpointed(&self) {
        self.metrics.checkpoints.inc();
    }

    /// Size of the WAL file in bytes.
    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.tracker.wal_path()).map(|m| m.len()).unwrap_or(0)
    }

    /// Stops replication of this database and says why.
    pub(super) fn fail(&self, why: String) {
        log::error!("walrust: {}: {why}", self.path.display());
        *lock(&self.failure) = Some(why);
    }

    /// What was committed cannot be sealed. It stays in the WAL; what lasts is told.
    pub(super) fn spool_fails(&self, e: &Error) {
        let now = clock::uptime();
        let mut at = lock(&self.spool_failure);
        let is_shortage = e.is_shortage();
        let new = SpoolFailure { why: String::new(), since: now, told: false, is_shortage };
        let failure = at.get_or_insert(new);
        if failure.is_shortage && !is_shortage {
            failure.since = now;
        }
        failure.why = format!("spool: {e}");
        failure.is_shortage = is_shortage;
        if !is_shortage && !failure.told && now.saturating_sub(failure.since) >= SPOOL_PATIENCE {
            failure.told = true;
            self.tell(EventKind::UploadError, failure.why.clone(), json!({}));
        }
    }

    pub(super) fn has_spool_failed(&self) -> bool {
        lock(&self.spool_failure).is_some()
    }

    /// All that was committed is sealed.
    pub(super) fn spool_works(&self) {
        *lock(&self.spool_failure) = None;
    }

    /// The database could not be read: whether that is because the app has left WAL mode. That is told once.
    pub(super) fn note_journal_mode(&self, left: bool) {
        if left && !self.not_wal.swap(left, Ordering::AcqRel) {
            log::warn!("walrust: {}: {NOT_WAL}", self.path.display());
            self.tell(EventKind::HistoryGap, NOT_WAL.to_string(), json!({"reason": NOT_WAL}));
        } else if !left {
            self.not_wal.store(false, Ordering::Release);
        }
    }

    /// Whether the database file was written to since the last look, and not by a checkpoint (a copy of another over it). A
    /// checkpoint tells before its first page that it begins (`nBackfillAttempted`) and after its last that it is done
    /// (`nBackfill`, which within a generation only grows): <https://sqlite.org/walformat.html>, "The WAL-Index Header".
    pub(super) fn is_written_past_wal(&self) -> bool {
        // (A wal-index that no writer has used yet is like the next one made anew; of those the last close's stamp tells.)
        let settled = |h: &IndexHeader| {
            h.backfilled == h.backfill_attempted
                && (h.salt.salt1, h.salt.salt2) != (0, 0)
                && !self.entry.is_exclusive()
        };
        let place = || Some(self.entry.header().filter(settled)?).map(|h| (h.salt, h.backfilled));
        // (Both before the file and after it: else a checkpoint may have come and gone, or have begun, in between.)
        let before = place();
        // (Its change time is also that of its name and rights.)
        let file = FileStamp::of(&self.path).ok().map(|s| FileStamp { ctime: 0, ..s });
        let now = before.filter(|_| before == place()).zip(file);
        let last = std::mem::replace(&mut *lock(&self.at_rest), now);
        now.zip(last).is_some_and(|((place, file), (then, file_then))| place == then && file != file_then)
    }

    /// Why nothing is captured until the app does something about it.
    fn why_not_captured(&self) -> Option<String> {
        if self.not_wal.load(Ordering::Acquire) && is_in_rollback_mode(&self.path) {
            return Some(NOT_WAL.to_string());
        }
        if let Some(f) = &*lock(&self.spool_failure)
            && !f.is_shortage
            && clock::uptime().saturating_sub(f.since) >= SPOOL_PATIENCE
        {
            return Some(f.why.clone());
        }
        // (Where another process has the new file and ships it, its place is known.)
        let replaced = self.role() == Role::Standby && self.is_unreadable() && self.entry.has_only_replaced();
        replaced.then(|| REPLACED.to_string())
    }

    /// What to tell while the spool is full and the replica does not answer.
    fn overflow(&self) -> Option<String> {
        let (_, store) = self.link.status().last_error.filter(|_| self.full.load(Ordering::Acquire))?;
        Some(format!(
            "spool_limit ({} bytes) is reached: newer commits are only in the database, and a snapshot follows when \
             the replica answers ({store})",
            self.settings.spool_limit.0
        ))
    }

    /// The spool has grown to its limit: what it holds is a history to its end and will be shipped; what is committed
    /// from now on is not kept, so that neither spool nor WAL takes more of the app's disk.
    pub(super) fn give_up_backlog(&self) {
        if let Err(e) = self.tracker.cut() {
            log::warn!("walrust: {}: {e}", self.path.display());
        }
        self.full.store(true, Ordering::Release);
        self.tracker.lose(format!(
            "the replica was away until spool_limit ({} bytes) was reached",
            self.settings.spool_limit.0
        ));
    }

    /// Seals and cuts everything committed so far and returns the TXID that holds it. Where the database must be read
    /// anew for that, waits only as long as somebody can.
    fn cut_now(self: &Arc<Self>, deadline: Duration, until: Until) -> Result<(Lineage, TxId)> {
        let tries = self.joined.tries();
        loop {
            match self.tracker.sync_state() {
                Sync::Kept => match self.seal_and_cut(until) {
                    Ok(place) => return Ok(place),
                    Err(SealError::Again) => {}
                    Err(SealError::OutOfSync(_)) => {
                        if self.role() == Role::Shipper {
                            self.dirty.store(true, Ordering::Release);
                            engine().sealer.wake();
                        }
                    }
                    Err(SealError::Failed(e)) if e.is_shortage() && clock::uptime() < deadline => {}
                    Err(SealError::Failed(e)) => return Err(e),
                },
                Sync::Idle if lock(&self.failure).is_some() => {
                    let why = lock(&self.failure).clone().unwrap_or_default();
                    return Err(Error::new(Kind::Bug, why));
                }
                _ => engine().sealer.wake(),
            }
            if self.link.is_stopped() {
                return Err(ended());
            }
            if let Some(why) = self.why_not_captured() {
                return Err(Error::config(why));
            }
            if let Some(why) = self.overflow() {
                return Err(Error::new(Kind::Timeout, why));
            }
            if until == Until::Closed && self.entry.is_closing() && self.tracker.sync_state() != Sync::Kept {
                return Err(Error::new(Kind::Retry, "it must be read anew, when it is opened again"));
            }
            let status = self.link.status();
            let is_joining = self.role() == Role::Joining;
            // (What kept it from joining before the call may have passed: the call has it tried.)
            if let State::Fenced | State::Failed = status.state
                && (!is_joining || clock::uptime() >= deadline || self.joined.tries() > tries)
                && let Some((kind, e)) = status.last_error
            {
                return Err(Error::new(kind, format!("replication is {}: {e}", status.state.as_str())));
            }
            if is_joining && clock::uptime() >= deadline {
                let why = status.last_error.map_or("it has not answered yet".to_string(), |(_, e)| e);
                return Err(Error::new(
                    Kind::Timeout,
                    format!("{}: the replica {} is not reached: {why}", self.path.display(), self.replica),
                ));
            }
            if clock::uptime() >= deadline && !self.entry.can_read() && self.tracker.wal_goes_on() {
                let why = "the WAL may hold commits of others, and this process has the database not open to read them";
                return Err(Error::new(Kind::Timeout, format!("{}: {why}", self.path.display())));
            }
            if clock::uptime() >= deadline {
                return Err(Error::new(
                    Kind::Timeout,
                    format!(
                        "{} is still being read for a snapshot ({})",
                        self.path.display(),
                        self.state().as_str()
                    ),
                ));
            }
            clock::sleep(Duration::from_millis(2));
        }
    }

    /// Whether every commit up to now is known to be in the replica, the spool, or the WAL that is followed. Finds out what
    /// the sealer would find at its next look.
    fn misses_nothing(&self) -> bool {
        // (A resync that is under way has noted its file, and what replaces that is told at the next look.)
        if self.tracker.sync_state() == Sync::Kept
            && let Some(why) = super::sealer::changed_outside(self)
        {
            self.tracker.lose(why);
        }
        let header = self.header();
        self.tracker.sync_state() == Sync::Kept
            && !self.is_changed_past_us(header.as_ref())
            && header.is_none_or(|h| self.tracker.is_known(&h))
    }

    /// A connection of this process has got the database for itself, with its wal-index at `h`. Its thread.
    pub(super) fn begins_exclusive(self: &Arc<Self>, h: &IndexHeader, inode: u64) {
        if !self.misses_nothing() {
            let why = match self.tracker.sync_state() {
                Sync::Lost(why) => why,
                _ => "the database was changed by something that had not loaded walrust".to_string(),
            };
            super::resync::while_held(self, Held::new(&self.path, *h, inode), &why);
        }
        self.tracker.exclusive_begins(*h);
    }

    /// It has committed, up to `h`.
    pub(super) fn commits_exclusive(self: &Arc<Self>, h: IndexHeader, inode: u64) {
        let noticed = self.tracker.exclusive_commit(h);
        let now = clock::uptime().as_millis() as u64;
        let last = self.held_failed.load(Ordering::Relaxed);
        // Not with each commit again: what failed rarely passes in milliseconds.
        if let Sync::Lost(why) = self.tracker.sync_state()
            && (last == 0 || now.saturating_sub(last) >= 1000)
        {
            let found = super::resync::while_held(self, Held::new(&self.path, h, inode), &why);
            self.held_failed.store(if found { 0 } else { now.max(1) }, Ordering::Relaxed);
            self.tracker.exclusive_begins(h);
        }
        self.noticed(noticed);
    }

    /// A connection has committed without a WAL, or with a wal-index that it keeps to itself. (Nobody is woken: there is nothing
    /// to read it through before the next read, or close.)
    pub(super) fn commits_unseen(self: &Arc<Self>) {
        if self.tracker.sync_state() == Sync::Kept {
            let why = "a connection commits outside of WAL mode, or with locking_mode=EXCLUSIVE set before its first read";
            log::warn!("walrust: {}: {why}: it is not followed meanwhile", self.path.display());
            self.tracker.lose(why);
        }
    }

    /// The last connection closes, or leaves WAL mode: all is in the database file, and nobody else can write. What is missing
    /// is read now.
    pub(super) fn closes(self: &Arc<Self>, inode: u64) {
        if let Sync::Lost(why) = self.tracker.sync_state() {
            super::resync::while_held(self, Held::new(&self.path, IndexHeader::EMPTY, inode), &why);
        }
    }

    /// Waits until nothing is missed of what was committed before. Whether that came to be.
    pub(super) fn wait_until_whole(&self, patience: Duration) -> bool {
        let deadline = clock::uptime() + patience;
        while !self.misses_nothing() {
            if clock::uptime() >= deadline {
                return false;
            }
            engine().sealer.wake();
            clock::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Whether nothing is captured any more until somebody does something about it.
    pub(super) fn is_over(&self) -> bool {
        self.link.is_stopped() || matches!(self.state(), State::Fenced | State::Failed | State::Paused)
    }

    /// Whether the database was changed past the WAL that we know, under `header` if there is a wal-index.
    fn is_changed_past_us(&self, header: Option<&IndexHeader>) -> bool {
        match header {
            Some(h) => h.max_frame == 0 && !self.tracker.is_known(h),
            // Without a place in it, no WAL is known.
            None => {
                self.tracker.position().is_some_and(|p| p.wal.is_none())
                    || self.tracker.is_changed_since_close()
            }
        }
    }

    fn seal_and_cut(&self, until: Until) -> std::result::Result<(Lineage, TxId), SealError> {
        // What was committed past the WAL that we know is not in any frame: only a resync finds it.
        let header = self.header();
        // (At the last close others may be in the middle of something, and what they commit is theirs to ship.)
        let unseen = header.is_none() && until == Until::Deadline && self.tracker.wal_goes_on();
        if unseen || self.is_changed_past_us(header.as_ref()) {
            return Err(SealError::OutOfSync("the database was changed past walrust".into()));
        }
        if let Some(h) = header.or_else(|| self.tracker.seen())
            && h.max_frame > 0
            && (self.entry.handles() > 0 || self.tracker.wal_path().exists())
        {
            self.tracker.seal(&h, Packing::Lz4, clock::now())?;
        }
        if let Some(p) = self.tracker.cut()? {
            lock(&self.waiting).cut(p.txid);
        }
        let p = self.tracker.position().ok_or_else(|| SealError::OutOfSync("no position".into()))?;
        if p.wal.is_none() {
            return Err(SealError::OutOfSync("another process found that it must be read anew".into()));
        }
        Ok((p.lineage, p.txid))
    }

    /// Returns when every commit made before the call is durable in the replica.
    pub fn sync(self: &Arc<Self>, timeout: Duration) -> Result<TxId> {
        if self.role() == Role::Joining {
            self.join_soon();
        } else {
            self.link.refuse_fenced()?;
        }
        if let Some(why) = self.ships_elsewhere() {
            return Err(Error::config(why));
        }
        self.sync_until(timeout, Until::Deadline)
    }

    fn sync_until(self: &Arc<Self>, timeout: Duration, until: Until) -> Result<TxId> {
        let deadline = clock::uptime() + timeout;
        loop {
            let (lineage, txid) = self.cut_now(deadline, until)?;
            self.link.work.notify_one();
            self.wait_shipped(txid, deadline)?;
            // Where another history was found in the replica meanwhile, that TXID is not this one.
            self.tracker.refresh();
            let same = self.tracker.position().is_some_and(|p| p.lineage == lineage && p.wal.is_some());
            match self.tracker.sync_state() {
                Sync::Kept if same => {
                    self.caught_up();
                    return Ok(txid);
                }
                _ if self.link.is_stopped() => return if same { Ok(txid) } else { Err(ended()) },
                _ => {}
            }
        }
    }

    /// Waits until `txid` is durable, whoever ships it.
    pub(super) fn wait_shipped(self: &Arc<Self>, txid: TxId, deadline: Duration) -> Result<()> {
        match self.role() {
            Role::Shipper => self.link.wait_for(txid, deadline.saturating_sub(clock::uptime())),
            Role::Joining | Role::Standby => self.wait_for_shipper(txid, deadline),
        }
    }

    fn wait_for_shipper(self: &Arc<Self>, txid: TxId, deadline: Duration) -> Result<()> {
        loop {
            if self.shipped()?.is_some_and(|s| s.txid >= txid) {
                return Ok(());
            }
            let left = deadline.saturating_sub(clock::uptime());
            let role = self.role();
            if role == Role::Shipper {
                return self.link.wait_for(txid, left);
            }
            if self.link.is_stopped() {
                return Err(ended());
            }
            if let Some(why) = self.ships_elsewhere() {
                return Err(Error::config(why));
            }
            if left.is_zero() {
                let why = match (role, self.link.status().last_error) {
                    (Role::Joining, Some((_, e))) => e,
                    (Role::Joining, None) => "the replica has not answered yet".to_string(),
                    _ => "another process of this machine ships".to_string(),
                };
                return Err(Error::new(
                    Kind::Timeout,
                    format!("TXID {txid} is not in the replica yet; {why}"),
                ));
            }
            engine().sealer.wake();
            clock::sleep(Duration::from_millis(5));
        }
    }

    /// Nothing waits any more: the lag is zero.
    pub(super) fn caught_up(&self) {
        let replicated = self.replicated();
        // (What has arrived is not waited for, also while there is always more.)
        lock(&self.waiting).since(replicated);
        let done = self.tracker.position().is_some_and(|p| p.pieces == 0 && p.txid <= replicated);
        let sealed = self.entry.header().is_none_or(|h| h.max_frame == 0 || self.tracker.is_sealed(&h));
        if done && sealed && !self.dirty.load(Ordering::Acquire) {
            *lock(&self.waiting) = Waiting::default();
        }
    }

    /// Bytes of the WAL that are not sealed yet.
    fn unsealed_bytes(&self) -> u64 {
        match self.entry.header() {
            Some(h) => {
                let page = h.page_size.map_or(4096, |p| p.get());
                u64::from(self.tracker.unsealed_frames(&h)) * (u64::from(page) + 24)
            }
            // Committed or not: nobody in this process reads it at the moment.
            None if self.tracker.wal_goes_on() => self.wal_bytes(),
            None => 0,
        }
    }

    /// A standby's look at what the process that ships has not done yet: its lag, too, is that of the replica.
    pub(super) fn note_waiting(&self) {
        self.dirty.store(false, Ordering::Release);
        self.tracker.refresh();
        let unsealed = self.unsealed_bytes() > 0;
        let Some(p) = self.tracker.position() else { return };
        let replicated = self.replicated();
        let mut waiting = lock(&self.waiting);
        if !unsealed && is_shipped(Some(&p), replicated) {
            *waiting = Waiting::default();
        }
        if p.txid > waiting.looked {
            // Cut by the process that ships, since the last look.
            waiting.looked = p.txid;
            if p.txid > replicated {
                waiting.commit(clock::now());
            }
            waiting.cut(p.txid);
        }
        if unsealed || p.pieces > 0 {
            waiting.commit(clock::now());
        }
    }

    fn replicated(&self) -> TxId {
        match self.role() {
            Role::Shipper => self.link.status().replicated,
            Role::Joining | Role::Standby => {
                self.shipped().ok().flatten().map(|s| s.txid).unwrap_or_default()
            }
        }
    }

    /// The last connection of this process closed: the process may be about to end, so what is pending gets a
    /// moment to leave, if the replica is known to answer.
    pub(super) fn drain_at_close(self: &Arc<Self>) {
        if self.role() != Role::Shipper || self.busy.load(Ordering::Acquire) {
            return;
        }
        let status = self.link.status();
        let healthy =
            status.last_error.is_none() && matches!(status.state, State::Streaming | State::CatchingUp);
        let patience = self.settings.sync_timeout.min(Duration::from_secs(5));
        if healthy && let Err(e) = self.sync_until(patience, Until::Closed) {
            log::warn!("walrust: {}: not all is in the replica at close: {e}", self.path.display());
            return;
        }
        if healthy {
            self.link.give_lease_back(Duration::from_secs(1));
        }
    }

    /// The state that `walrust_status` shows.
    pub fn state(&self) -> State {
        if lock(&self.failure).is_some() {
            return State::Failed;
        }
        let status = self.link.status();
        match self.role() {
            Role::Standby => return State::Standby,
            Role::Joining => return status.state,
            Role::Shipper => {}
        }
        if self.overflow().is_some() {
            return State::Failed;
        }
        match status.state {
            State::Fenced | State::Failed | State::Paused => status.state,
            _ if self.snapshotting.load(Ordering::Acquire) || self.tracker.sync_state() != Sync::Kept => {
                State::Snapshotting
            }
            other => other,
        }
    }

    /// What `walrust_status` shows.
    pub fn row(&self) -> Row {
        // Another process may have sealed what this one has not noticed.
        self.tracker.refresh();
        self.caught_up();
        let status = self.link.status();
        let position = self.tracker.position();
        let replicated = self.replicated();
        let wal_bytes = self.wal_bytes();
        let unsealed = self.unsealed_bytes();
        // The queue's last file is about to be put away.
        let all_there = unsealed == 0 && is_shipped(position.as_ref(), replicated);
        // What was changed past us is noticed within a second, and read anew.
        let changed = self.is_changed_past_us(self.entry.header().as_ref()) || self.spool.is_gone();
        let not_captured = self.why_not_captured().or_else(|| engine().sealer.refused());
        let state = match self.state() {
            State::Snapshotting | State::Standby | State::Streaming | State::CatchingUp
                if not_captured.is_some() =>
            {
                State::Failed
            }
            State::CatchingUp if all_there && !changed => State::Streaming,
            State::Streaming if changed => State::CatchingUp,
            other => other,
        };
        let lag = lock(&self.waiting).since(replicated).map_or(Duration::ZERO, |t| clock::now().since(t));
        let failure = lock(&self.failure).clone();
        let lost = match self.tracker.sync_state() {
            Sync::Lost(why) if self.entry.is_exclusive() => Some(format!(
                "{why}; it cannot be read anew while a connection with locking_mode=EXCLUSIVE has it for itself"
            )),
            Sync::Lost(why) => Some(why),
            _ => None,
        };
        Row {
            database: self.path.clone(),
            replica: self.replica.clone(),
            state,
            // Another process may have cut what this one has shipped.
            txid: position.map(|p| p.txid).unwrap_or_default().max(replicated),
            replicated,
            lag,
            pending_bytes: if all_there { 0 } else { self.spool.bytes_waiting() + unsealed },
            wal_bytes,
            spool_bytes: self.spool.bytes(),
            breaker: status.breaker,
            last_upload: status.last_upload.or_else(|| self.shipped().ok().flatten().map(|s| s.time)),
            last_error: failure
                .or_else(|| self.ships_elsewhere())
                .or_else(|| self.overflow())
                .or(not_captured)
                .or(status.last_error.as_ref().map(|(_, e)| e.clone()))
                .or_else(|| lock(&self.spool_failure).as_ref().map(|f| f.why.clone()))
                .or_else(|| self.tracker.seal_error())
                .or(lost)
                .or_else(|| {
                    let why = super::start::UNREADABLE;
                    (self.role() == Role::Standby && self.is_unreadable()).then(|| why.to_string())
                })
                .or_else(|| status.duties.trouble())
                .or_else(|| self.care.finding()),
        }
    }

    /// A full snapshot now; returns its TXID when it is in the replica. Writers go on meanwhile.
    pub fn snapshot_now(self: &Arc<Self>, timeout: Duration) -> Result<TxId> {
        self.wait_joined(timeout)?;
        if self.role() == Role::Standby {
            return Err(Error::new(
                Kind::Config,
                "another process of this machine ships this database; ask that one for a snapshot",
            ));
        }
        super::resync::snapshot_now(self, timeout)
    }

    /// Ships what is pending and stops.
    pub fn unwatch(self: &Arc<Self>, timeout: Duration) -> Result<TxId> {
        let shipped = self.sync_until(timeout, Until::Deadline);
        self.end(engine());
        engine().forget_settings(&self.path);
        shipped
    }

    /// Stops at once; what is pending stays in the spool.
    pub(super) fn end(self: &Arc<Self>, engine: &Engine) {
        self.tracker.stop();
        self.link.stop();
        self.joined.refuse(&ended(), Duration::ZERO);
        engine.drop_watched(self);
        engine.metrics().remove(&observe::series(&self.path));
        // The shipper gives the lease back as it ends. One that has not ended by then frees the local lock itself when it has: no
        // other ships while an upload of this one is under way.
        if ship::leave(&self.link, self.spool.dir(), SHIPPER_ENDS) && self.role() != Role::Standby {
            self.spool.forget_shipping();
            self.spool.ship_lock().release();
        }
    }
}
