//! A directory as a [`Backend`]: each verb of [`LocalDir`] on a blocking thread, for an fsync must not hold up the
//! other replicas' requests.

use super::backend::{Backend, Create, Failure, Looked, Opened, Tags};
use super::conditions::Conditions;
use super::local::LocalDir;
use super::object::{Body, ByteStream, ObjectInfo, Version, complete};
use crate::address::LayoutKind;
use crate::base::{Error, Kind, Manners, Result, panics};
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::File;
use std::io::{Read, Take};
use std::ops::Range;
use std::path::Path;

/// What is read from a file at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A replica's directory.
pub(super) struct Directory(LocalDir);

impl Directory {
    /// `like`: mode and owner for directories of the replica that are made; without them those of the directory above hold.
    pub(super) fn new(root: &Path, like: Option<Manners>) -> Directory {
        Directory(LocalDir::new(root, like))
    }

    async fn blocking<T, F>(&self, key: &str, verb: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&LocalDir, &str) -> Result<T> + Send + 'static,
    {
        let (dir, key) = (self.0.clone(), key.to_string());
        panics::blocking(move || verb(&dir, &key)).await?
    }
}

#[async_trait]
impl Backend for Directory {
    fn manners(&self) -> Option<Manners> {
        self.0.manners()
    }

    fn can_be_given_up(&self) -> bool {
        false
    }

    fn layout(&self) -> LayoutKind {
        LayoutKind::LevelDecimal
    }

    fn has_metadata(&self) -> bool {
        false
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened> {
        let (file, length) = self.blocking(key, move |d, k| d.open_at(k, range)).await?;
        Ok(Opened { stream: pieces(file), length, version: None })
    }

    /// (In one go, on one thread.)
    async fn read_into(&self, key: &str, range: Range<u64>, into: &mut Vec<u8>) -> Result<()> {
        let mut buffer = std::mem::take(into);
        *into = self
            .blocking(key, move |d, k| {
                buffer.clear();
                let (mut file, length) = d.open_at(k, Some(range))?;
                buffer.reserve_exact(usize::try_from(length).unwrap_or(0));
                file.read_to_end(&mut buffer).map_err(unreadable)?;
                complete(k, buffer.len() as u64, length).map(|()| buffer)
            })
            .await?;
        Ok(())
    }

    async fn look(&self, key: &str) -> Result<Looked> {
        Ok(Looked { info: self.blocking(key, LocalDir::head).await?, put_id: None })
    }

    async fn list(&self, folder: &str) -> Result<Vec<ObjectInfo>> {
        self.blocking(folder, LocalDir::list).await
    }

    async fn sample(&self, folder: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        self.blocking(folder, move |d, f| d.sample(f, limit)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let keys = keys.to_vec();
        self.blocking("", move |d, _| d.delete(&keys)).await
    }

    /// (`Create` is of no use here: where there are no links, the look and the rename are one step for this process.)
    async fn create(
        &self,
        key: &str,
        body: &Body,
        _: u64,
        tags: &Tags,
        create: Create,
    ) -> Result<(), Failure> {
        let (body, at) = (body.clone(), tags.timestamp);
        let put = move |d: &LocalDir, k: &str| match create {
            Create::Over => d.put_over(k, &body, at),
            Create::Enforced | Create::Trusted => d.put_new(k, &body, at),
        };
        let put = self.blocking(key, put).await;
        put.map_err(|error| Failure { may_have_happened: error.is_retry(), ..Failure::sure(error) })
    }

    async fn put_over(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.blocking(key, move |d, k| d.put_over(k, &Body::Bytes(bytes), None)).await
    }

    async fn put_if(&self, key: &str, bytes: Bytes, expected: Option<&Version>) -> Result<Version> {
        let expected = expected.cloned();
        self.blocking(key, move |d, k| d.put_if(k, &Body::Bytes(bytes), expected.as_ref())).await
    }

    async fn settle(&self, key: &str) -> Result<()> {
        self.blocking(key, LocalDir::settle).await
    }

    fn presumed(&self) -> Conditions {
        Conditions::Unknown
    }

    async fn probe(&self) -> Result<Conditions> {
        self.blocking("", |d, _| d.probe()).await
    }
}

fn unreadable(e: std::io::Error) -> Error {
    Error::new(Kind::Retry, "cannot read a replica file").because(e)
}

fn pieces(file: Take<File>) -> ByteStream {
    Box::pin(futures_util::stream::try_unfold(file, |mut file| async move {
        let read = panics::blocking(move || {
            let mut piece =
                Vec::with_capacity(PIECE_BYTES.min(usize::try_from(file.limit()).unwrap_or(PIECE_BYTES)));
            let n = Read::by_ref(&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
            n.map(|_| (piece, file))
        });
        match read.await {
            Ok(Ok((piece, _))) if piece.is_empty() => Ok(None),
            Ok(Ok((piece, file))) => Ok(Some((Bytes::from(piece), file))),
            Ok(Err(e)) => Err(unreadable(e)),
            Err(e) => Err(e),
        }
    }))
}
