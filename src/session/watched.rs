//! One watched database: its settings, its rooms (spool, tracker, store, link), and the state that the files above decide upon.

use super::access::Access;
use super::agenda::Number;
use super::arrivals::Arrivals;
use super::bell::{News, Note};
use super::handles::Handles;
use super::job::JobPlace;
use super::joined::Joined;
use super::labelling::Labelling;
use super::mirror::Mirror;
use super::patience::Closes;
use super::phase::{Part, Role};
use super::services::Services;
use super::since::{Since, SinceSame};
use super::trouble::Troubles;
use super::waiting::Waiting;
use crate::base::event::EventKind;
use crate::base::{Error, Kind, PageSize, Timestamp, TxId, clock, lock};
use crate::capture::{Continuity, Noticed, Tracker};
use crate::config::{Settings, replica_key};
use crate::metrics::DatabaseMetrics;
use crate::notify::{Event, Notifier};
use crate::ship::{Aged, Link, State};
use crate::spool::{FileStamp, Spool};
use crate::store::Store;
use crate::wal::{IndexHeader, Salt};
use arc_swap::{ArcSwap, Guard};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The kernel's clock of files ticks every 1 to 10 ms: a file's time that is not older than this may hide a later write.
const FILE_TIME_STEP_MS: i64 = 100;

/// Who wants a database to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An SQL call.
    Call,
    /// The configuration, before which an SQL call goes.
    Configured,
}

/// What the sealer knows of its rounds at one database.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Uptime of the last look at what no hook tells.
    pub(super) looked_at: Duration,
    /// How many looks at it, closed or idle, have found nothing.
    pub(super) vain: u32,
    /// Uptime of the last glance at the wal-index's header, and what it showed at the last look.
    pub(super) glanced_at: Duration,
    pub(super) header: Option<IndexHeader>,
    /// Uptime of the watch's beginning.
    pub(super) began_at: Duration,
    /// Uptime of the last scheduled snapshot attempt.
    pub(super) snapshot_tried_at: Option<Duration>,
}

/// What does not go on from the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Astray {
    /// A WAL with these salts.
    Wal(Salt),
    /// A database file that looks like this.
    File(FileStamp),
}

/// What only the sealer, which knows the rooms above, can do for a thread below.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    /// Begin anew: what was shipped is not in the replica any more.
    Restart(&'static str),
    /// Clear the queue: a file of it is damaged.
    ClearQueue(String),
    /// Apply retention: time has made something superfluous.
    Retain,
    /// Look what care is due: a snapshot is in the replica, or `auto_label` is to label something.
    Care,
    /// Put a snapshot there: what validation found missing keeps the replica from being restored.
    Snapshot,
}

/// The next database's number.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// One watched database in this process.
pub struct Watched {
    path: PathBuf,
    replica: String,
    /// What [`super::whose::same_replica`] compares: finding it out costs a look at the file system.
    pub(super) replica_key: String,
    settings: ArcSwap<Settings>,
    /// The replica.
    pub store: Store,
    /// The local queue.
    pub spool: Arc<Spool>,
    /// Capture.
    pub tracker: Tracker,
    /// The shipper's side.
    pub link: Arc<Link>,
    pub(super) services: Arc<Services>,
    pub(super) handles: Arc<Handles>,
    pub(super) origin: Origin,
    part: Mutex<Part>,
    /// Since when an internal error has ended it.
    pub(super) failed: Since,
    /// What waits while the part is [`Part::Joining`].
    pub(super) joined: Joined,
    /// What was left for the sealer.
    pub(super) news: News,
    /// What tells it from the others of this process.
    pub(super) number: Number,
    /// The sealer has not heard its last call yet.
    calls: AtomicBool,
    /// It is among those that the process watches.
    is_listed: AtomicBool,
    pub(super) asks: Mutex<BTreeSet<Ask>>,
    /// The requests of other processes that threads of this one are at, by their numbers.
    pub(super) at_requests: Mutex<BTreeSet<String>>,
    pub(super) job: JobPlace,
    /// Further replicas.
    pub(super) mirrors: Vec<Arc<Mirror>>,
    /// Tells that something has arrived in one of the replicas.
    pub(super) arrivals: Arrivals,
    /// What keeps commits from being sealed or read.
    pub(super) troubles: Troubles,
    pub(super) rounds: Mutex<Rounds>,
    /// Commits that are not durable yet.
    pub(super) waiting: Mutex<Waiting>,
    /// The WAL, or the file, has not gone on from the position (of a process that ships).
    pub(super) astray: SinceSame<Astray>,
    /// A commit has waited for the process that ships (of a standby).
    pub(super) behind: Since,
    /// The spool has been gone.
    pub(super) spool_gone: Since,
    /// Since when what a last close left in the spool has not been forced to disk (I-SPOOL-2).
    pub(super) unsynced: Since,
    /// Since when the app has it closed, as the sealer has seen it.
    pub(super) closed: Since,
    pub(super) closes: Closes,
    /// It could not be read anew for a connection that has it for itself.
    pub(super) held_failed: Since,
    /// Counters and gauges.
    pub metrics: DatabaseMetrics,
    /// Its webhooks; `None` without any.
    notifier: Mutex<Option<Notifier>>,
    /// Why the database could not be read whole: until it can, or, where its place in the history is known, until the next upload.
    pub(super) unread: Mutex<Option<String>>,
    /// Validation and retention: what the last found wrong, or why it could not be done.
    pub(super) finding: Mutex<Option<String>>,
    /// That uploads fail was told, and not yet that they succeed again.
    pub(super) is_failure_told: AtomicBool,
    /// How long ago the replica was last validated, or begun to be by this process; `None`: not looked up yet.
    pub(super) validated: Mutex<Option<Aged>>,
    /// The snapshot that retention was last begun after; `None`: not looked up yet.
    pub(super) retained: Mutex<Option<TxId>>,
    /// Why the last drill failed, until one passes.
    pub(super) drill_finding: Mutex<Option<String>>,
    /// How long ago the replica was last drilled, or begun to be counted; `None`: not looked up yet.
    pub(super) drilled: Mutex<Option<Aged>>,
    /// What `auto_label` has to do.
    pub(super) labelling: Labelling,
    /// What the file was, between two checkpoints, at the last look.
    pub(super) at_rest: Mutex<Option<((Salt, u32), FileStamp)>>,
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

/// The error of whoever meets a watch that has ended.
pub(super) fn ended() -> Error {
    Error::new(Kind::Config, "the database is not watched any more")
}

/// The name that a database's series bear.
pub(super) fn series(path: &Path) -> String {
    path.display().to_string()
}

fn notifier_of(settings: &Settings) -> Option<Notifier> {
    (!settings.webhooks.is_empty()).then(|| Notifier::new(settings.webhooks.clone()))
}

impl Watched {
    pub(super) fn new(
        services: &Arc<Services>,
        handles: &Arc<Handles>,
        settings: Settings,
        (store, mirrors): (Store, Vec<Arc<Mirror>>),
        spool: Arc<Spool>,
        (origin, part): (Origin, Part),
    ) -> Arc<Watched> {
        let path = handles.path();
        // The file that this watch begins with: a restore over it, between two watches, is no replacement under it.
        handles.note_file();
        let tracker =
            Tracker::new(path, spool.clone(), Arc::new(Access::new(handles)), settings.spool_limit.0);
        let now = clock::uptime();
        let news = News::default();
        news.leave(Note::LookFully);
        Arc::new(Watched {
            path: path.to_path_buf(),
            replica: store.url().to_string(),
            replica_key: replica_key(store.url()),
            notifier: Mutex::new(notifier_of(&settings)),
            settings: ArcSwap::from_pointee(settings),
            store,
            spool,
            tracker,
            link: Arc::new(Link::default()),
            services: services.clone(),
            handles: handles.clone(),
            origin,
            part: Mutex::new(part),
            failed: Since::default(),
            joined: Joined::default(),
            news,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            calls: AtomicBool::new(false),
            is_listed: AtomicBool::new(false),
            asks: Mutex::default(),
            at_requests: Mutex::default(),
            job: JobPlace::default(),
            mirrors,
            arrivals: Arrivals::default(),
            troubles: Troubles::default(),
            rounds: Mutex::new(Rounds { began_at: now, ..Rounds::default() }),
            waiting: Mutex::new(Waiting::default()),
            astray: SinceSame::default(),
            behind: Since::default(),
            spool_gone: Since::default(),
            unsynced: Since::default(),
            closed: Since::default(),
            closes: Closes::default(),
            held_failed: Since::default(),
            metrics: services.metrics.database(&series(path)),
            unread: Mutex::default(),
            finding: Mutex::default(),
            is_failure_told: AtomicBool::new(false),
            validated: Mutex::new(None),
            retained: Mutex::default(),
            drill_finding: Mutex::default(),
            drilled: Mutex::new(None),
            labelling: Labelling::default(),
            at_rest: Mutex::new(None),
            own_look: Mutex::new(None),
        })
    }

    /// The sealer is to look at it soon. Cheap while that is awake.
    pub(super) fn call(&self) {
        self.call_at_leisure();
        self.services.bell.wake();
    }

    /// The sealer is to look at it at once.
    pub(super) fn call_now(&self) {
        self.call_at_leisure();
        self.services.bell.hurry();
    }

    /// The sealer is to look at it within [`super::phase::LOOK`].
    pub(super) fn call_at_leisure(&self) {
        if !self.calls.swap(true, Ordering::AcqRel) {
            self.services.calls.push(self.number);
        }
    }

    /// The sealer has heard the call, and looks: what is left from now on is called for again (I-AGENDA-2).
    pub(super) fn is_heard(&self) {
        // (Not a mere store: the look that follows must not read before it what a caller left.)
        self.calls.swap(false, Ordering::AcqRel);
    }

    /// It is, or is not any more, among those that the process watches.
    pub(super) fn listed(&self, is_listed: bool) {
        self.is_listed.store(is_listed, Ordering::Release);
        // (A call before that was heard by nobody.)
        self.is_heard();
    }

    /// Whether the sealer is still to look at it.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    /// Path of the database, as SQLite names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// URL of the replica, canonical and without secrets.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Where it goes: key and URL of the replica, and of each mirror.
    pub(super) fn places(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = (self.replica_key.as_str(), self.replica.as_str());
        std::iter::once(own).chain(self.mirrors.iter().map(|m| (m.key.as_str(), m.url())))
    }

    /// The settings in force.
    pub fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Other settings are in force from now on: those that [`super::settings`] says can change under a watch.
    pub(super) fn use_settings(&self, settings: Settings) {
        if settings.webhooks != self.settings().webhooks {
            *lock(&self.notifier) = notifier_of(&settings);
        }
        self.settings.store(Arc::new(settings));
        self.call();
    }

    /// Where this database's events go.
    pub(super) fn notifier(&self) -> Option<Notifier> {
        lock(&self.notifier).clone()
    }

    /// The part of this process.
    pub(super) fn part(&self) -> Part {
        lock(&self.part).clone()
    }

    /// Its role among the processes of this machine.
    pub fn role(&self) -> Role {
        lock(&self.part).role()
    }

    /// Goes on to another part.
    pub(super) fn become_part(&self, next: impl FnOnce(&Part) -> Part) {
        let mut part = lock(&self.part);
        *part = next(&part);
    }

    /// Whether this process ships it and is able to.
    pub fn ships(&self) -> bool {
        self.part() == Part::Shipping && !self.link.is_stopped()
    }

    /// The wal-index header: through a handle of the app's that has it mapped, or, where none has and the WAL holds more than
    /// is sealed, through one of our own. (An app that has opened a database and not yet read it has mapped nothing, and
    /// what a process that was killed left in the WAL waits to be noticed.)
    pub(super) fn header(&self) -> Option<IndexHeader> {
        self.handles.header().or_else(|| self.header_of_own())
    }

    /// Whether this process ships it, and has shipped all that it knows of: nothing is to be done before something new is told or seen.
    pub(super) fn is_at_rest(&self) -> bool {
        let status = self.link.status();
        self.role() == Role::Shipper
            && self.tracker.sync_state() == Continuity::Kept
            && matches!(status.state, State::Streaming | State::CatchingUp)
            && self.tracker.position().is_some_and(|p| p.pieces == 0 && p.txid <= status.replicated)
    }

    /// Bytes in a page of the database; `None` where that is not known at the moment.
    pub fn page_size(&self) -> Option<PageSize> {
        self.tracker.position().map(|p| p.page_size)
    }

    /// A number that every transaction changes, whoever made it; `None` where nobody has the wal-index mapped.
    pub fn transactions(&self) -> Option<u32> {
        self.handles.header().map(|h| h.change)
    }

    fn header_of_own(&self) -> Option<IndexHeader> {
        let stamp = FileStamp::of(self.tracker.wal_path()).ok().filter(|_| self.tracker.wal_goes_on())?;
        let mut last = lock(&self.own_look);
        // Frames that no commit ends stay until somebody writes: not looked at again, unless the file's time may hide a write.
        if let Some((at, when, h)) = *last
            && at == stamp
            && when.0
                > i64::try_from(stamp.mtime / 1_000_000).unwrap_or(i64::MAX).saturating_add(FILE_TIME_STEP_MS)
        {
            return Some(h);
        }
        let h = *crate::capture::Database::pin(&Access::new(&self.handles)).ok()?.header();
        *last = Some((stamp, clock::now(), h));
        Some(h)
    }

    /// Size of the WAL file in bytes.
    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.tracker.wal_path()).map(|m| m.len()).unwrap_or(0)
    }

    // -- what SQLite tells ----------------------------------------------------------------------------------------

    /// SQLite told something: wake the sealer if it is news.
    pub(super) fn noticed(&self, n: Noticed) {
        match n {
            Noticed::Nothing => {}
            Noticed::Commit => {
                self.metrics.commits.inc();
                // Only the first since the last look has anything to tell.
                if self.news.leave(Note::Commit) {
                    lock(&self.waiting).commit(clock::now());
                    self.call();
                }
            }
            Noticed::Lost => {
                self.news.leave(Note::Commit);
                self.call();
            }
        }
    }

    /// A connection of the app has read the database. If no process could ship it because none had it open, this one takes over now,
    /// before more is written that must be read anew.
    pub(super) fn opened(&self) {
        self.link.want_lease();
        if self.role() == Role::Standby && self.tracker.sync_state() != Continuity::Kept {
            self.news.leave(Note::LookFully);
            self.call_now();
        }
    }

    /// A checkpoint or reset is about to want everything sealed.
    pub(super) fn hurry(&self) {
        if self.news.leave(Note::Hurry) {
            self.call_now();
        }
    }

    /// Has the sealer do what the rooms below cannot.
    pub(super) fn ask(&self, ask: Ask) {
        lock(&self.asks).insert(ask);
        self.news.leave(Note::LookFully);
        self.call_now();
    }

    // -- what is told -----------------------------------------------------------------------------------------------

    /// Replication of this database ends by an internal error, until it is watched again (I-SES-2).
    pub(super) fn panicked(&self, said: &str) {
        self.tracker.stop();
        let why = format!("an internal error stopped replication: {said}");
        log::error!("walrust: {}: {why}", self.path.display());
        self.failed.begins(clock::uptime());
        self.become_part(|part| part.fails(why.clone()));
        self.tell(EventKind::UploadError, why, json!({}));
    }

    /// Tells the database's webhooks.
    pub(super) fn tell(&self, kind: EventKind, message: String, context: serde_json::Value) {
        if kind == EventKind::HistoryGap {
            self.metrics.history_gaps.inc();
        }
        let Some(n) = self.notifier() else { return };
        let mut event = Event::new(kind, series(self.path()), message);
        if let serde_json::Value::Object(fields) = context {
            event.context = fields;
        }
        n.send(&event);
    }
}
