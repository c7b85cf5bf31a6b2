//! Counters and gauges, and how they are read: `walrust_metrics()`, and over HTTP `/metrics`, `/health` and a page for people.
//!
//! Rules
//! * I-METRICS-1: updating a handle is one atomic operation. Handles are taken once per database and kept;
//!   only taking and dropping them, and rendering, lock a table.
//! * I-METRICS-2: every series of a database bears its `database` label, and goes when the database goes.
//! * I-METRICS-3: a request, however hostile, costs bounded time and memory, and waits for no store ([`serve`]): what a page wants of a
//!   replica is asked by a thread of its own.
//! * I-METRICS-4: what a browser shows is given under no name that a stranger can let point here, holds no secret, and asks nobody else.
//! * I-METRICS-5: the page costs nothing while nobody looks: no sample is taken before the first look, none an hour after the last.
//! * I-METRICS-6: whoever shows no token changes nothing. What does something is asked for by POST, with the token in a header, which no
//!   other page's script can send; it is compared in a time that tells nothing of it; where none is set, nobody may.
//!
//! Anybody may call it, from any thread. Nothing here is durable: counters start at 0 with the process, as
//! Prometheus expects.
//!
//! Refused: a global registry (a test, or a forked child, wants its own); computing lag from
//! timestamps while rendering (the renderer would have to know what a commit is: `session` sets the gauge).

mod answer;
mod deeds;
mod face;
mod health;
mod replicas;
mod server;
mod trail;

use crate::base::{Kind, Timestamp, clock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use answer::Pages;
pub use deeds::{Begun, Deed, DeedEnd, DeedFace};
pub use face::{
    DatabaseFace, Face, HealthStatus, PointFace, Points, ReplicaFace, RequestsFace, RowKind, SeenFace, Teller,
};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
pub use server::{Server, in_child, serve};

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Database {
    database: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfMirror {
    database: String,
    mirror: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DatabaseAnd {
    database: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DatabaseResult {
    database: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DatabaseState {
    database: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Row {
    database: String,
    kind: &'static str,
}

/// What `walrust_status` calls the state of a database.
pub const STATES: [&str; 7] =
    ["streaming", "catching up", "snapshotting", "paused", "standby", "fenced", "failed"];

/// The circuit breaker's state, as its gauge shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Breaker {
    /// Uploads go on.
    Closed = 0,
    /// One is being tried.
    HalfOpen = 1,
    /// Uploads pause.
    Open = 2,
}

/// Declares the plain per-database families once: field, type, name, unit, help.
macro_rules! families {
    ($($field:ident: $type:ty, $name:literal, $unit:expr, $help:literal;)*) => {
        #[derive(Debug, Default)]
        struct Families {
            $($field: Family<Database, $type>,)*
        }

        impl Families {
            fn register(&self, registry: &mut Registry) {
                $(
                    match $unit {
                        Some(unit) => registry.register_with_unit($name, $help, unit, self.$field.clone()),
                        None => registry.register($name, $help, self.$field.clone()),
                    }
                )*
            }

            fn remove(&self, label: &Database) {
                $(self.$field.remove(label);)*
            }
        }

        /// The handles of one database. Dropping them changes nothing; see [`Metrics::remove`].
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub struct DatabaseMetrics {
            $(#[doc = $help] pub $field: $type,)*
            /// Time of each upload, from request to answer, in seconds.
            pub upload_seconds: Histogram,
            upload_errors: [Counter; ERROR_KINDS.len()],
            validations: [Counter; 2],
            drills: [Counter; 2],
            states: [Gauge; STATES.len()],
        }

        impl Metrics {
            /// The handles of a database: new ones at 0, or those it already has.
            pub fn database(&self, name: &str) -> DatabaseMetrics {
                self.names().insert(name.to_string());
                let label = Database { database: name.to_string() };
                let database = || name.to_string();
                DatabaseMetrics {
                    $($field: self.families.$field.get_or_create_owned(&label),)*
                    upload_seconds: self.upload_seconds.get_or_create_owned(&label),
                    upload_errors: ERROR_KINDS.map(|(_, kind)| {
                        self.upload_errors.get_or_create_owned(&DatabaseAnd { database: database(), kind })
                    }),
                    validations: RESULTS.map(|result| {
                        self.validations.get_or_create_owned(&DatabaseResult { database: database(), result })
                    }),
                    drills: RESULTS.map(|result| {
                        self.drills.get_or_create_owned(&DatabaseResult { database: database(), result })
                    }),
                    states: STATES.map(|state| {
                        self.states.get_or_create_owned(&DatabaseState { database: database(), state })
                    }),
                }
            }
        }
    };
}

families! {
    txid: Gauge, "txid", None, "Newest transaction id captured";
    replicated_txid: Gauge, "replicated_txid", None, "Newest transaction id that is durable in the replica, with all before it";
    lag: Seconds, "lag", Some(Unit::Seconds), "Age of the oldest commit that the replica does not have, 0 if it has all";
    pending: Gauge, "pending", Some(Unit::Bytes), "Captured but not yet in the replica";
    spool: Gauge, "spool", Some(Unit::Bytes), "Size of the local spool";
    wal: Gauge, "wal", Some(Unit::Bytes), "Size of the write-ahead log";
    database: Gauge, "database", Some(Unit::Bytes), "Size of the database";
    breaker: Gauge, "breaker_state", None, "Circuit breaker: 0 closed, 1 half open, 2 open";
    last_upload: Seconds, "last_upload_timestamp", Some(Unit::Seconds), "When the last upload succeeded, Unix time, 0 if none has";
    last_validation: Seconds, "last_validation_timestamp", Some(Unit::Seconds), "When a periodic check, or one from the page, last found the replica good, Unix time, 0 if none has";
    last_drill: Seconds, "last_drill_success_timestamp", Some(Unit::Seconds), "When a drill last passed, Unix time, 0 if none has";
    drill_restore: Seconds, "drill_restore", Some(Unit::Seconds), "How long the restore of the last drill took";
    commits: Counter, "commits", None, "Commits noticed";
    uploads: Counter, "uploads", None, "Uploads that succeeded";
    uploaded: Counter, "uploaded", Some(Unit::Bytes), "Uploaded";
    upload_retries: Counter, "upload_retries", None, "Uploads tried again";
    snapshots: Counter, "snapshots", None, "Full snapshots taken";
    merges: Counter, "merges", None, "Merges of small files into larger ones";
    vetoes: Counter, "wal_reset_vetoes", None, "Resets of the write-ahead log held back because frames were not yet captured";
    checkpoints: Counter, "checkpoints", None, "Checkpoints seen";
    history_gaps: Counter, "history_gaps", None, "Times the history could not be proved unbroken";
}

/// Error kinds by the label they bear; the last stands for every other.
const ERROR_KINDS: [(Option<Kind>, &str); 8] = [
    (Some(Kind::Retry), "transient"),
    (Some(Kind::Timeout), "timeout"),
    (Some(Kind::Denied), "denied"),
    (Some(Kind::Fenced), "fenced"),
    (Some(Kind::Missing), "missing"),
    (Some(Kind::Corrupt), "corrupt"),
    (Some(Kind::Io), "io"),
    (None, "other"),
];

const RESULTS: [&str; 2] = ["success", "failure"];

impl DatabaseMetrics {
    /// Counts a failed upload by the kind of its error.
    pub fn upload_error(&self, kind: Kind) {
        let at = ERROR_KINDS.iter().position(|(k, _)| *k == Some(kind)).unwrap_or(ERROR_KINDS.len() - 1);
        if let Some(counter) = self.upload_errors.get(at) {
            counter.inc();
        }
    }

    /// Counts an upload of `bytes` bytes that succeeded after `took`.
    pub fn uploaded(&self, bytes: u64, took: Duration, at: Timestamp) {
        self.uploads.inc();
        self.uploaded.inc_by(bytes);
        self.upload_seconds.observe(took.as_secs_f64());
        self.last_upload.set(at.0 as f64 / 1000.0);
    }

    /// Counts a periodic validation that found the replica good.
    pub fn validation_success(&self) {
        let [success, _] = &self.validations;
        success.inc();
        self.found_good();
    }

    /// A check found the replica good, now.
    pub fn found_good(&self) {
        self.last_validation.set(clock::now().0 as f64 / 1000.0);
    }

    /// Counts a periodic validation that found something wrong.
    pub fn validation_failure(&self) {
        let [_, failure] = &self.validations;
        failure.inc();
    }

    /// Counts a drill whose restore took so long.
    pub fn drilled(&self, passed: bool, took: Duration) {
        let [success, failure] = &self.drills;
        self.drill_restore.set(took.as_secs_f64());
        if passed {
            success.inc();
            self.last_drill.set(clock::now().0 as f64 / 1000.0);
        } else {
            failure.inc();
        }
    }

    /// Sets the breaker's gauge.
    pub fn set_breaker(&self, state: Breaker) {
        self.breaker.set(state as i64);
    }

    /// Sets the state, one of [`STATES`]: its gauge to 1, the others to 0.
    pub fn set_state(&self, state: &str) {
        for (name, gauge) in STATES.iter().zip(&self.states) {
            gauge.set(i64::from(*name == state));
        }
    }
}

/// The metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    upload_seconds: Family<Database, Histogram, fn() -> Histogram>,
    upload_errors: Family<DatabaseAnd, Counter>,
    validations: Family<DatabaseResult, Counter>,
    drills: Family<DatabaseResult, Counter>,
    states: Family<DatabaseState, Gauge>,
    health: Family<Row, Gauge>,
    copy_lag: Family<Database, Seconds>,
    copy_txid: Family<Database, Gauge>,
    mirror_lag: Family<OfMirror, Seconds>,
    mirror_txid: Family<OfMirror, Gauge>,
    mirror_pending: Family<OfMirror, Gauge>,
    names: Mutex<HashSet<String>>,
    /// Databases of other processes that are shown.
    others: Mutex<HashSet<String>>,
    databases: Gauge,
    uptime: Seconds,
    started: Duration,
}

/// 5 ms (a store in the same rack) to 82 s (the retry of a large file on a bad line).
fn upload_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Metrics of a process that starts now.
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("walrust"),
            families: Families::default(),
            upload_seconds: Family::new_with_constructor(upload_buckets),
            upload_errors: Family::default(),
            validations: Family::default(),
            drills: Family::default(),
            states: Family::default(),
            health: Family::default(),
            copy_lag: Family::default(),
            copy_txid: Family::default(),
            mirror_lag: Family::default(),
            mirror_txid: Family::default(),
            mirror_pending: Family::default(),
            names: Mutex::default(),
            others: Mutex::default(),
            databases: Gauge::default(),
            uptime: Seconds::default(),
            started: clock::uptime(),
        };
        let r = &mut metrics.registry;
        metrics.families.register(r);
        let help = "Time of an upload from request to answer";
        r.register_with_unit("upload", help, Unit::Seconds, metrics.upload_seconds.clone());
        r.register("upload_errors", "Uploads that failed, by what went wrong", metrics.upload_errors.clone());
        r.register("validations", "Periodic checks of the replica, by result", metrics.validations.clone());
        r.register("drills", "Drills of the replica, by result", metrics.drills.clone());
        r.register("state", "1 for the state the database is in, else 0", metrics.states.clone());
        let help = "0 healthy, 1 degraded, 2 unhealthy: databases that are watched or configured to be, and followed files";
        r.register("health", help, metrics.health.clone());
        let help = "Time by which a followed file is behind its replica";
        r.register_with_unit("copy_lag", help, Unit::Seconds, metrics.copy_lag.clone());
        r.register("copy_txid", "Transaction id of a followed file", metrics.copy_txid.clone());
        let help = "Age of the oldest commit that a mirror does not have, 0 if it has all";
        r.register_with_unit("mirror_lag", help, Unit::Seconds, metrics.mirror_lag.clone());
        let help = "Newest transaction id that is durable in a mirror, with all before it";
        r.register("mirror_replicated_txid", help, metrics.mirror_txid.clone());
        let help = "Captured but not yet in a mirror";
        r.register_with_unit("mirror_pending", help, Unit::Bytes, metrics.mirror_pending.clone());
        r.register("databases", "Databases that are watched", metrics.databases.clone());
        r.register_with_unit(
            "uptime",
            "Time since walrust was loaded",
            Unit::Seconds,
            metrics.uptime.clone(),
        );
        r.register("build", "The version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let start = (clock::now().0 as f64) / 1000.0;
        let help = "When walrust was loaded, Unix time";
        r.register_with_unit("start_timestamp", help, Unit::Seconds, ConstGauge::new(start));
        metrics
    }

    /// Brings up to date what is shown of every row of the page, also of databases that are not watched yet, and of followed files.
    pub fn show(&self, face: &Face) {
        self.health.clear();
        self.copy_lag.clear();
        self.copy_txid.clear();
        self.mirror_lag.clear();
        self.mirror_txid.clear();
        self.mirror_pending.clear();
        let mut others = HashSet::new();
        for row in &face.databases {
            let database = || row.database.clone();
            let label = Row { database: database(), kind: row.kind.as_str() };
            self.health.get_or_create_owned(&label).set(row.health as i64);
            if row.kind == RowKind::Source && row.told_by != Teller::Own {
                let label = Database { database: database() };
                self.families.txid.get_or_create_owned(&label).set(row.txid.as_i64());
                self.families.replicated_txid.get_or_create_owned(&label).set(row.replicated.as_i64());
                self.families
                    .pending
                    .get_or_create_owned(&label)
                    .set(i64::try_from(row.pending_bytes).unwrap_or(i64::MAX));
                if let Some(lag) = row.lag {
                    self.families.lag.get_or_create_owned(&label).set(lag.as_secs_f64());
                }
                for state in STATES {
                    let label = DatabaseState { database: database(), state };
                    self.states.get_or_create_owned(&label).set(i64::from(row.state == state));
                }
                others.insert(database());
            }
            if let (Some(of), Some(mirror)) = (&row.mirror_of, &row.replica) {
                let label = OfMirror { database: of.clone(), mirror: mirror.clone() };
                let bytes = i64::try_from(row.pending_bytes).unwrap_or(i64::MAX);
                self.mirror_pending.get_or_create_owned(&label).set(bytes);
                self.mirror_txid.get_or_create_owned(&label).set(row.replicated.as_i64());
                if let Some(lag) = row.lag {
                    self.mirror_lag.get_or_create_owned(&label).set(lag.as_secs_f64());
                }
            }
            if row.kind == RowKind::Copy {
                let label = Database { database: database() };
                self.copy_txid.get_or_create_owned(&label).set(row.txid.as_i64());
                if let Some(lag) = row.lag {
                    self.copy_lag.get_or_create_owned(&label).set(lag.as_secs_f64());
                }
            }
        }
        // What nobody tells of any more, and this process has no handles of.
        let mut shown = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.names().clone();
        for name in shown.difference(&others).filter(|name| !own.contains(*name)) {
            self.forget_series(name);
        }
        *shown = others;
    }

    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a database: its series end. Its handles may still be used; nobody sees them.
    pub fn remove(&self, name: &str) {
        self.names().remove(name);
        self.forget_series(name);
    }

    fn forget_series(&self, name: &str) {
        let label = Database { database: name.to_string() };
        let database = || name.to_string();
        self.families.remove(&label);
        self.upload_seconds.remove(&label);
        for (_, kind) in ERROR_KINDS {
            self.upload_errors.remove(&DatabaseAnd { database: database(), kind });
        }
        for result in RESULTS {
            self.validations.remove(&DatabaseResult { database: database(), result });
            self.drills.remove(&DatabaseResult { database: database(), result });
        }
        for state in STATES {
            self.states.remove(&DatabaseState { database: database(), state });
        }
    }

    /// The exposition in Prometheus' text format 0.0.4
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
    pub fn render(&self) -> String {
        self.uptime.set(self.uptime().as_secs_f64());
        self.databases.set(i64::try_from(self.names().len()).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a String does not fail; if an encoder did, what it wrote so far is still readable.
        match encode(&mut text, &self.registry) {
            Ok(()) => text_format(&text),
            Err(e) => format!("{}# {e}\n", text_format(&text)),
        }
    }

    /// Time since the metrics were made.
    pub fn uptime(&self) -> Duration {
        clock::uptime().saturating_sub(self.started)
    }
}

/// The exposition of replicas that are looked at without their process. One that has not answered yet has `walrust_replica_readable` 0 and
/// nothing that only an answer tells.
pub fn replicas_text(face: &Face) -> String {
    text_format(&replicas::open_metrics(face))
}

/// OpenMetrics, which the client library writes, to the older text format, which everything reads:
/// Prometheus of any age, the textfile collector, `promtool check metrics`. There, a counter's HELP and TYPE
/// bear the name of its samples, and neither UNIT nor EOF nor the type `info` is known.
fn text_format(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(h) = line.strip_prefix("# HELP ") {
            help = h.split_once(' ').map(|(_, text)| text);
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' ')) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            other => ("", other),
        };
        if let Some(text) = help.take() {
            out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
        }
        out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
    }
    out
}

#[cfg(test)]
mod tests;
