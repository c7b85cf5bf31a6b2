//! The lease object, and every decision about it. Pure; what was read and observed is handed in.
//!
//! `walrust/lease.json` names the holder, its session, and the life of the lease. The holder renews it at 5/12 of that life, by
//! conditional update only. One whose database is idle may rest on a heart instead ([`super::heart`]).
//!
//! # Rules
//!
//! * I-LEASE-1: another's lease has ended when it has stayed unchanged for its life on the clock of who looks. `ends`, a time on the
//!   holder's clock, decides nothing (older versions wrote and read nothing else): two machines' clocks are never compared.
//! * I-LEASE-2: who looks for the first time therefore waits for one life, unless the lease was given back, is its own spool's, or
//!   its holder is a process of this machine that provably is no more ([`Process::is_gone`]).
//! * I-LEASE-3: who takes the lease of a session that may not know yet leaves that one TXIDs of its own ([`ROOM`]).
//! * I-LEASE-4: a holder whose renewals fail goes on within the life of its lease; past that only while it has just read that the
//!   lease is still its own.
//!
//! The lease is the first of two guards. Create-only objects (I-SHIP-2) are the second: a holder that was frozen past the end of
//! its lease overwrites nothing.

use crate::base::{Error, Kind, Result, Timestamp, TxId, crash};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A lease's life: long enough to ride out a store's hiccup, short enough to wait for.
const LIFE: Duration = Duration::from_secs(60);
/// The longest life that is believed.
const LONGEST_LIFE_MS: u64 = 600_000;

/// TXIDs left to a writer that was evicted alive: until it next renews its lease it does not know, and what it still ships
/// must not bear the TXID of a state of ours. More than it can ship in that time.
const ROOM: u64 = 1 << 16;

/// How many leases of one process share a heart at least: for one alone it costs as much as its own renewals.
pub(super) const FEWEST_SHARERS: usize = 2;

/// The longest lease object: far longer than ours are.
const LONGEST: usize = 4096;
/// The longest host name and process id that is shown.
const LONGEST_NAME: usize = 200;

/// The life of a lease that is written now.
pub(super) fn life() -> Duration {
    crash::lease_life(LIFE)
}

/// A lease is renewed when this much of its life has passed: 25 seconds.
pub fn renew_after() -> Duration {
    life() * 5 / 12
}

/// A lease may rest when its database has been idle for that long: two lives.
pub fn rest_after() -> Duration {
    life() * 2
}

/// Between two tries of a renewal that fails, and how long a look at the lease is worth: 5 seconds.
pub(super) fn pause() -> Duration {
    life() / 12
}

/// Who we are.
#[derive(Clone, Debug)]
pub struct Me {
    /// Lives in the spool.
    pub writer: String,
    /// This process's try at shipping.
    pub session: String,
    /// For people: host name and process id.
    pub who: String,
}

/// A process, as the kernel tells it from all others.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Process {
    /// The id that the running kernel gave itself at boot.
    pub boot: String,
    /// The namespace in which `pid` counts.
    pub namespace: String,
    /// Process id.
    pub pid: u32,
    /// When it was started, in the kernel's ticks: a process id comes again.
    pub started: u64,
}

impl Process {
    /// This one. `None` where the system does not tell.
    pub fn this() -> Option<Process> {
        let pid = std::process::id();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_string();
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned();
        Some(Process { boot, namespace, pid, started: started(pid)? })
    }

    /// Whether this machine's kernel would know of the process, and does not. Everything else is no proof.
    pub fn is_gone(&self) -> bool {
        #[cfg(feature = "sim")]
        if crate::base::sim::world().is_some() {
            return false;
        }
        let Some(me) = Process::this() else { return false };
        let is_visible = me.boot == self.boot && me.namespace == self.namespace;
        is_visible && started(self.pid) != Some(self.started)
    }
}

/// When the process was started, if there is one: field 22 of `/proc/<pid>/stat` (proc(5)). A zombie has ended.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // (The name, in parentheses, may hold anything.)
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// The object's content.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct LeaseState {
    /// Writer id of the holder.
    pub writer: String,
    /// Its session.
    pub session: String,
    /// Host name and process id, for people.
    pub holder: String,
    /// When it ends by the holder's clock, milliseconds since 1970: for older versions. 0: it was given back.
    pub ends: i64,
    /// Above which TXID the holder begins, if it evicted another: that one, until it notices, goes on below.
    #[serde(default)]
    pub base: u64,
    /// The other writer that held it before, while it is not settled what becomes of what that one wrote: a holder that dies
    /// over that finds its own name in the lease, and must not take all for its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Another number at each renewal.
    #[serde(default)]
    pub beat: u64,
    /// Its life in milliseconds; 0, as older versions have it: a minute.
    #[serde(default)]
    pub life_ms: u64,
    /// The process that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Its holder may have put files whose entries in the manifest are still to come (I-MAN-4 of `replica`).
    #[serde(default)]
    pub ahead: bool,
    /// The heart that it rests on: it lives as long as that one beats (I-HEART-2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heart: Option<String>,
}

impl LeaseState {
    /// Reads the object. `None` for what is no lease; then nobody holds it. What people get to see of it is one short line,
    /// whatever it holds.
    pub fn decode(bytes: &[u8]) -> Option<LeaseState> {
        let state: LeaseState = (bytes.len() <= LONGEST).then(|| serde_json::from_slice(bytes).ok())??;
        let shown = |name: &str| -> String {
            name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_NAME).collect()
        };
        let after = state.after.as_deref().map(shown);
        let heart = state.heart.filter(|id| is_heart(id));
        Some(LeaseState { holder: shown(&state.holder), after, heart, ..state })
    }

    /// The object's bytes. Errors with [`Kind::Bug`].
    pub fn encode(&self) -> Result<bytes::Bytes> {
        serde_json::to_vec(self)
            .map(Into::into)
            .map_err(|e| Error::new(Kind::Bug, "cannot write the lease").because(e))
    }

    /// How long it has to stay unchanged to have ended.
    pub fn life(&self) -> Duration {
        match self.life_ms {
            0 => LIFE,
            ms => Duration::from_millis(ms.min(LONGEST_LIFE_MS)),
        }
    }

    fn was_given_back(&self) -> bool {
        self.ends == 0
    }
}

/// Whether `id` can be one of a heart: what another wrote into a lease leads nowhere else.
fn is_heart(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A lease as it was read, and what it lives by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The object.
    pub lease: LeaseState,
    /// The last beat of the heart that it rests on, if it rests on one that is there.
    pub beat: Option<u64>,
}

/// What one process has seen of one replica's lease.
#[derive(Debug, Default)]
pub(super) struct Sight {
    last: Option<(Observed, Duration)>,
}

impl Sight {
    /// Notes what was read at uptime `now`; how long it has been so.
    pub(super) fn look(&mut self, found: &Observed, now: Duration) -> Duration {
        match &self.last {
            Some((state, since)) if state == found && *since <= now => now - *since,
            _ => {
                self.last = Some((found.clone(), now));
                Duration::ZERO
            }
        }
    }
}

/// Whether a holder that is still alive gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    Respect,
    Evict,
}

/// What was found where the lease is to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) state: &'a LeaseState,
    /// How long it has been seen unchanged.
    pub(super) unchanged: Duration,
    /// Its process is provably no more.
    pub(super) is_gone: bool,
}

/// Whether the lease may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Yes: with that base, after that writer.
    Take { base: TxId, after: Option<String> },
    /// Another holds it, for that long if it is not renewed.
    Wait(Duration),
}

/// Decides whether `writer` may take the lease. `newest`: the newest TXID that is known of.
pub(super) fn claim(found: Option<Found<'_>>, writer: &str, rival: Rival, newest: TxId) -> Claim {
    let Some(Found { state, unchanged, is_gone }) = found else {
        return Claim::Take { base: TxId::ZERO, after: None };
    };
    if state.writer == writer {
        return Claim::Take { base: TxId(state.base), after: state.after.clone() };
    }
    let after = Some(state.holder.clone());
    if state.was_given_back() {
        return Claim::Take { base: TxId(state.base), after };
    }
    let left = state.life().saturating_sub(unchanged);
    if !left.is_zero() && !is_gone && rival == Rival::Respect {
        return Claim::Wait(left);
    }
    // It may be about to begin above a base of its own, where nothing of it is to be seen yet (I-LEASE-3).
    Claim::Take { base: TxId(newest.0.max(state.base).saturating_add(ROOM)), after }
}

/// What a holder finds whose renewal was refused by its condition, or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Its own session: an earlier renewal arrived after its answer was lost, or nothing has changed.
    Ours,
    /// Nothing: a bucket made anew, or the object was deleted.
    Nothing,
    /// Another's.
    Anothers(String),
    /// Something that is no lease.
    Unreadable,
}

/// Reads it so. `found`: the object's bytes, if there is one.
pub(super) fn seen(found: Option<&[u8]>, session: &str) -> Seen {
    match found.map(LeaseState::decode) {
        None => Seen::Nothing,
        Some(None) => Seen::Unreadable,
        Some(Some(s)) if s.session == session => Seen::Ours,
        Some(Some(s)) => Seen::Anothers(s.holder),
    }
}

/// Ages of a lease that is held, by the holder's own clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    /// Since the last renewal was sent.
    pub(super) renewed: Duration,
    /// Since the last renewal was tried.
    pub(super) tried: Duration,
    /// Since it was last read, or known otherwise, that the lease is still ours.
    pub(super) known: Duration,
}

/// What a holder does before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upkeep {
    /// Nothing.
    GoOn,
    /// Renew it.
    Renew,
    /// Read it: renewals fail, its life is over, and somebody may have taken it (I-LEASE-4).
    Look,
}

/// Decides that.
pub(super) fn upkeep(age: Age) -> Upkeep {
    if age.renewed >= renew_after() && age.tried >= pause() {
        Upkeep::Renew
    } else if age.renewed >= life() && age.known >= pause() {
        Upkeep::Look
    } else {
        Upkeep::GoOn
    }
}

/// What a keeper asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To write to the replica, now or soon.
    Work,
    /// That it stays ours while the database is idle.
    Rest,
}

/// What is known of the heart that a lease rests on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    /// Since its last acknowledged beat was sent; `None`: there was none.
    pub(super) beaten: Option<Duration>,
    /// Somebody has said in it that he took the lease.
    pub(super) is_taken: bool,
}

/// Whether a lease that rests wakes (I-HEART-1, I-HEART-3, I-HEART-4).
pub(super) fn wakes(purpose: Purpose, pulse: Pulse) -> bool {
    let beats = pulse.beaten.is_some_and(|age| age < life() * 2 / 3);
    purpose == Purpose::Work || pulse.is_taken || !beats
}

/// Whether a renewal that is due may be the last one, because the lease rests from then on.
pub(super) fn may_rest(purpose: Purpose, sharers: usize, is_refused: bool) -> bool {
    purpose == Purpose::Rest && sharers >= FEWEST_SHARERS && !is_refused
}

/// When a holder has to look again.
pub(super) fn due_in(age: Age) -> Duration {
    renew_after().saturating_sub(age.renewed).max(pause().saturating_sub(age.tried))
}

impl Me {
    /// The lease that this session writes at wall-clock time `now`.
    pub(super) fn lease(&self, base: TxId, after: Option<String>, now: Timestamp, beat: u64) -> LeaseState {
        let life_ms = u64::try_from(life().as_millis()).unwrap_or(LONGEST_LIFE_MS);
        LeaseState {
            writer: self.writer.clone(),
            session: self.session.clone(),
            holder: self.who.clone(),
            ends: now.0.saturating_add_unsigned(life_ms),
            base: base.0,
            after,
            beat,
            life_ms,
            process: Process::this(),
            ahead: true,
            heart: None,
        }
    }
}

/// The refusal of a lease that another holds: a person can wait, or decide.
pub(super) fn held_by(holder: &str, left: Duration) -> Error {
    // (Rounded up: a try after that time finds it ended.)
    let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
    Error::new(
        Kind::Fenced,
        format!(
            "the replica is held by {holder}; its lease ends in {} unless it is renewed: stop that process, wait, or take over \
             with '{{\"takeover\":true}}'",
            humantime::format_duration(left)
        ),
    )
    .with_retry_after(Some(left))
}

/// The lease is another's now.
pub(super) fn taken_by(holder: &str) -> Error {
    Error::new(
        Kind::Fenced,
        format!(
            "the replica is held by {holder}, which took its lease; take over with '{{\"takeover\":true}}'"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(writer: &str, session: &str) -> LeaseState {
        let me = Me { writer: writer.into(), session: session.into(), who: format!("{writer}'s host") };
        me.lease(TxId(7), None, Timestamp(1_000), 1)
    }

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn who_may_take_the_lease() {
        let take = |base: u64, after: Option<&str>| Claim::Take {
            base: TxId(base),
            after: after.map(ToString::to_string),
        };
        let (theirs, host) = (lease("b", "1"), Some("b's host"));
        let back = LeaseState { ends: 0, ..theirs.clone() };
        let mine = LeaseState { after: Some("b's host".into()), ..lease("a", "9") };
        let old = LeaseState { life_ms: 0, ..theirs.clone() };
        let brief = LeaseState { life_ms: 2_000, ..theirs.clone() };
        let endless = LeaseState { life_ms: u64::MAX, ..theirs.clone() };
        // The holder's clock is a year behind, or ahead: no matter.
        let behind = LeaseState { ends: 5, ..theirs.clone() };
        let ahead = LeaseState { ends: i64::MAX, ..theirs.clone() };
        let room = 100 + ROOM;
        for (what, state, unchanged, is_gone, rival, want) in [
            ("nothing there", None, s(0), false, Rival::Respect, take(0, None)),
            ("our spool's", Some(&mine), s(0), false, Rival::Respect, take(7, host)),
            ("given back", Some(&back), s(0), false, Rival::Respect, take(7, host)),
            ("first look", Some(&theirs), s(0), false, Rival::Respect, Claim::Wait(s(60))),
            ("renewed lately", Some(&theirs), s(59), false, Rival::Respect, Claim::Wait(s(1))),
            ("unchanged for its life", Some(&theirs), s(60), false, Rival::Respect, take(room, host)),
            ("of an older version", Some(&old), s(59), false, Rival::Respect, Claim::Wait(s(1))),
            ("with a short life", Some(&brief), s(1), false, Rival::Respect, Claim::Wait(s(1))),
            ("with a short life", Some(&brief), s(2), false, Rival::Respect, take(room, host)),
            ("with an endless life", Some(&endless), s(0), false, Rival::Respect, Claim::Wait(s(600))),
            ("clock behind", Some(&behind), s(0), false, Rival::Respect, Claim::Wait(s(60))),
            ("clock ahead", Some(&ahead), s(60), false, Rival::Respect, take(room, host)),
            ("process gone", Some(&theirs), s(0), true, Rival::Respect, take(room, host)),
            ("evicted", Some(&theirs), s(0), false, Rival::Evict, take(room, host)),
            ("evicted though given back", Some(&back), s(0), false, Rival::Evict, take(7, host)),
        ] {
            let found = state.map(|state| Found { state, unchanged, is_gone });
            assert_eq!(claim(found, "a", rival, TxId(100)), want, "{what}");
        }
        // An evicted one may begin above a base of its own.
        let high = LeaseState { base: 5_000, ..theirs };
        let found = Some(Found { state: &high, unchanged: s(60), is_gone: false });
        assert_eq!(claim(found, "a", Rival::Respect, TxId(100)), take(5_000 + ROOM, host));
    }

    #[test]
    fn a_lease_ends_by_standing_still_and_lives_by_changing() {
        let mut sight = Sight::default();
        let seen = |lease: LeaseState, beat| Observed { lease, beat };
        let first = seen(lease("b", "1"), None);
        assert_eq!(sight.look(&first, s(10)), s(0));
        assert_eq!(sight.look(&first, s(69)), s(59));
        let renewed = seen(LeaseState { beat: 2, ..first.lease.clone() }, None);
        assert_eq!(sight.look(&renewed, s(70)), s(0));
        assert_eq!(sight.look(&renewed, s(90)), s(20));
        assert_eq!(sight.look(&first, s(91)), s(0), "put back is a change, too");
        assert_eq!(sight.look(&first, s(5)), s(0), "another clock");
        // It rests: its heart's beats are its life, and a heart that is gone is one that stands still.
        let rests =
            |beat| seen(LeaseState { heart: Some("0123456789abcdef".into()), ..first.lease.clone() }, beat);
        for (now, beat, want) in
            [(100, Some(1), 0), (130, Some(1), 30), (131, Some(2), 0), (150, None, 0), (210, None, 60)]
        {
            assert_eq!(sight.look(&rests(beat), s(now)), s(want), "{now}");
        }
    }

    #[test]
    fn what_a_holder_finds() {
        let bytes = |l: &LeaseState| l.encode().unwrap();
        let (ours, theirs) = (lease("a", "1"), lease("b", "2"));
        assert_eq!(seen(None, "1"), Seen::Nothing);
        assert_eq!(seen(Some(&bytes(&ours)), "1"), Seen::Ours);
        // Another session of the same spool is another shipper.
        assert_eq!(seen(Some(&bytes(&ours)), "3"), Seen::Anothers("a's host".into()));
        assert_eq!(seen(Some(&bytes(&theirs)), "1"), Seen::Anothers("b's host".into()));
        assert_eq!(seen(Some(b"<html>"), "1"), Seen::Unreadable);
    }

    #[test]
    fn when_a_holder_renews_and_when_it_looks() {
        let age = |renewed, tried, known| Age { renewed: s(renewed), tried: s(tried), known: s(known) };
        for (at, want) in [
            (age(0, 0, 0), Upkeep::GoOn),
            (age(24, 24, 24), Upkeep::GoOn),
            (age(25, 25, 25), Upkeep::Renew),
            // A renewal has just failed: within the life of the lease that holds up nothing.
            (age(25, 4, 25), Upkeep::GoOn),
            (age(30, 5, 30), Upkeep::Renew),
            (age(59, 1, 59), Upkeep::GoOn),
            // Past it, nothing goes on without a look, which is worth 5 seconds.
            (age(60, 1, 60), Upkeep::Look),
            (age(60, 4, 5), Upkeep::Look),
            (age(60, 4, 4), Upkeep::GoOn),
            (age(500, 5, 0), Upkeep::Renew),
        ] {
            assert_eq!(upkeep(at), want, "{at:?}");
        }
        assert_eq!(due_in(age(10, 10, 10)), s(15));
        assert_eq!(due_in(age(40, 2, 40)), s(3));
        assert_eq!(due_in(age(40, 9, 40)), s(0));
    }

    #[test]
    fn when_a_lease_rests_and_when_it_wakes() {
        let pulse = |beaten: Option<u64>, is_taken| Pulse { beaten: beaten.map(s), is_taken };
        for (purpose, at, want) in [
            (Purpose::Rest, pulse(Some(0), false), false),
            (Purpose::Rest, pulse(Some(39), false), false),
            // Before anybody may take it, it is renewed by itself.
            (Purpose::Rest, pulse(Some(40), false), true),
            (Purpose::Rest, pulse(None, false), true),
            (Purpose::Rest, pulse(Some(0), true), true),
            (Purpose::Work, pulse(Some(0), false), true),
        ] {
            assert_eq!(wakes(purpose, at), want, "{purpose:?} {at:?}");
        }
        for (purpose, sharers, is_refused, want) in [
            (Purpose::Rest, 2, false, true),
            (Purpose::Rest, 1, false, false),
            (Purpose::Rest, 1000, true, false),
            (Purpose::Work, 1000, false, false),
        ] {
            assert_eq!(may_rest(purpose, sharers, is_refused), want, "{purpose:?} {sharers} {is_refused}");
        }
    }

    #[test]
    fn a_heart_is_named_by_its_id_alone() {
        let named = |id: &str| LeaseState { heart: Some(id.into()), ..lease("a", "1") };
        let read = |id| LeaseState::decode(&named(id).encode().unwrap()).unwrap().heart;
        assert_eq!(read("0123456789abcdef").as_deref(), Some("0123456789abcdef"));
        for id in ["", "../../secret", "0123456789ABCDEF", "0123456789abcdef0", "0123456789abcde/"] {
            assert_eq!(read(id), None, "{id}");
        }
    }

    #[test]
    fn a_process_that_ended_is_gone_and_one_that_nobody_knows_is_not() {
        let this = Process::this().unwrap();
        assert!(!this.is_gone());
        assert!(Process { started: this.started + 1, ..this.clone() }.is_gone(), "its id was given again");
        assert!(Process { pid: u32::MAX, ..this.clone() }.is_gone());
        assert!(!Process { pid: u32::MAX, boot: "another".into(), ..this.clone() }.is_gone());
        assert!(!Process { pid: u32::MAX, namespace: "another".into(), ..this }.is_gone());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        // A zombie has ended, whether or not its parent has asked.
        let end = crate::base::clock::uptime() + s(10);
        while started(child.id()).is_some() && crate::base::clock::uptime() < end {
            std::thread::yield_now();
        }
        assert_eq!(started(child.id()), None);
        child.wait().unwrap();
    }

    #[test]
    fn a_refusal_says_who_and_how_long() {
        let e = held_by("host (process 7)", Duration::from_millis(41_001));
        assert_eq!(e.kind(), Kind::Fenced);
        assert_eq!(e.retry_after(), Some(s(42)));
        assert!(e.to_string().contains("held by host (process 7); its lease ends in 42s unless"), "{e}");
    }

    #[test]
    fn leases_of_older_versions_are_read() {
        let old = br#"{"writer":"w","session":"s","holder":"h","ends":5,"base":0}"#;
        let read = LeaseState::decode(old).unwrap();
        assert_eq!((read.life(), read.beat, &read.process), (LIFE, 0, &None));
        let new = lease("a", "1");
        assert_eq!(LeaseState::decode(&new.encode().unwrap()), Some(new));
    }
}
