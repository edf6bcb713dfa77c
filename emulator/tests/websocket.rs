//! MQTT over WebSocket: the upgrade, frames of every kind, and what ends a connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use rumqttc::{ConnectReturnCode, Packet, QoS};
use serde_json::{Value, json};
use support::{Client, PATIENCE, TestHub, connect, publish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

const EVENTS: &str = "devices/d1/messages/events/";

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn upgrade(hub: &TestHub, path: &str) -> Socket {
    let stream = hub.open_tls(&hub.emulator.ready().https).await;
    let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "amqpwsb10, mqtt".parse().unwrap());
    request.headers_mut().insert("origin", "https://localhost".parse().unwrap());
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "mqtt");
    socket
}

/// The bytes of binary messages as a stream, written in frames of `frame_len` bytes.
async fn open(hub: &TestHub, frame_len: usize) -> Client {
    let (mut to_hub, mut from_hub) = upgrade(hub, "/$iothub/websocket").await.split();
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut frame = BytesMut::with_capacity(frame_len);
        while let Ok(1..) = (&mut read).take(frame_len as u64).read_buf(&mut frame).await {
            if to_hub.send(Message::Binary(frame.split().freeze())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(bytes))) = from_hub.next().await {
            write.write_all(&bytes).await.unwrap();
        }
        write.shutdown().await.ok();
    });
    Client::new(Box::new(near))
}

fn bytes_of(packet: &Packet) -> Bytes {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, usize::MAX).unwrap();
    bytes.freeze()
}

/// A socket on which CONNECT was accepted.
async fn connected(hub: &TestHub, key: &str) -> Socket {
    let mut socket = upgrade(hub, "/$iothub/websocket?iothub-no-client-cert=true").await;
    socket.send(Message::Binary(bytes_of(&Packet::Connect(connect("d1", key))))).await.unwrap();
    let connack = next(&mut socket).await.unwrap().into_data();
    assert!(matches!(connack[..], [0x20, 2, _, 0]), "{connack:?}");
    socket
}

async fn next(socket: &mut Socket) -> Result<Message, Error> {
    timeout(PATIENCE, socket.next())
        .await
        .expect("the hub says nothing")
        .unwrap_or(Err(Error::ConnectionClosed))
}

#[tokio::test]
async fn a_device_works_over_websocket_however_its_packets_are_framed() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    for frame_len in [1, 5, 1000, 100_000] {
        let client = open(&hub, frame_len).await;
        let (mut client, _) = client.connect(connect("d1", &keys.primary)).await.unwrap();
        client.subscribe("$iothub/twin/res/#", QoS::AtLeastOnce).await;
        client.subscribe("$iothub/twin/PATCH/properties/desired/#", QoS::AtLeastOnce).await;
        assert_eq!(
            client.request_twin("$iothub/twin/GET/?$rid=1", " ").await.0,
            "$iothub/twin/res/200/?$rid=1"
        );
        let patch = json!({"properties": {"desired": {"long": "x".repeat(4000), "n": frame_len}}});
        hub.call(Method::PATCH, "/twins/d1", patch).await.expect(200);
        let notice = client.receive_publish().await;
        let body: Value = serde_json::from_slice(&notice.payload).unwrap();
        assert_eq!(body["n"], frame_len);
        let large = "y".repeat(frame_len.min(2000) * 100);
        client.publish(EVENTS, &large).await;
        assert!(client.answers().await);
        client.send(Packet::Disconnect).await;
        assert!(client.is_closed().await);
    }
    assert_eq!(hub.look("telemetry").await["messages"].as_array().unwrap().len(), 4);
    assert_eq!(hub.spans("d1").await[0]["closedBy"], "client");
    let refused = open(&hub, 100).await.connect(connect("d1", "AAAA")).await.map(|_| ());
    assert_eq!(refused, Err(ConnectReturnCode::NotAuthorized));
}

#[tokio::test]
async fn a_device_registers_over_websocket_too() {
    let hub = TestHub::start().await;
    let enrolled = hub.request(Method::PUT, "/$emulator/enrollments/r1", &[], json!({})).await.expect(200);
    let key = enrolled["attestation"]["symmetricKey"]["primaryKey"].as_str().unwrap();
    let scope = hub.emulator.ready().id_scope.clone();
    let resource = format!("{scope}/registrations/r1");
    let mut request =
        support::connect_with("r1", &support::token(&resource, key, support::unix_secs() + 60, None));
    let password = request.login.take().unwrap().password;
    request.set_login(format!("{resource}/api-version=2019-03-31"), password);
    let (mut client, _) = open(&hub, 1000).await.connect(request).await.unwrap();
    client.subscribe("$dps/registrations/res/#", QoS::AtLeastOnce).await;
    let register = "$dps/registrations/PUT/iotdps-register/?$rid=1";
    let (topic, _) = client.request_twin(register, r#"{"registrationId":"r1"}"#).await;
    assert_eq!(topic, "$dps/registrations/res/202/?$rid=1&retry-after=3");
    assert!(hub.connect("r1", key).await.answers().await);
}

#[tokio::test]
async fn either_transport_takes_over_from_the_other() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut tls = hub.connect("d1", &keys.primary).await;
    let (mut websocket, present) =
        open(&hub, 4096).await.connect(connect("d1", &keys.secondary)).await.unwrap();
    assert!(present && tls.is_closed().await);
    let _tls = hub.connect("d1", &keys.primary).await;
    assert!(websocket.is_closed().await);
}

#[tokio::test]
async fn packets_may_share_a_message_and_a_message_may_be_cut_into_frames() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut socket = connected(&hub, &keys.primary).await;
    let both = [bytes_of(&publish(EVENTS, "one", 1)), bytes_of(&Packet::PingReq)].concat();
    let parts: Vec<&[u8]> = both.chunks(10).collect();
    for (at, part) in parts.iter().enumerate() {
        let opcode = OpCode::Data(if at == 0 { Data::Binary } else { Data::Continue });
        let frame = Frame::message(Bytes::copy_from_slice(part), opcode, at + 1 == parts.len());
        socket.send(Message::Frame(frame)).await.unwrap();
        if at == 0 {
            // A control frame may come between the parts.
            socket.send(Message::Ping("are you there".into())).await.unwrap();
            assert_eq!(next(&mut socket).await.unwrap(), Message::Pong("are you there".into()));
        }
    }
    assert_eq!(next(&mut socket).await.unwrap(), Message::binary(vec![0x40, 2, 0, 1, 0xd0, 0]));
    // The closing handshake is answered with the client's own code.
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Ok(Message::Close(_)) | Err(Error::ConnectionClosed)));
    assert_eq!(hub.closed_span("d1", 0).await["closedBy"], "client");
}

#[tokio::test]
async fn a_request_that_is_no_good_opening_handshake_is_declined_in_words() {
    let hub = TestHub::start().await;
    let good = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "mqtt"),
    ];
    let ask = async |method: &str, change: Option<(&str, &str)>| {
        let mut stream = hub.open_tls(&hub.emulator.ready().https).await;
        let mut request = format!("{method} /$iothub/websocket HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in good {
            let value = change.filter(|(changed, _)| *changed == name).map_or(value, |(_, value)| value);
            if !value.is_empty() {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            assert_ne!(timeout(PATIENCE, stream.read_buf(&mut answer)).await.unwrap().unwrap(), 0);
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    let accepted = ask("GET", None).await;
    // The example of RFC 6455 §1.3.
    assert!(
        accepted.starts_with("http/1.1 101 ") && accepted.contains("s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{accepted}"
    );
    for (method, change, status) in [
        ("POST", None, "405"),
        ("GET", Some(("upgrade", "")), "400"),
        ("GET", Some(("connection", "close")), "400"),
        ("GET", Some(("sec-websocket-version", "8")), "426"),
        ("GET", Some(("sec-websocket-key", "short")), "400"),
        ("GET", Some(("sec-websocket-protocol", "")), "400"),
        ("GET", Some(("sec-websocket-protocol", "mqttx, amqp")), "400"),
    ] {
        let answer = ask(method, change).await;
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{change:?}: {answer}");
    }
}

#[tokio::test]
async fn frames_that_the_hub_forbids_end_the_connection_with_a_reason() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let reserved = || {
        let header = FrameHeader { rsv1: true, ..FrameHeader::default() };
        Message::Frame(Frame::from_payload(header, Bytes::from_static(b"x")))
    };
    let cases = [
        (Message::text("hello"), CloseCode::Unsupported),
        (reserved(), CloseCode::Protocol),
        (Message::Frame(Frame::message("x", OpCode::Data(Data::Continue), true)), CloseCode::Protocol),
        (Message::binary(vec![0; 1 << 20]), CloseCode::Size),
        // No frame is wrong with this one, but its packet.
        (Message::binary(vec![0xff, 0xff]), CloseCode::Normal),
    ];
    for (at, (message, code)) in cases.into_iter().enumerate() {
        let mut socket = connected(&hub, &keys.primary).await;
        // The hub may close before it has taken all of it.
        drop(socket.send(message).await);
        if code != CloseCode::Size {
            let closed = next(&mut socket).await.unwrap();
            let Message::Close(Some(frame)) = closed else { panic!("case {at}: {closed:?}") };
            assert_eq!(frame.code, code, "case {at}");
        }
        assert_eq!(hub.closed_span("d1", at).await["closedBy"], "protocol", "case {at}");
    }
    // Before CONNECT a message is small.
    let mut socket = upgrade(&hub, "/$iothub/websocket").await;
    drop(socket.send(Message::binary(vec![0x10; 64 * 1024])).await);
    assert!(!matches!(next(&mut socket).await, Ok(Message::Binary(_))));
    assert!(connected(&hub, &keys.primary).await.send(Message::Ping(Bytes::new())).await.is_ok());
}

#[tokio::test]
async fn a_close_frame_is_answered_before_connect_too() {
    let hub = TestHub::start().await;
    let mut socket = upgrade(&hub, "/$iothub/websocket").await;
    socket.send(Message::Close(None)).await.unwrap();
    assert!(matches!(next(&mut socket).await, Ok(Message::Close(_))), "no close frame");
}

#[tokio::test]
async fn a_cut_or_a_restart_ends_a_websocket_without_a_word() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    for (at, (name, body, by)) in
        [("cut", json!({}), "cut"), ("restart", json!({"downMs": 100}), "restart")].into_iter().enumerate()
    {
        let mut socket = connected(&hub, &keys.primary).await;
        assert!(hub.operate(name, body).await.status < 300);
        // Neither a Close frame nor TLS's own farewell.
        match next(&mut socket).await {
            Err(Error::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof),
            Err(Error::Protocol(_)) => {}
            other => panic!("{other:?}"),
        }
        let up = async {
            while TcpStream::connect(&hub.emulator.ready().https).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, up).await.expect("the hub stays down");
        assert_eq!(hub.closed_span("d1", at).await["closedBy"], by);
    }
    let socket = connected(&hub, &keys.primary).await;
    timeout(PATIENCE, hub.emulator.shutdown()).await.expect("a WebSocket keeps the hub from its end");
    drop(socket);
}

#[tokio::test]
async fn a_websocket_without_connect_is_dropped_in_bounded_time() {
    let hub = TestHub::start_with(|options| options.connect_timeout = Duration::from_millis(500)).await;
    let mut socket = upgrade(&hub, "/$iothub/websocket").await;
    let pings = async {
        while socket.send(Message::Ping(Bytes::new())).await.is_ok() {
            if !matches!(socket.next().await, Some(Ok(Message::Pong(_)))) {
                return;
            }
        }
    };
    timeout(PATIENCE, pings).await.expect("pings keep it open");
}

#[tokio::test]
async fn who_sends_pings_and_never_reads_is_no_longer_read() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let (mut to_hub, mut from_hub) = connected(&hub, &keys.primary).await.split();
    let ping = || Message::Ping(vec![0; 125].into());
    let mut sent = 0;
    loop {
        for _ in 0..1000 {
            to_hub.feed(ping()).await.unwrap();
        }
        if timeout(Duration::from_secs(2), to_hub.flush()).await.is_err() {
            break;
        }
        sent += 1000 * ping().len();
        // Far more than the buffers of two sockets hold.
        assert!(sent < 100 << 20, "the hub goes on reading");
    }
    assert!(hub.connect("d2", &hub.create("d2").await.primary).await.answers().await);
    // Once the client reads, everything goes on.
    let say = async {
        to_hub.flush().await.unwrap();
        to_hub.send(Message::Binary(bytes_of(&Packet::PingReq))).await.unwrap();
    };
    let hear = async { while !matches!(from_hub.next().await, Some(Ok(Message::Binary(_)))) {} };
    timeout(PATIENCE, async { tokio::join!(say, hear) }).await.expect("it stays stuck");
}
