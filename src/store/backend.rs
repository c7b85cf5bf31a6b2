//! What a kind of store has to be able to do. A directory, an object store, memory, or a layer around one of them
//! (encryption) is one file that has these verbs; retries, put ids, the memory of conditions and faults are
//! [`super::Store`]'s and the same for all.

use super::conditions::Conditions;
use super::direct::Hold;
use super::object::{Body, ByteStream, ObjectInfo, Version, complete};
use crate::address::LayoutKind;
use crate::base::hex::Digest32;
use crate::base::{Error, Manners, Result, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::ops::Range;
use std::sync::Arc;

/// What travels with a new object: in its metadata, or (the timestamp) as a file's mtime.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    pub(super) put_id: u64,
    pub(super) sha256: Digest32,
    pub(super) timestamp: Option<Timestamp>,
    pub(super) class: Option<Arc<str>>,
    pub(super) hold: Option<Hold>,
}

impl Tags {
    pub(super) fn new(put_id: u64) -> Tags {
        Tags { put_id, sha256: [0; 32], timestamp: None, class: None, hold: None }
    }
}

/// Whether the store is asked to enforce create-only, or cannot be, or need not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Create {
    /// `If-None-Match: *`
    Enforced,
    /// The store ignores or refuses the header; the caller looked first.
    Trusted,
    /// Whatever is there is replaced.
    Over,
}

impl Create {
    /// Whether somebody has to look that nothing is there before an upload in parts ends; `ends_with_condition`: the end can bear one.
    pub(super) fn wants_a_look(self, ends_with_condition: bool) -> bool {
        match self {
            Create::Enforced => !ends_with_condition,
            Create::Trusted => true,
            Create::Over => false,
        }
    }
}

/// A failed put, and what its caller may want to know beyond the error's kind.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// It may have been carried out all the same.
    pub(super) may_have_happened: bool,
    /// The store's answer.
    pub(super) status: Option<u16>,
    /// The store did not refuse and the network did not fail: object_store did not like the answer.
    pub(super) unexplained: bool,
}

impl Failure {
    /// A failure before anything was sent.
    pub(super) fn sure(error: Error) -> Failure {
        Failure { error, may_have_happened: false, status: None, unexplained: false }
    }

    /// Whether the answer may mean that the store does not know the condition: each has its own way to say so.
    pub(super) fn may_refuse_condition(&self) -> bool {
        matches!(self.status, Some(400 | 403 | 405 | 501))
    }

    /// Whether the answer, by itself, says that a feature is missing.
    pub(super) fn names_a_missing_feature(&self) -> bool {
        matches!(self.status, Some(405 | 501))
    }
}

/// An object's metadata, with our put id if it bears one.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) info: ObjectInfo,
    pub(super) put_id: Option<u64>,
}

/// An object that was opened for reading.
pub(super) struct Opened {
    pub(super) stream: ByteStream,
    /// How many bytes the stream has.
    pub(super) length: u64,
    /// `None` where the store names none: then the content is the version.
    pub(super) version: Option<Version>,
}

/// One kind of store, at the path of one replica. Keys are relative to it and were checked (I-STORE-1).
///
/// Errors, of each verb alike: [`crate::base::Kind::Missing`] for an object that is not there; `Denied` where access
/// is refused; `Config` for what the user has to correct; `Retry` for what may pass; and what a verb names beyond that.
#[async_trait]
pub(super) trait Backend: Send + Sync {
    /// How LTX objects are named in it.
    fn layout(&self) -> LayoutKind;

    /// Whether its objects keep metadata of ours: then a put of ours is known by its put id.
    fn has_metadata(&self) -> bool;

    /// Mode and owner of the replica's files, where it has such.
    fn manners(&self) -> Option<Manners> {
        None
    }

    /// Whether a verb under way ends when nobody waits for it any more. What a thread does in a directory goes on.
    fn can_be_given_up(&self) -> bool {
        true
    }

    /// Counts how often new keys were asked for because the store refused the old ones.
    fn renewals(&self) -> u64 {
        0
    }

    /// Opens an object, or a range of it, which may end behind it. `Corrupt` if it begins behind it.
    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened>;

    /// As [`Backend::open`], of the object as it is stored, where the other one opens what is encrypted.
    async fn open_stored(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened> {
        self.open(key, range).await
    }

    /// Whether it opens what is encrypted.
    fn can_open(&self) -> bool {
        false
    }

    /// How many bytes [`Backend::open`] gives of an encrypted object of `stored` bytes; `None`: it gives them as they are.
    async fn clear_len(&self, _key: &str, _stored: u64) -> Result<Option<u64>> {
        Ok(None)
    }

    /// The bytes of a range, in the place of what `into` held; fewer if the object ends within it. Errors as [`Backend::open`].
    async fn read_into(&self, key: &str, range: Range<u64>, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        let wanted = range.end.saturating_sub(range.start);
        let mut opened = self.open(key, Some(range)).await?;
        into.reserve_exact(usize::try_from(opened.length.min(wanted)).unwrap_or(0));
        while let Some(piece) = opened.stream.next().await {
            let piece = piece?;
            if into.len() as u64 + piece.len() as u64 > opened.length {
                return complete(key, into.len() as u64 + piece.len() as u64, opened.length);
            }
            into.extend_from_slice(&piece);
        }
        complete(key, into.len() as u64, opened.length)
    }

    /// Metadata.
    async fn look(&self, key: &str) -> Result<Looked>;

    /// Every object in a folder and below, in any order.
    async fn list(&self, folder: &str) -> Result<Vec<ObjectInfo>>;

    /// How many objects one request lists, in the order of their keys and of one moment; `None` where listing has no such unit.
    fn page(&self) -> Option<usize> {
        None
    }

    /// Where it is, as far as that is not in the replica's URL: an endpoint may come from the environment.
    fn endpoint(&self) -> &str {
        ""
    }

    /// `limit` of them at most. What may not be read is passed over.
    async fn sample(&self, folder: &str, limit: usize) -> Result<Vec<ObjectInfo>>;

    /// Whether objects can be kept from removal.
    fn can_hold(&self) -> bool {
        false
    }

    /// Keeps one from removal for longer. `Config` where there is no such thing.
    async fn hold(&self, key: &str, _hold: Hold) -> Result<()> {
        Err(Error::config(format!("cannot lock {key}: only S3 keeps objects from removal")))
    }

    /// The same place as it was then, to read from; `None` where the store keeps no versions.
    fn as_of(&self, _at: Timestamp) -> Option<Arc<dyn Backend>> {
        None
    }

    /// Removes objects; those that are gone count as removed.
    async fn delete(&self, keys: &[String]) -> Result<()>;

    /// Writes an object of `length` bytes. `Exists` if something is there, unless that is to be replaced.
    async fn create(
        &self,
        key: &str,
        body: &Body,
        length: u64,
        tags: &Tags,
        create: Create,
    ) -> Result<(), Failure>;

    /// Whether an object of this length goes up in parts, whose end has a condition of its own.
    fn in_parts(&self, _body: &Body, _length: u64) -> bool {
        false
    }

    /// Aborts uploads in parts whose notes lie in `dir` and whose sources are gone. Best effort.
    async fn abort_abandoned(&self, _dir: &std::path::Path) {}

    /// Writes an object, whatever is there.
    async fn put_over(&self, key: &str, bytes: Bytes) -> Result<()>;

    /// Writes it if it is still `expected` (`None`: if it is not there). `Exists` if it is not.
    async fn put_if(&self, key: &str, bytes: Bytes, expected: Option<&Version>) -> Result<Version>;

    /// Makes durable what was found at `key`: who put it there may have failed, or ended, before that (I-STORE-4).
    async fn settle(&self, key: &str) -> Result<()>;

    /// What is known without asking.
    fn presumed(&self) -> Conditions;

    /// Finds out whether conditional puts hold.
    async fn probe(&self) -> Result<Conditions>;
}
