//! A state of a replica's database: from what lies there and a point to the files that make it, and their page indexes.

use super::disk;
use super::known::{Known, Numbered};
use super::limits::PARALLEL;
use super::nearby::Nearby;
use crate::base::{Error, Kind, Result, clock};
use crate::ltx::Level;
use crate::replica::contents::{Contents, Keep, is_in_one};
use crate::replica::pages::PageMap;
use crate::replica::place::{self, Found};
use crate::replica::restore::refuse_lost_tail;
use crate::replica::{FileId, FileInfo, Inventory, Manifest, ManifestEntry, Plan, Point, layout, plan};
use crate::store::{ObjectInfo, Store};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How often a way is planned anew because a file was damaged or merged away.
const REPLANS: usize = 8;

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
    if let Ok(way) = quick(store, point, &bad).await
        && let Ok(view) = make(&way, known, None).await
    {
        return Ok(view);
    }
    let mut last = None;
    for _ in 0..REPLANS {
        let way = match thorough(store, point, &bad).await {
            Ok(w) => w,
            Err(e) => return Err(last.unwrap_or(e)),
        };
        match make(&way, known, None).await {
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
    match quick(store, point, &BTreeSet::new()).await {
        Ok(way) => Ok(way),
        Err(_) => thorough(store, point, &BTreeSet::new()).await,
    }
}

/// What lies there, in one listing where the store gives it in one, and what the manifest names besides: two round trips. Whatever is
/// wrong with it, since the answers are of different moments, comes out when it is put together or fetched.
async fn quick(store: &Store, point: Point, bad: &BTreeSet<FileId>) -> Result<Way> {
    let kind = store.layout();
    let (mut inventory, manifest) = match store.list_in_one().await? {
        Some(objects) => (Inventory::of(kind, objects.iter()), Manifest::read_listed(store, &objects).await?),
        None => {
            let list = |l| async move { store.list(&layout::level_prefix(kind, l)).await };
            // One less than all that may be under way: the manifest is read meanwhile, which takes two round trips as well.
            let lists = futures_util::stream::iter(Level::all().map(list))
                .buffer_unordered(PARALLEL - 1)
                .try_collect();
            let (lists, manifest): (Vec<Vec<ObjectInfo>>, Manifest) =
                futures_util::future::try_join(lists, Manifest::read(store)).await?;
            (Inventory::of(kind, lists.iter().flatten()), manifest)
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
    Ok(way)
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
    known: &Known,
    near: Option<&Arc<dyn Nearby>>,
) -> Result<View, (Option<FileId>, Error)> {
    let files = read(way, way.plan.files.clone(), known, near).await?;
    let numbers = files.iter().map(|f| f.number).collect();
    let map = PageMap::new(files.into_iter().map(|f| f.contents).collect()).map_err(|e| (None, e))?;
    Ok(View { map, numbers, store: way.found.store.clone() })
}

/// Reads what some of the files of a replica hold, from `near` where it has them. Errors as [`make`].
pub(super) async fn read(
    way: &Way,
    files: Vec<FileInfo>,
    known: &Known,
    near: Option<&Arc<dyn Nearby>>,
) -> Result<Vec<Numbered>, (Option<FileId>, Error)> {
    let Found { store, manifest, .. } = &way.found;
    let requests = &Semaphore::new(PARALLEL);
    let read = files.into_iter().map(|file| async move {
        let entry = manifest.get(file.id());
        if let Some(there) = known.get(&file, entry) {
            return Ok(there);
        }
        if let Some(copy) = near.and_then(|n| n.copy(file.id()))
            && let Ok(contents) = Contents::of_copy(&file, copy, entry).await
        {
            return Ok(known.add(contents));
        }
        let _permit = requests.acquire_many(requests_of(&file, entry)).await;
        // What is near is not kept here once more.
        let disk = if store.is_near() { None } else { disk::get() };
        let keep = disk.as_deref().map(|d| d as &dyn Keep);
        let contents = Contents::read(store, &file, entry, keep).await.map_err(|e| (Some(file.id()), e))?;
        Ok(known.add(contents))
    });
    futures_util::stream::iter(read).buffered(PARALLEL).try_collect().await
}

/// How many requests at once the reading of a file makes at most.
fn requests_of(file: &FileInfo, entry: Option<&ManifestEntry>) -> u32 {
    if entry.is_some_and(|e| is_in_one(file, e)) { 1 } else { 2 }
}
