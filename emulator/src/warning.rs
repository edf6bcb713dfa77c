//! Warnings about what strangers can cause as often as they like: logged seldom, and counted in between.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// Shortest time between two lines of one warning.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Warning(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    count: u64,
    quiet_until: Option<Moment>,
}

impl Warning {
    /// Counts one occurrence. Returns how many there were since the last line, if it is time for the next.
    pub(crate) fn is_due(&self, now: Moment) -> Option<u64> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.count += 1;
        if pending.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        pending.quiet_until = Some(now.plus(PAUSE));
        Some(std::mem::take(&mut pending.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_warning_comes_at_once_and_then_seldom_with_a_count() {
        let (warning, now) = (Warning::default(), Clock::start().now());
        assert_eq!([0; 3].map(|_| warning.is_due(now)), [Some(1), None, None]);
        assert_eq!(warning.is_due(now.plus(PAUSE)), Some(3));
    }
}
