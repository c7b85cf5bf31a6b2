//! Synchronous durability: a transaction's TXID is made before SQLite commits it, confirmed when the replica has it, or given up.

use super::continuity::sealed_frame;
use super::error::{NO_POSITION, SealError};
use super::seal::{self, Sealing, Uncommitted};
use super::tracker::{Ahead, Tracker};
use crate::base::{Error, Kind, Result, Timestamp, TxId};
use crate::spool::SealHeld;
use crate::wal::IndexHeader;
use std::fs::File;

impl Tracker {
    /// Makes the file of a transaction that is not committed yet, as the next TXID, and returns that. All before
    /// it must be sealed and cut. App's thread, inside the write of the commit frame.
    pub fn prepare(
        &self,
        h: &IndexHeader,
        last: &Uncommitted<'_>,
        now: Timestamp,
    ) -> std::result::Result<TxId, SealError> {
        let held = self.spool.hold_seal()?;
        let Some(p) = self.spool.position()? else {
            return Err(SealError::OutOfSync(NO_POSITION.into()));
        };
        if p.pieces > 0
            || p.wal.is_given_up()
            || (h.max_frame > 0 && sealed_frame(&p, h) != Some(h.max_frame))
        {
            return Err(SealError::Again);
        }
        if self.spool.is_ahead(&held)? {
            // This thread has SQLite's WRITE lock, so whoever had it then has ended.
            return Err(self.ended_ahead(&held, p.txid.next())?);
        }
        let wal = File::open(&self.wal_path).map_err(|e| Error::io("open", &self.wal_path, e))?;
        let sealing = Sealing {
            spool: &self.spool,
            held: &held,
            position: &p,
            header: h,
            wal: &wal,
            db: self.db.as_ref(),
            now,
        };
        self.lock().ahead = Some(Ahead::Asking);
        match seal::prepare(&sealing, last) {
            Ok(prepared) => {
                let txid = prepared.position.txid;
                // (In this order: nothing leaves that is not kept in mind.)
                self.spool.ask(&held, txid)?;
                self.spool.set_ahead(&held)?;
                self.lock().ahead = Some(Ahead::Prepared(prepared));
                Ok(txid)
            }
            Err(e) => {
                self.lock().ahead = None;
                Err(e)
            }
        }
    }

    /// The replica did not say that it has the prepared transaction: SQLite rolls back, and whether the
    /// file arrived is not known, so the history goes on under a new lineage.
    pub fn abandon(&self, txid: TxId, why: &str) {
        self.lock().ahead = None;
        if let Err(e) = self.give_up(txid) {
            log::error!("walrust: {}: TXID {txid} cannot be given up: {e}", self.path.display());
        }
        self.spool.no_longer_ahead();
        self.lose(format!("TXID {txid} may be in the replica without its commit here: {why}"));
    }

    fn give_up(&self, txid: TxId) -> Result<()> {
        let held = self.spool.hold_seal()?;
        let p = self.spool.position()?;
        // Unless whoever ships has given it up already.
        if self.spool.is_ahead(&held)? && p.is_some_and(|p| p.txid.next() == txid) {
            self.spool.give_up(&held, txid)?;
        }
        Ok(())
    }

    /// Whether the TXID that was made for this process's COMMIT still is what comes next: nobody gave it up because
    /// this process seemed to be gone. Asked when the replica has it, before the commit mark is written.
    pub fn confirm(&self, txid: TxId) -> Result<()> {
        let held = self.spool.hold_seal()?;
        let p = self.spool.position()?;
        if self.spool.is_ahead(&held)? && p.is_some_and(|p| p.txid.next() == txid) {
            return Ok(());
        }
        Err(Error::new(Kind::Retry, format!("the history went on without TXID {txid}")))
    }

    /// The process that made `txid` for its COMMIT ended: whether there was one, the database's content tells.
    pub(super) fn ended_ahead(&self, held: &SealHeld<'_>, txid: TxId) -> Result<SealError> {
        self.spool.give_up(held, txid)?;
        let why = format!("TXID {txid} may be in the replica without its commit here: its process ended");
        self.lose(why.clone());
        Ok(SealError::OutOfSync(why.into()))
    }

    /// Gives up what a process that ended left ahead, and waits while one that lives is. Before a resync.
    pub fn settle_ahead(&self) -> Result<()> {
        loop {
            {
                let held = self.spool.hold_seal()?;
                if !self.spool.is_ahead(&held)? {
                    return Ok(());
                }
                if !self.spool.is_ahead_alive()? {
                    return match self.spool.position()? {
                        Some(p) => self.spool.give_up(&held, p.txid.next()),
                        None => self.spool.end_change(&held),
                    };
                }
            }
            crate::base::clock::sleep(std::time::Duration::from_millis(2));
        }
    }
}
