//! The queue: what waits for the replica, and what may leave.

use super::dir::{Spool, create_dir};
use super::files::{dir_bytes, file_bytes, parse_txid, remove_if_there, tree_bytes};
use super::held::SealHeld;
use super::lock::Mark;
use crate::base::{DbChecksum, Error, Lineage, Result, TxId};
use crate::ltx;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

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

/// The files `<txid>.ltx` of a directory, oldest first.
pub(super) fn queued_in(dir: &Path) -> Result<Vec<Queued>> {
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

impl Spool {
    /// Says that a file of this spool may go to `replica`: what says that it is this machine's own is on disk then (I-SPOOL-7). Errors
    /// with [`Kind::Corrupt`] for one of a lineage that is neither the position's nor one of those begun or taken up here for that
    /// replica (I-SPOOL-10): it is another database's, or damaged; else as the file system does.
    pub fn vouch(&self, queued: &Queued, replica: &str) -> Result<Vouched> {
        let f = File::open(&queued.path).map_err(|e| Error::io("open", &queued.path, e))?;
        let lineage = ltx::Decoder::new(BufReader::with_capacity(4 << 10, f))?.header().lineage;
        if self.owns(replica, lineage)? || self.position()?.is_some_and(|p| p.lineage == lineage) {
            self.make_identity_durable(lineage)?;
            return Ok(Vouched { queued: queued.clone(), lineage });
        }
        let path = queued.path.display();
        Err(Error::corrupt(format!("{path} is of another history (lineage {lineage}) than this spool's")))
    }

    /// Keeps the pending file of `txid` in mind: a COMMIT asks the replica to take it (I-SPOOL-9).
    pub fn ask(&self, _held: &SealHeld<'_>, txid: TxId) -> Result<()> {
        let (pending, asked) = (self.pending_path(txid), self.asked_path(txid));
        remove_if_there(&asked)?;
        if let Some(folder) = asked.parent() {
            create_dir(folder, None).map_err(|e| Error::io("create spool directory", folder, e))?;
        }
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
                Some(_) => self.has_come_to_be(q.txid)?,
                None => self.forget_asked(q.txid)?,
            }
        }
        Ok(out)
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

    /// Cut files not yet in the replica, oldest first.
    pub fn pending(&self) -> Result<Vec<Queued>> {
        queued_in(&self.dir.join("pending"))
    }

    /// The files of the queue that may leave: those that the position counts, and one that a COMMIT waits for. Waits for nobody:
    /// while something is being made, or was left by a process that died over it, that is the answer, and
    /// [`Spool::settle_if_free`] comes first (I-SPOOL-6). Errors as the file system does.
    pub fn shippable(&self) -> Result<Shippable> {
        self.take_up()?;
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

    pub(super) fn counted(&self) -> Result<(TxId, Mark)> {
        let mark = self.seal_lock.mark()?;
        Ok((self.position()?.map(|p| p.txid).unwrap_or_default(), mark))
    }

    /// Removes the cut files up to `txid`, which the replica has: where a history is not gone on from, they need not be what it has under
    /// their TXIDs (I-SPOOL-12). Errors as the file system does.
    pub fn drop_shipped(&self, _held: &SealHeld<'_>, txid: TxId) -> Result<()> {
        for q in self.pending()?.into_iter().filter(|q| q.txid <= txid) {
            remove_if_there(&q.path)?;
        }
        Ok(())
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
}
