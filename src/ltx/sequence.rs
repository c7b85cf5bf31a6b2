//! Which page numbers a file may hold, in which order (I-LTX-2). One judge for writer and reader.

use super::header::Header;
use crate::base::Pgno;

/// What a file claims to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A complete LTX file: with min TXID 1 it must hold every page.
    Whole,
    /// One of several parts of one TXID, to be joined by [`super::fold`]: with min TXID 1, too, any subset
    /// of pages.
    Piece,
}

#[derive(Debug)]
pub(super) struct Sequence {
    snapshot: bool,
    commit: u32,
    lock: u32,
    last: u32,
    pages: u32,
}

impl Sequence {
    pub(super) fn new(header: &Header, shape: Shape) -> Sequence {
        Sequence {
            snapshot: header.is_snapshot() && shape == Shape::Whole,
            commit: header.commit,
            lock: header.page_size.lock_page().get(),
            last: 0,
            pages: 0,
        }
    }

    /// Whether every page must be there.
    pub(super) fn is_snapshot(&self) -> bool {
        self.snapshot
    }

    /// Pages accepted so far.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// The next page; an error says which rule it breaks.
    pub(super) fn accept(&mut self, pgno: Pgno) -> Result<(), String> {
        let n = pgno.get();
        if n <= self.last {
            return Err(format!("page {n} follows page {}: pages must ascend", self.last));
        }
        if n > self.commit {
            return Err(format!("page {n} is above the database's last page {}", self.commit));
        }
        if n == self.lock {
            return Err(format!("page {n} is the lock page, which is never stored"));
        }
        if self.snapshot && n != self.after(self.last) {
            return Err(format!("a snapshot lacks page {}", self.after(self.last)));
        }
        self.last = n;
        self.pages += 1;
        Ok(())
    }

    /// No more pages.
    pub(super) fn end(&self) -> Result<(), String> {
        let missing = self.after(self.last);
        if self.snapshot && missing <= self.commit {
            return Err(format!("a snapshot lacks page {missing}"));
        }
        Ok(())
    }

    fn after(&self, n: u32) -> u32 {
        let next = n.saturating_add(1);
        if next == self.lock { next.saturating_add(1) } else { next }
    }
}
