//! What can be told to a webhook, and whom to tell: words that `config` (reading them) and `notify`
//! (sending them) share without knowing each other.

use std::fmt;
use subtle::ConstantTimeEq;

/// How urgent an event is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Nothing to do.
    Info,
    /// Heals by itself, or will be escalated if it does not.
    Warning,
    /// A person must look.
    Critical,
}

impl Severity {
    /// As it stands in the payload.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EventKind {
    /// A full snapshot is in the replica.
    SnapshotComplete,
    /// An upload failed and will be tried again.
    UploadError,
    /// The store refused our identity or rights.
    AuthFailure,
    /// Bytes in the replica (or on the way to it) are not what they must be.
    CorruptionDetected,
    /// Too many failures in a row: uploads are paused.
    CircuitBreakerOpen,
    /// Uploads go on.
    CircuitBreakerClosed,
    /// The history could not be proved unbroken; a new snapshot was taken.
    HistoryGap,
    /// Another machine owns the replica.
    Fenced,
    /// A drill found that the replica, or what is restored of it, is not as it should be.
    DrillFailed,
    /// What an upload error, a refusal or damage told of is over.
    Recovered,
}

impl EventKind {
    /// Every event, in the order the documentation lists them.
    pub const ALL: [EventKind; 10] = [
        EventKind::SnapshotComplete,
        EventKind::UploadError,
        EventKind::AuthFailure,
        EventKind::CorruptionDetected,
        EventKind::CircuitBreakerOpen,
        EventKind::HistoryGap,
        EventKind::Fenced,
        EventKind::CircuitBreakerClosed,
        EventKind::Recovered,
        EventKind::DrillFailed,
    ];

    /// As it stands in the payload and in `events = [...]`.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::SnapshotComplete => "snapshot_complete",
            EventKind::UploadError => "upload_error",
            EventKind::AuthFailure => "auth_failure",
            EventKind::CorruptionDetected => "corruption_detected",
            EventKind::CircuitBreakerOpen => "circuit_breaker_open",
            EventKind::CircuitBreakerClosed => "circuit_breaker_closed",
            EventKind::HistoryGap => "history_gap",
            EventKind::Fenced => "fenced",
            EventKind::Recovered => "recovered",
            EventKind::DrillFailed => "drill_failed",
        }
    }

    /// The event of that name.
    pub fn parse(name: &str) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|e| e.as_str() == name)
    }

    /// How urgent it is.
    pub fn severity(self) -> Severity {
        match self {
            EventKind::SnapshotComplete | EventKind::CircuitBreakerClosed | EventKind::Recovered => {
                Severity::Info
            }
            EventKind::UploadError => Severity::Warning,
            EventKind::AuthFailure
            | EventKind::CorruptionDetected
            | EventKind::CircuitBreakerOpen
            | EventKind::HistoryGap
            | EventKind::Fenced
            | EventKind::DrillFailed => Severity::Critical,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that no output shows.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself: for signing only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is `said`, in a time that tells no part of it.
    pub fn is(&self, said: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(said).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One endpoint that is told of events.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Webhook {
    /// `http://` or `https://`. Its path often is a capability (chat services), so only
    /// [`Webhook::host`] is ever shown.
    pub url: String,
    /// Key of the HMAC-SHA256 signature; without one, requests are unsigned.
    pub secret: Option<Secret>,
    /// Which events it wants; empty means all.
    pub events: Vec<EventKind>,
}

impl Webhook {
    /// Whether it wants to hear of `event`.
    pub fn wants(&self, event: EventKind) -> bool {
        self.events.is_empty() || self.events.contains(&event)
    }

    /// `scheme://host[:port]`, all of the URL that may be shown.
    pub fn host(&self) -> String {
        match url::Url::parse(&self.url) {
            Ok(u) => match (u.host_str(), u.port()) {
                (Some(h), Some(p)) => format!("{}://{h}:{p}", u.scheme()),
                (Some(h), None) => format!("{}://{h}", u.scheme()),
                (None, _) => format!("{}://?", u.scheme()),
            },
            Err(_) => "unreadable URL".to_string(),
        }
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = if self.secret.is_some() { "signed" } else { "unsigned" };
        write!(f, "Webhook({}, {signed}, {:?})", self.host(), self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for e in EventKind::ALL {
            assert_eq!(EventKind::parse(e.as_str()), Some(e));
        }
        for no in ["", "upload_failed", "Fenced", "fenced "] {
            assert_eq!(EventKind::parse(no), None, "{no}");
        }
    }

    #[test]
    fn what_is_shown_holds_neither_secret_nor_path() {
        let hook = Webhook {
            url: "https://me:pw@hooks.example.com:8443/services/T0/B0/capability?k=v".into(),
            secret: Some(Secret::new("s3cr3t")),
            events: vec![EventKind::Fenced],
        };
        let shown = format!("{hook:?} {} {:?}", hook.host(), hook.secret);
        assert!(shown.contains("https://hooks.example.com:8443"), "{shown}");
        for hidden in ["s3cr3t", "capability", "pw", "k=v"] {
            assert!(!shown.contains(hidden), "{hidden} in {shown}");
        }
    }

    #[test]
    fn a_secret_is_itself_and_nothing_near_it() {
        let secret = Secret::new("correct horse battery");
        assert!(secret.is(b"correct horse battery"));
        for other in [
            "",
            "correct horse batterx",
            "correct horse batter",
            "correct horse battery ",
            "Correct horse battery",
        ] {
            assert!(!secret.is(other.as_bytes()), "{other}");
        }
    }
}
