//! Finding out whose replica it is, and beginning to ship ([`super::phase::Phase::Joining`]).
//!
//! A try talks to the store, so it has a thread of its own; an app's thread makes one only where the app asked for an answer, and no
//! longer than [`Patience`] allows. A try that fails leaves lease, queue and position as they were (I-SES-4): what it took, it gives
//! back. The sealer has the next try made after a pause.

use super::access::Access;
use super::events::on_event;
use super::identity::{self, Begin, Here, Identity, Known, Queue, Remote, Taken};
use super::job::Job;
use super::phase::{Part, Role};
use super::places::Places;
use super::prove::{self, Proof};
use super::registry::Engine;
use super::reread;
use super::settings::keeping;
use super::told::UNREADABLE;
use super::watched::Watched;
use super::work::Work;
use crate::base::{DbChecksum, Error, Kind, Lineage, Result, TxId, clock, panics, thread};
use crate::capture::Continuity;
use crate::replica;
use crate::ship::{self, Lease, Me};
use crate::spool::{Owner, Position, Shipped};
use crate::store::{Breaker, Conditions, Retry, Store, block_on};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long a watch waits for the first snapshot of a small database, so that the next statement finds it
/// streaming; a large one goes on in the background.
const FIRST_READING: Duration = Duration::from_secs(2);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The same where the answer was a plain no, which only a person changes, and a try reads the database.
const LONGEST_PAUSE_REFUSED: Duration = Duration::from_secs(300);
/// How long a try waits for a last close that reads the database.
const READING_PATIENCE: Duration = Duration::from_secs(10);
/// Threads that try at once.
static TRYING: Places = Places::of(16);

/// How long a try waits for the store's answer to what it asks at first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// As long as the store's own retries take.
    Patient,
    /// Until this uptime: a thread of the app waits.
    Until(Duration),
}

impl Patience {
    /// Runs what asks the store. Errors with its error, or with [`Kind::Timeout`].
    fn ask<T: Send + 'static>(
        self,
        store: &Store,
        asked: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let Patience::Until(end) = self else { return block_on(asked)? };
        let left = end.saturating_sub(clock::uptime());
        let none = Error::new(Kind::Timeout, format!("the replica {} has not answered yet", store.url()));
        block_on(async move { tokio::time::timeout(left, asked).await.unwrap_or(Err(none)) })?
    }
}

/// Why it is not known whose replica it is.
#[derive(Debug)]
pub(super) enum NotJoined {
    /// What the store said, or that it did not answer.
    Store(Error),
    /// What stands in the way here: the database, the spool, a lock.
    Here(Error),
}

impl NotJoined {
    /// Whether the store has not answered: that passes by itself, and nothing is wrong here.
    pub(super) fn is_no_answer(&self) -> bool {
        matches!(self, NotJoined::Store(e) if matches!(e.kind(), Kind::Retry | Kind::Timeout))
    }

    /// Whether what stands in the way here passes in a moment.
    fn passes(&self) -> bool {
        matches!(self, NotJoined::Here(e) if e.is_retry())
    }

    /// What it was.
    pub(super) fn error(self) -> Error {
        match self {
            NotJoined::Store(e) | NotJoined::Here(e) => e,
        }
    }
}

impl From<Error> for NotJoined {
    fn from(e: Error) -> NotJoined {
        NotJoined::Here(e)
    }
}

/// The replica's lease, just taken: given back as it was found unless the watch begins ([`LeaseTaken::settle`]). `None` where the
/// store has no conditions, or did not answer.
struct LeaseTaken<'a> {
    lease: Option<Lease>,
    store: &'a Store,
}

impl LeaseTaken<'_> {
    /// Whether another writer may have had it between the first look and its taking.
    fn may_have_been_anothers(&self) -> bool {
        self.lease.as_ref().is_some_and(|l| !l.is_continued())
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

/// What the store and the spool say together.
struct Findings<'a> {
    remote: Option<Remote>,
    lease: LeaseTaken<'a>,
    /// What the spool has recorded of the replica.
    known: Option<Shipped>,
    /// The record of what was shipped is there, not only the name of the replica.
    is_recorded: bool,
}

impl Watched {
    /// This process holds the ship lock: finds out whose replica it is and where to begin, and goes. `make_wal` turns WAL mode on; it
    /// is called once the replica was found to be usable.
    ///
    /// Errors with what the store or the database says: [`Kind::Config`] for a replica of another's, [`Kind::Fenced`] for one that
    /// another writer holds, [`Kind::Retry`] when the database must be read and is not open here. Lease, queue and position are then
    /// as they were.
    pub(super) fn find_out(
        self: &Arc<Self>,
        engine: &Engine,
        patience: Patience,
        takeover: bool,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> std::result::Result<Identity, NotJoined> {
        let (found, me) = self.ask_store(patience, takeover).map_err(NotJoined::Store)?;
        make_wal()?;
        // (A last close may read it at this moment, which then is to be seen here.)
        let reading = Work::take_within(self, Job::Reading, READING_PATIENCE)
            .ok_or_else(|| Error::new(Kind::Retry, "another thread reads the database"))?;
        let found = match found.known {
            Some(_) if found.is_recorded => found,
            // (Also where the store was asked in the middle of such a reading, when the name was recorded and nothing else.)
            _ => Findings { known: self.known()?, is_recorded: self.shipped()?.is_some(), ..found },
        };
        let taken = found.lease.how(takeover);
        // (Read after the store has answered: what was committed meanwhile was sealed by this process or another.)
        let begin = identity::decide(found.remote, &self.here(&found)?, taken);
        if !matches!(begin, Begin::Resume(_)) && !self.handles.can_read() {
            // Another process may be able to, and that it must be done is found in the spool. (Where the spool is another
            // replica's, it is found in its name.)
            if found.known.is_some() {
                let held = self.spool.hold_seal()?;
                self.spool.forget_place(&held)?;
            }
            return Err(Error::new(Kind::Retry, UNREADABLE).into());
        }
        let identity = begin.identity();
        self.spool.claim(&Owner::of(self.path()))?;
        engine.adopt(self)?;
        self.begin_at(begin, &found, reading)?;
        self.remember(found.remote)?;
        self.note_conditions();
        let lease = found.lease.settle()?;
        self.become_part(Part::joined);
        self.ship(me, lease, takeover)?;
        // (What was committed while this was a standby is cut at once.)
        self.look_again();
        self.call();
        Ok(identity)
    }

    /// Asks the store what it holds, and for the lease: as who is written down, and synced, once the store has answered.
    fn ask_store(&self, patience: Patience, takeover: bool) -> Result<(Findings<'_>, Me)> {
        let recorded = self.shipped()?;
        let is_recorded = recorded.is_some();
        // (A record may have been made before the store was heard.)
        let has_shipped = recorded.is_some_and(|s| s.txid > TxId::ZERO);
        let known = self.known()?;
        let no_lease = LeaseTaken { lease: None, store: &self.store };
        let looked = look(&self.store, patience).and_then(|remote| {
            self.joined.answers();
            if remote.is_none() && !has_shipped {
                let store = self.store.clone();
                patience.ask(&self.store, async move { replica::place::refuse_to_begin(&store).await })?;
            }
            Ok(remote)
        });
        let looked = match looked {
            Err(e) if e.is_retry() && has_shipped && self.local_place()?.is_some() => Err(e),
            looked => Ok(looked?),
        };
        let me = self.me()?;
        let (remote, lease) = match looked {
            Ok(remote) => {
                let lease = self.take_lease(&me, patience, takeover, remote)?;
                let lease = LeaseTaken { lease, store: &self.store };
                // Its last holder may have added to it meanwhile.
                let remote =
                    if lease.may_have_been_anothers() { look(&self.store, patience)? } else { remote };
                (remote, lease)
            }
            // Known and continuing: an outage at start is no reason not to capture.
            Err(e) => {
                log::warn!("walrust: {}: starting without its replica: {e}", self.path().display());
                (known.as_ref().and_then(remembered), no_lease)
            }
        };
        let is_closed = self.store.is_closed();
        let newest = match &known {
            Some(s) if is_closed => {
                let waiting = self.spool.pending()?.last().map(|q| q.txid).unwrap_or_default();
                let snapshot = self.spool.snapshots()?.last().map(|q| q.txid).unwrap_or_default();
                Some((s.lineage, s.txid.max(waiting).max(snapshot)))
            }
            _ => None,
        };
        let remote = remote.map(|r| identity::as_known(r, newest, is_closed));
        if is_closed && !takeover && remote.is_some_and(|r| r.lineage == Lineage::default()) {
            return Err(Error::config(format!(
                "the replica {} is encrypted, and whether it is this database's cannot be told without an identity: set WALRUST_IDENTITY, or \
                 take it over with '{{\"takeover\":true}}', which begins anew with a snapshot",
                self.replica()
            )));
        }
        let found = Findings { remote, lease, known, is_recorded };
        let respelled = match (&found.known, &found.remote) {
            (None, Some(r)) => self.respelled(r)?,
            _ => None,
        };
        let found = match respelled {
            Some(known) => Findings { known: Some(known), is_recorded: true, ..found },
            None => found,
        };
        Ok((found, me))
    }

    /// What this machine knows, for the decision.
    fn here(&self, found: &Findings<'_>) -> Result<Here> {
        let place = match &found.known {
            // How far it had come is not known, so a replica that holds nothing is begun anew.
            Some(_) if found.remote.is_none() && !found.is_recorded => None,
            Some(_) => self.local_place()?,
            None => None,
        };
        let known = found.known.as_ref();
        let owns_lineage = match (found.remote, known) {
            (Some(r), Some(s)) => {
                self.spool.is_queued(r.lineage)? || self.spool.owns(&s.replica, r.lineage)?
            }
            _ => false,
        };
        Ok(Here {
            made_newest: found.remote.is_some_and(|r| self.made(&r, place.as_ref())),
            place,
            known: known.map(|s| Known { shipped: s.txid, lineage: s.lineage, snapshot: s.snapshot }),
            queued: self.spool.pending()?.last().map(|q| q.txid).unwrap_or_default(),
            owns_lineage,
        })
    }

    /// Goes on from what was decided.
    fn begin_at(self: &Arc<Self>, begin: Begin, found: &Findings<'_>, reading: Work) -> Result<()> {
        if let Begin::Reread(_, _, queue) = &begin {
            // Whoever waits for a TXID, in this process or another, has to see first what becomes of it.
            self.handles.reading_begins();
            self.tracker.begin_resync();
            let held = self.spool.hold_seal()?;
            self.spool.forget_place(&held)?;
            if *queue == Queue::Clear {
                self.tell_given_up();
                self.spool.clear(&held)?;
            }
            if let Some(r) = found.remote {
                self.spool.drop_shipped(&held, r.txid)?;
            }
        }
        if let Some(s) = &found.known {
            self.spool.respell(&s.replica, self.replica())?;
        }
        self.link.update(|s| {
            s.replicated = found.remote.map(|r| r.txid).unwrap_or_default();
            s.snapshot = found.remote.map(|r| r.snapshot).unwrap_or_default();
        });
        match begin {
            Begin::Resume(decided) => {
                // What was sealed, or closed, since the decision has moved it on: from here on nobody does until it is taken up.
                let _held = self.spool.hold_seal()?;
                self.tracker.resume(self.spool.position()?.unwrap_or(decided));
            }
            Begin::Prove(mut expected) => {
                if expected.attested.is_none() {
                    expected.attested = Some((Lineage::fresh(), self.checksum_of_replica()?));
                }
                if prove::run(self, expected)? == Proof::Descends {
                    let newest = self.spool.pending()?.last().map(|q| q.txid).unwrap_or_default();
                    let begin = Begin::after_commits_unheard(expected.txid.max(newest));
                    return self.begin_at(begin, found, reading);
                }
            }
            Begin::Reread(expected, reason, _) => {
                self.remember(found.remote)?;
                reread::start_with(reading, expected, reason);
                self.job.wait_free(FIRST_READING);
            }
        }
        Ok(())
    }

    /// Where the spool stands, which is known to be that of this replica. Settles what a process that died left half done.
    pub(super) fn local_place(&self) -> Result<Option<Position>> {
        let held = self.spool.hold_unsettled()?;
        self.spool.recover(&held)
    }

    /// What the spool says of the replica under the name by which it was known before: a history is known by its lineage, which
    /// is a random number, and one that has all that was shipped is that replica, or a copy that can be gone on from.
    fn respelled(&self, r: &Remote) -> Result<Option<Shipped>> {
        let Some(s) = self.spool.shipped()? else { return Ok(None) };
        let is_its = r.lineage == s.lineage || self.spool.owns(&s.replica, r.lineage)?;
        let same = is_its && r.lineage != Lineage::default() && r.txid >= s.txid && s.txid.0 > 0;
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

    /// Writes down whose spool this is, so that the next start knows it.
    pub(super) fn remember(&self, remote: Option<Remote>) -> Result<()> {
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
            snapshot_time: self.shipped()?.and_then(|s| s.snapshot_time),
            time: now,
            change: self.shipped()?.map(|s| s.change).unwrap_or_default(),
        })
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

    pub(super) fn me(&self) -> Result<Me> {
        let writer = self.spool.writer()?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Me {
            writer,
            session: format!("{:016x}", clock::random_u64()),
            who: format!("{host} (process {})", std::process::id()),
        })
    }

    fn take_lease(
        &self,
        me: &Me,
        patience: Patience,
        takeover: bool,
        remote: Option<Remote>,
    ) -> Result<Option<Lease>> {
        let (store, me) = (self.store.clone(), me.clone());
        let newest = remote.map(|r| r.txid).unwrap_or_default();
        self.recall_conditions();
        patience.ask(&self.store, async move {
            let conditions = store.probe_conditional().await?;
            if store.is_append_only() {
                if !conditions.keep_creations_apart() {
                    return Err(Error::config(format!(
                        "append_only wants a store that refuses to replace an object (If-None-Match), and {} does not",
                        store.url()
                    )));
                }
                Lease::bars(&store, &me, takeover).await?;
                return Ok(None);
            }
            if !conditions.allow_lease() {
                return Ok(None);
            }
            match Lease::take(&store, &me, takeover, newest).await {
                // (What an earlier process had found out does not hold any more.)
                Err(_) if !store.conditions().allow_lease() => Ok(None),
                taken => taken.map(Some),
            }
        })
    }

    /// What an earlier process found out about the store's conditional writes need not be asked again.
    fn recall_conditions(&self) {
        if let Ok(Some((conditions, asked))) = self.spool.conditions_of(&self.store.address())
            && let Some(conditions) = Conditions::of_name(&conditions)
        {
            self.store.recall(conditions, clock::now().since(asked));
        }
    }

    fn note_conditions(&self) {
        let Some(conditions) = self.store.asked() else { return };
        let noted = self.spool.note_conditions(&self.store.address(), conditions.name(), clock::now());
        if let Err(e) = noted {
            log::debug!("walrust: {}: {e}", self.path().display());
        }
    }

    fn ship(self: &Arc<Self>, me: Me, lease: Option<Lease>, evict: bool) -> Result<()> {
        let s = self.settings();
        let wanted: Vec<&str> = self.mirrors.iter().map(|m| m.url()).collect();
        if let Err(e) = self.spool.keep_mirrors(&wanted) {
            log::warn!("walrust: {}: {e}", self.path().display());
        }
        let on_event = {
            let w = Arc::downgrade(self);
            Arc::new(move |e: ship::Event| {
                if let Some(w) = w.upgrade() {
                    on_event(&w, &e);
                }
            })
        };
        let on_slot = {
            let w = Arc::downgrade(self);
            Arc::new(move || {
                if let Some(w) = w.upgrade() {
                    w.caught_up();
                    w.arrivals.tell();
                    w.call();
                }
            })
        };
        let on_end = {
            let spool = self.spool.clone();
            Arc::new(move || {
                spool.forget_shipping();
                spool.ship_lock().release();
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
            retry: Retry::without_end(s.retry.base, s.retry.max),
            breaker: Breaker::new(s.retry.breaker_threshold, s.retry.breaker_cooldown),
            levels: s.levels.clone(),
            keeping: keeping(&s),
            on_event,
            on_slot,
            on_end,
        };
        ship::start(plan)
    }

    /// Says why it is not known yet whose replica it is. It is tried again.
    pub(super) fn cannot_join(&self, failed: &NotJoined) {
        let (NotJoined::Store(e) | NotJoined::Here(e)) = failed;
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
        // (Another's lease ends at a known time if it is not renewed.)
        let longest = longest_pause(e.kind());
        self.joined.refuse(e, failed.passes(), e.retry_after().map_or(longest, |d| d.min(longest)));
    }

    /// A standby looks whether the shipper's process has ended, and follows its position. Whether this process is to join now.
    pub(super) fn take_over(&self) -> bool {
        if self.is_unreadable() {
            self.follow_as_standby();
            return false;
        }
        // (A shipper of this process that was stopped may not have ended yet.)
        let is_free = self.spool.ship_lock().try_process();
        match is_free.map(|free| free && !ship::is_left_at_work(self.spool.dir())) {
            Ok(true) => {}
            Ok(false) => {
                self.follow_as_standby();
                return false;
            }
            Err(e) => {
                log::warn!("walrust: {}: {e}", self.path().display());
                return false;
            }
        }
        if let Err(e) = self.spool.check_owner(&Owner::of(self.path())) {
            self.spool.ship_lock().release();
            self.become_part(|part| Part::Standby { claim: part.claim(), refused: Some(e.to_string()) });
            return false;
        }
        self.joined.begins();
        self.become_part(Part::takes_over);
        self.note_shipping();
        true
    }
}

/// Makes a try on a thread of its own, if one is due. The caller has the ship lock, and the part is [`Part::Joining`]; the sealer calls
/// again as long as that is so.
pub(super) fn join(engine: &'static Engine, w: &Arc<Watched>) {
    if !w.joined.begin_try() {
        return;
    }
    let Some(place) = TRYING.take() else { return w.joined.postpone() };
    let mine = w.clone();
    let work = move || {
        try_to_join(engine, &mine);
        drop(place);
        mine.call();
    };
    if let Err(e) = thread::spawn("walrust-join", 512 << 10, work) {
        log::error!("walrust: {}: cannot start a thread: {e}", w.path().display());
        w.joined.postpone();
    }
}

fn try_to_join(engine: &Engine, w: &Arc<Watched>) {
    let takeover = w.part().claim() == super::phase::Claim::Own;
    let begun = panics::caught(|| w.find_out(engine, Patience::Patient, takeover, &|| Ok(())));
    let failed = match begun.unwrap_or_else(|said| Err(panics::error(&said).into())) {
        Ok(identity) => return w.joined.tell(identity),
        Err(e) => e,
    };
    if w.tracker.sync_state() == Continuity::Resyncing {
        // Nobody looks at the WAL until the next try: it need not stay as it is.
        w.tracker.stop();
    }
    if w.role() == Role::Joining && w.is_unreadable() && !w.link.is_stopped() {
        // Another process may have it open; this one waits for the app to open it.
        w.become_part(Part::steps_back);
        w.spool.forget_shipping();
        w.spool.ship_lock().release();
        return w.joined.refuse(&failed.error(), false, Duration::ZERO);
    }
    w.cannot_join(&failed);
    prove::note_met(w, &Access::new(&w.handles));
}

fn longest_pause(kind: Kind) -> Duration {
    match kind {
        Kind::Config | Kind::Corrupt | Kind::Bug => LONGEST_PAUSE_REFUSED,
        _ => LONGEST_PAUSE,
    }
}

/// What the replica's newest files say; `None` if there are none. Errors with the store's.
pub(super) fn look(store: &Store, patience: Patience) -> Result<Option<Remote>> {
    let asked = store.clone();
    patience.ask(store, async move {
        let inventory = replica::Inventory::read(&asked).await?;
        let Some(newest) = inventory.files.iter().max_by_key(|f| (f.max, f.level)) else {
            return Ok(None);
        };
        let is_sealed = asked.is_sealed(&newest.id().key(asked.layout())).await?;
        identity::refuse_to_mix(asked.url(), asked.recipients().is_some(), is_sealed)?;
        let snapshot = inventory.files.iter().filter(|f| f.min.0 == 1).map(|f| f.max).max();
        if is_sealed && !asked.can_open() {
            let lineage = Lineage::default();
            return Ok(Some(Remote {
                txid: newest.max,
                snapshot: snapshot.unwrap_or_default(),
                lineage,
                after: None,
            }));
        }
        let header = replica::inventory::read_header(&asked, newest.id()).await?;
        Ok(Some(Remote {
            txid: newest.max,
            snapshot: snapshot.unwrap_or_default(),
            lineage: header.lineage,
            after: header.attest.map(|a| a.after),
        }))
    })
}

fn remembered(s: &Shipped) -> Option<Remote> {
    (s.txid.0 > 0).then_some(Remote { txid: s.txid, snapshot: s.snapshot, lineage: s.lineage, after: None })
}
