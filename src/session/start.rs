//! Starting to watch: whose replica is it, who ships, and where does capture begin.
//!
//! ```text
//!                        spool knows this replica        spool does not
//!  replica empty         resume what waits, or, if it    first lineage
//!                        was not empty before: a gap
//!  newest is ours        resume; if the replica is       –
//!                        ahead: prove by content or gap
//!  newest is another's   –                               the database's content equals the newest
//!                                                        TXID: continue; else refuse, or take over
//! ```
//!
//! (Empty is a place without a replica of this kind of store; one that a replica of another kind was copied to is refused, I-PLACE-2.)
//!
//! Nothing is written to the replica, the spool made here goes again, and one that was there keeps its queue and records, when
//! the watch is refused.

use super::engine::{engine, lock};
use super::observe;
use super::resync::{self, Expected, Reason};
use super::watched::{REPLACED, Role, Watched};
use super::whose;
use super::work::Work;
use crate::base::event::EventKind;
use crate::base::{DbChecksum, Error, ForkSafe, Kind, Lineage, Result, TxId, clock, panics, thread};
use crate::capture::Sync;
use crate::config::{Settings, replica_key};
use crate::replica;
use crate::ship::{self, Lease, Me};
use crate::spool::{Handoff, LockFile, Owner, Position, Shipped, Spool};
use crate::store::{Breaker, ReplicaUrl, Retry, Store, block_on};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a watch waits for the first snapshot of a small database, so that the next statement finds it
/// streaming; a large one goes on in the background.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// How long a call of the app that needs the replica waits until it is known whose that is.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two tries to find that out.
const JOIN_LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The same where the answer was a plain no, which only a person changes, and a try reads the database.
const JOIN_LONGEST_PAUSE_REFUSED: Duration = Duration::from_secs(300);

/// Why a process that has closed the database does not ship it.
pub(super) const UNREADABLE: &str = "the database must be read anew, and is not open in this process";

/// What to watch.
#[derive(Debug)]
pub struct WatchRequest<'a> {
    /// Path of the database as SQLite names it.
    pub path: &'a Path,
    /// Settings in force, replica included.
    pub settings: Settings,
    /// URL of the replica.
    pub replica: ReplicaUrl,
    /// Begin a new lineage in a replica that holds something else, and take its lease.
    pub takeover: bool,
}

/// How the watch relates to what the replica held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Was watched by this process already.
    Already,
    /// The replica was empty, or was taken over.
    New,
    /// It continues from this TXID.
    Continued(TxId),
    /// Another process of this machine ships it.
    Standby,
}

/// What the replica's newest files say.
#[derive(Clone, Copy, Debug)]
struct Remote {
    txid: TxId,
    snapshot: TxId,
    lineage: Lineage,
    after: Option<DbChecksum>,
}

/// How this process came to hold the replica's lease.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// The user said so.
    over: bool,
    /// From a session that may not know yet that it is over.
    evicted: bool,
    /// The writer before was not of this spool.
    from_another: bool,
    /// Above which TXID a lineage begins then.
    base: TxId,
}

/// The replica's lease, just taken: given back as it was found unless the watch begins ([`LeaseTaken::settle`]). `None` where the
/// store has no conditions, or did not answer.
struct LeaseTaken<'a> {
    lease: Option<Lease>,
    store: &'a Store,
}

impl LeaseTaken<'_> {
    fn is_held(&self) -> bool {
        self.lease.is_some()
    }

    fn how(&self, over: bool) -> Taken {
        let lease = self.lease.as_ref();
        Taken {
            over,
            evicted: lease.is_some_and(Lease::evicted),
            from_another: lease.is_some_and(|l| l.taken_from().is_some()),
            base: lease.map(Lease::base).unwrap_or_default(),
        }
    }

    /// Keeps it: what was there before is settled. Errors when there is no runtime to say so with.
    fn settle(mut self) -> Result<Option<Lease>> {
        let Some(mut lease) = self.lease.take() else { return Ok(None) };
        let store = self.store.clone();
        block_on(async move {
            // If that does not arrive, the next renewal says it.
            drop(lease.settled(&store).await);
            Some(lease)
        })
    }
}

impl Drop for LeaseTaken<'_> {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let store = self.store.clone();
        if let Err(e) = block_on(async move { lease.undo(&store).await }) {
            log::warn!("walrust: the lease just taken ends by itself: {e}");
        }
    }
}

/// Who starts a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The app, which waits for the answer.
    Asked,
    /// The configuration, at the file's first use: the app must not wait for the store, so a thread looks at the replica.
    Configured,
    /// This process, in place of its own watch before: as what, and whether what is in the replica is its own, so that it may
    /// begin anew over it, at once or when it comes to ship.
    Again { wish: Role, reclaims: bool },
}

enum Begin {
    /// The spool knows the place.
    Resume(Position),
    /// The replica is another's, unless the database's content is what it says.
    Prove(Expected),
    /// The database is read anew.
    Resync(Expected, Reason, Queue),
}

/// What becomes of the files that wait in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    /// They leave first.
    Keep,
    /// They are not of the history that begins.
    Clear,
}

impl Begin {
    /// No place is known.
    const NOTHING: Begin =
        Begin::Resync(Expected { txid: TxId::ZERO, attested: None }, Reason::First, Queue::Keep);

    /// A place that no WAL generation names, left without a stamp of the file (unwatch before the first commit, or
    /// a kill): a WAL may have come and gone since, and only the content tells.
    fn or_doubt(self) -> Begin {
        match self {
            Begin::Resume(p)
                if p.handoff == Handoff::Live
                    && p.wal.is_some_and(|w| (w.salt1, w.salt2, w.frame) == (0, 0, 0)) =>
            {
                let why = "the database changed while nothing that had loaded walrust was there to see it";
                let expected = Expected { txid: p.txid, attested: None };
                Begin::Resync(expected, Reason::Gap(why.to_string()), Queue::Keep)
            }
            other => other,
        }
    }
}

impl Watched {
    /// Starts watching. `make_wal` turns WAL mode on; it is called once the replica was found to be usable.
    pub fn start(
        req: WatchRequest<'_>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        // What the configuration wishes stands back: the call goes before it.
        let entry = engine().entry(req.path);
        let wish = entry.wish.take();
        let started = Self::start_as(Start::Asked, req, make_wal);
        if started.is_err() {
            entry.wish.put_back(wish);
        }
        started
    }

    /// Starts watching a database that is configured and in WAL mode. The local part only: the app's thread, inside SQLite, must
    /// not wait for a store. Capture begins where the spool knows the place; whose replica it is, a thread finds out, and tries
    /// again until it knows.
    ///
    /// Errors when the spool cannot be used, or the database must not be watched ([`Kind::Config`]); nothing is changed then.
    pub(super) fn start_configured(req: WatchRequest<'_>) -> Result<Arc<Watched>> {
        let (w, _) = Self::start_as(Start::Configured, req, &|| Ok(()))?;
        w.automatic.store(true, Ordering::Release);
        Ok(w)
    }

    fn start_as(
        how: Start,
        req: WatchRequest<'_>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        let (path, replica) = (req.path, req.replica.to_string());
        super::follow::refuse_followed(path)?;
        // The app may open the database while it is being watched again: who comes second finds it watched.
        let entry = engine().entry(path);
        let _alone = entry.start_alone(how != Start::Configured)?;
        let dir = req.settings.spool_dir.clone().unwrap_or_else(|| default_spool(req.path));
        whose::refuse_others_spool(&dir, req.path)?;
        if let Some(w) = engine().find(req.path) {
            let same = w.ships_to(&replica);
            if same && !req.takeover {
                // Somebody may have turned WAL mode off since.
                make_wal()?;
                let begun = if how == Start::Asked { w.wait_joined(JOIN_PATIENCE)? } else { None };
                return Ok((w, begun.unwrap_or(Identity::Already)));
            }
            if !same && w.automatic.load(Ordering::Acquire) {
                // The call goes before the configuration: what is pending there is shipped first.
                drop(w.unwatch(w.settings.sync_timeout));
            } else if !same {
                return Err(Error::config(format!(
                    "{} is already watched, to {}; call walrust_unwatch() first",
                    req.path.display(),
                    w.replica()
                )));
            }
            w.end(engine());
        }
        let key = replica_key(&replica);
        let shares = |o: &&Arc<Watched>| o.replica_key == key && o.path() != req.path;
        if let Some(other) = engine().watched().iter().find(shares) {
            return Err(shared(other.path(), req.path, &replica));
        }
        let store = Store::open(&req.replica)?;
        if req.replica.dir().is_some_and(|r| std::path::absolute(r).is_ok_and(|r| r.starts_with(&dir))) {
            return Err(Error::config(format!(
                "the replica {replica} lies in the spool {}, which may be deleted; give another directory",
                dir.display()
            )));
        }
        let had_spool = dir.exists();
        let spool = Arc::new(Spool::open(&dir)?);
        let _reserved = whose::reserve(&dir, req.path)?;
        let ship_lock = LockFile::open(&dir.join("lock.ship"))?;
        let started = Self::start_in(how, req, store, spool.clone(), make_wal);
        if started.is_err() && engine().find(path).is_none() {
            engine().metrics().remove(&observe::series(path));
        }
        match &started {
            Ok(_) => {
                super::follow::forget_followed(path);
                engine().clear_failure(path);
            }
            // Unless another process has begun to use it meanwhile, as those do that watched with a spool that was deleted.
            Err(_)
                if !matches!(how, Start::Again { .. })
                    && !had_spool
                    && is_ours(&spool, path)
                    && ship_lock.try_process().unwrap_or(false) =>
            {
                drop(std::fs::remove_dir_all(&dir));
                ship_lock.release();
            }
            Err(_) => {}
        }
        started
    }

    fn start_in(
        how: Start,
        req: WatchRequest<'_>,
        store: Store,
        spool: Arc<Spool>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        let may_ship = !matches!(how, Start::Again { wish: Role::Standby, .. });
        let ships = may_ship && spool.ship_lock().try_process()?;
        let role = if ships { Role::Joining } else { Role::Standby };
        let w = Watched::new(req.path, req.settings, store, spool, role);
        if role == Role::Standby {
            w.reclaims.store(matches!(how, Start::Again { reclaims: true, .. }), Ordering::Release);
            w.spool.claim(&Owner::of(w.path()))?;
            make_wal()?;
            engine().adopt(&w)?;
            resume_standby(&w);
            return Ok((w, Identity::Standby));
        }
        w.note_shipping();
        if how == Start::Configured {
            return match w.capture_locally() {
                Ok(()) => {
                    join(&w);
                    Ok((w, Identity::New))
                }
                Err(e) => {
                    w.abandon();
                    Err(e)
                }
            };
        }
        // This thread's own try: the sealer makes none beside it.
        w.joined.begin_try();
        let begun = w.begin(req.takeover, make_wal);
        match begun {
            Ok(identity) => {
                w.joined.tell(identity);
                Ok((w, identity))
            }
            Err(e) => {
                w.abandon();
                Err(e)
            }
        }
    }

    /// A watch that could not begin: nothing of it stays.
    fn abandon(self: &Arc<Self>) {
        self.tracker.stop();
        self.spool.forget_shipping();
        self.spool.ship_lock().release();
        engine().drop_watched(self);
    }

    /// Follows commits from where the spool stands, if it is known to be that of this replica; without the store.
    fn capture_locally(self: &Arc<Self>) -> Result<()> {
        let known = self.shipped()?.or(self.identified()?);
        let place = self.local_place(known.as_ref())?;
        if let Begin::Resume(p) =
            place.filter(|p| p.wal.is_some()).map_or(Begin::NOTHING, Begin::Resume).or_doubt()
        {
            self.tracker.resume(p);
        }
        self.spool.claim(&Owner::of(self.path()))?;
        engine().adopt(self)
    }

    /// Waits until it is known whose replica it is. `None`: it was known before. Errors with what keeps it from being known when
    /// `patience` is over, or at once when that is the store's plain no.
    pub(super) fn wait_joined(&self, patience: Duration) -> Result<Option<Identity>> {
        if self.role() != Role::Joining {
            return Ok(None);
        }
        self.join_soon();
        self.joined.wait(patience).map(Some)
    }

    /// Has it found out now, whatever pause there is.
    pub(super) fn join_soon(&self) {
        self.joined.hurry();
        engine().sealer.hurry();
    }

    /// This process holds the ship lock: find out whose replica it is and where to begin, and go. Talks to the store, so an app's
    /// thread calls it only where the app asked for an answer. Errors leave lease, queue and position as they were.
    fn begin(self: &Arc<Self>, takeover: bool, make_wal: &dyn Fn() -> Result<()>) -> Result<Identity> {
        let mut recorded = self.shipped()?;
        let mut known = recorded.clone().or(self.identified()?);
        let looked = look(&self.store).and_then(|remote| {
            if remote.is_none() && recorded.is_none() {
                let store = self.store.clone();
                block_on(async move { replica::place::refuse_to_begin(&store).await })??;
            }
            Ok(remote)
        });
        let me = self.me()?;
        let (remote, lease) = match looked {
            Ok(remote) => {
                let lease = self.lease(&me, takeover, remote.map(|r| r.txid).unwrap_or_default())?;
                let lease = LeaseTaken { lease, store: &self.store };
                // Its last holder may have added to it meanwhile.
                let remote = if lease.is_held() { look(&self.store)? } else { remote };
                (remote, lease)
            }
            // Known and continuing: an outage at start is no reason not to capture.
            Err(e) if e.is_retry() && recorded.is_some() && self.local_place(known.as_ref())?.is_some() => {
                log::warn!("walrust: {}: starting without its replica: {e}", self.path().display());
                (known.as_ref().and_then(remembered), LeaseTaken { lease: None, store: &self.store })
            }
            Err(e) => return Err(e),
        };
        if let (None, Some(r)) = (&known, &remote)
            && let Some(s) = self.respelled(r)?
        {
            (recorded, known) = (Some(s.clone()), Some(s));
        }
        make_wal()?;
        let taken = lease.how(takeover);
        // (Read after the store has answered: what was committed meanwhile was sealed by this process or another.)
        let local = self.local_place(known.as_ref())?;
        let begin = match (remote, &recorded) {
            // How far it had come is not known, so a replica that holds nothing is begun anew.
            (None, None) => self.decide(None, None, known.as_ref(), taken)?,
            (remote, _) => self.decide(remote, local, known.as_ref(), taken)?,
        }
        .or_doubt();
        if !matches!(begin, Begin::Resume(_)) && !self.entry.can_read() {
            // Another process may be able to, and that it must be done is found in the spool. (Where the spool is another
            // replica's, it is found in its name.)
            if known.is_some() {
                let held = self.spool.hold_seal()?;
                self.spool.forget_place(&held)?;
            }
            return Err(Error::new(Kind::Retry, UNREADABLE));
        }
        let identity = match &begin {
            Begin::Resume(p) => Identity::Continued(p.txid),
            Begin::Prove(e) | Begin::Resync(e, Reason::Gap(_), _) => Identity::Continued(e.txid),
            Begin::Resync(_, Reason::First, _) => Identity::New,
        };
        self.spool.claim(&Owner::of(self.path()))?;
        engine().adopt(self)?;
        if let Begin::Resync(_, _, queue) = begin {
            // Whoever waits for a TXID, in this process or another, has to see first what becomes of it.
            self.entry.reading_begins();
            self.tracker.begin_resync();
            let held = self.spool.hold_seal()?;
            self.spool.forget_place(&held)?;
            if queue == Queue::Clear {
                self.tell_given_up();
                self.spool.clear(&held)?;
            }
        }
        if let Some(s) = known.as_ref() {
            self.spool.respell(&s.replica, self.replica())?;
        }
        self.link.update(|s| {
            s.replicated = remote.map(|r| r.txid).unwrap_or_default();
            s.snapshot = remote.map(|r| r.snapshot).unwrap_or_default();
        });
        match begin {
            Begin::Resume(p) => self.tracker.resume(p),
            Begin::Prove(expected) => {
                let proved = super::prove::run(self, expected);
                self.snapshotting.store(false, Ordering::Release);
                proved?;
            }
            Begin::Resync(expected, reason, _) => {
                self.remember(remote)?;
                resync::start_with(self, expected, reason);
                let end = clock::uptime() + FIRST_LOOK;
                while self.busy.load(Ordering::Acquire) && clock::uptime() < end {
                    clock::sleep(Duration::from_millis(1));
                }
            }
        }
        self.remember(remote)?;
        self.reclaims.store(false, Ordering::Release);
        let lease = lease.settle()?;
        *lock(&self.role) = Role::Shipper;
        self.ship(me, lease, takeover)?;
        // (What was committed while this was a standby is cut at once.)
        self.dirty.store(true, Ordering::Release);
        engine().sealer.wake();
        Ok(identity)
    }

    /// Where the spool stands, if it is known to be that of this replica. Settles what a process that died left half done.
    fn local_place(&self, known: Option<&Shipped>) -> Result<Option<Position>> {
        if known.is_none() {
            return Ok(None);
        }
        let held = self.spool.hold_unsettled()?;
        self.spool.recover(&held)
    }

    /// What the spool says of the replica under the name by which it was known before: a history is known by its lineage, which
    /// is a random number, and one that has all that was shipped is that replica, or a copy that can be gone on from.
    fn respelled(&self, r: &Remote) -> Result<Option<Shipped>> {
        let Some(s) = self.spool.shipped()? else { return Ok(None) };
        let is_its = r.lineage == s.lineage || self.spool.owns(&s.replica, r.lineage)?;
        let same = is_its && r.lineage != Lineage::default() && r.txid >= s.txid && s.txid > TxId::ZERO;
        if same {
            log::info!(
                "walrust: {}: {} is known by its history, from when it was {}",
                self.path().display(),
                self.replica(),
                s.replica
            );
        }
        Ok(same.then_some(s))
    }

    /// What waits in the spool does not reach a replica any more: it was another's, or that is begun anew.
    fn tell_given_up(&self) {
        let waiting = self.spool.pending().map_or(0, |p| p.len());
        let of = self.spool.shipped().ok().flatten().map(|s| s.replica);
        if let (1.., Some(of)) = (waiting, of) {
            log::warn!(
                "walrust: {}: {waiting} files that waited for {of} are given up: {} begins with a snapshot",
                self.path().display(),
                self.replica()
            );
        }
    }

    /// Whether it must be read anew, and this process has it not open.
    pub(super) fn is_unreadable(&self) -> bool {
        let lost = || self.spool.position().is_ok_and(|p| p.is_none_or(|p| p.wal.is_none()));
        // (Nothing of this replica is known here: it is begun with by reading the database.)
        let unknown = || matches!((self.shipped(), self.identified()), (Ok(None), Ok(None)));
        !self.entry.can_read() && (lost() || unknown())
    }

    /// Writes down whose spool this is, so that the next start knows it.
    fn remember(&self, remote: Option<Remote>) -> Result<()> {
        let now = clock::now();
        // That of the newest file there: the position's may not have arrived yet.
        let lineage =
            remote.map(|r| r.lineage).or(self.tracker.position().map(|p| p.lineage)).unwrap_or_default();
        let s = self.link.status();
        self.spool.set_shipped(&Shipped {
            replica: self.replica().to_string(),
            lineage,
            txid: s.replicated,
            snapshot: s.snapshot,
            time: now,
        })
    }

    /// What is known of the replica when a power cut took the record of it: that it is ours.
    fn identified(&self) -> Result<Option<Shipped>> {
        let identity = self.spool.identity()?.filter(|i| self.ships_to(&i.replica));
        Ok(identity.map(|i| Shipped {
            replica: i.replica,
            lineage: Lineage::default(),
            txid: TxId::ZERO,
            snapshot: TxId::ZERO,
            time: clock::now(),
        }))
    }

    fn decide(
        &self,
        remote: Option<Remote>,
        local: Option<Position>,
        known: Option<&Shipped>,
        taken: Taken,
    ) -> Result<Begin> {
        let shipped = known.map(|s| s.txid).unwrap_or_default();
        let newest_here = self.spool.pending()?.last().map(|q| q.txid).unwrap_or_default();
        let Some(r) = remote else {
            return Ok(match local {
                // Its first files may be on their way.
                _ if taken.evicted && taken.from_another => {
                    let txid = newest_here.max(shipped).max(taken.base);
                    Begin::Resync(Expected { txid, attested: None }, Reason::First, Queue::Clear)
                }
                Some(p) if shipped == TxId::ZERO => Begin::Resume(p),
                _ if shipped == TxId::ZERO => Begin::Resync(Expected::default(), Reason::First, Queue::Clear),
                _ => {
                    let expected = Expected { txid: shipped, attested: None };
                    let why = Reason::Gap("the replica was emptied".to_string());
                    Begin::Resync(expected, why, Queue::Clear)
                }
            });
        };
        let lineage_here = local.as_ref().map(|p| p.lineage).or(known.map(|s| s.lineage)).unwrap_or_default();
        // A copy of this spool knows the history as well: what another writer put there since is not ours, whatever it is
        // called, and one that was evicted alive may still add to the lineage it had.
        let made_here = r.txid <= shipped || self.made(&r, local.as_ref());
        let by_another = taken.from_another && (!made_here || (taken.over && taken.evicted));
        let ours = known.is_some()
            && !by_another
            && r.lineage != Lineage::default()
            && (r.lineage == lineage_here
                || known.is_some_and(|s| s.lineage == r.lineage)
                || self.spool.is_queued(r.lineage)?
                || match known {
                    Some(s) => self.spool.owns(&s.replica, r.lineage)?,
                    None => false,
                });
        let expected = Expected { txid: r.txid, attested: r.after.map(|a| (r.lineage, a)) };
        if ours {
            return Ok(match local {
                Some(p) if r.txid <= p.txid.max(newest_here) => Begin::Resume(p),
                Some(_) => Begin::Resync(
                    expected,
                    Reason::Gap(format!("the replica is ahead of this machine, at TXID {}", r.txid)),
                    Queue::Keep,
                ),
                None => Begin::Resync(
                    expected,
                    Reason::Gap("the spool's record of the place is gone".to_string()),
                    Queue::Keep,
                ),
            });
        }
        if taken.over {
            let txid = r.txid.max(newest_here).max(taken.base);
            return Ok(Begin::Resync(Expected { txid, attested: None }, Reason::First, Queue::Clear));
        }
        let attested = match r.after {
            Some(_) => expected.attested,
            None => Some((Lineage::fresh(), self.checksum_of_replica()?)),
        };
        Ok(Begin::Prove(Expected { txid: r.txid, attested }))
    }

    /// Whether the newest file of the replica was made from this spool, by what it attests.
    fn made(&self, r: &Remote, local: Option<&Position>) -> bool {
        let here = local.is_some_and(|p| {
            p.pieces == 0 && (p.lineage, p.txid, Some(p.checksum)) == (r.lineage, r.txid, r.after)
        });
        here || self
            .spool
            .attested(r.txid)
            .is_some_and(|(lineage, after)| (lineage, Some(after)) == (r.lineage, r.after))
    }

    /// What a restore of the replica adds up to, for a replica that attests nothing (Litestream wrote it).
    fn checksum_of_replica(&self) -> Result<DbChecksum> {
        let target = self.spool.dir().join(".tmp-identity.db");
        drop(std::fs::remove_file(&target));
        let options = replica::RestoreOptions { check: replica::Check::None, ..Default::default() };
        let restored =
            block_on(replica::restore::restore(&self.store, replica::Point::Latest, &target, &options))?;
        let checksum = restored.map(|r| r.checksum);
        drop(std::fs::remove_file(&target));
        checksum
    }

    fn me(&self) -> Result<Me> {
        let writer = self.spool.writer()?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Me {
            writer,
            session: format!("{:016x}", clock::random_u64()),
            who: format!("{host} (process {})", std::process::id()),
        })
    }

    fn lease(&self, me: &Me, takeover: bool, newest: TxId) -> Result<Option<Lease>> {
        let store = self.store.clone();
        let me = me.clone();
        block_on(async move {
            if !store.probe_conditional().await?.allow_lease() {
                return Ok(None);
            }
            Lease::take(&store, &me, takeover, newest).await.map(Some)
        })?
    }

    fn ship(self: &Arc<Self>, me: Me, lease: Option<Lease>, evict: bool) -> Result<()> {
        let s = &self.settings;
        let on_event = {
            let w = Arc::downgrade(self);
            Arc::new(move |e: ship::Event| {
                if let Some(w) = w.upgrade() {
                    observe::on_event(&w, &e);
                }
            })
        };
        let on_slot = {
            let w = Arc::downgrade(self);
            Arc::new(move || {
                if let Some(w) = w.upgrade() {
                    w.caught_up();
                    engine().sealer.wake();
                }
            })
        };
        let plan = ship::Plan {
            spool: self.spool.clone(),
            // The shipper waits and counts by itself.
            store: self.store.clone().with_retry(Retry::NONE),
            link: self.link.clone(),
            me,
            evict,
            lease,
            replica: self.replica().to_string(),
            retry: Retry { attempts: u32::MAX, base: s.retry.base, max: s.retry.max },
            breaker: Breaker::new(s.retry.breaker_threshold, s.retry.breaker_cooldown),
            levels: s.levels.clone(),
            on_event,
            on_slot,
        };
        ship::runtime::handle()?.spawn(ship::run(plan));
        Ok(())
    }
}

/// Whether the spool, which was made for `path`, is no other database's by now.
fn is_ours(spool: &Spool, path: &Path) -> bool {
    spool.check_owner(&Owner::of(path)).is_ok()
}

pub(super) fn shared(a: &Path, b: &Path, replica: &str) -> Error {
    Error::config(format!(
        "{} and {} would share the replica {replica}; each database needs its own",
        a.display(),
        b.display()
    ))
}

/// Begins anew, as its own successor: the spool was deleted under us, or the replica was emptied. A snapshot
/// under a new lineage follows.
pub(super) fn restart(w: &Arc<Watched>, why: &str) {
    // What this process shipped is its own; a standby finds out whose it is.
    let takeover = w.role() == Role::Shipper || w.reclaims.load(Ordering::Acquire);
    if takeover && w.link.status().state != ship::State::Fenced && !w.busy.load(Ordering::Acquire) {
        let context = json!({"reason": why});
        w.tell(EventKind::HistoryGap, format!("{why}; a new snapshot follows"), context);
    }
    if begin_again(w, takeover, Role::Shipper) {
        log::warn!("walrust: {}: {why}; beginning anew", w.path().display());
    }
}

/// The database must be read, and this process has it not open, or only a file that was replaced: one that has it is to
/// ship it. This one is a standby until the app opens it.
pub(super) fn hand_over(w: &Arc<Watched>) {
    let replaced = w.entry.has_only_replaced();
    if w.spool.hold_seal().and_then(|held| w.spool.forget_place(&held)).is_err()
        || !begin_again(w, false, Role::Standby)
    {
        return;
    }
    if replaced {
        log::warn!("walrust: {}: {REPLACED}", w.path().display());
        w.tell(EventKind::HistoryGap, REPLACED.to_string(), json!({"reason": REPLACED}));
    } else {
        log::info!("walrust: {}: {UNREADABLE}; waiting until it is", w.path().display());
    }
}

/// Whether it begins, on a thread of its own: not when one is at work.
fn begin_again(w: &Arc<Watched>, takeover: bool, wish: Role) -> bool {
    if w.link.status().state == ship::State::Fenced {
        return false;
    }
    let Some(ticket) = Work::take(w) else { return false };
    ticket.start("walrust-restart", move |ticket| {
        let mine = ticket.of();
        mine.end(engine());
        let mut wish = wish;
        loop {
            // Nobody else tries, nor shows in the status: a panic is an error like another here.
            let begun = panics::caught(|| {
                let replica = ReplicaUrl::parse(mine.replica())?;
                let settings = mine.settings.clone();
                let req = WatchRequest { path: mine.path(), settings, replica, takeover };
                Watched::start_as(Start::Again { wish, reclaims: takeover }, req, &|| Ok(()))
            });
            match begun.unwrap_or_else(|said| Err(panics::error(&said))) {
                Ok(_) => {
                    engine().clear_failure(mine.path());
                    return;
                }
                // A standby waits for the app to open it.
                Err(_) if wish == Role::Shipper && !mine.entry.can_read() => {
                    wish = Role::Standby;
                    continue;
                }
                Err(e) => engine().note_failure(mine.path(), &e),
            }
            clock::sleep(Duration::from_secs(2));
        }
    })
}

/// A power cut took a part of a file that waits to be shipped: it and what follows are given up, and a snapshot under a
/// new lineage takes their place, above every TXID they had.
pub(super) fn queue_damaged(w: &Arc<Watched>, why: String) {
    // What is being made for the queue at the moment would go, too, and be counted on. The shipper meets the file again.
    let Some(ticket) = Work::take(w) else { return };
    // (If no thread can be started, the shipper meets the file again.)
    ticket.start("walrust-restart", move |ticket| {
        let mine = ticket.of();
        let cut = mine.tracker.position().map(|p| p.txid).unwrap_or_default();
        let waiting = mine.spool.pending().ok().and_then(|p| p.last().map(|q| q.txid)).unwrap_or_default();
        let cleared = mine.spool.hold_seal().and_then(|held| {
            mine.spool.clear(&held)?;
            mine.spool.venture(&held, cut.max(waiting).next())
        });
        match cleared {
            Ok(()) => mine.tracker.lose(format!("a file of the spool is damaged: {why}")),
            Err(e) => log::warn!("walrust: {}: the queue cannot be cleared: {e}", mine.path().display()),
        }
        mine.dirty.store(true, Ordering::Release);
    });
}

/// A standby looks whether the shipper's process has ended, and follows its position.
pub(super) fn try_take_over(w: &Arc<Watched>) {
    if w.is_unreadable() {
        resume_standby(w);
        return;
    }
    match w.spool.ship_lock().try_process() {
        Ok(true) => {}
        Ok(false) => {
            resume_standby(w);
            return;
        }
        Err(e) => {
            log::warn!("walrust: {}: {e}", w.path().display());
            return;
        }
    }
    if let Err(e) = w.spool.check_owner(&Owner::of(w.path())) {
        w.spool.ship_lock().release();
        if lock(&w.failure).is_none() {
            w.fail(e.to_string());
        }
        return;
    }
    *lock(&w.role) = Role::Joining;
    w.note_shipping();
    join(w);
}

/// Threads that join at once: a program may open a thousand databases in a second.
const JOINING: usize = 16;
static JOINS: ForkSafe<Mutex<usize>> = ForkSafe::new(Mutex::default);

/// The right to be one of them, until dropped.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let mut joins = JOINS.lock();
        (*joins < JOINING).then(|| {
            *joins += 1;
            Place
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *JOINS.lock() -= 1;
    }
}

/// Finds out on a thread of its own whose replica it is, and begins to ship, if a try is due. The caller has the ship lock and the role
/// [`Role::Joining`]; the sealer calls again as long as that is the role.
pub(super) fn join(w: &Arc<Watched>) {
    if !w.joined.begin_try() {
        return;
    }
    let Some(place) = Place::take() else { return w.joined.postpone() };
    let mine = w.clone();
    let work = move || {
        try_to_join(&mine);
        drop(place);
        engine().sealer.wake();
    };
    if let Err(e) = thread::spawn("walrust-join", 512 << 10, work) {
        log::error!("walrust: {}: cannot start a thread: {e}", w.path().display());
        w.joined.postpone();
    }
}

fn try_to_join(w: &Arc<Watched>) {
    let begun = panics::caught(|| w.begin(w.reclaims.load(Ordering::Acquire), &|| Ok(())));
    let failed = match begun.unwrap_or_else(|said| Err(panics::error(&said))) {
        Ok(identity) => return w.joined.tell(identity),
        Err(e) => e,
    };
    if w.tracker.sync_state() == Sync::Resyncing {
        // Nobody looks at the WAL until the next try: it need not stay as it is.
        w.tracker.stop();
    }
    if w.is_unreadable() && !w.link.is_stopped() {
        // Another process may have it open; this one waits for the app to open it.
        *lock(&w.role) = Role::Standby;
        w.spool.forget_shipping();
        w.spool.ship_lock().release();
        return w.joined.refuse(&failed, Duration::ZERO);
    }
    w.cannot_join(&failed);
}

fn longest_pause(kind: Kind) -> Duration {
    match kind {
        Kind::Config | Kind::Corrupt | Kind::Bug => JOIN_LONGEST_PAUSE_REFUSED,
        _ => JOIN_LONGEST_PAUSE,
    }
}

impl Watched {
    /// Says why it is not known yet whose replica it is. It is tried again.
    fn cannot_join(&self, e: &Error) {
        let state = match e.kind() {
            Kind::Fenced => ship::State::Fenced,
            Kind::Retry | Kind::Timeout => ship::State::CatchingUp,
            _ => ship::State::Failed,
        };
        log::warn!("walrust: {}: {e}", self.path().display());
        self.link.update(|s| {
            s.state = state;
            s.last_error = Some((e.kind(), e.to_string()));
        });
        self.joined.refuse(e, longest_pause(e.kind()));
    }
}

/// Follows the shipper's position, if it has one that the WAL goes on from.
fn resume_standby(w: &Arc<Watched>) {
    if matches!(w.tracker.sync_state(), Sync::Idle | Sync::Lost(_))
        && let Ok(Some(p)) = w.spool.position()
        && p.wal.is_some()
    {
        w.tracker.resume(p);
    }
}

/// What the replica's newest files say; `None` if there are none.
fn look(store: &Store) -> Result<Option<Remote>> {
    let store = store.clone();
    block_on(async move {
        let inventory = replica::Inventory::read(&store).await?;
        let Some(newest) = inventory.files.iter().max_by_key(|f| (f.max, f.level)) else {
            return Ok(None);
        };
        let header = replica::inventory::read_header(&store, newest.id()).await?;
        let snapshot = inventory.files.iter().filter(|f| f.min == TxId(1)).map(|f| f.max).max();
        Ok(Some(Remote {
            txid: newest.max,
            snapshot: snapshot.unwrap_or_default(),
            lineage: header.lineage,
            after: header.attest.map(|a| a.after),
        }))
    })?
}

fn remembered(s: &Shipped) -> Option<Remote> {
    (s.txid > TxId::ZERO).then_some(Remote {
        txid: s.txid,
        snapshot: s.snapshot,
        lineage: s.lineage,
        after: None,
    })
}

/// Where the spool of a database lies unless `spool_dir` says otherwise: `<database file>-walrust/`.
pub fn default_spool(db: &Path) -> PathBuf {
    let mut s = db.as_os_str().to_owned();
    s.push("-walrust");
    s.into()
}
