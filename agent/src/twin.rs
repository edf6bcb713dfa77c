//! Between the twin's JSON and the machine's names: reads offers, opens sealed keys, writes reports.

use twinkey_contract::offer::{Offer, OfferedKey, check_mark};
use twinkey_contract::report::{Reason, Report, SlotReport, Status};
use twinkey_contract::sealing::Binding;
use twinkey_contract::{CONTRACT_VERSION, Fingerprint, KeySlot, RotationId};
use twinkey_rotation as rotation;
use twinkey_sas::Key;
use uuid::Uuid;

use crate::config;
use crate::keyring::{KeyRing, name_of};

/// Reads the operator's part of a twin document. The offered keys become known to `key_ring` by their names; nothing
/// uses them before the machine says so. What can't be used comes with words for a person.
///
/// An offer has to be authenticated with a key that `ring` holds in a slot, unless the configuration says otherwise, or unless
/// it is the one that the ring has taken up: the key that authenticated it may be gone since.
pub fn read_desired(
    twin: &[u8],
    key_ring: &mut KeyRing,
    ring: &rotation::Ring,
    config: &config::Rotation,
) -> (rotation::Desired, Option<String>) {
    let offer = match Offer::read(twin) {
        Ok(None) => return (rotation::Desired::Nothing, None),
        Ok(Some(offer)) => offer,
        Err(error) => {
            return (invalid(error.rotation, error.code()), Some(error.to_string()));
        }
    };
    let id = offer.rotation;
    let is_authentic = is_authentic(&offer, key_ring, ring, config);
    if !is_authentic && ring.rotation.is_none_or(|known| known.id.0 != id.0.as_u128()) {
        // Nothing of it is opened: that costs a slow board a tenth of a second for each key.
        return unauthenticated(&offer);
    }
    let mut keys = Vec::new();
    for slot in KeySlot::ALL {
        let Some(offered) = offer.slot(slot) else { continue };
        match open(offered, slot, id, key_ring, config.allow_unsealed) {
            Ok(key) => keys.push((slot, key)),
            Err(_) if !is_authentic => return unauthenticated(&offer),
            Err(reason) => {
                let what = format!("the key for the {slot} slot can't be used: {reason}");
                return (invalid(Some(id), reason), Some(what));
            }
        }
    }
    let mut offer_by_names = rotation::Offer {
        rotation: rotation::RotationId(id.0.as_u128()),
        keys: rotation::PerSlot::default(),
    };
    for (slot, key) in &keys {
        *offer_by_names.keys.of_mut(slot_of(*slot)) = Some(name_of(key));
    }
    let is_known = ring
        .rotation
        .is_some_and(|known| known.id == offer_by_names.rotation && known.offered == offer_by_names.keys);
    if !is_authentic && !is_known {
        return unauthenticated(&offer);
    }
    for (slot, key) in keys {
        if let Err(error) = key_ring.learn(key) {
            let what = format!("the key for the {slot} slot can't be used: {error}");
            return (invalid(Some(id), Reason::Malformed), Some(what));
        }
    }
    (rotation::Desired::Offer(offer_by_names), None)
}

/// Whether somebody made the offer who knows a key of this device: one that stands in a slot, so no candidate.
fn is_authentic(offer: &Offer, key_ring: &KeyRing, ring: &rotation::Ring, config: &config::Rotation) -> bool {
    if offer.auth.is_none() {
        return config.allow_unauthenticated;
    }
    let held = rotation::KeySlot::ALL.into_iter().filter_map(|slot| ring.slots.of(slot).held);
    held.filter_map(|held| key_ring.key(held.key))
        .any(|key| offer.is_authentic(key, &key_ring.registration.identity))
}

fn unauthenticated(offer: &Offer) -> (rotation::Desired, Option<String>) {
    let what = if offer.auth.is_none() {
        "the offer has no authentication: make it with `twinkey`, or set `allow_unauthenticated` in section [rotation]"
    } else {
        "the offer's authentication was made with none of the keys that this device holds"
    };
    (invalid(Some(offer.rotation), Reason::Unauthenticated), Some(what.to_owned()))
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
    let slot_report = |held: Option<rotation::Held>| {
        held.map(|held| SlotReport {
            fingerprint: Fingerprint(held.key.0),
            proven_at: held.proven_at.map(|at| at.0),
        })
    };
    let mut report = Report {
        contract: CONTRACT_VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        seal_to: Some(key_ring.sealing_key.public()),
        sequence: report.sequence,
        active: report.active.map(slot_text),
        rotation: report.rotation.map(|id| RotationId(Uuid::from_u128(id.0))),
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
                rotation::Reason::TwinTooLarge => Reason::TwinTooLarge,
                rotation::Reason::Checksum => Reason::Checksum,
                rotation::Reason::UnsealedForbidden => Reason::UnsealedForbidden,
                rotation::Reason::CannotUnseal => Reason::CannotUnseal,
                rotation::Reason::Unauthenticated => Reason::Unauthenticated,
                rotation::Reason::TooManyOffers => Reason::TooManyOffers,
            })
            .or(remarks.reason()),
        clock_offset_secs: remarks.clock_offset_secs,
        behind: remarks.behind,
        primary: slot_report(report.held.primary),
        secondary: slot_report(report.held.secondary),
        proof: None,
    };
    if let Some(key) = active_key(&report, key_ring) {
        report.prove(key, &key_ring.registration.identity);
    }
    report
}

/// The key that the report's proof is made with.
pub fn active_key<'a>(report: &Report, key_ring: &'a KeyRing) -> Option<&'a Key> {
    let held = report.slot(report.active?)?;
    key_ring.key(rotation::KeyName(held.fingerprint.0))
}

fn open(
    offered: &OfferedKey,
    slot: KeySlot,
    rotation: RotationId,
    key_ring: &KeyRing,
    allow_unsealed: bool,
) -> Result<Key, Reason> {
    let identity = &key_ring.registration.identity;
    match offered {
        OfferedKey::Plain(_) if !allow_unsealed => Err(Reason::UnsealedForbidden),
        OfferedKey::Plain(key) => Ok(key.clone()),
        OfferedKey::Sealed(sealed) => {
            let binding = Binding { identity, slot, rotation };
            let key = key_ring.sealing_key.unseal(&binding, sealed).map_err(|_| Reason::CannotUnseal)?;
            check_mark(slot, &key).map_err(|kind| kind.code())?;
            Ok(key)
        }
    }
}

/// What the machine is told of a document that is no offer.
pub fn invalid(rotation: Option<RotationId>, reason: Reason) -> rotation::Desired {
    let reason = match reason {
        Reason::Refused => rotation::Reason::Refused,
        Reason::Clock => rotation::Reason::Clock,
        Reason::Network => rotation::Reason::Network,
        Reason::Throttled => rotation::Reason::Throttled,
        Reason::Storage => rotation::Reason::Storage,
        // The last two say nothing of an offer.
        Reason::Malformed | Reason::Duel | Reason::Restored => rotation::Reason::Malformed,
        Reason::TwinTooLarge => rotation::Reason::TwinTooLarge,
        Reason::Checksum => rotation::Reason::Checksum,
        Reason::UnsealedForbidden => rotation::Reason::UnsealedForbidden,
        Reason::CannotUnseal => rotation::Reason::CannotUnseal,
        Reason::Unauthenticated => rotation::Reason::Unauthenticated,
        Reason::TooManyOffers => rotation::Reason::TooManyOffers,
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
