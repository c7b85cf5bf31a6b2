//! The door to a replica's store: S3, Google Cloud Storage, Azure, a directory. object_store behind a
//! few verbs; nothing above this room names object_store, HTTP, or a cloud.
//!
//! Rules that hold:
//!
//! * I-STORE-1: keys are relative to the replica's path; no verb reaches outside of it.
//! * I-STORE-2: [`Store::put_new`] never replaces what is there, where the store enforces conditions
//!   ([`Store::conditions`]); its answer says whether *this content* is there, also when an answer was lost.
//! * I-STORE-3: an error's kind comes from types and statuses, never from texts.
//! * I-STORE-4: a put that returned `Ok` is durable: remote stores promise it, the local one syncs
//!   file and directories first.
//! * I-STORE-5: no secret in any text; each text is one line.
//! * I-STORE-6: memory is bounded by one part (8 MiB) per upload from a file, one piece per streamed download, and
//!   [`WHOLE`] for an object that is read at once, whatever length it says it has.
//!
//! Who may call it: `replica`, `ship` and above, from async code in any runtime ([`block_on`] makes one).
//! A crash leaves behind: remotely at most an incomplete multipart upload (for the bucket's lifecycle
//! rule); locally a `.walrust-tmp-…` file that nobody lists.
//!
//! Refused: writing unconditionally and looking afterwards (a rival's file would be gone by then);
//! object_store's own retries (they ignore `Retry-After` and multiply with ours) and its local store (no
//! mtime, no conditional update); a metadata-only put id (Litestream's and local files have none: content decides).

mod answer;
mod block;
mod breaker;
mod credentials;
mod error;
mod faults;
mod http;
mod local;
mod objects;
mod open;
mod put;
mod retry;
mod url;

#[cfg(test)]
#[path = "../../tests/support/fake_s3.rs"]
pub mod fake_s3;
#[cfg(test)]
mod tests;

pub use block::block_on;
pub use breaker::{Breaker, BreakerState, Change, Permit};
pub use credentials::Env;
pub use faults::{Fault, Faults, Op};
pub use put::{Holds, Put, PutMeta};
pub use retry::Retry;
pub use url::{BucketIn, LayoutKind, ReplicaUrl, StoreKind};

use crate::base::{Error, Kind, Manners, Result, Timestamp, manners, panics};
use bytes::Bytes;
use futures_util::StreamExt;
use local::LocalDir;
use objects::Objects;
use sha2::{Digest, Sha256};
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

/// A SHA-256.
pub type Digest32 = [u8; 32];

/// The longest object that is read whole into memory ([`Store::get`]). What is read so is small by its nature: lease,
/// manifest segment, an LTX file of which the listing said so. One that is longer is not what it is taken for.
pub const WHOLE: u64 = 4 << 20;

/// An object's bytes, piece by piece.
pub type ByteStream = Pin<Box<dyn futures_util::Stream<Item = Result<Bytes>> + Send>>;

/// What is to be stored.
#[derive(Clone, Debug)]
pub enum Body {
    /// From memory.
    Bytes(Bytes),
    /// From a file, which must not change meanwhile; read in parts when large.
    File(PathBuf),
}

impl Body {
    /// Its length in bytes.
    pub fn len(&self) -> Result<u64> {
        match self {
            Body::Bytes(b) => Ok(b.len() as u64),
            Body::File(p) => Ok(std::fs::metadata(p).map_err(|e| file_error("read", p, e))?.len()),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// All of it.
    fn read(&self) -> Result<Bytes> {
        match self {
            Body::Bytes(b) => Ok(b.clone()),
            Body::File(p) => Ok(std::fs::read(p).map_err(|e| file_error("read", p, e))?.into()),
        }
    }

    /// Its SHA-256, read piece by piece.
    pub fn sha256(&self) -> Result<Digest32> {
        let mut hash = Sha256::new();
        match self {
            Body::Bytes(b) => hash.update(b),
            Body::File(p) => {
                let mut file = std::fs::File::open(p).map_err(|e| file_error("read", p, e))?;
                let mut piece = vec![0; 64 << 10];
                loop {
                    let n =
                        std::io::Read::read(&mut file, &mut piece).map_err(|e| file_error("read", p, e))?;
                    match piece.get(..n) {
                        Some(read) if n > 0 => hash.update(read),
                        _ => break,
                    }
                }
            }
        }
        Ok(hash.finalize().into())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Body {
        Body::Bytes(bytes.into())
    }
}

/// Which content an object has, for [`Store::put_if`]. Opaque: an ETag, a generation, a hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    etag: Option<String>,
    version: Option<String>,
}

/// What is known of an object without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Relative to the replica.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When the store wrote it; a local file's mtime.
    pub modified: Timestamp,
    /// The store's, quotes included. `None` for local files.
    pub etag: Option<String>,
    /// From our metadata: [`Store::head`] only, and not for local files or what Litestream wrote.
    pub sha256: Option<Digest32>,
    /// Litestream's timestamp: from metadata ([`Store::head`] only); for local files the mtime, always.
    pub timestamp: Option<Timestamp>,
}

/// Whether the store holds to the conditions of conditional puts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Conditions {
    /// Not probed yet; taken for [`Conditions::Held`].
    Unknown = 0,
    /// Create-only and compare-and-swap both work.
    Held = 1,
    /// Create-only works, compare-and-swap does not: no lease.
    CreateOnly = 2,
    /// Neither (Garage ignores them, some refuse them): a look before each put is all there is, and
    /// nothing keeps two machines apart.
    Ignored = 3,
}

enum Backend {
    Local(LocalDir),
    Objects(Arc<Objects>),
}

/// A replica's store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Arc<Backend>,
    url: Arc<str>,
    retry: Retry,
    faults: Option<Arc<dyn Faults>>,
    conditions: Arc<AtomicU8>,
    /// What [`Store::in_layout`] said.
    layout: Option<LayoutKind>,
}

#[cfg(feature = "sim")]
thread_local! {
    static STAND_IN: std::cell::RefCell<Option<Store>> = const { std::cell::RefCell::new(None) };
}

impl Store {
    /// Opens the store of a replica with this process's environment. Contacts nothing. Errors with
    /// [`Kind::Config`]. Verbs retry briefly ([`Retry::BRIEF`]); see [`Store::with_retry`].
    pub fn open(url: &ReplicaUrl) -> Result<Store> {
        #[cfg(feature = "sim")]
        if let Some(s) = STAND_IN.with(|s| s.borrow().clone()) {
            return Ok(s);
        }
        Store::open_with(url, &Env::process())
    }

    /// As [`Store::open`], with other environment variables.
    pub fn open_with(url: &ReplicaUrl, env: &Env) -> Result<Store> {
        let backend = match url.dir() {
            Some(dir) => Backend::Local(LocalDir::new(dir)),
            None => Backend::Objects(Arc::new(open::open(url, env)?)),
        };
        Ok(Store::over(backend, &url.to_string()))
    }

    /// What is made in a directory takes mode and owner of the database, whose `like` are. To be said before the store is shared.
    pub fn made_like(mut self, like: Option<Manners>) -> Store {
        if let Some(Backend::Local(dir)) = Arc::get_mut(&mut self.backend) {
            dir.like = like;
        }
        self
    }

    /// Mode and owner of the files of a replica in a directory.
    pub fn manners(&self) -> Option<Manners> {
        match self.backend.as_ref() {
            Backend::Local(dir) => dir.manners(),
            Backend::Objects(_) => None,
        }
    }

    /// A store in memory, for tests and simulation. It has metadata and conditional puts.
    pub fn in_memory() -> Store {
        let objects = Objects {
            kind: None,
            store: Arc::new(object_store::memory::InMemory::new()),
            single_deletes: None,
            no_bulk: AtomicBool::new(false),
            prefix: String::new(),
            place: error::Place { bucket: "memory".into(), endpoint: "memory".into() },
        };
        Store::over(Backend::Objects(Arc::new(objects)), "memory")
    }

    /// A store over any client, as `url`, for simulation. It must hold to conditions.
    #[cfg(feature = "sim")]
    pub fn over_client(client: Arc<dyn object_store::ObjectStore>, url: &str) -> Store {
        let objects = Objects {
            kind: None,
            store: client,
            single_deletes: None,
            no_bulk: AtomicBool::new(false),
            prefix: String::new(),
            place: error::Place { bucket: "memory".into(), endpoint: "memory".into() },
        };
        Store::over(Backend::Objects(Arc::new(objects)), url)
    }

    /// What every [`Store::open`] on this thread gives from now on.
    #[cfg(feature = "sim")]
    pub fn stand_in(store: Option<Store>) {
        STAND_IN.with(|s| *s.borrow_mut() = store);
    }

    fn over(backend: Backend, url: &str) -> Store {
        let conditions = match &backend {
            Backend::Local(_) => Conditions::Held,
            Backend::Objects(o) if o.kind.is_none() => Conditions::Held,
            Backend::Objects(_) => Conditions::Unknown,
        };
        Store {
            backend: Arc::new(backend),
            url: url.into(),
            retry: Retry::BRIEF,
            faults: None,
            conditions: Arc::new(AtomicU8::new(conditions as u8)),
            layout: None,
        }
    }

    /// The same store with another policy: [`Retry::NONE`] for callers that retry themselves.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Store {
        self.retry = retry;
        self
    }

    /// The same store in trouble: see [`Faults`].
    #[must_use]
    pub fn with_faults(mut self, faults: Arc<dyn Faults>) -> Store {
        self.faults = Some(faults);
        self
    }

    /// Whether it is a directory.
    pub fn is_local(&self) -> bool {
        matches!(*self.backend, Backend::Local(_))
    }

    /// The replica's URL, canonical, without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same store, with a replica that was copied from another kind of store: see [`Store::layout`]. To read from.
    #[must_use]
    pub fn in_layout(&self, kind: LayoutKind) -> Store {
        Store { layout: Some(kind), ..self.clone() }
    }

    /// How LTX objects are named in this kind of store; in memory as in S3.
    pub fn layout(&self) -> LayoutKind {
        if let Some(kind) = self.layout {
            return kind;
        }
        match &*self.backend {
            Backend::Objects(o) if matches!(o.kind, None | Some(StoreKind::S3)) => LayoutKind::LevelHex,
            _ => LayoutKind::LevelDecimal,
        }
    }

    /// One try of one verb, through the faults.
    async fn attempt<T>(&self, op: Op, key: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
        match self.fault(op, key) {
            Fault::None => future.await,
            Fault::Fail(kind) => Err(Error::new(kind, format!("injected failure at {key}"))),
            Fault::Delay(time) => {
                tokio::time::sleep(time).await;
                future.await
            }
            Fault::LoseAnswer => {
                let _ = future.await;
                Err(Error::new(Kind::Retry, format!("injected loss of the answer at {key}")))
            }
        }
    }

    fn fault(&self, op: Op, key: &str) -> Fault {
        self.faults.as_ref().map_or(Fault::None, |f| f.next(op, key))
    }

    /// The whole object, in memory. Errors with [`Kind::Corrupt`], having read nothing, if it is longer than [`WHOLE`].
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        Ok(self.get_versioned(key).await?.0)
    }

    /// [`Store::get`], and the object's version for a later [`Store::put_if`].
    pub async fn get_versioned(&self, key: &str) -> Result<(Bytes, Version)> {
        check_key(key)?;
        self.retry
            .run(|_| {
                self.attempt(Op::Get, key, async {
                    match &*self.backend {
                        Backend::Local(dir) => {
                            let (bytes, version) = blocking(dir, key, LocalDir::get_versioned).await?;
                            Ok((bytes.into(), version))
                        }
                        Backend::Objects(o) => {
                            let (stream, length, version) = o.open(key, None).await?;
                            small_enough(key, length)?;
                            Ok((collect(key, stream, length).await?, version))
                        }
                    }
                })
            })
            .await
    }

    /// The bytes of `range`, fewer if the object ends within it. Errors with [`Kind::Corrupt`] if it
    /// ends before it.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        check_key(key)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.retry
            .run(|_| {
                let range = range.clone();
                self.attempt(Op::Get, key, async move {
                    match &*self.backend {
                        Backend::Local(dir) => {
                            Ok(blocking(dir, key, move |d, k| d.get(k, range)).await?.into())
                        }
                        Backend::Objects(o) => {
                            let (stream, length, _) = o.open(key, Some(range)).await?;
                            collect(key, stream, length).await
                        }
                    }
                })
            })
            .await
    }

    /// The object piece by piece. Only the opening is retried; each piece may still fail.
    pub async fn get_stream(&self, key: &str) -> Result<ByteStream> {
        check_key(key)?;
        self.retry.run(|_| self.attempt(Op::Get, key, self.open_stream(key))).await.map(|(stream, _)| stream)
    }

    async fn open_stream(&self, key: &str) -> Result<(ByteStream, u64)> {
        match &*self.backend {
            Backend::Local(dir) => {
                let (file, size) = blocking(dir, key, LocalDir::open).await?;
                Ok((file_stream(file), size))
            }
            Backend::Objects(o) => o.open(key, None).await.map(|(stream, size, _)| (stream, size)),
        }
    }

    /// Writes the object to the file `path`, replacing what it held, and gives its size and SHA-256. Does not
    /// sync; on an error the file holds a part.
    pub async fn get_to_file(&self, key: &str, path: &Path) -> Result<(u64, Digest32)> {
        check_key(key)?;
        self.retry
            .run(|_| {
                self.attempt(Op::Get, key, async {
                    let (mut stream, length) = self.open_stream(key).await?;
                    let mut file = manners::create_over(path).map_err(|e| file_error("create", path, e))?;
                    let mut hash = Sha256::new();
                    let mut size = 0;
                    while let Some(piece) = stream.next().await {
                        let piece = piece?;
                        hash.update(&piece);
                        size += piece.len() as u64;
                        std::io::Write::write_all(&mut file, &piece)
                            .map_err(|e| file_error("write", path, e))?;
                    }
                    complete(key, size, length)?;
                    Ok((size, hash.finalize().into()))
                })
            })
            .await
    }

    /// Size, times and our metadata of one object.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo> {
        check_key(key)?;
        self.retry
            .run(|_| {
                self.attempt(Op::Head, key, async {
                    match &*self.backend {
                        Backend::Local(dir) => blocking(dir, key, LocalDir::head).await,
                        Backend::Objects(o) => o.head(key).await,
                    }
                })
            })
            .await
    }

    /// Every object in the folder `prefix` (`""`: the whole replica) and below, sorted by key. Empty if there is no such folder.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let folder = check_folder(prefix)?;
        let mut all = self
            .retry
            .run(|_| {
                self.attempt(Op::List, folder, async {
                    match &*self.backend {
                        Backend::Local(dir) => blocking(dir, folder, LocalDir::list).await,
                        Backend::Objects(o) => o.list(folder, usize::MAX).await,
                    }
                })
            })
            .await?;
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// Some objects in the folder `prefix` and below, `limit` at most: to tell what lies there.
    pub async fn sample(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        let folder = check_folder(prefix)?;
        self.retry
            .run(|_| {
                self.attempt(Op::List, folder, async {
                    match &*self.backend {
                        Backend::Local(dir) => blocking(dir, folder, move |d, f| d.sample(f, limit)).await,
                        Backend::Objects(o) => o.list(folder, limit).await,
                    }
                })
            })
            .await
    }

    /// The folders directly in the folder `prefix`, sorted, without a slash at the end.
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let folder = check_folder(prefix)?;
        let mut all = self
            .retry
            .run(|_| {
                self.attempt(Op::List, folder, async {
                    match &*self.backend {
                        Backend::Local(dir) => blocking(dir, folder, LocalDir::folders).await,
                        Backend::Objects(o) => o.folders(folder).await,
                    }
                })
            })
            .await?;
        all.sort_unstable();
        Ok(all)
    }

    /// Removes objects; those that are gone already count as removed. After an error some may be removed.
    pub async fn delete(&self, keys: &[String]) -> Result<()> {
        let Some(first) = keys.first() else { return Ok(()) };
        keys.iter().try_for_each(|k| check_key(k))?;
        self.retry
            .run(|_| {
                self.attempt(Op::Delete, first, async {
                    match &*self.backend {
                        Backend::Local(dir) => {
                            let keys = keys.to_vec();
                            blocking(dir, "", move |d, _| d.delete(&keys)).await
                        }
                        Backend::Objects(o) => o.delete(keys).await,
                    }
                })
            })
            .await
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

/// Runs a local verb on a blocking thread: an fsync must not hold up the other replicas' requests.
async fn blocking<T, F>(dir: &LocalDir, key: &str, verb: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&LocalDir, &str) -> Result<T> + Send + 'static,
{
    let (dir, key) = (dir.clone(), key.to_string());
    panics::blocking(move || verb(&dir, &key)).await?
}

fn file_stream(file: std::fs::File) -> ByteStream {
    const PIECE: usize = 256 << 10;
    Box::pin(futures_util::stream::try_unfold(file, |mut file| async move {
        let read = panics::blocking(move || {
            let mut piece = Vec::with_capacity(PIECE);
            let n = std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, PIECE as u64), &mut piece);
            n.map(|_| (piece, file))
        });
        match read.await {
            Ok(Ok((piece, _))) if piece.is_empty() => Ok(None),
            Ok(Ok((piece, file))) => Ok(Some((Bytes::from(piece), file))),
            Ok(Err(e)) => Err(Error::new(Kind::Retry, "cannot read a replica file").because(e)),
            Err(e) => Err(e),
        }
    }))
}

/// A failure at the caller's own file: never [`Kind::Missing`], which would speak of the replica.
fn file_error(what: &str, path: &Path, e: std::io::Error) -> Error {
    let kind = if crate::base::is_shortage(&e) { Kind::Retry } else { Kind::Io };
    Error::new(kind, format!("cannot {what} {}", path.display())).because(e)
}

/// I-STORE-6: what a replica holds does not decide how much memory we take.
fn small_enough(key: &str, length: u64) -> Result<()> {
    if length <= WHOLE {
        return Ok(());
    }
    Err(Error::corrupt(format!("{key} has {length} bytes, more than such an object can have")))
}

async fn collect(key: &str, mut stream: ByteStream, length: u64) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    let mut seen = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        seen += piece.len() as u64;
        if seen > length {
            return complete(key, seen, length).map(|()| Bytes::new());
        }
        match (first.is_empty(), rest.is_empty()) {
            (true, true) => first = piece,
            (_, true) => {
                rest.extend_from_slice(&first);
                rest.extend_from_slice(&piece);
            }
            _ => rest.extend_from_slice(&piece),
        }
    }
    let all = if rest.is_empty() { first } else { rest.into() };
    complete(key, all.len() as u64, length)?;
    Ok(all)
}

fn complete(key: &str, size: u64, length: u64) -> Result<()> {
    if size == length {
        return Ok(());
    }
    Err(Error::new(Kind::Retry, format!("cannot get {key}: {size} of {length} bytes arrived")))
}

/// I-STORE-1.
fn check_key(key: &str) -> Result<()> {
    let good = !key.is_empty()
        && key.split('/').all(|s| !s.is_empty() && s != "." && s != ".." && !s.chars().any(char::is_control));
    if good { Ok(()) } else { Err(Error::new(Kind::Bug, format!("'{key}' is not a key within a replica"))) }
}

fn check_folder(prefix: &str) -> Result<&str> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    if !folder.is_empty() {
        check_key(folder)?;
    }
    Ok(folder)
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex(text: &str) -> Option<Digest32> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, b) in out.iter_mut().enumerate() {
        *b = u8::from_str_radix(text.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

/// Go's `time.RFC3339Nano` in UTC, as Litestream writes timestamps: no zeros at the end of the fraction.
fn rfc3339_nano(at: Timestamp) -> String {
    let text = at.rfc3339();
    match text.strip_suffix('Z') {
        Some(t) if t.contains('.') => format!("{}Z", t.trim_end_matches('0').trim_end_matches('.')),
        _ => text,
    }
}
