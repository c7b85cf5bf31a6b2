//! A lock on a file that is held for long, without a descriptor.
//!
//! An *open file description* lock (`F_OFD_SETLK`) belongs to the open file, not to the process or to one of its descriptors,
//! and excludes POSIX locks of other processes. A mapping of the file keeps it open when its descriptor is closed. So: open,
//! map one page that nobody may touch, lock, close. The lock ends with the mapping: when that is given back, or with the process.
//! (<https://man7.org/linux/man-pages/man2/fcntl.2.html>, "Open file description locks")
//!
//! * I-KEEP-1: the mapping is not inherited (`MADV_DONTFORK`), and no fork falls between the opening and the close: a forked
//!   child would otherwise keep the lock of its dead parent alive.
//! * I-KEEP-2: a mapping is given back only in the process that made it. In a forked child something else may lie there.
//!
//! Refused: a descriptor for each lock. Programs that serve many databases run out of them.

use super::fork::OwnHandle;
use crate::base::fork;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// A file that is locked until this is dropped.
#[derive(Debug)]
pub struct KeptLock {
    #[cfg_attr(not(all(target_os = "linux", target_pointer_width = "64")), allow(dead_code))]
    at: usize,
    forks: usize,
}

fn unsupported() -> Error {
    Error::from(ErrorKind::Unsupported)
}

/// Locks the file at `path`, which exists; `None` when another process has it locked. Errors with
/// [`ErrorKind::Unsupported`] where locks cannot be kept so.
pub fn keep_lock(path: &Path) -> Result<Option<KeptLock>> {
    // Forks wait for such.
    let _no_fork = OwnHandle::new(path);
    let file = File::options().read(true).write(true).open(path)?;
    let at = sys::map(&file)?;
    // From here on the mapping is given back, whatever comes.
    let kept = KeptLock { at, forks: fork::generation() };
    Ok(sys::lock(&file)?.then_some(kept))
}

/// Whether somebody has the file locked, this process included if it keeps the lock. Takes nothing.
pub fn is_locked(file: &File) -> Result<bool> {
    sys::is_locked(file)
}

impl Drop for KeptLock {
    fn drop(&mut self) {
        if self.forks == fork::generation() {
            sys::unmap(self.at);
        }
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod sys {
    use super::{Error, File, Result, unsupported};
    use std::ffi::{c_int, c_long, c_short, c_void};
    use std::os::fd::AsRawFd;

    const PAGE: usize = 4096;
    const PROT_NONE: c_int = 0;
    const MAP_PRIVATE: c_int = 2;
    const MADV_DONTFORK: c_int = 10;
    const F_OFD_GETLK: c_int = 36;
    const F_OFD_SETLK: c_int = 37;
    const F_WRLCK: c_short = 1;
    const F_UNLCK: c_short = 2;
    const EAGAIN: i32 = 11;
    const EACCES: i32 = 13;
    const EINVAL: i32 = 22;

    /// `struct flock` of 64-bit Linux.
    #[repr(C)]
    struct Flock {
        l_type: c_short,
        l_whence: c_short,
        l_start: i64,
        l_len: i64,
        l_pid: c_int,
    }

    /// The whole file.
    const WHOLE: Flock = Flock { l_type: F_WRLCK, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };

    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            len: usize,
            prot: c_int,
            flags: c_int,
            fd: c_int,
            offset: c_long,
        ) -> *mut c_void;
        fn munmap(at: *mut c_void, len: usize) -> c_int;
        fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
        fn fcntl(fd: c_int, cmd: c_int, ...) -> c_int;
    }

    /// A page of the file that nobody may read: it only keeps the file open.
    pub(super) fn map(file: &File) -> Result<usize> {
        // SAFETY: a new mapping, at an address that the kernel chooses; nothing ever touches it.
        let at = unsafe { mmap(std::ptr::null_mut(), PAGE, PROT_NONE, MAP_PRIVATE, file.as_raw_fd(), 0) };
        if at as isize == -1 {
            // No more mappings, or not of this file system: then the lock takes a descriptor.
            return Err(unsupported());
        }
        // SAFETY: the mapping just made.
        if unsafe { madvise(at, PAGE, MADV_DONTFORK) } != 0 {
            unmap(at as usize);
            return Err(unsupported());
        }
        Ok(at as usize)
    }

    pub(super) fn unmap(at: usize) {
        // SAFETY: made by `map` in this process, and given back once.
        unsafe { munmap(at as *mut c_void, PAGE) };
    }

    pub(super) fn lock(file: &File) -> Result<bool> {
        let asked = WHOLE;
        // SAFETY: an open descriptor and the struct that this command reads.
        if unsafe { fcntl(file.as_raw_fd(), F_OFD_SETLK, &raw const asked) } == 0 {
            return Ok(true);
        }
        match Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(EAGAIN | EACCES)) => Ok(false),
            e if e.raw_os_error() == Some(EINVAL) => Err(unsupported()),
            e => Err(e),
        }
    }

    pub(super) fn is_locked(file: &File) -> Result<bool> {
        let mut asked = WHOLE;
        // SAFETY: an open descriptor and the struct that this command reads and fills in.
        if unsafe { fcntl(file.as_raw_fd(), F_OFD_GETLK, &raw mut asked) } == 0 {
            return Ok(asked.l_type != F_UNLCK);
        }
        match Error::last_os_error() {
            e if e.raw_os_error() == Some(EINVAL) => Err(unsupported()),
            e => Err(e),
        }
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod sys {
    use super::{File, Result, unsupported};

    pub(super) fn map(_: &File) -> Result<usize> {
        Err(unsupported())
    }

    pub(super) fn unmap(_: usize) {}

    pub(super) fn lock(_: &File) -> Result<bool> {
        Err(unsupported())
    }

    pub(super) fn is_locked(_: &File) -> Result<bool> {
        Err(unsupported())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_kept_lock_has_no_descriptor_and_ends_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("lock");
        let file = File::create(&path).unwrap();
        assert!(!is_locked(&file).unwrap());
        let kept = keep_lock(&path).unwrap().unwrap();
        drop(file);
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        assert_eq!(open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path)).count(), 0);
        // Opening and closing the file takes nothing away.
        let file = File::open(&path).unwrap();
        assert!(is_locked(&file).unwrap() && keep_lock(&path).unwrap().is_none());
        drop(file);
        // Nor can POSIX locks be had of it, as an older build takes them.
        let file = File::options().write(true).open(&path).unwrap();
        let posix = || rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        assert!(posix().is_err());
        drop(kept);
        assert!(posix().is_ok() && keep_lock(&path).unwrap().is_none());
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        assert!(keep_lock(&path).unwrap().is_some());
    }
}
