//! What is known of one database's uploads at one moment.

use super::duty::Duties;
use crate::base::{Kind, Timestamp, TxId, clock};
use crate::spool::Growth;
use crate::store::{BreakerState, Conditions, Store};
use std::time::Duration;

/// What `walrust_status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Commits leave as they come.
    Streaming,
    /// There is a backlog.
    CatchingUp,
    /// The database is being read whole.
    Snapshotting,
    /// The circuit breaker is open.
    Paused,
    /// Another process of this machine ships.
    Standby,
    /// Another machine owns the replica.
    Fenced,
    /// Stopped by an error that waiting does not cure.
    Failed,
}

impl State {
    /// As `walrust_status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Streaming => "streaming",
            State::CatchingUp => "catching up",
            State::Snapshotting => "snapshotting",
            State::Paused => "paused",
            State::Standby => "standby",
            State::Fenced => "fenced",
            State::Failed => "failed",
        }
    }
}

/// What keeps a second machine from writing to the same replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// The store has not answered yet.
    #[default]
    Unknown,
    /// The lease, and objects that are only ever created.
    Lease,
    /// Objects that are only ever created: the store does not hold to conditional updates, so there is no lease.
    CreateOnly,
    /// Objects that are only ever created, as this writer may do nothing else: it holds no lease (`append_only`).
    AppendOnly,
    /// A look before each upload: the store holds to no conditions.
    Nothing,
}

impl Protection {
    /// What a store of these conditions allows.
    pub fn of(store: &Store, conditions: Conditions) -> Protection {
        match conditions {
            Conditions::CreateOnly if store.is_append_only() => Protection::AppendOnly,
            Conditions::Unknown => Protection::Unknown,
            Conditions::Held => Protection::Lease,
            Conditions::CreateOnly => Protection::CreateOnly,
            Conditions::Ignored => Protection::Nothing,
        }
    }

    /// As `walrust_status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protection::Unknown => "unknown",
            Protection::Lease => "lease",
            Protection::CreateOnly => "create-only",
            Protection::AppendOnly => "append-only",
            Protection::Nothing => "none",
        }
    }
}

/// How old something was at some moment. The clock of the wall, which may jump, is asked once; from then on the age grows by the
/// clock that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    age: Duration,
    at: Duration,
}

impl Status {
    /// The newest snapshot in the replica was put there at `time`. (Only one that is new is compared with the wall's clock.)
    pub(super) fn note_snapshot_time(&mut self, time: Option<Timestamp>) {
        if self.snapshot_time != time {
            self.snapshot_time = time;
            self.snapshot_aged = time.map(|t| Aged::new(t, clock::now(), clock::uptime()));
        }
    }
}

impl Aged {
    /// Of what was `made` at that time, when it is `wall` and `uptime`. What is said to be made in the future, while the clock was
    /// wrong, counts as just made.
    pub fn new(made: Timestamp, wall: Timestamp, uptime: Duration) -> Aged {
        Aged { age: wall.since(made), at: uptime }
    }

    /// How old it is at that uptime.
    pub fn by(self, uptime: Duration) -> Duration {
        self.age + uptime.saturating_sub(self.at)
    }
}

/// A copy of what is known at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Set by the shipper; the session overlays standby and snapshotting.
    pub state: State,
    /// Everything up to here is durable in the replica.
    pub replicated: TxId,
    /// The newest snapshot there.
    pub snapshot: TxId,
    /// When that was put there, as far as it is known.
    pub snapshot_time: Option<Timestamp>,
    /// The same, for what is due by the age of it.
    pub snapshot_aged: Option<Aged>,
    /// How much has come since the newest snapshot.
    pub change: Growth,
    /// When the last upload was acknowledged.
    pub last_upload: Option<Timestamp>,
    /// The newest error of the stream not followed by a success.
    pub last_error: Option<(Kind, String)>,
    /// How many tries of the stream have failed.
    pub failures: u64,
    /// The breaker's state.
    pub breaker: BreakerState,
    /// How the duties beside the stream fare.
    pub duties: Duties,
    /// What keeps two machines apart there.
    pub protection: Protection,
    /// How many files are in the replica and not in its manifest yet.
    pub unnamed: usize,
    /// An upload of the stream is under way.
    pub uploading: bool,
    /// Uptime at which the stream's last upload started.
    pub last_start: Option<Duration>,
}

impl Default for Status {
    fn default() -> Status {
        Status {
            state: State::CatchingUp,
            replicated: TxId::ZERO,
            snapshot: TxId::ZERO,
            snapshot_time: None,
            snapshot_aged: None,
            change: Growth::default(),
            last_upload: None,
            last_error: None,
            failures: 0,
            breaker: BreakerState::Closed,
            duties: Duties::default(),
            protection: Protection::Unknown,
            unnamed: 0,
            uploading: false,
            last_start: None,
        }
    }
}

impl Status {
    /// What is wrong, the stream's trouble first: one line.
    pub fn trouble(&self) -> Option<String> {
        self.last_error.as_ref().map(|(_, e)| e.clone()).or_else(|| self.duties.trouble())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;
    use crate::ship::duty::{Course, Duty};
    use crate::store::Retry;

    #[test]
    fn an_age_grows_by_the_clock_that_never_jumps() {
        let s = Duration::from_secs;
        let wall = |s: i64| Timestamp(s * 1000);
        let made = Aged::new(wall(1000), wall(1600), s(5));
        assert_eq!((made.by(s(5)), made.by(s(65)), made.by(s(1))), (s(600), s(660), s(600)));
        assert_eq!(Aged::new(wall(9000), wall(1600), s(5)).by(s(6)), s(1), "of a future that was none");
    }

    #[test]
    fn a_store_allows_what_it_holds_to() {
        let all = [Conditions::Unknown, Conditions::Held, Conditions::CreateOnly, Conditions::Ignored];
        let store = Store::in_memory();
        let of = all.map(|c| Protection::of(&store, c).as_str());
        assert_eq!(of, ["unknown", "lease", "create-only", "none"]);
        let of = all.map(|c| Protection::of(&store.clone().append_only(), c).as_str());
        assert_eq!(of, ["unknown", "lease", "append-only", "none"]);
    }

    #[test]
    fn the_streams_trouble_is_told_first_and_a_dutys_is_not_the_streams() {
        let mut s = Status::default();
        let e = Error::new(Kind::Denied, "no merges");
        s.duties.set(Duty::Merge, Course::Well.failed(&e, Duration::ZERO, &Retry::BRIEF, 0));
        assert_eq!(s.last_error, None);
        assert_eq!(s.trouble().as_deref(), Some("merge: no merges"));
        s.last_error = Some((Kind::Retry, "no store".into()));
        assert_eq!(s.trouble().as_deref(), Some("no store"));
    }
}
