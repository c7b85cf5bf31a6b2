//! The handles that are open on one database file in this process: the app's, and our own.
//!
//! * I-HND-1: a handle of ours exists only while the app has the file open, too. Otherwise a file that the app closes, deletes and makes
//!   again would have two wal-indexes in one process.
//! * I-HND-2: the app's last close, and its change of journal mode, find no handle of ours: these are told to let go ([`Handles::recall`])
//!   and waited for, and none is opened until the app's handle is done. Each bar is of one handle, which alone lifts it.

use crate::base::{Error, Kind, Result, clock, lock};
use crate::sqlite::{Aside, HookedFile, ShmPeek};
use crate::wal::IndexHeader;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long from the beginning of our reading of a small database an app's thread waits for its end, when it asks for a lock in the
/// wal-index that we have, or needs the WAL as it is. The reading takes milliseconds, and most programs do not expect to find somebody
/// else at their database.
const READING_PATIENCE: Duration = Duration::from_millis(50);

/// Stands for the inode of a file that has no name any more, or another one.
const MOVED: u64 = u64::MAX;

/// Handles on the file at one path.
#[derive(Default)]
pub(super) struct Handles {
    path: PathBuf,
    /// Number of the file at `path` when it was last looked at ([`number_at`]). A handle on another file holds one that was replaced,
    /// and says nothing about this one.
    file: AtomicU64,
    /// Whether that has ever happened.
    was_replaced: AtomicBool,
    /// Handles of the app, with the number of the file that each was opened on.
    open: Mutex<HashMap<u64, u64>>,
    /// Those of them that have the wal-index mapped, to look at it through.
    mapped: Mutex<HashMap<u64, Mapped>>,
    /// How many of these hold CKPT: nearly always none, and then nobody has to ask which.
    checkpointers: AtomicU64,
    /// The handle that has the file for itself, without locks in the wal-index; 0 if none has.
    exclusive: AtomicU64,
    own: Mutex<Own>,
    own_changed: Condvar,
    /// Uptime in ms until which our reading is waited for.
    patient_until_ms: AtomicU64,
}

struct Mapped {
    peek: ShmPeek,
    file: u64,
    has_ckpt: bool,
}

/// Handles of ours.
#[derive(Default)]
struct Own {
    count: usize,
    /// The app's handles that want none of ours to be there.
    barred_by: BTreeSet<u64>,
}

/// A permission to have a handle of our own open, until dropped.
pub(super) struct OwnPermit(Arc<Handles>);

impl OwnPermit {
    /// Whether the app wants to close the file: let go.
    pub(super) fn is_recalled(&self) -> bool {
        self.0.is_barred()
    }
}

impl Drop for OwnPermit {
    fn drop(&mut self) {
        lock(&self.0.own).count -= 1;
        self.0.own_changed.notify_all();
    }
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Handles {
    pub(super) fn new(path: &Path) -> Handles {
        Handles { path: path.to_path_buf(), file: AtomicU64::new(number_at(path)), ..Handles::default() }
    }

    /// The path, as SQLite names it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    // -- the app's handles ----------------------------------------------------------------------------------------

    /// A handle of the app is met.
    pub(super) fn opened(&self, f: &HookedFile) {
        let file = self.file_now_under(f);
        lock(&self.open).insert(f.id(), file);
    }

    /// A handle of the app has the wal-index mapped.
    pub(super) fn mapped(&self, f: &HookedFile) {
        lock(&self.mapped).entry(f.id()).or_insert_with(|| Mapped {
            peek: f.peek(),
            file: self.file_now_under(f),
            has_ckpt: false,
        });
    }

    /// A handle of the app is closed. Whether none is left that has the wal-index mapped.
    pub(super) fn closed(&self, f: &HookedFile) -> bool {
        lock(&self.open).remove(&f.id());
        self.set_ckpt(f, false);
        let mut mapped = lock(&self.mapped);
        mapped.remove(&f.id());
        mapped.is_empty()
    }

    /// Whether `f` is the only handle of the app.
    pub(super) fn is_last_open(&self, f: &HookedFile) -> bool {
        lock(&self.open).keys().all(|id| *id == f.id())
    }

    /// Whether no handle of the app but `f` has the wal-index mapped.
    pub(super) fn is_last_mapped(&self, f: &HookedFile) -> bool {
        lock(&self.mapped).keys().all(|id| *id == f.id())
    }

    /// Whether `f` has it mapped.
    fn is_mapped(&self, f: &HookedFile) -> bool {
        lock(&self.mapped).contains_key(&f.id())
    }

    /// Whether `f` has it mapped, and no other handle of the app.
    pub(super) fn is_last_with_wal_index(&self, f: &HookedFile) -> bool {
        self.is_mapped(f) && self.is_last_mapped(f)
    }

    /// How many handles of the app have the wal-index mapped.
    pub(super) fn count_mapped(&self) -> usize {
        lock(&self.mapped).len()
    }

    /// Whether the app has no handle open.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.open).is_empty()
    }

    /// The wal-index header, through any handle that has it mapped.
    pub(super) fn header(&self) -> Option<IndexHeader> {
        self.peeks().iter().find_map(|p| p.header().and_then(|b| IndexHeader::decode(&b)))
    }

    /// The pages of WAL frames `from + 1 ..= to`, through any handle that has that part of the wal-index mapped.
    pub(super) fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        self.peeks().iter().find_map(|p| p.frame_pages(from, to))
    }

    fn peeks(&self) -> Vec<ShmPeek> {
        let file = self.file.load(Ordering::Relaxed);
        lock(&self.mapped).values().filter(|h| h.file == file).map(|h| h.peek.clone()).collect()
    }

    pub(super) fn set_ckpt(&self, f: &HookedFile, has: bool) {
        if let Some(h) = lock(&self.mapped).get_mut(&f.id())
            && std::mem::replace(&mut h.has_ckpt, has) != has
        {
            if has {
                self.checkpointers.fetch_add(1, Ordering::Relaxed);
            } else {
                self.checkpointers.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether the handle holds CKPT.
    pub(super) fn has_ckpt(&self, f: &HookedFile) -> bool {
        self.checkpointers.load(Ordering::Relaxed) > 0
            && lock(&self.mapped).get(&f.id()).is_some_and(|h| h.has_ckpt)
    }

    // -- which file it is -----------------------------------------------------------------------------------------

    /// Takes note of the file that lies at the path now. Whether it is another than that before.
    pub(super) fn note_file(&self) -> bool {
        self.note_number(number_at(&self.path))
    }

    /// The database is about to be read whole: if that is another file than before, no second read is due for it.
    pub(super) fn note_number(&self, file: u64) -> bool {
        let replaced = file != 0 && self.file.swap(file, Ordering::Relaxed) != file;
        if replaced {
            self.was_replaced.store(true, Ordering::Relaxed);
        }
        replaced
    }

    /// Number of the file that the handle has open, as it is met; [`MOVED`] if that is not the one at the path any more: the
    /// handle may have been open for hours when the extension is loaded.
    fn file_now_under(&self, f: &HookedFile) -> u64 {
        if f.has_moved() {
            self.was_replaced.store(true, Ordering::Relaxed);
            return MOVED;
        }
        number_at(&self.path)
    }

    /// Number of the file that the handle was opened on.
    pub(super) fn file_under(&self, f: &HookedFile) -> u64 {
        lock(&self.open).get(&f.id()).copied().unwrap_or_default()
    }

    /// Whether the app has the file that lies at the path now open. Otherwise it can neither be read nor snapshot by this process.
    pub(super) fn can_read(&self) -> bool {
        let file = number_at(&self.path);
        file != 0 && lock(&self.open).values().any(|i| *i == file)
    }

    /// Whether what was read is the file which was at the path at the last look.
    pub(super) fn is_at(&self, read: &Aside) -> bool {
        self.file.load(Ordering::Relaxed) == number_of(read.inode, read.device)
    }

    /// Whether every file that the app has open here was at the path once and is not there now.
    pub(super) fn has_only_replaced(&self) -> bool {
        !self.can_read() && !lock(&self.open).is_empty()
    }

    /// Whether the file that the handle was opened on is still the one at the path, which is what others of ours read.
    pub(super) fn is_at_path(&self, f: &HookedFile) -> bool {
        let file = self.file_under(f);
        file != 0 && file != MOVED && file == number_at(&self.path)
    }

    /// Whether the handle is on a file that was replaced.
    pub(super) fn is_stale(&self, f: &HookedFile) -> bool {
        if !self.was_replaced.load(Ordering::Relaxed) {
            return false;
        }
        let file = self.file.load(Ordering::Relaxed);
        lock(&self.mapped).get(&f.id()).is_some_and(|h| h.file != file)
    }

    // -- EXCLUSIVE mode -------------------------------------------------------------------------------------------

    /// Whether a handle of this process has the file for itself: nothing of ours can read the database then.
    pub(super) fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Relaxed) != 0
    }

    /// Whether it is this one.
    pub(super) fn is_exclusive_of(&self, f: &HookedFile) -> bool {
        self.exclusive.load(Ordering::Relaxed) == f.id()
    }

    /// The handle has the file for itself. Whether that is news.
    pub(super) fn exclusive_begins(&self, f: &HookedFile) -> bool {
        self.exclusive.swap(f.id(), Ordering::Relaxed) != f.id()
    }

    /// The handle has the file no longer for itself. Whether it had.
    pub(super) fn exclusive_ends(&self, f: &HookedFile) -> bool {
        self.exclusive.compare_exchange(f.id(), 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    // -- handles of ours ------------------------------------------------------------------------------------------

    /// Asks to open a handle of our own. [`Kind::Retry`] when the app has none open on the file that lies there now.
    /// (A handle on a file that was deleted or replaced is not enough: ours would be the only one on the new file, and SQLite's
    /// first step would be to cut the `-shm` of that name short, which the old handle may still have mapped: a SIGBUS at its
    /// next read.)
    pub(super) fn permit_own(self: &Arc<Self>) -> Result<OwnPermit> {
        let mut own = lock(&self.own);
        if self.is_exclusive() {
            let why = "a connection with locking_mode=EXCLUSIVE has the database for itself; set it to NORMAL and read once";
            return Err(Error::new(Kind::Retry, why));
        }
        if !own.barred_by.is_empty() || !self.can_read() {
            return Err(Error::new(Kind::Retry, "the database is not open in this process"));
        }
        own.count += 1;
        Ok(OwnPermit(self.clone()))
    }

    /// Whether no handle of ours may be opened: the app closes the file, or changes its journal mode.
    pub(super) fn is_barred(&self) -> bool {
        !lock(&self.own).barred_by.is_empty()
    }

    /// Whether the app's handle `f` is one of those that bar us: it was about to take the file for itself already.
    pub(super) fn bars(&self, f: &HookedFile) -> bool {
        lock(&self.own).barred_by.contains(&f.id())
    }

    /// The app's handle `f` is about to close or to want the file for itself. If no other handle of the app keeps the wal-index, ours
    /// go first: they notice at their next page.
    pub(super) fn recall(&self, f: &HookedFile) {
        // (One that has no wal-index mapped takes nothing with it, unless it is the last.)
        let is_last = self.is_last_mapped(f) && (self.is_mapped(f) || self.is_last_open(f));
        if !is_last {
            return;
        }
        let mut own = lock(&self.own);
        own.barred_by.insert(f.id());
        while own.count > 0 {
            own = self.own_changed.wait(own).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The app's handle is done with that.
    pub(super) fn unbar(&self, f: &HookedFile) {
        lock(&self.own).barred_by.remove(&f.id());
    }

    /// Nobody bars any more: the watch begins or ends.
    pub(super) fn unbar_all(&self) {
        lock(&self.own).barred_by.clear();
    }

    /// Whether a handle of ours is open.
    pub(super) fn has_own(&self) -> bool {
        lock(&self.own).count > 0
    }

    /// A thread of ours begins to read the database whole.
    pub(super) fn reading_begins(&self) {
        let end = clock::uptime() + READING_PATIENCE;
        self.patient_until_ms.store(end.as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until `is_read` says that no thread of ours reads the database any more, if that is a matter of milliseconds: all that
    /// wait for one reading together wait no longer than [`READING_PATIENCE`]. App's thread.
    pub(super) fn wait_for_reading(&self, is_read: impl Fn() -> bool) {
        let end = Duration::from_millis(self.patient_until_ms.load(Ordering::Relaxed));
        while clock::uptime() < end && is_read() {
            clock::sleep(Duration::from_micros(200));
        }
    }
}

/// A number for the file at `path`, of its inode and device; 0 when there is no file.
fn number_at(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| number_of(m.ino(), m.dev())).unwrap_or(0)
}

fn number_of(inode: u64, device: u64) -> u64 {
    inode ^ device.rotate_left(48)
}
