//! The thread that all requests of this room are made on, started at the first, with connections that stay open for the next.
//!
//! After fork() the child has no such thread: its first use starts another. A connection that was open at the fork is the parent's, and
//! its reads are an error in the child.

use crate::base::{Error, ForkSafe, Kind, Result, clock, panics, thread};
use std::future::Future;
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use tokio::runtime::Handle;

static RUNTIME: ForkSafe<Mutex<Option<Handle>>> = ForkSafe::new(Mutex::default);

/// How long the program's thread waits for one read: the store's own retries end before.
const LONGEST: Duration = Duration::from_secs(300);

fn handle() -> Result<Handle> {
    let mut at = RUNTIME.lock();
    if let Some(h) = at.as_ref() {
        return Ok(h.clone());
    }
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_name("walrust-io")
        .on_thread_start(thread::block_signals)
        .build()
        .map_err(|e| Error::new(Kind::Io, "cannot start a runtime to read with").because(e))?;
    let h = rt.handle().clone();
    let turns = move || {
        // A panic of a task is the task's; should the runtime itself panic, its tasks go on with the next turn.
        while let Err(said) = panics::caught(|| rt.block_on(std::future::pending::<()>())) {
            log::error!("walrust: internal error in the reading thread: {said}");
            clock::sleep(Duration::from_millis(100));
        }
    };
    thread::spawn_joined("walrust-read", 512 << 10, turns)
        .map_err(|e| Error::new(Kind::Io, "cannot start the reading thread").because(e))?;
    *at = Some(h.clone());
    Ok(h)
}

/// Runs `work` on the reading thread and waits for it. Errors with its own; with [`Kind::Io`] where there is no thread, with
/// [`Kind::Timeout`] where it does not end, with [`Kind::Bug`] after a panic.
pub(super) fn run<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (done, ended) = mpsc::sync_channel(1);
    handle()?.spawn(async move {
        let _ = done.send(work.await);
    });
    match ended.recv_timeout(LONGEST) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Error::new(
            Kind::Timeout,
            format!("the replica did not answer within {} s", LONGEST.as_secs()),
        )),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::new(Kind::Bug, "a panic while reading")),
    }
}
