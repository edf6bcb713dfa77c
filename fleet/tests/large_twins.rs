//! Devices that fill their twins with megabytes, among others that don't. A hub counts control characters as nothing, and
//! sends each as six bytes of JSON.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod fleet_hub;

use std::process::Output;

use fleet_hub::{World, exit, healthy, text, unix_now};
use serde_json::{Map, Value, json};

const DEVICES: usize = 10;
/// It fills properties that are not ours.
const LARGE: &str = "pump-0003";
/// It fills the section that is ours.
const LARGE_IN_OURS: &str = "pump-0006";
/// What is read of one answer, in bytes.
const ANSWER_LEN_MAX: usize = 8 * 1024 * 1024;

/// Patches that make more than that, each small enough for one message.
fn fill() -> Vec<Map<String, Value>> {
    let value = "\u{1}".repeat(4096);
    let value_len = 6 * value.len();
    let names: Vec<usize> = (0..=ANSWER_LEN_MAX / value_len).collect();
    let patch = |names: &[usize]| names.iter().map(|n| (format!("f{n}"), json!(value))).collect();
    names.chunks(7).map(patch).collect()
}

async fn world() -> World {
    let world = World::start().await;
    world.add_devices(DEVICES).await;
    for number in 0..DEVICES {
        let id = format!("pump-{number:04}");
        let keys = world.keys(&id).await;
        let mut patches = vec![healthy(&id, &keys, unix_now() - 60).to_patch()];
        match id.as_str() {
            LARGE => patches.extend(fill().into_iter().map(Value::Object)),
            LARGE_IN_OURS => {
                patches.extend(fill().into_iter().map(|fill| json!({"keyRenewal": {"fill": fill}})));
            }
            _ => {}
        }
        world.report_all(&id, &keys[0], patches).await;
    }
    for id in [LARGE, LARGE_IN_OURS] {
        world.until_disconnected(id).await;
    }
    world
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

fn row<'a>(rows: &'a Value, id: &str) -> &'a Value {
    rows.as_array().unwrap().iter().find(|row| row["deviceId"] == id).unwrap_or_else(|| panic!("no {id}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_of_megabytes_hold_up_no_command_for_the_others() {
    let world = world().await;

    let status = world.run(&["fleet", "status", "--output", "json"]).await;
    assert_eq!(exit(&status), 0, "{}", text(&status.stderr));
    let document = json_of(&status);
    let identities = &document["identities"];
    assert_eq!(identities.as_array().unwrap().len(), DEVICES);
    for number in 0..DEVICES {
        let id = format!("pump-{number:04}");
        let (report, marks) = match id.as_str() {
            LARGE_IN_OURS => ("too-long", json!(["twin-too-long"])),
            _ => ("report", json!([])),
        };
        let row = row(identities, &id);
        assert_eq!((&row["report"], &row["marks"]), (&json!(report), &marks), "{id}");
        assert_eq!((&row["status"], &row["registry"]), (&json!("enabled"), &json!("compared")), "{id}");
    }
    assert!(text(&status.stderr).contains("1 of 10 twins"), "{}", text(&status.stderr));

    let plan = world.run(&["rollout", "plan", "--target", "*", "--output", "json"]).await;
    assert_eq!(exit(&plan), 3, "{}", text(&plan.stderr));
    let planned = json_of(&plan);
    for number in 0..DEVICES {
        let id = format!("pump-{number:04}");
        let reason = if id == LARGE_IN_OURS { "twin-too-long" } else { "not-connected" };
        assert_eq!(row(&planned["devices"], &id)["reason"], json!(reason), "{planned:#}");
    }

    let ids: Vec<String> = (0..DEVICES).map(|number| format!("pump-{number:04}")).collect();
    let flags = ["--key-type", "secondary", "--yes", "--no-progress", "--output", "json"];
    let args = [
        &["device-identity", "renew-key", "-d"],
        &ids.iter().map(String::as_str).collect::<Vec<_>>()[..],
        &flags,
    ];
    let renewal = world.run(&args.concat()).await;
    let outcomes = json_of(&renewal);
    for id in &ids {
        let row = row(&outcomes, id);
        let expected = match id.as_str() {
            // Before it is refused, each twin is read by itself, and whole.
            LARGE | LARGE_IN_OURS => ("failed", "twin-too-long"),
            _ => ("refused", "not-connected"),
        };
        let found = (row["outcome"].as_str().unwrap(), row["reason"].as_str().unwrap());
        assert_eq!(found, expected, "{id}: {row:#}");
    }
}
