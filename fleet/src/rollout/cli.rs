//! The command line of `rollout`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use twinkey_contract::Identity;
use uuid::Uuid;

use super::span;
use super::spec::{Keys, Spec};
use super::waves::WaveSize;
use crate::cli::{HubArgs, KeySource};
use crate::failure::Failure;
use crate::hub::Tier;

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Say what would be done to whom, what it costs, and how long the hub's limits make it take. Nothing is changed.
    #[command(after_help = "\
Exit code 3 if a device would be refused, unless --skip-unsafe says to leave such devices out.

Examples:
  twinkey rollout plan --target \"tags.site = 'A'\" --login hub.txt
  twinkey rollout plan --spec site-a.toml --output json --login hub.txt")]
    Plan(PlanArgs),
    /// Renew the keys of the target, wave by wave. What is meant and what came of it is kept in the ledger.
    #[command(after_help = "\
A device that could go dark is refused, and then nothing is begun (exit code 3), unless --skip-unsafe leaves such devices out or
--force-dark names them. Ctrl-C pauses: renewals under way finish first. Whatever ends this command, `twinkey rollout resume`
goes on.

Examples:
  twinkey rollout start --spec site-a.toml --ledger site-a.ledger --login hub.txt
  twinkey rollout start --target '*' --waves 1,10%,100% --soak 24h --skip-unsafe --yes --login hub.txt
  twinkey rollout start --spec site-a.toml --dry-run --login hub.txt")]
    Start(StartArgs),
    /// How far a rollout is. It may run meanwhile.
    #[command(after_help = "Examples:\n  twinkey rollout status --ledger site-a.ledger")]
    Status(LedgerArgs),
    /// Have no more keys begun. Those under way finish, then the runner ends; `resume` goes on.
    #[command(after_help = "Examples:\n  twinkey rollout pause --ledger site-a.ledger")]
    Pause(LedgerArgs),
    /// Go on with a rollout that was paused, halted, killed, or has failed devices.
    #[command(after_help = "\
Keys that were under way are finished first. After a halt, failures are counted anew.

Examples:
  twinkey rollout resume --ledger site-a.ledger --login hub.txt
  twinkey rollout resume --ledger site-a.ledger --retry-failed --login hub.txt")]
    Resume(ResumeArgs),
    /// Have no more keys begun, for good. Those under way finish. Keys that were renewed stay.
    #[command(after_help = "Examples:\n  twinkey rollout abort --ledger site-a.ledger --yes")]
    Abort(AbortArgs),
    /// What became of each device.
    #[command(after_help = "\
Examples:
  twinkey rollout report --ledger site-a.ledger --output json
  twinkey rollout report --ledger site-a.ledger --html site-a.html")]
    Report(ReportArgs),
    /// Make a new ledger for one that is lost, from what the hub's twins say. Then `resume` goes on.
    #[command(after_help = "\
Examples:
  twinkey rollout rebuild --id 0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f --spec site-a.toml --ledger new.ledger --login hub.txt")]
    Rebuild(RebuildArgs),
}

/// Where the rollout is kept.
#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    /// The file that knows what is meant and what came of it. It holds no key.
    #[arg(long, value_name = "FILE", default_value = "rollout.ledger")]
    pub(crate) ledger: PathBuf,
}

/// What to do. A flag wins over the file.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to do")]
pub(crate) struct SpecArgs {
    /// TOML file that says what to do; docs/examples/rollout.toml has every field.
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Which devices: a condition of the hub's query language, or * for all.
    #[arg(long, value_name = "CONDITION")]
    target: Option<String>,
    /// Their modules, too.
    #[arg(long)]
    include_modules: bool,
    /// Do not have each device answer a challenge before its keys change. That saves one operation for each device. But then
    /// somebody who holds a device's connection can repeat an old report of it, and have the key in use renewed.
    #[arg(long)]
    no_challenge: bool,
    /// Which keys: `both` one after the other, or only the one that the device does not use. Usually both.
    #[arg(long, value_enum)]
    keys: Option<Keys>,
    /// Who makes new keys. Usually service.
    #[arg(long, value_enum)]
    key_source: Option<KeySource>,
    /// How many have had their turn after each wave: numbers or per cents, such as 1,1%,10%,100%. Usually 1,1%,10%,100%.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_wave)]
    waves: Vec<WaveSize>,
    /// Keys that are renewed at the same time. Usually 50.
    #[arg(long, value_name = "N")]
    parallelism: Option<u32>,
    /// How long a device may take to prove a new key. Usually 15m.
    #[arg(long, value_name = "DURATION", value_parser = span::parse)]
    deadline: Option<Duration>,
    /// How long a device lives on its first new key before the other one is renewed. Usually 0s.
    #[arg(long, value_name = "DURATION", value_parser = span::parse)]
    soak: Option<Duration>,
    /// Further attempts at a key. Usually 2.
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Stop beginning devices when more than this many have failed.
    #[arg(long, value_name = "N")]
    max_failures: Option<u32>,
    /// Stop beginning devices when more than this share of those that have ended has failed.
    #[arg(long, value_name = "PERCENT")]
    max_failure_percent: Option<f64>,
    /// Count failures only once so many have ended.
    #[arg(long, value_name = "N")]
    minimum_executed: Option<u32>,
    /// The hub's tier: its limits are kept to. Without it, they are found out when the hub says 429.
    #[arg(long, value_enum, ignore_case = true)]
    tier: Option<Tier>,
    /// How many units of the tier there are.
    #[arg(long, value_name = "N")]
    units: Option<u32>,
}

/// How the target is looked at.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArgs {
    /// What the order inside the target follows from. Without it, one is chosen and kept in the ledger.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u32>,
    /// Compare each device's report with the registry, one registry operation each. Without it, that is done for hubs with less
    /// than 1000 devices, where one operation tells all.
    #[arg(long)]
    pub(crate) registry: bool,
    /// Leave out devices that could go dark, and list them.
    #[arg(long)]
    pub(crate) skip_unsafe: bool,
    /// Go on with these devices (or DEVICE/MODULE) although they may go dark.
    #[arg(long, value_name = "ID", num_args = 1.., value_parser = parse_identity)]
    pub(crate) force_dark: Vec<Identity>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    #[command(flatten)]
    pub(crate) ledger: LedgerArgs,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Do as `plan` does.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// No progress bar and no progress lines.
    #[arg(long)]
    pub(crate) no_progress: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    #[command(flatten)]
    pub(crate) ledger: LedgerArgs,
    /// Begin failed and refused devices again, where they stopped.
    #[arg(long)]
    pub(crate) retry_failed: bool,
    /// No progress bar and no progress lines.
    #[arg(long)]
    pub(crate) no_progress: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AbortArgs {
    #[command(flatten)]
    pub(crate) ledger: LedgerArgs,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) ledger: LedgerArgs,
    /// Write a page with charts to this file, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    #[command(flatten)]
    pub(crate) ledger: LedgerArgs,
    /// The rollout, as twins name it in tags.keyRenewal.rollout.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Uuid,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

fn parse_wave(text: &str) -> Result<WaveSize, String> {
    text.parse()
}

fn parse_identity(text: &str) -> Result<Identity, String> {
    text.parse().map_err(|e: twinkey_contract::IdentityError| e.to_string())
}

impl SpecArgs {
    /// The file, if there is one, and over it the flags.
    pub(crate) fn spec(&self) -> Result<Spec, Failure> {
        let mut spec = match &self.spec {
            Some(path) => Spec::read(path)?,
            None => Spec::usual()?,
        };
        fn set<T: Clone>(field: &mut T, flag: Option<&T>) {
            if let Some(value) = flag {
                *field = value.clone();
            }
        }
        set(&mut spec.target, self.target.as_ref());
        spec.include_modules |= self.include_modules;
        spec.challenge &= !self.no_challenge;
        set(&mut spec.keys, self.keys.as_ref());
        set(&mut spec.key_source, self.key_source.map(Into::into).as_ref());
        set(&mut spec.waves, Some(&self.waves).filter(|waves| !waves.is_empty()));
        set(&mut spec.parallelism, self.parallelism.as_ref());
        set(&mut spec.deadline, self.deadline.as_ref());
        set(&mut spec.soak, self.soak.as_ref());
        set(&mut spec.retries, self.retries.as_ref());
        spec.failures.max = self.max_failures.or(spec.failures.max);
        spec.failures.max_percent = self.max_failure_percent.or(spec.failures.max_percent);
        set(&mut spec.failures.minimum_executed, self.minimum_executed.as_ref());
        spec.hub.tier = self.tier.or(spec.hub.tier);
        set(&mut spec.hub.units, self.units.as_ref());
        spec.check()?;
        Ok(spec)
    }
}
