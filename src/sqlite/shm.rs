//! Reading the wal-index header out of shared memory.
//!
//! The first 136 bytes of the wal-index are two copies of the header (48 bytes each) and the checkpoint
//! information with the read marks (<https://sqlite.org/walformat.html#the_wal_index_header>). Other
//! processes write them while we read, so the copy is made word by word, first copy before second, as
//! SQLite does; whether the two copies agree is for the caller to check.

use super::registry;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

/// Bytes of the wal-index header with its checkpoint information.
pub const WAL_INDEX_HEADER: usize = 136;

/// The mapping of wal-index region 0 of one file handle; null when not mapped.
#[derive(Debug, Default)]
pub(super) struct Shm {
    region0: AtomicPtr<c_void>,
}

impl Shm {
    pub(super) fn set(&self, region: *mut c_void) {
        self.region0.store(region, Ordering::Release);
    }

    pub(super) fn is_mapped(&self) -> bool {
        !self.region0.load(Ordering::Acquire).is_null()
    }

    /// The mapping is about to go: waits for a peek that is under way.
    pub(super) fn forget(&self) {
        let held = registry::lock();
        self.region0.store(std::ptr::null_mut(), Ordering::Release);
        drop(held);
    }

    /// A copy of the header.
    ///
    /// # Safety
    /// The mapping must not go away meanwhile: called inside a callback of the handle (which alone unmaps
    /// it), or with the registry's mutex held.
    pub(super) unsafe fn header(&self) -> Option<[u8; WAL_INDEX_HEADER]> {
        let region = self.region0.load(Ordering::Acquire);
        // SAFETY: a non-null region is 32768 bytes, page-aligned, mapped (caller).
        if region.is_null() { None } else { Some(unsafe { copy_header(region) }) }
    }
}

/// Copies the header at `region`.
///
/// # Safety
/// `region` points to at least 136 mapped bytes, aligned to 4.
pub(super) unsafe fn copy_header(region: *const c_void) -> [u8; WAL_INDEX_HEADER] {
    const SECOND_COPY: usize = 12;
    let mut out = [0u8; WAL_INDEX_HEADER];
    // SAFETY: 34 words inside the region; u32 atomics are valid for memory that others write concurrently.
    let words = unsafe { std::slice::from_raw_parts(region.cast::<AtomicU32>(), WAL_INDEX_HEADER / 4) };
    for (i, (word, to)) in words.iter().zip(out.chunks_exact_mut(4)).enumerate() {
        if i == SECOND_COPY {
            fence(Ordering::SeqCst);
        }
        to.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
    }
    out
}

/// Reads the wal-index header of one hooked handle from any thread. Outlives the handle: then it gives `None`.
#[derive(Clone, Debug)]
pub struct ShmPeek(pub(super) Arc<Shm>);

impl ShmPeek {
    /// The 136 bytes, in the machine's byte order; `None` when the handle has no wal-index mapped (any more).
    pub fn header(&self) -> Option<[u8; WAL_INDEX_HEADER]> {
        let held = registry::lock();
        // SAFETY: the registry's mutex is held, and `forget` takes it before the mapping goes.
        let header = unsafe { self.0.header() };
        drop(held);
        header
    }

    /// Whether the handle's wal-index is mapped now.
    pub fn is_mapped(&self) -> bool {
        self.0.is_mapped()
    }
}
