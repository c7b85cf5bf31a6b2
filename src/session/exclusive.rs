//! A connection of this process that has the database for itself (`locking_mode=EXCLUSIVE`, a last close, a change of journal mode):
//! its commits are followed on its own thread, and what is missing is read there, for nobody else can.

use super::access::Held;
use super::changed::CHANGED;
use super::reread;
use super::watched::Watched;
use crate::base::clock;
use crate::capture::Continuity;
use crate::wal::IndexHeader;
use std::sync::Arc;
use std::time::Duration;

/// Between two readings on the thread of a connection that has the database for itself: what failed rarely passes in milliseconds.
const BETWEEN_READINGS: Duration = Duration::from_secs(1);

impl Watched {
    /// A connection of this process has got the database for itself, with its wal-index at `h`; `file` is the number of the file that
    /// it has open. Its thread.
    pub(super) fn begins_exclusive(self: &Arc<Self>, h: &IndexHeader, file: u64) {
        if !self.misses_nothing() {
            let why = match self.tracker.sync_state() {
                Continuity::Lost(why) => why.to_string(),
                _ => CHANGED.to_string(),
            };
            reread::while_held(self, Held::new(&self.handles, *h, file), &why);
        }
        self.tracker.exclusive_begins(*h);
    }

    /// It has committed, up to `h`.
    pub(super) fn commits_exclusive(self: &Arc<Self>, h: IndexHeader, file: u64) {
        let noticed = self.tracker.exclusive_commit(h);
        let now = clock::uptime();
        // Not with each commit again.
        if let Continuity::Lost(why) = self.tracker.sync_state()
            && self.held_failed.elapsed(now).is_none_or(|t| t >= BETWEEN_READINGS)
        {
            if reread::while_held(self, Held::new(&self.handles, h, file), &why.to_string()) {
                self.held_failed.ends();
            } else {
                self.held_failed.begins(now);
            }
            self.tracker.exclusive_begins(h);
        }
        self.noticed(noticed);
    }

    /// A connection has committed without a WAL, or with a wal-index that it keeps to itself. (Nobody is woken: there is nothing
    /// to read it through before the next read, or close.)
    pub(super) fn commits_unseen(&self) {
        if self.tracker.sync_state() == Continuity::Kept {
            let why = "a connection commits outside of WAL mode, or with locking_mode=EXCLUSIVE set before its first read";
            log::warn!("walrust: {}: {why}: it is not followed meanwhile", self.path().display());
            self.tracker.lose(why);
        }
    }

    /// The last connection closes, or leaves WAL mode: all is in the database file, and nobody else can write. What is missing
    /// is read now.
    pub(super) fn closes(self: &Arc<Self>, file: u64) {
        reread::at_close(self, Held::new(&self.handles, IndexHeader::EMPTY, file));
    }
}
