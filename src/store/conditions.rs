//! Whether a store holds to the conditions of conditional puts, and how long it is believed that it does not.
//!
//! Pure: time is handed in. One refused request teaches nothing here: a "no" is concluded by the probe
//! ([`super::Store::probe_conditional`]), which asks twice and compares with the same request without a condition, and
//! it is asked again when it is old. A "yes" is doubted only by a later refusal.

use std::time::Duration;

/// How long a "no" is believed. Servers are updated, and proxies in front of them changed.
const RECHECK_AFTER: Duration = Duration::from_secs(3600);
/// The least time between two probes that refused requests bring about.
const DOUBT_EVERY: Duration = Duration::from_secs(60);

/// How long an earlier process's "yes" is good for: a store in another's place at the same address is found out after that.
const RECALLED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Whether the store holds to the conditions of conditional puts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conditions {
    /// Not probed yet; taken for [`Conditions::Held`].
    Unknown,
    /// Create-only and compare-and-swap both work.
    Held,
    /// Create-only works, compare-and-swap does not: no lease.
    CreateOnly,
    /// Neither (Garage ignores them, some refuse them): a look before each put is all there is, and
    /// nothing keeps two machines apart.
    Ignored,
}

impl Conditions {
    /// As it is written down.
    pub fn name(self) -> &'static str {
        match self {
            Conditions::Unknown => "unknown",
            Conditions::Held => "held",
            Conditions::CreateOnly => "create-only",
            Conditions::Ignored => "ignored",
        }
    }

    /// Reads that.
    pub fn of_name(name: &str) -> Option<Conditions> {
        [Conditions::Held, Conditions::CreateOnly, Conditions::Ignored].into_iter().find(|c| c.name() == name)
    }

    /// Whether a lease can be held: it wants objects that are replaced only while they are as they were read. Not yet
    /// known counts as yes; [`super::Store::probe_conditional`] finds out.
    pub fn allow_lease(self) -> bool {
        matches!(self, Conditions::Held | Conditions::Unknown)
    }

    /// Whether two writers of one new object are told apart by the store. Not yet known counts as yes.
    pub fn keep_creations_apart(self) -> bool {
        self != Conditions::Ignored
    }
}

/// What is known of a store, and since when (uptime).
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    conditions: Conditions,
    asked_at: Option<Duration>,
    /// Whether this process asked, or believes an earlier one.
    is_recalled: bool,
    /// The end of a multipart upload takes no condition, though a plain put may.
    parts_refused_at: Option<Duration>,
}

impl Known {
    pub(super) fn new(conditions: Conditions) -> Known {
        Known { conditions, asked_at: None, is_recalled: false, parts_refused_at: None }
    }

    pub(super) fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// An earlier process asked, `age` ago. A "yes" is good for a day, a "no" for as long as one's own.
    pub(super) fn recall(&mut self, conditions: Conditions, age: Duration, uptime: Duration) {
        let good_for = if conditions == Conditions::Held { RECALLED_FOR } else { RECHECK_AFTER };
        if self.conditions == Conditions::Unknown && conditions != Conditions::Unknown && age < good_for {
            (self.conditions, self.asked_at, self.is_recalled) = (conditions, Some(uptime), true);
        }
    }

    /// What this process found out itself.
    pub(super) fn asked(&self) -> Option<Conditions> {
        let is_own = self.asked_at.is_some() && !self.is_recalled && self.conditions != Conditions::Unknown;
        is_own.then_some(self.conditions)
    }

    /// Whether a refusal that may be one of the condition is reason enough to ask: nothing was asked, or by another process.
    pub(super) fn is_hearsay(&self) -> bool {
        self.is_recalled || self.conditions == Conditions::Unknown
    }

    /// Whether the probe is to be made: never made, or what it found is a "no" of long ago.
    pub(super) fn is_due(&self, uptime: Duration) -> bool {
        match (self.conditions, self.asked_at) {
            (Conditions::Unknown, _) => true,
            (Conditions::Held, _) | (_, None) => false,
            (_, Some(at)) => uptime.saturating_sub(at) >= RECHECK_AFTER,
        }
    }

    /// Whether a refused request is reason enough for a probe.
    pub(super) fn may_doubt(&self, uptime: Duration) -> bool {
        self.is_recalled || self.asked_at.is_none_or(|at| uptime.saturating_sub(at) >= DOUBT_EVERY)
    }

    /// The probe came to a conclusion.
    pub(super) fn learn(&mut self, conditions: Conditions, uptime: Duration) {
        (self.conditions, self.asked_at, self.is_recalled) = (conditions, Some(uptime), false);
    }

    /// The probe came to none: an old "no" stands, and is not asked about at once.
    pub(super) fn put_off(&mut self, uptime: Duration) {
        if self.conditions != Conditions::Unknown {
            self.asked_at = Some(uptime);
        }
    }

    /// Whether the end of a multipart upload may bear a condition.
    pub(super) fn parts_conditional(&self, uptime: Duration) -> bool {
        self.conditions.keep_creations_apart()
            && self.parts_refused_at.is_none_or(|at| uptime.saturating_sub(at) >= RECHECK_AFTER)
    }

    /// It was refused with a condition and is tried without; `took`: and was then carried out.
    pub(super) fn parts_refused(&mut self, took: bool, uptime: Duration) {
        self.parts_refused_at = took.then_some(uptime);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_no_is_asked_about_again_and_a_yes_is_not() {
        for (conditions, lease, apart, later) in [
            (Conditions::Unknown, true, true, true),
            (Conditions::Held, true, true, false),
            (Conditions::CreateOnly, false, true, true),
            (Conditions::Ignored, false, false, true),
        ] {
            assert_eq!((conditions.allow_lease(), conditions.keep_creations_apart()), (lease, apart));
            let mut known = Known::new(Conditions::Unknown);
            known.learn(conditions, S(10));
            assert_eq!(known.is_due(S(11)), conditions == Conditions::Unknown, "{conditions:?}");
            assert_eq!(known.is_due(S(3610)), later, "{conditions:?}");
        }
        assert!(!Known::new(Conditions::Held).is_due(S(9999)), "memory");
        let mut known = Known::new(Conditions::Unknown);
        known.put_off(S(1));
        assert!(known.is_due(S(2)), "nothing is known");
        known.learn(Conditions::Ignored, S(10));
        known.put_off(S(4000));
        assert!(!known.is_due(S(4001)) && known.conditions() == Conditions::Ignored);
    }

    #[test]
    fn what_another_process_found_out_is_believed_for_a_while_and_until_it_is_contradicted() {
        let day = 24 * 3600;
        for (conditions, age, is_believed) in [
            (Conditions::Held, 0, true),
            (Conditions::Held, day - 1, true),
            (Conditions::Held, day, false),
            (Conditions::CreateOnly, 3599, true),
            (Conditions::CreateOnly, 3600, false),
            (Conditions::Ignored, 3600, false),
            (Conditions::Unknown, 0, false),
        ] {
            let mut known = Known::new(Conditions::Unknown);
            known.recall(conditions, S(age), S(5));
            assert_eq!(known.is_due(S(6)), !is_believed, "{conditions:?} {age}");
            assert_eq!(known.asked(), None, "it is not passed on as one's own");
        }
        let mut known = Known::new(Conditions::Unknown);
        assert!(known.is_hearsay());
        known.recall(Conditions::Held, S(0), S(5));
        assert!(known.is_hearsay() && known.may_doubt(S(5)));
        known.learn(Conditions::CreateOnly, S(6));
        assert!(!known.is_hearsay() && !known.may_doubt(S(7)));
        assert_eq!(known.asked(), Some(Conditions::CreateOnly));
        known.recall(Conditions::Held, S(0), S(8));
        assert_eq!(known.conditions(), Conditions::CreateOnly, "one's own answer is the better one");
    }

    #[test]
    fn refusals_do_not_make_a_probe_each() {
        let mut known = Known::new(Conditions::Unknown);
        assert!(known.may_doubt(S(1)));
        known.learn(Conditions::Held, S(10));
        assert!(!known.may_doubt(S(69)) && known.may_doubt(S(70)));
    }

    #[test]
    fn the_end_of_an_upload_has_a_memory_of_its_own() {
        let mut known = Known::new(Conditions::Held);
        assert!(known.parts_conditional(S(1)));
        known.parts_refused(true, S(1));
        assert!(!known.parts_conditional(S(2)) && known.parts_conditional(S(3601)));
        known.parts_refused(false, S(5));
        assert!(known.parts_conditional(S(6)));
        known.learn(Conditions::Ignored, S(7));
        assert!(!known.parts_conditional(S(8)));
    }
}
