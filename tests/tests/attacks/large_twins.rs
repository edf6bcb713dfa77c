//! Somebody who may write the twin makes it large: control characters, which the hub counts as nothing.

use serde_json::{Map, Value, json};
use twinkey_tests::gateway::Gateway;
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

use crate::attacker::rest::Backend;
use crate::victim::{DEVICE, DONE, REFUSED, connected, renew, renew_in_peace, until_heard};

/// The longest text that a twin takes, of characters that cost nothing and stand as six bytes each in JSON.
const TEXT_LEN: usize = 4_096;
/// So many fit a request.
const AT_ONCE: usize = 40;
/// So many make a twin that is longer than anything that the agent or the operator reads.
const FILLERS: usize = 10 * AT_ONCE;

/// Desired properties `from` to `to` of that kind.
fn filler(from: usize, to: usize) -> Value {
    let text = "\u{1}".repeat(TEXT_LEN);
    (from..to).map(|number| (format!("f{number}"), Value::from(text.as_str()))).collect::<Map<_, _>>().into()
}

/// Writes so many of them; the twin's length in bytes, as a device reads it.
async fn fill(hub: &TestHub, count: usize) -> usize {
    let backend = Backend::of(hub, "service");
    for from in (0..count).step_by(AT_ONCE) {
        backend.desire(DEVICE, filler(from, count.min(from + AT_ONCE))).await;
    }
    let mut properties = backend.twin(DEVICE).await["properties"].take();
    for section in ["desired", "reported"] {
        properties[section].as_object_mut().unwrap().remove("$metadata");
    }
    properties.to_string().len()
}

/// Waits until the agent has had the time to see the twin: the hub has answered its method and its program's message, both
/// of which come later on the same connection.
async fn until_seen(hub: &TestHub, gateway: &Gateway) {
    for _ in 0..20 {
        until("the direct method is answered", async || {
            let answer = hub.call_method(DEVICE, "keyRenewal", json!({"action": "status"})).await;
            (answer.status == 200).then_some(())
        })
        .await;
        until_heard(hub, gateway, DEVICE).await;
    }
}

/// Connections that the hub has accepted from the device, and what the agent suspects.
async fn harm(hub: &TestHub, gateway: &Gateway, before: usize) -> (usize, Value) {
    let connections = hub.history(DEVICE).await.connections.len() - before;
    let suspicions = gateway.status().await["suspicions"].take();
    println!("{connections} new connections, suspicions: {suspicions}");
    (connections, suspicions)
}

/// A twin with so many fillers costs no connection, and a key is renewed beside them.
async fn is_read(count: usize, len_min: usize) {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let before = hub.history(DEVICE).await.connections.len();
    let len = fill(&hub, count).await;
    assert!(len >= len_min, "{len}");
    println!("a twin of {len} bytes");
    until_seen(&hub, &gateway).await;
    let (connections, suspicions) = harm(&hub, &gateway, before).await;
    assert_eq!(connections, 0);
    assert_eq!(suspicions, json!([]));
    let renewal = renew(&hub, DEVICE, "secondary", &["--timeout", "10s"]).await;
    println!("the operator: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    let history = hub.history(DEVICE).await;
    assert_eq!(history.connections.len() - before, 1, "the renewal's takeover");
    assert_eq!(history.longest_dark_ms(history.connections[0].connected_ms), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_of_172_kilobytes_is_read_and_a_key_is_renewed() {
    is_read(7, 172_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_of_295_kilobytes_is_read_and_a_key_is_renewed() {
    is_read(12, 295_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_beyond_every_limit_costs_no_connection_and_no_message_and_is_not_asked_for_again_and_again() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let before = hub.history(DEVICE).await.connections.len();
    let keys = hub.keys(DEVICE).await;
    let len = fill(&hub, AT_ONCE).await;
    until_seen(&hub, &gateway).await;
    // No key is made that could not be handed over.
    let renewal = renew(&hub, DEVICE, "secondary", &["--timeout", "10s"]).await;
    println!("a twin of {len} bytes, the operator: exit {}, {:?}", renewal.code, renewal.summary());
    assert_eq!(renewal.code, REFUSED, "{renewal:?}");
    let len = fill(&hub, FILLERS).await;
    println!("a twin of {len} bytes");
    until_seen(&hub, &gateway).await;
    let (connections, suspicions) = harm(&hub, &gateway, before).await;
    assert_eq!(connections, 0);
    assert!(!suspicions.to_string().contains("duel"), "{suspicions}");
    // From now on nothing changes in the twin, and nobody reads it.
    let reads = async || hub.operations().await["twinReads"];
    let once = reads().await;
    until_seen(&hub, &gateway).await;
    assert_eq!(reads().await, once, "the twin is asked for again only after a patch");
    let renewal = renew(&hub, DEVICE, "secondary", &["--timeout", "10s"]).await;
    println!("the operator: exit {}, {:?}", renewal.code, renewal.summary());
    assert_ne!(renewal.code, DONE, "{renewal:?}");
    assert_eq!(hub.keys(DEVICE).await, keys);
    // Once the twin is small again, all is as ever.
    let backend = Backend::of(&hub, "service");
    let nothing: Map<String, Value> =
        (0..FILLERS).map(|number| (format!("f{number}"), Value::Null)).collect();
    backend.desire(DEVICE, nothing.into()).await;
    renew_in_peace(&hub, DEVICE, "secondary").await;
    assert_eq!(hub.history(DEVICE).await.connections.len() - before, 1, "the renewal's takeover");
}
