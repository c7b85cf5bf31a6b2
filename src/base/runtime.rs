//! A tokio runtime of one thread: a room that makes requests has one of its own, so that no room waits for another's.

use super::{Error, Kind, Result, clock, panics, thread};
use std::time::Duration;
use tokio::runtime::Handle;

/// Starts a thread of that name with a runtime on it, which has `blocking` threads at most for what blocks, and gives a handle to spawn on.
/// Errors with [`Kind::Io`] where the system gives neither.
pub fn start(name: &'static str, blocking: usize) -> Result<Handle> {
    let cannot =
        |e: std::io::Error| Error::new(Kind::Io, format!("cannot start the thread {name}")).because(e);
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(blocking)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_name("walrust-io")
        .on_thread_start(thread::block_signals)
        .build()
        .map_err(cannot)?;
    let handle = rt.handle().clone();
    let turns = move || {
        // A panic of a task is the task's; should the runtime itself panic, its tasks go on with the next turn.
        while let Err(said) = panics::caught(|| rt.block_on(std::future::pending::<()>())) {
            log::error!("walrust: internal error in the thread {name}: {said}");
            clock::sleep(Duration::from_millis(100));
        }
    };
    thread::spawn_joined(name, 512 << 10, turns).map_err(cannot)?;
    Ok(handle)
}
