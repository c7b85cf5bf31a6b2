//! The states of a watched database in this process: every state there is, every way from one to another, and what the sealer does in
//! each. Pure: nothing here reads a file, a clock or a lock. What people are told of a state is in [`super::told`].
//!
//! ```text
//!                       ┌───────────── the store says whose replica it is ─────────────┐
//!    watch ──► JOINING ─┤                                                              ▼
//!     │          ▲      └─ cannot be read here ─► STANDBY            a place is known: FOLLOWING ◄─────┐
//!     │          │ the shipping process ended ─────┘  ▲               continuity lost:  │              │ the place
//!     │          └────────────────────────────────────┼── not open here ── BLOCKED ◄────┤              │ is found
//!     └─ another process ships ───────────────────────┘                     │           ▼              │
//!                                          ends, leaves, is shipped ────────┴────► REREADING ──────────┘
//!    any ── a panic of ours ──► FAILED ── after a rest ──► watched again          any ── unwatch ──► ENDED
//! ```
//!
//! What is stored is the [`Part`] and capture's continuity; the [`Phase`] follows from these and from what stands in the way.

use crate::capture::Continuity;
use crate::ltx::Packing;
use std::time::Duration;

/// Between two looks at things that no hook tells.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// A database that nobody has open here is looked at half as often after each so many looks that found nothing, down to a 16th.
const VAIN_LOOKS: u32 = 8;
/// Of many closed databases, one is looked at in such a time at the most: a look takes a tenth of a millisecond.
const EACH_CLOSED: Duration = Duration::from_millis(25);
/// Of many idle databases that are open, one is looked at whole in such a time at the most, ...
const EACH_OPEN: Duration = Duration::from_millis(10);
/// ... but none more rarely than that.
const LONGEST_REST_OF_OPEN: Duration = Duration::from_secs(100);
/// The header of one of many is glanced at in such a time at the most: a glance takes a microsecond.
const EACH_GLANCE: Duration = Duration::from_micros(500);
/// Unsealed frames at which sealing does not wait for the upload slot: SQLite wants to reset at 1,000.
const PRESSURE_FRAMES: u32 = 256;
/// Pieces of one TXID at which they are folded into one.
const MANY_PIECES: u32 = 24;
/// How long a standby leaves a spool that is gone to the process that ships.
const SPOOL_HEAD_START: Duration = Duration::from_secs(3);
/// How long a standby leaves commits to the process that ships.
const HELP_AFTER: Duration = Duration::from_secs(1);
/// How long after an internal error the database is watched again.
const FAILED_REST: Duration = Duration::from_secs(30);

pub(super) const SPOOL_GONE: &str = "the spool directory is gone";
const SPOOL_REPLACED: &str = "the spool directory was replaced by another one";
const GIVEN_UP: &str = "the place in the WAL was given up";

/// What this process does among those of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has the right to ship, and finds out whose replica it is. Commits are followed meanwhile if the spool knows the place.
    Joining,
    /// It ships.
    Shipper,
    /// Another process of this machine ships.
    Standby,
}

/// What this process may do with what it finds in the replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Claim {
    /// Whose that is, is found out.
    #[default]
    None,
    /// This process shipped it and has lost the spool that says so: it may begin anew over that.
    Own,
}

/// The part of this process in one database: what was decided, and stays until something else is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It has the ship lock; a thread finds out whose replica it is.
    Joining(Claim),
    /// It has the ship lock, and ships.
    Shipping,
    /// Another process has the ship lock. `refused`: why this one would not ship if that ended.
    Standby { claim: Claim, refused: Option<String> },
    /// An internal error ended it. Until it is watched again, its role stays what it was: it may hold the ship lock.
    Failed { was: Role, why: String },
}

impl Part {
    pub(super) fn role(&self) -> Role {
        match self {
            Part::Joining(_) => Role::Joining,
            Part::Shipping => Role::Shipper,
            Part::Standby { .. } => Role::Standby,
            Part::Failed { was, .. } => *was,
        }
    }

    pub(super) fn claim(&self) -> Claim {
        match self {
            Part::Joining(claim) | Part::Standby { claim, .. } => *claim,
            Part::Shipping => Claim::Own,
            Part::Failed { .. } => Claim::None,
        }
    }

    /// The ship lock has become free, and is this process's now.
    pub(super) fn takes_over(&self) -> Part {
        Part::Joining(self.claim())
    }

    /// It is known whose replica it is. (An internal error of the first reading stays what it is.)
    pub(super) fn joined(&self) -> Part {
        match self {
            Part::Failed { why, .. } => Part::Failed { was: Role::Shipper, why: why.clone() },
            _ => Part::Shipping,
        }
    }

    /// It gives the right to ship away.
    pub(super) fn steps_back(&self) -> Part {
        Part::Standby { claim: self.claim(), refused: None }
    }

    /// An internal error.
    pub(super) fn fails(&self, why: String) -> Part {
        Part::Failed { was: self.role(), why }
    }
}

/// What stands in the way of reading a database whose continuity was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A connection of this process has it for itself.
    Exclusive,
    /// The app has it not open here, and what is sealed has not left yet.
    NotOpenAndBacklog,
    /// The app has it not open here.
    NotOpen,
    /// `spool_limit` was reached: the history that the spool holds leaves first.
    BacklogFirst,
}

/// Facts about a database whose continuity was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) is_exclusive: bool,
    pub(super) can_read: bool,
    pub(super) has_backlog: bool,
    pub(super) is_full: bool,
}

/// What stands in the way, if anything does.
pub(super) fn obstacle(way: Way) -> Option<Obstacle> {
    match way {
        Way { is_exclusive: true, .. } => Some(Obstacle::Exclusive),
        Way { can_read: false, has_backlog: true, .. } => Some(Obstacle::NotOpenAndBacklog),
        Way { can_read: false, .. } => Some(Obstacle::NotOpen),
        Way { is_full: true, has_backlog: true, .. } => Some(Obstacle::BacklogFirst),
        _ => None,
    }
}

/// What a database is in this process: exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Whose replica it is, is being found out.
    Joining,
    /// Another process ships.
    Standby,
    /// Every commit is followed from the position, and shipped.
    Following,
    /// Continuity was lost (why, if it is not being read yet), and nothing stands in the way: it is, or is about to be, read whole.
    Rereading(Option<String>),
    /// Continuity was lost, and something stands in the way.
    Blocked(Obstacle),
    /// An internal error ended it.
    Failed,
    /// It is not watched any more.
    Ended,
}

/// Which phase it is. `obstacle` is asked for only when continuity was lost.
pub(super) fn phase(
    part: &Part,
    is_ended: bool,
    continuity: Continuity,
    obstacle: impl FnOnce() -> Option<Obstacle>,
) -> Phase {
    match (part, continuity) {
        _ if is_ended => Phase::Ended,
        (Part::Failed { .. }, _) => Phase::Failed,
        (Part::Joining(_), _) => Phase::Joining,
        (Part::Standby { .. }, _) => Phase::Standby,
        (Part::Shipping, Continuity::Kept) => Phase::Following,
        (Part::Shipping, Continuity::Idle | Continuity::Resyncing) => Phase::Rereading(None),
        (Part::Shipping, Continuity::Lost(why)) => match obstacle() {
            Some(obstacle) => Phase::Blocked(obstacle),
            None => Phase::Rereading(Some(why.to_string())),
        },
    }
}

/// The spool's directory, as a look finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SpoolSeen {
    #[default]
    There,
    /// It has been gone for so long.
    Gone(Duration),
    /// Another process has made a new one.
    Replaced,
}

/// Where the position stands to the database, as a look finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum PlaceSeen {
    #[default]
    GoesOn,
    /// Another watch of this file, which has ended, gave it up.
    GivenUp,
    /// The database was changed past its WAL.
    Changed(String),
}

/// One look at one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is time to look at what no hook tells; the fields below it are looked at only then.
    pub(super) is_due: bool,
    pub(super) spool: SpoolSeen,
    pub(super) place: PlaceSeen,
    /// For how long an internal error has ended it.
    pub(super) failed_for: Duration,
    /// A hook has told something, or the upload slot is open for what waits.
    pub(super) has_news: bool,
}

/// What the sealer does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// Have a thread find out whose replica it is, unless one does or has just failed to.
    Join,
    /// See whether the process that ships has ended, follow its position, and help it out.
    StandBy,
    /// Begin anew as its own successor.
    Restart(&'static str),
    /// The same, as what it was: an internal error lies behind.
    Recover,
    /// Have the shipper go on with what is sealed.
    Ship,
    /// Leave it to a process that has it open.
    HandOver,
    /// Have a thread read it.
    Reread(String),
    /// Say that continuity was lost.
    Lose(String),
    /// Seal and cut what is due.
    Seal,
}

/// The decision.
pub(super) fn decide(phase: Phase, part: &Part, seen: Seen) -> Step {
    let watches_spool =
        matches!(phase, Phase::Standby | Phase::Following | Phase::Rereading(_) | Phase::Blocked(_));
    if seen.is_due && watches_spool {
        match seen.spool {
            SpoolSeen::There => {}
            SpoolSeen::Replaced => return Step::Restart(SPOOL_REPLACED),
            // What is in the replica is the shipper's own: it goes first.
            SpoolSeen::Gone(lasted) if part.claim() == Claim::Own || lasted >= SPOOL_HEAD_START => {
                return Step::Restart(SPOOL_GONE);
            }
            SpoolSeen::Gone(_) => return Step::Rest,
        }
    }
    match phase {
        Phase::Ended => Step::Rest,
        Phase::Failed if seen.failed_for >= FAILED_REST => Step::Recover,
        Phase::Failed => Step::Rest,
        Phase::Joining => Step::Join,
        Phase::Standby if seen.is_due => Step::StandBy,
        Phase::Standby => Step::Rest,
        Phase::Rereading(None) => Step::Rest,
        Phase::Rereading(Some(why)) => Step::Reread(why),
        Phase::Blocked(Obstacle::NotOpen) => Step::HandOver,
        Phase::Blocked(Obstacle::Exclusive | Obstacle::NotOpenAndBacklog | Obstacle::BacklogFirst) => {
            Step::Ship
        }
        Phase::Following if !seen.is_due && !seen.has_news => Step::Rest,
        Phase::Following => match seen.place {
            PlaceSeen::GoesOn => Step::Seal,
            PlaceSeen::GivenUp => Step::Lose(GIVEN_UP.to_string()),
            PlaceSeen::Changed(why) => Step::Lose(why),
        },
    }
}

/// What there is to seal and cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unsealed {
    /// Committed frames of the WAL that are in no piece yet.
    pub(super) frames: u32,
    /// Pieces of the next TXID.
    pub(super) pieces: u32,
    /// A file waits for the shipper.
    pub(super) has_pending: bool,
    /// The next upload may start.
    pub(super) is_slot_open: bool,
    /// A reset or checkpoint is about to want everything sealed.
    pub(super) is_hurried: bool,
    /// Sealing has failed, and is tried again.
    pub(super) has_failed: bool,
}

/// What is done about it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SealPlan {
    /// Seal the frames, in this form.
    pub(super) seal: Option<Packing>,
    pub(super) then: Then,
}

/// What follows the sealing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Make a TXID of the pieces.
    Cut,
    /// Fold the pieces into one, and wait for the slot.
    Fold,
    /// Wait for the upload slot.
    Wait,
    Nothing,
}

impl SealPlan {
    /// Whether it adds to a backlog, for which there must be room.
    pub(super) fn needs_room(&self) -> bool {
        self.seal.is_some() && self.then != Then::Cut
    }
}

/// When to seal and cut: a file for each upload, and pieces in between only where somebody waits for the WAL.
pub(super) fn plan(u: Unsealed) -> SealPlan {
    let has_any = u.frames > 0 || u.pieces > 0;
    let cuts = has_any && !u.has_pending && u.is_slot_open;
    let seals = u.frames > 0 && (cuts || u.is_hurried || u.has_failed || u.frames >= PRESSURE_FRAMES);
    let packing = if cuts && u.pieces == 0 { Packing::Lz4 } else { Packing::Literal };
    let then = match has_any {
        _ if cuts => Then::Cut,
        true if u.pieces >= MANY_PIECES => Then::Fold,
        true => Then::Wait,
        false => Then::Nothing,
    };
    SealPlan { seal: seals.then_some(packing), then }
}

/// Whether a standby cuts what has waited for so long itself: the process that ships may have no connection open, and then sees no
/// commit.
pub(super) fn helps_out(waited: Duration, interval: Duration) -> bool {
    waited >= HELP_AFTER.max(interval)
}

/// How long a closed database is left alone after so many looks in vain, one of so many that are watched.
pub(super) fn rest_of_closed(vain_looks: u32, watched: usize) -> Duration {
    let times = vain_looks / VAIN_LOOKS;
    let turn = match times {
        0..4 => Duration::ZERO,
        _ => EACH_CLOSED * u32::try_from(watched).unwrap_or(u32::MAX),
    };
    (LOOK * (1 << times.min(4))).max(turn)
}

/// How long a database that is open, one of so many that are watched, is left alone after so many looks in vain, while a glance at the
/// header of its wal-index shows what it showed then. A few are looked at each time.
pub(super) fn rest_of_open(vain_looks: u32, watched: usize) -> Duration {
    if vain_looks < VAIN_LOOKS {
        return LOOK;
    }
    (EACH_OPEN * u32::try_from(watched).unwrap_or(u32::MAX)).clamp(LOOK, LONGEST_REST_OF_OPEN)
}

/// Between two glances at the header of one of so many, by which a commit of a program without the extension is noticed.
pub(super) fn glance_after(watched: usize) -> Duration {
    (EACH_GLANCE * u32::try_from(watched).unwrap_or(u32::MAX)).max(LOOK)
}

/// The uptime at which a database that is left alone for `rest` from `now` on is looked at again. Those that rest wait for the same
/// moments, four a second, so that the sealer wakes for many at once.
pub(super) fn next_visit(now: Duration, rest: Duration) -> Duration {
    let at = now + rest;
    if rest < LOOK {
        return at;
    }
    LOOK * u32::try_from(at.as_nanos() / LOOK.as_nanos()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_rest_are_looked_at_together() {
        let ms = Duration::from_millis;
        for (now, rest, at) in [
            (1_000, 2, 1_002),
            (1_000, 249, 1_249),
            (1_000, 250, 1_250),
            (1_001, 250, 1_250),
            (1_249, 250, 1_250),
            (1_249, 500, 1_500),
            (1_249, 4_000, 5_000),
        ] {
            assert_eq!(next_visit(ms(now), ms(rest)), ms(at), "{rest} ms from {now} ms on");
        }
    }
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn standby() -> Part {
        Part::Standby { claim: Claim::None, refused: None }
    }

    fn lost() -> Continuity {
        Continuity::Lost("why".to_string().into())
    }

    #[test]
    fn which_phase_it_is() {
        let failed = Part::Failed { was: Role::Shipper, why: "a panic".to_string() };
        let kept = || Continuity::Kept;
        let table = [
            (Part::Shipping, true, kept(), None, Phase::Ended),
            (failed.clone(), true, lost(), None, Phase::Ended),
            (failed, false, Continuity::Idle, None, Phase::Failed),
            (Part::Joining(Claim::None), false, kept(), None, Phase::Joining),
            (Part::Joining(Claim::Own), false, lost(), None, Phase::Joining),
            (standby(), false, kept(), None, Phase::Standby),
            (standby(), false, lost(), Some(Obstacle::NotOpen), Phase::Standby),
            (Part::Shipping, false, kept(), None, Phase::Following),
            (Part::Shipping, false, Continuity::Idle, None, Phase::Rereading(None)),
            (Part::Shipping, false, Continuity::Resyncing, None, Phase::Rereading(None)),
            (Part::Shipping, false, lost(), None, Phase::Rereading(Some("why".to_string()))),
            (Part::Shipping, false, lost(), Some(Obstacle::Exclusive), Phase::Blocked(Obstacle::Exclusive)),
        ];
        for (part, is_ended, continuity, obstacle, is) in table {
            let what = format!("{part:?} {continuity:?}");
            assert_eq!(phase(&part, is_ended, continuity, || obstacle), is, "{what}");
        }
    }

    #[test]
    fn what_stands_in_the_way_of_reading() {
        let free = Way { can_read: true, ..Way::default() };
        let table = [
            (free, None),
            (Way { has_backlog: true, ..free }, None),
            (Way { is_full: true, ..free }, None),
            (Way { is_full: true, has_backlog: true, ..free }, Some(Obstacle::BacklogFirst)),
            (Way { is_exclusive: true, ..free }, Some(Obstacle::Exclusive)),
            (Way { is_exclusive: true, can_read: false, ..free }, Some(Obstacle::Exclusive)),
            (Way { can_read: false, ..free }, Some(Obstacle::NotOpen)),
            (Way { can_read: false, has_backlog: true, ..free }, Some(Obstacle::NotOpenAndBacklog)),
        ];
        for (way, found) in table {
            assert_eq!(obstacle(way), found, "{way:?}");
        }
    }

    #[test]
    fn what_the_sealer_does_in_each_phase() {
        let due = Seen { is_due: true, ..Seen::default() };
        let news = Seen { has_news: true, ..Seen::default() };
        let quiet = Seen::default();
        let table = [
            (Phase::Joining, &quiet, Step::Join),
            (Phase::Joining, &due, Step::Join),
            (Phase::Standby, &quiet, Step::Rest),
            (Phase::Standby, &news, Step::Rest),
            (Phase::Standby, &due, Step::StandBy),
            (Phase::Following, &quiet, Step::Rest),
            (Phase::Following, &news, Step::Seal),
            (Phase::Following, &due, Step::Seal),
            (Phase::Rereading(None), &due, Step::Rest),
            (Phase::Rereading(Some("x".into())), &quiet, Step::Reread("x".into())),
            (Phase::Blocked(Obstacle::Exclusive), &due, Step::Ship),
            (Phase::Blocked(Obstacle::BacklogFirst), &quiet, Step::Ship),
            (Phase::Blocked(Obstacle::NotOpenAndBacklog), &quiet, Step::Ship),
            (Phase::Blocked(Obstacle::NotOpen), &quiet, Step::HandOver),
            (Phase::Failed, &due, Step::Rest),
            (Phase::Failed, &Seen { failed_for: FAILED_REST, ..Seen::default() }, Step::Recover),
            (Phase::Ended, &due, Step::Rest),
        ];
        for (phase, seen, step) in table {
            assert_eq!(decide(phase.clone(), &Part::Shipping, seen.clone()), step, "{phase:?} {seen:?}");
        }
        let given_up = Seen { place: PlaceSeen::GivenUp, ..due.clone() };
        assert_eq!(decide(Phase::Following, &Part::Shipping, given_up), Step::Lose(GIVEN_UP.into()));
        let changed = Seen { place: PlaceSeen::Changed("how".into()), ..due };
        assert_eq!(decide(Phase::Following, &Part::Shipping, changed), Step::Lose("how".into()));
    }

    #[test]
    fn a_spool_that_is_gone_is_left_to_its_owner_first() {
        let gone = |lasted| Seen { is_due: true, spool: SpoolSeen::Gone(lasted), ..Seen::default() };
        let owner = Part::Standby { claim: Claim::Own, refused: None };
        let table = [
            (Phase::Following, Part::Shipping, gone(Duration::ZERO), Step::Restart(SPOOL_GONE)),
            (Phase::Standby, owner, gone(Duration::ZERO), Step::Restart(SPOOL_GONE)),
            (Phase::Standby, standby(), gone(SECOND), Step::Rest),
            (Phase::Standby, standby(), gone(SPOOL_HEAD_START), Step::Restart(SPOOL_GONE)),
            (Phase::Joining, Part::Joining(Claim::Own), gone(SECOND), Step::Join),
        ];
        for (phase, part, seen, step) in table {
            assert_eq!(decide(phase, &part, seen.clone()), step, "{part:?} {seen:?}");
        }
        let replaced = Seen { is_due: true, spool: SpoolSeen::Replaced, ..Seen::default() };
        assert_eq!(decide(Phase::Standby, &standby(), replaced.clone()), Step::Restart(SPOOL_REPLACED));
        let not_looked = Seen { is_due: false, ..replaced };
        assert_eq!(decide(Phase::Standby, &standby(), not_looked), Step::Rest);
    }

    #[test]
    fn parts_keep_what_they_know() {
        let own = Part::Joining(Claim::Own);
        assert_eq!(own.steps_back(), Part::Standby { claim: Claim::Own, refused: None });
        assert_eq!(own.steps_back().takes_over(), own);
        let refused = Part::Standby { claim: Claim::None, refused: Some("another's spool".into()) };
        assert_eq!(refused.takes_over(), Part::Joining(Claim::None));
        let failed = Part::Shipping.fails("a panic".into());
        assert_eq!((failed.role(), failed.claim()), (Role::Shipper, Claim::None));
        assert_eq!(standby().fails("a panic".into()).role(), Role::Standby);
        assert_eq!((Part::Shipping.claim(), standby().claim()), (Claim::Own, Claim::None));
        assert_eq!(own.joined(), Part::Shipping);
        let failed = own.fails("a panic".into()).joined();
        assert_eq!(failed, Part::Failed { was: Role::Shipper, why: "a panic".into() });
    }

    #[test]
    fn when_to_seal_and_cut() {
        use Packing::{Literal, Lz4};
        let open = Unsealed { is_slot_open: true, ..Unsealed::default() };
        let shut = Unsealed::default();
        let table = [
            (open, None, Then::Nothing),
            (shut, None, Then::Nothing),
            (Unsealed { frames: 1, ..open }, Some(Lz4), Then::Cut),
            (Unsealed { frames: 1, pieces: 1, ..open }, Some(Literal), Then::Cut),
            (Unsealed { pieces: 1, ..open }, None, Then::Cut),
            (Unsealed { frames: 1, ..shut }, None, Then::Wait),
            (Unsealed { frames: PRESSURE_FRAMES - 1, ..shut }, None, Then::Wait),
            (Unsealed { frames: PRESSURE_FRAMES, ..shut }, Some(Literal), Then::Wait),
            (Unsealed { frames: 1, is_hurried: true, ..shut }, Some(Literal), Then::Wait),
            (Unsealed { frames: 1, has_failed: true, ..shut }, Some(Literal), Then::Wait),
            (Unsealed { frames: 1, has_pending: true, ..open }, None, Then::Wait),
            (Unsealed { pieces: MANY_PIECES - 1, ..shut }, None, Then::Wait),
            (Unsealed { pieces: MANY_PIECES, ..shut }, None, Then::Fold),
            (Unsealed { pieces: MANY_PIECES, ..open }, None, Then::Cut),
        ];
        for (unsealed, seal, then) in table {
            assert_eq!(plan(unsealed), SealPlan { seal, then }, "{unsealed:?}");
        }
        assert!(!plan(Unsealed { frames: 1, ..open }).needs_room(), "it leaves at once");
        assert!(plan(Unsealed { frames: 1, is_hurried: true, ..shut }).needs_room());
        assert!(!plan(Unsealed { pieces: 1, ..shut }).needs_room(), "nothing is added");
    }

    proptest! {
        /// What was committed is never forgotten: something follows, now or when the slot opens, and nothing is cut while a file
        /// waits or the slot is shut.
        #[test]
        fn what_is_committed_is_sealed_in_the_end(
            frames in 0..2_000u32, pieces in 0..30u32, has_pending: bool, is_slot_open: bool, is_hurried: bool, has_failed: bool
        ) {
            let p = plan(Unsealed { frames, pieces, has_pending, is_slot_open, is_hurried, has_failed });
            prop_assert_eq!(p.then == Then::Nothing, frames == 0 && pieces == 0);
            prop_assert!(p.then != Then::Cut || is_slot_open && !has_pending);
            prop_assert!(p.seal.is_none() || frames > 0);
            // (What is cut holds all that was committed.)
            prop_assert!(p.then != Then::Cut || frames == 0 || p.seal.is_some());
            prop_assert!(!is_hurried || frames == 0 || p.seal.is_some());
        }

        /// No state is a dead end: in each, something is done, or somebody else was asked.
        #[test]
        fn a_due_look_rests_only_where_another_is_at_work(is_exclusive: bool, can_read: bool, has_backlog: bool, is_full: bool) {
            let way = Way { is_exclusive, can_read, has_backlog, is_full };
            for continuity in [Continuity::Kept, lost()] {
                let phase = phase(&Part::Shipping, false, continuity, || obstacle(way));
                let step = decide(phase, &Part::Shipping, Seen { is_due: true, ..Seen::default() });
                prop_assert_ne!(step, Step::Rest);
            }
        }
    }

    #[test]
    fn a_standby_helps_after_a_while() {
        for (waited, interval, helps) in [(0, 0, false), (1, 0, true), (1, 5, false), (5, 5, true)] {
            assert_eq!(helps_out(waited * SECOND, interval * SECOND), helps, "{waited} s of {interval} s");
        }
    }

    #[test]
    fn a_closed_database_is_looked_at_ever_more_rarely() {
        let table = [(0, 250), (7, 250), (8, 500), (16, 1000), (31, 2000), (32, 4000), (u32::MAX, 4000)];
        for (vain, ms) in table {
            assert_eq!(rest_of_closed(vain, 1), Duration::from_millis(ms), "after {vain} looks");
        }
        for (watched, s) in [(0, 4), (160, 4), (1_000, 25), (5_000, 125)] {
            assert_eq!(rest_of_closed(u32::MAX, watched), Duration::from_secs(s), "one of {watched}");
        }
        assert_eq!(rest_of_closed(31, 5_000), 2 * SECOND, "just closed");
    }

    #[test]
    fn an_idle_database_among_many_is_glanced_at() {
        let ms = Duration::from_millis;
        for (vain, watched, rest) in [
            (0, 5_000, 250),
            (7, 5_000, 250),
            (8, 1, 250),
            (8, 25, 250),
            (8, 300, 3_000),
            (8, 1_000, 10_000),
            (8, 20_000, 100_000),
        ] {
            assert_eq!(rest_of_open(vain, watched), ms(rest), "{vain} looks, one of {watched}");
        }
        for (watched, after) in [(1, 250), (500, 250), (4_000, 2_000), (10_000, 5_000)] {
            assert_eq!(glance_after(watched), ms(after), "one of {watched}");
        }
    }
}
