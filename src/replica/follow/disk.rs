//! The file that is kept up to date, as far as this room knows it.

use crate::base::{Error, PageSize, Pgno, Result, clock};

pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The follower's file inside a transaction.
pub trait Disk {
    /// Reads a page of the new page size as it lies in the file.
    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()>;
    /// Keeps the original of a page, before it is written or cut off; once for each.
    fn keep(&mut self, pgno: Pgno, page: &[u8]) -> Result<()>;
    /// Writes a page.
    fn write(&mut self, pgno: Pgno, page: &[u8]) -> Result<()>;
    /// Sets the size of the database in pages.
    fn resize(&mut self, pages: u32) -> Result<()>;
}

/// Pages from `first` to `last` but the lock page.
pub(super) fn data_pages(first: u32, last: u32, size: PageSize) -> impl Iterator<Item = Pgno> {
    (first..=last).filter_map(Pgno::new).filter(move |p| *p != size.lock_page())
}

/// A counter after `counter`, at a distance that somebody else's increments do not meet.
pub(super) fn fresh_counter(counter: u32) -> u32 {
    counter.wrapping_add(2).wrapping_add((clock::random_u64() & 0xffff) as u32)
}

/// The first 100 bytes of the source's page 1.
pub(super) fn header_of(page: &[u8]) -> Result<[u8; 100]> {
    match page.first_chunk::<100>() {
        Some(h) if h.starts_with(MAGIC) => Ok(*h),
        _ => Err(Error::config(
            "the source is encrypted, or no SQLite database: walrust_replicate cannot keep a file that others read; \
             use walrust_restore",
        )),
    }
}
