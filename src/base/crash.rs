//! Named crash points: where a test can kill the process between two steps of a protocol.
//!
//! Nothing without the cargo feature `crash-points`. With it, `WALRUST_CRASH=name` kills the process
//! (SIGKILL, no unwinding, no destructors) the first time `point("name")` is reached, and
//! `WALRUST_CRASH=name:n` the n-th time. `WALRUST_PANIC=name` or `name:n` panics there instead.

/// A place where a crash must be harmless.
#[inline]
pub fn point(name: &str) {
    #[cfg(feature = "crash-points")]
    armed::reached(name);
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        w.reached(name);
    }
    #[cfg(not(feature = "crash-points"))]
    let _ = name;
}

/// A duration that tests may shorten: `WALRUST_LEASE_MS` stands in for the life of a lease. Nothing without the feature.
#[inline]
pub fn lease_life(usual: std::time::Duration) -> std::time::Duration {
    #[cfg(feature = "crash-points")]
    if let Some(ms) = std::env::var("WALRUST_LEASE_MS").ok().and_then(|v| v.parse().ok()) {
        return std::time::Duration::from_millis(ms);
    }
    usual
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A point, and which time counts.
    type Armed = Option<(String, u64)>;

    static ARMED: OnceLock<(Armed, Armed)> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    fn said(variable: &str) -> Armed {
        let v = std::env::var(variable).ok()?;
        match v.split_once(':') {
            Some((n, k)) => Some((n.to_string(), k.parse().ok()?)),
            None => Some((v, 1)),
        }
    }

    #[allow(clippy::panic)] // asked for
    pub(super) fn reached(name: &str) {
        let (crash, panic) = ARMED.get_or_init(|| (said("WALRUST_CRASH"), said("WALRUST_PANIC")));
        let is_now = |armed: &Armed| {
            armed
                .as_ref()
                .is_some_and(|(at, nth)| at == name && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *nth)
        };
        if is_now(crash) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        if is_now(panic) {
            panic!("asked to panic at {name}");
        }
    }
}
