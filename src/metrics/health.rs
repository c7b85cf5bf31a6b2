//! The health page: one line of JSON, for machines that ask whether all is well.

use super::face::{DatabaseFace, Face, HealthStatus};
use crate::base::Timestamp;
use serde_json::{Map, Value, json};

/// The health page: whether all is well, and one line that says so of each database and followed file.
pub(super) fn line(face: &Face) -> (HealthStatus, String) {
    let status = face.health();
    let one = |d: &DatabaseFace| {
        if let Some(seen) = &d.seen {
            return json!({
                "state": d.state,
                "seen": seen.json(face.now),
                "last_verified": d.last_verified.map(Timestamp::rfc3339),
                "last_error": d.last_error,
            });
        }
        if !d.is_told_by_a_process() {
            return json!({ "state": d.state, "last_error": d.last_error });
        }
        json!({
            "state": d.state,
            "lag_seconds": d.lag.map(|lag| lag.as_secs_f64()),
            "pending_bytes": d.pending_bytes,
            "txid": d.txid.0,
            "replicated_txid": d.replicated.0,
            "last_upload": d.last_upload.map(Timestamp::rfc3339),
            "last_error": d.last_error,
        })
    };
    let databases: Map<String, Value> = face.databases.iter().map(|d| (d.database.clone(), one(d))).collect();
    let uptime = face.uptime.as_secs_f64();
    (
        status,
        format!(
            "{}\n",
            json!({ "status": status.as_str(), "uptime_seconds": uptime, "databases": databases })
        ),
    )
}
