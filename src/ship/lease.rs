//! Who may write the replica: a small object, changed by conditional update only.
//!
//! `walrust/lease.json` names the holder, its session and when the lease ends. A holder renews it at half its
//! life; a renewal whose condition fails means somebody else has it: fenced. Time is compared with a margin,
//! and the lease is the first of two guards only: create-only objects (I-SHIP-2) are the second, so a holder
//! that was frozen past its lease still overwrites nothing.
//!
//! The writer id lives in the spool: a restarted process on the same machine, or the next process of a
//! zero-downtime deploy, is the same writer and need not wait. Where the store ignores conditions there is no
//! lease, and nothing claims one.

use crate::base::{Error, Kind, Result, Timestamp, TxId, clock, crash};
use crate::store::{Store, Version};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const KEY: &str = "walrust/lease.json";
/// A lease's life. Long enough to ride out a store's hiccup, short enough to wait for.
const LIFE: Duration = Duration::from_secs(60);

fn life() -> Duration {
    crash::lease_life(LIFE)
}

/// It is renewed when this much of its life has passed: 25 seconds.
fn renew_after() -> Duration {
    life() * 5 / 12
}

/// How far two machines' clocks may be apart: 5 seconds.
fn skew() -> Duration {
    life() / 12
}

/// Who we are.
#[derive(Clone, Debug)]
pub struct Me {
    /// Lives in the spool.
    pub writer: String,
    /// This process's try at shipping.
    pub session: String,
    /// For people: host name and process id.
    pub who: String,
}

/// The object's content.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct LeaseState {
    /// Writer id of the holder.
    pub writer: String,
    /// Its session.
    pub session: String,
    /// Host name and process id, for people.
    pub holder: String,
    /// When it ends, milliseconds since 1970.
    pub ends: i64,
    /// Above which TXID the holder begins, if it evicted another: that one, until it notices, goes on below.
    #[serde(default)]
    pub base: u64,
    /// The other writer that held it before, while it is not settled what becomes of what that one wrote: a holder that dies
    /// over that finds its own name in the lease, and must not take all for its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// TXIDs left to a writer that was evicted alive: until it next renews its lease it does not know, and what it still ships
/// must not bear the TXID of a state of ours. More than it can ship in that time.
const ROOM: u64 = 1 << 16;

/// The longest lease object: far longer than ours are.
const LONGEST: usize = 4096;
/// The longest host name and process id that is shown.
const LONGEST_NAME: usize = 200;

impl LeaseState {
    /// Reads the object. `None` for what is no lease; then nobody holds it. What people get to see of it is one short line,
    /// whatever it holds.
    pub fn decode(bytes: &[u8]) -> Option<LeaseState> {
        let state: LeaseState = (bytes.len() <= LONGEST).then(|| serde_json::from_slice(bytes).ok())??;
        let shown = |name: &str| -> String {
            name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_NAME).collect()
        };
        let after = state.after.as_deref().map(shown);
        Some(LeaseState { holder: shown(&state.holder), after, ..state })
    }

    /// The object's bytes.
    pub fn encode(&self) -> Result<bytes::Bytes> {
        serde_json::to_vec(self)
            .map(Into::into)
            .map_err(|e| Error::new(Kind::Bug, "cannot write the lease").because(e))
    }
}

/// A lease that is held.
#[derive(Debug)]
pub struct Lease {
    me: Me,
    version: Version,
    renewed: Duration,
    base: TxId,
    after: Option<String>,
    /// What was there.
    found: Option<LeaseState>,
}

/// Whether a holder that is still alive gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    Respect,
    Evict,
}

impl Lease {
    /// Takes the lease, or errors with [`Kind::Fenced`] naming the holder and when its lease ends. `newest`: the newest TXID
    /// that is known of.
    pub async fn take(store: &Store, me: &Me, evict: bool, newest: TxId) -> Result<Lease> {
        let rival = if evict { Rival::Evict } else { Rival::Respect };
        for _ in 0..4 {
            let found = match store.get_versioned(KEY).await {
                Ok((bytes, version)) => Some((LeaseState::decode(&bytes), version)),
                Err(e) if e.is_missing() => None,
                Err(e) => return Err(e),
            };
            if let Some((Some(held), _)) = &found
                && rival == Rival::Respect
                && held.writer != me.writer
                && Timestamp(held.ends.saturating_add(skew().as_millis() as i64)) > clock::now()
            {
                return Err(fenced(held));
            }
            let held = found.as_ref().and_then(|(held, _)| held.as_ref());
            let base = match held {
                // It may be about to begin above a base of its own, where nothing of it is to be seen yet.
                Some(h) if h.ends > 0 && h.writer != me.writer => {
                    TxId(newest.0.max(h.base).saturating_add(ROOM))
                }
                Some(h) => TxId(h.base),
                None => TxId::ZERO,
            };
            let after = match held {
                Some(h) if h.writer != me.writer => Some(h.holder.clone()),
                Some(h) => h.after.clone(),
                None => None,
            };
            let state = LeaseState { after: after.clone(), ..me.lease(base) };
            match store.put_if(KEY, state.encode()?, found.as_ref().map(|(_, v)| v)).await {
                Ok(version) => {
                    let found = found.and_then(|(held, _)| held);
                    let (me, renewed) = (me.clone(), clock::uptime());
                    return Ok(Lease { me, version, renewed, base, after, found });
                }
                Err(e) if e.kind() == Kind::Exists => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::new(Kind::Retry, "the replica's lease keeps changing hands"))
    }

    /// Renews it when it is time to. [`Kind::Fenced`] when somebody else has it.
    pub async fn keep(&mut self, store: &Store) -> Result<()> {
        if clock::uptime().saturating_sub(self.renewed) < renew_after() {
            return Ok(());
        }
        self.renew(store).await
    }

    async fn renew(&mut self, store: &Store) -> Result<()> {
        match store.put_if(KEY, self.state().encode()?, Some(&self.version)).await {
            Ok(version) => {
                self.version = version;
                self.renewed = clock::uptime();
                Ok(())
            }
            Err(e) if e.kind() == Kind::Exists || e.is_missing() => self.settle(store).await,
            Err(e) => Err(e),
        }
    }

    /// A renewal failed its condition: either our own earlier renewal arrived after its answer was lost, or
    /// the object is gone (a bucket made anew), or somebody else has it.
    async fn settle(&mut self, store: &Store) -> Result<()> {
        let (bytes, version) = match store.get_versioned(KEY).await {
            Ok(found) => found,
            Err(e) if e.is_missing() => {
                let base = self.base;
                *self = Lease::take(store, &self.me, false, base).await?;
                self.base = base;
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        match LeaseState::decode(&bytes) {
            Some(s) if s.session == self.me.session => {
                self.version = version;
                self.renewed = clock::uptime();
                Ok(())
            }
            Some(s) => Err(fenced(&s)),
            None => Err(Error::new(
                Kind::Fenced,
                "the replica's lease object is no longer ours and can't be read",
            )),
        }
    }

    /// Above which TXID a lineage begins that is not the one before.
    pub fn base(&self) -> TxId {
        self.base
    }

    /// Whether a session held it that may not know yet that it is over. One that was given back has ended at 0.
    pub fn evicted(&self) -> bool {
        self.found.as_ref().is_some_and(|held| held.ends > 0)
    }

    /// The holder before us, if that was another writer.
    pub fn taken_from(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// It is decided, and on disk, how the history goes on from what that one wrote.
    pub async fn settled(&mut self, store: &Store) -> Result<()> {
        if self.after.take().is_some() { self.renew(store).await } else { Ok(()) }
    }

    fn state(&self) -> LeaseState {
        LeaseState { after: self.after.clone(), ..self.me.lease(self.base) }
    }

    /// It was taken for nothing: whoever held it holds it again, and finds his session in it when he looks.
    pub async fn undo(self, store: &Store) {
        match self.found.as_ref().map(LeaseState::encode) {
            Some(Ok(bytes)) => drop(store.put_if(KEY, bytes, Some(&self.version)).await),
            _ => self.release(store).await,
        }
    }

    /// When to look again.
    pub fn due_in(&self) -> Duration {
        renew_after().saturating_sub(clock::uptime().saturating_sub(self.renewed))
    }

    /// Gives it back: the next writer need not wait. Failing to is harmless, the lease ends by itself.
    pub async fn release(self, store: &Store) {
        let ended = LeaseState { ends: 0, ..self.state() };
        if let Ok(bytes) = ended.encode() {
            let _ = store.put_if(KEY, bytes, Some(&self.version)).await;
        }
    }
}

impl Me {
    fn lease(&self, base: TxId) -> LeaseState {
        LeaseState {
            writer: self.writer.clone(),
            session: self.session.clone(),
            holder: self.who.clone(),
            ends: clock::now().0 + life().as_millis() as i64,
            base: base.0,
            after: None,
        }
    }
}

fn fenced(held: &LeaseState) -> Error {
    Error::new(
        Kind::Fenced,
        format!(
            "the replica is held by {} until {}; stop it, wait, or take over with '{{\"takeover\":true}}'",
            held.holder,
            Timestamp(held.ends)
        ),
    )
}
