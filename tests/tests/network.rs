//! The real agent behind a network that fails as networks do, while a program publishes all the time and a rotation is
//! under way. No message may be lost, the device has to be back soon after the network is, and no fault of a network
//! may be held against a key.
//!
//! Each test prints its figures. `TWINKEY_RECONNECTS` says how many connections are lost in a row,
//! `TWINKEY_HANDSHAKE_STEP` how many bytes lie between two resets inside the handshake; `TWINKEY_SEED` repeats a run's
//! choices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};
use twinkey_tests::chance::Chance;
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string};
use twinkey_tests::hub::TestHub;
use twinkey_tests::offers;
use twinkey_tests::proxy::{Direction, Fault, Proxy};
use twinkey_tests::traffic::{Tally, Traffic};
use twinkey_tests::vitals::Vitals;
use twinkey_tests::waiting::{until, within};

const DEVICE: &str = "gateway-1";
/// Pause between two messages: short enough that some are on their way whenever something breaks.
const MESSAGE_PAUSE: Duration = Duration::from_millis(1);
/// The same on a link of 250 bytes a second, where a message and its acknowledgement take a third of one.
const SLOW_MESSAGE_PAUSE: Duration = Duration::from_secs(2);
/// 2 kbit/s.
const SLOW_BYTES_PER_SEC: u64 = 250;
/// An outage that is noticed at once: after it, the longest pause between two attempts is four seconds.
const OUTAGE: Duration = Duration::from_secs(3);
/// Bound of the way back after a fault that shows at once.
const BACK_SOON: Duration = Duration::from_secs(15);
/// Bound of the way back where the agent may have to wait for a silent peer first: up to 40 seconds for an answer, and
/// 30 for a TLS handshake.
const BACK_LATE: Duration = Duration::from_secs(90);
/// Bound for a few connections that end because of corrupt bytes. Now and then one falls on a record's length, and both
/// sides wait for more.
const CORRUPTED: Duration = Duration::from_secs(240);
/// How long a message may stay unanswered before the agent gives a connection up: 40 seconds, and a little for
/// messages that are still on their way.
const NOTICED: Duration = Duration::from_secs(60);
/// Bound of a rotation, and of a way back, at 2 kbit/s.
const SLOW: Duration = Duration::from_secs(120);
/// Rotations that are disturbed by a fault that takes no time.
const ROUNDS: usize = 3;
/// Losses in a row without `TWINKEY_RECONNECTS`.
const RECONNECTS: u64 = 30;
/// Resets inside the handshake without `TWINKEY_HANDSHAKE_STEP`.
const HANDSHAKE_RESETS: u64 = 40;
/// Messages that are on their way when something breaks.
const ON_THEIR_WAY: u64 = 10;
/// How much the agent may grow between the first tenth of the reconnects and the last one.
const GROWTH_KIB_MAX: u64 = 1_024;

/// A device whose agent is connected through a network of the test's own, and a program that publishes.
struct Scene {
    hub: TestHub,
    proxy: Proxy,
    gateway: Gateway,
    agent: Agent,
    traffic: Traffic,
    chance: Chance,
    /// The slot that the device lives on.
    slot: &'static str,
    /// When the device was connected first, by the hub's clock.
    began_ms: f64,
    /// Bytes that it took, both directions together.
    connect_len: u64,
}

impl Scene {
    async fn begin(message_pause: Duration) -> Self {
        let mut chance = Chance::from_environment();
        let hub = TestHub::start().await;
        let keys = hub.create(DEVICE).await;
        let proxy = Proxy::start(hub.mqtts_port(), chance.fork()).await;
        let settings = Settings::at(proxy.port(), hub.ca_file());
        let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &keys.primary));
        let agent = gateway.start();
        let began_ms = hub.until_connected(DEVICE, "primary").await.connected_ms;
        let connect_len = proxy.carried();
        hub.until_report(DEVICE, "the first report", |report| report.active.is_some()).await;
        let traffic = Traffic::start(&gateway, message_pause).await;
        traffic.until_through(BACK_SOON).await;
        Self { hub, proxy, gateway, agent, traffic, chance, slot: "primary", began_ms, connect_len }
    }

    /// Has the hub make a new key for the slot that the device does not live on, and offers it.
    async fn offer(&mut self) -> String {
        self.slot = if self.slot == "primary" { "secondary" } else { "primary" };
        let keys = self.hub.regenerate(DEVICE, &format!("{}Key", self.slot)).await;
        let rotation = offers::rotation_id();
        self.hub.desire(DEVICE, offers::plain(&rotation, self.slot, keys.of_slot(self.slot))).await;
        rotation
    }

    /// Waits until the rotation has come to its end on both sides.
    async fn until_rotated(&self, rotation: &str, bound: Duration) {
        within(bound, "the rotation comes to its end", async || {
            let report = self.hub.report(DEVICE).await?;
            let is_committed = report.status == twinkey_contract::report::Status::Committed
                && twinkey_tests::hub::is_about(&report, rotation);
            is_committed.then_some(())
        })
        .await;
        self.hub.until_connected(DEVICE, self.slot).await;
    }

    /// The fault is over: the device has to be back within `bound`, with the rotation done and nothing lost.
    async fn recover(self, what: &str, rotation: &str, bound: Duration) {
        self.proxy.heal();
        let back = self.traffic.until_through(bound).await;
        self.until_rotated(rotation, BACK_LATE).await;
        self.end(what, back).await;
    }

    async fn end(self, what: &str, back: Duration) {
        let tally = self.traffic.end(&self.hub, DEVICE, BACK_LATE).await;
        let history = self.hub.history(DEVICE).await;
        let dark_ms = history.longest_dark_ms(self.began_ms);
        let Tally { sent, lost, duplicates } = tally;
        println!(
            "{what}: {sent} messages, {lost} lost, {duplicates} twice; {} connections, longest dark {dark_ms:.0} ms, back {} ms after the fault",
            self.proxy.accepted(),
            back.as_millis(),
        );
        assert_eq!(lost, 0);
        assert!(sent > 0);
        // The hub refused no key, and the agent took nothing that the network did for a refusal.
        assert!(history.refused.is_empty(), "{:?}", history.refused);
        assert_eq!(self.gateway.status().await["counters"]["refused"], 0);
        assert!(self.gateway.publishes().await);
    }

    /// Waits until messages are on their way that the hub does not have, so that whatever breaks then surely hits some.
    async fn until_messages_are_on_their_way(&self) {
        self.proxy.suffer(Fault::Stall { up: true, down: false });
        until("messages are on their way", async || {
            let status = self.gateway.status().await;
            (status["messages"]["unacknowledged"].as_u64()? >= ON_THEIR_WAY).then_some(())
        })
        .await;
    }

    /// Disturbs rotations at moments of chance with a fault that takes no time.
    async fn disturb(mut self, what: &str, strike: impl Fn(&Proxy, usize)) {
        let mut longest = Duration::ZERO;
        for round in 0..ROUNDS {
            let before = self.proxy.struck();
            let rotation = self.offer().await;
            // A moment of chance is what this is about; a rotation takes some ten milliseconds.
            sleep(self.chance.moment(Duration::from_millis(30))).await;
            self.until_messages_are_on_their_way().await;
            strike(&self.proxy, round);
            self.proxy.heal();
            until("a connection is hit", async || (self.proxy.struck() > before).then_some(())).await;
            longest = longest.max(self.traffic.until_through(BACK_SOON).await);
            self.until_rotated(&rotation, BACK_SOON).await;
        }
        self.end(what, longest).await;
    }

    /// SIGHUP ends the pause between two attempts, however long it has become.
    async fn hurry_until(&self, what: &str, is_done: impl Fn() -> bool) {
        until(what, async || {
            self.agent.signal(Signal::HUP);
            is_done().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_link_is_noticed_and_replaced_whichever_direction_is_dead() {
    let stalled = async |up: bool, down: bool| {
        let mut scene = Scene::begin(MESSAGE_PAUSE).await;
        scene.proxy.suffer(Fault::Stall { up, down });
        let before = scene.proxy.accepted();
        let rotation = scene.offer().await;
        // The agent gives the dead connection up and opens another one, which is as dead.
        within(NOTICED, "the dead link is noticed", async || {
            (!is_connected(&scene).await && scene.proxy.accepted() > before).then_some(())
        })
        .await;
        scene.recover(&format!("stalled (up {up}, down {down})"), &rotation, BACK_LATE).await;
    };
    tokio::join!(stalled(true, true), stalled(true, false), stalled(false, true));
}

/// What the agent itself thinks.
async fn is_connected(scene: &Scene) -> bool {
    scene.gateway.status().await["connection"]["connected"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_2_kbit_per_second_carries_a_rotation_and_a_reconnect_and_all_messages() {
    let mut scene = Scene::begin(SLOW_MESSAGE_PAUSE).await;
    scene.proxy.suffer(Fault::Throttle { bytes_per_sec: SLOW_BYTES_PER_SEC });
    let began = Instant::now();
    let rotation = scene.offer().await;
    scene.until_rotated(&rotation, SLOW).await;
    println!("a rotation at 2 kbit/s takes {} ms", began.elapsed().as_millis());
    let dark_ms = scene.hub.history(DEVICE).await.longest_dark_ms(scene.began_ms);
    assert_eq!(dark_ms, 0.0, "the slow link was given up");
    scene.proxy.cut();
    let back = scene.traffic.until_through(SLOW).await;
    println!("a reconnect at 2 kbit/s takes {} ms", back.as_millis());
    scene.recover("2 kbit/s", &rotation, BACK_SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_arrive_as_other_ones_end_connections_and_never_a_message_or_a_key() {
    let mut scene = Scene::begin(MESSAGE_PAUSE).await;
    let before = scene.proxy.accepted();
    scene.proxy.suffer(Fault::Corrupt { one_in: 2_000 });
    let rotation = scene.offer().await;
    within(CORRUPTED, "connections have ended because of corrupt bytes", async || {
        (scene.proxy.corrupted() >= 3 && scene.proxy.accepted() >= before + 3).then_some(())
    })
    .await;
    let corrupted = scene.proxy.corrupted();
    scene.recover(&format!("{corrupted} corrupt bytes"), &rotation, BACK_LATE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_closed_at_random_points_of_rotations_cost_nothing() {
    let scene = Scene::begin(MESSAGE_PAUSE).await;
    scene.disturb("cut (FIN)", |proxy, _| proxy.cut()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_at_random_points_of_rotations_cost_nothing() {
    let scene = Scene::begin(MESSAGE_PAUSE).await;
    scene.disturb("reset (RST)", |proxy, _| proxy.reset()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_which_one_direction_is_closed_are_replaced() {
    let scene = Scene::begin(MESSAGE_PAUSE).await;
    let directions = [Direction::Down, Direction::Up];
    scene.disturb("half-closed", |proxy, round| proxy.half_close(directions[round % 2])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_nobody_can_reach_is_tried_until_it_is_there_again() {
    let mut scene = Scene::begin(MESSAGE_PAUSE).await;
    scene.until_messages_are_on_their_way().await;
    scene.proxy.cut();
    scene.proxy.suffer(Fault::Refuse);
    let rotation = scene.offer().await;
    // The outage has a length; there is nothing to wait for in it.
    sleep(OUTAGE).await;
    assert!(scene.traffic.outstanding() > 0, "messages got through all the same");
    scene.recover("nobody listened", &rotation, BACK_SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_at_any_byte_of_the_handshake_is_survived_and_no_key_is_doubted() {
    let mut scene = Scene::begin(MESSAGE_PAUSE).await;
    let step = number("TWINKEY_HANDSHAKE_STEP").unwrap_or(scene.connect_len.div_ceil(HANDSHAKE_RESETS));
    let lengths: Vec<u64> = (0..=scene.connect_len).step_by(usize::try_from(step).unwrap()).collect();
    scene.until_messages_are_on_their_way().await;
    let rotation = scene.offer().await;
    scene.proxy.reset();
    for bytes in &lengths {
        scene.proxy.suffer(Fault::ResetAfter { bytes: *bytes });
        scene.hurry_until("an attempt is reset", || scene.proxy.has_reset_after(*bytes)).await;
    }
    scene.proxy.heal();
    let sent = scene.traffic.sent();
    scene.hurry_until("the device is back", || scene.traffic.newest_acknowledged() > sent).await;
    let what = format!("{} resets in the first {} bytes", lengths.len(), scene.connect_len);
    scene.recover(&what, &rotation, BACK_SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_lost_again_and_again_leave_nothing_behind_in_the_agent() {
    let scene = Scene::begin(MESSAGE_PAUSE).await;
    let reconnects = number("TWINKEY_RECONNECTS").unwrap_or(RECONNECTS);
    let mut warm = None;
    for done in 1..=reconnects {
        let accepted = scene.proxy.accepted();
        match done % 4 {
            0 => scene.proxy.cut(),
            1 => scene.proxy.reset(),
            2 => scene.proxy.half_close(Direction::Down),
            _ => assert!(scene.hub.cut(DEVICE).await),
        }
        scene.hurry_until("the agent tries again", || scene.proxy.accepted() > accepted).await;
        until("the device is connected again", async || is_connected(&scene).await.then_some(())).await;
        if done == (reconnects / 10).max(1) {
            warm = Some(vitals_at_rest(&scene).await);
        }
    }
    let (warm, last) = (warm.unwrap(), vitals_at_rest(&scene).await);
    println!("{reconnects} reconnects: {warm:?} after a tenth of them, {last:?} after the last");
    assert_eq!(last.descriptors, warm.descriptors);
    let growth_kib = last.resident_kib.saturating_sub(warm.resident_kib);
    assert!(growth_kib < GROWTH_KIB_MAX, "the agent has grown by {growth_kib} KiB");
    scene.end(&format!("{reconnects} reconnects"), Duration::ZERO).await;
}

/// What the agent holds while one connection is open, the one that stands, and nothing is on its way.
async fn vitals_at_rest(scene: &Scene) -> Vitals {
    scene.traffic.until_through(BACK_SOON).await;
    Vitals::at_rest(scene.agent.pid(), || scene.proxy.open() == 1).await
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number")))
}
