//! The bytes of keys, by name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use twinkey_contract::Fingerprint;
use twinkey_rotation::KeyName;
use twinkey_sas::Key;

/// Keys by their names. Each key's bytes lie in a box of their own, which wipes them when it is
/// dropped: the map moves its entries about when it grows and shrinks, and what it moved from would
/// keep a copy.
#[derive(Default)]
pub(super) struct Keys(BTreeMap<KeyName, Box<Key>>);

impl Keys {
    /// One key, and its name.
    pub(super) fn of_one(key: Key) -> (KeyName, Self) {
        let name = name_of(&key);
        (name, Self(BTreeMap::from([(name, Box::new(key))])))
    }

    pub(super) fn get(&self, name: KeyName) -> Option<&Key> {
        self.0.get(&name).map(Box::as_ref)
    }

    pub(super) fn learn(&mut self, key: Key) -> Result<KeyName, NameTaken> {
        self.learn_as(name_of(&key), key)
    }

    /// Bytes never overwrite bytes: the key that has the name may be the only one that works.
    pub(super) fn learn_as(&mut self, name: KeyName, key: Key) -> Result<KeyName, NameTaken> {
        match self.0.entry(name) {
            Entry::Vacant(place) => {
                place.insert(Box::new(key));
                Ok(name)
            }
            Entry::Occupied(known) if **known.get() == key => Ok(name),
            Entry::Occupied(_) => Err(NameTaken { name }),
        }
    }

    pub(super) fn forget_unless(&mut self, is_needed: impl Fn(KeyName) -> bool) {
        self.0.retain(|name, _| is_needed(*name));
    }
}

/// The name of a key is its fingerprint.
pub fn name_of(key: &Key) -> KeyName {
    KeyName(Fingerprint::of(key).0)
}

/// Another key has the name already. Chance does not bring that about; somebody has looked for such
/// a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is another key with the same fingerprint {name} as one that is known, and was not taken: have the hub make a new key"
)]
pub struct NameTaken {
    /// The name of both.
    pub name: KeyName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_never_overwrite_bytes() {
        let [known, other] = [1, 2].map(|byte| Key::from_bytes(&[byte; 32]).unwrap());
        let (name, mut keys) = Keys::of_one(known.clone());
        assert_eq!(keys.learn_as(name, other.clone()), Err(NameTaken { name }));
        assert_eq!(keys.get(name), Some(&known));
        // The same key again is no news.
        assert_eq!(keys.learn(known), Ok(name));
        // The name is free again once its key is forgotten.
        keys.forget_unless(|_| false);
        assert_eq!(keys.learn_as(name, other.clone()), Ok(name));
        assert_eq!(keys.get(name), Some(&other));
    }
}
