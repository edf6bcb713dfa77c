//! The hub's time, as its answers tell it (`Date`, RFC 9110 §6.6.1).
//!
//! Operators on different machines judge each other's leases, and their clocks may be minutes apart. All of them hear the
//! hub's time with every answer, so leases are written and judged by that.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

/// Earliest `Date` that is believed: 2025-01-01, when there was no Twinkey yet.
const DATE_UNIX_SECS_MIN: u64 = 1_735_689_600;
/// Latest `Date` that is believed: 2100-01-01.
const DATE_UNIX_SECS_MAX: u64 = 4_102_444_800;

/// What the newest answer said, beside this process' monotonic clock.
#[derive(Debug, Default)]
pub(super) struct HubTime {
    newest: Mutex<Option<Reading>>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    unix_secs: u64,
    at: Instant,
}

impl HubTime {
    /// Takes note of the `Date` of an answer whose head has just arrived. What is no date, or one out of bounds, changes
    /// nothing.
    pub(super) fn note(&self, date: &str, at: Instant) {
        let parsed = httpdate::parse_http_date(date.trim()).ok();
        let since_epoch = parsed.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
        let Some(unix_secs) = since_epoch.as_ref().map(Duration::as_secs) else { return };
        if (DATE_UNIX_SECS_MIN..DATE_UNIX_SECS_MAX).contains(&unix_secs) {
            *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reading { unix_secs, at });
        }
    }

    /// Unix seconds at `now`, by the hub's clock: late by up to a second, because `Date` has whole seconds, and by the time that the
    /// answer was on its way. Before the first answer it is `local_unix_secs`.
    pub(super) fn unix_secs(&self, now: Instant, local_unix_secs: u64) -> u64 {
        let newest = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.map_or(local_unix_secs, |reading| {
            reading.unix_secs + now.saturating_duration_since(reading.at).as_secs()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2027-01-15T08:00:00Z.
    const DATE: (u64, &str) = (1_800_000_000, "Fri, 15 Jan 2027 08:00:00 GMT");

    #[tokio::test(start_paused = true)]
    async fn the_hubs_time_goes_on_from_the_newest_answer_whatever_this_machines_clock_says() {
        let time = HubTime::default();
        assert_eq!(time.unix_secs(Instant::now(), 7), 7, "before the first answer");
        time.note(DATE.1, Instant::now());
        tokio::time::advance(Duration::from_millis(90_900)).await;
        for local_unix_secs in [0, DATE.0 - 200, DATE.0 + 200, u64::MAX] {
            assert_eq!(time.unix_secs(Instant::now(), local_unix_secs), DATE.0 + 90);
        }
        // Another node of the hub may be behind.
        time.note("Fri, 15 Jan 2027 08:01:27 GMT", Instant::now());
        assert_eq!(time.unix_secs(Instant::now(), 0), DATE.0 + 87);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_date_or_no_time_at_which_a_hub_can_answer_is_not_believed() {
        let time = HubTime::default();
        time.note(DATE.1, Instant::now());
        for odd in [
            "",
            "yesterday",
            "1800000500",
            "Fri, 99 Jan 2027 08:00:00 GMT",
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "Tue, 31 Dec 2024 23:59:59 GMT",
            "Fri, 01 Jan 2100 00:00:00 GMT",
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ] {
            time.note(odd, Instant::now());
            assert_eq!(time.unix_secs(Instant::now(), 0), DATE.0, "{odd}");
        }
    }
}
