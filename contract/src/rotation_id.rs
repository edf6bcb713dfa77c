//! The name of one change of keys.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// One change of keys: a UUID (RFC 9562; version 7 when we make one). In text and JSON always the hyphenated
/// lower-case form, which is also what sealing and proof are made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RotationId(pub Uuid);

impl RotationId {
    /// A new one: version 7, so that names sort by time. `now_unix_ms` is Unix time in milliseconds.
    ///
    /// # Errors
    /// [`RandomError`].
    pub fn generate(now_unix_ms: u64) -> Result<Self, RandomError> {
        let mut random = [0; 10];
        getrandom::fill(&mut random).map_err(|_| RandomError)?;
        Ok(Self(uuid::Builder::from_unix_timestamp_millis(now_unix_ms, &random).into_uuid()))
    }
}

impl fmt::Display for RotationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for RotationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The operating system gave no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the operating system gave no random numbers: try again once it has booted")]
pub struct RandomError;

#[cfg(test)]
mod tests {
    use super::RotationId;

    #[test]
    fn generated_ids_are_of_version_7_sort_by_time_and_differ() {
        let [early, late] =
            [1_700_000_000_000, 1_700_000_000_001].map(|now| RotationId::generate(now).unwrap());
        assert_eq!(early.0.get_version_num(), 7);
        assert!(early.to_string() < late.to_string());
        assert_ne!(RotationId::generate(5).unwrap(), RotationId::generate(5).unwrap());
    }

    #[test]
    fn text_has_one_form_whatever_was_read() {
        let text = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f";
        for other in [text.to_uppercase(), format!("{{{text}}}"), text.replace('-', "")] {
            assert_eq!(other.parse::<RotationId>().unwrap().to_string(), text);
        }
        let id: RotationId = text.parse().unwrap();
        assert_eq!(serde_json::to_value(id).unwrap(), text);
    }
}
