//! Keys that are no longer needed leave nothing in the heap.
#![allow(unsafe_code, reason = "memory that was given back can't be read otherwise")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../../contract/tests/freed_memory/mod.rs"]
mod freed_memory;

use freed_memory::blocks_that_show;
use twinkey_agent::keyring::{KeyRing, Registration};
use twinkey_agent::store;
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{Candidate, KeySlot, Standing};
use twinkey_sas::Key;

/// More than a node of the standard library's map holds.
const KEYS: u8 = 40;

fn key(number: u8) -> Key {
    // On the stack: what is searched is the heap.
    let bytes: [u8; 32] =
        std::array::from_fn(|place| (place as u8).wrapping_mul(83) ^ number.wrapping_mul(7));
    Key::from_bytes(&bytes).unwrap()
}

/// The bytes of all keys, and their texts.
fn secrets() -> Vec<Vec<u8>> {
    let both = |number| {
        let key = key(number);
        let text = key.expose_base64(&mut [0; 88]).as_bytes().to_vec();
        [key.expose().to_vec(), text]
    };
    (0..KEYS).flat_map(both).collect()
}

fn key_ring() -> KeyRing {
    let registration = Registration {
        host_name: "hub.example".into(),
        identity: Identity { device_id: "gateway".into(), module_id: None },
        gateway_host_name: None,
    };
    KeyRing::provision(registration, SealingKey::generate().unwrap(), KeySlot::Primary, key(0))
}

#[test]
fn the_search_finds_a_key_that_is_not_wiped() {
    assert_eq!(blocks_that_show(secrets(), || drop(key(3).expose().to_vec())), 1);
    assert_eq!(blocks_that_show(secrets(), || drop(Box::new(key(3)))), 0);
}

#[test]
fn keys_that_are_learned_and_forgotten_in_any_order_leave_nothing_behind() {
    let found = blocks_that_show(secrets(), || {
        let mut key_ring = key_ring();
        let names: Vec<_> = (0..KEYS).map(|number| key_ring.learn(key(number)).unwrap()).collect();
        // The same ones again.
        for number in 0..KEYS {
            key_ring.learn(key(number)).unwrap();
        }
        for (place, forgotten) in names.iter().enumerate() {
            if place % 3 > 0 {
                key_ring.forget_unless(|name| name != *forgotten);
            }
        }
        key_ring.forget_unless(|name| name == names[0]);
    });
    assert_eq!(found, 0);
}

#[test]
fn key_rings_that_are_written_and_read_leave_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let found = blocks_that_show(secrets(), || {
        let mut key_ring = key_ring();
        let candidate = key_ring.learn(key(1)).unwrap();
        let mut ring = key_ring.ring;
        ring.slots.secondary.candidate = Some(Candidate { key: candidate, standing: Standing::Trying });
        let mut store = store::open(&path).unwrap();
        for sequence in 1..=3 {
            ring.sequence = sequence;
            store.save(&key_ring, &ring).unwrap();
        }
        assert!(store.load().unwrap().unwrap().key_ring.key(candidate).is_some());
    });
    assert_eq!(found, 0);
}
