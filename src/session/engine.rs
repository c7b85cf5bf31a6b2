//! The one engine of a process: the only global of this room. Who is below gets it handed down.

use super::alone::{self, Alone};
use super::begin;
use super::bell::Bell;
use super::care;
use super::entry::{Above, Entry};
use super::follow::{self, Begun, FollowRequest, Follower, Followers};
use super::join;
use super::registry::Engine;
use super::sealer;
use super::services::Services;
use super::settings::keeping;
use super::watched::Watched;
use super::whose::same_replica;
use super::wish::{Inherited, Moment};
use crate::base::{Error, ForkSafe, Result, TxId, clock, fork, lock};
use crate::config::{Settings, default_spool};
use crate::metrics;
use crate::replica::retention::Policy;
use crate::replica::{
    self, ManifestEntry, Rekeyed,
    compact::{Action, Compacted},
};
use crate::sqlite::{ForkHooks, HookedFile};
use crate::store::{Recipients, ReplicaUrl, Store, block_on};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

static ENGINE: ForkSafe<Engine> = ForkSafe::new(new);

/// The engine, made at first use. A forked child has another one: its parent's locks may be held by threads
/// that do not exist in it.
pub fn engine() -> &'static Engine {
    #[cfg(feature = "sim")]
    if let Some(e) = STAND_IN.get() {
        return e;
    }
    ENGINE.get()
}

fn new() -> Engine {
    let bell = Bell::new(|rx| sealer::run(engine(), rx));
    let followers = Followers::new(|replica, e| engine().tell_corrupt(replica, e));
    Engine::new(Services::new(fork::generation(), bell), followers, &FromAbove)
}

/// What entries ask of the rooms above them.
struct FromAbove;

impl Above for FromAbove {
    fn used(&self, entry: &Arc<Entry>, f: &HookedFile, moment: Moment) {
        begin::happened(engine(), entry, f, moment);
    }

    fn closing(&self, w: &Arc<Watched>) {
        // Where nobody ships because it must be read anew, this is the last moment at which that can be done here.
        if w.must_be_read_by_somebody() && w.take_over() {
            join::join(engine(), w);
        }
    }

    fn is_followed(&self, path: &Path) -> bool {
        follow::is_follower(path) && engine().followers.refuse_followed(path).is_err()
    }
}

#[cfg(feature = "sim")]
thread_local! {
    static STAND_IN: std::cell::Cell<Option<&'static Engine>> = const { std::cell::Cell::new(None) };
}

thread_local! {
    /// What the parent watched at the fork under way. The forking thread is the one that lives on in the child.
    static AT_FORK: RefCell<Vec<Inherited>> = const { RefCell::new(Vec::new()) };
}

/// What is done around fork(). Prepare: note what is watched. Child: leave the parent's engine, threads and
/// connections alone for good and begin with an empty engine; the local locks are the parent's, so the child
/// comes up as a standby.
pub fn fork_hooks() -> ForkHooks {
    ForkHooks { prepare: before_fork, parent: || {}, child: in_child }
}

fn before_fork() {
    let inherited = |w: &Arc<Watched>| Inherited {
        path: w.path().to_path_buf(),
        settings: (**w.settings()).clone(),
        replica: w.replica().to_string(),
    };
    let list = engine().watched().iter().map(inherited).collect();
    AT_FORK.set(list);
}

fn in_child() {
    metrics::in_child();
    *lock(&engine().inherited) = AT_FORK.take();
}

/// Keeps everybody out of the file at `path`, for a restore that replaces it. Errors as [`super::occupy::occupy`] does.
pub fn occupy(path: &Path) -> Result<Box<dyn replica::Occupied>> {
    super::occupy::occupy(engine(), path)
}

impl Engine {
    /// The engine of a simulated process.
    #[cfg(feature = "sim")]
    pub fn simulated() -> &'static Engine {
        Box::leak(Box::new(new()))
    }

    /// Which engine this thread works for from now on.
    #[cfg(feature = "sim")]
    pub fn stand_in(engine: Option<&'static Engine>) {
        STAND_IN.set(engine);
    }

    /// A full snapshot now, in the replica, or as a copy at another URL; returns its TXID when it is there. Writers go on meanwhile.
    /// Errors where another process ships, where another history lies, and with what the store says.
    pub fn snapshot(&self, w: &Arc<Watched>, to: Option<&ReplicaUrl>, timeout: Duration) -> Result<TxId> {
        match to {
            Some(url) if url.to_string() != w.replica() => {
                w.copy_to(url, self.find_by_replica(&url.to_string()).as_ref(), timeout)
            }
            _ => w.snapshot_now(timeout),
        }
    }

    /// The right to change the manifest of a replica: borrowed from whatever process of this machine streams there. `of`: a database that
    /// may be streamed there. Errors when another writer is at it.
    pub fn alone(&self, store: &Store, of: Option<&Path>) -> Result<Alone> {
        alone::alone(store, self.find_by_replica(store.url()).as_ref(), &self.spools_for(store.url(), of))
    }

    /// Applies retention to a replica; `of` as for [`Engine::alone`]. Errors when another writer is at it, and with what the store says.
    pub fn compact(
        &self,
        store: &Store,
        of: Option<&Path>,
        policy: &Policy,
        action: Action,
    ) -> Result<Compacted> {
        let here = self.find_by_replica(store.url());
        care::compact(store, here.as_ref(), &self.spools_for(store.url(), of), policy, action)
    }

    /// Encrypts the files of a replica for other recipients, as [`replica::rekey()`] does; `of` as for [`Engine::alone`]. Errors as that one, and
    /// when another writer is at it.
    pub fn rekey(
        &self,
        store: &Store,
        of: Option<&Path>,
        settings: &Settings,
        recipients: &Recipients,
        action: Action,
    ) -> Result<Rekeyed> {
        let _alone = match action {
            Action::DryRun => None,
            Action::Force => Some(self.alone(store, of)?),
        };
        let beside = self.spools_for(store.url(), of).into_iter().find(|dir| dir.is_dir());
        let keeping = keeping(settings);
        let meta = |e: &ManifestEntry| keeping.meta(e, clock::now());
        block_on(replica::rekey(store, recipients, &beside.unwrap_or_else(std::env::temp_dir), action, meta))?
    }

    /// The spools of the databases that the configuration streams to `replica`, and that of `of`.
    fn spools_for(&self, replica: &str, of: Option<&Path>) -> Vec<PathBuf> {
        let configured = self.config().and_then(|c| c.present()).unwrap_or_default();
        let paths = configured.into_iter().map(|(path, _)| path);
        let paths = paths.filter(|p| self.is_configured_for(p, replica)).chain(of.map(Path::to_path_buf));
        paths.filter_map(|p| self.spool_dir(&p).ok()).collect()
    }

    fn is_configured_for(&self, path: &Path, replica: &str) -> bool {
        let named = self.resolve(path, None).and_then(|r| begin::request(path, &r, false));
        named.is_ok_and(|r| same_replica(&r.replica.to_string(), replica))
    }

    /// Where the spool of the database at `path` lies, by the configuration. Errors where that cannot be read.
    pub fn spool_dir(&self, path: &Path) -> Result<PathBuf> {
        let set = self.resolve(path, None)?.settings.spool_dir;
        Ok(set.unwrap_or_else(|| default_spool(path)))
    }

    /// Keeps a file up to date from a replica. Errors as [`Followers::follow`] does.
    pub fn follow(&self, req: FollowRequest<'_>) -> Result<(Arc<Follower>, Begun)> {
        let path = follow::resolve(req.path)?;
        if self.find(&path).is_some() {
            return Err(Error::config(format!(
                "{} is watched: it is a source, not a copy; choose another path",
                path.display()
            )));
        }
        self.followers.follow(&path, &req)
    }

    /// Stops that. Returns the TXID in the file, which stays as it is. Errors when nobody here does it.
    pub fn unfollow(&self, path: &Path) -> Result<TxId> {
        self.followers.unfollow(path)
    }

    /// Rows of the followed files.
    pub fn followers(&self) -> Vec<follow::FollowerRow> {
        self.followers.rows()
    }
}
