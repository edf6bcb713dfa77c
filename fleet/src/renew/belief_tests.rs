//! What is believed, and to which public key keys are sealed: one test for each rule.

use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::tags::{Believed, Seen};

use super::belief::{Trust, believe, is_committed, seal_target, to_remember};
use super::plan_tests::{
    AGENT, Says, THIEF, believed, identity, on_primary, on_secondary, public, registry, rotation,
};
use super::refusal::Refusal;

const NO_TRUST: Trust = Trust { trusts_report: false, is_incident: false };
const BY_NAME: Trust = Trust { trusts_report: true, is_incident: false };
const INCIDENT: Trust = Trust { trusts_report: false, is_incident: true };

fn judged(report: &Report, seen: Seen, trust: Trust) -> Result<KeySlot, Refusal> {
    believe(Some(report), &registry(), &identity(), seen, trust).map(|believed| believed.lives_in())
}

/// The slot that is believed, or why none is.
fn of(says: Says, seen: Seen, trust: Trust) -> Result<KeySlot, Refusal> {
    judged(&says.report(), seen, trust)
}

/// To which key keys are sealed, if the report is believed.
fn seal(says: Option<Says>, seen: Seen, trust: Trust) -> Option<u8> {
    let report = says.map(Says::report);
    let believed = believe(report.as_ref(), &registry(), &identity(), seen, trust).ok();
    believed.and_then(|believed| seal_target(believed, seen, trust)).map(|public_key| public_key.0[0])
}

#[test]
fn a_proof_by_the_registrys_key_over_this_report_is_believed_and_no_other() {
    assert_eq!(of(on_primary(), Seen::Nothing, NO_TRUST), Ok(KeySlot::Primary));
    assert_eq!(of(on_secondary(), Seen::Nothing, NO_TRUST), Ok(KeySlot::Secondary));
    let other_key = Says { proof: Some(2), ..on_primary() };
    let none = Says { proof: None, ..on_primary() };
    let altered = Report { sequence: 9, ..on_primary().report() };
    for trust in [NO_TRUST, BY_NAME, INCIDENT] {
        assert_eq!(of(other_key, Seen::Nothing, trust), Err(Refusal::ProofFails));
        assert_eq!(of(none, Seen::Nothing, trust), Err(Refusal::ProofMissing));
        assert_eq!(judged(&altered, Seen::Nothing, trust), Err(Refusal::ProofFails));
    }
}

#[test]
fn a_changed_public_key_is_refused_unless_trusted_by_name_in_an_incident_too() {
    for seal in [None, Some(THIEF)] {
        let says = Says { seal, ..on_primary() };
        assert_eq!(of(says, believed(AGENT, 1), NO_TRUST), Err(Refusal::SealChanged));
        assert_eq!(of(says, believed(AGENT, 1), BY_NAME), Ok(KeySlot::Primary));
        assert_eq!(of(says, believed(AGENT, 1), INCIDENT), Err(Refusal::SealChanged));
    }
}

#[test]
fn a_lower_sequence_is_refused_unless_trusted_by_name_in_an_incident_too() {
    let says = |sequence| Says { sequence, ..on_primary() };
    assert_eq!(of(says(4), believed(AGENT, 5), NO_TRUST), Err(Refusal::ReportOld));
    assert_eq!(of(says(5), believed(AGENT, 5), NO_TRUST), Ok(KeySlot::Primary));
    assert_eq!(of(says(6), believed(AGENT, 5), NO_TRUST), Ok(KeySlot::Primary));
    assert_eq!(of(says(4), believed(AGENT, 5), BY_NAME), Ok(KeySlot::Primary));
    assert_eq!(of(says(4), believed(AGENT, 5), INCIDENT), Err(Refusal::ReportOld));
    let both = Trust { trusts_report: true, is_incident: true };
    assert_eq!(of(says(4), believed(AGENT, 5), both), Ok(KeySlot::Primary));
    let thief = Says { seal: Some(THIEF), ..says(6) };
    assert_eq!(of(thief, believed(AGENT, 5), both), Err(Refusal::SealChanged));
}

#[test]
fn tags_that_can_not_be_read_are_not_taken_for_none() {
    assert_eq!(of(on_primary(), Seen::Unreadable, NO_TRUST), Err(Refusal::SealChanged));
    assert_eq!(of(on_primary(), Seen::Unreadable, INCIDENT), Err(Refusal::SealChanged));
    assert_eq!(of(on_primary(), Seen::Unreadable, BY_NAME), Ok(KeySlot::Primary));
}

#[test]
fn a_duel_is_refused_but_in_an_incident() {
    let says = Says { reason: Some(Reason::Duel), ..on_primary() };
    for trust in [NO_TRUST, BY_NAME] {
        assert_eq!(of(says, believed(AGENT, 1), trust), Err(Refusal::Duel));
    }
    assert_eq!(of(says, believed(AGENT, 1), INCIDENT), Ok(KeySlot::Primary));
}

#[test]
fn a_rotation_is_committed_by_status_number_proof_and_slot_together() {
    let moved = Says { rotation: Some((7, Status::Committed)), ..on_secondary() };
    let is = |says: Says| is_committed(&says.report(), rotation(7), &registry(), &identity());
    assert!(is(moved));
    for status in [Status::Idle, Status::Trying, Status::Rejected, Status::Invalid, Status::Waiting] {
        assert!(!is(Says { rotation: Some((7, status)), ..moved }), "{status:?}");
    }
    assert!(!is(Says { rotation: Some((6, Status::Committed)), ..moved }));
    assert!(!is(Says { rotation: None, ..moved }));
    for proof in [None, Some(1)] {
        assert!(!is(Says { proof, ..moved }), "{proof:?}");
    }
    // The agent files the registry's secondary key under primary.
    assert!(!is(Says { active: Some(KeySlot::Primary), primary: Some(2), secondary: None, ..moved }));
}

#[test]
fn a_device_whose_key_in_use_the_registry_lacks_is_named_with_its_way_back() {
    let found = |says: Says| of(says, Seen::Nothing, NO_TRUST);
    let back = |slot| Err(Refusal::LastKey { slot });
    assert_eq!(found(Says { primary: Some(9), ..on_primary() }), back(KeySlot::Secondary));
    // The spare key counts wherever the registry has it.
    assert_eq!(found(Says { primary: Some(9), secondary: Some(1), ..on_primary() }), back(KeySlot::Primary));
    let unknown = Says { primary: Some(9), secondary: Some(8), ..on_primary() };
    assert_eq!(found(unknown), Err(Refusal::KeyUnknown));
    assert_eq!(found(Says { primary: None, ..on_primary() }), Err(Refusal::ActiveUnknown));
    assert_eq!(found(Says { active: None, ..on_primary() }), Err(Refusal::ActiveUnknown));
}

#[test]
fn keys_are_sealed_to_the_public_key_that_report_and_tags_name() {
    let thief = Says { seal: Some(THIEF), ..on_primary() };
    assert_eq!(seal(Some(on_primary()), believed(AGENT, 1), NO_TRUST), Some(AGENT));
    assert_eq!(seal(Some(on_primary()), believed(AGENT, 1), INCIDENT), Some(AGENT));
    for trust in [NO_TRUST, INCIDENT] {
        assert_eq!(seal(Some(thief), believed(AGENT, 1), trust), None);
        assert_eq!(seal(Some(on_primary()), believed(THIEF, 1), trust), None, "tags that somebody wrote");
    }
    assert_eq!(seal(None, believed(AGENT, 1), NO_TRUST), None);
    // A person says that this is the agent's new one.
    assert_eq!(seal(Some(thief), believed(AGENT, 1), BY_NAME), Some(THIEF));
}

#[test]
fn where_none_was_believed_the_reported_one_counts_but_not_in_an_incident() {
    assert_eq!(seal(Some(on_primary()), Seen::Nothing, NO_TRUST), Some(AGENT));
    assert_eq!(seal(Some(on_primary()), Seen::Nothing, INCIDENT), None);
    assert_eq!(seal(None, Seen::Nothing, NO_TRUST), None);
    assert_eq!(seal(Some(on_primary()), Seen::Unreadable, BY_NAME), Some(AGENT));
    // Believed by what the tags said a moment ago; now they can't be read.
    let report = on_primary().report();
    let before = believe(Some(&report), &registry(), &identity(), Seen::Nothing, NO_TRUST).unwrap();
    for trust in [NO_TRUST, INCIDENT] {
        assert_eq!(seal_target(before, Seen::Unreadable, trust), None);
    }
}

#[test]
fn the_remembered_sequence_runs_back_only_by_a_persons_word() {
    let remembered = |trust, seen| {
        let report = Says { sequence: 4, ..on_primary() }.report();
        let believed = believe(Some(&report), &registry(), &identity(), seen, trust).unwrap();
        to_remember(believed, seen, trust)
    };
    let expected = |sequence| Some(Believed { seal_to: public(AGENT), sequence });
    assert_eq!(remembered(NO_TRUST, believed(AGENT, 3)), expected(4));
    assert_eq!(remembered(NO_TRUST, Seen::Nothing), expected(4));
    assert_eq!(remembered(INCIDENT, believed(AGENT, 3)), expected(4));
    assert_eq!(remembered(BY_NAME, believed(AGENT, 9)), expected(4));
}
