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

use super::engine::{Engine, engine, lock};
use crate::base::{Error, Kind, PageSize, Pgno, Result, Timestamp, TxId, clock, crash};
use crate::replica::follow::{self, Disk, Feed, Image, Incoming, Look, Next, Place, Record};
use crate::replica::{self, Overwrite, Point, RestoreOptions, Restored};
use crate::ship::{self, State};
use crate::spool::LockFile;
use crate::sqlite::{Rewrite, peek};
use crate::store::{ReplicaUrl, Store, block_on};
use crossbeam_channel::{Receiver, Sender};
use futures_util::{FutureExt, StreamExt};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Polls of different followers at once.
const PARALLEL: usize = 8;
/// How long one change waits for readers before it is put off; new readers wait as long.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for a rebuild, which is dearer to put off.
const REBUILD_PATIENCE: Duration = Duration::from_secs(5);
/// Quiet or single-step polls between two looks at the whole replica, and the least time between them.
const POLLS_PER_LOOK: u32 = 12;
const LEAST_LOOK: Duration = Duration::from_secs(1);
/// Single steps after which a merged file may lead further at once.
const MANY_STEPS: u32 = 16;
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long the status shows that the file was rebuilt.
const SHOW_NOTE: Duration = Duration::from_secs(3600);
/// How long stopping waits for a change that is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

const RECORD: &str = "-walrust-follow.json";
const LOCK: &str = "-walrust-follow.lock";
const IMAGE: &str = "-walrust-follow.new";
const PART: &str = "-walrust-follow.part";

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

/// How following began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// It was followed by this process already.
    Already,
    /// With a first copy.
    Copied,
    /// From where it stood.
    Continued,
}

/// A row of `walrust_status`.
#[derive(Clone, Debug)]
pub struct FollowerRow {
    /// The file.
    pub path: PathBuf,
    /// URL of the replica.
    pub replica: String,
    /// `streaming`, `catching up` or `failed`.
    pub state: State,
    /// TXID in the file.
    pub txid: TxId,
    /// Newest TXID known to be in the replica.
    pub newest: TxId,
    /// Time since the file was known to be even with the replica.
    pub lag: Duration,
    /// Bytes of files known to be missing here.
    pub pending_bytes: u64,
    /// When the commit that the file shows was captured at the source.
    pub time: Option<Timestamp>,
    /// What went wrong last; what was rebuilt and why.
    pub last_error: Option<String>,
}

/// One followed file.
pub struct Follower {
    path: PathBuf,
    replica: String,
    store: Store,
    lock: Arc<LockFile>,
    interval_ms: AtomicU64,
    view: Mutex<View>,
    record: Mutex<Option<Record>>,
    at_work: AtomicBool,
    stopped: AtomicBool,
}

struct View {
    at: Option<Place>,
    newest: TxId,
    pending: u64,
    state: State,
    is_even: bool,
    even_at: Timestamp,
    error: Option<String>,
    /// What was rebuilt and why, and until which uptime it is shown.
    note: Option<(String, Duration)>,
    failures: u32,
    /// Uptime of the next poll.
    due: Duration,
    /// Uptime from which on the next poll looks at the whole replica.
    look_at: Duration,
}

/// Where the file stands.
enum Here {
    Absent,
    At(Place),
    /// Written by somebody else.
    Foreign(String),
}

/// All followers of the process.
#[derive(Default)]
pub(super) struct Followers {
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
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn find(&self, path: &Path) -> Option<Arc<Follower>> {
        self.inner().all.iter().find(|f| f.path == path).cloned()
    }

    fn add(&self, f: &Arc<Follower>) -> Result<()> {
        let mut inner = self.inner();
        inner.all.push(f.clone());
        if let Some(wake) = &inner.wake {
            let _ = wake.try_send(());
            return Ok(());
        }
        let (tx, rx) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("walrust-follow".into()).stack_size(1 << 20);
        match thread.spawn(move || run(&rx)) {
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

/// The thread.
fn run(rx: &Receiver<()>) {
    loop {
        let now = clock::uptime();
        let (due, soonest) = {
            let mut inner = engine().followers.inner();
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

/// Starts to follow; a first copy is made before this returns. Returns the TXID in the file.
///
/// Errors: `Config` for a path that is watched, followed from elsewhere, or no SQLite database; `Exists` for a database
/// that is no follower of that replica; `Fenced` while another process follows into it; those of a restore.
pub fn follow(req: FollowRequest<'_>) -> Result<(Arc<Follower>, Begun)> {
    let path = resolve(req.path)?;
    let replica = req.replica.to_string();
    let followers = &engine().followers;
    let _starting = lock(&followers.starting);
    if let Some(f) = followers.find(&path) {
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
    if engine().find(&path).is_some() {
        return Err(Error::config(format!(
            "{} is watched: it is a source, not a copy; choose another path",
            path.display()
        )));
    }
    may_write(&path, &replica, req.overwrite)?;
    let store = Store::open(&req.replica)?;
    let lock_file = LockFile::open(&beside(&path, LOCK))?;
    if !lock_file.try_process()? {
        return Err(Error::new(
            Kind::Fenced,
            format!("another process keeps {} up to date; stop it there first", path.display()),
        ));
    }
    let f = Arc::new(Follower::new(path, replica, store, lock_file, req.interval));
    let begun = f.begin(req.overwrite).and_then(|begun| followers.add(&f).map(|()| begun));
    if begun.is_err() {
        f.lock.release();
    }
    Ok((f, begun?))
}

/// Stops following. Returns the TXID in the file, which stays as it is.
pub fn unfollow(path: &Path) -> Result<TxId> {
    let found = resolve(path).ok().and_then(|p| engine().followers.find(&p));
    let Some(f) = found else {
        return Err(Error::config(format!(
            "{} is not kept up to date by this process; walrust_status shows what is",
            path.display()
        )));
    };
    f.stopped.store(true, Ordering::SeqCst);
    engine().followers.remove(&f);
    let end = clock::uptime() + STOP_PATIENCE;
    while f.at_work.load(Ordering::SeqCst) {
        if clock::uptime() >= end {
            let text = format!("{}: the change under way is not done yet; it is the last", f.path.display());
            return Err(Error::new(Kind::Timeout, text));
        }
        clock::sleep(Duration::from_millis(2));
    }
    f.lock.release();
    Ok(f.txid())
}

impl Engine {
    /// Rows of the followers.
    pub fn followers(&self) -> Vec<FollowerRow> {
        let all = self.followers.inner().all.clone();
        all.iter().map(|f| f.row()).collect()
    }
}

/// Whether `path` is, or was until it was stopped, kept up to date from a replica.
pub(super) fn is_follower(path: &Path) -> bool {
    beside(path, RECORD).exists()
}

/// An error while somebody keeps `path` up to date: it must not be a source too (I-SFOL-5).
pub(super) fn refuse_followed(path: &Path) -> Result<()> {
    let refused = |who: &str| {
        let text = format!(
            "{} is kept up to date from a replica by {who}; stop that with walrust_unreplicate() first",
            path.display()
        );
        Err(Error::config(text))
    };
    if engine().followers.find(path).is_some() {
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

/// Whether some process keeps `path` up to date now.
pub(super) fn is_followed(path: &Path) -> bool {
    is_follower(path) && refuse_followed(path).is_err()
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

impl Follower {
    fn new(
        path: PathBuf,
        replica: String,
        store: Store,
        lock: Arc<LockFile>,
        interval: Duration,
    ) -> Follower {
        let record = load(&path).filter(|r| r.replica == replica);
        let view = View {
            at: None,
            newest: TxId::ZERO,
            pending: 0,
            state: State::CatchingUp,
            is_even: false,
            even_at: clock::now(),
            error: None,
            note: None,
            failures: 0,
            due: Duration::ZERO,
            look_at: Duration::ZERO,
        };
        Follower {
            path,
            replica,
            store,
            lock,
            interval_ms: AtomicU64::new(millis(interval)),
            view: Mutex::new(view),
            record: Mutex::new(record),
            at_work: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// URL of the replica.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// The TXID in the file.
    pub fn txid(&self) -> TxId {
        lock(&self.view).at.as_ref().map(|p| p.txid).unwrap_or_default()
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Ordering::Relaxed))
    }

    fn row(&self) -> FollowerRow {
        let v = lock(&self.view);
        let lag = if v.is_even { Duration::ZERO } else { clock::now().since(v.even_at) };
        FollowerRow {
            path: self.path.clone(),
            replica: self.replica.clone(),
            state: v.state,
            txid: v.at.as_ref().map(|p| p.txid).unwrap_or_default(),
            newest: v.newest,
            lag,
            pending_bytes: v.pending,
            time: v.at.as_ref().map(|p| p.time),
            last_error: v
                .error
                .clone()
                .or_else(|| v.note.as_ref().filter(|n| n.1 > clock::uptime()).map(|n| n.0.clone())),
        }
    }

    /// On the caller's thread, before the first poll: where the file stands, or a first copy.
    fn begin(&self, overwrite: Overwrite) -> Result<Begun> {
        match self.here(overwrite)? {
            Here::At(place) => {
                let mut v = lock(&self.view);
                (v.even_at, v.newest) = (place.time, place.txid);
                v.at = Some(place);
                Ok(Begun::Continued)
            }
            Here::Absent | Here::Foreign(_) => {
                let new = beside(&self.path, IMAGE);
                let options = rebuild_options();
                let restored = block_on(replica::restore(&self.store, Point::Latest, &new, &options))?;
                self.put(&new, &self.told(restored)?)?;
                Ok(Begun::Copied)
            }
        }
    }

    /// One poll and what follows from it. Never fails: the status tells.
    async fn turn(self: Arc<Self>) {
        self.at_work.store(true, Ordering::SeqCst);
        if !self.is_stopped() {
            match std::panic::AssertUnwindSafe(self.poll()).catch_unwind().await {
                Ok(Ok(())) => self.succeeded(),
                Ok(Err(e)) => self.failed(&e),
                Err(_) => self.failed(&Error::new(Kind::Bug, "an internal error")),
            }
        }
        self.at_work.store(false, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn succeeded(&self) {
        let mut v = lock(&self.view);
        let newest = v.newest;
        v.is_even = v.at.as_ref().is_some_and(|p| p.txid >= newest);
        v.state = if v.is_even { State::Streaming } else { State::CatchingUp };
        if v.is_even {
            (v.even_at, v.pending) = (clock::now(), 0);
        }
        (v.error, v.failures) = (None, 0);
        v.due = clock::uptime() + self.interval();
    }

    fn failed(&self, e: &Error) {
        log::warn!("walrust: {}: {e}", self.path.display());
        let mut v = lock(&self.view);
        v.failures = v.failures.saturating_add(1);
        v.is_even = false;
        v.state = if e.is_retry() { State::CatchingUp } else { State::Failed };
        v.error = Some(e.to_string());
        let wait = self.interval().saturating_mul(1 << v.failures.min(10)) / 2;
        v.due = clock::uptime() + wait.min(LONGEST_WAIT.max(self.interval()));
        // After an outage a merged file may lead further at once.
        v.look_at = Duration::ZERO;
    }

    /// Brings the file up to the replica.
    async fn poll(&self) -> Result<()> {
        let mut steps = 0;
        loop {
            let at = match self.here(Overwrite::Refuse)? {
                Here::At(place) => place,
                Here::Absent => return self.rebuild(format!("{} was removed", self.path.display())).await,
                Here::Foreign(why) => return self.rebuild(why).await,
            };
            lock(&self.view).at = Some(at.clone());
            let look_due = steps >= MANY_STEPS || lock(&self.view).look_at <= clock::uptime();
            let went_on = if look_due {
                steps = 0;
                match self.look(&at).await? {
                    Some(why) => return self.rebuild(why).await,
                    None => true,
                }
            } else {
                steps += 1;
                let part = beside(&self.path, PART);
                match follow::fetch_next(&self.store, at.txid, part).await? {
                    Some(file) => match self.apply(&file, &at)? {
                        Ok(()) => true,
                        Err(why) => return self.rebuild(why).await,
                    },
                    None => false,
                }
            };
            if !went_on || self.is_stopped() {
                return Ok(());
            }
        }
    }

    /// Looks at the whole replica and applies what leads on. `Some`: why nothing does.
    async fn look(&self, at: &Place) -> Result<Option<String>> {
        let look: Look = follow::look(&self.store, at).await?;
        let every = self.interval().saturating_mul(POLLS_PER_LOOK).max(LEAST_LOOK);
        {
            let mut v = lock(&self.view);
            (v.newest, v.pending, v.look_at) = (look.newest, look.bytes, clock::uptime() + every);
        }
        if let Next::Rebuild(why) = &look.next {
            return Ok(Some(why.clone()));
        }
        let mut feed = Feed::new(&self.store, look, beside(&self.path, PART));
        let mut at = at.clone();
        while let Some(file) = feed.next().await {
            let file = match file {
                Ok(f) => f,
                // Merged away meanwhile: look again.
                Err(e) if e.is_missing() => {
                    lock(&self.view).look_at = Duration::ZERO;
                    return Ok(None);
                }
                Err(e) => return Err(e),
            };
            if let Err(why) = self.apply(&file, &at)? {
                return Ok(Some(why));
            }
            match lock(&self.view).at.clone() {
                Some(next) if next.txid > at.txid && !self.is_stopped() => at = next,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Applies one file in one transaction. The inner error says why a rebuild is needed.
    fn apply(&self, file: &Incoming, at: &Place) -> Result<std::result::Result<(), String>> {
        let mut tx = Rewrite::begin(&self.path)?;
        if !at.is(&tx.before().header, tx.before().size) {
            // Written meanwhile: the next look at the file finds out.
            return Ok(Ok(()));
        }
        let to = match file.judge(at, &mut Open { tx: &mut tx, size: at.page_size }) {
            Ok(to) => to,
            Err(e) if e.is_corrupt() => return Ok(Err(e.to_string())),
            Err(e) => return Err(e),
        };
        tx.seal()?;
        self.save(Some(at), &to)?;
        crash::point("follow.recorded");
        tx.exclude(PATIENCE)?;
        file.write(&to, &mut Open { tx: &mut tx, size: to.page_size })?;
        tx.commit()?;
        crash::point("follow.applied");
        let mut v = lock(&self.view);
        v.newest = v.newest.max(to.txid);
        v.pending = v.pending.saturating_sub(file.bytes());
        v.at = Some(to);
        Ok(Ok(()))
    }

    /// Takes a full copy and makes the file equal to it.
    async fn rebuild(&self, why: String) -> Result<()> {
        log::warn!("walrust: {}: {why}; taking a full copy", self.path.display());
        {
            let mut v = lock(&self.view);
            (v.state, v.is_even) = (State::CatchingUp, false);
            let text = format!("{why}; the file was rebuilt from a full copy");
            v.note = Some((text, clock::uptime() + SHOW_NOTE));
        }
        let new = beside(&self.path, IMAGE);
        let restored = replica::restore(&self.store, Point::Latest, &new, &rebuild_options()).await;
        let restored = self.told(restored).map_err(|e| e.context(&why))?;
        self.put(&new, &restored)
    }

    /// A damaged replica is told to the webhooks.
    fn told(&self, restored: Result<Restored>) -> Result<Restored> {
        if let Err(e) = &restored
            && e.is_corrupt()
        {
            engine().tell_corrupt(&self.replica, e);
        }
        restored
    }

    /// Makes the file what was restored to `new`: by a link if there is none, else in a transaction (I-SFOL-1).
    fn put(&self, new: &Path, restored: &Restored) -> Result<()> {
        let mut image = Image::open(new, restored)?;
        if fs::symlink_metadata(&self.path).is_ok() {
            self.put_into(&mut image)?;
        } else {
            image.localize()?;
            let inode = fs::metadata(new).map_err(|e| Error::io("look at", new, e))?.ino();
            self.store_record(Record {
                replica: self.replica.clone(),
                inode,
                now: Some(image.place().clone()),
                next: None,
            })?;
            crash::point("follow.copied");
            if let Err(e) = fs::hard_link(new, &self.path) {
                // A file system without links; one that appeared meanwhile is not replaced.
                if fs::symlink_metadata(&self.path).is_ok() {
                    return Err(Error::io("put the copy at", &self.path, e));
                }
                fs::rename(new, &self.path).map_err(|e| Error::io("put the copy at", &self.path, e))?;
            }
            sync_dir(&self.path)?;
            crash::point("follow.linked");
        }
        let mut v = lock(&self.view);
        v.newest = v.newest.max(image.place().txid);
        if v.newest > image.place().txid && v.at.as_ref().is_some_and(|p| p.txid > image.place().txid) {
            // Another history, that is shorter.
            v.newest = image.place().txid;
        }
        v.at = Some(image.place().clone());
        Ok(())
    }

    fn put_into(&self, image: &mut Image) -> Result<()> {
        let mut tx = Rewrite::begin(&self.path)?;
        let before = *tx.before();
        if before.size > 0 && !before.header.starts_with(b"SQLite format 3\0") {
            let text =
                format!("{} is no SQLite database; remove it, or choose another path", self.path.display());
            return Err(Error::config(text));
        }
        let size = image.place().page_size;
        if before.size == 0 || tx.page_size() == size.get() {
            let pages = tx.pages();
            image.compare(&before.header, pages, &mut Open { tx: &mut tx, size })?;
        } else {
            keep_all(&mut tx)?;
            image.replaces_all(&before.header);
        }
        tx.seal()?;
        let now = lock(&self.record).as_ref().and_then(|r| r.place(&before.header, before.size).cloned());
        self.save(now.as_ref(), image.place())?;
        crash::point("follow.recorded");
        tx.exclude(REBUILD_PATIENCE)?;
        image.write(&mut Open { tx: &mut tx, size })?;
        tx.commit()
    }

    /// Where the file stands.
    fn here(&self, overwrite: Overwrite) -> Result<Here> {
        let seen = match peek(&self.path) {
            Ok(p) => p,
            Err(e) if e.is_missing() => return Ok(Here::Absent),
            Err(e) => return Err(e),
        };
        let record = lock(&self.record).clone();
        let Some(record) = record else { return Ok(Here::Foreign("the file was not made here".to_string())) };
        if let Some(place) = record.place(&seen.header, seen.size) {
            return Ok(Here::At(place.clone()));
        }
        let inode = fs::metadata(&self.path).map_err(|e| Error::io("look at", &self.path, e))?.ino();
        if inode != record.inode && seen.size > 0 && overwrite == Overwrite::Refuse {
            let shown = self.path.display();
            let text = format!(
                "{shown} is another file than the one kept up to date; remove it, or call walrust_unreplicate() and \
                 walrust_replicate() with overwrite"
            );
            return Err(Error::new(Kind::Exists, text));
        }
        Ok(Here::Foreign(format!("something else wrote into {}", self.path.display())))
    }

    /// I-SFOL-2.
    fn save(&self, now: Option<&Place>, next: &Place) -> Result<()> {
        let inode = fs::metadata(&self.path).map_err(|e| Error::io("look at", &self.path, e))?.ino();
        self.store_record(Record {
            replica: self.replica.clone(),
            inode,
            now: now.cloned(),
            next: Some(next.clone()),
        })
    }

    fn store_record(&self, record: Record) -> Result<()> {
        let path = beside(&self.path, RECORD);
        let temp = beside(&path, ".tmp");
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|e| Error::new(Kind::Bug, "cannot encode a record").because(e))?;
        let io = |e| Error::io("write", &path, e);
        let mut file = File::create(&temp).map_err(io)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&temp, &path).map_err(io)?;
        sync_dir(&path)?;
        *lock(&self.record) = Some(record);
        Ok(())
    }
}

/// The file, inside a transaction.
struct Open<'a> {
    tx: &'a mut Rewrite,
    size: PageSize,
}

impl Disk for Open<'_> {
    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.tx.read_at(page, pgno.offset(self.size))
    }
    fn keep(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.tx.keep(pgno, page)
    }
    fn write(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.tx.write_at(page, pgno.offset(self.size))
    }
    fn resize(&mut self, pages: u32) -> Result<()> {
        self.tx.cut(u64::from(pages) * u64::from(self.size.get()))
    }
}

/// Keeps every page, in the page size the file has.
fn keep_all(tx: &mut Rewrite) -> Result<()> {
    let size = PageSize::new(tx.page_size())?;
    let mut page = vec![0; size.len()];
    for pgno in (1..=tx.pages()).filter_map(Pgno::new).filter(|p| *p != size.lock_page()) {
        tx.read_at(&mut page, pgno.offset(size))?;
        tx.keep(pgno, &page)?;
    }
    Ok(())
}

fn rebuild_options() -> RestoreOptions<'static> {
    RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() }
}

fn load(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(beside(path, RECORD)).ok()?).ok()
}

/// The path as SQLite names it: absolute, without symbolic links.
fn resolve(path: &Path) -> Result<PathBuf> {
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

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

fn sync_dir(file: &Path) -> Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync the directory", dir, e))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
