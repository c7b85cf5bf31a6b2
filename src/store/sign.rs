//! Signatures of S3 requests that object_store did not make, or that got a header after it had signed them: S3 takes no `x-amz-` header
//! that is not signed (<https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html>).

use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::HttpRequest;
use std::fmt;

/// Signs with a client's own keys.
pub(super) struct Signer {
    pub(super) credentials: AwsCredentialProvider,
    pub(super) region: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.region)
    }
}

const CONTENT: &str = "x-amz-content-sha256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

impl Signer {
    /// Signs it, anew if it was signed. Errors with those of the keys' source.
    pub(super) async fn sign(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let keys = self.credentials.get_credential().await?;
        let content = request.headers().get(CONTENT).and_then(|v| v.to_str().ok()).map(str::to_string);
        request.headers_mut().remove("authorization");
        let authorizer = AwsAuthorizer::new(&keys, "s3", &self.region)
            .with_sign_payload(content.as_deref() != Some(UNSIGNED));
        let digest = content.as_deref().and_then(crate::base::hex::digest);
        authorizer.try_authorize(request, digest.as_ref().map(<[u8; 32]>::as_slice))
    }
}
