//! How often a person may bring a key. Each one costs a write to flash and a turn at the hub.

use std::time::Duration;

use crate::clock::Instant;

/// Keys that may be brought in a row: more than a person needs who tries what he has.
const KEYS_MAX: u32 = 8;
/// After this time one key more may be brought, as with offers
/// ([`Policy::offer_interval_ms`](twinkey_rotation::Policy::offer_interval_ms)).
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The keys that were brought and that count.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    spent: u32,
    /// Since when the next one is being earned.
    since: Option<Instant>,
}

impl Allowance {
    /// Takes one. If there is none, how long it takes until there is.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let since = *self.since.get_or_insert(now);
        let earned =
            (now.saturating_duration_since(since).as_secs() / INTERVAL.as_secs()).min(u64::from(self.spent));
        // At most what was spent, so it fits.
        let earned = u32::try_from(earned).unwrap_or(self.spent);
        self.spent -= earned;
        self.since = Some(if self.spent == 0 { now } else { since + INTERVAL * earned });
        if self.spent < KEYS_MAX {
            self.spent += 1;
            Ok(())
        } else {
            Err(INTERVAL.saturating_sub(now.saturating_duration_since(since + INTERVAL * earned)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_keys_in_a_row_and_one_more_every_ten_minutes() {
        let start = crate::clock::Clock::system().now();
        let mut allowance = Allowance::default();
        for _ in 0..8 {
            assert_eq!(allowance.take(start), Ok(()));
        }
        assert_eq!(allowance.take(start), Err(INTERVAL));
        assert_eq!(allowance.take(start + INTERVAL / 4), Err(INTERVAL * 3 / 4));
        assert_eq!(allowance.take(start + INTERVAL), Ok(()));
        assert!(allowance.take(start + INTERVAL).is_err());
        let much_later = start + INTERVAL * 100;
        let taken = (0..20).filter(|_| allowance.take(much_later).is_ok()).count();
        assert_eq!(taken, 8);
        // An idle hour earns no more than what was spent.
        assert!(allowance.take(much_later + INTERVAL - Duration::from_secs(1)).is_err());
    }
}
