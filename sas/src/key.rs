//! Symmetric keys.

use core::fmt;

use crate::{base64, hmac::HmacSha256, secret, simd};

/// A place of a key in the hub's registry. Here: which of two keys verified a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeySlot {
    /// `primaryKey`.
    Primary,
    /// `secondaryKey`.
    Secondary,
}

/// A symmetric key of 16 to 64 bytes, which is what IoT Hub takes (azure-iot-sdk-java PR 1323). Hub-made keys
/// have 32 or 64 bytes today.
///
/// Wiped on drop; `Debug` shows nothing of it; equality takes constant time.
#[derive(Clone)]
pub struct Key {
    /// Zero beyond `len`.
    bytes: [u8; Key::MAX_LEN],
    len: u8,
}

impl Key {
    /// Shortest key in bytes.
    pub const MIN_LEN: usize = 16;
    /// Longest key in bytes.
    pub const MAX_LEN: usize = 64;

    /// Reads strict base64 (RFC 4648 §4): canonical, padded, no white space.
    ///
    /// # Errors
    /// [`KeyError::NotBase64`] with the place, or [`KeyError::Length`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let mut key = Self { bytes: [0; Self::MAX_LEN], len: 0 };
        let len = match simd::decode_base64(text.as_bytes(), &mut key.bytes) {
            Some(len) => len,
            None => {
                base64::decode(text.as_bytes(), &mut key.bytes).map_err(|at| KeyError::NotBase64 { at })?
            }
        };
        if !(Self::MIN_LEN..=Self::MAX_LEN).contains(&len) {
            return Err(KeyError::Length { bytes: len });
        }
        key.len = len as u8;
        Ok(key)
    }

    /// Takes the key's bytes; the caller wipes its own copy.
    ///
    /// # Errors
    /// [`KeyError::Length`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if !(Self::MIN_LEN..=Self::MAX_LEN).contains(&bytes.len()) {
            return Err(KeyError::Length { bytes: bytes.len() });
        }
        Ok(Self::from_checked(bytes))
    }

    /// The one door through which key bytes leave.
    pub fn expose(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The key in base64, in the caller's buffer, which the caller wipes: 88 bytes hold every key.
    pub fn expose_base64<'b>(&self, out: &'b mut [u8; 88]) -> &'b str {
        let len = base64::encode(self.expose(), out);
        out.get(..len).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or_default()
    }

    /// HMAC-SHA256 (RFC 2104) over the concatenation of `parts`.
    pub fn hmac(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.hmac_states().tag(parts)
    }

    /// The key of a device in a group enrolment of the Device Provisioning Service, `self` being the group's key:
    /// HMAC-SHA256 over the registration id (Microsoft, "Symmetric key attestation", group enrolments).
    pub fn derive(&self, registration_id: &str) -> Key {
        Self::derived_by(&self.hmac_states(), registration_id)
    }

    /// The same with the group's key prepared.
    pub(crate) fn derived_by(group: &HmacSha256, registration_id: &str) -> Key {
        let mut tag = group.tag(&[registration_id.as_bytes()]);
        let key = Self::from_checked(&tag);
        secret::wipe(&mut tag);
        key
    }

    pub(crate) fn hmac_states(&self) -> HmacSha256 {
        HmacSha256::from_padded(&self.bytes)
    }

    /// The place of another key's bytes, followed by zeros, for the caller to write. `len` is valid.
    #[cfg(avx512)]
    #[inline]
    pub(crate) fn overwrite(&mut self, len: usize) -> &mut [u8; Self::MAX_LEN] {
        self.len = len as u8;
        &mut self.bytes
    }

    /// The key's bytes followed by zeros: HMAC's first block, but for the pad.
    #[inline]
    pub(crate) fn padded(&self) -> &[u8; Self::MAX_LEN] {
        &self.bytes
    }

    /// `bytes` has a valid length.
    pub(crate) fn from_checked(bytes: &[u8]) -> Self {
        let mut key = Self { bytes: [0; Self::MAX_LEN], len: bytes.len() as u8 };
        for (slot, byte) in key.bytes.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        key
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        secret::wipe(&mut self.bytes);
        self.len = 0;
        zeroize::optimization_barrier(&self.len);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        secret::is_equal(&self.bytes, &other.bytes) & (self.len == other.len)
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([elided])")
    }
}

/// Why a text or some bytes are no key. Says nothing of the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The text is not strict base64.
    NotBase64 {
        /// Position in bytes of the first thing that is wrong; the text's length if something is missing at its end.
        at: usize,
    },
    /// Too short or too long.
    Length {
        /// Length found, in bytes after decoding.
        bytes: usize,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBase64 { at } => write!(
                f,
                "key is not strict base64 at byte {at}: copy it again, whole, with its `=` and without line breaks"
            ),
            Self::Length { bytes } => write!(
                f,
                "key has {bytes} bytes after decoding, but IoT Hub takes {} to {}: check that it was copied whole",
                Key::MIN_LEN,
                Key::MAX_LEN
            ),
        }
    }
}

impl core::error::Error for KeyError {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Key, KeyError};
    use std::{format, string::String};

    #[test]
    fn debug_shows_nothing_of_the_key() {
        let key = Key::from_bytes(&[0x41; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "Key([elided])");
    }

    #[test]
    fn length_is_16_to_64_bytes() {
        for len in 0..=80 {
            let bytes = [7; 80];
            let key = Key::from_bytes(&bytes[..len]);
            match len {
                16..=64 => assert_eq!(key.unwrap().expose(), &bytes[..len]),
                _ => assert_eq!(key.unwrap_err(), KeyError::Length { bytes: len }),
            }
        }
    }

    #[test]
    fn base64_beyond_64_bytes_is_refused_by_its_length() {
        assert_eq!(Key::from_base64(&"AAAA".repeat(1000)), Err(KeyError::Length { bytes: 3000 }));
        assert_eq!(Key::from_base64(""), Err(KeyError::Length { bytes: 0 }));
    }

    #[test]
    fn base64_goes_in_and_out() {
        let text = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
        let mut out = [0; 88];
        assert_eq!(Key::from_base64(text).unwrap().expose_base64(&mut out), text);
        let unpadded = text.trim_end_matches('=');
        assert_eq!(Key::from_base64(unpadded), Err(KeyError::NotBase64 { at: unpadded.len() }));
    }

    #[test]
    fn keys_that_differ_only_in_length_are_different() {
        assert_ne!(Key::from_bytes(&[0; 16]).unwrap(), Key::from_bytes(&[0; 17]).unwrap());
        assert_eq!(Key::from_bytes(&[0; 16]).unwrap(), Key::from_bytes(&[0; 16]).unwrap());
    }

    /// The vector of Microsoft's "Symmetric key attestation" page.
    #[test]
    fn group_enrolment_derives_the_documented_key() {
        let group = Key::from_base64(
            "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==",
        )
        .unwrap();
        let mut out = [0; 88];
        let device =
            String::from(group.derive("sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6").expose_base64(&mut out));
        assert_eq!(device, "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
    }
}
