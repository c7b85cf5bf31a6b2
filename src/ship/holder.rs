//! A lease that is held: taken, kept, given back, at the store. What to do is decided by [`super::lease`].

use super::heart::{self, Share};
use super::lease::{
    Age, Claim, Found, LeaseState, Me, Observed, Process, Pulse, Purpose, Rival, Seen, Sight, Upkeep, claim,
    due_in, held_by, may_rest, renew_after, seen, taken_by, upkeep, wakes,
};
use crate::base::{Error, ForkSafe, Kind, Result, TxId, clock, crash};
use crate::replica::LEASE_KEY as KEY;
use crate::store::{Store, Version};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How often a taker begins again when the lease changes between its look and its put.
const TRIES: usize = 4;
/// Replicas whose leases this process has looked at, as far as it remembers.
const REMEMBERED: usize = 4096;

/// What this process has seen of leases, by the replica's URL: a watch that was refused is asked for again.
static SIGHTS: ForkSafe<Mutex<BTreeMap<String, Sight>>> = ForkSafe::new(Mutex::default);

#[cfg(feature = "sim")]
thread_local! {
    static SIMULATED: std::cell::RefCell<BTreeMap<String, Sight>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

/// How long the lease of the replica at `url` has been as it was `found`.
pub(super) fn unchanged_for(url: &str, found: &Observed) -> Duration {
    let now = clock::uptime();
    let look = |sights: &mut BTreeMap<String, Sight>| {
        if sights.len() >= REMEMBERED && !sights.contains_key(url) {
            sights.clear();
        }
        sights.entry(url.to_string()).or_default().look(found, now)
    };
    #[cfg(feature = "sim")]
    if crate::base::sim::world().is_some() {
        return SIMULATED.with(|s| look(&mut s.borrow_mut()));
    }
    look(&mut SIGHTS.lock())
}

/// Reads a replica's lease, and the heart that it rests on. `None` where there is no lease. Errors as the store does.
pub async fn observe(store: &Store) -> Result<Option<Observed>> {
    let bytes = match store.get(KEY).await {
        Ok(bytes) => bytes,
        Err(e) if e.is_missing() => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(lease) = LeaseState::decode(&bytes) else { return Ok(None) };
    let beat = beat_of(store, &lease).await?;
    Ok(Some(Observed { lease, beat }))
}

/// The last beat of the heart that a lease rests on, if it does. Errors as the store does.
async fn beat_of(store: &Store, lease: &LeaseState) -> Result<Option<u64>> {
    match &lease.heart {
        // (On the heap, as all that hearts ask: few leases rest, and a program's thread may have a small stack.)
        Some(id) => Box::pin(heart::look(store.url(), id)).await,
        None => Ok(None),
    }
}

/// Whether the lease that was `found` at `url` is another's and may be alive: how long it lasts if it is not renewed, or `None`
/// when it has ended or was given back.
pub fn lives_for(url: &str, found: &Observed) -> Option<Duration> {
    let is_gone = found.lease.process.as_ref().is_some_and(Process::is_gone);
    let found = Found { state: &found.lease, unchanged: unchanged_for(url, found), is_gone };
    match claim(Some(found), "", Rival::Respect, TxId::ZERO) {
        Claim::Take { .. } => None,
        Claim::Wait(left) => Some(left),
    }
}

impl Lease {
    /// For a writer that takes no lease (`append_only`): errors with [`Kind::Fenced`] while another's may be alive, unless it is to give way;
    /// and as the store does.
    pub async fn bars(store: &Store, me: &Me, evict: bool) -> Result<()> {
        let Some(found) = observe(store).await?.filter(|f| f.lease.writer != me.writer) else {
            return Ok(());
        };
        match lives_for(store.url(), &found) {
            Some(left) if !evict => Err(held_by(&found.lease.holder, left)),
            _ => Ok(()),
        }
    }
}

/// A lease that is held.
#[derive(Debug)]
pub struct Lease {
    me: Me,
    version: Version,
    /// Uptimes: of the last renewal, when it was sent; of the last try; of the last moment at which the lease was known to be ours.
    renewed: Duration,
    tried: Duration,
    known: Duration,
    base: TxId,
    after: Option<String>,
    beat: u64,
    /// What was there.
    found: Option<LeaseState>,
    /// Its object was gone, and was made again.
    remade: bool,
    /// In the heart of this process, where there can be one.
    share: Option<Share>,
    /// Whether the object says that it rests on the heart.
    rests: bool,
}

/// What is known of a lease that is there. Errors as the store does, unless the lease may be taken whatever its heart does.
async fn find<'a>(store: &Store, me: &Me, state: &'a LeaseState, rival: Rival) -> Result<Found<'a>> {
    let is_gone = state.process.as_ref().is_some_and(Process::is_gone);
    let beat = match beat_of(store, state).await {
        Err(e) if !is_gone && rival == Rival::Respect && state.writer != me.writer => return Err(e),
        beat => beat.unwrap_or_default(),
    };
    let observed = Observed { lease: state.clone(), beat };
    Ok(Found { state, unchanged: unchanged_for(store.url(), &observed), is_gone })
}

/// How the lease is after [`Lease::keep`].
#[derive(Debug)]
pub enum Kept {
    /// It is ours, for all that can be known.
    Ours,
    /// It is ours, and the renewal failed: go on, and tell.
    Unrenewed(Error),
    /// Its life is over without a renewal, and whose it is now cannot be read: do not go on.
    Unknown(Error),
    /// It is another's ([`Kind::Fenced`]): stop.
    Lost(Error),
}

impl Lease {
    /// Takes the lease. `newest`: the newest TXID that is known of. Errors with [`Kind::Fenced`], naming the holder and how long
    /// its lease lasts ([`Error::retry_after`]), when another holds it; with [`Kind::Retry`] when it keeps changing hands; with
    /// what the store answers.
    pub async fn take(store: &Store, me: &Me, evict: bool, newest: TxId) -> Result<Lease> {
        let rival = if evict { Rival::Evict } else { Rival::Respect };
        for _ in 0..TRIES {
            let there = match store.get_versioned(KEY).await {
                Ok((bytes, version)) => Some((LeaseState::decode(&bytes), version)),
                Err(e) if e.is_missing() => None,
                Err(e) => return Err(e),
            };
            let held = there.as_ref().and_then(|(held, _)| held.as_ref());
            let found = match held {
                Some(state) => Some(Box::pin(find(store, me, state, rival)).await?),
                None => None,
            };
            let (base, after) = match claim(found, &me.writer, rival, newest) {
                Claim::Take { base, after } => (base, after),
                Claim::Wait(left) => {
                    return Err(held_by(held.map_or("another", |h| &h.holder), left));
                }
            };
            let beat = held.map_or(0, |h| h.beat).wrapping_add(1);
            let state = me.lease(base, after.clone(), clock::now(), beat);
            let sent = clock::uptime();
            match store.put_if(KEY, state.encode()?, there.as_ref().map(|(_, v)| v)).await {
                Ok(version) => {
                    let found = there.and_then(|(held, _)| held);
                    crash::point("heart.taken");
                    if let Some(id) = found
                        .as_ref()
                        .filter(|held| held.session != me.session)
                        .and_then(|held| held.heart.as_deref())
                    {
                        // (Who is not told finds out when he wakes: I-HEART-3.)
                        drop(Box::pin(heart::tell(store.url(), id)).await);
                    }
                    let share = Share::of(store.url(), &me.who, &me.session);
                    let (me, renewed, tried, known) = (me.clone(), sent, sent, sent);
                    return Ok(Lease {
                        me,
                        version,
                        renewed,
                        tried,
                        known,
                        base,
                        after,
                        beat,
                        found,
                        remade: false,
                        share,
                        rests: false,
                    });
                }
                Err(e) if e.kind() == Kind::Exists => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::new(Kind::Retry, "the replica's lease keeps changing hands"))
    }

    /// Does what is due for the lease to stay ours: before anything is done that wants it, or while nothing is.
    pub(super) async fn keep(&mut self, store: &Store, purpose: Purpose) -> Kept {
        let (mut why, mut is_woken) = (None, false);
        if self.rests {
            let beaten = self.beat().await;
            if !wakes(purpose, self.pulse()) {
                return beaten.map_or_else(Kept::Unrenewed, |()| Kept::Ours);
            }
            (self.rests, is_woken) = (false, true);
            crash::point("heart.wakes");
        }
        loop {
            // (One that wakes is renewed at once, whenever that was done last.)
            let next = if std::mem::take(&mut is_woken) { Upkeep::Renew } else { upkeep(self.age()) };
            let is_read = match next {
                Upkeep::GoOn => {
                    // (It may have been made again, after it was gone.)
                    return why.filter(|_| !self.is_fresh()).map_or(Kept::Ours, Kept::Unrenewed);
                }
                Upkeep::Look => self.look(store).await,
                Upkeep::Renew => match self.renew(store, purpose).await {
                    Ok(()) => Ok(false),
                    Err(e) if e.kind() == Kind::Exists || e.is_missing() => {
                        let first = why.replace(e).is_none();
                        let is_new = self.look(store).await;
                        if first && matches!(is_new, Ok(true)) {
                            // An earlier renewal arrived after its answer was lost: the next one goes from there.
                            (self.tried, why) = (Duration::ZERO, None);
                        }
                        is_new
                    }
                    Err(e) => {
                        why = Some(e);
                        Ok(false)
                    }
                },
            };
            if let Err(e) = is_read {
                return self.not_ours(e);
            }
        }
    }

    fn not_ours(&self, e: Error) -> Kept {
        match e.kind() {
            Kind::Fenced => Kept::Lost(e),
            // (A look that fails within its life says nothing.)
            _ if self.age().renewed < super::lease::life() => Kept::Unrenewed(e),
            _ => Kept::Unknown(e),
        }
    }

    fn age(&self) -> Age {
        let since = |t: Duration| clock::uptime().saturating_sub(t);
        Age { renewed: since(self.renewed), tried: since(self.tried), known: since(self.known) }
    }

    async fn renew(&mut self, store: &Store, purpose: Purpose) -> Result<()> {
        // (A heart that does not beat, or may not, is told by nobody: the lease is renewed by itself.)
        let may_rest =
            self.share.as_ref().is_some_and(|share| may_rest(purpose, share.sharers(), share.is_refused()));
        let rests = may_rest && self.beat().await.is_ok() && !wakes(purpose, self.pulse());
        let heart = self.share.as_ref().filter(|_| rests).map(|share| share.id().to_string());
        let sent = clock::uptime();
        self.tried = sent;
        self.beat = self.beat.wrapping_add(1);
        let state = LeaseState { heart, ..self.state() };
        let version = store.put_if(KEY, state.encode()?, Some(&self.version)).await?;
        (self.version, self.renewed, self.known, self.rests) = (version, sent, sent, rests);
        if rests {
            crash::point("heart.rests");
        }
        Ok(())
    }

    /// Has the heart beat, if a beat is due. Errors as the store does.
    async fn beat(&self) -> Result<()> {
        match &self.share {
            Some(share) => Box::pin(share.beat()).await,
            None => Ok(()),
        }
    }

    fn pulse(&self) -> Pulse {
        let share = self.share.as_ref();
        let age = |at: Duration| clock::uptime().saturating_sub(at);
        Pulse {
            beaten: share.and_then(Share::beaten).map(age),
            is_taken: share.is_some_and(Share::was_taken),
        }
    }

    /// Reads whose it is, and takes it again where it is gone. Whether another version of ours was there than the last known.
    /// Errors with [`Kind::Fenced`] when it is another's.
    async fn look(&mut self, store: &Store) -> Result<bool> {
        let sent = clock::uptime();
        let there = match store.get_versioned(KEY).await {
            Ok(there) => Some(there),
            Err(e) if e.is_missing() => None,
            Err(e) => return Err(e),
        };
        match seen(there.as_ref().map(|(bytes, _)| bytes.as_ref()), &self.me.session) {
            Seen::Ours => {
                self.known = sent;
                let version = there.map(|(_, v)| v).filter(|v| *v != self.version);
                let is_new = version.is_some();
                self.version = version.unwrap_or_else(|| self.version.clone());
                Ok(is_new)
            }
            Seen::Nothing => {
                let base = self.base;
                // (Boxed: taking one and looking at one call each other's kin.)
                *self = Box::pin(Lease::take(store, &self.me, false, base)).await?;
                (self.base, self.remade) = (base, true);
                Ok(false)
            }
            Seen::Anothers(holder) => Err(taken_by(&holder)),
            Seen::Unreadable => {
                let why = "the replica's lease object is no longer ours and can't be read";
                Err(Error::new(Kind::Fenced, why))
            }
        }
    }

    /// Whether its object was gone since the last call: whoever took that may have taken more.
    pub fn take_remade(&mut self) -> bool {
        std::mem::take(&mut self.remade)
    }

    /// Above which TXID a lineage begins that is not the one before.
    pub fn base(&self) -> TxId {
        self.base
    }

    /// Whether a session held it that may not know yet that it is over. One that was given back has ended at 0.
    pub fn evicted(&self) -> bool {
        self.found.as_ref().is_some_and(|held| held.ends != 0)
    }

    /// Whether our own spool held it last: nobody else has written to the replica since.
    pub fn is_continued(&self) -> bool {
        self.after.is_none() && self.found.as_ref().is_some_and(|held| held.writer == self.me.writer)
    }

    /// The holder before us, if that was another writer.
    pub fn taken_from(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// It is decided, and on disk, how the history goes on from what that one wrote. Errors with what the store answers; then the
    /// next renewal says it.
    pub async fn settled(&mut self, store: &Store) -> Result<()> {
        if self.after.take().is_some() { self.renew(store, Purpose::Work).await } else { Ok(()) }
    }

    fn state(&self) -> LeaseState {
        self.me.lease(self.base, self.after.clone(), clock::now(), self.beat)
    }

    /// It was taken for nothing: whoever held it holds it again, and finds his session in it when he looks.
    pub async fn undo(self, store: &Store) {
        match self.found.as_ref().map(LeaseState::encode) {
            Some(Ok(bytes)) => drop(store.put_if(KEY, bytes, Some(&self.version)).await),
            _ => self.release(store, false).await,
        }
    }

    /// When to look again.
    pub fn due_in(&self) -> Duration {
        if self.rests {
            let age = self.pulse_age();
            return renew_after().saturating_sub(age).max(super::lease::pause());
        }
        due_in(self.age())
    }

    /// Since the last beat of the heart that it rests on.
    fn pulse_age(&self) -> Duration {
        let beaten = self.share.as_ref().and_then(Share::beaten);
        clock::uptime().saturating_sub(beaten.unwrap_or_default())
    }

    /// The uptime until which it is ours, whatever happens at the store meanwhile (I-LEASE-4).
    pub fn ours_until(&self) -> Duration {
        if self.rests {
            // (It wakes first: I-HEART-3.)
            return Duration::ZERO;
        }
        (self.renewed + super::lease::life()).max(self.known + super::lease::pause())
    }

    /// Whether its last renewal is not old: nothing is wrong with it.
    pub fn is_fresh(&self) -> bool {
        let age = if self.rests { self.pulse_age() } else { self.age().renewed };
        age < renew_after()
    }

    /// Gives it back: the next writer need not wait. `ahead`: the manifest lacks entries, still. Failing to is harmless, the lease
    /// ends by itself.
    pub async fn release(self, store: &Store, ahead: bool) {
        let ended = LeaseState { ends: 0, ahead, ..self.state() };
        if let Ok(bytes) = ended.encode() {
            let _ = store.put_if(KEY, bytes, Some(&self.version)).await;
        }
        if let Some(share) = self.share {
            Box::pin(share.leave()).await;
        }
    }
}

#[cfg(all(test, feature = "sim"))]
#[path = "holder_tests.rs"]
mod tests;
