//! The small world of the demo: a hub in this process, the real agent as a child, telemetry between them.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use twinkey_contract::Identity;
use twinkey_contract::connection_string::{DeviceConnectionString, ServiceConnectionString};
use twinkey_contract::report::Report;
use twinkey_emulator::{Emulator, Options};

use super::agent::AgentProcess;
use super::narrator::Narrator;
use super::observer::{Connections, Observer};
use super::traffic::Traffic;
use crate::emulate::temporary_dir;
use crate::failure::{Failure, chain};
use crate::files::{self, Readers};
use crate::hub::{CaFile, Hub, HubError};
use crate::renew::renewer::Renewer;
use crate::secrets;

/// The gateway of the story.
pub(crate) const DEVICE_ID: &str = "gateway-1";
/// Short, so that a token is renewed while somebody watches.
const TOKEN_LIFETIME_SECS: u64 = 15;
/// Short, so that a refused key is given up while somebody watches. A real hub may need minutes.
const PROPAGATION_WINDOW_SECS: u64 = 3;
/// Longest wait for anything that the demo waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is waited for.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Longest path of a Unix socket, in bytes (Linux, unix(7): 108 with the final zero).
const SOCKET_PATH_LEN_MAX: usize = 107;

pub(crate) struct World {
    pub(crate) hub: Arc<Hub>,
    pub(crate) renewer: Renewer,
    pub(crate) observer: Observer,
    pub(crate) identity: Identity,
    pub(crate) agent: AgentProcess,
    pub(crate) traffic: Traffic,
    pub(crate) paths: Paths,
    emulator: Emulator,
    _dir: TempDir,
}

/// Where things are, for the reader who goes on by hand.
pub(crate) struct Paths {
    pub(crate) login: PathBuf,
    pub(crate) ca_file: PathBuf,
    pub(crate) agent_config: PathBuf,
    pub(crate) agent_log: PathBuf,
}

impl World {
    pub(crate) async fn build(narrator: &Narrator) -> Result<Self, Failure> {
        let dir = temporary_dir("twinkey-demo-")?;
        let hub_dir = private_dir(dir.path(), "hub")?;
        let agent_dir = private_dir(dir.path(), "agent")?;
        let socket = dir.path().join("agent.sock");
        if socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
            return Err(Failure::failed(format!("{} is too long for a socket", socket.display()))
                .next("point TMPDIR at a shorter path"));
        }

        let options = Options { data_dir: hub_dir.clone(), ..Options::default() };
        let started = twinkey_emulator::start(options).await;
        let emulator =
            started.map_err(|e| Failure::failed(format!("the hub did not start: {}", chain(&e))))?;
        let ready = emulator.ready();
        narrator.say(&format!(
            "a hub listens: MQTT over TLS on {}, its REST interface on {}",
            ready.mqtts, ready.https
        ));

        let login = ServiceConnectionString::parse(&ready.service_connection_string);
        let login = login.map_err(|e| Failure::failed(format!("the hub's own login: {}", chain(&e))))?;
        let hub =
            Arc::new(Hub::new(&login, Some(CaFile { path: &ready.ca_file, named_by: "the hub's CA" }))?);
        let renewer = Renewer::new(hub.clone(), 1)?;
        let observer = Observer::new(&ready.https, &ready.ca_file, DEVICE_ID)?;
        let identity = Identity::new(DEVICE_ID, None).map_err(|e| Failure::failed(e.to_string()))?;
        let device = hub.create_device(&identity, true).await?;
        narrator.say(&format!("it has a device, {DEVICE_ID}, with a primary and a secondary key"));

        let key = device.keys().ok_or_else(|| Failure::failed("the hub made no keys"))?.primary;
        let host_name = hub.host_name().to_owned();
        let text =
            DeviceConnectionString { host_name, identity: identity.clone(), key, gateway_host_name: None }
                .expose();
        let connection_string_file = dir.path().join("connection-string");
        secrets::write_new_file(&connection_string_file, &text)?;
        let agent_config = dir.path().join("agent.toml");
        let port = ready.mqtts.rsplit_once(':').map_or("8883", |(_, port)| port);
        let https_port = ready.https.rsplit_once(':').map_or("443", |(_, port)| port);
        let ports = format!("port = {port}\nhttps_port = {https_port}");
        let config = configuration(&connection_string_file, &ready.ca_file, &ports, &agent_dir, &socket);
        files::replace(&agent_config, config.as_bytes(), Readers::Owner)
            .map_err(|e| Failure::failed(format!("write {}: {e}", agent_config.display())))?;
        let (login, agent_log) = (hub_dir.join("hub.json"), dir.path().join("agent.log"));
        let paths = Paths { login, ca_file: ready.ca_file.clone(), agent_config, agent_log };

        let agent = AgentProcess::start(&paths.agent_config, &paths.agent_log)?;
        let traffic = tokio::select! {
            traffic = connect_traffic(&socket) => traffic?,
            death = agent.died() => return Err(death),
        };
        Ok(Self { hub, renewer, observer, identity, agent, traffic, paths, emulator, _dir: dir })
    }

    /// Ends telemetry, agent and hub, in this order.
    pub(crate) async fn close(self) {
        drop(self.traffic);
        self.agent.stop().await;
        self.emulator.shutdown().await;
    }

    /// Waits until the hub's view of its connections is as wished.
    pub(crate) async fn until_connections<T>(
        &self,
        what: &str,
        wish: impl Fn(&Connections) -> Option<T>,
    ) -> Result<T, Failure> {
        until(what, async || Ok(wish(&self.observer.connections().await?))).await
    }

    /// Waits until the agent's report is as wished.
    pub(crate) async fn until_report(
        &self,
        what: &str,
        wish: impl Fn(&Report) -> bool,
    ) -> Result<Report, Failure> {
        until(what, async || {
            let report = self.hub.twin(&self.identity).await?.report();
            Ok(report.ok().flatten().filter(|report| wish(report)))
        })
        .await
    }
}

/// Looks again and again until there is something, while the hub may be away.
pub(crate) async fn until<T>(
    what: &str,
    look: impl AsyncFn() -> Result<Option<T>, HubError>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) if error.status().is_none_or(|status| status >= 500) => Some(error),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            let cause = why.map_or_else(String::new, |error| format!(": {}", chain(&error)));
            return Err(Failure::failed(format!(
                "{what} did not happen within {} s{cause}",
                PATIENCE.as_secs()
            )));
        }
        sleep(LOOK_PAUSE).await;
    }
}

async fn connect_traffic(socket: &Path) -> Result<Traffic, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Traffic::start(socket).await {
            Ok(traffic) => return Ok(traffic),
            Err(failure) if Instant::now() >= deadline => return Err(failure),
            // The agent opens it in a moment.
            Err(_) => sleep(LOOK_PAUSE).await,
        }
    }
}

fn private_dir(parent: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = parent.join(name);
    let made = DirBuilder::new().mode(0o700).create(&path);
    made.map_err(|e| Failure::failed(format!("make {}: {e}", path.display())))?;
    Ok(path)
}

fn configuration(
    connection_string: &Path,
    ca_file: &Path,
    ports: &str,
    state: &Path,
    socket: &Path,
) -> String {
    // A JSON string is a TOML string too.
    let quote = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    format!(
        "[hub]\nconnection_string_file = {}\nca_file = {}\n{ports}\n\n[state]\ndir = {}\n\n[local]\nsocket = {}\n\n\
         [rotation]\npropagation_window_secs = {PROPAGATION_WINDOW_SECS}\n\n[token]\nlifetime_secs = {TOKEN_LIFETIME_SECS}\n",
        quote(connection_string),
        quote(ca_file),
        quote(state),
        quote(socket)
    )
}
