//! The remote kinds, and memory, through object_store. Knows its types; nothing above this file does.

use super::error::{Place, Verb, classify, may_have_happened};
use super::http::{ANSWER_TIMEOUT, NoAnswer, Seen, panicked, survived, without_condition, witnessed};
use super::{Body, ByteStream, Digest32, ObjectInfo, StoreKind, Version};
use crate::base::{Error, Kind, Result, Timestamp, panics};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use std::future::Future;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Part size of multipart uploads: one part is in memory at a time. S3 allows 10,000 parts of 5 MiB or
/// more (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
const PART: u64 = 8 << 20;
const MAX_PARTS: u64 = 9_000;

/// What travels in a new object's metadata.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tags {
    pub(super) put_id: u64,
    pub(super) sha256: Digest32,
    pub(super) timestamp: Option<Timestamp>,
}

/// Whether the store is asked to enforce create-only, or cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Create {
    /// `If-None-Match: *`
    Enforced,
    /// The store ignores or refuses the header; the caller looked first.
    Trusted,
}

/// A failed request, and what its caller may want to know beyond the error's kind.
pub(super) struct Failure {
    pub(super) error: Error,
    /// A put may have been carried out all the same.
    pub(super) may_have_happened: bool,
    /// HTTP 501.
    pub(super) not_implemented: bool,
    /// The store did not refuse and the network did not fail: object_store did not like the answer.
    pub(super) unexplained: bool,
}

impl Failure {
    /// A failure before anything was sent.
    pub(super) fn sure(error: Error) -> Failure {
        Failure { error, may_have_happened: false, not_implemented: false, unexplained: false }
    }
}

/// An object's metadata with our put id.
pub(super) struct Looked {
    pub(super) info: ObjectInfo,
    pub(super) put_id: Option<u64>,
}

/// A bucket, and the path in it.
pub(super) struct Objects {
    /// `None`: memory.
    pub(super) kind: Option<StoreKind>,
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same bucket, deleting with one request per object: for stores without DeleteObjects.
    pub(super) single_deletes: Option<Arc<dyn ObjectStore>>,
    pub(super) no_bulk: AtomicBool,
    pub(super) prefix: String,
    pub(super) place: Place,
}

fn in_verb(verb: Verb, key: &str, e: Error) -> Error {
    e.context(format!("cannot {} {}", verb.as_str(), if key.is_empty() { "/" } else { key }))
}

impl Objects {
    fn path(&self, key: &str) -> Result<Path> {
        let full = match (self.prefix.as_str(), key) {
            ("", k) => k.to_string(),
            (p, "") => p.to_string(),
            (p, k) => format!("{p}/{k}"),
        };
        Path::parse(&full)
            .map_err(|e| Error::config(format!("key '{key}': {}", super::error::one_line(&e.to_string()))))
    }

    fn key(&self, location: &Path) -> String {
        let full = location.as_ref();
        let rest = full.strip_prefix(self.prefix.as_str()).unwrap_or(full);
        rest.strip_prefix('/').unwrap_or(rest).to_string()
    }

    /// Runs one operation with its time limit and turns its failure into ours.
    async fn run<T>(
        &self,
        verb: Verb,
        key: &str,
        limit: Duration,
        future: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failure> {
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
            Err(e) => Err(Failure {
                error: in_verb(verb, key, e),
                may_have_happened: may_have_happened(&seen),
                not_implemented: false,
                unexplained: false,
            }),
        }
    }

    fn failure(&self, verb: Verb, key: &str, e: &object_store::Error, seen: &Seen) -> Failure {
        Failure {
            error: classify(verb, key, e, seen, &self.place),
            may_have_happened: may_have_happened(seen),
            not_implemented: seen.status == Some(501),
            unexplained: seen.transport.is_none() && seen.status.is_none_or(|s| s < 300),
        }
    }

    /// One PUT of a whole object.
    pub(super) async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        mode: PutMode,
        tags: Option<&Tags>,
    ) -> Result<Version, Failure> {
        let path = self.path(key).map_err(Failure::sure)?;
        let limit = ANSWER_TIMEOUT * 2 + Duration::from_secs(bytes.len() as u64 / (16 << 10));
        let options = PutOptions { mode, attributes: self.attributes(tags), ..PutOptions::default() };
        let put = self.store.put_opts(&path, PutPayload::from(bytes), options);
        self.run(Verb::Put, key, limit, put).await.map(version)
    }

    /// Streams a file up in parts. Create-only where the store can (S3); elsewhere as far as a look just
    /// before the end can tell.
    pub(super) async fn put_parts(
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
        let io = |e| Failure::sure(super::file_error("read", source, e));
        let mut file = std::fs::File::open(source).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let part = PART.max(size / MAX_PARTS + 1);
        let limit = ANSWER_TIMEOUT * 2 + Duration::from_secs(part / (16 << 10));

        let options = PutMultipartOptions { attributes: self.attributes(Some(tags)), ..Default::default() };
        let start = self.store.put_multipart_opts(&path, options);
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
            if self.kind != Some(StoreKind::S3) || create == Create::Trusted {
                match self.head(key).await {
                    Err(e) if e.is_missing() => {}
                    Err(e) => return Err(Failure::sure(e)),
                    Ok(_) => {
                        return Err(Failure::sure(Error::new(
                            Kind::Exists,
                            format!("cannot put {key}: something else is in its place"),
                        )));
                    }
                }
            }
            let complete = async {
                if create == Create::Trusted {
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

    async fn get_result(&self, key: &str, options: GetOptions) -> Result<GetResult, Failure> {
        let path = self.path(key).map_err(Failure::sure)?;
        let verb = if options.head { Verb::Head } else { Verb::Get };
        self.run(verb, key, ANSWER_TIMEOUT * 2, self.store.get_opts(&path, options)).await
    }

    /// Each store names an object's content by an ETag; a page that something else answers with has none, as a rule.
    fn is_a_stores(&self, verb: Verb, key: &str, meta: &ObjectMeta) -> Result<()> {
        if meta.e_tag.is_some() {
            return Ok(());
        }
        let why = super::error::no_store("HTTP 200 without an ETag", &self.place);
        Err(Error::new(Kind::Retry, format!("cannot {} {key}: {why}", verb.as_str())))
    }

    async fn ends_before(&self, key: &str, start: Option<u64>) -> bool {
        let Some(start) = start else { return false };
        self.head(key).await.is_ok_and(|info| start >= info.size)
    }

    /// Opens an object for reading; each piece has its own time limit.
    pub(super) async fn open(
        self: &Arc<Self>,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<(ByteStream, u64, Version)> {
        let start = range.as_ref().map(|r| r.start);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
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
        Ok((Box::pin(stream), length, version))
    }

    pub(super) async fn look(&self, key: &str) -> Result<Looked> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let result = self.get_result(key, options).await.map_err(|f| f.error)?;
        self.is_a_stores(Verb::Head, key, &result.meta)?;
        let text = |name: &str| {
            let name = self.metadata_name(name);
            result.attributes.get(&Attribute::Metadata(name.into())).map(|v| v.as_ref().to_string())
        };
        let mut info = self.info(&result.meta);
        info.sha256 = text("walrust-sha256").as_deref().and_then(crate::base::hex::digest);
        info.timestamp = text("litestream-timestamp")
            .and_then(|t| Some(Timestamp(chrono::DateTime::parse_from_rfc3339(&t).ok()?.timestamp_millis())));
        let put_id = text("walrust-put-id").and_then(|t| u64::from_str_radix(&t, 16).ok());
        Ok(Looked { info, put_id })
    }

    pub(super) async fn head(&self, key: &str) -> Result<ObjectInfo> {
        Ok(self.look(key).await?.info)
    }

    /// Objects below a folder, `limit` at most.
    pub(super) async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        let path = self.path(prefix)?;
        let mut pages = self.store.list(Some(&path));
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
        let r: object_store::Result<()> = r.map_err(|e| in_verb(Verb::List, prefix, e))?;
        r.map_err(|e| self.failure(Verb::List, prefix, &e, &seen).error)?;
        Ok(out)
    }

    pub(super) async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        let list = self.store.list_with_delimiter(Some(&path));
        let found = self.run(Verb::List, prefix, ANSWER_TIMEOUT * 4, list).await.map_err(|f| f.error)?;
        Ok(found.common_prefixes.iter().map(|p| self.key(p)).collect())
    }

    pub(super) async fn delete(&self, keys: &[String]) -> Result<()> {
        let paths = keys.iter().map(|k| self.path(k)).collect::<Result<Vec<_>>>()?;
        if !self.no_bulk.load(Ordering::Relaxed) {
            match self.delete_by(&self.store, &paths).await {
                Err((_, Some(400 | 405 | 411 | 501))) if self.single_deletes.is_some() => {
                    self.no_bulk.store(true, Ordering::Relaxed);
                }
                r => return r.map_err(|(e, _)| e),
            }
        }
        let store = self.single_deletes.as_ref().unwrap_or(&self.store);
        self.delete_by(store, &paths).await.map_err(|(e, _)| e)
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
            (Error::new(Kind::Retry, format!("cannot delete {first}: {} {why}", self.place.endpoint)), None)
        };
        match outcome {
            Err(said) if said.contains("HeaderValue") || panics::error(&said).is_retry() => {
                Err((in_verb(Verb::Delete, &first, panicked(&said)), None))
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
        if self.kind == Some(StoreKind::Azure) { name.replace('-', "") } else { name.to_string() }
    }

    fn attributes(&self, tags: Option<&Tags>) -> Attributes {
        let mut attributes = Attributes::new();
        let Some(tags) = tags else { return attributes };
        let mut set = |name: &str, value: String| {
            let name = Attribute::Metadata(self.metadata_name(name).into());
            attributes.insert(name, AttributeValue::from(value));
        };
        set("walrust-put-id", format!("{:016x}", tags.put_id));
        set("walrust-sha256", super::hex(&tags.sha256));
        if let Some(at) = tags.timestamp {
            set("litestream-timestamp", super::rfc3339_nano(at));
        }
        attributes
    }
}

fn version(r: PutResult) -> Version {
    Version { etag: r.e_tag, version: r.version }
}

/// For [`PutMode::Update`].
pub(super) fn update_version(v: &Version) -> UpdateVersion {
    UpdateVersion { e_tag: v.etag.clone(), version: v.version.clone() }
}

/// Nothing is visible of a multipart upload before it is completed.
fn not_yet(failure: Failure) -> Failure {
    Failure { may_have_happened: false, ..failure }
}
