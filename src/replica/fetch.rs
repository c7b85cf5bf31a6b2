//! Files of a replica on their way here: in order, several requests at once, in bounded memory.
//!
//! Rules
//! * I-FETCH-1 What is fetched ahead and not used yet has at most as many bytes as [`Window`] says, however many files there are and however
//!   large each is: who takes a [`Piece`] gives its share back by dropping it. The buffers of ranges are used again.
//! * I-FETCH-2 A file of more than [`WHOLE`] bytes comes in ranges, each a request of its own that is tried again by itself; a smaller one is
//!   one request. Pieces are handed out in the order of files and bytes. Nothing of them is proved here.
//!
//! A request costs the time of its way there and back, whatever it brings: for small files as many are under way as `parallel` says; large
//! ones are bounded by the memory, which is that of ten ranges. The ranges of a small replica are smaller, so that little is fetched in vain
//! by a restore that is interrupted. From a directory smaller ranges come, and fewer: what one thread has read,
//! the next finds in the processor's cache. Refused: one stream for each large file (a store gives one connection a
//! fraction of what the line carries, and what breaks off begins anew); ranges that are used as they come (SHA-256 wants them in order,
//! and a window of ranges gives nearly the same).

use super::inventory::FileInfo;
use super::layout::FileId;
use super::manifest::ManifestEntry;
use crate::base::{Error, Kind, Result, lock};
use crate::store::Store;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// Files up to this size come whole.
pub const WHOLE: u64 = 1024 * 1024;
/// Bytes of a larger file that are one request to a store that is far.
pub const RANGE: u64 = 4 * 1024 * 1024;
/// Requests at once, unless the caller says otherwise.
pub const PARALLEL: usize = 32;
/// What memory is counted in.
const UNIT: u64 = 4096;

/// How much is fetched ahead.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Bytes of a large file that are one request.
    range: u64,
    /// Bytes in all.
    memory: u64,
}

impl Window {
    /// For so many bytes in all.
    fn of(is_near: bool, bytes: u64) -> Window {
        if is_near {
            return Window { range: RANGE / 4, memory: 2 * RANGE };
        }
        let range = range_bytes(bytes);
        Window { range, memory: 10 * range }
    }
}

/// Bytes of a large file that are one request to a store that is far, where `bytes` are fetched in all: what is under way when a restore is
/// interrupted is fetched again, and is about a tenth of it all, from 24 MiB on. Pure.
pub(super) fn range_bytes(bytes: u64) -> u64 {
    (bytes / 96).next_multiple_of(16 * UNIT).clamp(RANGE / 16, RANGE)
}

/// How many requests fetch these files: [`Ahead`]'s, where none is tried again. `is_near`: [`Store::is_near`]. Pure.
pub fn requests(files: &[FileInfo], is_near: bool) -> u64 {
    let window = Window::of(is_near, files.iter().map(|f| f.bytes).sum());
    let of = |f: &FileInfo| if f.bytes <= WHOLE { 1 } else { f.bytes.div_ceil(window.range) };
    files.iter().map(of).sum()
}

/// Buffers of ranges that were used.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// One that goes back when nobody needs it any more.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    fn take(&self) -> Vec<u8> {
        lock(&self.0).pop().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.home.0).push(std::mem::take(&mut self.buffer));
    }
}

/// Some bytes of a file.
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

/// What is handed out.
pub struct Arrived {
    /// The file.
    pub file: FileInfo,
    /// Which of its bytes.
    pub range: Range<u64>,
    /// They, or why they did not come.
    pub piece: Result<Piece>,
}

impl Arrived {
    /// Whether it is all of the file.
    pub fn is_whole(&self) -> bool {
        self.file.bytes <= WHOLE
    }

    /// Whether it is the end of the file.
    pub fn is_last(&self) -> bool {
        self.range.end >= self.file.bytes
    }
}

struct UnderWay {
    file: FileInfo,
    range: Range<u64>,
    task: JoinHandle<Result<Piece>>,
}

/// Files that come from other stores than the others of a way, and what the manifest there says of them.
pub type Elsewhere = BTreeMap<FileId, (Store, Option<ManifestEntry>)>;

/// Fetches files in order, some bytes ahead of those wanted next.
pub struct Ahead {
    store: Store,
    elsewhere: Elsewhere,
    rest: VecDeque<FileInfo>,
    /// How far the first of `rest` was asked for.
    asked: u64,
    /// The size of the first of `rest` is that in the clear.
    is_measured: bool,
    under_way: VecDeque<UnderWay>,
    window: Window,
    memory: Arc<Semaphore>,
    buffers: Buffers,
    parallel: usize,
}

impl Ahead {
    /// Asks for nothing yet. `parallel`: requests at once.
    pub fn new(store: &Store, files: Vec<FileInfo>, parallel: usize) -> Ahead {
        let window = Window::of(store.is_near(), files.iter().map(|f| f.bytes).sum());
        Ahead {
            store: store.clone(),
            elsewhere: Elsewhere::new(),
            rest: files.into(),
            asked: 0,
            is_measured: false,
            under_way: VecDeque::new(),
            window,
            memory: Arc::new(Semaphore::new((window.memory / UNIT) as usize)),
            buffers: Buffers::default(),
            parallel: parallel.max(1),
        }
    }

    /// The same, where some of the files come from other stores.
    #[must_use]
    pub fn but_for(mut self, elsewhere: &Elsewhere) -> Ahead {
        self.elsewhere.clone_from(elsewhere);
        self
    }

    fn store_of(&self, id: FileId) -> &Store {
        self.elsewhere.get(&id).map_or(&self.store, |(store, _)| store)
    }

    /// The bytes that come next. After a failure the rest of that file is not handed out.
    pub async fn next(&mut self) -> Option<Arrived> {
        while self.under_way.len() < self.parallel
            && let Some(mut file) = self.rest.front().cloned()
        {
            let store = self.store_of(file.id()).clone();
            if !self.is_measured && file.bytes > WHOLE && store.can_open() {
                // Ranges are of what an encrypted one has in the clear.
                let key = file.id().key(store.layout());
                match store.clear_len(&key, file.bytes).await {
                    Ok(clear) => file.bytes = clear.unwrap_or(file.bytes),
                    // (Its first range says it again.)
                    Err(e) => log::debug!("walrust: {}: {e}", file.id()),
                }
                if let Some(first) = self.rest.front_mut() {
                    first.bytes = file.bytes;
                }
                // (Once: whoever waits for memory comes by here again.)
                self.is_measured = true;
            }
            let range = self.next_range(&file);
            let bytes = range.end - range.start;
            let units = u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX);
            let memory = self.memory.clone();
            let share = match memory.clone().try_acquire_many_owned(units) {
                Ok(share) => share,
                Err(_) if !self.under_way.is_empty() => break,
                // Whoever has it works on what it holds, and ends.
                Err(_) => memory.acquire_many_owned(units).await.ok()?,
            };
            self.asked = range.end;
            if range.end >= file.bytes {
                self.rest.pop_front();
                (self.asked, self.is_measured) = (0, false);
            }
            let buffers = self.buffers.clone();
            let task = tokio::spawn(get(store, file.clone(), range.clone(), buffers, share));
            self.under_way.push_back(UnderWay { file, range, task });
        }
        let UnderWay { file, range, task } = self.under_way.pop_front()?;
        let piece = task.await.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a download panicked")));
        if piece.is_err() {
            self.pass(&file);
        }
        Some(Arrived { file, range, piece })
    }

    /// Leaves out what is left of `file`.
    pub fn pass(&mut self, file: &FileInfo) {
        while let Some(first) = self.under_way.front()
            && first.file.id() == file.id()
        {
            first.task.abort();
            self.under_way.pop_front();
        }
        if self.asked > 0 && self.rest.front().is_some_and(|f| f.id() == file.id()) {
            self.rest.pop_front();
            (self.asked, self.is_measured) = (0, false);
        }
    }

    fn next_range(&self, file: &FileInfo) -> Range<u64> {
        let most = if file.bytes <= WHOLE { WHOLE } else { self.window.range };
        self.asked..(self.asked + most).min(file.bytes)
    }
}

async fn get(
    store: Store,
    file: FileInfo,
    range: Range<u64>,
    buffers: Buffers,
    share: OwnedSemaphorePermit,
) -> Result<Piece> {
    let key = file.id().key(store.layout());
    let bytes = match file.bytes <= WHOLE {
        true => store.get(&key).await?,
        false => {
            let wanted = range.end - range.start;
            let buffer = store.get_range_into(&key, range, buffers.take()).await?;
            if buffer.len() as u64 != wanted {
                let text = format!("{}: it is shorter than the store's listing says", file.id());
                return Err(Error::corrupt(text));
            }
            Bytes::from_owner(Lent { buffer, home: buffers })
        }
    };
    Ok(Piece { bytes, _share: share })
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for u in &self.under_way {
            u.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_large_as_what_is_fetched_allows() {
        const MIB: u64 = 1 << 20;
        for (bytes, range) in [
            (0, RANGE / 16),
            (2 * MIB, RANGE / 16),
            (24 * MIB, RANGE / 16),
            (60 * MIB, 640 << 10),
            (384 * MIB, RANGE),
            (5_000 * MIB, RANGE),
        ] {
            assert_eq!(range_bytes(bytes), range, "{bytes}");
            assert!(bytes < 24 * MIB || 10 * range * 9 <= bytes, "{bytes}: a ninth of it all at most");
        }
    }
}
