//! The durable local queue between capture and ship: a directory beside the database.
//!
//! # What lies here
//!
//! ```text
//! position.json          how far the WAL is sealed, and what the database then is (Position)
//! shipped.json           the newest TXID that is durable in the replica (Shipped)
//! ventured.json          what may be in the replica although the position does not say so (Ventured)
//! replica.json           which replica that is, and the lineages that are ours (Identity); synced when it changes
//! shipper.json           the process that ships, and where to (Shipping)
//! database.json          whose spool this is (Owner); synced when it changes
//! open/<txid>.<k>.ltx    pieces: sealed WAL ranges of the TXID that is not cut yet
//! pending/<txid>.ltx     cut level-0 files, not yet in the replica
//! asked/<txid>.ltx       the pending files of COMMITs under sync durability, until those are known to have come to be
//! merge/<level>/<name>   files that are in the replica, kept until they are merged upward
//! snapshot/<name>        finished snapshot files on their way to the replica
//! pages.sum              8 bytes a page: the checksum of each page at `position` (PageSums)
//! lock.ship, lock.seal   fcntl locks: who ships (one process), who seals (one thread anywhere)
//! lock.ahead             held by the process whose COMMIT waits for the replica (sync durability)
//! ```
//!
//! # Rules
//!
//! * I-SPOOL-1: files appear under their final name by rename, complete; a file named `.tmp-*` is litter.
//! * I-SPOOL-2: a piece exists before the position that counts it, and the position counts it before the
//!   WAL frames it holds may be overwritten (and after [`Spool::make_durable`]).
//! * I-SPOOL-3: positions are written under the seal lock only.
//! * I-SPOOL-4: the spool is a diode: it cannot name the store. Shipping reads it and removes from it.
//! * I-SPOOL-5: the page sums are trusted only if their XOR equals the position's checksum.
//! * I-SPOOL-6: a process that dies, or fails, between two files leaves a mark in `lock.seal`; the next holder,
//!   of whatever process, settles it first.
//! * I-SPOOL-7: a lineage, and a TXID whose commit may never come to be, are written down before the shipper can see
//!   their files, so that no crash makes this machine take its own files for another's or use the TXID again.
//! * I-SPOOL-8: nothing leaves before the position counts it ([`Spool::shippable`]), except the file that a COMMIT under
//!   sync durability waits for; that one is nobody else's to make again while its process lives.
//! * I-SPOOL-9: whatever the replica may have of a COMMIT that failed, or died with its process, lies in `asked`: that is
//!   how the shipper knows it again, and takes it back.
//! * I-SPOOL-10: a spool is one database's ([`Spool::claim`]), and only files of a lineage that was begun or taken up
//!   here leave it ([`Spool::vouch`]).
//! * I-SPOOL-11: who may read the database may read the spool, and nobody else: what is made takes the database's mode and owner.
//!
//! # After a crash
//!
//! [`Spool::recover`] settles the two places where a crash can fall between two files: a piece that no
//! position counts is adopted if it continues the position (else removed), and a pending file that no
//! position counts likewise. Litter is removed. Anything else unreadable means "position unknown", which
//! the caller answers by comparing content, never by guessing.
//!
//! # Refused
//!
//! A single log file with an index of its own: the LTX files *are* the records, readable by the same
//! strict decoder as everything else. A raw copy of WAL frames: under load one hot page would be copied
//! to disk thousands of times; a piece holds its newest version once.

mod lock;
mod owner;
mod position;
mod sums;

use lock::Mark;
#[cfg(feature = "sim")]
pub use lock::forget_all;
pub use lock::{Held, Keeper, Kept, LockFile, keep_with};
pub use owner::{Owner, Shipping, holder_of, other_database};
pub use position::{FileStamp, Handoff, Identity, Position, Shipped, Ventured, WalPlace, WalPoint};
pub use sums::PageSums;

use crate::base::{
    DbChecksum, Error, Kind, Lineage, Manners, PageSize, Pgno, Result, TxId, crash, durable, manners,
};
use crate::ltx;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Lineages of ours that are remembered: more than could be under way to the replica at once. (Of a file in the queue whose
/// lineage is forgotten nothing tells that it is ours.)
const LINEAGES: usize = 64;

/// Files not forced to disk from which on it is asked whether they are still there.
const UNSYNCED: usize = 128;

/// A file waiting in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Its newest TXID.
    pub txid: TxId,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What [`Spool::shippable`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shippable {
    /// Level-0 files and snapshots, each ascending.
    Files(Vec<Queued>, Vec<Queued>),
    /// Somebody is changing the queue, or died over that: what may leave is not known.
    Changing,
}

/// Proof that the seal lock is held, for what may be done under it only (I-SPOOL-3). Until dropped.
#[derive(Debug)]
pub struct SealHeld<'a> {
    _lock: Held<'a>,
}

/// Several files change that belong together. Dropped without [`Change::done`], it leaves the mark by which the next holder of
/// the seal lock settles them (I-SPOOL-6).
#[derive(Debug)]
#[must_use = "without done() the next holder of the lock settles the change"]
pub struct Change<'a> {
    lock: &'a LockFile,
}

impl Change<'_> {
    /// They have changed.
    pub fn done(self) -> Result<()> {
        self.lock.set_mark(Mark::Clean)
    }
}

/// A file that may go to the replica: its history was begun or taken up in this spool, and only [`Spool::vouch`] says so.
#[derive(Clone, Debug)]
pub struct Vouched {
    queued: Queued,
    lineage: Lineage,
}

impl Vouched {
    /// Its history.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }
}

impl std::ops::Deref for Vouched {
    type Target = Queued;

    fn deref(&self) -> &Queued {
        &self.queued
    }
}

/// The spool directory of one database.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    /// Without links, and the directory's device and inode: as they were when the spool was opened.
    real_dir: PathBuf,
    file_id: (u64, u64),
    seal_lock: Arc<LockFile>,
    ship_lock: Arc<LockFile>,
    /// Opened when needed: sync durability alone does.
    ahead_lock: OnceLock<Arc<LockFile>>,
    /// This process holds `ahead_lock`, which it can't see by asking.
    ahead_here: AtomicBool,
    sums: PageSums,
    /// Files written since the last [`Spool::make_durable`].
    unsynced: Mutex<Vec<PathBuf>>,
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
fn create_dir(dir: &Path, like: Option<Manners>) -> std::io::Result<()> {
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
    /// Opens the spool in `dir`, creating it if need be, and clears litter.
    pub fn open(dir: &Path) -> Result<Spool> {
        Spool::open_like(dir, None)
    }

    /// As [`Spool::open`]; directories that are made take mode and owner of the database (I-SPOOL-11).
    pub fn open_like(dir: &Path, like: Option<Manners>) -> Result<Spool> {
        for sub in ["", "open", "pending", "asked", "merge", "snapshot"] {
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
            sums: PageSums::open(&dir.join("pages.sum"))?,
            unsynced: Mutex::new(Vec::new()),
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

    /// The id under which this spool writes to replicas. It names the file it stands in, too: the copy of a spool is another
    /// writer, however much it knows of the history. On disk before it is used: a machine that came back from a power cut as
    /// another writer would be refused.
    pub fn writer(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        let path = self.dir.join("writer");
        let failed = |e| Error::io("write", &path, e);
        let ino = |m: std::fs::Metadata| format!("{:016x}", m.ino());
        let said = fs::read_to_string(&path).unwrap_or_default();
        if let Some((id, file)) = said.trim_end().split_once(' ')
            && id.len() == 16
            && fs::metadata(&path).map(ino).is_ok_and(|ino| ino == file)
        {
            return Ok(id.to_string());
        }
        let id = format!("{:016x}", crate::base::clock::random_u64());
        drop(fs::remove_file(&path));
        let mut file = manners::create(&path).map_err(failed)?;
        let text = format!("{id} {}\n", file.metadata().map(ino).map_err(failed)?);
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.synced(&path);
        }
        self.sync_names()?;
        Ok(id)
    }

    /// Whether it was deleted.
    pub fn is_gone(&self) -> bool {
        !self.dir.join("open").is_dir()
    }

    /// Whether another directory lies in its place, made by another process, or something that belongs into it is not there.
    pub fn is_replaced(&self) -> bool {
        let lacks = || self.seal_lock.is_missing() || self.sums.is_missing();
        self.seal_lock.is_replaced() || (lacks() && !self.is_gone())
    }

    /// Waits for the lock of whoever seals, one thread of one process at a time, and leaves to [`Spool::recover`] what its last
    /// holder left undone.
    pub fn hold_unsettled(&self) -> Result<SealHeld<'_>> {
        Ok(SealHeld { _lock: self.seal_lock.hold()? })
    }

    /// From now on only the database's content tells where the WAL goes on.
    pub fn forget_place(&self, held: &SealHeld<'_>) -> Result<()> {
        match self.position()? {
            Some(p) => {
                self.set_position(held, &Position { wal: WalPlace::GivenUp, handoff: Handoff::Live, ..p })
            }
            None => Ok(()),
        }
    }

    /// Waits for the seal lock, and settles what its last holder left undone (I-SPOOL-6).
    pub fn hold_seal(&self) -> Result<SealHeld<'_>> {
        self.settle_left(self.hold_unsettled()?)
    }

    fn settle_left<'a>(&'a self, held: SealHeld<'a>) -> Result<SealHeld<'a>> {
        if self.seal_lock.mark()? == Mark::Changing {
            log::warn!("walrust: {}: settling what another left undone", self.dir.display());
            if self.settle(&held)?.is_none() {
                // Only the database's content can tell now, and a resync is what looks at it.
                self.forget_place(&held)?;
                self.end_change(&held)?;
            }
        }
        Ok(held)
    }

    /// Several files change from here to [`Change::done`]; when something fails in between, the next holder looks.
    pub fn begin_change(&self, _held: &SealHeld<'_>) -> Result<Change<'_>> {
        self.seal_lock.set_mark(Mark::Changing)?;
        Ok(Change { lock: &self.seal_lock })
    }

    /// Nothing is left undone, nor made ahead of a COMMIT.
    pub fn end_change(&self, _held: &SealHeld<'_>) -> Result<()> {
        self.seal_lock.set_mark(Mark::Clean)
    }

    /// The next TXID is made before its COMMIT (sync durability): nobody else may make it, until [`Spool::end_change`] or [`Change::done`].
    /// [`Spool::no_longer_ahead`] says when that is over, or the death of this process does.
    pub fn set_ahead(&self, _held: &SealHeld<'_>) -> Result<()> {
        if !self.ahead_lock()?.try_process()? {
            return Err(Error::new(Kind::Retry, "another process has a COMMIT under way"));
        }
        self.ahead_here.store(true, Ordering::Release);
        self.seal_lock.set_mark(Mark::Ahead)
    }

    /// The COMMIT of this process is here, or is given up.
    pub fn no_longer_ahead(&self) {
        if self.ahead_here.swap(false, Ordering::AcqRel)
            && let Ok(l) = self.ahead_lock()
        {
            l.release();
        }
    }

    fn ahead_lock(&self) -> Result<&LockFile> {
        if let Some(l) = self.ahead_lock.get() {
            return Ok(l);
        }
        let opened = LockFile::open(&self.dir.join("lock.ahead"))?;
        Ok(self.ahead_lock.get_or_init(|| opened))
    }

    /// Whether the next TXID is made before its COMMIT. Caller holds the seal lock.
    pub fn is_ahead(&self) -> Result<bool> {
        Ok(self.seal_lock.mark()? == Mark::Ahead)
    }

    /// Whether a process that lives has such a COMMIT under way.
    pub fn is_ahead_alive(&self) -> Result<bool> {
        Ok(self.ahead_here.load(Ordering::Acquire) || self.ahead_lock()?.is_held_elsewhere()?)
    }

    /// Held for as long as this process ships this database.
    pub fn ship_lock(&self) -> &LockFile {
        &self.ship_lock
    }

    /// The page checksums at the current position.
    pub fn sums(&self) -> &PageSums {
        &self.sums
    }

    /// The position, `None` if there is none or it can't be read as one.
    pub fn position(&self) -> Result<Option<Position>> {
        read_json(&self.dir.join("position.json"))
    }

    /// Replaces the position (I-SPOOL-3).
    pub fn set_position(&self, _held: &SealHeld<'_>, p: &Position) -> Result<()> {
        self.write_json("position.json", p)
    }

    /// What is known to be durable in the replica.
    pub fn shipped(&self) -> Result<Option<Shipped>> {
        read_json(&self.dir.join("shipped.json"))
    }

    /// Records what is durable in the replica. Caller holds the ship lock.
    pub fn set_shipped(&self, s: &Shipped) -> Result<()> {
        self.write_json("shipped.json", s)
    }

    /// What may be in the replica although the position does not say so.
    pub fn ventured(&self) -> Result<Option<Ventured>> {
        read_json(&self.dir.join("ventured.json"))
    }

    /// Writes down a TXID that may be in the replica from now on (I-SPOOL-7).
    pub fn venture(&self, _held: &SealHeld<'_>, txid: TxId) -> Result<()> {
        let old = self.ventured()?.unwrap_or_default();
        self.write_json("ventured.json", &Ventured { txid: old.txid.max(txid) })
    }

    /// Whose spool this is.
    pub fn identity(&self) -> Result<Option<Identity>> {
        read_json(&self.dir.join("replica.json"))
    }

    /// `lineage` of `replica` is ours: on disk, whatever happens next, before anything of it can be in the replica.
    /// Records are small and not synced otherwise: what they say is proved again by content.
    pub fn own(&self, replica: &str, lineage: Lineage) -> Result<()> {
        let name = lineage.to_string();
        let old = self.identity()?.filter(|i| i.replica == replica);
        if old.as_ref().is_some_and(|i| i.lineages.last() == Some(&name)) {
            // Written by a call whose sync of the names failed, perhaps.
            return self.sync_names();
        }
        let mut lineages = old.map(|i| i.lineages).unwrap_or_default();
        lineages.retain(|l| *l != name);
        lineages.push(name);
        lineages.drain(..lineages.len().saturating_sub(LINEAGES));
        let identity = Identity { replica: replica.to_string(), lineages };
        self.write_text("replica.json", &identity, |f| f.sync_data())?;
        self.sync_names()
    }

    /// Forces the names of the records to disk, and that of the directory, which may be new, too.
    fn sync_names(&self) -> Result<()> {
        for d in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
            durable::sync_dir(d).map_err(|e| Error::io("sync", d, e))?;
        }
        Ok(())
    }

    /// The replica `old` is known by another name from now on.
    pub fn respell(&self, old: &str, replica: &str) -> Result<()> {
        if let Some(i) = self.identity()?.filter(|i| i.replica == old && old != replica) {
            let identity = Identity { replica: replica.to_string(), ..i };
            self.write_text("replica.json", &identity, |f| f.sync_data())?;
            self.sync_names()?;
        }
        Ok(())
    }

    /// Whether `lineage` of `replica` was begun or taken up here.
    pub fn owns(&self, replica: &str, lineage: Lineage) -> Result<bool> {
        let name = lineage.to_string();
        Ok(self.identity()?.is_some_and(|i| i.replica == replica && i.lineages.contains(&name)))
    }

    /// Says that a file of this spool may go to `replica`. Errors with [`Kind::Corrupt`] for one of a lineage that is neither the
    /// position's nor one of those begun or taken up here for that replica (I-SPOOL-10): it is another database's, or
    /// damaged.
    pub fn vouch(&self, queued: &Queued, replica: &str) -> Result<Vouched> {
        let f = File::open(&queued.path).map_err(|e| Error::io("open", &queued.path, e))?;
        let lineage = ltx::Decoder::new(BufReader::with_capacity(4 << 10, f))?.header().lineage;
        if self.owns(replica, lineage)? || self.position()?.is_some_and(|p| p.lineage == lineage) {
            return Ok(Vouched { queued: queued.clone(), lineage });
        }
        let path = queued.path.display();
        Err(Error::corrupt(format!("{path} is of another history (lineage {lineage}) than this spool's")))
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
        match &made {
            Ok(_) => self.is_unsynced(path),
            Err(_) => drop(fs::remove_file(&tmp)),
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

    /// Keeps the pending file of `txid` in mind: a COMMIT asks the replica to take it (I-SPOOL-9).
    pub fn ask(&self, _held: &SealHeld<'_>, txid: TxId) -> Result<()> {
        let (pending, asked) = (self.pending_path(txid), self.asked_path(txid));
        remove_if_there(&asked)?;
        // (Not every file system has hard links.)
        fs::hard_link(&pending, &asked)
            .or_else(|_| fs::copy(&pending, &asked).map(drop))
            .map_err(|e| Error::io("keep in mind", &asked, e))
    }

    /// The COMMIT that asked for `txid` came to be, or the replica has nothing of it any more.
    pub fn forget_asked(&self, txid: TxId) -> Result<()> {
        remove_if_there(&self.asked_path(txid))
    }

    /// Whether it is not known yet that the COMMIT that asked for `txid` came to be.
    pub fn is_asked(&self, txid: TxId) -> bool {
        self.asked_path(txid).exists()
    }

    /// Files that the replica was asked to take for a COMMIT that did not come to be, or of which nothing is left to tell: the
    /// history went on under another lineage. Those of which it is known by now that they are history are forgotten.
    pub fn refused(&self) -> Result<Vec<Queued>> {
        let asked = match queued_in(&self.dir.join("asked")) {
            Err(e) if e.is_missing() => return Ok(Vec::new()),
            asked => asked?,
        };
        if asked.is_empty() {
            return Ok(asked);
        }
        let Some(p) = self.position()? else { return Ok(Vec::new()) };
        let mut out = Vec::new();
        for q in asked {
            match self.lineage_of(&q.path) {
                Some(l) if l != p.lineage => out.push(q),
                Some(_) if p.txid < q.txid => {}
                _ => self.forget_asked(q.txid)?,
            }
        }
        Ok(out)
    }

    fn asked_path(&self, txid: TxId) -> PathBuf {
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

    /// The lineage of a file of the queue.
    pub fn lineage_of(&self, path: &Path) -> Option<Lineage> {
        self.header_of(path).map(|h| h.lineage)
    }

    /// Lineage of the level-0 file of `txid` that waits here, and the database checksum that it attests.
    pub fn attested(&self, txid: TxId) -> Option<(Lineage, DbChecksum)> {
        let header = self.header_of(&self.pending_path(txid))?;
        Some((header.lineage, header.attest?.after))
    }

    /// Whether a file of that lineage waits for the replica.
    pub fn is_queued(&self, lineage: Lineage) -> Result<bool> {
        let files = self.pending()?.into_iter().chain(self.snapshots()?);
        Ok(files.into_iter().any(|q| self.lineage_of(&q.path) == Some(lineage)))
    }

    /// Makes the pieces into the level-0 file of their TXID and moves the position on. Returns the position after.
    pub fn cut(&self, held: &SealHeld<'_>, p: &Position) -> Result<Position> {
        if p.pieces == 0 {
            return Ok(p.clone());
        }
        let txid = p.txid.next();
        let target = self.pending_path(txid);
        let change = self.begin_change(held)?;
        if p.pieces == 1 && !p.literal {
            let piece = self.piece_path(txid, 0);
            fs::rename(&piece, &target).map_err(|e| Error::io("rename piece to", &target, e))?;
            self.is_unsynced(&target);
        } else {
            self.fold_pieces(txid, p.pieces, &target)?;
        }
        crash::point("cut.after-pending");
        let next = Position { txid, pieces: 0, literal: false, ..p.clone() };
        self.set_position(held, &next)?;
        for k in 0..p.pieces {
            drop(fs::remove_file(self.piece_path(txid, k)));
        }
        change.done()?;
        Ok(next)
    }

    /// Folds many pieces of the open TXID into one, so that their number stays small however long the
    /// replica is away.
    pub fn squash(&self, held: &SealHeld<'_>, p: &Position) -> Result<Position> {
        if p.pieces < 2 {
            return Ok(p.clone());
        }
        let txid = p.txid.next();
        // The fold lands beside the pieces; only then do they go. A crash in between leaves both:
        // recovery finds the fold by its name and finishes.
        let folded = self.dir.join("open").join(format!("{txid}.fold.ltx"));
        let change = self.begin_change(held)?;
        self.fold_pieces(txid, p.pieces, &folded)?;
        let next = self.finish_squash(held, p)?;
        change.done()?;
        Ok(next)
    }

    fn finish_squash(&self, held: &SealHeld<'_>, p: &Position) -> Result<Position> {
        let txid = p.txid.next();
        let folded = self.dir.join("open").join(format!("{txid}.fold.ltx"));
        let next = Position { pieces: 1, literal: false, ..p.clone() };
        let first = self.piece_path(txid, 0);
        fs::rename(&folded, &first).map_err(|e| Error::io("rename fold to", &first, e))?;
        self.is_unsynced(&first);
        crash::point("squash.after-rename");
        self.set_position(held, &next)?;
        for k in 1..p.pieces {
            drop(fs::remove_file(self.piece_path(txid, k)));
        }
        Ok(next)
    }

    fn fold_pieces(&self, txid: TxId, pieces: u32, target: &Path) -> Result<()> {
        let mut inputs = Vec::new();
        for k in 0..pieces {
            let path = self.piece_path(txid, k);
            let f = File::open(&path).map_err(|e| Error::io("open piece", &path, e))?;
            inputs.push(BufReader::with_capacity(32 << 10, f));
        }
        self.write_file(target, |w| ltx::fold(inputs, ltx::Overrides::default(), w).map(drop))
    }

    /// Cut files not yet in the replica, oldest first.
    pub fn pending(&self) -> Result<Vec<Queued>> {
        queued_in(&self.dir.join("pending"))
    }

    /// The files of the queue that may leave: those that the position counts, and one that a COMMIT waits for. Waits for nobody:
    /// while something is being made, or was left by a process that died over it, that is the answer, and
    /// [`Spool::settle_if_free`] comes first (I-SPOOL-6). Errors as the file system does.
    pub fn shippable(&self) -> Result<Shippable> {
        let (mut pending, mut snapshots) = (self.pending()?, self.snapshots()?);
        if pending.is_empty() && snapshots.is_empty() {
            return Ok(Shippable::Files(pending, snapshots));
        }
        let (mut last, mark) = self.counted()?;
        match mark {
            Mark::Changing => return Ok(Shippable::Changing),
            Mark::Ahead => last = last.next(),
            Mark::Clean => {}
        }
        pending.retain(|q| q.txid <= last);
        snapshots.retain(|q| q.txid <= last);
        Ok(Shippable::Files(pending, snapshots))
    }

    /// Settles what the last holder of the seal lock left undone, if nobody has that lock now. Whether nothing is left undone.
    /// Errors as the file system does.
    pub fn settle_if_free(&self) -> Result<bool> {
        let Some(lock) = self.seal_lock.try_hold()? else { return Ok(false) };
        self.settle_left(SealHeld { _lock: lock }).map(|_| true)
    }

    fn counted(&self) -> Result<(TxId, Mark)> {
        let mark = self.seal_lock.mark()?;
        Ok((self.position()?.map(|p| p.txid).unwrap_or_default(), mark))
    }

    /// Snapshot files not yet in the replica, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Queued>> {
        let mut out = Vec::new();
        let dir = self.dir.join("snapshot");
        for e in fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
            let e = e.map_err(|e| Error::io("list", &dir, e))?;
            let Some(name) = e.file_name().to_str().and_then(ltx::FileName::parse) else {
                continue;
            };
            let bytes = e.metadata().map(|m| m.len()).unwrap_or(0);
            out.push(Queued { txid: name.max, path: e.path(), bytes });
        }
        out.sort_by_key(|q| q.txid);
        Ok(out)
    }

    /// Bytes that wait for the replica: pieces, pending files and snapshots.
    pub fn bytes_waiting(&self) -> u64 {
        ["open", "pending", "snapshot"].iter().map(|d| dir_bytes(&self.dir.join(d))).sum()
    }

    /// Bytes of commits that wait for the replica: pieces and pending files.
    pub fn backlog_bytes(&self) -> u64 {
        ["open", "pending"].iter().map(|d| dir_bytes(&self.dir.join(d))).sum()
    }

    /// All bytes of the spool, what is kept for merging included.
    pub fn bytes(&self) -> u64 {
        self.bytes_waiting() + tree_bytes(&self.dir.join("merge")) + file_bytes(&self.dir.join("pages.sum"))
    }

    /// Notes a file that [`Spool::make_durable`] is to force to disk. Where nothing ever resets a WAL, nobody calls that: then
    /// those that have left the spool are forgotten, and the list is no longer than the spool.
    fn is_unsynced(&self, path: &Path) {
        let mut unsynced = lock(&self.unsynced);
        if unsynced.len() >= UNSYNCED && unsynced.len().is_power_of_two() {
            unsynced.sort_unstable();
            unsynced.dedup();
            unsynced.retain(|p| p.exists());
        }
        unsynced.push(path.to_path_buf());
    }

    /// Forces everything written so far to disk: what the WAL loses next is then only here.
    pub fn make_durable(&self) -> Result<()> {
        let files = std::mem::take(&mut *lock(&self.unsynced));
        for path in &files {
            match File::open(path).and_then(|f| f.sync_data()) {
                Ok(()) =>
                {
                    #[cfg(feature = "sim")]
                    if let Some(w) = crate::base::sim::world() {
                        w.synced(path);
                    }
                }
                // Shipped and removed, or folded, meanwhile.
                Err(e) if is_missing(&e) => {}
                Err(e) => {
                    lock(&self.unsynced).extend(files.iter().cloned());
                    return Err(Error::io("sync", path, e));
                }
            }
        }
        if !files.is_empty() {
            for d in ["open", "pending"] {
                let d = self.dir.join(d);
                if let Err(e) = durable::sync_dir(&d) {
                    // The names are not safe yet, and the next call must not take them for it.
                    lock(&self.unsynced).extend(files);
                    return Err(Error::io("sync", &d, e));
                }
            }
        }
        Ok(())
    }

    /// Settles what a crash left (see the module header). Caller holds the ship lock, too. `None` when no
    /// position can be vouched for: the caller compares content instead.
    pub fn recover(&self, held: &SealHeld<'_>) -> Result<Option<Position>> {
        self.clear_litter();
        let live = self.is_ahead()? && self.is_ahead_alive()?;
        let settled = self.settle(held)?;
        if !live {
            self.end_change(held)?;
        }
        Ok(settled)
    }

    /// The same while others may be at work in the spool.
    fn settle(&self, held: &SealHeld<'_>) -> Result<Option<Position>> {
        let settled = self.settled(held)?;
        if settled.is_some() && self.seal_lock.mark()? == Mark::Changing {
            self.end_change(held)?;
        }
        Ok(settled)
    }

    fn settled(&self, held: &SealHeld<'_>) -> Result<Option<Position>> {
        let Some(mut p) = self.position()? else {
            return Ok(None);
        };
        let txid = p.txid.next();
        let is_ahead = self.is_ahead()?;
        let lives = is_ahead && self.is_ahead_alive()?;
        if is_ahead && lives {
            // Its process waits for whoever ships next.
        } else if is_ahead {
            self.give_up(held, txid)?;
            return Ok(None);
        } else if let Some(h) = self.header_of(&self.pending_path(txid)) {
            if h.attest.is_some_and(|a| a.after == p.checksum) && p.pieces > 0 {
                // cut() died before its position.
                let next = Position { txid, pieces: 0, literal: false, ..p.clone() };
                self.set_position(held, &next)?;
                self.remove_pieces_from(txid, 0);
                p = next;
            } else {
                self.give_up(held, txid)?;
                return Ok(None);
            }
        }
        let txid = p.txid.next();
        let folded = self.dir.join("open").join(format!("{txid}.fold.ltx"));
        // A fold of fewer pieces than there are now was left by another process: it goes with the litter below.
        if self.header_of(&folded).and_then(|h| h.attest).is_some_and(|a| a.after == p.checksum)
            && p.pieces > 0
        {
            p = self.finish_squash(held, &p)?;
        }
        // squash() died between its rename and its position: the first piece is all of them.
        let first = self.header_of(&self.piece_path(txid, 0)).and_then(|h| h.attest);
        if p.pieces > 1 && first.is_some_and(|a| a.after == p.checksum && a.before != a.after) {
            p = Position { pieces: 1, literal: false, ..p };
            self.set_position(held, &p)?;
        }
        if let Some(h) = self.header_of(&self.piece_path(txid, p.pieces))
            && h.attest.is_some_and(|a| a.before == p.checksum)
            && h.lineage == p.lineage
        {
            p = self.adopt_piece(held, &p, &h)?;
        }
        self.remove_pieces_from(txid, p.pieces);
        for k in 0..p.pieces {
            if self.header_of(&self.piece_path(txid, k)).is_none() {
                return Ok(None);
            }
        }
        if self.sums.checksum(p.commit, p.page_size)? != p.checksum {
            return Ok(None);
        }
        Ok(Some(p))
    }

    /// `txid` was made for a COMMIT under sync durability that failed, or died with its process. If that came to
    /// be, the replica has the file; if not, it must not get there. It may have arrived in either case: so the TXID
    /// is not used again, and only the database's content tells how the history goes on.
    pub fn give_up(&self, held: &SealHeld<'_>, txid: TxId) -> Result<()> {
        self.venture(held, txid)?;
        remove_if_there(&self.pending_path(txid))?;
        if let Some(p) = self.position()? {
            self.set_position(held, &Position { wal: WalPlace::GivenUp, handoff: Handoff::Live, ..p })?;
        }
        self.end_change(held)
    }

    /// seal() died between the piece and its position: the piece itself says what it covers.
    fn adopt_piece(&self, held: &SealHeld<'_>, p: &Position, h: &ltx::Header) -> Result<Position> {
        let path = self.piece_path(p.txid.next(), p.pieces);
        let Ok(sums) = page_sums_of(&path) else {
            drop(fs::remove_file(&path));
            return Ok(p.clone());
        };
        let (Some(attest), Some(range)) = (h.attest, h.wal) else {
            return Ok(p.clone());
        };
        self.sums.store(&sums)?;
        let frame = range.last_frame(p.page_size);
        let next = Position {
            pieces: p.pieces + 1,
            literal: true,
            commit: h.commit,
            checksum: attest.after,
            timestamp: h.timestamp,
            wal: WalPlace::from(WalPoint { salt1: range.salt1, salt2: range.salt2, frame, checksum: None }),
            handoff: Handoff::Live,
            ..p.clone()
        };
        self.set_position(held, &next)?;
        Ok(next)
    }

    fn header_of(&self, path: &Path) -> Option<ltx::Header> {
        let f = File::open(path).ok()?;
        ltx::Decoder::new(BufReader::new(f)).ok().map(|d| d.header().clone())
    }

    fn remove_pieces_from(&self, txid: TxId, k: u32) {
        let keep: Vec<PathBuf> = (0..k).map(|i| self.piece_path(txid, i)).collect();
        for path in list_files(&self.dir.join("open")) {
            if !keep.contains(&path) {
                drop(fs::remove_file(path));
            }
        }
    }

    fn clear_litter(&self) {
        for d in ["", "open", "pending", "asked", "snapshot"] {
            for path in list_files(&self.dir.join(d)) {
                if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(".tmp-")) {
                    drop(fs::remove_file(path));
                }
            }
        }
        // Merged files on their way up when the process died: their inputs are still there.
        for path in list_files(&self.dir.join("merge")) {
            drop(fs::remove_file(path));
        }
    }

    /// Forgets everything: the history goes on under a new lineage, or the spool belonged to another one.
    /// Caller holds the ship lock, too.
    pub fn clear(&self, _held: &SealHeld<'_>) -> Result<()> {
        for d in ["open", "pending", "snapshot"] {
            for path in list_files(&self.dir.join(d)) {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        drop(fs::remove_dir_all(self.dir.join("merge")));
        for name in ["position.json", "ventured.json"] {
            drop(fs::remove_file(self.dir.join(name)));
        }
        Ok(())
    }

    /// Forgets everything, as [`Spool::clear`] does, and begins at `p`, whose page checksums are in the file `sums`. Caller holds
    /// the ship lock, too.
    pub fn begin_with(&self, held: &SealHeld<'_>, p: &Position, sums: &Path) -> Result<()> {
        let change = self.begin_change(held)?;
        self.clear(held)?;
        // (Into the file that others have open.)
        fs::copy(sums, self.dir.join("pages.sum")).map_err(|e| Error::io("copy page sums", sums, e))?;
        self.set_position(held, p)?;
        change.done()
    }

    fn write_json<T: serde::Serialize>(&self, name: &str, v: &T) -> Result<()> {
        self.write_text(name, v, |_| Ok(()))
    }

    fn write_text<T: serde::Serialize>(
        &self,
        name: &str,
        v: &T,
        settle: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<()> {
        let path = self.dir.join(name);
        #[cfg(feature = "sim")]
        crate::base::sim::disk(&path)?;
        let tmp = temp_beside(&path);
        let text = serde_json::to_vec(v)
            .map_err(|e| Error::new(Kind::Bug, format!("cannot write {name}")).because(e))?;
        let done = manners::create(&tmp)
            .and_then(|mut f| f.write_all(&text).and_then(|()| settle(&f)))
            .and_then(|()| fs::rename(&tmp, &path));
        done.map_err(|e| {
            drop(fs::remove_file(&tmp));
            Error::io("write", &path, e)
        })
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

/// The database checksum of `commit` pages whose sums `sum_of` gives.
pub fn db_checksum(page_size: PageSize, sums: impl Iterator<Item = (Pgno, u64)>) -> DbChecksum {
    sums.filter(|(p, _)| *p != page_size.lock_page())
        .fold(DbChecksum::EMPTY, |c, (_, s)| if s == 0 { c } else { c.toggle(s) })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

fn is_missing(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::NotFound
}

/// The files `<txid>.ltx` of a directory, oldest first.
fn queued_in(dir: &Path) -> Result<Vec<Queued>> {
    let mut out = Vec::new();
    for e in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let e = e.map_err(|e| Error::io("list", dir, e))?;
        let name = e.file_name();
        let Some(txid) = name.to_str().and_then(|n| n.strip_suffix(".ltx")).and_then(parse_txid) else {
            continue;
        };
        let bytes = e.metadata().map(|m| m.len()).unwrap_or(0);
        out.push(Queued { txid, path: e.path(), bytes });
    }
    out.sort_by_key(|q| q.txid);
    Ok(out)
}

/// Removes a file of the spool that another process, or an earlier try, may have removed already.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if !is_missing(&e) => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

fn temp_beside(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    path.with_file_name(format!(
        ".tmp-{}-{:08x}-{name}",
        std::process::id(),
        crate::base::clock::random_u64() as u32
    ))
}

fn parse_txid(s: &str) -> Option<TxId> {
    let ok = s.len() == 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    ok.then(|| u64::from_str_radix(s, 16).ok().map(TxId)).flatten()
}

fn list_files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|it| it.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect())
        .unwrap_or_default()
}

fn file_bytes(path: &Path) -> u64 {
    fs::metadata(path).map(|m| m.len()).unwrap_or(0)
}

fn dir_bytes(dir: &Path) -> u64 {
    list_files(dir).iter().map(|p| file_bytes(p)).sum()
}

fn tree_bytes(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .map(|it| {
            it.flatten()
                .map(|e| if e.path().is_dir() { tree_bytes(&e.path()) } else { file_bytes(&e.path()) })
                .sum()
        })
        .unwrap_or(0)
}

/// A poisoned lock means a panic elsewhere, which is reported there; the data here is valid between statements.
fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
