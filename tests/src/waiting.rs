//! Bounded waits on conditions. Nothing here waits for time to pass.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Bound of a wait: long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until there is something, and panics with `what` when nothing comes.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look).await
}

/// The same with a bound of the caller's.
pub async fn within<T>(bound: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "within {} s this did not happen: {what}", bound.as_secs());
        sleep(LOOK_PAUSE).await;
    }
}
