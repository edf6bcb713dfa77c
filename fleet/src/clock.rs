//! The only place of the operator's side that reads the wall clock: tokens and default expiries need it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds, UTC; 0 on a clock before 1970.
pub(crate) fn unix_now_secs() -> u64 {
    unix_now_millis() / 1000
}

/// Unix milliseconds, UTC; 0 on a clock before 1970.
#[allow(clippy::disallowed_methods, reason = "the one reader of the wall clock in this program")]
pub(crate) fn unix_now_millis() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
