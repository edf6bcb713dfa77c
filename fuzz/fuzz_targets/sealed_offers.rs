//! Any bytes as a sealed key: they never open. And a key that was sealed, with one bit changed, never opens either;
//! unchanged, it opens for its own device, slot and rotation only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinkey_contract::sealing::{Binding, SealingKey};
use twinkey_contract::{Identity, KeySlot, RotationId};
use twinkey_sas::Key;

fuzz_target!(|input: (&[u8], &[u8], u16, &str)| {
    let (sealed, key, bit, device_id) = input;
    let sealing_key = SealingKey::from_bytes(&[7; 32]).unwrap();
    let identity = Identity { device_id: "d".into(), module_id: None };
    let rotation: RotationId = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f".parse().unwrap();
    let binding = Binding { identity: &identity, slot: KeySlot::Primary, rotation };
    assert!(sealing_key.unseal(&binding, sealed).is_err());
    let Ok(key) = Key::from_bytes(key) else { return };
    let mut sealed = sealing_key.public().seal(&binding, &key).unwrap();
    if let Ok(opened) = sealing_key.unseal(&binding, &sealed) {
        assert_eq!(opened.expose(), key.expose());
    } else {
        // Keys of a length that no registry has don't go through.
        assert!(!(16..=64).contains(&key.expose().len()));
        return;
    }
    if let Ok(other) = device_id.parse::<Identity>() {
        let foreign = Binding { identity: &other, slot: KeySlot::Primary, rotation };
        assert_eq!(sealing_key.unseal(&foreign, &sealed).is_ok(), other == identity);
    }
    let other_slot = Binding { identity: &identity, slot: KeySlot::Secondary, rotation };
    assert!(sealing_key.unseal(&other_slot, &sealed).is_err());
    let at = usize::from(bit) % (sealed.len() * 8);
    sealed[at / 8] ^= 1 << (at % 8);
    assert!(sealing_key.unseal(&binding, &sealed).is_err());
});
