//! Reading a whole database, to find the WAL's place again, or for a snapshot: on threads of their own, but for
//! [`while_held`].

use super::access::{Access, Aside, Held, is_in_rollback_mode};
use super::identity::{Expected, Reason};
use super::job::Job;
use super::phase::Role;
use super::trouble::Trouble;
use super::watched::{Ask, Watched};
use super::work::Work;
use crate::base::event::EventKind;
use crate::base::{Error, Kind, Lineage, Result, TxId, clock, lock};
use crate::capture::resync::{View, anchor};
use crate::capture::{Attested, Continuity, SealError, is_at};
use crate::ltx::Packing;
use crate::replica::due::{self, Due};
use crate::spool::{Position, Queued};
use crate::sqlite::despite_forks;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// After a failure, how long until the next try may begin: what failed rarely passes in milliseconds.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(300);
/// How long a reading waits for the database to be open and its wal-index at rest.
const PIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a snapshot waits for a moment at which the database is exactly a TXID.
const TXID_PATIENCE: Duration = Duration::from_secs(30);
/// How often the database is read anew for one snapshot: others may write between the two readings.
const REREADS: u32 = 3;
/// How long a connection that has the database for itself waits for a thread of ours to let go of it.
const HELD_PATIENCE: Duration = Duration::from_secs(1);

/// Starts a resync thread unless one is at work.
pub(super) fn start(w: &Arc<Watched>, why: String) {
    if w.role() == Role::Shipper
        && let Some(ticket) = Work::take(w, Job::Reading)
    {
        let (expected, reason) = (newest_here(w), reason(w, why));
        spawn(ticket, "walrust-resync", move |w| run(w, expected, reason));
    }
}

/// Runs a resync on a thread of its own.
pub(super) fn start_with(ticket: Work, expected: Expected, reason: Reason) {
    spawn(ticket, "walrust-resync", move |w| run(w, expected, reason));
}

fn spawn(ticket: Work, name: &str, work: impl FnOnce(&Arc<Watched>) -> Result<()> + Send + 'static) {
    let w = ticket.of().clone();
    let started = ticket.start(name, move |ticket| {
        let mine = ticket.of();
        let done = work(mine);
        ticket.becomes(Job::Done);
        match done {
            Ok(()) => {
                mine.note_journal_mode(false);
                *lock(&mine.unread) = None;
            }
            Err(e) => {
                mine.note_journal_mode(e.is_missing() && is_in_rollback_mode(&mine.handles));
                // (Nobody has read the database since it was opened, or somebody closes it: when it is read, it is tried again.)
                let unread = e.is_missing() && !mine.spool.is_gone() && !mine.spool.is_replaced();
                let is_no_fault = unread || e.is_retry() && mine.handles.is_barred();
                let level = if is_no_fault { log::Level::Info } else { log::Level::Warn };
                log::log!(level, "walrust: {}: {e}", mine.path().display());
                *lock(&mine.unread) = Some(e.to_string());
                if mine.tracker.sync_state() == Continuity::Resyncing {
                    mine.tracker.lose(e.to_string());
                }
                // Not at once again: what failed rarely passes in milliseconds. But whoever told us to let go waits.
                if !mine.handles.is_barred() {
                    clock::sleep(REST_AFTER_FAILURE);
                }
            }
        }
    });
    if !started && w.tracker.sync_state() == Continuity::Resyncing {
        // The sealer tries again.
        w.tracker.lose("no thread could be started to read the database");
    }
}

/// The newest TXID that this machine knows of.
fn newest_known(w: &Watched) -> TxId {
    let cut = w.tracker.position().map(|p| p.txid).unwrap_or_default();
    let shipped = w.link.status().replicated;
    let last =
        |queue: Result<Vec<Queued>>| queue.ok().and_then(|q| q.last().map(|q| q.txid)).unwrap_or_default();
    let ventured = w.spool.ventured().ok().flatten().map(|v| v.txid).unwrap_or_default();
    let mirrored = w.spool.newest_in_mirrors().unwrap_or_default();
    cut.max(shipped).max(last(w.spool.pending())).max(last(w.spool.snapshots())).max(ventured).max(mirrored)
}

/// Readings that forks interrupted, one after the other, after which the status says so.
const OFTEN: u32 = 5;

/// Bytes of the largest database, and WAL, that is read on an app's thread: less than a second's work.
pub(super) const LARGEST_HELD: u64 = 256 << 20;

/// Finds the place again. Content that equals the attested checksum proves that nothing was missed; anything
/// else begins a new lineage with a snapshot.
pub(super) fn run(w: &Arc<Watched>, expected: Expected, reason: Reason) -> Result<()> {
    if w.link.is_stopped() {
        return Ok(());
    }
    w.tracker.settle_ahead()?;
    w.handles.note_file();
    let (mut left, mut tries) = (None, 0);
    despite_forks(|| {
        tries += 1;
        if tries > OFTEN {
            let why = "the database cannot be read whole: the process forks again before that is done";
            *lock(&w.unread) = Some(why.to_string());
        }
        w.handles.reading_begins();
        w.tracker.begin_resync();
        if let Some(done) = run_aside(w, expected, &reason, &mut left) {
            return done;
        }
        let view = pinned(w, &Access::new(&w.handles))?;
        find_place(w, view, expected, &reason, &mut left)
    })
}

/// The same for a small database without a handle on it; `None` when that cannot be done, or something came between: then it
/// is read with one.
fn run_aside(
    w: &Arc<Watched>,
    expected: Expected,
    reason: &Reason,
    left: &mut Option<Option<Position>>,
) -> Option<Result<()>> {
    let aside = Aside::new(&w.handles)?;
    let view = View::open(&aside, w.tracker.wal_path()).ok()?;
    match find_place(w, view, expected, reason, left) {
        Err(_) if aside.still().is_err() => None,
        done => Some(done),
    }
}

/// The same where a connection has the database for itself, on its thread, which waits: nobody else can read it, so it is
/// done for databases up to [`LARGEST_HELD`] only. Whether it was; an error shows in the status.
pub(super) fn while_held(w: &Arc<Watched>, held: Held, why: &str) -> bool {
    let size = std::fs::metadata(w.path()).map_or(u64::MAX, |m| m.len());
    let is_full = w.troubles.get() == Trouble::SpoolFull;
    let history_first = is_full && w.spool.pending().is_ok_and(|p| !p.is_empty());
    if w.role() != Role::Shipper || w.is_over() || history_first || size.max(w.wal_bytes()) > LARGEST_HELD {
        return false;
    }
    // A thread that had begun has been told to let go.
    let Some(_ticket) = Work::take_within(w, Job::Reading, HELD_PATIENCE) else { return false };
    w.troubles.spool_has_room();
    let done = read_held(w, &held, newest_here(w), &Reason::Gap(why.to_string()));
    if let Err(e) = &done {
        log::warn!("walrust: {}: {e}", w.path().display());
        w.tracker.lose(e.to_string());
    }
    done.is_ok()
}

/// The last connection closes: nobody here can read it afterwards, so what is missing is read now, up to [`LARGEST_HELD`]. Of a database of
/// which nothing is known yet, here or of the replica, the first lineage is begun in the spool: if the replica turns out to be empty,
/// that leaves; if it is not, what it says goes before.
pub(super) fn at_close(w: &Arc<Watched>, held: Held) {
    let is_small = std::fs::metadata(w.path()).is_ok_and(|m| m.len() <= LARGEST_HELD);
    let is_whole = || w.tracker.sync_state() == Continuity::Kept;
    if w.role() == Role::Standby || w.is_over() || !is_small || is_whole() {
        return;
    }
    // (A thread that reads it has been told to let go.)
    let Some(_ticket) = Work::take_within(w, Job::Reading, HELD_PATIENCE) else { return };
    if w.troubles.get() == Trouble::SpoolFull && w.spool.pending().is_ok_and(|p| !p.is_empty()) {
        // The history that it holds leaves first.
        return;
    }
    w.troubles.spool_has_room();
    let nothing = Expected { txid: TxId::ZERO, attested: None };
    let done = match w.tracker.sync_state() {
        Continuity::Kept => return,
        Continuity::Idle if w.role() == Role::Joining && knows_nothing(w) => {
            read_held(w, &held, nothing, &Reason::First).and_then(|()| w.remember(None))
        }
        Continuity::Idle => return,
        Continuity::Resyncing if !has_begun(w) => read_held(w, &held, nothing, &Reason::First),
        Continuity::Resyncing => read_held(w, &held, newest_here(w), &Reason::Gap(CLOSED.to_string())),
        Continuity::Lost(why) => read_held(w, &held, newest_here(w), &reason(w, why.to_string())),
    };
    if let Err(e) = done {
        log::warn!("walrust: {}: {e}", w.path().display());
        match w.role() {
            Role::Joining => w.tracker.stop(),
            Role::Shipper | Role::Standby => w.tracker.lose(e.to_string()),
        }
    }
}

const CLOSED: &str = "the database was closed while it was being read";

fn newest_here(w: &Watched) -> Expected {
    Expected { txid: newest_known(w), attested: None }
}

/// A first reading that was interrupted is begun again, and nothing is missing.
fn reason(w: &Watched, why: String) -> Reason {
    if has_begun(w) { Reason::Gap(why) } else { Reason::First }
}

/// Whether there is a history that something could be missing of.
fn has_begun(w: &Watched) -> bool {
    w.link.status().replicated > TxId::ZERO || !matches!(w.spool.position(), Ok(None))
}

/// Whether neither the spool nor its records say anything of this database or its replica.
pub(super) fn knows_nothing(w: &Watched) -> bool {
    w.spool.shipped().is_ok_and(|s| s.is_none())
        && w.known().is_ok_and(|k| k.is_none())
        && w.spool.pending().is_ok_and(|p| p.is_empty())
}

fn read_held(w: &Arc<Watched>, held: &Held, expected: Expected, reason: &Reason) -> Result<()> {
    w.handles.note_number(held.file());
    w.tracker.begin_resync();
    let mut left = None;
    despite_forks(|| {
        let view = View::open(held, w.tracker.wal_path())?;
        find_place(w, view, expected, reason, &mut left)
    })
}

/// `left`: where the old lineage was left, found out at the first of several tries.
fn find_place(
    w: &Arc<Watched>,
    view: View,
    expected: Expected,
    reason: &Reason,
    left: &mut Option<Option<Position>>,
) -> Result<()> {
    // Sealed files end the old lineage where it was left. Pieces that can't be cut are not in any TXID: then the position
    // proves nothing. Nobody seals from here on while the sums are made anew, nor waits for that.
    let old = match left {
        Some(old) => old.clone(),
        None => left.insert(w.tracker.forget_place()?).clone(),
    };
    let old = old.filter(|p| p.pieces == 0 && expected.attested.is_none());
    let checksum = view.scan(w.spool.sums(), |_, _| {})?;
    let attested = expected.attested.or(old.as_ref().map(|p| (p.lineage, p.checksum)));
    let now = clock::now();
    let place = Position {
        lineage: Lineage::default(),
        txid: TxId::ZERO,
        pieces: 0,
        literal: false,
        page_size: view.page_size(),
        commit: view.commit(),
        checksum,
        timestamp: now,
        wal: view.wal_point().into(),
        handoff: view.handoff(w.path())?,
    };
    let newest = old.as_ref().map_or(expected.txid, |p| p.txid);
    let position = match attested {
        // A later TXID may be in the replica, or on its way there, continuing from here with what was rolled back
        // here, or beginning a lineage that was not finished.
        Some((lineage, was)) if was == checksum && newest_known(w) <= newest => {
            let txid = newest;
            Position { lineage, txid, ..place }
        }
        _ => begin_lineage(w, &view, expected.txid.max(newest_known(w)), &place, reason)?,
    };
    w.spool.own(w.replica(), position.lineage)?;
    let held = w.spool.hold_seal()?;
    // (Of a view without a handle: a reset in this process is refused from `begin_resync` to `resume`, another's shows here.)
    view.is_held()?;
    w.spool.set_position(&held, &position)?;
    w.spool.end_change(&held)?;
    w.tracker.resume(position);
    *lock(&w.unread) = None;
    drop(view);
    w.ring();
    Ok(())
}

/// A view whose generation is still the current one once it is pinned. (Read mark 0 does not keep the WAL
/// from being restarted, so that is checked.)
pub(super) fn pinned(w: &Watched, access: &Access) -> Result<View> {
    let end = clock::uptime() + PIN_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match View::open(access, w.tracker.wal_path()) {
            Ok(v) => return Ok(v),
            Err(e) if e.is_retry() && clock::uptime() < end && !w.handles.is_exclusive() => {
                // Most of what is in the way passes in a moment; what does not may last.
                clock::sleep(pause);
                pause = (pause + pause / 8).min(Duration::from_millis(20));
            }
            Err(e) => return Err(e),
        }
    }
}

/// Snapshot `1-n` and anchor `n+1` under a new lineage.
fn begin_lineage(
    w: &Watched,
    view: &View,
    newest: TxId,
    place: &Position,
    reason: &Reason,
) -> Result<Position> {
    let lineage = Lineage::fresh();
    let txid = newest.next();
    let now = clock::now();
    w.spool.own(w.replica(), lineage)?;
    {
        let held = w.spool.hold_seal()?;
        w.spool.venture(&held, txid.next())?;
    }
    let snapshot = Attested { txid, lineage, checksum: place.checksum, time: now };
    view.snapshot(&w.spool, &snapshot, |_, _| {})?;
    crate::base::crash::point("lineage.after-snapshot");
    anchor(view, &w.spool, &Attested { txid: txid.next(), ..snapshot })?;
    crate::base::crash::point("lineage.after-anchor");
    // (A first snapshot that was interrupted is begun again, and nothing is missing.)
    if let Reason::Gap(why) = reason
        && newest != TxId::ZERO
    {
        let message =
            format!("the history could not be proved unbroken ({why}); a snapshot was taken as TXID {txid}");
        w.tell(EventKind::HistoryGap, message, json!({"txid": txid.0, "reason": why}));
    }
    Ok(Position { lineage, txid: txid.next(), ..place.clone() })
}

/// Starts what is due by the clock: a snapshot, or where that is not worth it yet, retention.
pub(super) fn schedule(w: &Arc<Watched>) {
    let every = w.settings().snapshot_interval;
    if every.is_zero() || w.job.job().is_some() || w.handles.is_exclusive() {
        return;
    }
    // By the age of the last snapshot, whatever process made it: a program may live for a second. This process's own tries are that
    // far apart, too. (A clock that jumps makes nothing due.)
    let now = clock::uptime();
    let (began_at, tried_at) = {
        let rounds = lock(&w.rounds);
        (rounds.began_at, rounds.snapshot_tried_at)
    };
    let age = w.link.status().snapshot_aged.map(|a| a.by(now));
    let tried_ago = tried_at.map(|at| now.saturating_sub(at));
    if tried_ago.is_some_and(|ago| ago < every) || age.unwrap_or(now.saturating_sub(began_at)) < every {
        return;
    }
    // One that waits for the line is enough.
    if !w.spool.snapshots().is_ok_and(|waiting| waiting.is_empty()) {
        return;
    }
    lock(&w.rounds).snapshot_tried_at = Some(now);
    let newest = w.tracker.position().map(|p| p.txid).unwrap_or_default();
    // One TXID further is the anchor only: nothing changed.
    if newest.0 <= w.link.status().snapshot.0 + 1 {
        return;
    }
    let change = w.link.status().change;
    match due::decide(age.unwrap_or(every), change.snapshot_bytes, change.since_bytes) {
        Due::Copy => start_snapshot(w, Unless::Newest),
        Due::Retention => w.ask(Ask::Retain),
    }
}

/// When no snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unless {
    /// The newest one in the replica holds the same TXID.
    Newest,
    /// Never: that one is lost.
    Never,
}

/// Has a thread take a snapshot, unless one is at work.
pub(super) fn start_snapshot(w: &Arc<Watched>, unless: Unless) {
    if w.role() == Role::Shipper
        && let Some(ticket) = Work::take(w, Job::Reading)
    {
        spawn(ticket, "walrust-snapshot", move |w| snapshot(w, unless).map(drop));
    }
}

/// A full snapshot of the database at a TXID of its own making; writers go on. Returns the TXID it holds. The caller has the
/// ticket of [`Job::Reading`].
fn snapshot(w: &Arc<Watched>, unless: Unless) -> Result<TxId> {
    at_a_txid(w, |view, position| snapshot_of(w, &view, &position, unless))
}

/// Does `copying` with a view of the database that is exactly a TXID, and which one. Where its place in the history was lost there is none
/// until the database has been read anew; nobody else can read it while the caller has the ticket of [`Job::Reading`], so
/// that is done first. Errors as `copying`, with what keeps the database from being read, and with [`Kind::Retry`] where there is
/// no such moment for [`TXID_PATIENCE`].
pub(super) fn at_a_txid<T>(
    w: &Arc<Watched>,
    mut copying: impl FnMut(View, Position) -> Result<T>,
) -> Result<T> {
    let mut tries = 0;
    loop {
        find_again(w)?;
        tries += 1;
        match despite_forks(|| view_at_a_txid(w).and_then(|(view, position)| copying(view, position))) {
            Err(_) if tries < REREADS && matches!(w.tracker.sync_state(), Continuity::Lost(_)) => {}
            done => return done,
        }
    }
}

/// Reads the database anew if its place in the history was lost.
fn find_again(w: &Arc<Watched>) -> Result<()> {
    let Continuity::Lost(why) = w.tracker.sync_state() else { return Ok(()) };
    let found = run(w, newest_here(w), reason(w, why.to_string()));
    if let Err(e) = &found {
        w.tracker.lose(e.to_string());
    }
    found
}

fn snapshot_of(w: &Arc<Watched>, view: &View, position: &Position, unless: Unless) -> Result<TxId> {
    if unless == Unless::Newest && w.link.status().snapshot >= position.txid {
        return Ok(position.txid);
    }
    let taken = view.snapshot(&w.spool, &Attested::from(position), |_, _| {});
    if let Err(e) = &taken
        && e.is_corrupt()
    {
        w.tell(EventKind::CorruptionDetected, e.to_string(), json!({"txid": position.txid.0}));
        w.tracker.lose(e.to_string());
    }
    taken?;
    w.ring();
    Ok(position.txid)
}

/// A view of the database that is exactly a TXID, and which one; what was cut for that is on its way.
/// Errs with [`Kind::Retry`] at once where the place in the history is lost, and after [`TXID_PATIENCE`].
fn view_at_a_txid(w: &Arc<Watched>) -> Result<(View, Position)> {
    w.handles.reading_begins();
    let access = Access::new(&w.handles);
    let end = clock::uptime() + TXID_PATIENCE;
    loop {
        let view = pinned(w, &access)?;
        match place_at(w, &view) {
            Ok(p) => {
                w.ring();
                return Ok((view, p));
            }
            Err(SealError::Failed(e)) => return Err(e),
            Err(_) => {}
        }
        if let Continuity::Lost(why) = w.tracker.sync_state() {
            return Err(Error::new(
                Kind::Retry,
                format!("the database must be read anew first: {why}; try again"),
            ));
        }
        if clock::uptime() >= end {
            return Err(Error::new(Kind::Retry, NO_MOMENT));
        }
        clock::sleep(Duration::from_millis(2));
    }
}

const NO_MOMENT: &str =
    "for 30 s there was no moment at which the database was exactly what had been read of it; try again";

/// Seals and cuts exactly up to the view's header; errs when something later is sealed already.
fn place_at(w: &Watched, view: &View) -> std::result::Result<Position, SealError> {
    let h = view.header();
    if h.max_frame > 0 {
        w.tracker.seal(h, Packing::Lz4, clock::now())?;
    }
    let position = match w.tracker.cut()? {
        Some(p) => p,
        None => w.tracker.position().ok_or(SealError::Again)?,
    };
    let at_view = is_at(&position, h);
    if at_view && position.checksum.0 != 0 { Ok(position) } else { Err(SealError::Again) }
}

/// A snapshot for whoever asks: waits for a schedule's that is at work, then takes its own and waits until it
/// is in the replica.
pub(super) fn snapshot_now(w: &Arc<Watched>, timeout: Duration) -> Result<TxId> {
    let end = clock::uptime() + timeout;
    let Some(ticket) = Work::take_within(w, Job::Reading, timeout) else {
        return Err(Error::new(Kind::Timeout, "another snapshot is still being taken"));
    };
    let taken = snapshot(w, Unless::Newest);
    drop(ticket);
    let txid = taken?;
    w.link.wait_for_snapshot(txid, end.saturating_sub(clock::uptime()))?;
    Ok(txid)
}
