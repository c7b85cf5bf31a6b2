//! Whether the process's metrics are served.

use crate::metrics::Server;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two tries to listen at an address that somebody else has.
pub(super) const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Where they are served.
#[derive(Default)]
pub(super) enum Listening {
    /// Nowhere: no address was asked for, or none was tried yet.
    #[default]
    Nowhere,
    /// The address was refused; the next try is due at this uptime.
    Refused {
        /// That uptime.
        again_at: Duration,
    },
    /// At the address that was asked for.
    At {
        /// It serves until it is dropped.
        _until_dropped: Server,
    },
}

static IS_PASSING: AtomicBool = AtomicBool::new(false);

/// This process is a single command beside the program, whose metrics they are: it serves none.
pub fn serve_no_metrics() {
    IS_PASSING.store(true, Ordering::Relaxed);
}

/// Whether this process may serve its metrics.
pub(super) fn may_serve() -> bool {
    !IS_PASSING.load(Ordering::Relaxed)
}
