//! A device whose keys are renewed: the real state machine and key ring over the modelled disk, a hub that knows two
//! keys, an operator who makes a new key only after the device has proved the one before, and
//! somebody who writes false offers.

use std::collections::BTreeSet;

use twinkey_agent::keyring::{KeyRing, name_of};
use twinkey_rotation::{
    Desired, Effects, Input, KeyName, KeySlot, Offer, Outcome, PerSlot, Policy, Ring, RotationId, State,
    Status, Timer, Trouble, UnixSecs, Window, step,
};

use crate::chance::Chance;
use crate::device::{Device, Figures, key_of, provisioned};
use crate::disk::{Fault, Image};
use crate::sloppy::Omission;

/// Steps in which a rotation must have come to its end, whatever happens meanwhile.
const STEPS_MAX: u32 = 3_000;
/// One in so many images is gone on from until the device is at rest; all are booted and judged.
const REST_EVERY: u64 = 8;

/// What the hub and the operator know.
#[derive(Clone, Debug)]
struct Hub {
    /// The registry.
    keys: PerSlot<KeyName>,
    /// What stands in the twin: the rotation's number, its slot, and the number of its key.
    offer: Option<(u64, KeySlot, u64)>,
    /// Keys that were ever made.
    made: u64,
    /// False offers that were ever made.
    false_offers: u64,
    /// The key that the hub accepted last.
    accepted: Option<KeyName>,
}

/// The first number of a key that no hub knows.
const FALSE_KEYS: u64 = 1_000_000;

/// Device, hub and operator.
#[derive(Debug)]
pub(crate) struct World {
    hub: Hub,
    device: Device,
    key_ring: KeyRing,
    state: State,
    writing: Option<Ring>,
    attempting: Option<KeyName>,
    /// The timers that are armed, by their place in `Timer::ALL`.
    timers: BTreeSet<usize>,
    /// The twin has been read on this connection.
    is_twin_read: bool,
    now: u64,
}

impl World {
    /// A device that was provisioned with its primary key just now.
    pub(crate) fn new(chance: &mut Chance) -> Self {
        let keys = PerSlot { primary: name_of(&key_of(1)), secondary: name_of(&key_of(2)) };
        let hub = Hub { keys, offer: None, made: 2, false_offers: 0, accepted: None };
        let key_ring = provisioned(&key_of(1));
        let mut device = Device::new(Omission::Nothing);
        assert!(device.save(&key_ring, &key_ring.ring.clone(), 0, &mut Figures::default()));
        Self::boot(hub, device, key_ring, chance)
    }

    fn boot(hub: Hub, device: Device, key_ring: KeyRing, chance: &mut Chance) -> Self {
        let mut world = Self {
            hub,
            state: device.state_of(&key_ring),
            device,
            key_ring,
            writing: None,
            attempting: None,
            timers: BTreeSet::new(),
            is_twin_read: false,
            now: 1_000,
        };
        // What was spent stays spent: a restart makes no room for offers (I4).
        assert_eq!(world.state.ring.offers_spent, world.key_ring.ring.offers_spent);
        world.feed(Input::Boot, chance);
        world
    }

    /// So many rotations, with failures of the disk, lost connections and kills in between; every image of a power
    /// cut on the way is judged.
    pub(crate) fn run(&mut self, rotations: u32, chance: &mut Chance, figures: &mut Figures) {
        for _ in 0..rotations {
            self.offer();
            for _ in 0..1 + chance.below(3) {
                let operation = self.device.disk.operations() + 1 + chance.below(16) as u32;
                self.device.disk.fail_at(operation, Fault::ALL[chance.below(3) as usize]);
            }
            let mut steps = 0;
            while !self.is_at_rest() {
                steps += 1;
                if steps > STEPS_MAX {
                    return figures.lose(format!("not at rest after {STEPS_MAX} steps: {:?}", self.state));
                }
                match chance.below(40) {
                    0 if self.state.live.is_some() => self.lose_connection(chance),
                    2..=4 if self.state.live.is_some() => self.false_offer(chance),
                    1 => {
                        if let Err(why) = self.kill(chance, figures) {
                            return figures.lose(why);
                        }
                    }
                    _ => self.go_on(chance, figures, true),
                }
            }
        }
    }

    /// The operator makes a key for the slot that the device does not live on, and puts it into the twin. The key
    /// that stood in that slot is dead from now on.
    fn offer(&mut self) {
        let slot = self.state.durable.active.other();
        self.hub.made += 1;
        *self.hub.keys.of_mut(slot) = name_of(&key_of(self.hub.made));
        self.hub.offer = Some((self.hub.made, slot, self.hub.made));
        self.is_twin_read = false;
    }

    /// Somebody writes another key into the twin, and the operator writes the offer again.
    fn false_offer(&mut self, chance: &mut Chance) {
        self.hub.false_offers += 1;
        let number = FALSE_KEYS + self.hub.false_offers;
        let mut keys = PerSlot::default();
        let slot = KeySlot::ALL[chance.below(2) as usize];
        *keys.of_mut(slot) = Some(self.key_ring.learn(key_of(number)).unwrap());
        let before = self.state.ring.offers_spent;
        let offer = Offer { rotation: RotationId(number.into()), keys };
        self.feed(Input::Desired(Desired::Offer(offer)), chance);
        self.forget_keys();
        assert!(self.state.ring.offers_spent <= Policy::DEFAULT.offers_max.max(before));
        self.is_twin_read = false;
    }

    /// Committed, on disk, in use, and reported as such.
    fn is_at_rest(&self) -> bool {
        let Some((rotation, slot, key)) = self.hub.offer else { return true };
        let key = name_of(&key_of(key));
        let report = self.state.report();
        report.status == Status::Committed
            && report.rotation == Some(RotationId(rotation.into()))
            && self.state.live == Some(key)
            && self.state.durable.active == slot
            && self.state.durable.active_key() == Some(key)
            && self.writing.is_none()
            && self.attempting.is_none()
    }

    /// One thing happens of those that may happen now.
    fn go_on(&mut self, chance: &mut Chance, figures: &mut Figures, is_judged: bool) {
        let may_read_twin = self.state.live.is_some() && !self.is_twin_read;
        let able = [self.writing.is_some(), self.attempting.is_some(), may_read_twin];
        let count = able.into_iter().filter(|able| *able).count() as u64;
        if count == 0 {
            return self.fire(chance);
        }
        let which = (0..able.len()).filter(|which| able[*which]).nth(chance.below(count) as usize).unwrap();
        match which {
            0 => self.write(chance, figures, is_judged),
            1 => self.attempt(chance),
            _ => self.read_twin(chance),
        }
    }

    fn write(&mut self, chance: &mut Chance, figures: &mut Figures, is_judged: bool) {
        let Some(ring) = self.writing.take() else { return };
        // What is tried counts on every image having it (I2), and what was accepted must not be forgotten (I1).
        let surely = self.state.ring.keys_in_order().into_iter().flatten();
        let surely = surely.filter(|key| self.state.is_surely_stored(*key));
        self.device.books.must_hold = surely.chain(self.hub.accepted).collect();
        let mut scratch = Figures::default();
        let is_ok =
            self.device.save(&self.key_ring, &ring, 0, if is_judged { &mut *figures } else { &mut scratch });
        if is_judged {
            self.end_well_from_images(chance, figures);
        } else {
            figures.lost += scratch.lost;
            figures.descriptions.append(&mut scratch.descriptions);
            figures.images += scratch.images;
            figures.images_of_recoveries += scratch.images_of_recoveries;
            figures.damaged += scratch.damaged;
        }
        self.feed(Input::Stored(is_ok), chance);
        self.forget_keys();
    }

    /// Power cuts now: the device that wakes up on the image ends on the newest key.
    fn end_well_from_images(&self, chance: &mut Chance, figures: &mut Figures) {
        for image in self.device.disk.platters().images() {
            if chance.below(REST_EVERY) == 0 {
                self.end_well_from(&image, chance, figures);
            }
        }
    }

    fn end_well_from(&self, image: &Image, chance: &mut Chance, figures: &mut Figures) {
        figures.recoveries += 1;
        let mut device = Device::after_power_cut(image, &self.device.books, Omission::Nothing);
        let key_ring = match device.start(0, figures) {
            Ok(Some(key_ring)) => key_ring,
            Ok(None) => return figures.lose("the device looks like a new one".to_owned()),
            Err(why) => return figures.lose(why),
        };
        let registry = [self.hub.keys.primary, self.hub.keys.secondary];
        if !registry.iter().any(|key| key_ring.ring.contains(*key)) {
            return figures.lose(format!("no key that the hub knows is in {:?}", key_ring.ring));
        }
        let mut world = Self::boot(self.hub.clone(), device, key_ring, chance);
        for _ in 0..STEPS_MAX {
            if world.is_at_rest() {
                return;
            }
            world.go_on(chance, figures, false);
        }
        figures.lose(format!("not at rest {STEPS_MAX} steps after a power cut: {:?}", world.state));
    }

    fn attempt(&mut self, chance: &mut Chance) {
        let Some(key) = self.attempting.take() else { return };
        self.now += 1;
        let outcome = match chance.below(12) {
            0 => Outcome::Unknown(Trouble::Unreachable),
            1 => Outcome::Unknown(Trouble::Unanswered),
            // A new key takes a while to reach the whole hub. One refusal: timers fire in any order here, so that a
            // second one could come after the window.
            2 if self.hub.accepted != Some(key) && self.state.trial.window == Window::Unopened => {
                Outcome::Refused
            }
            _ if [self.hub.keys.primary, self.hub.keys.secondary].contains(&key) => {
                Outcome::Accepted { at: UnixSecs(self.now) }
            }
            _ => Outcome::Refused,
        };
        if let Outcome::Accepted { .. } = outcome {
            self.hub.accepted = Some(key);
            self.is_twin_read = false;
        }
        self.feed(Input::Attempted(outcome), chance);
    }

    fn read_twin(&mut self, chance: &mut Chance) {
        self.is_twin_read = true;
        let desired = match self.hub.offer {
            None => Desired::Nothing,
            Some((rotation, slot, key)) => {
                let mut keys = PerSlot::default();
                *keys.of_mut(slot) = Some(self.key_ring.learn(key_of(key)).unwrap());
                Desired::Offer(Offer { rotation: RotationId(rotation.into()), keys })
            }
        };
        self.feed(Input::Desired(desired), chance);
        self.forget_keys();
    }

    /// The process is killed and starts again; the disk keeps what programs have seen.
    fn kill(&mut self, chance: &mut Chance, figures: &mut Figures) -> Result<(), String> {
        let Some(key_ring) = self.device.start(0, figures)? else {
            return Err("the device looks like a new one".to_owned());
        };
        let device = std::mem::replace(&mut self.device, Device::new(Omission::Nothing));
        *self = Self::boot(self.hub.clone(), device, key_ring, chance);
        Ok(())
    }

    fn lose_connection(&mut self, chance: &mut Chance) {
        self.is_twin_read = false;
        self.feed(Input::Lost, chance);
    }

    /// Nothing else can happen: the time of a timer has come.
    fn fire(&mut self, chance: &mut Chance) {
        let count = self.timers.len() as u64;
        assert!(count > 0, "nothing will ever happen again: {:?}", self.state);
        let place = self.timers.iter().nth(chance.below(count) as usize).copied().unwrap();
        self.timers.remove(&place);
        self.feed(Input::Fired(Timer::ALL[place]), chance);
    }

    fn feed(&mut self, input: Input, chance: &mut Chance) {
        let (state, Effects { store, connect, report: _, timers }) =
            step(&Policy::DEFAULT, self.state, input, chance.below(65_536) as u16);
        self.state = state;
        for (timer, _) in timers.into_iter().flatten() {
            self.timers.extend(Timer::ALL.iter().position(|known| *known == timer));
        }
        if let Some(ring) = store {
            self.key_ring.ring = ring;
            self.writing = Some(ring);
        }
        self.attempting = connect.or(self.attempting);
    }

    /// As the driver does it.
    fn forget_keys(&mut self) {
        if self.state.deferred.is_some() {
            return;
        }
        let mut needed: Vec<KeyName> =
            [self.state.ring, self.state.durable].iter().flat_map(Ring::keys_in_order).flatten().collect();
        if let Some(waiting) = self.state.waiting {
            needed.extend(KeySlot::ALL.into_iter().filter_map(|slot| *waiting.keys.of(slot)));
        }
        needed.extend(self.state.live);
        needed.extend(self.state.attempt.map(|attempt| attempt.key));
        self.key_ring.forget_unless(|name| needed.contains(&name));
    }
}
