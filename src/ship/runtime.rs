//! The one runtime: a current-thread tokio runtime on a thread of its own, started at first use.
//!
//! After fork() the child has no such thread: its first use starts another.

use crate::base::{Error, ForkSafe, Kind, Result, clock, panics, thread};
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
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .thread_name("walrust-io")
        .on_thread_start(thread::block_signals)
        .build()
        .map_err(|e| Error::new(Kind::Io, "cannot start the network runtime").because(e))?;
    let h = rt.handle().clone();
    let turns = move || {
        // A panic of a task is the task's; should the runtime itself panic, its tasks go on with the next turn.
        while let Err(said) = panics::caught(|| rt.block_on(std::future::pending::<()>())) {
            log::error!("walrust: internal error in the shipping thread: {said}");
            clock::sleep(std::time::Duration::from_millis(100));
        }
    };
    thread::spawn_joined("walrust-ship", 512 << 10, turns)
        .map_err(|e| Error::new(Kind::Io, "cannot start the shipping thread").because(e))?;
    *at = Some(h.clone());
    Ok(h)
}
