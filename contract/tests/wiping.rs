//! JSON that may hold keys leaves nothing in the heap.
#![allow(unsafe_code, reason = "memory that was given back can't be read otherwise")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod freed_memory;

use freed_memory::blocks_that_show;
use serde_json::Value;
use twinkey_contract::wiped::Wiped;

const KEY: &str = "Y2FuYXJ5LWtleS10aGF0LW11c3Qtbm90LWxlYWshISE=";
/// A key at every depth.
const TWIN: &str = r#"{"a": "Y2FuYXJ5LWtleS10aGF0LW11c3Qtbm90LWxlYWshISE=",
    "b": [null, {"c": {"d": "xY2FuYXJ5LWtleS10aGF0LW11c3Qtbm90LWxlYWshISE=", "e": [["Y2FuYXJ5LWtleS10aGF0LW11c3Q="]]}}, 7]}"#;

#[test]
fn every_text_of_a_wiped_value_is_wiped_and_of_another_none() {
    let secrets = || vec![KEY.as_bytes().to_vec()];
    let plain = || drop(serde_json::from_str::<Value>(TWIN).unwrap());
    assert_eq!(blocks_that_show(secrets(), plain), 3);
    let wiped = || {
        let value: Wiped = serde_json::from_str(TWIN).unwrap();
        let again = Wiped::from(serde_json::from_str::<Value>(TWIN).unwrap());
        assert!(value == again && value["a"] == KEY && value.clone().is_object());
        assert_eq!(format!("{value:?}"), "Wiped([elided])");
    };
    assert_eq!(blocks_that_show(secrets(), wiped), 0);
}
