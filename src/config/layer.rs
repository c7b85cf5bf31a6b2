//! What one place says: a layer of values, each with its source.

use super::nearest::nearest;
use super::raw::{Fault, Raw};
use super::read::read;
use super::table::{self, Id, Scope, Setting, TABLE};
use super::value::Value;
use crate::base::{Error, Result, quoted};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The options of an SQL call.
    Sql,
    /// URI parameters of the open.
    Uri,
    /// A line of the TOML file.
    File {
        /// The file as it was named.
        path: Arc<Path>,
        /// 1-based.
        line: u32,
    },
    /// An environment variable.
    Env(String),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Sql => f.write_str("sql"),
            Source::Uri => f.write_str("uri"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => write!(f, "env {name}"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// A value, as text, and where it was said.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub value: Value,
    pub shown: String,
    pub source: Source,
}

/// Values by setting.
pub(super) type Entries = BTreeMap<Id, Said>;

/// What one place says.
#[derive(Clone, Debug, Default)]
pub struct Layer(pub(super) Entries);

impl Layer {
    pub(super) fn read(&mut self, setting: &Setting, raw: &Raw, source: Source) -> Result<(), Fault> {
        let (value, shown) = read(setting.kind, raw)?;
        self.0.insert(setting.id, Said { value, shown, source });
        Ok(())
    }

    pub(super) fn has(&self, id: Id) -> bool {
        self.0.contains_key(&id)
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What this says, and of what it says nothing, what `below` says.
    #[must_use]
    pub fn over(self, below: Layer) -> Layer {
        let mut all = below.0;
        all.extend(self.0);
        Layer(all)
    }

    /// Whether it says which replica.
    pub fn names_replica(&self) -> bool {
        self.has(Id::Replica)
    }

    /// The URL given to an SQL call.
    #[must_use]
    pub fn with_replica(mut self, url: &str) -> Layer {
        let value = Value::Text(url.to_string());
        self.0.insert(Id::Replica, Said { value, shown: url.to_string(), source: Source::Sql });
        self
    }

    /// URI parameters of an open. Parameters of SQLite and of other VFSes pass; one that is nearly a
    /// setting, but is none, is an error.
    pub fn from_uri<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Layer> {
        // https://sqlite.org/uri.html and https://sqlite.org/c3ref/open.html
        const SQLITE: [&str; 8] = ["vfs", "mode", "cache", "psow", "nolock", "immutable", "modeof", "key"];
        let mut layer = Layer::default();
        for (name, text) in parameters {
            let Some(setting) = table::by_name(name) else {
                let all = TABLE.iter().map(|s| s.name);
                if let (false, Some(near)) = (SQLITE.contains(&name), nearest(name, all)) {
                    let name = quoted(name);
                    return Err(Error::config(format!(
                        "unknown URI parameter {name}; did you mean \"{near}\"?"
                    )));
                }
                continue;
            };
            process_scope(setting, name)?;
            layer
                .read(setting, &Raw::text(text), Source::Uri)
                .map_err(|f| Error::config(format!("URI parameter {name}: {}", f.message)))?;
        }
        Ok(layer)
    }

    /// `WALRUST_*` variables. An empty one counts as not set, as shells cannot always unset.
    pub(super) fn from_env(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Layer> {
        let mut layer = Layer::default();
        let all: BTreeMap<String, &Setting> = TABLE.iter().map(|s| (s.env(), s)).collect();
        for (name, text) in variables {
            let Some(name) = name.to_str().filter(|n| n.starts_with("WALRUST_")) else { continue };
            let Some(setting) = all.get(name) else {
                // Others may have variables of this prefix; a slip of the pen is told apart by nearness.
                let rest = name.trim_start_matches("WALRUST_").to_ascii_lowercase();
                match nearest(&rest, TABLE.iter().map(|s| s.name))
                    .filter(|_| !["WALRUST_CONFIG", "WALRUST_IDENTITY"].contains(&name))
                {
                    Some(near) => {
                        let near = near.to_ascii_uppercase();
                        return Err(Error::config(format!(
                            "unknown variable {name}; did you mean WALRUST_{near}?"
                        )));
                    }
                    None => continue,
                }
            };
            let text = text.to_str().ok_or_else(|| Error::config(format!("{name} is not UTF-8")))?;
            if text.trim().is_empty() {
                continue;
            }
            layer
                .read(setting, &Raw::text(text), Source::Env(name.to_string()))
                .map_err(|f| Error::config(format!("{name}: {}", f.message)))?;
        }
        Ok(layer)
    }
}

fn process_scope(setting: &Setting, name: &str) -> Result<()> {
    match setting.scope {
        Scope::Database => Ok(()),
        Scope::Process => Err(Error::config(format!(
            "{name} is for the whole process; set it in walrust.toml or by {}",
            setting.env()
        ))),
    }
}
