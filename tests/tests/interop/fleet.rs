//! What a back end does to many devices at once: queries, configurations, scheduled jobs.

use serde_json::{Value, json};
use twinkey_tests::waiting::until;

use crate::world::{Service, World};

/// Three devices on two sites, with modules on one of them.
async fn fleet(service: &mut Service) {
    for (id, site, floor) in [("d1", "roof", 1), ("d2", "cellar", -1), ("d3", "roof", 3)] {
        service.call("registry.create_device_with_sas", json!([id, null, null, "enabled"])).await;
        let twin = json!({"$model": "Twin", "tags": {"site": site, "at": {"floor": floor}}});
        service.call("registry.update_twin", json!([id, twin])).await;
    }
    for module in ["m1", "m2"] {
        service.call("registry.create_module_with_sas", json!(["d1", module, "me", null, null])).await;
    }
}

async fn query(service: &mut Service, text: &str) -> Value {
    let specification = json!([{"$model": "QuerySpecification", "query": text}]);
    service.call("registry.query_iot_hub", specification).await
}

/// The ids of the devices that a condition selects.
async fn ids(service: &mut Service, condition: &str) -> Vec<String> {
    let result = query(service, &format!("SELECT * FROM devices WHERE {condition}")).await;
    assert_eq!(result["type"], "twin", "{result}");
    let id = |twin: &Value| twin["deviceId"].as_str().unwrap().to_owned();
    result["items"].as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn a_query_selects_by_tags_properties_and_operators() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    fleet(&mut service).await;
    for (condition, expected) in [
        ("tags.site = 'roof'", &["d1", "d3"][..]),
        ("tags.at.floor > 1", &["d3"]),
        ("tags.site = 'roof' AND tags.at.floor <= 1", &["d1"]),
        ("tags.site = 'cellar' OR tags.at.floor = 3", &["d2", "d3"]),
        ("NOT tags.site = 'roof'", &["d2"]),
        ("tags.site <> 'roof' AND tags.at.floor < 0", &["d2"]),
        ("tags.site IN ['cellar', 'garden']", &["d2"]),
        ("deviceId IN ['d1', 'd2', 'nobody']", &["d1", "d2"]),
        ("is_defined(tags.nothing)", &[]),
        ("status = 'enabled' AND connectionState = 'Disconnected'", &["d1", "d2", "d3"]),
    ] {
        assert_eq!(ids(&mut service, condition).await, expected, "{condition}");
    }
    let modules = query(&mut service, "SELECT * FROM devices.modules WHERE moduleId = 'm2'").await;
    assert_eq!(modules["items"][0]["deviceId"], "d1", "{modules}");
    let raised = service
        .refused("registry.query_iot_hub", json!([{"$model": "QuerySpecification", "query": "SELECT FROM"}]))
        .await;
    assert_eq!(raised.status, 400);
}

#[tokio::test]
async fn a_query_is_answered_page_by_page() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    fleet(&mut service).await;
    let specification = json!({"$model": "QuerySpecification", "query": "SELECT * FROM devices"});
    let (mut found, mut continuation) = (Vec::new(), Value::Null);
    for size in [2, 1] {
        let page = service.call("registry.query_iot_hub", json!([specification, continuation, "2"])).await;
        let twins = page["items"].as_array().unwrap();
        assert_eq!(twins.len(), size, "{page}");
        found.extend(twins.iter().map(|twin| twin["deviceId"].as_str().unwrap().to_owned()));
        continuation = page["continuation"].clone();
    }
    assert_eq!(found, ["d1", "d2", "d3"]);
    assert_eq!(continuation, Value::Null);
}

fn configuration(id: &str, target: &str, priority: u32, value: u32) -> Value {
    json!({"$model": "Configuration", "id": id, "schemaVersion": "1.0", "targetCondition": target,
           "priority": priority, "content": {"deviceContent": {"properties.desired.telemetry": {"every": value}}}})
}

#[tokio::test]
async fn a_configuration_reaches_the_devices_of_its_condition_and_the_higher_priority_wins() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    fleet(&mut service).await;
    let created = service
        .call(
            "configurations.create_configuration",
            json!([configuration("all", "tags.site = 'roof'", 1, 10)]),
        )
        .await;
    assert_eq!((&created["id"], &created["priority"]), (&json!("all"), &json!(1)));
    let every = async |id: &str, value: u32| {
        until("the configuration is applied", async || {
            let twin = world.hub.twin(id).await;
            (twin["properties"]["desired"]["telemetry"]["every"] == value).then_some(())
        })
        .await;
    };
    every("d1", 10).await;
    every("d3", 10).await;
    assert_eq!(world.hub.twin("d2").await["properties"]["desired"]["telemetry"], Value::Null);
    service
        .call(
            "configurations.create_configuration",
            json!([configuration("high", "tags.at.floor > 2", 9, 99)]),
        )
        .await;
    every("d3", 99).await;
    let all = service.call("configurations.get_configurations", json!([])).await;
    assert_eq!(all.as_array().unwrap().len(), 2);
    let read = service.call("configurations.get_configuration", json!(["all"])).await;
    assert_eq!(read["targetCondition"], "tags.site = 'roof'");
    let etag = read["etag"].clone();
    let raised = service
        .refused("configurations.create_configuration", json!([configuration("all", "*", 1, 10)]))
        .await;
    assert_eq!(raised.status, 409);
    let moved = configuration("all", "tags.site = 'cellar'", 1, 10);
    service.call("configurations.update_configuration", json!([moved, etag])).await;
    every("d2", 10).await;
    let raised = service.refused("configurations.update_configuration", json!([moved, etag])).await;
    assert_eq!((raised.status, raised.code), (json!(412), json!("PreconditionFailed")));
    service.call("configurations.delete_configuration", json!(["all"])).await;
    let raised = service.refused("configurations.get_configuration", json!(["all"])).await;
    assert_eq!(raised.status, 404);
    let wrong = json!([{"$model": "ConfigurationQueriesTestInput", "targetCondition": "tags.site ="}]);
    let tested = service.call("configurations.test_configuration_queries", wrong).await;
    assert!(tested["targetConditionError"].is_string(), "{tested}");
}

async fn job_becomes(service: &mut Service, id: &str, status: &str) -> Value {
    until(&format!("the job is {status}"), async || {
        let job = service.call("jobs.get_scheduled_job", json!([id])).await;
        (job["status"] == status).then_some(job)
    })
    .await
}

#[tokio::test]
async fn a_scheduled_job_updates_twins_and_counts_its_devices() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    fleet(&mut service).await;
    let request = json!({"$model": "JobRequest", "jobId": "j1", "type": "scheduleUpdateTwin",
        "updateTwin": {"etag": "*", "properties": {"desired": {"job": 1}}},
        "queryCondition": "tags.site = 'roof'", "maxExecutionTimeInSeconds": 60});
    let created = service.call("jobs.create_scheduled_job", json!(["j1", request])).await;
    assert_eq!((&created["jobId"], &created["type"]), (&json!("j1"), &json!("scheduleUpdateTwin")));
    let done = job_becomes(&mut service, "j1", "completed").await;
    assert_eq!(done["deviceJobStatistics"]["succeededCount"], 2, "{done}");
    for (id, expected) in [("d1", json!(1)), ("d2", Value::Null), ("d3", json!(1))] {
        assert_eq!(world.hub.twin(id).await["properties"]["desired"]["job"], expected, "{id}");
    }
    let raised = service.refused("jobs.get_scheduled_job", json!(["j2"])).await;
    assert_eq!((raised.status, raised.code), (json!(404), json!("JobNotFound")));
    let listed = service.call("jobs.query_scheduled_jobs", json!(["scheduleUpdateTwin", "completed"])).await;
    assert_eq!(listed["items"][0]["jobId"], "j1", "{listed}");
}

#[tokio::test]
async fn a_scheduled_job_calls_methods_and_one_of_the_future_can_be_cancelled() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    let mut device = world.connected("d1").await;
    device.does("serve_methods").await;
    let method = json!({"methodName": "echo", "payload": 5, "responseTimeoutInSeconds": 10});
    let mut request = json!({"$model": "JobRequest", "jobId": "now", "type": "scheduleDeviceMethod",
        "cloudToDeviceMethod": method, "queryCondition": "deviceId IN ['d1']", "maxExecutionTimeInSeconds": 60});
    service.call("jobs.create_scheduled_job", json!(["now", request])).await;
    assert_eq!(device.event("method").await, json!({"name": "echo", "payload": 5}));
    job_becomes(&mut service, "now", "completed").await;
    request["jobId"] = json!("later");
    request["startTime"] = json!("2099-01-01T00:00:00.000Z");
    let created = service.call("jobs.create_scheduled_job", json!(["later", request])).await;
    assert!(["queued", "scheduled"].contains(&created["status"].as_str().unwrap()), "{created}");
    service.call("jobs.cancel_scheduled_job", json!(["later"])).await;
    job_becomes(&mut service, "later", "cancelled").await;
}
