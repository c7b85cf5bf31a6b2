//! Files of SQLite's that are hooked, as those see them who are told of them.

use super::error;
use super::ffi::{self, File};
use super::methods::{Methods, ReadExtent, file_size, read_file};
use super::shm::{Shm, ShmPeek, WAL_INDEX_HEADER};
use super::vocab::{Access, FileLock};
use crate::base::{Error, Kind, Result};
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// A hooked handle of a main database file. Exists only inside callbacks, on the app's thread.
pub struct HookedFile {
    pub(super) file: *mut File,
    pub(super) original: Methods,
    pub(super) id: u64,
    pub(super) path: PathBuf,
    pub(super) access: Access,
    pub(super) shm: Arc<Shm>,
    pub(super) lock_level: AtomicI32,
}

impl HookedFile {
    /// Path as SQLite uses it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of this handle, unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Read-write or read-only.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The level of the file's own lock as far as seen since the hook was set.
    pub fn file_lock(&self) -> FileLock {
        FileLock::from_raw(self.lock_level.load(Ordering::Relaxed))
    }

    /// A copy of the wal-index header and checkpoint information, in the machine's byte order. `None` while
    /// this handle has no wal-index mapped (rollback mode, exclusive locking mode, not yet read).
    pub fn wal_index_header(&self) -> Option<[u8; WAL_INDEX_HEADER]> {
        // SAFETY: `&HookedFile` exists only inside a callback of this handle, on the thread that alone
        // could unmap.
        unsafe { self.shm.header() }
    }

    /// A handle with which other threads may read the same.
    pub fn peek(&self) -> ShmPeek {
        ShmPeek(self.shm.clone())
    }

    /// Reads the main file through the lower VFS.
    pub fn read_main_at(&self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        // SAFETY: inside a callback, on the app's thread; the file is open.
        unsafe { read_file(self.file, self.original, buf, offset, &self.path) }
    }

    /// Size of the main file in bytes.
    pub fn file_size(&self) -> Result<u64> {
        // SAFETY: as above.
        unsafe { file_size(self.file, self.original, &self.path) }
    }

    /// Whether the file that lies at the path is another than the one this handle has open, or there is none. `false` where the
    /// lower VFS cannot tell (<https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html#sqlitefcntlhasmoved>).
    pub fn has_moved(&self) -> bool {
        let mut moved: c_int = 0;
        // SAFETY: inside a callback, on the app's thread; the file is open, and this control stores one int.
        let rc = unsafe {
            let arg = (&raw mut moved).cast::<c_void>();
            self.original.x_file_control().map_or(ffi::NOTFOUND, |f| f(self.file, ffi::FCNTL_HAS_MOVED, arg))
        };
        rc == ffi::OK && moved != 0
    }

    pub(super) fn lower(&self) -> Methods {
        self.original
    }
}

/// A hooked handle of a WAL file. Exists only inside callbacks, on the app's thread.
pub struct WalFile {
    pub(super) file: *mut File,
    pub(super) original: Methods,
    pub(super) id: u64,
    pub(super) db_path: PathBuf,
    pub(super) wal_path: PathBuf,
}

impl WalFile {
    /// Path of the database this WAL belongs to.
    pub fn db_path(&self) -> &Path {
        &self.db_path
    }

    /// Path of the WAL file.
    pub fn path(&self) -> &Path {
        &self.wal_path
    }

    /// Number of this handle, unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Writes through the lower VFS: how withheld bytes get into the file.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let (Some(write), Ok(len), Ok(at)) =
            (self.lower().x_write(), c_int::try_from(data.len()), i64::try_from(offset))
        else {
            return Err(Error::new(
                Kind::Bug,
                format!("cannot write {} at {offset}", self.wal_path.display()),
            ));
        };
        // SAFETY: inside a callback of this handle; the buffer has `len` bytes.
        let rc = unsafe { write(self.file, data.as_ptr().cast(), len, at) };
        error::check(rc, || format!("cannot write {} at {offset}", self.wal_path.display()))
    }

    /// Reads through the lower VFS.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        // SAFETY: as above.
        unsafe { read_file(self.file, self.original, buf, offset, &self.wal_path) }
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: as above.
        let rc = unsafe { self.lower().x_sync().map_or(ffi::OK, |f| f(self.file, ffi::SYNC_NORMAL)) };
        error::check(rc, || format!("cannot sync {}", self.wal_path.display()))
    }

    /// Size in bytes.
    pub fn file_size(&self) -> Result<u64> {
        // SAFETY: as above.
        unsafe { file_size(self.file, self.original, &self.wal_path) }
    }

    pub(super) fn lower(&self) -> Methods {
        self.original
    }
}

/// Numbers for handles.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
