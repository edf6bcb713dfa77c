//! Who may connect, what a refusal leaves alone, and how connections end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use reqwest::Method;
use rumqttc::{Connect, ConnectReturnCode, LastWill, Packet, Protocol, QoS};
use serde_json::{Value, json};
use support::{TestHub, connect, connect_until, connect_with, resource, token, unix_secs, unix_time};

async fn code(hub: &TestHub, connect: Connect) -> ConnectReturnCode {
    hub.try_connect(connect).await.map(|_| ()).expect_err("accepted")
}

#[tokio::test]
async fn both_keys_connect_and_the_hub_knows_which() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    for (key, name) in [(&keys.primary, "primary"), (&keys.secondary, "secondary")] {
        let mut client = hub.connect("d1", key).await;
        assert!(client.answers().await);
        let span = hub.spans("d1").await.pop().unwrap();
        assert_eq!((span["key"].as_str(), &span["closedBy"]), (Some(name), &Value::Null), "{span}");
    }
}

#[tokio::test]
async fn a_refused_candidate_leaves_the_live_connection_alone() {
    let hub = TestHub::start().await;
    let (keys, other) = (hub.create("d1").await, hub.create("d2").await);
    let mut live = hub.connect("d1", &keys.primary).await;
    assert_eq!(code(&hub, connect("d1", &other.primary)).await, ConnectReturnCode::NotAuthorized);
    assert!(live.answers().await);
    assert_eq!(hub.refusals("d1").await, ["signature"]);
    hub.set_faults(json!({"onRefusedConnect": "drop"})).await;
    assert!(hub.is_refused("d1", &other.primary).await);
    assert!(live.is_closed().await);
    assert_eq!(hub.spans("d1").await[0]["closedBy"], "refused-connect");
}

#[tokio::test]
async fn every_refusal_says_5_and_the_operator_learns_why() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.create("d2").await;
    let (now, key) = (unix_secs(), keys.primary.as_str());
    let with_user = |user: &str| {
        let mut connect = connect("d1", key);
        let password = connect.login.take().unwrap().password;
        connect.set_login(user, password);
        connect
    };
    let cases = [
        (connect_until("d1", key, now - 301), "expired"),
        (connect("unknown", key), "unknown"),
        (connect_with("d1", &token(&resource("d2"), key, now + 60, None)), "resource"),
        (connect_with("d1", &token("localhost", key, now + 60, None)), "resource"),
        (connect_with("d1", &token("elsewhere/devices/d1", key, now + 60, None)), "resource"),
        (connect_with("d1", "no token"), "malformed"),
        (with_user("localhost/d2/?api-version=2021-04-12"), "malformed"),
        (with_user("elsewhere/d1/?api-version=2021-04-12"), "malformed"),
        (with_user("localhost/d1/?api-version="), "malformed"),
        (with_user("localhost/d1/?api-version=&api-version=2021-04-12"), "malformed"),
        (with_user("localhost/d1/?DeviceClientType=x"), "malformed"),
        (with_user("localhost/d1/m1/?api-version=2021-04-12"), "malformed"),
        (with_user("localhost"), "malformed"),
    ];
    for (connect, reason) in cases {
        let (id, user) = (connect.client_id.clone(), connect.login.clone().unwrap().username);
        assert_eq!(code(&hub, connect).await, ConnectReturnCode::NotAuthorized, "{user}");
        assert_eq!(hub.refusals(&id).await.last().map(String::as_str), Some(reason), "{user}");
    }
}

#[tokio::test]
async fn user_names_and_tokens_of_every_accepted_form_connect() {
    let hub = TestHub::start().await;
    let odd = "-.%_*?!(),:=@$'+#;";
    let (keys, module, odd_keys) =
        (hub.create("d1").await, hub.create_module("d1", "m1").await, hub.create(odd).await);
    for user in [
        "localhost/d1/?api-version=2021-04-12",
        "LOCALHOST:8883/d1/?DeviceClientType=a%2Fb&api-version=2021-04-12&model-id=dtmi%3Aa%3B1",
        "localhost/d1/api-version=2016-11-14&x=y",
        "localhost/d1/?api-version=2021-04-12&api-version=",
        "localhost/d1/",
        "localhost/d1",
    ] {
        let mut connect = connect("d1", &keys.primary);
        let password = connect.login.take().unwrap().password;
        connect.set_login(user, password);
        hub.try_connect(connect).await.unwrap_or_else(|code| panic!("{user}: {code:?}"));
    }
    let twin = hub.call(Method::GET, "/twins/d1", Value::Null).await.expect(200);
    assert_eq!(twin["modelId"], "dtmi:a;1");
    assert!(hub.connect("d1/m1", &module.secondary).await.answers().await);
    assert!(hub.connect(odd, &odd_keys.primary).await.answers().await);
    assert!(hub.is_refused("d1/m1", &keys.primary).await, "a device's key opens its module");
    let late = connect_until("d1", &keys.primary, unix_secs() - 200);
    assert!(hub.try_connect(late).await.is_ok(), "within the clock skew");
}

#[tokio::test]
async fn a_policy_may_connect_a_device_if_it_has_the_right() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    let (owner, service) = (hub.policy_token("device"), hub.policy_token("service"));
    let (mut client, _) = hub.try_connect(connect_with("d1", &owner)).await.unwrap();
    assert!(client.answers().await);
    assert_eq!(hub.spans("d1").await[0]["key"], "policy:device");
    assert_eq!(code(&hub, connect_with("d1", &service)).await, ConnectReturnCode::NotAuthorized);
    assert_eq!(code(&hub, connect_with("d2", &owner)).await, ConnectReturnCode::NotAuthorized);
    assert_eq!(
        (hub.refusals("d1").await, hub.refusals("d2").await),
        (vec!["resource".into()], vec!["unknown".into()])
    );
}

#[tokio::test]
async fn another_protocol_level_is_refused_with_1() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut v5 = connect("d1", &keys.primary);
    v5.protocol = Protocol::V5;
    assert_eq!(code(&hub, v5).await, ConnectReturnCode::RefusedProtocolVersion);
    let level_3: &[u8] = b"\x10\x0c\x00\x04MQTT\x03\x00\x00\x00\x00\x00";
    // With the properties that only MQTT 5 has: a session expiry interval.
    let level_5 = b"\x10\x14\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x0a\x00\x02d1";
    for first in [level_3, level_5] {
        let mut client = hub.open().await;
        client.stream.write_all(first).await.unwrap();
        match client.receive().await {
            Some(Packet::ConnAck(connack)) => {
                assert_eq!(connack.code, ConnectReturnCode::RefusedProtocolVersion);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_closes_the_old_connection_and_the_spans_touch_exactly() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut old = hub.connect("d1", &keys.primary).await;
    for turn in 0..5 {
        let key = if turn % 2 == 0 { &keys.secondary } else { &keys.primary };
        let mut new = hub.connect("d1", key).await;
        assert!(old.is_closed().await);
        assert!(new.answers().await);
        old = new;
    }
    let spans = hub.spans("d1").await;
    assert_eq!(spans.len(), 6);
    for pair in spans.windows(2) {
        assert_eq!(pair[0]["closedBy"], "takeover");
        assert_eq!(pair[0]["closedMs"], pair[1]["connectedMs"]);
        assert_eq!(pair[1]["tookOver"], true);
    }
    assert_eq!((&spans[0]["tookOver"], &spans[5]["closedMs"]), (&json!(false), &Value::Null));
}

#[tokio::test]
async fn a_connection_outlives_its_token_by_the_grace_only() {
    let grace = Duration::from_secs(2);
    let hub = TestHub::start_with(|options| options.token_grace = grace).await;
    let keys = hub.create("d1").await;
    let expiry = unix_secs();
    let (mut client, _) = hub.try_connect(connect_until("d1", &keys.primary, expiry)).await.unwrap();
    assert!(client.answers().await);
    assert!(client.is_closed().await);
    assert!(unix_time() >= Duration::from_secs(expiry) + grace);
    let span = hub.closed_span("d1", 0).await;
    assert_eq!((span["closedBy"].as_str(), span["tokenExpiry"].as_u64()), (Some("expired"), Some(expiry)));
}

#[tokio::test]
async fn silence_ends_a_connection_after_one_and_a_half_keep_alives() {
    let hub = TestHub::start_with(|options| options.keep_alive_max = Duration::from_millis(1700)).await;
    let keys = hub.create("d1").await;
    for (at, (asked, least, most)) in
        [(1, 1500.0, 1700.0), (60, 1700.0, 5000.0), (0, 1700.0, 5000.0)].into_iter().enumerate()
    {
        let mut connect = connect("d1", &keys.primary);
        connect.keep_alive = asked;
        let (mut client, _) = hub.try_connect(connect).await.unwrap();
        assert!(client.is_closed().await);
        let span = hub.closed_span("d1", at).await;
        let lived = span["closedMs"].as_f64().unwrap() - span["connectedMs"].as_f64().unwrap();
        assert_eq!(span["closedBy"], "keep-alive");
        assert!(lived >= least && lived < most + 3000.0, "{asked}: {lived}");
    }
}

#[tokio::test]
async fn every_packet_starts_the_keep_alive_anew() {
    let silence_ms = 1500;
    let hub = TestHub::start_with(|options| options.keep_alive_max = Duration::from_millis(silence_ms)).await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    loop {
        assert!(client.answers().await);
        let seen = hub.look("connections?identity=d1").await;
        let connected = seen["connections"][0]["connectedMs"].as_f64().unwrap();
        if seen["nowMs"].as_f64().unwrap() > connected + 3.0 * silence_ms as f64 {
            break;
        }
    }
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn disabling_and_deleting_close_the_connection_and_refuse_the_next() {
    let hub = TestHub::start().await;
    let (keys, module) = (hub.create("d1").await, hub.create_module("d1", "m1").await);
    let (mut device, mut part) =
        (hub.connect("d1", &keys.primary).await, hub.connect("d1/m1", &module.primary).await);
    let mut identity = hub.identity("d1").await;
    identity["status"] = "disabled".into();
    hub.call_if(Method::PUT, "/devices/d1", "*", identity.clone()).await.expect(200);
    assert!(device.is_closed().await && part.is_closed().await);
    assert!(hub.is_refused("d1", &keys.primary).await && hub.is_refused("d1/m1", &module.primary).await);
    assert_eq!(hub.refusals("d1").await, ["disabled"]);
    identity["status"] = "enabled".into();
    hub.call_if(Method::PUT, "/devices/d1", "*", identity).await.expect(200);
    let (mut device, mut part) =
        (hub.connect("d1", &keys.primary).await, hub.connect("d1/m1", &module.primary).await);
    hub.call_if(Method::DELETE, "/devices/d1", "*", Value::Null).await.expect(204);
    assert!(device.is_closed().await && part.is_closed().await);
    assert!(hub.is_refused("d1", &keys.primary).await && hub.is_refused("d1/m1", &module.primary).await);
    let spans = hub.spans("d1").await;
    assert_eq!((&spans[0]["closedBy"], &spans[1]["closedBy"]), (&json!("disabled"), &json!("deleted")));
    let again = hub.create("d1").await;
    assert_ne!(again, keys);
    assert!(hub.is_refused("d1", &keys.primary).await);
}

#[tokio::test]
async fn sessions_keep_subscriptions_unless_asked_to_start_clean() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let (mut client, present) = hub.try_connect(connect("d1", &keys.primary)).await.unwrap();
    assert!(!present);
    client.subscribe("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce).await;
    client.send(Packet::Disconnect).await;
    assert_eq!(hub.closed_span("d1", 0).await["closedBy"], "client");
    let (mut client, present) = hub.try_connect(connect("d1", &keys.primary)).await.unwrap();
    assert!(present);
    let desire = async || {
        let patch = json!({"properties": {"desired": {"k": 1}}});
        hub.call(Method::PATCH, "/twins/d1", patch).await.expect(200)
    };
    desire().await;
    assert_eq!(client.receive_publish().await.topic, "$iothub/twin/PATCH/properties/desired/?$version=2");
    let mut clean = connect("d1", &keys.primary);
    clean.clean_session = true;
    let (mut client, present) = hub.try_connect(clean).await.unwrap();
    assert!(!present);
    desire().await;
    assert!(client.answers().await, "a notification without a subscription");
    let (_, present) = hub.try_connect(connect("d1", &keys.primary)).await.unwrap();
    assert!(!present, "a clean session was kept");
}

#[tokio::test]
async fn a_will_becomes_telemetry_unless_the_client_disconnects() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let with_will = |topic: &str| {
        let mut connect = connect("d1", &keys.primary);
        connect.last_will = Some(LastWill::new(topic, "gone", QoS::AtLeastOnce, true));
        connect
    };
    let topic = "devices/d1/messages/events/a=b";
    assert!(hub.try_connect(with_will("elsewhere")).await.is_err());
    let (mut polite, _) = hub.try_connect(with_will(topic)).await.unwrap();
    polite.send(Packet::Disconnect).await;
    hub.closed_span("d1", 0).await;
    assert_eq!(hub.look("telemetry").await["messages"], json!([]));
    let (lost, _) = hub.try_connect(with_will(topic)).await.unwrap();
    drop(lost);
    hub.closed_span("d1", 1).await;
    let message = hub.look("telemetry").await["messages"][0].clone();
    assert_eq!(
        (&message["body"], &message["properties"]),
        (&json!("gone"), &json!({"a": "b", "iothub-MessageType": "Will", "mqtt-retain": "true"}))
    );
}

#[tokio::test]
async fn either_tls_version_works_under_every_name_of_the_hub() {
    let hub =
        TestHub::start_with(|options| options.host_name = "roof.azure-devices.example".to_owned()).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for name in ["localhost", "127.0.0.1", "::1", "roof.azure-devices.example"] {
            assert_eq!(hub.handshake(version, name).await.unwrap(), version.version, "{name}");
        }
        assert!(hub.handshake(version, "elsewhere.example").await.is_err());
    }
}
