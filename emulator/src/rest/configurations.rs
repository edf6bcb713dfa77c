//! Automatic device management (SDK file `configuration_operations.py`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::identity_body::IdentityBody;
use super::{Call, Reply};
use crate::configurations::{
    CONFIGURATIONS_MAX, Configuration, ConfigurationBody, Content, desired, parse_metric, parse_target,
};
use crate::hub::{Hub, Measured};
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::twin::ServicePatch;

pub(super) async fn read(hub: &Hub, id: &str) -> Result<Reply, Refusal> {
    let configuration = hub.lock().configurations.find(id)?.clone();
    let measured = hub.measure(std::slice::from_ref(&configuration)).await?;
    Ok(Reply::ok(view(&configuration, &measured)).etag(&configuration.etag))
}

pub(super) async fn list(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    let top = call.number("top")?.and_then(|top| usize::try_from(top).ok()).unwrap_or(CONFIGURATIONS_MAX);
    let configurations: Vec<Configuration> = hub.lock().configurations.all().take(top).cloned().collect();
    let measured = hub.measure(&configurations).await?;
    Ok(Reply::ok(configurations.iter().map(|configuration| view(configuration, &measured)).collect()))
}

/// Creates without `If-Match`, changes with it. Twins follow in the background, as in the real hub.
pub(super) fn write(hub: &Arc<Hub>, id: &str, call: &Call<'_>) -> Result<Reply, Refusal> {
    let body: ConfigurationBody = call.json()?;
    if body.id.as_deref().is_some_and(|named| named != id) {
        return Err(Refusal::new(ErrorCode::ArgumentInvalid, "the id in the body differs from the path"));
    }
    let timestamp = hub.clock.timestamp();
    let configuration = {
        let mut state = hub.lock();
        let etag = state.registry.next_etag();
        state.configurations.write(id, body, &call.precondition(), &timestamp, etag)?.clone()
    };
    hub.sweep();
    Ok(Reply::ok(view(&configuration, &BTreeMap::new())).etag(&configuration.etag))
}

pub(super) fn delete(hub: &Arc<Hub>, id: &str, call: &Call<'_>) -> Result<Reply, Refusal> {
    hub.lock().configurations.delete(id, &call.precondition())?;
    hub.sweep();
    Ok(Reply::empty())
}

/// Says what is wrong with a target condition and with queries of metrics; `null` and nothing if they are right.
pub(super) fn test_queries(call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        target_condition: Option<String>,
        #[serde(default)]
        custom_metric_queries: Option<BTreeMap<String, String>>,
    }
    let Body { target_condition, custom_metric_queries } = call.json()?;
    let target_error = target_condition.and_then(|text| parse_target(&text).err());
    let queries = custom_metric_queries.unwrap_or_default();
    let query_errors: BTreeMap<String, String> =
        queries.into_iter().filter_map(|(name, text)| Some((name, parse_metric(&text).err()?))).collect();
    Ok(Reply::ok(json!({"targetConditionError": target_error, "customMetricQueryErrors": query_errors})))
}

/// Puts content into the twins of one device and its modules, which replaces their desired properties. Modules that
/// the content names and the device lacks are created, as for an IoT Edge device.
pub(super) fn apply_content(hub: &Hub, id: &IdentityId, call: &Call<'_>) -> Result<Reply, Refusal> {
    let invalid = |message: String| Refusal::new(ErrorCode::ArgumentInvalid, message);
    let content = Content::read(&call.json::<Value>()?).map_err(invalid)?;
    let mut state = hub.lock();
    state.registry.expect_known(id)?;
    let mut patches = Vec::new();
    for (name, settings) in &content.modules {
        let module = IdentityId::module(id.device_id(), name)
            .ok_or_else(|| invalid(format!("{:?} is no module id", name.escape_debug().to_string())))?;
        patches.push((module, settings));
    }
    for (module, settings) in patches {
        if state.registry.find(&module).is_none() {
            IdentityBody::default().create(hub, &mut state, &module)?;
        }
        let tags = state.registry.expect_known(&module)?.twin.tags.clone();
        let patch = ServicePatch { tags: Some(tags), desired: Some(desired(settings)) };
        state.change_twin(&module, &patch, true, &Precondition::None)?;
    }
    if !content.device.is_empty() {
        let patch = ServicePatch { tags: None, desired: Some(desired(&content.device)) };
        state.change_twin(id, &patch, false, &Precondition::None)?;
    }
    Ok(Reply::empty())
}

fn view(configuration: &Configuration, measured: &BTreeMap<String, Measured>) -> Value {
    match measured.get(configuration.id()) {
        Some(Measured { targeted, applied, results }) => configuration.view(*targeted, *applied, results),
        None => configuration.view(0, 0, &BTreeMap::new()),
    }
}
