//! `docs/twin-contract.md` is true: its JSON is read, its sealed key opened, its proof verified, its words are ours.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use twinkey_contract::{
    CONTRACT_VERSION, Fingerprint, Identity, KeySlot,
    offer::{Offer, OfferedKey},
    report::{AGENT_LEN_MAX, Nonce, Reason, Report, SEQUENCE_MAX, Status},
    sealing::{Binding, SEALED_LEN_MAX, SEALED_LEN_MIN, SealingKey},
    twin::{SECTION_LEN_MAX, TWIN_LEN_MAX},
};
use twinkey_sas::Key;

const PAGE: &str = include_str!("../../docs/twin-contract.md");

/// The fenced block of this name.
fn block(name: &str) -> Value {
    let (_, rest) = PAGE.split_once(&format!("```json {name}\n")).unwrap();
    serde_json::from_str(rest.split_once("```").unwrap().0).unwrap()
}

fn offer(name: &str) -> Offer {
    Offer::read_desired(&block(name)).unwrap().unwrap()
}

fn text(example: &Value, field: &str) -> String {
    example[field].as_str().unwrap().to_owned()
}

fn key(example: &Value, field: &str) -> Key {
    Key::from_base64(&text(example, field)).unwrap()
}

/// The words in backquotes in the column of each row of the table under a heading.
fn column(heading: &str, column: usize) -> BTreeSet<String> {
    let (_, section) = PAGE.split_once(&format!("\n### {heading}\n")).unwrap();
    let rows = section
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with("| `"));
    rows.skip(1)
        .filter_map(|row| row.split('|').nth(column))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(String::from)
        .collect()
}

fn words<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
    words.into_iter().map(String::from).collect()
}

#[test]
fn every_json_block_is_one_that_is_tested() {
    let names: Vec<&str> =
        PAGE.lines().filter_map(|line| line.strip_prefix("```json")).map(str::trim).collect();
    let tested = [
        "offer-sealed",
        "offer-plain",
        "offer-both",
        "erase",
        "invalid-offers",
        "sealing-example",
        "report",
        "fresh",
    ];
    assert_eq!(names, tested);
}

#[test]
fn sealed_example_opens_with_the_documented_key() {
    let example = block("sealing-example");
    let private = STANDARD.decode(text(&example, "privateKey")).unwrap();
    let private = SealingKey::from_bytes(private.as_slice().try_into().unwrap()).unwrap();
    assert_eq!(private.public().to_string(), text(&example, "sealTo"));

    let offer = offer("offer-sealed");
    let identity: Identity = "pump-7".parse().unwrap();
    let binding = Binding { identity: &identity, slot: KeySlot::Secondary, rotation: offer.rotation };
    let info =
        format!("twinkey/seal/v1\n{}\nkeyRenewal\n{}\n{}", binding.identity, binding.slot, binding.rotation);
    assert_eq!(info, text(&example, "info"));
    let Some(OfferedKey::Sealed(sealed)) = &offer.secondary else { panic!("{offer:?}") };
    assert_eq!(private.unseal(&binding, sealed), Ok(key(&example, "key")));
    assert_eq!(offer.to_patch(), block("offer-sealed"));
}

#[test]
fn offers_with_an_authentication_fit_the_documented_key_and_no_other() {
    let identity: Identity = "pump-7".parse().unwrap();
    let Some(OfferedKey::Plain(old)) = offer("offer-both").secondary else { panic!() };
    for name in ["offer-sealed", "offer-both"] {
        let offer = offer(name);
        assert!(offer.is_authentic(&old, &identity), "{name}");
        assert!(!offer.is_authentic(&key(&block("sealing-example"), "key"), &identity), "{name}");
        assert!(!offer.is_authentic(&old, &"pump-8".parse().unwrap()), "{name}");
    }
    assert_eq!(offer("offer-plain").auth, None);
}

#[test]
fn plain_offers_are_read() {
    let expected = Some(OfferedKey::Plain(key(&block("sealing-example"), "key")));
    let plain = offer("offer-plain");
    assert_eq!((&plain.primary, &plain.secondary), (&None, &expected));
    let both = offer("offer-both");
    assert_eq!(both.primary, expected);
    assert_eq!(both.to_patch(), block("offer-both"));
    assert_eq!(Offer::erase_patch(), block("erase"));
}

#[test]
fn invalid_offers_have_the_documented_reason_and_rotation() {
    let cases = block("invalid-offers");
    assert!(cases.as_array().unwrap().len() > 10);
    for case in cases.as_array().unwrap() {
        let error = Offer::read_desired(case).unwrap_err();
        assert_eq!(json!(error.code()), case["reason"], "{case}");
        assert_eq!(json!(error.rotation), case["rotation"], "{case}");
    }
}

#[test]
fn report_example_is_ours_and_its_proof_verifies() {
    let report = Report::read(&block("report")).unwrap().unwrap();
    assert_eq!(report.to_patch(), block("report"));
    assert_eq!(report.contract, CONTRACT_VERSION);
    assert_eq!(report.seal_to.unwrap().to_string(), text(&block("sealing-example"), "sealTo"));

    let new = key(&block("sealing-example"), "key");
    let Some(OfferedKey::Plain(old)) = offer("offer-both").secondary else { panic!() };
    assert_eq!(report.primary.as_ref().unwrap().fingerprint, Fingerprint::of(&old));
    assert_eq!(report.secondary.as_ref().unwrap().fingerprint, Fingerprint::of(&new));
    let identity = "pump-7".parse().unwrap();
    assert!(report.verify(&new, &identity).is_ok() && report.verify(&old, &identity).is_err());

    let fresh = block("fresh");
    let nonce = Nonce::parse(fresh["nonce"].as_str().unwrap()).unwrap();
    assert_eq!(json!(report.answer(&nonce, &new, &identity)), fresh["freshProof"]);
}

#[test]
fn tables_have_exactly_our_words() {
    let status =
        [Status::Idle, Status::Trying, Status::Committed, Status::Rejected, Status::Invalid, Status::Waiting];
    let reasons = [
        Reason::Refused,
        Reason::Clock,
        Reason::Network,
        Reason::Throttled,
        Reason::Storage,
        Reason::Malformed,
        Reason::TwinTooLarge,
        Reason::Checksum,
        Reason::UnsealedForbidden,
        Reason::CannotUnseal,
        Reason::Unauthenticated,
        Reason::TooManyOffers,
        Reason::Duel,
        Reason::Restored,
    ];
    assert_eq!(column("Status", 1), words(status.map(Status::as_str)));
    assert_eq!(column("Reasons", 1), words(reasons.map(Reason::as_str)));
    assert_eq!(column("Status", 3), words(reasons.map(Reason::as_str)));
}

#[test]
fn sizes_are_those_of_the_code() {
    for row in [
        format!("| key | {} to {} bytes |", Key::MIN_LEN, Key::MAX_LEN),
        format!("| sealed key | {SEALED_LEN_MIN} to {SEALED_LEN_MAX} bytes |"),
        format!("| twin document | {TWIN_LEN_MAX} bytes |"),
        format!("| `keyRenewal` section | {SECTION_LEN_MAX} bytes |"),
        format!("| `agent` | {AGENT_LEN_MAX} bytes |"),
        format!("| `sequence` | {SEQUENCE_MAX} |"),
    ] {
        assert!(PAGE.contains(&row), "{row}");
    }
}
