//! Telemetry, cloud-to-device messages, direct methods, and what a client must not say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use reqwest::Method;
use rumqttc::{ConnectReturnCode, Packet, PubAck, Publish, QoS, SubscribeFilter, SubscribeReasonCode};
use serde_json::{Value, json};
use support::{Client, PATIENCE, TestHub, connect, publish};
use tokio::time::timeout;

const EVENTS: &str = "devices/d1/messages/events/";
const DEVICE_BOUND: &str = "devices/d1/messages/devicebound/#";

#[tokio::test]
async fn telemetry_is_stored_before_it_is_acknowledged() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    let bag = "%24.mid=probe-1&%24.ct=application%2Fjson&alert%20level=a%26b%3Dc%2Fd%25&alone";
    client.publish(&format!("{EVENTS}{bag}"), r#"{"n":1}"#).await;
    let seen = hub.look("telemetry?identity=d1").await;
    let message = &seen["messages"][0];
    assert_eq!((&message["seq"], &message["identity"]), (&json!(1), &json!("d1")));
    assert_eq!(message["properties"], json!({"alert level": "a&b=c/d%", "alone": null}));
    let system =
        json!({"message-id": "probe-1", "content-type": "application/json", "connection-device-id": "d1"});
    assert_eq!(message["system"], system);
    assert_eq!((&message["body"], &message["bodyBase64"]), (&json!(r#"{"n":1}"#), &json!("eyJuIjoxfQ==")));
    let mut again = Publish::new(EVENTS, QoS::AtLeastOnce, [0xff, 0x00]);
    (again.pkid, again.dup, again.retain) = (9, true, true);
    client.send(Packet::Publish(again)).await;
    assert_eq!(client.receive().await, Some(Packet::PubAck(PubAck::new(9))));
    let message = hub.look("telemetry?after=1").await["messages"][0].clone();
    assert_eq!(message["properties"], json!({"mqtt-dup": "true", "mqtt-retain": "true"}));
    assert_eq!((&message["body"], &message["bodyBase64"]), (&Value::Null, &json!("/wA=")));
}

#[tokio::test]
async fn telemetry_is_read_page_by_page() {
    let hub = TestHub::start().await;
    let (one, two) = (hub.create("d1").await, hub.create("d2").await);
    let mut clients = [hub.connect("d1", &one.primary).await, hub.connect("d2", &two.primary).await];
    for n in 0..10 {
        let at = n % 2;
        clients[at].publish(&format!("devices/d{}/messages/events/", at + 1), &n.to_string()).await;
    }
    let (mut after, mut bodies) = (0, Vec::new());
    loop {
        let page = hub.look(&format!("telemetry?identity=d2&max=2&after={after}")).await;
        let messages = page["messages"].as_array().unwrap();
        if messages.is_empty() {
            assert_eq!((&page["next"], &page["dropped"]), (&json!(10), &json!(0)));
            break;
        }
        bodies.extend(messages.iter().map(|message| message["body"].as_str().unwrap().to_owned()));
        after = page["next"].as_u64().unwrap();
    }
    assert_eq!(bodies, ["1", "3", "5", "7", "9"]);
    let answer = hub.request(Method::GET, "/$emulator/telemetry?after=x", &[], Value::Null).await;
    answer.expect_error(400, "ArgumentInvalid");
}

#[tokio::test]
async fn a_packet_that_the_hub_forbids_ends_only_its_own_connection() {
    let hub = TestHub::start().await;
    let (keys, other) = (hub.create("d1").await, hub.create("d2").await);
    let mut bystander = hub.connect("d2", &other.primary).await;
    let qos_2 = |topic: &str| {
        let mut publish = Publish::new(topic, QoS::ExactlyOnce, "x");
        publish.pkid = 1;
        Packet::Publish(publish)
    };
    let subscribe = |filter: &str, pkid| {
        let mut subscribe = rumqttc::Subscribe::new(filter, QoS::AtMostOnce);
        subscribe.pkid = pkid;
        Packet::Subscribe(subscribe)
    };
    let large = "x".repeat(256 * 1024);
    let forbidden = [
        qos_2(EVENTS),
        publish("some/topic", "x", 1),
        publish("devices/d2/messages/events/", "x", 1),
        publish(&format!("{EVENTS}+"), "x", 1),
        publish(&format!("{EVENTS}a=#"), "x", 1),
        publish("$iothub/methods/res/ok/?$rid=1", "x", 1),
        publish(&format!("{EVENTS}a=b"), &large, 1),
        publish(EVENTS, &"x".repeat(400 * 1024), 1),
        subscribe("#", 1),
        subscribe("devices/d2/messages/devicebound/#", 1),
        subscribe("$iothub/twin/res/#", 0),
        Packet::Connect(connect("d1", &keys.primary)),
        Packet::PubRel(rumqttc::PubRel::new(1)),
        Packet::PingResp,
        publish(EVENTS, &"x".repeat(300 * 1024), 1),
    ];
    for (at, packet) in forbidden.into_iter().enumerate() {
        let mut client = hub.connect("d1", &keys.primary).await;
        client.send(packet).await;
        assert!(client.is_closed().await, "case {at}");
        assert_eq!(hub.closed_span("d1", at).await["closedBy"], "protocol", "case {at}");
    }
    assert!(bystander.answers().await);
    assert_eq!(hub.look("telemetry").await["messages"], json!([]));
    let mut client = hub.connect("d1", &keys.primary).await;
    client.publish(EVENTS, &large).await;
    let suback = client.subscribe("$iothub/twin/res/#", QoS::ExactlyOnce).await;
    assert_eq!(suback.return_codes, [SubscribeReasonCode::Success(QoS::AtLeastOnce)]);
}

async fn push(hub: &TestHub, body: &str) -> support::Answer {
    hub.operate("c2d", json!({"identity": "d1", "body": body, "properties": {"p q": "v&w"}})).await
}

#[tokio::test]
async fn cloud_to_device_messages_come_again_until_they_are_acknowledged() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    assert_eq!(push(&hub, "before the first session").await.expect(200), json!({"enqueued": false}));
    let mut client = hub.connect("d1", &keys.primary).await;
    assert_eq!(push(&hub, "one").await.expect(200), json!({"enqueued": true}));
    assert!(client.answers().await, "a message without a subscription");
    client.subscribe(DEVICE_BOUND, QoS::AtLeastOnce).await;
    let first = client.receive_publish().await;
    let topic = "devices/d1/messages/devicebound/%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&p%20q=v%26w";
    assert_eq!(
        (first.topic.as_str(), first.qos, first.dup, &first.payload[..]),
        (topic, QoS::AtLeastOnce, false, &b"one"[..])
    );
    drop(client);
    hub.closed_span("d1", 0).await;
    let mut client = hub.connect("d1", &keys.secondary).await;
    let again = client.receive_publish().await;
    assert_eq!((again.dup, &again.payload[..]), (true, &b"one"[..]));
    client.send(Packet::PubAck(PubAck::new(again.pkid))).await;
    push(&hub, "two").await.expect(200);
    let two = client.receive_publish().await;
    assert_eq!((two.dup, &two.payload[..]), (false, &b"two"[..]));
    assert_eq!(hub.identity("d1").await["cloudToDeviceMessageCount"], 1);
    // A takeover hands the unacknowledged message to the new connection.
    let mut client = hub.connect("d1", &keys.primary).await;
    let two = client.receive_publish().await;
    client.send(Packet::PubAck(PubAck::new(two.pkid))).await;
    assert!(client.answers().await);
    assert_eq!(hub.identity("d1").await["cloudToDeviceMessageCount"], 0);
}

#[tokio::test]
async fn a_message_that_is_not_acknowledged_in_time_comes_again_on_the_same_connection() {
    let lock = Duration::from_millis(300);
    let hub = TestHub::start_with(|options| options.cloud_to_device_lock = lock).await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe(DEVICE_BOUND, QoS::AtLeastOnce).await;
    push(&hub, "one").await.expect(200);
    let first = client.receive_publish().await;
    let again = client.receive_publish().await;
    assert_eq!((first.dup, again.dup, &again.payload[..]), (false, true, &b"one"[..]));
    // The lock of the first delivery is over: its acknowledgement says nothing about the second.
    assert_ne!(first.pkid, again.pkid);
    client.send(Packet::PubAck(PubAck::new(first.pkid))).await;
    // Ten deliveries are all, as the documentation's default has it.
    for _ in 3..=10 {
        assert!(client.receive_publish().await.dup);
    }
    let given_up = async {
        while hub.identity("d1").await["cloudToDeviceMessageCount"] != 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("the message stays in the queue");
    assert!(client.answers().await, "an eleventh delivery");
    push(&hub, "two").await.expect(200);
    // On a busy machine the lock may be over before the acknowledgement is there: then the message comes again.
    let acknowledged = async {
        while hub.identity("d1").await["cloudToDeviceMessageCount"] != 0 {
            client.send(Packet::PingReq).await;
            loop {
                match client.receive().await {
                    Some(Packet::Publish(two)) => client.send(Packet::PubAck(PubAck::new(two.pkid))).await,
                    Some(Packet::PingResp) => break,
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    timeout(PATIENCE, acknowledged).await.expect("the acknowledged message stays in the queue");
}

#[tokio::test]
async fn an_unknown_filter_leaves_nothing_in_the_session() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    let filters = ["$iothub/twin/PATCH/properties/desired/#", "#"]
        .map(|it| SubscribeFilter::new(it.to_owned(), QoS::AtMostOnce));
    let mut both = rumqttc::Subscribe::new_many(filters);
    both.pkid = 1;
    client.send(Packet::Subscribe(both)).await;
    assert!(client.is_closed().await);
    let (mut client, present) = hub.try_connect(connect("d1", &keys.primary)).await.unwrap();
    assert!(present);
    hub.call(Method::PATCH, "/twins/d1", json!({"properties": {"desired": {"k": 1}}})).await.expect(200);
    assert!(client.answers().await, "a notification without a subscription");
}

#[tokio::test]
async fn the_cloud_to_device_queue_is_bounded_and_can_be_emptied() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    drop(hub.connect("d1", &keys.primary).await);
    for n in 0..50 {
        push(&hub, &n.to_string()).await.expect(200);
    }
    push(&hub, "one too many").await.expect_error(403, "DeviceMaximumQueueDepthExceeded");
    push(&hub, &"x".repeat(64 * 1024)).await.expect_error(413, "MessageTooLarge");
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe(DEVICE_BOUND, QoS::AtMostOnce).await;
    for n in 0..50 {
        assert_eq!(client.receive_publish().await.payload, n.to_string());
    }
    assert_eq!(hub.identity("d1").await["cloudToDeviceMessageCount"], 0, "QoS 0 completes when sent");
    drop(client);
    hub.closed_span("d1", 1).await;
    push(&hub, "a").await.expect(200);
    let purged = hub.call(Method::DELETE, "/devices/d1/commands", Value::Null).await.expect(200);
    assert_eq!(purged["totalMessagesPurged"], 1);
    push(&hub, "b").await.expect(200);
    let mut clean = connect("d1", &keys.primary);
    clean.clean_session = true;
    let (mut client, _) = hub.try_connect(clean).await.unwrap();
    client.subscribe(DEVICE_BOUND, QoS::AtLeastOnce).await;
    assert!(client.answers().await, "a clean session finds the queue empty");
}

#[tokio::test]
async fn a_message_that_expired_counts_nowhere() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    drop(hub.connect("d1", &keys.primary).await);
    hub.closed_span("d1", 0).await;
    let expired = json!({"identity": "d1", "body": "late", "ttlSecs": 0});
    hub.operate("c2d", expired).await.expect(200);
    assert_eq!(hub.identity("d1").await["cloudToDeviceMessageCount"], 0);
    let twin = hub.call(Method::GET, "/twins/d1", Value::Null).await.expect(200);
    assert_eq!(twin["cloudToDeviceMessageCount"], 0);
    let query = json!({"query": "SELECT deviceId FROM devices WHERE cloudToDeviceMessageCount = 0"});
    let found = hub.call(Method::POST, "/devices/query", query).await.expect(200);
    assert_eq!(found, json!([{"deviceId": "d1"}]));
    let purge = async || hub.call(Method::DELETE, "/devices/d1/commands", Value::Null).await.expect(200);
    assert_eq!(purge().await["totalMessagesPurged"], 0);
    push(&hub, "in time").await.expect(200);
    assert_eq!(hub.identity("d1").await["cloudToDeviceMessageCount"], 1);
    assert_eq!(purge().await["totalMessagesPurged"], 1);
}

async fn call_method(hub: &TestHub, path: &str, body: Value) -> support::Answer {
    hub.call(Method::POST, &format!("/twins/{path}/methods"), body).await
}

/// Answers one direct method as a device does.
async fn serve_method(client: &mut Client, status: &str, answer: &str) -> Publish {
    let asked = client.receive_publish().await;
    let rid = asked.topic.split_once("?$rid=").unwrap().1;
    let topic = format!("$iothub/methods/res/{status}/?$rid={rid}");
    client.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, answer))).await;
    asked
}

#[tokio::test]
async fn a_direct_method_reaches_the_device_and_its_answer_the_caller() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    let keys = hub.create_module("d1", "m1").await;
    let mut client = hub.connect("d1/m1", &keys.primary).await;
    client.subscribe("$iothub/methods/POST/#", QoS::AtMostOnce).await;
    let body = json!({"methodName": "keyRenewal", "payload": {"action": "status"}});
    for (status, answer, expected) in [
        ("200", r#"{"ok":true}"#, json!({"ok": true})),
        ("-500", "", Value::Null),
        ("1", "text", json!("text")),
    ] {
        let (called, asked) = tokio::join!(
            call_method(&hub, "d1/modules/m1", body.clone()),
            serve_method(&mut client, status, answer)
        );
        assert!(asked.topic.starts_with("$iothub/methods/POST/keyRenewal/?$rid="), "{}", asked.topic);
        assert_eq!(&asked.payload[..], br#"{"action":"status"}"#);
        let status: i64 = status.parse().unwrap();
        assert_eq!(called.expect(200), json!({"status": status, "payload": expected}));
    }
    let (_, asked) = tokio::join!(
        call_method(&hub, "d1/modules/m1", json!({"methodName": "thermostat1*getMaxMinReport"})),
        serve_method(&mut client, "200", "{}")
    );
    assert!(asked.topic.starts_with("$iothub/methods/POST/thermostat1*getMaxMinReport/?"), "{}", asked.topic);
    for wrong in ["", "a/b", "a b", "a#", "a?b", &"x".repeat(257)] {
        let call = call_method(&hub, "d1/modules/m1", json!({"methodName": wrong}));
        call.await.expect_error(400, "ArgumentInvalid");
    }
}

#[tokio::test]
async fn a_direct_method_tells_offline_from_silent() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let body = json!({"methodName": "m", "responseTimeoutInSeconds": 5});
    call_method(&hub, "none", body.clone()).await.expect_error(404, "DeviceNotFound");
    let offline = call_method(&hub, "d1", body.clone()).await.expect_error(404, "DeviceNotOnline");
    let inner: Value = serde_json::from_str(offline["Message"].as_str().unwrap()).unwrap();
    assert_eq!((&inner["errorCode"], &offline["ExceptionMessage"]), (&json!(404103), &json!("")));
    let mut client = hub.connect("d1", &keys.primary).await;
    call_method(&hub, "d1", body.clone()).await.expect_error(404, "DeviceNotOnline");
    // With time to connect, the caller waits for the subscription.
    let patient = json!({"methodName": "m", "connectTimeoutInSeconds": 20});
    let subscribe_and_serve = async {
        client.subscribe("$iothub/methods/POST/#", QoS::AtMostOnce).await;
        serve_method(&mut client, "200", "{}").await
    };
    let (called, _) = tokio::join!(call_method(&hub, "d1", patient), subscribe_and_serve);
    called.expect(200);
    call_method(&hub, "d1", body).await.expect_error(504, "GatewayTimeout");
    assert!(client.receive_publish().await.topic.starts_with("$iothub/methods/POST/m/"));
    assert!(client.answers().await);
}

#[tokio::test]
async fn a_connection_that_was_taken_over_can_say_nothing_more() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut old = hub.connect("d1", &keys.primary).await;
    let _new = hub.connect("d1", &keys.primary).await;
    old.send(publish(EVENTS, "late", 1)).await;
    assert!(old.is_closed().await);
    assert_eq!(hub.look("telemetry").await["messages"], json!([]));
    assert_eq!(
        hub.try_connect(connect("d1", "AAAA")).await.map(|_| ()),
        Err(ConnectReturnCode::NotAuthorized)
    );
}
