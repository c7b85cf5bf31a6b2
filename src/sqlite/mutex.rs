//! The one mutex of the hook machinery.
//!
//! * Who has it may read and change the list of hooked handles ([`super::registry`]).
//! * It is held while a thread of ours copies a wal-index header ([`super::ShmPeek`]), and while a mapping
//!   goes away, so that the first never reads what the second has unmapped.
//!
//! One process-wide mutex, not one a file: it is held for a copy of 136 bytes or a map operation, never
//! while an observer or SQLite is called, and a fork has to hold just this one (I-FORK-2).

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Proof that the mutex is held. Until dropped.
pub(super) struct Locked {
    _held: MutexGuard<'static, ()>,
}

static HANDLES: Mutex<()> = Mutex::new(());

/// Takes the mutex.
pub(super) fn lock() -> Locked {
    Locked { _held: HANDLES.lock().unwrap_or_else(PoisonError::into_inner) }
}
