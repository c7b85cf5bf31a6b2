//! What the shipper reports of one database: counted, told, and left to the sealer where something is to be done.

use super::watched::{Ask, Watched};
use crate::base::event::EventKind;
use crate::base::{Kind, clock, lock};
use crate::capture::Continuity;
use crate::ship;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Called on the runtime's thread: never waits.
pub(super) fn on_event(w: &Arc<Watched>, e: &ship::Event) {
    use ship::Event as E;
    let m = &w.metrics;
    match e {
        E::Uploaded { bytes, took, .. } => {
            m.uploaded(*bytes, *took, clock::now());
            if w.tracker.sync_state() == Continuity::Kept {
                *lock(&w.unread) = None;
            }
            if w.is_failure_told.swap(false, Ordering::Relaxed) {
                w.tell(EventKind::Recovered, "uploads succeed again".to_string(), json!({}));
            }
        }
        E::ReplicaLost => w.ask(Ask::Restart("the replica lost what was shipped")),
        E::Arrived { before, path } => w.look_at_schema(*before, path),
        E::Merged { .. } => drop(m.merges.inc()),
        E::Snapshot { txid, bytes } => {
            m.snapshots.inc();
            w.tell(
                EventKind::SnapshotComplete,
                format!("snapshot of TXID {txid} is in the replica"),
                json!({"txid": txid.0, "bytes": bytes}),
            );
            w.ask(Ask::Care);
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
            w.is_failure_told.store(true, Ordering::Relaxed);
        }
        E::Trouble { duty, kind, error, attempts } => note_trouble(w, *duty, *kind, error, *attempts),
        E::BreakerOpen { error } => w.tell(EventKind::CircuitBreakerOpen, error.clone(), json!({})),
        E::BreakerClosed => w.tell(EventKind::CircuitBreakerClosed, "uploads go on".to_string(), json!({})),
        E::Fenced { error } => {
            m.upload_error(Kind::Fenced);
            log::error!("walrust: {}: {error}", w.path().display());
            w.tell(EventKind::Fenced, error.clone(), json!({}));
        }
        E::QueueDamaged { error } => w.ask(Ask::ClearQueue(error.clone())),
        E::Corrupt { error } => w.tell(EventKind::CorruptionDetected, error.clone(), json!({})),
    }
}

/// A duty beside the stream failed: counted each time; told the first time, and then at twice as many tries each.
pub(super) fn note_trouble(w: &Watched, duty: ship::Duty, kind: Kind, error: &str, attempts: u32) {
    w.metrics.upload_error(kind);
    if attempts.is_power_of_two() {
        log::warn!("walrust: {}: {}: {error}", w.path().display(), duty.as_str());
        let event = if kind == Kind::Denied { EventKind::AuthFailure } else { EventKind::UploadError };
        let message = format!("{}: {error}; the stream goes on", duty.as_str());
        w.tell(event, message, json!({"attempts": attempts, "duty": duty.as_str()}));
    }
}
