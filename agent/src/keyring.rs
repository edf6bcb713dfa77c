//! The key ring: the machine's [`Ring`] together with the bytes of the keys that it names, the device they belong
//! to and the key that offers are sealed to. One file holds all of it, so that it changes all at once.

mod codec;
mod keys;

use std::fmt;

use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{KeyName, KeySlot, Ring};
use twinkey_sas::Key;

pub use codec::DamagedKeyRing;
pub(crate) use codec::{FILE_LEN_MAX, named_keys};
use keys::Keys;
pub use keys::{NameTaken, name_of};

/// The hub that a device belongs to, and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The hub's host name, as tokens and user names carry it.
    pub host_name: String,
    /// Device, or device and module.
    pub identity: Identity,
    /// The host to connect to in place of the hub, where a gateway stands between.
    pub gateway_host_name: Option<String>,
}

/// Everything that the agent must not lose.
pub struct KeyRing {
    /// Whose keys these are.
    pub registration: Registration,
    /// Opens sealed offers.
    pub sealing_key: SealingKey,
    /// Which key is what.
    pub ring: Ring,
    keys: Keys,
}

impl KeyRing {
    /// The key ring of a device that has one key.
    pub fn provision(registration: Registration, sealing_key: SealingKey, slot: KeySlot, key: Key) -> Self {
        let (name, keys) = Keys::of_one(key);
        Self { registration, sealing_key, ring: Ring::provisioned(slot, name, None), keys }
    }

    /// The bytes of the key called `name`.
    pub fn key(&self, name: KeyName) -> Option<&Key> {
        self.keys.get(name)
    }

    /// Adds a key's bytes, under the name that it gives back. Nothing uses it before the ring names it.
    ///
    /// # Errors
    /// [`NameTaken`]; the key that has the name stays.
    pub fn learn(&mut self, key: Key) -> Result<KeyName, NameTaken> {
        self.keys.learn(key)
    }

    /// Wipes the keys that `is_needed` does not want.
    pub fn forget_unless(&mut self, is_needed: impl Fn(KeyName) -> bool) {
        self.keys.forget_unless(is_needed);
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("registration", &self.registration)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, twin};

    /// What somebody would have to find by trying: a key whose fingerprint is that of the key in
    /// use.
    #[test]
    fn an_offered_key_that_has_the_name_of_the_key_in_use_is_malformed_and_overwrites_nothing() {
        const OFFERED: &str = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";
        let registration = Registration {
            host_name: "hub.example".into(),
            identity: Identity { device_id: "gateway".into(), module_id: None },
            gateway_host_name: None,
        };
        let offered = Key::from_base64(OFFERED).unwrap();
        let in_use = Key::from_bytes(&[7; 32]).unwrap();
        let name = name_of(&offered);
        let sealing_key = SealingKey::generate().unwrap();
        let mut key_ring = KeyRing {
            registration,
            sealing_key,
            ring: Ring::provisioned(KeySlot::Primary, name, None),
            keys: Keys::default(),
        };
        key_ring.keys.learn_as(name, in_use.clone()).unwrap();
        let offer = format!(
            r#"{{"desired": {{"keyRenewal": {{"rotation": "6fa459ea-ee8a-4ca4-894e-db77e160355e", "secondary": {{"key": "{OFFERED}"}}}}}}, "reported": {{}}}}"#
        );
        let by_hand = config::Rotation {
            allow_unsealed: true,
            allow_unauthenticated: true,
            ..config::Rotation::default()
        };
        let ring = key_ring.ring;
        let (desired, complaint) = twin::read_desired(offer.as_bytes(), &mut key_ring, &ring, &by_hand);
        let twinkey_rotation::Desired::Invalid(invalid) = desired else { panic!("{desired:?}") };
        assert_eq!(invalid.reason, twinkey_rotation::Reason::Malformed);
        assert!(invalid.rotation.is_some());
        let complaint = complaint.unwrap();
        assert!(complaint.contains("same fingerprint") && !complaint.contains(&OFFERED[..8]), "{complaint}");
        assert_eq!(key_ring.key(name), Some(&in_use));
    }
}
