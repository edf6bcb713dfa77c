//! Offers: what is read from a twin, and what is said of the rest.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};
use twinkey_contract::{
    Identity, KeySlot, RotationId,
    offer::{Offer, OfferError, OfferErrorKind as Kind, OfferedKey, check_mark},
    report::Reason,
    sealing::{Binding, SealingKey},
    twin::{TWIN_LEN_MAX, TwinError},
};
use twinkey_sas::{
    Key, KeyError,
    identifiable::{Purpose, stamp},
};

const ROTATION: &str = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f";
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn rotation() -> RotationId {
    ROTATION.parse().unwrap()
}

fn read(section: Value) -> Result<Option<Offer>, OfferError> {
    let desired = json!({"$version": 7, "interval": 5, "keyRenewal": section});
    let read =
        Offer::read(&serde_json::to_vec(&json!({"desired": &desired, "reported": {"$version": 3}})).unwrap());
    assert_eq!(Offer::read_desired(&desired), read);
    read
}

/// What a hub keeps of a patch: objects merged, nulls deleted (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return };
    for (name, value) in patch {
        let target = target.as_object_mut().unwrap();
        match value {
            Value::Null => drop(target.remove(name)),
            Value::Object(_) => {
                let slot = target.entry(name).or_insert_with(|| json!({}));
                if !slot.is_object() {
                    *slot = json!({});
                }
                merge(slot, value);
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                drop(target.insert(name.clone(), value.clone()))
            }
        }
    }
}

#[test]
fn no_section_or_null_is_no_offer() {
    for twin in [
        r#"{"desired":{}}"#,
        r#"{"desired":{"$version":1},"reported":{}}"#,
        r#"{"desired":{"keyRenewal":null}}"#,
    ] {
        assert_eq!(Offer::read(twin.as_bytes()), Ok(None), "{twin}");
    }
}

#[test]
fn offers_of_each_kind_are_read_and_unknown_fields_passed_over() {
    let plain = OfferedKey::Plain(Key::from_base64(KEY).unwrap());
    let sealed = OfferedKey::Sealed(vec![1; 80]);
    for (section, primary, secondary) in [
        (json!({"rotation": ROTATION, "primary": {"key": KEY}}), Some(plain.clone()), None),
        (
            json!({"rotation": ROTATION, "primary": null, "secondary": {"key": KEY, "sealed": null}}),
            None,
            Some(plain.clone()),
        ),
        (
            json!({"rotation": ROTATION, "primary": {"key": KEY, "x": 1}, "secondary": {"sealed": "AQEB".repeat(26) + "AQE="}, "x": []}),
            Some(plain.clone()),
            Some(sealed.clone()),
        ),
    ] {
        assert_eq!(read(section), Ok(Some(Offer { rotation: rotation(), primary, secondary, auth: None })));
    }
}

#[test]
fn each_mistake_has_its_own_error_and_keeps_the_rotation() {
    let (slot, key) =
        (KeySlot::Secondary, |value: Value| json!({"rotation": ROTATION, "secondary": {"key": value}}));
    for (section, kind) in [
        (json!({"rotation": ROTATION}), Kind::NoSlot),
        (json!({"rotation": ROTATION, "primary": null}), Kind::NoSlot),
        (json!({"rotation": ROTATION, "secondary": {}}), Kind::Slot { slot }),
        (json!({"rotation": ROTATION, "secondary": {"key": null}}), Kind::Slot { slot }),
        (json!({"rotation": ROTATION, "secondary": {"key": KEY, "sealed": KEY}}), Kind::Slot { slot }),
        (json!({"rotation": ROTATION, "secondary": KEY}), Kind::Slot { slot }),
        (json!({"rotation": ROTATION, "secondary": [KEY]}), Kind::Slot { slot }),
        (json!({"rotation": ROTATION, "secondary": false}), Kind::Slot { slot }),
        (key(json!(7)), Kind::KeyNotText { slot }),
        (key(json!({})), Kind::KeyNotText { slot }),
        (key(json!("AAAA")), Kind::Key { slot, error: KeyError::Length { bytes: 3 } }),
        (key(json!(format!("{KEY}\n"))), Kind::Key { slot, error: KeyError::NotBase64 { at: 43 } }),
        (json!({"rotation": ROTATION, "secondary": {"sealed": 7}}), Kind::Sealed { slot }),
        (json!({"rotation": ROTATION, "secondary": {"sealed": "?"}}), Kind::Sealed { slot }),
        (json!({"rotation": ROTATION, "secondary": {"sealed": KEY}}), Kind::Sealed { slot }),
        (json!({"rotation": ROTATION, "secondary": {"sealed": "AAAA".repeat(38)}}), Kind::Sealed { slot }),
        (json!({"rotation": ROTATION, "secondary": {"key": KEY}, "auth": 7}), Kind::Auth),
        (json!({"rotation": ROTATION, "secondary": {"key": KEY}, "auth": "AAAA"}), Kind::Auth),
        (json!({"rotation": ROTATION, "secondary": {"key": KEY}, "auth": [KEY]}), Kind::Auth),
        // One good slot doesn't save the other.
        (
            json!({"rotation": ROTATION, "primary": {"key": KEY}, "secondary": {"key": "A"}}),
            Kind::Key { slot, error: KeyError::NotBase64 { at: 1 } },
        ),
    ] {
        let error = read(section.clone()).unwrap_err();
        assert_eq!(error, OfferError { rotation: Some(rotation()), kind }, "{section}");
        assert_eq!(error.code(), Reason::Malformed);
    }
}

#[test]
fn section_without_a_readable_rotation_is_malformed() {
    for section in [
        json!({}),
        json!({"secondary": {"key": KEY}}),
        json!({"rotation": null, "secondary": {"key": KEY}}),
        json!({"rotation": 7, "secondary": {"key": KEY}}),
        json!({"rotation": "seven", "secondary": {"key": KEY}}),
    ] {
        assert_eq!(
            read(section.clone()),
            Err(OfferError { rotation: None, kind: Kind::Rotation }),
            "{section}"
        );
    }
    for section in [json!(false), json!(1), json!(KEY), json!([ROTATION])] {
        let error = read(section).unwrap_err();
        assert_eq!(error, OfferError { rotation: None, kind: Kind::Section });
    }
}

#[test]
fn what_is_no_twin_is_malformed() {
    for twin in [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{}",
        "[{}]",
        "[[null, 7]]",
        r#"{"desired":null}"#,
        r#"{"desired":[1,2]}"#,
        r#"{"desired":"x"}"#,
        "\u{e4}",
    ] {
        let error = Offer::read(twin.as_bytes()).unwrap_err();
        assert!(
            matches!(error, OfferError { rotation: None, kind: Kind::Twin(TwinError::Malformed { .. }) }),
            "{twin}"
        );
        assert_eq!(error.code(), Reason::Malformed);
    }
    for twin in [
        vec![0xff; 9],
        b"[".repeat(TWIN_LEN_MAX),
        [b"{\"desired\":".as_slice(), &b"{\"x\":".repeat(9000)].concat(),
    ] {
        assert!(Offer::read(&twin).is_err());
    }
}

#[test]
fn damaged_key_and_hub_policys_key_are_refused_by_their_mark() {
    let text = |key: &Key| key.expose_base64(&mut [0; 88]).to_owned();
    let good = stamp(&[9; 32], Purpose::Device);
    let mut bytes: [u8; 32] = good.expose().try_into().unwrap();
    bytes[3] ^= 1;
    let (slot, damaged) = (KeySlot::Primary, Key::from_bytes(&bytes).unwrap());
    for (key, kind) in [
        (damaged, Kind::Checksum { slot }),
        (stamp(&[9; 32], Purpose::HubPolicy), Kind::HubPolicyKey { slot }),
    ] {
        let error = read(json!({"rotation": ROTATION, "primary": {"key": text(&key)}})).unwrap_err();
        assert_eq!(error, OfferError { rotation: Some(rotation()), kind: kind.clone() });
        assert_eq!(error.code(), Reason::Checksum);
        assert_eq!(check_mark(slot, &key), Err(kind));
        assert!(!error.to_string().contains(&text(&key)[..6]));
    }
    for key in [good, stamp(&[9; 32], Purpose::Provisioning)] {
        assert!(read(json!({"rotation": ROTATION, "primary": {"key": text(&key)}})).is_ok());
    }
}

#[test]
fn patch_leaves_nothing_stale_in_the_twin() {
    let (key, other) = (Key::from_bytes(&[1; 32]).unwrap(), Key::from_bytes(&[2; 64]).unwrap());
    let offer = |primary, secondary| Offer { rotation: rotation(), primary, secondary, auth: None };
    let sealed = Some(OfferedKey::Sealed(vec![3; 80]));
    let plain = |key: &Key| Some(OfferedKey::Plain(key.clone()));
    let mut twin = json!({"desired": {"interval": 5}});
    for offer in [
        offer(plain(&key), sealed.clone()),
        offer(sealed.clone(), plain(&other)),
        offer(None, sealed.clone()),
        offer(plain(&other), None),
    ] {
        merge(&mut twin["desired"], &offer.to_patch());
        assert_eq!(Offer::read(&serde_json::to_vec(&twin).unwrap()), Ok(Some(offer)));
    }
    merge(&mut twin["desired"], &Offer::erase_patch());
    assert_eq!(twin, json!({"desired": {"interval": 5}}));
}

#[test]
fn sealed_offer_travels_through_the_twin() {
    let (identity, private) = (Identity::new("d", None).unwrap(), SealingKey::generate().unwrap());
    let binding = Binding { identity: &identity, slot: KeySlot::Primary, rotation: rotation() };
    let key = Key::from_bytes(&[1; 64]).unwrap();
    let sealed = private.public().seal(&binding, &key).unwrap();
    let patch = Offer {
        rotation: rotation(),
        primary: Some(OfferedKey::Sealed(sealed)),
        secondary: None,
        auth: None,
    }
    .to_patch();
    let offer = Offer::read_desired(&patch).unwrap().unwrap();
    assert_eq!(offer.slot(KeySlot::Secondary), None);
    let Some(OfferedKey::Sealed(sealed)) = offer.slot(KeySlot::Primary) else { panic!("{offer:?}") };
    assert_eq!(private.unseal(&binding, sealed), Ok(key));
}

#[test]
fn debug_shows_nothing_of_a_key() {
    let offer = read(json!({"rotation": ROTATION, "primary": {"key": KEY}})).unwrap().unwrap();
    let shown = format!("{offer:?}");
    assert!(shown.contains("Plain([elided])") && !shown.contains(&KEY[..6]), "{shown}");
}

fn json_of_any_shape() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!(ROTATION)),
        Just(json!(KEY)),
    ];
    let name = prop_oneof![
        Just("keyRenewal"),
        Just("desired"),
        Just("rotation"),
        Just("primary"),
        Just("secondary"),
        Just("key"),
        Just("sealed"),
        Just("x"),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name.clone().prop_map(String::from), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_of_any_shape_is_read_or_refused_without_quoting_a_key(section in json_of_any_shape()) {
        let none = section.is_null();
        match read(section) {
            Ok(offer) => prop_assert_eq!(offer.is_none(), none),
            Err(error) => {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains(&KEY[..6]), "{}", shown);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(twin in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Offer::read(&twin).is_err());
    }
}

#[test]
fn authentication_covers_identity_rotation_slots_and_forms() {
    let identity = Identity::new("d", None).unwrap();
    let (vouching, other) = (Key::from_bytes(&[1; 32]).unwrap(), Key::from_bytes(&[2; 32]).unwrap());
    let (plain, sealed) = (OfferedKey::Plain(other.clone()), OfferedKey::Sealed(vec![1; 80]));
    let mut offer = Offer {
        rotation: rotation(),
        primary: Some(sealed.clone()),
        secondary: Some(plain.clone()),
        auth: None,
    };
    assert!(!offer.is_authentic(&vouching, &identity));
    offer.authenticate(&vouching, &identity);
    assert!(offer.is_authentic(&vouching, &identity));
    assert!(!offer.is_authentic(&other, &identity));
    for (device, module) in [("e", None), ("d", Some("m"))] {
        assert!(!offer.is_authentic(&vouching, &Identity::new(device, module).unwrap()));
    }
    let next: RotationId = ROTATION.replace("4e5f", "4e60").parse().unwrap();
    for altered in [
        Offer { rotation: next, ..offer.clone() },
        Offer { primary: None, ..offer.clone() },
        Offer { secondary: None, ..offer.clone() },
        Offer { primary: Some(plain.clone()), secondary: Some(sealed.clone()), ..offer.clone() },
        Offer { primary: Some(OfferedKey::Sealed(vec![2; 80])), ..offer.clone() },
        Offer { secondary: Some(OfferedKey::Plain(vouching.clone())), ..offer.clone() },
        Offer { auth: None, ..offer.clone() },
    ] {
        assert!(!altered.is_authentic(&vouching, &identity), "{altered:?}");
    }
    let mut merged = json!({});
    merge(&mut merged, &offer.to_patch());
    assert_eq!(read(merged["keyRenewal"].clone()), Ok(Some(offer)));
}
