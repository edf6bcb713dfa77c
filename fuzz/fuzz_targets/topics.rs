//! Any text as a topic; and any names as the properties of a message, which must come out as one topic without
//! wildcards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinkey_agent::hub::topics::{self, Incoming};
use twinkey_contract::Identity;

fuzz_target!(|input: (&str, Vec<(&str, &str)>)| {
    let (topic, properties) = input;
    match Incoming::parse(topic) {
        Some(Incoming::TwinAnswer { request, .. } | Incoming::Method { request, .. }) => {
            assert!(topic.contains(request));
        }
        Some(Incoming::Desired) | None => {}
    }
    let identity = Identity { device_id: "d".into(), module_id: None };
    let made = topics::telemetry(&identity, properties.iter().copied());
    assert!(made.starts_with("devices/d/messages/events/"));
    assert!(!made.contains(['#', '+', '\0']), "{made}");
});
