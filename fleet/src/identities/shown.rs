//! Identities for people and programs, with fingerprints in place of keys.

use serde_json::{Value, json};
use twinkey_contract::Identity;

use crate::failure::{Exit, Failure};
use crate::hub::{Device, RegistryKey};
use crate::output::{self, Format, Table};

pub(super) fn one(device: &Device, format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => output::json(&without_keys(device, true))?,
        Format::Table => output::table(&table(std::slice::from_ref(device), true))?,
    }
    Ok(Exit::Done)
}

pub(super) fn many(devices: &[Device], are_keys_read: bool, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let shown = devices.iter().map(|device| without_keys(device, are_keys_read));
            output::json(&shown.collect::<Vec<_>>())
        }
        Format::Table => output::table(&table(devices, are_keys_read)),
    }
}

/// `fields` of this identity, as JSON.
pub(super) fn named(identity: &Identity, mut fields: Value) -> Value {
    if let Some(map) = fields.as_object_mut() {
        map.insert("deviceId".to_owned(), json!(identity.device_id));
        map.extend(identity.module_id.iter().map(|id| ("moduleId".to_owned(), json!(id))));
    }
    fields
}

fn table(devices: &[Device], are_keys_read: bool) -> Table {
    let of_modules = devices.iter().any(|device| device.module_id.is_some());
    let mut table = Table::new(if of_modules {
        &["DEVICE/MODULE", "CONNECTION", "AUTHENTICATION", "PRIMARY", "SECONDARY", "ETAG"]
    } else {
        &["DEVICE", "STATUS", "CONNECTION", "AUTHENTICATION", "PRIMARY", "SECONDARY", "ETAG"]
    });
    for device in devices {
        let [primary, secondary] = fingerprints(device).map(|text| match text {
            _ if !are_keys_read => "not read".to_owned(),
            text => text.unwrap_or_else(|| "-".to_owned()),
        });
        let dash = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
        let status = (!of_modules).then(|| dash(device.status.as_deref()));
        let rest = [
            dash(device.connection_state.as_deref()),
            dash(device.authentication.kind.as_deref()),
            primary,
            secondary,
            dash(device.etag.as_deref()),
        ];
        table.push([device.identity().to_string()].into_iter().chain(status).chain(rest));
    }
    table
}

/// The identity as the hub shows it. Fingerprints are null where there is no key, and left out where keys were not read.
fn without_keys(device: &Device, are_keys_read: bool) -> Value {
    let mut authentication = json!({"type": device.authentication.kind});
    if are_keys_read && let Some(map) = authentication.as_object_mut() {
        let [primary, secondary] = fingerprints(device);
        map.insert("primaryFingerprint".to_owned(), json!(primary));
        map.insert("secondaryFingerprint".to_owned(), json!(secondary));
    }
    let mut shown = named(
        &device.identity(),
        json!({
            "etag": device.etag,
            "status": device.status,
            "connectionState": device.connection_state,
            "authentication": authentication,
        }),
    );
    if let Some(map) = shown.as_object_mut() {
        map.extend(device.rest.clone());
    }
    shown
}

/// Of the primary and the secondary key; `None` where there is none.
fn fingerprints(device: &Device) -> [Option<String>; 2] {
    let text = |key: &RegistryKey| match key {
        RegistryKey::Absent => None,
        RegistryKey::Unreadable => Some("unreadable".to_owned()),
        RegistryKey::Key(_) => key.fingerprint().map(|print| print.to_string()),
    };
    match &device.authentication.symmetric_key {
        Some(keys) => [text(&keys.primary_key), text(&keys.secondary_key)],
        None => [None, None],
    }
}
