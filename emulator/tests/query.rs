//! Queries over REST: what they find, how they page, and what is said about a wrong one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::TestHub;

/// All pages of a query, the sizes of the pages, and the item type.
async fn pages(hub: &TestHub, query: &str, count: usize) -> (Vec<Value>, Vec<usize>, String) {
    let (mut rows, mut sizes, mut continuation) = (Vec::new(), Vec::new(), String::new());
    loop {
        let headers = [
            ("authorization", hub.policy_token("registryRead")),
            ("x-ms-max-item-count", count.to_string()),
            ("x-ms-continuation", continuation.clone()),
        ];
        let answer = hub
            .request(Method::POST, "/devices/query?api-version=2021-04-12", &headers, json!({"query": query}))
            .await;
        let next = answer.header("x-ms-continuation").map(str::to_owned);
        let item_type = answer.header("x-ms-item-type").unwrap_or_default().to_owned();
        let page = answer.expect(200).as_array().unwrap().clone();
        sizes.push(page.len());
        rows.extend(page);
        match next {
            Some(next) => continuation = next,
            None => return (rows, sizes, item_type),
        }
    }
}

async fn rows(hub: &TestHub, query: &str) -> Vec<Value> {
    pages(hub, query, 100).await.0
}

async fn ids(hub: &TestHub, condition: &str) -> Vec<String> {
    let found = rows(hub, &format!("SELECT deviceId FROM devices WHERE {condition}")).await;
    found.iter().map(|row| row["deviceId"].as_str().unwrap().to_owned()).collect()
}

async fn hub_of_ten() -> TestHub {
    let hub = TestHub::start().await;
    for n in 0..10 {
        let id = format!("d{n}");
        hub.create(&id).await;
        let patch = json!({
            "tags": {"floor": n % 3, "name": format!("n{n}"), "in-side": {"x": n}},
            "properties": {"desired": {"interval": n * 10}},
        });
        hub.call(Method::PATCH, &format!("/twins/{id}"), patch).await.expect(200);
    }
    hub.create_module("d1", "m1").await;
    hub.create_module("d2", "m2").await;
    hub
}

#[tokio::test]
async fn conditions_look_into_every_part_of_a_twin() {
    let hub = hub_of_ten().await;
    let mut disabled = hub.identity("d3").await;
    disabled["status"] = "disabled".into();
    hub.call_if(Method::PUT, "/devices/d3", "*", disabled).await.expect(200);
    let keys = support::Keys::of(&hub.identity("d4").await);
    let mut live = hub.connect("d4", &keys.primary).await;
    live.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", "{\"net\":{\"kind\":\"wifi\"}}").await;
    live.receive_publish().await;
    let etag =
        hub.call(Method::GET, "/twins/d5", Value::Null).await.body["etag"].as_str().unwrap().to_owned();
    for (condition, expected) in [
        ("tags.floor = 1", "d1 d4 d7"),
        ("tags.floor = 1 AND properties.desired.interval > 10", "d4 d7"),
        ("tags.[[in-side]].x IN [2, 5]", "d2 d5"),
        ("properties.desired.$version = 2 AND tags.name = 'n6'", "d6"),
        ("is_defined(properties.desired.$metadata.interval.$lastUpdated) AND tags.floor = 0", "d0 d3 d6 d9"),
        ("status = 'disabled'", "d3"),
        ("connectionState = 'Connected'", "d4"),
        ("properties.reported.net.kind = 'wifi'", "d4"),
        ("lastActivityTime > '2020-01-01'", "d4"),
        ("capabilities.iotEdge = true", ""),
        ("authenticationType = 'sas' AND STARTSWITH(deviceId, 'd1')", "d1"),
        ("deviceId IN ['d9', 'd2', 'none'] AND version > 1", "d2 d9"),
        ("moduleId = 'm1'", ""),
        ("deviceEtag = 'x' OR cloudToDeviceMessageCount > 0", ""),
    ] {
        assert_eq!(ids(&hub, condition).await.join(" "), expected, "{condition}");
    }
    assert_eq!(ids(&hub, &format!("etag = '{etag}' AND deviceId = 'd5'")).await, ["d5"]);
    let modules = rows(&hub, "SELECT * FROM devices.modules WHERE deviceId IN ['d1']").await;
    assert_eq!((modules.len(), &modules[0]["moduleId"]), (1, &json!("m1")));
    assert!(live.answers().await);
}

/// Every path of a document with what is there, lists as a whole.
fn paths(at: &str, value: &Value, found: &mut Vec<(String, Value)>) {
    for (name, below) in value.as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        found.push((path.clone(), below.clone()));
        paths(&path, below, found);
    }
}

#[tokio::test]
async fn a_query_sees_what_the_document_shows() {
    let hub = TestHub::start().await;
    let configuration = json!({
        "id": "c1",
        "content": {"deviceContent": {"properties.desired.set": {"x": 1}}},
        "targetCondition":
            "x509Thumbprint.primaryThumbprint = null AND is_object(capabilities) AND is_object(properties.desired)",
        "priority": 1,
    });
    hub.call(Method::PUT, "/configurations/c1", configuration).await.expect(200);
    hub.create("d1").await;
    hub.create_module("d1", "m1").await;
    let scope = json!({"capabilities": {"iotEdge": true}, "statusReason": "new", "parentScopes": ["p"]});
    hub.call(Method::PUT, "/devices/edge", scope).await.expect(200);
    let signed = json!({"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "A".repeat(40)}});
    hub.call(Method::PUT, "/devices/x1", json!({"authentication": signed})).await.expect(200);
    let patch = json!({
        "tags": {"whole": 1.0, "small": 0.5, "on": true, "list": [1, "a"], "in": {"side": 7}},
        "properties": {"desired": {"whole": 2.0, "deep": {"er": "s"}}},
    });
    hub.call(Method::PATCH, "/twins/d1", patch).await.expect(200);
    for (source, id) in [("devices", "d1"), ("devices", "edge"), ("devices", "x1"), ("devices.modules", "d1")]
    {
        let all = format!("FROM {source} WHERE deviceId = '{id}'");
        let document = rows(&hub, &format!("SELECT * {all}")).await.remove(0);
        let is_configured = source == "devices" && id != "x1";
        assert_eq!(document["configurations"]["c1"]["status"] == "Applied", is_configured, "{document}");
        let mut known = Vec::new();
        paths("", &document, &mut known);
        assert!(known.len() > 20, "{known:?}");
        for (path, value) in &known {
            let is_type = match value {
                Value::Null => "is_null",
                Value::Bool(_) => "is_bool",
                Value::Number(_) => "is_number",
                Value::String(_) => "is_string",
                Value::Array(_) => "is_array",
                Value::Object(_) => "is_object",
            };
            let query = format!("SELECT {path} AS it {all} AND is_defined({path}) AND {is_type}({path})");
            assert_eq!(rows(&hub, &query).await, [json!({"it": value})], "{query}");
            let grouped = format!("SELECT {path} AS it, COUNT() AS n {all} GROUP BY {path}");
            let expected = [json!({"it": value, "n": 1})];
            assert!(!value.is_object() || rows(&hub, &grouped).await == expected, "{grouped}");
        }
        for path in [
            "moduleId",
            "statusReason",
            "deviceScope",
            "parentScopes",
            "capabilities",
            "capabilities.no",
            "configurations",
            "configurations.no",
            "x509Thumbprint.no",
            "properties.no",
            "status.no",
        ] {
            let is_known = known.iter().any(|(it, _)| it == path);
            let found = rows(&hub, &format!("SELECT deviceId {all} AND is_defined({path})")).await;
            assert_eq!(!found.is_empty(), is_known, "{path} {all}");
        }
    }
}

#[tokio::test]
async fn projections_and_groups_are_raw_rows() {
    let hub = hub_of_ten().await;
    let (found, _, item_type) = pages(
        &hub,
        "SELECT DeviceId, tags.floor AS f, properties.desired FROM devices WHERE tags.name = 'n7'",
        10,
    )
    .await;
    assert_eq!((item_type.as_str(), found.len()), ("raw", 1));
    assert_eq!(
        (&found[0]["deviceId"], &found[0]["f"], &found[0]["desired"]["$version"]),
        (&json!("d7"), &json!(1), &json!(2))
    );
    let query = "SELECT tags.floor AS floor, COUNT() AS n, MAX(properties.desired.interval) AS most FROM devices GROUP BY tags.floor";
    let (found, sizes, _) = pages(&hub, query, 2).await;
    assert_eq!(sizes, [2, 1]);
    assert_eq!(
        found,
        [
            json!({"floor": 0, "n": 4, "most": 90}),
            json!({"floor": 1, "n": 3, "most": 70}),
            json!({"floor": 2, "n": 3, "most": 80}),
        ]
    );
    assert_eq!(rows(&hub, "SELECT COUNT() AS total FROM devices").await, [json!({"total": 10})]);
    assert_eq!(pages(&hub, "SELECT * FROM devices", 3).await.2, "twin");
}

#[tokio::test]
async fn pages_stay_right_while_devices_come_and_go() {
    let hub = hub_of_ten().await;
    assert_eq!(pages(&hub, "SELECT * FROM devices", 5).await.1, [5, 5], "no empty page at the end");
    assert_eq!(pages(&hub, "SELECT TOP 7 * FROM devices", 3).await.1, [3, 3, 1]);
    assert_eq!(pages(&hub, "SELECT TOP 6 * FROM devices", 3).await.1, [3, 3]);
    let headers = |continuation: &str| {
        [
            ("authorization", hub.policy_token("iothubowner")),
            ("x-ms-max-item-count", "4".to_owned()),
            ("x-ms-continuation", continuation.to_owned()),
        ]
    };
    let query = || json!({"query": "SELECT deviceId FROM devices"});
    let path = "/devices/query?api-version=2021-04-12";
    let first = hub.request(Method::POST, path, &headers(""), query()).await;
    let next = first.header("x-ms-continuation").unwrap().to_owned();
    // The last of the first page goes, another comes before it: neither shifts the next page.
    hub.call_if(Method::DELETE, "/devices/d3", "*", Value::Null).await.expect(204);
    hub.create("a0").await;
    let second = hub.request(Method::POST, path, &headers(&next), query()).await.expect(200);
    let names: Vec<&str> =
        second.as_array().unwrap().iter().map(|row| row["deviceId"].as_str().unwrap()).collect();
    assert_eq!(names, ["d4", "d5", "d6", "d7"]);
    for wrong in ["x", "aTUgLy8v", "Z3g"] {
        hub.request(Method::POST, path, &headers(wrong), query()).await.expect_error(400, "ArgumentInvalid");
    }
}

#[tokio::test]
async fn a_wrong_query_is_refused_with_its_position() {
    let hub = TestHub::start().await;
    for (query, said) in [
        (
            "SELECT * FROM devices WHERE",
            "position 28: expected a property, a constant or a function, found the end",
        ),
        ("DELETE FROM devices", "position 1: expected SELECT, found DELETE"),
        ("SELECT * FROM devices WHERE STARTS_WITH(a, 'b')", "there is no function STARTS_WITH"),
    ] {
        let answer = hub.call(Method::POST, "/devices/query", json!({"query": query})).await;
        let body = answer.expect_error(400, "ArgumentInvalid");
        assert!(body["Message"].as_str().unwrap().contains(said), "{body}");
    }
    for count in ["0", "1001", "x"] {
        let headers =
            [("authorization", hub.policy_token("iothubowner")), ("x-ms-max-item-count", count.to_owned())];
        let body = json!({"query": "SELECT * FROM devices"});
        let answer = hub.request(Method::POST, "/devices/query?api-version=2021-04-12", &headers, body).await;
        answer.expect_error(400, "ArgumentInvalid");
    }
}
