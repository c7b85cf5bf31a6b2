//! A moment of the wall clock, as files and records carry it.

use std::fmt;
use std::time::Duration;

/// Milliseconds since the Unix epoch, as LTX headers carry them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2026-11-22T18:04:43.421Z`.
    pub fn rfc3339(self) -> String {
        match chrono::DateTime::<chrono::Utc>::from_timestamp_millis(self.0) {
            Some(t) => t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            None => format!("{} ms since 1970", self.0),
        }
    }

    /// `self + later`.
    #[must_use]
    pub fn plus(self, later: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(later.as_millis()).unwrap_or(i64::MAX)))
    }

    /// `self - earlier`, zero if negative.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A file's time; what is before 1970 is that year's beginning.
impl From<std::time::SystemTime> for Timestamp {
    fn from(at: std::time::SystemTime) -> Timestamp {
        let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}
