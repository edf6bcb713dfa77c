//! Axes: round numbers, and round times in UTC.

use std::time::{Duration, UNIX_EPOCH};

/// Steps of a time axis, in seconds. Beyond a year, years.
const TIME_STEPS_SECS: [u64; 20] = [
    1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600,
    2_592_000, 7_776_000, 15_552_000, 31_536_000,
];
/// The last second that RFC 3339 can write.
const UNIX_SECS_MAX: u64 = 253_402_300_799;

/// The smallest of 1, 2, 5, 10, 20, 50, … that is not less than `at_least`; fractions too unless `whole`.
pub(super) fn round_step(at_least: f64, whole: bool) -> f64 {
    let at_least = if whole { at_least.max(1.0) } else { at_least.max(f64::MIN_POSITIVE) };
    let power = 10_f64.powf(at_least.log10().floor());
    // Logarithms are off by a hair: a hair more than the step is still the step.
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= at_least * (1.0 - 1e-9)).unwrap_or(power * 10.0)
}

/// Round numbers from 0 to the first one not below `max`, at most `intervals_max` + 1 of them.
pub(super) fn ticks(max: f64, intervals_max: f64, whole: bool) -> Vec<f64> {
    let max = if max.is_finite() && max > 0.0 { max } else { 1.0 };
    let step = round_step(max / intervals_max, whole);
    let count = (max / step - 1e-9).ceil().max(1.0) as u32;
    (0..=count).map(|i| f64::from(i) * step).collect()
}

/// Round times between two moments, each with its label: the day where days matter, else hours and minutes.
pub(super) fn time_ticks(from_secs: u64, to_secs: u64, intervals_max: u64) -> Vec<(u64, String)> {
    let span = to_secs.saturating_sub(from_secs).max(1);
    let wanted = span.div_ceil(intervals_max.max(1));
    let step = TIME_STEPS_SECS.into_iter().find(|step| *step >= wanted);
    let step = step.unwrap_or_else(|| wanted.div_ceil(31_536_000) * 31_536_000);
    let label = |at: u64| {
        let text = moment(at);
        let part = if step >= 86_400 {
            text.get(..10)
        } else if step >= 60 {
            text.get(11..16)
        } else {
            text.get(11..19)
        };
        part.unwrap_or_default().to_owned()
    };
    let first = from_secs.div_ceil(step) * step;
    (0..=intervals_max)
        .map(|i| first + i * step)
        .take_while(|at| *at <= to_secs)
        .map(|at| (at, label(at)))
        .collect()
}

/// `2026-11-20T10:04:12Z`; what is beyond the calendar is its end.
pub(crate) fn moment(unix_secs: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix_secs.min(UNIX_SECS_MAX));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_cover_the_greatest_amount() {
        for (at_least, step) in [(0.2, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (7.0, 10.0), (100.0, 100.0)]
        {
            assert!((round_step(at_least, true) - step).abs() < 1e-9, "{at_least}");
        }
        for max in [0.0, 0.3, 1.0, 7.0, 99.0, 100.0, 10_000.0, 1e15, f64::NAN, f64::INFINITY] {
            let ticks = ticks(max, 5.0, true);
            assert!((2..=7).contains(&ticks.len()), "{max}: {ticks:?}");
            assert!(!max.is_finite() || ticks.last().is_some_and(|last| *last >= max), "{max}: {ticks:?}");
        }
    }

    #[test]
    fn times_are_round_and_told_as_finely_as_they_differ() {
        let labels = |from, to| time_ticks(from, to, 6).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(labels(0, 3600), ["00:00", "00:15", "00:30", "00:45", "01:00"]);
        assert_eq!(labels(86_000, 86_430), ["23:55", "00:00"]);
        assert_eq!(labels(0, 20), ["00:00:00", "00:00:05", "00:00:10", "00:00:15", "00:00:20"]);
        assert_eq!(labels(0, 5 * 86_400).first().map(String::as_str), Some("1970-01-01"));
        assert!(labels(7, 7).len() <= 2);
        assert!(labels(0, UNIX_SECS_MAX).len() <= 7);
    }
}
