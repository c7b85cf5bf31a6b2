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
    /// A further replica of a database that is streamed.
    Mirror,
    /// A replica, looked at without the process that streams to it: what only that one knows is not known.
    Replica,
}

impl RowKind {
    /// As the pages and the series spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            RowKind::Source => "source",
            RowKind::Copy => "copy",
            RowKind::Mirror => "mirror",
            RowKind::Replica => "replica",
        }
    }
}

/// Who tells of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// The process that shows it.
    Own,
    /// Another process of this machine, by its number.
    Process(i32),
    /// The spool: its process was not asked, or did not answer, or there is none.
    Spool,
}

impl Teller {
    /// `None` of what the process that shows it knows itself.
    pub fn text(self) -> Option<String> {
        match self {
            Teller::Own => None,
            Teller::Process(pid) => Some(format!("process {pid} of this machine")),
            Teller::Spool => Some("the spool".to_string()),
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
    /// Of a [`RowKind::Mirror`]: the database, of which `database` is one of several replicas.
    pub mirror_of: Option<String>,
    /// Who tells of it.
    pub told_by: Teller,
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
    /// Bytes uploaded since the process began; `None` where that is another process's to tell.
    pub uploaded_bytes: Option<u64>,
    /// Requests to the replica's store; `None` where nobody counted them: a directory, or a replica that was not opened.
    pub requests: Option<RequestsFace>,
    /// When the last upload succeeded.
    pub last_upload: Option<Timestamp>,
    /// When a periodic check last found the replica good.
    pub last_verified: Option<Timestamp>,
    /// Time between two such checks; zero: none is made.
    pub verify_every: Duration,
    /// The last error, if it still holds.
    pub last_error: Option<String>,
    /// What the replica itself tells; of a [`RowKind::Replica`].
    pub seen: Option<SeenFace>,
}

/// What a replica tells, as it was when it was last asked with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenFace {
    /// When that was.
    pub asked: Timestamp,
    /// Time of the oldest point.
    pub oldest: Option<Timestamp>,
    /// Time of the newest point.
    pub newest: Option<Timestamp>,
    /// Points that can be restored.
    pub points: usize,
    /// Labels.
    pub labels: usize,
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
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

    /// The rows as `/status.json` has them, for another process.
    pub fn rows_json(&self) -> Value {
        self.databases.iter().map(|d| d.json(self.now, None)).collect()
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
    /// Whether a process tells, and not a replica alone.
    pub(super) fn is_told_by_a_process(&self) -> bool {
        self.kind != RowKind::Replica
    }

    fn json(&self, now: Timestamp, since: Option<Timestamp>) -> Value {
        let lag_ms = self.lag.map(|l| i64::try_from(l.as_millis()).unwrap_or(i64::MAX));
        let safe_until = lag_ms.map(|ms| Timestamp(now.0.saturating_sub(ms)).rfc3339());
        let process = self.is_told_by_a_process();
        let known = |n: u64| process.then_some(n);
        json!({
            "database": self.database,
            "kind": self.kind.as_str(),
            "told_by": self.told_by.text(),
            "replica": self.replica,
            "state": self.state,
            "explained": self.explained,
            "health": self.health.as_str(),
            "state_since": since.map(Timestamp::rfc3339),
            "lag_seconds": self.lag.map(|l| l.as_secs_f64()),
            "safe_until": safe_until,
            "pending_bytes": known(self.pending_bytes),
            "txid": known(self.txid.0),
            "replicated_txid": self.replicated.0,
            "database_bytes": known(self.database_bytes),
            "wal_bytes": known(self.wal_bytes),
            "spool_bytes": known(self.spool_bytes),
            "breaker": process.then_some(self.breaker),
            "uploaded_bytes": self.uploaded_bytes,
            "requests": self.requests.as_ref().map(RequestsFace::json),
            "last_upload": self.last_upload.map(Timestamp::rfc3339),
            "last_verified": self.last_verified.map(Timestamp::rfc3339),
            "verify_every_seconds": self.verify_every.as_secs(),
            "last_error": self.last_error,
            "seen": self.seen.map(|s| s.json(now)),
        })
    }
}

/// What the process asked of a replica's store since it began.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestsFace {
    /// From when on they were counted: a restart begins anew.
    pub since: Timestamp,
    /// PUT and LIST.
    pub puts: u64,
    /// GET and HEAD.
    pub gets: u64,
    /// What they cost in dollars, and by whose prices; `None` where no price is known.
    pub cost: Option<(f64, String)>,
}

impl RequestsFace {
    fn json(&self) -> Value {
        json!({
            "since": self.since.rfc3339(),
            "put_and_list": self.puts,
            "get_and_head": self.gets,
            "dollars": self.cost.as_ref().map(|(dollars, _)| dollars),
            "prices": self.cost.as_ref().map(|(_, of)| of),
        })
    }
}

impl SeenFace {
    pub(super) fn json(&self, now: Timestamp) -> Value {
        let age = self.newest.map(|t| now.since(t).as_secs_f64());
        json!({
            "asked": self.asked.rfc3339(),
            "oldest": self.oldest.map(Timestamp::rfc3339),
            "newest": self.newest.map(Timestamp::rfc3339),
            "newest_age_seconds": age,
            "points": self.points,
            "labels": self.labels,
            "files": self.files,
            "bytes": self.bytes,
        })
    }
}

/// One point that can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The labels that it has.
    pub labels: Vec<String>,
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
    /// Points from this time on.
    pub from: Option<Timestamp>,
    /// Points up to this time.
    pub to: Option<Timestamp>,
    /// The newest point at or before this time, beside those.
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
            "labels": self.labels,
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

/// The points of a span. Of more than `most`, those with a label, and the newest of each of `most` equal parts of the span.
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
            Some(at) if part(at) == part(p) && at.labels.is_empty() => *at = p,
            _ => kept.push(p),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(n: u64, ms: i64) -> PointFace {
        PointFace { txid: TxId(n), time: Timestamp(ms), level: 0, bytes: 1, pages: None, labels: Vec::new() }
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
