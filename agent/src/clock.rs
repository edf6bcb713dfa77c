//! The only place of the agent that reads clocks. Two clocks, two types: [`Instant`] for waiting, Unix seconds for
//! what goes on the wire.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

/// The agent's clocks; tests bring their own wall clock and pause tokio's.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self::with_wall(|| {
            #[allow(clippy::disallowed_methods, reason = "this is the place that reads clocks")]
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
            // A board without a battery may start before 1970; the hub will refuse that as it does 1970.
            since_epoch.map(|elapsed| elapsed.as_secs()).unwrap_or(0)
        })
    }

    /// A wall clock of the caller's.
    pub fn with_wall(wall: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { wall: Arc::new(wall) }
    }

    /// Wall-clock time in Unix seconds.
    pub fn unix_secs(&self) -> u64 {
        (self.wall)()
    }

    /// Monotonic time.
    pub fn now(&self) -> Instant {
        Instant::now()
    }
}
