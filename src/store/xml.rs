//! What is read of a store's XML answers. Pure; names count without their namespace.

use crate::base::Timestamp;
use bytes::Bytes;
use quick_xml::Reader;
use quick_xml::events::Event;

fn reader(text: &str) -> Reader<&[u8]> {
    let mut reader = Reader::from_str(text);
    // Who answers with broken XML is judged by what it says, not by how it ends.
    reader.config_mut().check_end_names = false;
    reader
}

/// The name of the outermost element; `html` for a document that declares itself to be that. `None` for what is no XML.
pub(super) fn root(text: &str) -> Option<String> {
    let mut reader = reader(text.trim_start_matches('\u{feff}').trim_start());
    loop {
        match reader.read_event().ok()? {
            Event::DocType(d) => {
                let kind = d.decode().ok()?.trim_start().to_ascii_lowercase();
                if kind.split(|c: char| !c.is_ascii_alphanumeric()).next() == Some("html") {
                    return Some("html".into());
                }
            }
            Event::Start(e) | Event::Empty(e) => {
                return String::from_utf8(e.local_name().as_ref().to_vec()).ok();
            }
            Event::Text(t) if t.iter().all(u8::is_ascii_whitespace) => {}
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            _ => return None,
        }
    }
}

/// Whether there is an element of one of these names.
pub(super) fn has_one_of(text: &str, names: &[&str]) -> bool {
    let mut reader = reader(text);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e) | Event::Empty(e)) => {
                if names.iter().any(|n| n.as_bytes() == e.local_name().as_ref()) {
                    return true;
                }
            }
            Ok(Event::Eof) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

/// The text of the first element of this name; empty if there is none, or none that ends.
pub(super) fn text_of(text: &str, name: &str) -> String {
    let mut reader = reader(text);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e)) if e.local_name().as_ref() == name.as_bytes() => {
                let Ok(inner) = reader.read_text(e.name()) else { return String::new() };
                let inner = inner.decode().unwrap_or_default();
                return quick_xml::escape::unescape(&inner)
                    .map_or_else(|_| inner.to_string(), |t| t.into_owned());
            }
            Ok(Event::Eof) | Err(_) => return String::new(),
            Ok(_) => {}
        }
    }
}

/// `body` without the elements of which the name within is not to be `kept`. `items`: an element, and the one in it
/// that holds the name. A name that cannot be read is kept by nobody.
pub(super) fn filtered(body: Bytes, items: &[(&str, &str)], kept: impl Fn(&str) -> bool) -> Bytes {
    let Ok(text) = std::str::from_utf8(&body) else { return body };
    let mut out = String::new();
    // Of `text`, this much is copied or left out.
    let mut done = 0;
    let mut reader = reader(text);
    let at = |reader: &Reader<&[u8]>| usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
    loop {
        let begin = at(&reader);
        let Ok(event) = reader.read_event() else { break };
        let Event::Start(e) = event else {
            if matches!(event, Event::Eof) {
                break;
            }
            continue;
        };
        let item = items.iter().find(|(item, _)| item.as_bytes() == e.local_name().as_ref());
        let Some((_, name)) = item else { continue };
        let Ok(inner) = reader.read_text(e.name()) else { break };
        let inner = inner.decode().unwrap_or_default();
        if kept_name(&inner, name, &kept) {
            continue;
        }
        out.push_str(text.get(done..begin).unwrap_or_default());
        done = at(&reader);
    }
    if done == 0 {
        return body;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out.into()
}

/// An element that names nothing is left to whoever reads the listing.
fn kept_name(inner: &str, name: &str, kept: impl Fn(&str) -> bool) -> bool {
    let mut reader = reader(inner);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e)) if e.local_name().as_ref() == name.as_bytes() => {
                let Ok(given) = reader.read_text(e.name()) else { return true };
                let Ok(given) = given.decode() else { return false };
                return quick_xml::escape::unescape(&given).is_ok_and(|given| kept(&given));
            }
            Ok(Event::Eof) | Err(_) => return true,
            Ok(_) => {}
        }
    }
}

/// One version of an object in a bucket that keeps them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) key: String,
    /// `null` where the bucket did not keep versions.
    pub(super) id: String,
    /// When it became what the key names.
    pub(super) modified: Timestamp,
    /// Bytes; `None`: from then on the key named nothing.
    pub(super) size: Option<u64>,
    pub(super) etag: Option<String>,
    /// It is what the key names now.
    pub(super) is_latest: bool,
}

/// Where a page of versions begins: a key, and a version of it.
pub(super) type Marker = (String, String);

/// A page of versions, and where the next one begins. `None` for what is no such list.
pub(super) fn versions(text: &str) -> Option<(Vec<Version>, Option<Marker>)> {
    if root(text)? != "ListVersionsResult" {
        return None;
    }
    let is_encoded = text_of(text, "EncodingType") == "url";
    let decoded = |key: String| -> Option<String> {
        if !is_encoded {
            return Some(key);
        }
        percent_encoding::percent_decode_str(&key.replace('+', " ")).decode_utf8().ok().map(Into::into)
    };
    let mut found = Vec::new();
    let mut reader = reader(text);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e)) if matches!(e.local_name().as_ref(), b"Version" | b"DeleteMarker") => {
                let is_object = e.local_name().as_ref() == b"Version";
                let inner = reader.read_text(e.name()).ok()?;
                let inner = inner.decode().ok()?;
                let of = |name: &str| text_of(&inner, name);
                let modified = chrono::DateTime::parse_from_rfc3339(&of("LastModified")).ok()?;
                found.push(Version {
                    key: decoded(of("Key"))?,
                    id: of("VersionId"),
                    modified: Timestamp(modified.timestamp_millis()),
                    size: if is_object { Some(of("Size").parse().ok()?) } else { None },
                    etag: Some(of("ETag")).filter(|t| !t.is_empty()),
                    is_latest: of("IsLatest") == "true",
                });
            }
            Ok(Event::Eof) => break,
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    let more = text_of(text, "IsTruncated") == "true";
    let next = more
        .then(|| decoded(text_of(text, "NextKeyMarker")).map(|k| (k, text_of(text, "NextVersionIdMarker"))));
    match next {
        None => Some((found, None)),
        Some(next) => Some((found, Some(next?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_the_moments_at_which_there_were_none() {
        let page = "<?xml version='1.0'?><ListVersionsResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>\
            <IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><NextKeyMarker>a%20b</NextKeyMarker>\
            <NextVersionIdMarker>v1</NextVersionIdMarker>\
            <Version><Key>a%20b</Key><VersionId>v2</VersionId><LastModified>2026-11-22T18:00:01.000Z</LastModified>\
            <ETag>&quot;e&quot;</ETag><Size>7</Size><Owner><ID>o</ID></Owner></Version>\
            <DeleteMarker><Key>c+d</Key><VersionId>null</VersionId><LastModified>2026-11-22T18:00:02Z</LastModified></DeleteMarker>\
            </ListVersionsResult>";
        let (all, next) = versions(page).unwrap();
        assert_eq!(next, Some(("a b".to_string(), "v1".to_string())));
        let of = |v: &Version| (v.key.clone(), v.id.clone(), v.modified.0 % 10_000, v.size, v.etag.clone());
        assert_eq!(
            all.iter().map(of).collect::<Vec<_>>(),
            [
                ("a b".to_string(), "v2".to_string(), 1000, Some(7), Some("\"e\"".to_string())),
                ("c d".to_string(), "null".to_string(), 2000, None, None),
            ]
        );
        for bad in
            ["", "<Error/>", "<ListVersionsResult><Version><Key>a</Key></Version></ListVersionsResult>"]
        {
            assert_eq!(versions(bad), None, "{bad}");
        }
        assert_eq!(versions("<ListVersionsResult></ListVersionsResult>"), Some((Vec::new(), None)));
    }

    #[test]
    fn texts_and_elements() {
        let xml = "<?xml version='1.0'?><!-- c --><x:Error xmlns:x='y'><Code>Slow&amp;Down</Code><Message>Please\nreduce</Message><Empty/></x:Error>";
        assert_eq!(root(xml).as_deref(), Some("Error"));
        assert_eq!(text_of(xml, "Code"), "Slow&Down");
        assert_eq!(text_of(xml, "Message"), "Please\nreduce");
        assert_eq!(text_of(xml, "Resource"), "");
        assert_eq!(text_of("<Code>never closed", "Code"), "");
        assert_eq!(text_of("no xml & none", "Code"), "");
        assert!(has_one_of(xml, &["Contents", "Empty"]) && !has_one_of(xml, &["Contents"]));
    }
}
