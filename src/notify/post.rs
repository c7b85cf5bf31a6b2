//! One request, and what its answer means.

use super::payload;
use crate::base::{Webhook, backoff, certificates, clock};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use std::sync::OnceLock;
use std::time::Duration;

/// What is said of a 3xx answer.
pub(super) const REDIRECT: &str = "redirects are not followed: give the final URL";

/// How long, and how often, an endpoint is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    /// Of one request, from name lookup to the answer's header.
    pub timeout: Duration,
    /// Requests per event.
    pub most: u32,
    /// Pause after the first failure; it doubles.
    pub base: Duration,
    /// Longest pause, also if the endpoint asks for a longer one by Retry-After.
    pub longest: Duration,
}

/// What came of one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// 2xx.
    Delivered(u16),
    /// An answer that will not change: other 4xx, 3xx.
    Refused(u16),
    /// 408, 425, 429, 5xx: later, perhaps after a pause it asked for.
    Later(u16, Option<Duration>),
    /// No answer.
    Nothing(String),
}

/// HTTP clients, made when first needed: loading the system's CA certificates takes time and memory that
/// a plain `http://` endpoint need not pay, nor fail for where there are none.
#[derive(Default)]
pub(super) struct Clients {
    plain: OnceLock<Result<reqwest::Client, String>>,
    tls: OnceLock<Result<reqwest::Client, String>>,
}

impl Clients {
    fn of(&self, url: &str) -> Result<&reqwest::Client, String> {
        let is_tls = url.get(..6).is_some_and(|s| s.eq_ignore_ascii_case("https:"));
        let made = match is_tls {
            true => self.tls.get_or_init(|| build(with_certificates(builder()))),
            false => self.plain.get_or_init(|| build(builder().tls_certs_only([]))),
        };
        made.as_ref().map_err(Clone::clone)
    }
}

fn builder() -> reqwest::ClientBuilder {
    certificates::install_provider();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("walrust/", env!("CARGO_PKG_VERSION")))
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(15))
}

fn with_certificates(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    let Some(all) = certificates::hidden_by_an_empty_variable() else { return builder };
    let all = all.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
    builder.tls_certs_only(all.collect::<Vec<_>>())
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    builder.build().map_err(|e| format!("no HTTP client: {}", chain(&e)))
}

/// The error and its causes on one line. The caller has taken the URL out.
fn chain(e: &dyn std::error::Error) -> String {
    let (mut text, mut at) = (e.to_string(), e.source());
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        at = cause.source();
    }
    text.replace(['\n', '\r'], " ")
}

/// Posts `body` once. `delivery` is the same for each try of one event, so that a receiver can tell a
/// repeat (an answer that was lost) from a second event.
pub(super) async fn once(
    clients: &Clients,
    hook: &Webhook,
    body: Vec<u8>,
    delivery: u64,
    timeout: Duration,
) -> Outcome {
    let client = match clients.of(&hook.url) {
        Ok(client) => client,
        Err(why) => return Outcome::Nothing(why),
    };
    let mut request = client
        .post(&hook.url)
        .timeout(timeout)
        .header(CONTENT_TYPE, "application/json")
        .header("X-Walrust-Delivery", format!("{delivery:016x}"));
    if let Some(tag) = hook.secret.as_ref().and_then(|s| payload::signature(s, &body)) {
        request = request.header("X-Walrust-Signature", tag);
    }
    outcome(request.body(body).send().await, timeout)
}

/// Asks an endpoint with GET, once. What it answers is not read.
pub(super) async fn ask(clients: &Clients, hook: &Webhook, timeout: Duration) -> Outcome {
    match clients.of(&hook.url) {
        Ok(client) => outcome(client.get(&hook.url).timeout(timeout).send().await, timeout),
        Err(why) => Outcome::Nothing(why),
    }
}

fn outcome(answer: Result<reqwest::Response, reqwest::Error>, timeout: Duration) -> Outcome {
    match answer {
        Ok(answer) => {
            let status = answer.status().as_u16();
            match status {
                200..=299 => Outcome::Delivered(status),
                408 | 425 | 429 | 500.. => Outcome::Later(status, pause_asked_for(answer.headers())),
                _ => Outcome::Refused(status),
            }
        }
        Err(e) if e.is_timeout() => Outcome::Nothing(format!("no answer within {} ms", timeout.as_millis())),
        Err(e) => Outcome::Nothing(chain(&e.without_url())),
    }
}

/// Retry-After in seconds; its date form is rare and not worth trusting another machine's clock.
fn pause_asked_for(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Posts `body` until the endpoint takes it, refuses it, or the tries are used up. Errors with the reason.
pub(super) async fn deliver(
    clients: &Clients,
    hook: &Webhook,
    body: &[u8],
    tries: Tries,
) -> Result<u16, String> {
    let delivery = clock::random_u64();
    for attempt in 1.. {
        let (why, asked) = match once(clients, hook, body.to_vec(), delivery, tries.timeout).await {
            Outcome::Delivered(status) => return Ok(status),
            Outcome::Refused(status @ 300..=399) => return Err(format!("answered {status}; {REDIRECT}")),
            Outcome::Refused(status) => return Err(format!("answered {status}")),
            Outcome::Later(status, asked) => (format!("answered {status}"), asked),
            Outcome::Nothing(why) => (why, None),
        };
        if attempt >= tries.most {
            return Err(format!("{why} ({attempt} tries)"));
        }
        let half = backoff::bound(attempt - 1, tries.base, tries.longest) / 2;
        let pause = half + backoff::within(half, clock::random_u64());
        tokio::time::sleep(asked.unwrap_or(pause).min(tries.longest)).await;
    }
    Err("not tried".into())
}
