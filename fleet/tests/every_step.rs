//! Every answer that a hub, or something in its place, can give at every step of a renewal: no device is lost, and what is left
//! half done is finished by a second run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod scripted_hub;

use std::process::Output;

use scripted_hub::{Canned, Device, ScriptedHub, base64};
use serde_json::Value;
use twinkey_contract::KeySlot;

/// A step: its call, and how many such calls come before it.
type Step = (&'static str, usize);

/// The steps of a renewal with a key that the hub makes.
const STEPS: [(&str, Step); 8] = [
    ("reading the identity", ("GET /devices/d1", 0)),
    ("reading the twin", ("GET /twins/d1", 0)),
    ("taking the lease", ("PATCH /twins/d1", 0)),
    ("challenging the device", ("POST /twins/d1/methods", 0)),
    ("ordering the key", ("POST /devices/keys/regenerate", 0)),
    ("offering the key", ("PATCH /twins/d1", 1)),
    ("looking for the proof", ("GET /twins/d1", 1)),
    ("erasing the offer", ("PATCH /twins/d1", 2)),
];

/// What is answered in the hub's place, or after it has done what was asked, and the exit codes that this may lead to.
fn answers() -> Vec<(&'static str, Canned, &'static [i32])> {
    let coded = r#"{"Message":"ErrorCode:Something;no","ExceptionMessage":"Tracking ID:1"}"#;
    vec![
        ("400", Canned::Instead(400, "", coded), &[1]),
        ("401", Canned::Instead(401, "", coded), &[1]),
        ("403", Canned::Instead(403, "", coded), &[1]),
        ("404", Canned::Instead(404, "", coded), &[1]),
        ("409", Canned::Instead(409, "", coded), &[1]),
        // Looked at again, as somebody else's change is.
        ("412", Canned::Instead(412, "", coded), &[0, 1]),
        ("429", Canned::Instead(429, "retry-after: 1\r\n", coded), &[0]),
        ("429 for an hour", Canned::Instead(429, "retry-after: 3600\r\n", coded), &[0, 1]),
        ("500", Canned::Instead(500, "", coded), &[0, 1]),
        ("503 after the deed", Canned::Status(503), &[0, 1]),
        ("a web page", Canned::Instead(403, "content-type: text/html\r\n", "<html>blocked</html>"), &[1]),
        (
            "a web page that says 200",
            Canned::Instead(200, "content-type: text/html\r\n", "<html>log in</html>"),
            &[0, 1],
        ),
        ("a body that is cut", Canned::CutAfterwards, &[0, 1]),
    ]
}

fn renew(hub: &ScriptedHub) -> (Output, Value, String) {
    let args =
        ["device-identity", "renew-key", "-d", "d1", "--key-type", "secondary", "--yes", "--timeout", "5s"];
    let output = hub.run(&[&args[..], &["--output", "json"]].concat());
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_str(&stdout).unwrap_or_default();
    let said = format!("{stdout}{stderr}");
    (output, json, said)
}

/// The device can come back: the hub knows a key that it holds.
fn is_alive(hub: &ScriptedHub) -> bool {
    hub.device("d1", |device| {
        let known: Vec<String> = device.keys.values().map(base64).collect();
        device.agent().held.values().any(|key| known.contains(&base64(key)))
    })
}

fn try_every_answer((name, (call, earlier)): (&str, Step)) {
    for (what, answer, exits) in answers() {
        let hub = ScriptedHub::start([("d1", Device::with_agent())]);
        for _ in 0..earlier {
            hub.answer_first(call, Canned::Status(200));
        }
        hub.answer_first(call, answer);
        let (output, json, said) = renew(&hub);
        let exit = output.status.code().unwrap();
        let context = format!("{what} at {name}: exit {exit}\n{json:#}\n{said}");
        // Nobody is there to answer, as far as the hub knows.
        let is_unanswered = name == "challenging the device" && what == "404" && exit == 3;
        assert!(exits.contains(&exit) || is_unanswered, "{context}");
        assert!(is_alive(&hub), "{context}");
        assert!(hub.change(|state| state.canned.is_empty()), "the answer was not asked for: {context}");
        if exit != 0 {
            let outcome = json[0]["outcome"].as_str();
            assert!(matches!(outcome, Some("failed" | "gone" | "unanswered" | "refused")), "{context}");
            let (output, json, said) = renew(&hub);
            // The first run may have got through, but for the last answer.
            let is_through = json[0]["reason"] == "slot-in-use";
            assert!(
                output.status.success() || is_through,
                "the second run after {context}\n{json:#}\n{said}"
            );
        }
        hub.device("d1", |device| {
            assert!(device.offer().is_none(), "an offer is left after {context}");
            assert!(device.tags["keyRenewal"]["lease"].is_null(), "a lease is left after {context}");
            let registry = base64(&device.keys[&KeySlot::Secondary]);
            let agent = device.agent();
            assert_eq!(agent.active, KeySlot::Secondary, "{context}");
            assert_eq!(base64(&agent.held[&KeySlot::Secondary]), registry, "{context}");
        });
    }
}

#[test]
fn reading_the_identity_may_fail_in_every_way() {
    try_every_answer(STEPS[0]);
}

#[test]
fn reading_the_twin_may_fail_in_every_way() {
    try_every_answer(STEPS[1]);
}

#[test]
fn taking_the_lease_may_fail_in_every_way() {
    try_every_answer(STEPS[2]);
}

#[test]
fn challenging_the_device_may_fail_in_every_way() {
    try_every_answer(STEPS[3]);
}

#[test]
fn ordering_the_key_may_fail_in_every_way() {
    try_every_answer(STEPS[4]);
}

#[test]
fn offering_the_key_may_fail_in_every_way() {
    try_every_answer(STEPS[5]);
}

#[test]
fn looking_for_the_proof_may_fail_in_every_way() {
    try_every_answer(STEPS[6]);
}

#[test]
fn erasing_the_offer_may_fail_in_every_way() {
    try_every_answer(STEPS[7]);
}
