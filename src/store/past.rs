//! A bucket as it was at a time, by the versions that it keeps. Only read.
//!
//! Of each key it is the newest version that was put by then; where that is the mark of a removal, or there is none, nothing is there. All versions below
//! the replica's path are listed once, when something is first asked for. A bucket that keeps none has only what nobody replaced or removed since:
//! what is then missing is an error of whoever reads it, as ever. Refused: to list at each question (a thousand versions a request).

use super::backend::{Backend, Create, Failure, Looked, Opened, Tags};
use super::conditions::Conditions;
use super::object::{Body, ObjectInfo, Version};
use super::xml;
use crate::address::LayoutKind;
use crate::base::{Error, Kind, Result, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// A bucket whose versions can be asked for. Errors as the verbs of [`Backend`].
#[async_trait]
pub(super) trait Versioned: Backend {
    /// All versions below the replica's path, in the order of their keys.
    async fn versions(&self) -> Result<Vec<xml::Version>>;
    /// Opens an object, or a version of it.
    async fn open_version(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        version: Option<String>,
    ) -> Result<Opened>;
    /// Looks at an object, or at a version of it.
    async fn look_at_version(&self, key: &str, version: Option<String>) -> Result<Looked>;
}

/// A replica's bucket at a time.
pub(super) struct Past {
    objects: Arc<dyn Versioned>,
    at: Timestamp,
    there: OnceCell<BTreeMap<String, xml::Version>>,
}

/// What was there at that time. Pure.
fn there_at(all: Vec<xml::Version>, at: Timestamp) -> BTreeMap<String, xml::Version> {
    let mut there: BTreeMap<String, xml::Version> = BTreeMap::new();
    for v in all.into_iter().filter(|v| v.modified <= at) {
        // (S3 tells seconds. The newest comes first in its listing: of two of one second that one counts; servers that list removals by
        // themselves say which is the latest.)
        let rank = |v: &xml::Version| (v.modified, v.is_latest);
        match there.get(&v.key) {
            Some(known) if rank(known) >= rank(&v) => {}
            _ => drop(there.insert(v.key.clone(), v)),
        }
    }
    there.retain(|_, v| v.size.is_some());
    there
}

impl Past {
    pub(super) fn new(objects: Arc<dyn Versioned>, at: Timestamp) -> Past {
        Past { objects, at, there: OnceCell::new() }
    }

    async fn there(&self) -> Result<&BTreeMap<String, xml::Version>> {
        self.there.get_or_try_init(|| async { Ok(there_at(self.objects.versions().await?, self.at)) }).await
    }

    async fn version(&self, key: &str) -> Result<Option<String>> {
        let at = self.at;
        match self.there().await?.get(key) {
            Some(v) => Ok(Some(v.id.clone()).filter(|id| !id.is_empty())),
            None => Err(Error::new(Kind::Missing, format!("cannot get {key}: it was not there at {at}"))),
        }
    }

    fn refused<T>(&self, key: &str) -> Result<T> {
        Err(Error::config(format!("cannot change {key}: what was at {} is only read", self.at)))
    }
}

#[async_trait]
impl Backend for Past {
    fn layout(&self) -> LayoutKind {
        self.objects.layout()
    }

    fn has_metadata(&self) -> bool {
        true
    }

    fn renewals(&self) -> u64 {
        self.objects.renewals()
    }

    fn endpoint(&self) -> &str {
        self.objects.endpoint()
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Opened> {
        let version = self.version(key).await?;
        self.objects.open_version(key, range, version).await
    }

    async fn look(&self, key: &str) -> Result<Looked> {
        let version = self.version(key).await?;
        self.objects.look_at_version(key, version).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<ObjectInfo>> {
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let there = self.there().await?.values().filter(|v| v.key.starts_with(&below));
        Ok(there
            .map(|v| ObjectInfo {
                key: v.key.clone(),
                size: v.size.unwrap_or(0),
                modified: v.modified,
                etag: v.etag.clone(),
                sha256: None,
                timestamp: None,
            })
            .collect())
    }

    async fn sample(&self, folder: &str, limit: usize) -> Result<Vec<ObjectInfo>> {
        let mut all = self.list(folder).await?;
        all.truncate(limit);
        Ok(all)
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        self.refused(keys.first().map_or("nothing", String::as_str))
    }

    async fn create(&self, key: &str, _: &Body, _: u64, _: &Tags, _: Create) -> Result<(), Failure> {
        self.refused(key).map_err(Failure::sure)
    }

    async fn put_over(&self, key: &str, _: Bytes) -> Result<()> {
        self.refused(key)
    }

    async fn put_if(&self, key: &str, _: Bytes, _: Option<&Version>) -> Result<Version> {
        self.refused(key)
    }

    async fn settle(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn presumed(&self) -> Conditions {
        Conditions::Held
    }

    async fn probe(&self) -> Result<Conditions> {
        Ok(Conditions::Held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_by_then_counts_and_a_removal_is_one() {
        let v = |key: &str, id: &str, at: i64, size: Option<u64>| xml::Version {
            key: key.into(),
            id: id.into(),
            modified: Timestamp(at),
            size,
            etag: None,
            is_latest: id.starts_with("last"),
        };
        let all = vec![
            v("a", "a3", 30, Some(3)),
            v("a", "a2", 20, None),
            v("a", "a1", 10, Some(1)),
            v("b", "b2", 20, Some(2)),
            v("b", "b1", 20, Some(1)),
            v("c", "null", 25, Some(9)),
            v("d", "d1", 30, Some(1)),
            v("d", "last", 30, None),
        ];
        for (at, want) in [
            (5, vec![]),
            (10, vec!["a1"]),
            (20, vec!["b2"]),
            (29, vec!["b2", "null"]),
            (30, vec!["a3", "b2", "null"]),
        ] {
            let there = there_at(all.clone(), Timestamp(at));
            assert_eq!(there.values().map(|v| v.id.as_str()).collect::<Vec<_>>(), want, "{at}");
        }
    }
}
