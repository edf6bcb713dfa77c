//! `twinkey-agent run`: puts the parts together and lets the driver go.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use twinkey_rotation::{KeySlot, Ring};

use crate::chain::Chain;
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::driver::{Driver, Parts, Signal, chance_from_os};
use crate::hub::dial::{Dial, TlsDialler};
use crate::hub::tls::{TlsError, Trust};
use crate::keyring::{KeyRing, Registration};
use crate::local::{self, ListenError};
use crate::provision::{self, ProvisionError};
use crate::store::{self, DiskFiles, Store, StoreError};
use crate::supervisor::Supervisor;

/// Events that are taken from the operating system at once; room for tokio's usual 1,024 would only lie there.
const IO_EVENTS_MAX: usize = 64;

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config_path: &Path) -> Result<(), RunError> {
    let config = Config::read(config_path)?;
    let mut store = store::open(&config.state.dir)?;
    let (key_ring, predecessor) = load_or_provision(&config, &mut store)?;
    let settled = store.settle();
    if let Err(error) = &settled {
        tracing::error!(error = %Chain(error), "the state directory can't be synced; until it can, only keys that a power cut can't undo are used");
    }
    let start = Start { key_ring, predecessor, is_settled: settled.is_ok() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(IO_EVENTS_MAX)
        .build()
        .map_err(RunError::Runtime)?;
    let served = runtime.block_on(serve(config_path, config, store, start));
    // A disk that does not answer must not keep the process from its end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served
}

/// What was found on disk.
struct Start {
    key_ring: KeyRing,
    /// What a power cut may bring back while the key ring is not settled.
    predecessor: Option<Ring>,
    is_settled: bool,
}

fn load_or_provision(
    config: &Config,
    store: &mut Store<DiskFiles>,
) -> Result<(KeyRing, Option<Ring>), RunError> {
    if let Some(loaded) = store.load()? {
        if let Some((file, error)) = loaded.damaged {
            tracing::error!(file, error = %error, "a key-ring file is damaged; its predecessor is in use");
        }
        if config.hub.connection_string_file.is_some() {
            tracing::debug!("the key ring exists, so the connection string file is not read");
        }
        return Ok((loaded.key_ring, loaded.predecessor));
    }
    let Some(path) = &config.hub.connection_string_file else {
        return Err(RunError::NotProvisioned);
    };
    let text = provision::read_file(path)?;
    let key_ring = provision::provision(store, &text, KeySlot::Primary)
        .map_err(|source| RunError::FirstKeyRing { path: path.clone(), source })?;
    tracing::info!(identity = %key_ring.registration.identity, file = %path.display(), "key ring created; the connection string is not needed any more: delete the file that it came from, it holds a key");
    Ok((key_ring, None))
}

async fn serve(
    config_path: &Path,
    config: Config,
    store: Store<DiskFiles>,
    start: Start,
) -> Result<(), RunError> {
    let Start { key_ring, predecessor, is_settled } = start;
    let registration = key_ring.registration.clone();
    let mut clock = Clock::system();
    if let Some(last_seen) = store.last_seen() {
        clock = clock.with_floor(last_seen);
    }
    let dialler = dialler(&config, &registration, &clock)?;
    let listener = local::listen(&config.local.socket)?;
    let fixed = Fixed { dir: config.state.dir.clone(), socket: config.local.socket.clone() };
    let (requests_sender, requests) = mpsc::channel(local::REQUESTS_MAX);
    let (signals_sender, signals) = mpsc::channel(4);
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Runtime)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(RunError::Runtime)?;
    tracing::info!(identity = %registration.identity, hub = registration.host_name, version = env!("CARGO_PKG_VERSION"), "twinkey-agent is running");
    let driver = Driver::new(Parts {
        config,
        key_ring,
        store,
        dialler,
        clock: clock.clone(),
        supervisor: Supervisor::systemd(),
        chance: Box::new(chance_from_os),
        requests,
        signals,
    });
    let driver = if is_settled { driver } else { driver.unsettled(predecessor) };
    let driver = driver.run();
    tokio::pin!(driver);
    let programs = local::serve(listener, registration.clone(), clock.clone(), requests_sender);
    tokio::pin!(programs);
    let mut serves_programs = true;
    loop {
        let wanted = tokio::select! {
            () = &mut driver => break,
            () = &mut programs, if serves_programs => {
                serves_programs = false;
                continue;
            }
            _ = terminate.recv() => Some(Signal::Stop),
            _ = interrupt.recv() => Some(Signal::Stop),
            _ = hang_up.recv() => reload(config_path, &fixed, &registration, &clock),
        };
        if let Some(wanted) = wanted {
            // A full queue means that an earlier signal is on its way.
            let _ = signals_sender.try_send(wanted);
        }
    }
    let _ = std::fs::remove_file(&fixed.socket);
    Ok(())
}

/// What a running agent can't change.
struct Fixed {
    dir: PathBuf,
    socket: PathBuf,
}

/// What SIGHUP asks for; a configuration that can't be used changes nothing.
fn reload(config_path: &Path, fixed: &Fixed, registration: &Registration, clock: &Clock) -> Option<Signal> {
    let read = || -> Result<Signal, RunError> {
        let config = Config::read_again(config_path)?;
        let dialler = dialler(&config, registration, clock)?;
        for (setting, running, wanted) in [
            ("[state] dir", &fixed.dir, &config.state.dir),
            ("[local] socket", &fixed.socket, &config.local.socket),
        ] {
            if running != wanted {
                tracing::warn!(
                    running = %running.display(),
                    wanted = %wanted.display(),
                    "{setting} has changed in the configuration: that needs a restart; until then the earlier one stays"
                );
            }
        }
        Ok(Signal::Reload(Box::new(config), dialler))
    };
    read().map_err(|error| tracing::error!(error = %Chain(&error), "the configuration was not taken over; the earlier one stays")).ok()
}

fn dialler(config: &Config, registration: &Registration, clock: &Clock) -> Result<Box<dyn Dial>, RunError> {
    let host = registration.gateway_host_name.as_ref().unwrap_or(&registration.host_name);
    // A port in the connection string is the emulator's; the configuration has the last word on MQTT's.
    let host = host.split_once(':').map_or(host.as_str(), |(host, _)| host).to_owned();
    let trust = Trust::read(config.hub.ca_file.as_deref(), config.hub.system_roots, clock.clone())?;
    Ok(Box::new(TlsDialler {
        host,
        port: config.hub.port,
        https_port: config.hub.https_port,
        config: trust.client_config()?,
        trust,
        timing: config.timing(),
    }))
}

/// Why the daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No key ring, and nothing to make one from.
    #[error(
        "there is no key ring yet: run `twinkey-agent provision` with the device's connection string on standard input, or name a file with `connection_string_file` in section [hub], or, for the systemd service, put it into /etc/credstore/twinkey.connection-string; then start the agent again"
    )]
    NotProvisioned,
    /// The file with the connection string.
    #[error(transparent)]
    ConnectionString(#[from] ProvisionError),
    /// What was read can't become a key ring.
    #[error("no key ring can be made from {}", path.display())]
    FirstKeyRing {
        /// The file with the connection string.
        path: PathBuf,
        /// Why not.
        source: ProvisionError,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The local socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The operating system.
    #[error("the operating system gives no event loop or signals")]
    Runtime(#[source] io::Error),
}
