//! `fleet status` against the local hub, with devices that report all kinds of things.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod fleet_hub;

use fleet_hub::{Connection, World, exit, healthy, text, unix_now};
use reqwest::Method;
use serde_json::{Value, json};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::{Fingerprint, Identity, RotationId};
use twinkey_sas::Key;

const DAY: u64 = 86_400;

impl World {
    /// Has this device report what a healthy one would that uses its primary key for so long, changed by `change`.
    async fn reports(&self, id: &str, age_secs: u64, change: impl FnOnce(&mut Report)) -> Connection {
        let keys = self.keys(id).await;
        let mut report = healthy(id, &keys, unix_now() - age_secs);
        change(&mut report);
        if report.proof.is_some() {
            report.prove(&keys[0], &id.parse().unwrap());
        }
        self.report(id, &keys[0], report.to_patch()).await
    }

    async fn status(&self, more: &[&str]) -> Value {
        let args = [&["fleet", "status", "--output", "json"], more].concat();
        serde_json::from_str(&self.run_ok(&args).await).unwrap()
    }
}

fn ids(document: &Value) -> Vec<&str> {
    let identities = document["identities"].as_array().unwrap();
    identities.iter().map(|identity| identity["deviceId"].as_str().unwrap()).collect()
}

fn identity<'a>(document: &'a Value, id: &str) -> &'a Value {
    document["identities"].as_array().unwrap().iter().find(|one| one["deviceId"] == id).unwrap()
}

fn offer(made_at: u64, key: OfferedKey) -> Value {
    let rotation = RotationId::generate(made_at * 1000).unwrap();
    json!({"properties": {"desired": Offer { rotation, primary: None, secondary: Some(key), auth: None }.to_patch()}})
}

/// Six devices: well and connected; nobody there; in a duel; on a key that nobody knows; offered a plain key long ago; odd.
async fn mixed() -> (World, Connection) {
    let world = World::start().await;
    world.add_devices(6).await;
    let connected = world.reports("pump-0000", 10 * DAY, |_| {}).await;
    world.reports("pump-0002", 100 * DAY, |report| report.reason = Some(Reason::Duel)).await;
    world
        .reports("pump-0003", 3 * DAY, |report| {
            report.primary.as_mut().unwrap().fingerprint =
                Fingerprint::of(&Key::from_bytes(&[9; 32]).unwrap());
        })
        .await;
    world.reports("pump-0004", 5 * DAY, |report| report.agent = "0.0.9".to_owned()).await;
    let plain = OfferedKey::Plain(Key::from_bytes(&[7; 32]).unwrap());
    world.patch_twin("pump-0004", &offer(unix_now() - 2 * DAY, plain)).await;
    let keys = world.keys("pump-0005").await;
    let odd = json!({"keyRenewal": {"contract": 1, "agent": "<script>alert(1)</script>"}});
    world.report("pump-0005", &keys[0], odd).await;
    for i in 1..6 {
        world.until_disconnected(&format!("pump-000{i}")).await;
    }
    (world, connected)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_device_is_told_with_its_key_its_age_and_its_marks() {
    let (world, _connected) = mixed().await;
    let document = world.status(&[]).await;
    assert_eq!(document["document"], "twinkey-fleet-status/1");
    let well = identity(&document, "pump-0000");
    let keys = world.keys("pump-0000").await;
    assert_eq!(well["marks"], json!([]));
    assert_eq!((&well["active"], &well["registry"]), (&json!("primary"), &json!("compared")));
    let fingerprint = json!(Fingerprint::of(&keys[0]).to_string());
    assert_eq!(well["primary"]["fingerprint"], fingerprint);
    assert_eq!(well["primary"]["registryFingerprint"], fingerprint);
    assert_eq!((&well["isConnected"], &well["isLagging"]), (&json!(true), &json!(false)));
    let age = well["keyAgeSecs"].as_u64().unwrap();
    assert!((10 * DAY..10 * DAY + 3600).contains(&age), "{age}");

    let marks = |id: &str| identity(&document, id)["marks"].clone();
    assert_eq!(identity(&document, "pump-0001")["report"], "none");
    assert_eq!(marks("pump-0001"), json!([]));
    assert_eq!(marks("pump-0002"), json!(["duel"]));
    assert_eq!(marks("pump-0003"), json!(["key-unknown", "slot-mismatch"]));
    assert_eq!(marks("pump-0004"), json!(["offer-plain", "offer-old"]));
    assert_eq!(marks("pump-0005"), json!(["report-unreadable"]));
    let offer = &identity(&document, "pump-0004")["offer"];
    assert_eq!((&offer["isSealed"], &offer["slots"]), (&json!(false), &json!(["secondary"])));
    assert!(offer["ageSecs"].as_u64().unwrap() >= 2 * DAY);

    let summary = &document["summary"];
    for (name, count) in [
        ("identities", 6),
        ("connected", 1),
        ("withAgent", 5),
        ("lagging", 1),
        ("marked", 4),
        ("notCompared", 0),
    ] {
        assert_eq!(summary[name], count, "{name}");
    }
    assert_eq!(summary["versions"], json!({"0.0.9": 1, "0.1.0": 3}));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_the_list_and_not_the_summary() {
    let (world, _connected) = mixed().await;
    for (args, expected) in [
        (&["--older-than", "90d"][..], &["pump-0001", "pump-0002", "pump-0005"][..]),
        (&["--lagging"], &["pump-0004"]),
        (&["--no-agent"], &["pump-0001"]),
        (&["--marked", "--sort", "age"], &["pump-0003", "pump-0004", "pump-0002", "pump-0005"]),
        (&["--marked", "--sort", "age", "--reverse"], &["pump-0002", "pump-0004", "pump-0003", "pump-0005"]),
        (&["--sort", "version", "--older-than", "4d", "--lagging"], &["pump-0004"]),
        (&["--target", "deviceId IN ['pump-0001', 'pump-0003']"], &["pump-0001", "pump-0003"]),
    ] {
        let document = world.status(args).await;
        assert_eq!(ids(&document), expected, "{args:?}");
        let looked_at = if args[0] == "--target" { 2 } else { 6 };
        assert_eq!(document["summary"]["identities"], looked_at, "{args:?}");
    }
    let idle = world.status(&["--disconnected"]).await;
    assert!(!ids(&idle).contains(&"pump-0000"));
    let wrong = world.run(&["fleet", "status", "--target", "tags.site = "]).await;
    assert_eq!(exit(&wrong), 2, "{}", text(&wrong.stderr));
    assert!(text(&wrong.stderr).contains("--target"), "{}", text(&wrong.stderr));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_has_a_line_for_each_device_and_ends_with_the_summary() {
    let (world, _connected) = mixed().await;
    let table = world.run_ok(&["fleet", "status"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("DEVICE") && lines[1].starts_with("pump-0000"), "{table}");
    assert!(lines[1].contains("connected") && lines[1].contains("10d"), "{table}");
    assert!(lines[4].contains("key-unknown, slot-mismatch"), "{table}");
    assert!(table.contains("6 looked at: 5 with an agent, 1 without"), "{table}");
    assert!(
        table.contains("1 offer-plain: a key stands unsealed")
            && table.contains("oldest 100d")
            && !table.contains('\u{1b}')
            && !table.contains("script"),
        "{table}"
    );
    let listed = world.run_ok(&["fleet", "status", "--marked"]).await;
    assert!(listed.contains("4 of 6 listed"), "{listed}");
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_table_shows_and_replaces_the_one_of_yesterday() {
    let (world, _connected) = mixed().await;
    let file = world.path("fleet.html");
    std::fs::write(&file, "yesterday").unwrap();
    world.run_ok(&["fleet", "status", "--html", file.to_str().unwrap()]).await;
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for part in ["pump-0000", "key-unknown", "offer-plain", "Age of the key in use", "default-src 'none'"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<script"));
    for impossible in ["/nonexistent/fleet.html", "/proc", file.join("x").to_str().unwrap()] {
        let refused = world.run(&["fleet", "status", "--html", impossible]).await;
        assert_eq!(exit(&refused), 2, "{impossible}");
        assert!(refused.stdout.is_empty() && text(&refused.stderr).contains(impossible), "{impossible}");
    }
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_shows_in_any_form_of_output() {
    let (world, _connected) = mixed().await;
    let file = world.path("fleet.html");
    let mut said = String::new();
    for more in
        [&["--output", "json"][..], &["--output", "table"], &["--registry", "--html", file.to_str().unwrap()]]
    {
        let output = world.run(&[&["fleet", "status"], more].concat()).await;
        assert_eq!(exit(&output), 0, "{}", text(&output.stderr));
        said += &(text(&output.stdout) + &text(&output.stderr));
    }
    said += &std::fs::read_to_string(&file).unwrap();
    let mut secrets = vec![Key::from_bytes(&[7; 32]).unwrap()];
    for i in 0..6 {
        secrets.extend(world.keys(&format!("pump-000{i}")).await);
    }
    for secret in secrets {
        assert!(!said.contains(secret.expose_base64(&mut [0; 88])));
    }
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_can_fail_on_marks() {
    let (world, _connected) = mixed().await;
    let marked = world.run(&["fleet", "status", "--fail-on-marked"]).await;
    assert_eq!((exit(&marked), text(&marked.stderr).as_str()), (1, ""));
    let clean =
        world.run(&["fleet", "status", "--fail-on-marked", "--target", "deviceId = 'pump-0000'"]).await;
    assert_eq!(exit(&clean), 0, "{}", text(&clean.stderr));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_image_and_a_second_agent_are_seen_against_an_earlier_run() {
    let world = World::start().await;
    world.add_devices(3).await;
    for i in 0..3 {
        world.reports(&format!("pump-000{i}"), DAY, |_| {}).await;
    }
    let earlier = world.path("earlier.json");
    std::fs::write(&earlier, world.status(&[]).await.to_string()).unwrap();
    world.reports("pump-0001", DAY, |report| report.sequence = 6).await;
    world
        .reports("pump-0002", DAY, |report| {
            report.secondary.as_mut().unwrap().fingerprint = Fingerprint([3; 16]);
        })
        .await;
    let document = world.status(&["--registry=never", "--since", earlier.to_str().unwrap()]).await;
    let marks = |id: &str| identity(&document, id)["marks"].clone();
    assert_eq!(marks("pump-0000"), json!([]));
    assert_eq!(marks("pump-0001"), json!(["sequence-back"]));
    assert_eq!(marks("pump-0002"), json!(["sequence-fork"]));

    for (name, content) in [("not.json", "{"), ("other.json", r#"{"document": "x", "identities": []}"#)] {
        let file = world.path(name);
        std::fs::write(&file, content).unwrap();
        let refused = world.run(&["fleet", "status", "--since", file.to_str().unwrap()]).await;
        assert_eq!(exit(&refused), 2, "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains("--output json"), "{}", text(&refused.stderr));
    }
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_are_looked_at_where_that_is_asked_for() {
    let world = World::start().await;
    world.add_devices(2).await;
    world.run_ok(&["module-identity", "create", "-d", "pump-0001", "-m", "meter"]).await;
    let id = "pump-0001/meter";
    let _connected = world.reports(id, 4 * DAY, |_| {}).await;
    assert_eq!(ids(&world.status(&[]).await).len(), 2);
    let document = world.status(&["--modules"]).await;
    let module = &document["identities"][2];
    assert_eq!((&module["deviceId"], &module["moduleId"]), (&json!("pump-0001"), &json!("meter")));
    assert_eq!((&module["registry"], &module["marks"]), (&json!("compared"), &json!([])));
    let table = world.run_ok(&["fleet", "status", "--modules"]).await;
    assert!(table.lines().any(|line| line.starts_with(id)), "{table}");

    // A proof for the device is none for its module.
    let keys = world.keys(id).await;
    let device = Identity::new("pump-0001", None).unwrap();
    let mut report = healthy(id, &keys, unix_now() - DAY);
    report.prove(&keys[0], &device);
    world.report(id, &keys[0], report.to_patch()).await;
    let document = world.status(&["--modules"]).await;
    assert_eq!(document["identities"][2]["marks"], json!(["proof-fails"]));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_fleet_is_compared_as_far_as_one_call_goes_and_wholly_on_request() {
    let world = World::start().await;
    world.add_devices(1150).await;
    let last = "pump-1149";
    world.reports(last, DAY, |report| report.status = Status::Committed).await;
    let output = world.run(&["fleet", "status", "--output", "json"]).await;
    assert_eq!(exit(&output), 0, "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((ids(&document).len(), &document["summary"]["notCompared"]), (1150, &json!(150)));
    assert!(text(&output.stderr).contains("150 of 1150 not compared"), "{}", text(&output.stderr));
    let whole = world.status(&["--registry"]).await;
    assert_eq!(whole["summary"]["notCompared"], 0);
    let one = world.status(&["--target", "deviceId = 'pump-1149'"]).await;
    assert_eq!(one["identities"][0]["registry"], "compared", "few devices are read one by one");
    let none = world.status(&["--registry=never"]).await;
    assert_eq!(none["summary"]["notCompared"], 1150);
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_shown_although_the_registry_can_not_be_read() {
    let (world, _connected) = mixed().await;
    // A hub that asks for so long a pause is not asked again.
    let busy = json!({"failRequests": [{"method": "GET", "path": "/devices", "code": 429001, "retryAfterSecs": 3600}]});
    world.call(Method::POST, "/$emulator/faults", &busy).await;
    let output = world.run(&["fleet", "status", "--output", "json"]).await;
    assert_eq!(exit(&output), 4, "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["summary"]["notCompared"], 6);
    assert_eq!(identity(&document, "pump-0002")["marks"], json!(["duel"]));
    let said = text(&output.stderr);
    assert!(said.contains("6 of 6 not compared") && said.contains("429") && said.contains("next:"), "{said}");
    let marked = world.run(&["fleet", "status", "--fail-on-marked"]).await;
    assert_eq!(exit(&marked), 1, "{}", text(&marked.stderr));

    // Marks stand where the second look fails.
    let busy = json!({"failRequests": [{"method": "GET", "path": "/twins", "code": 429001, "retryAfterSecs": 3600}]});
    world.call(Method::POST, "/$emulator/faults", &busy).await;
    let output = world.run(&["fleet", "status"]).await;
    assert_eq!(exit(&output), 0, "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("key-unknown") && text(&output.stderr).contains("may be behind"));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes a page to look at: TWINKEY_PAGES=DIR cargo test -p twinkey --test fleet_status -- --ignored"]
async fn a_page_to_look_at() {
    let world = World::start().await;
    world.add_devices(400).await;
    let mut connected = Vec::new();
    for i in (0..400_u64).filter(|i| i % 23 != 0) {
        let id = format!("pump-{i:04}");
        let age = (i * i * 37) % (if i % 90 == 0 { 900 } else { 120 }) * DAY + i * 60;
        let connection = world
            .reports(&id, age, |report| {
                report.agent = ["0.1.0", "0.1.0", "0.1.0", "0.0.9", "0.1.1-rc.1"][i as usize % 5].to_owned();
                match i {
                    41 => report.reason = Some(Reason::Duel),
                    42 | 142 => report.behind = Some(99),
                    43..=45 => report.proof = None,
                    46 => report.primary.as_mut().unwrap().fingerprint = Fingerprint([1; 16]),
                    _ if i % 61 == 0 => report.status = Status::Waiting,
                    _ if i % 71 == 0 => {
                        (report.status, report.reason) = (Status::Rejected, Some(Reason::Refused))
                    }
                    _ => {}
                }
            })
            .await;
        if i % 11 != 0 {
            connected.push(connection);
        }
        if i % 31 == 0 {
            let key = OfferedKey::Sealed(vec![7; 80]);
            world.patch_twin(&id, &offer(unix_now() - i * 3600, key)).await;
        }
    }
    let file = std::path::PathBuf::from(std::env::var_os("TWINKEY_PAGES").unwrap()).join("fleet.html");
    println!("{}", world.run_ok(&["fleet", "status", "--html", file.to_str().unwrap()]).await);
    drop(connected);
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_hub_and_disabled_devices_are_told_plainly() {
    let world = World::start().await;
    let table = world.run_ok(&["fleet", "status"]).await;
    assert!(table.contains("0 looked at"), "{table}");
    world.run_ok(&["device-identity", "create", "-d", "d1", "--status", "disabled"]).await;
    let table = world.run_ok(&["fleet", "status"]).await;
    assert!(table.contains("never, disabled") && table.contains("1 disabled"), "{table}");
    let removed = world.call(Method::DELETE, "/devices/d1?api-version=2021-04-12", &json!(null)).await;
    assert_eq!(removed, Value::Null);
    world.hub.shutdown().await;
}
