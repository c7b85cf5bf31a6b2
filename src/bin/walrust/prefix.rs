//! `restore --all`: every database below a URL, into a directory. A few at a time; what fails of one stops no other.
//!
//! A database gets the name of its replica below the URL, and `.db` where that has no extension (`{name}` in `replica` takes it away). A name
//! that would leave the directory, stand beside another database as its WAL, or mean the same file as another's, is refused: whoever may write to the
//! bucket must not choose what is written elsewhere on this machine.

use crate::args::Restore;
use crate::failure::{Failure, Outcome};
use crate::look::{Rehearsed, document};
use crate::show::{self, Form};
use crate::{host, progress};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use walrust::base::{clock, lock, quoted};
use walrust::replica::list::list;
use walrust::replica::{Named, Point, target};
use walrust::store::{ReplicaUrl, Store, block_on};

/// Databases at once. Each fetches many files at once by itself.
const AT_ONCE: usize = 4;

/// What came of one.
enum Went {
    /// The TXID that lies there now.
    Restored(i64),
    /// What would be done.
    Rehearsed(String),
    /// Why nothing was to be done.
    Skipped(String),
    /// Why not.
    Failed(String),
}

/// One replica below the URL.
struct Wanted {
    name: String,
    url: String,
    /// Where to; or why not.
    path: Result<PathBuf, String>,
}

/// `restore --all URL DIR`
pub fn restore(a: &Restore, form: Form) -> Outcome {
    host::start(host::Hooks::None)?;
    let found = names(a)?;
    if found.is_empty() {
        let none = format!("no replica lies at {} or below it; nothing restored", a.url);
        if !a.if_replica_exists {
            return Err(Failure::new(none));
        }
        match form {
            Form::Text => show::text(&none)?,
            Form::Json => show::json(&json!({ "databases": [], "skipped": none, "exit": 0 }))?,
        }
        return Ok(0);
    }
    if a.path.exists() && !a.path.is_dir() {
        return Err(Failure::new(format!(
            "{} is a file; with --all, name the directory that the databases are written to",
            a.path.display()
        )));
    }
    let wanted = places(&a.path, found);
    let shown = progress::spinner("restoring every database");
    let done = each(a, &wanted, form)?;
    drop(shown);
    let failed = done.values().filter(|w| matches!(w, Went::Failed(_))).count();
    let exit = u8::from(failed > 0);
    match form {
        Form::Json => {
            let rows: Vec<Value> = done.iter().filter_map(|(i, w)| Some(row(wanted.get(*i)?, w))).collect();
            show::json(&json!({ "databases": rows, "exit": exit }))?;
        }
        Form::Text => show::text(&summary(&done, a.dry_run))?,
    }
    Ok(exit)
}

/// Name and URL of each replica, by name.
fn names(a: &Restore) -> Result<Vec<(String, String)>, Failure> {
    let url = ReplicaUrl::parse(&a.url)?;
    let mut store = Store::open(&url)?;
    if let Some(text) = &a.as_of {
        let Named::Point(Point::Time(at)) = Named::parse(text, clock::now())? else {
            return Err(Failure::new(format!(
                "--as-of: {} is no time; write e.g. '2 days ago'",
                quoted(text)
            )));
        };
        store = store.as_of(at)?;
    }
    let rows = block_on(async move { list(&store, &url).await })??;
    Ok(rows.into_iter().map(|r| (r.name, r.replica)).collect())
}

/// Where each goes.
fn places(dir: &Path, found: Vec<(String, String)>) -> Vec<Wanted> {
    let mut files: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let below: Vec<_> = found.iter().map(|(name, _)| file_of(name)).collect();
    for path in below.iter().flatten() {
        *files.entry(path.clone()).or_default() += 1;
    }
    let each = found.into_iter().zip(below);
    each.map(|((name, url), below)| {
        let path = below.and_then(|path| match files.get(&path) {
            Some(2..) => Err(format!(
                "another replica below the URL would be written to {} as well; restore each by itself",
                path.display()
            )),
            _ => Ok(dir.join(path)),
        });
        Wanted { name, url, path }
    })
    .collect()
}

/// The file of a replica of that name, below the directory; or why it gets none. Pure.
fn file_of(name: &str) -> Result<PathBuf, String> {
    let path = Path::new(name);
    let is_plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    // (What is written as `a//b` or `./a` would mean the same file as `a/b`.)
    let is_written_so = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
    let Some(last) = path.file_name().and_then(|f| f.to_str()).filter(|_| is_plain && is_written_so) else {
        return Err(
            "its name would lead out of the directory; restore it by itself, to a path that you name"
                .to_string(),
        );
    };
    if name.contains(['\0', '\\']) {
        return Err("its name is none for a file; restore it by itself, to a path that you name".to_string());
    }
    if ["-wal", "-shm", "-journal"].iter().any(|end| last.ends_with(end)) {
        return Err(
            "SQLite would take a file of this name for a part of another database; restore it by itself"
                .to_string(),
        );
    }
    Ok(match path.extension() {
        Some(_) => path.to_path_buf(),
        None => path.with_file_name(format!("{last}.db")),
    })
}

/// Does them, and tells of each as it is done; by their place in `wanted`.
fn each(a: &Restore, wanted: &[Wanted], form: Form) -> Result<BTreeMap<usize, Went>, Failure> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || -> Result<(), Failure> {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(w) = wanted.get(i) else { return Ok(()) };
            let went = one(a, w).unwrap_or_else(|e| Went::Failed(e.to_string()));
            let mut done = lock(&done);
            tell(w, &went, form)?;
            done.insert(i, went);
        }
    };
    std::thread::scope(|s| {
        let workers: Vec<_> = (0..AT_ONCE.min(wanted.len())).map(|_| s.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| {
            w.join().unwrap_or_else(|_| Err(Failure::new("internal error: a restore ended in a panic")))
        })
    })?;
    Ok(done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn one(a: &Restore, w: &Wanted) -> Result<Went, Failure> {
    let path = match &w.path {
        Ok(path) => path,
        Err(why) => return Ok(Went::Failed(why.clone())),
    };
    stays_within(&a.path, path)?;
    if a.if_db_not_exists && std::fs::symlink_metadata(path).is_ok() && !target::is_placeholder(path) {
        return Ok(Went::Skipped(format!("{} exists; nothing restored", path.display())));
    }
    if !a.dry_run
        && let Some(parent) = path.parent()
    {
        std::fs::create_dir_all(parent).map_err(|e| Failure::new(format!("{}: {e}", parent.display())))?;
    }
    // (In a directory that is not there yet nothing is in the way: a name that nothing has stands for it, where it would be made.)
    let stand_in = match path.parent() {
        Some(parent) if a.dry_run && !parent.exists() => parent
            .ancestors()
            .find(|p| p.as_os_str().is_empty() || p.is_dir())
            .map(|p| p.join(format!(".walrust-dry-run-{}", std::process::id()))),
        _ => None,
    };
    let at = stand_in.as_ref().unwrap_or(path);
    let Some(text) = at.to_str() else {
        return Err(Failure::new(format!("{} is not UTF-8; name another directory", path.display())));
    };
    let conn = host::in_memory()?;
    let sql = "SELECT walrust_restore(?1, ?2, ?3, ?4)";
    let params = (&w.url, text, &a.point, a.options());
    Ok(match a.dry_run {
        true => Went::Rehearsed(conn.query_row(sql, params, |r| r.get(0))?),
        false => Went::Restored(conn.query_row(sql, params, |r| r.get(0))?),
    })
}

/// An error where what is there already of the way to `path` (a symbolic link) leads out of `dir`.
fn stays_within(dir: &Path, path: &Path) -> Result<(), Failure> {
    let Ok(root) = dir.canonicalize() else { return Ok(()) };
    let there = path.ancestors().skip(1).find_map(|p| p.canonicalize().ok());
    match there {
        Some(there) if !there.starts_with(&root) => Err(Failure::new(format!(
            "{} leads out of {} by a symbolic link; restore it by itself, to a path that you name",
            path.display(),
            dir.display()
        ))),
        _ => Ok(()),
    }
}

fn tell(w: &Wanted, went: &Went, form: Form) -> Result<(), Failure> {
    let path = || w.path.as_ref().map_or_else(|_| w.name.clone(), |p| p.display().to_string());
    match (went, form) {
        (Went::Failed(why), _) => show::complain(&format!("{}: {why}", w.name)),
        (_, Form::Json) => {}
        (Went::Restored(txid), Form::Text) => show::text(&format!("{}: TXID {}", path(), show::txid(*txid)))?,
        (Went::Skipped(why), Form::Text) => show::text(why)?,
        (Went::Rehearsed(text), Form::Text) => {
            let r = Rehearsed::of(text)?;
            show::text(&format!("{}: {}", path(), r.in_a_line()))?;
        }
    }
    Ok(())
}

fn row(w: &Wanted, went: &Went) -> Value {
    let mut fields = match went {
        Went::Rehearsed(text) => match document(text) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        },
        _ => Map::new(),
    };
    fields.insert("name".into(), json!(w.name));
    fields.insert("replica".into(), json!(w.url));
    fields.insert("path".into(), json!(w.path.as_ref().ok().map(|p| p.display().to_string())));
    match went {
        Went::Restored(txid) => fields.insert("txid".into(), json!(txid)),
        Went::Skipped(why) => fields.insert("skipped".into(), json!(why)),
        Went::Failed(why) => fields.insert("error".into(), json!(why)),
        Went::Rehearsed(_) => None,
    };
    Value::Object(fields)
}

/// "3 databases restored, 1 skipped, 1 failed".
fn summary(done: &BTreeMap<usize, Went>, dry: bool) -> String {
    let count = |is: fn(&Went) -> bool| done.values().filter(|w| is(w)).count() as u64;
    let (skipped, failed) =
        (count(|w| matches!(w, Went::Skipped(_))), count(|w| matches!(w, Went::Failed(_))));
    let well = done.len() as u64 - skipped - failed;
    let what = if dry { "would be restored (dry run: nothing was written)" } else { "restored" };
    let mut text = format!("{} {what}", show::count(well, "database"));
    for (n, word) in [(skipped, "skipped"), (failed, "failed")] {
        if n > 0 {
            text.push_str(&format!(", {n} {word}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_below_the_directory_or_none() {
        for (name, file) in [
            ("app", Some("app.db")),
            ("app.sqlite", Some("app.sqlite")),
            ("tenants/1", Some("tenants/1.db")),
            (".hidden", Some(".hidden.db")),
            ("a..b", Some("a..b")),
            ("..", None),
            ("../app", None),
            ("a/../../app", None),
            ("/etc/app", None),
            ("a//b", None),
            ("./a", None),
            ("a/", None),
            ("", None),
            ("app.db-wal", None),
            ("x/app-journal", None),
            ("a\\b", None),
        ] {
            assert_eq!(file_of(name).ok(), file.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn two_of_one_file_are_refused_and_the_others_not() {
        let found = ["a", "a.db", "b"].map(|n| (n.to_string(), format!("s3://x/{n}")));
        let places = places(Path::new("/d"), found.to_vec());
        let said: Vec<_> = places.iter().map(|w| w.path.as_ref().ok()).collect();
        assert_eq!(said, [None, None, Some(&PathBuf::from("/d/b.db"))]);
    }
}
