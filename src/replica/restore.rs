//! Restore: the database at a point, written to a file, or an error and the target as it was.
//!
//! Steps: plan → fetch files ahead, several requests at once ([`super::fetch`]) → apply them in order to a temporary file beside the
//! target, the pages of a large one straight to their places by several threads ([`super::large`]) → make it durable → read it back,
//! and meanwhile the caller's check → one rename (`target`). No object is ever a second copy on disk.
//!
//! Rules
//! * I-RES-1 Nothing is trusted: each file's checksum and its SHA-256 in the manifest, the chain of database checksums, and the
//!   finished file's content on disk are checked. Files without attestation (Litestream's) restore too.
//! * I-RES-2 A damaged file is no reason to fail while other files lead to the same TXID: it is left out and the way planned anew. The
//!   TXID never changes by that.
//! * I-RES-3 "Latest" is the newest state the manifest knows: if its file is lost, that is an error and not silently an older state.
//! * I-RES-4 Memory is bounded, however large the database and its files are: what is fetched ahead (I-FETCH-1), and a few buffers of
//!   the threads that unpack it.
//! * I-RES-5 What SQLite cannot read without a key is not called damaged: its checksums are checked, its structure is not.
//! * I-RES-6 What was built of pages at hand is proved as a whole, or built anew without them (I-REUSE-2): nothing at hand makes a restore
//!   fail, or its result another one.
//! * I-RES-7 In a replica whose writer only creates, whoever has its keys can put files of any name beside those that are there. A way that fails over
//!   one, or leads to another state than the file that first ended at the TXID attests, is planned anew among what a janitor vouched for and what the
//!   store had taken when the TXID could first be reached: what was put later cannot take a point away.
//!
//! Runs inside a tokio runtime (`store::block_on` gives one); files are applied on its blocking threads, so downloads go on
//! meanwhile. A crash, or a store that is away for longer than the tries of a request last, leaves the temporary file, and the next restore to
//! that target goes on in it ([`super::reuse`]) where its caller lets it ([`Reuse`]).
//!
//! Refused: merging all files first and writing each page once (Litestream):
//! it needs all objects open at once, and a slow reader then holds as many connections as there are files.

use super::apply::{Applier, Placing};
use super::belief;
use super::encrypted::is_encrypted;
use super::fetch::{Ahead, Arrived, Elsewhere, PARALLEL};
use super::inventory::{Inventory, read_header};
use super::large::Large;
use super::layout::FileId;
use super::manifest::{Manifest, ManifestEntry};
use super::place::{self, Found};
use super::plan::{Plan, plan};
use super::point::Point;
use super::reuse::{self, AtHand, Reuse};
use super::target::{Occupier, Overwrite, Target};
use crate::base::{
    DbChecksum, Error, Kind, Lineage, PageSize, Result, Timestamp, TxId, clock, crash, panics, thread,
};
use crate::ltx::Header;
use crate::store::Store;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often a way is planned anew because a file was damaged or merged away.
const REPLANS: usize = 8;

/// HEAD requests under way at once.
const LOOKS: usize = 32;

/// How the caller wants the restored file checked by SQLite.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Check {
    /// Checksums only.
    None,
    /// `PRAGMA quick_check`.
    #[default]
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

/// What is known of the structure of a restored database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Structure {
    /// Nobody asked for a check.
    NotAsked,
    /// SQLite checked it, and it is sound.
    Sound,
    /// It is encrypted, so SQLite cannot look into it without the key. Its checksums were checked.
    Encrypted,
}

/// How far a restore has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Files applied.
    pub files: usize,
    /// Files to apply.
    pub of_files: usize,
    /// Bytes of objects applied.
    pub bytes: u64,
    /// Bytes of objects to apply.
    pub of_bytes: u64,
}

/// Runs SQLite's check on a finished file; an error means that the file is not to be used.
pub type Checker<'a> = &'a (dyn Fn(&Path, Check) -> Result<()> + Sync);

/// How to restore.
#[derive(Clone, Copy)]
pub struct RestoreOptions<'a> {
    /// What to do with an existing target.
    pub overwrite: Overwrite,
    /// Which check `checker` is asked for.
    pub check: Check,
    /// Called with the temporary file, unless `check` is `None`.
    pub checker: Option<Checker<'a>>,
    /// What may be taken from this machine.
    pub reuse: Reuse,
    /// Asked for leave to replace the target: before anything is fetched, and again when it is replaced.
    pub occupier: Option<Occupier<'a>>,
    /// Requests at once, 1 or more.
    pub parallel: usize,
    /// Called after each file, and after each part of a large one.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl Default for RestoreOptions<'_> {
    fn default() -> Self {
        RestoreOptions {
            overwrite: Overwrite::Refuse,
            check: Check::None,
            checker: None,
            reuse: Reuse::Nothing,
            occupier: None,
            parallel: PARALLEL,
            progress: None,
        }
    }
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The TXID reached.
    pub txid: TxId,
    /// The time of its file.
    pub time: Timestamp,
    /// The history it belongs to; `Lineage(0)` for Litestream's.
    pub lineage: Lineage,
    /// Checksum of the content, as read back.
    pub checksum: DbChecksum,
    /// Whether the last file attests that checksum.
    pub attested: bool,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database in pages.
    pub pages: u32,
    /// What SQLite found in it.
    pub structure: Structure,
    /// Files of the plan.
    pub files: usize,
    /// Bytes of them that were fetched.
    pub bytes: u64,
    /// Files that were found damaged and gone around (I-RES-2), one line each.
    pub notes: Vec<String>,
}

/// Restores the database at `point` to `path`.
///
/// Errors: `Missing` for a point outside the history or an absent directory; `Exists` for an existing target; `Config` for one that
/// is in use; `Corrupt` if the
/// replica's files do not give that state; `Io`; and the store's. The target is untouched after any of them.
pub async fn restore(
    store: &Store,
    point: Point,
    path: &Path,
    options: &RestoreOptions<'_>,
) -> Result<Restored> {
    let mut target = Target::prepare(path, options.overwrite)?;
    target.refuse_used(options.occupier)?;
    let (built, store) = match into_temp(store, point, &mut target, options).await {
        Ok(done) => done,
        Err(e) => {
            if e.is_retry() && options.reuse != Reuse::Nothing {
                target.leave();
            }
            return Err(e);
        }
    };
    put_in_place(built, target, &store, options)
}

/// The last step.
fn put_in_place(
    proved: Proved,
    target: Target,
    store: &Store,
    options: &RestoreOptions<'_>,
) -> Result<Restored> {
    crash::point("restore.checked");
    target.commit(options.occupier, store.manners())?;
    let Proved { built, checksum, structure, notes } = proved;
    let header = built.last;
    Ok(Restored {
        txid: header.max,
        time: header.timestamp,
        lineage: header.lineage,
        checksum,
        attested: header.attest.is_some(),
        page_size: header.page_size,
        pages: header.commit,
        structure,
        files: built.files,
        bytes: built.bytes,
        notes,
    })
}

/// Proves what was built and puts it in its place. Errors as [`restore`] does; the target is untouched after any of them.
pub(super) fn finish(
    built: Built,
    target: Target,
    store: &Store,
    options: &RestoreOptions<'_>,
    notes: Vec<String>,
) -> Result<Restored> {
    built.applier.sync()?;
    crash::point("restore.built");
    let (checksum, structure) = prove(&built.applier, target.temp(), options);
    let proved = Proved { built, checksum: checksum?, structure: structure?, notes };
    put_in_place(proved, target, store, options)
}

/// What lies in the temporary file, proved.
struct Proved {
    built: Built,
    checksum: DbChecksum,
    structure: Structure,
    notes: Vec<String>,
}

/// What the replica holds, and the files that make `point`. Errors where that is not there or not whole, and with the store's.
pub(super) async fn choose(store: &Store, point: Point) -> Result<(Found, Plan)> {
    let mut found = place::find(store).await?;
    if matches!(point, Point::Time(_)) {
        found.inventory.learn_times(&found.store).await?;
    }
    if point == Point::Latest {
        refuse_lost_tail(&found.store, &found.inventory, &found.manifest).await?;
    }
    let way = plan(&found.inventory.files, point, clock::now());
    let way = match (way, point) {
        (Err(e), Point::TxId(txid)) => {
            // (What was put beside a history may lead nowhere, too.)
            let early = belief::as_it_was(&found.inventory.files, &found.manifest, txid);
            early.and_then(|files| plan(&files, point, clock::now()).ok()).ok_or(e)
        }
        (way, _) => way,
    };
    let way = way.map_err(|e| named(&found.store, &found.inventory, e))?;
    Ok((found, way))
}

/// Everything up to the moment when the target changes.
async fn into_temp(
    store: &Store,
    point: Point,
    target: &mut Target,
    options: &RestoreOptions<'_>,
) -> Result<(Proved, Store)> {
    let (Found { store, inventory, manifest }, plan) = choose(store, point).await?;
    let witness = witness(&store, &inventory, &manifest, &plan).await?;
    let at_hand = of_what_is_at_hand(&store, &manifest, &plan, target, options).await?;
    if let Some(built) = at_hand.filter(|built| agrees(witness, &built.last)) {
        built.applier.sync()?;
        crash::point("restore.built");
        let (checksum, structure) = prove(&built.applier, target.temp(), options);
        match checksum {
            Ok(checksum) => {
                let proved = Proved { built, checksum, structure: structure?, notes: Vec::new() };
                return Ok((proved, store));
            }
            Err(e) => log::info!(
                "walrust: {}: restored anew, without what was at hand: {e}",
                target.path().display()
            ),
        }
    }
    target.discard()?;
    let mut notes = Vec::new();
    let held = (inventory, manifest, witness);
    let built = build(&store, held, (point, plan), target, options, &mut notes).await?;
    built.applier.sync()?;
    crash::point("restore.built");
    let (checksum, structure) = prove(&built.applier, target.temp(), options);
    Ok((Proved { built, checksum: checksum?, structure: structure?, notes }, store))
}

/// The state at the end of a plan, as the file attests that first ended there; `None` where that is the plan's own, or the replica is no
/// append-only one (I-RES-7). Errors: the store's.
async fn witness(
    store: &Store,
    inventory: &Inventory,
    manifest: &Manifest,
    plan: &Plan,
) -> Result<Option<DbChecksum>> {
    if !manifest.is_append_only() {
        return Ok(None);
    }
    let ends = inventory.files.iter().filter(|f| f.max == plan.txid);
    let first = ends.min_by_key(|f| (!manifest.vouches_for(f.id()), f.put, f.level));
    match first.filter(|f| plan.files.last().is_none_or(|l| l.id() != f.id())) {
        None => Ok(None),
        Some(f) => match read_header(store, f.id()).await {
            Ok(header) => Ok(header.attest.map(|a| a.after)),
            Err(e) if e.is_missing() || e.is_corrupt() => Ok(None),
            Err(e) => Err(e),
        },
    }
}

fn agrees(witness: Option<DbChecksum>, last: &Header) -> bool {
    witness.is_none_or(|sum| last.attest.is_none_or(|a| a.after == sum))
}

/// The temporary file, out of what is at hand and what is fetched; `None` if nothing is, or nothing came of it (I-RES-6).
async fn of_what_is_at_hand(
    store: &Store,
    manifest: &Manifest,
    plan: &Plan,
    target: &mut Target,
    options: &RestoreOptions<'_>,
) -> Result<Option<Built>> {
    let at_hand = AtHand::find(options.reuse, target, options.occupier)?;
    target.sweep();
    let Some(at_hand) = at_hand else { return Ok(None) };
    let (settled, of_bytes, of_files) = (AtomicU64::new(0), plan.bytes(), plan.files.len());
    let tell = |bytes: u64| {
        let bytes = settled.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = options.progress {
            let files = if bytes >= of_bytes { of_files } else { 0 };
            progress(Progress { files, of_files, bytes: bytes.min(of_bytes), of_bytes });
        }
    };
    match reuse::build(store, manifest, plan, target, at_hand, options.parallel, &tell).await {
        Ok(Some(reused)) => Ok(Some(Built {
            applier: reused.applier,
            last: reused.header,
            files: of_files,
            bytes: reused.bytes,
        })),
        Ok(None) => Ok(None),
        Err(e) if e.is_corrupt() || e.is_missing() => {
            log::info!("walrust: {}: restored anew, without what was at hand: {e}", target.path().display());
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// `apply` held the content against what the last file attests; reading it back holds the disk against the content. Meanwhile the caller's check.
fn prove(
    applier: &Applier,
    temp: &Path,
    options: &RestoreOptions<'_>,
) -> (Result<DbChecksum>, Result<Structure>) {
    std::thread::scope(|s| {
        let reading = thread::spawn_scoped(s, "walrust-prove", || applier.read_back());
        let structure = match options.checker {
            None => Ok(Structure::NotAsked),
            Some(_) if options.check == Check::None => Ok(Structure::NotAsked),
            Some(checker) => match is_encrypted(temp) {
                Ok(true) => Ok(Structure::Encrypted),
                Ok(false) => checker(temp, options.check).map(|()| Structure::Sound),
                Err(e) => Err(e),
            },
        };
        let read = match reading {
            Ok(t) => t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a panic while reading"))),
            Err(_) => applier.read_back(),
        };
        (read, structure)
    })
}

/// The TXID that `point` means now. Errors as [`restore`] does before it fetches anything.
pub async fn txid_at(store: &Store, point: Point) -> Result<TxId> {
    let Found { store, mut inventory, .. } = place::find(store).await?;
    if matches!(point, Point::Time(_)) {
        inventory.learn_times(&store).await?;
    }
    let plan = plan(&inventory.files, point, clock::now()).map_err(|e| named(&store, &inventory, e))?;
    Ok(plan.txid)
}

/// Why there is no way, with the name of a replica that holds nothing at all: its URL may be the mistake.
fn named(store: &Store, inventory: &Inventory, e: Error) -> Error {
    if inventory.is_empty() { e.context(store.url()) } else { e }
}

/// I-RES-3.
pub(crate) async fn refuse_lost_tail(
    store: &Store,
    inventory: &Inventory,
    manifest: &Manifest,
) -> Result<()> {
    let newest = inventory.newest();
    if newest == TxId::ZERO {
        return Ok(());
    }
    let later: Vec<FileId> = manifest.entries().map(|e| e.id).filter(|id| id.max > newest).collect();
    let lost = confirm_lost(store, &later).await?;
    let Some(last) = lost.iter().max_by_key(|id| id.max) else { return Ok(()) };
    Err(Error::corrupt(format!(
        "the newest file {last} (TXID {}) is named by the manifest but gone from the replica; restore TXID {} by \
         naming it to accept the older state",
        last.max, newest
    )))
}

/// Of `ids`, which the manifest named and a listing lacked: those that are lost. A file removed in order has left the manifest before
/// the store (I-MAN-2), so what is absent now and still named after that is lost.
pub(super) async fn confirm_lost(store: &Store, ids: &[FileId]) -> Result<BTreeSet<FileId>> {
    let looks = futures_util::stream::iter(ids.iter().copied()).map(|id| async move {
        match store.head(&id.key(store.layout())).await {
            Ok(_) => Ok(None),
            Err(e) if e.is_missing() => Ok(Some(id)),
            Err(e) => Err(e),
        }
    });
    let absent: Vec<Option<FileId>> = looks.buffer_unordered(LOOKS).try_collect().await?;
    let mut absent: BTreeSet<FileId> = absent.into_iter().flatten().collect();
    if absent.is_empty() {
        return Ok(absent);
    }
    let manifest = Manifest::read(store).await?;
    absent.retain(|id| manifest.get(*id).is_some());
    Ok(absent)
}

/// A temporary file that is whole, and not proved yet.
pub(super) struct Built {
    applier: Applier,
    last: Header,
    files: usize,
    bytes: u64,
}

/// Builds the temporary file, going around files that are damaged (I-RES-2) or were merged away meanwhile.
async fn build(
    store: &Store,
    (mut inventory, mut manifest, witness): (Inventory, Manifest, Option<DbChecksum>),
    (point, first): (Point, Plan),
    target: &Target,
    options: &RestoreOptions<'_>,
    notes: &mut Vec<String>,
) -> Result<Built> {
    let goal = Point::TxId(first.txid);
    let mut bad: BTreeSet<FileId> = BTreeSet::new();
    let (mut way, mut is_early) = (first, false);
    for _ in 0..REPLANS {
        let sources = Sources { store, manifest: &manifest, elsewhere: Elsewhere::new() };
        let (id, error) = match attempt(&sources, &way, target, options).await {
            Ok(built) if agrees(witness, &built.last) => return Ok(built),
            Ok(built) => {
                let id = way.files.last().map(super::inventory::FileInfo::id);
                let text = format!(
                    "{} leads to another state than the file that first ended at TXID {}",
                    built.last.file_name(),
                    way.txid
                );
                (id, Error::corrupt(text))
            }
            Err(failed) => failed,
        };
        // (What may pass leaves the file to whoever goes on in it.)
        let Some(id) = id.filter(|_| error.is_missing() || error.is_corrupt()) else { return Err(error) };
        target.discard()?;
        if error.is_missing() {
            (inventory, manifest) = Inventory::read_with_manifest(store).await?;
        } else {
            notes.push(error.to_string());
            // (Which of two files that do not fit is the wrong one, the failure does not tell; when they came does.)
            let early =
                if is_early { None } else { belief::as_it_was(&inventory.files, &manifest, way.txid) };
            is_early = true;
            match early {
                Some(early) => inventory.files = early,
                None => drop(bad.insert(id)),
            }
        }
        inventory.files.retain(|f| !bad.contains(&f.id()) && (f.id() != id || !error.is_missing()));
        let again = |p| plan(&inventory.files, p, clock::now());
        way = match again(goal) {
            Ok(way) => way,
            // The state meant was merged into a later one meanwhile: what the caller said is looked up anew.
            Err(_) if error.is_missing() => again(point)?,
            Err(_) => return Err(error),
        };
    }
    Err(Error::new(Kind::Retry, "the replica changed each time it was read; try again"))
}

/// Where the files of a way come from.
pub(super) struct Sources<'a> {
    pub(super) store: &'a Store,
    pub(super) manifest: &'a Manifest,
    /// But these.
    pub(super) elsewhere: Elsewhere,
}

impl Sources<'_> {
    /// What the manifest says of the file, where it comes from.
    fn sworn(&self, id: FileId) -> Option<ManifestEntry> {
        match self.elsewhere.get(&id) {
            Some((_, entry)) => *entry,
            None => self.manifest.sworn(id).copied(),
        }
    }
}

/// One try. The error comes with the file it is about, if it is about one.
pub(super) async fn attempt(
    sources: &Sources<'_>,
    way: &Plan,
    target: &Target,
    options: &RestoreOptions<'_>,
) -> Result<Built, (Option<FileId>, Error)> {
    let plain = |e| (None, e);
    let mut applier = Applier::create(target.temp()).map_err(plain)?;
    let ahead = Ahead::new(sources.store, way.files.clone(), options.parallel);
    let mut ahead = ahead.but_for(&sources.elsewhere);
    let mut large: Option<Large<Placing>> = None;
    let mut last = None;
    let (mut files, mut bytes) = (0, 0);
    while let Some(arrived) = ahead.next().await {
        let id = arrived.file.id();
        let about = |e| (Some(id), e);
        let (whole, end) = (arrived.is_whole(), arrived.is_last());
        let Arrived { file, range, piece } = arrived;
        let piece = piece.map_err(about)?;
        let known = sources.sworn(id);
        if whole {
            let (back, applied) = panics::blocking(move || {
                let applied = applier.apply(id, piece.bytes.as_ref(), known.as_ref());
                (applier, applied)
            })
            .await
            .map_err(plain)?;
            applier = back;
            last = Some(applied.map_err(about)?.header);
        } else {
            let about = |e: Error| (Some(id), if e.is_corrupt() { e.context(id) } else { e });
            let mut coming = large.take().unwrap_or_else(|| Large::new(applier.placing(id)));
            coming.push(piece).await.map_err(about)?;
            if end {
                let proved = coming.finish().await.map_err(about)?;
                let (back, applied) = panics::blocking(move || {
                    let applied = applier.placed(id, proved, known.as_ref());
                    (applier, applied)
                })
                .await
                .map_err(plain)?;
                applier = back;
                last = Some(applied.map_err(|e| (Some(id), e))?.header);
            } else {
                large = Some(coming);
            }
        }
        bytes += if end { file.bytes - range.start } else { range.end - range.start };
        if end {
            files += 1;
            crash::point("restore.applied");
        }
        if let Some(progress) = options.progress {
            progress(Progress { files, of_files: way.files.len(), bytes, of_bytes: way.bytes() });
        }
    }
    match last {
        Some(last) if files == way.files.len() => Ok(Built { applier, last, files, bytes }),
        _ => Err(plain(Error::new(
            Kind::Bug,
            format!("{files} of the {} files of a plan came", way.files.len()),
        ))),
    }
}

#[cfg(test)]
mod tests;
