//! The list of hooked file handles, and the one mutex of the hook machinery.
//!
//! * It finds the observer for a WAL file by the name that SQLite opens it under: the name's address is one connection's alone,
//!   while the same path may be open through a VFS of somebody else's, too.
//! * It is held while a thread of ours copies a wal-index header ([`super::ShmPeek`]), and while a mapping
//!   goes away, so that the first never reads what the second has unmapped.
//!
//! One process-wide mutex, not one a file: it is held for a copy of 136 bytes or a map operation, never
//! while an observer or SQLite is called, and a fork has to hold just this one (I-FORK-2).

use super::host::DbObserver;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// A hooked handle.
struct Entry {
    id: u64,
    observer: Arc<dyn DbObserver>,
    /// Address of the name under which SQLite opens its WAL.
    wal_name: usize,
}

/// Hooked handles by path.
#[derive(Default)]
pub(super) struct Registry {
    by_path: HashMap<PathBuf, Vec<Entry>>,
}

/// The registry, held.
pub(super) type Locked = MutexGuard<'static, Registry>;

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);

/// Takes the mutex.
pub(super) fn lock() -> Locked {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(super) fn add(&mut self, path: &Path, id: u64, observer: Arc<dyn DbObserver>, wal_name: usize) {
        self.by_path.entry(path.to_path_buf()).or_default().push(Entry { id, observer, wal_name });
    }

    /// Takes the handle out; its observer is given back so that it is dropped outside of the mutex.
    pub(super) fn remove(&mut self, path: &Path, id: u64) -> Option<Arc<dyn DbObserver>> {
        let handles = self.by_path.get_mut(path)?;
        let at = handles.iter().position(|h| h.id == id)?;
        let observer = handles.swap_remove(at).observer;
        if handles.is_empty() {
            self.by_path.remove(path);
        }
        Some(observer)
    }

    /// The observer of the handle on `path` whose WAL is opened under the name at `wal_name`.
    pub(super) fn observer(&self, path: &Path, wal_name: usize) -> Option<Arc<dyn DbObserver>> {
        let handle = self.by_path.get(path)?.iter().find(|h| h.wal_name == wal_name)?;
        Some(handle.observer.clone())
    }

    pub(super) fn count(&self, path: &Path) -> usize {
        self.by_path.get(path).map_or(0, Vec::len)
    }
}
