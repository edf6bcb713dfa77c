//! Clients that mean harm: what they can hold is bounded, and the hub goes on.
//!
//! `TWINKEY_STRANGERS=10000 cargo test -p twinkey-emulator --test hostile strangers` opens more connections than usual, to a hub
//! that lets an eighth of them wait: the limit of open files has to allow both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use reqwest::Method;
use rumqttc::{ConnectReturnCode, Packet, Publish, QoS};
use serde_json::{Value, json};
use support::{Client, PATIENCE, TestHub, connect, connect_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A hub that takes at most `strangers_max` connections which don't say who they are, and lets them wait.
async fn hub_with_strangers(strangers_max: usize) -> TestHub {
    TestHub::start_with(|options| {
        options.strangers_max = strangers_max;
        options.tls_timeout = Duration::from_secs(600);
        options.connect_timeout = Duration::from_secs(600);
    })
    .await
}

/// Whether the hub closes the connection, within the usual patience.
async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

/// Whether the hub leaves it open for a moment.
async fn is_open(stream: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(20), stream.read_u8()).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_without_number_lock_no_device_out() {
    let count: usize =
        std::env::var("TWINKEY_STRANGERS").map_or(400, |text| text.parse().expect("TWINKEY_STRANGERS"));
    let strangers_max = count / 8;
    let hub = hub_with_strangers(strangers_max).await;
    let keys = hub.create("d1").await;
    let mut live = hub.connect("d1", &keys.primary).await;
    let ready = hub.emulator.ready().clone();
    let mut silent = Vec::new();
    let mut in_tls = Vec::new();
    for at in 0..count {
        let address = if at % 2 == 0 { &ready.mqtts } else { &ready.https };
        if at % 16 == 0 {
            in_tls.push(hub.open_tls(address).await);
        } else {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if at % 3 == 0 {
                // A TLS record that never ends.
                stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
            }
            silent.push(stream);
        }
    }
    assert!(is_closed(&mut silent[0]).await && is_closed(&mut in_tls[0]).await, "the oldest stay");
    assert!(live.answers().await, "a device that is known had to go");
    hub.create("d2").await;
    let mut device = hub.connect("d1", &keys.secondary).await;
    assert!(device.answers().await);
    let mut open = 0;
    for stream in &mut silent {
        open += usize::from(is_open(stream).await);
    }
    assert!((1..=strangers_max).contains(&open), "{open} of {strangers_max}");
    assert!(device.answers().await);
}

#[tokio::test]
async fn who_is_refused_or_asks_for_nothing_good_stays_a_stranger() {
    let hub = hub_with_strangers(2).await;
    // A request that finds nothing earns no place.
    let mut caller = hub.open_tls(&hub.emulator.ready().https).await;
    caller.write_all(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_ne!(caller.read(&mut [0; 4096]).await.unwrap(), 0);
    let scope = &hub.emulator.ready().id_scope;
    let mut registrant =
        connect_with("r1", &support::token(&format!("{scope}/registrations/r1"), "AAAA", 1, None));
    let password = registrant.login.take().unwrap().password;
    registrant.set_login(format!("{scope}/registrations/r1/api-version=2019-03-31"), password);
    let (mut registrant, _) = hub.try_connect(registrant).await.unwrap();
    let (mut third, mut fourth) = (hub.open().await, hub.open().await);
    assert!(is_closed(&mut caller).await && registrant.is_closed().await);
    // The newest is still heard.
    let keys = hub.create("d1").await;
    fourth.send(Packet::Connect(connect("d1", &keys.primary))).await;
    assert!(matches!(fourth.receive().await, Some(Packet::ConnAck(_))));
    assert!(fourth.answers().await);
    third.send(Packet::PingReq).await;
    assert!(third.is_closed().await);
}

#[tokio::test]
async fn known_devices_and_callers_make_no_stranger_go() {
    let hub = hub_with_strangers(3).await;
    let mut stranger = hub.open().await;
    for at in 0..6 {
        let keys = hub.create(&format!("d{at}")).await;
        let mut device = hub.connect(&format!("d{at}"), &keys.primary).await;
        assert!(device.answers().await);
        // Still connected when the next one comes.
        std::mem::forget(device);
    }
    for _ in 0..6 {
        let mut caller = hub.open_tls(&hub.emulator.ready().https).await;
        caller.write_all(b"GET /$emulator/faults HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_ne!(caller.read(&mut [0; 4096]).await.unwrap(), 0);
        std::mem::forget(caller);
    }
    let keys = hub.create("last").await;
    stranger.send(Packet::Connect(connect("last", &keys.primary))).await;
    assert!(matches!(stranger.receive().await, Some(Packet::ConnAck(_))));
}

#[tokio::test]
async fn a_caller_that_asked_something_good_keeps_its_connection() {
    let hub = hub_with_strangers(2).await;
    let mut caller = hub.open_tls(&hub.emulator.ready().https).await;
    let request = b"GET /$emulator/faults HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut answer = [0; 64 * 1024];
    for _ in 0..3 {
        caller.write_all(request).await.unwrap();
        let len = timeout(PATIENCE, caller.read(&mut answer)).await.unwrap().unwrap();
        assert!(answer[..len].starts_with(b"HTTP/1.1 200"));
        let mut strangers = Vec::new();
        for _ in 0..5 {
            strangers.push(TcpStream::connect(&hub.emulator.ready().mqtts).await.unwrap());
        }
        assert!(is_closed(&mut strangers[0]).await);
    }
}

#[tokio::test]
async fn before_connect_a_packet_is_small() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    // The length alone is enough; nothing is waited for.
    for first in
        [&b"\x10\xff\xff\xff\x7f"[..], b"\x10\x81\x80\x01", b"\x10\xff\xff\xff\xff", b"\x30\xff\xff\x7f"]
    {
        let mut client = hub.open().await;
        client.stream.write_all(first).await.unwrap();
        assert!(client.is_closed().await, "{first:?}");
    }
    let mut large = connect("d1", &keys.primary);
    let password = large.login.take().unwrap().password;
    let user = format!("localhost/d1/?api-version=2021-04-12&x={}", "x".repeat(20_000));
    large.set_login(user, password);
    let mut client = hub.open().await;
    client.send(Packet::Connect(large)).await;
    assert!(client.is_closed().await);
    // Flags that MQTT reserves are no MQTT.
    let reserved = b"\x10\x0e\x00\x04MQTT\x04\x03\x00\x3c\x00\x02d1";
    let mut client = hub.open().await;
    client.stream.write_all(reserved).await.unwrap();
    assert!(client.is_closed().await, "a CONNACK for reserved flags");
    for first in [b"\xc1\x00", b"\xe1\x00", b"\x80\x00"] {
        let mut client = hub.connect("d1", &keys.primary).await;
        client.stream.write_all(first).await.unwrap();
        assert!(client.is_closed().await, "{first:?}");
    }
    let spans = hub.spans("d1").await;
    assert!(spans.iter().all(|span| span["closedBy"] == "protocol"), "{spans:?}");
    assert!(hub.connect("d1", &keys.primary).await.answers().await);
}

#[tokio::test]
async fn one_byte_at_a_time_is_served_if_it_ends_and_dropped_if_not() {
    let hub = TestHub::start_with(|options| {
        options.connect_timeout = Duration::from_secs(2);
        options.keep_alive_max = Duration::from_secs(2);
    })
    .await;
    let keys = hub.create("d1").await;
    let mut bytes = bytes::BytesMut::new();
    Packet::Connect(connect("d1", &keys.primary)).write(&mut bytes, usize::MAX).unwrap();
    let mut client = hub.open().await;
    for byte in &bytes {
        client.stream.write_u8(*byte).await.unwrap();
        client.stream.flush().await.unwrap();
    }
    assert!(matches!(client.receive().await, Some(Packet::ConnAck(_))));
    // Bytes without a whole packet are no sign of life.
    let drip = async |client: &mut Client, head: &[u8]| {
        client.stream.write_all(head).await.unwrap();
        let drops = async {
            while client.stream.write_u8(b'x').await.is_ok() && client.stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, drops).await.expect("kept for ever");
    };
    drip(&mut client, b"\x30\xff\xff\x07\x00\x7f").await;
    assert_eq!(hub.closed_span("d1", 0).await["closedBy"], "keep-alive");
    drip(&mut hub.open().await, b"\x10\xff\x7f\x00\x04MQTT\x04").await;
}

#[tokio::test]
async fn deep_json_of_a_device_is_answered_and_not_followed() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("$iothub/twin/res/#", QoS::AtMostOnce).await;
    client.subscribe("$iothub/methods/POST/#", QoS::AtMostOnce).await;
    let report = "$iothub/twin/PATCH/properties/reported/?$rid=r";
    for (open, close) in [("{\"a\":", "}"), ("[", "]"), ("{\"a\":[", "]}")] {
        for depth in [100, 20_000] {
            let deep = format!("{{\"k\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            let (topic, body) = client.request_twin(report, &deep).await;
            assert_eq!(topic, "$iothub/twin/res/400/?$rid=r");
            assert_eq!(body["errorCode"], 400004);
        }
    }
    let deep = "[".repeat(100_000);
    let call = hub.call(Method::POST, "/twins/d1/methods", json!({"methodName": "m"}));
    let serve = async {
        let asked = client.receive_publish().await;
        let rid = asked.topic.split_once("?$rid=").unwrap().1.to_owned();
        let topic = format!("$iothub/methods/res/200/?$rid={rid}");
        client.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, deep.as_str()))).await;
    };
    let (called, ()) = tokio::join!(call, serve);
    assert_eq!(called.expect(200)["payload"], deep, "what is no JSON is told as text");
    assert!(client.answers().await);
}

#[tokio::test]
async fn huge_headers_and_deep_bodies_are_refused_on_the_https_port() {
    let hub = TestHub::start().await;
    for head in [
        format!("GET /devices HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /devices HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(10_000)),
        "x".repeat(1 << 20),
    ] {
        let mut caller = hub.open_tls(&hub.emulator.ready().https).await;
        drop(caller.write_all(head.as_bytes()).await);
        assert!(is_closed(&mut caller).await, "{}", &head[..20]);
    }
    // A body that is announced as too large is not waited for.
    let mut caller = hub.open_tls(&hub.emulator.ready().https).await;
    let head = "POST /$emulator/faults HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    caller.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    timeout(PATIENCE / 2, caller.read_exact(&mut status)).await.expect("it waits for the body").unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    let deep: Value = (0..120).fold(json!(1), |inner, _| json!([inner]));
    hub.create("d1").await;
    let answer = hub.call(Method::PATCH, "/twins/d1", json!({"tags": {"a": deep}})).await;
    answer.expect_error(400, "ArgumentInvalid");
    hub.identity("d1").await;
}

#[tokio::test]
async fn garbage_inside_a_websocket_ends_only_that_one() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut device = hub.connect("d1", &keys.primary).await;
    let seed = 0x0ddb_a115_u64;
    println!("seed {seed}");
    let mut state = seed;
    let mut garbage = move |len: usize| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    };
    let request = "GET /$iothub/websocket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: mqtt\r\n\r\n";
    for round in 0..100 {
        let mut caller = hub.open_tls(&hub.emulator.ready().https).await;
        // Behind the request at once: what the server has read already belongs to the WebSocket.
        let mut bytes = request.as_bytes().to_vec();
        if round % 2 == 0 {
            // A whole masked frame around it.
            bytes.extend([0x82, 0x80 | 100, 0, 0, 0, 0]);
            bytes.extend(garbage(100));
        }
        bytes.extend(garbage(1 + 7 * round));
        drop(caller.write_all(&bytes).await);
        drop(caller.shutdown().await);
        assert!(is_closed(&mut caller).await);
    }
    assert!(device.answers().await);
    let code = hub.try_connect(connect("d1", "AAAA")).await.map(|_| ());
    assert_eq!(code, Err(ConnectReturnCode::NotAuthorized));
}
