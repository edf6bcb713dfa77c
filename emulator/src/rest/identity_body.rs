//! Identities as JSON: what callers write, and what the hub shows.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::authentication::{Authentication, Thumbprints};
use crate::clock::Moment;
use crate::hub::{Hub, State};
use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot, SymmetricKeys};
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::{Identity, Precondition, Scope, Status};
use crate::twin_document::NEVER;

/// Longest reason for a status in characters (IoT Hub documentation, "Identity registry", device identity properties).
const STATUS_REASON_LEN_MAX: usize = 128;
/// Most parent scopes: a parent edge has one today (same page). Longest scope and name of a manager in bytes.
const PARENT_SCOPES_MAX: usize = 10;
const NAME_LEN_MAX: usize = 512;

/// A device or module as a caller writes it. What the hub itself decides is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityBody {
    pub(super) device_id: Option<String>,
    pub(super) module_id: Option<String>,
    managed_by: Option<String>,
    status: Option<Status>,
    status_reason: Option<String>,
    authentication: Option<AuthenticationBody>,
    capabilities: Option<Capabilities>,
    device_scope: Option<String>,
    parent_scopes: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<KeyPair>,
    #[serde(rename = "x509Thumbprint")]
    thumbprint: Option<ThumbprintBody>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyPair {
    primary_key: Option<Secret>,
    secondary_key: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThumbprintBody {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
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

/// What an `authentication` comes to.
struct Given {
    authentication: Authentication,
    /// Both keys, or neither: then the hub makes or keeps them.
    keys: Option<(Key, Key)>,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::ArgumentInvalid, message)
}

impl AuthenticationBody {
    fn read(self) -> Result<Given, Refusal> {
        let authentication = match self.kind.as_deref() {
            None if self.thumbprint.as_ref().is_some_and(ThumbprintBody::is_given)
                && self.symmetric_key.is_none() =>
            {
                read_thumbprints(self.thumbprint)?
            }
            None | Some("sas") => Authentication::Sas,
            Some("selfSigned") => read_thumbprints(self.thumbprint)?,
            Some("certificateAuthority") => Authentication::CertificateAuthority,
            Some("none") => Authentication::None,
            Some(_) => {
                return Err(invalid("authentication.type is sas, selfSigned, certificateAuthority or none"));
            }
        };
        let keys = match self.symmetric_key.filter(|_| authentication == Authentication::Sas) {
            None => None,
            Some(pair) => pair.read()?,
        };
        Ok(Given { authentication, keys })
    }
}

impl KeyPair {
    fn read(self) -> Result<Option<(Key, Key)>, Refusal> {
        let given = |secret: Option<Secret>| secret.filter(|Secret(text)| !text.is_empty());
        match (given(self.primary_key), given(self.secondary_key)) {
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

impl ThumbprintBody {
    fn is_given(&self) -> bool {
        self.primary_thumbprint.is_some() || self.secondary_thumbprint.is_some()
    }
}

/// SHA-1 (40 digits) or SHA-256 (64) of a certificate; at least one of them.
fn read_thumbprints(body: Option<ThumbprintBody>) -> Result<Authentication, Refusal> {
    let body =
        body.filter(ThumbprintBody::is_given).ok_or_else(|| invalid("selfSigned needs a thumbprint"))?;
    let is_right =
        |text: &String| matches!(text.len(), 40 | 64) && text.chars().all(|c| c.is_ascii_hexdigit());
    let ThumbprintBody { primary_thumbprint: primary, secondary_thumbprint: secondary } = body;
    if ![&primary, &secondary].into_iter().flatten().all(is_right) {
        return Err(invalid("a thumbprint has 40 or 64 hexadecimal digits"));
    }
    Ok(Authentication::SelfSigned(Box::new(Thumbprints { primary, secondary })))
}

impl IdentityBody {
    /// Everything but keys that can be wrong.
    fn check(&self) -> Result<(), Refusal> {
        if self.status_reason.as_ref().is_some_and(|reason| reason.chars().count() > STATUS_REASON_LEN_MAX) {
            return Err(invalid(format!("statusReason is over {STATUS_REASON_LEN_MAX} characters")));
        }
        let parents = self.parent_scopes.iter().flatten();
        let mut names = self.managed_by.iter().chain(&self.device_scope).chain(parents.clone());
        if names.any(|name| name.len() > NAME_LEN_MAX) || parents.count() > PARENT_SCOPES_MAX {
            return Err(invalid("managedBy, deviceScope or parentScopes is too long"));
        }
        Ok(())
    }

    pub(super) fn create(self, hub: &Hub, state: &mut State, id: &IdentityId) -> Result<(), Refusal> {
        self.check()?;
        let (timestamp, unix_time) = (hub.clock.timestamp(), hub.clock.unix_time());
        let given = self.authentication.map(AuthenticationBody::read).transpose()?;
        let Given { authentication, keys } =
            given.unwrap_or(Given { authentication: Authentication::Sas, keys: None });
        let keys = keys.map(|(primary, secondary)| SymmetricKeys::new(primary, secondary));
        let identity = state.registry.create(id, keys, &timestamp, unix_time)?;
        identity.authentication = authentication;
        identity.status = self.status.unwrap_or_default();
        identity.status_reason = self.status_reason;
        identity.managed_by = self.managed_by;
        set_place(identity, id, self.capabilities, self.device_scope, self.parent_scopes);
        state.configure(id);
        Ok(())
    }

    /// Replaces what the body may set. Keys that it doesn't name stay: what the real hub does then is not documented.
    pub(super) fn update(
        self,
        state: &mut State,
        id: &IdentityId,
        precondition: &Precondition,
    ) -> Result<(), Refusal> {
        self.check()?;
        let identity = state.registry.expect_known(id)?;
        precondition.check(&identity.etag)?;
        let given = self.authentication.map(AuthenticationBody::read).transpose()?;
        let keys = given.as_ref().and_then(|given| given.keys.clone());
        if let Some(given) = given {
            identity.authentication = given.authentication;
        }
        identity.status_reason = self.status_reason;
        identity.managed_by = self.managed_by;
        set_place(identity, id, self.capabilities, self.device_scope, self.parent_scopes);
        let (primary, secondary) = keys.unwrap_or_else(|| {
            let key = |slot| identity.keys.key(slot).clone();
            (key(KeySlot::Primary), key(KeySlot::Secondary))
        });
        state.change_keys(id, primary, secondary)?;
        if id.module_id().is_none() {
            state.change_status(id, self.status.unwrap_or_default())?;
        }
        state.configure(id);
        Ok(())
    }
}

/// Capabilities and scopes. An edge device's own scope is made by the hub (IoT Hub documentation, "Identity
/// registry": deviceScope, generated for edge devices); for others it names the parent.
fn set_place(
    identity: &mut Identity,
    id: &IdentityId,
    capabilities: Option<Capabilities>,
    device_scope: Option<String>,
    parent_scopes: Option<Vec<String>>,
) {
    identity.iot_edge = capabilities.is_some_and(|capabilities| capabilities.iot_edge);
    let own = || format!("ms-azure-iot-edge://{}-{}", id.device_id(), identity.generation_id);
    let device_scope = device_scope.or_else(|| identity.iot_edge.then(own));
    let parent_scopes = parent_scopes.unwrap_or_default();
    identity.scope = (device_scope.is_some() || !parent_scopes.is_empty())
        .then(|| Box::new(Scope { device_scope, parent_scopes }));
}

/// An identity as the real hub shows it `now`.
pub(super) fn view(id: &IdentityId, identity: &Identity, now: Moment) -> Value {
    let key = |slot| match &identity.authentication {
        Authentication::Sas => Some(identity.keys.key(slot).encode()),
        Authentication::SelfSigned(_) | Authentication::CertificateAuthority | Authentication::None => None,
    };
    let mut view = json!({
        "deviceId": id.device_id(),
        "generationId": identity.generation_id,
        "etag": identity.etag,
        "connectionState": identity.connection_state(),
        "connectionStateUpdatedTime": identity.connection_updated.as_deref().unwrap_or(NEVER),
        "lastActivityTime": identity.last_activity.as_deref().unwrap_or(NEVER),
        "cloudToDeviceMessageCount": identity.queue.len(now),
        "authentication": {
            "symmetricKey": {"primaryKey": key(KeySlot::Primary), "secondaryKey": key(KeySlot::Secondary)},
            "x509Thumbprint": identity.authentication.thumbprints_view(),
            "type": identity.authentication.name(),
        },
    });
    let mut more = match id.module_id() {
        Some(module) => json!({"moduleId": module, "managedBy": identity.managed_by}),
        None => json!({
            "status": identity.status,
            "statusReason": identity.status_reason,
            "statusUpdatedTime": identity.status_updated.as_deref().unwrap_or(NEVER),
            "capabilities": {"iotEdge": identity.iot_edge},
        }),
    };
    if let (Value::Object(more), Some(scope)) = (&mut more, &identity.scope) {
        more.extend(
            scope.device_scope.as_ref().map(|scope| ("deviceScope".to_owned(), scope.as_str().into())),
        );
        more.insert("parentScopes".to_owned(), scope.parent_scopes.as_slice().into());
    }
    if let (Value::Object(view), Value::Object(more)) = (&mut view, more) {
        view.extend(more);
    }
    view
}
