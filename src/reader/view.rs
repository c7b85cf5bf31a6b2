//! A state of a replica's database: from what lies there and a point to the files that make it, and their page indexes.

use super::cache;
use super::disk::{self, Disk};
use super::known::{Known, Numbered};
use super::limits::PARALLEL;
use super::nearby::Nearby;
use crate::base::{Error, Kind, Pgno, Result, clock};
use crate::ltx::Level;
use crate::replica::contents::{self, Contents, Keep, Part, is_in_one};
use crate::replica::pages::{PageMap, Place};
use crate::replica::place::{self, Found};
use crate::replica::restore::refuse_lost_tail;
use crate::replica::{FileId, FileInfo, Inventory, Manifest, ManifestEntry, Plan, Point, layout, plan};
use crate::store::{ObjectInfo, Store};
use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How often a way is planned anew because a file was damaged or merged away.
const REPLANS: usize = 8;

/// What was fetched of files before the manifest told what they are.
pub(super) type Early = HashMap<FileId, contents::Early>;

/// An error, and the file of the replica that it is about, if it is about one.
pub(super) type About = (Option<FileId>, Error);

/// A block that was fetched: which file of the view it is of, its number, its bytes.
pub(super) type Fetched = (usize, u64, Arc<[u8]>);

/// A state, ready to be read.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Where its pages lie.
    pub(super) map: PageMap,
    /// The numbers of the map's files, by which their pages are known to the cache.
    pub(super) numbers: Vec<u64>,
    /// The store in the layout in which the replica lies there.
    pub(super) store: Store,
}

/// What lies there, and the files of it that make a state.
pub(super) struct Way {
    pub(super) found: Found,
    pub(super) plan: Plan,
}

/// Opens the state at `point`, without the files in `bad`. `known` are files that were read before.
///
/// Errors: `Missing` for a point that the replica does not hold, or does not hold any more; `Corrupt` where its files do not
/// make it; the store's.
pub(super) async fn open(store: &Store, point: Point, bad: &BTreeSet<FileId>, known: &Known) -> Result<View> {
    let mut bad = bad.clone();
    // First as fast as it can be told. What does not come together so is looked at in order.
    if let Ok((way, early)) = quick(store, point, &bad, Some(known)).await
        && let Ok(view) = make(&way, &early, known, None).await
    {
        return Ok(view);
    }
    let mut last = None;
    for _ in 0..REPLANS {
        let way = match thorough(store, point, &bad).await {
            Ok(w) => w,
            Err(e) => return Err(last.unwrap_or(e)),
        };
        match make(&way, &Early::new(), known, None).await {
            Ok(view) => return Ok(view),
            Err((Some(id), e)) if e.is_corrupt() => {
                bad.insert(id);
                last = Some(e);
            }
            // Merged away since it was listed.
            Err((_, e)) if e.is_missing() => last = None,
            Err((_, e)) => return Err(e),
        }
    }
    Err(last
        .unwrap_or_else(|| Error::new(Kind::Retry, "the replica changed each time it was read; try again")))
}

/// The way to `point`, of which nothing is read yet. Errors as [`open`].
pub(super) async fn way(store: &Store, point: Point) -> Result<Way> {
    match quick(store, point, &BTreeSet::new(), None).await {
        Ok((way, _)) => Ok(way),
        Err(_) => thorough(store, point, &BTreeSet::new()).await,
    }
}

/// What lies there, in one listing where the store gives it in one, and what the manifest names besides: two round trips. Whatever is
/// wrong with it, since the answers are of different moments, comes out when it is put together or fetched. Where `known` are the files that were
/// read before, what the listing alone says will be needed of the others is fetched while the manifest is.
async fn quick(
    store: &Store,
    point: Point,
    bad: &BTreeSet<FileId>,
    known: Option<&Known>,
) -> Result<(Way, Early)> {
    let kind = store.layout();
    let (mut inventory, manifest, early) = match store.list_in_one().await? {
        Some(objects) => {
            let inventory = Inventory::of(kind, objects.iter());
            let wanted = known.map(|k| wanted_early(store, &inventory, point, bad, k)).unwrap_or_default();
            let requests = Semaphore::new(PARALLEL);
            let segments = objects.iter().filter(|o| layout::manifest_number(&o.key).is_some()).count();
            let segments = requests.acquire_many(segments.min(PARALLEL) as u32).await;
            let early = async { Ok(fetch_early(store, &objects, wanted, &requests).await) };
            let manifest = async {
                let manifest = Manifest::read_listed(store, &objects).await;
                drop(segments);
                manifest
            };
            let (manifest, early) = futures_util::future::try_join(manifest, early).await?;
            (inventory, manifest, early)
        }
        None => {
            let list = |l| async move { store.list(&layout::level_prefix(kind, l)).await };
            // One less than all that may be under way: the manifest is read meanwhile, which takes two round trips as well.
            let lists = futures_util::stream::iter(Level::all().map(list))
                .buffer_unordered(PARALLEL - 1)
                .try_collect();
            let (lists, manifest): (Vec<Vec<ObjectInfo>>, Manifest) =
                futures_util::future::try_join(lists, Manifest::read(store)).await?;
            (Inventory::of(kind, lists.iter().flatten()), manifest, Early::new())
        }
    };
    if inventory.is_empty() || !manifest.damaged.is_empty() {
        return Err(Error::new(Kind::Missing, "nothing is listed"));
    }
    let listed: BTreeSet<FileId> = inventory.files.iter().map(FileInfo::id).collect();
    let newer = manifest.entries().filter(|e| !listed.contains(&e.id));
    inventory.files.extend(newer.map(|e| FileInfo::listed(e.id, e.bytes, e.time)));
    inventory.files.sort_by_key(FileInfo::id);
    inventory.learn(&manifest);
    let way = planned(Found { store: store.clone(), inventory, manifest }, point, bad).await?;
    // What the manifest alone names was put since it was listed, or is lost; what lies beside a lost file would be read all the same.
    for file in way.plan.files.iter().filter(|f| !listed.contains(&f.id())) {
        store.head(&file.id().key(kind)).await?;
    }
    Ok((way, early))
}

/// The files that the listing alone says make the state, but those that were read before, here or, as far as is remembered, by another
/// process. A time is told by the manifest.
fn wanted_early(
    store: &Store,
    inventory: &Inventory,
    point: Point,
    bad: &BTreeSet<FileId>,
    known: &Known,
) -> Vec<FileInfo> {
    if matches!(point, Point::Time(_)) {
        return Vec::new();
    }
    let Ok(plan) = plan(&inventory.files, point, clock::now()) else { return Vec::new() };
    let on_disk = keep_of(store).map(|d| d.files(store.url())).unwrap_or_default();
    let is_new = |f: &FileInfo| {
        !bad.contains(&f.id()) && known.get(f, None).is_none() && !on_disk.contains(&number_of(f))
    };
    plan.files.into_iter().filter(is_new).collect()
}

/// By which a file of a replica is remembered.
fn number_of(file: &FileInfo) -> u64 {
    let mut hash = Sha256::new().chain_update([file.level.get()]);
    for n in [file.min.0, file.max.0, file.bytes] {
        hash.update(n.to_be_bytes());
    }
    hash.finalize().first_chunk().map_or(0, |n| u64::from_be_bytes(*n))
}

/// Fetches what is needed of these files, each request as `requests` lets it.
async fn fetch_early(
    store: &Store,
    objects: &[ObjectInfo],
    wanted: Vec<FileInfo>,
    requests: &Semaphore,
) -> Early {
    let fetched = wanted.into_iter().map(|file| async move {
        let key = layout::blocks_key(file.id());
        let beside = objects.iter().find(|o| o.key == key).map(|o| o.size);
        let _permit = requests.acquire_many(contents::Early::requests_of(&file, beside)).await;
        contents::Early::fetch(store, &file, beside).await.map(|early| (file.id(), early))
    });
    futures_util::stream::iter(fetched).buffered(PARALLEL).filter_map(std::future::ready).collect().await
}

/// The cache on disk, for what is read of `store`. What is near is not kept here once more, and what
/// is read with an identity not at all: it would lie on the disk in the clear (I-AGE-5).
pub(super) fn keep_of(store: &Store) -> Option<Arc<Disk>> {
    if store.is_near() || store.can_open() { None } else { disk::get() }
}

/// Takes a file in that was read. Its bytes, where they are here, go where all that was fetched is, which is bounded.
pub(super) fn take_in(known: &Known, contents: Contents, store: &Store) -> Numbered {
    let (contents, body) = contents.without_body();
    let added = known.add(contents);
    if let Some(body) = body {
        keep_blocks(store, &added.contents, added.number, &contents::in_blocks(0, &body));
    }
    added
}

/// Keeps blocks of a file that were fetched and proved: in memory, and on disk if there is a cache.
fn keep_blocks(store: &Store, contents: &Contents, number: u64, blocks: &[(u64, Arc<[u8]>)]) {
    let disk = keep_of(store);
    for (n, block) in blocks {
        if let (Some(disk), Some(of)) = (&disk, &contents.sha256) {
            disk.put_block(of, *n, block);
        }
        cache::put_block((number, *n), block.clone(), disk.is_some() || store.is_near());
    }
}

/// What lies there, as a restore finds it out.
async fn thorough(store: &Store, point: Point, bad: &BTreeSet<FileId>) -> Result<Way> {
    let found = place::find(store).await?;
    if point == Point::Latest {
        refuse_lost_tail(&found.store, &found.inventory, &found.manifest).await?;
    }
    planned(found, point, bad).await
}

async fn planned(mut found: Found, point: Point, bad: &BTreeSet<FileId>) -> Result<Way> {
    if matches!(point, Point::Time(_)) {
        found.inventory.learn_times(&found.store).await?;
    }
    let all = plan(&found.inventory.files, point, clock::now())?;
    if all.files.iter().all(|f| !bad.contains(&f.id())) {
        return Ok(Way { found, plan: all });
    }
    // I-READ-3: around what is damaged, to the same TXID.
    found.inventory.files.retain(|f| !bad.contains(&f.id()));
    let plan = plan(&found.inventory.files, Point::TxId(all.txid), clock::now())?;
    Ok(Way { found, plan })
}

/// Reads what the files of `way` hold. The error comes with the file it is about, if it is about one.
pub(super) async fn make(
    way: &Way,
    early: &Early,
    known: &Known,
    near: Option<&Arc<dyn Nearby>>,
) -> Result<View, About> {
    let files = read(way, way.plan.files.clone(), early, known, near).await?;
    let numbers = files.iter().map(|f| f.number).collect();
    let map = PageMap::new(files.into_iter().map(|f| f.contents).collect()).map_err(|e| (None, e))?;
    let view = View { map, numbers, store: way.found.store.clone() };
    view.fetch_first_page().await?;
    Ok(view)
}

impl View {
    /// Fetches blocks of a file of the map, and keeps them.
    pub(super) async fn fetch(&self, file: usize, blocks: Range<u64>) -> Result<Vec<Fetched>, About> {
        let (Some(contents), Some(number)) = (self.map.files().get(file), self.numbers.get(file)) else {
            return Ok(Vec::new());
        };
        let is_first = !contents.can_prove_blocks();
        let blocks = contents.fetch(&self.store, blocks).await.map_err(|e| (Some(contents.id), e))?;
        let disk = keep_of(&self.store);
        if is_first && let (Some(disk), Some(of), Some(sums)) = (&disk, &contents.sha256, contents.sums()) {
            Keep::put(&**disk, of, Part::Sums, &sums);
        }
        keep_blocks(&self.store, contents, *number, &blocks);
        Ok(blocks.into_iter().map(|(block, bytes)| (file, block, bytes)).collect())
    }

    /// Where page 1 lies in a small file of which no page was wanted yet, that file: SQLite reads it first, and an open whose name was made
    /// before costs no request.
    async fn fetch_first_page(&self) -> Result<(), About> {
        if let Ok(Place::In(file)) = self.map.place(Pgno::ONE)
            && let Some(contents) = self.map.files().get(file).filter(|c| !c.can_prove_blocks())
            && let Some(blocks) = contents.blocks_of(Pgno::ONE)
        {
            self.fetch(file, blocks).await?;
        }
        Ok(())
    }
}

/// Reads what some of the files of a replica hold, from `near` where it has them. Errors as [`make`].
pub(super) async fn read(
    way: &Way,
    files: Vec<FileInfo>,
    early: &Early,
    known: &Known,
    near: Option<&Arc<dyn Nearby>>,
) -> Result<Vec<Numbered>, About> {
    let Found { store, manifest, .. } = &way.found;
    let requests = &Semaphore::new(PARALLEL);
    let disk = &keep_of(store);
    let numbers: Vec<u64> = files.iter().filter(|f| manifest.get(f.id()).is_some()).map(number_of).collect();
    let read = files.into_iter().map(|file| async move {
        let entry = manifest.get(file.id());
        if let Some(there) = known.get(&file, entry) {
            return Ok(there);
        }
        if let Some(copy) = near.and_then(|n| n.copy(file.id()))
            && let Ok(contents) = Contents::of_copy(&file, copy, entry).await
        {
            // (It stays: what is still here is not fetched.)
            return Ok(known.add(contents));
        }
        let keep = disk.as_deref().map(|d| d as &dyn Keep);
        if let Some(early) = early.get(&file.id())
            && let Some(contents) = Contents::of_early(&file, entry, early, keep)
        {
            return Ok(take_in(known, contents, store));
        }
        let _permit = requests.acquire_many(requests_of(&file, entry)).await;
        let contents = Contents::read(store, &file, entry, keep).await.map_err(|e| (Some(file.id()), e))?;
        Ok(take_in(known, contents, store))
    });
    let read = futures_util::stream::iter(read).buffered(PARALLEL).try_collect().await?;
    if let Some(disk) = disk {
        disk.put_files(store.url(), &numbers);
    }
    Ok(read)
}

/// How many requests at once the reading of a file makes at most.
fn requests_of(file: &FileInfo, entry: Option<&ManifestEntry>) -> u32 {
    if entry.is_some_and(|e| is_in_one(file, e)) { 1 } else { 2 }
}
