//! What calls of this process have done, so that the same call has the same answer when it comes again.
//!
//! Some drivers (PHP's `SQLite3`, LuaSQL) step a SELECT once to see whether it works and once more for its rows, so each function is
//! called twice. What can be done only once would work and then be an error. Which call is meant by a program that asks for the same
//! again cannot be told, so the answer is given by what is: the file is still the one that was restored, the database is still the one
//! that was unwatched.

use crate::base::{ForkSafe, TxId};
use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Calls remembered of each kind; the oldest is forgotten.
const REMEMBERED: usize = 64;

/// Calls of one kind, by the path they were about.
pub(super) struct Done<T: 'static>(ForkSafe<Mutex<VecDeque<(PathBuf, T)>>>);

impl<T: Clone> Done<T> {
    pub(super) const fn new() -> Done<T> {
        Done(ForkSafe::new(Mutex::default))
    }

    /// The call about `path` was done, with this result.
    pub(super) fn note(&self, path: &Path, result: T) {
        let mut all = self.0.lock();
        all.retain(|(p, _)| p != path);
        if all.len() >= REMEMBERED {
            all.pop_front();
        }
        all.push_back((path.to_path_buf(), result));
    }

    /// What it said, if it was done.
    pub(super) fn known(&self, path: &Path) -> Option<T> {
        self.0.lock().iter().find(|(p, _)| p == path).map(|(_, r)| r.clone())
    }

    /// It does not hold any more.
    pub(super) fn forget(&self, path: &Path) {
        self.0.lock().retain(|(p, _)| p != path);
    }
}

/// A file as a restore left it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Written {
    file: Stamp,
    /// Where it came from.
    pub(super) replica: String,
    /// Its state.
    pub(super) txid: TxId,
}

/// Device, inode, size, and the times of content and inode.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}

impl Written {
    /// The file at `path`, which was restored just now.
    pub(super) fn now(path: &Path, replica: &str, txid: TxId) -> Option<Written> {
        Some(Written { file: stamp(path)?, replica: replica.to_string(), txid })
    }

    /// Whether the file at `path` is that one, untouched, with nothing beside it that belongs to it.
    pub(super) fn is_still(&self, path: &Path) -> bool {
        let beside = |suffix: &str| {
            let mut p = path.as_os_str().to_os_string();
            p.push(suffix);
            std::fs::metadata(p).is_ok_and(|m| m.len() > 0)
        };
        stamp(path).as_ref() == Some(&self.file) && !beside("-wal") && !beside("-journal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        static DONE: Done<u32> = Done::new();
        let at = |n: u32| PathBuf::from(format!("/{n}"));
        for n in 0..200 {
            DONE.note(&at(n % 100), n);
        }
        assert_eq!(DONE.known(&at(99)), Some(199));
        assert_eq!(DONE.known(&at(3)), None);
        DONE.forget(&at(99));
        assert_eq!(DONE.known(&at(99)), None);
    }

    #[test]
    fn a_file_that_was_touched_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (path, wal) = (dir.path().join("a.db"), dir.path().join("a.db-wal"));
        std::fs::write(&path, "x").unwrap();
        let written = Written::now(&path, "file:///r", TxId(1)).unwrap();
        assert!(written.is_still(&path));
        std::fs::write(&wal, "").unwrap();
        assert!(written.is_still(&path));
        std::fs::write(&wal, "x").unwrap();
        assert!(!written.is_still(&path));
        std::fs::remove_file(&wal).unwrap();
        std::fs::write(&path, "xy").unwrap();
        assert!(!written.is_still(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!written.is_still(&path));
    }
}
