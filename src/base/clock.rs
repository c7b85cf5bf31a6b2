//! The doors to time and chance. Nothing else in the crate asks the system for either
//! (clippy.toml disallows it), so a simulation can stand in.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

    /// `self - earlier`, zero if negative.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// Where a room that must be simulated gets its time.
pub trait Clock: Send + Sync {
    /// Wall-clock time.
    fn now(&self) -> Timestamp;
    /// A clock that never goes back; only differences mean anything.
    fn uptime(&self) -> Duration;
}

/// The system's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        now()
    }
    fn uptime(&self) -> Duration {
        uptime()
    }
}

/// Wall-clock time now.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        return w.now();
    }
    let d = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Monotonic time since the first call in this process.
#[allow(clippy::disallowed_methods)]
pub fn uptime() -> Duration {
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        return w.uptime();
    }
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Lets this thread rest.
#[allow(clippy::disallowed_methods)]
pub fn sleep(d: Duration) {
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        return w.sleep(d);
    }
    std::thread::sleep(d);
}

/// An unpredictable number (put ids, lineages, jitter).
pub fn random_u64() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        return w.random();
    }
    getrandom::u64().unwrap_or_else(|_| {
        // No entropy source: distinct in this process and very likely across machines.
        let t = now().0 as u64;
        let a = std::ptr::from_ref(&t) as u64;
        t.rotate_left(20) ^ a ^ u64::from(std::process::id()) << 48
    })
}
