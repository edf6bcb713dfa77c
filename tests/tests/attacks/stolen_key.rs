//! Somebody has one key of the device's: he connects as often as he likes and makes proofs, as long as the key lives.

use std::time::Duration;

use serde_json::{Value, json};
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::{PATIENCE, until, within};

use crate::attacker::hpke::KeyPair;
use crate::attacker::intruder::{Intent, Intruder};
use crate::attacker::mqtt::{Door, Shut};
use crate::attacker::token;
use crate::victim::{
    DEVICE, DONE, REFUSED, Renewal, connected, renew, renew_in_peace, reported, run_within, until_heard,
};

/// What four round trips (TCP, two of TLS, CONNECT) take a thief who is not on the hub's own machine.
const ROUND_TRIPS: Duration = Duration::from_millis(400);

/// Reports his own public key with a valid proof, and answers challenges; opens what is sealed to him.
struct KeyThief {
    host_name: String,
    key: String,
    pair: KeyPair,
    /// What he has opened, in base64.
    opened: Vec<String>,
    last: Value,
    /// Whether he fights for the connection and reads offers, and writes nothing.
    is_silent: bool,
}

impl KeyThief {
    fn new(hub: &TestHub, key: &str) -> Self {
        Self {
            host_name: hub.host_name().to_owned(),
            key: key.to_owned(),
            pair: KeyPair::generate(),
            opened: Vec::new(),
            last: Value::Null,
            is_silent: false,
        }
    }

    fn read(&mut self, offer: &Value) {
        for slot in ["primary", "secondary"] {
            let (Some(sealed), Some(rotation)) = (offer[slot]["sealed"].as_str(), offer["rotation"].as_str())
            else {
                continue;
            };
            let info = format!("twinkey/seal/v1\n{DEVICE}\nkeyRenewal\n{slot}\n{rotation}");
            self.opened.extend(self.pair.open(&info, sealed));
        }
    }
}

impl Intent for KeyThief {
    fn password(&mut self) -> String {
        let key = self.opened.last().unwrap_or(&self.key);
        token::of_identity(&self.host_name, DEVICE, key)
    }

    fn report(&mut self, twin: &Value) -> Option<Value> {
        self.read(&twin["desired"]["keyRenewal"]);
        let mut report = twin["reported"]["keyRenewal"].clone();
        report["sealTo"] = self.pair.public().into();
        report["sequence"] = (report["sequence"].as_u64().unwrap_or(0) + 1).into();
        report["active"] = "primary".into();
        report["status"] = "committed".into();
        report["reason"] = Value::Null;
        report["primary"] = json!({"fingerprint": token::fingerprint(&self.key), "provenAt": null});
        report["proof"] = token::proof(&self.key, DEVICE, &report).into();
        self.last = report.clone();
        (!self.is_silent).then(|| json!({"keyRenewal": report}))
    }

    fn distance(&self) -> Duration {
        if self.is_silent { ROUND_TRIPS } else { Duration::ZERO }
    }

    fn answer(&mut self, question: &Value) -> Value {
        let mut answer = self.last.clone();
        if let Some(nonce) = question["nonce"].as_str() {
            answer["nonce"] = nonce.into();
            answer["freshProof"] = token::fresh_proof(&self.key, DEVICE, &self.last, nonce).into();
        }
        answer
    }
}

async fn renew_in_incident(hub: &TestHub, patience: &str) -> Renewal {
    let mut command = hub.renewal(DEVICE, "in-turn");
    run_within(PATIENCE * 4, command.args(["--incident", DEVICE, "--timeout", patience])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_with_a_key_gets_no_next_one_and_is_out_when_the_old_ones_are_dead() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let before = hub.keys(DEVICE).await;
    let door = Door::of(&hub);
    let thief = Intruder::start(door.clone(), DEVICE, KeyThief::new(&hub, &before.primary));
    let own = thief.intent().pair.public();
    until("the thief's report stands", async || {
        (reported(&hub, DEVICE).await["sealTo"] == own.as_str()).then_some(())
    })
    .await;
    // Without an incident nothing is renewed.
    let renewal = renew(&hub, DEVICE, "in-turn", &["--timeout", "2s"]).await;
    println!("as ever: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, REFUSED, "{renewal:?}");
    assert_eq!(hub.keys(DEVICE).await, before);
    // In one it is, as soon as a report of the agent's stands in the twin. He goes on fighting for the connection.
    thief.intent().is_silent = true;
    let renewal = renew_in_incident(&hub, "120s").await;
    println!("an incident: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    let now = hub.keys(DEVICE).await;
    assert!(now.primary != before.primary && now.secondary != before.secondary);
    let live = within(PATIENCE, "the agent is connected", async || {
        let connected = gateway.status().await["connection"]["connected"] == true;
        hub.history(DEVICE).await.live().filter(|_| connected).cloned()
    })
    .await;
    let (accepted, refused) = thief.counts();
    println!("connected with the {} key; the thief: {accepted} connections, {refused} refused", live.key);
    until("the thief is refused", async || (thief.counts().1 > 0).then_some(())).await;
    assert_eq!(thief.intent().opened, Vec::<String>::new(), "no offer was for him");
    for old in [&before.primary, &before.secondary] {
        let shut = door.open(DEVICE, &token::of_identity(hub.host_name(), DEVICE, old)).await;
        assert!(matches!(shut, Err(Shut::Refused)), "an old key is dead");
    }
    until_heard(&hub, &gateway, DEVICE).await;
    assert_eq!(hub.keys(DEVICE).await, now);
}

/// Comes back within milliseconds after each connection of the agent, and writes over each of its reports. A person then has the
/// hub make a new key in the slot that he has the key of.
#[tokio::test(flavor = "multi_thread")]
async fn a_thief_with_a_key_who_hides_every_report_of_the_agents_gets_no_key_and_is_out_by_force() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let before = hub.keys(DEVICE).await;
    let door = Door::of(&hub);
    let thief = Intruder::start(door.clone(), DEVICE, KeyThief::new(&hub, &before.primary));
    let own = thief.intent().pair.public();
    until("the thief's report stands", async || {
        (reported(&hub, DEVICE).await["sealTo"] == own.as_str()).then_some(())
    })
    .await;
    let renewal = renew_in_incident(&hub, "8s").await;
    println!("an incident, every report hidden: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(hub.keys(DEVICE).await.primary, before.primary, "nothing proved that it may go: {renewal:?}");
    let forced = ["--incident", DEVICE, "--force-dark", DEVICE, "--timeout", "5s"];
    let renewal = renew(&hub, DEVICE, "primary", &forced).await;
    println!("by force: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    let shut = door.open(DEVICE, &token::of_identity(hub.host_name(), DEVICE, &before.primary)).await;
    assert!(matches!(shut, Err(Shut::Refused)), "his key is dead");
    within(PATIENCE * 2, "the agent is back with its other key", async || {
        let live = hub.history(DEVICE).await.live().cloned();
        live.filter(|live| live.key.contains("secondary"))
    })
    .await;
    until_heard(&hub, &gateway, DEVICE).await;
    let renewal = renew_in_incident(&hub, "60s").await;
    println!("what is left: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    let now = hub.keys(DEVICE).await;
    assert!(now.primary != before.primary && now.secondary != before.secondary);
    assert_eq!(thief.intent().opened, Vec::<String>::new(), "no offer was for him");
    until_heard(&hub, &gateway, DEVICE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_incident_no_key_is_sealed_to_a_public_key_that_was_never_believed_before() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, keys) = connected(&hub, DEVICE, |_| {}).await;
    let thief = Intruder::start(Door::of(&hub), DEVICE, KeyThief::new(&hub, &keys.primary));
    let own = thief.intent().pair.public();
    until("the thief's report stands", async || {
        (reported(&hub, DEVICE).await["sealTo"] == own.as_str()).then_some(())
    })
    .await;
    let before = hub.keys(DEVICE).await;
    let renewal = renew(&hub, DEVICE, "in-turn", &["--incident", DEVICE, "--timeout", "2s"]).await;
    println!("an incident before the first renewal: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, REFUSED, "{renewal:?}");
    assert_eq!(hub.keys(DEVICE).await, before);
    assert_eq!(thief.intent().opened, Vec::<String>::new());
}
