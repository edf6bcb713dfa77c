//! Between the twin's JSON and the machine's names: reads offers, opens sealed keys, writes reports.

use twinkey_contract::offer::{Offer, OfferedKey, check_mark};
use twinkey_contract::report::{Reason, Report, SlotReport, Status};
use twinkey_contract::sealing::Binding;
use twinkey_contract::{CONTRACT_VERSION, Fingerprint, KeySlot, Proof, RotationId};
use twinkey_rotation as rotation;
use twinkey_sas::Key;
use uuid::Uuid;

use crate::keyring::KeyRing;

/// Reads the operator's part of a twin document. The offered keys become known to `key_ring` by their names; nothing
/// uses them before the machine says so. What can't be used comes with words for a person.
pub fn read_desired(
    twin: &[u8],
    key_ring: &mut KeyRing,
    allow_unsealed: bool,
) -> (rotation::Desired, Option<String>) {
    let offer = match Offer::read(twin) {
        Ok(None) => return (rotation::Desired::Nothing, None),
        Ok(Some(offer)) => offer,
        Err(error) => {
            return (invalid(error.rotation, error.code()), Some(error.to_string()));
        }
    };
    let id = offer.rotation;
    let mut keys = rotation::PerSlot::default();
    for (slot, offered) in [(KeySlot::Primary, offer.primary), (KeySlot::Secondary, offer.secondary)] {
        let Some(offered) = offered else { continue };
        match open(offered, slot, id, key_ring, allow_unsealed) {
            Ok(key) => *keys.of_mut(slot_of(slot)) = Some(key_ring.learn(key)),
            Err(reason) => {
                let what = format!("the key for the {slot} slot can't be used: {reason}");
                return (invalid(Some(id), reason), Some(what));
            }
        }
    }
    let offer = rotation::Offer { rotation: rotation::RotationId(id.0.as_u128()), keys };
    (rotation::Desired::Offer(offer), None)
}

/// What the agent has to say besides the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// What is added to the machine's clock, on the hub's word, in seconds.
    pub clock_offset_secs: Option<i64>,
    /// Somebody else seems to connect with this identity.
    pub is_duel: bool,
    /// The key ring comes from an old image; this is the highest sequence that the twin has shown of it.
    pub behind: Option<u64>,
}

impl Remarks {
    /// The code to report when the machine has no reason of its own.
    fn reason(&self) -> Option<Reason> {
        if self.behind.is_some() {
            Some(Reason::Restored)
        } else if self.is_duel {
            Some(Reason::Duel)
        } else {
            self.clock_offset_secs.map(|_| Reason::Clock)
        }
    }
}

/// Writes what the machine reports, with the proof that the agent holds the active key.
pub fn write_report(report: &rotation::Report, remarks: &Remarks, key_ring: &KeyRing) -> Report {
    let rotation = report.rotation.map(|id| RotationId(Uuid::from_u128(id.0)));
    let active_key =
        report.active.and_then(|slot| *report.held.of(slot)).and_then(|held| key_ring.key(held.key));
    let proof = match (active_key, rotation) {
        (Some(key), Some(rotation)) => Some(Proof::new(key, &key_ring.registration.identity, rotation)),
        (Some(_) | None, _) => None,
    };
    let slot_report = |held: Option<rotation::Held>| {
        held.map(|held| SlotReport {
            fingerprint: Fingerprint(held.key.0),
            proven_at: held.proven_at.map(|at| at.0),
        })
    };
    Report {
        contract: CONTRACT_VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        seal_to: Some(key_ring.sealing_key.public()),
        sequence: report.sequence,
        active: report.active.map(slot_text),
        rotation,
        status: match report.status {
            rotation::Status::Idle => Status::Idle,
            rotation::Status::Trying => Status::Trying,
            rotation::Status::Committed => Status::Committed,
            rotation::Status::Rejected => Status::Rejected,
            rotation::Status::Invalid => Status::Invalid,
            rotation::Status::Waiting => Status::Waiting,
        },
        reason: report
            .reason
            .map(|reason| match reason {
                rotation::Reason::Refused => Reason::Refused,
                rotation::Reason::Clock => Reason::Clock,
                rotation::Reason::Network => Reason::Network,
                rotation::Reason::Throttled => Reason::Throttled,
                rotation::Reason::Storage => Reason::Storage,
                rotation::Reason::Malformed => Reason::Malformed,
                rotation::Reason::Checksum => Reason::Checksum,
                rotation::Reason::UnsealedForbidden => Reason::UnsealedForbidden,
                rotation::Reason::CannotUnseal => Reason::CannotUnseal,
            })
            .or(remarks.reason()),
        clock_offset_secs: remarks.clock_offset_secs,
        behind: remarks.behind,
        primary: slot_report(report.held.primary),
        secondary: slot_report(report.held.secondary),
        proof,
    }
}

fn open(
    offered: OfferedKey,
    slot: KeySlot,
    rotation: RotationId,
    key_ring: &KeyRing,
    allow_unsealed: bool,
) -> Result<Key, Reason> {
    let identity = &key_ring.registration.identity;
    match offered {
        OfferedKey::Plain(_) if !allow_unsealed => Err(Reason::UnsealedForbidden),
        OfferedKey::Plain(key) => Ok(key),
        OfferedKey::Sealed(sealed) => {
            let binding = Binding { identity, slot, rotation };
            let key = key_ring.sealing_key.unseal(&binding, &sealed).map_err(|_| Reason::CannotUnseal)?;
            check_mark(slot, &key).map_err(|kind| kind.code())?;
            Ok(key)
        }
    }
}

fn invalid(rotation: Option<RotationId>, reason: Reason) -> rotation::Desired {
    let reason = match reason {
        Reason::Refused => rotation::Reason::Refused,
        Reason::Clock => rotation::Reason::Clock,
        Reason::Network => rotation::Reason::Network,
        Reason::Throttled => rotation::Reason::Throttled,
        Reason::Storage => rotation::Reason::Storage,
        // The last two say nothing of an offer.
        Reason::Malformed | Reason::Duel | Reason::Restored => rotation::Reason::Malformed,
        Reason::Checksum => rotation::Reason::Checksum,
        Reason::UnsealedForbidden => rotation::Reason::UnsealedForbidden,
        Reason::CannotUnseal => rotation::Reason::CannotUnseal,
    };
    let rotation = rotation.map(|id| rotation::RotationId(id.0.as_u128()));
    rotation::Desired::Invalid(rotation::Invalid { rotation, reason })
}

fn slot_of(slot: KeySlot) -> rotation::KeySlot {
    match slot {
        KeySlot::Primary => rotation::KeySlot::Primary,
        KeySlot::Secondary => rotation::KeySlot::Secondary,
    }
}

fn slot_text(slot: rotation::KeySlot) -> KeySlot {
    match slot {
        rotation::KeySlot::Primary => KeySlot::Primary,
        rotation::KeySlot::Secondary => KeySlot::Secondary,
    }
}
