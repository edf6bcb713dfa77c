//! What a light device keeps: its keys by slot, the offer that it has taken up, and what it says of both. It follows the
//! twin contract as the agent's machine does, in code of its own, and stands for the device's disk: it outlives every
//! connection.

use twinkey_contract::offer::{Offer, OfferedKey, check_mark};
use twinkey_contract::report::{Reason, Report, SlotReport, Status};
use twinkey_contract::sealing::{Binding, SealingKey, SealingPublicKey};
use twinkey_contract::{CONTRACT_VERSION, Fingerprint, Identity, KeySlot, RotationId};
use twinkey_sas::Key;

/// The version that light devices report.
const AGENT: &str = "light";

/// A key that stands in a slot.
#[derive(Clone, Debug)]
struct Held {
    key: Key,
    /// When the hub accepted it first, in Unix seconds.
    proven_at: Option<u64>,
}

/// An offered key that the hub has not accepted yet.
#[derive(Clone, Debug)]
struct Candidate {
    slot: KeySlot,
    key: Key,
    /// Its trial is over; it is kept as a last resort.
    is_spare: bool,
}

/// The newest rotation that was taken up.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    id: RotationId,
    status: Status,
    reason: Option<Reason>,
}

/// The key ring of one device.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    identity: Identity,
    primary: Option<Held>,
    secondary: Option<Held>,
    active: KeySlot,
    candidates: Vec<Candidate>,
    /// What the last accepted key displaced.
    retired: Option<(KeySlot, Key)>,
    rotation: Option<Rotation>,
    sequence: u64,
}

impl Ring {
    /// The ring of a device that was given its primary key.
    pub(super) fn provisioned(identity: Identity, primary: Key) -> Self {
        Self {
            identity,
            primary: Some(Held { key: primary, proven_at: None }),
            secondary: None,
            active: KeySlot::Primary,
            candidates: Vec::new(),
            retired: None,
            rotation: None,
            sequence: 0,
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Every key that could still connect, in the order in which they are tried.
    pub(super) fn keys(&self) -> Vec<Key> {
        let held = |slot| self.held(slot).as_ref().map(|held| held.key.clone());
        let candidates = |is_spare| {
            let chosen = self.candidates.iter().filter(move |candidate| candidate.is_spare == is_spare);
            chosen.map(|candidate| candidate.key.clone())
        };
        let retired = self.retired.iter().map(|(_, key)| key.clone());
        let first = held(self.active).into_iter().chain(candidates(false)).chain(held(self.active.other()));
        first.chain(candidates(true)).chain(retired).collect()
    }

    /// The key that was accepted last.
    pub(super) fn active_key(&self) -> Option<&Key> {
        self.held(self.active).as_ref().map(|held| &held.key)
    }

    /// The key whose trial goes on.
    pub(super) fn on_trial(&self) -> Option<Key> {
        let trying = |candidate: &&Candidate| !candidate.is_spare;
        // The key in use is replaced last.
        let other = self.candidates.iter().filter(trying).find(|candidate| candidate.slot != self.active);
        other.or(self.candidates.iter().find(trying)).map(|candidate| candidate.key.clone())
    }

    /// Whether the twin offers something that was not taken up yet, and as which rotation.
    pub(super) fn is_news(&self, twin: &[u8]) -> Option<RotationId> {
        let offered = match Offer::read(twin) {
            Ok(offer) => offer?.rotation,
            Err(error) => error.rotation?,
        };
        self.rotation.is_none_or(|known| known.id != offered).then_some(offered)
    }

    /// Takes up what the twin offers. The same document again changes nothing, and an offer that is gone takes no key
    /// away.
    pub(super) fn take_up(&mut self, twin: &[u8], sealing: &SealingKey) {
        if self.is_news(twin).is_none() {
            return;
        }
        match Offer::read(twin) {
            Ok(None) => {}
            Ok(Some(offer)) => match self.open(&offer, sealing) {
                Ok(_) if !self.is_authentic(&offer) => {
                    self.note(offer.rotation, Status::Invalid, Some(Reason::Unauthenticated));
                }
                Ok(keys) => self.take_keys(offer.rotation, keys),
                Err(reason) => self.note(offer.rotation, Status::Invalid, Some(reason)),
            },
            Err(error) => {
                if let Some(rotation) = error.rotation {
                    self.note(rotation, Status::Invalid, Some(error.code()));
                }
            }
        }
    }

    fn is_authentic(&self, offer: &Offer) -> bool {
        if offer.auth.is_none() {
            // What a test writes by hand.
            return true;
        }
        let mut held = KeySlot::ALL.into_iter().filter_map(|slot| self.held(slot).as_ref());
        held.any(|held| offer.is_authentic(&held.key, &self.identity))
    }

    fn open(&self, offer: &Offer, sealing: &SealingKey) -> Result<Vec<(KeySlot, Key)>, Reason> {
        let mut keys = Vec::new();
        for slot in KeySlot::ALL {
            let key = match offer.slot(slot) {
                None => continue,
                Some(OfferedKey::Plain(key)) => key.clone(),
                Some(OfferedKey::Sealed(sealed)) => {
                    let binding = Binding { identity: &self.identity, slot, rotation: offer.rotation };
                    sealing.unseal(&binding, sealed).map_err(|_| Reason::CannotUnseal)?
                }
            };
            check_mark(slot, &key).map_err(|kind| kind.code())?;
            keys.push((slot, key));
        }
        Ok(keys)
    }

    fn take_keys(&mut self, rotation: RotationId, keys: Vec<(KeySlot, Key)>) {
        let holds =
            |ring: &Self, slot, key: &Key| ring.held(slot).as_ref().is_some_and(|held| held.key == *key);
        // Slots were swapped in the registry, or the first key came under the wrong label.
        if keys.iter().any(|(slot, key)| holds(self, slot.other(), key) && !holds(self, *slot, key)) {
            std::mem::swap(&mut self.primary, &mut self.secondary);
            self.active = self.active.other();
        }
        let names_key_in_use =
            keys.iter().any(|(slot, key)| *slot == self.active && self.active_key() == Some(key));
        for candidate in &mut self.candidates {
            candidate.is_spare = true;
        }
        for (slot, key) in keys {
            self.candidates.retain(|candidate| candidate.slot != slot || candidate.key != key);
            if !holds(self, slot, &key) || (slot != self.active && !names_key_in_use) {
                self.candidates.retain(|candidate| candidate.slot != slot);
                self.candidates.push(Candidate { slot, key, is_spare: false });
            }
        }
        let status = if self.on_trial().is_some() { Status::Trying } else { Status::Committed };
        self.note(rotation, status, None);
    }

    /// The hub has accepted `key` at `now`, in Unix seconds.
    pub(super) fn accepted(&mut self, key: &Key, now: u64) {
        let tried = self.candidates.iter().find(|candidate| candidate.key == *key);
        let held = || {
            let holds = |slot: &KeySlot| self.held(*slot).as_ref().is_some_and(|held| held.key == *key);
            [self.active, self.active.other()].into_iter().find(holds)
        };
        let retired = || self.retired.as_ref().filter(|(_, known)| known == key).map(|(slot, _)| *slot);
        let Some(slot) = tried.map(|candidate| candidate.slot).or_else(held).or_else(retired) else {
            return;
        };
        let was_tried = tried.is_some();
        if !was_tried
            && slot == self.active
            && self.held(slot).as_ref().is_some_and(|it| it.proven_at.is_some())
        {
            return;
        }
        let displaced = self.held_mut(slot).replace(Held { key: key.clone(), proven_at: Some(now) });
        match displaced.filter(|displaced| displaced.key != *key) {
            Some(displaced) => self.retired = Some((slot, displaced.key)),
            None => self.retired = self.retired.take().filter(|(_, known)| known != key),
        }
        self.active = slot;
        self.candidates.retain(|candidate| candidate.key != *key);
        self.sequence += 1;
        if was_tried && self.on_trial().is_none() {
            self.settle(Status::Committed, None);
        }
    }

    /// What is offered now is not taken: the old key stays in use, the new one is a last resort.
    pub(super) fn reject(&mut self) {
        for candidate in &mut self.candidates {
            candidate.is_spare = true;
        }
        self.settle(Status::Rejected, Some(Reason::Refused));
    }

    fn settle(&mut self, status: Status, reason: Option<Reason>) {
        if let Some(id) = self.rotation.map(|rotation| rotation.id) {
            self.note(id, status, reason);
        }
    }

    fn note(&mut self, id: RotationId, status: Status, reason: Option<Reason>) {
        self.rotation = Some(Rotation { id, status, reason });
        self.sequence += 1;
    }

    /// What there is to report. It differs from the one before whenever the sequence does.
    pub(super) fn report(&self, seal_to: SealingPublicKey) -> Report {
        let slot_report = |held: &Option<Held>| {
            let held = held.as_ref()?;
            Some(SlotReport { fingerprint: Fingerprint::of(&held.key), proven_at: held.proven_at })
        };
        let proven = self.held(self.active).as_ref().filter(|held| held.proven_at.is_some());
        let mut report = Report {
            contract: CONTRACT_VERSION,
            agent: AGENT.to_owned(),
            seal_to: Some(seal_to),
            sequence: self.sequence,
            active: proven.map(|_| self.active),
            rotation: self.rotation.map(|rotation| rotation.id),
            status: self.rotation.map_or(Status::Idle, |rotation| rotation.status),
            reason: self.rotation.and_then(|rotation| rotation.reason),
            clock_offset_secs: None,
            behind: None,
            primary: slot_report(&self.primary),
            secondary: slot_report(&self.secondary),
            proof: None,
        };
        if let Some(held) = proven {
            report.prove(&held.key, &self.identity);
        }
        report
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    fn held(&self, slot: KeySlot) -> &Option<Held> {
        match slot {
            KeySlot::Primary => &self.primary,
            KeySlot::Secondary => &self.secondary,
        }
    }

    fn held_mut(&mut self, slot: KeySlot) -> &mut Option<Held> {
        match slot {
            KeySlot::Primary => &mut self.primary,
            KeySlot::Secondary => &mut self.secondary,
        }
    }
}
