//! An S3 server for tests, in one process: std only for the wire, a thread per connection, plain HTTP.
//!
//! What it does as S3 does: SigV4 checked (header form; signed, unsigned and aws-chunked payloads),
//! `If-None-Match: *` and `If-Match` atomically on PUT and CompleteMultipartUpload, user metadata, ETag,
//! ranges, Last-Modified, `x-amz-checksum-sha256` verified, ListObjectsV2 with prefix, delimiter and
//! pages, multipart, DeleteObjects, NoSuchBucket.
//!
//! What it does on demand: [`Rule`]s make matching requests fail with a status (and Retry-After), wait, end the
//! connection before, amid or after the work; [`FakeS3::set_down`] refuses every connection; [`Quirk`]s
//! imitate other stores. Each request is in the [log](FakeS3::log).
//!
//! Over HTTP the same is under `/-/`: `POST /-/faults` (a JSON array of rules; replaces the old),
//! `GET /-/log`, `POST /-/clear` (forgets rules and log), `POST /-/quirks` (a JSON array of names), `POST /-/down` and `POST /-/up`.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Trouble for some requests. A request takes the first rule that matches and has `times` left.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// `PUT`, `GET`, …; any if empty. `LIST` is a GET of the bucket, `COMPLETE` the end of a multipart upload.
    pub method: String,
    /// A part of the key (of the prefix, for `LIST`); any if empty.
    pub key: String,
    /// The start of the name of a header that the request must have; any request if empty.
    pub header: String,
    /// Matching requests to let through first.
    pub skip: u64,
    /// How many requests it befalls; 0: all.
    pub times: u64,
    /// Milliseconds to wait first.
    pub delay_ms: u64,
    /// Answer with this status instead of acting; 0: act.
    pub status: u16,
    /// The `<Code>` of that answer.
    pub code: String,
    /// Seconds for a `Retry-After` header.
    pub retry_after: Option<u64>,
    pub cut: Cut,
}

/// Where the connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Nowhere.
    #[default]
    None,
    /// Before the request is acted on.
    Before,
    /// After it was carried out, with no answer.
    Applied,
    /// Half-way through the answer's body.
    MidBody,
}

/// Behaviour of other stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quirk {
    /// Conditional puts are carried out whatever is there (Garage).
    IgnoreConditions,
    /// Conditional puts are answered with 501 (Backblaze B2).
    RefuseConditions,
    /// `If-Match` is ignored, `If-None-Match` is not.
    IgnoreIfMatch,
    /// No DeleteObjects (501).
    NoBulkDelete,
    /// User metadata is forgotten.
    NoMetadata,
}

/// One request, as logged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logged {
    /// `LIST` and `COMPLETE` as in [`Rule::method`].
    pub method: String,
    pub key: String,
    pub query: String,
    /// Of the request's body.
    pub bytes: u64,
    pub range: Option<String>,
    /// 0: the connection was cut.
    pub status: u16,
}

#[derive(Clone)]
pub struct Object {
    pub body: Vec<u8>,
    pub etag: String,
    pub modified: SystemTime,
    /// Lower-case names without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
}

struct Upload {
    key: String,
    metadata: BTreeMap<String, String>,
    parts: BTreeMap<u32, Vec<u8>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    rules: Vec<Rule>,
    log: Vec<Logged>,
    quirks: Vec<Quirk>,
    unlisted: Option<String>,
    page: usize,
    serial: u64,
}

struct Shared {
    bucket: String,
    key: String,
    secret: String,
    state: Mutex<State>,
    down: AtomicBool,
    stop: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// A running server; it stops when dropped.
pub struct FakeS3 {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FakeS3 {
    /// On a free port, with bucket `b` and the credentials `k` / `s`.
    pub fn start() -> FakeS3 {
        FakeS3::start_on(0, "b", "k", "s")
    }

    pub fn start_on(port: u16, bucket: &str, key: &str, secret: &str) -> FakeS3 {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            bucket: bucket.into(),
            key: key.into(),
            secret: secret.into(),
            state: Mutex::new(State { page: 1000, ..State::default() }),
            down: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                let _ = stream.set_nodelay(true);
                if let Ok(copy) = stream.try_clone() {
                    shared.connections.lock().unwrap().push(copy);
                }
                std::thread::spawn(move || {
                    while serve(&shared, &stream).is_some() {}
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        FakeS3 { address, shared }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `s3://b/<path>?endpoint=…`
    pub fn url(&self, path: &str) -> String {
        format!("s3://{}/{path}?endpoint={}&region=us-east-1", self.shared.bucket, self.endpoint())
    }

    /// The environment variables that give access.
    pub fn env(&self) -> [(&str, &str); 2] {
        [("AWS_ACCESS_KEY_ID", &self.shared.key), ("AWS_SECRET_ACCESS_KEY", &self.shared.secret)]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule.
    pub fn rule(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// The next `times` requests with this method and key part fail with `status`.
    pub fn fail(&self, times: u64, method: &str, key: &str, status: u16) {
        self.rule(Rule { times, method: method.into(), key: key.into(), status, ..Rule::default() });
    }

    /// Forgets rules and log.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.log.clear();
    }

    pub fn set_quirks(&self, quirks: &[Quirk]) {
        self.state().quirks = quirks.to_vec();
    }

    /// Listings lack the keys with this part: they lag.
    pub fn set_unlisted(&self, part: Option<&str>) {
        self.state().unlisted = part.map(str::to_string);
    }

    /// Keys per page of a listing.
    pub fn set_page(&self, page: usize) {
        self.state().page = page;
    }

    /// While down, connections are closed without a word.
    pub fn set_down(&self, down: bool) {
        set_down(&self.shared, down);
    }

    pub fn log(&self) -> Vec<Logged> {
        self.state().log.clone()
    }

    /// Requests with this method (`LIST` and `COMPLETE` are methods of their own) whose key contains `key`.
    pub fn count(&self, method: &str, key: &str) -> usize {
        self.state().log.iter().filter(|l| l.method == method && l.key.contains(key)).count()
    }

    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub fn object(&self, key: &str) -> Option<Object> {
        self.state().objects.get(key).cloned()
    }

    /// Puts an object past all rules and the log.
    pub fn insert(&self, key: &str, body: &[u8]) {
        let mut state = self.state();
        let object = new_object(&mut state, body.to_vec(), BTreeMap::new());
        state.objects.insert(key.into(), object);
    }

    pub fn remove(&self, key: &str) -> bool {
        self.state().objects.remove(key).is_some()
    }

    /// Changes an object's bytes as a faulty disk would.
    pub fn corrupt(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.state().objects.get_mut(key).unwrap().body);
    }

    /// Multipart uploads that were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        set_down(&self.shared, true);
        let _ = TcpStream::connect(self.address);
    }
}

fn set_down(shared: &Shared, down: bool) {
    shared.down.store(down, Ordering::SeqCst);
    let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
    if down {
        for c in connections.drain(..) {
            let _ = c.shutdown(Shutdown::Both);
        }
    }
}

struct Request {
    method: String,
    /// Path and query as sent.
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (decode_query(k) == name).then(|| decode_query(v))
        })
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn ok(body: impl Into<Vec<u8>>) -> Answer {
        Answer { status: 200, headers: Vec::new(), body: body.into() }
    }

    fn error(status: u16, code: &str, message: &str) -> Answer {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        Answer { status, headers: vec![("Content-Type".into(), "application/xml".into())], body: body.into() }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Serves one request; `None` when the connection is to end.
fn serve(shared: &Shared, stream: &TcpStream) -> Option<()> {
    if shared.down.load(Ordering::SeqCst) && shared.stop.load(Ordering::SeqCst) {
        return None;
    }
    let request = read_request(stream)?;
    if let Some(what) = request.path.strip_prefix("/-/") {
        let answer = admin(shared, what, &request);
        return send(stream, &request, answer, Cut::None);
    }
    if shared.down.load(Ordering::SeqCst) {
        return None;
    }
    let key = decode(request.path.trim_start_matches('/'));
    let (bucket, key) = key.split_once('/').unwrap_or((&key, ""));
    let shown_key =
        if key.is_empty() { request.parameter("prefix").unwrap_or_default() } else { key.to_string() };
    let shown_method = match request.method.as_str() {
        "GET" if key.is_empty() => "LIST",
        "POST" if request.parameter("uploadId").is_some() => "COMPLETE",
        m => m,
    };
    let rule = take_rule(shared, shown_method, &shown_key, &request);
    std::thread::sleep(Duration::from_millis(rule.delay_ms));
    let log = |status: u16| {
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.log.push(Logged {
            method: shown_method.into(),
            key: shown_key.clone(),
            query: request.query.clone(),
            bytes: request.body.len() as u64,
            range: request.headers.get("range").cloned(),
            status,
        });
    };
    if rule.cut == Cut::Before {
        log(0);
        return None;
    }
    let answer = if rule.status != 0 {
        let code = if rule.code.is_empty() { default_code(rule.status) } else { &rule.code };
        Answer::error(rule.status, code, "injected")
    } else if let Err(refusal) = check_signature(shared, &request) {
        refusal
    } else if bucket != shared.bucket {
        Answer::error(404, "NoSuchBucket", "The specified bucket does not exist")
    } else {
        act(shared, key, &request)
    };
    let answer = match rule.retry_after {
        Some(s) => answer.with("Retry-After", s.to_string()),
        None => answer,
    };
    if rule.cut == Cut::Applied {
        log(0);
        return None;
    }
    log(answer.status);
    send(stream, &request, answer, rule.cut)
}

fn take_rule(shared: &Shared, method: &str, key: &str, request: &Request) -> Rule {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let matching = |r: &&mut Rule| {
        (r.method.is_empty() || r.method == method)
            && key.contains(r.key.as_str())
            && (r.header.is_empty() || request.headers.keys().any(|h| h.starts_with(&r.header)))
            && r.times != u64::MAX
    };
    for rule in state.rules.iter_mut().filter(|r| matching(r)) {
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        let taken = rule.clone();
        // Used up is u64::MAX, so that 0 can stand for "always".
        match rule.times {
            0 => {}
            1 => rule.times = u64::MAX,
            _ => rule.times -= 1,
        }
        return taken;
    }
    Rule::default()
}

fn admin(shared: &Shared, what: &str, request: &Request) -> Answer {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let json = |e: serde_json::Error| Answer::error(400, "BadJson", &e.to_string());
    match (request.method.as_str(), what) {
        ("GET", "log") => Answer::ok(serde_json::to_vec(&state.log).unwrap_or_default()),
        ("POST", "faults") => match serde_json::from_slice(&request.body) {
            Ok(rules) => {
                state.rules = rules;
                Answer::ok("[]")
            }
            Err(e) => json(e),
        },
        ("POST", "quirks") => match serde_json::from_slice(&request.body) {
            Ok(quirks) => {
                state.quirks = quirks;
                Answer::ok("[]")
            }
            Err(e) => json(e),
        },
        ("POST", "clear") => {
            state.rules.clear();
            state.log.clear();
            Answer::ok("[]")
        }
        ("POST", "down" | "up") => {
            // Without closing this connection.
            shared.down.store(what == "down", Ordering::SeqCst);
            Answer::ok("[]")
        }
        _ => Answer::error(404, "NoSuchAdminCall", "see the header of fake_s3.rs"),
    }
}

fn act(shared: &Shared, key: &str, request: &Request) -> Answer {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let state = &mut *state;
    match (request.method.as_str(), key, request.parameter("uploadId")) {
        ("GET", "", _) => list(state, &shared.bucket, request),
        ("HEAD", "", _) => Answer::ok(""),
        ("POST", "", _) if request.parameter("delete").is_some() => delete_objects(state, request),
        ("PUT", _, Some(id)) => put_part(state, &id, request),
        ("PUT", ..) => put(state, key, request),
        ("POST", _, Some(id)) => complete(state, key, &id, request),
        ("POST", ..) if request.parameter("uploads").is_some() => {
            state.serial += 1;
            let id = format!("upload-{}", state.serial);
            let upload =
                Upload { key: key.into(), metadata: metadata(state, request), parts: BTreeMap::new() };
            state.uploads.insert(id.clone(), upload);
            Answer::ok(format!(
                "<InitiateMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
                shared.bucket,
                escape(key)
            ))
        }
        ("DELETE", _, Some(id)) => {
            let known = state.uploads.remove(&id).is_some();
            if known {
                Answer { status: 204, ..Answer::ok("") }
            } else {
                Answer::error(404, "NoSuchUpload", "no")
            }
        }
        ("DELETE", ..) => {
            state.objects.remove(key);
            Answer { status: 204, ..Answer::ok("") }
        }
        ("GET" | "HEAD", ..) => get(state, key, request),
        _ => Answer::error(405, "MethodNotAllowed", "not here"),
    }
}

fn metadata(state: &State, request: &Request) -> BTreeMap<String, String> {
    if state.quirks.contains(&Quirk::NoMetadata) {
        return BTreeMap::new();
    }
    let ours = request.headers.iter().filter_map(|(k, v)| Some((k.strip_prefix("x-amz-meta-")?, v)));
    ours.map(|(k, v)| (k.to_string(), v.clone())).collect()
}

fn new_object(state: &mut State, body: Vec<u8>, metadata: BTreeMap<String, String>) -> Object {
    state.serial += 1;
    let etag = format!("\"{}\"", &hex(&Sha256::digest(&body))[..32]);
    Object { body, etag, modified: SystemTime::now(), metadata }
}

/// `Some` refuses.
fn condition(state: &State, key: &str, request: &Request) -> Option<Answer> {
    let (none, only) = (request.header("if-none-match"), request.header("if-match"));
    if none.is_empty() && only.is_empty() || state.quirks.contains(&Quirk::IgnoreConditions) {
        return None;
    }
    if state.quirks.contains(&Quirk::RefuseConditions) {
        return Some(Answer::error(
            501,
            "NotImplemented",
            "A header you provided implies functionality that is not implemented",
        ));
    }
    let there = state.objects.get(key);
    let failed = || {
        Some(Answer::error(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
        ))
    };
    if !none.is_empty() {
        return there.and_then(|_| failed());
    }
    match there {
        _ if state.quirks.contains(&Quirk::IgnoreIfMatch) => None,
        None => Some(Answer::error(404, "NoSuchKey", "The specified key does not exist.")),
        Some(o) if o.etag.trim_matches('"') == only.trim_matches('"') => None,
        Some(_) => failed(),
    }
}

fn checksum(request: &Request) -> Option<Answer> {
    let given = request.header("x-amz-checksum-sha256");
    let good = given.is_empty() || given == base64(&Sha256::digest(&request.body));
    (!good).then(|| {
        Answer::error(400, "BadDigest", "The SHA256 you specified did not match the calculated checksum.")
    })
}

fn put(state: &mut State, key: &str, request: &Request) -> Answer {
    if let Some(refusal) = checksum(request).or_else(|| condition(state, key, request)) {
        return refusal;
    }
    let metadata = metadata(state, request);
    let object = new_object(state, request.body.clone(), metadata);
    let etag = object.etag.clone();
    state.objects.insert(key.into(), object);
    Answer::ok("").with("ETag", etag)
}

fn put_part(state: &mut State, id: &str, request: &Request) -> Answer {
    if let Some(refusal) = checksum(request) {
        return refusal;
    }
    let number = request.parameter("partNumber").and_then(|n| n.parse().ok()).unwrap_or(0);
    let Some(upload) = state.uploads.get_mut(id) else { return Answer::error(404, "NoSuchUpload", "no") };
    upload.parts.insert(number, request.body.clone());
    Answer::ok("").with("ETag", format!("\"{}\"", &hex(&Sha256::digest(&request.body))[..32]))
}

fn complete(state: &mut State, key: &str, id: &str, request: &Request) -> Answer {
    let Some(upload) = state.uploads.get(id).filter(|u| u.key == key) else {
        return Answer::error(404, "NoSuchUpload", "no");
    };
    let sizes: Vec<usize> = upload.parts.values().map(Vec::len).collect();
    if sizes.iter().rev().skip(1).any(|s| *s < 5 << 20) {
        return Answer::error(400, "EntityTooSmall", "a part is below 5 MiB");
    }
    if let Some(refusal) = condition(state, key, request) {
        return refusal;
    }
    let Some(upload) = state.uploads.remove(id) else { return Answer::error(404, "NoSuchUpload", "no") };
    let body = upload.parts.into_values().flatten().collect();
    let object = new_object(state, body, upload.metadata);
    let etag = object.etag.clone();
    state.objects.insert(key.into(), object);
    Answer::ok(format!(
        "<CompleteMultipartUploadResult><Key>{}</Key><ETag>{}</ETag></CompleteMultipartUploadResult>",
        escape(key),
        escape(&etag)
    ))
}

fn get(state: &State, key: &str, request: &Request) -> Answer {
    let Some(object) = state.objects.get(key) else {
        return Answer::error(404, "NoSuchKey", "The specified key does not exist.");
    };
    let size = object.body.len();
    let mut answer = match request.headers.get("range").map(|r| parse_range(r, size)) {
        None => Answer::ok(object.body.clone()),
        Some(None) => return Answer::error(416, "InvalidRange", "The requested range is not satisfiable"),
        Some(Some((from, to))) => {
            let part = Answer::ok(object.body[from..=to].to_vec());
            Answer { status: 206, ..part }.with("Content-Range", format!("bytes {from}-{to}/{size}"))
        }
    };
    answer = answer
        .with("ETag", &object.etag)
        .with("Last-Modified", http_date(object.modified))
        .with("Accept-Ranges", "bytes")
        .with("Content-Type", "application/octet-stream");
    for (name, value) in &object.metadata {
        answer = answer.with(&format!("x-amz-meta-{name}"), value);
    }
    answer
}

fn parse_range(range: &str, size: usize) -> Option<(usize, usize)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let last = size.checked_sub(1)?;
    match (from.parse::<usize>(), to.parse::<usize>()) {
        (Ok(from), Ok(to)) if from <= to && from <= last => Some((from, to.min(last))),
        (Ok(from), Err(_)) if from <= last => Some((from, last)),
        (Err(_), Ok(count)) if count > 0 => Some((size.saturating_sub(count), last)),
        _ => None,
    }
}

fn list(state: &State, bucket: &str, request: &Request) -> Answer {
    let parameter = |name: &str| request.parameter(name).unwrap_or_default();
    let (prefix, delimiter) = (parameter("prefix"), parameter("delimiter"));
    let after = match request.parameter("continuation-token") {
        Some(token) => decode(&token),
        None => parameter("start-after"),
    };
    let page = parameter("max-keys").parse().unwrap_or(state.page).min(state.page);
    let (mut contents, mut folders, mut next, mut count) = (String::new(), Vec::<String>::new(), None, 0);
    let mut last = String::new();
    let listed = |k: &str| state.unlisted.as_deref().is_none_or(|part| !k.contains(part));
    let objects = state.objects.iter().filter(|(k, _)| k.starts_with(&prefix) && **k > after && listed(k));
    for (key, object) in objects {
        let rest = &key[prefix.len()..];
        let folder = if delimiter.is_empty() { None } else { rest.find(&delimiter) };
        let folder = folder.map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]));
        if folder
            .as_ref()
            .is_some_and(|f| folders.last() == Some(f) || (!after.is_empty() && after.starts_with(f)))
        {
            last = key.clone();
            continue;
        }
        if count == page {
            next = Some(last);
            break;
        }
        count += 1;
        last = key.clone();
        match folder {
            Some(f) => folders.push(f),
            None => {
                let _ = write!(
                    contents,
                    "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
                    list_key(key, request),
                    iso_date(object.modified),
                    escape(&object.etag),
                    object.body.len()
                );
            }
        }
    }
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{bucket}</Name><Prefix>{}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{page}</MaxKeys><IsTruncated>{}</IsTruncated>",
        escape(&prefix),
        next.is_some()
    );
    if let Some(token) = next {
        let _ = write!(xml, "<NextContinuationToken>{}</NextContinuationToken>", escape(&encode(&token, "")));
    }
    if request.parameter("encoding-type").as_deref() == Some("url") {
        xml.push_str("<EncodingType>url</EncodingType>");
    }
    xml.push_str(&contents);
    for folder in folders {
        let _ =
            write!(xml, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", list_key(&folder, request));
    }
    xml.push_str("</ListBucketResult>");
    Answer::ok(xml).with("Content-Type", "application/xml")
}

fn list_key(key: &str, request: &Request) -> String {
    if request.parameter("encoding-type").as_deref() == Some("url") { encode(key, "/") } else { escape(key) }
}

fn delete_objects(state: &mut State, request: &Request) -> Answer {
    if state.quirks.contains(&Quirk::NoBulkDelete) {
        return Answer::error(501, "NotImplemented", "no DeleteObjects here");
    }
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let mut xml = String::from("<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for piece in body.split("<Key>").skip(1) {
        let key = unescape(piece.split("</Key>").next().unwrap_or_default());
        state.objects.remove(&key);
        let _ = write!(xml, "<Deleted><Key>{}</Key></Deleted>", escape(&key));
    }
    xml.push_str("</DeleteResult>");
    Answer::ok(xml).with("Content-Type", "application/xml")
}

// ---- the wire ----

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    let mut body = Vec::new();
    if headers.get("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        let mut writer = stream;
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if headers.get("transfer-encoding").is_some_and(|t| t.contains("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            let read = reader.by_ref().take(size).read_to_end(&mut body).ok()?;
            let mut end = String::new();
            reader.read_line(&mut end).ok()?;
            if size == 0 {
                break;
            }
            (read as u64 == size).then_some(())?;
        }
    } else {
        let length: u64 = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        let read = reader.by_ref().take(length).read_to_end(&mut body).ok()?;
        (read as u64 == length).then_some(())?;
    }
    if headers.get("x-amz-content-sha256").is_some_and(|s| s.starts_with("STREAMING-")) {
        body = unchunk(&body)?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request { method, path: path.into(), query: query.into(), headers, body })
}

/// aws-chunked: `<hex size>[;chunk-signature=…]\r\n<bytes>\r\n … 0…`, then trailers, which are not checked.
fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n")?;
        let head = std::str::from_utf8(&body[..end]).ok()?;
        let size = usize::from_str_radix(head.split(';').next()?, 16).ok()?;
        body = &body[end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

fn send(mut stream: &TcpStream, request: &Request, answer: Answer, cut: Cut) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, default_code(answer.status));
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\nx-amz-request-id: fake\r\n\r\n", answer.body.len());
    stream.write_all(head.as_bytes()).ok()?;
    let body = if request.method == "HEAD" { &[] } else { answer.body.as_slice() };
    let body = if cut == Cut::MidBody { &body[..body.len() / 2] } else { body };
    stream.write_all(body).ok()?;
    (cut != Cut::MidBody).then_some(())
}

fn default_code(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "NoContent",
        206 => "PartialContent",
        403 => "AccessDenied",
        404 => "NoSuchKey",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "SlowDown",
        _ => "Other",
    }
}

// ---- SigV4: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html ----

fn check_signature(shared: &Shared, request: &Request) -> Result<(), Answer> {
    let denied = |code: &str, why: &str| Err(Answer::error(403, code, why));
    let Some(parts) = request.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ") else {
        return denied("AccessDenied", "Anonymous access is forbidden");
    };
    let part = |name: &str| {
        let found = parts.split(',').find_map(|p| p.trim().strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_string()
    };
    let (credential, signed, signature) = (part("Credential"), part("SignedHeaders"), part("Signature"));
    let Some((key, scope)) = credential.split_once('/') else { return denied("AccessDenied", "no scope") };
    if key != shared.key {
        return denied(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        );
    }
    let payload = request.header("x-amz-content-sha256");
    if !payload.starts_with("STREAMING-")
        && payload != "UNSIGNED-PAYLOAD"
        && payload != hex(&Sha256::digest(&request.body))
    {
        return Err(Answer::error(
            400,
            "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        ));
    }
    let must_be_signed = |name: &&String| name.starts_with("x-amz-") || *name == "host";
    if let Some(name) =
        request.headers.keys().filter(must_be_signed).find(|n| !signed.split(';').any(|s| s == *n))
    {
        return denied(
            "AccessDenied",
            &format!("There were headers present in the request which were not signed: {name}"),
        );
    }
    let mut query: Vec<String> = request
        .query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            format!("{}={}", encode(&decode_query(k), ""), encode(&decode_query(v), ""))
        })
        .collect();
    query.sort();
    let mut canonical =
        format!("{}\n{}\n{}\n", request.method, encode(&decode(&request.path), "/"), query.join("&"));
    for name in signed.split(';') {
        let value = request.header(name).split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let _ = write!(canonical, "\n{signed}\n{payload}");
    let date = request.header("x-amz-date");
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut secret = format!("AWS4{}", shared.secret).into_bytes();
    for step in scope.split('/') {
        secret = hmac(&secret, step.as_bytes());
    }
    if hex(&hmac(&secret, to_sign.as_bytes())) != signature {
        return denied(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided.",
        );
    }
    Ok(())
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

// ---- texts ----

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn base64(bytes: &[u8]) -> String {
    const SET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let n = three.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let c = SET[(n >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= three.len() { char::from(c) } else { '=' });
        }
    }
    out
}

fn encode(text: &str, keep: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || keep.as_bytes().contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(b)) => {
                out.push(b);
                i += 3;
            }
            (b, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// In a query a plus is a space.
fn decode_query(text: &str) -> String {
    decode(&text.replace('+', " "))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

fn http_date(at: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(at).format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn iso_date(at: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(at).format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
