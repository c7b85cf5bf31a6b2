//! Mode and owner of what is made of a database: as SQLite does it for its `-wal` and `-journal`.
//!
//! A file that holds rows of a database may be read by those who may read the database, and by nobody else; and what root makes beside a
//! program's database belongs to that program's user. So a directory that is made for a database takes over its mode and, where this
//! process is root, its owner; and a file takes over those of the directory that it lies in. Directories that were there before are left
//! as they are. What a file system refuses (FAT has no owners) stays as the system made it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::Path;

const READ_WRITE: u32 = 0o666;
/// Set-id and sticky bits, which a directory may have inherited.
const SPECIAL: u32 = 0o7000;

/// Who may read and write a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manners {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Manners {
    /// Those of a file, or of what lies in a directory. `None` where there is neither.
    pub fn of(path: &Path) -> Option<Manners> {
        fs::metadata(path).ok().map(|m| Manners { mode: m.mode() & READ_WRITE, uid: m.uid(), gid: m.gid() })
    }

    /// Those of what lies beside `path`.
    pub fn beside(path: &Path) -> Option<Manners> {
        path.parent().and_then(Manners::of)
    }

    /// Whether root is the owner.
    pub fn are_roots(&self) -> bool {
        self.uid == 0
    }

    /// Gives them to a file that was made.
    pub fn dress(&self, file: &File) {
        let Ok(now) = file.metadata() else { return };
        if now.mode() & 0o777 != self.mode {
            drop(file.set_permissions(Permissions::from_mode(self.mode)));
        }
        if is_root() && (now.uid(), now.gid()) != (self.uid, self.gid) {
            drop(fchown(file, Some(self.uid), Some(self.gid)));
        }
    }

    /// The owner alone, to what lies at `path`.
    pub fn own(&self, path: &Path) {
        if is_root() {
            drop(chown(path, Some(self.uid), Some(self.gid)));
        }
    }

    /// Makes a directory in which they hold; whoever may read may look into it. Whether it was not there.
    ///
    /// Errors as `mkdir` does, but for one that is there.
    pub fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        let made = make_bare(dir)?;
        if made {
            self.own(dir);
            // (One that somebody has removed again is none to give a mode to.)
            let kept = fs::metadata(dir).map_or(0, |m| m.mode() & SPECIAL);
            let mode = kept | self.mode | (self.mode & 0o444) >> 2;
            drop(fs::set_permissions(dir, Permissions::from_mode(mode)));
        }
        Ok(made)
    }

    /// Makes `dir` and what is missing between `top` and it, all in these manners. Errors as `mkdir` does.
    pub fn make_tree(&self, top: &Path, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|d| *d != top && !d.exists()).collect();
        missing.into_iter().rev().try_for_each(|d| self.make_dir(d).map(drop))
    }

    /// As [`Manners::make_dir`], with what is missing above it, which is anybody's to look into.
    pub fn make_dir_all(&self, dir: &Path) -> io::Result<bool> {
        let missing: Vec<&Path> =
            dir.ancestors().skip(1).take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
        for above in missing.into_iter().rev() {
            if make_bare(above)? {
                self.own(above);
            }
        }
        self.make_dir(dir)
    }
}

fn make_bare(dir: &Path) -> io::Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(_) if dir.is_dir() => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes a file that replaces what was there, in the manners of its directory. Nobody else can open it before it has them.
///
/// Errors as `open` does.
pub fn create(path: &Path) -> io::Result<File> {
    let file = private().truncate(true).open(path)?;
    settle(&file, path);
    Ok(file)
}

/// A file for reading and writing that is there, or is made as [`create`] does.
///
/// Errors as `open` does.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let file = private().read(true).truncate(false).open(path)?;
    if file.metadata()?.len() == 0 {
        settle(&file, path);
    }
    Ok(file)
}

/// A file of passage, which holds what it is given and nothing else; nobody else's.
///
/// Errors as `open` does.
pub fn create_over(path: &Path) -> io::Result<File> {
    private().truncate(true).open(path)
}

/// Makes a file that must not be there and that is nobody else's yet.
///
/// Errors as `open` does.
pub fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

fn settle(file: &File, path: &Path) {
    if let Some(m) = Manners::beside(path) {
        m.dress(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn directories_follow_the_database_and_files_their_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for (db, dir) in [
            (0o600, 0o700),
            (0o640, 0o750),
            (0o644, 0o755),
            (0o660, 0o770),
            (0o664, 0o775),
            (0o666, 0o777),
            (0o755, 0o755),
        ] {
            let path = at(&format!("{db:o}.db"));
            File::create(&path).unwrap().set_permissions(Permissions::from_mode(db)).unwrap();
            let manners = Manners::of(&path).unwrap();
            let spool = at(&format!("{db:o}-spool/in"));
            assert!(manners.make_dir_all(&spool).unwrap());
            assert!(!manners.make_dir_all(&spool).unwrap());
            assert_eq!(mode(&spool), dir, "{db:o}");
            create(&spool.join("a")).unwrap();
            open_or_create(&spool.join("b")).unwrap();
            for name in ["a", "b"] {
                assert_eq!(mode(&spool.join(name)), db & READ_WRITE, "{db:o} {name}");
            }
            assert!(Manners::beside(&spool.join("a")).unwrap().make_dir(&spool.join("sub")).unwrap());
            assert_eq!(mode(&spool.join("sub")), dir, "{db:o}");
        }
        create_private(&at("private")).unwrap();
        assert_eq!(mode(&at("private")), 0o600);
        assert!(create_private(&at("private")).is_err());
    }

    #[test]
    fn what_was_there_stays_as_it_is() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, file) = (scratch.path().join("d"), scratch.path().join("d/f"));
        fs::create_dir(&dir).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o2775)).unwrap();
        let private = Manners { mode: 0o600, uid: 0, gid: 0 };
        assert!(!private.make_dir_all(&dir).unwrap());
        open_or_create(&file).unwrap();
        assert_eq!((mode(&dir), mode(&file)), (0o2775, 0o640));
        // A directory that makes its files its group's passes that on.
        assert!(private.make_dir(&dir.join("sub")).unwrap());
        assert_eq!(mode(&dir.join("sub")), 0o2700);
        fs::write(scratch.path().join("plain"), "").unwrap();
        assert!(private.make_dir(&scratch.path().join("plain")).is_err());
    }
}
