//! What a process leaves that dies between two files, and what the next holder of the seal lock makes of it.

use super::dir::{Spool, page_sums_of};
use super::files::{is_note, list_files, remove_if_there};
use super::held::SealHeld;
use super::lock::Mark;
use super::position::{Handoff, Position, WalPlace, WalPoint};
use crate::base::scratch::{is_litter, sweep};
use crate::base::{Error, Result, TxId};
use crate::ltx;
use std::fs;
use std::path::{Path, PathBuf};

/// Whether a piece with that header goes on from `p`: in the history, the database's state, and the WAL.
pub(super) fn continues(p: &Position, h: &ltx::Header) -> bool {
    let is_behind = match (p.wal, h.wal) {
        (WalPlace::Known(w), Some(r)) if (w.salt1, w.salt2) == (r.salt1, r.salt2) => {
            r.last_frame(p.page_size) <= w.frame
        }
        _ => false,
    };
    h.attest.is_some_and(|a| a.before == p.checksum) && h.lineage == p.lineage && !is_behind
}

impl Spool {
    /// Waits for the seal lock, and settles what its last holder left undone (I-SPOOL-6).
    pub fn hold_seal(&self) -> Result<SealHeld<'_>> {
        self.settle_left(self.hold_unsettled()?)
    }

    /// Settles what the last holder of the seal lock left undone, if nobody has that lock now. Whether nothing is left undone.
    /// Errors as the file system does.
    pub fn settle_if_free(&self) -> Result<bool> {
        if let Some(source) = &self.source {
            return source.settle_if_free();
        }
        let Some(lock) = self.seal_lock.try_hold()? else { return Ok(false) };
        self.settle_left(SealHeld { lock }).map(|_| true)
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

    /// Settles what a crash left (see the module header). Caller holds the ship lock, too. `None` when no position can be vouched
    /// for: then its place is given up, for every process, and content is compared instead.
    pub fn recover(&self, held: &SealHeld<'_>) -> Result<Option<Position>> {
        self.clear_litter();
        let live = self.is_ahead(held)? && self.is_ahead_alive()?;
        let settled = self.settle(held)?;
        if !live {
            if settled.is_none() {
                // Nobody else is to go on from it either.
                self.forget_place(held)?;
            }
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
        let is_ahead = self.is_ahead(held)?;
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
        // As many as continue it: a power cut may take several positions and leave their pieces (I-SPOOL-2).
        while let Some(h) = self.header_of(&self.piece_path(txid, p.pieces))
            && continues(&p, &h)
        {
            let Some(next) = self.adopt_piece(held, &p, &h)? else { break };
            p = next;
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
    fn adopt_piece(&self, held: &SealHeld<'_>, p: &Position, h: &ltx::Header) -> Result<Option<Position>> {
        let path = self.piece_path(p.txid.next(), p.pieces);
        let Ok(sums) = page_sums_of(&path) else {
            drop(fs::remove_file(&path));
            return Ok(None);
        };
        let (Some(attest), Some(range)) = (h.attest, h.wal) else {
            return Ok(None);
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
        Ok(Some(next))
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
                if path.file_name().is_some_and(is_litter) {
                    drop(fs::remove_file(path));
                }
            }
        }
        sweep(&self.dir);
        // Merged files on their way up when the process died: their inputs are still there.
        for path in list_files(&self.dir.join("merge")) {
            drop(fs::remove_file(path));
        }
    }

    /// Forgets everything: the history goes on under a new lineage, or the spool belonged to another one.
    /// Caller holds the ship lock, too.
    pub fn clear(&self, held: &SealHeld<'_>) -> Result<()> {
        self.forget_durable(held)?;
        for d in ["open", "pending", "snapshot"] {
            // (Notes of uploads stay: who ships aborts those.)
            for path in list_files(&self.dir.join(d)).into_iter().filter(|p| !is_note(p)) {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        drop(fs::remove_dir_all(self.dir.join("merge")));
        self.mirrors_fall_behind();
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
}
