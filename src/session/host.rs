//! What the process does with files and connections that SQLite opens: every main database gets an entry; [`begin`] watches those
//! that are configured.

use super::begin::{self, WishRow};
use super::engine::{Engine, engine, lock};
use super::entry::Entry;
use super::start::WatchRequest;
use crate::base::{Error, Result};
use crate::config::{Config, Layer, Resolved, TABLE};
use crate::sqlite::{Access, Connection, DbObserver, FileInfo, Host};
use crate::store::ReplicaUrl;
use std::path::Path;
use std::sync::Arc;

/// Databases that could not be watched, of which the reason is remembered: a program may open any number.
const FAILURES: usize = 1000;

/// The host of a process: hand it to [`crate::sqlite`].
#[derive(Debug, Default)]
pub struct EngineHost;

impl Host for EngineHost {
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        if file.access == Access::ReadOnly || file.path.as_os_str().is_empty() {
            return None;
        }
        Some(note_uri(file))
    }

    fn left_alone(&self, file: &FileInfo<'_>) {
        // (Nobody else holds the entry, which knows what the URI said.)
        let entry = note_uri(file);
        begin::left_alone(entry.path(), file.vfs);
    }

    fn connection_opened(&self, conn: &Connection) {
        begin::opened(conn);
    }

    fn connection_loaded(&self, conn: &Connection) {
        begin::opened(conn);
    }
}

/// Takes up what the URI of an open says.
fn note_uri(file: &FileInfo<'_>) -> Arc<Entry> {
    let entry = engine().entry(file.path);
    // (Where SQLite cannot say what else there is, misspelt ones pass.)
    let mut names = file.uri_keys();
    names.extend(TABLE.iter().map(|s| s.name.to_string()));
    names.sort_unstable();
    names.dedup();
    let said: Vec<(String, String)> =
        names.into_iter().filter_map(|n| file.uri_parameter(&n).map(|v| (n, v))).collect();
    let ours = Layer::from_uri(said.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    if ours.as_ref().map_or(true, |l| !l.is_empty()) {
        entry.set_uri(ours);
    } else {
        entry.forget_bad_uri();
    }
    entry
}

/// A watch request out of resolved settings.
pub fn request<'a>(path: &'a Path, resolved: &Resolved, takeover: bool) -> Result<WatchRequest<'a>> {
    let replica = match &resolved.settings.replica {
        Some(r) => ReplicaUrl::parse(r)?,
        None => {
            let dir = crate::config::embedded_replica(path);
            let dir = dir
                .to_str()
                .ok_or_else(|| Error::config("the database's path is not UTF-8; name a replica"))?;
            ReplicaUrl::parse(dir)?
        }
    };
    Ok(WatchRequest { path, settings: resolved.settings.clone(), replica, takeover })
}

impl Engine {
    /// The configuration of the process, read at first use.
    pub fn config(&self) -> Result<Arc<Config>> {
        let mut at = lock(&self.config);
        if let Some(c) = at.as_ref() {
            return Ok(c.clone());
        }
        let c = Arc::new(Config::load()?);
        *at = Some(c.clone());
        Ok(c)
    }

    /// The settings of a database, with `sql` options on top.
    pub fn resolve(&self, path: &Path, sql: Option<&Layer>) -> Result<Resolved> {
        let uri = self.entry(path).uri()?;
        self.config()?.resolve(path, uri.as_ref(), sql)
    }

    /// A configured database that could not be watched: shown in `walrust_status` until it is.
    pub(super) fn note_failure(&self, path: &Path, e: &Error) {
        let mut failures = lock(&self.failures);
        if failures.len() >= FAILURES && !failures.contains_key(path) {
            failures.pop_first();
        }
        failures.insert(path.to_path_buf(), e.to_string());
    }

    /// Configured databases that are open here and not watched yet, with what is waited for, or wrong.
    pub fn wishes(&self) -> Vec<WishRow> {
        self.all_entries().iter().filter_map(|e| e.wish.row(e.path())).collect()
    }

    pub(super) fn clear_failure(&self, path: &Path) {
        lock(&self.failures).remove(path);
    }

    /// Configured databases that could not be watched, with the reason.
    pub fn failures(&self) -> Vec<(std::path::PathBuf, String)> {
        lock(&self.failures).iter().map(|(p, e)| (p.clone(), e.clone())).collect()
    }
}
