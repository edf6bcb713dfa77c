//! The local hub's state on disk, with the real program: kill -9 at random moments loses nothing that was answered, and
//! a full disk ends nothing.
//!
//! `TWINKEY_HUB_KILLS` says how often it is killed, `TWINKEY_HUB_DEVICES` how many devices a start has to read;
//! `TWINKEY_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use twinkey_tests::chance::Chance;
use twinkey_tests::emulated::{Caller, EmulatedHub};
use twinkey_tests::hub::Answer;
use twinkey_tests::mounted::Mounted;

/// Kills without `TWINKEY_HUB_KILLS`.
const KILLS: u64 = 6;
/// Devices without `TWINKEY_HUB_DEVICES`, and how many one request creates.
const FLEET: usize = 2000;
const BULK: usize = 100;
/// Callers that change things at one time.
const WRITERS: u64 = 6;
/// Devices of each caller.
const DEVICES: u64 = 5;
/// Longest life of a hub.
const LIFE: Duration = Duration::from_millis(1500);

/// What a device is known to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    primary_key: String,
    secondary_key: String,
    etag: String,
    tag: u64,
    twin_version: u64,
}

/// One caller's devices: what the hub has answered. `None`: no such device.
#[derive(Debug)]
struct Writer {
    name: u64,
    chance: Chance,
    known: BTreeMap<u64, Option<Device>>,
    /// Devices whose last change got no answer: it may have been made or not.
    doubtful: BTreeSet<u64>,
    answered: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_answered_is_lost_by_kill_9() {
    let kills = number("TWINKEY_HUB_KILLS", KILLS);
    let mut chance = Chance::from_environment();
    let dir = tempfile::tempdir().unwrap();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|name| Writer::new(name, chance.fork())).collect();
    let mut doubtful = 0;
    for _ in 0..kills {
        let hub = EmulatedHub::start(dir.path()).await;
        let mut tasks = JoinSet::new();
        let (checking, mut checked) = mpsc::channel::<()>(1);
        for mut writer in writers.drain(..) {
            let (caller, checking) = (hub.caller(), checking.clone());
            tasks.spawn(async move {
                writer.check(&caller).await;
                drop(checking);
                while writer.change_something(&caller).await.is_some() {}
                writer
            });
        }
        // However slow this machine is, something is changed in each life.
        drop(checking);
        while checked.recv().await.is_some() {}
        // Random moments are what this is about.
        sleep(chance.moment(LIFE)).await;
        hub.kill().await;
        writers = tasks.join_all().await;
        doubtful += writers.iter().map(|writer| writer.doubtful.len()).sum::<usize>();
    }
    let began = Instant::now();
    let hub = EmulatedHub::start(dir.path()).await;
    let start = began.elapsed();
    for writer in &mut writers {
        writer.check(&hub.caller()).await;
    }
    let answered: u64 = writers.iter().map(|writer| writer.answered).sum();
    println!(
        "{kills} kills, {answered} changes answered, {doubtful} without an answer, last start {start:?}"
    );
    assert!(answered > kills, "nothing was tried");
}

impl Writer {
    fn new(name: u64, chance: Chance) -> Self {
        let known = (0..DEVICES).map(|device| (device, None)).collect();
        Self { name, chance, known, doubtful: BTreeSet::new(), answered: 0 }
    }

    fn id(&self, device: u64) -> String {
        format!("writer-{}-device-{device}", self.name)
    }

    /// Everything is as it was answered. What is doubtful becomes known.
    async fn check(&mut self, caller: &Caller) {
        for device in 0..DEVICES {
            let found = self.look(caller, device).await;
            let Some(found) = found else {
                // Killed while this caller was looking.
                return;
            };
            if self.doubtful.remove(&device) {
                self.known.insert(device, found);
            } else {
                assert_eq!(found, self.known[&device], "{}", self.id(device));
            }
        }
    }

    async fn look(&self, caller: &Caller, device: u64) -> Option<Option<Device>> {
        let id = self.id(device);
        let identity = caller.call(Method::GET, &format!("/devices/{id}"), None, Value::Null).await?;
        if identity.status == 404 {
            return Some(None);
        }
        let twin = caller.call(Method::GET, &format!("/twins/{id}"), None, Value::Null).await?;
        let keys = &identity.body["authentication"]["symmetricKey"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Some(Some(Device {
            primary_key: text(&keys["primaryKey"]),
            secondary_key: text(&keys["secondaryKey"]),
            etag: text(&identity.body["etag"]),
            tag: twin.body["tags"]["n"].as_u64().unwrap_or(0),
            twin_version: twin.body["version"].as_u64().unwrap(),
        }))
    }

    /// One change. `None` once no answer comes.
    async fn change_something(&mut self, caller: &Caller) -> Option<()> {
        let device = self.chance.below(DEVICES);
        let id = self.id(device);
        self.doubtful.insert(device);
        let tag = match &self.known[&device] {
            None => {
                let body = json!({"deviceId": id});
                ok(caller.call(Method::PUT, &format!("/devices/{id}"), None, body).await?);
                0
            }
            Some(known) => match self.chance.below(8) {
                0 => {
                    ok(caller
                        .call(Method::DELETE, &format!("/devices/{id}"), Some("*"), Value::Null)
                        .await?);
                    self.known.insert(device, None);
                    self.answered += 1;
                    self.doubtful.remove(&device);
                    return Some(());
                }
                1..4 => {
                    let key = if self.chance.below(2) == 0 { "primaryKey" } else { "secondaryKey" };
                    let body = json!({"policyKey": key, "devices": [{"id": id}]});
                    ok(caller.call(Method::POST, "/devices/keys/regenerate", None, body).await?);
                    known.tag
                }
                _ => {
                    let body = json!({"tags": {"n": known.tag + 1}});
                    ok(caller.call(Method::PATCH, &format!("/twins/{id}"), None, body).await?);
                    known.tag + 1
                }
            },
        };
        self.answered += 1;
        // What the change has led to is read from the same hub; only then it is known in full.
        let found = self.look(caller, device).await?.expect("the device was just changed");
        assert_eq!(found.tag, tag);
        self.known.insert(device, Some(found));
        self.doubtful.remove(&device);
        Some(())
    }
}

fn ok(answer: Answer) {
    assert!((200..300).contains(&answer.status), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_to_the_caller_and_the_hub_goes_on() {
    let Some(disk) = Mounted::new("2m") else { return };
    let hub = EmulatedHub::start(disk.path()).await;
    let caller = hub.caller();
    let create = async |id: &str| {
        let body = json!({"deviceId": id});
        caller.call(Method::PUT, &format!("/devices/{id}"), None, body).await.unwrap().status
    };
    let big = json!({"tags": {"filler": "x".repeat(4000)}});
    assert_eq!(create("before").await, 200);
    disk.fill();
    // The log may have room for a few more.
    let mut refused = None;
    for n in 0..300 {
        let id = format!("full-{n}");
        if create(&id).await == 500 {
            refused = Some(id);
            break;
        }
        let patched = caller.call(Method::PATCH, &format!("/twins/{id}"), None, big.clone()).await.unwrap();
        if patched.status == 500 {
            refused = Some(id);
            break;
        }
    }
    let refused = refused.expect("the disk is full, and every change is answered as if it were not");
    let seen = caller.call(Method::GET, "/devices/before", None, Value::Null).await.unwrap();
    assert_eq!(seen.status, 200, "a hub with a full disk answers no more");
    disk.free();
    assert_eq!(create("after").await, 200);
    hub.kill().await;

    let hub = EmulatedHub::start(disk.path()).await;
    for id in ["before", "after", &refused] {
        let found =
            hub.caller().call(Method::GET, &format!("/devices/{id}"), None, Value::Null).await.unwrap();
        assert_eq!(found.status, 200, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_there_again_after_kill_9() {
    let devices = number("TWINKEY_HUB_DEVICES", FLEET);
    let dir = tempfile::tempdir().unwrap();
    let hub = EmulatedHub::start(dir.path()).await;
    let caller = hub.caller();
    let began = Instant::now();
    for first in (0..devices).step_by(BULK) {
        let entries: Vec<Value> = (first..devices.min(first + BULK))
            .map(|n| json!({"id": format!("device-{n}"), "importMode": "create", "tags": {"n": n}}))
            .collect();
        ok(caller.call(Method::POST, "/devices", None, entries.into()).await.unwrap());
    }
    let filled = began.elapsed();
    let changes = devices.min(1000);
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for part in 0..8 {
        let caller = hub.caller();
        callers.spawn(async move {
            for n in (part..changes).step_by(8) {
                let body = json!({"tags": {"n": n + 1}});
                ok(caller.call(Method::PATCH, &format!("/twins/device-{n}"), None, body).await.unwrap());
            }
        });
    }
    callers.join_all().await;
    let changed = began.elapsed();
    hub.kill().await;
    let began = Instant::now();
    let hub = EmulatedHub::start(dir.path()).await;
    let started = began.elapsed();
    let caller = hub.caller();
    let counts = caller.call(Method::GET, "/statistics/devices", None, Value::Null).await.unwrap();
    assert_eq!(counts.body["totalDeviceCount"], devices);
    for (n, expected) in [(0, 1), (devices - 1, if devices > changes { devices - 1 } else { devices })] {
        let twin = caller.call(Method::GET, &format!("/twins/device-{n}"), None, Value::Null).await.unwrap();
        assert_eq!(twin.body["tags"]["n"], expected);
    }
    let size = std::fs::metadata(dir.path().join("state.db")).unwrap().len();
    println!(
        "{devices} devices created in {filled:?}; {changes} changes of eight callers in {changed:?}; started with them \
         in {started:?}; {size} bytes"
    );
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(variable: &str, otherwise: T) -> T {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number")),
        Err(_) => otherwise,
    }
}
