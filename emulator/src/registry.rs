//! The identity registry: devices and modules, and all that the hub keeps about each.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::authentication::Authentication;
use crate::cloud_to_device::Queue;
use crate::configurations::Configured;
use crate::hub::{Live, Session};
use crate::identity::IdentityId;
use crate::kept::Touched;
use crate::keys::SymmetricKeys;
use crate::refusal::{ErrorCode, Refusal};
use crate::twin::Twin;

/// Most devices and modules together, as in the real hub (IoT Hub documentation, "Quotas and throttling"). All are in
/// memory: a new device takes about 4 KB with a few tags, so that a million take 4 GB.
const IDENTITIES_MAX: usize = 1_000_000;
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
    pub(crate) authentication: Authentication,
    /// Kept whatever the authentication is; only `sas` uses them.
    pub(crate) keys: SymmetricKeys,
    pub(crate) iot_edge: bool,
    pub(crate) scope: Option<Box<Scope>>,
    /// Who manages a module, as its creator says.
    pub(crate) managed_by: Option<String>,
    pub(crate) twin: Twin,
    /// The digital twin model that the client last named in its user name; empty if none.
    pub(crate) model_id: String,
    pub(crate) last_activity: Option<String>,
    pub(crate) connection_updated: Option<String>,
    pub(crate) session: Option<Session>,
    pub(crate) queue: Queue,
    pub(crate) live: Option<Live>,
    /// It is played by the operator, and looks connected.
    pub(crate) is_puppet: bool,
    /// What configurations have made of the twin.
    pub(crate) configured: Option<Box<Configured>>,
}

/// Where a device stands in a hierarchy of gateways (IoT Hub documentation, "Create device scopes").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    pub(crate) device_scope: Option<String>,
    pub(crate) parent_scopes: Vec<String>,
}

impl Identity {
    pub(crate) fn connection_state(&self) -> &'static str {
        if self.is_connected() { "Connected" } else { "Disconnected" }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.live.is_some() || self.is_puppet
    }
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    identities: BTreeMap<IdentityId, Identity>,
    changes: u64,
    pub(crate) touched: Touched<IdentityId>,
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
    /// Reads the header; the SDKs send etags, and even `*`, with quotes or without. A weak etag
    /// (RFC 9110 §8.8.1) is taken as well: the REST reference calls the header's value one.
    pub(crate) fn parse(header: Option<&str>) -> Self {
        let value = header.map(str::trim).map(|value| match value.strip_prefix("W/") {
            Some(quoted) if quoted.starts_with('"') => quoted,
            Some(_) | None => value,
        });
        match value.map(|value| value.trim_matches('"')) {
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

    /// Puts an identity back that was kept.
    pub(crate) fn restore(&mut self, id: IdentityId, identity: Identity) {
        self.identities.insert(id, identity);
    }

    /// From now on, remembers what may have changed. Etags go on after `changes`.
    pub(crate) fn keep_track(&mut self, changes: u64) {
        self.changes = changes;
        self.touched.begin();
    }

    /// Counts every etag and generation id that was given out.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn find_mut(&mut self, id: &IdentityId) -> Option<&mut Identity> {
        self.touched.add(id);
        self.identities.get_mut(id)
    }

    /// The identity, or the hub's 404.
    pub(crate) fn expect_known(&mut self, id: &IdentityId) -> Result<&mut Identity, Refusal> {
        self.touched.add(id);
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
            authentication: Authentication::default(),
            keys,
            iot_edge: false,
            scope: None,
            managed_by: None,
            twin: Twin::new(timestamp),
            model_id: String::new(),
            last_activity: None,
            connection_updated: None,
            session: None,
            queue: Queue::default(),
            live: None,
            is_puppet: false,
            configured: None,
        };
        self.touched.add(id);
        Ok(self.identities.entry(id.clone()).or_insert(identity))
    }

    pub(crate) fn remove(&mut self, id: &IdentityId) {
        self.touched.add(id);
        self.identities.remove(id);
    }

    /// Everything after `after` in the order of ids, modules behind their device.
    pub(crate) fn after(&self, after: Option<&IdentityId>) -> impl Iterator<Item = (&IdentityId, &Identity)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.identities.range((from, std::ops::Bound::Unbounded))
    }

    /// Like [`after`](Self::after), but of the devices in `named` and their modules only, if it is given; `named` is sorted.
    pub(crate) fn some_after<'r>(
        &'r self,
        named: Option<&'r [IdentityId]>,
        after: Option<&'r IdentityId>,
    ) -> Box<dyn Iterator<Item = (&'r IdentityId, &'r Identity)> + 'r> {
        let Some(named) = named else {
            return Box::new(self.after(after));
        };
        let family = |device: &'r IdentityId| {
            self.identities.range(device..).take_while(|(id, _)| id.device_id() == device.device_id())
        };
        let is_after = move |id: &IdentityId| after.is_none_or(|after| id > after);
        Box::new(named.iter().flat_map(family).filter(move |(id, _)| is_after(id)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_read_with_quotes_without_and_weak() {
        let etag = |text: &str| Precondition::Etag(text.to_owned());
        for (header, expected) in [
            (None, Precondition::None),
            (Some("\"\""), Precondition::None),
            (Some("W/\"\""), Precondition::None),
            (Some("\"*\""), Precondition::Any),
            (Some("AAAAAAAAAAE="), etag("AAAAAAAAAAE=")),
            (Some(" \"AAAAAAAAAAE=\" "), etag("AAAAAAAAAAE=")),
            (Some("W/\"AAAAAAAAAAE=\""), etag("AAAAAAAAAAE=")),
            // Base64 may begin so.
            (Some("W/AA"), etag("W/AA")),
        ] {
            assert_eq!(Precondition::parse(header), expected, "{header:?}");
        }
    }
}
