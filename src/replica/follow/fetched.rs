//! Files on their way into a follower's: each is read twice (I-FOL-1), so a large one is kept in a file meanwhile.

use crate::base::{Error, Kind, Result};
use crate::replica::fetch::WHOLE;
use crate::replica::inventory::FileInfo;
use crate::store::Store;
use std::collections::VecDeque;
use std::path::PathBuf;
use tokio::task::JoinHandle;

/// Downloads ahead of the file being applied.
const AHEAD: usize = 4;

/// An object on this machine.
pub(in crate::replica) enum Fetched {
    /// In memory.
    Bytes(bytes::Bytes),
    /// In a file, removed when done with.
    File(PartFile),
}

/// A file that goes when this does.
pub(in crate::replica) struct PartFile(pub(super) PathBuf);

impl Drop for PartFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Fetched {
    /// Gets `file`'s object, into memory if it is small, else into `part`.
    pub(super) async fn get(store: &Store, file: &FileInfo, part: PathBuf) -> Result<Fetched> {
        let key = file.id().key(store.layout());
        if file.bytes <= WHOLE {
            return store.get(&key).await.map(Fetched::Bytes);
        }
        let part = PartFile(part);
        store.get_to_file(&key, &part.0).await?;
        Ok(Fetched::File(part))
    }
}

/// Downloads files in order, some ahead of the one wanted next.
pub(super) struct Queue {
    store: Store,
    rest: VecDeque<FileInfo>,
    under_way: VecDeque<(FileInfo, JoinHandle<Result<Fetched>>)>,
    part_base: PathBuf,
    started: usize,
}

impl Queue {
    /// Large objects go to `<part>.<n>`.
    pub(super) fn new(store: &Store, files: Vec<FileInfo>, part: PathBuf) -> Queue {
        let (store, rest) = (store.clone(), files.into());
        Queue { store, rest, under_way: VecDeque::new(), part_base: part, started: 0 }
    }

    /// The next file in order.
    pub(super) async fn next(&mut self) -> Option<(FileInfo, Result<Fetched>)> {
        while self.under_way.len() < AHEAD
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

impl Drop for Queue {
    fn drop(&mut self) {
        for (_, task) in &self.under_way {
            task.abort();
        }
    }
}
