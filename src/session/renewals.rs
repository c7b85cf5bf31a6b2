//! Watches that have ended and begin again by themselves: why each does, and whoever waits until it has.

use crate::base::{clock, lock};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Those of the process, by the path of the database.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    at: Mutex<BTreeMap<PathBuf, String>>,
    changed: Condvar,
}

/// One that goes on until this is dropped.
pub(super) struct Renewal<'a> {
    of: &'a Renewals,
    path: PathBuf,
}

impl Renewals {
    /// The watch of the database at `path` begins again, because of `why`.
    pub(super) fn begin(&self, path: &Path, why: String) -> Renewal<'_> {
        lock(&self.at).insert(path.to_path_buf(), why);
        Renewal { of: self, path: path.to_path_buf() }
    }

    /// Why the watch of the database at `path` begins again, if it does.
    pub(super) fn why(&self, path: &Path) -> Option<String> {
        lock(&self.at).get(path).cloned()
    }

    /// Every database whose watch begins again, and why.
    pub(super) fn all(&self) -> Vec<(PathBuf, String)> {
        lock(&self.at).clone().into_iter().collect()
    }

    /// It is not to begin again, or has begun. Whether it was about to.
    pub(super) fn end(&self, path: &Path) -> bool {
        let was = lock(&self.at).remove(path).is_some();
        self.changed.notify_all();
        was
    }

    /// Waits until the watch of the database at `path` has begun again, or is not to, for `longest` at most. Why it still has not.
    pub(super) fn wait(&self, path: &Path, longest: Duration) -> Option<String> {
        let end = clock::uptime().saturating_add(longest);
        let mut at = lock(&self.at);
        loop {
            let why = at.get(path)?.clone();
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() {
                return Some(why);
            }
            at = self.changed.wait_timeout(at, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Renewal<'_> {
    fn drop(&mut self) {
        self.of.end(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_goes_on_when_it_has_begun_or_is_not_to_or_is_told_why_not() {
        let all = Renewals::default();
        let path = Path::new("/nowhere/app.db");
        assert_eq!(all.wait(path, Duration::MAX), None, "it does not begin again");
        let renewal = all.begin(path, "its spool was deleted".into());
        assert_eq!(all.wait(path, Duration::ZERO).as_deref(), Some("its spool was deleted"));
        std::thread::scope(|s| {
            let waits = s.spawn(|| all.wait(path, Duration::from_secs(60)));
            drop(renewal);
            assert_eq!(waits.join().ok(), Some(None));
        });
        let _renewal = all.begin(path, "again".into());
        assert_eq!(all.why(path).as_deref(), Some("again"));
        assert!(all.end(path) && !all.end(path));
        assert_eq!((all.why(path), all.all()), (None, Vec::new()));
    }
}
