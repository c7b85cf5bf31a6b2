//! `walrust_restore`

use super::common::{self, point};
use super::once::{Done, Written};
use crate::base::{Error, Kind, Result, Timestamp, TxId, clock, quoted};
use crate::config::{OptionSpec, Options, WithSettings};
use crate::replica::{self, Check, Named, Overwrite, Point, Progress, RestoreOptions, Reuse, Structure};
use crate::session::{check_file, engine, occupy};
use crate::sqlite::{Connection, Value};
use crate::store::{LayoutKind, ReplicaUrl, Store, block_on};
use serde_json::json;
use std::path::Path;
use std::sync::OnceLock;

static PROGRESS: OnceLock<fn(Progress)> = OnceLock::new();

/// Has every restore of this process tell how far it is: for a host program that shows it. The first call counts.
pub fn on_restore_progress(tell: fn(Progress)) {
    let _ = PROGRESS.set(tell);
}

static NOTE: OnceLock<fn(&str)> = OnceLock::new();

/// Has every restore of this process say where else it restored from: for a host program that shows it. The first call counts.
pub fn on_restore_note(tell: fn(&str)) {
    let _ = NOTE.set(tell);
}

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag("overwrite"),
    OptionSpec::flag("delta"),
    OptionSpec::one_of("check", &["none", "quick", "full"]),
    OptionSpec::count("parallel", 1, 64),
    OptionSpec::flag("dry_run"),
    OptionSpec::texts("mirrors"),
    OptionSpec::text("as_of"),
];

/// What a restore would do, as one JSON document.
fn told(r: &replica::Rehearsal, layout: LayoutKind, path: &Path, reuse: Reuse) -> serde_json::Value {
    let file = |f: &replica::FileInfo| json!({ "key": f.id().key(layout), "level": f.level.get(), "bytes": f.bytes });
    json!({
        "dry_run": true,
        "path": path.display().to_string(),
        "txid": r.txid.0,
        "time": r.time.rfc3339(),
        "files": r.files.iter().map(file).collect::<Vec<_>>(),
        "bytes": r.bytes,
        "requests": r.requests,
        "at_most": reuse == Reuse::LeftAndTarget,
        "database_bytes": r.database_bytes,
        "estimated_seconds": (r.takes.as_secs_f64() * 1000.0).round() / 1000.0,
    })
}

/// The time at which the bucket is read. Errors with [`Kind::Config`] for anything but a time.
fn moment(text: &str) -> Result<Timestamp> {
    match Named::parse(text, clock::now())? {
        Named::Point(Point::Time(at)) => Ok(at),
        _ => Err(Error::config(format!(
            "as_of: {} is no time; write e.g. \"2026-11-22T18:00:00Z\" or \"2 days ago\"",
            quoted(text)
        ))),
    }
}

/// Writes the database at a point to a path; with `dry_run`, says what that would do.
pub(super) fn restore(_conn: &Connection, args: &[Value]) -> Result<Value> {
    let url = common::needed(args, 0, "the replica URL")?;
    let path = common::file(args, 1, "the target path")?;
    let named = point(args.get(2))?;
    let options = Options::parse("options", common::text(args, 3, "options")?, OPTIONS, WithSettings::No)?;
    // (Who wants the target's pages taken wants another file in its place.)
    let (overwrite, reuse) = match (options.flag("overwrite"), options.flag("delta")) {
        (_, true) => (Overwrite::Replace, Reuse::LeftAndTarget),
        (true, false) => (Overwrite::Replace, Reuse::Left),
        (false, false) => (Overwrite::Refuse, Reuse::Left),
    };
    let check = match options.text("check") {
        Some("none") => Check::None,
        Some("full") => Check::Full,
        _ => Check::Quick,
    };
    if path.as_os_str() == ":memory:" {
        return Err(Error::config("the target ':memory:' is no file; give the path of a file to be made"));
    }
    let absolute = std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))?;
    let url = ReplicaUrl::parse(url)?;
    let as_of = options.text("as_of").map(moment).transpose()?;
    let store = open_at(&url, as_of)?;
    let parallel = options.count("parallel").map_or(replica::fetch::PARALLEL, |n| n.max(1) as usize);
    if options.flag("dry_run") {
        let way = (overwrite, Some(&occupy as replica::Occupier<'_>));
        let point = block_on(replica::labels::point_of(&store, &named))??;
        let said = block_on(replica::rehearse(&store, point, &absolute, way, parallel))??;
        return Ok(Value::Text(told(&said, store.layout(), path, reuse).to_string()));
    }
    let checker = |p: &Path, c: Check| check_file(p, c);

    let progress = PROGRESS.get().map(|f| f as &(dyn Fn(Progress) + Sync));
    let wanted = RestoreOptions {
        overwrite,
        check,
        checker: Some(&checker),
        reuse,
        occupier: Some(&occupy),
        parallel,
        progress,
    };
    let first = match restore_from(&store, &named, &absolute, &wanted) {
        Err(e) if is_the_stores(&e) => e,
        done => return done.map(|txid| Value::Integer(txid.as_i64())),
    };
    let said =
        options.texts("mirrors").iter().map(|url| ReplicaUrl::parse(url)).collect::<Result<Vec<_>>>()?;
    let mirrors: Vec<ReplicaUrl> = said.into_iter().chain(engine().mirrors_of(&url, &absolute)).collect();
    if mirrors.is_empty() {
        return Err(first);
    }
    match restore_file_by_file(&url, &mirrors, as_of, (&named, &absolute), &wanted) {
        Ok((txid, from)) => {
            note(&format!("{}: restored {from}, because of the replica: {first}", path.display()));
            return Ok(Value::Integer(txid.as_i64()));
        }
        Err(e) => log::warn!("walrust: {}: nor file by file out of all mirrors: {e}", path.display()),
    }
    // (One that holds another history leads a way over all of them astray; by itself each is what it is.)
    for mirror in mirrors {
        let tried =
            open_at(&mirror, as_of).and_then(|store| restore_from(&store, &named, &absolute, &wanted));
        match tried {
            Ok(txid) => {
                let path = path.display();
                note(&format!("{path}: restored from the mirror {mirror}, because of the replica: {first}"));
                return Ok(Value::Integer(txid.as_i64()));
            }
            Err(e) => {
                log::warn!("walrust: {}: the mirror {mirror} cannot be restored either: {e}", path.display())
            }
        }
    }
    Err(first)
}

fn note(text: &str) {
    log::warn!("walrust: {text}");
    if let Some(tell) = NOTE.get() {
        tell(text);
    }
}

/// Out of the replica and its mirrors together. Gives the TXID, and from where it was restored. Errors as [`replica::restore_from_all`] does.
fn restore_file_by_file(
    url: &ReplicaUrl,
    mirrors: &[ReplicaUrl],
    as_of: Option<Timestamp>,
    (named, absolute): (&Named, &Path),
    wanted: &RestoreOptions<'_>,
) -> Result<(TxId, String)> {
    let urls: Vec<&ReplicaUrl> = std::iter::once(url).chain(mirrors).collect();
    let stores = urls.iter().map(|url| open_at(url, as_of)).collect::<Result<Vec<_>>>()?;
    let mut point = Err(Error::config("no place to restore from"));
    for store in &stores {
        if point.is_err() {
            point = block_on(replica::labels::point_of(store, named))?;
        }
    }
    let mended = block_on(replica::restore_from_all(&stores, point?, absolute, wanted))??;
    Ok((mended.restored.txid, from(&urls, &mended.files)))
}

/// `from the mirror s3://…`, or how many files came from where. Pure.
fn from(urls: &[&ReplicaUrl], files: &[usize]) -> String {
    let of: usize = files.iter().sum();
    let mirrors = urls.iter().zip(files).skip(1).filter(|(_, n)| **n > 0);
    let told: Vec<String> = mirrors
        .map(|(url, n)| match *n == of {
            true => format!("from the mirror {url}"),
            false => format!("with {n} of {of} files from the mirror {url}"),
        })
        .collect();
    match told.is_empty() {
        true => "from the replica after all".to_string(),
        false => told.join(" and "),
    }
}

/// The store at that URL, as it was at a time, if one is said.
fn open_at(url: &ReplicaUrl, as_of: Option<Timestamp>) -> Result<Store> {
    let store = Store::open(url)?;
    match as_of {
        Some(at) => store.as_of(at),
        None => Ok(store),
    }
}

/// Whether another store may do what this one could not: it is away, refuses us, or what it holds is gone or damaged.
fn is_the_stores(e: &Error) -> bool {
    matches!(e.kind(), Kind::Retry | Kind::Timeout | Kind::Denied | Kind::Missing | Kind::Corrupt)
}

/// Restores from one store. Errors as [`replica::restore`] does.
fn restore_from(store: &Store, named: &Named, absolute: &Path, wanted: &RestoreOptions<'_>) -> Result<TxId> {
    static DONE: Done<Written> = Done::new();
    let point = block_on(replica::labels::point_of(store, named))??;
    let done = block_on(replica::restore(store, point, absolute, wanted))?;
    if let Err(e) = &done
        && e.is_corrupt()
    {
        engine().tell_corrupt(store.url(), e);
    }
    if let Err(e) = &done
        && e.kind() == Kind::Exists
        && let Some(before) = DONE.known(absolute)
        && before.replica == store.url()
        && before.is_still(absolute)
        && block_on(replica::txid_at(store, point))?.is_ok_and(|txid| txid == before.txid)
    {
        return Ok(before.txid);
    }
    let done = done?;
    if let Some(written) = Written::now(absolute, store.url(), done.txid) {
        DONE.note(absolute, written);
    }
    if done.structure == Structure::Encrypted {
        log::info!("walrust: {}: encrypted: its structure was not checked", absolute.display());
    }
    Ok(done.txid)
}
