//! May the WAL be reset, or a checkpoint run? Pure: the tracker looks, this decides.

use super::continuity::Continuity;
use crate::wal::IndexHeader;

/// Tail that a resetting thread seals itself, in frames: a WAL of ordinary size, whole. The sealer has usually done it
/// during the checkpoint that precedes a reset, and what it has not is a commit or two; only where commits come in tens
/// of thousands a second it is a good part. (At 128 such programs saw their resets put off, and the WAL twice as long.)
pub(super) const SHORT_TAIL: u32 = 1_024;
/// WAL size in frames from which a longer tail is sealed on the spot rather than put off: SQLite resets at
/// 1,000 by default, so three refusals have gone by.
pub(super) const LONG_WAL: u32 = 4_000;
/// The longest tail that a commit seals for its reset then, in frames: tens of milliseconds.
pub(super) const LONG_TAIL: u32 = 4_096;
/// The longest tail that a RESTART or TRUNCATE checkpoint seals, in bytes: somebody waits for just this, and the
/// checkpoint copies as many.
const CHECKPOINT_TAIL_BYTES: u32 = 64 << 20;
/// While resets are refused, a checkpoint is let through only once this many frames wait for it; else every
/// commit would run one, at fifty times the price (SQLite's default autocheckpoint threshold).
pub const CHECKPOINT_STEP: u32 = 1_000;

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

/// What is to be done about a reset that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// Let it through: nothing is captured, or nothing could be lost.
    Pass,
    /// Answer SQLITE_BUSY.
    Refuse,
    /// Whatever of the tail is not sealed is sealed first, on the resetting thread, and synced (I-CAP-4).
    Seal,
}

/// Decides on a reset. `tail`: frames not sealed; `max_frame`: frames in the WAL, `None` where that cannot be told.
pub(super) fn may_reset(
    known: &Continuity,
    tail: u32,
    max_frame: Option<u32>,
    by: Resetter,
    checkpoint_tail: u32,
) -> Reset {
    let max_frame = match (known, max_frame) {
        (Continuity::Resyncing, _) => return Reset::Refuse,
        (Continuity::Idle | Continuity::Lost(_), _) | (Continuity::Kept, None | Some(0)) => {
            return Reset::Pass;
        }
        (Continuity::Kept, Some(n)) => n,
    };
    let limit = match by {
        Resetter::Checkpoint => checkpoint_tail,
        Resetter::Commit if max_frame >= LONG_WAL => LONG_TAIL,
        Resetter::Commit => SHORT_TAIL,
    };
    if tail > limit { Reset::Refuse } else { Reset::Seal }
}

/// Decides on a checkpoint that wants to start, after a reset was refused. `waiting`: frames not yet in the database file.
pub(super) fn may_checkpoint(tail: u32, waiting: u32) -> Permit {
    if tail > SHORT_TAIL && waiting < CHECKPOINT_STEP { Permit::Refused } else { Permit::Granted }
}

/// Decides whether a checkpointer gets WRITE: FULL, RESTART or TRUNCATE, which are to reset the WAL.
pub(super) fn may_take_write(known: &Continuity, tail: Option<u32>, checkpoint_tail: u32) -> Permit {
    match (known, tail) {
        (Continuity::Resyncing, _) => Permit::Refused,
        (Continuity::Kept, Some(tail)) if tail > checkpoint_tail => Permit::Refused,
        _ => Permit::Granted,
    }
}

/// [`CHECKPOINT_TAIL_BYTES`] in frames.
pub(super) fn checkpoint_tail(h: &IndexHeader) -> u32 {
    CHECKPOINT_TAIL_BYTES / h.page_size.map_or(4096, |p| p.get())
}
