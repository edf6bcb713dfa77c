//! Twins that somebody fills with what the hub's size rule does not count: strings of control characters, each of which
//! is six bytes of JSON. The real agent reads what a hub can send of counted properties, and lives on beside the rest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use serde_json::{Map, Value, json};
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Status};
use twinkey_tests::gateway::{Agent, Gateway, text};
use twinkey_tests::hub::TestHub;
use twinkey_tests::offers;
use twinkey_tests::traffic::Traffic;
use twinkey_tests::waiting::{PATIENCE, until};

const DEVICE: &str = "gateway-1";
/// Such a string in JSON, in bytes: a hub takes no longer one.
const UNCOUNTED_LEN: usize = 4_096 * 6;
/// Between two messages.
const PAUSE: Duration = Duration::from_millis(20);

/// So many properties for which the hub counts the names only.
fn uncounted(count: usize) -> Value {
    (0..count).map(|n| (format!("x{n}"), "\u{1}".repeat(4_096).into())).collect::<Map<_, _>>().into()
}

/// The patch that takes them away.
fn without(count: usize) -> Value {
    (0..count).map(|n| (format!("x{n}"), Value::Null)).collect::<Map<_, _>>().into()
}

/// The length of the desired properties as a device reads them.
async fn desired_len(hub: &TestHub) -> usize {
    let mut desired = hub.twin(DEVICE).await["properties"]["desired"].take();
    desired.as_object_mut().unwrap().remove("$metadata");
    desired.to_string().len()
}

async fn connected(hub: &TestHub) -> (Gateway, Agent) {
    let keys = hub.create(DEVICE).await;
    let gateway = Gateway::new(hub, DEVICE, &keys.primary);
    let agent = gateway.start();
    hub.until_report(DEVICE, "the first report", |report| report.active == Some(KeySlot::Primary)).await;
    (gateway, agent)
}

async fn offer_new_key(hub: &TestHub, slot: &str) -> String {
    let keys = hub.regenerate(DEVICE, &format!("{slot}Key")).await;
    let rotation = offers::rotation_id();
    hub.desire(DEVICE, offers::plain(&rotation, slot, keys.of_slot(slot))).await;
    rotation
}

/// Twin reads since the last [`TestHub::reset_throttles`], by device and service alike.
async fn twin_reads(hub: &TestHub) -> u64 {
    hub.operations().await.get("twinReads").copied().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_is_taken_up_from_a_twin_that_uncounted_characters_have_made_large() {
    let hub = TestHub::start().await;
    let (gateway, _agent) = connected(&hub).await;
    let traffic = Traffic::start(&gateway, PAUSE).await;
    let began_ms = hub.history(DEVICE).await.connections[0].connected_ms;
    for (count, slot, connections) in [(7, "secondary", 2), (12, "primary", 3)] {
        hub.desire(DEVICE, uncounted(count)).await;
        assert!(desired_len(&hub).await > count * UNCOUNTED_LEN);
        let rotation = offer_new_key(&hub, slot).await;
        hub.until_committed(DEVICE, &rotation).await;
        hub.until_connected(DEVICE, slot).await;
        assert_eq!(hub.history(DEVICE).await.connections.len(), connections, "no connection was lost");
    }
    traffic.until_through(PATIENCE).await;
    let tally = traffic.end(&hub, DEVICE, PATIENCE).await;
    assert_eq!((tally.lost, tally.duplicates), (0, 0));
    assert_eq!(hub.history(DEVICE).await.longest_dark_ms(began_ms), 0.0);
    assert_eq!(gateway.status().await["suspicions"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_that_is_too_large_is_said_and_asked_for_once_for_each_change_while_telemetry_flows() {
    const COUNT: usize = 25;
    let hub = TestHub::start().await;
    let (gateway, _agent) = connected(&hub).await;
    let traffic = Traffic::start(&gateway, PAUSE).await;
    hub.desire(DEVICE, uncounted(COUNT)).await;
    let report = hub.until_report(DEVICE, "the twin is too large", |report| report.reason.is_some()).await;
    assert_eq!((report.status, report.reason), (Status::Invalid, Some(Reason::TwinTooLarge)));
    assert_eq!((report.active, report.rotation), (Some(KeySlot::Primary), None));
    let status = gateway.status().await;
    assert_eq!(status["suspicions"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["suspicions"][0]["kind"], "twin-too-large");
    let shown = text(&gateway.run(&["status"]).await.stdout);
    assert!(shown.contains("suspicion   twin-too-large: take large properties out of the twin"), "{shown}");

    hub.reset_throttles().await;
    let rotation = offer_new_key(&hub, "secondary").await;
    until("the agent looks at the change", async || (twin_reads(&hub).await > 0).then_some(())).await;
    for _ in 0..10 {
        traffic.until_through(PATIENCE).await;
    }
    assert_eq!(twin_reads(&hub).await, 1, "one request for one change");
    assert_eq!(hub.history(DEVICE).await.connections.len(), 1);
    assert_eq!(gateway.status().await["suspicions"][0]["kind"], "twin-too-large");

    hub.desire(DEVICE, without(COUNT)).await;
    hub.until_committed(DEVICE, &rotation).await;
    hub.until_connected(DEVICE, "secondary").await;
    gateway.until_status("nothing is wrong any more", |status| status["suspicions"] == json!([])).await;
    let tally = traffic.end(&hub, DEVICE, PATIENCE).await;
    assert_eq!((tally.lost, tally.duplicates), (0, 0));
    let history = hub.history(DEVICE).await;
    assert_eq!(history.connections.len(), 2, "the takeover by the new key");
    assert_eq!(history.longest_dark_ms(history.connections[0].connected_ms), 0.0);
}
