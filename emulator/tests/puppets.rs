//! Devices that the operator plays without connections.

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
use support::{TestHub, token, unix_secs};

async fn act(hub: &TestHub, acts: Value) -> u16 {
    hub.operate("puppets", acts).await.status
}

async fn desire(hub: &TestHub, id: &str, desired: Value) {
    let body = json!({"properties": {"desired": desired}});
    hub.call(Method::PATCH, &format!("/twins/{id}"), body).await.expect(200);
}

async fn twin(hub: &TestHub, id: &str) -> Value {
    hub.call(Method::GET, &format!("/twins/{id}"), Value::Null).await.expect(200)
}

#[tokio::test]
async fn a_puppet_looks_connected_and_reports_until_something_would_end_its_connection() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.create_module("d1", "m").await;
    for end in ["puppets", "cut"] {
        assert_eq!(act(&hub, json!([{"identity": "d1", "reported": {"a": 1, "b": 2}}])).await, 200);
        let seen = twin(&hub, "d1").await;
        assert_eq!(seen["connectionState"], "Connected");
        assert_eq!(
            (&seen["properties"]["reported"]["a"], &seen["properties"]["reported"]["b"]),
            (&json!(1), &json!(2))
        );
        let body = match end {
            "puppets" => json!([{"identity": "d1", "connected": false, "reported": {"b": null}}]),
            _ => json!({"identity": "d1"}),
        };
        hub.operate(end, body).await.expect(200);
        assert_eq!(twin(&hub, "d1").await["connectionState"], "Disconnected", "{end}");
    }
    assert_eq!(act(&hub, json!([{"identity": "d1"}])).await, 200);
    let mut device = hub.connect("d1", &keys.primary).await;
    assert!(device.answers().await, "a real device takes the puppet's place");
    assert_eq!(act(&hub, json!([{"identity": "d1"}])).await, 400, "nobody plays a device that is there");

    let path = "/$emulator/twins/d1%2Fm/reported";
    hub.request(Method::PATCH, path, &[], json!({"c": 3})).await.expect(204);
    let module = hub.call(Method::GET, "/twins/d1/modules/m", Value::Null).await.expect(200);
    assert_eq!(
        (&module["connectionState"], &module["properties"]["reported"]["c"]),
        (&json!("Connected"), &json!(3))
    );
}

#[tokio::test]
async fn a_puppets_token_is_judged_as_with_connect_and_whoever_is_refused_does_nothing() {
    let hub = TestHub::start().await;
    let mut acts = Vec::new();
    for (id, is_right) in [("d1", true), ("d2", false)] {
        let (own, other) = (hub.create(id).await.primary, hub.policy_key("device"));
        let key = if is_right { own } else { other };
        let token = token(&format!("localhost/devices/{id}"), &key, unix_secs() + 60, None);
        acts.push(json!({"identity": id, "token": token, "reported": {"a": 1}}));
    }
    acts.push(json!({"identity": "d2", "token": "no token", "reported": {"a": 1}}));
    let answer = hub.operate("puppets", acts.into()).await.expect(200);
    assert_eq!(answer, json!({"refused": ["d2", "d2"]}));
    assert_eq!(twin(&hub, "d1").await["properties"]["reported"]["a"], 1);
    assert_eq!(twin(&hub, "d2").await["properties"]["reported"].get("a"), None);
    assert_eq!(hub.refusals("d2").await, ["signature", "malformed"]);
}

#[tokio::test]
async fn what_no_device_may_report_no_puppet_may() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    for wrong in [
        json!([{"identity": "nobody"}]),
        json!([{"identity": "no identity"}]),
        json!([{"identity": "d1", "reported": {"$version": 7}}]),
        json!([{"identity": "d1", "reported": 7}]),
        json!([{"identity": "d1", "conected": true}]),
        json!({"identity": "d1"}),
    ] {
        let status = act(&hub, wrong.clone()).await;
        assert!(matches!(status, 400 | 404), "{wrong}: {status}");
    }
    assert_eq!(twin(&hub, "d1").await["connectionState"], "Disconnected");
}

#[tokio::test]
async fn changed_desired_properties_of_puppets_are_told_once_and_whoever_waits_is_woken() {
    let hub = TestHub::start().await;
    for id in ["d1", "d2", "d3"] {
        hub.create(id).await;
    }
    desire(&hub, "d1", json!({"a": 1})).await;
    assert_eq!(hub.look("puppets").await, json!({"next": 0, "changed": []}), "nobody is played yet");
    act(&hub, json!([{"identity": "d1"}, {"identity": "d2"}])).await;
    let first = hub.look("puppets").await;
    let names: Vec<_> = first["changed"].as_array().unwrap().iter().map(|it| &it["identity"]).collect();
    assert_eq!(names, ["d1", "d2"]);
    assert_eq!(first["changed"][0]["desired"]["a"], 1);

    let after = format!("puppets?after={}", first["next"]);
    assert_eq!(hub.look(&after).await["changed"], json!([]));
    let waiting = format!("{after}&waitMs=10000");
    let change = async {
        desire(&hub, "d3", json!({"a": 3})).await;
        desire(&hub, "d2", json!({"a": 2})).await;
    };
    let (woken, ()) = tokio::join!(hub.look(&waiting), change);
    assert_eq!(woken["changed"].as_array().unwrap().len(), 1, "{woken}");
    assert_eq!(
        (&woken["changed"][0]["identity"], &woken["changed"][0]["desired"]["a"]),
        (&json!("d2"), &json!(2))
    );

    desire(&hub, "d1", json!({"a": 4})).await;
    desire(&hub, "d2", json!({"a": 5})).await;
    desire(&hub, "d1", json!({"a": 6})).await;
    let page = hub.look(&format!("{after}&max=1")).await;
    assert_eq!(
        (&page["changed"][0]["identity"], &page["changed"][0]["desired"]["a"]),
        (&json!("d2"), &json!(5))
    );
    let rest = hub.look(&format!("puppets?after={}", page["next"])).await;
    assert_eq!(
        (&rest["changed"][0]["identity"], &rest["changed"][0]["desired"]["a"]),
        (&json!("d1"), &json!(6))
    );
    assert_eq!(rest["changed"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_puppets_do_counts_towards_no_limit() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    let updates = async || hub.look("throttles").await["categories"]["twinUpdates"]["operations"].clone();
    let before = updates().await;
    act(&hub, json!([{"identity": "d1", "reported": {"a": 1}}])).await;
    assert_eq!(updates().await, before);
    desire(&hub, "d1", json!({"a": 1})).await;
    assert_ne!(updates().await, before);
}
