//! From the spool to the replica: in order, once, and known to be there before it is forgotten here.
//!
//! # Order
//!
//! Files go up oldest first, one at a time: a listing of the replica never shows a hole, and "shipped up to
//! TXID n" means every TXID up to n. For each file: PUT (create-only) → manifest → `shipped.json` → removed
//! from the queue (kept for merging). A snapshot that starts a lineage precedes what follows it; a
//! later snapshot goes up beside the stream.
//!
//! # Rules
//!
//! * I-SHIP-1: progress is contiguous and is recorded only after the PUT was acknowledged or found to be ours.
//! * I-SHIP-2: a create-only PUT that meets other content is a rival's: stop ([`State::Fenced`]).
//! * I-SHIP-3: a failed upload is never skipped; it is tried again until it is there, or the state says why not.
//! * I-SHIP-4: what the replica holds is not deleted before what replaces it is there and in the manifest.
//! * I-SHIP-5: no page of a backlog is held in memory: one file's bytes at a time, large ones in parts.
//! * I-SHIP-6: a panic of the shipper is the database's state and is told; it begins again after a rest.
//!
//! # Crash
//!
//! After the PUT and before the record: the same file is put again on the next start, and the store answers
//! that it is there; its put id or content says it is ours. After the PUT and before the manifest: the file
//! is not in the manifest until the next start appends it again.
//!
//! # Refused
//!
//! Parallel uploads of one database's stream: they show holes to whoever restores at that moment.
//! A thread per database: a thousand databases share one current-thread runtime.

mod lease;
mod lend;
mod link;
mod merge;
pub mod runtime;
#[cfg(test)]
mod steady;
mod upload;

pub use lease::{Lease, LeaseState, Me};
pub use lend::Borrowed;
pub use link::{Link, State, Status};
pub use upload::{Event, Plan, run};
