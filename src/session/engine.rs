//! The one engine of a process.

use super::entry::Entry;
use super::follow::Followers;
use super::sealer::Sealer;
use super::watched::Watched;
use crate::base::{Error, ForkSafe, Kind, Result, fork};
use crate::config::{Config, Resolved, Settings};
use crate::metrics::Metrics;
use crate::sqlite::ForkHooks;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Everything of ours in this process.
pub struct Engine {
    /// Of files that are open, or watched: an entry lives as long as somebody has it.
    entries: Mutex<HashMap<PathBuf, Weak<Entry>>>,
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

static ENGINE: ForkSafe<Engine> = ForkSafe::new(|| Engine::new(generation()));

/// The engine, made at first use. A forked child has another one: its parent's locks may be held by threads
/// that do not exist in it.
pub fn engine() -> &'static Engine {
    #[cfg(feature = "sim")]
    if let Some(e) = STAND_IN.get() {
        return e;
    }
    ENGINE.get()
}

#[cfg(feature = "sim")]
thread_local! {
    static STAND_IN: std::cell::Cell<Option<&'static Engine>> = const { std::cell::Cell::new(None) };
}

/// How many forks lie between this process and the one that loaded us.
pub(super) fn generation() -> usize {
    fork::generation()
}

/// A database that the parent watched when it forked: the child watches it, too, once it opens it.
#[derive(Clone, Debug)]
pub(super) struct Inherited {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
    pub(super) replica: String,
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
        settings: w.settings.clone(),
        replica: w.replica().to_string(),
    };
    let list = engine().watched().iter().map(inherited).collect();
    AT_FORK.set(list);
}

fn in_child() {
    *lock(&engine().inherited) = AT_FORK.take();
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

    /// The entry of a database file, made at first use. It goes when its last handle is closed and nobody watches it.
    pub fn entry(&self, path: &Path) -> Arc<Entry> {
        // (Nothing is let go of with the map locked: an entry that goes takes itself out of it.)
        let mut entries = lock(&self.entries);
        if let Some(known) = entries.get(path).and_then(Weak::upgrade) {
            return known;
        }
        let made = Entry::new(path, self.generation);
        entries.insert(path.to_path_buf(), Arc::downgrade(&made));
        made
    }

    /// An entry goes.
    pub(super) fn forget(&self, entry: &Entry) {
        let mut entries = lock(&self.entries);
        if entries.get(entry.path()).is_some_and(|known| std::ptr::eq(known.as_ptr(), entry)) {
            entries.remove(entry.path());
        }
    }

    /// Every file that was opened here.
    pub(super) fn all_entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).values().filter_map(Weak::upgrade).collect()
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
        lock(&self.watched).iter().find(|w| w.path().as_os_str() == path.as_os_str()).cloned()
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
        if let Some(other) = all.iter().find(|o| o.replica_key == w.replica_key) {
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

    /// They are not needed any more.
    pub(super) fn forget_settings(&self, path: &Path) {
        lock(&self.settings).remove(path);
    }

    /// The settings that a watch was made with.
    pub fn settings_of(&self, path: &Path) -> Option<Resolved> {
        self.find(path)?;
        lock(&self.settings).get(path).cloned()
    }

    /// Whether SQLite has this file open as a main database in this process.
    pub fn is_open(&self, path: &Path) -> bool {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let entry = lock(&self.entries).get(&real).and_then(Weak::upgrade);
        entry.is_some_and(|e| e.handles() > 0)
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_goes_with_its_last_user() {
        let path = Path::new("/nowhere/once.db");
        let has = || lock(&engine().entries).contains_key(path);
        let first = engine().entry(path);
        let second = engine().entry(path);
        assert!(Arc::ptr_eq(&first, &second));
        drop(first);
        assert!(has());
        drop(second);
        assert!(!has());
    }
}
