//! What a hub allows, by what is asked of it.
//!
//! Source: IoT Hub documentation, "IoT Hub quotas and throttling", operation throttles. The free tier and the basic ones have
//! the limits of the standard tier beside them in that table.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What calls are limited by: each category has a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Category {
    /// Identities: create, read, list, replace, delete, new keys.
    Registry,
    TwinReads,
    TwinUpdates,
    Queries,
    /// Direct methods.
    Methods,
}

/// A hub's tier, which sets the limits of each unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Tier {
    #[value(name = "S1")]
    S1,
    #[value(name = "S2")]
    S2,
    #[value(name = "S3")]
    S3,
}

impl Tier {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
        }
    }
}

/// How fast calls may go out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limits {
    /// As the tier and its number of units allow; slower where the hub says so, because others use it too.
    Tier(Tier, u32),
    /// As fast as the hub takes it, which it tells by 429.
    Unlimited,
}

impl Category {
    pub(crate) const ALL: [Self; 5] =
        [Self::Registry, Self::TwinReads, Self::TwinUpdates, Self::Queries, Self::Methods];

    /// As in `/$emulator/throttles` and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::TwinReads => "twinReads",
            Self::TwinUpdates => "twinUpdates",
            Self::Queries => "queries",
            Self::Methods => "methods",
        }
    }

    /// Operations per second that are always tried: a part of what the smallest hub allows, of which other programs may use the rest.
    pub(super) fn least_per_sec(self) -> f64 {
        const SHARE: f64 = 0.25;
        Limits::tier(Tier::S1, 1).per_sec(self).unwrap_or_default() * SHARE
    }

    /// Most calls under way at once: 64 on one hub, shared out so that a category whose answers are late can't keep
    /// others waiting.
    pub(super) fn in_flight_max(self) -> u32 {
        match self {
            Self::Registry | Self::TwinReads => 24,
            Self::TwinUpdates => 10,
            Self::Queries | Self::Methods => 3,
        }
    }
}

impl Limits {
    /// What a hub of this tier with so many units allows. No unit at all counts as one.
    pub(crate) fn tier(tier: Tier, units: u32) -> Self {
        Self::Tier(tier, units.max(1))
    }

    /// Without a limit until the hub shows one.
    pub(crate) fn unlimited() -> Self {
        Self::Unlimited
    }

    /// Operations per second, where a limit is known.
    pub(crate) fn per_sec(self, category: Category) -> Option<f64> {
        let Self::Tier(tier, units) = self else { return None };
        let units = f64::from(units);
        Some(match (category, tier) {
            (Category::Registry, Tier::S1 | Tier::S2) => units * 100.0 / 60.0,
            (Category::Registry, Tier::S3) => units * 5000.0 / 60.0,
            (Category::Queries, Tier::S1 | Tier::S2) => units * 20.0 / 60.0,
            (Category::Queries, Tier::S3) => units * 1000.0 / 60.0,
            // Those of S1 are the hub's, however many units it has.
            (Category::TwinReads, Tier::S1) => 100.0,
            (Category::TwinReads, Tier::S2) => (units * 10.0).max(100.0),
            (Category::TwinReads, Tier::S3) => units * 500.0,
            (Category::TwinUpdates, Tier::S1) => 50.0,
            (Category::TwinUpdates, Tier::S2) => (units * 5.0).max(50.0),
            (Category::TwinUpdates, Tier::S3) => units * 250.0,
            // 160 KB, 480 KB and 24 MB a second, metered in steps of 4 KB.
            (Category::Methods, Tier::S1) => units * 40.0,
            (Category::Methods, Tier::S2) => units * 120.0,
            (Category::Methods, Tier::S3) => units * 6000.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_allows_what_the_documentation_says() {
        let per_minute = |tier, units| {
            Category::ALL.map(|category| {
                Limits::tier(tier, units).per_sec(category).map(|per_sec| (per_sec * 60.0).round())
            })
        };
        let some = |numbers: [f64; 5]| numbers.map(Some);
        assert_eq!(per_minute(Tier::S1, 1), some([100.0, 6000.0, 3000.0, 20.0, 2400.0]));
        assert_eq!(per_minute(Tier::S1, 9), some([900.0, 6000.0, 3000.0, 180.0, 21_600.0]));
        assert_eq!(per_minute(Tier::S2, 2), some([200.0, 6000.0, 3000.0, 40.0, 14_400.0]));
        assert_eq!(per_minute(Tier::S2, 20), some([2000.0, 12_000.0, 6000.0, 400.0, 144_000.0]));
        assert_eq!(per_minute(Tier::S3, 2), some([10_000.0, 60_000.0, 30_000.0, 2000.0, 720_000.0]));
        assert_eq!(per_minute(Tier::S1, 0), per_minute(Tier::S1, 1));
        assert_eq!(Category::ALL.map(|category| Limits::unlimited().per_sec(category)), [None; 5]);
    }

    #[test]
    fn at_most_64_calls_are_under_way() {
        assert_eq!(Category::ALL.map(Category::in_flight_max).iter().sum::<u32>(), 64);
    }
}
