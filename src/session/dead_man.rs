//! Whether the process has a heartbeat, and when the next beat is due; [`super::heartbeat`] decides whether it is deserved.

use crate::base::Webhook;
use std::sync::Mutex;
use std::time::Duration;

/// Whether there is one.
#[derive(Default)]
pub(super) enum Switch {
    /// The configuration was not looked at yet.
    #[default]
    Unknown,
    /// None is asked for.
    Off,
    /// To this endpoint.
    To {
        /// Where.
        hook: Webhook,
        /// How often.
        every: Duration,
        /// Uptime at which the next one is due.
        due: Duration,
    },
}

/// The dead man's switch of a process.
#[derive(Default)]
pub(super) struct DeadMan(pub(super) Mutex<Switch>);
