//! A fleet that a test decides about. It outlives runners, as devices and registry do; its keys are numbers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use twinkey_contract::{Fingerprint, Identity, KeySlot};

use super::super::engine::{Depth, Engine, Look, SlotRequest, SlotResult};
use super::super::fuse::Fuse;
use super::super::ledger::Prints;
use crate::failure::Failure;

/// What a device does with an offered key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Manner {
    Obeys,
    /// Fails so often, then obeys.
    FailsFirst(u32),
    /// Never answers, and the engine says so at the deadline.
    KeepsSilent,
    /// Nothing ever returns.
    Hangs,
    /// Could be cut off, so often; then obeys.
    RefusedFirst(u32, &'static str),
    Gone,
    /// Its renewal breaks.
    Panics,
}

#[derive(Clone, Debug)]
pub(super) struct FakeDevice {
    pub(super) manner: Manner,
    pub(super) registry: BTreeMap<KeySlot, u64>,
    pub(super) lives_on: u64,
    /// What it holds besides.
    pub(super) knows_both: bool,
    /// Keys that were made, by slot, with the rollout's order of them.
    pub(super) made: Vec<KeySlot>,
    pub(super) is_done: bool,
}

pub(super) struct Fleet {
    pub(super) devices: Mutex<BTreeMap<String, FakeDevice>>,
    next_key: Mutex<u64>,
    pub(super) log: Mutex<Vec<String>>,
    pub(super) under_way: Mutex<(usize, usize)>,
    /// How long a renewal takes.
    pub(super) takes: Duration,
}

/// The way to the fleet that one runner has.
pub(super) struct FakeEngine {
    pub(super) fleet: Arc<Fleet>,
    pub(super) fuse: Option<Arc<Fuse>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

pub(super) fn print(key: u64) -> Fingerprint {
    Fingerprint(u128::from(key).to_be_bytes())
}

impl FakeDevice {
    fn prints(&self) -> Prints {
        Prints {
            primary: Some(print(self.registry[&KeySlot::Primary])),
            secondary: Some(print(self.registry[&KeySlot::Secondary])),
        }
    }

    fn lives_in(&self) -> Option<KeySlot> {
        KeySlot::ALL.into_iter().find(|slot| self.registry[slot] == self.lives_on)
    }
}

impl Fleet {
    /// Devices `d00`, `d01`, …, which live on their primary keys, every other one on its secondary key.
    pub(super) fn of(devices: u32) -> Arc<Self> {
        let device = |n: u32| {
            let keys = [u64::from(n) * 2 + 1, u64::from(n) * 2 + 2];
            let registry = [(KeySlot::Primary, keys[0]), (KeySlot::Secondary, keys[1])].into();
            let lives_on = keys[(n % 2) as usize];
            let device = FakeDevice {
                manner: Manner::Obeys,
                registry,
                lives_on,
                knows_both: true,
                made: Vec::new(),
                is_done: false,
            };
            (format!("d{n:02}"), device)
        };
        Arc::new(Self {
            devices: Mutex::new((0..devices).map(device).collect()),
            next_key: Mutex::new(1_000_000),
            log: Mutex::default(),
            under_way: Mutex::default(),
            takes: Duration::from_millis(300),
        })
    }

    pub(super) fn device<T>(&self, id: &str, change: impl FnOnce(&mut FakeDevice) -> T) -> T {
        change(lock(&self.devices).get_mut(id).unwrap())
    }

    pub(super) fn manner(&self, id: &str, manner: Manner) {
        self.device(id, |device| device.manner = manner);
    }

    pub(super) fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }
}

impl FakeEngine {
    async fn step(&self) {
        if let Some(fuse) = &self.fuse {
            fuse.pass().await;
        }
    }
}

impl Engine for FakeEngine {
    async fn look(&self, identity: &Identity, depth: Depth) -> Result<Look, SlotResult> {
        self.step().await;
        let look = self.fleet.device(&identity.device_id, |device| match depth {
            Depth::Report if !device.knows_both => {
                Look { lives_in: device.lives_in(), prints: Prints::default() }
            }
            Depth::Report | Depth::Registry => Look { lives_in: device.lives_in(), prints: device.prints() },
        });
        self.step().await;
        Ok(look)
    }

    async fn renew(&self, request: &SlotRequest) -> SlotResult {
        let (fleet, id, slot) = (&self.fleet, request.identity.device_id.as_str(), request.slot);
        lock(&fleet.log).push(format!("{id} {slot}"));
        struct UnderWay<'a>(&'a Fleet);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                lock(&self.0.under_way).0 -= 1;
            }
        }
        {
            let mut under_way = lock(&fleet.under_way);
            under_way.0 += 1;
            under_way.1 = under_way.1.max(under_way.0);
        }
        let _under_way = UnderWay(fleet);
        self.step().await;
        let failed = |code, may_retry| SlotResult::Failed {
            code,
            message: format!("{code} of {id}"),
            after: fleet.device(id, |device| device.prints()),
            may_retry,
            pause: Duration::ZERO,
        };
        match fleet.device(id, |device| device.manner.clone()) {
            Manner::Obeys => {}
            Manner::FailsFirst(times) => {
                let next = if times > 1 { Manner::FailsFirst(times - 1) } else { Manner::Obeys };
                fleet.manner(id, next);
                return failed("error", true);
            }
            Manner::KeepsSilent => {
                self.make(request);
                tokio::time::sleep(request.deadline).await;
                return failed("timeout", false);
            }
            Manner::Hangs => std::future::pending().await,
            Manner::RefusedFirst(times, code) => {
                let next = if times > 1 { Manner::RefusedFirst(times - 1, code) } else { Manner::Obeys };
                fleet.manner(id, next);
                return SlotResult::Refused {
                    code,
                    message: format!("{code} of {id}"),
                    may_retry: code != "disabled",
                };
            }
            Manner::Gone => return SlotResult::Gone { message: format!("no {id}") },
            Manner::Panics => panic!("the engine of {id} breaks"),
        }
        let before = fleet.device(id, |device| device.prints());
        if fleet.device(id, |device| device.lives_in() == Some(slot) && before.of(slot) == request.replaces) {
            return SlotResult::Refused {
                code: "slot-in-use",
                message: format!("{id} lives there"),
                may_retry: true,
            };
        }
        self.make(request);
        self.step().await;
        tokio::time::sleep(fleet.takes).await;
        fleet.device(id, |device| device.lives_on = device.registry[&slot]);
        self.step().await;
        let after = fleet.device(id, |device| {
            device.is_done |= request.is_last;
            device.prints()
        });
        self.step().await;
        SlotResult::Done { before, after, rotation: Some(format!("{id}-{slot}")) }
    }

    async fn close(&self) -> Result<(), Failure> {
        Ok(())
    }
}

impl FakeEngine {
    /// The registry gets a new key, unless it has had it already.
    fn make(&self, request: &SlotRequest) {
        let slot = request.slot;
        let key = {
            let mut next = lock(&self.fleet.next_key);
            *next += 1;
            *next
        };
        self.fleet.device(&request.identity.device_id, |device| {
            if Some(print(device.registry[&slot])) == request.replaces {
                assert_ne!(
                    device.lives_on, device.registry[&slot],
                    "{}: its only key is destroyed",
                    request.identity
                );
                device.registry.insert(slot, key);
                device.made.push(slot);
            }
        });
    }
}
