//! How many requests went to the store of each replica since this process first opened it: what its bill counts. Requests for credentials,
//! and those that delete, cost nothing and are left out. A restart begins anew, and says since when.

use crate::base::{ForkSafe, Timestamp, clock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The counters of one replica.
#[derive(Debug, Default)]
pub(super) struct Count {
    since: Timestamp,
    puts: AtomicU64,
    gets: AtomicU64,
}

/// Requests to one replica's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// From when on they were counted.
    pub since: Timestamp,
    /// PUT, POST, COPY and LIST.
    pub puts: u64,
    /// GET and HEAD.
    pub gets: u64,
}

/// Counters that are kept of replicas that nobody has open any more. Beyond them those go, and count anew when they come back.
const MOST: usize = 4096;

/// By URL.
static COUNTS: ForkSafe<Mutex<BTreeMap<String, Arc<Count>>>> = ForkSafe::new(Mutex::default);

/// The counters of the replica at `url`.
pub(super) fn of(url: &str) -> Arc<Count> {
    let mut all = COUNTS.lock();
    if all.len() >= MOST && !all.contains_key(url) {
        all.retain(|_, count| Arc::strong_count(count) > 1);
    }
    let new = || Arc::new(Count { since: clock::now(), ..Count::default() });
    all.entry(url.to_string()).or_insert_with(new).clone()
}

/// Requests of this process to the store of the replica at `url`; `None` where it has not been opened here, or lies in a directory.
pub fn requests_of(url: &str) -> Option<Requests> {
    let count = COUNTS.lock().get(url).cloned()?;
    Some(Requests {
        since: count.since,
        puts: count.puts.load(Ordering::Relaxed),
        gets: count.gets.load(Ordering::Relaxed),
    })
}

impl Count {
    /// A request of that method; `lists`: it asks for a listing.
    pub(super) fn add(&self, method: &str, lists: bool) {
        match method {
            "PUT" | "POST" => self.puts.fetch_add(1, Ordering::Relaxed),
            "GET" if lists => self.puts.fetch_add(1, Ordering::Relaxed),
            "GET" | "HEAD" => self.gets.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bill_counts_is_counted_for_each_replica() {
        let count = of("s3://counted/app");
        // (Held to the end: beside this test another one piles counters up.)
        for (method, lists) in [
            ("PUT", false),
            ("POST", false),
            ("GET", true),
            ("GET", false),
            ("HEAD", false),
            ("DELETE", false),
        ] {
            count.add(method, lists);
        }
        of("s3://counted/app").add("HEAD", false);
        let said = requests_of("s3://counted/app").unwrap();
        assert_eq!((said.puts, said.gets), (3, 3));
        assert_eq!(requests_of("s3://counted/other"), None);
        drop(count);
    }

    #[test]
    fn replicas_that_were_open_once_do_not_pile_up() {
        let open = of("s3://piled/open");
        open.add("PUT", false);
        (0..3 * MOST).for_each(|n| drop(of(&format!("s3://piled/{n}"))));
        assert!(COUNTS.lock().len() <= MOST, "{}", COUNTS.lock().len());
        assert_eq!(requests_of("s3://piled/open").map(|r| r.puts), Some(1));
    }
}
