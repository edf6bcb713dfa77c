//! `emulate`: the local hub alone, until it is told to stop.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};
use twinkey_emulator::{EmulatorError, Options, Ready};

use crate::cli::{EmulateArgs, FaultArgs};
use crate::failure::{Exit, Failure, chain};
use crate::output;

/// Runs the hub until SIGINT or SIGTERM.
pub(crate) async fn run(args: EmulateArgs) -> Result<Exit, Failure> {
    start_logging();
    raise_descriptors();
    let mut stop = StopSignal::new()?;
    let temporary = match args.data_dir {
        Some(_) => None,
        None => Some(temporary_dir("twinkey-hub-")?),
    };
    let data_dir =
        args.data_dir.or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    let faults = faults(args.faults)?;
    let seed_given = faults.contains_key("seed");
    let options = Options {
        host_name: args.host_name,
        mqtts: args.mqtts,
        https: args.https,
        data_dir: data_dir.clone(),
        keep_state: temporary.is_none(),
        token_grace: args.token_grace,
        faults,
        ..Options::default()
    };
    let hub = twinkey_emulator::start(options).await.map_err(|e| {
        let what = format!("the hub did not start: {}", chain(&e));
        match e {
            EmulatorError::Option { .. } => Failure::usage(what),
            EmulatorError::DataDir { .. }
            | EmulatorError::InUse { .. }
            | EmulatorError::Damaged { .. }
            | EmulatorError::State { .. }
            | EmulatorError::Listen { .. }
            | EmulatorError::Certificate(_)
            | EmulatorError::Tls(_)
            | EmulatorError::Random(_) => Failure::failed(what),
        }
    })?;
    output::json_line(hub.ready())?;
    if !seed_given {
        output::note(&format!("--seed {} brings the same chance again", hub.seed()));
    }
    guide(hub.ready(), &data_dir.join("hub.json").display().to_string());
    stop.received().await;
    output::note("stopping");
    hub.shutdown().await;
    Ok(Exit::Done)
}

/// What goes wrong from the start, as the operator endpoint takes it.
fn faults(args: FaultArgs) -> Result<Map<String, Value>, Failure> {
    let mut faults = match args.faults {
        Some(path) => read_faults(&path)?,
        None => Map::new(),
    };
    faults.extend(args.fault);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into();
    let named: [(&str, Option<Value>); 4] = [
        ("latencyMs", args.latency.map(ms)),
        ("propagationDelayMs", args.propagation_delay.map(ms)),
        ("clockOffsetSecs", args.clock_offset.map(Value::from)),
        ("seed", args.seed.map(Value::from)),
    ];
    faults.extend(named.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
    if let Some(tier) = args.tier {
        let tier = tier.as_str();
        // Other settings of the limits, from --fault or a file, stay.
        let mut throttles = match faults.remove("throttles") {
            Some(Value::Object(throttles)) => throttles,
            Some(_) | None => Map::new(),
        };
        throttles.insert("tier".to_owned(), tier.into());
        throttles.extend(args.units.map(|units| ("units".to_owned(), units.into())));
        faults.insert("throttles".to_owned(), throttles.into());
    }
    Ok(faults)
}

fn read_faults(path: &Path) -> Result<Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("read the faults of {}: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| {
        Failure::usage(format!("{} is no JSON object of faults: {e}", path.display()))
            .next("write it like {\"onKeyChange\": \"drop\", \"latencyMs\": 80}")
    })
}

/// Allows as many open files as this process may have: every device takes one, and the usual soft limit is 1,024.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        let limit = current.map_or("unknown".to_owned(), |limit| limit.to_string());
        output::note(&format!("at most {limit} files can be open, and so fewer devices connected: {error}"));
    }
}

/// Logs of hub and libraries on stderr, as RUST_LOG says; warnings if it says nothing.
pub(crate) fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // A second subscriber would be refused, which is no loss.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(output::is_coloured(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .try_init();
}

/// A directory that only its owner can enter and that is removed when dropped.
pub(crate) fn temporary_dir(prefix: &str) -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new().prefix(prefix).tempdir().map_err(|e| {
        Failure::failed(format!("make a temporary directory: {e}"))
            .next("point TMPDIR at a writable directory")
    })
}

/// SIGINT or SIGTERM.
pub(crate) struct StopSignal {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignal {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("listen for signals: {e}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn guide(ready: &Ready, login: &str) {
    output::note(&format!("hub {} is up: mqtts {}, https {}", ready.host_name, ready.mqtts, ready.https));
    output::note(
        "its operator endpoints under /$emulator/ ask for no key: whoever reaches the port may use them",
    );
    output::note(&format!("try:  twinkey device-identity create -d pump-7 --login {login}"));
    output::note(&format!(
        "      twinkey device-identity connection-string -d pump-7 --out pump-7.txt --login {login}"
    ));
    output::note("Ctrl-C stops it");
}
