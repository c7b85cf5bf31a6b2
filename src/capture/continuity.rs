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
/// commit since is in its frames. (One before it would have been checkpointed, and the file would not be what it was.)
pub(super) fn begins_after(p: &Position, h: &IndexHeader, stamp: impl FnOnce() -> Option<FileStamp>) -> bool {
    sealed_frame(p, h).is_none() && !p.wal.is_given_up() && is_all_in_wal(h) && is_as_left(p, stamp)
}

/// The WAL holds frames, and nobody has begun to put them into the file.
fn is_all_in_wal(h: &IndexHeader) -> bool {
    h.max_frame > 0 && h.salt != Salt::default() && (h.backfilled, h.backfill_attempted) == (0, 0)
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
