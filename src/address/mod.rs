//! Replica URLs: the one name a user gives a replica. This is the only place that knows their grammar.
//!
//! Pure, but for [`canonical`], which asks the file system about links. An error never repeats what may be a secret:
//! user info, or the value of an unknown query key.

mod endpoint;
mod key;
mod kind;
mod percent;
mod url;

pub use endpoint::{endpoint, host_for};
pub use key::{canonical, replica_key};
pub use kind::{BucketIn, Checksums, LayoutKind, StoreKind};
pub use percent::encode_part;
pub use url::ReplicaUrl;
