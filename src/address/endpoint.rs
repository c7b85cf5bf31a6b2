//! Endpoints: where the servers of other makers than Amazon are.

use crate::base::{Error, Result};

/// Errors with [`crate::base::Kind::Config`] if the bucket cannot be a part of the endpoint's host name
/// (`path_style=false`); without endpoint, of AWS's.
pub fn host_for(bucket: &str, endpoint: Option<&str>) -> Result<()> {
    let endpoint = endpoint.unwrap_or("https://s3.amazonaws.com");
    let is_name = url::Url::parse(endpoint).is_ok_and(|u| matches!(u.host(), Some(url::Host::Domain(_))));
    if !is_name {
        return Err(Error::config(format!(
            "the bucket cannot be part of the host name of {endpoint}, which is an IP address: path_style must be true there"
        )));
    }
    let full = endpoint.replacen("://", &format!("://{bucket}."), 1);
    if !url::Url::parse(&full).is_ok_and(|u| matches!(u.host(), Some(url::Host::Domain(_)))) {
        return Err(Error::config(format!(
            "the bucket {bucket} cannot be part of a host name; give path_style=true"
        )));
    }
    Ok(())
}

/// An endpoint as users write it, with or without scheme (https), to `scheme://host[:port][/path]`.
///
/// Errors with [`crate::base::Kind::Config`] for what is none, without repeating it: it may hold a secret.
pub fn endpoint(value: &str) -> Result<String> {
    let bad = |why: &str| {
        Error::config(format!("the endpoint {why}; give one such as https://host or http://127.0.0.1:9000"))
    };
    let text = if value.contains("://") { value.to_string() } else { format!("https://{value}") };
    let url = url::Url::parse(&text).map_err(|_| bad("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("holds user information, which is not allowed"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("holds a query or fragment"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("names no host"));
    }
    Ok(url.as_str().trim_end_matches('/').to_string())
}
