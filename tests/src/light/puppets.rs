//! A fleet without connections, for numbers that no machine holds in TLS sessions: the hub is told what each device would
//! report. Sealing, fingerprints, proofs and tokens are the real ones. No CONNECT tries a key, though: the hub judges a
//! token made with it by the same rules, which proves that the registry holds the key, and nothing about connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use twinkey_contract::Identity;
use twinkey_contract::sealing::{SealingKey, SealingPublicKey};
use twinkey_sas::Key;

use super::line::device_token;
use super::ring::Ring;
use super::{register, unix_now};
use crate::emulated::Caller;
use crate::hub::TestHub;

/// Devices that act in one request: their reports fit into the hub's 1 MiB.
const ACTS_MAX: usize = 500;
/// How long one question for news may wait. The fleet's end has to wait for it too.
const WAIT_MS: u64 = 1000;
const ENDPOINT: &str = "/$emulator/puppets";

/// Devices that are played. Dropping it ends the play.
#[derive(Debug)]
pub struct Puppets {
    ids: Vec<String>,
    books: Arc<Books>,
    player: JoinHandle<()>,
}

/// What the player has seen.
#[derive(Debug, Default)]
struct Books {
    committed: AtomicU64,
    refused: AtomicU64,
}

impl Puppets {
    /// Registers devices, and lets each report which key it lives on.
    pub async fn start(hub: &TestHub, count: usize) -> Self {
        let registered = register(hub, "puppet", count).await;
        let ids: Vec<String> = registered.iter().map(|(id, _)| id.clone()).collect();
        let books = Arc::new(Books::default());
        let rings = registered.into_iter().map(|(id, keys)| {
            let identity = Identity::new(&id, None).unwrap();
            let mut ring = Ring::provisioned(identity, Key::from_base64(&keys.primary).unwrap());
            let key = ring.keys().remove(0);
            ring.accepted(&key, unix_now());
            (id, ring)
        });
        let sealing = SealingKey::generate().unwrap();
        let mut player = Player {
            hub: hub.caller(),
            host_name: hub.host_name().to_owned(),
            seal_to: sealing.public(),
            sealing,
            rings: rings.collect(),
            books: books.clone(),
        };
        for batch in ids.chunks(ACTS_MAX) {
            player.report(batch).await;
        }
        Self { ids, books, player: tokio::spawn(async move { player.play().await }) }
    }

    /// The devices' ids.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Offers that were taken.
    pub fn committed(&self) -> u64 {
        self.books.committed.load(Ordering::Relaxed)
    }

    /// Offered keys that the registry does not hold.
    pub fn refused(&self) -> u64 {
        self.books.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Puppets {
    fn drop(&mut self) {
        self.player.abort();
    }
}

struct Player {
    hub: Caller,
    host_name: String,
    sealing: SealingKey,
    seal_to: SealingPublicKey,
    rings: HashMap<String, Ring>,
    books: Arc<Books>,
}

impl Player {
    async fn play(&mut self) {
        let mut next = 0;
        loop {
            let path = format!("{ENDPOINT}?max={ACTS_MAX}&waitMs={WAIT_MS}&after={next}");
            // A hub that goes down takes its puppets with it.
            let Some(news) = self.hub.ask(Method::GET, &path, Value::Null).await else { return };
            next = news["next"].as_u64().unwrap();
            let mut changed = Vec::new();
            for twin in news["changed"].as_array().unwrap() {
                let id = twin["identity"].as_str().unwrap();
                let text = twin.to_string();
                let ring = self.rings.get_mut(id).expect("a device of this fleet");
                if ring.is_news(text.as_bytes()).is_some() {
                    ring.take_up(text.as_bytes(), &self.sealing);
                    changed.push(id.to_owned());
                }
            }
            self.prove(&changed).await;
            self.report(&changed).await;
        }
    }

    /// In the place of CONNECT: does the hub take a token made with the offered key?
    async fn prove(&mut self, ids: &[String]) {
        loop {
            let trials: Vec<(&String, Key)> =
                ids.iter().filter_map(|id| Some((id, self.rings[id].on_trial()?))).collect();
            let acts: Vec<Value> = trials
                .iter()
                .map(|(id, key)| {
                    let token = device_token(&self.host_name, self.rings[*id].identity(), key);
                    json!({"identity": id, "token": token.as_str()})
                })
                .collect();
            if acts.is_empty() {
                return;
            }
            let Some(answer) = self.hub.ask(Method::POST, ENDPOINT, acts.into()).await else { return };
            let refused: Vec<&str> =
                answer["refused"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            for (id, key) in trials {
                let ring = self.rings.get_mut(id).unwrap();
                if refused.contains(&id.as_str()) {
                    ring.reject();
                    self.books.refused.fetch_add(1, Ordering::Relaxed);
                } else {
                    ring.accepted(&key, unix_now());
                    self.books.committed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    async fn report(&self, ids: &[String]) {
        if ids.is_empty() {
            return;
        }
        let acts = ids.iter().map(|id| {
            let report = self.rings[id].report(self.seal_to).to_patch();
            json!({"identity": id, "reported": report})
        });
        let answer = self.hub.ask(Method::POST, ENDPOINT, acts.collect()).await;
        assert!(answer.is_none_or(|answer| answer["refused"] == json!([])));
    }
}
