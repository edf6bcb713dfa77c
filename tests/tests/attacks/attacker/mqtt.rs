//! MQTT 3.1.1 as far as a device of IoT Hub needs it, over TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use twinkey_tests::hub::TestHub;

/// The hub's end point.
#[derive(Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    pub(crate) host_name: String,
    tls: TlsConnector,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Shut {
    /// CONNACK says no.
    Refused,
    /// The network, or the hub, does not let us.
    Lost,
}

/// A connection of an identity.
pub(crate) struct Line {
    stream: TlsStream<TcpStream>,
    input: Vec<u8>,
}

/// A message from the hub.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
}

impl Door {
    pub(crate) fn of(hub: &TestHub) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(hub.ca_file()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(config));
        Self { address: hub.mqtts(), host_name: hub.host_name().to_owned(), tls }
    }

    /// CONNECT with this token as password, a clean session and a keep-alive of ten minutes.
    pub(crate) async fn open(&self, identity: &str, password: &str) -> Result<Line, Shut> {
        let lost = |_| Shut::Lost;
        let tcp = TcpStream::connect(self.address).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let name = ServerName::try_from(self.host_name.clone()).unwrap();
        let stream = self.tls.connect(name, tcp).await.map_err(lost)?;
        let mut line = Line { stream, input: Vec::new() };
        let user = format!("{}/{identity}/?api-version=2021-04-12", self.host_name);
        let mut body = b"\0\x04MQTT\x04\xc2\x02\x58".to_vec();
        for text in [identity, user.as_str(), password] {
            body.extend(text_of(text));
        }
        line.send(0x10, &body).await.map_err(lost)?;
        match line.packet().await {
            Ok((0x20, body)) if body.get(1) == Some(&0) => Ok(line),
            Ok((0x20, _)) => Err(Shut::Refused),
            Ok(_) | Err(_) => Err(Shut::Lost),
        }
    }
}

impl Line {
    pub(crate) async fn subscribe(&mut self, filters: &[&str]) -> io::Result<()> {
        let mut body = vec![0, 1];
        for filter in filters {
            body.extend(text_of(filter));
            body.push(0);
        }
        self.send(0x82, &body).await
    }

    /// QoS 0.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &[u8]) -> io::Result<()> {
        let mut body = text_of(topic);
        body.extend(payload);
        self.send(0x30, &body).await
    }

    /// The next message; what is of QoS 1 is acknowledged. May be dropped while it waits.
    pub(crate) async fn hear(&mut self) -> io::Result<Message> {
        loop {
            let (first, body) = self.packet().await?;
            if first & 0xf0 != 0x30 {
                continue;
            }
            let cut = || io::Error::from(io::ErrorKind::InvalidData);
            let (len, rest) = body.split_first_chunk().ok_or_else(cut)?;
            let (topic, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into()).ok_or_else(cut)?;
            let topic = String::from_utf8_lossy(topic).into_owned();
            if first & 0x06 == 0 {
                return Ok(Message { topic, payload: rest.to_vec() });
            }
            let (id, payload) = rest.split_at_checked(2).ok_or_else(cut)?;
            let (id, payload) = (id.to_vec(), payload.to_vec());
            self.send(0x40, &id).await?;
            return Ok(Message { topic, payload });
        }
    }

    async fn send(&mut self, first: u8, body: &[u8]) -> io::Result<()> {
        let mut packet = vec![first];
        let mut len = body.len();
        loop {
            let digit = u8::try_from(len % 128).unwrap();
            len /= 128;
            packet.push(if len > 0 { digit | 0x80 } else { digit });
            if len == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet).await?;
        self.stream.flush().await
    }

    /// The first byte of the next packet, and what follows its length. What has been read stays in `input` until then.
    async fn packet(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            let whole = head_of(&self.input).filter(|(head, len)| self.input.len() >= head + len);
            if let Some((head, len)) = whole {
                let first = self.input[0];
                let body = self.input[head..head + len].to_vec();
                self.input.drain(..head + len);
                return Ok((first, body));
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// How long the fixed header is, and how much follows it; `None` while that can't be told.
fn head_of(input: &[u8]) -> Option<(usize, usize)> {
    let mut len = 0;
    for (place, byte) in input.iter().skip(1).take(4).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((place + 2, len));
        }
    }
    None
}

fn text_of(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
