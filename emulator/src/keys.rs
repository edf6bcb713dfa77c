//! Symmetric keys: what a device, a module or a policy signs its tokens with.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::clock::Moment;

/// Shortest and longest key of an identity in bytes (the Java SDK's check of what the registry accepts).
const KEY_LEN_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// Base64 with or without padding and with stray bits in the last character: the Node SDK's own tests use such keys.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A symmetric key. Its `Debug` says nothing, and its memory is wiped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Decodes base64 of any length: the layer that verifies signatures doesn't judge lengths.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        LENIENT.decode(text).ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// Decodes a key for the registry, which wants base64 of 16 to 64 bytes.
    pub(crate) fn decode_for_registry(text: &str) -> Option<Self> {
        Self::decode(text).filter(|key| KEY_LEN_BYTES.contains(&key.0.len()))
    }

    pub(crate) fn encode(&self) -> String {
        STANDARD.encode(&*self.0)
    }

    /// A new identifiable key, as the service makes them: 32 bytes whose base64 carries the signature `AIoT`, with
    /// a checksum in the last four (microsoft/security-utilities, `AzureIotDeviceIdentifiableKey`).
    pub(crate) fn generate(purpose: Purpose) -> Result<Self, getrandom::Error> {
        let mut key = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut *key)?;
        Ok(Self::identifiable(*key, purpose))
    }

    fn identifiable(mut key: [u8; 32], purpose: Purpose) -> Self {
        // `AIoT` at base64 characters 33 to 36 lies across bytes 24 to 27: two free bits, then 24 fixed ones, then
        // two zero bits, which keep the character after the signature within [A-P].
        key[24] &= 0xfc;
        key[25] = 0x02;
        key[26] = 0x28;
        key[27] = 0x4c;
        let (body, checksum) = key.split_at_mut(28);
        checksum.copy_from_slice(&marvin32(body, purpose.seed()).to_le_bytes());
        let identifiable = Self(Zeroizing::new(key.to_vec()));
        zeroize::Zeroize::zeroize(&mut key);
        identifiable
    }

    /// The key of a device of an enrolment group: HMAC-SHA256 of the registration id under the group's key (DPS
    /// documentation, "Symmetric key attestation").
    pub(crate) fn derive(&self, registration_id: &[u8]) -> Self {
        // HMAC takes keys of every length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return self.clone();
        };
        mac.update(registration_id);
        Self(Zeroizing::new(mac.finalize().into_bytes().to_vec()))
    }

    /// Whether `signature` is HMAC-SHA256 of `message` under this key, compared in constant time.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return false;
        };
        mac.update(message);
        mac.verify_slice(signature).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([elided])")
    }
}

/// A key as base64, for the state on disk alone: nothing else may be written with keys in it.
pub(crate) mod key_text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use zeroize::Zeroizing;

    use super::Key;

    pub(crate) fn serialize<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(key.encode()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Key::decode(&text).ok_or_else(|| D::Error::custom("no base64"))
    }
}

/// What a service-made key is for; it chooses the seed of the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    HubPolicy,
    Device,
    /// A group's key at the provisioning service.
    Provisioning,
}

impl Purpose {
    /// Seeds from microsoft/security-utilities: `IoTHub00`, `Device00` and `DpsKey00` in ASCII.
    fn seed(self) -> u64 {
        match self {
            Self::HubPolicy => 0x496f_5448_7562_3030,
            Self::Device => 0x4465_7669_6365_3030,
            Self::Provisioning => 0x4470_734b_6579_3030,
        }
    }
}

/// Marvin32, Microsoft's keyed checksum: 32 bits over `data`, whose length here is a multiple of four.
fn marvin32(data: &[u8], seed: u64) -> u32 {
    /// Marks the end of the data: the padding of an empty tail.
    const END: u32 = 0x80;
    let mut low = seed as u32;
    let mut high = (seed >> 32) as u32;
    let words =
        data.chunks_exact(4).map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    for word in words.chain([END, 0]) {
        low = low.wrapping_add(word);
        high ^= low;
        low = low.rotate_left(20).wrapping_add(high);
        high = high.rotate_left(9) ^ low;
        low = low.rotate_left(27).wrapping_add(high);
        high = high.rotate_left(19);
    }
    low ^ high
}

/// The two places of a key in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum KeySlot {
    Primary,
    Secondary,
}

/// Both keys of an identity, and since when CONNECT knows them.
#[derive(Debug, Clone)]
pub(crate) struct SymmetricKeys {
    primary: Slot,
    secondary: Slot,
}

#[derive(Debug, Clone)]
struct Slot {
    key: Key,
    /// From when on CONNECT accepts `key`; `None` at once.
    valid_from: Option<Moment>,
    /// What CONNECT knew before, if it is set to live on until `valid_from`.
    previous: Option<Key>,
}

impl Slot {
    fn new(key: Key) -> Self {
        Self { key, valid_from: None, previous: None }
    }

    fn accepted_keys(&self, now: Moment, previous_lives: bool) -> Option<&Key> {
        match self.valid_from {
            Some(from) if now < from => self.previous.as_ref().filter(|_| previous_lives),
            Some(_) | None => Some(&self.key),
        }
    }
}

impl SymmetricKeys {
    pub(crate) fn new(primary: Key, secondary: Key) -> Self {
        Self { primary: Slot::new(primary), secondary: Slot::new(secondary) }
    }

    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self::new(Key::generate(Purpose::Device)?, Key::generate(Purpose::Device)?))
    }

    pub(crate) fn key(&self, slot: KeySlot) -> &Key {
        match slot {
            KeySlot::Primary => &self.primary.key,
            KeySlot::Secondary => &self.secondary.key,
        }
    }

    /// Puts new keys in the registry. CONNECT learns a key that was in neither slot only after `propagation`.
    pub(crate) fn replace(&mut self, primary: Key, secondary: Key, now: Moment, propagation: Duration) {
        let known = |key: &Key| {
            [&self.primary, &self.secondary]
                .into_iter()
                .any(|slot| slot.key == *key && slot.valid_from.is_none_or(|from| from <= now))
        };
        let renew = |slot: &Slot, key: Key| {
            if slot.key == key {
                return slot.clone();
            }
            let valid_from = (!known(&key) && !propagation.is_zero()).then(|| now.plus(propagation));
            let previous = slot.accepted_keys(now, true).cloned().filter(|_| valid_from.is_some());
            Slot { key, valid_from, previous }
        };
        let (primary, secondary) = (renew(&self.primary, primary), renew(&self.secondary, secondary));
        *self = Self { primary, secondary };
    }

    /// The keys that CONNECT accepts now, in the order in which the hub tries them. `previous_lives` keeps a
    /// replaced key alive until its successor is known.
    pub(crate) fn accepted(
        &self,
        now: Moment,
        previous_lives: bool,
    ) -> impl Iterator<Item = (KeySlot, &Key)> {
        [(KeySlot::Primary, &self.primary), (KeySlot::Secondary, &self.secondary)]
            .into_iter()
            .filter_map(move |(name, slot)| Some((name, slot.accepted_keys(now, previous_lives)?)))
    }

    /// Whether the registry still holds `key` in either slot.
    pub(crate) fn hold(&self, key: &Key) -> bool {
        self.primary.key == *key || self.secondary.key == *key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes 0 to 24 in order; made and checked with an independent implementation of the reference.
    const DEVICE_VECTOR: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXAAIoTOzOFgY=";
    /// Microsoft's own test key for a hub policy.
    const HUB_VECTOR: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaAIoTOumzco=";

    fn bytes(text: &str) -> [u8; 32] {
        STANDARD.decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn identifiable_keys_match_the_reference() {
        assert_eq!(Key::identifiable(bytes(DEVICE_VECTOR), Purpose::Device).encode(), DEVICE_VECTOR);
        assert_eq!(Key::identifiable(bytes(HUB_VECTOR), Purpose::HubPolicy).encode(), HUB_VECTOR);
        assert_ne!(Key::identifiable(bytes(HUB_VECTOR), Purpose::Device).encode(), HUB_VECTOR);
    }

    #[test]
    fn generated_keys_differ_and_carry_the_signature() {
        let [one, other] = [0, 1].map(|_| Key::generate(Purpose::Device).unwrap().encode());
        assert_ne!(one, other);
        for key in [one, other] {
            assert_eq!((key.len(), &key[33..37]), (44, "AIoT"), "{}", key.len());
            assert!(('A'..='P').contains(&key.chars().nth(37).unwrap()));
        }
    }

    #[test]
    fn registry_takes_keys_of_16_to_64_bytes_only() {
        for (len, taken) in [(15, false), (16, true), (64, true), (65, false)] {
            assert_eq!(
                Key::decode_for_registry(&STANDARD.encode(vec![7; len])).is_some(),
                taken,
                "{len} bytes"
            );
        }
        assert!(Key::decode_for_registry("not base64!").is_none());
    }

    #[test]
    fn debug_shows_no_key() {
        let keys = SymmetricKeys::new(Key::decode(DEVICE_VECTOR).unwrap(), Key::decode(HUB_VECTOR).unwrap());
        let shown = format!("{keys:?}");
        assert!(!shown.contains("AIoT") && !shown.contains("[0, 1"), "{shown}");
    }
}
