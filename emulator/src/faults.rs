//! Faults on demand, and the settings for what the real hub does not document.

use std::collections::BTreeMap;
use std::time::Duration;

use rumqttc::ConnectReturnCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::identity::IdentityId;

/// Most entries of the lists that the operator can fill.
const ENTRIES_MAX: usize = 10_000;
/// Longest delay that can be asked for: an hour, which outlasts every timeout worth testing.
const DELAY_MS_MAX: u64 = 3_600_000;

/// What happens to a live connection at an event whose effect is not documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LiveConnection {
    /// Nothing: what the evidence suggests.
    #[default]
    Keep,
    /// It is closed.
    Drop,
}

/// What becomes of the replaced key while its successor isn't known to CONNECT yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PreviousKey {
    /// It is refused from the change on.
    #[default]
    Dies,
    /// It is accepted until the successor is.
    Lives,
}

/// The next CONNECTs to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefuseNext {
    /// Whose; every identity's if absent.
    #[serde(default)]
    identity: Option<String>,
    count: u32,
    #[serde(default = "not_authorized")]
    code: u8,
}

fn not_authorized() -> u8 {
    ConnectReturnCode::NotAuthorized as u8
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Faults {
    refuse_next: Vec<RefuseNext>,
    propagation_delay_ms: u64,
    propagation_delay_ms_by_identity: BTreeMap<String, u64>,
    /// Whether a replaced key lives on during the propagation delay.
    pub(crate) previous_key: PreviousKey,
    /// What a key change does to a live connection that was made with the old key.
    pub(crate) on_key_change: LiveConnection,
    /// What a refused CONNECT does to a live connection of the same identity.
    pub(crate) on_refused_connect: LiveConnection,
    connack_delay_ms: u64,
    /// Never answer CONNECT, as the real hub does when it throttles connections.
    pub(crate) mute_connack: bool,
}

impl Faults {
    /// Merges the fields that `change` names. `Err` says which fields are unknown or wrong; then nothing changes.
    pub(crate) fn merge(&mut self, change: &Value) -> Result<(), String> {
        let Value::Object(fields) = change else {
            return Err("the body is no JSON object".to_owned());
        };
        let current = serde_json::to_value(&*self).map_err(|error| error.to_string())?;
        let Value::Object(mut merged) = current else {
            return Err("faults are no JSON object".to_owned());
        };
        let unknown: Vec<&str> =
            fields.keys().map(String::as_str).filter(|name| !merged.contains_key(*name)).collect();
        if !unknown.is_empty() {
            let known: Vec<&str> = merged.keys().map(String::as_str).collect();
            return Err(format!("unknown fields: {}; known are {}", unknown.join(", "), known.join(", ")));
        }
        merged.extend(fields.clone());
        let mut next: Self =
            serde_json::from_value(Value::Object(merged)).map_err(|error| error.to_string())?;
        next.check()?;
        if fields.contains_key("refuseNext") {
            let named =
                |entry: &RefuseNext| next.refuse_next.iter().any(|new| new.identity == entry.identity);
            let kept: Vec<RefuseNext> =
                self.refuse_next.iter().filter(|entry| !named(entry)).cloned().collect();
            next.refuse_next.extend(kept);
            next.refuse_next.retain(|entry| entry.count > 0);
        }
        *self = next;
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if let Some(entry) = self.refuse_next.iter().find(|entry| refusal(entry.code).is_none()) {
            return Err(format!("refuseNext: code {} is no refusal; give 1, 2, 3, 4 or 5", entry.code));
        }
        if self.refuse_next.len() > ENTRIES_MAX || self.propagation_delay_ms_by_identity.len() > ENTRIES_MAX {
            return Err(format!("more than {ENTRIES_MAX} entries"));
        }
        let delays = self.propagation_delay_ms_by_identity.values();
        if delays
            .chain([&self.propagation_delay_ms, &self.connack_delay_ms])
            .any(|delay| *delay > DELAY_MS_MAX)
        {
            return Err(format!("a delay is over {DELAY_MS_MAX} ms"));
        }
        Ok(())
    }

    /// Takes one refusal for `identity`, if any is left: one of its own before one for everybody.
    pub(crate) fn take_refusal(&mut self, identity: &IdentityId) -> Option<ConnectReturnCode> {
        let name = identity.to_string();
        let own = self.refuse_next.iter().position(|entry| entry.identity.as_deref() == Some(&name));
        let at = own.or_else(|| self.refuse_next.iter().position(|entry| entry.identity.is_none()))?;
        let entry = self.refuse_next.get_mut(at)?;
        entry.count = entry.count.saturating_sub(1);
        let code = refusal(entry.code);
        self.refuse_next.retain(|entry| entry.count > 0);
        code
    }

    /// How long CONNECT takes to learn a new key of `identity`.
    pub(crate) fn propagation(&self, identity: &IdentityId) -> Duration {
        let own = self.propagation_delay_ms_by_identity.get(&identity.to_string());
        Duration::from_millis(*own.unwrap_or(&self.propagation_delay_ms))
    }

    /// How long every CONNECT waits before the hub looks at it.
    pub(crate) fn connack_delay(&self) -> Duration {
        Duration::from_millis(self.connack_delay_ms)
    }
}

/// CONNACK return codes other than "accepted" (MQTT 3.1.1 §3.2.2.3).
fn refusal(code: u8) -> Option<ConnectReturnCode> {
    Some(match code {
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        3 => ConnectReturnCode::ServiceUnavailable,
        4 => ConnectReturnCode::BadUserNamePassword,
        5 => ConnectReturnCode::NotAuthorized,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merging_changes_named_fields_only_and_names_unknown_ones() {
        let mut faults = Faults::default();
        faults.merge(&json!({"propagationDelayMs": 5, "onKeyChange": "drop"})).unwrap();
        faults.merge(&json!({"muteConnack": true})).unwrap();
        assert_eq!(faults.propagation(&IdentityId::device("d1").unwrap()), Duration::from_millis(5));
        assert_eq!((faults.on_key_change, faults.mute_connack), (LiveConnection::Drop, true));
        let error = faults.merge(&json!({"muteConnack": false, "typo": 1, "other": 2})).unwrap_err();
        assert!(error.contains("typo") && error.contains("other"), "{error}");
        assert!(faults.mute_connack);
        for wrong in [
            json!([]),
            json!({"refuseNext": [{"count": 1, "code": 0}]}),
            json!({"refuseNext": [{"count": 1, "kode": 5}]}),
            json!({"onKeyChange": "perhaps"}),
            json!({"connackDelayMs": DELAY_MS_MAX + 1}),
        ] {
            assert!(faults.merge(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn refusals_are_counted_down_by_identity() {
        let [d1, d2] = ["d1", "d2"].map(|name| IdentityId::device(name).unwrap());
        let mut faults = Faults::default();
        faults.merge(&json!({"refuseNext": [{"identity": "d1", "count": 2, "code": 3}]})).unwrap();
        faults.merge(&json!({"refuseNext": [{"count": 1}]})).unwrap();
        assert_eq!(faults.take_refusal(&d2), Some(ConnectReturnCode::NotAuthorized));
        assert_eq!(faults.take_refusal(&d2), None);
        for expected in
            [Some(ConnectReturnCode::ServiceUnavailable), Some(ConnectReturnCode::ServiceUnavailable), None]
        {
            assert_eq!(faults.take_refusal(&d1), expected);
        }
    }
}
