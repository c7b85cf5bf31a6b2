//! Which blocks of which files to fetch for a page and for what SQLite will want after it. Pure.
//!
//! [`super::ahead`] says which pages; here they become blocks, those that lie next to each other in a file one request.

use crate::base::Pgno;
use crate::replica::layout::BLOCK;
use std::ops::Range;

/// Blocks between two that are wanted which are fetched with them rather than asked for in two requests.
const GAP: u64 = 1;
/// Pages that are looked at for one fetch at most.
const LOOKED_AT: usize = 4096;

/// One request: blocks of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    /// Which file of the map.
    pub(super) file: usize,
    pub(super) blocks: Range<u64>,
}

/// What to fetch for the pages `pages`, the first of which is needed: `bytes` in all or little more, in `requests` requests at most.
/// `place` says in which blocks of which file a page lies, if it has to be fetched; `is_here` which blocks need not be. Also, of how many
/// of the pages it took care.
pub(super) fn plan(
    pages: impl IntoIterator<Item = Pgno>,
    bytes: u64,
    requests: usize,
    place: impl Fn(Pgno) -> Option<(usize, Range<u64>)>,
    is_here: impl Fn(usize, u64) -> bool,
) -> (Vec<Wanted>, usize) {
    let (mut wanted, mut total, mut pages_done): (Vec<Wanted>, u64, usize) = (Vec::new(), 0, 0);
    'pages: for pgno in pages.into_iter().take(LOOKED_AT) {
        if let Some((file, blocks)) = place(pgno) {
            for block in blocks {
                let is_wanted = |w: &Wanted| w.file == file && w.blocks.contains(&block);
                if wanted.iter().any(is_wanted) || is_here(file, block) {
                    continue;
                }
                // The first page is fetched whatever it takes.
                if pages_done > 0 && total + BLOCK > bytes {
                    break 'pages;
                }
                let after =
                    |w: &Wanted| w.file == file && (w.blocks.end..=w.blocks.end + GAP).contains(&block);
                let before =
                    |w: &Wanted| w.file == file && (block + 1..=block + 1 + GAP).contains(&w.blocks.start);
                if let Some(w) = wanted.iter_mut().find(|w| after(w)) {
                    total += (block + 1 - w.blocks.end) * BLOCK;
                    w.blocks.end = block + 1;
                } else if let Some(w) = wanted.iter_mut().find(|w| before(w)) {
                    total += (w.blocks.start - block) * BLOCK;
                    w.blocks.start = block;
                } else if wanted.len() < requests {
                    total += BLOCK;
                    wanted.push(Wanted { file, blocks: block..block + 1 });
                } else {
                    break 'pages;
                }
            }
        }
        pages_done += 1;
    }
    (wanted, pages_done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ten pages a block: odd hundreds of pages in file 1, the others in file 0.
    fn place(pgno: Pgno) -> Option<(usize, Range<u64>)> {
        let n = u64::from(pgno.get());
        let file = usize::from(n / 100 % 2 == 1);
        // The last of ten goes on in the next block.
        Some((file, n / 10..n / 10 + 1 + u64::from(n % 10 == 9)))
    }

    fn of(pages: &[u32], blocks: u64, requests: usize, here: &[u64]) -> Vec<(usize, Range<u64>)> {
        let pages = pages.iter().filter_map(|n| Pgno::new(*n));
        let (wanted, _) = plan(pages, blocks * BLOCK, requests, place, |_, b| here.contains(&b));
        wanted.into_iter().map(|w| (w.file, w.blocks)).collect()
    }

    #[test]
    fn what_is_wanted_in_few_requests() {
        for (what, pages, blocks, requests, here, expected) in [
            ("one page", vec![5], 9, 8, vec![], vec![(0, 0..1)]),
            ("one that goes on in the next block, whatever it takes", vec![9], 1, 1, vec![], vec![(0, 0..2)]),
            ("neighbours", vec![5, 6, 15, 25], 9, 8, vec![], vec![(0, 0..3)]),
            ("backwards", vec![25, 15, 5], 9, 8, vec![], vec![(0, 0..3)]),
            ("one block between", vec![5, 25], 9, 8, vec![], vec![(0, 0..3)]),
            ("two blocks between", vec![5, 35], 9, 8, vec![], vec![(0, 0..1), (0, 3..4)]),
            ("two files", vec![95, 105, 96, 106], 9, 8, vec![], vec![(0, 9..10), (1, 10..11)]),
            ("no more bytes", vec![5, 15, 25], 2, 8, vec![], vec![(0, 0..2)]),
            ("no more requests", vec![5, 45, 85], 9, 2, vec![], vec![(0, 0..1), (0, 4..5)]),
            ("what is here", vec![5, 15, 25], 9, 8, vec![0, 1], vec![(0, 2..3)]),
            ("all is here", vec![5, 15], 9, 8, vec![0, 1], vec![]),
        ] {
            assert_eq!(of(&pages, blocks, requests, &here), expected, "{what}");
        }
    }
}
