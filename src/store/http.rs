//! The HTTP client under object_store, and a witness of what it saw.
//!
//! object_store turns answers into errors and drops `Retry-After`, the S3 error code and, for generic
//! errors, the status. [`Witness`] stands between object_store and reqwest, notes these per operation
//! (a task-local), and adds what object_store has no option for: `If-None-Match: *` on
//! CompleteMultipartUpload, and a time limit that grows with the body.
//!
//! I-HTTP-1: one connection pool per process, runtime and kind of TLS: a thousand replicas share
//! it, because each client holds its own copy of the CA store. I-HTTP-2: a client never serves
//! another runtime than the one that drives its connections, nor a forked child. I-HTTP-3: redirects are not
//! followed: a signed request sent elsewhere is at best refused. I-HTTP-4: what is answered to a listing is one, or an
//! error (`answer`): nothing else with HTTP 200 says that a replica is empty.

use super::answer::{Asked, Protocol, is_page, not_a_listing};
use super::bandwidth;
use super::requests::Count;
use super::sign::Signer;
use super::text::{one_line, root_cause};
use super::xml;
use crate::base::{Error, ForkSafe, Kind, Result, certificates, panics};
use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientOptions, HeaderValue};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// To open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for more to do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// To get an answer, and between two pieces of a body.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest upload that is not taken for a dead one: 16 KiB a second.
const SLOWEST_UPLOAD_BYTES_PER_S: u64 = 16 * 1024;
/// Instance metadata answers at once or is not there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// Error bodies are a few hundred bytes; what is longer is not one.
const MAX_ERROR_BODY_BYTES: u64 = 64 * 1024;
/// Pools kept: the shipper's runtime and some calls from SQL.
const MAX_POOLS: usize = 4;

/// What the last request of an operation saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) host: String,
    pub(super) status: Option<u16>,
    /// `<Code>` and `<Message>` of an S3 or Azure error body.
    pub(super) code: String,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
    /// The bucket's region, which S3 tells with a redirect.
    pub(super) region: Option<String>,
    /// What was answered in place of a store's answer.
    pub(super) foreign: Option<String>,
    /// No answer came.
    pub(super) transport: Option<(HttpErrorKind, String)>,
}

tokio::task_local! {
    static SEEN: Arc<Mutex<Seen>>;
}

/// Runs `future` and tells what its last request saw.
pub(super) async fn witnessed<F: Future>(future: F) -> (F::Output, Seen) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let out = SEEN.scope(seen.clone(), future).await;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (out, seen)
}

/// Runs `future`, a request of object_store's, which panics where it builds a header out of what no header may hold (a
/// line break in keys that a server handed out), or where the system refuses it a thread for a name look-up.
pub(super) async fn survived<F: Future>(future: F) -> Result<F::Output> {
    panics::caught_async(future).await.map_err(|said| panicked(&said))
}

/// What [`survived`] says.
pub(super) fn panicked(said: &str) -> Error {
    if said.contains("HeaderValue") {
        return Error::new(Kind::Denied, NO_HEADER);
    }
    panics::error(said)
}

const NO_HEADER: &str = "the credentials hold a line break or another character that a request cannot carry";

/// Whether this is [`panicked`]'s word on keys that make no header.
pub(super) fn header_refused(e: &Error) -> bool {
    e.kind() == Kind::Denied && e.to_string().contains(NO_HEADER)
}

fn note(update: impl FnOnce(&mut Seen)) {
    let _ = SEEN.try_with(|seen| update(&mut seen.lock().unwrap_or_else(PoisonError::into_inner)));
}

/// Which certificates a pool needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Tls {
    /// None: the endpoint is `http://`. A machine without a CA store can then still be used.
    Unused,
    /// The system's, or `SSL_CERT_FILE`'s, and the bundle of this file (`AWS_CA_BUNDLE`).
    System(Option<std::path::PathBuf>),
}

/// Whether CompleteMultipartUpload carries `If-None-Match: *`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Complete {
    /// S3: every multipart upload of ours is create-only.
    Conditional,
    /// The other protocols have no such header there.
    Plain,
}

/// Our `HttpService`, and its own connector.
#[derive(Clone, Debug)]
pub(super) struct Witness {
    tls: Tls,
    complete: Complete,
    /// Signs anew what gets a header on its way; empty until the client's keys are known, and where requests are not signed.
    signer: Arc<OnceLock<Signer>>,
    /// Of the replica's store.
    count: Arc<Count>,
}

impl Witness {
    /// Builds a client the first time in a process, so that a missing CA store is told now.
    pub(super) fn new(tls: Tls, complete: Complete, count: Arc<Count>) -> Result<Witness> {
        static GOOD: ForkSafe<Mutex<Vec<Tls>>> = ForkSafe::new(Mutex::default);
        if !GOOD.lock().contains(&tls) {
            build(&tls)?;
            GOOD.lock().push(tls.clone());
        }
        Ok(Witness { tls, complete, signer: Arc::default(), count })
    }

    /// Whose keys sign what gets a header on its way: to be filled when the client is made.
    pub(super) fn signer(&self) -> Arc<OnceLock<Signer>> {
        self.signer.clone()
    }

    /// Adds to a request that creates an object the headers of [`with_headers`].
    async fn add_headers(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        let headers = HEADERS.try_with(Clone::clone).unwrap_or_default();
        if headers.is_empty()
            || !creates(request.method().as_str(), request.uri().query().unwrap_or_default())
        {
            return Ok(());
        }
        for (name, value) in headers {
            let value =
                HeaderValue::from_str(&value).map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
            request.headers_mut().insert(name, value);
        }
        // (A lock wants to be told which of the checksums counts.)
        for (sum, name) in [("x-amz-checksum-sha256", "SHA256"), ("x-amz-checksum-crc64nvme", "CRC64NVME")] {
            if request.headers().contains_key(sum) {
                let name = HeaderValue::from_static(name);
                request.headers_mut().insert("x-amz-sdk-checksum-algorithm", name);
            }
        }
        match self.signer.get() {
            Some(signer) => signer.sign(request).await.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e)),
            None => Ok(()),
        }
    }
}

impl HttpConnector for Witness {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Witness {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        spaces_as_percent_20(&mut request);
        self.add_headers(&mut request).await?;
        let uri = request.uri().clone();
        let host = uri.host().unwrap_or_default().to_string();
        let query = request.uri().query().unwrap_or_default();
        let completes = request.method().as_str() == "POST" && query.starts_with("uploadId=");
        if completes && self.complete == Complete::Conditional && !OVERWRITE.try_with(|o| *o).unwrap_or(false)
        {
            // (https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html).
            // Not part of the signature, which covers only the headers it names.
            request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        }
        let listing = listing(&request);
        let method = request.method().as_str().to_string();
        let about_an_object = is_about_an_object(&method, uri.path(), uri.query().unwrap_or_default());
        // (To delete costs nothing.)
        let deletes = uri.query().is_some_and(|q| q.starts_with("delete"));
        if (about_an_object && !deletes) || listing.is_some() {
            self.count.add(&method, listing.is_some());
        }
        let limit = if host.starts_with("169.254.") {
            METADATA_TIMEOUT
        } else {
            ANSWER_TIMEOUT
                + Duration::from_secs(request.body().content_length() as u64 / SLOWEST_UPLOAD_BYTES_PER_S)
        };
        note(|seen| *seen = Seen { host, ..Seen::default() });
        let client = client(&self.tls).map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let turns = turns_at(uri.authority().map_or("", |a| a.as_str()));
        let _turn = turns.acquire_owned().await.ok();
        let sent = async {
            match bandwidth::is_sent_in_pieces(request.body().content_length()) {
                true => call_in_pieces(&client, request).await,
                false => client.call(request).await,
            }
        };
        let answer = match tokio::time::timeout(limit, sent).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(limit))),
        };
        match answer {
            Ok(response) => match (look_at(response).await?, listing) {
                (response, Some(tags)) if response.status().is_success() => {
                    let (parts, body) = response.into_parts();
                    let body = body.bytes().await?;
                    let asked = Asked {
                        host: uri.host().unwrap_or_default(),
                        path: uri.path(),
                        query: uri.query().unwrap_or_default(),
                    };
                    let protocol = if tags == AZURE { Protocol::Azure } else { Protocol::S3 };
                    if let Some(what) = not_a_listing(protocol, &asked, &body) {
                        note(|seen| seen.foreign = Some(what.clone()));
                        return Err(HttpError::new(HttpErrorKind::Decode, NoStore(what)));
                    }
                    Ok(HttpResponse::from_parts(parts, without_foreign_names(body, tags).into()))
                }
                (response, None) if about_an_object && is_html(&response) => {
                    let (parts, body) = response.into_parts();
                    // Some stores call their empty answer to a PUT HTML.
                    let body = if matches!(method.as_str(), "GET" | "HEAD") {
                        None
                    } else {
                        Some(body.bytes().await?).filter(|b| !is_page(b))
                    };
                    let Some(body) = body else {
                        let what = "a web page".to_string();
                        note(|seen| seen.foreign = Some(what.clone()));
                        return Err(HttpError::new(HttpErrorKind::Decode, NoStore(what)));
                    };
                    Ok(HttpResponse::from_parts(parts, body.into()))
                }
                (response, _) => Ok(response),
            },
            Err(e) => {
                note(|seen| seen.transport = Some((e.kind(), root_cause(&e))));
                Err(e)
            }
        }
    }
}

/// As object_store's own call, with a body that takes its time.
async fn call_in_pieces(client: &reqwest::Client, request: HttpRequest) -> Result<HttpResponse, HttpError> {
    let failed = |e: reqwest::Error| {
        let kind = match () {
            () if e.is_timeout() => HttpErrorKind::Timeout,
            () if e.is_connect() => HttpErrorKind::Connect,
            () => HttpErrorKind::Interrupted,
        };
        HttpError::new(kind, e)
    };
    let (parts, body) = request.into_parts();
    let url = parts.uri.to_string().parse().map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
    let body = body.collect().await?.to_bytes();
    let mut request = reqwest::Request::new(parts.method, url);
    *request.headers_mut() = parts.headers;
    request.headers_mut().insert("content-length", HeaderValue::from(body.len()));
    *request.body_mut() = Some(reqwest::Body::wrap_stream(bandwidth::pieces(body)));
    let answer: http::Response<reqwest::Body> = client.execute(request).await.map_err(failed)?.into();
    let (parts, body) = answer.into_parts();
    Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(failed))))
}

/// Requests of this process that are under way at one host. Each takes a descriptor, of which a program with many
/// databases has few left; hosts do not wait for one another, since one of them may not answer.
const MAX_REQUESTS_PER_HOST: usize = 16;

fn turns_at(authority: &str) -> Arc<Semaphore> {
    static HOSTS: ForkSafe<Mutex<HashMap<String, Arc<Semaphore>>>> = ForkSafe::new(Mutex::default);
    let mut hosts = HOSTS.lock();
    hosts
        .entry(authority.to_string())
        .or_insert_with(|| Arc::new(Semaphore::new(MAX_REQUESTS_PER_HOST)))
        .clone()
}

tokio::task_local! {
    static OVERWRITE: bool;
}

/// Runs `future` without the condition on CompleteMultipartUpload, for a store that refuses conditions.
pub(super) async fn without_condition<F: Future>(future: F) -> F::Output {
    OVERWRITE.scope(true, future).await
}

tokio::task_local! {
    static HEADERS: Vec<(&'static str, String)>;
}

/// Runs `future` with these headers on the request of it that creates an object, or begins to in parts: for what object_store has no option
/// for.
pub(super) async fn with_headers<F: Future>(headers: Vec<(&'static str, String)>, future: F) -> F::Output {
    HEADERS.scope(headers, future).await
}

/// Whether the request creates an object (S3): a PUT of a whole one, or the beginning of an upload in parts.
fn creates(method: &str, query: &str) -> bool {
    let has = |name: &str| query.split('&').any(|p| p.split('=').next() == Some(name));
    match method {
        "PUT" => !has("partNumber") && !has("retention"),
        "POST" => has("uploads"),
        _ => false,
    }
}

/// An element of a listing, and the one in it that holds the name.
type Tags = [(&'static str, &'static str); 2];

const S3: Tags = [("Contents", "Key"), ("CommonPrefixes", "Prefix")];
const AZURE: Tags = [("Blob", "Name"), ("BlobPrefix", "Name")];

/// What a listing's answer is made of, if this asks for one.
fn listing(request: &HttpRequest) -> Option<Tags> {
    let has = |pair: &str| request.uri().query().is_some_and(|q| q.split('&').any(|p| p == pair));
    match request.method().as_str() {
        "GET" if has("list-type=2") => Some(S3),
        "GET" if has("comp=list") => Some(AZURE),
        _ => None,
    }
}

/// Requests for objects, and not for credentials.
fn is_about_an_object(method: &str, path: &str, query: &str) -> bool {
    path.ends_with(".ltx")
        || path.contains("/walrust/")
        || (method == "POST" && ["uploads", "uploadId=", "delete"].iter().any(|q| query.starts_with(q)))
}

/// HTTP 200 with HTML: nothing that we put there is of that type, and an ETag may come with a page as well.
fn is_html(response: &HttpResponse) -> bool {
    let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    response.status().is_success() && kind.trim_start().to_ascii_lowercase().starts_with("text/html")
}

/// A bucket may hold any name: `a//b`, `../x`, control characters. object_store refuses a listing that has one, as a
/// whole, so that one stray object would keep a replica from being restored. Such names are nobody's of ours: they are
/// taken out.
fn without_foreign_names(body: bytes::Bytes, tags: Tags) -> bytes::Bytes {
    xml::filtered(body, &tags, is_path)
}

/// What object_store takes for a path.
fn is_path(name: &str) -> bool {
    let name = name.strip_prefix('/').unwrap_or(name);
    let name = name.strip_suffix('/').unwrap_or(name);
    let good = |s: &str| !s.is_empty() && s != "." && s != ".." && !s.chars().any(char::is_control);
    name.is_empty() || name.split('/').all(good)
}

/// object_store signs a space in a query as `%20` and sends it as `+`, which not every server takes for the
/// same. A real plus is `%2B` by then.
fn spaces_as_percent_20(request: &mut HttpRequest) {
    let uri = request.uri().to_string();
    if let Some((path, query)) = uri.split_once('?')
        && query.contains('+')
        && let Ok(better) = format!("{path}?{}", query.replace('+', "%20")).parse()
    {
        *request.uri_mut() = better;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} instead of a store's answer")]
struct NoStore(String);

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(super) struct NoAnswer(pub(super) Duration);

async fn look_at(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let retry_after = header("retry-after").and_then(retry_after);
    let region = header("x-amz-bucket-region").map(str::to_string);
    note(|seen| {
        seen.status = Some(status);
        seen.retry_after = retry_after;
        seen.region = region;
    });
    let length = header("content-length").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    if status < 300 || length > MAX_ERROR_BODY_BYTES {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = match tokio::time::timeout(ANSWER_TIMEOUT, body.bytes()).await {
        Ok(Ok(body)) => body,
        _ => bytes::Bytes::new(),
    };
    let text = String::from_utf8_lossy(&body);
    let (code, message) = (element(&text, "Code"), element(&text, "Message"));
    note(|seen| {
        seen.code = code;
        seen.message = message;
    });
    Ok(HttpResponse::from_parts(parts, body.into()))
}

/// The text of the first `<name>` in an XML error body, one line, at most 200 characters.
fn element(text: &str, name: &str) -> String {
    one_line(&xml::text_of(text, name))
}

/// Seconds or an HTTP date (<https://www.rfc-editor.org/rfc/rfc9110#field.retry-after>).
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?.timestamp_millis();
    Some(crate::base::Timestamp(at).since(crate::base::clock::now()))
}

struct Pool {
    runtime: tokio::runtime::Id,
    tls: Tls,
    client: reqwest::Client,
}

static POOLS: ForkSafe<Mutex<Vec<Pool>>> = ForkSafe::new(Mutex::default);

/// The pool of this process, runtime and kind of TLS (I-HTTP-1, I-HTTP-2).
fn client(tls: &Tls) -> Result<reqwest::Client> {
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|_| Error::new(Kind::Bug, "a remote store was used outside of an I/O runtime"))?;
    let runtime = runtime.id();
    let mut pools = POOLS.lock();
    let found = pools.iter().position(|p| p.runtime == runtime && p.tls == *tls);
    let pool = match found {
        Some(i) => pools.remove(i),
        None => Pool { runtime, tls: tls.clone(), client: build(tls)? },
    };
    let client = pool.client.clone();
    pools.push(pool);
    if pools.len() > MAX_POOLS {
        pools.remove(0);
    }
    Ok(client)
}

/// Drops the pools of a runtime that is about to end.
pub(super) fn forget(runtime: tokio::runtime::Id) {
    POOLS.lock().retain(|p| p.runtime != runtime);
}

fn build(tls: &Tls) -> Result<reqwest::Client> {
    certificates::install_provider();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("walrust/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        // Descriptors are the program's: few that wait for work, and not for long.
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(IDLE_TIMEOUT);
    match tls {
        Tls::Unused => builder = builder.tls_certs_only([]),
        Tls::System(None) => {
            if let Some(all) = certificates::hidden_by_an_empty_variable() {
                let all = all.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
                builder = builder.tls_certs_only(all.collect::<Vec<_>>());
            }
        }
        Tls::System(Some(bundle)) => {
            let pem = std::fs::read(bundle).map_err(|e| Error::io("read AWS_CA_BUNDLE", bundle, e))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| {
                Error::config(format!("AWS_CA_BUNDLE {}: {}", bundle.display(), root_cause(&e)))
            })?;
            builder = builder.tls_certs_merge(certificates);
        }
    }
    builder.build().map_err(|e| {
        Error::new(
            Kind::Config,
            format!(
                "cannot set up TLS: {}; install the system's CA certificates (ca-certificates) or set SSL_CERT_FILE to a PEM bundle",
                root_cause(&e)
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let at = chrono::DateTime::from_timestamp_millis(crate::base::clock::now().0 + 60_000).unwrap();
        let wait = retry_after(&at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap();
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60), "{wait:?}");
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn names_that_are_no_paths_are_taken_out_of_a_listing() {
        let tags = [("Contents", "Key"), ("CommonPrefixes", "Prefix")];
        let item = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let page = |keys: &[&str]| {
            let items: String = keys.iter().map(|k| item(k)).collect();
            format!(
                "<ListBucketResult><Prefix>app/</Prefix>{items}<CommonPrefixes><Prefix>app/0000/</Prefix></CommonPrefixes></ListBucketResult>"
            )
        };
        let good = ["app/a", "app/b c", "app/&amp;", "app/ä&#228;", "app/", "app/...", "app/a..b"];
        let all = [
            "app/a",
            "app/../x",
            "app/b c",
            "app//x",
            "..",
            "app/&#46;&#46;/x",
            "app/&#x2e;&#x2E;",
            "app/&amp;",
            "app/ä&#228;",
            "app/&#10;",
            "app/\u{7}",
            "app/./x",
            "app/",
            "app/&#0;",
            "app/&nonsense;",
            "app/...",
            "app/a..b",
        ];
        let cleaned = without_foreign_names(page(&all).into(), tags);
        assert_eq!(std::str::from_utf8(&cleaned).unwrap(), page(&good));
        let untouched = bytes::Bytes::from(page(&good));
        assert_eq!(without_foreign_names(untouched.clone(), tags), untouched);
        for odd in ["", "<Contents>", "<Contents><Key>../x", "</Contents>", "no xml"] {
            assert_eq!(without_foreign_names(odd.as_bytes().into(), tags), odd.as_bytes());
        }
    }

    #[test]
    fn error_bodies() {
        let xml = "<Error><Code>SlowDown</Code><Message>Please\nreduce</Message></Error>";
        assert_eq!(
            (element(xml, "Code").as_str(), element(xml, "Message").as_str()),
            ("SlowDown", "Please reduce")
        );
        assert_eq!(element("<Code>never closed", "Code"), "");
    }
}
