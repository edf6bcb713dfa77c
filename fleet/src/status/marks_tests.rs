#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use serde_json::{Value, json};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::report::SlotReport;
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::tags::Believed;
use twinkey_contract::{Fingerprint, Identity, RotationId};
use twinkey_sas::Key;

use super::*;
use crate::status::observed::StandingOffer;

const NOW: u64 = 1_795_000_000;
const DAY: u64 = 86_400;

fn key(byte: u8) -> Key {
    Key::from_bytes(&[byte; 32]).unwrap()
}

fn identity() -> Identity {
    Identity::new("pump-7", None).unwrap()
}

fn rotation(at_secs: u64) -> RotationId {
    RotationId::generate(at_secs * 1000).unwrap()
}

/// What an agent reports that has taken key 1 into use yesterday, and holds key 2 beside it.
fn healthy() -> Report {
    let rotation = rotation(NOW - DAY);
    let slot = |byte, proven_at| Some(SlotReport { fingerprint: Fingerprint::of(&key(byte)), proven_at });
    let report = Report {
        contract: 1,
        agent: "0.1.0".to_owned(),
        seal_to: Some(SealingPublicKey([1; 32])),
        sequence: 7,
        active: Some(KeySlot::Primary),
        rotation: Some(rotation),
        status: Status::Committed,
        reason: None,
        clock_offset_secs: None,
        behind: None,
        primary: slot(1, Some(NOW - DAY)),
        secondary: slot(2, None),
        proof: None,
    };
    proved(report)
}

/// With the proof of an agent that holds key 1.
fn proved(mut report: Report) -> Report {
    report.prove(&key(1), &identity());
    report
}

fn twin(reported: &Value, desired: &Value) -> Observed {
    Observed::of_row(
        json!({"deviceId": "pump-7", "etag": "e", "status": "enabled", "connectionState": "Connected",
        "lastActivityTime": "2026-11-18T09:00:00.1234567Z", "authenticationType": "sas",
        "properties": {"desired": desired, "reported": reported}}),
    )
    .unwrap()
}

/// What an honest agent reports, with its proof.
fn observed(report: &Report, desired: &Value) -> Observed {
    observed_as_written(&proved(report.clone()), desired)
}

/// What anybody reports.
fn observed_as_written(report: &Report, desired: &Value) -> Observed {
    let mut observed = twin(&report.to_patch(), desired);
    observed.registry = Registry::Keys(KeyPair { primary: key(1), secondary: key(2) });
    observed
}

fn marks_of(report: &Report) -> Vec<Mark> {
    marks(&observed(report, &json!({})), None, NOW)
}

fn sealed_offer(at_secs: u64) -> Value {
    let secondary = Some(OfferedKey::Sealed(vec![7; 80]));
    Offer { rotation: rotation(at_secs), primary: None, secondary, auth: None }.to_patch()
}

#[test]
fn a_healthy_device_and_one_without_an_agent_have_no_mark() {
    assert_eq!(marks_of(&healthy()), []);
    assert_eq!(marks(&twin(&json!({}), &json!({})), None, NOW), []);
}

#[test]
fn without_the_registry_nothing_is_said_about_keys() {
    let mut stranger = observed(&healthy(), &json!({}));
    stranger.registry = Registry::Keys(KeyPair { primary: key(8), secondary: key(9) });
    assert_eq!(marks(&stranger, None, NOW), [Mark::KeyUnknown, Mark::SlotMismatch]);
    for registry in [Registry::NotRead, Registry::NoKeys] {
        stranger.registry = registry;
        assert_eq!(marks(&stranger, None, NOW), []);
    }
}

#[test]
fn a_slot_that_differs_is_a_mismatch_unless_it_is_just_being_renewed() {
    let with_offer = |desired: &Value| {
        let mut observed = observed(&healthy(), desired);
        observed.registry = Registry::Keys(KeyPair { primary: key(1), secondary: key(3) });
        marks(&observed, None, NOW)
    };
    assert_eq!(with_offer(&json!({})), [Mark::SlotMismatch]);
    assert_eq!(with_offer(&sealed_offer(NOW - 60)), []);
    assert_eq!(with_offer(&sealed_offer(NOW - 2 * DAY)), [Mark::SlotMismatch, Mark::OfferOld]);
    let one_key = Report { secondary: None, ..healthy() };
    assert_eq!(marks_of(&one_key), [], "a slot of which the agent holds nothing says nothing");
}

#[test]
fn swapped_keys_are_a_mismatch_and_not_an_unknown_key() {
    let mut swapped = observed(&healthy(), &json!({}));
    swapped.registry = Registry::Keys(KeyPair { primary: key(2), secondary: key(1) });
    assert_eq!(marks(&swapped, None, NOW), [Mark::SlotMismatch]);
}

#[test]
fn a_proof_must_be_there_and_be_made_with_the_key_in_use_over_this_report_of_this_device() {
    let marks_of = |report: &Report| marks(&observed_as_written(report, &json!({})), None, NOW);
    assert_eq!(marks_of(&healthy()), []);
    assert_eq!(marks_of(&Report { proof: None, ..healthy() }), [Mark::ProofMissing]);
    let mut by_another_key = healthy();
    by_another_key.prove(&key(2), &identity());
    let mut of_another_device = healthy();
    of_another_device.prove(&key(1), &Identity::new("pump-8", None).unwrap());
    for bad in [
        by_another_key,
        of_another_device,
        Report { rotation: None, ..healthy() },
        Report { sequence: 8, ..healthy() },
        Report { seal_to: None, ..healthy() },
    ] {
        assert_eq!(marks_of(&bad), [Mark::ProofFails], "{bad:?}");
    }
    let idle = Report { status: Status::Idle, rotation: None, proof: None, active: None, ..healthy() };
    assert_eq!(marks_of(&idle), [], "nothing is claimed yet");
}

#[test]
fn a_report_that_differs_from_what_was_believed_is_marked() {
    let after = |seen: Seen| {
        let mut observed = observed(&healthy(), &json!({}));
        observed.seen = seen;
        marks(&observed, None, NOW)
    };
    let believed =
        |seal, sequence| Seen::Believed(Believed { seal_to: SealingPublicKey([seal; 32]), sequence });
    assert_eq!(after(believed(1, 7)), []);
    assert_eq!(after(believed(1, 8)), [Mark::ReportOld]);
    assert_eq!(after(believed(2, 7)), [Mark::SealChanged]);
    assert_eq!(after(Seen::Unreadable), [Mark::SealChanged]);
}

#[test]
fn what_the_agent_says_of_itself_is_marked() {
    let reason = |reason| marks_of(&Report { reason: Some(reason), ..healthy() });
    assert_eq!(reason(Reason::Duel), [Mark::Duel]);
    assert_eq!(reason(Reason::Restored), [Mark::Restored]);
    assert_eq!(reason(Reason::Storage), [Mark::Storage]);
    assert_eq!(reason(Reason::Clock), [Mark::Clock]);
    assert_eq!(reason(Reason::Network), []);
    assert_eq!(reason(Reason::Unauthenticated), [Mark::OfferUnauthenticated]);
    assert_eq!(reason(Reason::TooManyOffers), [Mark::TooManyOffers]);
    assert_eq!(marks_of(&Report { behind: Some(9), ..healthy() }), [Mark::Restored]);
    assert_eq!(marks_of(&Report { clock_offset_secs: Some(-900), ..healthy() }), [Mark::Clock]);
    let unread = Report { status: Status::Invalid, reason: Some(Reason::TwinTooLarge), ..healthy() };
    assert_eq!(marks_of(&unread), [Mark::TwinTooLarge], "no rotation can be judged");
    for status in [Status::Rejected, Status::Invalid] {
        let reason = Some(Reason::Refused);
        assert_eq!(marks_of(&Report { status, reason, ..healthy() }), [Mark::RotationFailed]);
    }
}

#[test]
fn a_sequence_that_goes_back_or_forks_is_seen_by_comparison_only() {
    let before = EarlierIdentity::seen(&healthy());
    let since = |report: &Report| marks(&observed(report, &json!({})), Some(&before), NOW);
    assert_eq!(since(&healthy()), []);
    assert_eq!(since(&Report { sequence: 6, ..healthy() }), [Mark::SequenceBack]);
    let secondary = Some(SlotReport { fingerprint: Fingerprint::of(&key(3)), proven_at: None });
    let fork = Report { secondary, ..healthy() };
    assert_eq!(since(&fork), [Mark::SequenceFork, Mark::SlotMismatch]);
    assert_eq!(
        since(&Report { sequence: 8, ..fork }),
        [Mark::SlotMismatch],
        "another ring, another sequence"
    );
    let nothing = EarlierIdentity::default();
    assert_eq!(marks(&observed(&healthy(), &json!({})), Some(&nothing), NOW), []);
}

#[test]
fn offers_are_marked_when_they_are_old_plain_or_no_offers() {
    let with = |desired: &Value| marks(&observed(&healthy(), desired), None, NOW);
    assert_eq!(with(&sealed_offer(NOW - DAY)), []);
    assert_eq!(with(&sealed_offer(NOW - DAY - 1)), [Mark::OfferOld]);
    let plain = Offer {
        rotation: rotation(NOW),
        primary: None,
        secondary: Some(OfferedKey::Plain(key(5))),
        auth: None,
    };
    assert_eq!(with(&plain.to_patch()), [Mark::OfferPlain]);
    assert_eq!(with(&json!({"keyRenewal": "renew"})), [Mark::OfferUnreadable]);
    let without_name = json!({"keyRenewal": {"secondary": {"key": "short"}},
        "$metadata": {"keyRenewal": {"$lastUpdated": "2026-11-01T00:00:00.5Z"}}});
    assert_eq!(with(&without_name), [Mark::OfferPlain, Mark::OfferUnreadable, Mark::OfferOld]);
    assert_eq!(with(&json!({"keyRenewal": null})), []);
}

#[test]
fn the_age_of_an_offer_is_in_its_name_or_in_the_hubs_metadata() {
    let made_at = |desired: Value| -> Option<StandingOffer> { twin(&json!({}), &desired).offer };
    assert_eq!(made_at(sealed_offer(NOW - 7)).unwrap().made_at, Some(NOW - 7));
    let mut unnamed = sealed_offer(NOW);
    unnamed["keyRenewal"]["rotation"] = json!("7c9e6679-7425-40de-944b-e07fc1f90ae7");
    assert_eq!(made_at(unnamed.clone()).unwrap().made_at, None);
    unnamed["$metadata"] = json!({"keyRenewal": {"$lastUpdated": "2026-11-18T00:00:00.5Z"}});
    let written = made_at(unnamed.clone()).unwrap().made_at;
    assert!(written.is_some());
    // Version 1 of long ago, and a clock far ahead.
    for name in ["00000000-0000-1000-8000-000000000000", &rotation(NOW + 400 * DAY).to_string()] {
        unnamed["keyRenewal"]["rotation"] = json!(name);
        assert_eq!(made_at(unnamed.clone()).unwrap().made_at, written, "{name}");
    }
}

#[test]
fn whatever_a_device_or_an_operator_writes_is_read_or_passed_over() {
    let good = json!({"deviceId": "pump-7", "etag": "e", "status": "enabled", "connectionState": "Connected",
        "lastActivityTime": "2026-11-18T09:00:00Z", "authenticationType": "sas", "tags": {},
        "properties": {"desired": sealed_offer(NOW), "reported": healthy().to_patch()}});
    let places = [
        "",
        "/deviceId",
        "/moduleId",
        "/etag",
        "/status",
        "/connectionState",
        "/lastActivityTime",
        "/authenticationType",
        "/tags",
        "/properties",
        "/properties/desired",
        "/properties/reported",
        "/properties/desired/keyRenewal",
        "/properties/desired/keyRenewal/rotation",
        "/properties/desired/keyRenewal/secondary",
        "/properties/desired/keyRenewal/secondary/sealed",
        "/properties/reported/keyRenewal",
        "/properties/reported/keyRenewal/contract",
        "/properties/reported/keyRenewal/sequence",
        "/properties/reported/keyRenewal/active",
        "/properties/reported/keyRenewal/primary",
        "/properties/reported/keyRenewal/primary/provenAt",
        "/properties/reported/keyRenewal/proof",
    ];
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("\u{1b}[2J\u{202e}"),
        json!("9999-12-31T23:59:59Z"),
        json!("0001-01-01T00:00:00Z"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"key": "x"}),
    ];
    for place in places {
        for value in &values {
            let mut row = good.clone();
            if let Some(found) = row.pointer_mut(place) {
                *found = value.clone();
            }
            if let Some(mut observed) = Observed::of_row(row) {
                observed.registry = Registry::Keys(KeyPair { primary: key(1), secondary: key(2) });
                marks(&observed, Some(&EarlierIdentity::seen(&healthy())), NOW);
                let _ = (observed.offer_age(NOW), observed.contact_age(NOW), observed.active_key_age(NOW));
            }
        }
    }
}

#[test]
fn other_contracts_and_other_programs_are_told_apart() {
    let section = |section: Value| marks(&twin(&json!({"keyRenewal": section}), &json!({})), None, NOW);
    assert_eq!(section(json!({"contract": 2, "agent": "1.0"})), [Mark::ContractUnknown]);
    for odd in [json!("hello"), json!({"contract": "1"}), json!({"contract": 1, "sequence": -1}), json!([])] {
        assert_eq!(section(odd.clone()), [Mark::ReportUnreadable], "{odd}");
    }
}

#[test]
fn lagging_ends_with_the_commit_of_the_offered_rotation() {
    let offer = sealed_offer(NOW - 60);
    let offered: RotationId = offer["keyRenewal"]["rotation"].as_str().unwrap().parse().unwrap();
    let lags = |report: &Report| observed(report, &offer).is_lagging();
    assert!(lags(&healthy()), "another rotation was committed");
    assert!(lags(&Report { rotation: Some(offered), status: Status::Trying, ..healthy() }));
    assert!(!lags(&Report { rotation: Some(offered), ..healthy() }));
    assert!(twin(&json!({}), &offer).is_lagging(), "nobody takes it");
    assert!(!observed(&healthy(), &json!({})).is_lagging());
}

#[test]
fn ages_on_a_clock_from_the_future_are_unknown() {
    let at = |proven_at| {
        let mut report = healthy();
        report.primary.as_mut().unwrap().proven_at = Some(proven_at);
        observed(&report, &json!({})).active_key_age(NOW)
    };
    assert_eq!((at(NOW - 5), at(NOW + 200), at(NOW + 301)), (Some(5), Some(0), None));
}

#[test]
fn every_mark_has_a_code_that_json_uses_too_and_a_place_in_the_document() {
    let document = include_str!("../../../docs/fleet-status.md");
    for mark in Mark::ALL {
        assert_eq!(serde_json::to_value(mark).unwrap(), mark.code());
        assert!(document.contains(&format!("| `{}` |", mark.code())), "{} is not explained", mark.code());
    }
    let mut sorted = Mark::ALL.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, Mark::ALL);
}
