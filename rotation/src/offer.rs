//! What the operator's document says, reduced to names, and how the ring takes it up.

use crate::report::Reason;
use crate::ring::{Candidate, KeyName, KeySlot, PerSlot, Ring, Rotation, RotationId, Standing};

/// Keys that the operator offers under one rotation id. At least one slot is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offer {
    /// The operator's number for this rotation.
    pub rotation: RotationId,
    /// The offered key of each slot, where there is one.
    pub keys: PerSlot<Option<KeyName>>,
}

/// A document that stands where an offer is expected and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Invalid {
    /// Its rotation id, where that could be read.
    pub rotation: Option<RotationId>,
    /// What is wrong with it.
    pub reason: Reason,
}

/// The operator's document as it stands now (a level, not an event).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Desired {
    /// No offer stands.
    Nothing,
    /// An offer stands.
    Offer(Offer),
    /// Something stands there that is no offer.
    Invalid(Invalid),
}

impl Ring {
    /// Takes up an offer that differs from the newest one. No key that may be in use leaves the ring.
    pub(crate) fn take_up(&mut self, offer: Offer) {
        self.relabel(&offer);
        let in_use = self.active_key();
        let names_key_in_use = in_use.is_some() && *offer.keys.of(self.active) == in_use;
        for slot in KeySlot::ALL {
            let is_active = slot == self.active;
            let place = self.slots.of_mut(slot);
            match *offer.keys.of(slot) {
                Some(key) => {
                    let is_held = place.held.is_some_and(|held| held.key == key);
                    // The key in use needs no trial, nor does a held one that the document names beside it.
                    let nothing_new = is_held && (is_active || names_key_in_use);
                    place.candidate = if nothing_new {
                        // Another key that was offered for this slot stays as a last resort: the hub may know it.
                        let other = place.candidate.filter(|candidate| candidate.key != key);
                        other.map(|candidate| Candidate { standing: Standing::Spare, ..candidate })
                    } else {
                        Some(Candidate { key, standing: Standing::Trying })
                    };
                }
                None => {
                    if let Some(candidate) = &mut place.candidate {
                        candidate.standing = Standing::Spare;
                    }
                }
            }
        }
        self.rotation = Some(Rotation { id: offer.rotation, offered: offer.keys, verdict: None });
        self.settle_verdict();
    }

    /// The registry's slots were swapped, or the ring was provisioned under the wrong label: what is offered for
    /// one slot is held in the other. The held keys change places and nothing else happens to them.
    fn relabel(&mut self, offer: &Offer) {
        let held_in = |slot: KeySlot| self.slots.of(slot).held.map(|held| held.key);
        let is_swapped = |slot: KeySlot| {
            let key: Option<KeyName> = *offer.keys.of(slot);
            key.is_some() && key == held_in(slot.other()) && key != held_in(slot)
        };
        if KeySlot::ALL.into_iter().any(is_swapped) {
            core::mem::swap(&mut self.slots.primary.held, &mut self.slots.secondary.held);
            self.active = self.active.other();
        }
    }
}
