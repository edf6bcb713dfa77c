//! A hub for one test, a REST caller and a small MQTT client on real sockets.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this module")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, Subscribe, SubscribeFilter,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ProtocolVersion, SupportedProtocolVersion};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use twinkey_emulator::{Emulator, Options, start};

/// Bound of every wait: long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const API: &str = "api-version=2021-04-12";

pub struct TestHub {
    pub emulator: Emulator,
    pub dir: TempDir,
    http: reqwest::Client,
    connector: TlsConnector,
}

/// An HTTPS answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Asserts status and `iothub-errorcode`.
    pub fn expect_error(self, status: u16, name: &str) -> Value {
        assert_eq!(self.header("iothub-errorcode"), Some(name), "{}", self.body);
        self.expect(status)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl TestHub {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(choose: impl FnOnce(&mut Options)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), choose).await
    }

    pub async fn start_in(dir: TempDir, choose: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options { data_dir: dir.path().to_owned(), ..Options::default() };
        choose(&mut options);
        let emulator = start(options).await.unwrap();
        let config = trusting(&emulator.ready().ca_file, rustls::ALL_VERSIONS);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config.clone())
            .timeout(PATIENCE)
            .build()
            .unwrap();
        Self { emulator, dir, http, connector: TlsConnector::from(Arc::new(config)) }
    }

    /// Ends the hub, and returns its directory.
    pub async fn stop(self) -> TempDir {
        self.emulator.shutdown().await;
        self.dir
    }

    /// Ends the hub, and starts another one in its directory.
    pub async fn start_again(self, choose: impl FnOnce(&mut Options)) -> Self {
        Self::start_in(self.stop().await, choose).await
    }

    pub fn https_port(&self) -> &str {
        self.emulator.ready().https.rsplit(':').next().unwrap()
    }

    /// The primary key of a policy, from the file that the hub keeps.
    pub fn policy_key(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("policies.json")).unwrap();
        let policies: Value = serde_json::from_str(&text).unwrap();
        policies[name]["primaryKey"].as_str().unwrap().to_owned()
    }

    pub fn policy_token(&self, name: &str) -> String {
        token("localhost", &self.policy_key(name), unix_secs() + 3600, Some(name))
    }

    /// A REST call by a policy. `path` may have a query.
    pub async fn call_as(
        &self,
        policy: &str,
        method: Method,
        path: &str,
        etag: Option<&str>,
        body: Value,
    ) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut headers = vec![("authorization", self.policy_token(policy))];
        headers.extend(etag.map(|etag| ("if-match", etag.to_owned())));
        self.request(method, &format!("{path}{separator}{API}"), &headers, body).await
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.call_as("iothubowner", method, path, None, body).await
    }

    pub async fn call_if(&self, method: Method, path: &str, etag: &str, body: Value) -> Answer {
        self.call_as("iothubowner", method, path, Some(etag), body).await
    }

    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Value,
    ) -> Answer {
        self.try_request(method, path, headers, body).await.unwrap()
    }

    /// A request that may get no answer.
    pub async fn try_request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Value,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, format!("https://localhost:{}{path}", self.https_port()));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Ok(Answer { status, headers, body })
    }

    pub async fn operate(&self, name: &str, body: Value) -> Answer {
        self.request(Method::POST, &format!("/$emulator/{name}"), &[], body).await
    }

    pub async fn set_faults(&self, faults: Value) {
        self.operate("faults", faults).await.expect(200);
    }

    pub async fn look(&self, what: &str) -> Value {
        self.request(Method::GET, &format!("/$emulator/{what}"), &[], Value::Null).await.expect(200)
    }

    pub async fn spans(&self, identity: &str) -> Vec<Value> {
        let seen = self.look(&format!("connections?identity={identity}")).await;
        seen["connections"].as_array().unwrap().clone()
    }

    /// Waits until a connection's span has closed, and returns the span.
    pub async fn closed_span(&self, identity: &str, at: usize) -> Value {
        let closed = async {
            loop {
                let spans = self.spans(identity).await;
                match spans.get(at) {
                    Some(span) if !span["closedBy"].is_null() => return span.clone(),
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        timeout(PATIENCE, closed).await.expect("the span does not close")
    }

    /// Why CONNECTs of an identity were refused, in order.
    pub async fn refusals(&self, identity: &str) -> Vec<String> {
        let seen = self.look(&format!("connections?identity={identity}")).await;
        seen["refused"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["reason"].as_str().unwrap().to_owned())
            .collect()
    }

    pub async fn create(&self, id: &str) -> Keys {
        let body = json!({"deviceId": id, "status": "enabled"});
        Keys::of(&self.call(Method::PUT, &format!("/devices/{}", encode(id)), body).await.expect(200))
    }

    pub async fn create_module(&self, device: &str, module: &str) -> Keys {
        let path = format!("/devices/{}/modules/{}", encode(device), encode(module));
        Keys::of(
            &self.call(Method::PUT, &path, json!({"deviceId": device, "moduleId": module})).await.expect(201),
        )
    }

    pub async fn identity(&self, id: &str) -> Value {
        self.call(Method::GET, &format!("/devices/{}", encode(id)), Value::Null).await.expect(200)
    }

    /// A TLS connection to the MQTT port, on which nothing has been said yet.
    pub async fn open(&self) -> Client {
        let stream = self.open_tls(&self.emulator.ready().mqtts).await;
        Client::new(Box::new(stream))
    }

    /// A TLS connection to one of the hub's ports.
    pub async fn open_tls(&self, address: &str) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        timeout(PATIENCE, self.connector.connect(name, tcp)).await.unwrap().unwrap()
    }

    /// Shakes hands on the MQTT port in one TLS version, asking for `name`; the version agreed on.
    pub async fn handshake(
        &self,
        version: &'static SupportedProtocolVersion,
        name: &'static str,
    ) -> std::io::Result<ProtocolVersion> {
        let config = trusting(&self.emulator.ready().ca_file, &[version]);
        let tcp = TcpStream::connect(&self.emulator.ready().mqtts).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream =
            timeout(PATIENCE, connector.connect(ServerName::try_from(name).unwrap(), tcp)).await.unwrap()?;
        Ok(stream.get_ref().1.protocol_version().unwrap())
    }

    pub async fn try_connect(&self, connect: Connect) -> Result<(Client, bool), ConnectReturnCode> {
        self.open().await.connect(connect).await
    }

    pub async fn connect(&self, id: &str, key: &str) -> Client {
        self.try_connect(connect(id, key)).await.expect("refused").0
    }

    pub async fn is_refused(&self, id: &str, key: &str) -> bool {
        self.try_connect(connect(id, key)).await.is_err()
    }
}

fn trusting(ca_file: &Path, versions: &[&'static SupportedProtocolVersion]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub primary: String,
    pub secondary: String,
}

impl Keys {
    pub fn of(identity: &Value) -> Self {
        let key = |name| identity["authentication"]["symmetricKey"][name].as_str().unwrap().to_owned();
        Self { primary: key("primaryKey"), secondary: key("secondaryKey") }
    }
}

/// CONNECT as the SDKs send it, with a token that is valid for an hour.
pub fn connect(id: &str, key: &str) -> Connect {
    connect_until(id, key, unix_secs() + 3600)
}

pub fn connect_until(id: &str, key: &str, expiry: u64) -> Connect {
    connect_with(id, &token(&resource(id), key, expiry, None))
}

pub fn connect_with(id: &str, token: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.clean_session = false;
    connect.keep_alive = 60;
    connect.set_login(format!("localhost/{id}/?api-version=2021-04-12&DeviceClientType=test%2F1"), token);
    connect
}

pub fn resource(id: &str) -> String {
    match id.split_once('/') {
        None => format!("localhost/devices/{id}"),
        Some((device, module)) => format!("localhost/devices/{device}/modules/{module}"),
    }
}

pub fn token(resource: &str, key: &str, expiry: u64, policy: Option<&str>) -> String {
    let sr = encode(resource);
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).unwrap()).unwrap();
    mac.update(format!("{sr}\n{expiry}").as_bytes());
    let sig = encode(&STANDARD.encode(mac.finalize().into_bytes()));
    let skn = policy.map_or(String::new(), |policy| format!("&skn={policy}"));
    format!("SharedAccessSignature sr={sr}&sig={sig}&se={expiry}{skn}")
}

pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, STRICT).to_string()
}

#[allow(
    clippy::disallowed_methods,
    reason = "tokens carry wall-clock time, and the hub compares with the real one"
)]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

pub fn unix_secs() -> u64 {
    unix_time().as_secs()
}

/// What a client speaks MQTT on.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// An MQTT client that says and hears single packets.
pub struct Client {
    pub stream: Box<dyn Stream>,
    input: BytesMut,
    last_pkid: u16,
}

impl Client {
    pub fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, input: BytesMut::new(), last_pkid: 0 }
    }

    /// Says CONNECT, and tells what the hub answers: whether a session was present, or why it refuses.
    pub async fn connect(mut self, connect: Connect) -> Result<(Self, bool), ConnectReturnCode> {
        self.send(Packet::Connect(connect)).await;
        match self.receive().await {
            Some(Packet::ConnAck(ConnAck { code: ConnectReturnCode::Success, session_present })) => {
                Ok((self, session_present))
            }
            Some(Packet::ConnAck(ConnAck { code, session_present })) => {
                assert!(!session_present);
                assert_eq!(self.receive().await, None, "a refused connection stays open");
                Err(code)
            }
            other => panic!("{other:?} in place of CONNACK"),
        }
    }

    pub async fn send(&mut self, packet: Packet) {
        self.send_at_once([packet]).await;
    }

    /// Says all of these in one breath: however slow this machine is, the hub hears them one right after the other.
    pub async fn send_at_once(&mut self, packets: impl IntoIterator<Item = Packet>) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, usize::MAX).unwrap();
        }
        // The hub may have closed already; then the next receive tells.
        let _ = self.stream.write_all(&bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet; `None` once the hub has closed.
    pub async fn receive(&mut self) -> Option<Packet> {
        timeout(PATIENCE, self.read()).await.expect("the hub says nothing")
    }

    async fn read(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.input, 1 << 20) {
                Ok(packet) => return Some(packet),
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Whether the hub closes without another word.
    pub async fn is_closed(&mut self) -> bool {
        self.receive().await.is_none()
    }

    /// Whether the connection still answers a ping, and nothing else is waiting.
    pub async fn answers(&mut self) -> bool {
        self.send(Packet::PingReq).await;
        self.receive().await == Some(Packet::PingResp)
    }

    pub async fn receive_publish(&mut self) -> Publish {
        match self.receive().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("{other:?} in place of PUBLISH"),
        }
    }

    pub fn next_pkid(&mut self) -> u16 {
        self.last_pkid += 1;
        self.last_pkid
    }

    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> SubAck {
        let mut subscribe = Subscribe::new_many([SubscribeFilter::new(filter.to_owned(), qos)]);
        subscribe.pkid = self.next_pkid();
        self.send(Packet::Subscribe(subscribe)).await;
        match self.receive().await {
            Some(Packet::SubAck(suback)) => suback,
            other => panic!("{other:?} in place of SUBACK"),
        }
    }

    /// Publishes with QoS 1 and waits for PUBACK.
    pub async fn publish(&mut self, topic: &str, body: &str) {
        let pkid = self.next_pkid();
        self.send(publish(topic, body, pkid)).await;
        assert_eq!(self.receive().await, Some(Packet::PubAck(PubAck::new(pkid))));
    }

    /// A twin request with QoS 0: topic and body of the answer.
    pub async fn request_twin(&mut self, topic: &str, body: &str) -> (String, Value) {
        self.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body))).await;
        let answer = self.receive_publish().await;
        let body = if answer.payload.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&answer.payload).unwrap()
        };
        (answer.topic, body)
    }
}

pub fn publish(topic: &str, body: &str, pkid: u16) -> Packet {
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, body);
    publish.pkid = pkid;
    Packet::Publish(publish)
}
