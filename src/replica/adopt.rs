//! Entries for files that a writer put and did not come to name: it died, and its spool does not tell of them, or is another's.
//!
//! Rule I-ADOPT-1: only level-0 files behind all that the manifest names are taken up (I-MAN-4 of `manifest`), only ours, and only if
//! they are sound: each entry is what the object says of itself. What lies before them was named once, and whoever took its entry away meant that.
//!
//! A crash leaves some of them named; the next look finds the rest. Refused: an entry for whatever is not named, which would bring back
//! what retention was about to delete.

use super::inventory::{FileInfo, Inventory};
use super::layout::FileId;
use super::manifest::{Manifest, ManifestEntry};
use super::probe::{AskMetadata, Probe, Probed, probe};
use crate::base::{Error, Result};
use crate::ltx::Level;
use crate::store::Store;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::path::Path;

/// Files read at once.
const PARALLEL: usize = 8;
/// The most files that are taken up, the newest first: whoever left more than a writer may leave is no writer of ours.
const MOST: usize = 1024;

/// The files that are to be named, ascending: those behind all that the manifest names. `known`: entries of which an earlier process
/// took note; those are believed where the object has their size. `work_dir` has room for the largest of the files. Errors: the store's,
/// `Io` of the directory.
pub async fn unnamed(store: &Store, known: &[ManifestEntry], work_dir: &Path) -> Result<Vec<ManifestEntry>> {
    let (mut inventory, manifest) = Inventory::read_with_manifest(store).await?;
    inventory.confirm(store, known.iter().map(|e| e.id)).await?;
    let known: BTreeMap<FileId, &ManifestEntry> = known.iter().map(|e| (e.id, e)).collect();
    let known = &known;
    let entries = futures_util::stream::iter(behind(&inventory, &manifest))
        .map(|f| async move {
            match known.get(&f.id()).filter(|e| e.bytes == f.bytes) {
                Some(e) => Ok(Some(**e)),
                None => read(store, &f, work_dir).await,
            }
        })
        .buffered(PARALLEL)
        .try_collect::<Vec<Option<ManifestEntry>>>()
        .await?;
    Ok(entries.into_iter().flatten().collect())
}

/// Level-0 files behind all that the manifest names, ascending.
fn behind(inventory: &Inventory, manifest: &Manifest) -> Vec<FileInfo> {
    let newest = manifest.entries().map(|e| e.id.max).max().unwrap_or_default();
    let mut files: Vec<FileInfo> =
        inventory.level(Level::L0).rev().take_while(|f| f.max > newest).take(MOST).cloned().collect();
    files.reverse();
    files
}

/// The entry of an age file. What is in it is told by who could open it.
async fn sealed(
    store: &Store,
    f: &FileInfo,
    stored: Option<[u8; 32]>,
    seen: Option<&Probe>,
) -> Result<Option<ManifestEntry>> {
    let sha256 = match stored {
        Some(sha256) => sha256,
        None => match store.stored_sum(&f.id().key(store.layout())).await {
            Ok((_, sha256)) => sha256,
            Err(e) if e.is_missing() => return Ok(None),
            Err(e) => return Err(e),
        },
    };
    let (pages, commit) = seen.map_or((0, 0), |p| (p.pages, p.header.commit));
    let time = seen.map_or(f.time, |p| p.header.timestamp);
    Ok(Some(ManifestEntry {
        id: f.id(),
        bytes: f.bytes,
        pages,
        commit,
        crc: 0,
        edge: 0,
        sha256,
        time,
        after: None,
    }))
}

/// The entry of one object; `None` if it is none of ours, not sound, or gone.
async fn read(store: &Store, f: &FileInfo, work_dir: &Path) -> Result<Option<ManifestEntry>> {
    let id = f.id();
    let p = match probe(store, f, None, AskMetadata::Yes).await? {
        Probed::Sound(p) => p,
        Probed::Sealed(stored) => return sealed(store, f, stored, None).await,
        Probed::Vanished | Probed::Damaged(_) => return Ok(None),
    };
    if p.is_sealed {
        return sealed(store, f, p.stored_sha256, Some(&p)).await;
    }
    let Some(attest) = p.header.attest else { return Ok(None) };
    if let Some(sha256) = p.stored_sha256 {
        return Ok(Some(ManifestEntry {
            id,
            bytes: f.bytes,
            pages: p.pages,
            commit: p.header.commit,
            crc: p.crc,
            edge: p.edge,
            sha256,
            time: p.header.timestamp,
            after: Some(attest.after),
        }));
    }
    // (A directory keeps no SHA-256 beside a file.)
    let copy = work_dir.join(format!(".tmp-{}-adopt-{}", std::process::id(), id.name()));
    let fetched = store.get_to_file(&id.key(store.layout()), &copy).await;
    let entry = fetched.and_then(|_| ManifestEntry::of_file(Level::L0, &copy));
    drop(std::fs::remove_file(&copy));
    match entry {
        Ok(e) if e.id == id => Ok(Some(e)),
        Ok(_) => Ok(None),
        Err(e) if e.is_missing() || Error::is_corrupt(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::manifest::ManifestWriter;
    use crate::replica::testkit::{Maker, block, history, put, upload};

    fn ids(entries: &[ManifestEntry]) -> Vec<(u64, u64)> {
        entries.iter().map(|e| (e.id.min.0, e.id.max.0)).collect()
    }

    #[test]
    fn what_lies_behind_the_manifest_is_read_from_the_object() {
        let dir = tempfile::tempdir().unwrap();
        let url = crate::store::ReplicaUrl::parse(dir.path().join("replica").to_str().unwrap()).unwrap();
        for store in [Store::in_memory(), Store::open(&url).unwrap()] {
            let mut maker = Maker::new(1024);
            let files = history(&mut maker, 12);
            block(upload(&store, &files));
            assert_eq!(ids(&block(unnamed(&store, &[], dir.path())).unwrap()), []);
            let next: Vec<_> = (13..=15).map(|n| maker.step(n)).collect();
            block(put(&store, &next));
            let found = block(unnamed(&store, &[], dir.path())).unwrap();
            assert_eq!(found, next.iter().map(|f| f.entry).collect::<Vec<_>>());
            // What is known is not read; what is not what is known is.
            let wrong = ManifestEntry { bytes: 1, ..next[1].entry };
            let noted = ManifestEntry { crc: 7, ..next[0].entry };
            let found = block(unnamed(&store, &[noted, wrong], dir.path())).unwrap();
            assert_eq!((found[0].crc, found[1].crc), (7, next[1].entry.crc));
            // What a later entry passed is nobody's.
            let mut writer = block(ManifestWriter::load(&store)).unwrap();
            block(writer.append(&store, &[next[2].entry])).unwrap();
            assert_eq!(ids(&block(unnamed(&store, &[], dir.path())).unwrap()), []);
            assert_eq!(
                std::fs::read_dir(dir.path()).unwrap().flatten().filter(|e| e.path().is_file()).count(),
                0
            );
        }
    }
}
