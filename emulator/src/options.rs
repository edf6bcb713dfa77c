//! What a caller can choose.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::EmulatorError;

/// How to start the emulator. Durations that the real hub documents are its defaults; tests scale them down.
#[derive(Debug, Clone)]
pub struct Options {
    /// The hub's name in tokens, user names and the certificate, without a port.
    pub host_name: String,
    /// Address of MQTT over TLS; port 0 picks a free one.
    pub mqtts: SocketAddr,
    /// Address of HTTPS; port 0 picks a free one. The operator endpoints live here without authentication:
    /// leave it on the loopback interface unless everybody who can reach it may do everything.
    pub https: SocketAddr,
    /// Directory for the certificate authority, the policies' keys and `hub.json`. Created if missing, and
    /// reused: a second start in the same directory has the same authority and the same policies.
    pub data_dir: PathBuf,
    /// How long after its token's `se` a live connection is dropped. About ten minutes on the real hub
    /// (IoT Hub documentation, "Troubleshoot disconnects", token expiry).
    pub token_grace: Duration,
    /// How long after `se` a token is still accepted: five minutes, EdgeHub's `MaxClockSkew`.
    pub clock_skew: Duration,
    /// Longest TLS handshake.
    pub tls_timeout: Duration,
    /// Longest wait for CONNECT after the TLS handshake: about a minute (EdgeHub's setting).
    pub connect_timeout: Duration,
    /// Longest silence on a connection, whatever keep-alive the client asked for: 1767 s
    /// (IoT Hub documentation, "Communicate using MQTT", keep-alive).
    pub keep_alive_max: Duration,
}

impl Default for Options {
    /// `localhost` on free loopback ports. `data_dir` is left empty and has to be set.
    fn default() -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            host_name: "localhost".to_owned(),
            mqtts: any_port,
            https: any_port,
            data_dir: PathBuf::new(),
            token_grace: Duration::from_secs(600),
            clock_skew: Duration::from_secs(300),
            tls_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(60),
            keep_alive_max: Duration::from_secs(1767),
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), EmulatorError> {
        /// Longest DNS name in characters (RFC 1035 §2.3.4).
        const HOST_NAME_LEN_MAX: usize = 253;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if self.host_name.is_empty()
            || self.host_name.len() > HOST_NAME_LEN_MAX
            || !self.host_name.chars().all(allowed)
        {
            return Err(EmulatorError::Option {
                name: "host_name",
                problem: format!(
                    "{:?} is no host name; give letters, digits, '-' and '.' only, without scheme or port",
                    self.host_name
                ),
            });
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err(EmulatorError::Option {
                name: "data_dir",
                problem: "is empty; name a directory, which may be a temporary one".to_owned(),
            });
        }
        Ok(())
    }
}
