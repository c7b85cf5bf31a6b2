//! Which files tell all that was changed between two TXIDs, and the pages that they tell of. Pure.

use crate::base::{Pgno, TxId};

/// A file that tells which pages its TXIDs changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) min: TxId,
    pub(super) max: TxId,
    /// Whether it lies on this machine.
    pub(super) is_near: bool,
}

/// The files, by their places in `spans`, that tell all that was changed after `from` up to `to`; `None` where a TXID is in none.
///
/// One that begins before it is wanted tells of more pages than were changed since `from`, each of which is one more to be fetched. So the
/// latest beginning comes first, then what lies on this machine, then the furthest end. None goes beyond `to`.
pub(super) fn cover(from: TxId, to: TxId, spans: &[Span]) -> Option<Vec<usize>> {
    let (mut chosen, mut at) = (Vec::new(), from);
    while at < to {
        let fits = |s: &Span| s.min <= at.next() && s.max > at && s.max <= to;
        let best = spans
            .iter()
            .enumerate()
            .filter(|(_, s)| fits(s))
            .max_by_key(|(_, s)| (s.min, s.is_near, s.max))?;
        chosen.push(best.0);
        at = best.1.max;
    }
    Some(chosen)
}

/// Pages that were told of.
pub(super) struct PageSet(Vec<u64>);

impl PageSet {
    /// None, of a database of `pages` pages.
    pub(super) fn new(pages: u32) -> PageSet {
        PageSet(vec![0; pages as usize / 64 + 1])
    }

    /// Adds one.
    pub(super) fn add(&mut self, pgno: Pgno) {
        if let Some(word) = self.0.get_mut(pgno.get() as usize / 64) {
            *word |= 1 << (pgno.get() % 64);
        }
    }

    /// Whether it was added; so is each that the database has not.
    pub(super) fn has(&self, pgno: Pgno) -> bool {
        self.0.get(pgno.get() as usize / 64).is_none_or(|word| word >> (pgno.get() % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_txid_is_left_out_and_no_more_is_told_than_must_be() {
        let span = |min, max, is_near| Span { min: TxId(min), max: TxId(max), is_near };
        let of = |from, to, spans: &[Span]| cover(TxId(from), TxId(to), spans);
        let (near, far) = (true, false);
        for (what, from, to, spans, expected) in [
            ("nothing to tell", 5, 5, vec![], Some(vec![])),
            ("a hole", 5, 8, vec![span(6, 6, near), span(8, 8, near)], None),
            ("nothing at all", 5, 6, vec![], None),
            ("one after the other", 5, 7, vec![span(7, 7, near), span(6, 6, near)], Some(vec![1, 0])),
            ("the replica fills the hole", 5, 7, vec![span(6, 6, far), span(7, 7, near)], Some(vec![0, 1])),
            ("near before far", 5, 6, vec![span(6, 6, far), span(6, 6, near)], Some(vec![1])),
            (
                "near before far, even if that is further",
                5,
                7,
                vec![span(6, 7, far), span(6, 6, near), span(7, 7, near)],
                Some(vec![1, 2]),
            ),
            (
                "exact and far before near and more",
                5,
                6,
                vec![span(2, 6, near), span(6, 6, far)],
                Some(vec![1]),
            ),
            ("more, if nothing else tells it", 5, 9, vec![span(2, 9, near)], Some(vec![0])),
            ("the least of more", 5, 9, vec![span(2, 9, near), span(4, 9, far)], Some(vec![1])),
            ("nothing of later", 5, 6, vec![span(6, 9, near)], None),
        ] {
            assert_eq!(of(from, to, &spans), expected, "{what}");
        }
    }

    #[test]
    fn a_set_of_pages_has_what_was_added_and_all_that_it_cannot_tell() {
        let at = |n| Pgno::new(n).unwrap();
        let mut set = PageSet::new(130);
        [1, 63, 64, 130].into_iter().for_each(|n| set.add(at(n)));
        set.add(at(5000));
        let has: Vec<u32> = (1..=130).filter(|n| set.has(at(*n))).collect();
        assert_eq!(has, [1, 63, 64, 130]);
        assert!(set.has(at(5000)), "beyond its end nothing is known to be unchanged");
    }
}
