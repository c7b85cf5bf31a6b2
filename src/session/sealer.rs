//! The sealer: one plain thread that turns noticed commits into spool files.
//!
//! A wake-up per commit would nearly double the price of a small one, so a woken sealer lingers: it looks
//! again every couple of milliseconds while commits keep coming, and only a commit that finds it asleep pays
//! for waking it. Besides, four times a second, it looks at every watched database for what no hook tells: commits
//! of processes that have not loaded the extension, a lock that became free, a schedule that is due.

use super::engine::{engine, lock};
use super::resync;
use super::watched::{Role, Watched};
use crate::base::{clock, panics, thread};
use crate::capture::{Noticed, SealError, Sync};
use crate::ltx::Packing;
use crate::spool::{FileStamp, Handoff};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Between two looks while commits keep coming. Long enough that the app does not feel them, short against
/// the time a checkpoint gives (see `capture`).
const LINGER: Duration = Duration::from_millis(2);
/// Looks without news before it goes to sleep.
const PATIENCE: u32 = 20;
/// Between two looks at things that no hook tells.
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks at a database that nobody has open here: twice as long after every [`VAIN`] that found nothing, up to 16
/// times. What another process does to it is rarely news to this one.
const VAIN: u32 = 8;
/// Of many that are closed, one is looked at in such a time at the most: a look takes a tenth of a millisecond.
const EACH: Duration = Duration::from_millis(25);
/// Unsealed frames at which it does not wait for the upload slot: SQLite wants to reset at 1,000.
const PRESSURE: u32 = 256;
/// Pieces of one TXID at which they are folded into one.
const MANY_PIECES: u32 = 24;
/// How long a standby leaves a spool that is gone to the process that ships.
const HEAD_START: Duration = Duration::from_secs(3);
const SPOOL_GONE: &str = "the spool directory is gone";
/// How long a standby leaves commits to the process that ships.
const HELP: Duration = Duration::from_secs(1);
/// How long unknown salts may stay unexplained: the process that restarted the WAL says so at its commit.
const ASTRAY: Duration = Duration::from_millis(700);

/// The thread's handle.
#[derive(Default)]
pub(super) struct Sealer {
    to: Mutex<Option<(u32, Sender<()>)>>,
    awake: AtomicBool,
    /// Why the thread could not be started.
    refused: Mutex<Option<String>>,
    /// How many databases were watched at the last round.
    crowd: AtomicUsize,
}

impl Sealer {
    /// Makes it look soon. Cheap while it is awake.
    pub(super) fn wake(&self) {
        if !self.awake.load(Ordering::Acquire) && !self.awake.swap(true, Ordering::AcqRel) {
            self.send();
        }
    }

    /// Makes it look at once.
    pub(super) fn hurry(&self) {
        self.awake.store(true, Ordering::Release);
        self.send();
    }

    fn send(&self) {
        let mut to = lock(&self.to);
        if let Some((pid, tx)) = to.as_ref()
            && *pid == std::process::id()
        {
            // (Full: it will look anyway. Disconnected: there is no such thread any more.)
            if !matches!(tx.try_send(()), Err(TrySendError::Disconnected(()))) {
                return;
            }
        }
        let (tx, rx) = crossbeam_channel::bounded(1);
        let _ = tx.try_send(());
        match thread::spawn("walrust-seal", 512 << 10, move || guarded(&rx)) {
            Ok(()) => {
                *to = Some((std::process::id(), tx));
                *lock(&self.refused) = None;
            }
            Err(e) => {
                *to = None;
                self.awake.store(false, Ordering::Release);
                log::error!("walrust: cannot start the sealer thread: {e}");
                let why = format!(
                    "nothing is captured: the thread walrust-seal cannot be started: {e}; tried again"
                );
                *lock(&self.refused) = Some(why);
            }
        }
    }

    /// Why there is no thread, if one was wanted and could not be started. Tries again.
    pub(super) fn refused(&self) -> Option<String> {
        if lock(&self.refused).is_some() {
            self.hurry();
        }
        lock(&self.refused).clone()
    }
}

/// [`run`], which is never over: what panics in it outside of the look at one database is logged.
fn guarded(rx: &Receiver<()>) {
    while let Err(said) = panics::caught(|| run(rx)) {
        log::error!("walrust: internal error in the sealer: {said}");
        clock::sleep(LOOK);
    }
}

fn run(rx: &Receiver<()>) {
    let mut idle = 0;
    loop {
        let mut news = false;
        let mut soonest = LOOK;
        let all = engine().watched();
        engine().sealer.crowd.store(all.len(), Ordering::Relaxed);
        for w in all {
            let (did, next) = look_at(&w);
            news |= did;
            soonest = soonest.min(next);
        }
        idle = if news { 0 } else { idle + 1 };
        if idle < PATIENCE {
            let _ = rx.recv_timeout(LINGER);
            continue;
        }
        engine().sealer.awake.store(false, Ordering::Release);
        // A commit between the last look and going to sleep has set its flag but did not send.
        if engine().watched().iter().any(|w| w.role() == Role::Shipper && has_work(w)) {
            engine().sealer.awake.store(true, Ordering::Release);
            let _ = rx.recv_timeout(LINGER);
            continue;
        }
        let called = rx.recv_timeout(soonest.max(LINGER)).is_ok();
        engine().sealer.awake.store(true, Ordering::Release);
        // Nobody called: one look will do.
        idle = if called { 0 } else { PATIENCE - 1 };
    }
}

/// [`step`], after which the database is not replicated any more if it panicked (I-SES-2).
pub(super) fn look_at(w: &Arc<Watched>) -> (bool, Duration) {
    panics::caught(|| step(w)).unwrap_or_else(|said| {
        w.panicked(&said);
        (false, LOOK)
    })
}

/// One look at one database. Returns whether there was news, and when to look again at the latest.
fn step(w: &Arc<Watched>) -> (bool, Duration) {
    let now = clock::uptime();
    let last = Duration::from_millis(w.looked.load(Ordering::Relaxed));
    let is_closed = w.entry.is_closed();
    let every = if is_closed {
        rest(w.vain.load(Ordering::Relaxed), engine().sealer.crowd.load(Ordering::Relaxed))
    } else {
        LOOK
    };
    let is_due = now.saturating_sub(last) >= every;
    if is_closed && !is_due && !is_called(w) {
        return (false, LOOK);
    }
    let vain = if is_closed && !is_called(w) { w.vain.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
    w.vain.store(vain, Ordering::Relaxed);
    let full_look = w.look_fully.swap(false, Ordering::AcqRel) || is_due;
    if full_look {
        w.looked.store(now.as_millis() as u64, Ordering::Relaxed);
    }
    if w.role() == Role::Joining {
        // A thread finds out whose replica it is; what the app commits is sealed when a reset wants that.
        super::start::join(w);
        if full_look {
            w.note_waiting();
        }
        return (false, LOOK);
    }
    if w.role() == Role::Standby {
        if full_look && !lost_spool(w) {
            super::start::try_take_over(w);
            if w.role() == Role::Standby {
                w.note_waiting();
                help_out(w);
            }
        }
        return (false, LOOK);
    }
    if full_look {
        if lost_spool(w) {
            return (false, LOOK);
        }
        super::care::schedule(w);
        // Other processes move it on, too, also while this one has the database closed.
        w.tracker.refresh();
    }
    let dirty = w.dirty.swap(false, Ordering::AcqRel);
    let hurried = w.hurried.swap(false, Ordering::AcqRel);
    match w.tracker.sync_state() {
        Sync::Idle | Sync::Resyncing => (false, LOOK),
        // Nobody else can read it; what is sealed leaves meanwhile.
        Sync::Lost(_) if w.entry.is_exclusive() => {
            w.link.work.notify_one();
            (false, LOOK)
        }
        Sync::Lost(_) if !w.entry.can_read() && w.spool.pending().is_ok_and(|p| p.is_empty()) => {
            super::start::hand_over(w);
            (false, LOOK)
        }
        Sync::Lost(why) => {
            // After an overflow the history that the spool holds leaves first.
            if w.full.load(Ordering::Acquire) && w.spool.pending().is_ok_and(|p| !p.is_empty()) {
                w.link.work.notify_one();
            } else {
                w.full.store(false, Ordering::Release);
                resync::start(w, why);
            }
            (false, LOOK)
        }
        Sync::Kept => {
            if !(dirty || hurried || full_look || has_work(w)) {
                return (false, next_look(w));
            }
            // Another watch of this file, which has ended, was the last to look.
            if full_look && w.tracker.position().is_some_and(|p| p.wal.is_none()) {
                w.tracker.lose("the place in the WAL was given up");
                return (true, LINGER);
            }
            if full_look && let Some(why) = changed_outside(w) {
                w.tracker.lose(why);
                w.dirty.store(true, Ordering::Release);
                return (true, LINGER);
            }
            let did = seal_step(w, (dirty, hurried), full_look);
            if full_look {
                resync::schedule(w);
                w.caught_up();
            }
            (did || dirty || hurried, next_look(w))
        }
    }
}

/// How long a closed database is left alone after so many looks in vain, one of so many that are watched.
fn rest(vain: u32, watched: usize) -> Duration {
    let longest = vain / VAIN >= 4;
    let turn = if longest { EACH * u32::try_from(watched).unwrap_or(u32::MAX) } else { Duration::ZERO };
    (LOOK * (1 << (vain / VAIN).min(4))).max(turn)
}

/// Whether somebody said that there is something to do.
fn is_called(w: &Watched) -> bool {
    [&w.look_fully, &w.dirty, &w.hurried, &w.waits].iter().any(|said| said.load(Ordering::Acquire))
}

fn has_work(w: &Watched) -> bool {
    let due = || w.waits.load(Ordering::Relaxed) && w.link.slot_open(w.settings.interval);
    w.dirty.load(Ordering::Acquire) || w.hurried.load(Ordering::Acquire) || due()
}

/// When there is something to do again, if nobody calls before: the shipper does when an upload ends.
fn next_look(w: &Watched) -> Duration {
    match w.link.slot_in(w.settings.interval) {
        t if t.is_zero() || !w.waits.load(Ordering::Relaxed) => LOOK,
        t => t.clamp(LINGER, LOOK),
    }
}

/// The spool was deleted, or another process found it deleted and made a new one: what this one has open is no longer in use.
fn lost_spool(w: &Arc<Watched>) -> bool {
    if w.spool.is_replaced() {
        super::start::restart(w, "the spool directory was replaced by another one");
        return true;
    }
    if !w.spool.is_gone() {
        w.gone_since.store(0, Ordering::Relaxed);
        return false;
    }
    let now = clock::uptime().as_millis() as u64;
    let since = match w.gone_since.load(Ordering::Relaxed) {
        0 => now,
        t => t,
    };
    w.gone_since.store(since, Ordering::Relaxed);
    // What is in the replica is the shipper's own: it goes first.
    let first = w.role() == Role::Shipper || w.reclaims.load(Ordering::Acquire);
    if first || now.saturating_sub(since) >= HEAD_START.as_millis() as u64 {
        super::start::restart(w, SPOOL_GONE);
    }
    true
}

/// The process that ships may have no connection open, and so sees no commit: what it has not cut in good time is cut
/// here, and found by it in the spool.
fn help_out(w: &Arc<Watched>) {
    if w.tracker.sync_state() != Sync::Kept || !w.spool.pending().is_ok_and(|p| p.is_empty()) {
        return;
    }
    w.tracker.refresh();
    let header = w.header().filter(|h| h.max_frame > 0 && !w.tracker.is_sealed(h));
    let pieces = w.tracker.position().is_some_and(|p| p.pieces > 0);
    let now = clock::uptime().as_millis() as u64;
    let since = w.astray_since.load(Ordering::Relaxed);
    if header.is_none() && !pieces {
        w.astray_since.store(0, Ordering::Relaxed);
        w.caught_up();
    } else if since == 0 {
        w.astray_since.store(now.max(1), Ordering::Relaxed);
    } else if now.saturating_sub(since) >= HELP.max(w.settings.interval).as_millis() as u64 {
        w.astray_since.store(0, Ordering::Relaxed);
        // A failure shows in the status of the process that ships, whose spool it is, too.
        if header.is_none_or(|h| w.tracker.seal(&h, Packing::Lz4, clock::now()).is_ok())
            && let Ok(Some(p)) = w.tracker.cut()
        {
            w.dirty.store(false, Ordering::Release);
            lock(&w.waiting).cut(p.txid);
        }
    }
}

/// Seals and cuts what is due; whether anything moved.
fn seal_step(w: &Arc<Watched>, (dirty, hurried): (bool, bool), full_look: bool) -> bool {
    let header = if full_look { w.header() } else { w.entry.header() };
    let mut unsealed = 0;
    w.waits.store(false, Ordering::Relaxed);
    if let Some(h) = &header {
        if w.tracker.look(*h) == Noticed::Lost {
            return astray(
                w,
                &format!(
                    "the WAL was restarted by something that had not loaded walrust (now salt {}, frame {})",
                    h.salt, h.max_frame
                ),
            );
        }
        w.astray_since.store(0, Ordering::Relaxed);
        unsealed = w.tracker.unsealed_frames(h);
        if unsealed > 0 {
            lock(&w.waiting).commit(clock::now());
        }
    }
    if header.is_none() && dirty && w.tracker.is_changed_since_close() {
        return astray(w, "the database file was changed by something that had not loaded walrust");
    }
    let pieces = w.tracker.position().map_or(0, |p| p.pieces);
    let has_pending = match w.spool.pending() {
        Ok(p) => !p.is_empty(),
        Err(e) if e.is_missing() => {
            super::start::restart(w, SPOOL_GONE);
            return false;
        }
        Err(e) => {
            w.link.update(|s| s.last_error = Some((e.kind(), e.to_string())));
            true
        }
    };
    if has_pending {
        // (Another process is at work.)
        w.vain.store(0, Ordering::Relaxed);
        w.link.work.notify_one();
    }
    let mut is_sealed = unsealed == 0;
    let cut = !has_pending && w.link.slot_open(w.settings.interval) && (unsealed > 0 || pieces > 0);
    if let Some(h) = &header
        && unsealed > 0
        && (cut || hurried || unsealed >= PRESSURE || w.has_spool_failed())
    {
        if !cut && w.spool.backlog_bytes() >= w.settings.spool_limit.0 {
            w.give_up_backlog();
            return true;
        }
        let packing = if cut && pieces == 0 { Packing::Lz4 } else { Packing::Literal };
        if let Err(e) = w.tracker.seal(h, packing, clock::now()) {
            return seal_failed(w, e);
        }
        is_sealed = true;
    }
    if cut {
        match w.tracker.cut() {
            Ok(Some(p)) => {
                lock(&w.waiting).cut(p.txid);
                w.link.work.notify_one();
            }
            Ok(None) => {}
            Err(e) => return seal_failed(w, SealError::Failed(e)),
        }
    } else if pieces >= MANY_PIECES
        && let Err(e) = w.tracker.squash()
    {
        return seal_failed(w, SealError::Failed(e));
    } else if unsealed > 0 || pieces > 0 {
        // For the slot.
        w.waits.store(true, Ordering::Relaxed);
    }
    if is_sealed {
        w.spool_works();
    }
    cut
}

/// Changes of the file that no WAL tells: another file in its place, or its bytes in it, writes in rollback mode.
pub(super) fn changed_outside(w: &Watched) -> Option<String> {
    if w.entry.note_file() {
        return Some("the database file was replaced by another one".to_string());
    }
    if w.is_written_past_wal() {
        return Some("something wrote to the database file past its WAL".to_string());
    }
    let Some(Handoff::Closed(stamp)) = w.tracker.position().map(|p| p.handoff) else { return None };
    // Nobody has it open through us, or nobody has written to its WAL since: then the file stands still.
    let still = w.entry.header().is_none_or(|h| h.max_frame == 0);
    let now = FileStamp::of(w.path()).ok()?;
    (still && now != stamp && !w.tracker.wal_path().exists()).then(|| {
        "the database was changed outside of WAL mode, or by a program that has not loaded walrust"
            .to_string()
    })
}

fn astray(w: &Arc<Watched>, what: &str) -> bool {
    let now = clock::uptime().as_millis() as u64;
    let since = w.astray_since.load(Ordering::Relaxed);
    if since == 0 || w.spool.is_ahead_alive().unwrap_or(false) {
        // (Under sync durability a COMMIT may take long to come to its end, and say so.)
        w.astray_since.store(now.max(1), Ordering::Relaxed);
    } else if now.saturating_sub(since) >= ASTRAY.as_millis() as u64 {
        w.astray_since.store(0, Ordering::Relaxed);
        w.tracker.lose(what);
    }
    w.dirty.store(true, Ordering::Release);
    true
}

fn seal_failed(w: &Arc<Watched>, e: SealError) -> bool {
    match e {
        SealError::Again => {
            w.dirty.store(true, Ordering::Release);
            return true;
        }
        SealError::OutOfSync(_) => {
            // look() decides, after a moment's grace.
            w.dirty.store(true, Ordering::Release);
        }
        SealError::Failed(_) if w.spool.is_gone() => {
            super::start::restart(w, SPOOL_GONE);
        }
        SealError::Failed(e) => {
            log::warn!("walrust: {}: cannot seal: {e}", w.path().display());
            w.dirty.store(true, Ordering::Release);
            w.spool_fails(&e);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_database_is_looked_at_ever_more_rarely() {
        let table = [(0, 250), (7, 250), (8, 500), (16, 1000), (31, 2000), (32, 4000), (u32::MAX, 4000)];
        for (vain, ms) in table {
            assert_eq!(rest(vain, 1), Duration::from_millis(ms), "after {vain} looks");
        }
        for (watched, s) in [(0, 4), (160, 4), (1_000, 25), (5_000, 125)] {
            assert_eq!(rest(u32::MAX, watched), Duration::from_secs(s), "one of {watched}");
        }
        assert_eq!(rest(31, 5_000), Duration::from_secs(2), "just closed");
    }
}
