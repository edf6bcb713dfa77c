//! The direct method `keyRenewal`: what it answers, and what its answer proves.

use serde_json::{Value, json};
use twinkey_contract::Mac;
use twinkey_contract::report::{Nonce, Report};

use crate::support::{Agent, Answer, Hub, is_connected, key_of, registration};

const NONCE: &str = "5f1d0c3b9a7e24665f1d0c3b9a7e2466";

/// A hub that accepts key 1, and an agent that is connected and has reported.
async fn at_work() -> (Hub, Agent) {
    let hub = Hub::new();
    *hub.answer.lock().unwrap() = Answer::Judge(1);
    let agent = Agent::start(&hub, "");
    agent.until("a connection", is_connected).await;
    agent
        .until("the report", |status| {
            let reported = &hub.twin.lock().unwrap()["reported"]["keyRenewal"];
            status["keyRenewal"]["active"] == "primary" && *reported == status["keyRenewal"]
        })
        .await;
    (hub, agent)
}

fn is_fresh(answer: &Value, nonce: &str, key: u8) -> bool {
    let report = Report::read(&json!({"keyRenewal": answer})).unwrap().unwrap();
    let proof: Mac = serde_json::from_value(answer["freshProof"].clone()).unwrap();
    report.is_answer(&proof, &Nonce::parse(nonce).unwrap(), &key_of(key), &registration().identity)
}

#[tokio::test(start_paused = true)]
async fn status_with_a_nonce_is_answered_with_a_proof_over_it() {
    let (hub, agent) = at_work().await;
    for action in ["status", "retry"] {
        let payload = json!({"action": action, "nonce": NONCE}).to_string();
        let (status, answer) = hub.call("keyRenewal", &payload).await;
        assert_eq!((status, &answer["nonce"]), (200, &json!(NONCE)), "{answer}");
        assert!(is_fresh(&answer, NONCE, 1), "{answer}");
        assert!(!is_fresh(&answer, "5f1d0c3b9a7e24665f1d0c3b9a7e2467", 1) && !is_fresh(&answer, NONCE, 2));
        // A thief who has read the twin has every field but this one.
        assert_ne!(answer["freshProof"], answer["proof"]);
        let mut rest = answer.clone();
        for field in ["nonce", "freshProof"] {
            rest.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(rest, hub.twin.lock().unwrap()["reported"]["keyRenewal"]);
    }
    let (_, other) =
        hub.call("keyRenewal", &json!({"action": "status", "nonce": "0123456789abcdef"}).to_string()).await;
    assert!(is_fresh(&other, "0123456789abcdef", 1));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn status_without_a_nonce_is_the_report_alone() {
    let (hub, agent) = at_work().await;
    for payload in [json!({"action": "status"}), json!({"action": "status", "nonce": null})] {
        let (status, answer) = hub.call("keyRenewal", &payload.to_string()).await;
        assert_eq!((status, answer), (200, hub.twin.lock().unwrap()["reported"]["keyRenewal"].clone()));
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_nonce_or_no_action_is_refused() {
    let (hub, agent) = at_work().await;
    let nonces = [
        json!(""),
        json!("0123456789abcde"),
        json!("a".repeat(65)),
        json!("a".repeat(10_000)),
        json!("0123456789abcdef\n"),
        json!("0123456789abcd\u{e4}"),
        json!("0123456789 bcdef"),
        json!(1_234_567_890_123_456_u64),
        json!(true),
        json!([NONCE]),
        json!({"nonce": NONCE}),
    ];
    for nonce in nonces {
        for action in ["status", "retry"] {
            let payload = json!({"action": action, "nonce": nonce}).to_string();
            let (status, answer) = hub.call("keyRenewal", &payload).await;
            assert_eq!(status, 400, "{payload}");
            assert!(answer["error"].as_str().unwrap().contains("`nonce`"), "{answer}");
            assert!(answer.get("freshProof").is_none(), "{answer}");
        }
    }
    for payload in [
        "",
        "{",
        "[]",
        "null",
        "7",
        "\"status\"",
        "{\"action\": 7}",
        "{\"action\": \"renew\", \"nonce\": null}",
    ] {
        let (status, answer) = hub.call("keyRenewal", payload).await;
        assert_eq!(status, 400, "{payload}");
        assert!(answer["error"].as_str().unwrap().contains("action"), "{answer}");
    }
    let nonce = format!("{{\"action\": \"status\", \"nonce\": \"{NONCE}\"}}");
    let (status, answer) = hub.call("reboot", &nonce).await;
    assert_eq!((status, answer.get("freshProof")), (404, None));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn agent_whose_key_no_hub_was_seen_to_accept_proves_nothing() {
    let hub = Hub::new();
    *hub.answer.lock().unwrap() = Answer::Judge(1);
    *hub.is_reachable.lock().unwrap() = false;
    let agent = Agent::start(&hub, "");
    // The acceptance never reaches the disk, and what is not on disk is not reported: in the place
    // of the file that each write begins with stands a directory.
    std::fs::create_dir(agent.state_directory().join("key-ring.new")).unwrap();
    *hub.is_reachable.lock().unwrap() = true;
    agent.until("a connection", is_connected).await;
    let (status, answer) =
        hub.call("keyRenewal", &json!({"action": "status", "nonce": NONCE}).to_string()).await;
    assert_eq!((status, &answer["nonce"]), (200, &json!(NONCE)), "{answer}");
    assert_eq!((answer.get("freshProof"), &answer["active"]), (Some(&Value::Null), &Value::Null), "{answer}");
    assert_eq!(answer["proof"], Value::Null);
    agent.stop().await;
}
