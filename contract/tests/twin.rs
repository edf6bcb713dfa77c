//! Twins: what is found in them whatever stands beside it, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};
use twinkey_contract::offer::Offer;
use twinkey_contract::report::Reason;
use twinkey_contract::twin::{SECTION_LEN_MAX, SectionError, TWIN_LEN_MAX, Twin, TwinError};

const OFFER: &str = r#"{"rotation":"0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f","primary":{"key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}}"#;
/// What the hub counts of desired or reported properties at most.
const COUNTED_MAX: usize = 32 * 1024;

fn desired(twin: &str) -> Result<Option<Value>, SectionError> {
    Twin::find(twin.as_bytes()).unwrap().desired()
}

/// An object of `*left` names of one letter, the dearest in JSON first: those below the first level need an escape.
fn dearest(left: &mut usize, depth: usize) -> String {
    let names = ["\\\"", "\\\\"].map(str::to_owned).into_iter();
    let letters = (b'!'..=b'~').filter(|c| !b"\"\\#$.".contains(c)).map(|c| char::from(c).to_string());
    let mut fields = Vec::new();
    for name in names.chain(letters.filter(|_| depth == 1)) {
        if *left == 0 {
            break;
        }
        *left -= 1;
        // A hub takes ten levels.
        let value = if depth < 10 { dearest(left, depth + 1) } else { String::from("{}") };
        fields.push(format!("\"{name}\":{value}"));
    }
    format!("{{{}}}", fields.join(","))
}

#[test]
fn largest_twin_that_a_hub_can_make_of_counted_bytes_is_read_with_the_offer_in_it() {
    // The offer counts 108.
    let body = |left: usize| {
        let text = dearest(&mut { left }, 1);
        assert!(text.len() > left * 7, "the dearest form is tried");
        text[1..text.len() - 1].to_owned()
    };
    let version = u64::MAX;
    let twin = format!(
        r#"{{"desired":{{{},"keyRenewal":{OFFER},"$version":{version}}},"reported":{{{},"$version":{version}}}}}"#,
        body(COUNTED_MAX - 108),
        body(COUNTED_MAX),
    );
    assert!((TWIN_LEN_MAX * 9 / 10..=TWIN_LEN_MAX).contains(&twin.len()), "{} bytes", twin.len());
    assert!(Offer::read(twin.as_bytes()).unwrap().is_some());
}

#[test]
fn twin_beyond_the_limit_is_too_large_whatever_it_holds() {
    let mut twin = format!(r#"{{"desired":{{"keyRenewal":{OFFER}}}}}"#).into_bytes();
    twin.resize(TWIN_LEN_MAX, b' ');
    assert!(Offer::read(&twin).unwrap().is_some());
    for twin in [[twin, vec![b' ']].concat(), vec![b'['; TWIN_LEN_MAX + 1]] {
        assert_eq!(Twin::find(&twin).unwrap_err(), TwinError::TooLarge { len: TWIN_LEN_MAX + 1 });
        let error = Offer::read(&twin).unwrap_err();
        assert_eq!((error.rotation, error.code()), (None, Reason::TwinTooLarge));
    }
}

#[test]
fn section_is_found_whatever_stands_beside_it() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_objects = format!("{}1{}", r#"{"desired":"#.repeat(20_000), "}".repeat(20_000));
    let control = "\\u0001".repeat(40_000);
    for beside in [
        "null",
        "[]",
        r#"{"keyRenewal":1}"#,
        r#"[{"keyRenewal":1}]"#,
        r#""\"keyRenewal\":1""#,
        r#""\ud800""#,
        "1e999",
        &deep,
        &deep_objects,
        &format!("\"{control}\""),
    ] {
        let shown = &beside[..beside.len().min(40)];
        for twin in [
            format!(r#"{{"desired":{{"x":{beside},"keyRenewal":{OFFER}}}}}"#),
            format!(r#"{{"desired":{{"keyRenewal":{OFFER},"x":{beside},"x":{beside}}}}}"#),
            format!(r#"{{"other":{beside},"reported":{{"y":{beside}}},"desired":{{"keyRenewal":{OFFER}}}}}"#),
        ] {
            if twin.len() <= TWIN_LEN_MAX {
                assert_eq!(desired(&twin).unwrap().unwrap().to_string().len(), OFFER.len(), "{shown}");
            }
        }
    }
    // A name may be written with escapes, too.
    let escaped = format!(r#"{{"d\u0065sired" : {{ "key\u0052enewal" : {OFFER} }} }}"#);
    assert!(Offer::read(escaped.as_bytes()).unwrap().is_some());
}

#[test]
fn what_stands_twice_is_refused() {
    for twin in [
        r#"{"desired":{},"desired":{}}"#,
        r#"{"desired":{},"reported":{},"reported":{}}"#,
        r#"{"reported":null,"reported":{},"desired":{}}"#,
    ] {
        assert!(matches!(Twin::find(twin.as_bytes()), Err(TwinError::Malformed { .. })), "{twin}");
    }
    for twins in
        ["1,\"keyRenewal\":1", "null,\"keyRenewal\":{}", "1,\"a\":2,\"keyRen\\u0065wal\":3,\"keyRenewal\":4"]
    {
        let twin = format!(r#"{{"desired":{{"keyRenewal":{twins}}},"reported":{{}}}}"#);
        assert_eq!(desired(&twin), Err(SectionError::Repeated), "{twin}");
        assert_eq!(Offer::read(twin.as_bytes()).unwrap_err().code(), Reason::Malformed);
        let reported =
            format!(r#"{{"desired":{{"keyRenewal":{OFFER}}},"reported":{{"keyRenewal":{twins}}}}}"#);
        assert!(Twin::find(reported.as_bytes()).unwrap().report().is_err(), "{reported}");
        assert!(Offer::read(reported.as_bytes()).unwrap().is_some(), "a device's mistake spoils no offer");
    }
    let inside = [
        OFFER.replace('}', r#","key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#),
        OFFER.replacen('{', r#"{"rotation":"0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5e","#, 1),
    ];
    for section in inside {
        let twin = format!(r#"{{"desired":{{"keyRenewal":{section}}}}}"#);
        assert_eq!(desired(&twin), Err(SectionError::Unreadable), "{twin}");
    }
}

#[test]
fn section_that_is_too_long_too_deep_or_no_unicode_is_malformed() {
    let of_len = |len: usize| format!("\"{}\"", "x".repeat(len - 2));
    let twin = |section: &str| format!(r#"{{"desired":{{"keyRenewal":{section}}}}}"#);
    assert!(desired(&twin(&of_len(SECTION_LEN_MAX))).unwrap().is_some());
    let len = SECTION_LEN_MAX + 1;
    assert_eq!(desired(&twin(&of_len(len))), Err(SectionError::TooLong { len }));
    assert_eq!(Offer::read(twin(&of_len(len)).as_bytes()).unwrap_err().code(), Reason::Malformed);
    let deep = format!("{}{}", "[".repeat(4_000), "]".repeat(4_000));
    for section in [deep.as_str(), r#""\ud800""#, r#"{"\udc00":1}"#] {
        assert_eq!(desired(&twin(section)), Err(SectionError::Unreadable));
    }
}

#[test]
fn report_is_read_from_the_reported_properties_alone() {
    let reported = |reported: &str| {
        let twin = format!(r#"{{"desired":{{"keyRenewal":7}},"reported":{reported}}}"#);
        Twin::find(twin.as_bytes()).unwrap().report()
    };
    for nothing in ["null", "{}", r#"{"$version":3}"#, r#"{"keyRenewal":null}"#] {
        assert_eq!(reported(nothing), Ok(None), "{nothing}");
    }
    let report = r#"{"contract":1,"agent":"0.1.0","sequence":42,"status":"idle"}"#;
    let read = reported(&format!(r#"{{"x":1,"keyRenewal":{report}}}"#)).unwrap().unwrap();
    assert_eq!((read.sequence, read.agent.as_str()), (42, "0.1.0"));
    assert!(reported(r#"{"keyRenewal":7}"#).is_err());
    assert!(reported(&format!(r#"{{"keyRenewal":{}}}"#, report.replace('}', r#","sequence":43}"#))).is_err());
}

/// JSON with few names, so that the ones that matter come up often, and often twice.
fn json_text() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("desired"), Just("reported"), Just("keyRenewal"), Just("x")];
    let leaf = prop_oneof![
        Just(String::from("null")),
        Just(String::from("-1.5e3")),
        Just(String::from(OFFER)),
        any::<String>().prop_map(|text| json!(text).to_string()),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| format!("[{}]", values.join(","))),
            proptest::collection::vec((name.clone(), inner), 0..4).prop_map(|fields| {
                let fields: Vec<_> =
                    fields.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
                format!("{{{}}}", fields.join(" ,"))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn sections_are_those_that_a_reader_of_the_whole_finds(twin in json_text()) {
        let whole: Value = serde_json::from_str(&twin).unwrap();
        let Ok(found) = Twin::find(twin.as_bytes()) else { return Ok(()) };
        prop_assert!(whole["desired"].is_object());
        if let Ok(section) = found.desired() {
            let expected = whole["desired"].get("keyRenewal").filter(|section| !section.is_null());
            prop_assert_eq!(section.as_ref(), expected);
        }
        if let Ok(Some(report)) = found.report() {
            prop_assert_eq!(json!(report.sequence), whole["reported"]["keyRenewal"]["sequence"].clone());
        }
    }

    #[test]
    fn twin_without_repeated_names_is_read_as_a_reader_of_the_whole_reads_it(
        desired in json_text(), reported in json_text(),
    ) {
        // Through a map, so that no name is left twice.
        let whole = json!({
            "desired": serde_json::from_str::<Value>(&desired).unwrap(),
            "reported": serde_json::from_str::<Value>(&reported).unwrap(),
        });
        let twin = whole.to_string();
        match Twin::find(twin.as_bytes()) {
            Ok(found) => {
                let expected = whole["desired"].get("keyRenewal").filter(|section| !section.is_null());
                let section = found.desired().unwrap();
                prop_assert_eq!(section.as_ref(), expected);
            }
            Err(error) => {
                let is_object = |name: &str| whole[name].is_object();
                prop_assert!(!is_object("desired") || !(is_object("reported") || whole["reported"].is_null()), "{}", error);
            }
        }
    }

    #[test]
    fn damaged_twins_are_read_or_refused_without_a_panic(
        cut in 0..400_usize, flip in any::<(usize, u8)>(),
    ) {
        let mut twin = format!(r#"{{"desired":{{"x":"\u00e4ä","keyRenewal":{OFFER}}},"reported":{{"keyRenewal":{{"contract":1}}}}}}"#).into_bytes();
        let at = flip.0 % twin.len();
        twin[at] ^= flip.1;
        twin.truncate(cut.max(1));
        if let Ok(found) = Twin::find(&twin) {
            let _ = (found.desired(), found.report());
        }
    }
}
