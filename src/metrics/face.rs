//! What the page shows: the state of the process and of each of its databases, and the points that a replica can be restored to.

use crate::base::{Timestamp, TxId};
use serde_json::{Value, json};
use std::time::Duration;

/// Points in one answer. A page cannot show more, and a replica may have a hundred thousand.
pub const MOST_POINTS: usize = 400;

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

/// What a row of the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// A database that is streamed, or waits to be.
    Source,
    /// A file that is kept up to date from a replica.
    Copy,
}

impl RowKind {
    /// As the pages and the series spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            RowKind::Source => "source",
            RowKind::Copy => "copy",
        }
    }
}

/// One row of the page.
#[derive(Clone, Debug)]
pub struct DatabaseFace {
    /// The database, as its series name it.
    pub database: String,
    /// What it is.
    pub kind: RowKind,
    /// URL of the replica, without secrets; `None` where none is known yet.
    pub replica: Option<String>,
    /// As in `walrust_status`.
    pub state: &'static str,
    /// One sentence: what that state means.
    pub explained: &'static str,
    /// Whether it is well.
    pub health: HealthStatus,
    /// Age of the oldest commit that the replica does not have; `None` where it is not known.
    pub lag: Option<Duration>,
    /// Bytes captured but not in the replica.
    pub pending_bytes: u64,
    /// The newest transaction.
    pub txid: TxId,
    /// The newest transaction in the replica.
    pub replicated: TxId,
    /// Size of the database.
    pub database_bytes: u64,
    /// Size of the write-ahead log.
    pub wal_bytes: u64,
    /// Size of the spool.
    pub spool_bytes: u64,
    /// The circuit breaker.
    pub breaker: &'static str,
    /// When the last upload succeeded.
    pub last_upload: Option<Timestamp>,
    /// When a periodic check last found the replica good.
    pub last_verified: Option<Timestamp>,
    /// Time between two such checks; zero: none is made.
    pub verify_every: Duration,
    /// The last error, if it still holds.
    pub last_error: Option<String>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Face {
    /// When it was looked up.
    pub now: Timestamp,
    /// Since walrust was loaded.
    pub uptime: Duration,
    /// By name.
    pub databases: Vec<DatabaseFace>,
}

impl Face {
    /// The worst of the databases.
    pub fn health(&self) -> HealthStatus {
        self.databases.iter().map(|d| d.health).max().unwrap_or(HealthStatus::Healthy)
    }

    /// `/status.json`. `since` tells when a database's state was first seen to be what it is.
    pub(super) fn json(&self, since: impl Fn(&str) -> Option<Timestamp>) -> Value {
        let databases: Vec<Value> =
            self.databases.iter().map(|d| d.json(self.now, since(&d.database))).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_seconds": self.uptime.as_secs(),
            "now": self.now.rfc3339(),
            "status": self.health().as_str(),
            "databases": databases,
        })
    }
}

impl DatabaseFace {
    fn json(&self, now: Timestamp, since: Option<Timestamp>) -> Value {
        let lag_ms = self.lag.map(|l| i64::try_from(l.as_millis()).unwrap_or(i64::MAX));
        let safe_until = lag_ms.map(|ms| Timestamp(now.0.saturating_sub(ms)).rfc3339());
        json!({
            "database": self.database,
            "kind": self.kind.as_str(),
            "replica": self.replica,
            "state": self.state,
            "explained": self.explained,
            "health": self.health.as_str(),
            "state_since": since.map(Timestamp::rfc3339),
            "lag_seconds": self.lag.map(|l| l.as_secs_f64()),
            "safe_until": safe_until,
            "pending_bytes": self.pending_bytes,
            "txid": self.txid.0,
            "replicated_txid": self.replicated.0,
            "database_bytes": self.database_bytes,
            "wal_bytes": self.wal_bytes,
            "spool_bytes": self.spool_bytes,
            "breaker": self.breaker,
            "last_upload": self.last_upload.map(Timestamp::rfc3339),
            "last_verified": self.last_verified.map(Timestamp::rfc3339),
            "verify_every_seconds": self.verify_every.as_secs(),
            "last_error": self.last_error,
        })
    }
}

/// One point that can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointFace {
    /// Its TXID.
    pub txid: TxId,
    /// When it was.
    pub time: Timestamp,
    /// Level of the file that ends there: 0 for one upload, 1 to 3 merged, 9 a full copy.
    pub level: u8,
    /// Size of that file.
    pub bytes: u64,
    /// Pages in it, if that is known.
    pub pages: Option<u32>,
}

/// What a replica holds, as it was when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaFace {
    /// When it was asked.
    pub asked: Timestamp,
    /// The points, the oldest first.
    pub points: Vec<PointFace>,
    /// Files in it.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Which points are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// None earlier.
    pub from: Option<Timestamp>,
    /// None later.
    pub to: Option<Timestamp>,
    /// Besides, the newest at or before this.
    pub before: Option<Timestamp>,
}

/// The answer to a question for points. Asking a store takes its time, and nobody waits for it here.
#[derive(Clone, Debug)]
pub enum Points {
    /// No such database here.
    Unknown,
    /// The replica is being asked.
    Asking,
    /// It could not be asked: why.
    Failed(String),
    /// What it said.
    Known(std::sync::Arc<ReplicaFace>),
}

impl PointFace {
    fn json(&self) -> Value {
        json!({
            "txid": self.txid.0,
            "time": self.time.rfc3339(),
            "level": self.level,
            "bytes": self.bytes,
            "pages": self.pages,
        })
    }
}

impl ReplicaFace {
    pub(super) fn json(&self, span: Span) -> Value {
        let shown = thinned(&self.points, span, MOST_POINTS);
        let before = span.before.map(|t| self.points.iter().rfind(|p| p.time <= t).map(PointFace::json));
        let mut said = json!({
            "asking": false,
            "asked": self.asked.rfc3339(),
            "count": self.points.len(),
            "files": self.files,
            "bytes": self.bytes,
            "first": self.points.first().map(PointFace::json),
            "last": self.points.last().map(PointFace::json),
            "within": within(&self.points, span).count(),
            "points": shown.iter().map(|p| p.json()).collect::<Vec<_>>(),
        });
        if let (Some(fields), Some(point)) = (said.as_object_mut(), before) {
            fields.insert("before".into(), point.unwrap_or(Value::Null));
        }
        said
    }
}

fn within(points: &[PointFace], span: Span) -> impl Iterator<Item = &PointFace> {
    points
        .iter()
        .filter(move |p| span.from.is_none_or(|t| p.time >= t) && span.to.is_none_or(|t| p.time <= t))
}

/// The points of a span. Of more than `most`, the newest of each of `most` equal parts of the span.
fn thinned(points: &[PointFace], span: Span, most: usize) -> Vec<&PointFace> {
    let all: Vec<&PointFace> = within(points, span).collect();
    let (Some(first), Some(last)) = (all.first(), all.last()) else { return all };
    if all.len() <= most {
        return all;
    }
    let parts = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
    let width = (last.time.0.saturating_sub(first.time.0) / parts).saturating_add(1);
    let part = |p: &PointFace| p.time.0.saturating_sub(first.time.0) / width;
    let mut kept: Vec<&PointFace> = Vec::new();
    for p in &all {
        match kept.last_mut() {
            Some(at) if part(at) == part(p) => *at = p,
            _ => kept.push(p),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(n: u64, ms: i64) -> PointFace {
        PointFace { txid: TxId(n), time: Timestamp(ms), level: 0, bytes: 1, pages: None }
    }

    #[test]
    fn a_hundred_thousand_points_are_thinned_and_the_ends_are_kept() {
        let all: Vec<PointFace> = (1..=100_000).map(|n| point(n, n as i64 * 864)).collect();
        let shown = thinned(&all, Span::default(), 400);
        assert!((300..=400).contains(&shown.len()), "{}", shown.len());
        assert_eq!(shown.last().map(|p| p.txid), Some(TxId(100_000)));
        assert!(shown.windows(2).all(|w| w[0].time < w[1].time));
        let span = Span { from: Some(Timestamp(864_000)), to: Some(Timestamp(864_000 + 8640)), before: None };
        let shown = thinned(&all, span, 400);
        assert_eq!((shown.len(), shown[0].txid), (11, TxId(1000)), "a short span is shown whole");
        assert!(thinned(&[], Span::default(), 400).is_empty());
        let at_once: Vec<PointFace> = (1..=1000).map(|n| point(n, 7)).collect();
        assert_eq!(thinned(&at_once, Span::default(), 400), [&at_once[999]]);
        // Clocks that jumped.
        let far = [point(1, i64::MIN), point(2, 0), point(3, i64::MAX)];
        assert!(thinned(&far, Span::default(), 2).len() <= 3);
    }

    #[test]
    fn the_point_before_a_time_is_exact() {
        let points = (1..=5000).map(|n| point(n, n as i64 * 1000)).collect();
        let held = ReplicaFace { asked: Timestamp(0), points, files: 1, bytes: 2 };
        let before = |t| held.json(Span { before: Some(Timestamp(t)), ..Span::default() })["before"].clone();
        assert_eq!(before(1_234_567)["txid"], 1234);
        assert_eq!(before(1000)["txid"], 1);
        assert_eq!(before(999), Value::Null);
        assert_eq!(before(i64::MAX)["txid"], 5000);
        assert!(held.json(Span::default()).get("before").is_none());
    }
}
