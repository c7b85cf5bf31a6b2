//! Which word wins: layers of values over each other, and the settings that come out.

use super::file::{self, File};
use super::paths;
use super::table::{self, Id, Scope, Setting, TABLE};
use super::value::{self, ByteCount, Durability, Fault, Raw, UrlCheck, Value};
use super::{nearest, quoted};
use crate::base::{Error, Result, Webhook};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How many files one pattern is looked at for when the file is loaded.
const MOST_FILES: usize = 100_000;

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
            Source::Env(name) => f.write_str(name),
            Source::Default => f.write_str("default"),
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    value: Value,
    shown: String,
    source: Source,
}

/// What one place says.
#[derive(Clone, Debug, Default)]
pub struct Layer(BTreeMap<Id, Entry>);

impl Layer {
    pub(super) fn read(&mut self, setting: &Setting, raw: &Raw, source: Source) -> Result<(), Fault> {
        let (value, shown) = value::read(setting.kind, raw)?;
        self.0.insert(setting.id, Entry { value, shown, source });
        Ok(())
    }

    pub(super) fn has(&self, id: Id) -> bool {
        self.0.contains_key(&id)
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The URL given to an SQL call.
    #[must_use]
    pub fn with_replica(mut self, url: &str) -> Layer {
        let value = Value::Text(url.to_string());
        self.0.insert(Id::Replica, Entry { value, shown: url.to_string(), source: Source::Sql });
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
    fn from_env(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Layer> {
        let mut layer = Layer::default();
        let all: BTreeMap<String, &Setting> = TABLE.iter().map(|s| (s.env(), s)).collect();
        for (name, text) in variables {
            let Some(name) = name.to_str().filter(|n| n.starts_with("WALRUST_")) else { continue };
            let Some(setting) = all.get(name) else {
                // Others may have variables of this prefix; a slip of the pen is told apart by nearness.
                if name == "WALRUST_CONFIG" || all.is_empty() {
                    continue;
                }
                match nearest(name, all.keys().map(String::as_str)) {
                    Some(near) => {
                        return Err(Error::config(format!("unknown variable {name}; did you mean {near}?")));
                    }
                    None => continue,
                }
            };
            let text = text.to_str().ok_or_else(|| Error::config(format!("{name} is not UTF-8")))?;
            if text.is_empty() {
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

/// Grandfather-father-son: snapshots kept per tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the table describes each
pub struct Retention {
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
}

/// Pauses between tries, and when to stop trying for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the table describes each
pub struct Retry {
    pub base: Duration,
    pub max: Duration,
    pub breaker_threshold: u32,
    pub breaker_cooldown: Duration,
}

/// The settings of one database (or of the process), every one with a value. The table describes each.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub struct Settings {
    /// `None`: nobody named one.
    pub replica: Option<String>,
    pub interval: Duration,
    pub durability: Durability,
    pub sync_timeout: Duration,
    /// Zero: no schedule.
    pub snapshot_interval: Duration,
    /// One to three, rising.
    pub levels: Vec<Duration>,
    pub pitr_window: Duration,
    pub retention: Retention,
    /// Zero: off.
    pub validation_interval: Duration,
    /// `None` where there is no database; else the given one or `<database file>-walrust`.
    pub spool_dir: Option<PathBuf>,
    pub spool_limit: ByteCount,
    pub retry: Retry,
    pub webhooks: Vec<Webhook>,
    /// `None`: off.
    pub metrics_listen: Option<String>,
    pub price_per_gb: Option<f64>,
    pub price_per_1000_put: Option<f64>,
}

/// Who chose this database for replication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chosen {
    /// Nobody: without a `walrust_watch` call it is not replicated.
    No,
    /// A replica named by an SQL call, the URI, the top of the file, or the environment.
    ByReplica(Source),
    /// A `[[databases]]` entry, which may lack a replica (then the embedded default holds).
    ByEntry(Source),
}

/// A row of `walrust_config`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigRow {
    /// The setting's name.
    pub name: &'static str,
    /// Its value as text; empty if not set.
    pub value: String,
    /// Where the value came from.
    pub source: String,
    /// The default as text; empty if there is none.
    pub default_value: &'static str,
    /// What it does.
    pub description: &'static str,
}

/// The settings of one database with their sources.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Typed values.
    pub settings: Settings,
    /// Whether, and by whom, the database was chosen.
    pub chosen: Chosen,
    entries: BTreeMap<Id, Entry>,
}

impl Resolved {
    /// Whether a database opened by plain path is to be replicated.
    pub fn is_chosen(&self) -> bool {
        self.chosen != Chosen::No
    }

    /// Where a setting's value came from.
    pub fn source(&self, id: Id) -> Source {
        self.entries.get(&id).map_or(Source::Default, |e| e.source.clone())
    }

    /// One row per setting, in the table's order.
    pub fn rows(&self) -> Vec<ConfigRow> {
        let row = |s: &'static Setting| ConfigRow {
            name: s.name,
            value: self.entries.get(&s.id).map_or_else(|| s.default_shown().to_string(), |e| e.shown.clone()),
            source: self.source(s.id).to_string(),
            default_value: s.default_shown(),
            description: s.description,
        };
        TABLE.iter().map(row).collect()
    }
}

/// The directory beside the database that serves as replica when none is named.
pub fn embedded_replica(database: &Path) -> PathBuf {
    beside(database, "-replica")
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// The configuration of a process: TOML file and environment.
#[derive(Debug)]
pub struct Config {
    file: Option<File>,
    env: Layer,
    check: UrlCheck,
}

impl Config {
    /// Reads the file named by `WALRUST_CONFIG`, else `walrust.toml` in the working directory if there is
    /// one, and the environment. `check` looks at each replica URL.
    ///
    /// # Errors
    /// [`crate::base::Kind::Config`] for anything that cannot be understood, naming file, line and key or the
    /// variable; for a missing file that was named; for two present databases with one replica.
    pub fn load(check: UrlCheck) -> Result<Config> {
        Config::load_from(std::env::vars_os(), Path::new("walrust.toml"), check)
    }

    /// [`Config::load`] with another environment and another usual file.
    pub fn load_from(
        env: impl IntoIterator<Item = (OsString, OsString)>,
        usual: &Path,
        check: UrlCheck,
    ) -> Result<Config> {
        let env: Vec<(OsString, OsString)> = env.into_iter().collect();
        let named =
            env.iter().find(|(n, v)| n == "WALRUST_CONFIG" && !v.is_empty()).map(|(_, v)| PathBuf::from(v));
        let text = match &named {
            Some(path) => Some((path.as_path(), file::slurp(path).map_err(|e| e.context("WALRUST_CONFIG"))?)),
            None => match file::slurp(usual) {
                Ok(text) => Some((usual, text)),
                Err(e) if e.is_missing() => None,
                Err(e) => return Err(e),
            },
        };
        Config::from_text(text.as_ref().map(|(p, t)| (t.as_str(), *p)), env, check)
    }

    /// A configuration from the text of a file (with its path) and an environment.
    pub fn from_text(
        text: Option<(&str, &Path)>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        check: UrlCheck,
    ) -> Result<Config> {
        let file = text.map(|(text, path)| file::parse(text, path)).transpose()?;
        let config = Config { file, env: Layer::from_env(env)?, check };
        config.check_templates()?;
        config.check_together()?;
        config.check_present()?;
        Ok(config)
    }

    /// Nothing configured.
    pub fn empty(check: UrlCheck) -> Config {
        Config { file: None, env: Layer::default(), check }
    }

    /// The settings of the database at `path`, opened with `uri` parameters or watched with `sql` options
    /// (I-CONFIG-1), whether or not it is chosen.
    ///
    /// # Errors
    /// [`crate::base::Kind::Config`]: a replica that cannot be read, values that contradict each other.
    pub fn resolve(&self, path: &Path, uri: Option<&Layer>, sql: Option<&Layer>) -> Result<Resolved> {
        let database = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let listed = self.listed(&database);
        let mut entries = BTreeMap::new();
        put(&mut entries, &self.env, |_| true);
        if let Some(file) = &self.file {
            // Above a list of databases, a replica is for those listed; without a list, for all.
            let for_all = listed.is_some() || file.databases.is_empty();
            put(&mut entries, &file.top, |id| id != Id::Replica || for_all);
        }
        for layer in [listed.map(|e| &e.layer), uri, sql].into_iter().flatten() {
            put(&mut entries, layer, |_| true);
        }
        let base = self.file.as_ref().map(|f| f.base.as_path());
        let mut resolved = finish(entries, Some((&database, base)), self.check)?;
        let said = resolved.entries.get(&Id::Replica).map(|e| e.source.clone());
        resolved.chosen = match (said, listed, &self.file) {
            (Some(s @ (Source::Sql | Source::Uri)), _, _) => Chosen::ByReplica(s),
            (_, Some(e), Some(f)) => Chosen::ByEntry(f.source(e.line)),
            (Some(s), _, _) => Chosen::ByReplica(s),
            (None, _, _) => Chosen::No,
        };
        Ok(resolved)
    }

    /// The settings of a database opened by plain path, if file or environment choose it for replication.
    pub fn for_path(&self, path: &Path) -> Result<Option<Resolved>> {
        let resolved = self.resolve(path, None, None)?;
        Ok(resolved.is_chosen().then_some(resolved))
    }

    /// The settings of the process: what a database would have that nothing more is said of.
    pub fn process(&self) -> Result<Resolved> {
        let mut entries = BTreeMap::new();
        put(&mut entries, &self.env, |_| true);
        if let Some(file) = &self.file {
            put(&mut entries, &file.top, |_| true);
        }
        finish(entries, None, self.check)
    }

    /// The databases that are there now and that `[[databases]]` entries mean, with their settings.
    pub fn present(&self) -> Result<Vec<(PathBuf, Resolved)>> {
        let mut found = Vec::new();
        for path in self.present_paths(|_| true) {
            let resolved = self.resolve(&path, None, None)?;
            found.push((path, resolved));
        }
        Ok(found)
    }

    fn listed(&self, database: &Path) -> Option<&file::Entry> {
        let file = self.file.as_ref()?;
        file.databases.iter().find(|e| paths::matches(&e.pattern, &file.base, database))
    }

    fn present_paths(&self, wanted: impl Fn(&file::Entry) -> bool) -> Vec<PathBuf> {
        let Some(file) = &self.file else { return Vec::new() };
        let mut all: Vec<PathBuf> = Vec::new();
        for entry in file.databases.iter().filter(|e| wanted(e)) {
            all.extend(paths::existing(&entry.pattern, &file.base, MOST_FILES));
        }
        all.sort();
        all.dedup();
        all
    }

    /// Two databases that are there now must not share a replica or a spool (I-CONFIG-3). A pattern over a
    /// whole tree is not walked here: it may be a disk; `conflict` over the watched ones still holds.
    fn check_present(&self) -> Result<()> {
        let mut found = Vec::new();
        for path in self.present_paths(|e| !e.pattern.contains("**")) {
            let resolved = self.resolve(&path, None, None)?;
            found.push((path, resolved.settings));
        }
        let replica = |(p, s): &'_ (PathBuf, Settings)| s.replica.clone().map(|r| (p.clone(), r));
        let replicas: Vec<(PathBuf, String)> = found.iter().filter_map(replica).collect();
        paths::conflict(replicas.iter().map(|(p, r)| (p.as_path(), r.as_str())))?;
        let spools = found.iter().filter_map(|(p, s)| s.spool_dir.as_deref().map(|d| (p.as_path(), d)));
        paths::spool_conflict(spools)
    }

    /// What only holds between values holds at the top and in every entry.
    fn check_together(&self) -> Result<()> {
        self.process()?;
        let Some(file) = &self.file else { return Ok(()) };
        for entry in &file.databases {
            let mut entries = BTreeMap::new();
            for layer in [&self.env, &file.top, &entry.layer] {
                put(&mut entries, layer, |id| matches!(id, Id::RetryBase | Id::RetryMax));
            }
            finish(entries, None, self.check)?;
        }
        Ok(())
    }

    /// Every replica and directory must be readable once filled in, even if no database matches yet.
    fn check_templates(&self) -> Result<()> {
        let layers = self
            .file
            .iter()
            .flat_map(|f| std::iter::once(&f.top).chain(f.databases.iter().map(|e| &e.layer)));
        for layer in layers.chain([&self.env]) {
            for (id, name) in [(Id::Replica, "replica"), (Id::SpoolDir, "spool_dir")] {
                let Some(Entry { value: Value::Text(t), source, .. }) = layer.0.get(&id) else { continue };
                let at = |e: Error| e.context(format_args!("{name}")).context(source);
                let filled = paths::expand(t, Path::new("/dir/name.db")).map_err(at)?;
                if id == Id::Replica {
                    (self.check)(&filled).map_err(at)?;
                }
            }
        }
        Ok(())
    }
}

impl File {
    fn source(&self, line: u32) -> Source {
        Source::File { path: Arc::clone(&self.path), line }
    }
}

fn put(entries: &mut BTreeMap<Id, Entry>, layer: &Layer, wanted: impl Fn(Id) -> bool) {
    entries.extend(layer.0.iter().filter(|(id, _)| wanted(**id)).map(|(id, e)| (*id, e.clone())));
}

/// Fills placeholders, adds defaults, and checks what only holds between values. `database` comes with the
/// directory of the TOML file.
fn finish(
    mut entries: BTreeMap<Id, Entry>,
    database: Option<(&Path, Option<&Path>)>,
    check: UrlCheck,
) -> Result<Resolved> {
    if let Some((database, base)) = database {
        for id in [Id::Replica, Id::SpoolDir] {
            let Some(entry) = entries.get_mut(&id) else { continue };
            let Value::Text(template) = &entry.value else { continue };
            let name = if id == Id::Replica { "replica" } else { "spool_dir" };
            let at = |e: Error| e.context(format_args!("{} ({name})", entry.source));
            let mut filled = paths::expand(template, database).map_err(at)?;
            if id == Id::Replica {
                check(&filled).map_err(at)?;
            }
            let relative = !filled.contains("://") && Path::new(&filled).is_relative();
            if let (true, Source::File { .. }, Some(base)) = (relative, &entry.source, base) {
                filled = base.join(filled).to_string_lossy().into_owned();
            }
            entry.shown.clone_from(&filled);
            entry.value = Value::Text(filled);
        }
        entries.entry(Id::SpoolDir).or_insert_with(|| {
            let dir = beside(database, "-walrust").to_string_lossy().into_owned();
            Entry { value: Value::Text(dir.clone()), shown: dir, source: Source::Default }
        });
    }
    let settings = typed(&entries)?;
    if settings.retry.max < settings.retry.base {
        let said = |id| entries.get(&id).map(|e: &Entry| &e.source);
        let at = said(Id::RetryMax).or(said(Id::RetryBase)).unwrap_or(&Source::Default);
        let (base, max) =
            (humantime::format_duration(settings.retry.base), humantime::format_duration(settings.retry.max));
        return Err(Error::config(format!(
            "{at}: retry.max ({max}) must not be shorter than retry.base ({base})"
        )));
    }
    Ok(Resolved { settings, chosen: Chosen::No, entries })
}

/// The value said, else the default.
fn value_of(entries: &BTreeMap<Id, Entry>, setting: &Setting) -> Result<Option<Value>> {
    if let Some(e) = entries.get(&setting.id) {
        return Ok(Some(e.value.clone()));
    }
    let Some(text) = setting.default else { return Ok(None) };
    let read = value::read(setting.kind, &Raw::text(text));
    read.map(|(v, _)| Some(v))
        .map_err(|f| Error::new(crate::base::Kind::Bug, format!("default of {} {}", setting.name, f.message)))
}

fn typed(entries: &BTreeMap<Id, Entry>) -> Result<Settings> {
    let mut all: BTreeMap<Id, Value> = BTreeMap::new();
    for setting in &TABLE {
        if let Some(v) = value_of(entries, setting)? {
            all.insert(setting.id, v);
        }
    }
    let bug = |id: Id| Error::new(crate::base::Kind::Bug, format!("setting {id:?} has no value of its kind"));
    let duration = |id: Id| match all.get(&id) {
        Some(Value::Duration(d)) => Ok(*d),
        _ => Err(bug(id)),
    };
    let count = |id: Id| match all.get(&id) {
        Some(Value::Count(n)) => Ok(*n),
        _ => Err(bug(id)),
    };
    let text = |id: Id| match all.get(&id) {
        Some(Value::Text(t)) if !t.is_empty() => Some(t.clone()),
        _ => None,
    };
    let price = |id: Id| match all.get(&id) {
        Some(Value::Price(p)) => Some(*p),
        _ => None,
    };
    Ok(Settings {
        replica: text(Id::Replica),
        interval: duration(Id::Interval)?,
        durability: match all.get(&Id::Durability) {
            Some(Value::Durability(d)) => *d,
            _ => return Err(bug(Id::Durability)),
        },
        sync_timeout: duration(Id::SyncTimeout)?,
        snapshot_interval: duration(Id::SnapshotInterval)?,
        levels: match all.get(&Id::Levels) {
            Some(Value::Levels(l)) => l.clone(),
            _ => return Err(bug(Id::Levels)),
        },
        pitr_window: duration(Id::PitrWindow)?,
        retention: Retention {
            hourly: count(Id::RetentionHourly)?,
            daily: count(Id::RetentionDaily)?,
            weekly: count(Id::RetentionWeekly)?,
            monthly: count(Id::RetentionMonthly)?,
        },
        validation_interval: duration(Id::ValidationInterval)?,
        spool_dir: text(Id::SpoolDir).map(PathBuf::from),
        spool_limit: match all.get(&Id::SpoolLimit) {
            Some(Value::Bytes(n)) => *n,
            _ => return Err(bug(Id::SpoolLimit)),
        },
        retry: Retry {
            base: duration(Id::RetryBase)?,
            max: duration(Id::RetryMax)?,
            breaker_threshold: count(Id::RetryBreakerThreshold)?,
            breaker_cooldown: duration(Id::RetryBreakerCooldown)?,
        },
        webhooks: match all.get(&Id::Webhooks) {
            Some(Value::Webhooks(w)) => w.clone(),
            _ => Vec::new(),
        },
        metrics_listen: text(Id::MetricsListen),
        price_per_gb: price(Id::PricePerGb),
        price_per_1000_put: price(Id::PricePer1000Put),
    })
}
