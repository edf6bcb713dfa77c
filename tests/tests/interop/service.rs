//! What a back end does: identities, twins, statistics, and how the hub says no.

use serde_json::{Value, json};

use crate::world::World;

/// Base64 of 32 bytes.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "HyAhIiMkJSYnKCkqKywtLi8wMTIzNDU2Nzg5Ojs8PT4=";

#[tokio::test]
async fn an_identity_is_created_read_updated_under_its_etag_and_deleted() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    let created =
        service.call("registry.create_device_with_sas", json!(["d1", KEY, OTHER_KEY, "enabled"])).await;
    assert_eq!((&created["deviceId"], &created["status"]), (&json!("d1"), &json!("enabled")));
    assert_eq!(
        created["authentication"]["symmetricKey"],
        json!({"primaryKey": KEY, "secondaryKey": OTHER_KEY})
    );
    assert_eq!(created["connectionState"], "Disconnected");
    assert!(created["generationId"].is_string() && created["etag"].is_string(), "{created}");
    assert_eq!(service.call("registry.get_device", json!(["d1"])).await, created);

    let swapped = json!(["d1", created["etag"], OTHER_KEY, KEY, "disabled", false, "on holiday"]);
    let updated = service.call("registry.update_device_with_sas", swapped.clone()).await;
    assert_eq!(
        updated["authentication"]["symmetricKey"],
        json!({"primaryKey": OTHER_KEY, "secondaryKey": KEY})
    );
    assert_eq!((&updated["status"], &updated["statusReason"]), (&json!("disabled"), &json!("on holiday")));
    assert_eq!(updated["generationId"], created["generationId"]);
    assert_ne!(updated["etag"], created["etag"]);

    let raised = service.refused("registry.update_device_with_sas", swapped).await;
    assert_eq!((raised.status, raised.code), (json!(412), json!("PreconditionFailed")));
    let raised = service.refused("registry.delete_device", json!(["d1", created["etag"]])).await;
    assert_eq!(raised.status, 412);
    service.call("registry.delete_device", json!(["d1", updated["etag"]])).await;
    let raised = service.refused("registry.get_device", json!(["d1"])).await;
    assert_eq!((raised.status, raised.code), (json!(404), json!("DeviceNotFound")));
}

#[tokio::test]
async fn what_the_hub_refuses_is_an_http_error_whose_body_and_header_agree() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    service.call("registry.create_device_with_sas", json!(["d1", null, null, "enabled"])).await;
    let missing = "registry.get_device";
    for (method, args, status, code) in [
        ("registry.create_device_with_sas", json!(["d1", KEY, KEY, "enabled"]), 409, "DeviceAlreadyExists"),
        ("registry.create_device_with_sas", json!(["d2", KEY, null, "enabled"]), 400, "ArgumentInvalid"),
        (
            "registry.create_device_with_sas",
            json!(["d2", "no base64", KEY, "enabled"]),
            400,
            "ArgumentInvalid",
        ),
        ("registry.create_device_with_sas", json!(["a/b", KEY, KEY, "enabled"]), 400, "ArgumentInvalid"),
        (missing, json!(["nobody"]), 404, "DeviceNotFound"),
        ("registry.get_module", json!(["d1", "nothing"]), 404, "ModuleNotFound"),
        ("registry.get_twin", json!(["nobody"]), 404, "DeviceNotFound"),
        ("registry.delete_device", json!(["nobody"]), 404, "DeviceNotFound"),
    ] {
        let raised = service.refused(method, args.clone()).await;
        let said = (raised.status.as_u64().unwrap(), raised.code.as_str().unwrap());
        assert_eq!(said, (status, code), "{method}{args}");
        let message = raised.body["Message"].as_str().unwrap();
        assert!(message.contains(&format!("ErrorCode:{code};")), "{message}");
        assert!(raised.classes[0].contains("Error"), "{raised:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_and_an_unknown_policy_are_unauthorized() {
    let Some(world) = World::start().await else { return };
    let host = format!("localhost:{}", world.hub.https_port());
    let right = world.hub.policy_key();
    for (policy, key) in [("iothubowner", KEY), ("nobody", right.as_str()), ("device", right.as_str())] {
        let login = format!("HostName={host};SharedAccessKeyName={policy};SharedAccessKey={key}");
        let mut service = world.service_with(&login).await;
        let raised = service.refused("registry.get_device", json!(["d1"])).await;
        assert_eq!((raised.status, raised.code), (json!(401), json!("IotHubUnauthorizedAccess")), "{policy}");
    }
}

#[tokio::test]
async fn modules_live_under_their_device_and_go_with_it() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    service.call("registry.create_device_with_sas", json!(["d1", null, null, "enabled"])).await;
    let created = service.call("registry.create_module_with_sas", json!(["d1", "m1", "me", KEY, KEY])).await;
    assert_eq!((&created["moduleId"], &created["managedBy"]), (&json!("m1"), &json!("me")));
    let etag = created["etag"].clone();
    let updated = service
        .call("registry.update_module_with_sas", json!(["d1", "m1", "you", etag, KEY, OTHER_KEY]))
        .await;
    assert_eq!(updated["authentication"]["symmetricKey"]["secondaryKey"], OTHER_KEY);
    assert_eq!(updated["managedBy"], "you");
    assert_eq!(service.call("registry.get_module", json!(["d1", "m1"])).await, updated);
    service.call("registry.create_module_with_sas", json!(["d1", "m2", "me", null, null])).await;
    let all = service.call("registry.get_modules", json!(["d1"])).await;
    let ids: Vec<&Value> = all.as_array().unwrap().iter().map(|module| &module["moduleId"]).collect();
    assert_eq!(ids, ["m1", "m2"]);
    let raised =
        service.refused("registry.create_module_with_sas", json!(["d1", "m2", "me", null, null])).await;
    assert_eq!((raised.status, raised.code), (json!(409), json!("ModuleAlreadyExistsOnDevice")));
    service.call("registry.delete_module", json!(["d1", "m2"])).await;
    service.call("registry.delete_device", json!(["d1"])).await;
    let raised = service.refused("registry.get_module", json!(["d1", "m1"])).await;
    assert_eq!(raised.status, 404);
}

#[tokio::test]
async fn a_bulk_call_changes_what_it_can_and_names_what_it_can_not() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    let device = |id: &str, mode: &str| {
        json!({"$model": "ExportImportDevice", "id": id, "importMode": mode, "status": "enabled",
               "authentication": {"type": "sas", "symmetricKey": {"primaryKey": KEY, "secondaryKey": OTHER_KEY}}})
    };
    let three = json!([[device("b1", "create"), device("b2", "create"), device("b3", "create")]]);
    let result = service.call("registry.bulk_create_or_update_devices", three).await;
    assert_eq!(result["isSuccessful"], true, "{result}");
    let mut partly = json!([[device("b1", "create"), device("b2", "delete"), device("b4", "create")]]);
    partly[0][2]["status"] = json!("disabled");
    let result = service.call("registry.bulk_create_or_update_devices", partly).await;
    assert_eq!(result["isSuccessful"], false);
    let errors = result["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{result}");
    assert_eq!(
        (&errors[0]["deviceId"], &errors[0]["errorStatus"]),
        (&json!("b1"), &json!("DeviceAlreadyExists"))
    );
    let all = service.call("registry.get_devices", json!([])).await;
    let ids: Vec<&Value> = all.as_array().unwrap().iter().map(|device| &device["deviceId"]).collect();
    assert_eq!(ids, ["b1", "b3", "b4"]);
    assert_eq!(service.call("registry.get_devices", json!([2])).await.as_array().unwrap().len(), 2);
    let statistics = service.call("registry.get_device_registry_statistics", json!([])).await;
    assert_eq!(statistics, json!({"totalDeviceCount": 3, "enabledDeviceCount": 2, "disabledDeviceCount": 1}));
}

#[tokio::test]
async fn service_statistics_count_the_connected() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    let mut device = world.connected("d1").await;
    let statistics = service.call("registry.get_service_statistics", json!([])).await;
    assert_eq!(statistics, json!({"connectedDeviceCount": 1}));
    device.does("disconnect").await;
    world.until_gone("d1").await;
    let statistics = service.call("registry.get_service_statistics", json!([])).await;
    assert_eq!(statistics, json!({"connectedDeviceCount": 0}));
}

#[tokio::test]
async fn a_twin_is_patched_under_its_etag_replaced_and_read_with_metadata() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    service.call("registry.create_device_with_sas", json!(["d1", null, null, "enabled"])).await;
    let twin = |tags: Value, desired: Value| json!({"$model": "Twin", "tags": tags, "properties": {"desired": desired}});
    let fresh = service.call("registry.get_twin", json!(["d1"])).await;
    assert_eq!((&fresh["version"], &fresh["properties"]["desired"]["$version"]), (&json!(2), &json!(1)));

    let patch = twin(json!({"site": "roof"}), json!({"a": {"b": 1, "c": 2}, "d": [1]}));
    let patched = service.call("registry.update_twin", json!(["d1", patch, fresh["etag"]])).await;
    assert_eq!(patched["tags"], json!({"site": "roof"}));
    let desired = &patched["properties"]["desired"];
    assert_eq!((&desired["a"]["c"], &desired["$version"]), (&json!(2), &json!(2)));
    assert_eq!(desired["$metadata"]["a"]["b"]["$lastUpdatedVersion"], 2);

    let raised = service
        .refused("registry.update_twin", json!(["d1", twin(json!({}), json!({})), fresh["etag"]]))
        .await;
    assert_eq!((raised.status, raised.code), (json!(412), json!("PreconditionFailed")));

    let nulls = twin(json!({"site": null}), json!({"a": {"b": null}}));
    let patched = service.call("registry.update_twin", json!(["d1", nulls])).await;
    assert_eq!((&patched["tags"], &patched["properties"]["desired"]["a"]), (&json!({}), &json!({"c": 2})));

    let replaced =
        service.call("registry.replace_twin", json!(["d1", twin(json!({"t": 1}), json!({"z": 1}))])).await;
    assert_eq!(replaced["tags"], json!({"t": 1}));
    let desired = &replaced["properties"]["desired"];
    assert_eq!((&desired["z"], &desired["a"], &desired["$version"]), (&json!(1), &Value::Null, &json!(4)));

    for desired in
        [json!({"a.b": 1}), json!({"n": 4_503_599_627_370_496_u64}), json!({"s": "x".repeat(4097)})]
    {
        let raised = service.refused("registry.update_twin", json!(["d1", twin(json!({}), desired)])).await;
        assert_eq!((raised.status, raised.code), (json!(400), json!("ArgumentInvalid")));
    }
}

#[tokio::test]
async fn a_modules_twin_is_its_own() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    service.call("registry.create_device_with_sas", json!(["d1", null, null, "enabled"])).await;
    service.call("registry.create_module_with_sas", json!(["d1", "m1", "me", null, null])).await;
    let twin = json!({"$model": "Twin", "properties": {"desired": {"k": 1}}});
    let patched = service.call("registry.update_module_twin", json!(["d1", "m1", twin])).await;
    assert_eq!((&patched["moduleId"], &patched["properties"]["desired"]["k"]), (&json!("m1"), &json!(1)));
    let twin = json!({"$model": "Twin", "properties": {"desired": {"j": 2}}});
    service.call("registry.replace_module_twin", json!(["d1", "m1", twin])).await;
    let read = service.call("registry.get_module_twin", json!(["d1", "m1"])).await;
    assert_eq!(
        (&read["properties"]["desired"]["j"], &read["properties"]["desired"]["k"]),
        (&json!(2), &Value::Null)
    );
    let device = service.call("registry.get_twin", json!(["d1"])).await;
    assert_eq!(device["properties"]["desired"]["$version"], 1);
}

#[tokio::test]
async fn identities_with_certificates_are_kept_and_shown() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    let (one, other) = ("A".repeat(40), "B".repeat(64));
    let created =
        service.call("registry.create_device_with_x509", json!(["d1", one, other, "enabled"])).await;
    assert_eq!(created["authentication"]["type"], "selfSigned");
    assert_eq!(
        created["authentication"]["x509Thumbprint"],
        json!({"primaryThumbprint": one, "secondaryThumbprint": other})
    );
    let created =
        service.call("registry.create_device_with_certificate_authority", json!(["d2", "enabled"])).await;
    assert_eq!(created["authentication"]["type"], "certificateAuthority");
    assert_eq!(
        service.call("registry.get_twin", json!(["d2"])).await["authenticationType"],
        "certificateAuthority"
    );
}

#[tokio::test]
async fn there_is_no_feedback_and_what_is_left_out_says_so() {
    let Some(world) = World::start().await else { return };
    let mut service = world.service().await;
    assert_eq!(service.call("runtime.receive_feedback_notification", json!([])).await, Value::Null);
    let raised = service.refused("jobs.get_import_export_jobs", json!([])).await;
    assert_eq!(raised.status, 404);
    assert!(raised.body["Message"].as_str().unwrap().contains("this emulator has no"), "{raised:?}");
}
