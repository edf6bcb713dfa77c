//! The only module that reads clocks.
//!
//! Two clocks, two types: [`Moment`] is monotonic and measures spans; Unix seconds are compared with a token's `se`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// An instant of the hub's monotonic clock, in microseconds since the emulator started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn plus(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(micros(delay)))
    }
}

impl Serialize for Moment {
    /// Milliseconds with decimals, the unit of every operator endpoint.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / 1000.0)
    }
}

/// The real clocks. An emulator is a tool for measuring real programs, so it has no simulated time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "the emulator's only source of monotonic time")]
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment(micros(self.started.elapsed()))
    }

    /// Time since the Unix epoch; zero if the machine's clock is set before it.
    #[allow(clippy::disallowed_methods, reason = "token expiry is wall-clock time, as in the real hub")]
    pub(crate) fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// RFC 3339 UTC with microseconds, as in a twin's `$lastUpdated`.
    pub(crate) fn timestamp(&self) -> String {
        humantime::format_rfc3339_micros(UNIX_EPOCH + self.unix_time()).to_string()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
