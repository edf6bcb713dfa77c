//! Devices that get their hub and their identity from the provisioning service.

use serde_json::{Value, json};

use crate::world::World;

/// Enrols, and says which of its keys is which.
async fn enroll(world: &World, path: &str, body: Value) -> (String, String) {
    let enrollment = world.hub.enroll(path, body).await;
    let key = |slot: &str| enrollment["attestation"]["symmetricKey"][slot].as_str().unwrap().to_owned();
    // The SDK waits as long as it is told.
    world.hub.operate("dps", json!({"retryAfterSecs": 1})).await.expect(200);
    (key("primaryKey"), key("secondaryKey"))
}

#[tokio::test]
async fn an_individual_enrolment_gives_a_device_that_connects_with_its_keys() {
    let Some(world) = World::start().await else { return };
    let body = json!({"deviceId": "roof-7", "payload": {"for": "you"},
                      "initialTwin": {"properties": {"desired": {"rate": 5}}}});
    let (primary, secondary) = enroll(&world, "enrollments/sn-7", body).await;
    let asked = json!({"payload": {"from": "device"}});
    let result = world.register("sn-7", json!({"key": primary}), asked).await.unwrap();
    assert_eq!(
        result,
        json!({"status": "assigned", "device": "roof-7", "hub": "localhost",
               "substatus": "initialAssignment", "payload": {"for": "you"}})
    );
    let mut device = world.client("roof-7", &secondary, json!({})).await;
    device.does("connect").await;
    assert_eq!(device.does("twin").await["desired"]["rate"], 5);
}

#[tokio::test]
async fn a_member_of_a_group_registers_with_its_derived_key_over_websocket_too() {
    let Some(world) = World::start().await else { return };
    let (group_key, _) = enroll(&world, "enrollmentGroups/roofs", json!({})).await;
    for (id, options) in [("member-1", json!({})), ("member-2", json!({"websockets": true}))] {
        let result = world.register(id, json!({"group_key": group_key}), options).await.unwrap();
        assert_eq!((&result["status"], &result["device"]), (&json!("assigned"), &json!(id)));
        let mut device = world.client(id, &world.hub.keys(id).await.primary, json!({})).await;
        device.does("connect").await;
    }
}

#[tokio::test]
async fn a_disabled_enrolment_and_a_wrong_key_give_no_device() {
    let Some(world) = World::start().await else { return };
    let (right, _) = enroll(&world, "enrollments/sn-8", json!({"provisioningStatus": "disabled"})).await;
    let raised = world.register("sn-8", json!({"key": right}), json!({})).await.unwrap_err();
    assert!(raised.texts[1].contains("registration status disabled"), "{raised:?}");
    enroll(&world, "enrollments/sn-9", json!({})).await;
    let raised = world.register("sn-9", json!({"key": right}), json!({})).await.unwrap_err();
    assert!(raised.texts[1].contains("status code 401"), "{raised:?}");
}
