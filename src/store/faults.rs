//! Named trouble for tests and simulation: every verb asks [`Faults::next`] before it acts.

use crate::base::Kind;
use std::time::Duration;

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Op {
    /// A create-only put.
    PutNew,
    /// An overwriting put.
    PutOver,
    /// A conditional put.
    PutIf,
    /// A read, whole or ranged.
    Get,
    /// A look at metadata.
    Head,
    /// A listing.
    List,
    /// A delete.
    Delete,
}

/// What happens to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It does not reach the store and fails with this kind.
    Fail(Kind),
    /// It waits, then is carried out.
    Delay(Duration),
    /// It is carried out, but the answer is lost: the caller sees [`Kind::Retry`].
    LoseAnswer,
}

/// Decides the fate of requests.
pub trait Faults: Send + Sync {
    /// Called once per try of each verb. `key` is relative to the replica; the prefix for a listing;
    /// the first key for a delete.
    fn next(&self, op: Op, key: &str) -> Fault;
}
