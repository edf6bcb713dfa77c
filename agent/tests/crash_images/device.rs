//! A device that writes key rings, and the book-keeping of what must still be there after a power cut.

use std::collections::BTreeSet;
use std::rc::Rc;

use twinkey_agent::keyring::{KeyRing, Registration};
use twinkey_agent::store::{Files as _, Store};
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{KeyName, KeySlot, Ring, State};
use twinkey_sas::Key;

use crate::disk::{Disk, Image, Platters};
use crate::sloppy::{Omission, Sloppy};

const FILES: [&str; 2] = ["key-ring.a", "key-ring.b"];
const TEMPORARY: &str = "key-ring.new";
const SEALING_KEY: [u8; 32] = [9; 32];
/// A store that loses so many is found out. What it never syncs multiplies its images beyond all patience.
const LOSSES_MAX: u64 = 100;
/// Losses that are described; the others are counted.
const DESCRIBED_MAX: usize = 5;

/// What was tried, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Images of power cuts on which the store was booted.
    pub(crate) images: u64,
    /// Of these: images of a power cut during the recovery from another one.
    pub(crate) images_of_recoveries: u64,
    /// The same images with the newest file damaged on top.
    pub(crate) damaged: u64,
    /// Images from which the device went on.
    pub(crate) recoveries: u64,
    /// Images that hold less than was promised, or that the store could not go on from.
    pub(crate) lost: u64,
    pub(crate) descriptions: Vec<String>,
}

impl Figures {
    pub(crate) fn lose(&mut self, why: String) {
        self.lost += 1;
        if self.descriptions.len() < DESCRIBED_MAX {
            self.descriptions.push(why);
        }
    }
}

/// What the store has promised so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books {
    /// Every ring that was ever handed to the store, oldest first.
    written: Vec<Rc<Ring>>,
    /// The newest of them whose write gave `Ok`, or that a start has settled.
    acknowledged: Option<usize>,
    /// What the other file holds for sure; `None` where nothing does.
    predecessor: Option<usize>,
    /// What the last start found could not be made durable, and nothing was acknowledged since. A damaged file is one
    /// fault too many then.
    pub(crate) is_unsettled: bool,
    /// Keys that every image must hold, whatever else it holds.
    pub(crate) must_hold: Vec<KeyName>,
    /// How deep power cuts are nested.
    depth: u32,
}

impl Books {
    /// The ring that the store gives must be one that was written, and not older than what was acknowledged.
    fn judge(&self, image: &Image) -> Result<Option<usize>, String> {
        let loaded = Store::new(Disk::holding(image)).load();
        let found = match loaded {
            Ok(Some(loaded)) => Some(self.place_of(&loaded.key_ring)?),
            Ok(None) => None,
            Err(error) => return Err(error.to_string()),
        };
        if found < self.acknowledged {
            return Err(format!("found {found:?}, and {:?} was acknowledged", self.acknowledged));
        }
        if let Some(ring) = found.map(|found| &self.written[found]) {
            if let Some(missing) = self.must_hold.iter().find(|key| !ring.contains(**key)) {
                return Err(format!("the key {missing} is missing in ring {found:?}: {ring:?}"));
            }
        }
        Ok(found)
    }

    /// The number of a key ring among those that were written.
    fn place_of(&self, key_ring: &KeyRing) -> Result<usize, String> {
        let place = self.written.iter().rposition(|written| **written == key_ring.ring);
        let place = place.ok_or_else(|| format!("nobody wrote this ring: {:?}", key_ring.ring))?;
        let is_ours = key_ring.registration == registration() && key_ring.sealing_key.expose() == SEALING_KEY;
        let has_all_keys =
            key_ring.ring.keys_in_order().into_iter().flatten().all(|name| key_ring.key(name).is_some());
        if is_ours && has_all_keys { Ok(place) } else { Err(format!("ring {place} has lost its keys")) }
    }

    /// One damaged file on top of a power cut: the other one is not to be touched by a write at the same time.
    fn judge_damaged(&self, image: &Image, found: Option<usize>, figures: &mut Figures) {
        let Some(found) = found else { return };
        let holds_found = |name: &&str| {
            let decoded = image.get(*name).and_then(|bytes| KeyRing::decode(bytes).ok());
            decoded.is_some_and(|key_ring| key_ring.ring == *self.written[found])
        };
        let Some(name) = FILES.into_iter().find(holds_found) else { return };
        let is_sure = Some(found) > self.acknowledged && !self.is_unsettled;
        let floor = if is_sure { self.acknowledged } else { self.predecessor };
        let mut image = image.clone();
        let disk = if figures.damaged % 2 == 0 {
            let mut bytes = image[name].to_vec();
            let place = (figures.damaged as usize / 2 * 31) % bytes.len();
            bytes[place] ^= 1;
            image.insert(name.to_owned(), bytes.into());
            Disk::holding(&image)
        } else {
            let disk = Disk::holding(&image);
            disk.refuse_to_read(name);
            disk
        };
        figures.damaged += 1;
        match Store::new(disk).load() {
            Ok(Some(loaded)) => match self.place_of(&loaded.key_ring) {
                Ok(left) if Some(left) >= floor && loaded.damaged.is_some() => {}
                Ok(left) => figures.lose(format!("{name} damaged: {left} found, {floor:?} was to be kept")),
                Err(why) => figures.lose(format!("{name} damaged: {why}")),
            },
            // Nothing that could have been kept; but a damaged ring must never look like no ring.
            Err(_) if floor.is_none() => {}
            Ok(None) => figures.lose(format!("{name} damaged: the device looks like a new one")),
            Err(error) => figures.lose(format!("{name} damaged, {floor:?} was to be kept: {error}")),
        }
    }
}

/// A device with its disk.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) disk: Disk,
    store: Store<Sloppy>,
    pub(crate) books: Books,
    omission: Omission,
    /// The ring in the other file when the store was loaded last.
    predecessor: Option<Ring>,
}

/// The ring that a start has found.
pub(crate) type Found = Option<KeyRing>;

impl Device {
    /// A new device with an empty disk.
    pub(crate) fn new(omission: Omission) -> Self {
        let disk = Disk::default();
        let store = Store::new(Sloppy::new(disk.clone(), omission));
        Self { disk, store, books: Books::default(), omission, predecessor: None }
    }

    /// A device whose disk holds `image` when the power comes back.
    pub(crate) fn after_power_cut(image: &Image, books: &Books, omission: Omission) -> Self {
        let disk = Disk::holding(image);
        let store = Store::new(Sloppy::new(disk.clone(), omission));
        let books = Books { depth: books.depth + 1, ..books.clone() };
        Self { disk, store, books, omission, predecessor: None }
    }

    /// What the agent does when it starts, on the disk as programs see it. `nested` power cuts are tried on each
    /// image on the way.
    pub(crate) fn start(&mut self, nested: u32, figures: &mut Figures) -> Result<Found, String> {
        self.store = Store::new(Sloppy::new(self.disk.clone(), self.omission));
        let loaded = self.store.load().map_err(|error| error.to_string())?;
        let Some(loaded) = loaded else {
            return match self.books.acknowledged {
                None => Ok(None),
                Some(place) => Err(format!("no ring found, and {place} was acknowledged")),
            };
        };
        let found = self.books.place_of(&loaded.key_ring)?;
        self.predecessor = loaded.predecessor;
        self.disk.take_record();
        let is_settled = self.omission == Omission::Settling || self.store.settle().is_ok();
        for platters in self.disk.take_record() {
            self.inspect(&platters, nested, figures);
        }
        self.books.is_unsettled = !is_settled;
        if is_settled {
            let other_of = |name: &str| {
                let bytes = self.disk.read(name).ok().flatten()?;
                self.books.place_of(&KeyRing::decode(&bytes).ok()?).ok().filter(|place| *place != found)
            };
            self.books.predecessor = FILES.into_iter().find_map(other_of);
            self.books.acknowledged = Some(found);
            self.inspect(&self.disk.platters(), nested, figures);
        }
        Ok(Some(loaded.key_ring))
    }

    /// The state from which the agent goes on after [`start`](Self::start).
    pub(crate) fn state_of(&self, found: &KeyRing) -> State {
        if self.books.is_unsettled {
            State::unsettled(found.ring, self.predecessor)
        } else {
            State::new(found.ring)
        }
    }

    /// Writes, and boots the store on every image that a power cut may leave on the way and afterwards.
    pub(crate) fn save(
        &mut self,
        key_ring: &KeyRing,
        ring: &Ring,
        nested: u32,
        figures: &mut Figures,
    ) -> bool {
        self.books.written.push(Rc::new(*ring));
        self.disk.take_record();
        let is_ok = self.store.save(key_ring, ring).is_ok();
        for platters in self.disk.take_record() {
            self.inspect(&platters, nested, figures);
        }
        if is_ok {
            self.books.predecessor = self.books.acknowledged;
            self.books.acknowledged = Some(self.books.written.len() - 1);
            self.books.is_unsettled = false;
            self.inspect(&self.disk.platters(), nested, figures);
        }
        is_ok
    }

    /// Every image of `platters` is booted; with `nested` above 0 the device goes on from there, and power cuts
    /// while it does so are tried as well.
    pub(crate) fn inspect(&self, platters: &Platters, nested: u32, figures: &mut Figures) {
        if figures.lost >= LOSSES_MAX {
            return;
        }
        let mut gone_on_from = BTreeSet::new();
        for image in platters.images() {
            figures.images += 1;
            figures.images_of_recoveries += u64::from(self.books.depth > 0);
            match self.books.judge(&image) {
                Err(why) => figures.lose(why),
                Ok(found) => {
                    self.books.judge_damaged(&image, found, figures);
                    // The store writes the temporary file anew and never reads it: what it holds makes no difference
                    // to what comes next.
                    let rings = FILES.map(|name| image.get(name).cloned());
                    if nested > 0 && gone_on_from.insert((rings, image.contains_key(TEMPORARY))) {
                        self.go_on_from(&image, nested - 1, figures);
                    }
                }
            }
        }
    }

    fn go_on_from(&self, image: &Image, nested: u32, figures: &mut Figures) {
        figures.recoveries += 1;
        let mut device = Self::after_power_cut(image, &self.books, self.omission);
        let found = match device.start(nested, figures) {
            Ok(found) => found,
            Err(why) => return figures.lose(why),
        };
        // What was promised before the cut still is; the next write must succeed.
        let mut writer = Writer::after(found, device.books.written.len());
        if !writer.write(&mut device, nested, figures) {
            figures.lose("a recovered device can't write".to_owned());
        }
    }
}

/// Writes rings, each with a new proven key.
#[derive(Debug)]
pub(crate) struct Writer {
    key_ring: KeyRing,
    /// Tells rings apart whose sequence is the same.
    number: u64,
}

impl Writer {
    /// Goes on from what a start has found; `number` is higher than that of any ring so far.
    pub(crate) fn after(found: Found, number: usize) -> Self {
        let key_ring = found.unwrap_or_else(|| provisioned(&key_of(0)));
        Self { key_ring, number: number as u64 }
    }

    /// The next ring; whether the store says that it is durable.
    pub(crate) fn write(&mut self, device: &mut Device, nested: u32, figures: &mut Figures) -> bool {
        self.number += 1;
        let key = self.key_ring.learn(key_of(self.number)).unwrap();
        let mut ring = self.key_ring.ring;
        ring.sequence += 1;
        // Another one in each of the rings that one cut can leave.
        ring.offers_spent = (self.number % 9) as u8;
        if let Some(held) = &mut ring.slots.primary.held {
            held.key = key;
            held.proven_at = Some(twinkey_rotation::UnixSecs(self.number));
        }
        self.key_ring.ring = ring;
        device.save(&self.key_ring, &ring, nested, figures)
    }
}

/// A key that tests can make again.
pub(crate) fn key_of(number: u64) -> Key {
    let mut bytes = [0x11; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Key::from_bytes(&bytes).unwrap()
}

/// The key ring of a new device.
pub(crate) fn provisioned(key: &Key) -> KeyRing {
    let sealing_key = SealingKey::from_bytes(&SEALING_KEY).unwrap();
    let key = Key::from_bytes(key.expose()).unwrap();
    KeyRing::provision(registration(), sealing_key, KeySlot::Primary, key)
}

fn registration() -> Registration {
    Registration {
        host_name: "hub.example".into(),
        identity: Identity { device_id: "gateway".into(), module_id: None },
        gateway_host_name: None,
    }
}
