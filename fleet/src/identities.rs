//! `device-identity create|show|list|delete|connection-string`. Keys are shown as fingerprints.

use serde_json::{Value, json};
use twinkey_contract::Identity;
use twinkey_contract::connection_string::DeviceConnectionString;

use crate::cli::{ConnectionStringArgs, CreateArgs, DeleteArgs, DeviceStatus, ListArgs, OneDevice, SlotName};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::hub::{Device, RegistryKey};
use crate::output::{self, Format, Table};
use crate::secrets::{self, log_in};

pub(crate) async fn create(args: &CreateArgs, format: Format) -> Result<Exit, Failure> {
    let is_enabled = match args.status {
        DeviceStatus::Enabled => true,
        DeviceStatus::Disabled => false,
    };
    let device =
        log_in(&args.device.hub)?.create_device(&device_of(&args.device.device_id)?, is_enabled).await?;
    print_one(&device, format)
}

pub(crate) async fn show(args: &OneDevice, format: Format) -> Result<Exit, Failure> {
    let device = log_in(&args.hub)?.device(&device_of(&args.device_id)?).await?;
    print_one(&device, format)
}

pub(crate) async fn list(args: &ListArgs, format: Format) -> Result<Exit, Failure> {
    let devices = log_in(&args.hub)?.devices(args.top).await?;
    match format {
        Format::Json => output::json(&devices.iter().map(without_keys).collect::<Vec<_>>())?,
        Format::Table => print_table(&devices)?,
    }
    if devices.len() >= usize::from(args.top) {
        output::note(&format!("the first {} devices; there may be more", devices.len()));
    }
    Ok(Exit::Done)
}

pub(crate) async fn delete(args: &DeleteArgs, format: Format) -> Result<Exit, Failure> {
    let hub = log_in(&args.device.hub)?;
    let id = &args.device.device_id;
    if !args.yes {
        confirm(&format!("Delete {id}, its keys and its twin?"))?;
    }
    hub.delete_device(&device_of(id)?, args.etag.as_deref()).await?;
    match format {
        Format::Table => output::line(&format!("deleted {id}"))?,
        Format::Json => output::json(&json!({"deviceId": id, "deleted": true}))?,
    }
    Ok(Exit::Done)
}

pub(crate) async fn connection_string(args: &ConnectionStringArgs, format: Format) -> Result<Exit, Failure> {
    let hub = log_in(&args.device.hub)?;
    let id = &args.device.device_id;
    let identity = device_of(id)?;
    let device = hub.device(&identity).await?;
    let keys = device.keys().ok_or_else(|| Failure::failed(format!("{id} has no pair of symmetric keys")))?;
    let key = match args.key_type {
        SlotName::Primary => keys.primary,
        SlotName::Secondary => keys.secondary,
    };
    let host_name = hub.host_name().to_owned();
    let text = DeviceConnectionString { host_name, identity, key, gateway_host_name: None }.expose();
    if let Some(path) = &args.destination.out {
        secrets::write_new_file(path, &format!("{}\n", text.as_str()))?;
        match format {
            Format::Table => output::line(&format!("written to {}", path.display()))?,
            Format::Json => output::json(&json!({"deviceId": id, "file": path}))?,
        }
    } else {
        match format {
            Format::Table => output::line(&text)?,
            Format::Json => output::json(&json!({"connectionString": text.as_str()}))?,
        }
    }
    Ok(Exit::Done)
}

fn device_of(id: &str) -> Result<Identity, Failure> {
    Identity::new(id, None).map_err(|e| Failure::usage(e.to_string()))
}

fn print_one(device: &Device, format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => output::json(&without_keys(device))?,
        Format::Table => print_table(std::slice::from_ref(device))?,
    }
    Ok(Exit::Done)
}

fn print_table(devices: &[Device]) -> Result<(), Failure> {
    let mut table =
        Table::new(&["DEVICE", "STATUS", "CONNECTION", "AUTHENTICATION", "PRIMARY", "SECONDARY", "ETAG"]);
    for device in devices {
        let (primary, secondary) = fingerprints(device);
        let dash = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
        table.push([
            device.device_id.clone(),
            dash(device.status.as_deref()),
            dash(device.connection_state.as_deref()),
            dash(device.authentication.kind.as_deref()),
            primary,
            secondary,
            dash(device.etag.as_deref()),
        ]);
    }
    output::table(&table)
}

/// The identity as the hub shows it, with fingerprints in place of keys.
fn without_keys(device: &Device) -> Value {
    let (primary, secondary) = fingerprints(device);
    let mut shown = json!({
        "deviceId": device.device_id,
        "etag": device.etag,
        "status": device.status,
        "connectionState": device.connection_state,
        "authentication": {
            "type": device.authentication.kind,
            "primaryFingerprint": primary,
            "secondaryFingerprint": secondary,
        },
    });
    if let Some(map) = shown.as_object_mut() {
        map.extend(device.rest.clone());
    }
    shown
}

fn fingerprints(device: &Device) -> (String, String) {
    let text = |key: &RegistryKey| match key {
        RegistryKey::Absent => "-".to_owned(),
        RegistryKey::Unreadable => "unreadable".to_owned(),
        RegistryKey::Key(_) => key.fingerprint().map_or_else(String::new, |print| print.to_string()),
    };
    match &device.authentication.symmetric_key {
        Some(keys) => (text(&keys.primary_key), text(&keys.secondary_key)),
        None => ("-".to_owned(), "-".to_owned()),
    }
}
