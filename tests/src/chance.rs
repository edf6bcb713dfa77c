//! Chance that can be repeated: `TWINKEY_SEED` brings a run back, and every run prints its seed.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// The seed of `TWINKEY_SEED`, or a new one; printed either way.
    pub fn from_environment() -> Self {
        let seed = match std::env::var("TWINKEY_SEED") {
            Ok(text) => text.parse().expect("TWINKEY_SEED is a whole number"),
            Err(_) => RandomState::new().hash_one(0),
        };
        println!("TWINKEY_SEED={seed}");
        Self(seed)
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Another source of chance, which follows from this one.
    pub fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    /// A moment within `whole`, in microseconds' steps.
    pub fn moment(&mut self, whole: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(whole.as_micros()).unwrap().max(1)))
    }
}
