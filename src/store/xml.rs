//! What is read of a store's XML answers. Pure; names count without their namespace.

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

#[cfg(test)]
mod tests {
    use super::*;

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
