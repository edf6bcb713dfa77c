//! `emulate`: the local hub alone, until it is told to stop.

use tokio::signal::unix::{SignalKind, signal};
use twinkey_emulator::{Options, Ready};

use crate::cli::EmulateArgs;
use crate::failure::{Exit, Failure, chain};
use crate::output;

/// Runs the hub until SIGINT or SIGTERM.
pub(crate) async fn run(args: EmulateArgs) -> Result<Exit, Failure> {
    start_logging();
    let mut stop = StopSignal::new()?;
    let temporary = match args.data_dir {
        Some(_) => None,
        None => Some(temporary_dir("twinkey-hub-")?),
    };
    let data_dir =
        args.data_dir.or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    let options = Options {
        host_name: args.host_name,
        mqtts: args.mqtts,
        https: args.https,
        data_dir: data_dir.clone(),
        token_grace: args.token_grace,
        ..Options::default()
    };
    let hub = twinkey_emulator::start(options).await.map_err(|e| {
        Failure::failed(format!("the hub did not start: {}", chain(&e)))
            .next("choose other --mqtts, --https or --data-dir")
    })?;
    output::json_line(hub.ready())?;
    guide(hub.ready(), &data_dir.join("hub.json").display().to_string());
    stop.received().await;
    output::note("stopping");
    hub.shutdown().await;
    Ok(Exit::Done)
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
