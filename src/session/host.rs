//! What the process does with files and connections that SQLite opens: every main database gets an entry;
//! those that are configured are watched as soon as a connection can turn WAL mode on.

use super::engine::{Engine, engine, lock};
use super::start::WatchRequest;
use super::watched::Watched;
use crate::base::{Error, Result};
use crate::config::{Config, Layer, Resolved, TABLE};
use crate::sqlite::{Access, Connection, DbObserver, FileInfo, Host};
use crate::store::ReplicaUrl;
use std::path::Path;
use std::sync::Arc;

/// The host of a process: hand it to [`crate::sqlite`].
#[derive(Debug, Default)]
pub struct EngineHost;

impl Host for EngineHost {
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        if file.access == Access::ReadOnly || file.path.as_os_str().is_empty() {
            return None;
        }
        note_uri(file);
        Some(engine().entry(file.path))
    }

    fn left_alone(&self, file: &FileInfo<'_>) {
        // So that one that is configured is known to be.
        note_uri(file);
    }

    fn connection_opened(&self, conn: &Connection) {
        auto_watch(conn);
    }

    fn connection_loaded(&self, conn: &Connection) {
        auto_watch(conn);
    }
}

/// Takes up what the URI of an open says.
fn note_uri(file: &FileInfo<'_>) {
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
}

/// Watches the connection's main database if somebody configured that.
fn auto_watch(conn: &Connection) {
    let Some(path) = conn.main_db_path() else { return };
    // One that cannot write has nothing to tell, and its first read makes a WAL that it cannot remove.
    if conn.is_read_only() {
        return;
    }
    if engine().find(&path).is_some() || super::follow::is_follower(&path) {
        return;
    }
    if let Err(e) = try_auto_watch(conn, &path) {
        log::error!("walrust: {} is not replicated: {e}", path.display());
        engine().note_failure(&path, &e);
    }
}

fn try_auto_watch(conn: &Connection, path: &Path) -> Result<()> {
    let inherited = lock(&engine().inherited).iter().find(|i| i.path == path).cloned();
    if let Some(i) = inherited {
        conn.check_vfs("main")?;
        let replica = ReplicaUrl::parse(&i.replica)?;
        let req = WatchRequest { path, settings: i.settings, replica, takeover: false };
        Watched::start(req, &|| conn.set_wal_mode())?;
        return conn.hook("main").map(drop);
    }
    let resolved = engine().resolve(path, None)?;
    if !resolved.is_chosen() {
        return Ok(());
    }
    conn.check_vfs("main")?;
    let req = request(path, &resolved, false)?;
    let (w, _) = Watched::start(req, &|| conn.set_wal_mode())?;
    w.automatic.store(true, std::sync::atomic::Ordering::Release);
    conn.hook("main")?;
    engine().clear_failure(path);
    engine().use_process_settings()?;
    log::info!("walrust: {} → {}", path.display(), w.replica());
    Ok(())
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
        let c = Arc::new(Config::load(check_replica_url)?);
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
        lock(&self.failures).insert(path.to_path_buf(), e.to_string());
    }

    pub(super) fn clear_failure(&self, path: &Path) {
        lock(&self.failures).remove(path);
    }

    /// Configured databases that could not be watched, with the reason.
    pub fn failures(&self) -> Vec<(std::path::PathBuf, String)> {
        lock(&self.failures).iter().map(|(p, e)| (p.clone(), e.clone())).collect()
    }
}

fn check_replica_url(url: &str) -> Result<()> {
    ReplicaUrl::parse(url).map(drop)
}
