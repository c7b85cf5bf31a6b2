//! The lane that everything else makes way for: level 0, and the snapshot that a lineage begins with.
//!
//! Each step: recover (what a process that died left in the spool) → plan → right (the lease) → upload → record → conclude. It
//! has the circuit breaker, and its errors are the database's `last_error`.

use super::plan::{self, Next};
use super::shipper::{Did, Event, Halt, LONGEST_REST, LONGEST_WAIT, Shipper, Step, blocking};
use super::status::{Protection, State, Status};
use crate::base::{Error, Kind, Result, clock, crash};
use crate::ltx::Level;
use crate::spool::{Queued, Shippable};
use crate::store::{Breaker, BreakerState, Change, Permit};
use std::time::Duration;

/// After an error that trying again soon can't cure (wrong credentials, no such bucket).
const SLOW_RETRY: Duration = Duration::from_secs(15);
/// Between two looks at a spool that another process is changing.
const CHANGING_LOOK: Duration = Duration::from_millis(20);

/// Why the stream rests, and so what cuts that short, besides [`super::Link::stop`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// All is shipped: until there is new work.
    Idle,
    /// The breaker is open: as long as somebody waits for the replica, tries are as far apart as before it opened.
    Paused,
    /// A try failed: somebody who begins to wait for the replica causes the next one at once.
    BetweenTries,
}

/// Whether a rest is over when its bell rings. `calls`: how many waits had begun when the last try was made, and now.
fn is_cut_short(rest: Rest, is_waited_for: bool, calls: (u64, u64)) -> bool {
    match rest {
        Rest::Idle => true,
        Rest::Paused => is_waited_for,
        Rest::BetweenTries => calls.1 != calls.0,
    }
}

/// The stream's own state.
pub(super) struct Stream<'a> {
    of: &'a Shipper,
    breaker: Breaker,
    failures: u32,
    /// The store said something that makes it doubtful that it holds what was shipped.
    suspects: bool,
    /// How many waits had begun when the last try was made.
    heard: u64,
}

impl<'a> Stream<'a> {
    pub(super) fn new(of: &'a Shipper) -> Stream<'a> {
        Stream { of, breaker: of.plan.breaker.clone(), failures: 0, suspects: false, heard: 0 }
    }

    /// Ships until the link is stopped. Errors with [`Kind::Fenced`].
    pub(super) async fn run(mut self) -> Result<()> {
        while !self.of.is_stopped() {
            // Who waits is worth a trial: then tries are as far apart as before the breaker opened.
            let link = &self.of.plan.link;
            let permit = if link.is_waited_for() {
                self.breaker.permit_waited_for(clock::uptime())
            } else {
                self.breaker.permit(clock::uptime())
            };
            self.heard = link.calls();
            let (rest, why) = match permit {
                Permit::Wait(d) => (d, Rest::Paused),
                Permit::Go | Permit::Trial => match self.step().await {
                    Ok(Did::Work) => continue,
                    Ok(Did::Nothing) => (self.idle(), Rest::Idle),
                    Err(Halt::Failed(e)) => (self.failed(&e), Rest::BetweenTries),
                    Err(Halt::Barred(e)) => (self.of.barred(&e), Rest::BetweenTries),
                    Err(Halt::Fenced(e)) => return Err(e),
                },
            };
            self.rest(rest, why).await;
        }
        Ok(())
    }

    /// One file, or nothing.
    async fn step(&mut self) -> Step<Did> {
        let (pending, snapshots) = self.recover().await?;
        let replicated = self.of.plan.link.status().replicated;
        let (file, level) = match plan::stream(&pending, &snapshots, replicated) {
            Next::Base(q) => (q, Level::SNAPSHOT),
            Next::Level0(q) => (q, Level::L0),
            Next::Gap(txid) => {
                let missing = format!("TXID {txid} is neither in the replica nor in the spool");
                return Err(self.of.damaged(missing).into());
            }
            Next::Nothing => return Ok(Did::Nothing),
        };
        let right = self.of.right().await?;
        self.of.plan.link.update(|s| {
            s.uploading = true;
            s.last_start = Some(clock::uptime());
        });
        let done = async {
            let file = self.of.vouch(&file)?;
            let entry = self.of.put(&right, &file, level).await?;
            Ok::<_, Halt>((file, entry))
        };
        let done = done.await;
        self.of.plan.link.update(|s| s.uploading = false);
        let (file, entry) = done?;
        crash::point("ship.noted");
        (self.of.plan.on_event)(Event::Arrived { before: replicated, path: file.path.clone() });
        let shipped = self.of.record(&file, level)?;
        // Who waits for that TXID looks at the rest of the status right after.
        self.succeeded(|s| {
            s.replicated = shipped.txid;
            s.snapshot = shipped.snapshot;
            s.note_snapshot_time(shipped.snapshot_time);
            s.change = shipped.change;
            s.last_upload = Some(shipped.time);
        });
        crash::point("ship.after-record");
        self.of.conclude(&file, &entry)?;
        // A snapshot that the stream has passed may go.
        self.of.plan.link.work.snapshots.notify_one();
        (self.of.plan.on_slot)();
        Ok(Did::Work)
    }

    /// What may leave the spool, after what a process that died left there is settled.
    async fn recover(&mut self) -> Step<(Vec<Queued>, Vec<Queued>)> {
        if self.suspects && !self.of.plan.spool.pending()?.is_empty() {
            self.look_again().await?;
        }
        loop {
            if let Shippable::Files(pending, snapshots) = self.of.plan.spool.shippable()? {
                return Ok((pending, snapshots));
            }
            // (The other lane leaves that to this one.)
            self.of.plan.link.work.snapshots.notify_one();
            let spool = self.of.plan.spool.clone();
            if !blocking(move || spool.settle_if_free()).await? {
                // Its holder is at work, or stands still: the other databases do not wait for that.
                self.of.rest(&self.of.plan.link.work.stream, CHANGING_LOOK).await;
                if self.of.is_stopped() {
                    return Ok((Vec::new(), Vec::new()));
                }
            }
        }
    }

    /// After trouble: is what was shipped still there?
    async fn look_again(&mut self) -> Result<()> {
        self.of.still_there().await?;
        self.suspects = false;
        Ok(())
    }

    /// The store has answered well; `also` is known from that, too.
    fn succeeded(&mut self, also: impl FnOnce(&mut Status)) {
        self.failures = 0;
        let change = self.breaker.success();
        let breaker = self.breaker.state();
        self.of.plan.link.update(|s| {
            also(s);
            s.breaker = breaker;
            s.last_error = None;
            s.state = State::CatchingUp;
        });
        if change == Change::Closed {
            (self.of.plan.on_event)(Event::BreakerClosed);
            self.of.plan.link.work.notify_one();
        }
    }

    /// All is shipped. How long to rest.
    fn idle(&mut self) -> Duration {
        // (Without the lease, or before it is known that the store knows none, nothing is known of the replica.)
        let is_known = self.of.plan.link.status().protection != Protection::Unknown;
        let is_barred = self.of.plan.link.status().state == State::Fenced;
        if !is_barred {
            self.succeeded(|_| {});
        }
        if is_known && !is_barred {
            self.of.plan.link.update(|s| s.state = State::Streaming);
        }
        LONGEST_REST
    }

    /// A try failed. How long to wait.
    fn failed(&mut self, e: &Error) -> Duration {
        let text = e.to_string();
        let kind = e.kind();
        if kind == Kind::Corrupt {
            (self.of.plan.on_event)(Event::Corrupt { error: text.clone() });
        }
        self.failures = self.failures.saturating_add(1);
        let attempts = self.failures;
        (self.of.plan.on_event)(Event::Failed { kind, error: text.clone(), attempts });
        let change = if Breaker::counts(kind) && !e.is_shortage() {
            // (What this process is short of says nothing of the store.)
            self.breaker.failure(clock::uptime())
        } else {
            Change::None
        };
        if change == Change::Opened {
            (self.of.plan.on_event)(Event::BreakerOpen { error: text.clone() });
        }
        self.suspects |= !matches!(kind, Kind::Retry | Kind::Timeout);
        let breaker = self.breaker.state();
        self.of.plan.link.update(|s| {
            s.breaker = breaker;
            s.state = match (breaker, kind) {
                (BreakerState::Open, _) => State::Paused,
                (_, Kind::Retry | Kind::Timeout) => State::CatchingUp,
                _ => State::Failed,
            };
            s.failures += 1;
            s.last_error = Some((kind, text));
        });
        let retry = &self.of.plan.retry;
        let wait = retry.delay(self.failures - 1, clock::random_u64(), e.retry_after());
        match kind {
            Kind::Retry | Kind::Timeout => wait,
            _ => wait.max(SLOW_RETRY.min(retry.max)),
        }
    }

    /// Waits for the time, or for what cuts it short.
    async fn rest(&self, d: Duration, why: Rest) {
        let link = &self.of.plan.link;
        let end = clock::uptime() + d;
        loop {
            let left = end.saturating_sub(clock::uptime());
            if left.is_zero() && why != Rest::Idle {
                return;
            }
            self.of.rest(&link.work.stream, left.max(Duration::from_millis(1))).await;
            let is_over = clock::uptime() >= end;
            let calls = (self.heard, link.calls());
            if is_over || link.is_stopped() || is_cut_short(why, link.is_waited_for(), calls) {
                return;
            }
        }
    }
}

const _: () = assert!(LONGEST_WAIT.as_secs() <= SLOW_RETRY.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cuts_a_rest_short() {
        for (rest, waited, calls, want) in [
            (Rest::Idle, false, (3, 3), true),
            (Rest::Paused, false, (3, 3), false),
            (Rest::Paused, true, (3, 3), true),
            // One who waits already caused the try that failed; who comes anew causes another.
            (Rest::BetweenTries, true, (3, 3), false),
            (Rest::BetweenTries, true, (3, 4), true),
            (Rest::BetweenTries, false, (3, 3), false),
        ] {
            assert_eq!(is_cut_short(rest, waited, calls), want, "{rest:?} {waited} {calls:?}");
        }
    }
}
