//! What the outside sees: counters, gauges, the health page, webhooks.
//!
//! Counters are raised where things happen, one atomic operation each; gauges are brought up to date when
//! somebody looks. Webhooks are a database's own setting; what belongs to no watched database is told to
//! those of the process.

use super::care;
use super::engine::{Engine, engine, lock};
use super::watched::{Role, Row, Watched};
use crate::base::event::EventKind;
use crate::base::{Error, Kind, Result, clock};
use crate::metrics::{self, Breaker, DatabaseHealth, Health, HealthStatus};
use crate::notify::{Event, Notifier};
use crate::ship::{self, State};
use crate::store::BreakerState;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A lag beyond this is unhealthy, if the database's own interval is not longer.
const LARGE_LAG: Duration = Duration::from_secs(60);
/// How long a function that has just found damage waits for the webhooks: its process may end right after.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What the shipper reports: counted, told, and looked after.
pub(super) fn on_event(w: &Arc<Watched>, e: &ship::Event) {
    use ship::Event as E;
    let m = &w.metrics;
    match e {
        E::Uploaded { bytes, took, .. } => m.uploaded(*bytes, *took, clock::now()),
        E::ReplicaLost => super::start::restart(w, "the replica lost what was shipped"),
        E::Merged { .. } => drop(m.merges.inc()),
        E::Snapshot { txid, bytes } => {
            m.snapshots.inc();
            w.tell(
                EventKind::SnapshotComplete,
                format!("snapshot of TXID {txid} is in the replica"),
                json!({"txid": txid.0, "bytes": bytes}),
            );
            care::after_snapshot(w);
        }
        E::Failed { kind, error, attempts } => {
            m.upload_error(*kind);
            if matches!(kind, Kind::Retry | Kind::Timeout) {
                m.upload_retries.inc();
            }
            if *kind != Kind::Denied {
                log::warn!("walrust: {}: {error}", w.path().display());
            }
            let event = if *kind == Kind::Denied { EventKind::AuthFailure } else { EventKind::UploadError };
            w.tell(event, error.clone(), json!({"attempts": attempts}));
        }
        E::Trouble { duty, kind, error, attempts } => w.note_trouble(*duty, *kind, error, *attempts),
        E::BreakerOpen { error } => w.tell(EventKind::CircuitBreakerOpen, error.clone(), json!({})),
        E::BreakerClosed => w.tell(EventKind::CircuitBreakerClosed, "uploads go on".to_string(), json!({})),
        E::Fenced { error } => {
            m.upload_error(Kind::Fenced);
            log::error!("walrust: {}: {error}", w.path().display());
            w.tell(EventKind::Fenced, error.clone(), json!({}));
        }
        E::QueueDamaged { error } => super::start::queue_damaged(w, error.clone()),
        E::Corrupt { error } => w.tell(EventKind::CorruptionDetected, error.clone(), json!({})),
    }
}

/// The name that a database's series bear.
pub(super) fn series(path: &Path) -> String {
    path.display().to_string()
}

fn refresh(w: &Watched) -> Row {
    let row = w.row();
    let m = &w.metrics;
    let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    m.txid.set(row.txid.as_i64());
    m.replicated_txid.set(row.replicated.as_i64());
    m.lag.set(row.lag.as_secs_f64());
    m.pending.set(gauge(row.pending_bytes));
    m.spool.set(gauge(row.spool_bytes));
    m.wal.set(gauge(row.wal_bytes));
    m.database.set(gauge(std::fs::metadata(w.path()).map_or(0, |f| f.len())));
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

fn health_of(w: &Watched, row: &Row) -> HealthStatus {
    let large = LARGE_LAG.max(w.settings.interval * 3);
    match row.state {
        State::Failed | State::Fenced | State::Paused => HealthStatus::Unhealthy,
        State::Standby if w.ships_elsewhere().is_some() => HealthStatus::Unhealthy,
        State::Snapshotting | State::Standby => HealthStatus::Healthy,
        State::Streaming | State::CatchingUp if row.lag > large => HealthStatus::Unhealthy,
        State::Streaming | State::CatchingUp if row.last_error.is_some() => HealthStatus::Degraded,
        State::Streaming | State::CatchingUp => HealthStatus::Healthy,
    }
}

impl Engine {
    /// The exposition, brought up to date.
    pub fn metrics_text(&self) -> String {
        for w in self.watched() {
            refresh(&w);
        }
        self.metrics().render()
    }

    /// The health page. Databases that are configured and could not be watched are on it, too.
    pub fn health(&self) -> Health {
        let mut status = HealthStatus::Healthy;
        let mut databases = BTreeMap::new();
        for w in self.watched() {
            let row = refresh(&w);
            status = status.max(health_of(&w, &row));
            let name = series(&row.database);
            databases.insert(
                name,
                DatabaseHealth {
                    state: row.state.as_str().to_string(),
                    lag_seconds: row.lag.as_secs_f64(),
                    pending_bytes: row.pending_bytes,
                    txid: row.txid.0,
                    replicated_txid: row.replicated.0,
                    last_upload: row.last_upload,
                    last_error: row.last_error,
                },
            );
        }
        let failed = self.failures().into_iter().map(|(path, why)| (path, State::Failed, why));
        let wished = self
            .wishes()
            .into_iter()
            .map(|w| (w.database, if w.is_failed { State::Failed } else { State::CatchingUp }, w.why));
        for (path, state, why) in failed.chain(wished) {
            if state == State::Failed {
                status = HealthStatus::Unhealthy;
            }
            databases.insert(
                series(&path),
                DatabaseHealth {
                    state: state.as_str().to_string(),
                    lag_seconds: 0.0,
                    pending_bytes: 0,
                    txid: 0,
                    replicated_txid: 0,
                    last_upload: None,
                    last_error: Some(why),
                },
            );
        }
        Health { status, uptime: self.metrics().uptime(), databases }
    }

    /// Takes up what the settings say of the process: the metrics address. One that cannot be listened at is
    /// logged and tried again at the next watch: another worker of the same app may have it, and replication
    /// does not depend on it.
    pub(super) fn use_process_settings(&self) -> Result<()> {
        let Some(address) = self.config()?.process()?.settings.metrics_listen else { return Ok(()) };
        let mut at = lock(&self.server);
        if at.is_some() {
            return Ok(());
        }
        match metrics::serve(&address, Arc::new(Pages)) {
            Ok(server) => *at = Some(server),
            Err(e) => log::error!("walrust: {e}"),
        }
        Ok(())
    }

    /// Where events go that belong to no watched database: the process's webhooks.
    fn process_notifier(&self) -> Option<Notifier> {
        let settings = self.config().and_then(|c| c.process()).ok()?.settings;
        (!settings.webhooks.is_empty()).then(|| Notifier::new(settings.webhooks))
    }

    /// Tells the webhooks that a replica holds damaged bytes: those of the database that is streamed there, else
    /// the process's. Waits a moment for them.
    pub fn tell_corrupt(&self, replica: &str, e: &Error) {
        self.tell_damage(replica, &e.to_string(), json!({}));
    }

    /// [`Engine::tell_corrupt`] with details.
    pub fn tell_damage(&self, replica: &str, message: &str, details: serde_json::Value) {
        let watched = self.watched().into_iter().find(|w| w.replica() == replica);
        let mut event = match &watched {
            Some(w) => Event::new(EventKind::CorruptionDetected, series(w.path()), message),
            None => Event::new(EventKind::CorruptionDetected, replica, message),
        };
        if let serde_json::Value::Object(fields) = details {
            event.context = fields;
        }
        let event = event.with("replica", replica);
        let notifier = match &watched {
            Some(w) => w.notifier.clone(),
            None => self.process_notifier(),
        };
        if let Some(n) = notifier {
            n.send(&event);
            n.flush(LAST_WORDS);
        }
    }
}

impl Watched {
    /// Tells the database's webhooks.
    pub(super) fn tell(&self, kind: EventKind, message: String, context: serde_json::Value) {
        if kind == EventKind::HistoryGap {
            self.metrics.history_gaps.inc();
        }
        let Some(n) = &self.notifier else { return };
        let mut event = Event::new(kind, series(self.path()), message);
        if let serde_json::Value::Object(fields) = context {
            event.context = fields;
        }
        n.send(&event);
    }

    /// A duty beside the stream failed: counted each time; told the first time, and then at twice as many tries each.
    pub(super) fn note_trouble(&self, duty: ship::Duty, kind: Kind, error: &str, attempts: u32) {
        self.metrics.upload_error(kind);
        if attempts.is_power_of_two() {
            log::warn!("walrust: {}: {}: {error}", self.path().display(), duty.as_str());
            let event = if kind == Kind::Denied { EventKind::AuthFailure } else { EventKind::UploadError };
            let message = format!("{}: {error}; the stream goes on", duty.as_str());
            self.tell(event, message, json!({"attempts": attempts, "duty": duty.as_str()}));
        }
    }

    /// Whether this process ships it and is able to.
    pub fn ships(&self) -> bool {
        self.role() == Role::Shipper && !self.link.is_stopped()
    }
}

struct Pages;

impl metrics::Pages for Pages {
    fn metrics(&self) -> String {
        engine().metrics_text()
    }

    fn health(&self) -> Health {
        engine().health()
    }
}
