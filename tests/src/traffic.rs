//! A program on the gateway that publishes numbered messages all the time, and knows which ones the agent has
//! reported as acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::gateway::Gateway;
use crate::hub::TestHub;
use crate::waiting::{until, within};

/// Messages that may be unacknowledged; beyond that the program waits, as a well-behaved one does. The
/// agent has room for more from each program.
const OUTSTANDING_MAX: usize = 500;

/// The program. Dropping it ends it.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Mutex<Shared>>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    is_ending: bool,
    sent: u64,
    outstanding: BTreeSet<u64>,
    newest_acknowledged: u64,
    /// Answers other than an acknowledgement.
    refused: Vec<String>,
    has_hung_up: bool,
}

/// What became of all messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Published through the agent's socket; every one was acknowledged.
    pub sent: u64,
    /// Of these, the ones that the hub does not have.
    pub lost: u64,
    /// Copies beyond the first that the hub has.
    pub duplicates: u64,
}

impl Traffic {
    /// A message after every `pause`, on one connection to the agent.
    pub async fn start(gateway: &Gateway, pause: Duration) -> Self {
        let socket = gateway.socket();
        let stream =
            until("the agent's socket takes a program", async || UnixStream::connect(&socket).await.ok())
                .await;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let task = tokio::spawn(publish(stream, shared.clone(), pause)).abort_handle();
        Self { shared, task }
    }

    /// Messages published so far.
    pub fn sent(&self) -> u64 {
        self.shared.lock().unwrap().sent
    }

    /// The highest number that was acknowledged so far.
    pub fn newest_acknowledged(&self) -> u64 {
        self.shared.lock().unwrap().newest_acknowledged
    }

    /// Messages without an acknowledgement now.
    pub fn outstanding(&self) -> usize {
        self.shared.lock().unwrap().outstanding.len()
    }

    /// Waits until a message that is published after this moment has been acknowledged, and says how long that took.
    pub async fn until_through(&self, bound: Duration) -> Duration {
        let (began, last) = (Instant::now(), self.sent());
        within(bound, "a message gets through", async || (self.newest_acknowledged() > last).then_some(()))
            .await;
        began.elapsed()
    }

    /// Publishes no more, waits until everything is acknowledged, and compares with what the hub has. The program stays
    /// connected.
    pub async fn end(&self, hub: &TestHub, identity: &str, bound: Duration) -> Tally {
        self.shared.lock().unwrap().is_ending = true;
        within(bound, "every message is acknowledged", async || {
            let shared = self.shared.lock().unwrap();
            assert!(!shared.has_hung_up, "the agent has hung up");
            shared.outstanding.is_empty().then_some(())
        })
        .await;
        let sent = {
            let shared = self.shared.lock().unwrap();
            assert!(shared.refused.is_empty(), "{:?}", shared.refused);
            shared.sent
        };
        let mut copies = BTreeMap::<u64, u64>::new();
        for message in hub.all_telemetry(identity).await {
            *copies.entry(message["body"].as_str().unwrap().parse().unwrap()).or_default() += 1;
        }
        Tally {
            sent,
            lost: (1..=sent).filter(|number| !copies.contains_key(number)).count() as u64,
            duplicates: copies.values().map(|copies| copies - 1).sum(),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish(stream: UnixStream, shared: Arc<Mutex<Shared>>, pause: Duration) {
    let (read, mut write) = stream.into_split();
    let mut answers = BufReader::new(read).lines();
    let mut pace = interval(pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            answer = answers.next_line() => match answer {
                Ok(Some(answer)) => take(&answer, &mut shared.lock().unwrap()),
                Ok(None) | Err(_) => break,
            },
            _ = pace.tick() => {
                let Some(number) = next(&mut shared.lock().unwrap()) else { continue };
                let line = json!({"request": "publish", "id": number, "body": number.to_string()}).to_string();
                if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    }
    shared.lock().unwrap().has_hung_up = true;
}

fn next(shared: &mut Shared) -> Option<u64> {
    if shared.is_ending || shared.outstanding.len() >= OUTSTANDING_MAX {
        return None;
    }
    shared.sent += 1;
    shared.outstanding.insert(shared.sent);
    Some(shared.sent)
}

fn take(answer: &str, shared: &mut Shared) {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let number = answer["id"].as_u64().unwrap();
    shared.outstanding.remove(&number);
    if answer["ok"] == true {
        shared.newest_acknowledged = shared.newest_acknowledged.max(number);
    } else {
        shared.refused.push(answer.to_string());
    }
}
