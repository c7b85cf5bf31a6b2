//! Whether a full copy is worth its upload when `snapshot_interval` has passed. Pure.
//!
//! A full copy bounds what a restore reads, and what retention can let go of. It costs the whole database: of a large one of which little
//! changes, a copy each hour would be many times what all its commits are. So one is made
//! * when what came since the last one is as much as that one: a restore reads twice the database at the most, and copies are never more
//!   than what the commits are themselves;
//! * of a small database ([`SMALL`]), or where the size of the last copy is not known, each time;
//! * once in [`LONGEST`], whatever changed: the chain of files that a restore needs is bounded.
//!
//! What retention promises does not depend on it: where a period has no copy, its newest merged state is kept (I-RET-1).
//! Refused: the share of pages that changed (two bytes changed in each page would be all of them); a setting for each of these numbers.

use std::time::Duration;

/// A copy of this size is made each time.
const SMALL: u64 = 4 << 20;
/// The longest time between two copies of what changes, unless `snapshot_interval` is longer.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is done when `snapshot_interval` has passed, and something has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A full copy.
    Copy,
    /// Retention alone.
    Retention,
}

/// Decides. `age` and `snapshot_bytes` (0: not known): of the newest copy; `since_bytes`: of the level-0 files that came after it.
pub fn decide(age: Duration, snapshot_bytes: u64, since_bytes: u64) -> Due {
    if snapshot_bytes <= SMALL || since_bytes >= snapshot_bytes || age >= LONGEST {
        return Due::Copy;
    }
    Due::Retention
}

/// How many copies a day that makes, `every` apart at the least, where so many bytes change a day; `None`: they are not known.
pub fn copies_per_day(every: Duration, snapshot_bytes: u64, changed_bytes: Option<u64>) -> f64 {
    let a_day = |period: Duration| 86_400.0 / period.as_secs_f64();
    match changed_bytes {
        Some(changed) if snapshot_bytes > SMALL => {
            (changed as f64 / snapshot_bytes as f64).max(a_day(LONGEST)).min(a_day(every))
        }
        _ => a_day(every),
    }
}

#[cfg(test)]
mod week;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_made_when_it_is_worth_it() {
        const MB: u64 = 1 << 20;
        const DAY: u64 = 24;
        for (what, hours, snapshot, since, want) in [
            ("small, hardly changed", 1, MB, 100, Due::Copy),
            ("as small as it may be", 1, 4 * MB, 1, Due::Copy),
            ("its size is not known", 1, 0, 5 * MB, Due::Copy),
            ("a little larger", 1, 4 * MB + 1, 1, Due::Retention),
            ("large and quiet, after a day", DAY, 10_000 * MB, 100 * MB, Due::Retention),
            (
                "the same, a moment before its week is over",
                7 * DAY - 1,
                10_000 * MB,
                700 * MB,
                Due::Retention,
            ),
            ("the same, after a week", 7 * DAY, 10_000 * MB, 700 * MB, Due::Copy),
            ("busy: nearly as much as it is", 5, 100 * MB, 100 * MB - 1, Due::Retention),
            ("busy: as much as it is", 5, 100 * MB, 100 * MB, Due::Copy),
            ("busy: many times as much", 1, 100 * MB, 900 * MB, Due::Copy),
        ] {
            assert_eq!(decide(Duration::from_secs(hours * 3600), snapshot, since), want, "{what}");
        }
    }

    #[test]
    fn how_many_copies_that_makes() {
        let hour = Duration::from_secs(3600);
        for (snapshot, changed, want) in [
            (100, Some(1), 24.0),
            (1000 << 20, None, 24.0),
            (1000 << 20, Some(2000 << 20), 2.0),
            (1000 << 20, Some(1 << 20), 1.0 / 7.0),
            (10 << 20, Some(9000 << 20), 24.0),
        ] {
            assert_eq!(copies_per_day(hour, snapshot, changed), want, "{changed:?} of {snapshot}");
        }
    }
}
