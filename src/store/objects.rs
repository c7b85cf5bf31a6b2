//! The remote kinds, and memory, through object_store. Knows its types; nothing above this file does.
//!
//! A client keeps the keys it was given until their stated end. Where the store refuses them before that (revoked,
//! rotated, a role's session cut off), a new client asks their source again, at most once in a while
//! ([`Refusal::patience`]).

use super::backend::{Backend, Create, Failure, Looked, Opened, Tags};
use super::bandwidth;
use super::conditions::Conditions;
use super::direct::{Direct, Hold};
use super::error::{Place, Refusal, Verb, classify, may_have_happened, no_store, refusal};
use super::http::{
    ANSWER_TIMEOUT, NoAnswer, Seen, header_refused, panicked, survived, with_headers, without_condition,
    witnessed,
};
use super::object::{Body, ObjectInfo, Version, file_error, rfc3339_nano};
use super::past::{Past, Versioned};
use super::probe::{self, Condition, Conditional, Updates};
use super::xml;
use crate::address::{LayoutKind, StoreKind};
use crate::base::hex::{digest, digits};
use crate::base::{Error, Kind, Result, Timestamp, clock, panics};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use std::future::Future;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Part size of uploads whose parts go one after the other: one part is in memory at a time. Azure allows 50,000.
const PART_BYTES: u64 = 8 << 20;
const MAX_PARTS: u64 = 9_000;
/// Larger files go up in parts.
const PARTS_FROM_BYTES: u64 = 16 << 20;
/// What one listing request gives at the most: S3's limit
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>), and no more than the others'.
const PAGE_OBJECTS: usize = 1000;
/// The slowest transfer that is not taken for a dead one, in bytes a second.
pub(super) const SLOWEST_BYTES_PER_S: u64 = 16 << 10;

/// The clients of one bucket.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same bucket, deleting with one request per object: for stores without DeleteObjects.
    pub(super) single_deletes: Option<Arc<dyn ObjectStore>>,
    /// The same bucket, whose uploads in parts can be gone on with; `None`: they cannot (Azure wants metadata at their end, memory has no use for it).
    pub(super) parts: Option<Arc<dyn MultipartStore>>,
    /// The same bucket for what object_store has no verb for; S3 alone.
    pub(super) direct: Option<Arc<Direct>>,
}

/// Makes new clients, which ask for keys anew.
pub(super) type Remake = Box<dyn Fn() -> Result<Clients> + Send + Sync>;

/// A bucket, and the path in it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Objects(Arc<Bucket>);

struct Bucket {
    /// `None`: memory.
    kind: Option<StoreKind>,
    clients: Mutex<Clients>,
    /// `None`: the keys are what they are.
    remake: Option<Remake>,
    renewed: Mutex<Renewed>,
    no_bulk: AtomicBool,
    /// How many parts of an upload the store was seen to take; 0: it never refused one.
    parts_limit: AtomicU64,
    prefix: String,
    place: Place,
}

#[derive(Clone, Copy, Default)]
struct Renewed {
    times: u64,
    at: Option<Duration>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_verb(verb: Verb, key: &str, e: Error) -> Error {
    e.context(format!("cannot {} {}", verb.as_str(), if key.is_empty() { "/" } else { key }))
}

impl Objects {
    /// A bucket that `clients` reach. `no_bulk`: DeleteObjects is not to be tried.
    pub(super) fn new(
        kind: StoreKind,
        clients: Clients,
        remake: Option<Remake>,
        no_bulk: bool,
        prefix: &str,
        place: Place,
    ) -> Objects {
        Objects(Arc::new(Bucket {
            kind: Some(kind),
            clients: Mutex::new(clients),
            remake,
            renewed: Mutex::default(),
            no_bulk: AtomicBool::new(no_bulk),
            parts_limit: AtomicU64::new(0),
            prefix: prefix.to_string(),
            place,
        }))
    }

    /// A client that holds to conditions and needs no keys: memory, or a simulated one.
    pub(super) fn over(store: Arc<dyn ObjectStore>) -> Objects {
        Objects(Arc::new(Bucket {
            kind: None,
            clients: Mutex::new(Clients { store, single_deletes: None, parts: None, direct: None }),
            remake: None,
            renewed: Mutex::default(),
            no_bulk: AtomicBool::new(false),
            parts_limit: AtomicU64::new(0),
            prefix: String::new(),
            place: Place { bucket: "memory".into(), endpoint: "memory".into() },
        }))
    }

    fn client(&self) -> Arc<dyn ObjectStore> {
        locked(&self.0.clients).store.clone()
    }

    /// The store refused the keys, or may have: they are asked for again, unless that was done a moment ago.
    fn renew(&self, refusal: Refusal) {
        let (Some(remake), Some(patience)) = (&self.0.remake, refusal.patience()) else { return };
        let now = clock::uptime();
        let mut renewed = locked(&self.0.renewed);
        if renewed.at.is_some_and(|at| now.saturating_sub(at) < patience) {
            return;
        }
        // (Where no client can be made, for instance since a file is gone, the old one stays, and so does its error.)
        if let Ok(clients) = remake() {
            *locked(&self.0.clients) = clients;
            renewed.times += 1;
        }
        renewed.at = Some(now);
    }

    pub(super) fn path(&self, key: &str) -> Result<Path> {
        let full = match (self.0.prefix.as_str(), key) {
            ("", k) => k.to_string(),
            (p, "") => p.to_string(),
            (p, k) => format!("{p}/{k}"),
        };
        Path::parse(&full)
            .map_err(|e| Error::config(format!("key '{key}': {}", super::text::one_line(&e.to_string()))))
    }

    fn key(&self, location: &Path) -> String {
        let full = location.as_ref();
        let rest = full.strip_prefix(self.0.prefix.as_str()).unwrap_or(full);
        rest.strip_prefix('/').unwrap_or(rest).to_string()
    }

    /// Runs one operation with its time limit and turns its failure into ours.
    pub(super) async fn run<T>(
        &self,
        verb: Verb,
        key: &str,
        limit: Duration,
        future: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failure> {
        let _turn = if matches!(verb, Verb::Put) { bandwidth::turn().await } else { None };
        let limited = async {
            match tokio::time::timeout(limit, future).await {
                Ok(r) => r,
                Err(_) => {
                    Err(object_store::Error::Generic { store: "store", source: Box::new(NoAnswer(limit)) })
                }
            }
        };
        let (r, seen) = witnessed(survived(limited)).await;
        match r {
            Ok(r) => r.map_err(|e| self.failure(verb, key, &e, &seen)),
            Err(e) => {
                let error = in_verb(verb, key, self.survived(e));
                Err(Failure { may_have_happened: may_have_happened(&seen), ..Failure::sure(error) })
            }
        }
    }

    /// Keys that make no header are asked for again like refused ones.
    fn survived(&self, e: Error) -> Error {
        if header_refused(&e) {
            self.renew(Refusal::OfKeys);
        }
        e
    }

    fn failure(&self, verb: Verb, key: &str, e: &object_store::Error, seen: &Seen) -> Failure {
        self.renew(refusal(seen));
        Failure {
            error: classify(verb, key, e, seen, &self.0.place),
            may_have_happened: may_have_happened(seen),
            status: seen.status.filter(|_| seen.transport.is_none()),
            unexplained: seen.transport.is_none() && seen.status.is_none_or(|s| s < 300),
        }
    }

    /// One PUT of a whole object.
    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        mode: PutMode,
        tags: Option<&Tags>,
    ) -> Result<Version, Failure> {
        let path = self.path(key).map_err(Failure::sure)?;
        let limit = ANSWER_TIMEOUT * 2 + Duration::from_secs(bytes.len() as u64 / SLOWEST_BYTES_PER_S);
        let options = PutOptions { mode, attributes: self.attributes(tags), ..PutOptions::default() };
        let client = self.client();
        let put = client.put_opts(&path, PutPayload::from(bytes), options);
        let put = with_headers(headers_of(tags), put);
        let put = self.run(Verb::Put, key, limit, put).await.map(version);
        put.map_err(|f| about_a_hold(tags, f))
    }

    /// Streams a file up in parts, one after the other: where a part cannot be tried again by itself. Create-only as far as a look
    /// just before the end can tell.
    async fn put_parts(
        &self,
        key: &str,
        body: &Body,
        tags: &Tags,
        create: Create,
    ) -> Result<Version, Failure> {
        let path = self.path(key).map_err(Failure::sure)?;
        let Body::File(source) = body else {
            return self.put(key, body.read().map_err(Failure::sure)?, PutMode::Create, Some(tags)).await;
        };
        let io = |e| Failure::sure(file_error("read", source, e));
        let mut file = std::fs::File::open(source).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let part = PART_BYTES.max(size / MAX_PARTS + 1);
        let limit = ANSWER_TIMEOUT * 2 + Duration::from_secs(part / SLOWEST_BYTES_PER_S);

        let options = PutMultipartOptions { attributes: self.attributes(Some(tags)), ..Default::default() };
        let client = self.client();
        let start = client.put_multipart_opts(&path, options);
        let mut upload = self.run(Verb::Put, key, limit, start).await.map_err(not_yet)?;
        let result = async {
            let mut left = size;
            while left > 0 {
                let length = left.min(part);
                let mut bytes = Vec::new();
                let read = file.by_ref().take(length).read_to_end(&mut bytes).map_err(io)?;
                if read as u64 != length {
                    return Err(Failure::sure(Error::new(
                        Kind::Io,
                        format!("{} shrank while it was read", source.display()),
                    )));
                }
                self.run(Verb::Put, key, limit, upload.put_part(PutPayload::from(bytes)))
                    .await
                    .map_err(not_yet)?;
                left -= length;
            }
            if create.wants_a_look(self.ends_with_condition()) {
                self.look_before_the_end(key).await?;
            }
            let complete = async {
                if create != Create::Enforced {
                    without_condition(upload.complete()).await
                } else {
                    upload.complete().await
                }
            };
            self.run(Verb::Put, key, limit, complete).await.map(version)
        }
        .await;
        if result.is_err() {
            // Best effort: parts that stay behind are what a bucket's lifecycle rule is for.
            let _ = survived(tokio::time::timeout(ANSWER_TIMEOUT, upload.abort())).await;
        }
        result
    }

    pub(super) fn parts_limit(&self) -> &AtomicU64 {
        &self.0.parts_limit
    }

    /// Whether the end of an upload in parts bears a condition.
    pub(super) fn ends_with_condition(&self) -> bool {
        self.0.kind == Some(StoreKind::S3)
    }

    pub(super) async fn look_before_the_end(&self, key: &str) -> Result<(), Failure> {
        match self.look(key).await {
            Err(e) if e.is_missing() => Ok(()),
            Err(e) => Err(Failure::sure(e)),
            Ok(_) => Err(Failure::sure(Error::new(
                Kind::Exists,
                format!("cannot put {key}: something else is in its place"),
            ))),
        }
    }

    async fn get_result(&self, key: &str, options: GetOptions) -> Result<GetResult, Failure> {
        let path = self.path(key).map_err(Failure::sure)?;
        let verb = if options.head { Verb::Head } else { Verb::Get };
        let client = self.client();
        self.run(verb, key, ANSWER_TIMEOUT * 2, client.get_opts(&path, options)).await
    }

    /// Each store names an object's content by an ETag; a page that something else answers with has none, as a rule.
    fn is_a_stores(&self, verb: Verb, key: &str, meta: &ObjectMeta) -> Result<()> {
        if meta.e_tag.is_some() {
            return Ok(());
        }
        let why = no_store("HTTP 200 without an ETag", &self.0.place);
        Err(Error::new(Kind::Retry, format!("cannot {} {key}: {why}", verb.as_str())))
    }

    fn direct(&self) -> Option<Arc<Direct>> {
        locked(&self.0.clients).direct.clone()
    }

    async fn ends_before(&self, key: &str, start: Option<u64>) -> bool {
        let Some(start) = start else { return false };
        self.look(key).await.is_ok_and(|looked| start >= looked.info.size)
    }

    /// Objects below a folder, `limit` at most.
    async fn list_some(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        let path = self.path(prefix)?;
        let client = self.client();
        let mut pages = client.list(Some(&path));
        let mut out = Vec::new();
        let all = async {
            loop {
                let next = match tokio::time::timeout(ANSWER_TIMEOUT * 2, pages.try_next()).await {
                    Ok(next) => next?,
                    Err(_) => {
                        let source = Box::new(NoAnswer(ANSWER_TIMEOUT * 2));
                        return Err(object_store::Error::Generic { store: "store", source });
                    }
                };
                match next {
                    Some(meta) => out.push(self.info(&meta)),
                    None => return Ok(()),
                }
                if out.len() >= limit {
                    return Ok(());
                }
            }
        };
        let (r, seen) = witnessed(survived(all)).await;
        let r: object_store::Result<()> = r.map_err(|e| in_verb(Verb::List, prefix, self.survived(e)))?;
        r.map_err(|e| self.failure(Verb::List, prefix, &e, &seen).error)?;
        Ok(out)
    }

    async fn delete_by(
        &self,
        store: &Arc<dyn ObjectStore>,
        paths: &[Path],
    ) -> Result<(), (Error, Option<u16>)> {
        let all: Vec<object_store::Result<Path>> = paths.iter().cloned().map(Ok).collect();
        let limit = ANSWER_TIMEOUT * 2 + Duration::from_millis(paths.len() as u64 * 50);
        let results = store.delete_stream(futures_util::stream::iter(all).boxed()).collect::<Vec<_>>();
        // object_store panics on an answer that names a key which was not asked for.
        let results = panics::caught_async(tokio::time::timeout(limit, results));
        let (outcome, seen) = witnessed(results).await;
        let first = self.key(paths.first().unwrap_or(&Path::ROOT));
        let lost = |why: String| {
            (Error::new(Kind::Retry, format!("cannot delete {first}: {} {why}", self.0.place.endpoint)), None)
        };
        match outcome {
            Err(said) if said.contains("HeaderValue") || panics::error(&said).is_retry() => {
                Err((in_verb(Verb::Delete, &first, self.survived(panicked(&said))), None))
            }
            Err(_) => Err(lost("answered about other objects than asked".into())),
            Ok(Err(_)) => Err(lost(format!("gave no answer within {limit:?}"))),
            Ok(Ok(results)) => {
                let failed = results.into_iter().find_map(|r| match r {
                    Err(object_store::Error::NotFound { .. }) if seen.code != "NoSuchBucket" => None,
                    r => r.err(),
                });
                failed.map_or(Ok(()), |e| {
                    Err((self.failure(Verb::Delete, &first, &e, &seen).error, seen.status))
                })
            }
        }
    }

    fn info(&self, meta: &ObjectMeta) -> ObjectInfo {
        ObjectInfo {
            key: self.key(&meta.location),
            size: meta.size,
            modified: Timestamp(meta.last_modified.timestamp_millis()),
            etag: meta.e_tag.clone(),
            sha256: None,
            timestamp: None,
        }
    }

    /// Azure's metadata names are C# identifiers.
    fn metadata_name(&self, name: &str) -> String {
        if self.0.kind == Some(StoreKind::Azure) { name.replace('-', "") } else { name.to_string() }
    }

    pub(super) fn attributes(&self, tags: Option<&Tags>) -> Attributes {
        let mut attributes = Attributes::new();
        let Some(tags) = tags else { return attributes };
        let mut set = |name: &str, value: String| {
            let name = Attribute::Metadata(self.metadata_name(name).into());
            attributes.insert(name, AttributeValue::from(value));
        };
        set("walrust-put-id", format!("{:016x}", tags.put_id));
        set("walrust-sha256", digits(&tags.sha256));
        if let Some(at) = tags.timestamp {
            set("litestream-timestamp", rfc3339_nano(at));
        }
        if let Some(class) = &tags.class {
            attributes.insert(Attribute::StorageClass, AttributeValue::from(class.to_string()));
        }
        attributes
    }
}

#[async_trait]
impl Versioned for Objects {
    async fn versions(&self) -> Result<Vec<xml::Version>> {
        let direct = self.direct().ok_or_else(|| Error::config("only S3 keeps versions"))?;
        let root = self.path("")?;
        let prefix = if root.as_ref().is_empty() { String::new() } else { format!("{root}/") };
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            let page = direct.versions(&prefix, from.as_ref());
            let (some, next) =
                self.run(Verb::List, "", ANSWER_TIMEOUT * 2, page).await.map_err(|f| f.error)?;
            all.extend(some.into_iter().filter_map(|v| {
                let key = v.key.strip_prefix(&prefix)?.to_string();
                Some(xml::Version { key, ..v })
            }));
            match next {
                // (A server that does not get on would be asked for ever.)
                Some(next) if from.as_ref() != Some(&next) => from = Some(next),
                _ => return Ok(all),
            }
        }
    }

    async fn open_version(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        version: Option<String>,
    ) -> Result<Opened> {
        let start = range.as_ref().map(|r| r.start);
        let options = GetOptions { range: range.map(GetRange::Bounded), version, ..GetOptions::default() };
        let result = match self.get_result(key, options).await {
            Ok(result) => result,
            // Not every store answers 416, and object_store's own error for this has no public type.
            Err(f) if f.unexplained && self.ends_before(key, start).await => {
                return Err(Error::corrupt(format!(
                    "cannot get {key}: the object ends before the requested range"
                )));
            }
            Err(f) => return Err(f.error),
        };
        self.is_a_stores(Verb::Get, key, &result.meta)?;
        let length = result.range.end - result.range.start;
        let version = Version { etag: result.meta.e_tag.clone(), version: result.meta.version.clone() };
        let (this, key) = (self.clone(), key.to_string());
        let stream = futures_util::stream::unfold(result.into_stream(), |mut stream| async move {
            let next = match tokio::time::timeout(ANSWER_TIMEOUT, stream.next()).await {
                Ok(next) => next?,
                Err(_) => Err(object_store::Error::Generic {
                    store: "store",
                    source: Box::new(NoAnswer(ANSWER_TIMEOUT)),
                }),
            };
            Some((next, stream))
        });
        let stream = stream.map_err(move |e| this.failure(Verb::Get, &key, &e, &Seen::default()).error);
        Ok(Opened { stream: Box::pin(stream), length, version: Some(version) })
    }

    async fn look_at_version(&self, key: &str, version: Option<String>) -> Result<Looked> {
        let options = GetOptions { head: true, version, ..GetOptions::default() };
        let result = self.get_result(key, options).await.map_err(|f| f.error)?;
        self.is_a_stores(Verb::Head, key, &result.meta)?;
        let text = |name: &str| {
            let name = self.metadata_name(name);
            result.attributes.get(&Attribute::Metadata(name.into())).map(|v| v.as_ref().to_string())
        };
        let mut info = self.info(&result.meta);
        info.sha256 = text("walrust-sha256").as_deref().and_then(digest);
        info.timestamp = text("litestream-timestamp")
            .and_then(|t| Some(Timestamp(chrono::DateTime::parse_from_rfc3339(&t).ok()?.timestamp_millis())));
        let put_id = text("walrust-put-id").and_then(|t| u64::from_str_radix(&t, 16).ok());
        Ok(Looked { info, put_id })
    }
}

#[async_trait]
impl Backend for Objects {
    fn layout(&self) -> LayoutKind {
        match self.0.kind {
            None | Some(StoreKind::S3) => LayoutKind::LevelHex,
            _ => LayoutKind::LevelDecimal,
        }
    }

    fn has_metadata(&self) -> bool {
        true
    }

    fn renewals(&self) -> u64 {
        locked(&self.0.renewed).times
    }

    /// Each piece has its own time limit.
    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened> {
        self.open_version(key, range, None).await
    }

    async fn look(&self, key: &str) -> Result<Looked> {
        self.look_at_version(key, None).await
    }

    fn can_hold(&self) -> bool {
        self.direct().is_some()
    }

    async fn hold(&self, key: &str, hold: Hold) -> Result<()> {
        let path = self.path(key)?;
        let direct = self.direct().ok_or_else(|| Error::config(format!("cannot lock {key}: only S3 can")))?;
        let held = direct.hold(path.as_ref(), hold);
        self.run(Verb::Put, key, ANSWER_TIMEOUT * 2, held).await.map_err(|f| {
            f.error.context("cannot extend the lock (s3:PutObjectRetention, a bucket with Object Lock)")
        })
    }

    fn as_of(&self, at: Timestamp) -> Option<Arc<dyn Backend>> {
        self.direct()?;
        Some(Arc::new(Past::new(Arc::new(self.clone()), at)))
    }

    async fn list(&self, folder: &str) -> Result<Vec<ObjectInfo>> {
        self.list_some(folder, usize::MAX).await
    }

    fn page(&self) -> Option<usize> {
        Some(PAGE_OBJECTS)
    }

    fn endpoint(&self) -> &str {
        &self.0.place.endpoint
    }

    async fn sample(&self, folder: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        self.list_some(folder, limit).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let paths = keys.iter().map(|k| self.path(k)).collect::<Result<Vec<_>>>()?;
        let Clients { store, single_deletes, .. } = locked(&self.0.clients).clone();
        if !self.0.no_bulk.load(Ordering::Relaxed) {
            match self.delete_by(&store, &paths).await {
                Err((_, Some(400 | 405 | 411 | 501))) if single_deletes.is_some() => {
                    self.0.no_bulk.store(true, Ordering::Relaxed);
                }
                r => return r.map_err(|(e, _)| e),
            }
        }
        let store = single_deletes.as_ref().unwrap_or(&store);
        self.delete_by(store, &paths).await.map_err(|(e, _)| e)
    }

    fn in_parts(&self, body: &Body, length: u64) -> bool {
        length > PARTS_FROM_BYTES && matches!(body, Body::File(_))
    }

    async fn create(
        &self,
        key: &str,
        body: &Body,
        length: u64,
        tags: &Tags,
        create: Create,
    ) -> Result<(), Failure> {
        let put = if self.in_parts(body, length) {
            let parts = locked(&self.0.clients).parts.clone();
            match (parts, body) {
                (Some(client), Body::File(source)) => {
                    Box::pin(self.put_in_parts(client, key, source, tags, create)).await
                }
                _ => Box::pin(self.put_parts(key, body, tags, create)).await,
            }
        } else {
            let mode = if create == Create::Enforced { PutMode::Create } else { PutMode::Overwrite };
            self.put(key, body.read().map_err(Failure::sure)?, mode, Some(tags)).await
        };
        put.map(drop)
    }

    async fn abort_abandoned(&self, dir: &std::path::Path) {
        let client = locked(&self.0.clients).parts.clone();
        if let Some(client) = client {
            Objects::abort_abandoned(self, client, dir).await;
        }
    }

    async fn put_over(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.put(key, bytes, PutMode::Overwrite, None).await.map(drop).map_err(|f| f.error)
    }

    async fn put_if(&self, key: &str, bytes: Bytes, expected: Option<&Version>) -> Result<Version> {
        let mode = expected.map_or(PutMode::Create, |v| PutMode::Update(update_version(v)));
        self.put(key, bytes, mode, None).await.map_err(|f| f.error)
    }

    /// An object store's answer is its promise.
    async fn settle(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn presumed(&self) -> Conditions {
        if self.0.kind.is_none() { Conditions::Held } else { Conditions::Unknown }
    }

    async fn probe(&self) -> Result<Conditions> {
        if self.0.kind.is_none() {
            return Ok(Conditions::Held);
        }
        // Google's versions are numbers, so a wrong one cannot be told; it does check them.
        let updates = if self.0.kind == Some(StoreKind::Gs) { Updates::Known } else { Updates::Asked };
        let mut keys = Vec::new();
        let found = probe::conditions(self, updates, &mut keys).await;
        // Who may not delete can replicate all the same; what stays behind is a few bytes.
        let _ = self.delete(&keys).await;
        found
    }
}

#[async_trait]
impl Conditional for Objects {
    async fn put_probe(&self, key: &str, condition: Condition<'_>) -> Result<(), Failure> {
        let mode = match condition {
            Condition::None => PutMode::Overwrite,
            Condition::New => PutMode::Create,
            Condition::Still(version) => PutMode::Update(update_version(version)),
        };
        self.put(key, Bytes::from_static(b"probe"), mode, None).await.map(drop)
    }

    async fn is_there(&self, key: &str) -> Result<bool> {
        match self.look(key).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_missing() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The headers of a put that object_store has no option for.
pub(super) fn headers_of(tags: Option<&Tags>) -> Vec<(&'static str, String)> {
    tags.and_then(|t| t.hold).map(|h| h.headers().to_vec()).unwrap_or_default()
}

/// A put that was to be kept from removal, and that the store refused: why that may be.
pub(super) fn about_a_hold(tags: Option<&Tags>, mut failure: Failure) -> Failure {
    let is_refused = matches!(failure.status, Some(400 | 403 | 501));
    if is_refused && tags.is_some_and(|t| t.hold.is_some()) {
        failure.error = failure.error.context(
            "retain wants a bucket that was made with Object Lock, and the right to s3:PutObjectRetention",
        );
    }
    failure
}

pub(super) fn version(r: PutResult) -> Version {
    Version { etag: r.e_tag, version: r.version }
}

/// For [`PutMode::Update`].
fn update_version(v: &Version) -> UpdateVersion {
    UpdateVersion { e_tag: v.etag.clone(), version: v.version.clone() }
}

/// Nothing is visible of a multipart upload before it is completed.
pub(super) fn not_yet(failure: Failure) -> Failure {
    Failure { may_have_happened: false, ..failure }
}
