//! The door to a replica's store: S3, Google Cloud Storage, Azure, a directory. object_store behind a
//! few verbs; nothing above this room names object_store, HTTP, or a cloud.
//!
//! Rules that hold:
//!
//! * I-STORE-1: keys are relative to the replica's path; no verb reaches outside of it.
//! * I-STORE-2: [`Store::put_new`] never replaces what is there, where the store enforces conditions
//!   ([`Store::conditions`]); its answer says whether *this content* is there, also when an answer was lost.
//! * I-STORE-3: an error's kind comes from types and statuses, never from texts.
//! * I-STORE-4: a put that returned `Ok` is durable: remote stores promise it, the local one syncs
//!   file and directories first.
//! * I-STORE-5: no secret in any text; each text is one line.
//! * I-STORE-6: memory is bounded by what is under way of an upload from a file (32 MiB, or one part: see `parts`), one piece per streamed download, and
//!   [`WHOLE_BYTES`] for an object that is read at once, whatever length it says it has.
//! * I-STORE-7: a store that is [`Store::append_only`] sends no request that replaces or removes an object, and none that creates one without
//!   the condition that nothing is there. (The probe of conditions, [`Store::probe_conditional`], is made with one object that stays.)
//!
//! How it is made: [`Store`] is the door; behind it is one [`backend::Backend`] for each kind of store. What every
//! kind needs alike (retries, put ids, what is known of conditions, faults) is the door's, so another kind, or a layer
//! around one, is one file.
//!
//! Who may call it: `replica`, `ship` and above, from async code in any runtime ([`block_on`] makes one).
//! A crash leaves behind: remotely at most an incomplete multipart upload (for the bucket's lifecycle
//! rule); locally a `.walrust-tmp-…` file that nobody lists.
//!
//! Refused: writing unconditionally and looking afterwards (a rival's file would be gone by then);
//! object_store's own retries (they ignore `Retry-After` and multiply with ours) and its local store (no
//! mtime, no conditional update); a metadata-only put id (Litestream's and local files have none: content decides).

mod age;
mod answer;
mod backend;
pub mod bandwidth;
mod block;
mod breaker;
mod conditions;
mod credentials;
mod direct;
mod directory;
mod door;
mod env;
mod error;
mod faults;
mod http;
mod local;
mod object;
mod objects;
mod open;
mod opening;
mod parts;
mod past;
mod probe;
mod process;
mod profile;
mod put;
mod requests;
mod retry;
mod sign;
mod text;
mod xml;

#[cfg(test)]
#[path = "../../tests/support/fake_s3.rs"]
pub mod fake_s3;
#[cfg(test)]
mod tests;

pub use crate::address::{BucketIn, Checksums, LayoutKind, ReplicaUrl, StoreKind};
pub use crate::base::hex::Digest32;
pub use age::Recipients;
pub use bandwidth::Pace;
pub use block::block_on;
pub use breaker::{Breaker, BreakerState, Change, Permit};
pub use conditions::Conditions;
pub use direct::{Hold, LockMode};
pub use door::{APPEND_ONLY_KEY, AtRest, Store};
pub use env::Env;
pub use faults::{Fault, Faults, Op};
pub use object::{Body, ByteStream, ObjectInfo, Version, WHOLE_BYTES};
pub use put::{Holds, Put, PutMeta};
pub use requests::{Requests, requests_of};
pub use retry::Retry;

pub(crate) use crate::base::hex::digits as hex;
