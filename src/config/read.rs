//! Reading what a front door gave ([`Raw`]) as a value.

use super::raw::{self, Fault, Raw, What, fault, text_of};
use super::table::{self, Id};
use super::value::{
    AutoLabel, ByteCount, Durability, Functions, MirrorSettings, RetainMode, RetentionBy, Value, ValueKind,
    parse_duration,
};
use super::webhook;
use crate::base::{Secret, Webhook, quoted};
use std::time::Duration;

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
        ValueKind::Mirrors => {
            let mirrors = mirrors(raw)?;
            let shown = mirrors.iter().map(MirrorSettings::shown).collect::<Vec<_>>().join(",");
            Ok((Value::Mirrors(mirrors), shown))
        }
        ValueKind::Folder => {
            let t = text_of(raw, "text")?;
            if !t.starts_with('/') || t.contains('\0') {
                return Err(fault(
                    raw,
                    format!("{} is not a path from the root (`/var/cache/walrust`)", quoted(t)),
                ));
            }
            Ok((Value::Text(t.to_string()), t.to_string()))
        }
        ValueKind::Room { min } => {
            let n = bytes(raw)?;
            if n.0 > 0 && n.0 < min {
                return Err(fault(raw, format!("must be {} or more, or 0 for none", ByteCount(min))));
            }
            Ok((Value::Bytes(n), if n.0 == 0 { "0".into() } else { n.to_string() }))
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
            let n = bytes(raw)?;
            if n.0 < min {
                return Err(fault(raw, format!("must be {} or more", ByteCount(min))));
            }
            Ok((Value::Bytes(n), n.to_string()))
        }
        ValueKind::Rate { min } => {
            let n = match &raw.what {
                What::Text(t) if t.trim().is_empty() => ByteCount(0),
                _ => bytes(raw)?,
            };
            if n.0 > 0 && n.0 < min {
                let wanted =
                    format!("must be {} or more (bytes a second), or 0 for no bound", ByteCount(min));
                return Err(fault(raw, wanted));
            }
            Ok((Value::Bytes(n), if n.0 == 0 { "0".into() } else { n.to_string() }))
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
        ValueKind::AutoLabel => match text_of(raw, "\"off\" or \"ddl\"")? {
            "off" => Ok((Value::AutoLabel(AutoLabel::Off), "off".into())),
            "ddl" => Ok((Value::AutoLabel(AutoLabel::Ddl), "ddl".into())),
            other => Err(fault(raw, format!("{} is neither \"off\" nor \"ddl\"", quoted(other)))),
        },
        ValueKind::RetentionBy => match text_of(raw, "\"writer\" or \"janitor\"")? {
            "writer" => Ok((Value::RetentionBy(RetentionBy::Writer), "writer".into())),
            "janitor" => Ok((Value::RetentionBy(RetentionBy::Janitor), "janitor".into())),
            other => Err(fault(raw, format!("{} is neither \"writer\" nor \"janitor\"", quoted(other)))),
        },
        ValueKind::RetainMode => match text_of(raw, "\"governance\" or \"compliance\"")? {
            "governance" => Ok((Value::RetainMode(RetainMode::Governance), "governance".into())),
            "compliance" => Ok((Value::RetainMode(RetainMode::Compliance), "compliance".into())),
            other => {
                Err(fault(raw, format!("{} is neither \"governance\" nor \"compliance\"", quoted(other))))
            }
        },
        ValueKind::StorageClass => {
            let t = word(raw, "the name of a storage class, e.g. \"STANDARD_IA\"")?;
            if FROZEN.contains(&t) {
                let wanted = "has to be thawed before it is read, and a restore would wait for that";
                return Err(fault(
                    raw,
                    format!("{} {wanted}; name a class such as GLACIER_IR or STANDARD_IA", quoted(t)),
                ));
            }
            Ok((Value::Text(t.to_string()), t.to_string()))
        }
        ValueKind::Sse => match word(raw, SSE_WANTED)? {
            t @ ("" | "AES256" | "aws:kms" | "aws:kms:dsse" | "sse-c") => {
                Ok((Value::Text(t.into()), t.into()))
            }
            other => Err(fault(raw, format!("{} is none of {SSE_WANTED}", quoted(other)))),
        },
        ValueKind::Word => {
            let t = word(raw, "one word")?;
            Ok((Value::Text(t.to_string()), t.to_string()))
        }
        ValueKind::Recipients => {
            let keys = recipients(raw)?;
            let shown = keys.join(",");
            Ok((Value::Texts(keys), shown))
        }
        ValueKind::Switch => {
            let said = match &raw.what {
                What::Text(t) => t.as_str(),
                What::Other(t) => t,
                _ => raw.type_name(),
            };
            match said {
                "true" => Ok((Value::Switch(true), "true".into())),
                "false" => Ok((Value::Switch(false), "false".into())),
                other => Err(fault(raw, format!("{} is neither true nor false", quoted(other)))),
            }
        }
        ValueKind::Address => {
            let t = text_of(raw, "an address, e.g. \"127.0.0.1:9090\"")?.trim();
            address(t).map_err(|m| fault(raw, m))?;
            Ok((Value::Text(t.to_string()), t.to_string()))
        }
        ValueKind::Price => price(raw),
        ValueKind::Webhooks => {
            let (hooks, shown) = webhook::webhooks(raw)?;
            Ok((Value::Webhooks(hooks), shown))
        }
        ValueKind::Endpoint => {
            let hook = webhook::endpoint(raw)?;
            let shown = hook.as_ref().map(Webhook::host).unwrap_or_default();
            Ok((Value::Webhooks(hook.into_iter().collect()), shown))
        }
        ValueKind::Token => {
            let wanted = "16 to 512 printable characters of ASCII without a space";
            let t = text_of(raw, wanted)?.trim();
            let is_one = (16..=512).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_graphic());
            // (What was given is not repeated: most of it may be right.)
            match t {
                "" => Ok((Value::Token(Secret::default()), String::new())),
                t if is_one => Ok((Value::Token(Secret::new(t)), "***".to_string())),
                _ => Err(fault(raw, format!("is no such word; it takes {wanted}"))),
            }
        }
    }
}

/// URLs: text with commas between them, or a list of texts and of tables with `replica` and what holds for that mirror alone.
fn mirrors(given: &Raw) -> Result<Vec<MirrorSettings>, Fault> {
    let wanted = "URLs of replicas, or tables with replica";
    match &given.what {
        What::Text(t) if t.trim_start().starts_with('[') => {
            let inner = raw::json(t).map_err(|m| fault(given, m))?;
            mirrors(&inner).map_err(|f| fault(given, f.message))
        }
        What::Text(t) => {
            Ok(t.split(',').map(str::trim).filter(|u| !u.is_empty()).map(MirrorSettings::at).collect())
        }
        What::List(items) => items.iter().map(|item| mirror(item, wanted)).collect(),
        _ => Err(fault(given, format!("is {}; it takes {wanted}", given.type_name()))),
    }
}

fn mirror(item: &Raw, wanted: &str) -> Result<MirrorSettings, Fault> {
    let url = |raw: &Raw, wanted: &str| {
        let url = text_of(raw, wanted)?.trim();
        match url.is_empty() || url.contains('\0') {
            true => Err(fault(item, "a mirror's replica must not be empty")),
            false => Ok(url.to_string()),
        }
    };
    let What::Table(fields) = &item.what else { return url(item, wanted).map(MirrorSettings::at) };
    let mut mirror = MirrorSettings::default();
    for (key, raw) in fields {
        match (&raw.what, table::is_section(key)) {
            _ if key == "replica" => mirror.replica = url(raw, "a replica URL")?,
            (What::Table(inner), true) => {
                inner.iter().try_for_each(|(k, raw)| own(&mut mirror, Some(key), k, raw))?;
            }
            _ => own(&mut mirror, None, key, raw)?,
        }
    }
    match mirror.replica.is_empty() {
        true => Err(fault(item, "a mirror has no replica")),
        false => Ok(mirror),
    }
}

/// What a mirror has of its own.
fn own(mirror: &mut MirrorSettings, section: Option<&str>, key: &str, raw: &Raw) -> Result<(), Fault> {
    let dotted = section.map_or_else(|| key.to_string(), |s| format!("{s}.{key}"));
    let unknown = || {
        fault(
            raw,
            format!(
                "unknown key {}; a mirror has replica, pitr_window, retention, storage_class, encrypt",
                quoted(&dotted)
            ),
        )
    };
    let setting = table::by_toml(section, key).ok_or_else(unknown)?;
    let (value, shown) =
        read(setting.kind, raw).map_err(|f| Fault { message: format!("{dotted}: {}", f.message), ..f })?;
    let [hourly, daily, weekly, monthly] = &mut mirror.retention;
    let [level0, merged, snapshot] = &mut mirror.storage_class;
    match (setting.id, value) {
        (Id::PitrWindow, Value::Duration(d)) => mirror.pitr_window = Some(d),
        (Id::RetentionHourly, Value::Count(n)) => *hourly = Some(n),
        (Id::RetentionDaily, Value::Count(n)) => *daily = Some(n),
        (Id::RetentionWeekly, Value::Count(n)) => *weekly = Some(n),
        (Id::RetentionMonthly, Value::Count(n)) => *monthly = Some(n),
        (Id::StorageClassLevel0, Value::Text(t)) => *level0 = Some(t),
        (Id::StorageClassMerged, Value::Text(t)) => *merged = Some(t),
        (Id::StorageClassSnapshot, Value::Text(t)) => *snapshot = Some(t),
        (Id::Encrypt, Value::Texts(keys)) => mirror.encrypt = Some(keys),
        _ => return Err(unknown()),
    }
    let shown = if shown.is_empty() { "none" } else { &shown };
    mirror.said.push(format!("{dotted} {shown}"));
    Ok(())
}

/// Public keys of age, by their form; that they are keys the store's room says.
fn recipients(given: &Raw) -> Result<Vec<String>, Fault> {
    const WANTED: &str = "public keys of age (age1…), in a list or with commas between them";
    let keys: Vec<String> = match &given.what {
        What::Text(t) if t.trim_start().starts_with('[') => {
            let inner = raw::json(t).map_err(|m| fault(given, m))?;
            return recipients(&inner).map_err(|f| fault(given, f.message));
        }
        What::Text(t) => {
            t.split(',').map(str::trim).filter(|k| !k.is_empty()).map(ToString::to_string).collect()
        }
        What::List(items) => items
            .iter()
            .map(|item| text_of(item, WANTED).map(|t| t.trim().to_string()))
            .collect::<Result<_, _>>()?,
        _ => return Err(fault(given, format!("is {}; it takes {WANTED}", given.type_name()))),
    };
    let is_public =
        |k: &String| k.starts_with("age1") && k.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    match keys.iter().find(|k| !is_public(k)) {
        // (Whoever pasted the other half of a pair does not want to see it in a log.)
        Some(k) if k.to_ascii_uppercase().contains("SECRET") => Err(fault(
            given,
            format!("a secret key does not belong here; it takes {WANTED}, as age-keygen -y prints them"),
        )),
        Some(k) => Err(fault(given, format!("{} is none of {WANTED}", quoted(k)))),
        None => Ok(keys),
    }
}

/// Classes whose objects cannot be read at once.
/// (Azure's `Archive`; Google's `ARCHIVE` can.)
const FROZEN: [&str; 3] = ["GLACIER", "DEEP_ARCHIVE", "Archive"];
const SSE_WANTED: &str = "\"AES256\", \"aws:kms\", \"aws:kms:dsse\", \"sse-c\"";

/// Text that goes into a header: printable ASCII without spaces, 2,048 characters at the most.
fn word<'a>(raw: &'a Raw, wanted: &str) -> Result<&'a str, Fault> {
    let t = text_of(raw, wanted)?.trim();
    if t.len() <= 2048 && t.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(t);
    }
    Err(fault(raw, format!("{} is not {wanted}: letters, digits and signs, without spaces", quoted(t))))
}

fn bytes(raw: &Raw) -> Result<ByteCount, Fault> {
    match &raw.what {
        What::Int(n) => u64::try_from(*n).map(ByteCount).map_err(|_| fault(raw, "must not be negative")),
        _ => ByteCount::parse(text_of(raw, "a size, e.g. \"1GB\"")?).map_err(|m| fault(raw, m)),
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
