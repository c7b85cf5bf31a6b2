//! The write-ahead log and its shared-memory index, as SQLite writes them: bytes → values, never the other
//! way round (but for headers, which tests and tools write).
//!
//! Source: <https://sqlite.org/fileformat2.html#the_write_ahead_log>, <https://sqlite.org/walformat.html>.
//!
//! Rules:
//! * I-WAL-1  A frame belongs to a commit only if the wal-index header, or for [`scan`] SQLite's own rule
//!   of recovery, says so. Frames past `mxFrame` may have valid checksums (a rollback after a spill) and
//!   even a commit mark (a failed fsync).
//! * I-WAL-2  [`read_frames`] proves that it read what was committed: every frame carries the salt, the
//!   checksum chain runs from the start position to exactly the end position's, the last frame has a commit
//!   mark, and the WAL header is the same before and after. A reset writes the header first, so an
//!   unchanged header means that no frame was overwritten meanwhile.
//! * I-WAL-3  What went away ([`ReadError::Reset`]) and what is damaged ([`ReadError::Corrupt`]) are told
//!   apart: the first is everyday life in a file shared with others, the second never happens to a healthy
//!   disk.
//! * I-WAL-4  Memory: one buffer of some 256 KiB, and 16 to 32 bytes for each distinct page in the range.
//!   Page size and sizes come from the headers; page bytes are opaque (they may be encrypted).
//! * I-WAL-5  [`locate`] and [`Places::read`] prove the same of what they give, for the price of the distinct
//!   pages: the last frame is the commit frame that the wal-index names, and each page that is used carries the
//!   salt and makes its own step of the checksum chain. Content that a newer frame replaced is not read.
//!
//! Who may call it: anybody, on any thread; it only reads, through [`ReadAt`]. A crash leaves nothing behind.
//!
//! Refused: following commits by parsing writes to the WAL (spill, padding and rollback make that
//! guesswork); keeping page contents (the WAL is the buffer: read again at [`page_offset`]).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod checksum;
mod header;
mod index_header;
mod read;
mod read_at;
#[cfg(test)]
mod tests;

pub use checksum::{Endian, FrameChecksum, checksum};
pub use header::{
    FRAME_HEADER_LEN, FrameHeader, Salt, WAL_HEADER_LEN, WalHeader, WalPos, frame_offset, page_offset,
};
pub use index_header::{INDEX_HEADER_LEN, IndexHeader, READ_MARK_NOT_USED};
pub use read::{
    Frame, Frames, Place, Places, ReadError, Scan, check_generation, checksum_at, current_salt, frame_page,
    frame_pages, goes_on, locate, read_frames, scan,
};
pub use read_at::ReadAt;
