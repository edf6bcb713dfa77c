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
use tokio_rustls::client::TlsStream;

use super::Timing;
use super::time::{self, AskError};
use super::tls::{self, Trust};

/// A byte stream to the hub.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A future that gives a stream.
pub type Dialling = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, DialError>> + Send>>;

/// A future that gives the hub's time in Unix seconds.
pub type Asking = Pin<Box<dyn Future<Output = Result<u64, AskError>> + Send>>;

/// Opens streams to the hub. The agent has one implementation, tests bring others.
pub trait Dial: Send {
    /// Opens one more stream.
    fn dial(&self) -> Dialling;

    /// Asks the hub what time it is, on a connection of its own that carries no secret.
    fn ask_time(&self) -> Asking;
}

/// TCP and TLS.
#[derive(Clone)]
pub struct TlsDialler {
    /// The host to resolve and to find in the certificate.
    pub host: String,
    /// The TCP port; 8883 for MQTT.
    pub port: u16,
    /// The TCP port of the hub's HTTPS end, which is asked for the time.
    pub https_port: u16,
    /// Roots and protocol versions.
    pub config: Arc<ClientConfig>,
    /// Who may say what time it is.
    pub trust: Trust,
    /// Bounds of the stages.
    pub timing: Timing,
}

impl Dial for TlsDialler {
    fn dial(&self) -> Dialling {
        let this = self.clone();
        Box::pin(async move {
            let stream: Box<dyn Stream> = Box::new(this.open(this.port, Arc::clone(&this.config)).await?);
            Ok(stream)
        })
    }

    fn ask_time(&self) -> Asking {
        let this = self.clone();
        Box::pin(async move {
            let (config, datable) = this.trust.question().map_err(AskError::Setup)?;
            let mut stream = this.open(this.https_port, config).await?;
            let unix_secs = timeout(this.timing.answer, time::ask(&mut stream, &this.host))
                .await
                .map_err(|_| AskError::Timeout { after: this.timing.answer })??;
            if !datable.is_valid_at(unix_secs) {
                return Err(AskError::Contradiction { unix_secs });
            }
            Ok(unix_secs)
        })
    }
}

impl TlsDialler {
    async fn open(&self, port: u16, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
        let Self { host, timing, .. } = self;
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
            .map_err(|source| DialError::Tls { host: host.clone(), source })?;
        Ok(tls)
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
    #[error("TLS with {host} failed: {}", advice_on(source))]
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

fn advice_on(source: &io::Error) -> &'static str {
    match tls::fault_of(source) {
        tls::Fault::Date => {
            "by this machine's clock its certificate is not valid now; the hub is asked for the time, and if that does not help its certificate has run out"
        }
        tls::Fault::Name => {
            "the certificate is another host's: check HostName in the connection string, DNS and proxies"
        }
        tls::Fault::Chain => {
            "no trusted root stands behind its certificate: check `ca_file` and `system_roots` in section [hub], and proxies that open TLS"
        }
        tls::Fault::Other => "check that `port` in section [hub] is the hub's, and firewalls and proxies",
    }
}
