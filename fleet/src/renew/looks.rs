//! Looks at the twins of many devices at once.
//!
//! Whoever waits for a device's report says so here. A few twins are read one by one; many are read by query, a hundred at a
//! time: hubs allow few queries a minute, but one tells as much as a hundred reads. What a query shows may be older than
//! what was just written (IoT Hub query language: "eventually consistent"), so it is good for finding a proof, and never for
//! finding that something is not there; now and then each twin is read by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use twinkey_contract::Identity;

use crate::hub::{Collection, Columns, Found, Hub, HubError, Query, Twin};

/// Devices of a run up to this number have their twins read one by one.
pub(super) const READS_MAX: usize = 3;
/// Twins that are looked at together.
const TOGETHER_MAX: usize = 100;
/// First pause between two rounds of reads; it grows by half each time, until somebody new waits.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two rounds. Twin reads are metered (100/s on an S1 hub).
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Shortest pause between two rounds of queries.
const QUERY_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Queries that may fail in a row before each twin is read by itself.
const QUERY_FAILURES_MAX: u32 = 3;
/// Looks by query after which a twin is read by itself.
const QUERIES_PER_READ: u32 = 30;

/// What was seen.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) twin: Twin,
    /// Whether it shows everything that was written before.
    pub(super) is_fresh: bool,
}

type Seen = Result<Look, HubError>;

/// Looks as long as it lives.
pub(crate) struct Looks {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    hub: Arc<Hub>,
    waiting: Mutex<Waiting>,
    news: Notify,
    /// Queries that have failed in a row.
    failures: AtomicU32,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    watchers: BTreeMap<u64, Watcher>,
}

struct Watcher {
    identity: Identity,
    queries: u32,
    /// Whether its twin is longer than what is read. Among others, it would hold up all of them.
    is_too_long: bool,
    seen: mpsc::Sender<Seen>,
}

/// One who is to be shown a twin now.
struct Ready {
    number: u64,
    identity: Identity,
    /// Whether its twin is not to be looked for by query.
    is_read_alone: bool,
}

/// One who waits; whoever drops it waits no more.
pub(super) struct Watch {
    shared: Arc<Shared>,
    number: u64,
    seen: mpsc::Receiver<Seen>,
}

impl Looks {
    /// With `is_many`, twins are read by query however few are waited for at the moment.
    pub(crate) fn start(hub: Arc<Hub>, is_many: bool) -> Self {
        let shared = Arc::new(Shared {
            hub,
            waiting: Mutex::default(),
            news: Notify::new(),
            failures: AtomicU32::new(0),
        });
        let task = tokio::spawn(run(shared.clone(), is_many));
        Self { shared, task }
    }

    /// From now on, this twin is looked at.
    pub(super) fn watch(&self, identity: &Identity) -> Watch {
        let (send, seen) = mpsc::channel(1);
        let watcher = Watcher { identity: identity.clone(), queries: 0, is_too_long: false, seen: send };
        let number = self.shared.with(|waiting| {
            waiting.next += 1;
            waiting.watchers.insert(waiting.next, watcher);
            waiting.next
        });
        self.shared.news.notify_one();
        Watch { shared: self.shared.clone(), number, seen }
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// The next look. Never, if looking has ended.
    pub(super) async fn next(&mut self) -> Seen {
        match self.seen.recv().await {
            Some(seen) => seen,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.with(|waiting| waiting.watchers.remove(&self.number));
    }
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those who wait and have taken what they were shown before.
    fn ready(&self) -> Vec<Ready> {
        self.with(|waiting| {
            let ready = waiting.watchers.iter().filter(|(_, watcher)| watcher.seen.capacity() > 0);
            let ready = ready.map(|(number, watcher)| Ready {
                number: *number,
                identity: watcher.identity.clone(),
                is_read_alone: watcher.queries >= QUERIES_PER_READ || watcher.is_too_long,
            });
            ready.collect()
        })
    }

    fn show(&self, number: u64, seen: Seen) {
        self.with(|waiting| {
            if let Some(watcher) = waiting.watchers.get_mut(&number) {
                watcher.queries = match &seen {
                    Ok(Look { is_fresh: false, .. }) => watcher.queries + 1,
                    Ok(_) | Err(_) => 0,
                };
                watcher.is_too_long |= matches!(seen, Err(HubError::TooLong { .. }));
                let _ = watcher.seen.try_send(seen);
            }
        });
    }

    async fn read(&self, number: u64, identity: &Identity) {
        let seen = self.hub.twin(identity).await.map(|twin| Look { twin, is_fresh: true });
        self.show(number, seen);
    }

    /// Shows what queries find, and reads by itself what they don't.
    async fn query(&self, watched: &[Ready], collection: Collection) {
        let found = match self.find(watched, collection).await {
            Ok(found) => found,
            Err(error) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                // A hub in trouble says nothing about the devices, and the next round asks again; but not for ever, and a hub that
                // refuses queries may allow reads.
                let is_passing = error.is_ambiguous() || error.pause_before_next_look().is_some();
                if !is_passing || failures >= QUERY_FAILURES_MAX {
                    for Ready { number, identity, .. } in watched {
                        self.read(*number, identity).await;
                    }
                }
                return;
            }
        };
        self.failures.store(0, Ordering::Relaxed);
        // A twin that is too long for a query is too long to be read, which its watcher hears in this way.
        let twins = found.twins.into_iter().filter_map(|item| serde_json::from_value::<Twin>(item).ok());
        let mut twins: HashMap<Identity, Twin> = twins.map(|twin| (twin.identity(), twin)).collect();
        for Ready { number, identity, .. } in watched {
            match twins.remove(identity) {
                Some(twin) => self.show(*number, Ok(Look { twin, is_fresh: false })),
                None => self.read(*number, identity).await,
            }
        }
    }

    async fn find(&self, watched: &[Ready], collection: Collection) -> Result<Found, HubError> {
        let ids: BTreeSet<&str> = watched.iter().map(|ready| ready.identity.device_id.as_str()).collect();
        let mut found = Found::default();
        for query in Query::of_devices(collection, Columns::Renewal, ids) {
            found.twins.extend(self.hub.query_all(query).await?.twins);
        }
        Ok(found)
    }
}

async fn run(shared: Arc<Shared>, is_many: bool) {
    let mut pause = PAUSE_MIN;
    loop {
        let round = Instant::now();
        let mut ready = shared.ready();
        let is_few = !is_many;
        let reads: Vec<_> = if is_few {
            std::mem::take(&mut ready)
        } else {
            ready.extract_if(.., |watched| watched.is_read_alone).collect()
        };
        for Ready { number, identity, .. } in &reads {
            shared.read(*number, identity).await;
        }
        let (modules, devices): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|watched| watched.identity.module_id.is_some());
        for (watched, collection) in [(devices, Collection::Devices), (modules, Collection::Modules)] {
            for chunk in watched.chunks(TOGETHER_MAX) {
                shared.query(chunk, collection).await;
            }
        }
        let rest = if is_few { pause } else { QUERY_PAUSE_MIN }.saturating_sub(round.elapsed());
        pause = (pause * 3 / 2).min(PAUSE_MAX);
        tokio::select! {
            () = sleep(rest) => {}
            () = shared.news.notified() => {
                pause = PAUSE_MIN;
                // Many come at the same time: they share the next round.
                sleep(if is_few { PAUSE_MIN } else { rest }).await;
            }
        }
        if shared.with(|waiting| waiting.watchers.is_empty()) {
            shared.news.notified().await;
            sleep(PAUSE_MIN).await;
            pause = PAUSE_MIN;
        }
    }
}
