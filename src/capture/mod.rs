//! What may happen inside a commit: notice it, keep SQLite from recycling frames that are not sealed, seal.
//!
//! A commit is known from the wal-index header at the moment the WRITE lock is given up, not from parsing
//! writes: that is exact through cache spill, savepoints, rollback, padding and failed syncs, for every
//! process (<https://sqlite.org/walformat.html#the_wal_index_file_format>).
//!
//! # Rules
//!
//! * I-CAP-1: nothing past `mxFrame` is sealed, however valid its checksum looks.
//! * I-CAP-2: a WAL generation is followed by another only when all of it is sealed, or the tracker knows
//!   that it is not ([`Continuity::Lost`]) and a snapshot under a new lineage follows. Never guessed.
//! * I-CAP-3: an app's thread waits for local disk at most, never for the store, and fails for neither.
//! * I-CAP-4: what is sealed is on disk (synced) before the frames may be overwritten.
//!
//! # Continuity
//!
//! A generation is a pair of salts. Within one, the frame number and running checksum tie the next range to
//! the last. From one to the next: the process that restarts the WAL holds WRITE from before the restart
//! until its own first commit is in; it knew the old generation as sealed to its end, so at unlock it may say
//! "the new salts follow". Any doubt (salts that nobody announced, a rollback-mode write, a replaced file, a
//! WAL that lost its tail to a power cut) ends in [`Continuity::Lost`], and then only the content of the whole
//! database can prove that nothing was missed ([`resync`]).
//!
//! # Threads
//!
//! [`Tracker`] is called from the app's threads (inside SQLite's locking calls), the sealer thread and, for
//! a resync, a thread of its own. What crosses processes is the spool: position file and seal lock.
//!
//! # Refused
//!
//! Holding a read mark against resets, as Litestream does from outside: it makes the app's own checkpoints
//! report "busy" and the WAL grow while the writer is quicker than the reader. Sealing the short tail on the
//! resetting thread costs a fraction of the checkpoint it just paid.

mod ahead;
mod continuity;
mod database;
mod error;
mod generation;
mod hold;
pub mod pages;
mod resets;
pub mod resync;
mod seal;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tests;
mod tracker;

pub use continuity::{Continuity, Noticed, is_at};
pub use database::{Database, Pinned};
pub use error::{Gap, SealError};
pub use resets::{CHECKPOINT_STEP, Permit, Resetter};
pub use resync::Attested;
pub use seal::{Sealed, Uncommitted};
pub use tracker::Tracker;
