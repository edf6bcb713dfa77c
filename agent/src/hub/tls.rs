//! TLS: rustls with ring, 1.2 and 1.3, system roots and/or a CA file, and the hub's name checked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::roots::add_system_roots;
use crate::clock::Clock;
use crate::regular_file::{self, Links};

/// Hosts whose TLS sessions are kept for the next handshake. There is one hub; rustls' own 256 would only lie there.
const SESSIONS_MAX: usize = 4;

/// Whom the agent believes to be the hub.
#[derive(Clone, Debug)]
pub struct Trust {
    verifier: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

impl Trust {
    /// Trusts the system's roots and the certificates in `ca_file`, and judges dates by `clock`.
    pub fn read(ca_file: Option<&Path>, use_system_roots: bool, clock: Clock) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        if use_system_roots {
            add_system_roots(&mut roots);
        }
        if let Some(path) = ca_file {
            let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
            let mut count = 0;
            let opened = regular_file::open(path, Links::Follow);
            let (file, _) = opened.map_err(|error| unreadable(pem::Error::Io(error)))?;
            for certificate in CertificateDer::pem_reader_iter(file) {
                let certificate = certificate.map_err(unreadable)?;
                roots
                    .add(certificate)
                    .map_err(|source| TlsError::NotACa { path: path.to_owned(), source })?;
                count += 1;
            }
            if count == 0 {
                return Err(TlsError::Empty { path: path.to_owned() });
            }
        }
        if roots.is_empty() {
            return Err(TlsError::NoRoots);
        }
        Self::in_roots(roots, clock)
    }

    /// Trusts `roots`, and judges dates by `clock`.
    pub fn in_roots(roots: RootCertStore, clock: Clock) -> Result<Self, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(TlsError::Verifier)?;
        Ok(Self { verifier, clock })
    }

    /// The configuration for connections that carry tokens: chain, name and dates must be right by our time.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        Ok(Arc::new(self.config_with(Arc::clone(&self.verifier) as Arc<dyn ServerCertVerifier>)?))
    }

    /// The configuration for one question after the time, which carries no secret, and the judge of the answer.
    pub fn question(&self) -> Result<(Arc<ClientConfig>, Arc<Datable>), TlsError> {
        let datable = Arc::new(Datable { verifier: Arc::clone(&self.verifier), seen: Mutex::default() });
        let mut config = self.config_with(Arc::clone(&datable) as Arc<dyn ServerCertVerifier>)?;
        // A resumed session would show no certificate.
        config.resumption = Resumption::disabled();
        Ok((Arc::new(config), datable))
    }

    fn config_with(&self, verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(self.clock.clone()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Judges a hub whose time we want to know because we don't know it ourselves: chain and name must be right as ever,
/// and the certificates must all be valid at *some* time. Whether that time is the one that the hub then states is
/// for [`Datable::is_valid_at`] to say. So an answer counts only if the certificates are valid at the time it names;
/// what a thief of an expired certificate's key can do with that ends at the clock's floor.
#[derive(Debug)]
pub struct Datable {
    verifier: Arc<WebPkiServerVerifier>,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
    ocsp_response: Vec<u8>,
}

/// Each failed look gives the date to look at next; a chain is a few certificates long.
const LOOKS_MAX: usize = 8;

impl Datable {
    /// Whether the certificates of the handshake are valid at `unix_secs`.
    pub fn is_valid_at(&self, unix_secs: u64) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Seen { chain, name, ocsp_response }) = seen.as_ref() else { return false };
        let Some((end_entity, intermediates)) = chain.split_first() else { return false };
        let time = UnixTime::since_unix_epoch(Duration::from_secs(unix_secs));
        self.verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, time).is_ok()
    }
}

impl ServerCertVerifier for Datable {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut time = now;
        for _ in 0..LOOKS_MAX {
            let looked =
                self.verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, time);
            time = match looked {
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before,
                    ..
                })) => not_before,
                Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                    not_after,
                    ..
                })) => not_after,
                Err(error) => return Err(error),
                Ok(verified) => {
                    let chain = std::iter::once(end_entity).chain(intermediates);
                    let seen = Seen {
                        chain: chain.map(|certificate| certificate.clone().into_owned()).collect(),
                        name: name.to_owned(),
                        ocsp_response: ocsp_response.to_vec(),
                    };
                    *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                    return Ok(verified);
                }
            };
        }
        // The certificates are valid at no common time.
        Err(rustls::Error::InvalidCertificate(CertificateError::Expired))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// What TLS did not like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A certificate is not valid yet, or not any more, by our time.
    Date,
    /// The certificate is another host's.
    Name,
    /// No root that we trust stands behind the certificate.
    Chain,
    /// Anything else: versions, alerts, a broken stream.
    Other,
}

/// What TLS did not like, from the error of a handshake.
pub fn fault_of(error: &io::Error) -> Fault {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(certificate)) = inner else { return Fault::Other };
    #[allow(clippy::wildcard_enum_match_arm, reason = "the enum is rustls's and grows")]
    match certificate {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Fault::Date,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Fault::Name,
        _ => Fault::Chain,
    }
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file can't be read, or is not PEM.
    #[error("can't use the CA file {}; the agent's user must be able to read it, and it must hold certificates in PEM form (`-----BEGIN CERTIFICATE-----`)", path.display())]
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
    /// The roots can't be used.
    #[error("TLS can't be set up with these root certificates")]
    Verifier(#[source] VerifierBuilderError),
    /// The cryptography provider and the protocol versions don't fit together.
    #[error("TLS can't be set up")]
    Provider(#[source] rustls::Error),
}
