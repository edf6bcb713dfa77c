//! One session with a scripted hub over an in-memory stream, on a paused clock.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::oneshot;
use tokio::time::Instant;
use twinkey_agent::budget::Room;
use twinkey_agent::hub::Timing;
use twinkey_agent::hub::dial::DialError;
use twinkey_agent::hub::outbox::{Message, Outbox};
use twinkey_agent::hub::session::{ConnectError, Credentials, Event, Session, SessionError, connect};
use twinkey_agent::hub::wire::{PACKET_LEN_MAX, Received, Wire, WireError};
use twinkey_contract::Identity;

fn credentials() -> Credentials {
    Credentials {
        identity: Identity { device_id: "d".into(), module_id: None },
        user_name: "h/d/?api-version=2021-04-12".into(),
        password: "SharedAccessSignature sr=h&sig=s&se=1".to_owned().into(),
    }
}

fn pair() -> (Box<DuplexStream>, Wire<DuplexStream>) {
    let (ours, theirs) = streams();
    (ours, Wire::new(theirs))
}

fn streams() -> (Box<DuplexStream>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    (Box::new(ours), theirs)
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(hub: &mut Wire<S>, packet: Packet) {
    hub.queue(&packet).unwrap();
    hub.flush().await.unwrap();
}

/// A session that is connected and subscribed, and has asked for the twin.
async fn begun() -> (Session, Wire<DuplexStream>) {
    let (session, stream) = begun_on_stream().await;
    (session, Wire::new(stream))
}

async fn begun_on_stream() -> (Session, DuplexStream) {
    let (stream, mut theirs) = streams();
    let mut hub = Wire::new(&mut theirs);
    let (connected, ()) = tokio::join!(connect(stream, credentials(), &Timing::DEFAULT), async {
        assert!(matches!(hub.next().await.unwrap(), Received::Packet(Packet::Connect(_))));
        say(&mut hub, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).await;
    });
    let (wire, _) = connected.unwrap();
    let mut session = Session::begin(wire, Timing::DEFAULT, Instant::now()).unwrap();
    let subscribe = exchange(&mut session, &mut hub).await;
    let Packet::Subscribe(subscribe) = subscribe else { panic!("{subscribe:?}") };
    say(
        &mut hub,
        Packet::SubAck(SubAck::new(subscribe.pkid, vec![SubscribeReasonCode::Success(QoS::AtMostOnce); 3])),
    )
    .await;
    hear(&mut session).await.unwrap();
    (session, theirs)
}

/// Lets the session send, and gives the hub's next packet.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(session: &mut Session, hub: &mut Wire<S>) -> Packet {
    tokio::select! {
        received = hub.next() => match received.unwrap() {
            Received::Packet(packet) => packet,
            Received::TooLarge(announced) => panic!("{announced:?}"),
        },
        packet = session.next() => panic!("the session heard {packet:?}"),
    }
}

async fn hear(session: &mut Session) -> Result<Event, SessionError> {
    let packet = session.next().await?;
    session.absorb(packet, Instant::now())
}

async fn answer_twin(session: &mut Session, hub: &mut Wire<DuplexStream>, status: u16, body: &str) -> Event {
    session.pursue(None, None, Instant::now()).unwrap();
    let get = exchange(session, hub).await;
    let Packet::Publish(get) = get else { panic!("{get:?}") };
    let request = get.topic.strip_prefix("$iothub/twin/GET/?$rid=").unwrap();
    let topic = format!("$iothub/twin/res/{status}/?$rid={request}");
    say(hub, Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body))).await;
    hear(session).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_answer_to_connect_is_its_own_outcome() {
    for (code, wanted) in [
        (ConnectReturnCode::NotAuthorized, "CONNACK 5"),
        (ConnectReturnCode::BadUserNamePassword, "CONNACK 4"),
        (ConnectReturnCode::ServiceUnavailable, "unavailable"),
        (ConnectReturnCode::RefusedProtocolVersion, "protocol"),
    ] {
        let (stream, mut hub) = pair();
        let (connected, ()) = tokio::join!(connect(stream, credentials(), &Timing::DEFAULT), async {
            hub.next().await.unwrap();
            say(&mut hub, Packet::ConnAck(ConnAck::new(code, false))).await;
        });
        let error = connected.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connack_that_never_comes_ends_in_a_timeout_of_that_stage() {
    let (stream, mut hub) = pair();
    let began = Instant::now();
    let (connected, _) = tokio::join!(connect(stream, credentials(), &Timing::DEFAULT), hub.next());
    assert!(matches!(connected, Err(ConnectError::Dial(DialError::Timeout { .. }))));
    assert_eq!(began.elapsed(), Timing::DEFAULT.connect);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_hangs_up_instead_of_answering_is_no_refusal() {
    let (stream, mut hub) = pair();
    let (connected, ()) = tokio::join!(connect(stream, credentials(), &Timing::DEFAULT), async {
        hub.next().await.unwrap();
        drop(hub);
    });
    assert!(matches!(connected, Err(ConnectError::Wire(WireError::Closed))));
}

#[tokio::test(start_paused = true)]
async fn garbage_in_place_of_mqtt_is_a_protocol_error() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    theirs.write_all("HTTP/1.1 400 Bad Request\r\n".repeat(8).as_bytes()).await.unwrap();
    let connected = connect(Box::new(ours), credentials(), &Timing::DEFAULT).await.map(|_| ());
    assert!(
        matches!(connected, Err(ConnectError::Wire(WireError::Protocol(_)) | ConnectError::Unexpected)),
        "{connected:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_twin_is_fetched_after_every_connection_and_after_every_hint() {
    let (mut session, mut hub) = begun().await;
    assert_eq!(answer_twin(&mut session, &mut hub, 200, "{}").await, Event::Twin(Bytes::from("{}")));
    let hint = Publish::new("$iothub/twin/PATCH/properties/desired/?$version=2", QoS::AtMostOnce, "{}");
    say(&mut hub, Packet::Publish(hint)).await;
    assert_eq!(hear(&mut session).await.unwrap(), Event::Nothing);
    assert_eq!(
        answer_twin(&mut session, &mut hub, 200, "{\"a\":1}").await,
        Event::Twin(Bytes::from("{\"a\":1}"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_throttled_twin_request_is_repeated_later_and_not_at_once() {
    let (mut session, mut hub) = begun().await;
    assert_eq!(answer_twin(&mut session, &mut hub, 429, "").await, Event::Nothing);
    let now = Instant::now();
    assert!(session.deadline(None) > now);
    tokio::time::advance(session.deadline(None) - now).await;
    assert_eq!(answer_twin(&mut session, &mut hub, 200, "{}").await, Event::Twin(Bytes::from("{}")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_somebody_elses_request_is_ignored() {
    let (mut session, mut hub) = begun().await;
    let stale = Publish::new("$iothub/twin/res/200/?$rid=g99", QoS::AtMostOnce, "{}");
    say(&mut hub, Packet::Publish(stale)).await;
    assert_eq!(hear(&mut session).await.unwrap(), Event::Nothing);
}

#[tokio::test(start_paused = true)]
async fn a_report_is_sent_once_and_again_only_when_it_changes() {
    let (mut session, mut hub) = begun().await;
    answer_twin(&mut session, &mut hub, 200, "{}").await;
    let report = json!({"keyRenewal": {"status": "idle"}});
    session.pursue(None, Some(&report), Instant::now()).unwrap();
    let Packet::Publish(patch) = exchange(&mut session, &mut hub).await else { panic!() };
    assert_eq!(patch.payload, report.to_string());
    let request = patch.topic.split_once("$rid=").unwrap().1;
    let topic = format!("$iothub/twin/res/204/?$rid={request}&$version=2");
    say(&mut hub, Packet::Publish(Publish::new(topic, QoS::AtMostOnce, ""))).await;
    hear(&mut session).await.unwrap();
    session.pursue(None, Some(&report), Instant::now()).unwrap();
    let changed = json!({"keyRenewal": {"status": "trying"}});
    session.pursue(None, Some(&changed), Instant::now()).unwrap();
    let Packet::Publish(patch) = exchange(&mut session, &mut hub).await else { panic!() };
    assert_eq!(patch.payload, changed.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_silent_hub_is_noticed_by_the_ping_that_it_owes() {
    let (mut session, mut hub) = begun().await;
    answer_twin(&mut session, &mut hub, 200, "{}").await;
    let began = Instant::now();
    let error = loop {
        tokio::time::advance(session.deadline(None) - Instant::now()).await;
        if let Err(error) = session.pursue(None, None, Instant::now()) {
            break error;
        }
    };
    assert!(matches!(error, SessionError::Silent { what: "a ping", .. }), "{error}");
    assert!(began.elapsed() <= Timing::DEFAULT.keep_alive + Timing::DEFAULT.answer);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_swallows_what_is_written_is_noticed_by_the_oldest_message() {
    let (mut session, mut hub) = begun().await;
    answer_twin(&mut session, &mut hub, 200, "{}").await;
    let mut outbox = Outbox::default();
    let began = Instant::now();
    let error = loop {
        // Writing goes on all the time; only answers count.
        let (acknowledged, _) = oneshot::channel();
        outbox.push(Message {
            topic: "devices/d/messages/events/".into(),
            payload: Bytes::new(),
            acknowledged,
            room: Room::uncounted(),
        });
        if let Err(error) = session.pursue(Some(&mut outbox), None, Instant::now()) {
            break error;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    };
    assert!(matches!(error, SessionError::Silent { what: "a message", .. }), "{error}");
    // And a little more for the bytes of forty messages on the slowest link.
    let elapsed = began.elapsed();
    assert!(
        elapsed >= Timing::DEFAULT.answer && elapsed <= Timing::DEFAULT.answer + Duration::from_secs(3),
        "{elapsed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn unacknowledged_messages_go_on_with_the_next_session_in_order_and_marked_as_duplicates() {
    let (mut session, mut hub) = begun().await;
    let mut outbox = Outbox::default();
    let mut acknowledgements = Vec::new();
    for number in 0..3 {
        let (acknowledged, acknowledgement) = oneshot::channel();
        acknowledgements.push(acknowledgement);
        let payload = Bytes::from(number.to_string());
        outbox.push(Message { topic: "t".into(), payload, acknowledged, room: Room::uncounted() });
    }
    session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
    let mut first = Vec::new();
    while first.len() < 3 {
        if let Packet::Publish(publish) = exchange(&mut session, &mut hub).await {
            if publish.topic == "t" {
                first.push(publish);
            }
        }
    }
    assert!(first.iter().all(|publish| !publish.dup && publish.qos == QoS::AtLeastOnce));
    say(&mut hub, Packet::PubAck(PubAck::new(first[0].pkid))).await;
    let Event::Acknowledged(packet_id) = hear(&mut session).await.unwrap() else { panic!() };
    outbox.acknowledge(packet_id);
    acknowledgements.remove(0).await.unwrap();

    let (mut session, mut hub) = begun().await;
    outbox.begin_session(true);
    session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
    let mut second = Vec::new();
    while second.len() < 2 {
        if let Packet::Publish(publish) = exchange(&mut session, &mut hub).await {
            if publish.topic == "t" {
                second.push(publish);
            }
        }
    }
    assert!(second.iter().all(|publish| publish.dup));
    assert_eq!(second.iter().map(|publish| publish.pkid).collect::<Vec<_>>(), [first[1].pkid, first[2].pkid]);
    outbox.acknowledge(second[0].pkid);
    outbox.acknowledge(second[1].pkid);
    assert_eq!(outbox.in_flight_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_message_on_a_slow_link_is_given_the_time_that_it_takes() {
    let (mut session, mut hub) = begun().await;
    answer_twin(&mut session, &mut hub, 200, "{}").await;
    let mut outbox = Outbox::default();
    let (acknowledged, _) = oneshot::channel();
    let payload = Bytes::from(vec![b'x'; 100_000]);
    outbox.push(Message { topic: "t".into(), payload, acknowledged, room: Room::uncounted() });
    session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
    let began = Instant::now();
    // A link of 1,000 bytes a second takes 100 s for it.
    tokio::time::advance(Timing::DEFAULT.answer + Duration::from_secs(99)).await;
    session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let error = session.pursue(Some(&mut outbox), None, Instant::now()).unwrap_err();
    assert!(matches!(error, SessionError::Silent { what: "a message", .. }), "{error} {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn large_messages_travel_one_by_one() {
    let (mut session, _hub) = begun().await;
    let mut outbox = Outbox::default();
    for _ in 0..3 {
        let (acknowledged, _) = oneshot::channel();
        outbox.push(Message {
            topic: "t".into(),
            payload: vec![0; 200_000].into(),
            acknowledged,
            room: Room::uncounted(),
        });
    }
    session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
    assert_eq!((outbox.in_flight_count(), outbox.waiting_count()), (1, 2));
    outbox.acknowledge(1);
    assert_eq!((outbox.in_flight_count(), outbox.waiting_count()), (0, 2));
}

/// A PUBLISH of the hub's that is larger than the agent reads.
fn too_large(topic: &str, qos: QoS) -> Packet {
    let mut publish = Publish::new(topic, qos, vec![b' '; PACKET_LEN_MAX]);
    publish.pkid = 9;
    Packet::Publish(publish)
}

/// Lets the hub say something long, and the session hear it meanwhile.
async fn pour(session: &mut Session, hub: &mut Wire<DuplexStream>, packet: Packet) -> Event {
    let mut event = None;
    let mut saying = std::pin::pin!(say(hub, packet));
    loop {
        tokio::select! {
            () = &mut saying => return event.unwrap(),
            received = session.next() => {
                event = Some(session.absorb(received.unwrap(), Instant::now()).unwrap());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_is_too_large_is_asked_for_again_after_the_next_hint_only_and_the_report_is_sent() {
    let (mut session, mut hub) = begun().await;
    for hints in 0..3 {
        session.pursue(None, None, Instant::now()).unwrap();
        let Packet::Publish(get) = exchange(&mut session, &mut hub).await else { panic!() };
        let request = get.topic.strip_prefix("$iothub/twin/GET/?$rid=").unwrap();
        let topic = format!("$iothub/twin/res/200/?$rid={request}");
        let event = pour(&mut session, &mut hub, too_large(&topic, QoS::AtMostOnce)).await;
        assert_eq!(event, Event::TwinTooLarge { len: PACKET_LEN_MAX });
        session.pursue(None, Some(&json!({"hints": hints})), Instant::now()).unwrap();
        let Packet::Publish(report) = exchange(&mut session, &mut hub).await else { panic!() };
        assert!(report.topic.starts_with("$iothub/twin/PATCH/properties/reported/"), "{}", report.topic);
        let request = report.topic.split_once("$rid=").unwrap().1;
        say(
            &mut hub,
            Packet::Publish(Publish::new(
                format!("$iothub/twin/res/204/?$rid={request}"),
                QoS::AtMostOnce,
                "",
            )),
        )
        .await;
        hear(&mut session).await.unwrap();
        // Nothing else is under way: the ping is the next thing that the session does.
        let before = session.deadline(None);
        assert!(before > Instant::now() + Timing::DEFAULT.answer);
        session.pursue(None, Some(&json!({"hints": hints})), Instant::now()).unwrap();
        assert_eq!(session.deadline(None), before);
        // The hint itself may be too large.
        let topic = "$iothub/twin/PATCH/properties/desired/?$version=2";
        assert_eq!(pour(&mut session, &mut hub, too_large(topic, QoS::AtMostOnce)).await, Event::Nothing);
    }
    assert_eq!(answer_twin(&mut session, &mut hub, 200, "{}").await, Event::Twin(Bytes::from("{}")));
}

#[tokio::test(start_paused = true)]
async fn a_method_call_that_is_too_large_is_answered_and_a_message_that_is_too_large_is_acknowledged() {
    let (mut session, mut hub) = begun().await;
    let call = too_large("$iothub/methods/POST/keyRenewal/?$rid=7", QoS::AtMostOnce);
    assert_eq!(pour(&mut session, &mut hub, call).await, Event::Nothing);
    let Packet::Publish(answer) = exchange(&mut session, &mut hub).await else { panic!() };
    assert_eq!(answer.topic, "$iothub/methods/res/413/?$rid=7");
    for topic in ["$iothub/methods/POST/keyRenewal/?$rid=8", "devices/d/messages/devicebound/"] {
        assert_eq!(pour(&mut session, &mut hub, too_large(topic, QoS::AtLeastOnce)).await, Event::Nothing);
        assert_eq!(exchange(&mut session, &mut hub).await, Packet::PubAck(PubAck::new(9)));
        if topic.contains("methods") {
            assert!(matches!(exchange(&mut session, &mut hub).await, Packet::Publish(_)));
        }
    }
    answer_twin(&mut session, &mut hub, 200, "{}").await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_waited_for_as_long_as_a_large_packet_comes_in_before_it() {
    for topic in ["$iothub/twin/res/200/?$rid=g1", "$iothub/methods/POST/m/?$rid=1"] {
        let (mut session, mut stream) = begun_on_stream().await;
        // A request and a message are without an answer, and the link is slow.
        let mut outbox = Outbox::default();
        let (acknowledged, _) = oneshot::channel();
        outbox.push(Message {
            topic: "t".into(),
            payload: Bytes::new(),
            acknowledged,
            room: Room::uncounted(),
        });
        session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
        let mut bytes = bytes::BytesMut::new();
        too_large(topic, QoS::AtMostOnce).write(&mut bytes, usize::MAX).unwrap();
        let pause = Timing::DEFAULT.answer - Duration::from_secs(1);
        let began = Instant::now();
        for piece in bytes.chunks(60_000) {
            stream.write_all(piece).await.unwrap();
            while let Some(received) = session.next().now_or_never() {
                session.absorb(received.unwrap(), Instant::now()).unwrap();
            }
            tokio::time::advance(pause).await;
            session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
            assert!(session.deadline(Some(&outbox)) > Instant::now());
        }
        assert!(began.elapsed() > Timing::DEFAULT.answer * 6);
        // Then the hub has its time again, and no more.
        tokio::time::advance(pause).await;
        session.pursue(Some(&mut outbox), None, Instant::now()).unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        let error = session.pursue(Some(&mut outbox), None, Instant::now()).unwrap_err();
        assert!(matches!(error, SessionError::Silent { .. }), "{error}");
    }
}
