//! Whose spool, whose replica: what one process and another may take for theirs.
//!
//! A replica is known by its place, not by the text of its URL ([`same_replica`]); a spool by its directory, not by its name.
//! What another process ships is in *its* replica: this one believes of the spool's records only those of its own
//! ([`Watched::shipped`]).

use super::engine::{Engine, engine, lock};
use super::watched::{Role, Watched};
use crate::base::{Error, Result};
use crate::config::replica_key;
use crate::spool::{Owner, Shipped, Shipping, dir_id, other_database, real_dir};
use crate::store::ReplicaUrl;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Whether two canonical URLs name one replica, as far as their text and this machine's directories tell.
pub fn same_replica(a: &str, b: &str) -> bool {
    a == b || replica_key(a) == replica_key(b)
}

/// Errors when the spool `dir` cannot be that of the database at `path`, since it is, or lies in, or has in it, the spool of
/// another database, of this process or by what is written there. Changes nothing.
pub(super) fn refuse_others_spool(dir: &Path, path: &Path) -> Result<()> {
    let real = real_dir(dir);
    for other in engine().watched().iter().filter(|o| o.path() != path) {
        let theirs = other.spool.real_dir();
        if theirs.starts_with(&real) || real.starts_with(theirs) {
            return Err(other_database(dir, theirs, other.path()));
        }
    }
    Owner::of(path).check(dir)
}

/// The right to begin with a spool directory, among the threads of this process: to them, its locks are one. Until dropped.
pub(super) struct Reserved {
    of: &'static Engine,
    dir: (u64, u64),
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.of.spools).retain(|(dir, _)| *dir != self.dir);
    }
}

/// Reserves the spool in `dir`, which is there, for the database at `path`. Errors when another database of this process has it.
pub(super) fn reserve(dir: &Path, path: &Path) -> Result<Reserved> {
    let mine = dir_id(dir)?;
    let of = engine();
    let mut all = lock(&of.spools);
    if let Some((_, other)) = all.iter().find(|(d, _)| *d == mine) {
        return Err(other_database(dir, dir, other));
    }
    all.push((mine, path.to_path_buf()));
    drop(all);
    let reserved = Reserved { of, dir: mine };
    // (One that has begun meanwhile is watched by now.)
    let has = |o: &&std::sync::Arc<Watched>| o.spool.is_in(mine) && o.path() != path;
    match of.watched().iter().find(has) {
        Some(other) => Err(other_database(dir, dir, other.path())),
        None => Ok(reserved),
    }
}

/// The spools that are being begun with.
pub(super) type Spools = Vec<((u64, u64), PathBuf)>;

impl Watched {
    /// Whether a canonical URL names this watch's replica ([`same_replica`]).
    pub(super) fn ships_to(&self, replica: &str) -> bool {
        self.replica() == replica || self.replica_key == replica_key(replica)
    }

    /// What the spool says is in *this* watch's replica.
    pub(super) fn shipped(&self) -> Result<Option<Shipped>> {
        Ok(self.spool.shipped()?.filter(|s| self.ships_to(&s.replica)))
    }

    /// Says to other processes where this one ships. Whom it does not reach waits, and is told nothing untrue.
    pub(super) fn note_shipping(&self) {
        if let Err(e) = self.spool.note_shipping(self.replica()) {
            log::warn!("walrust: {}: {e}", self.path().display());
        }
    }

    /// The process that ships this database to another replica than this watch's.
    fn rival(&self) -> Option<Shipping> {
        let rival = || self.spool.shipping().ok().flatten();
        (self.role() == Role::Standby).then(rival).flatten().filter(|s| !self.ships_to(&s.replica))
    }

    /// Why nothing of this database reaches the replica although another process of this machine ships.
    pub fn ships_elsewhere(&self) -> Option<String> {
        let rival = self.rival()?;
        Some(format!(
            "{} of this machine ships this database to {}, and one process ships at a time: nothing of it is in {} until \
             that one ends; give both the same replica",
            rival.process(),
            rival.replica,
            self.replica()
        ))
    }
}

/// A connection was opened whose URI names another replica than the configured one to which its database is streamed: that it
/// is not heeded is told. (What a call says goes before any URI.)
pub(super) fn note_other_uri(w: &Watched, path: &Path) {
    if !w.automatic.load(Ordering::Acquire) {
        return;
    }
    let said = || -> Result<Option<String>> {
        match engine().entry(path).uri()? {
            Some(uri) if uri.names_replica() => {
                let resolved = engine().resolve(path, None)?;
                let Some(replica) = &resolved.settings.replica else { return Ok(None) };
                Ok(Some(ReplicaUrl::parse(replica)?.to_string()))
            }
            _ => Ok(None),
        }
    };
    match said() {
        Ok(Some(other)) if !w.ships_to(&other) => {
            let e = Error::config(format!(
                "a connection names the replica {other}, and the database is streamed to {} already; give all connections \
                 the same replica, or call walrust_unwatch() first",
                w.replica()
            ));
            log::error!("walrust: {}: {e}", path.display());
            engine().note_failure(path, &e);
        }
        Ok(_) => {}
        Err(e) => log::warn!("walrust: {}: {e}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::same_replica;

    #[test]
    fn one_replica_has_many_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("r")).unwrap();
        std::os::unix::fs::symlink("r", root.join("too")).unwrap();
        let at = |name: &str| format!("file://{}/{name}", root.display());
        let plain = format!("{}/r/", root.display());
        let s3 = "s3://b/p?endpoint=http://h:9000";
        let table = [
            (at("r"), at("too"), true),
            (at("r"), plain, true),
            (at("r"), at("r2"), false),
            ("s3://b/p".into(), "s3://b/p?region=eu-west-1".into(), true),
            ("s3://b/p".into(), "s3://b//p/".into(), true),
            ("s3://b/p".into(), "s3://b/q".into(), false),
            ("s3://b/p".into(), s3.into(), false),
            ("s3://b/p?region=x&endpoint=http://H:9000/".into(), s3.into(), true),
            ("s3://b/p".into(), "gs://b/p".into(), false),
        ];
        for (a, b, same) in table {
            assert_eq!(same_replica(&a, &b), same, "{a} {b}");
            assert_eq!(same_replica(&b, &a), same, "{b} {a}");
        }
    }
}
