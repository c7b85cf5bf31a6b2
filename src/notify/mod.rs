//! Webhooks: telling people what happened, without ever making anybody wait.
//!
//! Rules
//! * I-NOTIFY-1: [`Notifier::send`] never blocks on the network: it queues a few words. A slow, failing or
//!   unreachable endpoint delays neither a commit, nor an upload, nor another endpoint: each endpoint has a
//!   queue and a task of its own on one thread.
//! * I-NOTIFY-2: memory is bounded. A queue holds at most [`queue::MOST_WAITING`] entries; a flood of one
//!   event is folded into one with a `count`; nothing is dropped uncounted.
//! * I-NOTIFY-3: what is signed is what is sent: the HMAC is over the raw body, and a redirect is not
//!   followed (it would hand the signed body to an address nobody configured, or turn the POST into a GET).
//! * I-NOTIFY-4: of an endpoint only scheme and host are ever logged or returned; of its secret nothing.
//!
//! Anybody may call it, from any thread, inside or outside an async runtime. The thread starts at the first
//! event and ends when it has been idle for a while; a process that configures no webhook never has it.
//! Queued events are in memory alone: a crash loses them. They are news of a state that `walrust_status`
//! shows, and the next run tells it again if it still holds.
//!
//! Refused: a queue on disk (a webhook is not worth a write into somebody's data directory); one request at
//! a time over all endpoints (one dead endpoint would hold back the one that pages somebody).

mod hub;
mod payload;
mod post;
mod queue;

#[cfg(test)]
mod tests;

use crate::base::{EventKind, Timestamp, Webhook, clock};
use hub::Hub;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The database it happened to, as `walrust_status` names it.
    pub database: String,
    /// When.
    pub at: Timestamp,
    /// One line for a person. Must hold no secret.
    pub message: String,
    /// Details for a program: names and values. Must hold no secret. `count`, `first_timestamp` and
    /// `databases` are filled in by folding.
    pub context: serde_json::Map<String, serde_json::Value>,
}

/// The longest message sent, in characters: errors of stores can be whole pages.
const LONGEST_MESSAGE: usize = 2000;

impl Event {
    /// An event of now, without context.
    pub fn new(kind: EventKind, database: impl Into<String>, message: impl AsRef<str>) -> Event {
        let message = message.as_ref();
        let mut short: String = message.chars().take(LONGEST_MESSAGE).collect();
        if short.len() < message.len() {
            short.push('…');
        }
        let context = serde_json::Map::new();
        Event { kind, database: database.into(), at: clock::now(), message: short, context }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Event {
        self.context.insert(name.to_string(), value.into());
        self
    }
}

/// What an endpoint said to a test event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `scheme://host[:port]`.
    pub endpoint: String,
    /// The HTTP status, or why there is none. 2xx is the only good one.
    pub outcome: Result<u16, String>,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Whether the endpoint took the event.
    pub fn is_good(&self) -> bool {
        matches!(self.outcome, Ok(200..=299))
    }
}

/// One line: `https://hooks.example.com: 200 in 41 ms`.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(status @ 300..=399) => write!(f, "{}: {status}, {}", self.endpoint, post::REDIRECT)?,
            Ok(status) => write!(f, "{}: {status}", self.endpoint)?,
            Err(why) => write!(f, "{}: {why}", self.endpoint)?,
        }
        write!(f, " in {} ms", self.took.as_millis())
    }
}

/// Tells a set of endpoints. Cheap to make and to clone: all share one thread.
#[derive(Clone)]
pub struct Notifier {
    hooks: Arc<[Webhook]>,
    hub: Door,
}

/// Which thread: the process's, or one of a test.
#[derive(Clone)]
enum Door {
    Process,
    #[cfg(test)]
    Own(Arc<Hub>),
}

impl Notifier {
    /// A notifier of these endpoints. Starts nothing.
    pub fn new(hooks: Vec<Webhook>) -> Notifier {
        Notifier { hooks: hooks.into(), hub: Door::Process }
    }

    #[cfg(test)]
    fn with_hub(hooks: Vec<Webhook>, hub: &Arc<Hub>) -> Notifier {
        Notifier { hooks: hooks.into(), hub: Door::Own(Arc::clone(hub)) }
    }

    /// The endpoints.
    pub fn hooks(&self) -> &[Webhook] {
        &self.hooks
    }

    fn hub(&self) -> Arc<Hub> {
        match &self.hub {
            Door::Process => hub::of_this_process(),
            #[cfg(test)]
            Door::Own(hub) => Arc::clone(hub),
        }
    }

    /// Queues `event` for every endpoint that wants it. Never blocks, never fails (I-NOTIFY-1).
    pub fn send(&self, event: &Event) {
        if self.hooks.iter().any(|h| h.wants(event.kind)) {
            self.hub().push(&self.hooks, event);
        }
    }

    /// Waits until these endpoints have been told everything queued, folded or not, at most `timeout`.
    /// Gives the number of queue entries left over.
    pub fn flush(&self, timeout: Duration) -> usize {
        match self.hooks.is_empty() {
            true => 0,
            false => self.hub().flush(&self.hooks, timeout),
        }
    }

    /// Sends a test event to every endpoint at once, whatever its `events`, one try each, and waits for
    /// the answers (at most the request timeout of 10 seconds and a little).
    pub fn test(&self) -> Vec<Answer> {
        match self.hooks.is_empty() {
            true => Vec::new(),
            false => self.hub().test(&self.hooks),
        }
    }
}
