//! Numbered telemetry through the agent's local socket: one JSON line per message, acknowledged when the hub has it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{MissedTickBehavior, interval};

use crate::failure::Failure;

/// Time between two messages: 66 a second.
const MESSAGE_INTERVAL: Duration = Duration::from_millis(15);
/// Most messages without acknowledgement: half a minute of them. Then the sender waits, as a real one would.
const OUTSTANDING_MAX: usize = 2000;

/// A sender that runs until it is dropped.
pub(crate) struct Traffic {
    ledger: Arc<Ledger>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

#[derive(Default)]
struct Ledger {
    is_paused: AtomicBool,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    handed: u64,
    outstanding: BTreeSet<u64>,
    /// Number and reason of what the agent would not take.
    refused: Vec<(u64, String)>,
}

impl Traffic {
    /// Connects to the agent's socket and begins to send.
    pub(crate) async fn start(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|e| {
            Failure::failed(format!("connect to the agent's socket {}: {e}", socket.display()))
        })?;
        let (read, write) = stream.into_split();
        let ledger = Arc::new(Ledger::default());
        let tasks =
            [tokio::spawn(send(write, ledger.clone())), tokio::spawn(take_answers(read, ledger.clone()))];
        Ok(Self { ledger, tasks })
    }

    pub(crate) fn pause(&self) {
        self.ledger.is_paused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn resume(&self) {
        self.ledger.is_paused.store(false, Ordering::Relaxed);
    }

    /// Messages that the hub has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        let counts = self.ledger.counts();
        counts.handed.saturating_sub(counts.outstanding.len() as u64 + counts.refused.len() as u64)
    }

    /// Messages that were handed over and not answered yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.ledger.counts().outstanding.len()
    }

    /// Numbers of the messages that the agent took.
    pub(crate) fn sent(&self) -> Vec<u64> {
        let counts = self.ledger.counts();
        let refused: BTreeSet<u64> = counts.refused.iter().map(|(number, _)| *number).collect();
        (1..=counts.handed).filter(|number| !refused.contains(number)).collect()
    }

    /// How many messages the agent would not take, and the first reason.
    pub(crate) fn refused(&self) -> Option<(usize, String)> {
        let counts = self.ledger.counts();
        counts.refused.first().map(|(_, reason)| (counts.refused.len(), reason.clone()))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Ledger {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number, unless it is time to wait.
    fn next_number(&self) -> Option<u64> {
        let mut counts = self.counts();
        if self.is_paused.load(Ordering::Relaxed) || counts.outstanding.len() >= OUTSTANDING_MAX {
            return None;
        }
        counts.handed += 1;
        let number = counts.handed;
        counts.outstanding.insert(number);
        Some(number)
    }
}

async fn send(mut socket: OwnedWriteHalf, ledger: Arc<Ledger>) {
    let mut ticks = interval(MESSAGE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(number) = ledger.next_number() else { continue };
        let body = json!({"number": number}).to_string();
        let request =
            json!({"request": "publish", "id": number, "body": body, "properties": {"source": "demo"}});
        // The agent is gone: its keeper says so, and what is outstanding counts as lost.
        if socket.write_all(format!("{request}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn take_answers(socket: OwnedReadHalf, ledger: Arc<Ledger>) {
    #[derive(Deserialize)]
    struct Answer {
        id: u64,
        ok: bool,
        #[serde(default)]
        error: Option<String>,
    }
    let mut lines = BufReader::new(socket).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(answer) = serde_json::from_str::<Answer>(&line) else { continue };
        let mut counts = ledger.counts();
        if counts.outstanding.remove(&answer.id) && !answer.ok {
            counts.refused.push((answer.id, answer.error.unwrap_or_default()));
        }
    }
}
