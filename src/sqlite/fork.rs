//! fork(): what must be true at the instant the process splits.
//!
//! Only the forking thread lives on in the child; a mutex held by another thread stays locked there for
//! ever, and a database handle of ours that is open across a fork leaves the child's SQLite with lock
//! counts that stand for no real lock: SQLite then takes none where it has one already, and the child's transaction sees a half
//! of another's commit (measured), or its committed row is lost (measured, too).
//!
//! Rules:
//! * I-FORK-1: no handle that we opened ourselves ([`super::RawDb`], [`super::SqlConnection`]) is open
//!   across a fork: the prepare handler stops new ones and recalls the live ones, which are given back within milliseconds. What
//!   is read through for long is [`Revocable`] and taken away, what writes for long asks [`recalled`] at each step, an SQL
//!   statement of ours is interrupted, and [`despite_forks`] begins the work again after the fork.
//! * I-FORK-2: the mutexes of this room are held by the forking thread across the fork; all other locks in statics are
//!   [`crate::base::ForkSafe`].
//! * I-FORK-3: the hooks from above run before this room's step in `prepare`, after it in parent and child.
//! * I-FORK-4: a file of which a handle was not given back in five seconds (a disk that stands still) cannot be opened in the
//!   child: its SQLite would believe in locks that nobody holds.
//!
//! Refused: a pid check at each use. It notices the child but can repair neither mutexes nor lock counts. To keep the place of an
//! interrupted reading: what it has read is a state of the database only as long as its read mark is held. To leave the handle open in
//! the parent and close it in the child: that takes mutexes of SQLite's, which a thread of the program may have held at the fork, and
//! a child that only wants to exec would hang.

use super::ffi::Sqlite3;
use super::guard::guard;
use super::{api, mutex};
use crate::base::{Error, ForkSafe, Kind, Result, clock, fork};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// What the rooms above do around a fork. Each runs on the forking thread.
#[derive(Clone, Copy)]
pub struct ForkHooks {
    /// Before: stop or park own threads, let go of own handles, lock own mutexes.
    pub prepare: fn(),
    /// After, in the parent: undo `prepare`.
    pub parent: fn(),
    /// After, in the child: start afresh; no thread but this one exists.
    pub child: fn(),
}

/// How long a fork waits for handles of ours that are open.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two interrupts of a statement of ours that still runs: one that comes between two statements is lost.
const BETWEEN_INTERRUPTS: Duration = Duration::from_millis(2);

static HOOKS: OnceLock<ForkHooks> = OnceLock::new();

/// Sets the hooks. Errors with [`Kind::Bug`] when set before.
pub fn on_fork(hooks: ForkHooks) -> Result<()> {
    HOOKS.set(hooks).map_err(|_| Error::new(Kind::Bug, "fork hooks are already set"))
}

struct Own {
    live: Vec<Live>,
    numbers: u64,
    frozen: bool,
    /// Device and inode of files that must not be opened in this process (I-FORK-4).
    spoiled: Vec<(u64, u64)>,
}

/// One open handle of ours.
struct Live {
    number: u64,
    path: PathBuf,
    /// What is to be interrupted.
    sql: Option<Interruptible>,
}

struct Interruptible(*mut Sqlite3);
// SAFETY: "It is safe to call this routine from a thread different from the thread that is currently running the database
// operation" (c3ref/interrupt.html), and that is all that is done with it.
unsafe impl Send for Interruptible {}

static OWN: Mutex<Own> = Mutex::new(Own { live: Vec::new(), numbers: 0, frozen: false, spoiled: Vec::new() });
static CHANGED: Condvar = Condvar::new();
/// Uptime in ms, plus one, at which the fork that waits for our handles began; 0 while none does.
static WAITS_SINCE: AtomicU64 = AtomicU64::new(0);
/// Forks that had to recall handles.
static RECALLS: AtomicUsize = AtomicUsize::new(0);
static IS_ANY_SPOILED: AtomicBool = AtomicBool::new(false);

fn own() -> MutexGuard<'static, Own> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error while a fork waits for our handles: let go of yours. To be asked at each step of what takes long.
pub fn recalled() -> Result<()> {
    recalled_for(Duration::ZERO)
}

/// The same once it has waited for `grace`: for what is rather brought to its end.
pub fn recalled_for(grace: Duration) -> Result<()> {
    let since = WAITS_SINCE.load(Ordering::Relaxed);
    if since == 0 || now_ms().saturating_sub(since) < grace.as_millis() as u64 {
        return Ok(());
    }
    Err(taken_away())
}

fn taken_away() -> Error {
    Error::new(Kind::Retry, "the process forks: the database is let go of, and read again afterwards")
}

/// Does `work`, and again from its beginning if it failed because handles were recalled meanwhile.
pub fn despite_forks<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        let before = RECALLS.load(Ordering::Acquire);
        let done = work();
        if done.is_ok() || RECALLS.load(Ordering::Acquire) == before {
            return done;
        }
        drop(wait_for_fork());
    }
}

fn now_ms() -> u64 {
    (clock::uptime().as_millis() as u64).saturating_add(1)
}

/// Waits while a fork is under way.
fn wait_for_fork() -> MutexGuard<'static, Own> {
    CHANGED.wait_while(own(), |o| o.frozen).unwrap_or_else(PoisonError::into_inner)
}

/// A handle that the forking thread itself takes away, whatever its owner does at the moment (which may be to wait for a disk).
pub struct Revocable<T: Send + 'static>(Arc<Slot<T>>);

struct Slot<T>(Mutex<Option<T>>);

trait Revoke: Send + Sync {
    /// Drops the handle, unless it is in use.
    fn revoke(&self);
}

impl<T: Send> Revoke for Slot<T> {
    fn revoke(&self) {
        let taken = match self.0.try_lock() {
            Ok(mut slot) => slot.take(),
            Err(_) => None,
        };
        drop(taken);
    }
}

static REVOCABLE: ForkSafe<Mutex<Vec<Weak<dyn Revoke>>>> = ForkSafe::new(Mutex::default);

impl<T: Send + 'static> Revocable<T> {
    /// From now on a fork takes it away.
    pub fn new(handle: T) -> Revocable<T> {
        let slot = Arc::new(Slot(Mutex::new(Some(handle))));
        let mut all = REVOCABLE.lock();
        all.retain(|r| r.strong_count() > 0);
        let weak: Weak<dyn Revoke> = Arc::<Slot<T>>::downgrade(&slot);
        all.push(weak);
        Revocable(slot)
    }

    /// Uses it. Errors when a fork has taken it away, or waits for it.
    pub fn with<R>(&self, f: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        recalled()?;
        match &*self.0.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(handle) => f(handle),
            None => Err(taken_away()),
        }
    }
}

/// A database handle of ours is open as long as this lives.
#[derive(Debug)]
pub(super) struct OwnHandle(u64);

impl OwnHandle {
    /// Waits while a fork is under way.
    pub(super) fn new(path: &Path) -> OwnHandle {
        let mut o = wait_for_fork();
        o.numbers += 1;
        let number = o.numbers;
        o.live.push(Live { number, path: path.to_path_buf(), sql: None });
        OwnHandle(number)
    }

    /// A fork interrupts what `db` does from now on.
    ///
    /// # Safety
    /// `db` is open until [`OwnHandle::spare`] is called, or this is dropped.
    pub(super) unsafe fn interrupt(&self, db: *mut Sqlite3) {
        self.set(Some(Interruptible(db)));
    }

    /// No fork does any more.
    pub(super) fn spare(&self) {
        self.set(None);
    }

    fn set(&self, sql: Option<Interruptible>) {
        if let Some(l) = own().live.iter_mut().find(|l| l.number == self.0) {
            l.sql = sql;
        }
    }
}

impl Drop for OwnHandle {
    fn drop(&mut self) {
        own().live.retain(|l| l.number != self.0);
        CHANGED.notify_all();
    }
}

/// How many database handles of ours are open now.
pub fn own_handles() -> usize {
    own().live.len()
}

/// Whether the file `path` must not be opened in this process (I-FORK-4). One load where there is none.
pub(super) fn is_spoiled(path: &Path) -> bool {
    if !IS_ANY_SPOILED.load(Ordering::Acquire) {
        return false;
    }
    let spoiled = std::fs::metadata(path).is_ok_and(|m| own().spoiled.contains(&(m.dev(), m.ino())));
    if spoiled {
        log::error!(
            "walrust: {} cannot be opened in this process: it was forked while a thread of walrust had the file open and could \
             not let go of it, so SQLite's locks are not real here; fork again, or exec",
            path.display()
        );
    }
    spoiled
}

/// Guards that the forking thread holds from `prepare` to `parent` or `child`.
struct Held {
    own: MutexGuard<'static, Own>,
    handles: mutex::Locked,
}

/// Where they wait in between.
struct HeldCell(std::cell::UnsafeCell<Option<Held>>);
// SAFETY: touched only by the thread that holds OWN, which is one of the guards kept here.
unsafe impl Sync for HeldCell {}
static HELD: HeldCell = HeldCell(std::cell::UnsafeCell::new(None));

unsafe extern "C" fn prepare() {
    guard((), || {
        if let Some(h) = HOOKS.get() {
            (h.prepare)();
        }
    });
    guard((), || {
        let o = recall();
        let open = o.live.len();
        let held = Held { own: o, handles: mutex::lock() };
        // SAFETY: we hold OWN, so no other thread is between prepare and its end.
        unsafe { *HELD.0.get() = Some(held) };
        if open > 0 {
            log::warn!(
                "walrust: fork while {open} database handles of walrust are open: the child cannot open these files"
            );
        }
    });
}

/// No handle is opened from now on, and those that are open are given back, unless that takes longer than [`PATIENCE`].
fn recall() -> MutexGuard<'static, Own> {
    // (Another thread may be forking, too.)
    let mut o = wait_for_fork();
    o.frozen = true;
    if o.live.is_empty() {
        return o;
    }
    RECALLS.fetch_add(1, Ordering::AcqRel);
    WAITS_SINCE.store(now_ms(), Ordering::Release);
    let end = clock::uptime() + PATIENCE;
    while !o.live.is_empty() && clock::uptime() < end {
        // (A handle's drop takes the mutex.)
        drop(o);
        let revocable: Vec<_> = REVOCABLE.lock().iter().filter_map(Weak::upgrade).collect();
        revocable.iter().for_each(|r| r.revoke());
        drop(revocable);
        o = own();
        if o.live.is_empty() {
            break;
        }
        for l in &o.live {
            if let Some(Interruptible(db)) = l.sql {
                // SAFETY: open as long as it stands here, and we hold the mutex under which it is taken away.
                unsafe { api::interruptx(db) };
            }
        }
        o = CHANGED.wait_timeout(o, BETWEEN_INTERRUPTS).unwrap_or_else(PoisonError::into_inner).0;
    }
    WAITS_SINCE.store(0, Ordering::Release);
    o
}

/// Lets go; in the child the handles of threads that no longer exist are forgotten.
fn release(forget_handles: bool) {
    guard((), || {
        // SAFETY: called by the thread that ran `prepare`, which put the guard of OWN there.
        let held = unsafe { (*HELD.0.get()).take() };
        if let Some(Held { mut own, handles }) = held {
            own.frozen = false;
            if forget_handles {
                let id = |l: Live| std::fs::metadata(l.path).ok().map(|m| (m.dev(), m.ino()));
                let left: Vec<_> = std::mem::take(&mut own.live).into_iter().filter_map(id).collect();
                own.spoiled.extend(left);
                IS_ANY_SPOILED.store(!own.spoiled.is_empty(), Ordering::Release);
            }
            drop(handles);
            drop(own);
            CHANGED.notify_all();
        }
    });
}

unsafe extern "C" fn parent() {
    release(false);
    guard((), || {
        if let Some(h) = HOOKS.get() {
            (h.parent)();
        }
    });
}

unsafe extern "C" fn child() {
    fork::in_child();
    release(true);
    guard((), || {
        if let Some(h) = HOOKS.get() {
            (h.child)();
        }
    });
}

#[cfg(unix)]
unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
    ) -> std::ffi::c_int;
}

/// Registers the handlers with the C library, once.
pub(super) fn register() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    #[cfg(unix)]
    ONCE.call_once(|| {
        // Its first use fills a static, over which no fork may come.
        let _ = clock::uptime();
        // SAFETY: the library is loaded permanently, so the handlers stay mapped.
        let rc = unsafe { pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        if rc != 0 {
            log::warn!("walrust: pthread_atfork failed ({rc}); fork is not handled");
        }
    });
}
