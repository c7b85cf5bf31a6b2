//! New recipients for the files of an encrypted replica (`walrust_rekey`): each is read with the identity, encrypted for the recipients of now,
//! and put in its own place.
//!
//! Rules
//! * I-KEY-1 A file is replaced by one that holds the same, whole and synced before its PUT begins; a replaced object opens for the old or for the
//!   new recipients, and there is never none.
//! * I-KEY-2 Nothing that is opened lies on a disk (I-AGE-5): what is read is encrypted as it comes.
//! * I-KEY-3 Only files that the manifest names are replaced, and who calls has the manifest alone: retention removes nothing meanwhile that would
//!   come again.
//!
//! A crash leaves objects that are replaced and whose entries are of those before: the next run does them again, and until then a verification tells of them by
//! their size or SHA-256. Refused: entries before objects (the same, the other way round); a new replica elsewhere (the old one stays readable to whom it
//! is to be taken from, and the program's URL would change).

use super::compact::Action;
use super::manifest::{ManifestEntry, ManifestWriter};
use super::place::{self, Found};
use crate::base::scratch::Scratch;
use crate::base::sealed::no_identity;
use crate::base::{Error, Result, crash, size};
use crate::store::{Body, PutMeta, Recipients, Store};
use serde_json::{Value, json};
use std::path::Path;

/// Entries that are written at once: after so many files, or so many bytes.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: u64 = 64 << 20;

/// What was, or would be, done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rekeyed {
    /// Files that are encrypted anew.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that no entry names yet: they stay as they are.
    pub unnamed: usize,
}

impl Rekeyed {
    /// For people.
    pub fn text(&self, url: &str, action: Action) -> String {
        let Rekeyed { files, bytes, unnamed } = self;
        let (verb, end) = match action {
            Action::DryRun => ("to encrypt", "Dry run: nothing was changed. Pass {\"force\":true} to do it."),
            Action::Force => ("encrypted", "Set encrypt to the same keys for what is uploaded from now on."),
        };
        let left = match unnamed {
            0 => String::new(),
            n => format!("New files that have no entry yet, left as they are: {n}\n"),
        };
        format!("Rekeying backup: {url}\nFiles {verb} anew: {files} ({})\n{left}{end}", size(*bytes))
    }

    /// For programs.
    pub fn json(&self, url: &str, action: Action) -> Value {
        json!({
            "replica": url,
            "dry_run": action == Action::DryRun,
            "files": self.files,
            "bytes": self.bytes,
            "files_without_entry": self.unnamed,
        })
    }
}

/// Encrypts each file of the replica that the manifest names for `recipients`, if `action` says so; age files are made in `dir`. `meta_of` says how
/// a file is put, beside what is in it. Errors with [`crate::base::Kind::Config`] where the replica holds files in the clear, or no identity opens
/// it; `Corrupt` where a file is not as it was; the store's.
pub async fn rekey(
    store: &Store,
    recipients: &Recipients,
    dir: &Path,
    action: Action,
    meta_of: impl Fn(&ManifestEntry) -> PutMeta,
) -> Result<Rekeyed> {
    let Found { store, inventory, manifest } = place::find(store).await?;
    let files: Vec<ManifestEntry> =
        inventory.files.iter().filter_map(|f| manifest.get(f.id()).copied()).collect();
    if inventory.files.is_empty() {
        return Err(Error::config(format!("{} holds no files of a replica: check the URL", store.url())));
    }
    refuse(&store, &files)?;
    let unnamed = inventory.files.len() - files.len();
    let bytes = files.iter().map(|e| e.bytes).sum();
    let done = Rekeyed { files: files.len(), bytes, unnamed };
    if action == Action::DryRun {
        return Ok(done);
    }
    let scratch = Scratch::new(dir, "rekey")?;
    let mut writer = ManifestWriter::load(&store).await?;
    let (mut batch, mut waiting): (Vec<ManifestEntry>, u64) = (Vec::new(), 0);
    for old in &files {
        let entry = replaced(&store, old, recipients, scratch.path(), &meta_of).await?;
        waiting += entry.bytes;
        batch.push(entry);
        if batch.len() >= BATCH_FILES || waiting >= BATCH_BYTES {
            writer.append(&store, &std::mem::take(&mut batch)).await?;
            waiting = 0;
        }
    }
    writer.append(&store, &batch).await?;
    Ok(done)
}

fn refuse(store: &Store, files: &[ManifestEntry]) -> Result<()> {
    if let Some(clear) = files.iter().find(|e| !e.is_sealed()) {
        return Err(Error::config(format!(
            "the replica {} holds files in the clear (level {} {}): there are no recipients to change; set encrypt for a replica at another URL",
            store.url(),
            clear.id.level.get(),
            clear.id
        )));
    }
    if !files.is_empty() && !store.can_open() {
        return Err(no_identity(store.url()));
    }
    Ok(())
}

/// Puts the file anew, made at `path` (I-KEY-1). Gives its entry.
async fn replaced(
    store: &Store,
    old: &ManifestEntry,
    recipients: &Recipients,
    path: &Path,
    meta_of: &impl Fn(&ManifestEntry) -> PutMeta,
) -> Result<ManifestEntry> {
    let key = old.id.key(store.layout());
    let (bytes, sha256) = store.reseal(&key, recipients, path).await?;
    let entry = old.sealed(bytes, sha256);
    crash::point("rekey.sealed");
    let meta = PutMeta { timestamp: Some(entry.time), sha256: Some(sha256), ..meta_of(&entry) };
    store.replace(&key, Body::File(path.to_path_buf()), meta).await?;
    crash::point("rekey.replaced");
    Ok(entry)
}
