//! Fingerprints are long enough that nobody finds another key with the same one.

use twinkey_tests::hub::TestHub;

use crate::attacker::token;
use crate::victim::{DEVICE, connected, renew_in_peace, reported};

#[tokio::test(flavor = "multi_thread")]
async fn fingerprints_in_the_twin_have_128_bits() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    renew_in_peace(&hub, DEVICE, "secondary").await;
    let (keys, report) = (hub.keys(DEVICE).await, reported(&hub, DEVICE).await);
    for slot in ["primary", "secondary"] {
        let fingerprint = report[slot]["fingerprint"].as_str().unwrap();
        assert_eq!(fingerprint.len(), 32, "{fingerprint}");
        assert_eq!(fingerprint, token::fingerprint(keys.of_slot(slot)));
    }
}
