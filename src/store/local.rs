//! A replica in a directory. Our own, not object_store's: that one cannot set a file's time (where
//! Litestream keeps the timestamp), has no conditional update, and says little about what failed.
//!
//! I-LOCAL-1: a file appears under its name complete and synced, or not at all: temp file in the same
//! directory, fsync, link (create-only) or rename, fsync of the directory and of every directory made. What is found there
//! counts as written only after the same syncs ([`LocalDir::settle`]): the try that put it there may have failed in them.
//! I-LOCAL-2: an existing file is never replaced by a create-only put. I-LOCAL-3: conditional updates are
//! serialised by an fcntl lock on `walrust/.walrust-lock` (between processes) and a mutex (within
//! this one, where fcntl locks do not exclude).
//! A crash leaves a `.walrust-tmp-…` file, which listings skip and a later put in that directory removes after a day.
//! A replica is what lies below its directory: links to other directories in it are not followed.
//! Blocking: the caller runs it on a blocking thread.

use super::{Body, ObjectInfo, Version};
use crate::base::{Error, ForkSafe, Kind, Manners, Result, Timestamp, clock, crash, durable, manners};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TEMP: &str = ".walrust-tmp-";
const HIDDEN: &str = ".walrust-";
const STALE_TEMP: Duration = Duration::from_secs(86_400);

/// A directory.
#[derive(Clone, Debug)]
pub(super) struct LocalDir {
    root: PathBuf,
    /// Directories of the replica whose names are known to be durable.
    durable: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Mode and owner for directories of the replica that are made; without them those of the directory above hold.
    pub(super) like: Option<Manners>,
}

/// Directories above a replica that were made here and whose names could not be synced yet.
static UNSYNCED: ForkSafe<Mutex<BTreeSet<PathBuf>>> = ForkSafe::new(Mutex::default);

fn held(set: &Mutex<BTreeSet<PathBuf>>) -> MutexGuard<'_, BTreeSet<PathBuf>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalDir {
    pub(super) fn new(root: &Path) -> LocalDir {
        LocalDir { root: root.to_path_buf(), durable: Arc::default(), like: None }
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
        match fs::hard_link(&temp.path, &path) {
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

    pub(super) fn put_over(&self, key: &str, body: &Body) -> Result<()> {
        let path = self.path(key);
        self.make_parent(&path)?;
        Temp::write(&path, body, None)?.rename(&path)?;
        sync_parent(&path)
    }

    /// Makes durable what lies at `key`: the file, its name, and those of its directories (I-LOCAL-1).
    pub(super) fn settle(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        self.make_parent(&path)?;
        File::open(&path).and_then(|f| f.sync_all()).map_err(|e| failed("sync", key, e))?;
        sync_parent(&path)
    }

    /// Makes the directories above `path`. Each directory's name is synced by this process once at the least: whoever made it may
    /// have ended, or failed, before that.
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
        let _lock = self.lock()?;
        let now = match self.get_versioned(key) {
            Ok((_, version)) => Some(version),
            Err(e) if e.is_missing() => None,
            Err(e) => return Err(e),
        };
        if now.as_ref() != expected {
            return Err(exists(key));
        }
        self.put_over(key, body)?;
        Ok(version_of(&body.read()?))
    }

    /// The bytes of `range`, fewer if the file ends within it.
    pub(super) fn get(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let (file, size) = self.open(key)?;
        if range.start > size || (range.start == size && range.end > range.start) {
            return Err(Error::corrupt(format!(
                "cannot get {key}: the object ends before the requested range"
            )));
        }
        read(key, file, range.start..range.end.min(size))
    }

    pub(super) fn get_versioned(&self, key: &str) -> Result<(Vec<u8>, Version)> {
        let (file, size) = self.open(key)?;
        super::small_enough(key, size)?;
        let bytes = read(key, file, 0..size)?;
        let version = version_of(&bytes);
        Ok((bytes, version))
    }

    /// The open file and its size.
    pub(super) fn open(&self, key: &str) -> Result<(File, u64)> {
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

    /// Some files in `prefix` and below. A folder below it that may not be read, like a disk's `lost+found`, is passed over.
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

    pub(super) fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        let entries = self.entries(prefix)?;
        Ok(entries.into_iter().filter(|(_, meta)| meta.is_dir()).map(|(key, _)| key).collect())
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

    fn lock(&self) -> Result<Lock> {
        static WITHIN_PROCESS: ForkSafe<Mutex<()>> = ForkSafe::new(Mutex::default);
        let within = WITHIN_PROCESS.lock();
        let path = self.root.join("walrust").join(".walrust-lock");
        self.make_parent(&path)?;
        let file = manners::open_or_create(&path).map_err(|e| failed("lock", "walrust/.walrust-lock", e))?;
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| failed("lock", "walrust/.walrust-lock", e.into()))?;
        Ok(Lock { _file: file, _within: within })
    }
}

/// The file first: closing it gives up the fcntl lock, then the mutex goes.
struct Lock {
    _file: File,
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
                let mut source_file = File::open(source).map_err(|e| super::file_error("read", source, e))?;
                std::io::copy(&mut source_file, &mut file).map_err(|e| failed("put", &shown, e))?;
            }
        }
        if let Some(at) = timestamp {
            file.set_modified(system_time(at)).map_err(|e| failed("put", &shown, e))?;
        }
        file.sync_all().map_err(|e| failed("put", &shown, e))?;
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

/// Makes `dir` and what is missing above it, each synced into its parent. What is there is left as it is, unless it was made here
/// and could not be synced.
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

/// The bytes of `range`, which the file was seen to have.
fn read(key: &str, mut file: File, range: Range<u64>) -> Result<Vec<u8>> {
    let length = range.end.saturating_sub(range.start);
    let mut out = Vec::new();
    let read = file
        .seek(SeekFrom::Start(range.start))
        .and_then(|_| file.take(length).read_to_end(&mut out))
        .map_err(|e| failed("get", key, e))?;
    if read as u64 != length {
        return Err(Error::new(Kind::Retry, format!("cannot get {key}: the file shrank while it was read")));
    }
    Ok(out)
}

fn version_of(bytes: &[u8]) -> Version {
    Version { etag: Some(super::hex(&Sha256::digest(bytes))), version: None }
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
