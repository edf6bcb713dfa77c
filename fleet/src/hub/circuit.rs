//! A hub that does not answer is not hammered: after some failures in a row, by whomever, one call at a time asks whether it is
//! back. All others fail at once, unsent, and are repeated like calls that did not reach the hub.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which the hub counts as down. One call alone, with all its repetitions, doesn't get there.
const FAILURES_MAX: u32 = 10;
/// Pause before the first probe, in milliseconds; it doubles with each further one.
const PAUSE_MS_FIRST: u64 = 500;
/// Longest pause between probes, in milliseconds: shorter than the repetitions of one call take together.
const PAUSE_MS_MAX: u64 = 4_000;

#[derive(Debug, Default)]
pub(super) struct Circuit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When the next probe may go out.
    probe_at: Option<Instant>,
    /// The probe under way counts as lost at this time, whatever became of it.
    probe_until: Option<Instant>,
}

/// Why a call was not sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not sent, since {failures} calls in a row have failed")]
pub(crate) struct Down {
    failures: u32,
}

impl Circuit {
    /// Whether a call may be sent. What comes of it is told by [`Circuit::heard`] within `probe_max`.
    pub(super) fn check(&self, now: Instant, probe_max: Duration) -> Result<(), Down> {
        let mut state = self.state();
        if state.failures < FAILURES_MAX {
            return Ok(());
        }
        let is_over = |at: Option<Instant>| at.is_none_or(|at| now >= at);
        if is_over(state.probe_at) && is_over(state.probe_until) {
            state.probe_until = Some(now + probe_max);
            return Ok(());
        }
        Err(Down { failures: state.failures })
    }

    /// Whether the hub answered a call. `random` spreads the probes of several programs.
    pub(super) fn heard(&self, is_alive: bool, now: Instant, random: u32) {
        let mut state = self.state();
        if is_alive {
            *state = State::default();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        let Some(beyond) = state.failures.checked_sub(FAILURES_MAX) else { return };
        let ceiling_ms = PAUSE_MS_FIRST.saturating_mul(1 << beyond.min(16)).min(PAUSE_MS_MAX);
        let pause_ms = ceiling_ms / 2 + (ceiling_ms / 2) * u64::from(random) / u64::from(u32::MAX);
        state.probe_at = Some(now + Duration::from_millis(pause_ms));
        state.probe_until = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE_MAX: Duration = Duration::from_secs(60);

    #[test]
    fn a_dead_hub_gets_one_call_at_a_time_until_it_answers() {
        let (circuit, start) = (Circuit::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..FAILURES_MAX {
            assert_eq!(circuit.check(at(0), PROBE_MAX), Ok(()));
            circuit.heard(false, at(0), u32::MAX);
        }
        assert!(circuit.check(at(499), PROBE_MAX).is_err());
        assert!(circuit.check(at(500), PROBE_MAX).is_ok(), "the probe");
        assert!(circuit.check(at(5_000), PROBE_MAX).is_err(), "it is under way");
        circuit.heard(false, at(6_000), u32::MAX);
        assert!(circuit.check(at(6_999), PROBE_MAX).is_err(), "pauses grow");
        assert!(circuit.check(at(7_000), PROBE_MAX).is_ok());
        circuit.heard(true, at(7_100), u32::MAX);
        for _ in 0..100 {
            assert!(circuit.check(at(7_100), PROBE_MAX).is_ok());
        }
    }

    #[test]
    fn a_probe_that_was_given_up_does_not_close_the_way_for_ever() {
        let (circuit, start) = (Circuit::default(), Instant::now());
        (0..FAILURES_MAX).for_each(|_| circuit.heard(false, start, 0));
        let later = start + Duration::from_secs(1);
        assert!(circuit.check(later, PROBE_MAX).is_ok());
        assert!(circuit.check(later, PROBE_MAX).is_err());
        assert!(circuit.check(later + PROBE_MAX, PROBE_MAX).is_ok());
    }
}
