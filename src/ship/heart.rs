//! The heartbeat that the resting leases of one process share.
//!
//! A lease at work is renewed by a PUT of its own each 25 seconds. A thousand idle databases would pay for that with a hundred million
//! requests a month. So a lease whose database has been idle for two lives *rests*: its object names a heart, and it lives as long
//! as that one beats. The heart is one object in the folder above the replicas (`walrust/hearts/<id>.json`), rewritten each
//! 25 seconds by whichever keeper comes first. Object stores only: in a directory a renewal costs no request.
//!
//! # Rules
//!
//! * I-HEART-1: a lease names a heart only after a beat of it was acknowledged, and rests only while beats are. A lease whose heart
//!   has not beaten for two thirds of a life wakes, while it still is nobody else's: it is renewed by itself.
//! * I-HEART-2: who looks at a resting lease looks at the pair. The lease has ended when neither has changed for its life on the
//!   clock of who looks (I-LEASE-1). A heart that cannot be read proves nothing, and its lease is respected.
//! * I-HEART-3: before a resting lease ships anything, it wakes: a conditional renewal that fails if another has taken it. A process
//!   that was frozen therefore finds out before it writes, whatever its heart did.
//! * I-HEART-4: who takes a resting lease says so in the heart. The next beat, which is conditional, fails by that, and
//!   the holder wakes the lease and learns whose it is, though its database is idle. Who dies between the two, or may not write there,
//!   leaves the holder to I-HEART-3.
//!
//! # Crash
//!
//! Before the lease names the heart: the lease is renewed by nobody and ends, as without hearts. After that: both stand still and end
//! together. The heart's object stays behind; the next heart of that folder removes those that have not beaten for a week by the
//! store's clock.
//!
//! # Refused
//!
//! To let an idle lease lapse, and take it anew: a second machine would be let in, where it is refused now. A heart
//! beside each replica, or in a place that is configured: the folder above is what replicas of one program have in common. A process
//! that may not write there, or has one database, goes on as before.

use super::lease::{pause, renew_after};
use crate::base::{Error, ForkSafe, Kind, Result, clock, crash};
use crate::store::{ReplicaUrl, Store, StoreKind, Version};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Where hearts lie in the folder above the replicas.
const FOLDER: &str = "walrust/hearts/";
/// The longest heart that is read, in bytes: a thousand names that were taken.
const LONGEST: usize = 256 * 1024;
/// How often one who tells a heart that its lease was taken begins again when the heart changes meanwhile.
const TRIES: usize = 5;
/// How long no heart is tried where none may be written.
const REFUSED_REST: Duration = Duration::from_secs(3600);
/// A heart that has not beaten for that long is nobody's, in milliseconds of the store's clock.
const ABANDONED_MS: i64 = 7 * 86_400_000;

/// The object's content.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct HeartState {
    /// Another number at each beat.
    pub(super) beat: u64,
    /// Host name and process id, for people.
    #[serde(default)]
    pub(super) holder: String,
    /// Replicas of this folder whose leases another writer has taken, until the holder has read it here.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) taken: BTreeSet<String>,
}

impl HeartState {
    /// Reads the object; what is none is a heart that stands still.
    fn decode(bytes: &[u8]) -> HeartState {
        let state = (bytes.len() <= LONGEST).then(|| serde_json::from_slice(bytes).ok());
        state.flatten().unwrap_or_default()
    }

    /// The object's bytes. Errors with [`Kind::Bug`].
    fn encode(&self) -> Result<bytes::Bytes> {
        serde_json::to_vec(self)
            .map(Into::into)
            .map_err(|e| Error::new(Kind::Bug, "cannot write the heart").because(e))
    }
}

fn key(id: &str) -> String {
    format!("{FOLDER}{id}.json")
}

/// The folder that the replica lies in, and its name there. `None` for a directory, and for a replica that is a whole bucket.
fn place(replica: &str) -> Option<(ReplicaUrl, String)> {
    let url = ReplicaUrl::parse(replica).ok().filter(|u| u.kind() != StoreKind::Local)?;
    Some((url.parent()?, url.name().to_string()))
}

/// The number of the last beat of the heart that a lease of `replica` names; `None` where there is none. Errors as the store does.
pub(super) async fn look(replica: &str, id: &str) -> Result<Option<u64>> {
    let Some((folder, _)) = place(replica) else { return Ok(None) };
    match Store::open(&folder)?.get(&key(id)).await {
        Ok(bytes) => Ok(Some(HeartState::decode(&bytes).beat)),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e.context(format!("the heartbeat of its lease, {} in {folder}", key(id)))),
    }
}

/// Tells the heart that the lease of `replica` has another holder now (I-HEART-4). Errors as the store does.
pub(super) async fn tell(replica: &str, id: &str) -> Result<()> {
    let Some((folder, name)) = place(replica) else { return Ok(()) };
    let store = Store::open(&folder)?;
    for _ in 0..TRIES {
        let (bytes, version) = match store.get_versioned(&key(id)).await {
            Ok(there) => there,
            Err(e) if e.is_missing() => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut state = HeartState::decode(&bytes);
        state.taken.insert(name.clone());
        match store.put_if(&key(id), state.encode()?, Some(&version)).await {
            Err(e) if e.kind() == Kind::Exists || e.is_missing() => {}
            done => return done.map(drop),
        }
    }
    Err(Error::new(Kind::Retry, "the heart keeps changing"))
}

/// Hearts of this process, by folder. One lives as long as a lease has a share in it.
type Hearts = Mutex<BTreeMap<String, Weak<Heart>>>;

static HEARTS: ForkSafe<Hearts> = ForkSafe::new(Mutex::default);

#[cfg(feature = "sim")]
thread_local! {
    static SIMULATED: Hearts = const { Mutex::new(BTreeMap::new()) };
}

/// One heart.
#[derive(Debug)]
struct Heart {
    id: String,
    holder: String,
    store: Store,
    /// Who beats.
    object: tokio::sync::Mutex<Object>,
    /// What is known of it, for those who only look.
    known: Mutex<Known>,
}

/// The object, as it was last written.
#[derive(Debug, Default)]
struct Object {
    version: Option<Version>,
    beat: u64,
    was_made: bool,
}

#[derive(Debug, Default)]
struct Known {
    /// Uptime at which the last acknowledged beat was sent.
    beaten: Option<Duration>,
    /// Uptime and outcome of the last try, if that failed.
    failed: Option<(Duration, Kind, String)>,
    /// Names of replicas whose leases were taken.
    taken: BTreeSet<String>,
}

/// A lease's share in a heart.
#[derive(Debug)]
pub(super) struct Share {
    heart: Arc<Heart>,
    name: String,
}

impl Share {
    /// A share in this process's heart of the folder that the replica lies in; `None` where there can be none. Contacts nothing.
    pub(super) fn of(replica: &str, holder: &str, session: &str) -> Option<Share> {
        let (folder, name) = place(replica)?;
        // (Simulated machines share one process.)
        #[cfg(feature = "sim")]
        if crate::base::sim::world().is_some() {
            let of = format!("{folder} {session}");
            return SIMULATED.with(|hearts| Share::among(hearts, of, &folder, holder, name));
        }
        let _ = session;
        Share::among(HEARTS.get(), folder.to_string(), &folder, holder, name)
    }

    fn among(hearts: &Hearts, of: String, folder: &ReplicaUrl, holder: &str, name: String) -> Option<Share> {
        let mut hearts = hearts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(heart) = hearts.get(&of).and_then(Weak::upgrade) {
            return Some(Share { heart, name });
        }
        hearts.retain(|_, heart| heart.strong_count() > 0);
        let heart = Arc::new(Heart {
            id: format!("{:016x}", clock::random_u64()),
            holder: holder.to_string(),
            store: Store::open(folder).ok()?,
            object: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        });
        hearts.insert(of, Arc::downgrade(&heart));
        Some(Share { heart, name })
    }

    /// The heart's id, for the lease.
    pub(super) fn id(&self) -> &str {
        &self.heart.id
    }

    /// How many leases share it.
    pub(super) fn sharers(&self) -> usize {
        #[cfg(feature = "sim")]
        if crate::base::sim::world().is_some() {
            return Arc::strong_count(&self.heart).max(super::lease::FEWEST_SHARERS);
        }
        Arc::strong_count(&self.heart)
    }

    /// When its last acknowledged beat was sent.
    pub(super) fn beaten(&self) -> Option<Duration> {
        self.heart.known().beaten
    }

    /// Whether somebody said that he has taken this replica's lease; once.
    pub(super) fn was_taken(&self) -> bool {
        self.heart.known().taken.remove(&self.name)
    }

    /// Whether hearts are not to be tried for a while, because none may be written there.
    pub(super) fn is_refused(&self) -> bool {
        let known = self.heart.known();
        known.failed.as_ref().is_some_and(|(at, kind, _)| {
            !matches!(kind, Kind::Retry | Kind::Timeout) && clock::uptime().saturating_sub(*at) < REFUSED_REST
        })
    }

    /// Beats, if a beat is due: whichever of the sharers comes first does it for all. Errors with what the store answered to the last
    /// try, which is not repeated before its pause is over.
    pub(super) async fn beat(&self) -> Result<()> {
        let heart = &self.heart;
        let mut object = heart.object.lock().await;
        let now = clock::uptime();
        {
            let known = heart.known();
            if known.beaten.is_some_and(|at| now.saturating_sub(at) < renew_after()) {
                return Ok(());
            }
            if let Some((at, kind, text)) = &known.failed
                && now.saturating_sub(*at) < pause()
            {
                return Err(Error::new(*kind, text.clone()));
            }
        }
        let beaten = heart.write(&mut object).await;
        let mut known = heart.known();
        match &beaten {
            Ok(()) => (known.beaten, known.failed) = (Some(now), None),
            Err(e) => known.failed = Some((now, e.kind(), e.to_string())),
        }
        beaten
    }

    /// The lease is given up. The last to leave removes the object; failing to is harmless.
    pub(super) async fn leave(self) {
        if Arc::strong_count(&self.heart) > 1 {
            return;
        }
        let mut object = self.heart.object.lock().await;
        if std::mem::take(&mut object.was_made) {
            drop(self.heart.store.delete(&[key(&self.heart.id)]).await);
            *object = Object { beat: object.beat, ..Object::default() };
            self.heart.known().beaten = None;
        }
    }
}

impl Heart {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Errors as the store does.
    async fn write(&self, object: &mut Object) -> Result<()> {
        for _ in 0..TRIES {
            object.beat = object.beat.wrapping_add(1);
            let state = HeartState { beat: object.beat, holder: self.holder.clone(), taken: BTreeSet::new() };
            let put = self.store.put_if(&key(&self.id), state.encode()?, object.version.as_ref()).await;
            match put {
                Ok(version) => {
                    object.version = Some(version);
                    if !std::mem::replace(&mut object.was_made, true) {
                        crash::point("heart.made");
                        self.bury().await;
                    }
                    return Ok(());
                }
                Err(e) if e.kind() == Kind::Exists || e.is_missing() => self.read(object).await?,
                Err(e) => return Err(e),
            }
        }
        Err(Error::new(Kind::Retry, "the heart keeps changing"))
    }

    /// A beat met another version: somebody took a lease (I-HEART-4), an answer was lost, or the object is gone.
    async fn read(&self, object: &mut Object) -> Result<()> {
        match self.store.get_versioned(&key(&self.id)).await {
            Ok((bytes, version)) => {
                self.known().taken.extend(HeartState::decode(&bytes).taken);
                object.version = Some(version);
            }
            Err(e) if e.is_missing() => object.version = None,
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Removes what dead processes left in this folder. Failing to is harmless.
    async fn bury(&self) {
        let Ok(there) = self.store.list(FOLDER).await else { return };
        let own = key(&self.id);
        let Some(now) = there.iter().find(|o| o.key == own).map(|o| o.modified) else { return };
        let dead = there.into_iter().filter(|o| now.0.saturating_sub(o.modified.0) > ABANDONED_MS);
        let dead: Vec<String> = dead.map(|o| o.key).collect();
        if !dead.is_empty() {
            drop(self.store.delete(&dead).await);
        }
    }
}
