//! What an endpoint says to a test.

use super::post;
use std::fmt;
use std::time::Duration;

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

impl Answer {
    /// For programs: `status` is null where there was no answer, and `error` says why.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "webhook": self.endpoint,
            "ok": self.is_good(),
            "status": self.outcome.as_ref().ok(),
            "error": self.outcome.as_ref().err(),
            "milliseconds": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        })
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
