//! Files of a replica that were read: a file that several states have is read once, and its pages have one number in the cache.

use crate::base::lock;
use crate::replica::contents::Contents;
use crate::replica::{FileId, FileInfo, ManifestEntry};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A file that was read, and its number in this process.
#[derive(Clone, Debug)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) contents: Arc<Contents>,
}

/// Files of one replica that were read, as long as somebody has them.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<Mutex<HashMap<FileId, Entry>>>);

/// A file's number, and what it holds as long as somebody has that.
type Entry = (u64, Weak<Contents>);

impl Known {
    /// The file, if it was read and is still the one that `file` and `entry` tell of.
    pub(super) fn get(&self, file: &FileInfo, entry: Option<&ManifestEntry>) -> Option<Numbered> {
        let known = lock(&self.0);
        let (number, contents) = known.get(&file.id())?;
        let contents = contents.upgrade()?;
        let same =
            contents.stored == file.bytes && entry.is_none_or(|e| e.is_sealed() || e.crc == contents.crc);
        same.then_some(Numbered { number: *number, contents })
    }

    /// The file is gone from the replica: who wants it must see that.
    pub(super) fn forget(&self, id: FileId) {
        lock(&self.0).remove(&id);
    }

    /// Takes in a file that was read.
    pub(super) fn add(&self, contents: Contents) -> Numbered {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let contents = Arc::new(contents);
        let mut known = lock(&self.0);
        known.retain(|_, (_, c)| c.strong_count() > 0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        known.insert(contents.id, (number, Arc::downgrade(&contents)));
        Numbered { number, contents }
    }
}
