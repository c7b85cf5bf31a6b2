//! The body of a request and its signature.

use super::queue::Pending;
use crate::base::{Secret, Severity, Timestamp, clock};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

/// `{"event","database","timestamp","severity","message","context"}`.
pub(super) fn body(pending: &Pending) -> Vec<u8> {
    let event = &pending.event;
    let mut context = event.context.clone();
    context.insert("count".into(), pending.count.into());
    let mut message = event.message.clone();
    if pending.count > 1 {
        context.insert("first_timestamp".into(), pending.first.rfc3339().into());
        message = format!("{message} ({} times since {})", pending.count, pending.first.rfc3339());
    }
    if !pending.databases.is_empty() {
        context.insert("databases".into(), pending.databases.iter().cloned().collect());
    }
    encode(event.kind.as_str(), &event.database, event.at, event.kind.severity(), &message, context)
}

/// The body of a test event: `event` is `test`, which no filter can name.
pub(super) fn test_body() -> Vec<u8> {
    let message = "walrust_notify_test: this endpoint is reached";
    let version = json!(env!("CARGO_PKG_VERSION"));
    let context = Map::from_iter([("count".to_string(), json!(1)), ("version".to_string(), version)]);
    encode("test", "", clock::now(), Severity::Info, message, context)
}

fn encode(
    event: &str,
    database: &str,
    at: Timestamp,
    severity: Severity,
    message: &str,
    context: Map<String, Value>,
) -> Vec<u8> {
    let body = json!({
        "event": event,
        "database": database,
        "timestamp": at.rfc3339(),
        "severity": severity.as_str(),
        "message": message,
        "context": context,
    });
    body.to_string().into_bytes()
}

/// `sha256=` and the hex HMAC-SHA256 of `body` (RFC 2104); `None` never happens, as HMAC takes keys of any length.
pub(super) fn signature(secret: &Secret, body: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).ok()?;
    mac.update(body);
    let tag = mac.finalize().into_bytes();
    Some(tag.iter().fold(String::from("sha256="), |hex, b| hex + &format!("{b:02x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        // Test cases 1, 2 and 6 of https://www.rfc-editor.org/rfc/rfc4231 (6: a key longer than a block).
        let long = "\u{7f}".repeat(131);
        let sign = |key: &str, data: &[u8]| signature(&Secret::new(key), data).unwrap();
        assert_eq!(
            sign("\u{b}".repeat(20).as_str(), b"Hi There"),
            "sha256=b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            sign("Jefe", b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(sign(&long, b"x").len(), 7 + 64);
    }
}
