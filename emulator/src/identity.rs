//! Names of devices and modules.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest device or module id in characters (IoT Hub documentation, "Identity registry").
const ID_LEN_MAX: usize = 128;

/// A device, or a module of one; in JSON as text like an MQTT client id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct IdentityId {
    device: String,
    module: Option<String>,
}

impl IdentityId {
    /// `None` unless the id is 1 to 128 of the characters that the registry allows.
    pub(crate) fn device(device: &str) -> Option<Self> {
        is_id(device).then(|| Self { device: device.to_owned(), module: None })
    }

    pub(crate) fn module(device: &str, module: &str) -> Option<Self> {
        (is_id(device) && is_id(module))
            .then(|| Self { device: device.to_owned(), module: Some(module.to_owned()) })
    }

    /// Reads `device` or `device/module`, which is also the grammar of an MQTT client id.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            None => Self::device(text),
            Some((device, module)) => Self::module(device, module),
        }
    }

    pub(crate) fn device_id(&self) -> &str {
        &self.device
    }

    pub(crate) fn module_id(&self) -> Option<&str> {
        self.module.as_deref()
    }

    /// The device itself, or the device that a module belongs to.
    pub(crate) fn owner(&self) -> Self {
        Self { device: self.device.clone(), module: None }
    }

    /// The path that a token for this identity names after the host.
    pub(crate) fn resource_path(&self) -> String {
        match &self.module {
            None => format!("/devices/{}", self.device),
            Some(module) => format!("/devices/{}/modules/{module}", self.device),
        }
    }
}

impl TryFrom<String> for IdentityId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("no identity")
    }
}

impl From<IdentityId> for String {
    fn from(id: IdentityId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            None => f.write_str(&self.device),
            Some(module) => write!(f, "{}/{module}", self.device),
        }
    }
}

/// What an id may have beside ASCII letters and digits (Azure SDK reference, `IotHubDeviceCreatedEventData`, `deviceId`;
/// it names the semicolon, which the page "Identity registry" leaves out).
pub(crate) const ID_SIGNS: &str = "-.%_#*?!(),:=@$'+;";

fn is_id(text: &str) -> bool {
    (1..=ID_LEN_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ID_SIGNS.contains(c))
}
