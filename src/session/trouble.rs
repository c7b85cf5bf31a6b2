//! What keeps commits of one database from being sealed, or the database from being read anew.

use crate::base::event::EventKind;
use crate::base::{Error, clock, lock};
use std::sync::Mutex;
use std::time::Duration;

/// How long sealing may fail before that is the database's state.
const SPOOL_PATIENCE: Duration = Duration::from_secs(1);

const NOT_WAL: &str =
    "the database has left WAL mode, so what is committed is not replicated: set PRAGMA journal_mode=WAL";

/// One trouble at a time: each ends before another can begin, for none of them lets anything be sealed or read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Trouble {
    #[default]
    None,
    /// The app has left WAL mode: what it commits is not followed.
    LeftWalMode,
    /// `spool_limit` was reached: nothing is sealed until what the spool holds has left, and then all begins anew.
    SpoolFull,
    /// What was committed cannot be sealed into the spool.
    Spool {
        why: String,
        /// Uptime of the first failure.
        since: Duration,
        cause: Cause,
    },
}

/// What lies behind a failure of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The process is short of something, such as descriptors: nothing is wrong with the spool.
    Shortage,
    /// The spool itself; whether that was told to the webhooks.
    Spool { told: bool },
}

/// The troubles of one database.
#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<Trouble>);

impl Trouble {
    /// What follows when sealing fails with `e` at uptime `now`, and the event to tell.
    fn spool_fails(&self, e: &Error, now: Duration) -> (Trouble, Option<String>) {
        let why = format!("spool: {e}");
        let (since, before) = match self {
            Trouble::Spool { since, cause, .. } => (*since, Some(*cause)),
            _ => (now, None),
        };
        if e.is_shortage() {
            return (Trouble::Spool { why, since, cause: Cause::Shortage }, None);
        }
        let (since, told) = match before {
            Some(Cause::Spool { told }) => (since, told),
            _ => (now, false),
        };
        let tells = !told && now.saturating_sub(since) >= SPOOL_PATIENCE;
        let event = tells.then(|| why.clone());
        (Trouble::Spool { why, since, cause: Cause::Spool { told: told || tells } }, event)
    }
}

impl Troubles {
    /// The one there is.
    pub(super) fn get(&self) -> Trouble {
        lock(&self.0).clone()
    }

    /// What was committed cannot be sealed. It stays in the WAL. Returns what the webhooks are to be told.
    pub(super) fn spool_fails(&self, e: &Error) -> Option<(EventKind, String)> {
        let mut at = lock(&self.0);
        let (next, event) = at.spool_fails(e, clock::uptime());
        *at = next;
        event.map(|why| (EventKind::UploadError, why))
    }

    /// All that was committed is sealed.
    pub(super) fn spool_works(&self) {
        let mut at = lock(&self.0);
        if matches!(*at, Trouble::Spool { .. }) {
            *at = Trouble::None;
        }
    }

    /// Whether sealing has failed, and is tried again.
    pub(super) fn has_spool_failed(&self) -> bool {
        matches!(*lock(&self.0), Trouble::Spool { .. })
    }

    /// `spool_limit` was reached.
    pub(super) fn spool_is_full(&self) {
        *lock(&self.0) = Trouble::SpoolFull;
    }

    /// What the spool held has left.
    pub(super) fn spool_has_room(&self) {
        let mut at = lock(&self.0);
        if *at == Trouble::SpoolFull {
            *at = Trouble::None;
        }
    }

    /// The database could not be read, or could: whether the app has left WAL mode. Returns what the webhooks are to be told, once.
    pub(super) fn note_journal_mode(&self, has_left_wal: bool) -> Option<(EventKind, String)> {
        let mut at = lock(&self.0);
        let was = *at == Trouble::LeftWalMode;
        match (was, has_left_wal) {
            (false, true) => {
                *at = Trouble::LeftWalMode;
                Some((EventKind::HistoryGap, NOT_WAL.to_string()))
            }
            (true, false) => {
                *at = Trouble::None;
                None
            }
            _ => None,
        }
    }

    /// Why nothing is captured until somebody does something about it. `is_in_rollback_mode` is asked for only where that matters.
    pub(super) fn not_captured(&self, is_in_rollback_mode: impl FnOnce() -> bool) -> Option<String> {
        match self.get() {
            Trouble::LeftWalMode => is_in_rollback_mode().then(|| NOT_WAL.to_string()),
            Trouble::Spool { why, since, cause: Cause::Spool { .. } }
                if clock::uptime().saturating_sub(since) >= SPOOL_PATIENCE =>
            {
                Some(why)
            }
            _ => None,
        }
    }

    /// What sealing met last, however short ago.
    pub(super) fn spool_error(&self) -> Option<String> {
        match self.get() {
            Trouble::Spool { why, .. } => Some(why),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    #[test]
    fn a_spool_that_fails_for_a_second_is_told_once() {
        let ms = Duration::from_millis;
        let broken = Error::new(Kind::Io, "broken");
        let (t, event) = Trouble::None.spool_fails(&broken, ms(5_000));
        assert_eq!(event, None, "it may pass");
        let (t, event) = t.spool_fails(&broken, ms(5_999));
        assert_eq!(event, None);
        let (t, event) = t.spool_fails(&broken, ms(6_000));
        assert_eq!(event.as_deref(), Some("spool: broken"));
        let (t, event) = t.spool_fails(&broken, ms(9_000));
        assert_eq!(event, None, "once");
        assert_eq!(
            t,
            Trouble::Spool {
                why: "spool: broken".into(),
                since: ms(5_000),
                cause: Cause::Spool { told: true }
            }
        );
    }

    #[test]
    fn troubles_end_as_they_began() {
        let t = Troubles::default();
        assert!(t.note_journal_mode(true).is_some() && t.note_journal_mode(true).is_none(), "told once");
        t.spool_works();
        t.spool_has_room();
        assert_eq!(t.get(), Trouble::LeftWalMode, "neither is its end");
        assert_eq!(t.not_captured(|| true).as_deref(), Some(NOT_WAL));
        assert_eq!(t.not_captured(|| false), None, "it is back already");
        assert!(t.note_journal_mode(false).is_none());
        t.spool_is_full();
        t.spool_works();
        assert_eq!(t.get(), Trouble::SpoolFull);
        t.spool_has_room();
        assert_eq!(t.get(), Trouble::None);
        assert!(t.spool_fails(&Error::new(Kind::Io, "broken")).is_none());
        assert!(t.has_spool_failed() && t.not_captured(|| true).is_none(), "it may pass");
        t.spool_works();
        assert_eq!(t.get(), Trouble::None);
    }
}
