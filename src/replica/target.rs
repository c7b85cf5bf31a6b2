//! The file a restore ends in, and the one moment at which it changes.
//!
//! Rules
//! * I-TGT-1 Nothing beside the target is touched before everything about the new file is proved; then the new file takes its
//!   place in one rename. On any failure before that, only our temporary files were there, and they are removed.
//! * I-TGT-2 A `-wal` or `-journal` of the old database must not meet the new one: SQLite would replay it into it. Without leave to
//!   overwrite they are a refusal. With it, they go before the rename.
//! * I-TGT-3 A crash between those two loses nothing: the old database and its `-wal`/`-journal` were hard-linked together under
//!   `<target>.walrust-old-<id>` first, a complete database of its own, and are removed only after the rename is durable.
//! * I-TGT-4 A file that somebody has open is not replaced. That is asked before the work begins, and again right before the change,
//!   from when on nobody is let in until the new file has the name ([`Occupier`]). Who opened the old file in between is seen then, and
//!   finds it in its place again.
//! * I-TGT-5 A file of 0 bytes without a filled `-wal` or `-journal` is no database: it is replaced without leave to overwrite.
//! * I-TGT-6 The new file has mode and owner of the one it replaces; else those of the replica's files, which are the database's; else,
//!   as SQLite makes a new database, a mode by the umask. What root makes in a user's directory is that user's.
//!
//! * I-TGT-7 The temporary file of a restore that was interrupted, by a kill or since the store was away, stays for the next one to the same
//!   target ([`Target::take_up`]), which proves each page that it takes from it ([`super::reuse`]). Whoever builds one holds its lock, so
//!   nobody takes up what another is at work on. One that is another user's, or has a second name, is not believed.
//!
//! A crash leaves `<target>.walrust-restore-<id>` (taken up by the next restore to that target; swept by one that takes up nothing, once an
//! hour old, as is what lies beside it) or the complete old pair (kept, for a person to look at). Refused: removing the `-wal` after the rename (a crash between poisons the
//! new database), and checkpointing it away (a restore must not need the old database to be sound).

use crate::base::{Error, Kind, Manners, Result, clock, crash, durable};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// What to do with a file that is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overwrite {
    /// An existing target is an error.
    #[default]
    Refuse,
    /// It is replaced once the new one is proved.
    Replace,
}

/// A target that others are kept out of, until this is dropped.
pub trait Occupied {
    /// Whether there is a file.
    fn is_there(&self) -> bool;
    /// Asked right after another file has taken its name: an error if somebody opened the old one in the last moment, who has to find it
    /// under its name again.
    fn stayed_alone(&self) -> Result<()>;
    /// Told when the change is there to stay.
    fn replaced(&mut self);
}

/// Gives leave to replace a file, or says who has it open.
pub type Occupier<'a> = &'a (dyn Fn(&Path) -> Result<Box<dyn Occupied>> + Sync);

/// What SQLite keeps beside a database file.
const SIDECARS: [&str; 3] = ["-wal", "-journal", "-shm"];
/// What a temporary file is called after its target, before its id.
const TEMP: &str = ".walrust-restore-";
/// A second name of the old database while it loses its own.
const OLD: &str = ".old";
/// Temporary files of ours older than this belong to nobody alive.
const STALE: Duration = Duration::from_secs(3600);

/// A target on its way from "may be written" to "written".
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    temp: PathBuf,
    id: String,
    overwrite: Overwrite,
    /// Whether the temporary file stays when this is dropped.
    stays: bool,
}

impl Target {
    /// Checks that `path` may be written, and chooses the temporary name beside it. Creates nothing.
    pub fn prepare(path: &Path, overwrite: Overwrite) -> Result<Target> {
        // Through a symbolic link SQLite keeps the -wal beside the real file, and so the real file is the target.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let shown = path.display();
        let Some(name) = path.file_name() else {
            return Err(Error::config(format!("restore target '{shown}' is not a file name")));
        };
        let dir = parent(path);
        if !dir.is_dir() {
            let text = format!(
                "restore target {shown}: the directory {} does not exist; create it first",
                dir.display()
            );
            return Err(Error::new(Kind::Missing, text));
        }
        match fs::symlink_metadata(path) {
            Ok(m) if m.is_dir() => {
                return Err(Error::config(format!(
                    "restore target {shown} is a directory; give a file name"
                )));
            }
            Ok(_) if overwrite == Overwrite::Refuse && !is_placeholder(path) => {
                let text = format!(
                    "restore target {shown} exists; choose another path, or pass overwrite to replace it"
                );
                return Err(Error::new(Kind::Exists, text));
            }
            Ok(m) if !m.is_file() => {
                return Err(Error::config(format!("restore target {shown} is not an ordinary file")));
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", path, e)),
        }
        if overwrite == Overwrite::Refuse
            && let Some(left) = SIDECARS.iter().take(2).map(|s| with_suffix(path, s)).find(|p| is_filled(p))
        {
            let text = format!(
                "{} lies beside the restore target and would be replayed into it; remove it, or pass overwrite",
                left.display()
            );
            return Err(Error::new(Kind::Exists, text));
        }
        let id = format!("{:016x}", clock::random_u64());
        let mut temp_name = name.to_os_string();
        temp_name.push(format!("{TEMP}{id}"));
        Ok(Target { path: path.to_path_buf(), temp: dir.join(temp_name), id, overwrite, stays: false })
    }

    /// Removes what crashed restores to the same target left an hour ago or earlier.
    pub fn sweep(&self) {
        let name = self.path.file_name().unwrap_or_default();
        sweep(&parent(&self.path), &name.to_string_lossy(), &self.temp);
    }

    /// Goes on in the temporary file that an interrupted restore to the same target left (I-TGT-7): the newest, and locked. `None` if there
    /// is none.
    pub fn take_up(&mut self) -> Option<File> {
        let name = self.path.file_name()?.to_string_lossy().into_owned();
        let prefix = format!("{name}{TEMP}");
        let mut left: Vec<(PathBuf, String)> = fs::read_dir(parent(&self.path))
            .ok()?
            .flatten()
            .filter_map(|e| {
                let id = e.file_name().to_str()?.strip_prefix(&prefix)?.to_string();
                is_id(&id).then(|| (e.path(), id))
            })
            .collect();
        left.sort_by_key(|(path, _)| std::cmp::Reverse(fs::metadata(path).and_then(|m| m.modified()).ok()));
        let (path, id, file) =
            left.into_iter().find_map(|(path, id)| own_and_free(&path).map(|file| (path, id, file)))?;
        (self.temp, self.id) = (path, id);
        Some(file)
    }

    /// Removes the temporary file: what is in it does not fit. Errors with `Io`.
    pub fn discard(&self) -> Result<()> {
        remove(&self.temp)
    }

    /// The temporary file stays for the next restore to this target, if there is anything in it.
    pub fn leave(&mut self) {
        self.stays = is_filled(&self.temp);
    }

    /// I-TGT-4, before the work.
    pub fn refuse_used(&self, occupier: Option<Occupier<'_>>) -> Result<()> {
        occupier.map_or(Ok(()), |ask| ask(&self.path).map(drop))
    }

    /// Where the new database is built.
    pub fn temp(&self) -> &Path {
        &self.temp
    }

    /// Where it goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the finished, durable temporary file in the target's place (I-TGT-1..6). `replica` are the manners of the replica's files.
    pub fn commit(mut self, occupier: Option<Occupier<'_>>, replica: Option<Manners>) -> Result<()> {
        for s in SIDECARS {
            remove(&with_suffix(&self.temp, s))?;
        }
        let mut occupied = occupier.map(|ask| ask(&self.path)).transpose()?;
        let replaces = match &occupied {
            Some(o) => o.is_there(),
            None => fs::symlink_metadata(&self.path).is_ok(),
        };
        if replaces && self.overwrite == Overwrite::Refuse && !is_placeholder(&self.path) {
            return Err(self.appeared());
        }
        self.dress(replica)?;
        let old = self.set_old_pair_aside()?;
        crash::point("restore.aside");
        if let Err(e) = self.swap(replaces, occupied.as_deref()) {
            old.put_back();
            return Err(e);
        }
        self.stays = true;
        crash::point("restore.renamed");
        let durable = sync_dir(&parent(&self.path)).and_then(|()| old.forget());
        if let Some(o) = &mut occupied {
            o.replaced();
        }
        durable
    }

    fn appeared(&self) -> Error {
        let text = format!("restore target {} appeared while it was restored", self.path.display());
        Error::new(Kind::Exists, text)
    }

    /// I-TGT-6.
    fn dress(&self, replica: Option<Manners>) -> Result<()> {
        let io = |e| Error::io("set permissions of", &self.temp, e);
        let file = File::open(&self.temp).map_err(io)?;
        let own_by_directory = || Manners::beside(&self.path).map_or((), |dir| dir.own(&self.temp));
        match (Manners::of(&self.path), replica) {
            (Some(manners), _) => manners.dress(&file),
            (None, Some(manners)) => {
                manners.dress(&file);
                if manners.are_roots() {
                    own_by_directory();
                }
            }
            (None, None) => {
                // As SQLite would make a new database here: by the umask, which a new file shows.
                let probe = with_suffix(&self.temp, ".mode");
                let usual = File::create_new(&probe).and_then(|f| f.metadata());
                remove(&probe)?;
                file.set_permissions(usual.map_err(io)?.permissions()).map_err(io)?;
                own_by_directory();
            }
        }
        Ok(())
    }

    /// Takes the old file's sidecars away, renames.
    fn swap(&self, replaces: bool, occupied: Option<&dyn Occupied>) -> Result<()> {
        if replaces || self.overwrite == Overwrite::Replace {
            for s in SIDECARS {
                remove(&with_suffix(&self.path, s))?;
            }
        }
        crash::point("restore.sidecars-removed");
        if !replaces {
            // A link does not replace what somebody else has put there meanwhile; a rename would.
            match fs::hard_link(&self.temp, &self.path) {
                Ok(()) => return remove(&self.temp),
                Err(_) if fs::symlink_metadata(&self.path).is_ok() => return Err(self.appeared()),
                // A file system without links.
                Err(_) => {}
            }
        }
        // (Where a file system makes no links, or not of this file, what is done here cannot be taken back.)
        let old = with_suffix(&self.temp, OLD);
        let can_undo = replaces && occupied.is_some() && fs::hard_link(&self.path, &old).is_ok();
        fs::rename(&self.temp, &self.path)
            .map_err(|e| Error::io("rename the restored database to", &self.path, e))?;
        if can_undo {
            if let Some(Err(e)) = occupied.map(Occupied::stayed_alone) {
                fs::rename(&old, &self.path)
                    .map_err(|e| Error::io("give its name back to", &self.path, e))?;
                return Err(e);
            }
            remove(&old)?;
        }
        Ok(())
    }

    /// I-TGT-3. Only needed where there is a `-wal` or `-journal` with content.
    fn set_old_pair_aside(&self) -> Result<Aside> {
        let mut aside = Aside { links: Vec::new() };
        if !self.path.exists() || !SIDECARS.iter().take(2).any(|s| is_filled(&with_suffix(&self.path, s))) {
            return Ok(aside);
        }
        let base = with_suffix(&self.path, &format!(".walrust-old-{}", self.id));
        for s in ["", "-wal", "-journal"] {
            let (from, to) = (with_suffix(&self.path, s), with_suffix(&base, s));
            match fs::hard_link(&from, &to) {
                Ok(()) => aside.links.push((from, to)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => {
                    let e = Error::io("set aside (by a hard link)", &from, e);
                    aside.forget()?;
                    return Err(e);
                }
            }
        }
        sync_dir(&parent(&self.path))?;
        Ok(aside)
    }
}

/// I-TGT-5: what touch(1), a mount of a single file, or a program that only opened it leaves.
pub fn is_placeholder(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0)
        && !SIDECARS.iter().take(2).any(|s| is_filled(&with_suffix(path, s)))
}

fn is_filled(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.len() > 0)
}

impl Drop for Target {
    fn drop(&mut self) {
        // (What stays is the file alone: a committed one has its name, and nothing lies beside it.)
        let first = usize::from(self.stays);
        for s in ["", "-wal", "-journal", "-shm", ".mode", OLD].into_iter().skip(first) {
            if let Err(e) = remove(&with_suffix(&self.temp, s)) {
                log::warn!("walrust: {e}");
            }
        }
    }
}

/// Hard links to the old database and what belongs to it.
struct Aside {
    links: Vec<(PathBuf, PathBuf)>,
}

impl Aside {
    /// The rename failed: the sidecars return to their places.
    fn put_back(&self) {
        for (home, link) in &self.links {
            let back = if home.exists() { fs::remove_file(link) } else { fs::rename(link, home) };
            if let Err(e) = back {
                log::warn!("walrust: cannot put {} back as {}: {e}", link.display(), home.display());
            }
        }
    }

    fn forget(&self) -> Result<()> {
        // The database first: a -wal alone is not taken for a database.
        self.links.iter().try_for_each(|(_, link)| remove(link))
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A file of this user's with one name, that nobody is at work on; locked.
fn own_and_free(path: &Path) -> Option<File> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options().read(true).write(true).custom_flags(no_link).open(path).ok()?;
    file.try_lock().ok()?;
    let (opened, named) = (file.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    let is_own =
        opened.is_file() && opened.nlink() == 1 && opened.uid() == rustix::process::geteuid().as_raw();
    // (Until it was locked, it may have been given the target's name.)
    (is_own && (opened.dev(), opened.ino()) == (named.dev(), named.ino())).then_some(file)
}

/// Removes temporary files that a crashed restore to the same target left.
fn sweep(dir: &Path, name: &str, but: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let prefix = format!("{name}{TEMP}");
    let now = Duration::from_millis(u64::try_from(clock::now().0).unwrap_or(0));
    for e in entries.flatten() {
        let ours = e.file_name().to_string_lossy().starts_with(&prefix) && e.path() != but;
        let age = e
            .metadata()
            .and_then(|m| m.modified())
            .map(|t| now.saturating_sub(t.duration_since(UNIX_EPOCH).unwrap_or(now)));
        if ours && age.is_ok_and(|a| a > STALE) {
            let _ = fs::remove_file(e.path());
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut s = path.as_os_str().to_os_string();
    s.push(suffix);
    PathBuf::from(s)
}

/// Removes a file; one that is not there is fine.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

/// Makes renames and removals in `dir` durable.
fn sync_dir(dir: &Path) -> Result<()> {
    // Windows cannot open a directory as a file, and keeps its directories in order itself.
    if cfg!(windows) {
        return Ok(());
    }
    durable::sync_dir(dir).map_err(|e| Error::io("sync the directory", dir, e))
}
