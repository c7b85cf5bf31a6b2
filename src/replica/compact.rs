//! Retention carried out: lists, decides (`retention`), says what would go and why, and with `Force` removes it.
//!
//! Rules
//! * I-CMP-1 The manifest forgets a file before the store does (I-MAN-2), so a reader never takes what we removed for lost.
//! * I-CMP-2 Newest first, in batches: after a crash the next run goes on, and everything kept restores at every moment.
//! * I-CMP-3 Dry run and removal decide by the same code; the dry run only stops before the first write.
//! * I-CMP-4 Labels are looked for once more when the manifest has forgotten what is to go: what one of them needs by then is named again, and
//!   stays. (Who makes a label looks at the manifest after it has put the label.) A label that cannot be read keeps everything.
//!
//! * I-CMP-5 In a replica whose writer only creates, retention counts on what it vouched for before, and on what it has looked at now
//!   ([`super::belief`], [`super::vouch`]): before anything goes, what stays is vouched for. A dry run looks at what files say of themselves, and
//!   not inside them: with `Force` less may go, never more.
//!
//! * I-CMP-6 Where objects are kept from removal for a time (`retain`), what stays is kept for that time from now on when half of it has passed since it was put,
//!   before anything goes. A store that refuses ends the run: what was promised would not hold.
//!
//! A crash between manifest and store leaves objects without entry: sound files, removed by the next run. Refused: trusting the store's
//! lifecycle rules with this (they know ages, not chains).

mod told;

use super::belief;
use super::inventory::{FileInfo, Inventory};
use super::label::{self, Pins};
use super::labels;
use super::layout::FileId;
use super::manifest::{Manifest, ManifestEntry, ManifestWriter};
use super::place::{self, Found};
use super::retention::{Policy, Retention, retention};
use super::vouch;
use crate::base::{Result, Timestamp, TxId, crash};
use crate::store::{Hold, Store};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use told::Told;

pub use told::Action;
pub(super) use told::words;

/// Keys in one request to delete: S3's limit
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html>).
const BATCH: usize = 1000;

/// Locks extended at once.
const HELD_AT_ONCE: usize = 16;
/// What was, or would be, done.
#[derive(Clone, Debug)]
pub struct Compacted {
    /// For people.
    pub text: String,
    /// For programs: the same, sizes in bytes.
    pub json: Value,
    /// Files that stay.
    pub kept: usize,
    /// Files that went, or would go.
    pub removed: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Whether a full copy is among them.
    pub removes_full: bool,
    /// The states that stay restorable.
    pub left: BTreeSet<TxId>,
    /// Files that a janitor is to vouch for, or has (I-CMP-5).
    pub vouched: usize,
    /// Files that are to be kept from removal for longer, or are (I-CMP-6).
    pub extended: usize,
}

impl Compacted {
    /// For the caller who looked first and found that there is nothing to do.
    #[must_use]
    pub fn forced(mut self) -> Compacted {
        if self.removed == 0 && self.vouched == 0 && self.extended == 0 {
            self.text = self.text.replace(told::DRY_NOTHING, told::FORCE_NOTHING);
            if let Some(dry) = self.json.get_mut("dry_run") {
                *dry = Value::Bool(false);
            }
        }
        self
    }
}

/// Applies `policy` to the replica as of `now`. The holder of the lease passes its own `writer`; others get one made.
///
/// Errors: `Corrupt` if the newest state cannot be rebuilt (then nothing is removed); the store's.
pub async fn compact(
    store: &Store,
    policy: &Policy,
    action: Action,
    now: Timestamp,
    writer: Option<&mut ManifestWriter>,
) -> Result<Compacted> {
    let Found { store, mut inventory, manifest } = place::find(store).await?;
    let store = &store;
    let counted = counted_on(store, &mut inventory, &manifest, action).await?;
    let pinned = pins(store, now).await?;
    let mut decided = retention(&inventory.files, policy, &pinned.txids, now)?;
    let to_vouch: Vec<ManifestEntry> =
        counted.entries.values().filter(|e| decided.keep.contains_key(&e.id)).copied().collect();
    let vouched = match action {
        Action::Force => to_vouch.len(),
        Action::DryRun => counted.new.iter().filter(|id| decided.keep.contains_key(id)).count(),
    };
    let extended = extend(store, &inventory.files, &decided, policy, (action, now)).await?;
    if action == Action::Force && (!decided.remove.is_empty() || vouched > 0) {
        let mut own;
        let writer = match writer {
            Some(w) => w,
            None => {
                own = ManifestWriter::load(store).await?;
                &mut own
            }
        };
        writer.append(store, &to_vouch).await?;
        crash::point("compact.vouched");
        let late = unpinned(store, &pinned, now, &decided, writer).await?;
        if let Some(latest) = late {
            let less = retention(&inventory.files, policy, &latest.txids, now)?;
            decided = spare(store, &decided, less, (writer, &manifest)).await?;
        }
        remove(store, &decided).await?;
    }
    if action == Action::Force && !pinned.ended.is_empty() {
        let ended: Vec<String> = pinned.ended.iter().map(|name| name.key()).collect();
        store.delete(&ended).await?;
    }
    let bytes = decided.remove.iter().map(|(f, _)| f.bytes).sum();
    let (kept, removed) = (decided.keep.len(), decided.remove.len());
    let told = Told {
        url: store.url(),
        files: &inventory.files,
        decided: &decided,
        policy,
        action,
        vouched,
        extended,
        doubted: &counted.doubted,
    };
    Ok(Compacted {
        text: told.text(),
        json: told.json(),
        kept,
        removed,
        bytes,
        removes_full: decided.remove.iter().any(|(f, _)| f.min == TxId(1)),
        left: decided.states.keys().copied().collect(),
        vouched,
        extended,
    })
}

/// I-CMP-6. Gives how many files that is about.
async fn extend(
    store: &Store,
    files: &[FileInfo],
    decided: &Retention,
    policy: &Policy,
    (action, now): (Action, Timestamp),
) -> Result<usize> {
    let Some((how_long, mode)) = policy.retain else { return Ok(0) };
    let is_due = |f: &&FileInfo| decided.keep.contains_key(&f.id()) && now.since(f.put) >= how_long / 2;
    let due: Vec<FileId> = files.iter().filter(is_due).map(FileInfo::id).collect();
    if action == Action::Force {
        let hold = Hold { mode, until: now.plus(how_long) };
        let held = futures_util::stream::iter(due.clone())
            .map(|id| async move { store.hold(&id.key(store.layout()), hold).await });
        held.buffer_unordered(HELD_AT_ONCE).try_collect::<()>().await?;
    }
    Ok(due.len())
}

/// What a replica whose writer only creates has beside what was vouched for.
#[derive(Default)]
struct Counted {
    /// Files that nobody has vouched for, and that are counted on.
    new: BTreeSet<FileId>,
    /// What the manifest says of them, where they were read.
    entries: BTreeMap<FileId, ManifestEntry>,
    /// Files that are not counted on, and why.
    doubted: BTreeMap<FileId, String>,
}

/// Takes out of the inventory what retention does not count on (I-CMP-5). What is left has the times by which it decides.
async fn counted_on(
    store: &Store,
    inventory: &mut Inventory,
    manifest: &Manifest,
    action: Action,
) -> Result<Counted> {
    let mut counted = Counted::default();
    if !manifest.is_append_only() {
        inventory.learn_times(store).await?;
        return Ok(counted);
    }
    let vouched = |id: FileId| manifest.vouches_for(id);
    // (What a claim says of a file is the word of whoever put it.)
    for f in inventory.files.iter_mut().filter(|f| !vouched(f.id())) {
        (f.time, f.attest_before, f.attest_after) = (f.put, None, None);
    }
    inventory.learn_headers(store, |f| !vouched(f.id())).await?;
    let (good, doubted) = belief::believed(&inventory.files, vouched);
    let why = "it does not go on from what was there before it";
    counted.doubted = doubted.iter().map(|f| (f.id(), why.to_string())).collect();
    inventory.files = good;
    if action == Action::Force {
        let proof = vouch::prove(store, &inventory.files, vouched).await?;
        inventory.files.retain(|f| !proof.bad.contains_key(&f.id()));
        counted.doubted.extend(proof.bad);
        counted.entries = proof.good;
    }
    counted.new = inventory.files.iter().map(FileInfo::id).filter(|id| !vouched(*id)).collect();
    Ok(counted)
}

/// What the labels of a replica keep. Errors with that of a label that cannot be read; the store's.
async fn pins(store: &Store, now: Timestamp) -> Result<Pins> {
    let labels = labels::all(store).await?.sound();
    let labels = labels.map_err(|e| e.context("nothing is removed, for nobody knows what a label keeps"))?;
    Ok(label::pins(&labels, now))
}

/// Has the manifest forget what is to go. Gives what the labels keep by then, if that is more (I-CMP-4).
async fn unpinned(
    store: &Store,
    pinned: &Pins,
    now: Timestamp,
    decided: &Retention,
    writer: &mut ManifestWriter,
) -> Result<Option<Pins>> {
    let ids: BTreeSet<FileId> = decided.remove.iter().map(|(f, _)| f.id()).collect();
    crash::point("compact.decided");
    writer.remove(store, &ids).await?;
    crash::point("compact.forgotten");
    let latest = pins(store, now).await?;
    Ok((!latest.txids.is_subset(&pinned.txids)).then_some(latest))
}

/// Names again what is kept after all, and gives what is left to be removed.
async fn spare(
    store: &Store,
    decided: &Retention,
    mut less: Retention,
    (writer, manifest): (&mut ManifestWriter, &Manifest),
) -> Result<Retention> {
    let ids: BTreeSet<FileId> = decided.remove.iter().map(|(f, _)| f.id()).collect();
    let spared = ids.iter().filter(|id| less.keep.contains_key(id));
    let back: Vec<ManifestEntry> = spared.filter_map(|id| manifest.get(*id)).copied().collect();
    writer.append(store, &back).await?;
    less.remove.retain(|(f, _)| ids.contains(&f.id()));
    Ok(less)
}

async fn remove(store: &Store, decided: &Retention) -> Result<()> {
    for batch in decided.remove.chunks(BATCH) {
        let files = batch.iter().map(|(f, _)| f.id().key(store.layout()));
        let large = batch.iter().filter(|(f, _)| super::blocks::are_wanted(f.bytes));
        let keys: Vec<String> = files.chain(large.map(|(f, _)| super::layout::blocks_key(f.id()))).collect();
        store.delete(&keys).await?;
        crash::point("compact.deleted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::label::{By, LabelName};
    use crate::replica::point::Point;
    use crate::replica::restore::{RestoreOptions, restore};
    use crate::replica::target::Overwrite;
    use crate::replica::testkit::*;
    use crate::replica::verify::{VerifyOptions, verify};
    use crate::store::ReplicaUrl;
    use std::time::Duration;

    fn policy(window_s: u64) -> Policy {
        Policy {
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            pitr_window: Duration::from_secs(window_s),
            retain: None,
        }
    }

    fn keys(store: &Store) -> Vec<String> {
        block(store.list("")).unwrap().into_iter().map(|o| o.key).collect()
    }

    #[test]
    fn removes_what_the_dry_run_said_and_every_kept_state_restores() {
        let dir = tempfile::tempdir().unwrap();
        let local = ReplicaUrl::parse(dir.path().join("r").to_str().unwrap()).unwrap();
        for store in [Store::in_memory(), Store::open(&local).unwrap()] {
            let mut maker = Maker::new(1024);
            let mut files = history(&mut maker, 20);
            files.push(maker.snapshot());
            files.extend((21..=30).map(|n| maker.step(n)));
            block(upload(&store, &files));
            let now = Timestamp(maker.time.0 + 500);
            let before = keys(&store);
            let dry = block(compact(&store, &policy(5), Action::DryRun, now, None)).unwrap();
            assert_eq!(keys(&store), before);
            assert!(
                dry.removed > 10 && dry.text.ends_with("Pass {\"force\":true} to remove.\n"),
                "{}",
                dry.text
            );
            let done = block(compact(&store, &policy(5), Action::Force, now, None)).unwrap();
            assert_eq!((done.removed, done.kept, done.bytes), (dry.removed, dry.kept, dry.bytes));
            assert!(keys(&store).len() <= before.len() - done.removed);
            let out = dir.path().join("out.db");
            for n in 26..=30 {
                let how = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
                block(restore(&store, Point::TxId(TxId(n)), &out, &how)).unwrap();
                assert!(read(&out) == maker.images[&TxId(n)]);
            }
            let r = block(verify(&store, &VerifyOptions::default())).unwrap();
            assert_eq!(r.exit_code(), 0, "{}", r.text());
            assert_eq!(block(Manifest::read(&store)).unwrap().entries().count(), done.kept);
            let again = block(compact(&store, &policy(5), Action::Force, now, None)).unwrap();
            assert!(again.removed == 0 && again.text.contains("Nothing to remove."));
        }
    }

    /// As a writer puts it that only creates: objects, then claims.
    fn append(store: &Store, files: &[LtxFile]) {
        let store = store.clone().append_only();
        block(async {
            store.probe_conditional().await.unwrap();
            let mut writer = ManifestWriter::load(&store).await.unwrap();
            for f in files {
                let meta = crate::store::PutMeta::default();
                store.put_new(&f.id.key(store.layout()), f.bytes.clone(), meta).await.unwrap();
            }
            let entries: Vec<ManifestEntry> = files.iter().map(|f| f.entry).collect();
            writer.append(&store, &entries).await.unwrap();
        });
    }

    #[test]
    fn what_stays_of_an_append_only_replica_is_vouched_for_first_and_junk_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let local = ReplicaUrl::parse(dir.path().join("r").to_str().unwrap()).unwrap();
        for store in [Store::in_memory(), Store::open(&local).unwrap()] {
            let mut maker = Maker::new(1024);
            let mut files = history(&mut maker, 20);
            files.push(maker.snapshot());
            files.extend((21..=30).map(|n| maker.step(n)));
            append(&store, &files);
            // What a thief puts: a snapshot of another database, one of a time to come, merged files, half a file, and claims of each.
            let mut other = Maker::new(1024);
            for n in 2..=25 {
                other.step(n);
            }
            let mut junk = vec![other.snapshot()];
            other.txid = TxId(28);
            other.time.0 += 400 * 86_400_000;
            junk.push(other.snapshot());
            let mut half = merged(3, &files[1..5]);
            half.bytes.truncate(half.bytes.len() / 2);
            junk.push(half);
            crate::base::clock::sleep(Duration::from_millis(20));
            append(&store, &junk);
            let now = Timestamp(maker.time.0 + 500);
            let dry = block(compact(&store, &policy(5), Action::DryRun, now, None)).unwrap();
            assert!(dry.vouched > 5 && dry.removed > 10, "{}", dry.text);
            let before = keys(&store);
            let done = block(compact(&store, &policy(5), Action::Force, now, None)).unwrap();
            assert!(done.text.contains("Not counted on, and left as they are: 3"), "{}", done.text);
            let left = keys(&store);
            for f in &junk {
                assert!(left.contains(&f.id.key(store.layout())));
            }
            assert!(left.len() < before.len() - 10);
            let out = dir.path().join("out.db");
            for n in 26..=30 {
                let how = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
                block(restore(&store, Point::TxId(TxId(n)), &out, &how)).unwrap();
                assert!(read(&out) == maker.images[&TxId(n)], "{n}");
            }
            // It goes on: what comes next is new, what was vouched for is not read again.
            let mut more: Vec<_> = (31..=40).map(|n| maker.step(n)).collect();
            more.push(maker.snapshot());
            append(&store, &more);
            let now = Timestamp(maker.time.0 + 500);
            let again = block(compact(&store, &policy(5), Action::Force, now, None)).unwrap();
            assert!(again.vouched > 0 && again.vouched <= more.len(), "{}", again.text);
            let nothing = block(compact(&store, &policy(5), Action::Force, now, None)).unwrap();
            assert_eq!((nothing.removed, nothing.vouched), (0, 0), "{}", nothing.text);
            let manifest = block(Manifest::read(&store)).unwrap();
            assert!(manifest.is_append_only() && manifest.damaged.is_empty());
            assert_eq!(manifest.entries().filter(|e| manifest.vouches_for(e.id)).count(), nothing.kept);
        }
    }

    #[test]
    fn a_store_that_is_only_added_to_sends_nothing_else() {
        let store = Store::in_memory().append_only();
        block(async {
            assert_eq!(store.probe_conditional().await.unwrap(), crate::store::Conditions::CreateOnly);
            let meta = crate::store::PutMeta::default;
            store.put_new("a", b"1".to_vec(), meta()).await.unwrap();
            for refused in [
                store.put_over("a", b"2".to_vec()).await,
                store.put_if("b", b"2".to_vec(), None).await.map(drop),
                store.delete(&["a".to_string()]).await,
            ] {
                let e = refused.unwrap_err();
                assert!(
                    e.kind() == crate::base::Kind::Config && e.to_string().contains("append_only"),
                    "{e}"
                );
            }
            assert_eq!(store.get("a").await.unwrap(), &b"1"[..]);
            assert!(store.put_new("a", b"2".to_vec(), meta()).await.is_err());
        });
    }

    #[test]
    fn a_label_that_is_made_between_the_two_steps_keeps_its_point() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let mut files = history(&mut maker, 20);
        files.push(maker.snapshot());
        block(upload(&store, &files));
        let now = Timestamp(maker.time.0 + 3_600_000);
        block(async {
            let (inventory, manifest) = crate::replica::Inventory::read_with_manifest(&store).await.unwrap();
            let pinned = pins(&store, now).await.unwrap();
            let decided = retention(&inventory.files, &policy(0), &pinned.txids, now).unwrap();
            assert!(decided.remove.iter().any(|(f, _)| f.max == TxId(5)));
            let mut writer = ManifestWriter::load(&store).await.unwrap();
            // It was put when the manifest still named all of it, and looked at before the first step.
            let name = LabelName::of_key("walrust/labels/a.json").unwrap();
            labels::make(&store, &name, Point::TxId(TxId(5)), By::Person).await.unwrap();
            let latest = unpinned(&store, &pinned, now, &decided, &mut writer).await.unwrap().unwrap();
            let less = retention(&inventory.files, &policy(0), &latest.txids, now).unwrap();
            let decided = spare(&store, &decided, less, (&mut writer, &manifest)).await.unwrap();
            remove(&store, &decided).await.unwrap();
        });
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.db");
        block(restore(&store, Point::TxId(TxId(5)), &out, &RestoreOptions::default())).unwrap();
        assert!(read(&out) == maker.images[&TxId(5)]);
        let r = block(verify(&store, &VerifyOptions::default())).unwrap();
        assert_eq!(r.exit_code(), 0, "{}", r.text());
        let named = block(Manifest::read(&store)).unwrap();
        assert!(named.entries().any(|e| e.id.max == TxId(5)), "it is named again");
    }

    #[test]
    fn the_shippers_writer_goes_on_after_it() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let files = history(&mut maker, 12);
        block(upload(&store, &files));
        let mut writer = block(ManifestWriter::load(&store)).unwrap();
        let now = Timestamp(maker.time.0 + 3_600_000);
        block(compact(&store, &policy(0), Action::Force, now, Some(&mut writer))).unwrap();
        let next = maker.step(13);
        block(put(&store, std::slice::from_ref(&next)));
        block(writer.append(&store, &[next.entry])).unwrap();
        let r = block(verify(&store, &VerifyOptions::default())).unwrap();
        assert_eq!(r.exit_code(), 0, "{}", r.text());
    }

    #[test]
    fn a_damaged_replica_keeps_everything() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let files = history(&mut maker, 12);
        block(upload(&store, &files));
        block(store.delete(&[files.iter().find(|f| f.id.max.0 == 9).unwrap().id.key(store.layout())]))
            .unwrap();
        let before = keys(&store);
        let e = block(compact(&store, &policy(0), Action::Force, maker.time, None)).unwrap_err();
        assert!(e.is_corrupt(), "{e}");
        assert_eq!(keys(&store), before);
    }
}
