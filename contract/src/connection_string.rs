//! Connection strings, as the Azure portal and CLI give them out:
//! `HostName=…;DeviceId=…[;ModuleId=…];SharedAccessKey=…[;GatewayHostName=…]` for a device or module, and
//! `HostName=…;SharedAccessKeyName=…;SharedAccessKey=…` for a hub's policy.
//!
//! Split at `;`, then at the first `=`, since keys end in `=` (azure-iot-sdk-python `connection_string.py`). Names are
//! case-sensitive, as in the SDKs. White space around the whole and one `;` at its end are tolerated.

use std::fmt;

use thiserror::Error;
use twinkey_sas::{Key, KeyError};
use zeroize::Zeroizing;

use crate::{Identity, IdentityError};

/// Longest connection string that is read, in bytes: all parts at their longest take less than half of it.
pub const CONNECTION_STRING_LEN_MAX: usize = 2048;

/// Longest host name in bytes (RFC 1035 §2.3.4).
const HOST_NAME_LEN_MAX: usize = 253;

/// Longest part of a host name between dots, in bytes (RFC 1035 §2.3.4).
const HOST_LABEL_LEN_MAX: usize = 63;

/// Longest policy name in bytes (Azure portal: 64 characters).
const POLICY_NAME_LEN_MAX: usize = 64;

/// Longest unknown name that an error quotes, in bytes: shorter than the base64 of the shortest key, which would stand
/// in a name's place if its own name was lost.
const QUOTED_NAME_LEN_MAX: usize = 20;

/// Either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionString {
    /// A device's or module's.
    Device(DeviceConnectionString),
    /// A hub policy's.
    Service(ServiceConnectionString),
}

/// What a device or module needs to connect. `Debug` shows nothing of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConnectionString {
    /// The hub, with a port if one was given.
    pub host_name: String,
    /// Who connects.
    pub identity: Identity,
    /// One of its two keys.
    pub key: Key,
    /// The edge gateway to connect through, with a port if one was given.
    pub gateway_host_name: Option<String>,
}

/// What the operator needs to call a hub. `Debug` shows nothing of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConnectionString {
    /// The hub, with a port if one was given.
    pub host_name: String,
    /// The shared access policy.
    pub policy_name: String,
    /// One of the policy's two keys.
    pub key: Key,
}

impl ConnectionString {
    /// Reads either kind.
    ///
    /// # Errors
    /// [`ConnectionStringError`].
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        let parts = Parts::split(text)?;
        let host_name = parts
            .host_name(Part::HostName)?
            .ok_or(ConnectionStringError::Missing { part: Part::HostName })?;
        let require = |part| parts.value(part).ok_or(ConnectionStringError::Missing { part });
        let key = || Key::from_base64(require(Part::SharedAccessKey)?).map_err(ConnectionStringError::Key);
        match (parts.value(Part::DeviceId), parts.value(Part::SharedAccessKeyName)) {
            (Some(_), Some(_)) => Err(ConnectionStringError::TwoKinds),
            (None, None) => Err(ConnectionStringError::NoKind),
            (Some(device_id), None) => Ok(Self::Device(DeviceConnectionString {
                host_name,
                identity: Identity::new(device_id, parts.value(Part::ModuleId))?,
                key: key()?,
                gateway_host_name: parts.host_name(Part::GatewayHostName)?,
            })),
            (None, Some(policy_name)) => {
                if let Some(part) = [Part::ModuleId, Part::GatewayHostName]
                    .into_iter()
                    .find(|&part| parts.value(part).is_some())
                {
                    return Err(ConnectionStringError::NotInService { part });
                }
                if policy_name.len() > POLICY_NAME_LEN_MAX
                    || !policy_name.bytes().all(|c| (b'!'..=b'~').contains(&c))
                {
                    return Err(ConnectionStringError::PolicyName);
                }
                Ok(Self::Service(ServiceConnectionString {
                    host_name,
                    policy_name: policy_name.to_owned(),
                    key: key()?,
                }))
            }
        }
    }
}

impl DeviceConnectionString {
    /// Reads a device's or module's connection string.
    ///
    /// # Errors
    /// [`ConnectionStringError`]; [`ConnectionStringError::NotADevice`] for a hub policy's.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        match ConnectionString::parse(text)? {
            ConnectionString::Device(device) => Ok(device),
            ConnectionString::Service(_) => Err(ConnectionStringError::NotADevice),
        }
    }

    /// The text, key included; wiped on drop.
    pub fn expose(&self) -> Zeroizing<String> {
        let mut parts =
            vec![(Part::HostName, self.host_name.as_str()), (Part::DeviceId, &self.identity.device_id)];
        parts.extend(self.identity.module_id.as_deref().map(|id| (Part::ModuleId, id)));
        let mut base64 = Zeroizing::new([0; 88]);
        parts.push((Part::SharedAccessKey, self.key.expose_base64(&mut base64)));
        parts.extend(self.gateway_host_name.as_deref().map(|host| (Part::GatewayHostName, host)));
        join(&parts)
    }
}

impl ServiceConnectionString {
    /// Reads a hub policy's connection string.
    ///
    /// # Errors
    /// [`ConnectionStringError`]; [`ConnectionStringError::NotAService`] for a device's.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        match ConnectionString::parse(text)? {
            ConnectionString::Service(service) => Ok(service),
            ConnectionString::Device(_) => Err(ConnectionStringError::NotAService),
        }
    }

    /// The text, key included; wiped on drop.
    pub fn expose(&self) -> Zeroizing<String> {
        let mut base64 = Zeroizing::new([0; 88]);
        join(&[
            (Part::HostName, &self.host_name),
            (Part::SharedAccessKeyName, &self.policy_name),
            (Part::SharedAccessKey, self.key.expose_base64(&mut base64)),
        ])
    }
}

/// A part of a connection string, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `HostName`.
    HostName,
    /// `DeviceId`.
    DeviceId,
    /// `ModuleId`.
    ModuleId,
    /// `SharedAccessKeyName`.
    SharedAccessKeyName,
    /// `SharedAccessKey`.
    SharedAccessKey,
    /// `GatewayHostName`.
    GatewayHostName,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::HostName,
        Self::DeviceId,
        Self::ModuleId,
        Self::SharedAccessKeyName,
        Self::SharedAccessKey,
        Self::GatewayHostName,
    ];

    /// The name in the text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HostName => "HostName",
            Self::DeviceId => "DeviceId",
            Self::ModuleId => "ModuleId",
            Self::SharedAccessKeyName => "SharedAccessKeyName",
            Self::SharedAccessKey => "SharedAccessKey",
            Self::GatewayHostName => "GatewayHostName",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which part of a connection string is wrong and what to do. Never quotes a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectionStringError {
    /// Nothing there.
    #[error(
        "the connection string is empty: copy it from the portal, or from `device-identity connection-string`"
    )]
    Empty,
    /// Longer than any.
    #[error(
        "the connection string has {len} bytes, more than the {max} that one can have: is this the right file?"
    )]
    TooLong {
        /// Bytes.
        len: usize,
        /// [`CONNECTION_STRING_LEN_MAX`].
        max: usize,
    },
    /// A part has no `=`.
    #[error("part {position} of the connection string has no `=`: copy it again, whole and on one line")]
    NoEquals {
        /// From 1.
        position: usize,
    },
    /// A part that nobody knows, with its name if that can't be a piece of a key.
    #[error(
        "part {position} of the connection string{} is not understood: known are HostName, DeviceId, ModuleId, \
         SharedAccessKeyName, SharedAccessKey and GatewayHostName",
        .name.as_ref().map(|name| format!(", {name},")).unwrap_or_default()
    )]
    Unknown {
        /// From 1.
        position: usize,
        /// Letters only.
        name: Option<String>,
    },
    /// A known name in other case.
    #[error(
        "the connection string's part {part} is written in other case: names are case-sensitive, write {part}"
    )]
    Case {
        /// Which.
        part: Part,
    },
    /// A part is there twice.
    #[error("the connection string has the part {part} twice: is it two connection strings in one?")]
    Duplicate {
        /// Which.
        part: Part,
    },
    /// A part without value.
    #[error("the connection string's part {part} is empty: copy it again, whole")]
    EmptyValue {
        /// Which.
        part: Part,
    },
    /// A part is missing.
    #[error("the connection string lacks the part {part}: copy it again, whole")]
    Missing {
        /// Which.
        part: Part,
    },
    /// Neither a device's nor a policy's.
    #[error(
        "the connection string names neither a device (DeviceId) nor a hub policy (SharedAccessKeyName): copy it again, whole"
    )]
    NoKind,
    /// A device that connects with a policy's key.
    #[error(
        "the connection string names a device and a hub policy: give the device a key of its own, and its connection string"
    )]
    TwoKinds,
    /// A part that only a device's has.
    #[error(
        "the connection string's part {part} belongs to a device's, but this is a hub policy's: leave it out"
    )]
    NotInService {
        /// Which.
        part: Part,
    },
    /// A policy's where a device's is needed.
    #[error(
        "this is a hub policy's connection string, a device's or module's is needed: `device-identity connection-string` gives it"
    )]
    NotADevice,
    /// A device's where a policy's is needed.
    #[error(
        "this is a device's connection string, a hub policy's is needed: the portal has it under shared access policies"
    )]
    NotAService,
    /// Not a host name.
    #[error(
        "the connection string's part {part} is no host name with an optional port: leave out https:// and anything after the name"
    )]
    HostName {
        /// `HostName` or `GatewayHostName`.
        part: Part,
    },
    /// Not a policy name.
    #[error(
        "the connection string's part SharedAccessKeyName is no name of a policy: up to 64 printable characters without spaces"
    )]
    PolicyName,
    /// Not an id.
    #[error("the connection string is wrong: {0}")]
    Identity(#[from] IdentityError),
    /// Not a key.
    #[error("the connection string's part SharedAccessKey is wrong: {0}")]
    Key(#[from] KeyError),
}

/// The values of the known parts, in the order of [`Part::ALL`].
struct Parts<'t>([Option<&'t str>; Part::ALL.len()]);

impl<'t> Parts<'t> {
    fn split(text: &'t str) -> Result<Self, ConnectionStringError> {
        let text = text.trim();
        if text.len() > CONNECTION_STRING_LEN_MAX {
            return Err(ConnectionStringError::TooLong { len: text.len(), max: CONNECTION_STRING_LEN_MAX });
        }
        let text = text.strip_suffix(';').unwrap_or(text);
        if text.is_empty() {
            return Err(ConnectionStringError::Empty);
        }
        let mut values = [None; Part::ALL.len()];
        for (position, piece) in (1..).zip(text.split(';')) {
            let (name, value) = piece.split_once('=').ok_or(ConnectionStringError::NoEquals { position })?;
            let (part, seen) = Part::ALL
                .into_iter()
                .zip(&mut values)
                .find(|(part, _)| part.as_str() == name)
                .ok_or_else(|| name_error(name, position))?;
            if value.is_empty() {
                return Err(ConnectionStringError::EmptyValue { part });
            }
            if seen.replace(value).is_some() {
                return Err(ConnectionStringError::Duplicate { part });
            }
        }
        Ok(Self(values))
    }

    fn value(&self, part: Part) -> Option<&'t str> {
        Part::ALL.into_iter().zip(self.0).find_map(|(known, value)| if known == part { value } else { None })
    }

    fn host_name(&self, part: Part) -> Result<Option<String>, ConnectionStringError> {
        match self.value(part) {
            Some(host) if is_host_name(host) => Ok(Some(host.to_owned())),
            Some(_) => Err(ConnectionStringError::HostName { part }),
            None => Ok(None),
        }
    }
}

fn name_error(name: &str, position: usize) -> ConnectionStringError {
    if let Some(part) = Part::ALL.into_iter().find(|part| part.as_str().eq_ignore_ascii_case(name.trim())) {
        return ConnectionStringError::Case { part };
    }
    let is_word =
        (1..=QUOTED_NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_alphabetic());
    ConnectionStringError::Unknown { position, name: is_word.then(|| name.to_owned()) }
}

/// Letters, digits, `-` and `_` between single dots (RFC 1123 §2.1, and `_` as in container networks), and `:port`.
fn is_host_name(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        (1..=HOST_LABEL_LEN_MAX).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    let is_port = |port: &str| {
        port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    };
    host.len() <= HOST_NAME_LEN_MAX && host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn join(parts: &[(Part, &str)]) -> Zeroizing<String> {
    let len = parts.iter().map(|(part, value)| part.as_str().len() + value.len() + 2).sum();
    // The whole size at once: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(len));
    for (part, value) in parts {
        if !text.is_empty() {
            text.push(';');
        }
        text.push_str(part.as_str());
        text.push('=');
        text.push_str(value);
    }
    text
}
