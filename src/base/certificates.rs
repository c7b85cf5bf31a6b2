//! TLS for every HTTP client of ours: who provides its cryptography, and which certificates it finds.
//!
//! `SSL_CERT_FILE` that is set and empty is not set, as every variable. The TLS library would look for certificates in
//! a file without a name, and find none.

use std::ffi::OsString;

/// Sees to it that a client can be made: reqwest has no provider built in and would panic. One that is installed already stays.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The system's certificates (DER), where the variables would keep the TLS library from finding them; else `None`.
pub fn hidden_by_an_empty_variable() -> Option<Vec<Vec<u8>>> {
    hidden(std::env::var_os("SSL_CERT_FILE"), std::env::var_os("SSL_CERT_DIR")).then(|| {
        let found = openssl_probe::probe();
        let dir = found.cert_dir.first().map(std::path::PathBuf::as_path);
        let loaded = rustls_native_certs::load_certs_from_paths(found.cert_file.as_deref(), dir);
        loaded.certs.into_iter().map(|c| c.to_vec()).collect()
    })
}

fn hidden(file: Option<OsString>, dir: Option<OsString>) -> bool {
    file.is_some_and(|f| f.is_empty()) && dir.is_none_or(|d| d.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_file_hides_them() {
        let v = |text: &str| Some(OsString::from(text));
        assert!(hidden(v(""), None) && hidden(v(""), v("")));
        for (file, dir) in [(None, None), (None, v("")), (v("/f"), None), (v(""), v("/d")), (None, v("/d"))] {
            assert!(!hidden(file.clone(), dir.clone()), "{file:?} {dir:?}");
        }
    }
}
