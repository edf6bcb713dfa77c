//! Operations by category: how many there were, and how many a hub of a given tier would allow.
//!
//! Limits: IoT Hub documentation, "IoT Hub quotas and throttling", operation throttles. The documentation says that a
//! hub first serves what is over the limit at once "for the first minute or two", then queues it and serves it at the
//! limit's rate ("traffic shaping"), and then refuses it with 429 as the queue fills up. So each category has a bucket of tokens that
//! fills at the limit's rate and holds `burstSecs` of it; whoever finds it empty waits, and is refused if the wait would
//! be over `queueSecs`. How large the real hub's buckets and queues are is not documented.

mod limits;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::clock::Moment;
use limits::OnConnect;
pub(crate) use limits::{Bulk, Settings};

/// The meter's step for direct methods in bytes (same document, throttling details).
const METHOD_STEP_BYTES: usize = 4096;

/// What operations are counted and limited by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Category {
    Registry,
    TwinReads,
    TwinUpdates,
    Connections,
    DeviceToCloud,
    CloudToDevice,
    Methods,
    Queries,
    Jobs,
    Configurations,
}

impl Category {
    const ALL: [Self; 10] = [
        Self::Registry,
        Self::TwinReads,
        Self::TwinUpdates,
        Self::Connections,
        Self::DeviceToCloud,
        Self::CloudToDevice,
        Self::Methods,
        Self::Queries,
        Self::Jobs,
        Self::Configurations,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::TwinReads => "twinReads",
            Self::TwinUpdates => "twinUpdates",
            Self::Connections => "connections",
            Self::DeviceToCloud => "deviceToCloud",
            Self::CloudToDevice => "cloudToDevice",
            Self::Methods => "methods",
            Self::Queries => "queries",
            Self::Jobs => "jobs",
            Self::Configurations => "configurations",
        }
    }

    /// The category of a request over HTTPS; `None` for what no limit is known for, and for the operator's requests.
    pub(crate) fn of_request(method: &str, path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (method, segments.as_slice()) {
            // In the real hub's place this is AMQP.
            ("POST", ["$emulator", "c2d"]) | ("DELETE", ["devices", _, "commands"]) => {
                Some(Self::CloudToDevice)
            }
            ("POST", ["devices", "query"]) => Some(Self::Queries),
            ("POST", ["devices", _, "messages", "events"]) => Some(Self::DeviceToCloud),
            (_, ["devices", _, "applyConfigurationContent"] | ["configurations", ..]) => {
                Some(Self::Configurations)
            }
            ("GET", ["twins" | "digitaltwins", ..]) => Some(Self::TwinReads),
            ("POST", ["twins" | "digitaltwins", ..]) => Some(Self::Methods),
            (_, ["twins" | "digitaltwins", ..]) => Some(Self::TwinUpdates),
            (_, ["jobs", ..]) => Some(Self::Jobs),
            (_, ["devices" | "statistics", ..]) => Some(Self::Registry),
            _ => None,
        }
    }

    /// How many operations a request takes.
    pub(crate) fn cost(self, path: &str, body: &[u8], bulk: Bulk) -> u64 {
        #[derive(Deserialize)]
        struct Regeneration {
            devices: Vec<IgnoredAny>,
        }
        let cost = match (self, path, bulk) {
            (Self::Methods, _, _) => body.len().div_ceil(METHOD_STEP_BYTES),
            (Self::Registry, "/devices", Bulk::Entries) => {
                serde_json::from_slice::<Vec<IgnoredAny>>(body).map_or(1, |entries| entries.len())
            }
            (Self::Registry, "/devices/keys/regenerate", Bulk::Entries) => {
                serde_json::from_slice::<Regeneration>(body).map_or(1, |body| body.devices.len())
            }
            _ => 1,
        };
        u64::try_from(cost).unwrap_or(u64::MAX).max(1)
    }
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is served after this time, which is mostly zero.
    Serve(Duration),
    /// It is refused; this long until one of its kind would be served.
    Refuse { retry_after: Option<Duration> },
}

#[derive(Debug, Default)]
struct Meter {
    requests: u64,
    operations: u64,
    delayed: u64,
    refused: u64,
    /// What was left at a moment; `None` if the bucket is full.
    left: Option<(Moment, f64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Throttles {
    meters: BTreeMap<Category, Meter>,
}

impl Throttles {
    /// Counts an operation of `cost`, and judges it if there are limits.
    pub(crate) fn take(
        &mut self,
        settings: Option<&Settings>,
        category: Category,
        cost: u64,
        now: Moment,
    ) -> Verdict {
        let meter = self.meters.entry(category).or_default();
        meter.requests += 1;
        let Some(settings) = settings else {
            meter.operations += cost;
            return Verdict::Serve(Duration::ZERO);
        };
        let rate = settings.rate(category);
        let left = meter.left_at(now, rate, settings.burst_secs);
        let wait = Duration::try_from_secs_f64((1.0 - left).max(0.0) / rate).unwrap_or(Duration::MAX);
        if wait > Duration::from_secs(settings.queue_secs) {
            meter.refused += 1;
            return Verdict::Refuse { retry_after: settings.retry_after.then_some(wait) };
        }
        meter.operations += cost;
        meter.delayed += u64::from(!wait.is_zero());
        meter.left = Some((now, left - cost as f64));
        Verdict::Serve(wait)
    }

    /// The same for CONNECT; `None` stands for an answer that never comes.
    pub(crate) fn take_connection(&mut self, settings: Option<&Settings>, now: Moment) -> Option<Duration> {
        let silent = settings.is_some_and(|settings| settings.on_connect == OnConnect::Silence);
        match self.take(settings, Category::Connections, 1, now) {
            Verdict::Serve(wait) => Some(wait).filter(|wait| wait.is_zero() || !silent),
            Verdict::Refuse { .. } => None,
        }
    }

    /// Fills every bucket, as after a change of the limits.
    pub(crate) fn fill(&mut self) {
        self.meters.values_mut().for_each(|meter| meter.left = None);
    }

    /// The operator's JSON.
    pub(crate) fn view(&self, settings: Option<&Settings>, now: Moment) -> Value {
        let none = Meter::default();
        let categories: Map<String, Value> = Category::ALL
            .into_iter()
            .map(|category| {
                let meter = self.meters.get(&category).unwrap_or(&none);
                let limit = settings.map(|settings| settings.rate(category));
                let left = settings
                    .map(|settings| meter.left_at(now, settings.rate(category), settings.burst_secs).floor());
                let view = json!({
                    "requests": meter.requests,
                    "operations": meter.operations,
                    "delayed": meter.delayed,
                    "refused": meter.refused,
                    "limitPerSec": limit,
                    "left": left,
                });
                (category.name().to_owned(), view)
            })
            .collect();
        json!({"nowMs": now, "throttles": settings, "categories": categories})
    }
}

impl Meter {
    /// Tokens in the bucket; fewer than none if operations wait for theirs.
    fn left_at(&self, now: Moment, rate: f64, burst_secs: u64) -> f64 {
        let capacity = (rate * burst_secs as f64).max(1.0);
        match self.left {
            None => capacity,
            Some((at, left)) => (left + now.since(at).as_secs_f64() * rate).min(capacity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn settings(value: Value) -> Settings {
        serde_json::from_value(value).unwrap()
    }

    fn taken_at_once(throttles: &mut Throttles, settings: &Settings, category: Category, now: Moment) -> u32 {
        (0..)
            .find(|_| throttles.take(Some(settings), category, 1, now) != Verdict::Serve(Duration::ZERO))
            .unwrap()
    }

    #[test]
    fn limits_are_those_of_the_documentation() {
        let rates = |tier: &str, units: u32| {
            let settings = settings(json!({"tier": tier, "units": units}));
            Category::ALL.map(|category| (settings.rate(category) * 60.0).round())
        };
        let [registry, reads, updates, connections, d2c, c2d, methods, queries, jobs, configurations] =
            rates("S1", 9);
        assert_eq!((registry, reads, updates), (900.0, 6000.0, 3000.0));
        assert_eq!((connections, d2c, c2d), (108.0 * 60.0, 108.0 * 60.0, 900.0));
        assert_eq!((methods, queries, jobs, configurations), (360.0 * 60.0, 180.0, 900.0, 180.0));
        assert_eq!(rates("S1", 2)[3], 6000.0);
        assert_eq!(rates("S2", 20)[..4], [2000.0, 12_000.0, 6000.0, 144_000.0]);
        assert_eq!(rates("S3", 2)[..4], [10_000.0, 60_000.0, 30_000.0, 720_000.0]);
    }

    #[test]
    fn a_burst_is_served_at_once_then_late_then_refused() {
        let limits = settings(json!({"tier": "S1", "queueSecs": 6, "retryAfter": true}));
        let now = Clock::start().now();
        let mut throttles = Throttles::default();
        assert_eq!(taken_at_once(&mut throttles, &limits, Category::Registry, now), 100);
        let mut waits = Vec::new();
        let retry_after = loop {
            match throttles.take(Some(&limits), Category::Registry, 1, now) {
                Verdict::Serve(wait) => waits.push(wait),
                Verdict::Refuse { retry_after } => break retry_after.unwrap(),
            }
        };
        assert!(waits.is_sorted() && waits.len() == 9, "{waits:?}");
        assert!((Duration::from_secs(6)..Duration::from_secs(7)).contains(&retry_after), "{retry_after:?}");
        let later = now.plus(Duration::from_secs(60) + retry_after);
        assert_eq!(taken_at_once(&mut throttles, &limits, Category::Registry, later), 100);
    }

    #[test]
    fn a_bulk_request_takes_as_much_as_its_entries() {
        let body = br#"[{"id":"a"},{"id":"b"},{"id":"c"}]"#;
        assert_eq!(Category::Registry.cost("/devices", body, Bulk::Entries), 3);
        assert_eq!(Category::Registry.cost("/devices", body, Bulk::One), 1);
        let body = br#"{"policyKey":"both","devices":[{"id":"a"},{"id":"b"}]}"#;
        assert_eq!(Category::Registry.cost("/devices/keys/regenerate", body, Bulk::Entries), 2);
        assert_eq!(Category::Registry.cost("/devices", b"nonsense", Bulk::Entries), 1);
        assert_eq!(Category::Methods.cost("/twins/d1/methods", &[b' '; 4097], Bulk::One), 2);
        let (limits, now) = (settings(json!({"tier": "S1", "burstSecs": 0})), Clock::start().now());
        let mut throttles = Throttles::default();
        assert_eq!(
            throttles.take(Some(&limits), Category::Registry, 100, now),
            Verdict::Serve(Duration::ZERO)
        );
        let refused = throttles.take(Some(&limits), Category::Registry, 1, now);
        assert_eq!(refused, Verdict::Refuse { retry_after: None });
    }

    #[test]
    fn requests_have_the_category_that_the_documentation_names() {
        for (method, path, category) in [
            ("GET", "/devices/d1", Some(Category::Registry)),
            ("GET", "/devices/query", Some(Category::Registry)),
            ("POST", "/devices/query", Some(Category::Queries)),
            ("GET", "/twins/d1/modules/m1", Some(Category::TwinReads)),
            ("PATCH", "/twins/d1", Some(Category::TwinUpdates)),
            ("POST", "/twins/d1/methods", Some(Category::Methods)),
            ("PUT", "/jobs/v2/j1", Some(Category::Jobs)),
            ("POST", "/$emulator/c2d", Some(Category::CloudToDevice)),
            ("POST", "/$emulator/faults", None),
            ("GET", "/", None),
        ] {
            assert_eq!(Category::of_request(method, path), category, "{method} {path}");
        }
    }

    #[test]
    fn operations_are_counted_without_limits_too() {
        let mut throttles = Throttles::default();
        let now = Clock::start().now();
        for _ in 0..3 {
            throttles.take(None, Category::Registry, 5, now);
        }
        let view = throttles.view(None, now);
        assert_eq!(
            (&view["categories"]["registry"]["operations"], &view["throttles"]),
            (&json!(15), &Value::Null)
        );
        assert_eq!(view["categories"]["twinReads"]["requests"], 0);
    }
}
