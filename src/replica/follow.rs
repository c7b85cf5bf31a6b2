//! Following a replica: which files come next after a place in its history, and what they make of a database file that others
//! read meanwhile.
//!
//! The follower's file is the source's database but for a few bytes of page 1 ([`Place::localize`]): rollback mode instead of
//! WAL, so that a reader needs no `-wal`, and a change counter of its own, so that readers notice each change. How pages get into
//! the file under readers is the caller's affair ([`Disk`]); here is what they are, and that they are right.
//!
//! Rules
//! * I-FOL-1 A file is applied in two passes: the first proves it (its checksum, what it attests, and the checksum of the whole
//!   database after it) and lets originals be kept, the second writes. Nothing is written before all is proved.
//! * I-FOL-2 The whole-database checksum is carried from step to step, as in `apply`: a page that goes out is read back and taken
//!   off. So the cost is that of the change, and still a file of another history cannot pass.
//! * I-FOL-3 A place is known by all 100 bytes of its file's header and the file's size. A file that has others was written by
//!   somebody else.
//! * I-FOL-4 Steps go forward only. What no step continues is rebuilt from a full copy, compared page by page, so that only pages
//!   that differ are written; its schema cookie is shifted by chance, so that no reader takes an old schema for the new one.
//! * I-FOL-5 A quiet poll is one request: the next level-0 file has a name that is known beforehand.
//!
//! A crash leaves a [`Record`] that names the place before and the place after; the file's header says which of them holds.
//! May be called on any thread, in a tokio runtime. Refused: applying many files as one merged change (fewer syncs, but the states
//! in between, which readers may want, never exist, and one more copy of every page would); a place recorded inside the database
//! (a follower's file is the source's, nothing else).

use super::inventory::FileInfo;
use super::layout::FileId;
use super::manifest::Manifest;
use super::place::{self, Found};
use super::plan::walk;
use crate::base::{Error, Kind, Result, TxId};
use crate::ltx::Level;
use crate::store::Store;
use std::path::PathBuf;

mod disk;
mod fetched;
mod image;
mod incoming;
mod record;

pub use disk::Disk;
use fetched::{Fetched, Queue};
pub use image::Image;
pub use incoming::Incoming;
pub use record::{Place, Record};

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The replica holds nothing newer.
    Nothing,
    /// These files, in this order.
    Apply(Vec<FileInfo>),
    /// No file continues: start from a full copy. Says why.
    Rebuild(String),
    /// The replica ends before the place; its newest file tells whether it is another history.
    Behind(FileId),
}

/// Decides, from all files of the replica. Pure. Errors with `Missing` if it holds none.
pub fn next(files: &[FileInfo], at: &Place) -> Result<Next> {
    let Some(newest) = files.iter().max_by_key(|f| (f.max, f.level)) else {
        return Err(Error::new(Kind::Missing, "the replica holds no LTX file"));
    };
    if newest.max < at.txid {
        return Ok(Next::Behind(newest.id()));
    }
    let here = files.iter().filter(|f| f.max == at.txid).find_map(|f| f.attest_after);
    if here.is_some_and(|sum| sum != at.checksum) {
        let text = format!("TXID {} in the replica is of another history", at.txid);
        return Ok(Next::Rebuild(text));
    }
    if newest.max == at.txid {
        return Ok(Next::Nothing);
    }
    let base = FileInfo {
        attest_after: Some(at.checksum),
        ..FileInfo::listed(FileId { level: Level::SNAPSHOT, min: TxId(1), max: at.txid }, 0, at.time)
    };
    let mut steps: Vec<&FileInfo> = files.iter().filter(|f| f.min > TxId(1) && f.max > at.txid).collect();
    steps.sort_by_key(|f| f.min);
    Ok(match walk(&base, &steps, newest.max) {
        Some(way) => Next::Apply(way.into_iter().skip(1).collect()),
        None => Next::Rebuild(format!("no files lead from TXID {} to {}", at.txid, newest.max)),
    })
}

/// What came of a look at the whole replica.
#[derive(Clone, Debug)]
pub struct Look {
    /// What is to be done.
    pub next: Next,
    /// Newest TXID there.
    pub newest: TxId,
    /// Bytes of the files to apply.
    pub bytes: u64,
    manifest: Manifest,
    store: Store,
}

/// Looks at all of the replica. A gap counts only if it is seen twice: files are merged away while a listing runs.
pub async fn look(store: &Store, at: &Place) -> Result<Look> {
    let mut seen = look_once(store, at).await?;
    if matches!(seen.next, Next::Rebuild(_)) {
        seen = look_once(store, at).await?;
    }
    if let Next::Behind(id) = seen.next {
        let header = super::inventory::read_header(&seen.store, id).await?;
        if header.lineage == at.lineage {
            return Err(Error::corrupt(format!(
                "the replica ends at TXID {}, before TXID {} that was applied here: its newest files are gone",
                id.max, at.txid
            )));
        }
        seen.next = Next::Rebuild(format!("the replica holds another history, up to TXID {}", id.max));
    }
    Ok(seen)
}

async fn look_once(store: &Store, at: &Place) -> Result<Look> {
    let Found { store, inventory, manifest } = place::find(store).await?;
    let (next, newest) = (next(&inventory.files, at)?, inventory.newest());
    let bytes = match &next {
        Next::Apply(files) => files.iter().map(|f| f.bytes).sum(),
        _ => 0,
    };
    Ok(Look { next, newest, bytes, manifest, store })
}

/// Fetches the level-0 file after `txid`, if it is there (I-FOL-5). A large one goes to `part` meanwhile.
pub async fn fetch_next(store: &Store, txid: TxId, part: PathBuf) -> Result<Option<Incoming>> {
    let id = FileId { level: Level::L0, min: txid.next(), max: txid.next() };
    let object = match store.head(&id.key(store.layout())).await {
        Ok(o) => o,
        Err(e) if e.is_missing() => return Ok(None),
        Err(e) => return Err(e),
    };
    let file = FileInfo::listed(id, object.size, object.modified);
    match Fetched::get(store, &file, part).await {
        Ok(fetched) => Ok(Some(Incoming { id, bytes: object.size, known: None, fetched })),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
    }
}

/// The files of a [`Look`], fetched ahead, in order.
pub struct Feed {
    ahead: Queue,
    manifest: Manifest,
}

impl Feed {
    /// Large files go to `<part>.<n>` meanwhile.
    pub fn new(look: Look, part: PathBuf) -> Feed {
        let files = match look.next {
            Next::Apply(files) => files,
            _ => Vec::new(),
        };
        Feed { ahead: Queue::new(&look.store, files, part), manifest: look.manifest }
    }

    /// The next one; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Incoming>> {
        let (file, fetched) = self.ahead.next().await?;
        let (id, known) = (file.id(), self.manifest.get(file.id()).copied());
        Some(fetched.map(|fetched| Incoming { id, bytes: file.bytes, known, fetched }))
    }
}

#[cfg(test)]
mod tests;
