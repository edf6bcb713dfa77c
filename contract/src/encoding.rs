//! Text forms in JSON: bytes as strict base64 and times as RFC 3339.

use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// The last second that RFC 3339 can write, the end of the year 9999, as Unix time.
const RFC3339_UNIX_SECS_MAX: u64 = 253_402_300_799;

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Strict base64 (RFC 4648 §4) of any length.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Strict base64 of exactly 32 bytes.
pub(crate) fn from_base64_32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    match STANDARD.decode_slice(text, &mut bytes) {
        Ok(32) => Some(bytes),
        Ok(_) | Err(_) => None,
    }
}

/// For `#[serde(with)]`: 32 bytes as base64.
pub(crate) mod base64_32 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base64(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        from_base64_32(&text).ok_or_else(|| D::Error::custom("not the base64 of 32 bytes"))
    }
}

/// For `#[serde(with)]`: Unix seconds as RFC 3339 in UTC. A time beyond the year 9999, which only a broken clock
/// gives, is written as the last second of it: a report must never fail for its clock.
pub(crate) mod rfc3339 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        unix_secs: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match unix_secs {
            Some(secs) => {
                let time = UNIX_EPOCH + Duration::from_secs((*secs).min(RFC3339_UNIX_SECS_MAX));
                serializer.collect_str(&humantime::format_rfc3339_seconds(time))
            }
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        humantime::parse_rfc3339(&text)
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map(|since| Some(since.as_secs()))
            .ok_or_else(|| D::Error::custom("not a time such as 2026-11-20T10:00:00Z"))
    }
}
