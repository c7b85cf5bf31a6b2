//! How much this process sends a second: one budget for all its uploads over HTTP.
//!
//! Rules
//! * I-WIDTH-1 What is urgent (level 0, manifest, lease) never waits here. It is counted, so that what is not urgent waits for longer.
//! * I-WIDTH-2 What is not urgent (snapshots, merges, copies, sums) is sent in pieces of [`piece_bytes`], each when the budget has as many
//!   bytes as it takes; one object, or part of one, at a time. So a wait within a request is far shorter than a server's patience.
//! * I-WIDTH-3 However much is urgent, a piece of the rest leaves at least every [`MOST_DEBT`]: else no snapshot would ever end the
//!   need for one, and no request its own time limit.
//!
//! A replica in a directory does not count: what is written there goes to a disk of this machine, and no line is shared. (Where a mount
//! is a line, its own tools bound it.) The budget is the process's, as the line is: `set` holds from the next piece on.
//!
//! Refused: to wait before each request (a part of 8 MiB at a time fills the line for as long as it takes, and level 0 with it); a budget
//! for each database (a thousand of them would share nothing).

use crate::base::{ForkSafe, clock};
use bytes::Bytes;
use futures_util::Stream;
use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long after what is urgent the rest has to wait at most.
const MOST_DEBT: Duration = Duration::from_secs(1);
/// Bounds of a piece.
const SMALLEST_PIECE_BYTES: u64 = 4 << 10;
const LARGEST_PIECE_BYTES: u64 = 64 << 10;

/// Whether an upload waits for the budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pace {
    /// It leaves at once, and counts.
    #[default]
    AtOnce,
    /// It waits for its turn and its bytes.
    Measured,
}

/// Bytes a second; 0: as many as the line takes. (A forked child has the same.)
static BYTES_PER_S: AtomicU64 = AtomicU64::new(0);

struct Budget {
    /// Until when the budget is used up.
    used_until: Mutex<Duration>,
    turn: Arc<Semaphore>,
}

static BUDGET: ForkSafe<Budget> =
    ForkSafe::new(|| Budget { used_until: Mutex::default(), turn: Arc::new(Semaphore::new(1)) });

tokio::task_local! {
    static PACE: Pace;
}

/// Bounds what all uploads of this process together send a second; 0: nothing does.
pub fn set(bytes_per_s: u64) {
    BYTES_PER_S.store(bytes_per_s, Ordering::Relaxed);
}

fn bytes_per_s() -> u64 {
    BYTES_PER_S.load(Ordering::Relaxed)
}

/// Runs `future`, whose uploads are of that pace.
pub(super) async fn at<F: Future>(pace: Pace, future: F) -> F::Output {
    PACE.scope(pace, future).await
}

fn is_measured() -> bool {
    bytes_per_s() > 0 && PACE.try_with(|pace| *pace).is_ok_and(|pace| pace == Pace::Measured)
}

/// How many bytes are sent at once. Pure.
fn piece_bytes(bytes_per_s: u64) -> u64 {
    (bytes_per_s / 16).clamp(SMALLEST_PIECE_BYTES, LARGEST_PIECE_BYTES)
}

/// How long `bytes` wait at `now`, where the budget is used up until `used_until`; and until when it is used up with them. Pure.
fn take(
    pace: Pace,
    now: Duration,
    used_until: Duration,
    bytes: u64,
    bytes_per_s: u64,
) -> (Duration, Duration) {
    if bytes_per_s == 0 {
        return (Duration::ZERO, now);
    }
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s);
    let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    let until = used_until.max(now).saturating_add(time);
    match pace {
        Pace::AtOnce => (Duration::ZERO, until.min(now + MOST_DEBT).max(used_until)),
        Pace::Measured => (until.saturating_sub(now), until),
    }
}

fn taken(pace: Pace, bytes: u64) -> Duration {
    let mut used_until = crate::base::lock(&BUDGET.get().used_until);
    let (wait, until) = take(pace, clock::uptime(), *used_until, bytes, bytes_per_s());
    *used_until = until;
    wait
}

/// The turn of an upload that is not urgent: taken before its time limit begins. `None`: it needs none.
pub(super) async fn turn() -> Option<OwnedSemaphorePermit> {
    if !is_measured() {
        return None;
    }
    BUDGET.get().turn.clone().acquire_owned().await.ok()
}

/// Whether a request's body is to be sent by [`pieces`]; where it is not, it is counted here.
pub(super) fn is_sent_in_pieces(bytes: usize) -> bool {
    if bytes_per_s() == 0 || bytes == 0 {
        return false;
    }
    if !is_measured() {
        taken(Pace::AtOnce, bytes as u64);
        return false;
    }
    true
}

/// A body, piece by piece, each in its time.
pub(super) fn pieces(body: Bytes) -> impl Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(body, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        let rate = bytes_per_s();
        let most = if rate == 0 { u64::MAX } else { piece_bytes(rate) };
        let piece = rest.split_to(usize::try_from(most).unwrap_or(usize::MAX).min(rest.len()));
        let wait = taken(Pace::Measured, piece.len() as u64);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Some((Ok(piece), rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn urgent_uploads_leave_at_once_and_the_rest_pays_for_them() {
        use Pace::{AtOnce, Measured};
        for (pace, now, used_until, bytes, rate, wait, until) in [
            // No bound.
            (Measured, ms(500), ms(9000), 1_000_000, 0, ms(0), ms(500)),
            (AtOnce, ms(500), ms(9000), 1_000_000, 0, ms(0), ms(500)),
            // Its own bytes have to be there.
            (Measured, ms(500), ms(0), 100_000, 1_000_000, ms(100), ms(600)),
            // What was sent before them, too.
            (Measured, ms(500), ms(700), 100_000, 1_000_000, ms(300), ms(800)),
            // What is urgent waits for nothing and counts.
            (AtOnce, ms(500), ms(700), 100_000, 1_000_000, ms(0), ms(800)),
            (AtOnce, ms(500), ms(0), 100_000, 1_000_000, ms(0), ms(600)),
            // But the rest waits for a second of it at most.
            (AtOnce, ms(500), ms(700), 100_000_000, 1_000_000, ms(0), ms(1500)),
            (AtOnce, ms(500), ms(1700), 100_000, 1_000_000, ms(0), ms(1700)),
            (Measured, ms(500), ms(1500), 64_000, 64_000, ms(2000), ms(2500)),
            (Measured, ms(500), ms(0), 0, 64_000, ms(0), ms(500)),
        ] {
            let found = take(pace, now, used_until, bytes, rate);
            assert_eq!(found, (wait, until), "{pace:?} {now:?} {used_until:?} {bytes} {rate}");
        }
    }

    #[test]
    fn pieces_bring_no_more_than_the_rate_and_no_wait_is_long() {
        for rate in [64_000u64, 1_000_000, 5_000_000, 1_000_000_000] {
            let piece = piece_bytes(rate);
            assert!((SMALLEST_PIECE_BYTES..=LARGEST_PIECE_BYTES).contains(&piece), "{rate}");
            let (mut now, mut used_until, mut sent, mut urgent) = (ms(0), ms(0), 0, 0);
            for n in 0..1000u64 {
                if n % 7 == 0 {
                    let bytes = rate / 40;
                    (_, used_until) = take(Pace::AtOnce, now, used_until, bytes, rate);
                    urgent += bytes;
                }
                let (wait, until) = take(Pace::Measured, now, used_until, piece, rate);
                assert!(wait <= MOST_DEBT + ms(300), "{rate}: {wait:?}");
                (now, used_until) = (now + wait, until);
                sent += piece;
                let most = now.as_secs_f64() * rate as f64;
                assert!((sent + urgent) as f64 <= most + 1.0, "{rate}: {sent} and {urgent} by {now:?}");
            }
        }
    }
}
