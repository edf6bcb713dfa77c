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

/// Unix seconds as RFC 3339 in UTC. A time beyond the year 9999, which only a broken clock gives, is written as the last
/// second of it: a report must never fail for its clock.
pub(crate) fn rfc3339_text(unix_secs: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_secs.min(RFC3339_UNIX_SECS_MAX)))
}

/// For `#[serde(with)]`: Unix seconds as RFC 3339 in UTC.
pub(crate) mod rfc3339 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        unix_secs: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match unix_secs {
            Some(secs) => serializer.collect_str(&rfc3339_text(*secs)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        unix_secs_of(&text)
            .map(Some)
            .ok_or_else(|| D::Error::custom("not a time such as 2026-11-20T10:00:00Z"))
    }

    /// The reverse, in whole seconds (RFC 3339 section 5.6, UTC only). humantime's own gives up after 2038 where pointers have 32 bits.
    fn unix_secs_of(text: &str) -> Option<u64> {
        let (date_time, rest) = text.split_at_checked(19)?;
        let fraction = rest.strip_suffix('Z').or_else(|| rest.strip_suffix("+00:00"))?;
        let is_fraction = |text: &str| {
            text.strip_prefix('.').is_some_and(|digits| {
                (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        if !fraction.is_empty() && !is_fraction(fraction) {
            return None;
        }
        let number = |from: usize, len: usize| {
            let digits = date_time.get(from..from + len)?;
            if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
        };
        let has = |at: usize, wanted: &str| date_time.get(at..=at) == Some(wanted);
        if !(has(4, "-") && has(7, "-") && has(10, "T") && has(13, ":") && has(16, ":")) {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        let is_leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days_in = |month: u64| match month {
            2 => 28 + u64::from(is_leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let is_time = hour < 24 && minute < 60 && second < 60;
        if !(1..=12).contains(&month) || !(1..=days_in(month)).contains(&day) || !is_time {
            return None;
        }
        // Leap days before this year, and before 1970.
        let leap_days = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
        let years = year.checked_sub(1970)?;
        let days =
            years * 365 + leap_days(year) - leap_days(1970) + (1..month).map(days_in).sum::<u64>() + day - 1;
        Some(((days * 24 + hour) * 60 + minute) * 60 + second)
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn every_second_until_the_end_of_the_calendar_is_read_as_it_is_written(unix_secs in 0..=RFC3339_UNIX_SECS_MAX) {
                let time = UNIX_EPOCH + Duration::from_secs(unix_secs);
                prop_assert_eq!(unix_secs_of(&humantime::format_rfc3339_seconds(time).to_string()), Some(unix_secs));
                prop_assert_eq!(unix_secs_of(&humantime::format_rfc3339_millis(time).to_string()), Some(unix_secs));
            }
        }

        #[test]
        fn what_is_no_time_is_not_read() {
            for text in [
                "",
                "2026-11-20",
                "2026-11-20T10:00:00",
                "2026-11-20 10:00:00Z",
                "2026-02-29T00:00:00Z",
                "2026-13-01T00:00:00Z",
                "2026-00-01T00:00:00Z",
                "2026-01-00T00:00:00Z",
                "2026-01-01T24:00:00Z",
                "2026-01-01T00:60:00Z",
                "2026-01-01T00:00:00.Z",
                "2026-01-01T00:00:00.0000000001Z",
                "2026-01-01T00:00:00+01:00",
                "+026-01-01T00:00:00Z",
                "1969-12-31T23:59:59Z",
            ] {
                assert_eq!(unix_secs_of(text), None, "{text}");
            }
            assert_eq!(unix_secs_of("2024-02-29T23:59:59.5+00:00"), Some(1_709_251_199));
        }
    }
}
