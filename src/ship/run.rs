//! One shipper from its start to its end.

use super::beside::{keeper, snapshots, upkeep};
use super::link::Link;
use super::name::clerk;
use super::runtime;
use super::shipper::{Event, Plan, Shipper};
use super::status::State;
use super::stream::Stream;
use crate::base::{Error, ForkSafe, Result, clock, panics};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

/// A shipper that panicked begins again after this long, and after twice that the next time.
const AFTER_PANIC: Duration = Duration::from_secs(2);
const LONGEST_AFTER_PANIC: Duration = Duration::from_secs(30);
/// One that had worked for this long begins with the shortest again.
const WORKED: Duration = Duration::from_secs(120);
/// How long uploads that are under way may take to end when the shipper is stopped.
const GRACE: Duration = Duration::from_millis(500);
/// How long the lease may take to be given back. (It ends by itself.)
const LAST_WORD: Duration = Duration::from_secs(2);

/// The spools of shippers that were left at work: see [`leave`].
static LEFT: ForkSafe<Mutex<Vec<(Process, PathBuf)>>> = ForkSafe::new(Mutex::default);

/// Which process: of several there are only in a simulation.
type Process = u64;

fn this_process() -> Process {
    #[cfg(feature = "sim")]
    return crate::base::sim::process();
    #[cfg(not(feature = "sim"))]
    0
}

/// Starts to ship. Errors with [`crate::base::Kind::Io`] when there is no runtime for it.
pub fn start(plan: Plan) -> Result<()> {
    let runtime = runtime::handle()?;
    plan.link.begins();
    runtime.spawn(run(plan));
    Ok(())
}

/// Waits until the shipper of `link`, which was stopped and works in the spool `dir`, has ended, `patience` at most. Whether it
/// has: then what it was lent is its caller's to give away. If not, the shipper does that at its end (`Plan::on_end`); until
/// then [`is_left_at_work`].
pub fn leave(link: &Link, dir: &Path, patience: Duration) -> bool {
    LEFT.lock().push((this_process(), dir.to_path_buf()));
    let has_ended = link.join_or_leave(patience);
    if has_ended {
        forget(dir);
    }
    has_ended
}

/// Whether a shipper that was stopped is still at work in the spool `dir`: nobody else may be.
pub fn is_left_at_work(dir: &Path) -> bool {
    LEFT.lock().iter().any(|(process, d)| *process == this_process() && d == dir)
}

fn forget(dir: &Path) {
    let mut left = LEFT.lock();
    if let Some(i) = left.iter().position(|(process, d)| *process == this_process() && d == dir) {
        left.swap_remove(i);
    }
}

/// How long a shipper rests that has panicked `times` times in a row.
fn rest_after_panic(times: u32) -> Duration {
    AFTER_PANIC.saturating_mul(1 << times.saturating_sub(1).min(8)).min(LONGEST_AFTER_PANIC)
}

/// What a panic of the shipper leaves for others to see (I-SHIP-6).
fn panicked(plan: &Plan, said: &str, times: u32, rest: Duration) {
    let e = panics::error(said);
    let error = format!("{e}; uploads begin again in {}", humantime::format_duration(rest));
    plan.link.update(|s| {
        s.uploading = false;
        s.state = State::Failed;
        s.failures += 1;
        s.last_error = Some((e.kind(), error.clone()));
    });
    let told = || (plan.on_event)(Event::Failed { kind: e.kind(), error: error.clone(), attempts: times });
    if panics::caught(told).is_err() {
        log::error!("walrust: {}: {error}", plan.replica);
    }
}

/// Ships until [`Link::stop`], then gives the lease back. Begins again, after a rest, if it panics (I-SHIP-6).
async fn run(mut plan: Plan) {
    let (link, on_end, dir) = (plan.link.clone(), plan.on_end.clone(), plan.spool.dir().to_path_buf());
    let mut times = 0;
    loop {
        let next = plan.again();
        let began = clock::uptime();
        let Err(said) = panics::caught_async(Box::pin(ship(plan))).await else { break };
        times = if clock::uptime().saturating_sub(began) >= WORKED { 1 } else { times + 1 };
        let rest = rest_after_panic(times);
        panicked(&next, &said, times, rest);
        let end = clock::uptime() + rest;
        while clock::uptime() < end && !link.is_stopped() {
            let left = end.saturating_sub(clock::uptime());
            tokio::select! {
                biased;
                () = link.work.all.notified() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
        if link.is_stopped() {
            break;
        }
        plan = next;
    }
    if link.ends() {
        on_end();
        forget(&dir);
    }
}

async fn ship(plan: Plan) {
    let s = Shipper::new(plan);
    if let Some(e) = until_stopped_or_fenced(&s).await {
        fenced(&s, &e);
        tokio::select! {
            biased;
            () = stopped(&s.plan.link) => {}
            () = s.name_after_all() => stopped(&s.plan.link).await,
        }
    }
    drop(tokio::time::timeout(LAST_WORD, s.give_lease_back()).await);
}

/// A lane that runs until the shipper is stopped, or errors with [`crate::base::Kind::Fenced`].
type Lane<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Runs the lanes, each beside the others, on one task. Gives the error that ends them all, if it is that.
async fn until_stopped_or_fenced(s: &Shipper) -> Option<Error> {
    // (Each in its own place on the heap: the thread that polls them has a small stack.)
    let stream: Lane<'_> = Box::pin(Stream::new(s).run());
    let snapshots: Lane<'_> = Box::pin(snapshots(s));
    let upkeep: Lane<'_> = Box::pin(upkeep(s));
    let keeper: Lane<'_> = Box::pin(keeper(s));
    let clerk: Lane<'_> = Box::pin(clerk(s));
    let lanes = async { tokio::try_join!(stream, snapshots, upkeep, keeper, clerk).err() };
    let patience_is_over = async {
        stopped(&s.plan.link).await;
        if !s.plan.store.can_be_given_up() {
            // What a thread writes into a directory cannot be given up, and ends by itself.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        biased;
        ended = lanes => ended,
        () = patience_is_over => None,
    }
}

fn fenced(s: &Shipper, e: &Error) {
    let text = e.to_string();
    (s.plan.on_event)(Event::Fenced { error: text.clone() });
    s.plan.link.update(|at| {
        at.uploading = false;
        at.state = State::Fenced;
        at.failures += 1;
        at.last_error = Some((e.kind(), text));
    });
}

async fn stopped(link: &Link) {
    while !link.is_stopped() {
        link.work.all.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_after_panics_grow_to_half_a_minute() {
        let rests: Vec<u64> = (1..=7).map(|n| rest_after_panic(n).as_secs()).collect();
        assert_eq!(rests, [2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(rest_after_panic(u32::MAX), LONGEST_AFTER_PANIC);
    }

    #[test]
    fn a_spool_is_busy_until_the_shipper_that_was_left_there_has_ended() {
        let (link, dir) = (Link::default(), Path::new("/spools/left"));
        assert!(leave(&link, dir, Duration::ZERO) && !is_left_at_work(dir), "there was none");
        link.begins();
        assert!(!leave(&link, dir, Duration::ZERO));
        assert!(is_left_at_work(dir) && !is_left_at_work(Path::new("/spools")));
        assert!(link.ends());
        forget(dir);
        assert!(!is_left_at_work(dir));
    }
}
