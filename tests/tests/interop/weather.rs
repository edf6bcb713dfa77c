//! Faults, as the SDKs take them.

use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn the_service_sdk_tries_again_after_500_and_after_429_if_it_is_told_when() {
    let Some(world) = World::start().await else { return };
    let mut service = world.patient_service().await;
    for (id, failure) in [
        ("d1", json!({"path": "/devices/", "code": 500_001, "count": 2})),
        ("d2", json!({"path": "/devices/", "code": 429_001, "count": 1, "retryAfterSecs": 1})),
    ] {
        world.hub.set_faults(json!({"failRequests": [failure]})).await;
        service.call("registry.create_device_with_sas", json!([id, null, null, "enabled"])).await;
    }
    world.hub.set_faults(json!({"failRequests": [{"path": "/devices/", "code": 429_001, "count": 1}]})).await;
    let raised = service.refused("registry.get_device", json!(["d1"])).await;
    assert_eq!((raised.status, raised.code), (json!(429), json!("ThrottlingException")));
    service.call("registry.get_device", json!(["d1"])).await;
}

#[tokio::test]
async fn a_twin_request_that_is_throttled_is_the_sdks_service_error_and_the_next_one_works() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    let throttled = json!([{"identity": "d1", "request": "report", "code": 429_001, "count": 1}]);
    world.hub.set_faults(json!({"failTwinRequests": throttled})).await;
    let raised = device.fails_to("report", json!({"patch": {"a": 1}})).await;
    assert_eq!(raised.classes, ["ClientError", "ServiceError"]);
    device.ask("report", json!({"patch": {"a": 2}})).await;
    assert_eq!(world.hub.twin("d1").await["properties"]["reported"]["a"], 2);
}

#[tokio::test]
async fn a_hub_that_takes_its_time_loses_nothing() {
    let Some(world) = World::start_with(&["--latency", "300ms"]).await else { return };
    let mut device = world.connected("d1").await;
    device.does("watch_desired").await;
    device.ask("send", json!({"body": "slow"})).await;
    world.hub.desire("d1", json!({"k": 1})).await;
    assert_eq!(device.event("desired").await, json!({"k": 1, "$version": 2}));
    assert_eq!(world.hub.telemetry("d1").await[0]["body"], "slow");
}

#[tokio::test]
async fn a_hub_whose_clock_is_ten_minutes_ahead_refuses_a_token_of_five() {
    let Some(world) = World::start_with(&["--clock-offset", "660"]).await else { return };
    let keys = world.hub.create("d1").await;
    let mut device = world.client_with_token("d1", &keys.primary, 300).await;
    let raised = device.fails_to("connect", json!({})).await;
    assert_eq!(raised.classes, ["CredentialError", "UnauthorizedError"]);
    assert_eq!(world.hub.history("d1").await.refused[0].reason, "expired");
}
