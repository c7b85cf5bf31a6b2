//! The table of settings.

use super::value::{MAX_DURATION, ValueKind};
use std::fmt::Write;
use std::time::Duration;

/// A setting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)] // TABLE describes each
pub enum Id {
    Replica,
    Mirrors,
    Interval,
    Durability,
    SyncTimeout,
    SnapshotInterval,
    Levels,
    PitrWindow,
    RetentionHourly,
    RetentionDaily,
    RetentionWeekly,
    RetentionMonthly,
    RetentionBy,
    AppendOnly,
    Retain,
    RetainMode,
    StorageClassLevel0,
    StorageClassMerged,
    StorageClassSnapshot,
    Sse,
    SseKmsKey,
    Encrypt,
    ValidationInterval,
    DrillInterval,
    AutoLabel,
    SpoolDir,
    SpoolLimit,
    RetryBase,
    RetryMax,
    RetryBreakerThreshold,
    RetryBreakerCooldown,
    Webhooks,
    MetricsListen,
    MetricsToken,
    HeartbeatUrl,
    HeartbeatInterval,
    Bandwidth,
    CacheDir,
    CacheSize,
    Functions,
    PricePerGb,
    PricePer1000Put,
}

/// Whom a setting is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// May differ from database to database.
    Database,
    /// One for the process: top of the TOML file, or environment.
    Process,
}

/// One row of the table.
#[derive(Debug)]
pub struct Setting {
    /// Which.
    pub id: Id,
    /// Its one name: JSON option key, URI parameter, name in `walrust_config`, and (upper case, after
    /// `WALRUST_`) environment variable.
    pub name: &'static str,
    /// The TOML table it is in, if not at the top.
    pub section: Option<&'static str>,
    /// Its TOML key inside that table.
    pub key: &'static str,
    /// What it takes.
    pub kind: ValueKind,
    /// Whom it is for.
    pub scope: Scope,
    /// Text of the default; `None` = not set.
    pub default: Option<&'static str>,
    /// What `walrust_config` and the documentation show when there is no default.
    pub unset: &'static str,
    /// One or two sentences, Markdown allowed.
    pub description: &'static str,
}

impl Setting {
    /// `retention.hourly`: the key with its table.
    pub fn toml_path(&self) -> String {
        match self.section {
            Some(s) => format!("{s}.{}", self.key),
            None => self.key.to_string(),
        }
    }

    /// `WALRUST_RETENTION_HOURLY`.
    pub fn env(&self) -> String {
        format!("WALRUST_{}", self.name.to_ascii_uppercase())
    }

    /// The default as shown.
    pub fn default_shown(&self) -> &'static str {
        self.default.unwrap_or(self.unset)
    }
}

/// The setting of that name.
pub fn by_name(name: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|s| s.name == name)
}

/// The setting with that TOML key in that table (`None` = top).
pub fn by_toml(section: Option<&str>, key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|s| s.section == section && s.key == key)
}

/// Whether some setting is in the TOML table of that name.
pub fn is_section(name: &str) -> bool {
    TABLE.iter().any(|s| s.section == Some(name))
}

const fn any_duration() -> ValueKind {
    ValueKind::Duration { min: Duration::ZERO, max: MAX_DURATION }
}

const fn some_duration(min_ms: u64) -> ValueKind {
    ValueKind::Duration { min: Duration::from_millis(min_ms), max: MAX_DURATION }
}

const fn top(id: Id, name: &'static str, kind: ValueKind, description: &'static str) -> Setting {
    Setting {
        id,
        name,
        section: None,
        key: name,
        kind,
        scope: Scope::Database,
        default: None,
        unset: "",
        description,
    }
}

const fn within(mut s: Setting, section: &'static str, key: &'static str) -> Setting {
    s.section = Some(section);
    s.key = key;
    s
}

const fn default(mut s: Setting, text: &'static str) -> Setting {
    s.default = Some(text);
    s
}

const fn keyed(mut s: Setting, key: &'static str) -> Setting {
    s.key = key;
    s
}

const fn unset(mut s: Setting, shown: &'static str) -> Setting {
    s.unset = shown;
    s
}

const fn process(mut s: Setting) -> Setting {
    s.scope = Scope::Process;
    s
}

const fn class(id: Id, name: &'static str, key: &'static str, description: &'static str) -> Setting {
    within(top(id, name, ValueKind::StorageClass, description), "storage_class", key)
}

const fn tier(id: Id, name: &'static str, key: &'static str, n: &'static str, what: &'static str) -> Setting {
    // 100,000: eleven years of hours; a bound only so that sums stay small.
    default(within(top(id, name, ValueKind::Count { min: 0, max: 100_000 }, what), "retention", key), n)
}

/// Every setting, in the order of [`Id`].
pub static TABLE: [Setting; 42] = [
    top(
        Id::Replica,
        "replica",
        ValueKind::Replica,
        "Where the database goes: `s3://bucket/path`, `gs://bucket/path`, `az://container/path`, `file:///dir` or a plain path. \
         `{name}` stands for the file name without its extension, `{file}` for the whole file name, `{dir}` for the name of its directory.",
    ),
    keyed(
        top(
            Id::Mirrors,
            "mirrors",
            ValueKind::Mirrors,
            "Further replicas that get the same files, each at its own pace: URLs as in `replica`, separated by commas, a JSON array of \
             them elsewhere, or `[[databases.mirror]]` tables with `replica` and, for that mirror alone, `pitr_window`, `retention`, `storage_class`, `encrypt`. One that is away holds up neither a commit nor the replica.",
        ),
        "mirror",
    ),
    default(
        top(
            Id::Interval,
            "interval",
            any_duration(),
            "Shortest time between two uploads under steady load. The first commit after a quiet spell leaves at once; \
             `0s`: each upload starts as soon as the one before it is done.",
        ),
        "1s",
    ),
    default(
        top(
            Id::Durability,
            "durability",
            ValueKind::Durability,
            "`async`: COMMIT never waits for the replica. `sync`: COMMIT returns only after the replica has the commit; \
             on failure the transaction is rolled back and the application sees the error.",
        ),
        "async",
    ),
    default(
        top(
            Id::SyncTimeout,
            "sync_timeout",
            some_duration(1),
            "How long a COMMIT under `durability = \"sync\"` waits for the replica before it fails.",
        ),
        "10s",
    ),
    default(
        top(
            Id::SnapshotInterval,
            "snapshot_interval",
            any_duration(),
            "Shortest time between two full snapshots. One is taken where something changed and it is worth it: the database is small (4 MiB), \
             the changes since the last one are as much as that one, or a week has passed. `0`: none on a schedule.",
        ),
        "1h",
    ),
    default(
        top(
            Id::Levels,
            "levels",
            ValueKind::Levels,
            "How often small files are merged into larger ones, level by level, so that restore stays fast. One to three, rising.",
        ),
        "30s,5m,1h",
    ),
    default(
        top(
            Id::PitrWindow,
            "pitr_window",
            any_duration(),
            "How far back every upload stays separately restorable.",
        ),
        "24h",
    ),
    tier(Id::RetentionHourly, "retention_hourly", "hourly", "24", "Hourly snapshots kept."),
    tier(Id::RetentionDaily, "retention_daily", "daily", "7", "Daily snapshots kept."),
    tier(Id::RetentionWeekly, "retention_weekly", "weekly", "12", "Weekly snapshots kept."),
    tier(
        Id::RetentionMonthly,
        "retention_monthly",
        "monthly",
        "12",
        "Monthly snapshots kept. Whatever the tiers say, the newest snapshot and one before it stay.",
    ),
    default(
        within(
            top(
                Id::RetentionBy,
                "retention_by",
                ValueKind::RetentionBy,
                "`writer`: the process that streams applies retention. `janitor`: somebody else does, by `walrust compact --force`, with \
                 credentials that may delete; those of the process that streams need not (`walrust policy`).",
            ),
            "retention",
            "by",
        ),
        "writer",
    ),
    default(
        top(
            Id::AppendOnly,
            "append_only",
            ValueKind::Switch,
            "`true`: this process only ever creates objects in the replica, and replaces or removes none, so its credentials need not be allowed \
             to (`walrust policy --append-only`). It holds no lease; retention is the janitor's. Not with `durability = \"sync\"`.",
        ),
        "false",
    ),
    default(
        top(
            Id::Retain,
            "retain",
            any_duration(),
            "How long each LTX file is kept from removal and replacement by S3 itself (Object Lock), from its upload on; retention extends it for what \
             it keeps. The bucket has to be made with Object Lock. `0`: not at all.",
        ),
        "0",
    ),
    default(
        top(
            Id::RetainMode,
            "retain_mode",
            ValueKind::RetainMode,
            "`governance`: who has the right to `s3:BypassGovernanceRetention` may go around `retain`. `compliance`: nobody, the account's owner included.",
        ),
        "governance",
    ),
    class(
        Id::StorageClassLevel0,
        "storage_class_level0",
        "level0",
        "Storage class of single uploads, as the store spells it. Without it: the bucket's default. They are many, small and soon gone: a class for what \
         is rarely read costs more.",
    ),
    class(
        Id::StorageClassMerged,
        "storage_class_merged",
        "merged",
        "Storage class of merged files (levels 1 to 3). Without it: the bucket's default.",
    ),
    class(
        Id::StorageClassSnapshot,
        "storage_class_snapshot",
        "snapshot",
        "Storage class of snapshots: `STANDARD_IA`, `GLACIER_IR`, `NEARLINE`, `Cool`. Without it: the bucket's default. A class whose objects have to be \
         thawed before they are read is refused.",
    ),
    top(
        Id::Sse,
        "sse",
        ValueKind::Sse,
        "How S3 encrypts what is put there (header `x-amz-server-side-encryption`): `AES256`, `aws:kms`, `aws:kms:dsse`, or `sse-c` with the key in \
         `AWS_SSE_CUSTOMER_KEY_BASE64`. Without it: as `AWS_SERVER_SIDE_ENCRYPTION` or the bucket says.",
    ),
    top(
        Id::SseKmsKey,
        "sse_kms_key",
        ValueKind::Word,
        "Id or ARN of the key of `aws:kms` (header `x-amz-server-side-encryption-aws-kms-key-id`). Without it: `AWS_SSE_KMS_KEY_ID`, or the bucket's own.",
    ),
    top(
        Id::Encrypt,
        "encrypt",
        ValueKind::Recipients,
        "Public keys of [age](https://age-encryption.org) (`age1…`), one or more: each LTX file is encrypted for them before it leaves this machine. Who reads \
         gives the secret key's file in `WALRUST_IDENTITY`. From the first file of a replica on; not with `append_only`. Holds for mirrors, too.",
    ),
    default(
        top(
            Id::ValidationInterval,
            "validation_interval",
            any_duration(),
            "Time between checks of the replica (`walrust_verify`, quick). `0`: off.",
        ),
        "0",
    ),
    default(
        top(
            Id::DrillInterval,
            "drill_interval",
            any_duration(),
            "Time between drills of the replica (`walrust_drill`): the newest state, and one drawn by chance, in turn, is restored to a \
             temporary file in the spool and checked. `0`: off.",
        ),
        "0",
    ),
    default(
        top(
            Id::AutoLabel,
            "auto_label",
            ValueKind::AutoLabel,
            "`ddl`: the point before each change of the schema gets a label by itself, `ddl-` and its TXID, which keeps it as `walrust_label` \
             does: all those of a day, then the first of each of 30 days. `off`: none.",
        ),
        "off",
    ),
    unset(
        top(
            Id::SpoolDir,
            "spool_dir",
            ValueKind::Dir,
            "Local directory for commits the replica does not have yet. `{name}`, `{file}` and `{dir}` as in `replica`.",
        ),
        "<database file>-walrust/",
    ),
    default(
        top(
            Id::SpoolLimit,
            "spool_limit",
            ValueKind::Bytes { min: 1 << 20 },
            "Local disk kept for commits the replica does not have yet, 1 MiB at least. At the limit commits go on, `state` is `failed` and \
             `last_error` says why, and a fresh snapshot follows. Where the spool cannot be written it bounds the WAL.",
        ),
        "1GB",
    ),
    default(
        within(
            top(
                Id::RetryBase,
                "retry_base",
                some_duration(1),
                "First pause after a failed upload; it doubles from there.",
            ),
            "retry",
            "base",
        ),
        "100ms",
    ),
    default(
        within(
            top(Id::RetryMax, "retry_max", some_duration(1), "Longest pause between two tries."),
            "retry",
            "max",
        ),
        "30s",
    ),
    default(
        within(
            top(
                Id::RetryBreakerThreshold,
                "retry_breaker_threshold",
                ValueKind::Count { min: 1, max: 1_000_000 },
                "Failures in a row after which uploads pause (`state` is `paused`).",
            ),
            "retry",
            "breaker_threshold",
        ),
        "5",
    ),
    default(
        within(
            top(
                Id::RetryBreakerCooldown,
                "retry_breaker_cooldown",
                some_duration(1),
                "How long uploads pause before one is tried again; at once, where a `walrust_sync()` waits.",
            ),
            "retry",
            "breaker_cooldown",
        ),
        "60s",
    ),
    top(
        Id::Webhooks,
        "webhooks",
        ValueKind::Webhooks,
        "Endpoints told of events: `[[webhooks]]` tables with `url`, `secret`, `events` in TOML, a JSON array of such objects elsewhere, \
         or plain URLs separated by commas.",
    ),
    process(top(
        Id::MetricsListen,
        "metrics_listen",
        ValueKind::Address,
        "Address (`127.0.0.1:9090`) that serves a page for people at `/`, and `/metrics` and `/health` for programs. Empty: off.",
    )),
    process(top(
        Id::MetricsToken,
        "metrics_token",
        ValueKind::Token,
        "Who shows this word may do something at the page of `metrics_listen`, too: take a snapshot, check, drill, label. 16 to 512 printable \
         characters without a space (`openssl rand -hex 16`); never shown. Empty: the page only looks.",
    )),
    process(top(
        Id::HeartbeatUrl,
        "heartbeat_url",
        ValueKind::Endpoint,
        "URL that is asked with GET each `heartbeat_interval`, as long as what was committed is in the replicas and nothing is wrong: a \
         service that is not asked any more tells somebody. Empty: off.",
    )),
    process(default(
        top(
            Id::HeartbeatInterval,
            "heartbeat_interval",
            some_duration(100),
            "Time between two requests to `heartbeat_url`.",
        ),
        "60s",
    )),
    process(default(
        top(
            Id::Bandwidth,
            "bandwidth",
            ValueKind::Rate { min: 64_000 },
            "Bytes a second that all uploads together send at most (`5MB`); `0`: no bound. Commits (level 0), manifest and lease leave at \
             once and are counted; snapshots and merges take what is left. Directories do not count.",
        ),
        "0",
    )),
    process(unset(
        top(
            Id::CacheDir,
            "cache_dir",
            ValueKind::Folder,
            "Local directory for what is read of replicas in place: processes share it, and it is still there after a restart.",
        ),
        "the user's cache directory",
    )),
    process(default(
        top(
            Id::CacheSize,
            "cache_size",
            ValueKind::Room { min: 1_000_000 },
            "Bytes on disk that `cache_dir` takes at most; `0`: nothing is kept there.",
        ),
        "256MB",
    )),
    process(default(
        top(
            Id::Functions,
            "functions",
            ValueKind::Functions,
            "`read`: there are only the SQL functions that neither write a file nor reach the network (`walrust_version`, \
             `walrust_status`, `walrust_config`, `walrust_metrics`), for programs that run strangers' SQL. Replication goes on as \
             configured. Read when the extension is loaded.",
        ),
        "all",
    )),
    unset(
        top(
            Id::PricePerGb,
            "price_per_gb",
            ValueKind::Price,
            "Storage price in dollars per GB and month, for `walrust_explain`.",
        ),
        "by endpoint",
    ),
    unset(
        top(
            Id::PricePer1000Put,
            "price_per_1000_put",
            ValueKind::Price,
            "Price in dollars of 1000 PUT or LIST requests, for `walrust_explain`.",
        ),
        "by endpoint",
    ),
];

/// The settings table of the documentation, from a header line to the last row.
pub fn settings_markdown() -> String {
    let mut out = String::from(
        "| Setting | In `walrust.toml` | Environment | Default | Meaning |\n|---|---|---|---|---|\n",
    );
    for s in &TABLE {
        let toml = match (s.section, s.kind) {
            (Some(section), _) => format!("`[{section}]` `{}`", s.key),
            (None, ValueKind::Webhooks) => format!("`[[{}]]`", s.key),
            (None, ValueKind::Mirrors) => format!("`[[databases.{}]]`", s.key),
            (None, _) => format!("`{}`", s.key),
        };
        let default = match s.default_shown() {
            "" => "–".to_string(),
            text => format!("`{text}`"),
        };
        let whole = if s.scope == Scope::Process { " For the whole process." } else { "" };
        let _ =
            writeln!(out, "| `{}` | {toml} | `{}` | {default} | {}{whole} |", s.name, s.env(), s.description);
    }
    out
}
