//! Identities and twins as the hub's REST interface shows them (api-version 2021-04-12).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use twinkey_contract::offer::{Offer, OfferError};
use twinkey_contract::report::Report;
use twinkey_contract::tags::Seen;
use twinkey_contract::wiped::wipe;
use twinkey_contract::{Fingerprint, Identity, KeySlot};
use twinkey_sas::Key;

/// A device's or module's identity. What is not named here is kept and sent back as it came: a PUT replaces the whole identity.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub(crate) device_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) module_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connection_state: Option<String>,
    #[serde(default)]
    pub(crate) authentication: Authentication,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// How a device authenticates.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Authentication {
    /// `sas`, `selfSigned`, `certificateAuthority` or `none`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) symmetric_key: Option<SymmetricKey>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The two slots.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SymmetricKey {
    #[serde(default)]
    pub(crate) primary_key: RegistryKey,
    #[serde(default)]
    pub(crate) secondary_key: RegistryKey,
}

/// A slot of the registry.
#[derive(Clone, Debug, Default)]
pub(crate) enum RegistryKey {
    #[default]
    Absent,
    /// In a box: a list of devices that grows moves them about, and would leave copies of keys
    /// behind.
    Key(Box<Key>),
    /// A text that is no key of 16 to 64 bytes. One odd device must not hide all others from a list.
    Unreadable,
}

/// Both keys of a device that authenticates by keys.
#[derive(Clone, Debug)]
pub(crate) struct KeyPair {
    pub(crate) primary: Key,
    pub(crate) secondary: Key,
}

/// A twin, as far as it concerns the renewal of keys, as `/twins` and queries show it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Twin {
    pub(crate) device_id: String,
    #[serde(default)]
    pub(crate) module_id: Option<String>,
    pub(crate) etag: String,
    /// The identity's etag: another one after each change of its keys. Not every twin shows it.
    #[serde(default)]
    pub(crate) device_etag: Option<String>,
    /// The device's; modules have none.
    #[serde(default)]
    pub(crate) status: Option<String>,
    #[serde(default)]
    pub(crate) connection_state: Option<String>,
    /// RFC 3339; `0001-01-01T00:00:00Z` if it never was.
    #[serde(default)]
    pub(crate) last_activity_time: Option<String>,
    #[serde(default)]
    pub(crate) tags: Value,
    pub(crate) properties: Properties,
}

/// A page of a query's result.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    /// Where the next page begins, if there is one.
    pub(super) continuation: Option<String>,
}

/// What a device has answered to a direct method.
#[derive(Debug, Deserialize)]
pub(super) struct MethodAnswer {
    /// Whatever the device says: 200 if it did what was asked.
    #[serde(default)]
    pub(super) status: Value,
    #[serde(default)]
    pub(super) payload: Value,
}

/// What came of `/devices/keys/regenerate`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Regenerated {
    pub(crate) rotated_keys: Vec<RotatedKeys>,
    #[serde(default)]
    pub(crate) errors: Vec<RegenerateError>,
}

/// Both keys of an identity, one of them new.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RotatedKeys {
    id: String,
    #[serde(default)]
    module_id: Option<String>,
    #[serde(default)]
    primary_key: RegistryKey,
    #[serde(default)]
    secondary_key: RegistryKey,
}

/// Why an identity got no key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RegenerateError {
    id: String,
    #[serde(default)]
    module_id: Option<String>,
    /// A word, or a number.
    #[serde(default)]
    error_code: Value,
    #[serde(default, alias = "errorMessage")]
    error_status: Option<String>,
}

/// Both halves of a twin. The desired one may hold a key, and is wiped.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Properties {
    #[serde(default)]
    pub(crate) desired: Value,
    #[serde(default)]
    pub(crate) reported: Value,
}

impl Drop for Properties {
    fn drop(&mut self) {
        wipe(&mut self.desired);
    }
}

impl RotatedKeys {
    pub(crate) fn is_of(&self, identity: &Identity) -> bool {
        self.id == identity.device_id && self.module_id == identity.module_id
    }

    /// `None` if one is no key.
    pub(crate) fn keys(&self) -> Option<KeyPair> {
        match (&self.primary_key, &self.secondary_key) {
            (RegistryKey::Key(primary), RegistryKey::Key(secondary)) => {
                Some(KeyPair::of_registry(primary, secondary))
            }
            _ => None,
        }
    }
}

impl RegenerateError {
    /// Whether the hub has no such identity.
    pub(crate) fn is_about_absence(&self) -> bool {
        self.error_code.as_str().is_some_and(|code| code.ends_with("NotFound"))
    }

    pub(crate) fn is_of(&self, identity: &Identity) -> bool {
        self.id == identity.device_id && self.module_id == identity.module_id
    }
}

impl fmt::Display for RegenerateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.error_code.as_str().map_or_else(|| self.error_code.to_string(), str::to_owned);
        write!(f, "the hub makes no key: {code}")?;
        self.error_status.as_ref().map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

impl Device {
    /// Whose it is, as the hub wrote it.
    pub(crate) fn identity(&self) -> Identity {
        Identity { device_id: self.device_id.clone(), module_id: self.module_id.clone() }
    }

    /// Both keys; `None` unless the device authenticates by keys and both can be read.
    pub(crate) fn keys(&self) -> Option<KeyPair> {
        let SymmetricKey { primary_key, secondary_key } = self.authentication.symmetric_key.as_ref()?;
        let (RegistryKey::Key(primary), RegistryKey::Key(secondary)) = (primary_key, secondary_key) else {
            return None;
        };
        let is_sas = self.authentication.kind.as_deref().is_none_or(|kind| kind == "sas");
        is_sas.then(|| KeyPair::of_registry(primary, secondary))
    }

    /// Puts `keys` into the registry's slots.
    pub(crate) fn replace_keys(&mut self, keys: &KeyPair) {
        self.authentication.symmetric_key = Some(SymmetricKey {
            primary_key: RegistryKey::Key(Box::new(keys.primary.clone())),
            secondary_key: RegistryKey::Key(Box::new(keys.secondary.clone())),
        });
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.status.as_deref().is_none_or(|status| status.eq_ignore_ascii_case("enabled"))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection_state.as_deref().is_some_and(|state| state.eq_ignore_ascii_case("connected"))
    }
}

impl RegistryKey {
    /// What may be shown of it.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Key(key) => Some(Fingerprint::of(key)),
            Self::Absent | Self::Unreadable => None,
        }
    }
}

impl KeyPair {
    fn of_registry(primary: &Key, secondary: &Key) -> Self {
        Self { primary: primary.clone(), secondary: secondary.clone() }
    }

    pub(crate) fn of(&self, slot: KeySlot) -> &Key {
        match slot {
            KeySlot::Primary => &self.primary,
            KeySlot::Secondary => &self.secondary,
        }
    }

    pub(crate) fn fingerprint(&self, slot: KeySlot) -> Fingerprint {
        Fingerprint::of(self.of(slot))
    }

    /// The same keys in each other's places.
    pub(crate) fn swapped(&self) -> Self {
        Self { primary: self.secondary.clone(), secondary: self.primary.clone() }
    }

    /// These keys, but `key` in `slot`.
    pub(crate) fn with(&self, slot: KeySlot, key: Key) -> Self {
        match slot {
            KeySlot::Primary => Self { primary: key, secondary: self.secondary.clone() },
            KeySlot::Secondary => Self { primary: self.primary.clone(), secondary: key },
        }
    }
}

impl Twin {
    /// Whose it is, as the hub wrote it.
    pub(crate) fn identity(&self) -> Identity {
        Identity { device_id: self.device_id.clone(), module_id: self.module_id.clone() }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.status.as_deref().is_none_or(|status| status.eq_ignore_ascii_case("enabled"))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection_state.as_deref().is_some_and(|state| state.eq_ignore_ascii_case("connected"))
    }

    /// The agent's section of the reported properties, where there is one.
    pub(crate) fn report(&self) -> Result<Option<Report>, String> {
        Report::read(&self.properties.reported)
    }

    /// What operators have believed of the device before.
    pub(crate) fn seen(&self) -> Seen {
        Seen::read(&self.tags)
    }

    /// The offer that stands in the desired properties.
    pub(crate) fn offer(&self) -> Result<Option<Offer>, OfferError> {
        Offer::read_desired(&self.properties.desired)
    }
}

impl Serialize for RegistryKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Key(key) => serializer.serialize_str(key.expose_base64(&mut [0; 88])),
            Self::Absent | Self::Unreadable => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for RegistryKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = RegistryKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key in base64, or null")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RegistryKey, E> {
                Ok(if text.is_empty() {
                    RegistryKey::Absent
                } else {
                    Key::from_base64(text)
                        .map_or(RegistryKey::Unreadable, |key| RegistryKey::Key(Box::new(key)))
                })
            }
            fn visit_unit<E: de::Error>(self) -> Result<RegistryKey, E> {
                Ok(RegistryKey::Absent)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: &str = r#"{"deviceId":"d1","etag":"abc","status":"enabled","connectionState":"Connected","generationId":"1",
        "capabilities":{"iotEdge":true},"authentication":{"type":"sas","x509Thumbprint":{"primaryThumbprint":null},
        "symmetricKey":{"primaryKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","secondaryKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}}}"#;

    #[test]
    fn an_odd_status_in_a_devices_answer_is_read_and_is_no_success() {
        let status = |text: &str| serde_json::from_str::<MethodAnswer>(text).unwrap().status;
        assert!(status(r#"{"status": 200, "payload": {}}"#) == 200);
        for odd in
            [r#"{"status": 70000}"#, r#"{"status": -1}"#, r#"{"status": null}"#, r#"{"status": "200"}"#, "{}"]
        {
            assert!(status(odd) != 200, "{odd}");
        }
    }

    #[test]
    fn what_is_not_understood_is_sent_back_as_it_came() {
        let mut device: Device = serde_json::from_str(IDENTITY).unwrap();
        let pair = device.keys().unwrap();
        device.replace_keys(&pair.swapped());
        let mut expected: Value = serde_json::from_str(IDENTITY).unwrap();
        let keys = &mut expected["authentication"]["symmetricKey"];
        (keys["primaryKey"], keys["secondaryKey"]) =
            (keys["secondaryKey"].clone(), keys["primaryKey"].clone());
        assert_eq!(serde_json::to_value(&device).unwrap(), expected);
    }

    #[test]
    fn an_odd_key_does_not_hide_its_device() {
        for odd in ["null", r#""""#, r#""short""#, r#""%%%%""#] {
            let text = IDENTITY.replace(r#""AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=""#, odd);
            let device: Device = serde_json::from_str(&text).unwrap();
            assert!(device.keys().is_none(), "{odd}");
        }
    }

    #[test]
    fn debug_output_of_an_identity_holds_no_key() {
        let device: Device = serde_json::from_str(IDENTITY).unwrap();
        let text = format!("{device:?} {:?}", device.keys());
        assert!(!text.contains("AAAAAAAA") && !text.contains("AQEBAQ"), "{text}");
    }
}
