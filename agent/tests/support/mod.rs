//! A scripted hub over in-memory streams, and the real driver, for tests on a paused clock.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each test file uses its part; a test that panics has failed, as it should"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twinkey_agent::budget::Room;
use twinkey_agent::clock::{Clock, MADE_UNIX_SECS};
use twinkey_agent::config::Config;
use twinkey_agent::driver::{Driver, Parts, Signal};
use twinkey_agent::hub::dial::{Asking, Dial, DialError, Dialling, Stage, Stream};
use twinkey_agent::hub::outbox::Message;
use twinkey_agent::hub::time::AskError;
use twinkey_agent::hub::wire::{Received, Wire};
use twinkey_agent::keyring::{KeyRing, Registration};
use twinkey_agent::local::{Replacement, Request};
use twinkey_agent::store;
use twinkey_agent::supervisor::{Notice, Supervisor};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::sealing::{Binding, SealingKey};
use twinkey_contract::{self as contract, Identity, RotationId};
use twinkey_rotation::KeySlot;
use twinkey_sas::{Key, Verifier};

/// When these tests take place, in Unix seconds.
pub const TODAY: u64 = 1_800_000_000;
/// The private key that offers are sealed to.
const SEALING_KEY: [u8; 32] = [7; 32];
/// How much later than its expiry a token still counts, in seconds (`MaxClockSkew` of IoT Edge's hub).
const CLOCK_SKEW_SECS: u64 = 300;

/// What the hub does with a CONNECT.
#[derive(Clone, Copy, PartialEq)]
pub enum Answer {
    /// Accepts what is signed with this key and has not expired, by the hub's time; refuses anything else.
    Judge(u8),
    /// Closes the older connection, lets that be seen, and says yes.
    AcceptAfterKick,
    /// Closes the older connection and says no.
    RefuseAfterKick,
    /// Says no, and then closes the older connection.
    RefuseThenKick,
    /// Says no and leaves the older connection alone.
    Refuse,
    /// Says nothing.
    Mute,
}

/// What the hub does with a GET of the twin.
#[derive(Clone, Copy, PartialEq)]
pub enum TwinAnswer {
    Whole,
    /// Begins to answer and closes the connection.
    CutOff,
    /// Says something that is no MQTT.
    Garbage,
}

/// A hub with one device.
#[derive(Clone)]
pub struct Hub {
    pub answer: Arc<Mutex<Answer>>,
    /// Counts connections that were accepted; a connection ends when a newer one has begun.
    pub epoch: Arc<watch::Sender<u64>>,
    pub attempts: Arc<Mutex<Vec<Instant>>>,
    pub received: Arc<Mutex<Vec<(Bytes, bool)>>>,
    pub is_reachable: Arc<Mutex<bool>>,
    pub questions: Arc<Mutex<Vec<Instant>>>,
    /// The hub's time when the test began, and whether it says so when it is asked.
    pub unix_secs: u64,
    pub tells_time: Arc<Mutex<bool>>,
    pub began: Instant,
    /// The twin.
    pub twin: Arc<Mutex<Value>>,
    pub twin_answer: Arc<Mutex<TwinAnswer>>,
    /// How often it was asked for.
    pub twin_gets: Arc<AtomicU64>,
    /// Counts changes of desired properties.
    desired: Arc<watch::Sender<u64>>,
    /// How fast the way to the hub is, in bytes a second; 0 is as fast as it gets.
    pub link_rate: Arc<AtomicU64>,
    /// Whether acknowledgements wait until the connection has been taken over, and come on it then.
    pub acknowledges_late: Arc<Mutex<bool>>,
    /// Whether what the agent reports changes the twin.
    pub takes_reports: Arc<Mutex<bool>>,
    /// Calls of direct methods that are under way, and who waits for the status and the body of the
    /// answer.
    pub methods: Arc<Mutex<Methods>>,
    is_method_called: Arc<Notify>,
}

/// Calls of direct methods.
#[derive(Default)]
pub struct Methods {
    /// Topics and payloads that are still to be sent to the agent.
    due: Vec<(String, String)>,
    called: u64,
    waiting: Vec<(String, oneshot::Sender<(u16, Value)>)>,
}

impl Hub {
    pub fn new() -> Self {
        Self {
            answer: Arc::new(Mutex::new(Answer::AcceptAfterKick)),
            epoch: Arc::new(watch::Sender::new(0)),
            attempts: Arc::default(),
            received: Arc::default(),
            is_reachable: Arc::new(Mutex::new(true)),
            questions: Arc::default(),
            unix_secs: TODAY,
            tells_time: Arc::new(Mutex::new(true)),
            began: Instant::now(),
            twin: Arc::new(Mutex::new(json!({"desired": {}, "reported": {}}))),
            twin_answer: Arc::new(Mutex::new(TwinAnswer::Whole)),
            twin_gets: Arc::default(),
            desired: Arc::new(watch::Sender::new(0)),
            link_rate: Arc::default(),
            acknowledges_late: Arc::default(),
            takes_reports: Arc::new(Mutex::new(true)),
            methods: Arc::default(),
            is_method_called: Arc::default(),
        }
    }

    /// Calls a direct method of the agent; the status and the body of its answer.
    pub async fn call(&self, method: &str, payload: &str) -> (u16, Value) {
        let (sender, answer) = oneshot::channel();
        {
            let mut methods = self.methods.lock().unwrap();
            let request = methods.called.to_string();
            methods.called += 1;
            methods.due.push((format!("$iothub/methods/POST/{method}/?$rid={request}"), payload.to_owned()));
            methods.waiting.push((request, sender));
        }
        self.is_method_called.notify_one();
        tokio::time::timeout(Duration::from_secs(60), answer).await.unwrap().unwrap()
    }

    pub fn connections(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Replaces the desired properties, and tells the device.
    pub fn desire(&self, desired: Value) {
        self.twin.lock().unwrap()["desired"] = desired;
        self.desired.send_modify(|version| *version += 1);
    }

    /// The hub's time.
    pub fn unix_secs(&self) -> u64 {
        self.unix_secs + self.began.elapsed().as_secs()
    }

    fn accepts(&self, key: u8, hello: &Connect) -> bool {
        let key = key_of(key);
        let password = &hello.login.as_ref().unwrap().password;
        let now = self.unix_secs().saturating_sub(CLOCK_SKEW_SECS);
        Verifier::new(&key, None).verify(password, "hub.example/devices/d", now).is_ok()
    }

    /// Closes the connection that stands.
    pub fn cut(&self) -> u64 {
        self.epoch.send_modify(|epoch| *epoch += 1);
        *self.epoch.borrow()
    }

    async fn serve(self, stream: DuplexStream) {
        let mut wire = Wire::new(stream);
        let Ok(Received::Packet(Packet::Connect(hello))) = wire.next().await else { return };
        self.attempts.lock().unwrap().push(Instant::now());
        let mut answer = *self.answer.lock().unwrap();
        if let Answer::Judge(key) = answer {
            answer = if self.accepts(key, &hello) { Answer::AcceptAfterKick } else { Answer::Refuse };
        }
        if answer == Answer::Mute {
            let _ = wire.next().await;
            return;
        }
        let mut mine = 0;
        if !matches!(answer, Answer::Refuse | Answer::RefuseThenKick) {
            mine = self.cut();
            // Long enough for the agent to see the old connection's end before the answer.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if answer != Answer::AcceptAfterKick {
            say(&mut wire, Packet::ConnAck(ConnAck::new(ConnectReturnCode::NotAuthorized, false))).await;
            if answer == Answer::RefuseThenKick {
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.cut();
            }
            return;
        }
        let mut epoch = self.epoch.subscribe();
        say(&mut wire, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, mine > 1))).await;
        let mut owed = Vec::new();
        let mut desired = self.desired.subscribe();
        loop {
            let due = std::mem::take(&mut self.methods.lock().unwrap().due);
            for (topic, payload) in due {
                say(&mut wire, Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))).await;
            }
            let packet = tokio::select! {
                _ = epoch.wait_for(|now| *now != mine) => break,
                Ok(()) = desired.changed() => None,
                packet = wire.next() => Some(packet),
                () = self.is_method_called.notified() => continue,
            };
            let Some(packet) = packet else {
                let topic = "$iothub/twin/PATCH/properties/desired/?$version=2";
                say(&mut wire, Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "{}"))).await;
                continue;
            };
            match packet {
                Ok(Received::Packet(Packet::Subscribe(subscribe))) => {
                    let codes = vec![SubscribeReasonCode::Success(QoS::AtMostOnce); subscribe.filters.len()];
                    say(&mut wire, Packet::SubAck(SubAck::new(subscribe.pkid, codes))).await;
                }
                Ok(Received::Packet(Packet::Publish(publish))) => {
                    if publish.topic.starts_with("$iothub/twin/GET/") {
                        self.twin_gets.fetch_add(1, Ordering::SeqCst);
                        let answer = *self.twin_answer.lock().unwrap();
                        match answer {
                            TwinAnswer::Whole => {}
                            TwinAnswer::CutOff => {
                                // What finds room in the stream.
                                let _ = self.publish(&mut wire, publish).now_or_never();
                                return;
                            }
                            TwinAnswer::Garbage => {
                                say(&mut wire, Packet::SubAck(SubAck::new(1, Vec::new()))).await;
                                continue;
                            }
                        }
                    }
                    let answer = self.publish(&mut wire, publish).await;
                    owed.extend(answer.filter(|_| *self.acknowledges_late.lock().unwrap()));
                }
                Ok(Received::Packet(Packet::PingReq)) => say(&mut wire, Packet::PingResp).await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        if !owed.is_empty() {
            // The newer connection has its answer by then.
            tokio::time::sleep(Duration::from_millis(100)).await;
            for packet_id in owed {
                say(&mut wire, Packet::PubAck(PubAck::new(packet_id))).await;
            }
        }
    }

    /// Says which packet could be acknowledged, and does it unless that is to come late.
    async fn publish(&self, wire: &mut Wire<DuplexStream>, publish: Publish) -> Option<u16> {
        let answer = |status: u16, body: &str| {
            let request = publish.topic.split_once("$rid=").map_or("", |(_, request)| request);
            let topic = format!("$iothub/twin/res/{status}/?$rid={request}");
            Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body))
        };
        if publish.topic.starts_with("$iothub/twin/GET/") {
            let twin = self.twin.lock().unwrap().to_string();
            say(wire, answer(200, &twin)).await;
        } else if publish.topic.starts_with("$iothub/twin/PATCH/") {
            if *self.takes_reports.lock().unwrap() {
                let patch: Value = serde_json::from_slice(&publish.payload).unwrap();
                self.twin.lock().unwrap()["reported"] = patch;
            }
            say(wire, answer(204, "")).await;
        } else if let Some(answered) = publish.topic.strip_prefix("$iothub/methods/res/") {
            let (status, request) = answered.split_once("/?$rid=").unwrap();
            let mut methods = self.methods.lock().unwrap();
            let place = methods.waiting.iter().position(|(waiting, _)| waiting == request).unwrap();
            let (_, waiting) = methods.waiting.remove(place);
            let body = serde_json::from_slice(&publish.payload).unwrap();
            // The test may wait no more.
            let _ = waiting.send((status.parse().unwrap(), body));
        } else if publish.qos == QoS::AtLeastOnce {
            self.received.lock().unwrap().push((publish.payload, publish.dup));
            if !*self.acknowledges_late.lock().unwrap() {
                say(wire, Packet::PubAck(PubAck::new(publish.pkid))).await;
            }
            return Some(publish.pkid);
        }
        None
    }
}

async fn say(wire: &mut Wire<DuplexStream>, packet: Packet) {
    // The agent may have hung up: the next read will tell.
    if wire.queue(&packet).is_ok() {
        let _ = wire.flush().await;
    }
}

impl Dial for Hub {
    fn dial(&self) -> Dialling {
        let hub = self.clone();
        Box::pin(async move {
            if !*hub.is_reachable.lock().unwrap() {
                return Err(DialError::Timeout { stage: Stage::Tcp, after: Duration::ZERO });
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            match hub.link_rate.load(Ordering::SeqCst) {
                0 => drop(tokio::spawn(hub.serve(theirs))),
                rate => {
                    let (slow, end) = tokio::io::duplex(64 * 1024);
                    tokio::spawn(carry(theirs, slow, rate));
                    tokio::spawn(hub.serve(end));
                }
            }
            let stream: Box<dyn Stream> = Box::new(ours);
            Ok(stream)
        })
    }

    fn ask_time(&self) -> Asking {
        self.questions.lock().unwrap().push(Instant::now());
        let answer =
            if *self.tells_time.lock().unwrap() { Ok(self.unix_secs()) } else { Err(AskError::NoDate) };
        Box::pin(async move { answer })
    }
}

/// Carries bytes from the agent at `rate` a second, and those to it at once, until one end hangs up.
async fn carry(agent: DuplexStream, hub: DuplexStream, rate: u64) {
    let ((mut from_agent, mut to_agent), (mut from_hub, mut to_hub)) =
        (tokio::io::split(agent), tokio::io::split(hub));
    let up = async {
        let mut chunk = [0; 64];
        while let Ok(count @ 1..) = from_agent.read(&mut chunk).await {
            tokio::time::sleep(Duration::from_millis(count as u64 * 1_000 / rate)).await;
            if to_hub.write_all(&chunk[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        _ = tokio::io::copy(&mut from_hub, &mut to_agent) => {}
    }
}

/// An agent at work, with key 1 in the primary slot.
pub struct Agent {
    pub requests: mpsc::Sender<Request>,
    signals: mpsc::Sender<Signal>,
    driver: JoinHandle<()>,
    pub notices: Arc<Mutex<Vec<(Instant, Notice)>>>,
    directory: tempfile::TempDir,
}

/// What differs from one agent to another.
pub struct Start {
    pub config: &'static str,
    /// What the machine's wall clock would have shown when the test began.
    pub wall: Arc<AtomicU64>,
    pub watchdog: Option<Duration>,
    /// The state directory of an earlier one.
    pub directory: Option<tempfile::TempDir>,
    /// The private key that offers are sealed to, where there is no earlier one.
    pub sealing_key: [u8; 32],
}

impl Default for Start {
    fn default() -> Self {
        Self {
            config: "",
            wall: Arc::new(AtomicU64::new(TODAY)),
            watchdog: None,
            directory: None,
            sealing_key: SEALING_KEY,
        }
    }
}

impl Agent {
    pub fn start(hub: &Hub, config: &'static str) -> Self {
        Self::start_with(hub, Start { config, ..Start::default() })
    }

    pub fn start_with(hub: &Hub, start: Start) -> Self {
        let Start { config, wall, watchdog, directory, sealing_key } = start;
        let directory = directory.unwrap_or_else(|| tempfile::tempdir().unwrap());
        let mut store = store::open(&directory.path().join("state")).unwrap();
        let key_ring = match store.load().unwrap() {
            Some(loaded) => loaded.key_ring,
            None => {
                let sealing_key = SealingKey::from_bytes(&sealing_key).unwrap();
                let key_ring = KeyRing::provision(registration(), sealing_key, KeySlot::Primary, key_of(1));
                store.save(&key_ring, &key_ring.ring).unwrap();
                key_ring
            }
        };
        let (requests, requests_receiver) = mpsc::channel(twinkey_agent::local::REQUESTS_MAX);
        let (signals, signals_receiver) = mpsc::channel(1);
        let notices = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notices);
        let tell = move |notice: &Notice| told.lock().unwrap().push((Instant::now(), notice.clone()));
        let began = hub.began;
        let wall = move || wall.load(Ordering::SeqCst) + began.elapsed().as_secs();
        let mut clock = Clock::with_wall(wall).with_floor(MADE_UNIX_SECS);
        if let Some(last_seen) = store.last_seen() {
            clock = clock.with_floor(last_seen);
        }
        let driver = Driver::new(Parts {
            config: Config::parse(config).unwrap(),
            key_ring,
            store,
            dialler: Box::new(hub.clone()),
            clock,
            chance: Box::new(|| 0),
            requests: requests_receiver,
            signals: signals_receiver,
            supervisor: Supervisor::new(tell, watchdog),
        });
        Self { requests, signals, driver: tokio::spawn(driver.run()), notices, directory }
    }

    pub async fn status(&self) -> Value {
        let (sender, receiver) = oneshot::channel();
        self.requests.send(Request::Status(sender)).await.unwrap();
        receiver.await.unwrap()
    }

    /// Waits, in virtual time, until the status says so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(24 * 3_600);
        loop {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: {status:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn publish(&self, number: u32) -> oneshot::Receiver<()> {
        self.publish_body(number.to_string().into()).await
    }

    pub async fn publish_body(&self, payload: Bytes) -> oneshot::Receiver<()> {
        let (acknowledged, acknowledgement) = oneshot::channel();
        let message = Message { topic: "t".into(), payload, acknowledged, room: Room::uncounted() };
        self.requests.send(Request::Publish(message)).await.unwrap();
        acknowledgement
    }

    /// Hands a key over as `provision --replace` does.
    pub async fn replace(&self, device_id: &str, key: u8) -> Result<String, String> {
        let (answer, receiver) = oneshot::channel();
        let mut registration = registration();
        registration.identity.device_id = device_id.into();
        let replacement =
            Replacement { registration, slot: KeySlot::Primary, key: Box::new(key_of(key)), answer };
        self.requests.send(Request::Replace(replacement)).await.unwrap();
        receiver.await.unwrap()
    }

    pub fn state_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    /// Stops it; its state directory is left.
    pub async fn stop(self) -> tempfile::TempDir {
        self.signals.send(Signal::Stop).await.unwrap();
        self.driver.await.unwrap();
        self.directory
    }
}

/// Whose key ring it is.
pub fn registration() -> Registration {
    Registration {
        host_name: "hub.example".into(),
        identity: Identity { device_id: "d".into(), module_id: None },
        gateway_host_name: None,
    }
}

/// The desired properties with an offer of key `key` for `slot`, sealed to the agent and
/// authenticated with key `vouching`.
pub fn offer(slot: contract::KeySlot, key: u8, vouching: u8) -> Value {
    offer_as("0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f".parse().unwrap(), slot, key, vouching)
}

/// The same under a rotation of its own.
pub fn offer_as(rotation: RotationId, slot: contract::KeySlot, key: u8, vouching: u8) -> Value {
    let identity = registration().identity;
    let binding = Binding { identity: &identity, slot, rotation };
    let sealed = SealingKey::from_bytes(&SEALING_KEY).unwrap().public().seal(&binding, &key_of(key)).unwrap();
    let sealed = Some(OfferedKey::Sealed(sealed));
    let (primary, secondary) = match slot {
        contract::KeySlot::Primary => (sealed, None),
        contract::KeySlot::Secondary => (None, sealed),
    };
    let mut offer = Offer { rotation, primary, secondary, auth: None };
    offer.authenticate(&key_of(vouching), &identity);
    offer.to_patch()
}

/// The key called `number`.
pub fn key_of(number: u8) -> Key {
    Key::from_bytes(&[number; 32]).unwrap()
}

pub fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

pub fn is_connected(status: &Value) -> bool {
    status["connection"]["connected"] == json!(true)
}
