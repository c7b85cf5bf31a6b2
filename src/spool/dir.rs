//! The spool's directory: what lies where, and how a file gets there.

use super::files::{is_missing, replace_json, temp_beside};
use super::lock::LockFile;
use super::sums::PageSums;
use crate::base::{Error, Lineage, Manners, Pgno, Result, TxId, manners};
use crate::ltx;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

/// The spool directory of one database.
#[derive(Debug)]
pub struct Spool {
    pub(super) dir: PathBuf,
    /// Without links, and the directory's device and inode: as they were when the spool was opened.
    pub(super) real_dir: PathBuf,
    pub(super) file_id: (u64, u64),
    pub(super) seal_lock: Arc<LockFile>,
    pub(super) ship_lock: Arc<LockFile>,
    /// Opened when needed: sync durability alone does.
    pub(super) ahead_lock: OnceLock<Arc<LockFile>>,
    /// This process holds `ahead_lock`, which it can't see by asking.
    pub(super) ahead_here: AtomicBool,
    pub(super) sums: Arc<PageSums>,
    /// The lineage of which the records that name it are known to be on disk.
    pub(super) identity_on_disk: Mutex<Option<Lineage>>,
    /// Of a mirror's queue: the spool that it lies in, whose position and lineages are its own (see `mirror.rs`).
    pub(super) source: Option<Arc<Spool>>,
}

/// Device and inode of a directory. Errors when it cannot be looked at ([`Kind::Io`](crate::base::Kind::Io)).
pub fn dir_id(dir: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let m = fs::metadata(dir).map_err(|e| Error::io("look at", dir, e))?;
    Ok((m.dev(), m.ino()))
}

/// The directory without links, as far as it exists.
pub fn real_dir(dir: &Path) -> PathBuf {
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let known = full.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)));
    match known {
        Some((a, real)) => real.join(full.strip_prefix(a).unwrap_or(Path::new(""))).components().collect(),
        None => full,
    }
}

/// Creates a directory that another process may be removing (`merge`, in [`Spool::clear`]): `create_dir_all` takes one that goes
/// at the wrong moment for a file in its place.
pub(super) fn create_dir(dir: &Path, like: Option<Manners>) -> std::io::Result<()> {
    loop {
        let made = match like.or_else(|| Manners::beside(dir)) {
            Some(manners) => manners.make_dir_all(dir).map(drop),
            None => fs::create_dir_all(dir),
        };
        match made {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => match fs::metadata(dir) {
                Ok(m) if m.is_dir() => return Ok(()),
                // Gone again, and no link to nowhere.
                Err(_) if fs::symlink_metadata(dir).is_err_and(|e| is_missing(&e)) => {}
                _ => return Err(e),
            },
            made => return made,
        }
    }
}

impl Spool {
    /// Opens the spool in `dir`, creating it if need be.
    pub fn open(dir: &Path) -> Result<Spool> {
        Spool::open_like(dir, None)
    }

    /// As [`Spool::open`]; directories that are made take mode and owner of the database (I-SPOOL-11). Errors as that one.
    pub fn open_like(dir: &Path, like: Option<Manners>) -> Result<Spool> {
        // (`asked` and `merge` are made when they are first needed: a directory costs more than all that is said in it.)
        for sub in ["", "open", "pending", "snapshot"] {
            let d = dir.join(sub);
            create_dir(&d, like).map_err(|e| Error::io("create spool directory", &d, e))?;
        }
        Ok(Spool {
            dir: dir.to_path_buf(),
            real_dir: real_dir(dir),
            file_id: dir_id(dir)?,
            seal_lock: LockFile::open(&dir.join("lock.seal"))?,
            ship_lock: LockFile::open(&dir.join("lock.ship"))?,
            ahead_lock: OnceLock::new(),
            ahead_here: AtomicBool::new(false),
            sums: Arc::new(PageSums::open(&dir.join("pages.sum"))?),
            identity_on_disk: Mutex::new(None),
            source: None,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory without links, as it was when the spool was opened.
    pub fn real_dir(&self) -> &Path {
        &self.real_dir
    }

    /// Whether this spool is in the directory with that device and inode ([`dir_id`]).
    pub fn is_in(&self, id: (u64, u64)) -> bool {
        // The inode of a directory that was deleted may be another one's by now.
        self.file_id == id && dir_id(&self.dir).is_ok_and(|now| now == id)
    }

    /// Whether it was deleted.
    pub fn is_gone(&self) -> bool {
        let own = if self.source.is_some() { "pending" } else { "open" };
        !self.dir.join(own).is_dir()
    }

    /// Whether another directory lies in its place, made by another process, or something that belongs into it is not there.
    pub fn is_replaced(&self) -> bool {
        let lacks = || self.seal_lock.is_missing() || self.sums.is_missing();
        self.seal_lock.is_replaced() || (lacks() && !self.is_gone())
    }

    /// Held for as long as this process ships this database.
    pub fn ship_lock(&self) -> &LockFile {
        &self.ship_lock
    }

    /// The page checksums at the current position.
    pub fn sums(&self) -> &PageSums {
        &self.sums
    }

    /// Writes one LTX file: `fill` gets the temporary file; it appears as `path` when all of it is written.
    pub fn write_file<T>(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut BufWriter<File>) -> Result<T>,
    ) -> Result<T> {
        #[cfg(feature = "sim")]
        crate::base::sim::disk(path)?;
        let tmp = temp_beside(path);
        let made = (|| {
            let file = manners::create(&tmp).map_err(|e| Error::io("create", &tmp, e))?;
            let mut w = BufWriter::with_capacity(64 << 10, file);
            let out = fill(&mut w)?;
            w.flush().map_err(|e| Error::io("write", &tmp, e))?;
            fs::rename(&tmp, path).map_err(|e| Error::io("rename into place", path, e))?;
            Ok(out)
        })();
        if made.is_err() {
            drop(fs::remove_file(&tmp));
        }
        made
    }

    /// Where piece `k` of `txid` lies.
    pub fn piece_path(&self, txid: TxId, k: u32) -> PathBuf {
        self.dir.join("open").join(format!("{txid}.{k}.ltx"))
    }

    /// Where the cut file of `txid` lies.
    pub fn pending_path(&self, txid: TxId) -> PathBuf {
        self.dir.join("pending").join(format!("{txid}.ltx"))
    }

    pub(super) fn asked_path(&self, txid: TxId) -> PathBuf {
        self.dir.join("asked").join(format!("{txid}.ltx"))
    }

    /// Where a finished snapshot of `1..=txid` lies.
    pub fn snapshot_path(&self, txid: TxId) -> PathBuf {
        self.dir.join("snapshot").join(ltx::FileName { min: TxId(1), max: txid }.to_string())
    }

    /// Where a shipped file is kept for merging.
    pub fn merge_path(&self, level: ltx::Level, name: &ltx::FileName) -> PathBuf {
        self.dir.join("merge").join(level.get().to_string()).join(name.to_string())
    }

    pub(super) fn header_of(&self, path: &Path) -> Option<ltx::Header> {
        let f = File::open(path).ok()?;
        ltx::Decoder::new(BufReader::new(f)).ok().map(|d| d.header().clone())
    }

    /// The lineage of a file of the queue.
    pub fn lineage_of(&self, path: &Path) -> Option<Lineage> {
        self.header_of(path).map(|h| h.lineage)
    }

    pub(super) fn write_json<T: serde::Serialize>(&self, name: &str, v: &T) -> Result<()> {
        self.write_text(name, v, |_| Ok(()))
    }

    pub(super) fn write_text<T: serde::Serialize>(
        &self,
        name: &str,
        v: &T,
        settle: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<()> {
        replace_json(&self.dir.join(name), v, settle)
    }
}

/// The checksum of each page that an LTX file holds; errors unless all of the file is valid.
pub fn page_sums_of(path: &Path) -> Result<Vec<(Pgno, u64)>> {
    let f = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut d = ltx::Decoder::new(BufReader::with_capacity(64 << 10, f))?;
    let mut page = vec![0; d.header().page_size.len()];
    let mut out = Vec::new();
    while let Some(pgno) = d.next_page(&mut page)? {
        out.push((pgno, ltx::page_checksum(pgno, &page)));
    }
    d.finish()?;
    Ok(out)
}
