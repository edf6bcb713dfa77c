//! Keys: which the hub accepts, since when and until when, and which are surely on disk.

use super::*;

impl Inner {
    pub(crate) fn mint(&mut self) -> KeyId {
        let key = Key::from_bytes(&self.rng.bytes()).unwrap();
        let mut buffer = [0; 88];
        let base64 = key.expose_base64(&mut buffer).to_owned();
        let hex = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        self.keys.push(KnownKey {
            name: name_of(&key),
            verifier: Verifier::new(&key, None),
            base64,
            hex,
            key,
            from_ms: u64::MAX,
            until_ms: u64::MAX,
            has_come_in: false,
            refused_ms: Vec::new(),
            accepted_ms: Vec::new(),
        });
        self.keys.len() - 1
    }

    pub(crate) fn name(&self, key: KeyId) -> KeyName {
        self.keys[key].name
    }

    pub(super) fn key_named(&self, name: KeyName) -> Option<KeyId> {
        self.keys.iter().position(|known| known.name == name)
    }

    pub(super) fn accepts(&self, key: KeyId) -> bool {
        let known = &self.keys[key];
        (known.from_ms..known.until_ms).contains(&self.now_ms())
    }

    pub(crate) fn is_registered(&self, key: KeyId) -> bool {
        self.slots.contains(&key)
    }

    /// The registry's slot gets another key. It takes its time to reach the whole hub, and so does the end of the
    /// key that stood there.
    pub(crate) fn register(&mut self, slot: usize, key: KeyId, is_at_once: bool) {
        let now = self.now_ms();
        let old = std::mem::replace(&mut self.slots[slot], key);
        let (propagation_ms, linger_ms) = (self.traits.propagation_ms, self.traits.linger_ms);
        let propagation_ms =
            if is_at_once || self.rng.per_mille(400) { 0 } else { self.rng.range(0, propagation_ms) };
        let linger_ms = if is_at_once { 0 } else { self.rng.range(0, linger_ms) };
        let is_accepted = self.accepts(key);
        let new = &mut self.keys[key];
        new.until_ms = u64::MAX;
        if !is_accepted {
            new.from_ms = now + propagation_ms;
        }
        let name = new.name;
        self.log(|| format!("registry: slot {slot} gets {name}, accepted in {propagation_ms} ms"));
        if !self.is_registered(old) {
            self.keys[old].until_ms = now + linger_ms;
            let is_live =
                self.live.is_some_and(|live| self.connections.get(&live).is_some_and(|c| c.key == Some(old)));
            if is_live && self.traits.drops_on_key_change {
                self.tally.count(Seen::DroppedOnKeyChange);
                let live = self.lose_live();
                self.log(|| "hub: drops the live connection, whose key was changed".to_owned());
                self.close(live);
            }
        }
        self.tally.count(Seen::KeyChanged);
        self.new_stretch();
    }

    pub(crate) fn swap_slots(&mut self) {
        self.slots.swap(0, 1);
        self.tally.count(Seen::SlotsSwapped);
        self.log(|| "registry: the slots change places".to_owned());
    }

    /// Whether every image of the disk has this key.
    pub(super) fn is_surely_on_disk(&self, key: KeyId) -> bool {
        let name = self.name(key);
        self.facts.iter().all(|facts| facts.has(name))
    }

    /// Whether it is held in all of them, so that it is a way out for the agent whatever is offered.
    pub(crate) fn is_surely_held(&self, key: KeyId) -> bool {
        let name = self.name(key);
        self.facts.iter().all(|facts| facts.holds(name))
    }

    /// A person brings a key. One that the registry has no more need not be kept for it: it may have been accepted
    /// right before a power cut, so that nobody remembers, and stand where the new one goes.
    pub(crate) fn release_dead_key(&mut self) {
        if self.accepted_last.is_some_and(|last| !self.slots.contains(&last)) {
            (self.accepted_last, self.accepted_before) = (None, None);
        }
    }

    /// Whether every image of the disk has a key of the registry's.
    pub(crate) fn has_way_out(&self) -> bool {
        let names = self.slots.map(|key| self.name(key));
        !self.facts.is_empty() && self.facts.iter().all(|facts| names.iter().any(|name| facts.has(*name)))
    }
}
