//! What was fetched, of all replicas and connections of the process, in memory. Bounded; the longest unused goes first.
//!
//! Blocks as they lie in their file, packed, and interior pages of b-trees, unpacked: these are few, and each read begins at them. A block
//! is known by its file and its number: whatever points share the file share it. Leaves SQLite keeps itself.

use crate::base::{ForkSafe, Pgno};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex};

/// Bytes of blocks held at most.
const BLOCKS: usize = 8 << 20;
/// The same, where they are to be had again without a request: they are on local disk, too.
const BLOCKS_BESIDE_DISK: usize = 1 << 20;
/// Bytes of pages held at most.
const PAGES: usize = 512 << 10;

/// Number of a file in this process, and the block.
pub(super) type BlockKey = (u64, u64);
/// Number of a file in this process, and the page.
pub(super) type PageKey = (u64, Pgno);

static BLOCK_CACHE: ForkSafe<Mutex<Cache<BlockKey>>> = ForkSafe::new(Mutex::default);
static PAGE_CACHE: ForkSafe<Mutex<Cache<PageKey>>> = ForkSafe::new(Mutex::default);

/// Things by their keys, with the moment of each one's last use.
#[derive(Debug)]
struct Cache<K> {
    all: HashMap<K, (Arc<[u8]>, u64)>,
    /// Uses in their order. One that is not the last of its thing says nothing.
    uses: VecDeque<(K, u64)>,
    bytes: usize,
    now: u64,
}

impl<K> Default for Cache<K> {
    fn default() -> Cache<K> {
        Cache { all: HashMap::new(), uses: VecDeque::new(), bytes: 0, now: 0 }
    }
}

impl<K: Copy + Eq + Hash> Cache<K> {
    fn get(&mut self, key: K) -> Option<Arc<[u8]>> {
        let (thing, used) = self.all.get_mut(&key)?;
        self.now += 1;
        *used = self.now;
        let thing = thing.clone();
        self.uses.push_back((key, self.now));
        if self.uses.len() > 4 * self.all.len() + 64 {
            let all = &self.all;
            self.uses.retain(|(k, at)| all.get(k).is_some_and(|(_, used)| used == at));
        }
        Some(thing)
    }

    fn put(&mut self, key: K, thing: Arc<[u8]>, capacity: usize) {
        self.now += 1;
        self.bytes += thing.len();
        if let Some((old, _)) = self.all.insert(key, (thing, self.now)) {
            self.bytes -= old.len();
        }
        self.uses.push_back((key, self.now));
        while self.bytes > capacity
            && let Some((oldest, at)) = self.uses.pop_front()
        {
            if self.all.get(&oldest).is_some_and(|(_, used)| *used == at)
                && let Some((thing, _)) = self.all.remove(&oldest)
            {
                self.bytes -= thing.len();
            }
        }
    }
}

/// The block, if it is here.
pub(super) fn block(key: BlockKey) -> Option<Arc<[u8]>> {
    BLOCK_CACHE.lock().get(key)
}

/// Whether the block is here; that is no use of it.
pub(super) fn has_block(key: BlockKey) -> bool {
    BLOCK_CACHE.lock().all.contains_key(&key)
}

/// Keeps a block, which is on this machine or not.
pub(super) fn put_block(key: BlockKey, block: Arc<[u8]>, is_here: bool) {
    BLOCK_CACHE.lock().put(key, block, if is_here { BLOCKS_BESIDE_DISK } else { BLOCKS });
}

/// The page, if it is here.
pub(super) fn page(key: PageKey) -> Option<Arc<[u8]>> {
    PAGE_CACHE.lock().get(key)
}

/// Keeps a page.
pub(super) fn put_page(key: PageKey, page: Arc<[u8]>) {
    PAGE_CACHE.lock().put(key, page, PAGES);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> PageKey {
        (1, Pgno::new(n).unwrap())
    }

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut c = Cache::default();
        for n in 1..=1000 {
            c.put(key(n), vec![n as u8; 100].into(), 1000);
            assert!(c.get(key(1)).is_some(), "page 1 is used each time, at {n}");
            assert!(c.bytes <= 1000 && c.all.len() <= 10 && c.uses.len() <= 200, "{n}");
        }
        assert_eq!(c.bytes, c.all.values().map(|(p, _)| p.len()).sum::<usize>());
        assert!(c.get(key(1000)).is_some() && c.get(key(2)).is_none());
        c.put(key(1), vec![0; 50].into(), 1000);
        assert_eq!(c.get(key(1)).unwrap().len(), 50);
        assert_eq!(c.bytes, c.all.values().map(|(p, _)| p.len()).sum::<usize>());
    }
}
