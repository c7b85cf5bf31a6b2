//! The dead man's switch: `heartbeat_url` is asked at its interval for as long as what was committed is in the replicas. Who does not hear
//! of this process any more learns that it has ended, hangs, or has lost its store, also where the machine itself is gone.
//!
//! The sealer asks for each beat, so that a process whose sealer hangs has none. A beat that is due and not deserved waits until it is.

use super::dead_man::Switch;
use super::listening::may_serve;
use super::registry::Engine;
use super::status::Row;
use crate::base::{clock, lock};
use crate::metrics::HealthStatus;
use crate::notify;
use crate::ship::State;
use std::time::Duration;

/// Commits that are younger are on their way.
const ON_ITS_WAY: Duration = Duration::from_secs(5);
/// Between two looks at what keeps a beat from being deserved.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether a database does nothing to stop the heartbeat. `interval`: between its uploads.
fn is_well(row: &Row, interval: Duration) -> bool {
    row.health == HealthStatus::Healthy && row.lag <= ON_ITS_WAY.max(interval * 3)
}

impl Engine {
    /// Has a beat sent, if one is due and deserved. (By the sealer: never waits.)
    pub(super) fn beat(&self) {
        let now = clock::uptime();
        let mut beat = lock(&self.dead_man.0);
        if let Switch::Unknown = *beat {
            *beat = self.asked_for(now);
        }
        let Switch::To { hook, every, due } = &mut *beat else { return };
        if now < *due {
            return;
        }
        if self.is_all_well() {
            *due = now + *every;
            notify::beat(hook);
        } else {
            *due = now + LOOK_AGAIN;
        }
    }

    fn asked_for(&self, now: Duration) -> Switch {
        // (What is wrong in the configuration is told by whoever uses it.)
        let settings = self.config().and_then(|c| c.process()).map(|r| r.settings);
        match settings {
            Ok(s) if may_serve() => match s.heartbeat_url {
                Some(hook) => Switch::To { hook, every: s.heartbeat_interval, due: now },
                None => Switch::Off,
            },
            _ => Switch::Off,
        }
    }

    /// Whether there is something to replicate, and all of it is.
    fn is_all_well(&self) -> bool {
        let (watched, unwatched) = self.all();
        !watched.is_empty()
            && watched.iter().all(|w| is_well(&w.row(), w.settings().interval))
            && unwatched.iter().all(|wish| wish.state() != State::Failed)
            && self.followers().iter().all(|f| !matches!(f.state, State::Failed | State::Fenced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::TxId;
    use crate::store::BreakerState;

    #[test]
    fn a_beat_is_deserved_by_what_is_in_the_replica() {
        let row = |health, lag_s: u64| Row {
            database: "/x.db".into(),
            replica: String::new(),
            state: State::Streaming,
            txid: TxId(1),
            replicated: TxId(1),
            lag: Duration::from_secs(lag_s),
            pending_bytes: 0,
            wal_bytes: 0,
            spool_bytes: 0,
            breaker: BreakerState::Closed,
            last_upload: None,
            last_error: None,
            health,
            protection: None,
        };
        use HealthStatus::{Degraded, Healthy, Unhealthy};
        for (health, lag_s, interval_s, well) in [
            (Healthy, 0, 1, true),
            (Healthy, 5, 1, true),
            (Healthy, 6, 1, false),
            (Healthy, 30, 10, true),
            (Healthy, 31, 10, false),
            (Degraded, 0, 1, false),
            (Unhealthy, 0, 1, false),
        ] {
            assert_eq!(
                is_well(&row(health, lag_s), Duration::from_secs(interval_s)),
                well,
                "{health:?} {lag_s} {interval_s}"
            );
        }
    }
}
