//! Identities over REST: etags, keys, modules, bulk, listings, and which policy may do what.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::{Keys, TestHub, connect, connect_with, encode, token, unix_secs};

const K1: &str = "AAECAwQFBgcICQoLDA0ODw==";
const K2: &str = "EBESExQVFhcYGRobHB0eHw==";

fn with_keys(primary: &str, secondary: &str) -> Value {
    let keys = json!({"primaryKey": primary, "secondaryKey": secondary});
    json!({"deviceId": "d1", "authentication": {"type": "sas", "symmetricKey": keys}})
}

async fn regenerate(hub: &TestHub, key: &str, devices: Value) -> support::Answer {
    hub.call(Method::POST, "/devices/keys/regenerate", json!({"policyKey": key, "devices": devices})).await
}

#[tokio::test]
async fn a_device_lives_from_creation_to_deletion() {
    let hub = TestHub::start().await;
    let answer = hub.call(Method::PUT, "/devices/d1", with_keys(K1, K2)).await;
    let etag = answer.header("etag").unwrap().to_owned();
    let device = answer.expect(200);
    assert_eq!(etag, format!("{:?}", device["etag"].as_str().unwrap()));
    assert_eq!(Keys::of(&device), Keys { primary: K1.into(), secondary: K2.into() });
    assert_eq!((&device["status"], &device["connectionState"]), (&json!("enabled"), &json!("Disconnected")));
    hub.call(Method::PUT, "/devices/d1", json!({})).await.expect_error(409, "DeviceAlreadyExists");
    let swapped = hub.call_if(Method::PUT, "/devices/d1", &etag, with_keys(K2, K1)).await.expect(200);
    assert_eq!(Keys::of(&swapped), Keys { primary: K2.into(), secondary: K1.into() });
    assert_eq!(swapped["generationId"], device["generationId"]);
    for stale in [etag.as_str(), etag.trim_matches('"')] {
        hub.call_if(Method::PUT, "/devices/d1", stale, with_keys(K1, K2))
            .await
            .expect_error(412, "PreconditionFailed");
        hub.call_if(Method::DELETE, "/devices/d1", stale, Value::Null)
            .await
            .expect_error(412, "PreconditionFailed");
    }
    let kept = hub.call_if(Method::PUT, "/devices/d1", "\"*\"", json!({"deviceId": "d1"})).await.expect(200);
    assert_eq!(Keys::of(&kept), Keys::of(&swapped), "keys that are not named stay");
    let bare = kept["etag"].as_str().unwrap();
    hub.call_if(Method::DELETE, "/devices/d1", bare, Value::Null).await.expect(204);
    let body = hub.call(Method::GET, "/devices/d1", Value::Null).await.expect_error(404, "DeviceNotFound");
    assert!(body["Message"].as_str().unwrap().starts_with("ErrorCode:DeviceNotFound;"), "{body}");
    hub.call_if(Method::PUT, "/devices/d1", "*", json!({})).await.expect_error(404, "DeviceNotFound");
    hub.call_if(Method::DELETE, "/devices/d1", "*", Value::Null).await.expect_error(404, "DeviceNotFound");
}

#[tokio::test]
async fn what_is_no_device_is_refused() {
    let hub = TestHub::start().await;
    for wrong in [
        with_keys(K1, ""),
        with_keys("AAAA", K2),
        with_keys("not base64", K2),
        json!({"deviceId": "d2"}),
        json!({"moduleId": "m1"}),
        json!({"authentication": {"type": "selfSigned"}}),
        json!({"authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "no hex"}}}),
        json!({"authentication": {"type": "password"}}),
        json!({"statusReason": "x".repeat(129)}),
    ] {
        let answer = hub.call(Method::PUT, "/devices/d1", wrong.clone()).await;
        assert!(!answer.body.to_string().contains(K2), "{wrong}");
        answer.expect_error(400, "ArgumentInvalid");
    }
    for wrong in [json!([]), json!({"status": "asleep"})] {
        hub.call(Method::PUT, "/devices/d1", wrong).await.expect_error(400, "DeserializationError");
    }
    let long = format!("/devices/{}", "x".repeat(129));
    hub.call(Method::PUT, &long, json!({})).await.expect_error(400, "ArgumentInvalid");
    let same = hub.call(Method::PUT, "/devices/d1", with_keys(K1, K1)).await.expect(200);
    assert_eq!(Keys::of(&same).secondary, K1, "equal keys are allowed");
}

#[tokio::test]
async fn odd_ids_survive_the_path() {
    let hub = TestHub::start().await;
    let odd = "-.%_*?!(),:=@$'+#;";
    hub.create(odd).await;
    assert_eq!(hub.identity(odd).await["deviceId"], odd);
    let path = format!("/twins/{}", encode(odd));
    assert_eq!(hub.call(Method::GET, &path, Value::Null).await.expect(200)["deviceId"], odd);
}

#[tokio::test]
async fn modules_belong_to_their_device() {
    let hub = TestHub::start().await;
    hub.call(Method::PUT, "/devices/d1/modules/m1", json!({})).await.expect_error(404, "DeviceNotFound");
    hub.create("d1").await;
    hub.create("d10").await;
    for name in ["m2", "m1"] {
        hub.create_module("d1", name).await;
    }
    hub.call(Method::PUT, "/devices/d1/modules/m1", json!({}))
        .await
        .expect_error(409, "ModuleAlreadyExistsOnDevice");
    hub.call_if(Method::PUT, "/devices/d1/modules/m1", "*", json!({})).await.expect(200);
    let modules = hub.call(Method::GET, "/devices/d1/modules", Value::Null).await.expect(200);
    let names: Vec<&Value> = modules.as_array().unwrap().iter().map(|module| &module["moduleId"]).collect();
    assert_eq!(names, ["m1", "m2"]);
    assert_eq!(hub.call(Method::GET, "/devices", Value::Null).await.expect(200).as_array().unwrap().len(), 2);
    hub.call_if(Method::DELETE, "/devices/d1/modules/m2", "*", Value::Null).await.expect(204);
    hub.call(Method::GET, "/devices/d1/modules/m2", Value::Null).await.expect_error(404, "ModuleNotFound");
    hub.call_if(Method::DELETE, "/devices/d1", "*", Value::Null).await.expect(204);
    hub.call(Method::GET, "/devices/d1/modules/m1", Value::Null).await.expect_error(404, "ModuleNotFound");
}

#[tokio::test]
async fn regenerating_tells_successes_beside_failures() {
    let hub = TestHub::start().await;
    let (device, module) = (hub.create("d1").await, hub.create_module("d1", "m1").await);
    let answer = regenerate(&hub, "primaryKey", json!([{"id": "d1"}])).await.expect(200);
    let rotated = &answer["rotatedKeys"][0];
    assert_eq!((&answer["policyKey"], &answer["errors"]), (&json!("primaryKey"), &json!([])));
    assert_ne!(rotated["primaryKey"], device.primary);
    assert_eq!(rotated["secondaryKey"], device.secondary);
    let primary = rotated["primaryKey"].as_str().unwrap();
    assert_eq!((primary.len(), &primary[33..37]), (44, "AIoT"));
    assert_eq!(Keys::of(&hub.identity("d1").await).primary, primary);
    let some = json!([{"id": "d1", "moduleId": "m1"}, {"id": "none"}, {"id": "d1", "moduleId": "none"}]);
    let answer = regenerate(&hub, "both", some).await.expect(207);
    let rotated = &answer["rotatedKeys"][0];
    assert!(rotated["primaryKey"] != module.primary && rotated["secondaryKey"] != module.secondary);
    assert_eq!((&rotated["moduleId"], answer["rotatedKeys"].as_array().unwrap().len()), (&json!("m1"), 1));
    assert_eq!(
        (&answer["errors"][0]["id"], &answer["errors"][0]["errorCode"]),
        (&json!("none"), &json!("DeviceNotFound"))
    );
    assert_eq!(answer["errors"][1]["errorCode"], "ModuleNotFound");
    let answer = regenerate(&hub, "secondaryKey", json!([{"id": "none"}])).await.expect(400);
    assert_eq!((&answer["rotatedKeys"], answer["errors"].as_array().unwrap().len()), (&json!([]), 1));
    let twice = regenerate(&hub, "primaryKey", json!([{"id": "d1"}, {"id": "d1"}])).await.expect(207);
    assert_eq!(twice["errors"][0]["errorCode"], "DeviceDefinedMultipleTimes");
    assert_eq!(twice["rotatedKeys"][0]["primaryKey"], Keys::of(&hub.identity("d1").await).primary);
    regenerate(&hub, "both", json!([])).await.expect(200);
    regenerate(&hub, "thirdKey", json!([])).await.expect_error(400, "InvalidPolicyKey");
    let many: Vec<Value> = (0..101).map(|n| json!({"id": n.to_string()})).collect();
    regenerate(&hub, "both", many.into()).await.expect_error(413, "TooManyDevices");
}

#[tokio::test]
async fn a_regenerated_key_is_refused_while_the_live_connection_stays() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut live = hub.connect("d1", &keys.primary).await;
    let answer = regenerate(&hub, "primaryKey", json!([{"id": "d1"}])).await.expect(200);
    assert!(live.answers().await);
    assert!(hub.is_refused("d1", &keys.primary).await);
    assert!(live.answers().await);
    hub.connect("d1", answer["rotatedKeys"][0]["primaryKey"].as_str().unwrap()).await;
    assert!(live.is_closed().await);
}

#[tokio::test]
async fn bulk_changes_succeed_or_fail_one_by_one() {
    let hub = TestHub::start().await;
    let created = json!([
        {"id": "b1", "importMode": "create", "tags": {"t": 1}, "properties": {"desired": {"p": 2}}},
        {"id": "b2", "importMode": "create", "status": "disabled"},
    ]);
    let answer = hub.call(Method::POST, "/devices", created.clone()).await.expect(200);
    assert_eq!(answer, json!({"isSuccessful": true, "errors": [], "warnings": []}));
    let twin = hub.call(Method::GET, "/twins/b1", Value::Null).await.expect(200);
    assert_eq!((&twin["tags"]["t"], &twin["properties"]["desired"]["p"]), (&json!(1), &json!(2)));
    assert_eq!(hub.identity("b2").await["status"], "disabled");
    let etag = hub.identity("b1").await["etag"].clone();
    let keys = json!({"type": "sas", "symmetricKey": {"primaryKey": K1, "secondaryKey": K2}});
    let mixed = json!([
        {"id": "b1", "importMode": "updateIfMatchETag", "eTag": etag, "authentication": keys},
        {"id": "b1", "importMode": "updateIfMatchETag", "eTag": etag, "authentication": keys},
        {"id": "b2", "importMode": "delete"},
        {"id": "b2", "importMode": "update"},
        {"id": "b1", "importMode": "updateTwin", "tags": {"t": null}},
        {"id": "b1", "importMode": "create"},
    ]);
    let answer = hub.call(Method::POST, "/devices", mixed).await.expect(400);
    let codes: Vec<&Value> =
        answer["errors"].as_array().unwrap().iter().map(|error| &error["errorCode"]).collect();
    assert_eq!(
        (codes, &answer["isSuccessful"]),
        (vec![&json!(412001), &json!(404001), &json!(409001)], &json!(false))
    );
    assert_eq!(Keys::of(&hub.identity("b1").await).primary, K1);
}

#[tokio::test]
async fn a_bulk_creation_that_failed_left_nothing() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    let large = json!({"a": "x".repeat(4096), "b": "x".repeat(4096)});
    let wrong = json!([
        {"id": "b1", "importMode": "create", "tags": {"a b": 1}},
        {"id": "b2", "importMode": "create", "properties": {"desired": {"a": [null]}}},
        {"id": "d1", "moduleId": "m1", "importMode": "create", "tags": large},
        {"id": "b3", "importMode": "create"},
    ]);
    let answer = hub.call(Method::POST, "/devices", wrong).await.expect(400);
    let codes: Vec<&Value> =
        answer["errors"].as_array().unwrap().iter().map(|error| &error["errorCode"]).collect();
    assert_eq!(codes, [&json!(400004); 3]);
    for gone in ["/devices/b1", "/devices/b2", "/devices/d1/modules/m1"] {
        assert_eq!(hub.call(Method::GET, gone, Value::Null).await.status, 404, "{gone}");
    }
    let right = json!([{"id": "b1", "importMode": "create"}, {"id": "b2", "importMode": "create"}]);
    hub.call(Method::POST, "/devices", right).await.expect(200);
    hub.identity("b3").await;
    hub.identity("d1").await;
}

#[tokio::test]
async fn listings_queries_and_counts_agree() {
    let hub = TestHub::start().await;
    for n in 0..5 {
        hub.create(&format!("d{n}")).await;
    }
    let keys = hub.create_module("d2", "m1").await;
    let mut disabled = hub.identity("d4").await;
    disabled["status"] = "disabled".into();
    hub.call_if(Method::PUT, "/devices/d4", "*", disabled).await.expect(200);
    let _live = hub.connect("d2/m1", &keys.primary).await;
    assert_eq!(
        hub.call(Method::GET, "/devices?top=3", Value::Null).await.expect(200).as_array().unwrap().len(),
        3
    );
    let counts = hub.call(Method::GET, "/statistics/devices", Value::Null).await.expect(200);
    assert_eq!(counts, json!({"totalDeviceCount": 5, "enabledDeviceCount": 4, "disabledDeviceCount": 1}));
    let counts = hub.call(Method::GET, "/statistics/service", Value::Null).await.expect(200);
    assert_eq!(counts, json!({"connectedDeviceCount": 0}), "a module is no device");
    let (mut seen, mut continuation) = (Vec::new(), String::new());
    let token = hub.policy_token("registryRead");
    loop {
        let headers = [
            ("authorization", token.clone()),
            ("x-ms-max-item-count", "2".to_owned()),
            ("x-ms-continuation", continuation.clone()),
        ];
        let body = json!({"query": "select *  FROM devices"});
        let answer = hub.request(Method::POST, "/devices/query?api-version=2021-04-12", &headers, body).await;
        assert_eq!(answer.header("x-ms-item-type"), Some("twin"));
        let next = answer.header("x-ms-continuation").map(str::to_owned);
        seen.extend(answer.expect(200).as_array().unwrap().iter().map(|twin| twin["deviceId"].clone()));
        match next {
            Some(next) => continuation = next,
            None => break,
        }
    }
    assert_eq!(seen, ["d0", "d1", "d2", "d3", "d4"]);
}

#[tokio::test]
async fn each_policy_does_what_its_rights_say() {
    const READ: &str = "iothubowner registryRead registryReadWrite";
    const WRITE: &str = "iothubowner registryReadWrite";
    const SERVICE: &str = "iothubowner service";
    let hub = TestHub::start().await;
    hub.create("d1").await;
    hub.create_module("d1", "m1").await;
    let query = json!({"query": "SELECT * FROM devices"});
    let job = json!({"type": "scheduleUpdateTwin", "updateTwin": {}, "queryCondition": "deviceId = 'none'"});
    let keys = json!({"policyKey": "both", "devices": [{"id": "d1"}]});
    let method = json!({"methodName": "m"});
    let none = Value::Null;
    let requests = [
        (Method::GET, "/devices/d1", None, none.clone(), READ),
        (Method::GET, "/devices", None, none.clone(), READ),
        (Method::GET, "/devices/d1/modules", None, none.clone(), READ),
        (Method::GET, "/devices/d1/modules/m1", None, none.clone(), READ),
        (Method::GET, "/statistics/devices", None, none.clone(), READ),
        (Method::GET, "/statistics/service", None, none.clone(), READ),
        (Method::POST, "/devices/query", None, query, READ),
        (Method::GET, "/configurations", None, none.clone(), READ),
        (Method::GET, "/configurations/c1", None, none.clone(), READ),
        (Method::POST, "/configurations/testQueries", None, json!({}), READ),
        (Method::GET, "/jobs/v2/query", None, none.clone(), READ),
        (Method::GET, "/jobs/v2/j1", None, none.clone(), READ),
        (Method::POST, "/devices", None, json!([]), WRITE),
        (Method::POST, "/devices/keys/regenerate", None, keys, WRITE),
        (Method::PUT, "/devices/d1", Some("*"), json!({}), WRITE),
        (Method::DELETE, "/devices/none", Some("*"), none.clone(), WRITE),
        (Method::PUT, "/devices/d1/modules/m1", Some("*"), json!({}), WRITE),
        (Method::DELETE, "/devices/d1/modules/none", Some("*"), none.clone(), WRITE),
        (Method::PUT, "/configurations/c1", Some("*"), json!({}), WRITE),
        (Method::DELETE, "/configurations/c1", Some("*"), none.clone(), WRITE),
        (Method::POST, "/devices/d1/applyConfigurationContent", None, json!({}), WRITE),
        (Method::PUT, "/jobs/v2/j1", None, job, WRITE),
        (Method::POST, "/jobs/v2/j1/cancel", None, none.clone(), WRITE),
        (Method::GET, "/twins/d1", None, none.clone(), SERVICE),
        (Method::PATCH, "/twins/d1", None, json!({}), SERVICE),
        (Method::PUT, "/twins/d1", None, json!({}), SERVICE),
        (Method::GET, "/twins/d1/modules/m1", None, none.clone(), SERVICE),
        (Method::PATCH, "/twins/d1/modules/m1", None, json!({}), SERVICE),
        (Method::PUT, "/twins/d1/modules/m1", None, json!({}), SERVICE),
        (Method::POST, "/twins/d1/methods", None, method.clone(), SERVICE),
        (Method::POST, "/twins/d1/modules/m1/methods", None, method, SERVICE),
        (Method::DELETE, "/devices/d1/commands", None, none.clone(), SERVICE),
        (Method::GET, "/messages/serviceBound/feedback", None, none, SERVICE),
    ];
    for (method, path, etag, body, allowed) in requests {
        for policy in ["iothubowner", "service", "device", "registryRead", "registryReadWrite"] {
            let answer = hub.call_as(policy, method.clone(), path, etag, body.clone()).await;
            let is_allowed = allowed.split(' ').any(|name| name == policy);
            assert_eq!(answer.status != 401, is_allowed, "{policy} {method} {path}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn what_is_left_out_says_so() {
    let hub = TestHub::start().await;
    for (method, path) in [
        (Method::POST, "/jobs/create"),
        (Method::GET, "/jobs"),
        (Method::GET, "/jobs/j1"),
        (Method::GET, "/digitaltwins/d1"),
    ] {
        let body = hub.call(method, path, Value::Null).await.expect_error(404, "NotFound");
        assert!(body["Message"].as_str().unwrap().contains("this emulator has no"), "{body}");
    }
    let answer = hub.call(Method::GET, "/messages/serviceBound/feedback", Value::Null).await;
    assert_eq!((answer.status, answer.body), (204, Value::Null));
}

#[tokio::test]
async fn other_kinds_of_authentication_are_kept_and_shown_and_cannot_connect() {
    let hub = TestHub::start().await;
    let thumbprint = "A".repeat(40);
    let body = json!({"authentication": {
        "type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint}}});
    let device = hub.call(Method::PUT, "/devices/x1", body).await.expect(200);
    assert_eq!(
        device["authentication"],
        json!({
            "type": "selfSigned",
            "x509Thumbprint": {"primaryThumbprint": thumbprint, "secondaryThumbprint": null},
            "symmetricKey": {"primaryKey": null, "secondaryKey": null},
        })
    );
    let twin = hub.call(Method::GET, "/twins/x1", Value::Null).await.expect(200);
    assert_eq!(
        (&twin["authenticationType"], &twin["x509Thumbprint"]["primaryThumbprint"]),
        (&json!("selfSigned"), &json!(thumbprint))
    );
    for kind in ["certificateAuthority", "none"] {
        let keys = hub.create(kind).await;
        let body = json!({"authentication": {"type": kind}});
        let path = format!("/devices/{kind}");
        let device = hub.call_if(Method::PUT, &path, "*", body).await.expect(200);
        assert_eq!(device["authentication"]["type"], kind);
        assert!(hub.is_refused(kind, &keys.primary).await, "{kind}");
        regenerate(&hub, "both", json!([{"id": kind}])).await.expect(400);
    }
}

#[tokio::test]
async fn scopes_managers_and_reasons_are_kept_and_shown() {
    let hub = TestHub::start().await;
    let edge = json!({"capabilities": {"iotEdge": true}, "status": "disabled", "statusReason": "in store"});
    let edge = hub.call(Method::PUT, "/devices/edge", edge).await.expect(200);
    let scope = format!("ms-azure-iot-edge://edge-{}", edge["generationId"].as_str().unwrap());
    assert_eq!((&edge["deviceScope"], &edge["statusReason"]), (&json!(scope), &json!("in store")));
    let leaf = json!({"deviceScope": scope, "parentScopes": [scope]});
    let leaf = hub.call(Method::PUT, "/devices/leaf", leaf).await.expect(200);
    assert_eq!((&leaf["deviceScope"], &leaf["parentScopes"]), (&json!(scope), &json!([scope])));
    let twin = hub.call(Method::GET, "/twins/leaf", Value::Null).await.expect(200);
    assert_eq!((&twin["deviceScope"], &twin["parentScopes"]), (&json!(scope), &json!([scope])));
    let module = json!({"moduleId": "m1", "managedBy": "iotEdge"});
    let module = hub.call(Method::PUT, "/devices/edge/modules/m1", module).await.expect(201);
    assert_eq!(module["managedBy"], "iotEdge");
}

#[tokio::test]
async fn a_service_token_has_to_be_right_in_every_part() {
    let hub = TestHub::start().await;
    let device = hub.create("d1").await;
    let (owner, now) = (hub.policy_key("iothubowner"), unix_secs());
    let path = "/devices/d1?api-version=2021-04-12";
    let port = hub.https_port();
    let name = Some("iothubowner");
    for (good, token) in [
        (true, token("localhost", &owner, now + 60, name)),
        (true, token(&format!("LOCALHOST:{port}"), &owner, now + 60, name)),
        (true, token("localhost/devices/d1", &owner, now - 290, name)),
        (false, token("localhost", &owner, now - 310, name)),
        (false, token("localhost/devices/d2", &owner, now + 60, name)),
        (false, token("elsewhere", &owner, now + 60, name)),
        (false, token("localhost", &owner, now + 60, Some("service"))),
        (false, token("localhost", &owner, now + 60, Some("nobody"))),
        (false, token("localhost", &owner, now + 60, None)),
        (false, token("localhost/devices/d1", &device.primary, now + 60, None)),
        (false, "Bearer x".to_owned()),
    ] {
        let answer = hub.request(Method::GET, path, &[("authorization", token.clone())], Value::Null).await;
        assert_eq!(answer.status, if good { 200 } else { 401 }, "{token}");
        assert!(good || answer.header("iothub-errorcode") == Some("IotHubUnauthorizedAccess"));
    }
    let answer = hub.request(Method::GET, path, &[], Value::Null).await;
    answer.expect_error(401, "IotHubUnauthorizedAccess");
    let headers = [("authorization", hub.policy_token("iothubowner"))];
    let answer = hub.request(Method::GET, "/devices/d1", &headers, Value::Null).await;
    answer.expect_error(400, "ArgumentInvalid");
    hub.call(Method::GET, "/nothing", Value::Null).await.expect_error(404, "NotFound");
}

#[tokio::test]
async fn authority_and_policies_survive_a_new_start_in_the_same_directory() {
    let hub = TestHub::start().await;
    let (ca, owner) = (std::fs::read(&hub.emulator.ready().ca_file).unwrap(), hub.policy_key("iothubowner"));
    let dir = hub.dir.path().to_owned();
    let ready = dir.join("hub.json");
    let written: Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    assert_eq!(written, serde_json::to_value(hub.emulator.ready()).unwrap());
    let shown = format!("{:?}", hub.emulator);
    assert!(!shown.contains(&owner) && !shown.contains(&hub.emulator.ready().arm_token), "{shown}");
    #[cfg(unix)]
    for file in std::fs::read_dir(&dir).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    // A second hub there would take the first one's hub.json away when it ends.
    let second = twinkey_emulator::Options { data_dir: dir.clone(), ..Default::default() };
    let error = twinkey_emulator::start(second).await.unwrap_err().to_string();
    assert!(error.contains("another hub is running"), "{error}");
    assert!(ready.exists());
    hub.emulator.shutdown().await;
    assert!(!ready.exists());
    let again = TestHub::start_with(|options| options.data_dir = dir.clone()).await;
    assert_eq!(std::fs::read(&again.emulator.ready().ca_file).unwrap(), ca);
    assert!(again.emulator.ready().service_connection_string.ends_with(&format!(";SharedAccessKey={owner}")));
    // The kept certificate vouches for the new hub's: this call verifies it.
    again.look("connections").await;
    let token = token("localhost", &owner, unix_secs() + 60, Some("device"));
    assert!(again.try_connect(connect_with("d1", &token)).await.is_err());
    assert!(again.try_connect(connect("d1", K1)).await.is_err());
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let options = |host: &str, dir: &std::path::Path| twinkey_emulator::Options {
        host_name: host.to_owned(),
        data_dir: dir.to_owned(),
        ..Default::default()
    };
    for (options, says) in [
        (options("https://hub", dir.path()), "host_name"),
        (options("hub:8883", dir.path()), "without scheme or port"),
        (options("hub", std::path::Path::new("")), "data_dir"),
    ] {
        let error = twinkey_emulator::start(options).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    std::fs::write(dir.path().join("policies.json"), "{").unwrap();
    let error = twinkey_emulator::start(options("hub", dir.path())).await.unwrap_err().to_string();
    assert!(error.contains("policies.json") && error.contains("delete it"), "{error}");
    std::fs::remove_file(dir.path().join("policies.json")).unwrap();
    let hub = TestHub::start().await;
    let taken = hub.emulator.ready().mqtts.parse().unwrap();
    let options = twinkey_emulator::Options { mqtts: taken, ..options("hub", dir.path()) };
    let error = twinkey_emulator::start(options).await.unwrap_err().to_string();
    assert!(error.contains(&taken.to_string()), "{error}");
}
