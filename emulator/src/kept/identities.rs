//! Devices and modules as records.
//!
//! Not kept: connections, MQTT sessions (how long the real hub keeps them is not documented, and every SDK subscribes
//! again), and that CONNECT does not know a new key yet.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Change, Loaded, Table, decode, encode};
use crate::authentication::Authentication;
use crate::clock::Clock;
use crate::cloud_to_device::{Message, Queue};
use crate::configurations::Configured;
use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot, SymmetricKeys};
use crate::registry::{Identity, Registry, Scope, Status};
use crate::twin::Twin;

/// The hub's own record.
const REGISTRY_KEY: &str = "registry";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegistryRecord {
    /// How many changes there were: etags go on from there.
    changes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<T> {
    generation_id: String,
    etag: String,
    status: Status,
    status_reason: Option<String>,
    status_updated: Option<String>,
    primary_key: String,
    secondary_key: String,
    authentication: Authentication,
    iot_edge: bool,
    scope: Option<Box<Scope>>,
    managed_by: Option<String>,
    configured: Option<Box<Configured>>,
    model_id: String,
    last_activity: Option<String>,
    connection_updated: Option<String>,
    queue: Vec<MessageRecord>,
    twin: T,
}

/// A cloud-to-device message. One that was on its way is sent again.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageRecord {
    /// Base64.
    body: String,
    bag: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch, by the hub's clock.
    expires_unix_ms: u64,
    deliveries: u32,
}

/// What was last written of each identity, as a number that changes with it.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    identities: BTreeMap<IdentityId, u64>,
    changes: u64,
}

impl Stamps {
    /// Appends what changed in the registry since the last time.
    pub(crate) fn collect(&mut self, registry: &mut Registry, clock: &Clock, changes: &mut Vec<Change>) {
        for id in registry.touched.take() {
            let place = (Table::Identities, id.to_string());
            match registry.find(&id) {
                None => {
                    if self.identities.remove(&id).is_some() {
                        changes.push((place, None));
                    }
                }
                Some(identity) => {
                    let stamp = stamp(identity);
                    if self.identities.get(&id) != Some(&stamp)
                        && let Some(record) = encode(&record(identity, clock))
                    {
                        changes.push((place, Some(record)));
                        self.identities.insert(id, stamp);
                    }
                }
            }
        }
        if registry.changes() != self.changes
            && let Some(record) = encode(&RegistryRecord { changes: registry.changes() })
        {
            self.changes = registry.changes();
            changes.push(((Table::Hub, REGISTRY_KEY.to_owned()), Some(record)));
        }
    }

    /// Puts what was kept into an empty registry. `Err` says what is wrong with it.
    pub(crate) fn restore(
        loaded: &mut Loaded,
        registry: &mut Registry,
        clock: &Clock,
    ) -> Result<Self, String> {
        let mut stamps = Self::default();
        for (key, value) in loaded.take(Table::Hub).filter(|(key, _)| key == REGISTRY_KEY) {
            stamps.changes = decode::<RegistryRecord>(&key, &value)?.changes;
        }
        for (key, value) in loaded.take(Table::Identities) {
            let id = IdentityId::parse(&key).ok_or_else(|| format!("{key:?} is no identity"))?;
            let identity = identity(decode(&key, &value)?, clock)
                .ok_or_else(|| format!("the record {key:?} makes no sense"))?;
            stamps.identities.insert(id.clone(), stamp(&identity));
            registry.restore(id, identity);
        }
        registry.keep_track(stamps.changes);
        Ok(stamps)
    }
}

/// A number that changes with everything that is kept.
fn stamp(identity: &Identity) -> u64 {
    let Identity {
        generation_id,
        etag,
        status,
        status_reason,
        status_updated,
        // These never change without the etag.
        authentication: _,
        keys: _,
        scope: _,
        managed_by: _,
        iot_edge,
        twin,
        model_id,
        last_activity,
        connection_updated,
        session: _,
        queue,
        live: _,
        is_puppet: _,
        configured,
    } = identity;
    let mut hasher = DefaultHasher::new();
    (generation_id, etag, *status == Status::Enabled, status_reason, status_updated).hash(&mut hasher);
    (iot_edge, twin.version, model_id, last_activity, connection_updated).hash(&mut hasher);
    configured.as_ref().map(|configured| configured.stamp()).hash(&mut hasher);
    for message in queue.messages() {
        (message.expires, message.deliveries()).hash(&mut hasher);
    }
    hasher.finish()
}

fn record<'a>(identity: &'a Identity, clock: &Clock) -> Record<&'a Twin> {
    let key = |slot| identity.keys.key(slot).encode();
    let (now, unix_time) = (clock.now(), clock.unix_time());
    let message = |message: &Message| MessageRecord {
        body: STANDARD.encode(&message.body),
        bag: message.bag.clone(),
        expires_unix_ms: millis(unix_time.saturating_add(message.expires.since(now))),
        deliveries: message.deliveries(),
    };
    Record {
        generation_id: identity.generation_id.clone(),
        etag: identity.etag.clone(),
        status: identity.status,
        status_reason: identity.status_reason.clone(),
        status_updated: identity.status_updated.clone(),
        primary_key: key(KeySlot::Primary),
        secondary_key: key(KeySlot::Secondary),
        authentication: identity.authentication.clone(),
        iot_edge: identity.iot_edge,
        scope: identity.scope.clone(),
        managed_by: identity.managed_by.clone(),
        configured: identity.configured.clone(),
        model_id: identity.model_id.clone(),
        last_activity: identity.last_activity.clone(),
        connection_updated: identity.connection_updated.clone(),
        queue: identity.queue.messages().map(message).collect(),
        twin: &identity.twin,
    }
}

fn identity(record: Record<Twin>, clock: &Clock) -> Option<Identity> {
    let (now, unix_time) = (clock.now(), clock.unix_time());
    let message = |kept: MessageRecord| {
        let left = Duration::from_millis(kept.expires_unix_ms).saturating_sub(unix_time);
        let body = STANDARD.decode(&kept.body).ok()?;
        Some(Message::new(body.into(), kept.bag, now.plus(left)).delivered(kept.deliveries))
    };
    let messages: Option<Vec<Message>> = record.queue.into_iter().map(message).collect();
    Some(Identity {
        generation_id: record.generation_id,
        etag: record.etag,
        status: record.status,
        status_reason: record.status_reason,
        status_updated: record.status_updated,
        keys: SymmetricKeys::new(
            Key::decode_for_registry(&record.primary_key)?,
            Key::decode_for_registry(&record.secondary_key)?,
        ),
        authentication: record.authentication,
        iot_edge: record.iot_edge,
        scope: record.scope,
        managed_by: record.managed_by,
        configured: record.configured,
        model_id: record.model_id,
        twin: record.twin,
        last_activity: record.last_activity,
        connection_updated: record.connection_updated,
        session: None,
        queue: Queue::of(messages?),
        live: None,
        is_puppet: false,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
