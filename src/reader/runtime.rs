//! The thread that all requests of this room are made on, started at the first, with connections that stay open for the next.
//!
//! After fork() the child has no such thread: its first use starts another. A connection that was open at the fork is the parent's, and
//! its reads are an error in the child.

use crate::base::{Error, ForkSafe, Kind, Result, runtime};
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
    let h = runtime::start("walrust-read", 4)?;
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
