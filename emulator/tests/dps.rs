//! Registration with the provisioning service, and the device that comes of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use rumqttc::{Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubscribeReasonCode};
use serde_json::{Value, json};
use sha2::Sha256;
use support::{Client, Keys, TestHub, token, unix_secs};

const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=r1";
const ANSWERS: &str = "$dps/registrations/res/#";
/// The example of the documentation, "Symmetric key attestation".
const GROUP_KEY: &str =
    "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
const GROUP_MEMBER: &str = "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6";
const MEMBER_KEY: &str = "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=";

async fn enroll(hub: &TestHub, path: &str, body: Value) -> Value {
    hub.request(Method::PUT, &format!("/$emulator/{path}"), &[], body).await.expect(200)
}

fn keys_of(enrollment: &Value) -> Keys {
    let key = |name| enrollment["attestation"]["symmetricKey"][name].as_str().unwrap().to_owned();
    Keys { primary: key("primaryKey"), secondary: key("secondaryKey") }
}

fn with_keys(primary: &str, secondary: &str) -> Value {
    json!({"type": "symmetricKey", "symmetricKey": {"primaryKey": primary, "secondaryKey": secondary}})
}

fn derive(key: &str, id: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).unwrap()).unwrap();
    mac.update(id.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

fn connect_with(hub: &TestHub, id: &str, token: &str) -> Connect {
    let mut connect = Connect::new(id);
    let scope = &hub.emulator.ready().id_scope;
    let user = format!("{scope}/registrations/{id}/api-version=2019-03-31&ClientVersion=test%2F1");
    connect.set_login(user, token);
    connect
}

fn dps_token(hub: &TestHub, id: &str, key: &str, policy: Option<&str>) -> String {
    let resource = format!("{}/registrations/{id}", hub.emulator.ready().id_scope);
    token(&resource, key, unix_secs() + 3600, policy)
}

async fn connect(hub: &TestHub, id: &str, key: &str) -> Client {
    let token = dps_token(hub, id, key, Some("registration"));
    let (mut client, present) = hub.try_connect(connect_with(hub, id, &token)).await.unwrap();
    assert!(!present);
    client.subscribe(ANSWERS, QoS::AtMostOnce).await;
    client
}

async fn ask(client: &mut Client, topic: &str, body: &Value) -> (String, Value) {
    client.request_twin(topic, &body.to_string()).await
}

/// Registers, and asks until there is an outcome; the registration state.
async fn register(client: &mut Client, body: &Value) -> Value {
    let (topic, answer) = ask(client, REGISTER, body).await;
    assert_eq!(topic, "$dps/registrations/res/202/?$rid=r1&retry-after=3", "{answer}");
    let operation = answer["operationId"].as_str().unwrap();
    assert_eq!(answer, json!({"operationId": operation, "status": "assigning"}));
    let poll = format!("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=p&operationId={operation}");
    let (topic, answer) = client.request_twin(&poll, " ").await;
    assert_eq!(topic, "$dps/registrations/res/202/?$rid=p&retry-after=3", "{answer}");
    let (topic, answer) = client.request_twin(&poll, " ").await;
    assert_eq!(topic, "$dps/registrations/res/200/?$rid=p", "{answer}");
    assert_eq!(answer["operationId"], operation);
    assert_eq!(answer["status"], answer["registrationState"]["status"]);
    answer["registrationState"].clone()
}

#[tokio::test]
async fn a_device_is_assigned_to_the_hub_with_its_enrolments_keys_and_twin() {
    let hub = TestHub::start().await;
    let body = json!({
        "registrationId": "r1",
        "deviceId": "D-1",
        "initialTwin": {"tags": {"site": "roof"}, "properties": {"desired": {"rate": 5}}},
        "capabilities": {"iotEdge": true},
        "payload": {"from": "operator"},
    });
    let keys = keys_of(&enroll(&hub, "enrollments/r1", body).await);
    assert_eq!(&keys.primary[33..37], "AIoT");
    let mut client = connect(&hub, "r1", &keys.secondary).await;
    let asked = json!({"registrationId": "r1", "payload": {"from": "device"}});
    let state = register(&mut client, &asked).await;
    let etag = state["etag"].as_str().unwrap();
    let (created, updated) = (&state["createdDateTimeUtc"], &state["lastUpdatedDateTimeUtc"]);
    assert_eq!(
        state,
        json!({
            "registrationId": "r1", "deviceId": "D-1", "assignedHub": "localhost", "status": "assigned",
            "substatus": "initialAssignment", "createdDateTimeUtc": created,
            "lastUpdatedDateTimeUtc": updated, "etag": etag, "payload": {"from": "operator"},
        })
    );
    let seen = hub.look("registrations/r1").await;
    assert_eq!(seen["requestPayload"], json!({"from": "device"}));
    let identity = hub.identity("D-1").await;
    assert_eq!((Keys::of(&identity), &identity["capabilities"]["iotEdge"]), (keys.clone(), &json!(true)));
    let twin = hub.call(Method::GET, "/twins/D-1", Value::Null).await.expect(200);
    assert_eq!((&twin["tags"]["site"], &twin["properties"]["desired"]["rate"]), (&json!("roof"), &json!(5)));
    assert!(hub.connect("D-1", &keys.primary).await.answers().await);
}

#[tokio::test]
async fn registering_again_changes_nothing_until_the_device_is_gone_or_its_keys_differ() {
    let hub = TestHub::start().await;
    let twin = json!({"properties": {"desired": {"rate": 5}}});
    let keys = keys_of(&enroll(&hub, "enrollments/r1", json!({"initialTwin": twin})).await);
    let mut client = connect(&hub, "r1", &keys.primary).await;
    let first = register(&mut client, &json!({"registrationId": "r1"})).await;
    let mut device = hub.connect("r1", &keys.primary).await;
    let change = json!({"properties": {"desired": {"rate": 7}}});
    hub.call(Method::PATCH, "/twins/r1", change).await.expect(200);
    let before = hub.identity("r1").await["etag"].clone();
    let second = register(&mut client, &json!({"registrationId": "r1"})).await;
    assert_eq!(
        (&second["createdDateTimeUtc"], &second["substatus"]),
        (&first["createdDateTimeUtc"], &first["substatus"])
    );
    assert_eq!(hub.identity("r1").await["etag"], before);
    assert!(device.answers().await, "a registration disturbs the device's connection");
    let twin = hub.call(Method::GET, "/twins/r1", Value::Null).await.expect(200);
    assert_eq!(twin["properties"]["desired"]["rate"], 7, "the initial twin is for new devices");
    // Keys that the hub was given meanwhile are replaced, or stay if so set.
    let regenerate = json!({"policyKey": "both", "devices": [{"id": "r1"}]});
    for (setting, stay) in [("keep", true), ("update", false)] {
        hub.operate("dps", json!({"keysOnReregistration": setting})).await.expect(200);
        hub.call(Method::POST, "/devices/keys/regenerate", regenerate.clone()).await.expect(200);
        let regenerated = Keys::of(&hub.identity("r1").await);
        register(&mut client, &json!({"registrationId": "r1"})).await;
        let expected = if stay { &regenerated } else { &keys };
        assert_eq!(&Keys::of(&hub.identity("r1").await), expected, "{setting}");
    }
    hub.call_if(Method::DELETE, "/devices/r1", "*", Value::Null).await.expect(204);
    let again = register(&mut client, &json!({})).await;
    assert_eq!(again["substatus"], "reprovisionedToInitialAssignment");
    assert_eq!(Keys::of(&hub.identity("r1").await), keys);
}

#[tokio::test]
async fn devices_of_a_group_register_with_derived_keys() {
    let hub = TestHub::start().await;
    let second = STANDARD.encode([7; 64]);
    let body = json!({"attestation": with_keys(GROUP_KEY, &second), "initialTwin": {"tags": {"g": 1}}});
    enroll(&hub, "enrollmentGroups/other", json!({})).await;
    enroll(&hub, "enrollmentGroups/roofs", body).await;
    assert_eq!(derive(GROUP_KEY, GROUP_MEMBER), MEMBER_KEY);
    let second_key = derive(&second, GROUP_MEMBER);
    for key in [MEMBER_KEY, &second_key] {
        let mut client = connect(&hub, GROUP_MEMBER, key).await;
        let state = register(&mut client, &json!({"registrationId": GROUP_MEMBER})).await;
        assert_eq!((&state["status"], &state["deviceId"]), (&json!("assigned"), &json!(GROUP_MEMBER)));
    }
    let expected = Keys { primary: MEMBER_KEY.to_owned(), secondary: second_key };
    assert_eq!(Keys::of(&hub.identity(GROUP_MEMBER).await), expected);
    // The group's key itself opens nothing, nor one that was derived for somebody else.
    for (id, key) in [(GROUP_MEMBER, GROUP_KEY), ("sn-008", MEMBER_KEY)] {
        let mut client = connect(&hub, id, key).await;
        let (topic, _) = ask(&mut client, REGISTER, &json!({"registrationId": id})).await;
        assert_eq!(topic, "$dps/registrations/res/401/?$rid=r1");
    }
    // A single device of a group is locked out by an individual enrolment that is disabled.
    let body = json!({"attestation": with_keys(MEMBER_KEY, MEMBER_KEY), "provisioningStatus": "disabled"});
    enroll(&hub, &format!("enrollments/{GROUP_MEMBER}"), body).await;
    let mut client = connect(&hub, GROUP_MEMBER, MEMBER_KEY).await;
    let state = register(&mut client, &json!({"registrationId": GROUP_MEMBER})).await;
    assert_eq!((&state["status"], &state["assignedHub"]), (&json!("disabled"), &Value::Null));
    // One with other keys hides the group too.
    enroll(&hub, &format!("enrollments/{GROUP_MEMBER}"), json!({"attestation": with_keys(&second, &second)}))
        .await;
    let (topic, _) = ask(&mut client, REGISTER, &json!({"registrationId": GROUP_MEMBER})).await;
    assert_eq!(topic, "$dps/registrations/res/401/?$rid=r1");
}

#[tokio::test]
async fn a_wrong_token_connects_and_hears_401_with_its_request() {
    let hub = TestHub::start().await;
    let keys = keys_of(&enroll(&hub, "enrollments/r1", json!({})).await);
    let scope = hub.emulator.ready().id_scope.clone();
    let resource = format!("{scope}/registrations/r1");
    let hour = unix_secs() + 3600;
    let cases = [
        (dps_token(&hub, "r1", &keys.primary, None), "202"),
        (dps_token(&hub, "r1", &keys.primary, Some("registration")), "202"),
        (dps_token(&hub, "r1", &keys.primary, Some("iothubowner")), "401"),
        (token(&resource, &keys.primary, unix_secs() - 301, None), "401"),
        (token(&format!("{scope}/registrations/r2"), &keys.primary, hour, None), "401"),
        (token("localhost/devices/r1", &keys.primary, hour, None), "401"),
        (token(&resource, &STANDARD.encode([1; 32]), hour, None), "401"),
    ];
    for (token, status) in cases {
        let (mut client, _) = hub.try_connect(connect_with(&hub, "r1", &token)).await.unwrap();
        client.subscribe(ANSWERS, QoS::AtMostOnce).await;
        let (topic, body) = ask(&mut client, REGISTER, &json!({"registrationId": "r1"})).await;
        assert!(topic.starts_with(&format!("$dps/registrations/res/{status}/?$rid=r1")), "{topic} {body}");
        if status == "401" {
            assert_eq!((&body["errorCode"], &body["message"]), (&json!(401002), &json!("Unauthorized")));
        }
    }
    let mut client = connect(&hub, "unknown", &keys.primary).await;
    let (topic, _) = ask(&mut client, REGISTER, &json!({"registrationId": "unknown"})).await;
    assert_eq!(topic, "$dps/registrations/res/401/?$rid=r1");
}

#[tokio::test]
async fn a_connect_that_names_no_registration_is_refused_with_5() {
    let hub = TestHub::start().await;
    let scope = hub.emulator.ready().id_scope.clone();
    let good = dps_token(&hub, "r1", &STANDARD.encode([1; 32]), None);
    for (id, user, token) in [
        ("r2", format!("{scope}/registrations/r1/api-version=2019-03-31"), good.as_str()),
        ("r1", "0ne99999999/registrations/r1/api-version=2019-03-31".to_owned(), good.as_str()),
        ("r1", format!("{scope}/registrations/r1/ClientVersion=x"), good.as_str()),
        ("r1", format!("{scope}/registrations/r1/api-version=2019-03-31"), "no token"),
    ] {
        let mut connect = Connect::new(id);
        connect.set_login(user.as_str(), token);
        let code = hub.try_connect(connect).await.map(|_| ());
        assert_eq!(code, Err(ConnectReturnCode::NotAuthorized), "{user}");
        assert_eq!(hub.refusals(id).await.last().map(String::as_str), Some("malformed"), "{user}");
    }
}

#[tokio::test]
async fn failures_throttling_and_bad_requests_are_told() {
    let hub = TestHub::start().await;
    let failure = json!({"errorCode": 400207, "errorMessage": "custom allocation failed"});
    let keys = keys_of(&enroll(&hub, "enrollments/r1", json!({"failure": failure})).await);
    let mut client = connect(&hub, "r1", &keys.primary).await;
    let state = register(&mut client, &json!({"registrationId": "r1"})).await;
    assert_eq!(
        (&state["status"], &state["errorCode"], &state["errorMessage"]),
        (&json!("failed"), &json!(400207), &json!("custom allocation failed"))
    );
    hub.call(Method::GET, "/devices/r1", Value::Null).await.expect(404);
    hub.operate("dps", json!({"throttleNext": 1, "retryAfterSecs": 9})).await.expect(200);
    let (topic, _) = ask(&mut client, REGISTER, &json!({"registrationId": "r1"})).await;
    assert_eq!(topic, "$dps/registrations/res/429/?$rid=r1&retry-after=9");
    let (topic, _) = ask(&mut client, REGISTER, &json!({"registrationId": "other"})).await;
    assert_eq!(topic, "$dps/registrations/res/400/?$rid=r1");
    let (topic, _) = client.request_twin(REGISTER, &"[".repeat(10_000)).await;
    assert_eq!(topic, "$dps/registrations/res/400/?$rid=r1");
    let poll = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=p&operationId=none";
    assert_eq!(client.request_twin(poll, "").await.0, "$dps/registrations/res/404/?$rid=p");
    hub.operate("dps", json!({"retryAfterSeks": 9})).await.expect_error(400, "ArgumentInvalid");
    hub.operate("dps", json!({"retryAfterSecs": 1_000_000})).await.expect_error(400, "ArgumentInvalid");
}

#[tokio::test]
async fn answers_come_with_the_granted_quality_and_forbidden_packets_close() {
    let hub = TestHub::start().await;
    let keys = keys_of(&enroll(&hub, "enrollments/r1", json!({})).await);
    let mut client = connect(&hub, "r1", &keys.primary).await;
    let suback = client.subscribe(ANSWERS, QoS::ExactlyOnce).await;
    assert_eq!(suback.return_codes, [SubscribeReasonCode::Success(QoS::AtLeastOnce)]);
    client.publish(REGISTER, r#"{"registrationId":"r1"}"#).await;
    let answer = client.receive_publish().await;
    assert_eq!(answer.qos, QoS::AtLeastOnce);
    client.send(Packet::PubAck(PubAck::new(answer.pkid))).await;
    assert!(client.answers().await);
    let subscribe = |filter: &str| {
        let mut subscribe = rumqttc::Subscribe::new(filter, QoS::AtMostOnce);
        subscribe.pkid = 1;
        Packet::Subscribe(subscribe)
    };
    let mut qos_2 = Publish::new(REGISTER, QoS::ExactlyOnce, "{}");
    qos_2.pkid = 1;
    let large = Publish::new(REGISTER, QoS::AtMostOnce, "x".repeat(20_000));
    for packet in [
        Packet::Publish(qos_2),
        Packet::Publish(large),
        support::publish("$iothub/twin/GET/?$rid=1", "", 1),
        subscribe("$iothub/twin/res/#"),
        Packet::Connect(Connect::new("r1")),
        Packet::PingResp,
    ] {
        let mut client = connect(&hub, "r1", &keys.primary).await;
        client.send(packet).await;
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn enrolments_are_written_read_and_deleted() {
    let hub = TestHub::start().await;
    let ask = async |method: Method, path: &str, headers: &[(&str, String)], body: Value| {
        hub.request(method, &format!("/$emulator/{path}"), headers, body).await
    };
    let first =
        enroll(&hub, "enrollments/R1", json!({"attestation": with_keys(MEMBER_KEY, MEMBER_KEY)})).await;
    let read = ask(Method::GET, "enrollments/r1", &[], Value::Null).await.expect(200);
    assert_eq!((read["registrationId"].as_str(), &read), (Some("R1"), &first));
    // Keys stay unless they are given; an etag that is no longer the current one is refused.
    let stale = [("if-match", "\"stale\"".to_owned())];
    ask(Method::PUT, "enrollments/r1", &stale, json!({})).await.expect_error(412, "PreconditionFailed");
    let second = enroll(&hub, "enrollments/R1", json!({"provisioningStatus": "disabled"})).await;
    assert_eq!(
        (&second["attestation"], &second["provisioningStatus"]),
        (&first["attestation"], &json!("disabled"))
    );
    assert_ne!(second["etag"], first["etag"]);
    assert_eq!(ask(Method::GET, "enrollments", &[], Value::Null).await.expect(200), json!([second]));
    assert_eq!(ask(Method::GET, "enrollmentGroups", &[], Value::Null).await.expect(200), json!([]));
    ask(Method::DELETE, "enrollments/r1", &[], Value::Null).await.expect(204);
    ask(Method::GET, "enrollments/r1", &[], Value::Null).await.expect_error(404, "EnrollmentNotFound");
    ask(Method::DELETE, "enrollmentGroups/g", &[], Value::Null).await.expect_error(404, "EnrollmentNotFound");
    ask(Method::GET, "enrollments/r1/x", &[], Value::Null).await.expect_error(404, "NotFound");
    for n in 0..100 {
        enroll(&hub, &format!("enrollmentGroups/g{n}"), json!({})).await;
    }
    ask(Method::PUT, "enrollmentGroups/one-too-many", &[], json!({}))
        .await
        .expect_error(413, "TooManyDevices");
}
