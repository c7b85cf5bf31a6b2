//! The door: a replica's store, whatever its kind.

use super::age::{Keys, Recipients};
use super::backend::{Backend, Create, Opened, Tags};
use super::bandwidth::{self, Pace};
use super::conditions::{Conditions, Known};
use super::directory::Directory;
use super::env::Env;
use super::faults::{Fault, Faults, Op};
use super::object::{
    Body, ByteStream, ObjectInfo, Version, check_folder, check_key, collect, collect_in, complete,
    file_error, small_enough,
};
use super::objects::Objects;
use super::open;
use super::opening::Opening;
use super::retry::Retry;
use crate::address::{LayoutKind, ReplicaUrl};
use crate::base::hex::Digest32;
use crate::base::sealed::is_sealed;
use crate::base::{Error, Kind, Manners, Result, Timestamp, clock, manners};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A replica's store. Cheap to clone.
///
/// Errors, of each verb alike: [`Kind::Missing`] for an object that is not there, [`Kind::Denied`] where access is
/// refused, [`Kind::Config`] for what the user has to correct (no such bucket), [`Kind::Retry`] for what may pass,
/// after the tries of its policy; [`Kind::Bug`] for a key that leads outside of the replica. Each verb names what it
/// has beyond these.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    url: Arc<str>,
    retry: Retry,
    pace: Pace,
    faults: Option<Arc<dyn Faults>>,
    known: Arc<Mutex<Known>>,
    /// What [`Store::in_layout`] said.
    layout: Option<LayoutKind>,
    /// See [`Store::append_only`].
    append_only: bool,
    /// See [`Store::sealing_for`].
    recipients: Option<Recipients>,
}

/// How the store encrypts what is put there (S3).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AtRest {
    /// `AES256`, `aws:kms`, `aws:kms:dsse` or `sse-c`; `None`: as the environment, or the bucket, says.
    pub how: Option<String>,
    /// The key in AWS's key service; `None`: the bucket's own.
    pub kms_key: Option<String>,
}

impl AtRest {
    fn vars(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        let how = self.how.clone().map(|h| ("AWS_SERVER_SIDE_ENCRYPTION", h));
        how.into_iter().chain(self.kms_key.clone().map(|k| ("AWS_SSE_KMS_KEY_ID", k)))
    }
}

#[cfg(feature = "sim")]
thread_local! {
    static STAND_IN: std::cell::RefCell<Option<Store>> = const { std::cell::RefCell::new(None) };
}

impl Store {
    /// Opens the store of a replica with this process's environment. Contacts nothing. Errors with
    /// [`Kind::Config`]. Verbs retry briefly ([`Retry::BRIEF`]); see [`Store::with_retry`].
    pub fn open(url: &ReplicaUrl) -> Result<Store> {
        Store::open_for(url, None)
    }

    /// As [`Store::open`], for a database whose mode and owner what is made in a directory takes. Errors as that one.
    pub fn open_for(url: &ReplicaUrl, like: Option<Manners>) -> Result<Store> {
        Store::open_encrypting(url, like, &AtRest::default())
    }

    /// As [`Store::open_for`], whose objects the store encrypts so. Errors as that one.
    pub fn open_encrypting(url: &ReplicaUrl, like: Option<Manners>, at_rest: &AtRest) -> Result<Store> {
        #[cfg(feature = "sim")]
        if let Some(s) = STAND_IN.with(|s| s.borrow().clone()) {
            return Ok(s);
        }
        Store::open_like(url, &Env::process().with(at_rest.vars()), like)
    }

    /// As [`Store::open`], with other environment variables. Errors as that one.
    pub fn open_with(url: &ReplicaUrl, env: &Env) -> Result<Store> {
        Store::open_like(url, env, None)
    }

    /// Mode and owner of the files of a replica in a directory.
    pub fn manners(&self) -> Option<Manners> {
        self.backend.manners()
    }

    fn open_like(url: &ReplicaUrl, env: &Env, like: Option<Manners>) -> Result<Store> {
        let backend: Arc<dyn Backend> = match url.dir() {
            Some(dir) => Arc::new(Directory::new(dir, like)),
            None => Arc::new(open::open(url, env)?),
        };
        let backend = match env.get("WALRUST_IDENTITY") {
            Some(path) => Arc::new(Opening::new(backend, Arc::new(Keys::of_file(path)))),
            None => backend,
        };
        Ok(Store::over(backend, &url.to_string()))
    }

    /// A store in memory, for tests and simulation. It has metadata and conditional puts.
    pub fn in_memory() -> Store {
        let client = Arc::new(object_store::memory::InMemory::new());
        Store::over(Arc::new(Objects::over(client)), "memory")
    }

    /// A store over any client, as `url`, for simulation. It must hold to conditions.
    #[cfg(feature = "sim")]
    pub fn over_client(client: Arc<dyn object_store::ObjectStore>, url: &str) -> Store {
        Store::over(Arc::new(Objects::over(client)), url)
    }

    /// What every [`Store::open`] on this thread gives from now on.
    #[cfg(feature = "sim")]
    pub fn stand_in(store: Option<Store>) {
        STAND_IN.with(|s| *s.borrow_mut() = store);
    }

    fn over(backend: Arc<dyn Backend>, url: &str) -> Store {
        Store {
            known: Arc::new(Mutex::new(Known::new(backend.presumed()))),
            backend,
            url: url.into(),
            retry: Retry::BRIEF,
            pace: Pace::AtOnce,
            faults: None,
            layout: None,
            append_only: false,
            recipients: None,
        }
    }

    /// The same store with another policy: [`Retry::NONE`] for callers that retry themselves.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Store {
        self.retry = retry;
        self
    }

    /// The same store, whose uploads are of another pace.
    #[must_use]
    pub fn with_pace(mut self, pace: Pace) -> Store {
        self.pace = pace;
        self
    }

    /// The same store in trouble: see [`Faults`].
    #[must_use]
    pub fn with_faults(mut self, faults: Arc<dyn Faults>) -> Store {
        self.faults = Some(faults);
        self
    }

    /// The same store for a writer that only creates (I-STORE-7): each verb that would replace or remove something is refused here, and nothing
    /// is sent. What is known of the store's conditions it finds out anew, by what such a writer may ask.
    #[must_use]
    pub fn append_only(mut self) -> Store {
        self.known = Arc::new(Mutex::new(Known::new(Conditions::Unknown)));
        self.append_only = true;
        self
    }

    /// The same store for a writer that encrypts each LTX file for these recipients, or none. It is the writer that does so: what is put here
    /// is put as it is.
    #[must_use]
    pub fn sealing_for(mut self, recipients: Option<Recipients>) -> Store {
        self.recipients = recipients;
        self
    }

    /// For whom LTX files are to be encrypted before they are put.
    pub fn recipients(&self) -> Option<&Recipients> {
        self.recipients.as_ref()
    }

    /// The same place as it was at that time, to read from. Errors with [`Kind::Config`] where the store keeps no versions.
    pub fn as_of(&self, at: Timestamp) -> Result<Store> {
        let Some(backend) = self.backend.as_of(at) else {
            return Err(Error::config(format!(
                "{} cannot be read as it was: only S3 keeps the versions of a bucket; name a point instead",
                self.url
            )));
        };
        let known = Arc::new(Mutex::new(Known::new(Conditions::Held)));
        Ok(Store { backend, known, ..self.clone() })
    }

    /// Whether [`Store::append_only`] was said.
    pub fn is_append_only(&self) -> bool {
        self.append_only
    }

    /// I-STORE-7. Errors with [`Kind::Config`] where this store is only added to.
    pub(super) fn may_change(&self, what: &str, key: &str) -> Result<()> {
        if !self.append_only {
            return Ok(());
        }
        Err(Error::config(format!(
            "cannot {what} {key}: this writer of {} is append_only, and only creates objects; a janitor does it with other credentials (walrust policy)",
            self.url
        )))
    }

    /// The replica's URL, canonical, without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether a verb under way ends when nobody waits for it any more.
    pub fn can_be_given_up(&self) -> bool {
        self.backend.can_be_given_up()
    }

    /// The same store, with a replica that was copied from another kind of store: see [`Store::layout`]. To read from.
    #[must_use]
    pub fn in_layout(&self, kind: LayoutKind) -> Store {
        Store { layout: Some(kind), ..self.clone() }
    }

    /// Whether its objects are files of this machine, or are mounted as such: a request costs no way there and back.
    pub fn is_near(&self) -> bool {
        self.backend.layout() == LayoutKind::LevelDecimal
    }

    /// How LTX objects are named in this kind of store; in memory as in S3.
    pub fn layout(&self) -> LayoutKind {
        self.layout.unwrap_or_else(|| self.backend.layout())
    }

    /// One try of one verb, through the faults.
    pub(super) async fn attempt<T>(
        &self,
        op: Op,
        key: &str,
        future: impl Future<Output = Result<T>>,
    ) -> Result<T> {
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

    pub(super) fn fault(&self, op: Op, key: &str) -> Fault {
        self.faults.as_ref().map_or(Fault::None, |f| f.next(op, key))
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What is known of the store's conditions.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries as often as the policy says; and all over once, if the store refused the keys and others were asked for.
    pub(super) async fn tried<T, F, Fut>(&self, mut operation: F) -> Result<T>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let renewals = self.backend.renewals();
        bandwidth::at(self.pace, async {
            match self.retry.run(&mut operation).await {
                Err(e) if e.kind() == Kind::Denied && self.backend.renewals() != renewals => {
                    self.retry.run(&mut operation).await
                }
                done => done,
            }
        })
        .await
    }

    /// The whole object, in memory. Errors with [`Kind::Corrupt`], having read nothing, if it is longer than
    /// [`super::WHOLE_BYTES`].
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        Ok(self.get_versioned(key).await?.0)
    }

    /// [`Store::get`], and the object's version for a later [`Store::put_if`]. Errors as that one.
    pub async fn get_versioned(&self, key: &str) -> Result<(Bytes, Version)> {
        check_key(key)?;
        self.tried(|_| {
            self.attempt(Op::Get, key, async {
                let Opened { stream, length, version } = self.backend.open(key, None).await?;
                small_enough(key, length)?;
                let bytes = collect(key, stream, length).await?;
                let version = version.unwrap_or_else(|| Version::of_content(&bytes));
                Ok((bytes, version))
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
        self.tried(|_| {
            let range = range.clone();
            self.attempt(Op::Get, key, async move {
                let opened = self.backend.open(key, Some(range)).await?;
                collect(key, opened.stream, opened.length).await
            })
        })
        .await
    }

    /// [`Store::get_range`] in parts of `size` bytes, the last one shorter, each by itself. Errors as that one.
    pub async fn get_range_in(&self, key: &str, range: Range<u64>, size: usize) -> Result<Vec<Arc<[u8]>>> {
        check_key(key)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.tried(|_| {
            let range = range.clone();
            self.attempt(Op::Get, key, async move {
                let opened = self.backend.open(key, Some(range)).await?;
                collect_in(key, opened.stream, opened.length, size).await
            })
        })
        .await
    }

    /// [`Store::get_range`] into a buffer that was used before: what is read of a large object range by range asks the system for no memory
    /// each time. Errors as that one.
    pub async fn get_range_into(&self, key: &str, range: Range<u64>, buffer: Vec<u8>) -> Result<Vec<u8>> {
        check_key(key)?;
        let buffer = Mutex::new(buffer);
        self.tried(|_| {
            let (range, buffer) = (range.clone(), &buffer);
            self.attempt(Op::Get, key, async move {
                let taken = || std::mem::take(&mut *buffer.lock().unwrap_or_else(PoisonError::into_inner));
                let mut bytes = taken();
                let read = self.backend.read_into(key, range, &mut bytes).await;
                if read.is_err() {
                    *buffer.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(&mut bytes);
                }
                read.map(|()| bytes)
            })
        })
        .await
    }

    /// The object piece by piece. Each piece may fail.
    async fn open_stream(&self, key: &str) -> Result<(ByteStream, u64)> {
        self.backend.open(key, None).await.map(|o| (o.stream, o.length))
    }

    /// The same, as it is stored.
    pub(super) async fn stored_stream(&self, key: &str) -> Result<(ByteStream, u64)> {
        self.backend.open_stored(key, None).await.map(|o| (o.stream, o.length))
    }

    /// Whether what is encrypted can be read: an identity was given.
    pub fn can_open(&self) -> bool {
        self.backend.can_open()
    }

    /// Whether what is put here cannot be read here: it is encrypted, and there is no identity.
    pub fn is_closed(&self) -> bool {
        self.recipients.is_some() && !self.can_open()
    }

    /// How many bytes are read of an object of `stored` bytes, if it is encrypted and can be opened; `None`: as many as are stored.
    /// Errors: those of every verb, and [`Kind::Corrupt`] for a header that is damaged.
    pub async fn clear_len(&self, key: &str, stored: u64) -> Result<Option<u64>> {
        check_key(key)?;
        self.tried(|_| self.attempt(Op::Get, key, self.backend.clear_len(key, stored))).await
    }

    /// Whether an object is encrypted, by its first bytes. Errors: those of every verb.
    pub async fn is_sealed(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        self.tried(|_| {
            self.attempt(Op::Get, key, async {
                let opened = self.backend.open_stored(key, Some(0..32)).await?;
                collect(key, opened.stream, opened.length).await.map(|head| is_sealed(&head))
            })
        })
        .await
    }

    /// Size and SHA-256 of an object as it is stored, all of which is read. Errors: those of every verb.
    pub async fn stored_sum(&self, key: &str) -> Result<(u64, Digest32)> {
        check_key(key)?;
        self.tried(|_| {
            self.attempt(Op::Get, key, async {
                let (mut stream, length) = self.stored_stream(key).await?;
                let (mut hash, mut size) = (Sha256::new(), 0);
                while let Some(piece) = stream.next().await {
                    let piece = piece?;
                    hash.update(&piece);
                    size += piece.len() as u64;
                }
                complete(key, size, length)?;
                Ok((size, hash.finalize().into()))
            })
        })
        .await
    }

    /// Writes the object to the file `path`, replacing what it held, and gives its size and SHA-256. Does not
    /// sync; on an error the file holds a part. Errors with [`Kind::Io`] where the file cannot be written.
    pub async fn get_to_file(&self, key: &str, path: &Path) -> Result<(u64, Digest32)> {
        check_key(key)?;
        self.tried(|_| {
            self.attempt(Op::Get, key, async {
                let (mut stream, length) = self.open_stream(key).await?;
                let mut file = manners::create_over(path).map_err(|e| file_error("create", path, e))?;
                let mut hash = Sha256::new();
                let mut size = 0;
                while let Some(piece) = stream.next().await {
                    let piece = piece?;
                    hash.update(&piece);
                    size += piece.len() as u64;
                    std::io::Write::write_all(&mut file, &piece).map_err(|e| file_error("write", path, e))?;
                }
                complete(key, size, length)?;
                Ok((size, hash.finalize().into()))
            })
        })
        .await
    }

    /// Writes to `path` the age file, for `recipients`, of what the age file at `key` holds, and gives its size and SHA-256. It is synced; what
    /// it holds lies nowhere in the clear (I-AGE-5). Errors with [`Kind::Corrupt`] where the identity is not its, or a byte is not as it was;
    /// with [`Kind::Io`] where the file cannot be written.
    pub async fn reseal(&self, key: &str, recipients: &Recipients, path: &Path) -> Result<(u64, Digest32)> {
        check_key(key)?;
        self.tried(|_| {
            self.attempt(Op::Get, key, async {
                let (mut stream, length) = self.open_stream(key).await?;
                let file = manners::create_over(path).map_err(|e| file_error("create", path, e))?;
                let (mut sealing, mut size) = (recipients.sealing(&file, key)?, 0);
                while let Some(piece) = stream.next().await {
                    let piece = piece?;
                    size += piece.len() as u64;
                    sealing.add(&piece)?;
                }
                complete(key, size, length)?;
                let sealed = sealing.finish()?;
                file.sync_all().map_err(|e| file_error("sync", path, e))?;
                Ok(sealed)
            })
        })
        .await
    }

    /// Size, times and our metadata of one object. Errors: those of every verb.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo> {
        check_key(key)?;
        self.tried(|_| {
            self.attempt(Op::Head, key, async { self.backend.look(key).await.map(|looked| looked.info) })
        })
        .await
    }

    /// Every object in the folder `prefix` (`""`: the whole replica) and below, sorted by key. Empty if there is no
    /// such folder. Errors: those of every verb, but `Missing`.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let folder = check_folder(prefix)?;
        let listed = self.tried(|_| self.attempt(Op::List, folder, self.backend.list(folder))).await;
        let mut all = listed.map_err(|e| e.context(&self.url))?;
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// Some objects in the folder `prefix` and below, `limit` at most: to tell what lies there. Errors: those of every
    /// verb, but `Missing`.
    pub async fn sample(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        let folder = check_folder(prefix)?;
        let listed = self.tried(|_| self.attempt(Op::List, folder, self.backend.sample(folder, limit))).await;
        listed.map_err(|e| e.context(&self.url))
    }

    /// Every object of the replica, sorted by key, if one request can tell; `None` if there are more, or the store has no such
    /// request. Errors as [`Store::list`].
    pub async fn list_in_one(&self) -> Result<Option<Vec<ObjectInfo>>> {
        let Some(page) = self.backend.page() else { return Ok(None) };
        // (As many as a page holds: whether there are more would be another request.)
        let mut all = self.sample("", page).await?;
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok((all.len() < page).then_some(all))
    }

    /// Removes objects; those that are gone already count as removed. After an error some may be removed.
    pub async fn delete(&self, keys: &[String]) -> Result<()> {
        let Some(first) = keys.first() else { return Ok(()) };
        keys.iter().try_for_each(|k| check_key(k))?;
        self.may_change("delete", first)?;
        self.tried(|_| self.attempt(Op::Delete, first, self.backend.delete(keys))).await
    }

    /// What is known about the store's conditional puts; [`Store::probe_conditional`] finds out.
    pub fn conditions(&self) -> Conditions {
        match self.known().conditions() {
            // What an update on condition would replace is not this writer's to replace.
            Conditions::Held if self.append_only => Conditions::CreateOnly,
            known => known,
        }
    }

    /// Where the replica is: its URL, and the endpoint, which may come from the environment.
    pub fn address(&self) -> String {
        format!("{} at {}", self.url, self.backend.endpoint())
    }

    /// What an earlier process found out about conditional puts at this [`Store::address`], `age` ago. What the store answers later
    /// may contradict it; then it is asked.
    pub fn recall(&self, conditions: Conditions, age: Duration) {
        // (Another kind of writer asked another question.)
        if self.append_only {
            return;
        }
        self.known().recall(conditions, age, clock::uptime());
    }

    /// What this process has asked the store about conditional puts, for [`Store::recall`]; `None` if it has not.
    pub fn asked(&self) -> Option<Conditions> {
        self.known().asked().filter(|_| !self.append_only)
    }

    /// Whether conditional puts hold. Answered from memory; asked of the store the first time, and again when a "no"
    /// is old: with small objects under `walrust/` that are created twice, updated with a wrong version, and removed.
    ///
    /// Errors with [`Kind::Retry`] also where the store answers now this, now that.
    pub async fn probe_conditional(&self) -> Result<Conditions> {
        if !self.known().is_due(clock::uptime()) {
            return Ok(self.conditions());
        }
        let probed = self.ask_conditions().await;
        match self.conditions() {
            Conditions::Unknown => probed,
            // It was a "no" before, and stays one until something else is found out.
            known => Ok(probed.unwrap_or(known)),
        }
    }

    /// The same, from the store itself.
    pub(super) async fn ask_conditions(&self) -> Result<Conditions> {
        let probed = match self.append_only {
            true => self.ask_creation().await,
            false => self.tried(|_| self.backend.probe()).await,
        };
        let mut known = self.known();
        match &probed {
            Ok(found) => known.learn(*found, clock::uptime()),
            Err(_) => known.put_off(clock::uptime()),
        }
        probed
    }
}

impl Store {
    /// Whether creations are kept apart, by an object that is there for good: it is created, and then cannot be created again. So nothing is
    /// left behind that somebody would have to remove.
    async fn ask_creation(&self) -> Result<Conditions> {
        let body = Body::Bytes(Bytes::from_static(APPEND_ONLY_MARK));
        let tags = Tags { sha256: body.sha256()?, ..Tags::new(0) };
        let length = APPEND_ONLY_MARK.len() as u64;
        for _ in 0..2 {
            let create = || self.backend.create(APPEND_ONLY_KEY, &body, length, &tags, Create::Enforced);
            let asked = self.tried(|_| async { create().await.map_err(|f| f.error) }).await;
            match asked {
                Ok(()) => {}
                // (Some servers say of a new name that it is taken.)
                Err(e) if e.kind() == Kind::Exists => {
                    return self.head(APPEND_ONLY_KEY).await.map(|_| Conditions::CreateOnly);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Conditions::Ignored)
    }
}

/// What [`Store::append_only`] leaves in a replica: its readers know by it how its manifest is written.
pub const APPEND_ONLY_KEY: &str = "walrust/append-only.json";
const APPEND_ONLY_MARK: &[u8] = b"{\"walrust_append_only\":1}\n";

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}
