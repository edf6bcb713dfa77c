//! A hub that has no file descriptor left. Alone in its program: the limit is the whole program's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::TestHub;
use tokio::net::TcpStream;

#[tokio::test]
async fn without_a_free_descriptor_a_stranger_gives_up_its_own() {
    // Nothing but the lack of descriptors ends a stranger here.
    let hub = TestHub::start_with(|options| options.tls_timeout = Duration::from_secs(600)).await;
    let keys = hub.create("d1").await;
    let mut live = hub.connect("d1", &keys.primary).await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum: limit.maximum }).unwrap();
    let reserve = std::fs::File::open("/dev/null").unwrap();
    let mut strangers = Vec::new();
    while let Ok(stream) = TcpStream::connect(&hub.emulator.ready().mqtts).await {
        strangers.push(stream);
    }
    assert!(strangers.len() > 20, "{}", strangers.len());
    assert!(live.answers().await);
    drop(reserve);
    let mut device = hub.connect("d1", &keys.secondary).await;
    assert!(device.answers().await);
    assert!(live.is_closed().await);
    setrlimit(Resource::Nofile, limit).unwrap();
}
