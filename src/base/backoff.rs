//! How long to wait between two tries. Pure: the chance is handed in.

use std::time::Duration;

/// The bound on the wait after failed try number `failed` (the first is 0): `base`, doubled each time, `max` at the
/// most.
pub fn bound(failed: u32, base: Duration, max: Duration) -> Duration {
    1u32.checked_shl(failed).map_or(max, |f| base.saturating_mul(f)).min(max)
}

/// A time between nothing and `bound`, both included; `random` is any random number. Waits that differ keep a thousand
/// clients from coming back together (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
pub fn within(bound: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(nanos.checked_add(1).map_or(random, |n| random % n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_and_end() {
        let ms = Duration::from_millis;
        let bounds: Vec<u128> = (0..5).map(|n| bound(n, ms(100), ms(1_000)).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1_000]);
        assert_eq!(bound(200, ms(100), ms(1_000)), ms(1_000));
        assert_eq!(bound(31, Duration::MAX, ms(7)), ms(7));
        assert_eq!(within(Duration::ZERO, 77), Duration::ZERO);
        assert_eq!(within(Duration::from_nanos(9), 19), Duration::from_nanos(9));
        assert!(within(Duration::MAX, u64::MAX) <= Duration::MAX);
    }
}
