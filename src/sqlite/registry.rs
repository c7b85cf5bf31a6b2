//! The list of hooked file handles. It finds the observer for a WAL file by the name that SQLite opens it under: the name's
//! address is one connection's alone, while the same path may be open through a VFS of somebody else's, too.
//!
//! Each function takes the proof that the mutex is held, so that a fork finds the list whole (I-FORK-2).

use super::mutex::{self, Locked};
use super::observer::DbObserver;
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

/// Hooked handles by path. Locked by who has the proof only: never waited for.
static REGISTRY: LazyLock<Mutex<HashMap<PathBuf, Vec<Entry>>>> = LazyLock::new(Mutex::default);

fn by_path(_: &Locked) -> MutexGuard<'_, HashMap<PathBuf, Vec<Entry>>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a handle.
pub(super) fn add(held: &Locked, path: &Path, id: u64, observer: Arc<dyn DbObserver>, wal_name: usize) {
    by_path(held).entry(path.to_path_buf()).or_default().push(Entry { id, observer, wal_name });
}

/// Takes the handle out; its observer is given back so that it is dropped outside of the mutex.
pub(super) fn remove(held: &Locked, path: &Path, id: u64) -> Option<Arc<dyn DbObserver>> {
    let mut by_path = by_path(held);
    let handles = by_path.get_mut(path)?;
    let at = handles.iter().position(|h| h.id == id)?;
    let observer = handles.swap_remove(at).observer;
    if handles.is_empty() {
        by_path.remove(path);
    }
    Some(observer)
}

/// The observer of the handle on `path` whose WAL is opened under the name at `wal_name`.
pub(super) fn observer(held: &Locked, path: &Path, wal_name: usize) -> Option<Arc<dyn DbObserver>> {
    let by_path = by_path(held);
    let handle = by_path.get(path)?.iter().find(|h| h.wal_name == wal_name)?;
    Some(handle.observer.clone())
}

/// Number of hooked handles on this path in this process.
pub fn hooked_handles(path: &Path) -> usize {
    by_path(&mutex::lock()).get(path).map_or(0, Vec::len)
}
