//! What the shipper does besides the stream, and how each of these duties fares. Pure; time is handed in.
//!
//! The stream (level 0, and the snapshot that a lineage begins with) has the circuit breaker and `last_error`. Every other
//! duty rests by itself after a failure and keeps its own error, so that a store which refuses merged files delays merged
//! files (I-SHIP-7).
//!
//! ```text
//!          a try failed                     `until` has come, or somebody waits for it
//!  Well ─────────────────▶ Resting(n) ────────────────────────────────────────────▶ a try
//!    ▲                        ▲                                                     │  │
//!    │                        └─── failed: n + 1, and a longer rest ────────────────┘  │
//!    └──────────────────────────────────────────────────────────────── succeeded ──────┘
//! ```

use crate::base::{Error, Kind};
use crate::store::Retry;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something the shipper does that the stream does not wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Renewing the lease that is held, or taking it while nothing waits to leave.
    Lease,
    /// Uploading a snapshot whose lineage is in the replica already.
    Snapshot,
    /// Naming in the manifest what was uploaded.
    Manifest,
    /// Merging small files, and uploading the merged ones.
    Merge,
    /// Removing from the replica what a refused COMMIT left there.
    TakeBack,
    /// Removing from the replica what retention does not keep.
    Retention,
    /// Labelling the points before changes of the schema (`auto_label`).
    Label,
}

impl Duty {
    /// As texts and webhooks name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Duty::Lease => "lease",
            Duty::Snapshot => "snapshot",
            Duty::Manifest => "manifest",
            Duty::Merge => "merge",
            Duty::TakeBack => "take back",
            Duty::Retention => "retention",
            Duty::Label => "label",
        }
    }
}

/// How one duty fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Course {
    /// The last try succeeded, or none was made.
    #[default]
    Well,
    /// The last tries failed.
    Resting {
        /// How many in a row.
        failures: u32,
        /// Uptime of the next try.
        until: Duration,
        /// The last error's kind.
        kind: Kind,
        /// The last error.
        error: String,
    },
}

/// The longest rest of a duty after an error that waiting may not cure.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// The shortest rest of a duty after such an error.
const SHORTEST_REST: Duration = Duration::from_secs(15);
/// Between two tries of a duty that somebody waits for.
const WAITED_FOR: Duration = Duration::from_secs(1);

impl Course {
    /// After one more failure, at uptime `now`. `retry` bounds the rest after errors that pass; `random` spreads the rests of
    /// many databases.
    #[must_use]
    pub fn failed(&self, e: &Error, now: Duration, retry: &Retry, random: u64) -> Course {
        let failures = self.failures() + 1;
        let drawn = retry.delay(failures - 1, random, e.retry_after());
        let rest = match e.kind() {
            Kind::Retry | Kind::Timeout => drawn,
            _ => {
                let grown = SHORTEST_REST.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_REST);
                // (A policy with shorter waits than ours is somebody's wish.)
                drawn.max(grown.min(retry.max))
            }
        };
        Course::Resting { failures, until: now + rest, kind: e.kind(), error: e.to_string() }
    }

    /// How many tries in a row have failed.
    pub fn failures(&self) -> u32 {
        match self {
            Course::Well => 0,
            Course::Resting { failures, .. } => *failures,
        }
    }

    /// How long the next try has to wait at uptime `now`. Somebody who waits for the outcome cuts a long rest short.
    pub fn due_in(&self, now: Duration, is_waited_for: bool) -> Duration {
        match self {
            Course::Well => Duration::ZERO,
            Course::Resting { until, .. } => {
                let left = until.saturating_sub(now);
                if is_waited_for { left.min(WAITED_FOR) } else { left }
            }
        }
    }

    /// Whether a try may be made at uptime `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        self.due_in(now, false).is_zero()
    }
}

/// How all duties fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duties {
    resting: BTreeMap<Duty, Course>,
}

impl Duties {
    /// How `duty` fares.
    pub fn of(&self, duty: Duty) -> Course {
        self.resting.get(&duty).cloned().unwrap_or_default()
    }

    /// Notes how `duty` fares now.
    pub fn set(&mut self, duty: Duty, course: Course) {
        match course {
            Course::Well => drop(self.resting.remove(&duty)),
            resting => drop(self.resting.insert(duty, resting)),
        }
    }

    /// One line about the gravest of those that fail: the lease first, then what people asked for, then upkeep.
    pub fn trouble(&self) -> Option<String> {
        let (duty, course) = self.resting.iter().next()?;
        match course {
            Course::Well => None,
            Course::Resting { error, .. } => Some(format!("{}: {error}", duty.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry::without_end(Duration::from_secs(1), Duration::from_secs(600));

    fn at(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn failing(times: u32, kind: Kind, retry: Retry) -> (Course, Duration) {
        let mut course = Course::Well;
        for _ in 0..times {
            course = course.failed(&Error::new(kind, "x"), at(100), &retry, 0);
        }
        let due = course.due_in(at(100), false);
        (course, due)
    }

    #[test]
    fn rests_grow_and_end() {
        let rests: Vec<u64> = (1..=7).map(|n| failing(n, Kind::Denied, RETRY).1.as_secs()).collect();
        assert_eq!(rests, [15, 30, 60, 120, 240, 300, 300]);
        // Jitter: the least that may be drawn is nothing, the most is the policy's.
        assert_eq!(failing(3, Kind::Retry, RETRY).1, Duration::ZERO);
        let most = Course::Well.failed(&Error::new(Kind::Retry, "x"), at(0), &RETRY, 999_999_999);
        assert!(most.due_in(at(0), false) <= at(1) && !most.is_due(at(0)), "{most:?}");
        let brief = Retry { max: at(2), ..RETRY };
        assert_eq!(failing(5, Kind::Denied, brief).1, at(2), "no rest is longer than the policy's");
        let asked = Error::new(Kind::Retry, "x").with_retry_after(Some(at(40)));
        assert_eq!(Course::Well.failed(&asked, at(0), &RETRY, 0).due_in(at(0), false), at(40));
    }

    #[test]
    fn a_rest_ends_by_time_by_success_or_for_who_waits() {
        let (course, _) = failing(4, Kind::Denied, RETRY);
        assert_eq!(course.failures(), 4);
        assert!(!course.is_due(at(100)) && !course.is_due(at(219)) && course.is_due(at(220)));
        assert_eq!(course.due_in(at(100), true), WAITED_FOR);
        assert_eq!(course.due_in(at(219) + Duration::from_millis(500), true), Duration::from_millis(500));
        assert!(Course::Well.is_due(at(0)));
        assert_eq!(Course::Well.failures(), 0);
    }

    #[test]
    fn each_duty_has_its_own_course_and_the_gravest_is_told() {
        let mut all = Duties::default();
        assert_eq!(all.trouble(), None);
        for duty in [Duty::Retention, Duty::Merge, Duty::Snapshot] {
            let e = Error::new(Kind::Denied, format!("no {}", duty.as_str()));
            all.set(duty, all.of(duty).failed(&e, at(1), &RETRY, 0));
            assert_eq!(all.of(duty).failures(), 1);
        }
        assert_eq!(all.of(Duty::Lease), Course::Well);
        assert_eq!(all.trouble().as_deref(), Some("snapshot: no snapshot"));
        all.set(Duty::Snapshot, Course::Well);
        assert_eq!(all.trouble().as_deref(), Some("merge: no merge"));
        assert_eq!(all.of(Duty::Merge).failures(), 1);
    }
}
