//! Restore out of several places: the replica and its mirrors, each of which may be away, or lack or have damaged some files.
//!
//! Every place has the same files of level 0, and merged files and snapshots of its own. So a way is planned over all of them: a file is taken
//! from the first place that has it, and where it turns out to be damaged there, from the next one. What comes of it is proved as ever ([`super::restore`]).
//!
//! Rules
//! * I-MEND-1 "Latest" is the newest state that any of the places has or its manifest names: a place that lags behind gives no older one.
//! * I-MEND-2 Which place a file comes from decides nothing: its checksum, its entry there, and the chain of database checksums do.
//!
//! Nothing that is at hand is used. Refused: to mend the places themselves (a restore writes to none; a stream mends its own by a snapshot).

use super::fetch::Elsewhere;
use super::inventory::{FileInfo, Inventory};
use super::layout::FileId;
use super::manifest::Manifest;
use super::place::{self, Found};
use super::plan::{Plan, plan};
use super::point::Point;
use super::restore::{RestoreOptions, Restored, Sources, attempt, confirm_lost, finish};
use super::target::Target;
use crate::base::{Error, Result, TxId, clock};
use crate::store::Store;
use std::collections::BTreeMap;
use std::path::Path;

/// How many files may turn out to be damaged in one place or another.
const MOST_DAMAGED: usize = 64;

/// What was restored, and out of what.
#[derive(Clone, Debug)]
pub struct Mended {
    /// As ever.
    pub restored: Restored,
    /// How many files came from each place, in the order given.
    pub files: Vec<usize>,
}

struct Place {
    store: Store,
    inventory: Inventory,
    manifest: Manifest,
}

/// Restores the database at `point` to `path` out of all `stores`, the first of which counts before the others. Errors as [`super::restore()`] does; of a store
/// that cannot be read nothing is said while others do.
pub async fn restore_from_all(
    stores: &[Store],
    point: Point,
    path: &Path,
    options: &RestoreOptions<'_>,
) -> Result<Mended> {
    let target = Target::prepare(path, options.overwrite)?;
    target.refuse_used(options.occupier)?;
    let (places, numbers) = readable(stores, point).await?;
    if point == Point::Latest {
        refuse_lost_tail(&places).await?;
    }
    let mut has = holders(&places);
    let mut way = plan_over(&places, &has, point)?;
    let goal = Point::TxId(way.txid);
    target.sweep();
    target.discard()?;
    let mut notes = Vec::new();
    for _ in 0..MOST_DAMAGED {
        let (sources, from) = sources(&places, &has, &way)?;
        match attempt(&sources, &way, &target, options).await {
            Ok(built) => {
                let mut files = vec![0; stores.len()];
                for place in from {
                    if let Some(n) = numbers.get(place).and_then(|n| files.get_mut(*n)) {
                        *n += 1;
                    }
                }
                let restored = finish(built, target, sources.store, options, notes)?;
                return Ok(Mended { restored, files });
            }
            Err((Some(id), e)) if e.is_corrupt() || e.is_missing() || e.is_retry() => {
                notes.push(e.to_string());
                target.discard()?;
                let left = has.get_mut(&id).filter(|places| !places.is_empty());
                left.map(|places| places.remove(0));
                has.retain(|_, places| !places.is_empty());
                way = plan_over(&places, &has, goal).map_err(|_| e)?;
            }
            Err((_, e)) => return Err(e),
        }
    }
    Err(Error::corrupt(format!("more than {MOST_DAMAGED} files are damaged in one place or another")))
}

/// What can be read, and which of the stores that is.
async fn readable(stores: &[Store], point: Point) -> Result<(Vec<Place>, Vec<usize>)> {
    let (mut places, mut numbers, mut first) = (Vec::new(), Vec::new(), None);
    for (number, store) in stores.iter().enumerate() {
        let found = match place::find(store).await {
            Ok(mut found) if matches!(point, Point::Time(_)) => {
                found.inventory.learn_times(&found.store).await.map(|()| found)
            }
            found => found,
        };
        match found {
            Ok(Found { store, inventory, manifest }) => {
                places.push(Place { store, inventory, manifest });
                numbers.push(number);
            }
            Err(e) => {
                log::info!("walrust: {}: not restored from: {e}", store.url());
                first.get_or_insert(e);
            }
        }
    }
    match first {
        Some(e) if places.is_empty() => Err(e),
        _ => Ok((places, numbers)),
    }
}

/// I-MEND-1.
async fn refuse_lost_tail(places: &[Place]) -> Result<()> {
    let newest = places.iter().map(|p| p.inventory.newest()).max().unwrap_or(TxId::ZERO);
    for p in places {
        let later: Vec<FileId> = p.manifest.entries().map(|e| e.id).filter(|id| id.max > newest).collect();
        if let Some(last) = confirm_lost(&p.store, &later).await?.iter().max_by_key(|id| id.max) {
            return Err(Error::corrupt(format!(
                "the newest file {last} (TXID {}) is named by the manifest of {} but gone everywhere; restore TXID {newest} by naming it to \
                 accept the older state",
                last.max,
                p.store.url()
            )));
        }
    }
    Ok(())
}

/// Which places have each file, in the order in which they are asked.
fn holders(places: &[Place]) -> BTreeMap<FileId, Vec<usize>> {
    let mut has: BTreeMap<FileId, Vec<usize>> = BTreeMap::new();
    for (n, p) in places.iter().enumerate() {
        p.inventory.files.iter().for_each(|f| has.entry(f.id()).or_default().push(n));
    }
    has
}

/// A way over what the places have.
fn plan_over(places: &[Place], has: &BTreeMap<FileId, Vec<usize>>, point: Point) -> Result<Plan> {
    let mut files: Vec<FileInfo> = Vec::with_capacity(has.len());
    for (n, p) in places.iter().enumerate() {
        let first_here = |f: &&FileInfo| has.get(&f.id()).and_then(|places| places.first()) == Some(&n);
        files.extend(p.inventory.files.iter().filter(first_here).cloned());
    }
    files.sort_by_key(FileInfo::id);
    plan(&files, point, clock::now())
}

/// Where the files of a way come from; and which place that is for each.
fn sources<'a>(
    places: &'a [Place],
    has: &BTreeMap<FileId, Vec<usize>>,
    way: &Plan,
) -> Result<(Sources<'a>, Vec<usize>)> {
    let nothing = || Error::corrupt("there is no place to restore from");
    let first = places.first().ok_or_else(nothing)?;
    let (mut elsewhere, mut from) = (Elsewhere::new(), Vec::new());
    for id in way.files.iter().map(FileInfo::id) {
        let number = has.get(&id).and_then(|places| places.first()).copied().unwrap_or(0);
        from.push(number);
        if let Some(place) = places.get(number).filter(|_| number > 0) {
            elsewhere.insert(id, (place.store.clone(), place.manifest.sworn(id).copied()));
        }
    }
    Ok((Sources { store: &first.store, manifest: &first.manifest, elsewhere }, from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::target::Overwrite;
    use crate::replica::testkit::*;

    fn damage(store: &Store, id: FileId) {
        let key = id.key(store.layout());
        let mut bytes = block(store.get(&key)).unwrap().to_vec();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        block(store.put_over(&key, bytes)).unwrap();
    }

    #[test]
    fn each_place_gives_what_it_has_sound_and_none_gives_an_older_state() {
        let mut maker = Maker::new(1024);
        let files = history(&mut maker, 20);
        let stores = [Store::in_memory(), Store::in_memory(), Store::in_memory()];
        block(upload(&stores[0], &files));
        // The second one lags behind; the third one is nothing yet.
        block(upload(&stores[1], &files[..files.len() - 1]));
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.db");
        let how = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
        let single = |store: &Store, point| block(crate::replica::restore(store, point, &out, &how));
        let all = |point| block(restore_from_all(&stores, point, &out, &how));
        let whole = all(Point::Latest).unwrap();
        assert_eq!((whole.restored.txid, whole.files[1], whole.files[2]), (maker.txid, 0, 0));
        let level0 =
            |max: u64| files.iter().map(|f| f.id).find(|id| id.max == TxId(max) && id.min > TxId(1)).unwrap();
        damage(&stores[0], level0(7));
        damage(&stores[1], level0(12));
        block(stores[0].delete(&[level0(9).key(stores[0].layout())])).unwrap();
        for (store, point) in [(0, Point::Latest), (1, Point::TxId(TxId(15)))] {
            assert!(single(&stores[store], point).unwrap_err().is_corrupt());
        }
        let mended = all(Point::Latest).unwrap();
        assert_eq!(mended.restored.txid, maker.txid, "not what the one that lags behind has");
        assert_eq!((mended.files[1], mended.restored.notes.len()), (2, 1), "{mended:?}");
        assert!(read(&out) == maker.images[&maker.txid]);
        for txid in 1..=20 {
            all(Point::TxId(TxId(txid))).unwrap();
            assert!(read(&out) == maker.images[&TxId(txid)], "{txid}");
        }
        damage(&stores[1], level0(7));
        let before = read(&out);
        assert!(all(Point::Latest).unwrap_err().is_corrupt());
        assert!(read(&out) == before, "the target is as it was");
        // The newest file is gone everywhere, and named by the first one's manifest.
        block(stores[0].delete(&[level0(20).key(stores[0].layout())])).unwrap();
        let e = all(Point::Latest).unwrap_err();
        assert!(e.is_corrupt() && e.to_string().contains("gone everywhere"), "{e}");
    }
}
