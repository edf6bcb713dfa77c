//! Who has a turn when: a few first, all in the end.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use twinkey_contract::Identity;

/// The whole, in millionths.
const WHOLE_MILLIONTHS: u32 = 1_000_000;
/// One per cent, in millionths.
const PERCENT_MILLIONTHS: u32 = 10_000;

/// How many have had their turn after a wave, earlier waves included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaveSize {
    Count(u32),
    /// Of the target, in millionths.
    Part(u32),
}

impl WaveSize {
    pub(crate) const fn percent(percent: u32) -> Self {
        Self::Part(percent * PERCENT_MILLIONTHS)
    }

    /// Of `devices`; a part is rounded up, so that every wave that asks for somebody gets somebody.
    fn of(self, devices: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX).min(devices),
            Self::Part(millionths) => {
                let exact = devices as u128 * u128::from(millionths);
                usize::try_from(exact.div_ceil(u128::from(WHOLE_MILLIONTHS))).unwrap_or(devices).min(devices)
            }
        }
    }
}

/// A number, or per cents with up to four digits after the point.
impl FromStr for WaveSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd =
            || format!("{text:?} is no size of a wave: write a number of devices, or per cents like 2.5%");
        let text = text.trim();
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().map(Self::Count).map_err(|_| odd());
        };
        let (whole, rest) = percent.trim().split_once('.').unwrap_or((percent.trim(), "0"));
        let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        if !is_digits(whole) || !is_digits(rest) || rest.len() > 4 || whole.len() > 3 {
            return Err(odd());
        }
        let whole: u32 = whole.parse().map_err(|_| odd())?;
        let rest: u32 = format!("{rest:0<4}").parse().map_err(|_| odd())?;
        let millionths = whole * PERCENT_MILLIONTHS + rest;
        if millionths > WHOLE_MILLIONTHS {
            Err(format!("{text} is more than all"))
        } else {
            Ok(Self::Part(millionths))
        }
    }
}

impl fmt::Display for WaveSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Part(millionths) => {
                let (whole, rest) = (millionths / PERCENT_MILLIONTHS, millionths % PERCENT_MILLIONTHS);
                if rest == 0 {
                    write!(f, "{whole}%")
                } else {
                    write!(f, "{whole}.{}%", format!("{rest:04}").trim_end_matches('0'))
                }
            }
        }
    }
}

impl Serialize for WaveSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WaveSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = WaveSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of devices, or per cents like \"10%\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<WaveSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<WaveSize, E> {
                u32::try_from(count).map(WaveSize::Count).map_err(|_| E::custom("no number of devices"))
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// Whether these sizes make sense for a target of any size.
pub(crate) fn check(waves: &[WaveSize]) -> Result<(), String> {
    if waves.iter().any(|wave| matches!(wave, WaveSize::Count(0) | WaveSize::Part(0))) {
        return Err("waves has one of size 0".to_owned());
    }
    for (earlier, later) in waves.iter().zip(waves.iter().skip(1)) {
        let shrinks = match (earlier, later) {
            (WaveSize::Count(earlier), WaveSize::Count(later))
            | (WaveSize::Part(earlier), WaveSize::Part(later)) => later <= earlier,
            (WaveSize::Count(_), WaveSize::Part(_)) | (WaveSize::Part(_), WaveSize::Count(_)) => false,
        };
        if shrinks {
            return Err(format!("waves are cumulative and must grow, but {later} follows {earlier}"));
        }
    }
    match waves.last() {
        Some(WaveSize::Part(WHOLE_MILLIONTHS) | WaveSize::Count(_)) => Ok(()),
        Some(last) => {
            Err(format!("the last of the waves is {last}, and must be 100%, so that every device has a turn"))
        }
        None => Err("waves is empty: write at least [\"100%\"]".to_owned()),
    }
}

/// Where each wave ends, for so many devices. Waves that bring nobody new are left out.
///
/// # Errors
/// A number at the end that leaves devices without a turn.
pub(crate) fn ends(waves: &[WaveSize], devices: usize) -> Result<Vec<usize>, String> {
    let mut ends: Vec<usize> = Vec::with_capacity(waves.len());
    for wave in waves {
        let end = wave.of(devices);
        if end > ends.last().copied().unwrap_or(0) {
            ends.push(end);
        }
    }
    if ends.last().copied().unwrap_or(0) == devices {
        Ok(ends)
    } else {
        let last = waves.last().map(ToString::to_string).unwrap_or_default();
        Err(format!("the last of the waves is {last}, but the target has {devices} devices: end with 100%"))
    }
}

/// Puts a target in its order: by chance, the same for the same seed, whoever else belongs to it.
pub(crate) fn shuffle<T>(target: &mut [T], seed: u32, identity: impl Fn(&T) -> &Identity) {
    target.sort_by_cached_key(|item| place(seed, identity(item)));
}

fn place(seed: u32, identity: &Identity) -> (Vec<u8>, String) {
    let name = identity.to_string();
    (Sha256::new().chain_update(seed.to_be_bytes()).chain_update(&name).finalize().to_vec(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(texts: &[&str]) -> Vec<WaveSize> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn waves_are_cumulative_and_a_part_is_at_least_one_device() {
        let usual = sizes(&["1", "1%", "10%", "100%"]);
        for (devices, expected) in [
            (1, vec![1]),
            (2, vec![1, 2]),
            (50, vec![1, 5, 50]),
            (100, vec![1, 10, 100]),
            (101, vec![1, 2, 11, 101]),
            (1000, vec![1, 10, 100, 1000]),
        ] {
            assert_eq!(ends(&usual, devices), Ok(expected), "{devices} devices");
        }
    }

    #[test]
    fn parts_are_exact() {
        // In floating point, 10 % of 30 is a little more than 3.
        assert_eq!(ends(&sizes(&["10%", "100%"]), 30), Ok(vec![3, 30]));
        assert_eq!(ends(&sizes(&["0.0001%", "100%"]), 1_000_000), Ok(vec![1, 1_000_000]));
        assert_eq!(ends(&sizes(&["0.01%", "100%"]), 7), Ok(vec![1, 7]));
        assert_eq!(ends(&sizes(&["33.3333%", "100%"]), 30_000), Ok(vec![10_000, 30_000]));
    }

    #[test]
    fn a_wave_that_brings_nobody_new_is_left_out() {
        assert_eq!(ends(&sizes(&["10", "1%", "100%"]), 50), Ok(vec![10, 50]));
        assert_eq!(ends(&sizes(&["5", "1000"]), 3), Ok(vec![3]));
    }

    #[test]
    fn the_last_wave_reaches_everybody() {
        assert!(check(&sizes(&["1", "50%"])).is_err());
        assert!(check(&sizes(&["50%", "10%", "100%"])).unwrap_err().contains("10% follows 50%"));
        assert!(check(&sizes(&["0", "100%"])).is_err() && check(&[]).is_err());
        assert!(ends(&sizes(&["1", "10"]), 11).unwrap_err().contains("11 devices"));
    }

    #[test]
    fn sizes_read_back_as_they_were_written() {
        for text in ["1", "250", "1%", "2.5%", "0.0001%", "100%"] {
            assert_eq!(text.parse::<WaveSize>().unwrap().to_string(), text);
        }
        for odd in
            ["", "%", "x%", "1,5%", "1.%", ".5%", "101%", "100.0001%", "-1", "1.00001%", "+1%", "9999999999"]
        {
            assert!(odd.parse::<WaveSize>().is_err(), "{odd}");
        }
    }

    #[test]
    fn the_order_follows_from_the_seed_alone() {
        let named = |n: u32| Identity { device_id: format!("d{n}"), module_id: None };
        let mut one: Vec<_> = (0..40).map(named).collect();
        let mut other: Vec<_> = (0..40).rev().map(named).collect();
        let mut fewer: Vec<_> = (0..40).step_by(2).map(named).collect();
        let mut elsewhere = one.clone();
        shuffle(&mut one, 7, |id| id);
        shuffle(&mut other, 7, |id| id);
        shuffle(&mut fewer, 7, |id| id);
        shuffle(&mut elsewhere, 8, |id| id);
        assert_eq!(one, other);
        assert_ne!(one, elsewhere);
        one.retain(|id| fewer.contains(id));
        assert_eq!(one, fewer, "who else belongs to the target changes nothing");
    }
}
