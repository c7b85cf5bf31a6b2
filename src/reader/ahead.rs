//! Which pages SQLite will want after the one that it reads. Pure: pages in as they are read, page numbers out.
//!
//! SQLite walks b-trees. It reads an interior page, and after it some of the pages that it names: a scan all of them in their order, a
//! descending one in the other, a join by keys some of them with the same step between, a look-up one. So the children of the interior
//! pages that were read are remembered, and where in them SQLite is: which of them comes next is told by the last step between two.
//! What no interior page names (rows that go on in pages beside their leaf, the walk of a backup) is read by rising page numbers.
//!
//! How much is fetched with a page rises as long as it is what was foretold, and begins anew where it was not: a look-up brings the block of its page and
//! nothing else. What is remembered is bounded ([`CHILDREN`]).

use crate::base::Pgno;
use crate::replica::btree::Node;
use std::collections::VecDeque;

/// Bytes fetched with a page that nothing foretold: its own blocks.
pub(super) const LEAST: u64 = 64 << 10;
/// Bytes fetched at once at most.
pub(super) const MOST: u64 = 1 << 20;
/// Children of interior pages that are remembered at most.
const CHILDREN: usize = 16 << 10;
/// Pages that are foretold at once at most.
const FORETOLD: usize = 2048;

/// What a connection read, as far as it foretells what it will read.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The one used last is the last.
    nodes: VecDeque<Interior>,
    children: usize,
    line: Line,
}

/// An interior page that was read.
#[derive(Debug)]
struct Interior {
    pgno: Pgno,
    children: Box<[Pgno]>,
    walk: Walk,
}

/// Where among the children of a page SQLite is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Walk {
    at: Option<usize>,
    step: isize,
    /// How often this step was made, one after the other.
    times: u32,
    /// Bytes fetched with the last one that was not here.
    bytes: u64,
}

/// Where SQLite is in the pages by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Line {
    next: u32,
    bytes: u64,
}

/// What to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Foretold {
    /// The page that is needed, then what is likely to come, in that order.
    pub(super) pages: Vec<Pgno>,
    /// Bytes in all.
    pub(super) bytes: u64,
}

impl Walk {
    fn to(&mut self, now: usize) {
        let Some(before) = self.at.replace(now) else { return };
        let step = now as isize - before as isize;
        match step {
            0 => {}
            _ if step == self.step => self.times = self.times.saturating_add(1),
            _ => *self = Walk { step, times: 1, bytes: 0, ..*self },
        }
    }

    /// The step that is likely to be made next.
    fn likely(&self) -> Option<isize> {
        let is_sure = self.times >= if self.step.abs() == 1 { 1 } else { 2 };
        is_sure.then_some(self.step)
    }
}

impl Ahead {
    /// Page `pgno` is read.
    pub(super) fn reads(&mut self, pgno: Pgno) {
        let Some((n, i)) = self.find(pgno) else { return };
        if let Some(node) = self.nodes.get_mut(n) {
            node.walk.to(i);
        }
    }

    /// What it was; whether that was an interior page.
    pub(super) fn was(&mut self, pgno: Pgno, page: &[u8]) -> bool {
        let Ok(node) = Node::of(page, pgno) else { return false };
        if node.is_leaf() {
            return false;
        }
        let Ok(children) = node.children(page, pgno) else { return false };
        let known = self.nodes.iter().position(|n| n.pgno == pgno).and_then(|at| self.nodes.remove(at));
        self.children -= known.as_ref().map_or(0, |n| n.children.len());
        let walk = known.map_or_else(|| self.walk_into(pgno), |n| n.walk);
        self.children += children.len();
        self.nodes.push_back(Interior { pgno, children: children.into(), walk });
        while self.children > CHILDREN
            && let Some(oldest) = self.nodes.pop_front()
        {
            self.children -= oldest.children.len();
        }
        true
    }

    /// How a page is walked that was not read before: as the one beside it was, if that was walked to its end.
    fn walk_into(&self, pgno: Pgno) -> Walk {
        let walked = || {
            let (above, i) = self.find(pgno)?;
            let above = self.nodes.get(above)?;
            let step = above.walk.likely().filter(|s| s.abs() == 1)?;
            let beside = above.children.get(i.checked_add_signed(-step)?)?;
            let beside = self.nodes.iter().find(|n| n.pgno == *beside)?;
            let end = if step > 0 { beside.children.len().checked_sub(1)? } else { 0 };
            let is_walked = beside.walk.step == step && beside.walk.at == Some(end);
            is_walked.then_some(Walk { at: None, step, times: 1, bytes: beside.walk.bytes })
        };
        walked().unwrap_or_default()
    }

    /// The interior page that names `pgno`, and which of its children that is. The next one of a walk is found at once.
    fn find(&self, pgno: Pgno) -> Option<(usize, usize)> {
        let next = |n: &Interior| {
            let at = n.walk.at?.checked_add_signed(n.walk.step)?;
            (n.children.get(at) == Some(&pgno)).then_some(at)
        };
        let all = || self.nodes.iter().enumerate().rev();
        let quick = all().find_map(|(n, node)| Some((n, next(node)?)));
        quick
            .or_else(|| all().find_map(|(n, node)| Some((n, node.children.iter().position(|c| *c == pgno)?))))
    }

    /// What to fetch for page `pgno`, which is read and not here.
    pub(super) fn wants(&mut self, pgno: Pgno) -> Foretold {
        let Some((n, at)) = self.find(pgno) else { return self.in_line(pgno) };
        let Some(node) = self.nodes.get_mut(n) else { return self.in_line(pgno) };
        let Some(step) = node.walk.likely() else {
            return Foretold { pages: vec![pgno], bytes: LEAST };
        };
        node.walk.bytes = more(node.walk.bytes);
        let bytes = node.walk.bytes;
        let mut pages = vec![pgno];
        let (mut n, mut at) = (n, at);
        while pages.len() < FORETOLD {
            let Some(node) = self.nodes.get(n) else { break };
            if let Some(child) =
                at.checked_add_signed(step).and_then(|at| Some((at, *node.children.get(at)?)))
            {
                at = child.0;
                pages.push(child.1);
                continue;
            }
            // To the interior page beside this one, if it goes on there.
            let Some((above, i)) = self.find(node.pgno).filter(|_| step.abs() == 1) else { break };
            let beside = i.checked_add_signed(step).and_then(|i| self.nodes.get(above)?.children.get(i));
            let Some(beside) = beside else { break };
            let Some(known) = self.nodes.iter().position(|n| n.pgno == *beside) else {
                pages.push(*beside);
                break;
            };
            let Some(next) = self.nodes.get(known) else { break };
            (n, at) = (known, if step > 0 { 0 } else { next.children.len().saturating_sub(1) });
            pages.extend(next.children.get(at));
        }
        Foretold { pages, bytes }
    }

    fn in_line(&mut self, pgno: Pgno) -> Foretold {
        let first = pgno.get();
        // Other pages lie between: some were here.
        let goes_on =
            self.line.next > 0 && (self.line.next..self.line.next.saturating_add(64)).contains(&first);
        self.line.bytes = if goes_on { more(self.line.bytes) } else { LEAST };
        let count = if goes_on { FORETOLD as u32 } else { 1 };
        let pages = (first..first.saturating_add(count)).filter_map(Pgno::new).collect();
        Foretold { pages, bytes: self.line.bytes }
    }

    /// The pages up to this one were fetched, as they lie.
    pub(super) fn fetched(&mut self, last: Pgno) {
        self.line.next = last.get().saturating_add(1);
    }
}

/// What is fetched where `before` was, and it was what was wanted.
fn more(before: u64) -> u64 {
    (before * 4).clamp(2 * LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interior page of a table with these children.
    fn interior(children: &[u32]) -> Vec<u8> {
        let mut page = vec![0u8; 4096];
        let cells = children.len() - 1;
        page[0] = 5;
        page[3..5].copy_from_slice(&(cells as u16).to_be_bytes());
        for (n, child) in children.iter().enumerate() {
            let at = if n == cells { 8 } else { 4096 - 8 * (n + 1) };
            page[at..at + 4].copy_from_slice(&child.to_be_bytes());
            if n < cells {
                page[12 + 2 * n..14 + 2 * n].copy_from_slice(&(at as u16).to_be_bytes());
            }
        }
        page
    }

    fn at(n: u32) -> Pgno {
        Pgno::new(n).unwrap()
    }

    /// A root, page 2, above pages 100 and 200, which have leaves that do not lie in their order.
    fn tree() -> Ahead {
        let mut ahead = Ahead::default();
        assert!(ahead.was(at(2), &interior(&[100, 200])));
        ahead.reads(at(100));
        assert!(ahead.was(at(100), &interior(&[11, 5, 17, 3, 29, 23, 47, 41])));
        ahead
    }

    fn wants(ahead: &mut Ahead, n: u32) -> (Vec<u32>, u64) {
        ahead.reads(at(n));
        let Foretold { pages, bytes } = ahead.wants(at(n));
        (pages.iter().map(|p| p.get()).collect(), bytes / LEAST)
    }

    #[test]
    fn a_look_up_brings_its_page_and_nothing_else() {
        let mut ahead = tree();
        assert_eq!(wants(&mut ahead, 17), (vec![17], 1));
        assert_eq!(wants(&mut ahead, 47), (vec![47], 1), "another row");
        assert_eq!(wants(&mut ahead, 11), (vec![11], 1));
        assert_eq!(wants(&mut ahead, 9000), (vec![9000], 1), "a page of another tree");
    }

    #[test]
    fn a_scan_goes_through_the_children_and_to_the_page_beside() {
        let mut ahead = tree();
        assert_eq!(wants(&mut ahead, 11), (vec![11], 1));
        ahead.reads(at(5));
        assert_eq!(wants(&mut ahead, 17), (vec![17, 3, 29, 23, 47, 41, 200], 2));
        [3, 29].into_iter().for_each(|n| ahead.reads(at(n)));
        assert_eq!(wants(&mut ahead, 23), (vec![23, 47, 41, 200], 8));
        [47, 41, 200].into_iter().for_each(|n| ahead.reads(at(n)));
        ahead.was(at(200), &interior(&[61, 53, 71, 67]));
        assert_eq!(wants(&mut ahead, 61), (vec![61, 53, 71, 67], 16), "as quick as before");
        // Another scan of the same table knows both pages.
        ahead.reads(at(100));
        ahead.was(at(100), &interior(&[11, 5, 17, 3, 29, 23, 47, 41]));
        [11, 5].into_iter().for_each(|n| ahead.reads(at(n)));
        assert_eq!(wants(&mut ahead, 17).0, vec![17, 3, 29, 23, 47, 41, 61, 53, 71, 67]);
    }

    #[test]
    fn backwards_and_with_a_step() {
        let mut ahead = tree();
        ahead.reads(at(200));
        ahead.was(at(200), &interior(&[61, 53, 71, 67, 83, 79, 97, 89]));
        ahead.reads(at(89));
        assert_eq!(wants(&mut ahead, 97).0, vec![97, 79, 83, 67, 71, 53, 61, 41, 47, 23, 29, 3, 17, 5, 11]);
        let mut ahead = tree();
        ahead.reads(at(11));
        assert_eq!(wants(&mut ahead, 17).0, vec![17], "one step is no stride");
        assert_eq!(wants(&mut ahead, 29).0, vec![29, 47]);
        assert_eq!(wants(&mut ahead, 11).0, vec![11], "something else");
    }

    #[test]
    fn what_no_page_names_is_read_in_line() {
        let mut ahead = Ahead::default();
        let mut bytes = |n, last| {
            let Foretold { bytes, pages } = ahead.wants(at(n));
            ahead.fetched(at(last));
            assert_eq!(pages[0], at(n));
            bytes / LEAST
        };
        assert_eq!(bytes(1, 8), 1);
        assert_eq!(bytes(9, 40), 4);
        assert_eq!(bytes(43, 170), 16);
        assert_eq!(bytes(171, 400), MOST / LEAST);
        assert_eq!(bytes(9000, 9000), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ahead = Ahead::default();
        for n in 0..1000 {
            let children: Vec<u32> = (0..300).map(|i| 1 + n * 300 + i).collect();
            ahead.was(at(1_000_000 + n), &interior(&children));
            assert!(ahead.children <= CHILDREN && ahead.nodes.len() <= 60);
        }
        let all: usize = ahead.nodes.iter().map(|n| n.children.len()).sum();
        assert_eq!(ahead.children, all);
        let children: Vec<u32> = (0..300).map(|i| 1 + 999 * 300 + i).collect();
        ahead.was(at(1_000_999), &interior(&children));
        assert_eq!(ahead.children, all, "the same one again");
    }
}
