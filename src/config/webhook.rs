//! Webhook endpoints: tables with `url`, `secret`, `events`, or plain URLs.

use super::nearest::nearest;
use super::raw::{self, Fault, Raw, What, fault, text_of};
use crate::base::{EventKind, Result, Secret, Webhook, quoted};

pub(super) fn webhooks(given: &Raw) -> Result<(Vec<Webhook>, String), Fault> {
    let mut hooks = Vec::new();
    match &given.what {
        What::Text(t) if t.trim_start().starts_with('[') => {
            let inner = raw::json(t).map_err(|m| fault(given, m))?;
            return webhooks(&inner).map_err(|f| fault(given, f.message));
        }
        What::Text(t) => {
            for url in t.split(',').map(str::trim).filter(|u| !u.is_empty()) {
                hooks.push(webhook_url(given, url)?);
            }
        }
        What::List(items) => {
            for item in items {
                hooks.push(webhook(item)?);
            }
        }
        _ => {
            return Err(fault(
                given,
                format!("is {}; write [[webhooks]] with url, secret, events", given.type_name()),
            ));
        }
    }
    let shown: Vec<String> = hooks.iter().map(Webhook::host).collect();
    Ok((hooks, shown.join(",")))
}

fn webhook(item: &Raw) -> Result<Webhook, Fault> {
    let fields = match &item.what {
        What::Table(fields) => fields,
        What::Text(url) => return webhook_url(item, url),
        _ => {
            return Err(fault(
                item,
                format!("is {}; an endpoint is a table with url, secret, events", item.type_name()),
            ));
        }
    };
    let mut hook: Option<Webhook> = None;
    let (mut secret, mut events) = (None, Vec::new());
    for (key, raw) in fields {
        match key.as_str() {
            "url" => hook = Some(webhook_url(raw, text_of(raw, "a URL")?)?),
            "secret" => {
                let t = text_of(raw, "text").map_err(|f| fault(raw, format!("secret {}", f.message)))?;
                if t.is_empty() {
                    return Err(fault(raw, "secret must not be empty; leave it out for unsigned requests"));
                }
                secret = Some(Secret::new(t));
            }
            "events" => events = event_list(raw)?,
            other => {
                return Err(fault(
                    raw,
                    format!("unknown key {}; a webhook has url, secret, events", quoted(other)),
                ));
            }
        }
    }
    let mut hook = hook.ok_or_else(|| fault(item, "has no url"))?;
    (hook.secret, hook.events) = (secret, events);
    Ok(hook)
}

/// One URL that is asked with GET: empty for none.
pub(super) fn endpoint(given: &Raw) -> Result<Option<Webhook>, Fault> {
    match text_of(given, "a URL as text, e.g. \"https://hc-ping.com/ID\"")?.trim() {
        "" => Ok(None),
        url => webhook_url(given, url).map(Some),
    }
}

fn webhook_url(at: &Raw, url: &str) -> Result<Webhook, Fault> {
    // Never repeated in the error: the path may be a capability.
    let parsed = url::Url::parse(url.trim()).map_err(|e| fault(at, format!("url is unreadable: {e}")))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(fault(
            at,
            format!("url has scheme {}; it must be http or https", quoted(parsed.scheme())),
        ));
    }
    Ok(Webhook { url: url.trim().to_string(), secret: None, events: Vec::new() })
}

fn event_list(raw: &Raw) -> Result<Vec<EventKind>, Fault> {
    let items: Vec<Raw> = match &raw.what {
        What::List(items) => items.clone(),
        What::Text(t) => {
            t.split(',').map(|p| Raw { line: raw.line, what: What::Text(p.trim().into()) }).collect()
        }
        _ => return Err(fault(raw, "events takes a list of event names")),
    };
    let mut events = Vec::new();
    for item in &items {
        let name = text_of(item, "event names").map_err(|f| fault(item, format!("events {}", f.message)))?;
        let Some(event) = EventKind::parse(name) else {
            let all = EventKind::ALL.map(EventKind::as_str);
            let hint = nearest(name, all).map(|n| format!(" (did you mean \"{n}\"?)")).unwrap_or_default();
            return Err(fault(
                item,
                format!("unknown event {}{hint}; there are: {}", quoted(name), all.join(", ")),
            ));
        };
        if !events.contains(&event) {
            events.push(event);
        }
    }
    Ok(events)
}
