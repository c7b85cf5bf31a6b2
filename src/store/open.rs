//! From a replica URL and the environment to a client.

use super::credentials::ProfileProvider;
use super::direct::Direct;
use super::env::Env;
use super::error::Place;
use super::http::{Complete, Tls, Witness, panicked};
use super::objects::{Clients, Objects};
use super::profile::Profile;
use super::requests;
use super::sign::Signer;
use super::text::one_line;
use crate::address::{BucketIn, Checksums, ReplicaUrl, StoreKind, endpoint, host_for};
use crate::base::{Error, Result, panics};
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use std::sync::Arc;
use std::time::Duration;

/// A bucket with its clients. Contacts nothing.
///
/// Errors: [`crate::base::Kind::Config`] for what the URL or the environment says and cannot be; `Denied` or `Io`
/// where a file that they name cannot be read.
pub(super) fn open(url: &ReplicaUrl, env: &Env) -> Result<Objects> {
    let made = make(url, env)?;
    let remake: Option<super::objects::Remake> = made.renewable.then(|| {
        let (url, env) = (url.clone(), env.clone());
        Box::new(move || make(&url, &env).map(|made| made.clients)) as super::objects::Remake
    });
    let what = if url.kind() == StoreKind::Azure { "container" } else { "bucket" };
    let place = Place { bucket: format!("{what} {}", url.bucket()), endpoint: made.endpoint };
    Ok(Objects::new(url.kind(), made.clients, remake, made.no_bulk, url.prefix(), place))
}

fn make(url: &ReplicaUrl, env: &Env) -> Result<Made> {
    let made = panics::caught(|| match url.kind() {
        StoreKind::S3 => s3(url, env),
        StoreKind::Gs => gs(url, env),
        StoreKind::Azure => azure(url, env),
        StoreKind::Local => Err(Error::config("a directory has no client")),
    });
    made.unwrap_or_else(|said| Err(panicked(&said))).map_err(|e| e.context(url))
}

/// Clients, and what else is known of them.
struct Made {
    clients: Clients,
    /// Where they go, for people.
    endpoint: String,
    /// Whether their keys come from somewhere that may have others by now.
    renewable: bool,
    /// Whether DeleteObjects is not to be tried.
    no_bulk: bool,
}

/// Whether object_store takes up the variable.
fn is_key<K: std::str::FromStr>(name: &str) -> bool {
    name.to_ascii_lowercase().parse::<K>().is_ok()
}

/// A region goes into host names and signatures; stores other than AWS have names of their own.
fn is_region(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The retries are ours (`retry.rs`).
fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::from_secs(180), ..RetryConfig::default() }
}

fn tls(env: &Env) -> Tls {
    Tls::System(env.get("AWS_CA_BUNDLE").map(Into::into))
}

/// Where S3 requests go.
pub(super) struct S3Target {
    /// As the user knows it; `None` is AWS.
    pub(super) endpoint: Option<String>,
    pub(super) region: String,
    pub(super) bucket_in: BucketIn,
}

/// The URL first, then the environment, then the profile.
pub(super) fn s3_target(url: &ReplicaUrl, env: &Env, profile: Option<&Profile>) -> Result<S3Target> {
    let profile = |key| profile.and_then(|p| p.get(key));
    let given = match url.endpoint() {
        Some(e) => Some(e.to_string()),
        None => {
            match env.get("AWS_ENDPOINT_URL_S3").or(env.get("AWS_ENDPOINT_URL")).or(profile("endpoint_url")) {
                Some(e) => Some(endpoint(e).map_err(|e| e.context("AWS_ENDPOINT_URL_S3"))?),
                None => None,
            }
        }
    };
    let region =
        url.region().or(env.get("AWS_REGION")).or(env.get("AWS_DEFAULT_REGION")).or(profile("region"));
    if let Some(r) = region
        && !is_region(r)
    {
        let said = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find(|n| env.get(n) == Some(r));
        let place = said.unwrap_or("region in the AWS profile");
        return Err(Error::config(format!("{place} is not a region name such as us-east-1")));
    }
    let bucket_in = url.bucket_in().unwrap_or(match &given {
        // A dot in the bucket's name does not match AWS's wildcard certificate.
        None if url.bucket().contains('.') => BucketIn::Path,
        None => BucketIn::Host,
        // Tigris serves new buckets by host name only
        // (https://www.tigrisdata.com/docs/buckets/url-structure/).
        Some(e) if e.ends_with("tigris.dev") || e.ends_with("storage.dev") => BucketIn::Host,
        Some(_) => BucketIn::Path,
    });
    if bucket_in == BucketIn::Host {
        host_for(url.bucket(), given.as_deref())?;
    }
    Ok(S3Target { endpoint: given, region: region.unwrap_or("us-east-1").to_string(), bucket_in })
}

/// Which checksum header uploads carry: what the URL says, then `AWS_CHECKSUM_ALGORITHM`, then what the AWS tools read
/// (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-dataintegrity.html>). `None`: none.
fn checksum(url: &ReplicaUrl, env: &Env, profile: Option<&Profile>) -> Result<Option<Checksum>> {
    if let Some(said) = url.checksums() {
        return Ok((said == Checksums::Sha256).then_some(Checksum::SHA256));
    }
    if let Some(said) = env.get("AWS_CHECKSUM_ALGORITHM") {
        return match said.to_ascii_lowercase().as_str() {
            "none" => Ok(None),
            "sha256" => Ok(Some(Checksum::SHA256)),
            "crc64nvme" => Ok(Some(Checksum::CRC64NVME)),
            _ => Err(Error::config("AWS_CHECKSUM_ALGORITHM is not sha256, crc64nvme or none")),
        };
    }
    let said = [
        ("AWS_REQUEST_CHECKSUM_CALCULATION", env.get("AWS_REQUEST_CHECKSUM_CALCULATION")),
        (
            "request_checksum_calculation in the AWS profile",
            profile.and_then(|p| p.get("request_checksum_calculation")),
        ),
    ];
    match said.into_iter().find_map(|(place, said)| Some((place, said?))) {
        None => Ok(Some(Checksum::SHA256)),
        Some((_, said)) if said.eq_ignore_ascii_case("when_supported") => Ok(Some(Checksum::SHA256)),
        Some((_, said)) if said.eq_ignore_ascii_case("when_required") => Ok(None),
        Some((place, _)) => Err(Error::config(format!("{place} is not when_supported or when_required"))),
    }
}

fn s3(url: &ReplicaUrl, env: &Env) -> Result<Made> {
    let named = url.profile().map(|profile| env.of_profile(profile));
    let env = named.as_ref().unwrap_or(env);
    env.refuse_control(|n| n.starts_with("AWS_") && is_key::<AmazonS3ConfigKey>(n))?;
    let static_keys = env.get("AWS_ACCESS_KEY_ID").is_some() || env.get("AWS_SECRET_ACCESS_KEY").is_some();
    let web_identity = env.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && env.get("AWS_ROLE_ARN").is_some();
    let unsigned = env.get("AWS_SKIP_SIGNATURE") == Some("true");
    let mut profile = if static_keys || web_identity || unsigned { None } else { Profile::load(env)? };
    let region_profile = match &profile {
        Some(p) => Some(p.clone()),
        // Keys from the environment, region from the profile: as the AWS tools do. A profile that is absent then does
        // no harm.
        None => Profile::load(env).unwrap_or_default(),
    };
    let target = s3_target(url, env, region_profile.as_ref())?;

    let mut builder = AmazonS3Builder::new();
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with("AWS_")) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
            && !matches!(key, AmazonS3ConfigKey::Checksum)
        {
            builder = builder.with_config(key, value);
        }
    }
    let checksum = checksum(url, env, region_profile.as_ref())?;
    if let Some(algorithm) = checksum {
        builder = builder.with_checksum_algorithm(algorithm);
    }
    profile = profile.filter(Profile::has_credentials);
    if let Some(p) = profile {
        p.check()?;
        builder = match (
            p.get("aws_access_key_id").or(p.get("credential_process")),
            p.get("web_identity_token_file"),
        ) {
            (None, Some(file)) => builder
                .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, file)
                .with_config(AmazonS3ConfigKey::RoleArn, p.get("role_arn").unwrap_or_default()),
            _ => builder.with_credentials(Arc::new(ProfileProvider::new(env.clone()))),
        };
    }
    let shown =
        target.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", target.region));
    if let Some(endpoint) = &target.endpoint {
        // object_store wants the bucket in the endpoint's host when it is to be there.
        let full = match (target.bucket_in, endpoint.split_once("://")) {
            (BucketIn::Host, Some((scheme, host))) => format!("{scheme}://{}.{host}", url.bucket()),
            _ => endpoint.clone(),
        };
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, &full).with_endpoint(full);
    }
    let plain = shown.starts_with("http://");
    let witness = Witness::new(
        if plain { Tls::Unused } else { tls(env) },
        Complete::Conditional,
        requests::of(&url.to_string()),
    )?;
    let signer = witness.signer();
    let bucket_url = bucket_url(&shown, url.bucket(), target.bucket_in);
    let direct = Direct::new(bucket_url, witness.clone(), signer.clone());
    let region = target.region.clone();
    builder = builder
        .with_bucket_name(url.bucket())
        .with_region(target.region)
        .with_virtual_hosted_style_request(target.bucket_in == BucketIn::Host)
        .with_allow_http(plain)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_tagging(true)
        .with_retry(no_retry())
        .with_http_connector(witness);
    let bulk = Arc::new(builder.clone().with_disable_bulk_delete(false).build().map_err(built)?);
    if !unsigned {
        // (Empty until now.)
        let _ = signer.set(Signer { credentials: bulk.credentials().clone(), region });
    }
    let single = builder.with_disable_bulk_delete(true).build().map_err(built)?;
    Ok(Made {
        clients: Clients {
            store: bulk.clone(),
            single_deletes: Some(Arc::new(single)),
            parts: Some(bulk),
            direct: Some(Arc::new(direct)),
        },
        endpoint: shown,
        renewable: !static_keys && !unsigned,
        // It carries the checksum header whatever is said.
        no_bulk: checksum.is_none(),
    })
}

/// The URL of a bucket at the endpoint `shown`.
fn bucket_url(shown: &str, bucket: &str, bucket_in: BucketIn) -> String {
    match (bucket_in, shown.split_once("://")) {
        (BucketIn::Host, Some((scheme, host))) => format!("{scheme}://{bucket}.{host}"),
        _ => format!("{shown}/{bucket}"),
    }
}

fn gs(url: &ReplicaUrl, env: &Env) -> Result<Made> {
    // (The key is a JSON document, often of many lines.)
    let used = |n: &str| {
        n.starts_with("GOOGLE_") && n != "GOOGLE_SERVICE_ACCOUNT_KEY" && is_key::<GoogleConfigKey>(n)
    };
    env.refuse_control(used)?;
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with("GOOGLE_")) {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder
        .with_bucket_name(url.bucket())
        .with_retry(no_retry())
        .with_http_connector(Witness::new(tls(env), Complete::Plain, requests::of(&url.to_string()))?)
        .build()
        .map_err(built)?;
    let store = Arc::new(store);
    Ok(Made {
        clients: Clients { store: store.clone(), single_deletes: None, parts: Some(store), direct: None },
        endpoint: "Google Cloud Storage".into(),
        renewable: true,
        no_bulk: false,
    })
}

fn azure(url: &ReplicaUrl, env: &Env) -> Result<Made> {
    env.refuse_control(|n| n.starts_with("AZURE_") && is_key::<AzureConfigKey>(n))?;
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with("AZURE_")) {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    if env.get("AZURE_STORAGE_ACCOUNT_NAME").is_none() && env.get("AZURE_STORAGE_USE_EMULATOR").is_none() {
        return Err(Error::config(
            "set AZURE_STORAGE_ACCOUNT_NAME (and AZURE_STORAGE_ACCOUNT_KEY or another credential)",
        ));
    }
    let store = builder
        .with_container_name(url.bucket())
        .with_retry(no_retry())
        .with_http_connector(Witness::new(tls(env), Complete::Plain, requests::of(&url.to_string()))?)
        .build()
        .map_err(built)?;
    let fixed = [
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_SAS_KEY",
    ];
    Ok(Made {
        clients: Clients { store: Arc::new(store), single_deletes: None, parts: None, direct: None },
        endpoint: "Azure Blob Storage".into(),
        renewable: !fixed.into_iter().any(|name| env.get(name).is_some()),
        no_bulk: false,
    })
}

fn built(e: object_store::Error) -> Error {
    // Texts of builder errors name settings, not values.
    Error::config(one_line(&e.to_string()))
}
