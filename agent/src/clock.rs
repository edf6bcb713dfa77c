//! The only place of the agent that reads clocks. Two clocks, two types: [`Instant`] for waiting, Unix seconds for
//! what goes on the wire.
//!
//! A board without a battery wakes up in 1970, and one with a dying battery anywhere. So the wall clock is not taken
//! at its word: it can't be before the *floor* (the day this version was made, the last time that was seen), and where
//! the hub itself has said what time it is, in the `Date` header of an answer inside verified TLS, that counts and runs
//! on by the monotonic clock until the machine's clock agrees. The machine's clock is never set: that is not the
//! agent's to do.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
pub use tokio::time::Instant;

/// When this version was made: 2026-11-01T00:00:00Z. A constant, so that the same source gives the same binary.
pub const MADE_UNIX_SECS: u64 = 1_793_491_200;
/// How far the wall clock and the hub's may be apart and still agree, in seconds. The hub itself bears 300
/// (`MaxClockSkew`), a `Date` header is exact to a second.
pub(crate) const TOLERANCE_SECS: u64 = 60;

/// The agent's clocks; tests bring their own wall clock and pause tokio's. Clones share one reckoning.
#[derive(Clone)]
pub struct Clock {
    shared: Arc<Shared>,
}

struct Shared {
    wall: Box<dyn Fn() -> u64 + Send + Sync>,
    reckoning: Mutex<Reckoning>,
}

struct Reckoning {
    /// No earlier time is believed without the hub's word.
    floor_unix_secs: u64,
    /// The floor has led nowhere: it may come from a clock that was ahead, so the machine's clock has its turn.
    is_floor_doubted: bool,
    anchor: Option<Anchor>,
}

/// A moment whose wall-clock time is known better than the machine knows it.
#[derive(Clone, Copy)]
struct Anchor {
    unix_secs: u64,
    at: Instant,
    correction: Correction,
}

/// What is done about a machine's clock that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// Who knows better.
    pub source: Source,
    /// What was added to the machine's clock when that was noticed, in seconds.
    pub offset_secs: i64,
}

/// Who knows the time better than the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The floor: the true time is this or later.
    Floor,
    /// The hub has said it.
    Hub,
}

/// What the hub's time says of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They agree.
    Right,
    /// They did not; from now on the hub's counts.
    Corrected(Correction),
    /// The hub's time is before this version was made, so it can't be right.
    Impossible,
}

impl Clock {
    /// The machine's clocks, and the day this version was made as the floor.
    pub fn system() -> Self {
        Self::with_wall(|| {
            #[allow(clippy::disallowed_methods, reason = "this is the place that reads clocks")]
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
            // A clock before 1970 is below every floor.
            since_epoch.map(|elapsed| elapsed.as_secs()).unwrap_or(0)
        })
        .with_floor(MADE_UNIX_SECS)
    }

    /// A wall clock of the caller's, without a floor.
    pub fn with_wall(wall: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let reckoning = Mutex::new(Reckoning { floor_unix_secs: 0, is_floor_doubted: false, anchor: None });
        Self { shared: Arc::new(Shared { wall: Box::new(wall), reckoning }) }
    }

    /// The same clock, which knows besides that it is `unix_secs` or later.
    #[must_use]
    pub fn with_floor(self, unix_secs: u64) -> Self {
        let mut reckoning = self.reckoning();
        reckoning.floor_unix_secs = reckoning.floor_unix_secs.max(unix_secs);
        drop(reckoning);
        self
    }

    /// Wall-clock time in Unix seconds, as well as it is known.
    pub fn unix_secs(&self) -> u64 {
        let wall = (self.shared.wall)();
        let now = self.now();
        let mut reckoning = self.reckoning();
        if let Some(anchor) = reckoning.anchor {
            let reckoned = anchor.unix_secs.saturating_add((now - anchor.at).as_secs());
            let agrees = match anchor.correction.source {
                Source::Floor => wall >= reckoned,
                Source::Hub => wall.abs_diff(reckoned) <= TOLERANCE_SECS,
            };
            if !agrees {
                return reckoned;
            }
            reckoning.anchor = None;
        }
        let floor = reckoning.floor_unix_secs;
        if wall < floor && !(reckoning.is_floor_doubted && wall >= MADE_UNIX_SECS) {
            let correction = Correction { source: Source::Floor, offset_secs: offset(wall, floor) };
            reckoning.anchor = Some(Anchor { unix_secs: floor, at: now, correction });
            return floor;
        }
        wall
    }

    /// By this time nothing works, and the hub does not say what time it is: floor and machine's clock change places, where
    /// both are possible.
    pub fn doubt(&self) {
        let mut reckoning = self.reckoning();
        let is_on_floor = reckoning.anchor.is_some_and(|anchor| anchor.correction.source == Source::Floor);
        if is_on_floor {
            reckoning.anchor = None;
            reckoning.is_floor_doubted = true;
        } else {
            reckoning.is_floor_doubted = false;
        }
    }

    /// By this time a connection was accepted.
    pub fn confirm(&self, unix_secs: u64) {
        let mut reckoning = self.reckoning();
        if reckoning.is_floor_doubted {
            reckoning.is_floor_doubted = false;
            reckoning.floor_unix_secs = unix_secs;
        } else {
            reckoning.floor_unix_secs = reckoning.floor_unix_secs.max(unix_secs);
        }
    }

    /// What is being done about the machine's clock; `None` while it is believed.
    pub fn correction(&self) -> Option<Correction> {
        // Whether it is still needed is found out by reading.
        self.unix_secs();
        self.reckoning().anchor.map(|anchor| anchor.correction)
    }

    /// Takes the hub's time over where it differs from ours.
    pub fn compare(&self, hub_unix_secs: u64) -> Comparison {
        let ours = self.unix_secs();
        let wall = (self.shared.wall)();
        let mut reckoning = self.reckoning();
        if hub_unix_secs < MADE_UNIX_SECS.min(reckoning.floor_unix_secs) {
            return Comparison::Impossible;
        }
        // A floor above the hub's time came from a clock that was ahead.
        reckoning.floor_unix_secs =
            reckoning.floor_unix_secs.min(hub_unix_secs - TOLERANCE_SECS.min(hub_unix_secs));
        if ours.abs_diff(hub_unix_secs) <= TOLERANCE_SECS {
            return Comparison::Right;
        }
        if wall.abs_diff(hub_unix_secs) <= TOLERANCE_SECS {
            reckoning.anchor = None;
            return Comparison::Right;
        }
        let correction = Correction { source: Source::Hub, offset_secs: offset(wall, hub_unix_secs) };
        reckoning.anchor = Some(Anchor { unix_secs: hub_unix_secs, at: self.now(), correction });
        Comparison::Corrected(correction)
    }

    /// Monotonic time.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    fn reckoning(&self) -> MutexGuard<'_, Reckoning> {
        // Nothing panics while it holds the lock; if something did, the numbers would still be whole.
        self.shared.reckoning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel's monotonic clock in microseconds, as systemd wants to hear it.
pub(crate) fn monotonic_usecs() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec / 1_000)
}

fn offset(wall: u64, right: u64) -> i64 {
    let size = i64::try_from(wall.abs_diff(right)).unwrap_or(i64::MAX);
    if right >= wall { size } else { -size }
}

/// Certificates are judged by the same time that tokens are signed with.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.unix_secs())))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("unix_secs", &self.unix_secs()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const TRUE: u64 = MADE_UNIX_SECS + 1_000_000;
    const TEN_YEARS: u64 = 10 * 365 * 86_400;

    /// A clock whose wall the test sets.
    fn clock(wall: u64) -> (Clock, Arc<AtomicU64>) {
        let wall = Arc::new(AtomicU64::new(wall));
        let hand = Arc::clone(&wall);
        (Clock::with_wall(move || wall.load(Ordering::SeqCst)).with_floor(MADE_UNIX_SECS), hand)
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_below_the_floor_runs_on_from_the_floor_until_it_is_set() {
        let (clock, hand) = clock(3);
        assert_eq!(clock.unix_secs(), MADE_UNIX_SECS);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(clock.unix_secs(), MADE_UNIX_SECS + 100);
        assert_eq!(clock.correction().map(|correction| correction.source), Some(Source::Floor));
        hand.store(TRUE, Ordering::SeqCst);
        assert_eq!((clock.unix_secs(), clock.correction()), (TRUE, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_hubs_time_counts_until_the_machines_clock_agrees() {
        for wrong in [0, TRUE - TEN_YEARS, TRUE - 3_600, TRUE + 3_600, TRUE + TEN_YEARS] {
            let (clock, hand) = clock(wrong);
            let corrected = Comparison::Corrected(Correction {
                source: Source::Hub,
                offset_secs: TRUE as i64 - wrong as i64,
            });
            assert_eq!(clock.compare(TRUE), corrected);
            tokio::time::advance(Duration::from_secs(500)).await;
            assert_eq!(clock.unix_secs(), TRUE + 500);
            // Jumps of a clock that is not believed change nothing.
            hand.store(TRUE + 2 * TEN_YEARS, Ordering::SeqCst);
            assert_eq!(clock.unix_secs(), TRUE + 500);
            hand.store(TRUE + 530, Ordering::SeqCst);
            assert_eq!((clock.unix_secs(), clock.correction()), (TRUE + 530, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_agrees_with_the_hub_is_left_alone() {
        let (clock, _) = clock(TRUE);
        assert_eq!(clock.compare(TRUE + TOLERANCE_SECS), Comparison::Right);
        assert_eq!((clock.unix_secs(), clock.correction()), (TRUE, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_floor_from_a_clock_that_was_ahead_gives_way_to_the_hub() {
        let (clock, _) = clock(TRUE);
        let clock = clock.with_floor(TRUE + TEN_YEARS);
        assert_eq!(clock.unix_secs(), TRUE + TEN_YEARS);
        assert_eq!(clock.compare(TRUE), Comparison::Right);
        assert_eq!((clock.unix_secs(), clock.correction()), (TRUE, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_floor_that_leads_nowhere_and_the_machines_clock_take_turns() {
        let (clock, hand) = clock(TRUE);
        let clock = clock.with_floor(TRUE + TEN_YEARS);
        for _ in 0..2 {
            assert_eq!(clock.unix_secs(), TRUE + TEN_YEARS);
            clock.doubt();
            assert_eq!(clock.unix_secs(), TRUE);
            clock.doubt();
        }
        assert_eq!(clock.unix_secs(), TRUE + TEN_YEARS);
        clock.doubt();
        clock.confirm(clock.unix_secs());
        assert_eq!((clock.unix_secs(), clock.correction()), (TRUE, None));
        // A machine's clock that can't be right has no turn.
        hand.store(7, Ordering::SeqCst);
        clock.doubt();
        assert_eq!(clock.unix_secs(), TRUE);
        clock.doubt();
        assert_eq!(clock.unix_secs(), TRUE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_before_this_version_was_made_is_not_believed() {
        let (clock, _) = clock(TRUE);
        assert_eq!(clock.compare(MADE_UNIX_SECS - 1), Comparison::Impossible);
        assert_eq!(clock.unix_secs(), TRUE);
    }
}
