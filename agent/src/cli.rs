//! The command line. Standard output is for answers, standard error for logs and errors.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use twinkey_contract::Fingerprint;
use twinkey_rotation::{KeySlot, Place, Standing};
use zeroize::Zeroizing;

use crate::chain::Chain;
use crate::config::Config;
use crate::driver::text_of;
use crate::store::{self, Loaded};
use crate::{local, provision, run};

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
    /// Create the key ring from the device's connection string, read from standard input.
    #[command(after_help = "Example:\n  twinkey-agent provision < connection-string")]
    Provision {
        #[command(flatten)]
        config: ConfigArgument,
        /// Read the connection string from this file in place of standard input.
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// The slot in the registry that the key comes from.
        #[arg(long, value_enum, default_value = "primary")]
        slot: SlotArgument,
    },
    /// Show the key ring by fingerprints, and the running agent's connection.
    Status {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a SAS token made by the running agent.
    Token {
        #[command(flatten)]
        config: ConfigArgument,
        /// How long it is good for, at most 24h.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: std::time::Duration,
        /// The resource; the device itself if none is given.
        #[arg(long)]
        resource: Option<String>,
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
    start_log(arguments.log);
    forbid_core_dumps();
    match perform(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn perform(command: Command) -> Result<(), String> {
    let said = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
    match command {
        Command::Run(ConfigArgument { config }) => run::run(&config).map_err(|error| said(&error)),
        Command::Provision { config, from_file, slot } => {
            let config = Config::read(&config.config).map_err(|error| said(&error))?;
            let text = match from_file {
                Some(path) => provision::read_file(&path).map_err(|error| said(&error))?,
                None => provision::read(std::io::stdin()).map_err(|error| {
                    format!("can't read the connection string from standard input: {error}")
                })?,
            };
            let slot = match slot {
                SlotArgument::Primary => KeySlot::Primary,
                SlotArgument::Secondary => KeySlot::Secondary,
            };
            let mut store = store::open(&config.state.dir).map_err(|error| said(&error))?;
            let key_ring = provision::provision(&mut store, &text, slot).map_err(|error| said(&error))?;
            print(&format!(
                "key ring created for {} at {}\nnext: twinkey-agent run",
                key_ring.registration.identity, key_ring.registration.host_name
            ))
        }
        Command::Status { config, json } => {
            let config = Config::read(&config.config).map_err(|error| said(&error))?;
            let status = status(&config)?;
            print(&if json { format!("{status:#}") } else { status_text(&status) })
        }
        Command::Token { config, ttl, resource } => {
            let config = Config::read(&config.config).map_err(|error| said(&error))?;
            let request = json!({"request": "token", "ttlSecs": ttl.as_secs(), "resource": resource});
            let mut answer = ask(&config.local.socket, &request)?;
            match answer.get_mut("token").map(Value::take) {
                Some(Value::String(token)) => print(&Zeroizing::new(token)),
                Some(_) | None => Err(reason_of(&answer)),
            }
        }
    }
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
    let Some(Loaded { key_ring, damaged }) = loaded else {
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
                at("/connection/key"),
                at("/connection/tokenExpiry")
            ),
            _ => format!("down; {}", at("/connection/troubles/0/what")),
        };
        lines.push(format!("connection  {connection}"));
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
                fingerprint => fingerprint,
            },
            if is_active { "  active" } else { "" },
            at(&format!("/keyRenewal/{slot}/provenAt")),
        ));
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
        lines.push(format!("clock       {}", at("/clock")));
    }
    lines.push(format!("sequence    {}", at("/keyRenewal/sequence")));
    lines.join("\n")
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

fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away (`| head`) is no failure of ours.
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
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

/// `RUST_LOG` chooses what is logged; without it, our own events from `info` up.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber in one process (tests) is no reason to stop.
    let _ = match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder
            .with_ansi(
                std::io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            )
            .with_target(false)
            .try_init(),
    };
}
