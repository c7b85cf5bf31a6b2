//! Retention carried out: lists, decides (`retention`), says what would go and why, and with `Force` removes it.
//!
//! Rules
//! * I-CMP-1 The manifest forgets a file before the store does (I-MAN-2), so a reader never takes what we removed for lost.
//! * I-CMP-2 Newest first, in batches: after a crash the next run goes on, and everything kept restores at every moment.
//! * I-CMP-3 Dry run and removal decide by the same code; the dry run only stops before the first write.
//! * I-CMP-4 Labels are looked for once more when the manifest has forgotten what is to go: what one of them needs by then is named again, and
//!   stays. (Who makes a label looks at the manifest after it has put the label.) A label that cannot be read keeps everything.
//!
//! A crash between manifest and store leaves objects without entry: sound files, removed by the next run. Refused: trusting the store's
//! lifecycle rules with this (they know ages, not chains).

use super::inventory::FileInfo;
use super::label::{self, Pins};
use super::labels;
use super::layout::FileId;
use super::manifest::{Manifest, ManifestEntry, ManifestWriter};
use super::place::{self, Found};
use super::retention::{Policy, Retention, Why, retention};
use crate::base::{Result, Timestamp, TxId, crash};
use crate::ltx::Level;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// Whether to remove, or only to say what would be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// Say it.
    #[default]
    DryRun,
    /// Do it.
    Force,
}

/// Keys in one request to delete: S3's limit
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html>).
const BATCH: usize = 1000;

/// What was, or would be, done.
#[derive(Clone, Debug)]
pub struct Compacted {
    /// For people.
    pub text: String,
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
}

impl Compacted {
    /// For the caller who looked first and found that there is nothing to do.
    #[must_use]
    pub fn forced(mut self) -> Compacted {
        if self.removed == 0 {
            self.text = self.text.replace(DRY_NOTHING, FORCE_NOTHING);
        }
        self
    }
}

const DRY_NOTHING: &str = "Dry run: nothing to remove.";
const FORCE_NOTHING: &str = "Nothing to remove.";

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
    inventory.learn_times(store).await?;
    let pinned = pins(store, now).await?;
    let mut decided = retention(&inventory.files, policy, &pinned.txids, now)?;
    if action == Action::Force && !decided.remove.is_empty() {
        let mut own;
        let writer = match writer {
            Some(w) => w,
            None => {
                own = ManifestWriter::load(store).await?;
                &mut own
            }
        };
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
    Ok(Compacted {
        text: text(store.url(), &inventory.files, &decided, policy, action),
        kept,
        removed,
        bytes,
        removes_full: decided.remove.iter().any(|(f, _)| f.min == TxId(1)),
        left: decided.states.keys().copied().collect(),
    })
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

/// Neighbouring files of one level with one reason are one row.
struct Row {
    level: Level,
    why: Why,
    min: TxId,
    max: TxId,
    files: usize,
    bytes: u64,
    from: Timestamp,
    to: Timestamp,
}

fn rows<'a>(files: impl Iterator<Item = (&'a FileInfo, Why)>) -> Vec<Row> {
    let mut sorted: Vec<(&FileInfo, Why)> = files.collect();
    sorted.sort_by_key(|(f, _)| f.id());
    let mut out: Vec<Row> = Vec::new();
    for (f, why) in sorted {
        match out.last_mut() {
            Some(r) if r.level == f.level && r.why == why && f.min == r.max.next() => {
                (r.max, r.to) = (f.max, f.time);
                r.files += 1;
                r.bytes += f.bytes;
            }
            _ => out.push(Row {
                level: f.level,
                why,
                min: f.min,
                max: f.max,
                files: 1,
                bytes: f.bytes,
                from: f.time,
                to: f.time,
            }),
        }
    }
    out
}

fn text(url: &str, files: &[FileInfo], decided: &Retention, policy: &Policy, action: Action) -> String {
    let mut out = format!("Compacting backup: {url}\n{}\n", "=".repeat(48));
    let window = words(policy.pitr_window);
    let _ = writeln!(
        out,
        "Policy: hourly {}, daily {}, weekly {}, monthly {}; every upload for {window}",
        policy.hourly, policy.daily, policy.weekly, policy.monthly
    );
    let full = |f: &&FileInfo| f.min == TxId(1);
    let snapshots = files.iter().filter(full).count();
    let snapshots_gone = decided.remove.iter().filter(|(f, _)| full(&f)).count();
    let bytes = |it: &mut dyn Iterator<Item = &FileInfo>| size(it.map(|f| f.bytes).sum());
    let all = bytes(&mut files.iter());
    let gone = bytes(&mut decided.remove.iter().map(|(f, _)| f));
    let verb = if action == Action::Force { "removed" } else { "to remove" };
    let _ = writeln!(out, "Snapshots: {snapshots}, {snapshots_gone} {verb}");
    let _ = writeln!(out, "Files: {} ({all}), {} {verb} ({gone})", files.len(), decided.remove.len());
    table(&mut out, verb, rows(decided.remove.iter().map(|(f, w)| (f, *w))));
    let why: BTreeMap<FileId, Why> = decided.keep.clone();
    table(&mut out, "kept", rows(files.iter().filter_map(|f| Some((f, *why.get(&f.id())?)))));
    if let (Some((first, t1)), Some((last, t2))) =
        (decided.states.first_key_value(), decided.states.last_key_value())
    {
        let _ = writeln!(
            out,
            "Restorable after this: {} points, TXID {} ({t1}) to {} ({t2})",
            decided.states.len(),
            first.0,
            last.0
        );
    }
    let end = match (action, decided.remove.len()) {
        (Action::Force, 0) => FORCE_NOTHING.to_string(),
        (Action::DryRun, 0) => DRY_NOTHING.to_string(),
        (Action::DryRun, _) => "Dry run: nothing was removed. Pass {\"force\":true} to remove.".to_string(),
        (Action::Force, n) => format!("Removed {n} files ({gone})."),
    };
    out.push_str(&end);
    out.push('\n');
    out
}

fn table(out: &mut String, title: &str, rows: Vec<Row>) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}:");
    let _ = writeln!(out, "level  files  {:>10}  {:33}  {:24}  {:24}  why", "size", "TXIDs", "from", "to");
    for r in rows {
        let (level, files, size) = (r.level.get(), r.files, size(r.bytes));
        let (from, to, why) = (r.from.rfc3339(), r.to.rfc3339(), r.why.as_str());
        let _ = writeln!(
            out,
            "{level:>5}  {files:>5}  {size:>10}  {}-{}  {from:24}  {to:24}  {why}",
            r.min, r.max
        );
    }
    out.push('\n');
}

/// `1 hour`.
pub(super) fn words(d: Duration) -> String {
    let s = d.as_secs();
    let whole = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match s {
        0 => humantime::format_duration(d).to_string(),
        _ if s.is_multiple_of(86_400) => whole(s / 86_400, "day"),
        _ if s.is_multiple_of(3600) => whole(s / 3600, "hour"),
        _ if s.is_multiple_of(60) => whole(s / 60, "minute"),
        _ => format!("{s}s"),
    }
}

/// Bytes for people, in units of 1000.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KB", "MB", "GB", "TB"] {
        if value < 999.95 || unit == "TB" {
            let text = if unit == "bytes" { format!("{value}") } else { format!("{value:.1}") };
            return format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
        value /= 1000.0;
    }
    format!("{bytes} bytes")
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
        Policy { hourly: 0, daily: 0, weekly: 0, monthly: 0, pitr_window: Duration::from_secs(window_s) }
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

    #[test]
    fn durations_are_words() {
        for (s, text) in
            [(0, "0s"), (1, "1s"), (60, "1 minute"), (90, "90s"), (7200, "2 hours"), (86_400, "1 day")]
        {
            assert_eq!(words(std::time::Duration::from_secs(s)), text);
        }
    }

    #[test]
    fn sizes() {
        for (n, s) in
            [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 KB"), (1_900_000_000, "1.9 GB"), (999_999, "1 MB")]
        {
            assert_eq!(size(n), s);
        }
    }
}
