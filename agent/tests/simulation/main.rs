//! The real driver, session, store, key ring and parser in worlds that a seed determines: hub, network, disk, clock,
//! operator and a second agent misbehave, then the world heals, and the agent must come to rest. docs/simulation.md
//! says what is modelled.
//!
//! `TWINKEY_SIM_SEED` and `TWINKEY_SIM_N` choose the first seed and the number of histories.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that panics has failed, as it should"
)]

mod disk;
mod history;
mod hub;
mod net;
mod operator;
mod rng;
mod stranger;
mod tally;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::history::run;
use crate::tally::Tally;

/// Seeds that once failed, with what they showed.
const CORPUS: &str = include_str!("../../../tests/corpus/simulation.txt");
/// So many histories show every fault and every outcome.
const FULL_RUN: u64 = 10_000;
/// As many as everybody has the patience for; code that is not optimised takes its time.
const SHORT_RUN: u64 = if cfg!(debug_assertions) { 100 } else { 2_000 };

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// As many failing seeds are looked for, so that one can see whether they are of one kind.
const FAILURES_MAX: usize = 12;

/// Names what failed; runs the first again with its log, and says how to repeat it.
fn complain(failures: &[(u64, String)]) -> ! {
    for (seed, violation) in failures {
        println!("seed {seed}: {violation}");
    }
    let seed = failures[0].0;
    let ended = run(seed, true);
    for line in &ended.log {
        println!("{line}");
    }
    panic!(
        "seed {seed}: {}\nrepeat it with: just sim SEED={seed} N=1",
        ended
            .violation
            .as_deref()
            .unwrap_or("the violation did not come again: the simulation is not deterministic")
    );
}

/// What many histories came to.
struct Sum {
    tally: Tally,
    virtual_secs: u64,
    /// The longest way from healing to rest, and its seed.
    slowest: (u64, u64),
}

impl Sum {
    fn new() -> Self {
        Self { tally: Tally::new(), virtual_secs: 0, slowest: (0, 0) }
    }

    fn add(&mut self, tally: &Tally, virtual_secs: u64, slowest: (u64, u64)) {
        self.tally.add(tally);
        self.virtual_secs += virtual_secs;
        self.slowest = self.slowest.max(slowest);
    }
}

/// One runtime on one thread for each history, as many at once as there are processors.
fn run_all(first: u64, count: u64) -> Result<Sum, Vec<(u64, String)>> {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let sum = Mutex::new(Sum::new());
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = Sum::new();
                while failures.lock().unwrap().len() < FAILURES_MAX {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        break;
                    }
                    let seed = first.wrapping_add(index);
                    let ended = run(seed, false);
                    own.add(&ended.tally, ended.virtual_secs, (ended.rest_after_ms, seed));
                    if let Some(violation) = ended.violation {
                        failures.lock().unwrap().push((seed, violation));
                    }
                }
                sum.lock().unwrap().add(&own.tally, own.virtual_secs, own.slowest);
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    if failures.is_empty() { Ok(sum.into_inner().unwrap()) } else { Err(failures) }
}

#[test]
fn seeds_that_once_failed_hold() {
    for line in CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let seed = line.split_whitespace().next().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| panic!("no seed: {line}"));
        if let Some(violation) = run(seed, false).violation {
            complain(&[(seed, violation)]);
        }
    }
}

#[test]
fn same_seed_gives_same_history() {
    let first = number("TWINKEY_SIM_SEED").unwrap_or(1);
    for seed in first..first + SHORT_RUN / 10 {
        let (one, other) = (run(seed, true), run(seed, true));
        let place = one.log.iter().zip(&other.log).position(|(one, other)| one != other);
        let place = place.unwrap_or(one.log.len().min(other.log.len()));
        assert!(
            one.log == other.log,
            "seed {seed} differs from line {place} on:\n  {:?}\n  {:?}",
            one.log.get(place),
            other.log.get(place)
        );
    }
}

#[test]
fn whatever_happens_the_agent_comes_to_rest_on_the_newest_accepted_key() {
    let first = number("TWINKEY_SIM_SEED").unwrap_or(1);
    let count = number("TWINKEY_SIM_N").unwrap_or(SHORT_RUN);
    let began = tokio::time::Instant::now();
    if count == 1 {
        // Whoever asks for one history wants to read it.
        run(first, true).log.iter().for_each(|line| println!("{line}"));
    }
    let sum = run_all(first, count).unwrap_or_else(|failures| complain(&failures));
    println!(
        "{count} histories from seed {first}: {:.1} years in {:.1} s, rest after {:.0} s at most (seed {})",
        sum.virtual_secs as f64 / 31_557_600.0,
        began.elapsed().as_secs_f64(),
        sum.slowest.0 as f64 / 1_000.0,
        sum.slowest.1,
    );
    for (seen, count) in sum.tally.iter() {
        println!("  {seen:?} {count}");
    }
    if count >= FULL_RUN {
        let blind: Vec<_> = sum.tally.iter().filter(|(_, count)| *count == 0).map(|(seen, _)| seen).collect();
        assert!(blind.is_empty(), "never seen, so not tested: {blind:?}");
    }
}
