//! Enrolments: who may register, with which keys, and what the device is to be. The JSON is that of the DPS service API
//! (`2021-10-01`, individual enrollments and enrollment groups), as far as it concerns symmetric keys.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot, Purpose, key_text};
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Status;
use crate::twin::ServicePatch;

/// Longest registration id (DPS documentation, "Terminology").
const ID_LEN_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// For one device.
    Individual,
    /// For every device whose key is derived from the group's.
    Group,
}

/// An enrolment as the operator writes it. Fields that this emulator has no use for are ignored, as the service's
/// own answers hold more than can be set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnrollmentBody {
    device_id: Option<String>,
    attestation: Option<Attestation>,
    provisioning_status: Status,
    capabilities: Capabilities,
    initial_twin: InitialTwin,
    /// What the device is given with its assignment; the real service lets a custom allocation decide this.
    payload: Option<Value>,
    /// Makes registrations fail, for tests.
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attestation {
    #[serde(rename = "type")]
    kind: String,
    symmetric_key: Option<KeyPair>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyPair {
    #[serde(default, deserialize_with = "secret")]
    primary_key: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "secret")]
    secondary_key: Option<Zeroizing<String>>,
}

/// A key's text on its way in.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair([elided])")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Capabilities {
    iot_edge: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct InitialTwin {
    tags: Option<Map<String, Value>>,
    properties: InitialProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct InitialProperties {
    desired: Option<Map<String, Value>>,
}

/// What a failed registration says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Failure {
    pub(crate) error_code: u32,
    pub(crate) error_message: String,
}

/// An enrolment. Its form in JSON is that of the state on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Enrollment {
    kind: Kind,
    /// Registration id, or the group's name.
    id: String,
    device_id: Option<IdentityId>,
    #[serde(with = "key_text")]
    primary: Key,
    #[serde(with = "key_text")]
    secondary: Key,
    pub(crate) status: Status,
    pub(crate) iot_edge: bool,
    initial_twin: InitialTwin,
    pub(crate) payload: Option<Value>,
    pub(crate) failure: Option<Failure>,
    pub(crate) etag: String,
    created: String,
    updated: String,
}

impl Enrollment {
    /// Makes one; `existing` is what it replaces, whose keys stay if `body` has none.
    pub(super) fn new(
        kind: Kind,
        id: &str,
        body: EnrollmentBody,
        existing: Option<&Self>,
        timestamp: &str,
        etag: String,
    ) -> Result<Self, Refusal> {
        let invalid = |message: &str| Refusal::new(ErrorCode::ArgumentInvalid, message);
        if !is_registration_id(id) {
            return Err(invalid(
                "an id has 1 to 128 ASCII letters, digits and -._: and ends with a letter, digit or -",
            ));
        }
        let device_id = match (kind, body.device_id.filter(|id| !id.is_empty())) {
            (_, None) => None,
            (Kind::Group, Some(_)) => return Err(invalid("a group can't name one deviceId")),
            (Kind::Individual, Some(id)) => {
                Some(IdentityId::device(&id).ok_or_else(|| invalid("deviceId is no device id"))?)
            }
        };
        let given = body.attestation.map(|attestation| attestation.keys()).transpose()?.flatten();
        let (primary, secondary) = match (given, existing) {
            (Some(keys), _) => keys,
            (None, Some(existing)) => (existing.primary.clone(), existing.secondary.clone()),
            (None, None) => {
                // An individual's keys become the device's; a group's are the service's own.
                let purpose = match kind {
                    Kind::Individual => Purpose::Device,
                    Kind::Group => Purpose::Provisioning,
                };
                (Key::generate(purpose)?, Key::generate(purpose)?)
            }
        };
        let enrollment = Self {
            kind,
            id: id.to_owned(),
            device_id,
            primary,
            secondary,
            status: body.provisioning_status,
            iot_edge: body.capabilities.iot_edge,
            initial_twin: body.initial_twin,
            payload: body.payload,
            failure: body.failure,
            etag,
            created: existing.map_or(timestamp, |existing| &existing.created).to_owned(),
            updated: timestamp.to_owned(),
        };
        // Rather now than at a device's registration.
        let mut trial = crate::twin::Twin::new(timestamp);
        trial.patch(&enrollment.initial_twin(), timestamp).map_err(|message| invalid(&message))?;
        Ok(enrollment)
    }

    /// The key of the device that registers as `registration_id`: the enrolment's own, or derived from the group's.
    pub(crate) fn device_key(&self, slot: KeySlot, registration_id: &str) -> Key {
        let key = match slot {
            KeySlot::Primary => &self.primary,
            KeySlot::Secondary => &self.secondary,
        };
        match self.kind {
            Kind::Individual => key.clone(),
            Kind::Group => key.derive(registration_id.as_bytes()),
        }
    }

    /// The device that registers as `registration_id`. `None` if that makes no device id.
    pub(crate) fn device(&self, registration_id: &str) -> Option<IdentityId> {
        self.device_id.clone().or_else(|| IdentityId::device(registration_id))
    }

    /// What the twin of a device that is made starts with.
    pub(crate) fn initial_twin(&self) -> ServicePatch {
        let InitialTwin { tags, properties } = self.initial_twin.clone();
        ServicePatch::new(tags, properties.desired)
    }

    /// The enrolment with its keys.
    pub(crate) fn view(&self) -> Value {
        let mut view = json!({
            "attestation": {
                "type": "symmetricKey",
                "symmetricKey": {
                    "primaryKey": self.primary.encode(),
                    "secondaryKey": self.secondary.encode(),
                },
            },
            "capabilities": {"iotEdge": self.iot_edge},
            "initialTwin": {
                "tags": self.initial_twin.tags,
                "properties": {"desired": self.initial_twin.properties.desired},
            },
            "provisioningStatus": self.status,
            "payload": self.payload,
            "etag": self.etag,
            "createdDateTimeUtc": self.created,
            "lastUpdatedDateTimeUtc": self.updated,
        });
        if let Value::Object(view) = &mut view {
            let name = match self.kind {
                Kind::Individual => "registrationId",
                Kind::Group => "enrollmentGroupId",
            };
            view.insert(name.to_owned(), self.id.as_str().into());
            if let Some(device_id) = &self.device_id {
                view.insert("deviceId".to_owned(), device_id.device_id().into());
            }
        }
        view
    }
}

impl Attestation {
    /// Both keys, or neither.
    fn keys(self) -> Result<Option<(Key, Key)>, Refusal> {
        let invalid = |message: &str| Refusal::new(ErrorCode::ArgumentInvalid, message);
        if self.kind != "symmetricKey" {
            return Err(invalid("this emulator knows attestation type symmetricKey only"));
        }
        let Some(KeyPair { primary_key, secondary_key }) = self.symmetric_key else {
            return Ok(None);
        };
        let decode = |text: &str| {
            Key::decode_for_registry(text).ok_or_else(|| invalid("a key must be base64 of 16 to 64 bytes"))
        };
        match (primary_key.filter(|key| !key.is_empty()), secondary_key.filter(|key| !key.is_empty())) {
            (None, None) => Ok(None),
            (Some(primary), Some(secondary)) => Ok(Some((decode(&primary)?, decode(&secondary)?))),
            (Some(_), None) | (None, Some(_)) => Err(invalid("give both keys, or neither to have them made")),
        }
    }
}

/// DPS documentation, "Terminology", registration id.
pub(super) fn is_registration_id(text: &str) -> bool {
    (1..=ID_LEN_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c))
        && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_derives_the_key_of_the_documentation() {
        let key = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
        let body = json!({"attestation": {"type": "symmetricKey", "symmetricKey":
            {"primaryKey": key, "secondaryKey": "AAECAwQFBgcICQoLDA0ODw=="}}});
        let body = serde_json::from_value(body).unwrap();
        let group = Enrollment::new(Kind::Group, "g", body, None, "t", "e".to_owned()).unwrap();
        let derived = group.device_key(KeySlot::Primary, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
        assert_eq!(derived.encode(), "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let new = |kind, id: &str, body: Value| {
            let body = serde_json::from_value(body).unwrap();
            Enrollment::new(kind, id, body, None, "t", "e".to_owned()).map(|_| ()).map_err(|it| it.code)
        };
        let long = "x".repeat(ID_LEN_MAX + 1);
        for id in ["", "a b", "a/b", "a.", "é", &long] {
            assert_eq!(new(Kind::Individual, id, json!({})), Err(ErrorCode::ArgumentInvalid), "{id}");
        }
        let one_key =
            json!({"attestation": {"type": "symmetricKey", "symmetricKey": {"primaryKey": "AAAA"}}});
        for body in [
            one_key,
            json!({"attestation": {"type": "x509"}}),
            json!({"deviceId": "a/b"}),
            json!({"initialTwin": {"tags": {"a b": 1}}}),
        ] {
            assert_eq!(new(Kind::Individual, "r", body.clone()), Err(ErrorCode::ArgumentInvalid), "{body}");
        }
        assert_eq!(new(Kind::Group, "g", json!({"deviceId": "d"})), Err(ErrorCode::ArgumentInvalid));
        assert_eq!(new(Kind::Individual, "A:b._-", json!({"deviceId": "d"})), Ok(()));
    }
}
