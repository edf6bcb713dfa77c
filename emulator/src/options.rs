//! What a caller can choose.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::EmulatorError;
use crate::faults::Faults;

/// How to start the emulator. Durations that the real hub documents are its defaults; tests scale them down.
#[derive(Debug, Clone)]
pub struct Options {
    /// The hub's name in tokens, user names and the certificate, without a port.
    pub host_name: String,
    /// The provisioning service's ID scope. Real ones have this form (DPS documentation, "Terminology").
    pub id_scope: String,
    /// Address of MQTT over TLS; port 0 picks a free one.
    pub mqtts: SocketAddr,
    /// Address of HTTPS; port 0 picks a free one. The operator endpoints live here without authentication:
    /// leave it on the loopback interface unless everybody who can reach it may do everything.
    pub https: SocketAddr,
    /// Directory for the certificate authority, the policies' keys and `hub.json`. Created if missing, and
    /// reused: a second start in the same directory has the same authority and the same policies.
    pub data_dir: PathBuf,
    /// Whether identities, keys, twins and waiting cloud-to-device messages are kept in `data_dir` too, so that the next
    /// start there goes on with them. An answer to a change then waits for the disk.
    pub keep_state: bool,
    /// How long after its token's `se` a live connection is dropped. About ten minutes on the real hub
    /// (IoT Hub documentation, "Troubleshoot disconnects", token expiry).
    pub token_grace: Duration,
    /// How long after `se` a token is still accepted: five minutes, EdgeHub's `MaxClockSkew`.
    pub clock_skew: Duration,
    /// Longest TLS handshake.
    pub tls_timeout: Duration,
    /// Longest wait for CONNECT after the TLS handshake: about a minute (EdgeHub's setting).
    pub connect_timeout: Duration,
    /// How long a device has to acknowledge a cloud-to-device message before it is sent again: a minute, the documented
    /// default of `lockDurationAsIso8601` (IoT Hub documentation, "Send cloud-to-device messages").
    pub cloud_to_device_lock: Duration,
    /// Most connections on both ports together that have not authenticated. One more, and the oldest of them is
    /// dropped, so that they can't lock devices out. Far above what a fleet's return needs.
    pub strangers_max: usize,
    /// Longest silence on a connection, whatever keep-alive the client asked for: 1767 s
    /// (IoT Hub documentation, "Communicate using MQTT", keep-alive).
    pub keep_alive_max: Duration,
    /// Faults in force from the start: fields and values as `POST /$emulator/faults` takes them.
    pub faults: serde_json::Map<String, serde_json::Value>,
}

impl Default for Options {
    /// `localhost` on free loopback ports. `data_dir` is left empty and has to be set.
    fn default() -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            host_name: "localhost".to_owned(),
            id_scope: "0ne00000001".to_owned(),
            mqtts: any_port,
            https: any_port,
            data_dir: PathBuf::new(),
            keep_state: false,
            token_grace: Duration::from_secs(600),
            clock_skew: Duration::from_secs(300),
            tls_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(60),
            cloud_to_device_lock: Duration::from_secs(60),
            strangers_max: 10_000,
            keep_alive_max: Duration::from_secs(1767),
            faults: serde_json::Map::new(),
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
        if self.id_scope.is_empty()
            || self.id_scope.len() > HOST_NAME_LEN_MAX
            || !self.id_scope.chars().all(|c| c.is_ascii_alphanumeric())
            || self.id_scope.eq_ignore_ascii_case(&self.host_name)
        {
            return Err(EmulatorError::Option {
                name: "id_scope",
                problem: "is no ID scope; give letters and digits only, and not the host name".to_owned(),
            });
        }
        if self.strangers_max == 0 {
            return Err(EmulatorError::Option {
                name: "strangers_max",
                problem: "is 0; nobody could connect".to_owned(),
            });
        }
        Ok(())
    }

    /// The faults asked for. Chance begins with the seed among them, or with one that nobody chose.
    pub(crate) fn faults_in_force(&self) -> Result<Faults, EmulatorError> {
        let mut seed = [0; 4];
        getrandom::fill(&mut seed)?;
        let mut faults = Faults::with_seed(u32::from_le_bytes(seed).into());
        let wrong = |problem| EmulatorError::Option { name: "faults", problem };
        faults.merge(&self.faults, 0).map_err(wrong)?;
        Ok(faults)
    }
}
