//! Options of SQL functions: a JSON object, checked key by key.

use super::layer::{Layer, Source};
use super::table::{self, Scope, TABLE};
use super::value::{Raw, What, parse_duration};
use super::{MAX_INPUT, nearest};
use crate::base::{Error, Result, quoted};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// An option of one function, beside the settings.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its key.
    pub name: &'static str,
    /// What it takes.
    pub kind: OptionKind,
}

/// What an option takes.
#[derive(Clone, Copy, Debug)]
pub enum OptionKind {
    /// `true`, `false`, 1 or 0.
    Flag,
    /// A whole number from the first to the second.
    Count(u64, u64),
    /// A duration as text.
    Duration,
    /// Text.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

/// Whether a function takes settings among its options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WithSettings {
    /// Every per-database setting, too.
    Yes,
    /// Only its own options.
    No,
}

impl OptionSpec {
    /// An option that is there or not.
    pub const fn flag(name: &'static str) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::Flag }
    }
    /// A whole number from `min` to `max`.
    pub const fn count(name: &'static str, min: u64, max: u64) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::Count(min, max) }
    }
    /// A duration.
    pub const fn duration(name: &'static str) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::Duration }
    }
    /// Text.
    pub const fn text(name: &'static str) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::Text }
    }
    /// One of `words`.
    pub const fn one_of(name: &'static str, words: &'static [&'static str]) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::OneOf(words) }
    }
}

#[derive(Clone, PartialEq, Debug)]
enum Given {
    Flag(bool),
    Count(u64),
    Duration(Duration),
    Text(String),
}

/// Checked options. A key that was `null` counts as not given.
#[derive(Clone, Debug, Default)]
pub struct Options {
    given: BTreeMap<&'static str, Given>,
    /// The settings among them, source [`Source::Sql`].
    pub settings: Layer,
}

impl Options {
    /// Reads the options of `function`: its own in `allowed`, and settings if it takes them. No text, or
    /// an empty one, gives no options. Errors ([`crate::base::Kind::Config`]) start with the function's name.
    pub fn parse(
        function: &str,
        text: Option<&str>,
        allowed: &[OptionSpec],
        settings: WithSettings,
    ) -> Result<Options> {
        let mut options = Options::default();
        let Some(text) = text.filter(|t| !t.trim().is_empty()) else { return Ok(options) };
        let error = |m: String| Error::config(format!("{function}: {m}"));
        let raw = json(text).map_err(|m| error(format!("options: {m}")))?;
        let What::Table(fields) = raw.what else {
            return Err(error("options must be a JSON object, e.g. json_object('name', value)".into()));
        };
        for (key, raw) in fields {
            if let Some(spec) = allowed.iter().find(|s| s.name == key) {
                if let Some(given) = own(spec, &raw).map_err(|m| error(format!("option {key} {m}")))? {
                    options.given.insert(spec.name, given);
                }
            } else if settings == WithSettings::Yes && table::is_section(&key) {
                section(&mut options.settings, &key, &raw, allowed).map_err(error)?;
            } else if settings == WithSettings::Yes && table::by_name(&key).is_some() {
                setting(&mut options.settings, &key, &raw).map_err(error)?;
            } else {
                return Err(error(unknown(&key, allowed, settings)));
            }
        }
        Ok(options)
    }

    /// Whether a flag was given as true.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.given.get(name), Some(Given::Flag(true)))
    }

    /// A whole number, if given.
    pub fn count(&self, name: &str) -> Option<u64> {
        match self.given.get(name) {
            Some(Given::Count(n)) => Some(*n),
            _ => None,
        }
    }

    /// A duration, if given.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        match self.given.get(name) {
            Some(Given::Duration(d)) => Some(*d),
            _ => None,
        }
    }

    /// A text or word, if given.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.given.get(name) {
            Some(Given::Text(t)) => Some(t),
            _ => None,
        }
    }
}

fn own(spec: &OptionSpec, raw: &Raw) -> Result<Option<Given>, String> {
    Ok(Some(match (spec.kind, &raw.what) {
        (_, What::Other("null")) => return Ok(None),
        (OptionKind::Flag, What::Other("true") | What::Int(1)) => Given::Flag(true),
        (OptionKind::Flag, What::Other("false") | What::Int(0)) => Given::Flag(false),
        (OptionKind::Flag, _) => return Err("must be true, false, 1 or 0".into()),
        (OptionKind::Count(min, max), What::Int(n))
            if u64::try_from(*n).is_ok_and(|n| n >= min && n <= max) =>
        {
            Given::Count(n.unsigned_abs())
        }
        (OptionKind::Count(min, max), _) => {
            return Err(format!("must be a whole number from {min} to {max}"));
        }
        (OptionKind::Duration, What::Text(t)) => Given::Duration(parse_duration(t)?),
        (OptionKind::Duration, _) => return Err("must be a duration as text, e.g. \"5s\"".into()),
        (OptionKind::Text, What::Text(t)) => Given::Text(t.clone()),
        (OptionKind::Text, _) => return Err("must be text".into()),
        (OptionKind::OneOf(words), What::Text(t)) if words.contains(&t.as_str()) => Given::Text(t.clone()),
        (OptionKind::OneOf(words), What::Text(t)) => {
            return Err(format!("is {}; must be one of: {}", quoted(t), words.join(", ")));
        }
        (OptionKind::OneOf(words), _) => return Err(format!("must be one of: {}", words.join(", "))),
    }))
}

fn setting(layer: &mut Layer, name: &str, raw: &Raw) -> Result<(), String> {
    let Some(setting) = table::by_name(name) else { return Err(format!("unknown option {}", quoted(name))) };
    if setting.scope == Scope::Process {
        let env = setting.env();
        return Err(format!("{name} is for the whole process; set it in walrust.toml or by {env}"));
    }
    if raw.what == What::Other("null") {
        return Ok(());
    }
    if layer.has(setting.id) {
        return Err(format!("option {name} is given twice"));
    }
    layer.read(setting, raw, Source::Sql).map_err(|f| format!("option {name}: {}", f.message))
}

/// `{"retention": {"hourly": 3}}` says what `{"retention_hourly": 3}` says.
fn section(layer: &mut Layer, name: &str, raw: &Raw, allowed: &[OptionSpec]) -> Result<(), String> {
    let What::Table(fields) = &raw.what else { return Err(format!("option {name} must be a JSON object")) };
    for (key, raw) in fields {
        match table::by_toml(Some(name), key) {
            Some(s) => setting(layer, s.name, raw)?,
            None => return Err(unknown(&format!("{name}.{key}"), allowed, WithSettings::Yes)),
        }
    }
    Ok(())
}

fn unknown(key: &str, allowed: &[OptionSpec], settings: WithSettings) -> String {
    let mut known: Vec<&str> = allowed.iter().map(|s| s.name).collect();
    if settings == WithSettings::Yes {
        known.extend(TABLE.iter().filter(|s| s.scope == Scope::Database).map(|s| s.name));
    }
    let near = nearest(key, known.iter().copied());
    // Twenty names are no help to a person; one that is meant is.
    let own: Vec<&str> = allowed.iter().map(|s| s.name).collect();
    let all = match (settings, own.is_empty()) {
        (WithSettings::Yes, true) => "allowed: the settings that walrust_config lists".to_string(),
        (WithSettings::Yes, false) => {
            format!("allowed: {}, and the settings that walrust_config lists", own.join(", "))
        }
        (WithSettings::No, true) => "it takes none".to_string(),
        (WithSettings::No, false) => format!("allowed: {}", own.join(", ")),
    };
    match near {
        Some(n) => format!("unknown option {}; did you mean \"{n}\"?", quoted(key)),
        None => format!("unknown option {}; {all}", quoted(key)),
    }
}

/// Reads JSON strictly: a key given twice is an error, as in TOML. Errors with the text to show.
pub(super) fn json(text: &str) -> Result<Raw, String> {
    if text.len() as u64 > MAX_INPUT {
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
