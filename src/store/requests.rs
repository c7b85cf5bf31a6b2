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

/// By URL. (A process opens few, and keeps them.)
static COUNTS: ForkSafe<Mutex<BTreeMap<String, Arc<Count>>>> = ForkSafe::new(Mutex::default);

/// The counters of the replica at `url`.
pub(super) fn of(url: &str) -> Arc<Count> {
    let mut all = COUNTS.lock();
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
    }
}
