//! One mirror of a watched database, as this process knows it: see [`super::mirrors`].

use crate::base::{Error, Kind, Result, Timestamp, TxId, clock, lock};
use crate::config::{MirrorSettings, Settings, replica_key};
use crate::ship::{self, Aged, Link, State};
use crate::spool::{Shipped, Spool};
use crate::store::Store;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The first pause after a beginning that failed, and the longest.
pub(super) const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the end of a watch waits for a mirror's shipper, which gives the lease back.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Where a mirror stands in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// It is to be begun at this uptime; the pause after the next failure.
    Due(Duration, Duration),
    /// A thread begins it.
    Beginning,
    /// Its shipper works.
    Serving,
    /// Its shipper was stopped, and it is begun anew when that has ended.
    Ending,
}

/// One mirror.
pub(super) struct Mirror {
    url: String,
    /// What [`super::whose::same_replica`] compares.
    pub(super) key: String,
    pub(super) store: Store,
    /// What holds for it alone.
    own: MirrorSettings,
    at: Mutex<At>,
    link: Mutex<Arc<Link>>,
    /// Once this process has shipped.
    queue: Mutex<Option<Arc<Spool>>>,
    /// What validation or retention found wrong.
    pub(super) finding: Mutex<Option<String>>,
    pub(super) validated: Mutex<Option<Aged>>,
    pub(super) retained: Mutex<Option<TxId>>,
    /// That uploads fail was told, and not yet that they succeed again.
    pub(super) is_failure_told: AtomicBool,
}

/// What a mirror needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Nothing: its queue goes on from this TXID.
    Resume(TxId),
    /// A snapshot, above what it holds.
    Anew,
    /// It must not be written to.
    Refuse(String),
}

/// What is known here of a mirror.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Here {
    /// The newest TXID that was recorded as being in the mirror.
    pub(super) cursor: TxId,
    /// Its queue leads on from that ([`leads_on`]).
    pub(super) follows: bool,
    /// The newest TXID of the database.
    pub(super) newest: TxId,
}

/// Whether the queue, which holds every file after `from`, leads on from what the mirror has: up to `cursor`, or from the snapshot that
/// `waits`. (Who died while a mirror was begun has left files and no snapshot.)
pub(super) fn leads_on(from: Option<TxId>, cursor: TxId, waits: Option<TxId>) -> bool {
    from.is_some_and(|from| cursor >= from || waits.is_some_and(|snapshot| snapshot >= from))
}

/// What the mirror needs that holds `there`: its newest TXID, and whether the lineage of that is ours.
pub(super) fn decide(there: Option<(TxId, bool)>, here: Here) -> Begin {
    match there {
        None if here.follows && here.cursor == TxId::ZERO => Begin::Resume(TxId::ZERO),
        None => Begin::Anew,
        Some((_, false)) => Begin::Refuse(
            "it holds another database's history, or one that was not begun here; name an empty place"
                .to_string(),
        ),
        Some((newest, true)) if here.follows && here.cursor <= newest => Begin::Resume(here.cursor),
        Some((newest, true)) if newest > here.newest => Begin::Refuse(format!(
            "it is ahead of the database (TXID {newest} there, {} here): restore from it what is missing here, or name an empty place",
            here.newest
        )),
        Some((_, true)) => Begin::Anew,
    }
}

impl Mirror {
    /// A mirror in that store, which is due to be begun.
    pub(super) fn of(store: Store, own: MirrorSettings) -> Arc<Mirror> {
        Arc::new(Mirror {
            url: store.url().to_string(),
            key: replica_key(store.url()),
            store,
            own,
            at: Mutex::new(At::Due(Duration::ZERO, PAUSE)),
            link: Mutex::default(),
            queue: Mutex::default(),
            finding: Mutex::default(),
            validated: Mutex::default(),
            retained: Mutex::default(),
            is_failure_told: AtomicBool::new(false),
        })
    }

    /// The settings that hold for it, of those of its database.
    pub(super) fn settings(&self, of: &Settings) -> Settings {
        of.of_mirror(&self.own)
    }

    /// Its URL, canonical and without secrets.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Where it stands.
    pub(super) fn at(&self) -> At {
        *lock(&self.at)
    }

    /// It goes on to that.
    pub(super) fn goes_to(&self, at: At) {
        *lock(&self.at) = at;
    }

    /// Its shipper has ended, and it is due again.
    pub(super) fn is_due_again(&self) {
        if let Some(queue) = self.queue() {
            queue.ship_lock().release();
        }
        *lock(&self.link) = Arc::default();
        self.goes_to(At::Due(Duration::ZERO, PAUSE));
    }

    /// The shipper's side.
    pub(super) fn link(&self) -> Arc<Link> {
        lock(&self.link).clone()
    }

    /// Its queue, once this process has shipped.
    pub(super) fn queue(&self) -> Option<Arc<Spool>> {
        lock(&self.queue).clone()
    }

    /// Its queue in `spool`, made if need be, which may hold `limit` bytes. Errors as the file system does.
    pub(super) fn queue_in(&self, spool: &Arc<Spool>, limit: u64) -> Result<Arc<Spool>> {
        let mut queue = lock(&self.queue);
        if let Some(known) = queue.as_ref().filter(|q| !q.is_gone()) {
            return Ok(known.clone());
        }
        let made = Arc::new(spool.mirror(&self.url, limit)?);
        *queue = Some(made.clone());
        Ok(made)
    }

    /// Whether its shipper works.
    pub(super) fn is_serving(&self) -> bool {
        *lock(&self.at) == At::Serving
    }

    /// Whether it has not been found out yet what it needs, and no try has failed.
    pub(super) fn is_beginning(&self) -> bool {
        let is_first = matches!(*lock(&self.at), At::Due(..) | At::Beginning);
        is_first && self.link().status().last_error.is_none()
    }

    /// Whether it waits for a file: one is to be cut for it.
    pub(super) fn is_hungry(&self, interval: Duration) -> bool {
        let link = self.link();
        self.is_serving()
            && link.status().last_error.is_none()
            && link.slot_open(interval)
            && self.queue().is_some_and(|q| q.pending().is_ok_and(|p| p.is_empty()))
    }

    /// It does not hold what was shipped to it, or its queue is damaged: it begins anew, with a snapshot.
    pub(super) fn begin_anew(&self) {
        if let Some(queue) = self.queue()
            && let Err(e) = queue.fall_behind()
        {
            log::warn!("walrust: {}: {e}", self.url);
        }
    }

    /// It could not be begun: tried again after the pause.
    pub(super) fn fails(&self, pause: Duration, e: &Error) {
        self.link().update(|s| {
            s.state = match e.kind() {
                Kind::Retry | Kind::Timeout => State::CatchingUp,
                _ => State::Failed,
            };
            s.failures += 1;
            s.last_error = Some((e.kind(), e.to_string()));
        });
        *lock(&self.at) = At::Due(clock::uptime() + pause, (pause * 2).min(LONGEST_PAUSE));
    }

    /// Stops its shipper. The lock of its queue goes away when nothing of it is under way.
    pub(super) fn end(&self) {
        let link = self.link();
        link.stop();
        if let Some(queue) = self.queue()
            && ship::leave(&link, queue.dir(), END_PATIENCE)
        {
            queue.ship_lock().release();
        }
    }

    /// The newest TXID up to which it is known to have all. `spool`: the database's.
    pub(super) fn replicated(&self, spool: &Spool) -> TxId {
        if self.is_serving() {
            return self.link().status().replicated;
        }
        self.cursor(spool).map_or(TxId::ZERO, |s| s.txid)
    }

    /// What whichever process ships has recorded of it in the database's spool.
    pub(super) fn cursor(&self, spool: &Spool) -> Option<Shipped> {
        spool.mirror_cursor(&self.url).ok().flatten().filter(|s| s.replica == self.url)
    }

    /// Since when the oldest commit that it lacks has waited in its queue.
    pub(super) fn waits_since(&self) -> Option<Timestamp> {
        self.queue().and_then(|q| q.oldest_waits_since())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_without_the_snapshot_that_it_begins_with_leads_nowhere() {
        for (from, cursor, waits, want) in [
            (None, 9, Some(9), false),
            (Some(5), 0, None, false),
            (Some(5), 4, None, false),
            (Some(5), 5, None, true),
            (Some(5), 7, None, true),
            (Some(5), 0, Some(4), false),
            (Some(5), 0, Some(5), true),
        ] {
            let got = leads_on(from.map(TxId), TxId(cursor), waits.map(TxId));
            assert_eq!(got, want, "{from:?} {cursor} {waits:?}");
        }
    }

    #[test]
    fn what_a_mirror_needs() {
        let here = |cursor, follows, newest| Here { cursor: TxId(cursor), follows, newest: TxId(newest) };
        let resume = |txid| Begin::Resume(TxId(txid));
        for (there, here, want) in [
            // Empty: new, the snapshot of an interrupted beginning waits, or it was emptied.
            (None, here(0, false, 9), Begin::Anew),
            (None, here(0, true, 9), resume(0)),
            (None, here(5, true, 9), Begin::Anew),
            (None, here(5, false, 9), Begin::Anew),
            // Ours: it goes on; a file may have arrived that was not recorded.
            (Some((5, true)), here(5, true, 9), resume(5)),
            (Some((6, true)), here(5, true, 9), resume(5)),
            (Some((9, true)), here(9, true, 9), resume(9)),
            // It was rolled back, or its queue fell behind, or the spool is new.
            (Some((4, true)), here(5, true, 9), Begin::Anew),
            (Some((5, true)), here(5, false, 9), Begin::Anew),
            (Some((9, true)), here(0, false, 9), Begin::Anew),
        ] {
            assert_eq!(decide(there.map(|(t, ours)| (TxId(t), ours)), here), want, "{there:?} {here:?}");
        }
        for (there, here) in [
            ((5, false), here(0, false, 9)),
            ((5, false), here(5, true, 9)),
            ((10, true), here(0, false, 9)),
            ((10, true), here(5, false, 9)),
        ] {
            let refused = decide(Some((TxId(there.0), there.1)), here);
            assert!(matches!(refused, Begin::Refuse(_)), "{there:?} {here:?}: {refused:?}");
        }
    }
}
