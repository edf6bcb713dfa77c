//! A gateway: a directory of its own, and the real agent as a process.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::hub::TestHub;
use crate::programs;
use crate::waiting::{PATIENCE, until};

/// Lines of the agent's log that a failed test shows.
const LAST_WORDS: usize = 40;

/// The agent's configuration, as far as tests choose it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[hub] port`
    pub port: u16,
    /// `[hub] https_port`
    pub https_port: u16,
    /// `[hub] ca_file`
    pub ca_file: PathBuf,
    /// `[hub] takeover`
    pub takeover: &'static str,
    /// `[local] tokens`
    pub tokens: bool,
    /// `[rotation] propagation_window_secs`
    pub propagation_window_secs: u64,
    /// `[rotation] allow_unsealed` and `allow_unauthenticated`: offers that a person writes by hand.
    pub takes_plain_offers: bool,
    /// `[token] lifetime_secs`
    pub token_lifetime_secs: u64,
    /// `[state] dir`; a directory of the gateway's if absent.
    pub state_dir: Option<PathBuf>,
    /// `RUST_LOG` of the daemon.
    pub log_filter: &'static str,
    /// Arguments before the subcommand.
    pub arguments: &'static [&'static str],
    /// More environment of the program's.
    pub environment: Vec<(&'static str, String)>,
}

impl Settings {
    /// What suits most tests.
    pub fn for_hub(hub: &TestHub) -> Self {
        Self { https_port: hub.https_port(), ..Self::at(hub.mqtts_port(), hub.ca_file()) }
    }

    /// The same for any endpoint.
    pub fn at(port: u16, ca_file: &Path) -> Self {
        Self {
            port,
            https_port: 443,
            ca_file: ca_file.to_owned(),
            takeover: "make-before-break",
            tokens: false,
            propagation_window_secs: 2,
            takes_plain_offers: true,
            token_lifetime_secs: 3_600,
            state_dir: None,
            log_filter: "info",
            arguments: &[],
            environment: Vec::new(),
        }
    }
}

/// Where an agent lives.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    dir: TempDir,
}

impl Gateway {
    /// A gateway for `identity` (`device` or `device/module`), which has its primary key.
    pub fn new(hub: &TestHub, identity: &str, primary_key: &str) -> Self {
        Self::with(Settings::for_hub(hub), &connection_string("localhost", identity, primary_key))
    }

    /// A gateway with settings and a connection string of the caller's.
    pub fn with(settings: Settings, connection_string: &str) -> Self {
        let gateway = Self { settings, dir: tempfile::tempdir().unwrap() };
        gateway.write_private("connection-string", connection_string.as_bytes());
        gateway.write_config();
        gateway
    }

    /// Changes the settings; they count from the next start, or SIGHUP.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.write_config();
    }

    fn write_config(&self) {
        let Settings {
            port,
            https_port,
            ca_file,
            takeover,
            tokens,
            propagation_window_secs,
            takes_plain_offers,
            token_lifetime_secs,
            state_dir: _,
            log_filter: _,
            arguments: _,
            environment: _,
        } = &self.settings;
        let (connection_string, state, socket) =
            (self.path("connection-string"), self.state_dir(), self.socket());
        // Rust's notation of these paths is TOML's too.
        let text = format!(
            "[hub]\nconnection_string_file = {connection_string:?}\nca_file = {ca_file:?}\nsystem_roots = false\n\
             port = {port}\nhttps_port = {https_port}\ntakeover = {takeover:?}\n\n[state]\ndir = {state:?}\n\n[local]\nsocket = {socket:?}\ntokens = {tokens}\n\n\
             [rotation]\npropagation_window_secs = {propagation_window_secs}\nallow_unsealed = {takes_plain_offers}\n\
             allow_unauthenticated = {takes_plain_offers}\n\n\
             [token]\nlifetime_secs = {token_lifetime_secs}\n"
        );
        fs::write(self.path("agent.toml"), text).unwrap();
    }

    /// A file of the gateway's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the key ring is.
    pub fn state_dir(&self) -> PathBuf {
        self.settings.state_dir.clone().unwrap_or_else(|| self.path("state"))
    }

    /// Where the agent serves programs.
    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// Writes a file that only its owner can read.
    pub fn write_private(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The key-ring files that exist, the newest first, with their content.
    pub fn key_rings(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = ["key-ring.a", "key-ring.b"]
            .into_iter()
            .map(|name| self.state_dir().join(name))
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().unwrap(), path)))
            .collect();
        files.sort();
        files.into_iter().rev().map(|(_, path)| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Everything that the agent has logged here so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("agent.log")).unwrap_or_default()).into_owned()
    }

    /// Waits until the log has `text`.
    pub async fn until_logged(&self, text: &str) {
        until(&format!("the agent logs `{text}`"), async || self.log().contains(text).then_some(())).await;
    }

    /// A command of the agent's program with this gateway's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = programs::twinkey_agent();
        command.envs(self.settings.environment.iter().map(|(name, value)| (name, value)));
        command.args(self.settings.arguments).args(args).arg("--config").arg(self.path("agent.toml"));
        command
    }

    /// Runs such a command to its end.
    pub async fn run(&self, args: &[&str]) -> Output {
        timeout(PATIENCE, self.command(args).output()).await.expect("the command ends").unwrap()
    }

    /// Runs such a command with `input` on standard input.
    pub async fn run_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The program may refuse before it has read all.
        let _ = child.stdin.take().unwrap().write_all(input).await;
        timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap()
    }

    /// Starts the daemon.
    pub fn start(&self) -> Agent {
        let log =
            OpenOptions::new().append(true).create(true).mode(0o600).open(self.path("agent.log")).unwrap();
        let mut command = self.command(&["run"]);
        command.env("RUST_LOG", self.settings.log_filter).stdout(log.try_clone().unwrap()).stderr(log);
        Agent { child: command.spawn().unwrap() }
    }

    /// A program that is connected to the agent's socket.
    pub async fn program(&self) -> Program {
        let connected = until("the agent's socket takes a program", async || {
            UnixStream::connect(self.socket()).await.ok()
        });
        let (read, write) = connected.await.into_split();
        Program { read: BufReader::new(read), write }
    }

    /// What the running agent says of itself.
    pub async fn status(&self) -> Value {
        self.program().await.ask(json!({"request": "status"})).await["status"].take()
    }

    /// Waits for a status that is as wished.
    pub async fn until_status(&self, what: &str, wish: impl Fn(&Value) -> bool) -> Value {
        until(what, async || Some(self.status().await).filter(|status| wish(status))).await
    }

    /// Whether a message gets through to the hub.
    pub async fn publishes(&self) -> bool {
        self.program().await.ask(json!({"request": "publish", "body": "are you there"})).await["ok"] == true
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(LAST_WORDS);
            eprintln!("the agent's last words:\n{}", lines[last..].join("\n"));
        }
    }
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the agent has not ended")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.pid(), signal);
    }

    /// Ends it as a power cut would, as far as a process goes.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits for its end.
    pub async fn end(mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("the agent ends").unwrap()
    }

    /// Ends it in an orderly way, within `bound`.
    pub async fn stop_within(mut self, bound: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        timeout(bound, self.child.wait()).await.expect("the agent ends in time").unwrap()
    }

    /// Ends it in an orderly way.
    pub async fn stop(self) {
        assert!(self.stop_within(PATIENCE).await.success());
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// Sends a signal to a process of the test's own.
pub fn signal_process(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A program on the gateway.
#[derive(Debug)]
pub struct Program {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Program {
    /// Asks, and waits for the next answer.
    pub async fn ask(&mut self, request: Value) -> Value {
        self.say(request.to_string().as_bytes()).await;
        self.hear().await.expect("the agent answers")
    }

    /// Sends one line. The agent may have hung up: then the next answer tells.
    pub async fn say(&mut self, line: &[u8]) {
        let _ = self.write.write_all(line).await;
        let _ = self.write.write_all(b"\n").await;
    }

    /// The next answer; `None` once the agent has hung up.
    pub async fn hear(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        let read =
            timeout(PATIENCE, self.read.read_until(b'\n', &mut line)).await.expect("the agent says nothing");
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_slice(&line).unwrap()),
        }
    }
}

/// The connection string of a device or module.
pub fn connection_string(host_name: &str, identity: &str, key: &str) -> String {
    let identity = identity.replace('/', ";ModuleId=");
    format!("HostName={host_name};DeviceId={identity};SharedAccessKey={key}")
}

/// A program's output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
