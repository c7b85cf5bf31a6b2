//! Whose files may be hooked. A VFS that is not one of SQLite's own may know its files by their table of methods: the
//! ciphers of SQLite3 Multiple Ciphers do, and wrote plain text into the WAL of a file whose table was ours.
//!
//! Rules:
//! * I-VFS-3: the table of a file is exchanged only where [`judge`] says so: the VFS that the pager calls is one of SQLite's
//!   own, or ours over one, and the table is one of SQLite's own, too. A VFS above or below that is another's makes the whole
//!   chain another's, however harmless it may be: what it does with bytes or tables cannot be seen from here.
//! * I-VFS-4: a VFS is SQLite's own because of what it is: an object inside the SQLite library that was there under one of its
//!   names at the load, and that shares its methods with a sibling (`unix` and `unix-excl` differ in their names and in their
//!   finder of tables alone). A name can be reused, an address cannot. The tables stand in the library as well.
//!
//! Refused: a list of VFSes known to be harmless (a shim may change without its name). To look at names alone. To hook
//! below another's VFS, where all bytes may be ciphertext: own handles would read what the program never sees, and a shim
//! may move or copy its inner file (`apndvfs` does).

use super::ffi::{IoMethods, Vfs};
use super::loader::object_of;
use super::{api, lower};
use std::ffi::{CStr, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whose a VFS is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// SQLite's own.
    Sqlite,
    /// The VFS `walrust`, over one of this owner.
    Walrust { over_sqlites: bool },
    /// Anybody else.
    Another,
}

/// Where a file's table of methods stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Table {
    /// In the SQLite library.
    Sqlite,
    /// Elsewhere.
    Another,
}

/// What may be done with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Judgement {
    /// Its table may be exchanged.
    Hook,
    /// It is left alone.
    LeaveAlone,
}

/// I-VFS-3.
pub(super) fn judge(vfs: Owner, table: Table) -> Judgement {
    match (vfs, table) {
        (Owner::Sqlite | Owner::Walrust { over_sqlites: true }, Table::Sqlite) => Judgement::Hook,
        (Owner::Sqlite | Owner::Walrust { over_sqlites: true }, Table::Another)
        | (Owner::Walrust { over_sqlites: false } | Owner::Another, _) => Judgement::LeaveAlone,
    }
}

/// What is said of a file that is left alone.
pub fn left_alone(path: &str, vfs: &str) -> String {
    format!(
        "{path} is open through the VFS {vfs}, which is not one of SQLite's own, so walrust leaves the file alone; \
         a database that needs no such VFS can be watched when it is opened with vfs=unix (as file:NAME?vfs=unix)"
    )
}

/// SQLite's names for its VFSes that have files, on all systems that have them.
const NAMES: [&CStr; 9] = [
    c"unix",
    c"unix-posix",
    c"unix-excl",
    c"unix-none",
    c"unix-dotfile",
    c"unix-flock",
    c"unix-namedsem",
    c"unix-afp",
    c"unix-nfs",
];

/// Addresses of SQLite's own, found at the load.
static OWN: OnceLock<Vec<usize>> = OnceLock::new();
/// Address of SQLite's VFS for databases in memory, if it has one.
static MEMDB: AtomicUsize = AtomicUsize::new(0);

/// Finds SQLite's own among the VFSes that are registered now. The first call counts: it comes before any of their methods
/// is exchanged.
pub(super) fn learn() {
    OWN.get_or_init(|| {
        // SAFETY: the table is set; the names are NUL-ended.
        let named = NAMES.iter().map(|n| unsafe { api::vfs_find(n.as_ptr()) });
        // SAFETY: as above.
        let memdb = unsafe { api::vfs_find(c"memdb".as_ptr()) };
        if in_sqlite(memdb.cast_const().cast()) {
            MEMDB.store(memdb as usize, Ordering::Relaxed);
        }
        let there: Vec<*mut Vfs> =
            named.filter(|v| !v.is_null() && in_sqlite(v.cast_const().cast())).collect();
        // SAFETY: registered VFSes live for good.
        let own = |v: &&*mut Vfs| unsafe {
            there.iter().any(|w| !std::ptr::eq(*w, **v) && are_siblings(&**w, &***v))
        };
        there.iter().filter(own).map(|v| *v as usize).collect()
    });
}

/// Whether two VFSes are the same code under two names.
fn are_siblings(a: &Vfs, b: &Vfs) -> bool {
    let methods = |v: &Vfs| {
        [
            v.x_open.map_or(0, |f| f as usize),
            v.x_delete.map_or(0, |f| f as usize),
            v.x_access.map_or(0, |f| f as usize),
            v.x_full_pathname.map_or(0, |f| f as usize),
        ]
    };
    methods(a) == methods(b) && a.sz_os_file == b.sz_os_file && a.x_open.is_some()
}

/// The first of SQLite's own that was there under one of its names, which is `unix`.
pub(super) fn plain() -> Option<*mut Vfs> {
    OWN.get()?.first().map(|v| *v as *mut Vfs)
}

/// Whether this is one of SQLite's own.
pub(super) fn is_sqlites(vfs: *const Vfs) -> bool {
    OWN.get().is_some_and(|own| own.contains(&(vfs as usize)))
}

/// Whether this is SQLite's VFS for databases in memory, which has no files.
pub(super) fn is_memdb(vfs: *const Vfs) -> bool {
    !vfs.is_null() && MEMDB.load(Ordering::Relaxed) == vfs as usize
}

/// Whose `vfs` is.
pub(super) fn owner_of(vfs: *const Vfs) -> Owner {
    if is_sqlites(vfs) {
        Owner::Sqlite
    } else if lower::is_ours(vfs) {
        Owner::Walrust { over_sqlites: is_sqlites(lower::lower()) }
    } else {
        Owner::Another
    }
}

/// Where the table stands. SQLite has a handful of them, which are remembered: to ask the loader costs microseconds.
pub(super) fn table_of(methods: *const IoMethods) -> Table {
    static KNOWN: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];
    let at = methods as usize;
    if KNOWN.iter().any(|k| k.load(Ordering::Relaxed) == at) {
        return Table::Sqlite;
    }
    if !in_sqlite(methods.cast()) {
        return Table::Another;
    }
    // Full: asked again each time.
    let _ = KNOWN.iter().any(|k| k.compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    Table::Sqlite
}

/// Whether `address` stands in the library that holds SQLite. In a program without a loader all that is known is in one piece.
fn in_sqlite(address: *const c_void) -> bool {
    match object_of(api::table().cast()) {
        Some(sqlite) => object_of(address).is_some_and(|o| o.base == sqlite.base),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sqlites_all_the_way_is_hooked() {
        let over = |over_sqlites| Owner::Walrust { over_sqlites };
        for (vfs, table, want) in [
            (Owner::Sqlite, Table::Sqlite, Judgement::Hook),
            (Owner::Sqlite, Table::Another, Judgement::LeaveAlone),
            (over(true), Table::Sqlite, Judgement::Hook),
            (over(true), Table::Another, Judgement::LeaveAlone),
            (over(false), Table::Sqlite, Judgement::LeaveAlone),
            (over(false), Table::Another, Judgement::LeaveAlone),
            (Owner::Another, Table::Sqlite, Judgement::LeaveAlone),
            (Owner::Another, Table::Another, Judgement::LeaveAlone),
        ] {
            assert_eq!(judge(vfs, table), want, "{vfs:?} {table:?}");
        }
    }
}
