//! Somebody has one token of the device's, and no key.

use rustix::process::Signal;
use serde_json::{Value, json};
use twinkey_tests::gateway::Gateway;
use twinkey_tests::hub::{Keys, TestHub};
use twinkey_tests::waiting::{PATIENCE, until, within};

use crate::attacker::hpke::KeyPair;
use crate::attacker::intruder::{Intent, Intruder, Says};
use crate::attacker::mqtt::Door;
use crate::attacker::rest::Backend;
use crate::attacker::token;
use crate::victim::{
    DEVICE, DONE, REFUSED, connected, renew, renew_in_peace, reported, run, until_heard, until_reported,
};

/// Wants the next keys: reports a public key of his own, opens what is sealed to it, proves what he has opened, and
/// connects with it.
struct Takeover {
    host_name: String,
    password: String,
    pair: KeyPair,
    /// What he has opened, in base64.
    keys: Vec<String>,
}

impl Takeover {
    fn new(hub: &TestHub, password: String) -> Self {
        Self { host_name: hub.host_name().to_owned(), password, pair: KeyPair::generate(), keys: Vec::new() }
    }
}

impl Intent for Takeover {
    fn password(&mut self) -> String {
        self.password.clone()
    }

    fn report(&mut self, twin: &Value) -> Option<Value> {
        let mut report = twin["reported"]["keyRenewal"].clone();
        report["sealTo"] = self.pair.public().into();
        let offer = &twin["desired"]["keyRenewal"];
        for slot in ["primary", "secondary"] {
            let (Some(sealed), Some(rotation)) = (offer[slot]["sealed"].as_str(), offer["rotation"].as_str())
            else {
                continue;
            };
            let info = format!("twinkey/seal/v1\n{DEVICE}\nkeyRenewal\n{slot}\n{rotation}");
            let Some(key) = self.pair.open(&info, sealed) else { continue };
            report["active"] = slot.into();
            report["status"] = "committed".into();
            report["reason"] = Value::Null;
            report["rotation"] = rotation.into();
            report[slot] = json!({"fingerprint": token::fingerprint(&key), "provenAt": null});
            report["proof"] = token::proof(&key, DEVICE, &report).into();
            self.password = token::of_identity(&self.host_name, DEVICE, &key);
            if !self.keys.contains(&key) {
                self.keys.push(key);
            }
        }
        Some(json!({"keyRenewal": report}))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_the_socket_gets_no_token_unless_the_configuration_says_so() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let mut program = gateway.program().await;
    for resource in [json!(null), json!(format!("{}/devices/{DEVICE}", hub.host_name())), json!("../x")] {
        let answer = program.ask(json!({"request": "token", "resource": resource})).await;
        assert_eq!(answer["ok"], false, "{answer}");
        assert!(answer["token"].is_null());
    }
}

/// The thief has reported his public key and the agent is in the duel; both times: before the operator has ever looked at
/// the device, and after it has believed a report of it.
async fn thief_gets_no_key(has_been_renewed_before: bool) {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    if has_been_renewed_before {
        renew_in_peace(&hub, DEVICE, "secondary").await;
        renew_in_peace(&hub, DEVICE, "primary").await;
    }
    let keys_before = hub.keys(DEVICE).await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys_before.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Takeover::new(&hub, stolen));
    let own = thief.intent().pair.public();
    until("the agent is kept away", async || {
        let is_said = gateway.log().contains("somebody else seems to connect with this identity");
        (is_said && reported(&hub, DEVICE).await["sealTo"] == own.as_str()).then_some(())
    })
    .await;
    let renewal = renew(&hub, DEVICE, "in-turn", &["--timeout", "10s"]).await;
    let after = hub.keys(DEVICE).await;
    let his = [&after.primary, &after.secondary]
        .into_iter()
        .filter(|key| thief.intent().keys.contains(key))
        .count();
    println!(
        "the operator: exit {}, {:?}; {his} of the registry's keys are the thief's",
        renewal.code,
        renewal.summary()
    );
    assert_eq!(renewal.code, REFUSED, "{renewal:?}");
    assert_eq!(after, keys_before, "no key of the registry has changed");
    assert_eq!(thief.intent().keys, Vec::<String>::new(), "the thief has opened nothing");
    assert!(hub.twin(DEVICE).await["properties"]["desired"]["keyRenewal"].is_null(), "nothing is offered");
    drop(thief);
    within(PATIENCE * 2, "the agent is back", async || {
        let live = hub.history(DEVICE).await.live().cloned()?;
        (live.key == "primary").then_some(())
    })
    .await;
    until_heard(&hub, &gateway, DEVICE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_with_a_token_gets_no_key_of_a_device_that_was_never_renewed() {
    thief_gets_no_key(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_with_a_token_gets_no_key_of_a_device_whose_public_key_is_believed() {
    thief_gets_no_key(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_genuine_report_with_one_field_changed_has_no_key_renewed() {
    let hub = TestHub::start().await;
    let (_gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let genuine = reported(&hub, DEVICE).await;
    agent.stop().await;
    let keys = hub.keys(DEVICE).await;
    let sequence = genuine["sequence"].as_u64().unwrap();
    let changes = [
        ("sealTo", json!(KeyPair::generate().public())),
        ("sealTo", Value::Null),
        ("sequence", json!(sequence + 1)),
        ("sequence", json!(sequence - 1)),
        ("sequence", json!(0)),
        ("active", json!("secondary")),
        ("active", Value::Null),
        ("rotation", json!("0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f")),
        ("rotation", Value::Null),
        ("status", json!("idle")),
        ("status", json!("rejected")),
        ("status", json!("invalid")),
        ("reason", json!("storage")),
        ("primary", json!({"fingerprint": genuine["secondary"]["fingerprint"]})),
        ("secondary", json!({"fingerprint": genuine["primary"]["fingerprint"]})),
        ("secondary", Value::Null),
        ("primary", json!({"provenAt": "2030-01-01T00:00:00Z"})),
        ("clockOffsetSecs", json!(86_400)),
        ("behind", json!(sequence + 7)),
        ("contract", json!(2)),
        ("agent", json!("9.9.9")),
        ("proof", Value::Null),
        ("proof", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")),
    ];
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let says = Says::new(stolen, genuine.clone());
    let thief = Intruder::start(Door::of(&hub), DEVICE, says);
    until("the thief is connected", async || (thief.seen().reported > 0).then_some(())).await;
    let mut renewed = Vec::new();
    for (field, value) in changes {
        let mut forged = genuine.clone();
        match (&mut forged[field], value.clone()) {
            (Value::Object(slot), Value::Object(value)) => slot.extend(value),
            (place, value) => *place = value,
        }
        thief.say(&hub, forged).await;
        let renewal = renew(&hub, DEVICE, "in-turn", &["--timeout", "1s"]).await;
        let is_unchanged = hub.keys(DEVICE).await == keys;
        println!(
            "{field} = {value}: exit {}, {:?}, {}",
            renewal.code,
            renewal.summary(),
            if is_unchanged { "no key changed" } else { "A KEY CHANGED" }
        );
        if renewal.code != REFUSED || !is_unchanged {
            renewed.push(format!("{field} = {value}: {renewal:?}"));
        }
        hub.put_keys(DEVICE, &keys).await;
        hub.desire(DEVICE, json!({"keyRenewal": null})).await;
    }
    assert!(renewed.is_empty(), "{renewed:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_genuine_report_that_is_replayed_has_no_key_renewed() {
    let hub = TestHub::start().await;
    let (_gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    // It says that the device lives on its primary key, with a proof; then the device moves on to the secondary one.
    let old = reported(&hub, DEVICE).await;
    renew_in_peace(&hub, DEVICE, "secondary").await;
    agent.stop().await;
    let keys = hub.keys(DEVICE).await;
    // The registry still has that primary key: a token made with it, and the proof in the old report, are good.
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, old));
    until_reported(&hub, DEVICE, "the old report", |report| report["active"] == "primary").await;
    for key_type in ["secondary", "in-turn", "primary"] {
        let renewal = renew(&hub, DEVICE, key_type, &["--timeout", "1s"]).await;
        println!("{key_type}: exit {}, {:?}", renewal.code, renewal.summary());
        assert_eq!(renewal.code, REFUSED, "{key_type}: {renewal:?}");
        assert_eq!(hub.keys(DEVICE).await, keys, "{key_type}: the key in use has stayed");
    }
    drop(thief);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_who_says_rejected_does_not_end_a_renewal() {
    let hub = TestHub::start().await;
    let (_gateway, agent, keys) = connected(&hub, DEVICE, |_| {}).await;
    let genuine = reported(&hub, DEVICE).await;
    // The agent sleeps while the thief is faster.
    agent.signal(Signal::STOP);
    let mut command = hub.renewal(DEVICE, "secondary");
    // An agent that sleeps answers no challenge, and what is attacked here comes after it.
    command.args(["--no-challenge", "--timeout", "30s"]);
    let operator = tokio::spawn(async move { run(&mut command).await });
    let offer = until("the offer", async || {
        let offer = hub.twin(DEVICE).await["properties"]["desired"]["keyRenewal"].take();
        offer.is_object().then_some(offer)
    })
    .await;
    let mut report = genuine.clone();
    report["rotation"] = offer["rotation"].clone();
    report["status"] = "rejected".into();
    report["reason"] = "refused".into();
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, report));
    until_reported(&hub, DEVICE, "the thief's report", |report| report["status"] == "rejected").await;
    // The operator has read it at the latest when it has looked twice more. Nobody else reads twins meanwhile.
    let looks = async || {
        let operations = hub.operations().await;
        operations["twinReads"] + operations["queries"]
    };
    let before = looks().await;
    until("the operator has looked", async || {
        (operator.is_finished() || looks().await >= before + 2).then_some(())
    })
    .await;
    drop(thief);
    agent.signal(Signal::CONT);
    let renewal = operator.await.unwrap();
    println!("the operator: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    hub.until_connected(DEVICE, "secondary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_from_before_a_fallback_that_is_replayed_is_refused_as_not_fresh() {
    let hub = TestHub::start().await;
    let (_gateway, thief, keys) = fallback_is_hidden(&hub).await;
    let renewal = renew(&hub, DEVICE, "primary", &["--timeout", "1s"]).await;
    println!("the operator: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, REFUSED, "{renewal:?}");
    assert_eq!(hub.keys(DEVICE).await, keys);
    drop(thief);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_challenge_a_replayed_report_leaves_the_device_its_other_key() {
    let hub = TestHub::start().await;
    let (gateway, thief, keys) = fallback_is_hidden(&hub).await;
    let renewal = renew(&hub, DEVICE, "primary", &["--no-challenge", "--timeout", "1s"]).await;
    println!("the operator: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(hub.keys(DEVICE).await.secondary, keys.secondary, "{renewal:?}");
    drop(thief);
    let his = reported(&hub, DEVICE).await["sequence"].as_u64();
    let _agent = gateway.start();
    until_reported(&hub, DEVICE, "the key it lives on", |report| {
        report["active"] == "secondary" && report["sequence"].as_u64() > his
    })
    .await;
    until_heard(&hub, &gateway, DEVICE).await;
    let renewal = renew(&hub, DEVICE, "primary", &["--timeout", "30s"]).await;
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    hub.until_connected(DEVICE, "primary").await;
}

/// The device has moved from its secondary key to the primary one without an operator, and then its agent has ended; the
/// thief repeats the report from before. The keys of the registry.
async fn fallback_is_hidden(hub: &TestHub) -> (Gateway, Intruder<Says>, Keys) {
    let (gateway, agent, _) = connected(hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary", "secondary"] {
        renew_in_peace(hub, DEVICE, slot).await;
    }
    let old = reported(hub, DEVICE).await;
    // The hub refuses the secondary key for a moment, and the agent goes on with its other one. No operator is at work.
    hub.set_faults(json!({"refuseNext": [{"identity": DEVICE, "count": 1, "code": 5}]})).await;
    hub.operate("cut", json!({"identity": DEVICE})).await;
    until_reported(hub, DEVICE, "the fallback", |report| report["active"] == "primary").await;
    agent.stop().await;
    let keys = hub.keys(DEVICE).await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(hub), DEVICE, Says::new(stolen, old.clone()));
    thief.say(hub, old).await;
    (gateway, thief, keys)
}

/// Somebody with the right to write twins as well: he writes into the tags what he wants to be believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_thief_with_a_token_who_writes_tags_as_well_gets_no_key() {
    let hub = TestHub::start().await;
    let (_gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let genuine = reported(&hub, DEVICE).await;
    agent.stop().await;
    let keys = hub.keys(DEVICE).await;
    let backend = Backend::of(&hub, "service");
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Takeover::new(&hub, stolen));
    let own = thief.intent().pair.public();
    until_reported(&hub, DEVICE, "his report", |report| report["sealTo"] == own.as_str()).await;
    for sealed_to in [json!(own), Value::Null, json!(7), genuine["sealTo"].clone()] {
        for sequence in [json!(0), Value::Null] {
            backend.tag(DEVICE, json!({"keyRenewal": {"sealTo": sealed_to, "sequence": sequence}})).await;
            let renewal = renew(&hub, DEVICE, "in-turn", &["--timeout", "2s"]).await;
            println!("sealTo {sealed_to}: exit {}, {:?}", renewal.code, renewal.summary());
            assert_eq!(thief.intent().keys, Vec::<String>::new(), "{renewal:?}");
            assert_eq!(renewal.code, REFUSED, "{renewal:?}");
            assert_eq!(hub.keys(DEVICE).await, keys);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thief_writes_over_the_report_does_not_keep_the_agent_from_being_renewed() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let genuine = reported(&hub, DEVICE).await;
    agent.stop().await;
    let keys = hub.keys(DEVICE).await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, genuine.clone()));
    // The largest number that a hub takes: the agent is to believe that it comes from an old image.
    let mut forged = genuine;
    forged["sequence"] = 4_503_599_627_370_495_u64.into();
    forged["behind"] = 4_503_599_627_370_495_u64.into();
    thief.say(&hub, forged).await;
    drop(thief);
    let _agent = gateway.start();
    until_reported(&hub, DEVICE, "the agent's own report", |report| {
        report["sequence"].as_u64() < Some(1_000)
    })
    .await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    until_heard(&hub, &gateway, DEVICE).await;
}

/// A report that names a key which the registry does not have says that the device can come back with its other key alone.
/// Nothing proves that, so nothing may be made or told for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_a_lost_key_has_no_key_made_and_nothing_sealed_to_the_thief() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let genuine = reported(&hub, DEVICE).await;
    agent.stop().await;
    let keys = hub.keys(DEVICE).await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let pair = KeyPair::generate();
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, genuine.clone()));
    for (active, spare) in [("primary", "secondary"), ("secondary", "primary")] {
        let mut report = genuine.clone();
        report["sealTo"] = pair.public().into();
        report["active"] = active.into();
        report[active]["fingerprint"] = "0123456789abcdef0123456789abcdef".into();
        report[spare]["fingerprint"] = genuine[spare]["fingerprint"].clone();
        report["proof"] = Value::Null;
        thief.say(&hub, report).await;
        for key_type in ["primary", "secondary", "in-turn"] {
            let renewal = renew(&hub, DEVICE, key_type, &["--timeout", "1s"]).await;
            println!("lost {active}, {key_type}: exit {}, {:?}", renewal.code, renewal.summary());
            assert_eq!(renewal.code, REFUSED, "{renewal:?}");
            assert_eq!(hub.keys(DEVICE).await, keys, "{renewal:?}");
        }
    }
    for text in &thief.seen().desired {
        let desired: Value = serde_json::from_str(text).unwrap();
        let offer = &desired["keyRenewal"];
        for slot in ["primary", "secondary"] {
            let (Some(sealed), Some(rotation)) = (offer[slot]["sealed"].as_str(), offer["rotation"].as_str())
            else {
                continue;
            };
            let info = format!("twinkey/seal/v1\n{DEVICE}\nkeyRenewal\n{slot}\n{rotation}");
            assert_eq!(pair.open(&info, sealed), None);
        }
    }
    drop(thief);
    let _agent = gateway.start();
    until_heard(&hub, &gateway, DEVICE).await;
}
