//! What a hub of each tier allows.

use serde::{Deserialize, Serialize};

use super::Category;

/// Most units of a hub (IoT Hub documentation, "Choose the right tier"): 200, of S1 and S2.
const UNITS_MAX: u32 = 200;
/// Longest burst and queue that can be asked for, in seconds: an hour.
const SECS_MAX: u64 = 3600;
/// A hub's tier. The basic tiers have the limits of the standard tier of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Tier {
    S1,
    S2,
    S3,
}

/// What a CONNECT over the limit gets: there is no 429 in CONNACK, and both have been seen of the real hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnConnect {
    /// CONNACK comes late; none comes if the wait would be over `queueSecs`.
    #[default]
    Delay,
    /// No CONNACK.
    Silence,
}

/// What a bulk request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bulk {
    /// One operation for each entry: the careful guess, since the documentation does not say.
    #[default]
    Entries,
    /// One operation for all.
    One,
}

/// The fault `throttles`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    tier: Tier,
    #[serde(default = "one_unit")]
    units: u32,
    #[serde(default = "one_minute")]
    pub(super) burst_secs: u64,
    #[serde(default = "ten_seconds")]
    pub(super) queue_secs: u64,
    /// Whether a 429 carries `Retry-After`.
    #[serde(default)]
    pub(super) retry_after: bool,
    #[serde(default)]
    pub(super) on_connect: OnConnect,
    #[serde(default)]
    pub(crate) bulk: Bulk,
}

fn one_unit() -> u32 {
    1
}

fn one_minute() -> u64 {
    60
}

fn ten_seconds() -> u64 {
    10
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=UNITS_MAX).contains(&self.units) {
            return Err(format!("throttles: units is 1 to {UNITS_MAX}"));
        }
        if self.burst_secs > SECS_MAX || self.queue_secs > SECS_MAX {
            return Err(format!("throttles: burstSecs and queueSecs are at most {SECS_MAX}"));
        }
        Ok(())
    }

    /// Operations per second.
    pub(super) fn rate(&self, category: Category) -> f64 {
        let units = f64::from(self.units);
        let per_unit = |by_tier: [f64; 3]| by_tier.into_iter().nth(self.tier as usize).unwrap_or(0.0) * units;
        let per_minute_and_unit = |by_tier: [f64; 3]| per_unit(by_tier) / 60.0;
        match category {
            Category::Registry | Category::CloudToDevice | Category::Jobs => {
                per_minute_and_unit([100.0, 100.0, 5000.0])
            }
            Category::Connections | Category::DeviceToCloud => match self.tier {
                Tier::S1 => (12.0 * units).max(100.0),
                Tier::S2 => 120.0 * units,
                Tier::S3 => 6000.0 * units,
            },
            Category::TwinReads => match self.tier {
                Tier::S1 => 100.0,
                Tier::S2 => (10.0 * units).max(100.0),
                Tier::S3 => 500.0 * units,
            },
            Category::TwinUpdates => match self.tier {
                Tier::S1 => 50.0,
                Tier::S2 => (5.0 * units).max(50.0),
                Tier::S3 => 250.0 * units,
            },
            // 160 KB, 480 KB and 24 MB per second and unit, in steps of 4 KB.
            Category::Methods => per_unit([40.0, 120.0, 6000.0]),
            Category::Queries => per_minute_and_unit([20.0, 20.0, 1000.0]),
            Category::Configurations => per_minute_and_unit([20.0; 3]),
        }
    }
}
