//! What `walrust_status` and the pages show of the mirrors of a database, and waiting for more replicas than one.

use super::bell::Note;
use super::lag::is_shipped;
use super::mirror::Mirror;
use super::phase::Role;
use super::status::Row;
use super::told::{self, Told};
use super::watched::{Watched, ended};
use crate::base::{Error, Kind, Result, TxId, clock, lock};
use crate::metrics::HealthStatus;
use crate::ship::State;
use std::time::Duration;

/// Between two looks at what another process has recorded of its mirrors.
const POLL: Duration = Duration::from_millis(10);
/// Between two looks at what this one serves, if nothing is told.
const LOOK: Duration = Duration::from_millis(200);
/// How long a mirror of which nothing is known yet is waited for at the end: its store may be away.
const BEGINNING_PATIENCE: Duration = Duration::from_millis(500);

/// In how many of its replicas a commit is to be: the replica itself, or so many of it and the mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// The replica, whatever the mirrors have.
    Own,
    /// One of all, whichever it is.
    Any,
    /// Every one.
    All,
    /// So many of all.
    AtLeast(usize),
}

impl Replicas {
    /// How many of `all`. Errors with [`Kind::Config`] for more than there are, or none.
    fn of(self, all: usize) -> Result<usize> {
        match self {
            Replicas::Own | Replicas::Any => Ok(1),
            Replicas::All => Ok(all),
            Replicas::AtLeast(n) if (1..=all).contains(&n) => Ok(n),
            Replicas::AtLeast(n) => Err(Error::config(format!(
                "{n} replicas are asked for, and the database has {all}, mirrors included; allowed: 1 to {all}, 'any', 'all'"
            ))),
        }
    }
}

/// The state of a mirror that this process serves, or is about to.
fn state(shipper: State, all_there: bool) -> State {
    match shipper {
        State::CatchingUp if all_there => State::Streaming,
        State::Streaming if !all_there => State::CatchingUp,
        told => told,
    }
}

impl Watched {
    /// A row for each mirror.
    pub fn mirror_rows(&self) -> Vec<Row> {
        self.mirrors.iter().map(|m| self.mirror_row(m)).collect()
    }

    fn mirror_row(&self, m: &Mirror) -> Row {
        let (status, cursor) = (m.link().status(), m.cursor(&self.spool));
        let replicated = m.replicated(&self.spool);
        let position = self.tracker.position();
        let all_there = self.unsealed_bytes() == 0 && is_shipped(position.as_ref(), replicated);
        let serves = self.role() == Role::Shipper;
        let state = match serves {
            true if m.is_serving() => state(status.state, all_there),
            true if status.last_error.is_some() => status.state,
            true => State::CatchingUp,
            false => State::Standby,
        };
        let why = status.last_error.as_ref().map(|(_, e)| e.clone()).or_else(|| status.duties.trouble());
        let told = Told { state, error: why.or_else(|| lock(&m.finding).clone()) };
        let waits = if all_there { None } else { m.waits_since() };
        let lag = match waits {
            Some(since) => clock::now().since(since),
            None if all_there => Duration::ZERO,
            None => self.lag(self.replicated(), false),
        };
        let waiting = m.queue().map_or(0, |q| q.backlog_bytes());
        Row {
            database: self.path().to_path_buf(),
            replica: m.url().to_string(),
            state,
            txid: position.map(|p| p.txid).unwrap_or_default().max(replicated),
            replicated,
            lag,
            pending_bytes: if all_there { 0 } else { waiting + self.unsealed_bytes() },
            wal_bytes: 0,
            spool_bytes: m.queue().map_or(0, |q| q.bytes()),
            breaker: status.breaker,
            last_upload: status.last_upload.or(cursor.map(|s| s.time).filter(|_| replicated > TxId::ZERO)),
            health: told::health(&told, false, lag, self.settings().interval).min(HealthStatus::Degraded),
            last_error: told.error,
            protection: serves.then_some(status.protection),
        }
    }

    /// [`Watched::sync`], until so many replicas have it. Errors as that one, and with [`Kind::Config`] where there are not so many.
    pub fn sync_to(&self, timeout: Duration, wanted: Replicas) -> Result<TxId> {
        let all = self.mirrors.len() + 1;
        let least = wanted.of(all)?;
        let deadline = clock::uptime() + timeout;
        if wanted == Replicas::Own || (wanted == Replicas::All && all == 1) {
            return self.sync(timeout);
        }
        let txid = if least == all { self.sync(timeout)? } else { self.cut_for_sync(deadline)? };
        let _waits: Vec<_> = self.mirrors.iter().map(|m| m.link().wait_elsewhere()).collect();
        let _own = self.link.wait_elsewhere();
        loop {
            let seen = self.arrivals.seen();
            let own = usize::from(self.replicated() >= txid);
            let there = own + self.mirrors.iter().filter(|m| m.replicated(&self.spool) >= txid).count();
            if there >= least {
                return Ok(txid);
            }
            if self.link.is_stopped() {
                return Err(ended());
            }
            let left = deadline.saturating_sub(clock::uptime());
            if left.is_zero() {
                return Err(self.too_few(txid, there, least));
            }
            let look = if self.role() == Role::Shipper { LOOK } else { POLL };
            self.arrivals.wait(seen, left.min(look));
        }
    }

    fn too_few(&self, txid: TxId, there: usize, least: usize) -> Error {
        let lacks = |m: &&std::sync::Arc<Mirror>| m.replicated(&self.spool) < txid;
        let why = self.mirrors.iter().find(lacks).map(|m| {
            let error = m.link().status().last_error.map(|(_, e)| format!(": {e}")).unwrap_or_default();
            format!("; the mirror {} has {}{error}", m.url(), m.replicated(&self.spool))
        });
        let text =
            format!("TXID {txid} is in {there} of the {least} replicas asked for{}", why.unwrap_or_default());
        Error::new(Kind::Timeout, text)
    }

    /// The process, or the app's use of the database, ends: mirrors that answer get what is pending until uptime `end`.
    pub(super) fn drain_mirrors(&self, end: Duration) {
        if self.mirrors.is_empty() {
            return;
        }
        let Some(txid) = self.tracker.position().map(|p| p.txid) else { return };
        self.ring();
        if self.mirrors.iter().any(|m| m.is_beginning()) {
            // (The sealer looks at what is closed only when it is called.)
            self.news.leave(Note::LookFully);
            self.call_now();
        }
        let begun_until = clock::uptime() + BEGINNING_PATIENCE;
        loop {
            let seen = self.arrivals.seen();
            let is_late = |m: &std::sync::Arc<Mirror>| {
                let answers = m.link().status().last_error.is_none();
                m.is_beginning() && clock::uptime() < begun_until
                    || m.is_serving() && answers && m.replicated(&self.spool) < txid
            };
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() || !self.mirrors.iter().any(is_late) {
                return;
            }
            self.arrivals.wait(seen, left.min(LOOK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_of_those_there_are() {
        assert_eq!(Replicas::Own.of(3).unwrap(), 1);
        assert_eq!(Replicas::Any.of(3).unwrap(), 1);
        assert_eq!(Replicas::All.of(3).unwrap(), 3);
        assert_eq!(Replicas::AtLeast(2).of(3).unwrap(), 2);
        for n in [0, 4] {
            let e = Replicas::AtLeast(n).of(3).unwrap_err().to_string();
            assert!(e.contains("allowed: 1 to 3"), "{e}");
        }
    }

    #[test]
    fn a_mirror_streams_when_it_has_all() {
        for (shipper, all_there, want) in [
            (State::CatchingUp, true, State::Streaming),
            (State::CatchingUp, false, State::CatchingUp),
            (State::Streaming, false, State::CatchingUp),
            (State::Streaming, true, State::Streaming),
            (State::Paused, true, State::Paused),
            (State::Fenced, true, State::Fenced),
            (State::Failed, false, State::Failed),
        ] {
            assert_eq!(state(shipper, all_there), want, "{shipper:?} {all_there}");
        }
    }
}
