//! Identities: devices and modules one by one and in bulk, their keys, and counts of them.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Call, Reply};
use crate::hub::{Hub, State};
use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot, Purpose, SymmetricKeys};
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::{Identity, Precondition, Status};
use crate::twin::ServicePatch;

/// Most devices in one bulk request or key regeneration (az CLI's constant; service documentation for bulk).
const BULK_LEN_MAX: usize = 100;
/// Most devices of one listing (IoT Hub documentation, "Identity registry"), and how many without `top`.
const LIST_LEN_MAX: u64 = 1000;
/// A time that never was, as the real hub writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A device or module as a caller writes it. Fields of other authentication types, and what the hub itself decides,
/// are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityBody {
    device_id: Option<String>,
    module_id: Option<String>,
    status: Option<Status>,
    status_reason: Option<String>,
    authentication: Option<Authentication>,
    capabilities: Option<Capabilities>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authentication {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<KeyPair>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyPair {
    primary_key: Option<Secret>,
    secondary_key: Option<Secret>,
}

/// A key's text on its way in, which no `Debug` shows.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Secret(zeroize::Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret([elided])")
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    #[serde(default)]
    iot_edge: bool,
}

impl Authentication {
    /// Both keys, or neither: then the hub makes them.
    fn keys(self) -> Result<Option<(Key, Key)>, Refusal> {
        let invalid = |message: &str| Refusal::new(ErrorCode::ArgumentInvalid, message);
        if self.kind.is_some_and(|kind| kind != "sas") {
            return Err(invalid("this emulator knows authentication type sas only"));
        }
        let Some(pair) = self.symmetric_key else {
            return Ok(None);
        };
        let given = |secret: Option<Secret>| secret.filter(|Secret(text)| !text.is_empty());
        match (given(pair.primary_key), given(pair.secondary_key)) {
            (None, None) => Ok(None),
            (Some(Secret(primary)), Some(Secret(secondary))) => {
                let decode = |text: &str| {
                    Key::decode_for_registry(text)
                        .ok_or_else(|| invalid("a key must be base64 of 16 to 64 bytes"))
                };
                Ok(Some((decode(&primary)?, decode(&secondary)?)))
            }
            (Some(_), None) | (None, Some(_)) => Err(invalid("give both keys, or neither to have them made")),
        }
    }
}

pub(super) fn read(hub: &Hub, id: &IdentityId) -> Result<Reply, Refusal> {
    identity_reply(StatusCode::OK, id, &mut hub.lock())
}

/// Creates without `If-Match`, changes with it.
pub(super) fn write(hub: &Hub, id: &IdentityId, call: &Call<'_>) -> Result<Reply, Refusal> {
    let body: IdentityBody = call.json()?;
    let names = |name: Option<&str>, expected: Option<&str>| name.is_none() || name == expected;
    if !names(body.device_id.as_deref(), Some(id.device_id()))
        || !names(body.module_id.as_deref(), id.module_id())
    {
        let message = "deviceId or moduleId in the body differs from the path";
        return Err(Refusal::new(ErrorCode::ArgumentInvalid, message));
    }
    let mut state = hub.lock();
    let status = match call.precondition() {
        Precondition::None => {
            create(hub, &mut state, id, body)?;
            if id.module_id().is_some() { StatusCode::CREATED } else { StatusCode::OK }
        }
        precondition @ (Precondition::Any | Precondition::Etag(_)) => {
            update(&mut state, id, body, &precondition)?;
            StatusCode::OK
        }
    };
    identity_reply(status, id, &mut state)
}

pub(super) fn delete(hub: &Hub, id: &IdentityId, call: &Call<'_>) -> Result<Reply, Refusal> {
    hub.lock().delete(id, &call.precondition())?;
    Ok(Reply::empty())
}

pub(super) fn list(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    let top = call.number("top")?.unwrap_or(LIST_LEN_MAX).min(LIST_LEN_MAX);
    let state = hub.lock();
    let devices = state.registry.after(None).filter(|(id, _)| id.module_id().is_none());
    let views = devices.take(usize::try_from(top).unwrap_or(usize::MAX));
    Ok(Reply::ok(views.map(|(id, identity)| view(id, identity)).collect()))
}

pub(super) fn list_modules(hub: &Hub, device: &IdentityId) -> Result<Reply, Refusal> {
    let mut state = hub.lock();
    state.registry.expect_known(device)?;
    Ok(Reply::ok(state.registry.modules(device).map(|(id, identity)| view(id, identity)).collect()))
}

pub(super) fn purge_commands(hub: &Hub, id: &IdentityId) -> Result<Reply, Refusal> {
    let purged = hub.lock().registry.expect_known(id)?.queue.purge();
    Ok(Reply::ok(json!({"totalMessagesPurged": purged, "deviceId": id.device_id(), "moduleId": null})))
}

pub(super) fn device_statistics(hub: &Hub) -> Reply {
    let state = hub.lock();
    let devices = || state.registry.after(None).filter(|(id, _)| id.module_id().is_none());
    let total = devices().count();
    let enabled = devices().filter(|(_, device)| device.status == Status::Enabled).count();
    Reply::ok(json!({
        "totalDeviceCount": total,
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": total - enabled,
    }))
}

pub(super) fn service_statistics(hub: &Hub) -> Reply {
    let state = hub.lock();
    let connected =
        state.registry.after(None).filter(|(id, it)| id.module_id().is_none() && it.is_connected());
    Reply::ok(json!({"connectedDeviceCount": connected.count()}))
}

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
    for Target { id: device, module_id } in body.devices {
        let id = match &module_id {
            None => IdentityId::device(&device),
            Some(module) => IdentityId::module(&device, module),
        };
        let outcome = id
            .ok_or_else(|| Refusal::new(ErrorCode::ArgumentInvalid, "no valid id"))
            .and_then(|id| regenerate(&mut state, &id, slots));
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
                create(hub, state, &id, self.body)?;
                if twin.tags.is_some() || twin.desired.is_some() {
                    state.change_twin(&id, &twin, false, &Precondition::None)?;
                }
                Ok(())
            }
            ImportMode::Update => update(state, &id, self.body, &Precondition::Any),
            ImportMode::UpdateIfMatch => update(state, &id, self.body, &with_etag(&self.e_tag)?),
            ImportMode::Delete => state.delete(&id, &Precondition::Any),
            ImportMode::DeleteIfMatch => state.delete(&id, &with_etag(&self.e_tag)?),
            ImportMode::UpdateTwin => state.change_twin(&id, &twin, false, &Precondition::Any),
            ImportMode::UpdateTwinIfMatch => {
                state.change_twin(&id, &twin, false, &with_etag(&self.twin_etag)?)
            }
        }
    }
}

fn create(hub: &Hub, state: &mut State, id: &IdentityId, body: IdentityBody) -> Result<(), Refusal> {
    let keys = body.authentication.map(Authentication::keys).transpose()?.flatten();
    let keys = keys.map(|(primary, secondary)| SymmetricKeys::new(primary, secondary));
    let (timestamp, unix_time) = (hub.clock.timestamp(), hub.clock.unix_time());
    let identity = state.registry.create(id, keys, &timestamp, unix_time)?;
    identity.status = body.status.unwrap_or_default();
    identity.status_reason = body.status_reason;
    identity.iot_edge = body.capabilities.is_some_and(|capabilities| capabilities.iot_edge);
    Ok(())
}

/// Replaces what the body may set. Keys that it doesn't name stay: what the real hub does then is not documented.
fn update(
    state: &mut State,
    id: &IdentityId,
    body: IdentityBody,
    precondition: &Precondition,
) -> Result<(), Refusal> {
    let given = body.authentication.map(Authentication::keys).transpose()?.flatten();
    let identity = state.registry.expect_known(id)?;
    precondition.check(&identity.etag)?;
    identity.status_reason = body.status_reason;
    identity.iot_edge = body.capabilities.is_some_and(|capabilities| capabilities.iot_edge);
    let (primary, secondary) = given.unwrap_or_else(|| {
        let key = |slot| identity.keys.key(slot).clone();
        (key(KeySlot::Primary), key(KeySlot::Secondary))
    });
    state.change_keys(id, primary, secondary)?;
    if id.module_id().is_none() {
        state.change_status(id, body.status.unwrap_or_default())?;
    }
    Ok(())
}

/// Makes new keys for `slots`, and returns both keys as text.
fn regenerate(state: &mut State, id: &IdentityId, slots: &[KeySlot]) -> Result<(String, String), Refusal> {
    let keys = &state.registry.expect_known(id)?.keys;
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

fn identity_reply(status: StatusCode, id: &IdentityId, state: &mut State) -> Result<Reply, Refusal> {
    let identity = state.registry.expect_known(id)?;
    Ok(Reply::with_status(status, view(id, identity)).etag(&identity.etag))
}

/// An identity as the real hub shows it.
fn view(id: &IdentityId, identity: &Identity) -> Value {
    let key = |slot| identity.keys.key(slot).encode();
    let mut view = json!({
        "deviceId": id.device_id(),
        "generationId": identity.generation_id,
        "etag": identity.etag,
        "connectionState": connection_state(identity),
        "connectionStateUpdatedTime": identity.connection_updated.as_deref().unwrap_or(NEVER),
        "lastActivityTime": identity.last_activity.as_deref().unwrap_or(NEVER),
        "cloudToDeviceMessageCount": identity.queue.len(),
        "authentication": {
            "symmetricKey": {"primaryKey": key(KeySlot::Primary), "secondaryKey": key(KeySlot::Secondary)},
            "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
            "type": "sas",
        },
    });
    let more = match id.module_id() {
        Some(module) => json!({"moduleId": module, "managedBy": null}),
        None => json!({
            "status": identity.status,
            "statusReason": identity.status_reason,
            "statusUpdatedTime": identity.status_updated.as_deref().unwrap_or(NEVER),
            "capabilities": {"iotEdge": identity.iot_edge},
        }),
    };
    if let (Value::Object(view), Value::Object(more)) = (&mut view, more) {
        view.extend(more);
    }
    view
}

pub(super) fn connection_state(identity: &Identity) -> &'static str {
    if identity.is_connected() { "Connected" } else { "Disconnected" }
}
