//! What a restore would do, without doing it: which files it would read, how many requests and bytes that is, and about how long it takes.
//!
//! Rules
//! * I-REH-1 Nothing is written, here or there. Whatever a restore refuses before it fetches anything is refused in the same words.
//! * I-REH-2 The files and requests are those of the restore itself: the same plan, and the same cut into ranges ([`super::fetch`]). What a
//!   restore takes from this machine (`delta`, one that was interrupted) makes it less, never more.
//! * I-REH-3 How long is measured as far as it can be: one small request and a sample of the largest files are fetched, and let go of. What is
//!   assumed of this machine is called an assumption ([`LOCAL_RATE`]).
//!
//! Refused: an estimate from the size alone (a line carries 1 MB/s or 1 GB/s); a rate remembered from other restores (other machines).

use super::fetch::{self, Ahead};
use super::inventory::{FileInfo, read_header};
use super::place::Found;
use super::point::Point;
use super::restore::choose;
use super::target::{Occupier, Overwrite, Target};
use crate::base::{Error, Kind, Result, Timestamp, TxId, clock};
use crate::store::Store;
use std::cmp::Reverse;
use std::path::Path;
use std::time::Duration;

/// At most so many bytes are fetched to learn how fast the store is.
pub const SAMPLE: u64 = 8 * 1024 * 1024;
/// Assumed: bytes of database that this machine unpacks, writes and checks in a second.
pub const LOCAL_RATE: u64 = 200_000_000;

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// The TXID that it reaches.
    pub txid: TxId,
    /// The time of that.
    pub time: Timestamp,
    /// In the order of application.
    pub files: Vec<FileInfo>,
    /// Bytes of these.
    pub bytes: u64,
    /// Requests for these, besides the listing and the manifest.
    pub requests: u64,
    /// Size of the database that it gives.
    pub database_bytes: u64,
    /// About how long it takes.
    pub takes: Duration,
}

/// What a restore of `point` to `path` would do.
///
/// Errors: as [`super::restore::restore`] does before it fetches anything, and the store's.
pub async fn rehearse(
    store: &Store,
    point: Point,
    path: &Path,
    (overwrite, occupier): (Overwrite, Option<Occupier<'_>>),
    parallel: usize,
) -> Result<Rehearsal> {
    Target::prepare(path, overwrite)?.refuse_used(occupier)?;
    let (Found { store, .. }, plan) = choose(store, point).await?;
    let last = plan.files.last().ok_or_else(|| Error::new(Kind::Bug, "a plan without a file"))?;
    let begun = clock::uptime();
    let header = read_header(&store, last.id()).await.map_err(|e| e.context(last.id()))?;
    let latency = clock::uptime().saturating_sub(begun);
    let bytes = plan.bytes();
    let database_bytes = u64::from(header.commit) * u64::from(header.page_size.get());
    let seen = sample(&store, &plan.files, parallel).await?;
    let requests = fetch::requests(&plan.files, store.is_near());
    let pace = Pace { latency, sampled: seen.0, took: seen.1, parallel: parallel.max(1) as u64 };
    Ok(Rehearsal {
        txid: plan.txid,
        time: plan.time,
        takes: pace.takes(requests, bytes, database_bytes),
        files: plan.files,
        bytes,
        requests,
        database_bytes,
    })
}

/// Fetches some bytes of the largest files, as a restore would, and says how many and how long that took.
async fn sample(store: &Store, files: &[FileInfo], parallel: usize) -> Result<(u64, Duration)> {
    let mut largest = files.to_vec();
    largest.sort_by_key(|f| Reverse(f.bytes));
    let (mut some, mut most) = (Vec::new(), 0);
    for file in largest {
        if most >= SAMPLE {
            break;
        }
        most += file.bytes;
        some.push(file);
    }
    let begun = clock::uptime();
    let mut ahead = Ahead::new(store, some, parallel);
    let mut bytes = 0;
    while bytes < SAMPLE.min(most)
        && let Some(arrived) = ahead.next().await
    {
        arrived.piece?;
        bytes += arrived.range.end - arrived.range.start;
    }
    Ok((bytes, clock::uptime().saturating_sub(begun)))
}

/// What was seen of a store.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Of one small request.
    latency: Duration,
    /// Bytes fetched, `parallel` requests at once.
    sampled: u64,
    /// How long they took.
    took: Duration,
    parallel: u64,
}

impl Pace {
    /// How long a restore takes at that pace: its rounds of requests, its bytes at the rate that was seen, and this machine's work. Pure.
    fn takes(self, requests: u64, bytes: u64, database_bytes: u64) -> Duration {
        let latency = self.latency.as_secs_f64();
        let took = self.took.as_secs_f64();
        // (The first answer of the sample was a round trip away; what is left of it is the rate.)
        let rate = self.sampled as f64 / (took - latency).max(took / 10.0).max(1e-6);
        let rounds = requests.div_ceil(self.parallel.max(1)) as f64;
        let coming = rounds * latency + bytes as f64 / rate.max(1.0);
        let secs = coming + database_bytes as f64 / LOCAL_RATE as f64;
        Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_follows_from_what_was_seen() {
        let ms = Duration::from_millis;
        let pace = |latency, sampled, took| Pace { latency, sampled, took, parallel: 32 };
        const MB: u64 = 1_000_000;
        for (seen, requests, bytes, database, secs) in [
            // 8 MB in 1.02 s after a round trip of 20 ms: 8 MB/s.
            (pace(ms(20), 8 * MB, ms(1020)), 32, 80 * MB, 0, 10.02),
            (pace(ms(20), 8 * MB, ms(1020)), 33, 80 * MB, 0, 10.04),
            (pace(ms(20), 8 * MB, ms(1020)), 32, 80 * MB, 200 * MB, 11.02),
            // A small replica, all of which is one round trip: its rate is not known, and does not matter much.
            (pace(ms(50), 1000, ms(50)), 1, 1000, 8192, 0.055),
            // A file beside us.
            (pace(ms(0), 8 * MB, ms(4)), 8, 800 * MB, 1000 * MB, 5.4),
        ] {
            let got = seen.takes(requests, bytes, database).as_secs_f64();
            assert!((got - secs).abs() < 0.01, "{seen:?} {requests} {bytes} {database}: {got}, not {secs}");
        }
        let odd = pace(ms(0), 0, ms(0));
        assert!(odd.takes(0, u64::MAX, u64::MAX) > ms(1));
        assert!(odd.takes(0, 0, 0) < ms(1));
    }
}
