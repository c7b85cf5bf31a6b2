//! The app's last close of a database in this process: the process may be about to end, so what is pending gets a moment to leave.

use super::lag::is_shipped;
use super::phase::Role;
use super::reread;
use super::sync::Until;
use super::watched::Watched;
use crate::base::{Error, Result, beside, clock};
use crate::capture::Continuity;
use crate::ship::State;
use crate::sqlite::{SqlConnection, SqlMode};
use std::path::Path;
use std::time::Duration;

/// How long a last close waits for the replica.
const CLOSE_PATIENCE: Duration = super::patience::WHOLE;
/// How long after it was asked a store on the network that has not said a word is waited for: one that is away holds no close up for
/// longer, and none but one a minute ([`super::joined::Joined::is_worth_a_close`]). (Not to wait in a program that has more databases, and goes on, was
/// tried: its threads' first questions to the store then come all at once, and take descriptors that the program needs.)
const LIFE_PATIENCE: Duration = Duration::from_millis(250);
/// The same where it has been reached from this spool before.
const KNOWN_LIFE_PATIENCE: Duration = Duration::from_secs(1);
/// The same at the end of the process, all databases together.
const LIFE_PATIENCE_AT_EXIT: Duration = Duration::from_millis(1500);
/// How long what a last close left in the spool may lie there before it is forced to disk (I-SPOOL-2). Closes that come one after the
/// other are served together.
pub(super) const SYNC_AFTER: Duration = Duration::from_millis(500);
/// How long the lease of a database that is closed is kept: a program may open it again for the next request.
pub(super) const LEASE_KEPT: Duration = Duration::from_secs(10);
/// How long a last close waits until the lease is given back.
const LEASE_PATIENCE: Duration = Duration::from_secs(1);

impl Watched {
    /// The last connection closes soon after the watch began: gives it the time it needs to be in the replica, if that answers. (A
    /// process that ends without `exit()` has no other moment. A database of which nothing is known is read by the close itself then,
    /// see [`super::reread::at_close`].)
    pub(super) fn finish_beginning(&self) {
        if self.role() != Role::Joining {
            return;
        }
        let patience = self.settings().sync_timeout.min(CLOSE_PATIENCE);
        let has_shipped = || self.shipped().is_ok_and(|s| s.is_some_and(|s| s.txid.0 > 0));
        let life = match self.may_be_away() {
            false => None,
            true if has_shipped() => Some(KNOWN_LIFE_PATIENCE),
            true => Some(LIFE_PATIENCE),
        };
        if !self.closes.may_wait() || !self.joined.is_worth_a_close(life.is_some()) {
            return;
        }
        self.join_soon();
        let end = clock::uptime() + patience;
        let joined = match life {
            Some(life) => self.joined.wait_unless_silent(life, patience),
            None => self.joined.wait(patience),
        };
        let done = joined.and_then(|_| self.sync(end.saturating_sub(clock::uptime())));
        if let Err(e) = done {
            log::warn!("walrust: {}: closed before it was in the replica: {e}", self.path().display());
        }
        if self.handles.count_mapped() == 0 {
            drop(remove_unused_wal(self.path()));
        }
    }

    /// SQLite has closed the database file for good, or left WAL mode: what is sealed is to be forced to disk soon.
    pub(super) fn sync_soon(&self) {
        self.unsynced.goes_on(clock::uptime());
        self.call_at_leisure();
    }

    /// Forces to disk what a last close has left `after` ago or longer. A failure is tried again.
    pub(super) fn sync_closed(&self, after: Duration) {
        let now = clock::uptime();
        if self.unsynced.elapsed(now).is_none_or(|since| since < after) {
            return;
        }
        self.unsynced.ends();
        match self.spool.make_durable() {
            Err(e) if !e.is_missing() => {
                let level = if e.is_retry() { log::Level::Info } else { log::Level::Warn };
                log::log!(
                    level,
                    "walrust: {}: what the close left is not on disk yet: {e}",
                    self.path().display()
                );
                self.unsynced.begins(now);
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// The last connection of this process closed: what is pending leaves, if the replica is known to answer, and the lease is given
    /// back. In a program that opens and closes it again and again, neither is waited for ([`super::patience`]).
    pub(super) fn drain_at_close(&self) {
        if !self.is_to_drain() || !self.closes.may_wait() {
            return;
        }
        let patience = self.settings().sync_timeout.min(CLOSE_PATIENCE);
        let waited = self.services.patience.spend(patience, |patience| {
            let end = clock::uptime() + patience;
            self.sync_until(patience, Until::Closed)?;
            self.drain_mirrors(end);
            self.link.give_lease_back(LEASE_PATIENCE.min(end.saturating_sub(clock::uptime())));
            Ok::<_, Error>(())
        });
        self.closes.waited();
        if let Some(Err(e)) = waited {
            log::warn!("walrust: {}: not all is in the replica at close: {e}", self.path().display());
        }
    }

    /// The sealer's look: the lease of a database that the app has had closed for a while is given back.
    pub(super) fn give_back_if_closed(&self) {
        if !self.handles.is_closed() {
            return self.closed.ends();
        }
        let is_long = self.closed.goes_on(clock::uptime()) >= LEASE_KEPT;
        if is_long
            && self.role() == Role::Shipper
            && is_shipped(self.tracker.position().as_ref(), self.replicated())
        {
            self.link.give_lease_back(Duration::ZERO);
        }
    }

    /// Whether the replica is on a network. (A directory is never away: it answers when this machine comes to it.)
    fn may_be_away(&self) -> bool {
        !self.replica().starts_with("file:")
    }

    /// Whether the replica is known to answer.
    fn is_answered(&self) -> bool {
        let status = self.link.status();
        status.last_error.is_none() && matches!(status.state, State::Streaming | State::CatchingUp)
    }

    /// Whether what is pending can leave in a moment: it ships, and has not to be read anew first, or is soon read.
    fn is_to_drain(&self) -> bool {
        let is_soon_read = || std::fs::metadata(self.path()).is_ok_and(|m| m.len() <= reread::LARGEST_HELD);
        let is_ready = self.tracker.sync_state() == Continuity::Kept || is_soon_read();
        self.role() == Role::Shipper && self.is_answered() && is_ready
    }

    /// The process ends: what is committed is put into the queue.
    pub(super) fn cut_at_exit(&self) {
        if self.is_to_drain() {
            drop(self.seal_and_cut(Until::Deadline));
            self.ring();
        }
    }

    /// The process ends, and has begun to at uptime `begun`: waits until `end` for what is pending, as the last close of a connection
    /// would.
    pub(super) fn drain_at_exit(&self, begun: Duration, end: Duration) {
        let left_until =
            |end: Duration| end.saturating_sub(clock::uptime()).min(self.settings().sync_timeout);
        let left = || left_until(end);
        let done = if self.role() == Role::Joining {
            self.join_soon();
            let life = if self.may_be_away() { left_until(begun + LIFE_PATIENCE_AT_EXIT) } else { left() };
            let joined = self.joined.wait_while_answered(life, left());
            joined.and_then(|_| self.sync_until(left(), Until::Deadline))
        } else if self.is_to_drain() {
            self.sync_until(left(), Until::Deadline)
        } else {
            return;
        };
        self.drain_mirrors(end);
        if let Err(e) = done {
            log::warn!("walrust: {}: not all is in the replica at exit: {e}", self.path().display());
        }
    }
}

/// Our reading may have made a WAL after the program's last close removed its own: ours removes it as that did. A WAL that holds
/// frames stays: those are another process's, and must not go into the file past us.
fn remove_unused_wal(path: &Path) -> Result<()> {
    let wal = beside(path, "-wal");
    if std::fs::metadata(wal).map_or(true, |m| m.len() > crate::wal::WAL_HEADER_LEN as u64) {
        return Ok(());
    }
    let own = SqlConnection::open(path, SqlMode::Owner)?;
    own.give_up_at_once();
    own.query_value("PRAGMA schema_version").map(drop)
}
