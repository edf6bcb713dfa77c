//! Identities: devices and modules one by one, listings, and counts of them.

use hyper::StatusCode;
use serde_json::json;

use super::identity_body::{IdentityBody, view};
use super::{Call, Reply};
use crate::hub::{Hub, State};
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::{Precondition, Status};

/// Most devices of one listing (IoT Hub documentation, "Identity registry"), and how many without `top`.
const LIST_LEN_MAX: u64 = 1000;

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
            body.create(hub, &mut state, id)?;
            if id.module_id().is_some() { StatusCode::CREATED } else { StatusCode::OK }
        }
        precondition @ (Precondition::Any | Precondition::Etag(_)) => {
            body.update(&mut state, id, &precondition)?;
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
    let now = hub.clock.now();
    Ok(Reply::ok(views.map(|(id, identity)| view(id, identity, now)).collect()))
}

pub(super) fn list_modules(hub: &Hub, device: &IdentityId) -> Result<Reply, Refusal> {
    let mut state = hub.lock();
    state.registry.expect_known(device)?;
    let (modules, now) = (state.registry.modules(device), hub.clock.now());
    Ok(Reply::ok(modules.map(|(id, identity)| view(id, identity, now)).collect()))
}

pub(super) fn purge_commands(hub: &Hub, id: &IdentityId) -> Result<Reply, Refusal> {
    let purged = hub.lock().registry.expect_known(id)?.queue.purge(hub.clock.now());
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

fn identity_reply(status: StatusCode, id: &IdentityId, state: &mut State) -> Result<Reply, Refusal> {
    let now = state.clock.now();
    let identity = state.registry.expect_known(id)?;
    Ok(Reply::with_status(status, view(id, identity, now)).etag(&identity.etag))
}
