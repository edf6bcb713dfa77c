//! Any text as a connection string. What is read is written and read again as the same; errors quote no value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinkey_contract::connection_string::{DeviceConnectionString, ServiceConnectionString};

/// Base64, as keys are.
const PLANTED: &str = "Q2FuYXJ5S2V5Q2FuYXJ5";

fuzz_target!(|text: &str| {
    match DeviceConnectionString::parse(text) {
        Ok(parsed) => {
            let again = DeviceConnectionString::parse(&parsed.expose()).unwrap();
            assert_eq!(*again.expose(), *parsed.expose());
        }
        Err(_) => {}
    }
    // A planted key is never quoted, whatever is wrong around it.
    let planted = text.replace("SharedAccessKey=", &format!("SharedAccessKey={PLANTED}"));
    if let Err(error) = DeviceConnectionString::parse(&planted) {
        assert!(!error.to_string().contains(PLANTED));
    }
    if let Ok(parsed) = ServiceConnectionString::parse(text) {
        let again = ServiceConnectionString::parse(&parsed.expose()).unwrap();
        assert_eq!(*again.expose(), *parsed.expose());
    }
});
