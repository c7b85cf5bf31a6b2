//! Commands that look at a replica, or write what they got from one, and end. None touches a database (I-CLI-3).

use crate::args::{Compact, Diff, Drill, Explain, Label, Mode, Query, Rekey, Restore, Status, Verify};
use crate::failure::{Failure, Outcome};
use crate::show::{self, Form, Object, Table};
use crate::{host, outside, progress, series};
use rusqlite::{Connection, Params};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use walrust::notify::{Answer, Notifier};
use walrust::replica::{encrypted, place, target};
use walrust::session::engine;
use walrust::store::{ReplicaUrl, Store, block_on};

/// A connection whose `main` is the database, if one was named, and the URL, if that was.
struct Asked {
    conn: Connection,
    url: Option<String>,
}

/// An existing file is a database, anything else a URL (a directory is one, too).
fn ask(target: &str) -> Result<Asked, Failure> {
    let path = PathBuf::from(target);
    host::start(host::Hooks::None)?;
    if !target.contains("://") && path.is_file() {
        return Ok(Asked { conn: host::read_only(&path)?, url: None });
    }
    Ok(Asked { conn: host::in_memory()?, url: Some(target.to_string()) })
}

/// An error where a path leads nowhere: that a backup is lost is not to be said of a misspelt one.
fn refuse_typo(target: &str) -> Result<(), Failure> {
    if target.contains("://") || Path::new(target).exists() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{target}: no such file or directory; give a replica URL, its directory, or the database"
    )))
}

/// A connection whose `main` is the database, if there is one.
fn on(database: Option<&Path>) -> Result<Connection, Failure> {
    host::start(host::Hooks::None)?;
    match database {
        Some(path) => host::read_only(path),
        None => host::in_memory(),
    }
}

fn scalar<T: rusqlite::types::FromSql>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
) -> Result<T, Failure> {
    Ok(conn.query_row(sql, params, |r| r.get(0))?)
}

/// The document that a function gave with the option `json`.
pub fn document(text: &str) -> Result<serde_json::Value, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::new(format!("the answer is no JSON: {e}")))
}

/// That document, and the exit status in it.
fn answer(mut document: serde_json::Value, exit: u8) -> Outcome {
    if let Some(fields) = document.as_object_mut() {
        fields.insert("exit".into(), json!(exit));
    }
    show::json(&document)?;
    Ok(exit)
}

fn report(text: &str, exit: u8) -> Outcome {
    show::text(text)?;
    Ok(exit)
}

/// `verify --json`
#[derive(Serialize)]
struct Judgement<'a> {
    exit: u8,
    findings: Vec<Object<'a>>,
}

/// `verify`: the report, or its findings in JSON; both say the same.
pub fn verify(a: &Verify, form: Form) -> Outcome {
    refuse_typo(&a.target)?;
    let Asked { conn, url } = ask(&a.target)?;
    let shown = matches!(a.mode, Mode::Deep).then(|| progress::spinner("reading the whole replica"));
    let params = (url, a.mode.as_str());
    match form {
        Form::Text => {
            let text: String = scalar(&conn, "SELECT walrust_verify(?1, ?2)", params)?;
            drop(shown);
            let exit = exit_of_report(&text).ok_or_else(|| Failure::new("the report names no exit code"))?;
            report(&text, exit)
        }
        Form::Json => {
            let found = Table::query(&conn, "SELECT * FROM walrust_verify(?1, ?2)", params)?;
            drop(shown);
            let exit = exit_of_findings(&found);
            show::json(&Judgement { exit, findings: found.objects() })?;
            Ok(exit)
        }
    }
}

/// `drill`
pub fn drill(a: &Drill, form: Form) -> Outcome {
    refuse_typo(&a.target)?;
    let Asked { conn, url } = ask(&a.target)?;
    let shown = progress::spinner("restoring for a test");
    let text: String = scalar(&conn, "SELECT walrust_drill(?1, ?2)", (url, a.options(form)))?;
    drop(shown);
    if form == Form::Json {
        let said = document(&text)?;
        let exit = u8::from(said.get("result").and_then(|r| r.as_str()) != Some("passed"));
        return answer(said, exit);
    }
    report(&text, u8::from(text.lines().next_back() != Some("Result: passed")))
}

/// The report ends in "Exit code: 1 (issues found)".
fn exit_of_report(text: &str) -> Option<u8> {
    let said = text.lines().rev().find_map(|l| l.strip_prefix("Exit code: "))?;
    said.split_whitespace().next()?.parse().ok().filter(|code| *code <= 2)
}

/// The worst finding; a verification that found nothing at all, not even that all is well, is not good.
pub fn exit_of_findings(found: &Table) -> u8 {
    let severities = found.column("severity").map(|v| match v {
        rusqlite::types::Value::Text(t) if t == "ok" => 0,
        rusqlite::types::Value::Text(t) if t == "warning" => 1,
        _ => 2,
    });
    severities.max().unwrap_or(2)
}

/// `explain`
pub fn explain(a: &Explain, form: Form) -> Outcome {
    let conn = on(a.database.as_deref())?;
    let options = a.options.with(&[("json", form == Form::Json)])?;
    let text: String = scalar(&conn, "SELECT walrust_explain(?1)", (options,))?;
    match form {
        Form::Json => answer(document(&text)?, 0),
        Form::Text => report(&text, 0),
    }
}

/// `list`
pub fn list(target: &str, form: Form) -> Outcome {
    let Asked { conn, url } = ask(target)?;
    let url = match url {
        Some(url) => url,
        None => walrust::sql::replica_of(Path::new(target))?,
    };
    let found = Table::query(&conn, "SELECT * FROM walrust_list(?1)", (&url,))?;
    if found.rows.is_empty() && form == Form::Text {
        show::complain(&format!("no replica lies at {url} or below it"));
        return Ok(0);
    }
    found.print_only(form, &["name", "snapshots", "files", "bytes", "max_txid", "last_time"])?;
    Ok(0)
}

/// `points`
pub fn points(target: &str, form: Form) -> Outcome {
    let Asked { conn, url } = ask(target)?;
    let found = Table::query(&conn, "SELECT * FROM walrust_points(?1)", (url,))?;
    if found.rows.is_empty() {
        return Err(Failure::new(format!("no replica at {target}: nothing there can be restored")));
    }
    found.print(form)?;
    Ok(0)
}

/// `label`
pub fn label(a: &Label, form: Form) -> Outcome {
    let conn = on(None)?;
    let txid: Option<i64> =
        scalar(&conn, "SELECT walrust_label(?1, ?2, ?3, ?4)", (&a.name, !a.drop, &a.target, &a.point))?;
    match form {
        Form::Text => {
            let what = if a.drop { "dropped" } else { "labelled" };
            let txid = txid.map_or_else(
                || "a TXID that cannot be read".to_string(),
                |t| format!("TXID {}", show::txid(t)),
            );
            show::text(&format!("{}: {what}, {txid}", a.name))?;
        }
        Form::Json => show::json(&Object(vec![("label", json!(a.name)), ("txid", json!(txid))]))?,
    }
    Ok(0)
}

/// `diff`
pub fn diff(a: &Diff, form: Form) -> Outcome {
    let Asked { conn, url } = ask(&a.target)?;
    Table::query(&conn, "SELECT * FROM walrust_changes(?1, ?2, ?3)", (url, &a.from, &a.to))?.print(form)?;
    Ok(0)
}

/// `query`
pub fn query(a: &Query, form: Form) -> Outcome {
    let conn = on(None)?;
    let name: String = scalar(&conn, "SELECT walrust_url(?1, ?2)", (&a.url, &a.at))?;
    let replica = host::replica(&name)?;
    let found = Table::query(&replica, &a.sql, ());
    let found =
        found.map_err(|e| match scalar::<Option<String>>(&conn, "SELECT walrust_last_error()", ()) {
            Ok(Some(why)) => Failure::new(why),
            _ => e,
        })?;
    found.print(form)?;
    Ok(0)
}

/// `files`
pub fn files(target: &str, form: Form) -> Outcome {
    let Asked { conn, url } = ask(target)?;
    let found = Table::query(&conn, "SELECT * FROM walrust_files(?1)", (url,))?;
    if found.rows.is_empty() {
        return Err(Failure::new(format!("no replica at {target}: no LTX file lies there")));
    }
    found.print_only(form, &["level", "min_txid", "max_txid", "bytes", "pages", "time"])?;
    Ok(0)
}

/// `compact`
pub fn compact(a: &Compact, form: Form) -> Outcome {
    told_by("walrust_compact", &a.target, a.options(form), form)
}

/// `rekey`
pub fn rekey(a: &Rekey, form: Form) -> Outcome {
    told_by("walrust_rekey", &a.target, a.options(form), form)
}

/// Shows what a function tells that takes a replica and options, and gives a text, or a document with the option `json`.
fn told_by(function: &str, target: &str, options: String, form: Form) -> Outcome {
    let Asked { conn, url } = ask(target)?;
    let text: String = scalar(&conn, &format!("SELECT {function}(?1, ?2)"), (url, options))?;
    match form {
        Form::Json => answer(document(&text)?, 0),
        Form::Text => report(&text, 0),
    }
}

/// `restore`
pub fn restore(a: &Restore, form: Form) -> Outcome {
    let skipped = |why: String| {
        match form {
            Form::Text => show::text(&why)?,
            Form::Json => show::json(&Object(vec![("txid", json!(null)), ("skipped", json!(why))]))?,
        }
        Ok(0)
    };
    if a.if_db_not_exists && std::fs::symlink_metadata(&a.path).is_ok() && !target::is_placeholder(&a.path) {
        return skipped(format!("{} exists; nothing restored", a.path.display()));
    }
    if a.if_replica_exists && !holds_anything(&a.url)? {
        return skipped(format!("the place {} holds no replica; nothing restored", a.url));
    }
    let Some(path) = a.path.to_str() else {
        return Err(Failure::new(format!("{} is not UTF-8; name another path", a.path.display())));
    };
    let conn = on(None)?;
    if a.dry_run {
        let text: String =
            scalar(&conn, "SELECT walrust_restore(?1, ?2, ?3, ?4)", (&a.url, path, &a.point, a.options()))?;
        return rehearsal(&text, form);
    }
    walrust::sql::on_restore_note(show::complain);
    let shown = progress::restore();
    let done: Result<i64, Failure> =
        scalar(&conn, "SELECT walrust_restore(?1, ?2, ?3, ?4)", (&a.url, path, &a.point, a.options()));
    drop(shown);
    let txid = done?;
    let note = encrypted::is_encrypted(&a.path)?.then_some("encrypted: structure not checked");
    match form {
        Form::Text => {
            let note = note.map_or_else(String::new, |n| format!(" ({n})"));
            show::text(&format!("{path}: TXID {}{note}", show::txid(txid)))?;
        }
        Form::Json => {
            let mut said = vec![("txid", json!(txid)), ("path", json!(path))];
            said.extend(note.map(|n| ("note", json!(n))));
            show::json(&Object(said))?;
        }
    }
    Ok(0)
}

/// `restore --dry-run`
fn rehearsal(text: &str, form: Form) -> Outcome {
    match form {
        Form::Json => show::json(&document(text)?)?,
        Form::Text => {
            let r = Rehearsed::of(text)?;
            for f in &r.files {
                show::text(&format!("{:>9}  {}", show::bytes(f.bytes), f.key))?;
            }
            show::text(&format!("{}: {} (dry run: nothing was written)\n{}", r.path, r.what(), r.cost()))?;
        }
    }
    Ok(0)
}

/// What `dry_run` answers.
#[derive(serde::Deserialize)]
pub struct Rehearsed {
    path: String,
    txid: i64,
    time: String,
    files: Vec<WouldRead>,
    bytes: u64,
    requests: u64,
    at_most: bool,
    database_bytes: u64,
    estimated_seconds: f64,
}

impl Rehearsed {
    /// From that answer.
    pub fn of(text: &str) -> Result<Rehearsed, Failure> {
        serde_json::from_str(text).map_err(|e| Failure::new(format!("the answer is no JSON: {e}")))
    }

    fn what(&self) -> String {
        format!("TXID {} of {}, {}", show::txid(self.txid), self.time, show::bytes(self.database_bytes))
    }

    fn cost(&self) -> String {
        format!(
            "reads {}{} in {} and {}, about {}",
            if self.at_most { "at most " } else { "" },
            show::bytes(self.bytes),
            show::count(self.files.len() as u64, "file"),
            show::count(self.requests, "request"),
            show::span(self.estimated_seconds),
        )
    }

    /// For a list of many.
    pub fn in_a_line(&self) -> String {
        format!("{}; {}", self.what(), self.cost())
    }
}

#[derive(serde::Deserialize)]
struct WouldRead {
    key: String,
    bytes: u64,
}

/// Whether there is a replica. A bucket that is not there is an error, not an absent replica, and so is a place that holds something
/// else (I-PLACE-1): whoever is told that there is none begins empty.
fn holds_anything(url: &str) -> Result<bool, Failure> {
    let store = Store::open(&ReplicaUrl::parse(url)?)?;
    let found = block_on(async move { place::find(&store).await })??;
    Ok(!found.inventory.is_empty())
}

/// `config`
pub fn config(database: Option<&Path>, form: Form) -> Outcome {
    let found = Table::query(&on(database)?, "SELECT * FROM walrust_config", ())?;
    found.print_only(form, &["name", "value", "source"])?;
    Ok(0)
}

/// `metrics`
pub fn metrics(form: Form) -> Outcome {
    let text: String = scalar(&on(None)?, "SELECT walrust_metrics()", ())?;
    match form {
        Form::Json => show::json(&series::of(&text))?,
        Form::Text => show::text(text.trim_end())?,
    }
    Ok(0)
}

/// `notify-test`
pub fn notify_test(database: Option<&Path>, form: Form) -> Outcome {
    let conn = on(database)?;
    if form == Form::Text {
        let text: String = scalar(&conn, "SELECT walrust_notify_test()", ())?;
        return report(&text, 0);
    }
    let settings = match database {
        Some(path) => {
            let path = std::path::absolute(path)?;
            engine().resolve(&path, None)?.settings
        }
        None => engine().config()?.process()?.settings,
    };
    let hooks = settings.webhooks;
    let tried = if hooks.is_empty() { Vec::new() } else { Notifier::new(hooks).test() };
    show::json(&tried.iter().map(Answer::json).collect::<Vec<_>>())?;
    Ok(0)
}

/// `version`
pub fn version(form: Form) -> Outcome {
    let text: String = scalar(&on(None)?, "SELECT walrust_version()", ())?;
    match form {
        Form::Text => show::text(&text)?,
        Form::Json => show::json(&Object(vec![("version", json!(text))]))?,
    }
    Ok(0)
}

/// `status`: this process streams nothing; what others do they are asked, or it is read from their spools.
pub fn status(a: &Status, form: Form) -> Outcome {
    if a.max_lag.is_some_and(|s| !(0.0..=1e9).contains(&s)) {
        return Err(Failure::new("--max-lag takes seconds, 0 or more, as in --max-lag 60"));
    }
    host::start(host::Hooks::None)?;
    let found = outside::status(&a.databases)?;
    match form {
        Form::Json => show::json(&found.table.objects())?,
        Form::Text if found.table.rows.is_empty() => {}
        Form::Text => show::text(&found.table.blocks())?,
    }
    let mut wrong = found.without.clone();
    wrong.extend(found.table.rows.iter().filter_map(|r| outside::complaint(r, a.max_lag)));
    for line in &wrong {
        show::complain(line);
    }
    Ok(u8::from(!wrong.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::types::Value;

    #[test]
    fn the_exit_status_is_the_reports() {
        assert_eq!(exit_of_report("Exit code: 9\nx\nExit code: 1 (issues found)"), Some(1));
        assert_eq!(exit_of_report("Exit code: 0 (all good)\n"), Some(0));
        assert_eq!(exit_of_report("Exit code: 7"), None);
        assert_eq!(exit_of_report("all good"), None);
    }

    #[test]
    fn the_exit_status_is_the_worst_finding() {
        let found = |all: &[&str]| Table {
            columns: vec!["severity".into()],
            rows: all.iter().map(|s| vec![Value::Text(s.to_string())]).collect(),
        };
        assert_eq!(exit_of_findings(&found(&["ok", "ok"])), 0);
        assert_eq!(exit_of_findings(&found(&["ok", "warning", "ok"])), 1);
        assert_eq!(exit_of_findings(&found(&["warning", "critical"])), 2);
        assert_eq!(exit_of_findings(&found(&["a word to come"])), 2);
        assert_eq!(exit_of_findings(&found(&[])), 2);
    }
}
