//! Whether the WAL goes on from the position: what is known of that, and the pure part of finding out.

use super::error::Gap;
use crate::spool::{FileStamp, Handoff, Position, WalPlace};
use crate::wal::IndexHeader;

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

/// Whether `h` goes on from `p`: by its generation, or because nothing was written since the last close. `stamp`: what the
/// database file looks like, asked only where that decides.
pub(super) fn continues(p: &Position, h: &IndexHeader, stamp: impl FnOnce() -> Option<FileStamp>) -> bool {
    if sealed_frame(p, h).is_some() {
        return true;
    }
    match p.handoff {
        Handoff::Closed(left) => h.max_frame == 0 && stamp() == Some(left),
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
