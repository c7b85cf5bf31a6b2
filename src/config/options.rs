//! Options of SQL functions: a JSON object, checked key by key.

use super::layer::{Layer, Source};
use super::nearest::nearest;
use super::raw::{Raw, What, json};
use super::table::{self, Scope, TABLE};
use super::value::parse_duration;
use crate::base::{Error, Result, quoted};
use std::collections::BTreeMap;
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
    /// Some texts.
    Texts,
    /// Text, or a whole number, which is text then.
    TextOrCount,
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
    /// Text, or a whole number.
    pub const fn text_or_count(name: &'static str) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::TextOrCount }
    }
    /// A list of texts, or one.
    pub const fn texts(name: &'static str) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::Texts }
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
    Texts(Vec<String>),
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
        let raw = json(text)
            .map_err(|m| error(format!("{m}; give a JSON object, e.g. json_object('name', value)")))?;
        let What::Table(fields) = raw.what else {
            return Err(error("must be a JSON object, e.g. json_object('name', value)".into()));
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

    /// The texts of a list, or the one; empty if it was not given.
    pub fn texts(&self, name: &str) -> &[String] {
        match self.given.get(name) {
            Some(Given::Texts(t)) => t,
            _ => &[],
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
        (OptionKind::TextOrCount, What::Text(t)) => Given::Text(t.clone()),
        (OptionKind::TextOrCount, What::Int(n)) => Given::Text(n.to_string()),
        (OptionKind::TextOrCount, _) => return Err("must be text, or a whole number".into()),
        (OptionKind::Texts, What::Text(t)) => Given::Texts(vec![t.clone()]),
        (OptionKind::Texts, What::List(items)) => {
            let text = |item: &Raw| match &item.what {
                What::Text(t) => Ok(t.clone()),
                _ => Err("must be text, or a list of texts".to_string()),
            };
            Given::Texts(items.iter().map(text).collect::<Result<_, _>>()?)
        }
        (OptionKind::Texts, _) => return Err("must be text, or a list of texts".into()),
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
