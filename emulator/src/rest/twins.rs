//! Twins, direct methods and queries.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::HeaderName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::devices::connection_state;
use super::{Call, Reply};
use crate::hub::{Hub, MethodCall};
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::{Identity, unknown};
use crate::twin::ServicePatch;

/// Most twins on one page of a query, and how many without `x-ms-max-item-count`.
const PAGE_LEN_MAX: u64 = 1000;
const PAGE_LEN: u64 = 100;

const MAX_ITEM_COUNT: HeaderName = HeaderName::from_static("x-ms-max-item-count");
const CONTINUATION: HeaderName = HeaderName::from_static("x-ms-continuation");
const ITEM_TYPE: HeaderName = HeaderName::from_static("x-ms-item-type");

pub(super) fn read(hub: &Hub, id: &IdentityId) -> Result<Reply, Refusal> {
    let state = hub.lock();
    let identity = state.registry.find(id).ok_or_else(|| unknown(id))?;
    Ok(Reply::ok(view(id, identity)).etag(&identity.twin.etag()))
}

/// Merges, or with `replace` replaces, tags and desired properties. Reported properties are the device's: ignored.
pub(super) fn change(hub: &Hub, id: &IdentityId, call: &Call<'_>, replace: bool) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        tags: Option<Map<String, Value>>,
        #[serde(default)]
        properties: Properties,
    }
    #[derive(Default, Deserialize)]
    struct Properties {
        desired: Option<Map<String, Value>>,
    }
    let Body { tags, properties } = call.json()?;
    let patch = ServicePatch::new(tags, properties.desired);
    hub.lock().change_twin(id, &patch, replace, &call.precondition())?;
    read(hub, id)
}

pub(super) async fn call_method(hub: &Hub, id: &IdentityId, call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        method_name: String,
        #[serde(default)]
        payload: Value,
        response_timeout_in_seconds: Option<u64>,
        connect_timeout_in_seconds: Option<u64>,
    }
    let body: Body = call.json()?;
    let invalid = |message: &str| Err(Refusal::new(ErrorCode::ArgumentInvalid, message));
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    if body.method_name.is_empty() || body.method_name.len() > 100 || !body.method_name.chars().all(is_name) {
        return invalid("methodName has 1 to 100 letters, digits and -._~");
    }
    // Limits and default: IoT Hub documentation, "Understand and invoke direct methods".
    let response_secs = body.response_timeout_in_seconds.unwrap_or(30);
    let connect_secs = body.connect_timeout_in_seconds.unwrap_or(0);
    if !(5..=300).contains(&response_secs) || connect_secs > 300 {
        return invalid("responseTimeoutInSeconds is 5 to 300, connectTimeoutInSeconds 0 to 300");
    }
    let call = MethodCall {
        name: body.method_name,
        payload: body.payload,
        connect_timeout: Duration::from_secs(connect_secs),
        response_timeout: Duration::from_secs(response_secs),
    };
    let answer = hub.call_method(id, call).await?;
    Ok(Reply::ok(json!({"status": answer.status, "payload": answer.payload})))
}

/// Knows `SELECT * FROM devices` and `SELECT * FROM devices.modules`.
pub(super) fn query(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        query: String,
    }
    let invalid = |message: &str| Refusal::new(ErrorCode::ArgumentInvalid, message);
    let Body { query } = call.json()?;
    let words: Vec<String> = query.split_whitespace().map(str::to_ascii_lowercase).collect();
    let of_modules = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["select", "*", "from", "devices"] => false,
        ["select", "*", "from", "devices.modules"] => true,
        _ => {
            return Err(invalid(
                "this emulator answers SELECT * FROM devices and SELECT * FROM devices.modules only",
            ));
        }
    };
    let count = match call.header(&MAX_ITEM_COUNT) {
        None => PAGE_LEN,
        Some(text) => text
            .parse()
            .ok()
            .filter(|count| (1..=PAGE_LEN_MAX).contains(count))
            .ok_or_else(|| invalid("x-ms-max-item-count is 1 to 1000"))?,
    };
    let after = match call.header(&CONTINUATION).filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => {
            Some(decode_continuation(text).ok_or_else(|| invalid("x-ms-continuation is not one of ours"))?)
        }
    };
    let state = hub.lock();
    let mut rest = state
        .registry
        .after(after.as_ref())
        .filter(|(id, _)| id.module_id().is_some() == of_modules)
        .peekable();
    let mut page = Vec::new();
    let mut last = None;
    for (id, identity) in rest.by_ref().take(usize::try_from(count).unwrap_or(usize::MAX)) {
        page.push(view(id, identity));
        last = Some(id);
    }
    let reply = Reply::ok(Value::Array(page)).header(ITEM_TYPE, "twin");
    Ok(match last.filter(|_| rest.peek().is_some()) {
        Some(last) => reply.header(CONTINUATION, URL_SAFE_NO_PAD.encode(last.to_string())),
        None => reply,
    })
}

/// A continuation names the last identity of the page before, so that it stays right when others come and go.
fn decode_continuation(text: &str) -> Option<IdentityId> {
    IdentityId::parse(&String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?)
}

fn view(id: &IdentityId, identity: &Identity) -> Value {
    let twin = &identity.twin;
    let never = "0001-01-01T00:00:00Z";
    let mut view = json!({
        "deviceId": id.device_id(),
        "etag": twin.etag(),
        "deviceEtag": identity.etag,
        "version": twin.version,
        "status": identity.status,
        "statusUpdateTime": identity.status_updated.as_deref().unwrap_or(never),
        "connectionState": connection_state(identity),
        "lastActivityTime": identity.last_activity.as_deref().unwrap_or(never),
        "cloudToDeviceMessageCount": identity.queue.len(),
        "authenticationType": "sas",
        "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
        "modelId": "",
        "capabilities": {"iotEdge": identity.iot_edge},
        "tags": twin.tags,
        "properties": {"desired": twin.desired.service_view(), "reported": twin.reported.service_view()},
    });
    if let (Value::Object(view), Some(module)) = (&mut view, id.module_id()) {
        view.insert("moduleId".to_owned(), module.into());
    }
    view
}
