//! What may be typed. The doc comments are the help texts.

use crate::failure::Failure;
use crate::show::Form;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};
use std::path::PathBuf;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("WALRUST_COMMIT"), ")");

const AFTER: &str = "\
Replica URLs:
  s3://bucket/path?endpoint=http://127.0.0.1:9000&region=us-east-1
  gs://bucket/path, az://container/path, file:///absolute/dir, or a directory
  Credentials come from the environment, as the AWS tools read them
  (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), never from the URL.

Settings:
  walrust.toml in the working directory, or the file named by WALRUST_CONFIG;
  WALRUST_* variables. `walrust config` shows them all.

Exit status:
  0 done, 1 failed, 2 wrong usage. `status`: 1 also where a database is not
  safe. `verify`: 0 all good, 1 issues found, 2 critical, 3 it could not be
  done. `drill`: 0 passed, 1 failed, 3 it could not be done.

Examples:
  walrust watch app.db s3://bucket/app
  walrust restore s3://bucket/app app.db --if-replica-exists --if-db-not-exists
  walrust verify s3://bucket/app || alert";

/// Streams SQLite databases to S3, GCS, Azure or a directory, and gets them back.
///
/// The command line of the walrust extension: the same functions, for cron, container start scripts and
/// people without the sqlite3 shell.
#[derive(Parser, Debug)]
#[command(name = "walrust", version = VERSION, after_long_help = AFTER, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// Answer in JSON: rows as an array of objects, a report as an object with its exit status in "exit" (docs/functions.md)
    #[arg(long, global = true)]
    json: bool,
}

impl Cli {
    /// How to answer.
    pub fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Text }
    }
}

/// Every command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check that a backup works, without a restore
    ///
    /// `quick` reads headers, page indexes and trailers only. `deep` downloads everything, rebuilds the database in a
    /// temporary file and runs PRAGMA integrity_check. `fix` is `quick`, then removes manifest entries whose object is gone.
    /// Exit status: 0 all good, 1 issues found, 2 critical, 3 it could not be done.
    #[command(
        after_long_help = "Examples:\n  walrust verify s3://bucket/app\n  walrust verify app.db --mode deep --json"
    )]
    Verify(Verify),
    /// Restore a backup for a test: verify, restore to a temporary file, check that, compare it with the live database
    ///
    /// Nothing is changed, and nothing is left. Exit status: 0 passed, 1 failed, 3 it could not be done.
    #[command(
        after_long_help = "Examples:\n  walrust drill s3://bucket/app\n  walrust drill app.db --assert 'SELECT count(*) > 0 FROM orders' --random || alert"
    )]
    Drill(Drill),
    /// Say what will happen, before it does: schedules, sizes, requests and cost
    #[command(
        after_long_help = "Examples:\n  walrust explain app.db\n  walrust explain -o price_per_gb=0.02"
    )]
    Explain(Explain),
    /// List the databases under a URL
    #[command(after_long_help = "Example:\n  walrust list s3://bucket/tenants")]
    List(Url),
    /// List the LTX files of a replica
    #[command(
        after_long_help = "Example:\n  walrust files s3://bucket/app --json | jq '.[] | select(.level == 9)'"
    )]
    Files(Target),
    /// List the points of a replica that can be restored, or read in place
    #[command(after_long_help = "Example:\n  walrust points s3://bucket/app")]
    Points(Target),
    /// Give a point of a replica a name, which keeps it from retention until it is dropped
    ///
    /// The newest point that the replica has (`walrust sync` first), or another one. The name can be used wherever a point is given.
    #[command(
        after_long_help = "Examples:\n  walrust label s3://bucket/app before-migration-42\n  walrust label s3://bucket/app last-good --point '2 hours ago'\n  walrust label app.db before-migration-42 --drop"
    )]
    Label(Label),
    /// Run one SELECT on a replica, in place: nothing is restored, and only the pages that it reads are fetched
    #[command(
        after_long_help = "Examples:\n  walrust query s3://bucket/app 'SELECT count(*) FROM orders'\n  walrust query s3://bucket/app --at '10 minutes ago' 'SELECT * FROM orders WHERE id = 7' --json"
    )]
    Query(Query),
    /// Tell which tables were changed between two points of a replica, and how many rows
    #[command(
        after_long_help = "Examples:\n  walrust diff s3://bucket/app --from '1 hour ago'\n  walrust diff s3://bucket/app --from 57 --to 60 --json"
    )]
    Diff(Diff),
    /// Take a full snapshot now
    ///
    /// For cron. Opens the database, ships what is new and a snapshot, and ends. If another process of this machine streams
    /// the database already, that one takes it.
    #[command(after_long_help = "Example:\n  walrust snapshot app.db s3://bucket/app")]
    Snapshot(Once),
    /// Write a database as it was at a point in time
    ///
    /// The file appears complete and verified, or not at all.
    #[command(
        after_long_help = "Examples:\n  walrust restore s3://bucket/app app.db\n  walrust restore s3://bucket/app app.db --if-replica-exists --if-db-not-exists\n  walrust restore s3://bucket/app then.db --point '5 minutes ago'\n  walrust restore s3://bucket/app then.db --point 2026-11-22T18:00:00Z\n  walrust restore s3://bucket/app then.db --as-of '2 days ago'\n  walrust restore s3://bucket/app app.db --dry-run\n  walrust restore --all s3://bucket/tenants /data --if-db-not-exists"
    )]
    Restore(Restore),
    /// Keep a file up to date from a replica, until SIGTERM or SIGINT
    #[command(after_long_help = "Example:\n  walrust replicate s3://bucket/app copy.db --interval 1s")]
    Replicate(Replicate),
    /// Apply retention to a replica (a dry run, unless --force)
    #[command(
        after_long_help = "Examples:\n  walrust compact s3://bucket/app\n  walrust compact s3://bucket/app --daily 30 --force"
    )]
    Compact(Compact),
    /// Encrypt the files of an encrypted replica for other keys: say how many that are, with --force do it
    ///
    /// WALRUST_IDENTITY names the file with the identity that opens them now. Without --encrypt: for the keys that `encrypt` names for the database.
    #[command(
        after_long_help = "Examples:\n  WALRUST_IDENTITY=old.key walrust rekey s3://bucket/app --encrypt age1... --force"
    )]
    Rekey(Rekey),
    /// Print the walrust.toml for a litestream.yml, say what has no counterpart, and look at the replicas
    ///
    /// Of Litestream 0.3 and 0.5. The file goes to stdout; on stderr is a line for each replica, and for each database that would not be
    /// replicated. Secrets are not copied. Nothing is changed. Exit status: 1 where a replica cannot be gone on with.
    #[command(after_long_help = "Example:\n  walrust adopt /etc/litestream.yml > walrust.toml")]
    Adopt(Adopt),
    /// Print the least policy that a credential needs for what it is used for
    ///
    /// For s3 an IAM policy, for gcs custom roles with their conditions, for azure a role with its condition. Nothing is asked. A writer cannot
    /// delete: retention is then the janitor's ([retention] by = "janitor", and `walrust compact --force` in cron).
    #[command(
        after_long_help = "Examples:\n  walrust policy s3 s3://bucket/app --role writer\n  walrust policy s3 s3://bucket/app --role writer --append-only\n  walrust policy s3 s3://bucket/app --role janitor"
    )]
    Policy(Policy),
    /// Stream databases until SIGTERM or SIGINT, then ship what is left
    ///
    /// Commits of other processes are followed, with or without the extension. Without DB: every database that
    /// walrust.toml names, those that appear later included.
    #[command(
        after_long_help = "Examples:\n  walrust watch app.db s3://bucket/app\n  walrust watch app.db s3://bucket/app -o interval=5s -o snapshot_interval=6h\n  walrust watch"
    )]
    Watch(Watch),
    /// Ship every commit made so far, and end
    #[command(after_long_help = "Example:\n  walrust sync app.db s3://bucket/app --timeout 60")]
    Sync(Sync),
    /// Show whether databases are safe; exit status 1 if one is not
    ///
    /// Asks the process that streams, at the metrics_listen of the configuration; else the spool tells, and `told_by` says so.
    /// Without DB: of every database in walrust.toml. `state` is "stopped" if no process of this machine ships it,
    /// which is well as long as the replica has all that the last program left.
    #[command(
        after_long_help = "Examples:\n  walrust status app.db\n  walrust status --max-lag 60 || alert\n  walrust status app.db orders.db --json"
    )]
    Status(Status),
    /// Watch states, lag, pending bytes and throughput in a terminal; q ends it
    ///
    /// What `walrust status` tells, again and again: without DB, of every database in walrust.toml. Whatever needs a look stands first.
    #[command(after_long_help = "Examples:\n  walrust top\n  walrust top app.db orders.db --every 5s")]
    Top(Top),
    /// Serve the page, /health and /metrics for replicas without the process that streams to them, until SIGTERM or SIGINT
    ///
    /// What a replica alone can say: its points, labels, sizes, the age of the newest point, and what a check that is asked for here finds.
    /// Whether a process streams to it, and how far it is behind, is not known from here. A replica is read when somebody looks, once in
    /// 30 seconds at most; nothing is changed.
    #[command(
        after_long_help = "Examples:\n  walrust serve s3://bucket/app\n  walrust serve s3://bucket/tenants --listen 127.0.0.1:8080\n  walrust serve walrust.toml --verify 6h"
    )]
    Serve(Serve),
    /// Show every setting, its value, and where that comes from
    Config(Database),
    /// Print metrics as Prometheus reads them
    ///
    /// Of this process, so mostly names and help texts: a process that streams serves its own at `metrics_listen`.
    Metrics,
    /// Send a test event to every webhook and say what each answered
    NotifyTest(Database),
    /// Show the versions of walrust and of SQLite
    Version,
    /// Print shell completions
    #[command(after_long_help = "Example:\n  walrust completions bash > /etc/bash_completion.d/walrust")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// A URL.
#[derive(Args, Debug)]
pub struct Url {
    /// Where to look
    pub url: String,
}

/// A replica.
#[derive(Args, Debug)]
pub struct Target {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
}

/// `label`
#[derive(Args, Debug)]
pub struct Label {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
    /// The label: letters, digits, '-', '_' and '.', a letter first
    pub name: String,
    /// The point that gets it; without it the newest that the replica has
    #[arg(long, visible_alias = "at", value_name = "POINT", conflicts_with = "drop")]
    pub point: Option<String>,
    /// Drop the label: retention may remove what only it kept
    #[arg(long)]
    pub drop: bool,
}

/// `diff`
#[derive(Args, Debug)]
pub struct Diff {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
    /// The earlier point: a TXID (decimal, or 16 hex digits), a time (RFC 3339), e.g. '5 minutes ago', or a label
    #[arg(long, value_name = "POINT")]
    pub from: String,
    /// The later point; without it the newest state
    #[arg(long, value_name = "POINT")]
    pub to: Option<String>,
}

/// `query`
#[derive(Args, Debug)]
pub struct Query {
    /// The replica
    pub url: String,
    /// The statement
    pub sql: String,
    /// A TXID (decimal, or 16 hex digits), a time (RFC 3339), e.g. '5 minutes ago', or a label; without it the newest state
    #[arg(long, visible_alias = "point", value_name = "POINT")]
    pub at: Option<String>,
}

/// A database that may be left out.
#[derive(Args, Debug)]
pub struct Database {
    /// The database file
    #[arg(value_name = "DB")]
    pub database: Option<PathBuf>,
}

/// `status`
#[derive(Args, Debug)]
pub struct Status {
    /// The database files; without one, every database in walrust.toml
    #[arg(value_name = "DB")]
    pub databases: Vec<PathBuf>,
    /// Also fail where the replica is more than this many seconds behind, or nobody can say how many
    #[arg(long, value_name = "SECONDS")]
    pub max_lag: Option<f64>,
}

/// `top`
#[derive(Args, Debug)]
pub struct Top {
    /// The database files; without one, every database in walrust.toml
    #[arg(value_name = "DB")]
    pub databases: Vec<PathBuf>,
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub every: String,
}

/// `serve`
#[derive(Args, Debug)]
pub struct Serve {
    /// A replica URL, a URL that replicas lie below, or a walrust.toml (then: the replicas that it names)
    #[arg(value_name = "URL_OR_TOML")]
    pub target: String,
    /// Where to listen. There is no login: other addresses than the loopback's are for private networks
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9090")]
    pub listen: String,
    /// Check each replica at this interval, as `walrust verify` does (default: never)
    #[arg(long, value_name = "DURATION")]
    pub verify: Option<String>,
}

/// How thorough `verify` is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// Reads headers, page indexes and trailers only
    Quick,
    /// Reads everything and rebuilds the database
    Deep,
    /// As quick, then reads one file in a hundred whole, drawn by chance
    Sample,
    /// As quick, then drops manifest entries whose object is gone
    Fix,
}

impl Mode {
    /// As SQL names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Quick => "quick",
            Mode::Deep => "deep",
            Mode::Sample => "sample",
            Mode::Fix => "fix",
        }
    }
}

/// `verify`
#[derive(Args, Debug)]
pub struct Verify {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
    /// How thorough
    #[arg(long, value_enum, default_value = "quick")]
    pub mode: Mode,
}

/// `drill`
#[derive(Args, Debug)]
pub struct Drill {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
    /// A SELECT that must give one true row in the restored database (may be repeated)
    #[arg(long = "assert", value_name = "SQL")]
    pub assertions: Vec<String>,
    /// The point that is restored: a TXID, a time, e.g. '5 minutes ago', or a label; without it the newest state
    #[arg(long, visible_alias = "at", value_name = "POINT")]
    pub point: Option<String>,
    /// Restore a point drawn by chance
    #[arg(long, conflicts_with = "point")]
    pub random: bool,
    /// Read every byte of the replica, however large it is
    #[arg(long)]
    pub full: bool,
}

impl Drill {
    /// As `walrust_drill` takes them.
    pub fn options(&self, form: Form) -> String {
        let mut all = Map::new();
        if !self.assertions.is_empty() {
            all.insert("assert".into(), self.assertions.clone().into());
        }
        if let Some(p) = &self.point {
            all.insert("point".into(), p.clone().into());
        }
        for (name, flag) in [("random", self.random), ("full", self.full), ("json", form == Form::Json)] {
            if flag {
                all.insert(name.into(), Value::Bool(true));
            }
        }
        Value::Object(all).to_string()
    }
}

/// A kind of store.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StoreName {
    /// S3, and what speaks it
    S3,
    /// Google Cloud Storage
    Gcs,
    /// Azure Blob Storage
    Azure,
}

/// What a credential is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Everything that one process does with a replica, retention included
    All,
    /// Streams: creates files, replaces none of them, deletes nothing
    Writer,
    /// Restores, verifies, drills, reads in place
    Reader,
    /// Applies retention: the only one that deletes
    Janitor,
}

/// `adopt`
#[derive(Args, Debug)]
pub struct Adopt {
    /// Litestream's configuration
    #[arg(value_name = "LITESTREAM_YML")]
    pub file: PathBuf,
    /// Do not look at the replicas
    #[arg(long)]
    pub offline: bool,
}

/// `policy`
#[derive(Args, Debug)]
pub struct Policy {
    /// The kind of store
    #[arg(value_enum)]
    pub store: StoreName,
    /// The replica
    pub url: String,
    /// What the credential is used for
    #[arg(long, value_enum, default_value = "all")]
    pub role: Role,
    /// For a writer with append_only = true: it replaces nothing either
    #[arg(long)]
    pub append_only: bool,
}

/// `explain`
#[derive(Args, Debug)]
pub struct Explain {
    /// The database file; without it, every database in walrust.toml
    #[arg(value_name = "DB")]
    pub database: Option<PathBuf>,
    #[command(flatten)]
    pub options: OptionArgs,
}

/// A database and where it goes.
#[derive(Args, Debug)]
pub struct Once {
    /// The database file
    #[arg(value_name = "DB")]
    pub database: PathBuf,
    /// Its replica; without it the configured one, else <DB>-replica/
    pub url: Option<String>,
    #[command(flatten)]
    pub options: OptionArgs,
    #[command(flatten)]
    pub takeover: Takeover,
}

/// `sync`
#[derive(Args, Debug)]
pub struct Sync {
    #[command(flatten)]
    pub once: Once,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    pub timeout: f64,
}

/// `watch`
#[derive(Args, Debug)]
pub struct Watch {
    /// The database file; without it, every database in walrust.toml
    #[arg(value_name = "DB")]
    pub database: Option<PathBuf>,
    /// Its replica; without it the configured one, else <DB>-replica/
    #[arg(requires = "database")]
    pub url: Option<String>,
    #[command(flatten)]
    pub options: OptionArgs,
    #[command(flatten)]
    pub takeover: Takeover,
    /// At the end, give up on what cannot be shipped after this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub timeout: f64,
}

/// Settings by name.
#[derive(Args, Debug)]
pub struct OptionArgs {
    /// A setting by its name, e.g. interval=5s or retention.daily=30 (may be repeated; see `walrust config`)
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    pub given: Vec<String>,
}

/// What to do with a replica that holds something else.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Takeover {
    /// Begin a new history in a replica that holds another one
    #[arg(long)]
    pub takeover: bool,
}

impl OptionArgs {
    /// As the SQL functions take them; `None` if there are none.
    pub fn json(&self, takeover: Takeover) -> Result<Option<String>, Failure> {
        self.with(&[("takeover", takeover.takeover)])
    }

    /// The same, and these flags where they are set.
    pub fn with(&self, flags: &[(&str, bool)]) -> Result<Option<String>, Failure> {
        let mut all = Map::new();
        all.extend(
            flags.iter().filter(|(_, set)| *set).map(|(name, _)| (name.to_string(), Value::Bool(true))),
        );
        for pair in &self.given {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Failure::new(format!("option {pair:?} must be KEY=VALUE, e.g. interval=5s")));
            };
            let value = json_value(value);
            let section = match key.split_once('.') {
                None => {
                    all.insert(key.to_string(), value);
                    continue;
                }
                Some((section, rest)) => {
                    (all.entry(section).or_insert_with(|| Value::Object(Map::new())), rest.to_string())
                }
            };
            match section {
                (Value::Object(fields), rest) => fields.insert(rest, value),
                (_, _) => {
                    return Err(Failure::new(format!(
                        "option {pair:?} stands beside one that is not a section"
                    )));
                }
            };
        }
        Ok((!all.is_empty()).then(|| Value::Object(all).to_string()))
    }
}

/// Numbers, true, false and lists as themselves, everything else as text.
fn json_value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(v @ (Value::Bool(_) | Value::Number(_) | Value::Array(_))) => v,
        _ => Value::String(text.to_string()),
    }
}

/// SQLite's check of a restored file.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Check {
    /// Checksums only
    None,
    /// PRAGMA quick_check
    Quick,
    /// PRAGMA integrity_check
    Full,
}

/// `restore`
#[derive(Args, Debug)]
pub struct Restore {
    /// The replica; with --all, what the replicas lie below
    pub url: String,
    /// Where the database is written; with --all, the directory
    pub path: PathBuf,
    /// Restore every database at and below URL into the directory PATH, four at a time; each is named as its replica is (and .db, without an extension)
    #[arg(long)]
    pub all: bool,
    /// A TXID (decimal, or 16 hex digits), a time (RFC 3339), e.g. '5 minutes ago', or a label; without it the newest state
    #[arg(long, visible_aliases = ["txid", "timestamp"], value_name = "POINT")]
    pub point: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    pub overwrite: bool,
    /// Replace an existing file, and fetch only the pages that it does not have yet
    #[arg(long)]
    pub delta: bool,
    /// SQLite's own check before the file gets its name (walrust's checksums are always checked)
    #[arg(long, value_enum)]
    pub check: Option<Check>,
    /// Downloads at once (default 32)
    #[arg(long, value_name = "N")]
    pub parallel: Option<u16>,
    /// Write nothing; say which files would be read, how many requests and bytes that is, and about how long it takes
    #[arg(long)]
    pub dry_run: bool,
    /// Read the bucket as it was then (S3, a bucket that keeps versions): whatever was replaced, removed or added since
    #[arg(long, value_name = "TIME")]
    pub as_of: Option<String>,
    /// A mirror of the replica: what is lost or damaged there, or all of it, is taken from here; may be given several times
    #[arg(long, value_name = "URL", conflicts_with = "all")]
    pub mirror: Vec<String>,
    /// Do nothing, successfully, if the replica holds nothing
    #[arg(long)]
    pub if_replica_exists: bool,
    /// Do nothing, successfully, if there is a file at PATH already
    #[arg(long, conflicts_with_all = ["overwrite", "delta"])]
    pub if_db_not_exists: bool,
}

impl Restore {
    /// As `walrust_restore` takes them.
    pub fn options(&self) -> String {
        let mut all = Map::new();
        if self.overwrite {
            all.insert("overwrite".into(), Value::Bool(true));
        }
        if self.delta {
            all.insert("delta".into(), Value::Bool(true));
        }
        if let Some(c) = self.check {
            let name = match c {
                Check::None => "none",
                Check::Quick => "quick",
                Check::Full => "full",
            };
            all.insert("check".into(), name.into());
        }
        if let Some(n) = self.parallel {
            all.insert("parallel".into(), n.into());
        }
        if self.dry_run {
            all.insert("dry_run".into(), Value::Bool(true));
        }
        if let Some(at) = &self.as_of {
            all.insert("as_of".into(), at.as_str().into());
        }
        if !self.mirror.is_empty() {
            all.insert("mirrors".into(), self.mirror.clone().into());
        }
        Value::Object(all).to_string()
    }
}

/// `replicate`
#[derive(Args, Debug)]
pub struct Replicate {
    /// The replica
    pub url: String,
    /// The file to keep up to date
    pub path: PathBuf,
    /// How often to look (default 5s)
    #[arg(long, value_name = "DURATION")]
    pub interval: Option<String>,
}

/// `compact`
#[derive(Args, Debug)]
pub struct Compact {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
    /// Remove, instead of saying what would be removed
    #[arg(long)]
    pub force: bool,
    /// Hourly snapshots to keep
    #[arg(long, value_name = "N")]
    pub hourly: Option<u32>,
    /// Daily snapshots to keep
    #[arg(long, value_name = "N")]
    pub daily: Option<u32>,
    /// Weekly snapshots to keep
    #[arg(long, value_name = "N")]
    pub weekly: Option<u32>,
    /// Monthly snapshots to keep
    #[arg(long, value_name = "N")]
    pub monthly: Option<u32>,
}

impl Compact {
    /// As `walrust_compact` takes them.
    pub fn options(&self, form: Form) -> String {
        let mut all = Map::new();
        for (name, flag) in [("force", self.force), ("json", form == Form::Json)] {
            if flag {
                all.insert(name.into(), Value::Bool(true));
            }
        }
        let tiers = [
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
        ];
        all.extend(tiers.into_iter().filter_map(|(name, n)| n.map(|n| (name.to_string(), n.into()))));
        Value::Object(all).to_string()
    }
}

/// `rekey`
#[derive(Args, Debug)]
pub struct Rekey {
    /// A replica URL, or a database file (then: its configured replica, else <DB>-replica/)
    #[arg(value_name = "URL_OR_DB")]
    pub target: String,
    /// A public key of age to encrypt for; may be given several times
    #[arg(long, value_name = "KEY")]
    pub encrypt: Vec<String>,
    /// Do it, instead of saying what would be done
    #[arg(long)]
    pub force: bool,
}

impl Rekey {
    /// As `walrust_rekey` takes them.
    pub fn options(&self, form: Form) -> String {
        let mut all = Map::new();
        for (name, flag) in [("force", self.force), ("json", form == Form::Json)] {
            if flag {
                all.insert(name.into(), Value::Bool(true));
            }
        }
        if !self.encrypt.is_empty() {
            all.insert("encrypt".into(), self.encrypt.clone().into());
        }
        Value::Object(all).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_become_json_with_sections_and_types() {
        let o = |given: &[&str]| {
            let given = given.iter().map(ToString::to_string).collect();
            OptionArgs { given }.json(Takeover::default())
        };
        assert_eq!(o(&[]).unwrap(), None);
        let text = o(&["interval=5s", "retention.daily=30", "retention.hourly=2", "levels=[\"30s\"]"])
            .unwrap()
            .unwrap();
        let expected =
            serde_json::json!({"interval": "5s", "retention": {"daily": 30, "hourly": 2}, "levels": ["30s"]});
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert!(o(&["interval"]).unwrap_err().to_string().contains("KEY=VALUE"));
        assert!(o(&["retention=1", "retention.daily=2"]).is_err());
    }
}
