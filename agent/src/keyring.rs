//! The key ring: the machine's [`Ring`] together with the bytes of the keys that it names, the device they belong
//! to and the key that offers are sealed to. One file holds all of it, so that it changes all at once.

mod codec;

use std::collections::BTreeMap;
use std::fmt;

use twinkey_contract::sealing::SealingKey;
use twinkey_contract::{Fingerprint, Identity};
use twinkey_rotation::{KeyName, KeySlot, Ring};
use twinkey_sas::Key;

pub use codec::DamagedKeyRing;
pub(crate) use codec::{FILE_LEN_MAX, named_keys};

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
    keys: BTreeMap<KeyName, Key>,
}

impl KeyRing {
    /// The key ring of a device that has one key.
    pub fn provision(registration: Registration, sealing_key: SealingKey, slot: KeySlot, key: Key) -> Self {
        let name = name_of(&key);
        Self {
            registration,
            sealing_key,
            ring: Ring::provisioned(slot, name, None),
            keys: BTreeMap::from([(name, key)]),
        }
    }

    /// The bytes of the key called `name`.
    pub fn key(&self, name: KeyName) -> Option<&Key> {
        self.keys.get(&name)
    }

    /// Adds a key's bytes, under the name that it gives back. Nothing uses it before the ring names it.
    pub fn learn(&mut self, key: Key) -> KeyName {
        let name = name_of(&key);
        self.keys.insert(name, key);
        name
    }

    /// Wipes the keys that `is_needed` does not want.
    pub fn forget_unless(&mut self, is_needed: impl Fn(KeyName) -> bool) {
        self.keys.retain(|name, _| is_needed(*name));
    }
}

/// The name of a key is its fingerprint.
pub fn name_of(key: &Key) -> KeyName {
    KeyName(Fingerprint::of(key).0)
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("registration", &self.registration)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}
