//! What to do with one device, decided from what the registry and the twin say. No I/O in here.
//!
//! One rule keeps devices alive: **after the registry has changed, it still holds the key that the device lives on.**
//! Keys are told apart by fingerprint, never by the slot that the device believes them to be in.

use twinkey_contract::report::{Report, Status};
use twinkey_contract::{CONTRACT_VERSION, Fingerprint, Identity, KeySlot, RotationId};

use crate::cli::KeyType;
use crate::hub::KeyPair;

/// What is known about a device before anything is done.
pub(crate) struct Facts<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) is_enabled: bool,
    pub(crate) is_connected: bool,
    /// The registry's keys.
    pub(crate) keys: &'a KeyPair,
    /// What the agent last said.
    pub(crate) report: Option<&'a Report>,
    /// The offer that stands in the twin, left by an earlier run.
    pub(crate) standing: Option<Standing>,
}

/// An offer that stands in the twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) rotation: RotationId,
    pub(crate) primary: bool,
    pub(crate) secondary: bool,
}

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) key_type: KeyType,
    /// The key that the slot had when the renewal was begun, where that is known.
    pub(crate) replaces: Option<Fingerprint>,
    /// The operator named this device as one that may go dark.
    pub(crate) is_forced: bool,
    /// Whether keys are handed to the device.
    pub(crate) delivers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Refuse(Refusal),
    /// An earlier run got through, but perhaps for erasing its offer.
    Settle {
        /// Of the offer that still stands.
        rotation: Option<RotationId>,
    },
    /// Change the registry, then offer what it holds.
    Renew {
        change: Change,
        offer: Slots,
        /// What would have been refused without force.
        in_spite_of: Option<Refusal>,
    },
}

/// What happens to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The registry has a key already that the device does not hold.
    Nothing,
    Regenerate(KeySlot),
    RegenerateBoth,
    Swap,
}

/// Whose keys are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slots {
    None,
    One(KeySlot),
    Both,
}

/// Why a device could go dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the device is disabled")]
    Disabled,
    #[error("no agent that speaks the twin contract reports which key the device uses")]
    NoAgent,
    #[error("the device is not connected, so it can't receive a key")]
    NotConnected,
    #[error("the agent has not reported yet which key the hub accepted")]
    ActiveUnknown,
    #[error("the registry holds none of the keys that the device reports")]
    KeyUnknown,
    #[error(
        "the registry does not hold the key that the device says it lives on; its only way back is its {slot} key"
    )]
    LastKey { slot: KeySlot },
    #[error("the device's proof does not fit the key that it says it lives on")]
    ProofFails,
    #[error("the device lives on its {slot} key")]
    SlotInUse { slot: KeySlot },
    #[error("with both keys regenerated at once, the device is cut off if it misses the delivery")]
    BothSlots,
    #[error("an offer stands in the twin: the device may just be moving to the slot")]
    OfferStands,
}

impl Refusal {
    /// The stable code in JSON output.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NoAgent => "no-agent",
            Self::NotConnected => "not-connected",
            Self::ActiveUnknown => "active-unknown",
            Self::KeyUnknown => "key-unknown",
            Self::LastKey { .. } => "last-key",
            Self::ProofFails => "proof-fails",
            Self::SlotInUse { .. } => "slot-in-use",
            Self::BothSlots => "both-slots",
            Self::OfferStands => "offer-stands",
        }
    }

    /// What the operator can do instead of forcing it.
    pub(crate) fn advice(self) -> String {
        match self {
            Self::Disabled => "enable the device and wait until it is connected".to_owned(),
            Self::NoAgent => "install twinkey-agent on it and wait until it is connected".to_owned(),
            Self::NotConnected => "wait until it is connected".to_owned(),
            Self::ActiveUnknown => "wait until the agent has connected once, then repeat".to_owned(),
            Self::KeyUnknown => {
                "bring the device a connection string of today by hand: it can't reconnect".to_owned()
            }
            Self::LastKey { slot } => format!(
                "renew the {} key, with delivery: the registry's is handed over as it is",
                slot.other()
            ),
            Self::ProofFails => {
                "look at the device: its report is stale, restored from an old image, or forged".to_owned()
            }
            Self::SlotInUse { slot } => {
                format!("renew the {} key first, so that the device moves to it", slot.other())
            }
            Self::BothSlots => "renew one key, then the other: --key-type in-turn".to_owned(),
            Self::OfferStands => "finish it: run again without --no-deliver".to_owned(),
        }
    }
}

/// Decides.
pub(crate) fn plan(facts: &Facts<'_>, request: Request) -> Plan {
    let report = facts.report.filter(|report| report.contract == CONTRACT_VERSION);
    let finished = finished_rotation(facts, report, request.key_type);
    if let Some(rotation) = finished.filter(|_| request.delivers) {
        return Plan::Settle { rotation: Some(rotation) };
    }
    let made = made_before(facts, request);
    if made.is_some_and(|slot| request.delivers && is_taken(facts, report, slot)) {
        return Plan::Settle { rotation: facts.standing.map(|standing| standing.rotation) };
    }
    let danger = danger(facts, report, request);
    if let Some(refusal) = danger.filter(|_| !request.is_forced) {
        return Plan::Refuse(refusal);
    }
    let (change, offer) = match request.key_type {
        KeyType::Primary | KeyType::Secondary if made.is_some() => {
            (Change::Nothing, made.map_or(Slots::None, Slots::One))
        }
        KeyType::Primary => change_slot(facts, report, request, KeySlot::Primary),
        KeyType::Secondary => change_slot(facts, report, request, KeySlot::Secondary),
        KeyType::Both => (Change::RegenerateBoth, Slots::Both),
        KeyType::Swap => (
            if request.delivers && swap_is_unfinished(facts, report) {
                Change::Nothing
            } else {
                Change::Swap
            },
            Slots::Both,
        ),
    };
    Plan::Renew { change, offer: if request.delivers { offer } else { Slots::None }, in_spite_of: danger }
}

/// The slot that can be renewed first: the one that the device does not live on, as far as is known.
pub(crate) fn idle_slot(facts: &Facts<'_>) -> KeySlot {
    let report = facts.report.filter(|report| report.contract == CONTRACT_VERSION);
    let lives_on = report.and_then(|report| report.slot(report.active?)).map(|slot| slot.fingerprint);
    let lives_in = KeySlot::ALL.into_iter().find(|slot| lives_on == Some(facts.keys.fingerprint(*slot)));
    lives_in.or_else(|| find_way_back(facts, report?)).map_or(KeySlot::Secondary, KeySlot::other)
}

/// The slot that has its new key already: the registry shows another key than the one that was to be replaced.
fn made_before(facts: &Facts<'_>, request: Request) -> Option<KeySlot> {
    let slot = match request.key_type {
        KeyType::Primary => KeySlot::Primary,
        KeyType::Secondary => KeySlot::Secondary,
        KeyType::Both | KeyType::Swap => return None,
    };
    request.replaces.filter(|replaced| facts.keys.fingerprint(slot) != *replaced).map(|_| slot)
}

/// Whether the device has proved that it lives on the registry's key of this slot.
fn is_taken(facts: &Facts<'_>, report: Option<&Report>, slot: KeySlot) -> bool {
    report.and_then(|report| report.rotation.map(|rotation| (report, rotation))).is_some_and(
        |(report, rotation)| {
            report.active == Some(slot) && is_proved(report, rotation, facts.keys, facts.identity)
        },
    )
}

/// The rotation of a standing offer that the device has committed and proved, and that did what is asked for now.
fn finished_rotation(facts: &Facts<'_>, report: Option<&Report>, key_type: KeyType) -> Option<RotationId> {
    let (standing, report) = (facts.standing?, report?);
    let active = report.active?;
    let is_what_is_asked = match key_type {
        KeyType::Primary => standing.primary && active == KeySlot::Primary,
        KeyType::Secondary => standing.secondary && active == KeySlot::Secondary,
        KeyType::Both => false,
        KeyType::Swap => standing.primary && standing.secondary,
    };
    (is_what_is_asked && is_proved(report, standing.rotation, facts.keys, facts.identity))
        .then_some(standing.rotation)
}

/// Whether the device has committed `rotation` and proves that it lives on the registry's key of its active slot.
pub(crate) fn is_proved(report: &Report, rotation: RotationId, keys: &KeyPair, identity: &Identity) -> bool {
    let is_committed = report.status == Status::Committed && report.rotation == Some(rotation);
    report.active.filter(|_| is_committed).is_some_and(|active| {
        let lives_on = report.slot(active).map(|slot| slot.fingerprint);
        let proof = report.proof.as_ref();
        lives_on == Some(keys.fingerprint(active))
            && proof.is_some_and(|p| p.verify(keys.of(active), identity, rotation))
    })
}

fn danger(facts: &Facts<'_>, report: Option<&Report>, request: Request) -> Option<Refusal> {
    if !facts.is_enabled {
        return Some(Refusal::Disabled);
    }
    let Some(report) = report else { return Some(Refusal::NoAgent) };
    if !facts.is_connected {
        return Some(Refusal::NotConnected);
    }
    let Some(active) = report.active.and_then(|active| report.slot(active)) else {
        return Some(Refusal::ActiveUnknown);
    };
    let Some(lives_in) =
        KeySlot::ALL.into_iter().find(|slot| facts.keys.fingerprint(*slot) == active.fingerprint)
    else {
        let Some(slot) = find_way_back(facts, report) else { return Some(Refusal::KeyUnknown) };
        // Handing over the other key destroys nothing; everything else might.
        let hands_over_other = request.delivers
            && match request.key_type {
                KeyType::Primary => slot == KeySlot::Secondary,
                KeyType::Secondary => slot == KeySlot::Primary,
                KeyType::Both | KeyType::Swap => false,
            };
        return (!hands_over_other).then_some(Refusal::LastKey { slot });
    };
    let proof = report.rotation.zip(report.proof.as_ref());
    if proof.is_some_and(|(rotation, proof)| !proof.verify(facts.keys.of(lives_in), facts.identity, rotation))
    {
        return Some(Refusal::ProofFails);
    }
    let in_use = |slot: KeySlot| facts.keys.fingerprint(slot.other()) != active.fingerprint;
    let slot_danger = |slot| {
        let may_be_moving = !request.delivers && facts.standing.is_some_and(|standing| standing.covers(slot));
        if in_use(slot) {
            Some(Refusal::SlotInUse { slot })
        } else {
            may_be_moving.then_some(Refusal::OfferStands)
        }
    };
    match request.key_type {
        KeyType::Primary => slot_danger(KeySlot::Primary),
        KeyType::Secondary => slot_danger(KeySlot::Secondary),
        KeyType::Both => Some(Refusal::BothSlots),
        // Both keys stay valid.
        KeyType::Swap => None,
    }
}

fn change_slot(
    facts: &Facts<'_>,
    report: Option<&Report>,
    request: Request,
    slot: KeySlot,
) -> (Change, Slots) {
    let regenerate = Change::Regenerate(slot);
    let Some(report) = report else { return (regenerate, Slots::One(slot)) };
    if request.delivers && find_way_back(facts, report) == Some(slot.other()) {
        return (Change::Nothing, Slots::One(slot));
    }
    let lives_on = report.active.and_then(|active| report.slot(active)).map(|slot| slot.fingerprint);
    let lives_in_other = lives_on == Some(facts.keys.fingerprint(slot.other()));
    // An agent that was provisioned with one key may have it under the wrong label: tell it both.
    let is_mislabelled = lives_on.is_some() && lives_in_other && report.active == Some(slot);
    let offer = if is_mislabelled { Slots::Both } else { Slots::One(slot) };
    let spare = report.active.and_then(|active| report.slot(active.other()));
    let is_undelivered = spare.is_some_and(|spare| spare.fingerprint != facts.keys.fingerprint(slot));
    let is_offered = facts.standing.is_some_and(|standing| standing.covers(slot));
    let is_unfinished =
        request.delivers && (lives_in_other || lives_on.is_none()) && (is_undelivered || is_offered);
    (if is_unfinished { Change::Nothing } else { regenerate }, offer)
}

/// Where the registry holds the device's spare key, if it does not hold the one that the device says it lives on. Once
/// its connection breaks, the device can come back with that key alone.
fn find_way_back(facts: &Facts<'_>, report: &Report) -> Option<KeySlot> {
    let active = report.active?;
    let find = |held: KeySlot| {
        let print = report.slot(held)?.fingerprint;
        KeySlot::ALL.into_iter().find(|slot| facts.keys.fingerprint(*slot) == print)
    };
    report.slot(active)?;
    if find(active).is_some() { None } else { find(active.other()) }
}

/// Whether the registry has its keys the other way round than the device, or such an offer stands already.
fn swap_is_unfinished(facts: &Facts<'_>, report: Option<&Report>) -> bool {
    let is_offered = facts.standing.is_some_and(|standing| standing.primary && standing.secondary);
    let is_crossed = report.is_some_and(|report| {
        let held = |slot| report.slot(slot).map(|slot| slot.fingerprint);
        let registry = |slot: KeySlot| Some(facts.keys.fingerprint(slot));
        held(KeySlot::Primary) == registry(KeySlot::Secondary)
            && held(KeySlot::Secondary) == registry(KeySlot::Primary)
            && registry(KeySlot::Primary) != registry(KeySlot::Secondary)
    });
    is_offered || is_crossed
}

impl Standing {
    fn covers(self, slot: KeySlot) -> bool {
        match slot {
            KeySlot::Primary => self.primary,
            KeySlot::Secondary => self.secondary,
        }
    }
}
