//! From a request to its answer: which pages there are, and who may see them.
//!
//! `/metrics` and `/health` are for machines. The page and what it asks for (`/status.json`, `/history.json`, `/points.json`) are for
//! browsers, in which any web page may send a request to a name of its own that it lets point here (DNS rebinding): those are given
//! under an IP address, a loopback name, and the name that `metrics_listen` has, and no other. `/act.json` does something, for who shows the
//! token (I-METRICS-6).

use super::deeds::{self, Begun, Deed, DeedFace};
use super::face::{Face, HealthStatus, Points, Span};
use super::health;
use super::trail::Trail;
use crate::base::{Secret, Timestamp, clock, lock};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Mutex;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const PAGE: &str = include_str!("page.html");
const NO_SUCH_DATABASE: &str =
    "no such database is watched in this process; /status.json names those that are";
/// Stands in the page where each answer has a word of its own, by which the browser knows the page's script and style.
const NONCE: &str = "{{nonce}}";

/// What the server shows. Called on its thread; may take locks, should not wait for the network.
pub trait Pages: Send + Sync + 'static {
    /// The exposition, with gauges brought up to date.
    fn metrics(&self) -> String;
    /// What the page and the health page show.
    fn face(&self) -> Face;
    /// The points of a database's replica. Does not wait for the store.
    fn points(&self, database: &str) -> Points;
    /// What has to be shown by who wants more than to look; `None`: nobody may.
    fn token(&self) -> Option<Secret> {
        None
    }
    /// Begins a deed. Does not wait for it.
    fn act(&self, _database: &str, _deed: Deed) -> Begun {
        Begun::Unknown
    }
    /// The last deed for a database, if there was one.
    fn deed(&self, _database: &str) -> Option<DeedFace> {
        None
    }
}

/// What is known where the answers are made.
pub(super) struct Desk {
    pub(super) pages: std::sync::Arc<dyn Pages>,
    /// As it was when the server began.
    pub(super) token: Option<Secret>,
    /// The host in `metrics_listen`.
    pub(super) host: String,
    pub(super) trail: Mutex<Trail>,
}

/// An answer without its transport.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) media_type: &'static str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) text: String,
    /// Somebody looks at the page who did not before: samples are to be taken from now on.
    pub(super) begins_trail: bool,
}

impl Answer {
    fn new(status: StatusCode, media_type: &'static str, text: impl Into<String>) -> Answer {
        Answer { status, media_type, headers: Vec::new(), text: text.into(), begins_trail: false }
    }

    fn json(value: &Value) -> Answer {
        Answer::new(StatusCode::OK, JSON, format!("{value}\n"))
    }

    fn wrong(status: StatusCode, why: &str) -> Answer {
        Answer::new(status, JSON, format!("{}\n", json!({ "error": why })))
    }

    fn with(mut self, name: HeaderName, value: &str) -> Answer {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|v| (name, v)));
        self
    }
}

/// The answer to a request.
pub(super) fn answer(desk: &Desk, request: &Parts) -> Answer {
    let path = request.uri.path();
    let is_post = request.method == Method::POST && path == "/act.json";
    if !is_post && !matches!(request.method, Method::GET | Method::HEAD) {
        return Answer::new(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET and HEAD, and POST of /act.json\n",
        )
        .with(header::ALLOW, if path == "/act.json" { "GET, HEAD, POST" } else { "GET, HEAD" });
    }
    match path {
        "/metrics" => Answer::new(StatusCode::OK, super::CONTENT_TYPE, desk.pages.metrics()),
        "/health" => {
            let (health, line) = health::line(&desk.pages.face());
            let status = match health {
                HealthStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
                HealthStatus::Healthy | HealthStatus::Degraded => StatusCode::OK,
            };
            Answer::new(status, JSON, line)
        }
        "/" | "/status.json" | "/history.json" | "/points.json" | "/act.json"
            if !is_host_known(desk, request) =>
        {
            let text = "This page is given under an IP address, localhost, or the host that metrics_listen names, and no other name.\n";
            Answer::new(StatusCode::FORBIDDEN, TEXT, text)
        }
        "/" => page(),
        "/status.json" => status(desk),
        "/history.json" => match Query::of(request) {
            Ok(q) => Answer::json(&lock(&desk.trail).json(&q.database)),
            Err(why) => Answer::wrong(StatusCode::BAD_REQUEST, &why),
        },
        "/points.json" => match Query::of(request) {
            Ok(q) => points(desk, &q),
            Err(why) => Answer::wrong(StatusCode::BAD_REQUEST, &why),
        },
        "/act.json" if is_post => act(desk, request),
        "/act.json" => match Query::of(request) {
            Ok(q) => Answer::json(&desk.pages.deed(&q.database).map_or(Value::Null, |d| d.json())),
            Err(why) => Answer::wrong(StatusCode::BAD_REQUEST, &why),
        },
        _ => Answer::new(StatusCode::NOT_FOUND, TEXT, "there are /, /metrics and /health\n"),
    }
}

/// Does something, if the token is shown. Who may not is not told what there is.
fn act(desk: &Desk, request: &Parts) -> Answer {
    let Some(token) = &desk.token else {
        let why =
            "this page only looks: set metrics_token where the process is configured, and start it again";
        return Answer::wrong(StatusCode::FORBIDDEN, why);
    };
    match deeds::shown(request) {
        None => {
            let why = "show the token that metrics_token is set to: the header `Authorization: Bearer TOKEN`";
            return Answer::wrong(StatusCode::UNAUTHORIZED, why).with(header::WWW_AUTHENTICATE, "Bearer");
        }
        Some(said) if !token.is(said) => {
            let why = "the token is not the one that metrics_token is set to";
            return Answer::wrong(StatusCode::FORBIDDEN, why);
        }
        Some(_) => {}
    }
    let (database, deed) = match deeds::asked(request.uri.query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(why) => return Answer::wrong(StatusCode::BAD_REQUEST, &why),
    };
    let what = deed.as_str();
    match desk.pages.act(&database, deed) {
        Begun::Yes => Answer { status: StatusCode::ACCEPTED, ..Answer::json(&json!({ "do": what })) },
        Begun::Unknown => Answer::wrong(StatusCode::NOT_FOUND, NO_SUCH_DATABASE),
        Begun::Busy(why) => Answer::wrong(StatusCode::CONFLICT, &why),
        Begun::Refused(why) => Answer::wrong(StatusCode::BAD_REQUEST, &why),
    }
}

fn page() -> Answer {
    let nonce = format!("{:016x}{:016x}", clock::random_u64(), clock::random_u64());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    Answer::new(StatusCode::OK, HTML, PAGE.replace(NONCE, &nonce))
        .with(header::CONTENT_SECURITY_POLICY, &policy)
        .with(header::REFERRER_POLICY, "no-referrer")
        .with(HeaderName::from_static("cross-origin-resource-policy"), "same-origin")
}

fn status(desk: &Desk) -> Answer {
    let face = desk.pages.face();
    let uptime = clock::uptime();
    let mut trail = lock(&desk.trail);
    let begins_trail = trail.look(uptime, face.now);
    trail.note(&face, uptime);
    let mut said = face.json(|database| trail.since(database));
    said["acts"] = json!(desk.token.is_some());
    let mut answer = Answer::json(&said);
    answer.begins_trail = begins_trail;
    answer
}

fn points(desk: &Desk, q: &Query) -> Answer {
    match desk.pages.points(&q.database) {
        Points::Unknown => Answer::wrong(StatusCode::NOT_FOUND, NO_SUCH_DATABASE),
        Points::Asking => Answer::json(&json!({ "asking": true })),
        Points::Failed(why) => Answer::json(&json!({ "asking": false, "error": why })),
        Points::Known(held) => Answer::json(&held.json(q.span)),
    }
}

/// `?database=…&from=…&to=…&before=…`, times in milliseconds since 1970.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    database: String,
    span: Span,
}

impl Query {
    fn of(request: &Parts) -> Result<Query, String> {
        Query::parse(request.uri.query().unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Query, String> {
        let mut q = Query::default();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            let time = || {
                let ms = value.parse().map(Timestamp);
                ms.map(Some).map_err(|_| {
                    format!(
                        "{name} is not a time; give whole milliseconds since 1970, as in {name}=1800000000000"
                    )
                })
            };
            match name.as_ref() {
                "database" => q.database = value.to_string(),
                "from" => q.span.from = time()?,
                "to" => q.span.to = time()?,
                "before" => q.span.before = time()?,
                _ => {
                    return Err(
                        "there are the parameters database, from, to and before, and no others".to_string()
                    );
                }
            }
        }
        match q.database.is_empty() {
            true => Err("name a database: ?database=, as /status.json spells it".to_string()),
            false => Ok(q),
        }
    }
}

/// Whether a browser may have been led here by none but its user.
fn is_host_known(desk: &Desk, request: &Parts) -> bool {
    let said = request.headers.get(header::HOST).and_then(|h| h.to_str().ok()).or(request.uri.host());
    said.is_some_and(|host| is_ours(host, &desk.host))
}

/// Whether a Host header names an IP address, the loopback, or the host that is listened at.
fn is_ours(said: &str, listened: &str) -> bool {
    let host = host_of(said);
    let is_same = |other: &str| !other.is_empty() && host.eq_ignore_ascii_case(other);
    let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_ip || is_same("localhost") || is_same("ip6-localhost") || is_same(host_of(listened))
}

/// `host` of `host:port`.
fn host_of(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_lead_here_by_themselves_are_answered() {
        for (host, listened, ours) in [
            ("127.0.0.1:9090", "127.0.0.1:9090", true),
            ("localhost:9090", "127.0.0.1:9090", true),
            ("LOCALHOST", "127.0.0.1:9090", true),
            ("[::1]:9090", "[::1]:9090", true),
            ("[::1]", "127.0.0.1:9090", true),
            ("192.168.1.7:80", "0.0.0.0:9090", true),
            ("backup.internal:9090", "backup.internal:9090", true),
            ("Backup.Internal", "backup.internal:9090", true),
            ("evil.example:9090", "127.0.0.1:9090", false),
            ("127.0.0.1.evil.example", "127.0.0.1:9090", false),
            ("localhost.evil.example", "127.0.0.1:9090", false),
            ("backup.internal.evil.example", "backup.internal:9090", false),
            ("evil.example:9090", "0.0.0.0:9090", false),
            ("", "", false),
            (":9090", ":9090", true),
            ("user@127.0.0.1", "127.0.0.1:9090", false),
        ] {
            assert_eq!(is_ours(host, listened), ours, "{host} at {listened}");
        }
    }

    #[test]
    fn parameters_are_read_strictly() {
        let q = Query::parse("database=%2Fdata%2Fa+b%26c.db&before=1800000000000&from=-5").unwrap();
        assert_eq!(q.database, "/data/a b&c.db");
        assert_eq!(
            q.span,
            Span { from: Some(Timestamp(-5)), to: None, before: Some(Timestamp(1_800_000_000_000)) }
        );
        for (text, said) in [
            ("", "name a database"),
            ("database=", "name a database"),
            ("database=a&from=yesterday", "from is not a time"),
            ("database=a&to=1.5", "to is not a time"),
            ("database=a&secret=1", "no others"),
        ] {
            let e = Query::parse(text).unwrap_err();
            assert!(e.contains(said), "{text}: {e}");
        }
    }

    #[test]
    fn the_page_asks_nobody_else_and_every_answer_of_it_has_a_word_of_its_own() {
        let (a, b) = (page(), page());
        assert_ne!(a.text, b.text);
        assert!(!a.text.contains(NONCE) && a.text.len() < 100_000);
        for outside in ["http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            let found = a.text.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "the page has {outside}");
        }
        let policy = a.headers.iter().find(|(n, _)| n == header::CONTENT_SECURITY_POLICY).unwrap();
        assert!(policy.1.to_str().unwrap().starts_with("default-src 'none'; script-src 'nonce-"));
    }
}
