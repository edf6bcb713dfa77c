//! Any bytes as a twin document: read, opened, taken up by the machine. Nothing panics, no key that works is lost, and
//! the same document again changes nothing. Where the configuration demands authentication, no
//! bytes make an offer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinkey_agent::config;
use twinkey_agent::keyring::{KeyRing, Registration};
use twinkey_agent::twin;
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{Desired, Input, KeySlot, Outcome, Policy, State, UnixSecs, step};
use twinkey_sas::Key;

fuzz_target!(|twin: &[u8]| {
    let registration = Registration {
        host_name: "hub.example".into(),
        identity: Identity { device_id: "d".into(), module_id: None },
        gateway_host_name: None,
    };
    let sealing_key = SealingKey::from_bytes(&[7; 32]).unwrap();
    let key = Key::from_bytes(&[1; 32]).unwrap();
    let mut key_ring = KeyRing::provision(registration, sealing_key, KeySlot::Primary, key);
    let active = key_ring.ring.active_key().unwrap();
    for (allow_unsealed, allow_unauthenticated) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let config =
            config::Rotation { allow_unsealed, allow_unauthenticated, ..config::Rotation::default() };
        let ring = key_ring.ring;
        let (desired, complaint) = twin::read_desired(twin, &mut key_ring, &ring, &config);
        if let (Desired::Offer(offer), false) = (desired, allow_unauthenticated) {
            panic!("an authentication was guessed: {offer:?}");
        }
        assert_eq!(matches!(desired, Desired::Invalid(_)), complaint.is_some());
        if let Some(complaint) = complaint {
            assert!(!complaint.contains("AQEBAQ"));
        }
        let mut state = State::new(key_ring.ring);
        for input in [
            Input::Boot,
            Input::Attempted(Outcome::Accepted { at: UnixSecs(1) }),
            Input::Stored(true),
            Input::Desired(desired),
        ] {
            state = step(&Policy::DEFAULT, state, input, 0).0;
        }
        assert!(state.ring.contains(active));
        // What is kept can be written: every key that the ring names is known.
        key_ring.encode(&state.ring).unwrap();
        let (again, effects) = step(&Policy::DEFAULT, state, Input::Desired(desired), 0);
        assert!(again.ring == state.ring && effects.store.is_none());
    }
});
