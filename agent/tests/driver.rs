//! The driver with a scripted hub, on a paused clock: the order of events at a takeover, and the pace of attempts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, as it should")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use twinkey_agent::local::Request;
use twinkey_sas::Verifier;
use zeroize::Zeroizing;

use self::support::{Agent, Answer, Hub, TODAY, counter, is_connected, key_of};

#[tokio::test(start_paused = true)]
async fn the_end_of_the_old_connection_during_a_takeover_is_no_loss() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    // Ten renewals at 80 s each.
    let status = agent.until("ten takeovers", |status| counter(status, "takeovers") == 10).await;
    assert_eq!(counter(&status, "lost"), 0);
    assert_eq!(counter(&status, "attempts"), 11);
    assert_eq!(counter(&status, "accepted"), 11);
    // And so the loss that follows is answered at once, not after a backoff that grew with every renewal.
    let (before, began) = (hub.connections(), Instant::now());
    hub.cut();
    agent.until("the way back", |status| counter(status, "lost") == 1 && is_connected(status)).await;
    assert!(hub.connections() > before + 1);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_costs_the_old_connection_and_is_refused_is_a_loss_and_is_mended() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::RefuseAfterKick;
    let status = agent.until("the loss", |status| counter(status, "lost") == 1).await;
    assert!(!is_connected(&status));
    *hub.answer.lock().unwrap() = Answer::AcceptAfterKick;
    agent.until("the way back", is_connected).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_takeover_leaves_the_old_connection_at_work() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::Refuse;
    let status = agent.until("three refusals", |status| counter(status, "refused") == 3).await;
    assert!(is_connected(&status));
    assert_eq!(counter(&status, "lost"), 0);
    agent.publish(1).await.await.unwrap();
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_comes_on_the_old_connection_after_a_takeover_saves_sending_twice() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    // A second before the token is renewed, so that nobody takes the silence for a dead link.
    tokio::time::sleep(Duration::from_secs(79)).await;
    *hub.acknowledges_late.lock().unwrap() = true;
    let acknowledgement = agent.publish(1).await;
    agent.until("a takeover", |status| counter(status, "takeovers") == 1).await;
    *hub.acknowledges_late.lock().unwrap() = false;
    acknowledgement.await.unwrap();
    assert_eq!(hub.received.lock().unwrap().len(), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_program_gets_a_token_of_the_key_in_use_with_the_lifetime_that_it_asked_for() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[local]\ntokens = true\n");
    agent.until("a connection", is_connected).await;
    let token = token(&agent, 60).await.unwrap();
    let is_valid = |key: u8, now: u64| {
        Verifier::new(&key_of(key), None).verify(&token, "hub.example/devices/d", now).is_ok()
    };
    assert!(
        is_valid(1, TODAY + 60) && !is_valid(1, TODAY + 62 + Verifier::SKEW_SECS) && !is_valid(2, TODAY),
        "{}",
        &**token
    );
    for ttl_secs in [0, 3_601, u64::MAX] {
        let refusal = self::token(&agent, ttl_secs).await.unwrap_err();
        assert!(refusal.contains("between 1 and 3600 seconds"), "{refusal}");
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_program_gets_no_token_unless_the_configuration_says_so_and_hears_which_setting_that_is() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "");
    agent.until("a connection", is_connected).await;
    let refusal = token(&agent, 60).await.unwrap_err();
    assert!(refusal.contains("`tokens = true`") && refusal.contains("[local]"), "{refusal}");
    agent.stop().await;
}

async fn token(agent: &Agent, ttl_secs: u64) -> Result<Zeroizing<String>, String> {
    let (answer, token) = oneshot::channel();
    agent.requests.send(Request::Token { ttl_secs, answer }).await.unwrap();
    token.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_message_arrives_through_takeovers_and_cuts() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 10\n");
    let mut acknowledgements = Vec::new();
    for number in 0..600 {
        acknowledgements.push(agent.publish(number).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        if number % 100 == 99 {
            hub.cut();
        }
    }
    for acknowledgement in acknowledgements {
        tokio::time::timeout(Duration::from_secs(600), acknowledgement).await.unwrap().unwrap();
    }
    let received = hub.received.lock().unwrap().clone();
    for number in 0..600_u32 {
        let text = number.to_string();
        assert!(received.iter().any(|(payload, _)| payload == text.as_bytes()), "{number} is lost");
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_day_of_refusals_stays_below_the_documented_number_of_attempts() {
    let hub = Hub::new();
    *hub.answer.lock().unwrap() = Answer::Refuse;
    let agent = Agent::start(&hub, "");
    tokio::time::sleep(Duration::from_secs(24 * 3_600)).await;
    let attempts = hub.attempts.lock().unwrap().clone();
    let per_hour = twinkey_rotation::Policy::DEFAULT.attempts_per_hour_max(1);
    let last_hour = attempts.iter().filter(|at| at.elapsed() < Duration::from_secs(3_600)).count() as u64;
    assert!((1..=per_hour).contains(&last_hour), "{last_hour} attempts, {per_hour} allowed");
    *hub.answer.lock().unwrap() = Answer::AcceptAfterKick;
    agent.until("the way back", is_connected).await;
    agent.stop().await;
}

/// On the real clock: virtual time stands still while anybody is busy.
#[tokio::test]
async fn programs_that_never_stop_asking_do_not_keep_the_agent_from_its_timers() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "");
    agent.until("a connection", is_connected).await;
    let programs: Vec<_> = (0..1_000)
        .map(|_| {
            let requests = agent.requests.clone();
            tokio::spawn(async move {
                loop {
                    let (sender, receiver) = oneshot::channel();
                    if requests.send(Request::Status(sender)).await.is_err() || receiver.await.is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let before = hub.connections();
    hub.cut();
    let is_back = async {
        while hub.connections() < before + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_back).await.expect("the way back");
    for program in programs {
        program.abort();
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_hub_is_tried_for_ever_and_found_again() {
    let hub = Hub::new();
    *hub.is_reachable.lock().unwrap() = false;
    let agent = Agent::start(&hub, "");
    tokio::time::sleep(Duration::from_secs(10 * 24 * 3_600)).await;
    assert!(!is_connected(&agent.status().await));
    *hub.is_reachable.lock().unwrap() = true;
    let began = Instant::now();
    agent.until("the way back", is_connected).await;
    assert!(began.elapsed() <= Duration::from_secs(5 * 60 + 1), "{:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_is_silent_to_a_takeover_does_not_keep_a_device_dark_that_lost_its_connection() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 100\n");
    agent.until("a connection", is_connected).await;
    *hub.answer.lock().unwrap() = Answer::Mute;
    let attempts = hub.attempts.lock().unwrap().len();
    agent.until("a takeover", |_| hub.attempts.lock().unwrap().len() > attempts).await;
    *hub.answer.lock().unwrap() = Answer::AcceptAfterKick;
    hub.cut();
    let began = Instant::now();
    agent.until("the way back", |status| counter(status, "lost") == 1 && is_connected(status)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn cuts_far_apart_are_each_answered_at_once_however_short_the_tokens_live() {
    let hub = Hub::new();
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 10\n");
    for lost in 1..=12 {
        tokio::time::sleep(Duration::from_secs(40)).await;
        agent.until("a connection", is_connected).await;
        hub.cut();
        let began = Instant::now();
        agent.until("the loss", |status| counter(status, "lost") == lost).await;
        agent.until("the way back", is_connected).await;
        assert!(began.elapsed() < Duration::from_secs(2), "cut {lost}: {:?}", began.elapsed());
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_gets_through_a_link_that_is_slower_than_was_assumed() {
    let hub = Hub::new();
    hub.link_rate.store(250, Ordering::SeqCst);
    let agent = Agent::start(&hub, "[token]\nlifetime_secs = 86400\n");
    let large = agent.publish_body(vec![b'x'; 60_000].into()).await;
    let small = agent.publish(1).await;
    tokio::time::timeout(Duration::from_secs(3_600), large).await.expect("the large message").unwrap();
    tokio::time::timeout(Duration::from_secs(60), small).await.expect("the one behind it").unwrap();
    // What was slow once is not taken for slow for ever: a dead link is noticed as before.
    hub.link_rate.store(0, Ordering::SeqCst);
    hub.cut();
    agent.until("a connection", is_connected).await;
    for number in 2..6 {
        agent.publish(number).await.await.unwrap();
    }
    agent.stop().await;
}
