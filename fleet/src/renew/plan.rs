//! What to do with one device, decided from what the registry and the twin say. No I/O in here.
//!
//! Two rules: **after the registry has changed, it still holds the key that the device lives on**, and **nobody but the device
//! gets its next key**. Keys are told apart by fingerprint, never by the slot that the device believes them to be in, and
//! only a report that is believed counts (`belief`).

use twinkey_contract::report::{Reason, Report};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::tags::{self, Seen};
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId};

use super::belief::{self, Believed, Trust, believe};
pub(crate) use super::refusal::Refusal;
use crate::cli::KeyType;
use crate::hub::KeyPair;

/// What is known about a device before anything is done.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) is_enabled: bool,
    pub(crate) is_connected: bool,
    /// The registry's keys.
    pub(crate) keys: &'a KeyPair,
    /// What is reported in the twin, by whomever.
    pub(crate) report: Option<&'a Report>,
    /// What operators have believed before.
    pub(crate) seen: Seen,
    /// The offer that stands in the twin, left by an earlier run.
    pub(crate) standing: Option<Standing>,
}

/// An offer that stands in the twin and was made by an operator: with a key of the device that the registry has.
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
    /// Whether they are handed over unsealed.
    pub(crate) is_plain: bool,
    pub(crate) trust: Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Refuse(Refusal),
    /// An earlier run got through, but perhaps for erasing its offer.
    Settle {
        /// Of the offer that still stands.
        rotation: Option<RotationId>,
        /// What is written into the tags.
        remembers: Option<tags::Believed>,
    },
    /// Change the registry, then offer what it holds.
    Renew {
        change: Change,
        offer: Slots,
        /// In which form; `None` where nothing is offered.
        form: Option<Form>,
        /// The slot whose key authenticates the offer: the key that stands there before the change.
        vouching: KeySlot,
        /// What is written into the tags with the offer.
        remembers: Option<tags::Believed>,
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

/// The form in which keys are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// To this public key.
    Sealed(SealingPublicKey),
    /// For all who may read the twin.
    Plain,
}

/// Decides.
pub(crate) fn plan(facts: &Facts<'_>, request: Request) -> Plan {
    let belief = believe(facts.report, facts.keys, facts.identity, facts.seen, request.trust);
    let believed = belief.ok();
    let remembers = believed.and_then(|believed| belief::to_remember(believed, facts.seen, request.trust));
    let finished = believed.and_then(|believed| finished_rotation(facts, believed, request.key_type));
    if let Some(rotation) = finished.filter(|_| request.delivers) {
        return Plan::Settle { rotation: Some(rotation), remembers };
    }
    let made = made_before(facts, request);
    if made.is_some_and(|slot| request.delivers && is_taken(facts, believed, slot)) {
        return Plan::Settle { rotation: facts.standing.map(|standing| standing.rotation), remembers };
    }
    let form = form(facts, believed, request);
    let danger = danger(facts, belief, form, request);
    if let Some(refusal) = danger.filter(|_| !request.is_forced) {
        return Plan::Refuse(refusal);
    }
    let (change, offer) = match request.key_type {
        KeyType::Primary | KeyType::Secondary if made.is_some() => {
            (Change::Nothing, made.map_or(Slots::None, Slots::One))
        }
        KeyType::Primary => change_slot(facts, believed, request, KeySlot::Primary),
        KeyType::Secondary => change_slot(facts, believed, request, KeySlot::Secondary),
        KeyType::Both => (Change::RegenerateBoth, Slots::Both),
        KeyType::Swap => (
            if request.delivers && swap_is_unfinished(facts, believed) {
                Change::Nothing
            } else {
                Change::Swap
            },
            Slots::Both,
        ),
    };
    let offer = if form.is_some() { offer } else { Slots::None };
    let vouching = believed.map(|believed| believed.lives_in());
    Plan::Renew {
        change,
        offer,
        form: form.filter(|_| offer != Slots::None),
        // Nothing is known where the operator has forced it: then the key that stays.
        vouching: vouching.unwrap_or(match request.key_type {
            KeyType::Primary => KeySlot::Secondary,
            KeyType::Secondary | KeyType::Both | KeyType::Swap => KeySlot::Primary,
        }),
        remembers: remembers.filter(|_| offer != Slots::None),
        in_spite_of: danger,
    }
}

/// The slot that can be renewed first: the one that the device does not live on, as far as is known.
pub(crate) fn idle_slot(facts: &Facts<'_>, trust: Trust) -> KeySlot {
    match believe(facts.report, facts.keys, facts.identity, facts.seen, trust) {
        Ok(believed) => believed.lives_in().other(),
        Err(Refusal::LastKey { slot }) => slot.other(),
        Err(_) => KeySlot::Secondary,
    }
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
fn is_taken(facts: &Facts<'_>, believed: Option<Believed<'_>>, slot: KeySlot) -> bool {
    believed.map(|believed| believed.report()).is_some_and(|report| {
        report.active == Some(slot)
            && report
                .rotation
                .is_some_and(|rotation| belief::is_committed(report, rotation, facts.keys, facts.identity))
    })
}

/// The rotation of a standing offer that the device has committed and proved, and that did what is asked for now.
fn finished_rotation(facts: &Facts<'_>, believed: Believed<'_>, key_type: KeyType) -> Option<RotationId> {
    let (standing, active) = (facts.standing?, believed.lives_in());
    let is_what_is_asked = match key_type {
        KeyType::Primary => standing.primary && active == KeySlot::Primary,
        KeyType::Secondary => standing.secondary && active == KeySlot::Secondary,
        KeyType::Both => false,
        KeyType::Swap => standing.primary && standing.secondary,
    };
    (is_what_is_asked
        && belief::is_committed(believed.report(), standing.rotation, facts.keys, facts.identity))
    .then_some(standing.rotation)
}

/// How keys are handed over, if they are to be and somebody is there whom they can be sealed to.
fn form(facts: &Facts<'_>, believed: Option<Believed<'_>>, request: Request) -> Option<Form> {
    if !request.delivers {
        return None;
    }
    if request.is_plain {
        return Some(Form::Plain);
    }
    belief::seal_target(believed?, facts.seen, request.trust).map(Form::Sealed)
}

fn danger(
    facts: &Facts<'_>,
    belief: Result<Believed<'_>, Refusal>,
    form: Option<Form>,
    request: Request,
) -> Option<Refusal> {
    if !facts.is_enabled {
        return Some(Refusal::Disabled);
    }
    if let Err(Refusal::NoAgent) = belief {
        return Some(Refusal::NoAgent);
    }
    if !facts.is_connected {
        return Some(Refusal::NotConnected);
    }
    let believed = match belief {
        Ok(believed) => believed,
        Err(refusal) => return Some(refusal),
    };
    if request.delivers && form.is_none() {
        return Some(Refusal::SealUnknown);
    }
    if request.delivers && believed.report().reason == Some(Reason::TwinTooLarge) {
        return Some(Refusal::TwinTooLarge);
    }
    let lives_on = facts.keys.fingerprint(believed.lives_in());
    let in_use = |slot: KeySlot| facts.keys.fingerprint(slot.other()) != lives_on;
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
    believed: Option<Believed<'_>>,
    request: Request,
    slot: KeySlot,
) -> (Change, Slots) {
    let regenerate = Change::Regenerate(slot);
    let Some(believed) = believed else { return (regenerate, Slots::One(slot)) };
    let report = believed.report();
    let lives_on = facts.keys.fingerprint(believed.lives_in());
    let lives_in_other = lives_on == facts.keys.fingerprint(slot.other());
    // An agent that was provisioned with one key may have it under the wrong label: tell it both.
    let is_mislabelled = lives_in_other && report.active == Some(slot);
    let offer = if is_mislabelled { Slots::Both } else { Slots::One(slot) };
    let spare = report.active.and_then(|active| report.slot(active.other()));
    let is_undelivered = spare.is_some_and(|spare| spare.fingerprint != facts.keys.fingerprint(slot));
    let is_offered = facts.standing.is_some_and(|standing| standing.covers(slot));
    // In an incident every key of before has to go, and a thief with the key can prove that a key is not there.
    let is_undelivered = is_undelivered && !request.trust.is_incident;
    let is_unfinished = request.delivers && lives_in_other && (is_undelivered || is_offered);
    (if is_unfinished { Change::Nothing } else { regenerate }, offer)
}

/// Whether the registry has its keys the other way round than the device, or such an offer stands already.
fn swap_is_unfinished(facts: &Facts<'_>, believed: Option<Believed<'_>>) -> bool {
    let is_offered = facts.standing.is_some_and(|standing| standing.primary && standing.secondary);
    let is_crossed = believed.map(|believed| believed.report()).is_some_and(|report| {
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
