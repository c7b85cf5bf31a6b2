//! The doors a simulation stands in (cargo feature `sim`, tests only): time, chance, threads, locks between
//! processes and crash points all lead to the [`World`] of the calling thread, if it has one.
//!
//! A simulated process has no thread of its own. Whatever would wait calls [`World::sleep`] or
//! [`World::reached`], where the world may let the others take a step before it returns. So everything runs on one
//! thread, in an order that the world alone decides.

use super::{Error, Kind, Result, Timestamp};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Work that would have had a thread.
pub type Job = Box<dyn FnOnce()>;

/// What stands in for the machine.
pub trait World {
    /// Wall-clock time as the current process sees it.
    fn now(&self) -> Timestamp;
    /// Time that never goes back.
    fn uptime(&self) -> Duration;
    /// The current process rests; others may run.
    fn sleep(&self, d: Duration);
    /// A random number.
    fn random(&self) -> u64;
    /// A named crash point, or another place where others may run. May panic: the current process dies there.
    fn reached(&self, point: &str);
    /// A thread is to be started.
    fn spawn(&self, name: &str, work: Job);
    /// A lock is taken (`1`) or given back (`-1`): others must not run meanwhile.
    fn holds(&self, change: i32);
    /// The current process asks for a lock of its life; whether it has it now.
    fn own(&self, lock: &Path) -> bool;
    /// It gives that back.
    fn disown(&self, lock: &Path);
    /// A number that no other process has or had. (A world of one process need not say.)
    fn process(&self) -> u64 {
        0
    }
    /// Whether the current process is dead: what C code it is in the middle of has yet to come to an end, and may not be told
    /// anything, nor change anything.
    fn is_dead(&self) -> bool;
    /// A file is about to be written: the error number if the disk refuses.
    fn disk(&self, path: &Path) -> Option<i32>;
    /// A file is on disk to stay.
    fn synced(&self, path: &Path);
}

thread_local! {
    static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
}

/// This thread's world.
pub fn world() -> Option<Rc<dyn World>> {
    WORLD.with(|w| w.borrow().clone())
}

/// Gives this thread a world, or takes it away.
pub fn enter(world: Option<Rc<dyn World>>) {
    WORLD.with(|w| *w.borrow_mut() = world);
}

/// See [`World::process`]; 0 without a world.
pub fn process() -> u64 {
    world().map_or(0, |w| w.process())
}

/// See [`World::is_dead`].
pub fn is_dead() -> bool {
    world().is_some_and(|w| w.is_dead())
}

/// Whether the disk lets `path` be written.
pub fn disk(path: &Path) -> Result<()> {
    match world().and_then(|w| w.disk(path)) {
        None => Ok(()),
        Some(code) => Err(Error::new(Kind::Io, format!("cannot write {}", path.display()))
            .because(std::io::Error::from_raw_os_error(code))),
    }
}
