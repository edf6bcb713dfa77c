//! `device-identity` and `module-identity` against the local hub: modules, and lists longer than a hub's own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod fleet_hub;

use fleet_hub::{World, exit, text};
use serde_json::Value;
use twinkey_contract::Fingerprint;
use twinkey_contract::connection_string::DeviceConnectionString;

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_created_shown_listed_and_deleted() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "gate-3"]).await;
    let json = async |args: &[&str]| -> Value {
        let args = [args, &["--output", "json"]].concat();
        serde_json::from_str(&world.run_ok(&args).await).unwrap()
    };
    for module in ["meter", "odd-.%_*?!(),:=@$'+#"] {
        let created = json(&["module-identity", "create", "-d", "gate-3", "-m", module]).await;
        assert_eq!(
            (created["deviceId"].as_str(), created["moduleId"].as_str()),
            (Some("gate-3"), Some(module))
        );
    }
    let file = world.path("meter.txt");
    let mut args = vec!["module-identity", "connection-string", "-d", "gate-3", "-m", "meter"];
    args.extend(["--key-type", "secondary", "--out", file.to_str().unwrap()]);
    world.run_ok(&args).await;
    let connection = DeviceConnectionString::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(connection.identity.to_string(), "gate-3/meter");
    let shown = json(&["module-identity", "show", "-d", "gate-3", "-m", "meter"]).await;
    assert_eq!(
        shown["authentication"]["secondaryFingerprint"],
        Fingerprint::of(&connection.key).to_string().as_str()
    );
    let listed = world.run_ok(&["module-identity", "list", "-d", "gate-3"]).await;
    assert!(listed.starts_with("DEVICE/MODULE") && listed.lines().count() == 3, "{listed}");

    let unasked = world.run(&["module-identity", "delete", "-d", "gate-3", "-m", "meter"]).await;
    assert_eq!(exit(&unasked), 2, "without a terminal, --yes is needed");
    world.run_ok(&["module-identity", "delete", "-d", "gate-3", "-m", "meter", "--yes"]).await;
    let gone = world.run(&["module-identity", "show", "-d", "gate-3", "-m", "meter"]).await;
    assert_eq!(exit(&gone), 1, "{}", text(&gone.stderr));
    world.run_ok(&["device-identity", "show", "-d", "gate-3"]).await;
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_devices_than_a_hub_lists_at_once_are_found_page_by_page() {
    let world = World::start().await;
    world.add_devices(1105).await;
    let ids = |listed: &str| -> Vec<String> {
        let listed: Vec<Value> = serde_json::from_str(listed).unwrap();
        let mut ids: Vec<_> =
            listed.iter().map(|device| device["deviceId"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids.dedup();
        ids
    };
    for top in ["all", "-1", "2000"] {
        let output = world.run(&["device-identity", "list", "--top", top, "--output", "json"]).await;
        assert_eq!(exit(&output), 0, "{}", text(&output.stderr));
        assert_eq!(ids(&text(&output.stdout)).len(), 1105, "--top {top}");
        assert!(text(&output.stderr).contains("were not read"), "{}", text(&output.stderr));
        let first: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(first[0]["authentication"].get("primaryFingerprint").is_none());
        assert_eq!(first[0]["authentication"]["type"], "sas");
    }
    let table = world.run_ok(&["device-identity", "list", "--top", "1001"]).await;
    assert!(table.lines().count() == 1002 && table.contains("not read"));
    let with_keys =
        world.run_ok(&["device-identity", "list", "--top", "1001", "--keys", "--output", "json"]).await;
    assert_eq!(ids(&with_keys).len(), 1001);
    let with_keys: Vec<Value> = serde_json::from_str(&with_keys).unwrap();
    assert!(with_keys.iter().all(|device| device["authentication"]["primaryFingerprint"].is_string()));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_small_fleet_come_with_their_fingerprints() {
    let world = World::start().await;
    world.add_devices(3).await;
    let output = world.run(&["device-identity", "list", "--top", "all"]).await;
    assert_eq!(exit(&output), 0);
    assert!(!text(&output.stdout).contains("not read") && text(&output.stdout).lines().count() == 4);
    assert!(text(&output.stderr).is_empty(), "{}", text(&output.stderr));
    world.hub.shutdown().await;
}
