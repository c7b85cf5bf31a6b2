//! What this machine itself has of a database that is watched here, as far as this room asks for it. Who knows the database's file and
//! its spool offers it.

use super::disk::CacheAt;
use crate::address::ReplicaUrl;
use crate::base::{DbChecksum, Lineage, PageSize, Pgno, Result, TxId};
use crate::replica::FileId;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Who knows the databases that are watched here.
pub trait Vicinity: Send + Sync {
    /// The database whose file is at `path`. Errors with `Config` where it is not watched in this process.
    fn find(&self, path: &Path) -> Result<Arc<dyn Nearby>>;

    /// Where what is fetched is kept on local disk; `None`: nowhere.
    fn cache(&self) -> Option<CacheAt>;
}

/// One watched database.
pub trait Nearby: Send + Sync {
    /// Its replica. Errors where it is not watched any more.
    fn replica(&self) -> Result<ReplicaUrl>;

    /// What it is now; `None` where that is not known. Errors as the file system does.
    fn now(&self) -> Result<Option<Box<dyn Now>>>;

    /// The file of the replica of that name, if it is still here and not very large.
    fn copy(&self, id: FileId) -> Option<File>;
}

/// A state of the database at which the checksum of each page is known, and what lies in its files meanwhile.
pub trait Now: Send {
    /// The state.
    fn state(&self) -> State;

    /// Files here that hold what was changed from after `since` up to the state's TXID; each with its first and its last TXID. Errors as
    /// the file system does.
    fn files(&self, since: TxId) -> Result<Vec<Box<dyn Changes>>>;

    /// Pages that were changed since the state's TXID, up to the state.
    fn uncut(&self) -> &[Pgno];

    /// The checksums of `n` pages from `first` on at the state, 0 for a page that it has not. Errors as the file system does.
    fn sums(&self, first: Pgno, n: usize) -> Result<Vec<u64>>;

    /// What lies in the database's file from `offset` on, whatever state that is of. Errors where the file cannot be read.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// What a frame of the WAL says that page `pgno` was at the state. Whether there is one. Errors where the WAL cannot be read.
    fn frame(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<bool>;
}

/// A state of the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// The history.
    pub lineage: Lineage,
    /// The newest TXID that it holds.
    pub txid: TxId,
    /// Page size.
    pub page_size: PageSize,
    /// Size in pages.
    pub commit: u32,
}

/// A file here that tells which pages were changed.
pub trait Changes {
    /// First and last TXID.
    fn range(&self) -> (TxId, TxId);

    /// What it changed. Errors with `Missing` where the file is gone, with `Corrupt` where it is damaged.
    fn read(&self) -> Result<Changed>;
}

/// What the TXIDs of one file changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The history.
    pub lineage: Lineage,
    /// First TXID.
    pub min: TxId,
    /// Last TXID.
    pub max: TxId,
    /// Page size.
    pub page_size: PageSize,
    /// Checksums of the database before and after it, where it attests them.
    pub attest: Option<(DbChecksum, DbChecksum)>,
    /// The pages.
    pub pages: Vec<Pgno>,
}
