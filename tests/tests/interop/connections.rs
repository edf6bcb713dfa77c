//! How a device comes, goes and comes back.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;
use twinkey_tests::waiting::PATIENCE;

use crate::python::Program;
use crate::world::World;

#[tokio::test]
async fn a_device_connects_with_either_key_and_says_goodbye() {
    let Some(world) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    for (slot, key) in [("primary", &keys.primary), ("secondary", &keys.secondary)] {
        let mut device = world.client("d1", key, json!({})).await;
        device.does("connect").await;
        assert_eq!(device.does("is_connected").await, true);
        world.hub.until_connected("d1", slot).await;
        assert_eq!(state(&world).await, "Connected");
        device.does("disconnect").await;
        assert_eq!(device.does("is_connected").await, false);
        world.until_gone("d1").await;
        let history = world.hub.history("d1").await;
        assert_eq!(history.connections.last().unwrap().closed_by.as_deref(), Some("client"));
        assert_eq!(state(&world).await, "Disconnected");
    }
}

async fn state(world: &World) -> Value {
    world.hub.call(Method::GET, "/devices/d1", None, Value::Null).await.expect(200)["connectionState"].take()
}

#[tokio::test]
async fn a_wrong_key_an_unknown_and_a_disabled_device_are_the_sdks_credential_error() {
    let Some(world) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    let other = world.hub.create("d2").await;
    disable(&world, "d2").await;
    for (id, key, reason) in [
        ("d1", &other.primary, "signature"),
        ("nobody", &keys.primary, "unknown"),
        ("d2", &other.primary, "disabled"),
    ] {
        let mut device = world.client(id, key, json!({})).await;
        let raised = device.fails_to("connect", json!({})).await;
        assert_eq!(raised.classes, ["CredentialError", "UnauthorizedError"], "{id}: {raised:?}");
        let refused = world.hub.history(id).await.refused;
        assert_eq!(refused.len(), 1, "the SDK does not try again: {refused:?}");
        assert_eq!(refused[0].reason, reason);
    }
}

async fn disable(world: &World, id: &str) {
    let body = json!({"deviceId": id, "status": "disabled"});
    world.hub.call(Method::PUT, &format!("/devices/{id}"), Some("*"), body).await.expect(200);
}

#[tokio::test]
async fn a_certificate_that_the_sdk_does_not_trust_is_not_connected_to() {
    let Some(world) = World::start().await else { return };
    let Some(other) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    let ca = std::fs::read_to_string(other.hub.ca_file()).unwrap();
    let mut device = world.client("d1", &keys.primary, json!({"ca": ca})).await;
    let raised = device.fails_to("connect", json!({})).await;
    assert!(raised.classes.iter().any(|class| class == "TlsExchangeAuthError"), "{raised:?}");
    let history = world.hub.history("d1").await;
    assert!(history.connections.is_empty() && history.refused.is_empty());
}

#[tokio::test]
async fn a_device_that_is_disabled_loses_its_connection_and_is_refused() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    disable(&world, "d1").await;
    device.event("disconnected").await;
    // As long as the SDK's own attempt is not over, the application's can end with it as a failed connection.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let raised = device.fails_to("connect", json!({})).await;
        if raised.classes == ["CredentialError", "UnauthorizedError"] {
            break;
        }
        assert!(raised.classes[0] == "ConnectionFailedError" && Instant::now() < deadline, "{raised:?}");
    }
    assert_eq!(world.hub.history("d1").await.connections[0].closed_by.as_deref(), Some("disabled"));
}

#[tokio::test]
async fn the_sdk_renews_its_token_by_a_new_connection_with_a_later_expiry() {
    let Some(world) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    // The SDK renews 120 s before the expiry (azure-iot-device, SasTokenStage), so here after two seconds.
    let mut device = world.client("d1", &keys.primary, json!({"sastoken_ttl": 122})).await;
    device.does("connect").await;
    device.does("watch_desired").await;
    let first = world.hub.until_connected("d1", "primary").await;
    let second = world.hub.until_live("d1", "the token is renewed", |span| span.id > first.id).await;
    assert!(second.token_expiry > first.token_expiry, "{first:?} {second:?}");
    hears_of_changes(&world, &mut device).await;
}

/// Its subscription has outlived the connection on which it was made.
async fn hears_of_changes(world: &World, device: &mut Program) {
    // After each connect the SDK reads the twin, and tells of the whole if it has not seen this version.
    assert_eq!(device.event("desired").await, json!({"$version": 1}));
    world.hub.desire("d1", json!({"after": true})).await;
    assert_eq!(device.event("desired").await, json!({"after": true, "$version": 2}));
}

#[tokio::test]
async fn a_connection_outlives_its_token_by_the_grace_and_then_ends() {
    let Some(world) = World::start_with(&["--token-grace", "1s"]).await else { return };
    let keys = world.hub.create("d1").await;
    let mut device = world.client_with_token("d1", &keys.primary, 2).await;
    device.does("connect").await;
    device.event("disconnected").await;
    let span = world.hub.history("d1").await.connections[0].clone();
    assert_eq!(span.closed_by.as_deref(), Some("expired"));
    assert!(span.closed_ms.unwrap() - span.connected_ms > 1000.0, "the grace is a second: {span:?}");
}

#[tokio::test]
async fn a_second_client_of_the_same_identity_takes_the_connection_over() {
    let Some(world) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    let once = json!({"connection_retry": false});
    let mut first = world.client("d1", &keys.primary, once.clone()).await;
    first.does("connect").await;
    let mut second = world.client("d1", &keys.secondary, once).await;
    second.does("connect").await;
    first.event("disconnected").await;
    assert_eq!(second.does("is_connected").await, true);
    let history = world.hub.history("d1").await;
    assert_eq!(history.connections[0].closed_by.as_deref(), Some("takeover"));
    assert!(history.live().unwrap().took_over);
}

#[tokio::test]
async fn a_device_that_is_cut_off_comes_back_by_itself_with_its_subscriptions() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    device.does("watch_desired").await;
    device.event("connected").await;
    assert!(world.hub.cut("d1").await);
    device.event("disconnected").await;
    device.event("connected").await;
    hears_of_changes(&world, &mut device).await;
    device.ask("send", json!({"body": "back"})).await;
    assert_eq!(world.hub.telemetry("d1").await[0]["body"], "back");
}

#[tokio::test]
async fn a_device_comes_back_after_the_hubs_restart() {
    let Some(world) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    let mut device = world.client("d1", &keys.primary, json!({"connection_retry_interval": 1})).await;
    device.does("connect").await;
    device.does("watch_desired").await;
    device.event("connected").await;
    world.hub.operate("restart", json!({"downMs": 300})).await.expect(202);
    device.event("disconnected").await;
    device.event("connected").await;
    hears_of_changes(&world, &mut device).await;
}

#[tokio::test]
async fn one_refusal_stops_the_sdks_reconnection_for_good_and_an_unavailable_hub_does_not() {
    let Some(world) = World::start().await else { return };
    let mut devices = Vec::new();
    for id in ["refused", "unavailable"] {
        let key = world.hub.create(id).await.primary;
        let mut device = world.client(id, &key, json!({"connection_retry_interval": 1})).await;
        device.does("connect").await;
        device.event("connected").await;
        devices.push(device);
    }
    let next = json!([{"identity": "refused", "count": 1, "code": 5}, {"identity": "unavailable", "count": 1, "code": 3}]);
    world.hub.set_faults(json!({"refuseNext": next})).await;
    assert!(world.hub.cut("refused").await);
    assert_eq!(devices[0].event("background").await, "ConnectionDroppedError");
    assert_eq!(devices[0].event("background").await, "UnauthorizedError");
    // The other one waits as long as this one would: when it is back, this one would have tried again.
    assert!(world.hub.cut("unavailable").await);
    devices[1].event("connected").await;
    let tries = async |id: &str| {
        let history = world.hub.history(id).await;
        (history.connections.len(), history.refused.len())
    };
    assert_eq!((tries("refused").await, tries("unavailable").await), ((1, 1), (2, 1)));
    assert_eq!(devices[0].does("is_connected").await, false);
}

#[tokio::test]
async fn a_regenerated_key_leaves_the_connection_alone_and_refuses_the_next() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    world.hub.regenerate("d1", "primaryKey").await;
    device.ask("send", json!({"body": "still here"})).await;
    device.does("disconnect").await;
    let raised = device.fails_to("connect", json!({})).await;
    assert_eq!(raised.classes, ["CredentialError", "UnauthorizedError"]);
}

#[tokio::test]
async fn over_websocket_a_device_does_all_that_it_does_over_tcp() {
    let Some(world) = World::start().await else { return };
    let keys = world.hub.create("d1").await;
    let mut device = world.client("d1", &keys.primary, json!({"websockets": true})).await;
    device.does("connect").await;
    device.does("watch_desired").await;
    device.ask("report", json!({"patch": {"via": "websocket"}})).await;
    assert_eq!(world.hub.twin("d1").await["properties"]["reported"]["via"], "websocket");
    let body = "x".repeat(100_000);
    device.ask("send", json!({"body": body})).await;
    assert_eq!(world.hub.telemetry("d1").await[0]["body"], body);
    device.does("serve_methods").await;
    let answer = world.hub.call_method("d1", "echo", json!(7)).await.expect(200);
    assert_eq!(answer, json!({"status": 200, "payload": {"echo": 7}}));
    device.does("watch_messages").await;
    let message = json!({"identity": "d1", "body": "down"});
    world.hub.operate("c2d", message).await.expect(200);
    assert_eq!(device.event("message").await["body"], "down");
    assert!(world.hub.cut("d1").await);
    device.event("disconnected").await;
    device.event("connected").await;
    hears_of_changes(&world, &mut device).await;
}

#[tokio::test]
async fn over_websocket_a_wrong_key_is_the_sdks_credential_error_too() {
    let Some(world) = World::start().await else { return };
    world.hub.create("d1").await;
    let other = world.hub.create("d2").await.primary;
    let mut device = world.client("d1", &other, json!({"websockets": true})).await;
    let raised = device.fails_to("connect", json!({})).await;
    assert_eq!(raised.classes, ["CredentialError", "UnauthorizedError"]);
    assert_eq!(world.hub.history("d1").await.refused[0].reason, "signature");
}
