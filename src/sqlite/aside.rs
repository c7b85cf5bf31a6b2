//! Reading a database file without a descriptor that the program, or SQLite, could ever meet.
//!
//! A descriptor of a database file cannot be closed while SQLite has the file locked: POSIX would drop the locks, so SQLite keeps
//! what a handle of ours leaves behind open until the program closes the database ([`super::raw`]). But the locks belong to a
//! *table* of descriptors, and on Linux a thread can have one of its own. A short-lived thread unshares its table, with nothing in
//! it, opens the file, reads it and ends: no lock is touched, and no descriptor of the program is used up.
//!
//! * I-ASIDE-1: that thread does nothing else. A descriptor number means another file in it.
//!
//! Such a read holds no read mark: its caller proves from the wal-index that the file stood still meanwhile.
//!
//! Refused: threads of ours that keep a table of their own. fcntl locks, and everything that is shared by number, would be theirs
//! alone.

use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// A whole file as it was read.
#[derive(Debug)]
pub struct Aside {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its device and inode.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
}

/// Reads the file at `path`, of `most` bytes at most. Errors with [`ErrorKind::Unsupported`] where threads cannot have a table of
/// their own, with [`ErrorKind::FileTooLarge`], or with what the system says.
pub fn read_aside(path: &Path, most: u64) -> Result<Aside> {
    #[cfg(feature = "sim")]
    if crate::base::sim::world().is_some() {
        return Err(Error::from(ErrorKind::Unsupported));
    }
    let (done, result) = mpsc::channel();
    let path: PathBuf = path.to_path_buf();
    crate::base::thread::spawn("walrust-read", 128 << 10, move || {
        let _ = done.send(sys::own_table().and_then(|()| read(&path, most)));
    })?;
    result.recv().unwrap_or_else(|_| Err(Error::from(ErrorKind::Unsupported)))
}

fn read(path: &Path, most: u64) -> Result<Aside> {
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size > most {
        return Err(Error::from(ErrorKind::FileTooLarge));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    (&file).take(most + 1).read_to_end(&mut bytes)?;
    let m = file.metadata()?;
    Ok(Aside { bytes, device: m.dev(), inode: m.ino() })
}

#[cfg(target_os = "linux")]
mod sys {
    use std::ffi::{c_long, c_uint};
    use std::io::{Error, ErrorKind, Result};

    /// The same number on every architecture.
    const SYS_CLOSE_RANGE: c_long = 436;
    const CLOSE_RANGE_UNSHARE: c_uint = 2;

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }

    /// From now on this thread has a table of its own, with nothing in it but what a log message needs.
    pub(super) fn own_table() -> Result<()> {
        // SAFETY: a system call on three numbers. The table that is closed is this thread's own copy: the call unshares first.
        let rc = unsafe { syscall(SYS_CLOSE_RANGE, 3 as c_uint, c_uint::MAX, CLOSE_RANGE_UNSHARE) };
        // Linux 5.9 has it; what a sandbox forbids is not there either.
        if rc == 0 { Ok(()) } else { Err(Error::from(ErrorKind::Unsupported)) }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    pub(super) fn own_table() -> std::io::Result<()> {
        Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_read_aside_keeps_its_locks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::write(&path, [7; 10_000]).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let inode = file.metadata().unwrap().ino();
        let is_locked = || std::fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} "));
        match read_aside(&path, 10_000) {
            Ok(read) => assert_eq!((read.bytes, read.inode), (vec![7; 10_000], inode)),
            // A kernel, or a sandbox, without.
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported),
        }
        assert!(is_locked());
        let missing = read_aside(&dir.path().join("none"), 1).unwrap_err().kind();
        let larger = read_aside(&path, 9_999).unwrap_err().kind();
        if missing != ErrorKind::Unsupported {
            assert_eq!((missing, larger), (ErrorKind::NotFound, ErrorKind::FileTooLarge));
        }
        assert!(is_locked());
        // That a plain opening beside it would have cost them is why this room exists.
        drop(std::fs::File::open(&path).unwrap());
        assert!(!is_locked());
    }
}
