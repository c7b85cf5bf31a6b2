//! `adopt`: the `walrust.toml` for a `litestream.yml` of Litestream 0.3 or 0.5, and a look at the replicas it names.
//!
//! What has a counterpart is written; of each other key it is said what is lost with it; a key that neither version knows is said, too.
//! Secrets are not copied: walrust takes credentials from the environment alone, and the notes name the variables. Nothing is changed,
//! and replicas are only read.

mod look;
mod read;

use crate::args::Adopt;
use crate::failure::{Failure, Outcome};
use crate::show::{self, Form, Object};
use look::Seen;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Value, json};

/// Larger configurations are none.
const LARGEST: usize = 1 << 20;

/// The values of a document as those of JSON, which have the same kinds.
fn value(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Boolean(b)) => json!(b),
        Yaml::Value(Scalar::Integer(n)) => json!(n),
        Yaml::Value(Scalar::FloatingPoint(f)) => json!(f.into_inner()),
        Yaml::Value(Scalar::String(s)) => json!(s.as_ref()),
        Yaml::Representation(s, ..) => json!(s.as_ref()),
        Yaml::Sequence(all) => Value::Array(all.iter().map(value).collect()),
        Yaml::Mapping(all) => {
            let text = |key: &Yaml<'_>| value(key).as_str().map(str::to_string);
            Value::Object(all.iter().filter_map(|(k, v)| Some((text(k)?, value(v)))).collect())
        }
        Yaml::Tagged(_, inner) => value(inner),
        Yaml::Value(Scalar::Null) | Yaml::Alias(_) | Yaml::BadValue => Value::Null,
    }
}

/// A database that Litestream replicates.
#[derive(Debug, Default, PartialEq)]
struct Database {
    /// A path, or a pattern.
    path: String,
    /// `None` where its kind of replica has no counterpart.
    replica: Option<String>,
    /// Further replicas.
    mirrors: Vec<String>,
    /// Keys of the entry in `walrust.toml`, with their values as they are written there.
    settings: Vec<(&'static str, String)>,
}

/// What was made of a configuration.
#[derive(Debug, Default, PartialEq)]
struct Adopted {
    /// Keys at the top of `walrust.toml`.
    settings: Vec<(&'static str, String)>,
    databases: Vec<Database>,
    /// One line for each key that is lost, or to be known.
    notes: Vec<String>,
    /// One line for each thing without which a database would not be replicated.
    lacks: Vec<String>,
}

/// `adopt`
pub fn adopt(a: &Adopt, form: Form) -> Outcome {
    let text = std::fs::read_to_string(&a.file)
        .map_err(|e| Failure::new(format!("cannot read {}: {e}", a.file.display())))?;
    if text.len() > LARGEST {
        return Err(Failure::new(format!(
            "{} has more than {LARGEST} bytes; it is no litestream.yml",
            a.file.display()
        )));
    }
    // (What the parser says may repeat what stands in the file, a secret perhaps; where it is does not.)
    let documents = Yaml::load_from_str(&text).map_err(|e| {
        let at = e.marker().line();
        Failure::new(format!(
            "{}:{at}: it is no YAML that can be read; `litestream databases` says more",
            a.file.display()
        ))
    })?;
    let yaml = documents.first().map_or(Value::Null, value);
    let adopted = read::read(&yaml, &|name| std::env::var(name).ok());
    if adopted.databases.is_empty() {
        return Err(Failure::new(format!("{} names no database: it has no `dbs`", a.file.display())));
    }
    // (Of each, the database and the replica.)
    let seen: Vec<(&str, &str, Seen)> = match a.offline {
        true => Vec::new(),
        false => adopted
            .databases
            .iter()
            .flat_map(|d| {
                d.replica
                    .iter()
                    .chain(&d.mirrors)
                    .map(move |url| (d.path.as_str(), url.as_str(), look::look(url)))
            })
            .collect(),
    };
    let toml = toml(&adopted, &a.file.display().to_string());
    let is_well = adopted.lacks.is_empty() && seen.iter().all(|(.., s)| s.is_well());
    let exit = u8::from(!is_well);
    match form {
        Form::Text => show::text(toml.trim_end())?,
        Form::Json => {
            let databases: Vec<Value> = adopted.databases.iter().map(Database::json).collect();
            let replicas: Vec<Object> = seen
                .iter()
                .map(|(path, url, s)| {
                    Object(vec![
                        ("database", json!(path)),
                        ("replica", json!(url)),
                        ("state", json!(s.word())),
                        ("txid", json!(s.txid())),
                        ("time", json!(s.time())),
                        ("message", json!(s.to_string())),
                    ])
                })
                .collect();
            show::json(&Object(vec![
                ("exit", json!(exit)),
                ("settings", values(&adopted.settings)),
                ("databases", json!(databases)),
                ("notes", json!(adopted.notes)),
                ("lacks", json!(adopted.lacks)),
                ("replicas", json!(replicas)),
                ("toml", json!(toml)),
            ]))?;
        }
    }
    for line in &adopted.lacks {
        show::complain(line);
    }
    for (path, _, s) in &seen {
        show::complain(&format!("{path}: {s}"));
    }
    Ok(exit)
}

impl Database {
    fn json(&self) -> Value {
        json!({
            "path": self.path,
            "replica": self.replica,
            "mirrors": self.mirrors,
            "settings": values(&self.settings),
        })
    }
}

/// Keys with their values: what is written of them in TOML is JSON as well.
fn values(settings: &[(&'static str, String)]) -> Value {
    let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    Value::Object(settings.iter().map(|(key, text)| (key.to_string(), value(text))).collect())
}

fn toml(adopted: &Adopted, from: &str) -> String {
    let mut out = format!("# Made of {} by `walrust adopt`.\n", from.replace(['\n', '\r'], " "));
    for note in &adopted.notes {
        out.push_str(&format!("# * {}\n", note.replace(['\n', '\r'], " ")));
    }
    out.push('\n');
    let lines = |settings: &[(&'static str, String)], out: &mut String| {
        for (key, value) in settings {
            out.push_str(&format!("{key} = {value}\n"));
        }
    };
    lines(&adopted.settings, &mut out);
    for d in &adopted.databases {
        out.push_str(&format!("\n[[databases]]\npath = {}\n", quoted(&d.path)));
        match &d.replica {
            Some(url) => out.push_str(&format!("replica = {}\n", quoted(url))),
            None => out.push_str("# replica = \"\"      # see above: it has none that walrust can write\n"),
        }
        lines(&d.settings, &mut out);
        for url in &d.mirrors {
            out.push_str(&format!("\n[[databases.mirror]]\nreplica = {}\n", quoted(url)));
        }
    }
    out
}

/// A basic string of TOML, which escapes as JSON does.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
