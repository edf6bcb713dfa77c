//! Whose keys are renewed: named, or all with `*`, as az has it.

use serde_json::Value;
use twinkey_contract::Identity;

use crate::failure::Failure;
use crate::hub::{Collection, Columns, Device, Hub, Query};

/// Those that authenticate by keys.
const BY_KEYS: &str = "authenticationType = 'sas'";
/// Stands for all.
pub(crate) const ALL: &str = "*";

/// The devices that `ids` name, with their modules where so wished. `*` stands for all that authenticate by keys.
pub(super) async fn devices(
    hub: &Hub,
    ids: &[String],
    includes_modules: bool,
) -> Result<Vec<Identity>, Failure> {
    let is_all = ids.iter().any(|id| id == ALL);
    let mut found = if is_all {
        query(hub, Collection::Devices).await?
    } else {
        ids.iter().map(|id| identity(id, None)).collect::<Result<Vec<_>, _>>()?
    };
    if includes_modules && is_all {
        found.extend(query(hub, Collection::Modules).await?);
    } else if includes_modules {
        for id in ids {
            found.extend(of_device(hub, id).await?);
        }
    }
    some(distinct(found), "the hub has no device that authenticates by symmetric keys")
}

/// The modules of a device that `ids` name. `*` stands for all that authenticate by keys.
pub(super) async fn modules(hub: &Hub, device_id: &str, ids: &[String]) -> Result<Vec<Identity>, Failure> {
    let found = if ids.iter().any(|id| id == ALL) {
        of_device(hub, device_id).await?
    } else {
        ids.iter().map(|id| identity(device_id, Some(id))).collect::<Result<Vec<_>, _>>()?
    };
    some(distinct(found), &format!("{device_id} has no module that authenticates by symmetric keys"))
}

async fn of_device(hub: &Hub, device_id: &str) -> Result<Vec<Identity>, Failure> {
    let modules = hub.modules(device_id).await?;
    Ok(modules.iter().filter(|module| module.keys().is_some()).map(Device::identity).collect())
}

async fn query(hub: &Hub, collection: Collection) -> Result<Vec<Identity>, Failure> {
    let found = hub.query_all(Query::new(collection, Columns::Identity, Some(BY_KEYS))).await?;
    let text = |item: &Value, name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
    found
        .twins
        .iter()
        .filter_map(|item| Some((text(item, "deviceId")?, text(item, "moduleId"))))
        .map(|(device, module)| identity(&device, module.as_deref()))
        .collect()
}

fn identity(device_id: &str, module_id: Option<&str>) -> Result<Identity, Failure> {
    Identity::new(device_id, module_id).map_err(|e| Failure::usage(e.to_string()))
}

fn distinct(identities: Vec<Identity>) -> Vec<Identity> {
    let mut seen = std::collections::HashSet::new();
    identities.into_iter().filter(|identity| seen.insert(identity.clone())).collect()
}

fn some(found: Vec<Identity>, otherwise: &str) -> Result<Vec<Identity>, Failure> {
    if found.is_empty() {
        return Err(Failure::usage(otherwise).next("look at what is there: twinkey device-identity list"));
    }
    Ok(found)
}
