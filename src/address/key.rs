//! One spelling for each replica: whether two URLs, or two paths, name the same place.

use super::kind::StoreKind;
use super::url::ReplicaUrl;
use std::path::{Path, PathBuf};

/// The path with symlinks resolved as far as it exists, as SQLite's xFullPathname gives it. Opens no file.
pub fn canonical(path: &Path) -> PathBuf {
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    if let Ok(found) = full.canonicalize() {
        return found;
    }
    match (full.parent().map(Path::canonicalize), full.file_name()) {
        (Some(Ok(dir)), Some(name)) => dir.join(name),
        _ => full,
    }
}

/// One text for each replica: `file:///x/` and `/x` are one, `abs://` and `az://`, doubled slashes and encoded letters
/// count as what they mean. Of the query only the endpoint counts: region, path style, checksums and profile say how to get
/// there. A text that is no replica URL stands for itself.
pub fn replica_key(url: &str) -> String {
    ReplicaUrl::parse(url).map_or_else(|_| url.to_string(), |url| url.key())
}

impl ReplicaUrl {
    /// [`replica_key`] of this one.
    pub fn key(&self) -> String {
        let place = match self.dir() {
            Some(dir) => canonical(dir).to_string_lossy().into_owned(),
            None => format!("{}/{}", self.bucket(), self.prefix()),
        };
        let scheme = if self.kind() == StoreKind::Local { "" } else { self.kind().scheme() };
        let endpoint = self.endpoint().unwrap_or_default().to_ascii_lowercase();
        format!("{scheme}://{place}?{endpoint}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_place() {
        for (one, other) in [
            ("s3://b/p", "S3://b//p/"),
            ("s3://b/p", "s3://b/%70?region=eu-1&path_style=true&checksum=none&profile=x"),
            ("s3://b/p?endpoint=http://H:9000/", "s3://b/p?endpoint=http%3A%2F%2Fh%3A9000"),
            ("s3://b/p?endpoint=https://h:443", "s3://b/p?endpoint=h"),
            ("az://c/p", "abs://c/p"),
            ("/nowhere/x", "file:///nowhere/x/"),
            ("/nowhere/x", "file://localhost/nowhere//x"),
        ] {
            assert_eq!(replica_key(one), replica_key(other), "{one} {other}");
        }
        for (one, other) in [
            ("s3://b/p", "gs://b/p"),
            ("s3://b/p", "s3://b/P"),
            ("s3://b/p", "s3://b/p?endpoint=http://h"),
            ("s3://b/p?endpoint=http://h", "s3://b/p?endpoint=http://h:81"),
            ("s3://b/p q", "s3://b/p+q"),
            ("/nowhere/x", "/nowhere/y"),
        ] {
            assert_ne!(replica_key(one), replica_key(other), "{one} {other}");
        }
        assert_eq!(replica_key("s3://"), "s3://");
    }
}
