//! The thread that sends, and the queues before it.

use super::answer::Answer;
use super::event::Event;
use super::payload;
use super::post::{self, Clients, Outcome, Tries};
use super::queue::{Hurry, Pace, Pending, Queue};
use crate::base::{ForkSafe, Webhook, clock, panics, thread};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// How a hub behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub tries: Tries,
    pub pace: Pace,
    /// The thread ends after this long without work.
    pub idle: Duration,
}

impl Policy {
    /// 10 s per request, five tries over some ten seconds (an endpoint that is down longer will hear of the
    /// same trouble again); three events at once, then one in five seconds.
    pub(super) const USUAL: Policy = Policy {
        tries: Tries {
            timeout: Duration::from_secs(10),
            most: 5,
            base: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        },
        pace: Pace { burst: 3, window: Duration::from_secs(5) },
        idle: Duration::from_secs(30),
    };
}

#[derive(Default)]
struct State {
    /// The thread that serves, by its number: one at a time.
    thread: Option<u64>,
    threads: u64,
    endpoints: HashMap<Webhook, Endpoint>,
    tests: Vec<TestJob>,
    /// Heartbeats to be sent, and whether the last one failed.
    beats: Vec<Webhook>,
    is_beat_failing: bool,
    /// Callers of `flush` that wait.
    flushing: usize,
}

/// An endpoint to ask, and whom to tell its answer under which number.
struct TestJob {
    number: usize,
    hook: Webhook,
    answer: mpsc::Sender<(usize, Answer)>,
}

#[derive(Default)]
struct Endpoint {
    queue: Queue,
    /// Entries being sent: 0 or 1.
    busy: usize,
}

impl Endpoint {
    fn left(&self) -> usize {
        self.queue.len() + self.busy
    }
}

/// Queues and the thread that empties them.
pub(super) struct Hub {
    policy: Policy,
    state: Mutex<State>,
    wake: tokio::sync::Notify,
    /// Told when an entry is done.
    done: Condvar,
}

impl Hub {
    pub(super) fn new(policy: Policy) -> Arc<Hub> {
        let (state, wake, done) = (Mutex::default(), tokio::sync::Notify::new(), Condvar::new());
        Arc::new(Hub { policy, state, wake, done })
    }

    /// Held for a few words only, never across a request.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(self: &Arc<Self>, hooks: &[Webhook], event: &Event) {
        let now = clock::uptime();
        let mut state = self.lock();
        for hook in hooks.iter().filter(|h| h.wants(event.kind)) {
            if !state.endpoints.contains_key(hook) {
                state.endpoints.insert(hook.clone(), Endpoint::default());
            }
            if let Some(endpoint) = state.endpoints.get_mut(hook) {
                endpoint.queue.push(event.clone(), now, self.policy.pace);
            }
        }
        self.start(&mut state);
    }

    pub(super) fn flush(self: &Arc<Self>, hooks: &[Webhook], timeout: Duration) -> usize {
        let deadline = clock::uptime() + timeout;
        let left =
            |state: &State| hooks.iter().filter_map(|h| state.endpoints.get(h)).map(Endpoint::left).sum();
        let mut state = self.lock();
        state.flushing += 1;
        let mut count: usize = left(&state);
        if count > 0 {
            self.start(&mut state);
        }
        while count > 0 {
            let rest = deadline.saturating_sub(clock::uptime());
            if rest.is_zero() {
                break;
            }
            state = self.done.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
            count = left(&state);
        }
        state.flushing -= 1;
        count
    }

    pub(super) fn test(self: &Arc<Self>, hooks: &[Webhook]) -> Vec<Answer> {
        let (tx, rx) = mpsc::channel();
        let mut state = self.lock();
        let job = |(number, hook)| TestJob { number, hook, answer: tx.clone() };
        state.tests.extend(hooks.iter().cloned().enumerate().map(job));
        self.start(&mut state);
        drop(state);
        drop(tx);
        let start = clock::uptime();
        let longest = self.policy.tries.timeout + Duration::from_secs(2);
        let mut answers: Vec<Option<Answer>> = vec![None; hooks.len()];
        while answers.iter().any(Option::is_none) {
            let Ok((i, answer)) =
                rx.recv_timeout(longest.saturating_sub(clock::uptime().saturating_sub(start)))
            else {
                break;
            };
            if let Some(slot) = answers.get_mut(i) {
                *slot = Some(answer);
            }
        }
        let silent = |h: &Webhook| Answer {
            endpoint: h.host(),
            outcome: Err("no answer".into()),
            took: clock::uptime().saturating_sub(start),
        };
        answers.into_iter().zip(hooks).map(|(a, h)| a.unwrap_or_else(|| silent(h))).collect()
    }

    /// Has a heartbeat sent. One that has not left yet is not sent twice.
    pub(super) fn beat(self: &Arc<Self>, hook: &Webhook) {
        let mut state = self.lock();
        if !state.beats.contains(hook) {
            state.beats.push(hook.clone());
            self.start(&mut state);
        }
    }

    /// Says in the log when heartbeats begin to fail, and when they arrive again.
    fn note_beat(&self, hook: &Webhook, outcome: &Outcome) {
        let why = match outcome {
            Outcome::Delivered(_) => None,
            Outcome::Refused(status @ 300..=399) => Some(format!("answered {status}; {}", post::REDIRECT)),
            Outcome::Refused(status) | Outcome::Later(status, _) => Some(format!("answered {status}")),
            Outcome::Nothing(why) => Some(why.clone()),
        };
        let was_failing = std::mem::replace(&mut self.lock().is_beat_failing, why.is_some());
        match why {
            Some(why) if !was_failing => {
                log::warn!("heartbeat_url {}: {why}; the next one is tried at its time", hook.host());
            }
            None if was_failing => log::info!("heartbeat_url {}: arrives again", hook.host()),
            _ => {}
        }
    }

    /// Wakes the thread, or starts it.
    fn start(self: &Arc<Self>, state: &mut State) {
        self.wake.notify_one();
        if state.thread.is_some() {
            return;
        }
        state.threads += 1;
        let (hub, number) = (Arc::clone(self), state.threads);
        match thread::spawn_joined("walrust-notify", 1 << 20, move || hub.run(number)) {
            Ok(_) => state.thread = Some(number),
            Err(e) => log::warn!("webhooks: cannot start a thread: {e}; the next event tries again"),
        }
    }

    fn run(self: Arc<Self>, number: u64) {
        let _stopped = Stopped { hub: &self, number };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(16) // name lookups: one hanging lookup must not hold up the others
            .thread_name("walrust-dns")
            .on_thread_start(thread::block_signals)
            .thread_keep_alive(Duration::from_secs(1))
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(e) => return log::warn!("webhooks: cannot start: {e}; the next event tries again"),
        };
        runtime.block_on(self.serve());
        // A hanging name lookup must not keep the thread.
        runtime.shutdown_background();
    }

    async fn serve(self: &Arc<Self>) {
        let clients = Arc::new(Clients::default());
        let mut last_work = clock::uptime();
        loop {
            let now = clock::uptime();
            let sleep = match self.dispatch(&clients, now, &mut last_work) {
                Some(sleep) => sleep,
                None => return,
            };
            let _ = tokio::time::timeout(sleep, self.wake.notified()).await;
        }
    }

    /// Gives each free endpoint its next entry. Gives the longest time to sleep; `None`: the end.
    fn dispatch(
        self: &Arc<Self>,
        clients: &Arc<Clients>,
        now: Duration,
        last_work: &mut Duration,
    ) -> Option<Duration> {
        let mut state = self.lock();
        for TestJob { number, hook, answer } in std::mem::take(&mut state.tests) {
            *last_work = now;
            let (clients, timeout) = (Arc::clone(clients), self.policy.tries.timeout);
            tokio::spawn(async move {
                let told = answer.send((number, try_once(&clients, &hook, timeout).await));
                drop(told); // the caller may have gone
            });
        }
        for hook in std::mem::take(&mut state.beats) {
            *last_work = now;
            let (hub, clients, timeout) = (Arc::clone(self), Arc::clone(clients), self.policy.tries.timeout);
            tokio::spawn(async move {
                let outcome = post::ask(&clients, &hook, timeout).await;
                hub.note_beat(&hook, &outcome);
            });
        }
        let hurry = if state.flushing > 0 { Hurry::Yes } else { Hurry::No };
        let mut sleep = self.policy.idle;
        for (hook, endpoint) in &mut state.endpoints {
            if endpoint.left() > 0 {
                *last_work = now;
            }
            if endpoint.busy > 0 {
                continue;
            }
            if let Some(pending) = endpoint.queue.take(now, self.policy.pace, hurry) {
                endpoint.busy = 1;
                tokio::spawn(deliver(Arc::clone(self), Arc::clone(clients), hook.clone(), pending));
            } else if let Some(due) = endpoint.queue.next_due() {
                sleep = sleep.min(due.saturating_sub(now));
            }
        }
        if now.saturating_sub(*last_work) < self.policy.idle {
            return Some(sleep.max(Duration::from_millis(1)));
        }
        // The paces are older than their window by now.
        state.endpoints.clear();
        state.thread = None;
        None
    }
}

/// Whatever ends the thread, the next event starts another. (`dispatch` has usually said so already, under
/// the lock that found no work, and another thread may be there by now.)
struct Stopped<'a> {
    hub: &'a Hub,
    number: u64,
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        if state.thread == Some(self.number) {
            state.thread = None;
        }
    }
}

/// Whatever ends a delivery, its endpoint is free again.
struct Busy {
    hub: Arc<Hub>,
    hook: Webhook,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(endpoint) = self.hub.lock().endpoints.get_mut(&self.hook) {
            endpoint.busy = 0;
        }
        self.hub.done.notify_all();
        self.hub.wake.notify_one();
    }
}

async fn deliver(hub: Arc<Hub>, clients: Arc<Clients>, hook: Webhook, pending: Pending) {
    let busy = Busy { hub, hook };
    let body = payload::body(&pending);
    let sent = panics::caught_async(post::deliver(&clients, &busy.hook, &body, busy.hub.policy.tries)).await;
    if let Err(why) = sent.unwrap_or_else(|said| Err(panics::error(&said).to_string())) {
        let (event, host) = (pending.event.kind, busy.hook.host());
        log::warn!("webhook {host}: {event} of {} not delivered: {why}", pending.event.database);
    }
}

async fn try_once(clients: &Clients, hook: &Webhook, timeout: Duration) -> Answer {
    let start = clock::uptime();
    let outcome = match post::once(clients, hook, payload::test_body(), clock::random_u64(), timeout).await {
        Outcome::Delivered(status) | Outcome::Refused(status) | Outcome::Later(status, _) => Ok(status),
        Outcome::Nothing(why) => Err(why),
    };
    Answer { endpoint: hook.host(), outcome, took: clock::uptime().saturating_sub(start) }
}

/// A child starts with empty queues and no thread. What the parent had queued, the parent sends.
static HUB: ForkSafe<Arc<Hub>> = ForkSafe::new(|| Hub::new(Policy::USUAL));

/// The hub of this process.
pub(super) fn of_this_process() -> Arc<Hub> {
    Arc::clone(HUB.get())
}
