//! When too many have failed.

use super::spec::Failures;

/// Devices that have ended since the operator last said "go on".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

/// Why nothing more is begun; `None` while all is well enough.
pub(crate) fn shut(limits: &Failures, ended: Ended) -> Option<String> {
    let Ended { done, failed } = ended;
    let executed = done + failed;
    if executed < u64::from(limits.minimum_executed) {
        return None;
    }
    if let Some(max) = limits.max.filter(|max| failed > u64::from(*max)) {
        return Some(format!("{failed} devices have failed, and the spec allows {max}"));
    }
    // Both sides are far from where floating point is coarse.
    let percent = failed as f64 * 100.0 / executed.max(1) as f64;
    limits.max_percent.filter(|max| percent > *max).map(|max| {
        format!("{failed} of {executed} devices have failed ({percent:.1} %), and the spec allows {max} %")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shut(limits: Failures, done: u64, failed: u64) -> bool {
        shut(&limits, Ended { done, failed }).is_some()
    }

    #[test]
    fn without_limits_nothing_stops_the_rollout() {
        assert!(!is_shut(Failures::default(), 0, 1_000_000));
    }

    #[test]
    fn the_number_that_is_allowed_is_allowed() {
        let limits = Failures { max: Some(2), ..Failures::default() };
        assert!(!is_shut(limits, 0, 2) && is_shut(limits, 1000, 3));
        assert!(is_shut(Failures { max: Some(0), ..limits }, 0, 1));
    }

    #[test]
    fn per_cents_are_of_those_that_have_ended() {
        let limits = Failures { max_percent: Some(5.0), ..Failures::default() };
        assert!(!is_shut(limits, 95, 5) && is_shut(limits, 94, 6));
        assert!(is_shut(limits, 0, 1), "the first one already is a hundred per cent");
    }

    #[test]
    fn a_few_are_no_sample() {
        let limits = Failures { max: Some(0), max_percent: Some(1.0), minimum_executed: 10 };
        assert!(!is_shut(limits, 4, 5) && is_shut(limits, 5, 5));
    }
}
