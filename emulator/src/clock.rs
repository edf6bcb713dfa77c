//! The only module that reads clocks, but for the moments at which tokio's timers go off.
//!
//! Two clocks, two types: [`Moment`] is monotonic and measures spans; Unix seconds are compared with a token's `se`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// An instant of the hub's monotonic clock, in microseconds since the emulator started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn plus(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(micros(delay)))
    }

    /// The span from `earlier` to this moment; zero if it is none.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Serialize for Moment {
    /// Milliseconds with decimals, the unit of every operator endpoint.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / 1000.0)
    }
}

/// The real clocks. An emulator is a tool for measuring real programs, so it has no simulated time; but its wall clock
/// may be set wrong on purpose, for all copies at once.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    started: Instant,
    /// How far the hub's wall clock is ahead of the machine's, in seconds.
    offset_secs: Arc<AtomicI64>,
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "the emulator's only source of monotonic time")]
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), offset_secs: Arc::default() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment(micros(self.started.elapsed()))
    }

    /// Puts the wall clock this far ahead of the machine's; a negative number puts it behind.
    pub(crate) fn set_offset_secs(&self, offset_secs: i64) {
        self.offset_secs.store(offset_secs, Ordering::Relaxed);
    }

    /// Time since the Unix epoch; zero if the clock is set before it.
    #[allow(clippy::disallowed_methods, reason = "token expiry is wall-clock time, as in the real hub")]
    pub(crate) fn unix_time(&self) -> Duration {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let offset_secs = self.offset_secs.load(Ordering::Relaxed);
        let offset = Duration::from_secs(offset_secs.unsigned_abs());
        if offset_secs < 0 { machine.saturating_sub(offset) } else { machine.saturating_add(offset) }
    }

    /// RFC 3339 UTC with microseconds, as in a twin's `$lastUpdated`.
    pub(crate) fn timestamp(&self) -> String {
        humantime::format_rfc3339_micros(self.wall_time()).to_string()
    }

    /// The `Date` header (RFC 9110 §6.6.1).
    pub(crate) fn http_date(&self) -> String {
        httpdate::fmt_http_date(self.wall_time())
    }

    /// What both formats can say, up to the year 9999.
    fn wall_time(&self) -> SystemTime {
        const LAST_SECS: u64 = 253_402_300_799;
        UNIX_EPOCH + self.unix_time().min(Duration::from_secs(LAST_SECS))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
