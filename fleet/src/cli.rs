//! The command line: names and flags are those of `az iot hub`, so that hands know them.

mod fleet;
mod manual;
mod modules;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use twinkey_contract::{Identity, KeySlot};

use crate::hub::{Limits, Tier};
use crate::output::Format;
use crate::rollout::cli::RolloutCommand;

pub(crate) use fleet::{Fleet, RegistryReading, SelectionArgs, SortBy, StatusArgs};
pub(crate) use manual::{CompletionsArgs, ManArgs};
pub(crate) use modules::{ModuleIdentity, ModuleListArgs, OneModule};

/// Longest wait that can be asked for: a day. Nobody sits in front of a command for longer.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Renews the keys of Azure IoT Hub devices without a device ever going dark.
#[derive(Debug, Parser)]
#[command(name = "twinkey", version, arg_required_else_help = true, after_help = concat!(
"Try it without a hub or an account:
  twinkey demo

Every command explains itself: twinkey COMMAND --help
Exit codes: 0 done, 1 failed, 2 usage, 3 refused as unsafe, 4 partly done."))]
pub(crate) struct Cli {
    /// How results are written to stdout.
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole story on this machine: a hub, a gateway, and its keys renewed under running telemetry.
    #[command(after_help = "\
Examples:
  twinkey demo              tell the story; exit code 0 if everything held
  twinkey demo --json       the story goes to stderr, stdout ends with one JSON line
  twinkey demo --keep       leave hub and gateway running afterwards, to try the other commands on")]
    Demo(DemoArgs),
    /// Run a local IoT hub: MQTT over TLS and WebSocket, registry, twins, queries, configurations, jobs, provisioning, faults.
    #[command(after_help = "\
The first line on stdout is JSON with ports, CA and the service's connection string, once the hub listens.

Faults can be had from the start (--fault, --faults and the flags that have a fault's name), and changed while the hub runs:
POST and DELETE https://HOST:PORT/$emulator/faults; GET tells those in force, and every field that there is.

Warnings go to stderr. RUST_LOG=twinkey_emulator=info tells each refused CONNECT and why, =debug why each connection ended.

Examples:
  twinkey emulate
  twinkey emulate --data-dir ./hub --mqtts 127.0.0.1:8883 --https 127.0.0.1:8443
  twinkey emulate --tier S1 --units 2 --latency 80ms --propagation-delay 30s
  twinkey emulate --fault onKeyChange=drop --fault muteConnack=true
  twinkey emulate --seed 7 --fault 'failRequests=[{\"path\": \"/devices/\", \"code\": 500001, \"probability\": 0.1}]'
  twinkey emulate --faults bad-day.json
  twinkey device-identity list --login ./hub/hub.json")]
    Emulate(EmulateArgs),
    /// Look after device identities and renew their keys.
    #[command(subcommand)]
    DeviceIdentity(DeviceIdentity),
    /// Look after the identities of a device's modules and renew their keys.
    #[command(subcommand)]
    ModuleIdentity(ModuleIdentity),
    /// Look at all devices together.
    #[command(subcommand)]
    Fleet(Fleet),
    /// Renew the keys of a whole fleet, in waves.
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Make a SAS token from a key.
    #[command(after_help = "\
Examples:
  twinkey generate-sas-token --key-file key.txt --resource hub.azure-devices.net/devices/pump-7
  twinkey generate-sas-token --key-file - --resource hub.azure-devices.net --policy-name service --duration 5m < key.txt")]
    GenerateSasToken(GenerateSasTokenArgs),
    /// Check a SAS token, which is read from stdin. Exit code 0 if it is valid, 1 if it is not.
    #[command(after_help = "\
Examples:
  twinkey verify-sas-token --key-file key.txt --resource hub.azure-devices.net/devices/pump-7 < token.txt
  twinkey verify-sas-token --key-file key.txt --resource uri --now 1767225600 < token.txt")]
    VerifySasToken(VerifySasTokenArgs),
    /// Print what makes a shell complete twinkey's commands.
    #[command(after_help = "\
Examples:
  twinkey completions bash > /etc/bash_completion.d/twinkey
  twinkey completions zsh > \"${fpath[1]}/_twinkey\"
  twinkey completions fish > ~/.config/fish/completions/twinkey.fish")]
    Completions(CompletionsArgs),
    /// Write the manual's pages, one for each command.
    #[command(after_help = "Examples:\n  twinkey man --out man1 && man -l man1/twinkey-fleet-status.1")]
    Man(ManArgs),
    /// The agent inside the demo.
    #[command(hide = true, disable_help_flag = true)]
    AgentProcess {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceIdentity {
    /// Create a device; the hub makes its keys.
    #[command(after_help = "Examples:\n  twinkey device-identity create -d pump-7 --login hub.txt")]
    Create(CreateArgs),
    /// Show a device. Keys are shown as fingerprints.
    #[command(
        after_help = "Examples:\n  twinkey device-identity show -d pump-7 --login hub.txt --output json"
    )]
    Show(OneDevice),
    /// List devices. Keys are shown as fingerprints.
    #[command(after_help = "\
A hub lists 1000 devices at once with their keys. For more, they are found by queries, which show no keys: then the
fingerprints are left out, unless --keys reads every device by itself. A hub takes 100 such reads a minute for each
unit of tier S1 or S2, and 5000 in S3.

Examples:
  twinkey device-identity list --login hub.txt --top 100
  twinkey device-identity list --login hub.txt --top all --output json
  twinkey device-identity list --login hub.txt --top 2500 --keys")]
    List(ListArgs),
    /// Delete a device; it is cut off at once.
    #[command(after_help = "Examples:\n  twinkey device-identity delete -d pump-7 --login hub.txt --yes")]
    Delete(DeleteArgs),
    /// Show a device's connection string, or write it to a file. It holds a key in plain text.
    #[command(after_help = "\
Examples:
  twinkey device-identity connection-string -d pump-7 --login hub.txt --out pump-7.txt
  twinkey device-identity connection-string -d pump-7 --login hub.txt --key-type secondary --show")]
    ConnectionString(ConnectionStringArgs),
    /// Renew a key of devices, hand it to them, and wait until they have proved that they live on it.
    #[command(after_help = "\
For each device: read identity and twin, make sure that the device does not use the slot, put a new key
there, seal it for the agent and offer it in the twin, wait for the agent's proof, erase the offer. It is safe to
stop at any point and to run the same command again: an unfinished renewal is finished, not begun anew.
What could cut a device off (the slot in use, both slots, a device that does not answer) is refused with exit code 3.

The hub makes the new keys, up to a hundred in one call. That call knows no etag, so a lease in the twin's tags keeps other
runs away from the device meanwhile. With --key-source local, keys are made here, of this computer's random numbers, and
written under the etag that was read before.

Examples:
  twinkey device-identity renew-key -d pump-7 --key-type secondary --login hub.txt
  twinkey device-identity renew-key -d pump-7 --key-type in-turn --login hub.txt
  twinkey device-identity renew-key -d '*' --key-type secondary --dry-run --login hub.txt
  twinkey device-identity renew-key -d pump-7 pump-8 pump-9 --key-type primary --yes --output json --login hub.txt
  twinkey device-identity renew-key -d pump-7 --key-type swap --yes --login hub.txt
  twinkey device-identity renew-key -d pump-7 --key-type both --force-dark pump-7 --login hub.txt")]
    RenewKey(RenewDeviceKeyArgs),
}

/// How to reach a hub.
#[derive(Clone, Debug, Args)]
pub(crate) struct HubArgs {
    /// File with the hub's service connection string (or hub.json of `twinkey emulate`). Without it, the variable
    /// IOTHUB_CONNECTION_STRING is read.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) login: Option<PathBuf>,
    /// PEM file with a CA to trust besides the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End stdout with one JSON line; the story goes to stderr.
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave everything running afterwards, and say what to try next.
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EmulateArgs {
    /// Where the hub keeps its CA, policies, devices, keys, twins, waiting messages and enrolments, for the next start to go on with.
    /// Every change is on the disk before it is answered. Without it, nothing outlives the hub.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where to listen for MQTT over TLS. Port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) mqtts: SocketAddr,
    /// Where to listen for HTTPS. Port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) https: SocketAddr,
    /// The hub's name in tokens, connection strings and its certificate.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub(crate) host_name: String,
    /// How long a connection outlives its token.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_wait)]
    pub(crate) token_grace: Duration,
    #[command(flatten)]
    pub(crate) faults: FaultArgs,
}

/// What goes wrong from the start. A flag of its own wins over --fault, and that over --faults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Faults")]
pub(crate) struct FaultArgs {
    /// Limit operations as a hub of this tier does.
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) tier: Option<Tier>,
    /// How many units of the tier there are.
    #[arg(long, value_name = "N", requires = "tier", value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) units: Option<u32>,
    /// Answer everything so much later.
    #[arg(long, value_name = "DURATION", value_parser = parse_wait)]
    pub(crate) latency: Option<Duration>,
    /// How long CONNECT takes to learn a new key.
    #[arg(long, value_name = "DURATION", value_parser = parse_wait)]
    pub(crate) propagation_delay: Option<Duration>,
    /// Put the hub's clock so many seconds ahead; a negative number puts it behind.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) clock_offset: Option<i64>,
    /// What everything random follows from. Without it, one is chosen and told on stderr.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
    /// Any fault by the name of its field. VALUE is JSON, or a word.
    #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_fault)]
    pub(crate) fault: Vec<(String, serde_json::Value)>,
    /// File with a JSON object of faults.
    #[arg(long, value_name = "FILE")]
    pub(crate) faults: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct OneDevice {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The device.
    #[arg(long, short, value_name = "ID", value_parser = parse_device_id)]
    pub(crate) device_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceStatus {
    Enabled,
    Disabled,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) device: OneDevice,
    /// Whether the device may connect.
    #[arg(long, value_enum, default_value = "enabled")]
    pub(crate) status: DeviceStatus,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// Most devices to list: a number, or `all` (az's -1).
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_top, allow_negative_numbers = true)]
    pub(crate) top: Top,
    /// Read the keys of more than 1000 devices too, one by one.
    #[arg(long)]
    pub(crate) keys: bool,
}

/// How many devices to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Top {
    First(usize),
    All,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) device: OneDevice,
    /// Only if the identity still has this etag.
    #[arg(long, short)]
    pub(crate) etag: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SlotName {
    Primary,
    Secondary,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectionStringArgs {
    #[command(flatten)]
    pub(crate) device: OneDevice,
    /// The key that goes into it.
    #[arg(long, alias = "kt", value_enum, default_value = "primary")]
    pub(crate) key_type: SlotName,
    #[command(flatten)]
    pub(crate) destination: Destination,
}

/// A key leaves only where somebody said so.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Destination {
    /// Print it.
    #[arg(long)]
    pub(crate) show: bool,
    /// Write it to a new file that only you can read.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// What to renew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyChoice {
    /// A new primary key.
    Primary,
    /// A new secondary key.
    Secondary,
    /// Two new keys, one after the other: first the one that the device does not use, and the other once the device has proved
    /// that.
    InTurn,
    /// Two new keys at once: the device goes dark if it misses them.
    Both,
    /// No new key: primary and secondary change places.
    Swap,
}

/// What one renewal changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeyType {
    Primary,
    Secondary,
    /// At once.
    Both,
    /// They change places.
    Swap,
}

impl From<KeySlot> for KeyType {
    fn from(slot: KeySlot) -> Self {
        match slot {
            KeySlot::Primary => Self::Primary,
            KeySlot::Secondary => Self::Secondary,
        }
    }
}

/// Who makes new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeySource {
    /// The hub: the key never was on this computer's disk or in its random numbers. A lease in the twin's tags keeps other runs
    /// away meanwhile.
    #[default]
    Service,
    /// This computer, from its random numbers, written under the etag that was read before.
    Local,
}

#[derive(Debug, Args)]
pub(crate) struct RenewDeviceKeyArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The devices; `*` stands for all that authenticate by symmetric keys.
    #[arg(long, short, value_name = "ID", required = true, num_args = 1.., value_parser = parse_device_id)]
    pub(crate) device_id: Vec<String>,
    /// Their modules' keys as well.
    #[arg(long, alias = "im")]
    pub(crate) include_modules: bool,
    #[command(flatten)]
    pub(crate) renew: RenewArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RenewModuleKeyArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The device.
    #[arg(long, short, value_name = "ID", value_parser = parse_device_id)]
    pub(crate) device_id: String,
    /// Its modules; `*` stands for all that authenticate by symmetric keys.
    #[arg(long, short, value_name = "ID", required = true, num_args = 1.., value_parser = parse_module_id)]
    pub(crate) module_id: Vec<String>,
    #[command(flatten)]
    pub(crate) renew: RenewArgs,
}

/// How keys are renewed.
#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// What to renew.
    #[arg(long, alias = "kt", value_enum)]
    pub(crate) key_type: KeyChoice,
    /// Who makes the new keys.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) key_source: KeySource,
    /// Only if the identity still has this etag; one at a time. The key is then made here: the hub's own regeneration knows no
    /// etag.
    #[arg(long, short)]
    pub(crate) etag: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Say what would be done to whom and what it costs, and change nothing. Exit code 3 if something would be refused.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Renew in the registry only, as az does. A later run without this flag delivers the key, or makes another one first if
    /// the agent has not reported both of its keys.
    #[arg(long)]
    pub(crate) no_deliver: bool,
    /// Go on with these (DEVICE or DEVICE/MODULE) although they may go dark.
    #[arg(long, value_name = "ID", num_args = 1.., value_parser = parse_name)]
    pub(crate) force_dark: Vec<String>,
    /// How long to wait for each device's proof; with --incident, also for a report that can be believed.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = parse_wait)]
    pub(crate) timeout: Duration,
    /// No progress bar and no progress lines.
    #[arg(long)]
    pub(crate) no_progress: bool,
    /// Offer keys unsealed: everybody who may read the twin can read them until they are erased.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Believe the reports of these (DEVICE or DEVICE/MODULE) although their public key has changed or their sequence ran back:
    /// the gateway was set up anew, or restored from an old image. The proof must be right all the same.
    #[arg(long, value_name = "ID", num_args = 1.., value_parser = parse_name)]
    pub(crate) trust_report: Vec<String>,
    /// A key of these (DEVICE or DEVICE/MODULE) is known to others: renew although somebody else connects as the device. Keys
    /// are sealed to the public key that was believed before, and to no other. No challenge is asked. With --trust-report, the
    /// report's sequence may be lower than the one that was believed.
    #[arg(long, value_name = "ID", num_args = 1.., value_parser = parse_name)]
    pub(crate) incident: Vec<String>,
    /// Do not have each device answer a challenge first. That saves one operation for each device. But then somebody who holds a
    /// device's connection can repeat an old report of it, and have the key in use renewed. Devices that --trust-report names
    /// are challenged all the same.
    #[arg(long)]
    pub(crate) no_challenge: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// How fast a hub may be asked.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArgs {
    /// The hub's tier: its limits are kept to. Without it, they are found out when the hub says 429.
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) tier: Option<Tier>,
    /// How many units of the tier there are.
    #[arg(long, value_name = "N", requires = "tier", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) units: u32,
}

impl LimitArgs {
    pub(crate) fn limits(self) -> Limits {
        self.tier.map_or(Limits::unlimited(), |tier| Limits::tier(tier, self.units))
    }
}

#[derive(Debug, Args)]
pub(crate) struct GenerateSasTokenArgs {
    /// File with the key in base64; `-` reads stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: PathBuf,
    /// What the token gives access to, in plain text: HOST, HOST/devices/ID or HOST/devices/ID/modules/ID.
    #[arg(long, value_name = "RESOURCE")]
    pub(crate) resource: String,
    /// When it expires, in Unix seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "duration")]
    pub(crate) expiry: Option<u64>,
    /// How long it is valid from now.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// The policy whose key this is; not for a device's key.
    #[arg(long, value_name = "NAME")]
    pub(crate) policy_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifySasTokenArgs {
    /// File with the key in base64.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: PathBuf,
    /// What the token must give access to, in plain text.
    #[arg(long, value_name = "RESOURCE")]
    pub(crate) resource: String,
    /// The time to judge by, in Unix seconds, instead of now.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) now: Option<u64>,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write it like 90s, 10m or 1h"))
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let wait = parse_duration(text)?;
    if wait <= WAIT_MAX { Ok(wait) } else { Err(format!("at most {}", humantime::format_duration(WAIT_MAX))) }
}

/// `FIELD=VALUE`; what is no JSON is text.
fn parse_fault(text: &str) -> Result<(String, serde_json::Value), String> {
    let (field, value) = text.split_once('=').ok_or("write it FIELD=VALUE, for instance muteConnack=true")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((field.to_owned(), value))
}

/// `device` or `device/module`.
fn parse_name(text: &str) -> Result<String, String> {
    text.parse::<Identity>().map(|identity| identity.to_string()).map_err(|e| e.to_string())
}

fn parse_device_id(text: &str) -> Result<String, String> {
    // Every URL library takes these for directions, encoded or not.
    if text == "." || text == ".." {
        return Err("this id can't stand in a URL".to_owned());
    }
    Identity::new(text, None).map(|identity| identity.device_id).map_err(|e| e.to_string())
}

fn parse_module_id(text: &str) -> Result<String, String> {
    // As for a device's.
    if text == "." || text == ".." {
        return Err("this id can't stand in a URL".to_owned());
    }
    let identity = Identity::new("d", Some(text)).map_err(|e| e.to_string())?;
    identity.module_id.ok_or_else(|| "an id is needed".to_owned())
}

fn parse_top(text: &str) -> Result<Top, String> {
    match text {
        "all" | "-1" => Ok(Top::All),
        _ => match text.parse() {
            Ok(0) | Err(_) => Err("a number from 1, or `all`".to_owned()),
            Ok(count) => Ok(Top::First(count)),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        Cli::command().debug_assert();
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let help = sub.get_after_help().map(ToString::to_string);
                let has_example = help.is_some_and(|text| text.contains("Examples:"));
                assert!(has_example || sub.has_subcommands(), "{} has no example", sub.get_name());
                check(sub);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn ids_that_no_hub_has_are_refused() {
        for id in ["", ".", "..", "a b", "a/b", "dévice", "a\n", &"x".repeat(129)] {
            assert!(parse_device_id(id).is_err(), "{id:?}");
        }
        for id in ["pump-7", "a.b", "...", "-.%_#*?!(),:=@$'+", &"x".repeat(128)] {
            assert!(parse_device_id(id).is_ok(), "{id:?}");
        }
    }

    #[test]
    fn how_many_to_list_is_a_number_or_all() {
        assert_eq!((parse_top("7"), parse_top("5000")), (Ok(Top::First(7)), Ok(Top::First(5000))));
        assert_eq!((parse_top("all"), parse_top("-1")), (Ok(Top::All), Ok(Top::All)));
        for odd in ["0", "-2", "", "many", "1.5"] {
            assert!(parse_top(odd).is_err(), "{odd}");
        }
        let parse =
            |args: &[&str]| Cli::try_parse_from(["twinkey", "device-identity", "list"].iter().chain(args));
        assert!(parse(&["--top", "-1"]).is_ok() && parse(&["--top=-1", "--keys"]).is_ok());
    }

    #[test]
    fn waits_have_an_end() {
        assert_eq!(parse_wait("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_wait("24h"), Ok(WAIT_MAX));
        for odd in ["25h", "1000000years", "soon", "", "-1s", "90"] {
            assert!(parse_wait(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_faults_value_is_json_or_a_word() {
        let value = |text| parse_fault(text).map(|(_, value)| value);
        assert_eq!(value("onKeyChange=drop"), Ok("drop".into()));
        assert_eq!(value("latencyMs=80"), Ok(80.into()));
        assert_eq!(value("stalled=[{}]"), Ok(serde_json::json!([{}])));
        assert!(value("muteConnack").is_err());
    }

    #[test]
    fn a_connection_string_needs_to_be_told_where_to_go() {
        let parse = |extra: &[&str]| {
            Cli::try_parse_from(
                ["twinkey", "device-identity", "connection-string", "-d", "d"].iter().chain(extra),
            )
        };
        assert!(parse(&[]).is_err());
        assert!(parse(&["--show", "--out", "f"]).is_err());
        assert!(parse(&["--show"]).is_ok() && parse(&["--out", "f"]).is_ok());
    }
}
