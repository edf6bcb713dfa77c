//! Scheduled jobs: twin updates and direct methods for many devices, their outcomes, and how they end.

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

fn update(condition: &str, desired: Value) -> Value {
    json!({"type": "scheduleUpdateTwin", "queryCondition": condition, "maxExecutionTimeInSeconds": 60,
        "updateTwin": {"etag": "*", "tags": {"done": true}, "properties": {"desired": desired}}})
}

async fn schedule(hub: &TestHub, id: &str, body: Value) -> Value {
    hub.call(Method::PUT, &format!("/jobs/v2/{id}"), body).await.expect(200)
}

async fn job(hub: &TestHub, id: &str) -> Value {
    hub.call(Method::GET, &format!("/jobs/v2/{id}"), Value::Null).await.expect(200)
}

/// Waits until a job has this status.
async fn becomes(hub: &TestHub, id: &str, status: &str) -> Value {
    let waiting = async {
        loop {
            let job = job(hub, id).await;
            if job["status"] == status {
                return job;
            }
        }
    };
    match timeout(PATIENCE, waiting).await {
        Ok(job) => job,
        Err(_) => panic!("{} and not {status}", job(hub, id).await),
    }
}

async fn rows(hub: &TestHub, condition: &str) -> Vec<Value> {
    let query = json!({"query": format!("SELECT * FROM devices.jobs WHERE {condition}")});
    let answer = hub.call(Method::POST, "/devices/query", query).await;
    assert_eq!(answer.header("x-ms-item-type"), Some("deviceJob"));
    answer.expect(200).as_array().unwrap().clone()
}

#[tokio::test]
async fn an_update_reaches_every_device_of_its_condition() {
    let hub = TestHub::start().await;
    for n in 0..120 {
        let entry = json!([{"id": format!("d{n}"), "importMode": "create", "tags": {"even": n % 2 == 0}}]);
        hub.call(Method::POST, "/devices", entry).await.expect(200);
    }
    let queued = schedule(&hub, "j1", update("tags.even = true", json!({"x": 1}))).await;
    assert_eq!((&queued["jobId"], &queued["type"]), (&json!("j1"), &json!("scheduleUpdateTwin")));
    let done = becomes(&hub, "j1", "completed").await;
    assert_eq!(
        done["deviceJobStatistics"],
        json!({"deviceCount": 60, "failedCount": 0, "succeededCount": 60, "runningCount": 0, "pendingCount": 0})
    );
    assert!(done["endTime"].as_str() >= done["startTime"].as_str(), "{done}");
    for (id, expected) in [("d0", json!(1)), ("d118", json!(1)), ("d1", Value::Null)] {
        let twin = hub.call(Method::GET, &format!("/twins/{id}"), Value::Null).await.expect(200);
        assert_eq!(twin["properties"]["desired"]["x"], expected, "{id}");
    }
    let found =
        rows(&hub, "devices.jobs.deviceId = 'd4' AND devices.jobs.createdTimeUtc > '2016-09-01'").await;
    assert_eq!(
        (found.len(), &found[0]["jobId"], &found[0]["status"]),
        (1, &json!("j1"), &json!("completed"))
    );
    assert_eq!(rows(&hub, "jobId = 'j1' AND status = 'completed'").await.len(), 60);
    assert_eq!(rows(&hub, "jobId = 'j2'").await.len(), 0);
    hub.call(Method::PUT, "/jobs/v2/j1", update("*", json!({}))).await.expect_error(409, "JobAlreadyExists");
}

#[tokio::test]
async fn methods_are_called_and_their_answers_kept() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    hub.create("offline").await;
    let mut live = hub.connect("d1", &keys.primary).await;
    live.subscribe("$iothub/methods/POST/#", QoS::AtMostOnce).await;
    let body = json!({"jobId": "j1", "type": "scheduleDeviceMethod", "queryCondition": "*",
        "cloudToDeviceMethod": {"methodName": "reboot", "payload": {"in": 3}, "responseTimeoutInSeconds": 30}});
    schedule(&hub, "j1", body).await;
    let asked = live.receive_publish().await;
    assert_eq!(asked.payload, "{\"in\":3}");
    let rid = asked.topic.rsplit('=').next().unwrap().to_owned();
    live.publish(&format!("$iothub/methods/res/202/?$rid={rid}"), "{\"ok\":true}").await;
    let done = becomes(&hub, "j1", "completed").await;
    assert_eq!(
        (&done["deviceJobStatistics"]["succeededCount"], &done["deviceJobStatistics"]["failedCount"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(done["cloudToDeviceMethod"]["methodName"], "reboot");
    let found = rows(&hub, "jobId = 'j1'").await;
    assert_eq!(found[0]["outcome"]["deviceMethodResponse"], json!({"status": 202, "payload": {"ok": true}}));
    assert_eq!(
        (&found[1]["status"], &found[1]["error"]["code"]),
        (&json!("failed"), &json!("DeviceNotOnline"))
    );
}

#[tokio::test]
async fn a_job_of_the_future_waits_and_can_be_cancelled() {
    let hub = TestHub::start().await;
    hub.create("d1").await;
    let mut later = update("*", json!({"x": 1}));
    later["startTime"] = "2126-11-21T10:00:00.000Z".into();
    let scheduled = schedule(&hub, "later", later).await;
    assert_eq!(
        (&scheduled["status"], &scheduled["startTime"]),
        (&json!("scheduled"), &json!("2126-11-21T10:00:00.000Z"))
    );
    let mut east = update("*", json!({"x": 3}));
    east["startTime"] = "2126-11-21T12:00:00+02:00".into();
    assert_eq!(schedule(&hub, "east", east).await["status"], "scheduled");
    let cancelled = hub.call(Method::POST, "/jobs/v2/later/cancel", Value::Null).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");
    let again = hub.call(Method::POST, "/jobs/v2/later/cancel", Value::Null).await.expect(200);
    assert_eq!(again["endTime"], cancelled["endTime"], "a finished job stays as it is");
    let mut past = update("*", json!({"x": 2}));
    past["startTime"] = "2020-01-01T00:00:00Z".into();
    schedule(&hub, "past", past).await;
    becomes(&hub, "past", "completed").await;
    let twin = hub.call(Method::GET, "/twins/d1", Value::Null).await.expect(200);
    assert_eq!(twin["properties"]["desired"]["x"], 2);
    hub.call(Method::POST, "/jobs/v2/none/cancel", Value::Null).await.expect_error(404, "JobNotFound");
}

#[tokio::test]
async fn a_cancelled_or_overlong_job_gives_up_its_calls() {
    let hub = TestHub::start().await;
    let keys = hub.create("d1").await;
    let mut live = hub.connect("d1", &keys.primary).await;
    live.subscribe("$iothub/methods/POST/#", QoS::AtMostOnce).await;
    let body = |secs: u64| {
        json!({"type": "scheduleDeviceMethod", "queryCondition": "deviceId = 'd1'",
        "cloudToDeviceMethod": {"methodName": "slow", "responseTimeoutInSeconds": 300},
        "maxExecutionTimeInSeconds": secs})
    };
    schedule(&hub, "j1", body(3600)).await;
    live.receive_publish().await;
    let running = job(&hub, "j1").await;
    assert_eq!(
        (&running["status"], &running["deviceJobStatistics"]["runningCount"]),
        (&json!("running"), &json!(1))
    );
    hub.call(Method::POST, "/jobs/v2/j1/cancel", Value::Null).await.expect(200);
    assert_eq!(rows(&hub, "jobId = 'j1'").await[0]["status"], "cancelled");
    schedule(&hub, "j2", body(1)).await;
    live.receive_publish().await;
    let failed = becomes(&hub, "j2", "failed").await;
    assert_eq!(failed["failureReason"], "maxExecutionTimeInSeconds is over");
    assert_eq!(failed["deviceJobStatistics"]["failedCount"], 1);
}

#[tokio::test]
async fn listings_are_an_array_for_most_and_an_object_for_msrest() {
    let hub = TestHub::start().await;
    for id in ["j1", "j2", "j3"] {
        schedule(&hub, id, update("deviceId = 'none'", json!({}))).await;
        becomes(&hub, id, "completed").await;
    }
    let path = "/jobs/v2/query?jobType=scheduleUpdateTwin&jobStatus=completed&pageSize=2";
    let answer = hub.call(Method::GET, path, Value::Null).await;
    let next = answer.header("x-ms-continuation").unwrap().to_owned();
    let names = |jobs: &Value| -> Vec<String> {
        jobs.as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&answer.expect(200)), ["j3", "j2"]);
    let rest =
        hub.call(Method::GET, &format!("{path}&continuationToken={next}"), Value::Null).await.expect(200);
    assert_eq!(names(&rest), ["j1"]);
    assert_eq!(
        hub.call(Method::GET, "/jobs/v2/query?jobStatus=failed", Value::Null).await.expect(200),
        json!([])
    );
    let headers = [
        ("authorization", hub.policy_token("registryRead")),
        ("user-agent", "python/3.11 msrest/0.7.1 azure-iot-hub/2.7.0".to_owned()),
    ];
    let path = "/jobs/v2/query?api-version=2021-04-12";
    let answer = hub.request(Method::GET, path, &headers, Value::Null).await.expect(200);
    assert_eq!((&answer["type"], answer["items"].as_array().unwrap().len()), (&json!("jobResponse"), 3));
}

#[tokio::test]
async fn what_is_no_job_is_refused() {
    let hub = TestHub::start().await;
    let good = update("*", json!({"x": 1}));
    let change = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    for wrong in [
        change("jobId", json!("other")),
        change("type", json!("export")),
        change("type", json!("scheduleDeviceMethod")),
        change("queryCondition", json!("tags.x =")),
        change("queryCondition", json!("SELECT * FROM devices")),
        change("startTime", json!("soon")),
        change("maxExecutionTimeInSeconds", json!(0)),
        change("updateTwin", json!({"properties": {"desired": {"a b": 1}}})),
        change("cloudToDeviceMethod", json!({"methodName": "m"})),
    ] {
        let answer = hub.call(Method::PUT, "/jobs/v2/j1", wrong.clone()).await;
        assert_eq!(answer.header("iothub-errorcode"), Some("ArgumentInvalid"), "{wrong}");
    }
    hub.call(Method::GET, "/jobs/v2/j1", Value::Null).await.expect_error(404, "JobNotFound");
}
