//! What counts as a device's answer, and what does not.

use twinkey_contract::KeySlot;
use twinkey_contract::report::{Report, Status};

use super::plan::Slots;
use super::plan_tests::{AGENT, Says, THIEF, identity, on_primary, on_secondary, public, registry, rotation};
use super::proof::{Expected, Judgement, judge};

/// Judges for offer 7 of the secondary key, sealed to the agent, unless `change` says otherwise.
fn judged(says: Says, change: impl FnOnce(&mut Expected<'_>)) -> Judgement {
    judged_report(&says.report(), change)
}

fn judged_report(report: &Report, change: impl FnOnce(&mut Expected<'_>)) -> Judgement {
    let (keys, identity) = (registry(), identity());
    let mut expected = Expected {
        identity: &identity,
        keys: &keys,
        slots: Slots::One(KeySlot::Secondary),
        active: Some(KeySlot::Secondary),
        seal_to: Some(public(AGENT)),
        is_incident: false,
    };
    change(&mut expected);
    judge(report, rotation(7), &expected)
}

fn moved() -> Says {
    Says { rotation: Some((7, Status::Committed)), sequence: 3, ..on_secondary() }
}

fn is_pending(judgement: &Judgement) -> bool {
    matches!(judgement, Judgement::Pending(_))
}

#[test]
fn a_device_that_proves_to_live_on_the_offered_key_has_moved() {
    let judgement = judged(moved(), |_| {});
    let Judgement::Proved { active, sequence } = judgement else { panic!("{judgement:?}") };
    assert_eq!((active, sequence), (KeySlot::Secondary, 3));
}

#[test]
fn what_is_said_of_another_offer_is_no_answer() {
    for status in [Status::Committed, Status::Rejected, Status::Invalid] {
        let judgement = judged(Says { rotation: Some((6, status)), ..moved() }, |_| {});
        assert!(is_pending(&judgement), "{judgement:?}");
    }
    assert!(is_pending(&judged(Says { rotation: None, ..moved() }, |_| {})));
}

#[test]
fn without_a_proof_by_the_key_in_use_nothing_is_an_answer() {
    for status in [Status::Committed, Status::Rejected, Status::Invalid] {
        for proof in [None, Some(1), Some(9)] {
            let judgement = judged(Says { rotation: Some((7, status)), proof, ..moved() }, |_| {});
            assert!(is_pending(&judgement), "{status:?} {proof:?}: {judgement:?}");
        }
        let altered = Report { sequence: 9, ..Says { rotation: Some((7, status)), ..moved() }.report() };
        assert!(is_pending(&judged_report(&altered, |_| {})));
    }
}

#[test]
fn a_rejection_counts_with_a_proof_by_any_key_of_the_registry() {
    for says in [on_primary(), on_secondary()] {
        for status in [Status::Rejected, Status::Invalid] {
            let judgement = judged(Says { rotation: Some((7, status)), ..says }, |_| {});
            let Judgement::Rejected { status: said, .. } = judgement else { panic!("{judgement:?}") };
            assert_eq!(said, status);
        }
    }
}

#[test]
fn a_device_that_is_still_at_it_has_not_answered() {
    for status in [Status::Idle, Status::Trying, Status::Waiting] {
        assert!(is_pending(&judged(Says { rotation: Some((7, status)), ..moved() }, |_| {})), "{status:?}");
    }
}

#[test]
fn a_report_that_names_another_public_key_proves_nothing_about_a_sealed_offer() {
    for seal in [None, Some(THIEF)] {
        let judgement = judged(Says { seal, ..moved() }, |_| {});
        assert!(is_pending(&judgement), "{seal:?}: {judgement:?}");
        let plain = judged(Says { seal, ..moved() }, |expected| expected.seal_to = None);
        assert!(matches!(plain, Judgement::Proved { .. }), "{plain:?}");
    }
}

#[test]
fn a_device_that_lives_on_another_slot_than_the_offered_one_has_not_moved() {
    let stayed = Says { rotation: Some((7, Status::Committed)), ..on_primary() };
    assert!(is_pending(&judged(stayed, |_| {})));
    let either = judged(stayed, |expected| expected.active = None);
    assert!(matches!(either, Judgement::Proved { active: KeySlot::Primary, .. }), "{either:?}");
}

#[test]
fn a_device_that_does_not_hold_all_offered_keys_has_not_moved() {
    let without_primary = Says { primary: Some(9), ..moved() };
    let both = judged(without_primary, |expected| expected.slots = Slots::Both);
    assert!(is_pending(&both), "{both:?}");
    let other_slot = judged(without_primary, |expected| expected.slots = Slots::One(KeySlot::Primary));
    assert!(is_pending(&other_slot), "{other_slot:?}");
    assert!(matches!(judged(without_primary, |_| {}), Judgement::Proved { .. }));
    assert!(matches!(judged(without_primary, |e| e.slots = Slots::None), Judgement::Proved { .. }));
}

#[test]
fn the_agents_label_has_to_be_the_registrys_slot() {
    // It lives on the registry's secondary key, which it files under primary.
    let mislabelled =
        Says { active: Some(KeySlot::Primary), primary: Some(2), secondary: Some(2), ..moved() };
    assert!(is_pending(&judged(mislabelled, |expected| expected.active = None)));
}
