//! The agent's life beside a hub: methods, missed offers, takeovers, modules, status, signals, and a hub that behaves in
//! the less likely ways.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Status};
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string, text};
use twinkey_tests::hub::{Keys, TestHub, is_about};
use twinkey_tests::offers;
use twinkey_tests::waiting::until;

const DEVICE: &str = "gateway-1";

/// A device whose agent has connected with its primary key and has reported.
async fn connected(hub: &TestHub, choose: impl FnOnce(&mut Settings)) -> (Gateway, Agent, Keys) {
    let keys = hub.create(DEVICE).await;
    let mut settings = Settings::for_hub(hub);
    choose(&mut settings);
    let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &keys.primary));
    let agent = gateway.start();
    until_reported(hub, DEVICE).await;
    (gateway, agent, keys)
}

/// Waits until the agent has proved its primary key and said so: from then on it hears everything.
async fn until_reported(hub: &TestHub, identity: &str) {
    hub.until_report(identity, "the first report", |report| report.active == Some(KeySlot::Primary)).await;
}

/// Has the hub make a new key and offers it in plain form; the rotation's name.
async fn offer_new_key(hub: &TestHub, identity: &str, slot: &str) -> String {
    let keys = hub.regenerate(identity, &format!("{slot}Key")).await;
    let rotation = offers::rotation_id();
    hub.desire(identity, offers::plain(&rotation, slot, keys.of_slot(slot))).await;
    rotation
}

#[tokio::test(flavor = "multi_thread")]
async fn the_direct_method_tells_the_status_and_refuses_garbage() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, _) = connected(&hub, |_| {}).await;
    let told = hub.call_method(DEVICE, "keyRenewal", json!({"action": "status"})).await.expect(200);
    assert_eq!(told["status"], 200);
    let mut reported = hub.twin(DEVICE).await["properties"]["reported"]["keyRenewal"].take();
    // A twin keeps no nulls.
    let mut told = told["payload"].clone();
    for document in [&mut reported, &mut told] {
        document.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    }
    assert_eq!(told, reported);
    for garbage in [
        json!(null),
        json!(5),
        json!("status"),
        json!([{"action": "status"}]),
        json!({"action": 7}),
        json!({"action": "explode"}),
        json!({"action": "x".repeat(100_000)}),
    ] {
        let told = hub.call_method(DEVICE, "keyRenewal", garbage.clone()).await.expect(200);
        assert_eq!(told["status"], 400, "{garbage}");
        assert!(told["payload"]["error"].as_str().unwrap().contains("\"retry\""), "{told}");
    }
    let told = hub.call_method(DEVICE, "reboot", json!({"action": "status"})).await.expect(200);
    assert_eq!(told["status"], 404, "{told}");
    assert_eq!(hub.history(DEVICE).await.connections.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_key_is_tried_again_when_the_direct_method_asks_for_it() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, keys) = connected(&hub, |_| {}).await;
    let (rotation, stray) = (offers::rotation_id(), offers::stray_key());
    hub.desire(DEVICE, offers::plain(&rotation, "secondary", &stray)).await;
    let report = hub.until_report(DEVICE, "rejected", |report| report.status == Status::Rejected).await;
    assert_eq!(report.reason, Some(Reason::Refused));
    assert!(is_about(&report, &rotation));
    assert!(hub.history(DEVICE).await.connections.iter().all(|span| span.key == "primary"));

    hub.put_keys(DEVICE, &Keys { secondary: stray, ..keys }).await;
    hub.call_method(DEVICE, "keyRenewal", json!({"action": "retry"})).await.expect(200);
    hub.until_committed(DEVICE, &rotation).await;
    hub.until_connected(DEVICE, "secondary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_was_made_while_the_agent_was_away_is_taken_up_when_it_returns() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, |_| {}).await;
    agent.stop().await;
    let rotation = offer_new_key(&hub, DEVICE, "secondary").await;
    let _agent = gateway.start();
    hub.until_committed(DEVICE, &rotation).await;
    hub.until_connected(DEVICE, "secondary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_by_takeover_without_a_gap_and_without_losing_a_message() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, |settings| settings.token_lifetime_secs = 10).await;
    let first = hub.until_connected(DEVICE, "primary").await;
    let mut program = gateway.program().await;
    let mut sent = 0;
    let second = until("another connection took over", async || {
        sent += 1;
        let answer = program.ask(json!({"request": "publish", "body": sent.to_string()})).await;
        assert_eq!(answer["ok"], true, "{answer}");
        hub.history(DEVICE).await.live().filter(|span| span.id != first.id).cloned()
    })
    .await;
    assert!(second.took_over && second.key == "primary", "{second:?}");
    assert!(second.token_expiry > first.token_expiry);
    assert_eq!(hub.history(DEVICE).await.longest_dark_ms(first.connected_ms), 0.0);
    let arrived: Vec<u64> = hub
        .telemetry(DEVICE)
        .await
        .iter()
        .map(|message| message["body"].as_str().unwrap().parse().unwrap())
        .collect();
    let distinct: std::collections::BTreeSet<u64> = arrived.iter().copied().collect();
    assert_eq!(distinct, (1..=sent).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn break_before_make_rotates_on_a_single_connection() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, |settings| {
        settings.takeover = "break-before-make";
        // A candidate waits for the renewal of the token.
        settings.token_lifetime_secs = 15;
    })
    .await;
    let rotation = offer_new_key(&hub, DEVICE, "secondary").await;
    hub.until_committed(DEVICE, &rotation).await;
    hub.until_connected(DEVICE, "secondary").await;
    let history = hub.history(DEVICE).await;
    assert!(history.connections.iter().all(|span| !span.took_over), "{history:?}");
    assert!(gateway.publishes().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_connects_publishes_and_rotates_like_a_device() {
    let hub = TestHub::start().await;
    hub.create(DEVICE).await;
    let identity = "gateway-1/meter";
    let keys = hub.create(identity).await;
    let gateway = Gateway::new(&hub, identity, &keys.primary);
    let _agent = gateway.start();
    until_reported(&hub, identity).await;
    assert!(gateway.publishes().await);
    assert_eq!(hub.telemetry(identity).await.len(), 1);
    for slot in ["secondary", "primary"] {
        let rotation = offer_new_key(&hub, identity, slot).await;
        hub.until_committed(identity, &rotation).await;
        hub.until_connected(identity, slot).await;
    }
    let history = hub.history(identity).await;
    assert_eq!(history.longest_dark_ms(history.connections[0].connected_ms), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_renews_a_device_and_its_module_in_one_run_over_all() {
    let hub = TestHub::start().await;
    let module = "gateway-1/meter";
    let (device_keys, module_keys) = (hub.create(DEVICE).await, hub.create(module).await);
    let gateways = [(DEVICE, &device_keys), (module, &module_keys)]
        .map(|(identity, keys)| Gateway::new(&hub, identity, &keys.primary));
    let _agents = gateways.each_ref().map(Gateway::start);
    for identity in [DEVICE, module] {
        until_reported(&hub, identity).await;
    }
    for source in ["service", "local"] {
        let slot = if source == "service" { "secondary" } else { "primary" };
        let mut command = hub.renewal("*", slot);
        let output = command.args(["--include-modules", "--key-source", source]).output().await.unwrap();
        let outcomes: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{outcomes:#} {}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<_> = outcomes.as_array().unwrap().iter().collect();
        assert!(rows.len() == 2 && rows.iter().all(|row| row["outcome"] == "renewed"), "{outcomes:#}");
        assert!(rows.iter().any(|row| row["moduleId"] == "meter"), "{outcomes:#}");
        for identity in [DEVICE, module] {
            hub.until_connected(identity, slot).await;
            let twin = hub.twin(identity).await;
            assert!(twin["properties"]["desired"]["keyRenewal"].is_null(), "no key is left: {twin:#}");
            assert!(twin["tags"]["keyRenewal"]["lease"].is_null(), "no lease is left: {twin:#}");
        }
    }
    // The module alone, by its own command; its device is left as it is.
    let before = hub.keys(DEVICE).await;
    let args = ["module-identity", "renew-key", "-d", DEVICE, "-m", "*", "--key-type", "swap", "--yes"];
    let output = hub.operator(&args).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    hub.until_report(module, "the swap", |report| report.active == Some(KeySlot::Secondary)).await;
    let after = hub.keys(DEVICE).await;
    assert_eq!([before.primary, before.secondary], [after.primary, after.secondary]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_the_same_keys_with_the_agent_running_and_stopped() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, |_| {}).await;
    let rotation = offer_new_key(&hub, DEVICE, "secondary").await;
    let report = hub.until_committed(DEVICE, &rotation).await;
    let fingerprint = report.secondary.unwrap().fingerprint;
    let (fingerprint, short) = (fingerprint.to_string(), fingerprint.short());

    let running = gateway.run(&["status", "--json"]).await;
    let running: Value = serde_json::from_slice(&running.stdout).unwrap();
    assert_eq!(running["running"], true);
    assert_eq!(running["connection"]["connected"], true);
    assert_eq!(running["connection"]["key"], fingerprint.as_str());
    assert_eq!(running["counters"]["takeovers"], 1);
    let words = text(&gateway.run(&["status"]).await.stdout);
    for word in ["gateway-1 at localhost", "running since", "up since", &short, &rotation, "committed"] {
        assert!(words.contains(word), "no {word} in\n{words}");
    }

    agent.stop().await;
    let stopped = gateway.run(&["status", "--json"]).await;
    let stopped: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!(stopped["running"], false);
    assert_eq!(stopped["identity"], DEVICE);
    for pointer in ["/keyRenewal/active", "/keyRenewal/sequence", "/keyRenewal/secondary/fingerprint"] {
        assert_eq!(stopped.pointer(pointer), running.pointer(pointer), "{pointer}");
    }
    let words = text(&gateway.run(&["status"]).await.stdout);
    for word in ["gateway-1 at localhost", "not running", &short] {
        assert!(words.contains(word), "no {word} in\n{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_times_in_one_form_with_the_agent_running_and_stopped() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, |_| {}).await;
    let proven_at = async || {
        let told = gateway.run(&["status", "--json"]).await;
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        told["keyRenewal"]["primary"]["provenAt"].clone()
    };
    let running = proven_at().await;
    agent.stop().await;
    assert_eq!(proven_at().await, running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_state_directory_is_refused_and_the_first_one_is_not_disturbed() {
    let hub = TestHub::start().await;
    let (gateway, mut agent, _) = connected(&hub, |_| {}).await;
    for args in [&["run"][..], &["provision"]] {
        let second = gateway.run(args).await;
        assert_eq!(second.status.code(), Some(1));
        let error = text(&second.stderr);
        assert!(error.contains("another twinkey-agent is running on"), "{error}");
        assert!(error.contains("stop it first"), "{error}");
    }
    assert!(agent.is_running());
    assert!(gateway.publishes().await);
    assert_eq!(hub.history(DEVICE).await.connections.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_agent_within_two_seconds_with_a_goodbye_to_the_hub() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, |_| {}).await;
    assert!(agent.stop_within(Duration::from_secs(2)).await.success());
    assert!(!gateway.socket().exists());
    let closed =
        until("the hub sees the end", async || hub.history(DEVICE).await.connections[0].closed_by.clone());
    assert_eq!(closed.await, "client");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_agent_that_waits_for_a_silent_hub_as_quickly() {
    let hub = TestHub::start().await;
    hub.set_faults(json!({"muteConnack": true})).await;
    let keys = hub.create(DEVICE).await;
    let gateway = Gateway::new(&hub, DEVICE, &keys.primary);
    let agent = gateway.start();
    gateway.until_status("an attempt is under way", |status| !status["connection"]["trying"].is_null()).await;
    assert!(agent.stop_within(Duration::from_secs(2)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_drops_the_live_connection_at_a_refused_connect_costs_no_key() {
    let hub = TestHub::start().await;
    hub.set_faults(json!({"onRefusedConnect": "drop"})).await;
    let (gateway, _agent, _) = connected(&hub, |_| {}).await;
    let rotation = offers::rotation_id();
    hub.desire(DEVICE, offers::plain(&rotation, "secondary", &offers::stray_key())).await;
    let report = hub.until_report(DEVICE, "rejected", |report| report.status == Status::Rejected).await;
    assert!(is_about(&report, &rotation));
    assert_eq!(report.active, Some(KeySlot::Primary));
    let history = hub.history(DEVICE).await;
    assert!(history.connections.iter().any(|span| span.closed_by.as_deref() == Some("refused-connect")));
    assert!(gateway.publishes().await);

    let rotation = offer_new_key(&hub, DEVICE, "secondary").await;
    hub.until_committed(DEVICE, &rotation).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_drops_the_live_connection_at_a_key_change_is_survived_on_the_other_key() {
    let hub = TestHub::start().await;
    hub.set_faults(json!({"onKeyChange": "drop"})).await;
    let (gateway, _agent, _) = connected(&hub, |_| {}).await;
    let rotation = offer_new_key(&hub, DEVICE, "secondary").await;
    hub.until_committed(DEVICE, &rotation).await;

    let keys = hub.regenerate(DEVICE, "secondaryKey").await;
    hub.until_connected(DEVICE, "primary").await;
    let history = hub.history(DEVICE).await;
    assert!(history.connections.iter().any(|span| span.closed_by.as_deref() == Some("key-change")));
    assert!(gateway.publishes().await);

    let rotation = offers::rotation_id();
    hub.desire(DEVICE, offers::plain(&rotation, "secondary", &keys.secondary)).await;
    hub.until_committed(DEVICE, &rotation).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_reaches_the_hub_late_is_refused_first_and_committed_within_the_window() {
    let hub = TestHub::start().await;
    hub.set_faults(json!({"propagationDelayMs": 1_500})).await;
    let (_gateway, _agent, _) = connected(&hub, |settings| settings.propagation_window_secs = 8).await;
    let rotation = offer_new_key(&hub, DEVICE, "secondary").await;
    hub.until_report(DEVICE, "the refusal is told", |report| {
        is_about(report, &rotation) && report.reason == Some(Reason::Refused)
    })
    .await;
    hub.until_committed(DEVICE, &rotation).await;
    let history = hub.history(DEVICE).await;
    assert!(!history.refused.is_empty());
    assert_eq!(history.longest_dark_ms(history.connections[0].connected_ms), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_keys_were_all_regenerated_comes_back_once_one_is_restored() {
    let hub = TestHub::start().await;
    let (gateway, _agent, keys) = connected(&hub, |_| {}).await;
    let held = gateway.key_rings();
    hub.regenerate(DEVICE, "both").await;
    hub.cut(DEVICE).await;
    until("the hub has refused it again and again", async || {
        (hub.history(DEVICE).await.refused.len() >= 3).then_some(())
    })
    .await;
    hub.put_keys(DEVICE, &keys).await;
    hub.until_connected(DEVICE, "primary").await;
    assert!(gateway.publishes().await);
    assert_eq!(gateway.key_rings(), held);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_with_one_identity_do_not_storm_the_hub() {
    let hub = TestHub::start().await;
    let keys = hub.create(DEVICE).await;
    let gateways = [(); 2].map(|()| Gateway::new(&hub, DEVICE, &keys.primary));
    let _agents = gateways.each_ref().map(Gateway::start);
    let began_ms = hub.until_connected(DEVICE, "primary").await.connected_ms;
    let history = until("ten seconds are over", async || {
        Some(hub.history(DEVICE).await).filter(|history| history.now_ms >= began_ms + 10_000.0)
    })
    .await;
    let attempts = history.attempts_since(began_ms);
    println!("{attempts} attempts in 10 s");
    // At the least the waits of each are 0, 1, 2, 4 and 8 s: five attempts in ten seconds.
    assert!((3..=10).contains(&attempts), "{attempts} attempts in 10 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_properties_arrives_as_it_was_sent() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, |_| {}).await;
    let mut program = gateway.program().await;
    let properties = json!({"alert level": "a&b=c/d%25 +#", "größe": "12 €", "empty": "", "n": "1"});
    let body = "{\"text\": \"line\\nbreak, ü\"}";
    let request = json!({"request": "publish", "id": "first", "body": body, "properties": properties});
    assert_eq!(program.ask(request).await, json!({"id": "first", "ok": true}));
    let bytes: Vec<u8> = (0..=255).collect();
    let request = json!({"request": "publish", "id": 2, "bodyBase64": STANDARD.encode(&bytes)});
    assert_eq!(program.ask(request).await, json!({"id": 2, "ok": true}));
    let arrived = hub.telemetry(DEVICE).await;
    assert_eq!((&arrived[0]["body"], &arrived[0]["properties"]), (&body.into(), &properties));
    assert_eq!(STANDARD.decode(arrived[1]["bodyBase64"].as_str().unwrap()).unwrap(), bytes);
    assert_eq!(arrived.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_line_gets_an_error_answer_and_the_program_stays_connected() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, |_| {}).await;
    let mut program = gateway.program().await;
    let deep = "[".repeat(100_000);
    let large = json!({"request": "publish", "body": "x".repeat(300_000)}).to_string();
    let lines: [&[u8]; 18] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"nonsense",
        b"\xff\xfe\x00\x01",
        deep.as_bytes(),
        b"{\"request\": 5}",
        b"{\"request\": \"explode\", \"id\": 1}",
        b"{\"request\": \"publish\"}",
        b"{\"request\": \"publish\", \"body\": 5}",
        b"{\"request\": \"publish\", \"body\": \"a\", \"bodyBase64\": \"YQ==\"}",
        b"{\"request\": \"publish\", \"bodyBase64\": \"***\"}",
        b"{\"request\": \"publish\", \"body\": \"a\", \"propertys\": {}}",
        b"{\"request\": \"token\", \"ttlSecs\": 0}",
        b"{\"request\": \"token\", \"ttlSecs\": -1}",
        b"{\"request\": \"token\", \"resource\": \"localhost/devices/another\"}",
        large.as_bytes(),
    ];
    for line in lines {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
        program.say(line).await;
        let answer = program.hear().await.unwrap_or_else(|| panic!("hung up after {shown}"));
        assert_eq!(answer["ok"], false, "{shown}: {answer}");
        assert!(!answer["error"].as_str().unwrap().is_empty(), "{shown}: {answer}");
    }
    assert_eq!(program.ask(json!({"request": "status"})).await["ok"], true);
    assert!(hub.telemetry(DEVICE).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_end_is_answered_with_an_error_and_ends_that_program_alone() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, |_| {}).await;
    let mut other = gateway.program().await;
    let mut program = gateway.program().await;
    program.say(&vec![b'x'; 2 * 1024 * 1024]).await;
    let answer = program.hear().await.expect("the agent says why");
    assert_eq!(answer["ok"], false, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("longer than"), "{answer}");
    assert_eq!(program.hear().await, None);
    assert_eq!(other.ask(json!({"request": "publish", "body": "still here"})).await["ok"], true);
}
