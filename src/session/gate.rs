//! Synchronous durability: COMMIT returns when the replica has the transaction, or fails.
//!
//! SQLite writes a commit as frames, each a header and a page; the transaction exists once the header of its
//! last frame, the one with the commit mark, is in the WAL. So that header is held back. When its page
//! comes, everything else of the transaction is on disk: its level-0 file is made and shipped, and only the
//! replica's acknowledgement lets header and page through. A failure is an I/O error at that write: SQLite
//! rolls back, the connection stays usable.
//!
//! * I-GATE-1: no commit mark reaches the WAL before the replica has the transaction.
//! * I-GATE-2: an outcome that is not known (timed out, but it may have arrived) never becomes history twice:
//!   the TXID is not used again, and a snapshot under a new lineage follows; when that is in the replica, what
//!   was refused is taken back from it (I-SPOOL-9), for a restore at its TXID would show what never was.
//!
//! The wait holds SQLite's WRITE lock: other writers wait, readers do not. Refused: waiting after the commit
//! (a failure could not be taken back), and holding back whole transactions in memory.

use super::watched::Watched;
use crate::base::{Error, Kind, Pgno, Result, clock, crash, fork};
use crate::capture::{Continuity, SealError, Uncommitted};
use crate::config::Durability;
use crate::sqlite::{IOERR_WRITE, WalFile, WalObserver, WalVerdict};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

const WAL_HEADER: u64 = crate::wal::WAL_HEADER_LEN as u64;
const FRAME_HEADER: usize = crate::wal::FRAME_HEADER_LEN;

/// Sees the writes to the WAL of one database.
#[derive(Debug)]
pub(super) struct Gate {
    watched: Arc<WatchedHere>,
    generation: usize,
    state: Mutex<State>,
}

/// The watch of one path, if there is one: [`super::entry::Entry`] sets it.
pub(super) type WatchedHere = RwLock<Option<Arc<Watched>>>;

/// There is one writer at a time (SQLite's WRITE lock), so one state serves all handles.
#[derive(Debug, Default)]
enum State {
    /// No commit mark seen in this transaction.
    #[default]
    Open,
    /// The header of the commit frame, held back.
    Held { header: [u8; FRAME_HEADER], offset: u64 },
    /// The replica has it: what SQLite still writes of this transaction (padding, checksums) passes.
    Acknowledged,
}

impl Gate {
    pub(super) fn new(watched: Arc<WatchedHere>, generation: usize) -> Gate {
        Gate { watched, generation, state: Mutex::new(State::Open) }
    }

    /// The transaction is over.
    pub(super) fn reset(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Open;
    }

    fn watched(&self) -> Option<Arc<Watched>> {
        if self.generation != fork::generation() {
            return None;
        }
        let w = self.watched.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        // Whether or not it has found its place yet: a commit waits for that, too.
        let is_sync = w.settings().durability == Durability::Sync;
        is_sync.then_some(w)
    }
}

impl WalObserver for Gate {
    fn before_write(&self, file: &WalFile, data: &[u8], offset: u64) -> WalVerdict {
        let Some(w) = self.watched() else { return WalVerdict::Pass };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Acknowledged => WalVerdict::Pass,
            State::Open => match commit_header(&w, data, offset) {
                Some(header) => {
                    *state = State::Held { header, offset };
                    WalVerdict::Withhold
                }
                None => WalVerdict::Pass,
            },
            State::Held { header, offset: at } if offset == at + FRAME_HEADER as u64 => {
                let decided = decide(&w, &header, at, data);
                crash::point("gate.decided");
                match decided.and_then(|()| file.write_at(&header, at)) {
                    Ok(()) => {
                        crash::point("gate.marked");
                        *state = State::Acknowledged;
                        WalVerdict::Pass
                    }
                    Err(e) => {
                        *state = State::Open;
                        log::error!("walrust: {}: COMMIT refused: {e}", w.path().display());
                        let text = format!("COMMIT refused: {e}");
                        // What the shipper says of the store is closer to the cause.
                        w.link.update(|s| {
                            s.last_error.get_or_insert((e.kind(), text));
                        });
                        WalVerdict::Fail(IOERR_WRITE)
                    }
                }
            }
            // Something else than the frame's page after its header: not a writer we know.
            State::Held { .. } => {
                *state = State::Open;
                WalVerdict::Fail(IOERR_WRITE)
            }
        }
    }
}

/// The frame header with a commit mark that this write is, if it is one.
fn commit_header(w: &Watched, data: &[u8], offset: u64) -> Option<[u8; FRAME_HEADER]> {
    let header: [u8; FRAME_HEADER] = data.try_into().ok()?;
    let at_frame = offset >= WAL_HEADER
        && w.tracker.position().is_none_or(|p| {
            let frame_bytes = u64::from(p.page_size.get()) + FRAME_HEADER as u64;
            (offset - WAL_HEADER).is_multiple_of(frame_bytes)
        });
    let [_, _, _, _, c0, c1, c2, c3, ..] = header;
    (at_frame && u32::from_be_bytes([c0, c1, c2, c3]) != 0).then_some(header)
}

/// Ships the transaction; `Ok` when the replica has it.
fn decide(w: &Arc<Watched>, header: &[u8; FRAME_HEADER], offset: u64, page: &[u8]) -> Result<()> {
    if w.handles.is_exclusive() {
        let why = "locking_mode is EXCLUSIVE, with which durability cannot be sync; set it to NORMAL";
        return Err(Error::config(why));
    }
    let timeout = w.settings().sync_timeout;
    let deadline = clock::uptime() + timeout;
    let [p0, p1, p2, p3, c0, c1, c2, c3, ..] = *header;
    let frame_bytes = page.len() as u64 + FRAME_HEADER as u64;
    let last = Uncommitted {
        frame: u32::try_from((offset - WAL_HEADER) / frame_bytes + 1)
            .map_err(|_| Error::new(Kind::Bug, "the WAL is too long"))?,
        pgno: Pgno::new(u32::from_be_bytes([p0, p1, p2, p3]))
            .ok_or_else(|| Error::new(Kind::Bug, "a frame of page 0"))?,
        commit: u32::from_be_bytes([c0, c1, c2, c3]),
        page,
    };
    loop {
        // What came before must be there: then only this transaction's outcome can be in doubt.
        w.sync(deadline.saturating_sub(clock::uptime()))?;
        let h = w.handles.header().or_else(|| w.tracker.seen());
        let Some(h) = h.filter(|_| w.tracker.sync_state() == Continuity::Kept) else {
            pause(deadline)?;
            continue;
        };
        match w.tracker.prepare(&h, &last, clock::now()) {
            Ok(txid) => {
                crash::point("gate.prepared");
                w.ring();
                let shipped = w.wait_shipped(txid, deadline).and_then(|()| w.tracker.confirm(txid));
                return shipped.inspect_err(|e| {
                    w.tracker.abandon(txid, &e.to_string());
                    w.noticed(crate::capture::Noticed::Lost);
                });
            }
            Err(SealError::Failed(e)) => return Err(e),
            Err(SealError::Again | SealError::OutOfSync(_)) => pause(deadline)?,
        }
    }
}

fn pause(deadline: Duration) -> Result<()> {
    if clock::uptime() >= deadline {
        return Err(Error::new(Kind::Timeout, "the database is still being read for a snapshot"));
    }
    clock::sleep(Duration::from_millis(2));
    Ok(())
}
