//! Faults on demand: refusals, propagation, key changes, cuts, restarts; and clients that mean harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use reqwest::Method;
use rumqttc::{ConnectReturnCode, Packet, QoS};
use serde_json::{Value, json};
use support::{Keys, PATIENCE, TestHub, connect, publish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn regenerate(hub: &TestHub, key: &str) -> Keys {
    let body = json!({"policyKey": key, "devices": [{"id": "d1"}]});
    hub.call(Method::POST, "/devices/keys/regenerate", body).await.expect(200);
    Keys::of(&hub.identity("d1").await)
}

/// Tries again until the hub accepts the key; how often it refused.
async fn refusals_until_accepted(hub: &TestHub, key: &str) -> usize {
    let accepted = async {
        let mut refused = 0;
        while hub.is_refused("d1", key).await {
            refused += 1;
        }
        refused
    };
    timeout(PATIENCE, accepted).await.expect("never accepted")
}

#[tokio::test]
async fn the_next_connects_are_refused_as_asked() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.set_faults(json!({"refuseNext": [{"identity": "d1", "count": 2, "code": 3}]})).await;
    for _ in 0..2 {
        let code = hub.try_connect(connect("d1", &keys.primary)).await.map(|_| ());
        assert_eq!(code, Err(ConnectReturnCode::ServiceUnavailable));
    }
    assert!(hub.connect("d1", &keys.primary).await.answers().await);
    assert_eq!(hub.refusals("d1").await, ["fault", "fault"]);
    let answer = hub.operate("faults", json!({"refuseNxt": [], "x": 1})).await;
    let body = answer.expect_error(400, "ArgumentInvalid");
    let text = body["Message"].as_str().unwrap();
    assert!(text.contains("refuseNxt") && text.contains("x;"), "{text}");
}

#[tokio::test]
async fn a_new_key_works_only_after_the_propagation_delay() {
    let hub = TestHub::start().await;
    let old = hub.create("d1").await;
    hub.set_faults(json!({"propagationDelayMsByIdentity": {"d1": 1500}})).await;
    let new = regenerate(&hub, "primaryKey").await;
    assert!(hub.is_refused("d1", &old.primary).await, "the previous key dies at once by default");
    assert!(hub.connect("d1", &old.secondary).await.answers().await, "the other slot is not touched");
    assert!(refusals_until_accepted(&hub, &new.primary).await >= 1);
    hub.set_faults(json!({"previousKey": "lives"})).await;
    let skipped = regenerate(&hub, "primaryKey").await;
    let newer = regenerate(&hub, "primaryKey").await;
    assert!(hub.connect("d1", &new.primary).await.answers().await);
    assert!(refusals_until_accepted(&hub, &newer.primary).await >= 1);
    assert!(hub.is_refused("d1", &skipped.primary).await, "a key that was replaced before it was known");
    assert!(hub.is_refused("d1", &new.primary).await);
}

#[tokio::test]
async fn swapped_keys_are_known_already() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.set_faults(json!({"propagationDelayMs": 3_600_000})).await;
    let mut identity = hub.identity("d1").await;
    identity["authentication"]["symmetricKey"] =
        json!({"primaryKey": keys.secondary, "secondaryKey": keys.primary});
    hub.call_if(Method::PUT, "/devices/d1", "*", identity).await.expect(200);
    let mut client = hub.connect("d1", &keys.primary).await;
    assert!(client.answers().await);
    assert_eq!(hub.spans("d1").await[0]["key"], "secondary");
}

#[tokio::test]
async fn a_key_change_drops_the_live_connection_if_so_set() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.set_faults(json!({"onKeyChange": "drop"})).await;
    let mut client = hub.connect("d1", &keys.primary).await;
    regenerate(&hub, "secondaryKey").await;
    assert!(client.answers().await, "the other slot changed");
    regenerate(&hub, "primaryKey").await;
    assert!(client.is_closed().await);
    assert_eq!(hub.spans("d1").await[0]["closedBy"], "key-change");
}

#[tokio::test]
async fn connack_can_be_late_or_never_come() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut live = hub.connect("d1", &keys.primary).await;
    hub.set_faults(json!({"muteConnack": true})).await;
    let mut mute = hub.open().await;
    mute.send(Packet::Connect(connect("d1", &keys.primary))).await;
    assert!(live.answers().await);
    assert!(timeout(Duration::from_millis(300), mute.receive()).await.is_err(), "an answer");
    assert!(live.answers().await, "an unanswered CONNECT takes nothing over");
    hub.set_faults(json!({"muteConnack": false, "connackDelayMs": 300})).await;
    let before = hub.look("connections").await["nowMs"].as_f64().unwrap();
    let _late = hub.connect("d1", &keys.primary).await;
    let connected = hub.spans("d1").await[1]["connectedMs"].as_f64().unwrap();
    assert!(connected >= before + 300.0, "{before} {connected}");
    // Who gives up while waiting takes nothing over either. The hub has a second to hear of it.
    hub.set_faults(json!({"connackDelayMs": 1000})).await;
    let mut hasty = hub.open().await;
    hasty.send(Packet::Connect(connect("d1", &keys.primary))).await;
    drop(hasty);
    let _next = hub.connect("d1", &keys.primary).await;
    assert_eq!(hub.spans("d1").await.len(), 3);
}

#[tokio::test]
async fn a_cut_ends_the_connection_without_a_word() {
    let hub = TestHub::start().await;
    let (one, two) = (hub.create("d1").await, hub.create("d2").await);
    let (mut first, mut second) =
        (hub.connect("d1", &one.primary).await, hub.connect("d2", &two.primary).await);
    assert_eq!(hub.operate("cut", json!({"identity": "d1"})).await.expect(200), json!({"cut": 1}));
    // Without TLS's own farewell the end of the stream is an error.
    let error = timeout(PATIENCE, first.stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(second.answers().await);
    assert_eq!(hub.operate("cut", json!({})).await.expect(200), json!({"cut": 1}));
    assert!(second.is_closed().await);
    assert_eq!(hub.operate("cut", json!({"identity": "d1"})).await.expect(200), json!({"cut": 0}));
    assert_eq!(hub.spans("d1").await[0]["closedBy"], "cut");
    hub.operate("cut", json!({"id": "d1"})).await.expect_error(400, "DeserializationError");
}

#[tokio::test]
async fn a_restart_keeps_ports_and_registry_and_forgets_sessions_if_asked() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    for (at, forget) in [(0, false), (1, true)] {
        let mut client = hub.connect("d1", &keys.primary).await;
        client.publish("devices/d1/messages/events/", "kept").await;
        hub.operate("restart", json!({"downMs": 100, "forgetSessions": forget})).await.expect(202);
        assert!(client.is_closed().await);
        let up = async {
            while TcpStream::connect(&hub.emulator.ready().https).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, up).await.expect("the hub stays down");
        assert_eq!(hub.closed_span("d1", 2 * at).await["closedBy"], "restart");
        let (mut client, present) = hub.try_connect(connect("d1", &keys.secondary)).await.unwrap();
        assert_eq!(present, !forget);
        client.send(Packet::Disconnect).await;
        hub.closed_span("d1", 2 * at + 1).await;
    }
    assert_eq!(hub.look("telemetry").await["messages"].as_array().unwrap().len(), 2);
    hub.operate("restart", json!({"downMs": 600_001})).await.expect_error(400, "ArgumentInvalid");
}

#[tokio::test]
async fn who_never_speaks_is_dropped_in_bounded_time() {
    let hub = TestHub::start_with(|options| {
        options.tls_timeout = Duration::from_secs(2);
        options.connect_timeout = Duration::from_secs(1);
    })
    .await;
    for address in [&hub.emulator.ready().mqtts, &hub.emulator.ready().https] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("kept open").ok();
    }
    let mut silent = hub.open().await;
    assert!(silent.is_closed().await);
    let mut slow = hub.open().await;
    slow.stream.write_all(b"\x10").await.unwrap();
    assert!(slow.is_closed().await);
}

#[tokio::test]
async fn garbage_on_either_port_leaves_the_hub_alive() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let seed = 0x5eed_u64;
    println!("seed {seed}");
    let mut state = seed;
    let mut garbage = move |len: usize| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    };
    for round in 0..20 {
        for address in [&hub.emulator.ready().mqtts, &hub.emulator.ready().https] {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(&garbage(200)).await.ok();
        }
        let mut inside = hub.open().await;
        inside.stream.write_all(&garbage(1 + 17 * round)).await.ok();
        let mut connected = hub.connect("d1", &keys.primary).await;
        connected.stream.write_all(&garbage(1 + 31 * round)).await.ok();
    }
    // Every packet type with every short length, well-formed header or not.
    for kind in 0..=u8::MAX {
        for len in 0..4u8 {
            let mut inside = hub.connect("d1", &keys.primary).await;
            let mut packet = vec![kind, len];
            packet.extend(garbage(len.into()));
            inside.stream.write_all(&packet).await.ok();
            inside.stream.shutdown().await.ok();
        }
    }
    let raw = format!("{}\r\n\r\n", "GET /\u{7f}% HTTP/1.1");
    for path in
        ["/%", "/devices/%00", "/$emulator", "/$emulator/x", "/devices/%ff%fe", "//", "/devices/d1/modules//"]
    {
        let answer = hub
            .request(Method::GET, path, &[("authorization", raw.trim().replace('\u{7f}', ""))], Value::Null)
            .await;
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
    }
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("$iothub/twin/res/#", QoS::AtMostOnce).await;
    client.send(publish("devices/d1/messages/events/", "still here", 7)).await;
    assert!(matches!(client.receive().await, Some(Packet::PubAck(_))));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let hub = TestHub::start().await;
    let answer = hub.call(Method::PATCH, "/twins/d1", json!({"tags": {"a": "x".repeat(1 << 20)}})).await;
    answer.expect_error(413, "MessageTooLarge");
}
