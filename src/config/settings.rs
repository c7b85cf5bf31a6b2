//! The settings as the other rooms take them: typed, every one with a value.

use super::layer::Entries;
use super::raw::Raw;
use super::read::read;
use super::table::{Id, Setting, TABLE};
use super::value::{
    AutoLabel, ByteCount, Durability, Functions, MirrorSettings, RetainMode, RetentionBy, Value,
};
use crate::base::{Error, Kind, Result, Secret, Webhook};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

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

/// Storage classes by level; `None`: the bucket's default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // the table describes each
pub struct StorageClasses {
    pub level0: Option<String>,
    pub merged: Option<String>,
    pub snapshot: Option<String>,
}

/// The settings of one database (or of the process), every one with a value. The table describes each.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub struct Settings {
    /// `None`: nobody named one.
    pub replica: Option<String>,
    pub mirrors: Vec<MirrorSettings>,
    pub interval: Duration,
    pub durability: Durability,
    pub sync_timeout: Duration,
    /// Zero: no schedule.
    pub snapshot_interval: Duration,
    /// One to three, rising.
    pub levels: Vec<Duration>,
    pub pitr_window: Duration,
    pub retention: Retention,
    pub retention_by: RetentionBy,
    pub append_only: bool,
    /// Zero: objects are not kept from removal.
    pub retain: Duration,
    pub retain_mode: RetainMode,
    pub storage_class: StorageClasses,
    /// `None`: as the environment or the bucket says.
    pub sse: Option<String>,
    pub sse_kms_key: Option<String>,
    /// Public keys of age; empty: files leave in the clear.
    pub encrypt: Vec<String>,
    /// Zero: off.
    pub validation_interval: Duration,
    /// Zero: off.
    pub drill_interval: Duration,
    pub auto_label: AutoLabel,
    /// `None` where there is no database; else the given one or `<database file>-walrust`.
    pub spool_dir: Option<PathBuf>,
    pub spool_limit: ByteCount,
    pub retry: Retry,
    pub webhooks: Vec<Webhook>,
    /// `None`: off.
    pub metrics_listen: Option<String>,
    /// `None`: the page only looks.
    pub metrics_token: Option<Secret>,
    /// `None`: off.
    pub heartbeat_url: Option<Webhook>,
    pub heartbeat_interval: Duration,
    /// Bytes a second; 0: no bound.
    pub bandwidth: ByteCount,
    /// `None`: the user's cache directory.
    pub cache_dir: Option<PathBuf>,
    /// Zero: no cache.
    pub cache_size: ByteCount,
    pub functions: Functions,
    pub price_per_gb: Option<f64>,
    pub price_per_1000_put: Option<f64>,
}

impl Settings {
    /// Who removes what retention does not keep: who replaces and removes nothing leaves that to others.
    pub fn retention_is_by(&self) -> RetentionBy {
        if self.append_only { RetentionBy::Janitor } else { self.retention_by }
    }
}

impl Settings {
    /// The settings that hold for one of the database's mirrors.
    #[must_use]
    pub fn of_mirror(&self, mirror: &MirrorSettings) -> Settings {
        let mut s = self.clone();
        let [hourly, daily, weekly, monthly] = mirror.retention;
        let tier = |own: Option<u32>, otherwise: u32| own.unwrap_or(otherwise);
        s.retention = Retention {
            hourly: tier(hourly, s.retention.hourly),
            daily: tier(daily, s.retention.daily),
            weekly: tier(weekly, s.retention.weekly),
            monthly: tier(monthly, s.retention.monthly),
        };
        s.pitr_window = mirror.pitr_window.unwrap_or(s.pitr_window);
        let [level0, merged, snapshot] = mirror.storage_class.clone();
        // (An empty class is the bucket's default.)
        let class = |own: Option<String>, otherwise: Option<String>| match own {
            Some(class) => Some(class).filter(|c| !c.is_empty()),
            None => otherwise,
        };
        s.storage_class = StorageClasses {
            level0: class(level0, s.storage_class.level0),
            merged: class(merged, s.storage_class.merged),
            snapshot: class(snapshot, s.storage_class.snapshot),
        };
        s.encrypt = mirror.encrypt.clone().unwrap_or(s.encrypt);
        s
    }
}

/// The value said, else the default.
fn value_of(entries: &Entries, setting: &Setting) -> Result<Option<Value>> {
    if let Some(e) = entries.get(&setting.id) {
        return Ok(Some(e.value.clone()));
    }
    let Some(text) = setting.default else { return Ok(None) };
    let read = read(setting.kind, &Raw::text(text));
    read.map(|(v, _)| Some(v))
        .map_err(|f| Error::new(Kind::Bug, format!("default of {} {}", setting.name, f.message)))
}

pub(super) fn typed(entries: &Entries) -> Result<Settings> {
    let mut all: BTreeMap<Id, Value> = BTreeMap::new();
    for setting in &TABLE {
        if let Some(v) = value_of(entries, setting)? {
            all.insert(setting.id, v);
        }
    }
    let bug = |id: Id| Error::new(Kind::Bug, format!("setting {id:?} has no value of its kind"));
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
        mirrors: match all.get(&Id::Mirrors) {
            Some(Value::Mirrors(mirrors)) => mirrors.clone(),
            _ => Vec::new(),
        },
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
        retention_by: match all.get(&Id::RetentionBy) {
            Some(Value::RetentionBy(r)) => *r,
            _ => return Err(bug(Id::RetentionBy)),
        },
        append_only: match all.get(&Id::AppendOnly) {
            Some(Value::Switch(s)) => *s,
            _ => return Err(bug(Id::AppendOnly)),
        },
        retain: duration(Id::Retain)?,
        retain_mode: match all.get(&Id::RetainMode) {
            Some(Value::RetainMode(m)) => *m,
            _ => return Err(bug(Id::RetainMode)),
        },
        storage_class: StorageClasses {
            level0: text(Id::StorageClassLevel0),
            merged: text(Id::StorageClassMerged),
            snapshot: text(Id::StorageClassSnapshot),
        },
        sse: text(Id::Sse),
        sse_kms_key: text(Id::SseKmsKey),
        encrypt: match all.get(&Id::Encrypt) {
            Some(Value::Texts(keys)) => keys.clone(),
            _ => Vec::new(),
        },
        validation_interval: duration(Id::ValidationInterval)?,
        drill_interval: duration(Id::DrillInterval)?,
        auto_label: match all.get(&Id::AutoLabel) {
            Some(Value::AutoLabel(a)) => *a,
            _ => return Err(bug(Id::AutoLabel)),
        },
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
        metrics_token: match all.get(&Id::MetricsToken) {
            Some(Value::Token(t)) if *t != Secret::default() => Some(t.clone()),
            _ => None,
        },
        heartbeat_url: match all.get(&Id::HeartbeatUrl) {
            Some(Value::Webhooks(w)) => w.first().cloned(),
            _ => None,
        },
        heartbeat_interval: duration(Id::HeartbeatInterval)?,
        bandwidth: match all.get(&Id::Bandwidth) {
            Some(Value::Bytes(n)) => *n,
            _ => return Err(bug(Id::Bandwidth)),
        },
        cache_dir: text(Id::CacheDir).map(PathBuf::from),
        cache_size: match all.get(&Id::CacheSize) {
            Some(Value::Bytes(n)) => *n,
            _ => return Err(bug(Id::CacheSize)),
        },
        functions: match all.get(&Id::Functions) {
            Some(Value::Functions(f)) => *f,
            _ => return Err(bug(Id::Functions)),
        },
        price_per_gb: price(Id::PricePerGb),
        price_per_1000_put: price(Id::PricePer1000Put),
    })
}
