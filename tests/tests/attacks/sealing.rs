//! No key is ever readable in a twin, whatever a device is made to report.

use serde_json::{Value, json};
use twinkey_tests::hub::TestHub;

use crate::attacker::intruder::{Intruder, Says};
use crate::attacker::mqtt::Door;
use crate::attacker::rest::Backend;
use crate::attacker::token;
use crate::victim::{DEVICE, REFUSED, connected, renew, renew_in_peace, reported};

/// What a device can report in the place of its public key.
fn no_keys() -> [Value; 7] {
    [
        Value::Null,
        json!(""),
        json!(7),
        json!([]),
        json!({"key": null}),
        json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        json!("B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9"),
    ]
}

/// Whether a text has one of the registry's keys, or a `key` that is no null.
fn shows_a_key(text: &str, keys: &[String]) -> bool {
    keys.iter().any(|key| text.contains(key.as_str())) || text.contains("\"key\":\"")
}

/// Reports each of these, has the operator renew, and looks through every version of the twin that the service or the
/// device has seen. With `key` he makes a proof for what he reports.
async fn nothing_is_readable(has_key: bool) {
    let hub = TestHub::start().await;
    let (_gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(&hub, DEVICE, slot).await;
    }
    let keys = hub.keys(DEVICE).await;
    let genuine = reported(&hub, DEVICE).await;
    agent.stop().await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, genuine.clone()));
    let backend = Backend::of(&hub, "service");
    let watching = tokio::spawn(async move {
        let mut seen: Vec<String> = Vec::new();
        loop {
            let twin = backend.twin(DEVICE).await.to_string();
            if seen.last() != Some(&twin) {
                seen.push(twin);
            }
            if seen.last().is_some_and(|twin| twin.contains("\"over\"")) {
                return seen;
            }
        }
    });
    let mut every_key = vec![keys.primary.clone(), keys.secondary.clone()];
    let mut refusals = Vec::new();
    for no_key in no_keys() {
        let mut report = genuine.clone();
        report["sealTo"] = no_key.clone();
        if has_key {
            report["proof"] = token::proof(&keys.primary, DEVICE, &report).into();
        }
        thief.say(&hub, report).await;
        for source in ["service", "local"] {
            let renewal =
                renew(&hub, DEVICE, "secondary", &["--timeout", "1s", "--key-source", source]).await;
            println!("sealTo = {no_key}, {source}: exit {}, {:?}", renewal.code, renewal.summary());
            let after = hub.keys(DEVICE).await;
            every_key.extend([after.primary, after.secondary]);
            refusals.push((no_key.clone(), renewal));
        }
    }
    hub.desire(DEVICE, json!({"over": true})).await;
    let mut seen = watching.await.unwrap();
    seen.extend(thief.seen().desired.iter().cloned());
    let readable = seen.iter().filter(|text| shows_a_key(text, &every_key)).count();
    println!("{} versions of the twin, a key is readable in {readable}", seen.len());
    assert!(seen.len() > no_keys().len(), "the versions were seen");
    assert_eq!(readable, 0);
    for (no_key, renewal) in refusals {
        assert_eq!(renewal.code, REFUSED, "{no_key}: {renewal:?}");
    }
    assert_eq!(hub.keys(DEVICE).await, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_without_a_public_key_and_without_a_proof_gets_no_key_in_the_clear() {
    nothing_is_readable(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_without_a_public_key_and_with_a_valid_proof_gets_no_key_in_the_clear() {
    nothing_is_readable(true).await;
}
