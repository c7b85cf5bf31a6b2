//! What `auto_label` has to do for one database, and how much it has done.

use crate::spool::SchemaSeen;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

/// The most labels that a process makes in a day by itself, and the most that wait.
pub(super) const MOST: usize = 64;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is to be labelled of one database, and what was.
#[derive(Debug, Default)]
pub(super) struct Labelling {
    /// `None`: not looked up in the spool yet.
    pub(super) owed: Mutex<Option<Vec<SchemaSeen>>>,
    /// The schema cookie that was shipped last.
    pub(super) shipped: Mutex<Option<u32>>,
    /// Uptimes.
    pub(super) made: Mutex<VecDeque<Duration>>,
}

/// Whether one more may be made at `now`, which is then counted. Pure.
pub(super) fn is_within(made: &mut VecDeque<Duration>, now: Duration) -> bool {
    while made.front().is_some_and(|at| now.saturating_sub(*at) >= DAY) {
        made.pop_front();
    }
    if made.len() >= MOST {
        return false;
    }
    made.push_back(now);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_day_and_no_more() {
        let mut made = VecDeque::new();
        let at = Duration::from_secs;
        assert!((0..64).all(|s| is_within(&mut made, at(s))));
        assert!(!is_within(&mut made, at(64)) && !is_within(&mut made, at(86_399)));
        assert!(is_within(&mut made, at(86_400)) && !is_within(&mut made, at(86_400)));
        assert!(is_within(&mut made, at(86_401)));
    }
}
