//! Any bytes as a key-ring file, as they are and with the checksum that belongs to them. What is read is written and
//! read again as the same, and a machine can run from it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use twinkey_agent::keyring::KeyRing;
use twinkey_rotation::{Input, Outcome, Policy, State, UnixSecs, step};

fn check(file: &[u8]) {
    let Ok(key_ring) = KeyRing::decode(file) else { return };
    let again = KeyRing::decode(&key_ring.encode(&key_ring.ring).unwrap()).unwrap();
    assert!(again.ring == key_ring.ring && again.registration == key_ring.registration);
    let mut state = State::new(key_ring.ring);
    for input in [
        Input::Boot,
        Input::Attempted(Outcome::Refused),
        Input::Attempted(Outcome::Accepted { at: UnixSecs(1) }),
        Input::Stored(true),
    ] {
        state = step(&Policy::DEFAULT, state, input, 0).0;
        key_ring.encode(&state.ring).unwrap();
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let covered = [b"1\n", bytes].concat();
    let digest: String = Sha256::digest(&covered).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = format!("twinkey-key-ring 1 {digest}\n").into_bytes();
    file.extend_from_slice(bytes);
    check(&file);
});
