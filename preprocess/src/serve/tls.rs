//! TLS 1.2 and 1.3 by rustls, its cryptography by ring, as everywhere in the tree.

use std::path::Path;
use std::sync::Arc;

use tokenmill_shared::{Error, Result, storage};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::arguments::ServeArguments;

/// A file of certificates is not larger.
const FILE_BYTES: u64 = 1 << 20;

/// How the service speaks TLS, by its flags; `None` if it does not.
///
/// # Errors
/// A file that holds no certificate or key, or one of a pair without the other.
pub fn configuration(arguments: &ServeArguments, protocols: &[&str]) -> Result<Option<Arc<ServerConfig>>> {
    let (certificate, key) = match (&arguments.tls_cert_file, &arguments.tls_key_file) {
        (None, None) if arguments.tls_client_ca_file.is_some() => {
            let reason = "asks for clients' certificates, which needs TLS; give --tls_cert_file and --tls_key_file";
            return Err(Error::config("--tls_client_ca_file", reason));
        }
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(Error::config("--tls_key_file", "is missing beside --tls_cert_file")),
        (None, Some(_)) => return Err(Error::config("--tls_cert_file", "is missing beside --tls_key_file")),
        (Some(certificate), Some(key)) => (certificate, key),
    };
    let chain = certificates("--tls_cert_file", certificate)?;
    let wrong_key = |why: String| Error::config("--tls_key_file", format!("{}: {why}; give a PEM file", key.display()));
    let key_bytes = storage::read_at_most(key, FILE_BYTES)?;
    let private = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|error| wrong_key(error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of TLS 1.2 and 1.3");
    let builder = match &arguments.tls_client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let wrong = |why: String| Error::config("--tls_client_ca_file", format!("{}: {why}", path.display()));
            for certificate in certificates("--tls_client_ca_file", path)? {
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|error| wrong_key(error.to_string()))?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(Some(Arc::new(config)))
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = storage::read_at_most(path, FILE_BYTES)?;
    let wrong = |why: &str| Error::config(flag, format!("{}: {why}; give a PEM file", path.display()));
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| wrong(&error.to_string()))?;
    if found.is_empty() { Err(wrong("holds no certificate")) } else { Ok(found) }
}
