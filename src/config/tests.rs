use super::value::{Value, ValueKind};
use super::*;
use crate::base::{EventKind, Kind, Result};
use proptest::prelude::*;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect()
}

fn toml(text: &str) -> Result<Config> {
    Config::from_text(Some((text, Path::new("/etc/walrust.toml"))), env(&[]))
}

fn toml_error(text: &str) -> String {
    let e = toml(text).map(|_| text.to_string()).unwrap_err();
    assert_eq!(e.kind(), Kind::Config, "{e}");
    let shown = e.to_string();
    assert!(!shown.contains('\n'), "one line: {shown}");
    shown
}

fn options(text: &str) -> Result<Options> {
    let own = [OptionSpec::flag("takeover"), OptionSpec::one_of("check", &["none", "quick"])];
    Options::parse("walrust_watch", Some(text), &own, WithSettings::Yes)
}

// ---- the table

#[test]
fn the_table_is_in_order_and_its_names_follow_one_rule() {
    let mut names = std::collections::HashSet::new();
    for (i, s) in TABLE.iter().enumerate() {
        assert_eq!(s.id as usize, i, "{}", s.name);
        let expected = match s.section {
            Some(section) => format!("{section}_{}", s.key),
            // (Each table says one of them: [[databases.mirror]].)
            None if s.kind == ValueKind::Mirrors => format!("{}s", s.key),
            None => s.key.to_string(),
        };
        assert_eq!(s.name, expected);
        assert!(names.insert(s.name));
        assert_eq!(table::by_name(s.name).unwrap().id, s.id);
        assert_eq!(table::by_toml(s.section, s.key).unwrap().id, s.id);
        assert!(!s.description.contains('|'), "{} would break the Markdown table", s.name);
    }
}

#[test]
fn every_default_is_what_the_contract_says() {
    let s = Config::empty().process().unwrap().settings;
    let secs = Duration::from_secs;
    assert_eq!(s.replica, None);
    assert_eq!(s.interval, secs(1));
    assert_eq!(s.durability, Durability::Async);
    assert_eq!(s.sync_timeout, secs(10));
    assert_eq!(s.snapshot_interval, secs(3600));
    assert_eq!(s.levels, [secs(30), secs(300), secs(3600)]);
    assert_eq!(s.pitr_window, secs(86400));
    assert_eq!(s.retention, Retention { hourly: 24, daily: 7, weekly: 12, monthly: 12 });
    assert_eq!(s.validation_interval, Duration::ZERO);
    assert_eq!(s.spool_limit, ByteCount(1_000_000_000));
    let retry = Retry {
        base: Duration::from_millis(100),
        max: secs(30),
        breaker_threshold: 5,
        breaker_cooldown: secs(60),
    };
    assert_eq!(s.retry, retry);
    assert!(s.webhooks.is_empty());
    assert_eq!((s.metrics_listen, s.metrics_token, s.bandwidth), (None, None, ByteCount(0)));
    assert_eq!((s.heartbeat_url, s.heartbeat_interval), (None, secs(60)));
    assert_eq!((s.price_per_gb, s.price_per_1000_put), (None, None));
    let r = Config::empty().resolve(Path::new("/data/app.db"), None, None).unwrap();
    assert_eq!(r.settings.spool_dir.as_deref(), Some(Path::new("/data/app.db-walrust")));
    assert!(!r.is_chosen());
    assert_eq!(embedded_replica(Path::new("/data/app.db")), Path::new("/data/app.db-replica"));
}

// ---- one value, said in every place

#[test]
fn what_a_mirror_has_of_its_own_holds_there_alone() {
    let text = r#"
        pitr_window = "2h"
        retention = { daily = 5, weekly = 6 }
        storage_class = { snapshot = "STANDARD_IA", merged = "ONEZONE_IA" }
        encrypt = ["age1a"]
        [[databases]]
        path = "/data/app.db"
        replica = "/r/{name}"
        [[databases.mirror]]
        replica = "/m/{name}"
        [[databases.mirror]]
        replica = "/n/{name}"
        pitr_window = "30d"
        retention = { daily = 60 }
        storage_class = { snapshot = "", level0 = "STANDARD" }
        encrypt = []
    "#;
    let r = toml(text).unwrap().resolve(Path::new("/data/app.db"), None, None).unwrap();
    let s = &r.settings;
    let all: Vec<Settings> = s.mirrors.iter().map(|m| s.of_mirror(m)).collect();
    assert_eq!(all[0], *s);
    let own = &all[1];
    assert_eq!(own.pitr_window, Duration::from_secs(30 * 24 * 3600));
    assert_eq!((own.retention.daily, own.retention.weekly), (60, 6));
    let c = &own.storage_class;
    let classes = [&c.level0, &c.merged, &c.snapshot].map(|c| c.as_deref());
    assert_eq!(classes, [Some("STANDARD"), Some("ONEZONE_IA"), None]);
    assert!(own.encrypt.is_empty());
    let row = r.rows().into_iter().find(|row| row.name == "mirrors").unwrap();
    assert!(
        row.value.starts_with("/m/app,/n/app (encrypt none, pitr_window 30d, retention.daily 60, "),
        "{}",
        row.value
    );
}

#[test]
fn every_setting_can_be_said_in_every_place_and_says_where() {
    let db = Path::new("/data/app.db");
    for s in &TABLE {
        let (text, in_toml) = match s.kind {
            ValueKind::Replica => ("file:///backup/{name}", "\"file:///backup/{name}\""),
            ValueKind::Duration { .. } => ("42s", "\"42s\""),
            ValueKind::Mirrors => ("file:///mirror/{name}", "[{ replica = \"file:///mirror/{name}\" }]"),
            ValueKind::Levels => ("10s,20s", "[\"10s\", \"20s\"]"),
            ValueKind::Count { .. } => ("17", "17"),
            ValueKind::Bytes { .. } => ("2GiB", "\"2GiB\""),
            ValueKind::Rate { .. } => ("5MB", "\"5MB\""),
            ValueKind::Durability => ("sync", "\"sync\""),
            ValueKind::Functions => ("read", "\"read\""),
            ValueKind::RetentionBy => ("janitor", "\"janitor\""),
            ValueKind::Switch => ("true", "true"),
            ValueKind::RetainMode => ("compliance", "\"compliance\""),
            ValueKind::StorageClass => ("STANDARD_IA", "\"STANDARD_IA\""),
            ValueKind::Sse => ("aws:kms", "\"aws:kms\""),
            ValueKind::Word => ("alias/backup", "\"alias/backup\""),
            ValueKind::Recipients => ("age1abc", "[\"age1abc\"]"),
            ValueKind::AutoLabel => ("ddl", "\"ddl\""),
            ValueKind::Dir => ("/spool/{name}", "\"/spool/{name}\""),
            ValueKind::Folder => ("/cache/walrust", "\"/cache/walrust\""),
            ValueKind::Room { .. } => ("5MB", "\"5MB\""),
            ValueKind::Address => ("127.0.0.1:9090", "\"127.0.0.1:9090\""),
            ValueKind::Price => ("0.5", "0.5"),
            ValueKind::Webhooks => ("https://h.example/x", "[{ url = \"https://h.example/x\" }]"),
            ValueKind::Endpoint => ("https://h.example/x", "\"https://h.example/x\""),
            ValueKind::Token => ("0123456789abcdef", "\"0123456789abcdef\""),
        };
        let shown = match s.kind {
            ValueKind::Webhooks | ValueKind::Endpoint => "https://h.example".to_string(),
            ValueKind::Token => "***".to_string(),
            _ => text.replace("{name}", "app"),
        };
        // retry.base beyond retry.max would be refused
        let also = if s.id == Id::RetryBase { "retry.max = \"1m\"\n" } else { "" };
        let also_env: &[(&str, &str)] =
            if s.id == Id::RetryBase { &[("WALRUST_RETRY_MAX", "1m")] } else { &[] };
        let row = |r: &Resolved| r.rows().into_iter().find(|row| row.name == s.name).unwrap();
        let check = |r: &Resolved, source: &str| {
            let row = row(r);
            assert_eq!((row.value.as_str(), row.source.as_str()), (shown.as_str(), source), "{}", s.name);
            assert_eq!(row.default_value, s.default_shown());
        };

        let mut vars = env(&[(&s.env(), text)]);
        vars.extend(env(also_env));
        let by_env = Config::from_text(None, vars).unwrap();
        check(&by_env.resolve(db, None, None).unwrap(), &format!("env {}", s.env()));

        let top = toml(&format!("{also}{} = {in_toml}\n", s.toml_path())).unwrap();
        let line = if also.is_empty() { 1 } else { 2 };
        check(&top.resolve(db, None, None).unwrap(), &format!("/etc/walrust.toml:{line}"));
        if s.scope == Scope::Process {
            check(&top.process().unwrap(), &format!("/etc/walrust.toml:{line}"));
            let entry = format!("[[databases]]\npath = \"/data/app.db\"\n{} = {in_toml}\n", s.toml_path());
            assert!(toml_error(&entry).contains(":3: "), "{}", toml_error(&entry));
            assert!(Layer::from_uri([(s.name, text)]).is_err());
            assert!(options(&format!("{{\"{}\": \"{text}\"}}", s.name)).is_err());
            continue;
        }
        let entry = format!("[[databases]]\npath = \"/data/app.db\"\n{also}{} = {in_toml}\n", s.toml_path());
        check(
            &toml(&entry).unwrap().resolve(db, None, None).unwrap(),
            &format!("/etc/walrust.toml:{}", line + 2),
        );

        let with_max = if also.is_empty() { Config::empty() } else { toml(also).unwrap() };
        let uri = Layer::from_uri([("vfs", "walrust"), (s.name, text)]).unwrap();
        check(&with_max.resolve(db, Some(&uri), None).unwrap(), "uri");
        let sql = options(&format!("{{\"{}\": {}}}", s.name, serde_json::json!(text))).unwrap().settings;
        check(&with_max.resolve(db, None, Some(&sql)).unwrap(), "sql");
    }
}

#[test]
fn the_first_word_wins() {
    let text = "interval = \"3s\"\n[[databases]]\npath = \"/data/*.db\"\ninterval = \"4s\"\n";
    let file = Some((text, Path::new("w.toml")));
    let c = Config::from_text(file, env(&[("WALRUST_INTERVAL", "2s")])).unwrap();
    let uri = Layer::from_uri([("interval", "5s")]).unwrap();
    let sql = options(r#"{"interval":"6s"}"#).unwrap().settings;
    let at = |path: &str, uri, sql| c.resolve(Path::new(path), uri, sql).unwrap().settings.interval.as_secs();
    assert_eq!(at("/data/a.db", Some(&uri), Some(&sql)), 6);
    assert_eq!(at("/data/a.db", Some(&uri), None), 5);
    assert_eq!(at("/data/a.db", None, None), 4);
    assert_eq!(at("/other/a.db", None, None), 3);
    let only_env = Config::from_text(None, env(&[("WALRUST_INTERVAL", "2s")])).unwrap();
    assert_eq!(only_env.resolve(Path::new("/a"), None, None).unwrap().settings.interval.as_secs(), 2);
}

// ---- which databases

#[test]
fn who_is_chosen() {
    let listed = toml("[[databases]]\npath = \"/data/*.db\"\nreplica = \"s3://b/{name}\"\n").unwrap();
    let r = listed.for_path(Path::new("/data/x.db")).unwrap().unwrap();
    assert_eq!(r.settings.replica.as_deref(), Some("s3://b/x"));
    assert!(matches!(r.chosen, Chosen::ByEntry(Source::File { line: 1, .. })), "{:?}", r.chosen);
    for no in ["/data/x.sqlite", "/data/sub/x.db", "/data/.x.db", "/other/x.db"] {
        assert!(listed.for_path(Path::new(no)).unwrap().is_none(), "{no}");
    }
    let deep = toml("replica = \"s3://b/{dir}/{file}\"\n[[databases]]\npath = \"/data/**/*.db\"\n").unwrap();
    let r = deep.for_path(Path::new("/data/a/b/x.db")).unwrap().unwrap();
    assert_eq!(r.settings.replica.as_deref(), Some("s3://b/b/x.db"));
    assert!(deep.for_path(Path::new("/other/x.db")).unwrap().is_none(), "unlisted beside a list");

    let all = toml("replica = \"s3://b/{name}\"\n").unwrap();
    assert!(all.for_path(Path::new("/any/x.db")).unwrap().is_some());
    let all = Config::from_text(None, env(&[("WALRUST_REPLICA", "s3://b/{name}")])).unwrap();
    assert_eq!(
        all.for_path(Path::new("/any/x.db")).unwrap().unwrap().chosen,
        Chosen::ByReplica(Source::Env("WALRUST_REPLICA".into()))
    );
    let bare = toml("[[databases]]\npath = \"/data/app.db\"\n").unwrap();
    let r = bare.for_path(Path::new("/data/app.db")).unwrap().unwrap();
    assert_eq!((r.is_chosen(), r.settings.replica), (true, None));
    assert!(Config::empty().for_path(Path::new("/data/app.db")).unwrap().is_none());
}

#[test]
fn the_first_fitting_entry_is_taken() {
    let text = "[[databases]]\npath = \"/d/special.db\"\nreplica = \"s3://b/one\"\n\
                [[databases]]\npath = \"/d/*.db\"\nreplica = \"s3://b/rest/{name}\"\n";
    let c = toml(text).unwrap();
    let replica = |p: &str| c.for_path(Path::new(p)).unwrap().unwrap().settings.replica.unwrap();
    assert_eq!(replica("/d/special.db"), "s3://b/one");
    assert_eq!(replica("/d/x.db"), "s3://b/rest/x");
}

#[test]
fn file_names_stay_names_inside_a_url() {
    let c = toml("replica = \"s3://b/{file}?region=eu\"\n").unwrap();
    let r = c.resolve(Path::new("/d/a b?c#d%é.db"), None, None).unwrap();
    assert_eq!(r.settings.replica.as_deref(), Some("s3://b/a%20b%3Fc%23d%25%C3%A9.db?region=eu"));
    let plain = toml("replica = \"/backup/{file}\"\n").unwrap();
    let r = plain.resolve(Path::new("/d/a b.db"), None, None).unwrap();
    assert_eq!(r.settings.replica.as_deref(), Some("/backup/a b.db"));
    assert!(c.resolve(Path::new("/"), None, None).is_err(), "no file name to fill in");
}

#[test]
fn two_databases_with_one_replica_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for d in ["a", "b"] {
        std::fs::create_dir(dir.path().join(d)).unwrap();
        std::fs::write(dir.path().join(d).join("app.db"), b"").unwrap();
        std::fs::write(dir.path().join(d).join("app.db-wal"), b"").unwrap();
    }
    let file = dir.path().join("walrust.toml");
    let load = |text: &str| Config::from_text(Some((text, &file)), env(&[]));
    let e =
        load("[[databases]]\npath = \"*/app.db\"\nreplica = \"s3://b/{name}\"\n").unwrap_err().to_string();
    assert!(e.contains("a/app.db") && e.contains("b/app.db") && e.contains("s3://b/app"), "{e}");
    let e = load("spool_dir = \"/s\"\n[[databases]]\npath = \"*/app.db\"\nreplica = \"s3://b/{dir}\"\n")
        .unwrap_err();
    assert!(e.to_string().contains("spool directory"), "{e}");
    let c = load("[[databases]]\npath = \"*/*\"\nreplica = \"s3://b/{dir}/{name}\"\n").unwrap();
    let present: Vec<String> =
        c.present().unwrap().into_iter().map(|(_, r)| r.settings.replica.unwrap()).collect();
    assert_eq!(present, ["s3://b/a/app", "s3://b/b/app"], "side files are no databases");
    // One database by two names is one database.
    #[cfg(unix)]
    {
        let link = dir.path().join("link.db");
        std::os::unix::fs::symlink(dir.path().join("a/app.db"), &link).unwrap();
        let a = dir.path().join("a/app.db");
        conflict([(a.as_path(), "s3://b/x"), (link.as_path(), "s3://b/x")]).unwrap();
        let through = load("[[databases]]\npath = \"a/*.db\"\nreplica = \"s3://b/{dir}\"\n").unwrap();
        assert!(through.for_path(&a).unwrap().is_some());
        assert!(through.for_path(&link).unwrap().is_some(), "by its canonical name");
    }
}

#[test]
fn one_replica_has_many_spellings() {
    let (a, b) = (Path::new("/x/a.db"), Path::new("/x/b.db"));
    for (one, two) in [
        ("s3://b/app", "s3://b/app/"),
        ("s3://b/app", "s3://b//app?region=eu"),
        ("s3://b/app?endpoint=http://h:9000", "s3://b/app?endpoint=http%3A%2F%2Fh%3A9000/"),
        ("s3://b/a%20b", "s3://b/a b"),
        ("file:///backup/app", "/backup/app/"),
        ("file://localhost/backup/app", "/backup/app"),
    ] {
        let e = conflict([(a, one), (b, two)]).unwrap_err().to_string();
        assert!(e.contains("/x/a.db and /x/b.db"), "{e}");
    }
    for (one, two) in [
        ("s3://b/app", "s3://b/app2"),
        ("s3://b/app", "gs://b/app"),
        ("s3://b/app?endpoint=http://one", "s3://b/app?endpoint=http://two"),
        ("/backup/app", "/backup/app/sub"),
        ("/a+b", "/a b"),
    ] {
        conflict([(a, one), (b, two)]).unwrap();
    }
}

#[test]
fn relative_paths_start_at_the_files_directory() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::write(root.join("app.db"), b"").unwrap();
    let text = "spool_dir = \"spool/{name}\"\n[[databases]]\npath = \"*.db\"\nreplica = \"backup/{name}\"\n";
    let c = Config::from_text(Some((text, &root.join("w.toml"))), env(&[])).unwrap();
    let s = c.for_path(&root.join("app.db")).unwrap().unwrap().settings;
    assert_eq!(s.replica.map(PathBuf::from), Some(root.join("backup/app")));
    assert_eq!(s.spool_dir, Some(root.join("spool/app")));
    assert_eq!(c.present().unwrap().len(), 1);
}

#[test]
fn the_named_file_the_usual_file_and_none() {
    let dir = tempfile::tempdir().unwrap();
    let (usual, named) = (dir.path().join("walrust.toml"), dir.path().join("other.toml"));
    let none = Config::load_from(env(&[]), &usual).unwrap();
    assert_eq!(none.process().unwrap().settings.interval.as_secs(), 1);
    std::fs::write(&usual, "interval = \"2s\"\n").unwrap();
    std::fs::write(&named, "interval = \"3s\"\n").unwrap();
    let load = |e: &[(&str, &str)]| Config::load_from(env(e), &usual);
    assert_eq!(load(&[]).unwrap().process().unwrap().settings.interval.as_secs(), 2);
    let by_name = [("WALRUST_CONFIG", named.to_str().unwrap())];
    assert_eq!(load(&by_name).unwrap().process().unwrap().settings.interval.as_secs(), 3);
    let gone = dir.path().join("gone.toml");
    let e = load(&[("WALRUST_CONFIG", gone.to_str().unwrap())]).unwrap_err().to_string();
    assert!(e.contains("WALRUST_CONFIG") && e.contains("gone.toml"), "{e}");
    assert!(load(&[("WALRUST_CONFIG", dir.path().to_str().unwrap())]).is_err(), "a directory");
    std::fs::write(&named, vec![b'#'; (MAX_INPUT_BYTES + 1) as usize]).unwrap();
    assert!(load(&by_name).unwrap_err().to_string().contains("1 MiB"));
    std::fs::write(&named, b"# \xff\n").unwrap();
    assert!(load(&by_name).unwrap_err().to_string().contains("UTF-8"));
}

// ---- errors

#[test]
fn toml_errors_name_file_line_and_key() {
    for (text, wanted) in [
        ("intervall = \"1s\"", ":1: unknown key \"intervall\"; did you mean \"interval\"?"),
        ("\n\nzzz = 1", ":3: unknown key \"zzz\"; known are: "),
        ("[retention]\nhuorly = 1", ":2: unknown key \"retention.huorly\"; did you mean \"hourly\"?"),
        ("hourly = 1", ":1: unknown key \"hourly\"; write hourly under [retention]"),
        ("retention_hourly = 1", "write hourly under [retention]"),
        (
            "[retry]\ninterval = \"1s\"",
            ":2: unknown key \"retry.interval\"; write interval above any [table]",
        ),
        ("interval = \"5x\"", ":1: interval: \"5x\" is not a duration"),
        ("interval = \"5\"", "its unit is missing"),
        ("interval = 5", ":1: interval: is an integer; it takes a duration as text"),
        ("interval = \"-5s\"", "negative"),
        ("interval = \"99999999999999999999s\"", "100 years"),
        ("interval = \"200y\"", "100 years"),
        ("sync_timeout = \"0\"", ":1: sync_timeout: must be from 1ms"),
        ("levels = [\"1h\", \"5m\"]", "rising"),
        ("levels = []", "one to three"),
        ("levels = [\"0s\"]", "rising"),
        ("levels = [\n \"1s\",\n \"x\"]", ":3: levels: \"x\" is not a duration"),
        ("durability = \"maybe\"", "neither \"async\" nor \"sync\""),
        ("durability = true", "is a boolean"),
        ("spool_limit = \"1XB\"", "is not a size"),
        ("spool_limit = 4096", "1MiB or more"),
        ("cache_size = 4096", "must be 1MB or more, or 0 for none"),
        ("cache_dir = \"cache\"", "is not a path from the root"),
        ("bandwidth = \"63KB\"", ":1: bandwidth: must be 64KB or more (bytes a second), or 0 for no bound"),
        ("bandwidth = -5", "must not be negative"),
        ("bandwidth = \"5MB/s\"", "is not a size"),
        ("[[databases]]\npath = \"/a.db\"\nbandwidth = \"5MB\"", ":3: "),
        ("[retention]\nhourly = -1", ":2: retention.hourly: must be a whole number"),
        ("[retention]\nhourly = 1.5", "must be a whole number"),
        ("retention = 5", ":1: retention: must be a table: [retention]"),
        ("[retry]\nbase = \"1m\"", ":2: retry.max (30s) must not be shorter than retry.base (1m)"),
        ("[retry]\nbase = \"1m\"\nmax = \"1s\"", ":3: retry.max (1s) must not be shorter"),
        ("[[databases]]\npath = \"x\"\nretry.base = \"1m\"", ":3: retry.max (30s)"),
        ("replica = \"ftp://x/y\"", ":1: replica: replica scheme 'ftp://' is not known"),
        ("replica = \"s3:bucket\"", "lacks '//'"),
        ("replica = \"s3:///path\"", "names no bucket"),
        ("replica = \"file://relative\"", "absolute path"),
        ("replica = \"\"", ":1: replica: must not be empty"),
        ("replica = \"s3://b/{nmae}\"", "unknown placeholder \"{nmae}\""),
        ("replica = \"s3://b/{name\"", "unknown placeholder"),
        ("databases = 5", "[[databases]]"),
        ("[databases]\npath = \"x\"", "[[databases]]"),
        ("[[databases]]\nreplica = \"s3://b/x\"", ":1: [[databases]] has no path"),
        ("[[databases]]\npath = 5", ":2: path: must be text"),
        ("[[databases]]\npath = \"a[\"", ":2: path: \"a[\" is not a glob pattern"),
        (
            "[[databases]]\npath = \"x\"\nmetrics_listen = \"127.0.0.1:1\"",
            ":3: metrics_listen: is for the whole process",
        ),
        ("metrics_listen = \":9090\"", "127.0.0.1:9090"),
        ("heartbeat_url = \"ping.example\"", "url is unreadable"),
        ("heartbeat_url = \"ftp://ping.example/x\"", "must be http or https"),
        ("heartbeat_url = 5", "a URL as text"),
        ("heartbeat_interval = \"0\"", "must be from 100ms"),
        ("metrics_listen = \"localhost\"", "is not an address"),
        ("metrics_token = \"too-short\"", "16 to 512"),
        ("metrics_token = \"not one word, but 5\"", "16 to 512"),
        ("metrics_token = 1234567890123456", "it takes 16 to 512"),
        ("metrics_listen = \"127.0.0.1:99999\"", "is not an address"),
        ("price_per_gb = -1", "must be a price"),
        ("price_per_gb = nan", "must be a price"),
        ("[[webhooks]]\nsecret = \"s\"", "has no url"),
        ("[[webhooks]]\nurl = \"ftp://h/x\"", ":2: webhooks: url has scheme \"ftp\""),
        ("[[webhooks]]\nurl = \"not a url\"", ":2: webhooks: url is unreadable"),
        (
            "[[webhooks]]\nurl = \"http://h/\"\nevents = [\"upload_eror\"]",
            ":3: webhooks: unknown event \"upload_eror\" (did you mean \"upload_error\"?)",
        ),
        ("[[webhooks]]\nurl = \"http://h/\"\nscret = \"x\"", ":3: webhooks: unknown key \"scret\""),
        ("interval = \"1s\"\ninterval = \"2s\"", ":2: duplicate key"),
        ("interval = ", ":1: "),
        ("interval = 99999999999999999999999999", "out of range"),
    ] {
        let e = toml_error(text);
        assert!(e.starts_with("/etc/walrust.toml:"), "{text}: {e}");
        assert!(e.contains(wanted), "{text}\n gave   {e}\n wanted {wanted}");
    }
}

#[test]
fn environment_and_uri_errors_name_the_place() {
    let by_env = |k: &str, v: &str| Config::from_text(None, env(&[(k, v)])).map(|_| ());
    for (k, v, wanted) in [
        ("WALRUST_INTERVAL", "soon", "WALRUST_INTERVAL: \"soon\" is not a duration"),
        ("WALRUST_REPLCA", "s3://b/x", "did you mean WALRUST_REPLICA?"),
        ("WALRUST_REPLICA", "s3://b/{x}", "WALRUST_REPLICA: replica: unknown placeholder"),
        ("WALRUST_RETENTION_HOURLY", "many", "whole number"),
        ("WALRUST_WEBHOOKS", "[{\"url\": 5}]", "WALRUST_WEBHOOKS: "),
        ("WALRUST_WEBHOOKS", "[{", "not readable JSON"),
    ] {
        let e = by_env(k, v).unwrap_err().to_string();
        assert!(e.contains(wanted), "{e}");
    }
    by_env("WALRUST_REPLICA", "").unwrap();
    by_env("WALRUST_TEST_BUCKET_OF_SOMEBODY", "x").unwrap();
    for other in
        ["WALRUST_CRASH", "WALRUST_SEED", "WALRUST_SO", "WALRUST_CLI", "WALRUST_ROUNDS", "WALRUST_BLESS"]
    {
        by_env(other, "7").unwrap();
    }
    let e = Layer::from_uri([("replca", "s3://b/x")]).unwrap_err().to_string();
    assert!(e.contains("did you mean \"replica\"?"), "{e}");
    let e = Layer::from_uri([("interval", "x")]).unwrap_err().to_string();
    assert!(e.starts_with("URI parameter interval: "), "{e}");
    for sqlite in ["vfs", "mode", "cache", "psow", "nolock", "immutable", "hexkey", "wal"] {
        assert!(Layer::from_uri([(sqlite, "1")]).unwrap().is_empty(), "{sqlite}");
    }
}

#[test]
fn options_are_checked() {
    let o = options(
        r#"{"takeover":1,"check":"quick","interval":"2s","retention":{"hourly":3},"levels":["1s","2s"]}"#,
    )
    .unwrap();
    assert!(o.flag("takeover") && !o.flag("check"));
    assert_eq!(o.text("check"), Some("quick"));
    let r = Config::empty().resolve(Path::new("/a.db"), None, Some(&o.settings)).unwrap();
    assert_eq!(r.settings.retention.hourly, 3);
    assert_eq!(r.source(Id::RetentionHourly), Source::Sql);
    assert_eq!(r.settings.levels.len(), 2);
    let zero = options(r#"{"validation_interval":0,"interval":0}"#).unwrap().settings;
    let r = Config::empty().resolve(Path::new("/a.db"), None, Some(&zero)).unwrap();
    assert_eq!(r.settings.interval, Duration::ZERO);
    for none in ["", " ", "{}", r#"{"takeover":null,"interval":null}"#, r#"{"takeover":false}"#] {
        let o = options(none).unwrap();
        assert!(!o.flag("takeover") && o.settings.is_empty(), "{none}");
    }
    for (text, wanted) in [
        (r#"{"intervall":"1s"}"#, "walrust_watch: unknown option \"intervall\"; did you mean \"interval\"?"),
        (
            r#"{"zzzzzzzz":1}"#,
            "unknown option \"zzzzzzzz\"; allowed: takeover, check, and the settings that walrust_config lists",
        ),
        (r#"{"takeover":"yes"}"#, "walrust_watch: option takeover must be true, false, 1 or 0"),
        (r#"{"takeover":2}"#, "true, false"),
        (r#"{"check":"deep"}"#, "one of: none, quick"),
        (r#"{"interval":5}"#, "option interval: is an integer"),
        (r#"{"retention":{"houry":3}}"#, "unknown option \"retention.houry\""),
        (r#"{"retention":3}"#, "must be a JSON object"),
        (r#"{"retention":{"hourly":3},"retention_hourly":4}"#, "given twice"),
        (r#"{"interval":"1s","interval":"2s"}"#, "key \"interval\" twice"),
        (r#"{"metrics_listen":"127.0.0.1:1"}"#, "WALRUST_METRICS_LISTEN"),
        (r#"["interval"]"#, "must be a JSON object"),
        (r#""interval""#, "must be a JSON object"),
        (r#"{"interval":"1s"} x"#, "not readable JSON"),
        ("interval=1s", "not readable JSON"),
    ] {
        let e = options(text).unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        assert!(
            e.to_string().starts_with("walrust_watch: ") && e.to_string().contains(wanted),
            "{text}: {e}"
        );
    }
    let own =
        [OptionSpec::count("parallel", 1, 64), OptionSpec::duration("interval"), OptionSpec::text("note")];
    let parse = |t: &str| Options::parse("f", Some(t), &own, WithSettings::No);
    let o = parse(r#"{"parallel":8,"interval":"5s","note":"n"}"#).unwrap();
    assert_eq!((o.count("parallel"), o.duration("interval")), (Some(8), Some(Duration::from_secs(5))));
    assert_eq!((o.text("note"), o.count("note"), o.count("absent")), (Some("n"), None, None));
    for bad in [
        r#"{"parallel":65}"#,
        r#"{"parallel":0}"#,
        r#"{"parallel":-1}"#,
        r#"{"spool_limit":"1GB"}"#,
        r#"{"note":1}"#,
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert!(
        Options::parse("f", Some("{\"x\":1}"), &[], WithSettings::No)
            .unwrap_err()
            .to_string()
            .contains("none")
    );
}

#[test]
fn no_error_or_row_shows_a_secret() {
    let texts = [
        "replica = \"s3://AKIAKEY:hunter2@bucket/x\"",
        "replica = \"s3://bucket/x?secret_access_key=hunter2\"",
        "replica = \"s3://bucket/x?aws_access_key_id=hunter2\"",
        "replica = \"https://hunter2@h/x\"",
        "[[webhooks]]\nurl = \"ftp://h/hunter2\"",
        "[[webhooks]]\nurl = \"hunter2\"",
        "[[webhooks]]\nurl = \"https://h/hunter2\"\nsecret = [\"hunter2\"]",
        "[[webhooks]]\nsecret = \"hunter2\"\nurl = 5",
        "[[webhooks]]\nsecret = \"hunter2",
        "[[webhooks]]\nsecret = hunter2",
    ];
    for text in texts {
        let e = toml(text).unwrap_err();
        let all = format!("{e} {e:?}");
        assert!(!all.contains("hunter2"), "{text}: {all}");
    }
    let c = toml(
        "[[webhooks]]\nurl = \"https://h.example/hunter2\"\nsecret = \"hunter2\"\nevents = [\"fenced\"]\n",
    )
    .unwrap();
    let r = c.process().unwrap();
    assert_eq!(r.settings.webhooks[0].secret.as_ref().unwrap().expose(), "hunter2");
    assert_eq!(r.settings.webhooks[0].events, [EventKind::Fenced]);
    let all = format!("{:?} {r:?} {c:?}", r.rows());
    assert!(!all.contains("hunter2"), "{all}");
}

// ---- values

#[test]
fn sizes() {
    for (text, bytes) in [
        ("1GB", 1_000_000_000),
        ("1GiB", 1 << 30),
        ("512 MB", 512_000_000),
        ("1.5KiB", 1536),
        ("0.5kb", 500),
        ("4097", 4097),
        ("18446744073709551615B", u64::MAX),
    ] {
        assert_eq!(ByteCount::parse(text), Ok(ByteCount(bytes)), "{text}");
    }
    for bad in [
        "",
        "GB",
        "-1GB",
        "1..5GB",
        "1.GB",
        ".5GB",
        "1 G B",
        "1e9",
        "18446744073709551616",
        "99999999TiB",
        "1,5GB",
        "½GB",
    ] {
        assert!(ByteCount::parse(bad).is_err(), "{bad}");
    }
    for (bytes, text) in
        [(0, "0B"), (1_000_000_000, "1GB"), (1 << 30, "1GiB"), (4097, "4097B"), (64 << 20, "64MiB")]
    {
        assert_eq!(ByteCount(bytes).to_string(), text);
    }
}

#[test]
fn durations() {
    for (text, ms) in
        [("0", 0), ("0s", 0), ("100ms", 100), ("1s", 1000), ("1h 30m", 5_400_000), ("24h", 86_400_000)]
    {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for bad in [
        "",
        " ",
        "-1s",
        "1",
        "s",
        "1 s s",
        "1q",
        "1e3s",
        "99999999999999999999s",
        "18446744073709551615y",
        "0x1s",
        "∞",
    ] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn a_shown_size_reads_back(n: u64) {
        prop_assert_eq!(ByteCount::parse(&ByteCount(n).to_string()), Ok(ByteCount(n)));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        let _ = parse_duration(&text);
        let _ = ByteCount::parse(&text);
        let _ = crate::address::ReplicaUrl::parse(&text);
        let _ = options(&text);
        let _ = Layer::from_uri([(text.as_str(), text.as_str())]);
        let _ = toml(&text);
        let _ = toml(&format!("replica = {}", serde_json::json!(text)));
        let _ = toml(&format!("[[databases]]\npath = {}", serde_json::json!(text)));
        for s in &TABLE {
            let _ = read::read(s.kind, &raw::Raw::text(text.as_str()));
        }
        let _ = replica_key(&text);
        let _ = nearest::nearest(&text, TABLE.iter().map(|s| s.name));
    }

    /// A good file with bytes changed, dropped or doubled: read or refused, never a panic, and a refusal
    /// names the file.
    #[test]
    fn a_damaged_file_is_read_or_refused(at in any::<prop::sample::Index>(), byte: u8, cut in 0usize..4) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let i = at.index(bytes.len());
        match cut {
            0 => bytes[i] = byte,
            1 => { bytes.remove(i); }
            2 => bytes.truncate(i),
            _ => bytes.insert(i, byte),
        }
        if let Ok(text) = String::from_utf8(bytes)
            && let Err(e) = toml(&text)
        {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }

    #[test]
    fn layers_agree_on_what_a_duration_is(ms in 1u64..1_000_000_000) {
        let text = format!("{ms}ms");
        let by_env = Config::from_text(None, env(&[("WALRUST_INTERVAL", &text)])).unwrap();
        let by_toml = toml(&format!("interval = \"{text}\"")).unwrap();
        let (a, b) = (by_env.process().unwrap().settings, by_toml.process().unwrap().settings);
        prop_assert_eq!(a.interval, Duration::from_millis(ms));
        prop_assert_eq!(a, b);
    }
}

#[test]
fn hostile_shapes() {
    let deep = format!("x = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(toml(&deep).is_err());
    let deep = format!("levels = {}1{}", "[".repeat(20), "]".repeat(20));
    assert!(toml(&deep).is_err());
    let dotted = format!("{}x = 1", "a.".repeat(100_000));
    assert!(toml(&dotted).is_err());
    let deep = format!("{{\"interval\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(options(&deep).is_err());
    let long = format!("{{\"interval\":\"{}\"}}", "9".repeat(2 << 20));
    assert!(options(&long).unwrap_err().to_string().len() < 200);
    let long = format!("{} = 1", "k".repeat(500_000));
    assert!(toml_error(&long).len() < 1000);
    let many: String = (0..2_000).map(|i| format!("[[databases]]\npath = \"/d/{i}.db\"\n")).collect();
    let c = toml(&many).unwrap();
    assert!(c.for_path(Path::new("/d/1999.db")).unwrap().is_some());
}

// ---- documentation

const EXAMPLE: &str = include_str!("../../walrust.example.toml");

#[test]
fn the_example_loads_and_shows_every_key() {
    let c = toml(EXAMPLE).unwrap();
    let s = c.for_path(Path::new("/data/tenants/acme.db")).unwrap().unwrap().settings;
    assert_eq!(s.replica.as_deref(), Some("s3://my-bucket/tenants/acme"));
    assert_eq!((s.interval.as_secs(), s.retention.hourly, s.retention.weekly), (5, 6, 12));
    let s = c.for_path(Path::new("/data/ledger.db")).unwrap().unwrap().settings;
    assert_eq!(s.durability, Durability::Sync);
    // Its commented lines are right, too, and every key but the prices is there.
    let all: String = EXAMPLE
        .lines()
        .map(|l| l.strip_prefix("# ").filter(|l| l.contains(" = ") || l.starts_with("[[")).unwrap_or(l))
        .fold(String::new(), |text, l| text + l + "\n");
    let process = toml(&all).unwrap().process().unwrap();
    let by_default: Vec<&str> =
        process.rows().into_iter().filter(|r| r.source == "default").map(|r| r.name).collect();
    assert_eq!(by_default, ["replica", "mirrors", "price_per_gb", "price_per_1000_put"]);
    // Where it claims a default, it is the default.
    for row in process.rows().iter().filter(|r| {
        ![
            "validation_interval",
            "drill_interval",
            "spool_dir",
            "cache_dir",
            "metrics_listen",
            "metrics_token",
            "heartbeat_url",
            "webhooks",
            "retain",
            "storage_class_level0",
            "storage_class_merged",
            "storage_class_snapshot",
            "sse",
            "sse_kms_key",
            "encrypt",
        ]
        .contains(&r.name)
    }) {
        assert_eq!(row.value, row.default_value, "{}", row.name);
    }
}

/// The text between the markers in a document is the generated table. `WALRUST_BLESS=1` rewrites it.
#[test]
fn the_document_has_the_generated_table() {
    let (begin, end) = ("<!-- settings:begin -->\n", "<!-- settings:end -->");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = "docs/configuration.md";
    let path = root.join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(begin).unwrap_or_else(|| panic!("{name} lacks {begin}"));
    let (table, after) = rest.split_once(end).unwrap_or_else(|| panic!("{name} lacks {end}"));
    if std::env::var_os("WALRUST_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{}{end}{after}", settings_markdown())).unwrap();
    } else {
        assert_eq!(table, settings_markdown(), "{name}: run with WALRUST_BLESS=1 to rewrite it");
    }
}

#[test]
fn an_error_the_documentation_quotes_is_the_error() {
    let doc = include_str!("../../docs/configuration.md");
    let at = |text: &str| {
        Config::from_text(Some((text, Path::new("walrust.toml"))), env(&[])).unwrap_err().to_string()
    };
    let quoted = [
        at(&format!("{}intervall = \"1s\"", "\n".repeat(6))),
        at(&format!("{}interval = \"5\"", "\n".repeat(8))),
        Config::from_text(None, env(&[("WALRUST_DURABILITY", "synchronous")])).unwrap_err().to_string(),
    ];
    for line in quoted {
        assert!(doc.contains(&line), "{line}");
    }
}

#[test]
fn no_bandwidth_can_be_said_in_three_ways() {
    for said in ["", "bandwidth = 0", "bandwidth = \"0\"", "bandwidth = \"\""] {
        let process = toml(said).unwrap().process().unwrap();
        assert_eq!(process.settings.bandwidth, ByteCount(0), "{said}");
        assert!(process.rows().iter().any(|r| r.name == "bandwidth" && r.value == "0"), "{said}");
    }
    let process = toml("bandwidth = \"1.5MB\"").unwrap().process().unwrap();
    assert_eq!(process.settings.bandwidth, ByteCount(1_500_000));
}

#[test]
fn defaults_are_readable() {
    for s in TABLE.iter() {
        if let Some(text) = s.default {
            let (value, shown) = read::read(s.kind, &raw::Raw::text(text)).unwrap();
            assert_eq!(shown, text, "{}", s.name);
            assert!(!matches!(value, Value::Text(_)), "{}", s.name);
        }
    }
}
