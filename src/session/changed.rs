//! Whether the database was changed past the WAL that is followed: another file in its place, its bytes overwritten, writes in
//! rollback mode, a checkpoint by somebody who has not loaded walrust.

use super::access::is_in_rollback_mode;
use super::bell::Note;
use super::phase::Role;
use super::watched::Watched;
use crate::base::event::EventKind;
use crate::base::{Result, clock, lock};
use crate::capture::Continuity;
use crate::spool::{FileStamp, Handoff};
use crate::wal::IndexHeader;
use serde_json::json;
use std::time::Duration;

pub(super) const REPLACED: &str = "the database file was replaced or deleted, and the connections of this process have the old one: open it again";
pub(super) const CHANGED: &str = "the database was changed by something that had not loaded walrust";

impl Watched {
    /// Changes of the file that no WAL tells, if there are any: how.
    pub(super) fn changed_outside(&self) -> Option<String> {
        if self.handles.note_file() {
            return Some("the database file was replaced by another one".to_string());
        }
        if self.is_written_past_wal() {
            return Some("something wrote to the database file past its WAL".to_string());
        }
        // Nobody has it open through us, or nobody has written to its WAL since: then the file stands still.
        let still = self.handles.header().is_none_or(|h| h.max_frame == 0);
        (still && self.changed_since_close().is_some()).then(|| {
            "the database was changed outside of WAL mode, or by a program that has not loaded walrust"
                .to_string()
        })
    }

    /// What the database file looks like, if nobody uses its WAL and it is another file than the last close of a process with walrust
    /// left behind. (Such a close writes the file, then the position, then removes the WAL: what is seen between two looks at one and
    /// the same position is of one moment.)
    pub(super) fn changed_since_close(&self) -> Option<FileStamp> {
        let closed = || self.spool.position().ok().flatten().map(|p| p.handoff);
        let before = closed();
        let Some(Handoff::Closed(stamp)) = before else { return None };
        let now = FileStamp::of(self.path()).ok()?;
        let changed = now != stamp && !self.tracker.wal_path().exists() && closed() == before;
        changed.then_some(now)
    }

    /// Whether the database file was written to since the last look, and not by a checkpoint (a copy of another over it). A
    /// checkpoint tells before its first page that it begins (`nBackfillAttempted`) and after its last that it is done
    /// (`nBackfill`, which within a generation only grows): <https://sqlite.org/walformat.html>, "The WAL-Index Header".
    fn is_written_past_wal(&self) -> bool {
        // (A wal-index that no writer has used yet is like the next one made anew; of those the last close's stamp tells.)
        let settled = |h: &IndexHeader| {
            h.backfilled == h.backfill_attempted
                && (h.salt.salt1, h.salt.salt2) != (0, 0)
                && !self.handles.is_exclusive()
        };
        let place = || Some(self.handles.header().filter(settled)?).map(|h| (h.salt, h.backfilled));
        // (Both before the file and after it: else a checkpoint may have come and gone, or have begun, in between.)
        let before = place();
        // (Its change time is also that of its name and rights.)
        let file = FileStamp::of(self.path()).ok().map(|s| FileStamp { ctime: 0, ..s });
        let now = before.filter(|_| before == place()).zip(file);
        let last = std::mem::replace(&mut *lock(&self.at_rest), now);
        now.zip(last).is_some_and(|((place, file), (then, file_then))| place == then && file != file_then)
    }

    /// Whether the database was changed past the WAL that we know, under `header` if there is a wal-index.
    pub(super) fn is_changed_past_us(&self, header: Option<&IndexHeader>) -> bool {
        match header {
            Some(h) => h.max_frame == 0 && !self.tracker.is_known(h),
            // Without a place in it, no WAL is known.
            None => {
                self.tracker.position().is_some_and(|p| p.wal.is_given_up())
                    || self.tracker.is_changed_since_close()
            }
        }
    }

    /// Whether every commit up to now is known to be in the replica, the spool, or the WAL that is followed. Finds out what
    /// the sealer would find at its next look.
    pub(super) fn misses_nothing(&self) -> bool {
        // (A resync that is under way has noted its file, and what replaces that is told at the next look.)
        if self.tracker.sync_state() == Continuity::Kept
            && let Some(why) = self.changed_outside()
        {
            self.tracker.lose(why);
        }
        let header = self.header();
        self.tracker.sync_state() == Continuity::Kept
            && !self.is_changed_past_us(header.as_ref())
            && header.is_none_or(|h| self.tracker.is_known(&h))
    }

    /// Waits until nothing is missed of what was committed before. Whether that came to be.
    pub(super) fn wait_until_whole(&self, patience: Duration) -> bool {
        let deadline = clock::uptime() + patience;
        while !self.misses_nothing() {
            if clock::uptime() >= deadline {
                return false;
            }
            self.call();
            clock::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Whether it must be read anew, and this process has it not open.
    pub(super) fn is_unreadable(&self) -> bool {
        let lost = || self.spool.position().is_ok_and(|p| p.is_none_or(|p| p.wal.is_given_up()));
        // (Nothing of this replica is known here: it is begun with by reading the database.)
        let unknown = || matches!((self.shipped(), self.identified()), (Ok(None), Ok(None)));
        !self.handles.can_read() && (lost() || unknown())
    }

    /// Whether this process does not ship it, and somebody has to read it anew: it would be this process's turn if nobody ships.
    pub(super) fn must_be_read_by_somebody(&self) -> bool {
        self.role() == Role::Standby
            && self.tracker.sync_state() != Continuity::Kept
            && self.spool.position().is_ok_and(|p| p.is_none_or(|p| p.wal.is_given_up()))
    }

    /// Why nothing is captured until the app does something about it.
    pub(super) fn why_not_captured(&self) -> Option<String> {
        // (Where another process has the new file and ships it, its place is known.)
        let others = || self.role() == Role::Standby && !self.is_unreadable();
        let replaced = || self.handles.has_only_replaced() && !others();
        self.troubles
            .not_captured(|| is_in_rollback_mode(&self.handles))
            .or_else(|| replaced().then(|| REPLACED.to_string()))
    }

    /// A standby that has no place, or has lost it, takes the one of the process that ships, if there is one by now.
    pub(super) fn follow_as_standby(&self) {
        if self.role() == Role::Standby
            && matches!(self.tracker.sync_state(), Continuity::Idle | Continuity::Lost(_))
            && let Ok(Some(p)) = self.spool.position()
            && !p.wal.is_given_up()
        {
            self.tracker.resume(p);
        }
    }

    /// The database could not be read: whether that is because the app has left WAL mode. That is told once.
    pub(super) fn note_journal_mode(&self, has_left_wal: bool) {
        if let Some((event, why)) = self.troubles.note_journal_mode(has_left_wal) {
            log::warn!("walrust: {}: {why}", self.path().display());
            self.tell(event, why.clone(), json!({"reason": why}));
        }
    }

    /// What was committed cannot be sealed. It stays in the WAL; what lasts is told.
    pub(super) fn spool_fails(&self, e: &crate::base::Error) {
        if let Some((event, why)) = self.troubles.spool_fails(e) {
            self.tell(event, why, json!({}));
        }
    }

    /// The spool has grown to its limit: what it holds is a history to its end and will be shipped; what is committed
    /// from now on is not kept, so that neither spool nor WAL takes more of the app's disk.
    pub(super) fn give_up_backlog(&self) {
        if let Err(e) = self.tracker.cut() {
            log::warn!("walrust: {}: {e}", self.path().display());
        }
        self.troubles.spool_is_full();
        self.tracker.lose(format!(
            "the replica was away until spool_limit ({} bytes) was reached",
            self.settings().spool_limit.0
        ));
    }

    /// It is not the app's file any more that the connections of this process have, or nobody has it open: told as it is handed over.
    pub(super) fn tell_replaced(&self) {
        log::warn!("walrust: {}: {REPLACED}", self.path().display());
        self.tell(EventKind::HistoryGap, REPLACED.to_string(), json!({"reason": REPLACED}));
    }

    /// A commit came that nobody has called the sealer for.
    pub(super) fn look_again(&self) {
        self.news.leave(Note::Commit);
        self.call();
    }

    /// Errors when the spool cannot say what was shipped from here. `None`: it knows another replica, or none.
    pub(super) fn known(&self) -> Result<Option<crate::spool::Shipped>> {
        Ok(self.shipped()?.or(self.identified()?))
    }
}
