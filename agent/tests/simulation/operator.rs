//! The operator: the documented order, one look at a time, and what people do besides.

use serde_json::{Value, json};
use twinkey_agent::keyring::KeyRing;
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::report::{Report, Status};
use twinkey_contract::sealing::{Binding, SealingKey};
use twinkey_contract::{KeySlot, RotationId};
use twinkey_sas::Key;
use twinkey_sas::identifiable::{Purpose, stamp};
use uuid::Uuid;

use crate::tally::Seen;
use crate::world::{Inner, KeyId, Standing, Voucher, identity, slot_at};

/// What the operator has begun, as far as it is remembered; everything else is read.
#[derive(Default)]
pub(crate) struct Operator {
    rotation: Option<u128>,
    /// What stands in the twin by the operator's doing.
    standing: Option<Standing>,
    /// The keys of a rotation that is to be offered again.
    keys: [Option<KeyId>; 2],
}

impl Operator {
    /// One round of the documented order. True when a rotation has ended well.
    pub(crate) fn look(&mut self, w: &mut Inner, sealing_key: &SealingKey) -> bool {
        let Some(report) = w.report() else { return false };
        let Some(rotation) = self.rotation else {
            self.begin(w, &report, sealing_key);
            return false;
        };
        if self.standing != Some(w.standing) {
            // Somebody else has written there.
            self.offer_again(w, sealing_key);
            return false;
        }
        if report.rotation.map(|id| id.0.as_u128()) != Some(rotation) {
            return false;
        }
        match report.status {
            Status::Committed => {
                let is_proved = w.proved_key(&report).is_some_and(|key| w.is_registered(key));
                if is_proved {
                    self.erase(w);
                }
                is_proved
            }
            Status::Rejected | Status::Invalid => {
                self.offer_again(w, sealing_key);
                false
            }
            Status::Idle | Status::Trying | Status::Waiting => false,
        }
    }

    /// The registry has the keys of the rotation under way, so the device must get them.
    fn offer_again(&mut self, w: &mut Inner, sealing_key: &SealingKey) {
        let keys = self.keys.map(|key| key.filter(|key| w.is_registered(*key)));
        if keys.iter().all(Option::is_none) {
            self.erase(w);
        } else {
            self.offer(w, keys, sealing_key);
        }
    }

    /// Renews the slot that the device does not use.
    fn begin(&mut self, w: &mut Inner, report: &Report, sealing_key: &SealingKey) {
        let Some(active) = w.proved_key(report) else { return };
        let Some(used) = w.slots.iter().position(|key| *key == active) else { return };
        let target = 1 - used;
        if !w.is_surely_held(w.slots[used]) {
            return;
        }
        let key = w.mint();
        w.register(target, key, false);
        let mut keys = [None, None];
        keys[target] = Some(key);
        self.offer(w, keys, sealing_key);
    }

    /// Forgets what was under way and takes the offer away.
    pub(crate) fn erase(&mut self, w: &mut Inner) {
        self.rotation = None;
        w.tally.count(Seen::OfferErased);
        w.desire(Value::Null, Standing::Nothing);
        self.standing = Some(Standing::Nothing);
    }

    pub(crate) fn offer(&mut self, w: &mut Inner, keys: [Option<KeyId>; 2], sealing_key: &SealingKey) {
        let rotation = fresh_rotation(w);
        let seals = w.traits.seals;
        let offered = |slot: usize| {
            keys[slot].map(|key| offered_key(&w.keys[key].key, slot_at(slot), rotation, sealing_key, seals))
        };
        let mut offer = Offer { rotation, primary: offered(0), secondary: offered(1), auth: None };
        let voucher = authenticate(w, &mut offer);
        w.tally.count(if seals { Seen::OfferedSealed } else { Seen::OfferedPlain });
        if keys.iter().all(Option::is_some) {
            w.tally.count(Seen::OfferedTwoSlots);
        }
        let section = offer.to_patch().get("keyRenewal").map(without_nulls).unwrap_or_default();
        let standing = w.note_offer(rotation.0.as_u128(), keys, voucher, section.clone());
        let names = keys.map(|key| key.map(|key| w.name(key)));
        w.log(|| format!("operator: offers {names:?} as {rotation}"));
        w.desire(section, standing);
        self.standing = Some(standing);
        self.rotation = Some(rotation.0.as_u128());
        self.keys = keys;
    }

    /// Something that people do besides.
    pub(crate) fn stray(&mut self, w: &mut Inner, sealing_key: &SealingKey) {
        match w.rng.below(9) {
            // Another key in the middle of a trial, for the same slot.
            0 | 1 => {
                let Some(slot) =
                    self.keys.iter().position(Option::is_some).filter(|_| self.rotation.is_some())
                else {
                    return;
                };
                if !w.is_surely_held(w.slots[1 - slot]) {
                    return;
                }
                let key = w.mint();
                w.register(slot, key, false);
                w.tally.count(Seen::OfferChangedMidTrial);
                let mut keys = [None, None];
                keys[slot] = Some(key);
                self.offer(w, keys, sealing_key);
            }
            2 | 3 => self.offer_rubbish(w, sealing_key),
            // Keys that the registry has: both of them, or one that is held.
            4 => {
                let keys = match w.rng.below(3) {
                    0 => [Some(w.slots[0]), Some(w.slots[1])],
                    1 => [Some(w.slots[0]), None],
                    _ => [None, Some(w.slots[1])],
                };
                w.tally.count(Seen::OfferedHeldKey);
                self.offer(w, keys, sealing_key);
            }
            5 => {
                w.swap_slots();
                if w.rng.per_mille(500) {
                    let keys = [Some(w.slots[0]), Some(w.slots[1])];
                    self.offer(w, keys, sealing_key);
                }
            }
            // The key that the device lives on is destroyed behind its back; the other one is left.
            6 => {
                let active = w.report().and_then(|report| w.active_of(&report));
                let Some(used) = active.and_then(|active| w.slots.iter().position(|key| *key == active))
                else {
                    return;
                };
                if !w.is_surely_held(w.slots[1 - used]) || w.slots[0] == w.slots[1] {
                    return;
                }
                let key = w.mint();
                w.register(used, key, false);
                w.tally.count(Seen::ActiveKeyDestroyed);
                if w.rng.per_mille(500) {
                    let mut keys = [None, None];
                    keys[used] = Some(key);
                    self.offer(w, keys, sealing_key);
                }
            }
            // A key that the registry never had.
            7 => {
                let slot = w.rng.below(2) as usize;
                let mut keys = [None, None];
                keys[slot] = Some(w.mint());
                w.tally.count(Seen::OfferedForeignKey);
                self.offer(w, keys, sealing_key);
            }
            _ => self.erase(w),
        }
    }

    fn offer_rubbish(&mut self, w: &mut Inner, sealing_key: &SealingKey) {
        let rotation = fresh_rotation(w);
        let id = rotation.to_string();
        let key = Key::from_bytes(&w.rng.bytes()).unwrap();
        let section = match w.rng.below(7) {
            0 => json!("later"),
            1 => json!({"secondary": {"key": "AAAA"}}),
            2 => json!({"rotation": id}),
            3 => json!({"rotation": id, "primary": {"key": "not base64"}}),
            4 => {
                // A key of Azure's making with one bit wrong.
                let mut bytes = stamp_bytes(&w.rng.bytes());
                bytes[3] ^= 1;
                json!({"rotation": id, "primary": {"key": base64_of(&Key::from_bytes(&bytes).unwrap())}})
            }
            5 => {
                let OfferedKey::Sealed(mut sealed) =
                    offered_key(&key, KeySlot::Primary, rotation, sealing_key, true)
                else {
                    return;
                };
                sealed[40] ^= 1;
                let primary = Some(OfferedKey::Sealed(sealed));
                let mut offer = Offer { rotation, primary, secondary: None, auth: None };
                authenticate(w, &mut offer);
                offer.to_patch().get("keyRenewal").map(without_nulls).unwrap_or_default()
            }
            _ => {
                // Sealed for the other slot.
                let sealed = offered_key(&key, KeySlot::Secondary, rotation, sealing_key, true);
                let mut offer = Offer { rotation, primary: Some(sealed), secondary: None, auth: None };
                authenticate(w, &mut offer);
                offer.to_patch().get("keyRenewal").map(without_nulls).unwrap_or_default()
            }
        };
        w.tally.count(Seen::OfferedRubbish);
        w.desire(section, Standing::Rubbish);
        self.standing = Some(Standing::Rubbish);
        // What was under way before is offered again once `invalid` is reported.
        self.rotation = Some(rotation.0.as_u128());
    }
}

/// With the key that the device proves to live on, where the operator authenticates at all.
fn authenticate(w: &mut Inner, offer: &mut Offer) -> Voucher {
    if !w.traits.authenticates {
        return Voucher::Nobody;
    }
    let key = w.report().and_then(|report| w.proved_key(&report)).unwrap_or(w.slots[0]);
    offer.authenticate(&w.keys[key].key, &identity());
    Voucher::Key(key)
}

pub(crate) fn fresh_rotation(w: &mut Inner) -> RotationId {
    let number = (u128::from(w.rng.next()) << 64) | u128::from(w.rng.next());
    RotationId(Uuid::from_u128(number))
}

pub(crate) fn offered_key(
    key: &Key,
    slot: KeySlot,
    rotation: RotationId,
    sealing_key: &SealingKey,
    seals: bool,
) -> OfferedKey {
    if !seals {
        return OfferedKey::Plain(key.clone());
    }
    let identity = identity();
    let binding = Binding { identity: &identity, slot, rotation };
    OfferedKey::Sealed(sealing_key.public().seal(&binding, key).unwrap())
}

fn stamp_bytes(random: &[u8; 32]) -> [u8; 32] {
    let key = stamp(random, Purpose::Device);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(key.expose());
    bytes
}

fn base64_of(key: &Key) -> String {
    let mut buffer = [0; 88];
    key.expose_base64(&mut buffer).to_owned()
}

/// As the hub keeps a patch.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// A key ring that was never connected.
pub(crate) fn provisioned(w: &Inner, slot: usize, sealing_key: &SealingKey) -> KeyRing {
    let registration = twinkey_agent::keyring::Registration {
        host_name: crate::world::HOST.into(),
        identity: identity(),
        gateway_host_name: None,
    };
    let slots = [twinkey_rotation::KeySlot::Primary, twinkey_rotation::KeySlot::Secondary];
    KeyRing::provision(registration, sealing_key.clone(), slots[slot], w.keys[w.slots[slot]].key.clone())
}
