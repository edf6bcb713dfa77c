//! Years in an hour: a key renewal every second by the operator's real program, telemetry all the time, and a network
//! and a hub that fail at random. No message may be lost, no device, and the agent may not grow.
//!
//! `TWINKEY_SOAK_SECS` says how long, `TWINKEY_SOAK_SVG` where to draw memory and descriptors over time, `TWINKEY_SEED`
//! repeats a run's choices. `docs/soak.md` has the figures of an hour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use twinkey_contract::{Fingerprint, KeySlot};
use twinkey_sas::Key;
use twinkey_tests::chance::Chance;
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string};
use twinkey_tests::hub::TestHub;
use twinkey_tests::plot::{self, Panel};
use twinkey_tests::proxy::{Direction, Fault, Proxy};
use twinkey_tests::traffic::{Tally, Traffic};
use twinkey_tests::vitals::Vitals;
use twinkey_tests::waiting::{PATIENCE, until, within};

const DEVICE: &str = "gateway-1";
/// How long it takes without `TWINKEY_SOAK_SECS`.
const SECS: u64 = 8;
/// Pause between two messages.
const MESSAGE_PAUSE: Duration = Duration::from_millis(50);
/// Pause between the beginnings of two renewals, and between two looks at the processes.
const SECOND: Duration = Duration::from_secs(1);
/// Longest peace between two faults.
const PEACE_MAX: Duration = Duration::from_secs(40);
/// How much the agent may grow over the second half of the time, by the line of least squares.
const GROWTH_KIB_MAX: f64 = 1_024.0;
/// Time that the agent may need, once all faults are over, to send what waits: its longest pause between two attempts
/// is five minutes.
const REST: Duration = Duration::from_secs(360);

struct World {
    hub: TestHub,
    proxy: Proxy,
    gateway: Gateway,
    agent: Agent,
    end: Instant,
    /// Longest fault.
    longest: Duration,
}

#[derive(Debug, Default)]
struct Renewals {
    done: u64,
    /// Runs of the operator's program that ended otherwise, by exit code and outcome; the next run goes on from there.
    put_off: BTreeMap<(i32, String), u64>,
    /// The slot that comes next.
    slot: &'static str,
}

#[derive(Debug, Default)]
struct Faults {
    by_name: BTreeMap<&'static str, u64>,
    /// When they began, in seconds.
    at: Vec<f64>,
}

#[derive(Debug, Default)]
struct Samples {
    agent: Vec<Vitals>,
    /// The hub, the network and this test, which are one process.
    hub: Vec<Vitals>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_of_renewals_and_faults_loses_no_message_and_no_device_and_the_agent_does_not_grow() {
    let secs = match std::env::var("TWINKEY_SOAK_SECS") {
        Ok(text) => text.parse().expect("TWINKEY_SOAK_SECS is a whole number"),
        Err(_) => SECS,
    };
    let mut chance = Chance::from_environment();
    let hub = TestHub::start().await;
    let keys = hub.create(DEVICE).await;
    let proxy = Proxy::start(hub.mqtts_port(), chance.fork()).await;
    let settings = Settings { propagation_window_secs: 8, ..Settings::at(proxy.port(), hub.ca_file()) };
    let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &keys.primary));
    let agent = gateway.start();
    let began_ms = hub.until_connected(DEVICE, "primary").await.connected_ms;
    let traffic = Traffic::start(&gateway, MESSAGE_PAUSE).await;
    let end = Instant::now() + Duration::from_secs(secs);
    let longest = Duration::from_secs((secs / 8).clamp(1, 60));
    let world = World { hub, proxy, gateway, agent, end, longest };

    let mut renewals = Renewals { slot: "secondary", ..Renewals::default() };
    world.renew_until_done(&mut renewals).await;
    let descriptors = world.descriptors_at_rest().await;
    let ((), faults, samples) =
        tokio::join!(world.renew(&mut renewals), world.fail(&mut chance), world.watch());
    println!("faults: {faults:.1?}");
    println!("renewals: {renewals:?}");

    let tally = traffic.end(&world.hub, DEVICE, REST).await;
    let dark_ms = world.hub.history(DEVICE).await.longest_dark_ms(began_ms);
    println!("messages: {tally:?}; connections: {}; longest dark {dark_ms:.0} ms", world.proxy.accepted());
    world.renew_until_done(&mut renewals).await;
    world.assert_on_newest_key(renewals.slot).await;
    let resident: Vec<f64> = samples.agent.iter().map(|vitals| vitals.resident_kib as f64).collect();
    let growth_kib = growth(&resident[resident.len() / 2..]);
    println!(
        "agent: {} KiB at the beginning, {} in the middle, {} at the end, {growth_kib:+.0} over the second half; {descriptors} descriptors",
        resident[0],
        resident[resident.len() / 2],
        resident[resident.len() - 1],
    );
    if let Some(path) = std::env::var_os("TWINKEY_SOAK_SVG") {
        std::fs::write(&path, picture(&samples, &faults, secs)).unwrap();
        std::fs::write(Path::new(&path).with_extension("csv"), table(&samples)).unwrap();
    }
    assert_eq!(Tally { duplicates: 0, ..tally }, Tally { sent: tally.sent, lost: 0, duplicates: 0 });
    assert!(tally.sent > 0 && !faults.at.is_empty());
    assert!(growth_kib < GROWTH_KIB_MAX, "the agent has grown by {growth_kib:.0} KiB");
    until(&format!("the agent holds {descriptors} descriptors again"), async || {
        (world.descriptors_at_rest().await == descriptors).then_some(())
    })
    .await;
}

impl World {
    /// Renews one slot after the other, one key a second, until the end.
    async fn renew(&self, renewals: &mut Renewals) {
        let mut pace = interval(SECOND);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while Instant::now() < self.end {
            pace.tick().await;
            self.run_operator(renewals).await;
        }
    }

    async fn renew_until_done(&self, renewals: &mut Renewals) {
        let before = renewals.done;
        within(REST, "a renewal comes to its end", async || {
            self.run_operator(renewals).await;
            (renewals.done > before).then_some(())
        })
        .await;
    }

    /// One run of the operator's program. One that finds the device away, or on the key that it should renew after a
    /// fallback, is refused, and rightly.
    async fn run_operator(&self, renewals: &mut Renewals) {
        let mut command = self.hub.renewal(DEVICE, renewals.slot);
        command.args(["--timeout", "60s"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let operator = command.spawn().unwrap();
        let output =
            timeout(PATIENCE * 3, operator.wait_with_output()).await.expect("the operator ends").unwrap();
        let code = output.status.code().expect("it was not killed");
        let outcomes: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let outcome = outcomes[0]["outcome"].as_str().unwrap_or("no outcome");
        if code == 0 && matches!(outcome, "renewed" | "settled") {
            renewals.done += 1;
            renewals.slot = other(renewals.slot);
        } else {
            let reason = outcomes[0]["reason"].as_str().unwrap_or(outcome).to_owned();
            if reason == "slot-in-use" {
                renewals.slot = other(renewals.slot);
            }
            *renewals.put_off.entry((code, reason)).or_default() += 1;
        }
    }

    /// Lets something fail, then nothing for a while, until the end.
    async fn fail(&self, chance: &mut Chance) -> Faults {
        let began = Instant::now();
        let mut faults = Faults::default();
        loop {
            let peace = self.longest.min(PEACE_MAX);
            sleep(peace / 4 + chance.moment(peace * 3 / 4)).await;
            if Instant::now() >= self.end {
                return faults;
            }
            faults.at.push(began.elapsed().as_secs_f64());
            // What every run has, however short: messages that are on their way are surely hit.
            let kind = if faults.at.len() == 1 { 0 } else { chance.below(18) };
            let name = self.fail_once(kind, chance).await;
            *faults.by_name.entry(name).or_default() += 1;
            self.proxy.heal();
        }
    }

    /// What fails, and for how long, is left to chance; that is what this is about.
    async fn fail_once(&self, kind: u64, chance: &mut Chance) -> &'static str {
        let lasting = async |chance: &mut Chance, secs_max: u64| {
            let whole = Duration::from_secs(secs_max).min(self.longest);
            sleep_until((Instant::now() + chance.moment(whole)).min(self.end)).await;
        };
        match kind {
            0 => {
                self.proxy.suffer(Fault::Stall { up: true, down: false });
                sleep(MESSAGE_PAUSE * 3).await;
                self.proxy.reset();
                "stalled, then reset"
            }
            1 => {
                self.proxy.cut();
                "cut"
            }
            2 => {
                self.proxy.reset();
                "reset"
            }
            3 => {
                self.proxy.half_close(Direction::Up);
                "half-closed up"
            }
            4 => {
                self.proxy.half_close(Direction::Down);
                "half-closed down"
            }
            5..=7 => {
                let (up, down, name) =
                    [(true, true, "stalled"), (true, false, "stalled up"), (false, true, "stalled down")]
                        [usize::try_from(chance.below(3)).unwrap()];
                self.proxy.suffer(Fault::Stall { up, down });
                // Now and then longer than the agent's patience.
                let secs_max = if chance.below(4) == 0 { 60 } else { 8 };
                lasting(chance, secs_max).await;
                name
            }
            8 | 9 => {
                self.proxy.suffer(Fault::Throttle { bytes_per_sec: 250 << chance.below(5) });
                lasting(chance, 20).await;
                "throttled"
            }
            10 => {
                self.proxy.suffer(Fault::Corrupt { one_in: 500 << chance.below(5) });
                lasting(chance, 5).await;
                "corrupted"
            }
            11 => {
                self.proxy.suffer(Fault::ResetAfter { bytes: chance.below(4_000) });
                self.proxy.reset();
                lasting(chance, 4).await;
                "reset in the handshake"
            }
            12 => {
                self.proxy.suffer(Fault::Refuse);
                self.proxy.cut();
                lasting(chance, 6).await;
                "nobody listened"
            }
            13 => {
                self.hub.cut(DEVICE).await;
                "cut by the hub"
            }
            14 => {
                let restart = json!({"downMs": chance.below(2_000), "forgetSessions": chance.below(2) == 0});
                // One at a time; another one may be under way.
                self.hub.operate("restart", restart).await;
                "hub restarted"
            }
            15 => {
                let code = [3, 4, 5][usize::try_from(chance.below(3)).unwrap()];
                let entry = json!({"identity": DEVICE, "count": 1 + chance.below(3), "code": code});
                let drops = if chance.below(2) == 0 { "drop" } else { "keep" };
                self.hub.set_faults(json!({"refuseNext": [entry], "onRefusedConnect": drops})).await;
                lasting(chance, 8).await;
                let none = json!({"identity": DEVICE, "count": 0});
                self.hub.set_faults(json!({"refuseNext": [none], "onRefusedConnect": "keep"})).await;
                "refused in passing"
            }
            16 => {
                self.hub
                    .set_faults(
                        json!({"connackDelayMs": chance.below(4_000), "muteConnack": chance.below(2) == 0}),
                    )
                    .await;
                lasting(chance, 8).await;
                self.hub.set_faults(json!({"connackDelayMs": 0, "muteConnack": false})).await;
                "connections throttled"
            }
            _ => {
                self.hub.set_faults(json!({"propagationDelayMs": chance.below(1_500)})).await;
                lasting(chance, 20).await;
                self.hub.set_faults(json!({"propagationDelayMs": 0})).await;
                "new keys were late"
            }
        }
    }

    /// Looks at the processes each second until the end.
    async fn watch(&self) -> Samples {
        let mut samples = Samples::default();
        let mut pace = interval(SECOND);
        while Instant::now() < self.end {
            pace.tick().await;
            samples.agent.push(Vitals::of(self.agent.pid()));
            samples.hub.push(Vitals::of(std::process::id()));
        }
        samples
    }

    /// The agent's descriptors while it holds one connection, the one that stands.
    async fn descriptors_at_rest(&self) -> u64 {
        Vitals::at_rest(self.agent.pid(), || self.proxy.open() == 1).await.descriptors
    }

    /// `next` is the slot whose turn it would be.
    async fn assert_on_newest_key(&self, next: &str) {
        let slot = other(next);
        let wanted = if slot == "primary" { KeySlot::Primary } else { KeySlot::Secondary };
        let key = Key::from_base64(self.hub.keys(DEVICE).await.of_slot(slot)).unwrap();
        let report = self.hub.report(DEVICE).await.unwrap();
        assert_eq!(report.active, Some(wanted), "{report:?}");
        assert_eq!(report.slot(wanted).unwrap().fingerprint, Fingerprint::of(&key));
        self.hub.until_connected(DEVICE, slot).await;
        assert!(self.gateway.publishes().await);
    }
}

fn other(slot: &str) -> &'static str {
    if slot == "primary" { "secondary" } else { "primary" }
}

/// How much the line of least squares through `figures` rises from its beginning to its end.
fn growth(figures: &[f64]) -> f64 {
    let count = figures.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = figures.iter().sum::<f64>() / count;
    let (mut rise, mut run) = (0.0, 0.0);
    for (place, figure) in figures.iter().enumerate() {
        let distance = place as f64 - middle;
        rise += distance * (figure - mean);
        run += distance * distance;
    }
    if run == 0.0 { 0.0 } else { rise / run * (count - 1.0) }
}

/// The figures of the picture, for other programs.
fn table(samples: &Samples) -> String {
    let mut table =
        "second,agent KiB,agent descriptors,hub and test KiB,hub and test descriptors\n".to_owned();
    for (second, (agent, hub)) in samples.agent.iter().zip(&samples.hub).enumerate() {
        let (a, h) = (agent, hub);
        let _ = writeln!(
            table,
            "{second},{},{},{},{}",
            a.resident_kib, a.descriptors, h.resident_kib, h.descriptors
        );
    }
    table
}

fn picture(samples: &Samples, faults: &Faults, secs: u64) -> String {
    let of = |vitals: &[Vitals], figure: fn(&Vitals) -> f64| vitals.iter().map(figure).collect::<Vec<_>>();
    let memory = |vitals: &Vitals| vitals.resident_kib as f64 / 1_024.0;
    let descriptors = |vitals: &Vitals| vitals.descriptors as f64;
    let panels = [
        Panel {
            title: "Resident memory of the agent, MiB",
            lines: vec![("agent", of(&samples.agent, memory))],
        },
        Panel {
            title: "Open descriptors",
            lines: vec![
                ("agent", of(&samples.agent, descriptors)),
                ("hub and test", of(&samples.hub, descriptors)),
            ],
        },
        Panel {
            title: "For comparison, resident memory of both, MiB: the hub keeps every message",
            lines: vec![("agent", of(&samples.agent, memory)), ("hub and test", of(&samples.hub, memory))],
        },
    ];
    plot::svg(&panels, secs as f64, &faults.at, "a fault began")
}
