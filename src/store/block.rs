//! Running a future to its end on the calling thread: SQL functions are called on the app's thread.

use crate::base::{Error, Kind, Result, thread};
use std::future::Future;

/// Runs `future` on a runtime of its own, which is gone afterwards: no thread of ours stays in the
/// app. Of a thread of the program it runs on a helper thread: the program's stack may be small (TLS wants
/// 100 KiB), or inside a tokio runtime (an async Rust host), and tokio panics when runtimes are nested. A [`super::Store`] may be used
/// from several runtimes, one after the other: it makes new connections in each.
///
/// Errors with [`Kind::Io`] where no runtime or thread can be had, with [`Kind::Bug`] after a panic.
pub fn block_on<F>(future: F) -> Result<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    if is_ours() && tokio::runtime::Handle::try_current().is_err() {
        return on_this_thread(future);
    }
    // (On the heap before it is handed on: the calling thread's stack may be a small one.)
    let future = Box::pin(future);
    std::thread::scope(|scope| {
        let thread = thread::spawn_scoped(scope, "walrust-call", || on_this_thread(future))
            .map_err(|e| Error::new(Kind::Io, "cannot start a thread").because(e))?;
        thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a panic in a store operation")))
    })
}

/// Whether this thread has a stack that we chose. (A simulated process runs on one thread.)
fn is_ours() -> bool {
    simulated() || std::thread::current().name().is_some_and(|n| n.starts_with("walrust-"))
}

#[cfg(feature = "sim")]
fn simulated() -> bool {
    crate::base::sim::world().is_some()
}

#[cfg(not(feature = "sim"))]
fn simulated() -> bool {
    false
}

fn on_this_thread<F: Future>(future: F) -> Result<F::Output> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // What waits inside is a store in memory: no simulated time passes.
    #[cfg(feature = "sim")]
    builder.start_paused(crate::base::sim::world().is_some());
    let runtime = builder
        .enable_all()
        .thread_name("walrust-io")
        .on_thread_start(thread::block_signals)
        .build()
        .map_err(|e| Error::new(Kind::Io, "cannot start an I/O runtime").because(e))?;
    let out = runtime.block_on(future);
    super::http::forget(runtime.handle().id());
    // A name look-up may still hang in a helper thread; nobody waits for it.
    runtime.shutdown_background();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_timers_and_nested() {
        let sleep = || async {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            7
        };
        assert_eq!(block_on(sleep()).unwrap(), 7);
        assert_eq!(block_on(async { block_on(sleep()).unwrap() }).unwrap(), 7);
    }

    #[test]
    fn a_panic_inside_a_host_runtime_is_an_error() {
        let outer = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let r: Result<()> = outer.block_on(async { block_on(async { panic!("x") }) });
        assert_eq!(r.unwrap_err().kind(), Kind::Bug);
    }
}
