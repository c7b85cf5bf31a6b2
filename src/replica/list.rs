//! What lies where: the databases under a URL, and the LTX files of one replica.
//!
//! Rules: a directory is a replica if LTX files lie in it as `layout` has them; nothing else is opened. Per database two headers are
//! read (100 bytes each) for its times; per file nothing that the manifest tells. Refused: an index object of all databases, which would be
//! wrong from the first copied bucket on.

use super::inventory::FileInfo;
use super::labels;
use super::layout::{FileId, split_root};
use super::manifest::Manifest;
use super::place::{self, Found, There};
use super::plan::restorable;
use super::probe::{AskMetadata, Probed, probe};
use crate::base::{Error, Kind, Result, Timestamp, TxId};
use crate::ltx::{HEADER_LEN, Header};
use crate::store::{LayoutKind, ReplicaUrl, Store, hex};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;

/// Small reads at once.
const PARALLEL: usize = 32;

/// One database under a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRow {
    /// Its path below the URL; the URL's own last part if it lies there itself.
    pub name: String,
    /// Its replica's URL.
    pub replica: String,
    /// Full copies.
    pub snapshots: u64,
    /// LTX files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Oldest restorable TXID; `None` if nothing is restorable.
    pub min_txid: Option<TxId>,
    /// Newest restorable TXID.
    pub max_txid: Option<TxId>,
    /// Time of the oldest restorable state.
    pub first_time: Option<Timestamp>,
    /// Time of the newest.
    pub last_time: Option<Timestamp>,
}

/// One LTX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// Level, first and last TXID.
    pub id: FileId,
    /// Object size.
    pub bytes: u64,
    /// Header timestamp; the store's time if the header cannot be read.
    pub time: Timestamp,
    /// Pages in it, if it can be read.
    pub pages: Option<u32>,
    /// Database size in pages after it.
    pub commit_pages: Option<u32>,
    /// SHA-256 in hex, if the manifest or the object's metadata tells.
    pub sha256: Option<String>,
    /// Key below the replica's URL.
    pub key: String,
}

/// The databases at and below `url`, whose store is `store`. One listing of everything below it.
pub async fn list(store: &Store, url: &ReplicaUrl) -> Result<Vec<DatabaseRow>> {
    let own = store.layout();
    let mut found: BTreeMap<String, (LayoutKind, Vec<FileInfo>)> = BTreeMap::new();
    let objects = store.list("").await?;
    // A copied one (I-PLACE-2) only where none lies as this kind of store has it.
    for kind in [own, place::other(own)] {
        let mut of_kind: BTreeMap<String, Vec<FileInfo>> = BTreeMap::new();
        for o in &objects {
            if let Some((root, id)) = split_root(kind, &o.key) {
                of_kind.entry(root.to_string()).or_default().push(FileInfo::listed(id, o.size, o.modified));
            }
        }
        for (root, files) in of_kind {
            found.entry(root).or_insert((kind, files));
        }
    }
    if found.is_empty() {
        let there = place::judge(own, objects.iter().map(|o| o.key.as_str()));
        if let There::Litestream03 | There::Litestream03Below(_) | There::Spool | There::Within = there
            && let Some(why) = there.refusal(store.url())
        {
            return Err(Error::new(Kind::Missing, why));
        }
    }
    futures_util::stream::iter(found)
        .map(|(root, (kind, files))| async move { row(store, url, kind, &root, &files).await })
        .buffered(PARALLEL)
        .try_collect()
        .await
}

async fn row(
    store: &Store,
    url: &ReplicaUrl,
    kind: LayoutKind,
    root: &str,
    files: &[FileInfo],
) -> Result<DatabaseRow> {
    let states = restorable(files);
    let (first, last) = (states.first_key_value(), states.last_key_value());
    let time = async |state: Option<(&TxId, &Timestamp)>| -> Result<Option<Timestamp>> {
        let Some((txid, listed)) = state else { return Ok(None) };
        let Some(f) = files.iter().find(|f| f.max == *txid) else { return Ok(Some(*listed)) };
        let key = if root.is_empty() { f.id().key(kind) } else { format!("{root}/{}", f.id().key(kind)) };
        match store.get_range(&key, 0..HEADER_LEN as u64).await {
            Ok(b) => {
                let header = b.as_ref().try_into().ok().and_then(|b| Header::decode(b).ok());
                Ok(Some(header.map_or(*listed, |h| h.timestamp)))
            }
            Err(e) if e.is_missing() || e.is_corrupt() => Ok(Some(*listed)),
            Err(e) => Err(e),
        }
    };
    Ok(DatabaseRow {
        name: if root.is_empty() { url.name().to_string() } else { root.to_string() },
        replica: url.child(root)?.to_string(),
        snapshots: files.iter().filter(|f| f.min == TxId(1)).count() as u64,
        files: files.len() as u64,
        bytes: files.iter().map(|f| f.bytes).sum(),
        min_txid: first.map(|(t, _)| *t),
        max_txid: last.map(|(t, _)| *t),
        first_time: time(first).await?,
        last_time: time(last).await?,
    })
}

/// The LTX files of one replica, ordered by level and TXID.
pub async fn files(store: &Store) -> Result<Vec<FileRow>> {
    let Found { store, inventory, manifest } = place::find(store).await?;
    let (store, manifest) = (&store, &manifest);
    let rows: Vec<Option<FileRow>> = futures_util::stream::iter(inventory.files)
        .map(|f| async move { file_row(store, manifest, f).await })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    Ok(rows.into_iter().flatten().collect())
}

/// One point of a replica that can be restored by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRow {
    /// The TXID.
    pub txid: TxId,
    /// When it was.
    pub time: Timestamp,
    /// The file that ends there; of several that of the lowest level.
    pub id: FileId,
    /// Its size.
    pub bytes: u64,
    /// Pages in it, which are those that changed in its TXIDs (all, in a snapshot), if the manifest tells.
    pub pages: Option<u32>,
    /// Size of the database in pages, if the manifest tells.
    pub commit_pages: Option<u32>,
    /// Its labels, in the order of the alphabet.
    pub labels: Vec<String>,
}

/// What a replica holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// The points that can be restored, oldest first.
    pub points: Vec<PointRow>,
    /// LTX files in it.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The points of a replica that can be restored, oldest first. Errors as [`files`].
pub async fn points(store: &Store) -> Result<Vec<PointRow>> {
    Ok(holdings(store).await?.points)
}

/// The points of a replica, and its size. Errors as [`files`].
pub async fn holdings(store: &Store) -> Result<Holdings> {
    let Found { store, mut inventory, manifest } = place::find(store).await?;
    inventory.learn_times(&store).await?;
    let states = restorable(&inventory.files);
    let found = labels::all(&store).await?;
    for e in &found.damaged {
        log::warn!("walrust: {}: {e}", store.url());
    }
    let named = found.by_txid();
    // By level first: the lowest level's file comes first of those that end alike.
    let mut ends: BTreeMap<TxId, &FileInfo> = BTreeMap::new();
    for f in inventory.files.iter().filter(|f| states.contains_key(&f.max)) {
        ends.entry(f.max).or_insert(f);
    }
    let row = |f: &FileInfo| {
        let entry = manifest.get(f.id());
        PointRow {
            txid: f.max,
            time: f.time,
            id: f.id(),
            bytes: f.bytes,
            pages: entry.map(|e| e.pages),
            commit_pages: entry.map(|e| e.commit),
            labels: named.get(&f.max).into_iter().flatten().map(ToString::to_string).collect(),
        }
    };
    Ok(Holdings {
        points: ends.into_values().map(row).collect(),
        files: inventory.files.len(),
        bytes: inventory.files.iter().map(|f| f.bytes).sum(),
    })
}

/// `None` if the file vanished since it was listed.
async fn file_row(store: &Store, manifest: &Manifest, f: FileInfo) -> Result<Option<FileRow>> {
    let mut row = FileRow {
        id: f.id(),
        bytes: f.bytes,
        time: f.time,
        pages: None,
        commit_pages: None,
        sha256: None,
        key: f.id().key(store.layout()),
    };
    if let Some(e) = manifest.get(f.id()) {
        (row.pages, row.commit_pages, row.sha256) = (Some(e.pages), Some(e.commit), Some(hex(&e.sha256)));
        return Ok(Some(row));
    }
    match probe(store, &f, None, AskMetadata::Yes).await? {
        Probed::Vanished => return Ok(None),
        Probed::Damaged(_) => {}
        Probed::Sealed(stored) => row.sha256 = stored.map(|s| hex(&s)),
        Probed::Sound(p) => {
            row.time = p.header.timestamp;
            (row.pages, row.commit_pages) = (Some(p.pages), Some(p.header.commit));
            row.sha256 = p.stored_sha256.map(|s| hex(&s));
        }
    }
    Ok(Some(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::testkit::*;

    #[test]
    fn databases_at_and_below_a_url() {
        let dir = tempfile::tempdir().unwrap();
        let root = ReplicaUrl::parse(dir.path().to_str().unwrap()).unwrap();
        let mut made = Vec::new();
        for (name, n) in [("a", 7), ("tenants/b c", 12)] {
            let mut maker = Maker::new(1024);
            let files = history(&mut maker, n);
            block(upload(&Store::open(&root.child(name).unwrap()).unwrap(), &files));
            made.push((name, n, files));
        }
        std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
        let rows = block(list(&Store::open(&root).unwrap(), &root)).unwrap();
        assert_eq!(rows.len(), 2);
        for (row, (name, n, files)) in rows.iter().zip(&made) {
            assert_eq!((row.name.as_str(), row.files, row.snapshots), (*name, files.len() as u64, 2));
            assert_eq!(row.bytes, files.iter().map(|f| f.bytes.len() as u64).sum::<u64>());
            assert_eq!((row.min_txid, row.max_txid), (Some(TxId(1)), Some(TxId(*n))));
            assert_eq!(row.first_time, Some(START));
            assert_eq!(row.last_time, Some(Timestamp(START.0 + (*n as i64 - 1) * 1000)));
            assert_eq!(row.replica, root.child(name).unwrap().to_string());
        }
        let one = root.child("a").unwrap();
        let rows = block(list(&Store::open(&one).unwrap(), &one)).unwrap();
        assert_eq!((rows.len(), rows[0].name.as_str()), (1, "a"));
        let none = root.child("nothing").unwrap();
        assert!(block(list(&Store::open(&none).unwrap(), &none)).unwrap().is_empty());
    }

    #[test]
    fn files_tell_the_same_with_and_without_a_manifest() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let made = history(&mut maker, 9);
        block(put(&store, &made));
        let bare = block(files(&store)).unwrap();
        block(upload(&store, &made));
        let told = block(files(&store)).unwrap();
        assert_eq!(told.len(), made.len());
        for (b, t) in bare.iter().zip(&told) {
            let f = made.iter().find(|f| f.id == t.id).unwrap();
            assert_eq!(
                (t.bytes, t.pages, t.commit_pages),
                (f.entry.bytes, Some(f.entry.pages), Some(f.entry.commit))
            );
            assert_eq!(t.sha256, Some(hex(&f.entry.sha256)));
            assert_eq!(
                (b.time, b.pages, b.commit_pages, b.bytes),
                (t.time, t.pages, t.commit_pages, t.bytes)
            );
            assert_eq!(t.key, t.id.key(store.layout()));
        }
    }
}
