//! The process ends by `exit()`, perhaps with connections open: what is pending leaves, as at a last close, and leases are given back, so
//! that the next machine need not wait for them to run out.
//!
//! What could not leave stays in the spool for the next start. Nothing depends on this running.
//!
//! The work is done by a thread of its own, for which the ending thread waits so long and no longer: who calls `exit()` may hold a lock
//! that the work needs (in a handler of a signal), and then waits in vain, but not for ever.

use super::engine::engine;
use super::phase::Role;
use super::watched::Watched;
use crate::base::{clock, panics, thread};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long what is pending may take, of all databases together: as long as a close.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the leases may take.
const LEASES: Duration = Duration::from_millis(1500);
/// How long the list of the databases may be held by another thread.
const LIST_PATIENCE: Duration = Duration::from_secs(1);
/// Its stack.
const STACK: usize = 512 << 10;

/// Ships what is pending, tells every shipper to end, and waits for those whose replica answers.
pub fn at_exit() {
    let Some(all) = all_watched() else { return };
    if all.is_empty() {
        return;
    }
    let done = Arc::new(AtomicBool::new(false));
    let told = done.clone();
    let work = move || {
        if let Err(e) = panics::caught(|| finish(&all)) {
            log::error!("walrust: at exit: internal error: {e}");
        }
        told.store(true, Ordering::Release);
    };
    if let Err(e) = thread::spawn("walrust-exit", STACK, work) {
        log::warn!("walrust: what is pending stays in the spool: {e}");
        return;
    }
    let end = clock::uptime() + DRAIN + LEASES;
    while !done.load(Ordering::Acquire) && clock::uptime() < end {
        clock::sleep(Duration::from_millis(1));
    }
}

/// Every watched database. Who holds the list of them is done in microseconds, so a thread of ours that does is waited for; the holder
/// may also be the thread that called `exit()`, in a handler of a signal, for which nobody waits long.
fn all_watched() -> Option<Vec<Arc<Watched>>> {
    let end = clock::uptime() + LIST_PATIENCE;
    loop {
        let all = engine().try_watched();
        if all.is_some() || clock::uptime() >= end {
            return all;
        }
        clock::sleep(Duration::from_millis(1));
    }
}

fn finish(all: &[Arc<Watched>]) {
    let begun = clock::uptime();
    let end = begun + DRAIN;
    // All at once, then one after the other is waited for.
    all.iter().for_each(|w| w.cut_at_exit());
    all.iter().take_while(|_| clock::uptime() < end).for_each(|w| w.sync_closed(Duration::ZERO));
    all.iter().for_each(|w| w.drain_at_exit(begun, end));
    give_leases_back(all);
}

fn give_leases_back(all: &[Arc<Watched>]) {
    let mine: Vec<&Arc<Watched>> = all.iter().filter(|w| w.role() == Role::Shipper).collect();
    mine.iter().for_each(|w| w.link.stop());
    let end = clock::uptime() + LEASES;
    let ending = |w: &&Arc<Watched>| !w.link.has_ended() && w.link.status().last_error.is_none();
    while mine.iter().any(ending) && clock::uptime() < end {
        clock::sleep(Duration::from_millis(1));
    }
}
