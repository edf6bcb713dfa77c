//! Offers as a person would write them by hand: in plain form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::{Identity, RotationId};
use twinkey_sas::Key;

/// A new rotation's name.
pub fn rotation_id() -> String {
    RotationId::generate(0).unwrap().to_string()
}

/// A key that no hub has made and no registry has.
pub fn stray_key() -> String {
    STANDARD.encode(random_bytes())
}

/// 32 random bytes.
pub fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// The desired properties that offer `key` for `slot`, and nothing else.
pub fn plain(rotation: &str, slot: &str, key: &str) -> Value {
    let offered = json!({"key": key, "sealed": null});
    let (primary, secondary) =
        if slot == "primary" { (offered, Value::Null) } else { (Value::Null, offered) };
    json!({"keyRenewal": {"rotation": rotation, "primary": primary, "secondary": secondary}})
}

/// The same, made by somebody who knows `vouching`, a key of the device `identity`.
pub fn plain_and_authentic(rotation: &str, slot: &str, key: &str, vouching: &str, identity: &str) -> Value {
    let offered = Some(OfferedKey::Plain(Key::from_base64(key).unwrap()));
    let (primary, secondary) = if slot == "primary" { (offered, None) } else { (None, offered) };
    let mut offer = Offer { rotation: rotation.parse().unwrap(), primary, secondary, auth: None };
    let identity: Identity = identity.parse().unwrap();
    offer.authenticate(&Key::from_base64(vouching).unwrap(), &identity);
    offer.to_patch()
}

/// The desired properties that take every offer away.
pub fn none() -> Value {
    json!({"keyRenewal": null})
}
