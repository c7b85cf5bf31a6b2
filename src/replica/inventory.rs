//! What lies in a replica: one listing of all of it where that is one request; else one per level, level 0 first and then the others
//! in parallel.
//!
//! Rules
//! * I-INV-1 An object counts only if its key is exactly what `layout` makes of a level and two TXIDs;
//!   everything else under the level directories is somebody else's and is ignored.
//! * I-INV-2 A file's time is its header's timestamp where the manifest (or the header itself) tells it, else
//!   the store's modification time.
//! * I-INV-3 A replica that is whole at each moment is whole in what is read of it: whatever a level-0 file follows
//!   (its lineage's snapshot, the merged files before it) was there before it, so level 0 is listed before them. (In one listing
//!   it comes before them, too.)
//!
//! * I-INV-4 A listing may lag behind; a look at one name does not. What is known to have been put and is not listed
//!   is looked up by its name before it counts as gone.
//!
//! A listing is not a moment: while it runs, files appear and are merged away. Callers that must judge what
//! is missing ask again before they say so (see `verify`). Refused: listing a whole prefix that is longer than one request, which
//! under a bucket that holds other databases below this path would list those too.

use super::layout::{self, FileId};
use super::manifest::Manifest;
use crate::base::{DbChecksum, Kind, Result, Timestamp, TxId};
use crate::ltx::{HEADER_LEN, Header, Level};
use crate::store::{LayoutKind, ObjectInfo, Store};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;

/// Small reads (headers) under way at once.
const PARALLEL: usize = 32;
/// The most names that are looked up because a listing lacks them, the newest first. A replica that lost more is not
/// merely listed late.
const MOST_CONFIRMED: usize = 256;

/// One LTX file that lies in the replica, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Level, 0 to 9.
    pub level: Level,
    /// First TXID.
    pub min: TxId,
    /// Last TXID.
    pub max: TxId,
    /// Object size.
    pub bytes: u64,
    /// See I-INV-2.
    pub time: Timestamp,
    /// When the store took it, by its own word.
    pub put: Timestamp,
    /// Whose time that is.
    pub time_from: TimeFrom,
    /// Database checksum before it, if known and attested.
    pub attest_before: Option<DbChecksum>,
    /// Database checksum after it, if known and attested.
    pub attest_after: Option<DbChecksum>,
}

/// Where a file's time comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeFrom {
    /// The header, or the manifest, which repeats it.
    Header,
    /// The store: LastModified, or a file's mtime.
    Store,
}

impl FileInfo {
    /// What a listing alone tells.
    pub fn listed(id: FileId, bytes: u64, modified: Timestamp) -> FileInfo {
        FileInfo {
            level: id.level,
            min: id.min,
            max: id.max,
            bytes,
            time: modified,
            put: modified,
            time_from: TimeFrom::Store,
            attest_before: None,
            attest_after: None,
        }
    }

    /// Level and TXIDs.
    pub fn id(&self) -> FileId {
        FileId { level: self.level, min: self.min, max: self.max }
    }

    /// Takes over what the header says.
    pub fn learn(&mut self, header: &Header) {
        (self.time, self.time_from) = (header.timestamp, TimeFrom::Header);
        self.attest_before = header.attest.map(|a| a.before);
        self.attest_after = header.attest.map(|a| a.after);
    }
}

/// All LTX files of a replica.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Ordered by level, first and last TXID.
    pub files: Vec<FileInfo>,
    /// Objects under the level directories that are not ours (I-INV-1).
    pub ignored: usize,
}

impl Inventory {
    /// An absent replica is an empty inventory. Errors: the store's.
    pub async fn read(store: &Store) -> Result<Inventory> {
        match store.list_in_one().await? {
            Some(objects) => Ok(Inventory::among(store.layout(), &objects)),
            None => Inventory::by_levels(store).await,
        }
    }

    /// Of all objects of a replica.
    fn among(kind: LayoutKind, objects: &[ObjectInfo]) -> Inventory {
        let folders: Vec<String> = Level::all().map(|l| layout::level_prefix(kind, l)).collect();
        let in_levels = objects.iter().filter(|o| folders.iter().any(|f| o.key.starts_with(f.as_str())));
        Inventory::of(kind, in_levels)
    }

    /// One listing per level (I-INV-3).
    async fn by_levels(store: &Store) -> Result<Inventory> {
        let kind = store.layout();
        let list = |l| async move { store.list(&layout::level_prefix(kind, l)).await };
        let mut lists: Vec<Vec<ObjectInfo>> = vec![list(Level::L0).await?];
        let others = Level::all().filter(|l| *l != Level::L0).map(list);
        lists.extend(futures_util::future::try_join_all(others).await?);
        Ok(Inventory::of(kind, lists.iter().flatten()))
    }

    /// Inventory and manifest: times and checksums of what the manifest names are known without a further read, and
    /// what it names is there also where the listing lags (I-INV-4). Errors: the store's.
    pub async fn read_with_manifest(store: &Store) -> Result<(Inventory, Manifest)> {
        // The listing second: an entry without an object is then old news, not a file still on its way. (Where one request lists both,
        // it is looked up by its name.)
        let (mut inventory, manifest) = match store.list_in_one().await? {
            Some(objects) => {
                let inventory = Inventory::among(store.layout(), &objects);
                (inventory, Manifest::read_listed(store, &objects).await?)
            }
            None => {
                let manifest = Manifest::read(store).await?;
                (Inventory::by_levels(store).await?, manifest)
            }
        };
        inventory.confirm(store, manifest.entries().map(|e| e.id)).await?;
        inventory.learn(&manifest);
        Ok((inventory, manifest))
    }

    /// Looks up those of the `expected` files that the listing lacks (I-INV-4), and takes in what is there. Errors:
    /// the store's.
    pub async fn confirm(&mut self, store: &Store, expected: impl IntoIterator<Item = FileId>) -> Result<()> {
        let listed: BTreeSet<FileId> = self.files.iter().map(FileInfo::id).collect();
        let mut absent: Vec<FileId> = expected.into_iter().filter(|id| !listed.contains(id)).collect();
        absent.sort_by_key(|id| std::cmp::Reverse((id.max, id.level)));
        absent.truncate(MOST_CONFIRMED);
        let found: Vec<Option<FileInfo>> = futures_util::stream::iter(absent)
            .map(|id| async move {
                match store.head(&id.key(store.layout())).await {
                    Ok(o) => Ok(Some(FileInfo::listed(id, o.size, o.modified))),
                    Err(e) if e.is_missing() => Ok(None),
                    Err(e) => Err(e),
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        self.files.extend(found.into_iter().flatten());
        self.files.sort_by_key(FileInfo::id);
        Ok(())
    }

    /// From listed objects. Pure.
    pub fn of<'a>(kind: LayoutKind, objects: impl Iterator<Item = &'a ObjectInfo>) -> Inventory {
        let mut inventory = Inventory::default();
        for o in objects {
            match FileId::parse(kind, &o.key) {
                Some(id) => inventory.files.push(FileInfo::listed(id, o.size, o.modified)),
                None => inventory.ignored += 1,
            }
        }
        inventory.files.sort_by_key(FileInfo::id);
        inventory
    }

    /// Takes over times and checksums from the manifest.
    pub fn learn(&mut self, manifest: &Manifest) {
        for f in &mut self.files {
            if let Some(e) = manifest.get(f.id()) {
                (f.time, f.time_from) = (e.time, TimeFrom::Header);
                f.attest_after = e.after;
            }
        }
    }

    /// Reads the headers of the files whose time is only the store's. Files that vanished meanwhile are dropped
    /// from the inventory; a header that cannot be read leaves the store's time.
    pub async fn learn_times(&mut self, store: &Store) -> Result<()> {
        self.learn_headers(store, |f| f.time_from == TimeFrom::Store).await
    }

    /// As [`Inventory::learn_times`], of the files that are `wanted`.
    pub async fn learn_headers(&mut self, store: &Store, wanted: impl Fn(&FileInfo) -> bool) -> Result<()> {
        let unknown: Vec<FileId> = self.files.iter().filter(|f| wanted(f)).map(FileInfo::id).collect();
        let headers: Vec<(FileId, Option<Header>, bool)> = futures_util::stream::iter(unknown)
            .map(|id| async move {
                match read_header(store, id).await {
                    Ok(h) => Ok((id, Some(h), false)),
                    Err(e) if e.is_missing() => Ok((id, None, true)),
                    Err(e) if e.is_corrupt() => Ok((id, None, false)),
                    // (It is encrypted, and the store's time will do.)
                    Err(e) if e.kind() == Kind::Config && !store.can_open() => Ok((id, None, false)),
                    Err(e) => Err(e),
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let gone: BTreeSet<FileId> =
            headers.iter().filter(|(_, _, gone)| *gone).map(|(id, _, _)| *id).collect();
        self.files.retain(|f| !gone.contains(&f.id()));
        for (id, header, _) in headers {
            if let (Some(h), Ok(i)) = (header, self.files.binary_search_by_key(&id, FileInfo::id))
                && let Some(f) = self.files.get_mut(i)
            {
                f.learn(&h);
            }
        }
        Ok(())
    }

    /// Files of one level, ascending.
    pub fn level(&self, level: Level) -> impl DoubleEndedIterator<Item = &FileInfo> {
        self.files.iter().filter(move |f| f.level == level)
    }

    /// The last TXID of any file, 0 if there is none.
    pub fn newest(&self) -> TxId {
        self.files.iter().map(|f| f.max).max().unwrap_or_default()
    }

    /// Whether nothing restorable or not lies here.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

/// Reads one file's header with a ranged get of 100 bytes. `Corrupt` if it is none or shorter.
pub async fn read_header(store: &Store, id: FileId) -> Result<Header> {
    let bytes = store.get_range(&id.key(store.layout()), 0..HEADER_LEN as u64).await?;
    let bytes: &[u8; HEADER_LEN] = bytes.as_ref().try_into().map_err(|_| {
        crate::base::Error::corrupt(format!("{id} has {} bytes, less than a header", bytes.len()))
    })?;
    Header::decode(bytes)
}
