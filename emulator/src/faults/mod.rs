//! Faults on demand, and the settings for what the real hub does not document.

mod failures;

use std::collections::BTreeMap;
use std::time::Duration;

use rumqttc::ConnectReturnCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chance::Chance;
use crate::identity::IdentityId;
use crate::throttles;
use failures::{FailRequests, FailTwinRequests, RefuseNext};
pub(crate) use failures::{Failure, TwinRequest};

/// Most entries of the lists that the operator can fill.
const ENTRIES_MAX: usize = 10_000;
/// Longest delay that can be asked for: an hour, which outlasts every timeout worth testing.
const DELAY_MS_MAX: u64 = 3_600_000;
/// Furthest that the wall clock can be off: a hundred years.
const CLOCK_OFFSET_SECS_MAX: u64 = 100 * 366 * 24 * 3600;

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

/// Who hears the answer to a twin request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TwinAnswers {
    /// Whoever asked: azure-iot-device reads the twin after each connect and has subscribed to answers only if the
    /// application asked for the twin before (Python device SDK, `pipeline_stages_iothub.py`,
    /// `EnsureDesiredPropertiesStage`); without an answer it never asks again.
    #[default]
    Always,
    /// Only who has subscribed to answers, as the documentation tells clients to do first.
    Subscribed,
}

/// Connections that stay open while nothing is read from them or written to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stall {
    /// Whose; every identity's if absent.
    #[serde(default)]
    identity: Option<String>,
    /// Whether connections that are made later stall too.
    #[serde(default)]
    new_too: bool,
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
    /// Whether a twin request is answered without a subscription to answers.
    pub(crate) twin_answers: TwinAnswers,
    connack_delay_ms: u64,
    /// Never answer CONNECT, as the real hub does when it throttles connections.
    pub(crate) mute_connack: bool,
    latency_ms: u64,
    latency_jitter_ms: u64,
    stalled: Vec<Stall>,
    fail_requests: Vec<FailRequests>,
    fail_twin_requests: Vec<FailTwinRequests>,
    /// The limits in force.
    pub(crate) throttles: Option<throttles::Settings>,
    /// How far the hub's wall clock is ahead.
    pub(crate) clock_offset_secs: i64,
    /// What chance begins with; setting it begins anew.
    seed: u64,
    #[serde(skip)]
    chance: Chance,
    /// The newest connection when `stalled` was set.
    #[serde(skip)]
    stalled_up_to: u64,
}

impl Faults {
    /// No faults; what is random later follows from `seed`.
    pub(crate) fn with_seed(seed: u64) -> Self {
        Self { seed, chance: Chance::new(seed), ..Self::default() }
    }

    /// What chance began with.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Ends all faults. Chance goes on where it is.
    pub(crate) fn clear(&mut self) {
        let (seed, chance) = (self.seed, std::mem::take(&mut self.chance));
        *self = Self { seed, chance, ..Self::default() };
    }

    /// Merges the fields that `change` names; `newest` is the newest connection's number. `Err` says which fields are
    /// unknown or wrong; then nothing changes.
    pub(crate) fn merge(&mut self, change: &Map<String, Value>, newest: u64) -> Result<(), String> {
        let fields = change;
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
        let mut next: Self = serde_json::from_value(Value::Object(merged))
            .map_err(|error| name_wrong_field(fields, &error))?;
        next.check()?;
        if fields.contains_key("refuseNext") {
            let named =
                |entry: &RefuseNext| next.refuse_next.iter().any(|new| new.identity == entry.identity);
            let kept: Vec<RefuseNext> =
                self.refuse_next.iter().filter(|entry| !named(entry)).cloned().collect();
            next.refuse_next.extend(kept);
            next.refuse_next.retain(|entry| entry.count > 0);
        }
        next.chance = match fields.contains_key("seed") {
            true => Chance::new(next.seed),
            false => std::mem::take(&mut self.chance),
        };
        next.stalled_up_to = if fields.contains_key("stalled") { newest } else { self.stalled_up_to };
        *self = next;
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let codes = self.refuse_next.iter().map(|entry| entry.code);
        if let Some(code) = codes.into_iter().find(|code| failures::connect_refusal(*code).is_none()) {
            return Err(format!("refuseNext: code {code} is no refusal; give 1, 2, 3, 4 or 5"));
        }
        let lens = [
            self.refuse_next.len(),
            self.propagation_delay_ms_by_identity.len(),
            self.stalled.len(),
            self.fail_requests.len(),
            self.fail_twin_requests.len(),
        ];
        if lens.into_iter().any(|len| len > ENTRIES_MAX) {
            return Err(format!("more than {ENTRIES_MAX} entries"));
        }
        let delays =
            [self.propagation_delay_ms, self.connack_delay_ms, self.latency_ms, self.latency_jitter_ms];
        if self.propagation_delay_ms_by_identity.values().chain(&delays).any(|delay| *delay > DELAY_MS_MAX) {
            return Err(format!("a delay is over {DELAY_MS_MAX} ms"));
        }
        if self.clock_offset_secs.unsigned_abs() > CLOCK_OFFSET_SECS_MAX {
            return Err(format!("clockOffsetSecs is over {CLOCK_OFFSET_SECS_MAX} either way"));
        }
        self.fail_requests.iter().try_for_each(FailRequests::check)?;
        self.fail_twin_requests.iter().try_for_each(FailTwinRequests::check)?;
        self.throttles.as_ref().map_or(Ok(()), throttles::Settings::check)
    }

    /// Takes one refusal for `identity`, if any is left: one of its own before one for everybody.
    pub(crate) fn take_refusal(&mut self, identity: &IdentityId) -> Option<ConnectReturnCode> {
        let name = identity.to_string();
        let own = self.refuse_next.iter().position(|entry| entry.identity.as_deref() == Some(&name));
        let at = own.or_else(|| self.refuse_next.iter().position(|entry| entry.identity.is_none()))?;
        let entry = self.refuse_next.get_mut(at)?;
        entry.count = entry.count.saturating_sub(1);
        let code = failures::connect_refusal(entry.code);
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

    /// How much later than it could the next answer goes out.
    pub(crate) fn latency(&mut self) -> Duration {
        let jitter_ms = match self.latency_jitter_ms {
            0 => 0,
            max => self.chance.up_to(max),
        };
        Duration::from_millis(self.latency_ms + jitter_ms)
    }

    /// Whether any connection may be stalled.
    pub(crate) fn is_any_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Whether the connection with this number stands still.
    pub(crate) fn is_stalled(&self, identity: &IdentityId, connection: u64) -> bool {
        let name = identity.to_string();
        self.stalled.iter().any(|stall| {
            stall.identity.as_ref().is_none_or(|stalled| *stalled == name)
                && (stall.new_too || connection <= self.stalled_up_to)
        })
    }

    /// How a request over HTTPS is to fail, if it is.
    pub(crate) fn take_request_failure(&mut self, method: &str, path: &str) -> Option<Failure> {
        failures::of_request(&mut self.fail_requests, &mut self.chance, method, path)
    }

    /// How a twin request over MQTT is to fail, if it is.
    pub(crate) fn take_twin_failure(
        &mut self,
        identity: &IdentityId,
        request: TwinRequest,
    ) -> Option<Failure> {
        failures::of_twin_request(&mut self.fail_twin_requests, &mut self.chance, identity, request)
    }
}

/// An error of fields that can't be read, with the name of one that alone brings an error.
fn name_wrong_field(fields: &Map<String, Value>, error: &serde_json::Error) -> String {
    let alone = |(name, value): (&String, &Value)| {
        let one = Map::from_iter([(name.clone(), value.clone())]);
        let error = serde_json::from_value::<Faults>(Value::Object(one)).err()?;
        Some(format!("{name}: {error}"))
    };
    fields.iter().find_map(alone).unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merge(faults: &mut Faults, change: Value) -> Result<(), String> {
        faults.merge(change.as_object().unwrap(), 0)
    }

    #[test]
    fn merging_changes_named_fields_only_and_names_unknown_ones() {
        let mut faults = Faults::default();
        merge(&mut faults, json!({"propagationDelayMs": 5, "onKeyChange": "drop"})).unwrap();
        merge(&mut faults, json!({"muteConnack": true})).unwrap();
        assert_eq!(faults.propagation(&IdentityId::device("d1").unwrap()), Duration::from_millis(5));
        assert_eq!((faults.on_key_change, faults.mute_connack), (LiveConnection::Drop, true));
        let error = merge(&mut faults, json!({"muteConnack": false, "typo": 1, "other": 2})).unwrap_err();
        assert!(error.contains("typo") && error.contains("other"), "{error}");
        assert!(faults.mute_connack);
        for wrong in [
            json!({"refuseNext": [{"count": 1, "code": 0}]}),
            json!({"refuseNext": [{"count": 1, "kode": 5}]}),
            json!({"onKeyChange": "perhaps"}),
            json!({"connackDelayMs": DELAY_MS_MAX + 1}),
            json!({"latencyJitterMs": DELAY_MS_MAX + 1}),
            json!({"stalled": [{"identity": "d1", "newTo": true}]}),
            json!({"failRequests": [{"code": 404_001}]}),
            json!({"failRequests": [{"code": 500_001, "count": 0}]}),
            json!({"failTwinRequests": [{"code": 0, "probability": 1.5}]}),
            json!({"failTwinRequests": [{"code": 0, "request": "write"}]}),
            json!({"throttles": {"tier": "S4"}}),
            json!({"throttles": {"tier": "S1", "units": 0}}),
            json!({"clockOffsetSecs": i64::MIN}),
            json!({"seed": -1}),
        ] {
            let error = merge(&mut faults, wrong.clone()).unwrap_err();
            let field = wrong.as_object().unwrap().keys().next().unwrap();
            assert!(error.contains(field.as_str()) || error.contains("delay"), "{wrong}: {error}");
        }
    }

    #[test]
    fn refusals_are_counted_down_by_identity() {
        let [d1, d2] = ["d1", "d2"].map(|name| IdentityId::device(name).unwrap());
        let mut faults = Faults::default();
        merge(&mut faults, json!({"refuseNext": [{"identity": "d1", "count": 2, "code": 3}]})).unwrap();
        merge(&mut faults, json!({"refuseNext": [{"count": 1}]})).unwrap();
        assert_eq!(faults.take_refusal(&d2), Some(ConnectReturnCode::NotAuthorized));
        assert_eq!(faults.take_refusal(&d2), None);
        for expected in
            [Some(ConnectReturnCode::ServiceUnavailable), Some(ConnectReturnCode::ServiceUnavailable), None]
        {
            assert_eq!(faults.take_refusal(&d1), expected);
        }
    }
}
