//! The locks of the spool, which knows no system call that takes `unsafe`, kept by the room that does.

use crate::spool::{Keeper, Kept, keep_with};
use crate::sqlite::{KeptLock, is_locked, keep_lock};

impl Kept for KeptLock {}

/// From now on a lock that this process takes for long costs no descriptor.
pub fn keep_locks() {
    let keep = |path: &std::path::Path| {
        let kept = keep_lock(path)?;
        Ok(kept.map(|lock| Box::new(lock) as Box<dyn Kept>))
    };
    keep_with(Keeper { keep, is_held: is_locked });
}
