//! Reports of somebody with a token: what no proof covers does not decide which key is renewed.

use serde_json::{Value, json};
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

use crate::attacker::intruder::{Intruder, Says};
use crate::attacker::mqtt::Door;
use crate::attacker::token;
use crate::victim::{DEVICE, REFUSED, connected, renew, renew_in_peace, reported, run, until_reported};

/// What a report can have in the place of a proof.
fn no_proofs() -> [Value; 7] {
    [
        Value::Null,
        json!(""),
        json!(7),
        json!(true),
        json!(["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]),
        json!({"key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}),
        json!("A".repeat(4_000)),
    ]
}

/// A device that lives on its primary key and has reported both; then its agent has ended.
async fn settled(hub: &TestHub) -> Value {
    let (_gateway, agent, _) = connected(hub, DEVICE, |_| {}).await;
    for slot in ["secondary", "primary"] {
        renew_in_peace(hub, DEVICE, slot).await;
    }
    let genuine = reported(hub, DEVICE).await;
    agent.stop().await;
    genuine
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_without_proof_does_not_get_the_key_in_use_regenerated() {
    let hub = TestHub::start().await;
    let genuine = settled(&hub).await;
    let keys = hub.keys(DEVICE).await;
    let mut forged = genuine.clone();
    forged["active"] = "secondary".into();
    forged["proof"] = Value::Null;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, forged.clone()));
    until_reported(&hub, DEVICE, "the forged report", |report| report["active"] == "secondary").await;
    for key_type in ["primary", "in-turn"] {
        let renewal = renew(&hub, DEVICE, key_type, &["--timeout", "1s"]).await;
        let has_stayed = hub.keys(DEVICE).await.primary == keys.primary;
        println!(
            "{key_type}: exit {}, {:?}, the key in use {}",
            renewal.code,
            renewal.summary(),
            if has_stayed { "has stayed" } else { "WAS REGENERATED" }
        );
        assert_eq!(renewal.code, REFUSED, "{renewal:?}");
        assert_eq!(hub.keys(DEVICE).await, keys);
    }
    for no_proof in no_proofs() {
        forged["proof"] = no_proof.clone();
        thief.say(&hub, forged.clone()).await;
        let renewal = renew(&hub, DEVICE, "primary", &["--timeout", "1s"]).await;
        assert_eq!(renewal.code, REFUSED, "{no_proof}: {renewal:?}");
        assert_eq!(hub.keys(DEVICE).await, keys, "{no_proof}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_without_proof_is_not_acted_on_before_any_rotation_either() {
    let hub = TestHub::start().await;
    let (_gateway, agent, keys) = connected(&hub, DEVICE, |_| {}).await;
    let mut forged = reported(&hub, DEVICE).await;
    agent.stop().await;
    let before = hub.keys(DEVICE).await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    forged["proof"] = Value::Null;
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, forged.clone()));
    for no_proof in no_proofs() {
        forged["proof"] = no_proof.clone();
        thief.say(&hub, forged.clone()).await;
        let renewal = renew(&hub, DEVICE, "in-turn", &["--timeout", "1s"]).await;
        println!("proof = {:.20}: exit {}, {:?}", no_proof.to_string(), renewal.code, renewal.summary());
        assert_eq!(renewal.code, REFUSED, "{no_proof}: {renewal:?}");
        assert_eq!(hub.keys(DEVICE).await, before, "{no_proof}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_renews_no_key_by_a_report_without_proof() {
    let hub = TestHub::start().await;
    let mut forged = settled(&hub).await;
    let keys = hub.keys(DEVICE).await;
    forged["active"] = "secondary".into();
    forged["proof"] = Value::Null;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let thief = Intruder::start(Door::of(&hub), DEVICE, Says::new(stolen, forged));
    until("the thief is connected", async || (thief.seen().reported > 0).then_some(())).await;
    // Whoever looks at the fleet is told.
    let status = hub.operator(&["fleet", "status", "--output", "json"]).output().await.unwrap();
    let told: Value = serde_json::from_slice(&status.stdout).unwrap();
    println!("fleet status: {told}");
    assert!(told.to_string().contains("proof-missing"), "{told}");
    let dir = tempfile::tempdir().unwrap();
    for skips in [false, true] {
        let start =
            ["rollout", "start", "--target", "*", "--waves", "100%", "--deadline", "2s", "--retries", "0"];
        let mut command = hub.operator(&start);
        command.args(["--yes", "--no-progress", "--output", "json"]);
        command.args(skips.then_some("--skip-unsafe"));
        command.arg("--ledger").arg(dir.path().join(format!("{skips}.ledger")));
        let rollout = run(&mut command).await;
        println!(
            "--skip-unsafe {skips}: exit {}, {}",
            rollout.code,
            rollout.words.lines().last().unwrap_or_default()
        );
        assert_eq!(hub.keys(DEVICE).await, keys, "{rollout:?}");
    }
}
