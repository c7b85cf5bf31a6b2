//! A panic becomes an error here, wherever work of ours could end by one and nobody would hear of it; and the doors to what
//! panics when the system refuses a thread.

use super::{Error, Kind, Result};
use futures_util::FutureExt;
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The longest text of a panic that is repeated.
const LONGEST: usize = 200;

/// Runs `f`; a panic becomes its message, one line. (The state that `f` touches is given up by the caller, or guarded by its own
/// poisoning.)
pub fn caught<T>(f: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(text)
}

/// The same of a future.
pub async fn caught_async<F: Future>(f: F) -> std::result::Result<F::Output, String> {
    AssertUnwindSafe(f).catch_unwind().await.map_err(text)
}

fn text(payload: Box<dyn Any + Send>) -> String {
    // A simulated process that is killed unwinds to whoever runs it.
    #[cfg(feature = "sim")]
    if super::sim::world().is_some() && !payload.is::<&str>() && !payload.is::<String>() {
        std::panic::resume_unwind(payload);
    }
    let said = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".into());
    // A payload whose destructor panics in its turn must not get out either.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

/// What a panic with this message is to its caller: [`Kind::Retry`] where the system refused a thread, else [`Kind::Bug`].
pub fn error(said: &str) -> Error {
    if said.contains("spawn") && said.contains("thread") {
        return no_thread();
    }
    Error::new(Kind::Bug, format!("internal error: {said}"))
}

fn no_thread() -> Error {
    Error::new(
        Kind::Retry,
        "the system refuses another thread (a limit of the process, user or container); tried again",
    )
}

/// Runs `work` on a thread for blocking work of the runtime in which this is called. Errors with [`Kind::Retry`] when no thread can
/// be started, where tokio itself would panic; with [`Kind::Bug`] when `work` panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    // Work that found no thread stays in tokio's queue: the next thread must not do it any more.
    let wanted = Arc::new(AtomicBool::new(true));
    let job = {
        let wanted = wanted.clone();
        move || wanted.load(Ordering::Acquire).then(work)
    };
    let Ok(running) = caught(|| tokio::task::spawn_blocking(job)) else {
        wanted.store(false, Ordering::Release);
        return Err(no_thread());
    };
    match running.await {
        Ok(done) => done.ok_or_else(no_thread),
        Err(e) => Err(error(&e.try_into_panic().map_or_else(|_| "the work was given up".to_string(), text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message_in_one_line() {
        assert_eq!(caught(|| 1), Ok(1));
        assert_eq!(caught(|| panic!("a\nb {}", 1)), Err::<(), _>("a b 1".into()));
        assert_eq!(caught(|| std::panic::panic_any(7)), Err::<(), _>("panic without a message".into()));
        let long = caught(|| panic!("{}", "ü".repeat(10_000))).map(|()| 0);
        assert_eq!(long.unwrap_err().chars().count(), LONGEST);
    }

    #[test]
    fn work_on_a_thread_that_panics_is_an_error_and_a_refused_thread_one_that_passes() {
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(rt.block_on(blocking(|| 3)).unwrap(), 3);
        let e = rt.block_on(blocking(|| panic!("x"))).map(|()| 0).unwrap_err();
        assert_eq!((e.kind(), e.to_string()), (Kind::Bug, "internal error: x".into()));
        let e = error("OS can't spawn worker thread: Resource temporarily unavailable (os error 11)");
        assert_eq!(e.kind(), Kind::Retry);
        // Outside of a runtime tokio panics, too.
        let mut f = std::pin::pin!(blocking(|| 3));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(matches!(f.as_mut().poll(&mut cx), std::task::Poll::Ready(Err(e)) if e.is_retry()));
    }
}
