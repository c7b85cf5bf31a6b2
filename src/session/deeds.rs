//! What was asked for on the page by whoever showed the token ([`super::act`] does it): one thing at a time for a database, a few at once. What
//! came of the last one of each database is remembered until the process ends.

use crate::base::{Timestamp, clock, lock};
use crate::metrics::{DeedEnd, DeedFace};
use std::collections::HashMap;
use std::sync::Mutex;

/// At once, of all databases: each may read a whole replica.
const MOST_AT_ONCE: usize = 4;
/// Databases whose last deed is remembered.
const MOST_KEPT: usize = 200;
/// Of what is said of one, in characters.
const LONGEST: usize = 8_000;

/// The last deed of each database, by its name on the page. A forked child has an empty one.
#[derive(Debug, Default)]
pub(super) struct Deeds(Mutex<HashMap<String, DeedFace>>);

impl Deeds {
    /// Takes the place of a deed that begins now. Errors with what stands in the way.
    pub(super) fn take(
        &self,
        database: &str,
        what: &'static str,
        now: Timestamp,
    ) -> std::result::Result<(), String> {
        let mut all = lock(&self.0);
        if let Some(other) = all.get(database).filter(|d| d.ended.is_none()) {
            let since = other.begun.rfc3339();
            return Err(format!(
                "a {} of this database is under way since {since}; wait for its end",
                other.what
            ));
        }
        let at_work = all.values().filter(|d| d.ended.is_none()).count();
        if at_work >= MOST_AT_ONCE {
            return Err(format!("{at_work} others are under way in this process; wait for the end of one"));
        }
        if all.len() >= MOST_KEPT
            && !all.contains_key(database)
            && let Some(oldest) = all
                .iter()
                .filter(|(_, d)| d.ended.is_some())
                .min_by_key(|(_, d)| d.begun)
                .map(|(n, _)| n.clone())
        {
            all.remove(&oldest);
        }
        all.insert(database.to_string(), DeedFace { what, begun: now, ended: None });
        Ok(())
    }

    pub(super) fn end(&self, database: &str, is_well: bool, said: &str) {
        if let Some(deed) = lock(&self.0).get_mut(database) {
            let said = said.chars().take(LONGEST).collect();
            deed.ended = Some(DeedEnd { at: clock::now(), is_well, said });
        }
    }

    pub(super) fn last(&self, database: &str) -> Option<DeedFace> {
        lock(&self.0).get(database).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_for_a_database_and_a_few_at_once() {
        let deeds = Deeds::default();
        let at = Timestamp;
        assert!(deeds.last("a").is_none());
        deeds.take("a", "drill", at(1)).unwrap();
        let e = deeds.take("a", "snapshot", at(2)).unwrap_err();
        assert!(e.starts_with("a drill of this database is under way since 1970"), "{e}");
        for other in ["b", "c", "d"] {
            deeds.take(other, "verify", at(3)).unwrap();
        }
        let e = deeds.take("e", "verify", at(4)).unwrap_err();
        assert!(e.starts_with("4 others are under way"), "{e}");
        deeds.end("a", true, "well");
        let last = deeds.last("a").unwrap();
        assert_eq!(
            (last.what, last.ended.map(|e| (e.is_well, e.said))),
            ("drill", Some((true, "well".into())))
        );
        deeds.take("e", "verify", at(5)).unwrap();
        deeds.end("e", false, &"x".repeat(100_000));
        assert_eq!(deeds.last("e").unwrap().ended.unwrap().said.len(), LONGEST);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes() {
        let deeds = Deeds::default();
        for n in 0..1000 {
            deeds.take(&n.to_string(), "verify", Timestamp(n)).unwrap();
            deeds.end(&n.to_string(), true, "");
        }
        assert_eq!(lock(&deeds.0).len(), MOST_KEPT);
        assert!(deeds.last("0").is_none() && deeds.last("999").is_some());
    }
}
