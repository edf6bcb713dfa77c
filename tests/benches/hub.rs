//! How large a fleet one local hub carries: devices made, connections opened and held, twin patches, and what they take
//! in memory and processor time. The hub is the real program in a process of its own, this one plays the devices.
//!
//! `cargo bench -p twinkey-tests --bench hub -- [DEVICES]`; without a number, as many of 20,000 as descriptors allow.
//! Connections are measured beside bare TLS handshakes of the same kind against a server that does nothing else, so that
//! the ratio tells what the hub adds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that can't be made ends by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::Method;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnAck, Connect, ConnectReturnCode, Login, Packet, Publish, Subscribe};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_sas::{Expiry, Key, ResourceUri, Signer, Token};
use twinkey_tests::emulated::{emulate, launch};
use twinkey_tests::vitals::raise_descriptors;

/// What is aimed at.
const DEVICES: u64 = 20_000;
/// Descriptors that are not connections.
const OTHER_DESCRIPTORS: u64 = 200;
/// Devices in one request.
const BATCH: usize = 100;
/// Connections that are being opened at one time.
const OPENING: usize = 64;
/// Bare handshakes for comparison.
const HANDSHAKES: usize = 2_000;
/// Devices that report at one time, patches of each, and how many of these are under way at once.
const REPORTERS: usize = 50;
const PATCHES: usize = 400;
const WINDOW: usize = 8;
/// How long the idle hub is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Argument that makes this program the bare TLS server.
const BARE_SERVER: &str = "--bare-tls-server";
/// Longest packet that the hub says here.
const PACKET_LEN_MAX: usize = 256 * 1024;
const API_VERSION: &str = "api-version=2021-04-12";

type Device = TlsStream<TcpStream>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if args.first().is_some_and(|arg| arg == BARE_SERVER) {
        return runtime.block_on(serve_bare_tls());
    }
    let asked = args.first().map_or(DEVICES, |arg| arg.parse().expect("a number of devices"));
    let devices = asked.min(raise_descriptors(asked + OTHER_DESCRIPTORS) - OTHER_DESCRIPTORS);
    if devices < asked {
        println!("only {devices} connections: no more descriptors are allowed (ulimit -n)");
    }
    runtime.block_on(measure(usize::try_from(devices).unwrap()));
}

async fn measure(count: usize) {
    let bare = bare_handshakes_per_sec().await;
    println!("{:<58}{bare:>12.0} /s", "bare TLS 1.3 handshakes, a server that does nothing else");

    let hub = Hub::start().await;
    let before = hub.usage();
    let (devices, took) = hub.create(count).await;
    println!("{:<58}{:>12.0} /s", "devices made, 100 in a request", per_sec(count, took));
    let registered = hub.usage();
    println!("{:<58}{:>12.1} KiB", "memory of a registered device", kib_each(&before, &registered, count));

    let (mut connections, took) = hub.connect_all(&devices).await;
    let rate = per_sec(count, took);
    println!("{:<58}{rate:>12.0} /s", format!("connects: TLS, CONNECT, CONNACK; {OPENING} at a time"));
    println!("{:<58}{:>12.2}", "  the same as a part of bare handshakes", rate / bare);
    let connected = hub.usage();
    println!("{:<58}{:>12.1} KiB", "memory of an idle connection", kib_each(&registered, &connected, count));
    println!(
        "{:<58}{:>12.0} MiB",
        format!("resident with {count} devices connected"),
        connected.resident_kib as f64 / 1024.0
    );

    tokio::time::sleep(IDLE).await;
    let rested = hub.usage();
    println!(
        "{:<58}{:>12.2} %",
        format!("processor time of the idle hub, of one core, over {} s", IDLE.as_secs()),
        (rested.processor_secs - connected.processor_secs) / IDLE.as_secs_f64() * 100.0
    );

    let reporters = connections.split_off(connections.len().saturating_sub(REPORTERS));
    let reporting = reporters.len();
    let started = Instant::now();
    let mut tasks: JoinSet<()> = reporters.into_iter().map(report).collect();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    println!(
        "{:<58}{:>12.0} /s",
        format!("reported patches, answered; {reporting} devices, {WINDOW} at a time each"),
        per_sec(reporting * PATCHES, started.elapsed())
    );
    let after = hub.usage();
    println!(
        "{:<58}{:>12.1} µs",
        "  processor time of the hub for each",
        (after.processor_secs - rested.processor_secs) * 1e6 / (reporting * PATCHES) as f64
    );
    let live = hub.connected_count().await;
    assert!(live as usize >= connections.len(), "{live} of {} idle connections are left", connections.len());
    println!("{:<58}{:>12}", "idle connections that were still there at the end", connections.len());
}

fn per_sec(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn kib_each(before: &Usage, after: &Usage, count: usize) -> f64 {
    (after.resident_kib as f64 - before.resident_kib as f64) / count as f64
}

/// What the hub's process holds and has used (proc(5)).
struct Usage {
    resident_kib: u64,
    processor_secs: f64,
}

/// The real program.
struct Hub {
    process: tokio::process::Child,
    mqtts: SocketAddr,
    https: SocketAddr,
    connector: TlsConnector,
    http: reqwest::Client,
    authorization: String,
}

impl Hub {
    async fn start() -> Self {
        let (process, ready) = launch(&mut emulate()).await;
        let tls = trusting(&[CertificateDer::from_pem_file(&ready.ca_file).unwrap()]);
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls.clone()).build().unwrap();
        let service = ServiceConnectionString::parse(&ready.service_connection_string).unwrap();
        let resource = ResourceUri::hub("localhost").unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        let token =
            Signer::new(&service.key).sign_as(&resource, &service.policy_name, far_future(), &mut buffer);
        Self {
            mqtts: ready.mqtts.parse().unwrap(),
            https: ready.https.parse().unwrap(),
            connector: TlsConnector::from(Arc::new(tls)),
            http,
            authorization: token.unwrap().expose().to_owned(),
            process,
        }
    }

    fn usage(&self) -> Usage {
        let pid = self.process.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // User and system time are the 14th and 15th fields; the second, the name, ends with a parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap()).sum();
        Usage {
            resident_kib: resident.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
            processor_secs: ticks / rustix::param::clock_ticks_per_second() as f64,
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let url = format!("https://localhost:{}{path}?{API_VERSION}", self.https.port());
        let mut request = self.http.request(method, url).header("authorization", &self.authorization);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.unwrap()
    }

    /// Makes devices with keys of ours, and says how long the hub took.
    async fn create(&self, count: usize) -> (Vec<(String, String)>, Duration) {
        let devices: Vec<(String, String)> = (0..count)
            .map(|at| {
                let mut key = [0; 32];
                getrandom::fill(&mut key).unwrap();
                let key = Key::from_bytes(&key).unwrap();
                (format!("device-{at:06}"), key.expose_base64(&mut [0; 88]).to_owned())
            })
            .collect();
        let started = Instant::now();
        for batch in devices.chunks(BATCH) {
            let entries = batch.iter().map(|(id, key)| {
                let keys = json!({"primaryKey": key, "secondaryKey": key});
                json!({"id": id, "importMode": "create", "status": "enabled",
                    "authentication": {"type": "sas", "symmetricKey": keys}})
            });
            let answer = self.call(Method::POST, "/devices", Some(entries.collect())).await;
            assert_eq!(answer["isSuccessful"], true, "{answer}");
        }
        (devices, started.elapsed())
    }

    async fn connect_all(&self, devices: &[(String, String)]) -> (Vec<Device>, Duration) {
        let started = Instant::now();
        let mut connections = Vec::with_capacity(devices.len());
        let mut opening = JoinSet::new();
        for (id, key) in devices {
            if opening.len() >= OPENING {
                connections.push(opening.join_next().await.unwrap().unwrap());
            }
            opening.spawn(connect(self.connector.clone(), self.mqtts, id.clone(), key.clone()));
        }
        while let Some(opened) = opening.join_next().await {
            connections.push(opened.unwrap());
        }
        (connections, started.elapsed())
    }

    async fn connected_count(&self) -> u64 {
        let answer = self.call(Method::GET, "/statistics/service", None).await;
        answer["connectedDeviceCount"].as_u64().unwrap()
    }
}

fn far_future() -> Expiry {
    Expiry::after(4_102_444_799, 0).unwrap()
}

/// Without resumption: every handshake is a whole one.
fn trusting(roots: &[CertificateDer<'static>]) -> rustls::ClientConfig {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(store)
            .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config
}

async fn open(connector: TlsConnector, address: SocketAddr) -> Device {
    let tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
}

async fn connect(connector: TlsConnector, address: SocketAddr, id: String, key: String) -> Device {
    let mut device = open(connector, address).await;
    let key = Key::from_base64(&key).unwrap();
    let resource = ResourceUri::device("localhost", &id).unwrap();
    let mut buffer = [0; Token::MAX_LEN];
    let token = Signer::new(&key).sign(&resource, far_future(), &mut buffer).unwrap();
    let mut connect = Connect::new(id.clone());
    connect.keep_alive = 1_000;
    connect.clean_session = false;
    connect.login = Some(Login {
        username: format!("localhost/{id}/?{API_VERSION}"),
        password: token.expose().to_owned(),
    });
    send(&mut device, [Packet::Connect(connect)]).await;
    let answer = next(&mut device, &mut BytesMut::new()).await;
    assert!(
        matches!(answer, Packet::ConnAck(ConnAck { code: ConnectReturnCode::Success, .. })),
        "{answer:?}"
    );
    device
}

async fn send(device: &mut Device, packets: impl IntoIterator<Item = Packet>) {
    let mut bytes = BytesMut::new();
    for packet in packets {
        packet.write(&mut bytes, usize::MAX).unwrap();
    }
    device.write_all(&bytes).await.unwrap();
    device.flush().await.unwrap();
}

async fn next(device: &mut Device, input: &mut BytesMut) -> Packet {
    loop {
        if let Ok(packet) = Packet::read(input, PACKET_LEN_MAX) {
            return packet;
        }
        assert!(device.read_buf(input).await.unwrap() > 0, "the hub hung up");
    }
}

/// Reports again and again, with some patches under way at once, until all are answered.
async fn report(mut device: Device) {
    let mut input = BytesMut::new();
    let mut subscribe = Subscribe::new("$iothub/twin/res/#", QoS::AtMostOnce);
    subscribe.pkid = 1;
    send(&mut device, [Packet::Subscribe(subscribe)]).await;
    assert!(matches!(next(&mut device, &mut input).await, Packet::SubAck(_)));
    let patch = |at: usize| {
        let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={at}");
        let body = json!({"temperature": at, "state": {"valve": at.is_multiple_of(2), "firmware": "1.2.3"}});
        Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body.to_string()))
    };
    send(&mut device, (0..WINDOW).map(patch)).await;
    for answered in 0..PATCHES {
        let answer = next(&mut device, &mut input).await;
        let Packet::Publish(answer) = answer else { panic!("{answer:?}") };
        assert!(answer.topic.starts_with("$iothub/twin/res/204/"), "{}", answer.topic);
        if answered + WINDOW < PATCHES {
            send(&mut device, [patch(answered + WINDOW)]).await;
        }
    }
}

/// What two processes can do without a hub between them.
async fn bare_handshakes_per_sec() -> f64 {
    let mut server = tokio::process::Command::new(std::env::current_exe().unwrap())
        .arg(BARE_SERVER)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address: SocketAddr = lines.next_line().await.unwrap().unwrap().parse().unwrap();
    let certificate = lines.next_line().await.unwrap().unwrap();
    let connector = TlsConnector::from(Arc::new(trusting(&[CertificateDer::from_pem_slice(
        certificate.replace('|', "\n").as_bytes(),
    )
    .unwrap()])));
    let started = Instant::now();
    let mut opening = JoinSet::new();
    let mut opened = Vec::with_capacity(HANDSHAKES);
    for _ in 0..HANDSHAKES {
        if opening.len() >= OPENING {
            opened.push(opening.join_next().await.unwrap().unwrap());
        }
        let connector = connector.clone();
        opening.spawn(async move {
            let mut stream = open(connector, address).await;
            // The hub's connections wait for an answer too.
            stream.write_all(b"?").await.unwrap();
            stream.flush().await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
            stream
        });
    }
    while let Some(stream) = opening.join_next().await {
        opened.push(stream.unwrap());
    }
    per_sec(HANDSHAKES, started.elapsed())
}

/// Prints its address and its certificate, then answers one byte on every connection, for ever.
async fn serve_bare_tls() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}\n{}", listener.local_addr().unwrap(), certificate.pem().replace('\n', "|"));
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            tcp.set_nodelay(true).unwrap();
            let Ok(mut stream) = acceptor.accept(tcp).await else { return };
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                if stream.write_all(&byte).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
        });
    }
}
