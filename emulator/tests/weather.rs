//! Bad weather on demand: stalls, latency, throttles, a wrong clock, and answers that fail or get lost.

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
use rumqttc::{Packet, Publish, QoS};
use serde_json::{Value, json};
use support::{Answer, Client, PATIENCE, TestHub, connect, connect_until, publish, unix_secs};
use tokio::time::timeout;

/// Long enough for an answer that is coming, short enough to wait for one that isn't.
const A_WHILE: Duration = Duration::from_millis(300);
const API: &str = "api-version=2021-04-12";

async fn says_nothing(client: &mut Client) -> bool {
    timeout(A_WHILE, client.receive()).await.is_err()
}

async fn now_ms(hub: &TestHub) -> f64 {
    hub.look("throttles").await["nowMs"].as_f64().unwrap()
}

async fn read_device(hub: &TestHub) -> Answer {
    hub.call(Method::GET, "/devices/d1", Value::Null).await
}

async fn end_faults(hub: &TestHub) -> Value {
    hub.request(Method::DELETE, "/$emulator/faults", &[], Value::Null).await.expect(200)
}

#[tokio::test]
async fn a_stalled_connection_stays_open_and_silent_until_the_stall_is_lifted() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let other = hub.create("d2").await;
    let mut stalled = hub.connect("d1", &keys.primary).await;
    let mut free = hub.connect("d2", &other.primary).await;
    hub.set_faults(json!({"stalled": [{"identity": "d1"}]})).await;
    stalled.send(Packet::PingReq).await;
    assert!(says_nothing(&mut stalled).await);
    assert!(free.answers().await);
    assert_eq!(hub.spans("d1").await[0]["closedBy"], Value::Null);
    hub.set_faults(json!({"stalled": []})).await;
    assert_eq!(stalled.receive().await, Some(Packet::PingResp));

    // What ends it meanwhile is heard afterwards; a connection made later is not stalled.
    hub.set_faults(json!({"stalled": [{}]})).await;
    let mut later = hub.connect("d1", &keys.primary).await;
    assert!(later.answers().await);
    assert_eq!(hub.spans("d1").await[0]["closedBy"], "takeover");
    assert!(says_nothing(&mut stalled).await);
    free.send(Packet::PingReq).await;
    assert!(says_nothing(&mut free).await);
    end_faults(&hub).await;
    assert!(stalled.is_closed().await);
    assert_eq!(free.receive().await, Some(Packet::PingResp));

    hub.set_faults(json!({"stalled": [{"identity": "d1", "newToo": true}]})).await;
    let mut new = hub.open().await;
    new.send(Packet::Connect(connect("d1", &keys.primary))).await;
    assert!(says_nothing(&mut new).await);
    hub.operate("cut", json!({"identity": "d1"})).await.expect(200);
    assert!(new.is_closed().await, "a cut goes through a stall");
}

#[tokio::test]
async fn every_answer_is_late_by_the_latency_and_none_overtakes_another() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    hub.set_faults(json!({"latencyMs": 250, "latencyJitterMs": 100, "seed": 5})).await;
    let began = now_ms(&hub).await;
    client.send_at_once((1..=20).map(|pkid| publish("devices/d1/messages/events/", "x", pkid))).await;
    for pkid in 1..=20 {
        match client.receive().await {
            Some(Packet::PubAck(ack)) => assert_eq!(ack.pkid, pkid),
            other => panic!("{other:?}"),
        }
    }
    let took = now_ms(&hub).await - began;
    // One after the other they would take five seconds.
    assert!((250.0..5000.0).contains(&took), "{took} ms for twenty answers that are late at one time");
    let began = now_ms(&hub).await;
    read_device(&hub).await.expect(200);
    let took = now_ms(&hub).await - began;
    assert!(took >= 250.0, "{took}");
    let began = now_ms(&hub).await;
    drop(hub.connect("d1", &keys.primary).await);
    let took = now_ms(&hub).await - began;
    assert!(took >= 250.0, "{took}");
    assert_eq!(end_faults(&hub).await["latencyMs"], 0);
    let is_quick = async || {
        let began = now_ms(&hub).await;
        read_device(&hub).await.expect(200);
        now_ms(&hub).await - began < 250.0
    };
    // A busy machine may be as slow by itself, now and then.
    let quick = async { while !is_quick().await {} };
    timeout(PATIENCE, quick).await.expect("the latency has ended");
}

#[tokio::test]
async fn the_same_seed_brings_the_same_failures() {
    let hub = TestHub::start_with(|options| {
        options.faults.insert("seed".to_owned(), 42.into());
    })
    .await;
    hub.create("d1").await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        hub.set_faults(
            json!({"seed": 42, "failRequests": [{"path": "/devices/", "code": 500_001, "probability": 0.5}]}),
        )
        .await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(read_device(&hub).await.status);
        }
        runs.push(statuses);
    }
    assert_eq!(runs.first(), runs.last());
    assert!(runs.concat().contains(&200) && runs.concat().contains(&500), "{runs:?}");
}

#[tokio::test]
async fn requests_fail_as_asked_and_as_often() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    hub.set_faults(json!({"failRequests": [
        {"method": "GET", "path": "/devices/d1", "code": 429_001, "count": 1, "retryAfterSecs": 7},
        {"method": "GET", "path": "/devices/", "code": 503_001, "count": 2},
    ]}))
    .await;
    hub.call(Method::GET, "/twins/d1", Value::Null).await.expect(200);
    let throttled = read_device(&hub).await;
    assert_eq!(throttled.header("retry-after"), Some("7"));
    throttled.expect_error(429, "ThrottlingException");
    for _ in 0..2 {
        let unavailable = read_device(&hub).await;
        assert_eq!(unavailable.header("retry-after"), None);
        unavailable.expect_error(503, "ServiceUnavailable");
    }
    read_device(&hub).await.expect(200);
    assert_eq!(hub.look("faults").await["failRequests"], json!([]));
    let unknown = json!({"failRequests": [{"path": "/", "code": 500_001, "cout": 2}]});
    let error = hub.operate("faults", unknown).await.expect_error(400, "ArgumentInvalid");
    assert!(error["Message"].as_str().unwrap().contains("cout"), "{error}");
}

#[tokio::test]
async fn an_answer_can_be_lost_after_the_change_was_made() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let path = format!("/devices/keys/regenerate?{API}");
    let headers = [("authorization", hub.policy_token("iothubowner"))];
    let body = json!({"policyKey": "primaryKey", "devices": [{"id": "d1"}]});
    for (done, changed) in [(false, false), (true, true)] {
        hub.set_faults(
            json!({"failRequests": [{"path": "/devices/keys", "code": 0, "done": done, "count": 1}]}),
        )
        .await;
        let answer = hub.try_request(Method::POST, &path, &headers, body.clone()).await;
        assert!(answer.is_err(), "{answer:?}");
        let now = support::Keys::of(&read_device(&hub).await.expect(200));
        assert_eq!((now.primary != keys.primary, now.secondary != keys.secondary), (changed, false));
    }
    hub.set_faults(json!({"failRequests": [{"path": "/devices/d1", "code": 500_001, "done": true}]})).await;
    let answer = hub.call_if(Method::DELETE, "/devices/d1", "*", Value::Null).await;
    answer.expect_error(500, "ServerError");
    end_faults(&hub).await;
    read_device(&hub).await.expect_error(404, "DeviceNotFound");
}

#[tokio::test]
async fn twin_answers_fail_or_are_left_out() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("$iothub/twin/res/#", QoS::AtMostOnce).await;
    let (read, report) = ("$iothub/twin/GET/?$rid=1", "$iothub/twin/PATCH/properties/reported/?$rid=2");
    hub.set_faults(json!({"failTwinRequests": [
        {"request": "read", "code": 503_001, "count": 1},
        {"identity": "d1", "request": "report", "code": 0, "done": true, "count": 1},
        {"identity": "d2", "code": 500_001},
    ]}))
    .await;
    let (topic, body) = client.request_twin(read, "").await;
    assert_eq!((topic.as_str(), &body["errorCode"]), ("$iothub/twin/res/503/?$rid=1", &json!(503_001)));
    client.send(Packet::Publish(Publish::new(report, QoS::AtMostOnce, r#"{"a":1}"#))).await;
    assert!(client.answers().await, "an answer that was to be left out");
    let (topic, body) = client.request_twin(read, "").await;
    assert_eq!((topic.as_str(), &body["reported"]["a"]), ("$iothub/twin/res/200/?$rid=1", &json!(1)));
}

#[tokio::test]
async fn requests_over_the_limit_wait_and_are_then_refused_with_429() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    hub.request(Method::DELETE, "/$emulator/throttles", &[], Value::Null).await.expect(204);
    // One in three seconds: however slow this machine is, some come sooner.
    let limits = json!({"tier": "S1", "burstSecs": 0, "queueSecs": 0, "retryAfter": true});
    hub.set_faults(json!({"throttles": limits})).await;
    let query = json!({"query": "SELECT * FROM devices"});
    let mut statuses = Vec::new();
    let refused = loop {
        let answer = hub.call(Method::POST, "/devices/query", query.clone()).await;
        match answer.status {
            429 => break answer,
            other => statuses.push(other),
        }
        assert!(statuses.len() < 50, "never refused");
    };
    assert!(matches!(refused.header("retry-after"), Some("1" | "2" | "3")), "{refused:?}");
    refused.expect_error(429, "ThrottlingException");
    read_device(&hub).await.expect(200);
    let seen = hub.look("throttles").await;
    assert_eq!(seen["categories"]["queries"]["refused"], 1);
    assert_eq!(seen["categories"]["registry"]["operations"], 1);
    assert_eq!(seen["throttles"]["tier"], "S1");

    // With a queue they are late instead: 20 a minute and unit are one in 15 ms with 200 units.
    hub.set_faults(json!({"throttles": {"tier": "S1", "units": 200, "burstSecs": 0}})).await;
    for _ in 0..3 {
        assert_ne!(hub.call(Method::POST, "/devices/query", query.clone()).await.status, 429);
    }
    hub.set_faults(json!({"throttles": null})).await;
    assert_eq!(hub.look("throttles").await["throttles"], Value::Null);
}

#[tokio::test]
async fn twin_requests_over_the_limit_are_answered_with_429() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("$iothub/twin/res/#", QoS::AtMostOnce).await;
    hub.set_faults(json!({"throttles": {"tier": "S1", "burstSecs": 0, "queueSecs": 0}})).await;
    let read = || Packet::Publish(Publish::new("$iothub/twin/GET/?$rid=1", QoS::AtMostOnce, ""));
    client.send_at_once((0..100).map(|_| read())).await;
    let mut statuses = Vec::new();
    for _ in 0..100 {
        let answer = client.receive_publish().await;
        statuses.push(answer.topic.split('/').nth(3).unwrap().to_owned());
    }
    assert_eq!(statuses.first().unwrap(), "200");
    assert!(statuses.iter().any(|status| status == "429"), "{statuses:?}");
    // Telemetry over the limit ends the connection, since MQTT has no word for it.
    client.send_at_once((1..=200).map(|pkid| publish("devices/d1/messages/events/", "x", pkid))).await;
    while client.receive().await.is_some() {}
    assert_eq!(hub.spans("d1").await.first().unwrap()["closedBy"], "throttled");
}

#[tokio::test]
async fn connections_over_the_limit_get_a_late_connack_or_none() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.set_faults(json!({"throttles": {"tier": "S1", "burstSecs": 0, "onConnect": "silence"}})).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(hub.open().await);
    }
    for client in &mut clients {
        client.send(Packet::Connect(connect("d1", &keys.primary))).await;
    }
    let mut silent = 0;
    for client in &mut clients {
        silent += usize::from(says_nothing(client).await);
    }
    assert!((1..10).contains(&silent), "{silent} of ten within 10 ms");
    let counted = hub.look("throttles").await["categories"]["connections"].clone();
    assert_eq!(counted["requests"], 10);
    hub.set_faults(json!({"throttles": {"tier": "S1", "burstSecs": 0}})).await;
    for _ in 0..5 {
        assert!(hub.connect("d1", &keys.primary).await.answers().await);
    }
}

#[tokio::test]
async fn the_hubs_clock_can_be_wrong() {
    let hub = TestHub::start_with(|options| options.token_grace = Duration::from_secs(600)).await;
    let keys = hub.create("d1").await;
    let mut client = hub.try_connect(connect_until("d1", &keys.primary, unix_secs() + 60)).await.unwrap().0;
    let year = 366_i64 * 24 * 3600;
    hub.set_faults(json!({"clockOffsetSecs": 1200})).await;
    assert!(client.is_closed().await, "its token is over for twenty minutes");
    assert_eq!(hub.spans("d1").await.first().unwrap()["closedBy"], "expired");
    assert!(hub.try_connect(connect_until("d1", &keys.primary, unix_secs() + 60)).await.is_err());
    assert_eq!(hub.refusals("d1").await, ["expired"]);
    hub.set_faults(json!({"clockOffsetSecs": -30 * year})).await;
    let answer = read_device(&hub).await;
    let date = answer.header("date").unwrap().to_owned();
    answer.expect(200);
    let years: i64 = date.split(' ').nth(3).unwrap().parse().unwrap();
    assert!(years < 2000, "{date}");
    let change = json!({"properties": {"desired": {"a": 1}}});
    let twin = hub.call(Method::PATCH, "/twins/d1", change).await.expect(200);
    let updated = twin["properties"]["desired"]["$metadata"]["a"]["$lastUpdated"].as_str().unwrap();
    assert!(updated.starts_with("19"), "{updated}");
    hub.set_faults(json!({"clockOffsetSecs": 99 * year})).await;
    let headers = [("authorization", hub.policy_token("iothubowner"))];
    let answer = hub.request(Method::GET, &format!("/devices/d1?{API}"), &headers, Value::Null).await;
    answer.expect_error(401, "IotHubUnauthorizedAccess");
    end_faults(&hub).await;
    read_device(&hub).await.expect(200);
}

#[tokio::test]
async fn faults_of_the_options_are_in_force_from_the_start_and_wrong_ones_are_named() {
    let hub = TestHub::start_with(|options| {
        options.faults.insert("muteConnack".to_owned(), true.into());
        options.faults.insert("clockOffsetSecs".to_owned(), (-1_000_000_000).into());
    })
    .await;
    assert_eq!(hub.look("faults").await["muteConnack"], true);
    let date = read_device(&hub).await.header("date").unwrap().to_owned();
    assert!(date.contains(" 199"), "{date}");
    let dir = tempfile::tempdir().unwrap();
    let mut options = twinkey_emulator::Options { data_dir: dir.path().into(), ..Default::default() };
    options.faults.insert("muteConack".to_owned(), true.into());
    let error = twinkey_emulator::start(options).await.unwrap_err();
    assert!(error.to_string().contains("muteConack"), "{error}");
}
