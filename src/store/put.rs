//! The three ways to write: create-only, over, and on condition. And the question after a lost answer or an
//! "already there": was that me?
//!
//! A conditional put that was carried out but whose answer got lost looks, on the next try, like a rival's.
//! Each call of [`Store::put_new`] therefore writes a fresh put id into the object's metadata and keeps it over
//! its tries; what it finds in its way is compared: (1) same put id: mine; (2) else same length and same
//! SHA-256 (from metadata, else read and hashed): mine, from an earlier call or before a crash: content
//! holds lineage and time, so equal content is no rival's; (3) else a rival's: [`Kind::Exists`], if it bears a put id
//! of ours or is an LTX file: nothing else proves a rival.

use super::backend::{Create, Failure, Tags};
use super::direct::Hold;
use super::door::Store;
use super::faults::{Fault, Op};
use super::object::{Body, Version, check_key};
use super::retry::Retry;
use crate::base::hex::Digest32;
use crate::base::{Error, Kind, Result, Timestamp, clock, crash, sealed};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What goes with a new object.
#[derive(Clone, Debug, Default)]
pub struct PutMeta {
    /// Litestream's timestamp: metadata, or a local file's mtime.
    pub timestamp: Option<Timestamp>,
    /// The body's SHA-256 if the caller knows it; else it is computed.
    pub sha256: Option<Digest32>,
    /// The storage class, as the store spells it; `None`: the bucket's default.
    pub class: Option<Arc<str>>,
    /// How long it is kept from removal ([`Store::can_hold`]).
    pub hold: Option<Hold>,
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

/// The length of what is put, and what travels with it. Errors as reading it does.
fn tagged(body: &Body, meta: PutMeta) -> Result<(u64, Tags)> {
    let length = body.len()?;
    let sha256 = match meta.sha256 {
        Some(known) => known,
        None => body.sha256()?,
    };
    let PutMeta { timestamp, class, hold, .. } = meta;
    Ok((length, Tags { put_id: clock::random_u64(), sha256, timestamp, class, hold }))
}

enum Found {
    Mine,
    Rival,
    Nothing,
}

impl Store {
    /// Writes a new object. Never replaces one ([`super::Conditions`] permitting). Errors: [`Kind::Exists`] if
    /// other content is there, [`Kind::Retry`] if it is not known whether it is there: call again.
    pub async fn put_new(&self, key: &str, body: impl Into<Body>, meta: PutMeta) -> Result<Put> {
        check_key(key)?;
        let body = body.into();
        let (length, tags) = tagged(&body, meta)?;
        self.tried(|_| async {
            let Err(failure) = self.create(key, &body, length, &tags).await else {
                return Ok(Put::Created);
            };
            let error = failure.error;
            crash::point("store.put_new.failed");
            if error.kind() != Kind::Exists && !failure.may_have_happened {
                return Err(error);
            }
            match self.found(key, length, &tags).await {
                Ok(Found::Mine) => self.backend().settle(key).await.map(|()| Put::AlreadyMine),
                Ok(Found::Rival) => Err(Error::new(
                    Kind::Exists,
                    format!("cannot put {key}: other content is in its place in {}", self.url()),
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
        let done = self.create_where_nothing_is(key, body, length, tags).await;
        if fault == Fault::LoseAnswer && done.is_ok() {
            let error = Error::new(Kind::Retry, format!("injected loss of the answer at {key}"));
            return Err(Failure { may_have_happened: true, ..Failure::sure(error) });
        }
        done
    }

    /// One try, with the condition where the store holds to it, else after a look. A refusal of the condition is
    /// believed only when the probe finds the same.
    async fn create_where_nothing_is(
        &self,
        key: &str,
        body: &Body,
        length: u64,
        tags: &Tags,
    ) -> Result<(), Failure> {
        let in_parts = self.backend().in_parts(body, length);
        let mut asked = false;
        loop {
            let now = clock::uptime();
            let known = *self.known();
            let enforced =
                known.conditions().keep_creations_apart() && (!in_parts || known.parts_conditional(now));
            if !enforced && self.is_append_only() {
                return Err(Failure::sure(Error::config(format!(
                    "cannot put {key}: append_only wants a store that refuses to replace an object (If-None-Match), and {} does not",
                    self.url()
                ))));
            }
            if !enforced {
                self.look_that_nothing_is(key).await?;
            }
            let create = if enforced { Create::Enforced } else { Create::Trusted };
            let failure = match self.backend().create(key, body, length, tags, create).await {
                Ok(()) => return Ok(()),
                Err(f) if enforced && !asked && f.may_refuse_condition() => f,
                Err(f) => {
                    if asked && in_parts && !enforced {
                        self.known().parts_refused(false, now);
                    }
                    return Err(f);
                }
            };
            asked = true;
            let doubt = failure.names_a_missing_feature() || known.is_hearsay();
            if doubt && known.may_doubt(now) && self.ask_conditions().await.is_err() {
                return Err(failure);
            }
            if !self.known().conditions().keep_creations_apart() {
                continue;
            }
            match () {
                // A plain put takes conditions: it is the end of the upload that does not.
                () if in_parts => self.known().parts_refused(true, clock::uptime()),
                // One more try, for the answer may have been somebody else's.
                () if failure.names_a_missing_feature() => {}
                () => return Err(failure),
            }
        }
    }

    async fn look_that_nothing_is(&self, key: &str) -> Result<(), Failure> {
        let error = match self.backend().look(key).await {
            Ok(_) => Error::new(Kind::Exists, format!("cannot put {key}: it is there")),
            Err(e) if e.is_missing() => return Ok(()),
            Err(e) => e,
        };
        Err(Failure::sure(error))
    }

    /// What lies at `key`, compared with what this call wants there.
    async fn found(&self, key: &str, length: u64, tags: &Tags) -> Result<Found> {
        let looked = match self.backend().look(key).await {
            Ok(looked) if looked.put_id == Some(tags.put_id) => return Ok(Found::Mine),
            Ok(looked) => looked,
            Err(e) if e.is_missing() => return Ok(Found::Nothing),
            Err(e) => return Err(e),
        };
        // Whether it bears what each put of ours leaves with an object; a file cannot.
        let tagged =
            !self.backend().has_metadata() || looked.put_id.is_some() || looked.info.sha256.is_some();
        let known = (looked.info.size, looked.info.sha256);
        let same = match known {
            (size, _) if size != length => false,
            (_, Some(sha256)) => sha256 == tags.sha256,
            (_, None) => {
                let (mut stream, _) = self.stored_stream(key).await?;
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

    /// A rival is proved by what it wrote. What has the place of an LTX file and is none is a page that something
    /// answered in the store's place, or somebody's mistake: looked at again later, for it is told for as long as it
    /// lasts.
    async fn refuse_no_ltx(&self, key: &str) -> Result<()> {
        const MAGIC: &[u8; 4] = b"LTX1";
        let (mut stream, _) = self.stored_stream(key).await?;
        let mut head = Vec::new();
        while head.len() < sealed::MAGIC.len()
            && let Some(piece) = stream.next().await
        {
            head.extend_from_slice(&piece?);
        }
        if head.starts_with(MAGIC) || sealed::is_sealed(&head) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Retry,
            format!(
                "cannot put {key}: what is answered for it by {} is no LTX file and no writer's",
                self.url()
            ),
        ))
    }

    /// Whether what lies at `key` are the `length` bytes of that digest, something else, or nothing. Errors: those of
    /// every verb ([`Store`]).
    pub async fn compare(&self, key: &str, length: u64, sha256: Digest32) -> Result<Holds> {
        check_key(key)?;
        let tags = Tags { sha256, ..Tags::new(clock::random_u64()) };
        let found = || self.found(key, length, &tags);
        Ok(match self.tried(|_| found()).await? {
            Found::Mine => Holds::This,
            Found::Rival => Holds::Other,
            Found::Nothing => Holds::Nothing,
        })
    }

    /// Aborts uploads that nobody goes on with: what was to be put lay in `dir`, and is gone. Best effort: what stays behind is what a
    /// bucket's lifecycle rule is for.
    pub async fn abort_abandoned(&self, dir: &std::path::Path) {
        self.backend().abort_abandoned(dir).await;
    }

    /// Whether objects can be kept from removal: S3 alone.
    pub fn can_hold(&self) -> bool {
        self.backend().can_hold()
    }

    /// Keeps an object from removal for longer. Errors: [`Kind::Config`] where the store has no such thing, or the bucket was not made for it.
    pub async fn hold(&self, key: &str, hold: Hold) -> Result<()> {
        check_key(key)?;
        self.tried(|_| self.attempt(Op::PutOver, key, self.backend().hold(key, hold))).await
    }

    /// Writes an object, replacing what is there: for the manifest. Errors: those of every verb ([`Store`]).
    pub async fn put_over(&self, key: &str, bytes: impl Into<bytes::Bytes>) -> Result<()> {
        check_key(key)?;
        self.may_change("replace", key)?;
        let bytes = bytes.into();
        self.tried(|_| self.attempt(Op::PutOver, key, self.backend().put_over(key, bytes.clone()))).await
    }

    /// Puts `body` in the place of the object at `key`, whatever that is, in parts if it is large: for `walrust_rekey`. Errors: those of every
    /// verb ([`Store`]).
    pub async fn replace(&self, key: &str, body: impl Into<Body>, meta: PutMeta) -> Result<()> {
        check_key(key)?;
        self.may_change("replace", key)?;
        let body = body.into();
        let (length, tags) = tagged(&body, meta)?;
        self.tried(|_| {
            let put = async {
                let put = self.backend().create(key, &body, length, &tags, Create::Over).await;
                put.map_err(|f| f.error)
            };
            self.attempt(Op::PutOver, key, put)
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
        self.may_change("replace", key)?;
        if !self.conditions().allow_lease() {
            return Err(Error::config(format!("{} does not hold to conditional writes", self.url())));
        }
        let bytes = bytes.into();
        self.tried(|_| async {
            let put = self.backend().put_if(key, bytes.clone(), expected);
            let error = match self.attempt(Op::PutIf, key, put).await {
                Err(e) if matches!(e.kind(), Kind::Exists | Kind::Retry) => e,
                Err(e) if matches!(e.kind(), Kind::Config | Kind::Denied) && self.known().is_hearsay() => {
                    // (The caller asks again, and then knows.)
                    drop(self.ask_conditions().await);
                    return Err(e);
                }
                done => return done,
            };
            match self.read_once(key).await {
                Ok((there, version)) if there == bytes => self.backend().settle(key).await.map(|()| version),
                _ => Err(error),
            }
        })
        .await
    }

    async fn read_once(&self, key: &str) -> Result<(bytes::Bytes, Version)> {
        self.clone().with_retry(Retry::NONE).get_versioned(key).await
    }
}
