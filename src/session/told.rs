//! From what a database is to what people are told of it: the one place where a state gets its words. `walrust_status`, `/health`, the
//! metrics and the errors of `walrust_sync` all ask here. Pure.
//!
//! | phase | told as |
//! |---|---|
//! | joining | `catching up`; `fenced` or `failed` when the last try was refused, with why |
//! | standby | `standby`; `catching up` while it must be read anew and nobody who could ships it; `failed` while nothing can be captured, or this process would be refused as the next shipper |
//! | following | `streaming` when the replica has all that was committed, else `catching up`; the shipper's `paused`, `fenced`, `failed` |
//! | rereading | `snapshotting` |
//! | blocked | `snapshotting`, with what stands in the way; `failed` while the spool is full and the replica does not answer |
//! | failed | `failed`, with the internal error |

use super::phase::{Part, Role};
use crate::capture::Continuity;
use crate::metrics::HealthStatus;
use crate::ship::State;
use std::time::Duration;

/// A lag beyond this is unhealthy, if the database's own interval is not longer.
const LARGE_LAG: Duration = Duration::from_secs(60);
/// Why a process that has closed the database does not ship it.
pub(super) const UNREADABLE: &str = "the database must be read anew, and is not open in this process";

/// What is known of a database at one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) part: Part,
    pub(super) continuity: Continuity,
    /// The shipper's own word of itself, and its newest error not followed by a success.
    pub(super) shipper: State,
    pub(super) shipper_error: Option<String>,
    /// Why the database could not be read whole.
    pub(super) reading_error: Option<String>,
    /// A thread of ours reads the database whole.
    pub(super) is_reading: bool,
    /// A connection has the database for itself.
    pub(super) is_exclusive: bool,
    /// Why nothing is captured until the app, or who runs it, does something about it.
    pub(super) not_captured: Option<String>,
    /// The spool is full, and the replica does not answer.
    pub(super) overflow: Option<String>,
    /// Another process ships to another replica.
    pub(super) elsewhere: Option<String>,
    /// The replica has all that this process knows to be committed.
    pub(super) all_there: bool,
    /// The database, or the spool, was changed past us, and that is about to be noticed.
    pub(super) is_changed: bool,
    /// What sealing met, in the sealer and on a thread of the app.
    pub(super) spool_error: Option<String>,
    pub(super) seal_error: Option<String>,
    /// It must be read anew, and this process has it not open.
    pub(super) is_unreadable: bool,
    /// No process of this machine has the right to ship.
    pub(super) nobody_ships: bool,
    /// What is wrong with a duty beside the stream: merges, snapshots, retention, the lease.
    pub(super) duties: Option<String>,
    /// What validation found, or kept it from being done.
    pub(super) finding: Option<String>,
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) state: State,
    /// What is wrong, the most important first.
    pub(super) error: Option<String>,
}

/// From state to words.
pub(super) fn tell(f: &Facts) -> Told {
    Told { state: state(f), error: error(f) }
}

/// What a state means, in one sentence, for somebody who sees its name for the first time.
pub(super) fn sentence(state: State) -> &'static str {
    match state {
        State::Streaming => "The replica has every commit, and new ones leave as they come.",
        State::CatchingUp => "There are commits that the replica does not have yet; they are on their way.",
        State::Snapshotting => "The database is being read whole, and a full copy goes to the replica.",
        State::Paused => {
            "The store failed several times in a row: uploads pause for a moment and go on by themselves."
        }
        State::Standby => "Another process of this machine uploads; this one takes over when that one ends.",
        State::Fenced => {
            "Another machine owns the replica: nothing more leaves from here until somebody decides."
        }
        State::Failed => "Nothing is replicated until what the error says is put right.",
    }
}

/// The same of a file that is kept up to date from a replica.
pub(super) fn sentence_of_copy(state: State) -> &'static str {
    match state {
        State::Streaming => "This copy shows the newest state that the replica is known to hold.",
        State::CatchingUp => "This copy is behind its replica and is being brought up to date.",
        State::Snapshotting => "This copy is being rebuilt from a full copy in the replica.",
        State::Paused | State::Standby => "This copy is not brought up to date at the moment.",
        State::Fenced | State::Failed => {
            "This copy is not brought up to date until what the error says is put right."
        }
    }
}

/// Whether a followed file is well.
pub(super) fn health_of_copy(state: State) -> HealthStatus {
    match state {
        State::Streaming | State::CatchingUp | State::Snapshotting | State::Standby => HealthStatus::Healthy,
        State::Paused => HealthStatus::Degraded,
        State::Fenced | State::Failed => HealthStatus::Unhealthy,
    }
}

/// Whether a configured database that is not watched yet is well.
pub(super) fn health_of_unwatched(state: State) -> HealthStatus {
    match state {
        State::Failed => HealthStatus::Unhealthy,
        _ => HealthStatus::Degraded,
    }
}

fn state(f: &Facts) -> State {
    let by_part = match &f.part {
        Part::Failed { .. } | Part::Standby { refused: Some(_), .. } => return State::Failed,
        // (A backlog that nobody works at until the app opens the database.)
        Part::Standby { refused: None, .. } if f.is_unreadable && f.nobody_ships => State::CatchingUp,
        Part::Standby { refused: None, .. } => State::Standby,
        // (Whose replica it is, is not known: that all is there, neither.)
        Part::Joining(_) if f.shipper == State::Streaming => State::CatchingUp,
        Part::Joining(_) => f.shipper,
        Part::Shipping if f.overflow.is_some() => return State::Failed,
        Part::Shipping => match f.shipper {
            told @ (State::Fenced | State::Failed | State::Paused) => return told,
            _ if f.is_reading || f.continuity != Continuity::Kept => State::Snapshotting,
            told => told,
        },
    };
    match by_part {
        State::Fenced | State::Failed | State::Paused => by_part,
        _ if f.not_captured.is_some() => State::Failed,
        State::CatchingUp if f.part == Part::Shipping && f.all_there && !f.is_changed => State::Streaming,
        State::Streaming if f.is_changed => State::CatchingUp,
        other => other,
    }
}

fn error(f: &Facts) -> Option<String> {
    let by_part = match &f.part {
        Part::Failed { why, .. } | Part::Standby { refused: Some(why), .. } => Some(why.clone()),
        _ => None,
    };
    let lost = match &f.continuity {
        Continuity::Lost(why) if f.is_exclusive => Some(format!(
            "{why}; it cannot be read anew while a connection with locking_mode=EXCLUSIVE has it for itself"
        )),
        Continuity::Lost(why) => Some(why.to_string()),
        _ => None,
    };
    let unreadable = f.part.role() == Role::Standby && f.is_unreadable;
    [&f.elsewhere, &f.overflow, &f.not_captured, &f.shipper_error]
        .into_iter()
        .chain([&f.reading_error, &f.spool_error, &f.seal_error])
        .fold(by_part, |first, next| first.or_else(|| next.clone()))
        .or(lost)
        .or_else(|| unreadable.then(|| UNREADABLE.to_string()))
        .or_else(|| f.duties.clone())
        .or_else(|| f.finding.clone())
}

/// What the health page says of a state. `lag`: the age of the oldest commit that is not in the replica; `interval`: between uploads.
pub(super) fn health(told: &Told, elsewhere: bool, lag: Duration, interval: Duration) -> HealthStatus {
    let is_late = lag > LARGE_LAG.max(interval * 3);
    match told.state {
        State::Failed | State::Fenced | State::Paused => HealthStatus::Unhealthy,
        State::Standby if elsewhere => HealthStatus::Unhealthy,
        // (A first snapshot takes what it takes.)
        State::Snapshotting => HealthStatus::Healthy,
        State::Streaming | State::CatchingUp | State::Standby if is_late => HealthStatus::Unhealthy,
        State::Streaming | State::CatchingUp if told.error.is_some() => HealthStatus::Degraded,
        State::Streaming | State::CatchingUp | State::Standby => HealthStatus::Healthy,
    }
}

#[cfg(test)]
mod tests {
    use super::super::phase::Claim;
    use super::*;

    fn following() -> Facts {
        Facts {
            part: Part::Shipping,
            continuity: Continuity::Kept,
            shipper: State::CatchingUp,
            shipper_error: None,
            reading_error: None,
            is_reading: false,
            is_exclusive: false,
            not_captured: None,
            overflow: None,
            elsewhere: None,
            all_there: true,
            is_changed: false,
            spool_error: None,
            seal_error: None,
            is_unreadable: false,
            nobody_ships: false,
            duties: None,
            finding: None,
        }
    }

    fn standby() -> Facts {
        Facts { part: Part::Standby { claim: Claim::None, refused: None }, ..following() }
    }

    fn joining(shipper: State) -> Facts {
        Facts { part: Part::Joining(Claim::None), shipper, ..following() }
    }

    fn why(text: &str) -> Option<String> {
        Some(text.to_string())
    }

    #[test]
    fn a_state_for_every_phase() {
        let lost = Continuity::Lost("lost".to_string().into());
        let panic = Part::Shipping.fails("panic".into());
        let refused = Part::Standby { claim: Claim::None, refused: why("not its spool") };
        let table = [
            (following(), State::Streaming, None),
            (Facts { all_there: false, ..following() }, State::CatchingUp, None),
            (Facts { is_changed: true, ..following() }, State::CatchingUp, None),
            (Facts { shipper: State::Streaming, is_changed: true, ..following() }, State::CatchingUp, None),
            (Facts { is_reading: true, ..following() }, State::Snapshotting, None),
            (Facts { continuity: Continuity::Resyncing, ..following() }, State::Snapshotting, None),
            (Facts { continuity: lost.clone(), ..following() }, State::Snapshotting, why("lost")),
            (Facts { shipper: State::Paused, ..following() }, State::Paused, None),
            (
                Facts { shipper: State::Fenced, continuity: lost.clone(), ..following() },
                State::Fenced,
                why("lost"),
            ),
            (Facts { overflow: why("full"), ..following() }, State::Failed, why("full")),
            (Facts { not_captured: why("no WAL"), ..following() }, State::Failed, why("no WAL")),
            (
                Facts { not_captured: why("no WAL"), shipper: State::Paused, ..following() },
                State::Paused,
                why("no WAL"),
            ),
            (standby(), State::Standby, None),
            (Facts { shipper: State::Fenced, ..standby() }, State::Standby, None),
            (Facts { not_captured: why("replaced"), ..standby() }, State::Failed, why("replaced")),
            (Facts { is_unreadable: true, ..standby() }, State::Standby, why(UNREADABLE)),
            (
                Facts { is_unreadable: true, nobody_ships: true, ..standby() },
                State::CatchingUp,
                why(UNREADABLE),
            ),
            (Facts { nobody_ships: true, ..standby() }, State::Standby, None),
            (Facts { part: refused, ..following() }, State::Failed, why("not its spool")),
            (joining(State::CatchingUp), State::CatchingUp, None),
            (joining(State::Streaming), State::CatchingUp, None),
            (joining(State::Fenced), State::Fenced, None),
            (
                Facts { not_captured: why("no WAL"), ..joining(State::CatchingUp) },
                State::Failed,
                why("no WAL"),
            ),
            (Facts { part: panic, shipper: State::Streaming, ..following() }, State::Failed, why("panic")),
        ];
        for (facts, state, error) in table {
            assert_eq!(tell(&facts), Told { state, error }, "{facts:?}");
        }
    }

    #[test]
    fn the_most_important_error_comes_first() {
        let mut f = following();
        f.finding = why("validation");
        let expect = |f: &Facts, text: &str| assert_eq!(tell(f).error.as_deref(), Some(text));
        expect(&f, "validation");
        f.duties = why("merge");
        expect(&f, "merge");
        f.continuity = Continuity::Lost("lost".to_string().into());
        expect(&f, "lost");
        f.is_exclusive = true;
        let held =
            "lost; it cannot be read anew while a connection with locking_mode=EXCLUSIVE has it for itself";
        expect(&f, held);
        f.seal_error = why("seal");
        expect(&f, "seal");
        f.spool_error = why("spool");
        expect(&f, "spool");
        f.reading_error = why("reading");
        expect(&f, "reading");
        f.shipper_error = why("store");
        expect(&f, "store");
        f.not_captured = why("not captured");
        expect(&f, "not captured");
        f.overflow = why("overflow");
        expect(&f, "overflow");
        f.elsewhere = why("elsewhere");
        expect(&f, "elsewhere");
        f.part = Part::Shipping.fails("panic".into());
        expect(&f, "panic");
    }

    #[test]
    fn health_follows_the_state_and_the_lag() {
        use HealthStatus::{Degraded, Healthy, Unhealthy};
        let s = Duration::from_secs;
        let told = |state, error: Option<&str>| Told { state, error: error.map(str::to_string) };
        let table = [
            (told(State::Streaming, None), false, 0, 1, Healthy),
            (told(State::Streaming, Some("e")), false, 0, 1, Degraded),
            (told(State::CatchingUp, None), false, 60, 1, Healthy),
            (told(State::CatchingUp, None), false, 61, 1, Unhealthy),
            (told(State::CatchingUp, None), false, 61, 30, Healthy),
            (told(State::CatchingUp, None), false, 91, 30, Unhealthy),
            (told(State::Snapshotting, Some("e")), false, 900, 1, Healthy),
            (told(State::Standby, None), false, 0, 1, Healthy),
            (told(State::Standby, None), false, 61, 1, Unhealthy),
            (told(State::Standby, None), true, 0, 1, Unhealthy),
            (told(State::Paused, None), false, 0, 1, Unhealthy),
            (told(State::Fenced, None), false, 0, 1, Unhealthy),
            (told(State::Failed, None), false, 0, 1, Unhealthy),
        ];
        for (told, elsewhere, lag, interval, is) in table {
            assert_eq!(health(&told, elsewhere, s(lag), s(interval)), is, "{told:?} {lag} s");
        }
    }
    #[test]
    fn health_of_what_is_not_streamed_follows_the_state() {
        use HealthStatus::{Degraded, Healthy, Unhealthy};
        let table = [
            (State::Streaming, Healthy),
            (State::CatchingUp, Healthy),
            (State::Snapshotting, Healthy),
            (State::Standby, Healthy),
            (State::Paused, Degraded),
            (State::Fenced, Unhealthy),
            (State::Failed, Unhealthy),
        ];
        for (state, copy) in table {
            assert_eq!(health_of_copy(state), copy, "{state:?}");
            let waits = if state == State::Failed { Unhealthy } else { Degraded };
            assert_eq!(health_of_unwatched(state), waits, "{state:?}: nothing of it is in a replica");
        }
    }
}
