//! Locks that a panic does not break.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `m`. A thread that panicked while it held the lock left data that every holder leaves whole between two statements: nothing in
/// this crate gives such a lock up half changed.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
