//! Spans of time as people write them: `90s`, `15m`, `2h 30m`.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Longest span that can be asked for: a year.
const SPAN_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

pub(crate) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*span))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads a span; the error says how it is written.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|e| format!("{e}; write it like 90s, 15m or 2h"))?;
    if span <= SPAN_MAX { Ok(span) } else { Err(format!("at most {}", humantime::format_duration(SPAN_MAX))) }
}

/// A span as people read it: no finer than its size calls for.
pub(crate) fn told(span: Duration) -> String {
    let secs = span.as_secs();
    let rounded = match secs {
        0..600 => secs,
        600..86_400 => secs / 60 * 60,
        _ => secs / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(rounded)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_told_as_people_write_them() {
        assert_eq!(parse("2h 30m"), Ok(Duration::from_secs(9000)));
        for odd in ["", "15", "soon", "-1s", "10years"] {
            assert!(parse(odd).is_err(), "{odd}");
        }
        for (secs, text) in [(0, "0s"), (599, "9m 59s"), (3725, "1h 2m"), (90_061, "1day 1h")] {
            assert_eq!(told(Duration::from_secs(secs)), text);
        }
    }
}
