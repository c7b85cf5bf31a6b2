//! `walrust_explain`: what will happen, before it does, and what it will cost.

use super::common;
use crate::base::{Error, Result};
use crate::config::{Layer, MirrorSettings, OptionSpec, Options, Resolved, Settings, WithSettings};
use crate::replica::Inventory;
use crate::replica::explain::{
    ExplainDatabase, Measured, Seen, at_endpoint, explain as preview, explain_json,
};
use crate::session::{self, Watched, engine};
use crate::sqlite::{Connection, Value};
use crate::store::{Conditions, Env, ReplicaUrl, Store, StoreKind, block_on};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a replica may take to be listed. A preview is not worth a wait of minutes for a store that is down.
const PATIENCE: Duration = Duration::from_secs(10);
/// Replicas listed at once.
const PARALLEL: usize = 8;
/// The report over every database that is watched, configured, or this connection's own.
pub(super) fn explain(conn: &Connection, args: &[Value]) -> Result<Value> {
    let own = &[OptionSpec::flag("json")];
    let options = Options::parse("options", common::text(args, 0, "options")?, own, WithSettings::Yes)?;
    let found = databases(conn, &options.settings)?;
    let mut shown = Vec::new();
    for (path, resolved) in &found {
        let own = describe(path, resolved)?;
        let mirrors = resolved
            .settings
            .mirrors
            .iter()
            .map(|m| mirror(&own, m, &resolved.settings))
            .collect::<Result<Vec<_>>>()?;
        shown.push(own);
        shown.extend(mirrors);
    }
    let urls: Vec<Option<ReplicaUrl>> = shown.iter().map(|d| d.replica.clone()).collect();
    let seen: Vec<Seen> =
        block_on(
            async move { futures_util::stream::iter(urls).map(look).buffered(PARALLEL).collect().await },
        )?;
    for (d, seen) in shown.iter_mut().zip(seen) {
        d.seen = seen;
    }
    let folders: Vec<Option<String>> = shown.iter().map(folder).collect();
    for (d, own) in shown.iter_mut().zip(&folders) {
        d.lease_sharers = folders.iter().filter(|f| f.is_some() && *f == own).count().max(1);
    }
    Ok(Value::Text(match options.flag("json") {
        true => explain_json(&shown).to_string(),
        false => preview(&shown).trim_end().to_string(),
    }))
}

/// By path: what is watched with the settings it is watched with, what is configured, and this connection's file
/// with what it would be watched with.
fn databases(conn: &Connection, options: &Layer) -> Result<BTreeMap<PathBuf, Resolved>> {
    let mut paths: Vec<PathBuf> = engine().watched().iter().map(|w| w.path().to_path_buf()).collect();
    paths.extend(engine().config()?.present()?.into_iter().map(|(path, _)| path));
    paths.extend(conn.main_db_path());
    let mut all = BTreeMap::new();
    for path in paths {
        if all.contains_key(&path) {
            continue;
        }
        let resolved = match engine().settings_of(&path) {
            Some(watched) => watched.with(options)?,
            None => engine().resolve(&path, Some(options))?,
        };
        all.insert(path, resolved);
    }
    Ok(all)
}

fn describe(path: &Path, resolved: &Resolved) -> Result<ExplainDatabase> {
    let s = &resolved.settings;
    let watched = engine().find(path);
    let replica = match &watched {
        Some(w) => ReplicaUrl::parse(w.replica())?,
        None => common::configured(path, resolved)?,
    };
    let replica = at_endpoint(replica, &Env::process());
    let conditions = watched.as_ref().map_or(Conditions::Unknown, |w| w.store.conditions());
    let remark = match conditions {
        Conditions::Unknown | Conditions::Held => None,
        Conditions::CreateOnly => Some(
            "the store has no conditional updates, so there is no lease: a second machine that writes here is fenced off only where both write the same file",
        ),
        Conditions::Ignored => Some(
            "the store ignores conditional writes, so a second machine that writes here can't be fenced off",
        ),
    };
    let remark = remark.map(str::to_string);
    let has_lease = replica.kind() != StoreKind::Local && conditions.allow_lease();
    Ok(ExplainDatabase {
        path: path.display().to_string(),
        bytes: watched.as_deref().and_then(captured_size).or_else(|| size_of(path)),
        replica: Some(replica),
        seen: Seen::NotAsked,
        remark,
        interval: s.interval,
        snapshot_interval: s.snapshot_interval,
        levels: s.levels.clone(),
        policy: session::policy(s),
        lease_interval: if has_lease { session::lease_renewed_after() } else { Duration::ZERO },
        lease_rests_after: session::lease_rests_after(),
        lease_sharers: 1,
        classes: classes(s),
        price_per_gb: s.price_per_gb,
        price_per_1000_put: s.price_per_1000_put,
        validation_interval: s.validation_interval,
        webhooks: s.webhooks.iter().map(|h| h.url.clone()).collect(),
    })
}

fn classes(s: &Settings) -> [Option<String>; 3] {
    let c = &s.storage_class;
    [c.level0.clone(), c.merged.clone(), c.snapshot.clone()]
}

/// A mirror gets what the replica gets, and costs what its own store asks for that.
fn mirror(own: &ExplainDatabase, mirror: &MirrorSettings, of: &Settings) -> Result<ExplainDatabase> {
    let replica = at_endpoint(ReplicaUrl::parse(&mirror.replica)?, &Env::process());
    let s = of.of_mirror(mirror);
    let has_lease = replica.kind() != StoreKind::Local;
    Ok(ExplainDatabase {
        path: format!("{} (mirror)", own.path),
        replica: Some(replica),
        policy: session::policy(&s),
        classes: classes(&s),
        remark: None,
        lease_interval: if has_lease { session::lease_renewed_after() } else { Duration::ZERO },
        ..own.clone()
    })
}

/// The folder in a bucket whose heart its lease would rest on.
fn folder(d: &ExplainDatabase) -> Option<String> {
    let replica = d.replica.as_ref().filter(|_| !d.lease_interval.is_zero())?;
    replica.parent().map(|folder| folder.to_string())
}

/// The size as of the newest commit that was captured: the file itself grows at a checkpoint only.
fn captured_size(w: &Watched) -> Option<u64> {
    let at = w.tracker.position()?;
    (at.commit > 0).then(|| u64::from(at.commit) * u64::from(at.page_size.get()))
}

/// What is in the file, and what the WAL is about to add to it.
fn size_of(path: &Path) -> Option<u64> {
    let len = |p: &Path| std::fs::metadata(p).ok().map(|m| m.len());
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let file = len(path)?;
    Some(file.max(len(Path::new(&wal)).unwrap_or(0)))
}

/// One listing; everything that goes wrong with it is a line of the report.
async fn look(url: Option<ReplicaUrl>) -> Seen {
    let Some(url) = url else { return Seen::NotAsked };
    let listed = async {
        let store = Store::open(&url)?;
        Inventory::read_with_manifest(&store).await
    };
    let e = match tokio::time::timeout(PATIENCE, listed).await {
        Ok(Ok((inventory, _))) => return Seen::Listed(Measured::of(&inventory)),
        Ok(Err(e)) => e,
        Err(_) => Error::new(crate::base::Kind::Timeout, format!("no answer in {} s", PATIENCE.as_secs())),
    };
    Seen::Unreachable(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_of_the_environment_counts() {
        let tigris = Env::of([("AWS_ENDPOINT_URL_S3", "https://fly.storage.tigris.dev")]);
        for (url, env, expected) in [
            ("s3://b/app", &tigris, Some("https://fly.storage.tigris.dev")),
            ("s3://b/app?region=auto", &tigris, Some("https://fly.storage.tigris.dev")),
            ("s3://b/app?endpoint=http://127.0.0.1:9000", &tigris, Some("http://127.0.0.1:9000")),
            ("gs://b/app", &tigris, None),
            ("s3://b/app", &Env::of([]), None),
        ] {
            let url = at_endpoint(ReplicaUrl::parse(url).unwrap(), env);
            assert_eq!(url.endpoint(), expected, "{url}");
        }
    }
}
