//! What is known of the databases that other processes of this machine stream, and whether somebody looks at it. [`super::neighbours`] asks
//! for it.

use crate::metrics::DatabaseFace;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// What is known of the others. A forked child has an empty one.
#[derive(Default)]
pub(super) struct Others {
    pub(super) at: Mutex<Known>,
    pub(super) wake: Condvar,
}

/// The rows, and for whom they are asked.
#[derive(Default)]
pub(super) struct Known {
    /// Uptime of the last look.
    pub(super) looked: Option<Duration>,
    /// There is a thread that asks.
    pub(super) is_asking: bool,
    /// By database: uptime of the answer, and the row.
    pub(super) rows: BTreeMap<String, (Duration, DatabaseFace)>,
}
