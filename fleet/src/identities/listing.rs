//! Lists: up to 1000 devices come with their keys in one call; more are found page by page, without.

use serde_json::Value;
use twinkey_contract::Identity;

use super::{device_of, shown};
use crate::cli::{ListArgs, ModuleListArgs, Top};
use crate::failure::{Exit, Failure};
use crate::hub::{Collection, Columns, Device, Hub, Query};
use crate::output::{self, Format};
use crate::secrets::log_in;

/// Most identities that a hub lists at once (IoT Hub REST, Devices - Get Devices).
pub(crate) const REGISTRY_LIST_MAX: u16 = 1000;
pub(super) async fn devices(args: &ListArgs, format: Format) -> Result<Exit, Failure> {
    let hub = log_in(&args.hub)?;
    let in_one_call = match args.top {
        Top::First(count) => u16::try_from(count).ok().filter(|count| *count <= REGISTRY_LIST_MAX),
        Top::All => None,
    };
    let (devices, are_keys_read) = match in_one_call {
        Some(count) => (hub.devices(count).await?, true),
        None => found(&hub, args).await?,
    };
    shown::many(&devices, are_keys_read, format)?;
    if !are_keys_read && !devices.is_empty() {
        output::note(
            "fingerprints were not read: queries show no keys; --keys reads them, one device after the other",
        );
    }
    if let Top::First(count) = args.top
        && devices.len() >= count
    {
        output::note(&format!("the first {} devices; there may be more: --top all", devices.len()));
    }
    Ok(Exit::Done)
}

pub(super) async fn modules(args: &ModuleListArgs, format: Format) -> Result<Exit, Failure> {
    let hub = log_in(&args.hub)?;
    let modules = hub.modules(&device_of(&args.device_id)?.device_id).await?;
    shown::many(&modules, true, format)?;
    Ok(Exit::Done)
}

/// By query, and whether keys were read. A fleet that fits into one call after all is read in one.
async fn found(hub: &Hub, args: &ListArgs) -> Result<(Vec<Device>, bool), Failure> {
    let few = hub.devices(REGISTRY_LIST_MAX).await?;
    if few.len() < usize::from(REGISTRY_LIST_MAX) {
        return Ok((few, true));
    }
    let wanted = match args.top {
        Top::First(count) => count,
        Top::All => usize::MAX,
    };
    let mut devices = Vec::new();
    let mut reading = hub.reading(Query::new(Collection::Devices, Columns::Identity, None));
    while devices.len() < wanted {
        let Some(part) = reading.next().await? else { break };
        let room = wanted - devices.len();
        devices.extend(part.twins.into_iter().filter_map(device_of_row).take(room));
    }
    if !args.keys {
        return Ok((devices, false));
    }
    let mut with_keys = Vec::with_capacity(devices.len());
    for device in devices {
        let identity: Identity = device.identity();
        match hub.device(&identity).await {
            Ok(device) => with_keys.push(device),
            // Deleted since the query.
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((with_keys, true))
}

/// A query's row is an identity, but for the name of one field.
fn device_of_row(mut row: Value) -> Option<Device> {
    let fields = row.as_object_mut()?;
    if let Some(kind) = fields.remove("authenticationType") {
        fields.insert("authentication".to_owned(), serde_json::json!({"type": kind}));
    }
    serde_json::from_value(row).ok()
}
