//! `device-identity` and `module-identity`: create, show, list, delete, connection-string. Keys are shown as fingerprints.

mod listing;
mod shown;

pub(crate) use listing::REGISTRY_LIST_MAX;

use serde_json::json;
use twinkey_contract::Identity;
use twinkey_contract::connection_string::DeviceConnectionString;
use twinkey_contract::wiped::Wiped;

use crate::cli::{Destination, DeviceIdentity, DeviceStatus, HubArgs, ModuleIdentity, OneModule, SlotName};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::secrets::{self, log_in};

/// What is asked of devices. Renewing their keys is not done here.
pub(crate) async fn of_devices(command: DeviceIdentity, format: Format) -> Result<Exit, Failure> {
    match command {
        DeviceIdentity::Create(args) => {
            let is_enabled = match args.status {
                DeviceStatus::Enabled => true,
                DeviceStatus::Disabled => false,
            };
            create(&args.device.hub, &device_of(&args.device.device_id)?, is_enabled, format).await
        }
        DeviceIdentity::Show(args) => show(&args.hub, &device_of(&args.device_id)?, format).await,
        DeviceIdentity::List(args) => listing::devices(&args, format).await,
        DeviceIdentity::Delete(args) => {
            let identity = device_of(&args.device.device_id)?;
            delete(&args.device.hub, &identity, args.etag.as_deref(), args.yes, format).await
        }
        DeviceIdentity::ConnectionString(args) => {
            let identity = device_of(&args.device.device_id)?;
            connection_string(&args.device.hub, identity, args.key_type, &args.destination, format).await
        }
        DeviceIdentity::RenewKey(args) => crate::renew::devices(args, format).await,
    }
}

/// What is asked of modules.
pub(crate) async fn of_modules(command: ModuleIdentity, format: Format) -> Result<Exit, Failure> {
    match command {
        // A module is enabled as its device is.
        ModuleIdentity::Create(args) => create(&args.hub, &module_of(&args)?, true, format).await,
        ModuleIdentity::Show(args) => show(&args.hub, &module_of(&args)?, format).await,
        ModuleIdentity::List(args) => listing::modules(&args, format).await,
        ModuleIdentity::Delete(args) => {
            let identity = module_of(&args.module)?;
            delete(&args.module.hub, &identity, args.etag.as_deref(), args.yes, format).await
        }
        ModuleIdentity::ConnectionString(args) => {
            let identity = module_of(&args.module)?;
            connection_string(&args.module.hub, identity, args.key_type, &args.destination, format).await
        }
        ModuleIdentity::RenewKey(args) => crate::renew::modules(args, format).await,
    }
}

async fn create(
    hub: &HubArgs,
    identity: &Identity,
    is_enabled: bool,
    format: Format,
) -> Result<Exit, Failure> {
    let device = log_in(hub)?.create_device(identity, is_enabled).await?;
    shown::one(&device, format)
}

async fn show(hub: &HubArgs, identity: &Identity, format: Format) -> Result<Exit, Failure> {
    let device = log_in(hub)?.device(identity).await?;
    shown::one(&device, format)
}

async fn delete(
    hub: &HubArgs,
    identity: &Identity,
    etag: Option<&str>,
    is_sure: bool,
    format: Format,
) -> Result<Exit, Failure> {
    let hub = log_in(hub)?;
    if !is_sure {
        let and_modules = if identity.module_id.is_some() { "" } else { ", its modules" };
        confirm(&format!("Delete {identity}{and_modules}, its keys and its twin?"))?;
    }
    hub.delete_device(identity, etag).await?;
    match format {
        Format::Table => output::line(&format!("deleted {identity}"))?,
        Format::Json => output::json(&shown::named(identity, json!({"deleted": true})))?,
    }
    Ok(Exit::Done)
}

async fn connection_string(
    hub: &HubArgs,
    identity: Identity,
    key_type: SlotName,
    destination: &Destination,
    format: Format,
) -> Result<Exit, Failure> {
    let hub = log_in(hub)?;
    let device = hub.device(&identity).await?;
    let keys =
        device.keys().ok_or_else(|| Failure::failed(format!("{identity} has no pair of symmetric keys")))?;
    let key = match key_type {
        SlotName::Primary => keys.primary,
        SlotName::Secondary => keys.secondary,
    };
    let written = shown::named(&identity, json!({"file": destination.out}));
    let host_name = hub.host_name().to_owned();
    let text = DeviceConnectionString { host_name, identity, key, gateway_host_name: None }.expose();
    if let Some(path) = &destination.out {
        secrets::write_new_file(path, &format!("{}\n", text.as_str()))?;
        match format {
            Format::Table => output::line(&format!("written to {}", path.display()))?,
            Format::Json => output::json(&written)?,
        }
    } else {
        match format {
            Format::Table => output::line(&text)?,
            Format::Json => output::json(&Wiped::from(json!({"connectionString": text.as_str()})))?,
        }
    }
    Ok(Exit::Done)
}

fn device_of(id: &str) -> Result<Identity, Failure> {
    Identity::new(id, None).map_err(|e| Failure::usage(e.to_string()))
}

fn module_of(args: &OneModule) -> Result<Identity, Failure> {
    Identity::new(&args.device_id, Some(&args.module_id)).map_err(|e| Failure::usage(e.to_string()))
}
