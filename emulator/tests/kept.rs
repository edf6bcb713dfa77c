//! State kept on disk: what a hub knew, the next one in the same directory knows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use reqwest::Method;
use rumqttc::{Packet, QoS};
use serde_json::{Value, json};
use support::{Keys, TestHub};
use twinkey_emulator::{EmulatorError, Options, start};

async fn keeping() -> TestHub {
    TestHub::start_with(|options| options.keep_state = true).await
}

fn options(dir: &Path) -> Options {
    Options { data_dir: dir.to_owned(), keep_state: true, ..Options::default() }
}

#[tokio::test]
async fn a_hub_goes_on_with_what_the_one_before_it_knew() {
    let mut hub = keeping().await;
    let keys = hub.create("d1").await;
    hub.create("gone").await;
    let module = hub.create_module("d1", "m1").await;
    let first = hub.identity("d1").await;
    let mut device = first.clone();
    device["status"] = "disabled".into();
    device["statusReason"] = "on holiday".into();
    hub.call_if(Method::PUT, "/devices/d1", "*", device).await.expect(200);
    let change = json!({"tags": {"site": "a"}, "properties": {"desired": {"a": {"b": 1}}}});
    hub.call(Method::PATCH, "/twins/d1", change).await.expect(200);
    hub.call_if(Method::DELETE, "/devices/gone", "*", Value::Null).await.expect(204);
    let (device, twin) =
        (hub.identity("d1").await, hub.call(Method::GET, "/twins/d1", Value::Null).await.body);
    assert_eq!(twin["properties"]["desired"]["$metadata"]["a"]["b"]["$lastUpdatedVersion"], 2);

    hub = hub.start_again(|options| options.keep_state = true).await;
    assert_eq!(hub.identity("d1").await, device);
    assert_eq!(Keys::of(&device), keys);
    assert_eq!(hub.call(Method::GET, "/twins/d1", Value::Null).await.body, twin);
    hub.call(Method::GET, "/devices/gone", Value::Null).await.expect_error(404, "DeviceNotFound");
    let mut again = device.clone();
    again["status"] = "enabled".into();
    for _ in 0..8 {
        hub.call_if(Method::PUT, "/devices/d1", "*", again.clone()).await.expect(200);
        let etag = hub.identity("d1").await["etag"].clone();
        assert!(etag != first["etag"] && etag != device["etag"], "an etag came twice");
    }
    assert!(hub.connect("d1/m1", &module.secondary).await.answers().await);
    assert!(hub.connect("d1", &keys.primary).await.answers().await);
}

#[tokio::test]
async fn reported_properties_and_waiting_messages_outlive_a_restart() {
    let mut hub = keeping().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("$iothub/twin/res/#", QoS::AtMostOnce).await;
    let report = "$iothub/twin/PATCH/properties/reported/?$rid=1";
    let (topic, _) = client.request_twin(report, r#"{"firmware":"1.2"}"#).await;
    assert_eq!(topic, "$iothub/twin/res/204/?$rid=1&$version=2");
    for body in ["first", "expired", "last"] {
        let ttl_secs = if body == "expired" { 0 } else { 600 };
        let message = json!({"identity": "d1", "body": body, "properties": {"a": "b"}, "ttlSecs": ttl_secs});
        hub.operate("c2d", message).await.expect(200);
    }
    hub = hub.start_again(|options| options.keep_state = true).await;
    assert_eq!(hub.identity("d1").await["connectionState"], "Disconnected");
    let twin = hub.call(Method::GET, "/twins/d1", Value::Null).await.expect(200);
    assert_eq!(twin["properties"]["reported"]["firmware"], "1.2");
    assert_eq!(twin["properties"]["reported"]["$version"], 2);
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("devices/d1/messages/devicebound/#", QoS::AtLeastOnce).await;
    for body in ["first", "last"] {
        let message = client.receive_publish().await;
        assert_eq!(message.payload, body);
        assert!(message.topic.ends_with("&a=b"), "{}", message.topic);
        client.send(Packet::PubAck(rumqttc::PubAck::new(message.pkid))).await;
    }
    assert!(client.answers().await);
    hub = hub.start_again(|options| options.keep_state = true).await;
    assert_eq!(hub.identity("d1").await["cloudToDeviceMessageCount"], 0);
}

#[tokio::test]
async fn what_was_acknowledged_to_a_device_is_on_the_disk() {
    let hub = keeping().await;
    let keys = hub.create("d1").await;
    let mut client = hub.connect("d1", &keys.primary).await;
    client.subscribe("$iothub/twin/res/#", QoS::AtMostOnce).await;
    for n in 0..10 {
        let report = "$iothub/twin/PATCH/properties/reported/?$rid=1";
        let (topic, _) = client.request_twin(report, &json!({"n": n}).to_string()).await;
        assert!(topic.contains("/204/"), "{topic}");
        // As after a kill -9 at this moment.
        let killed = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(hub.dir.path()).unwrap() {
            let file = file.unwrap();
            if file.file_name() != "hub.json" {
                std::fs::copy(file.path(), killed.path().join(file.file_name())).unwrap();
            }
        }
        let next = TestHub::start_in(killed, |options| options.keep_state = true).await;
        let twin = next.call(Method::GET, "/twins/d1", Value::Null).await.expect(200);
        assert_eq!(twin["properties"]["reported"]["n"], n);
        next.stop().await;
    }
}

#[tokio::test]
async fn configurations_and_other_kinds_of_authentication_outlive_a_restart() {
    let mut hub = keeping().await;
    let body =
        json!({"authentication": {"type": "certificateAuthority"}, "deviceScope": "ms-azure-iot-edge://e-1"});
    hub.call(Method::PUT, "/devices/d1", body).await.expect(200);
    let content = json!({"deviceContent": {"properties.desired.x": 1}});
    for (id, target) in [("c1", "tags.site = 'a'"), ("c2", "")] {
        let body = json!({"targetCondition": target, "priority": 3, "content": content,
            "metrics": {"queries": {"all": "SELECT deviceId FROM devices"}}});
        hub.call(Method::PUT, &format!("/configurations/{id}"), body).await.expect(200);
    }
    hub.call_if(Method::DELETE, "/configurations/c2", "*", Value::Null).await.expect(204);
    hub.call(Method::PATCH, "/twins/d1", json!({"tags": {"site": "a"}})).await.expect(200);
    let (device, twin) =
        (hub.identity("d1").await, hub.call(Method::GET, "/twins/d1", Value::Null).await.body);
    let configuration = hub.call(Method::GET, "/configurations/c1", Value::Null).await.body;
    assert_eq!(
        (&twin["properties"]["desired"]["x"], &configuration["metrics"]["results"]["all"]),
        (&json!(1), &json!(1))
    );

    hub = hub.start_again(|options| options.keep_state = true).await;
    assert_eq!(hub.identity("d1").await, device);
    assert_eq!(hub.call(Method::GET, "/twins/d1", Value::Null).await.body, twin);
    assert_eq!(hub.call(Method::GET, "/configurations/c1", Value::Null).await.body, configuration);
    hub.call(Method::GET, "/configurations/c2", Value::Null).await.expect_error(404, "ConfigurationNotFound");
    hub.call(Method::PATCH, "/twins/d1", json!({"tags": {"site": null}})).await.expect(200);
    assert_eq!(
        hub.call(Method::GET, "/twins/d1", Value::Null).await.body["properties"]["desired"]["x"],
        Value::Null,
        "it can still be withdrawn"
    );
}

#[tokio::test]
async fn enrolments_outlive_a_restart() {
    let mut hub = keeping().await;
    let body = json!({"deviceId": "pump-7", "initialTwin": {"tags": {"site": "a"}}});
    let enroll = async |hub: &TestHub, path: &str, body: Value| {
        hub.request(Method::PUT, &format!("/$emulator/{path}"), &[], body).await.expect(200)
    };
    let individual = enroll(&hub, "enrollments/Serial-1", body).await;
    let group = enroll(&hub, "enrollmentGroups/line-1", json!({"provisioningStatus": "disabled"})).await;
    enroll(&hub, "enrollments/gone", json!({})).await;
    hub.request(Method::DELETE, "/$emulator/enrollments/gone", &[], Value::Null).await.expect(204);
    hub = hub.start_again(|options| options.keep_state = true).await;
    assert_eq!(hub.look("enrollments/serial-1").await, individual);
    assert_eq!(hub.look("enrollmentGroups/line-1").await, group);
    let gone = hub.request(Method::GET, "/$emulator/enrollments/gone", &[], Value::Null).await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn only_the_owner_can_read_what_is_kept_and_nothing_is_kept_unasked() {
    let hub = keeping().await;
    hub.create("d1").await;
    let mut files = 0;
    for file in std::fs::read_dir(hub.dir.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.file_name());
        files += usize::from(file.file_name().to_str().unwrap().starts_with("state.db"));
    }
    assert!(files >= 1);
    let mut other = TestHub::start().await;
    other.create("d1").await;
    assert!(!other.dir.path().join("state.db").exists());
    other = other.start_again(|_| {}).await;
    other.call(Method::GET, "/devices/d1", Value::Null).await.expect_error(404, "DeviceNotFound");
}

/// Starts a hub on a file that makes no sense, and asserts that it is refused and left alone.
async fn refuse(dir: &Path, expected: &str) {
    let before = std::fs::read(dir.join("state.db")).unwrap();
    let error = start(options(dir)).await.unwrap_err();
    assert!(matches!(error, EmulatorError::State { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(expected) && text.contains("state.db"), "{text}");
    assert_eq!(std::fs::read(dir.join("state.db")).unwrap(), before, "the file was touched: {text}");
}

#[tokio::test]
async fn a_damaged_foreign_or_newer_file_is_refused_and_left_alone() {
    let hub = keeping().await;
    for n in 0..40 {
        hub.create(&format!("device-{n}")).await;
    }
    let dir = hub.stop().await;
    let path = dir.path().join("state.db");
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.windows(9).any(|window| window == b"device-39"), "the log is still apart");

    // Cut, overwritten at many places, another program's, and nothing like a database.
    for (n, at) in (0..whole.len()).step_by(whole.len() / 37).enumerate() {
        let mut damaged = whole.clone();
        match n % 2 {
            0 => damaged.truncate(at),
            _ => damaged[at..].iter_mut().take(64).for_each(|byte| *byte ^= 0x55),
        }
        std::fs::write(&path, &damaged).unwrap();
        match start(options(dir.path())).await {
            // Space that no record uses.
            Ok(hub) => {
                assert!(!damaged.is_empty(), "an empty file was taken for a new one");
                hub.shutdown().await;
            }
            Err(error) => {
                assert!(matches!(error, EmulatorError::State { .. }), "{error}");
                assert_eq!(std::fs::read(&path).unwrap(), damaged, "{error}");
            }
        }
    }
    std::fs::write(&path, "").unwrap();
    refuse(dir.path(), "empty").await;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(dir.path().join("state.db-wal"), "the log").unwrap();
    let error = start(options(dir.path())).await.unwrap_err().to_string();
    assert!(error.contains("its log is there") && !path.exists(), "{error}");
    std::fs::remove_file(dir.path().join("state.db-wal")).unwrap();
    std::fs::write(&path, "no database, whatever it is".repeat(500)).unwrap();
    refuse(dir.path(), "not a database").await;

    let mut newer = whole.clone();
    // PRAGMA user_version (SQLite, "Database File Format", 1.3).
    newer[60..64].copy_from_slice(&2u32.to_be_bytes());
    std::fs::write(&path, &newer).unwrap();
    refuse(dir.path(), "format 2").await;
    let mut foreign = whole.clone();
    foreign[68..72].copy_from_slice(&7u32.to_be_bytes());
    std::fs::write(&path, &foreign).unwrap();
    refuse(dir.path(), "another program").await;

    // One bit in each value, where SQLite would not notice.
    let mut flipped = whole.clone();
    for at in (0..whole.len() - 21).filter(|at| whole[*at..].starts_with(b"generationId")) {
        flipped[at + 20] ^= 1;
    }
    std::fs::write(&path, &flipped).unwrap();
    refuse(dir.path(), "not what was written").await;

    std::fs::write(&path, &whole).unwrap();
    let hub = start(options(dir.path())).await.unwrap();
    hub.shutdown().await;
}

#[tokio::test]
async fn keys_and_certificate_that_are_not_whole_are_refused_and_left_alone() {
    let other = TestHub::start().await.stop().await;
    let foreign = std::fs::read(other.path().join("ca.pem")).unwrap();
    for (file, content, expected) in [
        ("ca-key.pem", None, "ca-key.pem, is missing"),
        ("ca-key.pem", Some(&b"garbage"[..]), "no PEM private key"),
        ("ca.pem", Some(b"garbage"), "not the certificate of ca-key.pem"),
        ("ca.pem", Some(&foreign), "not the certificate of ca-key.pem"),
        ("policies.json", Some(b"{}"), "a policy's keys are missing"),
        ("policies.json", Some(b""), "no JSON"),
    ] {
        let dir = TestHub::start().await.stop().await;
        match content {
            None => std::fs::remove_file(dir.path().join(file)).unwrap(),
            Some(content) => std::fs::write(dir.path().join(file), content).unwrap(),
        }
        let read = |name| std::fs::read(dir.path().join(name)).ok();
        let before = ["ca.pem", "ca-key.pem", "policies.json"].map(read);
        let error = start(options(dir.path())).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(["ca.pem", "ca-key.pem", "policies.json"].map(read), before, "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_missing_is_made_again_for_the_key_that_is_there() {
    let dir = TestHub::start().await.stop().await;
    let trusted = std::fs::read(dir.path().join("ca.pem")).unwrap();
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    let hub = TestHub::start_in(dir, |_| {}).await;
    // Whoever trusts the earlier one trusts the hub still.
    std::fs::write(hub.dir.path().join("ca.pem"), trusted).unwrap();
    let hub = hub.start_again(|_| {}).await;
    hub.create("d1").await;
}
