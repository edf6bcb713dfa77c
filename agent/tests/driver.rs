//! The driver with a scripted hub over in-memory streams, on a paused clock: the order of events at a takeover.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twinkey_agent::clock::Clock;
use twinkey_agent::config::Config;
use twinkey_agent::driver::{Driver, Parts, Signal};
use twinkey_agent::hub::dial::{Dial, DialError, Dialling, Stage, Stream};
use twinkey_agent::hub::outbox::Message;
use twinkey_agent::hub::wire::Wire;
use twinkey_agent::keyring::{KeyRing, Registration};
use twinkey_agent::local::Request;
use twinkey_agent::store;
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::KeySlot;
use twinkey_sas::Key;

/// What the hub does with a CONNECT.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    /// Closes the older connection, lets that be seen, and says yes.
    AcceptAfterKick,
    /// Closes the older connection and says no.
    RefuseAfterKick,
    /// Says no and leaves the older connection alone.
    Refuse,
    /// Says nothing.
    Mute,
}

/// A hub with one device.
#[derive(Clone)]
struct Hub {
    answer: Arc<Mutex<Answer>>,
    /// Counts connections that were accepted; a connection ends when a newer one has begun.
    epoch: Arc<watch::Sender<u64>>,
    attempts: Arc<Mutex<Vec<Instant>>>,
    received: Arc<Mutex<Vec<(Bytes, bool)>>>,
    is_reachable: Arc<Mutex<bool>>,
}

impl Hub {
    fn new() -> Self {
        Self {
            answer: Arc::new(Mutex::new(Answer::AcceptAfterKick)),
            epoch: Arc::new(watch::Sender::new(0)),
            attempts: Arc::default(),
            received: Arc::default(),
            is_reachable: Arc::new(Mutex::new(true)),
        }
    }

    fn connections(&self) -> u64 {
        *self.epoch.borrow()
    }

    fn cut(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    async fn serve(self, stream: DuplexStream) {
        let mut wire = Wire::new(stream);
        let Ok(Packet::Connect(_)) = wire.next().await else { return };
        self.attempts.lock().unwrap().push(Instant::now());
        let answer = *self.answer.lock().unwrap();
        if answer == Answer::Mute {
            let _ = wire.next().await;
            return;
        }
        if answer != Answer::Refuse {
            self.cut();
            // Long enough for the agent to see the old connection's end before the answer.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if answer != Answer::AcceptAfterKick {
            say(&mut wire, Packet::ConnAck(ConnAck::new(ConnectReturnCode::NotAuthorized, false))).await;
            return;
        }
        let mut epoch = self.epoch.subscribe();
        let mine = *epoch.borrow_and_update();
        say(&mut wire, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, mine > 1))).await;
        loop {
            let packet = tokio::select! {
                _ = epoch.wait_for(|now| *now != mine) => return,
                packet = wire.next() => packet,
            };
            match packet {
                Ok(Packet::Subscribe(subscribe)) => {
                    let codes = vec![SubscribeReasonCode::Success(QoS::AtMostOnce); subscribe.filters.len()];
                    say(&mut wire, Packet::SubAck(SubAck::new(subscribe.pkid, codes))).await;
                }
                Ok(Packet::Publish(publish)) => self.publish(&mut wire, publish).await,
                Ok(Packet::PingReq) => say(&mut wire, Packet::PingResp).await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    async fn publish(&self, wire: &mut Wire<DuplexStream>, publish: Publish) {
        let answer = |status: u16, body: &str| {
            let request = publish.topic.split_once("$rid=").map_or("", |(_, request)| request);
            let topic = format!("$iothub/twin/res/{status}/?$rid={request}");
            Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body))
        };
        if publish.topic.starts_with("$iothub/twin/GET/") {
            say(wire, answer(200, "{\"desired\":{},\"reported\":{}}")).await;
        } else if publish.topic.starts_with("$iothub/twin/PATCH/") {
            say(wire, answer(204, "")).await;
        } else if publish.qos == QoS::AtLeastOnce {
            self.received.lock().unwrap().push((publish.payload, publish.dup));
            say(wire, Packet::PubAck(PubAck::new(publish.pkid))).await;
        }
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
            tokio::spawn(hub.serve(theirs));
            let stream: Box<dyn Stream> = Box::new(ours);
            Ok(stream)
        })
    }
}

struct Agent {
    requests: mpsc::Sender<Request>,
    signals: mpsc::Sender<Signal>,
    driver: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Agent {
    fn start(hub: &Hub, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store::open(&directory.path().join("state")).unwrap();
        let registration = Registration {
            host_name: "hub.example".into(),
            identity: Identity { device_id: "d".into(), module_id: None },
            gateway_host_name: None,
        };
        let key = Key::from_bytes(&[1; 32]).unwrap();
        let key_ring =
            KeyRing::provision(registration, SealingKey::generate().unwrap(), KeySlot::Primary, key);
        store.save(&key_ring, &key_ring.ring).unwrap();
        let (requests, requests_receiver) = mpsc::channel(twinkey_agent::local::REQUESTS_MAX);
        let (signals, signals_receiver) = mpsc::channel(1);
        let driver = Driver::new(Parts {
            config: Config::parse(config).unwrap(),
            key_ring,
            store,
            dialler: Box::new(hub.clone()),
            clock: Clock::with_wall(|| 1_700_000_000),
            chance: Box::new(|| 0),
            requests: requests_receiver,
            signals: signals_receiver,
        });
        Self { requests, signals, driver: tokio::spawn(driver.run()), _directory: directory }
    }

    async fn status(&self) -> Value {
        let (sender, receiver) = oneshot::channel();
        self.requests.send(Request::Status(sender)).await.unwrap();
        receiver.await.unwrap()
    }

    /// Waits, in virtual time, until the status says so.
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
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

    async fn publish(&self, number: u32) -> oneshot::Receiver<()> {
        let (acknowledged, acknowledgement) = oneshot::channel();
        let message = Message { topic: "t".into(), payload: number.to_string().into(), acknowledged };
        let (taken, is_taken) = oneshot::channel();
        self.requests.send(Request::Publish { message, taken }).await.unwrap();
        is_taken.await.unwrap().unwrap();
        acknowledgement
    }

    async fn stop(self) {
        self.signals.send(Signal::Stop).await.unwrap();
        self.driver.await.unwrap();
    }
}

fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

fn is_connected(status: &Value) -> bool {
    status["connection"]["connected"] == json!(true)
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_old_connection_during_a_takeover_is_no_loss() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    // Ten renewals at 80 s each.
    let status = agent.until("ten takeovers", |status| counter(status, "takeovers") == 10).await;
    assert_eq!(counter(&status, "lost"), 0);
    assert_eq!(counter(&status, "attempts"), 11);
    // And so the loss that follows is answered at once, not after a backoff that grew with every renewal.
    let (before, began) = (hub.connections(), Instant::now());
    hub.cut();
    agent.until("the way back", |status| counter(status, "lost") == 1 && is_connected(status)).await;
    assert!(hub.connections() > before + 1);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_costs_the_old_connection_and_is_refused_is_a_loss_and_is_mended() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::RefuseAfterKick;
    let status = agent.until("the loss", |status| counter(status, "lost") == 1).await;
    assert!(!is_connected(&status));
    *hub.answer.lock().unwrap() = Answer::AcceptAfterKick;
    agent.until("the way back", is_connected).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_takeover_leaves_the_old_connection_at_work() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::Refuse;
    let status = agent.until("three refusals", |status| counter(status, "refused") == 3).await;
    assert!(is_connected(&status));
    assert_eq!(counter(&status, "lost"), 0);
    agent.publish(1).await.await.unwrap();
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_message_arrives_through_takeovers_and_cuts() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 10\n");
    let mut acknowledgements = Vec::new();
    for number in 0..600 {
        acknowledgements.push(agent.publish(number).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        if number % 100 == 99 {
            hub.cut();
        }
    }
    for acknowledgement in acknowledgements {
        tokio::time::timeout(Duration::from_secs(600), acknowledgement).await.unwrap().unwrap();
    }
    let received = hub.received.lock().unwrap().clone();
    for number in 0..600_u32 {
        let text = number.to_string();
        assert!(received.iter().any(|(payload, _)| payload == text.as_bytes()), "{number} is lost");
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_day_of_refusals_stays_below_the_documented_number_of_attempts() {
    let hub = Hub::new();
    *hub.answer.lock().unwrap() = Answer::Refuse;
    let agent = Agent::start(&hub, "");
    tokio::time::sleep(Duration::from_secs(24 * 3_600)).await;
    let attempts = hub.attempts.lock().unwrap().clone();
    let per_hour = twinkey_rotation::Policy::DEFAULT.attempts_per_hour_max(1);
    let last_hour = attempts.iter().filter(|at| at.elapsed() < Duration::from_secs(3_600)).count() as u64;
    assert!((1..=per_hour).contains(&last_hour), "{last_hour} attempts, {per_hour} allowed");
    *hub.answer.lock().unwrap() = Answer::AcceptAfterKick;
    agent.until("the way back", is_connected).await;
    agent.stop().await;
}

/// On the real clock: virtual time stands still while anybody is busy.
#[tokio::test]
async fn programs_that_never_stop_asking_do_not_keep_the_agent_from_its_timers() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "");
    agent.until("a connection", is_connected).await;
    let programs: Vec<_> = (0..1_000)
        .map(|_| {
            let requests = agent.requests.clone();
            tokio::spawn(async move {
                loop {
                    let (sender, receiver) = oneshot::channel();
                    if requests.send(Request::Status(sender)).await.is_err() || receiver.await.is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let before = hub.connections();
    hub.cut();
    let is_back = async {
        while hub.connections() < before + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_back).await.expect("the way back");
    for program in programs {
        program.abort();
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_hub_is_tried_for_ever_and_found_again() {
    let hub = Hub::new();
    *hub.is_reachable.lock().unwrap() = false;
    let agent = Agent::start(&hub, "");
    tokio::time::sleep(Duration::from_secs(10 * 24 * 3_600)).await;
    assert!(!is_connected(&agent.status().await));
    *hub.is_reachable.lock().unwrap() = true;
    let began = Instant::now();
    agent.until("the way back", is_connected).await;
    assert!(began.elapsed() <= Duration::from_secs(5 * 60 + 1), "{:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_is_silent_to_a_takeover_does_not_keep_a_device_dark_that_lost_its_connection() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::Mute;
    let attempts = hub.attempts.lock().unwrap().len();
    agent.until("a takeover", |_| hub.attempts.lock().unwrap().len() > attempts).await;
    *hub.answer.lock().unwrap() = Answer::AcceptAfterKick;
    hub.cut();
    let began = Instant::now();
    agent.until("the way back", |status| counter(status, "lost") == 1 && is_connected(status)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn cuts_far_apart_are_each_answered_at_once_however_short_the_tokens_live() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 10\n");
    for lost in 1..=12 {
        tokio::time::sleep(Duration::from_secs(40)).await;
        agent.until("a connection", is_connected).await;
        hub.cut();
        let began = Instant::now();
        agent.until("the loss", |status| counter(status, "lost") == lost).await;
        agent.until("the way back", is_connected).await;
        assert!(began.elapsed() < Duration::from_secs(2), "cut {lost}: {:?}", began.elapsed());
    }
    agent.stop().await;
}
