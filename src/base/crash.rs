//! Named crash points: where a test can kill the process between two steps of a protocol.
//!
//! Nothing without the cargo feature `crash-points`. With it, `WALRUST_CRASH=name` kills the process
//! (SIGKILL, no unwinding, no destructors) the first time `point("name")` is reached, and
//! `WALRUST_CRASH=name:n` the n-th time.

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

    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    pub(super) fn reached(name: &str) {
        let armed = ARMED.get_or_init(|| {
            let v = std::env::var("WALRUST_CRASH").ok()?;
            match v.split_once(':') {
                Some((n, k)) => Some((n.to_string(), k.parse().ok()?)),
                None => Some((v, 1)),
            }
        });
        if let Some((at, nth)) = armed
            && at == name
            && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *nth
        {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
