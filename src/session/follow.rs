//! Followed files: databases that this process keeps up to date from replicas (`walrust_replicate`).
//!
//! One thread, `walrust-follow`, polls them all: requests to stores run side by side, changes of files one after the other. It
//! starts with the first follower and ends with the last. A forked child follows nothing: its engine is a new one, and the parent
//! goes on.
//!
//! Rules
//! * I-SFOL-1: the file changes in transactions of [`Rewrite`] only; it is put in place by a link only where no file is.
//! * I-SFOL-2: before each change the [`Record`] beside the file names the place before and the place after it. So after a crash
//!   at any moment the file's own header says where it stands.
//! * I-SFOL-3: one process follows into a path at a time (fcntl lock beside the file).
//! * I-SFOL-4: a file that was not made here is not touched, unless `overwrite` was given or the file is empty; a followed file
//!   that somebody wrote into is rebuilt, and the status says so.
//! * I-SFOL-5: a followed file is never watched on its own account, nor put into WAL mode by a connection that has the extension.
//!
//! A crash leaves the file as the last transaction left it, at worst with a hot journal that SQLite rolls back; and perhaps
//! `<file>-walrust-follow.new`, which the next rebuild takes away. Refused: WAL mode for the file (it would need a writer that
//! keeps the wal-index; readers of a follower wait for each other for milliseconds at most, so a busy timeout serves them).

use crate::base::{Error, Kind, Result, TxId, beside, clock, lock, panics, thread};
use crate::replica::Overwrite;
use crate::ship;
use crate::spool::{LockFile, holder_of};
use crate::store::{ReplicaUrl, Store};
use crossbeam_channel::{Receiver, Sender};
use futures_util::StreamExt;
use names::{LOCK, RECORD, load, millis};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

mod file;
mod follower;
mod names;

pub use follower::{Follower, FollowerRow};
pub use names::Begun;

/// Polls of different followers at once.
const PARALLEL: usize = 8;
/// How long stopping waits for a change that is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// What to follow.
#[derive(Debug)]
pub struct FollowRequest<'a> {
    /// The file to keep up to date.
    pub path: &'a Path,
    /// The replica.
    pub replica: ReplicaUrl,
    /// Between two polls.
    pub interval: Duration,
    /// Whether a database that is no follower of that replica may be replaced.
    pub overwrite: Overwrite,
}

/// All followers of the process.
pub(super) struct Followers {
    /// Tells that a replica holds damaged bytes.
    on_corrupt: fn(&str, &Error),
    inner: Mutex<Inner>,
    /// One start at a time.
    starting: Mutex<()>,
}

#[derive(Default)]
struct Inner {
    all: Vec<Arc<Follower>>,
    wake: Option<Sender<()>>,
}

impl Followers {
    /// None yet. `on_corrupt` tells that a replica holds damaged bytes.
    pub(super) fn new(on_corrupt: fn(&str, &Error)) -> Followers {
        Followers { on_corrupt, inner: Mutex::default(), starting: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn find(&self, path: &Path) -> Option<Arc<Follower>> {
        self.inner().all.iter().find(|f| f.path == path).cloned()
    }

    fn add(self: &Arc<Self>, f: &Arc<Follower>) -> Result<()> {
        let mut inner = self.inner();
        inner.all.push(f.clone());
        if let Some(wake) = &inner.wake {
            let _ = wake.try_send(());
            return Ok(());
        }
        let (tx, rx) = crossbeam_channel::bounded(1);
        match thread::spawn_joined("walrust-follow", 1 << 20, {
            let all = self.clone();
            move || run(&all, &rx)
        }) {
            Ok(_) => {
                inner.wake = Some(tx);
                Ok(())
            }
            Err(e) => {
                inner.all.retain(|o| !Arc::ptr_eq(o, f));
                Err(Error::new(Kind::Io, "cannot start the follower thread").because(e))
            }
        }
    }

    fn remove(&self, f: &Arc<Follower>) {
        let mut inner = self.inner();
        inner.all.retain(|o| !Arc::ptr_eq(o, f));
        if let Some(wake) = &inner.wake {
            let _ = wake.try_send(());
        }
    }
}

/// The thread. What panics outside of one follower's turn is every follower's failure, and tried again.
fn run(followers: &Followers, rx: &Receiver<()>) {
    while let Err(said) = panics::caught(|| follow_all(followers, rx)) {
        let all = followers.inner().all.clone();
        all.iter().for_each(|f| f.failed(&panics::error(&said)));
        clock::sleep(Duration::from_millis(100));
    }
}

fn follow_all(followers: &Followers, rx: &Receiver<()>) {
    loop {
        let now = clock::uptime();
        let (due, soonest) = {
            let mut inner = followers.inner();
            if inner.all.is_empty() {
                inner.wake = None;
                return;
            }
            let due: Vec<Arc<Follower>> =
                inner.all.iter().filter(|f| lock(&f.view).due <= now).cloned().collect();
            (due, inner.all.iter().map(|f| lock(&f.view).due).min().unwrap_or(now))
        };
        if due.is_empty() {
            let _ = rx.recv_timeout(soonest.saturating_sub(now).max(Duration::from_millis(1)));
            continue;
        }
        match ship::runtime::handle() {
            Ok(rt) => {
                rt.block_on(futures_util::stream::iter(due).for_each_concurrent(PARALLEL, |f| f.turn()));
            }
            Err(e) => due.iter().for_each(|f| f.failed(&e)),
        }
    }
}

impl Followers {
    /// Starts to follow; a first copy is made before this returns. Returns the TXID in the file.
    ///
    /// Errors: `Config` for a path that is watched, followed from elsewhere, or no SQLite database; `Exists` for a database
    /// that is no follower of that replica; `Fenced` while another process follows into it; those of a restore.
    pub(super) fn follow(
        self: &Arc<Self>,
        path: &Path,
        req: &FollowRequest<'_>,
    ) -> Result<(Arc<Follower>, Begun)> {
        let replica = req.replica.to_string();
        let _starting = lock(&self.starting);
        if let Some(f) = self.find(path) {
            if f.replica != replica {
                return Err(Error::config(format!(
                    "{} already follows {}; call walrust_unreplicate() first",
                    path.display(),
                    f.replica
                )));
            }
            f.interval_ms.store(millis(req.interval), Ordering::Relaxed);
            return Ok((f, Begun::Already));
        }
        may_write(path, &replica, req.overwrite)?;
        let store = Store::open(&req.replica)?;
        let lock_path = beside(path, LOCK);
        let had_lock = lock_path.exists();
        let lock_file = LockFile::open(&lock_path)?;
        // (Whoever made it for nothing removes it.)
        if !lock_file.try_process()? || !lock_path.exists() || lock_file.is_replaced() {
            return Err(Error::new(
                Kind::Fenced,
                format!("another process keeps {} up to date; stop it there first", path.display()),
            ));
        }
        let f = Arc::new(Follower::new(
            path.to_path_buf(),
            replica,
            store,
            lock_file,
            (req.interval, self.on_corrupt),
        ));
        let begun = f.begin(req.overwrite).and_then(|begun| self.add(&f).map(|()| begun));
        if begun.is_err() {
            if !had_lock && !is_follower(&f.path) {
                drop(std::fs::remove_file(&lock_path));
            }
            f.lock.release();
        }
        Ok((f, begun?))
    }

    /// Stops following. Returns the TXID in the file, which stays as it is.
    pub(super) fn unfollow(&self, path: &Path) -> Result<TxId> {
        let found = resolve(path).ok().and_then(|p| self.find(&p));
        let Some(f) = found else {
            return Err(Error::config(format!(
                "{} is not kept up to date by this process; walrust_status shows what is",
                path.display()
            )));
        };
        f.stopped.store(true, Ordering::SeqCst);
        self.remove(&f);
        let end = clock::uptime() + STOP_PATIENCE;
        while f.at_work.load(Ordering::SeqCst) {
            if clock::uptime() >= end {
                let text =
                    format!("{}: the change under way is not done yet; it is the last", f.path.display());
                return Err(Error::new(Kind::Timeout, text));
            }
            clock::sleep(Duration::from_millis(2));
        }
        f.lock.release();
        Ok(f.txid())
    }

    /// Rows for the status.
    pub(super) fn rows(&self) -> Vec<FollowerRow> {
        let all = self.inner().all.clone();
        all.iter().map(|f| f.row()).collect()
    }
    /// An error while somebody keeps `path` up to date: it is not to be replaced.
    pub(super) fn refuse_target(&self, path: &Path) -> Result<()> {
        let here = self.find(path).is_some();
        let who = match holder_of(&beside(path, LOCK)) {
            _ if here => "this process".to_string(),
            Some(who) => who,
            None => return Ok(()),
        };
        let text = format!(
            "{} is kept up to date from a replica by {who}; stop that with walrust_unreplicate() first, or restore to another path",
            path.display()
        );
        Err(Error::config(text))
    }

    /// An error while somebody keeps `path` up to date: it must not be a source too (I-SFOL-5).
    pub(super) fn refuse_followed(&self, path: &Path) -> Result<()> {
        let refused = |who: &str| {
            let text = format!(
                "{} is kept up to date from a replica by {who}; stop that with walrust_unreplicate() first",
                path.display()
            );
            Err(Error::config(text))
        };
        if self.find(path).is_some() {
            return refused("this process");
        }
        let lock_path = beside(path, LOCK);
        if is_follower(path) && lock_path.exists() {
            let held = LockFile::open(&lock_path)?;
            if !held.try_process()? {
                return refused("another process");
            }
            held.release();
        }
        Ok(())
    }
}

/// Whether `path` is, or was until it was stopped, kept up to date from a replica.
pub(super) fn is_follower(path: &Path) -> bool {
    beside(path, RECORD).exists()
}

/// The file has become a source: it is no follower any more.
pub(super) fn forget_followed(path: &Path) {
    let _ = fs::remove_file(beside(path, RECORD));
}

/// I-SFOL-4, as far as names and the record tell.
fn may_write(path: &Path, replica: &str, overwrite: Overwrite) -> Result<()> {
    let size = match fs::symlink_metadata(path) {
        Ok(m) if !m.is_file() => {
            return Err(Error::config(format!("{} is not an ordinary file", path.display())));
        }
        Ok(m) => m.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look at", path, e)),
    };
    if size == 0 || overwrite == Overwrite::Replace {
        return Ok(());
    }
    let says = match load(path) {
        Some(r) if r.replica == replica => return Ok(()),
        Some(r) => format!("follows {}", r.replica),
        None => "was not made by walrust_replicate".to_string(),
    };
    let text =
        format!("{} exists and {says}; choose another path, or pass overwrite to replace it", path.display());
    Err(Error::new(Kind::Exists, text))
}

/// The path as SQLite names it: absolute, without symbolic links.
pub(super) fn resolve(path: &Path) -> Result<PathBuf> {
    if path.as_os_str() == ":memory:" || path.as_os_str().as_encoded_bytes().starts_with(b"file:") {
        return Err(Error::config(format!(
            "'{}' is not the path of a file; give a plain path",
            path.display()
        )));
    }
    let absolute = std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))?;
    if let Ok(real) = fs::canonicalize(&absolute) {
        return Ok(real);
    }
    let (Some(dir), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(Error::config(format!("'{}' is not a file name", path.display())));
    };
    match fs::canonicalize(dir) {
        Ok(dir) => Ok(dir.join(name)),
        Err(_) => {
            let text = format!(
                "{}: the directory {} does not exist; create it first",
                path.display(),
                dir.display()
            );
            Err(Error::new(Kind::Missing, text))
        }
    }
}
