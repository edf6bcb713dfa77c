//! What the hub's answers and calls hold of keys leaves nothing in the heap. Buffers of the HTTP
//! client are another matter: these tests begin and end where its work ends and begins.
#![allow(unsafe_code, reason = "memory that was given back can't be read otherwise")]

#[path = "../../../contract/tests/freed_memory/mod.rs"]
mod freed_memory;

use serde_json::{Value, json};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::wiped::Wiped;
use twinkey_contract::{KeySlot, RotationId};
use twinkey_sas::Key;

use super::body::{self, Growing};
use super::{Device, Regenerated, Twin};
use freed_memory::blocks_that_show;

const KEYS: [&str; 2] =
    ["ABMmOUxfcoWYq77R5PcKHTBDVml8j6K1yNvuARQnOk0=", "/ezbyrmodmVUQzIhEP/u3cy7qpmId2ZVRDMiEQDv3s0="];

fn key(place: usize) -> Key {
    Key::from_base64(KEYS[place]).unwrap()
}

fn secrets() -> Vec<Vec<u8>> {
    let both = |place| [key(place).expose().to_vec(), KEYS[place].as_bytes().to_vec()];
    [both(0), both(1)].concat()
}

fn device(number: usize) -> Value {
    let keys = json!({"primaryKey": KEYS[0], "secondaryKey": KEYS[1]});
    json!({"deviceId": format!("d{number}"), "etag": "x", "authentication": {"type": "sas", "symmetricKey": keys}})
}

/// An answer's text, made before anybody watches.
fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

#[test]
fn an_answer_that_comes_in_pieces_leaves_nothing_behind() {
    let whole = text(&json!((0..200).map(device).collect::<Vec<_>>()));
    let found = blocks_that_show(secrets(), || {
        let mut body = Growing::default();
        whole.chunks(1000).for_each(|piece| body.push(piece));
        assert_eq!(*body.whole(), whole);
    });
    assert_eq!(found, 0);
}

#[test]
fn lists_of_devices_and_new_keys_leave_nothing_behind() {
    let list = text(&json!((0..100).map(device).collect::<Vec<_>>()));
    let made = (0..100)
        .map(|number| json!({"id": format!("d{number}"), "primaryKey": KEYS[0], "secondaryKey": KEYS[1]}));
    let made = text(&json!({"rotatedKeys": made.collect::<Vec<_>>(), "errors": []}));
    let found = blocks_that_show(secrets(), || {
        let devices: Vec<Device> = serde_json::from_slice(&list).unwrap();
        assert!(devices.iter().all(|device| device.keys().is_some()));
        let regenerated: Regenerated = serde_json::from_slice(&made).unwrap();
        assert_eq!(regenerated.rotated_keys.len(), 100);
    });
    assert_eq!(found, 0);
}

#[test]
fn twins_with_a_plain_offer_leave_nothing_behind_whether_read_one_by_one_or_by_a_query() {
    let offer = json!({"keyRenewal": {"rotation": "6fa459ea-ee8a-4ca4-894e-db77e160355e",
        "primary": {"key": KEYS[0]}, "secondary": {"key": KEYS[1]}}});
    let twin = json!({"deviceId": "d", "etag": "x", "properties": {"desired": offer, "reported": {}}});
    let (one, page) = (text(&twin), text(&json!(vec![twin; 30])));
    let found = blocks_that_show(secrets(), || {
        let twin: Twin = serde_json::from_slice(&one).unwrap();
        assert!(twin.offer().unwrap().is_some());
        let page: Vec<Value> = serde_json::from_slice(&page).unwrap();
        let twins = page.into_iter().map(|row| serde_json::from_value::<Twin>(row).unwrap());
        assert_eq!(twins.collect::<Vec<_>>().len(), 30);
    });
    assert_eq!(found, 0);
}

#[test]
fn bodies_of_calls_leave_nothing_behind() {
    let mut identity: Device = serde_json::from_value(device(1)).unwrap();
    let rotation = RotationId(uuid::Uuid::from_u128(7));
    let desired =
        Offer { rotation, primary: Some(OfferedKey::Plain(key(0))), secondary: None, auth: None }.to_patch();
    let found = blocks_that_show(secrets(), || {
        let swapped = identity.keys().unwrap().swapped();
        identity.replace_keys(&swapped);
        assert_eq!(identity.keys().unwrap().of(KeySlot::Primary), &key(1));
        drop(body::sendable(body::json(&identity).unwrap()));
        let patch = Wiped::from(json!({"properties": {"desired": Wiped::from(desired)}}));
        drop(body::sendable(body::json(&patch).unwrap()));
    });
    assert_eq!(found, 0);
}
