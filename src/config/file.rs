//! The TOML file.

use super::layer::{Layer, Source};
use super::limits::MAX_INPUT_BYTES;
use super::nearest::nearest;
use super::paths;
use super::raw::{Raw, What};
use super::table::{self, Scope, TABLE};
use crate::base::{Error, Kind, Result, quoted};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// How deep tables may nest: `[[databases.webhooks]] events = [..]` is four.
const DEPTH: u32 = 8;

/// A file that was read.
#[derive(Debug)]
pub(super) struct File {
    /// As it was named.
    pub path: Arc<Path>,
    /// Where relative patterns and directories start.
    pub base: PathBuf,
    /// What stands above `[[databases]]`.
    pub top: Layer,
    /// The entries, in order.
    pub databases: Vec<Entry>,
}

/// One `[[databases]]`.
#[derive(Debug)]
pub(super) struct Entry {
    pub pattern: String,
    pub line: u32,
    pub layer: Layer,
}

/// Reads at most [`MAX_INPUT_BYTES`] bytes of UTF-8.
pub(super) fn slurp(path: &Path) -> Result<String> {
    let open = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    // A directory or a pipe would fail later, or block; say so now.
    let meta = open.metadata().map_err(|e| Error::io("read", path, e))?;
    if !meta.is_file() {
        return Err(Error::config(format!(
            "{} is not a file; WALRUST_CONFIG names a TOML file",
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    open.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(Error::config(format!(
            "{} is larger than 1 MiB; a configuration is not",
            path.display()
        )));
    }
    String::from_utf8(bytes).map_err(|_| Error::config(format!("{} is not UTF-8 text", path.display())))
}

/// Reads the text of the file at `path`.
pub(super) fn parse(text: &str, path: &Path) -> Result<File> {
    let reader = Reader { text, path: Arc::from(path) };
    let root = DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(0, |s| reader.line(s.start));
        // The message alone: the full display quotes the line, which may hold a secret.
        reader.error(line, e.message().lines().next().unwrap_or("not TOML"))
    })?;
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let base = full.parent().unwrap_or(Path::new(".")).to_path_buf();
    let mut file =
        File { path: Arc::clone(&reader.path), base, top: Layer::default(), databases: Vec::new() };
    for (key, value) in root.get_ref() {
        if key.get_ref() != "databases" {
            reader.setting(&mut file.top, key, value, Place::Top)?;
            continue;
        }
        let line = reader.line(key.span().start);
        let DeValue::Array(items) = value.get_ref() else {
            return Err(reader.error(line, "databases must be written as [[databases]] tables"));
        };
        for item in items.iter() {
            file.databases.push(reader.entry(item)?);
        }
    }
    Ok(file)
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Top,
    Database,
}

struct Reader<'a> {
    text: &'a str,
    path: Arc<Path>,
}

impl Reader<'_> {
    /// 1-based line of a byte offset.
    fn line(&self, offset: usize) -> u32 {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        u32::try_from(before.iter().filter(|b| **b == b'\n').count()).unwrap_or(u32::MAX - 1) + 1
    }

    fn error(&self, line: u32, message: impl AsRef<str>) -> Error {
        Error::new(Kind::Config, format!("{}:{line}: {}", self.path.display(), message.as_ref()))
    }

    fn entry(&self, item: &Spanned<DeValue<'_>>) -> Result<Entry> {
        let line = self.line(item.span().start);
        let DeValue::Table(fields) = item.get_ref() else {
            return Err(self.error(line, "databases must be written as [[databases]] tables"));
        };
        let mut entry = Entry { pattern: String::new(), line, layer: Layer::default() };
        for (key, value) in fields {
            if key.get_ref() != "path" {
                self.setting(&mut entry.layer, key, value, Place::Database)?;
                continue;
            }
            let line = self.line(key.span().start);
            let DeValue::String(pattern) = value.get_ref() else {
                return Err(self.error(line, "path: must be text, e.g. \"/data/*.db\""));
            };
            paths::check_pattern(pattern).map_err(|m| self.error(line, format!("path: {m}")))?;
            entry.pattern = pattern.to_string();
        }
        if entry.pattern.is_empty() {
            return Err(self.error(line, "[[databases]] has no path; write e.g. path = \"/data/*.db\""));
        }
        Ok(entry)
    }

    /// A key at the top or in a [[databases]] entry: a setting, or a table of settings.
    fn setting(
        &self,
        layer: &mut Layer,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        place: Place,
    ) -> Result<()> {
        let (name, line) = (key.get_ref().as_ref(), self.line(key.span().start));
        if !table::is_section(name) {
            return self.one(layer, None, name, line, value, place);
        }
        let DeValue::Table(fields) = value.get_ref() else {
            return Err(self.error(line, format!("{name}: must be a table: [{name}]")));
        };
        for (inner, value) in fields {
            let line = self.line(inner.span().start);
            self.one(layer, Some(name), inner.get_ref().as_ref(), line, value, place)?;
        }
        Ok(())
    }

    fn one(
        &self,
        layer: &mut Layer,
        section: Option<&str>,
        key: &str,
        line: u32,
        value: &Spanned<DeValue<'_>>,
        place: Place,
    ) -> Result<()> {
        let Some(setting) = table::by_toml(section, key) else {
            return Err(self.error(line, unknown(section, key, place)));
        };
        let dotted = setting.toml_path();
        if setting.scope == Scope::Process && place == Place::Database {
            return Err(
                self.error(line, format!("{dotted}: is for the whole process; set it above [[databases]]"))
            );
        }
        let mut raw = self.raw(value, DEPTH)?;
        raw.line = line;
        let from = |line| Source::File { path: self.path.clone(), line };
        layer.read(setting, &raw, from(line)).map_err(|f| {
            self.error(if f.line == 0 { line } else { f.line }, format!("{dotted}: {}", f.message))
        })
    }

    fn raw(&self, value: &Spanned<DeValue<'_>>, depth: u32) -> Result<Raw> {
        let line = self.line(value.span().start);
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(self.error(line, "nested deeper than any setting"));
        };
        let what = match value.get_ref() {
            DeValue::String(t) => What::Text(t.to_string()),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => What::Int(n),
                Err(_) => return Err(self.error(line, "a number is out of range")),
            },
            DeValue::Float(n) => match n.as_str().parse::<f64>() {
                Ok(n) => What::Float(n),
                Err(_) => return Err(self.error(line, "a number is unreadable")),
            },
            DeValue::Boolean(b) => What::Other(if *b { "true" } else { "false" }),
            DeValue::Datetime(_) => What::Other("a date"),
            DeValue::Array(items) => {
                What::List(items.iter().map(|i| self.raw(i, deeper)).collect::<Result<Vec<_>>>()?)
            }
            DeValue::Table(fields) => {
                let mut list = Vec::new();
                for (k, v) in fields {
                    let mut raw = self.raw(v, deeper)?;
                    raw.line = self.line(k.span().start);
                    list.push((k.get_ref().to_string(), raw));
                }
                What::Table(list)
            }
        };
        Ok(Raw { line, what })
    }
}

fn unknown(section: Option<&str>, key: &str, place: Place) -> String {
    let shown = match section {
        Some(s) => quoted(&format!("{s}.{key}")),
        None => quoted(key),
    };
    // A key that is right elsewhere first: [retention] base, or hourly at the top.
    let elsewhere = TABLE.iter().find(|s| s.key == key || s.name == key);
    let mut near: Vec<&str> = TABLE.iter().filter(|s| s.section == section).map(|s| s.key).collect();
    if section.is_none() {
        near.extend(["retention", "retry"]);
        near.push(if place == Place::Top { "databases" } else { "path" });
    }
    let hint = match (elsewhere, nearest(key, near.iter().copied())) {
        (Some(s), _) => match s.section {
            Some(section) => format!("; write {} under [{section}]", s.key),
            None => format!("; write {} above any [table]", s.key),
        },
        (None, Some(n)) => format!("; did you mean \"{n}\"?"),
        (None, None) => format!("; known are: {}", near.join(", ")),
    };
    format!("unknown key {shown}{hint}")
}
