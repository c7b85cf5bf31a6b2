//! Which ranges of which files to fetch for a page and for what SQLite will want after it. Pure.
//!
//! A table that is scanned is read by rising page numbers, mostly. So with a page come those that follow it in the database, from
//! whatever files hold them; frames that lie next to each other in a file come in one request. How many follow is told by what the
//! connection read before ([`Pace`]): a few where it jumps, four times as many as the last time where it goes on where it was.

use crate::base::{Pgno, Result};
use crate::ltx::IndexEntry;
use crate::replica::pages::{PageMap, Place};
use std::ops::Range;

/// Bytes fetched with a page that nothing foretold.
const FIRST: u64 = 32 << 10;
/// Bytes fetched at once at most.
const MOST: u64 = 1 << 20;
/// Bytes between two frames that are fetched with them rather than asked for in two requests.
const GAP: u64 = 64 << 10;
/// Pages looked ahead at most.
const AHEAD: u32 = 4096;

/// How far a connection reads ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pace {
    /// The first page after those fetched last.
    next: u32,
    bytes: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { next: 0, bytes: FIRST }
    }
}

impl Pace {
    /// How many bytes to fetch with page `pgno`, which is not here.
    pub(super) fn bytes(&mut self, pgno: Pgno) -> u64 {
        // Interior pages lie between the leaves: a scan leaves out some.
        let goes_on = (self.next..self.next.saturating_add(64)).contains(&pgno.get()) && self.next > 0;
        self.bytes = if goes_on { (self.bytes * 4).min(MOST) } else { FIRST };
        self.bytes
    }

    /// The pages up to this one were fetched.
    pub(super) fn fetched(&mut self, last: Pgno) {
        self.next = last.get().saturating_add(1);
    }
}

/// One request: a range of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    /// Which file of the map.
    pub(super) file: usize,
    /// Of the file.
    pub(super) range: Range<u64>,
}

/// What to fetch for `first` and what follows it, `bytes` in all or little more, in `requests` requests at most; and the last page
/// of it. `is_here` says which need not be fetched. Errors with `Corrupt` where the map has no place for `first`.
pub(super) fn plan(
    map: &PageMap,
    first: Pgno,
    bytes: u64,
    requests: usize,
    is_here: impl Fn(usize, &IndexEntry) -> bool,
) -> Result<(Vec<Wanted>, Pgno)> {
    let (mut wanted, mut total, mut last): (Vec<Wanted>, u64, Pgno) = (Vec::new(), 0, first);
    for n in (first.get()..=map.pages()).take(AHEAD as usize) {
        let Some(pgno) = Pgno::new(n) else { break };
        let place = match map.place(pgno) {
            Err(e) if pgno == first => return Err(e),
            Err(_) => break,
            Ok(place) => place,
        };
        if let Place::In(file, entry) = place
            && !is_here(file, &entry)
        {
            let len = u64::from(entry.len);
            if total > 0 && total + len > bytes {
                break;
            }
            let is_near = |w: &Wanted| {
                w.file == file && w.range.end <= entry.offset && entry.offset - w.range.end <= GAP
            };
            let near = wanted.iter().position(is_near);
            let is_full = wanted.len() >= requests;
            match near.and_then(|i| wanted.get_mut(i)) {
                Some(w) => {
                    total += entry.range().end - w.range.end;
                    w.range.end = entry.range().end;
                }
                None if !is_full => {
                    total += len;
                    wanted.push(Wanted { file, range: entry.range() });
                }
                None => break,
            }
        }
        last = pgno;
    }
    Ok((wanted, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_rises_where_reading_goes_on_and_falls_where_it_jumps() {
        let mut pace = Pace::default();
        let at = |n| Pgno::new(n).unwrap();
        assert_eq!(pace.bytes(at(1)), FIRST);
        pace.fetched(at(8));
        assert_eq!(pace.bytes(at(9)), 4 * FIRST);
        pace.fetched(at(40));
        assert_eq!(pace.bytes(at(43)), 16 * FIRST);
        pace.fetched(at(170));
        assert_eq!(pace.bytes(at(171)), MOST);
        pace.fetched(at(400));
        assert_eq!(pace.bytes(at(9000)), FIRST);
    }
}
