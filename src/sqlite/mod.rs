//! The room that knows SQLite: bindings, the shim VFS, functions, connections. The only one with `unsafe`.
//! It knows nothing of replication; the rooms above implement [`Host`] and [`DbObserver`] and get told what
//! SQLite does to a file, at the moment it does it, with a say where SQLite leaves one.
//!
//! What holds here (each stated and kept in the file named):
//! * I-SQLITE-1..2 (`api`): one SQLite library per process; no slot that the host lacks is called.
//! * I-SQLITE-3 (`guard`): no panic crosses to C.
//! * I-HOOK-1..4 (`hook`, `wal_hook`): what is not of interest is the lower VFS's own pointer.
//! * I-JOIN-1..2 (`wal_join`): a frame goes to the WAL as SQLite wrote it, in one call.
//! * I-VFS-1..2, I-VFS-6 (`vfs`): the VFS `walrust` is the lower VFS with one method changed; the default stays the default.
//! * I-VFS-3..4 (`judge`), I-VFS-5 (`pager`): only files of SQLite's own VFSes are hooked.
//! * I-PIN-1 (`loader`): the host's SQLite stays.
//! * I-PROGRAM-1 (`program`): a program's own SQLite is reached through its API table, too.
//! * I-ELSE-1..4 (`elsewhere`): databases that are no files.
//! * I-RAW-1 (`raw`), I-EWAL-1 (`empty_wal`), I-MARK-1 (`read_mark`), I-RW-1..4 (`rewrite`), I-FORK-1..4 (`fork`): our own handles.
//! * I-KEEP-1..2 (`keep`), I-ASIDE-1 (`aside`): a lock that lasts, and the reading of a small file, take no descriptor.
//!
//! Called by SQLite on the app's threads, and by the rooms above on any. Nothing here keeps state on disk:
//! a crash leaves behind what SQLite leaves behind.
//!
//! Refused: ready-made bindings (rusqlite in loadable mode aborts older hosts; sqlite-loadable has no VFS),
//! and a VFS with files of its own (cannot take in a connection that is already open).

mod api;
mod aside;
mod attach;
mod connection;
#[cfg(feature = "crash-points")]
pub mod debug;
mod elsewhere;
mod empty_wal;
mod entry;
mod error;
mod exit;
mod ffi;
mod file;
mod fork;
mod function;
mod guard;
mod hook;
mod host;
mod judge;
mod keep;
#[cfg(any(test, feature = "cli"))]
pub mod linked;
mod loader;
mod log;
mod lower;
mod methods;
mod mutex;
mod observer;
mod occupied;
mod overwrite;
mod own;
mod pager;
#[cfg(feature = "install")]
pub(crate) mod program;
mod quiet;
mod raw;
mod read_mark;
mod registry;
mod rewrite;
mod shm;
mod stack;
mod table;
#[cfg(test)]
mod tests;
mod unseen;
mod value;
mod vfs;
mod vocab;
mod wal_hook;
mod wal_join;

pub use api::version as libversion;
pub use aside::{Aside, read_aside};
pub use attach::Hooked;
pub use connection::Connection;
pub use elsewhere::{Elsewhere, Image, take_last_error};
pub use empty_wal::put_empty_wal;
pub use entry::{Wiring, auto_load, load};
pub use exit::on_exit;
pub use ffi::{ApiRoutines, IOERR_WRITE, Sqlite3};
pub use file::{HookedFile, WalFile};
pub use fork::{ForkHooks, Revocable, despite_forks, on_fork, own_handles, recalled};
pub use function::ScalarFunction;
pub use host::{FileInfo, Host, add_host};
pub use judge::left_alone;
pub use keep::{KeptLock, is_locked, keep_lock};
pub use methods::ReadExtent;
pub use observer::{DbObserver, WalHook, WalObserver};
pub use occupied::Occupied;
pub use own::{Check, SqlConnection, SqlMode};
pub use raw::RawDb;
pub use read_mark::{Pins, ReadMark};
pub use registry::hooked_handles;
pub use rewrite::{Peek, Rewrite, peek};
pub use shm::{ShmPeek, WAL_INDEX_HEADER};
pub use table::{Rows, TableFunction};
pub use value::Value;
pub use vocab::{Access, Again, FileLock, How, LockOp, PragmaVerdict, SlotRange, Verdict, WalVerdict};
