//! A database that is made to be looked at, and goes with who looked: also after an error or a panic.

use crate::base::clock;
use std::path::{Path, PathBuf};

/// Removes the database and what SQLite left beside it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A new name in `dir`, for `what`.
    pub(super) fn new(dir: &Path, what: &str) -> Scratch {
        Scratch(dir.join(format!("walrust-{what}-{:016x}.db", clock::random_u64())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut path = self.0.as_os_str().to_os_string();
            path.push(suffix);
            let _ = std::fs::remove_file(path);
        }
    }
}
