//! A replica URL, taken apart and checked. Parsed by hand, because a URL library silently removes `..` and lower-cases
//! what must not be.

use super::endpoint::endpoint;
use super::kind::{BucketIn, Checksums, LayoutKind, StoreKind};
use super::percent::{decode, encode};
use crate::base::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};

/// A checked replica URL. One URL = one database. Holds no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ReplicaUrl {
    kind: StoreKind,
    bucket: String,
    prefix: String,
    dir: PathBuf,
    endpoint: Option<String>,
    region: Option<String>,
    bucket_in: Option<BucketIn>,
    checksums: Option<Checksums>,
    profile: Option<String>,
}

/// Longer ones are no names.
const LONGEST_BYTES: usize = 4096;

const FORMS: &str =
    "s3://bucket/path, gs://bucket/path, az://container/path, file:///absolute/dir or a directory";

impl ReplicaUrl {
    /// Parses `s3://bucket/path?endpoint=…&region=…&path_style=true&checksum=none`, `gs://bucket/path`,
    /// `az://container/path`, `file:///absolute/dir`, or a plain path, which is made absolute
    /// against the working directory. `~` is not expanded; user info, unknown query keys, an empty
    /// bucket and `..` are refused with [`crate::base::Kind::Config`]. Errors with `Io` where there is no working
    /// directory.
    pub fn parse(text: &str) -> Result<ReplicaUrl> {
        if text.trim().is_empty() {
            return Err(Error::config(format!("the replica URL is empty; give {FORMS}")));
        }
        if text.len() > LONGEST_BYTES {
            return Err(Error::config(format!("the replica URL is longer than {LONGEST_BYTES} bytes")));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return ReplicaUrl::plain_path(text);
        };
        let Some(kind) = StoreKind::of_scheme(scheme) else {
            if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
                return Err(Error::config(format!(
                    "replica scheme '{scheme}://' is not known; give {FORMS}"
                )));
            }
            return ReplicaUrl::plain_path(text);
        };
        if rest.contains('#') {
            return Err(Error::config("the replica URL holds a '#'; write %23 if it is part of the path"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(Error::config(
                "the replica URL holds user information before '@'; credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), never from the URL",
            ));
        }
        let segments = segments(path)?;
        let mut url = ReplicaUrl {
            kind,
            bucket: String::new(),
            prefix: segments.join("/"),
            dir: PathBuf::new(),
            endpoint: None,
            region: None,
            bucket_in: None,
            checksums: None,
            profile: None,
        };
        if kind == StoreKind::Local {
            if !authority.is_empty() && !authority.eq_ignore_ascii_case("localhost") {
                return Err(Error::config(
                    "a file URL has three slashes and an absolute path: file:///absolute/dir",
                ));
            }
            url.dir = Path::new("/").join(&url.prefix);
            url.prefix = String::new();
        } else {
            url.bucket = bucket(kind, authority)?;
        }
        url.take_query(query)?;
        Ok(url)
    }

    fn plain_path(text: &str) -> Result<ReplicaUrl> {
        for scheme in ["s3:", "gs:", "az:", "abs:", "file:", "http:", "https:"] {
            if text.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme)) {
                return Err(Error::config(format!("replica '{scheme}...' lacks '//'; give {FORMS}")));
            }
        }
        if text == "~" || text.starts_with("~/") {
            return Err(Error::config(
                "replica path starts with '~', which is not expanded; write the absolute path",
            ));
        }
        if text.chars().any(char::is_control) {
            return Err(Error::config("replica path holds a control character"));
        }
        let path = Path::new(text);
        if path.components().any(|c| c == std::path::Component::ParentDir) {
            return Err(Error::config("replica path holds '..'; write the absolute path"));
        }
        let dir = std::path::absolute(path).map_err(|e| Error::io("make absolute", path, e))?;
        // `absolute` keeps no "." but keeps a trailing slash; components() drops it.
        let dir = dir.components().collect();
        Ok(ReplicaUrl {
            kind: StoreKind::Local,
            bucket: String::new(),
            prefix: String::new(),
            dir,
            endpoint: None,
            region: None,
            bucket_in: None,
            checksums: None,
            profile: None,
        })
    }

    fn take_query(&mut self, query: &str) -> Result<()> {
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match (self.kind, key) {
                (StoreKind::S3, "endpoint") => self.endpoint = Some(endpoint(&value)?),
                (StoreKind::S3, "region") => {
                    if value.is_empty()
                        || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
                    {
                        return Err(Error::config(
                            "region in the replica URL is not a region name such as us-east-1",
                        ));
                    }
                    self.region = Some(value);
                }
                (StoreKind::S3, "path_style") => {
                    self.bucket_in = Some(match value.as_str() {
                        "true" | "1" => BucketIn::Path,
                        "false" | "0" => BucketIn::Host,
                        _ => {
                            return Err(Error::config("path_style in the replica URL is not true or false"));
                        }
                    });
                }
                (StoreKind::S3, "checksum") => {
                    self.checksums = Some(match value.as_str() {
                        "sha256" => Checksums::Sha256,
                        "none" => Checksums::Off,
                        _ => return Err(Error::config("checksum in the replica URL is not sha256 or none")),
                    });
                }
                (StoreKind::S3, "profile") => {
                    let plain = |c: char| c.is_alphanumeric() || " -_.@+=/:".contains(c);
                    if value.is_empty() || value.len() > 128 || !value.chars().all(plain) {
                        return Err(Error::config(
                            "profile in the replica URL is not the name of an AWS profile",
                        ));
                    }
                    self.profile = Some(value);
                }
                (kind, key) => {
                    let plain =
                        key.len() <= 32 && key.bytes().all(|b| b.is_ascii_lowercase() || b"_-".contains(&b));
                    let shown = if plain && pair.contains('=') { key } else { "..." };
                    let allowed = match kind {
                        StoreKind::S3 => "allowed: endpoint, region, path_style, checksum, profile",
                        _ => "this kind of replica has none",
                    };
                    return Err(Error::config(format!(
                        "query key '{shown}' in the replica URL is not known; {allowed}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The kind of store.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Bucket or container; empty for a directory.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The path under the bucket, without slashes at either end; empty for a directory.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The directory of a local replica.
    pub fn dir(&self) -> Option<&Path> {
        (self.kind == StoreKind::Local).then_some(self.dir.as_path())
    }

    /// The endpoint the URL names, with its scheme and without a slash at the end.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// The host of that endpoint, without its port; an IPv6 address in brackets.
    pub fn endpoint_host(&self) -> Option<String> {
        ::url::Url::parse(self.endpoint.as_deref()?).ok()?.host_str().map(str::to_string)
    }

    /// The region the URL names.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// What `path_style` says, if given.
    pub fn bucket_in(&self) -> Option<BucketIn> {
        self.bucket_in
    }

    /// What `checksum` says, if given.
    pub fn checksums(&self) -> Option<Checksums> {
        self.checksums
    }

    /// The AWS profile whose keys, region and endpoint are meant, if one is named.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// The last path segment; the bucket if there is no path.
    pub fn name(&self) -> &str {
        match self.kind {
            StoreKind::Local => self.dir.file_name().and_then(|n| n.to_str()).unwrap_or("/"),
            _ if self.prefix.is_empty() => &self.bucket,
            _ => self.prefix.rsplit('/').next().unwrap_or(&self.prefix),
        }
    }

    /// How LTX objects are named under it.
    pub fn layout(&self) -> LayoutKind {
        match self.kind {
            StoreKind::S3 => LayoutKind::LevelHex,
            _ => LayoutKind::LevelDecimal,
        }
    }

    /// The folder that this URL's last part lies in; `None` at the top.
    pub fn parent(&self) -> Option<ReplicaUrl> {
        let mut up = self.clone();
        if self.kind == StoreKind::Local {
            up.dir = self.dir.parent()?.to_path_buf();
        } else if self.prefix.is_empty() {
            return None;
        } else {
            up.prefix = self.prefix.rsplit_once('/').map_or_else(String::new, |(up, _)| up.to_string());
        }
        Some(up)
    }

    /// The replica named `name` under this URL (`walrust_list`). `name` may hold slashes. Errors with
    /// [`crate::base::Kind::Config`] for a name that leads elsewhere.
    pub fn child(&self, name: &str) -> Result<ReplicaUrl> {
        let mut child = self.clone();
        for segment in name.split('/').filter(|s| !s.is_empty()) {
            check_segment(segment)?;
            if self.kind == StoreKind::Local {
                child.dir.push(segment);
            } else {
                if !child.prefix.is_empty() {
                    child.prefix.push('/');
                }
                child.prefix.push_str(segment);
            }
        }
        Ok(child)
    }
}

/// The canonical form, which parses back to an equal value. Holds no secret.
impl fmt::Display for ReplicaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == StoreKind::Local {
            return write!(f, "file://{}", encode(&self.dir.to_string_lossy()));
        }
        write!(f, "{}://{}", self.kind.scheme(), self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", encode(&self.prefix))?;
        }
        let mut mark = '?';
        let mut query = |f: &mut fmt::Formatter<'_>, key: &str, value: &str| {
            let r = write!(f, "{mark}{key}={value}");
            mark = '&';
            r
        };
        if let Some(e) = &self.endpoint {
            query(f, "endpoint", &encode(e))?;
        }
        if let Some(r) = &self.region {
            query(f, "region", r)?;
        }
        if let Some(b) = self.bucket_in {
            query(f, "path_style", if b == BucketIn::Path { "true" } else { "false" })?;
        }
        if let Some(c) = self.checksums {
            query(f, "checksum", c.as_str())?;
        }
        if let Some(p) = &self.profile {
            query(f, "profile", &encode(p))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ReplicaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ReplicaUrl {
    type Err = Error;
    fn from_str(s: &str) -> Result<ReplicaUrl> {
        ReplicaUrl::parse(s)
    }
}

fn bucket(kind: StoreKind, authority: &str) -> Result<String> {
    let what = if kind == StoreKind::Azure { "container" } else { "bucket" };
    if authority.is_empty() {
        return Err(Error::config(format!(
            "the replica URL names no {what}: {}://{what}/path",
            kind.scheme()
        )));
    }
    let plain = authority.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_$".contains(&b));
    if !plain || authority.len() > 255 || authority.bytes().all(|b| b == b'.') {
        // Not repeated: it may be a key and its secret.
        return Err(Error::config(format!(
            "the {what} in the replica URL holds other characters than letters, digits, '.', '-' and '_'"
        )));
    }
    Ok(authority.to_string())
}

fn segments(path: &str) -> Result<Vec<String>> {
    let decoded = decode(path)?;
    let mut out = Vec::new();
    for segment in decoded.split('/').filter(|s| !s.is_empty()) {
        check_segment(segment)?;
        out.push(segment.to_string());
    }
    Ok(out)
}

fn check_segment(segment: &str) -> Result<()> {
    if segment == ".." || segment == "." {
        return Err(Error::config(format!("the replica's path holds '{segment}'; write it without")));
    }
    if segment.chars().any(char::is_control) {
        return Err(Error::config("the replica's path holds a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(s: &str) -> ReplicaUrl {
        ReplicaUrl::parse(s).unwrap()
    }

    fn refuse(s: &str) -> String {
        let e = ReplicaUrl::parse(s).unwrap_err();
        assert_eq!(e.kind(), crate::base::Kind::Config, "{s}");
        let text = e.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn s3_with_everything() {
        let u =
            parse("s3://my-bucket/a/b%20c?endpoint=http://127.0.0.1:9000/&region=us-east-1&path_style=true");
        assert_eq!(
            (u.kind(), u.bucket(), u.prefix(), u.name()),
            (StoreKind::S3, "my-bucket", "a/b c", "b c")
        );
        assert_eq!(u.endpoint(), Some("http://127.0.0.1:9000"));
        assert_eq!(u.region(), Some("us-east-1"));
        assert_eq!(u.bucket_in(), Some(BucketIn::Path));
        assert_eq!(u.layout(), LayoutKind::LevelHex);
        assert_eq!(
            u.to_string(),
            "s3://my-bucket/a/b%20c?endpoint=http://127.0.0.1:9000&region=us-east-1&path_style=true"
        );
    }

    #[test]
    fn the_other_kinds() {
        let g = parse("gs://b/x/y/");
        assert_eq!((g.kind(), g.bucket(), g.prefix(), g.name()), (StoreKind::Gs, "b", "x/y", "y"));
        assert_eq!(g.layout(), LayoutKind::LevelDecimal);
        let a = parse("az://cont/x");
        assert_eq!((a.kind(), a.bucket(), a.prefix()), (StoreKind::Azure, "cont", "x"));
        let f = parse("file:///srv/my%20dir/app");
        assert_eq!(f.dir().unwrap(), Path::new("/srv/my dir/app"));
        assert_eq!((f.name(), f.bucket(), f.prefix()), ("app", "", ""));
        assert_eq!(f.to_string(), "file:///srv/my%20dir/app");
        let p = parse("backups/app/");
        assert_eq!(p.dir().unwrap(), std::env::current_dir().unwrap().join("backups/app"));
        assert_eq!(p.name(), "app");
        assert_eq!(parse("/abs/a%20b").dir().unwrap(), Path::new("/abs/a%20b"));
        assert_eq!(parse("/abs/./x").dir().unwrap(), Path::new("/abs/x"));
        assert_eq!(parse("S3://b").name(), "b");
        assert_eq!(parse("s3://b//x///y").prefix(), "x/y");
    }

    #[test]
    fn an_endpoint_without_scheme_is_https() {
        assert_eq!(
            parse("s3://b/p?endpoint=minio.example:9000").endpoint(),
            Some("https://minio.example:9000")
        );
        assert_eq!(
            parse("s3://b/p?endpoint=http%3A%2F%2F127.0.0.1%3A9000").endpoint(),
            Some("http://127.0.0.1:9000")
        );
    }

    #[test]
    fn secrets_are_refused_and_not_repeated() {
        for s in [
            "s3://AKIA:hunter2@bucket/p",
            "s3://AKIA:hunter2/rest@bucket/p",
            "s3://b/p?secret_access_key=hunter2",
            "s3://b/p?hunter2",
            "s3://b/p?endpoint=http://u:hunter2@host",
            "s3://b/p?path_style=hunter2",
            "s3://b/p?region=hunter2/",
            "gs://x:hunter2@b/p",
            "file://u:hunter2@/x",
        ] {
            assert!(!refuse(s).contains("hunter2"), "{s}: {}", refuse(s));
        }
        assert!(refuse("s3://b/p?secret_access_key=x").contains("secret_access_key"));
        assert!(refuse("s3://a:b@c/d").contains("user information"));
    }

    #[test]
    fn other_refusals() {
        for s in [
            "",
            "s3://",
            "s3:///path",
            "s3://b/a/../c",
            "s3://b/a/%2e%2e/c",
            "s3://b/a%2F..%2Fc",
            "s3://b/./c",
            "s3://b/p?unknown=1",
            "gs://b/p?endpoint=http://x",
            "file:///x?region=a",
            "file://host/x",
            "ftp://b/p",
            "https://b/p",
            "s3:b/p",
            "file:/x",
            "~/x",
            "a/../b",
            "/a/..",
            "s3://b/%zz",
            "s3://b/%f",
            "s3://b/%ff",
            "s3://b/a%00b",
            "s3://b/p#frag",
            "s3://b/p?path_style=maybe",
            "s3://b/p?endpoint=ftp://x",
            "s3://b/p?endpoint=",
            "s3://b ucket/p",
            "/srv/a\u{15}b",
            "a\nb",
        ] {
            refuse(s);
        }
    }

    #[test]
    fn parent_takes_the_last_one_away() {
        let up = |url: &str| parse(url).parent().map(|u| u.to_string());
        assert_eq!(up("s3://b/p/q?region=x").as_deref(), Some("s3://b/p?region=x"));
        assert_eq!(parse("gs://b/p").parent(), Some(parse("gs://b")));
        assert_eq!(up("gs://b"), None);
        assert_eq!(parse("/d/app").parent().unwrap().dir().unwrap(), Path::new("/d"));
        assert_eq!(up("/"), None);
    }

    #[test]
    fn child_adds_segments() {
        assert_eq!(parse("s3://b/p?region=x").child("t/app").unwrap().to_string(), "s3://b/p/t/app?region=x");
        assert_eq!(parse("/d").child("app").unwrap().dir().unwrap(), Path::new("/d/app"));
        assert!(parse("/d").child("../x").is_err());
    }

    proptest! {
        #[test]
        fn display_parses_back(path in "[ -~äß/]{0,24}", bucket in "[a-z0-9][a-z0-9.-]{1,20}", kind in 0..4) {
            let text = match kind {
                0 => format!("s3://{bucket}/{}?endpoint=http://h:1", encode(&path)),
                1 => format!("gs://{bucket}/{}", encode(&path)),
                2 => format!("az://{bucket}/{}", encode(&path)),
                _ => format!("file:///{}", encode(&path)),
            };
            if let Ok(u) = ReplicaUrl::parse(&text) {
                prop_assert_eq!(&ReplicaUrl::parse(&u.to_string()).unwrap(), &u);
            }
        }

        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = ReplicaUrl::parse(&text);
        }
    }
}
