//! Whose replica is it, and where does capture begin: a pure decision over what the replica, the lease and the spool say.
//!
//! ```text
//!                        spool knows this replica        spool does not
//!  replica empty         resume what waits, or, if it    first lineage
//!                        was not empty before: a gap
//!  newest is ours        resume; if the replica is       –
//!                        ahead: prove by content or gap
//!  newest is another's   –                               the database's content equals the newest
//!                                                        TXID: continue; else refuse, or take over
//! ```
//!
//! "Empty" is a place without a replica of this kind of store; a place that a replica of another kind was copied to is refused
//! before ([`crate::replica::place`], I-PLACE-2).

use crate::base::{DbChecksum, Error, Lineage, Result, TxId};
use crate::spool::{Handoff, Position, WalPlace};

/// How the watch relates to what the replica held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Was watched by this process already.
    Already,
    /// The replica was empty, or was taken over.
    New,
    /// It continues from this TXID.
    Continued(TxId),
    /// Another process of this machine ships it.
    Standby,
    /// The store has not answered yet: commits are kept, and leave when it does.
    Unanswered,
}

/// What the replica's newest files say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) txid: TxId,
    pub(super) snapshot: TxId,
    pub(super) lineage: Lineage,
    pub(super) after: Option<DbChecksum>,
}

/// How this process came to hold the replica's lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// The user said so.
    pub(super) over: bool,
    /// The lease was taken from a session that may not know yet that it is over.
    pub(super) evicted: bool,
    /// The writer before was not of this spool.
    pub(super) from_another: bool,
    /// Above which TXID a lineage begins then.
    pub(super) base: TxId,
}

/// What the spool has recorded of this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The newest TXID that was shipped to it.
    pub(super) shipped: TxId,
    /// The lineage of that.
    pub(super) lineage: Lineage,
    /// The newest snapshot that was put there.
    pub(super) snapshot: TxId,
}

/// What this machine knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Here {
    /// Where the spool stands, if that is known to be of this replica.
    pub(super) place: Option<Position>,
    /// What the spool has recorded of this replica.
    pub(super) known: Option<Known>,
    /// The newest TXID that waits in the spool.
    pub(super) queued: TxId,
    /// The replica's newest lineage is one that waits in the spool, or that the spool says it has begun there.
    pub(super) owns_lineage: bool,
    /// The replica's newest file was made from this spool, by what that file attests.
    pub(super) made_newest: bool,
}

/// What the newest TXID of the replica says of itself, when the spool can't say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// The newest TXID there is, here or there.
    pub(super) txid: TxId,
    /// Its lineage and the database checksum after it, if they are known.
    pub(super) attested: Option<(Lineage, DbChecksum)>,
}

/// Why a new lineage is begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The replica is empty, or is taken over: nothing to report.
    First,
    /// Continuity was lost.
    Gap(String),
}

/// What becomes of the files that wait in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// They leave first.
    Keep,
    /// They are not of the history that begins.
    Clear,
}

/// Where capture begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Begin {
    /// The spool knows the place.
    Resume(Position),
    /// The replica is another's, unless the database's content is what its newest TXID says. (Where that attests nothing, what a
    /// restore of it adds up to is found out first.)
    Prove(Expected),
    /// The database is read anew.
    Reread(Expected, Reason, Queue),
}

const UNHEARD: &str = "the database went on here before its replica was heard";
const UNSEEN: &str = "the database changed while nothing that had loaded walrust was there to see it";

impl Begin {
    /// Where nothing is known.
    pub(super) const NOTHING: Begin =
        Begin::Reread(Expected { txid: TxId::ZERO, attested: None }, Reason::First, Queue::Keep);

    /// The place of the spool, as far as that can be gone on from.
    pub(super) fn at(place: Option<Position>) -> Begin {
        place.filter(|p| !p.wal.is_given_up()).map_or(Begin::NOTHING, Begin::Resume).or_doubt()
    }

    fn gap(
        txid: TxId,
        attested: Option<(Lineage, DbChecksum)>,
        why: impl Into<String>,
        queue: Queue,
    ) -> Begin {
        Begin::Reread(Expected { txid, attested }, Reason::Gap(why.into()), queue)
    }

    /// The database is the replica's, and went on before that was heard; nothing here or there is above `txid`.
    pub(super) fn after_commits_unheard(txid: TxId) -> Begin {
        Begin::gap(txid, None, UNHEARD, Queue::Clear)
    }

    fn first(txid: TxId) -> Begin {
        Begin::Reread(Expected { txid, attested: None }, Reason::First, Queue::Clear)
    }

    /// A place that no WAL generation names, left without a stamp of the file (unwatch before the first commit, or
    /// a kill): a WAL may have come and gone since, and only the content tells.
    fn or_doubt(self) -> Begin {
        match self {
            Begin::Resume(p) if p.handoff == Handoff::Live && p.wal == WalPlace::InFile => {
                Begin::gap(p.txid, None, UNSEEN, Queue::Keep)
            }
            other => other,
        }
    }

    /// How the watch then relates to the replica.
    pub(super) fn identity(&self) -> Identity {
        match self {
            Begin::Resume(p) => Identity::Continued(p.txid),
            Begin::Prove(e) | Begin::Reread(e, Reason::Gap(_), _) => Identity::Continued(e.txid),
            Begin::Reread(_, Reason::First, _) => Identity::New,
        }
    }
}

/// The decision. Reads nothing, changes nothing.
pub(super) fn decide(remote: Option<Remote>, here: &Here, taken: Taken) -> Begin {
    match remote {
        None => when_empty(here, taken),
        Some(r) if is_ours(&r, here, taken) => go_on(&r, here),
        Some(r) if taken.over => Begin::first(r.txid.max(here.queued).max(taken.base)),
        Some(r) => Begin::Prove(attested(&r)),
    }
    .or_doubt()
}

fn when_empty(here: &Here, taken: Taken) -> Begin {
    let shipped = here.known.map(|k| k.shipped).unwrap_or_default();
    match &here.place {
        // Its first files may be on their way.
        _ if taken.evicted && taken.from_another => Begin::first(here.queued.max(shipped).max(taken.base)),
        Some(p) if shipped == TxId::ZERO => Begin::Resume(p.clone()),
        None if shipped == TxId::ZERO => Begin::first(TxId::ZERO),
        _ => Begin::gap(shipped, None, "the replica was emptied", Queue::Clear),
    }
}

/// Whether the newest file of the replica is of a history that this spool made. Knowing the lineage is not enough: a copied spool
/// knows it too, and an evicted writer may still append to it. Where another writer held the replica before, only what this spool has
/// shipped, or can attest, is its own.
fn is_ours(r: &Remote, here: &Here, taken: Taken) -> bool {
    let Some(known) = here.known else { return false };
    let made_here = r.txid <= known.shipped || here.made_newest;
    let by_another = taken.from_another && (!made_here || (taken.over && taken.evicted));
    let lineage_here = here.place.as_ref().map_or(known.lineage, |p| p.lineage);
    let knows_lineage = r.lineage == lineage_here || r.lineage == known.lineage || here.owns_lineage;
    !by_another && r.lineage != Lineage::default() && knows_lineage
}

fn go_on(r: &Remote, here: &Here) -> Begin {
    let attested = attested(r).attested;
    match &here.place {
        // (Emptied, and shipped to since.)
        _ if here.known.is_some_and(|k| r.snapshot < k.snapshot) => {
            Begin::gap(r.txid.max(here.queued), None, "the replica lost its snapshot", Queue::Clear)
        }
        Some(p) if r.txid <= p.txid.max(here.queued) => Begin::Resume(p.clone()),
        Some(_) => {
            let why = format!("the replica is ahead of this machine, at TXID {}", r.txid);
            Begin::gap(r.txid, attested, why, Queue::Keep)
        }
        None => Begin::gap(r.txid, attested, "the spool's record of the place is gone", Queue::Keep),
    }
}

fn attested(r: &Remote) -> Expected {
    Expected { txid: r.txid, attested: r.after.map(|after| (r.lineage, after)) }
}

/// A replica is encrypted from its first file on, or not at all. Errors with [`crate::base::Kind::Config`]. Pure.
pub(super) fn refuse_to_mix(url: &str, encrypts: bool, is_sealed: bool) -> Result<()> {
    match (encrypts, is_sealed) {
        (true, false) => Err(Error::config(format!(
            "encrypt is set, and the replica {url} holds files in the clear: one replica is not both; choose another URL, which begins with a \
             snapshot, or take encrypt away"
        ))),
        (false, true) => Err(Error::config(format!(
            "the replica {url} is encrypted, and encrypt is not set: one replica is not both; set encrypt to its recipients (age1…), or \
             choose another URL"
        ))),
        (true, true) | (false, false) => Ok(()),
    }
}

/// What an encrypted replica says of itself where nothing opens it: that its newest lineage is the one that this spool knows, if nothing
/// there is newer than what was shipped or waits here (`known`: that lineage, that TXID). Who wrote it the lease tells. Pure.
pub(super) fn as_known(remote: Remote, known: Option<(Lineage, TxId)>, is_closed: bool) -> Remote {
    match known {
        Some((lineage, newest)) if is_closed && remote.txid <= newest => Remote { lineage, ..remote },
        _ => remote,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{PageSize, Timestamp};
    use crate::spool::WalPoint;

    const OURS: Lineage = Lineage(7);
    const THEIRS: Lineage = Lineage(9);
    const AFTER: DbChecksum = DbChecksum(1 << 63 | 5);

    #[test]
    fn an_encrypted_replica_that_nothing_opens_is_ours_by_what_is_known_here() {
        let closed = Remote { txid: TxId(5), snapshot: TxId(1), lineage: Lineage::default(), after: None };
        for (what, known, is_closed, want) in [
            ("no spool", None, true, Lineage::default()),
            ("behind it", Some((OURS, TxId(4))), true, Lineage::default()),
            ("even", Some((OURS, TxId(5))), true, OURS),
            ("ahead", Some((OURS, TxId(9))), true, OURS),
            ("opened: what it says holds", Some((OURS, TxId(9))), false, Lineage::default()),
        ] {
            assert_eq!(as_known(closed, known, is_closed).lineage, want, "{what}");
        }
        for (encrypts, is_sealed, fits) in
            [(true, true, true), (false, false, true), (true, false, false), (false, true, false)]
        {
            assert_eq!(refuse_to_mix("u", encrypts, is_sealed).is_ok(), fits, "{encrypts} {is_sealed}");
        }
    }

    fn place(txid: u64) -> Position {
        Position {
            lineage: OURS,
            txid: TxId(txid),
            pieces: 0,
            literal: false,
            page_size: PageSize::new(4096).unwrap(),
            commit: 1,
            checksum: AFTER,
            timestamp: Timestamp(0),
            wal: WalPlace::Known(WalPoint { salt1: 1, salt2: 2, frame: 3, checksum: None }),
            handoff: Handoff::Live,
        }
    }

    fn remote(txid: u64, lineage: Lineage) -> Option<Remote> {
        Some(Remote { txid: TxId(txid), snapshot: TxId(1), lineage, after: Some(AFTER) })
    }

    fn here(place: Option<Position>, shipped: Option<u64>) -> Here {
        let known = shipped.map(|txid| Known { shipped: TxId(txid), lineage: OURS, snapshot: TxId(1) });
        Here { place, known, ..Here::default() }
    }

    fn gap(txid: u64, why: &str, attested: bool, queue: Queue) -> Begin {
        Begin::gap(TxId(txid), attested.then_some((OURS, AFTER)), why, queue)
    }

    const AHEAD: &str = "the replica is ahead of this machine, at TXID 0000000000000009";
    const GONE: &str = "the spool's record of the place is gone";
    const EMPTIED: &str = "the replica was emptied";

    #[test]
    fn whose_replica_it_is() {
        let plain = Taken::default();
        let over = Taken { over: true, base: TxId(70_000), ..plain };
        let table = [
            // The replica is empty.
            ("nothing anywhere", None, here(None, None), plain, Begin::first(TxId::ZERO)),
            ("nothing shipped yet", None, here(Some(place(5)), Some(0)), plain, Begin::Resume(place(5))),
            ("emptied", None, here(Some(place(5)), Some(5)), plain, gap(5, EMPTIED, false, Queue::Clear)),
            ("emptied, place lost", None, here(None, Some(5)), plain, gap(5, EMPTIED, false, Queue::Clear)),
            // Its newest file is ours.
            ("even", remote(5, OURS), here(Some(place(5)), Some(5)), plain, Begin::Resume(place(5))),
            ("behind", remote(5, OURS), here(Some(place(8)), Some(5)), plain, Begin::Resume(place(8))),
            (
                "ahead",
                remote(9, OURS),
                here(Some(place(5)), Some(5)),
                plain,
                gap(9, AHEAD, true, Queue::Keep),
            ),
            (
                "shipped to after it was emptied",
                Some(Remote { snapshot: TxId::ZERO, ..remote(9, OURS).unwrap() }),
                here(Some(place(9)), Some(9)),
                plain,
                gap(9, "the replica lost its snapshot", false, Queue::Clear),
            ),
            ("place lost", remote(5, OURS), here(None, Some(5)), plain, gap(5, GONE, true, Queue::Keep)),
            // It is another's.
            (
                "a stranger's",
                remote(5, THEIRS),
                here(None, None),
                plain,
                Begin::Prove(Expected { txid: TxId(5), attested: Some((THEIRS, AFTER)) }),
            ),
            (
                "a stranger's in our place",
                remote(5, THEIRS),
                here(Some(place(5)), Some(5)),
                plain,
                Begin::Prove(Expected { txid: TxId(5), attested: Some((THEIRS, AFTER)) }),
            ),
            ("taken over", remote(5, THEIRS), here(None, None), over, Begin::first(TxId(70_000))),
            (
                "ours, and taken over",
                remote(5, OURS),
                here(Some(place(5)), Some(5)),
                over,
                Begin::Resume(place(5)),
            ),
        ];
        for (what, remote, here, taken, begin) in table {
            assert_eq!(decide(remote, &here, taken), begin, "{what}");
        }
    }

    #[test]
    fn what_another_writer_added_is_not_ours() {
        let moved = Taken { from_another: true, ..Taken::default() };
        let evicted = Taken { over: true, evicted: true, from_another: true, base: TxId(70_000) };
        let proved = Begin::Prove(Expected { txid: TxId(9), attested: Some((OURS, AFTER)) });
        let copied = here(Some(place(9)), Some(5));
        assert_eq!(decide(remote(9, OURS), &copied, moved), proved, "of a lineage that a copied spool knows");
        let made = Here { made_newest: true, ..copied.clone() };
        assert_eq!(decide(remote(9, OURS), &made, moved), Begin::Resume(place(9)), "made here");
        assert_eq!(decide(remote(5, OURS), &copied, moved), Begin::Resume(place(9)), "shipped from here");
        let first = Begin::first(TxId(70_000));
        assert_eq!(
            decide(remote(5, OURS), &copied, evicted),
            first,
            "an evicted writer may still append to it"
        );
        assert_eq!(decide(None, &copied, evicted), first, "its first files may be on their way");
        let only_evicted = Taken { from_another: false, ..evicted };
        assert_eq!(
            decide(remote(5, OURS), &copied, only_evicted),
            Begin::Resume(place(9)),
            "this spool's own"
        );
    }

    #[test]
    fn a_lineage_is_known_by_the_place_the_record_or_the_spool() {
        let mut at = here(Some(place(5)), Some(5));
        let prove = Begin::Prove(Expected { txid: TxId(5), attested: Some((THEIRS, AFTER)) });
        assert_eq!(decide(remote(5, THEIRS), &at, Taken::default()), prove);
        at.owns_lineage = true;
        assert_eq!(decide(remote(5, THEIRS), &at, Taken::default()), Begin::Resume(place(5)));
        let mut other = here(Some(Position { lineage: THEIRS, ..place(5) }), Some(5));
        assert!(
            matches!(decide(remote(5, OURS), &other, Taken::default()), Begin::Resume(_)),
            "by the record"
        );
        other.known = Some(Known { shipped: TxId(5), lineage: Lineage(1), snapshot: TxId(1) });
        assert!(
            matches!(decide(remote(5, THEIRS), &other, Taken::default()), Begin::Resume(_)),
            "by the place"
        );
        let nameless = remote(5, Lineage::default());
        at.known = Some(Known { shipped: TxId(5), lineage: Lineage::default(), snapshot: TxId(1) });
        assert!(matches!(decide(nameless, &at, Taken::default()), Begin::Prove(_)), "Litestream's has none");
    }

    #[test]
    fn a_place_without_a_generation_or_a_stamp_is_doubted() {
        let unnamed = |handoff| Position { wal: WalPlace::InFile, handoff, ..place(5) };
        let live = decide(remote(5, OURS), &here(Some(unnamed(Handoff::Live)), Some(5)), Taken::default());
        assert_eq!(live, gap(5, UNSEEN, false, Queue::Keep));
        let stamp = crate::spool::FileStamp { dev_ino: (1, 1), size: 1, mtime: 1, ctime: 1 };
        let closed = Begin::at(Some(unnamed(Handoff::Closed(stamp))));
        assert!(matches!(closed, Begin::Resume(_)));
        assert_eq!(Begin::at(Some(Position { wal: WalPlace::GivenUp, ..place(5) })), Begin::NOTHING);
        assert_eq!(Begin::at(Some(place(5))), Begin::Resume(place(5)));
        assert_eq!(Begin::at(None), Begin::NOTHING);
    }

    #[test]
    fn the_answer_to_the_caller() {
        assert_eq!(Begin::Resume(place(5)).identity(), Identity::Continued(TxId(5)));
        assert_eq!(Begin::first(TxId(9)).identity(), Identity::New);
        assert_eq!(gap(9, AHEAD, true, Queue::Keep).identity(), Identity::Continued(TxId(9)));
    }
}
