//! Values: what a setting takes.

use crate::base::{Result, Secret, Webhook, quoted};
use std::fmt;
use std::time::Duration;

/// A hundred years: longer ones are typing errors, and sums of two still fit every clock.
pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What a setting takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ValueKind {
    /// A replica URL or plain path, with placeholders.
    Replica,
    /// Replica URLs or plain paths, with placeholders.
    Mirrors,
    /// A duration from `min` to `max`.
    Duration {
        /// The shortest allowed.
        min: Duration,
        /// The longest allowed.
        max: Duration,
    },
    /// One to three rising durations.
    Levels,
    /// A whole number from `min` to `max`.
    Count {
        /// The least allowed.
        min: u32,
        /// The most allowed.
        max: u32,
    },
    /// A number of bytes, `min` at the least.
    Bytes {
        /// The least allowed, in bytes.
        min: u64,
    },
    /// Bytes a second, `min` at the least; 0 or nothing for no bound.
    Rate {
        /// The least allowed, in bytes a second.
        min: u64,
    },
    /// `async` or `sync`.
    Durability,
    /// `all` or `read`.
    Functions,
    /// `off` or `ddl`.
    AutoLabel,
    /// `writer` or `janitor`.
    RetentionBy,
    /// `true` or `false`.
    Switch,
    /// `governance` or `compliance`.
    RetainMode,
    /// The name of a storage class that can be read at once.
    StorageClass,
    /// `AES256`, `aws:kms`, `aws:kms:dsse` or `sse-c`.
    Sse,
    /// One word of printable ASCII.
    Word,
    /// Public keys of age.
    Recipients,
    /// A local directory, with placeholders.
    Dir,
    /// A local directory, from the root.
    Folder,
    /// A number of bytes, `min` at the least, or 0 for none.
    Room {
        /// The least allowed, in bytes.
        min: u64,
    },
    /// `host:port`, or empty for off.
    Address,
    /// Dollars, 0 or more.
    Price,
    /// Webhook endpoints.
    Webhooks,
    /// One HTTP URL, or empty for off.
    Endpoint,
    /// A secret word, or empty for none.
    Token,
}

/// A value that was read.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Text(String),
    Texts(Vec<String>),
    Mirrors(Vec<MirrorSettings>),
    Duration(Duration),
    Levels(Vec<Duration>),
    Count(u32),
    Bytes(ByteCount),
    Durability(Durability),
    Functions(Functions),
    AutoLabel(AutoLabel),
    RetentionBy(RetentionBy),
    Switch(bool),
    RetainMode(RetainMode),
    Price(f64),
    Webhooks(Vec<Webhook>),
    Token(Secret),
}

/// A mirror: where it lies, and what holds for it alone. `None`: what holds for the database ([`super::Settings::of_mirror`]).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MirrorSettings {
    /// A replica URL or plain path.
    pub replica: String,
    /// How long every upload is kept there.
    pub pitr_window: Option<Duration>,
    /// Hourly, daily, weekly and monthly snapshots that are kept there.
    pub retention: [Option<u32>; 4],
    /// Storage classes there: of level 0, of merged files, of snapshots.
    pub storage_class: [Option<String>; 3],
    /// Public keys of age: for whom files are encrypted there.
    pub encrypt: Option<Vec<String>>,
    /// What it has of its own, as it was said.
    pub(super) said: Vec<String>,
}

impl MirrorSettings {
    /// One that has nothing of its own.
    pub fn at(replica: impl Into<String>) -> MirrorSettings {
        MirrorSettings { replica: replica.into(), ..MirrorSettings::default() }
    }

    /// As `walrust_config` shows it: `s3://bucket/app (pitr_window 30d, retention.daily 60)`.
    pub(super) fn shown(&self) -> String {
        match self.said.as_slice() {
            [] => self.replica.clone(),
            said => format!("{} ({})", self.replica, said.join(", ")),
        }
    }
}

/// When COMMIT returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// At once; the replica follows.
    #[default]
    Async,
    /// When the replica has the commit.
    Sync,
}

impl Durability {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Async => "async",
            Durability::Sync => "sync",
        }
    }
}

/// Which points get a label by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AutoLabel {
    /// None.
    #[default]
    Off,
    /// The one before each change of the schema.
    Ddl,
}

/// Who removes what retention does not keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RetentionBy {
    /// The process that streams.
    #[default]
    Writer,
    /// Somebody with other credentials.
    Janitor,
}

/// Who may go around a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RetainMode {
    /// Who has the right to.
    #[default]
    Governance,
    /// Nobody.
    Compliance,
}

/// Which SQL functions there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Functions {
    /// Every one.
    #[default]
    All,
    /// Those that neither write a file nor reach the network.
    Read,
}

/// A number of bytes; `1GB` is 10^9, `1GiB` is 2^30.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteCount(pub u64);

/// Longest unit first where one ends in another.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ByteCount {
    /// Reads `1GB`, `512 MB`, `1.5GiB`, `4096`. Errors with the text to show.
    pub fn parse(text: &str) -> Result<ByteCount, String> {
        let wrong = || format!("{} is not a size; write e.g. \"1GB\", \"512MB\" or \"1GiB\"", quoted(text));
        let t = text.trim();
        let lower = t.to_ascii_lowercase();
        let found = UNITS.iter().find_map(|(u, n)| Some((lower.strip_suffix(&u.to_ascii_lowercase())?, *n)));
        let (digits, unit) = found.unwrap_or((lower.as_str(), 1));
        let (whole, part) = digits.trim_end().split_once('.').unwrap_or((digits.trim_end(), ""));
        let digits_only = |d: &str| d.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty()
            || !digits_only(whole)
            || !digits_only(part)
            || part.len() > 9
            || (digits.contains('.') && part.is_empty())
        {
            return Err(wrong());
        }
        let too_large = || format!("{} is more bytes than there are", quoted(text));
        let whole: u128 = whole.parse().map_err(|_| too_large())?;
        let scale = 10u128.pow(u32::try_from(part.len()).unwrap_or(0));
        let part: u128 = if part.is_empty() { 0 } else { part.parse().map_err(|_| wrong())? };
        let unit = u128::from(unit);
        let bytes = whole.checked_mul(unit).ok_or_else(too_large)?.saturating_add(part * unit / scale);
        u64::try_from(bytes).map(ByteCount).map_err(|_| too_large())
    }
}

/// In the largest unit that shows it exactly: `1GB`, `64MiB`, `4097B`.
impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().filter(|(_, n)| self.0 > 0 && self.0.is_multiple_of(*n));
        match exact.min_by_key(|(_, n)| self.0 / n) {
            Some((u, n)) => write!(f, "{}{u}", self.0 / n),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Reads `1s`, `100ms`, `1h 30m`, `0`. Errors with the text to show.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let t = text.trim();
    if t == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = |why: &str| {
        format!("{} is not a duration{why}; write e.g. \"100ms\", \"5s\", \"24h\", or \"0\"", quoted(text))
    };
    if t.starts_with('-') {
        return Err(wrong(" (negative)"));
    }
    if t.len() > 64 {
        return Err(wrong(""));
    }
    match humantime::parse_duration(t) {
        Ok(d) if d <= MAX_DURATION => Ok(d),
        Ok(_) | Err(humantime::DurationError::NumberOverflow) => Err(wrong(" of at most 100 years")),
        Err(humantime::DurationError::NumberExpected(_) | humantime::DurationError::Empty) => Err(wrong("")),
        Err(_) if t.bytes().all(|b| b.is_ascii_digit()) => Err(wrong(" (its unit is missing)")),
        Err(_) => Err(wrong("")),
    }
}
