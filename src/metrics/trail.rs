//! The last hour of each database's lag and pending bytes, for the page's lines: kept from the first look at the page on, for as long as
//! somebody looks, and an hour longer.
//!
//! A sample has eight bytes, so that 200 databases take 600 KB. Pure but for the owner's clock.

use super::face::Face;
use crate::base::Timestamp;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Between two samples.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// How far back they go, and how long after the last look they are taken.
const KEPT: Duration = Duration::from_secs(3600);
/// Of one database.
const MOST_SAMPLES: usize = 360;
/// Databases of which samples are kept.
const MOST_DATABASES: usize = 1000;

#[derive(Debug, Default)]
struct Line {
    state: &'static str,
    since: Timestamp,
    /// Lag in seconds (negative: not known), pending bytes.
    samples: VecDeque<(f32, f32)>,
}

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// Uptime of the last look of a person.
    looked: Option<Duration>,
    /// Uptime of the last sample.
    sampled: Option<Duration>,
    lines: HashMap<String, Line>,
    begun: Timestamp,
}

impl Trail {
    /// Somebody looks. Whether samples are to be taken from now on, which was not so before.
    pub(super) fn look(&mut self, uptime: Duration, now: Timestamp) -> bool {
        let is_first = self.looked.is_none();
        if is_first {
            self.begun = now;
        }
        self.looked = Some(uptime);
        is_first
    }

    /// Whether a sample is due. Where nobody has looked for an hour, all is forgotten, and `None` says so.
    pub(super) fn is_due(&mut self, uptime: Duration) -> Option<bool> {
        let looked = self.looked?;
        if uptime.saturating_sub(looked) > KEPT {
            *self = Trail::default();
            return None;
        }
        let last = self.sampled.map_or(STEP, |at| uptime.saturating_sub(at));
        Some(last + Duration::from_millis(500) >= STEP)
    }

    /// Takes up a sample, if one is due.
    pub(super) fn note(&mut self, face: &Face, uptime: Duration) {
        if self.is_due(uptime) != Some(true) {
            return;
        }
        self.sampled = Some(uptime);
        self.lines.retain(|name, _| face.databases.iter().any(|d| d.database == *name));
        for d in &face.databases {
            if self.lines.len() >= MOST_DATABASES && !self.lines.contains_key(&d.database) {
                continue;
            }
            let line = self.lines.entry(d.database.clone()).or_default();
            if line.state != d.state {
                (line.state, line.since) = (d.state, face.now);
            }
            if line.samples.len() >= MOST_SAMPLES {
                line.samples.pop_front();
            }
            let lag = d.lag.map_or(-1.0, |l| l.as_secs_f32());
            line.samples.push_back((lag, d.pending_bytes as f32));
        }
    }

    /// Since when a database is known to be in the state it is in.
    pub(super) fn since(&self, database: &str) -> Option<Timestamp> {
        self.lines.get(database).filter(|l| !l.samples.is_empty()).map(|l| l.since)
    }

    /// `/history.json`: the samples of a database, the newest last, which was taken `STEP` after the one before it.
    pub(super) fn json(&self, database: &str) -> Value {
        let samples: Vec<Value> = match self.lines.get(database) {
            Some(l) => {
                l.samples.iter().map(|(lag, n)| json!([(*lag >= 0.0).then_some(lag), *n as u64])).collect()
            }
            None => Vec::new(),
        };
        let begun = self.looked.map(|_| self.begun.rfc3339());
        json!({ "since": begun, "step_seconds": STEP.as_secs(), "samples": samples })
    }
}

#[cfg(test)]
mod tests {
    use super::super::face::{DatabaseFace, HealthStatus, RowKind, Teller};
    use super::*;
    use crate::base::TxId;

    fn face(at: i64, databases: usize, state: &'static str) -> Face {
        let one = |i: usize| DatabaseFace {
            database: format!("/data/{i}.db"),
            kind: RowKind::Source,
            mirror_of: None,
            told_by: Teller::Own,
            replica: None,
            state,
            explained: "",
            health: HealthStatus::Healthy,
            lag: (i != 1).then_some(Duration::from_secs(i as u64)),
            pending_bytes: 1000,
            txid: TxId(1),
            replicated: TxId(1),
            database_bytes: 0,
            wal_bytes: 0,
            spool_bytes: 0,
            breaker: "closed",
            uploaded_bytes: None,
            requests: None,
            last_upload: None,
            last_verified: None,
            verify_every: Duration::ZERO,
            last_error: None,
            seen: None,
        };
        Face { now: Timestamp(at), uptime: Duration::ZERO, databases: (0..databases).map(one).collect() }
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn nothing_is_kept_before_somebody_looks_and_nothing_an_hour_after() {
        let mut t = Trail::default();
        t.note(&face(0, 3, "streaming"), S(5));
        assert!(t.lines.is_empty() && t.is_due(S(5)).is_none());
        assert!(t.look(S(10), Timestamp(7)));
        assert!(!t.look(S(11), Timestamp(8)), "the second look begins nothing");
        t.note(&face(1000, 3, "streaming"), S(11));
        t.note(&face(2000, 3, "streaming"), S(12));
        assert_eq!(t.json("/data/0.db")["samples"], json!([[0.0, 1000]]), "one in ten seconds");
        assert_eq!(t.json("/data/1.db")["samples"], json!([[null, 1000]]), "a lag that is not known");
        assert_eq!(t.json("/no")["samples"], json!([]));
        assert_eq!(t.is_due(S(15)), Some(false));
        assert_eq!(t.is_due(S(21)), Some(true));
        assert_eq!(t.is_due(S(11 + 3601)), None);
        assert!(t.lines.is_empty() && t.looked.is_none());
    }

    #[test]
    fn an_hour_is_kept_and_no_more_and_a_state_has_its_beginning() {
        let mut t = Trail::default();
        t.look(S(0), Timestamp(0));
        for n in 0..1000 {
            t.look(S(n * 10), Timestamp(0));
            t.note(&face(n as i64, 200, if n < 900 { "streaming" } else { "paused" }), S(n * 10));
        }
        assert_eq!((t.lines.len(), t.lines["/data/0.db"].samples.len()), (200, MOST_SAMPLES));
        assert_eq!(t.since("/data/7.db"), Some(Timestamp(900)));
        let bytes: usize = t.lines.values().map(|l| l.samples.capacity() * 8 + 100).sum();
        assert!(bytes < 1 << 20, "{bytes}");
        t.note(&face(0, 2, "paused"), S(100_000));
        assert!(t.lines.len() <= 200);
        t.look(S(10_010), Timestamp(0));
        t.note(&face(0, 2, "paused"), S(10_010));
        assert_eq!(t.lines.len(), 2, "what is watched no more is forgotten");
    }
}
