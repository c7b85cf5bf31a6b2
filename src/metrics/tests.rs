use super::*;
use crate::base::{Secret, TxId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

/// One sample: name, labels, value.
type Sample = (String, Vec<(String, String)>, f64);

/// Reads the exposition as the text format has it, and fails on what that or `promtool check metrics` would
/// not have.
fn lint(text: &str) -> Vec<Sample> {
    let mut types: BTreeMap<String, String> = BTreeMap::new();
    let mut helps = BTreeMap::new();
    let (mut samples, mut seen) = (Vec::new(), HashSet::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let (keyword, rest) = meta.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            let (name, value) = (name.to_string(), value.to_string());
            let before = match keyword {
                "HELP" => helps.insert(name, value),
                "TYPE" => types.insert(name, value),
                other => panic!("unknown {other}: {line}"),
            };
            assert_eq!(before, None, "said twice: {line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(seen.insert(series.to_string()), "two samples of {series}");
        let (name, labels) = match series.split_once('{') {
            Some((n, l)) => (n, labels(l)),
            None => (series, Vec::new()),
        };
        samples.push((name.to_string(), labels, value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"))));
    }
    for (name, kind) in &types {
        assert!(
            name.starts_with("walrust_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
        let help: &String = helps.get(name).unwrap_or_else(|| panic!("{name} has no HELP"));
        assert!(help.len() > 5 && help.ends_with('.') && !help.ends_with(".."), "{name}: {help}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(!["_count", "_sum", "_bucket"].iter().any(|s| name.ends_with(s)), "{name}");
        // Base units only, at the end of the name.
        for no in ["_ms", "_milliseconds", "_kb", "_mb", "_minutes", "_percent", "_timestamp"] {
            assert!(!name.trim_end_matches("_total").ends_with(no), "{name}");
        }
        assert!(["counter", "gauge", "histogram"].contains(&kind.as_str()), "{name}: {kind}");
        let first = samples.iter().find(|(s, _, _): &&Sample| s.starts_with(name.as_str()));
        assert!(first.is_some(), "{name} has no sample");
    }
    assert!(helps.keys().all(|n| types.contains_key(n)));
    for (sample, labels, value) in &samples {
        let family = types.iter().find(|(name, kind)| match kind.as_str() {
            "counter" | "gauge" => sample == *name,
            _ => ["_bucket", "_sum", "_count"].iter().any(|s| *sample == format!("{name}{s}")),
        });
        assert!(family.is_some(), "{sample} belongs to no family");
        let names: HashSet<&String> = labels.iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), labels.len(), "{sample}: a label twice");
        assert!(value.is_finite(), "{sample}");
    }
    samples
}

/// `a="b",c="d"}` with the escapes undone.
fn labels(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = text;
    while rest != "}" {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("labels {text}"));
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            let (i, c) = chars.next().unwrap();
            match c {
                '"' => break i,
                '\\' => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    other => panic!("escape \\{other}"),
                },
                '\n' => panic!("a raw newline in a label"),
                c => value.push(c),
            }
        };
        out.push((name.trim_start_matches(',').to_string(), value));
        rest = &after[end + 1..];
    }
    out
}

fn value(samples: &[Sample], name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
    let has = |l: &[(String, String)], (n, v): &(&str, &str)| l.iter().any(|(a, b)| a == n && b == v);
    samples.iter().find(|(n, l, _)| n == name && wanted.iter().all(|w| has(l, w))).map(|s| s.2)
}

#[test]
fn every_metric_is_there_well_named_and_says_what_was_set() {
    let m = Metrics::new();
    let d = m.database("/data/app.db");
    d.txid.set(12);
    d.replicated_txid.set(10);
    d.lag.set(1.5);
    d.pending.set(4096);
    d.spool.set(8192);
    d.wal.set(16384);
    d.database.set(1 << 40);
    d.commits.inc_by(12);
    d.vetoes.inc();
    d.checkpoints.inc();
    d.snapshots.inc();
    d.merges.inc();
    d.history_gaps.inc();
    d.upload_retries.inc();
    d.uploaded(1000, Duration::from_millis(30), Timestamp(1_700_000_000_500));
    d.uploaded(500, Duration::from_secs(3), Timestamp(1_700_000_001_500));
    d.upload_error(Kind::Denied);
    d.upload_error(Kind::Retry);
    d.upload_error(Kind::Retry);
    d.upload_error(Kind::Bug);
    d.validation_success();
    d.validation_failure();
    d.validation_failure();
    d.set_breaker(Breaker::Open);
    d.set_state("streaming");
    d.set_state("catching up");
    let samples = lint(&m.render());
    let db = ("database", "/data/app.db");
    for (name, labels, wanted) in [
        ("walrust_txid", &[db][..], 12.0),
        ("walrust_replicated_txid", &[db], 10.0),
        ("walrust_lag_seconds", &[db], 1.5),
        ("walrust_pending_bytes", &[db], 4096.0),
        ("walrust_spool_bytes", &[db], 8192.0),
        ("walrust_wal_bytes", &[db], 16384.0),
        ("walrust_database_bytes", &[db], (1u64 << 40) as f64),
        ("walrust_breaker_state", &[db], 2.0),
        ("walrust_commits_total", &[db], 12.0),
        ("walrust_uploads_total", &[db], 2.0),
        ("walrust_uploaded_bytes_total", &[db], 1500.0),
        ("walrust_upload_retries_total", &[db], 1.0),
        ("walrust_upload_errors_total", &[db, ("kind", "denied")], 1.0),
        ("walrust_upload_errors_total", &[db, ("kind", "transient")], 2.0),
        ("walrust_upload_errors_total", &[db, ("kind", "other")], 1.0),
        ("walrust_upload_errors_total", &[db, ("kind", "timeout")], 0.0),
        ("walrust_upload_seconds_count", &[db], 2.0),
        ("walrust_upload_seconds_sum", &[db], 3.03),
        ("walrust_upload_seconds_bucket", &[db, ("le", "0.04")], 1.0),
        ("walrust_upload_seconds_bucket", &[db, ("le", "+Inf")], 2.0),
        ("walrust_last_upload_timestamp_seconds", &[db], 1_700_000_001.5),
        ("walrust_snapshots_total", &[db], 1.0),
        ("walrust_merges_total", &[db], 1.0),
        ("walrust_wal_reset_vetoes_total", &[db], 1.0),
        ("walrust_checkpoints_total", &[db], 1.0),
        ("walrust_history_gaps_total", &[db], 1.0),
        ("walrust_validations_total", &[db, ("result", "success")], 1.0),
        ("walrust_validations_total", &[db, ("result", "failure")], 2.0),
        ("walrust_state", &[db, ("state", "catching up")], 1.0),
        ("walrust_state", &[db, ("state", "streaming")], 0.0),
        ("walrust_databases", &[], 1.0),
        ("walrust_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    ] {
        let got = value(&samples, name, labels).unwrap_or_else(|| panic!("no {name} {labels:?}"));
        assert!((got - wanted).abs() < 1e-9, "{name} {labels:?}: {got}, not {wanted}");
    }
    assert!(value(&samples, "walrust_uptime_seconds", &[]).unwrap() >= 0.0);
    let start = value(&samples, "walrust_start_timestamp_seconds", &[]).unwrap();
    assert!((start - clock::now().0 as f64 / 1000.0).abs() < 60.0);
}

#[test]
fn a_database_that_goes_takes_its_series_along_and_only_its() {
    let m = Metrics::new();
    lint(&m.render());
    let (a, b) = (m.database("a"), m.database("b"));
    a.commits.inc();
    m.database("a").commits.inc();
    b.commits.inc();
    let samples = lint(&m.render());
    assert_eq!(
        value(&samples, "walrust_commits_total", &[("database", "a")]),
        Some(2.0),
        "one handle, taken twice"
    );
    assert_eq!(value(&samples, "walrust_databases", &[]), Some(2.0));
    m.remove("a");
    a.commits.inc();
    let samples = lint(&m.render());
    assert!(!samples.iter().any(|(_, l, _)| l.contains(&("database".into(), "a".into()))));
    assert_eq!(value(&samples, "walrust_commits_total", &[("database", "b")]), Some(1.0));
    assert_eq!(value(&samples, "walrust_databases", &[]), Some(1.0));
    m.remove("b");
    m.remove("never there");
    assert_eq!(value(&lint(&m.render()), "walrust_databases", &[]), Some(0.0));
}

#[test]
fn threads_may_count_while_others_render() {
    let m = Metrics::new();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let d = m.database("x");
                for i in 0..20_000 {
                    d.commits.inc();
                    if i % 1000 == 0 {
                        lint(&m.render());
                    }
                }
            });
        }
    });
    assert_eq!(value(&lint(&m.render()), "walrust_commits_total", &[]), Some(80_000.0));
}

proptest! {
    #[test]
    fn any_name_is_a_label(name in "\\PC{0,40}|[\\\\\"\n{},= a]{0,12}") {
        let m = Metrics::new();
        m.database(&name).txid.set(3);
        let samples = lint(&m.render());
        prop_assert_eq!(value(&samples, "walrust_txid", &[("database", name.as_str())]), Some(3.0));
    }
}

#[test]
fn each_row_of_the_page_has_its_health_for_as_long_as_it_is_there() {
    let fixed = Fixed { status: HealthStatus::Unhealthy, ..Fixed::default() };
    fixed.metrics.show(&fixed.face());
    let samples = lint(&fixed.metrics.render());
    let app = "/data/\"app\".db";
    assert_eq!(value(&samples, "walrust_health", &[("database", app), ("kind", "source")]), Some(2.0));
    let copy = [("database", "/data/copy.db")];
    assert_eq!(value(&samples, "walrust_health", &[copy[0], ("kind", "copy")]), Some(0.0));
    assert_eq!(value(&samples, "walrust_copy_txid", &copy), Some(7.0));
    assert_eq!(value(&samples, "walrust_copy_lag_seconds", &copy), None, "it is not known");
    assert_eq!(value(&samples, "walrust_copy_txid", &[("database", app)]), None);
    fixed.metrics.show(&Face { databases: Vec::new(), ..fixed.face() });
    assert_eq!(
        value(&lint(&fixed.metrics.render()), "walrust_health", &[("database", app), ("kind", "source")]),
        None
    );
}

// ---- the server

struct Fixed {
    metrics: Metrics,
    status: HealthStatus,
    token: Option<&'static str>,
    done: Arc<Mutex<Vec<Deed>>>,
}

impl Default for Fixed {
    fn default() -> Fixed {
        Fixed { metrics: Metrics::new(), status: HealthStatus::Healthy, token: None, done: Arc::default() }
    }
}

impl Pages for Fixed {
    fn metrics(&self) -> String {
        self.metrics.render()
    }
    fn face(&self) -> Face {
        let app = DatabaseFace {
            database: "/data/\"app\".db".to_string(),
            kind: RowKind::Source,
            mirror_of: None,
            told_by: Teller::Own,
            replica: None,
            state: "streaming",
            explained: "",
            health: self.status,
            lag: Some(Duration::from_millis(250)),
            pending_bytes: 10,
            txid: TxId(7),
            replicated: TxId(6),
            database_bytes: 0,
            wal_bytes: 0,
            spool_bytes: 0,
            breaker: "closed",
            uploaded_bytes: Some(0),
            requests: None,
            last_upload: Some(Timestamp(0)),
            last_verified: None,
            verify_every: Duration::ZERO,
            last_error: None,
            seen: None,
        };
        let copy = DatabaseFace {
            database: "/data/copy.db".to_string(),
            kind: RowKind::Copy,
            mirror_of: None,
            health: HealthStatus::Healthy,
            lag: None,
            last_upload: None,
            ..app.clone()
        };
        let databases = vec![app, copy];
        Face { now: Timestamp(1_800_000_000_000), uptime: Duration::from_secs(2), databases }
    }
    fn token(&self) -> Option<Secret> {
        self.token.map(Secret::new)
    }
    fn act(&self, database: &str, deed: Deed) -> Begun {
        match database {
            "app" => {
                self.done.lock().unwrap().push(deed);
                Begun::Yes
            }
            "busy" => Begun::Busy("a drill of this database is under way".to_string()),
            "bad" => Begun::Refused("latest cannot name a label".to_string()),
            _ => Begun::Unknown,
        }
    }
    fn deed(&self, database: &str) -> Option<DeedFace> {
        let end = DeedEnd { at: Timestamp(2000), is_well: true, said: "well".to_string() };
        (database == "app").then_some(DeedFace { what: "drill", begun: Timestamp(1000), ended: Some(end) })
    }
    fn points(&self, database: &str) -> Points {
        let point = PointFace {
            txid: TxId(7),
            time: Timestamp(1000),
            level: 0,
            bytes: 9,
            pages: Some(1),
            labels: Vec::new(),
        };
        match database {
            "app" => Points::Known(Arc::new(ReplicaFace {
                asked: Timestamp(5000),
                points: vec![point],
                files: 1,
                bytes: 9,
            })),
            "slow" => Points::Asking,
            "bad" => Points::Failed("the store said no".to_string()),
            _ => Points::Unknown,
        }
    }
}

fn server(status: HealthStatus) -> Server {
    let metrics = Metrics::new();
    metrics.database("app").txid.set(7);
    serve("127.0.0.1:0", Arc::new(Fixed { metrics, status, ..Fixed::default() })).unwrap()
}

fn send(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(server: &Server, target: &str) -> (String, String) {
    let answer = send(server, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
    assert_eq!(length.parse::<usize>().unwrap(), body.len());
    (head.to_string(), body.to_string())
}

#[test]
fn both_pages_are_served() {
    let s = server(HealthStatus::Degraded);
    let (head, body) = get(&s, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains(CONTENT_TYPE), "{head}");
    assert_eq!(value(&lint(&body), "walrust_txid", &[("database", "app")]), Some(7.0));
    let (head, body) = get(&s, "/health?x=1");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("application/json"), "{head}");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    let app = serde_json::json!({
        "state": "streaming", "lag_seconds": 0.25, "pending_bytes": 10, "txid": 7, "replicated_txid": 6,
        "last_upload": "1970-01-01T00:00:00.000Z", "last_error": null,
    });
    let copy = serde_json::json!({
        "state": "streaming", "lag_seconds": null, "pending_bytes": 10, "txid": 7, "replicated_txid": 6,
        "last_upload": null, "last_error": null,
    });
    let wanted = serde_json::json!({
        "status": "degraded", "uptime_seconds": 2.0,
        "databases": { "/data/\"app\".db": app, "/data/copy.db": copy },
    });
    assert_eq!(json, wanted);
    assert!(get(&server(HealthStatus::Unhealthy), "/health").0.starts_with("HTTP/1.1 503 "));
    assert!(get(&server(HealthStatus::Healthy), "/health").0.starts_with("HTTP/1.1 200 "));
    assert!(get(&s, "/nothing").0.starts_with("HTTP/1.1 404 "));
    assert!(get(&s, "/metrics/../health").0.starts_with("HTTP/1.1 404 "));
}

#[test]
fn the_page_and_what_it_asks_for_are_served_to_who_names_us_rightly() {
    let s = server(HealthStatus::Healthy);
    let ask = |target: &str, host: &str| {
        let answer = send(&s, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_string(), head.to_string(), body.to_string())
    };
    let own = s.address().to_string();
    let (status, head, body) = ask("/", &own);
    assert!(status == "200" && head.contains("Content-Type: text/html"), "{head}");
    let nonce = head.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(body.contains(&format!("<script nonce=\"{nonce}\">")), "its own script is known by its word");
    for page in ["/", "/status.json", "/history.json?database=app", "/points.json?database=app"] {
        assert_eq!(ask(page, "localhost:1").0, "200", "{page}");
        let (status, _, body) = ask(page, "rebound.example:9090");
        assert_eq!(status, "403", "{page}");
        assert!(body.contains("metrics_listen") && !body.contains("app"), "{body}");
        assert!(send(&s, format!("GET {page} HTTP/1.1\r\n\r\n").as_bytes()).starts_with("HTTP/1.1 403 "));
    }
    let json = |target: &str| -> (String, serde_json::Value) {
        let (status, _, body) = ask(target, &own);
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{target}: {e}: {body}")))
    };
    assert_eq!(json("/status.json").1["pid"], std::process::id());
    assert_eq!(json("/points.json?database=app").1["points"][0]["txid"], 7);
    assert_eq!(json("/points.json?database=app&before=999").1["before"], serde_json::Value::Null);
    assert_eq!(json("/points.json?database=slow").1, serde_json::json!({"asking": true}));
    assert_eq!(json("/points.json?database=bad").1["error"], "the store said no");
    assert_eq!(json("/points.json?database=none").0, "404");
    assert_eq!(json("/points.json").0, "400");
    assert!(json("/points.json?database=app&from=x").1["error"].as_str().unwrap().contains("milliseconds"));
}

#[test]
fn who_shows_no_token_changes_nothing() {
    const TOKEN: &str = "correct-horse-battery";
    let done: Arc<Mutex<Vec<Deed>>> = Arc::default();
    let pages = |token| Arc::new(Fixed { token, done: done.clone(), ..Fixed::default() });
    let (open, closed) =
        (serve("127.0.0.1:0", pages(Some(TOKEN))).unwrap(), serve("127.0.0.1:0", pages(None)).unwrap());
    let ask = |s: &Server, method: &str, target: &str, more: &str| {
        let host = s.address();
        let answer = send(s, format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse::<u16>().unwrap(), body.to_string(), head.to_string())
    };
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let drill = "/act.json?database=app&do=drill";
    for (server, method, target, more, status) in [
        (&closed, "POST", drill, bearer(TOKEN), 403),
        (&closed, "POST", drill, String::new(), 403),
        (&open, "POST", drill, String::new(), 401),
        (&open, "POST", drill, format!("Authorization: Basic {TOKEN}\r\n"), 401),
        (&open, "POST", drill, format!("Cookie: token={TOKEN}\r\n"), 401),
        (&open, "POST", drill, bearer(""), 401),
        (&open, "POST", drill, bearer("correct-horse-batterx"), 403),
        (&open, "POST", drill, bearer("correct-horse-batter"), 403),
        (&open, "POST", &format!("{drill}&token={TOKEN}"), String::new(), 401),
        (&open, "POST", "/act.json?database=nobody&do=nothing", String::new(), 401),
        (&open, "GET", drill, bearer(TOKEN), 400),
        (&open, "PUT", drill, bearer(TOKEN), 405),
        (&open, "OPTIONS", drill, String::new(), 405),
        (&open, "POST", "/status.json", bearer(TOKEN), 405),
    ] {
        let (got, body, head) = ask(server, method, target, &more);
        assert_eq!(got, status, "{method} {target} {more:?}: {body}");
        assert!(
            !body.contains(TOKEN) && !head.contains(TOKEN) && !head.to_lowercase().contains("access-control"),
            "{head}{body}"
        );
    }
    let rebound = format!("POST {drill} HTTP/1.1\r\nHost: evil.example\r\n{}\r\n", bearer(TOKEN));
    assert!(send(&open, rebound.as_bytes()).starts_with("HTTP/1.1 403 "));
    assert!(done.lock().unwrap().is_empty(), "{done:?}");

    for (target, status) in [
        (drill, 202),
        ("/act.json?database=app&do=label&name=before&txid=7", 202),
        ("/act.json?database=busy&do=drill", 409),
        ("/act.json?database=bad&do=label&name=latest", 400),
        ("/act.json?database=none&do=drill", 404),
        ("/act.json?database=app&do=rewind", 400),
    ] {
        let (got, body, _) = ask(&open, "POST", target, &format!("{}Content-Length: 0\r\n", bearer(TOKEN)));
        assert_eq!(got, status, "{target}: {body}");
        assert_eq!(body.contains("error"), status != 202, "{body}");
    }
    let label = Deed::Label { name: "before".to_string(), txid: Some(TxId(7)) };
    assert_eq!(*done.lock().unwrap(), [Deed::Drill, label]);
    // What came of it is told to who looks; who may act is told by the page's own question.
    let last: serde_json::Value =
        serde_json::from_str(&ask(&open, "GET", "/act.json?database=app", "").1).unwrap();
    assert_eq!(
        (&last["do"], &last["is_well"], &last["said"]),
        (&"drill".into(), &true.into(), &"well".into())
    );
    assert_eq!(ask(&open, "GET", "/act.json?database=none", "").1, "null\n");
    for (server, acts) in [(&open, true), (&closed, false)] {
        let said: serde_json::Value =
            serde_json::from_str(&ask(server, "GET", "/status.json", "").1).unwrap();
        assert_eq!(said["acts"], acts);
    }
}

#[test]
fn curl_reads_it() {
    let s = server(HealthStatus::Healthy);
    let url = format!("http://{}/health", s.address());
    let out = std::process::Command::new("curl").args(["-sS", "--fail", "-i", &url]).output();
    let out = out.expect("the curl command asks as any client would");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"status\":\"healthy\""));
}

#[test]
fn hostile_requests_get_an_error_and_the_server_lives() {
    let s = server(HealthStatus::Healthy);
    let long_line = [b"GET /".as_slice(), &vec![b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    let many: String = (0..5000).map(|i| format!("X-{i}: y\r\n")).collect();
    let many = format!("GET /metrics HTTP/1.1\r\n{many}\r\n");
    for (request, status) in [
        (b"GET /metrics\r\n\r\n".as_slice(), "400"),
        (b"GET /metrics SPDY/9\r\n\r\n", "400"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1 extra\r\n\r\n", "400"),
        (b"\xff\xfe\x00 / HTTP/1.1\r\n\r\n", "400"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        (&long_line, "431"),
        (many.as_bytes(), "431"),
    ] {
        let answer = send(&s, request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
    }
    // What never becomes a request has no answer.
    for request in [b"".as_slice(), b"GET", b"GET /metrics HTTP/1.1\r\n", b"\r\n\r\n"] {
        assert_eq!(send(&s, request), "", "{:?}", String::from_utf8_lossy(request));
    }
    let head = send(&s, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(
        send(&s, b"GET /health HTTP/1.0\n\n").starts_with("HTTP/1.0 200 "),
        "by hand, with bare newlines"
    );
    assert!(get(&s, "/metrics").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn slow_clients_do_not_keep_the_page_from_others() {
    let s = server(HealthStatus::Healthy);
    // All seats but one are taken by clients that never finish.
    let slow: Vec<TcpStream> = (0..31)
        .map(|_| {
            let mut c = TcpStream::connect(s.address()).unwrap();
            c.write_all(b"GET /metr").unwrap();
            c
        })
        .collect();
    let start = clock::uptime();
    assert!(get(&s, "/metrics").0.starts_with("HTTP/1.1 200 "));
    assert!(clock::uptime() - start < Duration::from_secs(4));
    // And once more than all: a seat is free as soon as the first is thrown out.
    let more: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(s.address()).unwrap()).collect();
    let start = clock::uptime();
    drop(slow);
    assert!(get(&s, "/metrics").0.starts_with("HTTP/1.1 200 "));
    assert!(clock::uptime() - start < Duration::from_secs(14), "{:?}", clock::uptime() - start);
    drop(more);
}

#[test]
fn it_stops_when_dropped_and_says_when_it_cannot_listen() {
    let s = server(HealthStatus::Healthy);
    let address = s.address().to_string();
    let pages = || Arc::new(Fixed::default());
    let e = serve(&address, pages()).unwrap_err();
    assert_eq!(e.kind(), Kind::Config);
    assert!(e.to_string().contains(&address) && e.to_string().contains("metrics_listen"), "{e}");
    drop(s);
    let again = serve(&address, pages()).unwrap();
    assert!(get(&again, "/health").0.starts_with("HTTP/1.1 200 "));
    assert!(serve("no.such.host.invalid:1", pages()).is_err());
}

#[test]
fn a_page_that_panics_costs_one_connection() {
    struct Panics;
    impl Pages for Panics {
        fn metrics(&self) -> String {
            panic!("on purpose")
        }
        fn face(&self) -> Face {
            Face { now: Timestamp(0), uptime: Duration::ZERO, databases: Vec::new() }
        }
        fn points(&self, _: &str) -> Points {
            Points::Unknown
        }
    }
    let s = serve("127.0.0.1:0", Arc::new(Panics)).unwrap();
    assert_eq!(send(&s, b"GET /metrics HTTP/1.1\r\n\r\n"), "");
    assert!(get(&s, "/health").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_replica_alone_has_no_series_and_no_word_of_a_process() {
    let fixed = Fixed::default();
    let mut face = fixed.face();
    let seen = SeenFace {
        asked: Timestamp(2000),
        oldest: Some(Timestamp(500)),
        newest: Some(Timestamp(1000)),
        points: 3,
        labels: 1,
        files: 4,
        bytes: 900,
    };
    let row = DatabaseFace {
        database: "s3://b/\"app\"".to_string(),
        kind: RowKind::Replica,
        mirror_of: None,
        state: "readable",
        lag: None,
        last_upload: None,
        seen: Some(seen),
        ..face.databases[0].clone()
    };
    let silent = DatabaseFace { database: "s3://b/silent".to_string(), seen: None, ..row.clone() };
    face.databases = vec![row, silent];
    let samples = lint(&replicas_text(&face));
    // (The replicas come in any order.)
    let of = |name: &str| -> Vec<f64> {
        let name = format!("walrust_replica_{name}");
        let mut all: Vec<f64> = samples.iter().filter(|(n, ..)| *n == name).map(|(.., v)| *v).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        all
    };
    assert_eq!((of("readable"), of("points"), of("bytes")), (vec![1.0, 0.0], vec![3.0], vec![900.0]));
    assert_eq!(
        (of("newest_timestamp_seconds"), of("last_verified_timestamp_seconds")),
        (vec![1.0], vec![0.0, 0.0])
    );
    assert!(!samples.iter().any(|(n, ..)| n.contains("lag") || n.contains("state") || n.contains("pending")));
    let said = face.json(|_| None);
    for row in said["databases"].as_array().unwrap() {
        for unknown in [
            "lag_seconds",
            "safe_until",
            "pending_bytes",
            "txid",
            "wal_bytes",
            "spool_bytes",
            "breaker",
            "database_bytes",
        ] {
            assert!(row[unknown].is_null(), "{unknown}: {row}");
        }
    }
    assert_eq!(said["databases"][0]["seen"]["newest_age_seconds"], 1_799_999_999.0);
    let (_, line) = health::line(&face);
    assert!(!line.contains("lag") && !line.contains("pending") && line.contains("newest"), "{line}");
}
