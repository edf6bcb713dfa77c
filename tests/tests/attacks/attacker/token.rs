//! Tokens and HMACs, by ring alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use serde_json::Value;

/// The end of the year 2099.
const FAR_FUTURE_UNIX_SECS: u64 = 4_102_444_799;
/// Bytes of a fingerprint.
const FINGERPRINT_LEN: usize = 16;

/// HMAC-SHA256 with a key in base64.
pub(crate) fn sign(key: &str, text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// A key's fingerprint in reports.
pub(crate) fn fingerprint(key: &str) -> String {
    sign(key, "twinkey/fingerprint/v1")
        .iter()
        .take(FINGERPRINT_LEN)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A report's proof, made with `key` over what the report says.
pub(crate) fn proof(key: &str, identity: &str, report: &Value) -> String {
    proof_of("twinkey/proof/v1", key, identity, report)
}

/// The proof over a challenge.
pub(crate) fn fresh_proof(key: &str, identity: &str, report: &Value, nonce: &str) -> String {
    proof_of(&format!("twinkey/fresh-proof/v1\n{nonce}"), key, identity, report)
}

fn proof_of(label: &str, key: &str, identity: &str, report: &Value) -> String {
    let fields = ["contract", "agent", "sealTo", "sequence", "active", "rotation", "status", "reason"];
    let fields = fields.into_iter().chain(["clockOffsetSecs", "behind"]).map(|name| &report[name]);
    let slots = ["primary", "secondary"].into_iter().flat_map(|slot| {
        let held = &report[slot];
        [&held["fingerprint"], &held["provenAt"]]
    });
    let head = [identity, "keyRenewal"].into_iter().map(str::to_owned);
    let lines: Vec<String> = head.chain(fields.chain(slots).map(text_of)).collect();
    STANDARD.encode(sign(key, &format!("{label}\n{}", lines.join("\n"))))
}

/// An offer's `auth`, made with `key`.
pub(crate) fn auth(key: &str, identity: &str, offer: &Value) -> String {
    let slot = |name: &str| match (&offer[name]["sealed"], &offer[name]["key"]) {
        (Value::String(sealed), _) => format!("sealed {sealed}"),
        (_, Value::String(key)) => format!("key {key}"),
        (_, _) => "-".to_owned(),
    };
    let rotation = text_of(&offer["rotation"]);
    let (primary, secondary) = (slot("primary"), slot("secondary"));
    let text = format!("twinkey/offer/v1\n{identity}\nkeyRenewal\n{rotation}\n{primary}\n{secondary}");
    STANDARD.encode(sign(key, &text))
}

/// As proofs have it.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// What a device or module with this key sends as its password.
pub(crate) fn of_identity(host_name: &str, identity: &str, key: &str) -> String {
    let path = identity.replace('/', "/modules/");
    token(&format!("{host_name}/devices/{path}"), key, "")
}

/// What a back end with this policy's key sends.
pub(crate) fn of_policy(host_name: &str, policy: &str, key: &str) -> String {
    token(host_name, key, &format!("&skn={policy}"))
}

fn token(resource: &str, key: &str, policy: &str) -> String {
    let resource = encode(resource);
    let signature = sign(key, &format!("{resource}\n{FAR_FUTURE_UNIX_SECS}"));
    let signature = encode(&STANDARD.encode(signature));
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={FAR_FUTURE_UNIX_SECS}{policy}")
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[test]
fn the_attackers_hmacs_are_those_of_the_contract() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/twin-contract.md")).unwrap();
    let block = |name: &str| -> Value {
        let (_, rest) = page.split_once(&format!("```json {name}\n")).unwrap();
        serde_json::from_str(rest.split_once("```").unwrap().0).unwrap()
    };
    let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    for name in ["offer-sealed", "offer-both"] {
        let offer = &block(name)["keyRenewal"];
        assert_eq!(auth(key, "pump-7", offer), offer["auth"].as_str().unwrap(), "{name}");
    }
    let sealing = block("sealing-example");
    let sealed = &block("offer-sealed")["keyRenewal"]["secondary"]["sealed"];
    let pair = super::hpke::KeyPair::of(sealing["privateKey"].as_str().unwrap());
    assert_eq!(pair.public(), sealing["sealTo"].as_str().unwrap());
    let opened = pair.open(sealing["info"].as_str().unwrap(), sealed.as_str().unwrap());
    let opened = opened.expect("it opens");
    assert_eq!(opened, sealing["key"].as_str().unwrap());
    let report = &block("report")["keyRenewal"];
    assert_eq!(fingerprint(&opened), report["secondary"]["fingerprint"].as_str().unwrap());
    assert_eq!(proof(&opened, "pump-7", report), report["proof"].as_str().unwrap());
    let fresh = block("fresh");
    let nonce = fresh["nonce"].as_str().unwrap();
    assert_eq!(fresh_proof(&opened, "pump-7", report, nonce), fresh["freshProof"].as_str().unwrap());
}
