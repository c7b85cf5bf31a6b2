//! Real HTTP servers on real sockets.

#![allow(clippy::disallowed_methods)]

use super::event::LONGEST_MESSAGE;
use super::hub::{Hub, Policy};
use super::post::Tries;
use super::queue::Pace;
use super::*;
use crate::base::{EventKind, Secret, Severity, clock};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

const QUICK: Policy = Policy {
    tries: Tries {
        timeout: Duration::from_millis(1500),
        most: 4,
        base: Duration::from_millis(20),
        longest: Duration::from_millis(200),
    },
    pace: Pace { burst: 3, window: Duration::from_secs(60) },
    idle: Duration::from_secs(20),
};

const LONG: Duration = Duration::from_secs(20);

struct Request {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn count(&self) -> u64 {
        self.json()["context"]["count"].as_u64().unwrap()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim_end().split_once(':') {
            Some((n, v)) => headers.push((n.to_string(), v.trim().to_string())),
            None => break,
        }
    }
    let mut request = Request { line: line.trim_end().to_string(), headers, body: Vec::new() };
    let length: usize = request.header("content-length")?.parse().ok()?;
    request.body.resize(length, 0);
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// A server that answers the n-th request with what `answer` says (status line and headers), and tells of
/// each request. An empty answer closes the connection without one.
fn server(answer: impl Fn(usize) -> String + Send + 'static) -> (String, mpsc::Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook/capability", listener.local_addr().unwrap());
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let Some(request) = read_request(&stream) else { continue };
            let head = answer(n);
            if tx.send(request).is_err() {
                return;
            }
            if !head.is_empty() {
                let _ = write!(stream, "HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        }
    });
    (url, rx)
}

fn ok(_: usize) -> String {
    "200 OK".into()
}

/// A listener that takes connections (in the kernel's backlog) and never says a word.
fn black_hole() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}/x", listener.local_addr().unwrap()), listener)
}

fn hook(url: &str) -> Webhook {
    Webhook { url: url.into(), secret: None, events: Vec::new() }
}

fn notifier(hooks: Vec<Webhook>) -> Notifier {
    Notifier::with_hub(hooks, &Hub::new(QUICK))
}

fn event(message: &str) -> Event {
    Event::new(EventKind::UploadError, "app", message)
}

#[test]
fn the_payload_is_the_contract_and_openssl_agrees_with_the_signature() {
    let (url, got) = server(ok);
    let secret = "k\u{e9}y with spaces";
    let n = notifier(vec![Webhook { secret: Some(Secret::new(secret)), ..hook(&url) }]);
    let e = Event::new(EventKind::CorruptionDetected, "app", "file 3 is \"bad\" – ünïcode\n")
        .with("key", "0000/x.ltx")
        .with("bytes", 4096);
    n.send(&e);
    let r = got.recv_timeout(LONG).unwrap();
    assert_eq!(r.line, "POST /hook/capability HTTP/1.1");
    assert_eq!(r.header("content-type"), Some("application/json"));
    assert!(r.header("user-agent").unwrap().starts_with("walrust/"));
    let json = r.json();
    let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["context", "database", "event", "message", "severity", "timestamp"]);
    assert_eq!(json["event"], "corruption_detected");
    assert_eq!(json["severity"], "critical");
    assert_eq!(json["database"], "app");
    assert_eq!(json["message"], "file 3 is \"bad\" – ünïcode\n");
    assert_eq!(json["timestamp"], e.at.rfc3339());
    assert_eq!(json["context"], serde_json::json!({"key": "0000/x.ltx", "bytes": 4096, "count": 1}));

    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the openssl command checks our signature");
    openssl.stdin.take().unwrap().write_all(&r.body).unwrap();
    let out = String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap();
    let independent = out.trim().rsplit(' ').next().unwrap();
    assert_eq!(independent.len(), 64, "{out}");
    assert_eq!(r.header("x-walrust-signature"), Some(format!("sha256={independent}").as_str()));
}

#[test]
fn without_a_secret_nothing_is_signed_and_the_filter_holds() {
    let (url, got) = server(ok);
    let n = notifier(vec![Webhook { events: vec![EventKind::Fenced], ..hook(&url) }]);
    for kind in EventKind::ALL {
        n.send(&Event::new(kind, "app", "m"));
    }
    assert_eq!(n.flush(LONG), 0);
    let r = got.recv_timeout(LONG).unwrap();
    assert_eq!(r.json()["event"], "fenced");
    assert_eq!(r.header("x-walrust-signature"), None);
    assert!(got.try_recv().is_err(), "only the event that was asked for");
}

#[test]
fn every_event_has_the_severity_of_the_contract() {
    for (kind, severity) in [
        (EventKind::SnapshotComplete, Severity::Info),
        (EventKind::UploadError, Severity::Warning),
        (EventKind::AuthFailure, Severity::Critical),
        (EventKind::CorruptionDetected, Severity::Critical),
        (EventKind::CircuitBreakerOpen, Severity::Critical),
        (EventKind::HistoryGap, Severity::Critical),
        (EventKind::Fenced, Severity::Critical),
        (EventKind::CircuitBreakerClosed, Severity::Info),
        (EventKind::Recovered, Severity::Info),
    ] {
        assert_eq!(kind.severity(), severity);
    }
}

#[test]
fn trouble_that_may_pass_is_tried_again_with_the_same_delivery_id() {
    let answers = ["503 Busy", "", "429 Slow\r\nRetry-After: 1", "204 Fine"];
    let (url, got) = server(move |n| answers[n.min(3)].to_string());
    let n = notifier(vec![hook(&url)]);
    n.send(&event("m"));
    assert_eq!(n.flush(LONG), 0);
    let requests: Vec<Request> = got.try_iter().collect();
    assert_eq!(requests.len(), 4);
    let id = requests[0].header("x-walrust-delivery").unwrap();
    assert!(requests.iter().all(|r| r.header("x-walrust-delivery") == Some(id)));
    assert!(requests.iter().all(|r| r.body == requests[0].body), "what was signed is what is sent again");
}

#[test]
fn a_refusal_is_not_tried_again_and_a_dead_endpoint_is_given_up() {
    let (gone, got_gone) = server(|_| "410 Gone".into());
    let (down, got_down) = server(|_| "500 Down".into());
    let n = notifier(vec![hook(&gone), hook(&down)]);
    n.send(&event("m"));
    assert_eq!(n.flush(LONG), 0);
    assert_eq!(got_gone.try_iter().count(), 1);
    assert_eq!(got_down.try_iter().count(), 4, "Tries::most");
    n.send(&event("later"));
    assert_eq!(n.flush(LONG), 0);
    assert_eq!(got_gone.try_iter().count(), 1, "the next event is tried afresh");
}

#[test]
fn a_redirect_is_not_followed() {
    let (target, at_target) = server(ok);
    let (url, got) = server(move |_| format!("307 Moved\r\nLocation: {target}"));
    let n = notifier(vec![Webhook { secret: Some(Secret::new("s")), ..hook(&url) }]);
    n.send(&event("m"));
    assert_eq!(n.flush(LONG), 0);
    assert_eq!(got.try_iter().count(), 1);
    let answers = n.test();
    assert_eq!(answers[0].outcome, Ok(307));
    assert!(!answers[0].is_good() && answers[0].to_string().contains("redirects are not followed"));
    assert!(at_target.try_recv().is_err());
}

#[test]
fn a_slow_endpoint_delays_neither_sender_nor_others() {
    let (slow, _listener) = black_hole();
    let (fast, got) = server(ok);
    let n = notifier(vec![hook(&slow), hook(&fast)]);
    let start = clock::uptime();
    for i in 0..1000 {
        n.send(&Event::new(EventKind::ALL[i % 8], format!("db{i}"), "m"));
    }
    let queued = clock::uptime() - start;
    got.recv_timeout(LONG).unwrap();
    let first = clock::uptime() - start;
    // Both far below the 1.5 s that one request to the slow endpoint takes.
    assert!(queued < Duration::from_millis(500), "send took {queued:?}");
    assert!(first < Duration::from_millis(1200), "the fast endpoint waited {first:?}");
    let mut told = 1;
    while told < 1000 {
        told += got.recv_timeout(LONG).unwrap().count();
        assert!(clock::uptime() - start < LONG);
    }
    assert_eq!(told, 1000);
    let left = n.flush(Duration::from_millis(50));
    assert!((1..=65).contains(&left), "the slow one still has {left}, bounded");
}

#[test]
fn a_flood_arrives_as_a_few_with_counts() {
    let (url, got) = server(ok);
    let n = notifier(vec![hook(&url)]);
    for i in 0..500 {
        n.send(&event(&format!("failure {i}")));
        if i % 100 == 0 {
            clock::sleep(Duration::from_millis(30));
        }
    }
    assert_eq!(n.flush(LONG), 0);
    let requests: Vec<Request> = got.try_iter().collect();
    assert!(requests.len() <= 5, "three at once, the rest folded: {}", requests.len());
    assert_eq!(requests.iter().map(Request::count).sum::<u64>(), 500);
    let last = requests.last().unwrap().json();
    assert!(last["message"].as_str().unwrap().starts_with("failure 499 ("), "{last}");
    assert!(last["context"]["first_timestamp"].is_string());
}

#[test]
fn a_test_asks_everybody_once_and_says_what_each_answered() {
    let (good, got) = server(ok);
    let (bad, _keep) = server(|_| "500 Down".into());
    let (slow, _listener) = black_hole();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/capability", listener.local_addr().unwrap())
    };
    let only_fenced =
        Webhook { events: vec![EventKind::Fenced], secret: Some(Secret::new("s")), ..hook(&good) };
    let n = notifier(vec![
        only_fenced,
        hook(&bad),
        hook(&slow),
        hook(&closed),
        hook("http://no.such.host.invalid/x"),
    ]);
    let start = clock::uptime();
    let answers = n.test();
    assert!(clock::uptime() - start < Duration::from_secs(4), "all at once");
    let said: Vec<String> = answers.iter().map(ToString::to_string).collect();
    assert_eq!(answers[0].outcome, Ok(200), "{said:?}");
    assert_eq!(answers[1].outcome, Ok(500), "one try: {said:?}");
    assert!(said[2].contains("no answer within 1500 ms"), "{said:?}");
    assert!(said[3].contains("refused"), "{said:?}");
    assert!(answers[4].outcome.is_err(), "{said:?}");
    assert_eq!(answers.iter().filter(|a| a.is_good()).count(), 1);
    assert!(!format!("{said:?} {answers:?}").contains("capability"), "only the host: {said:?}");
    let r = got.recv_timeout(LONG).unwrap();
    assert_eq!(r.json()["event"], "test");
    assert!(r.header("x-walrust-signature").is_some());
    assert!(Notifier::new(Vec::new()).test().is_empty());
}

#[test]
fn a_host_inside_an_async_runtime_may_call() {
    let (url, got) = server(ok);
    let n = notifier(vec![hook(&url)]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        n.send(&event("m"));
        assert_eq!(n.flush(LONG), 0);
        assert!(n.test()[0].is_good());
    });
    assert_eq!(got.try_iter().count(), 2);
}

#[test]
fn the_thread_ends_when_idle_and_starts_again() {
    let (url, got) = server(ok);
    let hub = Hub::new(Policy { idle: Duration::from_millis(50), ..QUICK });
    let n = Notifier::with_hub(vec![hook(&url)], &hub);
    for _ in 0..3 {
        n.send(&event("m"));
        got.recv_timeout(LONG).unwrap();
        let start = clock::uptime();
        // The hub is held by the notifier, this test, and the thread while it runs.
        while Arc::strong_count(&hub) > 2 {
            assert!(clock::uptime() - start < LONG, "the thread stays");
            clock::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_certificate_nobody_vouches_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut c = Command::new("openssl");
        c.args(args).current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        c
    };
    let made = run(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "k.pem",
        "-out",
        "c.pem",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]);
    assert!({ made }.status().expect("the openssl command makes a certificate").success());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server =
        run(&["s_server", "-accept", &port.to_string(), "-cert", "c.pem", "-key", "k.pem", "-quiet"])
            .spawn()
            .unwrap();
    let start = clock::uptime();
    while TcpStream::connect(("127.0.0.1", port)).is_err() && clock::uptime() - start < LONG {
        clock::sleep(Duration::from_millis(20));
    }
    let answers = notifier(vec![hook(&format!("https://localhost:{port}/capability"))]).test();
    server.kill().unwrap();
    server.wait().unwrap();
    let said = answers[0].to_string();
    assert!(answers[0].outcome.is_err() && said.to_lowercase().contains("certificate"), "{said}");
    assert!(!said.contains("capability"), "{said}");
}

#[test]
fn messages_are_cut_not_refused() {
    let e = event(&"é".repeat(100_000));
    assert_eq!(e.message.chars().count(), LONGEST_MESSAGE + 1);
    assert!(e.message.ends_with('…'));
}
