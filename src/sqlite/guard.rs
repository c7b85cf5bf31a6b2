//! The panic guard: nothing unwinds over the border to C.
//!
//! I-SQLITE-3: every `extern "C"` function of this room runs its body inside [`guard`] or [`caught`].
//! A panic that reached SQLite would abort the host (Rust's rule for `extern "C"`).

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `f`; a panic becomes `on_panic`.
pub(super) fn guard<T>(on_panic: T, f: impl FnOnce() -> T) -> T {
    match caught(f) {
        Ok(v) => v,
        Err(what) => {
            log::error!("walrust: internal error: {what}");
            on_panic
        }
    }
}

/// Runs `f`; a panic becomes its message.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // The state `f` touches is either given up after a panic or guarded by its own poisoning.
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic without a message".into());
        // A payload whose destructor panics in its turn must not get out either.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
        text
    })
}

/// From now on a panic in this library is reported through the log, not on the host's stderr.
/// Only for the loaded library, whose copy of `std` is its own.
pub(super) fn report_panics_to_log() {
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        log::error!("walrust: panic at {at}");
    }));
}
