//! The sealer: one plain thread that looks at each watched database, has [`super::phase`] decide, and does what was decided. It is the
//! one place where a database goes from one phase to another, but for the joining thread's own success or failure.
//!
//! A woken sealer lingers: it looks every couple of milliseconds at those databases that have called ([`super::agenda`]) while commits keep
//! coming ([`super::bell`]). Besides, four times a second, it looks at a watched database for what no hook tells: commits of processes that have not loaded the extension, a lock
//! that became free, a schedule that is due. Of many, those that are closed or idle are looked at more rarely, and glanced at meanwhile.

use super::agenda::{Agenda, Number};
use super::bell::Note;
use super::changed::CHANGED;
use super::close::{LEASE_KEPT, SYNC_AFTER};
use super::mirrors::look_at_mirrors;
use super::phase::{
    self, LOOK, Part, Phase, PlaceSeen, SPOOL_GONE, Seen, SpoolSeen, Step, Then, Unsealed, Way, decide,
};
use super::registry::Engine;
use super::trouble::Trouble;
use super::watched::{Ask, Astray, Watched};
use super::{answer, join, renew, reread};
use crate::base::{clock, lock, panics};
use crate::capture::{Continuity, Noticed, SealError};
use crate::ltx::Packing;
use crate::spool::wait_at_most;
use crossbeam_channel::Receiver;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Between two looks while commits keep coming. Long enough that the app does not feel them, short against
/// the time a checkpoint gives (see `capture`).
const LINGER: Duration = Duration::from_millis(2);
/// Looks without news before the sealer goes to sleep.
const LOOKS_BEFORE_SLEEP: u32 = 20;
/// How long one database's seal lock is waited for, while the others wait for this thread.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// How long unknown salts may stay unexplained: the process that restarted the WAL says so at its commit.
const ASTRAY_PATIENCE: Duration = Duration::from_millis(700);

/// The thread's work, which is never over: what panics in it outside of the look at one database is logged.
pub(super) fn run(engine: &'static Engine, rx: &Receiver<()>) {
    wait_at_most(LOCK_PATIENCE);
    while let Err(said) = panics::caught(|| rounds(engine, rx)) {
        log::error!("walrust: internal error in the sealer: {said}");
        clock::sleep(LOOK);
    }
}

fn rounds(engine: &'static Engine, rx: &Receiver<()>) {
    let (bell, calls) = (&engine.services.bell, &engine.services.calls);
    let mut agenda = Agenda::new();
    // (After a panic the agenda is made anew.)
    engine.watched().iter().for_each(|w| agenda.put(w.number, Arc::downgrade(w), Duration::ZERO));
    let mut idle = 0;
    loop {
        engine.listen_again();
        engine.beat();
        hear(engine, &mut agenda, &calls.take());
        let mut news = false;
        for (number, w) in agenda.due(clock::uptime()) {
            let Some(w) = w.upgrade().filter(|w| w.is_listed()) else {
                agenda.remove(number);
                continue;
            };
            let (did, next) = look_at(engine, &w, agenda.len());
            news |= did;
            agenda.put(number, Arc::downgrade(&w), phase::next_visit(clock::uptime(), next));
        }
        idle = if news { 0 } else { idle + 1 };
        if idle < LOOKS_BEFORE_SLEEP {
            let _ = rx.recv_timeout(LINGER);
            continue;
        }
        bell.set_awake(false);
        // Who called between the last look and going to sleep did not ring.
        if !calls.is_empty() {
            bell.set_awake(true);
            let _ = rx.recv_timeout(LINGER);
            continue;
        }
        let soonest = agenda.soonest().map_or(LOOK, |at| at.saturating_sub(clock::uptime()));
        let called = rx.recv_timeout(soonest.clamp(LINGER, LOOK)).is_ok();
        bell.set_awake(true);
        // Nobody called: one look will do.
        idle = if called { 0 } else { LOOKS_BEFORE_SLEEP - 1 };
    }
}

/// Who called is due; who is new comes onto the agenda.
fn hear(engine: &Engine, agenda: &mut Agenda<Weak<Watched>>, called: &[Number]) {
    for number in called.iter().filter(|number| !agenda.has(**number)).copied().collect::<Vec<_>>() {
        if let Some(w) = engine.numbered(number) {
            agenda.put(number, Arc::downgrade(&w), Duration::ZERO);
        }
    }
    agenda.hear(called, clock::uptime());
}

impl Engine {
    /// One look of the sealer at every watched database. Whether there was news.
    #[cfg(feature = "sim")]
    pub fn look(&'static self) -> bool {
        let all = self.watched();
        drop(self.services.calls.take());
        all.iter().fold(false, |news, w| look_at(self, w, all.len()).0 | news)
    }
}

/// One look at one database of so many, after which it is not replicated any more if that panicked (I-SES-2). Returns whether there was
/// news, and when to look again at the latest.
fn look_at(engine: &'static Engine, w: &Arc<Watched>, watched: usize) -> (bool, Duration) {
    w.is_heard();
    let (did, next) = panics::caught(|| look(engine, w, watched)).unwrap_or_else(|said| {
        w.panicked(&said);
        (false, LOOK)
    });
    let rest = match next {
        _ if did || (w.role() == phase::Role::Shipper && has_news(w)) => LINGER,
        LOOK => rest_of(w, watched),
        soon => soon.max(LINGER),
    };
    (did, rest)
}

/// Until it is worth the while to ask again whether a look is due, if nobody calls.
fn rest_of(w: &Watched, watched: usize) -> Duration {
    let now = clock::uptime();
    let vain = lock(&w.rounds).vain;
    if !w.handles.is_closed() {
        let is_glanced_at = phase::rest_of_open(vain, watched) > LOOK;
        return if is_glanced_at { phase::glance_after(watched) } else { LOOK };
    }
    if w.unsynced.elapsed(now).is_some() {
        return LOOK;
    }
    let lease_for = w.closed.elapsed(now).map(|since| LEASE_KEPT.saturating_sub(since));
    let rest = phase::rest_of_closed(vain, watched);
    match lease_for {
        None => LOOK,
        Some(Duration::ZERO) => rest,
        Some(left) => rest.min(left.max(LINGER)),
    }
}

fn look(engine: &'static Engine, w: &Arc<Watched>, watched: usize) -> (bool, Duration) {
    w.sync_closed(SYNC_AFTER);
    w.give_back_if_closed();
    let Some(is_due) = is_due(w, watched) else { return (false, LOOK) };
    let asks = std::mem::take(&mut *lock(&w.asks));
    for ask in asks.into_iter().filter(|_| !w.link.is_stopped()) {
        match ask {
            Ask::Restart(why) => renew::restart(engine, w, why),
            Ask::ClearQueue(why) => renew::clear_queue(w, why),
            Ask::Retain => engine.care.retain(w),
            Ask::Care => engine.care.schedule(w),
            Ask::Snapshot => reread::start_snapshot(w, reread::Unless::Never),
        }
    }
    let phase = phase_of(w);
    if is_due && matches!(phase, Phase::Following | Phase::Rereading(_) | Phase::Blocked(_)) {
        engine.care.schedule(w);
        engine.drills.schedule_drill(w);
        if w.role() == phase::Role::Shipper {
            answer::answer_all(engine, w);
        }
        if w.part() == Part::Shipping {
            look_at_mirrors(w);
        }
        // Other processes move it on, too, also while this one has the database closed.
        w.tracker.refresh();
    }
    let phase = if is_due { phase_of(w) } else { phase };
    let seen = see(w, &phase, is_due);
    let part = w.part();
    let step = decide(phase, &part, seen);
    act(engine, w, step, is_due)
}

/// Whether it is time to look at what no hook tells. `None`: it is not time for any look.
fn is_due(w: &Watched, watched: usize) -> Option<bool> {
    let now = clock::uptime();
    let is_closed = w.handles.is_closed();
    let is_called = w.news.is_any();
    let mut rounds = lock(&w.rounds);
    let every = match is_closed {
        true => phase::rest_of_closed(rounds.vain, watched),
        false => phase::rest_of_open(rounds.vain, watched),
    };
    let mut is_due = now.saturating_sub(rounds.looked_at) >= every;
    if is_closed && !is_due && !is_called {
        return None;
    }
    if !is_due && every > LOOK && now.saturating_sub(rounds.glanced_at) >= phase::glance_after(watched) {
        rounds.glanced_at = now;
        is_due = w.handles.header() != rounds.header;
    }
    let looks_fully = w.news.take(Note::LookFully) || is_due;
    if is_closed {
        rounds.vain = if is_called { 0 } else { rounds.vain.saturating_add(1) };
    } else if is_called {
        rounds.vain = 0;
    } else if looks_fully {
        let header = w.handles.header();
        let is_quiet = header == rounds.header && w.is_at_rest();
        rounds.vain = if is_quiet { rounds.vain.saturating_add(1) } else { 0 };
        rounds.header = header;
    }
    if looks_fully {
        rounds.looked_at = now;
    }
    Some(looks_fully)
}

fn phase_of(w: &Watched) -> Phase {
    phase::phase(&w.part(), w.link.is_stopped(), w.tracker.sync_state(), || {
        phase::obstacle(Way {
            is_exclusive: w.handles.is_exclusive(),
            can_read: w.handles.can_read(),
            has_backlog: w.spool.pending().is_ok_and(|p| !p.is_empty()),
            is_full: w.troubles.get() == Trouble::SpoolFull,
        })
    })
}

/// What the decision needs to know.
fn see(w: &Watched, phase: &Phase, is_due: bool) -> Seen {
    let now = clock::uptime();
    let failed_for = w.failed.elapsed(now).unwrap_or_default();
    let has_news = has_news(w);
    if !is_due || matches!(phase, Phase::Joining | Phase::Failed | Phase::Ended) {
        return Seen { is_due, failed_for, has_news, ..Seen::default() };
    }
    let spool = if w.spool.is_replaced() {
        SpoolSeen::Replaced
    } else if w.spool.is_gone() {
        SpoolSeen::Gone(w.spool_gone.goes_on(now))
    } else {
        w.spool_gone.ends();
        SpoolSeen::There
    };
    let place = match phase {
        Phase::Following if spool == SpoolSeen::There => match w.tracker.position() {
            Some(p) if p.wal.is_given_up() => PlaceSeen::GivenUp,
            _ => w.changed_outside().map_or(PlaceSeen::GoesOn, PlaceSeen::Changed),
        },
        _ => PlaceSeen::GoesOn,
    };
    Seen { is_due, spool, place, failed_for, has_news }
}

/// Does what was decided.
fn act(engine: &'static Engine, w: &Arc<Watched>, step: Step, is_due: bool) -> (bool, Duration) {
    match step {
        Step::Rest => return (false, next_look(w)),
        Step::Join => {
            join::join(engine, w);
            if is_due {
                w.note_waiting();
            }
        }
        Step::StandBy => {
            if w.take_over() {
                join::join(engine, w);
            } else {
                w.note_waiting();
                help_out(w);
            }
        }
        Step::Restart(why) => renew::restart(engine, w, why),
        Step::Recover => renew::recover(engine, w),
        Step::Ship => w.ring(),
        Step::HandOver => renew::hand_over(engine, w),
        Step::Reread(why) => {
            w.troubles.spool_has_room();
            reread::start(w, why);
        }
        Step::Lose(why) => {
            w.tracker.lose(why);
            w.look_again();
            return (true, LINGER);
        }
        Step::Seal => return seal(engine, w, is_due),
    }
    (false, LOOK)
}

/// Whether a hook told something, or the slot is open for what waits.
fn has_news(w: &Watched) -> bool {
    let due = || w.news.has(Note::WaitsForSlot) && w.link.slot_open(w.settings().interval);
    w.news.has(Note::Commit) || w.news.has(Note::Hurry) || due()
}

/// When there is something to do again, if nobody calls before: the shipper does when an upload ends.
fn next_look(w: &Watched) -> Duration {
    match w.link.slot_in(w.settings().interval) {
        t if t.is_zero() || !w.news.has(Note::WaitsForSlot) => LOOK,
        t => t.clamp(LINGER, LOOK),
    }
}

/// The process that ships may have no connection open, and so sees no commit: what it has not cut in good time is cut
/// here, and found by it in the spool.
fn help_out(w: &Arc<Watched>) {
    if w.tracker.sync_state() != Continuity::Kept || !w.spool.pending().is_ok_and(|p| p.is_empty()) {
        return;
    }
    w.tracker.refresh();
    let header = w.header().filter(|h| h.max_frame > 0 && !w.tracker.is_sealed(h));
    let pieces = w.tracker.position().is_some_and(|p| p.pieces > 0);
    if header.is_none() && !pieces {
        w.behind.ends();
        w.caught_up();
        return;
    }
    let waited = w.behind.goes_on(clock::uptime());
    if phase::helps_out(waited, w.settings().interval) {
        w.behind.ends();
        // A failure shows in the status of the process that ships, whose spool it is, too.
        if header.is_none_or(|h| w.tracker.seal(&h, Packing::Lz4, clock::now()).is_ok())
            && let Ok(Some(p)) = w.tracker.cut()
        {
            w.news.take(Note::Commit);
            lock(&w.waiting).cut(p.txid);
        }
    }
}

/// Seals and cuts what is due, and starts what is due by the clock.
fn seal(engine: &'static Engine, w: &Arc<Watched>, is_due: bool) -> (bool, Duration) {
    let dirty = w.news.take(Note::Commit);
    let hurried = w.news.take(Note::Hurry);
    let did = seal_step(engine, w, (dirty, hurried), is_due);
    if is_due {
        reread::schedule(w);
        w.caught_up();
    }
    (did || dirty || hurried, next_look(w))
}

/// Whether anything moved.
fn seal_step(
    engine: &'static Engine,
    w: &Arc<Watched>,
    (dirty, hurried): (bool, bool),
    is_due: bool,
) -> bool {
    let header = if is_due { w.header() } else { w.handles.header() };
    w.news.take(Note::WaitsForSlot);
    let mut frames = 0;
    if let Some(h) = &header {
        if w.tracker.look(*h) == Noticed::Lost {
            return astray(
                w,
                Astray::Wal(h.salt),
                &format!(
                    "the WAL was restarted by something that had not loaded walrust (now salt {}, frame {})",
                    h.salt, h.max_frame
                ),
            );
        }
        w.astray.ends();
        frames = w.tracker.unsealed_frames(h);
        w.note_look(frames > 0);
    }
    if header.is_none() && dirty {
        match w.changed_since_close() {
            Some(file) => return astray(w, Astray::File(file), CHANGED),
            None => w.astray.ends(),
        }
    }
    if header.is_none() && is_due {
        // (Nobody here reads it: what others have written into the WAL since may be a commit, or not yet.)
        w.note_look(w.unsealed_bytes() > 0);
    }
    let has_pending = match w.spool.pending() {
        Ok(p) => !p.is_empty(),
        Err(e) if e.is_missing() => {
            renew::restart(engine, w, SPOOL_GONE);
            return false;
        }
        Err(e) => {
            w.link.update(|s| s.last_error = Some((e.kind(), e.to_string())));
            true
        }
    };
    if has_pending {
        // (Another process is at work.)
        lock(&w.rounds).vain = 0;
        w.ring();
    }
    // (A replica that is away, or slow, holds up no mirror.)
    let interval = w.settings().interval;
    let has_hungry = w.mirrors.iter().any(|m| m.is_hungry(interval));
    let plan = phase::plan(Unsealed {
        frames,
        pieces: w.tracker.position().map_or(0, |p| p.pieces),
        has_pending: has_pending && !has_hungry,
        is_slot_open: w.link.slot_open(w.settings().interval) || has_hungry,
        is_hurried: hurried,
        has_failed: w.troubles.has_spool_failed(),
    });
    if plan.needs_room() && w.spool.backlog_bytes() >= w.settings().spool_limit.0 {
        w.give_up_backlog();
        return true;
    }
    match carry_out(w, header, plan) {
        Ok(()) => {
            if frames == 0 || plan.seal.is_some() {
                w.troubles.spool_works();
            }
            plan.then == Then::Cut
        }
        Err(e) => seal_failed(engine, w, e),
    }
}

fn carry_out(
    w: &Watched,
    header: Option<crate::wal::IndexHeader>,
    plan: phase::SealPlan,
) -> Result<(), SealError> {
    if let (Some(h), Some(packing)) = (&header, plan.seal) {
        w.tracker.seal(h, packing, clock::now())?;
    }
    match plan.then {
        Then::Cut => {
            if let Some(p) = w.tracker.cut()? {
                lock(&w.waiting).cut(p.txid);
                w.ring();
            }
        }
        Then::Fold => {
            w.tracker.squash()?;
            w.news.leave(Note::WaitsForSlot);
        }
        Then::Wait => drop(w.news.leave(Note::WaitsForSlot)),
        Then::Nothing => {}
    }
    Ok(())
}

fn astray(w: &Watched, at: Astray, what: &str) -> bool {
    let now = clock::uptime();
    if w.spool.is_ahead_alive().unwrap_or(false) {
        // (Under sync durability a COMMIT may take long to come to its end, and say so.)
        w.astray.ends();
    } else if w.astray.goes_on(at, now) >= ASTRAY_PATIENCE {
        w.astray.ends();
        w.tracker.lose(what);
    }
    w.look_again();
    true
}

fn seal_failed(engine: &'static Engine, w: &Arc<Watched>, e: SealError) -> bool {
    match e {
        SealError::Again => {
            w.look_again();
            return true;
        }
        // The next look decides, after a moment's grace.
        SealError::OutOfSync(_) => w.look_again(),
        SealError::Failed(_) if w.spool.is_gone() => renew::restart(engine, w, SPOOL_GONE),
        SealError::Failed(e) => {
            // (Where another has the spool's lock at the moment, the next look comes after that; what lasts is told.)
            let level = if e.is_retry() { log::Level::Info } else { log::Level::Warn };
            log::log!(level, "walrust: {}: cannot seal: {e}", w.path().display());
            w.look_again();
            w.spool_fails(&e);
        }
    }
    false
}
