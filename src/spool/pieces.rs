//! Pieces of the open TXID: cut into its file, or folded into fewer.

use super::dir::Spool;
use super::held::SealHeld;
use super::position::Position;
use crate::base::{Error, Result, Timestamp, TxId, crash};
use crate::ltx;
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::Path;

impl Spool {
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

    pub(super) fn finish_squash(&self, held: &SealHeld<'_>, p: &Position) -> Result<Position> {
        let txid = p.txid.next();
        let folded = self.dir.join("open").join(format!("{txid}.fold.ltx"));
        let next = Position { pieces: 1, literal: false, ..p.clone() };
        let first = self.piece_path(txid, 0);
        // The name of a piece that was synced is another file's from here on.
        self.forget_durable(held)?;
        fs::rename(&folded, &first).map_err(|e| Error::io("rename fold to", &first, e))?;
        crash::point("squash.after-rename");
        self.set_position(held, &next)?;
        for k in 1..p.pieces {
            drop(fs::remove_file(self.piece_path(txid, k)));
        }
        Ok(next)
    }

    /// The file keeps the time of the first piece ([`Spool::waits_since`]).
    pub(super) fn fold_pieces(&self, txid: TxId, pieces: u32, target: &Path) -> Result<()> {
        let mut inputs = Vec::new();
        let since = fs::metadata(self.piece_path(txid, 0)).and_then(|m| m.modified()).ok();
        for k in 0..pieces {
            let path = self.piece_path(txid, k);
            let f = File::open(&path).map_err(|e| Error::io("open piece", &path, e))?;
            inputs.push(BufReader::with_capacity(32 << 10, f));
        }
        self.write_file(target, |w| {
            ltx::fold(inputs, ltx::Overrides::default(), &mut *w)?;
            if let Some(at) = since {
                // (It is for the lag that is told, and nothing else.)
                w.flush().map_err(|e| Error::io("write", target, e))?;
                drop(w.get_ref().set_modified(at));
            }
            Ok(())
        })
    }

    /// Since when the file of the queue, or the pieces of a TXID that is not cut yet, have waited: when the first of it was sealed.
    /// `None` where there is none.
    pub fn waits_since(&self, txid: TxId) -> Option<Timestamp> {
        let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        let at = modified(&self.pending_path(txid)).or_else(|| modified(&self.piece_path(txid, 0)))?;
        Some(Timestamp::from(at))
    }
}
