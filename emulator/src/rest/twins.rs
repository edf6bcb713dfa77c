//! Twins and direct methods.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Call, Reply};
use crate::hub::{Hub, MethodCall};
use crate::identity::IdentityId;
use crate::refusal::Refusal;
use crate::registry::unknown;
use crate::twin::ServicePatch;
use crate::twin_document::TwinDocument;

pub(super) fn read(hub: &Hub, id: &IdentityId) -> Result<Reply, Refusal> {
    let state = hub.lock();
    let identity = state.registry.find(id).ok_or_else(|| unknown(id))?;
    let document = TwinDocument { id, identity, now: hub.clock.now() };
    Ok(Reply::ok(document.view()).etag(&identity.twin.etag()))
}

/// Merges, or with `replace` replaces, tags and desired properties. Reported properties are the device's: ignored.
/// A section that is `null` is left as it is, like one that is not there.
pub(super) fn change(hub: &Hub, id: &IdentityId, call: &Call<'_>, replace: bool) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        tags: Option<Map<String, Value>>,
        properties: Option<Properties>,
    }
    #[derive(Deserialize)]
    struct Properties {
        desired: Option<Map<String, Value>>,
    }
    let Body { tags, properties } = call.json()?;
    let patch = ServicePatch::new(tags, properties.and_then(|properties| properties.desired));
    hub.lock().change_twin(id, &patch, replace, &call.precondition())?;
    read(hub, id)
}

pub(super) async fn call_method(hub: &Hub, id: &IdentityId, call: &Call<'_>) -> Result<Reply, Refusal> {
    let answer = hub.call_method(id, MethodCall::read(call.json()?)?).await?;
    Ok(Reply::ok(json!({"status": answer.status, "payload": answer.payload})))
}
