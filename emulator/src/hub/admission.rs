//! Who may connect: CONNECT's user name, client id and token, and the takeover of an older connection.
//!
//! The order of the checks is EdgeHub's: token's form, expiry, primary key, secondary key, audience, identity enabled.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use rumqttc::{Connect, ConnectReturnCode, LastWill, Protocol, Publish, QoS};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

use super::{Credential, Hub, Live, OUTGOING_MAX, Session, State, is_enabled};
use crate::authentication::Authentication;
use crate::faults::{LiveConnection, PreviousKey};
use crate::history::{ClosedBy, RefusedFor};
use crate::identity::IdentityId;
use crate::keys::KeySlot;
use crate::policies::Right;
use crate::sas::{self, Token};
use crate::telemetry::PropertyBag;
use crate::topics::{Publication, parameter};

/// Longest digital twin model identifier in bytes (DTDL language description, "Digital Twin Model Identifier").
const MODEL_ID_LEN_MAX: usize = 2048;

/// An accepted connection, owned by its task.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) id: u64,
    pub(crate) identity: IdentityId,
    /// Without an API version in the user name there are no twins.
    pub(super) has_api_version: bool,
    pub(crate) session_present: bool,
    /// The token's `se`.
    token_expiry: u64,
    pub(crate) kicked: oneshot::Receiver<ClosedBy>,
    pub(crate) outgoing: mpsc::Receiver<Publish>,
    pub(super) will: Option<Will>,
}

/// What to store as telemetry if the connection ends without DISCONNECT.
#[derive(Debug)]
pub(super) struct Will {
    pub(super) bag: PropertyBag,
    pub(super) body: Bytes,
}

/// A refused CONNECT: what CONNACK says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) ConnectReturnCode);

impl Hub {
    /// Decides about a CONNECT. If it is accepted, the identity's older connection has ended and the new one is live
    /// at the same instant.
    pub(crate) fn admit(&self, connect: &Connect) -> Result<Connection, Refused> {
        let mut state = self.lock();
        match self.check(&mut state, connect) {
            Ok(accepted) => {
                let connection = state.accept(connect, accepted);
                self.methods_reachable.notify_waiters();
                Ok(connection)
            }
            Err(Refusal { reason, code, identity }) => {
                info!(client = %connect.client_id.escape_debug(), ?reason, "refused");
                state.history.refuse(self.clock.now(), &connect.client_id, reason);
                if let (LiveConnection::Drop, Some(id)) = (state.faults.on_refused_connect, identity) {
                    state.close(&id, ClosedBy::RefusedConnect);
                }
                Err(Refused(code))
            }
        }
    }

    /// Records a CONNECT that makes no sense; `client_id` is empty if not even that could be read.
    pub(crate) fn refuse_malformed(&self, client_id: &str) {
        self.lock().history.refuse(self.clock.now(), client_id, RefusedFor::Malformed);
    }

    /// How long the token of `connection` still keeps it alive; `None` if no longer.
    pub(crate) fn remaining(&self, connection: &Connection) -> Option<Duration> {
        let end = Duration::from_secs(connection.token_expiry).saturating_add(self.options.token_grace);
        end.checked_sub(self.clock.unix_time()).filter(|remaining| !remaining.is_zero())
    }

    fn check(&self, state: &mut State, connect: &Connect) -> Result<Accepted, Refusal> {
        let mut refusal =
            Refusal { reason: RefusedFor::Malformed, code: ConnectReturnCode::NotAuthorized, identity: None };
        if connect.protocol != Protocol::V4 {
            return Err(Refusal { code: ConnectReturnCode::RefusedProtocolVersion, ..refusal });
        }
        let Some(name) = self.read_names(connect) else {
            return Err(refusal);
        };
        let id = name.identity;
        refusal.identity = Some(id.clone());
        if let Some(code) = state.faults.take_refusal(&id) {
            return Err(Refusal { reason: RefusedFor::Fault, code, ..refusal });
        }
        let password = connect.login.as_ref().map_or("", |login| login.password.as_str());
        let (Some(token), Ok(will)) = (Token::parse(password), read_will(connect.last_will.as_ref(), &id))
        else {
            return Err(refusal);
        };
        match self.verify(state, &token, &id) {
            Ok(credential) => Ok(Accepted {
                credential,
                has_api_version: name.has_api_version,
                model_id: name.model_id,
                token_expiry: token.expiry,
                will,
                id,
            }),
            Err(reason) => Err(Refusal { reason, ..refusal }),
        }
    }

    pub(super) fn verify(
        &self,
        state: &State,
        token: &Token<'_>,
        id: &IdentityId,
    ) -> Result<Credential, RefusedFor> {
        if token.is_expired(self.clock.unix_time(), self.options.clock_skew) {
            return Err(RefusedFor::Expired);
        }
        let identity = state.registry.find(id).ok_or(RefusedFor::Unknown)?;
        if token.policy.is_none() && identity.authentication != Authentication::Sas {
            return Err(RefusedFor::Signature);
        }
        let (host, path) = (self.options.host_name.as_str(), id.resource_path());
        let (credential, is_for_us) = match &token.policy {
            Some(name) => {
                let policy = state.policies.find(name).ok_or(RefusedFor::Unknown)?;
                let mut keys =
                    [KeySlot::Primary, KeySlot::Secondary].map(|slot| policy.key(slot)).into_iter();
                if !keys.any(|key| token.is_signed_by(key)) {
                    return Err(RefusedFor::Signature);
                }
                let may_connect = policy.allows(Right::DeviceConnect);
                (Credential::Policy(name.clone()), may_connect && token.covers(host, &path))
            }
            None => {
                let previous_lives = state.faults.previous_key == PreviousKey::Lives;
                let mut accepted = identity.keys.accepted(self.clock.now(), previous_lives);
                let (slot, key) =
                    accepted.find(|(_, key)| token.is_signed_by(key)).ok_or(RefusedFor::Signature)?;
                (Credential::Slot(slot, key.clone()), token.names(host, &path))
            }
        };
        if !is_for_us {
            return Err(RefusedFor::Resource);
        }
        if !is_enabled(&state.registry, id) {
            return Err(RefusedFor::Disabled);
        }
        Ok(credential)
    }

    /// Reads the user name and compares it with the client id. Grammar: EdgeHub's `MqttUsernameParser`.
    fn read_names(&self, connect: &Connect) -> Option<Names> {
        let user_name = &connect.login.as_ref()?.username;
        let mut segments: Vec<&str> = user_name.split('/').collect();
        let names = IdentityId::parse(&connect.client_id)?;
        let named = if names.module_id().is_some() { 3 } else { 2 };
        // The last segment is the query, with or without `?`; the oldest form has none at all.
        let query = if segments.len() > named { segments.pop()? } else { "" };
        let [host, ids @ ..] = segments.as_slice() else {
            return None;
        };
        if !sas::is_same_host(host, &self.options.host_name) || ids.join("/") != connect.client_id {
            return None;
        }
        let query = query.strip_prefix('?').unwrap_or(query);
        // Of parameters that come twice, the first counts; unknown ones are ignored.
        let version = parameter(query, "api-version");
        let model_id = parameter(query, "model-id")
            .and_then(|text| percent_decode_str(text).decode_utf8().ok())
            .filter(|model_id| model_id.len() <= MODEL_ID_LEN_MAX);
        match version {
            Some("") => None,
            None if !query.is_empty() => None,
            Some(_) | None => Some(Names {
                identity: names,
                has_api_version: version.is_some(),
                model_id: model_id.unwrap_or_default().into_owned(),
            }),
        }
    }
}

impl State {
    /// Makes an accepted connection the live one: closes the older and opens the new at one instant.
    fn accept(&mut self, connect: &Connect, accepted: Accepted) -> Connection {
        let Accepted { id, credential, has_api_version, model_id, token_expiry, will } = accepted;
        let now = self.clock.now();
        let took_over = self.close_at(&id, ClosedBy::Takeover, now);
        let key = match &credential {
            Credential::Slot(KeySlot::Primary, _) => "primary".to_owned(),
            Credential::Slot(KeySlot::Secondary, _) => "secondary".to_owned(),
            Credential::Policy(name) => format!("policy:{name}"),
        };
        debug!(identity = %id, key, took_over, "accepted");
        let connection = self.history.open(id.to_string(), key, now, took_over, token_expiry);
        let (kick, kicked) = oneshot::channel();
        let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
        let mut session_present = false;
        if let Some(identity) = self.registry.find_mut(&id) {
            let persistent = !connect.clean_session;
            // A session that is not persistent ended with its connection, above.
            let kept = identity.session.take().filter(|_| persistent);
            session_present = kept.is_some();
            identity.session = Some(kept.unwrap_or_else(|| Session { persistent, filters: BTreeMap::new() }));
            if connect.clean_session {
                identity.queue.purge(now);
            }
            if !model_id.is_empty() {
                identity.model_id = model_id;
            }
            let timestamp = self.clock.timestamp();
            identity.connection_updated = Some(timestamp.clone());
            identity.last_activity = Some(timestamp);
            identity.live = Some(Live { id: connection, credential, kick, outgoing: sender });
        }
        self.send_queued(&id);
        Connection {
            id: connection,
            identity: id,
            has_api_version,
            session_present,
            token_expiry,
            kicked,
            outgoing,
            will,
        }
    }
}

/// What CONNECT's names say.
struct Names {
    identity: IdentityId,
    has_api_version: bool,
    /// `model-id`, decoded.
    model_id: String,
}

/// A CONNECT that passed every check.
struct Accepted {
    id: IdentityId,
    credential: Credential,
    has_api_version: bool,
    model_id: String,
    token_expiry: u64,
    will: Option<Will>,
}

/// A CONNECT that did not.
struct Refusal {
    reason: RefusedFor,
    code: ConnectReturnCode,
    /// Who it claimed to be, as far as that could be read.
    identity: Option<IdentityId>,
}

/// A will has to be telemetry of the identity's own, and gets a property that says so.
fn read_will(will: Option<&LastWill>, id: &IdentityId) -> Result<Option<Will>, ()> {
    let Some(will) = will else { return Ok(None) };
    let Some(Publication::Telemetry { bag }) = Publication::parse(&will.topic, id) else {
        return Err(());
    };
    let mut bag = PropertyBag::parse(bag).ok_or(())?;
    if will.qos == QoS::ExactlyOnce {
        return Err(());
    }
    bag.application.insert("iothub-MessageType".to_owned(), "Will".into());
    if will.retain {
        bag.application.insert("mqtt-retain".to_owned(), "true".into());
    }
    Ok(Some(Will { bag, body: will.message.clone() }))
}
