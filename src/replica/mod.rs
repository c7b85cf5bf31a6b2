//! Verbs on a replica: what lies there, which files rebuild a point, restore, verify, retention, explain.
//!
//! Pure parts (layout, point, plan, manifest form, retention, verify's judgement, explain) take values and give values;
//! the rest reads and writes through [`crate::store::Store`]. May be called on any thread, inside a tokio runtime
//! (`store::block_on` gives one). Nothing here writes LTX files: that is the sealer's and the shipper's work.
//!
//! Rules that hold across the room (each file states its own)
//! * I-REP-1 The files of a replica are judged by what they hold, never by their names alone.
//! * I-REP-2 Adding: object, then manifest. Removing: manifest, then object. See `manifest`.
//! * I-REP-3 No verb deletes an LTX file, but `compact`; and `compact` only what no kept state needs.
//!
//! A crash anywhere leaves the replica restorable and the next run goes on. Refused: a database of our own in the replica that says
//! what is where; listings are the truth, the manifest is a witness.

pub mod adopt;
pub mod apply;
mod belief;
pub mod blocks;
pub mod btree;
pub mod compact;
pub mod contents;
pub mod drill;
pub mod due;
pub mod edge;
pub mod encrypted;
pub mod explain;
pub mod fetch;
pub mod follow;
pub mod guide;
pub mod inventory;
pub mod label;
pub mod labels;
pub mod large;
pub mod layout;
pub mod list;
pub mod manifest;
pub mod mend;
pub mod pages;
pub mod place;
pub mod plan;
pub mod point;
pub mod probe;
pub mod rehearse;
pub mod rekey;
pub mod restore;
pub mod retention;
pub mod reuse;
pub mod target;
#[cfg(test)]
mod testkit;
pub mod verify;
mod vouch;

pub use compact::{Action, Compacted, compact};
pub use explain::{ExplainDatabase, Measured, Seen, explain};
pub use inventory::{FileInfo, Inventory};
pub use label::LabelName;
pub use layout::{FileId, LEASE_KEY};
pub use list::{DatabaseRow, FileRow, files, list};
pub use manifest::{Manifest, ManifestEntry, ManifestWriter};
pub use mend::{Mended, restore_from_all};
pub use plan::{Plan, plan, restorable};
pub use point::{Named, Point};
pub use rehearse::{Rehearsal, rehearse};
pub use rekey::{Rekeyed, rekey};
pub use restore::{Check, Progress, RestoreOptions, Restored, Structure, restore, txid_at};
pub use retention::{Policy, Retention, retention};
pub use reuse::Reuse;
pub use target::{Occupied, Occupier, Overwrite};
pub use verify::{Finding, Mode, Report, Rule, Severity, VerifyOptions, verify};
