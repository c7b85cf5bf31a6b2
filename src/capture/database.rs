//! The database as capture may read it without SQL, offered by the room that knows SQLite.

use crate::base::Result;
use crate::wal::IndexHeader;

/// One database.
pub trait Database: Send + Sync {
    /// A consistent view: see [`Pinned`]. Never called on an app's thread.
    fn pin(&self) -> Result<Box<dyn Pinned>>;
    /// Reads the database file, without locks of its own; what lies past its end is zero.
    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// The pages of WAL frames `from + 1 ..= to`, which are committed, out of the wal-index; `None` where it is not
    /// at hand. Every touch of a frame in the WAL file costs its writer a cache miss at the next reset.
    fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        let _ = (from, to);
        None
    }
}

/// A read mark held on the database: nothing it can see is overwritten while it lives.
pub trait Pinned {
    /// The wal-index header at the moment of pinning: the view is everything up to its mxFrame.
    fn header(&self) -> &IndexHeader;
    /// Whether the view is all in the database file (SQLite's read mark 0), so that the WAL must not be read.
    fn is_db_only(&self) -> bool;
    /// Reads the database file; what lies past its end is zero.
    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Size of the database file in bytes.
    fn db_size(&self) -> Result<u64>;
    /// Asked at each step of what takes long: an error when the view must be given back at once.
    fn go_on(&self) -> Result<()> {
        Ok(())
    }
}
