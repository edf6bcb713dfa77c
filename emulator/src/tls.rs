//! The hub's certificate authority and its TLS settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};
use tokio_rustls::TlsAcceptor;

use crate::error::EmulatorError;
use crate::files;

/// A certificate authority of the emulator's own, kept in the data directory.
pub(crate) struct Authority {
    /// The certificate that clients have to trust.
    pub(crate) file: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, EmulatorError> {
        let file = dir.join("ca.pem");
        let key_file = dir.join("ca-key.pem");
        let damaged = |path: &Path, problem: &str| EmulatorError::Damaged {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let certificate = files::read_kept(&file)?;
        let key = match files::read_kept(&key_file)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|_| damaged(&key_file, "no PEM private key"))?,
            // A new key would end the trust of everybody who has this certificate, without a word.
            None if certificate.is_some() => {
                return Err(damaged(&file, "its key, ca-key.pem, is missing; put it back"));
            }
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write_private(&key_file, &key.serialize_pem())?;
                key
            }
        };
        match certificate {
            Some(pem) if !certifies(&pem, &key) => {
                return Err(damaged(&file, "it is not the certificate of ca-key.pem"));
            }
            Some(_) => {}
            // The first start, or one that was cut short after the key was written.
            None => files::write_private(&file, &authority_params()?.self_signed(&key)?.pem())?,
        }
        Ok(Self { file, issuer: Issuer::new(authority_params()?, key) })
    }

    /// Settings for TLS 1.2 and 1.3 with a fresh certificate for `host_name` and this machine.
    pub(crate) fn acceptor(&self, host_name: &str) -> Result<TlsAcceptor, EmulatorError> {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        if !names.iter().any(|name| name == host_name) {
            names.push(host_name.to_owned());
        }
        let mut params = with_long_life(CertificateParams::new(names)?);
        params.distinguished_name.push(DnType::CommonName, "Twinkey emulator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Whether a certificate is of this key. An uncompressed point of the curve is in no other place by chance.
fn certifies(pem: &str, key: &KeyPair) -> bool {
    let point = key.public_key_raw();
    CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|certificate| certificate.windows(point.len()).any(|window| window == point))
}

/// The same parameters at every start, so that a kept key always continues the kept certificate.
fn authority_params() -> Result<CertificateParams, EmulatorError> {
    let mut params = with_long_life(CertificateParams::new(Vec::new())?);
    params.distinguished_name.push(DnType::CommonName, "Twinkey emulator authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A validity that covers clocks which are years wrong, within what two-digit years (RFC 5280 §4.1.2.5) can say.
fn with_long_life(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}
