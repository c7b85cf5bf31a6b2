//! Why something is not sealed, or continuity is lost.

use crate::base::Error;
use std::fmt;

/// Why continuity is lost: something was, or may have been, missed. One line, for the log and the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap(String);

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Gap {
    fn from(why: String) -> Gap {
        Gap(why)
    }
}

impl From<&str> for Gap {
    fn from(why: &str) -> Gap {
        Gap(why.to_string())
    }
}

/// What failed on the way from one state to the next: whether it is there cannot be told.
impl From<Error> for Gap {
    fn from(e: Error) -> Gap {
        Gap(e.to_string())
    }
}

impl From<Gap> for String {
    fn from(gap: Gap) -> String {
        gap.0
    }
}

/// No position can be read where one must be.
pub(super) const NO_POSITION: &str = "the spool's position is gone";
/// The database file is not the one that is known, and no WAL tells how it came to be.
pub(super) const CHANGED: &str = "the database was changed by something that had not loaded walrust";

/// Why nothing was sealed.
#[derive(Debug)]
pub enum SealError {
    /// The WAL does not go on from the position.
    OutOfSync(Gap),
    /// The WAL was reset while it was read: look again.
    Again,
    /// Reading or writing failed.
    Failed(Error),
}

impl From<crate::wal::ReadError> for SealError {
    fn from(e: crate::wal::ReadError) -> Self {
        match e {
            crate::wal::ReadError::Reset(_) => SealError::Again,
            e => SealError::Failed(e.into()),
        }
    }
}

impl From<Error> for SealError {
    fn from(e: Error) -> Self {
        SealError::Failed(e)
    }
}
