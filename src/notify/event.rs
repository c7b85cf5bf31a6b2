//! What is told.

use crate::base::{EventKind, Timestamp, clock};

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
pub(super) const LONGEST_MESSAGE: usize = 2000;

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
