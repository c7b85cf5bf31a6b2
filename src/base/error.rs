//! The one error. Its kind says what the caller can do next; its text is one line for a person:
//! what was given, what is allowed, what to do. The text never holds a secret.

use std::fmt::{self, Write as _};

/// What the caller can do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
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
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => Kind::Missing,
            _ if is_shortage(&e) => Kind::Retry,
            _ => Kind::Io,
        };
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

    /// Whether the process, or the machine, is short of descriptors, memory or threads: that passes, and says nothing of the file
    /// or store that was asked for.
    pub fn is_shortage(&self) -> bool {
        let mut at: Option<&(dyn std::error::Error + 'static)> = self.source.as_deref().map(|e| e as _);
        while let Some(e) = at {
            let io = e.downcast_ref::<std::io::Error>();
            if io.is_some_and(is_shortage) || e.downcast_ref::<Error>().is_some_and(Error::is_shortage) {
                return true;
            }
            at = e.source();
        }
        false
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

/// EMFILE, ENFILE, ENOMEM and EAGAIN (of a thread that could not be started).
pub fn is_shortage(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN].map(Errno::raw_os_error);
    e.raw_os_error().is_some_and(|n| short.contains(&n))
}

/// One line, whatever stood in the path or answer that it tells of: control characters are shown escaped.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(OneLine(f), "{}", self.message)?;
        let mut at: Option<&(dyn std::error::Error + 'static)> = self.source.as_deref().map(|e| e as _);
        while let Some(e) = at {
            write!(OneLine(f), ": {e}")?;
            at = e.source();
        }
        Ok(())
    }
}

/// Passes text on with its control characters escaped.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let mut rest = part.chars();
            match rest.next_back() {
                Some(last) if last.is_control() => {
                    self.0.write_str(rest.as_str())?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                _ => self.0.write_str(part)?,
            }
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

/// `given` as it may stand in an error: quoted, escaped, cut. Of a URL, which may hold a password, the scheme.
pub fn quoted(given: &str) -> String {
    let shown = match given.find("://") {
        Some(i) if given.contains(['@', '?']) => given.get(..i + 3).unwrap_or_default(),
        _ => given,
    };
    let short: String = shown.chars().take(60).collect();
    let more = if short.len() < given.len() { "..." } else { "" };
    format!("\"{}{more}\"", short.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_text_is_one_line() {
        let e = Error::config("no file a\nb\u{1b}[31m").because("line one\r\nline two").context("x\ty");
        assert_eq!(e.to_string(), "x\\ty: no file a\\nb\\u{1b}[31m: line one\\r\\nline two");
        assert_eq!(Error::config("plain ä").to_string(), "plain ä");
    }

    #[test]
    fn what_the_process_is_short_of_passes() {
        let path = std::path::Path::new("x");
        let table = [
            (Errno::MFILE, Kind::Retry),
            (Errno::NFILE, Kind::Retry),
            (Errno::NOMEM, Kind::Retry),
            (Errno::NOENT, Kind::Missing),
            (Errno::NOSPC, Kind::Io),
            (Errno::IO, Kind::Io),
        ];
        for (errno, kind) in table {
            let e = Error::io("open", path, errno.into());
            assert_eq!((e.kind(), e.is_shortage()), (kind, kind == Kind::Retry), "{e}");
            assert_eq!(Error::new(Kind::Retry, "so").because(e).is_shortage(), kind == Kind::Retry);
        }
        assert!(!Error::new(Kind::Retry, "busy").is_shortage());
    }
}
