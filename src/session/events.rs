//! What the shipper reports of one database: counted, told, and left to the sealer where something is to be done.

use super::mirror::Mirror;
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

/// The same of the shipper of a mirror: the replica's own counts and states are not touched.
pub(super) fn on_mirror_event(w: &Arc<Watched>, m: &Mirror, e: &ship::Event) {
    use ship::Event as E;
    let tell = |kind, text: &str, attempts: u32| {
        if attempts.is_power_of_two() {
            log::warn!("walrust: {}: mirror {}: {text}", w.path().display(), m.url());
        }
        let context = json!({"mirror": m.url(), "attempts": attempts});
        w.tell(kind, format!("mirror {}: {text}", m.url()), context);
    };
    let kind_of = |kind: &Kind| match kind {
        Kind::Denied => EventKind::AuthFailure,
        _ => EventKind::UploadError,
    };
    match e {
        E::Uploaded { .. } => {
            if m.is_failure_told.swap(false, Ordering::Relaxed) {
                let text = format!("mirror {}: uploads succeed again", m.url());
                w.tell(EventKind::Recovered, text, json!({"mirror": m.url()}));
            }
        }
        E::Snapshot { .. } => w.ask(Ask::Care),
        E::Failed { kind, error, attempts } => {
            tell(kind_of(kind), error, *attempts);
            m.is_failure_told.store(true, Ordering::Relaxed);
        }
        E::Trouble { kind, error, attempts, duty } if attempts.is_power_of_two() => {
            tell(kind_of(kind), &format!("{}: {error}", duty.as_str()), *attempts);
        }
        E::BreakerOpen { error } => tell(EventKind::CircuitBreakerOpen, error, 1),
        E::BreakerClosed => tell(EventKind::CircuitBreakerClosed, "uploads go on", 1),
        E::Fenced { error } => tell(EventKind::Fenced, error, 1),
        E::Corrupt { error } => tell(EventKind::CorruptionDetected, error, 1),
        E::ReplicaLost => m.begin_anew(),
        E::QueueDamaged { error } => {
            log::warn!("walrust: {}: mirror {}: {error}; a snapshot follows", w.path().display(), m.url());
            m.begin_anew();
        }
        E::Arrived { .. } | E::Merged { .. } | E::Trouble { .. } => {}
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
