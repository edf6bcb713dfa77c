//! Offers in a twin document: which are taken, and what is reported of the others.

use serde_json::{Value, json};
use twinkey_agent::config;
use twinkey_agent::keyring::{KeyRing, Registration, name_of};
use twinkey_agent::twin::read_desired;
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::sealing::{Binding, SealingKey};
use twinkey_contract::twin::SECTION_LEN_MAX;
use twinkey_contract::{Identity, KeySlot, RotationId};
use twinkey_rotation::{
    Brought, Candidate, Desired, Held, Invalid, KeyName, Reason, Retired, Ring, Rotation, Standing,
};

use crate::support::{key_of, registration};

const ROTATION: &str = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f";
const STRICT: config::Rotation =
    config::Rotation { propagation_window_secs: 1, allow_unsealed: false, allow_unauthenticated: false };
const LAX: config::Rotation =
    config::Rotation { allow_unsealed: true, allow_unauthenticated: true, ..STRICT };

/// Held: 1 and 2. On trial: 3. A last resort: 4. Retired: 5. Brought: 6.
fn key_ring() -> KeyRing {
    let sealing_key = SealingKey::from_bytes(&[7; 32]).unwrap();
    let mut key_ring =
        KeyRing::provision(registration(), sealing_key, twinkey_rotation::KeySlot::Primary, key_of(1));
    let names: Vec<KeyName> = (1..=6).map(|number| key_ring.learn(key_of(number)).unwrap()).collect();
    let ring = &mut key_ring.ring;
    ring.slots.secondary.held = Some(Held { key: names[1], proven_at: None });
    ring.slots.secondary.candidate = Some(Candidate { key: names[2], standing: Standing::Trying });
    ring.slots.primary.candidate = Some(Candidate { key: names[3], standing: Standing::Spare });
    ring.retired = Some(Retired { slot: twinkey_rotation::KeySlot::Secondary, key: names[4] });
    ring.brought = Some(Brought { slot: twinkey_rotation::KeySlot::Primary, key: names[5] });
    key_ring
}

fn sealed(key: u8, identity: &Identity, slot: KeySlot, rotation: RotationId) -> OfferedKey {
    let binding = Binding { identity, slot, rotation };
    let sealing_key = SealingKey::from_bytes(&[7; 32]).unwrap();
    OfferedKey::Sealed(sealing_key.public().seal(&binding, &key_of(key)).unwrap())
}

/// Key 9 for the secondary slot, authenticated with key `vouching`.
fn offer(vouching: Option<u8>) -> Offer {
    let (identity, rotation) = (registration().identity, ROTATION.parse().unwrap());
    let secondary = Some(sealed(9, &identity, KeySlot::Secondary, rotation));
    let mut offer = Offer { rotation, primary: None, secondary, auth: None };
    if let Some(vouching) = vouching {
        offer.authenticate(&key_of(vouching), &identity);
    }
    offer
}

fn twin_of(offer: &Offer) -> Value {
    json!({"desired": offer.to_patch(), "reported": {}})
}

/// What comes of a document, and whether the key ring knows key 9 afterwards.
fn read_by(key_ring: &mut KeyRing, twin: &Value, config: &config::Rotation) -> (Desired, bool) {
    read_bytes(key_ring, twin.to_string().as_bytes(), config)
}

fn read_bytes(key_ring: &mut KeyRing, twin: &[u8], config: &config::Rotation) -> (Desired, bool) {
    let ring = key_ring.ring;
    let (desired, complaint) = read_desired(twin, key_ring, &ring, config);
    assert_eq!(matches!(desired, Desired::Invalid(_)), complaint.is_some(), "{complaint:?}");
    if let Some(complaint) = complaint {
        assert!(!complaint.contains("CQkJCQ") && !complaint.contains("0909"), "{complaint}");
    }
    assert!(key_ring.ring == ring, "reading changes no ring");
    (desired, key_ring.key(name_of(&key_of(9))).is_some())
}

fn read(twin: &Value, config: &config::Rotation) -> (Desired, bool) {
    read_by(&mut key_ring(), twin, config)
}

fn invalid(reason: Reason) -> Desired {
    Desired::Invalid(Invalid { rotation: Some(id()), reason })
}

fn unauthenticated() -> (Desired, bool) {
    (invalid(Reason::Unauthenticated), false)
}

fn id() -> twinkey_rotation::RotationId {
    let rotation: RotationId = ROTATION.parse().unwrap();
    twinkey_rotation::RotationId(rotation.0.as_u128())
}

fn taken() -> (Desired, bool) {
    let keys = twinkey_rotation::PerSlot { primary: None, secondary: Some(name_of(&key_of(9))) };
    (Desired::Offer(twinkey_rotation::Offer { rotation: id(), keys }), true)
}

#[test]
fn either_key_that_is_held_vouches_for_an_offer() {
    for vouching in [1, 2] {
        assert_eq!(read(&twin_of(&offer(Some(vouching))), &STRICT), taken(), "key {vouching}");
    }
}

#[test]
fn keys_that_are_offered_retired_brought_or_foreign_vouch_for_nothing() {
    for config in [STRICT, LAX] {
        for vouching in [3, 4, 5, 6, 8, 9] {
            assert_eq!(read(&twin_of(&offer(Some(vouching))), &config), unauthenticated(), "key {vouching}");
        }
    }
}

#[test]
fn key_that_was_only_offered_vouches_for_nothing_where_its_slot_holds_none() {
    let mut key_ring = key_ring();
    key_ring.ring.slots.secondary.held = None;
    assert_eq!(read_by(&mut key_ring, &twin_of(&offer(Some(3))), &STRICT), unauthenticated());
    assert_eq!(read_by(&mut key_ring, &twin_of(&offer(Some(2))), &STRICT), unauthenticated());
    assert_eq!(read_by(&mut key_ring, &twin_of(&offer(Some(1))), &STRICT), taken());
}

#[test]
fn offer_without_authentication_is_taken_only_where_the_configuration_allows_it() {
    let null = twin_of(&offer(None));
    let mut missing = null.clone();
    missing["desired"]["keyRenewal"].as_object_mut().unwrap().remove("auth").unwrap();
    for twin in [null, missing] {
        assert_eq!(read(&twin, &STRICT), unauthenticated());
        assert_eq!(read(&twin, &LAX), taken());
    }
    let allowed = config::Rotation { allow_unauthenticated: true, ..STRICT };
    assert_eq!(read(&twin_of(&offer(None)), &allowed), taken());
    let plain = Offer { secondary: Some(OfferedKey::Plain(key_of(9))), ..offer(None) };
    let forbidden = (invalid(Reason::UnsealedForbidden), false);
    assert_eq!(read(&twin_of(&plain), &allowed), forbidden);
    assert_eq!(read(&twin_of(&plain), &LAX), taken());
    assert_eq!(
        read(&twin_of(&plain), &config::Rotation { allow_unsealed: true, ..STRICT }),
        unauthenticated()
    );
}

#[test]
fn authentication_of_another_offer_device_or_rotation_is_refused_in_every_configuration() {
    let genuine = offer(Some(1));
    let other = |change: fn(&mut Offer)| {
        let mut offer = genuine.clone();
        change(&mut offer);
        offer
    };
    let elsewhere = |device_id: &str, module_id: Option<&str>| {
        let mut offer = genuine.clone();
        let identity = Identity { device_id: device_id.into(), module_id: module_id.map(Into::into) };
        offer.authenticate(&key_of(1), &identity);
        offer
    };
    let other_rotation: RotationId = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e60".parse().unwrap();
    let identity = registration().identity;
    let cases = [
        // The same key, sealed again: another text.
        other(|offer| {
            let rotation = offer.rotation;
            offer.secondary = Some(sealed(9, &registration().identity, KeySlot::Secondary, rotation));
        }),
        other(|offer| offer.primary = offer.secondary.clone()),
        other(|offer| (offer.primary, offer.secondary) = (offer.secondary.clone(), None)),
        other(|offer| offer.secondary = Some(OfferedKey::Plain(key_of(9)))),
        elsewhere("e", None),
        elsewhere("d", Some("m")),
    ];
    for offer in cases {
        for config in [STRICT, LAX] {
            assert_eq!(read(&twin_of(&offer), &config), unauthenticated(), "{offer:?}");
        }
    }
    let moved = Offer {
        rotation: other_rotation,
        secondary: Some(sealed(9, &identity, KeySlot::Secondary, other_rotation)),
        ..genuine
    };
    for config in [STRICT, LAX] {
        let (desired, is_known) = read(&twin_of(&moved), &config);
        let Desired::Invalid(Invalid { rotation: Some(_), reason }) = desired else { panic!("{desired:?}") };
        assert_eq!((reason, is_known), (Reason::Unauthenticated, false));
    }
}

#[test]
fn offer_that_was_taken_up_stays_good_after_the_key_that_vouched_for_it_has_gone() {
    let mut key_ring = key_ring();
    let twin = twin_of(&offer(Some(1)));
    let (Desired::Offer(taken_up), _) = read_by(&mut key_ring, &twin, &STRICT) else { panic!() };
    let rotation = Rotation { id: taken_up.rotation, offered: taken_up.keys, verdict: None };
    let gone =
        |ring: &mut Ring| ring.slots.primary.held = Some(Held { key: name_of(&key_of(8)), proven_at: None });
    gone(&mut key_ring.ring);
    assert_eq!(read_by(&mut key_ring, &twin, &STRICT).0, unauthenticated().0, "never taken up");
    key_ring.ring.rotation = Some(rotation);
    assert_eq!(read_by(&mut key_ring, &twin, &STRICT), taken());
    // Under the same rotation another key is another offer, and so is the same key in another slot.
    let identity = registration().identity;
    let other_key =
        Offer { secondary: Some(sealed(10, &identity, KeySlot::Secondary, taken_up_id())), ..offer(Some(1)) };
    let both =
        Offer { primary: Some(sealed(10, &identity, KeySlot::Primary, taken_up_id())), ..offer(Some(1)) };
    let closed =
        Offer { secondary: Some(sealed(10, &identity, KeySlot::Primary, taken_up_id())), ..offer(Some(1)) };
    for offer in [other_key, both, closed] {
        assert_eq!(read_by(&mut key_ring, &twin_of(&offer), &STRICT).0, unauthenticated().0);
        assert!(key_ring.key(name_of(&key_of(10))).is_none());
    }
}

fn taken_up_id() -> RotationId {
    ROTATION.parse().unwrap()
}

#[test]
fn who_may_not_offer_learns_nothing_of_whether_a_key_opens() {
    let mut altered = offer(None);
    let Some(OfferedKey::Sealed(bytes)) = &mut altered.secondary else { panic!() };
    bytes[40] ^= 1;
    let wrong_slot = Offer {
        secondary: Some(sealed(9, &registration().identity, KeySlot::Primary, taken_up_id())),
        ..offer(None)
    };
    for mut offer in [altered, wrong_slot] {
        assert_eq!(read(&twin_of(&offer), &STRICT), unauthenticated());
        offer.authenticate(&key_of(8), &registration().identity);
        assert_eq!(read(&twin_of(&offer), &LAX), unauthenticated());
        offer.authenticate(&key_of(1), &registration().identity);
        let cannot = (invalid(Reason::CannotUnseal), false);
        assert_eq!(read(&twin_of(&offer), &STRICT), cannot);
    }
}

#[test]
fn offer_with_one_key_that_does_not_open_teaches_the_key_ring_none() {
    let identity = registration().identity;
    let mut offer = Offer {
        primary: Some(sealed(9, &identity, KeySlot::Primary, taken_up_id())),
        // It is read after the other one.
        secondary: Some(sealed(10, &identity, KeySlot::Primary, taken_up_id())),
        ..offer(None)
    };
    offer.authenticate(&key_of(1), &registration().identity);
    assert_eq!(read(&twin_of(&offer), &STRICT), (invalid(Reason::CannotUnseal), false));
}

/// Every value that a field could have and should not.
fn wrong_values() -> Vec<Value> {
    let base64 = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";
    vec![
        json!(true),
        json!(0),
        json!(-1.5e300),
        json!(""),
        json!("renew"),
        json!([]),
        json!({}),
        json!([[[[{"a": null}]]]]),
        json!({"key": base64, "sealed": base64}),
        json!(format!("{base64}\n")),
        json!("9".repeat(20_000)),
        json!({"9".repeat(20_000): base64}),
    ]
}

#[test]
fn offer_with_any_field_missing_null_or_of_another_kind_is_refused_and_teaches_no_key() {
    let genuine = twin_of(&offer(Some(1)));
    for field in ["rotation", "secondary", "secondary/sealed", "auth"] {
        let place = format!("/desired/keyRenewal/{field}");
        let (parent, name) = place.rsplit_once('/').unwrap();
        let mut missing = genuine.clone();
        missing.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
        let mut null = genuine.clone();
        *null.pointer_mut(&place).unwrap() = Value::Null;
        let wrong = wrong_values().into_iter().map(|value| {
            let mut twin = genuine.clone();
            *twin.pointer_mut(&place).unwrap() = value;
            twin
        });
        for twin in [missing, null].into_iter().chain(wrong) {
            let (desired, is_known) = read(&twin, &STRICT);
            let Desired::Invalid(Invalid { reason, .. }) = desired else { panic!("{place}: {desired:?}") };
            assert!(!is_known, "{place}");
            let of_auth = field == "auth" && reason == Reason::Unauthenticated;
            assert!(of_auth || reason == Reason::Malformed, "{place}: {reason:?}");
        }
    }
    // The slot that is not offered, and fields that nobody knows: over all but the latter the
    // authentication was made.
    for value in wrong_values() {
        let mut twin = genuine.clone();
        twin["desired"]["keyRenewal"]["primary"] = value.clone();
        assert!(matches!(read(&twin, &STRICT), (Desired::Invalid(_), false)), "{value}");
        let mut twin = genuine.clone();
        twin["desired"]["keyRenewal"]["other"] = value;
        // Too long a section is not read at all.
        let is_too_long = twin["desired"]["keyRenewal"].to_string().len() > SECTION_LEN_MAX;
        let malformed = Desired::Invalid(Invalid { rotation: None, reason: Reason::Malformed });
        assert_eq!(read(&twin, &STRICT), if is_too_long { (malformed, false) } else { taken() });
    }
    for section in wrong_values() {
        let twin = json!({"desired": {"keyRenewal": section}, "reported": {}});
        assert!(matches!(read(&twin, &LAX), (Desired::Invalid(_), false)), "{twin}");
    }
    for twin in
        [json!({"desired": {"keyRenewal": null}}), json!({"desired": {}}), json!({"desired": {"auth": 1}})]
    {
        assert_eq!(read(&twin, &STRICT), (Desired::Nothing, false), "{twin}");
    }
}

#[test]
fn section_in_which_a_field_stands_twice_is_malformed_whichever_is_the_genuine_one() {
    let genuine = twin_of(&offer(Some(1)))["desired"]["keyRenewal"].clone();
    let field = |name: &str| format!("\"{name}\": {}", genuine[name]);
    let of = |fields: &[String]| format!("{{\"desired\": {{\"keyRenewal\": {{{}}}}}}}", fields.join(", "));
    let all = ["rotation", "secondary", "auth"].map(field);
    assert_eq!(read_bytes(&mut key_ring(), of(&all).as_bytes(), &STRICT), taken());
    let false_auth = format!("\"auth\": {}", twin_of(&offer(Some(8)))["desired"]["keyRenewal"]["auth"]);
    let false_key = twin_of(&offer(None))["desired"]["keyRenewal"]["secondary"].clone();
    let false_key = format!("\"secondary\": {false_key}");
    for second in [false_auth, false_key] {
        let before: Vec<String> = std::iter::once(second.clone()).chain(all.clone()).collect();
        let after: Vec<String> = all.iter().cloned().chain([second]).collect();
        for fields in [before, after] {
            let malformed = Desired::Invalid(Invalid { rotation: None, reason: Reason::Malformed });
            assert_eq!(
                read_bytes(&mut key_ring(), of(&fields).as_bytes(), &STRICT),
                (malformed, false),
                "never a mixture of two offers"
            );
        }
    }
}

#[test]
fn offer_that_can_not_be_used_is_invalid_for_the_reason_that_the_contract_names() {
    let mut plain = Offer { secondary: Some(OfferedKey::Plain(key_of(9))), ..offer(None) };
    plain.authenticate(&key_of(2), &registration().identity);
    let section = |slot: Value| json!({"desired": {"keyRenewal": {"rotation": ROTATION, "primary": slot}}});
    for (twin, config, reason) in [
        (section(json!({})), STRICT, Reason::Malformed),
        (twin_of(&offer(None)), STRICT, Reason::Unauthenticated),
        (twin_of(&plain), STRICT, Reason::UnsealedForbidden),
        (section(json!({"key": "BAECAwQFBgcICQoLDA0ODxAREhMUFRYXAAIoTOzOFgY="})), LAX, Reason::Checksum),
    ] {
        assert_eq!(read(&twin, &config), (invalid(reason), false), "{twin}");
    }
}

#[test]
fn offer_of_another_device_that_was_copied_here_is_refused() {
    let identity = Identity { device_id: "e".into(), module_id: None };
    let rotation: RotationId = ROTATION.parse().unwrap();
    // Two devices with one key, as a group's derivation gone wrong would leave them.
    let secondary = Some(sealed(9, &identity, KeySlot::Secondary, rotation));
    let mut offer = Offer { rotation, primary: None, secondary, auth: None };
    offer.authenticate(&key_of(1), &identity);
    assert_eq!(read(&twin_of(&offer), &STRICT), unauthenticated());
    let elsewhere = Registration { identity, ..registration() };
    let mut key_ring = key_ring();
    key_ring.registration = elsewhere;
    assert_eq!(read_by(&mut key_ring, &twin_of(&offer), &STRICT), taken());
}
