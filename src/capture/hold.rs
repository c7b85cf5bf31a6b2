//! What holds frames in the WAL until they are sealed: whoever wants to reset it, to checkpoint it or to close it comes here, and
//! the sealer does.

use super::continuity::{Continuity, Left, Noticed, begins_after, left_under, sealed_frame};
use super::error::{NO_POSITION, SealError};
use super::generation::{self, AtClose, at_close};
use super::resets::{Permit, Reset, Resetter, checkpoint_tail, may_checkpoint, may_reset, may_take_write};
use super::seal::{self, Sealed, Sealing};
use super::tracker::{Alone, Tracker};
use crate::base::{Error, Result, Timestamp, clock};
use crate::ltx::Packing;
use crate::spool::{FileStamp, Position, Spool};
use crate::wal::{self, IndexHeader};
use std::fs::File;
use std::sync::atomic::Ordering;

impl Tracker {
    /// This process has the database for itself, and SQLite takes no wal-index locks until it gives it back: from now on a
    /// commit is told by [`Tracker::exclusive_commit`], and a reset cannot be refused. App's thread.
    pub fn exclusive_begins(&self, h: IndexHeader) {
        self.lock().alone = Alone::MayClose;
        self.write_begins(Some(h));
        self.seal_alone(&h, |_| Ok(()));
    }

    /// A transaction was committed, up to `h`. Nobody else can write before the next one.
    pub fn exclusive_commit(&self, h: IndexHeader) -> Noticed {
        if std::mem::replace(&mut self.lock().alone, Alone::Commits) == Alone::MayClose {
            // (What was sealed at its EXCLUSIVE lock waited to see whether this is a last close.)
            self.settle_alone(self.spool.make_durable().map_err(SealError::from));
        }
        let noticed = self.write_ends(Some(h));
        self.write_begins(Some(h));
        noticed
    }

    /// A page is copied into the database file by a checkpoint of the WAL up to `h`. A reset comes only when all are,
    /// and before another commit: so with the first of them, whatever is not sealed is.
    pub fn exclusive_checkpoint(&self, h: &IndexHeader) {
        let place = Some((h.salt, h.max_frame));
        let (is_new, alone) = {
            let mut s = self.lock();
            (std::mem::replace(&mut s.checkpointing, place) != place, s.alone)
        };
        match alone {
            _ if !is_new => {}
            Alone::MayClose => self.seal_alone(h, |_| Ok(())),
            Alone::Commits => self.seal_alone(h, Spool::make_durable),
        }
    }

    /// What fails here is in the WAL until it is reset: the sealer tries again, and [`Tracker::follow`] tells.
    fn seal_alone(&self, h: &IndexHeader, then: impl FnOnce(&Spool) -> Result<()>) {
        if self.sync_state() != Continuity::Kept || h.max_frame == 0 {
            return;
        }
        let sealed = self.seal(h, Packing::Literal, clock::now()).map(drop);
        self.settle_alone(sealed.and_then(|()| Ok(then(&self.spool)?)));
    }

    fn settle_alone(&self, done: std::result::Result<(), SealError>) {
        let error = match done {
            Ok(()) | Err(SealError::Again) => None,
            Err(SealError::OutOfSync(why)) => return self.lose(why),
            Err(SealError::Failed(e)) => Some(e.to_string()),
        };
        self.lock().seal_error = error;
    }

    /// Somebody with WRITE wants to reset the WAL (EXCLUSIVE on the read marks). App's thread.
    pub fn reset_wanted(&self, h: Option<&IndexHeader>, by: Resetter, wal_bytes: impl Fn() -> u64) -> Permit {
        let known = self.sync_state();
        let is_sealed = |h| self.is_sealed(h) || self.is_sealed_by_others(h);
        let tail = match h {
            Some(h) if known == Continuity::Kept && h.max_frame > 0 && !is_sealed(h) => {
                self.unsealed_frames(h)
            }
            _ => 0,
        };
        let limit = h.map_or(0, checkpoint_tail);
        match (may_reset(&known, tail, h.map(|h| h.max_frame), by, limit), h) {
            (Reset::Refuse, _) => return self.refuse(),
            (Reset::Pass, _) | (_, None) => return Permit::Granted,
            (Reset::Seal, Some(h)) if tail > 0 => {
                if let Err(e) = self.seal(h, Packing::Literal, clock::now()) {
                    return self.cannot_seal(e, wal_bytes());
                }
            }
            (Reset::Seal, Some(_)) => {}
        }
        if let Err(e) = self.spool.make_durable() {
            return self.cannot_seal(SealError::Failed(e), wal_bytes());
        }
        self.lock().seal_error = None;
        self.refusing.store(false, Ordering::Relaxed);
        Permit::Granted
    }

    fn cannot_seal(&self, e: SealError, wal_bytes: u64) -> Permit {
        match e {
            SealError::OutOfSync(why) => {
                self.lose(why);
                Permit::Granted
            }
            SealError::Again => self.refuse(),
            SealError::Failed(e) => {
                self.lock().seal_error = Some(e.to_string());
                if wal_bytes > self.give_up_wal_bytes {
                    self.lose(format!(
                        "the spool can't be written and the WAL has grown to {wal_bytes} bytes: {e}"
                    ));
                    return Permit::Granted;
                }
                self.refuse()
            }
        }
    }

    fn refuse(&self) -> Permit {
        self.refusing.store(true, Ordering::Relaxed);
        Permit::Refused
    }

    /// A checkpoint wants to start (EXCLUSIVE on CKPT). App's thread. After a refused reset the next one is worth
    /// its price as soon as the sealer has caught up: then a reset will follow it.
    pub fn checkpoint_wanted(&self, h: Option<&IndexHeader>) -> Permit {
        if !self.refusing.load(Ordering::Relaxed) {
            return Permit::Granted;
        }
        h.map_or(Permit::Granted, |h| {
            may_checkpoint(self.unsealed_frames(h), h.max_frame.saturating_sub(h.backfilled))
        })
    }

    /// A handle that holds CKPT asks for WRITE: FULL, RESTART or TRUNCATE. While a reset would be refused it
    /// must not get WRITE, or it would sit in its busy handler and starve every writer.
    pub fn checkpointer_wants_write(&self, h: Option<&IndexHeader>) -> Permit {
        let known = self.sync_state();
        let permit = may_take_write(&known, h.map(|h| self.unsealed_frames(h)), h.map_or(0, checkpoint_tail));
        if permit == Permit::Refused && known == Continuity::Kept {
            self.refusing.store(true, Ordering::Relaxed);
        }
        permit
    }

    /// The last connection closes (or WAL mode ends): everything is in the database file, synced, and the WAL is about
    /// to go. App's thread, under SQLite's EXCLUSIVE lock. What was sealed is not forced to disk here: see I-SPOOL-2.
    pub fn last_close(&self, h: Option<&IndexHeader>) -> Noticed {
        if self.sync_state() != Continuity::Kept {
            return Noticed::Nothing;
        }
        let wanted = at_close(
            h.map(|h| h.max_frame),
            || h.is_some_and(|h| self.is_known(h)),
            || self.is_as_closed() == Some(true),
        );
        let sealed = match h.filter(|_| wanted == AtClose::Seal) {
            Some(h) => self.seal(h, Packing::Literal, clock::now()).map(drop),
            None => wanted.check(),
        };
        match sealed.and_then(|()| generation::mark_closed(&self.spool, &self.path, h)) {
            Ok(p) => {
                self.lock().position = Some(p);
                Noticed::Commit
            }
            Err(SealError::OutOfSync(why)) => {
                self.lose(why);
                Noticed::Lost
            }
            Err(SealError::Again) => {
                self.lose("the WAL changed during the last close");
                Noticed::Lost
            }
            Err(SealError::Failed(e)) => {
                self.lose(format!("the last commits could not be sealed at close: {e}"));
                Noticed::Lost
            }
        }
    }

    /// Seals everything from the position to `h` as one more piece of the open TXID. Any thread. What is cut next
    /// is packed at once; what waits for its TXID is only copied: under load its pages are replaced many times
    /// before they leave.
    pub fn seal(
        &self,
        h: &IndexHeader,
        packing: Packing,
        now: Timestamp,
    ) -> std::result::Result<Sealed, SealError> {
        let held = self.spool.hold_seal()?;
        let Some(mut p) = self.spool.position()? else {
            return Err(SealError::OutOfSync(NO_POSITION.into()));
        };
        if begins_after(&p, h, || FileStamp::of(&self.path).ok()) {
            // (It was read before the position, which may be of a close that came after it.)
            if self.generation()? != Some(h.salt) {
                return Err(SealError::Again);
            }
            p = generation::adopt(&self.spool, &held, &p, h)?;
        }
        let Some(from) = sealed_frame(&p, h) else {
            self.lock().position = Some(p);
            return Err(SealError::OutOfSync(format!("salt {} is not that of the position", h.salt).into()));
        };
        if from == h.max_frame {
            let mut s = self.lock();
            s.position = Some(p);
            s.seal_error = None;
            return Ok(Sealed::default());
        }
        if self.spool.is_ahead(&held)? {
            // These frames are of a COMMIT under sync durability, whose TXID is made: its thread says so in a moment.
            if self.spool.is_ahead_alive()? {
                return Err(SealError::Again);
            }
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
        match seal::seal(&sealing, from, packing) {
            Ok((next, sealed)) => {
                debug_assert_eq!(sealed_frame(&next, h), Some(h.max_frame), "I-CAP-1");
                let mut s = self.lock();
                s.position = Some(next);
                s.seal_error = None;
                Ok(sealed)
            }
            Err(SealError::Failed(e)) if e.is_corrupt() => Err(self.damaged(&e, &wal, h)),
            Err(e) => Err(e),
        }
    }

    /// The same up to the newest header that was noticed, where no handle has the wal-index mapped any more: what this process
    /// committed before its last close. Others may have sealed it since, or have closed the database, too.
    pub fn seal_noticed(&self, now: Timestamp) -> std::result::Result<(), SealError> {
        let Some(h) = self.seen() else { return Ok(()) };
        let Some(p) = self.spool.position()? else {
            return Err(SealError::OutOfSync(NO_POSITION.into()));
        };
        match left_under(&p, &h, self.generation()?) {
            Left::Nothing => {
                self.lock().position = Some(p);
                Ok(())
            }
            Left::Frames => self.seal(&h, Packing::Lz4, now).map(drop),
            Left::Missed => {
                Err(SealError::OutOfSync(format!("salt {} is not that of the position", h.salt).into()))
            }
        }
    }

    /// The generation that the WAL file is in; `None` if there is no such file, or it has none.
    fn generation(&self) -> std::result::Result<Option<wal::Salt>, SealError> {
        let file = match File::open(&self.wal_path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| Error::io("open", &self.wal_path, e))?,
        };
        match wal::current_salt(&file) {
            Ok(salt) => Ok(Some(salt)),
            // (SQLite, too, takes a WAL with a damaged header for an empty one.)
            Err(wal::ReadError::Corrupt(_)) => Ok(None),
            Err(wal::ReadError::Io(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// What is in the WAL is not what the wal-index says was committed. Not to be tried again: SQLite reads such a WAL, which
    /// it may have written itself (see [`resync`]), so the database is read as it does.
    fn damaged(&self, e: &Error, wal: &File, h: &IndexHeader) -> SealError {
        if wal::check_generation(wal, h.salt).is_err() {
            return SealError::Again;
        }
        self.lose(e.to_string());
        SealError::OutOfSync(e.to_string().into())
    }

    /// Cuts what is sealed into the next TXID. Sealer thread of the process that ships.
    pub fn cut(&self) -> Result<Option<Position>> {
        let held = self.spool.hold_seal()?;
        let Some(p) = self.spool.position()? else { return Ok(None) };
        let next = self.spool.cut(&held, &p)?;
        let made = (next.txid != p.txid).then(|| next.clone());
        self.lock().position = Some(next);
        Ok(made)
    }

    /// Cuts what is sealed, and from then on nothing more can be: only the database's content tells where the WAL goes on.
    /// In one, or a thread that had begun to seal would put into a TXID what the place that is found says is not in it.
    /// Gives the position as it was, with pieces if they could not be cut.
    pub fn forget_place(&self) -> Result<Option<Position>> {
        let held = self.spool.hold_seal()?;
        let Some(p) = self.spool.position()? else { return Ok(None) };
        // (A power cut may have taken back what was shipped: then the replica has that TXID, with more in it.)
        let last = match self.spool.may_have_left(p.txid.next())? {
            true => p,
            false => self.spool.cut(&held, &p).unwrap_or(p),
        };
        self.spool.forget_place(&held)?;
        self.lock().position = Some(last.clone());
        Ok(Some(last))
    }

    /// Folds many pieces into one.
    pub fn squash(&self) -> Result<()> {
        let held = self.spool.hold_seal()?;
        let Some(p) = self.spool.position()? else { return Ok(()) };
        let next = self.spool.squash(&held, &p)?;
        self.lock().position = Some(next);
        Ok(())
    }
}
