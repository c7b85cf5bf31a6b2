//! Requests of S3 that object_store has no verb for: how long an object is kept from removal, and the versions of a bucket that keeps them.
//!
//! They go through the same witness as all others, and are signed with the same keys. Nothing of them is believed beyond what S3 documents.

use super::http::Witness;
use super::sign::Signer;
use super::xml::{self, Marker, Version};
use crate::base::Timestamp;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use object_store::client::{HttpRequest, HttpService};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::sync::{Arc, OnceLock};

/// What a path of S3 has encoded: everything but letters, digits and these.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The longest page of versions: a thousand entries of a few hundred bytes.
const LONGEST_PAGE: usize = 4 << 20;

/// How an object is kept from removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockMode {
    /// Until then, but for who has a right of its own to go around that.
    Governance,
    /// Until then, for everybody.
    Compliance,
}

impl LockMode {
    /// As S3 spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        }
    }
}

/// Until when an object is kept from removal, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    /// How.
    pub mode: LockMode,
    /// Until when.
    pub until: Timestamp,
}

impl Hold {
    /// The headers of a put.
    pub(super) fn headers(self) -> [(&'static str, String); 2] {
        [
            ("x-amz-object-lock-mode", self.mode.as_str().to_string()),
            ("x-amz-object-lock-retain-until-date", self.until.rfc3339()),
        ]
    }

    fn document(self) -> String {
        format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>",
            self.mode.as_str(),
            self.until.rfc3339()
        )
    }
}

/// A bucket, asked directly.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    /// Its URL, without a slash at the end.
    bucket: String,
    http: Witness,
    signer: Arc<OnceLock<Signer>>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn failed(why: impl Into<String>) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: Box::new(Refused(why.into())) }
}

impl Direct {
    pub(super) fn new(bucket: String, http: Witness, signer: Arc<OnceLock<Signer>>) -> Direct {
        Direct { bucket, http, signer }
    }

    async fn ask(
        &self,
        method: &str,
        path_and_query: &str,
        headers: &[(&'static str, String)],
        body: String,
    ) -> object_store::Result<String> {
        let mut request =
            http::Request::builder().method(method).uri(format!("{}{path_and_query}", self.bucket));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let mut request: HttpRequest = request.body(body.into()).map_err(|e| failed(e.to_string()))?;
        if let Some(signer) = self.signer.get() {
            signer.sign(&mut request).await?;
        }
        let answer = self.http.call(request).await.map_err(|e| failed(e.to_string()))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|e| failed(e.to_string()))?.to_bytes();
        if !parts.status.is_success() {
            return Err(failed(format!("HTTP {}", parts.status.as_u16())));
        }
        if body.len() > LONGEST_PAGE {
            return Err(failed("an answer that is longer than any page"));
        }
        String::from_utf8(body.to_vec()).map_err(|_| failed("an answer that is no text"))
    }

    /// Keeps an object from removal until then; a time before the one that holds is refused by the store
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectRetention.html>).
    pub(super) async fn hold(&self, path: &str, hold: Hold) -> object_store::Result<()> {
        let document = hold.document();
        let sum = BASE64_STANDARD.encode(Sha256::digest(document.as_bytes()));
        let headers =
            [("x-amz-sdk-checksum-algorithm", "SHA256".to_string()), ("x-amz-checksum-sha256", sum)];
        let path = utf8_percent_encode(path, IN_PATH);
        self.ask("PUT", &format!("/{path}?retention="), &headers, document).await.map(drop)
    }

    /// A page of the versions below a prefix, and where the next one begins
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html>).
    pub(super) async fn versions(
        &self,
        prefix: &str,
        from: Option<&Marker>,
    ) -> object_store::Result<(Vec<Version>, Option<Marker>)> {
        let encoded = |text: &str| utf8_percent_encode(text, IN_QUERY).to_string();
        let mut query = format!("?encoding-type=url&prefix={}&versions=", encoded(prefix));
        if let Some((key, version)) = from {
            query = format!(
                "?encoding-type=url&key-marker={}&prefix={}&version-id-marker={}&versions=",
                encoded(key),
                encoded(prefix),
                encoded(version)
            );
        }
        let text = self.ask("GET", &format!("/{query}"), &[], String::new()).await?;
        xml::versions(&text).ok_or_else(|| failed("an answer that is no list of versions"))
    }
}
