//! Reading the wal-index out of shared memory: its header, and which page each frame of the WAL holds.
//!
//! The first 136 bytes of the wal-index are two copies of the header (48 bytes each) and the checkpoint
//! information with the read marks (<https://sqlite.org/walformat.html#the_wal_index_header>). Other
//! processes write them while we read, so the copy is made word by word, first copy before second, as
//! SQLite does; whether the two copies agree is for the caller to check.
//!
//! Behind it, and in every region that follows, stand page numbers: 4062 in the first region, 4096 in each other
//! (<https://sqlite.org/walformat.html#the_wal_index_file_format>). Those of committed frames do not change while
//! the WAL's generation lasts, which is for the caller to check, too.

use super::mutex;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Bytes of the wal-index header with its checkpoint information.
pub const WAL_INDEX_HEADER: usize = 136;
/// Bytes of one of its two copies.
const HEADER_COPY: usize = 48;

/// Regions whose mapping is remembered: page numbers of a WAL of 262,110 frames.
const REGIONS: usize = 64;
/// Page numbers in a region, and how many the header leaves room for in the first
/// (`HASHTABLE_NPAGE`, `HASHTABLE_NPAGE_ONE`).
const PER_REGION: usize = 4096;
const IN_FIRST: usize = PER_REGION - WAL_INDEX_HEADER / 4;

/// The mappings of one file handle's wal-index; null where not mapped.
#[derive(Debug)]
pub(super) struct Shm {
    regions: [AtomicPtr<c_void>; REGIONS],
}

impl Default for Shm {
    fn default() -> Self {
        Shm { regions: [const { AtomicPtr::new(std::ptr::null_mut()) }; REGIONS] }
    }
}

impl Shm {
    /// Remembers where region `n` is mapped. Whether that is news of the first region.
    pub(super) fn set(&self, n: usize, region: *mut c_void) -> bool {
        let before = self.regions.get(n).map(|at| at.swap(region, Ordering::AcqRel));
        n == 0 && before.is_some_and(|p| p.is_null()) && !region.is_null()
    }

    pub(super) fn is_mapped(&self) -> bool {
        !self.region(0).is_null()
    }

    /// The mapping is about to go: waits for a peek that is under way.
    pub(super) fn forget(&self) {
        let held = mutex::lock();
        for region in &self.regions {
            region.store(std::ptr::null_mut(), Ordering::Release);
        }
        drop(held);
    }

    /// A copy of the header.
    ///
    /// # Safety
    /// The mapping must not go away meanwhile: called inside a callback of the handle (which alone unmaps
    /// it), or with the mutex of the handles held.
    pub(super) unsafe fn header(&self) -> Option<[u8; WAL_INDEX_HEADER]> {
        let region = self.region(0);
        // SAFETY: a non-null region is 32768 bytes, page-aligned, mapped (caller).
        if region.is_null() { None } else { Some(unsafe { copy_header(region) }) }
    }

    fn region(&self, n: usize) -> *mut c_void {
        self.regions.get(n).map_or(std::ptr::null_mut(), |r| r.load(Ordering::Acquire))
    }

    /// The pages of frames `from + 1 ..= to`; `None` if one of their regions is not mapped here.
    ///
    /// # Safety
    /// As [`Shm::header`].
    unsafe fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        let (mut at, end) = (from as usize, to as usize);
        let mut out = Vec::with_capacity(end.checked_sub(at)?);
        while at < end {
            // Frames count from 1; `at` is the index of the next one.
            let n = (at + PER_REGION - IN_FIRST) / PER_REGION;
            let (first, skip) =
                if n == 0 { (0, PER_REGION - IN_FIRST) } else { (IN_FIRST + (n - 1) * PER_REGION, 0) };
            let (offset, count) = (skip + at - first, (PER_REGION - skip - (at - first)).min(end - at));
            let region = self.region(n);
            if region.is_null() {
                return None;
            }
            let mut bytes = vec![0; count * 4];
            // SAFETY: a mapped region is 32768 bytes (caller), of which the first half are page numbers: `offset +
            // count` is 4096 at most.
            if !unsafe { try_copy(region.cast::<u32>().add(offset).cast(), bytes.len(), &mut bytes) } {
                return None;
            }
            out.extend(bytes.as_chunks::<4>().0.iter().map(|w| u32::from_ne_bytes(*w)));
            at += count;
        }
        Some(out)
    }
}

/// Copies the header at `region`.
///
/// # Safety
/// `region` points to at least 136 mapped bytes, aligned to 4.
pub(super) unsafe fn copy_header(region: *const c_void) -> [u8; WAL_INDEX_HEADER] {
    let mut out = [0u8; WAL_INDEX_HEADER];
    // SAFETY: caller.
    unsafe { copy_words(region, &mut out) };
    out
}

/// Fills `out`, a multiple of 4 long, with the words at `from`.
///
/// # Safety
/// As many bytes are mapped there, aligned to 4.
unsafe fn copy_words(from: *const c_void, out: &mut [u8]) {
    // SAFETY: caller; u32 atomics are valid for memory that others write concurrently.
    let words = unsafe { std::slice::from_raw_parts(from.cast::<AtomicU32>(), out.len() / 4) };
    for (word, to) in words.iter().zip(out.chunks_exact_mut(4)) {
        // Acquire keeps the loads in order, as SQLite's barrier does.
        to.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
    }
}

/// [`copy_header`] for a thread on which SQLite is not just using the wal-index: `None` where the mapping leads nowhere.
///
/// # Safety
/// As [`copy_header`], but the file below the mapping may end anywhere.
pub(super) unsafe fn try_header(region: *const c_void) -> Option<[u8; WAL_INDEX_HEADER]> {
    let mut out = [0u8; WAL_INDEX_HEADER];
    // SAFETY: caller.
    unsafe { try_copy(region, HEADER_COPY, &mut out) }.then_some(out)
}

/// Fills `out`, a multiple of 4 long, with what is at `from`, the first `first` bytes before the others; `false` where the
/// mapping leads nowhere. Somebody may empty the file while an idle connection has it mapped (a program that copies a
/// whole set of files back, an older SQLite that finds a database made anew beside an old `-shm`), and reading it is a
/// SIGBUS then, which ends the host. So the kernel is asked to read, and says no instead.
///
/// # Safety
/// As [`copy_words`], but the file below the mapping may end anywhere.
unsafe fn try_copy(from: *const c_void, first: usize, out: &mut [u8]) -> bool {
    #[cfg(target_os = "linux")]
    match kernel::read_own(from, first, out) {
        Ok(()) => return true,
        Err(kernel::Refused::Unmapped) => return false,
        // Not in this sandbox: then as SQLite reads it.
        Err(kernel::Refused::NotAllowed) => {}
    }
    // SAFETY: caller, and the file is taken to be whole.
    unsafe { copy_words(from, out) };
    true
}

/// Reading our own memory through the kernel.
#[cfg(target_os = "linux")]
mod kernel {
    use std::ffi::{c_int, c_ulong, c_void};

    #[repr(C)]
    struct IoVec {
        base: *mut c_void,
        len: usize,
    }

    unsafe extern "C" {
        // ssize_t process_vm_readv(pid_t, const struct iovec *local, unsigned long, const struct iovec *remote, unsigned long,
        // unsigned long flags); "on success, the number of bytes read … This may be less than requested".
        fn process_vm_readv(
            pid: c_int,
            local: *const IoVec,
            local_count: c_ulong,
            remote: *const IoVec,
            remote_count: c_ulong,
            flags: c_ulong,
        ) -> isize;
    }

    pub(super) enum Refused {
        Unmapped,
        NotAllowed,
    }

    /// Fills `out` with what is at `from`, in two steps. An address that leads nowhere is an error.
    pub(super) fn read_own(from: *const c_void, first: usize, out: &mut [u8]) -> Result<(), Refused> {
        const EFAULT: i32 = 14;
        let pid = c_int::try_from(std::process::id()).unwrap_or(0);
        let first = first.min(out.len());
        let local = IoVec { base: out.as_mut_ptr().cast(), len: out.len() };
        let remote = [
            IoVec { base: from.cast_mut(), len: first },
            IoVec { base: from.cast::<u8>().wrapping_add(first).cast_mut().cast(), len: out.len() - first },
        ];
        // SAFETY: one local and two remote ranges, as long as they say; the local one is `out`, the others are looked
        // at by the kernel alone.
        let read = unsafe { process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), 2, 0) };
        match usize::try_from(read) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(_) => Err(Refused::Unmapped),
            Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(EFAULT) => {
                Err(Refused::Unmapped)
            }
            Err(_) => Err(Refused::NotAllowed),
        }
    }
}

/// Reads the wal-index header of one hooked handle from any thread. Outlives the handle: then it gives `None`.
#[derive(Clone, Debug)]
pub struct ShmPeek(pub(super) Arc<Shm>);

impl ShmPeek {
    /// The 136 bytes, in the machine's byte order; `None` when the handle has no wal-index mapped (any more), or one
    /// whose file was cut under it.
    pub fn header(&self) -> Option<[u8; WAL_INDEX_HEADER]> {
        let held = mutex::lock();
        let region = self.0.region(0);
        // SAFETY: the mutex of the handles is held, and `forget` takes it before the mapping goes.
        let header = if region.is_null() { None } else { unsafe { try_header(region) } };
        drop(held);
        header
    }

    /// The pages of WAL frames `from + 1 ..= to`, which are committed; `None` where the handle does not have that
    /// part of the wal-index mapped.
    pub fn frame_pages(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        let held = mutex::lock();
        // SAFETY: as above.
        let pages = unsafe { self.0.frame_pages(from, to) };
        drop(held);
        pages
    }

    /// Whether the handle's wal-index is mapped now.
    pub fn is_mapped(&self) -> bool {
        self.0.is_mapped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_pages_cross_regions() {
        let mut regions: Vec<Vec<u32>> = vec![vec![0; 8192]; 3];
        for frame in 1..=10_000usize {
            let word = 34 + frame - 1;
            regions[word / 4096][word % 4096] = frame as u32 * 7;
        }
        let shm = Shm::default();
        for (n, r) in regions.iter_mut().enumerate() {
            shm.set(n, r.as_mut_ptr().cast());
        }
        for (from, to) in [(0, 1), (0, 4062), (4061, 4063), (4062, 8158), (8157, 8159), (0, 10_000), (5, 5)] {
            let expected: Vec<u32> = (from + 1..=to).map(|f| f * 7).collect();
            // SAFETY: the three regions are alive and 32768 bytes long.
            assert_eq!(unsafe { shm.frame_pages(from, to) }, Some(expected), "{from}..{to}");
        }
        shm.forget();
        // SAFETY: nothing is mapped.
        assert_eq!(unsafe { shm.frame_pages(0, 1) }, None);
    }
}
