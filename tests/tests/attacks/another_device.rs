//! Another device of the same hub, and offers and reports that are copied from one device to the other.

use serde_json::json;
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

use crate::attacker::intruder::{Intruder, Says};
use crate::attacker::mqtt::{Door, Shut};
use crate::attacker::rest::Backend;
use crate::attacker::token;
use crate::victim::{
    DEVICE, REFUSED, connected, renew, renew_in_peace, reported, until_heard, until_reported,
};

const OTHER: &str = "pump-8";

#[tokio::test(flavor = "multi_thread")]
async fn a_device_neither_connects_as_another_one_nor_speaks_with_its_report() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let (_other_gateway, other_agent, _) = connected(&hub, OTHER, |_| {}).await;
    for device in [DEVICE, OTHER] {
        renew_in_peace(&hub, device, "secondary").await;
    }
    other_agent.stop().await;
    let (keys, other_keys) = (hub.keys(DEVICE).await, hub.keys(OTHER).await);
    for key in [&other_keys.primary, &other_keys.secondary] {
        let shut = Door::of(&hub).open(DEVICE, &token::of_identity(hub.host_name(), DEVICE, key)).await;
        assert!(matches!(shut, Err(Shut::Refused)));
    }
    // The other device repeats the first one's report, which has a valid proof.
    let copied = reported(&hub, DEVICE).await;
    let own = token::of_identity(hub.host_name(), OTHER, &other_keys.primary);
    let copier = Intruder::start(Door::of(&hub), OTHER, Says::new(own, copied.clone()));
    copier.say(&hub, copied.clone()).await;
    // Once more with the fingerprints of its own keys.
    let mut fitted = copied.clone();
    for slot in ["primary", "secondary"] {
        fitted[slot]["fingerprint"] = token::fingerprint(other_keys.of_slot(slot)).into();
    }
    for report in [copied, fitted] {
        copier.say(&hub, report).await;
        let renewal = renew(&hub, OTHER, "in-turn", &["--timeout", "1s"]).await;
        println!("a copied report: exit {}, {:?}", renewal.code, renewal.summary());
        assert_eq!(renewal.code, REFUSED, "{renewal:?}");
    }
    assert_eq!((hub.keys(DEVICE).await, hub.keys(OTHER).await), (keys, other_keys));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_is_copied_to_another_device_is_not_taken() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let (other_gateway, _other_agent, _) = connected(&hub, OTHER, |_| {}).await;
    let backend = Backend::of(&hub, "service");
    let watching = {
        let backend = backend.clone();
        tokio::spawn(async move { backend.next_offer(DEVICE).await })
    };
    renew_in_peace(&hub, DEVICE, "secondary").await;
    let offer = watching.await.unwrap();
    let before = hub.history(OTHER).await.now_ms;
    backend.desire(OTHER, json!({"keyRenewal": offer})).await;
    let report =
        until_reported(&hub, OTHER, "the refusal", |report| report["rotation"] == offer["rotation"]).await;
    println!("a copied offer: {} ({})", report["status"], report["reason"]);
    assert_eq!((&report["status"], &report["reason"]), (&json!("invalid"), &json!("unauthenticated")));
    assert_eq!(hub.history(OTHER).await.attempts_since(before), 0);
    until("it lives on", async || (reported(&hub, OTHER).await["active"] == "primary").then_some(())).await;
    until_heard(&hub, &other_gateway, OTHER).await;
}
