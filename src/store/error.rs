//! From what a store answered to what the caller can do next: by type and status, never by text.
//! (The S3 error code in the body is a field of the protocol; texts are only shown.)

use super::http::{NoAnswer, Seen};
use super::text::{one_line, root_cause};
use crate::base::{Error, Kind};
use object_store::client::HttpError;
use std::time::Duration;

/// Where a store is, for error texts. No secret.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// `bucket b` or `container c`.
    pub(super) bucket: String,
    /// `http://127.0.0.1:9000`, `Google Cloud Storage`, …
    pub(super) endpoint: String,
}

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Put,
    Get,
    Head,
    List,
    Delete,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verb::Put => "put",
            Verb::Get => "get",
            Verb::Head => "look up",
            Verb::List => "list",
            Verb::Delete => "delete",
        }
    }
}

/// The error of ours for a failed operation.
pub(super) fn classify(verb: Verb, key: &str, e: &object_store::Error, seen: &Seen, place: &Place) -> Error {
    let (kind, why) = judge(verb, e, seen, place);
    let key = if key.is_empty() { "/" } else { key };
    Error::new(kind, format!("cannot {} {key}: {why}", verb.as_str())).with_retry_after(seen.retry_after)
}

fn judge(verb: Verb, e: &object_store::Error, seen: &Seen, place: &Place) -> (Kind, String) {
    use object_store::Error as E;
    if let Some(what) = &seen.foreign {
        return (Kind::Retry, no_store(what, place));
    }
    if is_credential_host(&seen.host) && seen.status.is_none_or(|s| s >= 300) {
        return credentials(seen);
    }
    match e {
        E::NotImplemented { .. } | E::NotSupported { .. } => (Kind::Config, one_line(&e.to_string())),
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => (Kind::Config, one_line(&e.to_string())),
        E::JoinError { .. } => (Kind::Bug, one_line(&e.to_string())),
        // Stores without HTTP (memory) and errors that object_store makes without a status.
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. }
            if seen.code != "NoSuchBucket" =>
        {
            (Kind::Exists, answer(seen, "something else is in its place"))
        }
        E::NotFound { .. } if seen.status.is_none() => (Kind::Missing, "not found".into()),
        _ => match seen.status {
            Some(status) if status >= 300 => by_status(verb, status, seen, place),
            _ => without_status(e, seen, place),
        },
    }
}

/// It may pass: a maintenance page does.
pub(super) fn no_store(what: &str, place: &Place) -> String {
    format!(
        "{} answered with {what}, which is no answer of a store: check the endpoint, and what stands before it",
        place.endpoint
    )
}

fn by_status(verb: Verb, status: u16, seen: &Seen, place: &Place) -> (Kind, String) {
    let Place { bucket, endpoint } = place;
    let code = seen.code.as_str();
    let no_bucket = matches!(code, "NoSuchBucket" | "ContainerNotFound");
    match status {
        // (It is begun anew.)
        404 if code == "NoSuchUpload" => (Kind::Retry, "the store has given the upload up".into()),
        404 if no_bucket || matches!(verb, Verb::Put | Verb::List) => {
            (Kind::Config, format!("{bucket} does not exist at {endpoint}; create it or correct the URL"))
        }
        404 => (Kind::Missing, format!("not found in {bucket}")),
        401 | 403 => (Kind::Denied, answer(seen, &format!("{endpoint} denies access to {bucket}"))),
        400 if matches!(code, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            (Kind::Denied, answer(seen, "the session token is not accepted"))
        }
        400 if matches!(
            code,
            "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch"
        ) =>
        {
            (Kind::Retry, answer(seen, "the upload arrived damaged"))
        }
        301 | 302 | 307 | 308 | 400 if seen.region.is_some() || status < 400 => {
            let region = seen.region.as_deref().unwrap_or("another region");
            (Kind::Config, format!("{bucket} is in {region}; set region= in the replica URL or AWS_REGION"))
        }
        409 | 412 => (Kind::Exists, answer(seen, "something else is in its place")),
        416 => (Kind::Corrupt, "the object ends before the requested range".into()),
        501 => (Kind::Config, answer(seen, &format!("{endpoint} does not implement this request"))),
        408 | 425 | 429 | 500.. => (Kind::Retry, answer(seen, &format!("{endpoint} is in trouble"))),
        _ => (Kind::Config, answer(seen, &format!("{endpoint} refuses the request"))),
    }
}

fn without_status(e: &object_store::Error, seen: &Seen, place: &Place) -> (Kind, String) {
    if let Some((_, why)) = &seen.transport {
        return (Kind::Retry, format!("cannot reach {}: {why}", place.endpoint));
    }
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(cause) = at {
        if let Some(ours) = cause.downcast_ref::<Error>() {
            return (ours.kind(), one_line(&ours.to_string()));
        }
        if cause.is::<HttpError>() || cause.is::<NoAnswer>() {
            return (
                Kind::Retry,
                format!("the answer of {} broke off: {}", place.endpoint, root_cause(cause)),
            );
        }
        at = cause.source();
    }
    match seen.status {
        Some(_) => {
            (Kind::Retry, format!("cannot understand the answer of {}: {}", place.endpoint, root_cause(e)))
        }
        None => (Kind::Config, root_cause(e)),
    }
}

fn credentials(seen: &Seen) -> (Kind, String) {
    let hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (S3), GOOGLE_APPLICATION_CREDENTIALS (gs) or AZURE_STORAGE_ACCOUNT_KEY (az)";
    match (&seen.transport, seen.status) {
        // Nobody answers at the metadata address: this is no cloud machine, and none were given.
        (Some(_), _) if is_metadata(&seen.host) => (
            Kind::Denied,
            format!(
                "no credentials: none in the environment, and no instance metadata at {}; {hint}",
                seen.host
            ),
        ),
        (Some((_, why)), _) => (Kind::Retry, format!("cannot reach {} for credentials: {why}", seen.host)),
        (None, Some(429 | 500..)) => {
            (Kind::Retry, answer(seen, &format!("no credentials from {}", seen.host)))
        }
        _ => (Kind::Denied, answer(seen, &format!("no credentials from {}; {hint}", seen.host))),
    }
}

fn is_metadata(host: &str) -> bool {
    host.starts_with("169.254.") || host == "metadata.google.internal"
}

fn is_credential_host(host: &str) -> bool {
    is_metadata(host)
        || matches!(
            host,
            "oauth2.googleapis.com" | "iamcredentials.googleapis.com" | "login.microsoftonline.com"
        )
        || (host.starts_with("sts.") && host.ends_with(".amazonaws.com"))
}

fn answer(seen: &Seen, what: &str) -> String {
    let Some(status) = seen.status.filter(|s| *s >= 300) else { return what.to_string() };
    let mut text = format!("{what} (HTTP {status}");
    for part in [&seen.code, &seen.message] {
        if !part.is_empty() {
            text.push_str(if part == &seen.code { " " } else { ": " });
            text.push_str(part);
        }
    }
    text.push(')');
    // (A hint for people; the kind does not depend on it.)
    if seen.message.to_ascii_lowercase().contains("x-amz-checksum") {
        text.push_str("; checksum=none in the replica URL leaves that header out");
    }
    text
}

/// What a refusal says about the keys that the request was signed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Nothing was refused, or not because of the keys.
    None,
    /// The keys are not valid (any more).
    OfKeys,
    /// Access is denied. It may be the keys (a role's sessions were revoked; an answer to HEAD names no cause), or a
    /// policy.
    OfAccess,
}

impl Refusal {
    /// How long the last new keys are kept in spite of it; `None`: new ones would not help.
    pub(super) fn patience(self) -> Option<Duration> {
        match self {
            Refusal::None => None,
            Refusal::OfKeys => Some(Duration::from_secs(5)),
            Refusal::OfAccess => Some(Duration::from_secs(60)),
        }
    }
}

/// Pure: from the status and the code, which is a field of the protocol.
pub(super) fn refusal(seen: &Seen) -> Refusal {
    const OF_KEYS: [&str; 11] = [
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "TokenRefreshRequired",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
        "AuthenticationFailed",
        "InvalidAuthenticationInfo",
    ];
    match seen.status {
        _ if seen.transport.is_some() => Refusal::None,
        Some(401) => Refusal::OfKeys,
        Some(400 | 403) if OF_KEYS.contains(&seen.code.as_str()) => Refusal::OfKeys,
        Some(403) if matches!(seen.code.as_str(), "RequestTimeTooSkewed" | "AccountProblem") => Refusal::None,
        Some(403) => Refusal::OfAccess,
        _ => Refusal::None,
    }
}

/// Whether a failed put may have been carried out all the same.
pub(super) fn may_have_happened(seen: &Seen) -> bool {
    use object_store::client::HttpErrorKind::Connect;
    match (&seen.transport, seen.status) {
        (Some((kind, _)), _) => *kind != Connect,
        (None, Some(408 | 500 | 502 | 504)) => true,
        (None, Some(status)) => status < 300,
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(verb: Verb, status: u16, code: &str) -> Kind {
        let seen = Seen { status: Some(status), code: code.into(), ..Seen::default() };
        let e = object_store::Error::Generic { store: "S3", source: "x".into() };
        let e = classify(verb, "0000/0000000000000401-0000000000000403.ltx", &e, &seen, &Place::default());
        assert!(!e.to_string().contains('\n'));
        e.kind()
    }

    #[test]
    fn every_status_has_its_kind() {
        for (status, expected) in [
            (301, Kind::Config),
            (400, Kind::Config),
            (401, Kind::Denied),
            (403, Kind::Denied),
            (404, Kind::Missing),
            (408, Kind::Retry),
            (409, Kind::Exists),
            (411, Kind::Config),
            (412, Kind::Exists),
            (416, Kind::Corrupt),
            (429, Kind::Retry),
            (500, Kind::Retry),
            (501, Kind::Config),
            (502, Kind::Retry),
            (503, Kind::Retry),
            (504, Kind::Retry),
        ] {
            assert_eq!(kind(Verb::Get, status, ""), expected, "{status}");
        }
        assert_eq!(kind(Verb::Get, 404, "NoSuchBucket"), Kind::Config);
        assert_eq!(kind(Verb::Put, 404, ""), Kind::Config);
        assert_eq!(kind(Verb::Put, 400, "RequestTimeout"), Kind::Retry);
        assert_eq!(kind(Verb::Get, 400, "ExpiredToken"), Kind::Denied);
    }

    #[test]
    fn keys_are_doubted_where_the_store_doubts_them() {
        for (status, code, expected) in [
            (400, "ExpiredToken", Refusal::OfKeys),
            (400, "InvalidArgument", Refusal::None),
            (401, "", Refusal::OfKeys),
            (403, "InvalidAccessKeyId", Refusal::OfKeys),
            (403, "SignatureDoesNotMatch", Refusal::OfKeys),
            (403, "AuthenticationFailed", Refusal::OfKeys),
            (403, "AccessDenied", Refusal::OfAccess),
            (403, "", Refusal::OfAccess),
            (403, "RequestTimeTooSkewed", Refusal::None),
            (404, "NoSuchKey", Refusal::None),
            (503, "SlowDown", Refusal::None),
        ] {
            let seen = Seen { status: Some(status), code: code.into(), ..Seen::default() };
            assert_eq!(refusal(&seen), expected, "{status} {code}");
        }
        assert_eq!(refusal(&Seen::default()), Refusal::None);
    }
}
