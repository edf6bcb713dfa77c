//! Somebody who may write the twin offers keys, one every tenth of a second.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use twinkey_tests::gateway::{Agent, Gateway};
use twinkey_tests::hub::TestHub;
use twinkey_tests::offers::{plain, rotation_id, stray_key};

use crate::attacker::hpke;
use crate::attacker::rest::Backend;
use crate::attacker::token;
use crate::victim::{DEVICE, connected, installed, renew_in_peace, reported, until_heard, until_reported};

/// The attack's pace and length.
const PACE: Duration = Duration::from_millis(100);
const OFFERS: usize = 60;

/// Lifetime of tokens outside of an attack, so that a single connection is renewed within seconds.
const SHORT_LIFETIME_SECS: u64 = 10;

/// What an attack has cost the device.
#[derive(Debug)]
struct Harm {
    /// CONNECTs, accepted or not.
    attempts: usize,
    /// Durable changes of the key ring.
    writes: u64,
    /// Time without a connection in ms, and the whole time.
    dark_ms: f64,
    whole_ms: f64,
}

/// A moment before an attack.
struct Before {
    at_ms: f64,
    sequence: u64,
}

async fn sequence(gateway: &Gateway) -> u64 {
    gateway.status().await["keyRenewal"]["sequence"].as_u64().unwrap()
}

async fn before(hub: &TestHub, gateway: &Gateway) -> Before {
    Before { at_ms: hub.history(DEVICE).await.now_ms, sequence: sequence(gateway).await }
}

async fn harm(hub: &TestHub, gateway: &Gateway, before: &Before) -> Harm {
    let writes = sequence(gateway).await - before.sequence;
    let history = hub.history(DEVICE).await;
    let (mut lit_until, mut dark_ms) = (before.at_ms, 0.0);
    for span in &history.connections {
        dark_ms += (span.connected_ms - lit_until).max(0.0);
        lit_until = lit_until.max(span.closed_ms.unwrap_or(history.now_ms));
    }
    dark_ms += (history.now_ms - lit_until).max(0.0);
    Harm {
        attempts: history.attempts_since(before.at_ms),
        writes,
        dark_ms,
        whole_ms: history.now_ms - before.at_ms,
    }
}

/// The offers that somebody makes who knows all that stands in twins.
struct Forger {
    seal_to: String,
    /// A genuine offer from before.
    old: Value,
    count: usize,
}

impl Forger {
    fn next(&mut self) -> Value {
        self.count += 1;
        let rotation = rotation_id();
        let slot = if self.count.is_multiple_of(2) { "primary" } else { "secondary" };
        let info = format!("twinkey/seal/v1\n{DEVICE}\nkeyRenewal\n{slot}\n{rotation}");
        let key = stray_key();
        let sealed = hpke::seal(&self.seal_to, &info, &key);
        let mut offer = json!({"rotation": rotation, "primary": null, "secondary": null, "auth": null});
        offer[slot] = json!({"sealed": sealed, "key": null});
        match self.count % 5 {
            0 => {}
            1 => offer["auth"] = token::auth(&stray_key(), DEVICE, &offer).into(),
            // The key that he offers is one that he has.
            2 => offer["auth"] = token::auth(&key, DEVICE, &offer).into(),
            3 => {
                offer["auth"] = self.old["auth"].clone();
                offer[slot] = json!({"key": key, "sealed": null});
            }
            _ => {
                // The genuine one of yesterday, under its own name and under a new one.
                offer = self.old.clone();
                if self.count.is_multiple_of(2) {
                    offer["rotation"] = rotation.into();
                }
            }
        }
        json!({"keyRenewal": offer})
    }
}

/// Renews a key, and catches the offer in the twin meanwhile.
async fn genuine_offer(hub: &TestHub, backend: &Backend, slot: &str) -> Value {
    let watching = {
        let backend = backend.clone();
        tokio::spawn(async move { backend.next_offer(DEVICE).await })
    };
    renew_in_peace(hub, DEVICE, slot).await;
    watching.await.unwrap()
}

/// The default configuration, but for the way of a takeover.
async fn attack(takeover: &'static str) -> Harm {
    let hub = TestHub::start().await;
    // With a single connection a new key waits for the token's renewal: outside of the attack that comes soon.
    let (mut gateway, agent, _) = connected(&hub, DEVICE, |settings| {
        settings.takeover = takeover;
        settings.token_lifetime_secs = SHORT_LIFETIME_SECS;
    })
    .await;
    let backend = Backend::of(&hub, "service");
    let old = genuine_offer(&hub, &backend, "secondary").await;
    let agent = restarted(&mut gateway, agent, 3_600).await;
    let seal_to = reported(&hub, DEVICE).await["sealTo"].as_str().unwrap().to_owned();
    let mut forger = Forger { seal_to, old, count: 0 };
    let before = before(&hub, &gateway).await;
    for _ in 0..OFFERS {
        backend.desire(DEVICE, forger.next()).await;
        sleep(PACE).await;
    }
    let harm = harm(&hub, &gateway, &before).await;
    println!("{takeover}: {OFFERS} false offers: {harm:?}");
    println!("connected for {:.1} % of the time", 100.0 - 100.0 * harm.dark_ms / harm.whole_ms);
    until_heard(&hub, &gateway, DEVICE).await;
    // The next genuine offer is taken as ever.
    let _agent = restarted(&mut gateway, agent, SHORT_LIFETIME_SECS).await;
    renew_in_peace(&hub, DEVICE, "primary").await;
    harm
}

/// Starts the agent anew, with tokens of this lifetime; returns once it is connected.
async fn restarted(gateway: &mut Gateway, agent: Agent, token_lifetime_secs: u64) -> Agent {
    agent.stop().await;
    gateway.reconfigure(|settings| settings.token_lifetime_secs = token_lifetime_secs);
    let agent = gateway.start();
    gateway.until_status("a connection", |status| status["connection"]["connected"] == true).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn false_offers_are_neither_tried_nor_stored_and_the_next_genuine_one_is_taken() {
    let harm = attack("make-before-break").await;
    assert_eq!((harm.attempts, harm.writes, harm.dark_ms), (0, 0, 0.0), "{harm:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn false_offers_cost_no_connection_where_a_candidate_is_tried_on_the_only_one() {
    let harm = attack("break-before-make").await;
    assert_eq!((harm.attempts, harm.writes, harm.dark_ms), (0, 0, 0.0), "{harm:?}");
}

/// Offers in a row that an agent takes up, and CONNECTs and writes that one of them costs, where the configuration takes
/// offers without authentication.
const BURST: usize = 8;
const ATTEMPTS_PER_OFFER: usize = 4;
const WRITES_PER_OFFER: u64 = 2;

/// A gateway that takes whatever is offered; the harm of a first attack, and of a second one after a restart.
async fn attack_the_credulous(takeover: &'static str) -> [Harm; 2] {
    let hub = TestHub::start().await;
    let (gateway, _) = installed(&hub, DEVICE, |settings| {
        settings.takeover = takeover;
        settings.takes_plain_offers = true;
    })
    .await;
    let mut harms = Vec::new();
    for _ in 0..2 {
        let agent = gateway.start();
        until_reported(&hub, DEVICE, "a report", |report| report["active"] == "primary").await;
        gateway.until_status("a connection", |status| status["connection"]["connected"] == true).await;
        let backend = Backend::of(&hub, "service");
        let before = before(&hub, &gateway).await;
        for count in 0..OFFERS {
            let slot = if count % 2 == 0 { "primary" } else { "secondary" };
            backend.desire(DEVICE, plain(&rotation_id(), slot, &stray_key())).await;
            sleep(PACE).await;
        }
        let harm = harm(&hub, &gateway, &before).await;
        println!("{takeover}, everything allowed: {OFFERS} false offers: {harm:?}");
        until_heard(&hub, &gateway, DEVICE).await;
        harms.push(harm);
        agent.stop().await;
    }
    harms.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_budget_bounds_what_false_offers_cost_whatever_they_are_called_and_survives_a_restart() {
    let [first, second] = attack_the_credulous("make-before-break").await;
    assert!(first.attempts <= BURST * ATTEMPTS_PER_OFFER, "{first:?}");
    assert!(first.writes <= BURST as u64 * WRITES_PER_OFFER, "{first:?}");
    assert_eq!(first.dark_ms, 0.0, "{first:?}");
    assert!(second.attempts <= ATTEMPTS_PER_OFFER && second.writes <= WRITES_PER_OFFER, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_waits_for_the_connections_renewal_where_there_is_only_one() {
    let [first, second] = attack_the_credulous("break-before-make").await;
    for harm in [first, second] {
        assert_eq!((harm.attempts, harm.dark_ms), (0, 0.0), "{harm:?}");
        assert!(harm.writes <= BURST as u64 * WRITES_PER_OFFER, "{harm:?}");
    }
}

/// The direct method has a key that was rejected tried again. Whoever may write twins may call it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_key_is_not_tried_at_every_call_of_the_direct_method() {
    /// More than what eight trials take, with the short window of the tests.
    const CALLS: usize = 200;
    /// A trial that runs to the end of its window: `Policy::trials_per_hour_max` is this for each offer of an hour.
    const ATTEMPTS_PER_TRIAL: usize = 11;
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |settings| settings.takes_plain_offers = true).await;
    let backend = Backend::of(&hub, "service");
    backend.desire(DEVICE, plain(&rotation_id(), "secondary", &stray_key())).await;
    until_reported(&hub, DEVICE, "rejected", |report| report["status"] == "rejected").await;
    let attack = async |calls: usize| {
        let before = before(&hub, &gateway).await;
        let mut answered = 0;
        for _ in 0..calls {
            // While the agent moves to a new connection, the hub finds no device.
            let (status, _) = backend.call_method(DEVICE, "keyRenewal", json!({"action": "retry"})).await;
            answered += usize::from(status.is_success());
            sleep(PACE).await;
        }
        assert!(answered > calls / 2, "{answered} of {calls} calls were answered");
        until_reported(&hub, DEVICE, "rejected again", |report| report["status"] == "rejected").await;
        harm(&hub, &gateway, &before).await
    };
    let first = attack(CALLS).await;
    println!("{CALLS} calls of retry: {first:?}");
    assert!(first.attempts <= BURST * ATTEMPTS_PER_TRIAL, "{first:?}");
    assert!(first.writes <= BURST as u64 * WRITES_PER_OFFER, "{first:?}");
    let second = attack(CALLS / 4).await;
    println!("{} more: {second:?}", CALLS / 4);
    assert_eq!((second.attempts, second.writes), (0, 0), "the budget is spent");
    assert_eq!((first.dark_ms, second.dark_ms), (0.0, 0.0));
    until_heard(&hub, &gateway, DEVICE).await;
}
