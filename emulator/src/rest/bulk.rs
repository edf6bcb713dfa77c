//! Many identities in one request: changes of all kinds, and new keys.

use std::collections::BTreeSet;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::identity_body::IdentityBody;
use super::{Call, Reply};
use crate::authentication::Authentication;
use crate::hub::{Hub, State};
use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot, Purpose};
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::twin::ServicePatch;

/// Most devices in one bulk request or key regeneration (az CLI's constant; service documentation for bulk).
const BULK_LEN_MAX: usize = 100;

/// `POST /devices/keys/regenerate`: up to 100 identities; what failed is told beside what succeeded.
/// Source: az CLI, `service_operations.py`; the status says whether all (200), some (207) or none (400) succeeded.
pub(super) fn regenerate_keys(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        policy_key: String,
        devices: Vec<Target>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Target {
        id: String,
        module_id: Option<String>,
    }
    let body: Body = call.json()?;
    let slots: &[KeySlot] = match body.policy_key.as_str() {
        "primaryKey" => &[KeySlot::Primary],
        "secondaryKey" => &[KeySlot::Secondary],
        "both" => &[KeySlot::Primary, KeySlot::Secondary],
        _ => {
            return Err(Refusal::new(
                ErrorCode::InvalidPolicyKey,
                "policyKey is primaryKey, secondaryKey or both",
            ));
        }
    };
    check_bulk_len(body.devices.len())?;
    let mut state = hub.lock();
    let (mut rotated, mut errors) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for Target { id: device, module_id } in body.devices {
        let id = match &module_id {
            None => IdentityId::device(&device),
            Some(module) => IdentityId::module(&device, module),
        };
        let outcome = id
            .ok_or_else(|| Refusal::new(ErrorCode::ArgumentInvalid, "no valid id"))
            // The keys of the first mention are in the answer; making others would make those worthless.
            .and_then(|id| match seen.insert(id.clone()) {
                true => regenerate(&mut state, &id, slots),
                false => Err(Refusal::new(ErrorCode::DeviceDefinedMultipleTimes, "named more than once")),
            });
        match outcome {
            Ok((primary, secondary)) => {
                let mut entry = entry_for(&device, module_id.as_deref());
                entry.insert("primaryKey".to_owned(), primary.into());
                entry.insert("secondaryKey".to_owned(), secondary.into());
                rotated.push(Value::Object(entry));
            }
            Err(refusal) => {
                let mut entry = entry_for(&device, module_id.as_deref());
                entry.insert("errorCode".to_owned(), refusal.code.name().into());
                entry.insert("errorStatus".to_owned(), refusal.message.into());
                errors.push(Value::Object(entry));
            }
        }
    }
    let status = match (rotated.is_empty(), errors.is_empty()) {
        (_, true) => StatusCode::OK,
        (false, false) => StatusCode::MULTI_STATUS,
        (true, false) => StatusCode::BAD_REQUEST,
    };
    let answer = json!({"policyKey": body.policy_key, "rotatedKeys": rotated, "errors": errors});
    Ok(Reply::with_status(status, answer))
}

/// `POST /devices`: up to 100 changes, each by itself; the body has the same shape whether all succeeded or not.
pub(super) fn change_many(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    let entries: Vec<BulkEntry> = call.json()?;
    check_bulk_len(entries.len())?;
    let mut state = hub.lock();
    let mut errors = Vec::new();
    for entry in entries {
        let (device, module) = (entry.id.clone(), entry.module_id.clone());
        if let Err(refusal) = entry.apply(hub, &mut state) {
            errors.push(json!({
                "deviceId": device,
                "moduleId": module,
                "errorCode": refusal.code.number(),
                "errorStatus": refusal.code.name(),
                "operation": null,
            }));
        }
    }
    let status = if errors.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let answer = json!({"isSuccessful": errors.is_empty(), "errors": errors, "warnings": []});
    Ok(Reply::with_status(status, answer))
}

/// One change of a bulk request (`ExportImportDevice`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BulkEntry {
    id: String,
    module_id: Option<String>,
    e_tag: Option<String>,
    #[serde(rename = "twinETag")]
    twin_etag: Option<String>,
    #[serde(default)]
    import_mode: ImportMode,
    #[serde(default)]
    tags: Option<Map<String, Value>>,
    properties: Option<BulkProperties>,
    #[serde(flatten)]
    body: IdentityBody,
}

#[derive(Debug, Deserialize)]
struct BulkProperties {
    desired: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ImportMode {
    #[default]
    Create,
    Update,
    #[serde(rename = "updateIfMatchETag")]
    UpdateIfMatch,
    Delete,
    #[serde(rename = "deleteIfMatchETag")]
    DeleteIfMatch,
    UpdateTwin,
    #[serde(rename = "updateTwinIfMatchETag")]
    UpdateTwinIfMatch,
}

impl BulkEntry {
    fn apply(self, hub: &Hub, state: &mut State) -> Result<(), Refusal> {
        let id = match &self.module_id {
            None => IdentityId::device(&self.id),
            Some(module) => IdentityId::module(&self.id, module),
        };
        let id = id.ok_or_else(|| Refusal::new(ErrorCode::ArgumentInvalid, "no valid id"))?;
        let with_etag = |etag: &Option<String>| match Precondition::parse(etag.as_deref()) {
            Precondition::None => {
                Err(Refusal::new(ErrorCode::ArgumentInvalid, "the import mode needs an etag"))
            }
            given @ (Precondition::Any | Precondition::Etag(_)) => Ok(given),
        };
        let desired = self.properties.and_then(|properties| properties.desired);
        let twin = ServicePatch::new(self.tags, desired);
        match self.import_mode {
            ImportMode::Create => {
                self.body.create(hub, state, &id)?;
                // Only this twin can say whether the patch fits: configurations may have filled it already. What is
                // told as failed must not be there, or a repetition fails too.
                state
                    .change_twin(&id, &twin, false, &Precondition::None)
                    .inspect_err(|_| state.registry.remove(&id))
            }
            ImportMode::Update => self.body.update(state, &id, &Precondition::Any),
            ImportMode::UpdateIfMatch => self.body.update(state, &id, &with_etag(&self.e_tag)?),
            ImportMode::Delete => state.delete(&id, &Precondition::Any),
            ImportMode::DeleteIfMatch => state.delete(&id, &with_etag(&self.e_tag)?),
            ImportMode::UpdateTwin => state.change_twin(&id, &twin, false, &Precondition::Any),
            ImportMode::UpdateTwinIfMatch => {
                state.change_twin(&id, &twin, false, &with_etag(&self.twin_etag)?)
            }
        }
    }
}

/// Makes new keys for `slots`, and returns both keys as text.
fn regenerate(state: &mut State, id: &IdentityId, slots: &[KeySlot]) -> Result<(String, String), Refusal> {
    let identity = state.registry.expect_known(id)?;
    if identity.authentication != Authentication::Sas {
        return Err(Refusal::new(ErrorCode::ArgumentInvalid, "the identity has no symmetric keys"));
    }
    let keys = &identity.keys;
    let key = |slot| match slots.contains(&slot) {
        true => Key::generate(Purpose::Device),
        false => Ok(keys.key(slot).clone()),
    };
    let (primary, secondary) = (key(KeySlot::Primary)?, key(KeySlot::Secondary)?);
    let texts = (primary.encode(), secondary.encode());
    state.change_keys(id, primary, secondary)?;
    Ok(texts)
}

fn check_bulk_len(len: usize) -> Result<(), Refusal> {
    if len > BULK_LEN_MAX {
        let message = format!("{len} entries in one request, over {BULK_LEN_MAX}; send several requests");
        return Err(Refusal::new(ErrorCode::TooManyDevices, message));
    }
    Ok(())
}

fn entry_for(device: &str, module: Option<&str>) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("id".to_owned(), device.into());
    if let Some(module) = module {
        entry.insert("moduleId".to_owned(), module.into());
    }
    entry
}
