//! Beginning anew in place of this process's own watch, and what else the sealer does with a watch as a whole.

use super::job::Job;
use super::phase::{Claim, Role};
use super::registry::Engine;
use super::told::UNREADABLE;
use super::watched::Watched;
use super::work::Work;
use crate::base::event::EventKind;
use crate::base::{Error, clock, panics};
use crate::ship::State;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries to watch it again, when what stands in the way is on this machine.
const PAUSE: Duration = Duration::from_secs(2);

/// Begins anew, as its own successor: the spool was deleted under us, or the replica was emptied. A snapshot
/// under a new lineage follows.
pub(super) fn restart(engine: &'static Engine, w: &Arc<Watched>, why: &str) {
    // What this process shipped is its own; a standby finds out whose it is.
    let claim = w.part().claim();
    if claim == Claim::Own && may_renew(w) && w.job.job().is_none() {
        let context = json!({"reason": why});
        w.tell(EventKind::HistoryGap, format!("{why}; a new snapshot follows"), context);
    }
    if begin_again(engine, w, Role::Shipper, claim, why) {
        log::warn!("walrust: {}: {why}; beginning anew", w.path().display());
    }
}

/// Begins again after an internal error, as what it was.
pub(super) fn recover(engine: &'static Engine, w: &Arc<Watched>) {
    let wish = if w.role() == Role::Standby { Role::Standby } else { Role::Shipper };
    if begin_again(engine, w, wish, Claim::None, "watching it again after an internal error") {
        log::warn!("walrust: {}: watching it again after an internal error", w.path().display());
    }
}

/// The database must be read, and this process has it not open, or only a file that was replaced: one that has it is to
/// ship it. This one is a standby until the app opens it.
pub(super) fn hand_over(engine: &'static Engine, w: &Arc<Watched>) {
    let replaced = w.handles.has_only_replaced();
    if w.spool.hold_seal().and_then(|held| w.spool.forget_place(&held)).is_err()
        || !begin_again(engine, w, Role::Standby, Claim::None, UNREADABLE)
    {
        return;
    }
    if replaced {
        w.tell_replaced();
    } else {
        log::info!("walrust: {}: {UNREADABLE}; waiting until it is", w.path().display());
    }
}

fn may_renew(w: &Watched) -> bool {
    w.link.status().state != State::Fenced
}

/// Whether it begins, on a thread of its own: not when one is at work.
fn begin_again(engine: &'static Engine, w: &Arc<Watched>, wish: Role, claim: Claim, why: &str) -> bool {
    if !may_renew(w) {
        return false;
    }
    let Some(ticket) = Work::take(w, Job::Renewing) else { return false };
    let why = why.to_string();
    ticket.start("walrust-restart", move |ticket| {
        let mine = ticket.of();
        let _renewal = engine.renewals.begin(mine.path(), why);
        engine.end(mine);
        while engine.renewals.why(mine.path()).is_some() {
            // Nobody else tries, nor shows in the status: a panic is an error like another here.
            let begun = panics::caught(|| engine.watch_again(mine, wish, claim));
            match begun.unwrap_or_else(|said| Err(panics::error(&said))) {
                Ok(()) => return engine.clear_failure(mine.path()),
                Err(e) => engine.note_failure(mine.path(), &e),
            }
            clock::sleep(PAUSE);
        }
        engine.clear_failure(mine.path());
    })
}

/// A power cut took a part of a file that waits to be shipped: it and what follows are given up, and a snapshot under a
/// new lineage takes their place, above every TXID they had.
pub(super) fn clear_queue(w: &Arc<Watched>, why: String) {
    // What is being made for the queue at the moment would go, too, and be counted on. The shipper meets the file again.
    let Some(ticket) = Work::take(w, Job::Renewing) else { return };
    // (If no thread can be started, the shipper meets the file again.)
    ticket.start("walrust-restart", move |ticket| {
        let mine = ticket.of();
        let cut = mine.tracker.position().map(|p| p.txid).unwrap_or_default();
        let waiting = mine.spool.pending().ok().and_then(|p| p.last().map(|q| q.txid)).unwrap_or_default();
        let cleared: Result<(), Error> = mine.spool.hold_seal().and_then(|held| {
            mine.spool.clear(&held)?;
            mine.spool.venture(&held, cut.max(waiting).next())
        });
        match cleared {
            Ok(()) => mine.tracker.lose(format!("a file of the spool is damaged: {why}")),
            Err(e) => log::warn!("walrust: {}: the queue cannot be cleared: {e}", mine.path().display()),
        }
        mine.look_again();
    });
}
