//! `fleet status` and the real agent: what it reports is understood, and nothing about a healthy device is marked.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod fleet_hub;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleet_hub::{World, exit, text};
use serde_json::Value;

/// Longest wait for a device's report.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent as a process, which ends with this.
struct Agent(Child);

impl Agent {
    fn start(world: &World, dir: &Path, connection_string: &Path) -> Self {
        let ready = world.hub.ready();
        let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
        let quote = |path: &Path| Value::from(path.to_str().unwrap()).to_string();
        let config = format!(
            "[hub]\nconnection_string_file = {}\nca_file = {}\nport = {}\nhttps_port = {}\n[state]\ndir = {}\n\
             [local]\nsocket = {}\n[rotation]\npropagation_window_secs = 3\n",
            quote(connection_string),
            quote(&ready.ca_file),
            port(&ready.mqtts),
            port(&ready.https),
            quote(dir),
            quote(&dir.join("agent.sock")),
        );
        let file = dir.join("agent.toml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(dir.join("agent.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinkey"));
        command.args(["agent-process", "run", "--config"]).arg(&file);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The fleet's state once it is as wished.
async fn until(world: &World, wish: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let wait = async {
        loop {
            let said = world.run_ok(&["fleet", "status", "--output", "json"]).await;
            last = serde_json::from_str(&said).unwrap();
            if wish(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "still {last:#}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_device_is_followed_through_a_renewal_without_a_mark() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "pump-7"]).await;
    let connection_string = world.path("pump-7.txt");
    let args = ["device-identity", "connection-string", "-d", "pump-7", "--out"];
    world.run_ok(&[&args[..], &[connection_string.to_str().unwrap()]].concat()).await;
    let dir = world.path("agent");
    std::fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
    let agent = Agent::start(&world, &dir, &connection_string);

    let before = until(&world, |document| document["identities"][0]["active"] == "primary").await;
    let device = &before["identities"][0];
    assert_eq!(device["marks"], serde_json::json!([]), "{device:#}");
    assert_eq!(device["agent"], env!("CARGO_PKG_VERSION"));
    assert!(device["keyAgeSecs"].as_u64().is_some_and(|age| age < 3600), "{device:#}");
    let earlier = world.path("earlier.json");
    std::fs::write(&earlier, before.to_string()).unwrap();

    let renew = ["device-identity", "renew-key", "-d", "pump-7", "--key-type", "secondary", "--yes"];
    let renewed = world.run(&renew).await;
    assert_eq!(exit(&renewed), 0, "{}", text(&renewed.stderr));
    let since = ["fleet", "status", "--output", "json", "--fail-on-marked", "--since"];
    let after = world.run_ok(&[&since[..], &[earlier.to_str().unwrap()]].concat()).await;
    let after: Value = serde_json::from_str(&after).unwrap();
    let device = &after["identities"][0];
    assert_eq!(
        (&device["active"], &device["rotationStatus"]),
        (&"secondary".into(), &"committed".into()),
        "{device:#}"
    );
    assert_eq!(device["secondary"]["fingerprint"], device["secondary"]["registryFingerprint"]);
    assert_eq!((&device["offer"], &device["isLagging"]), (&Value::Null, &false.into()));
    assert!(device["sequence"].as_u64() > before["identities"][0]["sequence"].as_u64());

    // Both keys renewed past it: it lives on its connection, and that is seen.
    let both =
        ["device-identity", "renew-key", "-d", "pump-7", "--key-type", "both", "--no-deliver", "--yes"];
    let forced = world.run(&[&both[..], &["--force-dark", "pump-7"]].concat()).await;
    assert_eq!(exit(&forced), 0, "{}", text(&forced.stderr));
    let dark = world.run(&["fleet", "status", "--fail-on-marked"]).await;
    assert_eq!(exit(&dark), 1);
    assert!(text(&dark.stdout).contains("key-unknown"), "{}", text(&dark.stdout));
    drop(agent);
    world.hub.shutdown().await;
}
