//! A disk that fails, under the real agent: every system call by which the key ring becomes durable fails in turn, or
//! is the last one before `kill -9`; the disk is full; it is read-only. No device may be lost or go dark, the report
//! says `storage`, and in the end the newest key is in use and on disk.
//!
//! `TWINKEY_DISK_ROTATIONS` says how many rotations there are at least. Without strace, or without root where a file
//! system is mounted, a test says `SKIPPED` and passes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod strace;

use std::sync::Arc;

use tokio::task::{JoinSet, LocalSet};
use twinkey_agent::store;
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::{Fingerprint, KeySlot};
use twinkey_sas::Key;
use twinkey_tests::gateway::{Agent, Gateway, Settings};
use twinkey_tests::hub::{TestHub, is_about};
use twinkey_tests::mounted::Mounted;
use twinkey_tests::offers;
use twinkey_tests::waiting::until;

use crate::strace::{Injection, Traced};

/// A disk with room for the key ring's three files of one page each, and for one page more.
const DISK: &str = "16k";
/// Devices at a time.
const DEVICES: usize = 8;
/// Rotations in which a fault must have happened; threads count their calls separately.
const ROTATIONS_MAX: u32 = 8;
const NEW: &str = "key-ring.new";
const DIRECTORY: &str = "";
const RENAME: &str = "/^rename";

/// The calls of one write, in their order.
const CALLS: [(&str, &str); 6] =
    [("/^unlink", NEW), ("openat", NEW), ("write", NEW), ("fsync", NEW), (RENAME, NEW), ("fsync", DIRECTORY)];
/// A rotation writes twice, the candidate and the verdict; more of them show what the first fault left behind.
const OCCASIONS: [&str; 4] = ["1", "2", "3", "4"];

#[derive(Debug, Default)]
struct Tally {
    rotations: u64,
    faults: u64,
    storage_reports: u64,
    longest_dark_ms: f64,
}

/// A device, its keys at the hub, and where its agent lives.
struct Device {
    hub: Arc<TestHub>,
    name: String,
    gateway: Gateway,
    /// The slot that the device lives on.
    slot: &'static str,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_or_rename_that_fails_once_costs_no_device_and_no_moment() {
    let mut injections = Vec::new();
    for (occasion, errors) in [("1", ["error=EIO", "error=ENOSPC"]), ("2", ["error=ENOSPC", "error=EIO"])] {
        for (call, file) in [("fsync", NEW), (RENAME, NEW), ("fsync", DIRECTORY)] {
            injections.extend(errors.map(|what| Injection { call, file, what, when: occasion }));
        }
    }
    injections.push(Injection { call: "openat", file: NEW, what: "error=ENOSPC", when: "1" });
    injections.push(Injection { call: "write", file: NEW, what: "error=ENOSPC", when: "1" });
    injections.push(Injection { call: "write", file: NEW, what: "error=EIO", when: "2" });
    injections.push(Injection { call: "/^unlink", file: NEW, what: "error=EROFS", when: "1" });
    let tally = each_in_turn(injections, Device::survive_failures).await;
    println!("failing calls: {tally:?}, devices lost 0");
    assert_eq!(tally.longest_dark_ms, 0.0, "a disk's trouble must not touch the connection");
    assert!(tally.storage_reports >= tally.faults.min(1), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_call_of_a_write_and_again_at_the_start_costs_no_device() {
    let mut injections = Vec::new();
    for when in OCCASIONS {
        injections.extend(CALLS.map(|(call, file)| Injection { call, file, what: "signal=KILL", when }));
    }
    let tally = each_in_turn(injections, Device::survive_kills).await;
    println!("kills: {tally:?}, devices lost 0");
}

/// Each injection happens to a device of its own, a few at a time, and all of them again until there were rotations
/// enough.
async fn each_in_turn<F>(injections: Vec<Injection>, survive: fn(Device, Injection) -> F) -> Tally
where
    F: Future<Output = Tally> + 'static,
{
    if !strace::is_here().await {
        return Tally::default();
    }
    let hub = Arc::new(TestHub::start().await);
    // Devices live on this thread, as the waits of the tests want it; hub and agents have others.
    LocalSet::new().run_until(all_of(hub, injections, survive)).await
}

async fn all_of<F>(
    hub: Arc<TestHub>,
    injections: Vec<Injection>,
    survive: fn(Device, Injection) -> F,
) -> Tally
where
    F: Future<Output = Tally> + 'static,
{
    let mut tally = Tally::default();
    let mut number = 0;
    while number < injections.len() || tally.rotations < rotations_wanted() {
        let mut tasks = JoinSet::new();
        for _ in 0..DEVICES {
            let injection = injections[number % injections.len()];
            number += 1;
            let hub = Arc::clone(&hub);
            tasks
                .spawn_local(async move { survive(Device::new(hub, number, |_| {}).await, injection).await });
        }
        while let Some(done) = tasks.join_next().await {
            let done = done.unwrap();
            tally.rotations += done.rotations;
            tally.faults += done.faults;
            tally.storage_reports += done.storage_reports;
            tally.longest_dark_ms = tally.longest_dark_ms.max(done.longest_dark_ms);
        }
    }
    assert!(tally.faults as usize >= injections.len());
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_sync_succeeds_the_old_key_stays_in_use_and_storage_is_reported() {
    if !strace::is_here().await {
        return;
    }
    let hub = Arc::new(TestHub::start().await);
    let mut device = Device::new(hub, 0, |_| {}).await;
    let every = Injection { call: "fsync", file: NEW, what: "error=EIO", when: "1+" };
    let agent = Traced::start(&device.gateway, every);
    device.hub.until_connected(&device.name, device.slot).await;
    let rotation = device.offer().await;
    device.until_held_up(&rotation).await;
    // The write is repeated, and fails again.
    until("a second failure", async || (agent.injected() >= 2).then_some(())).await;
    device.until_held_up(&rotation).await;
    agent.heal().await;
    device.until_at_rest(&rotation).await;
    agent.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_the_old_key_stays_in_use_until_there_is_room() {
    let Some(disk) = Mounted::new(DISK) else { return };
    let hub = Arc::new(TestHub::start().await);
    let mut device = Device::new(hub, 0, |settings| settings.state_dir = Some(disk.path().to_owned())).await;
    let agent = device.start().await;
    disk.fill();
    let rotation = device.offer().await;
    device.until_held_up(&rotation).await;
    // An agent that is started on a full disk takes up the same work.
    agent.kill().await;
    let agent = device.start().await;
    device.until_held_up(&rotation).await;
    disk.free();
    device.until_at_rest(&rotation).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_read_only_disk_the_old_key_stays_in_use_until_it_can_be_written_again() {
    let Some(disk) = Mounted::new(DISK) else { return };
    let hub = Arc::new(TestHub::start().await);
    let mut device = Device::new(hub, 0, |settings| settings.state_dir = Some(disk.path().to_owned())).await;
    let agent = device.start().await;
    disk.remount("ro");
    let rotation = device.offer().await;
    device.until_held_up(&rotation).await;
    agent.kill().await;
    let agent = device.start().await;
    device.until_held_up(&rotation).await;
    disk.remount("rw");
    device.until_at_rest(&rotation).await;
    agent.stop().await;
}

impl Device {
    /// A device that has connected once, so that its key ring exists and its key is proven; its agent is stopped.
    async fn new(hub: Arc<TestHub>, number: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let name = format!("gateway-{number}");
        let keys = hub.create(&name).await;
        let mut gateway = Gateway::new(&hub, &name, &keys.primary);
        gateway.reconfigure(change);
        let device = Self { hub, name, gateway, slot: "primary" };
        let agent = device.start().await;
        device.hub.until_report(&device.name, "the first report", |report| report.active.is_some()).await;
        agent.stop().await;
        device
    }

    async fn start(&self) -> Agent {
        let before = self.newest_connection().await;
        let agent = self.gateway.start();
        self.until_connected_after(before).await;
        agent
    }

    async fn newest_connection(&self) -> Option<u64> {
        self.hub.history(&self.name).await.connections.last().map(|span| span.id)
    }

    async fn until_connected_after(&self, before: Option<u64>) {
        self.hub.until_live(&self.name, "a new connection", |span| Some(span.id) != before).await;
    }

    /// The operator renews the key that the device does not live on.
    async fn offer(&mut self) -> String {
        self.slot = if self.slot == "primary" { "secondary" } else { "primary" };
        let keys = self.hub.regenerate(&self.name, &format!("{}Key", self.slot)).await;
        let rotation = offers::rotation_id();
        self.hub.desire(&self.name, offers::plain(&rotation, self.slot, keys.of_slot(self.slot))).await;
        rotation
    }

    /// The report names the disk, and the device lives on the key that it had.
    async fn until_held_up(&self, rotation: &str) {
        let is_held_up = |report: &Report| {
            is_about(report, rotation)
                && report.status == Status::Waiting
                && report.reason == Some(Reason::Storage)
        };
        self.hub.until_report(&self.name, "the disk's trouble is reported", is_held_up).await;
        let live = self.hub.history(&self.name).await;
        let live = live.live().expect("the device is connected");
        assert_ne!(live.key, self.slot, "the candidate is used, and it can't be on disk");
    }

    /// Committed, connected with the new key, and that key is the active one on disk.
    async fn until_at_rest(&self, rotation: &str) {
        let key = Key::from_base64(self.hub.keys(&self.name).await.of_slot(self.slot)).unwrap();
        let key = Fingerprint::of(&key);
        let slot = if self.slot == "primary" { KeySlot::Primary } else { KeySlot::Secondary };
        let report = self.hub.until_committed(&self.name, rotation).await;
        assert_eq!(report.active, Some(slot), "{}", self.name);
        assert_eq!(report.slot(slot).map(|held| held.fingerprint), Some(key), "{}", self.name);
        self.hub.until_connected(&self.name, self.slot).await;
        let on_disk = store::peek(&self.gateway.state_dir()).unwrap().unwrap();
        assert_eq!(on_disk.key_ring.ring.active_key().map(|name| name.0), Some(key.0), "{}", self.name);
    }

    /// Rotations until the call has failed, and one more.
    async fn survive_failures(mut self, injection: Injection) -> Tally {
        let before = self.newest_connection().await;
        let mut agent = Traced::start(&self.gateway, injection);
        self.until_connected_after(before).await;
        let began_ms = self.hub.history(&self.name).await.now_ms;
        let mut tally = Tally::default();
        let mut has_failed = false;
        while !std::mem::replace(&mut has_failed, agent.injected() > 0) {
            assert!(tally.rotations < ROTATIONS_MAX.into(), "{injection:?} does not happen");
            let failures = agent.injected();
            let rotation = self.offer().await;
            let mut is_reported = false;
            until("the rotation is committed", async || {
                let report = self.hub.report(&self.name).await?;
                is_reported |= report.reason == Some(Reason::Storage);
                (report.status == Status::Committed
                    && report.reason.is_none()
                    && is_about(&report, &rotation))
                .then_some(())
            })
            .await;
            self.until_at_rest(&rotation).await;
            tally.rotations += 1;
            if agent.injected() > failures {
                assert!(is_reported, "{}: {injection:?} was not reported", self.name);
                tally.storage_reports += 1;
            }
        }
        assert!(agent.is_running());
        tally.faults = agent.injected() as u64;
        tally.longest_dark_ms = self.hub.history(&self.name).await.longest_dark_ms(began_ms);
        agent.kill().await;
        tally
    }

    /// Rotations until the agent has died at the call; then the next one dies while it makes durable what it found.
    async fn survive_kills(mut self, injection: Injection) -> Tally {
        let before = self.newest_connection().await;
        let mut agent = Traced::start(&self.gateway, injection);
        // The directory is synced at the start as well.
        self.until_connected_or_dead(&mut agent, before).await;
        let mut tally = Tally::default();
        loop {
            assert!(tally.rotations < ROTATIONS_MAX.into(), "{injection:?} does not happen");
            let rotation = self.offer().await;
            tally.rotations += 1;
            let is_dead = until("the rotation is committed, or the agent dies", async || {
                let report = self.hub.report(&self.name).await?;
                let is_committed = report.status == Status::Committed && is_about(&report, &rotation);
                (!agent.is_running()).then_some(true).or(is_committed.then_some(false))
            })
            .await;
            if !is_dead {
                continue;
            }
            let at_start = Injection { call: "fsync", file: DIRECTORY, what: "signal=KILL", when: "1" };
            let mut again = Traced::start(&self.gateway, at_start);
            until("the second agent dies at its start", async || (!again.is_running()).then_some(())).await;
            tally.faults += 2;
            let agent = self.start().await;
            self.until_at_rest(&rotation).await;
            let rotation = self.offer().await;
            self.until_at_rest(&rotation).await;
            tally.rotations += 1;
            agent.stop().await;
            return tally;
        }
    }

    async fn until_connected_or_dead(&self, agent: &mut Traced, before: Option<u64>) {
        until("the agent connects or dies", async || {
            let is_connected =
                self.hub.history(&self.name).await.live().is_some_and(|span| Some(span.id) != before);
            (is_connected || !agent.is_running()).then_some(())
        })
        .await;
    }
}

fn rotations_wanted() -> u64 {
    match std::env::var("TWINKEY_DISK_ROTATIONS") {
        Ok(text) => text.parse().expect("TWINKEY_DISK_ROTATIONS is a whole number"),
        Err(_) => 0,
    }
}
