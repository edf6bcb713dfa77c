//! How many calls of one category are under way at once. A hub shapes traffic by answering late before it answers 429:
//! late answers, 429 and failures halve the number, answers in time let it grow by one for each round of calls.

use std::time::Duration;

use tokio::time::Instant;

/// Least number of calls under way that is allowed: with one alone, a single lost answer would stop everything.
const IN_FLIGHT_MIN: f64 = 2.0;
/// An answer that took less is never late.
const LATE_AFTER: Duration = Duration::from_secs(2);
/// An answer is late if it took that many times as long as the quickest one: some networks are slow for everybody.
const LATE_FACTOR: u32 = 4;

#[derive(Debug)]
pub(super) struct Window {
    max: f64,
    allowed: f64,
    in_flight: u32,
    quickest: Option<Duration>,
    /// When it shrank last: what was sent before says nothing about the new width.
    shrunk_at: Option<Instant>,
}

impl Window {
    pub(super) fn new(max: u32) -> Self {
        let max = f64::from(max).max(IN_FLIGHT_MIN);
        Self { max, allowed: max, in_flight: 0, quickest: None, shrunk_at: None }
    }

    pub(super) fn is_full(&self) -> bool {
        f64::from(self.in_flight) + 1.0 > self.allowed
    }

    pub(super) fn enter(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A call was answered.
    pub(super) fn served(&mut self, sent_at: Instant, now: Instant) {
        let took = now.saturating_duration_since(sent_at);
        let quickest = self.quickest.map_or(took, |quickest| quickest.min(took));
        self.quickest = Some(quickest);
        if took > LATE_AFTER && took > quickest * LATE_FACTOR {
            self.shrink(sent_at, now);
        } else {
            self.allowed = (self.allowed + 1.0 / self.allowed).min(self.max);
        }
    }

    /// A call that was sent at `sent_at` was one too many.
    pub(super) fn shrink(&mut self, sent_at: Instant, now: Instant) {
        if self.shrunk_at.is_none_or(|at| sent_at >= at) {
            self.allowed = (self.allowed / 2.0).max(IN_FLIGHT_MIN);
            self.shrunk_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(window: &mut Window) -> u32 {
        let before = window.in_flight;
        while !window.is_full() {
            window.enter();
        }
        std::mem::replace(&mut window.in_flight, before)
    }

    #[test]
    fn one_round_of_trouble_halves_it_once_and_good_answers_bring_it_back() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut window = Window::new(24);
        assert_eq!(allowed(&mut window), 24);
        (0..24).for_each(|_| window.shrink(at(0), at(1)));
        assert_eq!(allowed(&mut window), 12);
        (1..20).for_each(|second| window.shrink(at(second), at(second)));
        assert_eq!(allowed(&mut window), 2);
        (0..400).for_each(|_| window.served(at(20), at(20)));
        assert_eq!(allowed(&mut window), 24);
    }

    #[test]
    fn late_answers_narrow_it_where_others_were_quick() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut slow_network = Window::new(24);
        (0..10).for_each(|second| slow_network.served(at(second), at(second + 5)));
        assert_eq!(allowed(&mut slow_network), 24);
        let mut shaped = Window::new(24);
        shaped.served(at(0), at(0));
        shaped.served(at(1), at(6));
        assert_eq!(allowed(&mut shaped), 12);
    }
}
