//! The command line. Standard output is for answers, standard error for logs and errors.

use std::ffi::OsString;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use twinkey_contract::Fingerprint;
use twinkey_rotation::{KeySlot, Place, Standing};
use zeroize::Zeroizing;

use crate::chain::Chain;
use crate::config::Config;
use crate::driver::text_of;
use crate::printable::{escaped_json, printable};
use crate::store::{self, Loaded};
use crate::{local, logging, provision, run};

/// Exit code when what was asked for failed.
const FAILED: u8 = 1;

#[derive(Parser)]
#[command(name = "twinkey-agent", version, about = "Keeps a gateway connected to Azure IoT Hub while its keys are renewed", after_help = EXAMPLES)]
struct Arguments {
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon; SIGTERM ends it cleanly, SIGHUP reads the configuration again.
    Run(ConfigArgument),
    /// Create the key ring from the device's connection string, read from standard input, or typed at a terminal; or
    /// give it another key (--replace), which a running agent takes from root and its own user only.
    #[command(after_help = PROVISION_EXAMPLES)]
    Provision {
        #[command(flatten)]
        config: ConfigArgument,
        /// Read the connection string from this file in place of standard input.
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// Read the connection string from systemd's credentials (twinkey.connection-string), as the service
        /// twinkey-provision does. Without such a credential nothing is done.
        #[arg(long, conflicts_with_all = ["from_file", "replace"])]
        from_credential: bool,
        /// The slot in the registry that the key comes from.
        #[arg(long, value_enum, default_value = "primary")]
        slot: SlotArgument,
        /// Give an existing key ring another key of the same device, for when the hub accepts none of those it holds.
        /// A running agent takes it without a restart; the keys it holds stay.
        #[arg(long)]
        replace: bool,
    },
    /// Show the key ring by fingerprints, and the running agent's connection.
    #[command(
        after_help = "Exits with 0 whenever there is something to show, also when the agent is not connected or not running: programs read `connection.connected` and `running` in the JSON."
    )]
    Status {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a SAS token of the device's made by the running agent, where its configuration allows it.
    #[command(
        after_help = "Whoever has a token can connect as the device in the agent's place. So none is made unless section [local] of the configuration says `tokens = true`."
    )]
    Token {
        #[command(flatten)]
        config: ConfigArgument,
        /// How long it is good for, at most 1h.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: std::time::Duration,
    },
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/twinkey/agent.toml")]
    config: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum SlotArgument {
    /// The primary key.
    Primary,
    /// The secondary key.
    Secondary,
}

const EXAMPLES: &str = "Examples:
  twinkey-agent provision < connection-string
  twinkey-agent run
  twinkey-agent status
  RUST_LOG=twinkey_agent=debug twinkey-agent run --config agent.toml";

const PROVISION_EXAMPLES: &str = "Examples:
  twinkey-agent provision < connection-string
  twinkey-agent provision --replace < connection-string      the agent may be running

--replace only adds a key: it is stored, tried whenever the active one is refused, and becomes the active one when the
hub accepts it. Keys that are held stay.";

/// How long `provision --replace` waits to see the key accepted.
const REPLACE_WAIT: std::time::Duration = std::time::Duration::from_secs(15);

/// The command line as clap knows it, from which man pages and completions are made.
pub fn command_line() -> clap::Command {
    Arguments::command()
}

/// Runs the command that `args` (with the program's name in front) ask for.
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Also how --help and --version end.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED));
        }
    };
    let _log = logging::start(match arguments.log {
        LogFormat::Text => logging::Format::Text,
        LogFormat::Json => logging::Format::Json,
    });
    forbid_core_dumps();
    match perform(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", printable(&error));
            ExitCode::from(FAILED)
        }
    }
}

fn perform(command: Command) -> Result<(), String> {
    let said = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
    match command {
        Command::Run(ConfigArgument { config }) => run::run(&config).map_err(|error| said(&error)),
        Command::Provision { config, mut from_file, from_credential, slot, replace } => {
            let config = Config::read(&config.config).map_err(|error| said(&error))?;
            if from_credential {
                from_file = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .and_then(|directory| provision::credential_in(Path::new(&directory)));
                if from_file.is_none() {
                    return print("there is no credential twinkey.connection-string: nothing was done");
                }
            }
            let text = match &from_file {
                Some(path) => provision::read_file(path).map_err(|error| said(&error))?,
                None => from_stdin().map_err(|error| {
                    format!("can't read the connection string from standard input: {error}")
                })?,
            };
            let is_served = || {
                local::is_served(&config.local.socket)
                    .map_err(|error| unanswered(&config.local.socket, &error))
            };
            if replace && is_served()? {
                return replace_in_running_agent(&config, &text, slot);
            }
            let slot = match slot {
                SlotArgument::Primary => KeySlot::Primary,
                SlotArgument::Secondary => KeySlot::Secondary,
            };
            let mut store = store::open(&config.state.dir).map_err(|error| said(&error))?;
            let provisioned = if replace {
                provision::replace(&mut store, &text, slot)
            } else {
                provision::provision(&mut store, &text, slot)
            };
            let key_ring = provisioned.map_err(|error| match &from_file {
                Some(path) => format!("{}: {}", path.display(), said(&error)),
                None => said(&error),
            })?;
            let done = if replace { "key added to the key ring of" } else { "key ring created for" };
            print(&format!(
                "{done} {} at {}\nnext: twinkey-agent run, or, where it is a service, systemctl restart twinkey-agent",
                key_ring.registration.identity, key_ring.registration.host_name
            ))
        }
        Command::Status { config, json } => {
            let config = Config::read(&config.config).map_err(|error| said(&error))?;
            let status = status(&config)?;
            print(&if json {
                escaped_json(&format!("{status:#}")).into_owned()
            } else {
                status_text(&status)
            })
        }
        Command::Token { config, ttl } => {
            let config = Config::read(&config.config).map_err(|error| said(&error))?;
            let request = json!({"request": "token", "ttlSecs": ttl.as_secs()});
            let mut answer = ask(&config.local.socket, &request)?;
            match answer.get_mut("token").map(Value::take) {
                Some(Value::String(token)) => print(&Zeroizing::new(token)),
                Some(_) | None => Err(reason_of(&answer)),
            }
        }
    }
}

/// A whole file or pipe; at a terminal, one line, which is asked for and not shown.
fn from_stdin() -> std::io::Result<Zeroizing<String>> {
    let stdin = std::io::stdin();
    let Ok(shown) = tcgetattr(&stdin) else {
        return provision::read(stdin);
    };
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let _ = write!(std::io::stderr(), "Paste the device's connection string (it is not shown), then Enter: ");
    let line = provision::read_line(stdin.lock());
    tcsetattr(&stdin, OptionalActions::Now, &shown)?;
    let _ = writeln!(std::io::stderr());
    line
}

/// Hands the key to the agent that runs, and waits to see what the hub says of it.
fn replace_in_running_agent(config: &Config, text: &str, slot: SlotArgument) -> Result<(), String> {
    // What can't be used is said before anything is sent.
    provision::parse(text).map_err(|error| Chain(&error).to_string())?;
    let slot = match slot {
        SlotArgument::Primary => "primary",
        SlotArgument::Secondary => "secondary",
    };
    let request = local::replace_request(text, slot);
    let answer = local::ask_text(&config.local.socket, &request)
        .map_err(|error| unanswered(&config.local.socket, &error))?;
    let Some(key) = answer.get("key").and_then(Value::as_str) else {
        return Err(reason_of(&answer));
    };
    print(&format!("key {key} was handed to the running agent, which stores and tries it"))?;
    let until = std::time::Duration::from_millis(250);
    for _ in 0..(REPLACE_WAIT.as_millis() / until.as_millis()) {
        std::thread::sleep(until);
        let status = status(config)?;
        if status.pointer("/connection/key").and_then(Value::as_str) == Some(key) {
            return print("the hub has accepted it: the agent is connected with it");
        }
        // It is on disk, or there would be no key in the answer: brought now, or held all the time in the other slot.
        if status.pointer("/connection/connected") == Some(&Value::Bool(true)) {
            return print(
                "the agent is connected with another key: this one is kept, and tried when that one is refused",
            );
        }
        let troubles = status.pointer("/connection/troubles").and_then(Value::as_array);
        let is_it = |trouble: &&Value| trouble.get("key").and_then(Value::as_str) == Some(key);
        if let Some(trouble) = troubles.and_then(|troubles| troubles.iter().find(is_it)) {
            let what = trouble.get("what").and_then(Value::as_str).unwrap_or("no reason was given");
            return Err(format!(
                "the key is stored, but not accepted so far: {what}. The agent goes on trying it with the others; see `twinkey-agent status`"
            ));
        }
    }
    Err(format!(
        "the key is stored, but was not tried within {} s: see `twinkey-agent status`",
        REPLACE_WAIT.as_secs()
    ))
}

/// The running agent's own words, or what is on disk.
fn status(config: &Config) -> Result<Value, String> {
    match local::ask(&config.local.socket, &json!({"request": "status"})) {
        Ok(mut answer) => {
            let Some(mut status) = answer.get_mut("status").map(Value::take) else {
                return Err(reason_of(&answer));
            };
            if let Some(status) = status.as_object_mut() {
                status.insert("running".to_owned(), true.into());
            }
            return Ok(status);
        }
        // Nobody listens: then what is on disk is all there is to say.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(unanswered(&config.local.socket, &error)),
    }
    let loaded = store::peek(&config.state.dir).map_err(|error| Chain(&error).to_string())?;
    let Some(Loaded { key_ring, damaged, .. }) = loaded else {
        return Err(format!(
            "no agent answers at {} and there is no key ring in {}: run `twinkey-agent provision` with the device's connection string",
            config.local.socket.display(),
            config.state.dir.display()
        ));
    };
    let ring = &key_ring.ring;
    let place = |place: &Place| {
        json!({
            "fingerprint": place.held.map(|held| Fingerprint(held.key.0).to_string()),
            "provenAt": place.held.and_then(|held| held.proven_at).map(|at| text_of(at.0)),
            "candidate": place.candidate.map(|candidate| json!({
                "fingerprint": Fingerprint(candidate.key.0).to_string(),
                "onTrial": candidate.standing == Standing::Trying,
            })),
        })
    };
    Ok(json!({
        "running": false,
        "hostName": key_ring.registration.host_name,
        "identity": key_ring.registration.identity.to_string(),
        "damagedFile": damaged.map(|(file, error)| format!("{file}: {error}")),
        "keyRenewal": {
            "sequence": ring.sequence,
            "active": match ring.active { KeySlot::Primary => "primary", KeySlot::Secondary => "secondary" },
            "primary": place(&ring.slots.primary),
            "secondary": place(&ring.slots.secondary),
        },
    }))
}

fn status_text(status: &Value) -> String {
    let at = |pointer: &str| match status.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let mut lines = vec![
        format!("device      {} at {}", at("/identity"), at("/hostName")),
        format!(
            "agent       {}",
            if at("/running") == "true" {
                format!("running since {}", at("/startedAt"))
            } else {
                "not running; this is what is on disk".to_owned()
            }
        ),
    ];
    if at("/running") == "true" {
        let connection = match at("/connection/connected").as_str() {
            "true" => format!(
                "up since {} with key {}, token until {}",
                at("/connection/since"),
                short(&at("/connection/key")),
                at("/connection/tokenExpiry")
            ),
            _ => format!("down; {}", at("/connection/last")),
        };
        lines.push(format!("connection  {connection}"));
        for trouble in status.pointer("/connection/troubles").and_then(Value::as_array).into_iter().flatten()
        {
            let text = |name: &str| trouble.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
            lines.push(format!(
                "trouble     {} {} since {}: {}",
                short(&text("key")),
                text("kind"),
                text("since"),
                text("what")
            ));
            lines.push(format!("            next: {}", text("next")));
        }
    }
    if at("/damagedFile") != "-" {
        lines.push(format!("damaged     {}", at("/damagedFile")));
    }
    for slot in ["primary", "secondary"] {
        let is_active = at("/keyRenewal/active") == slot;
        lines.push(format!(
            "{slot:<11} {}{}  proven {}",
            match at(&format!("/keyRenewal/{slot}/fingerprint")).as_str() {
                "-" => "none yet",
                fingerprint => short(fingerprint),
            },
            if is_active { "  active" } else { "" },
            at(&format!("/keyRenewal/{slot}/provenAt")),
        ));
    }
    let others = status.pointer("/connection/alsoTried").and_then(Value::as_array);
    let others: Vec<&str> = others.into_iter().flatten().filter_map(Value::as_str).collect();
    if !others.is_empty() {
        lines.push(format!("also tried  {}", others.join(", ")));
    }
    if at("/running") == "true" {
        let reason = match at("/keyRenewal/reason").as_str() {
            "-" => String::new(),
            reason => format!(" ({reason})"),
        };
        lines.push(format!(
            "rotation    {} {}{reason}",
            at("/keyRenewal/rotation"),
            at("/keyRenewal/status")
        ));
        lines.push(format!(
            "messages    {} waiting, {} unacknowledged",
            at("/messages/waiting"),
            at("/messages/unacknowledged")
        ));
        let by = match at("/clock/source").as_str() {
            "hub" => format!(" by the hub; this machine's clock is wrong by {} s", at("/clock/offsetSecs")),
            "floor" => {
                format!(" or later; this machine's clock is behind by at least {} s", at("/clock/offsetSecs"))
            }
            _ => String::new(),
        };
        let trouble = match at("/clock/trouble").as_str() {
            "-" => String::new(),
            trouble => format!("; the hub could not be asked for the time: {trouble}"),
        };
        lines.push(format!("clock       {}{by}{trouble}", at("/clock/now")));
        for suspicion in status.get("suspicions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| suspicion.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
            lines.push(format!("suspicion   {}: {}", text("kind"), text("next")));
        }
    }
    lines.push(format!("sequence    {}", at("/keyRenewal/sequence")));
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// The first 16 digits of a fingerprint: as tables of `twinkey` show it.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

fn ask(socket: &Path, request: &Value) -> Result<Value, String> {
    local::ask(socket, request).map_err(|error| unanswered(socket, &error))
}

fn unanswered(socket: &Path, error: &std::io::Error) -> String {
    format!(
        "no agent answers at {}: {error}. Is `twinkey-agent run` running, and may this user open the socket?",
        socket.display()
    )
}

fn reason_of(answer: &Value) -> String {
    answer
        .get("error")
        .and_then(Value::as_str)
        .unwrap_or("the agent gave an answer without a reason")
        .to_owned()
}

/// Lines of text. What is in them may come from hub or disk; line breaks are ours.
fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let written = text.lines().try_for_each(|line| writeln!(out, "{}", printable(line)));
    // A reader that has gone away (`| head`) is no failure of ours.
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("can't write to standard output: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A core dump would hold the keys. Also keeps other processes of the same user from reading this one's memory.
fn forbid_core_dumps() {
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "core dumps can't be forbidden: a crash might write keys to disk");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_shows_no_character_that_a_terminal_acts_upon_and_has_no_line_of_anybody_elses() {
        let odd = "x\u{1b}[2J\n\u{9b}2J\u{7f}\u{202e}\u{2028}y";
        let status = json!({
            "running": true, "hostName": odd, "identity": odd, "damagedFile": odd,
            "connection": {"connected": false, "last": odd, "alsoTried": [odd], "troubles": [{"what": odd, "next": odd}]},
            "keyRenewal": {"status": odd, "reason": odd}, "suspicions": [{"kind": odd, "next": odd}],
        });
        let text = status_text(&status);
        let quiet =
            status_text(&serde_json::from_str(&status.to_string().replace(&odd_json(odd), "xy")).unwrap());
        assert_eq!(text.lines().count(), quiet.lines().count(), "{text:?}");
        assert!(text.lines().all(|line| printable(line) == line), "{text:?}");
    }

    /// As it stands between quotation marks in JSON.
    fn odd_json(text: &str) -> String {
        let json = serde_json::to_string(text).unwrap();
        json.trim_matches('"').to_owned()
    }
}
