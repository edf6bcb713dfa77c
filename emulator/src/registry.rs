//! The identity registry: devices and modules, and all that the hub keeps about each.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::cloud_to_device::Queue;
use crate::hub::{Live, Session};
use crate::identity::IdentityId;
use crate::keys::SymmetricKeys;
use crate::refusal::{ErrorCode, Refusal};
use crate::twin::Twin;

/// Most devices and modules together: the emulator keeps all of them in memory, and a twin may have 72 KiB.
const IDENTITIES_MAX: usize = 50_000;
/// Most modules of one device (IoT Hub documentation, "Quotas and throttling").
const MODULES_MAX: usize = 50;

/// Whether a device may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Status {
    #[default]
    Enabled,
    Disabled,
}

/// A device or module, with its twin, its queue and its connection.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) generation_id: String,
    pub(crate) etag: String,
    pub(crate) status: Status,
    pub(crate) status_reason: Option<String>,
    pub(crate) status_updated: Option<String>,
    pub(crate) keys: SymmetricKeys,
    pub(crate) iot_edge: bool,
    pub(crate) twin: Twin,
    pub(crate) last_activity: Option<String>,
    pub(crate) connection_updated: Option<String>,
    pub(crate) session: Option<Session>,
    pub(crate) queue: Queue,
    pub(crate) live: Option<Live>,
}

impl Identity {
    pub(crate) fn is_connected(&self) -> bool {
        self.live.is_some()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    identities: BTreeMap<IdentityId, Identity>,
    changes: u64,
}

/// What a request's `If-Match` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Precondition {
    /// No header.
    None,
    /// `*`: the thing has to exist.
    Any,
    /// The thing has to have this etag.
    Etag(String),
}

impl Precondition {
    /// Reads the header; the SDKs send etags, and even `*`, with quotes or without.
    pub(crate) fn parse(header: Option<&str>) -> Self {
        match header.map(|value| value.trim().trim_matches('"')) {
            None | Some("") => Self::None,
            Some("*") => Self::Any,
            Some(etag) => Self::Etag(etag.to_owned()),
        }
    }

    pub(crate) fn check(&self, etag: &str) -> Result<(), Refusal> {
        match self {
            Self::Etag(expected) if expected != etag => Err(Refusal::new(
                ErrorCode::PreconditionFailed,
                "the etag of If-Match is not the current one; read again and repeat",
            )),
            Self::None | Self::Any | Self::Etag(_) => Ok(()),
        }
    }
}

impl Registry {
    pub(crate) fn find(&self, id: &IdentityId) -> Option<&Identity> {
        self.identities.get(id)
    }

    pub(crate) fn find_mut(&mut self, id: &IdentityId) -> Option<&mut Identity> {
        self.identities.get_mut(id)
    }

    /// The identity, or the hub's 404.
    pub(crate) fn expect_known(&mut self, id: &IdentityId) -> Result<&mut Identity, Refusal> {
        self.identities.get_mut(id).ok_or_else(|| unknown(id))
    }

    /// Adds an identity with new keys unless some are given.
    pub(crate) fn create(
        &mut self,
        id: &IdentityId,
        keys: Option<SymmetricKeys>,
        timestamp: &str,
        unix_time: Duration,
    ) -> Result<&mut Identity, Refusal> {
        if self.identities.contains_key(id) {
            let code = match id.module_id() {
                None => ErrorCode::DeviceAlreadyExists,
                Some(_) => ErrorCode::ModuleAlreadyExists,
            };
            return Err(Refusal::new(code, format!("{id} is in the registry already")));
        }
        if id.module_id().is_some() {
            self.expect_known(&id.owner())?;
            if self.modules(&id.owner()).count() >= MODULES_MAX {
                let message = format!("a device has at most {MODULES_MAX} modules");
                return Err(Refusal::new(ErrorCode::TooManyModules, message));
            }
        }
        if self.identities.len() >= IDENTITIES_MAX {
            let message = format!("this emulator keeps at most {IDENTITIES_MAX} identities");
            return Err(Refusal::new(ErrorCode::TooManyDevices, message));
        }
        let keys = match keys {
            Some(keys) => keys,
            None => SymmetricKeys::generate()?,
        };
        let identity = Identity {
            generation_id: self.next_generation_id(unix_time),
            etag: self.next_etag(),
            status: Status::Enabled,
            status_reason: None,
            status_updated: None,
            keys,
            iot_edge: false,
            twin: Twin::new(timestamp),
            last_activity: None,
            connection_updated: None,
            session: None,
            queue: Queue::default(),
            live: None,
        };
        Ok(self.identities.entry(id.clone()).or_insert(identity))
    }

    pub(crate) fn remove(&mut self, id: &IdentityId) {
        self.identities.remove(id);
    }

    /// Everything after `after` in the order of ids, modules behind their device.
    pub(crate) fn after(&self, after: Option<&IdentityId>) -> impl Iterator<Item = (&IdentityId, &Identity)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.identities.range((from, std::ops::Bound::Unbounded))
    }

    pub(crate) fn modules(&self, device: &IdentityId) -> impl Iterator<Item = (&IdentityId, &Identity)> {
        self.after(Some(device)).take_while(|(id, _)| id.device_id() == device.device_id())
    }

    /// The ids of a device and its modules.
    pub(crate) fn family(&self, device: &IdentityId) -> Vec<IdentityId> {
        let modules = self.modules(device).map(|(id, _)| id.clone());
        std::iter::once(device.clone()).chain(modules).collect()
    }

    pub(crate) fn ids(&self) -> Vec<IdentityId> {
        self.identities.keys().cloned().collect()
    }

    /// An etag that no other identity or version has, in the real hub's form: base64 of a decimal number.
    pub(crate) fn next_etag(&mut self) -> String {
        /// An arbitrary start, so that etags look like the real hub's.
        const FIRST: u64 = 981_657_244;
        self.changes += 1;
        STANDARD.encode((FIRST + self.changes).to_string())
    }

    /// .NET ticks (100 ns since the year 1), as in the real hub; unique by the count of changes.
    fn next_generation_id(&mut self, unix_time: Duration) -> String {
        const UNIX_EPOCH_TICKS: u128 = 621_355_968_000_000_000;
        self.changes += 1;
        (UNIX_EPOCH_TICKS + unix_time.as_millis() * 10_000 + u128::from(self.changes)).to_string()
    }
}

pub(crate) fn unknown(id: &IdentityId) -> Refusal {
    match id.module_id() {
        None => Refusal::new(ErrorCode::DeviceNotFound, id.to_string()),
        Some(_) => Refusal::new(ErrorCode::ModuleNotFound, id.to_string()),
    }
}
