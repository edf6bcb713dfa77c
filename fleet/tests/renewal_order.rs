//! The operator's order, step by step, against a hub and agents of which the test decides every word.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod scripted_hub;

use std::process::Output;

use scripted_hub::{Canned, Device, LOGIN_KEY, Manner, ScriptedHub, State, base64, key, unix_now_secs};
use serde_json::Value;
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::report::{Reason, Status};
use twinkey_contract::sealing::SealingKey;
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId};
use twinkey_sas::Key;
use twinkey_sas::identifiable::{Mark, Purpose, inspect};

/// How an operator challenges a device.
const CHALLENGE: &str = "POST /twins/d1/methods";
/// How an operator changes the keys in the registry that it has made.
const CHANGE: &str = "PUT /devices/d1";
/// How it has the hub make them.
const ORDER: &str = "POST /devices/keys/regenerate";

/// Runs renew-key on d1 with these flags and keys made by the operator.
fn renew(hub: &ScriptedHub, flags: &[&str]) -> (Output, Value, String) {
    let flags: Vec<&str> = flags.iter().chain(&["--key-source", "local"]).copied().collect();
    renew_devices(hub, &["d1"], &flags)
}

/// The same with keys made by the hub.
fn renew_by_service(hub: &ScriptedHub, flags: &[&str]) -> (Output, Value, String) {
    renew_devices(hub, &["d1"], flags)
}

/// Runs renew-key, and checks what must hold for every run: no key in sight.
fn renew_devices(hub: &ScriptedHub, ids: &[&str], flags: &[&str]) -> (Output, Value, String) {
    let fixed = ["device-identity", "renew-key", "--output", "json"];
    let args: Vec<&str> = fixed.iter().chain(&["--device-id"]).chain(ids).chain(flags).copied().collect();
    let output = hub.run(&args);
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let mut secrets = vec![LOGIN_KEY.to_owned(), "SharedAccessSignature".to_owned()];
    secrets.extend((0..=110).map(|seed| base64(&key(seed))));
    hub.change(|state| secrets.extend(state.devices.values().flat_map(|d| d.keys.values()).map(base64)));
    for secret in &secrets {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{secret} shows in {stdout} {stderr}");
    }
    (output, serde_json::from_str(&stdout).unwrap_or_default(), stderr)
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn a_new_key_is_sealed_offered_proved_and_its_offer_erased() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    let row = &json[0];
    assert_eq!((row["deviceId"].as_str(), row["outcome"].as_str()), (Some("d1"), Some("renewed")));
    let registry = hub.device("d1", |d| Fingerprint::of(&d.keys[&KeySlot::Secondary]).to_string());
    assert_eq!(
        row["fingerprints"]["before"]["secondary"].as_str(),
        Some(Fingerprint::of(&key(2)).to_string().as_str())
    );
    assert_eq!(row["fingerprints"]["after"]["secondary"].as_str(), Some(registry.as_str()));
    assert_eq!(row["fingerprints"]["before"]["primary"], row["fingerprints"]["after"]["primary"]);
    assert!(row["rotation"].as_str().unwrap().parse::<RotationId>().is_ok());
    assert_eq!(hub.count(CHANGE), 1);
    hub.device("d1", |d| {
        assert!(d.offer().is_none(), "the offer is erased");
        assert_eq!(d.agent().active, KeySlot::Secondary);
    });
    // The offer goes to whatever twin there is; its erasure only to the twin in which the proof was seen.
    let if_matches = hub.change(|state| state.if_matches.clone());
    let patches: Vec<_> = if_matches
        .iter()
        .filter(|(call, _)| call.starts_with("PATCH"))
        .map(|(_, etag)| etag.as_str())
        .collect();
    assert_eq!(patches.first(), Some(&"\"*\""));
    assert!(patches.len() == 2 && patches[1] != "\"*\"", "{patches:?}");
}

#[test]
fn the_slot_in_use_is_refused_and_nothing_is_touched() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, json, stderr) = renew(&hub, &["--key-type", "primary", "--yes"]);
    assert_eq!(exit(&output), 3, "{stderr}");
    assert_eq!(json[0]["reason"].as_str(), Some("slot-in-use"));
    assert!(stderr.contains("d1") && stderr.contains("renew the secondary key first"), "{stderr}");
    assert!(hub.change(|state| state.calls.iter().all(|call| call.starts_with("GET "))));
}

#[test]
fn a_device_without_agent_or_connection_is_refused_for_every_key_type() {
    let dark = || Device { is_connected: false, ..Device::with_agent() };
    let plain = || Device { agent: None, ..Device::with_agent() };
    let hub = ScriptedHub::start([("dark", dark()), ("plain", plain())]);
    for key_type in ["primary", "secondary", "both", "swap"] {
        let (output, json, stderr) =
            renew_devices(&hub, &["dark", "plain"], &["--key-type", key_type, "--yes"]);
        assert_eq!(exit(&output), 3, "{stderr}");
        let reasons = [json[0]["reason"].as_str(), json[1]["reason"].as_str()];
        assert_eq!(reasons, [Some("not-connected"), Some("no-agent")], "{key_type}");
    }
    assert!(hub.change(|state| state.calls.iter().all(|call| call.starts_with("GET "))));
}

#[test]
fn a_key_that_the_device_does_not_take_is_erased_and_the_run_fails() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::Refuses);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 1, "{stderr}");
    assert_eq!(
        (json[0]["outcome"].as_str(), json[0]["reason"].as_str()),
        (Some("rejected"), Some("refused"))
    );
    assert!(hub.device("d1", |d| d.offer().is_none()));
}

#[test]
fn a_device_that_claims_the_key_without_proof_is_not_believed() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::Lies);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--timeout", "600ms"]);
    assert_eq!(exit(&output), 1, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("unanswered"));
    assert!(stderr.contains("its proof does not fit"), "{stderr}");
    assert!(hub.device("d1", |d| d.offer().is_some()));
}

#[test]
fn a_second_run_finishes_what_a_silent_device_left_open_without_another_key() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::KeepsSilent);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--timeout", "600ms"]);
    assert_eq!(exit(&output), 1, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("unanswered"));
    assert!(hub.device("d1", |d| d.offer().is_some()), "the offer stands for the device's return");
    let made = hub.device("d1", |d| base64(&d.keys[&KeySlot::Secondary]));

    hub.device("d1", |d| d.agent().manner = Manner::Obeys);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("delivered"));
    assert_eq!(hub.count(CHANGE), 1, "no second key");
    assert_eq!(hub.device("d1", |d| base64(&d.keys[&KeySlot::Secondary])), made);
}

#[test]
fn a_run_that_died_before_erasing_is_settled_by_the_next() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let id: RotationId = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f".parse().unwrap();
    hub.device("d1", |d| {
        d.desired = offer_of(id, KeySlot::Secondary, &key(2), &key(1));
        let agent = d.agent();
        (agent.active, agent.rotation, agent.status) = (KeySlot::Secondary, Some(id), Status::Committed);
    });
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("settled"));
    assert_eq!(hub.count(CHANGE), 0);
    assert!(hub.device("d1", |d| d.offer().is_none()));
}

#[test]
fn a_lost_answer_to_the_change_costs_no_second_key() {
    for canned in [Canned::CutAfterwards, Canned::Status(500)] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.answer_first(CHANGE, canned);
        let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 0, "{stderr}");
        assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
        assert_eq!(hub.count(CHANGE), 1);
    }
}

#[test]
fn a_throttled_call_is_repeated_after_the_time_that_the_hub_names() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(CHANGE, Canned::Instead(429, "retry-after: 1\r\n", ""));
    hub.answer_first("GET /devices/d1", Canned::Instead(503, "", ""));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert!(json[0]["seconds"].as_f64().unwrap() >= 1.0);
    assert_eq!(hub.count(CHANGE), 2);
}

#[test]
fn a_refused_change_fails_with_the_hubs_reason_and_offers_nothing() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let body = r#"{"Message":"ErrorCode:InvalidKey;no"}"#;
    hub.answer_first(CHANGE, Canned::Instead(400, "", body));
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 1);
    assert!(stderr.contains("InvalidKey"), "{stderr}");
    assert_eq!(hub.count("PATCH"), 0);
}

/// What a swap by somebody else leaves behind: the key in use changes its slot.
fn swap(state: &mut State) {
    let device = state.devices.get_mut("d1").unwrap();
    device.keys = [(KeySlot::Primary, key(2)), (KeySlot::Secondary, key(1))].into();
    device.etag += 1000;
}

fn touch(state: &mut State) {
    state.devices.get_mut("d1").unwrap().etag += 1000;
}

#[test]
fn a_swap_between_plan_and_change_does_not_cost_the_key_in_use() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(CHANGE, Canned::Meanwhile(swap));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 3, "{stderr}");
    assert_eq!(json[0]["reason"].as_str(), Some("slot-in-use"), "it looked again: {stderr}");
    hub.device("d1", |d| assert_eq!(base64(&d.keys[&KeySlot::Secondary]), base64(&key(1)), "it lives on it"));
    assert_eq!(hub.count("PATCH"), 0);
}

/// While a throttled change waits, the device moves to the slot that it was to replace: no etag of the identity shows it.
#[test]
fn a_throttled_change_is_planned_anew() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(CHANGE, Canned::Instead(429, "retry-after: 1\r\n", ""));
    hub.answer_first(
        "GET /devices/d1",
        Canned::Meanwhile(|state| state.devices.get_mut("d1").unwrap().agent().active = KeySlot::Secondary),
    );
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 3, "{stderr}");
    assert_eq!(json[0]["reason"].as_str(), Some("slot-in-use"));
    hub.device("d1", |d| assert_eq!(base64(&d.keys[&KeySlot::Secondary]), base64(&key(2)), "it lives on it"));
}

#[test]
fn a_change_that_does_not_concern_the_key_costs_one_more_look() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(CHANGE, Canned::Meanwhile(touch));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
    assert_eq!(hub.count(CHANGE), 2);
}

#[test]
fn an_identity_that_changes_all_the_time_is_given_up_with_a_reason() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    for _ in 0..4 {
        hub.answer_first(CHANGE, Canned::Meanwhile(touch));
    }
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 1);
    assert!(stderr.contains("somebody else"), "{stderr}");
    assert_eq!((hub.count(CHANGE), hub.count("PATCH")), (3, 0), "a key of doubtful fate is not offered");
}

#[test]
fn with_an_etag_of_the_operator_there_is_no_second_plan() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(CHANGE, Canned::Meanwhile(touch));
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--etag", "1"]);
    assert_eq!(exit(&output), 1);
    assert!(stderr.contains("another etag than the given one"), "{stderr}");
    assert_eq!(hub.count(CHANGE), 1);
}

const OTHER_ROTATION: &str = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f";

/// What an operator offers who knows `vouching`, a key of d1.
fn offer_of(rotation: RotationId, slot: KeySlot, offered: &Key, vouching: &Key) -> Value {
    let mut offer = Offer { rotation, primary: None, secondary: None, auth: None };
    match slot {
        KeySlot::Primary => offer.primary = Some(OfferedKey::Plain(offered.clone())),
        KeySlot::Secondary => offer.secondary = Some(OfferedKey::Plain(offered.clone())),
    }
    offer.authenticate(vouching, &Identity::new("d1", None).unwrap());
    offer.to_patch()
}

/// Somebody else offers the registry's secondary key too.
fn offer_secondary_too(state: &mut State) {
    let device = state.devices.get_mut("d1").unwrap();
    let offered = device.keys[&KeySlot::Secondary].clone();
    let rotation = OTHER_ROTATION.parse().unwrap();
    let vouching = device.keys[&KeySlot::Primary].clone();
    device.desired = offer_of(rotation, KeySlot::Secondary, &offered, &vouching);
    device.twin_etag += 1000;
}

/// The same, and the device has taken it, and the offer is erased.
fn finish_secondary(state: &mut State) {
    let device = state.devices.get_mut("d1").unwrap();
    let key = device.keys[&KeySlot::Secondary].clone();
    device.desired = serde_json::json!({});
    let agent = device.agent();
    agent.held.insert(KeySlot::Secondary, key);
    agent.active = KeySlot::Secondary;
    (agent.rotation, agent.status) = (Some(OTHER_ROTATION.parse().unwrap()), Status::Committed);
}

#[test]
fn a_run_whose_offer_is_replaced_stops_at_once_as_superseded() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::KeepsSilent);
    hub.answer_first("PATCH", Canned::Status(200));
    hub.answer_first("GET /twins/d1", Canned::Meanwhile(offer_secondary_too));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--timeout", "20s"]);
    assert_eq!(exit(&output), 1, "{stderr}");
    let row = &json[0];
    assert_eq!((row["outcome"].as_str(), row["reason"].as_str()), (Some("superseded"), Some("superseded")));
    assert!(stderr.contains(OTHER_ROTATION), "{stderr}");
    assert!(hub.device("d1", |d| d.offer().is_some()), "the other run's offer stands");
}

#[test]
fn a_run_whose_wish_another_run_fulfils_is_renewed() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::KeepsSilent);
    hub.answer_first("PATCH", Canned::Status(200));
    hub.answer_first("GET /twins/d1", Canned::Meanwhile(finish_secondary));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--timeout", "20s"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    let row = &json[0];
    assert_eq!((row["outcome"].as_str(), row["rotation"].as_str()), (Some("renewed"), Some(OTHER_ROTATION)));
}

#[test]
fn what_another_rotation_proves_is_no_witness_for_the_second_key() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::KeepsSilent);
    hub.answer_first("PATCH", Canned::Status(200));
    hub.answer_first("GET /twins/d1", Canned::Meanwhile(finish_secondary));
    let (_, _, stderr) = renew(&hub, &["--key-type", "in-turn", "--yes", "--timeout", "3s"]);
    assert_eq!(hub.count(CHALLENGE), 2, "its report can be an old one: {stderr}");
}

#[test]
fn a_device_whose_key_in_use_is_unknown_is_renewed_once_it_has_fallen_back() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().held.insert(KeySlot::Primary, key(9)));
    for key_type in ["primary", "secondary"] {
        let (output, json, stderr) = renew(&hub, &["--key-type", key_type, "--yes"]);
        assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("last-key")), "{stderr}");
        assert!(stderr.contains("renew the primary key then"), "{stderr}");
    }
    assert_eq!((hub.count(CHANGE), hub.count("PATCH")), (0, 0));
    hub.device("d1", |d| d.agent().active = KeySlot::Secondary);
    let (output, json, stderr) = renew(&hub, &["--key-type", "primary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("delivered"));
    assert_eq!(hub.count(CHANGE), 0);
    hub.device("d1", |d| assert_eq!(base64(&d.agent().held[&KeySlot::Primary]), base64(&key(1))));
}

#[test]
fn what_a_later_run_does_is_told_as_it_will_be() {
    for (secondary, expected) in
        [(Some(key(2)), "delivers the key"), (None, "changes the registry once more")]
    {
        let is_known = secondary.is_some();
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.device("d1", |d| {
            d.agent().held.remove(&KeySlot::Secondary);
            d.agent().held.extend(secondary.map(|key| (KeySlot::Secondary, key)));
        });
        let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--no-deliver"]);
        assert_eq!(exit(&output), 0, "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 0, "{stderr}");
        assert_eq!(hub.count(CHANGE), if is_known { 1 } else { 2 });
    }
}

#[test]
fn the_table_names_the_key_that_the_device_moved_to_even_if_the_registry_did_not_change() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().held.insert(KeySlot::Secondary, key(8)));
    let args = ["device-identity", "renew-key", "-d", "d1", "--key-type", "secondary", "--yes"];
    let finished = hub.run(&args);
    let moved_to = format!("→ {}", Fingerprint::of(&key(2)).short());
    let stdout = String::from_utf8(finished.stdout).unwrap();
    assert!(stdout.contains("delivered") && stdout.contains(&moved_to), "{stdout}");
    hub.change(offer_secondary_too);
    hub.change(finish_secondary_and_keep_offer);
    let settled = hub.run(&args);
    let stdout = String::from_utf8(settled.stdout).unwrap();
    assert!(stdout.contains("settled") && stdout.contains(&moved_to), "{stdout}");
}

/// The device has taken the other run's offer, which died before erasing it.
fn finish_secondary_and_keep_offer(state: &mut State) {
    let desired = state.devices["d1"].desired.clone();
    finish_secondary(state);
    state.devices.get_mut("d1").unwrap().desired = desired;
}

#[test]
fn a_newer_offer_is_not_erased() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first("PATCH", Canned::Status(200));
    hub.answer_first(
        "PATCH",
        Canned::Meanwhile(|state| {
            let device = state.devices.get_mut("d1").unwrap();
            let rotation = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f".parse().unwrap();
            device.desired =
                Offer { rotation, primary: Some(OfferedKey::Plain(key(1))), secondary: None, auth: None }
                    .to_patch();
            device.twin_etag += 1000;
        }),
    );
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
    assert!(
        hub.device("d1", |d| d.offer().is_some_and(|offer| offer.primary.is_some())),
        "the newer offer stands"
    );
}

#[test]
fn swap_exchanges_the_keys_under_the_etag_and_tells_the_agent() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, json, stderr) = renew(&hub, &["--key-type", "swap", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("swapped"));
    let put = hub.change(|state| state.if_matches.iter().find(|(call, _)| call.starts_with("PUT")).cloned());
    assert_eq!(put, Some(("PUT /devices/d1".to_owned(), "\"1\"".to_owned())));
    hub.device("d1", |d| {
        assert_eq!(base64(&d.keys[&KeySlot::Primary]), base64(&key(2)));
        assert_eq!(base64(&d.keys[&KeySlot::Secondary]), base64(&key(1)));
        assert_eq!(d.agent().active, KeySlot::Secondary, "it lives on the same key under the other label");
        assert!(d.offer().is_none());
    });
}

#[test]
fn with_an_etag_the_key_is_made_here_and_written_under_it() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--etag", "0"]);
    assert_eq!(exit(&output), 1, "{stderr}");
    assert!(stderr.contains("etag"), "{stderr}");
    assert_eq!(hub.count("PUT"), 0);
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--etag", "1"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(hub.count(CHANGE), 1);
    let mark = hub.device("d1", |d| inspect(&d.keys[&KeySlot::Secondary]));
    assert_eq!(mark, Mark::Valid(Purpose::Device));
}

#[test]
fn without_delivery_the_registry_changes_and_the_twin_does_not() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--no-deliver"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("undelivered"));
    assert_eq!((hub.count(CHANGE), hub.count("PATCH")), (1, 0));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("delivered"));
    assert_eq!(hub.count(CHANGE), 1, "the key of the first run is delivered");
}

#[test]
fn an_unsealed_offer_is_announced() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (_, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert!(!stderr.contains("not sealed"), "{stderr}");
    let (output, _, stderr) = renew(&hub, &["--key-type", "primary", "--yes", "--plain"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert!(stderr.contains("not sealed, as --plain says"), "{stderr}");
}

/// What stood in the clear in the desired properties, at any time.
fn keys_in_the_clear(hub: &ScriptedHub) -> Vec<Value> {
    let offers = patches(hub).into_iter().map(|(_, offer)| offer);
    let slots = offers.flat_map(|offer| [offer["primary"]["key"].clone(), offer["secondary"]["key"].clone()]);
    slots.filter(|key| !key.is_null()).collect()
}

#[test]
fn without_a_public_key_to_seal_to_no_key_is_written_in_the_clear() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().sealing = None);
    for key_type in ["primary", "secondary", "in-turn"] {
        let (output, _, stderr) = renew(&hub, &["--key-type", key_type, "--yes"]);
        assert_eq!(exit(&output), 3, "{stderr}");
    }
    let (_, json, _) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(json[0]["reason"].as_str(), Some("seal-unknown"));
    assert_eq!(hub.count(CHANGE), 0);
    // Not even by force.
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--force-dark", "d1"]);
    assert_eq!((exit(&output), json[0]["outcome"].as_str()), (0, Some("undelivered")), "{stderr}");
    assert_eq!(keys_in_the_clear(&hub), Vec::<Value>::new());
}

#[test]
fn another_public_key_than_the_one_that_was_believed_is_refused_until_a_person_says_so() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    let public = |d: &mut Device| d.agent().sealing.as_ref().unwrap().public().to_string();
    let first = hub.device("d1", public);
    assert_eq!(hub.device("d1", |d| d.tags["keyRenewal"]["sealTo"].clone()), *first);

    hub.device("d1", |d| d.agent().sealing = Some(SealingKey::generate().unwrap()));
    let second = hub.device("d1", public);
    let (output, json, stderr) = renew(&hub, &["--key-type", "primary", "--yes"]);
    assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("seal-changed")), "{stderr}");
    assert!(stderr.contains("--trust-report"), "{stderr}");
    assert_eq!(hub.count(CHANGE), 1);
    let (output, json, stderr) = renew(&hub, &["--key-type", "primary", "--yes", "--trust-report", "d1"]);
    assert_eq!((exit(&output), json[0]["outcome"].as_str()), (0, Some("renewed")), "{stderr}");
    assert_eq!(hub.device("d1", |d| d.tags["keyRenewal"]["sealTo"].clone()), *second);
    // From now on it is the one that is believed.
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
}

#[test]
fn a_report_that_is_older_than_one_that_was_believed_is_refused_until_a_person_says_so() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().sequence = 7);
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    hub.device("d1", |d| {
        assert_eq!(d.tags["keyRenewal"]["sequence"], 7);
        d.agent().sequence = 6;
    });
    let (output, json, stderr) = renew(&hub, &["--key-type", "primary", "--yes"]);
    assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("report-old")), "{stderr}");
    let (output, _, stderr) = renew(&hub, &["--key-type", "primary", "--yes", "--trust-report", "d1"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(hub.device("d1", |d| d.tags["keyRenewal"]["sequence"].clone()), 6);
}

#[test]
fn a_device_in_a_duel_is_renewed_in_an_incident_only_and_sealed_to_what_was_believed() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().reason = Some(Reason::Duel));
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("duel")), "{stderr}");
    // Nothing was believed before: the public key could be the thief's.
    let incident = ["--key-type", "secondary", "--yes", "--incident", "d1"];
    let (output, json, stderr) = renew(&hub, &incident);
    assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("seal-unknown")), "{stderr}");
    hub.device("d1", |d| {
        let seal_to = d.agent().sealing.as_ref().map(|key| key.public().to_string());
        d.tags = serde_json::json!({"keyRenewal": {"sealTo": seal_to, "sequence": 1}});
    });
    let (output, json, stderr) = renew(&hub, &incident);
    assert_eq!((exit(&output), json[0]["outcome"].as_str()), (0, Some("renewed")), "{stderr}");
    assert_eq!(hub.count(CHANGE), 1);
}

#[test]
fn a_challenge_that_is_not_answered_with_the_key_in_use_stops_the_renewal() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().answers = false);
    for key_type in ["secondary", "in-turn"] {
        let (output, json, stderr) = renew(&hub, &["--key-type", key_type, "--yes"]);
        assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("not-fresh")), "{stderr}");
    }
    assert_eq!((hub.count(CHANGE), hub.count(CHALLENGE)), (0, 2));
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--no-challenge"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!((hub.count(CHANGE), hub.count(CHALLENGE)), (1, 2));
    // What a person has to vouch for is challenged all the same.
    let flags = ["--key-type", "primary", "--yes", "--no-challenge", "--trust-report", "d1"];
    let (output, json, stderr) = renew(&hub, &flags);
    assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("not-fresh")), "{stderr}");
    hub.device("d1", |d| d.agent().answers = true);
    // The proof of the first key is as good as an answer.
    let before = hub.count(CHALLENGE);
    let (output, _, stderr) = renew(&hub, &["--key-type", "in-turn", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!((hub.count(CHANGE), hub.count(CHALLENGE) - before), (3, 1));
}

#[test]
fn a_device_that_a_person_vouches_for_is_challenged_before_the_registrys_key_is_handed_over_too() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| {
        d.agent().answers = false;
        d.keys.insert(KeySlot::Secondary, key(77));
    });
    let flags = ["--key-type", "secondary", "--yes", "--no-challenge"];
    let vouched = [&flags[..], &["--trust-report", "d1"]].concat();
    let (output, json, stderr) = renew(&hub, &vouched);
    assert_eq!((exit(&output), json[0]["reason"].as_str()), (3, Some("not-fresh")), "{stderr}");
    hub.device("d1", |d| assert!(d.offer().is_none()));
    // Without such a word the proof was believed before, and no key is made.
    let (output, json, stderr) = renew(&hub, &flags);
    assert_eq!((exit(&output), json[0]["outcome"].as_str()), (0, Some("delivered")), "{stderr}");
    assert_eq!((hub.count(CHANGE), hub.count(CHALLENGE)), (0, 1));
}

#[test]
fn both_keys_are_renewed_only_for_devices_that_are_named_as_forced() {
    let hub = ScriptedHub::start([("d1", Device::with_agent()), ("d2", Device::with_agent())]);
    let flags = ["--key-type", "both", "--yes", "--force-dark", "d1"];
    let (output, json, stderr) = renew_devices(&hub, &["d1", "d2"], &flags);
    assert_eq!(exit(&output), 4, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("renewed"), "{stderr}");
    assert_eq!(
        (json[1]["outcome"].as_str(), json[1]["reason"].as_str()),
        (Some("refused"), Some("both-slots"))
    );
    assert!(stderr.contains("d1: forced, although"), "{stderr}");
    assert_eq!(hub.device("d2", |d| base64(&d.keys[&KeySlot::Primary])), base64(&key(1)));
}

#[test]
fn forced_onto_a_device_without_agent_nothing_is_left_in_its_twin() {
    let hub = ScriptedHub::start([("d1", Device { agent: None, ..Device::with_agent() })]);
    let (output, json, stderr) = renew(&hub, &["--key-type", "secondary", "--yes", "--force-dark", "d1"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("undelivered"));
    assert_eq!(hub.count("PATCH"), 0);
    assert!(stderr.contains("there is no agent") && !stderr.contains("--no-deliver"), "{stderr}");
}

#[test]
fn what_is_no_hub_is_named_as_such() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(
        "GET /devices/d1",
        Canned::Instead(403, "content-type: text/html\r\n", "<html>blocked</html>"),
    );
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 1);
    assert!(stderr.contains("a web page") && stderr.contains("HTTPS_PROXY"), "{stderr}");
    hub.answer_first("GET /devices/d1", Canned::Instead(200, "", r#"{"deviceId":7}"#));
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 1);
    assert!(stderr.contains("not what a hub answers"), "{stderr}");
}

#[test]
fn errors_of_the_hub_say_what_to_do() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let cases = [
        (Canned::Instead(401, "iothub-errorcode: IotHubUnauthorizedAccess\r\n", ""), "clock"),
        (Canned::Instead(403, "", ""), "RegistryWrite"),
        (Canned::Instead(404, "", ""), "device-identity list"),
        (Canned::Instead(429, "retry-after: 3600\r\n", ""), "throttles"),
    ];
    for (canned, advice) in cases {
        hub.answer_first("GET /devices/d1", canned);
        let (output, _, stderr) = renew(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 1);
        assert!(stderr.contains(advice), "{advice}: {stderr}");
    }
}

#[test]
fn nobody_is_renewed_without_a_yes() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, _, stderr) = renew(&hub, &["--key-type", "secondary"]);
    assert_eq!(exit(&output), 2);
    assert!(stderr.contains("--yes"), "{stderr}");
    assert!(hub.change(|state| state.calls.is_empty()));
}

#[test]
fn contradictory_flags_are_usage_errors() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let with_etag = renew_devices(&hub, &["d1", "d2"], &["--key-type", "primary", "--yes", "--etag", "1"]);
    let strangers = ["--force-dark", "--trust-report", "--incident"]
        .map(|flag| renew(&hub, &["--key-type", "primary", "--yes", flag, "d7"]));
    for (output, _, stderr) in strangers.into_iter().chain([with_etag]) {
        assert_eq!(exit(&output), 2, "{stderr}");
    }
}

/// The public key that the agent of `d1` reports.
fn seal_to(hub: &ScriptedHub) -> String {
    hub.device("d1", |d| d.agent().sealing.as_ref().unwrap().public().to_string())
}

/// The twin's patches, in order: which of lease and offer they concern.
fn patches(hub: &ScriptedHub) -> Vec<(Value, Value)> {
    hub.change(|state| {
        let bodies = state.bodies.iter().filter(|(call, _)| call.starts_with("PATCH"));
        let parts = |body: &Value| {
            (body["tags"]["keyRenewal"].clone(), body["properties"]["desired"]["keyRenewal"].clone())
        };
        bodies.map(|(_, body)| parts(body)).collect()
    })
}

#[test]
fn the_hub_makes_the_key_under_a_lease_that_goes_with_the_offer() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
    assert_eq!((hub.count(ORDER), hub.count(CHANGE)), (1, 0));
    let patches = patches(&hub);
    let [(lease, none), (believes, offer), (released, erased)] = &patches[..] else { panic!("{patches:?}") };
    assert!(
        lease["lease"]["by"].is_string() && lease["lease"]["until"].is_u64() && none.is_null(),
        "{lease}"
    );
    // What is believed of the device stands in the tags with the offer, and what it has proved with its erasure.
    let believed = serde_json::json!({"sealTo": seal_to(&hub), "sequence": 1});
    assert_eq!(*believes, believed);
    assert!(offer["secondary"]["sealed"].is_string() && offer["auth"].is_string());
    let mut released_and_believed = believed;
    released_and_believed["lease"] = Value::Null;
    assert_eq!((released, erased), (&released_and_believed, &Value::Null));
    // The lease is taken on the twin that was read, and before the order.
    let calls = hub.change(|state| state.calls.clone());
    let place = |what: &str| calls.iter().position(|call| call.starts_with(what)).unwrap();
    assert!(place("PATCH") < place(ORDER), "{calls:?}");
    let first =
        hub.change(|state| state.if_matches.iter().find(|(call, _)| call.starts_with("PATCH")).cloned());
    assert_eq!(first.unwrap().1, "\"1\"");
    hub.device("d1", |d| {
        let tags = d.tags["keyRenewal"].as_object().unwrap();
        assert_eq!(tags.keys().collect::<Vec<_>>(), ["sealTo", "sequence"]);
    });
}

#[test]
fn keys_that_were_made_count_whatever_the_answers_status() {
    for status in [200, 207, 400] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.answer_first(ORDER, Canned::Status(status));
        let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 0, "{status}: {stderr}");
        assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
        assert_eq!(hub.count(ORDER), 1, "{status}");
    }
}

#[test]
fn a_lost_answer_to_an_order_costs_no_second_key() {
    for canned in [Canned::CutAfterwards, Canned::Status(500)] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.answer_first(ORDER, canned);
        let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 0, "{stderr}");
        assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
        assert_eq!(hub.count(ORDER), 1);
    }
}

#[test]
fn an_order_that_the_hub_did_not_get_to_is_planned_anew() {
    for canned in [Canned::Instead(429, "retry-after: 1\r\n", ""), Canned::Instead(503, "", "")] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.answer_first(ORDER, canned);
        let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 0, "{stderr}");
        assert_eq!(json[0]["outcome"].as_str(), Some("renewed"));
        assert_eq!(hub.count(ORDER), 2);
    }
}

/// While an order waits, the device moves to the slot whose key it would replace.
#[test]
fn an_order_planned_anew_does_not_cost_the_key_in_use() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.answer_first(ORDER, Canned::Instead(429, "retry-after: 1\r\n", ""));
    hub.answer_first(
        "GET /twins/d1",
        Canned::Meanwhile(|state| state.devices.get_mut("d1").unwrap().agent().active = KeySlot::Secondary),
    );
    let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 3, "{stderr}");
    assert_eq!(json[0]["reason"].as_str(), Some("slot-in-use"));
    hub.device("d1", |d| {
        assert_eq!(base64(&d.keys[&KeySlot::Secondary]), base64(&key(2)), "it lives on it");
        assert!(d.tags["keyRenewal"]["lease"].is_null(), "the lease is given up");
    });
}

#[test]
fn what_the_twin_says_when_the_lease_is_taken_decides() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    // Between reading and lease, the device has moved, which the twin's etag does not show.
    hub.answer_first(
        "PATCH",
        Canned::Meanwhile(|state| state.devices.get_mut("d1").unwrap().agent().active = KeySlot::Secondary),
    );
    let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 3, "{stderr}");
    assert_eq!(json[0]["reason"].as_str(), Some("slot-in-use"));
    assert_eq!(hub.count(ORDER), 0);
    hub.device("d1", |d| assert!(d.tags["keyRenewal"]["lease"].is_null(), "the lease is given up"));
}

#[test]
fn a_key_that_another_operator_had_made_before_the_lease_is_handed_over_and_not_renewed_again() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    // Between reading and lease. The device takes it up in a moment, and may live on it then.
    hub.answer_first(
        "PATCH",
        Canned::Meanwhile(|state| {
            let device = state.devices.get_mut("d1").unwrap();
            device.keys.insert(KeySlot::Secondary, key(77));
            device.etag += 1000;
        }),
    );
    let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert_eq!(json[0]["outcome"].as_str(), Some("delivered"));
    assert_eq!(hub.count(ORDER), 0);
    hub.device("d1", |d| assert_eq!(d.keys[&KeySlot::Secondary], key(77)));
}

#[test]
fn another_operators_lease_stops_every_run_and_a_lease_that_has_ended_none() {
    let somebody = "00112233445566778899aabbccddeeff";
    let is_ended = [(-1, 0), (-86_400 * 365, 0)];
    // No run writes one that lasts longer than 180 s.
    let lasts_too_long = [(400, 0), (86_400 * 365, 0)];
    for (left_secs, exit_code) in [(170, 1), (30, 1)].into_iter().chain(is_ended).chain(lasts_too_long) {
        for (source, clock_ahead_secs) in [("service", 0), ("local", 200), ("service", -200), ("local", -200)]
        {
            let hub = ScriptedHub::start([("d1", Device::with_agent())]);
            let until = unix_now_secs().checked_add_signed(clock_ahead_secs + left_secs).unwrap();
            hub.change(|state| state.clock_ahead_secs = clock_ahead_secs);
            let lease = serde_json::json!({"by": somebody, "until": until});
            hub.device("d1", |d| d.tags = serde_json::json!({"keyRenewal": {"lease": lease}}));
            let flags = ["--key-type", "secondary", "--yes", "--key-source", source];
            let (output, json, stderr) = renew_devices(&hub, &["d1"], &flags);
            let context = format!("{source}, {left_secs} s left, hub {clock_ahead_secs:+} s: {stderr}");
            assert_eq!(exit(&output), exit_code, "{context}");
            if exit_code == 1 {
                assert_eq!(json[0]["outcome"].as_str(), Some("busy"));
                assert!(stderr.contains(somebody), "{context}");
                assert_eq!((hub.count(ORDER), hub.count("PUT"), hub.count("PATCH")), (0, 0, 0));
            }
        }
    }
}

#[test]
fn a_lease_ends_by_the_hubs_clock() {
    for clock_ahead_secs in [0, 200, -200, 86_400] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.change(|state| state.clock_ahead_secs = clock_ahead_secs);
        let before = unix_now_secs();
        let (output, _, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
        let after = unix_now_secs();
        assert_eq!(exit(&output), 0, "{stderr}");
        let (lease, _) = patches(&hub).into_iter().next().unwrap();
        let until = lease["lease"]["until"].as_u64().unwrap();
        let lasts =
            |from: u64| i64::try_from(until).unwrap() - i64::try_from(from).unwrap() - clock_ahead_secs;
        // A second, because `Date` has whole ones.
        assert!(lasts(before) >= 179 && lasts(after) <= 180, "{clock_ahead_secs}: {until} from {before}");
    }
}

#[test]
fn a_hub_that_makes_no_key_is_quoted() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    let body = r#"{"policyKey":"secondaryKey","rotatedKeys":[],"errors":[{"id":"d1","errorCode":"EnforceDeviceHISCompliantKey","errorStatus":"no"}]}"#;
    hub.answer_first(ORDER, Canned::Instead(400, "", body));
    let (output, _, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 1);
    assert!(stderr.contains("EnforceDeviceHISCompliantKey: no"), "{stderr}");
    hub.device("d1", |d| assert!(d.tags["keyRenewal"]["lease"].is_null() && d.offer().is_none()));
}

#[test]
fn a_device_that_is_deleted_on_the_way_is_gone() {
    for call in ["GET /devices/d1", "GET /twins/d1", "PATCH", ORDER] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        hub.answer_first(call, Canned::Meanwhile(|state| drop(state.devices.remove("d1"))));
        let (output, json, stderr) = renew_by_service(&hub, &["--key-type", "secondary", "--yes"]);
        assert_eq!(exit(&output), 1, "{call}: {stderr}");
        assert_eq!(json[0]["outcome"].as_str(), Some("gone"), "{call}: {stderr}");
    }
}

#[test]
fn many_devices_share_orders_and_looks() {
    const DEVICES: usize = 20;
    let ids: Vec<&'static str> = (0..DEVICES).map(|n| &*format!("d{n:02}").leak()).collect();
    let hub = ScriptedHub::start(ids.iter().map(|id| (*id, Device::with_agent())));
    let (output, json, stderr) = renew_devices(&hub, &ids, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert!(json.as_array().unwrap().iter().all(|row| row["outcome"] == "renewed"));
    for id in &ids {
        hub.device(id, |d| {
            assert!(d.offer().is_none());
            assert_eq!(d.agent().active, KeySlot::Secondary);
        });
    }
    assert!(hub.count(ORDER) < DEVICES, "{} orders", hub.count(ORDER));
    // The last few may be read one by one.
    assert!(hub.count("GET /twins/") < DEVICES && hub.count("POST /devices/query") > 0);
    assert_eq!((hub.count("GET /devices/"), hub.count("PATCH")), (DEVICES, 3 * DEVICES));
}

#[test]
fn many_devices_are_read_one_by_one_where_the_hub_refuses_queries() {
    let ids = ["d1", "d2", "d3", "d4", "d5"];
    let hub = ScriptedHub::start(ids.map(|id| (id, Device::with_agent())));
    hub.change(|state| state.refuses_queries = true);
    let (output, json, stderr) = renew_devices(&hub, &ids, &["--key-type", "secondary", "--yes"]);
    assert_eq!(exit(&output), 0, "{stderr}");
    assert!(json.as_array().unwrap().iter().all(|row| row["outcome"] == "renewed"));
}

#[test]
fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let hub = ScriptedHub::start([
        ("d1", Device::with_agent()),
        ("d2", Device { is_connected: false, ..Device::with_agent() }),
    ]);
    let flags = ["--key-type", "secondary", "--dry-run"];
    let (output, json, stderr) = renew_devices(&hub, &["d1", "d2"], &flags);
    assert_eq!(exit(&output), 3, "{stderr}");
    assert_eq!((json[0]["action"].as_str(), json[0]["calls"]["registry"].as_u64()), (Some("renew"), Some(2)));
    assert_eq!(json[0]["calls"]["twinUpdates"].as_u64(), Some(3));
    assert_eq!(
        (json[1]["action"].as_str(), json[1]["reason"].as_str()),
        (Some("refuse"), Some("not-connected"))
    );
    assert!(hub.change(|state| state.calls.iter().all(|call| call.starts_with("GET "))));
}

#[test]
fn both_keys_in_turn_take_seven_operations_and_a_challenge_and_leave_no_offer_in_the_twin() {
    for (source, operations, more) in [
        ("service", 7 + 1, &[][..]),
        ("local", 6 + 1, &[]),
        ("service", 7, &["--no-challenge"]),
        ("local", 6, &["--no-challenge"]),
    ] {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        let flags = ["--key-type", "in-turn", "--yes", "--key-source", source];
        let (output, json, stderr) = renew_devices(&hub, &["d1"], &[&flags, more].concat());
        assert_eq!(exit(&output), 0, "{source}: {stderr}");
        let rows: Vec<_> = json.as_array().unwrap().iter().collect();
        let keys: Vec<_> = rows.iter().map(|row| row["keyType"].as_str().unwrap()).collect();
        assert_eq!(keys, ["secondary", "primary"]);
        assert!(rows.iter().all(|row| row["outcome"] == "renewed"), "{json:#}");
        hub.device("d1", |d| {
            assert!(d.offer().is_none() && d.tags["keyRenewal"]["lease"].is_null());
            assert_eq!(d.agent().active, KeySlot::Primary);
            for slot in KeySlot::ALL {
                assert!(inspect(&d.keys[&slot]) == Mark::Valid(Purpose::Device), "{slot} is a new key");
            }
        });
        // Looks for the proof apart: among many devices, one query tells of a hundred.
        let looks = hub.count("GET /twins/");
        let all = hub.change(|state| state.calls.len());
        assert_eq!(
            all - looks,
            operations,
            "{source} {more:?}: {:?}",
            hub.change(|state| state.calls.clone())
        );
    }
}

#[test]
fn the_second_key_is_not_touched_before_the_first_is_proved() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    hub.device("d1", |d| d.agent().manner = Manner::KeepsSilent);
    let flags = ["--key-type", "in-turn", "--yes", "--timeout", "600ms"];
    let (output, json, stderr) = renew_devices(&hub, &["d1"], &flags);
    assert_eq!(exit(&output), 1, "{stderr}");
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["outcome"].as_str(), Some("unanswered"));
    assert_eq!(hub.device("d1", |d| base64(&d.keys[&KeySlot::Primary])), base64(&key(1)));
}

#[test]
fn a_first_offer_whose_second_never_came_is_erased_all_the_same() {
    let hub = ScriptedHub::start([("d1", Device::with_agent())]);
    // The second order is refused for good: the first slot's offer, which the second would have replaced, must go.
    hub.answer_first(ORDER, Canned::Meanwhile(|state| {
        let body = r#"{"policyKey":"primaryKey","rotatedKeys":[],"errors":[{"id":"d1","errorCode":"InvalidPolicyKey"}]}"#;
        state.canned.push_back((ORDER, Canned::Instead(400, "", body)));
    }));
    let (output, json, stderr) = renew_devices(&hub, &["d1"], &["--key-type", "in-turn", "--yes"]);
    assert_eq!(exit(&output), 4, "{stderr}");
    let outcomes = [json[0]["outcome"].as_str(), json[1]["outcome"].as_str()];
    assert_eq!(outcomes, [Some("renewed"), Some("failed")], "{stderr}");
    hub.device("d1", |d| assert!(d.offer().is_none() && d.tags["keyRenewal"]["lease"].is_null()));
}
