//! The engine's lists: which files are open here, which are watched, with which settings, and what could not be watched.

use super::agenda::Number;
use super::care;
use super::dead_man::DeadMan;
use super::deeds::Deeds;
use super::entry::{Above, Entry};
use super::follow::Followers;
use super::listening::Listening;
use super::others::Others;
use super::phase::Role;
use super::points::Asker;
use super::renewals::Renewals;
use super::services::Services;
use super::watched::{Watched, ended, series};
use super::wish::{Inherited, WishRow};
use crate::base::{Error, Kind, Result, lock};
use crate::config::{Config, Layer, Resolved, replica_key};
use crate::metrics::Metrics;
use crate::ship;
use crate::spool::{Owner, dir_id, other_database, real_dir};
use crate::store::ReplicaUrl;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Databases that could not be watched, of which the reason is remembered: a program may open any number.
const MOST_FAILURES: usize = 1000;
/// How long the end of a watch waits for its shipper, which gives the lease back.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Everything of ours in this process.
pub struct Engine {
    pub(super) services: Arc<Services>,
    above: &'static dyn Above,
    /// Of files that are open, or watched: an entry lives as long as somebody has it.
    entries: Mutex<Entries>,
    /// What is watched, with its entry, which so stays while the app has the file closed.
    watched: Mutex<Vec<(Arc<Watched>, Arc<Entry>)>>,
    pub(super) followers: Arc<Followers>,
    failures: Mutex<BTreeMap<PathBuf, String>>,
    /// The settings that a watch was made with, and what calls have said of them.
    settings: Mutex<HashMap<PathBuf, (Resolved, Layer)>>,
    pub(super) inherited: Mutex<Vec<Inherited>>,
    pub(super) care: care::Queue,
    pub(super) drills: care::Queue,
    pub(super) listening: Mutex<Listening>,
    pub(super) points: Asker,
    pub(super) deeds: Deeds,
    pub(super) others: Others,
    pub(super) dead_man: DeadMan,
    /// Databases whose watch has ended and is to begin again by itself, with why.
    pub(super) renewals: Renewals,
    /// Spools that are being begun with: device and inode of the directory, and the database.
    spools: Mutex<Vec<((u64, u64), PathBuf)>>,
}

/// The entries by path. Those that nobody has any more are swept out when they have become as many as the others.
#[derive(Default)]
struct Entries {
    all: HashMap<PathBuf, Weak<Entry>>,
    /// How many there may be before the next sweep.
    sweep_at: usize,
}

impl Entries {
    fn add(&mut self, entry: &Arc<Entry>) {
        if self.all.len() >= self.sweep_at {
            self.all.retain(|_, e| e.strong_count() > 0);
            self.sweep_at = (self.all.len() * 2).max(64);
        }
        self.all.insert(entry.path().to_path_buf(), Arc::downgrade(entry));
    }
}

impl Engine {
    pub(super) fn new(services: Services, followers: Followers, above: &'static dyn Above) -> Engine {
        Engine {
            services: Arc::new(services),
            above,
            entries: Mutex::default(),
            watched: Mutex::default(),
            followers: Arc::new(followers),
            failures: Mutex::default(),
            settings: Mutex::default(),
            inherited: Mutex::default(),
            care: care::Queue::named("walrust-care"),
            drills: care::Queue::named("walrust-drill"),
            listening: Mutex::default(),
            points: Asker::default(),
            deeds: Deeds::default(),
            others: Others::default(),
            dead_man: DeadMan::default(),
            renewals: Renewals::default(),
            spools: Mutex::default(),
        }
    }

    // -- files ------------------------------------------------------------------------------------------------------

    /// The entry of a database file, made at first use. It goes when its last handle is closed and nobody watches it.
    pub fn entry(&self, path: &Path) -> Arc<Entry> {
        let mut entries = lock(&self.entries);
        if let Some(known) = entries.all.get(path).and_then(Weak::upgrade) {
            return known;
        }
        let made = Entry::new(path, self.services.generation, self.above);
        entries.add(&made);
        made
    }

    /// Every file that is open here, or watched.
    fn all_entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).all.values().filter_map(Weak::upgrade).collect()
    }

    /// Whether SQLite has this file open as a main database in this process.
    pub fn is_open(&self, path: &Path) -> bool {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let entry = lock(&self.entries).all.get(&real).and_then(Weak::upgrade);
        entry.is_some_and(|e| e.handles.count_mapped() > 0)
    }

    // -- watches ----------------------------------------------------------------------------------------------------

    /// Every watched database.
    pub fn watched(&self) -> Vec<Arc<Watched>> {
        lock(&self.watched).iter().map(|(w, _)| w.clone()).collect()
    }

    /// Every watched database, unless somebody holds the list at the moment.
    pub(super) fn try_watched(&self) -> Option<Vec<Arc<Watched>>> {
        self.watched.try_lock().ok().map(|all| all.iter().map(|(w, _)| w.clone()).collect())
    }

    /// The watched database of that number.
    pub(super) fn numbered(&self, number: Number) -> Option<Arc<Watched>> {
        // (Who is new is the last.)
        lock(&self.watched).iter().rev().find(|(w, _)| w.number == number).map(|(w, _)| w.clone())
    }

    /// The watched database at `path`.
    pub fn find(&self, path: &Path) -> Option<Arc<Watched>> {
        let all = lock(&self.watched);
        let found = all.iter().find(|(w, _)| w.path().as_os_str() == path.as_os_str());
        found.map(|(w, _)| w.clone())
    }

    /// The database that is streamed to `replica` here.
    pub fn find_by_replica(&self, replica: &str) -> Option<Arc<Watched>> {
        self.watched().into_iter().find(|w| w.replica() == replica)
    }

    /// The one database, for functions that are called without saying which. Errors when there is none, or more than one.
    pub fn only(&self) -> Result<Arc<Watched>> {
        if let (true, [(path, why)]) = (lock(&self.watched).is_empty(), self.renewals.all().as_slice()) {
            return Err(begins_again(path, why));
        }
        match lock(&self.watched).as_slice() {
            [(one, _)] => Ok(one.clone()),
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
    /// has to see when the process that ships ends. Errors when its replica is taken, or the watch has ended meanwhile.
    pub(super) fn adopt(&self, w: &Arc<Watched>) -> Result<()> {
        if w.link.is_stopped() {
            return Err(ended());
        }
        let mut all = lock(&self.watched);
        if all.iter().any(|(o, _)| Arc::ptr_eq(o, w)) {
            return Ok(());
        }
        for (key, url) in w.places() {
            if let Some((other, _)) = all.iter().find(|(o, _)| o.places().any(|(theirs, _)| theirs == key)) {
                return Err(shares_replica(other.path(), w.path(), url));
            }
        }
        let entry = self.entry(w.path());
        entry.set(Some(w.clone()));
        all.push((w.clone(), entry));
        w.listed(true);
        drop(all);
        w.call();
        Ok(())
    }

    /// Errors when another database of this process has the replica with that key.
    pub(super) fn refuse_shared_replica(&self, key: &str, path: &Path, replica: &str) -> Result<()> {
        let shares = |o: &&Arc<Watched>| o.path() != path && o.places().any(|(theirs, _)| theirs == key);
        match self.watched().iter().find(shares) {
            Some(other) => Err(shares_replica(other.path(), path, replica)),
            None => Ok(()),
        }
    }

    fn forget_watched(&self, w: &Arc<Watched>) {
        let mut all = lock(&self.watched);
        if let Some(at) = all.iter().position(|(o, _)| Arc::ptr_eq(o, w)) {
            let (_, entry) = all.remove(at);
            w.listed(false);
            entry.set(None);
        }
    }

    /// A watch that could not begin: nothing of it stays.
    pub(super) fn abandon(&self, w: &Arc<Watched>) {
        w.tracker.stop();
        w.spool.forget_shipping();
        w.spool.ship_lock().release();
        self.forget_watched(w);
    }

    /// Ends a watch at once; what is pending stays in the spool.
    pub(super) fn end(&self, w: &Arc<Watched>) {
        w.tracker.stop();
        w.link.stop();
        w.end_mirrors();
        w.joined.refuse(&ended(), false, Duration::ZERO);
        self.forget_watched(w);
        self.services.metrics.remove(&series(w.path()));
        // The shipper gives the lease back as it ends. One that has not ended by then frees the local lock itself when it has: no
        // other ships while an upload of this one is under way.
        if ship::leave(&w.link, w.spool.dir(), END_PATIENCE) && w.role() != Role::Standby {
            w.spool.forget_shipping();
            w.spool.ship_lock().release();
        }
    }

    /// The watch of the database at `path` is not to begin again by itself. Whether it was about to.
    pub fn cancel_renewal(&self, path: &Path) -> bool {
        self.renewals.end(path)
    }

    /// The watched database at `path`; of one whose watch begins again by itself, as soon as it has begun. Errors with
    /// [`Kind::Retry`], and why it begins again, when that takes longer than `patience`.
    pub fn find_or_await(&self, path: &Path, patience: Duration) -> Result<Option<Arc<Watched>>> {
        match self.find(path) {
            Some(w) => Ok(Some(w)),
            None => match self.renewals.wait(path, patience) {
                None => Ok(self.find(path)),
                Some(why) => Err(begins_again(path, &why)),
            },
        }
    }

    // -- settings ---------------------------------------------------------------------------------------------------

    /// The configuration of the process, read at first use. Errors with what is wrong in it.
    pub fn config(&self) -> Result<Arc<Config>> {
        self.services.config()
    }

    /// The settings of a database, with `sql` options on top. Errors with what is wrong in what was said.
    pub fn resolve(&self, path: &Path, sql: Option<&Layer>) -> Result<Resolved> {
        let uri = self.entry(path).uri()?;
        self.config()?.resolve(path, uri.as_ref(), sql)
    }

    /// The mirrors of `replica`, where it is streamed here, or is what the database at `path` is configured for.
    pub fn mirrors_of(&self, replica: &ReplicaUrl, path: &Path) -> Vec<ReplicaUrl> {
        let key = replica_key(&replica.to_string());
        let here =
            self.watched().into_iter().find(|w| w.replica_key == key).map(|w| w.settings().mirrors.clone());
        let configured = || {
            let settings = self.config().ok()?.resolve(path, None, None).ok()?.settings;
            let is_it = settings.replica.as_ref().is_some_and(|r| replica_key(r) == key);
            is_it.then_some(settings.mirrors)
        };
        let mirrors = here.or_else(configured).unwrap_or_default();
        mirrors.iter().filter_map(|m| ReplicaUrl::parse(&m.replica).ok()).collect()
    }

    /// Remembers the settings that a watch was made with, and what calls said of them.
    pub(super) fn remember_settings(&self, path: &Path, resolved: Resolved, said: Layer) {
        lock(&self.settings).insert(path.to_path_buf(), (resolved, said));
    }

    /// What calls have said of a watched database.
    pub fn said_by_calls(&self, path: &Path) -> Option<Layer> {
        self.find(path)?;
        lock(&self.settings).get(path).map(|(_, said)| said.clone())
    }

    /// They are not needed any more.
    pub(super) fn forget_settings(&self, path: &Path) {
        lock(&self.settings).remove(path);
    }

    /// The settings that a watch was made with.
    pub fn settings_of(&self, path: &Path) -> Option<Resolved> {
        self.find(path)?;
        lock(&self.settings).get(path).map(|(resolved, _)| resolved.clone())
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.services.metrics
    }

    // -- what could not be watched ----------------------------------------------------------------------------------

    /// A configured database that could not be watched: shown in `walrust_status` until it is.
    pub(super) fn note_failure(&self, path: &Path, e: &Error) {
        let mut failures = lock(&self.failures);
        if failures.len() >= MOST_FAILURES && !failures.contains_key(path) {
            failures.pop_first();
        }
        failures.insert(path.to_path_buf(), e.to_string());
    }

    pub(super) fn clear_failure(&self, path: &Path) {
        lock(&self.failures).remove(path);
    }

    /// Every database that is watched; and every one that is not, and is configured or begins again by itself, with what is
    /// waited for, or wrong. None is missing, whatever begins and ends meanwhile.
    pub fn all(&self) -> (Vec<Arc<Watched>>, Vec<WishRow>) {
        // (What begins moves to the list of what is watched, what ends from there: a look before that one, and one after it.)
        let before = self.unwatched();
        let watched = self.watched();
        let paths: HashSet<&Path> = watched.iter().map(|w| w.path()).collect();
        let is_watched = |row: &WishRow| paths.contains(row.database.as_path());
        let before = before.into_iter().filter(|row| !is_watched(row));
        // (What is wrong is said beside a watch, too: another connection may have asked for another replica.)
        let after = self.unwatched().into_iter().filter(|row| row.is_failed || !is_watched(row));
        let unwatched: BTreeMap<_, _> = before.chain(after).map(|row| (row.database.clone(), row)).collect();
        (watched, unwatched.into_values().collect())
    }

    /// The more important of two rows comes later.
    fn unwatched(&self) -> Vec<WishRow> {
        let row = |is_failed| move |(database, why)| WishRow { database, is_failed, why };
        let wished = self.all_entries().into_iter().filter_map(|e| e.wish.row(e.path())).collect::<Vec<_>>();
        let renewed = self.renewals.all().into_iter().map(row(false));
        let failed = lock(&self.failures).clone().into_iter().map(row(true));
        wished.into_iter().chain(renewed).chain(failed).collect()
    }

    // -- whose spool ------------------------------------------------------------------------------------------------

    /// Errors when the spool `dir` cannot be that of the database at `path`, since it is, or lies in, or has in it, the spool of
    /// another database, of this process or by what is written there. Changes nothing.
    pub(super) fn refuse_others_spool(&self, dir: &Path, path: &Path) -> Result<()> {
        let real = real_dir(dir);
        for other in self.watched().iter().filter(|o| o.path() != path) {
            let theirs = other.spool.real_dir();
            if theirs.starts_with(&real) || real.starts_with(theirs) {
                return Err(other_database(dir, theirs, other.path()));
            }
        }
        Owner::of(path).check(dir)
    }

    /// Reserves the spool in `dir`, which is there, for the database at `path`. Errors when another database of this process has it.
    pub(super) fn reserve_spool(&self, dir: &Path, path: &Path) -> Result<ReservedSpool<'_>> {
        let mine = dir_id(dir)?;
        let mut all = lock(&self.spools);
        if let Some((_, other)) = all.iter().find(|(d, _)| *d == mine) {
            return Err(other_database(dir, dir, other));
        }
        all.push((mine, path.to_path_buf()));
        drop(all);
        let reserved = ReservedSpool { of: self, dir: mine };
        // (One that has begun meanwhile is watched by now.)
        let has = |o: &&Arc<Watched>| o.spool.is_in(mine) && o.path() != path;
        match self.watched().iter().find(has) {
            Some(other) => Err(other_database(dir, dir, other.path())),
            None => Ok(reserved),
        }
    }

    /// The simulated process is dead: nothing of it answers any more.
    #[cfg(feature = "sim")]
    pub fn die(&self) {
        for (w, entry) in std::mem::take(&mut *lock(&self.watched)) {
            w.tracker.stop();
            entry.set(None);
        }
        lock(&self.entries).all.clear();
        lock(&self.settings).clear();
    }
}

/// The right to begin with a spool directory, among the threads of this process: to them, its locks are one. Until dropped.
pub(super) struct ReservedSpool<'a> {
    of: &'a Engine,
    dir: (u64, u64),
}

impl Drop for ReservedSpool<'_> {
    fn drop(&mut self) {
        lock(&self.of.spools).retain(|(dir, _)| *dir != self.dir);
    }
}

fn begins_again(path: &Path, why: &str) -> Error {
    let text = format!("{}: its watch begins again at the moment ({why}); try again", path.display());
    Error::new(Kind::Retry, text)
}

fn shares_replica(a: &Path, b: &Path, replica: &str) -> Error {
    Error::config(format!(
        "{} and {} would share the replica {replica}; each database needs its own",
        a.display(),
        b.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::wish::Moment;
    use super::*;
    use crate::sqlite::HookedFile;

    struct Nobody;

    impl Above for Nobody {
        fn used(&self, _: &Arc<Entry>, _: &HookedFile, _: Moment) {}
        fn closing(&self, _: &Arc<Watched>) {}
        fn is_followed(&self, _: &Path) -> bool {
            false
        }
    }

    #[test]
    fn a_database_that_begins_again_is_shown_with_why_until_it_has_begun_or_is_not_to() {
        let engine = crate::session::engine();
        let path = Path::new("/nowhere/renewed.db");
        let shown = || engine.all().1.into_iter().find(|r| r.database == path).map(|r| (r.is_failed, r.why));
        assert_eq!(shown(), None);
        let renewal = engine.renewals.begin(path, "its spool was deleted".into());
        assert_eq!(shown(), Some((false, "its spool was deleted".into())));
        engine.note_failure(path, &Error::config("no such directory"));
        assert_eq!(shown(), Some((true, "no such directory".into())));
        engine.clear_failure(path);
        drop(renewal);
        assert_eq!(shown(), None);
    }

    #[test]
    fn entries_that_nobody_has_are_swept_out() {
        let mut entries = Entries::default();
        let kept = Entry::new(Path::new("/nowhere/kept.db"), 0, &Nobody);
        entries.add(&kept);
        for i in 0..10_000 {
            entries.add(&Entry::new(Path::new(&format!("/nowhere/{i}.db")), 0, &Nobody));
            assert!(entries.all.len() <= 65);
        }
        assert!(entries.all.contains_key(kept.path()));
    }
}
