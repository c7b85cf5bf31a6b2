//! The door to threads.
//!
//! Every thread of ours is made here, with all signals blocked: they are the program's. With an open mask the kernel may give
//! one of ours a signal that the program has blocked and waits for (`sigwait`, `signalfd`), and its default action ends the
//! process; or a handler of the program would run on our small stack. A new thread has the mask of its maker, so the maker's is
//! closed for the moment of the making. (What a fault of the thread's own raises stays open: the kernel kills for a blocked one.)
//!
//! Threads that tokio makes for blocking work close their mask as the first thing they do ([`block_signals`], given to
//! `on_thread_start` at each runtime): who makes them may be a thread of the program, inside a library.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// The signals that are the program's.
fn programs_signals() -> SigSet {
    let mut set = SigSet::all();
    for fault in
        [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGSYS]
    {
        set.remove(fault);
    }
    set
}

/// Blocks the program's signals on this thread for good.
pub fn block_signals() {
    // It fails for arguments alone that do not exist.
    let _ = programs_signals().thread_block();
}

/// Runs `make` with the program's signals blocked on this thread.
fn with_signals_blocked<T>(make: impl FnOnce() -> T) -> T {
    let before = programs_signals().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let made = make();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    made
}

/// Starts a thread with a name and a stack of `stack` bytes.
pub fn spawn(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        w.spawn(name, Box::new(work));
        return Ok(());
    }
    spawn_joined(name, stack, work).map(drop)
}

/// As [`spawn`], for one that is waited for. (Not simulated.)
#[allow(clippy::disallowed_methods)]
pub fn spawn_joined<T: Send + 'static>(
    name: &str,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    with_signals_blocked(|| Builder::new().name(name.into()).stack_size(stack).spawn(work))
}

/// As [`spawn_joined`], for one that ends before its maker goes on.
#[allow(clippy::disallowed_methods)]
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    with_signals_blocked(|| Builder::new().name(name.into()).spawn_scoped(scope, work))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mask of the thread that asks.
    fn mask() -> SigSet {
        SigSet::thread_get_mask().unwrap()
    }

    #[test]
    fn threads_of_ours_leave_signals_to_the_program() {
        let before = mask();
        let joined = spawn_joined("test-signals", 64 << 10, mask).unwrap().join().unwrap();
        let scoped = std::thread::scope(|s| spawn_scoped(s, "test-signals", mask).unwrap().join().unwrap());
        for inside in [joined, scoped] {
            for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD, Signal::SIGUSR1, Signal::SIGPROF]
            {
                assert!(inside.contains(signal), "{signal}");
            }
            for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL] {
                assert!(!inside.contains(fault), "{fault}");
            }
        }
        assert_eq!(mask(), before, "the maker has its own mask again");
    }
}
