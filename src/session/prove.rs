//! Whether a replica that the spool does not know is this database's: its newest TXID attests what the database holds, or held before
//! the transactions that are still in its WAL (a program that opens a restored database does not wait for the store). What a checkpoint
//! wrote into the file before the store was heard can be told apart no more; so what the file was when it was met is noted before that
//! ([`note_met`]). A database that was what the replica's newest TXID attests, and went on here, continues it with a snapshot.
//!
//! That is found out before anything of the spool is changed (I-SES-4): it may hold the queue of another replica, which the next
//! watch of that one goes on with. The checksums of the pages are made beside those of the spool meanwhile.

use super::access::Access;
use super::identity::Expected;
use super::phase::Role;
use super::reread::{LARGEST_HELD, knows_nothing, pinned};
use super::watched::Watched;
use crate::base::{Error, Result, clock};
use crate::capture::Database;
use crate::capture::resync::View;
use crate::spool::{Handoff, PageSums, Position, remove_if_there};
use std::sync::Arc;

/// What was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The database is what the replica's newest TXID attests, or was before what its WAL holds: it goes on from there.
    Same,
    /// It was that when this machine met it, and what was committed since is known as a whole only.
    Descends,
}

/// Goes on from the newest TXID of the replica if the database is what that attests; else errors with
/// [`crate::base::Kind::Config`]. Then, and with [`Proof::Descends`], the spool is as it was.
pub(super) fn run(w: &Arc<Watched>, expected: Expected) -> Result<Proof> {
    let beside = w.spool.dir().join(format!(".tmp-{}-proof.sum", std::process::id()));
    remove_if_there(&beside)?;
    let proved = find(w, expected, &PageSums::open(&beside)?);
    let done = proved.and_then(|p| {
        let Some(p) = p else { return Ok(Proof::Descends) };
        w.spool.own(w.replica(), p.lineage)?;
        let held = w.spool.hold_seal()?;
        w.spool.begin_with(&held, &p, &beside)?;
        w.tracker.resume(p);
        Ok(Proof::Same)
    });
    remove_if_there(&beside)?;
    if let Ok(Proof::Same) = done {
        w.ring();
    }
    done
}

/// `None`: see [`Proof::Descends`].
fn find(w: &Arc<Watched>, expected: Expected, sums: &PageSums) -> Result<Option<Position>> {
    w.tracker.settle_ahead()?;
    w.handles.note_file();
    w.handles.reading_begins();
    // (The view keeps the WAL as it is until the position is written; what is committed meanwhile comes after it.)
    w.tracker.begin_resync();
    let view = pinned(w, &Access::new(&w.handles))?;
    let checksum = view.scan(sums, |_, _| {})?;
    let Some((lineage, was)) = expected.attested else { return Err(anothers(w, &expected)) };
    let now = Position {
        lineage,
        txid: expected.txid,
        pieces: 0,
        literal: false,
        page_size: view.page_size(),
        commit: view.commit(),
        checksum,
        timestamp: clock::now(),
        wal: view.wal_point().into(),
        handoff: view.handoff(w.path())?,
    };
    if was == checksum {
        return Ok(Some(now));
    }
    // A program may have gone on with a restored database before the store was heard.
    let Some(earlier) = view.earlier(was, sums)? else {
        let descends = w.spool.met(w.replica())? == Some(was);
        return if descends { Ok(None) } else { Err(anothers(w, &expected)) };
    };
    Ok(Some(Position {
        commit: earlier.commit,
        checksum: was,
        wal: earlier.wal.into(),
        handoff: Handoff::Live,
        ..now
    }))
}

/// Nothing is known of the database's replica, which is not heard yet: writes down what the database file is, through `db`, before the next
/// checkpoint changes it. Once; what goes wrong costs a proof, and nothing more.
pub(super) fn note_met(w: &Watched, db: &dyn Database) {
    let is_small = std::fs::metadata(w.path()).is_ok_and(|m| (1..=LARGEST_HELD).contains(&m.len()));
    let is_new = || w.spool.met(w.replica()).is_ok_and(|met| met.is_none());
    if w.role() != Role::Joining || !is_small || !knows_nothing(w) || !is_new() {
        return;
    }
    let noted = View::open(db, w.tracker.wal_path()).and_then(|view| match view.file_alone()? {
        Some(was) => w.spool.note_met(w.replica(), was),
        None => Ok(()),
    });
    if let Err(e) = noted {
        log::info!("walrust: {}: what it was is not noted: {e}", w.path().display());
    }
}

fn anothers(w: &Watched, expected: &Expected) -> Error {
    Error::config(format!(
        "the replica {} holds another database's history (newest TXID {}); \
         choose another URL, or '{{\"takeover\":true}}' to begin a new lineage in it",
        w.replica(),
        expected.txid
    ))
}
