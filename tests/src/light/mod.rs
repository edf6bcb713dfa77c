//! Thousands of devices in one process. Each has a real MQTT connection over TLS of its own and keeps the twin contract,
//! in code that shares nothing with the agent but the contract itself, and costs a few kilobytes and a task.
//!
//! The fleet keeps its own books of the keys that each device holds, so that [`LightFleet::lost`] needs nobody's word.

mod device;
mod line;
mod manners;
mod puppets;
mod ring;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_sas::Key;

use crate::chance::Chance;
use crate::hub::{Keys, TestHub};
use crate::offers;
use crate::waiting::{PATIENCE, within};
use device::{Common, Device, Orders, Tally};
use line::{Exchange, Line, NoLine};
use manners::Manner;
pub use manners::Manners;
pub use puppets::Puppets;
use ring::Ring;

/// Devices that are asked at one time whether they can connect.
const PROBED_AT_ONCE: usize = 32;
/// Attempts to reach the hub for one of them.
const PROBES_MAX: u32 = 5;
/// Devices whose first connection takes no longer than a test's patience.
const DEVICES_IN_PATIENCE: u32 = 2000;

/// A fleet of light devices. Dropping it ends them.
pub struct LightFleet {
    common: Arc<Common>,
    orders: watch::Sender<Orders>,
    ids: Vec<String>,
    devices: Vec<JoinHandle<Ring>>,
}

/// What a fleet has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// CONNECTs that the hub accepted.
    pub connects: u64,
    /// CONNECTs that it refused.
    pub refusals: u64,
    /// New keys that were proved by a takeover.
    pub takeovers: u64,
    /// Connections with another key than the active one after that one was refused.
    pub fallbacks: u64,
    /// Offers at which a device misbehaved.
    pub disturbances: u64,
}

impl LightFleet {
    /// Registers devices and connects them; returns once each has reported which key it lives on.
    pub async fn start(hub: &TestHub, count: usize, manners: &Manners, chance: &mut Chance) -> Self {
        let registered = register(hub, "light", count).await;
        let exchange = Exchange::new(hub.mqtts(), hub.host_name(), hub.ca_file());
        let sealing = SealingKey::generate().unwrap();
        let seal_to = sealing.public();
        let common = Arc::new(Common { exchange, sealing, seal_to, tally: Tally::default() });
        let orders = watch::Sender::new(Orders::default());
        let devices = registered.iter().map(|(id, keys)| {
            let mut chance = chance.fork();
            let identity = Identity::new(id, None).unwrap();
            let device = Device {
                common: common.clone(),
                ring: Ring::provisioned(identity, Key::from_base64(&keys.primary).unwrap()),
                manner: Manner::draw(manners, &mut chance),
                chance,
                orders: orders.subscribe(),
                reported: None,
                disturbed: None,
            };
            tokio::spawn(device.live())
        });
        let devices = devices.collect();
        let fleet = Self { common, orders, ids: registered.into_iter().map(|(id, _)| id).collect(), devices };
        fleet.until_all_have_reported().await;
        fleet
    }

    async fn until_all_have_reported(&self) {
        let count = u32::try_from(self.ids.len()).unwrap();
        let bound = PATIENCE * (1 + count / DEVICES_IN_PATIENCE);
        let all = u64::from(count);
        let reported = &self.common.tally.reported;
        within(bound, "every light device has reported", async || {
            (reported.load(Ordering::Relaxed) == all).then_some(())
        })
        .await;
    }

    /// The devices' ids.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        let tally = &self.common.tally;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            connects: read(&tally.connects),
            refusals: read(&tally.refusals),
            takeovers: read(&tally.takeovers),
            fallbacks: read(&tally.fallbacks),
            disturbances: read(&tally.disturbances),
        }
    }

    /// Ends all misbehaviour: from now on every device takes what is offered, the silent ones too.
    pub fn behave(&self) {
        self.orders.send_modify(|orders| orders.behave = true);
    }

    /// Ends the fleet and gives the devices that can't connect any more: the hub refuses every key that they hold. A
    /// connection that stood until now does not count.
    pub async fn lost(self) -> Vec<String> {
        self.orders.send_modify(|orders| orders.stop = true);
        let mut probes = JoinSet::new();
        let mut lost = Vec::new();
        for device in self.devices {
            let ring = device.await.expect("a light device goes on whatever happens");
            if probes.len() >= PROBED_AT_ONCE {
                lost.extend(probes.join_next().await.and_then(Result::unwrap));
            }
            probes.spawn(name_if_lost(self.common.clone(), ring));
        }
        while let Some(probed) = probes.join_next().await {
            lost.extend(probed.unwrap());
        }
        lost
    }
}

impl fmt::Debug for LightFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LightFleet").field("devices", &self.ids.len()).finish_non_exhaustive()
    }
}

/// The device's id, if the hub refuses every key of its ring.
async fn name_if_lost(common: Arc<Common>, ring: Ring) -> Option<String> {
    for key in ring.keys() {
        let mut answer = Err(NoLine::Unreached);
        for _ in 0..PROBES_MAX {
            answer = Line::open(&common.exchange, ring.identity(), &key).await.map(drop);
            if answer != Err(NoLine::Unreached) {
                break;
            }
        }
        match answer {
            Ok(()) => return None,
            Err(NoLine::Refused) => {}
            Err(NoLine::Unreached) => panic!("the hub is gone"),
        }
    }
    Some(ring.identity().to_string())
}

/// Registers `count` devices with keys of our own, so that nobody has to ask the hub for each.
pub(crate) async fn register(hub: &TestHub, name: &str, count: usize) -> Vec<(String, Keys)> {
    let devices: Vec<(String, Keys)> = (0..count)
        .map(|at| {
            let keys = Keys { primary: offers::stray_key(), secondary: offers::stray_key() };
            (format!("{name}-{at:06}"), keys)
        })
        .collect();
    hub.create_many(&devices).await;
    devices
}

#[allow(clippy::disallowed_methods, reason = "a device's wall clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
