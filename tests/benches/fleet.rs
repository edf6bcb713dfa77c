//! What renewing a whole fleet takes: devices a minute, the hub's operations by category, memory and processor time of
//! the operator and of the hub. Hub and operator are the real programs in processes of their own; this one plays the
//! devices.
//!
//! `cargo bench -p twinkey-tests --bench fleet -- [--devices 100,1000] [--limits off,S1,S3] [--play light|puppets]
//! [--slots N] [--command 'device-identity renew-key …']`
//!
//! `light` devices have real connections, and their own twin requests and CONNECTs are among the operations. `puppets`
//! have none (`twinkey_tests::light::Puppets`), and what they do is not counted: all operations are the operator's. In
//! the command, `{dir}` stands for an empty directory; who the hub is, is added. `--slots` says how many keys of each
//! device the command renews.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that can't be made ends by panicking"
)]

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use twinkey_tests::chance::Chance;
use twinkey_tests::hub::TestHub;
use twinkey_tests::light::{LightFleet, Manners, Puppets};
use twinkey_tests::vitals::{Usage, raise_descriptors};

/// Both keys of every device.
const COMMAND: &str = "device-identity renew-key -d * --key-type in-turn --timeout 1h --yes --no-progress --no-challenge --output json";
const SLOTS: u64 = 2;
/// Descriptors that are not connections; while a key is proved, a device has two.
const OTHER_DESCRIPTORS: u64 = 500;
/// Pause between two looks at a running program.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

struct Plan {
    devices: Vec<usize>,
    limits: Vec<String>,
    is_light: bool,
    slots: u64,
    command: String,
}

enum Fleet {
    Light(LightFleet),
    Puppets(Puppets),
}

fn main() {
    let plan = Plan::read(std::env::args().skip(1).filter(|arg| arg != "--bench"));
    let most = plan.devices.iter().copied().max().unwrap_or(0) as u64;
    if plan.is_light {
        let allowed = raise_descriptors(most + OTHER_DESCRIPTORS);
        assert!(allowed >= most + OTHER_DESCRIPTORS, "only {allowed} descriptors are allowed (ulimit -n)");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure_all(&plan));
}

impl Plan {
    fn read(mut args: impl Iterator<Item = String>) -> Self {
        let mut plan = Self {
            devices: vec![100, 1000],
            limits: vec!["off".to_owned()],
            is_light: false,
            slots: SLOTS,
            command: COMMAND.to_owned(),
        };
        while let Some(flag) = args.next() {
            let value = args.next().unwrap_or_else(|| panic!("{flag} needs a value"));
            match flag.as_str() {
                "--devices" => {
                    plan.devices = value.split(',').map(|it| it.parse().expect("a number")).collect()
                }
                "--limits" => plan.limits = value.split(',').map(str::to_owned).collect(),
                "--play" => plan.is_light = value == "light",
                "--slots" => plan.slots = value.parse().expect("a number"),
                "--command" => plan.command = value,
                _ => panic!("{flag} is unknown; the first lines of this file say what there is"),
            }
        }
        plan
    }
}

async fn measure_all(plan: &Plan) {
    let played = if plan.is_light { "light devices" } else { "puppets" };
    println!("`twinkey {}`, {played}:\n", plan.command);
    println!(
        "| devices | limits | s | devices/min | operations per device, by category | operator: peak MiB | KiB/device | \
         ms/device | hub: peak MiB | ms/device | at their end | offers left | lost |"
    );
    println!("|{}", "---:|".repeat(13));
    let base_kib = base_kib().await;
    for &devices in &plan.devices {
        for limits in &plan.limits {
            println!("{}", measure(plan, devices, limits, base_kib).await);
        }
    }
    println!(
        "\nThe operator's memory per device is what goes beyond {} MiB, which it takes for one request.",
        mib(base_kib)
    );
}

async fn measure(plan: &Plan, devices: usize, limits: &str, base_kib: u64) -> String {
    let hub = TestHub::start_program(&[]).await;
    let fleet = match plan.is_light {
        true => {
            let chance = &mut Chance::from_environment();
            Fleet::Light(LightFleet::start(&hub, devices, &Manners::default(), chance).await)
        }
        false => Fleet::Puppets(Puppets::start(&hub, devices).await),
    };
    if limits != "off" {
        hub.set_faults(json!({"throttles": {"tier": limits}})).await;
    }
    hub.reset_throttles().await;
    let hub_before = hub_usage(&hub);
    let dir = tempfile::tempdir().unwrap();
    let command = plan.command.replace("{dir}", dir.path().to_str().unwrap());
    let words: Vec<&str> = command.split_whitespace().collect();
    let began = Instant::now();
    let (operator, is_success) = watch(hub.operator(&words)).await;
    let took = began.elapsed().as_secs_f64();
    let hub_after = hub_usage(&hub);
    let operations = hub.operations().await;
    if !is_success {
        eprintln!("the command failed for some of {devices} devices, limits {limits}");
    }

    // What is offered last is committed with the last rotation that a device took.
    let done = hub.count_devices("properties.reported.keyRenewal.status = 'committed'").await;
    let left = hub.offers_left().await;
    let (proved, lost) = match fleet {
        Fleet::Light(fleet) => (fleet.counts().takeovers, fleet.lost().await.len().to_string()),
        Fleet::Puppets(puppets) => (puppets.committed(), "–".to_owned()),
    };
    assert!(proved <= done * plan.slots, "{proved} keys were proved by {done} devices");
    let each = |secs: f64| secs * 1e3 / devices as f64;
    format!(
        "| {devices} | {limits} | {took:.1} | {:.0} | {} | {} | {:.1} | {:.2} | {} | {:.2} | {} % | {left} | {lost} |",
        devices as f64 / took * 60.0,
        by_category(&operations, devices),
        mib(operator.peak_kib),
        operator.peak_kib.saturating_sub(base_kib) as f64 / devices as f64,
        each(operator.processor_secs),
        mib(hub_after.peak_kib),
        each(hub_after.processor_secs - hub_before.processor_secs),
        proved * 100 / (devices as u64 * plan.slots),
    )
}

/// Runs a command to its end, and says what it took: up to 5 ms before its end.
async fn watch(mut command: Command) -> (Usage, bool) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id().unwrap();
    let mut usage = Usage::default();
    loop {
        usage = Usage::of(pid).unwrap_or(usage);
        tokio::select! {
            ended = child.wait() => return (usage, ended.unwrap().success()),
            () = sleep(LOOK_PAUSE) => {}
        }
    }
}

/// What the operator's program takes for one request.
async fn base_kib() -> u64 {
    let hub = TestHub::start_program(&[]).await;
    hub.create("one").await;
    let (usage, _) = watch(hub.operator(&["device-identity", "show", "-d", "one"])).await;
    usage.peak_kib
}

fn hub_usage(hub: &TestHub) -> Usage {
    hub.process_id().and_then(Usage::of).expect("the hub runs")
}

fn by_category(operations: &BTreeMap<String, u64>, devices: usize) -> String {
    let some = operations.iter().filter(|(_, count)| **count > 0);
    some.map(|(name, count)| format!("{name} {:.2}", *count as f64 / devices as f64))
        .collect::<Vec<_>>()
        .join(", ")
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
