//! `module-identity`: the same as `device-identity`, for the modules of a device.

use clap::{Args, Subcommand};

use super::{Destination, HubArgs, RenewModuleKeyArgs, SlotName, parse_device_id, parse_module_id};

#[derive(Debug, Subcommand)]
pub(crate) enum ModuleIdentity {
    /// Create a module of a device; the hub makes its keys.
    #[command(after_help = "Examples:\n  twinkey module-identity create -d gate-3 -m meter --login hub.txt")]
    Create(OneModule),
    /// Show a module. Keys are shown as fingerprints.
    #[command(
        after_help = "Examples:\n  twinkey module-identity show -d gate-3 -m meter --login hub.txt --output json"
    )]
    Show(OneModule),
    /// List the modules of a device. Keys are shown as fingerprints.
    #[command(after_help = "Examples:\n  twinkey module-identity list -d gate-3 --login hub.txt")]
    List(ModuleListArgs),
    /// Delete a module; it is cut off at once.
    #[command(
        after_help = "Examples:\n  twinkey module-identity delete -d gate-3 -m meter --login hub.txt --yes"
    )]
    Delete(ModuleDeleteArgs),
    /// Show a module's connection string, or write it to a file. It holds a key in plain text.
    #[command(after_help = "\
Examples:
  twinkey module-identity connection-string -d gate-3 -m meter --login hub.txt --out meter.txt
  twinkey module-identity connection-string -d gate-3 -m meter --login hub.txt --key-type secondary --show")]
    ConnectionString(ModuleConnectionStringArgs),
    /// Renew a key of modules, hand it to them, and wait until they have proved that they live on it.
    #[command(after_help = "\
As device-identity renew-key does it; a module that has no agent of its own is refused.

Examples:
  twinkey module-identity renew-key -d pump-7 -m meter --key-type secondary --login hub.txt
  twinkey module-identity renew-key -d pump-7 -m '*' --key-type primary --yes --login hub.txt")]
    RenewKey(RenewModuleKeyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct OneModule {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The device.
    #[arg(long, short, value_name = "ID", value_parser = parse_device_id)]
    pub(crate) device_id: String,
    /// Its module.
    #[arg(long, short, value_name = "ID", value_parser = parse_module_id)]
    pub(crate) module_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ModuleListArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The device.
    #[arg(long, short, value_name = "ID", value_parser = parse_device_id)]
    pub(crate) device_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ModuleDeleteArgs {
    #[command(flatten)]
    pub(crate) module: OneModule,
    /// Only if the identity still has this etag.
    #[arg(long, short)]
    pub(crate) etag: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ModuleConnectionStringArgs {
    #[command(flatten)]
    pub(crate) module: OneModule,
    /// The key that goes into it.
    #[arg(long, alias = "kt", value_enum, default_value = "primary")]
    pub(crate) key_type: SlotName,
    #[command(flatten)]
    pub(crate) destination: Destination,
}
