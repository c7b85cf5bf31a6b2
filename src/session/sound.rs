//! Whether retention may drop what it decided to drop: the last snapshot of which it is known that its database was sound goes only after a
//! look at the database, by SQLite's own `quick_check`.
//!
//! Checksums prove that a replica holds what the database held. That this was sound they do not say: a page that the disk, or another
//! program, ruined below SQLite is replicated as faithfully as any other, and each snapshot of it makes an older, sound one
//! superfluous. The look costs a reading of the database, and is made once for as many snapshots as retention keeps.
//!
//! Refused: a look at each snapshot (it would double what it reads); a look at what is in the replica (it would have to be fetched).

use super::watched::Watched;
use crate::base::{Error, Kind, Result, TxId};
use crate::replica::Compacted;
use crate::replica::encrypted::is_encrypted;
use crate::sqlite::{SqlConnection, SqlMode, despite_forks};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is to be done about what retention has decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    /// It may go on.
    Nothing,
    /// The database is to be looked at before.
    Look,
}

/// Pure. `known`: the snapshot of which it is known.
fn needs(known: Option<TxId>, removes_full: bool, left: &BTreeSet<TxId>) -> Needs {
    match known {
        _ if !removes_full => Needs::Nothing,
        Some(txid) if left.contains(&txid) => Needs::Nothing,
        _ => Needs::Look,
    }
}

/// Errors with `Corrupt` where the database is damaged: then nothing is to be removed. One that cannot be looked at (it is encrypted, or
/// somebody has it for himself) holds nothing up.
pub(super) fn lets_go(w: &Arc<Watched>, decided: &Compacted) -> Result<()> {
    let known = w.spool.sound(w.replica())?;
    if needs(known, decided.removes_full, &decided.left) == Needs::Nothing {
        return Ok(());
    }
    // (Before the look: what is committed during it is not vouched for.)
    let newest = w.link.status().snapshot;
    match look(w) {
        Ok(()) => w.spool.note_sound(w.replica(), newest),
        Err(e) if e.is_corrupt() => {
            let sound = match known {
                Some(txid) => format!("TXID {txid} is the last that is known to be sound"),
                None => "an older state may be sound".to_string(),
            };
            Err(Error::corrupt(format!(
                "the database is damaged, and nothing is removed from the replica while it is: {sound}; \
                 restore that to another file, or repair the database (quick_check: {e})"
            )))
        }
        Err(e) => {
            log::debug!("walrust: {}: not looked at before retention: {e}", w.path().display());
            Ok(())
        }
    }
}

fn look(w: &Watched) -> Result<()> {
    if is_encrypted(w.path())? {
        return Err(Error::new(Kind::Config, "it is encrypted, or none of SQLite's"));
    }
    despite_forks(|| SqlConnection::open(w.path(), SqlMode::Guest)?.quick_check())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sound_snapshot_goes_only_after_a_look() {
        let left: BTreeSet<TxId> = [5, 9].map(TxId).into();
        for (known, removes_full, want) in [
            (None, false, Needs::Nothing),
            (Some(2), false, Needs::Nothing),
            (Some(9), true, Needs::Nothing),
            (Some(2), true, Needs::Look),
            (None, true, Needs::Look),
        ] {
            assert_eq!(needs(known.map(TxId), removes_full, &left), want, "{known:?} {removes_full}");
        }
    }
}
