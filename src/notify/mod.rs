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

mod answer;
mod event;
mod hub;
mod payload;
mod post;
mod queue;

#[cfg(test)]
mod tests;

pub use answer::Answer;
pub use event::Event;

use crate::base::Webhook;
use hub::Hub;
use std::sync::Arc;
use std::time::Duration;

/// Sends a heartbeat: one GET, never repeated, that nobody waits for (I-NOTIFY-1). What comes of it is logged when it changes.
pub fn beat(hook: &Webhook) {
    hub::of_this_process().beat(hook);
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
