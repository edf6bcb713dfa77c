//! Two operators whose clocks are wrong, each in its own direction.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;
use twinkey_tests::gateway::signal_process;
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

use crate::victim::{DEVICE, DONE, connected, run};

/// libfaketime, where it is installed.
fn clock_library() -> Option<PathBuf> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ];
    places.into_iter().map(PathBuf::from).find(|path| path.exists())
}

fn operator(hub: &TestHub, library: &PathBuf, ahead_secs: i64) -> Command {
    let mut command = hub.renewal(DEVICE, "secondary");
    command.args(["--timeout", "20s"]);
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("{ahead_secs:+}"));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// The first operator has taken the lease and is held up in the call that makes the key; the second one comes.
async fn one_key_is_made(first_secs: i64, second_secs: i64) {
    let Some(library) = clock_library() else {
        eprintln!("skipped: libfaketime (Debian's package faketime) is not installed");
        return;
    };
    let hub = TestHub::start().await;
    let (_gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let before = hub.keys(DEVICE).await;
    hub.set_faults(json!({"failRequests": [
        {"method": "POST", "path": "/devices/keys/regenerate", "code": 503_001, "retryAfterSecs": 1}]}))
        .await;
    let mut command = operator(&hub, &library, first_secs);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id().unwrap();
    let first = tokio::spawn(child.wait_with_output());
    until("the first one's lease", async || {
        hub.twin(DEVICE).await["tags"]["keyRenewal"]["lease"]["by"].is_string().then_some(())
    })
    .await;
    signal_process(pid, Signal::STOP);
    hub.set_faults(json!({"failRequests": []})).await;
    let second = run(&mut operator(&hub, &library, second_secs)).await;
    let keys = hub.keys(DEVICE).await;
    println!(
        "clocks {first_secs:+} and {second_secs:+}: the second one: exit {}, {:?}, {}",
        second.code,
        second.summary(),
        if keys == before { "no key made" } else { "A SECOND KEY" }
    );
    let lease = hub.twin(DEVICE).await["tags"]["keyRenewal"]["lease"].take();
    signal_process(pid, Signal::CONT);
    let first = first.await.unwrap().unwrap();
    println!("the first one: {:?}", first.status.code());
    assert_eq!(second.outcomes[0]["outcome"], "busy", "{second:?} {lease}");
    assert_eq!(keys, before, "the second one has made no key");
    assert_eq!(first.status.code(), Some(DONE));
    hub.until_connected(DEVICE, "secondary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_stands_for_an_operator_whose_clock_is_ahead() {
    one_key_is_made(0, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_an_operator_whose_clock_is_behind_stands() {
    one_key_is_made(-200, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_stands_between_clocks_that_are_wrong_in_both_directions() {
    one_key_is_made(-200, 200).await;
    one_key_is_made(200, -200).await;
}
