//! The three ways to write: create-only, over, and on condition. And the question after a lost answer or an
//! "already there": was that me?
//!
//! A conditional put that was carried out but whose answer got lost looks, on the next try, like a rival's.
//! Each call of [`Store::put_new`] therefore writes a fresh put id into the object's metadata and keeps it over
//! its tries; what it finds in its way is compared: (1) same put id: mine; (2) else same length and same
//! SHA-256 (from metadata, else read and hashed): mine, from an earlier call or before a crash: content
//! holds lineage and time, so equal content is no rival's; (3) else a rival's: [`Kind::Exists`], if it bears a put id of ours or is an
//! LTX file: nothing else proves a rival.

use super::objects::{Create, Failure, Tags, update_version};
use super::{
    Backend, Body, Conditions, Digest32, Fault, LocalDir, Op, Store, StoreKind, Version, blocking, check_key,
};
use crate::base::{Error, Kind, Result, Timestamp, clock, crash};
use futures_util::StreamExt;
use object_store::PutMode;
use sha2::{Digest, Sha256};
use std::sync::atomic::Ordering;

/// Larger files go up in parts.
const PARTS_FROM: u64 = 16 << 20;

/// What goes with a new object.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutMeta {
    /// Litestream's timestamp: metadata, or a local file's mtime.
    pub timestamp: Option<Timestamp>,
    /// The body's SHA-256 if the caller knows it; else it is computed.
    pub sha256: Option<Digest32>,
}

/// What became of a create-only put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Put {
    /// Written now.
    Created,
    /// It was there with this very content: an earlier try of ours had succeeded.
    AlreadyMine,
}

/// What lies at a key, compared with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// The same bytes.
    This,
    /// Others.
    Other,
    /// Nothing.
    Nothing,
}

enum Found {
    Mine,
    Rival,
    Nothing,
}

impl Store {
    /// Writes a new object. Never replaces one ([`Conditions`] permitting). Errors: [`Kind::Exists`] if
    /// other content is there, [`Kind::Retry`] if it is not known whether it is there: call again.
    pub async fn put_new(&self, key: &str, body: impl Into<Body>, meta: PutMeta) -> Result<Put> {
        check_key(key)?;
        let body = body.into();
        let length = body.len()?;
        let sha256 = match meta.sha256 {
            Some(known) => known,
            None => body.sha256()?,
        };
        let tags = Tags { put_id: clock::random_u64(), sha256, timestamp: meta.timestamp };
        self.retry
            .run(|_| async {
                let Err(failure) = self.create(key, &body, length, &tags).await else {
                    return Ok(Put::Created);
                };
                let error = failure.error;
                crash::point("store.put_new.failed");
                if error.kind() != Kind::Exists && !failure.may_have_happened {
                    return Err(error);
                }
                match self.found(key, length, &tags).await {
                    Ok(Found::Mine) => self.settle(key).await.map(|()| Put::AlreadyMine),
                    Ok(Found::Rival) => Err(Error::new(
                        Kind::Exists,
                        format!("cannot put {key}: other content is in its place in {}", self.url),
                    )),
                    // S3 answers 409 while two creations race, and neither may have won yet.
                    Ok(Found::Nothing) if error.kind() == Kind::Exists => Err(Error::new(
                        Kind::Retry,
                        format!("cannot put {key}: another write to it is under way"),
                    )),
                    Ok(Found::Nothing) => Err(error),
                    Err(look) if error.kind() == Kind::Exists => Err(look),
                    Err(_) => Err(error),
                }
            })
            .await
    }

    async fn create(&self, key: &str, body: &Body, length: u64, tags: &Tags) -> Result<(), Failure> {
        let fault = self.fault(Op::PutNew, key);
        match fault {
            Fault::Fail(kind) => {
                let error = Error::new(kind, format!("injected failure at {key}"));
                return Err(Failure::sure(error));
            }
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::None | Fault::LoseAnswer => {}
        }
        let done = match &*self.backend {
            Backend::Local(dir) => {
                let (body, at) = (body.clone(), tags.timestamp);
                let put = blocking(dir, key, move |d, k| d.put_new(k, &body, at)).await;
                put.map_err(|error| Failure { may_have_happened: error.is_retry(), ..Failure::sure(error) })
            }
            Backend::Objects(_) => self.create_object(key, body, length, tags).await,
        };
        if fault == Fault::LoseAnswer && done.is_ok() {
            let error = Error::new(Kind::Retry, format!("injected loss of the answer at {key}"));
            return Err(Failure { may_have_happened: true, ..Failure::sure(error) });
        }
        done
    }

    async fn create_object(&self, key: &str, body: &Body, length: u64, tags: &Tags) -> Result<(), Failure> {
        let Backend::Objects(objects) = &*self.backend else { return Ok(()) };
        loop {
            let create =
                if self.conditions() == Conditions::Ignored { Create::Trusted } else { Create::Enforced };
            if create == Create::Trusted {
                match objects.head(key).await {
                    Ok(_) => {
                        return Err(Failure::sure(Error::new(
                            Kind::Exists,
                            format!("cannot put {key}: it is there"),
                        )));
                    }
                    Err(e) if e.is_missing() => {}
                    Err(e) => return Err(Failure::sure(e)),
                }
            }
            let done = if length > PARTS_FROM && matches!(body, Body::File(_)) {
                objects.put_parts(key, body, tags, create).await
            } else {
                let mode = if create == Create::Enforced { PutMode::Create } else { PutMode::Overwrite };
                objects.put(key, body.read().map_err(Failure::sure)?, mode, Some(tags)).await
            };
            match done {
                // A store without conditional puts (501) can only be looked at first.
                Err(f) if f.not_implemented && create == Create::Enforced => {
                    self.remember(Conditions::Ignored)
                }
                done => return done.map(|_| ()),
            }
        }
    }

    /// What lies at `key`, compared with what this call wants there.
    async fn found(&self, key: &str, length: u64, tags: &Tags) -> Result<Found> {
        // Whether it bears what each put of ours leaves with an object; a file cannot.
        let mut tagged = true;
        let known = match &*self.backend {
            Backend::Local(dir) => match blocking(dir, key, LocalDir::head).await {
                Ok(info) => (info.size, None),
                Err(e) if e.is_missing() => return Ok(Found::Nothing),
                Err(e) => return Err(e),
            },
            Backend::Objects(o) => match o.look(key).await {
                Ok(looked) if looked.put_id == Some(tags.put_id) => return Ok(Found::Mine),
                Ok(looked) => {
                    tagged = looked.put_id.is_some() || looked.info.sha256.is_some();
                    (looked.info.size, looked.info.sha256)
                }
                Err(e) if e.is_missing() => return Ok(Found::Nothing),
                Err(e) => return Err(e),
            },
        };
        let same = match known {
            (size, _) if size != length => false,
            (_, Some(sha256)) => sha256 == tags.sha256,
            (_, None) => {
                let (mut stream, _) = self.open_stream(key).await?;
                let mut hash = Sha256::new();
                while let Some(piece) = stream.next().await {
                    hash.update(&piece?);
                }
                let there: Digest32 = hash.finalize().into();
                there == tags.sha256
            }
        };
        if !same && !tagged && key.ends_with(".ltx") {
            self.refuse_no_ltx(key).await?;
        }
        Ok(if same { Found::Mine } else { Found::Rival })
    }

    /// A rival is proved by what it wrote. What has the place of an LTX file and is none is a page that something answered in the
    /// store's place, or somebody's mistake: looked at again later, for it is told for as long as it lasts.
    async fn refuse_no_ltx(&self, key: &str) -> Result<()> {
        const MAGIC: &[u8; 4] = b"LTX1";
        let (mut stream, _) = self.open_stream(key).await?;
        let mut head = Vec::new();
        while head.len() < MAGIC.len()
            && let Some(piece) = stream.next().await
        {
            head.extend_from_slice(&piece?);
        }
        if head.starts_with(MAGIC) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Retry,
            format!(
                "cannot put {key}: what is answered for it by {} is no LTX file and no writer's",
                self.url
            ),
        ))
    }

    /// What was found there as ours was put there by a try that failed, or by a process that ended, perhaps before it was durable
    /// (I-STORE-4).
    async fn settle(&self, key: &str) -> Result<()> {
        match &*self.backend {
            Backend::Local(dir) => blocking(dir, key, LocalDir::settle).await,
            Backend::Objects(_) => Ok(()),
        }
    }

    /// Whether what lies at `key` are the `length` bytes of that digest, something else, or nothing.
    pub async fn compare(&self, key: &str, length: u64, sha256: Digest32) -> Result<Holds> {
        check_key(key)?;
        let tags = Tags { put_id: clock::random_u64(), sha256, timestamp: None };
        let found = || self.found(key, length, &tags);
        Ok(match self.retry.run(|_| found()).await? {
            Found::Mine => Holds::This,
            Found::Rival => Holds::Other,
            Found::Nothing => Holds::Nothing,
        })
    }

    /// Writes an object, replacing what is there: for the manifest.
    pub async fn put_over(&self, key: &str, bytes: impl Into<bytes::Bytes>) -> Result<()> {
        check_key(key)?;
        let bytes = bytes.into();
        self.retry
            .run(|_| {
                self.attempt(Op::PutOver, key, async {
                    match &*self.backend {
                        Backend::Local(dir) => {
                            let body = Body::Bytes(bytes.clone());
                            blocking(dir, key, move |d, k| d.put_over(k, &body)).await
                        }
                        Backend::Objects(o) => {
                            match o.put(key, bytes.clone(), PutMode::Overwrite, None).await {
                                Ok(_) => Ok(()),
                                Err(f) => Err(f.error),
                            }
                        }
                    }
                })
            })
            .await
    }

    /// Writes an object if it is still as `expected` (`None`: if it is not there), and gives its new version: for the
    /// lease. Errors: [`Kind::Exists`] if something else is there; [`Kind::Config`] where the store does
    /// not hold to conditions. Content must be unique to the call, for that is how a lost answer is settled.
    pub async fn put_if(
        &self,
        key: &str,
        bytes: impl Into<bytes::Bytes>,
        expected: Option<&Version>,
    ) -> Result<Version> {
        check_key(key)?;
        if matches!(self.conditions(), Conditions::Ignored | Conditions::CreateOnly) {
            return Err(Error::config(format!("{} does not hold to conditional writes", self.url)));
        }
        let bytes = bytes.into();
        self.retry
            .run(|_| async {
                let error = match self.attempt(Op::PutIf, key, self.put_if_once(key, &bytes, expected)).await
                {
                    Err(e) if matches!(e.kind(), Kind::Exists | Kind::Retry) => e,
                    done => return done,
                };
                match self.read_once(key).await {
                    Ok((there, version)) if there == bytes => self.settle(key).await.map(|()| version),
                    _ => Err(error),
                }
            })
            .await
    }

    async fn put_if_once(
        &self,
        key: &str,
        bytes: &bytes::Bytes,
        expected: Option<&Version>,
    ) -> Result<Version> {
        match &*self.backend {
            Backend::Local(dir) => {
                let (body, expected) = (Body::Bytes(bytes.clone()), expected.cloned());
                blocking(dir, key, move |d, k| d.put_if(k, &body, expected.as_ref())).await
            }
            Backend::Objects(o) => {
                let mode = expected.map_or(PutMode::Create, |v| PutMode::Update(update_version(v)));
                o.put(key, bytes.clone(), mode, None).await.map_err(|f| f.error)
            }
        }
    }

    async fn read_once(&self, key: &str) -> Result<(bytes::Bytes, Version)> {
        self.clone().with_retry(super::Retry::NONE).get_versioned(key).await
    }

    /// What is known about the store's conditional puts; [`Store::probe_conditional`] finds out.
    pub fn conditions(&self) -> Conditions {
        match self.conditions.load(Ordering::Relaxed) {
            1 => Conditions::Held,
            2 => Conditions::CreateOnly,
            3 => Conditions::Ignored,
            _ => Conditions::Unknown,
        }
    }

    fn remember(&self, conditions: Conditions) {
        self.conditions.store(conditions as u8, Ordering::Relaxed);
    }

    /// Finds out, once per store, whether conditional puts hold: creates a small object under `walrust/`
    /// twice, updates it with a wrong version, and removes it. Three puts and a delete.
    pub async fn probe_conditional(&self) -> Result<Conditions> {
        if self.conditions() != Conditions::Unknown {
            return Ok(self.conditions());
        }
        let Backend::Objects(objects) = &*self.backend else { return Ok(Conditions::Held) };
        let key = format!("walrust/probe-{:016x}", clock::random_u64());
        let put = async |text: &'static str, mode: PutMode| {
            objects.put(&key, bytes::Bytes::from_static(text.as_bytes()), mode, None).await
        };
        let found = self
            .retry
            .run(|_| async {
                match put("1", PutMode::Create).await {
                    Ok(_) => {}
                    Err(f) if f.not_implemented => return Ok(Conditions::Ignored),
                    // From an earlier try of this loop: the name is new.
                    Err(f) if f.error.kind() == Kind::Exists => {}
                    Err(f) => return Err(f.error),
                }
                match put("2", PutMode::Create).await {
                    Err(f) if f.error.kind() == Kind::Exists => {}
                    Ok(_) => return Ok(Conditions::Ignored),
                    Err(f) => return Err(f.error),
                }
                // Google's versions are numbers, and it does check them.
                if objects.kind == Some(StoreKind::Gs) {
                    return Ok(Conditions::Held);
                }
                let wrong =
                    Version { etag: Some("\"00000000000000000000000000000000\"".into()), version: None };
                match put("3", PutMode::Update(update_version(&wrong))).await {
                    Err(f) if f.error.kind() == Kind::Exists => Ok(Conditions::Held),
                    Err(f) if f.not_implemented => Ok(Conditions::CreateOnly),
                    Ok(_) => Ok(Conditions::CreateOnly),
                    Err(f) => Err(f.error),
                }
            })
            .await;
        let removed = objects.delete(std::slice::from_ref(&key)).await;
        let found = found?;
        removed?;
        self.remember(found);
        Ok(found)
    }
}
