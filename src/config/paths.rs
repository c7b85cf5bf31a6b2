//! From database paths to replicas: placeholders, glob patterns, and the rule that no two databases share
//! a replica (I-CONFIG-3).

use crate::address::{ReplicaUrl, canonical, encode_part, replica_key};
use crate::base::{Error, Result, quoted};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// Like a shell: `*` stays within one directory and skips hidden files.
const GLOB: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Names SQLite and walrust put beside a database; never databases.
const NOT_DATABASES: [&str; 5] = ["-wal", "-shm", "-journal", "-walrust", "-replica"];

/// Fills `{name}`, `{file}` and `{dir}` from the path of the database. In a URL the filled-in text is
/// percent-encoded, so that a `?` or `#` in a file name stays part of the name.
pub(super) fn expand(template: &str, database: &Path) -> Result<String> {
    let in_url = template.contains("://");
    let (mut out, mut rest) = (String::new(), template);
    while let Some(open) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let token = from.split_inclusive('}').next().unwrap_or(from);
        let part = match token {
            "{name}" => database.file_stem(),
            "{file}" => database.file_name(),
            "{dir}" => database.parent().and_then(Path::file_name),
            other => {
                return Err(Error::config(format!(
                    "unknown placeholder {}; there are {{name}}, {{file}} and {{dir}}",
                    quoted(other)
                )));
            }
        };
        let part = part.and_then(|p| p.to_str()).ok_or_else(|| {
            Error::config(format!(
                "cannot fill {token} from {}: no such part, or not UTF-8",
                database.display()
            ))
        })?;
        if in_url {
            out.push_str(&encode_part(part));
        } else {
            out.push_str(part);
        }
        rest = from.strip_prefix(token).unwrap_or("");
    }
    out.push_str(rest);
    Ok(out)
}

/// A glob pattern as an absolute one: below `base` if it is relative, its literal head canonical.
fn absolute_pattern(pattern: &str, base: &Path) -> PathBuf {
    let is_glob = |c: &Component<'_>| c.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let given = Path::new(pattern);
    let mut head = if given.is_absolute() { PathBuf::new() } else { base.to_path_buf() };
    let parts: Vec<Component<'_>> = given.components().collect();
    // The last component is never part of the head: a database that is a symlink has two names, see matches.
    let literal = parts.iter().take_while(|c| !is_glob(c)).count().min(parts.len().saturating_sub(1));
    let (first, tail) = parts.split_at(literal);
    head.extend(first);
    let mut out = PathBuf::from(glob::Pattern::escape(&canonical(&head).to_string_lossy()));
    out.extend(tail);
    out
}

/// Whether `text` is a readable glob pattern.
pub(super) fn check_pattern(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("must not be empty".into());
    }
    if text.len() > 4096 {
        return Err("is longer than 4096 bytes".into());
    }
    glob::Pattern::new(text)
        .map(|_| ())
        .map_err(|e| format!("{} is not a glob pattern: {}", quoted(text), e.msg))
}

/// Whether the database is one the pattern means, by its given or its canonical name.
pub(super) fn matches(pattern: &str, base: &Path, database: &Path) -> bool {
    let full = absolute_pattern(pattern, base);
    let Some(full) = full.to_str().and_then(|p| glob::Pattern::new(p).ok()) else { return false };
    let by_name = match (database.parent(), database.file_name()) {
        (Some(dir), Some(name)) => canonical(dir).join(name),
        _ => database.to_path_buf(),
    };
    [by_name, canonical(database)].iter().any(|p| full.matches_path_with(p, GLOB))
}

/// The databases there are now for a pattern: files only, in order, without SQLite's and our own
/// side files. At most `limit`.
pub(super) fn existing(pattern: &str, base: &Path, limit: usize) -> Vec<PathBuf> {
    let full = absolute_pattern(pattern, base);
    let Some(Ok(found)) = full.to_str().map(|p| glob::glob_with(p, GLOB)) else { return Vec::new() };
    let side_file = |p: &Path| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        NOT_DATABASES.iter().any(|s| name.ends_with(s))
    };
    found.filter_map(|p| p.ok()).filter(|p| !side_file(p) && p.is_file()).take(limit).collect()
}

/// Errors with [`crate::base::Kind::Config`], naming both, if two different databases have one replica.
pub fn conflict<'a>(databases: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Result<()> {
    let pairs = databases.into_iter().map(|(db, url)| (db, replica_key(url), url));
    shared(pairs, "replica", "replica")
}

/// Errors with [`crate::base::Kind::Config`], naming both, if two different databases have one spool directory.
pub fn spool_conflict<'a>(databases: impl IntoIterator<Item = (&'a Path, &'a Path)>) -> Result<()> {
    let pairs: Vec<(&Path, String, String)> = databases
        .into_iter()
        .map(|(db, dir)| (db, canonical(dir).to_string_lossy().into_owned(), dir.display().to_string()))
        .collect();
    shared(pairs.iter().map(|(db, k, d)| (*db, k.clone(), d.as_str())), "spool directory", "spool_dir")
}

fn shared<'a>(
    pairs: impl Iterator<Item = (&'a Path, String, &'a str)>,
    what: &str,
    setting: &str,
) -> Result<()> {
    let mut seen: HashMap<String, PathBuf> = HashMap::new();
    for (db, key, shown) in pairs {
        let db = canonical(db);
        if let Some(first) = seen.get(&key)
            && *first != db
        {
            let safe = if ReplicaUrl::parse(shown).is_ok() { quoted(shown) } else { "the same".into() };
            return Err(Error::config(format!(
                "{} and {} have one {what}, {safe}; give each its own, e.g. with {{name}}, {{file}} or {{dir}} in {setting}",
                first.display(),
                db.display()
            )));
        }
        seen.insert(key, db);
    }
    Ok(())
}
