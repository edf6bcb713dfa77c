//! `fleet`: what is true of all devices.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{HubArgs, parse_duration};

#[derive(Debug, Subcommand)]
pub(crate) enum Fleet {
    /// Show which keys devices live on, how old they are, who lags behind, and what needs a look.
    #[command(after_help = "\
Reads twins and registry, changes nothing. Filters narrow what is listed, all of them together; the summary is about
all devices that were looked at. A mark names something that needs a look; docs/fleet-status.md explains each.

Keys are compared with the registry by fingerprint. One call reads up to 1000 devices with their keys; in a larger hub,
--registry reads each device by itself, and a hub takes 100 such reads a minute for each unit of tier S1 or S2, and 5000
in S3. Twins come in pages of 100, and a hub takes 20 pages a minute for each unit of S1 (quotas of IoT Hub).

Examples:
  twinkey fleet status --login hub.txt
  twinkey fleet status --target \"tags.site = 'north'\" --older-than 90d --sort age --reverse --login hub.txt
  twinkey fleet status --modules --html fleet.html --login hub.txt
  twinkey fleet status --output json --login hub.txt > today.json
  twinkey fleet status --since yesterday.json --marked --fail-on-marked --login hub.txt")]
    Status(StatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// Only these devices: a condition of the hub's query language, as after WHERE.
    #[arg(long, short, value_name = "CONDITION")]
    pub(crate) target: Option<String>,
    /// Look at modules too; the condition is asked of their own twins.
    #[arg(long)]
    pub(crate) modules: bool,
    /// Whether to compare with the registry's keys: where one call suffices, reading each identity, or not at all.
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto", default_missing_value = "each")]
    pub(crate) registry: RegistryReading,
    /// Compare with the JSON output of an earlier run.
    #[arg(long, value_name = "FILE")]
    pub(crate) since: Option<PathBuf>,
    /// Write a page for browsers as well; an existing file is replaced.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// No progress bar.
    #[arg(long)]
    pub(crate) no_progress: bool,
    /// Exit with 1 if any of the devices looked at has a mark.
    #[arg(long)]
    pub(crate) fail_on_marked: bool,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
}

/// What is listed, and in which order.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Listing")]
pub(crate) struct SelectionArgs {
    /// Only if the key in use is older; an unknown age counts as older.
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// Only if an offered key is not committed yet.
    #[arg(long)]
    pub(crate) lagging: bool,
    /// Only if something is marked.
    #[arg(long)]
    pub(crate) marked: bool,
    /// Only if no agent has reported.
    #[arg(long)]
    pub(crate) no_agent: bool,
    /// Only if not connected.
    #[arg(long)]
    pub(crate) disconnected: bool,
    /// The order; what is unknown comes last.
    #[arg(long, value_enum, default_value_t, value_name = "BY")]
    pub(crate) sort: SortBy,
    /// The other way round; what is unknown still comes last.
    #[arg(long)]
    pub(crate) reverse: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    /// Device, then module.
    #[default]
    Id,
    /// Age of the key in use, youngest first.
    Age,
    /// How long an offer has been standing, shortest first.
    Lag,
    /// Last contact, latest first.
    Contact,
    /// Version of the agent, lowest first.
    Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RegistryReading {
    /// Where few calls tell all keys.
    Auto,
    /// Every identity, if need be one by one.
    Each,
    /// Not at all: no key leaves the hub.
    Never,
}
