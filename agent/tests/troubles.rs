//! What goes wrong around the keys: clocks, rivals, restored images, dead keys, and a process that is watched over.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use twinkey_agent::clock::MADE_UNIX_SECS;
use twinkey_agent::supervisor::Notice;
use twinkey_contract::KeySlot;

use self::support::{Agent, Answer, Hub, Start, TODAY, TwinAnswer, counter, is_connected, offer};

const YEAR_SECS: u64 = 365 * 86_400;

fn judging(key: u8) -> Hub {
    let hub = Hub::new();
    *hub.answer.lock().unwrap() = Answer::Judge(key);
    hub
}

fn start_at(hub: &Hub, wall: u64) -> (Agent, Arc<AtomicU64>) {
    let wall = Arc::new(AtomicU64::new(wall));
    let agent = Agent::start_with(hub, Start { wall: Arc::clone(&wall), ..Start::default() });
    (agent, wall)
}

fn suspects(status: &Value, kind: &str) -> bool {
    status["suspicions"].as_array().unwrap().iter().any(|suspicion| suspicion["kind"] == kind)
}

fn outcome(status: &Value, kind: &str) -> u64 {
    status["outcomes"][kind].as_u64().unwrap_or(0)
}

fn report(hub: &Hub) -> Value {
    hub.twin.lock().unwrap()["reported"]["keyRenewal"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_board_without_a_clock_comes_up_and_says_so() {
    for wall in [0, MADE_UNIX_SECS + 5, TODAY - 10 * YEAR_SECS, TODAY - 1_000_000] {
        let hub = judging(1);
        let began = Instant::now();
        let (agent, hand) = start_at(&hub, wall);
        let status = agent.until("a connection", is_connected).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let offset_secs = TODAY as i64 - wall as i64;
        assert_eq!(status["clock"]["source"], "hub");
        assert_eq!(status["clock"]["offsetSecs"], offset_secs);
        assert!(suspects(&status, "clock"));
        agent.until("the report", |_| report(&hub)["clockOffsetSecs"] == offset_secs).await;
        assert_eq!(report(&hub)["reason"], "clock");
        // NTP has come: all is well again, and that is said too.
        hand.store(TODAY, Ordering::SeqCst);
        agent.publish(1).await.await.unwrap();
        agent.until("the report", |_| report(&hub)["clockOffsetSecs"].is_null()).await;
        assert!(report(&hub)["reason"].is_null());
        assert_eq!(counter(&agent.status().await, "lost"), 0);
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_back_at_work_costs_no_connection_once_the_token_is_renewed() {
    let hub = judging(1);
    let (agent, hand) = start_at(&hub, TODAY);
    agent.until("a connection", is_connected).await;
    hand.store(TODAY - 10 * YEAR_SECS, Ordering::SeqCst);
    let status = agent.until("a renewal", |status| counter(status, "takeovers") > 0).await;
    assert_eq!(counter(&status, "lost"), 0);
    // The time of the last connection is the floor, and below it the hub is asked before anything is refused.
    assert_eq!(outcome(&status, "refused"), 0);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_the_clocks_sake_is_held_against_no_key() {
    let hub = judging(1);
    *hub.twin.lock().unwrap() = json!({"desired": offer(KeySlot::Secondary, 2, 1), "reported": {}});
    // A month behind: above the floor, so only a refusal tells.
    let (agent, _) = start_at(&hub, TODAY - 30 * 86_400);
    *hub.tells_time.lock().unwrap() = false;
    tokio::time::sleep(Duration::from_secs(6 * 3_600)).await;
    assert!(!is_connected(&agent.status().await));
    *hub.tells_time.lock().unwrap() = true;
    agent.until("a connection", is_connected).await;
    // The offer is read only now, and tried by the right time.
    *hub.answer.lock().unwrap() = Answer::Judge(2);
    agent.until("the new key", |_| report(&hub)["status"] == "committed").await;
    assert_eq!(report(&hub)["active"], "secondary");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_hub_is_asked_for_the_time_at_most_nine_times_an_hour() {
    let hub = Hub::new();
    *hub.answer.lock().unwrap() = Answer::Refuse;
    let agent = Agent::start(&hub, "");
    tokio::time::sleep(Duration::from_secs(24 * 3_600)).await;
    let questions = hub.questions.lock().unwrap().clone();
    let hour = Duration::from_secs(3_600);
    for first in &questions {
        let within = questions.iter().filter(|at| **at >= *first && **at - *first < hour).count();
        assert!(within <= 9, "{within}");
    }
    assert!(questions.len() > 100, "{}", questions.len());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_time_seen_is_the_floor_after_a_restart() {
    let hub = judging(1);
    let (agent, _) = start_at(&hub, TODAY);
    agent.until("a connection", is_connected).await;
    let directory = agent.stop().await;
    // The board forgets its clock, and the hub does not say what time it is.
    *hub.tells_time.lock().unwrap() = false;
    let start = Start { wall: Arc::new(AtomicU64::new(0)), directory: Some(directory), ..Start::default() };
    let agent = Agent::start_with(&hub, start);
    let status = agent.until("a connection", is_connected).await;
    assert_eq!(status["clock"]["source"], "floor");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_while_another_one_is_connected_puts_no_doubt_on_the_floor() {
    let hub = judging(1);
    let (agent, _) = start_at(&hub, TODAY);
    agent.until("a connection", is_connected).await;
    let directory = agent.stop().await;
    // A month behind the floor, and still later than this version was made: both could be right.
    *hub.tells_time.lock().unwrap() = false;
    *hub.twin.lock().unwrap() = json!({"desired": offer(KeySlot::Secondary, 2, 1), "reported": {}});
    let wall = Arc::new(AtomicU64::new(TODAY - 30 * 86_400));
    let agent = Agent::start_with(&hub, Start { wall, directory: Some(directory), ..Start::default() });
    for refused in 1..=4 {
        let status = agent.until("a refusal", |status| counter(status, "refused") == refused).await;
        assert!(is_connected(&status));
        assert_eq!(status["clock"]["source"], "floor");
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_is_written_once_a_day_and_a_quiet_agent_writes_nothing_else() {
    let hub = judging(1);
    let agent = Agent::start(&hub, "");
    agent.until("a connection", is_connected).await;
    let state = agent.state_directory();
    let written = || {
        let mut entries: Vec<_> = std::fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()))
            .collect();
        entries.sort();
        entries
    };
    agent.until("the first writes", |_| state.join("last-seen").exists()).await;
    let mut writes = 0;
    let mut before = written();
    // Ten days, looked at every quarter of an hour.
    for _ in 0..10 * 96 {
        tokio::time::sleep(Duration::from_secs(900)).await;
        agent.status().await;
        let now = written();
        writes += usize::from(now != before);
        before = now;
    }
    assert!((9..=10).contains(&writes), "{writes} writes in ten days");
    assert!(counter(&agent.status().await, "takeovers") > 200);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_time_that_can_not_be_noted_is_no_failing_disk() {
    let hub = judging(1);
    let directory = tempfile::tempdir().unwrap();
    // In the place of the file that would say it, so that only this write fails.
    let state = directory.path().join("state");
    std::fs::create_dir_all(state.join("last-seen")).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
    let agent = Agent::start_with(&hub, Start { directory: Some(directory), ..Start::default() });
    agent.until("a connection", is_connected).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let status = agent.status().await;
    assert_eq!(outcome(&status, "storage"), 0, "{status:#}");
    assert!(state.join("last-seen").is_dir(), "it was written all the same");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn when_every_key_is_refused_a_person_brings_one_without_a_restart() {
    let hub = judging(9);
    let agent = Agent::start(&hub, "");
    // A day of refusals: the pauses are as long as they get.
    tokio::time::sleep(Duration::from_secs(24 * 3_600)).await;
    let status = agent.status().await;
    assert!(!is_connected(&status) && suspects(&status, "disabled-or-deleted"), "{status:#}");
    assert!(agent.replace("another", 9).await.unwrap_err().contains("nothing was changed"));
    let began = Instant::now();
    let key = agent.replace("d", 9).await.unwrap();
    let status = agent.until("a connection", is_connected).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(status["connection"]["key"], key);
    assert!(!suspects(&status, "disabled-or-deleted"));
    assert!(agent.replace("d", 9).await.unwrap_err().contains("in use already"));
    // It is on disk: a restart comes up with it.
    let directory = agent.stop().await;
    let agent = Agent::start_with(&hub, Start { directory: Some(directory), ..Start::default() });
    let status = agent.until("a connection", is_connected).await;
    assert_eq!(status["connection"]["key"], key);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_from_a_person_costs_nothing() {
    let hub = judging(1);
    let agent = Agent::start(&hub, "");
    let active = agent.until("a connection", is_connected).await["connection"]["key"].clone();
    let brought = agent.replace("d", 7).await.unwrap();
    agent.until("the key on disk", |status| status["connection"]["brought"] == brought).await;
    // The one that works is used on, and again after a loss.
    for lost in 1..=3 {
        hub.cut();
        let status = agent
            .until("the way back", |status| counter(status, "lost") == lost && is_connected(status))
            .await;
        assert_eq!((&status["connection"]["key"], outcome(&status, "refused")), (&active, 0));
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_from_a_person_is_kept_through_offers_that_are_dead_and_used_when_it_is_needed() {
    let hub = judging(1);
    // An old offer stands in the twin, for the slot for which the person brings a key, and its own key is dead.
    *hub.twin.lock().unwrap() = json!({"desired": offer(KeySlot::Primary, 3, 1), "reported": {}});
    let agent = Agent::start(&hub, "");
    agent.until("the offer's trial", |status| status["keyRenewal"]["status"] == "trying").await;
    let brought = agent.replace("d", 9).await.unwrap();
    agent.until("the key on disk", |status| status["connection"]["brought"] == brought).await;
    // Reconnects read the old offer again, also after a restart.
    hub.cut();
    agent.until("the way back", |status| counter(status, "lost") == 1 && is_connected(status)).await;
    let directory = agent.stop().await;
    let agent = Agent::start_with(&hub, Start { directory: Some(directory), ..Start::default() });
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::Judge(9);
    hub.cut();
    let status = agent.until("the way back", |status| status["connection"]["key"] == brought).await;
    assert!(is_connected(&status));
    agent.until("the acceptance on disk", |status| status["connection"]["brought"].is_null()).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_agent_with_the_same_identity_is_noticed_damped_and_reported() {
    let hub = judging(1);
    let first = Agent::start(&hub, "");
    first.until("a connection", is_connected).await;
    let began = Instant::now();
    let second = Agent::start_with(&hub, Start { sealing_key: [8; 32], ..Start::default() });
    for agent in [&first, &second] {
        let status = agent.until("the suspicion", |status| suspects(status, "duel")).await;
        assert_eq!(status["keyRenewal"]["reason"], "duel");
    }
    assert!(began.elapsed() < Duration::from_secs(600), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(4 * 3_600)).await;
    let last_hour =
        hub.attempts.lock().unwrap().iter().filter(|at| at.elapsed() < Duration::from_secs(3_600)).count()
            as u64;
    let bound = 2 * twinkey_rotation::Policy::DEFAULT.attempts_per_hour_max(1);
    assert!(last_hour <= bound, "{last_hour} attempts of both in an hour");
    // Its owner finds the second one: peace is noticed too.
    second.stop().await;
    first.until("peace", |status| is_connected(status) && !suspects(status, "duel")).await;
    first.until("the report of it", |_| report(&hub)["reason"].is_null()).await;
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_few_cuts_are_no_duel() {
    let hub = judging(1);
    let agent = Agent::start(&hub, "");
    for _ in 0..50 {
        agent.until("a connection", is_connected).await;
        tokio::time::sleep(Duration::from_secs(20 * 60)).await;
        hub.cut();
    }
    assert!(!suspects(&agent.status().await, "duel"));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_closes_the_connection_when_it_refuses_another_one_is_no_rival() {
    let hub = judging(1);
    *hub.twin.lock().unwrap() = json!({"desired": offer(KeySlot::Secondary, 2, 1), "reported": {}});
    let agent = Agent::start(&hub, "");
    agent.until("a connection", is_connected).await;
    for _ in 0..8 {
        *hub.answer.lock().unwrap() = Answer::RefuseThenKick;
        let lost = counter(&agent.status().await, "lost");
        agent.until("a loss", |status| counter(status, "lost") > lost).await;
        *hub.answer.lock().unwrap() = Answer::Judge(1);
        agent.until("the way back", is_connected).await;
    }
    assert!(!suspects(&agent.status().await, "duel"));
    agent.stop().await;
}

/// Desired properties that are larger than what the agent reads, though a hub counts 30 bytes of them.
fn uncounted() -> Value {
    (0..30)
        .map(|n| (format!("{n:02}"), "\u{1}".repeat(4_096).into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_is_too_large_is_asked_for_once_for_each_connection_and_change_and_costs_nothing_else() {
    let hub = judging(1);
    hub.twin.lock().unwrap()["desired"] = uncounted();
    let agent = Agent::start(&hub, "");
    let status = agent.until("the reason", |_| report(&hub)["reason"] == "twin-too-large").await;
    assert_eq!((report(&hub)["status"].as_str(), &report(&hub)["rotation"]), (Some("invalid"), &Value::Null));
    assert_eq!(report(&hub)["active"], "primary");
    assert!(suspects(&status, "twin-too-large"), "{status}");
    let gets = || hub.twin_gets.load(Ordering::SeqCst);
    for number in 0..8 {
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        agent.publish(number).await.await.unwrap();
    }
    assert!(hub.connections() > 5, "token by token");
    assert_eq!(gets(), hub.connections());
    let before = (gets(), hub.connections());
    hub.desire(uncounted());
    agent.until("a look at it", |_| gets() > before.0).await;
    agent.publish(8).await.await.unwrap();
    hub.desire(json!({}));
    let is_well = |status: &Value| status["suspicions"] == json!([]) && report(&hub)["status"] == "idle";
    agent.until("it heals", is_well).await;
    assert_eq!(report(&hub)["reason"], Value::Null);
    assert_eq!((gets(), hub.connections()), (before.0 + 2, before.1));
    assert_eq!(counter(&agent.status().await, "lost"), 0);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connections_that_end_for_the_twins_sake_are_no_duel() {
    for answer in [TwinAnswer::CutOff, TwinAnswer::Garbage] {
        let hub = judging(1);
        hub.twin.lock().unwrap()["desired"] = uncounted();
        *hub.twin_answer.lock().unwrap() = answer;
        let agent = Agent::start(&hub, "");
        let status = agent.until("many losses", |status| counter(status, "lost") > 12).await;
        assert!(!suspects(&status, "duel"), "{status}");
        assert_eq!(suspects(&status, "twin-too-large"), answer == TwinAnswer::CutOff);
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_restart_is_taken_for_no_restored_image() {
    let hub = judging(1);
    let (agent, _) = start_at(&hub, TODAY);
    agent.until("its report", |_| report(&hub)["primary"]["provenAt"].is_string()).await;
    let directory = agent.stop().await;
    let agent = Agent::start_with(&hub, Start { directory: Some(directory), ..Start::default() });
    agent.until("a connection", is_connected).await;
    // Time enough to read the twin and to report again.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let report = report(&hub);
    assert_eq!((&report["behind"], &report["reason"]), (&Value::Null, &Value::Null), "{report}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restored_image_asks_for_what_it_missed_until_it_has_it() {
    let hub = judging(1);
    let agent = Agent::start(&hub, "");
    agent.until("the report", |_| !report(&hub).is_null()).await;
    let directory = agent.stop().await;
    // Years later the card comes back from a drawer: the twin has gone on without it.
    let sequence = report(&hub)["sequence"].as_u64().unwrap();
    hub.twin.lock().unwrap()["reported"]["keyRenewal"]["sequence"] = json!(sequence + 40);
    let mut directory = Some(directory);
    for _ in 0..3 {
        let agent = Agent::start_with(&hub, Start { directory: directory.take(), ..Start::default() });
        agent.until("the suspicion", |status| suspects(status, "restored")).await;
        agent.until("the request", |_| report(&hub)["behind"] == json!(sequence + 40)).await;
        assert_eq!(report(&hub)["reason"], "restored");
        assert_eq!(report(&hub)["sequence"], json!(sequence));
        directory = Some(agent.stop().await);
    }
    hub.twin.lock().unwrap()["desired"] = offer(KeySlot::Secondary, 2, 1);
    let agent = Agent::start_with(&hub, Start { directory, ..Start::default() });
    // A key on trial is not yet the one that was missed.
    agent.until("refusals", |status| counter(status, "refused") == 2).await;
    assert_eq!(report(&hub)["behind"], json!(sequence + 40));
    *hub.answer.lock().unwrap() = Answer::Judge(2);
    agent
        .until("the commit", |_| report(&hub)["status"] == "committed" && report(&hub)["behind"].is_null())
        .await;
    assert!(report(&hub)["reason"].is_null());
    assert!(!suspects(&agent.status().await, "restored"));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_supervisor_hears_of_readiness_status_and_the_turning_loop() {
    let hub = judging(1);
    let start = Start { watchdog: Some(Duration::from_secs(30)), ..Start::default() };
    let agent = Agent::start_with(&hub, start);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let notices = agent.notices.lock().unwrap().clone();
    agent.stop().await;
    let ready: Vec<_> = notices.iter().filter(|(_, notice)| *notice == Notice::Ready).collect();
    assert_eq!(ready.len(), 1);
    let statuses: Vec<_> = notices
        .iter()
        .filter_map(|(_, notice)| if let Notice::Status(text) = notice { Some(text.as_str()) } else { None })
        .collect();
    assert!(
        statuses[0].starts_with("connecting") && statuses[1].starts_with("connected with key"),
        "{statuses:?}"
    );
    let alive: Vec<_> =
        notices.iter().filter(|(_, notice)| *notice == Notice::Alive).map(|(at, _)| *at).collect();
    assert!(alive.windows(2).all(|pair| pair[1] - pair[0] <= Duration::from_secs(16)), "{alive:?}");
    assert!(alive.len() > 200);
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_a_hub_is_ready_after_a_while_and_says_why_it_is_not_connected() {
    let hub = Hub::new();
    *hub.is_reachable.lock().unwrap() = false;
    let began = Instant::now();
    let agent = Agent::start(&hub, "");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let notices = agent.notices.lock().unwrap().clone();
    let (at, _) = notices.iter().find(|(_, notice)| *notice == Notice::Ready).unwrap();
    assert_eq!((*at - began).as_secs(), 20);
    assert!(notices.iter().any(|(_, notice)| matches!(notice, Notice::Status(text) if text.starts_with("not connected: TCP took longer"))), "{notices:?}");
    let status = agent.status().await;
    assert_eq!(status["connection"]["troubles"][0]["kind"], "tcp");
    assert!(outcome(&status, "tcp") > 3);
    agent.stop().await;
}
