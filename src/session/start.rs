//! Beginning and ending a watch.
//!
//! The local part (spool, capture, lists) is here; whose replica it is, [`super::join`] finds out. A watch that is refused has changed
//! nothing, here or in the replica (I-SES-4): the spool made here goes again, one that was there keeps its queue and records, and a
//! watch that was to be replaced goes on.
//!
//! Refused: to end the watch that works before the new one is known to (the store may refuse that one); to keep two watches of one file
//! for the time being (both would seal the same WAL).

use super::follow::forget_followed;
use super::identity::{Begin, Identity};
use super::join::{self, NotJoined, Patience};
use super::mirror::Mirror;
use super::phase::{Claim, Part, Role};
use super::registry::Engine;
use super::settings::{Change, change};
use super::watched::{Origin, Watched, series};
use crate::base::{Error, Kind, Manners, Result, TxId, clock};
use crate::config::{Durability, MirrorSettings, Settings, default_spool, replica_key};
use crate::ship;
use crate::spool::{LockFile, Owner, Shipped, Spool, real_dir};
use crate::store::{AtRest, Recipients, ReplicaUrl, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a call of the app waits for the store's answer.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

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

/// How a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The app asks, and waits for the answer.
    Asked,
    /// By the configuration, at the file's first use.
    Configured,
    /// In place of this process's own watch before: as what, and what it may do with what the replica holds.
    Again { origin: Origin, wish: Role, claim: Claim },
}

impl Start {
    fn origin(self) -> Origin {
        match self {
            Start::Asked => Origin::Call,
            Start::Configured => Origin::Configured,
            Start::Again { origin, .. } => origin,
        }
    }

    fn claim(self) -> Claim {
        match self {
            Start::Again { claim, .. } => claim,
            _ => Claim::None,
        }
    }
}

/// A watch that had a place before the one that begins.
enum Before {
    /// Nothing was watched there.
    Nothing,
    /// The same: it has what was asked for.
    Same(Arc<Watched>, Identity),
    /// It has ended, for the one that begins to take its place. With what its spool had recorded of the replica, if that is the
    /// same and the spool another: so the new spool knows whose replica it is.
    Ended(Arc<Watched>, Option<Shipped>),
}

impl Engine {
    /// Starts watching at the app's request. `make_wal` turns WAL mode on; it is called once the replica was found to be usable, or has
    /// not answered within 5 s.
    ///
    /// Errors with what is wrong: the replica is another's ([`Kind::Config`]), held by another writer ([`Kind::Fenced`]), refuses us
    /// ([`Kind::Denied`]), or cannot be used in this form. Then nothing is changed. A store that does not answer is no error
    /// ([`Identity::Unanswered`]).
    pub fn watch(
        &'static self,
        req: WatchRequest<'_>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        // What the configuration wishes stands back: the call goes before it.
        let entry = self.entry(req.path);
        let wish = entry.wish.take();
        let started = self.start(Start::Asked, req, make_wal);
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
    pub(super) fn watch_configured(&'static self, req: WatchRequest<'_>) -> Result<Arc<Watched>> {
        let (w, _) = self.start(Start::Configured, req, &|| Ok(()))?;
        Ok(w)
    }

    /// Starts watching in place of `before`, which has ended, unless it is watched again already. Errors as
    /// [`Engine::watch_configured`] does.
    pub(super) fn watch_again(&'static self, before: &Watched, wish: Role, claim: Claim) -> Result<()> {
        let how = Start::Again { origin: before.origin, wish, claim };
        self.start(how, request_of(before, claim == Claim::Own)?, &|| Ok(())).map(drop)
    }

    /// Ships what is pending and stops; returns the newest TXID in the replica. Errors when not all is there within `timeout`; it has
    /// stopped then, too, and what is pending stays in the spool.
    pub fn unwatch(&self, w: &Arc<Watched>, timeout: Duration) -> Result<TxId> {
        let end = clock::uptime() + timeout;
        let shipped = w.sync_until(timeout, super::sync::Until::Deadline);
        w.drain_mirrors(end);
        self.end(w);
        self.forget_settings(w.path());
        shipped
    }

    fn start(
        &'static self,
        how: Start,
        req: WatchRequest<'_>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        let path = req.path;
        self.followers.refuse_followed(path)?;
        // The app may open the database while it is being watched again: who comes second finds it watched.
        let entry = self.entry(path);
        let _alone = entry.start_alone(how != Start::Configured)?;
        let dir = req.settings.spool_dir.clone().unwrap_or_else(|| default_spool(path));
        self.refuse_others_spool(&dir, path)?;
        let replica = req.replica.to_string();
        refuse_in_spool(&req.replica, &dir)?;
        for mirror in &req.settings.mirrors {
            let mirror = ReplicaUrl::parse(&mirror.replica)?;
            refuse_in_spool(&mirror, &dir)?;
            self.refuse_shared_replica(&replica_key(&mirror.to_string()), path, &mirror.to_string())?;
        }
        let is_sync = how == Start::Asked && req.settings.durability == Durability::Sync;
        let was_sync = self.find(path).is_some_and(|w| w.settings().durability == Durability::Sync);
        if is_sync && !was_sync {
            refuse_unseen_commits(entry.handles.count_mapped())?;
        }
        self.refuse_shared_replica(&replica_key(&replica), path, &replica)?;
        let before = match self.find(path) {
            Some(w) => self.make_room(how, w, &req, make_wal)?,
            None => Before::Nothing,
        };
        if let Before::Same(w, identity) = before {
            return Ok((w, identity));
        }
        let record = match &before {
            Before::Ended(_, record) => record.clone(),
            _ => None,
        };
        let started = self.start_new(how, req, &dir, record, make_wal);
        match (&started, before) {
            (Ok(_), _) => {
                forget_followed(path);
                self.clear_failure(path);
            }
            (Err(_), Before::Ended(old, _)) => self.put_back(&old),
            (Err(_), _) if self.find(path).is_none() => self.services.metrics.remove(&series(path)),
            (Err(_), _) => {}
        }
        started
    }

    /// What becomes of the watch `w` that is there: it is what was asked for, takes up other settings, or ends. Errors when it stays.
    fn make_room(
        &'static self,
        how: Start,
        w: Arc<Watched>,
        req: &WatchRequest<'_>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<Before> {
        if let Start::Again { .. } = how {
            // Somebody has watched it meanwhile: that goes before.
            return Ok(Before::Same(w, Identity::Already));
        }
        let is_same = w.ships_to(&req.replica.to_string());
        if !is_same && w.origin == Origin::Call {
            return Err(Error::config(format!(
                "{} is already watched, to {}; call walrust_unwatch() first",
                req.path.display(),
                w.replica()
            )));
        }
        let change = change(&w.settings(), &req.settings);
        if is_same && !req.takeover && (how != Start::Asked || change != Change::Renew) {
            // Somebody may have turned WAL mode off since.
            make_wal()?;
            if how != Start::Asked {
                return Ok(Before::Same(w, Identity::Already));
            }
            let identity = w.wait_joined(CALL_PATIENCE)?.unwrap_or(Identity::Already);
            w.use_settings(req.settings.clone());
            return Ok(Before::Same(w, identity));
        }
        // The store is asked before anything ends: one that refuses us now would leave the database without a watch.
        let store = open_store(&req.replica, None, &req.settings)?;
        join::look(&store, Patience::Until(clock::uptime() + CALL_PATIENCE))?;
        let dir = req.settings.spool_dir.clone().unwrap_or_else(|| default_spool(req.path));
        if is_same && w.spool.real_dir() == real_dir(&dir) {
            self.end(&w);
            return Ok(Before::Ended(w, None));
        }
        // What is pending is shipped first: the call goes before the configuration, and another spool has nothing of it.
        drop(self.unwatch(&w, w.settings().sync_timeout));
        let record = if is_same { w.shipped()? } else { None };
        Ok(Before::Ended(w, record))
    }

    /// The watch that was to take the place of `old` did not come to be: that one goes on. What keeps it from that is its row.
    fn put_back(&'static self, old: &Watched) {
        let how = Start::Again { origin: old.origin, wish: Role::Shipper, claim: Claim::None };
        let back = request_of(old, false)
            .and_then(|req| self.start_new(how, req, old.spool.dir(), None, &|| Ok(())));
        if let Err(e) = back {
            log::error!("walrust: {}: {e}", old.path().display());
            self.note_failure(old.path(), &e);
        }
    }

    fn start_new(
        &'static self,
        how: Start,
        req: WatchRequest<'_>,
        dir: &Path,
        record: Option<Shipped>,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        let manners = Manners::of(req.path);
        let s = &req.settings;
        let store = open_store(&req.replica, manners, s)?;
        if !s.retain.is_zero() && !store.can_hold() {
            return Err(Error::config(format!(
                "retain is for replicas on S3, in a bucket with Object Lock; {} is none",
                req.replica
            )));
        }
        let mirror = |m: &MirrorSettings| -> Result<_> {
            let store = open_store(&ReplicaUrl::parse(&m.replica)?, manners, &s.of_mirror(m))?;
            Ok(Mirror::of(store, m.clone()))
        };
        let mirrors = s.mirrors.iter().map(mirror).collect::<Result<Vec<_>>>()?;
        let had_spool = dir.exists();
        let spool = Arc::new(Spool::open_like(dir, manners)?);
        let _reserved = self.reserve_spool(dir, req.path)?;
        let ship_lock = LockFile::open(&dir.join("lock.ship"))?;
        let path = req.path;
        let started = self.start_in(how, req, (store, mirrors), (spool.clone(), record), make_wal);
        let is_new = !had_spool && !matches!(how, Start::Again { .. });
        // (Another process may have begun to use it meanwhile, as those do that watched with a spool that was deleted.)
        if started.is_err()
            && is_new
            && spool.check_owner(&Owner::of(path)).is_ok()
            && ship_lock.try_process().unwrap_or(false)
        {
            drop(std::fs::remove_dir_all(dir));
            ship_lock.release();
        }
        started
    }

    fn start_in(
        &'static self,
        how: Start,
        req: WatchRequest<'_>,
        stores: (Store, Vec<Arc<Mirror>>),
        (spool, record): (Arc<Spool>, Option<Shipped>),
        make_wal: &dyn Fn() -> Result<()>,
    ) -> Result<(Arc<Watched>, Identity)> {
        let may_ship = !matches!(how, Start::Again { wish: Role::Standby, .. });
        let ships = may_ship && !ship::is_left_at_work(spool.dir()) && spool.ship_lock().try_process()?;
        let part = match ships {
            true => Part::Joining(how.claim()),
            false => Part::Standby { claim: how.claim(), refused: None },
        };
        let handles = self.entry(req.path).handles.clone();
        let at = (how.origin(), part);
        let w = Watched::new(&self.services, &handles, req.settings, stores, spool, at);
        if !ships {
            w.spool.claim(&Owner::of(w.path()))?;
            make_wal()?;
            self.adopt(&w)?;
            w.follow_as_standby();
            return Ok((w, Identity::Standby));
        }
        if let (Some(record), None) = (record, w.spool.shipped()?) {
            w.spool.set_shipped(&record)?;
        }
        w.note_shipping();
        let begun = match how {
            Start::Configured | Start::Again { .. } => self.begin_locally(&w).map(|()| Identity::Unanswered),
            Start::Asked => {
                let patience = Patience::Until(clock::uptime() + CALL_PATIENCE);
                match self.begin(&w, patience, req.takeover, make_wal) {
                    Err(e) if e.is_no_answer() => {
                        make_wal().and_then(|()| self.begin_locally(&w)).map(|()| Identity::Unanswered)
                    }
                    begun => begun.map_err(NotJoined::error),
                }
            }
        };
        match begun {
            Ok(identity) => Ok((w, identity)),
            Err(e) => {
                self.abandon(&w);
                Err(e)
            }
        }
    }

    /// This thread's own try to find out whose replica it is: the sealer makes none beside it.
    fn begin(
        &self,
        w: &Arc<Watched>,
        patience: Patience,
        takeover: bool,
        make_wal: &dyn Fn() -> Result<()>,
    ) -> std::result::Result<Identity, NotJoined> {
        w.joined.begin_try();
        let begun = w.find_out(self, patience, takeover, make_wal);
        match &begun {
            Ok(identity) => w.joined.tell(*identity),
            Err(e) if e.is_no_answer() => w.cannot_join(e),
            Err(_) => {}
        }
        begun
    }

    /// Follows commits from where the spool stands, if it is known to be that of this replica; a thread asks the store.
    fn begin_locally(&'static self, w: &Arc<Watched>) -> Result<()> {
        let place = match w.known()? {
            Some(_) => w.local_place()?,
            None => None,
        };
        if let Begin::Resume(p) = Begin::at(place) {
            w.tracker.resume(p);
        }
        w.spool.claim(&Owner::of(w.path()))?;
        self.adopt(w)?;
        join::join(self, w);
        Ok(())
    }
}

/// Errors for a replica, or a mirror, that lies in the spool.
fn refuse_in_spool(replica: &ReplicaUrl, spool: &Path) -> Result<()> {
    if replica.dir().is_some_and(|r| std::path::absolute(r).is_ok_and(|r| r.starts_with(spool))) {
        return Err(Error::config(format!(
            "the replica {replica} lies in the spool {}, which may be deleted; give another directory",
            spool.display()
        )));
    }
    Ok(())
}

/// The store of the replica, or of a mirror, as the settings say that files are put there. Errors when the URL cannot be one of a store.
fn open_store(url: &ReplicaUrl, manners: Option<Manners>, s: &Settings) -> Result<Store> {
    let at_rest = AtRest { how: s.sse.clone(), kms_key: s.sse_kms_key.clone() };
    let recipients = Recipients::parse(&s.encrypt)?;
    let store = Store::open_encrypting(url, manners, &at_rest)?.sealing_for(recipients);
    Ok(if s.append_only { store.append_only() } else { store })
}

impl Watched {
    /// Waits until it is known whose replica it is. `None`: it was known before. Errors with the store's plain no; a store that does not
    /// answer within `patience` is no error.
    fn wait_joined(&self, patience: Duration) -> Result<Option<Identity>> {
        if self.role() != Role::Joining {
            return Ok(None);
        }
        self.join_soon();
        match self.joined.wait(patience) {
            Err(e) if is_no_answer(&e) => Ok(Some(Identity::Unanswered)),
            told => told.map(Some),
        }
    }
}

fn is_no_answer(e: &Error) -> bool {
    matches!(e.kind(), Kind::Retry | Kind::Timeout)
}

/// COMMITs of a connection that has opened its WAL before cannot be made to wait for the replica. Errors when there are such beside the
/// one that asks: with `durability = "sync"` nothing may be acknowledged that does not wait.
fn refuse_unseen_commits(mapped: usize) -> Result<()> {
    if mapped <= 1 {
        return Ok(());
    }
    Err(Error::config(format!(
        "durability sync: {} other connections of this process have the database open, and their COMMITs would not wait for the \
         replica; close them first, or configure durability before they are opened",
        mapped - 1
    )))
}

fn request_of(w: &Watched, takeover: bool) -> Result<WatchRequest<'_>> {
    let replica = ReplicaUrl::parse(w.replica())?;
    Ok(WatchRequest { path: w.path(), settings: (**w.settings()).clone(), replica, takeover })
}
