//! A hub of which a test decides every word: a registry, twins whose agents obey, refuse or keep silent, and canned
//! answers. HTTP/1.1 over TLS, one request per connection.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::report::{Nonce, Reason, Report, SlotReport, Status};
use twinkey_contract::sealing::{Binding, SealingKey};
use twinkey_contract::{CONTRACT_VERSION, Fingerprint, Identity, KeySlot, RotationId};
use twinkey_sas::Key;
use twinkey_sas::identifiable::{Purpose, stamp};

/// A policy's key, which must never appear anywhere.
pub(crate) const LOGIN_KEY: &str = "bG9naW4ta2V5LWxvZ2luLWtleS1sb2dpbi1rZXktISE=";

pub(crate) struct ScriptedHub {
    pub(crate) state: Arc<Mutex<State>>,
    dir: tempfile::TempDir,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) devices: BTreeMap<String, Device>,
    /// `METHOD /path` of every request, in order.
    pub(crate) calls: Vec<String>,
    /// The bodies of those that had one.
    pub(crate) bodies: Vec<(String, Value)>,
    /// `If-Match` of every request that had one.
    pub(crate) if_matches: Vec<(String, String)>,
    /// Answers that come before anything else happens, by method and beginning of the path.
    pub(crate) canned: VecDeque<(&'static str, Canned)>,
    /// As for a policy without the right to.
    pub(crate) refuses_queries: bool,
    /// How far the hub's clock, which every answer's `Date` tells, is ahead of this machine's.
    pub(crate) clock_ahead_secs: i64,
    changes: u32,
}

pub(crate) enum Canned {
    /// Status, more headers, body. The request has no effect.
    Instead(u16, &'static str, &'static str),
    /// The request has its effect, but this is the answer's status.
    Status(u16),
    /// The request has its effect, but the answer breaks off.
    CutAfterwards,
    /// Somebody else does this to the device just before.
    Meanwhile(fn(&mut State)),
}

pub(crate) struct Device {
    pub(crate) keys: BTreeMap<KeySlot, Key>,
    pub(crate) etag: u32,
    pub(crate) twin_etag: u32,
    pub(crate) is_connected: bool,
    pub(crate) tags: Value,
    pub(crate) desired: Value,
    pub(crate) agent: Option<Agent>,
}

pub(crate) struct Agent {
    pub(crate) manner: Manner,
    pub(crate) active: KeySlot,
    pub(crate) held: BTreeMap<KeySlot, Key>,
    pub(crate) sealing: Option<SealingKey>,
    pub(crate) rotation: Option<RotationId>,
    pub(crate) status: Status,
    pub(crate) reason: Option<Reason>,
    pub(crate) sequence: u64,
    /// Whether it answers challenges.
    pub(crate) answers: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    Obeys,
    Refuses,
    KeepsSilent,
    /// Says that it has moved, and has not.
    Lies,
}

/// By this machine's clock.
#[allow(clippy::disallowed_methods, reason = "a hub tells the time")]
pub(crate) fn unix_now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// 32 bytes without a mark.
pub(crate) fn key(seed: u8) -> Key {
    Key::from_bytes(&[seed; 32]).unwrap()
}

pub(crate) fn base64(key: &Key) -> String {
    key.expose_base64(&mut [0; 88]).to_owned()
}

impl Device {
    /// Keys 1 and 2; the agent obeys, holds both and lives on the primary one.
    pub(crate) fn with_agent() -> Self {
        let keys: BTreeMap<_, _> = [(KeySlot::Primary, key(1)), (KeySlot::Secondary, key(2))].into();
        let agent = Agent {
            manner: Manner::Obeys,
            active: KeySlot::Primary,
            held: keys.clone(),
            sealing: Some(SealingKey::generate().unwrap()),
            rotation: None,
            status: Status::Idle,
            reason: None,
            sequence: 1,
            answers: true,
        };
        Self {
            keys,
            etag: 1,
            twin_etag: 1,
            is_connected: true,
            tags: json!({}),
            desired: json!({}),
            agent: Some(agent),
        }
    }

    pub(crate) fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().unwrap()
    }

    pub(crate) fn offer(&self) -> Option<Offer> {
        Offer::read_desired(&self.desired).unwrap()
    }
}

impl Agent {
    fn report(&self, identity: &Identity) -> Value {
        self.make_report(identity).to_patch()
    }

    /// The answer to the direct method `keyRenewal`.
    fn answer(&self, identity: &Identity, payload: &Value) -> Value {
        let report = self.make_report(identity);
        let nonce = Nonce::parse(payload["nonce"].as_str().unwrap()).unwrap();
        let mut answer = report.to_patch()["keyRenewal"].take();
        answer["nonce"] = nonce.as_str().into();
        answer["freshProof"] = json!(report.answer(&nonce, &self.held[&self.active], identity));
        answer
    }

    fn make_report(&self, identity: &Identity) -> Report {
        let slot = |slot| {
            self.held
                .get(&slot)
                .map(|key| SlotReport { fingerprint: Fingerprint::of(key), proven_at: Some(0) })
        };
        let mut report = Report {
            contract: CONTRACT_VERSION,
            agent: "scripted".to_owned(),
            seal_to: self.sealing.as_ref().map(SealingKey::public),
            sequence: self.sequence,
            active: Some(self.active),
            rotation: self.rotation,
            status: self.status,
            reason: self.reason,
            clock_offset_secs: None,
            behind: None,
            primary: slot(KeySlot::Primary),
            secondary: slot(KeySlot::Secondary),
            proof: None,
        };
        if let Some(key) = self.held.get(&self.active) {
            report.prove(key, identity);
        }
        report
    }

    fn take(&mut self, offer: &Offer, identity: &Identity) {
        match self.manner {
            Manner::KeepsSilent => return,
            Manner::Lies => {
                self.active = if offer.primary.is_some() { KeySlot::Primary } else { KeySlot::Secondary };
                (self.status, self.reason) = (Status::Committed, None);
            }
            Manner::Refuses => (self.status, self.reason) = (Status::Rejected, Some(Reason::Refused)),
            Manner::Obeys => {
                let lives_on = Fingerprint::of(&self.held[&self.active]);
                for slot in KeySlot::ALL {
                    let offered = match offer.slot(slot) {
                        None => continue,
                        Some(OfferedKey::Plain(key)) => key.clone(),
                        Some(OfferedKey::Sealed(sealed)) => {
                            let binding = Binding { identity, slot, rotation: offer.rotation };
                            self.sealing.as_ref().unwrap().unseal(&binding, sealed).unwrap()
                        }
                    };
                    self.held.insert(slot, offered);
                }
                let offered = KeySlot::ALL.into_iter().filter(|slot| offer.slot(*slot).is_some());
                let stays = offered.clone().find(|slot| Fingerprint::of(&self.held[slot]) == lives_on);
                self.active = stays.or(offered.clone().next()).unwrap();
                (self.status, self.reason) = (Status::Committed, None);
            }
        }
        self.rotation = Some(offer.rotation);
    }
}

impl ScriptedHub {
    pub(crate) fn start(devices: impl IntoIterator<Item = (&'static str, Device)>) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = format!("localhost:{}", listener.local_addr().unwrap().port());
        let dir = tempfile::tempdir().unwrap();
        let login = format!("HostName={host};SharedAccessKeyName=iothubowner;SharedAccessKey={LOGIN_KEY}\n");
        std::fs::write(dir.path().join("login"), login).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.path().join("login"), private).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certified.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private =
            rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], private)
            .unwrap();
        let devices = devices.into_iter().map(|(id, device)| (id.to_owned(), device)).collect();
        let state = Arc::new(Mutex::new(State { devices, ..State::default() }));
        let (tls, shared) = (Arc::new(tls), state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (tls, shared) = (tls.clone(), shared.clone());
                std::thread::spawn(move || serve(stream.unwrap(), tls, &shared));
            }
        });
        Self { state, dir }
    }

    /// Runs the program against this hub.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let path = |name: &str| -> PathBuf { self.dir.path().join(name) };
        Command::new(env!("CARGO_BIN_EXE_twinkey"))
            .args(args)
            .arg("--login")
            .arg(path("login"))
            .arg("--ca-file")
            .arg(path("ca.pem"))
            .env_remove("IOTHUB_CONNECTION_STRING")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub(crate) fn device<T>(&self, id: &str, change: impl FnOnce(&mut Device) -> T) -> T {
        self.change(|state| change(state.devices.get_mut(id).unwrap()))
    }

    pub(crate) fn answer_first(&self, what: &'static str, canned: Canned) {
        self.change(|state| state.canned.push_back((what, canned)));
    }

    /// How many requests began with `what`.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.change(|state| state.calls.iter().filter(|call| call.starts_with(what)).count())
    }
}

fn serve(mut tcp: TcpStream, tls: Arc<rustls::ServerConfig>, shared: &Mutex<State>) -> Option<()> {
    let mut session = rustls::ServerConnection::new(tls).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    let mut reader = BufReader::new(&mut stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut len, mut if_match) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = value.parse().unwrap(),
            "if-match" => if_match = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = target.split('?').next()?;
    let (response, ahead_secs) = {
        let mut state = shared.lock().unwrap();
        (state.answer(&format!("{method} {path}"), &body, if_match), state.clock_ahead_secs)
    };
    let date = UNIX_EPOCH + Duration::from_secs(unix_now_secs().checked_add_signed(ahead_secs).unwrap());
    let dated = format!("\r\ndate: {}\r\n", httpdate::fmt_http_date(date));
    let response = response.replacen("\r\n", &dated, 1);
    stream.write_all(response.as_bytes()).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

impl State {
    fn answer(&mut self, call: &str, body: &Value, if_match: Option<String>) -> String {
        self.calls.push(call.to_owned());
        if !body.is_null() {
            self.bodies.push((call.to_owned(), body.clone()));
        }
        self.if_matches.extend(if_match.clone().map(|etag| (call.to_owned(), etag)));
        let is_next = self.canned.front().is_some_and(|(what, _)| call.starts_with(what));
        let canned = if is_next { self.canned.pop_front().map(|(_, canned)| canned) } else { None };
        match canned {
            Some(Canned::Instead(status, headers, text)) => return respond(status, headers, text),
            Some(Canned::Meanwhile(change)) => change(self),
            Some(Canned::Status(status)) => {
                let (_, answer) = self.act(call, body, if_match);
                return respond(status, "", &answer.to_string());
            }
            Some(Canned::CutAfterwards) => {
                self.act(call, body, if_match);
                return "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{".to_owned();
            }
            None => {}
        }
        let (status, answer) = self.act(call, body, if_match);
        respond(status, "", &answer.to_string())
    }

    fn act(&mut self, call: &str, body: &Value, if_match: Option<String>) -> (u16, Value) {
        self.changes += 1;
        let changes = self.changes;
        match call {
            "POST /devices/keys/regenerate" => return self.regenerate(body),
            "POST /devices/query" if self.refuses_queries => {
                return (403, json!({"Message": "ErrorCode:IotHubForbidden;no"}));
            }
            "POST /devices/query" => return self.query(body),
            _ => {}
        }
        if let Some(id) = call.strip_prefix("POST /twins/").and_then(|call| call.strip_suffix("/methods")) {
            let agent = self.devices[id].agent.as_ref().filter(|agent| agent.answers);
            let identity = Identity::new(id, None).unwrap();
            return match agent {
                Some(agent) => {
                    (200, json!({"status": 200, "payload": agent.answer(&identity, &body["payload"])}))
                }
                None => (
                    404,
                    json!({"Message": "ErrorCode:DeviceNotOnline;nobody answers", "ExceptionMessage": ""}),
                ),
            };
        }
        let (verb, id) = call.rsplit_once('/').unwrap();
        let Some(device) = self.devices.get_mut(id) else {
            return (
                404,
                json!({"Message": format!("ErrorCode:DeviceNotFound;{id}"), "ExceptionMessage": ""}),
            );
        };
        let is_stale = |etag: u32| {
            if_match.as_ref().is_some_and(|given| given != "\"*\"" && *given != format!("\"{etag}\""))
        };
        let stale = (412, json!({"Message": "ErrorCode:PreconditionFailed;stale", "ExceptionMessage": ""}));
        match verb {
            "GET /devices" => (200, device.identity(id)),
            "PUT /devices" if is_stale(device.etag) => stale,
            "PUT /devices" => {
                let slot = |name: &str| {
                    Key::from_base64(body["authentication"]["symmetricKey"][name].as_str().unwrap()).unwrap()
                };
                device.keys =
                    [(KeySlot::Primary, slot("primaryKey")), (KeySlot::Secondary, slot("secondaryKey"))]
                        .into();
                device.etag = changes + 1;
                (200, device.identity(id))
            }
            "GET /twins" => (200, device.twin(id)),
            "PATCH /twins" if is_stale(device.twin_etag) => stale,
            "PATCH /twins" => {
                device.twin_etag = changes + 1;
                merge(&mut device.tags, &body["tags"]);
                let Some(desired) = body.pointer("/properties/desired") else {
                    return (200, device.twin(id));
                };
                device.desired = json!({"keyRenewal": desired["keyRenewal"]});
                let offer = device.offer();
                let is_connected = device.is_connected;
                if let (Some(agent), Some(offer), true) = (&mut device.agent, offer, is_connected) {
                    agent.take(&offer, &Identity::new(id, None).unwrap());
                }
                (200, device.twin(id))
            }
            _ => panic!("{call} is not scripted"),
        }
    }
}

impl State {
    /// Makes keys for those that there are, as a hub does: 200, 207 or 400, and the keys in any case.
    fn regenerate(&mut self, body: &Value) -> (u16, Value) {
        let slot = match body["policyKey"].as_str().unwrap() {
            "primaryKey" => KeySlot::Primary,
            _ => KeySlot::Secondary,
        };
        let (mut rotated, mut errors) = (Vec::new(), Vec::new());
        for target in body["devices"].as_array().unwrap() {
            self.changes += 1;
            let id = target["id"].as_str().unwrap();
            match self.devices.get_mut(id) {
                Some(device) => {
                    let seed = u8::try_from(100 + self.changes % 100).unwrap();
                    device.keys.insert(slot, stamp(&[seed; 32], Purpose::Device));
                    device.etag = self.changes + 1;
                    rotated.push(json!({"id": id, "primaryKey": base64(&device.keys[&KeySlot::Primary]),
                        "secondaryKey": base64(&device.keys[&KeySlot::Secondary])}));
                }
                None => errors.push(json!({"id": id, "errorCode": "DeviceNotFound"})),
            }
        }
        let status = match (rotated.is_empty(), errors.is_empty()) {
            (_, true) => 200,
            (false, false) => 207,
            (true, false) => 400,
        };
        (status, json!({"policyKey": body["policyKey"], "rotatedKeys": rotated, "errors": errors}))
    }

    /// All twins that the query names.
    fn query(&self, body: &Value) -> (u16, Value) {
        let text = body["query"].as_str().unwrap();
        let named = self.devices.iter().filter(|(id, _)| text.contains(&format!("'{id}'")));
        (200, named.map(|(id, device)| device.twin(id)).collect())
    }
}

/// JSON merge patch (RFC 7396), which twins know.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(name)),
            Value::Object(_) => {
                let inner = into.as_object_mut().unwrap().entry(name.clone()).or_insert_with(|| json!({}));
                merge(inner, value);
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                into[name] = value.clone();
            }
        }
    }
}

impl Device {
    fn identity(&self, id: &str) -> Value {
        json!({"deviceId": id, "etag": self.etag.to_string(), "status": "enabled", "capabilities": {"iotEdge": false},
            "connectionState": if self.is_connected { "Connected" } else { "Disconnected" },
            "authentication": {"type": "sas", "symmetricKey": {"primaryKey": base64(&self.keys[&KeySlot::Primary]),
                "secondaryKey": base64(&self.keys[&KeySlot::Secondary])}}})
    }

    fn twin(&self, id: &str) -> Value {
        let identity = Identity::new(id, None).unwrap();
        let reported = self.agent.as_ref().map_or(json!({}), |agent| agent.report(&identity));
        json!({"deviceId": id, "etag": self.twin_etag.to_string(), "deviceEtag": self.etag.to_string(), "tags": self.tags,
            "connectionState": if self.is_connected { "Connected" } else { "Disconnected" }, "properties": {"desired": self.desired, "reported": reported}})
    }
}

fn respond(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}
