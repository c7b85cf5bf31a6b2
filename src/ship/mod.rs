//! From the spool to the replica: in order, once, and known to be there before it is forgotten here.
//!
//! # Lanes
//!
//! One task a database, in which five lanes run beside each other:
//!
//! ```text
//! stream     level 0, oldest first, and the snapshot that a lineage begins with     (stream.rs)
//! snapshots  later snapshots                                                        (beside.rs)
//! upkeep     merges; what a refused COMMIT left; lending the right to remove files  (beside.rs, lend.rs)
//! keeper     the lease                                                              (beside.rs, holder.rs, heart.rs, lease.rs)
//! clerk      the manifest's entries of level 0, many at once                        (name.rs, owed.rs)
//! ```
//!
//! Small and urgent passes large and unimportant: the stream never waits for another lane, but for one request to the manifest
//! when many entries wait. For each file of level 0: PUT (create-only) → a note in the spool of what the manifest will say →
//! `shipped.json` → kept for merging. For each other file the manifest's entry stands in the note's place, and the file is removed from the
//! queue at the end. What goes next is decided by [`plan`], which is pure.
//!
//! # Rules
//!
//! * I-SHIP-1: progress is contiguous and is recorded only after the PUT was acknowledged or found to be ours.
//! * I-SHIP-2: a create-only PUT that meets other content is a rival's: stop ([`State::Fenced`]).
//! * I-SHIP-3: a failed upload is never skipped; it is tried again until it is there, or the state says why not.
//! * I-SHIP-4: what the replica holds is not deleted before what replaces it is there and in the manifest.
//! * I-SHIP-5: no page of a backlog is held in memory: one file's bytes at a time in each lane, large ones in parts.
//! * I-SHIP-6: a panic of the shipper is the database's state and is told; it begins again after a rest.
//! * I-SHIP-7: nothing optional stops what is not. A snapshot, a merge, a taking back, retention or a renewal of the lease that fails
//!   has its own error, event and rest ([`Duty`]); the stream goes on.
//! * I-SHIP-8: nothing of a lineage is uploaded before the snapshot that it begins with is in the replica: without that it is no
//!   history, and a COMMIT that waits for it could not be restored.
//! * I-SHIP-9: a later snapshot goes up when the stream has passed its TXID, so that the newest state of the replica, and what
//!   lies between, is always the stream's.
//! * I-SHIP-10: who holds the ship lock has an upload under way, or may: a shipper that is stopped gives its uploads up after a moment,
//!   and the lock goes away when nothing of it is under way ([`leave`]).
//!
//! # Crash
//!
//! After the PUT and before the record: the same file is put again on the next start, and the store answers
//! that it is there; its put id or content says it is ours. After the PUT and before the manifest: see [`owed`]. In two lanes at once: the same, for one file of each. A snapshot that
//! was under way begins again, and what the stream has recorded meanwhile stays.
//!
//! # Refused
//!
//! Parallel uploads of the stream: they show holes to whoever restores at that moment.
//! A thread per database: a thousand databases share one current-thread runtime.
//! A task for each lane: they would have to be joined, and share by locks what they now share by turns.

mod beside;
mod desk;
mod duty;
mod heart;
mod holder;
#[cfg(test)]
mod lanes_tests;
mod lease;
mod lend;
mod link;
mod merge;
mod name;
mod owed;
mod plan;
mod run;
pub mod runtime;
mod schema;
mod sealed;
mod shipper;
mod status;
#[cfg(test)]
mod steady;
mod stream;

pub use duty::{Course, Duties, Duty};
pub use holder::{Kept, Lease, lives_for, observe};
pub use lease::{
    LeaseState, Me, Observed, Process, renew_after as lease_renewed_after, rest_after as lease_rests_after,
};
pub use lend::Borrowed;
pub use link::{Bells, Link, WaitElsewhere};
pub use run::{is_left_at_work, leave, start};
pub use schema::schema_cookie;
pub use shipper::{Event, Keeping, Plan};
pub use status::{Aged, Protection, State, Status};
