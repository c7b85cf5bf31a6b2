//! Whether a replica that the spool does not know is this database's: its newest TXID attests what the database holds, or held before
//! the transactions that are still in its WAL (a program that opens a restored database does not wait for the store).
//!
//! That is found out before anything of the spool is changed (I-SES-4): it may hold the queue of another replica, which the next
//! watch of that one goes on with. The checksums of the pages are made beside those of the spool meanwhile.

use super::access::Access;
use super::identity::Expected;
use super::reread::pinned;
use super::watched::Watched;
use crate::base::{Error, Result, clock};
use crate::spool::{Handoff, PageSums, Position, remove_if_there};
use std::sync::Arc;

/// Goes on from the newest TXID of the replica if the database is what that attests; else errors with
/// [`crate::base::Kind::Config`], and the spool is as it was.
pub(super) fn run(w: &Arc<Watched>, expected: Expected) -> Result<()> {
    let beside = w.spool.dir().join(format!(".tmp-{}-proof.sum", std::process::id()));
    remove_if_there(&beside)?;
    let proved = find(w, expected, &PageSums::open(&beside)?);
    let done = proved.and_then(|p| {
        w.spool.own(w.replica(), p.lineage)?;
        let held = w.spool.hold_seal()?;
        w.spool.begin_with(&held, &p, &beside)?;
        w.tracker.resume(p);
        Ok(())
    });
    remove_if_there(&beside)?;
    done?;
    w.link.work.notify_one();
    Ok(())
}

fn find(w: &Arc<Watched>, expected: Expected, sums: &PageSums) -> Result<Position> {
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
        return Ok(now);
    }
    // A program may have gone on with a restored database before the store was heard.
    let earlier = view.earlier(was, sums)?.ok_or_else(|| anothers(w, &expected))?;
    Ok(Position {
        commit: earlier.commit,
        checksum: was,
        wal: earlier.wal.into(),
        handoff: Handoff::Live,
        ..now
    })
}

fn anothers(w: &Watched, expected: &Expected) -> Error {
    Error::config(format!(
        "the replica {} holds another database's history (newest TXID {}); \
         choose another URL, or '{{\"takeover\":true}}' to begin a new lineage in it",
        w.replica(),
        expected.txid
    ))
}
