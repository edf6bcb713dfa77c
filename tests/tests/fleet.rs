//! A fleet of light devices on real MQTT connections, and the operator's real program: undisturbed, and with devices that
//! misbehave while the operator is killed again and again. No device may be lost, and no key may stay in a twin.
//!
//! `TWINKEY_FLEET_DEVICES` and `TWINKEY_FLEET_KILLS` say how many; `TWINKEY_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use twinkey_tests::chance::Chance;
use twinkey_tests::gateway::text;
use twinkey_tests::hub::TestHub;
use twinkey_tests::light::{LightFleet, Manners};
use twinkey_tests::waiting::until;

/// Devices of the undisturbed fleet.
const SMOKE_DEVICES: usize = 200;
/// Devices and kills without the variables.
const DEVICES: usize = 40;
const KILLS: u64 = 5;
/// Runs that may be needed after everybody behaves.
const RUNS_MAX: u32 = 10;
/// How much longer for each device, so that kills hit every part of the rollout.
const LIFE_PER_DEVICE: Duration = Duration::from_millis(15);
/// Longest life of a rollout's operator before it is killed.
const ROLLOUT_LIFE: Duration = Duration::from_secs(4);
/// Longest run of the operator's program, for each hundred devices.
const RUN_MAX: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_devices_move_to_new_keys_in_one_slot_and_then_in_the_other() {
    let hub = TestHub::start().await;
    let fleet =
        LightFleet::start(&hub, SMOKE_DEVICES, &Manners::default(), &mut Chance::from_environment()).await;
    for slot in ["secondary", "primary"] {
        let began = Instant::now();
        let output = run_to_its_end(renewal(&hub, fleet.ids(), slot, "30s"), SMOKE_DEVICES).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(outcomes(&output), BTreeMap::from([("renewed".to_owned(), SMOKE_DEVICES)]));
        println!("{slot}: {:.1} s, {:?}", began.elapsed().as_secs_f64(), fleet.counts());
        assert_eq!(hub.offers_left().await, 0);
    }
    let counts = fleet.counts();
    assert_eq!((counts.takeovers, counts.fallbacks, counts.refusals), (2 * SMOKE_DEVICES as u64, 0, 0));
    assert_eq!(fleet.lost().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_device_of_a_bad_fleet_is_lost_and_no_key_stays_in_a_twin_when_the_operator_is_killed_again_and_again()
 {
    let devices = number("TWINKEY_FLEET_DEVICES").map_or(DEVICES, |number| usize::try_from(number).unwrap());
    let kills = number("TWINKEY_FLEET_KILLS").unwrap_or(KILLS);
    let mut chance = Chance::from_environment();
    let hub = TestHub::start().await;
    let fleet = LightFleet::start(&hub, devices, &Manners::MIXED, &mut chance).await;
    let ids = fleet.ids();

    // How long a run takes tells where it can be killed.
    let began = Instant::now();
    run_to_its_end(renewal(&hub, ids, "secondary", "2s"), devices).await;
    let whole = began.elapsed();
    for number in 0..kills {
        let slot = if number % 2 == 0 { "primary" } else { "secondary" };
        let mut operator = quiet(renewal(&hub, ids, slot, "2s")).spawn().unwrap();
        // Random moments are what this is about.
        tokio::time::sleep(chance.moment(whole)).await;
        operator.kill().await.unwrap();
    }
    println!(
        "{devices} devices, a run takes {:.1} s, {kills} kills: {:?}",
        whole.as_secs_f64(),
        fleet.counts()
    );

    fleet.behave();
    for slot in ["secondary", "primary"] {
        settle(&hub, ids, slot).await;
    }
    println!("at the end: {:?}", fleet.counts());
    assert_eq!(hub.offers_left().await, 0);
    assert_eq!(fleet.lost().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_over_a_bad_fleet_whose_operator_is_killed_again_and_again_renews_both_keys_of_every_device()
 {
    let devices = number("TWINKEY_FLEET_DEVICES").map_or(DEVICES, |number| usize::try_from(number).unwrap());
    let kills = number("TWINKEY_FLEET_KILLS").unwrap_or(KILLS);
    let mut chance = Chance::from_environment();
    let hub = TestHub::start().await;
    let fleet = LightFleet::start(&hub, devices, &Manners::MIXED, &mut chance).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("fleet.ledger");
    let rollout = |args: &[&str]| {
        let mut command = hub.operator(&[&["rollout"], args].concat());
        command.arg("--ledger").arg(&ledger).args(["--no-progress", "--output", "json"]);
        command
    };
    let began = Instant::now();
    let seed = chance.below(1_000).to_string();
    let start = ["start", "--target", "*", "--waves", "10%,100%", "--deadline", "2s", "--retries", "1"];
    let start = [&start[..], &["--parallelism", "100", "--seed", &seed, "--yes", "--no-challenge"]].concat();
    let mut command = rollout(&start);
    let life = ROLLOUT_LIFE + LIFE_PER_DEVICE * u32::try_from(devices).unwrap();
    for kill in 0..kills {
        let mut operator = quiet(command).spawn().unwrap();
        if kill == 0 {
            // Before the ledger is there, nothing has been begun, and nothing can be gone on with.
            until("the ledger", async || ledger.exists().then_some(())).await;
        }
        // Random moments are what this is about.
        tokio::time::sleep(chance.moment(life)).await;
        operator.kill().await.unwrap();
        command = rollout(&["resume", "--retry-failed"]);
    }
    println!(
        "{devices} devices, {kills} kills in {:.1} s: {:?}",
        began.elapsed().as_secs_f64(),
        fleet.counts()
    );
    fleet.behave();
    let report = resume_to_the_end(devices, || rollout(&["resume", "--retry-failed"])).await;
    println!("after {:.1} s: {:?}", began.elapsed().as_secs_f64(), fleet.counts());
    for row in report["devices"].as_array().unwrap() {
        for slot in ["primary", "secondary"] {
            let (before, after) = (&row["before"][slot], &row["after"][slot]);
            assert!(before.is_string() && after.is_string() && before != after, "{slot}: {row:#}");
        }
    }
    assert_eq!(hub.offers_left().await, 0);
    assert_eq!(fleet.lost().await, [""; 0]);
}

/// Goes on with a rollout until all are done; its report.
async fn resume_to_the_end(devices: usize, resume: impl Fn() -> Command) -> Value {
    let mut said = String::new();
    for _ in 0..RUNS_MAX {
        let output = run_to_its_end(resume(), devices).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() && report["devicesByState"]["done"] == devices {
            return report;
        }
        said = format!("{}\n{}", report["devicesByState"], text(&output.stderr));
    }
    panic!("the rollout is not at its end after {RUNS_MAX} more runs: {said}");
}

/// Runs the operator's program until every device lives on its key of `slot` and holds no offer.
async fn settle(hub: &TestHub, ids: &[String], slot: &str) {
    let mut said = String::new();
    for _ in 0..RUNS_MAX {
        let output = run_to_its_end(renewal(hub, ids, slot, "20s"), ids.len()).await;
        let active = format!("properties.reported.keyRenewal.active = '{slot}'");
        if hub.count_devices(&active).await == ids.len() as u64 && hub.offers_left().await == 0 {
            return;
        }
        said = format!("{:?}\n{}", outcomes(&output), text(&output.stderr));
    }
    panic!("the {slot} keys are not at their end after {RUNS_MAX} more runs: {said}");
}

fn renewal(hub: &TestHub, ids: &[String], slot: &str, patience: &str) -> Command {
    let mut command = hub.operator(&[
        "device-identity",
        "renew-key",
        "--yes",
        "--no-progress",
        "--no-challenge",
        "--output",
        "json",
    ]);
    command.args(["--key-type", slot, "--timeout", patience, "--device-id"]).args(ids);
    command
}

/// A command whose words nobody reads: it can be killed without a pipe that fills up.
fn quiet(mut command: Command) -> Command {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

async fn run_to_its_end(mut command: Command, devices: usize) -> Output {
    let bound = RUN_MAX * (1 + u32::try_from(devices / 100).unwrap());
    timeout(bound, command.output()).await.expect("the operator's program ends").unwrap()
}

/// How many devices came to which end.
fn outcomes(output: &Output) -> BTreeMap<String, usize> {
    let Ok(outcomes) = serde_json::from_slice::<Vec<Value>>(&output.stdout) else {
        panic!("no outcomes: {}{}", text(&output.stdout), text(&output.stderr));
    };
    let mut count = BTreeMap::new();
    for outcome in outcomes {
        *count.entry(outcome["outcome"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    count
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number")))
}
