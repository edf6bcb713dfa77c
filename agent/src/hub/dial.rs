//! From a host name to an encrypted stream, one typed error for each stage.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Timing;

/// A byte stream to the hub.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A future that gives a stream.
pub type Dialling = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, DialError>> + Send>>;

/// Opens streams to the hub. The agent has one implementation, tests bring others.
pub trait Dial: Send {
    /// Opens one more stream.
    fn dial(&self) -> Dialling;
}

/// TCP and TLS.
#[derive(Clone)]
pub struct TlsDialler {
    /// The host to resolve and to find in the certificate.
    pub host: String,
    /// The TCP port; 8883 for MQTT.
    pub port: u16,
    /// Roots and protocol versions.
    pub config: Arc<ClientConfig>,
    /// Bounds of the stages.
    pub timing: Timing,
}

impl Dial for TlsDialler {
    fn dial(&self) -> Dialling {
        let this = self.clone();
        Box::pin(async move { this.open().await })
    }
}

impl TlsDialler {
    async fn open(self) -> Result<Box<dyn Stream>, DialError> {
        let Self { host, port, config, timing } = self;
        let name = ServerName::try_from(host.clone()).map_err(|_| DialError::Name { host: host.clone() })?;
        let resolve_failed = |source| DialError::Resolve { host: host.clone(), source };
        let addresses: Vec<SocketAddr> = timeout(timing.resolve, lookup_host((host.as_str(), port)))
            .await
            .map_err(|_| DialError::Timeout { stage: Stage::Resolve, after: timing.resolve })?
            .map_err(resolve_failed)?
            .collect();
        if addresses.is_empty() {
            return Err(resolve_failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        }
        let tcp = timeout(timing.tcp, TcpStream::connect(addresses.as_slice()))
            .await
            .map_err(|_| DialError::Timeout { stage: Stage::Tcp, after: timing.tcp })?
            .map_err(|source| DialError::Tcp { host: host.clone(), port, source })?;
        // Small packets that the other side waits for: no coalescing.
        let _ = tcp.set_nodelay(true);
        let tls = timeout(timing.tls, TlsConnector::from(config).connect(name, tcp))
            .await
            .map_err(|_| DialError::Timeout { stage: Stage::Tls, after: timing.tls })?
            .map_err(|source| DialError::Tls { host, source })?;
        Ok(Box::new(tls))
    }
}

/// A stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Name resolution.
    Resolve,
    /// TCP.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// CONNECT and its answer.
    Connect,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name resolution",
            Self::Tcp => "TCP",
            Self::Tls => "the TLS handshake",
            Self::Connect => "the answer to CONNECT",
        })
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host is no name that a certificate could carry.
    #[error("`{host}` is neither a host name nor an address: correct HostName in the connection string")]
    Name {
        /// The host.
        host: String,
    },
    /// No address for the name.
    #[error("can't resolve {host}: check the network and DNS")]
    Resolve {
        /// The host.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers on the port.
    #[error(
        "can't open TCP to {host} port {port}: check `port` in section [hub], the network and firewalls (IoT Hub listens on 8883)"
    )]
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// The handshake failed: name, chain, date or protocol.
    #[error("TLS with {host} failed: check `ca_file`, the host name and this machine's clock")]
    Tls {
        /// The host.
        host: String,
        /// Why, with the certificate error of rustls inside.
        source: io::Error,
    },
    /// A stage took too long.
    #[error("{stage} took longer than {} s", after.as_secs())]
    Timeout {
        /// Which one.
        stage: Stage,
        /// Its bound.
        after: Duration,
    },
}
