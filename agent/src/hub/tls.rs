//! TLS: rustls with ring, 1.2 and 1.3, system roots and/or a CA file, and the hub's name checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject as _};

/// The client configuration that trusts the system's roots and the certificates in `ca_file`.
pub fn client_config(ca_file: Option<&Path>, use_system_roots: bool) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    if use_system_roots {
        // Single unreadable certificates of the system's are the system's affair as long as others remain.
        for certificate in rustls_native_certs::load_native_certs().certs {
            let _ = roots.add(certificate);
        }
    }
    if let Some(path) = ca_file {
        let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let certificate = certificate.map_err(unreadable)?;
            roots.add(certificate).map_err(|source| TlsError::NotACa { path: path.to_owned(), source })?;
            count += 1;
        }
        if count == 0 {
            return Err(TlsError::Empty { path: path.to_owned() });
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file can't be read, or is not PEM.
    #[error("can't read the CA file {}: it must hold certificates in PEM form (`-----BEGIN CERTIFICATE-----`)", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// The CA file holds no certificate.
    #[error("the CA file {} holds no certificate", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate in the CA file can't serve as a root.
    #[error("a certificate in the CA file {} can't be used as a root", path.display())]
    NotACa {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// Nothing to trust.
    #[error(
        "there is no root certificate: install the system's (on Debian the package ca-certificates), or name a file \
         with `ca_file` in section [hub] of the configuration"
    )]
    NoRoots,
    /// The cryptography provider and the protocol versions don't fit together.
    #[error("TLS can't be set up")]
    Provider(#[source] rustls::Error),
}
