//! Which pages are at hand, read in windows, and which are to be fetched, in pieces. Knows neither a store nor a temporary file.

use crate::base::{PageSize, Pgno};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a large file that are one request at most.
pub(super) const MOST_AT_ONCE: u64 = 1 << 20;
/// Frames that lie no farther apart than this are fetched together: a request costs about as much, in money, as 4 KiB, and in time as more.
pub(super) const GAP: u64 = 8 << 10;
/// What is read of a file at hand at a time.
const RUN: usize = 256 << 10;

/// A file that is read page by page, mostly in order.
pub(super) struct Window<'a> {
    file: &'a File,
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a File) -> Window<'a> {
        Window { file, at: 0, bytes: Vec::new() }
    }

    /// The page at the place of `pgno`; `None` if the file ends before, or cannot be read.
    pub(super) fn page(&mut self, pgno: Pgno, size: PageSize) -> Option<&[u8]> {
        let offset = pgno.offset(size);
        let end = self.at + self.bytes.len() as u64;
        if offset < self.at || offset + size.len() as u64 > end {
            let most = if offset == end { RUN.max(size.len()) } else { size.len() };
            self.at = offset;
            self.bytes.resize(most, 0);
            let mut filled = 0;
            while let Some(rest) = self.bytes.get_mut(filled..).filter(|r| !r.is_empty()) {
                match self.file.read_at(rest, offset + filled as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => filled += n,
                }
            }
            self.bytes.truncate(filled);
        }
        let from = usize::try_from(offset - self.at).ok()?;
        self.bytes.get(from..from + size.len())
    }
}

/// Pages of one file that are fetched.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) pages: Vec<Pgno>,
    pub(super) pieces: Vec<Piece>,
}

/// Frames that are fetched together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) bytes: Range<u64>,
    /// How many pages of the file come before the first of them.
    pub(super) first: usize,
    /// Which of the missing ones they bring.
    pub(super) pages: Range<usize>,
}

impl Missing {
    /// The `n`-th page of the file, whose frame lies there. Pages come in the order of the file.
    pub(super) fn add(&mut self, n: usize, pgno: Pgno, frame: Range<u64>) {
        let count = self.pages.len();
        self.pages.push(pgno);
        if let Some(last) = self.pieces.last_mut()
            && frame.start <= last.bytes.end + GAP
            && frame.end - last.bytes.start <= MOST_AT_ONCE
        {
            last.bytes.end = frame.end;
            last.pages.end = count + 1;
            return;
        }
        self.pieces.push(Piece { bytes: frame, first: n, pages: count..count + 1 });
    }
}
