//! The kinds of stores, and what else a replica URL can choose.

/// Which kind of store a replica lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum StoreKind {
    /// Amazon S3 or anything that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Azure,
    /// A directory.
    Local,
}

impl StoreKind {
    /// The kind that a scheme means, in either case; `abs` is another name for `az`.
    pub fn of_scheme(scheme: &str) -> Option<StoreKind> {
        match scheme.to_ascii_lowercase().as_str() {
            "s3" => Some(StoreKind::S3),
            "gs" => Some(StoreKind::Gs),
            "az" | "abs" => Some(StoreKind::Azure),
            "file" => Some(StoreKind::Local),
            _ => None,
        }
    }

    /// The scheme of the canonical URL.
    pub fn scheme(self) -> &'static str {
        match self {
            StoreKind::S3 => "s3",
            StoreKind::Gs => "gs",
            StoreKind::Azure => "az",
            StoreKind::Local => "file",
        }
    }
}

/// How Litestream 0.5 names LTX objects in this kind of store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum LayoutKind {
    /// `<path>/<level as 4 hex digits>/<name>`: S3.
    LevelHex,
    /// `<path>/ltx/<level in decimal>/<name>`: every other kind.
    LevelDecimal,
}

/// Whether the bucket's name goes into the path or the host name of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BucketIn {
    /// `https://host/bucket/key`
    Path,
    /// `https://bucket.host/key`
    Host,
}

/// Whether uploads carry a checksum header of S3's (`x-amz-checksum-…`), which some servers refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Checksums {
    /// `x-amz-checksum-sha256`
    Sha256,
    /// None.
    Off,
}

impl Checksums {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Checksums::Sha256 => "sha256",
            Checksums::Off => "none",
        }
    }
}
