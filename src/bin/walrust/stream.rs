//! Commands that open a database to stream it, or keep a copy of a replica.

use crate::args::{Once, OptionArgs, Replicate, Sync, Takeover, Watch};
use crate::failure::{Failure, Outcome};
use crate::host::{self, Hooks};
use crate::show::{self, Form, Object, Table};
use rusqlite::Connection;
use rusqlite::types::Value;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use walrust::base::thread;
use walrust::notify::Notifier;
use walrust::session::engine;

/// Between two looks at how it goes.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two searches for databases that have appeared.
const SEARCH: u32 = 5;
/// How long the end waits for webhooks to be told.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// States that somebody should hear of, when they begin and when they end.
const TROUBLE: [&str; 4] = ["paused", "standby", "fenced", "failed"];

/// A database that is being streamed.
struct Streamed {
    path: PathBuf,
    conn: Connection,
}

impl Streamed {
    /// Starts; the line says what goes where.
    fn start(
        path: &Path,
        url: Option<&str>,
        options: &OptionArgs,
        takeover: Takeover,
    ) -> Result<(Streamed, String), Failure> {
        let options = options.json(takeover)?;
        let conn = host::read_write(path)?;
        let line = conn.query_row("SELECT walrust_watch(?1, ?2)", (url, options), |r| r.get(0))?;
        Ok((Streamed { path: path.to_path_buf(), conn }, line))
    }

    /// Ships everything committed so far.
    fn sync(&self, timeout: f64) -> Result<i64, Failure> {
        Ok(self.conn.query_row("SELECT walrust_sync(?1)", [timeout], |r| r.get(0))?)
    }

    /// Where it goes.
    fn replica(&self) -> Result<String, Failure> {
        Ok(self.conn.query_row("SELECT replica FROM walrust_status", (), |r| r.get(0))?)
    }

    /// Gives the replica back. Webhooks get a moment to hear the end of it.
    fn stop(self) -> Result<(), Failure> {
        let settings = self.conn.path().and_then(|p| engine().settings_of(Path::new(p)));
        let stopped = self.conn.query_row("SELECT walrust_unwatch()", (), |_| Ok(()));
        if let Some(s) = settings {
            Notifier::new(s.settings.webhooks).flush(LAST_WORDS);
        }
        Ok(stopped?)
    }
}

/// SIGTERM and SIGINT.
pub struct Signals {
    runtime: tokio::runtime::Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub fn new() -> Result<Signals, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(inside);
        Ok(Signals { runtime, terminate, interrupt })
    }

    /// Whether one came within the time.
    pub fn within(&mut self, time: Duration) -> bool {
        let Signals { runtime, terminate, interrupt } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                () = tokio::time::sleep(time) => false,
            }
        })
    }

    /// The next one ends the process at once: what was acknowledged is safe, and the rest waits in the spool.
    fn end_at_next(mut self) {
        let wait = move || {
            while !self.within(Duration::from_secs(3600)) {}
            std::process::exit(1);
        };
        // Without it the process ends when it is done.
        drop(thread::spawn("walrust-signals", 512 << 10, wait));
    }
}

/// `snapshot`
pub fn snapshot(a: &Once, form: Form) -> Outcome {
    once(a, form, |s| Ok(s.conn.query_row("SELECT walrust_snapshot()", (), |r| r.get(0))?))
}

/// `sync`
pub fn sync(a: &Sync, form: Form) -> Outcome {
    once(&a.once, form, |s| s.sync(a.timeout))
}

fn once(a: &Once, form: Form, act: impl FnOnce(&Streamed) -> Result<i64, Failure>) -> Outcome {
    host::start(Hooks::Streaming)?;
    let (s, _) = Streamed::start(&a.database, a.url.as_deref(), &a.options, a.takeover)?;
    let replica = s.replica()?;
    let txid = act(&s)?;
    s.stop()?;
    match form {
        Form::Text => show::text(&format!("{replica}: TXID {}", show::txid(txid)))?,
        Form::Json => show::json(&Object(vec![("txid", json!(txid)), ("replica", json!(replica))]))?,
    }
    Ok(0)
}

/// `watch`
pub fn watch(a: &Watch, form: Form) -> Outcome {
    host::start(Hooks::Streaming)?;
    let mut all =
        All { watch: a, form, streamed: Vec::new(), refused: BTreeMap::new(), trouble: BTreeMap::new() };
    match &a.database {
        Some(path) => all.start(path)?,
        None => all.search()?,
    }
    if all.streamed.is_empty() {
        return Err(Failure::new(match all.refused.into_values().next() {
            Some(why) => why,
            None => "walrust.toml names no database that exists; say: walrust watch DB URL".to_string(),
        }));
    }
    let mut signals = Signals::new()?;
    let mut looks = 0;
    while !signals.within(LOOK) {
        looks += 1;
        if a.database.is_none() && looks % SEARCH == 0 {
            all.search()?;
        }
        if all.look()? == Going::Nowhere {
            return Err(Failure::new("every replica belongs to another writer now; ending"));
        }
    }
    signals.end_at_next();
    all.end()
}

#[derive(PartialEq, Eq)]
enum Going {
    On,
    Nowhere,
}

struct All<'a> {
    watch: &'a Watch,
    form: Form,
    streamed: Vec<Streamed>,
    /// Configured databases that could not be streamed, with the reason that was given.
    refused: BTreeMap<PathBuf, String>,
    /// The state last complained of, by database.
    trouble: BTreeMap<String, String>,
}

impl All<'_> {
    fn start(&mut self, path: &Path) -> Result<(), Failure> {
        let (s, line) =
            Streamed::start(path, self.watch.url.as_deref(), &self.watch.options, self.watch.takeover)?;
        match self.form {
            Form::Text => show::text(&line)?,
            Form::Json => {
                let database = json!(path.display().to_string());
                let fields =
                    vec![("database", database), ("replica", json!(s.replica()?)), ("message", json!(line))];
                show::json_line(&Object(fields))?;
            }
        }
        self.streamed.push(s);
        Ok(())
    }

    /// Starts what the configuration names and is not streamed yet. One bad database does not stop the others.
    fn search(&mut self) -> Result<(), Failure> {
        for (path, _) in engine().config()?.present()? {
            if self.streamed.iter().any(|s| s.path == path) {
                continue;
            }
            match self.start(&path) {
                Ok(()) => drop(self.refused.remove(&path)),
                Err(e) => {
                    let why = format!("{}: {e}", path.display());
                    if self.refused.get(&path) != Some(&why) {
                        show::complain(&why);
                    }
                    self.refused.insert(path, why);
                }
            }
        }
        Ok(())
    }

    /// Complains of what went wrong since the last look.
    fn look(&mut self) -> Result<Going, Failure> {
        let Some(first) = self.streamed.first() else { return Ok(Going::On) };
        let rows = states(&first.conn)?;
        let fenced = rows.iter().filter(|(_, state, _)| state == "fenced").count();
        for (database, state, error) in &rows {
            let is_trouble = TROUBLE.contains(&state.as_str());
            let before = self.trouble.get(database);
            match (is_trouble, before) {
                (true, Some(b)) if b == state => {}
                (true, _) => {
                    let why = error.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
                    show::complain(&format!("{database}: {state}{why}"));
                    self.trouble.insert(database.clone(), state.clone());
                }
                (false, Some(_)) => {
                    show::complain(&format!("{database}: {state} again"));
                    self.trouble.remove(database);
                }
                (false, None) => {}
            }
        }
        Ok(if !rows.is_empty() && fenced == rows.len() { Going::Nowhere } else { Going::On })
    }

    /// Ships what is left. Every database gets its chance, whatever happens to the others.
    fn end(self) -> Outcome {
        let mut status = 0;
        for s in self.streamed {
            let path = s.path.display().to_string();
            match s.sync(self.watch.timeout) {
                Ok(txid) => match self.form {
                    Form::Text => {
                        show::text(&format!("{path}: TXID {} is in the replica", show::txid(txid)))?
                    }
                    Form::Json => {
                        show::json_line(&Object(vec![("database", json!(path)), ("txid", json!(txid))]))?
                    }
                },
                Err(e) => {
                    show::complain(&format!("{path}: {e}"));
                    status = 1;
                    continue;
                }
            }
            if let Err(e) = s.stop() {
                show::complain(&format!("{path}: {e}"));
            }
        }
        Ok(status)
    }
}

/// Database, state and newest error of each row of `walrust_status`.
fn states(conn: &Connection) -> Result<Vec<(String, String, Option<String>)>, Failure> {
    let table = Table::query(conn, "SELECT database, state, last_error FROM walrust_status", ())?;
    let text = |v: &Value| match v {
        Value::Text(t) => Some(t.clone()),
        _ => None,
    };
    let row = |r: &Vec<Value>| match r.as_slice() {
        [database, state, error] => Some((text(database)?, text(state)?, text(error))),
        _ => None,
    };
    Ok(table.rows.iter().filter_map(row).collect())
}

/// `replicate`
pub fn replicate(a: &Replicate, form: Form) -> Outcome {
    host::start(Hooks::None)?;
    let conn = host::in_memory()?;
    let path = a.path.to_str().ok_or_else(|| Failure::new(format!("{} is not UTF-8", a.path.display())))?;
    let options = a.interval.as_ref().map(|i| json!({ "interval": i }).to_string());
    let line: String =
        conn.query_row("SELECT walrust_replicate(?1, ?2, ?3)", (&a.url, path, options), |r| r.get(0))?;
    match form {
        Form::Text => show::text(&line)?,
        Form::Json => show::json_line(&Object(vec![("path", json!(path)), ("message", json!(line))]))?,
    }
    let mut signals = Signals::new()?;
    let mut complained = BTreeMap::new();
    while !signals.within(LOOK) {
        for (database, _, error) in states(&conn)? {
            if let Some(e) = &error
                && complained.get(&database) != Some(e)
            {
                show::complain(&format!("{database}: {e}"));
            }
            complained.insert(database, error.unwrap_or_default());
        }
    }
    signals.end_at_next();
    conn.query_row("SELECT walrust_unreplicate(?1)", [path], |_| Ok(()))?;
    Ok(0)
}
