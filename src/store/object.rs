//! What goes into a store and comes out of it: bodies, versions, what is known of an object, keys.

use crate::base::hex::{Digest32, digits};
use crate::base::{Error, Kind, Result, Timestamp};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

/// The longest object that is read whole into memory ([`super::Store::get`]). What is read so is small by its nature:
/// lease, manifest segment, an LTX file of which the listing said so. One that is longer is not what it is taken for.
pub const WHOLE_BYTES: u64 = 4 << 20;

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
    /// Its length in bytes. Errors with [`Kind::Io`] where its file cannot be looked at, with [`Kind::Retry`] in a
    /// shortage.
    pub fn len(&self) -> Result<u64> {
        match self {
            Body::Bytes(b) => Ok(b.len() as u64),
            Body::File(p) => Ok(std::fs::metadata(p).map_err(|e| file_error("read", p, e))?.len()),
        }
    }

    /// Whether it holds nothing. Errors as [`Body::len`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// All of it.
    pub(super) fn read(&self) -> Result<Bytes> {
        match self {
            Body::Bytes(b) => Ok(b.clone()),
            Body::File(p) => Ok(std::fs::read(p).map_err(|e| file_error("read", p, e))?.into()),
        }
    }

    /// Its SHA-256, read piece by piece. Errors as [`Body::len`], for reading.
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

/// Which content an object has, for [`super::Store::put_if`]. Opaque: an ETag, a generation, a hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    pub(super) etag: Option<String>,
    pub(super) version: Option<String>,
}

impl Version {
    /// For stores that name no versions: the content itself.
    pub(super) fn of_content(bytes: &[u8]) -> Version {
        Version { etag: Some(digits(&Sha256::digest(bytes))), version: None }
    }
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
    /// From our metadata: [`super::Store::head`] only, and not for local files or what Litestream wrote.
    pub sha256: Option<Digest32>,
    /// Litestream's timestamp: from metadata ([`super::Store::head`] only); for local files the mtime, always.
    pub timestamp: Option<Timestamp>,
}

/// A failure at the caller's own file: never [`Kind::Missing`], which would speak of the replica.
pub(super) fn file_error(what: &str, path: &Path, e: std::io::Error) -> Error {
    let kind = if crate::base::is_shortage(&e) { Kind::Retry } else { Kind::Io };
    Error::new(kind, format!("cannot {what} {}", path.display())).because(e)
}

/// I-STORE-6: what a replica holds does not decide how much memory we take.
pub(super) fn small_enough(key: &str, length: u64) -> Result<()> {
    if length <= WHOLE_BYTES {
        return Ok(());
    }
    Err(Error::corrupt(format!("{key} has {length} bytes, more than such an object can have")))
}

pub(super) async fn collect(key: &str, mut stream: ByteStream, length: u64) -> Result<Bytes> {
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

/// As [`collect`], in parts of `size` bytes, the last one shorter: so much is in memory and little more.
pub(super) async fn collect_in(
    key: &str,
    mut stream: ByteStream,
    length: u64,
    size: usize,
) -> Result<Vec<Arc<[u8]>>> {
    let (mut all, mut part, mut seen) = (Vec::new(), Vec::with_capacity(size), 0);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        seen += piece.len() as u64;
        if seen > length {
            break;
        }
        let mut rest: &[u8] = &piece;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(size.saturating_sub(part.len()).max(1)));
            part.extend_from_slice(now);
            rest = later;
            if part.len() >= size {
                all.push(Arc::from(part.as_slice()));
                part.clear();
            }
        }
    }
    complete(key, seen, length)?;
    if !part.is_empty() {
        all.push(part.into());
    }
    Ok(all)
}

pub(super) fn complete(key: &str, size: u64, length: u64) -> Result<()> {
    if size == length {
        return Ok(());
    }
    Err(Error::new(Kind::Retry, format!("cannot get {key}: {size} of {length} bytes arrived")))
}

/// I-STORE-1.
pub(super) fn check_key(key: &str) -> Result<()> {
    let good = !key.is_empty()
        && key.split('/').all(|s| !s.is_empty() && s != "." && s != ".." && !s.chars().any(char::is_control));
    if good { Ok(()) } else { Err(Error::new(Kind::Bug, format!("'{key}' is not a key within a replica"))) }
}

pub(super) fn check_folder(prefix: &str) -> Result<&str> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    if !folder.is_empty() {
        check_key(folder)?;
    }
    Ok(folder)
}

/// Go's `time.RFC3339Nano` in UTC, as Litestream writes timestamps: no zeros at the end of the fraction.
pub(super) fn rfc3339_nano(at: Timestamp) -> String {
    let text = at.rfc3339();
    match text.strip_suffix('Z') {
        Some(t) if t.contains('.') => format!("{}Z", t.trim_end_matches('0').trim_end_matches('.')),
        _ => text,
    }
}
