//! One device of ten makes its reported properties so large that a page with them is too long for the operator.

use serde_json::{Map, Value};
use twinkey_tests::chance::Chance;
use twinkey_tests::hub::TestHub;
use twinkey_tests::light::{LightFleet, Manners};

use crate::attacker::mqtt::{Door, Line};
use crate::attacker::rest::Backend;
use crate::attacker::token;
use crate::victim::{DEVICE, DONE, connected, run};

/// The longest text of characters that cost nothing and stand as six bytes each in JSON.
const TEXT_LEN: usize = 4_096;
/// Properties in a patch, as many as a packet takes.
const AT_ONCE: usize = 10;
const PATCHES: usize = 36;
const OTHERS: usize = 9;

/// Has the hub take a patch of reported properties.
async fn report(line: &mut Line, number: usize) -> std::io::Result<()> {
    let text = "\u{1}".repeat(TEXT_LEN);
    let patch: Map<String, Value> =
        (0..AT_ONCE).map(|at| (format!("f{}", number * AT_ONCE + at), text.as_str().into())).collect();
    line.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", Value::from(patch).to_string().as_bytes())
        .await?;
    while !line.hear().await?.topic.starts_with("$iothub/twin/res/204/") {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_a_huge_report_hides_nothing_of_the_others() {
    let hub = TestHub::start().await;
    let fleet = LightFleet::start(&hub, OTHERS, &Manners::default(), &mut Chance::from_environment()).await;
    let others = fleet.ids();
    let (_gateway, agent, keys) = connected(&hub, DEVICE, |_| {}).await;
    agent.stop().await;
    let stolen = token::of_identity(hub.host_name(), DEVICE, &keys.primary);
    let mut line = Door::of(&hub).open(DEVICE, &stolen).await.unwrap();
    line.subscribe(&["$iothub/twin/res/#"]).await.unwrap();
    for number in 0..PATCHES {
        report(&mut line, number).await.unwrap();
    }
    let len = Backend::of(&hub, "service").twin(DEVICE).await.to_string().len();
    println!("a twin of {len} bytes");
    assert!(len > 8 * 1_024 * 1_024);
    let (status, _) = Backend::of(&hub, "registryRead").query("SELECT deviceId FROM devices").await;
    assert!(status.is_success());
    for args in [&["fleet", "status"][..], &["rollout", "plan", "--target", "*"]] {
        let mut command = hub.operator(args);
        let output = command.args(["--output", "json"]).output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        println!(
            "{args:?}: exit {:?}, {} of {} others are told, {words}",
            output.status.code(),
            others.iter().filter(|id| told.contains(id.as_str())).count(),
            others.len()
        );
        assert!(matches!(output.status.code(), Some(0 | 3 | 4)), "{args:?}: {words}");
        for id in others {
            assert!(told.contains(id.as_str()), "{args:?} tells {id}: {told} {words}");
        }
        assert!(told.contains(DEVICE) || words.contains(DEVICE), "{args:?} names {DEVICE}");
    }
    // The others are renewed as ever.
    let mut command = hub.operator(&["device-identity", "renew-key", "--key-type", "secondary", "--yes"]);
    // Light devices answer no direct method.
    command.args(["--no-challenge", "--no-progress", "--output", "json", "--timeout", "20s", "--device-id"]);
    command.args(others);
    let renewal = run(&mut command).await;
    assert_eq!(renewal.code, DONE, "{renewal:?}");
    assert_eq!(renewal.outcomes.len(), others.len());
}
