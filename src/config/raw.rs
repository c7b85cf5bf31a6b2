//! What a front door gives before it is read as a setting: text, TOML or JSON, with the line it stands on.

use super::limits::MAX_INPUT_BYTES;
use crate::base::quoted;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// A value as a front door gives it, with the line it stands on (0 where there are no lines).
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Raw {
    pub line: u32,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum What {
    Text(String),
    Int(i64),
    Float(f64),
    List(Vec<Raw>),
    Table(Vec<(String, Raw)>),
    /// `true`, `false`, or something no setting takes: a date.
    Other(&'static str),
}

impl Raw {
    pub(super) fn text(t: impl Into<String>) -> Raw {
        Raw { line: 0, what: What::Text(t.into()) }
    }

    pub(super) fn type_name(&self) -> &'static str {
        match &self.what {
            What::Text(_) => "text",
            What::Int(_) => "an integer",
            What::Float(_) => "a number",
            What::List(_) => "a list",
            What::Table(_) => "a table",
            What::Other("true" | "false") => "a boolean",
            What::Other(name) => name,
        }
    }
}

/// What is wrong, and on which line.
#[derive(Debug)]
pub(super) struct Fault {
    pub line: u32,
    pub message: String,
}

pub(super) fn fault(raw: &Raw, message: impl Into<String>) -> Fault {
    Fault { line: raw.line, message: message.into() }
}

pub(super) fn text_of<'a>(raw: &'a Raw, wanted: &str) -> Result<&'a str, Fault> {
    match &raw.what {
        What::Text(t) => Ok(t),
        _ => Err(fault(raw, format!("is {}; it takes {wanted}", raw.type_name()))),
    }
}

/// Reads JSON strictly: a key given twice is an error, as in TOML. Errors with the text to show.
pub(super) fn json(text: &str) -> Result<Raw, String> {
    if text.len() as u64 > MAX_INPUT_BYTES {
        return Err("longer than 1 MiB".into());
    }
    let mut de = serde_json::Deserializer::from_str(text);
    let raw = RawSeed.deserialize(&mut de).and_then(|raw| de.end().map(|()| raw));
    raw.map_err(|e| format!("not readable JSON ({e})"))
}

/// A REAL that is a whole number, such as 3.0: JavaScript and R have no others.
pub fn whole(v: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    (v.fract() == 0.0 && v.abs() <= EXACT).then_some(v as i64)
}

/// Builds a [`Raw`]; serde_json itself stops at 128 levels of nesting.
struct RawSeed;

impl<'de> DeserializeSeed<'de> for RawSeed {
    type Value = Raw;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
        d.deserialize_any(self)
    }
}

fn raw<E>(what: What) -> Result<Raw, E> {
    Ok(Raw { line: 0, what })
}

impl<'de> Visitor<'de> for RawSeed {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        raw(What::Other(if v { "true" } else { "false" }))
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        raw(What::Other("null"))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        raw(What::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        raw(i64::try_from(v).map_or(What::Float(v as f64), What::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        // A whole number, from a language that writes all numbers with a point.
        raw(whole(v).map_or(What::Float(v), What::Int))
    }
    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        raw(What::Text(v.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element_seed(RawSeed)? {
            list.push(item);
        }
        raw(What::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(RawSeed)?;
            if fields.contains_key(&key) {
                return Err(serde::de::Error::custom(format_args!("key {} twice", quoted(&key))));
            }
            fields.insert(key, value);
        }
        raw(What::Table(fields.into_iter().collect()))
    }
}
