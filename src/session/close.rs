//! The app's last close of a database in this process: the process may be about to end, so what is pending gets a moment to leave.

use super::joined::Joined;
use super::phase::Role;
use super::sync::Until;
use super::watched::Watched;
use crate::base::{Result, clock};
use crate::ship::State;
use crate::sqlite::{SqlConnection, SqlMode};
use std::path::Path;
use std::time::Duration;

/// How long a last close waits for the replica.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a last close waits until the lease is given back.
const LEASE_PATIENCE: Duration = Duration::from_secs(1);

impl Watched {
    /// The last connection closes soon after the watch began: gives it the time it needs to be in the replica, if that answers.
    /// After the close nobody here could read the database.
    pub(super) fn finish_beginning(&self) {
        let is_beginning = self.role() == Role::Joining && self.joined.is_worth_a_close();
        if !is_beginning {
            return;
        }
        let patience = self.settings().sync_timeout.min(CLOSE_PATIENCE);
        let end = clock::uptime() + patience;
        self.join_soon();
        let done = self.joined.wait(patience).and_then(|_| self.sync(end.saturating_sub(clock::uptime())));
        if let Err(e) = done {
            if self.role() == Role::Joining {
                Joined::closed_in_vain();
            }
            log::warn!("walrust: {}: closed before it was in the replica: {e}", self.path().display());
        }
        if self.handles.count_mapped() == 0 {
            drop(remove_unused_wal(self.path()));
        }
    }

    /// The last connection of this process closed: what is pending leaves, if the replica is known to answer.
    pub(super) fn drain_at_close(&self) {
        if self.role() != Role::Shipper || self.job.job().is_some() {
            return;
        }
        let status = self.link.status();
        let healthy =
            status.last_error.is_none() && matches!(status.state, State::Streaming | State::CatchingUp);
        if !healthy {
            return;
        }
        let patience = self.settings().sync_timeout.min(CLOSE_PATIENCE);
        if let Err(e) = self.sync_until(patience, Until::Closed) {
            log::warn!("walrust: {}: not all is in the replica at close: {e}", self.path().display());
            return;
        }
        self.link.give_lease_back(LEASE_PATIENCE);
    }
}

/// Our reading may have made a WAL after the program's last close removed its own: ours removes it as that did. A WAL that holds
/// frames stays: those are another process's, and must not go into the file past us.
fn remove_unused_wal(path: &Path) -> Result<()> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    if std::fs::metadata(Path::new(&wal)).map_or(true, |m| m.len() > crate::wal::WAL_HEADER_LEN as u64) {
        return Ok(());
    }
    let own = SqlConnection::open(path, SqlMode::Owner)?;
    own.give_up_at_once();
    own.query_value("PRAGMA schema_version").map(drop)
}
