//! Values: what a setting takes, read from whatever a front door gives (text, TOML, JSON).

use super::webhook;
use crate::base::{Error, Result, Webhook, quoted};
use std::fmt;
use std::time::Duration;

/// A hundred years: longer ones are typing errors, and sums of two still fit every clock.
pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What a setting takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ValueKind {
    /// A replica URL or plain path, with placeholders.
    Replica,
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
    /// `async` or `sync`.
    Durability,
    /// `all` or `read`.
    Functions,
    /// A local directory, with placeholders.
    Dir,
    /// `host:port`, or empty for off.
    Address,
    /// Dollars, 0 or more.
    Price,
    /// Webhook endpoints.
    Webhooks,
}

/// A value that was read.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Text(String),
    Duration(Duration),
    Levels(Vec<Duration>),
    Count(u32),
    Bytes(ByteCount),
    Durability(Durability),
    Functions(Functions),
    Price(f64),
    Webhooks(Vec<Webhook>),
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

/// Looks at a replica URL and says what is wrong with it.
pub type UrlCheck = fn(&str) -> Result<()>;

/// The syntax of a replica URL: a known scheme, a bucket, no credentials. Opens nothing.
pub fn check_url(url: &str) -> Result<()> {
    if url.trim().is_empty() {
        return Err(Error::config("a replica URL must not be empty"));
    }
    if url.len() > 2048 || url.chars().any(char::is_control) {
        return Err(Error::config("a replica URL has at most 2048 bytes and no control characters"));
    }
    let allowed = "use s3://bucket/path, gs://bucket/path, az://container/path, file:///dir or a plain path";
    let Some((scheme, rest)) = url.split_once("://") else {
        let scheme = url.split_once(':').map(|(s, _)| s);
        return match scheme {
            Some(s @ ("s3" | "gs" | "az" | "file" | "http" | "https")) => {
                Err(Error::config(format!("replica URL of scheme {s} lacks \"//\": {allowed}")))
            }
            _ => Ok(()),
        };
    };
    if !matches!(scheme, "s3" | "gs" | "az" | "file") {
        return Err(Error::config(format!("replica URL of unknown scheme {}: {allowed}", quoted(scheme))));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    if authority.contains('@') {
        return Err(Error::config(
            "a replica URL must not carry user info: credentials come from the environment",
        ));
    }
    if scheme == "file" {
        let host = matches!(authority, "" | "localhost");
        return match host && rest.len() > authority.len() + 1 {
            true => Ok(()),
            false => Err(Error::config(format!("{} needs an absolute path: file:///dir", quoted(url)))),
        };
    }
    if authority.is_empty() {
        return Err(Error::config(format!("{} names no bucket: {allowed}", quoted(url))));
    }
    let parsed = url::Url::parse(url).map_err(|e| Error::config(format!("unreadable replica URL: {e}")))?;
    for (key, _) in parsed.query_pairs() {
        let k = key.to_ascii_lowercase();
        if ["secret", "password", "token", "access_key", "credential"].iter().any(|w| k.contains(w)) {
            return Err(Error::config(format!(
                "replica URL parameter {}: credentials come from the environment, never from the URL",
                quoted(&key)
            )));
        }
    }
    Ok(())
}

/// A value as a front door gives it, with the line it stands on (0 where there are no lines).
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Raw {
    pub line: u32,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum What {
    Text(String),
    Int(i64),
    Float(f64),
    List(Vec<Raw>),
    Table(Vec<(String, Raw)>),
    /// Something no setting takes: a boolean, a date.
    Other(&'static str),
}

impl Raw {
    pub(super) fn text(t: impl Into<String>) -> Raw {
        Raw { line: 0, what: What::Text(t.into()) }
    }

    pub(super) fn type_name(&self) -> &'static str {
        match &self.what {
            What::Text(_) => "text",
            What::Int(_) => "an integer",
            What::Float(_) => "a number",
            What::List(_) => "a list",
            What::Table(_) => "a table",
            What::Other(name) => name,
        }
    }
}

/// What is wrong, and on which line.
#[derive(Debug)]
pub(super) struct Fault {
    pub line: u32,
    pub message: String,
}

pub(super) fn fault(raw: &Raw, message: impl Into<String>) -> Fault {
    Fault { line: raw.line, message: message.into() }
}

pub(super) fn text_of<'a>(raw: &'a Raw, wanted: &str) -> Result<&'a str, Fault> {
    match &raw.what {
        What::Text(t) => Ok(t),
        _ => Err(fault(raw, format!("is {}; it takes {wanted}", raw.type_name()))),
    }
}

fn duration_of(raw: &Raw) -> Result<Duration, Fault> {
    if raw.what == What::Int(0) {
        return Ok(Duration::ZERO); // the one number that needs no unit
    }
    parse_duration(text_of(raw, "a duration as text, e.g. \"5s\"")?).map_err(|m| fault(raw, m))
}

/// Reads `raw` as `kind`. The second part is the text that `walrust_config` shows.
pub(super) fn read(kind: ValueKind, raw: &Raw) -> Result<(Value, String), Fault> {
    match kind {
        ValueKind::Replica | ValueKind::Dir => {
            let t = text_of(raw, "text")?;
            if t.trim().is_empty() || t.contains('\0') {
                return Err(fault(raw, "must not be empty"));
            }
            Ok((Value::Text(t.to_string()), t.to_string()))
        }
        ValueKind::Duration { min, max } => {
            let d = duration_of(raw)?;
            if d < min || d > max {
                let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
                return Err(fault(raw, format!("must be from {min} to {max}")));
            }
            let shown = match &raw.what {
                What::Text(t) => t.trim().to_string(),
                _ => "0".to_string(),
            };
            Ok((Value::Duration(d), shown))
        }
        ValueKind::Levels => levels(raw),
        ValueKind::Count { min, max } => count(raw, min, max),
        ValueKind::Bytes { min } => {
            let n = match &raw.what {
                What::Int(n) => {
                    u64::try_from(*n).map(ByteCount).map_err(|_| fault(raw, "must not be negative"))?
                }
                _ => ByteCount::parse(text_of(raw, "a size, e.g. \"1GB\"")?).map_err(|m| fault(raw, m))?,
            };
            if n.0 < min {
                return Err(fault(raw, format!("must be {} or more", ByteCount(min))));
            }
            Ok((Value::Bytes(n), n.to_string()))
        }
        ValueKind::Durability => match text_of(raw, "\"async\" or \"sync\"")? {
            "async" => Ok((Value::Durability(Durability::Async), "async".into())),
            "sync" => Ok((Value::Durability(Durability::Sync), "sync".into())),
            other => Err(fault(raw, format!("{} is neither \"async\" nor \"sync\"", quoted(other)))),
        },
        ValueKind::Functions => match text_of(raw, "\"all\" or \"read\"")? {
            "all" => Ok((Value::Functions(Functions::All), "all".into())),
            "read" => Ok((Value::Functions(Functions::Read), "read".into())),
            other => Err(fault(raw, format!("{} is neither \"all\" nor \"read\"", quoted(other)))),
        },
        ValueKind::Address => {
            let t = text_of(raw, "an address, e.g. \"127.0.0.1:9090\"")?.trim();
            address(t).map_err(|m| fault(raw, m))?;
            Ok((Value::Text(t.to_string()), t.to_string()))
        }
        ValueKind::Price => price(raw),
        ValueKind::Webhooks => webhook::webhooks(raw),
    }
}

fn levels(raw: &Raw) -> Result<(Value, String), Fault> {
    let wanted = "a list of one to three rising durations, e.g. [\"30s\", \"5m\", \"1h\"]";
    let items: Vec<Raw> = match &raw.what {
        What::List(items) => items.clone(),
        What::Text(t) => {
            t.split(',').map(|p| Raw { line: raw.line, what: What::Text(p.trim().into()) }).collect()
        }
        _ => return Err(fault(raw, format!("is {}; it takes {wanted}", raw.type_name()))),
    };
    if items.is_empty() || items.len() > 3 {
        return Err(fault(raw, format!("takes {wanted}")));
    }
    let mut found: Vec<Duration> = Vec::new();
    let mut shown: Vec<&str> = Vec::new();
    for item in &items {
        let d = duration_of(item)?;
        if found.last().copied().unwrap_or(Duration::ZERO) >= d {
            return Err(fault(item, format!("takes {wanted}")));
        }
        found.push(d);
        shown.push(text_of(item, wanted)?);
    }
    Ok((Value::Levels(found), shown.join(",")))
}

fn count(raw: &Raw, min: u32, max: u32) -> Result<(Value, String), Fault> {
    let wrong = || fault(raw, format!("must be a whole number from {min} to {max}"));
    let n = match &raw.what {
        What::Int(n) => u32::try_from(*n).map_err(|_| wrong())?,
        What::Text(t) => t.trim().parse().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    if n < min || n > max {
        return Err(wrong());
    }
    Ok((Value::Count(n), n.to_string()))
}

fn price(raw: &Raw) -> Result<(Value, String), Fault> {
    let wrong = || fault(raw, "must be a price in dollars, 0 or more, e.g. 0.023");
    let n = match &raw.what {
        What::Int(n) => *n as f64,
        What::Float(n) => *n,
        What::Text(t) => t.trim().parse::<f64>().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    if !(0.0..=1e9).contains(&n) {
        return Err(wrong());
    }
    Ok((Value::Price(n), n.to_string()))
}

fn address(t: &str) -> Result<(), String> {
    let wrong = || format!("{} is not an address; write e.g. \"127.0.0.1:9090\", or \"\" for off", quoted(t));
    if t.is_empty() {
        return Ok(());
    }
    let (host, port) = t.rsplit_once(':').ok_or_else(wrong)?;
    let host_ok = !host.is_empty()
        && (host.starts_with('[') && host.ends_with(']') || !host.contains(':'))
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"[]:.-_%".contains(&b));
    match host_ok && port.parse::<u16>().is_ok() {
        true => Ok(()),
        false => Err(wrong()),
    }
}
