//! The one runtime: a current-thread tokio runtime on a thread of its own, started at first use.
//!
//! After fork() the child has no such thread: its first use starts another.

use crate::base::{ForkSafe, Result, runtime};
use std::sync::Mutex;
use tokio::runtime::Handle;

static RUNTIME: ForkSafe<Mutex<Option<Handle>>> = ForkSafe::new(Mutex::default);

#[cfg(feature = "sim")]
thread_local! {
    static STAND_IN: std::cell::RefCell<Option<Handle>> = const { std::cell::RefCell::new(None) };
}

/// The runtime of the simulated process that runs on this thread now.
#[cfg(feature = "sim")]
pub fn stand_in(handle: Option<Handle>) {
    STAND_IN.with(|s| *s.borrow_mut() = handle);
}

/// A handle to spawn on.
pub fn handle() -> Result<Handle> {
    #[cfg(feature = "sim")]
    if let Some(h) = STAND_IN.with(|s| s.borrow().clone()) {
        return Ok(h);
    }
    let mut at = RUNTIME.lock();
    if let Some(h) = at.as_ref() {
        return Ok(h.clone());
    }
    let h = runtime::start("walrust-ship", 2)?;
    *at = Some(h.clone());
    Ok(h)
}
