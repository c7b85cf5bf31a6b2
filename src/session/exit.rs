//! The process ends: leases are given back, so that the next machine need not wait for them to run out.
//!
//! What is pending was shipped when the last connection closed; what could not be stays in the spool for the next
//! start. Nothing depends on this running.

use super::engine::engine;
use super::phase::Role;
use super::watched::Watched;
use crate::base::clock;
use std::sync::Arc;
use std::time::Duration;

/// How long the end of a process may be held up.
const EXIT_PATIENCE: Duration = Duration::from_millis(1500);

/// Tells every shipper to end, and waits a moment for those whose replica answers.
pub fn at_exit() {
    // Never a wait for a lock: its holder may be a thread that called exit().
    let Some(all) = engine().try_watched() else { return };
    let mine: Vec<Arc<Watched>> = all.into_iter().filter(|w| w.role() == Role::Shipper).collect();
    mine.iter().for_each(|w| w.link.stop());
    let end = clock::uptime() + EXIT_PATIENCE;
    let ending = |w: &Arc<Watched>| !w.link.has_ended() && w.link.status().last_error.is_none();
    while mine.iter().any(ending) && clock::uptime() < end {
        clock::sleep(Duration::from_millis(1));
    }
}
