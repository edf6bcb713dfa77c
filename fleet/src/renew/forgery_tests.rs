//! Every report that somebody with a token can make: each field from a report that he has seen, or any other value; each proof
//! that he has seen, or none, or any other. None of them touches a key.

use proptest::prelude::*;
use serde_json::{Value, json};
use twinkey_contract::report::{Report, SlotReport, Status};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::tags::{Believed, Seen};
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId};
use twinkey_sas::Key;

use super::belief::Trust;
use super::plan::{Facts, Plan, Request, Standing, plan};
use crate::cli::KeyType;
use crate::hub::KeyPair;

const KEY_TYPES: [KeyType; 4] = [KeyType::Primary, KeyType::Secondary, KeyType::Both, KeyType::Swap];

const FIELDS: [&str; 14] = [
    "contract",
    "agent",
    "sealTo",
    "sequence",
    "active",
    "rotation",
    "status",
    "reason",
    "clockOffsetSecs",
    "behind",
    "primary",
    "secondary",
    "proof",
    "unknown",
];

fn key(seed: u8) -> Key {
    Key::from_bytes(&[seed; 32]).unwrap()
}

fn identity() -> Identity {
    Identity::new("d1", None).unwrap()
}

fn public(seed: u8) -> SealingPublicKey {
    SealingPublicKey([seed; 32])
}

fn rotation(number: u8) -> RotationId {
    format!("00000000-0000-7000-8000-{number:012x}").parse().unwrap()
}

fn slot(seed: Option<u8>) -> Option<SlotReport> {
    seed.map(|seed| SlotReport { fingerprint: Fingerprint::of(&key(seed)), proven_at: Some(seed.into()) })
}

/// A report as the agent makes it: the registry has its active key, with number 1 or 2, or has had it, with number 3.
fn honest() -> impl Strategy<Value = Report> {
    let statuses = [Status::Idle, Status::Trying, Status::Committed, Status::Rejected, Status::Invalid];
    let parts = (
        1..4_u8,
        prop::option::of(1..4_u8),
        prop::sample::select(KeySlot::ALL.to_vec()),
        prop::option::of(1..3_u8),
        prop::sample::select(statuses.to_vec()),
        0..8_u64,
    );
    parts.prop_map(|(active_key, other_key, active, rotation_no, status, sequence)| {
        let (primary, secondary) = match active {
            KeySlot::Primary => (Some(active_key), other_key),
            KeySlot::Secondary => (other_key, Some(active_key)),
        };
        let mut report = Report {
            contract: 1,
            agent: "0.1.0".to_owned(),
            seal_to: Some(public(1)),
            sequence,
            active: Some(active),
            rotation: rotation_no.map(rotation),
            status,
            reason: None,
            clock_offset_secs: None,
            behind: None,
            primary: slot(primary),
            secondary: slot(secondary),
            proof: None,
        };
        report.prove(&key(active_key), &identity());
        report
    })
}

/// What he may write into a field besides what he has seen there.
fn value() -> impl Strategy<Value = Value> {
    let texts = ["", "primary", "secondary", "idle", "trying", "committed", "rejected", "duel", "restored"];
    let slots: Vec<Value> = (1..5_u8).map(|seed| json!(slot(Some(seed)))).collect();
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..10_u64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(texts.to_vec()).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(slots),
        (1..4_u8).prop_map(|seed| json!(public(seed).to_string())),
        (1..4_u8).prop_map(|number| json!(rotation(number).to_string())),
        prop::array::uniform32(any::<u8>()).prop_map(|bytes| json!(SealingPublicKey(bytes).to_string())),
        Just(json!([])),
        Just(json!({})),
    ]
}

/// Where a field comes from.
#[derive(Clone, Debug)]
enum Source {
    /// From the report that it all begins with.
    Base,
    Seen(prop::sample::Index),
    Made(Value),
    Missing,
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        8 => Just(Source::Base),
        4 => any::<prop::sample::Index>().prop_map(Source::Seen),
        2 => value().prop_map(Source::Made),
        1 => Just(Source::Missing),
    ]
}

fn forge(seen: &[Report], base: usize, sources: &[Source]) -> Value {
    let sections: Vec<Value> = seen.iter().map(|report| json!(report)).collect();
    let mut section = sections[base].clone();
    for (field, source) in FIELDS.iter().zip(sources) {
        match source {
            Source::Base => {}
            Source::Seen(index) => section[*field] = index.get(&sections)[*field].clone(),
            Source::Made(value) => section[*field] = value.clone(),
            Source::Missing => {
                section.as_object_mut().unwrap().remove(*field);
            }
        }
    }
    json!({ "keyRenewal": section })
}

/// What operators may have believed before, and what they may have been told of the device.
fn before() -> impl Strategy<Value = Seen> {
    prop_oneof![
        Just(Seen::Nothing),
        Just(Seen::Unreadable),
        (0..8_u64).prop_map(|sequence| Seen::Believed(Believed { seal_to: public(1), sequence })),
    ]
}

fn standing() -> impl Strategy<Value = Option<Standing>> {
    prop::option::of(
        (1..3_u8, any::<bool>(), any::<bool>()).prop_map(|(number, primary, secondary)| Standing {
            rotation: rotation(number),
            primary,
            secondary,
        }),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_report_that_a_token_holder_makes_touches_a_key(
        seen in prop::collection::vec(honest(), 1..5),
        base in any::<prop::sample::Index>(),
        sources in prop::collection::vec(source(), FIELDS.len()),
        (before, standing) in (before(), standing()),
        (is_incident, delivers) in (any::<bool>(), any::<bool>()),
        replaces in prop::option::of(1..4_u8),
    ) {
        let reported = forge(&seen, base.index(seen.len()), &sources);
        let report = Report::read(&reported).ok().flatten();
        let (keys, identity) = (KeyPair { primary: key(1), secondary: key(2) }, identity());
        let is_old = |report: &Report| match before {
            Seen::Believed(believed) => report.sequence < believed.sequence,
            Seen::Nothing => false,
            Seen::Unreadable => true,
        };
        let is_the_agents = report.as_ref().is_some_and(|report| seen.contains(report));
        let is_counted = report.as_ref().is_some_and(|report| !is_old(report));
        if is_the_agents && (is_counted || is_incident) {
            return Ok(());
        }
        let trust = Trust { trusts_report: false, is_incident };
        let facts = Facts {
            identity: &identity,
            is_enabled: true,
            is_connected: true,
            keys: &keys,
            report: report.as_ref(),
            seen: before,
            standing,
        };
        for key_type in KEY_TYPES {
            let replaces = replaces.map(|seed| Fingerprint::of(&key(seed)));
            let request =
                Request { key_type, replaces, is_forced: false, delivers, is_plain: false, trust };
            let plan = plan(&facts, request);
            prop_assert!(matches!(plan, Plan::Refuse(_)), "{key_type:?}: {plan:?}");
        }
    }

    #[test]
    fn the_agents_own_report_is_acted_on_whatever_else_was_seen(
        seen in prop::collection::vec(honest(), 1..5),
        sequence in 0..8_u64,
    ) {
        // Else the property above would hold for a plan that refuses everything.
        let report = &seen[0];
        let active = report.active.unwrap();
        let (keys, identity) = (KeyPair { primary: key(1), secondary: key(2) }, identity());
        let lives_on = report.slot(active).unwrap().fingerprint;
        let Some(lives_in) = KeySlot::ALL.into_iter().find(|slot| keys.fingerprint(*slot) == lives_on) else {
            return Ok(());
        };
        let facts = Facts {
            identity: &identity,
            is_enabled: true,
            is_connected: true,
            keys: &keys,
            report: Some(report),
            seen: Seen::Believed(Believed { seal_to: public(1), sequence }),
            standing: None,
        };
        let key_type = match lives_in {
            KeySlot::Primary => KeyType::Secondary,
            KeySlot::Secondary => KeyType::Primary,
        };
        let trust = Trust::default();
        let request =
            Request { key_type, replaces: None, is_forced: false, delivers: true, is_plain: false, trust };
        let is_acted_on = matches!(plan(&facts, request), Plan::Renew { .. });
        prop_assert_eq!(is_acted_on, report.sequence >= sequence);
    }
}
