//! What is kept on disk: which keys there are, by name, and what each of them is to us.

use core::fmt;

/// The two places of a key in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySlot {
    /// The registry's primary key.
    Primary,
    /// The registry's secondary key.
    Secondary,
}

impl KeySlot {
    /// Both slots, primary first.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Secondary];

    /// The slot that this one is not.
    pub const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }
}

/// One value for each slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PerSlot<T> {
    /// The value for the primary slot.
    pub primary: T,
    /// The value for the secondary slot.
    pub secondary: T,
}

impl<T> PerSlot<T> {
    /// The value of `slot`.
    pub const fn of(&self, slot: KeySlot) -> &T {
        match slot {
            KeySlot::Primary => &self.primary,
            KeySlot::Secondary => &self.secondary,
        }
    }

    /// The value of `slot`, to change it.
    pub const fn of_mut(&mut self, slot: KeySlot) -> &mut T {
        match slot {
            KeySlot::Primary => &mut self.primary,
            KeySlot::Secondary => &mut self.secondary,
        }
    }
}

/// The name of a key: its public fingerprint. Equal keys have equal names, so the machine sees that an offered
/// key is one that is held, and names mean the same after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(pub [u8; 16]);

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One change of keys, as the operator numbers it (a UUID's 128 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RotationId(pub u128);

/// Wall-clock time, Unix seconds. The machine only keeps it for the report; it never compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnixSecs(pub u64);

/// A key that stands in a slot for us: provisioned, or accepted by the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// Which key.
    pub key: KeyName,
    /// When the hub accepted it as a newly active key; `None` while it never did.
    pub proven_at: Option<UnixSecs>,
}

/// What a candidate may still expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It is on trial.
    Trying,
    /// Its trial ended without acceptance, or a newer offer passed over it. It is kept as a last resort.
    Spare,
}

/// An offered key that the hub has not accepted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Which key.
    pub key: KeyName,
    /// On trial, or kept as a last resort.
    pub standing: Standing,
}

/// All that one slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The key that we know for this slot.
    pub held: Option<Held>,
    /// The key that was offered for this slot.
    pub candidate: Option<Candidate>,
}

/// The key that the last commit displaced, kept until the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Retired {
    /// The slot in which it stood.
    pub slot: KeySlot,
    /// Which key.
    pub key: KeyName,
}

/// A key that a person has brought to the device, for when the hub accepts none of the others. Nothing but another one,
/// or its acceptance, takes it away: documents of the operator's don't touch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Brought {
    /// The slot in the registry that it comes from.
    pub slot: KeySlot,
    /// Which key.
    pub key: KeyName,
}

/// How a rotation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Every offered key was accepted, or was in use already.
    Committed,
    /// At least one offered key was refused over the whole propagation window.
    Rejected,
}

/// The newest rotation that the ring took up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rotation {
    /// The operator's number for it.
    pub id: RotationId,
    /// The keys that it offered.
    pub offered: PerSlot<Option<KeyName>>,
    /// How it ended; `None` while it goes on.
    pub verdict: Option<Verdict>,
}

/// The durable part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring {
    /// Grows with every write, so that a ring restored from an old image is seen.
    pub sequence: u64,
    /// The slot whose held key is tried first: the one that the hub accepted last.
    pub active: KeySlot,
    /// What each slot holds.
    pub slots: PerSlot<Place>,
    /// The key that the last commit displaced.
    pub retired: Option<Retired>,
    /// The key that a person has brought and that was not accepted yet.
    pub brought: Option<Brought>,
    /// The newest rotation.
    pub rotation: Option<Rotation>,
    /// Offers that were taken up and that count against [`Policy::offers_max`](crate::Policy::offers_max). Only durable
    /// with the next write of something else: after a restart it may be too high, and is never too low.
    pub offers_spent: u8,
}

/// The most keys that a ring names: two slots with a held key and a candidate each, the retired one and the brought one.
pub(crate) const KEYS_MAX: usize = 6;

impl Ring {
    /// The ring of a device with one key, or two, none of them proven yet.
    pub const fn provisioned(active: KeySlot, key: KeyName, other: Option<KeyName>) -> Self {
        let first = Place { held: Some(Held { key, proven_at: None }), candidate: None };
        let second = Place {
            held: match other {
                Some(key) => Some(Held { key, proven_at: None }),
                None => None,
            },
            candidate: None,
        };
        let slots = match active {
            KeySlot::Primary => PerSlot { primary: first, secondary: second },
            KeySlot::Secondary => PerSlot { primary: second, secondary: first },
        };
        Self { sequence: 0, active, slots, retired: None, brought: None, rotation: None, offers_spent: 0 }
    }

    /// The key that is tried first; `None` only in a ring that no machine has made.
    pub const fn active_key(&self) -> Option<KeyName> {
        match self.slots.of(self.active).held {
            Some(held) => Some(held.key),
            None => None,
        }
    }

    /// The keys in the order in which they are tried when no connection stands: the active one, the brought one,
    /// candidates on trial, the other held one, spare candidates, the retired one. A key with several roles comes once
    /// for each.
    pub fn keys_in_order(&self) -> [Option<KeyName>; KEYS_MAX] {
        let (active, other) = (self.slots.of(self.active), self.slots.of(self.active.other()));
        let held = |place: &Place| place.held.map(|held| held.key);
        let trying =
            |place: &Place| place.candidate.filter(|c| c.standing == Standing::Trying).map(|c| c.key);
        let spare = |place: &Place| place.candidate.filter(|c| c.standing == Standing::Spare).map(|c| c.key);
        // A slot has one candidate, so these eight fit into six after the empty ones have gone.
        let all = [
            held(active),
            self.brought.map(|brought| brought.key),
            trying(other),
            trying(active),
            held(other),
            spare(other),
            spare(active),
            self.retired.map(|retired| retired.key),
        ];
        let mut order = [None; KEYS_MAX];
        let mut free = order.iter_mut();
        for key in all.into_iter().flatten() {
            if let Some(place) = free.next() {
                *place = Some(key);
            }
        }
        order
    }

    /// Whether the ring names `key` in any role.
    pub fn contains(&self, key: KeyName) -> bool {
        self.keys_in_order().contains(&Some(key))
    }

    /// The slot whose candidate is on trial: the slot that is not in use first, so that the key in use is
    /// replaced last.
    pub fn slot_on_trial(&self) -> Option<KeySlot> {
        [self.active.other(), self.active]
            .into_iter()
            .find(|slot| self.slots.of(*slot).candidate.is_some_and(|c| c.standing == Standing::Trying))
    }

    /// Whether both rings say the same, whatever their sequence numbers and however many offers count against the budget: the
    /// passing of time alone is no reason to write.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        Self { sequence: 0, offers_spent: 0, ..*self } == Self { sequence: 0, offers_spent: 0, ..*other }
    }

    /// A person has brought `key`; one that the ring has already is tried anyway.
    pub(crate) fn bring(&mut self, brought: Brought) {
        if !self.contains(brought.key) {
            self.brought = Some(brought);
        }
    }

    /// The hub accepted `key` at `at`: it becomes the active key of its slot.
    pub(crate) fn promote(&mut self, key: KeyName, at: UnixSecs) {
        let proven = Held { key, proven_at: Some(at) };
        let offered_in = |standing| {
            let candidate = Some(Candidate { key, standing });
            [self.active.other(), self.active]
                .into_iter()
                .find(|slot| self.slots.of(*slot).candidate == candidate)
        };
        let held_in = [self.active, self.active.other()]
            .into_iter()
            .find(|slot| self.slots.of(*slot).held.is_some_and(|held| held.key == key));
        if KeySlot::ALL.into_iter().any(|slot| {
            let place = self.slots.of(slot);
            place.candidate.is_some_and(|candidate| candidate.key == key) && held_in.is_none()
        }) {
            // Who made this offer can have keys made that the hub accepts, so it was no false one.
            self.offers_spent = self.offers_spent.saturating_sub(1);
        }
        // The newest document knows best where a key belongs, an old one least.
        if let Some(slot) = offered_in(Standing::Trying).or(held_in).or(offered_in(Standing::Spare)) {
            let place = self.slots.of_mut(slot);
            let displaced = place.held.filter(|held| held.key != key);
            let was_proven = place.held.is_some_and(|held| held.proven_at.is_some());
            let was_offered = place.candidate.is_some_and(|candidate| candidate.key == key);
            if was_offered {
                place.candidate = None;
            }
            if was_offered || !was_proven || slot != self.active {
                place.held = Some(proven);
                self.active = slot;
            }
            if let Some(displaced) = displaced {
                self.retired = Some(Retired { slot, key: displaced.key });
            }
        } else if let Some(brought) = self.brought.filter(|brought| brought.key == key) {
            let place = self.slots.of_mut(brought.slot);
            let displaced = place.held.map(|held| Retired { slot: brought.slot, key: held.key });
            place.held = Some(proven);
            self.active = brought.slot;
            self.retired = displaced.or(self.retired);
        } else if let Some(retired) = self.retired.filter(|retired| retired.key == key) {
            let place = self.slots.of_mut(retired.slot);
            let displaced = place.held.map(|held| Retired { slot: retired.slot, key: held.key });
            place.held = Some(proven);
            self.active = retired.slot;
            self.retired = displaced;
        }
        self.brought = self.brought.filter(|brought| brought.key != key);
        self.settle_verdict();
    }

    /// The trial of the candidate in `slot` ended in refusal: it is kept as a last resort.
    pub(crate) fn set_aside(&mut self, slot: KeySlot) {
        if let Some(candidate) = &mut self.slots.of_mut(slot).candidate {
            candidate.standing = Standing::Spare;
        }
        self.settle_verdict();
    }

    /// Writes the verdict when no offered key is on trial any more.
    pub(crate) fn settle_verdict(&mut self) {
        let on_trial = self.slot_on_trial().is_some();
        let slots = self.slots;
        if let Some(rotation) = &mut self.rotation {
            let is_any_set_aside = KeySlot::ALL.into_iter().any(|slot| {
                let candidate = slots.of(slot).candidate.map(|candidate| candidate.key);
                candidate.is_some() && candidate == *rotation.offered.of(slot)
            });
            rotation.verdict = match (on_trial, is_any_set_aside) {
                (true, _) => rotation.verdict,
                (false, true) => Some(Verdict::Rejected),
                // Also when a fallback to the retired key has undone a slot since: the hub did accept the offer.
                (false, false) => Some(Verdict::Committed),
            };
        }
    }
}
