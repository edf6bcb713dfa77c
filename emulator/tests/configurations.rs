//! Automatic device management: which twins a configuration changes, when it lets go, and what its metrics say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use reqwest::Method;
use rumqttc::QoS;
use serde_json::{Value, json};
use support::{PATIENCE, TestHub};
use tokio::time::timeout;

async fn configure(hub: &TestHub, id: &str, target: &str, priority: i64, content: Value) -> Value {
    let body = json!({"id": id, "targetCondition": target, "priority": priority, "content": content});
    hub.call(Method::PUT, &format!("/configurations/{id}"), body).await.expect(200)
}

async fn tag(hub: &TestHub, id: &str, tags: Value) {
    hub.call(Method::PATCH, &format!("/twins/{id}"), json!({"tags": tags})).await.expect(200);
}

async fn twin(hub: &TestHub, id: &str) -> Value {
    hub.call(Method::GET, &format!("/twins/{id}"), Value::Null).await.expect(200)
}

fn desired(twin: &Value) -> Value {
    let mut desired = twin["properties"]["desired"].clone();
    desired.as_object_mut().unwrap().retain(|name, _| !name.starts_with('$'));
    desired
}

/// Waits until the desired properties of a twin are these.
async fn becomes(hub: &TestHub, id: &str, expected: Value) -> Value {
    let waiting = async {
        loop {
            let twin = twin(hub, id).await;
            if desired(&twin) == expected {
                return twin;
            }
        }
    };
    match timeout(PATIENCE, waiting).await {
        Ok(twin) => twin,
        Err(_) => panic!("{} and not {expected}", desired(&twin(hub, id).await)),
    }
}

#[tokio::test]
async fn a_configuration_follows_tags_and_lets_go() {
    let hub = TestHub::start().await;
    for id in ["d1", "d2"] {
        hub.create(id).await;
    }
    tag(&hub, "d1", json!({"env": "test"})).await;
    hub.call(Method::PATCH, "/twins/d1", json!({"properties": {"desired": {"own": 1}}})).await.expect(200);
    let content =
        json!({"deviceContent": {"properties.desired.water": {"temperature": 66, "deep": {"x": 1}}}});
    configure(&hub, "c1", "tags.env='test'", 5, content).await;
    let water = json!({"temperature": 66, "deep": {"x": 1}});
    let seen = becomes(&hub, "d1", json!({"own": 1, "water": water})).await;
    assert_eq!(seen["configurations"], json!({"c1": {"status": "Applied"}}));
    assert_eq!(desired(&twin(&hub, "d2").await), json!({}));
    // A tag that changes is followed within the same request.
    tag(&hub, "d2", json!({"env": "test"})).await;
    assert_eq!(desired(&twin(&hub, "d2").await), json!({"water": water}));
    tag(&hub, "d2", json!({"env": null})).await;
    let seen = twin(&hub, "d2").await;
    assert_eq!((desired(&seen), seen.get("configurations")), (json!({}), None));
    // What somebody takes away is put back.
    hub.call(Method::PUT, "/twins/d1", json!({"tags": {"env": "test"}})).await.expect(200);
    assert_eq!(desired(&twin(&hub, "d1").await), json!({"water": water}));
    let bulk = json!([{"id": "d3", "importMode": "create", "tags": {"env": "test"}}]);
    hub.call(Method::POST, "/devices", bulk).await.expect(200);
    assert_eq!(desired(&twin(&hub, "d3").await), json!({"water": water}));
    hub.call_if(Method::DELETE, "/configurations/c1", "*", Value::Null).await.expect(204);
    becomes(&hub, "d1", json!({})).await;
    becomes(&hub, "d3", json!({})).await;
}

#[tokio::test]
async fn the_higher_priority_wins_and_of_equals_the_later() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    let content = |value: i64| json!({"deviceContent": {"properties.desired.a": {"v": value}}});
    configure(&hub, "low", "*", 1, content(1)).await;
    becomes(&hub, "d1", json!({"a": {"v": 1}})).await;
    configure(&hub, "high", "*", 9, content(9)).await;
    let seen = becomes(&hub, "d1", json!({"a": {"v": 9}})).await;
    assert_eq!(seen["configurations"], json!({"low": {"status": "Targeted"}, "high": {"status": "Applied"}}));
    configure(&hub, "equal", "*", 9, content(10)).await;
    becomes(&hub, "d1", json!({"a": {"v": 10}})).await;
    let partly = json!({"deviceContent": {"properties.desired.a.v": 11, "properties.desired.b": 1}});
    configure(&hub, "partly", "deviceId = 'd1'", 5, partly).await;
    becomes(&hub, "d1", json!({"a": {"v": 10}, "b": 1})).await;
    for gone in ["equal", "high"] {
        hub.call_if(Method::DELETE, &format!("/configurations/{gone}"), "*", Value::Null).await.expect(204);
    }
    becomes(&hub, "d1", json!({"a": {"v": 11}, "b": 1})).await;
}

#[tokio::test]
async fn the_device_is_told_and_its_reports_count() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let content = json!({"deviceContent": {"properties.desired": {"mode": "new"}}});
    configure(&hub, "c1", "properties.reported.model = 'x'", 1, content).await;
    let mut live = hub.connect("d1", &keys.primary).await;
    live.subscribe("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce).await;
    live.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", "{\"model\":\"x\"}").await;
    assert!(live.receive_publish().await.topic.starts_with("$iothub/twin/res/204/?$rid=1"));
    let told = live.receive_publish().await;
    assert_eq!(
        serde_json::from_slice::<Value>(&told.payload).unwrap(),
        json!({"mode": "new", "$version": 2})
    );
    live.publish("$iothub/twin/PATCH/properties/reported/?$rid=2", "{\"model\":\"y\"}").await;
    assert!(live.receive_publish().await.topic.starts_with("$iothub/twin/res/204/?$rid=2"));
    let told = live.receive_publish().await;
    assert_eq!(serde_json::from_slice::<Value>(&told.payload).unwrap(), json!({"mode": null, "$version": 3}));
}

#[tokio::test]
async fn modules_get_their_content() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    hub.create_module("d1", "m1").await;
    hub.create_module("d1", "m2").await;
    let content = json!({"moduleContent": {"properties.desired.x": 1}});
    configure(&hub, "of-modules", "from devices.modules where moduleId = 'm1'", 1, content).await;
    becomes(&hub, "d1/modules/m1", json!({"x": 1})).await;
    tag(&hub, "d1", json!({"edge": true})).await;
    let content = json!({"modulesContent": {"m2": {"properties.desired": {"y": 2}}}});
    configure(&hub, "of-edge", "tags.edge = true", 1, content).await;
    becomes(&hub, "d1/modules/m2", json!({"y": 2})).await;
    tag(&hub, "d1", json!({"edge": null})).await;
    becomes(&hub, "d1/modules/m2", json!({})).await;
    let content = json!({
        "modulesContent": {"$edgeAgent": {"properties.desired": {"a": 1}}, "m3": {"properties.desired.b": 2}},
    });
    let path = "/devices/d1/applyConfigurationContent";
    hub.call(Method::POST, path, content).await.expect(204);
    assert_eq!(desired(&twin(&hub, "d1/modules/$edgeAgent").await), json!({"a": 1}));
    assert_eq!(desired(&twin(&hub, "d1/modules/m3").await), json!({"b": 2}));
    hub.call(Method::POST, "/devices/none/applyConfigurationContent", json!({}))
        .await
        .expect_error(404, "DeviceNotFound");
}

#[tokio::test]
async fn metrics_count_twins() {
    let hub = TestHub::start().await;
    for n in 0..5 {
        hub.create(&format!("d{n}")).await;
        tag(&hub, &format!("d{n}"), json!({"n": n})).await;
    }
    let metrics = json!({"queries": {
        "big": "SELECT deviceId FROM devices WHERE tags.n >= 3",
        "applied": "select deviceId from devices where configurations.[[c1]].status = 'Applied'",
    }});
    let body = json!({"id": "c1", "targetCondition": "tags.n < 2", "priority": 3, "labels": {"a": "b"}, "metrics": metrics,
        "content": {"deviceContent": {"properties.desired.x": 1}}});
    hub.call(Method::PUT, "/configurations/c1", body).await.expect(200);
    becomes(&hub, "d1", json!({"x": 1})).await;
    becomes(&hub, "d0", json!({"x": 1})).await;
    let read = hub.call(Method::GET, "/configurations/c1", Value::Null).await.expect(200);
    assert_eq!(read["metrics"]["results"], json!({"big": 2, "applied": 2}));
    assert_eq!(
        read["systemMetrics"],
        json!({
            "results": {"targetedCount": 2, "appliedCount": 2},
            "queries": {
                "targetedCount": "select deviceId from devices where tags.n < 2",
                "appliedCount": "select deviceId from devices where configurations.[[c1]].status = 'Applied'",
            },
        })
    );
    for name in ["targetedCount", "appliedCount"] {
        let query = json!({"query": read["systemMetrics"]["queries"][name]});
        let rows = hub.call(Method::POST, "/devices/query", query).await.expect(200);
        assert_eq!(rows.as_array().unwrap().len(), 2, "the hub's own queries are queries: {name}");
    }
    assert_eq!((&read["labels"], &read["schemaVersion"]), (&json!({"a": "b"}), &json!("1.0")));
    let listed = hub.call(Method::GET, "/configurations?top=1", Value::Null).await.expect(200);
    assert_eq!(listed, json!([read]));
}

#[tokio::test]
async fn configurations_are_guarded_by_etags_and_limits() {
    let hub = TestHub::start().await;
    let created = configure(&hub, "c1", "", 1, json!({"deviceContent": {"properties.desired.x": 1}})).await;
    let put = |etag: &'static str, body: Value| hub.call_if(Method::PUT, "/configurations/c1", etag, body);
    hub.call(Method::PUT, "/configurations/c1", json!({}))
        .await
        .expect_error(409, "ConfigurationAlreadyExists");
    put("stale", json!({})).await.expect_error(412, "PreconditionFailed");
    let bare = created["etag"].as_str().unwrap();
    let changed =
        hub.call_if(Method::PUT, "/configurations/c1", bare, json!({"priority": 4})).await.expect(200);
    assert_eq!((&changed["priority"], &changed["content"]), (&json!(4), &created["content"]));
    assert_eq!(changed["createdTimeUtc"], created["createdTimeUtc"]);
    let other = json!({"content": {"deviceContent": {"properties.desired.x": 2}}});
    put("*", other).await.expect_error(400, "ArgumentInvalid");
    for (id, body) in [
        ("Upper", json!({})),
        ("c2", json!({"id": "c3"})),
        ("c2", json!({"targetCondition": "tags.a ="})),
        ("c2", json!({"targetCondition": "FROM devices.jobs"})),
        ("c2", json!({"priority": -1})),
        ("c2", json!({"content": {"deviceContent": {"tags.x": 1}}})),
        ("c2", json!({"content": {"deviceContent": {"properties.desired.a b": 1}}})),
        ("c2", json!({"content": {"otherContent": {}}})),
        ("c2", json!({"metrics": {"queries": {"m": "SELECT"}}})),
    ] {
        let answer = hub.call(Method::PUT, &format!("/configurations/{id}"), body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
    }
    hub.call(Method::GET, "/configurations/c2", Value::Null).await.expect_error(404, "ConfigurationNotFound");
    hub.call_if(Method::PUT, "/configurations/c2", "*", json!({}))
        .await
        .expect_error(404, "ConfigurationNotFound");
    for n in 2..=100 {
        configure(&hub, &format!("c{n}"), "", 1, Value::Null).await;
    }
    hub.call(Method::PUT, "/configurations/c101", json!({})).await.expect_error(403, "IotHubQuotaExceeded");
    let tested = json!({"targetCondition": "tags.x =", "customMetricQueries": {
        "good": "SELECT * FROM devices", "bad": "SELECT * FROM"}});
    let tested = hub.call(Method::POST, "/configurations/testQueries", tested).await.expect(200);
    assert!(tested["targetConditionError"].as_str().unwrap().contains("position 9"), "{tested}");
    let errors = tested["customMetricQueryErrors"].as_object().unwrap();
    assert_eq!(errors.keys().collect::<Vec<_>>(), ["bad"]);
    let fine = json!({"targetCondition": "*", "customMetricQueries": {}});
    let fine = hub.call(Method::POST, "/configurations/testQueries", fine).await.expect(200);
    assert_eq!(fine, json!({"targetConditionError": null, "customMetricQueryErrors": {}}));
}
