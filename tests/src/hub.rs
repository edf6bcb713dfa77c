//! A hub for one test, and a caller of its REST interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_contract::report::{Report, Status};
use twinkey_emulator::{Emulator, Options, Ready, start};
use twinkey_sas::{Expiry, ResourceUri, Signer, Token};

use crate::emulated::{Caller, emulate, launch};
use crate::history::{History, Span};
use crate::programs;
use crate::waiting::{PATIENCE, until};

/// Expiry of the service's token: the end of the year 2099.
pub(crate) const FAR_FUTURE_UNIX_SECS: u64 = 4_102_444_799;

/// Most identities in one bulk request.
const BATCH_MAX: usize = 100;

/// The emulator, in this process or as `twinkey emulate`.
#[derive(Debug)]
pub struct TestHub {
    running: Running,
    ready: Ready,
    http: reqwest::Client,
    authorization: String,
    dir: TempDir,
}

#[derive(Debug)]
enum Running {
    Library(Emulator),
    /// Killed when dropped.
    Program(Child),
}

/// An HTTPS answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body; null where there is none.
    pub body: Value,
}

/// Both keys of an identity as the registry has them, in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// `primaryKey`.
    pub primary: String,
    /// `secondaryKey`.
    pub secondary: String,
}

impl TestHub {
    /// A hub with the default options.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A hub with options of the caller's.
    pub async fn start_with(choose: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options { data_dir: dir.path().to_owned(), ..Options::default() };
        choose(&mut options);
        let emulator = start(options).await.unwrap();
        let ready = emulator.ready().clone();
        Self::reach(Running::Library(emulator), ready, dir)
    }

    /// The program `twinkey emulate` with these arguments besides its directory.
    pub async fn start_program(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (program, ready) = launch(emulate().arg("--data-dir").arg(dir.path()).args(args)).await;
        Self::reach(Running::Program(program), ready, dir)
    }

    fn reach(running: Running, ready: Ready, dir: TempDir) -> Self {
        let http = trusting(&ready.ca_file);
        let authorization = service_token(&ready.service_connection_string, &ready.host_name);
        Self { running, ready, http, authorization, dir }
    }

    /// The port of MQTT over TLS.
    pub fn mqtts_port(&self) -> u16 {
        port_of(&self.ready.mqtts)
    }

    /// The process, if it is one of its own.
    pub fn process_id(&self) -> Option<u32> {
        match &self.running {
            Running::Library(_) => None,
            Running::Program(program) => program.id(),
        }
    }

    /// Where MQTT over TLS is served.
    pub fn mqtts(&self) -> SocketAddr {
        self.ready.mqtts.parse().unwrap()
    }

    /// The hub's name in tokens and user names.
    pub fn host_name(&self) -> &str {
        &self.ready.host_name
    }

    /// The port of HTTPS.
    pub fn https_port(&self) -> u16 {
        port_of(&self.ready.https)
    }

    /// The certificate to trust.
    pub fn ca_file(&self) -> &Path {
        &self.ready.ca_file
    }

    /// The connection string of the policy that may do everything.
    pub fn service_connection_string(&self) -> &str {
        &self.ready.service_connection_string
    }

    /// What the operator logs in with.
    pub fn login_file(&self) -> PathBuf {
        self.dir.path().join("hub.json")
    }

    /// The key of the policy that may do everything, in base64.
    pub fn policy_key(&self) -> String {
        let text = &self.ready.service_connection_string;
        ServiceConnectionString::parse(text).unwrap().key.expose_base64(&mut [0; 88]).to_owned()
    }

    /// A caller of its REST interface for another task.
    pub fn caller(&self) -> Caller {
        let base = format!("https://localhost:{}", self.https_port());
        Caller::new(self.http.clone(), base, self.authorization.clone())
    }

    /// A command of the operator's program against this hub.
    pub fn operator(&self, args: &[&str]) -> Command {
        let mut command = programs::twinkey();
        command.args(args).arg("--login").arg(self.login_file()).arg("--ca-file").arg(self.ca_file());
        command
    }

    /// The command that renews a device's key.
    pub fn renewal(&self, device: &str, key_type: &str) -> Command {
        let args =
            ["device-identity", "renew-key", "-d", device, "--key-type", key_type, "--yes", "--no-progress"];
        let mut command = self.operator(&args);
        command.args(["--output", "json"]);
        command
    }

    /// A REST call by that policy; `path` has no query.
    pub async fn call(&self, method: Method, path: &str, etag: Option<&str>, body: Value) -> Answer {
        let path = format!("{path}?api-version=2021-04-12");
        let mut headers = vec![("authorization", self.authorization.as_str())];
        headers.extend(etag.map(|etag| ("if-match", etag)));
        self.request(method, &path, &headers, body).await
    }

    async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let https = port_of(&self.ready.https);
        let mut request = self.http.request(method, format!("https://localhost:{https}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        // A hub that a test restarts is away for a moment. Whatever tests ask for may be asked for twice.
        let sent = async || request.try_clone()?.send().await.ok();
        let response = until("the hub answers", sent).await;
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Answer { status, body }
    }

    /// Creates a device, or the module of a device (`device/module`), with keys of the hub's making.
    pub async fn create(&self, identity: &str) -> Keys {
        let body = match identity.split_once('/') {
            None => json!({"deviceId": identity}),
            Some((device, module)) => json!({"deviceId": device, "moduleId": module}),
        };
        let answer = self.call(Method::PUT, &path("devices", identity), None, body).await;
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        Keys::of(&answer.body)
    }

    /// Creates devices with these keys.
    pub async fn create_many(&self, devices: &[(String, Keys)]) {
        for batch in devices.chunks(BATCH_MAX) {
            let entries = batch.iter().map(|(id, keys)| {
                let keys = json!({"primaryKey": keys.primary, "secondaryKey": keys.secondary});
                json!({"id": id, "importMode": "create", "status": "enabled",
                    "authentication": {"type": "sas", "symmetricKey": keys}})
            });
            let answer = self.call(Method::POST, "/devices", None, entries.collect()).await.expect(200);
            assert_eq!(answer["isSuccessful"], true, "{answer}");
        }
    }

    /// How many devices fit a query's condition.
    pub async fn count_devices(&self, condition: &str) -> u64 {
        let query = format!("SELECT COUNT() AS devices FROM devices WHERE {condition}");
        let rows = self.call(Method::POST, "/devices/query", None, json!({"query": query})).await.expect(200);
        // Of no device there is no group.
        rows.as_array().unwrap().first().map_or(0, |row| row["devices"].as_u64().unwrap())
    }

    /// How many twins hold an offer.
    pub async fn offers_left(&self) -> u64 {
        self.count_devices("is_defined(properties.desired.keyRenewal)").await
    }

    /// The keys in the registry.
    pub async fn keys(&self, identity: &str) -> Keys {
        Keys::of(&self.call(Method::GET, &path("devices", identity), None, Value::Null).await.expect(200))
    }

    /// Puts these keys into the registry.
    pub async fn put_keys(&self, device: &str, keys: &Keys) {
        let key = json!({"primaryKey": keys.primary, "secondaryKey": keys.secondary});
        let body = json!({"deviceId": device, "authentication": {"type": "sas", "symmetricKey": key}});
        self.call(Method::PUT, &path("devices", device), Some("*"), body).await.expect(200);
    }

    /// Has the hub make new keys: `primaryKey`, `secondaryKey` or `both`. Nobody is told.
    pub async fn regenerate(&self, identity: &str, policy_key: &str) -> Keys {
        let device = match identity.split_once('/') {
            None => json!({"id": identity}),
            Some((device, module)) => json!({"id": device, "moduleId": module}),
        };
        let body = json!({"policyKey": policy_key, "devices": [device]});
        self.call(Method::POST, "/devices/keys/regenerate", None, body).await.expect(200);
        self.keys(identity).await
    }

    /// The twin.
    pub async fn twin(&self, identity: &str) -> Value {
        self.call(Method::GET, &path("twins", identity), None, Value::Null).await.expect(200)
    }

    /// Merges into the desired properties.
    pub async fn desire(&self, identity: &str, desired: Value) {
        let body = json!({"properties": {"desired": desired}});
        self.call(Method::PATCH, &path("twins", identity), None, body).await.expect(200);
    }

    /// What the agent reports.
    pub async fn report(&self, identity: &str) -> Option<Report> {
        Report::read(&self.twin(identity).await["properties"]["reported"]).unwrap()
    }

    /// Waits for a report that is as wished.
    pub async fn until_report(&self, identity: &str, what: &str, wish: impl Fn(&Report) -> bool) -> Report {
        until(what, async || self.report(identity).await.filter(|report| wish(report))).await
    }

    /// Waits until the agent has committed `rotation`.
    pub async fn until_committed(&self, identity: &str, rotation: &str) -> Report {
        self.until_report(identity, "the rotation is committed", |report| {
            report.status == Status::Committed && is_about(report, rotation)
        })
        .await
    }

    /// Calls a direct method.
    pub async fn call_method(&self, device: &str, name: &str, payload: Value) -> Answer {
        let body = json!({"methodName": name, "payload": payload, "responseTimeoutInSeconds": 15});
        self.call(Method::POST, &format!("{}/methods", path("twins", device)), None, body).await
    }

    /// Changes what the hub suffers from.
    pub async fn set_faults(&self, faults: Value) {
        self.operate("faults", faults).await.expect(200);
    }

    /// Closes an identity's TCP connection without a word, and says whether there was one.
    pub async fn cut(&self, identity: &str) -> bool {
        self.operate("cut", json!({"identity": identity})).await.expect(200)["cut"] == 1
    }

    /// Lets devices register with the provisioning service: `enrollments/ID` or `enrollmentGroups/ID`.
    pub async fn enroll(&self, path: &str, body: Value) -> Value {
        self.request(Method::PUT, &format!("/$emulator/{path}"), &[], body).await.expect(200)
    }

    /// The provisioning service's ID scope.
    pub fn id_scope(&self) -> &str {
        &self.ready.id_scope
    }

    /// Tells the operator's endpoint `name` of the emulator.
    pub async fn operate(&self, name: &str, body: Value) -> Answer {
        self.request(Method::POST, &format!("/$emulator/{name}"), &[], body).await
    }

    /// What the hub saw of an identity's connections.
    pub async fn history(&self, identity: &str) -> History {
        self.look("connections", identity).await
    }

    /// The telemetry of an identity, oldest first.
    pub async fn telemetry(&self, identity: &str) -> Vec<Value> {
        let page: Value = self.look("telemetry", identity).await;
        page["messages"].as_array().unwrap().clone()
    }

    /// The same without a limit on their number.
    pub async fn all_telemetry(&self, identity: &str) -> Vec<Value> {
        let mut messages = Vec::new();
        let mut after = 0;
        loop {
            let path = format!("/$emulator/telemetry?identity={}&max=10000&after={after}", encode(identity));
            let mut page = self.request(Method::GET, &path, &[], Value::Null).await.expect(200);
            assert_eq!(page["dropped"], 0, "the hub has forgotten messages");
            messages.append(page["messages"].as_array_mut().unwrap());
            let next = page["next"].as_u64().unwrap();
            if next == after {
                return messages;
            }
            after = next;
        }
    }

    async fn look<T: DeserializeOwned>(&self, name: &str, identity: &str) -> T {
        let path = format!("/$emulator/{name}?identity={}", encode(identity));
        serde_json::from_value(self.request(Method::GET, &path, &[], Value::Null).await.expect(200)).unwrap()
    }

    /// Waits for a live connection that is as wished.
    pub async fn until_live(&self, identity: &str, what: &str, wish: impl Fn(&Span) -> bool) -> Span {
        until(what, async || self.history(identity).await.live().filter(|span| wish(span)).cloned()).await
    }

    /// Waits until the identity is connected with the key of `slot`.
    pub async fn until_connected(&self, identity: &str, slot: &str) -> Span {
        self.until_live(identity, &format!("connected with the {slot} key"), |span| span.key == slot).await
    }

    /// Counts operations anew.
    pub async fn reset_throttles(&self) {
        self.request(Method::DELETE, "/$emulator/throttles", &[], Value::Null).await.expect(204);
    }

    /// Operations by category since then.
    pub async fn operations(&self) -> BTreeMap<String, u64> {
        let view = self.request(Method::GET, "/$emulator/throttles", &[], Value::Null).await.expect(200);
        let categories = view["categories"].as_object().unwrap();
        let count = |meter: &Value| meter["operations"].as_u64().unwrap();
        categories.iter().map(|(name, meter)| (name.clone(), count(meter))).collect()
    }

    /// Ends the hub.
    pub async fn shutdown(self) {
        match self.running {
            Running::Library(emulator) => emulator.shutdown().await,
            Running::Program(mut program) => program.kill().await.unwrap(),
        }
    }
}

impl Answer {
    /// The body, if the status is as expected.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }
}

impl Keys {
    fn of(identity: &Value) -> Self {
        let key = |name| identity["authentication"]["symmetricKey"][name].as_str().unwrap().to_owned();
        Self { primary: key("primaryKey"), secondary: key("secondaryKey") }
    }

    /// The key of a slot.
    pub fn of_slot(&self, slot: &str) -> &str {
        if slot == "primary" { &self.primary } else { &self.secondary }
    }
}

/// Whether a report speaks of this rotation.
pub fn is_about(report: &Report, rotation: &str) -> bool {
    report.rotation.is_some_and(|known| known.to_string() == rotation)
}

/// A client that trusts one authority only.
pub(crate) fn trusting(ca_file: &Path) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE).build().unwrap()
}

/// A token of the policy in a service's connection string.
pub(crate) fn service_token(connection_string: &str, host_name: &str) -> String {
    let service = ServiceConnectionString::parse(connection_string).unwrap();
    let resource = ResourceUri::hub(host_name).unwrap();
    let expiry = Expiry::after(FAR_FUTURE_UNIX_SECS, 0).unwrap();
    let mut buffer = [0; Token::MAX_LEN];
    let token = Signer::new(&service.key).sign_as(&resource, &service.policy_name, expiry, &mut buffer);
    token.unwrap().expose().to_owned()
}

/// `/devices/ID` or `/devices/ID/modules/ID`.
fn path(collection: &str, identity: &str) -> String {
    match identity.split_once('/') {
        None => format!("/{collection}/{}", encode(identity)),
        Some((device, module)) => format!("/{collection}/{}/modules/{}", encode(device), encode(module)),
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}
