//! What a device may say about a key without saying the key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use subtle::ConstantTimeEq;
use twinkey_sas::Key;

use crate::{Identity, RotationId, encoding};

/// Says which key without saying it: the first 8 bytes of HMAC-SHA256(key, `"twinkey/fingerprint/v1"`). 16 hex digits in
/// text and JSON. Enough to tell a device's keys apart, and useless for guessing a random key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 8]);

impl Fingerprint {
    /// The key's fingerprint.
    pub fn of(key: &Key) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = key.hmac(&[b"twinkey/fingerprint/v1"]);
        Self([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// Why a text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 16 hex digits")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `from_str_radix` would take a sign and fewer digits.
        if text.len() != 16 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        u64::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| FingerprintError)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Proof that a device holds a key and took part in a rotation:
/// HMAC-SHA256(key, `"twinkey/proof/v1\n" identity "\n" rotation`). The operator, who knows the key, verifies it; nobody else
/// can claim a rotation that did not happen. Base64 in text and JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proof(#[serde(with = "encoding::base64_32")] [u8; 32]);

impl Proof {
    /// Proves possession of `key`.
    pub fn new(key: &Key, identity: &Identity, rotation: RotationId) -> Self {
        let (identity, rotation) = (identity.to_string(), rotation.to_string());
        Self(key.hmac(&[b"twinkey/proof/v1\n", identity.as_bytes(), b"\n", rotation.as_bytes()]))
    }

    /// Whether this proves possession of `key` by `identity` in `rotation`. Constant time.
    pub fn verify(&self, key: &Key, identity: &Identity, rotation: RotationId) -> bool {
        self.0.ct_eq(&Self::new(key, identity, rotation).0).into()
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::to_base64(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::{Fingerprint, Proof};
    use crate::{Identity, RotationId};
    use twinkey_sas::Key;

    fn key(byte: u8) -> Key {
        Key::from_bytes(&[byte; 32]).unwrap()
    }

    fn rotation(last: u8) -> RotationId {
        format!("0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e{last:02x}").parse().unwrap()
    }

    /// Made with Python's `hmac`: an implementation of its own.
    #[test]
    fn fingerprint_and_proof_are_what_the_contract_says() {
        assert_eq!(Fingerprint::of(&key(1)).to_string(), "32b50ebb80ff7218");
        let identity = Identity::new("pump-7", Some("meter")).unwrap();
        assert_eq!(
            Proof::new(&key(1), &identity, rotation(0x5f)).to_string(),
            "DNQhbqMYcOGlQs+sRdpKHZ/OR8HDp4PVFVUTgPAzhyE="
        );
    }

    #[test]
    fn proof_of_another_key_identity_or_rotation_is_refused() {
        let identity = Identity::new("d", None).unwrap();
        let proof = Proof::new(&key(1), &identity, rotation(1));
        assert!(proof.verify(&key(1), &identity, rotation(1)));
        assert!(!proof.verify(&key(2), &identity, rotation(1)));
        assert!(!proof.verify(&key(1), &identity, rotation(2)));
        for (device, module) in [("e", None), ("d", Some("m"))] {
            assert!(!proof.verify(&key(1), &Identity::new(device, module).unwrap(), rotation(1)));
        }
    }

    #[test]
    fn text_forms_read_back_and_nothing_else_is_read() {
        let fingerprint = Fingerprint([0, 1, 2, 3, 4, 5, 0xab, 0xff]);
        assert_eq!(fingerprint.to_string(), "000102030405abff");
        assert_eq!("000102030405ABFF".parse(), Ok(fingerprint));
        for bad in [
            "",
            "00102030405abff",
            "+00102030405abff",
            "000102030405abff0",
            "000102030405abfg",
            "00010203040\u{e4}abf",
        ] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
        let proof = Proof([7; 32]);
        let json = serde_json::to_string(&proof).unwrap();
        assert_eq!(serde_json::from_str::<Proof>(&json).unwrap(), proof);
        for bad in ["\"\"", "7", "\"AAAA\"", "\"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\"", "null"] {
            assert!(serde_json::from_str::<Proof>(bad).is_err(), "{bad}");
        }
    }
}
