//! Waiting until everything that was committed is in the replica (`walrust_sync`, a close, a COMMIT under `durability = "sync"`).

use super::bell::Note;
use super::phase::{Part, Role};
use super::watched::{Watched, ended};
use crate::base::{Error, Kind, Lineage, Result, TxId, clock, lock};
use crate::capture::{Continuity, SealError};
use crate::ltx::Packing;
use crate::ship::State;
use std::time::Duration;

/// How long a sync may wait for a database to be read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// As long as its caller has time.
    Deadline,
    /// Not past the app's last close: nobody reads it then.
    Closed,
}

/// Between two looks at what no thread tells: another process's progress.
const POLL: Duration = Duration::from_millis(2);

impl Watched {
    /// Returns when every commit made before the call is durable in the replica: the TXID that holds them. Errors with what keeps them
    /// from it, when that does not pass by waiting or `timeout` is over ([`Kind::Timeout`]).
    pub fn sync(&self, timeout: Duration) -> Result<TxId> {
        if self.role() == Role::Joining {
            self.join_soon();
        } else {
            self.link.refuse_fenced()?;
        }
        if let Some(why) = self.ships_elsewhere() {
            return Err(Error::config(why));
        }
        self.sync_until(timeout, Until::Deadline)
    }

    /// Has the thread that finds out whose replica it is try now, whatever pause there is.
    pub(super) fn join_soon(&self) {
        self.joined.hurry();
        self.news.leave(Note::LookFully);
        self.call_now();
    }

    /// [`Watched::sync`] for what calls it at a close, too. Errors likewise.
    pub(super) fn sync_until(&self, timeout: Duration, until: Until) -> Result<TxId> {
        let deadline = clock::uptime() + timeout;
        loop {
            let (lineage, txid) = self.cut_now(deadline, until)?;
            self.ring();
            self.wait_shipped(txid, deadline)?;
            // Where another history was found in the replica meanwhile, that TXID is not this one.
            self.tracker.refresh();
            let same = self.tracker.position().is_some_and(|p| p.lineage == lineage && !p.wal.is_given_up());
            match self.tracker.sync_state() {
                Continuity::Kept if same => {
                    self.caught_up();
                    return Ok(txid);
                }
                _ if self.link.is_stopped() => return if same { Ok(txid) } else { Err(ended()) },
                _ => {}
            }
        }
    }

    /// Cuts what is committed, for replicas of which the own one may be away: the TXID that holds it. Errors as [`Watched::sync`].
    pub(super) fn cut_for_sync(&self, deadline: Duration) -> Result<TxId> {
        let (_, txid) = self.cut_now(deadline, Until::Deadline)?;
        self.ring();
        Ok(txid)
    }

    /// Seals and cuts everything committed so far and returns the TXID that holds it. Where the database must be read
    /// anew for that, waits only as long as somebody can.
    fn cut_now(&self, deadline: Duration, until: Until) -> Result<(Lineage, TxId)> {
        let tries = self.joined.tries();
        loop {
            match self.tracker.sync_state() {
                Continuity::Kept => match self.seal_and_cut(until) {
                    Ok(place) => return Ok(place),
                    Err(SealError::Again) => {}
                    Err(SealError::OutOfSync(_)) => {
                        if self.role() == Role::Shipper {
                            self.look_again();
                            self.call();
                        }
                    }
                    Err(SealError::Failed(e)) if e.is_shortage() && clock::uptime() < deadline => {}
                    Err(SealError::Failed(e)) => return Err(e),
                },
                _ => self.call(),
            }
            self.may_go_on(deadline, until, tries)?;
            clock::sleep(POLL);
        }
    }

    /// Errors when waiting for the cut makes no sense any more, with why.
    fn may_go_on(&self, deadline: Duration, until: Until, tries_before: u64) -> Result<()> {
        if let Part::Failed { why, .. } = self.part() {
            return Err(Error::new(Kind::Bug, why));
        }
        if self.link.is_stopped() {
            return Err(ended());
        }
        if let Some(why) = self.why_not_captured() {
            return Err(Error::config(why));
        }
        if let Some(why) = self.overflow() {
            return Err(Error::new(Kind::Timeout, why));
        }
        if until == Until::Closed && self.handles.is_barred() && self.tracker.sync_state() != Continuity::Kept
        {
            return Err(Error::new(Kind::Retry, "it must be read anew, when it is opened again"));
        }
        let is_over = clock::uptime() >= deadline;
        let is_joining = self.role() == Role::Joining;
        let status = self.link.status();
        // (What kept it from joining before the call may have passed: the call has it tried.)
        if let State::Fenced | State::Failed = status.state
            && (!is_joining || is_over || self.joined.tries() > tries_before)
            && let Some((kind, e)) = &status.last_error
        {
            return Err(Error::new(*kind, format!("replication is {}: {e}", status.state.as_str())));
        }
        if !is_over {
            return Ok(());
        }
        let db = self.path().display();
        let why = if is_joining {
            let why = status.last_error.map_or("it has not answered yet".to_string(), |(_, e)| e);
            format!("{db}: the replica {} is not reached: {why}", self.replica())
        } else if !self.handles.can_read() && self.tracker.wal_goes_on() {
            format!(
                "{db}: the WAL may hold commits of others, and this process has the database not open to read them"
            )
        } else {
            format!("{db} is still being read for a snapshot ({})", self.state().as_str())
        };
        Err(Error::new(Kind::Timeout, why))
    }

    pub(super) fn seal_and_cut(&self, until: Until) -> std::result::Result<(Lineage, TxId), SealError> {
        // What was committed past the WAL that we know is not in any frame: only a resync finds it.
        let header = self.header();
        // (At the last close others may be in the middle of something, and what they commit is theirs to ship.)
        let unseen = header.is_none() && until == Until::Deadline && self.tracker.wal_goes_on();
        if unseen || self.is_changed_past_us(header.as_ref()) {
            return Err(SealError::OutOfSync("the database was changed past walrust".into()));
        }
        match header {
            Some(h) if h.max_frame > 0 => drop(self.tracker.seal(&h, Packing::Lz4, clock::now())?),
            Some(_) => {}
            None => self.tracker.seal_noticed(clock::now())?,
        }
        if let Some(p) = self.tracker.cut()? {
            lock(&self.waiting).cut(p.txid);
        }
        let p = self.tracker.position().ok_or_else(|| SealError::OutOfSync("no position".into()))?;
        if p.wal.is_given_up() {
            return Err(SealError::OutOfSync("another process found that it must be read anew".into()));
        }
        Ok((p.lineage, p.txid))
    }

    /// Waits until `txid` is durable, whoever ships it. Errors as [`Watched::sync`] does.
    pub(super) fn wait_shipped(&self, txid: TxId, deadline: Duration) -> Result<()> {
        match self.role() {
            Role::Shipper => self.link.wait_for(txid, deadline.saturating_sub(clock::uptime())),
            Role::Joining | Role::Standby => self.wait_for_shipper(txid, deadline),
        }
    }

    /// What another process ships, that process's record in the spool tells: it is looked at.
    fn wait_for_shipper(&self, txid: TxId, deadline: Duration) -> Result<()> {
        loop {
            if self.shipped()?.is_some_and(|s| s.txid >= txid) {
                return Ok(());
            }
            let left = deadline.saturating_sub(clock::uptime());
            let role = self.role();
            if role == Role::Shipper {
                return self.link.wait_for(txid, left);
            }
            if self.link.is_stopped() {
                return Err(ended());
            }
            if let Some(why) = self.ships_elsewhere() {
                return Err(Error::config(why));
            }
            if left.is_zero() {
                let why = match (role, self.link.status().last_error) {
                    (Role::Joining, Some((_, e))) => e,
                    (Role::Joining, None) => "the replica has not answered yet".to_string(),
                    _ => "another process of this machine ships".to_string(),
                };
                return Err(Error::new(
                    Kind::Timeout,
                    format!("TXID {txid} is not in the replica yet; {why}"),
                ));
            }
            self.call();
            clock::sleep(POLL);
        }
    }
}
