//! How fast calls of one category go out. Pure: time and chance are arguments.
//!
//! A bucket of tokens fills at the pace and holds little, so that the hub's own shaping of traffic is hardly ever
//! needed. The pace is the tier's, or less: each round of 429 halves it, then it comes back to where it was and
//! looks carefully beyond, by the cubic curve that TCP has for the same purpose (RFC 9438 §4.2). Without a tier there
//! is no pace until the first 429.

use std::time::Duration;

use tokio::time::Instant;

/// Share of a tier's limit that is used: clocks differ a little, and other programs make a call now and then.
const QUOTA_SHARE: f64 = 0.98;
/// What the bucket holds, in seconds at the pace.
const DEPTH_SECS: f64 = 2.0;
/// What the bucket holds at least, in operations.
const DEPTH_MIN: f64 = 4.0;
/// Least pace, in operations per second: below the least limit of any tier, a third (queries of S1).
const RATE_MIN: f64 = 0.25;
/// What is forgiven in a count of tokens, so that rounding wakes nobody twice.
const ROUNDING: f64 = 1e-6;
/// Over which time calls are averaged, in seconds.
const OBSERVED_SECS: f64 = 3.0;
/// Shortest time from which an average is made, in seconds: hubs serve the first calls at once, however many there are.
const OBSERVED_SECS_MIN: f64 = 1.0;
/// How long the way back to the pace that was too fast takes, in seconds of use.
const RETURN_SECS: f64 = 20.0;
/// What counts as use between two calls: while nobody calls, nothing is learned.
const USE_MAX: Duration = Duration::from_secs(5);
/// Longest pause after a first 429 that names none, in milliseconds; it doubles with each further round.
const HOLD_MS_FIRST: u64 = 1_000;
/// Longest pause that grows by itself, in milliseconds.
const HOLD_MS_MAX: u64 = 8_000;
/// Longest `Retry-After` that is waited for: beyond it a person should decide.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Longest `Retry-After` that is believed.
const CLOSED_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Pace {
    /// What the tier allows, in operations per second.
    quota: Option<f64>,
    /// What 429 never slows it down below, in operations per second: few calls in a row say little about what is too fast.
    least: f64,
    learned: Option<Learned>,
    /// What was in the bucket at `filled_at`; less than nothing after a call that costs more than it held.
    tokens: f64,
    filled_at: Instant,
    /// Operations per second, averaged, at `observed_at`.
    observed: f64,
    observed_at: Instant,
    /// The first call.
    observed_since: Option<Instant>,
    held_until: Instant,
    /// Until then the hub wants no call, for longer than is waited for.
    closed_until: Option<Instant>,
    /// When the pace was lowered last: what was sent before says nothing about the new pace.
    lowered_at: Option<Instant>,
    /// Rounds of 429 since a call was last served.
    rounds: u32,
}

/// What 429 has taught.
#[derive(Clone, Copy, Debug)]
struct Learned {
    /// The pace that was too fast, in operations per second.
    ceiling: f64,
    /// For how long it has been in use since it was lowered.
    used: Duration,
    /// The last call.
    last_at: Instant,
}

impl Pace {
    /// `quota` is in operations per second.
    pub(super) fn new(quota: Option<f64>, now: Instant) -> Self {
        let quota = quota.map(|quota| (quota * QUOTA_SHARE).max(RATE_MIN));
        Self {
            quota,
            least: RATE_MIN,
            learned: None,
            tokens: quota.map_or(DEPTH_MIN, depth),
            filled_at: now,
            observed: 0.0,
            observed_at: now,
            observed_since: None,
            held_until: now,
            closed_until: None,
            lowered_at: None,
            rounds: 0,
        }
    }

    /// The same, never slowed down below `least` operations per second.
    pub(super) fn at_least(self, least: f64) -> Self {
        Self { least: least.max(RATE_MIN), ..self }
    }

    /// Operations per second now; `None` while nothing limits them.
    pub(super) fn per_sec(&self) -> Option<f64> {
        match (self.quota, self.learned.as_ref().map(|learned| learned.per_sec().max(self.least))) {
            (Some(quota), Some(learned)) => Some(quota.min(learned)),
            (quota, learned) => quota.or(learned),
        }
    }

    /// For how long the hub wants no call, if that is longer than anybody should wait.
    pub(super) fn closed_for(&self, now: Instant) -> Option<Duration> {
        let left = self.closed_until?.saturating_duration_since(now);
        Some(left).filter(|left| !left.is_zero())
    }

    /// When the next call of this cost may go out; not later than `now` if at once.
    ///
    /// A call that costs more than the bucket holds waits for a full one and leaves a debt.
    pub(super) fn ready_at(&mut self, cost: u32, now: Instant) -> Instant {
        if now < self.held_until {
            return self.held_until;
        }
        let Some(rate) = self.per_sec() else { return now };
        let depth = depth(rate);
        let passed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + passed.as_secs_f64() * rate).min(depth);
        self.filled_at = self.filled_at.max(now);
        let missing = f64::from(cost).min(depth) - self.tokens;
        if missing <= ROUNDING { now } else { now + secs(missing / rate) }
    }

    /// A call goes out.
    pub(super) fn take(&mut self, cost: u32, now: Instant) {
        self.observe(now);
        self.observed_since.get_or_insert(now);
        self.observed += f64::from(cost) / OBSERVED_SECS;
        if self.per_sec().is_some() {
            self.tokens -= f64::from(cost);
        }
        if let Some(learned) = &mut self.learned {
            learned.used += now.saturating_duration_since(learned.last_at).min(USE_MAX);
            learned.last_at = learned.last_at.max(now);
        }
    }

    /// It did not after all.
    pub(super) fn give_back(&mut self, cost: u32) {
        self.observed = (self.observed - f64::from(cost) / OBSERVED_SECS).max(0.0);
        if self.per_sec().is_some() {
            self.tokens += f64::from(cost);
        }
    }

    /// A call was served.
    pub(super) fn served(&mut self, sent_at: Instant) {
        if self.lowered_at.is_none_or(|at| sent_at >= at) {
            self.rounds = 0;
        }
    }

    /// A call that was sent at `sent_at` got 429. Nobody of this category is sent before the hub's pause is over, or one of our
    /// own, which `random` spreads: other programs were told the same.
    pub(super) fn throttled(
        &mut self,
        sent_at: Instant,
        retry_after: Option<Duration>,
        now: Instant,
        random: u32,
    ) {
        if let Some(pause) = retry_after.filter(|pause| *pause > RETRY_AFTER_MAX) {
            self.closed_until = self.closed_until.max(Some(now + pause.min(CLOSED_MAX)));
        }
        let is_news = self.lowered_at.is_none_or(|at| sent_at >= at);
        if is_news {
            self.rounds = self.rounds.saturating_add(1);
        }
        let ceiling_ms =
            HOLD_MS_FIRST.saturating_mul(1 << self.rounds.saturating_sub(1).min(16)).min(HOLD_MS_MAX);
        let chance = |ms: u64| Duration::from_millis(ms * u64::from(random) / u64::from(u32::MAX));
        let hold = match retry_after {
            Some(pause) => pause.min(CLOSED_MAX) + chance(HOLD_MS_FIRST / 4),
            None if is_news => Duration::from_millis(ceiling_ms / 2) + chance(ceiling_ms / 2),
            None => Duration::ZERO,
        };
        if is_news {
            self.observe(now);
            let observed = self.average(now);
            let too_fast = self.per_sec().map_or(observed, |rate| rate.min(observed));
            let ceiling = too_fast.max(2.0 * self.least);
            self.learned = Some(Learned { ceiling, used: Duration::ZERO, last_at: now });
            // One call finds out whether the pause was long enough.
            self.tokens = self.tokens.min(1.0);
            self.filled_at = now;
            self.lowered_at = Some(now);
        }
        self.hold(now + hold);
    }

    /// The time of a pause counts neither for the bucket nor for the average.
    fn hold(&mut self, until: Instant) {
        self.held_until = self.held_until.max(until);
        self.filled_at = self.filled_at.max(until);
        self.observed_at = self.observed_at.max(until);
        if let Some(learned) = &mut self.learned {
            learned.last_at = learned.last_at.max(until);
        }
    }

    /// Operations per second lately. Soon after the first call, there is less to make an average from.
    fn average(&self, now: Instant) -> f64 {
        let since = self.observed_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let passed = since.as_secs_f64().max(OBSERVED_SECS_MIN);
        self.observed / (1.0 - (-passed / OBSERVED_SECS).exp())
    }

    fn observe(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.observed_at);
        self.observed *= (-passed.as_secs_f64() / OBSERVED_SECS).exp();
        self.observed_at = self.observed_at.max(now);
    }
}

impl Learned {
    fn per_sec(&self) -> f64 {
        let way = self.used.as_secs_f64() / RETURN_SECS - 1.0;
        (self.ceiling * (1.0 + way.powi(3) / 2.0)).max(RATE_MIN)
    }
}

/// What the bucket holds at this pace, in operations.
pub(super) fn depth(per_sec: f64) -> f64 {
    (per_sec * DEPTH_SECS).max(DEPTH_MIN)
}

fn secs(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs).unwrap_or(RETRY_AFTER_MAX)
}
