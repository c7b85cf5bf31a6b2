//! What will happen, before it does: destinations, schedule, retention, storage, requests, cost. Pure: the caller measures.
//!
//! Rules
//! * I-EXP-1 Sizes are real: the database file's, and where a replica exists its compression and change rate. What is assumed is called an
//!   assumption.
//! * I-EXP-2 A price is named, with its date. An endpoint whose prices we do not know is reckoned at those of S3, and the report says so.
//! * I-EXP-3 No secret: of a webhook only the host is shown.
//!
//! Refused: a cost per database of an assumed size (the walrust command line's 1 GB).

use super::compact::words;
use super::due::copies_per_day;
use super::inventory::Inventory;
use super::manifest::{ENTRIES_WITHIN, MOST_WAITING};
use super::retention::Policy;
use crate::base::{TxId, Webhook, size};
use crate::ltx::Level;
use crate::store::{Env, ReplicaUrl, Requests, StoreKind};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// When the prices below were taken from the vendors' public lists (standard storage, cheapest US region, US dollars).
pub const PRICES_OF: &str = "2025";

/// A vendor's list prices.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Price {
    /// The vendor.
    pub name: &'static str,
    /// Dollars per GB and month.
    pub per_gb: f64,
    /// Dollars per 1000 PUT or LIST requests.
    pub per_1000_put: f64,
    /// Dollars per 1000 GET or HEAD requests.
    pub per_1000_get: f64,
}

const S3: Price = Price { name: "S3 Standard", per_gb: 0.023, per_1000_put: 0.005, per_1000_get: 0.0004 };
const GCS: Price =
    Price { name: "Google Cloud Storage Standard", per_gb: 0.020, per_1000_put: 0.005, per_1000_get: 0.0004 };
const AZURE: Price =
    Price { name: "Azure Blob Hot LRS", per_gb: 0.018, per_1000_put: 0.0065, per_1000_get: 0.0005 };
/// A storage class of one of the three clouds, with what it costs to leave early.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Class {
    name: &'static str,
    per_gb: f64,
    per_1000_put: f64,
    /// Days that are billed at the least.
    days: u32,
    /// Bytes that are billed at the least.
    least: u64,
}

const fn class(name: &'static str, per_gb: f64, per_1000_put: f64, days: u32, least: u64) -> Class {
    Class { name, per_gb, per_1000_put, days, least }
}

const CLASSES: [Class; 11] = [
    class("STANDARD", 0.023, 0.005, 0, 0),
    class("INTELLIGENT_TIERING", 0.023, 0.005, 0, 0),
    class("STANDARD_IA", 0.0125, 0.01, 30, 128_000),
    class("ONEZONE_IA", 0.01, 0.01, 30, 128_000),
    class("GLACIER_IR", 0.004, 0.02, 90, 128_000),
    class("NEARLINE", 0.010, 0.01, 30, 0),
    class("COLDLINE", 0.004, 0.02, 90, 0),
    class("ARCHIVE", 0.0012, 0.05, 365, 0),
    class("Hot", 0.018, 0.0065, 0, 0),
    class("Cool", 0.010, 0.010, 30, 0),
    class("Cold", 0.0036, 0.018, 90, 0),
];

/// What each kind of file is told of: level 0, merged files, snapshots.
const KINDS: [&str; 3] = ["single uploads", "merged files", "snapshots"];

/// Recognised by the end of the endpoint's host.
const BY_HOST: [(&str, Price); 8] = [
    ("amazonaws.com", S3),
    ("tigris.dev", Price { name: "Tigris", per_gb: 0.020, per_1000_put: 0.005, per_1000_get: 0.0005 }),
    ("tigrisfiles.io", Price { name: "Tigris", per_gb: 0.020, per_1000_put: 0.005, per_1000_get: 0.0005 }),
    ("storage.dev", Price { name: "Tigris", per_gb: 0.020, per_1000_put: 0.005, per_1000_get: 0.0005 }),
    (
        "r2.cloudflarestorage.com",
        Price { name: "Cloudflare R2", per_gb: 0.015, per_1000_put: 0.0045, per_1000_get: 0.00036 },
    ),
    (
        "backblazeb2.com",
        Price { name: "Backblaze B2", per_gb: 0.006, per_1000_put: 0.0, per_1000_get: 0.0004 },
    ),
    ("wasabisys.com", Price { name: "Wasabi", per_gb: 0.007, per_1000_put: 0.0, per_1000_get: 0.0 }),
    (
        "digitaloceanspaces.com",
        Price { name: "DigitalOcean Spaces", per_gb: 0.020, per_1000_put: 0.0, per_1000_get: 0.0 },
    ),
];

/// The list price for a replica; `None` for a local directory or an endpoint we do not know.
pub fn price_of(url: &ReplicaUrl) -> Option<Price> {
    match (url.kind(), url.endpoint()) {
        (StoreKind::Local, _) => None,
        (StoreKind::Gs, _) => Some(GCS),
        (StoreKind::Azure, _) => Some(AZURE),
        (StoreKind::S3, None) => Some(S3),
        (StoreKind::S3, Some(_)) => {
            let host = url.endpoint_host()?;
            let known = |end: &str| host == end || host.ends_with(&format!(".{end}"));
            BY_HOST.iter().find(|(end, _)| known(end)).map(|(_, p)| *p)
        }
    }
}

/// The replica with the endpoint that the environment names, as a store is opened with it: whose prices hold depends on it.
pub fn at_endpoint(replica: ReplicaUrl, env: &Env) -> ReplicaUrl {
    if replica.kind() != StoreKind::S3 || replica.endpoint().is_some() {
        return replica;
    }
    let Some(endpoint) = env.get("AWS_ENDPOINT_URL_S3").or(env.get("AWS_ENDPOINT_URL")) else {
        return replica;
    };
    let text = replica.to_string();
    let join = if text.contains('?') { '&' } else { '?' };
    ReplicaUrl::parse(&format!("{text}{join}endpoint={endpoint}")).unwrap_or(replica)
}

/// Dollars for requests to the store of a replica, and whose prices those are; `None` where none are known, or nothing is asked.
pub fn price_of_requests(url: &ReplicaUrl, r: &Requests, per_1000_put: Option<f64>) -> Option<(f64, String)> {
    let list = price_of(&at_endpoint(url.clone(), &Env::process()));
    let (per_put, named) = match (per_1000_put, list) {
        (Some(per_put), _) => (per_put, "configured price".to_string()),
        (None, Some(p)) => (p.per_1000_put, format!("{} pricing, {PRICES_OF}", p.name)),
        (None, None) => return None,
    };
    let per_get = list.map_or(0.0, |p| p.per_1000_get);
    Some(((r.puts as f64 * per_put + r.gets as f64 * per_get) / 1000.0, named))
}

/// What the replica tells of size and change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Measured {
    /// Bytes of the newest full copy.
    pub snapshot_bytes: Option<u64>,
    /// Bytes of the level-0 files that came after it.
    pub bytes_since: u64,
    /// Bytes of level-0 files per day, from at least an hour of them.
    pub change_per_day: Option<u64>,
    /// Level-0 files per day, likewise.
    pub uploads_per_day: Option<u64>,
    /// Bytes that lie there now.
    pub bytes_now: u64,
    /// LTX files that lie there now.
    pub files_now: u64,
}

impl Measured {
    /// From a listing.
    pub fn of(inventory: &Inventory) -> Measured {
        let newest = inventory.files.iter().filter(|f| f.min == TxId(1)).max_by_key(|f| f.max);
        let l0: Vec<_> = inventory.level(Level::L0).collect();
        let times = || l0.iter().map(|f| f.time);
        let span = times().max().unwrap_or_default().since(times().min().unwrap_or_default());
        let per_day = |n: u64| {
            let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            (span >= Duration::from_secs(3600)).then(|| n.saturating_mul(86_400_000) / ms)
        };
        let last = newest.map(|f| f.max).unwrap_or_default();
        Measured {
            snapshot_bytes: newest.map(|f| f.bytes),
            bytes_since: l0.iter().filter(|f| f.min > last).map(|f| f.bytes).sum(),
            change_per_day: per_day(l0.iter().map(|f| f.bytes).sum()),
            uploads_per_day: per_day(l0.len() as u64),
            bytes_now: inventory.bytes(),
            files_now: inventory.files.len() as u64,
        }
    }
}

impl Measured {
    /// Bytes of a snapshot of a database of `db` bytes if it were taken now: the newest one, and at most what came since, for a
    /// database that has grown.
    fn snapshot_now(&self, db: u64) -> Option<u64> {
        self.snapshot_bytes.map(|s| s.saturating_add(self.bytes_since).min(s.max(db)))
    }
}

/// What is known of the replica.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Listed.
    Listed(Measured),
    /// Could not be listed: why, in one line.
    Unreachable(String),
    /// Not asked.
    NotAsked,
}

/// One database and its settings.
#[derive(Clone, Debug)]
pub struct ExplainDatabase {
    /// Path of the database file.
    pub path: String,
    /// Its size; `None` if it is not there (yet).
    pub bytes: Option<u64>,
    /// Where it goes; `None`: nowhere.
    pub replica: Option<ReplicaUrl>,
    /// What lies there.
    pub seen: Seen,
    /// A remark about the store (for instance that it ignores conditional writes).
    pub remark: Option<String>,
    /// Shortest time between two uploads.
    pub interval: Duration,
    /// Time between two snapshots; zero: none of their own.
    pub snapshot_interval: Duration,
    /// Merge intervals of levels 1 and up.
    pub levels: Vec<Duration>,
    /// Retention.
    pub policy: Policy,
    /// Time between two renewals of the lease; zero: none.
    pub lease_interval: Duration,
    /// How long a lease is still renewed by itself after an upload.
    pub lease_rests_after: Duration,
    /// How many leases of the process rest on one heart with this one, itself included; 1: it is renewed by itself always.
    pub lease_sharers: usize,
    /// Storage classes of level 0, of merged files, and of snapshots; `None`: the bucket's default.
    pub classes: [Option<String>; 3],
    /// Instead of the list price.
    pub price_per_gb: Option<f64>,
    /// Instead of the list price.
    pub price_per_1000_put: Option<f64>,
    /// Time between two validations; zero: off.
    pub validation_interval: Duration,
    /// URLs of the webhooks; only their hosts are shown.
    pub webhooks: Vec<String>,
}

/// The preview.
pub fn explain(databases: &[ExplainDatabase]) -> String {
    let title = "Walrust Configuration Preview";
    let mut out = format!("{title}\n{}\n", "=".repeat(title.len()));
    if databases.is_empty() {
        out.push_str(
            "No database is configured: name one with walrust_watch(url), walrust.toml or WALRUST_REPLICA.\n",
        );
    }
    for (i, d) in databases.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        one(d, &mut out);
    }
    if databases.len() > 1 {
        total(databases, &mut out);
    }
    out
}

/// The preview for programs: the numbers of [`explain`], units in their names; sizes in bytes, money in US dollars, times in seconds.
pub fn explain_json(databases: &[ExplainDatabase]) -> Value {
    json!({
        "databases": databases.iter().map(one_json).collect::<Vec<_>>(),
        "total": total_json(databases),
        "prices_of": PRICES_OF,
    })
}

fn one_json(d: &ExplainDatabase) -> Value {
    let mut said = json!({
        "database": d.path,
        "database_bytes": d.bytes,
        "replica": d.replica.as_ref().map(ToString::to_string),
        "note": d.remark,
        "unreachable": if let Seen::Unreachable(why) = &d.seen { Some(why) } else { None },
        "snapshot_interval_seconds": d.snapshot_interval.as_secs_f64(),
        "upload_interval_seconds": d.interval.as_secs_f64(),
        "validation_interval_seconds": d.validation_interval.as_secs_f64(),
        "retention": {
            "hourly": d.policy.hourly,
            "daily": d.policy.daily,
            "weekly": d.policy.weekly,
            "monthly": d.policy.monthly,
            "every_upload_seconds": d.policy.pitr_window.as_secs_f64(),
        },
        "webhooks": d.webhooks.iter().map(|u| webhook(u)).collect::<Vec<_>>(),
    });
    let Some((url, fields)) = d.replica.as_ref().zip(said.as_object_mut()) else { return said };
    let m = match &d.seen {
        Seen::Listed(m) => Some(*m),
        _ => None,
    };
    fields.insert("replica_files".into(), json!(m.map(|m| m.files_now)));
    fields.insert("replica_bytes".into(), json!(m.map(|m| m.bytes_now)));
    fields.insert("change_bytes_per_day".into(), json!(m.and_then(|m| m.change_per_day)));
    let snapshots = if d.snapshot_interval.is_zero() { 0.0 } else { snapshots_per_day(d) };
    fields.insert("snapshots_per_day".into(), json!(rounded(snapshots)));
    let e = numbers(d);
    fields.insert(
        "estimate".into(),
        json!({
            // (Not measured: what a database that commits all the time would make.)
            "is_measured": d.seen_rate(),
            "active_bytes": e.active,
            "archive_bytes": e.archive,
            "put_requests_per_month": e.puts,
            "list_requests_per_month": e.lists,
            "get_requests_per_month": e.gets,
        }),
    );
    let is_free = url.kind() == StoreKind::Local && d.price_per_gb.is_none();
    let (per_gb, per_put, named) = rates(d, url);
    let (storage, requests) = if is_free { (0.0, 0.0) } else { month(d, url, &e) };
    let reads = reads(d, url, &e);
    fields.insert(
        "dollars_per_month".into(),
        json!({
            "storage": rounded(storage),
            "requests": rounded(requests),
            "reads": rounded(reads),
            "total": rounded(storage + requests + reads),
        }),
    );
    fields.insert(
        "prices".into(),
        json!({
            "dollars_per_gb_month": per_gb,
            "dollars_per_1000_put": per_put,
            "dollars_per_1000_get": if url.kind() == StoreKind::Local { 0.0 } else { per_get(url) },
            "of": named,
        }),
    );
    let kinds = ["level0", "merged", "snapshot"].into_iter().zip(&d.classes);
    let classes = kinds.filter_map(|(kind, class)| Some((kind.to_string(), json!(class.as_ref()?))));
    fields.insert("storage_class".into(), Value::Object(classes.collect()));
    said
}

fn total_json(databases: &[ExplainDatabase]) -> Value {
    let t = Total::of(databases);
    json!({
        "databases": databases.len(),
        "active_bytes": t.active,
        "archive_bytes": t.archive,
        "put_requests_per_month": t.puts,
        "list_requests_per_month": t.lists,
        "get_requests_per_month": t.gets,
        "dollars_per_month": rounded(t.month),
    })
}

/// To a hundredth of a cent: what is behind that is noise.
fn rounded(n: f64) -> f64 {
    (n * 10_000.0).round() / 10_000.0
}

fn one(d: &ExplainDatabase, out: &mut String) {
    let bytes = d.bytes.map_or("not there yet".to_string(), size);
    let _ = writeln!(out, "Databases:\n- {} ({bytes})", d.path);
    let Some(url) = &d.replica else {
        out.push_str("Destination: none configured; nothing is replicated\n");
        return;
    };
    destination(url, out);
    match &d.seen {
        Seen::Listed(m) if m.files_now > 0 => {
            let _ = writeln!(out, "Holds: {} files, {}", m.files_now, size(m.bytes_now));
        }
        Seen::Listed(_) => out.push_str("Holds: nothing yet\n"),
        Seen::Unreachable(why) => {
            let _ = writeln!(
                out,
                "Replica unreachable now ({why}); estimates are from the database's size alone"
            );
        }
        Seen::NotAsked => {}
    }
    if let Some(remark) = &d.remark {
        let _ = writeln!(out, "Note: {remark}");
    }
    schedule(d, out);
    retention_lines(&d.policy, out);
    estimate(d, url, out);
    validation(d, out);
}

fn destination(url: &ReplicaUrl, out: &mut String) {
    let (title, bucket) = match url.kind() {
        StoreKind::S3 => ("S3 Destination", "Bucket"),
        StoreKind::Gs => ("Google Cloud Storage Destination", "Bucket"),
        StoreKind::Azure => ("Azure Destination", "Container"),
        StoreKind::Local => {
            let dir = url.dir().map(|d| d.display().to_string()).unwrap_or_default();
            let _ = writeln!(out, "Directory Destination:\nPath: {dir}");
            return;
        }
    };
    let _ = writeln!(out, "{title}:\n{bucket}: {}", url.bucket());
    if url.kind() == StoreKind::S3 || url.endpoint().is_some() {
        let _ = writeln!(out, "Endpoint: {}", url.endpoint().unwrap_or("AWS S3 (default)"));
    }
    let _ = writeln!(out, "Prefix: {}", if url.prefix().is_empty() { "(none)" } else { url.prefix() });
}

fn schedule(d: &ExplainDatabase, out: &mut String) {
    out.push_str("Snapshot Schedule:\n");
    if d.snapshot_interval.is_zero() {
        out.push_str("Interval: off (a snapshot is taken at the start and after a gap)\n");
        return;
    }
    let _ = writeln!(out, "Interval: {}", seconds(d.snapshot_interval));
    let _ = writeln!(out, "Estimated: {} snapshots/day", trim(snapshots_per_day(d)));
}

/// As many as are worth it, as far as the replica tells; there is an interval.
fn snapshots_per_day(d: &ExplainDatabase) -> f64 {
    let m = match &d.seen {
        Seen::Listed(m) => *m,
        _ => Measured::default(),
    };
    copies_per_day(d.snapshot_interval, m.snapshot_bytes.unwrap_or(0), m.change_per_day)
}

fn retention_lines(p: &Policy, out: &mut String) {
    let last = |n: u32, unit: &str| if n == 1 { format!("last {unit}") } else { format!("last {n} {unit}s") };
    let week = if p.daily == 7 { "last week".to_string() } else { last(p.daily, "day") };
    let _ = writeln!(out, "Retention Policy (GFS):");
    let _ = writeln!(out, "Hourly: {} snapshots ({})", p.hourly, last(p.hourly, "hour"));
    let _ = writeln!(out, "Daily: {} snapshots ({week})", p.daily);
    let _ = writeln!(out, "Weekly: {} snapshots ({})", p.weekly, last(p.weekly, "week"));
    let _ = writeln!(out, "Monthly: {} snapshots (beyond {} weeks)", p.monthly, p.weekly);
    let _ = writeln!(out, "Every upload: kept for {}", words(p.pitr_window));
}

/// What will lie in the replica once retention is in balance, and what a month of it costs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// The newest snapshot and the increments within the window.
    pub active: u64,
    /// The other snapshots retention keeps.
    pub archive: u64,
    /// PUT requests per month, at most.
    pub puts: u64,
    /// LIST requests per month.
    pub lists: u64,
    /// GET and HEAD requests of validation per month; none of a directory.
    pub gets: u64,
    /// Of the bytes: of level 0, of merged files, of snapshots.
    pub bytes: [u64; 3],
    /// Of the PUTs: of files of these.
    pub files: [u64; 3],
}

/// The numbers behind the preview.
pub fn numbers(d: &ExplainDatabase) -> Estimate {
    let m = match &d.seen {
        Seen::Listed(m) => *m,
        _ => Measured::default(),
    };
    let snapshot = m.snapshot_now(d.bytes.unwrap_or(0)).or(d.bytes).unwrap_or(0);
    let window_days = d.policy.pitr_window.as_secs_f64() / 86_400.0;
    let levels = d.levels.iter().filter(|l| !l.is_zero()).count() as f64;
    // Each level holds at most what level 0 holds once more.
    let level0 = m.change_per_day.unwrap_or(0) as f64 * window_days;
    let increments = level0 * (1.0 + levels);
    let p = &d.policy;
    let kept = u64::from(p.hourly) + u64::from(p.daily) + u64::from(p.weekly) + u64::from(p.monthly);
    let kept = if d.snapshot_interval.is_zero() { 1 } else { kept.max(2) };
    let steady = if d.interval.is_zero() { 86_400.0 } else { per_day(d.interval) };
    let uploads = m.uploads_per_day.map_or(steady, |n| n as f64);
    let merges: f64 = d.levels.iter().filter(|l| !l.is_zero()).map(|l| per_day(*l).min(uploads)).sum();
    let snapshots = if d.snapshot_interval.is_zero() { 0.0 } else { snapshots_per_day(d) };
    let lease = lease_puts(d, uploads);
    // Each file is an object, and an entry in the manifest; under a lease (a directory has one that costs no request) the entries
    // of level 0 are made for many at once.
    let is_local = d.replica.as_ref().is_some_and(|r| r.kind() == StoreKind::Local);
    let entries = if d.lease_interval.is_zero() && !is_local {
        uploads
    } else {
        uploads.min(per_day(ENTRIES_WITHIN).max(uploads / MOST_WAITING as f64))
    };
    let files = uploads + entries + 2.0 * (merges + snapshots);
    // Retention after each snapshot and where one is not worth it, and each validation: one listing per level and one of the manifest.
    let rounds = if d.snapshot_interval.is_zero() { 0.0 } else { per_day(d.snapshot_interval) };
    // What lies there: as listed, else what comes in the time for which every upload is kept.
    let held = if d.seen_rate() {
        m.files_now as f64
    } else {
        uploads * d.policy.pitr_window.as_secs_f64() / 86_400.0
    };
    let validations = if d.validation_interval.is_zero() { 0.0 } else { per_day(d.validation_interval) };
    Estimate {
        active: snapshot.saturating_add(increments as u64),
        archive: snapshot.saturating_mul(kept - 1),
        puts: ((files + lease) * 30.0) as u64,
        lists: ((rounds + validations) * 11.0 * 30.0) as u64,
        gets: if is_local { 0 } else { (validations * held * VERIFY_READS * 30.0) as u64 },
        bytes: [level0 as u64, (increments - level0) as u64, snapshot.saturating_mul(kept)],
        files: [uploads, merges, snapshots].map(|n| (n * 30.0) as u64),
    }
}

/// PUTs a day that keep the lease: its own renewals while the database is busy, its share in a heart while that is idle, and one each way
/// between the two.
fn lease_puts(d: &ExplainDatabase, uploads: f64) -> f64 {
    if d.lease_interval.is_zero() {
        return 0.0;
    }
    let renewals = per_day(d.lease_interval);
    let awake = (uploads / per_day(d.lease_rests_after.max(Duration::from_secs(1)))).min(1.0);
    if d.lease_sharers < 2 || awake >= 1.0 {
        return renewals;
    }
    let resting = (1.0 - awake) * renewals / d.lease_sharers as f64;
    (awake * renewals + resting + 2.0 * uploads).min(renewals)
}

/// Requests of a quick verify for each file: its size, its beginning, its end.
const VERIFY_READS: f64 = 3.0;

fn estimate(d: &ExplainDatabase, url: &ReplicaUrl, out: &mut String) {
    let e = numbers(d);
    let _ = writeln!(out, "Estimated Storage:");
    let _ = writeln!(out, "Active: {} (current snapshots)", size(e.active));
    let _ = writeln!(out, "Archive: {} (retained history)", size(e.archive));
    match (&d.seen, d.bytes) {
        (Seen::Listed(m), Some(db)) if m.snapshot_bytes.is_some() && db > 0 => {
            let percent = m.snapshot_now(db).unwrap_or(0) as f64 * 100.0 / db as f64;
            let _ = write!(out, "Measured: a snapshot takes {percent:.0}% of the database's size");
            match m.change_per_day {
                Some(c) => {
                    let _ = writeln!(out, ", changes {} a day", size(c));
                }
                None => out.push_str("; changes are not counted (less than an hour of them)\n"),
            }
        }
        _ => out.push_str("Assumed: no compression and no changes, until a replica tells\n"),
    }
    let known = d.seen_rate();
    let upper = if known { "" } else { "at most " };
    let _ = writeln!(out, "Requests: {upper}{} PUT and {} LIST per month", e.puts, e.lists);
    if e.gets > 0 {
        let _ = writeln!(out, "Reads of validation: {upper}{} GET and HEAD per month", e.gets);
    }
    cost(d, url, &e, out);
}

impl ExplainDatabase {
    fn seen_rate(&self) -> bool {
        matches!(&self.seen, Seen::Listed(m) if m.uploads_per_day.is_some())
    }
}

fn cost(d: &ExplainDatabase, url: &ReplicaUrl, e: &Estimate, out: &mut String) {
    if url.kind() == StoreKind::Local && d.price_per_gb.is_none() {
        out.push_str("Monthly cost: none (local directory)\n");
        return;
    }
    let (per_gb, per_put, named) = rates(d, url);
    let (storage, requests) = month(d, url, e);
    let _ = writeln!(out, "Monthly cost: ~{} @ ${}/GB ({named})", dollars(storage), trim(per_gb));
    let _ = writeln!(out, "Monthly requests: ~{} @ ${}/1000", dollars(requests), trim(per_put));
    by_class(d, url, e, out);
    if e.gets > 0 {
        let _ = writeln!(out, "Monthly reads: ~{} @ ${}/1000", dollars(reads(d, url, e)), per_get(url));
    }
}

/// The class of a kind of file, if one is set and its price is known.
fn class_of(d: &ExplainDatabase, kind: usize) -> Option<&'static Class> {
    let name = d.classes.get(kind)?.as_deref()?;
    CLASSES.iter().find(|c| c.name == name)
}

/// Dollars a month for storage, and for PUT and LIST requests.
fn month(d: &ExplainDatabase, url: &ReplicaUrl, e: &Estimate) -> (f64, f64) {
    let (per_gb, per_put, _) = rates(d, url);
    let mut storage = (e.active as f64 + e.archive as f64) / 1e9 * per_gb;
    let mut requests = (e.puts + e.lists) as f64 / 1000.0 * per_put;
    for (kind, (bytes, files)) in e.bytes.iter().zip(e.files).enumerate() {
        if let Some(c) = class_of(d, kind) {
            storage += *bytes as f64 / 1e9 * (c.per_gb - per_gb);
            requests += files as f64 / 1000.0 * (c.per_1000_put - per_put);
        }
    }
    (storage.max(0.0), requests.max(0.0))
}

/// What the storage classes that are set do to it.
fn by_class(d: &ExplainDatabase, url: &ReplicaUrl, e: &Estimate, out: &mut String) {
    let (per_gb, per_put, _) = rates(d, url);
    for (kind, name) in d.classes.iter().enumerate() {
        let Some(name) = name else { continue };
        let what = KINDS.get(kind).copied().unwrap_or_default();
        let Some(c) = class_of(d, kind) else {
            let _ =
                writeln!(out, "Storage class of {what}: {name} (price not known; reckoned as the default)");
            continue;
        };
        let (bytes, files) =
            (e.bytes.get(kind).copied().unwrap_or(0), e.files.get(kind).copied().unwrap_or(0));
        let stored = bytes as f64 / 1e9 * c.per_gb;
        let instead = bytes as f64 / 1e9 * per_gb;
        let puts = files as f64 / 1000.0 * c.per_1000_put;
        let puts_instead = files as f64 / 1000.0 * per_put;
        let _ = writeln!(
            out,
            "Storage class of {what}: {name} @ ${}/GB and ${}/1000 PUT: ~{} a month for {}, instead of ~{}",
            trim(c.per_gb),
            trim(c.per_1000_put),
            dollars(stored + puts),
            size(bytes),
            dollars(instead + puts_instead)
        );
        if c.days > 0 {
            let least = if c.least > 0 { format!(" and {}", size(c.least)) } else { String::new() };
            let _ = writeln!(
                out,
                "Note: {name} bills {} days{least} of each file at the least, and its reads by the GB: a restore costs more",
                c.days
            );
        }
    }
}

/// Dollars per 1000 GET or HEAD requests.
fn per_get(url: &ReplicaUrl) -> f64 {
    price_of(url).unwrap_or(S3).per_1000_get
}

/// Dollars a month for what validation reads.
fn reads(d: &ExplainDatabase, url: &ReplicaUrl, e: &Estimate) -> f64 {
    match url.kind() {
        StoreKind::Local if d.price_per_gb.is_none() => 0.0,
        _ => e.gets as f64 / 1000.0 * per_get(url),
    }
}

/// Dollars per GB and per 1000 requests, and whose they are.
fn rates(d: &ExplainDatabase, url: &ReplicaUrl) -> (f64, f64, String) {
    let list = price_of(url);
    let free = Price { name: "local directory", per_gb: 0.0, per_1000_put: 0.0, per_1000_get: 0.0 };
    let reckoned = list.unwrap_or(if url.kind() == StoreKind::Local { free } else { S3 });
    let named = match (d.price_per_gb, list) {
        (Some(_), _) => "configured price".to_string(),
        (None, Some(p)) => format!("{} pricing, {PRICES_OF}", p.name),
        (None, None) if url.kind() == StoreKind::Local => free.name.to_string(),
        (None, None) => {
            let host = url.endpoint_host().unwrap_or_default();
            format!(
                "{} pricing, {PRICES_OF}: none known for {host}; set price_per_gb and price_per_1000_put",
                S3.name
            )
        }
    };
    (d.price_per_gb.unwrap_or(reckoned.per_gb), d.price_per_1000_put.unwrap_or(reckoned.per_1000_put), named)
}

/// All databases together.
#[derive(Default)]
struct Total {
    active: u64,
    archive: u64,
    puts: u64,
    lists: u64,
    gets: u64,
    /// Dollars.
    month: f64,
}

impl Total {
    fn of(databases: &[ExplainDatabase]) -> Total {
        let mut t = Total::default();
        for d in databases {
            let Some(url) = &d.replica else { continue };
            let e = numbers(d);
            t.active = t.active.saturating_add(e.active);
            t.archive = t.archive.saturating_add(e.archive);
            t.puts = t.puts.saturating_add(e.puts);
            t.lists = t.lists.saturating_add(e.lists);
            t.gets = t.gets.saturating_add(e.gets);
            let (storage, requests) = month(d, url, &e);
            t.month += storage + requests + reads(d, url, &e);
        }
        t
    }
}

fn total(databases: &[ExplainDatabase], out: &mut String) {
    let Total { active, archive, puts, lists, month, .. } = Total::of(databases);
    let _ = writeln!(out, "\nTotal: {} databases", databases.len());
    let _ = writeln!(out, "Active: {}", size(active));
    let _ = writeln!(out, "Archive: {}", size(archive));
    let _ = writeln!(out, "Requests: {puts} PUT and {lists} LIST per month");
    let _ = writeln!(out, "Monthly cost: ~{} (storage and requests)", dollars(month));
}

fn validation(d: &ExplainDatabase, out: &mut String) {
    out.push_str("Validation:\n");
    if d.validation_interval.is_zero() {
        out.push_str("Interval: off\n");
    } else {
        let _ = writeln!(out, "Interval: {}", seconds(d.validation_interval));
    }
    match d.webhooks.as_slice() {
        [] => out.push_str("On failure: log only (no webhook configured)\n"),
        all => {
            let hosts: Vec<String> = all.iter().map(|u| webhook(u)).collect();
            let _ = writeln!(out, "On failure: Send webhook to {}", hosts.join(", "));
        }
    }
}

/// I-EXP-3: scheme, host and port.
fn webhook(url: &str) -> String {
    Webhook { url: url.to_string(), secret: None, events: Vec::new() }.host()
}

fn per_day(interval: Duration) -> f64 {
    86_400.0 / interval.as_secs_f64()
}

/// `3600s (1 hour)`.
fn seconds(d: Duration) -> String {
    match (d.as_secs(), words(d)) {
        (0, words) => words,
        (s, words) if words == format!("{s}s") => words,
        (s, words) => format!("{s}s ({words})"),
    }
}

fn dollars(n: f64) -> String {
    if n > 0.0 && n < 0.01 { "$0.01".to_string() } else { format!("${n:.2}") }
}

/// A number without zeros at its end.
fn trim(n: f64) -> String {
    let text = format!("{n:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(url: &str) -> ExplainDatabase {
        ExplainDatabase {
            path: "/path/to/app.db".into(),
            bytes: Some(1_900_000_000),
            replica: Some(ReplicaUrl::parse(url).unwrap()),
            seen: Seen::NotAsked,
            remark: None,
            interval: Duration::from_secs(1),
            snapshot_interval: Duration::from_secs(3600),
            levels: [30, 300, 3600].map(Duration::from_secs).to_vec(),
            policy: Policy::default(),
            lease_interval: Duration::ZERO,
            lease_rests_after: Duration::from_secs(120),
            lease_sharers: 1,
            classes: [None, None, None],
            price_per_gb: None,
            price_per_1000_put: None,
            validation_interval: Duration::from_secs(3600),
            webhooks: vec!["https://hooks.example.com/services/T0/SECRET".into()],
        }
    }

    #[test]
    fn storage_classes_are_priced_by_what_lies_in_them() {
        let mut d = database("s3://b/app");
        let (plain, _) = month(&d, d.replica.as_ref().unwrap(), &numbers(&d));
        d.classes = [None, None, Some("STANDARD_IA".into())];
        let e = numbers(&d);
        let (storage, requests) = month(&d, d.replica.as_ref().unwrap(), &e);
        // All of it but the increments is snapshots.
        assert!(
            (plain - storage - e.bytes[2] as f64 / 1e9 * (0.023 - 0.0125)).abs() < 1e-9,
            "{plain} {storage}"
        );
        assert!(requests > 0.0);
        let text = explain(&[d.clone()]);
        assert!(
            text.contains("Storage class of snapshots: STANDARD_IA @ $0.0125/GB and $0.01/1000 PUT"),
            "{text}"
        );
        assert!(text.contains("STANDARD_IA bills 30 days and 128 KB of each file at the least"), "{text}");
        d.classes = [Some("WARM_SHELF".into()), None, None];
        assert!(explain(&[d]).contains("WARM_SHELF (price not known; reckoned as the default)"));
    }

    #[test]
    fn leases_of_idle_databases_are_paid_once() {
        let d = |sharers| ExplainDatabase {
            lease_interval: Duration::from_secs(25),
            lease_sharers: sharers,
            ..database("s3://bucket/tenants/app")
        };
        for (sharers, uploads, want) in [
            (1, 0.0, 3456.0),
            (1000, 0.0, 3.456),
            (1000, 86_400.0, 3456.0),
            (1000, 72.0, 345.6 + 3.1104 + 144.0),
        ] {
            let puts = lease_puts(&d(sharers), uploads);
            assert!((puts - want).abs() < 0.01, "{sharers} {uploads}: {puts}");
        }
    }

    #[test]
    fn the_preview_has_the_promised_shape() {
        let mut d =
            database("s3://my-bucket/backups/production/app?endpoint=https%3A%2F%2Ffly.storage.tigris.dev");
        d.seen = Seen::Listed(Measured {
            snapshot_bytes: Some(950_000_000),
            bytes_since: 0,
            change_per_day: Some(100_000_000),
            uploads_per_day: Some(5000),
            bytes_now: 3_000_000_000,
            files_now: 5100,
        });
        assert_eq!(
            explain(&[d]),
            "Walrust Configuration Preview\n\
             =============================\n\
             Databases:\n\
             - /path/to/app.db (1.9 GB)\n\
             S3 Destination:\n\
             Bucket: my-bucket\n\
             Endpoint: https://fly.storage.tigris.dev\n\
             Prefix: backups/production/app\n\
             Holds: 5100 files, 3 GB\n\
             Snapshot Schedule:\n\
             Interval: 3600s (1 hour)\n\
             Estimated: 0.1429 snapshots/day\n\
             Retention Policy (GFS):\n\
             Hourly: 24 snapshots (last 24 hours)\n\
             Daily: 7 snapshots (last week)\n\
             Weekly: 12 snapshots (last 12 weeks)\n\
             Monthly: 12 snapshots (beyond 12 weeks)\n\
             Every upload: kept for 1 day\n\
             Estimated Storage:\n\
             Active: 1.4 GB (current snapshots)\n\
             Archive: 51.3 GB (retained history)\n\
             Measured: a snapshot takes 50% of the database's size, changes 100 MB a day\n\
             Requests: 491528 PUT and 15840 LIST per month\n\
             Reads of validation: 11016000 GET and HEAD per month\n\
             Monthly cost: ~$1.05 @ $0.02/GB (Tigris pricing, 2025)\n\
             Monthly requests: ~$2.54 @ $0.005/1000\n\
             Monthly reads: ~$5.51 @ $0.0005/1000\n\
             Validation:\n\
             Interval: 3600s (1 hour)\n\
             On failure: Send webhook to https://hooks.example.com\n"
        );
    }

    #[test]
    fn a_database_that_has_grown_since_its_snapshot_counts_as_it_is() {
        let m = Measured { snapshot_bytes: Some(300), bytes_since: 30_000_000, ..Measured::default() };
        assert_eq!(m.snapshot_now(40_000_000), Some(30_000_300));
        assert_eq!(m.snapshot_now(20_000_000), Some(20_000_000), "pages that changed twice count once");
        assert_eq!(Measured { bytes_since: 0, ..m }.snapshot_now(20_000_000), Some(300));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut d = database("s3://b/p?endpoint=http%3A%2F%2F127.0.0.1%3A9000");
        d.seen = Seen::Unreachable("connection refused".into());
        (d.webhooks, d.validation_interval) = (vec![], Duration::ZERO);
        let text = explain(&[d.clone()]);
        for line in [
            "Replica unreachable now (connection refused); estimates are from the database's size alone",
            "Active: 1.9 GB (current snapshots)",
            "Archive: 102.6 GB (retained history)",
            "Assumed: no compression and no changes, until a replica tells",
            "Monthly cost: ~$2.40 @ $0.023/GB (S3 Standard pricing, 2025: none known for 127.0.0.1; set price_per_gb and price_per_1000_put)",
            "Interval: off",
            "On failure: log only (no webhook configured)",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.contains("Requests: at most "));
        d.price_per_gb = Some(0.025);
        assert!(explain(&[d]).contains("Monthly cost: ~$2.61 @ $0.025/GB (configured price)\n"));
        let local = explain(&[database("/backups/app")]);
        assert!(local.contains("Directory Destination:\nPath: /backups/app\n"));
        assert!(local.contains("Monthly cost: none (local directory)\n"));
        assert!(!local.contains("SECRET"));
        assert!(explain(&[]).contains("No database is configured"));
        let two = explain(&[database("s3://b/one"), database("s3://b/two")]);
        assert!(two.contains("Total: 2 databases\nActive: 3.8 GB\nArchive: 205.2 GB\n"), "{two}");
    }

    #[test]
    fn prices_by_endpoint() {
        for (url, name) in [
            ("s3://b/p", Some("S3 Standard")),
            ("s3://b/p?endpoint=https%3A%2F%2Fabc.r2.cloudflarestorage.com", Some("Cloudflare R2")),
            ("s3://b/p?endpoint=https%3A%2F%2Fevil-tigris.dev", None),
            ("gs://b/p", Some("Google Cloud Storage Standard")),
            ("az://c/p", Some("Azure Blob Hot LRS")),
            ("/x", None),
        ] {
            assert_eq!(price_of(&ReplicaUrl::parse(url).unwrap()).map(|p| p.name), name, "{url}");
        }
    }

    #[test]
    fn hosts_that_are_ipv6_addresses_are_whole() {
        let mut d = database("s3://b/p?endpoint=http://[2001:db8::1]:9000");
        d.webhooks = vec!["http://[::1]:8080/hook?token=hunter2".into(), "https://H.example/x".into()];
        let text = explain(std::slice::from_ref(&d));
        assert!(text.contains("none known for [2001:db8::1];"), "{text}");
        assert!(text.contains("Send webhook to http://[::1]:8080, https://h.example\n"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
