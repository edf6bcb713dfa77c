//! Kill -9 at random points of many rotations: of the agent, and now and then of the operator's program too. No device
//! may be lost, and every rotation has to come to its end.
//!
//! `TWINKEY_KILL_ROTATIONS` says how many; `TWINKEY_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};
use twinkey_contract::report::Status;
use twinkey_contract::{Fingerprint, KeySlot};
use twinkey_sas::Key;
use twinkey_tests::chance::Chance;
use twinkey_tests::gateway::{Agent, Gateway, text};
use twinkey_tests::hub::TestHub;
use twinkey_tests::offers;
use twinkey_tests::waiting::PATIENCE;

const DEVICE: &str = "gateway-1";
/// Rotations without `TWINKEY_KILL_ROTATIONS`.
const ROTATIONS: u64 = 25;
/// Most kills of the agent in one rotation.
const KILLS_MAX: u64 = 3;
/// Runs of the operator's program that one rotation may take. A run that finds the agent away is refused, and rightly.
const RUNS_MAX: u32 = 40;

#[derive(Debug, Default)]
struct Tally {
    rotations: u64,
    kills: u64,
    operator_kills: u64,
    lost: Vec<u64>,
}

struct World {
    hub: TestHub,
    gateway: Gateway,
    agent: Option<Agent>,
    chance: Chance,
    tally: Tally,
    /// How long an undisturbed rotation takes the operator, and the agent.
    whole: Duration,
    agents_part: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_device_is_lost_when_agent_and_operator_are_killed_at_random_points_of_rotations() {
    let rotations = match std::env::var("TWINKEY_KILL_ROTATIONS") {
        Ok(text) => text.parse().expect("TWINKEY_KILL_ROTATIONS is a whole number"),
        Err(_) => ROTATIONS,
    };
    let mut world = World::build().await;
    let began_ms = world.hub.history(DEVICE).await.now_ms;
    for number in 0..rotations {
        let slot = if number % 2 == 0 { "primary" } else { "secondary" };
        if world.chance.below(2) == 0 {
            world.kill_during_the_operators_run(slot).await;
        } else {
            world.kill_while_the_agent_is_at_work(slot).await;
        }
        world.tally.rotations += 1;
        if let Err(why) = world.settle(slot).await {
            println!("rotation {number} of the {slot} key: {why}");
            world.tally.lost.push(number);
            break;
        }
    }
    let dark_ms = world.hub.history(DEVICE).await.longest_dark_ms(began_ms);
    let Tally { rotations, kills, operator_kills, lost } = &world.tally;
    println!(
        "{rotations} rotations, {kills} kills, {operator_kills} operator kills, {} devices lost, longest dark {dark_ms:.0} ms",
        lost.len()
    );
    assert!(lost.is_empty());
    assert!(*kills >= *rotations);
}

impl World {
    /// A connected device, and two undisturbed rotations that tell how long one takes.
    async fn build() -> Self {
        let hub = TestHub::start().await;
        let keys = hub.create(DEVICE).await;
        let gateway = Gateway::new(&hub, DEVICE, &keys.primary);
        let agent = Some(gateway.start());
        hub.until_report(DEVICE, "the first report", |report| report.active.is_some()).await;
        let chance = Chance::from_environment();
        let (whole, agents_part) = (Duration::ZERO, Duration::ZERO);
        let mut world = Self { hub, gateway, agent, chance, tally: Tally::default(), whole, agents_part };

        let began = Instant::now();
        world.run_operator_to_its_end("secondary").await;
        world.whole = began.elapsed();
        let began = Instant::now();
        let rotation = world.offer("primary").await;
        world.hub.until_committed(DEVICE, &rotation).await;
        world.agents_part = began.elapsed();
        world.run_operator_to_its_end("secondary").await;
        println!("undisturbed: {:?}, of which the agent's part {:?}", world.whole, world.agents_part);
        world
    }

    /// The moment lies anywhere from the start of the operator's program to its end.
    async fn kill_during_the_operators_run(&mut self, slot: &str) {
        let mut operator = self.start_operator(slot);
        for _ in 0..=self.chance.below(KILLS_MAX) {
            self.kill_agent_within(self.whole).await;
        }
        if self.chance.below(3) == 0 {
            // Random moments are what this is about.
            sleep(self.chance.moment(self.whole / 2)).await;
            operator.kill().await.unwrap();
            self.tally.operator_kills += 1;
        } else {
            end_of(operator).await;
        }
    }

    /// The moment lies in the few milliseconds in which the agent stores, tries and commits.
    async fn kill_while_the_agent_is_at_work(&mut self, slot: &str) {
        self.offer(slot).await;
        for _ in 0..=self.chance.below(KILLS_MAX) {
            self.kill_agent_within(self.agents_part).await;
        }
    }

    async fn kill_agent_within(&mut self, span: Duration) {
        sleep(self.chance.moment(span)).await;
        if let Some(agent) = self.agent.take() {
            agent.kill().await;
        }
        self.agent = Some(self.gateway.start());
        self.tally.kills += 1;
    }

    async fn offer(&self, slot: &str) -> String {
        let keys = self.hub.regenerate(DEVICE, &format!("{slot}Key")).await;
        let rotation = offers::rotation_id();
        // One that nobody vouches for would be no operator's, and stand there for ever.
        let vouching = keys.of_slot(if slot == "primary" { "secondary" } else { "primary" });
        let offer = offers::plain_and_authentic(&rotation, slot, keys.of_slot(slot), vouching, DEVICE);
        self.hub.desire(DEVICE, offer).await;
        rotation
    }

    /// Brings the rotation to its end with the operator's program; then device and registry must agree.
    async fn settle(&mut self, slot: &str) -> Result<(), String> {
        let renewed_to = |wanted: KeySlot, report: &twinkey_contract::report::Report, key: Fingerprint| {
            report.status == Status::Committed
                && report.active == Some(wanted)
                && report.slot(wanted).is_some_and(|held| held.fingerprint == key)
        };
        let wanted = if slot == "primary" { KeySlot::Primary } else { KeySlot::Secondary };
        for _ in 0..RUNS_MAX {
            let key = Key::from_base64(self.hub.keys(DEVICE).await.of_slot(slot)).unwrap();
            let report = self.hub.report(DEVICE).await;
            let is_renewed = report.is_some_and(|report| renewed_to(wanted, &report, Fingerprint::of(&key)));
            let is_offered = !self.hub.twin(DEVICE).await["properties"]["desired"]["keyRenewal"].is_null();
            if is_renewed && !is_offered {
                return self.is_connected_with(slot).await;
            }
            end_of(self.start_operator(slot)).await;
        }
        Err(format!("it is not at its end after {RUNS_MAX} more runs of the operator's program"))
    }

    /// A connection that an earlier key opened does not count.
    async fn is_connected_with(&self, slot: &str) -> Result<(), String> {
        let connected = async {
            while self.hub.history(DEVICE).await.live().is_none_or(|span| span.key != slot) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, connected).await.map_err(|_| "the device does not come back".to_owned())
    }

    fn start_operator(&self, slot: &str) -> Child {
        let mut command = self.hub.renewal(DEVICE, slot);
        command.args(["--timeout", "30s"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    }

    async fn run_operator_to_its_end(&self, slot: &str) {
        let output = end_of(self.start_operator(slot)).await;
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        let outcomes: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(matches!(outcomes[0]["outcome"].as_str(), Some("renewed" | "settled")), "{outcomes}");
    }
}

async fn end_of(operator: Child) -> Output {
    timeout(PATIENCE * 2, operator.wait_with_output()).await.expect("the operator's program ends").unwrap()
}
