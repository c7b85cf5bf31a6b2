//! Mirrors of one watched database: further replicas that get the same files as the replica, each at its own pace.
//!
//! The process that ships serves each mirror's queue ([`Spool::mirror`]) with a shipper of its own: own lease, own breaker, own cursor.
//! What a mirror needs first, and whether it is this database's, is [`decide`]d when the process has begun to ship.
//!
//! ```text
//! Due ──(the sealer's look)──▶ Beginning ──▶ Serving ──(behind, lost)──▶ Ending ──▶ Due
//!  ▲                               │
//!  └──────(it failed: a pause)─────┘
//! ```
//!
//! # Rules
//!
//! * I-MIRROR-5: nothing of the replica's stream, and no COMMIT, waits for a mirror: not for its store, nor for its snapshot.
//! * I-MIRROR-6: nothing is written to a mirror that holds another history: its newest lineage was begun or taken up here, or it is empty.
//! * I-MIRROR-7: a mirror's history has no hole that a restore would not see: what is not handed on file by file comes as a snapshot above
//!   every TXID that the mirror has.
//!
//! A crash leaves the queue as it is; the next process decides anew. Refused: one shipper that puts each file to all places (the slowest
//! would be the pace of all); a thread for each mirror (its shipper is a task of the runtime, as the replica's is).

use super::events::on_mirror_event;
use super::identity::{Remote, as_known};
use super::job::Job;
use super::join::{Patience, look};
use super::mirror::{At, Begin, Here, Mirror, decide, leads_on};
use super::places::Places;
use super::reread::at_a_txid;
use super::settings::keeping;
use super::watched::Watched;
use super::work::Work;
use crate::base::{Error, Kind, Result, TxId, clock, panics, thread};
use crate::capture::Attested;
use crate::config::Settings;
use crate::replica;
use crate::ship::{self, Keeping, State};
use crate::spool::{Shipped, Spool};
use crate::store::{Breaker, Retry, Store, block_on};
use std::sync::Arc;
use std::time::Duration;

/// How long a mirror's snapshot waits for other readings.
const READING_PATIENCE: Duration = Duration::from_secs(30);

/// Mirrors that begin at the same time.
static BEGINNING: Places = Places::of(4);

impl Watched {
    /// Rings for the shippers: of the replica, and of the mirrors.
    pub(super) fn ring(&self) {
        self.link.work.notify_one();
        self.mirrors.iter().filter(|m| m.is_serving()).for_each(|m| m.link().work.notify_one());
    }

    /// Stops serving the mirrors.
    pub(super) fn end_mirrors(&self) {
        self.mirrors.iter().for_each(|m| m.link().stop());
        self.mirrors.iter().for_each(|m| m.end());
    }
}

/// The sealer's look at the mirrors of a database that this process ships.
pub(super) fn look_at_mirrors(w: &Arc<Watched>) {
    for m in &w.mirrors {
        match m.at() {
            At::Due(when, pause) if clock::uptime() >= when => begin_soon(w, m, pause),
            At::Serving if is_behind(m) => {
                m.link().stop();
                m.goes_to(At::Ending);
            }
            At::Ending if m.link().has_ended() => {
                m.is_due_again();
                w.call();
            }
            At::Due(..) | At::Beginning | At::Serving | At::Ending => {}
        }
    }
}

fn is_behind(m: &Mirror) -> bool {
    m.queue().is_none_or(|q| q.follows_from().is_ok_and(|from| from.is_none()))
}

fn begin_soon(w: &Arc<Watched>, m: &Arc<Mirror>, pause: Duration) {
    let Some(place) = BEGINNING.take() else { return };
    m.goes_to(At::Beginning);
    let (mine, its) = (w.clone(), m.clone());
    let work = move || {
        let begun = panics::caught(|| begin(&mine, &its));
        if let Err(e) = begun.unwrap_or_else(|said| Err(panics::error(&said))) {
            log::warn!("walrust: {}: mirror {}: {e}", mine.path().display(), its.url());
            its.fails(pause, &e);
        }
        drop(place);
        mine.arrivals.tell();
        mine.call();
    };
    if let Err(e) = thread::spawn("walrust-mirror", 512 << 10, work) {
        let e = Error::new(Kind::Retry, "cannot start the thread walrust-mirror").because(e);
        m.fails(pause, &e);
    }
}

/// Finds out what the mirror needs, gives it that, and serves it. Errors with what is in the way; nothing is served then.
fn begin(w: &Arc<Watched>, m: &Arc<Mirror>) -> Result<()> {
    let queue = m.queue_in(&w.spool, w.settings().spool_limit.0)?;
    if ship::is_left_at_work(queue.dir()) || !queue.ship_lock().try_process()? {
        return Err(Error::new(Kind::Retry, "another process is still at work at this mirror"));
    }
    let begun = begin_alone(w, m, &queue);
    if begun.is_err() {
        queue.ship_lock().release();
    }
    begun
}

fn begin_alone(w: &Arc<Watched>, m: &Arc<Mirror>, queue: &Arc<Spool>) -> Result<()> {
    let there = look(&m.store, Patience::Patient)?;
    let recorded = queue.shipped()?.filter(|s| s.replica == m.url());
    let is_closed = m.store.is_closed();
    let waiting = queue.pending()?.last().map(|q| q.txid).unwrap_or_default();
    let known = recorded.as_ref().map(|s| (s.lineage, s.txid.max(waiting)));
    let there = there.map(|r| as_known(r, known, is_closed));
    let cursor = recorded.as_ref().map(|s| s.txid).unwrap_or_default();
    if there.is_none() && cursor == TxId::ZERO {
        let store = m.store.clone();
        block_on(async move { replica::place::refuse_to_begin(&store).await })??;
    }
    let position = w.spool.position()?;
    let newest = position.as_ref().map(|p| p.txid).unwrap_or_default();
    let is_ours = |r: &Remote| -> Result<bool> {
        Ok(w.spool.owns(w.replica(), r.lineage)? || position.as_ref().is_some_and(|p| p.lineage == r.lineage))
    };
    let seen = there.as_ref().map(|r| Ok::<_, Error>((r.txid, is_ours(r)?))).transpose()?;
    let waits = queue.snapshots()?.last().map(|q| q.txid);
    let follows = leads_on(queue.follows_from()?, cursor, waits);
    let begun_at = match decide(seen, Here { cursor, follows, newest }) {
        Begin::Refuse(why) => return Err(Error::config(format!("{}: {why}", m.url()))),
        Begin::Resume(txid) => txid,
        Begin::Anew => {
            give_snapshot(w, queue)?;
            there.as_ref().map(|r| r.txid).unwrap_or_default()
        }
    };
    let snapshot = there.as_ref().map(|r| r.snapshot).unwrap_or_default();
    queue.set_shipped(&Shipped {
        replica: m.url().to_string(),
        lineage: there.as_ref().map(|r| r.lineage).unwrap_or_default(),
        txid: begun_at,
        snapshot,
        snapshot_time: recorded.as_ref().and_then(|s| s.snapshot_time),
        time: clock::now(),
        change: recorded.map(|s| s.change).unwrap_or_default(),
    })?;
    m.link().update(|s| {
        (s.replicated, s.snapshot) = (begun_at, snapshot);
        s.last_error = None;
        s.state = State::CatchingUp;
    });
    m.goes_to(At::Serving);
    let serves = serve(w, m, queue);
    if serves.is_ok() && w.link.is_stopped() {
        // (The watch has ended meanwhile.)
        m.end();
    }
    serves
}

/// Puts a snapshot of now into the queue, which has every file after it.
fn give_snapshot(w: &Arc<Watched>, queue: &Spool) -> Result<()> {
    queue.fall_behind()?;
    // (Before the database is read: what is cut meanwhile is handed on.)
    queue.follow_from(w.spool.position()?.map(|p| p.txid).unwrap_or_default())?;
    let made = write_snapshot(w, queue);
    if made.is_err() {
        queue.fall_behind()?;
    }
    made
}

fn write_snapshot(w: &Arc<Watched>, queue: &Spool) -> Result<()> {
    if !w.handles.can_read() {
        return Err(Error::new(
            Kind::Retry,
            "the database is not open here: its snapshot is made when it is opened again",
        ));
    }
    let Some(_ticket) = Work::take_within(w, Job::Reading, READING_PATIENCE) else {
        return Err(Error::new(Kind::Retry, "another thread reads the database"));
    };
    let at = at_a_txid(w, |view, p| {
        view.snapshot_at(&queue.snapshot_path(p.txid), &w.spool, &Attested::from(&p), |_, _| {})?;
        Ok(p.txid)
    })?;
    queue.make_snapshot_durable(at)?;
    queue.follow_from(at)
}

/// How files are put into a mirror: its store may be one without locks.
fn keeping_in(store: &Store, s: &Settings) -> Keeping {
    let keeping = keeping(s);
    if store.can_hold() { keeping } else { Keeping { retain: None, ..keeping } }
}

fn serve(w: &Arc<Watched>, m: &Arc<Mirror>, queue: &Arc<Spool>) -> Result<()> {
    let s = m.settings(&w.settings());
    let on_event = {
        let (w, m) = (Arc::downgrade(w), Arc::downgrade(m));
        Arc::new(move |e: ship::Event| {
            if let (Some(w), Some(m)) = (w.upgrade(), m.upgrade()) {
                on_mirror_event(&w, &m, &e);
            }
        })
    };
    let on_slot = {
        let w = Arc::downgrade(w);
        Arc::new(move || {
            if let Some(w) = w.upgrade() {
                w.arrivals.tell();
                w.call();
            }
        })
    };
    let on_end = {
        let queue = queue.clone();
        Arc::new(move || queue.ship_lock().release())
    };
    ship::start(ship::Plan {
        spool: queue.clone(),
        store: m.store.clone().with_retry(Retry::NONE),
        link: m.link(),
        me: w.me()?,
        evict: false,
        lease: None,
        replica: m.url().to_string(),
        retry: Retry::without_end(s.retry.base, s.retry.max),
        breaker: Breaker::new(s.retry.breaker_threshold, s.retry.breaker_cooldown),
        levels: s.levels.clone(),
        keeping: keeping_in(&m.store, &s),
        on_event,
        on_slot,
        on_end,
    })
}
