//! What the databases of one process share, and what knows nothing of them.

use super::agenda::Calls;
use super::bell::Bell;
use super::patience::Patience;
use crate::base::{Result, lock};
use crate::config::Config;
use crate::metrics::Metrics;
use std::sync::{Arc, Mutex};

/// The services of a process.
pub(super) struct Services {
    /// How many forks lie between this process and the one that loaded us: in a child, what belongs to another generation is dead, and
    /// its locks are not to be touched.
    pub(super) generation: usize,
    pub(super) bell: Bell,
    /// Those that the sealer is to look at.
    pub(super) calls: Calls,
    pub(super) metrics: Arc<Metrics>,
    /// Of last closes.
    pub(super) patience: Patience,
    config: Mutex<Option<Arc<Config>>>,
}

impl Services {
    pub(super) fn new(generation: usize, bell: Bell) -> Services {
        Services {
            generation,
            bell,
            calls: Calls::default(),
            metrics: Arc::new(Metrics::new()),
            patience: Patience::default(),
            config: Mutex::default(),
        }
    }

    /// The configuration of the process, read at first use. Errors with what is wrong in it.
    pub(super) fn config(&self) -> Result<Arc<Config>> {
        let mut at = lock(&self.config);
        if let Some(c) = at.as_ref() {
            return Ok(c.clone());
        }
        let c = Arc::new(Config::load()?);
        *at = Some(c.clone());
        Ok(c)
    }
}
