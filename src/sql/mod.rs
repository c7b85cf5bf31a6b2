//! What a user types: one function each, parse → call → format. Names, columns and texts are the contract;
//! everything that does something is in the rooms below.

mod common;
mod compact;
mod config;
mod drill;
mod explain;
mod label;
mod list;
mod metrics;
mod notify;
mod once;
mod read;
mod rekey;
mod replicate;
mod restore;
mod rewind;
mod status;
mod verify;
mod version;
mod watch;

pub use common::replica_of;
pub use restore::{on_restore_note, on_restore_progress};

use crate::config::Functions;
use crate::sqlite::{ScalarFunction, TableFunction};

/// What neither writes a file nor reaches the network.
const READING: &[&str] = &["walrust_version", "walrust_status", "walrust_config", "walrust_metrics"];

/// The functions and tables that there are.
pub fn chosen(which: Functions) -> (Vec<&'static ScalarFunction>, Vec<&'static TableFunction>) {
    let is_in = |name: &str| which == Functions::All || READING.contains(&name);
    (FUNCTIONS.iter().filter(|f| is_in(f.name)).collect(), TABLES.iter().filter(|t| is_in(t.name)).collect())
}

/// Every scalar function.
pub static FUNCTIONS: &[ScalarFunction] = &[
    ScalarFunction { name: "walrust_version", args: 0..=0, call: version::version },
    ScalarFunction { name: "walrust_watch", args: 0..=2, call: watch::watch },
    ScalarFunction { name: "walrust_unwatch", args: 0..=0, call: watch::unwatch },
    ScalarFunction { name: "walrust_sync", args: 0..=2, call: watch::sync },
    ScalarFunction { name: "walrust_snapshot", args: 0..=1, call: watch::snapshot },
    ScalarFunction { name: "walrust_restore", args: 2..=4, call: restore::restore },
    ScalarFunction { name: "walrust_replicate", args: 2..=3, call: replicate::replicate },
    ScalarFunction { name: "walrust_unreplicate", args: 1..=1, call: replicate::unreplicate },
    ScalarFunction { name: "walrust_url", args: 1..=2, call: read::url },
    ScalarFunction { name: "walrust_past", args: 1..=1, call: read::past },
    ScalarFunction { name: "walrust_rewind", args: 1..=1, call: rewind::rewind },
    ScalarFunction { name: "walrust_label", args: 1..=4, call: label::label },
    ScalarFunction { name: "walrust_last_error", args: 0..=0, call: read::last_error },
    ScalarFunction { name: "walrust_verify", args: 0..=2, call: verify::report },
    ScalarFunction { name: "walrust_drill", args: 0..=2, call: drill::drill },
    ScalarFunction { name: "walrust_explain", args: 0..=1, call: explain::explain },
    ScalarFunction { name: "walrust_compact", args: 0..=2, call: compact::compact },
    ScalarFunction { name: "walrust_rekey", args: 0..=2, call: rekey::rekey },
    ScalarFunction { name: "walrust_metrics", args: 0..=0, call: metrics::metrics },
    ScalarFunction { name: "walrust_notify_test", args: 0..=0, call: notify::test },
];

/// Every table-valued function.
pub static TABLES: &[TableFunction] = &[
    TableFunction {
        name: "walrust_status",
        columns: &[
            ("database", "TEXT"),
            ("replica", "TEXT"),
            ("state", "TEXT"),
            ("txid", "INTEGER"),
            ("replicated_txid", "INTEGER"),
            ("lag_seconds", "REAL"),
            ("pending_bytes", "INTEGER"),
            ("wal_bytes", "INTEGER"),
            ("spool_bytes", "INTEGER"),
            ("breaker", "TEXT"),
            ("last_upload", "TEXT"),
            ("last_error", "TEXT"),
            ("protection", "TEXT"),
        ],
        args: &[],
        rows: status::status,
    },
    TableFunction {
        name: "walrust_list",
        columns: &[
            ("name", "TEXT"),
            ("replica", "TEXT"),
            ("snapshots", "INTEGER"),
            ("files", "INTEGER"),
            ("bytes", "INTEGER"),
            ("min_txid", "INTEGER"),
            ("max_txid", "INTEGER"),
            ("first_time", "TEXT"),
            ("last_time", "TEXT"),
        ],
        args: &["url"],
        rows: list::list,
    },
    TableFunction {
        name: "walrust_files",
        columns: &[
            ("level", "INTEGER"),
            ("min_txid", "INTEGER"),
            ("max_txid", "INTEGER"),
            ("bytes", "INTEGER"),
            ("time", "TEXT"),
            ("pages", "INTEGER"),
            ("commit_pages", "INTEGER"),
            ("sha256", "TEXT"),
            ("key", "TEXT"),
        ],
        args: &["url"],
        rows: list::files,
    },
    TableFunction {
        name: "walrust_points",
        columns: &[
            ("txid", "INTEGER"),
            ("time", "TEXT"),
            ("level", "INTEGER"),
            ("bytes", "INTEGER"),
            ("pages", "INTEGER"),
            ("label", "TEXT"),
            ("commit_pages", "INTEGER"),
        ],
        args: &["url"],
        rows: read::points,
    },
    TableFunction {
        name: "walrust_changes",
        columns: &[
            ("type", "TEXT"),
            ("name", "TEXT"),
            ("pages", "INTEGER"),
            ("inserted", "INTEGER"),
            ("deleted", "INTEGER"),
            ("updated", "INTEGER"),
        ],
        args: &["url", "from_point", "to_point"],
        rows: read::changes,
    },
    TableFunction {
        name: "walrust_verify",
        columns: &[
            ("severity", "TEXT"),
            ("check", "TEXT"),
            ("file", "TEXT"),
            ("min_txid", "INTEGER"),
            ("max_txid", "INTEGER"),
            ("bytes", "INTEGER"),
            ("message", "TEXT"),
        ],
        args: &["url", "mode"],
        rows: verify::findings,
    },
    TableFunction {
        name: "walrust_drills",
        columns: &[
            ("database", "TEXT"),
            ("replica", "TEXT"),
            ("time", "TEXT"),
            ("txid", "INTEGER"),
            ("seconds", "REAL"),
            ("bytes", "INTEGER"),
            ("result", "TEXT"),
            ("message", "TEXT"),
        ],
        args: &[],
        rows: drill::drills,
    },
    TableFunction {
        name: "walrust_config",
        columns: &[
            ("name", "TEXT"),
            ("value", "TEXT"),
            ("source", "TEXT"),
            ("default_value", "TEXT"),
            ("description", "TEXT"),
        ],
        args: &[],
        rows: config::config,
    },
];
