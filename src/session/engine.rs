//! The one engine of a process.

use super::entry::Entry;
use super::follow::Followers;
use super::sealer::Sealer;
use super::watched::Watched;
use crate::base::{Error, Kind, Result};
use crate::config::{Config, Resolved, Settings};
use crate::metrics::Metrics;
use crate::sqlite::ForkHooks;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Everything of ours in this process.
pub struct Engine {
    entries: Mutex<HashMap<PathBuf, Arc<Entry>>>,
    watched: Mutex<Vec<Arc<Watched>>>,
    pub(super) sealer: Sealer,
    pub(super) followers: Followers,
    pub(super) config: Mutex<Option<Arc<Config>>>,
    pub(super) failures: Mutex<BTreeMap<PathBuf, String>>,
    settings: Mutex<HashMap<PathBuf, Resolved>>,
    pub(super) inherited: Mutex<Vec<Inherited>>,
    generation: usize,
    pub(super) care: Mutex<super::care::Queue>,
    pub(super) server: Mutex<Option<crate::metrics::Server>>,
    metrics: Arc<Metrics>,
    pub(super) spools: Mutex<super::whose::Spools>,
}

/// Forks that may follow one another from parent to child; the last one's engine serves all below it.
const GENERATIONS: usize = 32;
static ENGINES: [OnceLock<Engine>; GENERATIONS] = [const { OnceLock::new() }; GENERATIONS];
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// The engine, made at first use. A forked child has another one: its parent's locks may be held by threads
/// that do not exist in it.
pub fn engine() -> &'static Engine {
    #[cfg(feature = "sim")]
    if let Some(e) = STAND_IN.get() {
        return e;
    }
    let at = generation();
    let slot = ENGINES.get(at).unwrap_or(&ENGINES[GENERATIONS - 1]);
    slot.get_or_init(|| Engine::new(at))
}

#[cfg(feature = "sim")]
thread_local! {
    static STAND_IN: std::cell::Cell<Option<&'static Engine>> = const { std::cell::Cell::new(None) };
}

/// How many forks lie between this process and the one that loaded us.
pub(super) fn generation() -> usize {
    GENERATION.load(Ordering::Acquire)
}

/// A database that the parent watched when it forked: the child watches it, too, once it opens it.
#[derive(Clone, Debug)]
pub(super) struct Inherited {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
    pub(super) replica: String,
}

/// What the parent watched at the fork under way.
static AT_FORK: Mutex<Vec<Inherited>> = Mutex::new(Vec::new());

/// What is done around fork(). Prepare: note what is watched. Child: leave the parent's engine, threads and
/// connections alone for good and begin with an empty engine; the local locks are the parent's, so the child
/// comes up as a standby.
pub fn fork_hooks() -> ForkHooks {
    ForkHooks { prepare: before_fork, parent: || {}, child: in_child }
}

fn before_fork() {
    let inherited = |w: &Arc<Watched>| Inherited {
        path: w.path().to_path_buf(),
        settings: w.settings.clone(),
        replica: w.replica().to_string(),
    };
    *lock(&AT_FORK) = engine().watched().iter().map(inherited).collect();
}

fn in_child() {
    let list = AT_FORK.try_lock().map(|mut l| std::mem::take(&mut *l)).unwrap_or_default();
    GENERATION.store((generation() + 1).min(GENERATIONS - 1), Ordering::Release);
    crate::ship::runtime::forget();
    crate::notify::after_fork_child();
    *lock(&engine().inherited) = list;
}

impl Engine {
    fn new(generation: usize) -> Engine {
        Engine {
            generation,
            entries: Mutex::new(HashMap::new()),
            watched: Mutex::new(Vec::new()),
            sealer: Sealer::default(),
            followers: Followers::default(),
            config: Mutex::new(None),
            failures: Mutex::new(BTreeMap::new()),
            settings: Mutex::new(HashMap::new()),
            inherited: Mutex::new(Vec::new()),
            care: Mutex::default(),
            server: Mutex::new(None),
            metrics: Arc::new(Metrics::new()),
            spools: Mutex::default(),
        }
    }

    /// The engine of a simulated process.
    #[cfg(feature = "sim")]
    pub fn simulated() -> &'static Engine {
        Box::leak(Box::new(Engine::new(generation())))
    }

    /// Which engine this thread works for from now on.
    #[cfg(feature = "sim")]
    pub fn stand_in(engine: Option<&'static Engine>) {
        STAND_IN.set(engine);
    }

    /// The simulated process is dead: nothing of it answers any more.
    #[cfg(feature = "sim")]
    pub fn die(&self) {
        for w in std::mem::take(&mut *lock(&self.watched)) {
            w.tracker.stop();
            self.entry(w.path()).set(None);
        }
        lock(&self.entries).clear();
        lock(&self.settings).clear();
    }

    /// One look of the sealer at every watched database. Whether there was news.
    #[cfg(feature = "sim")]
    pub fn look(&self) -> bool {
        self.watched().iter().fold(false, |news, w| super::sealer::look_at(w).0 | news)
    }

    /// The entry of a database file, made at first use.
    pub fn entry(&self, path: &Path) -> Arc<Entry> {
        lock(&self.entries)
            .entry(path.to_path_buf())
            .or_insert_with(|| Entry::new(path, self.generation))
            .clone()
    }

    /// Every watched database.
    pub fn watched(&self) -> Vec<Arc<Watched>> {
        lock(&self.watched).clone()
    }

    /// Every watched database, unless somebody holds the list at the moment.
    pub(super) fn try_watched(&self) -> Option<Vec<Arc<Watched>>> {
        self.watched.try_lock().ok().map(|all| all.clone())
    }

    /// The watched database at `path`.
    pub fn find(&self, path: &Path) -> Option<Arc<Watched>> {
        lock(&self.watched).iter().find(|w| w.path() == path).cloned()
    }

    /// The one database, for functions that are called without saying which.
    pub fn only(&self) -> Result<Arc<Watched>> {
        match lock(&self.watched).as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(Error::new(Kind::Config, "no database is watched; call walrust_watch() first")),
            many => Err(Error::new(
                Kind::Config,
                format!(
                    "{} databases are watched and this connection's is not one of them; name the replica",
                    many.len()
                ),
            )),
        }
    }

    /// Adds a watched database, and has the sealer look at it, whose thread there is from now on: a standby that never commits
    /// has to see when the process that ships ends. Errors when its replica or path is taken.
    pub(super) fn adopt(&self, w: &Arc<Watched>) -> Result<()> {
        if w.link.is_stopped() {
            return Err(super::watched::ended());
        }
        let mut all = lock(&self.watched);
        if all.iter().any(|o| Arc::ptr_eq(o, w)) {
            return Ok(());
        }
        if let Some(other) = all.iter().find(|o| super::whose::same_replica(o.replica(), w.replica())) {
            return Err(super::start::shared(other.path(), w.path(), w.replica()));
        }
        all.push(w.clone());
        self.entry(w.path()).set(Some(w.clone()));
        drop(all);
        self.sealer.wake();
        Ok(())
    }

    /// Forgets a watched database.
    pub(super) fn drop_watched(&self, w: &Arc<Watched>) {
        lock(&self.watched).retain(|o| !Arc::ptr_eq(o, w));
        self.entry(w.path()).set(None);
    }

    /// Remembers the settings that a watch was made with, and takes up those of the process.
    pub fn use_settings(&self, path: &Path, resolved: Resolved) -> Result<()> {
        lock(&self.settings).insert(path.to_path_buf(), resolved);
        self.use_process_settings()
    }

    /// The settings that a watch was made with.
    pub fn settings_of(&self, path: &Path) -> Option<Resolved> {
        self.find(path)?;
        lock(&self.settings).get(path).cloned()
    }

    /// Whether SQLite has this file open as a main database in this process.
    pub fn is_open(&self, path: &Path) -> bool {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        lock(&self.entries).get(&real).is_some_and(|e| e.handles() > 0)
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
