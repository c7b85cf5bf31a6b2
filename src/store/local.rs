//! A replica in a directory. Our own, not object_store's: that one cannot set a file's time (where
//! Litestream keeps the timestamp), has no conditional update, and says little about what failed.
//!
//! I-LOCAL-1: a file appears under its name complete and synced, or not at all: temp file in the same
//! directory, fsync, link (create-only) or rename, fsync of the directory and of every directory made. What is found
//! there counts as written only after the same syncs ([`LocalDir::settle`]): the try that put it there may have failed
//! in them.
//! I-LOCAL-2: an existing file is never replaced by a create-only put. I-LOCAL-3: conditional updates are
//! serialised by an fcntl lock on `walrust/.walrust-lock` (between processes) and a mutex (within
//! this one, where fcntl locks do not exclude). Where the file system has no locks (SMB, FUSE), none are made
//! ([`LocalDir::probe`]), as on an object store without conditions.
//! A crash leaves a `.walrust-tmp-…` file, which listings skip and a later put in that directory removes after a day.
//! A replica is what lies below its directory: links to other directories in it are not followed.
//! Blocking: the caller runs it on a blocking thread.

use super::conditions::Conditions;
use super::object::{Body, ObjectInfo, Version, file_error, small_enough};
use crate::base::{Error, ForkSafe, Kind, Manners, Result, Timestamp, clock, crash, durable, manners};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Take, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TEMP: &str = ".walrust-tmp-";
const HIDDEN: &str = ".walrust-";
const STALE_TEMP: Duration = Duration::from_secs(86_400);

/// What file systems that are not a local disk's refuse, each in its own words.
#[derive(Clone, Copy, Debug)]
struct Calls {
    link: fn(&Path, &Path) -> std::io::Result<()>,
    lock: fn(&File) -> rustix::io::Result<()>,
}

const SYSTEM: Calls = Calls {
    link: |from, to| fs::hard_link(from, to),
    lock: |file| rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::LockExclusive),
};

/// A directory.
#[derive(Clone, Debug)]
pub(super) struct LocalDir {
    root: PathBuf,
    calls: Calls,
    /// Directories of the replica whose names are known to be durable.
    durable: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Mode and owner for directories of the replica that are made; without them those of the directory above hold.
    like: Option<Manners>,
}

/// Directories above a replica that were made here and whose names could not be synced yet.
static UNSYNCED: ForkSafe<Mutex<BTreeSet<PathBuf>>> = ForkSafe::new(Mutex::default);

fn held(set: &Mutex<BTreeSet<PathBuf>>) -> MutexGuard<'_, BTreeSet<PathBuf>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalDir {
    pub(super) fn new(root: &Path, like: Option<Manners>) -> LocalDir {
        LocalDir { root: root.to_path_buf(), calls: SYSTEM, durable: Arc::default(), like }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Those of its files: a directory of ours tells, or the replica's own.
    pub(super) fn manners(&self) -> Option<Manners> {
        let places = ["ltx", "0009", "0000", "walrust", ""];
        places.iter().find_map(|place| Manners::of(&self.root.join(place)))
    }

    pub(super) fn put_new(&self, key: &str, body: &Body, timestamp: Option<Timestamp>) -> Result<()> {
        let path = self.path(key);
        if path.symlink_metadata().is_ok() {
            return Err(exists(key));
        }
        self.make_parent(&path)?;
        let temp = Temp::write(&path, body, timestamp)?;
        crash::point("store.local.before_link");
        match (self.calls.link)(&temp.path, &path) {
            Ok(()) => drop(temp),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(exists(key)),
            // File systems without hard links: the lock stands in.
            Err(e) if has_no_links(&e) => {
                let _lock = self.lock()?;
                if path.symlink_metadata().is_ok() {
                    return Err(exists(key));
                }
                temp.rename(&path)?;
            }
            Err(e) => return Err(failed("put", key, e)),
        }
        crash::point("store.local.before_dir_sync");
        sync_parent(&path)
    }

    pub(super) fn put_over(&self, key: &str, body: &Body, timestamp: Option<Timestamp>) -> Result<()> {
        let path = self.path(key);
        self.make_parent(&path)?;
        Temp::write(&path, body, timestamp)?.rename(&path)?;
        sync_parent(&path)
    }

    /// Makes durable what lies at `key`: the file, its name, and those of its directories (I-LOCAL-1).
    pub(super) fn settle(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        self.make_parent(&path)?;
        File::open(&path).and_then(|f| durable::sync_file(&f)).map_err(|e| failed("sync", key, e))?;
        sync_parent(&path)
    }

    /// Makes the directories above `path`. Each directory's name is synced by this process once at the least: whoever
    /// made it may have ended, or failed, before that.
    fn make_parent(&self, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), |parent| self.make_dir(parent))
    }

    fn make_dir(&self, dir: &Path) -> Result<()> {
        if dir.is_dir() && held(&self.durable).contains(dir) {
            return Ok(());
        }
        let is_root = dir == self.root || !dir.starts_with(&self.root);
        match dir.parent() {
            Some(up) if is_root => make_above(up, self.like)?,
            Some(up) => self.make_dir(up)?,
            None => {}
        }
        let like = self.like.or_else(|| if is_root { None } else { Manners::beside(dir) });
        let made = make_one(dir, |d| like.map_or_else(|| fs::create_dir(d), |m| m.make_dir(d).map(drop)))?;
        match durable::sync_parent(dir) {
            // The directory above the replica is somebody else's, and so is the name in it, if that was there before.
            Err(e) if is_root && !made && e.kind() == ErrorKind::PermissionDenied => {}
            done => done.map_err(|e| failed("sync the directory of", &dir.display().to_string(), e))?,
        }
        held(&self.durable).insert(dir.to_path_buf());
        Ok(())
    }

    pub(super) fn put_if(&self, key: &str, body: &Body, expected: Option<&Version>) -> Result<Version> {
        let lock = self.lock()?;
        if lock.file.is_none() {
            return Err(Error::config(format!(
                "{} is on a file system without locks: what lies there cannot be replaced on condition",
                self.root.display()
            )));
        }
        let now = match self.get_versioned(key) {
            Ok((_, version)) => Some(version),
            Err(e) if e.is_missing() => None,
            Err(e) => return Err(e),
        };
        if now.as_ref() != expected {
            return Err(exists(key));
        }
        self.put_over(key, body, None)?;
        Ok(Version::of_content(&body.read()?))
    }

    fn get_versioned(&self, key: &str) -> Result<(Vec<u8>, Version)> {
        let (file, size) = self.open(key)?;
        small_enough(key, size)?;
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(|e| failed("get", key, e))?;
        super::object::complete(key, bytes.len() as u64, size)?;
        let version = Version::of_content(&bytes);
        Ok((bytes, version))
    }

    /// The file at the start of `range` (`None`: all of it), and how many bytes there are from there, to its end at
    /// the most.
    pub(super) fn open_at(&self, key: &str, range: Option<Range<u64>>) -> Result<(Take<File>, u64)> {
        let (mut file, size) = self.open(key)?;
        let Some(range) = range else { return Ok((file.take(size), size)) };
        if range.start > size || (range.start == size && range.end > range.start) {
            return Err(Error::corrupt(format!(
                "cannot get {key}: the object ends before the requested range"
            )));
        }
        file.seek(SeekFrom::Start(range.start)).map_err(|e| failed("get", key, e))?;
        let length = range.end.min(size).saturating_sub(range.start);
        Ok((file.take(length), length))
    }

    /// The open file and its size.
    fn open(&self, key: &str) -> Result<(File, u64)> {
        // (A FIFO in its place must not keep us waiting for a writer.)
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(self.path(key))
            .map_err(|e| failed("get", key, e))?;
        let meta = file.metadata().map_err(|e| failed("get", key, e))?;
        if !meta.is_file() {
            return Err(Error::new(Kind::Missing, format!("cannot get {key}: it is no file")));
        }
        Ok((file, meta.len()))
    }

    pub(super) fn head(&self, key: &str) -> Result<ObjectInfo> {
        let meta = fs::metadata(self.path(key)).map_err(|e| failed("look up", key, e))?;
        if !meta.is_file() {
            return Err(Error::new(Kind::Missing, format!("cannot look up {key}: it is no file")));
        }
        Ok(info(key.to_string(), &meta))
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut out = Vec::new();
        let mut folders = vec![prefix.to_string()];
        while let Some(folder) = folders.pop() {
            for (key, meta) in self.entries(&folder)? {
                if meta.is_dir() {
                    folders.push(key);
                } else if meta.is_file() {
                    out.push(info(key, &meta));
                }
            }
        }
        Ok(out)
    }

    /// Some files in `prefix` and below. A folder below it that may not be read, like a disk's `lost+found`, is passed
    /// over.
    pub(super) fn sample(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        let mut out = Vec::new();
        let mut folders = vec![prefix.to_string()];
        while let Some(folder) = folders.pop() {
            let entries = match self.entries(&folder) {
                Err(e) if e.kind() == Kind::Denied && folder != prefix => continue,
                entries => entries?,
            };
            for (key, meta) in entries {
                if meta.is_dir() {
                    folders.push(key);
                } else if out.len() >= limit {
                    return Ok(out);
                } else if meta.is_file() {
                    out.push(info(key, &meta));
                }
            }
        }
        Ok(out)
    }

    /// Keys and metadata directly in `folder`; nothing if it is absent.
    fn entries(&self, folder: &str) -> Result<Vec<(String, fs::Metadata)>> {
        let entries = match fs::read_dir(self.path(folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("list", folder, e)),
        };
        let mut out = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed("list", folder, e))?;
            // Names of ours are UTF-8; a foreign file with another name is none of our business.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(HIDDEN) {
                continue;
            }
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let link = entry.file_type().is_ok_and(|t| t.is_symlink());
            match fs::metadata(entry.path()) {
                // A link to a directory may lead outside, or back.
                Ok(meta) if link && meta.is_dir() => {}
                Ok(meta) => out.push((key, meta)),
                Err(_) if link => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(failed("list", &key, e)),
            }
        }
        Ok(out)
    }

    pub(super) fn delete(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            match fs::remove_file(self.path(key)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("delete", key, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// What this file system can: locks, else links, else nothing that keeps two writers apart.
    pub(super) fn probe(&self) -> Result<Conditions> {
        if self.lock()?.file.is_some() {
            return Ok(Conditions::Held);
        }
        let name = self.root.join("walrust").join(format!(
            "{TEMP}{:x}-{:016x}",
            clock::now().0,
            clock::random_u64()
        ));
        let temp = Temp::write(&name, &Body::Bytes(Bytes::new()), None)?;
        match (self.calls.link)(&temp.path, &name) {
            Ok(()) => {
                let _ = fs::remove_file(&name);
                Ok(Conditions::CreateOnly)
            }
            Err(e) if has_no_links(&e) => Ok(Conditions::Ignored),
            Err(e) => Err(failed("put", &name.display().to_string(), e)),
        }
    }

    fn lock(&self) -> Result<Lock> {
        static WITHIN_PROCESS: ForkSafe<Mutex<()>> = ForkSafe::new(Mutex::default);
        let within = WITHIN_PROCESS.lock();
        let path = self.root.join("walrust").join(".walrust-lock");
        self.make_parent(&path)?;
        let file = manners::open_or_create(&path).map_err(|e| failed("lock", "walrust/.walrust-lock", e))?;
        let file = match (self.calls.lock)(&file) {
            Ok(()) => Some(file),
            Err(e) if has_no_locks(e) => None,
            Err(e) => return Err(failed("lock", "walrust/.walrust-lock", e.into())),
        };
        Ok(Lock { file, _within: within })
    }
}

/// The file first: closing it gives up the fcntl lock, then the mutex goes.
struct Lock {
    /// `None`: the file system has no locks; only this process's threads are kept apart.
    file: Option<File>,
    _within: std::sync::MutexGuard<'static, ()>,
}

/// A temp file, removed when dropped unless renamed.
struct Temp {
    path: PathBuf,
}

impl Temp {
    fn write(target: &Path, body: &Body, timestamp: Option<Timestamp>) -> Result<Temp> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        sweep(parent);
        let now = clock::now().0;
        let temp = Temp { path: parent.join(format!("{TEMP}{now:x}-{:016x}", clock::random_u64())) };
        let shown = temp.path.display().to_string();
        let mut file = manners::create(&temp.path).map_err(|e| failed("put", &shown, e))?;
        match body {
            Body::Bytes(bytes) => file.write_all(bytes).map_err(|e| failed("put", &shown, e))?,
            Body::File(source) => {
                let mut source_file = File::open(source).map_err(|e| file_error("read", source, e))?;
                std::io::copy(&mut source_file, &mut file).map_err(|e| failed("put", &shown, e))?;
            }
        }
        if let Some(at) = timestamp {
            // (The time stands in the file's header as well.)
            match file.set_modified(system_time(at)) {
                Err(e) if !durable::cannot(&e) && e.kind() != ErrorKind::PermissionDenied => {
                    return Err(failed("put", &shown, e));
                }
                _ => {}
            }
        }
        durable::sync_file(&file).map_err(|e| failed("put", &shown, e))?;
        Ok(temp)
    }

    fn rename(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|e| failed("put", &target.display().to_string(), e))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes temp files that a crash left more than a day ago.
fn sweep(folder: &Path) {
    let oldest = clock::now().0 - i64::try_from(STALE_TEMP.as_millis()).unwrap_or(i64::MAX);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let made = name.to_str().and_then(|n| n.strip_prefix(TEMP)).and_then(|n| n.split('-').next());
        if made.and_then(|m| i64::from_str_radix(m, 16).ok()).is_some_and(|m| m < oldest) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes `dir` and what is missing above it, each synced into its parent. What is there is left as it is, unless it
/// was made here and could not be synced.
fn make_above(dir: &Path, like: Option<Manners>) -> Result<()> {
    if dir.is_dir() && !UNSYNCED.lock().contains(dir) {
        return Ok(());
    }
    dir.parent().map_or(Ok(()), |up| make_above(up, like))?;
    if make_one(dir, |d| fs::create_dir(d))?
        && let Some(manners) = like
    {
        manners.own(dir);
    }
    UNSYNCED.lock().insert(dir.to_path_buf());
    sync_parent(dir)?;
    UNSYNCED.lock().remove(dir);
    Ok(())
}

/// Makes a directory; whether it was not there.
fn make_one(dir: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<bool> {
    if dir.is_dir() {
        return Ok(false);
    }
    match make(dir) {
        Ok(()) => Ok(true),
        Err(_) if dir.is_dir() => Ok(false),
        Err(e) => Err(failed("make directory", &dir.display().to_string(), e)),
    }
}

fn sync_parent(path: &Path) -> Result<()> {
    durable::sync_parent(path).map_err(|e| {
        let parent = path.parent().unwrap_or(Path::new("/"));
        failed("sync", &parent.display().to_string(), e)
    })
}

/// Whether a lock failed because the file system has none.
fn has_no_locks(e: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::NOLCK, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::INVAL].contains(&e)
}

/// Whether a link failed because the file system makes none: each has its own word for that.
fn has_no_links(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let words = [
        Errno::PERM,
        Errno::ACCESS,
        Errno::NOTSUP,
        Errno::OPNOTSUPP,
        Errno::NOSYS,
        Errno::INVAL,
        Errno::MLINK,
    ];
    Errno::from_io_error(e).is_some_and(|e| words.contains(&e))
}

fn info(key: String, meta: &fs::Metadata) -> ObjectInfo {
    let modified = meta.modified().map(timestamp).unwrap_or_default();
    ObjectInfo { key, size: meta.len(), modified, etag: None, sha256: None, timestamp: Some(modified) }
}

fn timestamp(t: SystemTime) -> Timestamp {
    Timestamp(match t.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
        Err(e) => -i64::try_from(e.duration().as_millis()).unwrap_or(i64::MAX),
    })
}

fn system_time(t: Timestamp) -> SystemTime {
    let d = Duration::from_millis(t.0.unsigned_abs());
    if t.0 < 0 { UNIX_EPOCH - d } else { UNIX_EPOCH + d }
}

fn exists(key: &str) -> Error {
    Error::new(Kind::Exists, format!("cannot put {key}: something else is in its place"))
}

fn failed(what: &str, key: &str, e: std::io::Error) -> Error {
    let kind = match e.kind() {
        ErrorKind::NotFound => Kind::Missing,
        ErrorKind::PermissionDenied => Kind::Denied,
        ErrorKind::AlreadyExists => Kind::Exists,
        ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidInput => Kind::Config,
        // A full disk, a network file system that is away: like an outage of a remote store, it may pass.
        _ => Kind::Retry,
    };
    Error::new(kind, format!("cannot {what} {key}")).because(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    /// A directory of which links and locks fail with these errors.
    fn dir(root: &Path, link: Option<Errno>, lock: Option<Errno>) -> LocalDir {
        let mut dir = LocalDir::new(root, None);
        macro_rules! fail {
            ($errno:expr, $($known:ident)*) => {
                match $errno {
                    $(Some(Errno::$known) => |_, _| Err(Errno::$known.into()),)*
                    Some(other) => panic!("{other}"),
                    None => SYSTEM.link,
                }
            };
        }
        macro_rules! fail_lock {
            ($errno:expr, $($known:ident)*) => {
                match $errno {
                    $(Some(Errno::$known) => |_| Err(Errno::$known),)*
                    Some(other) => panic!("{other}"),
                    None => SYSTEM.lock,
                }
            };
        }
        dir.calls.link = fail!(link, PERM ACCESS NOTSUP NOSYS INVAL MLINK IO);
        dir.calls.lock = fail_lock!(lock, NOLCK NOSYS NOTSUP INVAL IO);
        dir
    }

    #[test]
    fn a_file_system_that_lacks_links_or_locks_is_used_for_what_it_has() {
        let links = [Errno::PERM, Errno::ACCESS, Errno::NOTSUP, Errno::NOSYS, Errno::INVAL, Errno::MLINK];
        let locks = [Errno::NOLCK, Errno::NOSYS, Errno::NOTSUP, Errno::INVAL];
        for link in links.into_iter().map(Some).chain([None]) {
            for lock in locks.into_iter().map(Some).chain([None]) {
                let root = tempfile::tempdir().unwrap();
                let d = dir(root.path(), link, lock);
                let expected = match (link, lock) {
                    (_, None) => Conditions::Held,
                    (None, Some(_)) => Conditions::CreateOnly,
                    (Some(_), Some(_)) => Conditions::Ignored,
                };
                assert_eq!(d.probe().unwrap(), expected, "{link:?} {lock:?}");
                let body = |text: &str| Body::Bytes(text.to_string().into());
                let at = Some(Timestamp(1_000));
                d.put_new("a/b", &body("one"), at).unwrap_or_else(|e| panic!("{link:?} {lock:?}: {e}"));
                assert_eq!(d.put_new("a/b", &body("two"), at).unwrap_err().kind(), Kind::Exists);
                d.put_over("m", &body("x"), None).unwrap();
                match (d.put_if("l", &body("x"), None), lock) {
                    (Ok(version), None) => {
                        d.put_if("l", &body("y"), Some(&version)).unwrap();
                    }
                    (Err(e), Some(_)) => {
                        assert!(e.kind() == Kind::Config && e.to_string().contains("without locks"), "{e}");
                        assert!(d.head("l").unwrap_err().is_missing(), "nothing was written");
                    }
                    (put, lock) => panic!("{put:?} {lock:?}"),
                }
                let names: Vec<String> = d.list("").unwrap().into_iter().map(|o| o.key).collect();
                assert!(
                    names.iter().all(|n| ["a/b", "m", "l"].contains(&n.as_str())),
                    "no litter: {names:?}"
                );
                assert_eq!(fs::read(root.path().join("a/b")).unwrap(), b"one");
            }
        }
    }

    #[test]
    fn a_failing_disk_is_not_taken_for_one_that_cannot() {
        let root = tempfile::tempdir().unwrap();
        let body = Body::Bytes("x".into());
        let d = dir(root.path(), Some(Errno::IO), None);
        assert_eq!(d.put_new("a", &body, None).unwrap_err().kind(), Kind::Retry);
        let d = dir(root.path(), None, Some(Errno::IO));
        assert_eq!(d.probe().unwrap_err().kind(), Kind::Retry);
        assert_eq!(d.put_if("a", &body, None).unwrap_err().kind(), Kind::Retry);
        assert!(d.list("").unwrap().is_empty());
    }
}
