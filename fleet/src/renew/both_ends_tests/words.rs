//! What stands in registry, twin and reports, with numbers for keys: nobody makes a proof, an authentication or a sealed key
//! but from a key that he knows, and nobody opens what is sealed to another's public key.

use twinkey_contract::report::{Report, SlotReport, Status};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::tags::{Believed, Seen};
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId};
use twinkey_sas::Key;

use crate::hub::KeyPair;
use crate::renew::plan::Standing;

/// A key by its number.
pub(super) type KeyNo = u8;
/// A rotation by its number.
pub(super) type RotationNo = u8;

/// A key that neither the registry nor the agent ever has.
pub(super) const STRANGE: KeyNo = 99;
/// A rotation that no operator makes.
pub(super) const STRANGE_ROTATION: RotationNo = 99;
/// Higher than every sequence that the agent reaches here.
pub(super) const HIGH_SEQUENCE: u8 = 200;

/// Whose public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Seal {
    Agent,
    Party,
}

/// What a proof is worth, which is made for exactly one report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Proof {
    Missing,
    /// Made for another report, or with another key.
    Wrong,
    By(KeyNo),
}

/// A report. All states that no operator acts on are [`Status::Trying`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Said {
    pub(super) seal: Seal,
    pub(super) sequence: u8,
    pub(super) active: Option<KeySlot>,
    pub(super) primary: Option<KeyNo>,
    pub(super) secondary: Option<KeyNo>,
    pub(super) rotation: Option<RotationNo>,
    pub(super) status: Status,
    pub(super) proof: Proof,
}

/// What the tags say of earlier reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tags {
    Nothing,
    Unreadable,
    Believed { seal: Seal, sequence: u8 },
}

/// The keys of both slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) primary: KeyNo,
    pub(super) secondary: KeyNo,
}

/// An offer. Its number is its place among the offers, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Offer {
    pub(super) primary: Option<KeyNo>,
    pub(super) secondary: Option<KeyNo>,
    pub(super) seal: Seal,
    /// The key that authenticates it.
    pub(super) auth: KeyNo,
}

/// An offer as the operator sees it stand in the twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stands {
    pub(super) rotation: RotationNo,
    pub(super) primary: bool,
    pub(super) secondary: bool,
}

impl Said {
    pub(super) fn held(&self, slot: KeySlot) -> Option<KeyNo> {
        match slot {
            KeySlot::Primary => self.primary,
            KeySlot::Secondary => self.secondary,
        }
    }

    /// The key that it names as the one in use.
    pub(super) fn active_key(&self) -> Option<KeyNo> {
        self.active.and_then(|slot| self.held(slot))
    }

    /// As it stands in a twin.
    pub(super) fn report(&self) -> Report {
        let slot = |key: Option<KeyNo>| {
            key.map(|key| SlotReport { fingerprint: Fingerprint::of(&real_key(key)), proven_at: Some(0) })
        };
        let mut report = Report {
            contract: 1,
            agent: "0".to_owned(),
            seal_to: Some(public(self.seal)),
            sequence: self.sequence.into(),
            active: self.active,
            rotation: self.rotation.map(real_rotation),
            status: self.status,
            reason: None,
            clock_offset_secs: None,
            behind: None,
            primary: slot(self.primary),
            secondary: slot(self.secondary),
            proof: None,
        };
        match self.proof {
            Proof::Missing => {}
            Proof::Wrong => report.prove(&real_key(STRANGE), &identity()),
            Proof::By(key) => report.prove(&real_key(key), &identity()),
        }
        report
    }
}

impl Tags {
    pub(super) fn seen(self) -> Seen {
        match self {
            Self::Nothing => Seen::Nothing,
            Self::Unreadable => Seen::Unreadable,
            Self::Believed { seal, sequence } => {
                Seen::Believed(Believed { seal_to: public(seal), sequence: sequence.into() })
            }
        }
    }
}

impl Pair {
    pub(super) fn of(self, slot: KeySlot) -> KeyNo {
        match slot {
            KeySlot::Primary => self.primary,
            KeySlot::Secondary => self.secondary,
        }
    }

    pub(super) fn with(self, slot: KeySlot, key: KeyNo) -> Self {
        match slot {
            KeySlot::Primary => Self { primary: key, ..self },
            KeySlot::Secondary => Self { secondary: key, ..self },
        }
    }

    pub(super) fn slot_of(self, key: KeyNo) -> Option<KeySlot> {
        KeySlot::ALL.into_iter().find(|slot| self.of(*slot) == key)
    }

    pub(super) fn holds(self, key: KeyNo) -> bool {
        self.slot_of(key).is_some()
    }

    pub(super) fn real(self) -> KeyPair {
        KeyPair { primary: real_key(self.primary), secondary: real_key(self.secondary) }
    }
}

impl Stands {
    pub(super) fn covers(self, slot: KeySlot) -> bool {
        match slot {
            KeySlot::Primary => self.primary,
            KeySlot::Secondary => self.secondary,
        }
    }

    pub(super) fn real(self) -> Standing {
        Standing { rotation: real_rotation(self.rotation), primary: self.primary, secondary: self.secondary }
    }
}

pub(super) fn real_key(number: KeyNo) -> Key {
    Key::from_bytes(&[number; 32]).unwrap()
}

pub(super) fn public(seal: Seal) -> SealingPublicKey {
    SealingPublicKey(match seal {
        Seal::Agent => [1; 32],
        Seal::Party => [2; 32],
    })
}

pub(super) fn seal_of(public_key: SealingPublicKey) -> Seal {
    if public_key == public(Seal::Agent) { Seal::Agent } else { Seal::Party }
}

pub(super) fn real_rotation(number: RotationNo) -> RotationId {
    format!("00000000-0000-7000-8000-{number:012x}").parse().unwrap()
}

pub(super) fn identity() -> Identity {
    Identity::new("d1", None).unwrap()
}
