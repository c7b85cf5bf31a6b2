//! What everybody who expects an LTX file knows of an encrypted one: how it begins, and what to tell who cannot open it. (The rest is `store::age`'s.)

use super::error::Error;

/// How an age file begins (<https://age-encryption.org/v1>).
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";

/// Whether what begins so is an age file. Pure.
pub fn is_sealed(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// What is said where something is encrypted and there is no identity.
pub fn no_identity(what: impl std::fmt::Display) -> Error {
    Error::config(format!(
        "{what} is encrypted (age): set WALRUST_IDENTITY to the path of the file with the identity (AGE-SECRET-KEY-1…) of one of its recipients"
    ))
}
