//! Names made durable: a new, renamed or removed file is safe from a power cut only after its directory was synced.

use std::fs::File;
use std::io;
use std::path::Path;

/// Syncs a directory. File systems that cannot do that (CIFS, some FUSE) say so, and have no more to give; every other
/// failure is one: the names may be lost.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir).and_then(|d| d.sync_all()) {
        Err(e) if cannot(&e) => Ok(()),
        done => done,
    }
}

/// Syncs the directory that `file` lies in.
pub fn sync_parent(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(p) if !p.as_os_str().is_empty() => sync_dir(p),
        _ => sync_dir(Path::new(".")),
    }
}

/// Syncs a file's bytes, as far as its file system can.
///
/// Errors: whatever the system answers, but that it cannot sync.
pub fn sync_file(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(e) if cannot(&e) => Ok(()),
        done => done,
    }
}

/// Whether the error says that the file system does not have the operation at all.
pub fn cannot(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let none = [Errno::INVAL, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS];
    Errno::from_io_error(e).is_some_and(|e| none.contains(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn what_a_file_system_cannot_is_no_failure_and_the_rest_is() {
        let all = [
            (Errno::INVAL, true),
            (Errno::NOTSUP, true),
            (Errno::OPNOTSUPP, true),
            (Errno::NOSYS, true),
            (Errno::IO, false),
            (Errno::NOSPC, false),
            (Errno::DQUOT, false),
            (Errno::BADF, false),
            (Errno::ACCESS, false),
        ];
        for (errno, expected) in all {
            assert_eq!(cannot(&errno.into()), expected, "{errno}");
        }
        assert!(sync_dir(Path::new("/nowhere/at/all")).is_err());
        assert!(sync_parent(Path::new("a-name-alone")).is_ok());
    }
}
