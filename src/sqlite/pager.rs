//! Whether a file that `xOpen` is to open is a pager's own. A VFS of somebody else's calls SQLite's VFS below it with the same
//! name and flags, for a file inside its own file, or for the very same one; those are left alone (I-VFS-3), and nothing in the
//! call tells them apart.
//!
//! What does: SQLite's pager lays out itself, its VFS's file and the file's name in one piece of memory, in an order that has
//! not changed from 3.24 to now, and with distances that are the same for all files of VFSes with files of one size. At load one
//! file is opened for nothing, and the distances are read off ([`learn`]). They are compared at each open: a file inside another
//! one is not where the pager's would be, and for one that is, the pager says which VFS it called.
//!
//! I-VFS-5: where the distances could not be read off, no main database is hooked at `xOpen`; the end of `sqlite3_open`, where
//! the connection itself tells its VFS, takes it in, and `ATTACH`ed ones are left alone.
//!
//! Refused: to leave files alone while somebody else's VFS is registered (the sqlite3 shell always registers one);
//! `sqlite3_database_file_object()`, which reads wild memory if a shim made up the name.

use super::ffi::{self, File, Vfs};
use super::{api, unseen};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

/// A pager's own bytes and those of its page cache are fewer than this, and so are those of its three files.
const LARGEST: usize = 16 << 10;

/// Distances in the memory of a pager.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// From its beginning, where it points to its VFS, to its file.
    pub(super) file: usize,
    /// From its file to the file's name.
    pub(super) name: usize,
}

static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();

thread_local! {
    /// Set while this thread opens the file for nothing.
    static TRYING: Cell<bool> = const { Cell::new(false) };
    static SEEN: Cell<Option<Layout>> = const { Cell::new(None) };
}

/// Opens a file for nothing through `vfs`, whose `xOpen` asks [`is_trial`] first: no file is touched.
pub(super) fn learn(vfs: &CStr) {
    LAYOUT.get_or_init(|| {
        /// A cache of its own, even where the program shares caches.
        const PRIVATE_CACHE: c_int = 0x40000;
        let mut db = std::ptr::null_mut();
        TRYING.set(true);
        // SAFETY: the table is set; the connection is closed whether or not it could be opened.
        unseen::unseen(|| unsafe {
            let flags = ffi::OPEN_READONLY | PRIVATE_CACHE;
            api::open_v2(c"/walrust".as_ptr(), &raw mut db, flags, vfs.as_ptr());
            api::close_v2(db);
        });
        TRYING.set(false);
        SEEN.take()
    });
}

/// What was read off, if it could be.
#[cfg(test)]
pub(super) fn layout() -> Option<Layout> {
    LAYOUT.get().copied().flatten()
}

/// Whether this is the open of [`learn`], which opens nothing.
///
/// # Safety
/// The arguments are those of an `xOpen`.
pub(super) unsafe fn is_trial(vfs: *const Vfs, name: *const c_char, file: *const File) -> bool {
    if !TRYING.get() {
        return false;
    }
    if !name.is_null() {
        // SAFETY: the pager of a connection that `learn` opens through our VFS called us.
        SEEN.set(unsafe { read_off(vfs, name, file) });
    }
    true
}

/// # Safety
/// `name` and `file` are a pager's, which called `vfs`.
unsafe fn read_off(vfs: *const Vfs, name: *const c_char, file: *const File) -> Option<Layout> {
    const WORD: usize = size_of::<usize>();
    let name_at = (name as usize).checked_sub(file as usize).filter(|n| *n < LARGEST)?;
    // From 3.32 on, the pager's address and four zeros stand before the name, for sqlite3_database_file_object(). Before that
    // its first word is looked for: it points to the VFS, and nothing between it and the file does.
    let file_at = if api::at_least(3_032_000) {
        // SAFETY: caller; the name is in the pager's memory, behind the file.
        let pager = unsafe { name.sub(4 + WORD).cast::<usize>().read_unaligned() };
        (file as usize).checked_sub(pager).filter(|n| (WORD..LARGEST).contains(n))?
    } else {
        // SAFETY: caller; the first word that points to the VFS ends the search inside of the pager.
        (1..LARGEST / WORD).find(|n| unsafe { file.cast::<*const Vfs>().sub(*n).read() } == vfs)? * WORD
    };
    // SAFETY: that many bytes before the file the pager begins.
    let first = unsafe { file.byte_sub(file_at).cast::<*const Vfs>().read() };
    std::ptr::eq(first, vfs).then_some(Layout { file: file_at, name: name_at })
}

/// Whether a pager called this `xOpen` of `vfs`, for its main database.
///
/// # Safety
/// The arguments are those of an `xOpen` with `SQLITE_OPEN_MAIN_DB`.
pub(super) unsafe fn is_pagers(vfs: *const Vfs, name: *const c_char, file: *const File) -> bool {
    let Some(layout) = LAYOUT.get().copied().flatten() else { return false };
    if (name as usize).checked_sub(file as usize) != Some(layout.name) {
        return false;
    }
    // SAFETY: name and file stand to each other as in a pager's memory, in which they are one piece with its beginning.
    let first = unsafe { file.byte_sub(layout.file).cast::<*const Vfs>().read() };
    std::ptr::eq(first, vfs)
}

/// The name under which the pager of the database `filename` opens its WAL: only that very address is it. Null for null.
///
/// # Safety
/// `filename` is null, or a pager's name of a main database.
pub(super) unsafe fn wal_name(filename: *const c_char) -> *const c_char {
    if filename.is_null() || api::at_least(3_031_000) {
        // SAFETY: caller; "the input to sqlite3_filename_wal() must be a filename passed to xOpen, or from sqlite3_db_filename()".
        return if filename.is_null() { filename } else { unsafe { api::filename_wal(filename) } };
    }
    // SAFETY: caller; until 3.30 the parameters follow the name, each key and value ended by a zero, an empty key ends them, and
    // there the journal's name begins (`sqlite3PagerOpen`).
    unsafe {
        let after = |text: *const c_char| text.add(CStr::from_ptr(text).count_bytes() + 1);
        let mut at = after(filename);
        while *at != 0 {
            at = after(after(at));
        }
        after(at.add(1))
    }
}
