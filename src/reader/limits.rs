//! Numbers of this room.

use std::time::Duration;

/// Requests under way at once for one read.
pub(super) const PARALLEL: usize = 8;
/// How long what is the newest state counts as that.
pub(super) const FRESH_FOR: Duration = Duration::from_secs(1);
