//! The durable local queue between capture and ship: a directory beside the database.
//!
//! # What lies here
//!
//! ```text
//! position.json          how far the WAL is sealed, and what the database then is (Position); synced by make_durable
//! owed                   what the replica's manifest will say of files that are there and that it does not name yet
//! store.json             what the store was found to be able to do, so that the next process need not ask
//! drills                 the history of drills
//! sound.json             the newest snapshot of which it is known that its database was sound
//! labels.json            schema cookies that were seen on their way, for `auto_label` to look at
//! care.json              when the replica was last validated, and after which snapshot retention was applied, by whatever process
//! met.json               what the database file was before this machine's first commits, while its replica was not heard
//! shipped.json           the newest TXID that is durable in the replica (Shipped)
//! ventured.json          what may be in the replica although the position does not say so (Ventured)
//! replica.json           which replica that is, and the lineages that are ours (Identity); synced before anything leaves
//! shipper.json           the process that ships, and where to (Shipping)
//! writer                 the id under which this spool writes to replicas; synced when it is made
//! database.json          whose spool this is (Owner); synced before anything leaves
//! open/<txid>.<k>.ltx    pieces: sealed WAL ranges of the TXID that is not cut yet
//! pending/<txid>.ltx     cut level-0 files, not yet in the replica
//! asked/<txid>.ltx       the pending files of COMMITs under sync durability, until those are known to have come to be
//! merge/<level>/<name>   files that are in the replica, kept until they are merged upward
//! snapshot/<name>        finished snapshot files on their way to the replica
//! mirror/<id>/           the queue of a mirror (see the file `mirror.rs`)
//! requests/              what other processes ask of the one that ships, while they wait for it
//! pages.sum              8 bytes a page: the checksum of each page at `position` (PageSums)
//! lock.ship, lock.seal   fcntl locks: who ships (one process), who seals (one thread anywhere); the second says, too,
//!                        whether something is half done, and how much is on disk
//! lock.ahead             held by the process whose COMMIT waits for the replica (sync durability)
//! ```
//!
//! # Rules
//!
//! * I-SPOOL-1: files appear under their final name by rename, complete; what is named `.tmp-*` and used by nobody is litter.
//! * I-SPOOL-2: a piece exists before the position that counts it, and the position counts it before the
//!   WAL frames it holds may be overwritten (and after [`Spool::make_durable`]). A last close removes the WAL before that: it syncs the
//!   database file, and what it left here is forced to disk within a second, by a thread of ours: a program that opens and closes a
//!   database for each request would wait for more syncs of ours than of SQLite's. Power that fails in that second
//!   costs the proof that nothing is missing, and so a snapshot.
//! * I-SPOOL-3: positions are written under the seal lock only.
//! * I-SPOOL-4: the spool is a diode: it cannot name the store. Shipping reads it and removes from it.
//! * I-SPOOL-5: the page sums are trusted only if their XOR equals the position's checksum.
//! * I-SPOOL-6: a process that dies, or fails, between two files leaves a mark in `lock.seal`; the next holder,
//!   of whatever process, settles it first.
//! * I-SPOOL-7: a lineage, and a TXID whose commit may never come to be, are written down before the shipper can see
//!   their files, and a lineage is on disk before the first of them leaves ([`Spool::vouch`]), so that no crash makes this
//!   machine take its own files for another's or use the TXID again.
//! * I-SPOOL-8: nothing leaves before the position counts it ([`Spool::shippable`]), except the file that a COMMIT under
//!   sync durability waits for; that one is nobody else's to make again while its process lives.
//! * I-SPOOL-9: whatever the replica may have of a COMMIT that failed, or died with its process, lies in `asked`: that is
//!   how the shipper knows it again, and takes it back.
//! * I-SPOOL-10: a spool is one database's ([`Spool::claim`]), and only files of a lineage that was begun or taken up
//!   here leave it ([`Spool::vouch`]).
//! * I-SPOOL-11: who may read the database may read the spool, and nobody else: what is made takes the database's mode and owner.
//! * I-SPOOL-12: where a place is given up, no file is made, or kept, of a TXID that the replica has: a power cut may have taken back what
//!   was shipped, and what is left of it is less.
//!
//! # After a crash
//!
//! [`Spool::recover`] settles the two places where a crash can fall between two files: a piece that no
//! position counts is adopted if it continues the position (else removed), and a pending file that no
//! position counts likewise. Litter is removed. Anything else unreadable means "position unknown", which
//! the caller answers by comparing content, never by guessing.
//!
//! # Refused
//!
//! A single log file with an index of its own: the LTX files *are* the records, readable by the same
//! strict decoder as everything else. A raw copy of WAL frames: under load one hot page would be copied
//! to disk thousands of times; a piece holds its newest version once.

mod dir;
mod drills;
mod durable;
mod files;
mod held;
mod lock;
mod mirror;
mod moment;
mod owed;
mod owner;
mod pieces;
mod position;
mod queue;
mod records;
mod recover;
pub mod requests;
mod sums;
#[cfg(test)]
mod tests;

pub use dir::{Spool, dir_id, page_sums_of, real_dir};
pub use drills::DrillNote;
pub use files::remove_if_there;
pub use held::{Change, SealHeld};
#[cfg(feature = "sim")]
pub use lock::forget_all;
pub use lock::{Held, Keeper, Kept, LockFile, keep_with, process, wait_at_most};
pub use moment::{LocalFile, Moment};
pub use owner::{Owner, Shipping, holder_of, other_database, shipping_in};
pub use position::{FileStamp, Growth, Handoff, Identity, Position, Shipped, Ventured, WalPlace, WalPoint};
pub use queue::{Queued, Shippable, Vouched};
pub use records::SchemaSeen;
pub use sums::{FrozenSums, PageSums};
