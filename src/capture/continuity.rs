//! Whether the WAL goes on from the position: what is known of that, and the pure part of finding out.

use super::error::Gap;
use crate::spool::{FileStamp, Handoff, Position, WalPlace};
use crate::wal::{IndexHeader, Salt};

/// Whether the WAL is known to go on from the position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// Not started yet: nothing is captured, nothing refused.
    Idle,
    /// A resync is looking at the database: the WAL must stay as it is.
    Resyncing,
    /// Every commit since the position is in the WAL.
    Kept,
    /// Something was, or may have been, missed; says what.
    Lost(Gap),
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

/// The frame of `h`'s generation up to which `p` is sealed; `None` if `p` is not of that generation or is
/// ahead of it (a power cut took the WAL's tail). A wal-index that no writer has used yet has salts of zero, as the next
/// one made anew has: they name no generation, and only the database file tells whether anything came between.
pub(super) fn sealed_frame(p: &Position, h: &IndexHeader) -> Option<u32> {
    let WalPlace::Known(w) = p.wal else { return None };
    (w.salt1 == h.salt.salt1 && w.salt2 == h.salt.salt2 && w.frame <= h.max_frame).then_some(w.frame)
}

/// Whether `h` goes on from `p`: by its generation, or because nothing was written to the database file since the last close.
/// `stamp`: what that file looks like, asked only where that decides, and after `h` was read.
pub(super) fn continues(p: &Position, h: &IndexHeader, stamp: impl FnOnce() -> Option<FileStamp>) -> bool {
    match h.max_frame {
        _ if sealed_frame(p, h).is_some() => true,
        0 => is_as_left(p, stamp),
        _ => begins_after(p, h, stamp),
    }
}

/// Whether the generation of `h`, which `p` does not know, began on the file that the last close left: nobody has told of it, but each
/// commit since is in its frames. (One before it would have been checkpointed, and the file would not be what it was.) `h` must be of
/// the generation that the WAL is in: one that was read before that close says nothing of what came after it.
pub(super) fn begins_after(p: &Position, h: &IndexHeader, stamp: impl FnOnce() -> Option<FileStamp>) -> bool {
    !is_generation_of(p, h) && !p.wal.is_given_up() && is_all_in_wal(h) && is_as_left(p, stamp)
}

/// Whether `p` is in the generation of `h`, up to it or past it.
fn is_generation_of(p: &Position, h: &IndexHeader) -> bool {
    matches!(p.wal, WalPlace::Known(w) if (w.salt1, w.salt2) == (h.salt.salt1, h.salt.salt2))
}

/// The WAL holds frames, and none of them are known to be in the file. (That somebody was about to put them there,
/// `nBackfillAttempted`, is no sign that it was done: who makes a wal-index anew after a crash says so of all frames, see
/// `walIndexRecover` in SQLite's wal.c.)
fn is_all_in_wal(h: &IndexHeader) -> bool {
    h.max_frame > 0 && h.salt != Salt::default() && h.backfilled == 0
}

/// What is left to be sealed under a header that was read a while ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing: all of it is sealed, or its generation was ended by somebody who had to see to that.
    Nothing,
    /// The WAL still is in its generation.
    Frames,
    /// The generation is over, and what it held past the position is gone.
    Missed,
}

/// Decides that. `now`: the generation that the WAL file is in, if there is one.
pub(super) fn left_under(p: &Position, h: &IndexHeader, now: Option<Salt>) -> Left {
    match p.wal {
        WalPlace::GivenUp => Left::Missed,
        WalPlace::Known(w) if is_generation_of(p, h) && w.frame >= h.max_frame => Left::Nothing,
        _ if h.max_frame > 0 && now == Some(h.salt) => Left::Frames,
        WalPlace::Known(_) if is_generation_of(p, h) => Left::Missed,
        WalPlace::Known(_) | WalPlace::InFile => Left::Nothing,
    }
}

fn is_as_left(p: &Position, stamp: impl FnOnce() -> Option<FileStamp>) -> bool {
    match p.handoff {
        Handoff::Closed(left) => stamp() == Some(left),
        Handoff::Live => false,
    }
}

/// Whether all of the generation of `h` is sealed in `p`, so that another may follow it (I-CAP-2). Of an empty WAL that is told by the
/// close before it.
pub(super) fn may_be_followed(p: &Position, h: &IndexHeader) -> bool {
    sealed_frame(p, h) == Some(h.max_frame) || (h.max_frame == 0 && matches!(p.handoff, Handoff::Closed(_)))
}

/// Whether `p` is exactly the state of the database that a view with the header `h` shows.
pub fn is_at(p: &Position, h: &IndexHeader) -> bool {
    match p.wal {
        WalPlace::Known(w) if h.max_frame > 0 => {
            (w.salt1, w.salt2, w.frame) == (h.salt.salt1, h.salt.salt2, h.max_frame)
        }
        WalPlace::Known(w) => w.frame == 0 || matches!(p.handoff, Handoff::Closed(_)),
        WalPlace::InFile => h.max_frame == 0,
        // An empty WAL says nothing of what came before it was emptied.
        WalPlace::GivenUp => false,
    }
}
