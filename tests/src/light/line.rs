//! One MQTT connection of a light device: real TLS, CONNECT with a SAS token, the twin's requests. What it costs is the
//! TLS session; nothing else is kept for long.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe, SubscribeFilter,
};
use rumqttc::mqttbytes::{Error as CodecError, QoS};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use twinkey_contract::Identity;
use twinkey_sas::{Expiry, Key, ResourceUri, Signer, Token};

use crate::hub::FAR_FUTURE_UNIX_SECS;

/// Connections that are being opened at one time: a thousand handshakes at once would all be slow.
const OPENING_MAX: usize = 32;
/// Longest packet that the hub says: a twin of 64 KiB, escaped.
const PACKET_LEN_MAX: usize = 256 * 1024;
/// MQTT's keep-alive. Light devices are quiet.
const KEEP_ALIVE: Duration = Duration::from_secs(1000);
/// How long the hub may be silent before it is pinged.
const QUIET_MAX: Duration = Duration::from_secs(600);
/// Longest wait for an answer: long enough for a hub that throttles, and for a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Pause after a twin request that the hub has put off; doubled up to the longest.
const PUT_OFF_MIN: Duration = Duration::from_secs(1);
const PUT_OFF_MAX: Duration = Duration::from_secs(30);
const SUBSCRIPTIONS: [&str; 2] = ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#"];

/// Where light devices connect to.
pub(super) struct Exchange {
    address: SocketAddr,
    host_name: String,
    connector: TlsConnector,
    opening: Semaphore,
}

impl Exchange {
    /// Trusts the hub's own authority. No handshake is shortened by an earlier one: every device is a machine of its own.
    pub(super) fn new(address: SocketAddr, host_name: &str, ca_file: &Path) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));
        Self { address, host_name: host_name.to_owned(), connector, opening: Semaphore::new(OPENING_MAX) }
    }
}

/// A token that outlives every test.
pub(super) fn device_token(host_name: &str, identity: &Identity, key: &Key) -> String {
    let resource = ResourceUri::device(host_name, &identity.device_id).unwrap();
    let mut buffer = [0; Token::MAX_LEN];
    let expiry = Expiry::at(FAR_FUTURE_UNIX_SECS);
    let token = Signer::new(key).sign(&resource, expiry, &mut buffer).unwrap();
    token.expose().to_owned()
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLine {
    /// The hub refused the key.
    Refused,
    /// The hub was not reached, or did not answer. That says nothing about the key.
    Unreached,
}

/// The connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// A connection that the hub has accepted.
pub(super) struct Line {
    stream: TlsStream<TcpStream>,
    incoming: BytesMut,
    requests: u32,
    /// Desired properties may have changed since the twin was read.
    is_hinted: bool,
}

impl Line {
    /// Connects with `key`.
    pub(super) async fn open(exchange: &Exchange, identity: &Identity, key: &Key) -> Result<Self, NoLine> {
        // It is never closed.
        let _turn = exchange.opening.acquire().await;
        let opened = timeout(ANSWER_MAX, Self::knock(exchange, identity, key)).await;
        let (line, code) = opened.map_err(|_| NoLine::Unreached)?.map_err(|Broken| NoLine::Unreached)?;
        match code {
            ConnectReturnCode::Success => Ok(line),
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => Err(NoLine::Refused),
            ConnectReturnCode::ServiceUnavailable
            | ConnectReturnCode::RefusedProtocolVersion
            | ConnectReturnCode::BadClientId => Err(NoLine::Unreached),
        }
    }

    async fn knock(
        exchange: &Exchange,
        identity: &Identity,
        key: &Key,
    ) -> Result<(Self, ConnectReturnCode), Broken> {
        let tcp = TcpStream::connect(exchange.address).await?;
        tcp.set_nodelay(true)?;
        let stream = exchange.connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
        let mut line = Self { stream, incoming: BytesMut::new(), requests: 0, is_hinted: false };
        let host = &exchange.host_name;
        let token = device_token(host, identity, key);
        let mut hello = Connect::new(identity.to_string());
        hello.keep_alive = u16::try_from(KEEP_ALIVE.as_secs()).unwrap();
        hello.clean_session = false;
        hello.set_login(format!("{host}/{identity}/?api-version=2021-04-12"), token.as_str());
        line.send(Packet::Connect(hello)).await?;
        let answer = line.next().await?;
        let Packet::ConnAck(answer) = answer else { panic!("the hub answers CONNECT with {answer:?}") };
        Ok((line, answer.code))
    }

    /// Subscribes to the twin; to be done after every connect.
    pub(super) async fn subscribe(&mut self) -> Result<(), Broken> {
        let filters = SUBSCRIPTIONS.map(|topic| SubscribeFilter::new(topic.to_owned(), QoS::AtMostOnce));
        self.send(Packet::Subscribe(Subscribe { pkid: 1, filters: filters.into() })).await?;
        let granted = async {
            loop {
                if let Packet::SubAck(_) = self.next().await? {
                    return Ok(());
                }
            }
        };
        timeout(ANSWER_MAX, granted).await.map_err(|_| Broken)?
    }

    /// The whole twin, as JSON text.
    pub(super) async fn twin(&mut self) -> Result<Bytes, Broken> {
        self.is_hinted = false;
        self.request("$iothub/twin/GET/", " ").await
    }

    /// Merges into the reported properties.
    pub(super) async fn report(&mut self, patch: &Value) -> Result<(), Broken> {
        self.request("$iothub/twin/PATCH/properties/reported/", &patch.to_string()).await.map(drop)
    }

    /// Asks until the hub serves it.
    async fn request(&mut self, topic: &str, body: &str) -> Result<Bytes, Broken> {
        let mut pause = PUT_OFF_MIN;
        loop {
            self.requests += 1;
            let id = self.requests.to_string();
            let publish = Publish::new(format!("{topic}?$rid={id}"), QoS::AtMostOnce, body);
            self.send(Packet::Publish(publish)).await?;
            let (status, payload) = timeout(ANSWER_MAX, self.answer_to(&id)).await.map_err(|_| Broken)??;
            match status {
                200..=299 => return Ok(payload),
                429 | 500..=599 => sleep(pause).await,
                other => panic!("the hub answers a request to {topic} with {other}"),
            }
            pause = (pause * 2).min(PUT_OFF_MAX);
        }
    }

    async fn answer_to(&mut self, id: &str) -> Result<(u16, Bytes), Broken> {
        loop {
            let Packet::Publish(publish) = self.next().await? else { continue };
            let Some(rest) = publish.topic.strip_prefix("$iothub/twin/res/") else { continue };
            let (status, query) = rest.split_once("/?").unwrap();
            if query.split('&').any(|pair| pair.strip_prefix("$rid=") == Some(id)) {
                return Ok((status.parse().unwrap(), publish.payload));
            }
        }
    }

    /// Waits until the hub hints at a change of the desired properties, and keeps the connection alive meanwhile.
    pub(super) async fn until_hinted(&mut self) -> Result<(), Broken> {
        let mut is_pinged = false;
        while !self.is_hinted {
            match timeout(QUIET_MAX, self.next()).await {
                Ok(packet) => {
                    packet?;
                    is_pinged = false;
                }
                Err(_) if is_pinged => return Err(Broken),
                Err(_) => {
                    self.send(Packet::PingReq).await?;
                    is_pinged = true;
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, packet: Packet) -> Result<(), Broken> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, PACKET_LEN_MAX).unwrap();
        self.stream.write_all(&bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// The next packet; hints are noted here, whoever waits for what.
    async fn next(&mut self) -> Result<Packet, Broken> {
        loop {
            match Packet::read(&mut self.incoming, PACKET_LEN_MAX) {
                Ok(packet) => return self.noted(packet).await,
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => panic!("the hub sends what is no MQTT: {error}"),
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(Broken);
            }
        }
    }

    async fn noted(&mut self, packet: Packet) -> Result<Packet, Broken> {
        // Thousands of quiet connections need no buffers.
        if self.incoming.is_empty() {
            self.incoming = BytesMut::new();
        }
        if let Packet::Publish(publish) = &packet {
            self.is_hinted |= publish.topic.starts_with("$iothub/twin/PATCH/properties/desired/");
            if publish.qos == QoS::AtLeastOnce {
                self.send(Packet::PubAck(PubAck::new(publish.pkid))).await?;
            }
        }
        Ok(packet)
    }
}
