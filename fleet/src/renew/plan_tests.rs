//! Every combination of what registry, twin and operator can say, and the cases that have names.

use twinkey_contract::report::{Reason, Report, SlotReport, Status};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::tags::{Believed, Seen};
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId};
use twinkey_sas::Key;

use super::belief::Trust;
use super::plan::{Change, Facts, Form, Plan, Refusal, Request, Slots, Standing, idle_slot, plan};
use crate::cli::KeyType;
use crate::hub::KeyPair;

const KEY_TYPES: [KeyType; 4] = [KeyType::Primary, KeyType::Secondary, KeyType::Both, KeyType::Swap];

pub(super) fn key(seed: u8) -> Key {
    Key::from_bytes(&[seed; 32]).unwrap()
}

/// The registry: key 1 is primary, key 2 is secondary. Other numbers are keys that it does not hold.
pub(super) fn registry() -> KeyPair {
    KeyPair { primary: key(1), secondary: key(2) }
}

pub(super) fn identity() -> Identity {
    Identity::new("d1", None).unwrap()
}

pub(super) fn rotation(number: u128) -> RotationId {
    format!("00000000-0000-7000-8000-{number:012x}").parse().unwrap()
}

/// What an agent says that holds these keys and lives on that of `active`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Says {
    pub(super) active: Option<KeySlot>,
    pub(super) primary: Option<u8>,
    pub(super) secondary: Option<u8>,
    pub(super) rotation: Option<(u128, Status)>,
    /// The key that the proof is made with.
    pub(super) proof: Option<u8>,
    /// The public key that it names.
    pub(super) seal: Option<u8>,
    pub(super) sequence: u64,
    pub(super) reason: Option<Reason>,
}

/// The agent's public key.
pub(super) const AGENT: u8 = 1;
/// A thief's.
pub(super) const THIEF: u8 = 2;

pub(super) fn public(seed: u8) -> SealingPublicKey {
    SealingPublicKey([seed; 32])
}

pub(super) fn believed(seed: u8, sequence: u64) -> Seen {
    Seen::Believed(Believed { seal_to: public(seed), sequence })
}

impl Says {
    pub(super) fn report(self) -> Report {
        let slot = |seed: Option<u8>| {
            seed.map(|s| SlotReport { fingerprint: Fingerprint::of(&key(s)), proven_at: Some(0) })
        };
        let mut report = Report {
            contract: 1,
            agent: "0".to_owned(),
            seal_to: self.seal.map(public),
            sequence: self.sequence,
            active: self.active,
            rotation: self.rotation.map(|(number, _)| rotation(number)),
            status: self.rotation.map_or(Status::Idle, |(_, status)| status),
            reason: self.reason,
            clock_offset_secs: None,
            behind: None,
            primary: slot(self.primary),
            secondary: slot(self.secondary),
            proof: None,
        };
        if let Some(seed) = self.proof {
            report.prove(&key(seed), &identity());
        }
        report
    }
}

/// An agent that knows both of the registry's keys and lives on the primary one.
pub(super) fn on_primary() -> Says {
    Says {
        active: Some(KeySlot::Primary),
        primary: Some(1),
        secondary: Some(2),
        rotation: None,
        proof: Some(1),
        seal: Some(AGENT),
        sequence: 1,
        reason: None,
    }
}

/// The same that lives on the secondary one.
pub(super) fn on_secondary() -> Says {
    Says { active: Some(KeySlot::Secondary), proof: Some(2), ..on_primary() }
}

fn decide(says: Option<Says>, standing: Option<Standing>, request: Request) -> Plan {
    decide_after(Seen::Nothing, says, standing, request)
}

/// The same where operators have believed a report before.
fn decide_after(seen: Seen, says: Option<Says>, standing: Option<Standing>, request: Request) -> Plan {
    let (report, keys, identity) = (says.map(Says::report), registry(), identity());
    let facts = Facts {
        identity: &identity,
        is_enabled: true,
        is_connected: true,
        keys: &keys,
        report: report.as_ref(),
        seen,
        standing,
    };
    plan(&facts, request)
}

fn ask(key_type: KeyType) -> Request {
    Request {
        key_type,
        replaces: None,
        is_forced: false,
        delivers: true,
        is_plain: false,
        trust: Trust::default(),
    }
}

fn offer(number: u128, primary: bool, secondary: bool) -> Option<Standing> {
    Some(Standing { rotation: rotation(number), primary, secondary })
}

/// What is done where an earlier run got through.
fn settle(number: Option<u128>) -> Plan {
    let remembers = Some(Believed { seal_to: public(AGENT), sequence: 1 });
    Plan::Settle { rotation: number.map(rotation), remembers }
}

/// What is done to a device whose first report is believed now, sealed to the agent.
fn renew(change: Change, offer: Slots) -> Plan {
    renew_on(KeySlot::Primary, change, offer)
}

/// The same for a device that lives on this slot.
fn renew_on(vouching: KeySlot, change: Change, offer: Slots) -> Plan {
    let is_offered = offer != Slots::None;
    Plan::Renew {
        change,
        offer,
        form: is_offered.then(|| Form::Sealed(public(AGENT))),
        vouching,
        remembers: is_offered.then(|| Believed { seal_to: public(AGENT), sequence: 1 }),
        in_spite_of: None,
    }
}

#[test]
fn the_slot_that_the_device_does_not_use_is_regenerated_and_offered() {
    let expected = renew(Change::Regenerate(KeySlot::Secondary), Slots::One(KeySlot::Secondary));
    assert_eq!(decide(Some(on_primary()), None, ask(KeyType::Secondary)), expected);
}

#[test]
fn a_device_that_knows_one_key_only_gets_a_new_other_one() {
    let says = Says { secondary: None, ..on_primary() };
    let expected = renew(Change::Regenerate(KeySlot::Secondary), Slots::One(KeySlot::Secondary));
    assert_eq!(decide(Some(says), None, ask(KeyType::Secondary)), expected);
}

#[test]
fn the_slot_in_use_is_refused_and_named() {
    let refused = Plan::Refuse(Refusal::SlotInUse { slot: KeySlot::Primary });
    assert_eq!(decide(Some(on_primary()), None, ask(KeyType::Primary)), refused);
}

#[test]
fn the_fingerprint_decides_which_slot_is_in_use_and_not_the_agents_label() {
    // Provisioned with the secondary key, which the agent files under "primary".
    let says = Says { primary: Some(2), secondary: None, proof: Some(2), ..on_primary() };
    let refused = Plan::Refuse(Refusal::SlotInUse { slot: KeySlot::Secondary });
    assert_eq!(decide(Some(says), None, ask(KeyType::Secondary)), refused);
    // Both keys are told, so that the labels get right.
    let expected = renew_on(KeySlot::Secondary, Change::Regenerate(KeySlot::Primary), Slots::Both);
    assert_eq!(decide(Some(says), None, ask(KeyType::Primary)), expected);
}

#[test]
fn a_device_that_can_not_answer_is_refused() {
    let (keys, identity, report) = (registry(), identity(), on_primary().report());
    let mut facts = Facts {
        identity: &identity,
        is_enabled: true,
        is_connected: false,
        keys: &keys,
        report: Some(&report),
        seen: Seen::Nothing,
        standing: None,
    };
    assert_eq!(plan(&facts, ask(KeyType::Swap)), Plan::Refuse(Refusal::NotConnected));
    facts.is_enabled = false;
    assert_eq!(plan(&facts, ask(KeyType::Swap)), Plan::Refuse(Refusal::Disabled));
    assert_eq!(decide(None, None, ask(KeyType::Secondary)), Plan::Refuse(Refusal::NoAgent));
    let silent = Says { active: None, ..on_primary() };
    assert_eq!(decide(Some(silent), None, ask(KeyType::Secondary)), Plan::Refuse(Refusal::ActiveUnknown));
}

#[test]
fn an_agent_of_another_contract_counts_as_none() {
    let (keys, identity) = (registry(), identity());
    let report = Report { contract: 2, ..on_primary().report() };
    let report = Some(&report);
    let facts = Facts {
        identity: &identity,
        is_enabled: true,
        is_connected: true,
        keys: &keys,
        report,
        seen: Seen::Nothing,
        standing: None,
    };
    assert_eq!(plan(&facts, ask(KeyType::Secondary)), Plan::Refuse(Refusal::NoAgent));
}

#[test]
fn a_key_that_the_registry_does_not_hold_and_a_false_proof_are_refused() {
    let stranger = Says { primary: Some(9), secondary: Some(8), ..on_primary() };
    assert_eq!(decide(Some(stranger), None, ask(KeyType::Secondary)), Plan::Refuse(Refusal::KeyUnknown));
    let liar = Says { rotation: Some((7, Status::Committed)), proof: Some(9), ..on_primary() };
    assert_eq!(decide(Some(liar), None, ask(KeyType::Secondary)), Plan::Refuse(Refusal::ProofFails));
}

#[test]
fn a_device_on_an_unknown_key_with_a_known_spare_is_left_alone_until_it_has_fallen_back() {
    // Nothing proves what it says: the registry does not have the key that made the proof.
    let says = Says { primary: Some(9), proof: Some(9), ..on_primary() };
    let refused = Plan::Refuse(Refusal::LastKey { slot: KeySlot::Secondary });
    for seen in [Seen::Nothing, believed(AGENT, 1)] {
        for proof in [None, Some(9), Some(1)] {
            for seal in [None, Some(AGENT), Some(THIEF)] {
                for key_type in KEY_TYPES {
                    let says = Says { proof, seal, ..says };
                    assert_eq!(decide_after(seen, Some(says), None, ask(key_type)), refused, "{key_type:?}");
                }
            }
        }
    }
    // By force it is not told either: the key could be sealed to somebody else.
    let forced = Request { is_forced: true, ..ask(KeyType::Primary) };
    let Plan::Renew { offer, form, .. } = decide_after(believed(AGENT, 1), Some(says), None, forced) else {
        panic!("it is forced");
    };
    assert_eq!((offer, form), (Slots::None, None));
}

#[test]
fn what_an_earlier_run_regenerated_is_delivered_and_not_regenerated_again() {
    // Stopped between regenerating and offering: the registry's secondary key is news to the device.
    let says = Says { secondary: Some(8), ..on_primary() };
    let expected = renew(Change::Nothing, Slots::One(KeySlot::Secondary));
    assert_eq!(decide(Some(says), None, ask(KeyType::Secondary)), expected);
    // Stopped while the device was trying.
    let says = Says { rotation: Some((7, Status::Trying)), secondary: None, ..on_primary() };
    assert_eq!(decide(Some(says), offer(7, false, true), ask(KeyType::Secondary)), expected);
    // Stopped after the device had said no.
    let says = Says { rotation: Some((7, Status::Rejected)), proof: Some(1), ..on_primary() };
    assert_eq!(decide(Some(says), offer(7, false, true), ask(KeyType::Secondary)), expected);
}

#[test]
fn a_renewal_that_was_proved_is_only_settled() {
    let moved = Says { rotation: Some((7, Status::Committed)), ..on_secondary() };
    let settled = settle(Some(7));
    assert_eq!(decide(Some(moved), offer(7, false, true), ask(KeyType::Secondary)), settled);
    let unproved = Says { proof: None, ..moved };
    let missing = Plan::Refuse(Refusal::ProofMissing);
    assert_eq!(decide(Some(unproved), offer(7, false, true), ask(KeyType::Secondary)), missing);
    // For another rotation the slot is simply in use.
    let refused = Plan::Refuse(Refusal::SlotInUse { slot: KeySlot::Secondary });
    assert_eq!(decide(Some(moved), offer(6, false, true), ask(KeyType::Secondary)), refused);
    // The leftover of the other slot's renewal stands in nobody's way.
    let expected =
        renew_on(KeySlot::Secondary, Change::Regenerate(KeySlot::Primary), Slots::One(KeySlot::Primary));
    assert_eq!(decide(Some(moved), offer(7, false, true), ask(KeyType::Primary)), expected);
}

#[test]
fn a_dead_key_of_a_device_that_fell_back_is_replaced_by_the_registrys() {
    // The primary key was regenerated behind its back (the agent still has key 9); it lives on the secondary one.
    let says = Says { primary: Some(9), ..on_secondary() };
    let expected = renew_on(KeySlot::Secondary, Change::Nothing, Slots::One(KeySlot::Primary));
    assert_eq!(decide(Some(says), None, ask(KeyType::Primary)), expected);
}

#[test]
fn swap_swaps_once() {
    assert_eq!(decide(Some(on_primary()), None, ask(KeyType::Swap)), renew(Change::Swap, Slots::Both));
    let crossed =
        Says { active: Some(KeySlot::Secondary), primary: Some(2), secondary: Some(1), ..on_primary() };
    assert_eq!(decide(Some(crossed), None, ask(KeyType::Swap)), renew(Change::Nothing, Slots::Both));
}

#[test]
fn both_slots_need_force() {
    assert_eq!(decide(Some(on_primary()), None, ask(KeyType::Both)), Plan::Refuse(Refusal::BothSlots));
    let forced = Request { is_forced: true, ..ask(KeyType::Both) };
    let expected = Plan::Renew {
        change: Change::RegenerateBoth,
        offer: Slots::Both,
        form: Some(Form::Sealed(public(AGENT))),
        vouching: KeySlot::Primary,
        remembers: Some(Believed { seal_to: public(AGENT), sequence: 1 }),
        in_spite_of: Some(Refusal::BothSlots),
    };
    assert_eq!(decide(Some(on_primary()), None, forced), expected);
}

#[test]
fn without_delivery_nothing_is_offered_and_a_slot_on_offer_is_left_alone() {
    let request = Request { delivers: false, ..ask(KeyType::Secondary) };
    let expected = renew(Change::Regenerate(KeySlot::Secondary), Slots::None);
    assert_eq!(decide(Some(on_primary()), None, request), expected);
    let moving = Says { rotation: Some((7, Status::Trying)), ..on_primary() };
    assert_eq!(decide(Some(moving), offer(7, false, true), request), Plan::Refuse(Refusal::OfferStands));
}

/// Facts of a device that is enabled and connected.
fn facts<'a>(
    identity: &'a Identity,
    keys: &'a KeyPair,
    report: Option<&'a Report>,
    seen: Seen,
    standing: Option<Standing>,
) -> Facts<'a> {
    Facts { identity, is_enabled: true, is_connected: true, keys, report, seen, standing }
}

/// Whether the key that the report names as the one in use stands in the registry after this change.
fn survives(report: &Report, keys: &KeyPair, change: Change) -> bool {
    let lives_on = report.slot(report.active.unwrap()).unwrap().fingerprint;
    let is_in_registry = KeySlot::ALL.iter().any(|slot| keys.fingerprint(*slot) == lives_on);
    match change {
        Change::Nothing | Change::Swap => is_in_registry,
        Change::Regenerate(slot) => lives_on == keys.fingerprint(slot.other()),
        Change::RegenerateBoth => false,
    }
}

#[test]
fn unless_forced_no_change_ever_takes_the_key_that_the_device_lives_on() {
    let seeds = [None, Some(1), Some(2), Some(9)];
    let statuses = [Status::Trying, Status::Committed, Status::Rejected];
    let rotations = std::iter::once(None).chain(statuses.into_iter().map(|status| Some((7, status))));
    let mut says = vec![None, Some(Says { active: None, ..on_primary() })];
    for (rotation, active) in rotations.flat_map(|r| KeySlot::ALL.map(|active| (r, Some(active)))) {
        for (primary, secondary) in seeds.iter().flat_map(|p| seeds.iter().map(move |s| (*p, *s))) {
            let named = if active == Some(KeySlot::Primary) { primary } else { secondary };
            says.extend(
                [None, named.or(Some(1)), Some(8)]
                    .map(|proof| Some(Says { active, primary, secondary, rotation, proof, ..on_primary() })),
            );
        }
    }
    let standings =
        [None, offer(7, true, false), offer(7, false, true), offer(7, true, true), offer(6, true, true)];
    let (keys, identity) = (registry(), identity());
    let mut acted = 0;
    for says in says {
        let report = says.map(Says::report);
        for (standing, key_type) in standings.iter().flat_map(|s| KEY_TYPES.map(|k| (*s, k))) {
            // The secondary slot's key as it is now; in the primary slot, that is another key than now.
            let begun_with = [None, Some(2)];
            for (delivers, replaces) in begun_with.into_iter().flat_map(|s| [(true, s), (false, s)]) {
                let replaces = replaces.map(|seed| Fingerprint::of(&key(seed)));
                let request = Request { replaces, delivers, ..ask(key_type) };
                let facts = facts(&identity, &keys, report.as_ref(), Seen::Nothing, standing);
                let Plan::Renew { change, offer, in_spite_of, .. } = plan(&facts, request) else {
                    continue;
                };
                let context = format!("{change:?} {says:?} {standing:?} {request:?}");
                assert!(delivers || offer == Slots::None, "{context}");
                assert_eq!(in_spite_of, None, "{context}");
                assert!(survives(report.as_ref().unwrap(), &keys, change), "{context}");
                acted += 1;
            }
        }
    }
    assert!(acted > 1000, "the search must reach plans that act: {acted}");
}

#[test]
fn a_device_that_is_disabled_or_not_connected_is_never_changed_unless_forced() {
    let (keys, identity, report) = (registry(), identity(), on_primary().report());
    for (is_enabled, is_connected) in [(false, false), (false, true), (true, false)] {
        for (report, key_type) in [None, Some(&report)].iter().flat_map(|r| KEY_TYPES.map(|k| (*r, k))) {
            for (delivers, is_forced) in [(false, false), (true, false), (false, true), (true, true)] {
                let facts = Facts {
                    is_enabled,
                    is_connected,
                    ..facts(&identity, &keys, report, Seen::Nothing, None)
                };
                let plan = plan(&facts, Request { delivers, is_forced, ..ask(key_type) });
                let Plan::Renew { offer, in_spite_of, .. } = plan else {
                    assert!(!is_forced, "{key_type:?}: {plan:?}");
                    continue;
                };
                assert!(is_forced && in_spite_of.is_some(), "{key_type:?}: {plan:?}");
                assert!(delivers || offer == Slots::None, "{key_type:?}: {plan:?}");
            }
        }
    }
}

#[test]
fn no_report_of_an_attackers_is_acted_on_and_no_key_is_sealed_to_him() {
    let mut says = Vec::new();
    for (primary, secondary) in
        [1, 2, 9].iter().flat_map(|p| [None, Some(1), Some(2), Some(9)].map(|s| (*p, s)))
    {
        for (active, seal) in
            KeySlot::ALL.iter().flat_map(|a| [None, Some(AGENT), Some(THIEF)].map(|s| (*a, s)))
        {
            for (sequence, reason) in [(4, None), (5, None), (5, Some(Reason::Duel)), (4, Some(Reason::Duel))]
            {
                let named = if active == KeySlot::Primary { Some(primary) } else { secondary };
                for proof in [None, named, Some(8)] {
                    let (active, primary, rotation) = (Some(active), Some(primary), None);
                    says.push(Says { active, primary, secondary, rotation, proof, seal, sequence, reason });
                }
            }
        }
    }
    let before = [Seen::Nothing, Seen::Unreadable, believed(AGENT, 5), believed(THIEF, 5)];
    let trusts = [(false, false), (true, false), (false, true)]
        .map(|(trusts_report, is_incident)| Trust { trusts_report, is_incident });
    let (keys, identity) = (registry(), identity());
    let mut acted = 0;
    for says in says {
        let report = says.report();
        let lives_on =
            says.active.and_then(|slot| if slot == KeySlot::Primary { says.primary } else { says.secondary });
        let is_proved = says.proof == lives_on && matches!(lives_on, Some(1 | 2));
        for (seen, trust) in before.iter().flat_map(|seen| trusts.map(|trust| (*seen, trust))) {
            for key_type in [KeyType::Primary, KeyType::Secondary] {
                let facts = facts(&identity, &keys, Some(&report), seen, None);
                let plan = plan(&facts, Request { trust, ..ask(key_type) });
                let Plan::Renew { change, form, remembers, .. } = plan else { continue };
                let context = format!("{says:?} {seen:?} {trust:?} {plan:?}");
                let (before_seal, before_sequence) = match seen {
                    Seen::Believed(before) => (Some(before.seal_to), before.sequence),
                    Seen::Nothing | Seen::Unreadable => (None, 0),
                };
                let reported = says.seal.map(public);
                assert!(is_proved, "not proved: {context}");
                assert!(says.reason.is_none() || trust.is_incident, "a duel: {context}");
                let is_newer = says.sequence >= before_sequence;
                assert!(is_newer || trust.trusts_report || trust.is_incident, "old: {context}");
                assert!(seen != Seen::Unreadable || trust.trusts_report, "unreadable: {context}");
                assert!(survives(&report, &keys, change), "{context}");
                let target =
                    if trust.trusts_report { reported.or(before_seal) } else { before_seal.or(reported) };
                assert_eq!(form, target.map(Form::Sealed), "sealed to another: {context}");
                let is_first_in_an_incident = trust.is_incident && before_seal.is_none();
                assert!(!is_first_in_an_incident, "the first one could be a thief's: {context}");
                let is_same = before_seal.is_none_or(|before| reported == Some(before));
                assert!(is_same || trust.trusts_report || trust.is_incident, "sealTo changed: {context}");
                let lowest =
                    if trust.trusts_report { says.sequence } else { says.sequence.max(before_sequence) };
                assert_eq!(remembers.map(|believed| believed.sequence), Some(lowest), "{context}");
                acted += 1;
            }
        }
    }
    assert!(acted > 300, "the search must reach plans that act: {acted}");
}

#[test]
fn a_slot_that_has_its_new_key_already_is_only_handed_over() {
    let begun = |seed| Request { replaces: Some(Fingerprint::of(&key(seed))), ..ask(KeyType::Secondary) };
    // The registry's secondary key is another one than when the renewal was begun.
    let deliver = renew(Change::Nothing, Slots::One(KeySlot::Secondary));
    assert_eq!(decide(Some(on_primary()), None, begun(9)), deliver);
    // It is the same: nothing has been made yet.
    let change = renew(Change::Regenerate(KeySlot::Secondary), Slots::One(KeySlot::Secondary));
    assert_eq!(decide(Some(on_primary()), None, begun(2)), change);
}

#[test]
fn a_device_that_lives_on_the_slots_new_key_is_settled_and_not_refused() {
    let begun = Request { replaces: Some(Fingerprint::of(&key(9))), ..ask(KeyType::Secondary) };
    let moved = Says { rotation: Some((7, Status::Committed)), ..on_secondary() };
    assert_eq!(decide(Some(moved), None, begun), settle(None));
    let standing = offer(7, false, true);
    assert_eq!(decide(Some(moved), standing, begun), settle(Some(7)));
    let unproved = Says { proof: None, ..moved };
    assert_eq!(decide(Some(unproved), None, begun), Plan::Refuse(Refusal::ProofMissing));
}

#[test]
fn a_finished_renewal_is_settled_only_where_it_did_what_is_asked_now() {
    let on = |slot: KeySlot| Says {
        rotation: Some((7, Status::Committed)),
        ..if slot == KeySlot::Primary { on_primary() } else { on_secondary() }
    };
    for (slot, key_type) in [(KeySlot::Primary, KeyType::Primary), (KeySlot::Secondary, KeyType::Secondary)] {
        let of_slot = offer(7, slot == KeySlot::Primary, slot == KeySlot::Secondary);
        let of_other = offer(7, slot == KeySlot::Secondary, slot == KeySlot::Primary);
        let in_use = Plan::Refuse(Refusal::SlotInUse { slot });
        assert_eq!(decide(Some(on(slot)), of_slot, ask(key_type)), settle(Some(7)));
        // The offer was for the other slot.
        assert_eq!(decide(Some(on(slot)), of_other, ask(key_type)), in_use);
        // Nothing is to be handed over now.
        let undelivered = Request { delivers: false, ..ask(key_type) };
        assert_eq!(decide(Some(on(slot)), of_slot, undelivered), in_use);
        // The device lives on the other slot all the same.
        let handed = renew_on(slot.other(), Change::Nothing, Slots::One(slot));
        assert_eq!(decide(Some(on(slot.other())), of_slot, ask(key_type)), handed);
    }
    let both = Plan::Refuse(Refusal::BothSlots);
    assert_eq!(decide(Some(on(KeySlot::Primary)), offer(7, true, true), ask(KeyType::Both)), both);
    let swap = renew_on(KeySlot::Secondary, Change::Swap, Slots::Both);
    assert_eq!(decide(Some(on(KeySlot::Secondary)), offer(7, false, true), ask(KeyType::Swap)), swap);
}

#[test]
fn a_slot_with_its_new_key_is_settled_only_when_the_device_lives_there_and_keys_are_delivered() {
    let begun = Request { replaces: Some(Fingerprint::of(&key(9))), ..ask(KeyType::Secondary) };
    let committed = Some((7, Status::Committed));
    let elsewhere = Says { rotation: committed, ..on_primary() };
    let handed = renew(Change::Nothing, Slots::One(KeySlot::Secondary));
    assert_eq!(decide(Some(elsewhere), None, begun), handed);
    let moved = Says { rotation: committed, ..on_secondary() };
    let undelivered = Request { delivers: false, ..begun };
    let in_use = Plan::Refuse(Refusal::SlotInUse { slot: KeySlot::Secondary });
    assert_eq!(decide(Some(moved), None, undelivered), in_use);
}

#[test]
fn where_no_agent_reports_that_is_said_before_that_the_device_is_not_connected() {
    let (keys, identity) = (registry(), identity());
    let facts = Facts { is_connected: false, ..facts(&identity, &keys, None, Seen::Nothing, None) };
    assert_eq!(plan(&facts, ask(KeyType::Secondary)), Plan::Refuse(Refusal::NoAgent));
}

#[test]
fn a_key_that_can_be_sealed_to_nobody_is_not_made() {
    let unknown = Plan::Refuse(Refusal::SealUnknown);
    let no_seal = Says { seal: None, ..on_primary() };
    assert_eq!(decide(Some(no_seal), None, ask(KeyType::Secondary)), unknown);
    let trust = Trust { trusts_report: false, is_incident: true };
    let incident = Request { trust, ..ask(KeyType::Secondary) };
    assert_eq!(decide(Some(on_primary()), None, incident), unknown);
    // Without delivery nothing is sealed.
    let undelivered = Request { delivers: false, ..ask(KeyType::Secondary) };
    let made = renew(Change::Regenerate(KeySlot::Secondary), Slots::None);
    assert_eq!(decide(Some(no_seal), None, undelivered), made);
}

#[test]
fn a_swap_that_stands_in_the_twin_is_not_made_again_and_equal_keys_are_not_taken_for_swapped() {
    let nothing = renew(Change::Nothing, Slots::Both);
    assert_eq!(decide(Some(on_primary()), offer(7, true, true), ask(KeyType::Swap)), nothing);
    let undelivered = Request { delivers: false, ..ask(KeyType::Swap) };
    let crossed =
        Says { active: Some(KeySlot::Secondary), primary: Some(2), secondary: Some(1), ..on_primary() };
    assert_eq!(decide(Some(crossed), None, undelivered), renew(Change::Swap, Slots::None));
    let (keys, identity) = (KeyPair { primary: key(1), secondary: key(1) }, identity());
    let report = Says { secondary: Some(1), ..on_primary() }.report();
    let facts = facts(&identity, &keys, Some(&report), Seen::Nothing, None);
    assert_eq!(plan(&facts, ask(KeyType::Swap)), renew(Change::Swap, Slots::Both));
}

#[test]
fn without_delivery_and_by_force_the_key_is_made_anew_and_not_handed_over() {
    let undelivered = |is_forced| Request { is_forced, delivers: false, ..ask(KeyType::Secondary) };
    let news = Says { secondary: Some(8), ..on_primary() };
    let made = renew(Change::Regenerate(KeySlot::Secondary), Slots::None);
    assert_eq!(decide(Some(news), None, undelivered(false)), made);
    // The slot in use, though the other one's key has not arrived.
    let forced = Request { is_forced: true, ..ask(KeyType::Primary) };
    let Plan::Renew { change, .. } = decide(Some(news), None, forced) else { panic!("it is forced") };
    assert_eq!(change, Change::Regenerate(KeySlot::Primary));
    // The key that the device says it lives on is gone, and nothing is to be delivered.
    let gone = Says { primary: Some(9), proof: Some(9), ..on_primary() };
    let forced = Request { is_forced: true, delivers: false, ..ask(KeyType::Primary) };
    let Plan::Renew { change, .. } = decide(Some(gone), None, forced) else { panic!("it is forced") };
    assert_eq!(change, Change::Regenerate(KeySlot::Primary));
}

#[test]
fn an_offer_is_authenticated_with_the_key_that_the_device_lives_on() {
    let vouching = |says, request| match decide(Some(says), None, request) {
        Plan::Renew { vouching, .. } => vouching,
        Plan::Refuse(_) | Plan::Settle { .. } => panic!("it is renewed"),
    };
    assert_eq!(vouching(on_primary(), ask(KeyType::Swap)), KeySlot::Primary);
    assert_eq!(vouching(on_secondary(), ask(KeyType::Swap)), KeySlot::Secondary);
}

#[test]
fn the_first_slot_in_turn_is_the_one_that_the_device_does_not_need() {
    let (keys, identity) = (registry(), identity());
    let first = |says: Says| {
        let report = says.report();
        idle_slot(&facts(&identity, &keys, Some(&report), Seen::Nothing, None), Trust::default())
    };
    assert_eq!(first(on_primary()), KeySlot::Secondary);
    assert_eq!(first(on_secondary()), KeySlot::Primary);
    // Its way back is the secondary key.
    assert_eq!(first(Says { primary: Some(9), proof: Some(9), ..on_primary() }), KeySlot::Primary);
    assert_eq!(first(Says { proof: None, ..on_secondary() }), KeySlot::Secondary);
}

#[test]
fn in_an_incident_a_key_of_before_is_renewed_though_a_thief_proves_that_the_device_lacks_it() {
    let says = Says { secondary: Some(8), ..on_primary() };
    let trust = Trust { trusts_report: false, is_incident: true };
    let request = Request { trust, ..ask(KeyType::Secondary) };
    let plan = |standing| match decide_after(believed(AGENT, 1), Some(says), standing, request) {
        Plan::Renew { change, .. } => change,
        Plan::Refuse(_) | Plan::Settle { .. } => panic!("it is renewed"),
    };
    assert_eq!(plan(None), Change::Regenerate(KeySlot::Secondary));
    // What an operator has offered already is not made once more: the device may just be moving to it.
    assert_eq!(plan(offer(7, false, true)), Change::Nothing);
}
