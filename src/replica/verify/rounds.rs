//! Looking at a replica while others change it: round after round, until what is wrong stays wrong.

use super::finding::{Finding, Rule, Severity};
use super::judge::{self, Facts, judge};
use crate::base::{Error, Kind, Result};
use crate::replica::inventory::{FileInfo, Inventory};
use crate::replica::layout::FileId;
use crate::replica::manifest::is_ahead;
use crate::replica::probe::{AskMetadata, Probed, probe};
use crate::replica::restore::confirm_lost;
use crate::store::Store;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Files looked at at once.
const PARALLEL: usize = 32;
/// Bytes of a file from which on only two are looked at at once, to bound memory: its page index takes 1 MiB for each 150,000 pages.
const LARGE: u64 = 256 * 1024 * 1024;
/// Rounds until what still changes is reported as it is.
pub(super) const ROUNDS: usize = 8;

/// I-VER-2: looks until what is wrong stays wrong.
pub(super) async fn settled(store: &Store, pause: Duration) -> Result<(Facts, Vec<Finding>)> {
    let mut before: Option<BTreeSet<(Rule, Option<FileId>, String)>> = None;
    let mut unnamed: Option<BTreeSet<FileId>> = None;
    let mut known = BTreeMap::new();
    for round in 1.. {
        let mut facts = gather(store, &mut known).await?;
        let now = judge::unnamed(&facts);
        // A file that is put and not yet named is named at the next look.
        facts.unnamed = unnamed.map_or_else(|| now.clone(), |u| u.intersection(&now).copied().collect());
        unnamed = Some(now);
        facts.ahead = !facts.unnamed.is_empty() && is_ahead(store, &facts.manifest).await?;
        let findings = judge(&facts);
        // Two gaps in two places are not one that stays.
        let place = |f: &Finding| if f.check == Rule::Continuity { f.message.clone() } else { String::new() };
        let wrong: BTreeSet<_> = findings
            .iter()
            .filter(|f| f.severity != Severity::Ok)
            .map(|f| (f.check, f.file, place(f)))
            .collect();
        if wrong.is_empty() || before.as_ref() == Some(&wrong) || round >= ROUNDS {
            return Ok((facts, findings));
        }
        // What was wrong is read afresh; what was sound is not.
        for id in wrong.iter().filter_map(|(_, file, _)| *file) {
            known.remove(&id);
        }
        before = Some(wrong);
        tokio::time::sleep(pause).await;
    }
    Err(Error::new(Kind::Bug, "verify ended without an answer"))
}

/// One round: manifest, listings, probes of what is not known yet, questions about what is absent.
async fn gather(store: &Store, known: &mut BTreeMap<FileId, (u64, Probed)>) -> Result<Facts> {
    let (inventory, manifest) = Inventory::read_with_manifest(store).await?;
    let (large, small): (Vec<&FileInfo>, Vec<&FileInfo>) = inventory
        .files
        .iter()
        .filter(|f| known.get(&f.id()).is_none_or(|(bytes, _)| *bytes != f.bytes))
        .partition(|f| f.bytes >= LARGE);
    let manifest_ref = &manifest;
    let look = |f: &FileInfo| {
        let f = f.clone();
        async move {
            let entry = manifest_ref.get(f.id());
            // (Of a replica without a manifest nobody claims to know more than the files say.)
            let ask = if manifest_ref.is_absent() { AskMetadata::No } else { AskMetadata::Yes };
            Ok::<_, Error>((f.id(), (f.bytes, probe(store, &f, entry, ask).await?)))
        }
    };
    let small: Vec<_> =
        futures_util::stream::iter(small).map(look).buffer_unordered(PARALLEL).try_collect().await?;
    let large: Vec<_> = futures_util::stream::iter(large).map(look).buffer_unordered(2).try_collect().await?;
    known.extend(small);
    known.extend(large);
    let mut files = Vec::with_capacity(inventory.files.len());
    for f in inventory.files {
        match known.get(&f.id()) {
            Some((_, Probed::Vanished)) | None => {}
            Some((_, p)) => files.push((f, p.clone())),
        }
    }
    let there: BTreeSet<FileId> = files.iter().map(|(f, _)| f.id()).collect();
    let absent: Vec<FileId> = manifest.entries().map(|e| e.id).filter(|id| !there.contains(id)).collect();
    let lost = confirm_lost(store, &absent).await?;
    known.retain(|id, _| there.contains(id));
    Ok(Facts { files, manifest, lost, unnamed: BTreeSet::new(), ahead: false, content: BTreeMap::new() })
}
