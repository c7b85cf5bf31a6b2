//! Restore: the database at a point, written to a file, or an error and the target as it was.
//!
//! Steps: plan → fetch files ahead, several at once → apply them in order to a temporary file beside the target → make it
//! durable, read it back → caller's check → one rename (`target`).
//!
//! Rules
//! * I-RES-1 Nothing is trusted: each file's checksum and its SHA-256 in the manifest, the chain of database checksums, and the
//!   finished file's content on disk are checked. Files without attestation (Litestream's) restore too.
//! * I-RES-2 A damaged file is no reason to fail while other files lead to the same TXID: it is left out and the way planned anew. The
//!   TXID never changes by that.
//! * I-RES-3 "Latest" is the newest state the manifest knows: if its file is lost, that is an error and not silently an older state.
//! * I-RES-4 Memory: at most `parallel` objects of [`WINDOW`] bytes; larger ones go through a file beside the target.
//! * I-RES-5 What SQLite cannot read without a key is not called damaged: its checksums are checked, its structure is not.
//!
//! Runs inside a tokio runtime (`store::block_on` gives one); files are applied on its blocking thread, so downloads go on
//! meanwhile. A crash leaves what `target` says. Refused: merging all files first and writing each page once (Litestream):
//! it needs all objects open at once, and a slow reader then holds as many connections as there are files.

use super::apply::{Applied, Applier};
use super::encrypted::is_encrypted;
use super::inventory::{FileInfo, Inventory};
use super::layout::FileId;
use super::manifest::{Manifest, ManifestEntry};
use super::place::{self, Found};
use super::plan::{Plan, plan};
use super::point::Point;
use super::target::{Occupier, Overwrite, Target};
use crate::base::{
    DbChecksum, Error, Kind, Lineage, PageSize, Result, Timestamp, TxId, clock, crash, panics,
};
use crate::store::Store;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use tokio::task::JoinHandle;

/// Objects up to this size are held in memory between download and use.
pub const WINDOW: u64 = 1024 * 1024;
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
    /// Asked for leave to replace the target: before anything is fetched, and again when it is replaced.
    pub occupier: Option<Occupier<'a>>,
    /// Downloads at once, 1 or more.
    pub parallel: usize,
    /// Called after each file.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl Default for RestoreOptions<'_> {
    fn default() -> Self {
        RestoreOptions {
            overwrite: Overwrite::Refuse,
            check: Check::None,
            checker: None,
            occupier: None,
            parallel: 8,
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
    /// Objects fetched.
    pub files: usize,
    /// Their bytes.
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
    let target = Target::prepare(path, options.overwrite)?;
    target.refuse_used(options.occupier)?;
    let Found { store, mut inventory, manifest } = place::find(store).await?;
    let store = &store;
    if matches!(point, Point::Time(_)) {
        inventory.learn_times(store).await?;
    }
    if point == Point::Latest {
        refuse_lost_tail(store, &inventory, &manifest).await?;
    }
    let plan = plan(&inventory.files, point, clock::now())?;
    let mut notes = Vec::new();
    let built = build(store, inventory, manifest, (point, plan), &target, options, &mut notes).await?;
    // `apply` held the content against what the last file attests; this holds the disk against the content.
    let checksum = built.applier.finish()?;
    crash::point("restore.built");
    let structure = match options.checker {
        Some(_) if options.check == Check::None => Structure::NotAsked,
        None => Structure::NotAsked,
        Some(_) if is_encrypted(target.temp())? => Structure::Encrypted,
        Some(checker) => checker(target.temp(), options.check).map(|()| Structure::Sound)?,
    };
    crash::point("restore.checked");
    target.commit(options.occupier, store.manners())?;
    let header = built.last.header;
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

/// The TXID that `point` means now. Errors as [`restore`] does before it fetches anything.
pub async fn txid_at(store: &Store, point: Point) -> Result<TxId> {
    let Found { store, mut inventory, .. } = place::find(store).await?;
    if matches!(point, Point::Time(_)) {
        inventory.learn_times(&store).await?;
    }
    Ok(plan(&inventory.files, point, clock::now())?.txid)
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
        last.max.0, newest.0
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

struct Built {
    applier: Applier,
    last: Applied,
    files: usize,
    bytes: u64,
}

/// Builds the temporary file, going around files that are damaged (I-RES-2) or were merged away meanwhile.
async fn build(
    store: &Store,
    mut inventory: Inventory,
    mut manifest: Manifest,
    (point, first): (Point, Plan),
    target: &Target,
    options: &RestoreOptions<'_>,
    notes: &mut Vec<String>,
) -> Result<Built> {
    let goal = Point::TxId(first.txid);
    let mut bad: BTreeSet<FileId> = BTreeSet::new();
    let mut way = first;
    for _ in 0..REPLANS {
        let (id, error) = match attempt(store, &manifest, &way, target, options).await {
            Ok(built) => return Ok(built),
            Err(failed) => failed,
        };
        let _ = std::fs::remove_file(target.temp());
        let Some(id) = id else { return Err(error) };
        if error.is_missing() {
            (inventory, manifest) = Inventory::read_with_manifest(store).await?;
        } else if error.is_corrupt() {
            notes.push(error.to_string());
            bad.insert(id);
        } else {
            return Err(error);
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

/// One try. The error comes with the file it is about, if it is about one.
async fn attempt(
    store: &Store,
    manifest: &Manifest,
    way: &Plan,
    target: &Target,
    options: &RestoreOptions<'_>,
) -> Result<Built, (Option<FileId>, Error)> {
    let plain = |e| (None, e);
    let mut applier = Applier::create(target.temp()).map_err(plain)?;
    let mut ahead = Ahead::new(store, way.files.clone(), target, options.parallel);
    let (mut last, mut bytes, of_bytes) = (None, 0, way.bytes());
    while let Some((file, fetched)) = ahead.next().await {
        let id = file.id();
        let fetched = fetched.map_err(|e| (Some(id), e))?;
        let known = manifest.get(id).copied();
        let (back, applied) = panics::blocking(move || {
            let applied = fetched.apply(&mut applier, id, known);
            (applier, applied)
        })
        .await
        .map_err(plain)?;
        applier = back;
        last = Some(applied.map_err(|e| (Some(id), e))?);
        bytes += file.bytes;
        crash::point("restore.applied");
        if let Some(progress) = options.progress {
            let (files, of_files) = (way.files.len() - ahead.left(), way.files.len());
            progress(Progress { files, of_files, bytes, of_bytes });
        }
    }
    match last {
        Some(last) => Ok(Built { applier, last, files: way.files.len(), bytes }),
        None => Err(plain(Error::new(Kind::Bug, "an empty plan"))),
    }
}

/// An object on this machine.
pub(super) enum Fetched {
    /// In memory.
    Bytes(bytes::Bytes),
    /// In a file, removed when done with.
    File(PartFile),
}

/// A file that goes when this does.
pub(super) struct PartFile(pub(super) PathBuf);

impl Drop for PartFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Fetched {
    /// Gets `file`'s object, into memory if it is small, else into `part`.
    pub(super) async fn get(store: &Store, file: &FileInfo, part: PathBuf) -> Result<Fetched> {
        let key = file.id().key(store.layout());
        if file.bytes <= WINDOW {
            return store.get(&key).await.map(Fetched::Bytes);
        }
        let part = PartFile(part);
        store.get_to_file(&key, &part.0).await?;
        Ok(Fetched::File(part))
    }

    pub(super) fn apply(
        self,
        applier: &mut Applier,
        id: FileId,
        known: Option<ManifestEntry>,
    ) -> Result<Applied> {
        match self {
            Fetched::Bytes(b) => applier.apply(id, b.as_ref(), known.as_ref()),
            Fetched::File(part) => {
                let file = std::fs::File::open(&part.0).map_err(|e| Error::io("open", &part.0, e))?;
                applier.apply(id, std::io::BufReader::with_capacity(128 * 1024, file), known.as_ref())
            }
        }
    }
}

/// Downloads files in order, some ahead of the one wanted next.
pub(super) struct Ahead {
    store: Store,
    rest: VecDeque<FileInfo>,
    under_way: VecDeque<(FileInfo, JoinHandle<Result<Fetched>>)>,
    part_base: PathBuf,
    started: usize,
    parallel: usize,
}

impl Ahead {
    pub(super) fn new(store: &Store, files: Vec<FileInfo>, target: &Target, parallel: usize) -> Ahead {
        Ahead::beside(store, files, target.temp().to_path_buf(), parallel)
    }

    /// Large objects go to `<base>.<n>`.
    pub(super) fn beside(store: &Store, files: Vec<FileInfo>, base: PathBuf, parallel: usize) -> Ahead {
        let (store, rest) = (store.clone(), files.into());
        Ahead {
            store,
            rest,
            under_way: VecDeque::new(),
            part_base: base,
            started: 0,
            parallel: parallel.max(1),
        }
    }

    /// Files not yet given out.
    pub(super) fn left(&self) -> usize {
        self.rest.len() + self.under_way.len()
    }

    /// The next file in order.
    pub(super) async fn next(&mut self) -> Option<(FileInfo, Result<Fetched>)> {
        while self.under_way.len() < self.parallel
            && let Some(file) = self.rest.pop_front()
        {
            let mut part = self.part_base.as_os_str().to_os_string();
            part.push(format!(".{}", self.started));
            self.started += 1;
            let (store, wanted) = (self.store.clone(), file.clone());
            let task = tokio::spawn(async move { Fetched::get(&store, &wanted, part.into()).await });
            self.under_way.push_back((file, task));
        }
        let (file, task) = self.under_way.pop_front()?;
        let fetched = task.await.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a download panicked")));
        Some((file, fetched))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for (_, task) in &self.under_way {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
