//! What may happen inside a commit: notice it, keep SQLite from recycling frames that are not sealed, seal.
//!
//! A commit is known from the wal-index header at the moment the WRITE lock is given up, not from parsing
//! writes: that is exact through cache spill, savepoints, rollback, padding and failed syncs, for every
//! process (<https://sqlite.org/walformat.html#the_wal_index_file_format>).
//!
//! # Rules
//!
//! * I-CAP-1: nothing past `mxFrame` is sealed, however valid its checksum looks.
//! * I-CAP-2: a WAL generation is followed by another only when all of it is sealed, or the tracker knows
//!   that it is not ([`Sync::Lost`]) and a snapshot under a new lineage follows. Never guessed.
//! * I-CAP-3: an app's thread waits for local disk at most, never for the store, and fails for neither.
//! * I-CAP-4: what is sealed is on disk (synced) before the frames may be overwritten.
//!
//! # Continuity
//!
//! A generation is a pair of salts. Within one, the frame number and running checksum tie the next range to
//! the last. From one to the next: the process that restarts the WAL holds WRITE from before the restart
//! until its own first commit is in; it knew the old generation as sealed to its end, so at unlock it may say
//! "the new salts follow". Any doubt (salts that nobody announced, a rollback-mode write, a replaced file, a
//! WAL that lost its tail to a power cut) ends in [`Sync::Lost`], and then only the content of the whole
//! database can prove that nothing was missed ([`resync`]).
//!
//! # Threads
//!
//! [`Tracker`] is called from the app's threads (inside SQLite's locking calls), the sealer thread and, for
//! a resync, a thread of its own. What crosses processes is the spool: position file and seal lock.
//!
//! # Refused
//!
//! Holding a read mark against resets, as Litestream does from outside: it makes the app's own checkpoints
//! report "busy" and the WAL grow while the writer is quicker than the reader. Sealing the short tail on the
//! resetting thread costs a fraction of the checkpoint it just paid.

pub mod pages;
pub mod resync;
mod seal;

pub use seal::{Sealed, Uncommitted};

use crate::base::{Error, Kind, Result, Timestamp, TxId};
use crate::ltx::Packing;
use crate::spool::{FileStamp, Handoff, Position, SealHeld, Spool, WalPoint};
use crate::wal::{self, IndexHeader};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tail that a resetting thread seals itself, in frames: a WAL of ordinary size, whole. The sealer has usually done it
/// during the checkpoint that precedes a reset, and what it has not is a commit or two; only where commits come in tens
/// of thousands a second it is a good part. (At 128 such programs saw their resets put off, and the WAL twice as long.)
const SHORT_TAIL: u32 = 1_024;
/// WAL size in frames from which a longer tail is sealed on the spot rather than put off: SQLite resets at
/// 1,000 by default, so three refusals have gone by.
const LONG_WAL: u32 = 4_000;
/// The longest tail that a commit seals for its reset then, in frames: tens of milliseconds.
const LONG_TAIL: u32 = 4_096;
/// The longest tail that a RESTART or TRUNCATE checkpoint seals, in bytes: somebody waits for just this, and the
/// checkpoint copies as many.
const CHECKPOINT_TAIL: u32 = 64 << 20;
const NO_POSITION: &str = "the spool's position is gone";
/// While resets are refused, a checkpoint is let through only once this many frames wait for it; else every
/// commit would run one, at fifty times the price (SQLite's default autocheckpoint threshold).
pub const CHECKPOINT_STEP: u32 = 1_000;

const CHANGED: &str = "the database was changed by something that had not loaded walrust";

/// The database as the tracker may read it without SQL, offered by the room that knows SQLite.
pub trait Database: Send + std::marker::Sync {
    /// A consistent view: see [`Pinned`]. Never called on an app's thread.
    fn pin(&self) -> Result<Box<dyn Pinned>>;
    /// Reads the database file, without locks of its own; what lies past its end is zero.
    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// The pages of WAL frames `from + 1 ..= to`, which are committed, out of the wal-index; `None` where it is not
    /// at hand. Every touch of a frame in the WAL file costs its writer a cache miss at the next reset.
    fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        let _ = (from, to);
        None
    }
}

/// A read mark held on the database: nothing it can see is overwritten while it lives.
pub trait Pinned {
    /// The wal-index header at the moment of pinning: the view is everything up to its mxFrame.
    fn header(&self) -> &IndexHeader;
    /// Whether the view is all in the database file (SQLite's read mark 0), so that the WAL must not be read.
    fn is_db_only(&self) -> bool;
    /// Reads the database file; what lies past its end is zero.
    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Size of the database file in bytes.
    fn db_size(&self) -> Result<u64>;
    /// Asked at each step of what takes long: an error when the view must be given back at once.
    fn go_on(&self) -> Result<()> {
        Ok(())
    }
}

/// Whether the WAL is known to go on from the position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Not started yet: nothing is captured, nothing refused.
    Idle,
    /// A resync is looking at the database: the WAL must stay as it is.
    Resyncing,
    /// Every commit since the position is in the WAL.
    Kept,
    /// Something was, or may have been, missed; says what.
    Lost(String),
}

/// May the WAL be reset, or a checkpoint run?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Yes.
    Granted,
    /// Not now: answer SQLITE_BUSY, as a slow reader would.
    Refused,
}

/// Who wants to reset the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resetter {
    /// A commit, which finds all frames in the database file. It can as well append.
    Commit,
    /// A RESTART or TRUNCATE checkpoint: somebody asked for just this, and it holds WRITE till it has it.
    Checkpoint,
}

/// What a WRITE unlock told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Nothing new.
    Nothing,
    /// A commit: wake the sealer.
    Commit,
    /// Continuity was lost: wake the sealer, it must resync.
    Lost,
}

/// Why nothing was sealed.
#[derive(Debug)]
pub enum SealError {
    /// The WAL does not go on from the position.
    OutOfSync(String),
    /// The WAL was reset while it was read: look again.
    Again,
    /// Reading or writing failed.
    Failed(Error),
}

impl From<crate::wal::ReadError> for SealError {
    fn from(e: crate::wal::ReadError) -> Self {
        match e {
            crate::wal::ReadError::Reset(_) => SealError::Again,
            e => SealError::Failed(e.into()),
        }
    }
}

impl From<Error> for SealError {
    fn from(e: Error) -> Self {
        SealError::Failed(e)
    }
}

#[derive(Debug)]
struct State {
    sync: Sync,
    /// The newest header noticed in this process.
    seen: Option<IndexHeader>,
    /// The header when this process last got WRITE, and whether it then went on from what is known.
    at_lock: Option<(IndexHeader, bool)>,
    /// Position as of the last look; another process may have moved it on.
    position: Option<Position>,
    /// The last seal that failed on an app's thread.
    seal_error: Option<String>,
    /// Where the WAL ended when a checkpoint under EXCLUSIVE was last seen.
    checkpointing: Option<(wal::Salt, u32)>,
    /// A transaction that the replica has, or is about to have, before SQLite commits it here.
    ahead: Option<Ahead>,
}

/// Synchronous durability: where the transaction is.
#[derive(Debug)]
enum Ahead {
    /// Its file is being made.
    Asking,
    /// It is on its way; when WRITE is given up with the commit in the WAL, the replica has it.
    Prepared(seal::Prepared),
}

/// Capture of one database in one process.
pub struct Tracker {
    path: PathBuf,
    wal_path: PathBuf,
    spool: Arc<Spool>,
    db: Arc<dyn Database>,
    state: Mutex<State>,
    /// Fast path: whether anything is to be done at all.
    active: AtomicBool,
    /// Resets are being refused: throttle checkpoints.
    refusing: AtomicBool,
    /// Spool bytes past which the app's WAL is no longer held back.
    give_up_wal_bytes: u64,
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
                sync: Sync::Idle,
                seen: None,
                at_lock: None,
                position: None,
                seal_error: None,
                checkpointing: None,
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
        self.lock().sync = Sync::Idle;
    }

    /// The WAL must stay as it is from now on, until [`Tracker::resume`] or [`Tracker::lose`].
    pub fn begin_resync(&self) {
        self.lock().sync = Sync::Resyncing;
        self.active.store(true, Ordering::Release);
    }

    /// The WAL is known to go on from `p`.
    pub fn resume(&self, p: Position) {
        let mut s = self.lock();
        s.position = Some(p);
        s.sync = Sync::Kept;
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
    pub fn lose(&self, why: impl Into<String>) {
        let mut s = self.lock();
        if matches!(s.sync, Sync::Kept | Sync::Resyncing) {
            s.sync = Sync::Lost(why.into());
        }
        self.refusing.store(false, Ordering::Relaxed);
    }

    /// Whether the WAL is known to go on from the position.
    pub fn sync_state(&self) -> Sync {
        self.lock().sync.clone()
    }

    /// The newest position known in this process.
    pub fn position(&self) -> Option<Position> {
        self.lock().position.clone()
    }

    /// Takes up the position that another process may have moved on. One that is gone, or is none, is not made up.
    pub fn refresh(&self) {
        let mut s = self.lock();
        if s.sync != Sync::Kept {
            return;
        }
        match self.spool.position() {
            Ok(Some(p)) => s.position = Some(p),
            Ok(None) if !self.spool.is_gone() => s.sync = Sync::Lost(NO_POSITION.to_string()),
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
        s.sync == Sync::Kept && (under_way || self.goes_on(&mut s, h))
    }

    /// Whether the database file is another than the one that the last close left behind.
    pub fn is_changed_since_close(&self) -> bool {
        self.is_as_closed() == Some(false)
    }

    /// Whether the database file is the one that the last close left behind; `None` if something was captured since, or that
    /// cannot be told.
    fn is_as_closed(&self) -> Option<bool> {
        let Handoff::Closed(stamp) = self.spool.position().ok()??.handoff else { return None };
        FileStamp::of(&self.path).ok().map(|now| now == stamp)
    }

    /// Like [`Tracker::is_sealed`], after a look at what other processes have sealed.
    fn is_sealed_by_others(&self, h: &IndexHeader) -> bool {
        if let Ok(Some(p)) = self.spool.position() {
            self.lock().position = Some(p);
        }
        self.is_sealed(h)
    }

    /// Whether the WAL file holds frames that are not sealed, committed or not. Where no handle has the wal-index mapped, that
    /// is what can be told without SQLite's locks; a file that cannot be read holds none.
    pub fn wal_goes_on(&self) -> bool {
        let Some(w) = self.position().and_then(|p| p.wal) else { return false };
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
        let known = s.sync == Sync::Kept && self.goes_on(&mut s, &h);
        s.at_lock = Some((h, known));
    }

    /// This process is about to give up WRITE. App's thread.
    pub fn write_ends(&self, h: Option<IndexHeader>) -> Noticed {
        let noticed = self.write_ended(h);
        self.spool.no_longer_ahead();
        noticed
    }

    /// This process has the database for itself, and SQLite takes no wal-index locks until it gives it back: from now on a
    /// commit is told by [`Tracker::exclusive_commit`], and a reset cannot be refused. App's thread.
    pub fn exclusive_begins(&self, h: IndexHeader) {
        self.write_begins(Some(h));
        self.seal_before_reset(&h);
    }

    /// A transaction was committed, up to `h`. Nobody else can write before the next one.
    pub fn exclusive_commit(&self, h: IndexHeader) -> Noticed {
        let noticed = self.write_ends(Some(h));
        self.write_begins(Some(h));
        noticed
    }

    /// A page is copied into the database file by a checkpoint of the WAL up to `h`. A reset comes only when all are,
    /// and before another commit: so with the first of them, whatever is not sealed is.
    pub fn exclusive_checkpoint(&self, h: &IndexHeader) {
        let place = Some((h.salt, h.max_frame));
        if std::mem::replace(&mut self.lock().checkpointing, place) != place {
            self.seal_before_reset(h);
        }
    }

    /// What fails here is in the WAL until it is reset: the sealer tries again, and [`Tracker::follow`] tells.
    fn seal_before_reset(&self, h: &IndexHeader) {
        if self.sync_state() != Sync::Kept || h.max_frame == 0 {
            return;
        }
        let sealed = self.seal(h, Packing::Literal, crate::base::clock::now()).map(drop);
        let error = match sealed.and_then(|()| Ok(self.spool.make_durable()?)) {
            Ok(()) | Err(SealError::Again) => None,
            Err(SealError::OutOfSync(why)) => return self.lose(why),
            Err(SealError::Failed(e)) => Some(e.to_string()),
        };
        self.lock().seal_error = error;
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
            drop(self.spool.forget_asked(p.position.txid));
        }
        if s.sync != Sync::Kept {
            s.seen = Some(h);
            return if matches!(s.sync, Sync::Lost(_)) { Noticed::Lost } else { Noticed::Nothing };
        }
        if !known {
            s.sync = Sync::Lost(format!(
                "the WAL was restarted or the database changed by something that had not loaded walrust (salt {} frame {})",
                before.salt, before.max_frame
            ));
            s.seen = Some(h);
            return Noticed::Lost;
        }
        if h.salt != before.salt {
            // The seal lock comes before the state's mutex, always: the sealer takes them in that order.
            drop(s);
            let followed = self.follow(&before, &h);
            s = self.lock();
            if let Err(e) = followed {
                s.sync = Sync::Lost(e);
                s.seen = Some(h);
                return Noticed::Lost;
            }
        }
        if let Some(Ahead::Prepared(prepared)) = ahead {
            drop(s);
            let settled = self.settle(prepared, changed.then_some(&h));
            s = self.lock();
            if let Err(e) = settled {
                s.sync = Sync::Lost(e);
                s.seen = Some(h);
                return Noticed::Lost;
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
        if s.sync != Sync::Kept || s.ahead.is_some() || under_way {
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
        if sealed_frame(p, h).is_some() {
            return true;
        }
        let Handoff::Closed(stamp) = p.handoff else { return false };
        h.max_frame == 0 && FileStamp::of(&self.path).is_ok_and(|now| now == stamp)
    }

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
            return Err(SealError::OutOfSync(NO_POSITION.to_string()));
        };
        if p.pieces > 0 || p.wal.is_none() || (h.max_frame > 0 && sealed_frame(&p, h) != Some(h.max_frame)) {
            return Err(SealError::Again);
        }
        if self.spool.is_ahead()? {
            // This thread has SQLite's WRITE lock, so whoever had it then has ended.
            return Err(self.ended_ahead(&held, p.txid.next())?);
        }
        let wal = File::open(&self.wal_path).map_err(|e| Error::io("open", &self.wal_path, e))?;
        self.lock().ahead = Some(Ahead::Asking);
        match seal::prepare(&self.spool, &p, h, last, &wal, self.db.as_ref(), now) {
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
        if self.spool.is_ahead()? && p.is_some_and(|p| p.txid.next() == txid) {
            self.spool.give_up(&held, txid)?;
        }
        Ok(())
    }

    /// Whether the TXID that was made for this process's COMMIT still is what comes next: nobody gave it up because
    /// this process seemed to be gone. Asked when the replica has it, before the commit mark is written.
    pub fn confirm(&self, txid: TxId) -> Result<()> {
        let _held = self.spool.hold_seal()?;
        let p = self.spool.position()?;
        if self.spool.is_ahead()? && p.is_some_and(|p| p.txid.next() == txid) {
            return Ok(());
        }
        Err(Error::new(Kind::Retry, format!("the history went on without TXID {txid}")))
    }

    /// The process that made `txid` for its COMMIT ended: whether there was one, the database's content tells.
    fn ended_ahead(&self, held: &SealHeld<'_>, txid: TxId) -> Result<SealError> {
        self.spool.give_up(held, txid)?;
        let why = format!("TXID {txid} may be in the replica without its commit here: its process ended");
        self.lose(why.clone());
        Ok(SealError::OutOfSync(why))
    }

    /// Gives up what a process that ended left ahead, and waits while one that lives is. Before a resync.
    pub fn settle_ahead(&self) -> Result<()> {
        loop {
            {
                let held = self.spool.hold_seal()?;
                if !self.spool.is_ahead()? {
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

    /// The commit that the replica already has is in the WAL, up to `h` (or was rolled back: `None`).
    fn settle(&self, prepared: seal::Prepared, h: Option<&IndexHeader>) -> std::result::Result<(), String> {
        let txid = prepared.position.txid;
        let Some(h) = h else {
            return Err(format!("TXID {txid} is in the replica, but its commit failed here"));
        };
        let held = self.spool.hold_seal().map_err(|e| e.to_string())?;
        let now = self.spool.position().map_err(|e| e.to_string())?;
        if now.is_none_or(|p| (p.lineage, p.txid.next()) != (prepared.position.lineage, txid)) {
            return Err(format!("TXID {txid} is in the replica, but the history went on without it"));
        }
        let change = self.spool.begin_change(&held).map_err(|e| e.to_string())?;
        self.spool.sums().store(&prepared.sums).map_err(|e| e.to_string())?;
        let checksum = Some((h.frame_checksum.0, h.frame_checksum.1));
        let wal = WalPoint { salt1: h.salt.salt1, salt2: h.salt.salt2, frame: h.max_frame, checksum };
        let position = Position { wal: Some(wal), handoff: Handoff::Live, ..prepared.position };
        self.spool.set_position(&held, &position).map_err(|e| e.to_string())?;
        change.done().map_err(|e| e.to_string())?;
        self.lock().position = Some(position);
        Ok(())
    }

    /// The generation of `before`, sealed to its end, is followed by that of `h` under one WRITE lock.
    fn follow(&self, before: &IndexHeader, h: &IndexHeader) -> std::result::Result<(), String> {
        let held = patiently(|| self.spool.hold_seal()).map_err(|e| e.to_string())?;
        let p = match patiently(|| self.spool.position()) {
            Ok(Some(p)) => p,
            Ok(None) => return Err(NO_POSITION.to_string()),
            Err(e) => return Err(e.to_string()),
        };
        let sealed = sealed_frame(&p, before) == Some(before.max_frame)
            || (before.max_frame == 0 && matches!(p.handoff, Handoff::Closed(_)));
        if !sealed {
            return Err(format!("the WAL was restarted with frames up to {} not sealed", before.max_frame));
        }
        let next = Position {
            wal: Some(WalPoint { salt1: h.salt.salt1, salt2: h.salt.salt2, frame: 0, checksum: None }),
            handoff: Handoff::Live,
            ..p
        };
        patiently(|| self.spool.set_position(&held, &next)).map_err(|e| e.to_string())?;
        self.lock().position = Some(next);
        Ok(())
    }

    /// Somebody with WRITE wants to reset the WAL (EXCLUSIVE on the read marks). App's thread.
    pub fn reset_wanted(&self, h: Option<&IndexHeader>, by: Resetter, wal_bytes: impl Fn() -> u64) -> Permit {
        let sync = self.sync_state();
        match (sync, h) {
            (Sync::Resyncing, _) => return self.refuse(),
            (Sync::Idle | Sync::Lost(_), _) | (_, None) => return Permit::Granted,
            (Sync::Kept, Some(h)) if h.max_frame == 0 => return Permit::Granted,
            _ => {}
        }
        let Some(h) = h else { return Permit::Granted };
        if !self.is_sealed(h) && !self.is_sealed_by_others(h) {
            let tail = self.unsealed_frames(h);
            let limit = match by {
                Resetter::Checkpoint => checkpoint_tail(h),
                Resetter::Commit if h.max_frame >= LONG_WAL => LONG_TAIL,
                Resetter::Commit => SHORT_TAIL,
            };
            if tail > limit {
                return self.refuse();
            }
            match self.seal(h, Packing::Literal, crate::base::clock::now()) {
                Ok(_) => {}
                Err(e) => return self.cannot_seal(e, wal_bytes()),
            }
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
        match h {
            Some(h)
                if self.unsealed_frames(h) > SHORT_TAIL
                    && h.max_frame.saturating_sub(h.backfilled) < CHECKPOINT_STEP =>
            {
                Permit::Refused
            }
            _ => Permit::Granted,
        }
    }

    /// A handle that holds CKPT asks for WRITE: FULL, RESTART or TRUNCATE. While a reset would be refused it
    /// must not get WRITE, or it would sit in its busy handler and starve every writer.
    pub fn checkpointer_wants_write(&self, h: Option<&IndexHeader>) -> Permit {
        match (self.sync_state(), h) {
            (Sync::Resyncing, _) => Permit::Refused,
            (Sync::Kept, Some(h)) if self.unsealed_frames(h) > checkpoint_tail(h) => {
                self.refusing.store(true, Ordering::Relaxed);
                Permit::Refused
            }
            _ => Permit::Granted,
        }
    }

    /// The last connection closes (or WAL mode ends): everything is in the database file and the WAL is about
    /// to go. App's thread, under SQLite's EXCLUSIVE lock.
    pub fn last_close(&self, h: Option<&IndexHeader>) -> Noticed {
        if self.sync_state() != Sync::Kept {
            return Noticed::Nothing;
        }
        let sealed = match h {
            Some(h) if h.max_frame > 0 => self.seal(h, Packing::Literal, crate::base::clock::now()).map(drop),
            // An empty WAL says nothing of what came before it was emptied, or made.
            Some(h) if !self.is_known(h) => Err(SealError::OutOfSync(CHANGED.to_string())),
            // Nor does one that cannot be seen, unless nothing was written since the last close.
            None if self.is_as_closed() != Some(true) => Err(SealError::OutOfSync(CHANGED.to_string())),
            _ => Ok(()),
        };
        let done = sealed.and_then(|()| Ok(self.spool.make_durable()?)).and_then(|()| self.mark_closed(h));
        match done {
            Ok(()) => Noticed::Commit,
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

    fn mark_closed(&self, h: Option<&IndexHeader>) -> std::result::Result<(), SealError> {
        let held = patiently(|| self.spool.hold_seal())?;
        let Some(p) = patiently(|| self.spool.position())? else {
            return Err(SealError::OutOfSync(NO_POSITION.to_string()));
        };
        if h.is_some_and(|h| h.max_frame > 0 && sealed_frame(&p, h) != Some(h.max_frame)) {
            return Err(SealError::Again);
        }
        let stamp = FileStamp::of(&self.path).map_err(|e| Error::io("look at", &self.path, e))?;
        let next = Position { handoff: Handoff::Closed(stamp), ..p };
        patiently(|| self.spool.set_position(&held, &next))?;
        self.lock().position = Some(next);
        Ok(())
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
        let Some(p) = self.spool.position()? else {
            return Err(SealError::OutOfSync(NO_POSITION.to_string()));
        };
        let Some(from) = sealed_frame(&p, h) else {
            self.lock().position = Some(p);
            return Err(SealError::OutOfSync(format!("salt {} is not that of the position", h.salt)));
        };
        if from == h.max_frame {
            let mut s = self.lock();
            s.position = Some(p);
            s.seal_error = None;
            return Ok(Sealed::default());
        }
        if self.spool.is_ahead()? {
            // These frames are of a COMMIT under sync durability, whose TXID is made: its thread says so in a moment.
            if self.spool.is_ahead_alive()? {
                return Err(SealError::Again);
            }
            return Err(self.ended_ahead(&held, p.txid.next())?);
        }
        let wal = File::open(&self.wal_path).map_err(|e| Error::io("open", &self.wal_path, e))?;
        match seal::seal(&self.spool, &held, &p, from, h, &wal, self.db.as_ref(), packing, now) {
            Ok((next, sealed)) => {
                let mut s = self.lock();
                s.position = Some(next);
                s.seal_error = None;
                Ok(sealed)
            }
            Err(SealError::Failed(e)) if e.is_corrupt() => Err(self.damaged(&e, &wal, h)),
            Err(e) => Err(e),
        }
    }

    /// What is in the WAL is not what the wal-index says was committed. Not to be tried again: SQLite reads such a WAL, which
    /// it may have written itself (see [`resync`]), so the database is read as it does.
    fn damaged(&self, e: &Error, wal: &File, h: &IndexHeader) -> SealError {
        if wal::check_generation(wal, h.salt).is_err() {
            return SealError::Again;
        }
        self.lose(e.to_string());
        SealError::OutOfSync(e.to_string())
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
        let last = self.spool.cut(&held, &p).unwrap_or(p);
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What the process is short of for a moment, descriptors above all, must not cost the history: tried again a few times, on the
/// app's thread, milliseconds in all.
fn patiently<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);
    for _ in 0..10 {
        match work() {
            Err(e) if e.is_shortage() => crate::base::clock::sleep(PAUSE),
            done => return done,
        }
    }
    work()
}

/// [`CHECKPOINT_TAIL`] in frames.
fn checkpoint_tail(h: &IndexHeader) -> u32 {
    CHECKPOINT_TAIL / h.page_size.map_or(4096, |p| p.get())
}

/// The frame of `h`'s generation up to which `p` is sealed; `None` if `p` is not of that generation or is
/// ahead of it (a power cut took the WAL's tail). A wal-index that no writer has used yet has salts of zero, as the next
/// one made anew has: they name no generation, and only the database file tells whether anything came between.
fn sealed_frame(p: &Position, h: &IndexHeader) -> Option<u32> {
    let w = p.wal.filter(|w| (w.salt1, w.salt2) != (0, 0))?;
    (w.salt1 == h.salt.salt1 && w.salt2 == h.salt.salt2 && w.frame <= h.max_frame).then_some(w.frame)
}

/// "Busy" as an error, for callers that must report it.
pub fn busy(what: &str) -> Error {
    Error::new(Kind::Retry, format!("{what}: the database is being resynchronised, try again"))
}

#[cfg(test)]
mod tests;
