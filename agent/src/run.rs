//! `twinkey-agent run`: puts the parts together and lets the driver go.

use std::io;
use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use twinkey_rotation::KeySlot;

use crate::chain::Chain;
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::driver::{Driver, Parts, Signal, chance_from_os};
use crate::hub::dial::{Dial, TlsDialler};
use crate::hub::tls::{self, TlsError};
use crate::keyring::{KeyRing, Registration};
use crate::local::{self, ListenError};
use crate::provision::{self, ProvisionError};
use crate::store::{self, DiskFiles, Store, StoreError};

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config_path: &Path) -> Result<(), RunError> {
    let config = Config::read(config_path)?;
    let mut store = store::open(&config.state.dir)?;
    let key_ring = load_or_provision(&config, &mut store)?;
    if let Err(error) = store.settle() {
        tracing::error!(error = %Chain(&error), "the state directory can't be synced; the agent runs on, but a key change may not survive a power cut");
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(serve(config_path, config, store, key_ring))
}

fn load_or_provision(config: &Config, store: &mut Store<DiskFiles>) -> Result<KeyRing, RunError> {
    if let Some(loaded) = store.load()? {
        if let Some((file, error)) = loaded.damaged {
            tracing::error!(file, error = %error, "a key-ring file is damaged; its predecessor is in use");
        }
        if config.hub.connection_string_file.is_some() {
            tracing::debug!("the key ring exists, so the connection string file is not read");
        }
        return Ok(loaded.key_ring);
    }
    let Some(path) = &config.hub.connection_string_file else {
        return Err(RunError::NotProvisioned);
    };
    let text = provision::read_file(path)?;
    let key_ring = provision::provision(store, &text, KeySlot::Primary)?;
    tracing::info!(identity = %key_ring.registration.identity, "key ring created; the file with the connection string is not needed any more: delete it, it holds a key");
    Ok(key_ring)
}

async fn serve(
    config_path: &Path,
    config: Config,
    store: Store<DiskFiles>,
    key_ring: KeyRing,
) -> Result<(), RunError> {
    let registration = key_ring.registration.clone();
    let dialler = dialler(&config, &registration)?;
    let listener = local::listen(&config.local.socket)?;
    let socket = config.local.socket.clone();
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
        clock: Clock::system(),
        chance: Box::new(chance_from_os),
        requests,
        signals,
    });
    let driver = driver.run();
    tokio::pin!(driver);
    let programs = local::serve(listener, registration.clone(), requests_sender);
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
            _ = hang_up.recv() => reload(config_path, &registration),
        };
        if let Some(wanted) = wanted {
            // A full queue means that an earlier signal is on its way.
            let _ = signals_sender.try_send(wanted);
        }
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// What SIGHUP asks for; a configuration that can't be used changes nothing.
fn reload(config_path: &Path, registration: &Registration) -> Option<Signal> {
    let read = || -> Result<Signal, RunError> {
        let config = Config::read(config_path)?;
        let dialler = dialler(&config, registration)?;
        Ok(Signal::Reload(Box::new(config), dialler))
    };
    read().map_err(|error| tracing::error!(error = %Chain(&error), "the configuration was not taken over; the earlier one stays")).ok()
}

fn dialler(config: &Config, registration: &Registration) -> Result<Box<dyn Dial>, RunError> {
    let host = registration.gateway_host_name.as_ref().unwrap_or(&registration.host_name);
    // A port in the connection string is the emulator's; the configuration has the last word on MQTT's.
    let host = host.split_once(':').map_or(host.as_str(), |(host, _)| host).to_owned();
    let config_tls = tls::client_config(config.hub.ca_file.as_deref(), config.hub.system_roots)?;
    Ok(Box::new(TlsDialler { host, port: config.hub.port, config: config_tls, timing: config.timing() }))
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
        "there is no key ring yet: run `twinkey-agent provision` with the device's connection string on standard input, or name a file with `connection_string_file` in section [hub]"
    )]
    NotProvisioned,
    /// The first key ring.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
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
