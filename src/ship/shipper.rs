//! What the lanes of one shipper share: the plan, the lease, the manifest; and an upload, which is the same in each lane.

use super::duty::{Course, Duty};
use super::holder::{Kept, Lease};
use super::lease::{Me, Purpose, rest_after};
use super::link::{LeaseWish, Link};
use super::merge::Merger;
use super::owed::Owed;
use super::plan;
use super::sealed;
use super::status::{Protection, State};
use crate::base::{Error, Kind, Result, Timestamp, TxId, clock, crash, panics};
use crate::ltx::{FileName, Level};
use crate::replica::manifest::{CLAIMS_WITHIN, ENTRIES_WITHIN, ManifestEntry, ManifestWriter};
use crate::replica::{Inventory, blocks, layout};
use crate::spool::{Growth, Queued, Shipped, Spool, Vouched, remove_if_there};
use crate::store::{Body, Breaker, BreakerState, Hold, LockMode, Pace, PutMeta, Recipients, Retry, Store};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Files up to this many bytes are checked on the runtime's thread; larger ones on a blocking thread.
const SMALL_BYTES: u64 = 4 << 20;
/// The longest rest of a lane that waits for another's lease to end, or for the breaker.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How long what waits to be named may take when the shipper ends.
const LAST_NAMES: Duration = Duration::from_millis(1200);
/// The same when the app has closed the database.
const NAMES_AT_REST: Duration = Duration::from_secs(5);
/// Between two looks while uploads pause.
const PAUSED_LOOK: Duration = Duration::from_secs(5);

/// What the shipper reports, once each.
#[allow(missing_docs)] // the fields are named after what they hold
#[derive(Clone, Debug)]
pub enum Event {
    /// A file is durable in the replica.
    Uploaded { level: Level, name: FileName, bytes: u64, took: Duration },
    /// A snapshot is durable in the replica.
    Snapshot { txid: TxId, bytes: u64 },
    /// A request of the stream failed; it will be tried again.
    Failed { kind: Kind, error: String, attempts: u32 },
    /// A duty beside the stream failed; it will be tried again, and the stream goes on.
    Trouble { duty: Duty, kind: Kind, error: String, attempts: u32 },
    /// The breaker opened.
    BreakerOpen { error: String },
    /// It closed again.
    BreakerClosed,
    /// Another writer owns the replica.
    Fenced { error: String },
    /// What was shipped is no longer in the replica.
    ReplicaLost,
    /// Bytes are damaged, here or in the replica's records.
    Corrupt { error: String },
    /// A file of the queue is damaged: it and what follows it cannot be shipped any more.
    QueueDamaged { error: String },
    /// A file of the stream is in the replica, which held `before` before it, and lies at `path` until this has been told.
    Arrived { before: TxId, path: PathBuf },
    /// Small files were merged into one.
    Merged { level: Level, name: FileName, inputs: usize },
}

/// How files are put, beside what is in them.
#[derive(Clone, Debug, Default)]
pub struct Keeping {
    /// Storage classes: of level 0, of merged files, of snapshots. `None`: the bucket's default.
    pub classes: [Option<Arc<str>>; 3],
    /// How long they are kept from removal, and how; `None`: they are not.
    pub retain: Option<(Duration, LockMode)>,
}

impl Keeping {
    /// For a file of that level that is put at that time.
    pub fn meta(&self, entry: &ManifestEntry, now: Timestamp) -> PutMeta {
        let [level0, merged, snapshot] = &self.classes;
        let class = match entry.id.level {
            Level::L0 => level0,
            Level::SNAPSHOT => snapshot,
            _ => merged,
        };
        let hold = self.retain.map(|(how_long, mode)| Hold { mode, until: now.plus(how_long) });
        PutMeta { timestamp: Some(entry.time), sha256: Some(entry.sha256), class: class.clone(), hold }
    }
}

/// Everything one shipper needs.
pub struct Plan {
    /// The queue.
    pub spool: Arc<Spool>,
    /// Where to.
    pub store: Store,
    /// Status, wake-ups, stop.
    pub link: Arc<Link>,
    /// For the lease.
    pub me: Me,
    /// Take the lease from a live holder.
    pub evict: bool,
    /// The lease, if it was taken already.
    pub lease: Option<Lease>,
    /// Canonical URL, for the record.
    pub replica: String,
    /// Waits between tries.
    pub retry: Retry,
    /// Stops hammering a store that fails.
    pub breaker: Breaker,
    /// How often small files are merged into levels 1, 2, 3; empty: never.
    pub levels: Vec<Duration>,
    /// How files are put.
    pub keeping: Keeping,
    /// Called for each event, on the runtime's thread: must not block.
    pub on_event: Arc<dyn Fn(Event) + Send + Sync>,
    /// Called when a slot opens, to wake the sealer.
    pub on_slot: Arc<dyn Fn() + Send + Sync>,
    /// Called when the shipper has ended after who stopped it had left ([`super::leave`]): gives the ship lock away.
    pub on_end: Arc<dyn Fn() + Send + Sync>,
}

impl Plan {
    /// For a shipper that comes after one that panicked. (The lease is found in the replica, under our name.)
    pub(super) fn again(&self) -> Plan {
        Plan {
            spool: self.spool.clone(),
            store: self.store.clone(),
            link: self.link.clone(),
            me: self.me.clone(),
            evict: false,
            lease: None,
            replica: self.replica.clone(),
            retry: self.retry,
            breaker: self.breaker.clone(),
            levels: self.levels.clone(),
            keeping: self.keeping.clone(),
            on_event: self.on_event.clone(),
            on_slot: self.on_slot.clone(),
            on_end: self.on_end.clone(),
        }
    }
}

/// Why a lane does not go on at once.
#[derive(Debug)]
pub(super) enum Halt {
    /// A try failed; there is another.
    Failed(Error),
    /// Another holds the lease, and may give it back or let it end ([`Error::retry_after`]).
    Barred(Error),
    /// Another writer has the replica: no lane goes on (I-SHIP-2).
    Fenced(Error),
}

impl From<Error> for Halt {
    fn from(e: Error) -> Halt {
        if e.kind() == Kind::Fenced { Halt::Fenced(e) } else { Halt::Failed(e) }
    }
}

/// What a step of a lane comes to.
pub(super) type Step<T> = std::result::Result<T, Halt>;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Did {
    /// Something: there may be more.
    Work,
    /// Nothing: there was nothing to do.
    Nothing,
}

/// The permission to write to the replica: the lease is ours, or the store knows none. As long as there is one, the lease is
/// not given back.
pub(super) struct Right<'a> {
    of: &'a Shipper,
}

impl<'a> Right<'a> {
    fn new(of: &'a Shipper) -> Right<'a> {
        of.rights.fetch_add(1, Ordering::AcqRel);
        Right { of }
    }
}

impl Drop for Right<'_> {
    fn drop(&mut self) {
        self.of.rights.fetch_sub(1, Ordering::AcqRel);
        if self.of.plan.link.is_lease_unwanted() {
            self.of.plan.link.work.keeper.notify_one();
        }
    }
}

/// The lease, and how it is to be taken.
struct Seat {
    lease: Option<Lease>,
    evict: bool,
}

/// One shipper.
pub(super) struct Shipper {
    pub(super) plan: Plan,
    seat: tokio::sync::Mutex<Seat>,
    /// How many [`Right`]s there are.
    rights: AtomicUsize,
    /// The uptime until which the lease is ours whatever happens at the store.
    ours_until: Mutex<Option<Duration>>,
    pub(super) manifest: tokio::sync::Mutex<Option<ManifestWriter>>,
    /// The entries that it lacks.
    pub(super) owed: Mutex<Owed>,
    merger: Mutex<Merger>,
    /// Uptime.
    began: Duration,
}

impl Shipper {
    pub(super) fn new(mut plan: Plan) -> Shipper {
        let lease = plan.lease.take();
        let evict = plan.evict && lease.is_none();
        let shipped = plan.spool.shipped().ok().flatten();
        let known = shipped.as_ref().and_then(|s| s.snapshot_time);
        let owed = plan.spool.owed(&plan.replica).ok().flatten();
        let named_within = if plan.store.is_append_only() { CLAIMS_WITHIN } else { ENTRIES_WITHIN };
        plan.link.update(|s| {
            s.unnamed = owed.as_ref().map_or(0, Vec::len);
            s.note_snapshot_time(s.snapshot_time.or(known));
            s.change = shipped.map(|s| s.change).unwrap_or_default();
            s.protection = if lease.is_some() { Protection::Lease } else { Protection::Unknown };
            // (What kept others from shipping before does not keep this one.)
            if s.state == State::Fenced {
                s.state = State::CatchingUp;
            }
        });
        Shipper {
            merger: Mutex::new(Merger::new(plan.levels.clone())),
            seat: tokio::sync::Mutex::new(Seat { lease, evict }),
            rights: AtomicUsize::new(0),
            ours_until: Mutex::new(None),
            manifest: tokio::sync::Mutex::new(None),
            owed: Mutex::new(Owed::new(owed.as_deref(), named_within)),
            began: clock::uptime(),
            plan,
        }
    }

    pub(super) fn merger(&self) -> MutexGuard<'_, Merger> {
        self.merger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.plan.link.is_stopped()
    }

    /// Waits for the time, or for the bell.
    pub(super) async fn rest(&self, bell: &Notify, d: Duration) {
        tokio::select! {
            biased;
            () = bell.notified() => {}
            () = tokio::time::sleep(d) => {}
        }
    }

    /// How long a duty has to wait before its next try.
    pub(super) fn rest_of(&self, duty: Duty, is_waited_for: bool) -> Duration {
        let link = &self.plan.link;
        let own = link.course(duty).due_in(clock::uptime(), is_waited_for);
        let is_paused = link.status().breaker == BreakerState::Open && !is_waited_for;
        if is_paused { own.max(PAUSED_LOOK) } else { own }
    }

    /// The last try of a duty succeeded.
    pub(super) fn fares_well(&self, duty: Duty) {
        if self.plan.link.course(duty) != Course::Well {
            self.plan.link.set_course(duty, Course::Well);
        }
    }

    /// A duty failed: that is told, and the duty rests (I-SHIP-7).
    pub(super) fn fares_ill(&self, duty: Duty, e: &Error) {
        let link = &self.plan.link;
        let course = link.course(duty).failed(e, clock::uptime(), &self.plan.retry, clock::random_u64());
        let attempts = course.failures();
        link.set_course(duty, course);
        (self.plan.on_event)(Event::Trouble { duty, kind: e.kind(), error: e.to_string(), attempts });
    }

    /// Another's lease bars the way: that is the state, and is told once.
    pub(super) fn barred(&self, e: &Error) -> Duration {
        let (kind, text) = (e.kind(), e.to_string());
        let was = self.plan.link.status().state;
        self.plan.link.update(|s| {
            s.state = State::Fenced;
            s.failures += 1;
            s.last_error = Some((kind, text.clone()));
        });
        if was != State::Fenced {
            (self.plan.on_event)(Event::Fenced { error: text });
        }
        e.retry_after().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
    }

    /// The right to write. Within the life of a lease that is held there is nothing to ask: renewing it is the keeper's, and a
    /// renewal that hangs holds up no upload.
    pub(super) async fn right(&self) -> Step<Right<'_>> {
        let until = *self.ours_until();
        if until.is_some_and(|t| clock::uptime() < t) {
            return Ok(Right::new(self));
        }
        self.sit(Purpose::Work).await?;
        Ok(Right::new(self))
    }

    /// Takes the lease, or does what is due for it to be kept.
    async fn sit(&self, purpose: Purpose) -> Step<()> {
        let mut seat = self.seat.lock().await;
        let sits = self.sit_at(&mut seat, purpose).await;
        *self.ours_until() = seat.lease.as_ref().filter(|_| sits.is_ok()).map(Lease::ours_until);
        sits
    }

    fn ours_until(&self) -> MutexGuard<'_, Option<Duration>> {
        self.ours_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sit_at(&self, seat: &mut Seat, purpose: Purpose) -> Step<()> {
        if let Some(lease) = &mut seat.lease {
            match lease.keep(&self.plan.store, purpose).await {
                Kept::Ours if lease.is_fresh() => self.fares_well(Duty::Lease),
                Kept::Ours => {}
                Kept::Unrenewed(e) => self.fares_ill(Duty::Lease, &e),
                Kept::Unknown(e) => return Err(Halt::Failed(e)),
                Kept::Lost(e) => return Err(Halt::Fenced(e)),
            }
            return Ok(());
        }
        let conditions = self.plan.store.probe_conditional().await?;
        let protection = Protection::of(&self.plan.store, conditions);
        if protection == Protection::AppendOnly && self.plan.link.status().protection != protection {
            let barred = Lease::bars(&self.plan.store, &self.plan.me, seat.evict).await;
            barred.map_err(|e| if e.kind() == Kind::Fenced { Halt::Barred(e) } else { Halt::Failed(e) })?;
        }
        if matches!(protection, Protection::CreateOnly | Protection::AppendOnly | Protection::Nothing) {
            self.has_right(protection);
            return Ok(());
        }
        seat.lease = Some(self.take(seat.evict).await?);
        // Once is enough: who has it now is not the one that was to give way.
        seat.evict = false;
        self.has_right(Protection::Lease);
        self.fares_well(Duty::Lease);
        Ok(())
    }

    /// Nothing bars the way any more, and it is known what keeps others away.
    fn has_right(&self, protection: Protection) {
        let mut is_news = false;
        self.plan.link.update(|s| {
            is_news = s.protection != protection || s.state == State::Fenced;
            s.protection = protection;
            if s.state == State::Fenced {
                s.state = State::CatchingUp;
                s.last_error = None;
            }
        });
        if is_news {
            self.plan.link.work.stream.notify_one();
        }
    }

    async fn take(&self, evict: bool) -> Step<Lease> {
        let store = &self.plan.store;
        let newest = self.plan.link.status().replicated;
        let taken = Lease::take(store, &self.plan.me, evict, newest).await;
        let mut lease = match taken {
            Err(e) if e.kind() == Kind::Fenced => return Err(Halt::Barred(e)),
            taken => taken?,
        };
        if let Some(holder) = lease.taken_from() {
            // It was given back for a while, or never taken before the store answered: what another writer put there
            // meanwhile is not ours to go on from.
            let why =
                format!("{holder} has written to the replica since; take over with '{{\"takeover\":true}}'");
            let there = match Inventory::read(store).await {
                Ok(inventory) => inventory.newest(),
                Err(e) => {
                    lease.undo(store).await;
                    return Err(e.into());
                }
            };
            if there > newest {
                lease.undo(store).await;
                return Err(Halt::Fenced(Error::new(Kind::Fenced, why)));
            }
            // (If that does not arrive, the next renewal says it.)
            drop(lease.settled(store).await);
        }
        Ok(lease)
    }

    /// With nothing to upload: keeps the lease, or gives it back when the app has closed the database, so that the next machine
    /// need not wait for it to end. How long until that is due again.
    pub(super) async fn keep_at_rest(&self) -> Step<Duration> {
        let link = &self.plan.link;
        if link.is_lease_unwanted() {
            let (pending, snapshots) = (self.plan.spool.pending()?, self.plan.spool.snapshots()?);
            let mut seat = self.seat.lock().await;
            if !pending.is_empty() || !snapshots.is_empty() || self.rights.load(Ordering::Acquire) > 0 {
                // What uses the lease keeps it; the end of that rings the bell.
                drop(seat);
                return self.keep().await;
            }
            // (From here on who wants the right waits for the seat, and takes the lease anew.)
            *self.ours_until() = None;
            let naming = tokio::time::timeout(NAMES_AT_REST, self.name_before_leaving());
            let is_ahead = naming.await.unwrap_or(true);
            self.release(&mut seat, is_ahead).await;
            drop(seat);
            link.lease_released();
            return Ok(if link.lease_wish() == LeaseWish::Hold { Duration::ZERO } else { LONGEST_REST });
        }
        self.keep().await
    }

    async fn keep(&self) -> Step<Duration> {
        let rest = self.rest_of(Duty::Lease, false);
        if !rest.is_zero() && self.seat.lock().await.lease.is_none() {
            return Ok(rest);
        }
        self.sit(self.purpose()).await?;
        let (rest, remade) = match &mut self.seat.lock().await.lease {
            Some(lease) => (lease.due_in(), lease.take_remade()),
            None => (LONGEST_REST, false),
        };
        if remade {
            // (A bucket that was emptied, a disk that was unmounted.)
            self.still_there().await?;
        }
        Ok(rest)
    }

    /// Whether the database has been idle for so long that its lease may rest.
    fn purpose(&self) -> Purpose {
        let status = self.plan.link.status();
        let idle = clock::uptime().saturating_sub(status.last_start.unwrap_or(self.began));
        let works = status.uploading || self.rights.load(Ordering::Acquire) > 0 || idle < rest_after();
        if works { Purpose::Work } else { Purpose::Rest }
    }

    /// Is what was shipped still in the replica? A bucket that was emptied, or a disk in its place, holds nothing, and files without
    /// what they build on would be no history. Errors with [`Kind::Missing`] when it is not, which is told; and as the store does.
    pub(super) async fn still_there(&self) -> Result<()> {
        let status = self.plan.link.status();
        if status.replicated == TxId::ZERO {
            return Ok(());
        }
        let (inventory, _) = Inventory::read_with_manifest(&self.plan.store).await?;
        let snapshot = inventory.files.iter().filter(|f| f.min == TxId(1)).map(|f| f.max).max();
        let there = plan::There { newest: inventory.newest(), snapshot: snapshot.unwrap_or_default() };
        let Some(why) = plan::lost(there, status.replicated, status.snapshot) else { return Ok(()) };
        (self.plan.on_event)(Event::ReplicaLost);
        Err(Error::new(Kind::Missing, why))
    }

    /// Gives the lease back: the shipper ends.
    pub(super) async fn give_lease_back(&self) {
        let mut seat = self.seat.lock().await;
        *self.ours_until() = None;
        // (Another's replica, or one that was never ours, is not written to.)
        let is_ours = seat.lease.is_some() && self.plan.link.status().state != State::Fenced;
        let naming = async { if is_ours { self.name_before_leaving().await } else { true } };
        let is_ahead = tokio::time::timeout(LAST_NAMES, naming).await.unwrap_or(true);
        self.release(&mut seat, is_ahead).await;
    }

    async fn release(&self, seat: &mut Seat, is_ahead: bool) {
        if let Some(lease) = seat.lease.take() {
            lease.release(&self.plan.store, is_ahead).await;
        }
        if !self.owed().is_clear() {
            self.owed().doubt();
            self.forget_manifest().await;
        }
    }

    /// A file of the queue is this database's own (I-SPOOL-10).
    pub(super) fn vouch(&self, q: &Queued) -> Result<Vouched> {
        let vouched = self.plan.spool.vouch(q, &self.plan.replica);
        vouched.map_err(|e| if e.is_corrupt() { self.damaged(e.to_string()) } else { e })
    }

    /// The queue is no history any more. That passes: it is given up, and a snapshot follows.
    pub(super) fn damaged(&self, error: String) -> Error {
        (self.plan.on_event)(Event::Corrupt { error: error.clone() });
        (self.plan.on_event)(Event::QueueDamaged { error: error.clone() });
        Error::new(Kind::Retry, format!("the spool is damaged, and the database is read anew: {error}"))
    }

    /// PUT, then manifest, or the note for it. Returns what the manifest says of it, or will.
    pub(super) async fn put(&self, _right: &Right<'_>, q: &Vouched, level: Level) -> Step<ManifestEntry> {
        let entry = check(q, level)
            .await
            .map_err(|e| if e.is_corrupt() { self.damaged(e.to_string()) } else { e })?;
        let name = entry.id.name();
        let started = clock::uptime();
        let (path, entry) = match self.plan.store.recipients() {
            None => (q.path.clone(), entry),
            Some(recipients) => self.sealed(recipients, q, &entry).await?,
        };
        let meta = self.plan.keeping.meta(&entry, clock::now());
        self.name_what_was_left().await?;
        if level == Level::SNAPSHOT {
            // Before who decides what it makes superfluous can see it, all that it may make so is named.
            self.name_all().await?;
        }
        crash::point("ship.before-put");
        let key = entry.id.key(self.plan.store.layout());
        // (On the heap: it is the largest future of all.)
        let store = self.plan.store.clone().with_pace(pace(level));
        match Box::pin(store.put_new(&key, Body::File(path), meta)).await {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::Exists => {
                let why = format!(
                    "{name} is in the replica already with other content: another writer is at work there"
                );
                return Err(Halt::Fenced(Error::new(Kind::Fenced, why)));
            }
            Err(e) => return Err(e.into()),
        }
        crash::point("ship.after-put");
        self.owe(&entry).await?;
        self.put_blocks(q, &entry).await;
        let took = clock::uptime().saturating_sub(started);
        (self.plan.on_event)(Event::Uploaded { level, name, bytes: q.bytes, took });
        Ok(entry)
    }

    /// The age file that is put in the place of a file, and what the manifest will say of it (I-AGE-1).
    pub(super) async fn sealed(
        &self,
        recipients: &Recipients,
        q: &Queued,
        entry: &ManifestEntry,
    ) -> Result<(PathBuf, ManifestEntry)> {
        let (spool, replica, entry) = (self.plan.spool.clone(), self.plan.replica.clone(), *entry);
        let (recipients, from) = (recipients.clone(), q.path.clone());
        let made = move || sealed::make(&spool, &replica, &recipients, &from, &entry);
        if q.bytes <= SMALL_BYTES { made() } else { blocking(made).await }
    }

    /// Puts the sums of a large file's blocks beside it, for whoever reads it in place. What goes wrong is told and nothing more: they
    /// are a help (I-BLOCK-1).
    async fn put_blocks(&self, q: &Vouched, entry: &ManifestEntry) {
        // (Of an age file each chunk proves itself, and what is beside it would tell of its content.)
        if !blocks::are_wanted(entry.bytes) || entry.is_sealed() {
            return;
        }
        let (path, of) = (q.path.clone(), *entry);
        let put = async {
            let object = panics::blocking(move || blocks::of_file(&path, &of)).await??;
            let store = self.plan.store.clone().with_pace(pace(entry.id.level));
            let key = layout::blocks_key(entry.id);
            match store.is_append_only() {
                true => store.put_new(&key, object, PutMeta::default()).await.map(drop),
                false => store.put_over(&key, object).await,
            }
        };
        if let Err(e) = Box::pin(put).await {
            log::debug!("walrust: no sums of the blocks of {}: {e}", entry.id);
        }
    }

    /// Lets whoever asked remove files from the replica, and waits until that is done.
    pub(super) async fn lend(&self, look: Duration) {
        let desk = &self.plan.link.desk;
        if !desk.is_asked() {
            return;
        }
        if let Err(e) = self.name_all().await {
            // (The clerk tries again, and that rings this lane's bell.)
            self.fares_ill(Duty::Manifest, &e);
            return;
        }
        {
            // (Nobody is packing it.)
            let kept;
            let mut manifest = self.manifest.lock().await;
            *manifest = None;
            if !desk.lend() {
                return;
            }
            if self.plan.store.conditions() == crate::store::Conditions::Held {
                drop(manifest);
                kept = None;
            } else {
                // Two writers would undo each other's entries: uploads wait for theirs.
                kept = Some(manifest);
            }
            while desk.lend() && !self.is_stopped() {
                desk.returned(look).await;
            }
            drop(kept);
        }
        self.forget_manifest().await;
    }

    /// Notes in the spool that a file is in the replica.
    pub(super) fn record(&self, q: &Vouched, level: Level) -> Result<Shipped> {
        let old = self.plan.link.status();
        let lineage = if q.txid >= old.replicated {
            q.lineage()
        } else {
            self.plan.spool.shipped()?.map(|s| s.lineage).unwrap_or_default()
        };
        let now = clock::now();
        let is_newest = level == Level::SNAPSHOT && q.txid >= old.snapshot;
        let shipped = Shipped {
            replica: self.plan.replica.clone(),
            lineage,
            txid: old.replicated.max(q.txid),
            snapshot: if is_newest { q.txid } else { old.snapshot },
            snapshot_time: if is_newest { Some(now) } else { old.snapshot_time },
            time: now,
            change: match level {
                // (What passed it on its way is not counted: it is little beside it.)
                Level::SNAPSHOT if is_newest => Growth { snapshot_bytes: q.bytes, since_bytes: 0 },
                Level::L0 => Growth { since_bytes: old.change.since_bytes + q.bytes, ..old.change },
                _ => old.change,
            },
        };
        self.plan.spool.set_shipped(&shipped)?;
        Ok(shipped)
    }

    /// What becomes of a file that is in the replica.
    pub(super) fn conclude(&self, q: &Vouched, entry: &ManifestEntry) -> Result<()> {
        let level = entry.id.level;
        self.plan.spool.hand_on(q);
        if level == Level::L0 && self.merger().wants_l0() {
            self.merger().keep(&self.plan.spool, &q.path, level, entry.id.name(), clock::uptime())?;
        } else {
            remove_if_there(&q.path)?;
        }
        // (Not before: until the queue has no more of it, it may be put again.)
        if entry.is_sealed() {
            sealed::done(&self.plan.spool, &self.plan.replica, entry.id);
        }
        if level == Level::SNAPSHOT {
            (self.plan.on_event)(Event::Snapshot { txid: q.txid, bytes: q.bytes });
        }
        self.plan.link.work.upkeep.notify_one();
        Ok(())
    }
}

/// The rest of a lane that is woken when there is something to do.
pub(super) const LONGEST_REST: Duration = Duration::from_secs(3600);

/// Commits leave at once; snapshots and merges are copies of what is there already (`bandwidth`).
fn pace(level: Level) -> Pace {
    if level == Level::L0 { Pace::AtOnce } else { Pace::Measured }
}

/// Reads the whole file strictly before it leaves: what is damaged here must not become history there.
pub(super) async fn check(q: &Queued, level: Level) -> Result<ManifestEntry> {
    let path = q.path.clone();
    let read = move || ManifestEntry::of_file(level, &path);
    if q.bytes <= SMALL_BYTES { read() } else { blocking(read).await }
}

/// Work that would hold up the other databases' uploads goes to a thread that may take its time. Errors as `work` does, and as
/// [`panics::blocking`] does.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    #[cfg(feature = "sim")]
    if crate::base::sim::world().is_some() {
        return work();
    }
    panics::blocking(work).await?
}
