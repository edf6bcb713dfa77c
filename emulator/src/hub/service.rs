//! What the service side may do with an identity's twin, keys, queue and methods.

use std::collections::BTreeMap;
use std::time::Duration;

use rumqttc::{Publish, QoS};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{Credential, Hub, State, is_subscribed};
use crate::cloud_to_device::Message;
use crate::faults::LiveConnection;
use crate::history::ClosedBy;
use crate::identity::IdentityId;
use crate::keys::Key;
use crate::methods::Answer;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::{Precondition, Status};
use crate::topics::{self, Filter};
use crate::twin::{ServicePatch, versioned};

/// Largest cloud-to-device message in bytes (IoT Hub documentation, "Quotas and throttling").
const CLOUD_MESSAGE_LEN_MAX: usize = 64 * 1024;
/// Longest time to live in seconds: two days.
const CLOUD_MESSAGE_TTL_SECS_MAX: u64 = 48 * 3600;
/// Longest name of a direct method in bytes: room for a component's and its command's, of 64 each.
const METHOD_NAME_LEN_MAX: usize = 256;
/// Largest payload of a direct method in bytes.
const METHOD_LEN_MAX: usize = 128 * 1024;

/// A call of a direct method.
#[derive(Debug, Clone)]
pub(crate) struct MethodCall {
    pub(crate) name: String,
    pub(crate) payload: Value,
    /// How long to wait for the device to be there.
    pub(crate) connect_timeout: Duration,
    /// How long to wait for its answer.
    pub(crate) response_timeout: Duration,
}

impl MethodCall {
    /// Reads SDK model `CloudToDeviceMethod`. Limits and defaults: IoT Hub documentation, "Understand and invoke direct
    /// methods".
    pub(crate) fn read(body: Value) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            method_name: String,
            #[serde(default)]
            payload: Value,
            response_timeout_in_seconds: Option<u64>,
            connect_timeout_in_seconds: Option<u64>,
        }
        let body: Body = serde_json::from_value(body).map_err(|error| {
            Refusal::new(ErrorCode::DeserializationError, format!("direct method: {error}"))
        })?;
        let invalid = |message: &str| Err(Refusal::new(ErrorCode::ArgumentInvalid, message));
        // The name is a level of a topic. A component's command is `component*command` (IoT Hub documentation, "Plug and
        // Play conventions"); no other rule is known.
        let is_name = |c: char| !c.is_control() && !c.is_whitespace() && !"/+#?".contains(c);
        if !(1..=METHOD_NAME_LEN_MAX).contains(&body.method_name.len())
            || !body.method_name.chars().all(is_name)
        {
            return invalid("methodName has 1 to 256 characters, without blanks and / + # ?");
        }
        let response_secs = body.response_timeout_in_seconds.unwrap_or(30);
        let connect_secs = body.connect_timeout_in_seconds.unwrap_or(0);
        if !(5..=300).contains(&response_secs) || connect_secs > 300 {
            return invalid("responseTimeoutInSeconds is 5 to 300, connectTimeoutInSeconds 0 to 300");
        }
        Ok(Self {
            name: body.method_name,
            payload: body.payload,
            connect_timeout: Duration::from_secs(connect_secs),
            response_timeout: Duration::from_secs(response_secs),
        })
    }
}

/// A cloud-to-device message as the operator hands it in.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CloudMessage {
    pub(crate) identity: String,
    body: String,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default = "one_hour")]
    ttl_secs: u64,
}

/// The documented default of `defaultTtlAsIso8601`.
fn one_hour() -> u64 {
    3600
}

impl Hub {
    /// Calls a direct method, and waits for the answer.
    pub(crate) async fn call_method(&self, id: &IdentityId, call: MethodCall) -> Result<Answer, Refusal> {
        let body = call.payload.to_string();
        if body.len() > METHOD_LEN_MAX {
            let message = format!("the payload is over {METHOD_LEN_MAX} bytes");
            return Err(Refusal::new(ErrorCode::MessageTooLarge, message));
        }
        self.lock().registry.expect_known(id)?;
        let offline = || {
            Refusal::new(
                ErrorCode::DeviceNotOnline,
                "The operation failed because the requested device isn't online or hasn't registered the direct method callback.",
            )
        };
        timeout(call.connect_timeout, self.reachable(id)).await.or_else(|_| {
            // A timeout of zero must not lose to a device that is there.
            if self.lock().is_reachable(id) { Ok(()) } else { Err(offline()) }
        })?;
        let waiting = {
            let mut state = self.lock();
            let (rid, answer) = state.methods.await_answer(id).ok_or_else(|| {
                Refusal::new(ErrorCode::Throttling, "too many direct methods wait for an answer")
            })?;
            let publish = Publish::new(topics::method(&call.name, &rid), QoS::AtMostOnce, body);
            if !state.send(id, Filter::Methods, publish) {
                return Err(offline());
            }
            answer
        };
        match timeout(call.response_timeout, waiting).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(Refusal::new(
                ErrorCode::GatewayTimeout,
                "Timed out waiting for the response from device.",
            )),
        }
    }

    /// Waits until a device can be called.
    async fn reachable(&self, id: &IdentityId) {
        loop {
            let rung = self.methods_reachable.notified();
            if self.lock().is_reachable(id) {
                return;
            }
            rung.await;
        }
    }
}

impl State {
    fn is_reachable(&self, id: &IdentityId) -> bool {
        self.registry.find(id).is_some_and(|identity| {
            identity.is_connected() && is_subscribed(&identity.session, Filter::Methods)
        })
    }

    /// Merges or replaces (`replace`) tags and desired properties, and notifies the device.
    pub(crate) fn change_twin(
        &mut self,
        id: &IdentityId,
        change: &ServicePatch,
        replace: bool,
        precondition: &Precondition,
    ) -> Result<(), Refusal> {
        let timestamp = self.clock.timestamp();
        let twin = &mut self.registry.expect_known(id)?.twin;
        precondition.check(&twin.etag())?;
        let outcome = if replace { twin.replace(change, &timestamp) } else { twin.patch(change, &timestamp) };
        outcome.map_err(|message| Refusal::new(ErrorCode::ArgumentInvalid, message))?;
        let version = twin.desired.version;
        let notification = match &change.desired {
            // The device is told the whole new section; what was removed is not listed.
            _ if replace => Some(twin.desired.versioned()),
            Some(desired) => Some(versioned(desired, version)),
            None => None,
        };
        if let Some(body) = notification {
            self.notify_desired(id, &body, version);
        }
        self.configure(id);
        Ok(())
    }

    /// Puts both keys of an identity in the registry, under a new etag.
    pub(crate) fn change_keys(
        &mut self,
        id: &IdentityId,
        primary: Key,
        secondary: Key,
    ) -> Result<(), Refusal> {
        let (now, propagation, etag) =
            (self.clock.now(), self.faults.propagation(id), self.registry.next_etag());
        let identity = self.registry.expect_known(id)?;
        identity.keys.replace(primary, secondary, now, propagation);
        identity.etag = etag;
        let is_stale = identity.live.as_ref().is_some_and(|live| match &live.credential {
            Credential::Slot(_, key) => !identity.keys.hold(key),
            Credential::Policy(_) => false,
        });
        if is_stale && self.faults.on_key_change == LiveConnection::Drop {
            self.close(id, ClosedBy::KeyChange);
        }
        Ok(())
    }

    /// Enables or disables a device. A disabled device's connections end, and its modules' too.
    pub(crate) fn change_status(&mut self, id: &IdentityId, status: Status) -> Result<(), Refusal> {
        let timestamp = self.clock.timestamp();
        let identity = self.registry.expect_known(id)?;
        if identity.status != status {
            identity.status = status;
            identity.status_updated = Some(timestamp);
        }
        if status == Status::Disabled {
            for member in self.registry.family(id) {
                self.close(&member, ClosedBy::Disabled);
            }
        }
        Ok(())
    }

    /// Deletes an identity, a device with its modules, and ends their connections.
    pub(crate) fn delete(&mut self, id: &IdentityId, precondition: &Precondition) -> Result<(), Refusal> {
        precondition.check(&self.registry.expect_known(id)?.etag)?;
        let members = if id.module_id().is_none() { self.registry.family(id) } else { vec![id.clone()] };
        for member in members {
            self.close(&member, ClosedBy::Deleted);
            self.registry.remove(&member);
        }
        Ok(())
    }

    /// Queues a cloud-to-device message and delivers it if it can. A device that has never had an MQTT session gets
    /// none (Embedded C SDK, `mqtt_state_machine.md`): then the answer is `false`.
    pub(crate) fn queue_message(&mut self, id: &IdentityId, message: CloudMessage) -> Result<bool, Refusal> {
        if id.module_id().is_some() {
            let text = "modules get no cloud-to-device messages; name a device";
            return Err(Refusal::new(ErrorCode::ArgumentInvalid, text));
        }
        let properties: usize = message.properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        if message.body.len() + properties > CLOUD_MESSAGE_LEN_MAX {
            let text = format!("the message is over {CLOUD_MESSAGE_LEN_MAX} bytes");
            return Err(Refusal::new(ErrorCode::MessageTooLarge, text));
        }
        let now = self.clock.now();
        let identity = self.registry.expect_known(id)?;
        if identity.last_activity.is_none() {
            return Ok(false);
        }
        let expires = now.plus(Duration::from_secs(message.ttl_secs.min(CLOUD_MESSAGE_TTL_SECS_MAX)));
        let mut bag = message.properties;
        bag.insert("$.to".to_owned(), format!("{}/messages/deviceBound", id.resource_path()));
        identity
            .queue
            .push(Message::new(message.body.into(), bag, expires), now)
            .map_err(|_| Refusal::new(ErrorCode::MaximumQueueDepthExceeded, "the device's queue is full"))?;
        self.send_queued(id);
        Ok(true)
    }
}
