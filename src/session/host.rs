//! What the process does with files and connections that SQLite opens: every main database gets an entry; [`begin`] watches those
//! that are configured.

use super::begin;
use super::engine::engine;
use super::entry::Entry;
use crate::config::{Layer, TABLE};
use crate::sqlite::{Access, Connection, DbObserver, FileInfo, Host, How};
use std::sync::Arc;

/// The host of a process: hand it to [`crate::sqlite`].
#[derive(Debug, Default)]
pub struct EngineHost;

impl EngineHost {
    /// The same as [`Host::opened`], where what is configured is not to begin by being opened.
    pub fn opened_on_demand(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        Some(entry_of(file)?)
    }
}

fn entry_of(file: &FileInfo<'_>) -> Option<Arc<Entry>> {
    let has_commits = file.access == Access::ReadWrite && !file.path.as_os_str().is_empty();
    has_commits.then(|| note_uri(file))
}

impl Host for EngineHost {
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        let entry = entry_of(file)?;
        if file.how == How::VfsOpen {
            begin::met(engine(), &entry);
        }
        Some(entry)
    }

    fn left_alone(&self, file: &FileInfo<'_>) {
        // (Nobody else holds the entry, which knows what the URI said.)
        let entry = note_uri(file);
        begin::left_alone(engine(), entry.path(), file.vfs);
    }

    fn connection_opened(&self, conn: &Connection) {
        begin::opened(engine(), conn);
    }

    fn connection_loaded(&self, conn: &Connection) {
        begin::opened(engine(), conn);
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
