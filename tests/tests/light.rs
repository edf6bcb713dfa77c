//! What the fleet's tests rest on: light devices notice what real ones notice, and their books tell when one is lost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Stdio;

use serde_json::json;
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Status};
use twinkey_tests::chance::Chance;
use twinkey_tests::hub::TestHub;
use twinkey_tests::light::{LightFleet, Manners, Puppets};
use twinkey_tests::offers;

async fn good_fleet(hub: &TestHub, count: usize) -> LightFleet {
    LightFleet::start(hub, count, &Manners::default(), &mut Chance::from_environment()).await
}

/// Offers the registry's key of `slot`, in plain form, and gives the rotation.
async fn offer(hub: &TestHub, id: &str, slot: &str) -> String {
    let rotation = offers::rotation_id();
    let keys = hub.keys(id).await;
    hub.desire(id, offers::plain(&rotation, slot, keys.of_slot(slot))).await;
    rotation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_light_device_whose_keys_are_renewed_behind_its_back_is_lost_and_its_neighbour_is_not() {
    let hub = TestHub::start().await;
    let fleet = good_fleet(&hub, 2).await;
    let [unlucky, _] = fleet.ids() else { panic!("two devices") };
    let unlucky = unlucky.clone();
    hub.regenerate(&unlucky, "both").await;
    assert_eq!(fleet.lost().await, [unlucky], "though its connection still stood");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_light_device_falls_back_to_its_other_key_and_says_so() {
    let hub = TestHub::start().await;
    let fleet = good_fleet(&hub, 1).await;
    let id = fleet.ids()[0].clone();
    let rotation = offer(&hub, &id, "secondary").await;
    let report = hub.until_committed(&id, &rotation).await;
    assert_eq!(report.active, Some(KeySlot::Secondary));
    hub.regenerate(&id, "secondaryKey").await;
    assert!(hub.cut(&id).await);
    let on_primary = |report: &twinkey_contract::report::Report| report.active == Some(KeySlot::Primary);
    hub.until_report(&id, "it lives on its primary key", on_primary).await;
    assert_eq!(fleet.counts().fallbacks, 1);
    assert_eq!(fleet.lost().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_light_device_rejects_a_key_only_after_many_refusals_and_lives_on_the_old_one() {
    let hub = TestHub::start().await;
    let fleet = good_fleet(&hub, 1).await;
    let id = fleet.ids()[0].clone();
    let rotation = offers::rotation_id();
    hub.desire(&id, offers::plain(&rotation, "secondary", &offers::stray_key())).await;
    let report = hub.until_report(&id, "rejected", |report| report.status == Status::Rejected).await;
    assert_eq!((report.reason, report.active), (Some(Reason::Refused), Some(KeySlot::Primary)));
    assert!(fleet.counts().refusals > 5, "{:?}", fleet.counts());
    // A refusal that ends in time condemns nothing.
    hub.set_faults(json!({"propagationDelayMs": 1000})).await;
    hub.regenerate(&id, "secondaryKey").await;
    let rotation = offer(&hub, &id, "secondary").await;
    assert_eq!(hub.until_committed(&id, &rotation).await.active, Some(KeySlot::Secondary));
    assert_eq!(fleet.lost().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_that_no_agent_may_take_are_invalid_to_light_devices_too() {
    let hub = TestHub::start().await;
    let fleet = good_fleet(&hub, 1).await;
    let id = fleet.ids()[0].clone();
    let rotation = offers::rotation_id();
    let sealed = "lBF5HmSrjVo7Kl2pGCtnphNJ9tAIM2P0l6TXyuNSqBBp3itxuB/3fJRW/kN9BpHAv9VrwLH4V7fETM6A7sLhF3N/t3yg6aTNR8OMQjTn0Xw=";
    hub.desire(&id, json!({"keyRenewal": {"rotation": rotation, "secondary": {"sealed": sealed}}})).await;
    let report = hub.until_report(&id, "invalid", |report| report.status == Status::Invalid).await;
    assert_eq!((report.reason, report.active), (Some(Reason::CannotUnseal), Some(KeySlot::Primary)));
    let rotation = offer(&hub, &id, "secondary").await;
    hub.until_committed(&id, &rotation).await;
    assert_eq!(fleet.lost().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_devices_answer_once_they_behave() {
    let hub = TestHub::start().await;
    let all_silent = Manners { silent: 1000, ..Manners::default() };
    let fleet = LightFleet::start(&hub, 3, &all_silent, &mut Chance::from_environment()).await;
    let ids = fleet.ids().to_vec();
    let mut rotations = Vec::new();
    for id in &ids {
        rotations.push(offer(&hub, id, "secondary").await);
    }
    twinkey_tests::waiting::until("all misbehave", async || (fleet.counts().disturbances == 3).then_some(()))
        .await;
    assert_eq!(fleet.counts().takeovers, 0);
    fleet.behave();
    for (id, rotation) in ids.iter().zip(&rotations) {
        hub.until_committed(id, rotation).await;
    }
    assert_eq!(fleet.lost().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn puppets_take_both_keys_in_turn_and_refuse_one_that_the_registry_does_not_have() {
    let hub = TestHub::start().await;
    let puppets = Puppets::start(&hub, 120).await;
    let words = [
        "device-identity",
        "renew-key",
        "--key-type",
        "in-turn",
        "--yes",
        "--no-progress",
        "--no-challenge",
        "-d",
        "*",
    ];
    let mut operator = hub.operator(&words);
    let renewed = operator.stdout(Stdio::null()).output().await.unwrap();
    assert!(renewed.status.success(), "{}", twinkey_tests::gateway::text(&renewed.stderr));
    assert_eq!((puppets.committed(), puppets.refused()), (240, 0));
    assert_eq!(hub.offers_left().await, 0);

    let id = &puppets.ids()[0];
    hub.desire(id, offers::plain(&offers::rotation_id(), "secondary", &offers::stray_key())).await;
    hub.until_report(id, "rejected", |report| report.status == Status::Rejected).await;
    assert_eq!(puppets.refused(), 1);
}
