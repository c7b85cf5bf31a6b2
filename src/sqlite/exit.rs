//! The end of the process: one last call, while all threads still run.
//!
//! `exit()` calls it (<https://pubs.opengroup.org/onlinepubs/9799919799/functions/atexit.html>); `_exit()`, `exec()`, signals
//! and power loss do not, so nothing may depend on it. Refused: a destructor of the library, which runs after other
//! libraries' own.

use super::guard::guard;
use std::ffi::c_int;
use std::sync::OnceLock;

static HOOK: OnceLock<fn()> = OnceLock::new();

unsafe extern "C" fn at_exit() {
    guard((), || {
        if let Some(hook) = HOOK.get() {
            hook();
        }
    });
}

unsafe extern "C" {
    fn atexit(handler: unsafe extern "C" fn()) -> c_int;
}

/// Has `hook` called when the process ends by `exit()` or by returning from `main`. It must be quick, and must not
/// wait for a lock that another thread may hold for ever. The first hook stays.
pub fn on_exit(hook: fn()) {
    if HOOK.set(hook).is_ok() {
        // SAFETY: the library is loaded permanently, so the handler stays mapped; it does not unwind.
        let rc = unsafe { atexit(at_exit) };
        if rc != 0 {
            log::warn!("walrust: atexit failed ({rc}): a lease ends by its time, not with the process");
        }
    }
}
