//! What a device does while it is connected: twin, methods, telemetry, messages from the cloud.

use reqwest::Method;
use serde_json::{Value, json};
use twinkey_tests::waiting::until;

use crate::world::World;

#[tokio::test]
async fn the_twin_is_read_with_its_versions_and_without_the_services_tags() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    assert_eq!(device.does("twin").await, json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));
    world.hub.desire("d1", json!({"interval": 5, "nested": {"a": [1, 2]}})).await;
    let twin = device.does("twin").await;
    assert_eq!(twin["desired"], json!({"interval": 5, "nested": {"a": [1, 2]}, "$version": 2}));
}

#[tokio::test]
async fn reported_properties_are_merged_and_a_null_removes() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    device.ask("report", json!({"patch": {"firmware": "1.2", "radio": {"rssi": -70, "band": 8}}})).await;
    device.ask("report", json!({"patch": {"firmware": null, "radio": {"rssi": -71}}})).await;
    let expected = json!({"radio": {"rssi": -71, "band": 8}, "$version": 3});
    assert_eq!(device.does("twin").await["reported"], expected);
    let seen = world.hub.twin("d1").await;
    let mut reported = seen["properties"]["reported"].clone();
    assert!(reported["$metadata"]["radio"]["rssi"]["$lastUpdated"].is_string(), "{reported}");
    reported.as_object_mut().unwrap().remove("$metadata");
    assert_eq!(reported, expected);
}

#[tokio::test]
async fn a_report_that_breaks_the_twins_rules_is_the_sdks_service_error_and_changes_nothing() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    for patch in [
        json!({"$version": 7}),
        json!({"a.b": 1}),
        json!({"list": [null]}),
        json!({"long": "x".repeat(4097)}),
    ] {
        let raised = device.fails_to("report", json!({"patch": patch})).await;
        assert_eq!(raised.classes, ["ClientError", "ServiceError"], "{patch}: {raised:?}");
    }
    assert_eq!(device.does("twin").await["reported"], json!({"$version": 1}));
    assert_eq!(device.does("is_connected").await, true);
}

#[tokio::test]
async fn a_desired_change_arrives_as_it_was_made_with_nulls_and_version() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    device.does("watch_desired").await;
    world.hub.desire("d1", json!({"interval": 5, "mode": {"name": "eco", "level": 2}})).await;
    assert_eq!(
        device.event("desired").await,
        json!({"interval": 5, "mode": {"name": "eco", "level": 2}, "$version": 2})
    );
    world.hub.desire("d1", json!({"interval": null, "mode": {"level": null}})).await;
    assert_eq!(
        device.event("desired").await,
        json!({"interval": null, "mode": {"level": null}, "$version": 3})
    );
    let twin = device.does("twin").await;
    assert_eq!(twin["desired"], json!({"mode": {"name": "eco"}, "$version": 3}));
}

#[tokio::test]
async fn a_desired_change_that_was_missed_is_made_up_for_after_the_reconnect() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    device.does("watch_desired").await;
    device.does("disconnect").await;
    world.until_gone("d1").await;
    world.hub.desire("d1", json!({"missed": true})).await;
    device.does("connect").await;
    // The SDK reads the twin by itself and tells of the whole, since the version has moved on.
    assert_eq!(device.event("desired").await, json!({"missed": true, "$version": 2}));
}

#[tokio::test]
async fn a_direct_method_is_answered_with_the_devices_status_and_payload() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    device.does("serve_methods").await;
    let mut service = world.service().await;
    for payload in [json!({"n": 1}), json!([1, "zwei", null]), json!("text")] {
        let request = method("echo", payload.clone());
        let answer = service.call("registry.invoke_device_method", json!(["d1", request])).await;
        assert_eq!(answer, json!({"status": 200, "payload": {"echo": payload}}));
        assert_eq!(device.event("method").await, json!({"name": "echo", "payload": payload}));
    }
    let answer =
        service.call("registry.invoke_device_method", json!(["d1", method("other", json!({}))])).await;
    assert_eq!(answer["status"], 404, "the device's own status is no error of the hub's: {answer}");
}

#[tokio::test]
async fn a_method_that_is_not_answered_times_out_and_one_for_an_absent_device_is_refused() {
    let Some(world) = World::start().await else { return };
    let mut device = world.device("d1").await;
    let mut service = world.service().await;
    let call = json!(["d1", method("echo", json!({}))]);
    let raised = service.refused("registry.invoke_device_method", call.clone()).await;
    assert_eq!((raised.status, raised.code), (json!(404), json!("DeviceNotOnline")));
    let message: Value = serde_json::from_str(raised.body["Message"].as_str().unwrap()).unwrap();
    assert_eq!(message["errorCode"], 404_103);

    device.does("connect").await;
    let raised = service.refused("registry.invoke_device_method", call.clone()).await;
    assert_eq!(raised.code, "DeviceNotOnline", "connected, but it has not subscribed");

    device.ask("serve_methods", json!({"mute": true})).await;
    let raised = service.refused("registry.invoke_device_method", call).await;
    assert_eq!((raised.status, raised.code), (json!(504), json!("GatewayTimeout")));
    assert_eq!(device.event("method").await["name"], "echo", "the device was asked");
}

fn method(name: &str, payload: Value) -> Value {
    json!({"$model": "CloudToDeviceMethod", "methodName": name, "payload": payload,
           "responseTimeoutInSeconds": 5, "connectTimeoutInSeconds": 0})
}

#[tokio::test]
async fn telemetry_arrives_with_its_body_and_its_own_and_system_properties() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    let properties = json!({"alert level": "a&b=c/d%", "grad": "21 °C", "empty": ""});
    let message = json!({
        "body": "{\"level\": 3.2}", "properties": properties, "message_id": "m-1", "correlation_id": "c/1",
        "content_type": "application/json", "content_encoding": "utf-8",
    });
    device.ask("send", message).await;
    device.ask("send", json!({"body": "plain"})).await;
    let seen = world.hub.telemetry("d1").await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(seen[0]["body"], "{\"level\": 3.2}");
    assert_eq!(seen[1]["body"], "plain");
    assert_eq!(seen[0]["properties"], properties);
    assert_eq!(
        seen[0]["system"],
        json!({"message-id": "m-1", "correlation-id": "c/1", "content-type": "application/json",
               "content-encoding": "utf-8", "connection-device-id": "d1"})
    );
}

#[tokio::test]
async fn messages_from_the_cloud_arrive_live_and_those_sent_meanwhile_after_the_reconnect() {
    let Some(world) = World::start().await else { return };
    let mut device = world.connected("d1").await;
    device.does("watch_messages").await;
    let post = async |body: &str| {
        let message = json!({"identity": "d1", "body": body, "properties": {"k 1": "v/2"}});
        assert_eq!(world.hub.operate("c2d", message).await.expect(200)["enqueued"], true);
    };
    post("live").await;
    let message = device.event("message").await;
    assert_eq!((&message["body"], &message["properties"]), (&json!("live"), &json!({"k 1": "v/2"})));
    device.does("disconnect").await;
    world.until_gone("d1").await;
    post("first").await;
    post("second").await;
    let identity = world.hub.call(Method::GET, "/devices/d1", None, Value::Null).await.expect(200);
    assert_eq!(identity["cloudToDeviceMessageCount"], 2);
    device.does("connect").await;
    for body in ["first", "second"] {
        assert_eq!(device.event("message").await["body"], body);
    }
    until("the hub knows that they were received", async || {
        let identity = world.hub.call(Method::GET, "/devices/d1", None, Value::Null).await.expect(200);
        (identity["cloudToDeviceMessageCount"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_module_has_a_twin_methods_and_telemetry_of_its_own() {
    let Some(world) = World::start().await else { return };
    world.hub.create("d1").await;
    let mut module = world.connected("d1/m1").await;
    module.does("watch_desired").await;
    module.does("serve_methods").await;
    world.hub.desire("d1/m1", json!({"speed": 1})).await;
    assert_eq!(module.event("desired").await, json!({"speed": 1, "$version": 2}));
    module.ask("report", json!({"patch": {"speed": 1}})).await;
    assert_eq!(world.hub.twin("d1/m1").await["properties"]["reported"]["speed"], 1);
    assert_eq!(world.hub.twin("d1").await["properties"]["reported"]["$version"], 1);
    let mut service = world.service().await;
    let call = json!(["d1", "m1", method("echo", json!(1))]);
    let answer = service.call("registry.invoke_device_module_method", call).await;
    assert_eq!(answer["payload"], json!({"echo": 1}));
    module.ask("send", json!({"body": "of the module"})).await;
    assert_eq!(world.hub.telemetry("d1/m1").await[0]["body"], "of the module");
}

#[tokio::test]
async fn an_id_with_every_allowed_character_works_from_the_service_to_the_device() {
    let Some(world) = World::start().await else { return };
    // Without + and #: paho itself refuses topics that hold them.
    let id = "Odd-.%_*?!(),:=@$'";
    let mut service = world.service().await;
    let created = service.call("registry.create_device_with_sas", json!([id, null, null, "enabled"])).await;
    assert_eq!(created["deviceId"], id);
    let key = created["authentication"]["symmetricKey"]["secondaryKey"].as_str().unwrap();
    let mut device = world.client(id, key, json!({})).await;
    device.does("connect").await;
    device.does("watch_messages").await;
    device.ask("send", json!({"body": "odd"})).await;
    let message = json!({"identity": id, "body": "for you"});
    assert_eq!(world.hub.operate("c2d", message).await.expect(200)["enqueued"], true);
    assert_eq!(device.event("message").await["body"], "for you");
    device.ask("report", json!({"patch": {"odd": true}})).await;
    let twin = service.call("registry.get_twin", json!([id])).await;
    assert_eq!(
        (&twin["connectionState"], &twin["properties"]["reported"]["odd"]),
        (&json!("Connected"), &json!(true))
    );
    assert_eq!(world.hub.telemetry(id).await[0]["body"], "odd");
}
