//! Which names, given to SQLite as those of databases, mean a replica: a replica URL, with `walrust:` in front or without, and with
//! `at=` in its query.
//!
//! In a query `at=` is read as a person writes it: blanks, colons and `+` stand for themselves, `%20` is a blank too.
//! Pure, but for [`full_name`], which looks whether a path is a directory with a replica in it: SQLite cannot open a directory.

use crate::address::ReplicaUrl;
use crate::base::{Error, Result, Timestamp, TxId};
use crate::replica::{Named, Point};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What may stand before a URL, where a driver, or a person, would take it for something else.
const PREFIX: &str = "walrust:";
/// What SQLite takes off in URI mode, and some drivers ask for before what is no path.
const URI: &str = "file:";
/// What stands before the path of a database that is watched here, where its past is meant.
const PAST: &str = "walrust:past:";
/// URLs that no file has as its name.
const SCHEMES: [&str; 5] = ["s3://", "gs://", "az://", "abs://", "file://"];
/// What SQLite's own URIs may bring along besides the path, as parameters of the replica's URL.
const PARAMETERS: [&str; 5] = ["endpoint", "region", "path_style", "checksum", "profile"];

/// A replica in a directory has one of these in it: the files, in the layout of a directory or of a bucket, or what walrust keeps.
const FOLDERS: [&str; 4] = ["ltx", "0000", "0009", "walrust"];

/// A replica, and a point of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// The replica.
    pub url: ReplicaUrl,
    /// The point, as it was written.
    pub at: Option<String>,
}

/// The name that SQLite knows the database by, if `name` means a replica: with [`PREFIX`] where `name` is a path, so that no file
/// beside the directory is taken for its journal.
pub(super) fn full_name(name: &str) -> Option<String> {
    for name in [Some(name), name.strip_prefix(URI)].into_iter().flatten() {
        if name.starts_with(PREFIX) || SCHEMES.iter().any(|s| starts_with(name, s)) {
            return Some(name.to_string());
        }
    }
    let may_be = !name.is_empty() && !name.ends_with("-journal") && !name.ends_with("-wal");
    let absolute =
        (may_be && holds_a_replica(Path::new(name))).then(|| std::path::absolute(name).ok()).flatten()?;
    Some(format!("{PREFIX}{}", absolute.to_str()?))
}

/// Whether `dir` is a directory in which the files of a replica lie. Every other directory is the program's: SQLite, or a VFS of the
/// program's, has its own words for one.
fn holds_a_replica(dir: &Path) -> bool {
    FOLDERS.iter().any(|folder| dir.join(folder).is_dir())
}

fn starts_with(name: &str, scheme: &str) -> bool {
    name.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// The name under which SQLite opens the replica `url` at `at`. Errors with `Config` for a point that cannot be read.
pub fn name_of(url: &ReplicaUrl, at: Option<&str>, now: Timestamp) -> Result<String> {
    // SQLite in URI mode would take a `file:` URL for one of its own.
    let prefix = if url.dir().is_some() { PREFIX } else { "" };
    let text = format!("{prefix}{url}");
    let Some(at) = at else { return Ok(text) };
    Named::parse(at, now)?;
    let mark = if text.contains('?') { '&' } else { '?' };
    Ok(format!("{text}{mark}at={}", crate::address::encode_part(at)))
}

impl Name {
    /// From a full name, and what `parameter` gives of SQLite's own URI. Errors with `Config` for a URL that is none, and for a point
    /// given twice.
    pub fn parse(name: &str, parameter: &dyn Fn(&str) -> Option<String>) -> Result<Name> {
        let given = name.strip_prefix(PREFIX).unwrap_or(name);
        let (place, query) = match given.split_once('?') {
            Some((place, query)) if given.contains("://") => (place, query),
            _ => (given, ""),
        };
        let (mut at, mut rest) = (None, Vec::new());
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.strip_prefix("at=") {
                Some(value) if at.is_none() => at = Some(unescape(value)?),
                Some(_) => return Err(Error::config("the replica URL has 'at=' twice; give one point")),
                None => rest.push(pair.to_string()),
            }
        }
        if at.is_none() {
            at = parameter("at");
        }
        if rest.is_empty() && place.contains("://") {
            let said = PARAMETERS.iter().filter_map(|k| Some((k, parameter(k)?)));
            rest.extend(said.map(|(k, v)| format!("{k}={}", crate::address::encode_part(&v))));
        }
        let mark = if rest.is_empty() { "" } else { "?" };
        let url = ReplicaUrl::parse(&format!("{place}{mark}{}", rest.join("&")))?;
        Ok(Name { url, at: at.filter(|a| !a.trim().is_empty()) })
    }

    /// The point that is meant, ages counted from `now`. Errors with `Config` for what is no point.
    pub fn point(&self, now: Timestamp) -> Result<Named> {
        self.at.as_deref().map_or(Ok(Named::Point(Point::Latest)), |at| Named::parse(at, now))
    }
}

/// The past of a database that is watched here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Past {
    /// The database's file.
    pub(super) path: PathBuf,
    /// The point.
    pub(super) txid: TxId,
}

/// The name under which SQLite opens the past of the database at `path`: of its state at `txid`.
pub fn past_name_of(path: &Path, txid: TxId) -> String {
    // Whatever SQLite, or a reader of URLs, takes for something else.
    let path = percent_encoding::percent_encode(path.as_os_str().as_bytes(), PATH_ESCAPES);
    format!("{PAST}{path}?at={}", txid.0)
}

const PATH_ESCAPES: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'&').add(b'\'').add(b'"');

/// What a name means, if it is that of a past. Errors with `Config` for one that is not whole.
pub(super) fn past(name: &str) -> Result<Option<Past>> {
    let Some(rest) = name.strip_prefix(PAST) else { return Ok(None) };
    let parts = rest.split_once("?at=").and_then(|(path, at)| Some((path, at.parse::<u64>().ok()?)));
    let Some((path, txid)) = parts.filter(|(path, _)| path.starts_with('/')) else {
        let what = "the name of a past is 'walrust:past:/path/of/the.db?at=TXID'; SELECT walrust_past(point) gives one";
        return Err(Error::config(what));
    };
    let path: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    Ok(Some(Past { path: PathBuf::from(OsStr::from_bytes(&path)), txid: TxId(txid) }))
}

fn unescape(text: &str) -> Result<String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| Error::config("'at=' in the replica URL does not decode to UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_370_683_421);

    fn name(text: &str) -> Result<(String, Option<String>)> {
        Name::parse(text, &|_| None).map(|n| (n.url.to_string(), n.at))
    }

    #[test]
    fn a_url_and_a_point_are_told_apart() {
        let at = |s: &str| Some(s.to_string());
        for (text, url, point) in [
            ("s3://b/app", "s3://b/app", None),
            ("s3://b/app?at=57", "s3://b/app", at("57")),
            ("walrust:s3://b/app?at=5 minutes ago", "s3://b/app", at("5 minutes ago")),
            ("s3://b/app?at=2026-11-22T18:04:43%2B01:00", "s3://b/app", at("2026-11-22T18:04:43+01:00")),
            ("s3://b/app?region=eu&at=1h%20ago", "s3://b/app?region=eu", at("1h ago")),
            ("s3://b/app?at=&region=eu", "s3://b/app?region=eu", None),
            ("file:///r/app?at=latest", "file:///r/app", at("latest")),
            ("walrust:/r/a?b", "file:///r/a%3Fb", None),
        ] {
            assert_eq!(name(text).unwrap(), (url.to_string(), point), "{text}");
        }
        for text in ["s3://b/app?at=1&at=2", "s3://b/app?colour=red", "s3:///app", "walrust:ftp://x/y"] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_sqlites_own_uri_says_counts_where_the_name_says_nothing() {
        let said = |k: &str| match k {
            "at" => Some("7".to_string()),
            "endpoint" => Some("http://127.0.0.1:9000".to_string()),
            _ => None,
        };
        let n = Name::parse("s3://b/app", &said).unwrap();
        assert_eq!((n.url.endpoint(), n.at.as_deref()), (Some("http://127.0.0.1:9000"), Some("7")));
        let n = Name::parse("s3://b/app?region=eu&at=8", &said).unwrap();
        assert_eq!((n.url.endpoint(), n.at.as_deref()), (None, Some("8")));
    }

    #[test]
    fn only_replicas_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().to_str().unwrap().to_string();
        for own in ["s3://b/a", "S3://b/a", "gs://b/a", "az://c/a", "file:///r", "walrust:anything"] {
            assert_eq!(full_name(own).as_deref(), Some(own));
        }
        for (given, own) in [
            ("file:s3://b/a?at=5", "s3://b/a?at=5"),
            ("file:walrust:/r", "walrust:/r"),
            ("file:file:///r", "file:///r"),
        ] {
            assert_eq!(full_name(given).as_deref(), Some(own));
        }
        assert_eq!(full_name(&text), None, "a directory of the program's");
        std::fs::create_dir(dir.path().join("ltx")).unwrap();
        assert_eq!(full_name(&text), Some(format!("walrust:{text}")));
        for others in ["", "app.db", "/r/app.db", "file:app.db", ":memory:", "http://x/y", "s3:/b"] {
            assert_eq!(full_name(others), None, "{others}");
        }
    }

    #[test]
    fn the_name_of_a_past_reads_back_and_no_other_name_is_one() {
        for path in ["/srv/app.db", "/a b/100%?.db", "/o'clock/\"x\"&#.db", "/caf\u{e9}.db"] {
            let name = past_name_of(Path::new(path), TxId(57));
            assert_eq!(full_name(&name).as_deref(), Some(name.as_str()));
            assert_eq!(past(&name).unwrap(), Some(Past { path: path.into(), txid: TxId(57) }), "{name}");
        }
        for other in ["walrust:s3://b/app?at=5", "s3://b/app", "/srv/app.db"] {
            assert_eq!(past(other).unwrap(), None);
        }
        for broken in
            ["walrust:past:", "walrust:past:app.db?at=5", "walrust:past:/app.db", "walrust:past:/app.db?at=x"]
        {
            assert!(past(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_name_that_is_made_reads_back() {
        let url = ReplicaUrl::parse("s3://b/app?region=eu").unwrap();
        for at in
            [None, Some("57"), Some("before-42"), Some("5 minutes ago"), Some("2026-11-22T18:04:43+01:00")]
        {
            let made = name_of(&url, at, NOW).unwrap();
            let read = Name::parse(&made, &|_| None).unwrap();
            assert_eq!((&read.url, read.at.as_deref()), (&url, at), "{made}");
        }
        assert!(name_of(&url, Some("5 parsecs ago"), NOW).is_err());
        let dir = ReplicaUrl::parse("/r/app").unwrap();
        assert_eq!(name_of(&dir, Some("7"), NOW).unwrap(), "walrust:file:///r/app?at=7");
    }
}
