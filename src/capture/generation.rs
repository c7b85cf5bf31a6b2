//! From one state of the WAL to the next, without a gap: a restart under one WRITE lock, a COMMIT that the replica has already, the
//! last close. Each is written into the position under the seal lock.

use super::continuity::{may_be_followed, sealed_frame};
use super::error::{CHANGED, Gap, NO_POSITION, SealError};
use super::seal::Prepared;
use crate::base::{self, Error, crash};
use crate::spool::{FileStamp, Handoff, Position, SealHeld, Spool, WalPlace, WalPoint};
use crate::wal::IndexHeader;
use std::path::Path;

/// The generation of `before`, sealed to its end, is followed by that of `h` under one WRITE lock.
pub(super) fn follow(spool: &Spool, before: &IndexHeader, h: &IndexHeader) -> Result<Position, Gap> {
    let held = patiently(|| spool.hold_seal())?;
    let p = match patiently(|| spool.position()) {
        Ok(Some(p)) => p,
        Ok(None) => return Err(NO_POSITION.into()),
        Err(e) => return Err(e.into()),
    };
    if !may_be_followed(&p, before) {
        let last = before.max_frame;
        return Err(Gap::from(format!("the WAL was restarted with frames up to {last} not sealed")));
    }
    let next = begun(p, h);
    crash::point("follow.before-position");
    patiently(|| spool.set_position(&held, &next))?;
    Ok(next)
}

/// `p` at the beginning of the generation of `h`.
fn begun(p: Position, h: &IndexHeader) -> Position {
    let wal = WalPoint { salt1: h.salt.salt1, salt2: h.salt.salt2, frame: 0, checksum: None };
    Position { wal: WalPlace::from(wal), handoff: Handoff::Live, ..p }
}

/// The generation of `h` began on the file that the last close left, and nobody has told of it ([`super::continuity::begins_after`]):
/// a process that had no place yet, or has not loaded walrust. Errors as writing the position does.
pub(super) fn adopt(
    spool: &Spool,
    held: &SealHeld<'_>,
    p: &Position,
    h: &IndexHeader,
) -> base::Result<Position> {
    let next = begun(p.clone(), h);
    spool.set_position(held, &next)?;
    Ok(next)
}

/// The commit that the replica already has is in the WAL, up to `h` (or was rolled back: `None`).
pub(super) fn settle(spool: &Spool, prepared: Prepared, h: Option<&IndexHeader>) -> Result<Position, Gap> {
    let txid = prepared.position.txid;
    let Some(h) = h else {
        return Err(Gap::from(format!("TXID {txid} is in the replica, but its commit failed here")));
    };
    let held = spool.hold_seal()?;
    let now = spool.position()?;
    if now.is_none_or(|p| (p.lineage, p.txid.next()) != (prepared.position.lineage, txid)) {
        return Err(Gap::from(format!("TXID {txid} is in the replica, but the history went on without it")));
    }
    let change = spool.begin_change(&held)?;
    spool.sums().store(&prepared.sums)?;
    let checksum = Some((h.frame_checksum.0, h.frame_checksum.1));
    let wal = WalPoint { salt1: h.salt.salt1, salt2: h.salt.salt2, frame: h.max_frame, checksum };
    let position = Position { wal: WalPlace::from(wal), handoff: Handoff::Live, ..prepared.position };
    spool.set_position(&held, &position)?;
    change.done()?;
    Ok(position)
}

/// What the last close has to do before the WAL goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtClose {
    /// Seal what the WAL holds.
    Seal,
    /// All is sealed.
    Nothing,
    /// Something wrote past us: continuity is lost.
    Changed,
}

/// Decides that. `frames`: how many are in the WAL, `None` where that cannot be seen; `is_known`: the WAL goes on from what is
/// known; `is_as_closed`: nothing was written since the last close.
pub(super) fn at_close(
    frames: Option<u32>,
    is_known: impl FnOnce() -> bool,
    is_as_closed: impl FnOnce() -> bool,
) -> AtClose {
    match frames {
        Some(n) if n > 0 => AtClose::Seal,
        // An empty WAL says nothing of what came before it was emptied, or made.
        Some(_) if is_known() => AtClose::Nothing,
        // Nor does one that cannot be seen, unless nothing was written since the last close.
        None if is_as_closed() => AtClose::Nothing,
        _ => AtClose::Changed,
    }
}

impl AtClose {
    /// The loss, if it is one.
    pub(super) fn check(self) -> Result<(), SealError> {
        match self {
            AtClose::Changed => Err(SealError::OutOfSync(CHANGED.into())),
            AtClose::Seal | AtClose::Nothing => Ok(()),
        }
    }
}

/// Everything up to `h` is in the database file, whose stamp is noted, so that the next opener knows it as the one that was left.
pub(super) fn mark_closed(
    spool: &Spool,
    path: &Path,
    h: Option<&IndexHeader>,
) -> Result<Position, SealError> {
    let held = patiently(|| spool.hold_seal())?;
    let Some(p) = patiently(|| spool.position())? else {
        return Err(SealError::OutOfSync(NO_POSITION.into()));
    };
    if h.is_some_and(|h| h.max_frame > 0 && sealed_frame(&p, h) != Some(h.max_frame)) {
        return Err(SealError::Again);
    }
    let stamp = FileStamp::of(path).map_err(|e| Error::io("look at", path, e))?;
    let next = Position { handoff: Handoff::Closed(stamp), ..p };
    patiently(|| spool.set_position(&held, &next))?;
    Ok(next)
}

/// What the process is short of for a moment, descriptors above all, must not cost the history: tried again a few times, on the
/// app's thread, milliseconds in all.
fn patiently<T>(work: impl Fn() -> base::Result<T>) -> base::Result<T> {
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);
    for _ in 0..10 {
        match work() {
            Err(e) if e.is_shortage() => crate::base::clock::sleep(PAUSE),
            done => return done,
        }
    }
    work()
}
