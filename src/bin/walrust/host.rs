//! This program as a host of the extension: its SQLite, its connections, its log.

use crate::failure::Failure;
use crate::show;
use log::{LevelFilter, Log, Metadata, Record};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::Arc;
use walrust::session::EngineHost;
use walrust::sqlite::{DbObserver, FileInfo, Host, Wiring, linked};

/// What walrust does with the databases that a command opens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// Nothing (I-CLI-3).
    None,
    /// They can be watched.
    Streaming,
}

/// Puts the extension into this program's SQLite. Once, before the first connection.
pub fn start(hooks: Hooks) -> Result<(), Failure> {
    let quiet = if hooks == Hooks::Streaming { LevelFilter::Warn } else { LevelFilter::Off };
    let asked = std::env::var("WALRUST_LOG").ok().and_then(|v| v.parse().ok());
    if log::set_logger(&ToStderr).is_ok() {
        log::set_max_level(asked.unwrap_or(quiet));
    }
    linked::install(match hooks {
        Hooks::None => || wiring(Vec::new()),
        Hooks::Streaming => || wiring(vec![Arc::new(OnDemand)]),
    })?;
    Ok(())
}

fn wiring(hosts: Vec<Arc<dyn Host>>) -> Wiring {
    Wiring {
        functions: walrust::sql::FUNCTIONS.iter().collect(),
        tables: walrust::sql::TABLES.iter().collect(),
        hosts,
        elsewhere: Some(Arc::new(walrust::reader::Replicas {
            vicinity: Arc::new(walrust::session::Neighbourhood),
        })),
    }
}

/// As in any process that loaded the extension, but that opening a configured database does not start its streaming:
/// here somebody says what to stream, and where to.
struct OnDemand;

impl Host for OnDemand {
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        EngineHost.opened_on_demand(file)
    }
}

/// A connection without a database.
pub fn in_memory() -> Result<Connection, Failure> {
    Ok(Connection::open_in_memory()?)
}

/// A database that must exist, to look at.
pub fn read_only(path: &Path) -> Result<Connection, Failure> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// A replica to look at, by the name that `walrust_url` gives.
pub fn replica(name: &str) -> Result<Connection, Failure> {
    Ok(Connection::open_with_flags(name, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?)
}

/// A database that must exist, to stream.
pub fn read_write(path: &Path) -> Result<Connection, Failure> {
    open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

fn open(path: &Path, how: OpenFlags) -> Result<Connection, Failure> {
    if !path.is_file() {
        return Err(Failure::new(format!("{} is not a database file: no such file", path.display())));
    }
    // A connection in read-only mode cannot see the WAL of a directory that it may not write to; SQLite says so.
    Ok(Connection::open_with_flags(path, how | OpenFlags::SQLITE_OPEN_NO_MUTEX)?)
}

struct ToStderr;

impl Log for ToStderr {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        m.level() <= log::max_level()
    }

    fn log(&self, r: &Record<'_>) {
        if self.enabled(r.metadata()) {
            let text = r.args().to_string();
            show::complain(text.strip_prefix("walrust: ").unwrap_or(&text));
        }
    }

    fn flush(&self) {}
}
