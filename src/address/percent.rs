//! The percent-encoding of replica URLs.

use crate::base::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What needs no encoding anywhere (<https://www.rfc-editor.org/rfc/rfc3986#section-2.3>).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Within a path, and within a value of the query, these need none either.
const WITHIN: &AsciiSet = &UNRESERVED
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b'!')
    .remove(b'$')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b'[')
    .remove(b']');

/// A piece of a path, in which a slash is a letter: `a/b?` is `a%2Fb%3F`.
pub fn encode_part(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// A path, or a value.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, WITHIN).to_string()
}

/// Errors with [`crate::base::Kind::Config`] for a `%` without its digits, and for what is not UTF-8.
pub(super) fn decode(text: &str) -> Result<String> {
    let digits = |rest: &str| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !text.split('%').skip(1).all(digits) {
        return Err(Error::config("the replica URL holds a '%' that is not followed by two hex digits"));
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| Error::config("the replica URL does not decode to UTF-8"))
}
