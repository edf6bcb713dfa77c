//! The victim: a device with its agent, and the operator's program.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string, text};
use twinkey_tests::hub::{Keys, TestHub};
use twinkey_tests::waiting::{PATIENCE, until};

pub(crate) const DEVICE: &str = "pump-7";

/// The operator's exit codes.
pub(crate) const DONE: i32 = 0;
pub(crate) const REFUSED: i32 = 3;

/// A device whose agent has connected with its primary key and has reported.
pub(crate) async fn connected(
    hub: &TestHub,
    device: &str,
    choose: impl FnOnce(&mut Settings),
) -> (Gateway, Agent, Keys) {
    let (gateway, keys) = installed(hub, device, choose).await;
    let agent = gateway.start();
    until_reported(hub, device, "the first report", |report| report["active"] == "primary").await;
    (gateway, agent, keys)
}

/// A device whose agent has not been started yet.
pub(crate) async fn installed(
    hub: &TestHub,
    device: &str,
    choose: impl FnOnce(&mut Settings),
) -> (Gateway, Keys) {
    let keys = hub.create(device).await;
    let mut settings = Settings { takes_plain_offers: false, ..Settings::for_hub(hub) };
    choose(&mut settings);
    (Gateway::with(settings, &connection_string("localhost", device, &keys.primary)), keys)
}

/// The section of the twin that the agent, or whoever is connected as the device, has reported.
pub(crate) async fn reported(hub: &TestHub, device: &str) -> Value {
    hub.twin(device).await["properties"]["reported"]["keyRenewal"].take()
}

/// Waits for a report that is as wished.
pub(crate) async fn until_reported(
    hub: &TestHub,
    device: &str,
    what: &str,
    wish: impl Fn(&Value) -> bool,
) -> Value {
    until(what, async || Some(reported(hub, device).await).filter(|report| wish(report))).await
}

/// A renewal's end.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) code: i32,
    /// One for each key, or none where the program said something else.
    pub(crate) outcomes: Vec<Value>,
    pub(crate) words: String,
}

impl Renewal {
    /// The outcomes' words and reasons.
    pub(crate) fn summary(&self) -> Vec<String> {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let line = |row: &Value| format!("{} ({})", word(&row["outcome"]), word(&row["reason"]));
        self.outcomes.iter().map(line).collect()
    }
}

/// Runs `renew-key` to its end.
pub(crate) async fn renew(hub: &TestHub, device: &str, key_type: &str, args: &[&str]) -> Renewal {
    let mut command = hub.renewal(device, key_type);
    command.args(args);
    run(&mut command).await
}

/// Runs one of the operator's commands to its end.
pub(crate) async fn run(command: &mut Command) -> Renewal {
    run_within(PATIENCE, command).await
}

/// The same with a bound of the caller's.
pub(crate) async fn run_within(bound: Duration, command: &mut Command) -> Renewal {
    let output = timeout(bound, command.output()).await.expect("the operator's program ends").unwrap();
    Renewal {
        code: output.status.code().unwrap(),
        outcomes: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        words: text(&output.stderr),
    }
}

/// Renews a key while nobody attacks.
pub(crate) async fn renew_in_peace(hub: &TestHub, device: &str, key_type: &str) {
    let renewal = renew(hub, device, key_type, &["--timeout", "30s"]).await;
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    hub.until_connected(device, key_type).await;
    // What the agent reports after the proof (the time of it) has arrived as well.
    until_reported(hub, device, "the renewed key's report", |report| report["active"] == key_type).await;
}

/// Waits until a message of a program gets through the agent to the hub.
pub(crate) async fn until_heard(hub: &TestHub, gateway: &Gateway, device: &str) {
    let before = hub.telemetry(device).await.len();
    let answer = gateway.program().await.ask(json!({"request": "publish", "body": "here"})).await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert!(hub.telemetry(device).await.len() > before);
}
