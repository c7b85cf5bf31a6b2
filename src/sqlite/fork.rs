//! fork(): what must be true at the instant the process splits.
//!
//! Only the forking thread lives on in the child; a mutex held by another thread stays locked there for
//! ever, and a database handle of ours that is open across a fork leaves the child's SQLite with lock
//! counts that stand for no real lock (measured: the child's committed row was lost).
//!
//! Rules:
//! * I-FORK-1: no handle that we opened ourselves ([`super::RawDb`], [`super::SqlConnection`]) is open
//!   across a fork: the prepare handler stops new ones and waits up to five seconds for the live ones.
//! * I-FORK-2: the mutexes of this room are held by the forking thread across the fork.
//! * I-FORK-3: the hooks from above run before this room's step in `prepare`, after it in parent and child.
//!
//! Refused: a pid check at each use. It notices the child but can repair neither mutexes nor lock counts.

use super::guard::guard;
use super::registry;
use crate::base::{Error, Kind, Result, fork};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
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

static HOOKS: OnceLock<ForkHooks> = OnceLock::new();

/// Sets the hooks. Errors with [`Kind::Bug`] when set before.
pub fn on_fork(hooks: ForkHooks) -> Result<()> {
    HOOKS.set(hooks).map_err(|_| Error::new(Kind::Bug, "fork hooks are already set"))
}

#[derive(Default)]
struct Own {
    live: usize,
    frozen: bool,
}

static OWN: Mutex<Own> = Mutex::new(Own { live: 0, frozen: false });
static CHANGED: Condvar = Condvar::new();

fn own() -> MutexGuard<'static, Own> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A database handle of ours is open as long as this lives.
#[derive(Debug)]
pub(super) struct OwnHandle(());

impl OwnHandle {
    /// Waits while a fork is under way.
    pub(super) fn new() -> OwnHandle {
        let mut o = own();
        while o.frozen {
            o = CHANGED.wait(o).unwrap_or_else(PoisonError::into_inner);
        }
        o.live += 1;
        OwnHandle(())
    }
}

impl Drop for OwnHandle {
    fn drop(&mut self) {
        let mut o = own();
        o.live = o.live.saturating_sub(1);
        CHANGED.notify_all();
    }
}

/// How many database handles of ours are open now.
pub fn own_handles() -> usize {
    own().live
}

/// Guards that the forking thread holds from `prepare` to `parent` or `child`.
struct Held {
    own: MutexGuard<'static, Own>,
    registry: registry::Locked,
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
        let mut o = own();
        o.frozen = true;
        let (mut o, waited) =
            CHANGED.wait_timeout_while(o, PATIENCE, |o| o.live > 0).unwrap_or_else(PoisonError::into_inner);
        o.frozen = true;
        let open = o.live;
        let held = Held { own: o, registry: registry::lock() };
        // SAFETY: we hold OWN, so no other thread is between prepare and its end.
        unsafe { *HELD.0.get() = Some(held) };
        if waited.timed_out() {
            log::warn!("walrust: fork while {open} database handles of walrust are open");
        }
    });
}

/// Lets go; in the child the handles of threads that no longer exist are forgotten.
fn release(forget_handles: bool) {
    guard((), || {
        // SAFETY: called by the thread that ran `prepare`, which put the guard of OWN there.
        let held = unsafe { (*HELD.0.get()).take() };
        if let Some(Held { mut own, registry }) = held {
            own.frozen = false;
            if forget_handles {
                own.live = 0;
            }
            drop(registry);
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
        // SAFETY: the library is loaded permanently, so the handlers stay mapped.
        let rc = unsafe { pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        if rc != 0 {
            log::warn!("walrust: pthread_atfork failed ({rc}); fork is not handled");
        }
    });
}
