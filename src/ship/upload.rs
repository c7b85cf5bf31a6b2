//! The loop that empties one database's queue.

use super::lease::{Lease, Me};
use super::link::{Link, State, Status};
use super::merge::Merger;
use crate::base::{Error, Kind, Result, TxId, clock, crash, panics};
use crate::ltx::{FileName, Level};
use crate::replica::manifest::{ManifestEntry, ManifestWriter};
use crate::replica::{FileId, Inventory};
use crate::spool::{Queued, Shipped, Spool, Vouched, remove_if_there};
use crate::store::{Body, Breaker, BreakerState, Change, Holds, Permit, PutMeta, Retry, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// After an error that trying again soon can't cure (wrong credentials, no such bucket).
const SLOW_RETRY: Duration = Duration::from_secs(15);
/// Files up to this size are checked on the runtime's thread; larger ones on a blocking thread.
const SMALL: u64 = 4 << 20;

/// Between two looks at the lease while the manifest is lent.
const LENT_LOOK: Duration = Duration::from_secs(1);

/// How long after it was begun a request may still be carried out: S3 refuses signatures older than 15 minutes.
const LONGEST_REQUEST: Duration = Duration::from_secs(16 * 60);
/// Between two looks for such.
const LOOK_FOR_LATE: Duration = Duration::from_secs(60);

/// What the shipper reports, once each.
#[allow(missing_docs)] // the fields are named after what they hold
#[derive(Clone, Debug)]
pub enum Event {
    /// A file is durable in the replica.
    Uploaded { level: Level, name: FileName, bytes: u64, took: Duration },
    /// A snapshot is durable in the replica.
    Snapshot { txid: TxId, bytes: u64 },
    /// A request failed; it will be tried again.
    Failed { kind: Kind, error: String, attempts: u32 },
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
    /// Small files were merged into one.
    Merged { level: Level, name: FileName, inputs: usize },
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
    /// Called for each event, on the runtime's thread: must not block.
    pub on_event: Arc<dyn Fn(Event) + Send + Sync>,
    /// Called when a slot opens, to wake the sealer.
    pub on_slot: Arc<dyn Fn() + Send + Sync>,
}

enum Did {
    Work,
    Nothing,
}

/// Why the shipper rests, and so what cuts that short, besides [`Link::stop`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// All is shipped: until there is new work.
    Idle,
    /// The breaker is open: until someone waits for the replica.
    Paused,
    /// A try failed: nothing makes the next one come sooner.
    BetweenTries,
}

/// A shipper that panicked begins again after this long, and after twice that the next time.
const AFTER_PANIC: Duration = Duration::from_secs(2);
const LONGEST_AFTER_PANIC: Duration = Duration::from_secs(30);
/// One that had worked for this long begins with the shortest again.
const WORKED: Duration = Duration::from_secs(120);

/// How long a shipper rests that has panicked `times` times in a row.
fn rest_after_panic(times: u32) -> Duration {
    AFTER_PANIC.saturating_mul(1 << times.saturating_sub(1).min(8)).min(LONGEST_AFTER_PANIC)
}

impl Plan {
    /// For a shipper that comes after one that panicked. (The lease is found in the replica, under our name.)
    fn again(&self) -> Plan {
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
            on_event: self.on_event.clone(),
            on_slot: self.on_slot.clone(),
        }
    }

    /// What a panic of the shipper leaves for others to see (I-SHIP-6).
    fn panicked(&self, said: &str, times: u32, rest: Duration) {
        let e = panics::error(said);
        let error = format!("{e}; uploads begin again in {}", humantime::format_duration(rest));
        self.link.update(|s| {
            s.uploading = false;
            s.state = State::Failed;
            s.failures += 1;
            s.last_error = Some((e.kind(), error.clone()));
        });
        let told =
            || (self.on_event)(Event::Failed { kind: e.kind(), error: error.clone(), attempts: times });
        if panics::caught(told).is_err() {
            log::error!("walrust: {}: {error}", self.replica);
        }
    }
}

/// Ships until [`Link::stop`], then gives the lease back. Begins again, after a rest, if it panics (I-SHIP-6).
pub async fn run(mut plan: Plan) {
    let mut times = 0;
    loop {
        let next = plan.again();
        let began = clock::uptime();
        let Err(said) = panics::caught_async(ship(plan)).await else { return };
        times = if clock::uptime().saturating_sub(began) >= WORKED { 1 } else { times + 1 };
        let rest = rest_after_panic(times);
        next.panicked(&said, times, rest);
        let end = clock::uptime() + rest;
        while clock::uptime() < end && !next.link.is_stopped() {
            let left = end.saturating_sub(clock::uptime());
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = next.link.work.notified() => {}
            }
        }
        plan = next;
    }
}

async fn ship(plan: Plan) {
    let mut s = Shipper {
        merger: Merger::new(plan.levels.clone(), clock::uptime()),
        manifest: None,
        lease: None,
        checked_conditions: false,
        failures: 0,
        take_back_at: Duration::ZERO,
        suspects: false,
        plan,
    };
    s.lease = s.plan.lease.take();
    s.checked_conditions = s.lease.is_some();
    s.plan.evict &= s.lease.is_none();
    while !s.plan.link.is_stopped() {
        s.lend_manifest().await;
        // Who waits is worth a trial: then tries are as far apart as before the breaker opened.
        let permit = if s.plan.link.is_waited_for() {
            s.plan.breaker.permit_waited_for(clock::uptime())
        } else {
            s.plan.breaker.permit(clock::uptime())
        };
        let (rest, why) = match permit {
            Permit::Wait(d) => (d, Rest::Paused),
            Permit::Go | Permit::Trial => match s.step().await {
                Ok(Did::Work) => {
                    s.succeeded(|_| {});
                    continue;
                }
                Ok(Did::Nothing) => {
                    s.idle();
                    (s.quiet_time(), Rest::Idle)
                }
                Err(e) => match s.failed(e) {
                    Some(rest) => (rest, Rest::BetweenTries),
                    None => {
                        s.until_stopped().await;
                        break;
                    }
                },
            },
        };
        s.rest(rest, why).await;
    }
    if let Some(lease) = s.lease.take() {
        lease.release(&s.plan.store).await;
    }
}

struct Shipper {
    plan: Plan,
    merger: Merger,
    manifest: Option<ManifestWriter>,
    lease: Option<Lease>,
    checked_conditions: bool,
    failures: u32,
    /// Uptime of the next look for files of refused COMMITs that arrived late.
    take_back_at: Duration,
    /// The store said something that makes it doubtful that it holds what was shipped.
    suspects: bool,
}

impl Shipper {
    /// One file, or nothing.
    async fn step(&mut self) -> Result<Did> {
        if self.suspects && !self.plan.spool.pending()?.is_empty() {
            self.look_again().await?;
        }
        let (pending, snapshots) = self.plan.spool.shippable()?;
        let replicated = self.plan.link.status().replicated;
        // A snapshot whose TXID has no level-0 file, here or there, starts a lineage: it goes first.
        let base = snapshots
            .iter()
            .find(|s| s.txid > replicated && !pending.iter().any(|p| p.txid == s.txid))
            .filter(|s| pending.first().is_none_or(|p| p.txid > s.txid));
        if base.is_some() || !pending.is_empty() || !snapshots.is_empty() {
            self.keep_lease().await?;
        } else {
            self.lease_at_rest().await?;
        }
        if let Some(q) = base {
            self.upload(q, Level::SNAPSHOT).await?;
            return Ok(Did::Work);
        }
        if let Some(q) = pending.first() {
            if q.txid > replicated.next() {
                // A power cut took it from the directory: what follows is no history without it.
                let missing =
                    format!("TXID {} is neither in the replica nor in the spool", replicated.next());
                return Err(self.damaged(missing));
            }
            self.upload(q, Level::L0).await?;
            return Ok(Did::Work);
        }
        if let Some(q) = snapshots.first() {
            self.upload(q, Level::SNAPSHOT).await?;
            return Ok(Did::Work);
        }
        if self.take_back().await? {
            return Ok(Did::Work);
        }
        if let Some(job) = self.merger.due(&self.plan.spool, clock::uptime()) {
            if self.is_past_retention(&job).await? {
                job.drop_inputs()?;
                return Ok(Did::Work);
            }
            let spool = self.plan.spool.clone();
            let merged = match blocking(move || job.merge(&spool)).await {
                Ok(merged) => {
                    let queued =
                        Queued { txid: merged.name.max, path: merged.path.clone(), bytes: merged.bytes };
                    self.plan.spool.vouch(&queued, &self.plan.replica).map(|q| (q, merged))
                }
                Err(e) => Err(e),
            };
            let (file, merged) = match merged {
                // The replica has them whole; what cannot be merged any more is dropped.
                Err(e) if e.is_corrupt() => {
                    drop(std::fs::remove_dir_all(self.plan.spool.dir().join("merge")));
                    return Ok(Did::Work);
                }
                merged => merged?,
            };
            self.keep_lease().await?;
            self.upload_merged(&file, merged).await?;
            return Ok(Did::Work);
        }
        Ok(Did::Nothing)
    }

    /// Whether retention has removed from the replica what the merge would put together: alone, behind a gap, it is no use. Newest
    /// first is what it removes (I-CMP-2), only what a newer snapshot made superfluous, and never while this task is at the replica.
    async fn is_past_retention(&self, job: &super::merge::Job) -> Result<bool> {
        let superfluous = |id: &FileId| id.max <= self.plan.link.status().snapshot;
        let Some(newest) = job.newest().filter(superfluous) else { return Ok(false) };
        match self.plan.store.head(&newest.key(self.plan.store.layout())).await {
            Ok(_) => Ok(false),
            Err(e) if e.is_missing() => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// A COMMIT under sync durability failed, but its file may be in the replica, or arrive there yet: a state that never was.
    /// When a snapshot of what came instead is there, it is removed. Whether there was such a file. What fails is tried again
    /// later: it keeps nobody from shipping.
    async fn take_back(&mut self) -> Result<bool> {
        if clock::uptime() < self.take_back_at || self.plan.link.is_lease_unwanted() {
            return Ok(false);
        }
        match self.take_back_first().await {
            Err(e) if e.kind() != Kind::Fenced => {
                log::warn!("walrust: what a refused COMMIT left in the replica is not removed yet: {e}");
                self.take_back_at = clock::uptime() + LOOK_FOR_LATE;
                Ok(false)
            }
            done => done,
        }
    }

    async fn take_back_first(&mut self) -> Result<bool> {
        let base = self.plan.link.status().snapshot;
        for q in self.plan.spool.refused()?.into_iter().filter(|q| q.txid < base) {
            let entry = match check(&q, Level::L0).await {
                Err(e) if e.is_corrupt() => {
                    self.plan.spool.forget_asked(q.txid)?;
                    return Ok(true);
                }
                entry => entry?,
            };
            self.keep_lease().await?;
            let key = entry.id.key(self.plan.store.layout());
            let held = self.plan.store.compare(&key, q.bytes, entry.sha256).await?;
            if held == Holds::This && !self.is_built_upon(q.txid).await? {
                if self.manifest.is_none() {
                    self.manifest = Some(ManifestWriter::load(&self.plan.store).await?);
                }
                if let Some(m) = &mut self.manifest {
                    m.remove(&self.plan.store, &BTreeSet::from([entry.id])).await?;
                }
                self.plan.store.delete(std::slice::from_ref(&key)).await?;
                remove_if_there(&self.plan.spool.merge_path(Level::L0, &entry.id.name()))?;
            }
            // One that is not there may be on its way, and is looked for again.
            if held != Holds::Nothing || is_older(&q.path, LONGEST_REQUEST) {
                self.plan.spool.forget_asked(q.txid)?;
                return Ok(true);
            }
            self.take_back_at = clock::uptime() + LOOK_FOR_LATE;
        }
        Ok(false)
    }

    /// Whether the replica goes on from `txid`, or has it in a merged file: it came to be, though this disk, which was put back
    /// to an earlier time, says otherwise. (What follows a refused one is a snapshot of the next TXID.)
    async fn is_built_upon(&self, txid: TxId) -> Result<bool> {
        let files = Inventory::read(&self.plan.store).await?.files;
        let own = (Level::L0, txid, txid);
        Ok(files.iter().any(|f| {
            f.level != Level::SNAPSHOT
                && (f.level, f.min, f.max) != own
                && f.min <= txid.next()
                && f.max >= txid
        }))
    }

    /// With nothing to upload: renews the lease, or gives it back when the app has closed the database, so that
    /// the next machine need not wait for it to end.
    async fn lease_at_rest(&mut self) -> Result<()> {
        if self.plan.link.is_lease_unwanted() {
            if let Some(lease) = self.lease.take() {
                lease.release(&self.plan.store).await;
            }
            self.plan.link.lease_released();
            return Ok(());
        }
        match &mut self.lease {
            Some(lease) => lease.keep(&self.plan.store).await,
            None => Ok(()),
        }
    }

    /// After trouble: is what was shipped still there? A bucket that was deleted and made again holds
    /// nothing, and files without what they build on would be no history.
    async fn look_again(&mut self) -> Result<()> {
        let shipped = self.plan.link.status().replicated;
        if shipped > TxId::ZERO {
            let there = Inventory::read(&self.plan.store).await?.newest();
            if there < shipped {
                (self.plan.on_event)(Event::ReplicaLost);
                return Err(Error::new(
                    Kind::Missing,
                    format!("the replica had everything up to TXID {shipped} and now ends at {there}"),
                ));
            }
        }
        self.suspects = false;
        Ok(())
    }

    async fn keep_lease(&mut self) -> Result<()> {
        if let Some(lease) = &mut self.lease {
            return lease.keep(&self.plan.store).await;
        }
        if !self.checked_conditions {
            self.checked_conditions = true;
            self.plan.store.probe_conditional().await.inspect_err(|_| {
                self.checked_conditions = false;
            })?;
        }
        if !self.plan.store.conditions().allow_lease() {
            return Ok(());
        }
        let newest = self.plan.link.status().replicated;
        let mut lease = Lease::take(&self.plan.store, &self.plan.me, self.plan.evict, newest).await?;
        if let Some(holder) = lease.taken_from() {
            // It was given back for a while, or never taken before the store answered: what another writer put there
            // meanwhile is not ours to go on from.
            let why =
                format!("{holder} has written to the replica since; take over with '{{\"takeover\":true}}'");
            if Inventory::read(&self.plan.store).await?.newest() > newest {
                lease.undo(&self.plan.store).await;
                return Err(Error::new(Kind::Fenced, why));
            }
            lease.settled(&self.plan.store).await?;
        }
        // Once is enough: who has it now is not the one that was to give way.
        self.plan.evict = false;
        self.lease = Some(lease);
        Ok(())
    }

    async fn upload(&mut self, q: &Queued, level: Level) -> Result<()> {
        self.plan.link.update(|s| {
            s.uploading = true;
            s.last_start = Some(clock::uptime());
        });
        let done = match self.vouch(q) {
            Ok(q) => self.put(&q, level).await.map(|entry| (q, entry)),
            Err(e) => Err(e),
        };
        self.plan.link.update(|s| s.uploading = false);
        let (q, entry) = done?;
        crash::point("ship.after-manifest");
        self.record(&q, level)?;
        crash::point("ship.after-record");
        if level == Level::L0 && self.merger.wants_l0() {
            self.merger.keep(&self.plan.spool, &q.path, entry.id.level, entry.id.name())?;
        } else {
            remove_if_there(&q.path)?;
        }
        if level == Level::SNAPSHOT {
            (self.plan.on_event)(Event::Snapshot { txid: q.txid, bytes: q.bytes });
        }
        (self.plan.on_slot)();
        Ok(())
    }

    /// A file of the queue is this database's own (I-SPOOL-10).
    fn vouch(&self, q: &Queued) -> Result<Vouched> {
        let vouched = self.plan.spool.vouch(q, &self.plan.replica);
        vouched.map_err(|e| if e.is_corrupt() { self.damaged(e.to_string()) } else { e })
    }

    /// PUT, then manifest. Returns what the manifest now says of it.
    async fn put(&mut self, q: &Vouched, level: Level) -> Result<ManifestEntry> {
        let entry = check(q, level)
            .await
            .map_err(|e| if e.is_corrupt() { self.damaged(e.to_string()) } else { e })?;
        let name = entry.id.name();
        let started = clock::uptime();
        let meta = PutMeta { timestamp: Some(entry.time), sha256: Some(entry.sha256) };
        crash::point("ship.before-put");
        let key = entry.id.key(self.plan.store.layout());
        match self.plan.store.put_new(&key, Body::File(q.path.clone()), meta).await {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::Exists => {
                return Err(Error::new(
                    Kind::Fenced,
                    format!(
                        "{name} is in the replica already with other content: another writer is at work there"
                    ),
                ));
            }
            Err(e) => return Err(e),
        }
        crash::point("ship.after-put");
        if self.manifest.is_none() {
            self.manifest = Some(ManifestWriter::load(&self.plan.store).await?);
        }
        if let Some(m) = &mut self.manifest {
            m.append(&self.plan.store, std::slice::from_ref(&entry)).await?;
        }
        let took = clock::uptime().saturating_sub(started);
        (self.plan.on_event)(Event::Uploaded { level, name, bytes: q.bytes, took });
        Ok(entry)
    }

    /// The queue is no history any more. That passes: it is given up, and a snapshot follows.
    fn damaged(&self, error: String) -> Error {
        (self.plan.on_event)(Event::Corrupt { error: error.clone() });
        (self.plan.on_event)(Event::QueueDamaged { error: error.clone() });
        Error::new(Kind::Retry, format!("the spool is damaged, and the database is read anew: {error}"))
    }

    fn record(&mut self, q: &Vouched, level: Level) -> Result<()> {
        let old = self.plan.link.status();
        let lineage = if q.txid >= old.replicated {
            q.lineage()
        } else {
            self.plan.spool.shipped()?.map(|s| s.lineage).unwrap_or_default()
        };
        let now = clock::now();
        let snapshot = if level == Level::SNAPSHOT { old.snapshot.max(q.txid) } else { old.snapshot };
        let txid = old.replicated.max(q.txid);
        let replica = self.plan.replica.clone();
        self.plan.spool.set_shipped(&Shipped { replica, lineage, txid, snapshot, time: now })?;
        // Who waits for that TXID looks at the rest of the status right after.
        self.succeeded(|s| {
            s.replicated = txid;
            s.snapshot = snapshot;
            s.last_upload = Some(now);
        });
        Ok(())
    }

    async fn upload_merged(&mut self, file: &Vouched, merged: super::merge::Merged) -> Result<()> {
        self.put(file, merged.level).await?;
        crash::point("merge.after-manifest");
        self.merger.done(&self.plan.spool, &merged)?;
        let inputs = merged.inputs.len();
        (self.plan.on_event)(Event::Merged { level: merged.level, name: merged.name, inputs });
        Ok(())
    }

    /// The store has answered well; `also` is known from that, too.
    fn succeeded(&mut self, also: impl FnOnce(&mut Status)) {
        self.failures = 0;
        let change = self.plan.breaker.success();
        let breaker = self.plan.breaker.state().as_str();
        self.plan.link.update(|s| {
            also(s);
            s.breaker = breaker;
            s.last_error = None;
            if s.state != State::Fenced {
                s.state = State::CatchingUp;
            }
        });
        if change == Change::Closed {
            (self.plan.on_event)(Event::BreakerClosed);
        }
    }

    fn idle(&mut self) {
        self.succeeded(|_| {});
        self.plan.link.update(|s| s.state = State::Streaming);
    }

    /// How long to wait, `None` for ever.
    fn failed(&mut self, e: Error) -> Option<Duration> {
        let text = e.to_string();
        let kind = e.kind();
        if kind == Kind::Fenced {
            (self.plan.on_event)(Event::Fenced { error: text.clone() });
            self.plan.link.update(|s| {
                s.state = State::Fenced;
                s.failures += 1;
                s.last_error = Some((kind, text));
            });
            return None;
        }
        if kind == Kind::Corrupt {
            (self.plan.on_event)(Event::Corrupt { error: text.clone() });
        }
        self.failures = self.failures.saturating_add(1);
        (self.plan.on_event)(Event::Failed { kind, error: text.clone(), attempts: self.failures });
        let change = if Breaker::counts(kind) && !e.is_shortage() {
            // (What this process is short of says nothing of the store.)
            self.plan.breaker.failure(clock::uptime())
        } else {
            Change::None
        };
        if change == Change::Opened {
            (self.plan.on_event)(Event::BreakerOpen { error: text.clone() });
        }
        // What the store holds may not be what was there when it was looked at.
        self.manifest = None;
        self.suspects |= !matches!(kind, Kind::Retry | Kind::Timeout);
        let breaker = self.plan.breaker.state();
        self.plan.link.update(|s| {
            s.breaker = breaker.as_str();
            s.state = match (breaker, kind) {
                (BreakerState::Open, _) => State::Paused,
                (_, Kind::Retry | Kind::Timeout) => State::CatchingUp,
                _ => State::Failed,
            };
            s.failures += 1;
            s.last_error = Some((kind, text));
        });
        let wait = self.plan.retry.delay(self.failures - 1, clock::random_u64(), e.retry_after());
        Some(match kind {
            Kind::Retry | Kind::Timeout => wait,
            _ => wait.max(SLOW_RETRY.min(self.plan.retry.max)),
        })
    }

    fn quiet_time(&self) -> Duration {
        let lease = self.lease.as_ref().map_or(Duration::from_secs(3600), Lease::due_in);
        lease.min(self.merger.due_in(clock::uptime())).max(Duration::from_millis(20))
    }

    /// Waits for the time, or for what cuts it short.
    async fn rest(&self, d: Duration, why: Rest) {
        let end = clock::uptime() + d;
        loop {
            let left = end.saturating_sub(clock::uptime());
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                () = self.plan.link.work.notified() => {
                    let enough = match why {
                        Rest::Idle => true,
                        Rest::Paused => self.plan.link.is_waited_for(),
                        Rest::BetweenTries => false,
                    };
                    if enough || self.plan.link.is_stopped() {
                        return;
                    }
                }
            }
        }
    }

    /// Lets whoever asked for the manifest have it, and waits until it is back. What was read of it is read
    /// again: it may be another.
    async fn lend_manifest(&mut self) {
        let link = self.plan.link.clone();
        while link.desk.lend() {
            self.manifest = None;
            // A lease that is lost meanwhile is noticed by the next step, which keeps it too.
            if let Some(lease) = &mut self.lease {
                drop(lease.keep(&self.plan.store).await);
            }
            link.desk.returned(LENT_LOOK).await;
        }
    }

    async fn until_stopped(&self) {
        while !self.plan.link.is_stopped() {
            self.plan.link.work.notified().await;
        }
    }
}

/// Reads the whole file strictly before it leaves: what is damaged here must not become history there.
async fn check(q: &Queued, level: Level) -> Result<ManifestEntry> {
    let path = q.path.clone();
    let read = move || ManifestEntry::of_file(level, &path);
    if q.bytes <= SMALL { read() } else { blocking(read).await }
}

/// Work that would hold up the other databases' uploads goes to a thread that may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    #[cfg(feature = "sim")]
    if crate::base::sim::world().is_some() {
        return work();
    }
    panics::blocking(work).await?
}

#[cfg(test)]
#[test]
fn rests_after_panics_grow_to_half_a_minute() {
    let rests: Vec<u64> = (1..=7).map(|n| rest_after_panic(n).as_secs()).collect();
    assert_eq!(rests, [2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(rest_after_panic(u32::MAX), LONGEST_AFTER_PANIC);
}

fn is_older(path: &std::path::Path, age: Duration) -> bool {
    let made = std::fs::metadata(path).and_then(|m| m.modified());
    made.is_ok_and(|t| t.elapsed().is_ok_and(|d| d > age))
}
