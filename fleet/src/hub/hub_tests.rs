//! A [`Hub`] against the local hub with a tier's limits, and against hubs that are not there.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use twinkey_contract::Identity;
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_emulator::{Emulator, Options, start};

use super::line::{Outcome, Place};
use super::pace::depth;
use super::{CaFile, Category, Collection, Columns, Hub, HubError, Limits, Query, Tier, Usage};

/// Units of the hubs here: 2000 operations on identities in a minute, which a busy machine can do.
const UNITS: u32 = 20;
/// The same in a second.
const QUOTA: f64 = 2000.0 / 60.0;

struct World {
    emulator: Emulator,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start(faults: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let Value::Object(faults) = faults else { panic!("faults are an object") };
        let emulator =
            start(Options { data_dir: dir.path().join("hub"), faults, ..Options::default() }).await.unwrap();
        Self { emulator, _dir: dir }
    }

    fn hub(&self, limits: Limits) -> Arc<Hub> {
        let ready = self.emulator.ready();
        let login = ServiceConnectionString::parse(&ready.service_connection_string).unwrap();
        let ca_file = CaFile { path: &ready.ca_file, named_by: "the hub's CA" };
        Arc::new(Hub::new(&login, Some(ca_file)).unwrap_or_else(|e| panic!("{}", e.what)).with_limits(limits))
    }

    /// What the local hub counted.
    async fn registry_throttle(&self, hub: &Hub) -> Value {
        let answer = hub
            .transport
            .exchange(Method::GET, "/$emulator/throttles", HeaderMap::new(), None)
            .await
            .unwrap();
        let mut seen: Value = serde_json::from_slice(&answer.body).unwrap();
        seen["categories"]["registry"].take()
    }
}

/// A hub's address where nothing is to be had, with a key that opens nothing.
fn hub_at(address: &str) -> Arc<Hub> {
    let text = format!(
        "HostName={address};SharedAccessKeyName=iothubowner;SharedAccessKey=bm90aGluZ25vdGhpbmdub3RoaW5nbm90aGluZyEhISE="
    );
    let login = ServiceConnectionString::parse(&text).unwrap();
    Arc::new(Hub::new(&login, None).unwrap_or_else(|e| panic!("{}", e.what)))
}

fn device(n: usize) -> Identity {
    Identity { device_id: format!("d{n}"), module_id: None }
}

fn registry(hub: &Hub) -> Usage {
    hub.usage().into_iter().find(|(category, _)| *category == Category::Registry).unwrap().1
}

/// Reads so many identities with 30 tasks at once; how long it took.
async fn read_identities(hub: &Arc<Hub>, count: usize) -> Duration {
    let (next, start) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for _ in 0..30 {
        let (hub, next) = (hub.clone(), next.clone());
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                if let Err(error) = hub.device(&device(0)).await {
                    assert_eq!(error.status(), Some(404), "{error}");
                }
            }
        });
    }
    tasks.join_all().await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_tier_the_documented_quota_is_used_and_the_hub_refuses_nothing() {
    let throttles = json!({"tier": "S1", "units": UNITS, "burstSecs": 3, "queueSecs": 0});
    let world = World::start(json!({"throttles": throttles})).await;
    let hub = world.hub(Limits::tier(Tier::S1, UNITS));
    let took = read_identities(&hub, 600).await;
    let usage = registry(&hub);
    // What the bucket held at first is no proof of the pace.
    let share = (usage.calls as f64 - depth(QUOTA)) / took.as_secs_f64() / QUOTA;
    assert!(share >= 0.9, "{share} of the quota: {usage:?}");
    assert_eq!((usage.calls, usage.throttled, usage.failed), (600, 0, 0));
    let seen = world.registry_throttle(&hub).await;
    assert_eq!((&seen["operations"], &seen["refused"]), (&json!(600), &json!(0)), "{seen}");
    world.emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tier_a_few_refusals_teach_the_pace_and_no_call_is_lost() {
    let throttles = json!({"tier": "S1", "units": UNITS, "burstSecs": 2, "queueSecs": 0, "retryAfter": true});
    let world = World::start(json!({"throttles": throttles})).await;
    let hub = world.hub(Limits::unlimited());
    let took = read_identities(&hub, 400).await;
    let usage = registry(&hub);
    assert!(usage.throttled > 0 && usage.throttled < 80, "{usage:?}");
    assert_eq!(usage.calls, 400 + usage.throttled);
    assert_eq!(world.registry_throttle(&hub).await["refused"], json!(usage.throttled));
    assert!(took < Duration::from_secs(40), "{took:?}: {usage:?}");
    world.emulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_hub_is_not_hammered_and_every_caller_hears_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    std::thread::spawn(move || {
        for _connection in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let hub = hub_at(&address.to_string());
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let hub = hub.clone();
        tasks.spawn(async move { hub.device(&device(n)).await.map(drop) });
    }
    for result in tasks.join_all().await {
        assert!(matches!(result, Err(HubError::Unreached { .. })), "{result:?}");
    }
    // 1000 attempts, had each call been sent as often as it may be.
    let connections = connections.load(Ordering::Relaxed);
    assert!(connections < 70, "{connections}");
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_turn_does_not_come_soon_is_given_up_unsent() {
    let hub = hub_at("127.0.0.1:1");
    let hub = Arc::into_inner(hub).unwrap().with_limits(Limits::tier(Tier::S1, 1));
    let batch = hub.lines.of(Category::Registry).turn(100, Place::Back).await.unwrap().send();
    batch.land(Outcome::Served, 0);
    let identity = serde_json::from_value(json!({"deviceId": "d1", "etag": "1"})).unwrap();
    let started = Instant::now();
    let error = hub.replace_device(&identity, "1").await.unwrap_err();
    assert!(matches!(error, HubError::NotInTime { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    assert!(!error.is_ambiguous() && error.status().is_none());
    let pause = error.pause_before_next_look().unwrap();
    assert!((45..=55).contains(&pause.as_secs()), "{pause:?}");
    assert_eq!(registry(&hub).calls, 1, "the batch alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_read_to_their_end_page_by_page() {
    let world = World::start(Value::Object(Map::new())).await;
    let hub = world.hub(Limits::unlimited());
    for n in 0..205 {
        hub.create_device(&device(n), true).await.unwrap();
    }
    assert_eq!(
        hub.query_all(Query::new(Collection::Devices, Columns::Renewal, None)).await.unwrap().twins.len(),
        205
    );
    let queries = hub.usage().into_iter().find(|(category, _)| *category == Category::Queries).unwrap().1;
    assert_eq!((queries.calls, queries.operations), (3, 3));
    let all: Vec<Identity> = (0..50).map(device).collect();
    let before = registry(&hub).operations;
    let regenerated = hub
        .regenerate_keys(twinkey_contract::KeySlot::Primary, &all, Instant::now() + Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!((regenerated.rotated_keys.len(), registry(&hub).operations - before), (50, 50));
    world.emulator.shutdown().await;
}

/// Every character that an id may have (IoT Hub REST, Devices - Create Or Update Identity).
const ODD: &str = "odd-.%_#*?!(),:=@$'+";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_selects_of_a_twin_is_what_the_twin_says_whatever_the_ids() {
    let world = World::start(Value::Object(Map::new())).await;
    let hub = world.hub(Limits::unlimited());
    let ids = ["d1", ODD, "'", "''", "it's", "d2"];
    let mut identities: Vec<_> = ids.iter().map(|id| Identity::new(id, None).unwrap()).collect();
    identities.extend(ids.iter().map(|id| Identity::new(id, Some(ODD)).unwrap()));
    for identity in &identities {
        hub.create_device(identity, true).await.unwrap();
        let ours = json!({"keyRenewal": {"done": true, "of": identity.to_string()}, "others": 1});
        let patch = json!({"tags": ours, "properties": {"desired": ours}});
        hub.patch_twin(identity, &patch, None).await.unwrap();
    }
    let named = [ODD, "'", "''", "it's", "d2"];
    let section = |value: &Value| value["keyRenewal"].clone();
    for (collection, module) in [(Collection::Devices, None), (Collection::Modules, Some(ODD))] {
        for columns in [Columns::Renewal, Columns::Whole] {
            let queries = Query::of_devices(collection, columns, named);
            assert_eq!(queries.len(), 1);
            let found = hub.query_all(queries.into_iter().next().unwrap()).await.unwrap();
            assert_eq!(found.twins.len(), named.len());
            for found in found.twins {
                let found: super::Twin = serde_json::from_value(found).unwrap();
                let identity = found.identity();
                assert!(
                    named.contains(&identity.device_id.as_str()) && identity.module_id.as_deref() == module
                );
                let twin = hub.twin(&identity).await.unwrap();
                assert_eq!((&found.etag, &found.status), (&twin.etag, &twin.status));
                assert_eq!(found.connection_state, twin.connection_state);
                assert_eq!(found.last_activity_time, twin.last_activity_time);
                assert_eq!(section(&found.tags), section(&twin.tags));
                let (desired, of_twin) = (&found.properties.desired, &twin.properties.desired);
                assert_eq!(section(desired), section(of_twin));
                let at = |desired: &Value| desired["$metadata"]["keyRenewal"]["$lastUpdated"].clone();
                assert!(at(desired).is_string() && at(desired) == at(of_twin), "{desired}");
                assert_eq!(found.tags.get("others").is_some(), columns == Columns::Whole);
            }
        }
    }
    world.emulator.shutdown().await;
}
