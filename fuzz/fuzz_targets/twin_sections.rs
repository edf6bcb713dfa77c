//! Any bytes as a twin: the sections that are found in it are those that a reader of the whole document finds, wherever
//! that reader takes it, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use twinkey_contract::twin::Twin;

fuzz_target!(|twin: &[u8]| {
    let whole = serde_json::from_slice::<Value>(twin).ok();
    let found = match Twin::find(twin) {
        Ok(found) => found,
        Err(error) => {
            // The message gives a place, and quotes nothing.
            assert!(error.to_string().len() < 300);
            return;
        }
    };
    let (section, report) = (found.desired(), found.report());
    // What concerns others may be what serde_json can't hold: too deep, too large a number, no Unicode.
    let Some(whole) = whole else { return };
    assert!(whole["desired"].is_object());
    if let Ok(section) = section {
        let expected = whole["desired"].get("keyRenewal").filter(|section| !section.is_null());
        assert_eq!(section.as_ref(), expected);
    }
    if let Ok(Some(report)) = report {
        assert_eq!(whole["reported"]["keyRenewal"]["sequence"], report.sequence);
    }
});
