//! A place for a file that is made to be looked at. It goes with who looks, also after an error or a panic; and where the process was killed,
//! [`sweep`] removes what is left of it: a copy of a whole database may lie there.
//!
//! The place is a directory, since SQLite and a restore put files of their own beside a database. Who looks holds an flock on the directory,
//! so that a sweep of another process leaves a place alone that is in use; the kernel lets go of the lock with the process. (A child of fork
//! that lives longer keeps the lock: then a later sweep removes the place.) A file system without flock keeps what a kill left.

use super::clock;
use super::error::{Error, Result};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How the name of each place begins. Files of that beginning are litter, too, in directories that are ours.
const LITTER: &str = ".tmp-";
/// A sweep can come between the making of the directory and its lock. So often in a row it does not.
const TRIES: u32 = 8;

/// Removes its directory with all that is in it.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    file: PathBuf,
    _held: Option<File>,
}

impl Scratch {
    /// A place in `dir`, for `what`; only its owner can read there. Errors: `Io` of `dir`.
    pub fn new(dir: &Path, what: &str) -> Result<Scratch> {
        let mut tries = 0;
        loop {
            tries += 1;
            let place = dir.join(format!("{LITTER}{what}-{:016x}", clock::random_u64()));
            DirBuilder::new().mode(0o700).create(&place).map_err(|e| Error::io("create", &place, e))?;
            let held = File::open(&place).ok().filter(|f| f.try_lock().is_ok());
            if place.is_dir() || tries == TRIES {
                let file = place.join(format!("{what}.db"));
                return Ok(Scratch { dir: place, file, _held: held });
            }
        }
    }

    /// Where the file is to be made; nothing is there yet.
    pub fn path(&self) -> &Path {
        &self.file
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Whether a file or directory of that name is litter once nobody uses it.
pub fn is_litter(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(LITTER.as_bytes())
}

/// Removes the places in `dir` that nobody looks at any more. What cannot be removed stays.
pub fn sweep(dir: &Path) {
    let Ok(found) = fs::read_dir(dir) else { return };
    for place in found.flatten().filter(|e| is_litter(&e.file_name())) {
        if !place.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = place.path();
        let Ok(held) = File::open(&path) else { continue };
        match held.try_lock() {
            Ok(()) => drop(fs::remove_dir_all(&path)),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_who_looks() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), "look").unwrap();
        assert!(!scratch.path().exists());
        fs::write(scratch.path(), b"x").unwrap();
        fs::write(scratch.path().with_extension("db-wal"), b"x").unwrap();
        drop(scratch);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_removes_what_a_kill_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let used = Scratch::new(dir.path(), "used").unwrap();
        fs::write(used.path(), b"x").unwrap();
        let left = dir.path().join(".tmp-left-1");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("left.db"), b"x").unwrap();
        for kept in ["pending", "tmp-1"] {
            fs::create_dir(dir.path().join(kept)).unwrap();
        }
        fs::write(dir.path().join(".tmp-file"), b"x").unwrap();
        sweep(dir.path());
        sweep(&dir.path().join("none"));
        assert!(used.path().exists() && !left.exists());
        for kept in ["pending", "tmp-1", ".tmp-file"] {
            assert!(dir.path().join(kept).exists(), "{kept}");
        }
    }
}
