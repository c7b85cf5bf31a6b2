//! Capture of one database in one process: what it knows, and what each event that SQLite tells makes of that.
//!
//! Called from the app's threads (inside SQLite's locking calls), the sealer thread and, for a resync, a thread of its own. What
//! crosses processes is the spool: position file and seal lock. The seal lock is taken before the state's mutex, always.

use super::continuity::{Continuity, Noticed, continues, sealed_frame};
use super::database::Database;
use super::error::{Gap, NO_POSITION};
use super::generation;
use super::seal::Prepared;
use crate::spool::{FileStamp, Handoff, Position, Spool};
use crate::wal::{self, IndexHeader};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct State {
    pub(super) continuity: Continuity,
    /// The newest header noticed in this process.
    pub(super) seen: Option<IndexHeader>,
    /// The header when this process last got WRITE, and whether it then went on from what is known.
    pub(super) at_lock: Option<(IndexHeader, bool)>,
    /// Position as of the last look; another process may have moved it on.
    pub(super) position: Option<Position>,
    /// The last seal that failed on an app's thread.
    pub(super) seal_error: Option<String>,
    /// Where the WAL ended when a checkpoint under EXCLUSIVE was last seen.
    pub(super) checkpointing: Option<(wal::Salt, u32)>,
    /// What a connection that has the database for itself, or had it last, has it for.
    pub(super) alone: Alone,
    /// A transaction that the replica has, or is about to have, before SQLite commits it here.
    pub(super) ahead: Option<Ahead>,
}

/// What is known of a connection's reason to have the database for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alone {
    /// It has committed nothing since: it may be about to close, after which nothing is overwritten.
    MayClose,
    /// It goes on to commit (`locking_mode=EXCLUSIVE`), and resets the WAL without asking.
    Commits,
}

/// Synchronous durability: where the transaction is.
#[derive(Debug)]
pub(super) enum Ahead {
    /// Its file is being made.
    Asking,
    /// It is on its way; when WRITE is given up with the commit in the WAL, the replica has it.
    Prepared(Prepared),
}

/// Capture of one database in one process.
pub struct Tracker {
    pub(super) path: PathBuf,
    pub(super) wal_path: PathBuf,
    pub(super) spool: Arc<Spool>,
    pub(super) db: Arc<dyn Database>,
    pub(super) state: Mutex<State>,
    /// Fast path: whether anything is to be done at all.
    pub(super) active: AtomicBool,
    /// Resets are being refused: throttle checkpoints.
    pub(super) refusing: AtomicBool,
    /// Spool bytes past which the app's WAL is no longer held back.
    pub(super) give_up_wal_bytes: u64,
}

impl Tracker {
    /// A tracker for the database at `path`, idle. `give_up_wal_bytes`: size of WAL at which a spool that
    /// can't be written is given up on, so that the app's disk does not fill (a snapshot follows).
    pub fn new(path: &Path, spool: Arc<Spool>, db: Arc<dyn Database>, give_up_wal_bytes: u64) -> Tracker {
        let mut wal_path = path.as_os_str().to_owned();
        wal_path.push("-wal");
        Tracker {
            path: path.to_path_buf(),
            wal_path: wal_path.into(),
            spool,
            db,
            state: Mutex::new(State {
                continuity: Continuity::Idle,
                seen: None,
                at_lock: None,
                position: None,
                seal_error: None,
                checkpointing: None,
                alone: Alone::MayClose,
                ahead: None,
            }),
            active: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            give_up_wal_bytes,
        }
    }

    /// Whether any hook has work to do.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Stops: hooks pass everything from now on.
    pub fn stop(&self) {
        self.active.store(false, Ordering::Release);
        self.lock().continuity = Continuity::Idle;
    }

    /// The WAL must stay as it is from now on, until [`Tracker::resume`] or [`Tracker::lose`].
    pub fn begin_resync(&self) {
        self.lock().continuity = Continuity::Resyncing;
        self.active.store(true, Ordering::Release);
    }

    /// The WAL is known to go on from `p`.
    pub fn resume(&self, p: Position) {
        let mut s = self.lock();
        s.position = Some(p);
        s.continuity = Continuity::Kept;
        s.seal_error = None;
        // A transaction that was begun meanwhile goes on from here, if it began in a generation we know.
        let begun = s.at_lock.as_ref().map(|(h, _)| *h);
        if let Some(h) = begun {
            let known = s.position.as_ref().is_some_and(|p| self.continues(p, &h));
            s.at_lock = Some((h, known));
        }
        self.refusing.store(false, Ordering::Relaxed);
        self.active.store(true, Ordering::Release);
    }

    /// Continuity is lost.
    pub fn lose(&self, why: impl Into<Gap>) {
        let mut s = self.lock();
        if matches!(s.continuity, Continuity::Kept | Continuity::Resyncing) {
            s.continuity = Continuity::Lost(why.into());
        }
        self.refusing.store(false, Ordering::Relaxed);
    }

    /// Whether the WAL is known to go on from the position.
    pub fn sync_state(&self) -> Continuity {
        self.lock().continuity.clone()
    }

    /// The newest position known in this process.
    pub fn position(&self) -> Option<Position> {
        self.lock().position.clone()
    }

    /// Takes up the position that another process may have moved on. One that is gone, or is none, is not made up.
    pub fn refresh(&self) {
        let mut s = self.lock();
        if s.continuity != Continuity::Kept {
            return;
        }
        match self.spool.position() {
            Ok(Some(p)) => s.position = Some(p),
            Ok(None) if !self.spool.is_gone() => s.continuity = Continuity::Lost(NO_POSITION.into()),
            // The spool as a whole is looked after elsewhere.
            Ok(None) | Err(_) => {}
        }
    }

    /// The newest header noticed.
    pub fn seen(&self) -> Option<IndexHeader> {
        self.lock().seen
    }

    /// The last failure to seal on an app's thread, if it has not succeeded since.
    pub fn seal_error(&self) -> Option<String> {
        self.lock().seal_error.clone()
    }

    /// Where the WAL lies.
    pub fn wal_path(&self) -> &Path {
        &self.wal_path
    }

    /// Whether everything up to `h` is sealed.
    pub fn is_sealed(&self, h: &IndexHeader) -> bool {
        let s = self.lock();
        s.position.as_ref().is_some_and(|p| sealed_frame(p, h) == Some(h.max_frame))
    }

    /// Whether `h` goes on from what is known. A WAL of another generation, an empty one included, does not:
    /// somebody who had not loaded walrust checkpointed, or wrote without a WAL.
    pub fn is_known(&self, h: &IndexHeader) -> bool {
        let mut s = self.lock();
        let under_way = s.at_lock.as_ref().is_some_and(|(_, known)| *known);
        s.continuity == Continuity::Kept && (under_way || self.goes_on(&mut s, h))
    }

    /// Whether the database file is another than the one that the last close left behind.
    pub fn is_changed_since_close(&self) -> bool {
        self.is_as_closed() == Some(false)
    }

    /// Whether the database file is the one that the last close left behind; `None` if something was captured since, or that
    /// cannot be told.
    pub(super) fn is_as_closed(&self) -> Option<bool> {
        let Handoff::Closed(stamp) = self.spool.position().ok()??.handoff else { return None };
        FileStamp::of(&self.path).ok().map(|now| now == stamp)
    }

    /// Like [`Tracker::is_sealed`], after a look at what other processes have sealed.
    pub(super) fn is_sealed_by_others(&self, h: &IndexHeader) -> bool {
        if let Ok(Some(p)) = self.spool.position() {
            self.lock().position = Some(p);
        }
        self.is_sealed(h)
    }

    /// Whether the WAL file holds frames that are not sealed, committed or not. Where no handle has the wal-index mapped, that
    /// is what can be told without SQLite's locks; a file that cannot be read holds none.
    pub fn wal_goes_on(&self) -> bool {
        let Some(w) = self.position().and_then(|p| p.wal.point()) else { return false };
        let Ok(file) = File::open(&self.wal_path) else { return false };
        let salt = wal::Salt { salt1: w.salt1, salt2: w.salt2 };
        let checksum = match w.checksum {
            Some((a, b)) => wal::FrameChecksum(a, b),
            None => match wal::checksum_at(&file, salt, w.frame) {
                Ok(c) => c,
                // Of another generation, whose first frame is asked for.
                Err(wal::ReadError::Reset(_)) => wal::FrameChecksum(0, 0),
                Err(_) => return false,
            },
        };
        wal::goes_on(&file, wal::WalPos { salt, frame: w.frame, checksum }).unwrap_or(false)
    }

    /// Frames up to `h` that are not sealed yet.
    pub fn unsealed_frames(&self, h: &IndexHeader) -> u32 {
        let s = self.lock();
        match s.position.as_ref().and_then(|p| sealed_frame(p, h)) {
            Some(f) => h.max_frame.saturating_sub(f),
            None => h.max_frame,
        }
    }

    /// This process got WRITE. App's thread.
    pub fn write_begins(&self, h: Option<IndexHeader>) {
        let mut s = self.lock();
        let Some(h) = h else {
            s.at_lock = None;
            return;
        };
        let known = s.continuity == Continuity::Kept && self.goes_on(&mut s, &h);
        s.at_lock = Some((h, known));
    }

    /// This process is about to give up WRITE. App's thread.
    pub fn write_ends(&self, h: Option<IndexHeader>) -> Noticed {
        let noticed = self.write_ended(h);
        self.spool.no_longer_ahead();
        noticed
    }

    fn write_ended(&self, h: Option<IndexHeader>) -> Noticed {
        let mut s = self.lock();
        let ahead = s.ahead.take();
        let (Some(h), Some((before, known))) = (h, s.at_lock.take()) else {
            return Noticed::Nothing;
        };
        let changed = h.max_frame != before.max_frame || h.salt != before.salt;
        if let Some(Ahead::Prepared(p)) = &ahead
            && changed
        {
            // It came to be, whatever becomes of our place: nothing of it is to be taken back.
            drop(self.spool.has_come_to_be(p.position.txid));
        }
        if s.continuity != Continuity::Kept {
            s.seen = Some(h);
            return if matches!(s.continuity, Continuity::Lost(_)) {
                Noticed::Lost
            } else {
                Noticed::Nothing
            };
        }
        if !known {
            s.continuity = Continuity::Lost(Gap::from(format!(
                "the WAL was restarted or the database changed by something that had not loaded walrust (salt {} frame {})",
                before.salt, before.max_frame
            )));
            s.seen = Some(h);
            return Noticed::Lost;
        }
        if h.salt != before.salt {
            // The seal lock comes before the state's mutex, always: the sealer takes them in that order.
            drop(s);
            let followed = generation::follow(&self.spool, &before, &h);
            s = self.lock();
            match followed {
                Ok(p) => s.position = Some(p),
                Err(gap) => {
                    s.continuity = Continuity::Lost(gap);
                    s.seen = Some(h);
                    return Noticed::Lost;
                }
            }
        }
        if let Some(Ahead::Prepared(prepared)) = ahead {
            drop(s);
            let settled = generation::settle(&self.spool, prepared, changed.then_some(&h));
            s = self.lock();
            match settled {
                Ok(p) => s.position = Some(p),
                Err(gap) => {
                    s.continuity = Continuity::Lost(gap);
                    s.seen = Some(h);
                    return Noticed::Lost;
                }
            }
        }
        let foreign =
            s.seen.as_ref().is_some_and(|o| o.salt == before.salt && o.max_frame != before.max_frame);
        s.seen = Some(h);
        drop(s);
        if changed && h.max_frame > 0 {
            return Noticed::Commit;
        }
        if foreign { Noticed::Commit } else { Noticed::Nothing }
    }

    /// A header seen without WRITE (polling): another process's commits. Sealer thread.
    pub fn look(&self, h: IndexHeader) -> Noticed {
        let mut s = self.lock();
        // A transaction of this process may have restarted the WAL: it says so when it ends.
        let under_way = s.at_lock.as_ref().is_some_and(|(_, known)| *known);
        if s.continuity != Continuity::Kept || s.ahead.is_some() || under_way {
            return Noticed::Nothing;
        }
        // A position that another process has given up knows no header, not even one that was seen.
        if s.seen.as_ref() == Some(&h) && s.position.as_ref().is_some_and(|p| self.continues(p, &h)) {
            return Noticed::Nothing;
        }
        if !self.goes_on(&mut s, &h) {
            // The process that restarted it may be about to say so: the sealer looks again.
            return Noticed::Lost;
        }
        let news =
            s.position.as_ref().is_some_and(|p| sealed_frame(p, &h) != Some(h.max_frame)) && h.max_frame > 0;
        s.seen = Some(h);
        if news { Noticed::Commit } else { Noticed::Nothing }
    }

    /// Does `h` go on from the position? Looks at the position file when memory does not know the salts.
    fn goes_on(&self, s: &mut State, h: &IndexHeader) -> bool {
        if s.position.as_ref().is_some_and(|p| self.continues(p, h)) {
            return true;
        }
        let Ok(Some(p)) = self.spool.position() else { return false };
        let goes_on = self.continues(&p, h);
        s.position = Some(p);
        goes_on
    }

    fn continues(&self, p: &Position, h: &IndexHeader) -> bool {
        continues(p, h, || FileStamp::of(&self.path).ok())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("path", &self.path).finish_non_exhaustive()
    }
}
