//! What `walrust_status` shows of one database: the facts are gathered here, and get their words in [`super::told`].

use super::job::Job;
use super::lag::is_shipped;
use super::phase::{Part, Role};
use super::told::{self, Facts, Told};
use super::trouble::Trouble;
use super::watched::Watched;
use crate::base::{Timestamp, TxId, lock};
use crate::metrics::{Breaker, HealthStatus};
use crate::ship::{Protection, State};
use crate::store::BreakerState;
use std::path::PathBuf;
use std::time::Duration;

/// A row of `walrust_status`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Path of the database.
    pub database: PathBuf,
    /// URL of the replica.
    pub replica: String,
    /// See surface.
    pub state: State,
    /// Newest TXID cut.
    pub txid: TxId,
    /// Newest TXID up to which all is durable.
    pub replicated: TxId,
    /// Age of the oldest commit that is not durable.
    pub lag: Duration,
    /// Bytes sealed or in the WAL and not yet durable.
    pub pending_bytes: u64,
    /// Size of the WAL file.
    pub wal_bytes: u64,
    /// Size of the spool.
    pub spool_bytes: u64,
    /// The breaker's state.
    pub breaker: BreakerState,
    /// When the last upload was acknowledged.
    pub last_upload: Option<Timestamp>,
    /// The newest error not followed by a success.
    pub last_error: Option<String>,
    /// What the health page says of it.
    pub health: HealthStatus,
    /// What keeps a second machine from writing to the replica; `None` of a process that does not ship.
    pub protection: Option<Protection>,
}

impl Watched {
    fn facts(&self, all_there: bool) -> Facts {
        let status = self.link.status();
        let is_unreadable = self.role() == Role::Standby && self.is_unreadable();
        Facts {
            part: self.part(),
            continuity: self.tracker.sync_state(),
            shipper: status.state,
            shipper_error: status.last_error.as_ref().map(|(_, e)| e.clone()),
            reading_error: lock(&self.unread).clone(),
            is_reading: self.job.job() == Some(Job::Reading),
            is_exclusive: self.handles.is_exclusive(),
            not_captured: self.why_not_captured().or_else(|| self.services.bell.refused()),
            overflow: self.overflow(),
            elsewhere: self.ships_elsewhere(),
            all_there,
            // What was changed past us is noticed within a second, and read anew.
            is_changed: self.is_changed_past_us(self.handles.header().as_ref()) || self.spool.is_gone(),
            spool_error: self.troubles.spool_error(),
            seal_error: self.tracker.seal_error(),
            is_unreadable,
            nobody_ships: is_unreadable && self.spool.ship_lock().holder().is_ok_and(|pid| pid.is_none()),
            duties: status.duties.trouble(),
            finding: lock(&self.finding).clone().or_else(|| lock(&self.drill_finding).clone()),
        }
    }

    fn is_all_there(&self, replicated: TxId) -> bool {
        self.unsealed_bytes() == 0 && is_shipped(self.tracker.position().as_ref(), replicated)
    }

    /// What people are told now.
    pub(super) fn told(&self) -> Told {
        told::tell(&self.facts(self.is_all_there(self.replicated())))
    }

    /// The state that `walrust_status` shows.
    pub fn state(&self) -> State {
        self.told().state
    }

    /// What to tell while the spool is full and the replica does not answer.
    pub(super) fn overflow(&self) -> Option<String> {
        if self.troubles.get() != Trouble::SpoolFull {
            return None;
        }
        let (_, store) = self.link.status().last_error?;
        Some(format!(
            "spool_limit ({} bytes) is reached: newer commits are only in the database, and a snapshot follows when \
             the replica answers ({store})",
            self.settings().spool_limit.0
        ))
    }

    /// What `walrust_status` shows.
    pub fn row(&self) -> Row {
        // Another process may have sealed what this one has not noticed.
        self.tracker.refresh();
        self.caught_up();
        let status = self.link.status();
        let position = self.tracker.position();
        let replicated = self.replicated();
        let all_there = self.is_all_there(replicated);
        let facts = self.facts(all_there);
        let told = told::tell(&facts);
        let lag = self.lag(replicated, all_there);
        let interval = self.settings().interval;
        Row {
            database: self.path().to_path_buf(),
            replica: self.replica().to_string(),
            state: told.state,
            // Another process may have cut what this one has shipped.
            txid: position.map(|p| p.txid).unwrap_or_default().max(replicated),
            replicated,
            lag,
            // (The queue's last file may be about to be put away.)
            pending_bytes: if all_there { 0 } else { self.spool.bytes_waiting() + self.unsealed_bytes() },
            wal_bytes: self.wal_bytes(),
            spool_bytes: self.spool.bytes(),
            breaker: status.breaker,
            last_upload: status.last_upload.or_else(|| self.shipped().ok().flatten().map(|s| s.time)),
            health: told::health(&told, facts.elsewhere.is_some(), lag, interval),
            last_error: told.error,
            protection: (self.role() != Role::Standby).then_some(status.protection),
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self) -> Row {
        let row = self.row();
        let m = &self.metrics;
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        m.txid.set(row.txid.as_i64());
        m.replicated_txid.set(row.replicated.as_i64());
        m.lag.set(row.lag.as_secs_f64());
        m.pending.set(gauge(row.pending_bytes));
        m.spool.set(gauge(row.spool_bytes));
        m.wal.set(gauge(row.wal_bytes));
        m.database.set(gauge(std::fs::metadata(self.path()).map_or(0, |f| f.len())));
        if let Some(t) = row.last_upload {
            m.last_upload.set(t.0 as f64 / 1000.0);
        }
        m.set_breaker(match row.breaker {
            BreakerState::Closed => Breaker::Closed,
            BreakerState::Open => Breaker::Open,
            BreakerState::HalfOpen => Breaker::HalfOpen,
        });
        m.set_state(row.state.as_str());
        row
    }

    /// Whether nothing is captured any more until somebody does something about it.
    pub(super) fn is_over(&self) -> bool {
        let stops = matches!(self.link.status().state, State::Fenced | State::Failed | State::Paused);
        self.link.is_stopped()
            || match self.part() {
                Part::Failed { .. } => true,
                Part::Standby { .. } => false,
                Part::Joining(_) => stops,
                Part::Shipping => stops || self.overflow().is_some(),
            }
    }
}
