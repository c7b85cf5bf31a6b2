//! Pages that were fetched, of all replicas and connections of the process, in memory. Bounded; the longest unused go first.
//!
//! A page is known by the file that holds it and its number: whatever points share the file share the page.

use crate::base::{ForkSafe, Pgno};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Bytes of pages held at most.
const CAPACITY: usize = 16 << 20;

/// Number of a file in this process, and the page.
pub(super) type Key = (u64, Pgno);

static CACHE: ForkSafe<Mutex<Cache>> = ForkSafe::new(Mutex::default);

/// The pages, with the moment of each one's last use.
#[derive(Debug, Default)]
struct Cache {
    pages: HashMap<Key, (Arc<[u8]>, u64)>,
    /// Uses in their order. One that is not the last of its page says nothing.
    uses: VecDeque<(Key, u64)>,
    bytes: usize,
    now: u64,
}

impl Cache {
    fn get(&mut self, key: Key) -> Option<Arc<[u8]>> {
        let (page, used) = self.pages.get_mut(&key)?;
        self.now += 1;
        *used = self.now;
        let page = page.clone();
        self.uses.push_back((key, self.now));
        if self.uses.len() > 4 * self.pages.len() + 64 {
            let pages = &self.pages;
            self.uses.retain(|(k, at)| pages.get(k).is_some_and(|(_, used)| used == at));
        }
        Some(page)
    }

    fn put(&mut self, key: Key, page: Arc<[u8]>, capacity: usize) {
        self.now += 1;
        self.bytes += page.len();
        if let Some((old, _)) = self.pages.insert(key, (page, self.now)) {
            self.bytes -= old.len();
        }
        self.uses.push_back((key, self.now));
        while self.bytes > capacity
            && let Some((oldest, at)) = self.uses.pop_front()
        {
            if self.pages.get(&oldest).is_some_and(|(_, used)| *used == at)
                && let Some((page, _)) = self.pages.remove(&oldest)
            {
                self.bytes -= page.len();
            }
        }
    }
}

/// The page, if it is here.
pub(super) fn get(key: Key) -> Option<Arc<[u8]>> {
    CACHE.lock().get(key)
}

/// Whether the page is here; that is no use of it.
pub(super) fn has(key: Key) -> bool {
    CACHE.lock().pages.contains_key(&key)
}

/// Keeps a page.
pub(super) fn put(key: Key, page: Arc<[u8]>) {
    CACHE.lock().put(key, page, CAPACITY);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        (1, Pgno::new(n).unwrap())
    }

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut c = Cache::default();
        for n in 1..=1000 {
            c.put(key(n), vec![n as u8; 100].into(), 1000);
            assert!(c.get(key(1)).is_some(), "page 1 is used each time, at {n}");
            assert!(c.bytes <= 1000 && c.pages.len() <= 10 && c.uses.len() <= 200, "{n}");
        }
        assert_eq!(c.bytes, c.pages.values().map(|(p, _)| p.len()).sum::<usize>());
        assert!(c.get(key(1000)).is_some() && c.get(key(2)).is_none());
        c.put(key(1), vec![0; 50].into(), 1000);
        assert_eq!(c.get(key(1)).unwrap().len(), 50);
        assert_eq!(c.bytes, c.pages.values().map(|(p, _)| p.len()).sum::<usize>());
    }
}
