//! The one error. Its kind says what the caller can do next; its text is one line for a person:
//! what was given, what is allowed, what to do. The text never holds a secret.

use std::fmt;

/// What the caller can do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Trouble that may pass: try again later (network, 5xx, 429, timeouts).
    Retry,
    /// The store refused our identity or rights (401, 403): trying again will not help.
    Denied,
    /// Another writer owns the replica: stop.
    Fenced,
    /// What was asked for is not there.
    Missing,
    /// A create-only write found something else in its place.
    Exists,
    /// Bytes are not what they must be: do not use them.
    Corrupt,
    /// The request itself is wrong: bad URL, option, argument, setting.
    Config,
    /// The local disk or operating system failed.
    Io,
    /// SQLite refused.
    Sqlite,
    /// Time ran out before the thing was done.
    Timeout,
    /// A defect of ours.
    Bug,
}

/// An error with its kind, one line of text, and the error under it.
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    retry_after: Option<std::time::Duration>,
}

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error. `message` is one line.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None, retry_after: None }
    }

    /// Shorthand for [`Kind::Config`].
    pub fn config(message: impl Into<String>) -> Error {
        Error::new(Kind::Config, message)
    }

    /// Shorthand for [`Kind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Error {
        Error::new(Kind::Corrupt, message)
    }

    /// Keeps the error that caused this one; `Display` shows it after a colon.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// Puts `what` in front of the text, keeping the kind.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// A local I/O failure at `path`.
    pub fn io(what: &str, path: &std::path::Path, e: std::io::Error) -> Error {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::Missing } else { Kind::Io };
        Error::new(kind, format!("cannot {what} {}", path.display())).because(e)
    }

    /// Remembers how long the other side asked us to wait (HTTP `Retry-After`).
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<std::time::Duration>) -> Error {
        self.retry_after = wait;
        self
    }

    /// How long the other side asked us to wait, if it did.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        self.retry_after
    }

    /// What the caller can do next.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a later try may succeed.
    pub fn is_retry(&self) -> bool {
        self.kind == Kind::Retry
    }

    /// Whether the thing asked for is absent.
    pub fn is_missing(&self) -> bool {
        self.kind == Kind::Missing
    }

    /// Whether bytes were found damaged.
    pub fn is_corrupt(&self) -> bool {
        self.kind == Kind::Corrupt
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut at: Option<&(dyn std::error::Error + 'static)> = self.source.as_deref().map(|e| e as _);
        while let Some(e) = at {
            write!(f, ": {e}")?;
            at = e.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {}
