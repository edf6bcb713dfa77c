//! What a rollout costs in operations that a hub limits, and how long its limits make it take.

use std::time::Duration;

use serde::Serialize;

use super::spec::{HubSize, Keys, Source, Spec};
use crate::hub::{Category, Limits};

/// Twins that one query tells of.
const TWINS_PER_QUERY: u64 = 100;
/// Looks at a wave's twins until the last one of a hundred has proved its key: what the local hub needed.
const LOOKS_PER_SLOT: u64 = 3;

/// Operations by the limits that they count against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operations {
    pub(crate) registry: u64,
    pub(crate) twin_reads: u64,
    pub(crate) twin_updates: u64,
    pub(crate) queries: u64,
}

/// How long at least, and because of what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) operations: Operations,
    pub(crate) by_limits: Duration,
    /// The limit that counts.
    pub(crate) narrowest: &'static str,
    /// Time that waves spend soaking, one after the other.
    pub(crate) soaking: Duration,
}

/// What the renewals of `devices` devices in `waves` waves take, without retries, faults and slow devices.
pub(crate) fn estimate(spec: &Spec, devices: usize, waves: usize) -> Estimate {
    let (devices, waves) = (devices as u64, waves as u64);
    let slots = u64::from(spec.slots_per_device());
    // One device's two slots in one go share the reading of the identity, the lease, and the erasing (ADR 0012).
    let visits = if spec.keys == Keys::Both && spec.soak.is_zero() { 1 } else { slots };
    // The identity is read once in a visit; each key is one more.
    let registry = visits + slots;
    // With keys that the hub makes, the answer to taking the lease is the twin.
    let (twin_reads, twin_updates) = match spec.key_source {
        Source::Service => (0, 2 * visits + slots),
        Source::Local => (visits, visits + slots),
    };
    let pages = devices.div_ceil(TWINS_PER_QUERY);
    let looks = visits + slots * LOOKS_PER_SLOT;
    let operations = Operations {
        registry: devices * registry,
        twin_reads: devices * twin_reads,
        twin_updates: devices * twin_updates,
        queries: pages + looks * (pages + waves.saturating_sub(1)),
    };
    let (narrowest, by_limits) = duration(operations, spec.hub);
    let soaks = u32::try_from(waves).unwrap_or(u32::MAX);
    Estimate { operations, by_limits, narrowest, soaking: spec.soak.saturating_mul(soaks) }
}

/// Operations per second.
fn rates(hub: HubSize) -> [(&'static str, f64); 4] {
    let limits = Limits::tier(hub.estimated_tier(), hub.units);
    let rate = |category| limits.per_sec(category).unwrap_or(f64::INFINITY);
    [
        ("registry operations", rate(Category::Registry)),
        ("twin reads", rate(Category::TwinReads)),
        ("twin updates", rate(Category::TwinUpdates)),
        ("queries", rate(Category::Queries)),
    ]
}

/// The kinds don't wait for each other: the one that takes longest counts.
fn duration(operations: Operations, hub: HubSize) -> (&'static str, Duration) {
    let Operations { registry, twin_reads, twin_updates, queries } = operations;
    let counts = [registry, twin_reads, twin_updates, queries];
    let times = rates(hub).into_iter().zip(counts).map(|((name, rate), count)| (name, count as f64 / rate));
    let longest = times.max_by(|(_, one), (_, other)| one.total_cmp(other));
    longest.map_or(("", Duration::ZERO), |(name, secs)| (name, Duration::from_secs_f64(secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        Spec::parse(&format!("target = '*'\n{text}"), "test").unwrap()
    }

    #[test]
    fn both_slots_in_one_go_take_seven_changes_and_reads() {
        let operations = estimate(&spec(""), 1, 1).operations;
        assert_eq!((operations.registry, operations.twin_updates), (3, 4));
        let apart = estimate(&spec("soak = '1h'"), 1, 1).operations;
        assert_eq!((apart.registry, apart.twin_updates), (4, 6));
        let one = estimate(&spec("keys = 'idle'"), 1, 1).operations;
        assert_eq!((one.registry, one.twin_updates), (2, 3));
        let local = estimate(&spec("key_source = 'local'"), 1, 1).operations;
        assert_eq!((local.registry, local.twin_reads, local.twin_updates), (3, 1, 3));
    }

    #[test]
    fn the_registry_is_the_bottleneck_of_small_hubs() {
        let small = estimate(&spec(""), 10_000, 4);
        assert_eq!((small.narrowest, small.by_limits.as_secs()), ("registry operations", 300 * 60));
        let more = estimate(&spec("hub = { tier = 'S1', units = 10 }"), 10_000, 4);
        assert_eq!(more.by_limits.as_secs(), 30 * 60);
        let large = estimate(&spec("hub = { tier = 'S3' }"), 10_000, 4);
        assert_eq!((large.narrowest, large.by_limits.as_secs()), ("registry operations", 6 * 60));
    }

    #[test]
    fn every_wave_soaks() {
        assert_eq!(estimate(&spec("soak = '24h'"), 100, 3).soaking.as_secs(), 3 * 24 * 3600);
    }
}
