//! The health page: one line of JSON, for machines that ask whether all is well.

use crate::base::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether all is well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HealthStatus {
    /// Every database is in its replica, or on the way.
    Healthy,
    /// Something lags or is paused, and heals by itself.
    Degraded,
    /// A database is not being replicated. Answered with status 503.
    Unhealthy,
}

impl HealthStatus {
    /// As the pages spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// One database on the health page.
#[derive(Clone, PartialEq, Debug)]
pub struct DatabaseHealth {
    /// As in `walrust_status`.
    pub state: String,
    /// Age of the oldest commit the replica does not have.
    pub lag_seconds: f64,
    /// Bytes captured but not in the replica.
    pub pending_bytes: u64,
    /// The newest transaction.
    pub txid: u64,
    /// The newest transaction in the replica.
    pub replicated_txid: u64,
    /// When the last upload succeeded.
    pub last_upload: Option<Timestamp>,
    /// The last error, if it still holds.
    pub last_error: Option<String>,
}

/// The health page.
#[derive(Clone, PartialEq, Debug)]
pub struct Health {
    /// The worst of the databases.
    pub status: HealthStatus,
    /// Since walrust was loaded.
    pub uptime: Duration,
    /// By name.
    pub databases: BTreeMap<String, DatabaseHealth>,
}

impl Health {
    /// One line.
    pub(super) fn json(&self) -> String {
        let one = |d: &DatabaseHealth| {
            json!({
                "state": d.state,
                "lag_seconds": d.lag_seconds,
                "pending_bytes": d.pending_bytes,
                "txid": d.txid,
                "replicated_txid": d.replicated_txid,
                "last_upload": d.last_upload.map(Timestamp::rfc3339),
                "last_error": d.last_error,
            })
        };
        let databases: Map<String, Value> = self.databases.iter().map(|(n, d)| (n.clone(), one(d))).collect();
        let uptime = self.uptime.as_secs_f64();
        let status = self.status.as_str();
        format!("{}\n", json!({ "status": status, "uptime_seconds": uptime, "databases": databases }))
    }
}
