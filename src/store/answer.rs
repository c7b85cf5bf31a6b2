//! Whether an answer with HTTP 200 is a store's. A console's port, a login page, a maintenance page and a proxy answer
//! 200 as well, and an XML reader finds no object in any of them: "the replica is empty", and a program begins without
//! its data.
//!
//! Pure. A listing is one if its outermost element is that of the protocol, and, where it names no object, if bucket
//! and prefix that it names are those that were asked for (stores may leave them out).

use super::text::one_line;
use super::xml;
use percent_encoding::percent_decode_str;

/// The outermost element of a listing, and what it is called for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// S3's and Google's.
    S3,
    Azure,
}

impl Protocol {
    fn root(self) -> &'static str {
        match self {
            Protocol::S3 => "ListBucketResult",
            Protocol::Azure => "EnumerationResults",
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked<'a> {
    /// Of the request.
    pub(super) host: &'a str,
    /// Of the request, as sent.
    pub(super) path: &'a str,
    /// Of the request, as sent.
    pub(super) query: &'a str,
}

/// Why `body` is no answer to a listing; `None` if it is one.
pub(super) fn not_a_listing(protocol: Protocol, asked: &Asked<'_>, body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let Some(root) = xml::root(&text) else {
        return Some(if text.trim().is_empty() {
            "an empty text".into()
        } else {
            "a text that is no XML".into()
        });
    };
    if root.eq_ignore_ascii_case("html") {
        return Some("a web page".into());
    }
    if root != protocol.root() {
        return Some(format!("<{}>", one_line(&root)));
    }
    if protocol != Protocol::S3 || xml::has_one_of(&text, &["Contents", "CommonPrefixes"]) {
        return None;
    }
    let said = |name: &str| Some(xml::text_of(&text, name)).filter(|t| !t.is_empty());
    if let Some(bucket) = said("Name")
        && !asked.is_of(&bucket)
    {
        return Some(format!("a listing of another bucket, {}", one_line(&bucket)));
    }
    let prefix = asked.prefix();
    if let Some(other) = said("Prefix")
        && trimmed(&other) != trimmed(&prefix)
        && trimmed(&percent_decoded(&other)) != trimmed(&prefix)
    {
        return Some(format!("a listing of another place, {}", one_line(&other)));
    }
    None
}

/// Whether `body` is HTML, by its outermost element.
pub(super) fn is_page(body: &[u8]) -> bool {
    xml::root(&String::from_utf8_lossy(body)).is_some_and(|name| name.eq_ignore_ascii_case("html"))
}

impl Asked<'_> {
    /// Whether the bucket is the one asked for. An access point answers by another name.
    fn is_of(&self, bucket: &str) -> bool {
        let bucket = bucket.to_ascii_lowercase();
        let path = percent_decoded(self.path).to_ascii_lowercase();
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let host = self.host.to_ascii_lowercase();
        let is_alias = |s: &str| ["s3alias", "--ol-s3", "accesspoint", "arn:"].iter().any(|a| s.contains(a));
        // (A tenant may go before the bucket, as in Ceph.)
        first.rsplit(':').next() == Some(bucket.as_str())
            || host == bucket
            || host.strip_prefix(bucket.as_str()).is_some_and(|rest| rest.starts_with('.'))
            || is_alias(first)
            || is_alias(&host)
    }

    fn prefix(&self) -> String {
        let pairs = self.query.split('&').filter_map(|p| p.split_once('='));
        pairs.filter(|(k, _)| *k == "prefix").map(|(_, v)| percent_decoded(v)).next().unwrap_or_default()
    }
}

fn trimmed(prefix: &str) -> &str {
    prefix.trim_matches('/')
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked<'_> =
        Asked { host: "127.0.0.1", path: "/bucket", query: "list-type=2&prefix=some%20app%2F0000%2F" };

    #[test]
    fn a_listing_is_told_from_whatever_else_is_answered() {
        let list = |inside: &str| {
            format!("<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\">{inside}</ListBucketResult>")
        };
        let table: Vec<(String, Option<&str>)> = vec![
            (list(""), None),
            (list("<Name>bucket</Name><Prefix>some app/0000/</Prefix>"), None),
            (
                list("<Name>bucket</Name><Prefix>some%20app/0000</Prefix><EncodingType>url</EncodingType>"),
                None,
            ),
            (list("<Name/><Prefix></Prefix>"), None),
            ("<ListBucketResult/>".into(), None),
            ("\u{feff}<!-- x --><s3:ListBucketResult xmlns:s3='x'></s3:ListBucketResult>".into(), None),
            (list("<Name>other</Name>"), Some("another bucket")),
            (list("<Name>bucket</Name><Prefix>other/</Prefix>"), Some("another place")),
            (list("<Name>other</Name><Contents><Key>k</Key></Contents>"), None),
            ("<html><body/></html>".into(), Some("a web page")),
            ("<!DOCTYPE html>\n<html>".into(), Some("a web page")),
            ("<!doctype HTML PUBLIC \"-//W3C//DTD\"><HTML>".into(), Some("a web page")),
            ("<HTML></HTML>".into(), Some("a web page")),
            (
                "<?xml version='1.0'?><ListAllMyBucketsResult></ListAllMyBucketsResult>".into(),
                Some("<ListAllMyBucketsResult>"),
            ),
            ("<Error><Code>SlowDown</Code></Error>".into(), Some("<Error>")),
            ("<EnumerationResults/>".into(), Some("<EnumerationResults>")),
            ("{\"ok\":true}".into(), Some("no XML")),
            ("ok".into(), Some("no XML")),
            ("<".into(), Some("no XML")),
            ("<!-- never ends".into(), Some("no XML")),
            (" \n".into(), Some("empty")),
        ];
        for (body, expected) in table {
            let found = not_a_listing(Protocol::S3, &ASKED, body.as_bytes());
            match expected {
                None => assert_eq!(found, None, "{body}"),
                Some(word) => {
                    assert!(found.as_deref().is_some_and(|f| f.contains(word)), "{body}: {found:?}")
                }
            }
        }
        assert_eq!(
            not_a_listing(Protocol::Azure, &ASKED, b"<EnumerationResults ServiceEndpoint='x'/>"),
            None
        );
        assert!(not_a_listing(Protocol::Azure, &ASKED, b"<ListBucketResult/>").is_some());
    }

    #[test]
    fn a_page_is_told_by_its_outermost_element() {
        for (body, page) in
            [("<html>", true), ("<!DOCTYPE html><p>", true), ("", false), ("<Error/>", false), ("x", false)]
        {
            assert_eq!(is_page(body.as_bytes()), page, "{body}");
        }
    }

    #[test]
    fn buckets_have_more_than_one_name() {
        let named = |host, path, bucket| Asked { host, path, query: "" }.is_of(bucket);
        assert!(named("bucket.s3.amazonaws.com", "/", "bucket"));
        assert!(named("a.bucket.s3.amazonaws.com", "/", "a.bucket"));
        assert!(named("h", "/Bucket/", "bucket"));
        assert!(named("h", "/tenant%3Abucket", "bucket"));
        assert!(named("bucket.example.com", "/", "bucket.example.com"));
        assert!(named("x-123-s3alias.s3.amazonaws.com", "/", "bucket"));
        assert!(!named("h", "/bucket2", "bucket"));
    }
}
