//! The one runtime: a current-thread tokio runtime on a thread of its own, started at first use.
//!
//! After fork() the child has no such thread: [`forget`] makes the next use start another.

use crate::base::{Error, Kind, Result, thread};
use std::sync::{Mutex, PoisonError};
use tokio::runtime::Handle;

static RUNTIME: Mutex<Option<(u32, Handle)>> = Mutex::new(None);

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
    let mut at = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((pid, h)) = at.as_ref()
        && *pid == std::process::id()
    {
        return Ok(h.clone());
    }
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .thread_name("walrust-io")
        .on_thread_start(thread::block_signals)
        .build()
        .map_err(|e| Error::new(Kind::Io, "cannot start the network runtime").because(e))?;
    let h = rt.handle().clone();
    thread::spawn_joined("walrust-ship", 512 << 10, move || rt.block_on(std::future::pending::<()>()))
        .map_err(|e| Error::new(Kind::Io, "cannot start the shipping thread").because(e))?;
    *at = Some((std::process::id(), h.clone()));
    Ok(h)
}

/// In a forked child: the thread is not here. The parent's runtime is leaked, not dropped: dropping it would
/// wait for threads that do not exist.
pub fn forget() {
    if let Ok(mut at) = RUNTIME.try_lock() {
        std::mem::forget(at.take());
    }
}
