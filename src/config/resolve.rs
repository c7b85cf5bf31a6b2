//! Which word wins: layers of values over each other, and the settings that come out.

use super::file::{self, File};
use super::layer::{Entries, Layer, Said, Source};
use super::paths;
use super::settings::{Settings, typed};
use super::table::{Id, Setting, TABLE};
use super::value::{Durability, Functions, MirrorSettings, Value};
use crate::address::{ReplicaUrl, replica_key};
use crate::base::{Error, Result, beside};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many files one pattern is looked at for when the file is loaded.
const MOST_FILES: usize = 100_000;

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

/// Where replicas lie.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// One, at this URL.
    At(String),
    /// Any number, below this URL.
    Below(String),
}

/// A name that no database has, where a pattern stands for many.
const ANY: &str = "walrust-any-name";

/// Where a replica lies whose URL may have [`ANY`] or a placeholder in it.
fn place(replica: &str) -> Option<Place> {
    let filled = paths::expand(replica, Path::new(&format!("/{ANY}/{ANY}.db"))).ok()?;
    if !filled.contains(ANY) {
        return Some(Place::At(filled));
    }
    let mut url = ReplicaUrl::parse(&filled).ok()?;
    while url.to_string().contains(ANY) {
        url = url.parent()?;
    }
    Some(Place::Below(url.to_string()))
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
    entries: Entries,
}

impl Resolved {
    /// Whether a database opened by plain path is to be replicated.
    pub fn is_chosen(&self) -> bool {
        self.chosen != Chosen::No
    }

    /// The same with what `layer` says over it.
    ///
    /// # Errors
    /// [`crate::base::Kind::Config`] for a value that is not one of its kind.
    pub fn with(&self, layer: &Layer) -> Result<Resolved> {
        let mut entries = self.entries.clone();
        put(&mut entries, layer, |_| true);
        Ok(Resolved { settings: typed(&entries)?, chosen: self.chosen.clone(), entries })
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

/// Where the spool of a database lies unless `spool_dir` says otherwise: `<database file>-walrust/`.
pub fn default_spool(database: &Path) -> PathBuf {
    beside(database, "-walrust")
}

/// The directory of the cache where none is said: where programs keep what they could fetch again
/// (<https://specifications.freedesktop.org/basedir-spec/latest/>).
pub fn default_cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let caches = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(caches.join("walrust"))
}

/// The directory beside the database that serves as replica when none is named.
pub fn embedded_replica(database: &Path) -> PathBuf {
    beside(database, "-replica")
}

/// The configuration of a process: TOML file and environment.
#[derive(Debug)]
pub struct Config {
    file: Option<File>,
    env: Layer,
}

impl Config {
    /// Reads the file named by `WALRUST_CONFIG`, else `walrust.toml` in the working directory if there is
    /// one, and the environment.
    ///
    /// # Errors
    /// [`crate::base::Kind::Config`] for anything that cannot be understood, naming file, line and key or the
    /// variable; for a missing file that was named; for two present databases with one replica.
    pub fn load() -> Result<Config> {
        Config::load_from(std::env::vars_os(), Path::new("walrust.toml"))
    }

    /// [`Config::load`] with another environment and another usual file. Errors as that one.
    pub fn load_from(env: impl IntoIterator<Item = (OsString, OsString)>, usual: &Path) -> Result<Config> {
        let env: Vec<(OsString, OsString)> = env.into_iter().collect();
        let named = env
            .iter()
            .find(|(n, v)| n == "WALRUST_CONFIG" && !v.to_string_lossy().trim().is_empty())
            .map(|(_, v)| PathBuf::from(v));
        let text = match &named {
            Some(path) => Some((path.as_path(), file::slurp(path).map_err(|e| e.context("WALRUST_CONFIG"))?)),
            None => match file::slurp(usual) {
                Ok(text) => Some((usual, text)),
                Err(e) if e.is_missing() => None,
                Err(e) => return Err(e),
            },
        };
        Config::from_text(text.as_ref().map(|(p, t)| (t.as_str(), *p)), env)
    }

    /// Which SQL functions there are. A configuration that cannot be read and has the word in it may forbid some, so it does.
    pub fn functions() -> Functions {
        let said = Config::load().and_then(|c| Ok(c.process()?.settings.functions));
        said.unwrap_or_else(|e| {
            let named = std::env::var_os("WALRUST_CONFIG").filter(|v| !v.is_empty());
            let path = named.map_or_else(|| PathBuf::from("walrust.toml"), PathBuf::from);
            let in_file = file::slurp(&path).is_ok_and(|text| text.contains("functions"));
            let in_env = std::env::var_os("WALRUST_FUNCTIONS").is_some_and(|v| !v.is_empty() && v != "all");
            if !in_file && !in_env {
                return Functions::All;
            }
            log::warn!("walrust: {e}; until that is mended there are only the functions that read");
            Functions::Read
        })
    }

    /// A configuration from the text of a file (with its path) and an environment. Errors as [`Config::load`].
    pub fn from_text(
        text: Option<(&str, &Path)>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config> {
        let file = text.map(|(text, path)| file::parse(text, path)).transpose()?;
        let config = Config { file, env: Layer::from_env(env)? };
        config.check_templates()?;
        config.check_together()?;
        config.check_present()?;
        Ok(config)
    }

    /// Nothing configured.
    pub fn empty() -> Config {
        Config { file: None, env: Layer::default() }
    }

    /// The settings of the database at `path`, opened with `uri` parameters or watched with `sql` options
    /// (I-CONFIG-1), whether or not it is chosen.
    ///
    /// # Errors
    /// [`crate::base::Kind::Config`]: a replica that cannot be read, values that contradict each other.
    pub fn resolve(&self, path: &Path, uri: Option<&Layer>, sql: Option<&Layer>) -> Result<Resolved> {
        let database = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let listed = self.listed(&database);
        let mut entries = Entries::new();
        put(&mut entries, &self.env, |_| true);
        if let Some(file) = &self.file {
            // Above a list of databases, a replica is for those listed; without a list, for all.
            let for_all = listed.is_some() || file.databases.is_empty();
            put(&mut entries, &file.top, |id| !matches!(id, Id::Replica | Id::Mirrors) || for_all);
        }
        for layer in [listed.map(|e| &e.layer), uri, sql].into_iter().flatten() {
            put(&mut entries, layer, |_| true);
        }
        let base = self.file.as_ref().map(|f| f.base.as_path());
        let mut resolved = finish(entries, Some((&database, base)))?;
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
    /// Errors as [`Config::resolve`].
    pub fn for_path(&self, path: &Path) -> Result<Option<Resolved>> {
        let resolved = self.resolve(path, None, None)?;
        Ok(resolved.is_chosen().then_some(resolved))
    }

    /// The settings of the process: what a database would have that nothing more is said of. Errors as
    /// [`Config::resolve`].
    pub fn process(&self) -> Result<Resolved> {
        let mut entries = Entries::new();
        put(&mut entries, &self.env, |_| true);
        if let Some(file) = &self.file {
            put(&mut entries, &file.top, |_| true);
        }
        finish(entries, None)
    }

    /// The databases that are there now and that `[[databases]]` entries mean, with their settings.
    /// Errors as [`Config::resolve`].
    pub fn present(&self) -> Result<Vec<(PathBuf, Resolved)>> {
        let mut found = Vec::new();
        for path in self.present_paths(|_| true) {
            let resolved = self.resolve(&path, None, None)?;
            found.push((path, resolved));
        }
        Ok(found)
    }

    /// Where the replicas lie that the configuration names, whether or not their databases are on this machine: one for each entry. An entry
    /// that names no replica has those beside its databases. Errors as [`Config::resolve`].
    pub fn places(&self) -> Result<Vec<Place>> {
        let Some(file) = self.file.as_ref().filter(|f| !f.databases.is_empty()) else {
            return Ok(self.process()?.settings.replica.iter().filter_map(|r| place(r)).collect());
        };
        let mut found = Vec::new();
        for entry in &file.databases {
            let mut entries = Entries::new();
            put(&mut entries, &self.env, |id| id != Id::Replica);
            put(&mut entries, &file.top, |_| true);
            put(&mut entries, &entry.layer, |_| true);
            let is_pattern = entry.pattern.contains(['*', '?', '[']);
            let standing_in = file.base.join(ANY).join(format!("{ANY}.db"));
            let database = if is_pattern { standing_in } else { file.base.join(&entry.pattern) };
            match finish(entries, Some((&database, Some(&file.base))))?.settings.replica {
                Some(replica) => found.extend(place(&replica)),
                None => {
                    let present = paths::existing(&entry.pattern, &file.base, MOST_FILES);
                    let beside = present.iter().map(|p| embedded_replica(p).to_string_lossy().into_owned());
                    found.extend(beside.map(Place::At));
                }
            }
        }
        found.sort();
        found.dedup();
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
    /// whole tree is not walked here: it may be a disk. Whatever is not found here is when the second one is watched.
    fn check_present(&self) -> Result<()> {
        let mut found = Vec::new();
        for path in self.present_paths(|e| !e.pattern.contains("**")) {
            let resolved = self.resolve(&path, None, None)?;
            found.push((path, resolved.settings));
        }
        let of = |(p, s): &'_ (PathBuf, Settings)| {
            let urls = s.replica.iter().chain(s.mirrors.iter().map(|m| &m.replica));
            urls.map(|r| (p.clone(), r.clone())).collect::<Vec<_>>()
        };
        let replicas: Vec<(PathBuf, String)> = found.iter().flat_map(of).collect();
        paths::conflict(replicas.iter().map(|(p, r)| (p.as_path(), r.as_str())))?;
        let spools = found.iter().filter_map(|(p, s)| s.spool_dir.as_deref().map(|d| (p.as_path(), d)));
        paths::spool_conflict(spools)
    }

    /// What only holds between values holds at the top and in every entry.
    fn check_together(&self) -> Result<()> {
        self.process()?;
        let Some(file) = &self.file else { return Ok(()) };
        for entry in &file.databases {
            let mut entries = Entries::new();
            for layer in [&self.env, &file.top, &entry.layer] {
                put(&mut entries, layer, |id| {
                    matches!(id, Id::RetryBase | Id::RetryMax | Id::AppendOnly | Id::Durability)
                });
            }
            finish(entries, None)?;
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
            if let Some(Said { value: Value::Mirrors(all), source, .. }) = layer.0.get(&Id::Mirrors) {
                for MirrorSettings { replica: url, .. } in all {
                    let at = |e: Error| e.context("mirrors").context(source);
                    check(&paths::expand(url, Path::new("/dir/name.db")).map_err(at)?).map_err(at)?;
                }
            }
            for (id, name) in [(Id::Replica, "replica"), (Id::SpoolDir, "spool_dir")] {
                let Some(Said { value: Value::Text(t), source, .. }) = layer.0.get(&id) else { continue };
                let at = |e: Error| e.context(format_args!("{name}")).context(source);
                let filled = paths::expand(t, Path::new("/dir/name.db")).map_err(at)?;
                if id == Id::Replica {
                    check(&filled).map_err(at)?;
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

fn put(entries: &mut Entries, layer: &Layer, wanted: impl Fn(Id) -> bool) {
    entries.extend(layer.0.iter().filter(|(id, _)| wanted(**id)).map(|(id, e)| (*id, e.clone())));
}

/// Fills placeholders, adds defaults, and checks what only holds between values. `database` comes with the
/// directory of the TOML file.
fn finish(mut entries: Entries, database: Option<(&Path, Option<&Path>)>) -> Result<Resolved> {
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
        fill_mirrors(&mut entries, database, base)?;
        entries.entry(Id::SpoolDir).or_insert_with(|| {
            let dir = default_spool(database).to_string_lossy().into_owned();
            Said { value: Value::Text(dir.clone()), shown: dir, source: Source::Default }
        });
    }
    let settings = typed(&entries)?;
    if settings.retry.max < settings.retry.base {
        let said = |id| entries.get(&id).map(|e: &Said| &e.source);
        let at = said(Id::RetryMax).or(said(Id::RetryBase)).unwrap_or(&Source::Default);
        let (base, max) =
            (humantime::format_duration(settings.retry.base), humantime::format_duration(settings.retry.max));
        return Err(Error::config(format!(
            "{at}: retry.max ({max}) must not be shorter than retry.base ({base})"
        )));
    }
    if settings.append_only && settings.durability == Durability::Sync {
        let said = |id| entries.get(&id).map(|e: &Said| &e.source);
        let at = said(Id::AppendOnly).or(said(Id::Durability)).unwrap_or(&Source::Default);
        return Err(Error::config(format!(
            "{at}: append_only does not go with durability \"sync\": a COMMIT that is refused may have to be taken back from the replica; \
             choose one of the two"
        )));
    }
    let encrypts = |keys: &Vec<String>| !keys.is_empty();
    if settings.append_only
        && (encrypts(&settings.encrypt)
            || settings.mirrors.iter().any(|m| m.encrypt.as_ref().is_some_and(encrypts)))
    {
        let said = |id| entries.get(&id).map(|e: &Said| &e.source);
        let at = said(Id::AppendOnly).or(said(Id::Encrypt)).unwrap_or(&Source::Default);
        return Err(Error::config(format!(
            "{at}: append_only does not go with encrypt: the janitor would have to read what it vouches for; choose one of the two"
        )));
    }
    Ok(Resolved { settings, chosen: Chosen::No, entries })
}

/// Fills the placeholders of mirrors. Errors for one that is the replica, or named twice.
fn fill_mirrors(entries: &mut Entries, database: &Path, base: Option<&Path>) -> Result<()> {
    let key_of = |e: &Said| if let Value::Text(t) = &e.value { Some(replica_key(t)) } else { None };
    let replica = entries.get(&Id::Replica).and_then(key_of);
    let Some(entry) = entries.get_mut(&Id::Mirrors) else { return Ok(()) };
    let Value::Mirrors(templates) = &entry.value else { return Ok(()) };
    let mut seen: Vec<String> = replica.into_iter().collect();
    let mut all = Vec::new();
    for template in templates {
        let at = |e: Error| e.context(format_args!("{} (mirrors)", entry.source));
        let mut filled = paths::expand(&template.replica, database).map_err(at)?;
        check(&filled).map_err(at)?;
        let relative = !filled.contains("://") && Path::new(&filled).is_relative();
        if let (true, Source::File { .. }, Some(base)) = (relative, &entry.source, base) {
            filled = base.join(filled).to_string_lossy().into_owned();
        }
        let key = replica_key(&filled);
        if seen.contains(&key) {
            let why = format!("{filled} is the replica already, or named twice; a mirror lies elsewhere");
            return Err(at(Error::config(why)));
        }
        seen.push(key);
        all.push(MirrorSettings { replica: filled, ..template.clone() });
    }
    entry.shown = all.iter().map(MirrorSettings::shown).collect::<Vec<_>>().join(",");
    entry.value = Value::Mirrors(all);
    Ok(())
}

/// The grammar of the URL. Opens nothing.
fn check(url: &str) -> Result<()> {
    ReplicaUrl::parse(url).map(drop)
}
