//! From the keys of a `litestream.yml` to those of a `walrust.toml`. Pure.
//!
//! The keys are those of Litestream 0.3.13 and 0.5 (<https://litestream.io/reference/config/>).

use super::{Adopted, Database, quoted};
use serde_json::{Map, Value};
use walrust::address::{ReplicaUrl, encode_part};

/// Looks a variable of the environment up.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where a key stands, and what becomes of it.
const LOST: [(&str, &str); 43] = [
    ("mcp-addr", "walrust has no MCP server"),
    ("exec", "walrust runs inside the program, or beside it as `walrust watch`; it starts none"),
    ("socket", "there is no control socket: SQL functions and the command line ask the process that streams"),
    ("l0-retention", "pitr_window says how long each upload stays"),
    ("l0-retention-check-interval", "retention follows each snapshot"),
    ("verify-compaction", "merged files are always checked before they leave"),
    ("shutdown-sync-timeout", "walrust ships what is pending at the end by itself"),
    ("shutdown-sync-interval", "walrust ships what is pending at the end by itself"),
    ("logging", "messages go to SQLite's log, or to standard error"),
    ("monitor-interval", "nothing is polled"),
    ("checkpoint-interval", "checkpoints are the program's own"),
    ("min-checkpoint-page-count", "checkpoints are the program's own"),
    ("max-checkpoint-page-count", "checkpoints are the program's own"),
    ("truncate-page-n", "checkpoints are the program's own"),
    ("busy-timeout", "walrust takes no lock that the program would wait for"),
    ("max-sync-wal-bytes", "an upload holds what was committed since the one before"),
    ("max-sync-ltx-files", "uploads go one after the other, and small files are merged"),
    ("meta-path", "what waits for the replica lies in spool_dir, by default beside the database"),
    ("meta-dir", "what waits for the replica lies in spool_dir, by default beside the database"),
    (
        "restore-if-db-not-exists",
        "`walrust restore --if-replica-exists --if-db-not-exists URL DB` in the start script does it",
    ),
    ("auto-recover", "a gap is healed by a snapshot, always"),
    ("watch", "databases that appear later are always taken up"),
    ("name", "a replica has no name but its URL"),
    ("retention-check-interval", "retention follows each snapshot"),
    ("sign-payload", "walrust sends SHA-256 of each upload; `checksum` in the URL says otherwise"),
    ("require-content-md5", "walrust sends SHA-256 of each upload; `checksum` in the URL says otherwise"),
    ("skip-verify", "certificates are always checked; SSL_CERT_FILE names others"),
    ("storage-class", "[storage_class] sets one for single uploads, merged files and snapshots each"),
    ("part-size", "parts are as large as the file and the store demand"),
    ("concurrency", "parts are sent as many at once as is of use"),
    ("sse-customer-algorithm", "sse = \"sse-c\" in walrust.toml; AES-256 is the only one there is"),
    ("sse-customer-key", "not copied: sse = \"sse-c\", with the key in AWS_SSE_CUSTOMER_KEY_BASE64"),
    ("sse-customer-key-path", "not copied: sse = \"sse-c\", with the key in AWS_SSE_CUSTOMER_KEY_BASE64"),
    ("sse-kms-key-id", "sse = \"aws:kms\" with sse_kms_key in walrust.toml says it"),
    ("age", "encrypt in walrust.toml takes public keys of age, for a replica from its first file on"),
    ("host", "that kind of replica has no counterpart"),
    ("user", "that kind of replica has no counterpart"),
    ("password", "that kind of replica has no counterpart"),
    ("key-path", "that kind of replica has no counterpart"),
    ("host-key", "that kind of replica has no counterpart"),
    ("concurrent-writes", "that kind of replica has no counterpart"),
    ("recursive", "the pattern is written with **"),
    ("pattern", "it is part of path"),
];

/// Where secrets stand, and the variables that take their place.
const SECRETS: [(&str, &str); 6] = [
    ("access-key-id", "AWS_ACCESS_KEY_ID"),
    ("secret-access-key", "AWS_SECRET_ACCESS_KEY"),
    ("session-token", "AWS_SESSION_TOKEN"),
    ("account-name", "AZURE_STORAGE_ACCOUNT_NAME"),
    ("account-key", "AZURE_STORAGE_ACCOUNT_KEY"),
    ("sas-token", "AZURE_STORAGE_SAS_TOKEN"),
];

/// What is known so far.
struct Reading<'a> {
    env: Variables<'a>,
    to: Adopted,
}

pub(super) fn read(yaml: &Value, env: Variables<'_>) -> Adopted {
    let mut r = Reading { env, to: Adopted::default() };
    let Some(top) = yaml.as_object() else { return r.to };
    let mut settings = Vec::new();
    for (key, value) in top {
        match (key.as_str(), value) {
            ("dbs", Value::Array(dbs)) => {
                dbs.iter().filter_map(Value::as_object).for_each(|db| r.database(db))
            }
            ("addr", v) => {
                settings.extend(r.text("addr", v).map(|a| ("metrics_listen", quoted(&listen(&a)))))
            }
            ("levels", Value::Array(levels)) => settings.extend(r.levels(levels)),
            ("snapshot", Value::Object(s)) => settings.extend(r.snapshot("snapshot", s)),
            ("retention", Value::Object(s)) => settings.extend(r.retention(s)),
            ("validation", Value::Object(s)) => {
                settings.extend(r.only("validation", s, "interval", "validation_interval"))
            }
            ("heartbeat-url", v) => settings.extend(r.text(key, v).map(|u| ("heartbeat_url", quoted(&u)))),
            ("heartbeat-interval", v) => {
                settings.extend(r.text(key, v).map(|u| ("heartbeat_interval", quoted(&u))))
            }
            (key, v) => r.other(key, key, v),
        }
    }
    // Keys of tables go behind those at the top.
    settings.sort_by_key(|(key, _)| key.contains('.'));
    r.to.settings = settings;
    r.to
}

/// `:9090` listens at every address.
fn listen(addr: &str) -> String {
    if addr.starts_with(':') { format!("0.0.0.0{addr}") } else { addr.to_string() }
}

impl Reading<'_> {
    fn note(&mut self, line: String) {
        if !self.to.notes.contains(&line) {
            self.to.notes.push(line);
        }
    }

    /// A value as text, with the variables of the environment in it replaced, as Litestream does.
    fn text(&mut self, place: &str, v: &Value) -> Option<String> {
        let text = match v {
            Value::String(s) => s.clone(),
            Value::Number(n) => n.to_string(),
            Value::Bool(b) => b.to_string(),
            _ => return None,
        };
        let (expanded, missing) = expand(&text, self.env);
        for name in missing {
            self.note(format!(
                "{place}: the variable {name} is not set here; what it stands for is left out"
            ));
        }
        Some(expanded)
    }

    /// A key without a counterpart of its own.
    fn other(&mut self, place: &str, key: &str, v: &Value) {
        if let Some((_, variable)) = SECRETS.iter().find(|(k, _)| *k == key) {
            self.note(format!("{place}: not copied; give it as {variable} in the environment"));
        } else if let Some((_, why)) = LOST.iter().find(|(k, _)| *k == key) {
            self.note(format!("{place}: not carried over: {why}"));
        } else if !v.is_null() {
            self.note(format!("{place}: a key that neither Litestream 0.3 nor 0.5 knows; not carried over"));
        }
    }

    fn levels(&mut self, levels: &[Value]) -> Option<(&'static str, String)> {
        let intervals: Vec<String> = levels
            .iter()
            .filter_map(|l| l.get("interval"))
            .filter_map(|v| self.text("levels.interval", v))
            .collect();
        if intervals.len() > 3 {
            self.note("levels: walrust has three at most; the first three are taken".to_string());
        }
        let shown: Vec<String> = intervals.iter().take(3).map(|i| quoted(i)).collect();
        (!shown.is_empty()).then(|| ("levels", format!("[{}]", shown.join(", "))))
    }

    fn snapshot(&mut self, place: &str, s: &Map<String, Value>) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for (key, v) in s {
            match key.as_str() {
                "interval" => out.extend(
                    self.text(&format!("{place}.interval"), v).map(|t| ("snapshot_interval", quoted(&t))),
                ),
                "retention" => out.extend(self.kept(&format!("{place}.retention"), v)),
                key => self.other(&format!("{place}.{key}"), key, v),
            }
        }
        out
    }

    /// How long everything stays.
    fn kept(&mut self, place: &str, v: &Value) -> Option<(&'static str, String)> {
        let text = self.text(place, v)?;
        self.note(format!(
            "{place}: pitr_window = {text}, for which every upload stays; beyond it [retention] keeps hourly, daily, weekly and monthly snapshots, which Litestream does not"
        ));
        Some(("pitr_window", quoted(&text)))
    }

    fn retention(&mut self, s: &Map<String, Value>) -> Option<(&'static str, String)> {
        let mut out = None;
        for (key, v) in s {
            match (key.as_str(), v) {
                ("enabled", Value::Bool(false)) => {
                    self.note(
                        "retention.enabled: false: left to `walrust compact --force`, or to nobody"
                            .to_string(),
                    );
                    out = Some(("retention.by", quoted("janitor")));
                }
                ("enabled", _) => {}
                (key, v) => self.other(&format!("retention.{key}"), key, v),
            }
        }
        out
    }

    fn only(
        &mut self,
        place: &str,
        s: &Map<String, Value>,
        key: &str,
        to: &'static str,
    ) -> Option<(&'static str, String)> {
        let mut out = None;
        for (k, v) in s {
            if k == key {
                out = self.text(&format!("{place}.{k}"), v).map(|t| (to, quoted(&t)));
            } else {
                self.other(&format!("{place}.{k}"), k, v);
            }
        }
        out
    }

    fn database(&mut self, db: &Map<String, Value>) {
        let text = |r: &mut Self, key: &str| db.get(key).and_then(|v| r.text(&format!("dbs.{key}"), v));
        let (path, many) = match (text(self, "path"), text(self, "dir")) {
            (Some(path), _) => (path, false),
            (None, Some(dir)) => {
                let pattern = text(self, "pattern").unwrap_or_else(|| "*.db".to_string());
                let between = if db.get("recursive") == Some(&Value::Bool(true)) { "**/" } else { "" };
                (format!("{}/{between}{pattern}", dir.trim_end_matches('/')), true)
            }
            (None, None) => {
                self.to.lacks.push("an entry of dbs has neither path nor dir; it is left out".to_string());
                return;
            }
        };
        let mut d = Database { path: path.clone(), ..Database::default() };
        for (key, v) in db {
            match (key.as_str(), v) {
                ("path" | "dir", _) => {}
                ("pattern" | "recursive" | "watch", _) if many => {}
                ("snapshot", Value::Object(s)) => d.settings.extend(self.snapshot("dbs.snapshot", s)),
                ("replica", Value::Object(r)) => d.replica = self.replica(&mut d.settings, r, many),
                ("replicas", Value::Array(all)) => {
                    for r in all.iter().filter_map(Value::as_object) {
                        // (A mirror gets the files of the replica, at the replica's intervals.)
                        let mut settings = Vec::new();
                        let url = self.replica(&mut settings, r, many);
                        match (d.replica.is_some(), url) {
                            (_, None) => self.to.lacks.push(format!(
                                "{path}: one of its replicas is none that walrust can write (see the notes)"
                            )),
                            (false, url) => {
                                d.replica = url;
                                d.settings.extend(settings);
                            }
                            (true, Some(url)) => {
                                d.mirrors.push(url);
                                for (key, _) in settings {
                                    self.note(format!("{path}: {key} of a further replica is not carried over; that of the first counts"));
                                }
                            }
                        }
                    }
                }
                (key, v) => self.other(&format!("dbs.{key}"), key, v),
            }
        }
        if d.replica.is_none() && !self.to.lacks.iter().any(|l| l.starts_with(&format!("{path}: "))) {
            self.to.lacks.push(format!("{path}: it has no replica that walrust can write (see the notes)"));
        }
        self.to.databases.push(d);
    }

    /// The URL of a replica, if it has one here; its settings are added.
    fn replica(
        &mut self,
        settings: &mut Vec<(&'static str, String)>,
        r: &Map<String, Value>,
        many: bool,
    ) -> Option<String> {
        let place = "dbs.replica";
        let mut get = |key: &str| {
            r.get(key).and_then(|v| self.text(&format!("{place}.{key}"), v)).filter(|t| !t.is_empty())
        };
        let (url, kind) = (get("url"), get("type"));
        let (bucket, path) = (get("bucket"), get("path"));
        let (region, endpoint, style) = (get("region"), get("endpoint"), get("force-path-style"));
        for (key, v) in r {
            match key.as_str() {
                "url" | "type" | "bucket" | "path" | "region" | "endpoint" | "force-path-style" => {}
                "sync-interval" => settings.extend(self.text(key, v).map(|t| ("interval", quoted(&t)))),
                "snapshot-interval" => {
                    settings.extend(self.text(key, v).map(|t| ("snapshot_interval", quoted(&t))))
                }
                "validation-interval" => {
                    settings.extend(self.text(key, v).map(|t| ("validation_interval", quoted(&t))))
                }
                "retention" => settings.extend(self.kept(&format!("{place}.retention"), v)),
                key => self.other(&format!("{place}.{key}"), key, v),
            }
        }
        let base = match (url, kind.as_deref()) {
            (Some(url), _) => url,
            (None, Some("s3")) => format!(
                "s3://{}/{}",
                bucket.unwrap_or_default(),
                path.unwrap_or_default().trim_start_matches('/')
            ),
            (None, Some("gs" | "gcs")) => format!(
                "gs://{}/{}",
                bucket.unwrap_or_default(),
                path.unwrap_or_default().trim_start_matches('/')
            ),
            (None, Some("abs")) => format!(
                "az://{}/{}",
                bucket.unwrap_or_default(),
                path.unwrap_or_default().trim_start_matches('/')
            ),
            (None, Some("file") | None) if path.is_some() => path.unwrap_or_default(),
            (None, other) => {
                self.note(format!(
                    "{place}: {} has no counterpart: walrust writes to S3, GCS, Azure and directories",
                    other.unwrap_or("a replica without type, url or path")
                ));
                return None;
            }
        };
        let mut parameters: Vec<String> = Vec::new();
        if base.starts_with("s3://") {
            parameters.extend(endpoint.map(|e| format!("endpoint={}", encode_part(&with_scheme(&e)))));
            parameters.extend(region.map(|g| format!("region={}", encode_part(&g))));
            parameters.extend(style.filter(|s| s == "true").map(|_| "path_style=true".to_string()));
        }
        let mut text = base.trim_end_matches('/').to_string();
        // Litestream says the account before the container: abs://account@container/path.
        if let Some((scheme, rest)) = text.split_once("://")
            && let Some((account, rest)) = rest.split_once('@')
            && matches!(scheme, "abs" | "az")
        {
            self.note(format!(
                "{place}: the account {account} goes into the environment, as AZURE_STORAGE_ACCOUNT_NAME"
            ));
            text = format!("az://{rest}");
        }
        if many {
            text = format!("{text}/{{file}}");
            self.note(format!(
                "{place}: each database of a directory has its own replica below {base}, by its file name"
            ));
        }
        if !parameters.is_empty() {
            let mark = if text.contains('?') { '&' } else { '?' };
            text = format!("{text}{mark}{}", parameters.join("&"));
        }
        match ReplicaUrl::parse(&text.replace(['{', '}'], "")) {
            Ok(_) => Some(text),
            Err(e) => {
                self.note(format!("{place}: {e}"));
                None
            }
        }
    }
}

fn with_scheme(endpoint: &str) -> String {
    if endpoint.contains("://") { endpoint.to_string() } else { format!("https://{endpoint}") }
}

/// `$NAME` and `${NAME}` replaced; and the names that are not set.
fn expand(text: &str, env: Variables<'_>) -> (String, Vec<String>) {
    let (mut out, mut missing, mut rest) = (String::new(), Vec::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, behind) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some((name, behind)) => (name, behind),
            None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        if name.is_empty() {
            out.push('$');
        } else {
            match env(name) {
                Some(value) => out.push_str(&value),
                None => missing.push(name.to_string()),
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    (out, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(yaml: Value) -> Adopted {
        read(&yaml, &|name| (name == "BUCKET").then(|| "from-env".to_string()))
    }

    #[test]
    fn replicas_in_every_form() {
        for (replica, want) in [
            (json!({"url": "s3://b/app"}), Some("s3://b/app")),
            (
                json!({"url": "s3://b/app", "endpoint": "http://127.0.0.1:9000", "region": "eu", "force-path-style": true}),
                Some("s3://b/app?endpoint=http%3A%2F%2F127.0.0.1%3A9000&region=eu&path_style=true"),
            ),
            (json!({"type": "s3", "bucket": "b", "path": "/app/"}), Some("s3://b/app")),
            (json!({"type": "gs", "bucket": "b", "path": "app"}), Some("gs://b/app")),
            (json!({"url": "abs://account@c/app"}), Some("az://c/app")),
            (json!({"type": "abs", "bucket": "c", "path": "app", "account-key": "k"}), Some("az://c/app")),
            (json!({"type": "file", "path": "/r/app"}), Some("/r/app")),
            (json!({"path": "/r/app"}), Some("/r/app")),
            (json!({"url": "file:///r/app"}), Some("file:///r/app")),
            (json!({"url": "s3://$BUCKET/app"}), Some("s3://from-env/app")),
            (json!({"url": "s3://${BUCKET}/app"}), Some("s3://from-env/app")),
            (json!({"type": "sftp", "host": "h"}), None),
            (json!({"url": "sftp://h/x"}), None),
            (json!({"type": "nats"}), None),
        ] {
            let a = of(json!({"dbs": [{"path": "/d/app.db", "replica": replica}]}));
            let found = a.databases[0].replica.as_deref();
            let same = |x: Option<&str>| x.map(|u| ReplicaUrl::parse(u).unwrap().to_string());
            assert_eq!(same(found), same(want), "{replica}");
            assert_eq!(a.lacks.is_empty(), want.is_some(), "{:?}", a.lacks);
        }
    }

    #[test]
    fn each_key_is_carried_over_or_said() {
        let a = of(json!({
            "addr": ":9090", "snapshot": {"interval": "1h", "retention": "72h"}, "levels": [{"interval": "30s"}, {"interval": "5m"}],
            "validation": {"interval": "6h"}, "retention": {"enabled": false}, "heartbeat-url": "https://x/y", "exec": "app", "nonsense": 1,
            "access-key-id": "AKIASECRET",
            "dbs": [{"path": "/d/a.db", "checkpoint-interval": "1m", "replicas": [
                {"url": "s3://b/a", "sync-interval": "10s", "retention": "24h", "secret-access-key": "sEcReT"}, {"url": "s3://b/2"}]}],
        }));
        let top: Vec<_> = a.settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
        for want in [
            ("metrics_listen", "\"0.0.0.0:9090\""),
            ("snapshot_interval", "\"1h\""),
            ("pitr_window", "\"72h\""),
            ("levels", "[\"30s\", \"5m\"]"),
            ("validation_interval", "\"6h\""),
            ("retention.by", "\"janitor\""),
            ("heartbeat_url", "\"https://x/y\""),
        ] {
            assert!(top.contains(&want), "{want:?} in {top:?}");
        }
        assert!(a.databases[0].settings.contains(&("interval", "\"10s\"".to_string())));
        let notes = a.notes.join("\n");
        for key in ["exec", "nonsense", "access-key-id", "secret-access-key", "checkpoint-interval"] {
            assert!(notes.contains(key), "{key} in {notes}");
        }
        let all = format!("{a:?}");
        assert!(!all.contains("AKIASECRET") && !all.contains("sEcReT"));
        assert_eq!(
            (a.databases[0].replica.as_deref(), &a.databases[0].mirrors),
            (Some("s3://b/a"), &vec!["s3://b/2".to_string()])
        );
        assert!(a.lacks.is_empty(), "{:?}", a.lacks);
    }

    #[test]
    fn a_directory_of_databases_is_a_pattern() {
        let a = of(
            json!({"dbs": [{"dir": "/d/", "pattern": "*.sqlite", "recursive": true, "watch": true, "replica": {"url": "s3://b/all"}}]}),
        );
        assert_eq!(
            (a.databases[0].path.as_str(), a.databases[0].replica.as_deref()),
            ("/d/**/*.sqlite", Some("s3://b/all/{file}"))
        );
    }

    #[test]
    fn what_is_no_configuration_names_no_database() {
        for yaml in [json!(null), json!([]), json!("x"), json!({}), json!({"dbs": 7}), json!({"dbs": [7]})] {
            assert!(of(yaml).databases.is_empty());
        }
        assert_eq!(expand("a$", &|_| None), ("a$".into(), vec![]));
    }
}
