//! The pace against a simulated hub, in time that is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::pace::{Pace, depth};

fn secs(secs: f64) -> Duration {
    Duration::from_secs_f64(secs)
}

/// A hub as its documentation describes it: a bucket, and 429 when it is empty.
struct SimulatedHub {
    per_sec: f64,
    capacity: f64,
    left: f64,
    at: Instant,
}

impl SimulatedHub {
    fn new(per_sec: f64, burst_secs: f64, at: Instant) -> Self {
        let capacity = (per_sec * burst_secs).max(1.0);
        Self { per_sec, capacity, left: capacity, at }
    }

    fn serves(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_sec).min(self.capacity);
        self.at = now;
        let serves = self.left >= 1.0;
        self.left -= f64::from(u8::from(serves));
        serves
    }
}

/// Calls as fast as the pace lets them; when each was sent, and whether it was served.
fn run(pace: &mut Pace, hub: &mut SimulatedHub, start: Instant, for_secs: f64) -> Vec<(f64, bool)> {
    // Nobody sends more: that is what a real client's processor and network would do without any limit.
    let quickest = Duration::from_millis(2);
    let mut now = start;
    let mut calls = Vec::new();
    loop {
        let ready_at = pace.ready_at(1, now);
        if ready_at > now {
            now = ready_at;
            continue;
        }
        if now > start + secs(for_secs) {
            return calls;
        }
        pace.take(1, now);
        let served = hub.serves(now);
        match served {
            true => pace.served(now),
            false => pace.throttled(now, None, now, u32::MAX / 2),
        }
        calls.push((now.duration_since(start).as_secs_f64(), served));
        now += quickest;
    }
}

#[test]
fn a_quota_is_used_to_95_percent_and_never_exceeded_by_more_than_the_bucket() {
    for quota in [20.0 / 60.0, 100.0 / 60.0, 50.0, 100.0, 250.0] {
        let start = Instant::now();
        let mut pace = Pace::new(Some(quota), start);
        let mut sent: Vec<f64> = Vec::new();
        let mut now = start;
        while now < start + secs(600.0) {
            let ready_at = pace.ready_at(1, now);
            if ready_at <= now {
                pace.take(1, now);
                sent.push(now.duration_since(start).as_secs_f64());
            }
            now = now.max(ready_at);
        }
        let steady = sent.iter().filter(|at| **at > 60.0).count() as f64 / 540.0;
        assert!(steady >= 0.95 * quota && steady <= quota, "{steady} of {quota}");
        // Windows that begin with a call are the worst ones.
        for (first, from) in sent.iter().enumerate().step_by(97) {
            for window_secs in [0.1, 1.0, 10.0, 60.0] {
                let count = sent[first..].iter().take_while(|at| **at <= from + window_secs).count() as f64;
                let most = quota * window_secs + depth(quota) + 1e-3;
                assert!(count <= most, "{count} calls within {window_secs} s, not {most}, quota {quota}");
            }
        }
    }
}

#[test]
fn a_call_that_costs_more_than_the_bucket_holds_is_paid_for_afterwards() {
    let start = Instant::now();
    let mut pace = Pace::new(Some(100.0 / 60.0), start);
    assert!(pace.ready_at(100, start) <= start);
    pace.take(100, start);
    let again = pace.ready_at(1, start).duration_since(start);
    assert!((55.0..62.0).contains(&again.as_secs_f64()), "{again:?}");
    let mut sent = 100.0;
    let mut now = start;
    for _ in 0..20 {
        now = pace.ready_at(100, now);
        assert!(pace.ready_at(100, now) <= now);
        pace.take(100, now);
        sent += 100.0;
    }
    let per_sec = sent / now.duration_since(start).as_secs_f64();
    assert!((1.63..=1.80).contains(&per_sec), "{per_sec}");
}

#[test]
fn without_a_quota_the_rate_of_the_hub_is_found_and_kept() {
    for (per_sec, burst_secs) in [(100.0 / 60.0, 60.0), (5.0, 10.0), (20.0, 0.0), (50.0, 60.0), (100.0, 2.0)]
    {
        let start = Instant::now();
        let (mut pace, mut hub) = (Pace::new(None, start), SimulatedHub::new(per_sec, burst_secs, start));
        let calls = run(&mut pace, &mut hub, start, 1800.0);
        let steady = |served| {
            calls.iter().filter(|(at, was_served)| *at > 600.0 && *was_served == served).count() as f64
        };
        let used = steady(true) / 1200.0 / per_sec;
        let refused = steady(false) / steady(true);
        assert!(used > 0.8, "{used} of {per_sec} per second, burst {burst_secs} s");
        assert!(refused < 0.05, "{refused} of {per_sec} per second, burst {burst_secs} s");
    }
}

#[test]
fn below_a_quota_it_learns_what_others_leave_and_comes_back_when_they_go() {
    let start = Instant::now();
    let mut pace = Pace::new(Some(100.0), start);
    let mut shared = SimulatedHub::new(30.0, 2.0, start);
    let calls = run(&mut pace, &mut shared, start, 900.0);
    let used = calls.iter().filter(|(at, served)| *at > 300.0 && *served).count() as f64 / 600.0 / 30.0;
    assert!(used > 0.8, "{used}");
    let alone_since = start + secs(900.0);
    let mut alone = SimulatedHub::new(100.0, 2.0, alone_since);
    let calls = run(&mut pace, &mut alone, alone_since, 300.0);
    let used = calls.iter().filter(|(at, served)| *at > 200.0 && *served).count() as f64 / 100.0 / 100.0;
    assert!(used > 0.95, "{used}");
}

#[test]
fn a_round_of_429_halves_the_pace_once() {
    let start = Instant::now();
    let at = |s| start + secs(s);
    let mut pace = Pace::new(Some(100.0), start);
    let mut now = start;
    while now < at(60.0) {
        now = pace.ready_at(1, now).max(now);
        pace.take(1, now);
    }
    let before = pace.per_sec().unwrap();
    (0..24).for_each(|_| pace.throttled(at(59.0), None, at(60.0), 0));
    let after = pace.per_sec().unwrap();
    assert!((0.4..=0.55).contains(&(after / before)), "{before} to {after}");
    assert_eq!(pace.ready_at(1, at(60.2)), at(60.5), "the pause that no call is sent in");
}

#[test]
fn the_longest_retry_after_holds_and_a_foolish_one_is_cut() {
    let start = Instant::now();
    let mut pace = Pace::new(None, start);
    pace.take(1, start);
    pace.throttled(start, Some(Duration::from_secs(7)), start, 0);
    pace.throttled(start, Some(Duration::from_secs(3)), start, 0);
    assert_eq!(pace.ready_at(1, start), start + Duration::from_secs(7));
    pace.throttled(start, Some(Duration::MAX), start, u32::MAX);
    let held = pace.ready_at(1, start).duration_since(start);
    assert!((3600.0..3601.0).contains(&held.as_secs_f64()), "{held:?}");
    assert_eq!(pace.closed_for(start), Some(Duration::from_secs(3600)));
    assert_eq!(pace.closed_for(start + Duration::from_secs(3600)), None);
}

#[test]
fn idle_time_teaches_nothing() {
    let start = Instant::now();
    let mut pace = Pace::new(None, start);
    for n in 0..100 {
        pace.take(1, start + secs(f64::from(n) / 10.0));
    }
    let then = start + secs(10.0);
    pace.throttled(then, None, then, 0);
    let learned = pace.per_sec().unwrap();
    let next_day = start + Duration::from_secs(86_400);
    assert!(pace.ready_at(1, next_day) <= next_day);
    pace.take(1, next_day);
    assert!(pace.per_sec().unwrap() < 2.0 * learned);
}
