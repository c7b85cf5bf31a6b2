//! What is sealed is on disk before its frames in the WAL may be overwritten (I-SPOOL-2), whoever sealed it: another process, or
//! one that is gone.
//!
//! What has to be there is told by the position, not by memory: its pieces, the files of the queue up to its TXID, and the position
//! itself. How much of that was synced stands in `lock.seal` ([`Durable`]), so that each file is synced once. That mark is
//! written after what it speaks of is on disk: losing it costs syncs. Cutting and sealing go past it by themselves; what puts
//! another file under a name that it speaks of takes it back first (`forget_durable`).
//!
//! Refused: a list of the files that this process wrote. It does not know those of others, and where nobody resets the WAL it
//! grows.

use super::dir::Spool;
use super::files::is_missing;
use super::held::{MARK_AT, MARK_BYTES, SealHeld};
use super::owner::RECORD;
use super::position::Position;
use crate::base::{Error, Lineage, Result, TxId, durable};
use crate::ltx::Crc;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// How much of a history is on disk: files up to `txid`, so many pieces of the next one, and a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Durable {
    pub(super) lineage: Lineage,
    pub(super) txid: TxId,
    pub(super) pieces: u32,
    /// Checksum of the position that was synced.
    pub(super) record: u64,
}

impl Durable {
    /// What `p` says is there.
    pub(super) fn of(p: &Position) -> Durable {
        let record = checksum(&serde_json::to_vec(p).unwrap_or_default());
        Durable { lineage: p.lineage, txid: p.txid, pieces: p.pieces, record }
    }

    fn encode(self) -> Vec<u8> {
        let fields = [self.lineage.0, self.txid.0, self.pieces.into(), self.record];
        let mut bytes = fields.map(u64::to_le_bytes).concat();
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes
    }

    /// `None` for bytes that no [`Durable::encode`] made.
    fn decode(bytes: &[u8; MARK_BYTES]) -> Option<Durable> {
        let (fields, check) = bytes.split_last_chunk::<8>()?;
        if u64::from_le_bytes(*check) != checksum(fields) {
            return None;
        }
        let mut fields = fields.as_chunks::<8>().0.iter().map(|f| u64::from_le_bytes(*f));
        let mut next = || fields.next();
        Some(Durable {
            lineage: Lineage(next()?),
            txid: TxId(next()?),
            pieces: u32::try_from(next()?).ok()?,
            record: next()?,
        })
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.flagged()
}

/// What is still to be synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// Files of the queue after this TXID.
    pub(super) after: TxId,
    /// Pieces of the open TXID from this one on.
    pub(super) from_piece: u32,
}

/// Compares what the position counts with what is known to be on disk; `None`: nothing is missing.
pub(super) fn missing(p: &Position, known: Option<Durable>) -> Option<Missing> {
    let now = Durable::of(p);
    match known.filter(|k| k.lineage == p.lineage && k.txid <= p.txid) {
        Some(k) if k == now => None,
        Some(k) if k.txid == p.txid && k.pieces <= p.pieces => {
            Some(Missing { after: p.txid, from_piece: k.pieces })
        }
        Some(k) if k.txid < p.txid => Some(Missing { after: k.txid, from_piece: 0 }),
        _ => Some(Missing { after: TxId::ZERO, from_piece: 0 }),
    }
}

impl Spool {
    /// Forces what the position counts, and the position, to disk: what the WAL loses next is then only here. Waits for the seal lock.
    /// Errors with [`Kind::Io`](crate::base::Kind::Io) when a file cannot be synced: then the WAL must stay.
    pub fn make_durable(&self) -> Result<()> {
        let held = self.hold_seal()?;
        let Some(p) = self.position()? else { return Ok(()) };
        let Some(Missing { after, from_piece }) = missing(&p, self.durable()?) else { return Ok(()) };
        let queued = self.pending()?.into_iter().filter(|q| after < q.txid && q.txid <= p.txid);
        let queued: Vec<PathBuf> = queued.map(|q| q.path).collect();
        let pieces: Vec<PathBuf> =
            (from_piece..p.pieces).map(|k| self.piece_path(p.txid.next(), k)).collect();
        for (folder, files) in [("pending", &queued), ("open", &pieces)] {
            files.iter().try_for_each(|f| sync(f))?;
            if !files.is_empty() {
                let dir = self.dir.join(folder);
                durable::sync_dir(&dir).map_err(|e| Error::io("sync", &dir, e))?;
            }
        }
        sync(&self.dir.join("position.json"))?;
        durable::sync_dir(&self.dir).map_err(|e| Error::io("sync", &self.dir, e))?;
        self.set_durable(&held, Durable::of(&p))
    }

    /// Forces a finished snapshot to disk, on the thread that made it: no WAL has its pages to be made anew from. Errors as
    /// [`Spool::make_durable`].
    pub fn make_snapshot_durable(&self, txid: TxId) -> Result<()> {
        sync(&self.snapshot_path(txid))?;
        let dir = self.dir.join("snapshot");
        durable::sync_dir(&dir).map_err(|e| Error::io("sync", &dir, e))
    }

    /// Forces to disk whose spool this is and that `lineage` is ours, once in the life of a process and a lineage. Errors as the file
    /// system does.
    pub(super) fn make_identity_durable(&self, lineage: Lineage) -> Result<()> {
        if let Some(source) = &self.source {
            return source.make_identity_durable(lineage);
        }
        let mut on_disk = self.identity_on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        if *on_disk != Some(lineage) {
            for record in [RECORD, "replica.json"] {
                sync(&self.dir.join(record))?;
            }
            self.sync_names()?;
            *on_disk = Some(lineage);
        }
        Ok(())
    }

    /// How much is known to be on disk.
    pub(super) fn durable(&self) -> Result<Option<Durable>> {
        let mut bytes = [0; MARK_BYTES];
        Ok(if self.seal_lock.read_at(&mut bytes, MARK_AT)? { Durable::decode(&bytes) } else { None })
    }

    pub(super) fn set_durable(&self, held: &SealHeld<'_>, known: Durable) -> Result<()> {
        self.seal_lock.write_at(&held.lock, &known.encode(), MARK_AT)
    }
}

/// Syncs one file. One that is gone was shipped meanwhile.
fn sync(path: &Path) -> Result<()> {
    match File::open(path).and_then(|f| f.sync_data()) {
        Ok(()) => {
            #[cfg(feature = "sim")]
            if let Some(w) = crate::base::sim::world() {
                w.synced(path);
            }
            Ok(())
        }
        Err(e) if is_missing(&e) => Ok(()),
        Err(e) => Err(Error::io("sync", path, e)),
    }
}
