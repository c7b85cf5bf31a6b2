//! A layer around a kind of store: who has an identity reads LTX files that are age files as if they were in the clear. Files in the
//! clear pass through it as they are. Nothing is encrypted here: what is uploaded was before (`ship`).
//!
//! Sizes that are listed stay those of the objects; what an object has in the clear is asked for ([`Backend::clear_len`]), and costs one
//! request for its first bytes, which ranges of it need as well and which are kept.
//!
//! Rules
//! * I-AGE-4 No byte of an encrypted object is given out but of a chunk that proved itself and its number by its tag, and the end of an
//!   object is given out as its end only if its last chunk says that it is: what was changed, moved or cut off is [`crate::base::Kind::Corrupt`].
//! * I-AGE-5 What was opened lies on no disk but where the user wants it: with an identity nothing goes to the readers' cache
//!   (`reader::view`). No identity is in a URL, a setting or a text.

use super::age::{self, Keys};
use super::backend::{Backend, Create, Failure, Looked, Opened, Tags};
use super::conditions::Conditions;
use super::direct::Hold;
use super::object::{Body, ObjectInfo, Version, collect};
use crate::address::LayoutKind;
use crate::base::sealed::is_sealed;
use crate::base::{Error, Manners, Result, Timestamp, lock};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Bytes at the beginning of an object that are fetched for its head: enough for five recipients.
const FIRST: u64 = 1 << 10;
/// Heads that are kept, of about 500 bytes each.
const MOST_HEADS: usize = 4096;
/// Chunks of a stream that are opened at once.
const AT_ONCE: u64 = 16;

/// The head of an age file; `None` where the object is in the clear.
type Head = Option<Bytes>;

pub(super) struct Opening {
    inner: Arc<dyn Backend>,
    keys: Arc<Keys>,
    heads: Mutex<BTreeMap<String, Head>>,
}

impl Opening {
    pub(super) fn new(inner: Arc<dyn Backend>, keys: Arc<Keys>) -> Opening {
        Opening { inner, keys, heads: Mutex::default() }
    }

    async fn head(&self, key: &str) -> Result<Head> {
        if let Some(known) = lock(&self.heads).get(key) {
            return Ok(known.clone());
        }
        let mut head = None;
        for first in [FIRST, age::MOST_HEADER] {
            let opened = self.inner.open(key, Some(0..first)).await?;
            let is_all = opened.length < first;
            let begin = collect(key, opened.stream, opened.length).await?;
            if !is_sealed(&begin) {
                break;
            }
            if let Some(len) = age::head_len(&begin) {
                head = Some(begin.slice(..len));
                break;
            }
            if is_all || first == age::MOST_HEADER {
                return Err(Error::corrupt(format!(
                    "{key}: it is encrypted, and its header is damaged or cut off"
                )));
            }
        }
        let mut heads = lock(&self.heads);
        if heads.len() >= MOST_HEADS {
            heads.clear();
        }
        heads.insert(key.to_string(), head.clone());
        Ok(head)
    }

    /// An object may have been put anew since (`walrust rekey`).
    fn forget(&self, key: &str) {
        lock(&self.heads).remove(key);
    }

    async fn range(&self, key: &str, head: &Bytes, range: Range<u64>) -> Result<Opened> {
        let chunks = age::chunks_of(&range);
        let from = age::stored_start(chunks.start, head.len());
        let to = age::stored_start(chunks.end, head.len());
        // One byte more tells whether the object ends there.
        let opened = self.inner.open(key, Some(from..to + 1)).await?;
        let sealed = collect(key, opened.stream, opened.length).await?;
        let is_end = sealed.len() as u64 <= to - from;
        let some = sealed.slice(..sealed.len().min(usize::try_from(to - from).unwrap_or(usize::MAX)));
        let (keys, name, head) = (self.keys.clone(), key.to_string(), head.clone());
        let clear = opened_by(keys, name, head, chunks.start, some, is_end).await?;
        let skipped = usize::try_from(range.start - age::clear_start(chunks.start)).unwrap_or(usize::MAX);
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if skipped >= clear.len() {
            return Err(Error::corrupt(format!(
                "cannot get {key}: the object ends before the requested range"
            )));
        }
        let clear = Bytes::from(clear);
        let part = clear.slice(skipped..clear.len().min(skipped.saturating_add(wanted)));
        let length = part.len() as u64;
        Ok(Opened {
            stream: Box::pin(futures_util::stream::iter([Ok(part)])),
            length,
            version: opened.version,
        })
    }

    /// All of an object, opened while it comes.
    async fn all(&self, key: &str) -> Result<Opened> {
        let Opened { mut stream, length, version } = self.inner.open(key, None).await?;
        let mut begin: Vec<u8> = Vec::new();
        while (begin.len() as u64) < age::MOST_HEADER {
            let enough = begin.len() >= 32 && (!is_sealed(&begin) || age::head_len(&begin).is_some());
            match if enough { None } else { stream.next().await } {
                Some(piece) => begin.extend_from_slice(&piece?),
                None => break,
            }
        }
        if !is_sealed(&begin) {
            let begin = futures_util::stream::iter([Ok(Bytes::from(begin))]);
            return Ok(Opened { stream: Box::pin(begin.chain(stream)), length, version });
        }
        let Some(len) = age::head_len(&begin) else {
            return Err(Error::corrupt(format!(
                "{key}: it is encrypted, and its header is damaged or cut off"
            )));
        };
        let rest = begin.split_off(len);
        let coming = Coming {
            keys: self.keys.clone(),
            key: key.to_string(),
            head: begin.into(),
            stream: Some(stream),
            waiting: rest,
            next: 0,
        };
        let stream = futures_util::stream::unfold(Some(coming), |coming| async move {
            let mut coming = coming?;
            match coming.next().await {
                Ok(Some((clear, true))) => Some((Ok(clear), None)),
                Ok(Some((clear, false))) => Some((Ok(clear), Some(coming))),
                Ok(None) => None,
                Err(e) => Some((Err(e), None)),
            }
        });
        Ok(Opened { stream: Box::pin(stream), length: age::clear_len(length, len), version })
    }
}

/// A thread that may take its time: a range is some milliseconds of work.
async fn opened_by(
    keys: Arc<Keys>,
    key: String,
    head: Bytes,
    first: u64,
    sealed: Bytes,
    is_end: bool,
) -> Result<Vec<u8>> {
    if sealed.len() as u64 <= age::stored_start(2, 0) {
        return keys.open(&key, &head, first, &sealed, is_end);
    }
    crate::base::panics::blocking(move || keys.open(&key, &head, first, &sealed, is_end)).await?
}

/// An age file that comes piece by piece.
struct Coming {
    keys: Arc<Keys>,
    key: String,
    head: Bytes,
    /// `None`: it has ended.
    stream: Option<super::object::ByteStream>,
    waiting: Vec<u8>,
    next: u64,
}

impl Coming {
    /// The next chunks in the clear, and whether they are the last.
    async fn next(&mut self) -> Result<Option<(Bytes, bool)>> {
        let some = usize::try_from(age::stored_start(AT_ONCE, 0)).unwrap_or(usize::MAX);
        // (More than that, so that what is opened as not the last is not.)
        while self.waiting.len() <= some {
            let Some(stream) = &mut self.stream else { break };
            match stream.next().await {
                Some(piece) => self.waiting.extend_from_slice(&piece?),
                None => self.stream = None,
            }
        }
        let is_end = self.waiting.len() <= some;
        let rest = if is_end { Vec::new() } else { self.waiting.split_off(some) };
        let sealed = Bytes::from(std::mem::replace(&mut self.waiting, rest));
        let first = self.next;
        self.next += AT_ONCE;
        let clear =
            opened_by(self.keys.clone(), self.key.clone(), self.head.clone(), first, sealed, is_end).await?;
        Ok(Some((clear.into(), is_end)))
    }
}

/// Whether what lies at a key is encrypted where anything is.
fn may_be_sealed(key: &str) -> bool {
    key.ends_with(".ltx")
}

#[async_trait]
impl Backend for Opening {
    fn layout(&self) -> LayoutKind {
        self.inner.layout()
    }

    fn has_metadata(&self) -> bool {
        self.inner.has_metadata()
    }

    fn manners(&self) -> Option<Manners> {
        self.inner.manners()
    }

    fn can_be_given_up(&self) -> bool {
        self.inner.can_be_given_up()
    }

    fn renewals(&self) -> u64 {
        self.inner.renewals()
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened> {
        if !may_be_sealed(key) {
            return self.inner.open(key, range).await;
        }
        let Some(range) = range else { return self.all(key).await };
        let Some(head) = self.head(key).await? else { return self.inner.open(key, Some(range)).await };
        match self.range(key, &head, range.clone()).await {
            Err(e) if e.is_corrupt() => {
                self.forget(key);
                match self.head(key).await? {
                    Some(now) if now != head => self.range(key, &now, range).await,
                    _ => Err(e),
                }
            }
            opened => opened,
        }
    }

    async fn open_stored(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened> {
        self.inner.open(key, range).await
    }

    fn can_open(&self) -> bool {
        true
    }

    async fn clear_len(&self, key: &str, stored: u64) -> Result<Option<u64>> {
        if !may_be_sealed(key) {
            return Ok(None);
        }
        Ok(self.head(key).await?.map(|head| age::clear_len(stored, head.len())))
    }

    async fn look(&self, key: &str) -> Result<Looked> {
        self.inner.look(key).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(folder).await
    }

    fn page(&self) -> Option<usize> {
        self.inner.page()
    }

    fn endpoint(&self) -> &str {
        self.inner.endpoint()
    }

    async fn sample(&self, folder: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        self.inner.sample(folder, limit).await
    }

    fn can_hold(&self) -> bool {
        self.inner.can_hold()
    }

    async fn hold(&self, key: &str, hold: Hold) -> Result<()> {
        self.inner.hold(key, hold).await
    }

    fn as_of(&self, at: Timestamp) -> Option<Arc<dyn Backend>> {
        let inner = self.inner.as_of(at)?;
        Some(Arc::new(Opening::new(inner, self.keys.clone())))
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        keys.iter().for_each(|key| self.forget(key));
        self.inner.delete(keys).await
    }

    async fn create(
        &self,
        key: &str,
        body: &Body,
        length: u64,
        tags: &Tags,
        create: Create,
    ) -> Result<(), Failure> {
        self.forget(key);
        self.inner.create(key, body, length, tags, create).await
    }

    fn in_parts(&self, body: &Body, length: u64) -> bool {
        self.inner.in_parts(body, length)
    }

    async fn abort_abandoned(&self, dir: &Path) {
        self.inner.abort_abandoned(dir).await;
    }

    async fn put_over(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.forget(key);
        self.inner.put_over(key, bytes).await
    }

    async fn put_if(&self, key: &str, bytes: Bytes, expected: Option<&Version>) -> Result<Version> {
        self.inner.put_if(key, bytes, expected).await
    }

    async fn settle(&self, key: &str) -> Result<()> {
        self.inner.settle(key).await
    }

    fn presumed(&self) -> Conditions {
        self.inner.presumed()
    }

    async fn probe(&self) -> Result<Conditions> {
        self.inner.probe().await
    }
}
