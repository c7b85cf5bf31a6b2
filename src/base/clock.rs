//! The doors to time and chance. Nothing else in the crate asks the system for either
//! (clippy.toml disallows it), so a simulation can stand in.

use super::timestamp::Timestamp;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
