//! The local hub with many devices: made by the hundred, and played well enough to report.
#![allow(dead_code, reason = "each test uses its part")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Method;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use twinkey_contract::connection_string::{DeviceConnectionString, ServiceConnectionString};
use twinkey_contract::report::{Report, SlotReport, Status};
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId};
use twinkey_emulator::{Emulator, Options, start};
use twinkey_sas::{Expiry, Key, ResourceUri, Signer, Token};

/// Longest wait for the hub's next byte.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) hub: Emulator,
    dir: tempfile::TempDir,
    http: reqwest::Client,
}

/// A device's connection; it ends when this is dropped.
pub(crate) struct Connection(rustls::StreamOwned<rustls::ClientConnection, TcpStream>);

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start(Options { data_dir: dir.path().join("hub"), ..Options::default() }).await.unwrap();
        let login = dir.path().join("login");
        std::fs::write(&login, format!("{}\n", hub.ready().service_connection_string)).unwrap();
        std::fs::set_permissions(&login, std::fs::Permissions::from_mode(0o600)).unwrap();
        let http =
            reqwest::Client::builder().tls_backend_preconfigured(trusting(&hub)).no_proxy().build().unwrap();
        Self { hub, dir, http }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinkey"));
        command.args(args).env_remove("IOTHUB_CONNECTION_STRING").env_remove("RUST_LOG").stdin(Stdio::null());
        command.arg("--login").arg(self.path("login")).arg("--ca-file").arg(&self.hub.ready().ca_file);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    pub(crate) async fn run_ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(exit(&output), 0, "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The service's interface, as far as the program itself does not offer it.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let ready = self.hub.ready();
        let login = ServiceConnectionString::parse(&ready.service_connection_string).unwrap();
        let expiry = Expiry::after(unix_now(), 3600).unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        let resource = ResourceUri::hub(&login.host_name).unwrap();
        let signer = Signer::new(&login.key);
        let token = signer.sign_as(&resource, &login.policy_name, expiry, &mut buffer).unwrap();
        let url = format!("https://{}{path}", login.host_name);
        let request = self.http.request(method, url).header("Authorization", token.expose());
        let request = request.header("If-Match", "\"*\"").json(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// `pump-0000`, `pump-0001`, …
    pub(crate) async fn add_devices(&self, count: usize) {
        let ids: Vec<String> = (0..count).map(|i| format!("pump-{i:04}")).collect();
        for chunk in ids.chunks(100) {
            let entry = |id: &String| json!({"id": id, "importMode": "create", "status": "enabled", "authentication": {"type": "sas"}});
            let body: Vec<_> = chunk.iter().map(entry).collect();
            self.call(Method::POST, "/devices?api-version=2021-04-12", &json!(body)).await;
        }
    }

    pub(crate) async fn patch_twin(&self, id: &str, patch: &Value) {
        self.call(Method::PATCH, &format!("/twins/{id}?api-version=2021-04-12"), patch).await;
    }

    /// Waits until the hub knows that this device is gone.
    pub(crate) async fn until_disconnected(&self, id: &str) {
        let wait = async {
            loop {
                let path = format!("/twins/{id}?api-version=2021-04-12");
                let twin = self.call(Method::GET, &path, &json!(null)).await;
                if twin["connectionState"] == "Disconnected" {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }

    /// Both keys of a device (`d`) or module (`d/m`).
    pub(crate) async fn keys(&self, identity: &str) -> [Key; 2] {
        let path = identity.replacen('/', "/modules/", 1);
        let found =
            self.call(Method::GET, &format!("/devices/{path}?api-version=2021-04-12"), &json!(null)).await;
        let key = |slot: &str| {
            Key::from_base64(found["authentication"]["symmetricKey"][slot].as_str().unwrap()).unwrap()
        };
        [key("primaryKey"), key("secondaryKey")]
    }

    /// Connects as this identity, writes `patch` into the reported properties, and stays connected.
    pub(crate) async fn report(&self, identity: &str, key: &Key, patch: Value) -> Connection {
        self.report_all(identity, key, vec![patch]).await
    }

    /// The same with several patches, one after the other.
    pub(crate) async fn report_all(&self, identity: &str, key: &Key, patches: Vec<Value>) -> Connection {
        let config = trusting(&self.hub);
        let address = self.hub.ready().mqtts.clone();
        let host = self.hub.ready().host_name.clone();
        let identity: Identity = identity.parse().unwrap();
        let connection = DeviceConnectionString {
            host_name: host.clone(),
            identity: identity.clone(),
            key: key.clone(),
            gateway_host_name: None,
        };
        tokio::task::spawn_blocking(move || {
            let tcp = TcpStream::connect(address).unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let name = ServerName::try_from(host.clone()).unwrap();
            let tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            let mut connection_to_hub = Connection(rustls::StreamOwned::new(tls, tcp));
            connection_to_hub.connect(&connection);
            for patch in patches {
                let topic = "$iothub/twin/PATCH/properties/reported/?$rid=1";
                connection_to_hub.publish(topic, &patch.to_string());
            }
            connection_to_hub
        })
        .await
        .unwrap()
    }
}

/// MQTT 3.1.1, as much as a report takes.
impl Connection {
    fn connect(&mut self, device: &DeviceConnectionString) {
        let (host, identity) = (&device.host_name, &device.identity);
        let resource = match &identity.module_id {
            None => ResourceUri::device(host, &identity.device_id),
            Some(module) => ResourceUri::module(host, &identity.device_id, module),
        };
        let expiry = Expiry::after(unix_now(), 3600).unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        let token = Signer::new(&device.key).sign(&resource.unwrap(), expiry, &mut buffer).unwrap();
        let user = format!("{host}/{identity}/?api-version=2021-04-12");
        // Protocol name and level, flags (user name, password, clean session), keep-alive.
        let mut body = b"\x00\x04MQTT\x04\xc2\x04\xb0".to_vec();
        for text in [identity.to_string().as_str(), user.as_str(), token.expose()] {
            body.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            body.extend(text.as_bytes());
        }
        self.send(0x10, &body);
        let (kind, body) = self.receive();
        assert_eq!((kind, body.get(1)), (0x20, Some(&0)), "the hub accepts {identity}");
    }

    /// With quality of service 1; returns when the hub has it.
    fn publish(&mut self, topic: &str, text: &str) {
        let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
        body.extend(topic.as_bytes());
        body.extend([0, 1]);
        body.extend(text.as_bytes());
        self.send(0x32, &body);
        while self.receive().0 != 0x40 {}
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut rest = body.len();
        loop {
            let byte = u8::try_from(rest % 128).unwrap();
            rest /= 128;
            packet.push(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        packet.extend(body);
        self.0.write_all(&packet).and_then(|()| self.0.flush()).unwrap();
    }

    fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut byte = || {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            byte[0]
        };
        let kind = byte();
        let (mut len, mut shift) = (0, 0);
        loop {
            let next = byte();
            len |= usize::from(next & 0x7f) << shift;
            shift += 7;
            if next & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).unwrap();
        (kind & 0xf0, body)
    }
}

/// What a healthy agent reports that lives on its primary key since `proven_at`, in Unix seconds.
pub(crate) fn healthy(identity: &str, keys: &[Key; 2], proven_at: u64) -> Report {
    let rotation = RotationId::generate(proven_at * 1000).unwrap();
    let slot = |key: &Key, proven_at| Some(SlotReport { fingerprint: Fingerprint::of(key), proven_at });
    let mut report = Report {
        contract: 1,
        agent: "0.1.0".to_owned(),
        seal_to: None,
        sequence: 7,
        active: Some(KeySlot::Primary),
        rotation: Some(rotation),
        status: Status::Committed,
        reason: None,
        clock_offset_secs: None,
        behind: None,
        primary: slot(&keys[0], Some(proven_at)),
        secondary: slot(&keys[1], None),
        proof: None,
    };
    report.prove(&keys[0], &identity.parse().unwrap());
    report
}

pub(crate) fn unix_now() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "tokens of a test are judged by the real clock")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn trusting(hub: &Emulator) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(&hub.ready().ca_file).unwrap();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub(crate) fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
