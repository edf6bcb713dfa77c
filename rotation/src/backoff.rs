//! How long to wait: capped exponential backoff whose jitter comes from outside.

/// The pace of the machine. All times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Longest wait before the first attempt after a lost connection: spreads a fleet that lost its hub at once.
    pub reconnect_delay_ms_max: u64,
    /// Wait between two keys of the same round, so that a fallback is quick but no burst.
    pub fallback_delay_ms: u64,
    /// Shortest wait after a round in which every key was refused, or after a network failure.
    pub retry_delay_ms_min: u64,
    /// Longest such wait.
    pub retry_delay_ms_max: u64,
    /// Shortest wait between two attempts with a refused candidate.
    pub trial_delay_ms_min: u64,
    /// Longest such wait.
    pub trial_delay_ms_max: u64,
    /// How long a new key may take to reach the whole hub: a candidate is not rejected before this time has
    /// passed since its first refusal.
    pub propagation_window_ms: u64,
    /// Shortest wait before a failed write is repeated.
    pub store_delay_ms_min: u64,
    /// Longest such wait.
    pub store_delay_ms_max: u64,
    /// Each time a connection has stood this long, one failure is forgotten; after the last one it has settled, and
    /// its loss is answered at once.
    pub settled_after_ms: u64,
    /// Age of a connection at which its token is renewed.
    pub renew_after_ms: u64,
    /// After this many attempts in a row that reached the hub and got no answer, the next key is tried.
    pub unanswered_max: u8,
    /// Offers that are taken up in a row. One whose key the hub accepts does not count.
    pub offers_max: u8,
    /// After this time, one offer more may be taken up. Offers beyond that wait.
    pub offer_interval_ms: u64,
    /// Every attempt ends the connection that stands. So a candidate is tried when that connection is to be renewed anyway,
    /// and not before.
    pub is_single_connection: bool,
}

impl Policy {
    /// For a device on a roof: tokens of one hour renewed at 80 %, half an hour for a key to reach the whole hub.
    pub const DEFAULT: Self = Self {
        reconnect_delay_ms_max: 1_000,
        fallback_delay_ms: 250,
        retry_delay_ms_min: 1_000,
        retry_delay_ms_max: 5 * 60 * 1_000,
        trial_delay_ms_min: 5_000,
        trial_delay_ms_max: 5 * 60 * 1_000,
        propagation_window_ms: 30 * 60 * 1_000,
        store_delay_ms_min: 5_000,
        store_delay_ms_max: 10 * 60 * 1_000,
        settled_after_ms: 15 * 1_000,
        renew_after_ms: 48 * 60 * 1_000,
        unanswered_max: 6,
        offers_max: 8,
        offer_interval_ms: 10 * 60 * 1_000,
        is_single_connection: false,
    };

    /// The most offers that are taken up in any hour, whoever makes them and whatever their rotations are, but for those whose
    /// key the hub accepts. Each costs at most three writes: one that takes it up, and one for the
    /// end of each slot's trial.
    pub const fn offers_per_hour_max(&self) -> u64 {
        let Some(more) = 3_600_000_u64.checked_div(self.offer_interval_ms) else {
            return u64::MAX;
        };
        (self.offers_max as u64).saturating_add(more)
    }

    /// The most attempts with a refused candidate in any hour in which the connection stands. Each offer is tried at once, and
    /// again after waits that grow until the next offer takes its place.
    pub const fn trials_per_hour_max(&self) -> u64 {
        let offers = self.offers_per_hour_max();
        // Between two offers, and after the last one, as many as fit with half of each wait left to chance; then the control
        // and the last attempt.
        let mut trials = 0_u64;
        let mut spent_ms = 0_u64;
        let mut failures = 0_u8;
        let span_ms = if self.offer_interval_ms < 3_600_000 { self.offer_interval_ms } else { 3_600_000 };
        while spent_ms < span_ms && failures < u8::MAX {
            let wait_ms = delay_ms(self.trial_delay_ms_min, self.trial_delay_ms_max, failures, 0);
            spent_ms = spent_ms.saturating_add(if wait_ms == 0 { 1 } else { wait_ms });
            failures += 1;
            trials += 1;
        }
        offers.saturating_mul(trials.saturating_add(2))
    }

    /// The most attempts with [`Purpose::Connect`](crate::Purpose::Connect) in any hour in which no connection
    /// settles: rounds of at most `keys` attempts, at half the longest wait, after a few with shorter ones.
    pub const fn attempts_per_hour_max(&self, keys: u64) -> u64 {
        let fallbacks_ms = self.fallback_delay_ms.saturating_mul(keys.saturating_sub(1));
        let round_ms = (self.retry_delay_ms_max / 2).saturating_add(fallbacks_ms);
        let Some(rounds) = 3_600_000_u64.checked_div(round_ms) else {
            return u64::MAX;
        };
        // One for each doubling, and one with no wait at all.
        let short_rounds = match self.retry_delay_ms_max.checked_div(self.retry_delay_ms_min) {
            Some(growth) if growth > 0 => growth.ilog2() as u64 + 2,
            Some(_) => 1,
            None => 65,
        };
        (rounds + 1).saturating_add(short_rounds).saturating_mul(keys)
    }
}

/// The wait after `failures` failures in a row: `min` doubled for each, at most `max`, of which the upper half is
/// left to `chance` (0 = none of it, `u16::MAX` = all of it). The fixed half bounds the attempts per hour.
pub const fn delay_ms(min: u64, max: u64, failures: u8, chance: u16) -> u64 {
    let full = grown(min, max, failures);
    let half = full / 2;
    half + share(full - half, chance)
}

/// The part of `whole` that `chance` stands for.
pub const fn share(whole: u64, chance: u16) -> u64 {
    // Divided first where the product would not fit: nobody can tell the difference in a wait of years.
    match whole.checked_mul(chance as u64) {
        Some(product) => product / u16::MAX as u64,
        None => whole / u16::MAX as u64 * chance as u64,
    }
}

/// One more failure: the first one always counts, later ones only as long as they make the wait longer, which
/// keeps the machine's states finite.
pub(crate) const fn next_failures(min: u64, max: u64, failures: u8) -> u8 {
    if failures == 0 || grown(min, max, failures) < max { failures.saturating_add(1) } else { failures }
}

const fn grown(min: u64, max: u64, failures: u8) -> u64 {
    let factor = if failures < 63 { 1_u64 << failures } else { u64::MAX };
    let full = min.saturating_mul(factor);
    if full < max { full } else { max }
}
