//! Chance that can be repeated: everything random in the faults comes from one seed.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Default)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A whole number from 0 to `max`, both included.
    pub(crate) fn up_to(&mut self, max: u64) -> u64 {
        match max.checked_add(1) {
            Some(bound) => self.next() % bound,
            None => self.next(),
        }
    }

    /// Whether something of this probability happens. Certain and impossible things take no number.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        /// 2^53, the steps of a double between 0 and 1.
        const STEPS: f64 = 9_007_199_254_740_992.0;
        if probability >= 1.0 {
            return true;
        }
        probability > 0.0 && ((self.next() >> 11) as f64) / STEPS < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        let mut chance = Chance::new(1_234_567);
        let first = [(); 3].map(|()| chance.next());
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn probabilities_come_true_about_as_often_as_they_say() {
        let mut chance = Chance::new(7);
        let happened = (0..10_000).filter(|_| chance.happens(0.3)).count();
        assert!((2_700..3_300).contains(&happened), "{happened}");
        assert!((0..100).all(|_| chance.happens(1.0) && !chance.happens(0.0)));
        assert!((0..100).all(|_| chance.up_to(3) <= 3) && Chance::new(1).up_to(0) == 0);
    }
}
