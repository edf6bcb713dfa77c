//! Which key, without the key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use twinkey_sas::Key;

/// Length in bytes: long enough that nobody makes a second key with a given fingerprint.
const LEN: usize = 16;
/// Digits of the short form.
const SHORT_DIGITS: usize = 16;

/// Says which key without saying it: the first 16 bytes of HMAC-SHA256(key, `"twinkey/fingerprint/v1"`). 32 hex digits in
/// text and JSON. It is no secret, and useless for guessing a random key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; LEN]);

impl Fingerprint {
    /// The key's fingerprint.
    pub fn of(key: &Key) -> Self {
        let mac = key.hmac(&[b"twinkey/fingerprint/v1"]);
        let mut bytes = [0; LEN];
        for (byte, of_mac) in bytes.iter_mut().zip(mac) {
            *byte = of_mac;
        }
        Self(bytes)
    }

    /// The first 16 digits, for tables that people read. Decisions compare all of them.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_DIGITS);
        text
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Why a text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 32 hex digits")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `from_str_radix` would take a sign and fewer digits.
        if text.len() != 2 * LEN || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        u128::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| FingerprintError)
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

#[cfg(test)]
mod tests {
    use super::Fingerprint;
    use twinkey_sas::Key;

    /// Made with Python's `hmac`: an implementation of its own.
    #[test]
    fn fingerprint_is_what_the_contract_says() {
        let print = Fingerprint::of(&Key::from_bytes(&[1; 32]).unwrap());
        assert_eq!(print.to_string(), "32b50ebb80ff7218ad2485f24fbcf904");
        assert!(print.to_string().starts_with(&print.short()) && print.short().len() == 16);
    }

    #[test]
    fn text_form_reads_back_and_nothing_else_is_read() {
        let bytes = [0, 1, 2, 3, 4, 5, 0xab, 0xff, 0, 1, 2, 3, 4, 5, 0xab, 0xff];
        let fingerprint = Fingerprint(bytes);
        assert_eq!(fingerprint.to_string(), "000102030405abff000102030405abff");
        assert_eq!("000102030405ABFF000102030405ABFF".parse(), Ok(fingerprint));
        for bad in [
            "",
            "000102030405abff",
            "00102030405abff000102030405abff",
            "+00102030405abff000102030405abff",
            "000102030405abff000102030405abff0",
            "000102030405abfg000102030405abff",
            "00010203040\u{e4}abf000102030405abff",
        ] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
